//! The life of a device's certificates at the simulated server.

use edgekeep_est::{EstError, EstUrl};
use edgekeep_sim::{EstFaults, Faults};

use super::*;

#[tokio::test]
async fn a_device_goes_from_a_password_to_an_identity_of_its_own_and_renews_it() {
    let (server, keys) = (simulator("").await, Keys::start());
    let own = enrolled(&with_password(&server), &keys, "est-id", "ec-p256").await;

    // By that identity alone: a certificate for another key, and the identity's
    // successor.
    let est = stranger(&server).with_identity(own.clone());
    let device = keys.make("device-id", "rsa-2048").await;
    let csr = Csr::sign(&device, &Profile::client("press-04")).await.unwrap();
    let chain = issued(est.enroll(csr.der()).await.unwrap());
    assert_eq!(chain.len(), 3, "the leaf, the CA that issued it and its root");
    assert_eq!(chain[0].public_key(), device.public().info());

    let next = keys.make("est-id-temp", "ec-p256").await;
    let profile = Profile::client("").renewing(own.leaf().unwrap());
    let csr = Csr::sign(&next, &profile).await.unwrap();
    let renewed = issued(est.reenroll(csr.der()).await.unwrap());
    assert_eq!(renewed[0].subject(), own.leaf().unwrap().subject());
    assert_eq!(server.state().calls.est_reenroll, 1);

    // A renewal under another name is none.
    let csr = Csr::sign(&next, &Profile::client("another")).await.unwrap();
    let error = est.reenroll(csr.der()).await.unwrap_err().to_string();
    assert!(error.contains("status 400") && error.contains("has the subject"), "{error}");
}

#[tokio::test]
async fn a_key_of_each_kind_is_certified_and_proves_the_device() {
    let server = simulator("").await;
    each_kind_of_key(|| stranger(&server), Basic::new(NAME, PASSWORD)).await;
}

#[tokio::test]
async fn a_ca_is_issued_as_it_was_asked_for() {
    let (server, keys) = (simulator("").await, Keys::start());
    let key = keys.make("aziot-edged-ca", "ec-p256").await;
    let csr = Csr::sign(&key, &Profile::edge_ca("press-04 edge ca")).await.unwrap();
    let chain = issued(with_password(&server).enroll(csr.der()).await.unwrap());
    assert!(chain[0].is_ca());
}

#[tokio::test]
async fn a_manufacturers_certificate_opens_the_door_and_a_strangers_does_not() {
    let maker = edgekeep_sim::Authority::named("maker").unwrap();
    let (server, keys) = (simulator(maker.certificate_pem()).await, Keys::start());
    // The manufacturer's CA and the stranger's are EST servers of their own here.
    let csr_key = keys.make("est-id", "ec-p256").await;
    let csr = Csr::sign(&csr_key, &Profile::client("press-04")).await.unwrap();
    for (ca, fits) in [(maker, true), (edgekeep_sim::Authority::named("other").unwrap(), false)] {
        let key = keys.make(if fits { "idevid" } else { "forged" }, "ec-p256").await;
        let chain = keys::signed_by(&ca, "serial-1", &key);
        let bootstrap = ClientIdentity::new(chain, key).unwrap();
        let answer = stranger(&server).with_identity(bootstrap).enroll(csr.der()).await;
        if fits {
            assert_eq!(issued(answer.unwrap()).len(), 3);
        } else {
            let error = answer.unwrap_err();
            assert!(matches!(error, EstError::Credentials { status: 401, .. }), "{error}");
        }
    }
}

#[tokio::test]
async fn who_does_not_say_who_it_is_or_says_it_wrongly_gets_nothing() {
    let (server, keys) = (simulator("").await, Keys::start());
    let key = keys.make("est-id", "ec-p256").await;
    let csr = Csr::sign(&key, &Profile::client("press-04")).await.unwrap();
    for est in [stranger(&server), stranger(&server).with_basic(Basic::new(NAME, "wrong"))] {
        let error = est.enroll(csr.der()).await.unwrap_err();
        assert!(matches!(error, EstError::Credentials { status: 401, .. }), "{error}");
        assert!(!error.is_transient());
    }
    let error = with_password(&server).enroll(b"no request").await.unwrap_err();
    assert!(matches!(error, EstError::Request), "{error}");
}

#[tokio::test]
async fn a_request_that_must_be_approved_is_sent_again_when_the_server_says() {
    let (server, keys) = (simulator("").await, Keys::start());
    let est = with_password(&server);
    let key = keys.make("est-id", "ec-p256").await;
    let csr = Csr::sign(&key, &Profile::client("press-04")).await.unwrap();
    let pending = EstFaults { pending: 1, retry_after_sec: Some(1234), ..EstFaults::default() };
    server.faults(Faults { est: pending, ..Faults::default() }).unwrap();
    let wait = Duration::from_secs(1234);
    assert_eq!(est.enroll(csr.der()).await.unwrap(), Enrolment::Later(wait));
    assert_eq!(issued(est.enroll(csr.der()).await.unwrap()).len(), 3);
}

#[tokio::test]
async fn each_label_is_a_ca_of_its_own_and_its_root_must_be_believed() {
    let (server, keys) = (simulator("").await, Keys::start());
    let key = keys.make("est-id", "ec-p256").await;
    let csr = Csr::sign(&key, &Profile::client("press-04")).await.unwrap();
    let url: EstUrl = format!("{}/plant7", server.est_url()).parse().unwrap();
    let est = |trust| Est::new(url.clone(), trust).with_basic(Basic::new(NAME, PASSWORD));
    // The roots of the default CA are no roots of this one's certificates.
    let error = est(trust(&server)).enroll(csr.der()).await.unwrap_err().to_string();
    assert!(error.contains("does not chain to the configured roots (trusted_certs)"), "{error}");
    let own = [server.ca_pem(), &server.est_root_pem(Some("plant7")).unwrap()].concat();
    let chain = est(Trust::Certificates(certificates(&own))).enroll(csr.der()).await.unwrap();
    assert_eq!(issued(chain).len(), 3);
    let url: EstUrl = format!("{}/plant8", server.est_url()).parse().unwrap();
    let est = Est::new(url, trust(&server)).with_basic(Basic::new(NAME, PASSWORD));
    let error = est.cacerts().await.unwrap_err();
    assert!(matches!(error, EstError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn the_configured_roots_replace_the_systems_and_a_server_of_others_is_not_asked() {
    let (server, keys) = (simulator("").await, Keys::start());
    let key = keys.make("est-id", "ec-p256").await;
    let csr = Csr::sign(&key, &Profile::client("press-04")).await.unwrap();
    let stranger = edgekeep_sim::Authority::named("other").unwrap();
    for trust in [Trust::Certificates(certificates(stranger.certificate_pem())), Trust::System] {
        let est = Est::new(server.est_url().parse().unwrap(), trust);
        let error = est.with_basic(Basic::new(NAME, PASSWORD)).enroll(csr.der()).await;
        let error = error.unwrap_err();
        assert!(matches!(error, EstError::Untrusted { .. }), "{error}");
    }
    assert_eq!(server.state().calls.est_cacerts, 0, "nothing was said to it");
}

#[tokio::test]
async fn the_server_says_what_it_wants_in_requests() {
    let server = simulator("").await;
    let asked = stranger(&server).csrattrs().await.unwrap();
    assert_eq!(asked.key_algorithm(), Some("ec-p256"));
    assert!(!asked.asks_for_binding());
}
