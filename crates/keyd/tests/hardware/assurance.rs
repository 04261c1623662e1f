//! The word that keyd tells about the device, and what lowers it.

use std::time::Instant;

use edgekeep_core::assurance::{Assurance, Lack, Level};

use super::*;

fn told(device: &Device) -> Assurance {
    run(async { device.keys().assurance().await.unwrap() })
}

/// Asks until `lack` is told: an answer is good for a second.
fn wait_for(device: &Device, lack: Lack) -> Assurance {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let assurance = told(device);
        if assurance.lacks.contains(&lack) {
            return assurance;
        }
        assert!(Instant::now() < deadline, "{assurance:?}: {}", device.log());
        std::thread::yield_now();
    }
}

/// The levels in the audit log, with those before.
fn in_the_audit_log(device: &Device) -> Vec<(Option<String>, String)> {
    let folder = device.root.state_folder(Daemon::Keyd).join("audit");
    let read = edgekeep_audit::read(&folder, 0, 10_000, 64 << 20).unwrap();
    let shown = read.entries.iter().map(|entry| serde_json::from_slice::<Shown>(entry).unwrap());
    shown.filter_map(|it| Some((it.was, it.level?))).collect()
}

fn problems(device: &Device) -> String {
    let socket = device.root.metrics_socket(Daemon::Keyd);
    run(async { serde_json::to_string(&OperationsClient::new(socket).problems().await.unwrap()) })
        .unwrap()
}

#[test]
fn without_a_tpm_a_confined_keyd_is_sandboxed_and_one_without_sandbox_is_not() {
    let mut device = Device::new(&json!({}));
    device.start();
    let sandboxed = Assurance { level: Level::Sandboxed, lacks: vec![Lack::NoTpm] };
    assert_eq!(told(&device), sandboxed);
    device.stop();
    device.set(&json!({"sandbox": {"enabled": false}}));
    device.start();
    let software = Assurance { level: Level::Software, lacks: vec![Lack::SandboxOff] };
    assert_eq!(told(&device), software);
    device.stop();
    assert_eq!(
        in_the_audit_log(&device),
        [(None, "sandboxed".to_owned()), (None, "software".to_owned())]
    );
    // Whoever has keyd's user is not kept from the keys.
    let uid = rustix::process::geteuid().as_raw();
    device.set(&json!({"principals": [{"uid": uid, "keys": [], "daemons": ["moduled"]}]}));
    device.start();
    let shared = Assurance { level: Level::Software, lacks: vec![Lack::SharedUser] };
    assert_eq!(told(&device), shared);
    device.stop();
}

#[test]
fn a_tpm_that_is_lost_or_reset_at_run_time_lowers_the_level_at_once_and_is_told() {
    if swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let settings = json!({"tpm": tpm_settings(&swtpm), "seal": "tpm"});
    let mut device = Device::new(&settings);
    device.start();
    let resident = Assurance { level: Level::TpmResident, lacks: vec![Lack::AnyState] };
    assert_eq!(told(&device), resident);
    assert!(!problems(&device).contains("assurance-lowered"));
    swtpm.kill();
    let lost = wait_for(&device, Lack::TpmLost);
    assert_eq!(lost.level, Level::Sandboxed);
    let told_problem = problems(&device);
    assert!(told_problem.contains("it was tpm-resident and is sandboxed"), "{told_problem}");
    // It comes back, but its registers have forgotten what was started.
    swtpm.start_again();
    let reset = wait_for(&device, Lack::TpmReset);
    assert_eq!(reset.level, Level::Sandboxed);
    assert!(problems(&device).contains("assurance-lowered"));
    device.stop();
    let levels = in_the_audit_log(&device);
    let word = |level: Level| level.word().to_owned();
    let (resident, sandboxed) = (word(Level::TpmResident), word(Level::Sandboxed));
    assert_eq!(levels[..2], [(None, resident.clone()), (Some(resident), sandboxed.clone())]);
    assert!(levels[2..].iter().all(|(_, level)| *level == sandboxed), "{levels:?}");
    // A restart of keyd does not make up for it: the log tells of the reset.
    device.start();
    assert_eq!(told(&device), Assurance { level: Level::Sandboxed, lacks: vec![Lack::LogDiffers] });
    device.stop();
}

#[test]
fn a_tpm_in_lockout_or_without_the_store_key_is_no_more_than_a_sandbox() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tools = swtpm.folder("tools");
    let mut device = Device::new(&json!({"tpm": tpm_settings(&swtpm)}));
    device.start();
    let in_file = Assurance { level: Level::Sandboxed, lacks: vec![Lack::StoreKeyInFile] };
    assert_eq!(told(&device), in_file);
    device.stop();
    // One wrong auth value of an index that is protected against guessing is enough.
    let lock = ["-s", "-n", "1", "-t", "3600", "-l", "3600"];
    swtpm.tool_ok(&tools, "tpm2_dictionarylockout", &lock);
    let attributes = "ownerwrite|ownerread|authread|authwrite";
    let define = ["-C", "o", "-s", "8", "-p", "right", "-a", attributes, "0x01801234"];
    swtpm.tool_ok(&tools, "tpm2_nvdefine", &define);
    fs::write(tools.join("eight"), "12345678").unwrap();
    let write = ["-C", "o", "-i", "eight", "0x01801234"];
    swtpm.tool_ok(&tools, "tpm2_nvwrite", &write);
    let wrong = ["-C", "0x01801234", "-P", "wrong", "0x01801234"];
    assert!(!swtpm.tool(&tools, "tpm2_nvread", &wrong).status.success());
    device.start();
    let locked = told(&device);
    assert_eq!(locked.level, Level::Sandboxed);
    assert_eq!(locked.lacks, [Lack::TpmLockout, Lack::StoreKeyInFile]);
    device.stop();
}
