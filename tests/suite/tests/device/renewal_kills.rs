//! Renewals that are broken off at every step, by strace, a program of others: it kills
//! the daemon at the begin of a chosen system call.
//!
//! One renewal is listened to first. Then there is a renewal for each of its calls that
//! changes something that lasts, or speaks to the other daemon.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, VERSION, http, wait_for};
use serde_json::{Value, json};

use crate::wait_for_edge_ca;

/// Calls by which a daemon leaves something behind.
const CALLS: &str = "connect,write,writev,sendto,sendmsg,ftruncate,fsync,fdatasync,rename,renameat,\
                     renameat2,unlink,unlinkat,linkat,mkdir";
const CA: &str = "aziot-edged-ca";
const CERTIFICATES: &str = "api-version=2026-11-01";
const KEYS: &str = "api-version=2020-09-01";

/// strace, attached to a daemon.
struct Strace(Child);

impl Strace {
    fn attach(device: &Device, daemon: Daemon, options: &[&str]) -> Self {
        let mut command = Command::new("strace");
        command.args(["-f", "-e", &format!("trace={CALLS}"), "-p"]);
        command.arg(device.pid(daemon).to_string()).args(options);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let attached = said.find(|line| line.as_ref().is_ok_and(|line| line.contains("attached")));
        assert!(attached.is_some(), "strace cannot be attached; is this root?");
        // What it says further on is of no interest, and must not make it wait.
        std::thread::spawn(move || said.for_each(drop));
        Self(child)
    }

    /// Lets go of the daemon, and ends what is written about it.
    fn detach(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Strace {
    /// Ends it hard: at times strace waits for ever for threads of a daemon that it
    /// killed.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks for a renewal. `true` if it came to its end.
fn renew(device: &Device) -> bool {
    let target = format!("/certificates/{CA}/renew?{CERTIFICATES}");
    http::call(&device.root().certd_socket(), "POST", &target, None)
        .is_ok_and(|answer| answer.status == 204)
}

/// Returns how often a daemon makes each call in one renewal.
fn steps(device: &Device, daemon: Daemon) -> BTreeMap<String, usize> {
    let log = device.root().path().join("calls-of-a-renewal");
    let strace = Strace::attach(device, daemon, &["-o", &log.display().to_string()]);
    assert!(renew(device), "{}", device.log(Daemon::Identityd));
    strace.detach();
    let mut calls = BTreeMap::new();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        // "1234  rename(...": lines about signals and resumed calls have no such form.
        let call = line.split_whitespace().nth(1).and_then(|word| word.split_once('('));
        if let Some((call, _)) = call {
            *calls.entry(call.to_owned()).or_default() += 1;
        }
    }
    calls
}

fn text(answer: &Value, member: &str) -> String {
    answer[member].as_str().unwrap().to_owned()
}

/// The Edge CA's certificate, and the key that keyd has under its name, as the first
/// answers after a start tell them.
fn pair(device: &Device) -> (String, String) {
    let target = format!("/certificates/{CA}?{CERTIFICATES}");
    let pem = http::call(&device.root().certd_socket(), "GET", &target, None).unwrap().expect(200);
    let keyd = device.root().keyd_socket();
    let target = format!("/keypair/{CA}?{KEYS}");
    let handle = http::call(&keyd, "GET", &target, None).unwrap().expect(200);
    let body = json!({ "keyHandle": text(&handle, "keyHandle") });
    let point = http::call(&keyd, "POST", &format!("/parameters/ec-point?{KEYS}"), Some(&body));
    (text(&pem, "pem"), text(&point.unwrap().expect(200), "value"))
}

/// The public key of a certificate as openssl sees it, as keyd would tell it.
fn point_of(folder: &Path, pem: &str) -> String {
    let file = folder.join("of-the-ca.pem");
    std::fs::write(&file, pem).unwrap();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let key = openssl(&["x509", "-noout", "-pubkey", "-in", &file.display().to_string()]);
    let key_file = folder.join("of-the-ca.pub");
    std::fs::write(&key_file, key).unwrap();
    let path = key_file.display().to_string();
    let form = ["-ec_conv_form", "compressed", "-outform", "DER"];
    let der = openssl(&[&["pkey", "-pubin", "-in", &path], &form[..]].concat());
    // The point is the end of the structure: 33 bytes in this form.
    edgekeep_testkit::base64(&der[der.len() - 33..])
}

#[test]
fn a_daemon_is_killed_at_each_step_of_a_renewal_and_certificate_and_key_go_together() {
    if Command::new("strace").arg("--version").output().is_err() {
        eprintln!("skipped: needs strace: apt-get install strace");
        return;
    }
    let tables = "[edge_ca]\non_new_key = \"none\"\n[edge_ca.auto_renew]\nrotate_key = true\n";
    let mut device = Device::builder().tables(tables).start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let folder = device.root().path().join("check");
    std::fs::create_dir(&folder).unwrap();
    let mut kept = pair(&device).0;
    let (mut kills, mut renewed) = (0, 0);
    for daemon in [Daemon::Identityd, Daemon::Keyd] {
        for (call, times) in steps(&device, daemon) {
            for at in 1..=times {
                let what = format!("{} killed at {call} {at} of {times}", daemon.name());
                let inject = format!("inject={call}:signal=KILL:when={at}");
                let null = ["-o", "/dev/null", "-e", &inject];
                let strace = Strace::attach(&device, daemon, &null);
                let ended = renew(&device);
                drop(strace);
                // A power cut ends both, and both start at once.
                let both = [Daemon::Identityd, Daemon::Keyd];
                for other in both.into_iter().filter(|one| at % 2 == 0 || *one == daemon) {
                    device.kill(other);
                }
                device.start_daemons();
                kills += usize::from(!ended);
                let (ca, point) = pair(&device);
                assert_eq!(point_of(&folder, &ca), point, "{what}");
                renewed += usize::from(ca != kept);
                kept = ca;
            }
        }
    }
    eprintln!("{kills} kills in renewals, {renewed} of which were brought to their end");
    assert!(kills > renewed && renewed > 0, "{kills} kills, {renewed} renewals");
    let issued = wait_for("a certificate of the last Edge CA", || {
        let target = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{VERSION}");
        let issued = m1.call("POST", &target, Some(json!({ "commonName": "press-04.plant7" })));
        (issued.status == 201).then(|| text(&issued.json(), "certificate"))
    });
    assert!(issued.contains(kept.trim()), "the chain ends in the CA that is there");
}
