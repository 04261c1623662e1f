//! The frame of a daemon's program: one order of starting and of ending.
//!
//! Arguments, log, limits, then this process's memory is hidden, then the settings are
//! read, then the runtime begins with one thread, and only then the daemon opens what it
//! needs and gives up the rest ([`Program::open`]). What the order promises to a step is
//! in the types: [`Program::open`] gets settings, which exist only in hidden memory, and
//! only what it returns can serve.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, io};

use edgekeep_base::error::chain;
use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use edgekeep_sandbox::privileges::{self, PrivilegeError};
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::arguments::Synopsis;
use crate::settings::{self, BAD_SETTINGS, SettingsError};
use crate::{lifecycle, logging, systemd};

/// Idle time after which a thread that waited for a disk or a name server goes.
const THREAD_LIFE: Duration = Duration::from_secs(2);

/// A daemon that answers on one thread, in a process that is nothing else.
pub trait Program: Sized {
    /// The daemon.
    const DAEMON: Daemon;
    /// The words for `--help` and `--version`.
    const SYNOPSIS: Synopsis;
    /// The content of the settings file.
    type Settings: DeserializeOwned;
    /// Failures to start.
    type Error: std::error::Error + 'static;

    /// The settings where there is no file; `None` if the daemon cannot be without.
    fn default_settings() -> Option<Self::Settings>;

    /// The number of threads that may wait for disks, hardware or name servers.
    fn waiting_threads(settings: &Self::Settings) -> usize;

    /// Opens sockets and state, and gives up what serving does not need. Runs within the
    /// runtime, while the process has one thread. Signals are not watched yet: hardware
    /// may keep the thread waiting without end, and one that asks to stop then ends the
    /// process at once. So what is written here is replaced whole or not at all.
    fn open(
        root: Root,
        settings: Self::Settings,
    ) -> impl Future<Output = Result<Self, Self::Error>>;

    /// True if the settings are to blame: starting again without others cannot help.
    fn blames_settings(error: &Self::Error) -> bool;

    /// Serves until `stop` turns true.
    fn serve(self, stop: watch::Receiver<bool>) -> impl Future<Output = ()>;
}

/// Failures of a daemon's program.
#[derive(Debug, thiserror::Error)]
enum Failure<E: std::error::Error + 'static> {
    #[error("cannot hide this process's memory")]
    Memory(#[source] PrivilegeError),
    #[error(transparent)]
    Settings(SettingsError),
    #[error("no settings at {}; run `edgekeep config apply`", .0.display())]
    NoSettings(PathBuf),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Open(E),
}

/// Runs the daemon's program to its end.
#[must_use]
pub fn run<P: Program>() -> ExitCode {
    if let Err(code) = P::SYNOPSIS.flags() {
        return code;
    }
    logging::init();
    lifecycle::raise_descriptor_limit();
    match serve::<P>() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{}", chain(&failure));
            code::<P>(&failure)
        }
    }
}

fn code<P: Program>(failure: &Failure<P::Error>) -> ExitCode {
    let of_settings = match failure {
        Failure::Settings(_) => true,
        Failure::Open(error) => P::blames_settings(error),
        _ => false,
    };
    if of_settings { ExitCode::from(BAD_SETTINGS) } else { ExitCode::FAILURE }
}

fn serve<P: Program>() -> Result<(), Failure<P::Error>> {
    let hidden = HiddenMemory::new().map_err(Failure::Memory)?;
    let root = Root::from_variable(env::var_os(ROOT_VARIABLE));
    let settings = hidden.settings::<P>(&root)?;
    let runtime = runtime(P::waiting_threads(&settings)).map_err(Failure::Runtime)?;
    let served = runtime.block_on(async {
        let daemon = P::open(root, settings).await.map_err(Failure::Open)?;
        let stop = lifecycle::stop_on_signal().map_err(Failure::Signals)?;
        systemd::notify_ready();
        tracing::info!("ready");
        lifecycle::serve_until_stopped(daemon.serve(stop.clone()), stop).await;
        Ok(())
    });
    lifecycle::end(runtime);
    served
}

/// The proof that no other process of this user reads this one's memory, from before
/// there is a secret in it.
struct HiddenMemory(());

impl HiddenMemory {
    fn new() -> Result<Self, PrivilegeError> {
        privileges::hide_memory()?;
        Ok(Self(()))
    }

    /// Reads the settings, which hold secrets.
    fn settings<P: Program>(&self, root: &Root) -> Result<P::Settings, Failure<P::Error>> {
        let path = root.settings_file(P::DAEMON);
        let found = settings::load(&path).map_err(Failure::Settings)?;
        found.or_else(P::default_settings).ok_or(Failure::NoSettings(path))
    }
}

/// One thread answers; threads that wait come and go.
fn runtime(waiting_threads: usize) -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(waiting_threads)
        .thread_keep_alive(THREAD_LIFE)
        .build()
}
