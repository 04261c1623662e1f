//! The log of what was started, on a whole device.

use std::fs;
use std::path::Path;
use std::process::Command;

use edgekeep_api::identityd::{Identity, IdentityClient};
use edgekeep_core::assurance::Level;
use edgekeep_core::health::Code;
use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, VERSION, wait_for};
use serde_json::{Value, json};

use crate::{parts, swtpm};

/// Replays a log as a stranger does, and prints the values that PCR and index must have.
const STRANGER: &str = r#"
import hashlib, json, sys
pcr = nv = None
for text in open(sys.argv[1], encoding="ascii").read().split("\x1e")[1:]:
    record = json.loads(text)
    content = json.dumps(record["content"], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(content.encode()).digest()
    if record["recnum"] == 0:
        pcr, nv = (bytes.fromhex(record["content"][name].removeprefix("sha256:")) for name in ("pcr_base", "nv_base"))
    pcr, nv = (hashlib.sha256(value + digest).digest() for value in (pcr, nv))
print(pcr.hex(), nv.hex())
"#;

/// The contents of all records, as the command line prints them.
fn contents(device: &Device) -> Vec<Value> {
    let shown = device.edgekeep(&["integrity", "log", "--json"]);
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let all: Vec<Value> = serde_json::from_slice(&shown.stdout).unwrap();
    all.into_iter().map(|record| record["content"].clone()).collect()
}

/// The records of one kind.
fn records(device: &Device, event: &str) -> Vec<Value> {
    contents(device).into_iter().filter(|content| content["event"] == event).collect()
}

/// SHA-256 of a file by the system's own tool.
fn sha256sum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    format!("sha256:{}", text.split_whitespace().next().unwrap())
}

fn executable(pid: u32) -> String {
    sha256sum(Path::new(&format!("/proc/{pid}/exe")))
}

/// All daemons are in the log, with the executables that run.
fn assert_daemons(device: &Device) {
    let starts = wait_for("all three daemons in the log", || {
        Some(records(device, "daemon-start")).filter(|starts| starts.len() == 3)
    });
    for daemon in Daemon::ALL {
        let of = |content: &&Value| content["daemon"] == daemon.name();
        let start = starts.iter().find(of).unwrap();
        assert_eq!(start["executable"], executable(device.pid(daemon)).as_str());
        // Only keyd speaks of itself without a uid that the kernel tells.
        let uid = format!("uid:{}", rustix::process::geteuid().as_raw());
        let source = if daemon == Daemon::Keyd { "keyd" } else { &uid };
        assert_eq!(start["source"], source, "{start}");
    }
}

fn replay(device: &Device) -> (Option<i32>, String) {
    let replayed = device.edgekeep(&["integrity", "replay"]);
    (replayed.status.code(), String::from_utf8(replayed.stdout).unwrap())
}

fn stop(device: &mut Device) {
    for daemon in [Daemon::Moduled, Daemon::Identityd, Daemon::Keyd] {
        assert!(device.stop(daemon).success());
    }
}

#[test]
fn each_daemon_and_each_module_is_in_the_log_with_the_executable_that_runs() {
    let mut device = Device::builder().start();
    assert_daemons(&device);
    let caller = device.add_caller("m1");
    // The start was answered after it was recorded.
    let starts = records(&device, "module-start");
    let started = starts.iter().find(|content| content["module"] == "m1").unwrap();
    assert_eq!(started["executable"], executable(device.processes_of("m1")[0]).as_str());
    drop(caller);
    // Without a TPM nothing shows that the log is whole, and that is said.
    let (code, text) = replay(&device);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("no TPM binds this log"), "{text}");
    // Starting all of it again says nothing new.
    let of_starts = |device: &Device| {
        records(device, "daemon-start").len() + records(device, "module-start").len()
    };
    let before = of_starts(&device);
    stop(&mut device);
    device.start_daemons();
    let again = device.agent().manage("POST", &format!("/modules/m1/restart?{VERSION}"), None);
    let _ = again.expect(204);
    assert_eq!(of_starts(&device), before);
    assert!(!device.log(Daemon::Moduled).contains("not-measured"));
    assert!(!device.log(Daemon::Identityd).contains("not-measured"));
}

#[test]
fn status_and_the_identity_of_the_device_tell_the_assurance_and_what_is_lacking() {
    let device = Device::builder().start();
    // The daemons of a test share one user.
    let shown = device.edgekeep(&["status", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["assurance"], json!({"level": "software", "lacks": ["shared-user"]}));
    let text = String::from_utf8(device.edgekeep(&["status"]).stdout).unwrap();
    assert!(text.contains("assurance     software\n"), "{text}");
    assert!(text.contains("not higher: another daemon has keyd's user"), "{text}");
    let client = IdentityClient::new(device.root().identityd_socket());
    let identity = wait_for("the device's identity", || device.block_on(client.device()).ok());
    let Identity::Aziot(identity) = identity else { panic!("{identity:?}") };
    assert_eq!(identity.assurance, Some(Level::Software));
}

#[test]
fn the_registers_of_a_tpm_hold_the_starts_of_all_daemons_and_modules() {
    if swtpm::skip() || parts::missing(&["python3"]) {
        return;
    }
    let tpm = swtpm::Swtpm::start();
    let mut device =
        Device::builder().tables(&format!("[tpm]\ntcti = \"{}\"\n", tpm.tcti())).start();
    assert_daemons(&device);
    drop(device.add_caller("m1"));
    let (code, text) = replay(&device);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(records(&device, "module-start").len(), 2, "the agent and m1");
    stop(&mut device);
    // The TPM's own tools, and a reader of ten lines.
    let tools = tpm.folder("tools");
    tpm.tool_ok(&tools, "tpm2_pcrread", &["-o", "pcr", "sha256:13"]);
    tpm.tool_ok(&tools, "tpm2_nvread", &["-C", "o", "-o", "nv", "0x0180ed01"]);
    let hex = |name: &str| {
        let bytes = fs::read(tools.join(name)).unwrap();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let log = device.root().state_folder(Daemon::Keyd).join("integrity/0000000001.cel");
    let stranger = Command::new("python3").args(["-c", STRANGER]).arg(&log).output().unwrap();
    let replayed = String::from_utf8(stranger.stdout).unwrap();
    assert_eq!(replayed.trim(), format!("{} {}", hex("pcr"), hex("nv")));
}

#[test]
fn a_module_starts_while_keyd_is_away_and_is_in_the_log_once_keyd_is_back() {
    let mut device = Device::builder().start();
    assert_daemons(&device);
    let module = device.add_caller("m1");
    let stop = |device: &Device| {
        device.agent().manage("POST", &format!("/modules/m1/stop?{VERSION}"), None).expect(204)
    };
    let start = |device: &Device| {
        device.agent().manage("POST", &format!("/modules/m1/start?{VERSION}"), None).expect(204)
    };
    let _ = stop(&device);
    let log = device.root().state_folder(Daemon::Keyd).join("integrity/0000000001.cel");
    // keyd forgets that it was started before: else nothing would be new.
    device.kill(Daemon::Keyd);
    fs::remove_file(&log).unwrap();
    let _ = start(&device);
    wait_for("m1 runs", || Some(()).filter(|()| !device.processes_of("m1").is_empty()));
    let problem = |device: &Device| {
        let problems = device.edgekeep(&["status", "--json"]);
        let shown: Value = serde_json::from_slice(&problems.stdout).unwrap();
        shown.to_string().contains(Code::NotMeasured.word())
    };
    wait_for("it is told that the start is not recorded", || {
        Some(()).filter(|()| problem(&device))
    });
    device.start(Daemon::Keyd);
    let started = wait_for("m1 in the log", || {
        records(&device, "module-start").into_iter().find(|content| content["module"] == "m1")
    });
    assert_eq!(started["executable"], executable(device.processes_of("m1")[0]).as_str());
    wait_for("that is over", || Some(()).filter(|()| !problem(&device)));
    drop(module);
}
