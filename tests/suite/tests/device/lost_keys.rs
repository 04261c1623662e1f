//! The key that all module identities come from goes: the device says so, and goes on
//! when the operator accepts the loss.

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, VERSION, wait_for};
use serde_json::{Value, json};

const MASTER: &str = "aziot_identityd_master_id";

#[test]
fn a_lost_master_key_is_told_of_and_made_anew_only_when_the_loss_is_accepted() {
    let mut device = Device::builder().start();
    let _ = device.create_identity("press");
    let keys = device.root().state_folder(Daemon::Keyd).join("keys");
    device.stop(Daemon::Keyd);
    device.stop(Daemon::Identityd);
    let file = std::fs::read_dir(&keys)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_name().unwrap().to_string_lossy().starts_with("aziotidentitydmasterid-")
        })
        .expect("the master key is in a file");
    std::fs::remove_file(file).unwrap();
    device.start(Daemon::Keyd);
    device.start(Daemon::Identityd);
    let create = |device: &Device, module: &str| {
        let body = json!({ "moduleId": module });
        device.agent().manage("POST", &format!("/identities/?{VERSION}"), Some(body))
    };
    let answer = create(&device, "other");
    assert!(answer.status >= 500, "{answer:?}");
    let status = device.edgekeep(&["status", "--json"]);
    assert_eq!(status.status.code(), Some(1), "{status:?}");
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let lost =
        status["problems"].as_array().unwrap().iter().find(|problem| problem["code"] == "key-lost");
    let lost = lost.unwrap_or_else(|| panic!("{status}"));
    assert_eq!(lost["subject"], json!({ "kind": "key", "name": MASTER }));
    assert!(lost["remedy"].as_str().unwrap().contains("accept-loss"), "{lost}");
    let accepted = device.edgekeep(&["keys", "accept-loss", MASTER]);
    assert!(accepted.status.success(), "{accepted:?}");
    device.stop(Daemon::Keyd);
    device.start(Daemon::Keyd);
    wait_for("a module gets an identity again", || {
        (create(&device, "third").status == 200).then_some(())
    });
}
