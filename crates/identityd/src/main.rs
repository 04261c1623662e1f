//! The identities daemon. See the library for what it may touch.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use edgekeep_core::settings::IdentitydSettings;
use edgekeep_daemon::arguments::Synopsis;
use edgekeep_daemon::{lifecycle, logging, settings, systemd};
use edgekeep_identityd::{Identityd, Options, StartError};
use edgekeep_sandbox::privileges;

const SYNOPSIS: Synopsis = Synopsis {
    name: "edgekeep-identityd",
    version: env!("CARGO_PKG_VERSION"),
    summary: "Holds the identities of an edge device and its modules, and issues certificates.",
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
    // Tokens and derived keys of modules pass through it.
    privileges::hide_memory().context("cannot hide this process's memory")?;
    let root = Root::from_variable(std::env::var_os(ROOT_VARIABLE));
    let path = root.settings_file(Daemon::Identityd);
    let settings: IdentitydSettings = settings::load(&path)?.with_context(|| {
        format!("no settings at {}; run `edgekeep config apply`", path.display())
    })?;
    // One thread answers; threads for name resolution and for the disk come and go.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .context("cannot start the runtime")?;
    let served = runtime.block_on(async {
        let stop = lifecycle::stop_on_signal().context("cannot watch for signals")?;
        let daemon = Identityd::start_confined(Options::new(root, settings)).await?;
        systemd::notify_ready();
        tracing::info!("ready");
        lifecycle::serve_until_stopped(daemon.run(stop.clone()), stop).await;
        Ok(())
    });
    lifecycle::end(runtime);
    served
}
