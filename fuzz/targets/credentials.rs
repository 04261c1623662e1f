//! Files of certificates and keys, answers of EST servers, and requests: what is taken as
//! a certificate is one, and no key leaves by the way of certificates.
#![no_main]

use edgekeep_core::credentials::{
    Certificate, Limits, pem_of, read_certificates, read_certs_only, read_key, read_public_key,
};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { bytes: 1 << 16, blocks: 50, certificates: 20, findings: 4 };

fuzz_target!(|content: &[u8]| {
    let file = read_certificates(content, &LIMITS);
    assert!(file.certificates.len() <= LIMITS.certificates);
    let pem = pem_of(&file.certificates);
    assert!(!pem.contains("PRIVATE KEY"));
    if !file.certificates.is_empty() {
        let again = read_certificates(pem.as_bytes(), &Limits::FILE);
        assert_eq!(again.certificates, file.certificates);
        assert!(again.findings.is_empty());
    }
    let _ = read_key(content, &LIMITS);
    let _ = read_public_key(content, &LIMITS);
    let _ = Certificate::from_der(content);
    if let Ok(certificates) = read_certs_only(content, 8) {
        assert!(certificates.len() <= 8);
    }
    let _ = edgekeep_est::request_key(content);
});
