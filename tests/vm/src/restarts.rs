//! The daemons restarted under modules that run.

use edgekeep_core::layout::Daemon;

use crate::device::{Device, process_of, property, says, unit, wait_for};

pub(crate) fn a_restart_of_moduled_leaves_containers_and_host_modules_running(device: &mut Device) {
    let container =
        || says("docker", &["inspect", "--format", "{{.State.StartedAt}}", "thermometer"]);
    let host_modules =
        || ["$edgeAgent", "limited"].map(|module| process_of(module).expect("it runs"));
    let before = (container(), host_modules());
    let digests = ["thermometer", "limited"].map(|module| device.module(module).sign().expect(200));
    says("systemctl", &["restart", &unit(Daemon::Moduled)]);
    assert_eq!(property(&unit(Daemon::Moduled), "ActiveState"), "active");
    assert_eq!((container(), host_modules()), before, "none was touched");
    for (module, digest) in ["thermometer", "limited"].into_iter().zip(digests) {
        let again = wait_for("the module's token", || device.module(module).try_signed());
        assert_eq!(again.json(), digest, "{module}");
    }
    // The agent, which moduled looks after, is believed as well.
    let _ = device.manage("GET", "/modules", None).expect(200);
    assert_eq!(process_of("limited"), Some(before.1[1]));
}
