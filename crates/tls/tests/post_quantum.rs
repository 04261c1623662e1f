//! The key exchange before an OpenSSL that has ML-KEM: 3.5, of another suite than the
//! machine's.
#![expect(
    clippy::unwrap_used,
    reason = "functions that tests share expect by unwrapping, as tests do"
)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use edgekeep_core::authority::Authority;
use edgekeep_core::credentials::Certificate;
use edgekeep_tls::{Connector, Trust};

/// The folder that OpenSSL was unpacked in.
const VARIABLE: &str = "EDGEKEEP_TEST_OPENSSL";

/// openssl, run by the C library that came with it.
fn openssl(folder: &Path) -> Command {
    let libraries = folder.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    let loaders = ["ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"];
    let loader = loaders.iter().map(|name| libraries.join(name)).find(|path| path.exists());
    let mut command = Command::new(loader.unwrap());
    command.arg("--library-path").arg(libraries).arg(folder.join("usr/bin/openssl"));
    command
}

struct Server {
    child: Child,
    said: mpsc::Receiver<String>,
}

impl Server {
    /// Waits for a line that begins so, and returns what follows.
    fn line(&self, begin: &str) -> String {
        loop {
            let line = self.said.recv_timeout(Duration::from_secs(30)).unwrap();
            if let Some(rest) = line.strip_prefix(begin) {
                return rest.trim().to_owned();
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn the_hybrid_key_exchange_is_offered_first_and_an_older_one_still_taken() {
    let Some(folder) = std::env::var_os(VARIABLE) else {
        eprintln!("skipping the test: {VARIABLE} is not set; `cargo xtask test` provides it");
        return;
    };
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let at = tempfile::tempdir().unwrap();
    std::fs::write(at.path().join("pair.pem"), made.cert.pem() + &made.signing_key.serialize_pem())
        .unwrap();
    let trust = Trust::Certificates(vec![Certificate::from_der(made.cert.der()).unwrap()]);
    let connector = Connector::new(trust);
    // A server that has no preference takes the first that the client sent a share for.
    for (groups, expected) in [
        ("*X25519MLKEM768:*X25519:P-256", "X25519MLKEM768"),
        ("X25519MLKEM768", "X25519MLKEM768"),
        ("X25519", "X25519"),
        ("P-256", "secp256r1"),
    ] {
        let mut child = openssl(Path::new(&folder))
            .args(["s_server", "-accept", "127.0.0.1:0", "-cert", "pair.pem", "-groups", groups])
            .current_dir(at.path())
            .env("OPENSSL_CONF", "/dev/null")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (lines, said) = mpsc::channel();
        std::thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .take_while(|line| lines.send(line.clone()).is_ok())
                .count()
        });
        let server = Server { child, said };
        let port = server.line("ACCEPT 127.0.0.1:");
        let to: Authority = format!("localhost:{port}").parse().unwrap();
        let stream = connector.prepare().unwrap().connect(&to).await.unwrap();
        let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(format!("{group:?}"), expected, "{groups}");
        let offered = server.line("Supported groups: ");
        assert!(offered.starts_with("X25519MLKEM768:"), "{offered}");
    }
}
