//! Programs of the host that have a module's identity: what the operator grants each of
//! them, and the plan by which one is started. Nothing is looked up here; users and
//! groups come in as the text of the system's files.

mod accounts;
mod capability;
mod grants;
mod own_users;
mod placement;
mod plan;
mod unit;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use accounts::{Account, AccountError, Accounts};
pub use capability::{Capabilities, Capability, CapabilityError};
pub use grants::{Grants, NotGranted, Wanted};
pub use own_users::{IdRange, IdRangeError, OwnUserError, OwnUsers, sharing};
pub use placement::{Machine, Placement, PlacementError, SLICE, ScopeUse, place, scope_name};
pub use plan::{Daemon, Folders, LaunchPlan, PlanError, plan};
pub use unit::{UnitError, UnitName};

use crate::digest::Sha256Digest;

/// A program of the host that modules of type `process` may name as their image.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostModule {
    /// Absolute path.
    pub executable: String,
    /// The digest that the executable's content must have.
    pub sha256: Sha256Digest,
    /// Arguments, if the module's create options give none.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment; a variable of the deployment of the same name gives way.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Folder that it starts in; `/` if absent.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// User by name or number. Absent: one that the module has for itself, or where there
    /// are none to give, the daemon's.
    #[serde(default)]
    pub user: Option<String>,
    /// Group by name or number; the user's own if absent.
    #[serde(default)]
    pub group: Option<String>,
    /// The capabilities that the program has beyond its user's rights.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// Folders and files that it may read and execute from. With this and `write` absent,
    /// the file system's own permissions alone decide.
    #[serde(default)]
    pub read: Option<Vec<String>>,
    /// Folders and files that it may read and change.
    #[serde(default)]
    pub write: Option<Vec<String>>,
    /// The system calls that the program may make.
    #[serde(default)]
    pub seccomp: SeccompPreset,
    /// The resources that the program may use up.
    #[serde(default)]
    pub limits: Limits,
    /// The condition under which the daemon starts the program again when it ends.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// True if the module has a management socket of its own, with the routes for host
    /// agents.
    #[serde(default)]
    pub management: bool,
    /// Names of host modules and services of which it may approve a new executable.
    #[serde(default)]
    pub approves: Vec<String>,
}

impl HostModule {
    /// A program with no more than its path and content, and nothing granted.
    #[must_use]
    pub fn new(executable: impl Into<String>, sha256: Sha256Digest) -> Self {
        Self {
            executable: executable.into(),
            sha256,
            args: Vec::new(),
            env: BTreeMap::new(),
            working_dir: None,
            user: None,
            group: None,
            capabilities: Capabilities::default(),
            read: None,
            write: None,
            seccomp: SeccompPreset::default(),
            limits: Limits::default(),
            restart: RestartPolicy::default(),
            management: false,
            approves: Vec::new(),
        }
    }
}

impl HostModule {
    /// Returns true if a variable of this name tells the program's loader to run
    /// something else than what was measured.
    #[must_use]
    pub fn changes_loading(variable: &str) -> bool {
        variable.starts_with("LD_") || variable == "GLIBC_TUNABLES"
    }
}

impl std::fmt::Debug for HostModule {
    /// The environment may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostModule")
            .field("executable", &self.executable)
            .field("sha256", &self.sha256)
            .finish_non_exhaustive()
    }
}

/// A service of the host that something else starts, for example systemd, and that has a
/// module's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostService {
    /// The systemd unit in whose cgroup its processes are.
    #[serde(default)]
    pub unit: Option<UnitName>,
    /// The user that it runs as, by name or number.
    #[serde(default)]
    pub user: Option<String>,
    /// Absolute path of its executable: where a new one is looked for when it is to be
    /// approved.
    #[serde(default)]
    pub executable: Option<String>,
    /// The digest that the executable's content must have.
    #[serde(default)]
    pub sha256: Option<Sha256Digest>,
    /// As [`HostModule::management`].
    #[serde(default)]
    pub management: bool,
    /// As [`HostModule::approves`].
    #[serde(default)]
    pub approves: Vec<String>,
}

/// The system calls that a host module may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeccompPreset {
    /// All but those that change the machine: modules, clocks, mounts, other processes'
    /// memory and the like.
    #[default]
    Default,
    /// The calls of a program that computes, keeps files and talks over sockets. The
    /// program can start no new programs.
    Strict,
    /// All but the two that make lie what is measured of a process.
    None,
}

/// The resources that a host module may use up. Absent: no limit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of memory, swap included.
    pub memory_max: Option<u64>,
    /// Per cent of one processor; 200 is two of them.
    pub cpu_quota: Option<u32>,
    /// Processes and threads.
    pub pids_max: Option<u32>,
    /// Open files of each process.
    pub nofile: Option<u64>,
    /// The treatment of a limit that this machine cannot set.
    pub enforcement: Enforcement,
}

/// The treatment of a limit that the machine cannot set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enforcement {
    /// The module is not started.
    #[default]
    Required,
    /// It is started with what comes nearest, and its status says so.
    BestEffort,
}

/// The condition under which the daemon itself starts a host module again that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never by the daemon: the agent decides, by the deployment.
    #[default]
    Agent,
    /// If it ended with another code than 0 or by a signal.
    OnFailure,
    /// However it ended.
    Always,
}
