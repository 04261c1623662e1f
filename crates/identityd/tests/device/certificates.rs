//! The routes of the certificates API: success and bad input. (Callers without a grant:
//! unit tests beside the routes.)

use std::process::Command;

use edgekeep_api::certd::{CreateCertificate, Issuer};
use edgekeep_api::client::{Client, ClientError};
use edgekeep_api::keyd::{ON_BEHALF_OF, OnBehalfOf};
use edgekeep_core::settings::{Issuance, IssuanceMethod, LocalCa, PreloadedCert};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

use crate::harness::{Device, cloud, manual};

pub(crate) const CA: &str = "aziot-edged-ca";

pub(crate) fn ca_request(pair: &KeyPair, path_length: BasicConstraints) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "edge CA press-05");
    params.is_ca = IsCa::Ca(path_length);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    params.serialize_request(pair).unwrap().pem().unwrap()
}

pub(crate) fn leaf_request(name: &str) -> String {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

/// Has a CA made whose key pair in keyd has the certificate's id, as the daemons do it.
pub(crate) async fn self_signed_ca(device: &mut Device, id: &str, pair: &KeyPair) -> String {
    device.import(id, pair).await;
    let csr = ca_request(pair, BasicConstraints::Unconstrained);
    let request = CreateCertificate { cert_id: id.to_owned(), csr, issuer: None, not_after: None };
    device.certificates().create(&request).await.unwrap()
}

pub(crate) fn issuance(method: IssuanceMethod) -> Issuance {
    Issuance { method, common_name: None, expiry_days: Some(90), renewal: None }
}

/// A device with a CA that is issued by its own key.
pub(crate) async fn device_with_ca(pair: &KeyPair) -> (Device, String) {
    let sim = cloud().await;
    let mut device = Device::new(&sim, manual(&sim)).await;
    device.settings.cert_issuance.insert(CA.parse().unwrap(), issuance(IssuanceMethod::SelfSigned));
    device.start().await;
    let ca = self_signed_ca(&mut device, CA, pair).await;
    (device, ca)
}

pub(crate) async fn leaf(device: &Device, id: &str, csr: String) -> Result<String, ClientError> {
    let private_key_handle = device.keys().load_key_pair(CA).await.unwrap();
    let issuer = Some(Issuer { cert_id: CA.to_owned(), private_key_handle });
    device
        .certificates()
        .create(&CreateCertificate { cert_id: id.to_owned(), csr, issuer, not_after: None })
        .await
}

pub(crate) fn refusal(error: ClientError) -> (StatusCode, String) {
    match error {
        ClientError::Status { status, message, .. } => (status, message),
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn leaves_of_an_elliptic_curve_and_of_an_rsa_ca_satisfy_openssl() {
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    for pair in [KeyPair::generate().unwrap(), rsa] {
        let (device, ca) = device_with_ca(&pair).await;
        let chain = leaf(&device, "aziot-edged/module/m:1:server", leaf_request("m.press.test"))
            .await
            .unwrap();
        assert!(chain.ends_with(&ca), "the leaf, then the CA");
        assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);
        let (ca_file, leaf_file) =
            (device.folder.path().join("ca.pem"), device.folder.path().join("leaf.pem"));
        std::fs::write(&ca_file, &ca).unwrap();
        std::fs::write(&leaf_file, &chain).unwrap();
        let verified = Command::new("openssl")
            .args([
                "verify",
                "-x509_strict",
                "-purpose",
                "sslserver",
                "-verify_hostname",
                "m.press.test",
                "-CAfile",
            ])
            .args([&ca_file, &leaf_file])
            .output()
            .unwrap();
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
        assert_eq!(
            device.certificates().load("aziot-edged/module/m:1:server").await.unwrap(),
            chain
        );
    }
}

#[tokio::test]
async fn keyd_writes_down_for_whom_a_certificate_was_signed_if_the_asking_uid_may_say_so() {
    async fn said(device: &Device, from: u64) -> Vec<Value> {
        let entries = device.keys().audit_entries(from, 1000).await.unwrap().entries;
        let entries = entries.iter().map(|entry| serde_json::from_str::<Value>(entry).unwrap());
        entries.filter(|entry| entry["what"] == "sign").map(|entry| entry["for"].clone()).collect()
    }
    let sim = cloud().await;
    let mut device = Device::new(&sim, manual(&sim)).await;
    device.settings.cert_issuance.insert(CA.parse().unwrap(), issuance(IssuanceMethod::SelfSigned));
    device.start().await;
    self_signed_ca(&mut device, CA, &KeyPair::generate().unwrap()).await;
    let behalf = OnBehalfOf { module: "thermometer".parse().unwrap(), executable: None };
    let private_key_handle = device.keys().load_key_pair(CA).await.unwrap();
    let request = CreateCertificate {
        cert_id: "leaf".to_owned(),
        csr: leaf_request("press"),
        issuer: Some(Issuer { cert_id: CA.to_owned(), private_key_handle }),
        not_after: None,
    };
    for (attestor, expected) in [(false, Value::Null), (true, json!("thermometer"))] {
        device.settings.cert_principals[0].attestor = attestor;
        device.restart().await;
        device.certificates().on_behalf_of(&behalf).create(&request).await.unwrap();
        device.keys().audit_checkpoint().await.unwrap();
        assert_eq!(said(&device, 0).await.last(), Some(&expected));
    }
    // What is no statement makes no certificate.
    let client = Client::new(device.root.certd_socket());
    let client = client.with_header(
        HeaderName::from_static(ON_BEHALF_OF),
        HeaderValue::from_static("thermometer"),
    );
    let answer = client
        .call::<_, Value>(Method::POST, "/certificates?api-version=2020-09-01", Some(&request))
        .await;
    assert_eq!(refusal(answer.unwrap_err()).0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_issuer_certifies_names_within_its_constraints_and_openssl_agrees() {
    let pair = KeyPair::generate().unwrap();
    let (mut device, _) = device_with_ca(&pair).await;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "constrained");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.name_constraints = Some(rcgen::NameConstraints {
        permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("plant7.test".to_owned())],
        excluded_subtrees: Vec::new(),
    });
    let ca = params.self_signed(&pair).unwrap().pem();
    device.certificates().import(CA, &ca).await.unwrap();
    let module = "aziot-edged/module/m:1:server";
    let chain = leaf(&device, module, leaf_request("m.plant7.test")).await.unwrap();
    let (ca_file, leaf_file) =
        (device.folder.path().join("c.pem"), device.folder.path().join("l.pem"));
    std::fs::write(&ca_file, &ca).unwrap();
    std::fs::write(&leaf_file, &chain).unwrap();
    let verified = Command::new("openssl")
        .args(["verify", "-CAfile"])
        .args([&ca_file, &leaf_file])
        .output()
        .unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let error = leaf(&device, module, leaf_request("m.plant8.test")).await.unwrap_err();
    let (status, words) = refusal(error);
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(words.contains("do not allow the name m.plant8.test"), "{words}");
    device.stop().await;
}

#[tokio::test]
async fn serial_numbers_differ() {
    let (device, _) = device_with_ca(&KeyPair::generate().unwrap()).await;
    let mut serials = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let chain = leaf(&device, "m", leaf_request("m")).await.unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).unwrap();
        serials.insert(block.parse_x509().unwrap().raw_serial().to_vec());
    }
    assert_eq!(serials.len(), 3);
}

#[tokio::test]
async fn a_ca_below_the_local_ca_is_made_for_ids_that_are_configured_so() {
    let sim = cloud().await;
    let mut device = Device::new(&sim, manual(&sim)).await;
    let settings = &mut device.settings;
    settings
        .cert_issuance
        .insert("local-ca".parse().unwrap(), issuance(IssuanceMethod::SelfSigned));
    settings.cert_issuance.insert(CA.parse().unwrap(), issuance(IssuanceMethod::LocalCa));
    settings.local_ca =
        Some(LocalCa { cert: "local-ca".parse().unwrap(), key: "local-ca".parse().unwrap() });
    device.start().await;
    let csr = ca_request(&KeyPair::generate().unwrap(), BasicConstraints::Constrained(0));
    let request = CreateCertificate { cert_id: CA.to_owned(), csr, issuer: None, not_after: None };
    let (status, message) = refusal(device.certificates().create(&request).await.unwrap_err());
    assert_eq!(
        (status, message.as_str()),
        (StatusCode::BAD_REQUEST, "certificate \"local-ca\" not found")
    );

    let local = self_signed_ca(&mut device, "local-ca", &KeyPair::generate().unwrap()).await;
    let chain = device.certificates().create(&request).await.unwrap();
    assert!(chain.ends_with(&local));
    let (_, block) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).unwrap();
    assert!(block.parse_x509().unwrap().is_ca());
}

#[tokio::test]
async fn what_cannot_be_issued_is_refused_with_the_reason() {
    let pair = KeyPair::generate().unwrap();
    let (mut device, _) = device_with_ca(&pair).await;
    device.settings.cert_issuance.insert("by-est".parse().unwrap(), issuance(IssuanceMethod::Est));
    device
        .settings
        .cert_issuance
        .insert("by-local".parse().unwrap(), issuance(IssuanceMethod::LocalCa));
    device.restart().await;
    let csr = leaf_request("m");
    let handle = device.keys().load_key_pair(CA).await.unwrap();
    let other = device.keys().create_key_pair("other", None).await.unwrap();
    let by = |cert: &str, key: &str| json!({"certId": cert, "privateKeyHandle": key});
    for (body, expected, reason) in [
        (json!({"csr": csr}), StatusCode::UNPROCESSABLE_ENTITY, "certId"),
        (
            json!({"certId": "a b", "csr": csr}),
            StatusCode::BAD_REQUEST,
            "certificate id has a character",
        ),
        (
            json!({"certId": "m", "csr": "nonsense", "issuer": by(CA, &handle.0)}),
            StatusCode::BAD_REQUEST,
            "not PEM",
        ),
        (json!({"certId": "m", "csr": csr}), StatusCode::BAD_REQUEST, "no issuance is configured"),
        (json!({"certId": "by-est", "csr": csr}), StatusCode::BAD_REQUEST, "EST"),
        (
            json!({"certId": "by-local", "csr": csr}),
            StatusCode::BAD_REQUEST,
            "no local CA is configured",
        ),
        (
            json!({"certId": CA, "csr": csr}),
            StatusCode::BAD_REQUEST,
            "does not belong to the issuer",
        ),
        (
            json!({"certId": "m", "csr": csr, "issuer": by("unknown", &handle.0)}),
            StatusCode::BAD_REQUEST,
            "not found",
        ),
        (
            json!({"certId": "m", "csr": csr, "issuer": by(CA, &other.0)}),
            StatusCode::BAD_REQUEST,
            "does not belong",
        ),
        (
            json!({"certId": "m", "csr": csr, "issuer": by(CA, "forged")}),
            StatusCode::BAD_REQUEST,
            "invalid value",
        ),
        (
            json!({"certId": "m", "csr": ca_request(&pair, BasicConstraints::Unconstrained), "issuer": by(CA, &handle.0)}),
            StatusCode::BAD_REQUEST,
            "asks for a CA's rights",
        ),
    ] {
        let answer = device
            .ask_certificates(
                Method::POST,
                "/certificates?api-version=2020-09-01",
                Some(body.clone()),
            )
            .await;
        let (status, message) = answer.unwrap_err();
        assert_eq!(status, expected, "{body}: {message}");
        assert!(message.contains(reason), "{body}: {message}");
    }
    assert!(device.certificates().load("m").await.is_err(), "nothing was stored");
}

#[tokio::test]
async fn a_chain_is_imported_read_and_deleted() {
    let (mut device, ca) = device_with_ca(&KeyPair::generate().unwrap()).await;
    device.certificates().import("bought", &ca).await.unwrap();
    device.restart().await;
    assert_eq!(device.certificates().load("bought").await.unwrap(), ca);
    device.certificates().delete("bought").await.unwrap();
    device.certificates().delete("bought").await.unwrap();
    let (status, message) = refusal(device.certificates().load("bought").await.unwrap_err());
    assert_eq!(
        (status, message.as_str()),
        (StatusCode::BAD_REQUEST, "certificate \"bought\" not found")
    );
}

#[tokio::test]
async fn only_certificates_are_imported() {
    let (device, ca) = device_with_ca(&KeyPair::generate().unwrap()).await;
    let key = KeyPair::generate().unwrap().serialize_pem();
    for text in ["", "hello", key.as_str(), &format!("{ca}{key}")] {
        let (status, message) = refusal(device.certificates().import("x", text).await.unwrap_err());
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(message.contains("not PEM certificates"), "{message}");
    }
    for (method, path, expected) in [
        (Method::PUT, "/certificates/x?api-version=2020-09-01", StatusCode::UNPROCESSABLE_ENTITY),
        (Method::PUT, "/certificates/a%20b?api-version=2020-09-01", StatusCode::BAD_REQUEST),
        (Method::GET, "/certificates/a%20b?api-version=2020-09-01", StatusCode::BAD_REQUEST),
        (Method::DELETE, "/certificates/a%20b?api-version=2020-09-01", StatusCode::BAD_REQUEST),
        (Method::GET, "/certificates/x?api-version=2021-05-01", StatusCode::BAD_REQUEST),
    ] {
        let (status, message) =
            device.ask_certificates(method.clone(), path, None).await.unwrap_err();
        assert_eq!(status, expected, "{method} {path}: {message}");
    }
}

#[tokio::test]
async fn preloaded_certificates_are_read_from_where_they_are_and_never_overwritten() {
    let sim = cloud().await;
    let mut device = Device::new(&sim, manual(&sim)).await;
    let file = device.folder.path().join("user.pem");
    let pem = sim.ca_pem().to_owned();
    std::fs::write(&file, &pem).unwrap();
    let preloaded = PreloadedCert::File(format!("file://{}", file.display()));
    device.settings.preloaded_certs.insert("trust-bundle-user".parse().unwrap(), preloaded);
    device.start().await;
    assert_eq!(device.certificates().load("trust-bundle-user").await.unwrap(), pem);
    let (status, message) =
        refusal(device.certificates().import("trust-bundle-user", &pem).await.unwrap_err());
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(message.contains("preloaded"), "{message}");
}
