//! The processes that moduled starts for itself before it reads anything, and what it
//! gives up then.
//!
//! The gauge looks at processes, executables and image layers
//! ([`edgekeep_runtime::gauge`]). The launcher starts and ends host modules
//! ([`edgekeep_runtime::process`]). Each has the rights for that. The supervisor keeps
//! both running. All run this program, with an argument that is for moduled alone, and
//! end when moduled ends.

mod confine;
mod gauge;
mod launcher;

use std::ffi::{OsStr, OsString};
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use edgekeep_children::supervisor::{self, Started};
use edgekeep_children::{Children, Trouble};
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::host::Daemon as Rights;
use edgekeep_core::layout::Daemon;
use edgekeep_daemon::activation;
use edgekeep_daemon::board::Board;
use edgekeep_runtime::evidence::CgroupHierarchy;
use edgekeep_runtime::gauge::Gauge;
use edgekeep_runtime::process::{self, Launching, make_room, own_rights};
use edgekeep_sandbox::privileges;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::CapabilitySet;
use tokio::sync::mpsc;

pub use gauge::ConfinedGauge;
pub use launcher::ConfinedLauncher;

const SUPERVISOR: &str = "supervise";
const LAUNCHER: &str = "launch-modules";
const GAUGE: &str = "gauge-processes";

/// Names of the children, in the supervisor's order.
const NAMES: [&str; 2] = ["launcher", "gauge"];

/// The highest priority that a thread of moduled takes, as the limit has it: nice -10.
const PRIORITY: u64 = 30;

/// Time for which a child that was started anew is shown as a problem.
const SHOWN_FOR: Duration = Duration::from_secs(300);

/// Becomes the process that the arguments name, if they name one.
#[must_use]
pub fn become_child() -> Option<ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [argument] = &arguments[..] else { return None };
    let step = process::launcher::ARGUMENT;
    match argument.to_str()? {
        // The step between the launcher and a host module.
        argument if argument == step => {
            Some(u8::try_from(process::launcher::main()).map_or(ExitCode::FAILURE, ExitCode::from))
        }
        SUPERVISOR => {
            edgekeep_daemon::logging::init();
            Some(supervisor::main(&[LAUNCHER.into(), GAUGE.into()]))
        }
        LAUNCHER => Some(launcher::main()),
        GAUGE => Some(gauge::main()),
        _ => None,
    }
}

/// The children of a moduled that has no thread yet.
#[derive(Debug)]
pub struct Begun {
    started: Started,
    rights: Rights,
}

/// Starts the children, and gives up for good what only they need. To be called before
/// there are other threads.
///
/// # Errors
/// The supervisor cannot be started, or the kernel keeps what should be given up.
pub fn begin() -> anyhow::Result<Begun> {
    // Before any thread starts: all threads and every host module inherit it.
    process::forbid_new_privileges().context("cannot give up new privileges")?;
    // Who has a listening socket could take this daemon's callers.
    activation::keep_to_this_process();
    // Children are made in the group that this process is in.
    make_room(&CgroupHierarchy::detect());
    let rights = own_rights().context("cannot look at the daemon's own rights")?;
    let started = supervisor::start(OsStr::new(SUPERVISOR))
        .context("cannot start the processes that hold the daemon's rights")?;
    keep_priority();
    let mut kept = CapabilitySet::empty();
    if rights.account.uid == 0 {
        // Without it root can do less than the owners of the files, which need not be
        // root.
        kept |= CapabilitySet::DAC_OVERRIDE;
    }
    privileges::give_up(kept).context("cannot give up rights")?;
    Ok(Begun { started, rights })
}

/// Leaves the priority of the thread that takes connections within reach, also of a
/// daemon that has it by a right. The unit has a limit for it.
fn keep_priority() {
    let now = getrlimit(Resource::Nice);
    if now.current.is_none_or(|now| now >= PRIORITY) {
        return;
    }
    let limit =
        Rlimit { current: Some(PRIORITY), maximum: now.maximum.map(|now| now.max(PRIORITY)) };
    if let Err(error) = setrlimit(Resource::Nice, limit) {
        tracing::debug!(%error, "threads cannot have a higher priority");
    }
}

/// The children as the running daemon has them.
#[derive(Debug)]
pub(crate) struct RunningChildren {
    children: Children,
    troubles: mpsc::Receiver<Trouble>,
    /// Whoever starts host modules.
    pub(crate) launching: Launching,
    /// Whoever looks at processes.
    pub(crate) gauge: Gauge,
}

impl Begun {
    /// Takes the children over into the runtime.
    pub(crate) fn adopt(self) -> io::Result<RunningChildren> {
        let (children, troubles) = Children::adopt(self.started, &NAMES)?;
        let link = |child| children.link(child).ok_or(io::ErrorKind::NotFound);
        let launching = Launching::child(link(0)?, self.rights);
        let gauge = Gauge::child(link(1)?);
        Ok(RunningChildren { children, troubles, launching, gauge })
    }
}

impl RunningChildren {
    /// Tells the board of children that had to be started anew. Returns when none can be
    /// started any more: the daemon has no rights to give them, and has to be started
    /// anew itself.
    pub(crate) async fn watch(mut self, board: Board) {
        loop {
            let trouble = tokio::select! {
                Some(trouble) = self.troubles.recv() => trouble,
                () = self.children.gone() => break,
            };
            tracing::error!(child = trouble.child, why = trouble.why, "a child failed");
            let detail = format!("the {}: {}", trouble.child, trouble.why);
            board.note(Code::ChildFailed, &Subject::daemon(Daemon::Moduled), detail, SHOWN_FOR);
        }
        tracing::error!("the supervisor of the daemon's children ended; the daemon ends with it");
    }
}
