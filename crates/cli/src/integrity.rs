//! `integrity`: the log of measurements, and whether the TPM shows it to be the whole
//! one.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use aws_lc_rs::digest::{SHA256, digest};
use clap::Subcommand;
use edgekeep_api::keyd::{IntegrityLog, KeysClient, RegisterValue};
use edgekeep_base::file::{self, Rules};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::integrity::{
    Content, Event, Finding, Logged, Observed, Record, SIZE_LIMIT, Seen, Verdict, judge,
};
use http::StatusCode;
use serde_json::{Value, json};

use crate::arguments::Context;
use crate::failure;
use crate::output::{self, Columns, Hue, Style};

#[derive(Debug, Subcommand)]
pub(crate) enum IntegrityVerb {
    /// Show what was measured since the machine was started
    Log {
        /// An older log, by its number
        #[arg(long, value_name = "NUMBER")]
        log: Option<u64>,
    },
    /// Replay the log and compare it with the TPM; fails unless the TPM shows that it is
    /// the whole log
    Replay {
        /// A copy of a log, instead of that of the running keyd
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// The PCR's value as `tpm2_pcrread` shows it [default: what keyd reads]
        #[arg(long, value_name = "HEX", value_parser = digest_value)]
        pcr: Option<Sha256Digest>,
        /// The index's value as `tpm2_nvread` shows it [default: what keyd reads]
        #[arg(long, value_name = "HEX", value_parser = digest_value)]
        nv: Option<Sha256Digest>,
    },
}

impl IntegrityVerb {
    /// True if keyd is asked.
    pub(crate) fn asks_keyd(&self) -> bool {
        !matches!(self, Self::Replay { file: Some(_), .. })
    }
}

pub(crate) async fn run(context: &Context, verb: IntegrityVerb) -> anyhow::Result<ExitCode> {
    match verb {
        IntegrityVerb::Log { log } => show(context, log).await,
        IntegrityVerb::Replay { file, pcr, nv } => replay(context, file, pcr, nv).await,
    }
}

/// A digest as people and the TPM tools write it.
fn digest_value(text: &str) -> Result<Sha256Digest, String> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    hex.parse().map_err(|_| "expected the 64 hexadecimal digits of a SHA-256 value".to_owned())
}

fn sha256(bytes: &[u8]) -> Sha256Digest {
    let mut array = [0; 32];
    array.copy_from_slice(digest(&SHA256, bytes).as_ref());
    Sha256Digest::new(array)
}

const NOT_ALLOWED: &str = "keyd does not show its log of measurements; root may read it, and who is named under `auditors` in its settings";

async fn fetch(context: &Context, number: Option<u64>) -> anyhow::Result<IntegrityLog> {
    let client = KeysClient::new(context.root.keyd_socket());
    match client.integrity(number).await {
        Err(error) if error.status() == Some(StatusCode::UNAUTHORIZED) => {
            Err(error).context(NOT_ALLOWED)
        }
        Err(error) if error.status() == Some(StatusCode::BAD_REQUEST) => Err(error).context(
            "keyd does not keep a log of that number; without --log it shows the newest one",
        ),
        answer => failure::of_our_own_route(answer),
    }
}

fn read(log: &str) -> anyhow::Result<Logged> {
    Logged::read(log.as_bytes(), sha256).context("the log was changed, or is none")
}

async fn show(context: &Context, number: Option<u64>) -> anyhow::Result<ExitCode> {
    let answer = fetch(context, number).await?;
    let log = read(&answer.log)?;
    if context.json {
        let records: Result<Vec<Value>, _> =
            log.records().iter().map(|record| serde_json::from_str(&record.json())).collect();
        output::print_json(&records?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut columns = Columns::with_head(&["#", "TIME", "EVENT", "OF", "MEASURED", "BY"]);
    for Record { number, content: Content { time, event }, .. } in log.records() {
        let [kind, of, measured, by] = told(event);
        let number = number.to_string();
        columns.row(vec![
            (Hue::Plain, number),
            (Hue::Plain, time.to_string()),
            (Hue::Plain, kind),
            (Hue::Plain, of),
            (Hue::Plain, measured),
            (Hue::Plain, by),
        ]);
    }
    output::print(&columns.render(Style::stdout(), ""))?;
    let kept: Vec<String> = answer.logs.iter().map(u64::to_string).collect();
    output::print(&format!(
        "log {} of those that are kept ({}); {}\n",
        answer.number,
        kept.join(", "),
        if answer.bound { "the TPM binds the newest one" } else { "no TPM binds the newest one" }
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Event, subject, measurement and source, in words.
fn told(event: &Event) -> [String; 4] {
    let short = |digest: &Sha256Digest| digest.hex()[..16].to_owned();
    let some = |name: &str, digest: &Option<Sha256Digest>| {
        digest.as_ref().map(|digest| format!("{name} {} ", short(digest))).unwrap_or_default()
    };
    let by = |source: &edgekeep_core::integrity::Source| {
        edgekeep_core::integrity::Word::from(source.clone()).to_string()
    };
    let (kind, of, measured, by) = match event {
        Event::LogStart(start) => {
            let reason = start.reason.finding().unwrap_or(match start.reason {
                edgekeep_core::integrity::Reason::Boot => "start of the machine",
                edgekeep_core::integrity::Reason::Full => "the log before was full",
                edgekeep_core::integrity::Reason::Settings => "other registers were set",
                edgekeep_core::integrity::Reason::TpmCame => "the TPM can be used again",
                _ => "first log",
            });
            ("log-start", format!("log {}", start.log), reason.to_owned(), "keyd".to_owned())
        }
        Event::DaemonStart { daemon, executable, settings, version, source } => (
            "daemon-start",
            format!("{daemon} {version}"),
            format!("executable {} settings {}", short(executable), short(settings)),
            by(source),
        ),
        Event::ModuleCreate { module, image, options, source } => (
            "module-create",
            module.to_string(),
            format!("{}options {}", some("image", image), short(options)),
            by(source),
        ),
        Event::ModuleStart { module, image, executable, source } => (
            "module-start",
            module.to_string(),
            format!("{}{}", some("image", image), some("executable", executable)),
            by(source),
        ),
        Event::Omitted { count, source } => (
            "omitted",
            format!("{count} records"),
            "left out: there were too many".to_owned(),
            by(source),
        ),
        Event::AuditHead { size, root } => (
            "audit-head",
            format!("{size} entries"),
            format!("root {}", short(root)),
            "keyd".to_owned(),
        ),
    };
    [kind.to_owned(), of, measured.trim_end().to_owned(), by]
}

async fn replay(
    context: &Context,
    file: Option<PathBuf>,
    pcr: Option<Sha256Digest>,
    nv: Option<Sha256Digest>,
) -> anyhow::Result<ExitCode> {
    let given = |value: Option<Sha256Digest>| value.map_or(Seen::Unread, Seen::Value);
    let (text, observed) = match file {
        Some(path) => {
            let text = file::read_text(&path, Rules::named(2 * SIZE_LIMIT as u64))
                .with_context(|| format!("cannot read {}", path.display()))?;
            if pcr.is_none() && nv.is_none() {
                bail!("a copy is compared with values that are given: add --pcr or --nv, or both");
            }
            (text, Observed { pcr: given(pcr), nv: given(nv) })
        }
        None => {
            let answer = fetch(context, None).await?;
            let observed = Observed {
                pcr: pcr.map_or_else(|| seen(answer.pcr.as_ref()), Seen::Value),
                nv: nv.map_or_else(|| seen(answer.nv.as_ref()), Seen::Value),
            };
            (answer.log, observed)
        }
    };
    let log = read(&text)?;
    let verdict = judge(&log, &observed, sha256);
    let shown = shown(&log, &observed, &verdict);
    if context.json {
        output::print_json(&shown)?;
    } else {
        output::print(&lines(&log, &observed, &verdict))?;
    }
    Ok(if holds(&log, &observed, &verdict) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// True if what was read of the TPM shows the log to be the whole one. A register that
/// nobody asked about does not count against the log.
fn holds(log: &Logged, observed: &Observed, verdict: &Verdict) -> bool {
    let unasked = |finding, seen| finding == Finding::Unread && seen == Seen::Unread;
    let pcr = if unasked(verdict.pcr, observed.pcr) { Finding::Unbound } else { verdict.pcr };
    let nv = if unasked(verdict.nv, observed.nv) { Finding::Unbound } else { verdict.nv };
    !log.is_cut() && Verdict { pcr, nv, ..*verdict }.holds()
}

fn seen(register: Option<&RegisterValue>) -> Seen {
    match register {
        Some(register) => register.value.map_or(Seen::Absent, Seen::Value),
        None => Seen::Unread,
    }
}

/// The finding as a word and in words.
fn words(finding: Finding) -> (&'static str, Hue, String) {
    match finding {
        Finding::Equal => ("equal", Hue::Good, "is what the log gives".to_owned()),
        Finding::Behind { by } => (
            "behind",
            Hue::Warning,
            format!("is what the log gives without its last {by} records; keyd extends them at its next start"),
        ),
        Finding::Unlike => (
            "unlike",
            Hue::Bad,
            "is nothing that this log gives: it was changed, is of another boot or device, or something else was extended".to_owned(),
        ),
        Finding::Absent => ("absent", Hue::Bad, "is not there, or cannot be used".to_owned()),
        Finding::Unread => ("unread", Hue::Warning, "was not read".to_owned()),
        Finding::Unbound => ("unbound", Hue::Warning, "does not bind this log".to_owned()),
    }
}

fn shown(log: &Logged, observed: &Observed, verdict: &Verdict) -> Value {
    let register = |finding, replayed: Option<Sha256Digest>, seen| {
        let value = match seen {
            Seen::Value(value) => Some(value.hex()),
            Seen::Absent | Seen::Unread => None,
        };
        json!({
            "finding": words(finding).0,
            "replayed": replayed.map(|it| it.hex()),
            "tpm": value,
        })
    };
    json!({
        "holds": holds(log, observed, verdict),
        "records": log.records().len(),
        "cut": log.is_cut(),
        "pcr": { "number": log.pcr() },
        "nv": { "index": log.start().nv_index },
        "pcr_comparison": register(verdict.pcr, verdict.pcr_replayed, observed.pcr),
        "nv_comparison": register(verdict.nv, verdict.nv_replayed, observed.nv),
    })
}

fn lines(log: &Logged, observed: &Observed, verdict: &Verdict) -> String {
    let style = Style::stdout();
    let mut text = format!("{} records\n", log.records().len());
    if log.is_cut() {
        text.push_str("the end of the log is half a record\n");
    }
    let index = log.start().nv_index.as_ref().map_or("", |index| index.as_str());
    for (name, finding, replayed) in [
        (format!("PCR {}", log.pcr()), verdict.pcr, verdict.pcr_replayed),
        (format!("NV index {index}"), verdict.nv, verdict.nv_replayed),
    ] {
        let (_, hue, words) = words(finding);
        match replayed {
            Some(replayed) => {
                text.push_str(&format!("{name} {}\n", style.paint(hue, &words)));
                text.push_str(&format!("  the log gives {}\n", replayed.hex()));
            }
            None => text.push_str(&format!("{} does not bind this log\n", name.trim_end())),
        }
    }
    let whole = if holds(log, observed, verdict) {
        style.paint(Hue::Good, "the TPM shows that this is the whole log")
    } else if verdict.pcr == Finding::Unbound && verdict.nv == Finding::Unbound {
        style.paint(Hue::Warning, "no TPM binds this log: whoever can write its file can change it")
    } else {
        style.paint(Hue::Bad, "the TPM does not show that this is the whole log")
    };
    text.push_str(&format!("{whole}\n"));
    text
}
