//! Keys in a TPM against swtpm, with tpm2-tools and openssl as foreign judges.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

mod keys;
#[path = "../../../tpm/tests/parts/mod.rs"]
mod parts;
mod speed;
#[path = "../../../tpm/tests/tpm/swtpm.rs"]
#[allow(dead_code, reason = "the TPM layer's own tests use the rest")]
mod swtpm;
mod wiretap;
