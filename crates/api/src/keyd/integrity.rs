//! The log of measurements: routes of ours in the keys API, since 2021-05-01.

use edgekeep_core::assurance::Assurance;
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::integrity::Word;
use edgekeep_core::layout::Daemon;
use http::Method;
use serde::{Deserialize, Serialize};

use super::{AUDIT_VERSION, KeysClient};
use crate::client::ClientError;

/// `POST /integrity/measurements`: what a daemon measured, and is to be recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Measurement {
    /// The daemon is about to serve.
    DaemonStart {
        /// The daemon; the caller's uid has to be its own.
        daemon: Daemon,
        /// SHA-256 of its executable.
        executable: Sha256Digest,
        /// SHA-256 of the settings in force, as JSON without secrets.
        settings: Sha256Digest,
        /// Its version.
        version: Word,
    },
    /// A module was made. For moduled alone.
    ModuleCreate {
        /// The module.
        module: Word,
        /// SHA-256 of the image's configuration; absent for a program of the host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<Sha256Digest>,
        /// SHA-256 of the options that it was made with.
        options: Sha256Digest,
    },
    /// A module is about to be started. For moduled alone.
    ModuleStart {
        /// The module.
        module: Word,
        /// SHA-256 of the image's configuration; absent for a program of the host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<Sha256Digest>,
        /// SHA-256 of the executable of its first process, where it was measured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        executable: Option<Sha256Digest>,
    },
    /// Measurements could not be told while keyd was away: there were too many.
    Omitted {
        /// The daemon that had to tell them; the caller's uid has to be its own.
        daemon: Daemon,
        /// Their number.
        count: u64,
    },
}

/// Answer of `POST /integrity/measurements`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// False if the log says so already.
    pub recorded: bool,
    /// True if a register of the TPM binds the log.
    pub bound: bool,
}

/// A register of the TPM as it was read for this answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterValue {
    /// The number of the PCR or of the NV index.
    pub register: u32,
    /// Its value; absent if there is none, or it could not be read. An index that was
    /// not written holds zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Sha256Digest>,
    /// The reason why there is no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Answer of `GET /integrity?log=<number>`; without a number it is about the newest log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntegrityLog {
    /// True if a register of the TPM binds the newest log.
    pub bound: bool,
    /// The PCR, if one is extended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcr: Option<RegisterValue>,
    /// The NV index, if one is extended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nv: Option<RegisterValue>,
    /// The numbers of the logs that are kept, oldest first.
    pub logs: Vec<u64>,
    /// The number of this log.
    pub number: u64,
    /// The log as it stands on the disk.
    pub log: String,
}

impl KeysClient {
    /// The device's assurance, and what the next level lacks.
    ///
    /// # Errors
    /// If keyd cannot be reached, or is of an earlier version.
    pub async fn assurance(&self) -> Result<Assurance, ClientError> {
        self.0.call(Method::GET, &format!("/assurance?{AUDIT_VERSION}"), None::<&()>).await
    }

    /// Has something that was measured recorded.
    ///
    /// # Errors
    /// If keyd cannot be reached, refuses, or cannot write its log.
    pub async fn measured(&self, measurement: &Measurement) -> Result<Recorded, ClientError> {
        let path = format!("/integrity/measurements?{AUDIT_VERSION}");
        self.0.call(Method::POST, &path, Some(measurement)).await
    }

    /// A log of measurements, with the registers.
    ///
    /// # Errors
    /// If keyd cannot be reached, refuses, or has no such log.
    pub async fn integrity(&self, number: Option<u64>) -> Result<IntegrityLog, ClientError> {
        let which = number.map(|number| format!("&log={number}")).unwrap_or_default();
        self.0.call(Method::GET, &format!("/integrity?{AUDIT_VERSION}{which}"), None::<&()>).await
    }
}
