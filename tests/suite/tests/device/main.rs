//! Whole devices whose modules are programs of the host: no container engine is needed.
//!
//! `compatible` has the keys, certificates and identities of compatible services,
//! `management` and `workload` go through the routes, `module_data` through what modules
//! have encrypted, `cloud_away` and `crashes` through what may go wrong, `children`
//! through what may become of moduled's own processes, `clock` through steps of the
//! clock, `odd_files` through what may stand in a file's place, `credential_files`
//! through files of certificates that change under a device, `health` through what makes
//! the device unhealthy, `operations` through logs and metrics, `sockets` through what
//! can become of a module's socket, `host_programs` through confined modules, services
//! and host agents, `own_users` through host modules with users of their own,
//! `edge_ca_files` through an Edge CA from files, `token_certificates` through one on a
//! token, `est_hardware` through keys in hardware for EST, `certs_command` through what
//! an operator does, `provisioning` through each way to an identity, `operational`
//! through certificates that come with it, `renewals` through years of certificates,
//! `renewals_by_est` and `drawer` through years away from an EST server and from
//! everything, `tls_service` and `renewals_of_all` through a service of a module
//! meanwhile, `renewal_kills` through renewals that are broken off, `refusals` through
//! what is told of callers that were refused, `integrity` through the log of what was
//! started. What others may try is in the attack suite.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

mod certs_command;
mod children;
mod clock;
mod cloud_away;
mod compatible;
mod crashes;
mod credential_files;
mod drawer;
mod edge_ca_files;
mod est_hardware;
mod exposition;
mod health;
mod host_programs;
mod hung;
mod integrity;
mod lost_keys;
mod management;
mod module_data;
mod odd_files;
mod operational;
mod operations;
mod own_users;
mod provisioning;
mod reference_agent;
mod refusals;
mod renewal_kills;
mod renewals;
mod renewals_by_est;
mod renewals_of_all;
mod service;
mod sockets;
mod tls_service;
mod token_certificates;
mod workload;

#[path = "../../../../crates/tpm/tests/parts/mod.rs"]
mod parts;
#[path = "../../../../crates/tpm/tests/tpm/swtpm.rs"]
#[allow(dead_code, reason = "the TPM layer's own tests use the rest")]
mod swtpm;

use edgekeep_testkit::{Device, wait_for};

/// Waits until the device has its Edge CA, which module certificates need.
fn wait_for_edge_ca(device: &Device) {
    wait_for("the Edge CA certificate", || device.status().edge_ca_expiration);
}
