//! Data that modules have encrypted: under which key, who can read the data, and on the
//! way to and from the form of existing services.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_api::keyd::{EncryptMechanism, KeysClient};
use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Caller, Device, base64, http, wait_for};
use serde_json::{Value, json};

const V: &str = "api-version=2020-07-07";
/// Initialization vector that existing clients use for everything: the hex digits of a
/// GUID.
const IV: &[u8] = b"5a0c7b40c5d94d6b8f6a3b1e2d4c6f80";

fn encrypt(caller: &Caller, plaintext: &[u8]) -> Vec<u8> {
    let body = json!({ "plaintext": base64(plaintext), "initializationVector": base64(IV) });
    let answer = caller
        .call("POST", &format!("/modules/{{m}}/genid/{{g}}/encrypt?{V}"), Some(body))
        .expect(200);
    STANDARD.decode(answer["ciphertext"].as_str().unwrap()).unwrap()
}

fn decrypt(caller: &Caller, ciphertext: &[u8]) -> Result<Vec<u8>, String> {
    let body = json!({ "ciphertext": base64(ciphertext), "initializationVector": base64(IV) });
    let answer =
        caller.call("POST", &format!("/modules/{{m}}/genid/{{g}}/decrypt?{V}"), Some(body));
    match answer.status {
        200 => Ok(STANDARD.decode(answer.json()["plaintext"].as_str().unwrap()).unwrap()),
        500 => Err(answer.message()),
        other => panic!("{other}: {}", answer.text()),
    }
}

fn generation(device: &Device, module: &str) -> String {
    let list = device.agent().manage("GET", &format!("/identities/?{V}"), None).expect(200);
    let of = |identity: &&Value| identity["moduleId"] == module;
    let identity = list["identities"].as_array().unwrap().iter().find(of).unwrap();
    identity["generationId"].as_str().unwrap().to_owned()
}

/// A ciphertext as existing services make it: under the device's one key.
fn as_existing_services(device: &Device, module: &str, plaintext: &[u8]) -> Vec<u8> {
    let keys = KeysClient::new(device.root().keyd_socket());
    let aad = format!("{module}{}", generation(device, module)).into_bytes();
    device.block_on(async {
        let handle = keys.create_key("iotedge_master_encryption_id", "encrypt").await.unwrap();
        let mechanism = EncryptMechanism::Aead { iv: IV.into(), aad: aad.into() };
        keys.encrypt(&handle, mechanism, plaintext.to_vec()).await.unwrap()
    })
}

/// Has the operator choose how modules' data is encrypted.
fn choose(device: &mut Device, word: &str) {
    let path = device.root().config_file();
    let text = std::fs::read_to_string(&path).unwrap();
    let kept: Vec<&str> =
        text.lines().filter(|line| !line.starts_with("module_encryption")).collect();
    std::fs::write(&path, format!("module_encryption = \"{word}\"\n{}\n", kept.join("\n")))
        .unwrap();
    device.apply();
    device.kill(Daemon::Moduled);
    device.start(Daemon::Moduled);
    // It answers at its management socket a moment before it has bound those of modules.
    let socket = device.module_socket("m1");
    wait_for("the module's socket", || std::os::unix::net::UnixStream::connect(&socket).ok());
}

#[test]
fn the_same_text_under_the_same_iv_is_another_ciphertext_each_time_and_no_byte_of_it_can_be_changed()
 {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let ciphertexts: Vec<_> = (0..20).map(|_| encrypt(&m1, b"text")).collect();
    for (at, ciphertext) in ciphertexts.iter().enumerate() {
        assert_eq!((ciphertext[0], ciphertext.len()), (0x81, 1 + 16 + 1 + 4 + 16));
        assert_eq!(decrypt(&m1, ciphertext).unwrap(), b"text");
        for other in &ciphertexts[..at] {
            // Under one keystream the encrypted text itself would be the same.
            assert_ne!(ciphertext[18..22], other[18..22]);
            assert_ne!(ciphertext[1..17], other[1..17]);
        }
    }
    let good = &ciphertexts[0];
    for at in 0..good.len() {
        for bit in [0x01, 0x80] {
            let mut bad = good.clone();
            bad[at] ^= bit;
            assert!(decrypt(&m1, &bad).is_err(), "byte {at}");
        }
        assert!(decrypt(&m1, &good[..at]).is_err(), "{at} bytes");
    }
    // Neither version of the keys API takes the rest for its own.
    for version in [1, 2] {
        assert!(decrypt(&m1, &[&[version], &good[1..]].concat()).is_err());
        assert!(decrypt(&m1, &[&[version], &good[18..]].concat()).is_err());
    }
    let error = decrypt(&m1, &[&[0x83], &good[1..]].concat()).unwrap_err();
    assert!(error.contains("version 131") && error.contains("later edgekeep"), "{error}");
    // Nor is it read as if a compatible keys service had made its key, and none is made
    // for that.
    let error = decrypt(&m1, &[&[0x82], &good[1..]].concat()).unwrap_err();
    assert!(error.contains("of use there alone"), "{error}");
    let keys = KeysClient::new(device.root().keyd_socket());
    let error = device.block_on(keys.load_key("iotedge_master_encryption_id")).unwrap_err();
    assert!(edgekeep_api::says_absent(&error, edgekeep_api::Recipient::Keys), "{error}");
    // What would not fit into a request to decrypt it is not encrypted.
    let body =
        json!({ "plaintext": base64(&vec![7; 750 * 1024]), "initializationVector": base64(b"x") });
    let answer = m1.call("POST", &format!("/modules/{{m}}/genid/{{g}}/encrypt?{V}"), Some(body));
    answer.expect_error(413, "no request could decrypt them again");
    let largest = vec![7; 750 * 1024 - IV.len()];
    assert_eq!(decrypt(&m1, &encrypt(&m1, &largest)).unwrap(), largest);
}

#[test]
fn another_module_and_another_life_of_the_identity_cannot_read_it_and_a_new_container_of_the_agent_can()
 {
    let device = Device::builder().start();
    // Under the device's one key these two have the same bytes beside the text, if only
    // the generations fit.
    let (m1, m) = (device.add_caller("m1"), device.add_caller("m"));
    let ciphertext = encrypt(&m1, b"text");
    assert!(decrypt(&m, &ciphertext).is_err());
    assert!(decrypt(device.agent(), &ciphertext).is_err());

    let kept = encrypt(device.agent(), b"the agent's store");
    let pid = device.processes_of("$edgeAgent")[0];
    let number = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(number, rustix::process::Signal::KILL).unwrap();
    wait_for("the agent to be there again", || {
        device.processes_of("$edgeAgent").first().is_some_and(|new| *new != pid).then_some(())
    });
    assert_eq!(decrypt(device.agent(), &kept).unwrap(), b"the agent's store");

    for target in ["/modules/m1", "/identities/m1"] {
        let _ = device.agent().manage("DELETE", &format!("{target}?{V}"), None).expect(204);
    }
    std::fs::remove_dir_all(device.root().path().join("calls/m1")).unwrap();
    let m1 = device.add_caller("m1");
    assert!(decrypt(&m1, &ciphertext).is_err(), "of the identity before");
    assert_eq!(decrypt(&m1, &encrypt(&m1, b"new")).unwrap(), b"new");
}

#[test]
fn what_existing_services_encrypted_is_read_until_the_operator_says_otherwise_and_can_be_written_for_a_way_back()
 {
    let mut device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let old = as_existing_services(&device, "m1", b"old");
    let (ciphertext, tag) = old[1..].split_at(old.len() - 17);
    let earliest = [&[1], tag, ciphertext].concat();
    for ciphertext in [&old, &earliest] {
        assert_eq!(decrypt(&m1, ciphertext).unwrap(), b"old");
        let mut bad = ciphertext.clone();
        *bad.last_mut().unwrap() ^= 1;
        assert!(decrypt(&m1, &bad).is_err());
    }
    let new = encrypt(&m1, b"new");
    assert_eq!(new[0], 0x81);

    choose(&mut device, "device-key");
    let (one, other) = (encrypt(&m1, b"back"), encrypt(&m1, b"back"));
    assert_eq!((one[0], one == other), (2, true), "as existing services: the IV is all there is");
    assert_eq!(one, as_existing_services(&device, "m1", b"back"));
    assert_eq!(decrypt(&m1, &one).unwrap(), b"back");
    assert_eq!(decrypt(&m1, &new).unwrap(), b"new", "what is still to be written anew");

    choose(&mut device, "module-key-only");
    assert_eq!(decrypt(&m1, &new).unwrap(), b"new");
    for ciphertext in [&old, &earliest, &one] {
        let error = decrypt(&m1, ciphertext).unwrap_err();
        assert!(error.contains("module_encryption"), "{error}");
    }
    let metrics =
        http::call(&device.root().metrics_socket(Daemon::Moduled), "GET", "/metrics", None)
            .unwrap()
            .text();
    assert!(metrics.contains("edgekeep_decryptions_total{key=\"module-key\"} 1\n"), "{metrics}");
}

#[test]
fn nobody_gets_at_a_modules_key_through_keyd() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let _ = encrypt(&m1, b"text");
    let keys = KeysClient::new(device.root().keyd_socket());
    device.block_on(async {
        // As the uid that has the key: what it is for is the bound.
        let base = keys.load_key("edgekeep-module-data").await.unwrap();
        let derived = keys.derive_key(&base, b"data").await.unwrap();
        for error in [
            keys.export_derived_key(&derived).await.unwrap_err(),
            keys.sign(
                &derived,
                edgekeep_api::keyd::SignMechanism::HmacSha256 { message: b"m".as_slice().into() },
            )
            .await
            .unwrap_err(),
            keys.sign(
                &base,
                edgekeep_api::keyd::SignMechanism::HmacSha256 { message: b"m".as_slice().into() },
            )
            .await
            .unwrap_err(),
        ] {
            assert_eq!(error.status().map(|status| status.as_u16()), Some(401), "{error}");
        }
    });
}
