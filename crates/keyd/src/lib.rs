//! keyd: the daemon that holds the device's keys. It serves the keys API on `keyd.sock`,
//! and the TPM API on `tpmd.sock` if there is a TPM.
//!
//! Touches: its state folder (`keys/`, `internal/`, `tpm/`, `moves/`, `makers`,
//! `kept`, `accepted-losses`, `store.key`, `import/`, `audit/`, `integrity/`), the
//! files of preloaded keys and of PINs (reading), its sockets, its settings file
//! (reading); the TPM and the PKCS#11 libraries that the settings name. Never: the
//! network (but for a simulated TPM), another process, a container engine. Private
//! keys and symmetric keys do not leave it; only keys derived from a symmetric key
//! can be exported, by who was granted that. What it does not need for that it gives
//! up for good before it serves ([`confine`]). Every use of a key and every refusal
//! is in its audit log before the answer goes out; but a uid that has used up its
//! share of the log has equal uses counted together, for half a minute.

pub mod assurance;
mod confine;
mod counter;
pub mod handle;
mod integrity;
mod kept;
mod libraries;
mod makers;
pub mod metrics;
mod places;
mod record;
mod recovering;
pub mod routes;
pub mod start;
mod state;
mod token_certificates;
mod turns;
mod watching;

use std::sync::Arc;

use edgekeep_api::operations::SandboxReport;
use edgekeep_core::key_use::Policy;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::clock::BootClock;
use edgekeep_hsm::KeyBackend;
pub use places::PlacesError;
pub use start::Ready;
pub use state::{Prepared, StartError};

use crate::assurance::Assured;
use crate::handle::Handles;
use crate::integrity::Integrity;
use crate::kept::Kept;
use crate::makers::Makers;
use crate::record::Recorder;
use crate::routes::tpm::Tpmd;
use crate::token_certificates::TokenCertificates;
use crate::turns::Turns;

/// Threads that may wait for a disk, a token or the TPM, or compute for long.
#[must_use]
pub const fn slow_threads(has_hardware: bool) -> usize {
    // As many as sessions with a token are open; and two for the processors beside two
    // that wait.
    if has_hardware { 8 } else { 4 }
}

/// The state that the routes work on.
pub struct Keyd {
    /// First, so that it is closed before the backend gives up the folder for another
    /// process.
    recorder: Arc<Recorder>,
    /// NV index of the audit log's counter, if there is a TPM.
    counter_index: Option<u32>,
    /// The log of measurements.
    integrity: Arc<Integrity>,
    /// The device's assurance.
    assured: Assured,
    /// The board of problems, for operators.
    board: Board,
    backend: Arc<dyn KeyBackend>,
    certificates: Arc<TokenCertificates>,
    turns: Arc<Turns>,
    makers: Arc<Makers>,
    kept: Arc<Kept>,
    /// The TPM API, if there is a TPM.
    tpmd: Option<Arc<Tpmd>>,
    handles: Handles,
    /// Clock that measures how long handles have been good.
    boot: BootClock,
    policy: Policy,
}

impl Keyd {
    /// The board of problems.
    #[must_use]
    pub const fn board(&self) -> &Board {
        &self.board
    }

    /// Takes the report of what this process has given up.
    pub(crate) fn confined(&self, report: &SandboxReport) {
        self.assured.confined(report);
    }

    /// Returns the state that the TPM API works on, if there is a TPM.
    #[must_use]
    pub fn tpmd(&self) -> Option<Arc<Tpmd>> {
        self.tpmd.clone()
    }
}
