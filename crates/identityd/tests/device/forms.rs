//! Files of certificates and keys in every form that people have them in, wherever the
//! daemons read one: what comes out is read by openssl and Python, and what cannot be
//! used is said.

use std::process::Command;

use edgekeep_api::certd::CreateCertificate;
use edgekeep_api::keyd::SignMechanism;
use edgekeep_core::settings::{IssuanceMethod, LocalCa, PreloadedCert};
use edgekeep_test_plant::{Plant, Says, count_by_openssl, count_by_python, is_strict};
use http::{Method, StatusCode};

use crate::certificates::{issuance, leaf_request, refusal};
use crate::harness::{Device, cloud, manual};

/// A text that stands in no certificate of the plant, and in every PEM of a key.
const OF_A_KEY: &str = "PRIVATE";

async fn bundle(device: &Device) -> String {
    let answer =
        device.ask(Method::GET, "/trust-bundle?api-version=2020-09-01", None).await.unwrap();
    answer["certificate"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn trust_bundles_and_preloaded_certificates_go_out_as_strict_pem_from_every_form() {
    let (plant, sim) = (Plant::new(), cloud().await);
    let mut device = Device::new(&sim, manual(&sim)).await;
    let file = device.folder.path().join("certificates");
    let uri = PreloadedCert::File(format!("file://{}", file.display()));
    let preloaded = &mut device.settings.preloaded_certs;
    preloaded.insert("ours".parse().unwrap(), uri.clone());
    preloaded.insert("trust-bundle-user".parse().unwrap(), uri);
    let list = ["aziot-edged-ca", "trust-bundle-user"].map(|id| id.parse().unwrap()).to_vec();
    preloaded.insert("aziot-edged-trust-bundle".parse().unwrap(), PreloadedCert::List(list));
    device.start().await;
    for form in plant.certificate_forms() {
        std::fs::write(&file, &form.content).unwrap();
        let out = bundle(&device).await;
        assert_eq!(out, form.goes_out, "{}", form.name);
        assert!(is_strict(&out) && !out.contains(OF_A_KEY), "{}", form.name);
        match device.certificates().load("ours").await {
            Ok(pem) => {
                assert_eq!(pem, form.goes_out, "{}", form.name);
                let count = pem.matches("BEGIN").count();
                assert_eq!(
                    (count_by_openssl(&pem), count_by_python(&pem)),
                    (Ok(count), Ok(count)),
                    "{}",
                    form.name
                );
            }
            Err(error) => {
                let (status, message) = refusal(error);
                let Says::Error(part) = form.says else { panic!("{}: {message}", form.name) };
                assert_eq!(
                    (status, form.goes_out.as_str()),
                    (StatusCode::BAD_REQUEST, ""),
                    "{}",
                    form.name
                );
                assert!(
                    message.contains(part) && message.contains("certificates: "),
                    "{}: {message}",
                    form.name
                );
            }
        }
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(bundle(&device).await, "", "a file that is gone takes nothing else down");
}

#[tokio::test]
async fn a_preloaded_key_signs_from_every_form_or_the_caller_is_told_what_to_do() {
    let (plant, sim) = (Plant::new(), cloud().await);
    let mut device = Device::new(&sim, manual(&sim)).await;
    let file = plant.folder().join("preloaded");
    device.preloaded_keys.push(("ours", file.clone()));
    device.restart_keyd().await;
    for form in plant.key_forms() {
        std::fs::write(&file, &form.content).unwrap();
        match (device.keys().load_key_pair("ours").await, form.says) {
            (Ok(handle), Says::Nothing) => {
                let digest = [7; 32];
                let mechanism = SignMechanism::Ecdsa { digest: digest.as_slice().into() };
                let signature = device.keys().sign(&handle, mechanism).await.unwrap();
                std::fs::write(plant.folder().join("digest"), digest).unwrap();
                std::fs::write(plant.folder().join("signature"), signature).unwrap();
                plant.openssl("pkeyutl -verify -inkey root.key -in digest -sigfile signature");
            }
            (Err(error), Says::Error(part)) => {
                let (status, message) = refusal(error);
                assert_eq!(status, StatusCode::BAD_REQUEST, "{}", form.name);
                assert!(
                    message.contains(part) && message.contains("/preloaded"),
                    "{}: {message}",
                    form.name
                );
            }
            (other, says) => panic!("{}: {other:?}, should be {says:?}", form.name),
        }
    }
}

#[tokio::test]
async fn a_ca_signs_with_certificate_and_key_of_every_form_or_says_why_not() {
    let (plant, sim) = (Plant::new(), cloud().await);
    let mut device = Device::new(&sim, manual(&sim)).await;
    let (certificate, key) = (plant.folder().join("ca-certificate"), plant.folder().join("ca-key"));
    device.preloaded_keys.push(("local-ca", key.clone()));
    let settings = &mut device.settings;
    let uri = PreloadedCert::File(format!("file://{}", certificate.display()));
    settings.preloaded_certs.insert("local-ca".parse().unwrap(), uri);
    settings.local_ca =
        Some(LocalCa { cert: "local-ca".parse().unwrap(), key: "local-ca".parse().unwrap() });
    settings.cert_issuance.insert("leaf".parse().unwrap(), issuance(IssuanceMethod::LocalCa));
    device.restart_keyd().await;
    device.start().await;
    let request = CreateCertificate {
        cert_id: "leaf".to_owned(),
        csr: leaf_request("press.example"),
        issuer: None,
        not_after: None,
    };
    let root = plant.text("root.pem");
    let certificates = plant.certificate_forms().into_iter().map(|form| {
        // What is not the root's, or no CA's, cannot sign with the root's key.
        let is_root = form.goes_out.starts_with(&root) || form.name == "150 certificates";
        let part = match form.says {
            Says::Error(part) => part,
            Says::Nothing => "it is not a CA",
        };
        (form.name, form.content, plant.file("root.key"), if is_root { None } else { Some(part) })
    });
    let keys = plant.key_forms().into_iter().map(|form| {
        let part = match form.says {
            Says::Error(part) => Some(part),
            Says::Nothing => None,
        };
        (form.name, root.clone().into_bytes(), form.content, part)
    });
    for (name, certificate_content, key_content, refused) in certificates.chain(keys) {
        std::fs::write(&certificate, certificate_content).unwrap();
        std::fs::write(&key, key_content).unwrap();
        match (device.certificates().create(&request).await, refused) {
            (Ok(chain), None) => {
                assert!(is_strict(&chain), "{name}");
                std::fs::write(plant.folder().join("leaf.pem"), chain).unwrap();
                let verify = ["verify", "-CAfile", "root.pem", "leaf.pem"];
                let output = Command::new("openssl")
                    .args(verify)
                    .current_dir(plant.folder())
                    .output()
                    .unwrap();
                assert!(
                    output.status.success(),
                    "{name}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            (Err(error), Some(part)) => {
                let (status, message) = refusal(error);
                assert_eq!(status, StatusCode::BAD_REQUEST, "{name}");
                assert!(message.contains(part), "{name}: {message}");
            }
            (other, refused) => panic!("{name}: {other:?}, should be refused: {refused:?}"),
        }
    }
}
