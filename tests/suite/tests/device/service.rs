//! A TLS service as a module has it, and its clients. Both are Python's, and have the
//! device's clock.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use edgekeep_testkit::{Caller, VERSION, wait_for};
use serde_json::{Value, json};
use tempfile::TempDir;
use x509_parser::pem::parse_x509_pem;

use crate::clock::Clock;

/// A service whose chain is read again when its file was replaced, and clients that read
/// the trust bundle and connect, one after the other, until there is a file `stop`.
const PYTHON: &str = r#"
import json, os, socket, ssl, sys, threading
os.chdir(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
def serve():
    known, context = None, None
    while True:
        plain, _ = listener.accept()
        try:
            now = os.stat("server.pem").st_ino
            if now != known:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain("server.pem")
                known = now
            with context.wrap_socket(plain, server_side=True) as secured:
                secured.sendall(b"pressing")
        except Exception as error:
            print("server:", repr(error), file=sys.stderr, flush=True)
threading.Thread(target=serve, daemon=True).start()
good, bad, leaves = 0, [], set()
while not os.path.exists("stop"):
    try:
        context = ssl.create_default_context(cafile="bundle.pem")
        with socket.create_connection(listener.getsockname()) as plain:
            with context.wrap_socket(plain, server_hostname="press-04.plant7") as secured:
                assert secured.recv(16) == b"pressing"
                leaves.add(secured.getpeercert()["serialNumber"])
        good += 1
    except Exception as error:
        bad.append(repr(error))
    with open("progress.new", "w") as file:
        told = {"good": good, "failed": len(bad), "bad": bad[:5], "leaves": len(leaves)}
        json.dump(told, file)
    os.rename("progress.new", "progress")
"#;

/// The service of a module, with its clients.
pub(crate) struct Service<'a> {
    module: &'a Caller,
    folder: TempDir,
    python: Child,
    /// Begin and end of the module's certificate, in seconds since 1970.
    span: (i64, i64),
}

impl<'a> Service<'a> {
    /// Starts the service with a first certificate, and waits for a first handshake.
    pub(crate) fn start(clock: &Clock, module: &'a Caller) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let span = take(module, folder.path());
        let mut python = Command::new("python3");
        python.args(["-c", PYTHON]).arg(folder.path()).stdout(Stdio::null());
        let python = python.envs(clock.variables()).spawn().unwrap();
        let service = Self { module, folder, python, span };
        wait_for("the first handshake", || (service.good() > 0).then_some(()));
        service
    }

    /// Returns the number of handshakes so far that went well.
    pub(crate) fn good(&self) -> u64 {
        progress(self.folder.path()).map_or(0, |told| told["good"].as_u64().unwrap())
    }

    /// Returns the moment at which the module gets its next certificate, in seconds since
    /// 1970: two thirds of the life of the one that it has.
    pub(crate) fn renewal(&self) -> i64 {
        let (begin, end) = self.span;
        begin + (end - begin) * 2 / 3
    }

    /// Gets the module's next certificate.
    pub(crate) fn renew(&mut self) {
        self.span = take(self.module, self.folder.path());
    }

    /// Ends the clients, and returns their count of handshakes.
    pub(crate) fn end(mut self) -> Value {
        std::fs::write(self.folder.path().join("stop"), "").unwrap();
        assert!(self.python.wait().unwrap().success());
        progress(self.folder.path()).unwrap()
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        let _ = self.python.kill();
        let _ = self.python.wait();
    }
}

/// Gets a certificate as such a module does it by itself: the trust bundle first, then
/// its certificate.
fn take(module: &Caller, folder: &Path) -> (i64, i64) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let bundle = || {
        let bundle = module.call("GET", &format!("/trust-bundle?{VERSION}"), None).expect(200);
        text(&bundle["certificate"])
    };
    let target = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{VERSION}");
    let body = json!({ "commonName": "press-04.plant7" });
    let issued = module.call("POST", &target, Some(body)).expect(201);
    let (chain, key) = (text(&issued["certificate"]), text(&issued["privateKey"]["bytes"]));
    // The CA may have been replaced between the two calls: the bundle has both then.
    let bundle = wait_for("the issuer in the bundle", || {
        let issuer = &chain[chain.rfind("-----BEGIN").unwrap()..];
        Some(bundle()).filter(|bundle| bundle.contains(issuer.trim()))
    });
    replace(folder, "bundle.pem", &bundle);
    // A client may have read the former bundle and connect only now.
    let attempts = || {
        let told = progress(folder)?;
        Some(told["good"].as_u64()? + told["failed"].as_u64()?)
    };
    if let Some(before) = attempts() {
        wait_for("a client that read the bundle", || attempts().filter(|now| *now >= before + 2));
    }
    replace(folder, "server.pem", &format!("{chain}{key}"));
    span(&chain)
}

fn replace(folder: &Path, name: &str, text: &str) {
    let new = folder.join(format!("{name}.new"));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, folder.join(name)).unwrap();
}

fn progress(folder: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(folder.join("progress")).ok()?).ok()
}

/// Begin and end of a certificate, in seconds since 1970.
fn span(pem: &str) -> (i64, i64) {
    let (_, block) = parse_x509_pem(pem.as_bytes()).unwrap();
    let validity = block.parse_x509().unwrap().validity().clone();
    (validity.not_before.timestamp(), validity.not_after.timestamp())
}
