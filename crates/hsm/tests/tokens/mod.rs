//! Tokens of the test's own: SoftHSM2 in a folder, libtpm2-pkcs11 on a software TPM, and
//! the foreign tools that look at them.
//!
//! A PKCS#11 library finds its token by environment variables, which a process cannot
//! change safely. So a test that uses one starts itself again with them set.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]
#![allow(clippy::print_stdout, reason = "measurements are printed")]

use std::env;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use edgekeep_hsm::pkcs11::{Pkcs11Backend, Pkcs11Settings};
use edgekeep_hsm::uri::{KeyUri, Pkcs11Uri};
use tempfile::TempDir;

pub(crate) const USER_PIN: &str = "1234";
pub(crate) const SO_PIN: &str = "12345678";
pub(crate) const LABEL: &str = "edge token";
/// Set in the process that a test starts; its value is the folder of the token.
const CHILD: &str = "EDGEKEEP_TEST_TOKEN";

pub(crate) const SOFTHSM: &[&str] =
    &["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so"];
pub(crate) const TPM2_PKCS11: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/libtpm2_pkcs11.so.1",
    "/usr/lib/aarch64-linux-gnu/libtpm2_pkcs11.so.1",
];

/// The first of these libraries that there is.
pub(crate) fn library(paths: &[&str]) -> PathBuf {
    let found = paths.iter().map(PathBuf::from).find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!("none of {paths:?} is there: install softhsm2 and libtpm2-pkcs11-1")
    })
}

/// Returns true if a program or library that the tests use is missing here, so that the
/// tests cannot run.
pub(crate) fn skip() -> bool {
    let programs = [
        "softhsm2-util",
        "pkcs11-tool",
        "swtpm",
        "tpm2_getcap",
        "tpm2-abrmd",
        "dbus-daemon",
        "dbus-send",
    ];
    let broker = "libtss2-tcti-tabrmd.so.0";
    let folder = library_folder();
    let libraries = [
        format!("{folder}/pkcs11-spy.so"),
        format!("{folder}/libtpm2_pkcs11.so.1"),
        format!("{folder}/{broker}"),
    ];
    let libraries = libraries.iter().map(String::as_str).chain(["/usr/lib/softhsm/libsofthsm2.so"]);
    crate::parts::missing(&programs.into_iter().chain(libraries).collect::<Vec<_>>())
}

/// Returns Debian's folder for the libraries of this architecture.
fn library_folder() -> String {
    format!("/usr/lib/{}-linux-gnu", env::consts::ARCH)
}

/// A token, and what it takes to use it.
pub(crate) struct Token {
    pub(crate) folder: TempDir,
    pub(crate) library: PathBuf,
    pub(crate) environment: Vec<(&'static str, String)>,
    /// The resource broker between the library and the software TPM. Ended before the
    /// TPM.
    pub(crate) broker: Option<ResourceBroker>,
    /// The software TPM below.
    pub(crate) tpm: Option<SoftwareTpm>,
}

impl Token {
    /// An initialized SoftHSM2 token.
    pub(crate) fn softhsm() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokens = folder.path().join("tokens");
        std::fs::create_dir(&tokens).unwrap();
        let configuration = folder.path().join("softhsm2.conf");
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        std::fs::write(&configuration, text).unwrap();
        let environment = vec![("SOFTHSM2_CONF", configuration.display().to_string())];
        let token =
            Self { folder, library: library(SOFTHSM), environment, broker: None, tpm: None };
        token.initialize_softhsm(LABEL);
        token
    }

    /// Adds a token to those of this SoftHSM2.
    pub(crate) fn initialize_softhsm(&self, label: &str) {
        let arguments =
            ["--init-token", "--free", "--label", label, "--so-pin", SO_PIN, "--pin", USER_PIN];
        self.tool("softhsm2-util", &arguments);
    }

    /// A token of libtpm2-pkcs11 on a software TPM, with a resource manager between them
    /// as the kernel has one: the library leaves objects loaded, and a TPM has room for
    /// three.
    pub(crate) fn tpm2_pkcs11() -> Self {
        Self::tpm2_pkcs11_on(true)
    }

    /// The same without resource manager, for tests that use few keys and pull out the
    /// TPM.
    pub(crate) fn bare_tpm2_pkcs11() -> Self {
        Self::tpm2_pkcs11_on(false)
    }

    fn tpm2_pkcs11_on(managed: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tpm = SoftwareTpm::start(&folder.path().join("tpm"));
        let broker = managed.then(|| ResourceBroker::start(folder.path(), &tpm));
        let store = folder.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let tcti = if managed { "tabrmd:bus_type=session".to_owned() } else { tpm.tcti() };
        let environment = vec![
            (
                "DBUS_SESSION_BUS_ADDRESS",
                broker.as_ref().map_or_else(String::new, |broker| broker.address.clone()),
            ),
            ("TPM2_PKCS11_STORE", store.display().to_string()),
            ("TPM2_PKCS11_TCTI", tcti.clone()),
            ("TPM2TOOLS_TCTI", tcti),
            ("TSS2_LOG", "all+none".to_owned()),
            ("TPM2_PKCS11_LOG_LEVEL", "0".to_owned()),
        ];
        let token =
            Self { folder, library: library(TPM2_PKCS11), environment, broker, tpm: Some(tpm) };
        // By the library itself: tpm2_ptool needs more room in the TPM than there is
        // without a resource manager.
        let module = token.library.to_str().unwrap();
        let initialize =
            ["--init-token", "--slot-index", "0", "--label", LABEL, "--so-pin", SO_PIN];
        token.tool("pkcs11-tool", &[&["--module", module][..], &initialize].concat());
        let set_pin = [
            "--init-pin",
            "--token-label",
            LABEL,
            "--login",
            "--so-pin",
            SO_PIN,
            "--pin",
            USER_PIN,
        ];
        token.tool("pkcs11-tool", &[&["--module", module][..], &set_pin].concat());
        // What it left loaded.
        token.tool("tpm2_flushcontext", &["--transient-object"]);
        token
    }

    /// Runs a tool with the token's environment; it has to succeed.
    pub(crate) fn tool(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.try_tool(program, arguments);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{program} {arguments:?} failed: {text}");
        text
    }

    pub(crate) fn try_tool(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value.as_str())));
        command.output().unwrap_or_else(|error| panic!("could not start {program}: {error}"))
    }

    /// `pkcs11-tool` on this token, logged in.
    pub(crate) fn pkcs11_tool(&self, arguments: &[&str]) -> String {
        let library = self.library.to_str().unwrap();
        let common = ["--module", library, "--token-label", LABEL, "--login", "--pin", USER_PIN];
        self.tool("pkcs11-tool", &[&common[..], arguments].concat())
    }

    /// Runs the test of this name again, in a process that has the token's environment.
    pub(crate) fn run_child(&self, test: &str) {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args([test, "--exact", "--nocapture", "--test-threads=1", "--include-ignored"]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value.as_str())));
        command.env(CHILD, self.folder.path());
        let output = command.output().unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "the test {test} was not run: {text}");
        for line in text.lines().filter(|line| line.contains("measured: ")) {
            println!("{line}");
        }
    }
}

/// Runs `test` on a token: starts this test's process again with the token's environment,
/// or is in it.
pub(crate) fn with_token(name: &str, make: fn() -> Token, test: impl FnOnce(PathBuf)) {
    match in_child() {
        Some(folder) => test(folder),
        None if skip() => {}
        None => make().run_child(name),
    }
}

/// The URI of the token of the tests.
pub(crate) fn uri(rest: &str) -> Pkcs11Uri {
    let text = format!("pkcs11:token={}{rest}", LABEL.replace(' ', "%20"));
    match text.parse() {
        Ok(KeyUri::Pkcs11(uri)) => *uri,
        other => panic!("{text}: {other:?}"),
    }
}

/// Settings for the token of the tests.
pub(crate) fn settings(library: &Path) -> Pkcs11Settings {
    let mut settings = Pkcs11Settings::new(uri(&format!("?pin-value={USER_PIN}")));
    settings.library = Some(library.to_owned());
    settings
}

/// The backend on the token of the tests.
pub(crate) fn open(library: &Path) -> Pkcs11Backend {
    Pkcs11Backend::open(settings(library)).unwrap()
}

/// The token's folder, in a process that a test started.
pub(crate) fn in_child() -> Option<PathBuf> {
    env::var_os(CHILD).map(PathBuf::from)
}

/// A software TPM that is ended with the test.
pub(crate) struct SoftwareTpm {
    child: Child,
    state: PathBuf,
    pub(crate) port: u16,
}

impl SoftwareTpm {
    pub(crate) fn start(state: &Path) -> Self {
        std::fs::create_dir_all(state).unwrap();
        // The control port is the one after the other. Somebody else may take one of them
        // in between: then try others.
        for _ in 0..20 {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = free.local_addr().unwrap().port();
            let Some(Ok(next)) =
                port.checked_add(1).map(|next| TcpListener::bind((Ipv4Addr::LOCALHOST, next)))
            else {
                continue;
            };
            drop((free, next));
            if let Some(child) = Self::spawn(state, port) {
                return Self { child, state: state.to_owned(), port };
            }
        }
        panic!("could not start swtpm: install swtpm");
    }

    /// One of before, stopped since, in the process of a test that plugs it in and out.
    pub(crate) fn start_at(state: &Path, port: u16) -> Self {
        let child = Self::spawn(state, port).expect("swtpm starts again");
        Self { child, state: state.to_owned(), port }
    }

    fn spawn(state: &Path, port: u16) -> Option<Child> {
        let mut child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", state.display())])
            .args(["--server", &format!("type=tcp,port={port},bindaddr=127.0.0.1")])
            .args(["--ctrl", &format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("swtpm is installed");
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port + 1)).is_ok() {
                return Some(child);
            }
            std::thread::yield_now();
        }
        let _ = child.kill();
        let _ = child.wait();
        None
    }

    /// Returns the TPM's name for TSS programs.
    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// Pulls the TPM out.
    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Plugs it in again, with what it had stored.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.child = Self::spawn(&self.state, self.port).expect("swtpm starts again");
    }
}

impl Drop for SoftwareTpm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// tpm2-abrmd on a bus of its own.
pub(crate) struct ResourceBroker {
    bus: Child,
    broker: Child,
    address: String,
}

impl ResourceBroker {
    fn start(folder: &Path, tpm: &SoftwareTpm) -> Self {
        let address = format!("unix:path={}", folder.join("bus").display());
        let mut bus = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address=1", &format!("--address={address}")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon is installed");
        // It writes its address when it listens.
        let mut line = String::new();
        BufReader::new(bus.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let broker = Command::new("tpm2-abrmd")
            .args(["--session", "--allow-root", &format!("--tcti={}", tpm.tcti())])
            .env("DBUS_SESSION_BUS_ADDRESS", &address)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tpm2-abrmd is installed");
        let deadline = Instant::now() + Duration::from_secs(20);
        let asked =
            ["--session", "--print-reply", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus"];
        let owner = ["org.freedesktop.DBus.GetNameOwner", "string:com.intel.tss2.Tabrmd"];
        while !Command::new("dbus-send")
            .args(asked.iter().chain(&owner))
            .env("DBUS_SESSION_BUS_ADDRESS", &address)
            .output()
            .unwrap()
            .status
            .success()
        {
            assert!(Instant::now() < deadline, "tpm2-abrmd did not start");
        }
        Self { bus, broker, address }
    }
}

impl Drop for ResourceBroker {
    fn drop(&mut self) {
        for child in [&mut self.broker, &mut self.bus] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a tool and returns whether it succeeded, and what it wrote.
pub(crate) fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.success(), text)
}

/// DER with tag and length.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let mut element = match len {
        0..=0x7f => vec![tag, len as u8],
        0x80..=0xff => vec![tag, 0x81, len as u8],
        _ => vec![tag, 0x82, (len >> 8) as u8, len as u8],
    };
    element.extend_from_slice(content);
    element
}

/// A DER public key (RFC 5480) of an EC point.
pub(crate) fn ec_public_key(oid: &[u8], point: &[u8]) -> Vec<u8> {
    let ec = [0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    let algorithm = der(0x30, &[&ec, oid].concat());
    der(0x30, &[algorithm, der(0x03, &[&[0], point].concat())].concat())
}

/// A DER public key (RFC 3279) of an RSA modulus and exponent.
pub(crate) fn rsa_public_key(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let positive = |number: &[u8]| {
        der(0x02, &[if number[0] >= 0x80 { &[0][..] } else { &[] }, number].concat())
    };
    let key = der(0x30, &[positive(modulus), positive(exponent)].concat());
    let rsa = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    der(0x30, &[der(0x30, &rsa), der(0x03, &[&[0][..], &key].concat())].concat())
}

/// Returns true if openssl accepts `signature` for `digest`. Without options the
/// signature is ECDSA over the digest, or PKCS#1 over the digest as it is.
pub(crate) fn openssl_verifies(
    public_key: &[u8],
    digest: &[u8],
    signature: &[u8],
    options: &[&str],
) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (key, input, signed) =
        (file("key.der", public_key), file("digest", digest), file("signature", signature));
    let arguments = [
        "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", &key, "-in", &input,
        "-sigfile", &signed,
    ];
    let (success, text) = run("openssl", &[&arguments[..], options].concat());
    assert_eq!(success, text.contains("Signature Verified Successfully"), "{text}");
    success
}

/// Returns the content that openssl recovers from a PKCS#1 signature.
pub(crate) fn openssl_recovers(public_key: &[u8], signature: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (key, signed, recovered) = (path("key.der"), path("signature"), path("recovered"));
    std::fs::write(&key, public_key).unwrap();
    std::fs::write(&signed, signature).unwrap();
    let arguments = ["pkeyutl", "-verifyrecover", "-pubin", "-keyform", "DER", "-inkey", &key];
    let (success, text) =
        run("openssl", &[&arguments[..], &["-in", &signed, "-out", &recovered]].concat());
    assert!(success, "{text}");
    std::fs::read(recovered).unwrap()
}
