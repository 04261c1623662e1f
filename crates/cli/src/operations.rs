//! `metrics` and `log-level`: the daemons' operations sockets.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;
use edgekeep_api::client::ClientError;
use edgekeep_api::operations::OperationsClient;
use edgekeep_core::layout::Daemon;
use serde_json::{Map, json};

use crate::arguments::Context;
use crate::exposition::{Exposition, Format};
use crate::{failure, output, patience};

/// Daemons that a verb is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    All,
    Keyd,
    Identityd,
    Moduled,
}

/// Level of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Which {
    fn daemons(which: Option<Self>) -> Vec<Daemon> {
        match which {
            None | Some(Self::All) => Daemon::ALL.to_vec(),
            Some(Self::Keyd) => vec![Daemon::Keyd],
            Some(Self::Identityd) => vec![Daemon::Identityd],
            Some(Self::Moduled) => vec![Daemon::Moduled],
        }
    }
}

impl Level {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Asks all daemons at once. One that does not answer does not keep the others from being
/// asked; the exit code tells.
async fn each<T>(
    context: &Context,
    which: Option<Which>,
    ask: impl AsyncFn(OperationsClient) -> Result<T, ClientError>,
) -> (Vec<(Daemon, T)>, ExitCode) {
    let wanted = Which::daemons(which);
    let asked = async |daemon| {
        if !wanted.contains(&daemon) {
            return None;
        }
        let socket = context.root.metrics_socket(daemon);
        let answer = ask(OperationsClient::new(socket).with_timeout(patience::LIMIT)).await;
        Some((daemon, answer))
    };
    let [keyd, identityd, moduled] = Daemon::ALL.map(asked);
    let (keyd, identityd, moduled) = tokio::join!(keyd, identityd, moduled);
    let (mut answers, mut code) = (Vec::new(), ExitCode::SUCCESS);
    for (daemon, answer) in [keyd, identityd, moduled].into_iter().flatten() {
        match answer.with_context(|| format!("edgekeep-{} does not answer", daemon.name())) {
            Ok(answer) => answers.push((daemon, answer)),
            Err(error) => code = failure::report(&error),
        }
    }
    (answers, code)
}

pub(crate) async fn metrics(
    context: &Context,
    which: Option<Which>,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let (answers, code) = each(context, which, async |client| client.metrics().await).await;
    if context.json {
        let texts: Map<_, _> = answers
            .into_iter()
            .map(|(daemon, text)| (daemon.name().to_owned(), text.into()))
            .collect();
        output::print_json(&texts)?;
        return Ok(code);
    }
    let mut all = Exposition::default();
    for (daemon, text) in answers {
        all.add(daemon.name(), &text)
            .with_context(|| format!("edgekeep-{} serves no metrics", daemon.name()))?;
    }
    output::print(&all.render(format))?;
    Ok(code)
}

pub(crate) async fn log_level(
    context: &Context,
    which: Option<Which>,
    level: Option<Level>,
) -> anyhow::Result<ExitCode> {
    let ask = async |client: OperationsClient| match level {
        Some(level) => client.set_log_level(level.word()).await,
        None => client.log_level().await,
    };
    let (answers, code) = each(context, which, ask).await;
    if context.json {
        let levels: Map<_, _> = answers
            .into_iter()
            .map(|(daemon, level)| (daemon.name().to_owned(), json!(level)))
            .collect();
        output::print_json(&levels)?;
        return Ok(code);
    }
    for (daemon, now) in answers {
        let at_start = now.at_start.filter(|at_start| *at_start != now.level);
        let after =
            at_start.map_or_else(String::new, |level| format!("  ({level} after a restart)"));
        output::print(&format!(
            "{:<9}  {}{}\n",
            daemon.name(),
            output::printable(&now.level),
            output::printable(&after)
        ))?;
    }
    Ok(code)
}
