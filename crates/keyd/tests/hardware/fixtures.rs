//! A device's folder with a keyd in it, with what hardware its settings name.

use super::*;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
pub(crate) const PIN: &str = "geheim-1234";

/// A device's folder with a keyd in it, and what it logged.
pub(crate) struct Device {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) root: Root,
    pub(crate) child: Option<Child>,
    /// The command that runs it as another user or elsewhere.
    pub(crate) wrapper: Vec<String>,
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Device {
    /// A device with these settings of hardware, whose every key the test's own user may
    /// name. Not started yet.
    pub(crate) fn new(hardware: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let device =
            Self { folder, root, child: None, wrapper: Vec::new(), environment: Vec::new() };
        device.set(hardware);
        device
    }

    /// Changes the settings of hardware.
    pub(crate) fn set(&self, hardware: &Value) {
        let mut settings =
            json!({"principals": [{"uid": rustix::process::geteuid().as_raw(), "keys": ["*"]}]});
        settings.as_object_mut().unwrap().extend(hardware.as_object().unwrap().clone());
        let path = self.root.settings_file(Daemon::Keyd);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, settings.to_string()).unwrap();
    }

    /// Starts a daemon that is expected to give up, and returns what it logged.
    pub(crate) fn gives_up(&self) -> String {
        let before = self.log().len();
        assert_eq!(self.command().status().unwrap().code(), Some(1), "{}", self.log());
        self.log()[before..].to_owned()
    }

    /// A device with an initialized SoftHSM2 token.
    pub(crate) fn with_token() -> Self {
        let device = Self::new(&token_settings());
        fs::create_dir_all(device.path("softhsm/tokens")).unwrap();
        let text = format!(
            "directories.tokendir = {}\nlog.level = ERROR\n",
            device.path("softhsm/tokens").display()
        );
        fs::write(device.path("softhsm2.conf"), text).unwrap();
        let made = Command::new("softhsm2-util")
            .args([
                "--init-token",
                "--free",
                "--label",
                "edge",
                "--so-pin",
                "87654321",
                "--pin",
                PIN,
            ])
            .env("SOFTHSM2_CONF", device.path("softhsm2.conf"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        device
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self) -> Command {
        let keyd = env!("CARGO_BIN_EXE_edgekeep-keyd");
        let mut words = self.wrapper.iter().map(String::as_str).chain([keyd]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        command
            .env(ROOT_VARIABLE, self.folder.path())
            .env("SOFTHSM2_CONF", self.path("softhsm2.conf"));
        command.stderr(File::options().create(true).append(true).open(self.path("log")).unwrap());
        command.stdout(Stdio::null()).env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
        command.envs(self.environment.iter().map(|(name, value)| (name, value.as_str())));
        command
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub(crate) fn start(&mut self) {
        let notify = self.path("notify");
        let _ = fs::remove_file(&notify);
        let manager = UnixDatagram::bind(&notify).unwrap();
        fs::set_permissions(&notify, fs::Permissions::from_mode(0o666)).unwrap();
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        self.child = Some(self.command().env("NOTIFY_SOCKET", &notify).spawn().unwrap());
        let mut message = [0; 64];
        let length =
            manager.recv(&mut message).unwrap_or_else(|error| panic!("{error}: {}", self.log()));
        assert_eq!(&message[..length], b"READY=1");
    }

    pub(crate) fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success(), "{}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    pub(crate) fn keys(&self) -> KeysClient {
        KeysClient::new(self.root.keyd_socket())
    }

    pub(crate) fn tpm(&self) -> TpmClient {
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

pub(crate) fn token_settings() -> Value {
    let uri = format!("pkcs11:token=edge?pin-value={PIN}");
    let preloaded =
        json!({"preloaded": format!("pkcs11:token=edge;object=made%20elsewhere?pin-value={PIN}")});
    json!({"pkcs11": {"library": SOFTHSM, "base_slot": uri}, "preloaded_keys": preloaded})
}

pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub(crate) async fn hmac(keys: &KeysClient, handle: &KeyHandle) -> Result<Vec<u8>, ClientError> {
    keys.sign(handle, SignMechanism::HmacSha256 { message: b"message"[..].into() }).await
}

/// The status and the text of a refusal.
#[track_caller]
pub(crate) fn refusal<T>(result: Result<T, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Status { status, message, .. }) => (status.as_u16(), message),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("not refused"),
    }
}

/// Returns true if openssl takes this signature of a P-256 key over the SHA-256 of
/// `message`.
pub(crate) fn openssl_verifies(
    folder: &Path,
    point: &[u8],
    message: &[u8],
    signature: &[u8],
) -> bool {
    const PREFIX: [u8; 26] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
        0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    fs::write(folder.join("key.der"), [&PREFIX[..], point].concat()).unwrap();
    fs::write(folder.join("signature"), signature).unwrap();
    fs::write(folder.join("message"), message).unwrap();
    let arguments = [
        "dgst",
        "-sha256",
        "-keyform",
        "DER",
        "-verify",
        "key.der",
        "-signature",
        "signature",
        "message",
    ];
    Command::new("openssl").args(arguments).current_dir(folder).output().unwrap().status.success()
}

pub(crate) async fn signs(keys: &KeysClient, pair: &KeyHandle, folder: &Path) -> bool {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"message");
    let signature =
        keys.sign(pair, SignMechanism::Ecdsa { digest: digest.as_ref().into() }).await.unwrap();
    let point =
        STANDARD.decode(keys.parameter(pair, "ec-point-uncompressed").await.unwrap()).unwrap();
    openssl_verifies(folder, &point, b"message", &signature)
}

pub(crate) fn tpm_settings(swtpm: &Swtpm) -> Value {
    json!({"tcti": swtpm.tcti().to_string(), "auth_key_index": 0x100})
}

/// The device's audit log as its folder has it, checked against what the TPM tools read
/// of the counter.
pub(crate) fn check_log(device: &Device, swtpm: &Swtpm) -> Report {
    let folder = device.root.state_folder(Daemon::Keyd).join("audit");
    let key: VerifierKey =
        fs::read_to_string(folder.join("verifier-key")).unwrap().trim().parse().unwrap();
    verify(&folder, &Known { key: &key, checkpoint: None, counter: Some(counter(swtpm)) }).unwrap()
}

pub(crate) const COUNTER: &str = "0x0180ed00";

/// The counter, read by the TPM tools. keyd must not run.
pub(crate) fn counter(swtpm: &Swtpm) -> u64 {
    let tools = swtpm.folder("tools");
    swtpm.tool_ok(&tools, "tpm2_nvread", &["-C", "o", "-o", "counter", COUNTER]);
    u64::from_be_bytes(fs::read(tools.join("counter")).unwrap().try_into().unwrap())
}

/// Returns the words of the log's entries.
pub(crate) fn words(device: &Device) -> Vec<String> {
    let folder = device.root.state_folder(Daemon::Keyd).join("audit");
    let excerpt = edgekeep_audit::read(&folder, 0, usize::MAX, usize::MAX).unwrap();
    let shown = excerpt.entries.iter().map(|entry| serde_json::from_slice::<Shown>(entry).unwrap());
    shown
        .map(|shown| {
            if shown.result.is_empty() {
                shown.what
            } else {
                format!("{} {}", shown.what, shown.result)
            }
        })
        .collect()
}

/// A device whose log is compared with a counter that is stepped whenever something is
/// signed.
pub(crate) fn device_that_counts(swtpm: &Swtpm) -> Device {
    let mut settings = tpm_settings(swtpm);
    settings["audit_counter"] = json!({"interval_sec": 0});
    let uid = rustix::process::geteuid().as_raw();
    Device::new(&json!({"tpm": settings, "auditors": [uid]}))
}

/// Starts, uses keys, and stops.
pub(crate) fn use_keys(device: &mut Device, ids: &[&str]) {
    device.start();
    run(async {
        for id in ids {
            device.keys().create_key(id, "sign").await.unwrap();
        }
    });
    device.stop();
}
