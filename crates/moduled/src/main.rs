//! The program `edgekeep-moduled`: see the library.

use std::process::ExitCode;

use edgekeep_core::layout::{ROOT_VARIABLE, Root};
use edgekeep_daemon::arguments::Synopsis;
use edgekeep_daemon::settings;
use edgekeep_moduled::{AtEnd, Ended, Prepared};
use edgekeep_runtime::engine::EngineError;

const STOP_MODULES: &str = "--stop-modules";

const SYNOPSIS: Synopsis = Synopsis {
    name: "edgekeep-moduled",
    version: env!("CARGO_PKG_VERSION"),
    summary: "Runs the modules of an edge device, and gives measured callers their identity.",
    usage: "[OPTIONS]",
    flags: &[(STOP_MODULES, "Stop all modules when the daemon ends")],
    variables: &[(ROOT_VARIABLE, "Root folder of the device [default: /]")],
};

fn main() -> ExitCode {
    if let Some(code) = edgekeep_moduled::become_child() {
        return code;
    }
    let at_end = match SYNOPSIS.flags() {
        Ok(flags) if flags.contains(STOP_MODULES) => AtEnd::StopModules,
        Ok(_) => AtEnd::KeepModules,
        Err(code) => return code,
    };
    edgekeep_daemon::memory::one_pool();
    edgekeep_daemon::logging::init();
    edgekeep_daemon::lifecycle::raise_descriptor_limit();
    let root = Root::from_variable(std::env::var_os(ROOT_VARIABLE));
    let prepared =
        match edgekeep_moduled::begin().and_then(|children| Prepared::new(root, children)) {
            Ok(prepared) => prepared,
            Err(error) => return failed(&error),
        };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(edgekeep_moduled::run(prepared, at_end));
    // A blocking task must not hold the end up.
    runtime.shutdown_background();
    match ended {
        Ok(Ended::Stopped) => ExitCode::SUCCESS,
        Ok(Ended::GaveUp) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}

/// Tells the error. The exit code says whether another configuration is needed.
fn failed(error: &anyhow::Error) -> ExitCode {
    tracing::error!("{error:#}");
    let unusable = error.is::<settings::SettingsError>()
        || matches!(error.downcast_ref::<EngineError>(), Some(EngineError::Uri));
    if unusable { ExitCode::from(settings::BAD_SETTINGS) } else { ExitCode::FAILURE }
}
