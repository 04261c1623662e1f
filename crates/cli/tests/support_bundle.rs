//! `support-bundle`: there when nothing runs, bounded when nothing answers, and without a
//! secret wherever one was planted. Read by unzip and by Python, which are not ours.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Every one is somewhere on the device.
const SECRETS: [&str; 12] = [
    "SymmetricKeyOfTheDevice0123456789abcdefghij",
    "PasswordOfTheRegistry",
    "VariableOfTheAgent",
    "PasswordOfEst",
    "4711471147",
    "PasswordOfTheProxy",
    "KeyThatWaitsForKeyd",
    "KeyInALog0123456789",
    "TokenInALog0123456789",
    "PasswordInALog",
    "MIIBVgIBADANBgkqhkiG9w0BAQEFAASCAUAwggE8AgEAAkEA",
    "SecretInASettingsFile",
];

const CONFIG: &str = r#"hostname = "press-04"
# a comment with SymmetricKeyOfTheDevice0123456789abcdefghij
[provisioning]
source = "manual"
connection_string = "HostName=h.example;DeviceId=press-04;SharedAccessKey=SymmetricKeyOfTheDevice0123456789abcdefghij"
[agent]
name = "edgeAgent"
type = "docker"
[agent.config]
image = "registry.example/agent:1"
auth = { username = "puller", password = "PasswordOfTheRegistry", serveraddress = "registry.example" }
[agent.env]
PLAIN_NAME = "VariableOfTheAgent"
[cert_issuance.est.auth]
username = "plant"
password = "PasswordOfEst"
[preloaded_keys]
wanted = "pkcs11:token=edge;object=x?pin-value=4711471147"
"#;

/// A log as modules write them.
const LOG: &str = "started\n\
    connecting with HostName=h;SharedAccessKey=KeyInALog0123456789;x\n\
    SAS: SharedAccessSignature sr=h&sig=TokenInALog0123456789&se=1\n\
    {\"user\":\"u\",\"password\":\"PasswordInALog\"}\n\
    the device key is SymmetricKeyOfTheDevice0123456789abcdefghij and the proxy http://u:PasswordOfTheProxy@p:1\n\
    -----BEGIN PRIVATE KEY-----\nMIIBVgIBADANBgkqhkiG9w0BAQEFAASCAUAwggE8AgEAAkEA\n-----END PRIVATE KEY-----\n\
    temperature 21\n";

struct Device(tempfile::TempDir);

impl Device {
    fn new() -> Self {
        let device = Self(tempfile::Builder::new().prefix("ek-").tempdir_in("/tmp").unwrap());
        device.write("etc/edgekeep/config.toml", CONFIG);
        device.write(
            "etc/edgekeep/moduled.json",
            "{\"agent\":{\"auth\":{\"password\":\"SecretInASettingsFile\"},\"image\":\"x\"}}",
        );
        device.write("var/lib/edgekeep/keyd/import/device-id", "KeyThatWaitsForKeyd");
        device
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    fn write(&self, below: &str, text: &str) {
        let path = self.path(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn bundle(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgekeep"));
        command.env_remove("EDGEKEEP_ROOT").arg("--root").arg(self.0.path());
        command.env("HTTPS_PROXY", "http://plant:PasswordOfTheProxy@proxy.example:3128");
        command.arg("support-bundle").args(words).current_dir(self.0.path());
        command.output().unwrap()
    }

    /// A socket at which `answer` answers each request; nothing if it gives nothing.
    fn socket(&self, below: &str, answer: fn(&str) -> Option<Vec<u8>>) {
        let path = self.path(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for mut client in listener.incoming().flatten() {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n")
                    && client.read(&mut byte).is_ok_and(|read| read == 1)
                {
                    head.push(byte[0]);
                }
                match answer(&String::from_utf8_lossy(&head)) {
                    Some(body) => {
                        let head = format!(
                            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                             Connection: close\r\n\r\n",
                            body.len()
                        );
                        let _ = client.write_all(head.as_bytes());
                        let _ = client.write_all(&body);
                    }
                    None => silent.push(client),
                }
            }
        });
    }
}

/// Names and contents of a zip, by Python.
fn members(zip: &Path) -> Vec<(String, String)> {
    const READ: &str = "import json, sys, zipfile\n\
        z = zipfile.ZipFile(sys.argv[1])\n\
        assert z.testzip() is None\n\
        print(json.dumps([[n, z.read(n).decode('utf-8', 'replace')] for n in z.namelist()]))";
    let output = Command::new("python3").args(["-c", READ]).arg(zip).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn assert_no_secret(members: &[(String, String)]) {
    for (name, content) in members {
        for secret in SECRETS {
            assert!(!content.contains(secret), "{secret} is in {name}:\n{content}");
        }
    }
}

fn member<'a>(members: &'a [(String, String)], name: &str) -> &'a str {
    let found = members.iter().find(|(found, _)| found == name);
    let names: Vec<&String> = members.iter().map(|(name, _)| name).collect();
    &found.unwrap_or_else(|| panic!("{name} is not in {names:?}")).1
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn with_all_daemons_down_there_is_a_bundle_with_reasons_and_without_secrets() {
    let device = Device::new();
    let made = device.bundle(&["-o", "bundle.zip"]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    assert_eq!(text(&made.stdout), "");
    let told = text(&made.stderr);
    assert!(told.contains("modules.json: ") && told.contains("look through it before"), "{told}");
    let zip = device.path("bundle.zip");
    assert_eq!(std::fs::metadata(&zip).unwrap().permissions().mode() & 0o777, 0o600);
    if let Ok(tested) = Command::new("unzip").arg("-tq").arg(&zip).output() {
        assert!(tested.status.success(), "{}", text(&tested.stdout));
    }
    let members = members(&zip);
    assert_no_secret(&members);
    let config = member(&members, "config/config.toml");
    assert!(config.contains("hostname = \"press-04\"") && config.contains("***"), "{config}");
    assert!(!config.contains("a comment"), "comments may hold secrets");
    assert!(member(&members, "config/moduled.json").contains("\"image\": \"x\""));
    assert!(member(&members, "modules_err.txt").contains("mgmt.sock"));
    let machine: serde_json::Value =
        serde_json::from_str(member(&members, "machine.json")).unwrap();
    assert!(machine["kernel"]["release"].is_string() && machine["disks"][0]["freeBytes"].is_u64());
    let check: serde_json::Value = serde_json::from_str(member(&members, "check.json")).unwrap();
    assert!(check["checks"]["keyd-running"].is_object(), "{check}");
    let parts: serde_json::Value = serde_json::from_str(member(&members, "parts.json")).unwrap();
    for part in parts["parts"].as_array().unwrap() {
        let name = part["name"].as_str().unwrap();
        let stem = name.rsplit_once('.').unwrap().0;
        let error = format!("{stem}_err.txt");
        assert!(members.iter().any(|(found, _)| found == name || *found == error), "{name}");
    }
}

#[test]
fn logs_of_modules_are_in_it_without_what_is_secret_in_them() {
    fn moduled(head: &str) -> Option<Vec<u8>> {
        if head.contains("/logs") {
            let length = u32::try_from(LOG.len()).unwrap().to_be_bytes();
            return Some([&[1, 0, 0, 0][..], &length, LOG.as_bytes()].concat());
        }
        let list = "{\"modules\":[{\"id\":\"id\",\"name\":\"thermometer\",\"type\":\"docker\",\"config\":{\"settings\":\
            {\"image\":\"i\",\"createOptions\":{\"Env\":[\"A=VariableOfTheAgent\"]}},\"env\":[]},\"status\":\
            {\"startTime\":null,\"exitStatus\":null,\"runtimeStatus\":{\"status\":\"running\",\"description\":null}}}]}";
        Some(if head.contains("/modules?") { list.into() } else { b"{}".to_vec() })
    }
    let device = Device::new();
    device.socket("run/iotedge/mgmt.sock", moduled);
    let made = device.bundle(&["-o", "-", "-q"]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    assert_eq!(text(&made.stderr), "");
    let zip = device.path("out.zip");
    std::fs::write(&zip, &made.stdout).unwrap();
    let members = members(&zip);
    assert_no_secret(&members);
    let log = member(&members, "logs/thermometer_log.txt");
    assert!(log.contains("started\n") && log.contains("temperature 21\n"), "{log}");
    assert!(log.contains("SharedAccessKey=***;x"), "{log}");
}

#[test]
fn daemons_that_accept_and_never_answer_do_not_hold_it_up() {
    let device = Device::new();
    for socket in [
        "run/iotedge/mgmt.sock",
        "run/aziot/keyd.sock",
        "run/aziot/identityd.sock",
        "run/aziot/certd.sock",
        "run/edgekeep/keyd.metrics.sock",
        "run/edgekeep/moduled.metrics.sock",
    ] {
        device.socket(socket, |_| None);
    }
    let begun = Instant::now();
    let made = device.bundle(&["-o", "bundle.zip"]);
    let took = begun.elapsed();
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    // Nine seconds a step, all at once; the rest is a busy machine's.
    assert!(took < Duration::from_secs(40), "{took:?}");
    let members = members(&device.path("bundle.zip"));
    assert_no_secret(&members);
    assert!(member(&members, "modules_err.txt").contains("edgekeep-moduled"));
}

#[test]
fn a_file_that_is_there_is_not_written_over_and_nothing_is_left_of_a_failure() {
    let device = Device::new();
    device.write("bundle.zip", "mine");
    let refused = device.bundle(&["-o", "bundle.zip"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("is there already"), "{}", text(&refused.stderr));
    assert_eq!(std::fs::read(device.path("bundle.zip")).unwrap(), b"mine");
    let refused = device.bundle(&["-o", "nowhere/bundle.zip"]);
    assert!(text(&refused.stderr).contains("--output"), "{}", text(&refused.stderr));
    // A disk that is full from the beginning.
    let refused = device.bundle(&["-o", "/dev/full/x"]);
    assert_eq!(refused.status.code(), Some(1));
    let refused = device.bundle(&["--since", "yesterday"]);
    assert_eq!(refused.status.code(), Some(2));
    let left = std::fs::read_dir(device.0.path()).unwrap();
    let left =
        left.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains(".tmp"));
    assert_eq!(left.count(), 0);
}
