//! A TLS client whose key is in a token or a TPM, before openssl's server, which demands
//! its certificate.

use std::io::{BufRead as _, BufReader};
use std::sync::mpsc;

use edgekeep_core::authority::Authority;
use edgekeep_core::credentials::Certificate;
use edgekeep_tls::{ClientIdentity, Connector, RemoteKey, Trust};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::*;

/// Makes the CA that both sides believe, and the server's certificate.
struct Plant {
    ca: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Plant {
    fn new(folder: &Path) -> Self {
        let mut params = named("plant CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        fs::write(folder.join("ca.pem"), ca.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        let mut params = named("server");
        params.subject_alt_names = vec![rcgen::SanType::DnsName("localhost".try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let server = params.signed_by(&key, &issuer).unwrap();
        fs::write(folder.join("server.pem"), server.pem() + &key.serialize_pem()).unwrap();
        Self { ca: Certificate::from_der(ca.der()).unwrap(), issuer }
    }

    /// A certificate for a key that only keyd has.
    fn certify(&self, name: &str, key: &RemoteKey) -> Certificate {
        let public = rcgen::SubjectPublicKeyInfo::from_der(key.public().info()).unwrap();
        let made = named(name).signed_by(&public, &self.issuer).unwrap();
        Certificate::from_der(made.der()).unwrap()
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// openssl's server, and what it says.
struct Server {
    child: Child,
    port: u16,
    said: mpsc::Receiver<String>,
}

impl Server {
    fn start(folder: &Path, version: &str) -> Self {
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-cert", "server.pem", version])
            .args(["-CAfile", "ca.pem", "-Verify", "1", "-verify_return_error"])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (lines, said) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        let mut server = Self { child, port: 0, said };
        let accept = server.line("ACCEPT ");
        server.port = accept.rsplit_once(':').unwrap().1.trim().parse().unwrap();
        server
    }

    /// Waits for the line that begins so.
    fn line(&self, begin: &str) -> String {
        let mut all = String::new();
        loop {
            let Ok(line) = self.said.recv_timeout(DEADLINE) else {
                panic!("openssl did not say {begin:?}, but: {all}");
            };
            if line.starts_with(begin) {
                return line;
            }
            all += &(line + "\n");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Shows a key of each kind to the server, in both versions of TLS.
async fn shown(device: &Device, algorithms: &[&str]) {
    let plant = Plant::new(device.folder.path());
    for algorithm in algorithms {
        let key = RemoteKey::load_or_make(device.keys(), algorithm, algorithm).await.unwrap();
        let name = format!("press with {algorithm}");
        let identity = ClientIdentity::new(vec![plant.certify(&name, &key)], key).unwrap();
        let connector =
            Connector::new(Trust::Certificates(vec![plant.ca.clone()])).with_identity(identity);
        for version in ["-tls1_2", "-tls1_3"] {
            let server = Server::start(device.folder.path(), version);
            let to: Authority = format!("localhost:{}", server.port).parse().unwrap();
            let _stream = connector.prepare().unwrap().connect(&to).await.unwrap();
            let subject = server.line("subject=");
            assert!(subject.contains(&name), "{version}: {subject}");
            let digest = server.line("Peer signature type: ");
            let expected = if algorithm.starts_with("ec") { "ECDSA" } else { "RSA-PSS" };
            assert!(digest.contains(expected), "{version}: {digest}");
        }
    }
    // A certificate of another key is refused before anything is sent.
    let key = RemoteKey::load(device.keys(), algorithms[0]).await.unwrap();
    let other = RemoteKey::load_or_make(device.keys(), "other", "ec-p256").await.unwrap();
    let error = ClientIdentity::new(vec![plant.certify("press", &other)], key).unwrap_err();
    assert!(error.to_string().contains("does not belong to key"), "{error}");
}

#[test]
fn openssl_takes_a_client_whose_key_is_in_a_token() {
    if parts::missing(&["softhsm2-util", SOFTHSM, "openssl"]) {
        return;
    }
    let mut device = Device::with_token();
    device.start();
    run(shown(&device, &["ec-p256", "rsa-2048"]));
}

#[test]
fn openssl_takes_a_client_whose_key_is_in_a_tpm() {
    if swtpm::skip() || parts::missing(&["openssl"]) {
        return;
    }
    let swtpm = Swtpm::start();
    let mut device = Device::new(&json!({"tpm": tpm_settings(&swtpm), "places": ["tpm", "files"]}));
    device.start();
    run(shown(&device, &["ec-p256", "rsa-2048"]));
}
