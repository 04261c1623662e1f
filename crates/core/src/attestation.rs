//! The meaning of "measured": the verdict on a caller. The verdict is a function of what
//! is registered, of what runs, and of what the kernel says about the process at the
//! other end of the socket.
//!
//! Evidence is gathered elsewhere (`edgekeep-runtime`); here nothing is looked up. A
//! verdict is *allow* or *deny with one named reason*; whatever is not known denies.

pub mod backing;
mod case;
#[cfg(test)]
mod explained;
mod looks;
pub mod second_look;
mod table;

use serde::{Deserialize, Serialize};

use crate::digest::Sha256Digest;
use crate::host::UnitName;
use crate::id::{ContainerId, GenerationId, ModuleId};

use self::case::Case;
pub use self::case::may_be_orphan;
pub use self::looks::chain_stands;
use self::table::{CHECKS, Stage};
pub use self::table::{DenyReason, Explanation};

/// One process that ever ran: a process id alone is reused, together with the start time
/// it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessInstance {
    /// Process id in the daemon's own pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
}

/// The file that a process executes, named by marks that are cheap to read. The marks
/// differ after any change of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExecutableFile {
    /// Device number of the file system.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last inode change, nanoseconds since the epoch.
    pub ctime_ns: i64,
}

/// The state of a process at one moment, as the kernel tells it. Two equal snapshots
/// around a measurement prove that the measurement was of the same program in the same
/// place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The process that the snapshot shows.
    pub process: ProcessInstance,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// The file that the process executes.
    pub executable: ExecutableFile,
    /// Number of the mount that the executable is on, 0 where the kernel does not tell.
    /// From Linux 6.8 on no later mount gets the same.
    #[serde(default)]
    pub executable_mount: u64,
    /// Its cgroup path in the hierarchy that the engine uses.
    pub cgroup: String,
    /// Inode of its pid namespace.
    pub pid_namespace: u64,
    /// Inode of its user namespace.
    pub user_namespace: u64,
    /// Process id of a tracer, 0 for none. A traced process says whatever its tracer
    /// wants.
    pub tracer: u32,
    /// Number of its filters of system calls; `None` where the kernel does not tell
    /// (before 5.9). They outlive `execve`.
    #[serde(default)]
    pub filters: Option<u32>,
}

/// The way in which the kernel told which process is at the other end. Some ways are
/// surer than others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerHandle {
    /// `SO_PEERPIDFD`: a handle taken at connect, which no other process can take over.
    PeerPidfd,
    /// `pidfd_open` of the pid in `SO_PEERCRED`, right after accept: a small window for
    /// reuse remains (kernels before 6.5).
    PidfdOpen,
}

/// One process on the way from the caller up to its module's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ancestor {
    /// The process itself.
    pub process: ProcessInstance,
    /// Its session: inherited from the parent, or a new one of its own making. No process
    /// joins an existing one.
    pub session: u32,
}

/// The way in which the caller's process holds the connection that it calls on.
///
/// `execve` keeps pid, pidfd and start time. A descriptor that is closed on exec tells
/// what connected: had the process executed something since it connected, the descriptor
/// would be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holding {
    /// In a descriptor that is closed on exec: the program that runs now made the
    /// connection.
    CloseOnExec,
    /// In a descriptor that survives exec: whatever ran in this process before may have
    /// connected and asked.
    Inheritable,
    /// Not at all: another process has the connection, or which one it is could not be
    /// told.
    NotHeld,
    /// The kernel does not tell which descriptor belongs to which connection (built
    /// without `UNIX_DIAG`), or there is no connection.
    Untold,
}

/// The executable's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measurement {
    /// SHA-256 of the file that the process executes.
    pub digest: Sha256Digest,
    /// True if the container's image holds the same content under the same path; `None`
    /// if this could not be determined or does not apply.
    pub unmodified_from_image: Option<bool>,
}

/// Everything that is known about the caller of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The way in which the peer was identified.
    pub handle: PeerHandle,
    /// The kernel's view, equal before and after the measurement.
    pub snapshot: Snapshot,
    /// The process, its parent, its grandparent and so on, up to the first one that
    /// cannot be seen.
    pub ancestry: Vec<Ancestor>,
    /// The way in which the caller holds the connection; looked at only where the
    /// executable counts (see [`needs_measurement`]).
    pub holding: Holding,
    /// Container id, if the cgroup path is exactly one that the engine makes.
    pub container: Option<ContainerId>,
    /// Content of the executable, if it was measured.
    pub measurement: Option<Measurement>,
}

/// The attestation policy of a module: how much of a caller must match the registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// In the module's container or process group, however it got there (for example by
    /// the engine's `exec`).
    Process,
    /// Also a descendant of the module's first process, and the registered image and
    /// options run.
    Image,
    /// Also the executable is an unmodified file of that image, or has the registered
    /// digest.
    Executable,
}

/// The form of a module (container, process or service) and what the module is made of.
/// Both are fixed when the module is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Workload {
    /// A container of the engine.
    Container {
        /// The container made for this registration.
        container: ContainerId,
        /// Content hash of the image configuration, which covers all layers.
        image: Sha256Digest,
        /// Hash of the create options.
        options: Sha256Digest,
    },
    /// A process of the host, started by moduled.
    Process {
        /// SHA-256 of the executable.
        executable: Sha256Digest,
        /// The user it runs as.
        uid: u32,
    },
    /// A service of the host that something else starts: whichever process fits
    /// everything that is given. A registration without a unit has both user and
    /// executable.
    Service {
        /// The unit in whose cgroup it is.
        unit: Option<UnitName>,
        /// The user it runs as.
        uid: Option<u32>,
        /// SHA-256 of the executable.
        executable: Option<Sha256Digest>,
    },
}

/// The record that moduled wrote when it created a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The registered module.
    pub module: ModuleId,
    /// The identity's generation, once it is known.
    pub generation: Option<GenerationId>,
    /// The policy that a caller must meet.
    pub policy: Policy,
    /// The workload that was registered.
    pub workload: Workload,
}

/// Facts about what runs for a module now, from the engine's event stream or from
/// moduled's own children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunningFacts {
    /// The engine has not been heard since it (or we) started: nothing is known.
    Unknown,
    /// Known not to run.
    Stopped,
    /// Runs.
    Running(Running),
    /// A service of the host, which has no first process that is known: what its
    /// processes share with the daemon.
    Host(HostFacts),
}

/// The daemon's own place on the machine, in which services of the host are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// Inode of the pid namespace.
    pub pid_namespace: u64,
    /// Inode of the user namespace.
    pub user_namespace: u64,
}

/// Facts about a module that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its first process.
    pub init: ProcessInstance,
    /// Inode of the first process's user namespace.
    pub user_namespace: u64,
    /// The first process's cgroup path; `None` if the module has no cgroup of its own.
    pub cgroup: Option<String>,
    /// The container, for container modules.
    pub container: Option<ContainerFacts>,
    /// The earliest moment, as a start time, at which the engine's `exec` may have
    /// brought a process into this container; `None` if it has not since the container
    /// was started.
    pub exec_since: Option<u64>,
    /// The sealed copy in memory that the daemon started it from, for host modules.
    pub own_copy: Option<ExecutableFile>,
    /// Number of filters of system calls that it was started with; `None` if it does not
    /// matter, as for host modules, whose own filter refuses listeners to all that they
    /// start.
    pub filters: Option<u32>,
}

/// Facts about what a container is made of now, as the engine tells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFacts {
    /// The container's id.
    pub container: ContainerId,
    /// The image that it runs (not what the tag names).
    pub image: Sha256Digest,
    /// Hash of the options it was created with, as moduled computed and labelled it.
    pub options: Sha256Digest,
    /// True if the container's options let a process in it name another file as the file
    /// that it executes.
    pub names_executable: bool,
}

/// The door a request came through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// A workload socket made for one module.
    ModuleSocket(ModuleId),
    /// The shared workload socket of earlier versions.
    LegacySocket,
    /// The management socket.
    ManagementSocket,
}

/// The module that a caller asks to act as, and the generation that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The module whose identity is to be used, or `$edgeAgent` for the management API.
    pub module: &'a ModuleId,
    /// The generation named in the request, where the route has one.
    pub generation: Option<&'a str>,
}

/// Decides whether the caller may act as the module it names.
///
/// `registration` is that of `asked.module`, `facts` what runs for it. The checks go from
/// the cheapest and most telling to the finest, so that the reason names the first thing
/// that is wrong.
///
/// # Errors
/// The one reason for which the caller is refused.
pub fn verdict(
    door: &Door,
    asked: &Asked<'_>,
    registration: Option<&Registration>,
    facts: &RunningFacts,
    evidence: &Evidence,
) -> Result<(), DenyReason> {
    let case = Case { door, asked, registration, facts, evidence };
    // The generation is looked at last, so that a stranger is called one whatever
    // generation it guesses.
    let found = CHECKS.iter().find(|check| (check.applies)(registration) && (check.fails)(&case));
    found.map_or(Ok(()), |check| Err(check.reason))
}

/// Returns true if the decision needs the measurement of the executable. Hashing is the
/// most expensive step of gathering evidence.
#[must_use]
pub fn needs_measurement(registration: &Registration) -> bool {
    match &registration.workload {
        Workload::Service { executable, .. } => executable.is_some(),
        _ => registration.policy >= Policy::Executable,
    }
}

impl DenyReason {
    /// Returns true if the check is about the caller's connection and not about the
    /// caller.
    #[must_use]
    pub fn is_of_connection(self) -> bool {
        matches!(
            self,
            Self::SocketOfAnotherModule | Self::ConnectionInheritable | Self::ConnectionNotHeld
        )
    }
}

/// The checks that [`verdict`] makes for a registration, in order, each by the reason for
/// which it refuses. (The generation, which only some requests name, is left out.)
#[must_use]
pub fn checks(registration: Option<&Registration>) -> Vec<DenyReason> {
    CHECKS
        .iter()
        .filter(|check| check.stage == Stage::Compared && (check.applies)(registration))
        .map(|check| check.reason)
        .collect()
}

/// Each check of a caller in the order in which they are made, and whether it was passed:
/// nothing where it was not come to, or where it is about a connection and there is none.
///
/// Checks before any comparison (is the caller still there?) come first, checks of an
/// admitted caller (is it granted this?) last. A refusal that is not about
/// modules stands alone.
#[must_use]
pub fn outcome(
    registration: Option<&Registration>,
    verdict: Result<(), DenyReason>,
    on_connection: bool,
) -> Vec<(DenyReason, Option<bool>)> {
    let passed = |reason: DenyReason| (on_connection || !reason.is_of_connection()).then_some(true);
    let mut list: Vec<_> =
        checks(registration).into_iter().map(|reason| (reason, passed(reason))).collect();
    let Err(reason) = verdict else { return list };
    if let Some(at) = list.iter().position(|(check, _)| *check == reason) {
        list[at].1 = Some(false);
        list[at + 1..].iter_mut().for_each(|(_, passed)| *passed = None);
        return list;
    }
    match reason.check().stage {
        Stage::Route => list.clear(),
        Stage::Request => {}
        Stage::Caller | Stage::Compared => {
            list.iter_mut().for_each(|(_, passed)| *passed = None);
            list.insert(0, (reason, Some(false)));
            return list;
        }
    }
    list.push((reason, Some(false)));
    list
}

#[cfg(test)]
mod tests;
