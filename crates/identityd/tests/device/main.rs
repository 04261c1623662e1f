//! identityd with a real keyd against a simulated cloud.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

mod certificates;
mod compatible_keys;
mod est;
mod est_bootstrap;
#[path = "../../../est/tests/servers/estserver.rs"]
mod estserver;
mod foreign_requests;
mod forms;
mod harness;
mod identities;
mod libest;
mod operational;
mod provisioning;
mod renewals;
mod x509;
