//! A security monitor: tells what a device's security manager has to report, as lines of
//! JSON or as OpenMetrics text.
//!
//! ```text
//! security-monitor [--openmetrics] [--once] [--keyd-socket PATH]
//! ```
//! Reads `GET /status` on the management socket of its own that `management = true` gives
//! it and, where it is told keyd's socket and runs as an auditor (or uid 0), the log of
//! key uses. Nothing is said twice. See README.md.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use edgekeep_api::keyd::KeysClient;
use edgekeep_api::management::{ManagementClient, Status};
use serde_json::{Value, json};

const PERIOD: Duration = Duration::from_secs(10);
/// Entries of the log of key uses that are fetched at once.
const PIECE: usize = 100;

const USAGE: &str = "Usage: security-monitor [--openmetrics] [--once] [--keyd-socket PATH]";

/// The work that the command line asks for.
#[derive(Default)]
struct Options {
    openmetrics: bool,
    once: bool,
    keyd_socket: Option<PathBuf>,
}

fn main() -> ExitCode {
    let mut options = Options::default();
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let wrong = match argument.to_str() {
            Some("-h" | "--help") => return say(USAGE),
            Some("-V" | "--version") => {
                return say(concat!("security-monitor ", env!("CARGO_PKG_VERSION")));
            }
            Some("--openmetrics") => {
                options.openmetrics = true;
                continue;
            }
            Some("--once") => {
                options.once = true;
                continue;
            }
            Some("--keyd-socket") => match arguments.next() {
                Some(path) => {
                    options.keyd_socket = Some(path.into());
                    continue;
                }
                None => "--keyd-socket needs a path".to_owned(),
            },
            _ => format!("unexpected argument {argument:?}"),
        };
        let _ = writeln!(std::io::stderr(), "error: {wrong}\n\n{USAGE}");
        return ExitCode::from(2);
    }
    if let Err(error) = run(options) {
        let _ = writeln!(std::io::stderr(), "Error: {error:?}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn say(text: &str) -> ExitCode {
    let _ = writeln!(std::io::stdout(), "{text}");
    ExitCode::SUCCESS
}

#[tokio::main(flavor = "current_thread")]
async fn run(Options { openmetrics, once, keyd_socket }: Options) -> anyhow::Result<()> {
    let keyd = keyd_socket.map(KeysClient::new);
    let management = ManagementClient::new(socket("IOTEDGE_MANAGEMENTURI")?);
    let mut seen = Seen::default();
    loop {
        let status = management.status().await.context("no status")?;
        let uses = match &keyd {
            Some(keyd) => seen.key_uses(keyd).await?,
            None => Vec::new(),
        };
        let text = if openmetrics {
            metrics(&status, seen.next_entry)
        } else {
            lines(&seen.news(&status), &uses)
        };
        std::io::stdout().write_all(text.as_bytes())?;
        if once {
            return Ok(());
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Events that were told already.
#[derive(Debug, Default)]
struct Seen {
    events: BTreeSet<String>,
    next_entry: u64,
}

impl Seen {
    /// Returns the events of a status that were not told yet, oldest first.
    fn news(&mut self, status: &Status) -> Vec<Value> {
        let mut all: Vec<Value> = Vec::new();
        all.extend(
            status.problems.iter().map(|problem| json!({ "event": "problem", "text": problem })),
        );
        all.extend(status.approvals.iter().map(|one| {
            json!({ "event": "approval", "time": one.time, "name": one.name, "sha256": one.sha256, "by": one.approved_by })
        }));
        all.extend(status.refusals.iter().rev().map(|one| {
            json!({ "event": "refusal", "time": one.time, "module": one.module, "route": one.route,
                "reason": one.reason, "pid": one.pid, "uid": one.uid })
        }));
        // The status holds few of each, so what was told and is not in it any more need
        // not be remembered.
        let texts: BTreeSet<String> = all.iter().map(Value::to_string).collect();
        all.retain(|event| !self.events.contains(&event.to_string()));
        self.events = texts;
        all
    }

    /// Entries of the log of key uses since the last time, as they are in the log.
    async fn key_uses(&mut self, keyd: &KeysClient) -> anyhow::Result<Vec<String>> {
        let mut all = Vec::new();
        loop {
            let piece = keyd
                .audit_entries(self.next_entry, PIECE)
                .await
                .context("cannot read the log of key uses")?;
            let count = piece.entries.len();
            self.next_entry = piece.from + count as u64;
            all.extend(piece.entries);
            if count < PIECE {
                return Ok(all);
            }
        }
    }
}

fn lines(news: &[Value], uses: &[String]) -> String {
    let mut text: String = news.iter().map(|event| format!("{event}\n")).collect();
    for entry in uses {
        let entry: Value = serde_json::from_str(entry).unwrap_or(Value::Null);
        text.push_str(&format!("{}\n", json!({ "event": "key-use", "entry": entry })));
    }
    text
}

fn metrics(status: &Status, key_uses: u64) -> String {
    let mut latest: BTreeMap<String, u32> = BTreeMap::new();
    for refusal in &status.refusals {
        *latest.entry(refusal.reason.to_string()).or_default() += 1;
    }
    let mut text = format!(
        "# TYPE edgekeep_refusals counter\nedgekeep_refusals_total {}\n# TYPE edgekeep_problems gauge\nedgekeep_problems \
         {}\n# TYPE edgekeep_approvals gauge\nedgekeep_approvals {}\n# TYPE edgekeep_key_log_entries \
         gauge\nedgekeep_key_log_entries {key_uses}\n# TYPE edgekeep_latest_refusals gauge\n",
        status.refusal_count,
        status.problems.len(),
        status.approvals.len(),
    );
    for (reason, count) in latest {
        text.push_str(&format!("edgekeep_latest_refusals{{reason=\"{reason}\"}} {count}\n"));
    }
    text.push_str("# EOF\n");
    text
}

/// The socket that the environment names.
fn socket(variable: &str) -> anyhow::Result<PathBuf> {
    let uri = std::env::var(variable).with_context(|| format!("{variable} is not set"))?;
    let path =
        uri.strip_prefix("unix://").with_context(|| format!("{variable} is not a unix:// URI"))?;
    Ok(path.into())
}
