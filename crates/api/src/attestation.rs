//! `GET /attestation` and `GET /refusals` of the management API (ours): a process looked
//! at as if it called, and callers that were refused, with what was made of them.

use edgekeep_core::attestation::{
    Ancestor, DenyReason, ExecutableFile, Holding, Measurement, Policy, ProcessInstance,
    Registration, Running, RunningFacts, Workload, outcome,
};
use edgekeep_core::id::ContainerId;
use serde::{Deserialize, Serialize};

/// Evidence and verdict, with nothing secret in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attestation {
    /// The module that the process was looked at as.
    pub module: String,
    /// The process.
    pub pid: u32,
    /// True if the process would be let in over the module's own socket.
    pub allowed: bool,
    /// The registration of the module, if there is one.
    pub registration: Option<Registered>,
    /// Facts about what runs for the module.
    pub facts: Facts,
    /// The evidence of the kernel; absent if it could not be gathered.
    pub evidence: Option<Seen>,
    /// The checks in the order in which they are made.
    pub checks: Vec<Check>,
    /// Cause and remedy, if the process is refused.
    #[serde(flatten, default)]
    pub explanation: Option<Explanation>,
}

/// A refusal in sentences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The cause of the refusal.
    pub cause: String,
    /// The remedy: what to do about the cause.
    pub remedy: String,
}

/// Answer of `GET /refusals`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastRefusals {
    /// The refusals, the latest first.
    pub refusals: Vec<PastRefusal>,
}

/// One caller that was refused, once or again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PastRefusal {
    /// The module that was asked for; empty if the request did not come to that.
    pub module: String,
    /// Method and route.
    pub route: String,
    /// The one reason.
    pub reason: DenyReason,
    /// Cause and remedy of the refusal.
    #[serde(flatten)]
    pub explanation: Explanation,
    /// Number of times that the caller was refused.
    pub count: u64,
    /// The first time, RFC 3339.
    pub first_time: String,
    /// The latest time, RFC 3339. What follows is of that time.
    pub time: String,
    /// The process that called.
    pub caller: RefusedCaller,
    /// Evidence and checks of the latest refusal; absent for a refusal of an earlier run,
    /// of which only the audit trail tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<Attestation>,
}

/// A refused caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedCaller {
    /// Process id, 0 if not visible.
    pub pid: u32,
    /// User id at connect.
    pub uid: u32,
    /// Path of the caller's executable in the caller's own mount tree, as the caller
    /// said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    /// The container it was in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerId>,
    /// The module that it was a process of, by its container or control group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// A registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    /// The attestation policy: how much of a caller must match.
    pub policy: Policy,
    /// The identity's generation, once it is known.
    pub generation: Option<String>,
    /// The workload that was registered.
    pub workload: Workload,
}

/// Facts about what runs for a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// `unknown`, `stopped` or `running`; `host` for a service of the host, which
    /// something else starts.
    pub state: String,
    /// The first process.
    pub init: Option<ProcessInstance>,
    /// Its control group.
    pub cgroup: Option<String>,
    /// The container that runs.
    pub container: Option<ContainerId>,
    /// The image that it runs.
    pub image: Option<String>,
    /// Digest of the options that it was created with.
    pub options: Option<String>,
    /// The earliest start time of a process that the engine's `exec` may have brought in.
    pub exec_since: Option<u64>,
}

/// The state of a process, as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// The process.
    pub process: ProcessInstance,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Path of the process's executable in the process's own mount tree, as the process
    /// says.
    pub path: String,
    /// The file that it executes.
    pub executable: ExecutableFile,
    /// Content of the executable, if the policy asks for it and all else is in order.
    pub measurement: Option<Measurement>,
    /// Control group.
    pub cgroup: String,
    /// The container that the control group names.
    pub container: Option<ContainerId>,
    /// Inode of the pid namespace.
    pub pid_namespace: u64,
    /// Inode of the user namespace.
    pub user_namespace: u64,
    /// Tracer, 0 for none.
    pub tracer: u32,
    /// Number of its filters of system calls, where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<u32>,
    /// The process, its parent and so on.
    pub ancestry: Vec<Ancestor>,
    /// The way in which the process holds its connection, if it has one and the policy
    /// asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<Holding>,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// The reason that is written down when it fails.
    pub reason: DenyReason,
    /// True if the check passed; absent if an earlier check failed, or if this check is
    /// about a connection.
    pub passed: Option<bool>,
}

impl Check {
    /// The checks of a caller, and what came of each.
    #[must_use]
    pub fn list(
        registration: Option<&Registration>,
        verdict: Result<(), DenyReason>,
        on_connection: bool,
    ) -> Vec<Self> {
        let outcome = outcome(registration, verdict, on_connection).into_iter();
        outcome.map(|(reason, passed)| Self { reason, passed }).collect()
    }
}

impl From<DenyReason> for Explanation {
    fn from(reason: DenyReason) -> Self {
        let explained = reason.explained();
        Self { cause: explained.cause.to_owned(), remedy: explained.remedy.to_owned() }
    }
}

impl From<&Registration> for Registered {
    fn from(registration: &Registration) -> Self {
        Self {
            policy: registration.policy,
            generation: registration
                .generation
                .as_ref()
                .map(|generation| generation.as_str().to_owned()),
            workload: registration.workload.clone(),
        }
    }
}

impl From<&RunningFacts> for Facts {
    fn from(facts: &RunningFacts) -> Self {
        let none = |state: &str| Self {
            state: state.to_owned(),
            init: None,
            cgroup: None,
            container: None,
            image: None,
            options: None,
            exec_since: None,
        };
        match facts {
            RunningFacts::Unknown => none("unknown"),
            RunningFacts::Stopped => none("stopped"),
            RunningFacts::Host(_) => none("host"),
            RunningFacts::Running(Running { init, cgroup, container, exec_since, .. }) => Self {
                state: "running".to_owned(),
                init: Some(*init),
                cgroup: cgroup.clone(),
                container: container.as_ref().map(|container| container.container.clone()),
                image: container.as_ref().map(|container| container.image.to_string()),
                options: container.as_ref().map(|container| container.options.to_string()),
                exec_since: *exec_since,
            },
        }
    }
}
