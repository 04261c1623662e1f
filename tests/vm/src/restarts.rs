//! The daemons restarted under modules that run.

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::wait_for;

use crate::device::{Device, process_of, property, says, unit};

pub(crate) fn a_restart_of_moduled_leaves_containers_running(device: &mut Device) {
    let container = || says("docker", &["inspect", "--format", "{{.State.StartedAt}}", "thermometer"]);
    let (before, host_module) = (container(), process_of("limited").expect("it runs"));
    let digest = device.module("thermometer").sign().expect(200);
    says("systemctl", &["restart", &unit(Daemon::Moduled)]);
    assert_eq!(property(&unit(Daemon::Moduled), "ActiveState"), "active");
    assert_eq!(container(), before, "the container was not touched");
    let again = wait_for("the container's token", || device.module("thermometer").try_signed());
    assert_eq!(again.json(), digest);
    let after = process_of("limited");
    device.remark(format!("the host module's process before and after: {host_module}, {after:?}"));
}
