//! `check` and `check-list`: probes of a device, each within a time limit and all at
//! once. No image is pulled and no program of an engine is run.
//!
//! Ids, text and JSON are those of the existing tools where they have the check; only
//! what the configuration uses is looked at.

mod configured;
mod judge;
mod list;
mod outcome;
mod probes;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use crate::arguments::Context;
use crate::output::{self, printable};
use configured::Configured;
use list::{CHECKS, Check};
use outcome::Outcome;

/// Longest time of one check.
const LIMIT: Duration = Duration::from_millis(2500);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    /// Checks to leave out, by their ids
    #[arg(long, value_name = "IDS", value_delimiter = ',', num_args = 1..)]
    dont_run: Vec<String>,
    /// Form of the output, as the existing tools name it
    #[arg(short = 'o', long = "output", value_enum, value_name = "FORM")]
    form: Option<Form>,
    /// Show checks that passed in full, and those that do not apply
    #[arg(long)]
    verbose: bool,
    /// Fail on warnings as well
    #[arg(long)]
    warnings_as_errors: bool,
    /// The hub to reach, if the device does not know it yet
    #[arg(long, value_name = "HOST")]
    iothub_hostname: Option<String>,
    /// Taken from the existing tools, and not needed: no image is pulled
    #[arg(long, value_name = "IMAGE", hide = true)]
    diagnostics_image_name: Option<String>,
    /// Taken from the existing tools, and not needed: no list of versions is asked
    #[arg(long, value_name = "VERSION", hide = true)]
    expected_aziot_edged_version: Option<String>,
    /// Taken from the existing tools, and not needed: no list of versions is asked
    #[arg(long, value_name = "VERSION", hide = true)]
    expected_aziot_version: Option<String>,
}

/// Prints the checks there are.
pub(crate) fn list(context: &Context) -> anyhow::Result<ExitCode> {
    if context.json {
        output::print_json(&CHECKS)?;
        return Ok(ExitCode::SUCCESS);
    }
    let widths = |of: fn(&Check) -> &str| CHECKS.iter().map(|check| of(check).len()).max();
    let category = widths(|check| check.category).unwrap_or(0);
    let id = widths(|check| check.id).unwrap_or(0);
    let mut text = format!("{:category$}  {:id$}  DESCRIPTION\n", "CATEGORY", "ID");
    for check in CHECKS {
        let _ =
            writeln!(text, "{:category$}  {:id$}  {}", check.category, check.id, check.description);
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the checks, and fails if one of them found an error.
pub(crate) async fn run(context: &Context, options: CheckOptions) -> anyhow::Result<ExitCode> {
    if let Some(unknown) = unknown(&options.dont_run) {
        anyhow::bail!(
            "there is no check {}; `edgekeep check-list` shows those there are",
            printable(unknown)
        );
    }
    let configured = Configured::read(context, options.iothub_hostname.clone()).await;
    let found = all(&configured, &options.dont_run).await;
    let worst = found.values().map(Outcome::rank).max().unwrap_or(0);
    if context.json || options.form == Some(Form::Json) {
        output::print_json(&as_json(&found, &configured))?;
    } else {
        output::print(&as_text(&found, options.verbose))?;
    }
    let least = if options.warnings_as_errors { outcome::WARNING } else { outcome::ERROR };
    Ok(if worst >= least { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn unknown(asked: &[String]) -> Option<&str> {
    let ids = asked.iter().flat_map(|ids| ids.split_whitespace());
    ids.into_iter().find(|id| !CHECKS.iter().any(|check| check.id == *id))
}

/// All checks at once. One that takes too long is told as that.
async fn all(configured: &Configured, left_out: &[String]) -> BTreeMap<usize, Outcome> {
    let is_left_out =
        |id: &str| left_out.iter().flat_map(|ids| ids.split_whitespace()).any(|left| left == id);
    let mut running = tokio::task::JoinSet::new();
    let mut found = BTreeMap::new();
    for (number, check) in CHECKS.iter().enumerate() {
        if is_left_out(check.id) {
            found.insert(number, Outcome::Ignored);
            continue;
        }
        let configured = configured.clone();
        running.spawn(async move {
            let probe = probes::run(check.id, &configured);
            let outcome = tokio::time::timeout(LIMIT, probe).await.unwrap_or_else(|_| {
                Outcome::warning(
                    format!("it took longer than {:.1} s", LIMIT.as_secs_f64()),
                    "what was asked is slow or silent, and so it will be for the device",
                    "look at the load of the device and at its network; run the check again",
                )
            });
            (number, outcome)
        });
    }
    while let Some(done) = running.join_next().await {
        if let Ok((number, outcome)) = done {
            found.insert(number, outcome);
        }
    }
    found
}

fn as_json(found: &BTreeMap<usize, Outcome>, configured: &Configured) -> Value {
    let checks: Map<String, Value> = found
        .iter()
        .map(|(number, outcome)| (CHECKS[*number].id.to_owned(), json!({ "result": outcome })))
        .collect();
    json!({ "additional_info": configured.about(), "checks": checks })
}

fn as_text(found: &BTreeMap<usize, Outcome>, verbose: bool) -> String {
    let mut text = String::new();
    let mut heading = "";
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, outcome) in found {
        let check = &CHECKS[*number];
        let (sign, word) = match outcome {
            Outcome::Ok => ("√", "OK"),
            Outcome::Warning(_) => ("‼", "Warning"),
            Outcome::Error(_) => ("×", "Error"),
            Outcome::Skipped(_) | Outcome::Ignored => ("-", "Skipped"),
        };
        *counts.entry(word).or_default() += 1;
        if word == "Skipped" && !verbose {
            continue;
        }
        if check.category != heading {
            heading = check.category;
            let title = format!("{}{} checks", heading[..1].to_uppercase(), &heading[1..]);
            let _ = writeln!(text, "\n{title}\n{}", "-".repeat(title.len()));
        }
        let _ = writeln!(text, "{sign} {} - {word}", check.description);
        match outcome {
            Outcome::Warning(finding) | Outcome::Error(finding) => {
                let _ = writeln!(text, "    {}", printable(&finding.details));
                let _ = writeln!(text, "    why it matters: {}", finding.why);
                let _ = writeln!(text, "    fix: {}", finding.fix);
            }
            Outcome::Skipped(why) => {
                let _ = writeln!(text, "    {why}");
            }
            Outcome::Ok | Outcome::Ignored => {}
        }
    }
    let count = |word| counts.get(word).copied().unwrap_or(0);
    let _ = writeln!(
        text,
        "\n{} check(s) succeeded.\n{} check(s) raised warnings.\n{} check(s) raised errors.\n{} check(s) were skipped.",
        count("OK"),
        count("Warning"),
        count("Error"),
        count("Skipped")
    );
    text.trim_start().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_there_once_and_one_that_is_not_is_told() {
        let ids: std::collections::BTreeSet<_> = CHECKS.iter().map(|check| check.id).collect();
        assert_eq!(ids.len(), CHECKS.len());
        assert_eq!(unknown(&["hostname keyd-running".to_owned()]), None);
        assert_eq!(unknown(&["hostname".to_owned(), "nonsense".to_owned()]), Some("nonsense"));
    }

    #[test]
    fn text_counts_each_kind_and_shows_the_fix() {
        let found = BTreeMap::from([
            (0, Outcome::Ok),
            (1, Outcome::warning("a", "b", "c")),
            (2, Outcome::Skipped("not used".to_owned())),
        ]);
        let text = as_text(&found, false);
        assert!(text.contains("- Warning\n    a\n    why it matters: b\n    fix: c\n"), "{text}");
        assert!(
            text.contains("1 check(s) raised warnings") && !text.contains("not used"),
            "{text}"
        );
        assert!(as_text(&found, true).contains("not used"));
    }
}
