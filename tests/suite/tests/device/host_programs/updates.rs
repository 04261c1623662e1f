//! Updates of host modules that do not start, or are cut off.

use super::*;

/// Makes a file that passes for a program until it is to be executed.
fn broken(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let mut bytes = std::fs::read("/bin/sleep").unwrap();
    // Its loader is not there.
    let loader = b"/ld-linux";
    let at = bytes.windows(loader.len()).position(|part| part == loader).unwrap();
    bytes[at + 1] = b'n';
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A specification of the module that is served through the caller.
fn spec_of(device: &Device, caller: &Caller, image: &str) -> Value {
    let generation =
        device.cloud().state().devices["press-04"].modules[caller.module()].generation_id.clone();
    let mut spec = device.spec(caller.module(), image, &generation);
    for (name, value) in caller.environment() {
        spec["config"]["env"].as_array_mut().unwrap().push(json!({ "key": name, "value": value }));
    }
    spec
}

fn image_of(device: &Device, module: &str) -> Value {
    state_of(device, module)["config"]["settings"]["image"].clone()
}

#[test]
fn an_update_of_a_host_module_that_does_not_start_says_so_and_leaves_the_old_one_running() {
    let own = folder();
    let program = program("calls");
    let tables = [
        host_module("collector", &program, ""),
        host_module("broken", &broken(own.path(), "broken"), ""),
        host_module("slow", &program, "env = { SLOW = \"1\" }"),
    ];
    let device = Device::builder().tables(&tables.concat()).start();
    let collector = device.add_caller_as("collector", "collector", None);
    let _ = collector.sign().expect(200);
    let put = |spec: Value| {
        device.agent().manage(
            "PUT",
            &versioned("/modules/collector").replace('?', "?start=true&"),
            Some(spec),
        )
    };

    let mut nowhere = spec_of(&device, &collector, "slow");
    nowhere["config"]["settings"]["createOptions"] = json!({ "WorkingDir": "/no/such/folder" });
    for spec in [nowhere, spec_of(&device, &collector, "broken")] {
        let before = device.processes_of("collector");
        put(spec).expect_error(500, "the update of collector failed; the module is as it was");
        assert_eq!(image_of(&device, "collector"), "collector");
        let after = device.processes_of("collector");
        assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
        let _ = collector.sign().expect(200);
    }
    // What is refused before anything is touched leaves the very process.
    let before = device.processes_of("collector");
    put(spec_of(&device, &collector, "unknown")).expect_error(400, "no host module");
    assert_eq!(device.processes_of("collector"), before);
    // And one that works is an update.
    let _ = put(spec_of(&device, &collector, "slow")).expect(201);
    assert_eq!(
        (image_of(&device, "collector"), device.processes_of("collector").len()),
        (json!("slow"), 1)
    );
    let _ = collector.sign().expect(200);
}

#[test]
fn an_approved_executable_that_does_not_start_is_taken_back_with_its_approval_and_the_old_one_runs_from_a_copy()
 {
    let own = folder();
    let target = variant("calls", own.path(), "collector", "version 1");
    let old = sha256_of(&target);
    let tables = [
        host_module("collector", &target, "restart = \"always\""),
        host_module("updater", &program("calls"), "approves = [\"collector\"]"),
    ];
    let mut device = Device::builder().tables(&tables.concat()).start();
    let collector = device.add_caller_as("collector", "collector", None);
    let updater = device.add_caller_as("updater", "updater", None);
    let _ = collector.sign().expect(200);

    let downloads = folder();
    std::fs::rename(broken(downloads.path(), "new"), &target).unwrap();
    let body = json!({ "sha256": sha256_of(&target) });
    let _ =
        updater.manage("PUT", &versioned("/approved-digests/collector"), Some(body)).expect(200);
    let restart = || updater.manage("POST", &versioned("/modules/collector/restart"), None);
    restart().expect_error(500, "the update of collector failed; the module is as it was");

    let shown = || state_of(&device, "collector")["config"]["settings"]["imageHash"].clone();
    assert_eq!((shown(), device.status().approvals.len()), (json!(format!("sha256:{old}")), 0));
    let _ = collector.sign().expect(200);
    // The file is still the other one, which nobody approves any more.
    restart().expect_error(400, "is registered");
    // It comes back by itself all the same, and after the daemon's end too.
    let before = device.processes_of("collector");
    for pid in &before {
        let pid = rustix::process::Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    wait_for("another process", || {
        Some(device.processes_of("collector")).filter(|now| now.len() == 1 && *now != before)
    });
    let _ = collector.sign().expect(200);
    device.kill(Daemon::Moduled);
    device.start(Daemon::Moduled);
    wait_for("the module to be served again", || collector.try_signed().map(drop));
}

/// Reads from the disk the state of the module before an update that is not settled.
fn former(device: &Device) -> Value {
    let path = device.root().state_folder(Daemon::Moduled).join("processes/stubborn/module.json");
    let text = std::fs::read_to_string(path).unwrap();
    // After the line with version and checksum.
    let (_, state) = text.split_once('\n').unwrap();
    serde_json::from_str::<Value>(state).unwrap()["former"].clone()
}

#[test]
fn an_update_of_a_host_module_that_is_cut_off_by_kill_9_leaves_one_that_works() {
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    let tables = [host_module("stubborn", &shell, ""), host_module("other", &shell, "")];
    let mut device = Device::builder().tables(&tables.concat()).start();
    let generation = device.create_identity("stubborn");
    let spec = |image: &str, script: &str| {
        let mut spec = device.spec("stubborn", image, &generation);
        spec["config"]["settings"]["createOptions"] = json!({ "Cmd": ["-c", script] });
        spec
    };
    // Takes the grace that it has when it is stopped.
    let first = spec("stubborn", "trap '' TERM; while :; do sleep 1; done");
    let next = spec("other", "exec sleep 1000");
    device.create_and_start(first);
    let before = state_of(&device, "stubborn")["status"]["startTime"].clone();

    std::thread::scope(|scope| {
        scope.spawn(|| {
            let target = versioned("/modules/stubborn").replace('?', "?start=true&");
            // Its answer never comes.
            let _ = device.agent().call_at(
                &device.root().management_socket(),
                "PUT",
                &target,
                Some(next),
            );
        });
        wait_for("the update to be written down", || (!former(&device).is_null()).then_some(()));
        let pid = i32::try_from(device.pid(Daemon::Moduled)).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    });
    device.kill(Daemon::Moduled);
    device.start(Daemon::Moduled);
    wait_for("the update to be settled", || former(&device).is_null().then_some(()));
    let now = state_of(&device, "stubborn");
    assert_eq!(
        (image_of(&device, "stubborn"), &now["status"]["startTime"]),
        (json!("stubborn"), &before)
    );
    assert_eq!(now["status"]["runtimeStatus"]["status"], "running");
}
