//! `migrate`: the plan as it is shown, refusals, containers as an engine tells them, and
//! the way back. What the daemons make of it is shown in tests/suite.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CONFIG: &str = "hostname = \"press-04\"\n[provisioning]\nsource = \"dps\"\n\
    global_endpoint = \"https://global.azure-devices-provisioning.net\"\nid_scope = \"0ne00000000\"\n\
    [provisioning.attestation]\nmethod = \"symmetric_key\"\nregistration_id = \"press-04\"\n\
    symmetric_key = { value = \"a2V5MQ==\" }\n";

struct Device(tempfile::TempDir);

impl Device {
    fn former(edge: bool) -> Self {
        let device = Self(tempfile::tempdir().unwrap());
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/testkit/former/lay-out.sh");
        let mut lay_out = Command::new(script);
        lay_out.arg(device.0.path()).args(["plant7.azure-devices.net", "press-04"]);
        let laid_out = lay_out.args(edge.then_some("edge")).output().unwrap();
        assert!(laid_out.status.success(), "{}", text(&laid_out.stderr));
        device.configure(CONFIG);
        device
    }

    fn configure(&self, text: &str) {
        std::fs::write(self.path("etc/aziot/config.toml"), text).unwrap();
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    fn migrate(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgekeep"));
        command.env_remove("EDGEKEEP_ROOT").arg("--root").arg(self.0.path());
        command.arg("migrate").args(words).output().unwrap()
    }

    #[track_caller]
    fn says(&self, words: &[&str]) -> String {
        let output = self.migrate(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    #[track_caller]
    fn refuses(&self, words: &[&str]) -> String {
        let output = self.migrate(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }

    /// All files by coreutils: digest and path.
    fn digests(&self) -> String {
        let command = "find . -type f -print0 | sort -z | xargs -0 sha256sum; find . -type l -o -type s | sort";
        let output = Command::new("sh").args(["-c", command]).current_dir(self.0.path()).output();
        text(&output.unwrap().stdout)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_dry_run_names_each_file_and_changes_nothing() {
    let device = Device::former(false);
    let before = device.digests();
    let told = device.says(&["--dry-run"]);
    assert_eq!(device.digests(), before);
    for part in [
        "would take over key aziot_identityd_master_id (var/lib/aziot/keyd/keys/",
        "would take over key iotedge_master_encryption_id (",
        "would take over key aziot-edged-ca (",
        "would take over certificate var/lib/aziot/certd/certs/aziotedgedca-",
        "would take over the identity: device press-04 at plant7.azure-devices.net\n",
        "would take over the identities of modules: $edgeAgent, $edgeHub, thermometer\n",
        "would take over the configuration\n",
        "nothing was changed\n",
        "notes.txt; look at it: no file that is known",
        ".key; look at it: is empty",
        "look at it: a key whose id is not known; if it is needed, name the id with --key-id",
        "10-watcher.toml; look at it: settings beside the configuration are not read",
        "(proves key handles, which are given out anew)",
        "(of a renewal that was cut off, which is made anew)",
        "(of another device, or of an earlier identity)",
    ] {
        assert!(told.contains(part), "{part}\n{told}");
    }
    // Each file is named once, but for those that the lines above sum up.
    for line in before.lines() {
        let path = line.rsplit("./").next().unwrap();
        let summed = ["device_info", "/modules/", "etc/aziot/config.toml"];
        if !summed.iter().any(|part| path.contains(part)) || path.contains("config.toml.t") {
            assert_eq!(told.matches(path).count(), 1, "{path}\n{told}");
        }
    }
}

#[test]
fn a_takeover_and_the_way_back_leave_the_old_files_as_they_were() {
    let device = Device::former(false);
    let before = device.digests();
    let told = device.says(&["--json", "--key-id", "plant7recipes-other"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["dryRun"], false);
    let keys: Vec<&str> = told["taken"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|taken| taken["what"] == "key")
        .map(|taken| taken["id"].as_str().unwrap())
        .collect();
    assert_eq!(
        keys,
        ["aziot-edged-ca", "aziot_identityd_master_id", "iotedge_master_encryption_id"]
    );
    let import = device.path("var/lib/edgekeep/keyd/import");
    for (id, length) in [("iotedge_master_encryption_id", 32), ("device-id", 4)] {
        assert_eq!(std::fs::read(import.join(id)).unwrap().len(), length, "{id}");
    }
    let config = std::fs::read_to_string(device.path("etc/edgekeep/config.toml")).unwrap();
    assert!(config.ends_with(CONFIG) && config.contains("module_encryption = \"device-key\""));

    let again = device.refuses(&[]);
    assert!(again.contains("taken over already") && again.contains("--undo"), "{again}");

    let dry = device.says(&["--undo", "--dry-run"]);
    assert!(dry.contains("would move") && dry.contains("nothing was changed"), "{dry}");
    assert!(device.path("etc/edgekeep/config.toml").exists());
    let told = device.says(&["--undo"]);
    assert!(told.contains("var/lib/edgekeep/keyd into"), "{told}");
    let after: Vec<String> = device
        .digests()
        .lines()
        .filter(|line| !line.contains("/edgekeep/"))
        .map(str::to_owned)
        .collect();
    assert_eq!(after, before.lines().collect::<Vec<_>>());
    assert!(device.path("var/lib/edgekeep/undone-1/keyd/import/aziot-edged-ca").exists());
    let nothing = device.refuses(&["--undo"]);
    assert!(nothing.contains("there is no way back"), "{nothing}");
    // There, and back, and there again.
    device.says(&[]);
    device.says(&["--undo"]);
    assert!(device.path("var/lib/edgekeep/undone-2/keyd").exists());
}

#[test]
fn a_device_in_use_or_without_a_configuration_or_with_another_identity_is_refused() {
    let device = Device::former(false);
    let before = device.digests();
    device.configure(&CONFIG.replace("hostname", "hostnme"));
    let told = device.refuses(&[]);
    assert!(
        told.contains("did you mean `hostname`") && told.contains("nothing was changed"),
        "{told}"
    );
    device.configure(
        "hostname = \"x\"\n[provisioning]\nsource = \"manual\"\n\
         connection_string = \"HostName=plant7.azure-devices.net;DeviceId=press-05;SharedAccessKey=a2V5MQ==\"\n",
    );
    let told = device.refuses(&[]);
    assert!(told.contains("names device press-05") && told.contains("is press-04"), "{told}");
    std::fs::remove_file(device.path("etc/aziot/config.toml")).unwrap();
    let told = device.refuses(&[]);
    assert!(told.contains("cannot read") && told.contains("etc/aziot/config.toml"), "{told}");
    device.configure(CONFIG);
    assert_eq!(device.digests(), before);
    std::fs::create_dir_all(device.path("etc/edgekeep")).unwrap();
    std::fs::write(device.path("etc/edgekeep/config.toml"), CONFIG).unwrap();
    let told = device.refuses(&[]);
    assert!(told.contains("this device is in use"), "{told}");
}

/// A stand-in of the engine's API that answers two questions.
fn engine(socket: &Path) {
    let id = "c".repeat(64);
    let listed = format!("[{{\"Id\":\"{id}\"}}]");
    let shown = format!(
        "{{\"Id\":\"{id}\",\"Name\":\"/thermometer\",\"Image\":\"sha256:{}\",\"State\":{{\"Running\":true}},\
         \"Config\":{{\"Labels\":{{}}}}}}",
        "d".repeat(64)
    );
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|read| read == 1)
            {
                head.push(byte[0]);
            }
            let body = if text(&head).contains("/containers/json?") { &listed } else { &shown };
            let _ = write!(
                client,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
}

#[test]
fn containers_are_registered_and_their_sockets_lead_to_the_shared_one() {
    let device = Device::former(true);
    let socket = device.path("engine.sock");
    let moby = format!("[moby_runtime]\nuri = \"unix://{}\"\nnetwork = \"n\"\n", socket.display());
    device.configure(&format!("{CONFIG}{moby}"));
    let silent = device.refuses(&[]);
    assert!(
        silent.contains("does not answer, and its containers are to be taken over"),
        "{silent}"
    );
    assert!(!device.path("etc/edgekeep/config.toml").exists());
    engine(&socket);
    let told = device.says(&[]);
    assert!(told.contains("took over the containers of modules: thermometer\n"), "{told}");
    assert!(told.contains("edgekeep restart thermometer"), "it runs: {told}");
    let file = std::fs::read_to_string(device.path("var/lib/edgekeep/moduled/registrations.json"));
    let file = file.unwrap();
    let known: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(file.split_once('\n').unwrap().1).unwrap();
    let known = &known["thermometer"];
    assert_eq!(known["generation"], "641");
    assert_eq!(known["policy"], "image");
    assert_eq!(known["workload"]["container"], "c".repeat(64));
    let link = device.path("var/lib/aziot/edged/mnt/thermometer.sock");
    assert_eq!(std::fs::read_link(&link).unwrap(), device.path("run/iotedge/workload.sock"));
    device.says(&["--undo"]);
    assert!(!link.exists() && link.symlink_metadata().is_err());
}
