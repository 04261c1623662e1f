//! `support-bundle`: one zip with what a person who helps wants to see, and no secret.
//!
//! Each part is made by a step of its own, at most [`step::LIMIT`] long: what hangs or
//! fails leaves a reason, and the others are there all the same. So it is of use when the
//! daemons are down. Every text goes through [`edgekeep_core::redaction`].

mod archive;
mod machine;
mod secrets;
mod since;
mod step;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use edgekeep_core::layout::Daemon;
use edgekeep_core::redaction::Redactor;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::arguments::Context;
use crate::output::{self, printable};
use archive::Archive;
use since::Moment;
use step::{Made, Step};

/// Time for the logs of all modules together.
const MODULE_LOGS: Duration = Duration::from_secs(60);
/// Most modules whose logs are taken.
const MODULES: usize = 200;
/// Entries of the audit log.
const AUDIT: &str = "500";

#[derive(Debug, Args)]
pub(crate) struct SupportBundleOptions {
    /// File to write; "-" for standard output [default: support_bundle_<time>_UTC.zip in
    /// the present folder]
    #[arg(short = 'o', long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Logs from then on: a duration ("90m", "1d"), a time (RFC 3339) or Unix seconds
    #[arg(long, value_name = "TIME", default_value = "1d")]
    since: Moment,
    /// Logs until then
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
    /// Of the modules only edgeAgent and edgeHub
    #[arg(short = 'e', long)]
    include_edge_runtime_only: bool,
    /// The hub, for `check` [default: what the device knows]
    #[arg(long, value_name = "HOST")]
    iothub_hostname: Option<String>,
    /// Say nothing of what is done
    #[arg(short = 'q', long)]
    quiet: bool,
}

pub(crate) async fn run(
    context: &Context,
    options: &SupportBundleOptions,
) -> anyhow::Result<ExitCode> {
    let redactor = secrets::redactor(&context.root);
    let to = options.output.clone().unwrap_or_else(default_name);
    let mut archive = Archive::create(&to)?;
    let filled = fill(context, options, &redactor, &mut archive).await;
    let parts = filled.and_then(|()| archive.finish())?;
    let missing: Vec<&Value> = parts.iter().filter(|part| !part["reason"].is_null()).collect();
    // With `-o -` the zip is all that there is on standard output.
    if context.json && to.as_os_str() != "-" {
        output::print_json(&json!({ "file": to, "parts": parts }))?;
    } else if !options.quiet {
        for part in &missing {
            let (name, why) = (&part["name"], &part["reason"]);
            let (name, why) = (name.as_str().unwrap_or_default(), why.as_str().unwrap_or_default());
            output::print_error(&format!("{}: {}\n", printable(name), printable(why)));
        }
        let whole = parts.len() - missing.len();
        output::print_error(&format!(
            "wrote {}: {whole} of {} parts are whole; look through it before you hand it on\n",
            to.display(),
            parts.len()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn default_name() -> PathBuf {
    let format = format_description!("[year]_[month]_[day]_[hour]_[minute]_[second]");
    let now = OffsetDateTime::now_utc().format(&format).unwrap_or_default();
    PathBuf::from(format!("support_bundle_{now}_UTC.zip"))
}

/// Has all steps done at once, writes each part when it is there, and then the logs of
/// modules, one after the other.
async fn fill(
    context: &Context,
    options: &SupportBundleOptions,
    redactor: &Redactor,
    archive: &mut Archive,
) -> anyhow::Result<()> {
    archive.json("machine.json", &machine::facts(&context.root), redactor)?;
    for (name, text) in secrets::configuration(&context.root, redactor) {
        archive.made(&name, text, redactor)?;
    }
    let mut running = JoinSet::new();
    for step in steps(context, options) {
        running.spawn(async move { (step.name.clone(), step.run().await) });
    }
    let mut modules = None;
    while let Some(done) = running.join_next().await {
        let (name, made) = done.context("a step ended without a result")?;
        if name == "modules.json" {
            modules = serde_json::from_slice::<Value>(&made.text).ok();
        }
        archive.made(&name, made, redactor)?;
    }
    module_logs(context, options, modules.as_ref(), redactor, archive).await
}

fn steps(context: &Context, options: &SupportBundleOptions) -> Vec<Step> {
    let own = |name: &str, words: &[&str]| Step::of_edgekeep(context, name, words);
    let mut check = vec!["--json", "check"];
    if let Some(hub) = &options.iothub_hostname {
        check.extend(["--iothub-hostname", hub.as_str()]);
    }
    let mut steps = vec![
        own("version.json", &["--json", "version"]),
        own("check.json", &check),
        own("status.json", &["--json", "status"]),
        own("config/check.json", &["--json", "config", "check"]),
        own("identity.json", &["--json", "identity", "show"]),
        own("certs.json", &["--json", "certs", "list"]),
        own("modules.json", &["--json", "list"]),
        own("audit.txt", &["audit", "show", "--last", AUDIT]),
        own("integrity.txt", &["integrity", "log"]),
        own("metrics.txt", &["metrics"]),
        own("log-level.txt", &["log-level"]),
    ];
    let now = OffsetDateTime::now_utc();
    for daemon in Daemon::ALL {
        let unit = format!("edgekeep-{}", daemon.name());
        let name = format!("logs/{unit}.txt");
        steps.push(Step::journal(context, &name, &unit, options.since, options.until, now));
    }
    steps.push(Step::journal(
        context,
        "logs/docker.txt",
        "docker",
        options.since,
        options.until,
        now,
    ));
    steps
}

async fn module_logs(
    context: &Context,
    options: &SupportBundleOptions,
    modules: Option<&Value>,
    redactor: &Redactor,
    archive: &mut Archive,
) -> anyhow::Result<()> {
    let now = OffsetDateTime::now_utc();
    let since = options.since.seconds(now).to_string();
    let until = options.until.map(|until| until.seconds(now).to_string());
    let end = Instant::now() + MODULE_LOGS;
    let names = modules.map(names_of).unwrap_or_default();
    let is_wanted = |name: &String| {
        !options.include_edge_runtime_only || matches!(name.as_str(), "edgeAgent" | "edgeHub")
    };
    for name in names.into_iter().filter(is_wanted).take(MODULES) {
        let member = format!("logs/{name}_log.txt");
        if Instant::now() >= end {
            let why = "there was no time left for it";
            archive.made(&member, Made::nothing(why), redactor)?;
            continue;
        }
        let mut words = vec!["logs", &name, "--since", &since];
        if let Some(until) = &until {
            words.extend(["--until", until]);
        }
        let made = Step::module_log(context, &member, &words).run().await;
        archive.made(&member, made, redactor)?;
    }
    Ok(())
}

/// The modules in a listing; those whose names could be a file's.
fn names_of(list: &Value) -> Vec<String> {
    let list = list.as_array().or_else(|| list["modules"].as_array());
    let names = list.into_iter().flatten().filter_map(|module| module["name"].as_str());
    let is_name = |name: &&str| name.parse::<edgekeep_core::id::ModuleId>().is_ok();
    names.filter(is_name).map(str::to_owned).collect()
}
