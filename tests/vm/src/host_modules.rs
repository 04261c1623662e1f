//! Programs of the host as modules, with limits on cgroup v2.

use std::os::unix::fs::MetadataExt as _;

use edgekeep_testkit::add_variable;

use crate::device::{Device, cgroup_of, module_state, process_of, run, says, uid, wait_for};

const MODULE: &str = "limited";
const HOG: &str = "hog";
/// The leave that the package gives moduled.
const LEAVE: &str = "/usr/share/polkit-1/rules.d/50-edgekeep.rules";

pub(crate) fn limits_of_a_host_module_stand_in_its_scope(device: &mut Device) {
    let (caller, mut spec) = device.caller(MODULE, "limited");
    // Its user is known when it runs.
    caller.open_to_all();
    for (name, value) in caller.environment() {
        add_variable(&mut spec, &name, &value);
    }
    device.start(spec);
    let _ = caller.sign().expect(200);
    device.modules.insert(MODULE, caller);
    let process = process_of(MODULE).expect("its process");
    let user = std::fs::metadata(format!("/proc/{process}")).unwrap().uid();
    assert!(user >= 0x7000_0000 && user != uid("edgekeep-moduled"), "a user of its own: {user}");
    let group = group_with_limits();
    device.remark(format!("its group: {group}; status: {}", module_state(MODULE)));
    assert!(group.ends_with("/edgekeep.slice/edgekeep-m-limited.scope"), "{group}");
}

pub(crate) fn without_leave_to_make_scopes_limits_stand_below_moduleds_own_group(
    device: &mut Device,
) {
    let aside = format!("{LEAVE}.aside");
    says("mv", &[LEAVE, &aside]);
    says("systemctl", &["restart", "polkit.service"]);
    let restarted = device.manage("POST", &format!("/modules/{MODULE}/restart"), None);
    says("mv", &[&aside, LEAVE]);
    let _ = restarted.expect(204);
    wait_for("the module's token", || device.module(MODULE).try_signed());
    let (group, state) = (group_with_limits(), module_state(MODULE));
    device.remark(format!("its group: {group}; status: {state}"));
    assert!(group.contains("/system.slice/edgekeep-moduled.service/edgekeep-"), "{group}");
    let why = state["runtimeStatus"]["description"].as_str().unwrap_or_default();
    assert!(why.contains("no systemd unit of its own (") && why.contains("by cgroup v2"), "{why}");
}

/// The group of the module's process, which has its limits.
fn group_with_limits() -> String {
    let group = cgroup_of(process_of(MODULE).expect("its process"));
    for (file, value) in [
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("cpu.max", "50000 100000"),
        ("pids.max", "32"),
    ] {
        let found =
            std::fs::read_to_string(group.join(file)).unwrap_or_else(|error| error.to_string());
        assert_eq!(found.trim(), value, "{file} in {}", group.display());
    }
    group.display().to_string()
}

pub(crate) fn a_host_module_that_uses_more_memory_than_it_may_is_ended(device: &mut Device) {
    let (_, spec) = device.caller(HOG, HOG);
    device.start(spec);
    let state = wait_for("its end", || {
        let state = module_state(HOG);
        (state["runtimeStatus"]["status"] != "running").then_some(state)
    });
    device.remark(format!("{state}"));
    assert_eq!(state["exitStatus"]["statusCode"], "137", "{state}");
    let oom = String::from_utf8_lossy(&run("dmesg", &[]).stdout).into_owned();
    assert!(oom.contains("Memory cgroup out of memory"), "the kernel ended it for want of memory");
    let _ = device.module(MODULE).sign().expect(200);
}
