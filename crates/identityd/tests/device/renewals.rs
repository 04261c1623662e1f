//! Renewal of certificates by the service: unasked, asked for, interrupted and failing.

use std::process::Command;
use std::time::Duration;

use edgekeep_api::certd::CertificateLine;
use edgekeep_core::renewal::Policy;
use edgekeep_core::settings::{Issuance, IssuanceMethod, LocalCa, PreloadedCert};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use time::OffsetDateTime;

use crate::certificates::{CA, issuance, leaf, leaf_request, refusal};
use crate::harness::{Device, cloud, manual};

const NEXT: &str = "aziot-edged-ca-temp";

/// A CA certificate that ends in so many days and began 90 days before that.
fn old_ca(pair: &KeyPair, days_left: i64) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "edge CA press-05");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    params.not_after = OffsetDateTime::now_utc() + time::Duration::days(days_left);
    params.not_before = params.not_after - time::Duration::days(90);
    params.self_signed(pair).unwrap().pem()
}

fn renewed(rotate_key: bool) -> Issuance {
    let policy = Policy { rotate_key, ..Policy::default() };
    Issuance { renewal: Some(policy), ..issuance(IssuanceMethod::SelfSigned) }
}

/// A device whose CA has a certificate with so many days left. It is not started yet with
/// `issuance`.
async fn device_with(issuance: Issuance, pair: &KeyPair, days_left: i64) -> (Device, String) {
    let sim = cloud().await;
    let mut device = Device::new(&sim, manual(&sim)).await;
    device.import(CA, pair).await;
    device.start().await;
    let old = old_ca(pair, days_left);
    device.certificates().import(CA, &old).await.unwrap();
    device.settings.cert_issuance.insert(CA.parse().unwrap(), issuance);
    let bundle = PreloadedCert::List(vec![CA.parse().unwrap()]);
    device.settings.preloaded_certs.insert("bundle".parse().unwrap(), bundle);
    (device, old)
}

/// Waits until the list has such a line of the CA.
async fn until(device: &Device, wanted: impl Fn(&CertificateLine) -> bool) -> CertificateLine {
    let mut last = None;
    for _ in 0..600 {
        if let Ok(list) = device.certificates().list().await
            && let Some(line) = list.certificates.into_iter().find(|line| line.id == CA)
        {
            if wanted(&line) {
                return line;
            }
            last = Some(line);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not come: {last:?}")
}

/// Public key of the first certificate, as openssl writes it.
fn public_key(pem: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("it.pem");
    std::fs::write(&file, pem).unwrap();
    let mut openssl = Command::new("openssl");
    let shown = openssl.args(["x509", "-noout", "-pubkey", "-in"]).arg(&file).output().unwrap();
    assert!(shown.status.success());
    String::from_utf8(shown.stdout).unwrap()
}

fn verifies(chain: &str, root: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let (leaf_file, ca_file) = (folder.path().join("leaf.pem"), folder.path().join("ca.pem"));
    std::fs::write(&leaf_file, chain).unwrap();
    std::fs::write(&ca_file, root).unwrap();
    let verified = Command::new("openssl")
        .args(["verify", "-x509_strict", "-CAfile"])
        .args([&ca_file, &leaf_file])
        .output()
        .unwrap();
    verified.status.success()
}

#[tokio::test]
async fn a_ca_that_is_due_is_renewed_unasked_and_leaves_of_the_same_key_go_on() {
    let pair = KeyPair::generate().unwrap();
    let (mut device, old) = device_with(renewed(false), &pair, 1).await;
    let before = leaf(&device, "aziot-edged/module/m:1:server", leaf_request("m")).await.unwrap();
    device.restart().await;
    let line = until(&device, |line| line.days_left > 80.0).await;
    assert_eq!((line.renewal.as_str(), line.last_error), ("planned", None));
    assert_eq!(line.method, "self_signed");
    assert!(line.next_renewal.unwrap() < line.not_after);
    let ca = device.certificates().load(CA).await.unwrap();
    assert_ne!(ca, old);
    assert_eq!(public_key(&ca), public_key(&old));
    assert!(verifies(&before, &ca), "what the old certificate issued is still good");
    // The plan survives, and nothing is renewed again.
    device.restart().await;
    until(&device, |line| line.renewal == "planned").await;
    assert_eq!(device.certificates().load(CA).await.unwrap(), ca);
}

#[tokio::test]
async fn a_renewal_with_a_new_key_swaps_certificate_and_key_together() {
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    for pair in [KeyPair::generate().unwrap(), rsa] {
        let (mut device, old) = device_with(renewed(true), &pair, 1).await;
        device.restart().await;
        until(&device, |line| line.days_left > 80.0).await;
        let ca = device.certificates().load(CA).await.unwrap();
        assert_ne!(public_key(&ca), public_key(&old));
        let module = "aziot-edged/module/m:1:server";
        let chain = leaf(&device, module, leaf_request("m")).await.unwrap();
        assert!(verifies(&chain, &ca) && !verifies(&chain, &old));
        let bundle = device.certificates().load("bundle").await.unwrap();
        assert_eq!(bundle, format!("{ca}{old}"), "both are trusted while both are valid");
        assert!(device.keys().load_key_pair(NEXT).await.is_err(), "nothing is left over");
    }
}

#[tokio::test]
async fn the_local_ca_is_made_unasked_and_signs() {
    let sim = cloud().await;
    let mut device = Device::new(&sim, manual(&sim)).await;
    let local: edgekeep_core::id::CertId = "local-ca".parse().unwrap();
    let settings = &mut device.settings;
    settings.cert_issuance.insert(local.clone(), renewed(true));
    let below = Issuance { method: IssuanceMethod::LocalCa, ..renewed(false) };
    settings.cert_issuance.insert(CA.parse().unwrap(), below);
    settings.local_ca = Some(LocalCa { cert: local, key: "local-ca".parse().unwrap() });
    let pair = KeyPair::generate().unwrap();
    device.import(CA, &pair).await;
    device.start().await;
    device.certificates().import(CA, &old_ca(&pair, 1)).await.unwrap();
    until(&device, |line| line.days_left > 80.0 && line.issuer != line.subject).await;
    let root = device.certificates().load("local-ca").await.unwrap();
    assert!(verifies(&device.certificates().load(CA).await.unwrap(), &root));
}

#[tokio::test]
async fn a_renewal_that_was_interrupted_is_brought_to_its_end_at_the_next_start() {
    let (first, second) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    // The certificate was replaced, the key not yet moved.
    let (mut device, _) = device_with(renewed(true), &first, 90).await;
    device.import(NEXT, &second).await;
    let new = old_ca(&second, 90);
    device.certificates().import(CA, &new).await.unwrap();
    device.restart().await;
    for _ in 0..600 {
        if device.keys().load_key_pair(NEXT).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let chain = leaf(&device, "aziot-edged/module/m:1:server", leaf_request("m")).await.unwrap();
    assert!(verifies(&chain, &new), "the key is the certificate's");
    // The successor's key was made, and nothing more: it goes with the next renewal.
    device.import(NEXT, &first).await;
    device.certificates().renew(CA).await.unwrap();
    let ca = device.certificates().load(CA).await.unwrap();
    for other in [&first, &second] {
        assert_ne!(public_key(&ca), public_key(&old_ca(other, 90)));
    }
    // The key is gone for good: a certificate without one is of no use to anybody.
    device.import(CA, &KeyPair::generate().unwrap()).await;
    device.certificates().renew(CA).await.unwrap();
    let chain = leaf(&device, "aziot-edged/module/m:1:server", leaf_request("m")).await.unwrap();
    assert!(verifies(&chain, &device.certificates().load(CA).await.unwrap()));
}

#[tokio::test]
async fn renewal_that_is_turned_off_is_off_until_it_is_asked_for() {
    let pair = KeyPair::generate().unwrap();
    let off = Policy { enabled: false, ..Policy::default() };
    let issuance = Issuance { renewal: Some(off), ..renewed(false) };
    let (mut device, old) = device_with(issuance, &pair, 1).await;
    device.restart().await;
    let line = until(&device, |line| line.renewal == "off").await;
    assert!(line.days_left < 1.5 && line.next_renewal.is_none());
    assert_eq!(device.certificates().load(CA).await.unwrap(), old);
    device.certificates().renew(CA).await.unwrap();
    until(&device, |line| line.renewal == "off" && line.days_left > 80.0).await;
    let (_, words) = refusal(device.certificates().renew("device-id").await.unwrap_err());
    assert!(words.contains("is not renewed by this service"), "{words}");
}

#[tokio::test]
async fn a_failed_renewal_is_told_and_the_old_certificate_stays_in_use() {
    let pair = KeyPair::generate().unwrap();
    let (mut device, old) = device_with(renewed(true), &pair, 1).await;
    device.stop_keyd().await;
    device.restart().await;
    let line = until(&device, |line| line.renewal == "retry").await;
    let error = line.last_error.unwrap();
    assert!(error.contains("look for the key of certificate \"aziot-edged-ca\""), "{error}");
    assert!(error.contains("is keyd running"), "{error}");
    assert_eq!(device.certificates().load(CA).await.unwrap(), old);
    device.start_keyd().await;
    device.certificates().renew(CA).await.unwrap();
    let line = until(&device, |line| line.renewal == "planned").await;
    assert_eq!(line.last_error, None);
}
