//! The three daemons as services.

use edgekeep_core::attestation::PeerHandle;
use edgekeep_core::layout::Daemon;
use edgekeep_testkit::http;
use serde_json::Value;

use crate::device::{Device, property, root, run, says, status, unit, wait_for, wait_for_edge_ca};

pub(crate) fn each_daemon_is_ready_under_systemd_as_its_own_user(device: &mut Device) {
    let started = std::time::Instant::now();
    // Does not return before each has said that it serves.
    says(
        "systemctl",
        &["start", &unit(Daemon::Keyd), &unit(Daemon::Identityd), &unit(Daemon::Moduled)],
    );
    device.remark(format!("all three ready after {:.1} s", started.elapsed().as_secs_f64()));
    for daemon in Daemon::ALL {
        let unit = unit(daemon);
        assert_eq!(
            (property(&unit, "ActiveState"), property(&unit, "Type")),
            ("active".into(), "notify".into())
        );
        let pid = property(&unit, "MainPID");
        let user = says("stat", &["--format=%U %G", &format!("/proc/{pid}")]);
        let own = format!("edgekeep-{}", daemon.name());
        assert_eq!(user, format!("{own} {own}"));
        assert_eq!(property(&unit, "NRestarts"), "0", "{unit}");
    }
    for (socket, whose) in [
        (root().keyd_socket(), "660 edgekeep-keyd aziotks"),
        (root().tpmd_socket(), "660 edgekeep-keyd aziottpm"),
        (root().identityd_socket(), "660 edgekeep-identityd aziotid"),
        (root().certd_socket(), "660 edgekeep-identityd aziotcs"),
        (root().management_socket(), "660 edgekeep-moduled iotedge"),
        (root().legacy_workload_socket(), "666 edgekeep-moduled iotedge"),
    ] {
        assert_eq!(says("stat", &["--format=%a %U %G", socket.to_str().unwrap()]), whose);
    }
}

pub(crate) fn the_store_key_is_sealed_by_the_machines_tpm(_: &mut Device) {
    let folder = root().state_folder(Daemon::Keyd);
    wait_for("the sealed store key", || folder.join("store.key.tpm").exists().then_some(()));
    assert!(!folder.join("store.key").exists(), "the store key is in no file of its own");
    says("edgekeep", &["keys", "doctor"]);
}

pub(crate) fn the_device_gets_its_identity_and_says_that_it_is_well(device: &mut Device) {
    wait_for_edge_ca();
    let health = wait_for("a healthy device", || {
        let health = run("edgekeep", &["--json", "status"]);
        let health: Value = serde_json::from_slice(&health.stdout).unwrap_or_default();
        (health["healthy"] == true).then_some(health)
    });
    assert_eq!(health["device"]["deviceId"], crate::device::ID);
    let warnings = health["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|warning| warning["detail"].as_str());
    device.remark(format!("warnings: {}", warnings.collect::<Vec<_>>().join("; ")));
}

pub(crate) fn what_this_kernel_lacks_is_named(device: &mut Device) {
    assert_eq!(status().peer_handle, PeerHandle::PidfdOpen);
    for daemon in Daemon::ALL {
        let sandbox = http::call(&root().metrics_socket(daemon), "GET", "/sandbox", None)
            .unwrap()
            .expect(200);
        let layers = sandbox["layers"].as_array().unwrap();
        let level = |name: &str| {
            let layer = layers
                .iter()
                .find(|layer| layer["name"] == name)
                .unwrap_or_else(|| panic!("{name}: {sandbox}"));
            layer["level"].as_str().unwrap_or_default().to_owned()
        };
        assert_eq!(
            (level("privileges"), level("system calls")),
            ("full".into(), "full".into()),
            "{}",
            daemon.name()
        );
        // As of Landlock's second version, which this kernel has.
        assert!(
            level("files").starts_with("partial: this kernel's Landlock (version 2)"),
            "{sandbox}"
        );
        device.remark(format!(
            "{}: {}; widened: {}",
            daemon.name(),
            level("files"),
            sandbox["widened"]
        ));
    }
}
