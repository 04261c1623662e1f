//! What "measured" means: the verdict on a caller, as a function of what is registered,
//! what runs, and what the kernel says about the process at the other end of the socket.
//!
//! Evidence is gathered elsewhere (`edgekeep-runtime`); here nothing is looked up. A
//! verdict is *allow* or *deny with one named reason*; whatever is not known denies.

pub mod backing;
mod explained;

use serde::{Deserialize, Serialize};

use crate::digest::Sha256Digest;
use crate::host::UnitName;
use crate::id::{ContainerId, GenerationId, ModuleId};

pub use explained::Explanation;

/// One process that ever ran: a process id alone is reused, together with the start time
/// it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessInstance {
    /// Process id in the daemon's own pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
}

/// Which file a process executes, cheap to read and different after any change of the
/// file.
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

/// What the kernel says about a process at one moment. Two equal snapshots around a
/// measurement prove that it was of the same program in the same place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Which process.
    pub process: ProcessInstance,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// What it executes.
    pub executable: ExecutableFile,
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

/// How surely the kernel told who is at the other end.
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
    /// Which process.
    pub process: ProcessInstance,
    /// Its session: inherited from the parent, or a new one of its own making. No process
    /// joins an existing one.
    pub session: u32,
}

/// How the caller's process holds the connection that it calls on.
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
    /// Whether the container's image holds the same content under the same path; `None`
    /// when that could not be determined or does not apply.
    pub unmodified_from_image: Option<bool>,
}

/// Everything that is known about the caller of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// How the peer was identified.
    pub handle: PeerHandle,
    /// The kernel's view, equal before and after the measurement.
    pub snapshot: Snapshot,
    /// The process, its parent, its grandparent and so on, up to the first one that
    /// cannot be seen.
    pub ancestry: Vec<Ancestor>,
    /// How it holds the connection; looked at only where the executable counts (see
    /// [`needs_measurement`]).
    pub holding: Holding,
    /// Container id, if the cgroup path is exactly one that the engine makes.
    pub container: Option<ContainerId>,
    /// Content of the executable, if it was measured.
    pub measurement: Option<Measurement>,
}

/// How much of a caller must match the registration.
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

/// What a module is made of, fixed when it was created.
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

/// What moduled wrote down when it created a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Whose registration this is.
    pub module: ModuleId,
    /// The identity's generation, once it is known.
    pub generation: Option<GenerationId>,
    /// What a caller must match.
    pub policy: Policy,
    /// What was registered.
    pub workload: Workload,
}

/// What runs for a module right now, from the engine's event stream or from moduled's own
/// children.
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

/// What the engine says a container is made of now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFacts {
    /// The container's id.
    pub container: ContainerId,
    /// The image that it runs (not what the tag names).
    pub image: Sha256Digest,
    /// Hash of the options it was created with, as moduled computed and labelled it.
    pub options: Sha256Digest,
    /// Whether its options let a process in it name another file as the one that it
    /// executes.
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

/// What a caller asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The module whose identity is to be used, or `$edgeAgent` for the management API.
    pub module: &'a ModuleId,
    /// The generation named in the request, where the route has one.
    pub generation: Option<&'a str>,
}

/// Why a caller was refused. One reason each; the text is stable, tests and audit readers
/// rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DenyReason {
    /// The socket belongs to another module.
    #[error("socket-of-another-module")]
    SocketOfAnotherModule,
    /// No module of that name is registered.
    #[error("not-registered")]
    NotRegistered,
    /// The request names another generation than the registered one.
    #[error("generation-mismatch")]
    GenerationMismatch,
    /// The container engine has not been heard since it or the daemon started.
    #[error("facts-unknown")]
    FactsUnknown,
    /// The module does not run.
    #[error("not-running")]
    NotRunning,
    /// The peer's process id is not visible in the daemon's pid namespace.
    #[error("pid-not-visible")]
    PidNotVisible,
    /// A certificate was asked for a name that is another module's.
    #[error("name-of-another-module")]
    NameOfAnotherModule,
    /// The process that connected has ended.
    #[error("caller-gone")]
    CallerGone,
    /// The process changed its program, user or cgroup while it was measured or since it
    /// connected.
    #[error("caller-changed")]
    CallerChanged,
    /// Bytes came from another process than the one that connected (inherited or passed
    /// socket).
    #[error("sender-changed")]
    SenderChanged,
    /// A debugger is attached to the process.
    #[error("traced")]
    Traced,
    /// The process runs as another user than the module.
    #[error("other-user")]
    OtherUser,
    /// The process is not in the module's container or cgroup.
    #[error("not-in-module")]
    NotInModule,
    /// The process is in the container, but was not started by the module's first process
    /// (engine `exec`).
    #[error("not-a-descendant")]
    NotADescendant,
    /// The process comes, in a session of its own, from a child of the module's first
    /// process that is younger than an engine `exec` into the container: whether the
    /// module or the `exec` started it cannot be told.
    #[error("after-exec")]
    AfterExec,
    /// The container that runs is not the one that was registered.
    #[error("container-changed")]
    ContainerChanged,
    /// The container runs another image than the registered one.
    #[error("image-changed")]
    ImageChanged,
    /// The container was created with other options than the registered ones.
    #[error("options-changed")]
    OptionsChanged,
    /// The process is not in the cgroup of the registered systemd unit.
    #[error("not-in-unit")]
    NotInUnit,
    /// The process is in a container or another namespace than the host's.
    #[error("not-on-host")]
    NotOnHost,
    /// The caller is who it says, and the configuration does not let it do this.
    #[error("not-granted")]
    NotGranted,
    /// The executable could not be read or compared.
    #[error("executable-unmeasured")]
    ExecutableUnmeasured,
    /// The executable is not the registered one, or not an unmodified file of the image.
    #[error("executable-changed")]
    ExecutableChanged,
    /// The executable has no name in any folder, and is not the daemon's own copy:
    /// memory, or a file that was removed.
    #[error("executable-nameless")]
    ExecutableNameless,
    /// The executable is where its content may change while it runs.
    #[error("executable-not-final")]
    ExecutableNotFinal,
    /// The container's options let a process name another file than the one it executes.
    #[error("executable-of-its-choice")]
    ExecutableOfItsChoice,
    /// The process has more filters of system calls than its module was started with:
    /// another program may answer its calls.
    #[error("foreign-filter")]
    ForeignFilter,
    /// The caller is in another user namespace than its module: there it has capabilities
    /// with which a process names another file than the one it executes. A process that
    /// shares memory with one in such a namespace, and is in none itself, is not seen by
    /// this: that call has to be refused to it (see `measured.rs` of the crate `sandbox`,
    /// and `docs/threat-model.md`).
    #[error("other-user-namespace")]
    OtherUserNamespace,
    /// The caller holds its connection in a descriptor that survives exec: another
    /// program may have connected.
    #[error("connection-inheritable")]
    ConnectionInheritable,
    /// The process that connected does not hold the connection any more: another one
    /// reads the answers.
    #[error("connection-not-held")]
    ConnectionNotHeld,
    /// The route is for operators (root, the daemon's own user), and the caller is none.
    #[error("not-an-operator")]
    NotAnOperator,
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
    if let Door::ModuleSocket(owner) = door
        && owner.name() != asked.module.name()
    {
        return Err(DenyReason::SocketOfAnotherModule);
    }
    let registration = registration
        // Not by name: `x` and `$x` share a container name and are two identities.
        .filter(|registration| registration.module.hub_id() == asked.module.hub_id())
        .ok_or(DenyReason::NotRegistered)?;
    if matches!(facts, RunningFacts::Unknown) {
        return Err(DenyReason::FactsUnknown);
    }
    if matches!(facts, RunningFacts::Stopped) {
        return Err(DenyReason::NotRunning);
    }
    if evidence.snapshot.tracer != 0 {
        return Err(DenyReason::Traced);
    }
    match (&registration.workload, facts) {
        (Workload::Service { unit, uid, executable }, RunningFacts::Host(host)) => {
            service(unit.as_ref(), *uid, executable.as_ref(), host, evidence)?;
        }
        (Workload::Container { .. } | Workload::Process { .. }, RunningFacts::Running(running)) => {
            started(registration, running, evidence)?;
        }
        // Facts of another kind than the registration are none.
        _ => return Err(DenyReason::FactsUnknown),
    }
    if needs_measurement(registration) {
        match evidence.holding {
            Holding::CloseOnExec | Holding::Untold => {}
            Holding::Inheritable => return Err(DenyReason::ConnectionInheritable),
            Holding::NotHeld => return Err(DenyReason::ConnectionNotHeld),
        }
    }
    // Last, so that a stranger is called one whatever generation it guesses.
    if let (Some(asked), Some(registered)) = (asked.generation, &registration.generation)
        && asked != registered.as_str()
    {
        return Err(DenyReason::GenerationMismatch);
    }
    Ok(())
}

/// A service of the host: nothing about it was written down when it started, so all that
/// is registered must fit.
fn service(
    unit: Option<&UnitName>,
    uid: Option<u32>,
    executable: Option<&Sha256Digest>,
    host: &HostFacts,
    evidence: &Evidence,
) -> Result<(), DenyReason> {
    let snapshot = &evidence.snapshot;
    // A container has users and programs of the same number and content.
    let on_host = snapshot.pid_namespace == host.pid_namespace
        && snapshot.user_namespace == host.user_namespace;
    if !on_host || evidence.container.is_some() {
        return Err(DenyReason::NotOnHost);
    }
    match unit {
        Some(unit) if !unit.holds(&snapshot.cgroup) => return Err(DenyReason::NotInUnit),
        // By user and executable, or by nothing at all. What is in a user's own systemd
        // has the name that this user gives it.
        found
            if found.is_none_or(UnitName::is_a_users)
                && (uid.is_none() || executable.is_none()) =>
        {
            return Err(DenyReason::NotInUnit);
        }
        _ => {}
    }
    if uid.is_some_and(|uid| uid != snapshot.uid) {
        return Err(DenyReason::OtherUser);
    }
    match (executable, evidence.measurement) {
        (Some(_), None) => Err(DenyReason::ExecutableUnmeasured),
        (Some(executable), Some(measurement)) if measurement.digest != *executable => {
            Err(DenyReason::ExecutableChanged)
        }
        _ => Ok(()),
    }
}

/// A module that moduled or its engine started.
fn started(
    registration: &Registration,
    running: &Running,
    evidence: &Evidence,
) -> Result<(), DenyReason> {
    match &registration.workload {
        Workload::Container { container, image, options } => {
            let now = running.container.as_ref().ok_or(DenyReason::ContainerChanged)?;
            if now.container != *container {
                return Err(DenyReason::ContainerChanged);
            }
            // Both directions: the id in the caller's cgroup path is this container's,
            // and the path lies under the cgroup of the container's own first process. A
            // forged group name elsewhere fails the second.
            if evidence.container.as_ref() != Some(container)
                || !inside(&evidence.snapshot.cgroup, running)
            {
                return Err(DenyReason::NotInModule);
            }
            if registration.policy >= Policy::Image {
                descends(evidence, running)?;
                if now.image != *image {
                    return Err(DenyReason::ImageChanged);
                }
                if now.options != *options {
                    return Err(DenyReason::OptionsChanged);
                }
            }
            if registration.policy >= Policy::Executable {
                match evidence.measurement.and_then(|measurement| measurement.unmodified_from_image)
                {
                    None => return Err(DenyReason::ExecutableUnmeasured),
                    Some(false) => return Err(DenyReason::ExecutableChanged),
                    Some(true) => {}
                }
            }
        }
        Workload::Process { executable, uid } => {
            if evidence.snapshot.uid != *uid {
                return Err(DenyReason::OtherUser);
            }
            match &running.cgroup {
                Some(_) if !inside(&evidence.snapshot.cgroup, running) => {
                    return Err(DenyReason::NotInModule);
                }
                // Without a cgroup of its own a host module is its process tree and
                // nothing else.
                None if !is_descendant(evidence, running) => return Err(DenyReason::NotInModule),
                _ => {}
            }
            if registration.policy >= Policy::Image {
                descends(evidence, running)?;
            }
            if registration.policy >= Policy::Executable {
                match evidence.measurement {
                    None => return Err(DenyReason::ExecutableUnmeasured),
                    Some(measurement) if measurement.digest != *executable => {
                        return Err(DenyReason::ExecutableChanged);
                    }
                    Some(_) => {}
                }
            }
        }
        // It has no first process that could run.
        Workload::Service { .. } => return Err(DenyReason::FactsUnknown),
    }
    if needs_measurement(registration) {
        keeps_its_executable(running, evidence)?;
    }
    Ok(())
}

/// Whether the file that the kernel shows as the caller's executable, and the answers to
/// its system calls, are the kernel's.
fn keeps_its_executable(running: &Running, evidence: &Evidence) -> Result<(), DenyReason> {
    if evidence.snapshot.user_namespace != running.user_namespace {
        return Err(DenyReason::OtherUserNamespace);
    }
    if running.container.as_ref().is_some_and(|container| container.names_executable) {
        return Err(DenyReason::ExecutableOfItsChoice);
    }
    match (evidence.snapshot.filters, running.filters) {
        (Some(now), Some(started_with)) if now > started_with => Err(DenyReason::ForeignFilter),
        _ => Ok(()),
    }
}

/// Whether the measurement of the executable is needed to decide at all: hashing is the
/// dear part of evidence.
#[must_use]
pub fn needs_measurement(registration: &Registration) -> bool {
    match &registration.workload {
        Workload::Service { executable, .. } => executable.is_some(),
        _ => registration.policy >= Policy::Executable,
    }
}

impl DenyReason {
    /// Whether the check is about the caller's connection and not about the caller.
    #[must_use]
    pub fn is_of_connection(self) -> bool {
        matches!(
            self,
            Self::SocketOfAnotherModule | Self::ConnectionInheritable | Self::ConnectionNotHeld
        )
    }
}

/// What is asked of an executable that is measured, in this order.
const MEASURED: [DenyReason; 4] = [
    DenyReason::ExecutableNameless,
    DenyReason::ExecutableNotFinal,
    DenyReason::ExecutableUnmeasured,
    DenyReason::ExecutableChanged,
];

/// What [`verdict`] checks for a registration, in this order, each check by the reason
/// for which it refuses. (The generation, which only some requests name, is left out.)
#[must_use]
pub fn checks(registration: Option<&Registration>) -> Vec<DenyReason> {
    use DenyReason as Reason;
    let mut checks = vec![Reason::SocketOfAnotherModule, Reason::NotRegistered];
    let Some(registration) = registration else { return checks };
    let from = |policy, reasons: &[DenyReason]| {
        if registration.policy >= policy { reasons.to_vec() } else { Vec::new() }
    };
    checks.extend([Reason::FactsUnknown, Reason::NotRunning, Reason::Traced]);
    match &registration.workload {
        Workload::Container { .. } => {
            checks.extend([Reason::ContainerChanged, Reason::NotInModule]);
            let of_image = [
                Reason::NotADescendant,
                Reason::AfterExec,
                Reason::ImageChanged,
                Reason::OptionsChanged,
            ];
            checks.extend(from(Policy::Image, &of_image));
            checks.extend(from(Policy::Executable, &MEASURED));
        }
        Workload::Process { .. } => {
            checks.extend([Reason::OtherUser, Reason::NotInModule]);
            checks.extend(from(Policy::Image, &[Reason::NotADescendant]));
            checks.extend(from(Policy::Executable, &MEASURED));
        }
        Workload::Service { unit, uid, executable } => {
            checks.push(Reason::NotOnHost);
            if unit.is_some() || uid.is_none() || executable.is_none() {
                checks.push(Reason::NotInUnit);
            }
            checks.extend(uid.map(|_| Reason::OtherUser));
            if executable.is_some() {
                checks.extend(MEASURED);
            }
        }
    }
    if needs_measurement(registration) {
        // That a service is in the host's own user namespace is part of being on the
        // host.
        if !matches!(registration.workload, Workload::Service { .. }) {
            checks.push(Reason::OtherUserNamespace);
        }
        if matches!(registration.workload, Workload::Container { .. }) {
            checks.extend([Reason::ExecutableOfItsChoice, Reason::ForeignFilter]);
        }
        checks.extend([Reason::ConnectionInheritable, Reason::ConnectionNotHeld]);
    }
    checks
}

/// Each check of a caller in the order in which they are made, and whether it was passed:
/// nothing where it was not come to, or where it is about a connection and there is none.
///
/// What is found before anything is compared (the caller is gone) comes first, what is
/// asked of an admitted caller (is it granted this?) last. A refusal that is not about
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
    match reason {
        DenyReason::NotAnOperator => list.clear(),
        DenyReason::GenerationMismatch
        | DenyReason::NameOfAnotherModule
        | DenyReason::NotGranted => {}
        _ => {
            list.iter_mut().for_each(|(_, passed)| *passed = None);
            list.insert(0, (reason, Some(false)));
            return list;
        }
    }
    list.push((reason, Some(false)));
    list
}

fn inside(cgroup: &str, running: &Running) -> bool {
    running.cgroup.as_deref().is_some_and(|own| {
        // The root group holds everything, so it proves nothing.
        own != "/"
            && cgroup.strip_prefix(own).is_some_and(|rest| {
                // Another container below, put there by a `cgroup-parent` option, is not
                // the module.
                (rest.is_empty() || rest.starts_with('/'))
                    && !rest.split('/').any(names_a_container)
            })
            && !cgroup.split('/').any(|part| part == "..")
    })
}

/// Whether a component of a cgroup path has the form that engines give their containers:
/// `ID`, `NAME-ID`, `NAME-ID.scope`.
fn names_a_container(component: &str) -> bool {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let id = name.rsplit('-').next().unwrap_or(name);
    id.parse::<ContainerId>().is_ok()
}

fn is_descendant(evidence: &Evidence, running: &Running) -> bool {
    evidence.snapshot.process == running.init || below_init(evidence, running).is_some()
}

/// The ancestor below the module's first process, and that process; one and the same if
/// the caller is it.
fn below_init<'a>(
    evidence: &'a Evidence,
    running: &Running,
) -> Option<(&'a Ancestor, &'a Ancestor)> {
    let at = evidence.ancestry.iter().position(|ancestor| ancestor.process == running.init)?;
    Some((&evidence.ancestry[at.saturating_sub(1)], &evidence.ancestry[at]))
}

fn descends(evidence: &Evidence, running: &Running) -> Result<(), DenyReason> {
    if !is_descendant(evidence, running) {
        return Err(DenyReason::NotADescendant);
    }
    if after_exec(evidence, running) { Err(DenyReason::AfterExec) } else { Ok(()) }
}

/// Whether the caller may stem from an engine `exec` that detached: the kernel makes an
/// orphan a child of the container's first process, as if that had started it.
///
/// What the engine brings in has a session of its own, so whatever is in the first
/// process's session is the module's.
fn after_exec(evidence: &Evidence, running: &Running) -> bool {
    let Some(since) = running.exec_since else { return false };
    may_be_orphan(evidence, running).is_some_and(|orphan| orphan.start_time >= since)
}

/// The child of the module's first process from which the caller stems, if it could be an
/// orphan from outside the module's own tree for all that its session says.
#[must_use]
pub fn may_be_orphan(evidence: &Evidence, running: &Running) -> Option<ProcessInstance> {
    let (below, init) = below_init(evidence, running)?;
    (below.session != init.session).then_some(below.process)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(byte: u8) -> Sha256Digest {
        Sha256Digest::new([byte; 32])
    }

    fn container(c: char) -> ContainerId {
        c.to_string().repeat(64).parse().expect("64 hex digits")
    }

    fn module(name: &str) -> ModuleId {
        name.parse().expect("valid id")
    }

    const INIT: ProcessInstance = ProcessInstance { pid: 100, start_time: 1000 };

    /// A process in the session of the first one.
    fn ancestor(process: ProcessInstance) -> Ancestor {
        Ancestor { process, session: INIT.pid }
    }

    struct Case {
        door: Door,
        generation: Option<&'static str>,
        registration: Registration,
        facts: RunningFacts,
        evidence: Evidence,
    }

    impl Case {
        /// A container module's own child process, with everything in order.
        fn container() -> Self {
            let id = container('a');
            let cgroup = format!("/docker/{id}");
            Self {
                door: Door::ModuleSocket(module("thermometer")),
                generation: Some("g1"),
                registration: Registration {
                    module: module("thermometer"),
                    generation: Some("g1".parse().expect("valid")),
                    policy: Policy::Executable,
                    workload: Workload::Container {
                        container: id.clone(),
                        image: digest(1),
                        options: digest(2),
                    },
                },
                facts: RunningFacts::Running(Running {
                    init: INIT,
                    user_namespace: 6,
                    cgroup: Some(cgroup.clone()),
                    container: Some(ContainerFacts {
                        container: id.clone(),
                        image: digest(1),
                        options: digest(2),
                        names_executable: false,
                    }),
                    exec_since: None,
                    own_copy: None,
                    filters: Some(1),
                }),
                evidence: Evidence {
                    handle: PeerHandle::PeerPidfd,
                    snapshot: Snapshot {
                        process: ProcessInstance { pid: 101, start_time: 1001 },
                        uid: 0,
                        gid: 0,
                        executable: ExecutableFile { device: 1, inode: 2, size: 3, ctime_ns: 4 },
                        cgroup,
                        pid_namespace: 5,
                        user_namespace: 6,
                        tracer: 0,
                        filters: Some(1),
                    },
                    ancestry: [ProcessInstance { pid: 101, start_time: 1001 }, INIT]
                        .map(ancestor)
                        .into(),
                    holding: Holding::CloseOnExec,
                    container: Some(id),
                    measurement: Some(Measurement {
                        digest: digest(3),
                        unmodified_from_image: Some(true),
                    }),
                },
            }
        }

        /// A host module's first process, with everything in order.
        fn host() -> Self {
            let mut case = Self::container();
            case.registration.workload = Workload::Process { executable: digest(3), uid: 0 };
            case.facts = RunningFacts::Running(Running {
                init: INIT,
                user_namespace: 6,
                cgroup: None,
                container: None,
                exec_since: None,
                own_copy: None,
                filters: None,
            });
            case.evidence.container = None;
            case
        }

        /// A service of the host, with everything in order.
        fn service() -> Self {
            let mut case = Self::host();
            case.registration.workload = Workload::Service {
                unit: Some("collector.service".parse().expect("a unit")),
                uid: Some(990),
                executable: Some(digest(3)),
            };
            case.facts = RunningFacts::Host(HostFacts { pid_namespace: 5, user_namespace: 6 });
            case.evidence.snapshot.uid = 990;
            case.evidence.snapshot.cgroup = "/system.slice/collector.service".into();
            case.evidence.ancestry.clear();
            case
        }

        fn set_service(&mut self, with_unit: bool, with_uid: bool, with_executable: bool) {
            if let Workload::Service { unit, uid, executable } = &mut self.registration.workload {
                *unit = unit.take().filter(|_| with_unit);
                *uid = uid.filter(|_| with_uid);
                *executable = executable.filter(|_| with_executable);
            }
        }

        fn verdict(&self) -> Result<(), DenyReason> {
            let name = module("thermometer");
            let asked = Asked { module: &name, generation: self.generation };
            verdict(&self.door, &asked, Some(&self.registration), &self.facts, &self.evidence)
        }

        fn running(&mut self) -> &mut Running {
            match &mut self.facts {
                RunningFacts::Running(running) => running,
                other => panic!("case does not run: {other:?}"),
            }
        }

        fn container_facts(&mut self) -> &mut ContainerFacts {
            self.running().container.as_mut().expect("container case")
        }
    }

    #[test]
    fn a_module_in_order_is_allowed_by_its_own_and_by_the_legacy_socket() {
        for mut case in [Case::container(), Case::host(), Case::service()] {
            assert_eq!(case.verdict(), Ok(()));
            case.door = Door::LegacySocket;
            assert_eq!(case.verdict(), Ok(()));
        }
    }

    /// One thing wrong with a case.
    type Fault = fn(&mut Case);

    #[test]
    fn each_single_fault_is_refused_with_its_own_reason() {
        let faults: [(Fault, DenyReason); 20] = [
            (|c| c.door = Door::ModuleSocket(module("other")), DenyReason::SocketOfAnotherModule),
            (|c| c.registration.module = module("other"), DenyReason::NotRegistered),
            (|c| c.generation = Some("g0"), DenyReason::GenerationMismatch),
            (|c| c.facts = RunningFacts::Unknown, DenyReason::FactsUnknown),
            (|c| c.facts = RunningFacts::Stopped, DenyReason::NotRunning),
            (|c| c.evidence.snapshot.tracer = 7, DenyReason::Traced),
            (|c| c.container_facts().container = container('b'), DenyReason::ContainerChanged),
            (|c| c.evidence.container = Some(container('b')), DenyReason::NotInModule),
            (
                |c| c.evidence.snapshot.cgroup = format!("/evil/docker/{}", container('a')),
                DenyReason::NotInModule,
            ),
            (|c| c.evidence.ancestry.truncate(1), DenyReason::NotADescendant),
            (|c| c.container_facts().image = digest(9), DenyReason::ImageChanged),
            (|c| c.container_facts().options = digest(9), DenyReason::OptionsChanged),
            (|c| c.evidence.measurement = None, DenyReason::ExecutableUnmeasured),
            (|c| c.evidence.snapshot.user_namespace = 7, DenyReason::OtherUserNamespace),
            (|c| c.container_facts().names_executable = true, DenyReason::ExecutableOfItsChoice),
            (|c| c.evidence.snapshot.filters = Some(2), DenyReason::ForeignFilter),
            (
                |c| {
                    c.evidence.snapshot.cgroup =
                        format!("/docker/{}/docker-{}.scope", container('a'), container('b'));
                },
                DenyReason::NotInModule,
            ),
            (|c| c.evidence.holding = Holding::Inheritable, DenyReason::ConnectionInheritable),
            (|c| c.evidence.holding = Holding::NotHeld, DenyReason::ConnectionNotHeld),
            (
                |c| {
                    c.evidence.ancestry[0].session = 101;
                    c.running().exec_since = Some(1001);
                },
                DenyReason::AfterExec,
            ),
        ];
        for (fault, reason) in faults {
            let mut case = Case::container();
            fault(&mut case);
            assert_eq!(case.verdict(), Err(reason));
        }
        let host_faults: [(Fault, DenyReason); 4] = [
            (|c| c.evidence.snapshot.uid = 1, DenyReason::OtherUser),
            (|c| c.evidence.ancestry.truncate(1), DenyReason::NotInModule),
            (
                |c| c.running().cgroup = Some("/edgekeep/thermometer".into()),
                DenyReason::NotInModule,
            ),
            (
                |c| c.registration.workload = Workload::Process { executable: digest(9), uid: 0 },
                DenyReason::ExecutableChanged,
            ),
        ];
        for (fault, reason) in host_faults {
            let mut case = Case::host();
            fault(&mut case);
            assert_eq!(case.verdict(), Err(reason));
        }
    }

    #[test]
    fn each_fault_of_a_service_is_refused_with_its_own_reason() {
        let faults: [(Fault, DenyReason); 13] = [
            (|c| c.evidence.holding = Holding::Inheritable, DenyReason::ConnectionInheritable),
            (|c| c.evidence.holding = Holding::NotHeld, DenyReason::ConnectionNotHeld),
            (
                |c| c.evidence.snapshot.cgroup = "/system.slice/other.service".into(),
                DenyReason::NotInUnit,
            ),
            (
                |c| c.evidence.snapshot.cgroup = "/evil/system.slice/collector.service".into(),
                DenyReason::NotInUnit,
            ),
            (|c| c.evidence.snapshot.uid = 0, DenyReason::OtherUser),
            (|c| c.evidence.measurement = None, DenyReason::ExecutableUnmeasured),
            (
                |c| c.evidence.measurement.as_mut().expect("measured").digest = digest(9),
                DenyReason::ExecutableChanged,
            ),
            (|c| c.evidence.snapshot.pid_namespace = 7, DenyReason::NotOnHost),
            (|c| c.evidence.snapshot.user_namespace = 7, DenyReason::NotOnHost),
            (|c| c.evidence.container = Some(container('a')), DenyReason::NotOnHost),
            (|c| c.evidence.snapshot.tracer = 7, DenyReason::Traced),
            (|c| c.facts = RunningFacts::Stopped, DenyReason::NotRunning),
            (|c| c.generation = Some("g0"), DenyReason::GenerationMismatch),
        ];
        for (fault, reason) in faults {
            let mut case = Case::service();
            fault(&mut case);
            assert_eq!(case.verdict(), Err(reason));
        }
    }

    #[test]
    fn what_runs_in_a_users_own_systemd_is_not_known_by_its_name_alone() {
        for (unit, cgroup) in [
            (
                "user@1000.service/a.service",
                "/user.slice/user-1000.slice/user@1000.service/app.slice/a.service",
            ),
            ("user@1000.service", "/user.slice/user-1000.slice/user@1000.service/init.scope"),
        ] {
            for (uid, executable) in [(true, true), (true, false), (false, true), (false, false)] {
                let mut case = Case::service();
                case.set_service(true, uid, executable);
                case.evidence.snapshot.cgroup = cgroup.to_owned();
                if let Workload::Service { unit: own, .. } = &mut case.registration.workload {
                    *own = Some(unit.parse().expect("a unit"));
                }
                let expected = if uid && executable { Ok(()) } else { Err(DenyReason::NotInUnit) };
                assert_eq!(case.verdict(), expected, "{unit} {uid} {executable}");
            }
        }
    }

    #[test]
    fn a_service_is_known_by_its_unit_or_by_user_and_executable_and_by_nothing_less() {
        for (unit, uid, executable, expected) in [
            (true, false, false, Ok(())),
            (false, true, true, Ok(())),
            (false, true, false, Err(DenyReason::NotInUnit)),
            (false, false, true, Err(DenyReason::NotInUnit)),
            (false, false, false, Err(DenyReason::NotInUnit)),
        ] {
            let mut case = Case::service();
            case.set_service(unit, uid, executable);
            assert_eq!(case.verdict(), expected, "{unit} {uid} {executable}");
            if let Err(reason) = expected {
                assert!(
                    checks(Some(&case.registration)).contains(&reason),
                    "{unit} {uid} {executable}"
                );
            }
        }
    }

    #[test]
    fn facts_of_another_kind_than_the_registration_prove_nothing() {
        let mut case = Case::service();
        case.facts = Case::host().facts;
        assert_eq!(case.verdict(), Err(DenyReason::FactsUnknown));
        for mut case in [Case::host(), Case::container()] {
            case.facts = Case::service().facts;
            assert_eq!(case.verdict(), Err(DenyReason::FactsUnknown));
        }
    }

    #[test]
    fn a_sibling_cgroup_with_the_same_prefix_is_not_inside() {
        let mut case = Case::host();
        case.running().cgroup = Some("/edgekeep/thermo".into());
        case.evidence.snapshot.cgroup = "/edgekeep/thermometer".into();
        assert_eq!(case.verdict(), Err(DenyReason::NotInModule));
        case.evidence.snapshot.cgroup = "/edgekeep/thermo/../x".into();
        assert_eq!(case.verdict(), Err(DenyReason::NotInModule));
        case.running().cgroup = Some("/".into());
        assert_eq!(case.verdict(), Err(DenyReason::NotInModule), "the root group proves nothing");
    }

    #[test]
    fn the_engines_exec_is_allowed_only_by_the_weakest_policy() {
        let mut case = Case::container();
        case.evidence.ancestry.truncate(1);
        for (policy, expected) in [
            (Policy::Process, Ok(())),
            (Policy::Image, Err(DenyReason::NotADescendant)),
            (Policy::Executable, Err(DenyReason::NotADescendant)),
        ] {
            case.registration.policy = policy;
            assert_eq!(case.verdict(), expected);
        }
    }

    #[test]
    fn a_reused_pid_is_not_the_modules_first_process() {
        let mut case = Case::container();
        case.evidence.ancestry =
            vec![ancestor(ProcessInstance { start_time: INIT.start_time + 1, ..INIT })];
        assert_eq!(case.verdict(), Err(DenyReason::NotADescendant));
    }

    #[test]
    fn after_an_exec_only_young_processes_of_foreign_sessions_are_doubted() {
        let verdict = |session, since, caller_is_init: bool| {
            let mut case = Case::container();
            case.evidence.ancestry[0].session = session;
            if caller_is_init {
                case.evidence.ancestry.remove(0);
                case.evidence.snapshot.process = INIT;
            }
            case.running().exec_since = since;
            case.verdict()
        };
        assert_eq!(verdict(101, None, false), Ok(()), "no exec");
        assert_eq!(verdict(101, Some(1002), false), Ok(()), "older than the exec");
        assert_eq!(verdict(INIT.pid, Some(0), false), Ok(()), "in the module's session");
        assert_eq!(verdict(101, Some(0), true), Ok(()), "the first process itself");
        assert_eq!(verdict(101, Some(0), false), Err(DenyReason::AfterExec));
        let mut case = Case::container();
        case.evidence.ancestry[0].session = 101;
        case.running().exec_since = Some(0);
        // A grandchild is what its ancestor below the first process is.
        case.evidence.ancestry.insert(
            0,
            Ancestor { process: ProcessInstance { pid: 102, start_time: 1 }, session: 100 },
        );
        assert_eq!(case.verdict(), Err(DenyReason::AfterExec));
        case.registration.policy = Policy::Process;
        assert_eq!(case.verdict(), Ok(()));
    }

    #[test]
    fn the_checks_are_told_in_the_order_in_which_they_are_made() {
        let faults: [(Fault, DenyReason); 15] = [
            (|c| c.door = Door::ModuleSocket(module("other")), DenyReason::SocketOfAnotherModule),
            (|c| c.registration.module = module("other"), DenyReason::NotRegistered),
            (|c| c.evidence.snapshot.tracer = 7, DenyReason::Traced),
            (|c| c.container_facts().container = container('b'), DenyReason::ContainerChanged),
            (|c| c.evidence.container = None, DenyReason::NotInModule),
            (|c| c.evidence.ancestry.truncate(1), DenyReason::NotADescendant),
            (
                |c| {
                    c.evidence.ancestry[0].session = 101;
                    c.running().exec_since = Some(0);
                },
                DenyReason::AfterExec,
            ),
            (|c| c.container_facts().image = digest(9), DenyReason::ImageChanged),
            (|c| c.container_facts().options = digest(9), DenyReason::OptionsChanged),
            (|c| c.evidence.measurement = None, DenyReason::ExecutableUnmeasured),
            (
                |c| {
                    if let Some(measurement) = &mut c.evidence.measurement {
                        measurement.unmodified_from_image = Some(false);
                    }
                },
                DenyReason::ExecutableChanged,
            ),
            (|c| c.evidence.snapshot.user_namespace = 7, DenyReason::OtherUserNamespace),
            (|c| c.container_facts().names_executable = true, DenyReason::ExecutableOfItsChoice),
            (|c| c.evidence.snapshot.filters = Some(2), DenyReason::ForeignFilter),
            (|c| c.evidence.holding = Holding::NotHeld, DenyReason::ConnectionNotHeld),
        ];
        let order = checks(Some(&Case::container().registration));
        let place = |reason| {
            order.iter().position(|check| *check == reason).expect("a check of containers")
        };
        for (one, first) in faults {
            for (other, second) in faults {
                let mut case = Case::container();
                one(&mut case);
                other(&mut case);
                let earlier = if place(first) <= place(second) { first } else { second };
                assert_eq!(case.verdict(), Err(earlier), "{first} and {second}");
            }
        }
        assert_eq!(checks(None), [DenyReason::SocketOfAnotherModule, DenyReason::NotRegistered]);
        assert!(!checks(Some(&Case::host().registration)).contains(&DenyReason::ImageChanged));
    }

    #[test]
    fn filters_count_where_it_is_known_with_how_many_the_module_started() {
        for (now, started_with, allowed) in [
            (Some(1), Some(1), true),
            (Some(0), Some(1), true),
            (Some(2), Some(1), false),
            // A host module's own filter refuses listeners; a kernel that does not tell
            // is older than filters that matter.
            (Some(5), None, true),
            (None, Some(0), true),
        ] {
            let mut case = Case::container();
            case.evidence.snapshot.filters = now;
            case.running().filters = started_with;
            let expected = if allowed { Ok(()) } else { Err(DenyReason::ForeignFilter) };
            assert_eq!(case.verdict(), expected, "{now:?} {started_with:?}");
            case.registration.policy = Policy::Image;
            assert_eq!(case.verdict(), Ok(()), "the image counts, whatever runs of it");
        }
    }

    #[test]
    fn the_checks_of_a_service_are_those_that_its_entry_asks_for_in_their_order() {
        use DenyReason as Reason;
        let faults: [(Fault, DenyReason); 7] = [
            (|c| c.evidence.snapshot.tracer = 7, Reason::Traced),
            (|c| c.evidence.snapshot.user_namespace = 7, Reason::NotOnHost),
            (|c| c.evidence.snapshot.cgroup = "/elsewhere".into(), Reason::NotInUnit),
            (|c| c.evidence.snapshot.uid = 0, Reason::OtherUser),
            (|c| c.evidence.measurement = None, Reason::ExecutableUnmeasured),
            (
                |c| c.evidence.measurement.iter_mut().for_each(|found| found.digest = digest(9)),
                Reason::ExecutableChanged,
            ),
            (|c| c.evidence.holding = Holding::NotHeld, Reason::ConnectionNotHeld),
        ];
        for with in
            [(true, true, true), (true, false, false), (false, true, true), (true, true, false)]
        {
            let service = || {
                let mut case = Case::service();
                case.set_service(with.0, with.1, with.2);
                case
            };
            let order = checks(Some(&service().registration));
            for (at, (fault, reason)) in faults.iter().enumerate() {
                let mut case = service();
                fault(&mut case);
                let expected = if order.contains(reason) { Err(*reason) } else { Ok(()) };
                assert_eq!(case.verdict(), expected, "{with:?} {reason}");
                for (later, _) in faults.iter().skip(at).filter(|_| order.contains(reason)) {
                    let mut case = service();
                    later(&mut case);
                    fault(&mut case);
                    assert_eq!(case.verdict(), Err(*reason), "{with:?}");
                }
            }
        }
    }

    #[test]
    fn the_outcome_names_the_refusal_once_and_nothing_after_it_as_passed() {
        let registrations =
            [Case::container(), Case::host(), Case::service()].map(|case| case.registration);
        for registration in registrations.iter().map(Some).chain([None]) {
            assert!(
                outcome(registration, Ok(()), true).iter().all(|(_, passed)| *passed == Some(true))
            );
            for reason in DenyReason::ALL {
                let list = outcome(registration, Err(reason), true);
                let at = list
                    .iter()
                    .position(|(_, passed)| *passed == Some(false))
                    .expect("a check that failed");
                assert_eq!(list[at].0, reason);
                assert!(
                    list[..at].iter().all(|(_, passed)| *passed == Some(true)),
                    "{reason}: {list:?}"
                );
                assert!(
                    list[at + 1..].iter().all(|(_, passed)| passed.is_none()),
                    "{reason}: {list:?}"
                );
                assert_eq!(
                    list.iter().filter(|(check, _)| *check == reason).count(),
                    1,
                    "{reason}"
                );
            }
        }
        let without = outcome(Some(&registrations[0]), Ok(()), false);
        assert_eq!(without.iter().filter(|(_, passed)| passed.is_none()).count(), 3, "{without:?}");
    }

    proptest! {
        /// A stronger policy never lets in a caller that a weaker one refuses.
        #[test]
        fn a_stronger_policy_is_never_more_permissive(
            ancestor in any::<bool>(), image in any::<bool>(), options in any::<bool>(),
            unmodified in prop::option::of(any::<bool>()), inside in any::<bool>(), tracer in 0u32..2,
            session in 100u32..102, since in prop::option::of(1000u64..1003), held in any::<bool>(),
        ) {
            let mut case = Case::container();
            if !ancestor { case.evidence.ancestry.clear(); }
            if !image { case.container_facts().image = digest(8); }
            if !options { case.container_facts().options = digest(8); }
            if !inside { case.evidence.snapshot.cgroup = "/elsewhere".into(); }
            case.evidence.ancestry.iter_mut().take(1).for_each(|ancestor| ancestor.session = session);
            case.running().exec_since = since;
            if !held { case.evidence.holding = Holding::NotHeld; }
            case.evidence.snapshot.tracer = tracer;
            case.evidence.measurement = Some(Measurement { digest: digest(3), unmodified_from_image: unmodified });
            let mut allowed = Vec::new();
            for policy in [Policy::Process, Policy::Image, Policy::Executable] {
                case.registration.policy = policy;
                allowed.push(case.verdict().is_ok());
            }
            prop_assert!(allowed.windows(2).all(|pair| pair[0] || !pair[1]), "{allowed:?}");
        }
    }
}
