//! `system`: the device's units, by systemd.

mod units;

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use edgekeep_config::{Ownership, write_atomic};
use edgekeep_core::layout::Daemon;
use serde_json::json;
use tokio::process::Command;

use crate::arguments::Context;
use crate::identity::IdentityVerb;
use crate::operations::{self, Level};
use crate::output::{self, Style};
use crate::patience::{self, Progress};
use units::{SERVICES, SOCKETS, Unit};

/// Longest time for a question to systemd.
const LIMIT: Duration = Duration::from_secs(8);
/// Lines of the journal that are shown of a unit that is down.
const LINES: &str = "10";

#[derive(Debug, Subcommand)]
pub(crate) enum SystemVerb {
    /// Say how the units are; fails if one is down
    Status,
    /// Show the daemons' journal; arguments after -- go to journalctl
    Logs {
        /// Arguments of journalctl [default: -e --no-pager]
        #[arg(last = true, value_name = "ARGS")]
        arguments: Vec<String>,
    },
    /// Restart the daemons; modules go on running
    Restart,
    /// Stop the daemons; their sockets stay, and the next call starts them again
    Stop,
    /// Have the daemons log more or less, now and after a restart
    SetLogLevel {
        /// The level
        #[arg(value_enum)]
        level: Level,
    },
    /// Ask for the device's identity again
    Reprovision,
}

pub(crate) async fn run(context: &Context, verb: SystemVerb) -> anyhow::Result<ExitCode> {
    match verb {
        SystemVerb::Status => status(context).await,
        SystemVerb::Logs { arguments } => logs(context, &arguments).await,
        SystemVerb::Restart => units_do(context, "restart", "restarted").await,
        SystemVerb::Stop => units_do(context, "stop", "stopped").await,
        SystemVerb::SetLogLevel { level } => set_log_level(context, level).await,
        SystemVerb::Reprovision => {
            let identityd = context.root.identityd_socket();
            let work = crate::identity::run(context, IdentityVerb::Reprovision);
            patience::with(&identityd, Progress::Shown, work).await
        }
    }
}

/// The units are the machine's: there are none of a device in a folder.
fn of_machine(context: &Context) -> anyhow::Result<()> {
    anyhow::ensure!(
        context.root.path() == Path::new("/"),
        "the units are the machine's, and this device's root folder is {}: end and start its daemons as they were \
         started, and see `edgekeep status`",
        context.root.path().display()
    );
    Ok(())
}

fn systemctl() -> Command {
    let mut command = Command::new("systemctl");
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn said(command: &mut Command, what: &str) -> anyhow::Result<std::process::Output> {
    let asked = tokio::time::timeout(LIMIT, command.output()).await;
    let asked = asked.with_context(|| format!("{what} does not answer"))?;
    asked.with_context(|| format!("cannot run {what}: is this a system with systemd?"))
}

async fn status(context: &Context) -> anyhow::Result<ExitCode> {
    of_machine(context)?;
    let mut command = systemctl();
    command.args(["show", "--property=Id,LoadState,ActiveState,SubState,Result"]);
    command.args(SERVICES).args(SOCKETS);
    let shown = said(&mut command, "systemctl").await?;
    let units = units::read(&String::from_utf8_lossy(&shown.stdout));
    anyhow::ensure!(
        !units.is_empty(),
        "systemctl tells of no unit: {}",
        output::printable(String::from_utf8_lossy(&shown.stderr).trim())
    );
    let is_good = units.iter().all(Unit::is_good);
    let code = if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if context.json {
        output::print_json(&json!({ "healthy": is_good, "units": units }))?;
        return Ok(code);
    }
    let mut text = units::table(&units, Style::stdout());
    for unit in units.iter().filter(|unit| !unit.is_good()) {
        let mut command = Command::new("journalctl");
        command.args(["--no-pager", "--quiet", "-n", LINES, "-u", &unit.id]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let Ok(journal) = said(&mut command, "journalctl").await else { continue };
        text.push_str(&format!("\n{}:\n", unit.id));
        for line in String::from_utf8_lossy(&journal.stdout).lines() {
            text.push_str(&format!("    {}\n", output::printable(line)));
        }
    }
    text.push_str(
        "\nUse 'edgekeep system logs' to see what the daemons say.\n\
         Use 'edgekeep status' and 'edgekeep check' to see how the device is.\n",
    );
    output::print(&text)?;
    Ok(code)
}

async fn logs(context: &Context, arguments: &[String]) -> anyhow::Result<ExitCode> {
    of_machine(context)?;
    let mut command = Command::new("journalctl");
    for service in SERVICES {
        command.args(["-u", service]);
    }
    match arguments {
        [] => command.args(["-e", "--no-pager"]),
        given => command.args(given),
    };
    // As long as its user wants: it may follow.
    let status = command.status().await;
    let status = status.context("cannot run journalctl: is this a system with systemd?")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn units_do(context: &Context, verb: &str, done: &str) -> anyhow::Result<ExitCode> {
    of_machine(context)?;
    if !context.json {
        output::print_error(&format!("{verb}: {}\n", SERVICES.join(", ")));
    }
    // As long as systemd gives the daemons to end, which then kills them.
    let asked = systemctl().arg(verb).args(SERVICES).stdout(Stdio::null()).output().await;
    let asked = asked.context("cannot run systemctl: is this a system with systemd?")?;
    let told = String::from_utf8_lossy(&asked.stderr).trim().to_owned();
    anyhow::ensure!(
        asked.status.success(),
        "systemctl {verb} failed; see `edgekeep system status`, or run as root (sudo)\n{told}"
    );
    if context.json {
        output::print_json(&json!({ "done": done, "units": SERVICES }))?;
    } else {
        output::print(&format!("{done} {}\n", SERVICES.join(", ")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the file in which an operator's additions to a unit stand.
fn drop_in(daemon: Daemon) -> std::path::PathBuf {
    format!("/etc/systemd/system/edgekeep-{}.service.d/log-level.conf", daemon.name()).into()
}

async fn set_log_level(context: &Context, level: Level) -> anyhow::Result<ExitCode> {
    let is_machine = context.root.path() == Path::new("/");
    if is_machine {
        for daemon in Daemon::ALL {
            let text = format!(
                "# Written by `edgekeep system set-log-level`.\n[Service]\nEnvironment=EDGEKEEP_LOG={}\n",
                level.word()
            );
            let me = rustix::process::geteuid().as_raw();
            write_atomic(&drop_in(daemon), text.as_bytes(), Ownership::alone(me))?;
        }
        let reloaded = said(systemctl().arg("daemon-reload"), "systemctl").await?;
        anyhow::ensure!(
            reloaded.status.success(),
            "systemctl daemon-reload failed: {}",
            output::printable(String::from_utf8_lossy(&reloaded.stderr).trim())
        );
    }
    let code = operations::log_level(context, None, Some(level)).await?;
    if !context.json && !is_machine {
        output::print_error("until the daemons are restarted: a device in a folder has no units\n");
    }
    Ok(code)
}
