//! The daemon as a process with a token and with a TPM, both simulated, over its real sockets.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../hsm/tests/parts/mod.rs"]
mod parts;
#[path = "../../hsm/tests/tpm/service.rs"]
mod service;
#[path = "../../hsm/tests/tpm/swtpm.rs"]
#[allow(dead_code, reason = "the TPM layer's own tests use the rest")]
mod swtpm;

use std::fs::{self, File};
use std::future::Future;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{KeyHandle, KeysClient, SignMechanism};
use edgekeep_api::tpmd::TpmClient;
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
}

impl Device {
    /// A device with these settings of hardware, whose every key the test's own user may name. Not started yet.
    fn new(hardware: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let device = Self { folder, root, child: None };
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
        let uri = format!("pkcs11:token=edge?pin-value={PIN}");
        let preloaded = json!({"preloaded": format!("pkcs11:token=edge;object=made%20elsewhere?pin-value={PIN}")});
        let device = Self::new(&json!({"pkcs11": {"library": SOFTHSM, "base_slot": uri}, "preloaded_keys": preloaded}));
        fs::create_dir(device.path("tokens")).unwrap();
        let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", device.path("tokens").display());
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
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgekeep-keyd"));
        command.env(ROOT_VARIABLE, self.folder.path()).env("SOFTHSM2_CONF", self.path("softhsm2.conf"));
        command.stderr(File::options().create(true).append(true).open(self.path("log")).unwrap());
        command.stdout(Stdio::null()).env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
        command
    }

    /// Starts the daemon and waits until it says that it is ready.
    fn start(&mut self) {
        let notify = self.path("notify");
        let _ = fs::remove_file(&notify);
        let manager = UnixDatagram::bind(&notify).unwrap();
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
    device.start();
    let (handle, mac) = run(async {
        let keys = device.keys();
        let key = keys.create_key("key", "sign").await.unwrap();
        let mac = hmac(&keys, &key).await.unwrap();
        (key, mac)
    });
    device.stop();
    // It is not plugged in at start.
    fs::rename(device.path("tokens"), device.path("away")).unwrap();
    fs::create_dir(device.path("tokens")).unwrap();
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
        fs::remove_dir(device.path("tokens")).unwrap();
        fs::rename(device.path("away"), device.path("tokens")).unwrap();
        assert_eq!(hmac(&keys, &handle).await.unwrap(), mac);
        keys.create_key_pair("pair", None).await.unwrap();
        // Pulled out while it is in use.
        fs::rename(device.path("tokens"), device.path("away")).unwrap();
        assert_eq!(refusal(keys.create_key_pair("new", None).await), (500, "internal error".to_owned()));
        fs::rename(device.path("away"), device.path("tokens")).unwrap();
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
        assert_eq!(log.matches("cannot be reached").count(), 3, "at start, and for each request: {log}");
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
    assert!(device.gives_up().contains("which cannot be used"), "{}", device.log());
    swtpm.start_again();
    let tools = swtpm.folder("tools");
    device.set(&json!({}));
    assert!(device.gives_up().contains("set seal ="), "{}", device.log());
    // After a clear it is another TPM.
    device.set(&json!({"tpm": tpm_settings(&swtpm), "seal": "tpm"}));
    swtpm.tool_ok(&tools, "tpm2_clear", &["-c", "p"]);
    assert!(device.gives_up().contains("does not give back the store key"), "{}", device.log());
    assert!(!plain.exists());
}

#[test]
fn a_new_device_that_seals_never_has_its_store_key_in_a_file() {
    use std::os::unix::fs::PermissionsExt as _;
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
        let mechanism = edgekeep_api::keyd::EncryptMechanism::RsaPkcs1;
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
