//! Evidence through a process of its own: the gauge looks at processes, executables and
//! image layers, with rights that the daemon itself does not have.
//!
//! The gauge answers with values ([`Seen`], [`Measurement`]); what follows from them is
//! decided by whoever asks. A verdict on a caller that is known takes one question. A
//! gauge that does not answer is no evidence: the error is not one about the caller.

mod asked;
mod numbers;
mod service;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgekeep_children::{AskError, Link};
use edgekeep_core::attestation::{DenyReason, Measurement, ProcessInstance, Snapshot};
use edgekeep_core::digest::Sha256Digest;
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use asked::{Answer, Asked, Compared, First, Seen};
use asked::{Connection, Look, Measure};
pub use numbers::Held;
use numbers::{Numbers, lock};
pub use service::GaugeService;

use crate::evidence::{Collector, ImageLayers, Recent};

/// Longest time of a look. The child hangs if it says nothing for less than that.
const LOOK_LIMIT: Duration = Duration::from_millis(1800);

/// Longest time for reading a file of a gibibyte on a slow disk.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// Files that are read at once: fewer than the questions that a child takes, so that one
/// whose file system keeps it waiting holds up no look.
const READS: usize = 8;

/// Processes that were admitted, by their numbers; that of the longest unheard is
/// forgotten first.
const ADMITTED: usize = 256;

/// Failure to get evidence from the gauge. It says nothing about the process that was to
/// be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GaugeError {
    /// There is no answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// Other executables are being read for too long.
    #[error("too many executables are being read; a file system may not answer")]
    Busy,
    /// The answer is one to another question.
    #[error("the gauge process answered another question")]
    Foreign,
}

/// The process that looks at processes: this one, or a child of it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gauge {
    who: Who,
    reads: Arc<Semaphore>,
    admitted: Arc<Mutex<Recent<u32, Arc<Mutex<Numbers>>>>>,
}

#[derive(Debug, Clone)]
enum Who {
    Own(GaugeService),
    Child(Link),
}

/// A process that is to be looked at.
#[derive(Debug, Clone, Copy)]
pub struct Whom<'a> {
    /// Number of the process.
    pub pid: u32,
    /// The handle to it.
    pub pidfd: BorrowedFd<'a>,
    /// Inode number of the caller's end of a connection that is to be looked for.
    pub socket: Option<u64>,
    /// The measurement that is wanted if it was made before.
    pub measured: Option<Compared>,
}

impl Gauge {
    /// Looks with the rights of this process.
    #[must_use]
    pub fn here(collector: Collector) -> Self {
        Self::of(Who::Own(GaugeService::new(collector)))
    }

    /// Looks through a child of this process.
    #[must_use]
    pub fn child(link: Link) -> Self {
        Self::of(Who::Child(link))
    }

    fn of(who: Who) -> Self {
        Self {
            who,
            reads: Arc::new(Semaphore::new(READS)),
            admitted: Arc::new(Mutex::new(Recent::new(ADMITTED))),
        }
    }

    async fn ask(
        &self,
        asked: Asked,
        pidfd: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> Result<(Answer, Vec<OwnedFd>), GaugeError> {
        match &self.who {
            Who::Own(service) => {
                let files = pidfd.map(|pidfd| pidfd.try_clone_to_owned()).transpose();
                let files = files.map_err(|_| GaugeError::Foreign)?;
                Ok(service.answer(asked, files.into_iter().collect()).await)
            }
            Who::Child(link) => Ok(link.ask(&asked, pidfd.as_slice(), limit).await?),
        }
    }

    /// Asks for something that takes as long as reading a file takes.
    async fn read(
        &self,
        asked: Asked,
        pidfd: Option<BorrowedFd<'_>>,
    ) -> Result<(Answer, Vec<OwnedFd>), GaugeError> {
        let Ok(Ok(_turn)) = timeout(READ_LIMIT, self.reads.acquire()).await else {
            return Err(GaugeError::Busy);
        };
        self.ask(asked, pidfd, READ_LIMIT).await
    }

    /// Returns true if this kernel keeps writers out of files that are executed. On other
    /// kernels hardly any executable is known by its content.
    ///
    /// # Errors
    /// See [`GaugeError`].
    pub async fn kernel_denies_writers(&self) -> Result<bool, GaugeError> {
        match self.ask(Asked::About, None, LOOK_LIMIT).await?.0 {
            Answer::About(denies) => Ok(denies),
            _ => Err(GaugeError::Foreign),
        }
    }

    /// Looks at a process for the first time, with its ancestors up to `stop_at`.
    ///
    /// # Errors
    /// See [`GaugeError`]; the inner error is the reason why there is no evidence.
    pub async fn look(
        &self,
        whom: Whom<'_>,
        stop_at: Option<ProcessInstance>,
    ) -> Result<Result<(Seen, Option<Held>), DenyReason>, GaugeError> {
        self.see(whom, stop_at, false).await
    }

    /// Looks at whatever may have changed about a process.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub async fn look_again(
        &self,
        whom: Whom<'_>,
    ) -> Result<Result<(Seen, Option<Held>), DenyReason>, GaugeError> {
        self.see(whom, None, true).await
    }

    async fn see(
        &self,
        whom: Whom<'_>,
        stop_at: Option<ProcessInstance>,
        again: bool,
    ) -> Result<Result<(Seen, Option<Held>), DenyReason>, GaugeError> {
        let Whom { pid, pidfd, socket, measured } = whom;
        let numbers = self.admitted(pid);
        let likely = || numbers.as_ref().map(|numbers| lock(numbers).in_order());
        let connection =
            socket.map(|socket| Connection { socket, likely: likely().unwrap_or_default() });
        let keep = numbers.is_some();
        let look = Look { pid, stop_at, again, connection, measured, keep };
        match self.ask(Asked::Look(look), Some(pidfd), LOOK_LIMIT).await?.0 {
            Answer::Seen(seen) => {
                let held = seen.held.map(|(how, number)| Held::seen(how, number, numbers.as_ref()));
                Ok(Ok((*seen, held)))
            }
            Answer::Unseen(reason) => Ok(Err(reason)),
            _ => Err(GaugeError::Foreign),
        }
    }

    /// Measures the executable of a process that was seen, and compares it with the
    /// image's layers. Takes as long as reading the files takes.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub async fn measure(
        &self,
        pidfd: BorrowedFd<'_>,
        snapshot: &Snapshot,
        compared: Compared,
        layers: Option<&ImageLayers>,
    ) -> Result<Result<Measurement, DenyReason>, GaugeError> {
        let folders = layers.map(|layers| layers.folders().to_vec()).unwrap_or_default();
        let keep = self.admitted(snapshot.process.pid).is_some();
        let measure = Measure { snapshot: snapshot.clone(), compared, folders, keep };
        match self.read(Asked::Measure(measure), Some(pidfd)).await?.0 {
            Answer::Measured(measurement) => Ok(Ok(measurement)),
            Answer::Unseen(reason) => Ok(Err(reason)),
            _ => Err(GaugeError::Foreign),
        }
    }

    /// Has a process kept for its next connections. For those that were admitted: nobody
    /// else takes a place.
    pub fn keep(&self, pid: u32) {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        if admitted.get(&pid).is_none() {
            admitted.insert(pid, Arc::default());
        }
    }

    fn admitted(&self, pid: u32) -> Option<Arc<Mutex<Numbers>>> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner).get(&pid)
    }

    /// Looks at the first process of a container. `None` if there is no such process.
    ///
    /// # Errors
    /// See [`GaugeError`].
    pub async fn first_process(&self, pid: u32) -> Result<Option<First>, GaugeError> {
        match self.ask(Asked::First { pid }, None, LOOK_LIMIT).await?.0 {
            Answer::First(first) => Ok(first),
            _ => Err(GaugeError::Foreign),
        }
    }

    /// Finds the read-only folders below the root of a container's first process,
    /// top-most first. `None` if they are not sure. Who asks has made sure that nothing
    /// in the container may mount.
    ///
    /// # Errors
    /// See [`GaugeError`].
    pub async fn root_layers(
        &self,
        init: ProcessInstance,
    ) -> Result<Option<Vec<PathBuf>>, GaugeError> {
        match self.ask(Asked::Layers { init }, None, LOOK_LIMIT).await?.0 {
            Answer::Layers(layers) => Ok(layers),
            _ => Err(GaugeError::Foreign),
        }
    }

    /// Opens the sealed program that a process runs, if the program has this content.
    ///
    /// # Errors
    /// See [`GaugeError`]; the inner error is the reason, in words.
    pub async fn program(
        &self,
        process: ProcessInstance,
        sha256: Sha256Digest,
    ) -> Result<Result<OwnedFd, String>, GaugeError> {
        match self.read(Asked::Program { process, sha256 }, None).await? {
            (Answer::Opened, files) => files.into_iter().next().map(Ok).ok_or(GaugeError::Foreign),
            (Answer::Unfit(why), _) => Ok(Err(why)),
            _ => Err(GaugeError::Foreign),
        }
    }

    /// Checks that a file is a program for this machine, with this content.
    ///
    /// # Errors
    /// See [`GaugeError`]; the inner error is the reason and the remedy, in words.
    pub async fn verify(
        &self,
        executable: PathBuf,
        sha256: Sha256Digest,
    ) -> Result<Result<(), String>, GaugeError> {
        match self.read(Asked::Verify { executable, sha256 }, None).await?.0 {
            Answer::Verified => Ok(Ok(())),
            Answer::Unfit(why) => Ok(Err(why)),
            _ => Err(GaugeError::Foreign),
        }
    }

    /// Finds out whether a user runs an executable of this path. `None` if processes
    /// cannot be listed. For people: no caller is judged by the answer.
    ///
    /// # Errors
    /// See [`GaugeError`].
    pub async fn runs(&self, uid: u32, executable: PathBuf) -> Result<Option<bool>, GaugeError> {
        match self.ask(Asked::Runs { uid, executable }, None, LOOK_LIMIT).await?.0 {
            Answer::Runs(runs) => Ok(runs),
            _ => Err(GaugeError::Foreign),
        }
    }
}
