//! Processes that are known from earlier connections: their open folders, and what about
//! them cannot change or is looked at again each time.
//!
//! A number names at most one living process at a time. So if the process of a new
//! connection lives, and afterwards the kept folder of that number still answers, whose
//! process was there before, then both are one.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edgekeep_core::attestation::{ExecutableFile, Measurement, Snapshot};
use edgekeep_core::digest::Sha256Digest;

use super::executable::Recent;
use super::{ProcDir, StartedFrom};

/// Processes that are kept, of four descriptors each; that of the longest unheard is
/// forgotten first.
const KEPT: usize = 256;

/// Processes by their numbers.
#[derive(Debug)]
pub(super) struct Kept(Mutex<Recent<u32, Arc<ProcDir>>>);

impl Default for Kept {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(KEPT)))
    }
}

impl Kept {
    pub(super) fn get(&self, pid: u32) -> Option<Arc<ProcDir>> {
        self.lock().get(&pid)
    }

    pub(super) fn keep(&self, process: &Arc<ProcDir>) {
        self.lock().insert(process.pid(), Arc::clone(process));
    }

    /// Forgets a process, unless another one has its place already.
    pub(super) fn forget(&self, process: &Arc<ProcDir>) {
        let mut kept = self.lock();
        if kept.get(&process.pid()).is_some_and(|other| Arc::ptr_eq(&other, process)) {
            kept.remove(&process.pid());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Recent<u32, Arc<ProcDir>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The inputs of a measurement. With all inputs the same, a measurement that lasts has
/// the same result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subject {
    executable: ExecutableFile,
    mount: u64,
    started_from: StartedFrom,
    /// The image that the executable was compared with, and the path in the image.
    image: Option<(Sha256Digest, PathBuf)>,
}

impl Subject {
    pub(super) fn new(
        snapshot: &Snapshot,
        started_from: StartedFrom,
        image: Option<(Sha256Digest, PathBuf)>,
    ) -> Self {
        let (executable, mount) = (snapshot.executable, snapshot.executable_mount);
        Self { executable, mount, started_from, image }
    }
}

/// A measurement that lasts until its subject changes.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) subject: Subject,
    pub(super) measurement: Measurement,
}
