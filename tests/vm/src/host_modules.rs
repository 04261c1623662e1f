//! Programs of the host as modules, with limits on cgroup v2.

use edgekeep_testkit::{add_variable, wait_for};

use crate::device::{Device, cgroup_of, module_state, process_of, run, uid};

const MODULE: &str = "limited";
const HOG: &str = "hog";

pub(crate) fn limits_of_a_host_module_stand_in_its_control_group(device: &mut Device) {
    let (caller, mut spec) = device.caller(MODULE, "limited");
    caller.give_to(uid("edgekeep-moduled"));
    for (name, value) in caller.environment() {
        add_variable(&mut spec, &name, &value);
    }
    device.start(spec);
    let _ = caller.sign().expect(200);
    let pid = process_of(MODULE).expect("its process");
    let group = cgroup_of(pid);
    device.remark(format!("its group: {}; status: {}", group.display(), module_state(MODULE)));
    for (file, value) in
        [("memory.max", "67108864"), ("memory.swap.max", "0"), ("cpu.max", "50000 100000"), ("pids.max", "32")]
    {
        let found = std::fs::read_to_string(group.join(file)).unwrap_or_else(|error| error.to_string());
        assert_eq!(found.trim(), value, "{file} in {}", group.display());
    }
    device.modules.insert(MODULE, caller);
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
