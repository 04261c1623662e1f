//! The daemons restarted under modules that run.

use std::path::Path;

use edgekeep_core::layout::Daemon;

use crate::device::{Device, PAYLOAD, process_of, property, root, says, unit, wait_for};

pub(crate) fn a_restart_of_moduled_leaves_containers_and_host_modules_running(device: &mut Device) {
    modules_go_on(device, || {
        says("systemctl", &["restart", &unit(Daemon::Moduled)]);
    });
}

pub(crate) fn an_upgrade_leaves_containers_and_host_modules_running(device: &mut Device) {
    let starts = || Daemon::ALL.map(|daemon| property(&unit(daemon), "MainPID"));
    let before = starts();
    modules_go_on(device, || {
        says("dpkg", &["--install", &format!("{PAYLOAD}/edgekeep.deb")]);
    });
    for (old, new) in before.into_iter().zip(starts()) {
        assert_ne!(old, new, "each daemon runs the new program");
    }
}

/// Removing takes the programs and stops the daemons; the keys go only with a purge.
pub(crate) fn removing_keeps_the_keys_and_purging_takes_them(_: &mut Device) {
    let keys = Path::new("/var/lib/edgekeep/keyd");
    says("dpkg", &["--remove", "edgekeep"]);
    for daemon in Daemon::ALL {
        assert_eq!(property(&unit(daemon), "ActiveState"), "inactive", "{}", daemon.name());
    }
    assert!(!root().keyd_socket().exists(), "no socket is left open");
    assert!(keys.read_dir().is_ok_and(|mut files| files.next().is_some()), "the keys are kept");
    assert!(root().config_file().exists(), "and the configuration");
    says("dpkg", &["--purge", "edgekeep"]);
    for gone in ["/var/lib/edgekeep", "/etc/edgekeep"] {
        assert!(!Path::new(gone).exists(), "{gone}");
    }
}

/// Modules that run are not touched by what is done, and are served after it.
fn modules_go_on(device: &mut Device, done: impl FnOnce()) {
    let container =
        || says("docker", &["inspect", "--format", "{{.State.StartedAt}}", "thermometer"]);
    let host_modules =
        || ["$edgeAgent", "limited"].map(|module| process_of(module).expect("it runs"));
    let before = (container(), host_modules());
    let digests = ["thermometer", "limited"].map(|module| device.module(module).sign().expect(200));
    done();
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
