//! The daemon as a process with a token and with a TPM, both simulated, over its real
//! sockets.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../tpm/tests/parts/mod.rs"]
mod parts;
#[path = "../../../tpm/tests/tpm/service.rs"]
mod service;
#[path = "../../../tpm/tests/tpm/swtpm.rs"]
#[allow(dead_code, reason = "the TPM layer's own tests use the rest")]
mod swtpm;

#[path = "../../../hsm/tests/tokens/mod.rs"]
mod tokens;

mod assurance;
mod audit_log;
mod faults;
mod fixtures;
mod integrity;
mod store_key;
mod tls_client;
mod token_keys;
mod tpm_keys;

use std::fs::{self, File};
use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{EncryptMechanism, KeyHandle, KeysClient, SignMechanism};
use edgekeep_api::operations::OperationsClient;
use edgekeep_api::tpmd::TpmClient;
use edgekeep_audit::checkpoint::Checkpoint;
use edgekeep_audit::entry::Shown;
use edgekeep_audit::note::VerifierKey;
use edgekeep_audit::verify::{Fault, FaultKind, Gap, Known, NotCounting, Report, verify};
use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use edgekeep_core::names;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use swtpm::Swtpm;

use fixtures::*;
