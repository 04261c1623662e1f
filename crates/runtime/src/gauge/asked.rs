//! Questions to the gauge, and its answers. Every message is within the bounds of
//! [`edgekeep_children::channel`].

use std::path::PathBuf;

use edgekeep_core::attestation::{
    Ancestor, DenyReason, Holding, Measurement, ProcessInstance, Snapshot,
};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::ContainerId;
use serde::{Deserialize, Serialize};

use crate::evidence::StartedFrom;

/// A question.
#[derive(Debug, Serialize, Deserialize)]
pub enum Asked {
    /// Tell whether this kernel keeps writers out of files that are executed.
    About,
    /// Look at a process. Descriptor: its pidfd.
    Look(Look),
    /// Measure the executable of a process. Descriptor: its pidfd.
    Measure(Measure),
    /// Look at the first process of a container.
    First {
        /// Its number, as the engine tells it.
        pid: u32,
    },
    /// Find the folders that are mounted below the root of a container's first process.
    Layers {
        /// The process.
        init: ProcessInstance,
    },
    /// Open the program of a process that runs a sealed copy.
    Program {
        /// The process.
        process: ProcessInstance,
        /// The digest that the program must have.
        sha256: Sha256Digest,
    },
    /// Check that a file is a program for this machine, with this content.
    Verify {
        /// Absolute path.
        executable: PathBuf,
        /// The digest that the file must have.
        sha256: Sha256Digest,
    },
    /// Find out whether a user runs an executable of this path.
    Runs {
        /// User id.
        uid: u32,
        /// Absolute path.
        executable: PathBuf,
    },
}

/// Details of a look at a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Look {
    /// Number of the process.
    pub pid: u32,
    /// The process at which the search for ancestors ends.
    pub stop_at: Option<ProcessInstance>,
    /// True if only what can have changed since an earlier look is wanted.
    pub again: bool,
    /// The connection whose descriptor is to be looked for.
    pub connection: Option<Connection>,
    /// The measurement that is wanted if it was made before.
    pub measured: Option<Compared>,
    /// True if the process is to be kept for its next connections.
    pub keep: bool,
}

/// The caller's end of a connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connection {
    /// Inode number of its socket.
    pub socket: u64,
    /// Descriptors to look at first.
    pub likely: Vec<u32>,
}

/// Inputs of a measurement beside the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Facts from the module's own start.
    pub started_from: StartedFrom,
    /// The image that the executable is to be compared with.
    pub image: Option<Sha256Digest>,
}

/// Details of a measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measure {
    /// The process as it was seen.
    pub snapshot: Snapshot,
    /// Its inputs.
    pub compared: Compared,
    /// The layers of the image, top-most first.
    pub folders: Vec<PathBuf>,
    /// True if the process is to be kept for its next connections.
    pub keep: bool,
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Answer to [`Asked::About`]: true if writers are kept out.
    About(bool),
    /// Answer to [`Asked::Look`].
    Seen(Box<Seen>),
    /// Answer to [`Asked::Measure`].
    Measured(Measurement),
    /// There is no evidence.
    Unseen(DenyReason),
    /// Answer to [`Asked::First`]. `None` if there is no such process.
    First(Option<First>),
    /// Answer to [`Asked::Layers`]. `None` if they are not sure.
    Layers(Option<Vec<PathBuf>>),
    /// The descriptor that was asked for is here.
    Opened,
    /// The file is the one that was asked for.
    Verified,
    /// Answer to [`Asked::Runs`]. `None` if processes cannot be listed.
    Runs(Option<bool>),
    /// The file is not what was asked for, in words.
    Unfit(String),
}

/// A process as it is now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    /// Whatever can change, and the process that it is.
    pub snapshot: Snapshot,
    /// The process and its ancestors. Empty if the look was one of several.
    pub ancestry: Vec<Ancestor>,
    /// The container whose control group the process is in.
    pub container: Option<ContainerId>,
    /// Path of the executable. `None` if the look was one of several.
    pub path: Option<String>,
    /// The way in which the connection is held, if that was asked for, and the descriptor
    /// by which it is held safely.
    pub held: Option<(Holding, Option<u32>)>,
    /// The measurement, if it was asked for and had been made.
    pub measurement: Option<Measurement>,
}

impl Seen {
    pub(super) fn of(snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            ancestry: Vec::new(),
            container: None,
            path: None,
            held: None,
            measurement: None,
        }
    }
}

/// The first process of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct First {
    /// The process.
    pub process: ProcessInstance,
    /// Its control group.
    pub cgroup: String,
    /// Inode of its user namespace.
    pub user_namespace: u64,
    /// Number of its filters of system calls with which it was started.
    pub filters: Option<u32>,
}
