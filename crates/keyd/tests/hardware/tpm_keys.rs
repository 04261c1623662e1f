//! Keys in a TPM, and the TPM API.

use edgekeep_api::tpmd::AuthKeySlot;

use super::*;

#[test]
fn the_tpm_api_shows_public_keys_and_imports_and_uses_an_authentication_key() {
    if swtpm::skip() {
        return;
    }
    let (swtpm, service) = (Swtpm::start(), Swtpm::start());
    let tools = swtpm.folder("tools");
    swtpm.tool_ok(&tools, "tpm2_changeauth", &["-c", "o", "geheim-o"]);
    swtpm.tool_ok(&tools, "tpm2_changeauth", &["-c", "e", "geheim-e"]);
    let mut settings = tpm_settings(&swtpm);
    fs::write(tools.join("owner"), "geheim-o\n").unwrap();
    settings["owner"] = json!({"file": tools.join("owner")});
    settings["endorsement"] = json!({"value": "geheim-e"});
    let mut device = Device::new(&json!({"tpm": settings}));
    device.start();
    run(async {
        let tpm = device.tpm();
        assert_eq!(
            refusal(tpm.sign_with_auth_key(b"m", AuthKeySlot::Hub).await),
            (500, "internal error".to_owned())
        );
        assert!(device.log().contains("provision the device again"), "{}", device.log());
        let keys = tpm.keys().await.unwrap();
        let (endorsement, storage) =
            (keys.endorsement_key.into_inner(), keys.storage_root_key.into_inner());
        // TPM2B_PUBLIC of an RSA key (algorithm 1): its length, then its type.
        for public in [&endorsement, &storage] {
            assert_eq!(usize::from(public[0]) << 8 | usize::from(public[1]), public.len() - 2);
            assert_eq!(public[2..4], [0, 1]);
        }
        let messages: [&[u8]; 3] = [b"", b"data to sign", &[7; 3000]];
        let (blob, macs) = service::import_blob(&service, &endorsement, &storage, &messages);
        tpm.import_auth_key(blob.clone(), AuthKeySlot::Hub).await.unwrap();
        for (message, mac) in messages.iter().zip(&macs) {
            assert_eq!(tpm.sign_with_auth_key(message, AuthKeySlot::Hub).await.unwrap(), *mac);
        }
        // What is no import blob is a failure like any other.
        assert_eq!(
            refusal(tpm.import_auth_key(vec![0, 1, 7], AuthKeySlot::Hub).await),
            (500, "internal error".to_owned())
        );
        assert!(device.log().contains("five TPM structures"), "{}", device.log());
    });
    device.stop();
    // It survives a restart, and the tools see it where it should be.
    assert!(swtpm.tool_ok(&tools, "tpm2_getcap", &["handles-persistent"]).contains("0x81000100"));
    device.start();
    run(async { device.tpm().sign_with_auth_key(b"m", AuthKeySlot::Hub).await.unwrap() });
    assert!(!device.log().contains("geheim"), "{}", device.log());
    device.stop();
}

#[test]
fn without_a_tpm_in_the_settings_there_is_no_tpm_api() {
    let mut device = Device::new(&json!({}));
    device.start();
    assert!(!device.root.tpmd_socket().exists());
    device.stop();
}

#[test]
fn keys_in_a_tpm_that_is_absent_at_start_are_used_when_it_is_there() {
    if swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let hardware = json!({"tpm": tpm_settings(&swtpm), "places": ["tpm", "files"]});
    let mut device = Device::new(&hardware);
    swtpm.kill();
    device.start();
    run(async {
        let keys = device.keys();
        assert_eq!(
            refusal(keys.create_key_pair("pair", Some("ec-p256")).await),
            (500, "internal error".to_owned())
        );
        assert_eq!(refusal(device.tpm().keys().await), (500, "internal error".to_owned()));
        let log = device.log();
        let causes = log
            .lines()
            .filter(|line| line.contains("cannot be reached"))
            .filter(|line| !line.contains("counter") && !line.contains("measurements"));
        assert_eq!(causes.count(), 3, "at start, and for each request: {log}");
        swtpm.start_again();
        let pair = keys.create_key_pair("pair", Some("ec-p256")).await.unwrap();
        assert!(signs(&keys, &pair, device.folder.path()).await);
        let key = keys.create_key("key", "sign").await.unwrap();
        let mac = hmac(&keys, &key).await.unwrap();
        // Symmetric keys that a TPM does not have go to files.
        keys.create_key("seal", "encrypt").await.unwrap();
        // Both APIs share the TPM.
        device.tpm().keys().await.unwrap();
        // It loses power in between.
        swtpm.kill();
        swtpm.start_again();
        assert_eq!(hmac(&keys, &key).await.unwrap(), mac);
        assert!(signs(&keys, &pair, device.folder.path()).await);
    });
    let blobs = fs::read_dir(device.root.state_folder(Daemon::Keyd).join("tpm")).unwrap();
    assert_eq!(
        blobs.filter(|entry| entry.as_ref().unwrap().path().extension().is_some()).count(),
        2
    );
    device.stop();
}

#[test]
fn keys_that_the_tools_put_into_the_tpm_are_used_and_cannot_be_changed() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tools = swtpm.folder("tools");
    let run_tool = |name: &str, arguments: &[&str]| {
        swtpm.tool_ok(&tools, name, arguments);
        swtpm.tool_ok(&tools, "tpm2_flushcontext", &["-t"]);
    };
    run_tool("tpm2_createprimary", &["-C", "o", "-G", "ecc", "-c", "root.ctx"]);
    for (kind, handle) in
        [("ecc:ecdsa", "0x81000010"), ("hmac", "0x81000011"), ("rsa2048", "0x81000012")]
    {
        let create = ["-C", "root.ctx", "-G", kind, "-u", "k.pub", "-r", "k.priv"];
        let attributes = ["-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign"];
        let decrypts =
            ["-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign|decrypt"];
        run_tool(
            "tpm2_create",
            &[&create[..], if kind == "rsa2048" { &decrypts } else { &attributes }].concat(),
        );
        run_tool("tpm2_load", &["-C", "root.ctx", "-u", "k.pub", "-r", "k.priv", "-c", "k.ctx"]);
        run_tool("tpm2_evictcontrol", &["-C", "o", "-c", "k.ctx", handle]);
    }
    fs::write(tools.join("message"), "message").unwrap();
    run_tool("tpm2_hmac", &["-c", "0x81000011", "-g", "sha256", "-o", "mac", "message"]);
    let preloaded = json!({
        "pair": "tpm:handle=0x81000010", "key": "tpm:handle=0x81000011", "rsa": "tpm:handle=0x81000012",
        "absent": "tpm:handle=0x81000099", "storage": "tpm:handle=0x81000001",
        "file": "tpm:file=/no/such.tpm",
    });
    let mut device =
        Device::new(&json!({"tpm": tpm_settings(&swtpm), "preloaded_keys": preloaded}));
    device.start();
    run(async {
        device.tpm().keys().await.unwrap();
        let keys = device.keys();
        let pair = keys.load_key_pair("pair").await.unwrap();
        assert!(signs(&keys, &pair, device.folder.path()).await);
        let key = keys.create_key("key", "sign").await.unwrap();
        assert_eq!(hmac(&keys, &key).await.unwrap(), fs::read(tools.join("mac")).unwrap());
        let rsa = keys.load_key_pair("rsa").await.unwrap();
        assert_eq!(keys.parameter(&rsa, "algorithm").await.unwrap(), "RSA");
        let mechanism = EncryptMechanism::RsaPkcs1;
        assert_eq!(keys.encrypt(&rsa, mechanism, vec![7; 51]).await.unwrap().len(), 256);
        for absent in ["absent", "storage", "file"] {
            assert!(refusal(keys.load_key_pair(absent).await).1.contains("there is no key"));
        }
        for refused in [
            refusal(keys.delete_key(&key).await),
            refusal(keys.import_key("key", "sign", vec![7; 32]).await),
            refusal(keys.create_key_pair("absent", None).await),
        ] {
            assert!(refused.0 == 400 && refused.1.contains("preloaded"), "{refused:?}");
        }
        let (status, message) = refusal(keys.move_key_pair("pair", "other").await);
        assert!(status == 400 && message.contains("not possible"), "{message}");
        // Others are in files as ever.
        keys.create_key("other", "sign,encrypt").await.unwrap();
    });
    device.stop();
}

#[test]
fn what_is_asked_of_the_tpm_api_is_in_the_log_with_what_came_of_it() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let mut device = device_that_counts(&swtpm);
    device.start();
    run(async {
        let tpm = device.tpm();
        assert_eq!(refusal(tpm.sign_with_auth_key(b"m", AuthKeySlot::Hub).await).0, 500);
        tpm.keys().await.unwrap();
        assert_eq!(refusal(tpm.import_auth_key(vec![0, 1, 7], AuthKeySlot::Hub).await).0, 500);
    });
    device.stop();
    let found = words(&device);
    assert_eq!(found[1..], ["tpm-sign failed", "tpm-keys done", "tpm-import failed"], "{found:?}");
}
