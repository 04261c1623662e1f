//! Files of certificates and keys, made by openssl, in every form that people have them
//! in.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

mod certificates;
mod keys;
mod random;

use edgekeep_core::credentials::{Certificate, CertificateFile, Fault, Limits};
use edgekeep_test_plant::Plant;

const LIMITS: &Limits = &Limits::FILE;

fn faults(file: &CertificateFile) -> Vec<Fault> {
    file.findings.list().iter().map(|finding| finding.fault).collect()
}

fn certificate(plant: &Plant, name: &str) -> Certificate {
    Certificate::from_der(&plant.der(name)).unwrap()
}

fn certificates<const N: usize>(plant: &Plant, names: [&str; N]) -> Vec<Certificate> {
    names.map(|name| certificate(plant, name)).to_vec()
}
