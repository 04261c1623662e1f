//! Keys on a token.

use super::*;

#[test]
fn keys_on_a_token_are_made_used_and_found_again_and_are_not_in_files() {
    if parts::missing(&["softhsm2-util", SOFTHSM, "openssl"]) {
        return;
    }
    let mut device = Device::with_token();
    device.start();
    let (handle, mac) = run(async {
        let keys = device.keys();
        let pair = keys.create_key_pair("pair", Some("ec-p256")).await.unwrap();
        assert!(signs(&keys, &pair, device.folder.path()).await);
        let key = keys.create_key("key", "sign").await.unwrap();
        let mac = hmac(&keys, &key).await.unwrap();
        let derived = keys.derive_key(&key, b"data").await.unwrap();
        assert_ne!(hmac(&keys, &derived).await.unwrap(), mac);
        // No token has keys for both; this one goes to files.
        keys.create_key("both", "sign,encrypt").await.unwrap();
        (key, mac)
    });
    device.stop();
    device.start();
    run(async {
        let keys = device.keys();
        assert_eq!(
            hmac(&keys, &handle).await.unwrap(),
            mac,
            "an old handle finds the key on the token"
        );
        let pair = keys.load_key_pair("pair").await.unwrap();
        assert!(signs(&keys, &pair, device.folder.path()).await);
        assert_eq!(refusal(keys.load_key_pair("other").await).0, 400);
        // A preloaded key has the name on the token that its URI gives it.
        keys.create_key_pair("preloaded", Some("ec-p256")).await.unwrap();
    });
    let folder = device.root.state_folder(Daemon::Keyd).join("keys");
    let names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.len() == 1 && names[0].to_str().unwrap().starts_with("both-"), "{names:?}");
    let listed = Command::new("pkcs11-tool")
        .args([
            "--module",
            SOFTHSM,
            "--token-label",
            "edge",
            "--login",
            "--pin",
            PIN,
            "--list-objects",
        ])
        .env("SOFTHSM2_CONF", device.path("softhsm2.conf"))
        .output();
    if let Ok(listed) = listed {
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("pair") && listed.contains("made elsewhere"), "{listed}");
    }
    let log = device.log();
    for (key, place) in [("pair", "pkcs11"), ("key", "pkcs11"), ("both", "software")] {
        let lines = log
            .lines()
            .filter(|line| line.contains("made a key") && line.contains(&format!("key={key} ")));
        let lines: Vec<&str> = lines.collect();
        assert!(lines.len() == 1 && lines[0].contains(place), "{key}: {log}");
    }
    assert!(!log.contains(PIN), "{log}");
    device.stop();
}

#[test]
fn a_token_that_is_absent_stops_only_its_keys_and_is_used_when_it_is_back() {
    if parts::missing(&["softhsm2-util", SOFTHSM]) {
        return;
    }
    let mut device = Device::with_token();
    // The token's folder comes and goes, so that what has to be within reach is the
    // folder around it.
    let mut settings = token_settings();
    settings["sandbox"] = json!({"paths": [device.path("softhsm")]});
    device.set(&settings);
    device.start();
    let (handle, mac) = run(async {
        let keys = device.keys();
        let key = keys.create_key("key", "sign").await.unwrap();
        let mac = hmac(&keys, &key).await.unwrap();
        (key, mac)
    });
    device.stop();
    // It is not plugged in at start.
    fs::rename(device.path("softhsm/tokens"), device.path("softhsm/away")).unwrap();
    fs::create_dir(device.path("softhsm/tokens")).unwrap();
    device.start();
    assert!(device.log().contains("the token cannot be used now"), "{}", device.log());
    run(async {
        let keys = device.keys();
        for refused in [
            refusal(hmac(&keys, &handle).await),
            refusal(keys.create_key("key", "sign").await),
            refusal(keys.create_key_pair("pair", None).await),
            refusal(keys.load_key("key").await),
        ] {
            assert_eq!(refused, (500, "internal error".to_owned()));
        }
        let log = device.log();
        let causes = log
            .lines()
            .filter(|line| line.contains("internal error") && line.contains("plug it in"))
            .count();
        assert_eq!(causes, 4, "{log}");
        // And now it is.
        fs::remove_dir(device.path("softhsm/tokens")).unwrap();
        fs::rename(device.path("softhsm/away"), device.path("softhsm/tokens")).unwrap();
        assert_eq!(hmac(&keys, &handle).await.unwrap(), mac);
        keys.create_key_pair("pair", None).await.unwrap();
        // Pulled out while it is in use.
        fs::rename(device.path("softhsm/tokens"), device.path("softhsm/away")).unwrap();
        assert_eq!(
            refusal(keys.create_key_pair("new", None).await),
            (500, "internal error".to_owned())
        );
        fs::rename(device.path("softhsm/away"), device.path("softhsm/tokens")).unwrap();
        keys.create_key_pair("new", None).await.unwrap();
        assert_eq!(hmac(&keys, &handle).await.unwrap(), mac);
    });
    assert!(!device.log().contains(PIN), "{}", device.log());
    device.stop();
}

#[test]
fn a_library_that_does_not_load_is_named_in_the_log_and_in_no_answer() {
    let library = "/no/such/library.so";
    let mut device =
        Device::new(&json!({"pkcs11": {"library": library, "base_slot": "pkcs11:token=edge"}}));
    device.start();
    run(async {
        let refused = refusal(device.keys().create_key("key", "sign").await);
        assert_eq!(refused, (500, "internal error".to_owned()));
    });
    let log = device.log();
    assert!(
        log.lines().any(|line| line.contains("internal error") && line.contains(library)),
        "{log}"
    );
    device.stop();
}
