//! The keys daemon. See the library for what it may touch.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use edgekeep_core::settings::KeydSettings;
use edgekeep_daemon::arguments::Synopsis;
use edgekeep_daemon::{lifecycle, logging, settings, systemd};
use edgekeep_keyd::{Ready, StartError};
use edgekeep_sandbox::privileges;

const SYNOPSIS: Synopsis = Synopsis {
    name: "edgekeep-keyd",
    version: env!("CARGO_PKG_VERSION"),
    summary: "Keeps the keys of an edge device and uses them for the other daemons.",
    usage: "[OPTIONS]",
    flags: &[],
    variables: &[(ROOT_VARIABLE, "Root folder of the device [default: /]")],
};

fn main() -> ExitCode {
    if let Err(code) = SYNOPSIS.flags() {
        return code;
    }
    logging::init();
    lifecycle::raise_descriptor_limit();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            let unusable = error.is::<settings::SettingsError>()
                || error.downcast_ref::<StartError>().is_some_and(StartError::is_settings);
            if unusable { ExitCode::from(settings::BAD_SETTINGS) } else { ExitCode::FAILURE }
        }
    }
}

fn run() -> anyhow::Result<()> {
    // Before there is a key in this memory.
    privileges::hide_memory().context("cannot hide this process's memory")?;
    let root = Root::from_variable(std::env::var_os(ROOT_VARIABLE));
    let settings: KeydSettings =
        settings::load(&root.settings_file(Daemon::Keyd))?.unwrap_or_default();
    // One thread answers; threads for the disk and for key generation come and go.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(edgekeep_keyd::slow_threads(settings.has_hardware()))
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .context("cannot start the runtime")?;
    let served = runtime.block_on(async {
        let ready = Ready::open(&root, &settings)?;
        // Only now: until here nothing looks at a watched signal, and hardware may keep
        // this thread waiting without end. An unwatched one ends the process at once,
        // which the store survives at any moment.
        let stop = lifecycle::stop_on_signal().context("cannot watch for signals")?;
        systemd::notify_ready();
        tracing::info!(socket = %root.keyd_socket().display(), "ready");
        lifecycle::serve_until_stopped(ready.serve(&settings, stop.clone()), stop).await;
        Ok(())
    });
    lifecycle::end(runtime);
    served
}
