//! Evidence about a peer, from the kernel and never from what the peer says.
//!
//! One [`ProcDir`] pins a process: a later process with the same pid is not visible
//! through it. Those of processes that were admitted are kept for their next connections
//! (`Collector::meet`). `execve` keeps pid, pidfd and start time, so whatever can
//! change is looked at anew for every request (four system calls); hashing happens only
//! when a policy asks for it and the file is new.

mod ancestry;
mod backing;
mod cgroup;
mod executable;
mod holding;
mod image;
mod kept;
mod mountinfo;
mod proc_dir;
mod proc_text;
mod root_mount;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use edgekeep_core::attestation::backing::{Doubt, Lasting, Storage, judge};
use edgekeep_core::attestation::{
    Ancestor, DenyReason, Evidence, ExecutableFile, Holding, Measurement, PeerHandle,
    ProcessInstance, RunningFacts, Snapshot,
};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::ContainerId;
use serde::{Deserialize, Serialize};

use backing::Backings;
pub(crate) use cgroup::container_group;
pub use cgroup::{CgroupHierarchy, ContainerCgroup, ContainerCgroups};
pub use executable::MAX_EXECUTABLE_BYTES;
use executable::{DigestCache, is_settled};
pub(crate) use executable::{Recent, finish, sha256_of};
pub(crate) use holding::Held;
pub use image::{ImageLayers, LayerLookup};
pub use proc_dir::ProcDir;
pub(crate) use proc_dir::{executable_file, has_ended};
pub(crate) use root_mount::{lower_folders, may_mount, may_name_executable};

use image::ImageMemo;
use kept::{Kept, Measured, Subject};

/// Number of ancestors that are followed before giving up. Init systems and engines do
/// not make deeper trees.
pub const MAX_ANCESTRY: usize = 64;

/// The reason why no evidence could be gathered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// The peer's pid is 0 or not in this pid namespace.
    #[error(
        "the caller's process is not visible in this pid namespace; run the daemon in the host's"
    )]
    NotVisible,
    /// The process ended.
    #[error("the caller's process has ended")]
    Gone,
    /// Program, user or cgroup changed while it was looked at.
    #[error("the caller changed its program, user or cgroup while it was measured")]
    Changed,
    /// The kernel refused to tell.
    #[error(
        "cannot read {what} of the caller; the daemon needs CAP_SYS_PTRACE to see other users' processes"
    )]
    Unreadable {
        /// Name of the entry below `/proc/PID`.
        what: &'static str,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The kernel answered in a form this daemon does not know.
    #[error("{what} of the caller has an unknown form")]
    Malformed {
        /// Name of the entry below `/proc/PID`.
        what: &'static str,
    },
    /// The executable is larger than [`MAX_EXECUTABLE_BYTES`].
    #[error("the caller's executable is larger than {MAX_EXECUTABLE_BYTES} bytes")]
    TooLarge,
    /// The executable's content may be another than the code that runs.
    #[error("the caller's executable is not known to be what runs ({0:?})")]
    Doubted(Doubt),
}

/// Facts from the module's own start about the files that its processes execute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedFrom {
    /// The sealed copy that the daemon made for a host module.
    pub own_copy: Option<ExecutableFile>,
    /// The first process of its container, for container modules.
    pub container_init: Option<ProcessInstance>,
}

impl From<&RunningFacts> for StartedFrom {
    fn from(facts: &RunningFacts) -> Self {
        match facts {
            RunningFacts::Running(running) => Self {
                own_copy: running.own_copy,
                container_init: running.container.is_some().then_some(running.init),
            },
            RunningFacts::Unknown | RunningFacts::Stopped | RunningFacts::Host(_) => {
                Self::default()
            }
        }
    }
}

impl EvidenceError {
    /// The reason to refuse the caller with.
    #[must_use]
    pub fn reason(&self) -> DenyReason {
        match self {
            Self::NotVisible => DenyReason::PidNotVisible,
            Self::Gone => DenyReason::CallerGone,
            Self::Changed => DenyReason::CallerChanged,
            Self::Doubted(doubt) => doubt.reason(),
            Self::Unreadable { .. } | Self::Malformed { .. } | Self::TooLarge => {
                DenyReason::ExecutableUnmeasured
            }
        }
    }

    fn reading(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| match errno {
            // A process that was reaped has no entry; a zombie has no program.
            rustix::io::Errno::SRCH | rustix::io::Errno::NOENT => Self::Gone,
            other => Self::Unreadable { what, source: other.into() },
        }
    }
}

/// Gathers evidence; holds what is the same for all callers, and the caches.
#[derive(Debug)]
pub struct Collector {
    hierarchy: CgroupHierarchy,
    containers: ContainerCgroups,
    digests: DigestCache,
    backings: Backings,
    images: ImageMemo,
    kept: Kept,
}

impl Collector {
    /// A collector that reads cgroups in `hierarchy` and knows the engine's cgroup paths
    /// by `containers`.
    #[must_use]
    pub fn new(hierarchy: CgroupHierarchy, containers: ContainerCgroups) -> Self {
        Self {
            hierarchy,
            containers,
            digests: DigestCache::default(),
            backings: Backings::new(),
            images: ImageMemo::default(),
            kept: Kept::default(),
        }
    }

    /// Returns true if this kernel keeps writers out of files that are executed. On other
    /// kernels hardly any executable is known by its content.
    #[must_use]
    pub fn kernel_denies_writers(&self) -> bool {
        self.backings.denies_writers()
    }

    /// The cgroup hierarchy that snapshots are taken in.
    #[must_use]
    pub fn hierarchy(&self) -> &CgroupHierarchy {
        &self.hierarchy
    }

    /// One moment's view of the process.
    ///
    /// # Errors
    /// The process has ended, or the kernel does not let us see it.
    pub fn snapshot(&self, process: &ProcDir) -> Result<Snapshot, EvidenceError> {
        Ok(process.look(&self.hierarchy)?.snapshot)
    }

    /// The process as it is now, if it still is the caller that `snapshot` is of
    /// ([`Snapshot::is_of_same_caller`]; four system calls).
    #[must_use]
    pub fn recheck(&self, process: &ProcDir, snapshot: &Snapshot) -> Option<Snapshot> {
        let now = self.snapshot(process).ok()?;
        snapshot.is_of_same_caller(&now).then_some(now)
    }

    /// Finds out how the process holds its end of a connection. `socket` is the inode
    /// number of that end, `program` the executable that the process was seen to run, and
    /// `likely` the descriptors to look at first. A process that runs, or begins, another
    /// program meanwhile holds nothing.
    ///
    /// To be called as soon as the connection is accepted: a program may change the flags
    /// of its descriptors.
    #[must_use]
    pub(crate) fn holding(
        &self,
        process: &ProcDir,
        socket: u64,
        program: &ExecutableFile,
        likely: &[u32],
    ) -> Held {
        process.holding(socket, program, likely).unwrap_or_else(|error| {
            tracing::debug!(%error, pid = process.pid(), "descriptors not seen");
            (Holding::NotHeld, None)
        })
    }

    /// Opens the process that connected, or finds it among the processes that are kept,
    /// and looks at it. Returns both.
    ///
    /// `pid` and `pidfd` are of the process that connected, as the kernel tells both.
    ///
    /// # Errors
    /// As [`ProcDir::open`] and the look.
    pub(crate) fn meet<T>(
        &self,
        pid: u32,
        pidfd: BorrowedFd<'_>,
        look: impl Fn(&ProcDir) -> Result<T, EvidenceError>,
    ) -> Result<(Arc<ProcDir>, T), EvidenceError> {
        if let Some(kept) = self.kept.get(pid) {
            // Before the look at what is kept, which then proves that this is it.
            if has_ended(pidfd).map_err(EvidenceError::reading("pidfd"))? {
                return Err(EvidenceError::Gone);
            }
            match look(&kept) {
                // The number is another process's now.
                Err(EvidenceError::Gone) => self.kept.forget(&kept),
                seen => return seen.map(|seen| (kept, seen)),
            }
        }
        let process = Arc::new(ProcDir::open(pid, pidfd)?);
        let seen = look(&process)?;
        Ok((process, seen))
    }

    /// Keeps a process for its next connection. For those that were admitted: nobody else
    /// takes a place.
    pub(crate) fn keep(&self, process: &Arc<ProcDir>) {
        self.kept.keep(process);
    }

    /// Everything but the measurement of the executable and the look at the connection.
    ///
    /// With the module's first process as `stop_at` the ancestry ends there: what is
    /// above it decides nothing, and each level costs about 15 µs.
    ///
    /// The kernel is asked one thing after the other, so two looks have to agree. That
    /// may be two of different connections.
    ///
    /// # Errors
    /// The process has ended or changed meanwhile, or the kernel does not let us see it.
    pub fn identify(
        &self,
        handle: PeerHandle,
        process: &ProcDir,
        stop_at: Option<&ProcessInstance>,
    ) -> Result<Evidence, EvidenceError> {
        let (snapshot, ancestry) = self.known_twice(process, stop_at)?;
        let container = self.container_of(&snapshot);
        Ok(Evidence {
            handle,
            snapshot,
            ancestry,
            holding: Holding::Untold,
            container,
            measurement: None,
        })
    }

    /// The process and its ancestors, as [`Self::identify`].
    pub(crate) fn known_twice(
        &self,
        process: &ProcDir,
        stop_at: Option<&ProcessInstance>,
    ) -> Result<(Snapshot, Vec<Ancestor>), EvidenceError> {
        let look = process.look(&self.hierarchy)?;
        let ancestry = process.ancestry(look.parent, stop_at, MAX_ANCESTRY)?;
        let snapshot = look.snapshot;
        let agreed = process.found().agreed.as_ref() == Some(&snapshot);
        if !agreed {
            if self.snapshot(process)? != snapshot {
                return Err(EvidenceError::Changed);
            }
            process.found().agreed = Some(snapshot.clone());
        }
        Ok((snapshot, ancestry))
    }

    /// The container whose control group the process is in.
    pub(crate) fn container_of(&self, snapshot: &Snapshot) -> Option<ContainerId> {
        self.containers.container_id(&snapshot.cgroup)
    }

    /// Adds the measurement: the executable's digest and, with the `image` that its
    /// container runs, whether it is an unmodified file of it. Nothing is hashed of a
    /// file that may be another than the code that runs. Blocks for as long as hashing
    /// takes; a digest is cached until the file changes, if each change shows, and with
    /// the process, so that its next connection costs no call.
    ///
    /// # Errors
    /// As [`Self::identify`]; [`EvidenceError::Changed`] if the process is no longer the
    /// one in `evidence`; [`EvidenceError::Doubted`] by the file's kind.
    pub fn measure(
        &self,
        process: &ProcDir,
        evidence: Evidence,
        started_from: StartedFrom,
        image: Option<&ImageLayers>,
    ) -> Result<Evidence, EvidenceError> {
        let measurement = self.measured(process, &evidence.snapshot, started_from, image)?;
        Ok(Evidence { measurement: Some(measurement), ..evidence })
    }

    /// The measurement that was made before, if its inputs are the same as then. `image`
    /// is the image to compare with, by its id.
    ///
    /// # Errors
    /// The process has ended.
    pub(crate) fn known_measurement(
        &self,
        process: &ProcDir,
        snapshot: &Snapshot,
        started_from: StartedFrom,
        image: Option<Sha256Digest>,
    ) -> Result<Option<Measurement>, EvidenceError> {
        let path = image.map(|_| process.executable_path()).transpose()?;
        Ok(find(process, &Subject::new(snapshot, started_from, image.zip(path))))
    }

    /// Measures the executable of the process that `snapshot` is of, as
    /// [`Self::measure`].
    ///
    /// # Errors
    /// As [`Self::measure`].
    pub(crate) fn measured(
        &self,
        process: &ProcDir,
        snapshot: &Snapshot,
        started_from: StartedFrom,
        image: Option<&ImageLayers>,
    ) -> Result<Measurement, EvidenceError> {
        let path = image.map(|_| process.executable_path()).transpose()?;
        let image = image.zip(path);
        let compared: Option<(Sha256Digest, PathBuf)> =
            image.as_ref().map(|(image, path)| (*image.image(), path.clone()));
        let subject = Subject::new(snapshot, started_from, compared);
        if let Some(measurement) = find(process, &subject) {
            return Ok(measurement);
        }
        let begun = SystemTime::now();
        let (file, opened) = process.open_executable()?;
        if file != snapshot.executable {
            return Err(EvidenceError::Changed);
        }
        let (backing, mounted, is_unique) =
            self.backings.look(process, file, opened.as_fd(), started_from.container_init)?;
        let lasting =
            judge(&backing, started_from.own_copy.as_ref(), self.backings.denies_writers())
                .map_err(EvidenceError::Doubted)?;
        let digest = self.digests.digest(mounted, lasting, opened)?;
        let unmodified_from_image = image
            .as_ref()
            .and_then(|(image, path)| self.images.unmodified(image, path, digest, &self.digests));
        if self.snapshot(process)? != *snapshot {
            return Err(EvidenceError::Changed);
        }
        let measurement = Measurement { digest, unmodified_from_image };
        let lasts = match lasting {
            Lasting::ForNow => false,
            Lasting::UntilChanged => is_settled(&file, begun),
            Lasting::ForGood => true,
        };
        // What is known of an overlay is known by a number that no other mount gets.
        let mounted_for_good = is_unique || backing.storage != Storage::Overlay;
        let compared = image.is_none() || unmodified_from_image.is_some();
        if lasts && mounted_for_good && compared {
            process.found().measured = Some(Measured { subject, measurement });
        }
        Ok(measurement)
    }
}

fn find(process: &ProcDir, subject: &Subject) -> Option<Measurement> {
    let found = process.found();
    found
        .measured
        .as_ref()
        .and_then(|measured| (measured.subject == *subject).then_some(measured.measurement))
}
