//! Ctrl-C and friends: children that run in the foreground are told, and the task comes
//! to its end in the ordinary way, so that everything it started is ended too.

use std::io::IsTerminal as _;
use std::process::{Child, Command};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

/// The task was told to stop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

struct State {
    interrupted: bool,
    foreground: Vec<Pid>,
}

static STATE: Mutex<State> = Mutex::new(State { interrupted: false, foreground: Vec::new() });
static CHANGED: Condvar = Condvar::new();

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

/// Begins to listen. To be called before any other thread is started.
pub(crate) fn watch() -> anyhow::Result<()> {
    let signals = signals();
    signals.thread_block().context("cannot block signals")?;
    let listen = move || {
        while let Ok(signal) = signals.wait() {
            let mut state = state();
            // The terminal sends SIGINT to the children as well.
            let told = signal == Signal::SIGINT && std::io::stdin().is_terminal();
            let pass_on = match (state.interrupted, told) {
                (false, true) => None,
                (false, false) => Some(Signal::SIGTERM),
                (true, _) => Some(Signal::SIGKILL),
            };
            for child in state.foreground.iter().filter(|_| pass_on.is_some()) {
                let _ = kill(*child, pass_on);
            }
            state.interrupted = true;
            CHANGED.notify_all();
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(listen)
        .context("cannot start a thread")?;
    Ok(())
}

/// An error if the task was told to stop.
pub(crate) fn check() -> Result<(), Interrupted> {
    if state().interrupted { Err(Interrupted) } else { Ok(()) }
}

/// Waits this long, or until the task is told to stop.
pub(crate) fn pause(duration: Duration) -> Result<(), Interrupted> {
    let _ = CHANGED.wait_timeout_while(state(), duration, |state| !state.interrupted);
    check()
}

/// Tries again and again until there is a value; `Ok(None)` when the limit has passed.
pub(crate) fn poll<T>(
    limit: Duration,
    mut attempt: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<Option<T>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = attempt()? {
            return Ok(Some(value));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        pause(Duration::from_millis(20))?;
    }
}

/// Starts a child. It must not inherit that the signals are blocked here, or it would
/// never end when told to.
pub(crate) fn spawn(command: &mut Command) -> std::io::Result<Child> {
    signals().thread_unblock()?;
    let child = command.spawn();
    signals().thread_block()?;
    child
}

/// Waits for a child in the foreground.
pub(crate) fn wait(child: &mut Child) -> anyhow::Result<std::process::ExitStatus> {
    let pid = pid_of(child);
    state().foreground.push(pid);
    let status = child.wait();
    state().foreground.retain(|other| *other != pid);
    check()?;
    status.context("cannot wait for a child")
}

/// Ends a child in the background: asks, waits, kills. One that has ended is left alone:
/// its number may be another process's.
pub(crate) fn end(child: &mut Child, limit: Duration) {
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    let _ = kill(pid_of(child), Signal::SIGTERM);
    let end = Instant::now() + limit;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() >= end {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        let _ = CHANGED.wait_timeout(state(), Duration::from_millis(20));
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}
