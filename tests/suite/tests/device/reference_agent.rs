//! The reference agent applies a deployment by itself: nothing speaks to the device but
//! its files.

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, VERSION, program, wait_for};
use serde_json::{Value, json};

fn deployment(modules: &Value) -> Value {
    json!({ "modulesContent": { "$edgeAgent": { "properties.desired": {
        "schemaVersion": "1.1",
        "runtime": { "type": "docker", "settings": {} },
        "systemModules": {},
        "modules": modules,
    } } } })
}

fn thermometer(report: &std::path::Path, hub_ca: &std::path::Path) -> Value {
    let options = json!({ "Env": [
        "EDGEKEEP_DEMO_PERIOD=1",
        format!("EDGEKEEP_DEMO_REPORT={}", report.display()),
        format!("EDGEKEEP_DEMO_HUB_CA={}", hub_ca.display()),
    ] });
    json!({ "type": "process", "status": "running", "restartPolicy": "always",
        "settings": { "image": "thermometer", "createOptions": options.to_string() } })
}

#[test]
fn a_deployment_is_applied_changed_and_taken_back() {
    let mut device = Device::builder()
        .host_module("thermometer", program("thermometer"))
        .reference_agent(&deployment(&json!({})))
        .start();
    let manifest = device.root().path().join("deployment.json");
    let report = device.root().path().join("report.jsonl");
    let apply = |modules: Value| {
        // In one step, as an agent may read it at any time.
        let next = manifest.with_extension("next");
        std::fs::write(&next, deployment(&modules).to_string()).unwrap();
        std::fs::rename(&next, &manifest).unwrap();
    };
    apply(json!({ "thermometer": thermometer(&report, &device.root().path().join("cloud.pem")) }));
    let accepted = |device: &Device| -> u64 {
        let state = device.cloud().state();
        let module = state.devices.get("press-04").and_then(|it| it.modules.get("thermometer"));
        module.map_or(0, |module| module.accepted_messages)
    };
    wait_for("a message at the hub", || (accepted(&device) > 0).then_some(()));
    let before = device.processes_of("thermometer");
    assert_eq!(before.len(), 1);

    // All daemons are replaced, as by an upgrade: the agent and the module go on,
    // untouched.
    for daemon in Daemon::ALL.into_iter().rev() {
        assert!(device.stop(daemon).success());
    }
    device.start_daemons();
    let sent = accepted(&device);
    wait_for("more messages", || (accepted(&device) > sent + 1).then_some(()));
    assert_eq!(device.processes_of("thermometer"), before);

    // A module that crashes is started again, by the agent.
    let pid = rustix::process::Pid::from_raw(i32::try_from(before[0]).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait_for("another process", || {
        device.processes_of("thermometer").into_iter().find(|pid| *pid != before[0])
    });
    let sent = accepted(&device);
    wait_for("more messages", || (accepted(&device) > sent).then_some(()));

    // Out of the deployment, off the device.
    apply(json!({}));
    wait_for("the module to be gone", || {
        let modules = device.ask("GET", &format!("/modules?{VERSION}"), None).expect(200);
        (modules["modules"].as_array().unwrap().len() == 1).then_some(())
    });
    assert_eq!(device.processes_of("thermometer"), Vec::<u32>::new());
}
