//! identityd on a compatible keys service: provisioning, modules and certificates by
//! published calls alone.

use std::process::Command;

use edgekeep_api::certd::{CreateCertificate, Issuer};
use edgekeep_api::identityd::{AziotIdentity, Identity};
use edgekeep_core::settings::{Issuance, IssuanceMethod};
use edgekeep_testkit::Compatible;

use crate::certificates::{CA, leaf_request};
use crate::harness::{Device, cloud, manual};

fn aziot(identity: Identity) -> AziotIdentity {
    let Identity::Aziot(identity) = identity else { panic!("{identity:?}") };
    identity
}

#[tokio::test]
async fn a_device_its_modules_and_its_ca_live_on_a_compatible_keys_service_and_survive_another_store_of_it()
 {
    let sim = cloud().await;
    let mut device = Device::new(&sim, manual(&sim)).await;
    device.stop_keyd().await;
    let keys = Compatible::keys_alone(&device.root);
    let issuance = Issuance {
        method: IssuanceMethod::SelfSigned,
        common_name: None,
        expiry_days: Some(90),
        renewal: None,
    };
    device.settings.cert_issuance.insert(CA.parse().unwrap(), issuance);
    device.start().await;
    device.until_device(|identity| identity.device_id == "press-05").await;

    let made = aziot(device.identities().create_module("m1").await.unwrap());
    let handle = made.auth.unwrap().key_handle.unwrap();
    let mechanism = || edgekeep_api::keyd::SignMechanism::HmacSha256 { message: b"m"[..].into() };
    let signature = device.keys().sign(&handle, mechanism()).await.unwrap();

    // The CA's request is made as our module runtime makes it, with a key that the
    // service made.
    let pair = device.keys().create_key_pair(CA, Some("ec-p256")).await.unwrap();
    let folder = device.folder.path().join("compatible");
    let run = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(&folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let mut request =
        vec!["req", "-new", "-key", "aziot-edged-ca.key", "-subj", "/CN=edge CA", "-out", "ca.csr"];
    for extension in [
        "basicConstraints=critical,CA:TRUE,pathlen:0",
        "keyUsage=critical,digitalSignature,keyCertSign",
    ] {
        request.extend_from_slice(&["-addext", extension]);
    }
    run(&request);
    let csr = std::fs::read_to_string(folder.join("ca.csr")).unwrap();
    let request = CreateCertificate { cert_id: CA.to_owned(), csr, issuer: None, not_after: None };
    let ca = device.certificates().create(&request).await.unwrap();
    let leaf = |private_key_handle| CreateCertificate {
        cert_id: "aziot-edged/module/m1:1:server".to_owned(),
        csr: leaf_request("m1.press.test"),
        issuer: Some(Issuer { cert_id: CA.to_owned(), private_key_handle }),
        not_after: None,
    };
    let chain = device.certificates().create(&leaf(pair.clone())).await.unwrap();
    std::fs::write(folder.join("ca.pem"), &ca).unwrap();
    std::fs::write(folder.join("leaf.pem"), &chain).unwrap();
    run(&["verify", "-x509_strict", "-CAfile", "ca.pem", "leaf.pem"]);

    // Another store: every handle is void, and each service asks for new ones by itself.
    keys.forget_handles();
    assert!(device.keys().sign(&handle, mechanism()).await.is_err());
    let error = device.certificates().create(&leaf(pair)).await.unwrap_err();
    assert!(
        edgekeep_api::is_worth_a_fresh_handle(&error, edgekeep_api::Recipient::Certificates),
        "the refusal of the keys service is passed on as one of the handle: {error}"
    );
    device.identities().update_module("m1").await.unwrap();
    let again =
        aziot(device.identities().module("m1").await.unwrap()).auth.unwrap().key_handle.unwrap();
    assert_eq!(device.keys().sign(&again, mechanism()).await.unwrap(), signature, "the same key");
    let pair = device.keys().load_key_pair(CA).await.unwrap();
    device.certificates().create(&leaf(pair)).await.unwrap();
    let calls = keys.calls();
    assert!(
        calls.iter().all(|call| call.version == "2020-09-01" && call.status != 401),
        "{calls:#?}"
    );
}
