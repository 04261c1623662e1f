//! Questions to the launching process, and its answers. Every message is within the
//! bounds of [`edgekeep_children::channel`]. Content that may be longer comes in a memory
//! file of at most [`MAX_SPEC`] bytes.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use edgekeep_core::attestation::{ExecutableFile, ProcessInstance};
use edgekeep_core::id::ModuleId;
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use super::{ProcessError, ProcessSpec};

/// Longest description of a start, in bytes. The kernel bounds arguments and environment
/// to about half of that.
const MAX_SPEC: u64 = 4 * 1024 * 1024;

/// A question.
#[derive(Debug, Serialize, Deserialize)]
pub enum Asked {
    /// Tell how modules are held together on this machine.
    About,
    /// Open the files of the system's users and groups.
    Accounts,
    /// Prepare a start. Descriptors: the [`ProcessSpec`], standard output, standard error
    /// and, if there is one, the copy of its program that was kept.
    Prepare {
        /// The module.
        id: ModuleId,
    },
    /// Let what was prepared become the module.
    Begin {
        /// Number from [`Answer::Prepared`].
        number: u32,
    },
    /// End what was prepared.
    Cancel {
        /// Number from [`Answer::Prepared`].
        number: u32,
    },
    /// Send a signal to the module's process group, and to its first process.
    Signal {
        /// The module.
        id: ModuleId,
        /// Its first process.
        process: ProcessInstance,
        /// SIGKILL, else SIGTERM.
        kill: bool,
    },
    /// Take note of the end of a module's first process.
    Ended {
        /// Its first process.
        process: ProcessInstance,
        /// True if the rest of its process group is to end too.
        stopping: bool,
    },
    /// End all that is left in the module's group.
    Clear {
        /// The module.
        id: ModuleId,
        /// The group of its last run.
        former: Option<String>,
        /// Groups that were made for its limits alone.
        limit_groups: Vec<PathBuf>,
    },
    /// Remove groups of the module that nothing runs in.
    Discard {
        /// The module.
        id: ModuleId,
        /// The group that it is told by.
        cgroup: Option<String>,
        /// Groups that were made for its limits alone.
        limit_groups: Vec<PathBuf>,
    },
    /// Give a folder to a user. Descriptor: the folder.
    HandOver {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Answer to [`Asked::About`].
    About {
        /// Reason why modules have no cgroups of their own; `None` if they have.
        without_cgroups: Option<String>,
    },
    /// A process that waits to become the module. Descriptor: its pidfd.
    Prepared {
        /// Number for [`Asked::Begin`] and [`Asked::Cancel`].
        number: u32,
        /// The process.
        process: ProcessInstance,
        /// The sealed copy of its program.
        own_copy: ExecutableFile,
        /// True if the copy was made from the program's file, not from the copy that was
        /// kept.
        from_file: bool,
        /// The group that it is told by.
        cgroup: Option<String>,
        /// The means that keep each limit, in words.
        limits: Option<String>,
        /// Groups that were made for its limits alone.
        limit_groups: Vec<PathBuf>,
    },
    /// The module runs. Names the parts that could not be confined as a whole, if there
    /// are any.
    Began(Option<String>),
    /// Exit code of a process, or 128 plus the number of the signal that ended it. `None`
    /// if this process was not the parent.
    Exit(Option<i64>),
    /// True if nothing is left.
    Cleared(bool),
    /// The request was carried out. Answer to [`Asked::Accounts`] with two descriptors.
    Done,
    /// The request failed.
    Failed(Failure),
}

/// The cause of a failure, in words.
#[derive(Debug, Serialize, Deserialize)]
pub enum Failure {
    /// The program cannot be started, as whoever registered it can see.
    Program(String),
    /// A limit that is required cannot be set.
    Limits(String),
    /// A systemd scope that is required cannot be had.
    Scope(String),
    /// The request does not fit the configuration.
    Refused(String),
    /// The machine does not allow the request.
    Machine(String),
}

impl Failure {
    pub(super) fn machine(error: &dyn std::error::Error) -> Self {
        Self::Machine(words(error))
    }

    pub(super) fn of(module: ModuleId) -> impl Fn(Self) -> ProcessError {
        move |failure| {
            let module = module.clone();
            match failure {
                Self::Program(why) => ProcessError::Unfit { why },
                Self::Limits(why) => ProcessError::Limits { module, why },
                Self::Scope(why) => ProcessError::Scope { module, why },
                Self::Refused(why) => ProcessError::Refused { module, why },
                Self::Machine(why) => ProcessError::Start { module, source: io::Error::other(why) },
            }
        }
    }
}

impl From<ProcessError> for Failure {
    fn from(error: ProcessError) -> Self {
        match error {
            ProcessError::Program(error) => Self::Program(words(&error)),
            ProcessError::Limits { why, .. } => Self::Limits(why),
            ProcessError::Scope { why, .. } => Self::Scope(why),
            ProcessError::Start { source, .. } => Self::Machine(words(&source)),
            other => Self::machine(&other),
        }
    }
}

/// An error with its causes, on one line.
pub(crate) fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// A start's description as it is passed on.
pub(super) fn spec_file(spec: &ProcessSpec) -> io::Result<OwnedFd> {
    let bytes = serde_json::to_vec(spec)?;
    if bytes.len() as u64 > MAX_SPEC {
        let text = "arguments and environment are too long";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut file = File::from(rustix::fs::memfd_create("start", MemfdFlags::CLOEXEC)?);
    file.write_all(&bytes)?;
    Ok(file.into())
}

/// Reads a start's description.
pub(super) fn read_spec(file: OwnedFd) -> io::Result<ProcessSpec> {
    let mut file = File::from(file);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(MAX_SPEC + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SPEC {
        return Err(io::Error::other("the description of a start is too long"));
    }
    Ok(serde_json::from_slice(&bytes)?)
}
