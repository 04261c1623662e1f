//! Sandbox of a process: the rights that the process gives up once it has what it needs.
//! Whoever takes the process over gets no more than the process has kept.
//!
//! Three layers, each of which holds alone:
//! - [`privileges`]: capabilities, new privileges by `execve`, core dumps, tracers of the
//!   same user.
//! - [`reach`]: files, TCP ports, signals and abstract sockets, by Landlock.
//! - [`syscalls`]: system calls, by a seccomp filter that is made from a commented list;
//!   [`measured`]: the two with which a process makes lie what others measure of it.
//!
//! What is given up is decided in values ([`Reach`], [`SyscallList`]); a call each then
//! gives it up. What the kernel cannot do is never skipped in silence: each call returns
//! the [`Level`] that was reached.
//!
//! Landlock and capabilities belong to a thread and are inherited by its children: call
//! [`privileges::give_up`] and [`Reach::restrict`] before there are other threads (the
//! latter refuses otherwise, the former is checked by it), in a daemon's start or in a
//! launcher just before `execve`. A seccomp filter can be put on all threads at once,
//! last.
//!
//! Touches: the calling process; opens the files and folders that it is given, without
//! reading them. Never: another process, the environment, the network.
#![deny(unsafe_code)]

pub mod measured;
mod names;
pub mod privileges;
pub mod reach;
pub mod syscalls;

use std::fmt;

pub use reach::{Grant, Reach, ReachError, Rights};
pub use syscalls::{Filter, FilterError, ListError, SyscallList};

/// The degree to which a layer of the sandbox is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Level {
    /// All that was asked for.
    Full,
    /// Some of it: the kernel lacks the rest.
    Partial {
        /// The missing protections, in words for people.
        missing: String,
    },
    /// Nothing: the kernel lacks it.
    Absent {
        /// The reason, in words for people.
        reason: String,
    },
}

impl Level {
    /// Returns true if all that was asked for is in force.
    #[must_use]
    pub fn is_full(&self) -> bool {
        *self == Self::Full
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::Partial { missing } => write!(f, "partial: {missing}"),
            Self::Absent { reason } => write!(f, "absent: {reason}"),
        }
    }
}
