//! `edgekeep keys` on a SoftHSM2 token, a software TPM, and with age and openssl.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

#[path = "../../tpm/tests/parts/mod.rs"]
mod parts;
#[path = "../../tpm/tests/tpm/swtpm.rs"]
#[allow(dead_code, reason = "the TPM layer's own tests use the rest")]
mod swtpm;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use edgekeep_core::id::KeyId;
use edgekeep_hsm::configured::Hardware;
use edgekeep_hsm::software::{Protection, SoftwareBackend};
use edgekeep_hsm::{KeyBackend as _, SymmetricKey, Usage};
use serde_json::{Value, json};
use swtpm::Swtpm;

const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

fn doctor(folder: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgekeep"));
    command.env_remove("EDGEKEEP_ROOT").env("SOFTHSM2_CONF", folder.join("softhsm2.conf"));
    command.arg("--root").arg(folder).args(["keys", "doctor"]).args(words).output().unwrap()
}

#[track_caller]
fn examined(output: &Output, code: i32) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(
        output.status.code(),
        Some(code),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// An initialized token, its PIN in a file.
fn token(folder: &Path) {
    fs::create_dir(folder.join("tokens")).unwrap();
    let text =
        format!("directories.tokendir = {}\nlog.level = ERROR\n", folder.join("tokens").display());
    fs::write(folder.join("softhsm2.conf"), text).unwrap();
    let made = Command::new("softhsm2-util")
        .args([
            "--init-token",
            "--free",
            "--label",
            "edge",
            "--so-pin",
            "87654321",
            "--pin",
            "1234",
        ])
        .env("SOFTHSM2_CONF", folder.join("softhsm2.conf"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    fs::write(folder.join("pin"), "1234\n").unwrap();
}

fn settings(folder: &Path, settings: &Value) {
    let path = folder.join("etc/edgekeep/keyd.json");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, settings.to_string()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A library that says that it was loaded, by making the file `loaded`.
fn telltale(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("telltale.c"), folder.join("telltale.so"));
    let text = format!(
        "#include <fcntl.h>\n__attribute__((constructor)) static void tell(void) {{ open(\"{}\", O_CREAT | O_WRONLY, 0600); }}\n",
        folder.join("loaded").display()
    );
    fs::write(&source, text).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    library
}

/// The attack: keyd, or an intruder in it, names a library of its own and waits for root
/// to look after the tokens.
#[test]
fn root_loads_no_library_that_keyd_could_have_named() {
    use std::os::unix::fs::chown;
    if !rustix::process::geteuid().is_root() || parts::missing(&["cc"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    settings(folder, &json!({"pkcs11": {"library": telltale(folder)}}));
    let (path, loaded) = (folder.join("etc/edgekeep/keyd.json"), folder.join("loaded"));
    examined(&doctor(folder, &[]), 1);
    assert!(loaded.exists(), "the library would have told");
    fs::remove_file(&loaded).unwrap();
    let refused = |why: &str| {
        let output = doctor(folder, &[]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(why), "{error}");
        assert!(error.contains("run `edgekeep config apply` as root"), "{error}");
        assert!(!loaded.exists(), "the library was loaded");
    };
    chown(&path, Some(64101), None).unwrap();
    refused("belongs to uid 64101");
    chown(&path, Some(0), Some(64201)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
    refused("others may write the file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let etc = folder.join("etc/edgekeep");
    chown(&etc, Some(64101), None).unwrap();
    refused("uid 64101 can replace the file");
    chown(&etc, Some(0), None).unwrap();
    fs::rename(&path, etc.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(etc.join("elsewhere"), &path).unwrap();
    refused("a link in place of a file");
    fs::remove_file(&path).unwrap();
    fs::rename(etc.join("elsewhere"), &path).unwrap();
    examined(&doctor(folder, &[]), 1);
    assert!(loaded.exists(), "as `config apply` writes the file, it is believed");
}

#[test]
fn a_token_is_examined_as_asked_and_as_configured() {
    if parts::missing(&["softhsm2-util", SOFTHSM]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    token(folder);
    let uri = format!("pkcs11:token=edge?pin-source=file:{}", folder.join("pin").display());
    let text = examined(&doctor(folder, &["--library", SOFTHSM, "--token", &uri]), 0);
    assert!(text.contains("EC P-256 key pair: made, used") && text.contains("logged in"), "{text}");
    let listed = examined(&doctor(folder, &["--library", SOFTHSM]), 0);
    assert!(listed.contains("edge") && !listed.contains("logged in"), "{listed}");

    settings(folder, &json!({"pkcs11": {"library": SOFTHSM, "base_slot": uri}}));
    let json: Value = serde_json::from_str(&examined(&doctor(folder, &["--json"]), 0)).unwrap();
    let findings = json["findings"].as_array().unwrap();
    assert!(
        findings.iter().all(|finding| finding["part"] == "token" && finding["verdict"] != "bad"),
        "{json}"
    );

    let away = uri.replace("token=edge", "token=away");
    let text = examined(&doctor(folder, &["--library", SOFTHSM, "--token", &away]), 1);
    assert!(text.contains("bad") && text.contains("plug it in"), "{text}");
    let text = examined(&doctor(folder, &["--library", "/no/such.so"]), 1);
    assert!(text.contains("bad") && text.contains("fix: "), "{text}");
}

#[test]
fn a_tpm_is_examined_and_left_as_it_was() {
    if swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let tools = swtpm.folder("tools");
    let tcti = swtpm.tcti().to_string();
    let text = examined(&doctor(folder, &["--tpm", &tcti]), 0);
    for part in [
        "TPM 2.0 at",
        "not locked, 0 of",
        "PCR banks",
        "sha256",
        "is made at 0x81000001 at first use",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(
        !swtpm.tool_ok(&tools, "tpm2_getcap", &["handles-persistent"]).contains("0x8"),
        "it made nothing"
    );

    swtpm.tool_ok(&tools, "tpm2_changeauth", &["-c", "o", "owner"]);
    settings(folder, &json!({"tpm": {"tcti": tcti, "auth_key_index": 256}}));
    let text = examined(&doctor(folder, &[]), 0);
    assert!(text.contains("fix: set `owner` in [tpm.hierarchy_authorization]"), "{text}");
    settings(
        folder,
        &json!({"tpm": {"tcti": tcti, "auth_key_index": 256, "owner": {"value": "owner"}}}),
    );
    assert!(!examined(&doctor(folder, &[]), 0).contains("fix: "));

    // As many wrong values as it allows, of a key that counts them.
    swtpm.tool_ok(&tools, "tpm2_dictionarylockout", &["--setup-parameters", "--max-tries=1"]);
    swtpm.tool_ok(
        &tools,
        "tpm2_createprimary",
        &["-C", "e", "-G", "ecc", "-p", "right", "-c", "key.ctx"],
    );
    fs::write(tools.join("message"), "m").unwrap();
    let sign = ["-c", "key.ctx", "-p", "wrong", "-o", "signature", "message"];
    assert!(!swtpm.tool(&tools, "tpm2_sign", &sign).status.success());
    let text = examined(&doctor(folder, &["--tpm", &tcti]), 1);
    assert!(
        text.contains("locked against guessing") && text.contains("tpm2_dictionarylockout"),
        "{text}"
    );

    swtpm.kill();
    let text = examined(&doctor(folder, &["--tpm", &tcti]), 1);
    assert!(text.contains("cannot be reached") && text.contains("fix: start the TPM"), "{text}");
    let text = examined(&doctor(folder, &["--tpm", "device:/no/tpm"]), 1);
    assert!(text.contains("there is no TPM device"), "{text}");
}

#[test]
fn without_hardware_there_is_nothing_to_examine_and_without_settings_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let output = doctor(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("run `edgekeep config apply`"));
    settings(folder.path(), &json!({}));
    assert!(examined(&doctor(folder.path(), &[]), 0).contains("keys are in files"));
    // A PIN in a wrong URI is not repeated.
    let output = doctor(folder.path(), &["--token", "pkcs11:tokn=a?pin-value=geheim"]);
    assert_eq!(output.status.code(), Some(1));
    let shown = String::from_utf8(output.stderr).unwrap();
    assert!(shown.contains("tokn") && !shown.contains("geheim"), "{shown}");
}

/// A device with a configuration, its settings applied, and a store that has a master key
/// in two versions.
struct Stored {
    folder: tempfile::TempDir,
    /// Text that the earlier version of the master key encrypted.
    sealed: Vec<u8>,
}

impl Stored {
    fn new(tables: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("etc/edgekeep/config.toml");
        fs::create_dir_all(config.parent().unwrap()).unwrap();
        let text = format!(
            "# mine\nhostname = \"device\"\n\n[provisioning]\nsource = \"manual\"\niothub_hostname = \"h.example.net\"\n\
             device_id = \"d\"\n\n[provisioning.authentication]\nmethod = \"sas\"\ndevice_id_pk = {{ value = \"c2VjcmV0\" }}\n\n\
             {tables}"
        );
        fs::write(&config, text).unwrap();
        let mut device = Self { folder, sealed: Vec::new() };
        examined(&device.edgekeep(&["config", "apply"]), 0);
        let store = device.open();
        store.import_key(&master(), vec![1; 32].into(), Usage::ALL).unwrap();
        device.sealed =
            store.encrypt(SymmetricKey::Stored(&master()), b"iv", b"", b"text").unwrap();
        store.import_key(&master(), vec![2; 32].into(), Usage::ALL).unwrap();
        device
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn state(&self) -> PathBuf {
        self.path().join("var/lib/edgekeep/keyd")
    }

    fn edgekeep(&self, words: &[&str]) -> Output {
        self.edgekeep_reading(words, b"")
    }

    fn edgekeep_reading(&self, words: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgekeep"));
        command.env_remove("EDGEKEEP_ROOT").env("SOFTHSM2_CONF", self.path().join("softhsm2.conf"));
        command
            .arg("--root")
            .arg(self.path())
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        // What refuses its arguments reads nothing.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    /// As keyd opens it: as the settings say.
    fn open(&self) -> SoftwareBackend {
        let text = fs::read(self.path().join("etc/edgekeep/keyd.json")).unwrap();
        let settings: edgekeep_core::settings::KeydSettings =
            serde_json::from_slice(&text).unwrap();
        let hardware = Hardware::named(&settings);
        SoftwareBackend::open_protected(&self.state(), BTreeMap::new(), None, hardware.sealers())
            .unwrap()
    }

    fn expect_keys(&self) {
        let text =
            self.open().decrypt(SymmetricKey::Stored(&master()), b"iv", b"", &self.sealed).unwrap();
        assert_eq!(text.expose(), b"text");
    }

    fn protections(&self) -> Vec<&'static str> {
        let there = Protection::ALL
            .into_iter()
            .filter(|protection| protection.path(&self.state()).exists());
        there.map(Protection::word).collect()
    }
}

fn master() -> KeyId {
    "iotedge_master_encryption_id".parse().unwrap()
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_store_key_is_moved_into_a_tpm_and_back_and_the_configuration_says_so() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let device = Stored::new(&format!(
        "[aziot_keys] # keys\n\n[tpm]\ntcti = \"{}\" # the chip\n",
        swtpm.tcti()
    ));
    let config = device.path().join("etc/edgekeep/config.toml");
    let settings = device.path().join("etc/edgekeep/keyd.json");
    let before = fs::read_to_string(&config).unwrap();
    let text = examined(&device.edgekeep(&["keys", "migrate", "--to", "tpm", "--dry-run"]), 0);
    assert!(text.contains("can be protected by the TPM"), "{text}");
    assert_eq!(
        (device.protections(), fs::read_to_string(&config).unwrap()),
        (vec!["file"], before.clone())
    );

    // With a process that has the store open, nothing is done.
    let open = device.open();
    let error = refused(&device.edgekeep(&["keys", "migrate", "--to", "tpm"]));
    assert!(error.contains("systemctl stop 'edgekeep-*'") && error.contains("in use"), "{error}");
    drop(open);
    assert_eq!(
        (device.protections(), fs::read_to_string(&config).unwrap()),
        (vec!["file"], before.clone())
    );

    for (to, others) in
        [("tpm", before.replace("# keys\n", "# keys\nseal = \"tpm\"\n")), ("file", String::new())]
    {
        let text = examined(&device.edgekeep(&["keys", "migrate", "--to", to]), 0);
        assert!(text.contains("now; the settings say so"), "{text}");
        assert_eq!(device.protections(), [to]);
        device.expect_keys();
        if !others.is_empty() {
            assert_eq!(fs::read_to_string(&config).unwrap(), others);
        }
        // The settings are those that applying the configuration would make.
        let written = fs::read(&settings).unwrap();
        examined(&device.edgekeep(&["config", "apply"]), 0);
        assert_eq!(fs::read(&settings).unwrap(), written);
    }
    let json = examined(&device.edgekeep(&["keys", "migrate", "--to", "file", "--json"]), 0);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["from"], &json["to"]), (&json!(["file"]), &json!("file")));
    let error = refused(&device.edgekeep(&["keys", "migrate", "--to", "pkcs11"]));
    assert!(error.contains("set pkcs11_lib_path and pkcs11_base_slot"), "{error}");
}

#[test]
fn a_move_whose_settings_cannot_be_changed_changes_nothing() {
    if parts::missing(&["softhsm2-util", SOFTHSM]) {
        return;
    }
    let tables = format!(
        "[aziot_keys]\npkcs11_lib_path = \"{SOFTHSM}\"\npkcs11_base_slot = \"pkcs11:token=edge?pin-value=1234\"\n"
    );
    let device = Stored::new(&tables);
    token(device.path());
    let settings = device.path().join("etc/edgekeep/keyd.json");
    let config = device.path().join("etc/edgekeep/config.toml");
    let kept = fs::read(&settings).unwrap();
    fs::remove_file(&settings).unwrap();
    let error = refused(&device.edgekeep(&["keys", "migrate", "--to", "pkcs11"]));
    assert!(error.contains("config apply"), "{error}");
    fs::write(&settings, &kept).unwrap();
    fs::remove_file(&config).unwrap();
    fs::create_dir(&config).unwrap();
    refused(&device.edgekeep(&["keys", "migrate", "--to", "pkcs11"]));
    assert_eq!(device.protections(), ["file"]);
    device.expect_keys();
    fs::remove_dir(&config).unwrap();
    fs::write(&config, "hostname = \"device\"\n[aziot_keys]\nseal = 1\n").unwrap();
    let error = refused(&device.edgekeep(&["keys", "migrate", "--to", "pkcs11"]));
    assert!(error.contains("config check"), "{error}");
    assert_eq!(device.protections(), ["file"]);
}

#[test]
fn what_root_writes_for_keyd_belongs_to_keyd() {
    use std::os::unix::fs::{MetadataExt as _, chown};
    if !rustix::process::geteuid().is_root() || swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let device = Stored::new(&format!("[tpm]\ntcti = \"{}\"\n", swtpm.tcti()));
    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries
            .flat_map(
                |path| if path.is_dir() { [files(&path), vec![path]].concat() } else { vec![path] },
            )
            .collect()
    }
    // As a keyd of before earlier versions were kept has left it.
    fs::remove_dir_all(device.state().join("older")).unwrap();
    for path in files(&device.state()).into_iter().chain([device.state()]) {
        chown(path, Some(12345), Some(12346)).unwrap();
    }
    examined(&device.edgekeep(&["keys", "migrate", "--to", "tpm"]), 0);
    for path in files(&device.state()) {
        let data = fs::metadata(&path).unwrap();
        assert_eq!((data.uid(), data.gid(), data.mode() & 0o077), (12345, 12346, 0), "{path:?}");
    }
}

#[test]
fn the_store_key_is_moved_into_the_care_of_a_token_and_back() {
    if parts::missing(&["softhsm2-util", SOFTHSM]) {
        return;
    }
    let tables = format!(
        "[aziot_keys]\npkcs11_lib_path = \"{SOFTHSM}\"\npkcs11_base_slot = \"pkcs11:token=edge?pin-value=1234\"\n"
    );
    let device = Stored::new(&tables);
    token(device.path());
    for to in ["pkcs11", "file"] {
        examined(&device.edgekeep(&["keys", "migrate", "--to", to]), 0);
        assert_eq!(device.protections(), [to]);
    }
    device.expect_keys();
}

#[test]
fn a_backup_is_opened_by_age_and_openssl_and_restored_on_another_device() {
    if parts::missing(&["openssl", "age", "age-keygen"]) {
        return;
    }
    let device = Stored::new("");
    let file = |name: &str| device.path().join(name).display().to_string();
    let tool = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).output().unwrap();
        assert!(
            output.status.success(),
            "{program} {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    tool("age-keygen", &["-o", &file("age.key")]);
    let recipient =
        String::from_utf8(tool("age-keygen", &["-y", &file("age.key")])).unwrap().trim().to_owned();
    tool(
        "openssl",
        &[
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
            "-out",
            &file("rsa.key"),
        ],
    );
    let curve = ["-pkeyopt", "ec_paramgen_curve:P-256", "-out", &file("ec.key")];
    tool("openssl", &[&["genpkey", "-algorithm", "EC"][..], &curve].concat());
    for name in ["rsa", "ec"] {
        let (key, public) = (file(&format!("{name}.key")), file(&format!("{name}.pub")));
        tool("openssl", &["pkey", "-in", &key, "-pubout", "-out", &public]);
    }
    for (name, to) in [("age", recipient), ("rsa", file("rsa.pub")), ("ec", file("ec.pub"))] {
        let (out, key) = (file(&format!("{name}.backup")), file(&format!("{name}.key")));
        let open = device.open();
        let text = examined(&device.edgekeep(&["keys", "backup", "--to", &to, "--out", &out]), 0);
        drop(open);
        assert!(text.contains("1 keys, 1 earlier versions"), "{text}");
        let error = refused(&device.edgekeep(&["keys", "backup", "--to", &to, "--out", &out]));
        assert!(error.contains("cannot write"), "{error}");

        let clear = match name {
            "age" => tool("age", &["-d", "-i", &key, &out]),
            _ => tool(
                "openssl",
                &["cms", "-decrypt", "-binary", "-inform", "DER", "-in", &out, "-inkey", &key],
            ),
        };
        let clear_text = String::from_utf8(clear.clone()).unwrap();
        assert!(
            clear_text.starts_with("edgekeep-keys 1\n") && clear_text.contains(master().as_str()),
            "{clear_text}"
        );

        let restore = ["keys", "restore", "--identity", &key, &out];
        for from_clear in [false, true] {
            let other = Stored::new("");
            let words =
                if from_clear { &["keys", "restore", "--clear", "-"][..] } else { &restore };
            let go = |more: &[&str]| other.edgekeep_reading(&[words, more].concat(), &clear);
            // It has another master key.
            other.open().import_key(&master(), vec![3; 32].into(), Usage::ALL).unwrap();
            let error = refused(&go(&[]));
            assert!(error.contains(master().as_str()) && error.contains("--force"), "{error}");
            let text = examined(&go(&["--force", "--dry-run"]), 0);
            assert!(text.contains("would be put in place"), "{text}");
            examined(&go(&["--force"]), 0);
            let store = other.open();
            for sealed in [&device.sealed, &other.sealed] {
                store.decrypt(SymmetricKey::Stored(&master()), b"iv", b"", sealed).unwrap();
            }
            let error = refused(&go(&[]));
            assert!(error.contains("systemctl stop 'edgekeep-*'"), "{error}");
        }
        let wrong = if name == "age" { file("rsa.key") } else { file("age.key") };
        let error = refused(&device.edgekeep(&["keys", "restore", "--identity", &wrong, &out]));
        assert!(error.contains("which needs"), "{error}");
    }
    // And what openssl and age write, this opens.
    fs::write(file("text"), tool("age", &["-d", "-i", &file("age.key"), &file("age.backup")]))
        .unwrap();
    let recipient = String::from_utf8(tool("age-keygen", &["-y", &file("age.key")])).unwrap();
    tool("age", &["-r", recipient.trim(), "-o", &file("foreign"), &file("text")]);
    let text = examined(
        &device.edgekeep(&["keys", "restore", "--identity", &file("age.key"), &file("foreign")]),
        0,
    );
    assert!(text.contains("keys are there already"), "{text}");
}
