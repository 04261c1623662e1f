//! The process that starts a daemon's children, and starts one anew that ended.
//!
//! It has the rights that the daemon gives up, since whoever has none cannot give any. So
//! it does nothing else: it reads no file and no message but the few bytes by which the
//! daemon names a child that must go. It ends, with the children, when the daemon ends.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::channel::{self, ReceiveError};
use crate::connection::Connection;

/// Time that a child should live; one that ends sooner is started anew only after it.
const SHORTEST_LIFE: Duration = Duration::from_millis(500);

/// The executable that this process runs, also when its file was replaced.
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// The supervisor's word to the daemon, beside a child's socket; and the daemon's word to
/// the supervisor about a child that must go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Word {
    /// The child's place in the list of arguments.
    pub(crate) child: usize,
    /// Counts the starts of that child.
    pub(crate) start: u64,
}

/// A supervisor that was started, as the daemon has it before its runtime begins.
#[derive(Debug)]
pub struct Started {
    pub(crate) process: Child,
    pub(crate) socket: OwnedFd,
}

/// Starts the supervisor: this program once more, with `argument`, for which its `main`
/// calls [`main`]. To be called before the daemon reads anything or gives anything up.
///
/// # Errors
/// The process cannot be made.
pub fn start(argument: &OsStr) -> io::Result<Started> {
    let (socket, theirs) = channel::pair()?;
    let process = Command::new(OWN_EXECUTABLE).arg(argument).stdin(Stdio::from(theirs)).spawn()?;
    Ok(Started { process, socket })
}

/// Signals by which service managers and terminals end all processes of a daemon at once.
/// These here end when the daemon does, who may need them until then.
///
/// Handled, not ignored: that would be inherited by what is executed later.
#[derive(Debug)]
pub struct OutlivesSignals(#[expect(dead_code, reason = "held")] [Signal; 3]);

impl OutlivesSignals {
    /// Lets these signals pass, for as long as the process lives. In a tokio runtime.
    ///
    /// # Errors
    /// The signals cannot be watched.
    pub fn begin() -> io::Result<Self> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self([signal(terminate)?, signal(interrupt)?, signal(SignalKind::hangup())?]))
    }
}

/// The socket that a child, or the supervisor, is given as its standard input; that one
/// becomes `/dev/null`.
///
/// # Errors
/// The descriptor cannot be taken over.
pub fn take_socket() -> io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(socket)
}

/// Supervises children, one for each of `arguments`, which are those of this program,
/// until the daemon ends.
#[must_use]
pub fn main(arguments: &[OsString]) -> ExitCode {
    let run = || {
        let socket = take_socket()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(supervise(socket, arguments))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the supervisor ends");
            ExitCode::FAILURE
        }
    }
}

async fn supervise(socket: OwnedFd, arguments: &[OsString]) -> io::Result<()> {
    let _outlives = OutlivesSignals::begin()?;
    let daemon = Arc::new(Connection::new(socket)?);
    let mut unwanted = Vec::new();
    let mut kept = tokio::task::JoinSet::new();
    for (child, argument) in arguments.iter().enumerate() {
        let (sender, receiver) = watch::channel(0);
        unwanted.push(sender);
        kept.spawn(keep(Arc::clone(&daemon), child, argument.clone(), receiver));
    }
    loop {
        let message = tokio::select! {
            message = daemon.receive() => message,
            // Only if the daemon cannot be told of a child, or none can be started.
            Some(ended) = kept.join_next() => return ended.map_err(io::Error::other)?,
        };
        let word: Word = match message {
            Ok(message) => serde_json::from_slice(&message.body)?,
            // The children's processes end as their keepers are dropped.
            Err(ReceiveError::Ended) => return Ok(()),
            Err(error) => return Err(io::Error::other(error)),
        };
        if let Some(unwanted) = unwanted.get(word.child) {
            unwanted.send_replace(word.start);
        }
    }
}

/// Keeps one child running. Each start has a socket of its own, whose other end the
/// daemon gets.
async fn keep(
    daemon: Arc<Connection>,
    child: usize,
    argument: OsString,
    mut unwanted: watch::Receiver<u64>,
) -> io::Result<()> {
    for start in 1.. {
        let (ours, theirs) = channel::pair()?;
        let mut command = tokio::process::Command::new(PathBuf::from(OWN_EXECUTABLE));
        command.arg(&argument).stdin(Stdio::from(theirs)).kill_on_drop(true);
        let process = command.spawn();
        drop(command);
        let mut process = process?;
        let began = Instant::now();
        let word = serde_json::to_vec(&Word { child, start })?;
        daemon.send(start, &word, &[ours.as_fd()]).await?;
        drop(ours);
        let must_go = async { _ = unwanted.wait_for(|unwanted| *unwanted >= start).await };
        let ended = tokio::select! {
            ended = process.wait() => Some(ended?),
            () = must_go => None,
        };
        let why = match ended {
            Some(status) => format!("ended ({status})"),
            None => {
                process.kill().await?;
                "was ended, for it did not answer".to_owned()
            }
        };
        tracing::warn!(child = %argument.display(), why, "a child of the daemon is started anew");
        tokio::time::sleep_until(began + SHORTEST_LIFE).await;
    }
    Ok(())
}
