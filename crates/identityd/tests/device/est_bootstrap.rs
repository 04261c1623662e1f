//! Tests of what an EST server issues to a device at its first meeting, and of wrong
//! answers.

use std::time::Duration;

use edgekeep_api::certd::CertificateLine;
use edgekeep_core::renewal::Policy;
use edgekeep_core::settings::{EstBasic, EstSettings, Issuance, IssuanceMethod, PreloadedCert};
use edgekeep_sim::{
    Authority, EstAnswer, EstFaults, EstOptions, Faults, RouteFaults, Simulator, SimulatorOptions,
};
use rcgen::{KeyPair, PublicKeyData as _};

use crate::certificates::{CA, ca_request, issuance, refusal};
use crate::harness::{Device, manual};

const OWN: &str = "est-id";

async fn server(clients_pem: &str) -> Simulator {
    let est = EstOptions {
        basic: Some(("plant".to_owned(), "wrench".to_owned().into())),
        clients_pem: clients_pem.to_owned(),
        labels: Vec::new(),
    };
    Simulator::start(SimulatorOptions { est, ..SimulatorOptions::default() }).await.unwrap()
}

/// A device that has its CA, and if `own` an identity of its own, from the server.
async fn device(sim: &Simulator, basic: bool, own: bool) -> Device {
    let mut device = Device::new(sim, manual(sim)).await;
    let roots = device.folder.path().join("est-roots.pem");
    let pem = [sim.ca_pem(), &sim.est_root_pem(None).unwrap()].concat();
    std::fs::write(&roots, pem).unwrap();
    let basic = basic.then(|| EstBasic { username: "plant".to_owned(), password: "wrench".into() });
    device.settings.est = Some(EstSettings {
        trusted_certs: vec![roots.display().to_string()],
        urls: [("default".to_owned(), sim.est_url())].into(),
        basic,
    });
    device.settings.cert_issuance.insert(CA.parse().unwrap(), issuance(IssuanceMethod::Est));
    if own {
        let issuance = Issuance {
            common_name: Some("press-05".to_owned()),
            renewal: Some(Policy { rotate_key: true, ..Policy::default() }),
            ..issuance(IssuanceMethod::Est)
        };
        device.settings.cert_issuance.insert(OWN.parse().unwrap(), issuance);
    }
    device
}

/// Waits until the list has such a line of the device's own identity.
async fn until(device: &Device, wanted: impl Fn(&CertificateLine) -> bool) -> CertificateLine {
    let mut last = None;
    for _ in 0..600 {
        if let Ok(list) = device.certificates().list().await
            && let Some(line) = list.certificates.into_iter().find(|line| line.id == OWN)
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

async fn ca(device: &Device) -> Result<String, edgekeep_api::client::ClientError> {
    let pair = KeyPair::generate().unwrap();
    let csr = ca_request(&pair, rcgen::BasicConstraints::Constrained(0));
    let request = edgekeep_api::certd::CreateCertificate {
        cert_id: CA.to_owned(),
        csr,
        issuer: None,
        not_after: None,
    };
    device.certificates().create(&request).await
}

#[tokio::test]
async fn a_ca_is_issued_by_the_server_with_its_chain_and_kept() {
    let sim = server("").await;
    let mut device = device(&sim, true, false).await;
    device.start().await;
    let chain = ca(&device).await.unwrap();
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 3, "leaf, issuing CA and root");
    assert!(chain.ends_with(&sim.est_root_pem(None).unwrap().replace("\r\n", "\n")));
    device.restart().await;
    assert_eq!(device.certificates().load(CA).await.unwrap(), chain);
}

#[tokio::test]
async fn wrong_answers_leave_the_certificate_that_is_there() {
    let sim = server("").await;
    let mut device = device(&sim, true, false).await;
    device.start().await;
    let good = ca(&device).await.unwrap();
    let wrong = |answer| EstFaults { enroll: Some(answer), ..EstFaults::default() };
    for faults in [
        wrong(EstAnswer::Html),
        wrong(EstAnswer::WrongKey),
        wrong(EstAnswer::WrongChain),
        wrong(EstAnswer::Expired),
        wrong(EstAnswer::Endless),
        EstFaults { pending: 1, retry_after_sec: Some(5), ..EstFaults::default() },
        EstFaults { route: RouteFaults::status(503), ..EstFaults::default() },
        EstFaults { route: RouteFaults::dropped(), ..EstFaults::default() },
    ] {
        sim.faults(Faults { est: faults.clone(), ..Faults::default() }).unwrap();
        let (status, _) = refusal(ca(&device).await.unwrap_err());
        assert!(status.as_u16() >= 400, "{faults:?}: {status}");
        assert_eq!(device.certificates().load(CA).await.unwrap(), good, "{faults:?}");
    }
}

#[tokio::test]
async fn a_manufacturers_certificate_becomes_an_identity_of_its_own_that_is_renewed() {
    let maker = Authority::named("maker").unwrap();
    let sim = server(maker.certificate_pem()).await;
    let mut device = device(&sim, false, true).await;
    let pair = KeyPair::generate().unwrap();
    let (cert, key) =
        (device.folder.path().join("maker.pem"), device.folder.path().join("maker.key"));
    let info = pair.subject_public_key_info();
    std::fs::write(&cert, maker.client_certificate_pem("serial-1", &info).unwrap()).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    let file = PreloadedCert::File(format!("file://{}", cert.display()));
    device.settings.preloaded_certs.insert("est-bootstrap-id".parse().unwrap(), file);
    device.preloaded_keys.push(("est-bootstrap-id", key));
    device.restart_keyd().await;
    device.start().await;
    until(&device, |line| line.days_left > 20.0).await;
    let own = device.certificates().load(OWN).await.unwrap();
    // By that identity the CA is issued, and its successor.
    assert_eq!(ca(&device).await.unwrap().matches("BEGIN CERTIFICATE").count(), 3);
    let calls = sim.state().calls;
    device.certificates().renew(OWN).await.unwrap();
    assert_ne!(device.certificates().load(OWN).await.unwrap(), own);
    assert_eq!(sim.state().calls.est_reenroll, calls.est_reenroll + 1, "renewed by itself");
    assert_eq!(ca(&device).await.unwrap().matches("BEGIN CERTIFICATE").count(), 3);
}
