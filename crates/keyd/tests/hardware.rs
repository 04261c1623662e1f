//! The daemon as a process with a token and with a TPM, both simulated, over its real sockets.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../hsm/tests/parts/mod.rs"]
mod parts;
#[path = "../../hsm/tests/tpm/service.rs"]
mod service;
#[path = "../../hsm/tests/tpm/swtpm.rs"]
#[allow(dead_code, reason = "the TPM layer's own tests use the rest")]
mod swtpm;

#[path = "../../hsm/tests/tokens/mod.rs"]
mod tokens;

use std::fs::{self, File};
use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{EncryptMechanism, KeyHandle, KeysClient, SignMechanism};
use edgekeep_api::operations::OperationsClient;
use edgekeep_api::tpmd::TpmClient;
use edgekeep_audit::checkpoint::Checkpoint;
use edgekeep_audit::entry::Shown;
use edgekeep_audit::note::VerifierKey;
use edgekeep_audit::verify::{Fault, FaultKind, Gap, Known, NotCounting, Report, verify};
use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use swtpm::Swtpm;

const DEADLINE: Duration = Duration::from_secs(30);
const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "geheim-1234";

/// A device's folder with a keyd in it, and what it logged.
struct Device {
    folder: tempfile::TempDir,
    root: Root,
    child: Option<Child>,
    /// The command that runs it as another user or elsewhere.
    wrapper: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

impl Device {
    /// A device with these settings of hardware, whose every key the test's own user may name. Not started yet.
    fn new(hardware: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let device = Self { folder, root, child: None, wrapper: Vec::new(), environment: Vec::new() };
        device.set(hardware);
        device
    }

    /// Changes the settings of hardware.
    fn set(&self, hardware: &Value) {
        let mut settings = json!({"principals": [{"uid": rustix::process::geteuid().as_raw(), "keys": ["*"]}]});
        settings.as_object_mut().unwrap().extend(hardware.as_object().unwrap().clone());
        let path = self.root.settings_file(Daemon::Keyd);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, settings.to_string()).unwrap();
    }

    /// Starts a daemon that is expected to give up, and returns what it logged.
    fn gives_up(&self) -> String {
        let before = self.log().len();
        assert_eq!(self.command().status().unwrap().code(), Some(1), "{}", self.log());
        self.log()[before..].to_owned()
    }

    /// A device with an initialized SoftHSM2 token.
    fn with_token() -> Self {
        let device = Self::new(&token_settings());
        fs::create_dir_all(device.path("softhsm/tokens")).unwrap();
        let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", device.path("softhsm/tokens").display());
        fs::write(device.path("softhsm2.conf"), text).unwrap();
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", "edge", "--so-pin", "87654321", "--pin", PIN])
            .env("SOFTHSM2_CONF", device.path("softhsm2.conf"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        device
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let keyd = env!("CARGO_BIN_EXE_edgekeep-keyd");
        let mut words = self.wrapper.iter().map(String::as_str).chain([keyd]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        command.env(ROOT_VARIABLE, self.folder.path()).env("SOFTHSM2_CONF", self.path("softhsm2.conf"));
        command.stderr(File::options().create(true).append(true).open(self.path("log")).unwrap());
        command.stdout(Stdio::null()).env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
        command.envs(self.environment.iter().map(|(name, value)| (name, value.as_str())));
        command
    }

    /// Starts the daemon and waits until it says that it is ready.
    fn start(&mut self) {
        let notify = self.path("notify");
        let _ = fs::remove_file(&notify);
        let manager = UnixDatagram::bind(&notify).unwrap();
        fs::set_permissions(&notify, fs::Permissions::from_mode(0o666)).unwrap();
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        self.child = Some(self.command().env("NOTIFY_SOCKET", &notify).spawn().unwrap());
        let mut message = [0; 64];
        let length = manager.recv(&mut message).unwrap_or_else(|error| panic!("{error}: {}", self.log()));
        assert_eq!(&message[..length], b"READY=1");
    }

    fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success(), "{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    fn keys(&self) -> KeysClient {
        KeysClient::new(self.root.keyd_socket())
    }

    fn tpm(&self) -> TpmClient {
        TpmClient::new(self.root.tpmd_socket())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn token_settings() -> Value {
    let uri = format!("pkcs11:token=edge?pin-value={PIN}");
    let preloaded = json!({"preloaded": format!("pkcs11:token=edge;object=made%20elsewhere?pin-value={PIN}")});
    json!({"pkcs11": {"library": SOFTHSM, "base_slot": uri}, "preloaded_keys": preloaded})
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn hmac(keys: &KeysClient, handle: &KeyHandle) -> Result<Vec<u8>, ClientError> {
    keys.sign(handle, SignMechanism::HmacSha256 { message: b"message"[..].into() }).await
}

/// The status and the text of a refusal.
#[track_caller]
fn refusal<T>(result: Result<T, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Status { status, message }) => (status.as_u16(), message),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("not refused"),
    }
}

/// Whether openssl takes this signature of a P-256 key over the SHA-256 of `message`.
fn openssl_verifies(folder: &Path, point: &[u8], message: &[u8], signature: &[u8]) -> bool {
    const PREFIX: [u8; 26] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
        0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    fs::write(folder.join("key.der"), [&PREFIX[..], point].concat()).unwrap();
    fs::write(folder.join("signature"), signature).unwrap();
    fs::write(folder.join("message"), message).unwrap();
    let arguments = ["dgst", "-sha256", "-keyform", "DER", "-verify", "key.der", "-signature", "signature", "message"];
    Command::new("openssl").args(arguments).current_dir(folder).output().unwrap().status.success()
}

async fn signs(keys: &KeysClient, pair: &KeyHandle, folder: &Path) -> bool {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"message");
    let signature = keys.sign(pair, SignMechanism::Ecdsa { digest: digest.as_ref().into() }).await.unwrap();
    let point = STANDARD.decode(keys.parameter(pair, "ec-point-uncompressed").await.unwrap()).unwrap();
    openssl_verifies(folder, &point, b"message", &signature)
}

#[test]
fn keys_on_a_token_are_made_used_and_found_again_and_are_not_in_files() {
    if parts::missing(&["softhsm2-util", SOFTHSM, "openssl"]) {
        return;
    }
    let mut device = Device::with_token();
    device.start();
    let (handle, mac) = run(async {
        let keys = device.keys();
        let pair = keys.create_key_pair("pair", Some("ec-p256")).await.unwrap();
        assert!(signs(&keys, &pair, device.folder.path()).await);
        let key = keys.create_key("key", "sign").await.unwrap();
        let mac = hmac(&keys, &key).await.unwrap();
        let derived = keys.derive_key(&key, b"data").await.unwrap();
        assert_ne!(hmac(&keys, &derived).await.unwrap(), mac);
        // No token has keys for both; this one goes to files.
        keys.create_key("both", "sign,encrypt").await.unwrap();
        (key, mac)
    });
    device.stop();
    device.start();
    run(async {
        let keys = device.keys();
        assert_eq!(hmac(&keys, &handle).await.unwrap(), mac, "an old handle finds the key on the token");
        let pair = keys.load_key_pair("pair").await.unwrap();
        assert!(signs(&keys, &pair, device.folder.path()).await);
        assert_eq!(refusal(keys.load_key_pair("other").await).0, 400);
        // A preloaded key has the name on the token that its URI gives it.
        keys.create_key_pair("preloaded", Some("ec-p256")).await.unwrap();
    });
    let folder = device.root.state_folder(Daemon::Keyd).join("keys");
    let names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.len() == 1 && names[0].to_str().unwrap().starts_with("both-"), "{names:?}");
    let listed = Command::new("pkcs11-tool")
        .args(["--module", SOFTHSM, "--token-label", "edge", "--login", "--pin", PIN, "--list-objects"])
        .env("SOFTHSM2_CONF", device.path("softhsm2.conf"))
        .output();
    if let Ok(listed) = listed {
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("pair") && listed.contains("made elsewhere"), "{listed}");
    }
    let log = device.log();
    for (key, place) in [("pair", "pkcs11"), ("key", "pkcs11"), ("both", "software")] {
        let lines = log.lines().filter(|line| line.contains("made a key") && line.contains(&format!("key={key} ")));
        let lines: Vec<&str> = lines.collect();
        assert!(lines.len() == 1 && lines[0].contains(place), "{key}: {log}");
    }
    assert!(!log.contains(PIN), "{log}");
    device.stop();
}

#[test]
fn a_token_that_is_absent_stops_only_its_keys_and_is_used_when_it_is_back() {
    if parts::missing(&["softhsm2-util", SOFTHSM]) {
        return;
    }
    let mut device = Device::with_token();
    // The token's folder comes and goes, so that what has to be within reach is the folder around it.
    let mut settings = token_settings();
    settings["sandbox"] = json!({"paths": [device.path("softhsm")]});
    device.set(&settings);
    device.start();
    let (handle, mac) = run(async {
        let keys = device.keys();
        let key = keys.create_key("key", "sign").await.unwrap();
        let mac = hmac(&keys, &key).await.unwrap();
        (key, mac)
    });
    device.stop();
    // It is not plugged in at start.
    fs::rename(device.path("softhsm/tokens"), device.path("softhsm/away")).unwrap();
    fs::create_dir(device.path("softhsm/tokens")).unwrap();
    device.start();
    assert!(device.log().contains("the token cannot be used now"), "{}", device.log());
    run(async {
        let keys = device.keys();
        for refused in [
            refusal(hmac(&keys, &handle).await),
            refusal(keys.create_key("key", "sign").await),
            refusal(keys.create_key_pair("pair", None).await),
            refusal(keys.load_key("key").await),
        ] {
            assert_eq!(refused, (500, "internal error".to_owned()));
        }
        let log = device.log();
        let causes = log.lines().filter(|line| line.contains("internal error") && line.contains("plug it in")).count();
        assert_eq!(causes, 4, "{log}");
        // And now it is.
        fs::remove_dir(device.path("softhsm/tokens")).unwrap();
        fs::rename(device.path("softhsm/away"), device.path("softhsm/tokens")).unwrap();
        assert_eq!(hmac(&keys, &handle).await.unwrap(), mac);
        keys.create_key_pair("pair", None).await.unwrap();
        // Pulled out while it is in use.
        fs::rename(device.path("softhsm/tokens"), device.path("softhsm/away")).unwrap();
        assert_eq!(refusal(keys.create_key_pair("new", None).await), (500, "internal error".to_owned()));
        fs::rename(device.path("softhsm/away"), device.path("softhsm/tokens")).unwrap();
        keys.create_key_pair("new", None).await.unwrap();
        assert_eq!(hmac(&keys, &handle).await.unwrap(), mac);
    });
    assert!(!device.log().contains(PIN), "{}", device.log());
    device.stop();
}

#[test]
fn a_library_that_does_not_load_is_named_in_the_log_and_in_no_answer() {
    let library = "/no/such/library.so";
    let mut device = Device::new(&json!({"pkcs11": {"library": library, "base_slot": "pkcs11:token=edge"}}));
    device.start();
    run(async {
        let refused = refusal(device.keys().create_key("key", "sign").await);
        assert_eq!(refused, (500, "internal error".to_owned()));
    });
    let log = device.log();
    assert!(log.lines().any(|line| line.contains("internal error") && line.contains(library)), "{log}");
    device.stop();
}

fn tpm_settings(swtpm: &Swtpm) -> Value {
    json!({"tcti": swtpm.tcti().to_string(), "auth_key_index": 0x100})
}

#[test]
fn the_tpm_api_shows_public_keys_and_imports_and_uses_an_authentication_key() {
    if swtpm::skip() {
        return;
    }
    let (swtpm, service) = (Swtpm::start(), Swtpm::start());
    let tools = swtpm.folder("tools");
    swtpm.tool_ok(&tools, "tpm2_changeauth", &["-c", "o", "geheim-o"]);
    swtpm.tool_ok(&tools, "tpm2_changeauth", &["-c", "e", "geheim-e"]);
    let mut settings = tpm_settings(&swtpm);
    fs::write(tools.join("owner"), "geheim-o\n").unwrap();
    settings["owner"] = json!({"file": tools.join("owner")});
    settings["endorsement"] = json!({"value": "geheim-e"});
    let mut device = Device::new(&json!({"tpm": settings}));
    device.start();
    run(async {
        let tpm = device.tpm();
        assert_eq!(refusal(tpm.sign_with_auth_key(b"m").await), (500, "internal error".to_owned()));
        assert!(device.log().contains("provision the device again"), "{}", device.log());
        let keys = tpm.keys().await.unwrap();
        let (endorsement, storage) = (keys.endorsement_key.into_inner(), keys.storage_root_key.into_inner());
        // TPM2B_PUBLIC of an RSA key (algorithm 1): its length, then its type.
        for public in [&endorsement, &storage] {
            assert_eq!(usize::from(public[0]) << 8 | usize::from(public[1]), public.len() - 2);
            assert_eq!(public[2..4], [0, 1]);
        }
        let messages: [&[u8]; 3] = [b"", b"data to sign", &[7; 3000]];
        let (blob, macs) = service::import_blob(&service, &endorsement, &storage, &messages);
        tpm.import_auth_key(blob.clone()).await.unwrap();
        for (message, mac) in messages.iter().zip(&macs) {
            assert_eq!(tpm.sign_with_auth_key(message).await.unwrap(), *mac);
        }
        // What is no import blob is a failure like any other.
        assert_eq!(refusal(tpm.import_auth_key(vec![0, 1, 7]).await), (500, "internal error".to_owned()));
        assert!(device.log().contains("five TPM structures"), "{}", device.log());
    });
    device.stop();
    // It survives a restart, and the tools see it where it should be.
    assert!(swtpm.tool_ok(&tools, "tpm2_getcap", &["handles-persistent"]).contains("0x81000100"));
    device.start();
    run(async { device.tpm().sign_with_auth_key(b"m").await.unwrap() });
    assert!(!device.log().contains("geheim"), "{}", device.log());
    device.stop();
}

#[test]
fn keys_are_used_on_a_full_disk_as_long_as_the_log_can_make_room() {
    let mut device = Device::new(&json!({}));
    let state = device.root.state_folder(Daemon::Keyd);
    fs::create_dir_all(&state).unwrap();
    let script = r#"mount -t tmpfs -o size=8m none "$0" && exec "$@""#;
    device.wrapper = ["unshare", "--mount", "sh", "-c", script, state.to_str().unwrap()].map(str::to_owned).into();
    let possible =
        Command::new("unshare").args(["--mount", "sh", "-c", script, state.to_str().unwrap(), "true"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no mount namespace can be made here (run as root, with unshare installed)");
        return;
    }
    device.start();
    let inside = format!("/proc/{}/root{}", device.child.as_ref().unwrap().id(), state.display());
    run(async {
        let keys = device.keys();
        let key = keys.create_key("key", "sign").await.unwrap();
        for _ in 0..100 {
            hmac(&keys, &key).await.unwrap();
        }
        let mut filler = File::create(format!("{inside}/filler")).unwrap();
        while std::io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
        // Nothing new can be kept, and what is there is used, for far longer than the memory alone would carry it.
        assert_eq!(refusal(keys.create_key("new", "sign").await).0, 500);
        for _ in 0..6000 {
            hmac(&keys, &key).await.unwrap();
        }
        let log = device.log();
        assert!(log.contains("the disk is full: the audit log uses the room that it keeps"), "{log}");
        drop(filler);
        fs::remove_file(format!("{inside}/filler")).unwrap();
        keys.create_key("new", "sign").await.unwrap();
    });
    device.stop();
}

#[test]
fn without_a_tpm_in_the_settings_there_is_no_tpm_api() {
    let mut device = Device::new(&json!({}));
    device.start();
    assert!(!device.root.tpmd_socket().exists());
    device.stop();
}

#[test]
fn keys_in_a_tpm_that_is_absent_at_start_are_used_when_it_is_there() {
    if swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let hardware = json!({"tpm": tpm_settings(&swtpm), "places": ["tpm", "files"]});
    let mut device = Device::new(&hardware);
    swtpm.kill();
    device.start();
    run(async {
        let keys = device.keys();
        assert_eq!(refusal(keys.create_key_pair("pair", Some("ec-p256")).await), (500, "internal error".to_owned()));
        assert_eq!(refusal(device.tpm().keys().await), (500, "internal error".to_owned()));
        let log = device.log();
        let causes = log.lines().filter(|line| line.contains("cannot be reached") && !line.contains("counter"));
        assert_eq!(causes.count(), 3, "at start, and for each request: {log}");
        swtpm.start_again();
        let pair = keys.create_key_pair("pair", Some("ec-p256")).await.unwrap();
        assert!(signs(&keys, &pair, device.folder.path()).await);
        let key = keys.create_key("key", "sign").await.unwrap();
        let mac = hmac(&keys, &key).await.unwrap();
        // Symmetric keys that a TPM does not have go to files.
        keys.create_key("seal", "encrypt").await.unwrap();
        // Both APIs share the TPM.
        device.tpm().keys().await.unwrap();
        // It loses power in between.
        swtpm.kill();
        swtpm.start_again();
        assert_eq!(hmac(&keys, &key).await.unwrap(), mac);
        assert!(signs(&keys, &pair, device.folder.path()).await);
    });
    let blobs = fs::read_dir(device.root.state_folder(Daemon::Keyd).join("tpm")).unwrap();
    assert_eq!(blobs.filter(|entry| entry.as_ref().unwrap().path().extension().is_some()).count(), 2);
    device.stop();
}

#[test]
fn a_store_key_that_the_tpm_sealed_is_of_no_use_without_it() {
    if swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let mut device = Device::new(&json!({}));
    // A device that was without TPM so far.
    device.start();
    let (handle, mac) = run(async {
        let keys = device.keys();
        let key = keys.create_key("key", "sign").await.unwrap();
        let mac = hmac(&keys, &key).await.unwrap();
        (key, mac)
    });
    device.stop();
    let plain = device.root.state_folder(Daemon::Keyd).join("store.key");
    let key = fs::read(&plain).unwrap();
    device.set(&json!({"tpm": tpm_settings(&swtpm), "seal": "tpm"}));
    for _ in 0..2 {
        device.start();
        run(async { assert_eq!(hmac(&device.keys(), &handle).await.unwrap(), mac) });
        device.stop();
        assert!(!plain.exists());
    }
    for entry in
        fs::read_dir(plain.parent().unwrap()).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file())
    {
        let content = fs::read(entry.path()).unwrap();
        assert!(!content.windows(32).any(|window| window == &key[8..40]), "{:?}", entry.path());
    }

    // Without TPM it does not start, and makes no other store key.
    swtpm.kill();
    assert!(device.gives_up().contains("does not give back the store key"), "{}", device.log());
    swtpm.start_again();
    let tools = swtpm.folder("tools");
    device.set(&json!({}));
    assert!(device.gives_up().contains("it needs a table [tpm]"), "{}", device.log());
    // Without a wish it stays sealed, and as asked it goes into a file and back.
    let sealed = plain.with_extension("key.tpm");
    for (seal, there) in
        [(Value::Null, &sealed), ("file".into(), &plain), (Value::Null, &plain), ("tpm".into(), &sealed)]
    {
        device.set(&json!({"tpm": tpm_settings(&swtpm), "seal": seal}));
        device.start();
        run(async { assert_eq!(hmac(&device.keys(), &handle).await.unwrap(), mac) });
        device.stop();
        assert_eq!([&plain, &sealed].map(|file| file.exists()), [&plain, &sealed].map(|file| file == there), "{seal}");
    }
    // After a clear it is another TPM.
    device.set(&json!({"tpm": tpm_settings(&swtpm), "seal": "tpm"}));
    swtpm.tool_ok(&tools, "tpm2_clear", &["-c", "p"]);
    assert!(device.gives_up().contains("does not give back the store key"), "{}", device.log());
    assert!(!plain.exists());
}

#[test]
fn a_store_key_in_the_care_of_a_token_is_of_no_use_without_it() {
    if parts::missing(&["softhsm2-util", SOFTHSM]) {
        return;
    }
    let mut device = Device::with_token();
    let path = device.root.settings_file(Daemon::Keyd);
    let settings: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let set = |seal: &str| {
        let mut settings = settings.clone();
        settings["seal"] = seal.into();
        // Keys in files, so that the store key is needed for them.
        settings["places"] = json!(["files"]);
        fs::write(&path, settings.to_string()).unwrap();
    };
    let folder = device.root.state_folder(Daemon::Keyd);
    let mut first = None;
    for seal in ["pkcs11", "file", "pkcs11"] {
        set(seal);
        device.start();
        run(async {
            let key = device.keys().create_key("key", "sign").await.unwrap();
            let mac = hmac(&device.keys(), &key).await.unwrap();
            assert_eq!(*first.get_or_insert(mac.clone()), mac);
            // Nobody asks the token in keyd's name to open it.
            for id in edgekeep_core::grants::STORE_WRAPPING_KEY {
                let (code, _) = refusal(device.keys().create_key(id, "encrypt").await);
                assert!((400..500).contains(&code), "{code}");
                assert!(device.keys().load_key(id).await.is_err());
            }
        });
        device.stop();
        assert_eq!(folder.join("store.key.pkcs11").exists(), seal == "pkcs11");
        assert_eq!(folder.join("store.key").exists(), seal == "file");
    }
    fs::rename(device.path("softhsm/tokens"), device.path("softhsm/away")).unwrap();
    fs::create_dir(device.path("softhsm/tokens")).unwrap();
    assert!(device.gives_up().contains("a key on the token does not give back the store key"), "{}", device.log());
}

/// Which writable memory of a process has these bytes, as far as it can be read.
fn memory_with(child: &Child, wanted: &[u8]) -> Vec<String> {
    use std::os::unix::fs::FileExt as _;
    let process = PathBuf::from(format!("/proc/{}", child.id()));
    let memory = File::open(process.join("mem")).unwrap();
    let (mut read, mut found) = (0, Vec::new());
    for line in fs::read_to_string(process.join("maps")).unwrap().lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [from, to] = [from, to].map(|number| u64::from_str_radix(number, 16).unwrap());
        let mut content = vec![0; usize::try_from(to - from).unwrap()];
        // Page by page: what has never been touched may be refused.
        for (page, at) in content.chunks_mut(4096).zip((from..).step_by(4096)) {
            read += memory.read_at(page, at).unwrap_or(0);
        }
        let mut rest = content.as_slice();
        while let Some(at) = rest.iter().position(|byte| *byte == wanted[0]) {
            if rest[at..].starts_with(wanted) {
                found.push(line.to_owned());
                break;
            }
            rest = &rest[at + 1..];
        }
    }
    assert!(read > 100_000, "only {read} bytes could be read");
    found
}

#[test]
fn the_memory_of_a_running_keyd_does_not_show_its_store_key_or_keys_to_root() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipping: only root may read the memory of another process");
        return;
    }
    let mut device = Device::new(&json!({}));
    let known: Vec<u8> = (0..32).map(|number: u8| number.wrapping_mul(37) ^ 0xa5).collect();
    device.start();
    run(async {
        let key = device.keys().import_key("key", "encrypt", known.clone()).await.unwrap();
        for _ in 0..3 {
            let mechanism = EncryptMechanism::Aead { iv: b"iv".to_vec().into(), aad: Vec::new().into() };
            device.keys().encrypt(&key, mechanism, b"text".to_vec()).await.unwrap();
        }
    });
    let store_key = fs::read(device.root.state_folder(Daemon::Keyd).join("store.key")).unwrap();
    let child = device.child.as_ref().unwrap();
    // The way in works: what is no secret is there.
    assert!(!memory_with(child, device.folder.path().as_os_str().as_encoded_bytes()).is_empty());
    if device.log().contains("memory=Secret") {
        assert_eq!(memory_with(child, &store_key[8..40]), [""; 0], "the store key is in readable memory");
        assert_eq!(memory_with(child, &known), [""; 0], "a key that is held ready is in readable memory");
    } else {
        eprintln!("this kernel has no memfd_secret");
    }
    let smaps = fs::read_to_string(format!("/proc/{}/smaps_rollup", child.id())).unwrap();
    let pss = smaps.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    println!("measured: keyd's PSS is {pss}");
    device.stop();
}

#[test]
fn without_the_right_to_lock_memory_keyd_says_so_once_and_works() {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    if !rustix::process::geteuid().is_root() || parts::missing(&["prlimit", "setpriv"]) {
        return;
    }
    let mut device = Device::new(&json!({}));
    // Where another user can run it.
    let program = device.path("keyd");
    fs::copy(env!("CARGO_BIN_EXE_edgekeep-keyd"), &program).unwrap();
    for path in [device.path("."), device.path("etc/edgekeep"), device.root.settings_file(Daemon::Keyd)] {
        chown(path, Some(65534), None).unwrap();
    }
    let manager = UnixDatagram::bind(device.path("notify")).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    fs::set_permissions(device.path("notify"), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new("prlimit");
    command.args(["--memlock=0", "setpriv", "--reuid", "65534", "--clear-groups"]).arg(&program);
    command.env(ROOT_VARIABLE, device.folder.path()).env("NOTIFY_SOCKET", device.path("notify"));
    command.stderr(File::create(device.path("log")).unwrap()).env_remove("RUST_LOG");
    device.child = Some(command.spawn().unwrap());
    let mut message = [0; 64];
    let length = manager.recv(&mut message).unwrap_or_else(|error| panic!("{error}: {}", device.log()));
    assert_eq!(&message[..length], b"READY=1");
    run(async {
        for name in ["one", "two"] {
            device.keys().create_key(name, "sign").await.unwrap();
        }
    });
    device.stop();
    assert_eq!(device.log().matches("raise LimitMEMLOCK").count(), 1, "{}", device.log());
}

#[test]
fn a_new_device_that_seals_never_has_its_store_key_in_a_file() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let mut device = Device::new(&json!({"tpm": tpm_settings(&swtpm), "seal": "tpm"}));
    device.start();
    let folder = device.root.state_folder(Daemon::Keyd);
    assert!(folder.join("store.key.tpm").exists() && !folder.join("store.key").exists());
    assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
    // The TPM serves its API as well.
    run(async { device.tpm().keys().await.unwrap() });
    device.stop();
}

#[test]
fn keys_that_the_tools_put_into_the_tpm_are_used_and_cannot_be_changed() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tools = swtpm.folder("tools");
    let run_tool = |name: &str, arguments: &[&str]| {
        swtpm.tool_ok(&tools, name, arguments);
        swtpm.tool_ok(&tools, "tpm2_flushcontext", &["-t"]);
    };
    run_tool("tpm2_createprimary", &["-C", "o", "-G", "ecc", "-c", "root.ctx"]);
    for (kind, handle) in [("ecc:ecdsa", "0x81000010"), ("hmac", "0x81000011"), ("rsa2048", "0x81000012")] {
        let create = ["-C", "root.ctx", "-G", kind, "-u", "k.pub", "-r", "k.priv"];
        let attributes = ["-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign"];
        let decrypts = ["-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign|decrypt"];
        run_tool("tpm2_create", &[&create[..], if kind == "rsa2048" { &decrypts } else { &attributes }].concat());
        run_tool("tpm2_load", &["-C", "root.ctx", "-u", "k.pub", "-r", "k.priv", "-c", "k.ctx"]);
        run_tool("tpm2_evictcontrol", &["-C", "o", "-c", "k.ctx", handle]);
    }
    fs::write(tools.join("message"), "message").unwrap();
    run_tool("tpm2_hmac", &["-c", "0x81000011", "-g", "sha256", "-o", "mac", "message"]);
    let preloaded = json!({
        "pair": "tpm:handle=0x81000010", "key": "tpm:handle=0x81000011", "rsa": "tpm:handle=0x81000012",
        "absent": "tpm:handle=0x81000099", "storage": "tpm:handle=0x81000001",
        "file": "tpm:file=/no/such.tpm",
    });
    let mut device = Device::new(&json!({"tpm": tpm_settings(&swtpm), "preloaded_keys": preloaded}));
    device.start();
    run(async {
        device.tpm().keys().await.unwrap();
        let keys = device.keys();
        let pair = keys.load_key_pair("pair").await.unwrap();
        assert!(signs(&keys, &pair, device.folder.path()).await);
        let key = keys.create_key("key", "sign").await.unwrap();
        assert_eq!(hmac(&keys, &key).await.unwrap(), fs::read(tools.join("mac")).unwrap());
        let rsa = keys.load_key_pair("rsa").await.unwrap();
        assert_eq!(keys.parameter(&rsa, "algorithm").await.unwrap(), "RSA");
        let mechanism = EncryptMechanism::RsaPkcs1;
        assert_eq!(keys.encrypt(&rsa, mechanism, vec![7; 51]).await.unwrap().len(), 256);
        for absent in ["absent", "storage", "file"] {
            assert!(refusal(keys.load_key_pair(absent).await).1.contains("there is no key"));
        }
        for refused in [
            refusal(keys.delete_key(&key).await),
            refusal(keys.import_key("key", "sign", vec![7; 32]).await),
            refusal(keys.create_key_pair("absent", None).await),
        ] {
            assert!(refused.0 == 400 && refused.1.contains("preloaded"), "{refused:?}");
        }
        let (status, message) = refusal(keys.move_key_pair("pair", "other").await);
        assert!(status == 400 && message.contains("not possible"), "{message}");
        // Others are in files as ever.
        keys.create_key("other", "sign,encrypt").await.unwrap();
    });
    device.stop();
}

/// The device's audit log as its folder has it, checked against what the TPM tools read of the counter.
fn check_log(device: &Device, swtpm: &Swtpm) -> Report {
    let folder = device.root.state_folder(Daemon::Keyd).join("audit");
    let key: VerifierKey = fs::read_to_string(folder.join("verifier-key")).unwrap().trim().parse().unwrap();
    verify(&folder, &Known { key: &key, checkpoint: None, counter: Some(counter(swtpm)) }).unwrap()
}

const COUNTER: &str = "0x0180ed00";

/// The counter, read by the TPM tools. keyd must not run.
fn counter(swtpm: &Swtpm) -> u64 {
    let tools = swtpm.folder("tools");
    swtpm.tool_ok(&tools, "tpm2_nvread", &["-C", "o", "-o", "counter", COUNTER]);
    u64::from_be_bytes(fs::read(tools.join("counter")).unwrap().try_into().unwrap())
}

/// What the log says: the words of its entries.
fn words(device: &Device) -> Vec<String> {
    let folder = device.root.state_folder(Daemon::Keyd).join("audit");
    let excerpt = edgekeep_audit::read(&folder, 0, usize::MAX, usize::MAX).unwrap();
    let shown = excerpt.entries.iter().map(|entry| serde_json::from_slice::<Shown>(entry).unwrap());
    shown
        .map(|shown| if shown.result.is_empty() { shown.what } else { format!("{} {}", shown.what, shown.result) })
        .collect()
}

/// A device whose log is compared with a counter that is stepped whenever something is signed.
fn device_that_counts(swtpm: &Swtpm) -> Device {
    let mut settings = tpm_settings(swtpm);
    settings["audit_counter"] = json!({"interval_sec": 0});
    let uid = rustix::process::geteuid().as_raw();
    Device::new(&json!({"tpm": settings, "auditors": [uid]}))
}

/// Starts, uses keys, and stops.
fn use_keys(device: &mut Device, ids: &[&str]) {
    device.start();
    run(async {
        for id in ids {
            device.keys().create_key(id, "sign").await.unwrap();
        }
    });
    device.stop();
}

fn copy_folder(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[test]
fn a_log_that_is_put_back_to_an_earlier_state_is_behind_the_tpms_counter() {
    if swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let mut device = device_that_counts(&swtpm);
    let audit = device.root.state_folder(Daemon::Keyd).join("audit");
    use_keys(&mut device, &["a", "b"]);
    let report = check_log(&device, &swtpm);
    assert!(report.is_intact() && report.gaps.is_empty(), "{report:?}");
    let (earlier, at) = (device.path("earlier"), counter(&swtpm));
    copy_folder(&audit, &earlier);
    use_keys(&mut device, &["c"]);
    // The TPM loses its power, and the counter stays.
    swtpm.kill();
    swtpm.start_again();
    use_keys(&mut device, &["d"]);
    let report = check_log(&device, &swtpm);
    assert!(report.is_intact() && report.gaps.is_empty(), "{report:?}");
    assert!(counter(&swtpm) > at);
    // The whole folder is put back. By itself it is consistent.
    copy_folder(&earlier, &audit);
    let report = check_log(&device, &swtpm);
    assert!(matches!(report.faults[..], [Fault { kind: FaultKind::Counter(Some(_), _), .. }]), "{report:?}");
    // keyd says so when it starts, goes on, and what it writes tells of it for ever.
    use_keys(&mut device, &["e"]);
    assert!(device.log().contains("the audit log is behind its counter: its newest part is missing"));
    let report = check_log(&device, &swtpm);
    assert!(report.is_intact(), "{report:?}");
    let [Gap::BehindCounter(behind)] = report.gaps[..] else { panic!("{report:?}") };
    assert_eq!(report.alarms(&[]).count(), 1);
    assert_eq!(report.alarms(&[behind]).count(), 0);
}

#[test]
fn a_loss_of_the_newest_segments_and_a_log_that_was_thrown_away_show_by_the_counter() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let mut device = device_that_counts(&swtpm);
    let audit = device.root.state_folder(Daemon::Keyd).join("audit");
    use_keys(&mut device, &["a"]);
    let older = fs::read(audit.join("checkpoint")).unwrap();
    let segment = audit.join(format!("{:020}.log", 0));
    let shorter = fs::metadata(&segment).unwrap().len();
    use_keys(&mut device, &["b"]);
    // Cut off together with the checkpoint that tells of it, so that all signatures fit.
    File::options().write(true).open(&segment).unwrap().set_len(shorter).unwrap();
    fs::write(audit.join("checkpoint"), older).unwrap();
    let report = check_log(&device, &swtpm);
    assert!(matches!(report.faults[..], [Fault { kind: FaultKind::Counter(Some(_), _), .. }]), "{report:?}");
    // Or without a trace.
    fs::remove_dir_all(&audit).unwrap();
    use_keys(&mut device, &["c"]);
    let report = check_log(&device, &swtpm);
    assert_eq!(report.gaps, [Gap::Replaces(0, None), Gap::BehindCounter(1)], "{report:?}");
}

#[test]
fn a_counter_that_is_removed_made_by_somebody_else_or_switched_off_is_said_in_the_log() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tools = swtpm.folder("tools");
    let mut device = device_that_counts(&swtpm);
    use_keys(&mut device, &["a"]);
    swtpm.tool_ok(&tools, "tpm2_nvundefine", &["-C", "o", COUNTER]);
    use_keys(&mut device, &["b"]);
    let report = check_log(&device, &swtpm);
    assert!(report.is_intact(), "{report:?}");
    assert!(matches!(report.gaps[..], [Gap::NotCounting(_, NotCounting::Replaced)]), "{report:?}");
    assert_eq!(report.alarms(&[]).count(), 1);
    // Made anew by somebody who does not know keyd's auth value, and so cannot be asked.
    swtpm.tool_ok(&tools, "tpm2_nvundefine", &["-C", "o", COUNTER]);
    let attributes = "nt=counter|ownerread|authread|authwrite|no_da";
    swtpm.tool_ok(&tools, "tpm2_nvdefine", &["-C", "o", "-s", "8", "-p", "mine", "-a", attributes, COUNTER]);
    swtpm.tool_ok(&tools, "tpm2_nvincrement", &["-P", "mine", COUNTER]);
    device.start();
    run(async {
        device.keys().create_key("c", "sign").await.unwrap();
        let answer = device.keys().audit_checkpoint().await.unwrap();
        let hardware = answer.counter.unwrap();
        assert_eq!((hardware.index, hardware.value), (0x0180_ed00, None));
        assert!(hardware.error.unwrap().contains("tpm2_nvundefine -C o INDEX"));
    });
    device.stop();
    assert!(device.log().contains("a loss of the log's newest part will not show"), "{}", device.log());
    assert!(words(&device).contains(&"log-counter-unreachable".to_owned()), "{:?}", words(&device));
    let mut settings = tpm_settings(&swtpm);
    settings["audit_counter"] = json!({"enabled": false});
    device.set(&json!({"tpm": settings}));
    use_keys(&mut device, &["d"]);
    assert!(words(&device).contains(&"log-counter-off".to_owned()), "{:?}", words(&device));
    assert!(device.log().contains("audit_counter is switched off"), "{}", device.log());
}

#[test]
fn a_tpm_that_is_absent_is_said_in_the_log_and_counted_with_again_when_it_is_back() {
    if swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let mut device = device_that_counts(&swtpm);
    use_keys(&mut device, &["a"]);
    swtpm.kill();
    device.start();
    run(async {
        let keys = device.keys();
        keys.create_key("b", "sign").await.unwrap();
        let away = keys.audit_checkpoint().await.unwrap();
        assert!(away.counter.unwrap().error.unwrap().contains("cannot be reached"));
        swtpm.start_again();
        let back = keys.audit_checkpoint().await.unwrap();
        let key: VerifierKey = back.verifier_key.parse().unwrap();
        let head = Checkpoint::open(&back.checkpoint, &key).unwrap();
        assert_eq!(head.counter, back.counter.unwrap().value);
    });
    device.stop();
    let expected =
        ["log-counter-made", "create done", "log-opened", "log-counter-unreachable", "create done", "log-counter-back"];
    assert_eq!(words(&device), expected);
    let report = check_log(&device, &swtpm);
    assert!(report.is_intact(), "{report:?}");
    assert!(matches!(report.gaps[..], [Gap::NotCounting(3, NotCounting::Unreachable)]), "{report:?}");
    assert_eq!(report.alarms(&[]).count(), 0);
}

#[test]
fn what_is_asked_of_the_tpm_api_is_in_the_log_with_what_came_of_it() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let mut device = device_that_counts(&swtpm);
    device.start();
    run(async {
        let tpm = device.tpm();
        assert_eq!(refusal(tpm.sign_with_auth_key(b"m").await).0, 500);
        tpm.keys().await.unwrap();
        assert_eq!(refusal(tpm.import_auth_key(vec![0, 1, 7]).await).0, 500);
    });
    device.stop();
    let found = words(&device);
    assert_eq!(found[1..], ["tpm-sign failed", "tpm-keys done", "tpm-import failed"], "{found:?}");
}

#[test]
fn each_way_in_which_a_tpm_cannot_be_used_is_named_with_what_to_do() {
    if swtpm::skip() {
        return;
    }
    // What the TPM API answers to each is the same; what it logs is for the operator.
    let logged = |device: &mut Device, expected: &str| {
        device.start();
        run(async {
            assert_eq!(refusal(device.tpm().keys().await), (500, "internal error".to_owned()));
        });
        device.stop();
        let causes: Vec<String> =
            device.log().lines().filter(|line| line.contains("internal error")).map(str::to_owned).collect();
        assert!(causes.iter().any(|line| line.contains(expected)), "{expected}: {causes:?}");
    };
    let with = |tcti: &str| Device::new(&json!({"tpm": {"tcti": tcti, "auth_key_index": 0x100}}));
    logged(&mut with("device:/dev/no-tpm"), "enable the TPM in the firmware, load its driver");

    // A handle that is taken.
    let swtpm = Swtpm::start();
    let tools = swtpm.folder("tools");
    for (name, arguments) in [
        ("tpm2_createprimary", &["-C", "o", "-G", "ecc:ecdsa", "-c", "k.ctx", "-a", SIGNING][..]),
        ("tpm2_evictcontrol", &["-C", "o", "-c", "k.ctx", "0x81000001"]),
        ("tpm2_flushcontext", &["-t"]),
    ] {
        swtpm.tool_ok(&tools, name, arguments);
    }
    let tcti = swtpm.tcti().to_string();
    logged(&mut with(&tcti), "remove it with `tpm2_evictcontrol -C o -c 0x81000001`");

    // A device node that another user may open, and this one not.
    if !rustix::process::geteuid().is_root() || parts::missing(&["setpriv"]) {
        return;
    }
    let mut device = with("unset");
    let node = device.path("tpm");
    rustix::fs::mknodat(rustix::fs::CWD, &node, rustix::fs::FileType::CharacterDevice, 0o600.into(), 0).unwrap();
    device.set(&json!({"tpm": {"tcti": format!("device:{}", node.display()), "auth_key_index": 0x100},
                       "principals": [{"uid": 0, "keys": ["*"]}]}));
    device.wrapper = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"].map(str::to_owned).into();
    give_to(device.folder.path(), 65_534);
    fs::set_permissions(&node, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&node, Some(0), Some(0)).unwrap();
    logged(&mut device, "usermod --append --groups tss USER");
}

const SIGNING: &str = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign";

/// Gives a folder and all in it to a user.
fn give_to(folder: &Path, uid: u32) {
    std::os::unix::fs::chown(folder, Some(uid), Some(uid)).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            give_to(&path, uid);
        } else {
            std::os::unix::fs::chown(&path, Some(uid), Some(uid)).unwrap();
        }
    }
}

#[test]
fn a_tpm_in_lockout_is_named_with_what_to_do() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tools = swtpm.folder("tools");
    let run_tool = |name: &str, arguments: &[&str]| {
        swtpm.tool_ok(&tools, name, arguments);
        swtpm.tool_ok(&tools, "tpm2_flushcontext", &["-t"]);
    };
    // An authentication key that counts wrong guesses, as some services make them.
    run_tool("tpm2_createprimary", &["-C", "o", "-G", "ecc", "-c", "root.ctx"]);
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign";
    run_tool("tpm2_create", &["-C", "root.ctx", "-G", "hmac", "-a", attributes, "-u", "k.pub", "-r", "k.priv"]);
    run_tool("tpm2_load", &["-C", "root.ctx", "-u", "k.pub", "-r", "k.priv", "-c", "k.ctx"]);
    run_tool("tpm2_evictcontrol", &["-C", "o", "-c", "k.ctx", "0x81000100"]);
    let mut device = device_that_counts(&swtpm);
    device.start();
    run(async { device.tpm().sign_with_auth_key(b"m").await.unwrap() });
    device.stop();
    // One wrong guess is enough, and it is forgiven after an hour.
    swtpm.tool_ok(&tools, "tpm2_dictionarylockout", &["-s", "-n", "1", "-t", "3600", "-l", "3600"]);
    swtpm.tool_ok(&tools, "tpm2_createprimary", &["-C", "o", "-G", "ecc", "-p", "right", "-c", "k.ctx"]);
    fs::write(tools.join("digest"), [7; 32]).unwrap();
    swtpm.tool(&tools, "tpm2_create", &["-C", "k.ctx", "-P", "wrong", "-G", "ecc"]);
    swtpm.tool_ok(&tools, "tpm2_flushcontext", &["-t"]);
    assert!(swtpm.tool_ok(&tools, "tpm2_getcap", &["properties-variable"]).contains("inLockout:                 1"));
    device.start();
    let signed = run(async { device.tpm().sign_with_auth_key(b"m").await });
    device.stop();
    assert_eq!(refusal(signed).0, 500);
    assert!(device.log().contains("tpm2_dictionarylockout --clear-lockout"), "{}", device.log());
    // The counter is not protected against guessing, so the log goes on being compared.
    let report = check_log(&device, &swtpm);
    assert!(report.is_intact() && report.gaps.is_empty(), "{report:?}");
}

#[test]
fn a_tpm_behind_a_tokens_library_is_reached_from_within_the_sandbox() {
    if tokens::skip() {
        return;
    }
    let token = tokens::Token::bare_tpm2_pkcs11();
    let uri = format!("pkcs11:token={}?pin-value={}", tokens::LABEL.replace(' ', "%20"), tokens::USER_PIN);
    let mut device = Device::new(&json!({"pkcs11": {"library": token.library, "base_slot": uri}}));
    device.environment.clone_from(&token.environment);
    for round in 0..2 {
        device.start();
        run(async {
            let keys = device.keys();
            let pair = keys.create_key_pair("pair", Some("ec-p256")).await;
            let pair = pair.unwrap_or_else(|error| panic!("{error}: {}", device.log()));
            assert!(signs(&keys, &pair, device.folder.path()).await);
            let socket = Root::new(device.folder.path()).metrics_socket(Daemon::Keyd);
            let report = OperationsClient::new(socket).sandbox().await.unwrap();
            assert!(report.layers.iter().all(|layer| layer.full), "{report:?}");
            let said = report.widened.iter().filter(|said| said.contains(" port ")).count();
            assert_eq!(said, 2, "round {round}: {report:?}");
        });
        device.stop();
    }
}

#[test]
fn a_simulated_tpm_on_a_unix_socket_is_reached_from_within_the_sandbox() {
    if swtpm::skip() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let socket = state.path().join("tpm.sock");
    let mut device =
        Device::new(&json!({"tpm": {"tcti": format!("swtpm:path={}", socket.display()), "auth_key_index": 256}}));
    let mut tpm = Command::new("swtpm");
    tpm.args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"]);
    tpm.arg(format!("dir={}", state.path().display())).arg("--server");
    tpm.arg(format!("type=unixio,path={}", socket.display())).stdout(Stdio::null()).stderr(Stdio::null());
    // Not there at start.
    device.start();
    run(async { assert_eq!(refusal(device.tpm().keys().await).0, 500) });
    let mut tpm = tpm.spawn().unwrap();
    let end = std::time::Instant::now() + DEADLINE;
    while !socket.exists() && std::time::Instant::now() < end {
        std::thread::yield_now();
    }
    let shown = run(async { device.tpm().keys().await });
    device.stop();
    tpm.kill().unwrap();
    tpm.wait().unwrap();
    shown.unwrap_or_else(|error| panic!("{error}: {}", device.log()));
}
