//! Bounds of what one uid, and what one key file, can take of keyd.

use edgekeep_core::settings::AuditLogSettings;

use super::*;

fn settings() -> KeydSettings {
    KeydSettings {
        principals: vec![KeyPrincipal {
            uid: uid(),
            keys: vec!["*".into()],
            ..KeyPrincipal::default()
        }],
        auditors: vec![uid()],
        ..KeydSettings::default()
    }
}

fn delete(device: &Device, handle: &str) {
    let (status, answer) =
        device.send("DELETE", "/key", &json!({ "keyHandle": handle }).to_string());
    assert_eq!(status, 204, "{answer}");
}

#[test]
fn a_uid_makes_as_many_keys_as_it_may_and_others_still_make_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let few = || KeydSettings { keys_per_uid: Some(3), ..settings() };
    let device = Device::start_as(folder.path(), few());
    let (one, _) = (device.key("one"), device.key("two"));
    device.pair("pair", "ec-p256");
    let create = |id: &str| device.post("/key", &json!({"keyId": id, "usage": "sign"}));
    refused(create("more"), 403, "keys_per_uid in [aziot_keys]");
    refused(device.post("/keypair", &json!({"keyId": "more"})), 403, "has made 3 keys");
    let imported = json!({"keyId": "more", "usage": "sign", "keyBytes": b64(b"bytes")});
    refused(device.post("/key", &imported), 403, "delete keys that nothing needs");
    let entry = device.last_entry();
    assert_eq!(
        (&entry["what"], &entry["reason"]),
        (&json!("import"), &json!("too-many-keys")),
        "{entry}"
    );
    // What is there is got, used and replaced.
    assert_eq!(create("one").0, 200);
    let _ = device.import("two", b"other bytes");
    // A key that has moved counts once; one that is gone does not.
    assert_eq!(device.post("/keypair/moved", &json!({"from": "pair"})).0, 204);
    refused(create("more"), 403, "has made 3 keys");
    delete(&device, &one);
    assert_eq!(create("more").0, 200);
    refused(create("pair"), 403, "has made 3 keys");
    drop(device);
    // A keyd that was started anew still knows.
    let device = Device::start_as(folder.path(), few());
    refused(
        device.post("/key", &json!({"keyId": "fourth", "usage": "sign"})),
        403,
        "has made 3 keys",
    );
    drop(device);
    // Keys that went behind its back are found to be gone. What is damaged is set aside,
    // and stops nothing.
    let state = Root::new(folder.path()).state_folder(Daemon::Keyd);
    for entry in std::fs::read_dir(state.join("keys")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let device = Device::start_as(folder.path(), few());
    for id in ["a", "b", "c"] {
        device.key(id);
    }
    drop(device);
    std::fs::write(state.join("makers"), b"junk").unwrap();
    let device = Device::start_as(folder.path(), few());
    let _ = device.key("d");
    assert!(
        std::fs::read_dir(&state).unwrap().any(|it| it
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .starts_with("makers."))
    );
}

#[test]
fn a_uid_that_has_used_up_its_share_of_the_log_has_equal_uses_counted_and_each_use_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let audit_log =
        AuditLogSettings { entries_per_uid_hour: Some(60), ..AuditLogSettings::default() };
    let bounded = || KeydSettings { audit_log: audit_log.clone(), ..settings() };
    let device = Device::start_as(folder.path(), bounded());
    let (one, other) = (device.key("one"), device.key("other"));
    for _ in 0..500 {
        let _ = device.hmac(&one, b"m");
    }
    for _ in 0..20 {
        let _ = device.hmac(&other, b"m");
    }
    let wrong =
        json!({"keyHandle": other, "algorithm": "ECDSA", "parameters": {"digest": b64(&[1; 32])}});
    for _ in 0..5 {
        assert_eq!(device.post("/sign", &wrong).0, 400);
    }
    let sum = |entries: &[Value], key: &str, result: &str| -> u64 {
        let of = |entry: &&Value| {
            entry["what"] == "sign" && entry["key"] == key && entry["result"] == result
        };
        entries.iter().filter(of).map(|entry| entry["count"].as_u64().unwrap_or(1)).sum()
    };
    let entries = device.audit();
    assert!(entries.len() < 70, "{}", entries.len());
    assert_eq!((sum(&entries, "one", "done"), sum(&entries, "other", "done")), (500, 20));
    assert_eq!(sum(&entries, "other", "failed"), 5);
    let counted = entries.iter().find(|entry| entry["count"].is_u64()).unwrap();
    assert!(counted["since"].as_str().unwrap().ends_with('Z'), "{counted}");
    // What is counted when keyd ends is in the log as well.
    let before = entries.len();
    for _ in 0..7 {
        let _ = device.hmac(&other, b"m");
    }
    drop(device);
    let device = Device::start_as(folder.path(), bounded());
    let entries = device.audit();
    assert_eq!((entries.len(), sum(&entries, "other", "done")), (before + 1, 27));
}

#[test]
fn a_key_file_that_would_never_end_is_refused_at_once_and_stops_no_other_key() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let (stuck, ready) = (device.key("stuck"), device.key("ready"));
    let before = device.hmac(&ready, b"m");
    let keys = device.root.state_folder(Daemon::Keyd).join("keys");
    drop(device);
    let names = std::fs::read_dir(&keys).unwrap().map(|entry| entry.unwrap().path());
    let file = names
        .into_iter()
        .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("stuck-"))
        .unwrap();
    std::fs::remove_file(&file).unwrap();
    // Nobody ever writes to it: who waited for its content would wait for ever.
    rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let device = Device::start(folder.path());
    let body = json!({"keyHandle": stuck, "algorithm": "HMAC-SHA256", "parameters": {"message": b64(b"m")}});
    std::thread::scope(|scope| {
        // More than there are threads that may wait.
        let asked: Vec<_> = (0..6).map(|_| scope.spawn(|| device.post("/sign", &body))).collect();
        for _ in 0..20 {
            assert_eq!(device.hmac(&ready, b"m"), before);
        }
        for asked in asked {
            let (status, answer) = asked.join().unwrap();
            assert!(matches!(status, 400 | 500), "{answer}");
        }
    });
    assert_eq!(device.hmac(&ready, b"m"), before);
}
