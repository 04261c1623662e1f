//! The server of Cisco's libest, as a foreign EST server.
//!
//! It binds to all addresses, so each test with it runs once more in a network of its
//! own, where there is nothing but loopback.
#![allow(dead_code, reason = "each suite uses what it needs")]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use edgekeep_testkit::wait_for;

/// The folder that libest was unpacked in.
const VARIABLE: &str = "EDGEKEEP_TEST_LIBEST";
/// Set for the run in a network of its own.
const INSIDE: &str = "EDGEKEEP_TEST_ALONE";
/// The port is the server's own there.
pub(crate) const PORT: u16 = 8085;
/// Name and password that are built into the server.
pub(crate) const USER: (&str, &str) = ("estuser", "estpwd");

/// Makes the CA and the server's certificate as the sources of libest do: by openssl. The
/// CA issues what it is asked for, a CA below it too.
const MAKE: &str = r"
mkdir new; touch index.txt; echo 01 > serial
cat > ca.cnf <<'END'
[ca]
default_ca = c
[c]
dir = .
database = ./index.txt
new_certs_dir = ./new
certificate = ./ca.pem
private_key = ./ca.key
serial = ./serial
default_days = 30
default_md = sha256
policy = p
x509_extensions = x
unique_subject = no
copy_extensions = copyall
[p]
commonName = supplied
[x]
basicConstraints = CA:FALSE
keyUsage = digitalSignature
END
key='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
openssl req -x509 $key -keyout ca.key -out ca.pem -subj '/CN=libest CA' -days 30 \
  -addext keyUsage=keyCertSign,cRLSign
openssl req $key -keyout server.key -subj /CN=localhost -out server.csr
printf 'subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n' > server.ext
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -set_serial 7 -days 30 \
  -extfile server.ext -out server.pem
cat ca.pem >> server.pem
cat ca.pem > trusted.pem
";

/// Tells whether this is the run in a network of its own; else makes that run, or says
/// why there is none.
pub(crate) fn is_alone(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let Some(folder) = std::env::var_os(VARIABLE) else {
        eprintln!("skipping {test}: {VARIABLE} is not set; `cargo xtask test` provides libest");
        return false;
    };
    let alone = "ip link set lo up && exec \"$0\" --exact \"$1\" --nocapture";
    let own = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("-r");
    }
    command.args(["-n", "sh", "-c", alone]).arg(own).arg(test);
    let done = command.env(INSIDE, "1").env(VARIABLE, folder).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "{said}{told}");
    false
}

pub(crate) fn program(name: &str) -> Command {
    let folder = PathBuf::from(std::env::var_os(VARIABLE).unwrap());
    let libraries = folder.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    let mut command = Command::new(folder.join("usr/bin").join(name));
    command.env("LD_LIBRARY_PATH", libraries).stdin(Stdio::null());
    command
}

/// A running server in a folder.
pub(crate) struct Server {
    child: Child,
    folder: tempfile::TempDir,
}

impl Server {
    /// Starts one that also takes the certificates of `others`, a CA in PEM.
    pub(crate) fn start(options: &[&str], others: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let made = Command::new("sh").args(["-ec", MAKE]).current_dir(at).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let own = std::fs::read_to_string(at.join("ca.pem")).unwrap();
        std::fs::write(at.join("trusted.pem"), own + others).unwrap();
        let log = std::fs::File::create(at.join("log")).unwrap();
        let child = program("estserver")
            .args(["-c", "server.pem", "-k", "server.key", "-r", "plant", "-o", "-p"])
            .arg(PORT.to_string())
            .args(options)
            .env("EST_TRUSTED_CERTS", "trusted.pem")
            .env("EST_CACERTS_RESP", "ca.pem")
            .env("EST_OPENSSL_CACONFIG", "ca.cnf")
            .current_dir(at)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let listens = || std::net::TcpStream::connect(("127.0.0.1", PORT)).is_ok().then_some(());
        wait_for("libest to listen", listens);
        Self { child, folder }
    }

    /// Returns its base URL.
    pub(crate) fn url() -> String {
        format!("https://localhost:{PORT}/.well-known/est")
    }

    /// Returns its root, PEM: that of its own certificate and of those that it issues.
    pub(crate) fn root(&self) -> String {
        std::fs::read_to_string(self.path("ca.pem")).unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.path("log")).unwrap_or_default());
        }
    }
}
