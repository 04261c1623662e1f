//! A device whose certificates Cisco's libest issues: unasked, renewed with a new key,
//! and once somebody has approved them.

use edgekeep_core::renewal::Policy;
use edgekeep_core::settings::{EstBasic, EstSettings, Issuance, IssuanceMethod};
use edgekeep_sim::Simulator;

use crate::certificates::{CA, issuance};
use crate::est::{issued, until};
use crate::estserver::{Server, USER, is_alone};
use crate::harness::{Device, cloud, manual};

const ID: &str = "est-id";

/// A device that gets `est-id` and its CA by the name and password of the server.
async fn device(server: &Server) -> (Simulator, Device) {
    let sim = cloud().await;
    let mut device = Device::new(&sim, manual(&sim)).await;
    let basic = Some(EstBasic { username: USER.0.to_owned(), password: USER.1.into() });
    device.settings.est = Some(EstSettings {
        trusted_certs: vec![server.path("ca.pem").display().to_string()],
        urls: [("default".to_owned(), Server::url())].into(),
        basic,
    });
    let own = Issuance {
        common_name: Some("press-05".to_owned()),
        renewal: Some(Policy { rotate_key: true, ..Policy::default() }),
        ..issuance(IssuanceMethod::Est)
    };
    device.settings.cert_issuance.insert(ID.parse().unwrap(), own);
    device.settings.cert_issuance.insert(CA.parse().unwrap(), issuance(IssuanceMethod::Est));
    (sim, device)
}

#[tokio::test]
async fn libest_issues_an_identity_renews_it_with_a_new_key_and_issues_a_ca() {
    if !is_alone("libest::libest_issues_an_identity_renews_it_with_a_new_key_and_issues_a_ca") {
        return;
    }
    let server = Server::start(&[], "");
    let (_sim, mut device) = device(&server).await;
    device.start().await;
    let mut last = issued(&device).await;
    for _ in 0..2 {
        device.certificates().renew(ID).await.unwrap();
        let renewed = device.certificates().load(ID).await.unwrap();
        assert_ne!(renewed, last);
        last = renewed;
    }
    let pair = rcgen::KeyPair::generate().unwrap();
    let csr = crate::certificates::ca_request(&pair, rcgen::BasicConstraints::Constrained(0));
    let request = edgekeep_api::certd::CreateCertificate {
        cert_id: CA.to_owned(),
        csr,
        issuer: None,
        not_after: None,
    };
    let chain = device.certificates().create(&request).await.unwrap();
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2, "{chain}");
}

#[tokio::test]
async fn what_libest_wants_approved_is_asked_for_again_with_the_same_key_until_it_is_issued() {
    let test = "libest::what_libest_wants_approved_is_asked_for_again_with_the_same_key_until_it_is_issued";
    if !is_alone(test) {
        return;
    }
    let server = Server::start(&["-m", "1"], "");
    let (_sim, mut device) = device(&server).await;
    device.start().await;
    // It says so in the log; the list has no certificate to say it of.
    let key = until("the key", async || device.keys().load_key_pair(ID).await.ok()).await;
    let point = device.keys().parameter(&key, "ec-point").await.unwrap();
    until("the approval", async || device.certificates().renew(ID).await.ok()).await;
    let now = device.keys().load_key_pair(ID).await.unwrap();
    assert_eq!(device.keys().parameter(&now, "ec-point").await.unwrap(), point);
    let _ = issued(&device).await;
}
