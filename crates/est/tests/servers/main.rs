//! The client against EST servers: the simulated one with its faults, and Cisco's libest;
//! with keys in a real keyd. Foreign clients against the simulated one.
#![expect(
    clippy::unwrap_used,
    reason = "functions that tests share expect by unwrapping, as tests do"
)]

mod curl;
mod estserver;
mod faults;
mod keys;
mod libest;
mod proxy;
mod simulator;

use std::time::Duration;

use edgekeep_core::credentials::{Certificate, Limits, read_certificates};
use edgekeep_est::{Basic, Csr, Enrolment, Est, Profile};
use edgekeep_sim::{EstOptions, Simulator, SimulatorOptions};
use edgekeep_tls::{ClientIdentity, Trust};

use keys::Keys;
use rcgen::{KeyPair, RsaKeySize};

const NAME: &str = "plant";
const PASSWORD: &str = "wrench:and:bolt";

fn certificates(pem: &str) -> Vec<Certificate> {
    read_certificates(pem.as_bytes(), &Limits::FILE).certificates
}

async fn simulator(clients_pem: &str) -> Simulator {
    let options = SimulatorOptions {
        est: EstOptions {
            basic: Some((NAME.to_owned(), PASSWORD.to_owned().into())),
            clients_pem: clients_pem.to_owned(),
            labels: vec!["plant7".to_owned()],
        },
        ..SimulatorOptions::default()
    };
    Simulator::start(options).await.unwrap()
}

/// The roots of the simulator's TLS certificate and of its default CA.
fn trust(simulator: &Simulator) -> Trust {
    let pem = [simulator.ca_pem(), &simulator.est_root_pem(None).unwrap()].concat();
    Trust::Certificates(certificates(&pem))
}

/// A client that says nothing of who it is.
fn stranger(simulator: &Simulator) -> Est {
    Est::new(simulator.est_url().parse().unwrap(), trust(simulator))
        .with_limit(Duration::from_secs(20))
}

fn with_password(simulator: &Simulator) -> Est {
    stranger(simulator).with_basic(Basic::new(NAME, PASSWORD))
}

fn issued(enrolment: Enrolment) -> Vec<Certificate> {
    match enrolment {
        Enrolment::Issued(chain) => chain,
        Enrolment::Later(wait) => panic!("not yet, in {wait:?}"),
    }
}

/// Enrols a key by name and password, and returns it with its certificate.
async fn enrolled(est: &Est, keys: &Keys, id: &str, algorithms: &str) -> ClientIdentity {
    let key = keys.make(id, algorithms).await;
    let csr = Csr::sign(&key, &Profile::client(id)).await.unwrap();
    ClientIdentity::new(issued(est.enroll(csr.der()).await.unwrap()), key).unwrap()
}

/// Enrols a key of each kind, and renews its certificate by itself: the server verifies
/// the request, and what the key signs in the handshake. Keys that keyd does not make are
/// given to it.
async fn each_kind_of_key(server: impl Fn() -> Est, basic: Basic) {
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072).unwrap();
    let keys = Keys::with(&[("ec-p384", &p384), ("rsa-3072", &rsa)]);
    let est = server().with_basic(basic);
    let made = |kind| (kind, kind);
    let kinds = ["ec-p256", "rsa-2048", "rsa-4096"].map(made).into_iter();
    for (kind, algorithms) in kinds.chain([("ec-p384", "*"), ("rsa-3072", "*")]) {
        let own = enrolled(&est, &keys, kind, algorithms).await;
        let next = keys.make(&format!("{kind}-temp"), "ec-p256").await;
        let profile = Profile::client("").renewing(own.leaf().unwrap());
        let csr = Csr::sign(&next, &profile).await.unwrap();
        let renewed = issued(server().with_identity(own).reenroll(csr.der()).await.unwrap());
        assert_eq!(renewed[0].public_key(), next.public().info(), "{kind}");
    }
}
