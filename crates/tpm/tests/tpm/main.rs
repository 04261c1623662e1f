//! The TPM layer against swtpm, with tpm2-tools and openssl as foreign judges.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

mod counter;
mod objects;
#[path = "../parts/mod.rs"]
mod parts;
mod provisioning;
mod registers;
mod service;
mod swtpm;
