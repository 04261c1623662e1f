//! The `edgekeep` command: applies the configuration, shows and restarts modules, says
//! how the device is, and brings up a whole simulated device for development.
//!
//! Touches: the configuration and settings files (through `edgekeep-config`), the
//! daemons' public sockets, and, for `dev` only, child processes and the root folder it
//! gives them; for `keys` only, the TPM, the PKCS#11 libraries and, while keyd is stopped
//! or for a backup, the key store of keyd. Elsewhere it holds no key, opens no IP
//! connection (but to a simulated TPM, and in `check`) and talks to the daemons as any
//! third party could.
#![forbid(unsafe_code)]

mod arguments;
mod attest;
mod audit;
mod certs;
mod check;
mod config;
pub mod dev;
mod exposition;
mod failure;
mod frames;
mod identity;
mod images;
mod integrity;
mod keys;
mod list;
mod logs;
mod migrate;
mod operations;
mod output;
mod pages;
mod patience;
mod restart;
mod status;
mod support_bundle;
mod system;
mod unknown;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

use crate::arguments::{Arguments, Context, Verb};
use crate::patience::Progress;

/// Runs the command with its arguments, the program's name first.
///
/// The exit code is 0 if it did what was asked, 1 if it failed (configuration errors and
/// an unhealthy device included), 2 if the arguments were wrong.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let as_iotedge = arguments.first().is_some_and(|name| arguments::is_iotedge(name));
    let parsed = match Arguments::try_parse_from(&arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            let _ = error.print();
            if let Some(pointer) = unknown::pointer(&error) {
                output::print_error(&format!("\n  see: {pointer}\n"));
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&anyhow::Error::new(error).context("cannot start")),
    };
    match runtime.block_on(dispatch(parsed, as_iotedge)) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}

async fn dispatch(arguments: Arguments, as_iotedge: bool) -> anyhow::Result<ExitCode> {
    let context = arguments.context(as_iotedge)?;
    match arguments.verb {
        Verb::Version => version(&context),
        Verb::Config { verb } => config::run(&context, verb),
        Verb::Migrate(options) => migrate::run(&context, options).await,
        Verb::Audit { verb } if verb.asks_keyd() => {
            let keyd = context.root.keyd_socket();
            patience::with(&keyd, Progress::Silent, audit::run(&context, verb)).await
        }
        Verb::Audit { verb } => audit::run(&context, verb).await,
        Verb::Integrity { verb } if !verb.asks_keyd() => integrity::run(&context, verb).await,
        Verb::Integrity { verb } => {
            let keyd = context.root.keyd_socket();
            patience::with(&keyd, Progress::Silent, integrity::run(&context, verb)).await
        }
        Verb::Identity { verb } => {
            let identityd = context.root.identityd_socket();
            patience::with(&identityd, Progress::Shown, identity::run(&context, verb)).await
        }
        Verb::Certs { verb } => {
            let certd = context.root.certd_socket();
            patience::with(&certd, Progress::Shown, certs::run(&context, verb)).await
        }
        Verb::Keys { verb } => keys::run(&context, verb),
        Verb::Attest(options) => {
            moduled(&context, Progress::Shown, attest::run(&context, &options)).await
        }
        Verb::Images { collect, dry_run: _ } => {
            moduled(&context, Progress::Shown, images::run(&context, collect)).await
        }
        Verb::List => moduled(&context, Progress::Shown, list::run(&context)).await,
        Verb::Logs(options) => {
            moduled(&context, Progress::Silent, logs::run(&context, options)).await
        }
        Verb::Restart { module } => {
            moduled(&context, Progress::Shown, restart::run(&context, &module)).await
        }
        Verb::Metrics { daemon, format } => operations::metrics(&context, daemon, format).await,
        Verb::LogLevel { daemon, level } => operations::log_level(&context, daemon, level).await,
        Verb::Check(options) => check::run(&context, options).await,
        Verb::CheckList => check::list(&context),
        Verb::Completions { shell } => pages::completions(shell),
        Verb::Manual { folder } => pages::manual(&folder),
        Verb::Status => status::run(&context).await,
        Verb::SupportBundle(options) => support_bundle::run(&context, &options).await,
        Verb::System { verb } => system::run(&context, verb).await,
        Verb::Dev(options) => dev::run(&context, options, arguments.root).await,
    }
}

/// Does what asks moduled, or what else answers at the management socket.
async fn moduled(
    context: &Context,
    progress: Progress,
    work: impl Future<Output = anyhow::Result<ExitCode>>,
) -> anyhow::Result<ExitCode> {
    patience::with(&context.management, progress, work).await
}

fn version(context: &Context) -> anyhow::Result<ExitCode> {
    let version = env!("CARGO_PKG_VERSION");
    if context.json {
        output::print_json(&serde_json::json!({ "name": "edgekeep", "version": version }))?;
    } else {
        output::print(&format!("edgekeep {version}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
