//! Certificates that the simulated EST server issues, renewed by the service.

use std::time::Duration;

use edgekeep_core::id::CertId;
use edgekeep_core::renewal::Policy;
use edgekeep_core::settings::{EstBasic, EstSettings, Issuance, IssuanceMethod};
use edgekeep_sim::{EstAnswer, EstFaults, EstOptions, Faults, Simulator, SimulatorOptions};

use crate::harness::{Device, manual};

const ID: &str = "est-id";

/// A device that gets `est-id` by name and password.
async fn device(rotate_key: bool) -> (Simulator, Device) {
    let est = EstOptions {
        basic: Some(("press".to_owned(), "secret".to_owned().into())),
        ..EstOptions::default()
    };
    let options = SimulatorOptions { est, ..SimulatorOptions::default() };
    let sim = Simulator::start(options).await.unwrap();
    let mut device = Device::new(&sim, manual(&sim)).await;
    let roots = device.folder.path().join("est-roots.pem");
    let pem = [sim.ca_pem(), &sim.est_root_pem(None).unwrap()].concat();
    std::fs::write(&roots, pem).unwrap();
    device.settings.est = Some(EstSettings {
        trusted_certs: vec![roots.display().to_string()],
        urls: [("default".to_owned(), sim.est_url())].into(),
        basic: Some(EstBasic { username: "press".to_owned(), password: "secret".into() }),
    });
    let id: CertId = ID.parse().unwrap();
    let issuance = Issuance {
        method: IssuanceMethod::Est,
        common_name: Some("press-05".to_owned()),
        expiry_days: None,
        renewal: Some(Policy { rotate_key, ..Policy::default() }),
    };
    device.settings.cert_issuance.insert(id, issuance);
    (sim, device)
}

pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} does not come")
}

pub(crate) async fn issued(device: &Device) -> String {
    until("the certificate", async || device.certificates().load(ID).await.ok()).await
}

fn subject(pem: &str) -> String {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    block.parse_x509().unwrap().subject().to_string()
}

#[tokio::test]
async fn the_device_gets_its_identity_unasked_and_renews_it_by_itself() {
    for rotate in [false, true] {
        let (_sim, mut device) = device(rotate).await;
        device.start().await;
        let first = issued(&device).await;
        assert_eq!(subject(&first), "CN=press-05");
        // Renewed twice: the second is shown the certificate and key of the first.
        for _ in 0..2 {
            let before = device.certificates().load(ID).await.unwrap();
            device.certificates().renew(ID).await.unwrap();
            let after = device.certificates().load(ID).await.unwrap();
            assert_ne!(before, after);
        }
        let list = device.certificates().list().await.unwrap();
        let line = list.certificates.into_iter().find(|line| line.id == ID).unwrap();
        assert_eq!((line.method.as_str(), line.renewal.as_str()), ("est", "planned"));
        assert!(device.keys().load_key_pair("est-id-temp").await.is_err());
    }
}

#[tokio::test]
async fn whatever_a_bad_server_answers_the_old_certificate_stays_and_the_reason_is_told() {
    let (sim, mut device) = device(true).await;
    device.start().await;
    let first = issued(&device).await;
    for fault in [EstAnswer::Html, EstAnswer::WrongKey, EstAnswer::Expired, EstAnswer::Oversized] {
        let est = EstFaults { enroll: Some(fault), ..EstFaults::default() };
        sim.faults(Faults { est, ..Faults::default() }).unwrap();
        let error = device.certificates().renew(ID).await.unwrap_err().to_string();
        assert!(error.contains("not issued by EST"), "{fault:?}: {error}");
        assert_eq!(device.certificates().load(ID).await.unwrap(), first, "{fault:?}");
        let list = device.certificates().list().await.unwrap();
        let line = list.certificates.into_iter().find(|line| line.id == ID).unwrap();
        // It was asked for, and is not due.
        assert_eq!(line.renewal, "planned", "{fault:?}");
        assert!(line.last_error.is_some_and(|said| error.contains(&said)), "{fault:?}");
    }
    // Somebody must approve it: the same key is asked for again, and not before its time.
    let est = EstFaults { pending: 1, retry_after_sec: Some(7200), ..EstFaults::default() };
    sim.faults(Faults { est, ..Faults::default() }).unwrap();
    let error = device.certificates().renew(ID).await.unwrap_err().to_string();
    assert!(error.contains("come back in 7200 s"), "{error}");
    let waiting = device.keys().load_key_pair("est-id-temp").await.unwrap();
    let point = device.keys().parameter(&waiting, "ec-point").await.unwrap();
    sim.faults(Faults::default()).unwrap();
    device.certificates().renew(ID).await.unwrap();
    assert_ne!(device.certificates().load(ID).await.unwrap(), first);
    let now = device.keys().load_key_pair(ID).await.unwrap();
    assert_eq!(device.keys().parameter(&now, "ec-point").await.unwrap(), point);
}
