//! The keys daemon. See the library for what it may touch.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use edgekeep_core::settings::KeydSettings;
use edgekeep_daemon::server::{Limits, serve};
use edgekeep_daemon::{lifecycle, listen, logging, settings, systemd};
use edgekeep_keyd::policy::Policy;
use edgekeep_keyd::{Keyd, StartError, routes};

/// Tells the service manager that starting again without another configuration cannot help.
const BAD_SETTINGS: u8 = 153;

fn main() -> ExitCode {
    logging::init();
    lifecycle::raise_descriptor_limit();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            let settings = error.is::<settings::SettingsError>()
                || error.downcast_ref::<StartError>().is_some_and(StartError::is_settings);
            if settings { ExitCode::from(BAD_SETTINGS) } else { ExitCode::FAILURE }
        }
    }
}

fn run() -> anyhow::Result<()> {
    // Keys are in this memory: no core dumps of it, no tracer of the same user.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .context("cannot switch off core dumps")?;
    let root = Root::from_variable(std::env::var_os(ROOT_VARIABLE));
    let settings: KeydSettings = settings::load(&root.settings_file(Daemon::Keyd))?.unwrap_or_default();
    // One thread answers; threads for the disk and for key generation come and go.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = lifecycle::stop_on_signal().context("cannot watch for signals")?;
        let keyd = Keyd::open(&root, &settings, Policy::new(&settings))?;
        let listener = listen::activated_or_bound("aziot-keyd.socket", &root.keyd_socket(), 0o660)?;
        let limits = settings
            .connections_per_uid
            .map_or_else(Limits::default, |connections_per_uid| Limits { connections_per_uid });
        let router = Arc::new(routes::router(Arc::new(keyd)));
        systemd::notify_ready();
        tracing::info!(socket = %root.keyd_socket().display(), "ready");
        serve(listener, router, limits, stop).await;
        Ok(())
    })
}
