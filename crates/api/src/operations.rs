//! The operations socket that each daemon has (ours): metrics, the log's level, its
//! sandbox and its problems. Requests name no api-version.

use std::path::PathBuf;
use std::time::Duration;

use edgekeep_core::health::{Code, Health, Problem, Subject, Verdict};
use edgekeep_core::layout::{Daemon, Root};
use http::Method;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::client::{Client, ClientError};

/// The level of a daemon's log, as it is asked for and told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLevel {
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// The level that comes back with a restart. Absent in a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_start: Option<String>,
}

/// Answer of `GET /sandbox`: what the daemon has given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxReport {
    /// True if the configuration lets the daemon give anything up.
    pub enabled: bool,
    /// The layers that are asked for.
    pub layers: Vec<Layer>,
    /// Things that stay within reach because the settings need them, in words for people.
    pub widened: Vec<String>,
}

/// One layer of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// `privileges`, `files` or `system calls`.
    pub name: String,
    /// True if all of the layer is in force.
    pub full: bool,
    /// False if nothing of the layer is in force. Earlier daemons do not tell.
    #[serde(default = "in_force")]
    pub in_force: bool,
    /// The protection that is in force, in words for people.
    pub level: String,
}

/// Returns what is taken of a daemon that does not tell it.
const fn in_force() -> bool {
    true
}

/// Answer of `GET /problems`: the problems that the daemon knows of, the worst first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProblemList {
    /// The health of what this daemon knows of: `healthy`, `healthy-with-warnings` or
    /// `unhealthy`.
    pub health: Verdict,
    /// The problems.
    pub problems: Vec<ShownProblem>,
}

/// A problem with the sentences of its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownProblem {
    /// The problem.
    #[serde(flatten)]
    pub problem: Problem,
    /// The cause of the problem.
    pub cause: String,
    /// The remedy: what to do about the cause.
    pub remedy: String,
}

impl From<&Problem> for ShownProblem {
    fn from(problem: &Problem) -> Self {
        let explained = problem.code().explained();
        Self {
            problem: problem.clone(),
            cause: explained.cause.to_owned(),
            remedy: explained.remedy.to_owned(),
        }
    }
}

impl From<&Health> for ProblemList {
    fn from(health: &Health) -> Self {
        Self {
            health: health.verdict(),
            problems: health.problems().iter().map(ShownProblem::from).collect(),
        }
    }
}

/// The problems that these daemons know of. One that does not tell is a problem itself;
/// one without an operations socket, or whose socket the caller may not open, is a
/// warning, since it may be a compatible service.
pub async fn problems_of(root: &Root, daemons: &[Daemon], patience: Duration) -> Vec<Problem> {
    let mut asked = tokio::task::JoinSet::new();
    for daemon in daemons.iter().copied() {
        let client =
            OperationsClient(Client::new(root.metrics_socket(daemon)).with_timeout(patience));
        asked.spawn(async move { (daemon, client.problems().await) });
    }
    let mut problems = Vec::new();
    for (daemon, answer) in asked.join_all().await {
        match answer {
            Ok(list) => problems.extend(list.problems.into_iter().map(|shown| shown.problem)),
            Err(error) => problems.push(untold(daemon, &error, OffsetDateTime::now_utc())),
        }
    }
    problems
}

fn untold(daemon: Daemon, error: &ClientError, now: OffsetDateTime) -> Problem {
    use std::io::ErrorKind::{NotFound, PermissionDenied};
    let code = match error {
        ClientError::Connect { source, .. }
            if matches!(source.kind(), NotFound | PermissionDenied) =>
        {
            Code::NotShown
        }
        ClientError::Status { .. } => Code::NotShown,
        _ => Code::DaemonAway,
    };
    Problem::new(
        code,
        Subject::daemon(daemon),
        &format!("its operations socket does not tell its problems: {error}"),
        now,
    )
}

/// Typed client of one daemon's operations socket.
#[derive(Debug, Clone)]
pub struct OperationsClient(Client);

impl OperationsClient {
    /// The same client with another limit for a whole call.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self(self.0.with_timeout(timeout))
    }

    /// A client of the operations socket at `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self(Client::new(socket))
    }

    /// The daemon's metrics in OpenMetrics' text form.
    ///
    /// # Errors
    /// As every call: if the socket cannot be reached or the caller is refused.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        self.0.call_text(Method::GET, "/metrics").await
    }

    /// The log's level.
    ///
    /// # Errors
    /// As [`Self::metrics`].
    pub async fn log_level(&self) -> Result<LogLevel, ClientError> {
        self.0.call(Method::GET, "/log-level", None::<&()>).await
    }

    /// Asks what the daemon has given up.
    ///
    /// # Errors
    /// As [`Self::metrics`].
    pub async fn sandbox(&self) -> Result<SandboxReport, ClientError> {
        self.0.call(Method::GET, "/sandbox", None::<&()>).await
    }

    /// The problems that the daemon knows of.
    ///
    /// # Errors
    /// As [`Self::metrics`].
    pub async fn problems(&self) -> Result<ProblemList, ClientError> {
        self.0.call(Method::GET, "/problems", None::<&()>).await
    }

    /// Changes the log's level until the daemon ends.
    ///
    /// # Errors
    /// As [`Self::metrics`]; 403 for who is not root, 400 for a word that is no level.
    pub async fn set_log_level(&self, level: &str) -> Result<LogLevel, ClientError> {
        let body = LogLevel { level: level.to_owned(), at_start: None };
        self.0.call(Method::PUT, "/log-level", Some(&body)).await
    }
}
