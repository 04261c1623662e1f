//! Keys that go while nobody looks: they are missed, and not made anew without a word.

use std::fs;
use std::path::Path;

use edgekeep_core::layout::{Daemon, Root};
use serde_json::json;

use crate::{Keyd, refused};

const MASTER: &str = "aziot_identityd_master_id";

fn state(folder: &Path) -> std::path::PathBuf {
    Root::new(folder).state_folder(Daemon::Keyd)
}

/// Removes the files of all keys, or of keyd's own.
fn remove_keys(folder: &Path, name_space: &str) {
    let mut removed = 0;
    for entry in fs::read_dir(state(folder).join(name_space)).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        removed += 1;
    }
    assert!(removed > 0);
}

#[test]
fn a_key_that_is_gone_is_an_error_until_its_loss_is_accepted_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let keyd = Keyd::start(folder.path());
    let before = keyd.hmac(&keyd.key(MASTER));
    keyd.handle("/keypair", &json!({"keyId": "pair", "preferredAlgorithms": "ec-p256"}));
    keyd.stop();
    remove_keys(folder.path(), "keys");

    let keyd = Keyd::start(folder.path());
    assert!(keyd.log().contains("key-lost"), "said at the start: {}", keyd.log());
    for _ in 0..2 {
        let made = keyd.post("/key", &json!({"keyId": MASTER, "usage": "derive"}));
        refused(made, 500, "edgekeep keys accept-loss aziot_identityd_master_id");
        refused(keyd.post("/keypair", &json!({"keyId": "pair"})), 500, "was there and is gone");
    }
    // Others are made as ever.
    let _ = keyd.key("another");
    keyd.stop();

    fs::write(
        state(folder.path()).join("accepted-losses"),
        format!("{MASTER}\nnever-there\nno key id\n"),
    )
    .unwrap();
    let keyd = Keyd::start(folder.path());
    assert_ne!(keyd.hmac(&keyd.key(MASTER)), before, "made anew");
    refused(keyd.post("/keypair", &json!({"keyId": "pair"})), 500, "was there and is gone");
    assert!(!state(folder.path()).join("accepted-losses").exists());
    keyd.stop();
}

#[test]
fn a_key_that_comes_back_is_the_one_that_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let keyd = Keyd::start(folder.path());
    let before = keyd.hmac(&keyd.key(MASTER));
    keyd.stop();
    let (keys, aside) = (state(folder.path()).join("keys"), folder.path().join("aside"));
    fs::rename(&keys, &aside).unwrap();
    let keyd = Keyd::start(folder.path());
    refused(
        keyd.post("/key", &json!({"keyId": MASTER, "usage": "derive"})),
        500,
        "was there and is gone",
    );
    keyd.stop();
    fs::remove_dir_all(&keys).unwrap();
    fs::rename(&aside, &keys).unwrap();
    let keyd = Keyd::start(folder.path());
    assert_eq!(keyd.hmac(&keyd.key(MASTER)), before);
    keyd.stop();
}

#[test]
fn a_key_that_is_deleted_imported_or_moved_through_the_api_is_no_loss() {
    let folder = tempfile::tempdir().unwrap();
    let keyd = Keyd::start(folder.path());
    let key = keyd.key("k");
    assert_eq!(
        keyd.send("DELETE", "/key", json!({"keyHandle": key}).to_string().as_bytes()).0,
        204
    );
    let _ = keyd.key("k");
    let pair = json!({"keyId": "temp", "preferredAlgorithms": "ec-p256"});
    for _ in 0..2 {
        keyd.handle("/keypair", &pair);
        assert_eq!(keyd.post("/keypair/lasting", &json!({"from": "temp"})).0, 204);
    }
    keyd.stop();
    remove_keys(folder.path(), "keys");
    let keyd = Keyd::start(folder.path());
    // Who brings the key's content makes nothing anew.
    let given = json!({"keyId": "k", "usage": "derive,sign", "keyBytes": "a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2s="});
    assert_eq!(keyd.post("/key", &given).0, 200, "{}", keyd.log());
    keyd.handle("/keypair", &pair);
    refused(keyd.post("/keypair", &json!({"keyId": "lasting"})), 500, "was there and is gone");
    keyd.stop();
}

#[test]
fn a_device_that_had_keys_before_any_was_remembered_starts_and_remembers_them() {
    let folder = tempfile::tempdir().unwrap();
    let keyd = Keyd::start(folder.path());
    let before = keyd.hmac(&keyd.key(MASTER));
    keyd.stop();
    fs::remove_file(state(folder.path()).join("kept")).unwrap();
    let keyd = Keyd::start(folder.path());
    assert_eq!(keyd.hmac(&keyd.key(MASTER)), before);
    keyd.stop();
    remove_keys(folder.path(), "keys");
    let keyd = Keyd::start(folder.path());
    refused(
        keyd.post("/key", &json!({"keyId": MASTER, "usage": "derive"})),
        500,
        "was there and is gone",
    );
    keyd.stop();
}

#[test]
fn keys_of_its_own_are_made_anew_and_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let keyd = Keyd::start(folder.path());
    let _ = keyd.key("k");
    keyd.stop();
    remove_keys(folder.path(), "internal");
    let keyd = Keyd::start(folder.path());
    let log = keyd.log();
    for name in ["handle-validation-key", "audit-checkpoint-key"] {
        assert!(
            log.lines().any(|line| line.contains("own-key-remade") && line.contains(name)),
            "{name}: {log}"
        );
    }
    let _ = keyd.key("k");
    keyd.stop();
    let keyd = Keyd::start(folder.path());
    assert_eq!(
        keyd.log().matches("handle-validation-key").count(),
        log.matches("handle-validation-key").count()
    );
    keyd.stop();
}
