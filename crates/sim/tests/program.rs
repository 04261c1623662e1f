//! The simulator as a program: what it prints, writes and keeps.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODw==";

/// Starts it and reads the one line that says where it is.
fn start(arguments: &[&str]) -> (Child, String) {
    let program = env!("CARGO_BIN_EXE_edgekeep-sim");
    let mut child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program was built");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    (child, line)
}

fn stop(mut child: Child) {
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    let status = child.wait().expect("it ends");
    assert!(status.success(), "{status}");
}

#[test]
fn it_says_in_json_where_everything_is_and_writes_its_ca() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    let enrol = format!("press-04={KEY}");
    let ca = ca.to_str().unwrap();
    let (child, line) =
        start(&["--json", "--enrol", &enrol, "--ca-out", ca, "--mqtt", "127.0.0.1:0"]);
    let said: Value = serde_json::from_str(&line).unwrap();
    let dps = said["dps"].as_str().unwrap();
    let port = dps.strip_prefix("https://localhost:").unwrap();
    assert_eq!(said["hub"], format!("localhost:{port}"));
    assert_eq!(said["admin"], format!("{dps}/admin"));
    assert_eq!((said["ca"].as_str(), said["scopeId"].as_str()), (Some(ca), Some("0ne00000001")));
    assert!(said["mqtt"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(std::fs::read_to_string(ca).unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    stop(child);
}

#[test]
fn a_state_file_keeps_the_ca_and_the_enrolments_for_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let (state, ca) = (folder.path().join("state.json"), folder.path().join("ca.pem"));
    let (state, ca) = (state.to_str().unwrap(), ca.to_str().unwrap());
    let enrol = format!("press-04={KEY}");
    let (child, line) = start(&["--enrol", &enrol, "--ca-out", ca, "--state-file", state]);
    assert!(line.starts_with("simulated cloud ready: provisioning https://localhost:"), "{line}");
    stop(child);
    assert_eq!(std::fs::metadata(state).unwrap().permissions().mode() & 0o777, 0o600);
    let (first_ca, first_state) = (std::fs::read(ca).unwrap(), std::fs::read(state).unwrap());
    let (child, _) = start(&["--ca-out", ca, "--state-file", state]);
    stop(child);
    assert_eq!(std::fs::read(ca).unwrap(), first_ca);
    assert_eq!(std::fs::read(state).unwrap(), first_state);
}

#[test]
fn a_state_file_that_cannot_be_read_is_named_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.json");
    std::fs::write(&state, "{ half").unwrap();
    let program = env!("CARGO_BIN_EXE_edgekeep-sim");
    let output = Command::new(program).arg("--state-file").arg(&state).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("state.json is not a state file of this program; move it away"),
        "{error}"
    );
    assert_eq!(std::fs::read(&state).unwrap(), b"{ half");
}

#[test]
fn a_key_that_is_none_is_refused_without_repeating_it() {
    let program = env!("CARGO_BIN_EXE_edgekeep-sim");
    let output = Command::new(program).args(["--enrol", "press-04=c2hvcnQ="]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("the key has 5 bytes; 16 to 64 are accepted"), "{error}");
    assert!(!error.contains("c2hvcnQ="), "the key is shown: {error}");
}
