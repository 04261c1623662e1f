//! State of a module, from either runtime, in the words of the management API (wire
//! facts, section 2.3).

use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::ContainerId;
use time::OffsetDateTime;

/// A module's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleState {
    /// Not started, stopped, or ended with code 0.
    Stopped,
    /// Runs.
    Running,
    /// Frozen by something else than this daemon: it has processes, which get no time.
    Paused,
    /// Ended with another code than 0, or it could not be told with which.
    Failed,
    /// Cannot be started again; must be removed.
    Dead,
    /// The engine said something else.
    Unknown,
}

impl ModuleState {
    /// The word on the wire. What existing agents know for `paused` is
    /// [`Self::Stopped`]'s.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Failed => "failed",
            Self::Dead => "dead",
            Self::Unknown => "unknown",
        }
    }
}

/// Time and code of a module's last end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Time of the end.
    pub at: OffsetDateTime,
    /// Exit code; 128 plus the number if a signal ended it; `None` if nobody was there to
    /// be told (a host module that ended after moduled had been restarted).
    pub code: Option<i64>,
}

/// A module as its runtime knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleStatus {
    /// The container's or process's name: a module id without a leading `$`.
    pub name: String,
    /// The image as it was asked for: an image name, or the name of a registered host
    /// executable.
    pub image: String,
    /// The content that was created: image id, or digest of the executable.
    pub content: Option<Sha256Digest>,
    /// The container, for container modules.
    pub container: Option<ContainerId>,
    /// Its state.
    pub state: ModuleState,
    /// Time of the last start; `None` if no start is known.
    pub started: Option<OffsetDateTime>,
    /// Time and code of the last end; `None` if no end is known.
    pub exit: Option<ExitStatus>,
    /// Labels of the container; none for host modules.
    pub labels: Vec<(String, String)>,
    /// Remark about the module, in words; `None` if there is none.
    pub note: Option<String>,
}
