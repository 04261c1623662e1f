//! The agent's process: module `edgeAgent`. Configured by its environment alone.

use std::process::ExitCode;

use anyhow::Context as _;
use edgekeep_agent::agent::Agent;
use edgekeep_agent::settings::Settings;
use edgekeep_core::reconcile::Timestamp;
use edgekeep_daemon::arguments::Synopsis;
use edgekeep_daemon::{lifecycle, logging};

const SYNOPSIS: Synopsis = Synopsis {
    name: "edgekeep-agent",
    version: env!("CARGO_PKG_VERSION"),
    summary: "Applies a deployment manifest through the management API, as module edgeAgent.",
    usage: "[OPTIONS]",
    flags: &[],
    variables: &[
        ("EDGEKEEP_MANIFEST", "Deployment manifest"),
        ("EDGEKEEP_AGENT_STATE", "State folder"),
        ("EDGEKEEP_AGENT_PERIOD", "Seconds between two rounds [default: 5]"),
        ("IOTEDGE_*", "Sockets and names, as the daemon sets them for this module"),
    ],
};

fn main() -> ExitCode {
    if let Err(code) = SYNOPSIS.flags() {
        return code;
    }
    logging::init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run() -> anyhow::Result<()> {
    let mut stop = lifecycle::stop_on_signal().context("cannot watch for signals")?;
    // Values that are not UTF-8 cannot be any of ours.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let settings = Settings::from_variables(variables)?;
    let period = settings.period;
    tracing::info!(
        "edgekeep-agent {}: manifest {}, state {}",
        env!("CARGO_PKG_VERSION"),
        settings.manifest.display(),
        settings.state_folder.display()
    );
    let mut agent =
        Agent::open(settings, Box::new(wall_clock)).context("cannot use the state folder")?;
    loop {
        // What is cut off here is seen and put right by the next agent's first round.
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            () = agent.round() => {}
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            () = tokio::time::sleep(period) => {}
        }
    }
    agent.ended();
    Ok(())
}

fn wall_clock() -> Timestamp {
    let milliseconds = time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    Timestamp(i64::try_from(milliseconds).unwrap_or(i64::MAX))
}
