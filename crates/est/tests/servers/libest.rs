//! Cisco's libest: its server for our client, its client for the simulated server.
//!
//! Its server binds to all addresses, so each test runs once more in a network of its
//! own, where there is nothing but loopback.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use edgekeep_est::EstError;
use edgekeep_testkit::wait_for;
use rcgen::PublicKeyData as _;

use super::*;

/// The folder that libest was unpacked in.
const VARIABLE: &str = "EDGEKEEP_TEST_LIBEST";
/// Set for the run in a network of its own.
const INSIDE: &str = "EDGEKEEP_TEST_ALONE";
/// The port is the server's own there.
const PORT: u16 = 8085;
/// Name and password that are built into the server.
const USER: (&str, &str) = ("estuser", "estpwd");

/// Makes the CA and the server's certificate as the sources of libest do: by openssl.
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
fn is_alone(test: &str) -> bool {
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

fn program(name: &str) -> Command {
    let folder = PathBuf::from(std::env::var_os(VARIABLE).unwrap());
    let libraries = folder.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    let mut command = Command::new(folder.join("usr/bin").join(name));
    command.env("LD_LIBRARY_PATH", libraries).stdin(Stdio::null());
    command
}

/// A running server in a folder.
struct Server {
    child: Child,
    folder: tempfile::TempDir,
}

impl Server {
    /// Starts one that also takes the certificates of `others`, a CA in PEM.
    fn start(options: &[&str], others: &str) -> Self {
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

    fn client(&self) -> Est {
        let pem = std::fs::read_to_string(self.path("ca.pem")).unwrap();
        let url = format!("https://localhost:{PORT}/.well-known/est").parse().unwrap();
        Est::new(url, Trust::Certificates(certificates(&pem)))
    }

    fn path(&self, name: &str) -> PathBuf {
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

#[tokio::test]
async fn libest_issues_by_password_and_renews_by_the_certificate() {
    if !is_alone("libest::libest_issues_by_password_and_renews_by_the_certificate") {
        return;
    }
    let (server, keys) = (Server::start(&[], ""), Keys::start());
    let asked = server.client().csrattrs().await.unwrap();
    assert!(!asked.asks_for_binding() && asked.ids().len() == 4, "{:?}", asked.ids());
    assert_eq!(server.client().cacerts().await.unwrap().len(), 1);

    let est = server.client().with_basic(Basic::new(USER.0, USER.1));
    let own = enrolled(&est, &keys, "est-id", "ec-p256").await;
    let est = server.client().with_identity(own.clone());
    let device = enrolled(&est, &keys, "device-id", "rsa-2048").await;
    // Over the connection that the RSA key signed for: PKCS#1 or PSS, in TLS 1.2.
    let est = server.client().with_identity(device.clone());
    let next = keys.make("device-id-temp", "ec-p256").await;
    let profile = Profile::client("").renewing(device.leaf().unwrap());
    let csr = Csr::sign(&next, &profile).await.unwrap();
    let renewed = issued(est.reenroll(csr.der()).await.unwrap());
    assert_eq!(renewed[0].public_key(), next.public().info());
    assert_eq!(renewed.len(), 2, "the leaf and the root");

    let wrong = server.client().with_basic(Basic::new(USER.0, "wrong"));
    let error = wrong.enroll(csr.der()).await.unwrap_err();
    assert!(matches!(error, EstError::Credentials { status: 401, .. }), "{error}");
    let other = edgekeep_sim::Authority::named("other").unwrap();
    let url = format!("https://localhost:{PORT}/.well-known/est").parse().unwrap();
    let est = Est::new(url, Trust::Certificates(certificates(other.certificate_pem())));
    let error = est.cacerts().await.unwrap_err();
    assert!(matches!(error, EstError::Untrusted { .. }), "{error}");
}

#[tokio::test]
async fn libest_issues_to_who_has_a_manufacturers_certificate() {
    if !is_alone("libest::libest_issues_to_who_has_a_manufacturers_certificate") {
        return;
    }
    let maker = edgekeep_sim::Authority::named("maker").unwrap();
    let (server, keys) = (Server::start(&[], maker.certificate_pem()), Keys::start());
    let key = keys.make("est-bootstrap-id", "ec-p256").await;
    let chain = keys::signed_by(&maker, "serial-1", &key);
    let est = server.client().with_identity(ClientIdentity::new(chain, key).unwrap());
    enrolled(&est, &keys, "est-id", "ec-p256").await;

    let forger = edgekeep_sim::Authority::named("forger").unwrap();
    let key = keys.make("forged", "ec-p256").await;
    let chain = keys::signed_by(&forger, "serial-1", &key);
    let est = server.client().with_identity(ClientIdentity::new(chain, key).unwrap());
    let key = keys.make("another", "ec-p256").await;
    let csr = Csr::sign(&key, &Profile::client("press-04")).await.unwrap();
    let error = est.enroll(csr.der()).await.unwrap_err();
    assert!(matches!(error, EstError::Untrusted { .. } | EstError::Down { .. }), "{error:?}");
}

#[tokio::test]
async fn libest_says_later_and_then_issues() {
    if !is_alone("libest::libest_says_later_and_then_issues") {
        return;
    }
    let (server, keys) = (Server::start(&["-m", "1"], ""), Keys::start());
    let est = server.client().with_basic(Basic::new(USER.0, USER.1));
    let key = keys.make("est-id", "ec-p256").await;
    let csr = Csr::sign(&key, &Profile::client("press-04")).await.unwrap();
    let later = est.enroll(csr.der()).await.unwrap();
    assert_eq!(later, Enrolment::Later(Duration::from_secs(3600)));
    // An operator's approval is a second of waiting there.
    let begun = std::time::Instant::now();
    let mut answer = later;
    while matches!(answer, Enrolment::Later(_)) && begun.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        answer = est.enroll(csr.der()).await.unwrap();
    }
    assert_eq!(issued(answer).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_of_libest_enrols_and_renews_at_the_simulated_server() {
    let test = "libest::the_client_of_libest_enrols_and_renews_at_the_simulated_server";
    if !is_alone(test) {
        return;
    }
    // It asks for the password in a header whose name must be in one case, which no HTTP
    // library of ours writes; so it comes with a manufacturer's certificate.
    let maker = edgekeep_sim::Authority::named("maker").unwrap();
    let server = simulator(maker.certificate_pem()).await;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let roots = [server.ca_pem(), &server.est_root_pem(None).unwrap()].concat();
    std::fs::write(at.join("roots.pem"), roots).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let own = maker.client_certificate_pem("serial-1", &key.subject_public_key_info()).unwrap();
    std::fs::write(at.join("own.pem"), own).unwrap();
    std::fs::write(at.join("own.key"), key.serialize_pem()).unwrap();
    let client = |arguments: &[&str]| {
        let done = program("estclient")
            .args(arguments)
            .args(["-s", "localhost", "-p", &server.port().to_string(), "-o", "."])
            .env("EST_OPENSSL_CACERT", "roots.pem")
            .current_dir(at)
            .output()
            .unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let said = client(&["-e", "--common-name", "press-04", "-c", "own.pem", "-k", "own.key"]);
    assert!(at.join("cert-0-0.pkcs7").exists(), "{said}");
    let unpack = "tr -d '\\r' < cert-0-0.pkcs7 | base64 -d | openssl pkcs7 -inform DER -print_certs -out new.pem";
    let made = Command::new("sh")
        .args(["-ec", &format!("{unpack}; openssl x509 -in new.pem -noout -subject")])
        .current_dir(at)
        .output()
        .unwrap();
    let subject = String::from_utf8_lossy(&made.stdout);
    assert!(subject.contains("CN = press-04"), "{made:?}");
    let said = client(&["-r", "-c", "new.pem", "-k", "key-x-x.pem"]);
    let calls = server.state().calls;
    assert_eq!((calls.est_enroll, calls.est_reenroll), (1, 1), "{said}");
    for asked in ["-g", "-a"] {
        let said = client(&[asked, "-c", "own.pem", "-k", "own.key"]);
        assert!(!said.contains("ERROR") && !said.contains("failed"), "{said}");
    }
    // One that nobody knows is turned away.
    let other = edgekeep_sim::Authority::named("other").unwrap();
    let own = other.client_certificate_pem("serial-1", &key.subject_public_key_info()).unwrap();
    std::fs::write(at.join("own.pem"), own).unwrap();
    std::fs::remove_file(at.join("cert-0-0.pkcs7")).unwrap();
    let said = client(&["-e", "--common-name", "press-05", "-c", "own.pem", "-k", "own.key"]);
    assert!(!at.join("cert-0-0.pkcs7").exists() && said.contains("EST_ERR_AUTH_FAIL"), "{said}");
}
