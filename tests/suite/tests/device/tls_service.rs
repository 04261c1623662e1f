//! A TLS service of a module while its certificates and the Edge CA are renewed. Server
//! and client are Python's, and have the device's clock.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{VERSION, wait_for};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::pem::parse_x509_pem;

use crate::clock::Clock;
use crate::wait_for_edge_ca;

const HOUR: i64 = 3600;
/// Life of the Edge CA in days: short, so that the clock makes small steps.
const DAYS: i64 = 8;

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

fn replace(folder: &Path, name: &str, text: &str) {
    let new = folder.join(format!("{name}.new"));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, folder.join(name)).unwrap();
}

fn progress(folder: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(folder.join("progress")).ok()?).ok()
}

struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Begin and end of a certificate, in seconds since 1970.
fn span(pem: &str) -> (i64, i64) {
    let (_, block) = parse_x509_pem(pem.as_bytes()).unwrap();
    let validity = block.parse_x509().unwrap().validity().clone();
    (validity.not_before.timestamp(), validity.not_after.timestamp())
}

#[test]
fn a_tls_service_fails_no_handshake_while_the_edge_ca_is_renewed_three_times_with_new_keys() {
    let Some(clock) = Clock::new() else { return };
    let tables = format!(
        "[edge_ca]\nauto_generated_edge_ca_expiry_days = {DAYS}\non_new_key = \"notify\"\n\
         [edge_ca.auto_renew]\nrotate_key = true\n"
    );
    let mut device = clock.device().tables(&tables).start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    // Only the last good time says what time it is, as on a device that is alone.
    device.cloud_goes_away();
    device.kill(Daemon::Identityd);
    device.start(Daemon::Identityd);

    let folder = tempfile::tempdir().unwrap();
    // What such a module does by itself: the bundle first, then its certificate.
    let fetch = || {
        let bundle = m1.call("GET", &format!("/trust-bundle?{VERSION}"), None).expect(200);
        let target = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{VERSION}");
        let body = json!({ "commonName": "press-04.plant7" });
        let issued = m1.call("POST", &target, Some(body)).expect(201);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let chain = text(&issued["certificate"]);
        (text(&bundle["certificate"]), chain, text(&issued["privateKey"]["bytes"]))
    };
    let attempts = || {
        let told = progress(folder.path())?;
        Some(told["good"].as_u64()? + told["failed"].as_u64()?)
    };
    let take = || {
        let (_, chain, key) = fetch();
        // The CA may have been replaced between the two calls: the bundle has both then.
        let bundle = wait_for("the issuer in the bundle", || {
            let (bundle, _, _) = fetch();
            let issuer = &chain[chain.rfind("-----BEGIN").unwrap()..];
            bundle.contains(issuer.trim()).then_some(bundle)
        });
        replace(folder.path(), "bundle.pem", &bundle);
        // A client may have read the former bundle and connect only now.
        if let Some(before) = attempts() {
            wait_for("a client that read the bundle", || {
                attempts().filter(|now| *now >= before + 2)
            });
        }
        replace(folder.path(), "server.pem", &format!("{chain}{key}"));
        span(&chain)
    };
    let mut own = take();
    let mut python = Command::new("python3");
    python.args(["-c", PYTHON]).arg(folder.path()).stdout(Stdio::null());
    python.envs(clock.variables());
    let _service = Service(python.spawn().unwrap());
    wait_for("the first handshake", || progress(folder.path()));

    let edge_ca = || -> Value {
        let output = device.edgekeep(&["certs", "list", "--json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        let lines = list["certificates"].as_array().unwrap();
        lines.iter().find(|line| line["id"] == "aziot-edged-ca").unwrap().clone()
    };
    let mut last = edge_ca();
    let (mut renewals, mut fetched) = (0, 0);
    while renewals < 3 {
        clock.set(clock.now() + 4 * HOUR);
        // A handshake or more at each time, and the plan is made for it.
        let before = progress(folder.path()).unwrap()["good"].as_u64().unwrap();
        let line = wait_for("a plan for what is to come", || {
            let good = progress(folder.path())?["good"].as_u64()?;
            let line = edge_ca();
            let next = line["nextRenewal"].as_str()?;
            let next = OffsetDateTime::parse(next, &Rfc3339).unwrap().unix_timestamp();
            (good > before && line["renewal"] == "planned" && next > clock.now()).then_some(line)
        });
        if line["notAfter"] != last["notAfter"] {
            renewals += 1;
            last = line;
        }
        let (begin, end) = own;
        if clock.now() > begin + (end - begin) * 2 / 3 {
            own = take();
            fetched += 1;
        }
        assert!(fetched < 1000, "the Edge CA is not renewed: {last}");
    }
    let text = String::from_utf8(device.edgekeep(&["certs", "list"]).stdout).unwrap();
    assert!(text.contains("DAYS LEFT") && text.contains("aziot-edged-ca"), "{text}");
    std::fs::write(folder.path().join("stop"), "").unwrap();
    let told = progress(folder.path()).unwrap();
    eprintln!("{renewals} renewals of the Edge CA, {fetched} of the module's: {told}");
    assert_eq!(told["bad"], json!([]), "no handshake failed");
    assert!(told["leaves"].as_u64().unwrap() > 3, "{told}");
}
