//! Our module runtime on compatible services: keys, certificates and identities by
//! published calls alone.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Behaviour, Compatible, Device, base64};
use serde_json::{Value, json};

use crate::wait_for_edge_ca;

const V: &str = "api-version=2020-07-07";

/// A device whose module runtime is ours, and whose other services are not.
fn mixed(behaviour: Behaviour) -> (Device, Compatible) {
    let mut device = Device::builder().start();
    for daemon in Daemon::ALL {
        device.stop(daemon);
    }
    let services = Compatible::start(device.root(), "hub.example");
    services.behave(behaviour);
    services.add_module("$edgeAgent", "637000000000000001");
    device.start(Daemon::Moduled);
    wait_for_edge_ca(&device);
    (device, services)
}

#[track_caller]
fn openssl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "openssl {arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Writes a module's certificate and the bundle that it is trusted by, and has openssl
/// verify it.
#[track_caller]
fn verify(device: &Device, certificate: &Value, bundle: &Value, options: &[&str]) {
    let folder = device.root().path();
    std::fs::write(folder.join("leaf.pem"), certificate["certificate"].as_str().unwrap()).unwrap();
    std::fs::write(folder.join("leaf.key"), certificate["privateKey"]["bytes"].as_str().unwrap())
        .unwrap();
    std::fs::write(folder.join("bundle.pem"), bundle["certificate"].as_str().unwrap()).unwrap();
    openssl(folder, &[&["verify", "-CAfile", "bundle.pem"], options, &["leaf.pem"]].concat());
    let of_key = openssl(folder, &["pkey", "-in", "leaf.key", "-pubout"]);
    assert_eq!(openssl(folder, &["x509", "-in", "leaf.pem", "-noout", "-pubkey"]), of_key);
}

#[test]
fn a_module_gets_all_its_proofs_from_compatible_services_with_a_ca_of_either_kind_of_key() {
    for rsa_keys in [false, true] {
        let (device, services) = mixed(Behaviour { rsa_keys, ..Behaviour::default() });
        let m1 = device.add_caller("m1");
        let bundle = m1.call("GET", &format!("/trust-bundle?{V}"), None).expect(200);
        let server = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{V}");
        let body = json!({ "commonName": "press-04.plant7", "expiration": "2030-01-01T00:00:00Z" });
        let certificate = m1.call("POST", &server, Some(body)).expect(201);
        verify(
            &device,
            &certificate,
            &bundle,
            &["-purpose", "sslserver", "-verify_hostname", "press-04.plant7"],
        );
        let identity =
            m1.call("POST", &format!("/modules/{{m}}/certificate/identity?{V}"), None).expect(201);
        verify(&device, &identity, &bundle, &["-purpose", "sslclient"]);
        assert_eq!(
            STANDARD.decode(m1.sign().expect(200)["digest"].as_str().unwrap()).unwrap().len(),
            32
        );

        let calls = services.calls();
        let unpublished = ["ec-point-uncompressed"];
        assert!(
            calls.iter().all(|call| !unpublished.contains(&call.segment.as_str())),
            "{calls:#?}"
        );
        let failed: Vec<_> = calls.iter().filter(|call| call.status >= 500).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        // The oldest version that has the route: so older services do too.
        let newer = calls.iter().filter(|call| call.version != "2020-09-01");
        assert!(
            newer.into_iter().all(|call| call.route == "GET /identities/provisioning"),
            "{calls:#?}"
        );
        let wanted = if rsa_keys { "POST /encrypt" } else { "POST /sign" };
        let request = calls.iter().position(|call| call.route == "POST /certificates").unwrap();
        assert!(
            calls[..request].iter().any(|call| call.route == wanted),
            "the CA's key signed its request"
        );
    }
}

#[test]
fn modules_data_is_under_keys_of_modules_without_a_key_that_only_our_keys_service_grants() {
    let (device, services) = mixed(Behaviour::default());
    let (m1, m2) = (device.add_caller("m1"), device.add_caller("m2"));
    let encrypt = format!("/modules/{{m}}/genid/{{g}}/encrypt?{V}");
    let decrypt = format!("/modules/{{m}}/genid/{{g}}/decrypt?{V}");
    let body = json!({ "plaintext": base64(b"text"), "initializationVector": base64(b"iv") });
    let ciphertext =
        m1.call("POST", &encrypt, Some(body.clone())).expect(200)["ciphertext"].clone();
    let bytes = STANDARD.decode(ciphertext.as_str().unwrap()).unwrap();
    // Ours, then that of the keys service.
    assert_eq!((bytes[0], bytes[17]), (0x82, 2));
    let back = json!({ "ciphertext": ciphertext, "initializationVector": base64(b"iv") });
    assert_eq!(
        m1.call("POST", &decrypt, Some(back.clone())).expect(200)["plaintext"],
        base64(b"text")
    );
    assert_eq!(m2.call("POST", &decrypt, Some(back.clone())).status, 500, "another module cannot");
    // What existing services encrypted is read: under the device's key, with the module's
    // own IV.
    let refused = |call: &edgekeep_testkit::Call| call.status == 401;
    let calls = services.calls();
    let refusals: Vec<_> = calls.iter().filter(|call| refused(call)).collect();
    assert_eq!(refusals.len(), 1, "asked for once: {refusals:#?}");
    assert_eq!(refusals[0].body["keyId"], "edgekeep-module-data");
    assert!(device.log(Daemon::Moduled).contains("edgekeep-module-data"), "it is said");
}

#[test]
fn a_keys_service_with_another_store_is_noticed_by_its_answers_and_not_by_their_wording() {
    let (device, services) = mixed(Behaviour::default());
    let m1 = device.add_caller("m1");
    let server = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{V}");
    let encrypt = format!("/modules/{{m}}/genid/{{g}}/encrypt?{V}");
    let ask = || {
        let _ = m1.sign().expect(200);
        let _ = m1.call("POST", &server, Some(json!({ "commonName": "m1" }))).expect(201);
        let body = json!({ "plaintext": base64(b"text"), "initializationVector": base64(b"iv") });
        let _ = m1.call("POST", &encrypt, Some(body)).expect(200);
    };
    ask();
    services.forget_handles();
    // The certificates service hides what the keys service told it: 500.
    ask();
    let calls = services.calls();
    assert!(
        calls.iter().any(|call| (call.route.as_str(), call.status) == ("POST /certificates", 500))
    );
    assert!(calls.iter().any(|call| (call.route.as_str(), call.status) == ("POST /sign", 400)));
    let again = calls.len();
    ask();
    let after = services.calls();
    assert!(
        after[again..].iter().all(|call| call.status < 400),
        "no second try is left: {:#?}",
        &after[again..]
    );
}
