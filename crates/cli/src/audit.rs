//! `audit`: what keyd has written down about the use of keys, and whether that is what it
//! wrote.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use edgekeep_api::keyd::{AuditCheckpoint, AuditCounter, KeysClient};
use edgekeep_audit::checkpoint::Checkpoint;
use edgekeep_audit::entry::Shown;
use edgekeep_audit::note::VerifierKey;
use edgekeep_audit::tree::{Frontier, Hash, Tree, leaf_hash};
use edgekeep_audit::verify::{Fault, Gap, Known, Report, verify, verify_read};
use edgekeep_audit::{export, proof};
use http::StatusCode;
use time::format_description::well_known::Rfc3339;

use crate::arguments::Context;
use crate::failure;
use crate::output::{self, Columns, Hue, Style};

/// Entries asked for at a time.
const PAGE: usize = 1000;

#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// Show the newest entries
    Show {
        /// How many
        #[arg(short = 'n', long, value_name = "NUM", default_value_t = 30)]
        last: u64,
        /// Only refusals
        #[arg(long)]
        refused: bool,
        /// Only what was asked for this key
        #[arg(long, value_name = "ID")]
        key: Option<String>,
    },
    /// Check that nothing was changed, removed or added; fails if something was
    Verify {
        /// A log's folder, or a copy of one, instead of the log of the running keyd
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
        /// The log's verifier key, or a file with it [default: what keyd or the folder
        /// itself says]
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        /// A file with a checkpoint that was kept earlier: the log has to be its
        /// continuation
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
        /// The hardware counter, decimal or 0x and hexadecimal, as `tpm2_nvread` reads it
        /// [default: what keyd reads]
        #[arg(long, value_name = "NUM", value_parser = counter_value)]
        counter: Option<u64>,
        /// An entry that tells of a loss which was looked into: it no longer fails the
        /// check
        #[arg(long, value_name = "INDEX")]
        accept: Vec<u64>,
        /// Check this proof of one entry instead of a log; needs the key
        #[arg(long, value_name = "FILE", requires = "key", conflicts_with_all = ["folder", "checkpoint", "counter", "accept"])]
        proof: Option<PathBuf>,
    },
    /// Print a proof that an entry is in the log, which `verify --proof` checks anywhere
    Prove {
        /// The entry's index, as `show` prints it
        index: u64,
    },
    /// Copy the whole log, with its key, into a new folder
    Export {
        /// The folder to make
        folder: PathBuf,
    },
}

impl AuditVerb {
    /// Returns true if the verb reads the log through keyd, and not from a folder or a
    /// file.
    pub(crate) const fn asks_keyd(&self) -> bool {
        !matches!(self, Self::Verify { folder: Some(_), .. } | Self::Verify { proof: Some(_), .. })
    }
}

pub(crate) async fn run(context: &Context, verb: AuditVerb) -> anyhow::Result<ExitCode> {
    match verb {
        AuditVerb::Show { last, refused, key } => {
            show(context, last, refused, key.as_deref()).await
        }
        AuditVerb::Verify { proof: Some(file), key, .. } => {
            check_proof(context, &file, key.as_deref())
        }
        AuditVerb::Verify { folder, key, checkpoint, counter, accept, proof: None } => {
            let checkpoint = checkpoint.map(|file| read(&file)).transpose()?;
            let asked = Asked { folder, key, checkpoint, counter, accept };
            check(context, &asked).await
        }
        AuditVerb::Prove { index } => prove(context, index).await,
        AuditVerb::Export { folder } => copy(context, &folder).await,
    }
}

/// The whole log, as keyd tells it.
struct Fetched {
    key: VerifierKey,
    note: String,
    head: Checkpoint,
    edge: Frontier,
    base: String,
    entries: Vec<Vec<u8>>,
    /// The counter in hardware, as keyd read it with the checkpoint.
    counter: Option<AuditCounter>,
}

/// Options for the check of a log.
struct Asked {
    folder: Option<PathBuf>,
    key: Option<String>,
    checkpoint: Option<String>,
    counter: Option<u64>,
    accept: Vec<u64>,
}

/// A number as people and the TPM tools write it.
fn counter_value(text: &str) -> Result<u64, String> {
    let value = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    value.map_err(|_| "expected a number, decimal or 0x and hexadecimal".to_owned())
}

fn client(context: &Context) -> KeysClient {
    KeysClient::new(context.root.keyd_socket())
}

const NOT_ALLOWED: &str = "keyd does not show its audit log; root may read it, and who is named under `auditors` in its settings";

/// The head of keyd's log, and what keyd says about it.
async fn head(client: &KeysClient) -> anyhow::Result<(AuditCheckpoint, VerifierKey, Checkpoint)> {
    let answer = match client.audit_checkpoint().await {
        Err(error) if error.status() == Some(StatusCode::UNAUTHORIZED) => {
            return Err(error).context(NOT_ALLOWED);
        }
        answer => failure::of_our_own_route(answer)?,
    };
    let key: VerifierKey = answer.verifier_key.parse()?;
    let head = Checkpoint::open(&answer.checkpoint, &key)?;
    Ok((answer, key, head))
}

/// The log from `from` on, or from its oldest entry. Without `from` being the oldest,
/// `edge` and `base` are not where the entries begin.
async fn fetch(client: &KeysClient, from: u64) -> anyhow::Result<(u64, Fetched)> {
    let (answer, key, head) = head(client).await?;
    let (note, counter) = (answer.checkpoint, answer.counter);
    let mut first = None;
    let mut entries: Vec<Vec<u8>> = Vec::new();
    let mut at = from;
    loop {
        let page = client.audit_entries(at, PAGE).await?;
        let (begin, edge, base) = first.get_or_insert_with(|| {
            at = page.from;
            (page.from, (page.first, page.edge.clone()), page.base.clone())
        });
        ensure!(
            page.from == at && (page.first, &page.edge) == (edge.0, &edge.1),
            "the log's oldest part was dropped meanwhile; try again"
        );
        let count = page.entries.len() as u64;
        entries.extend(page.entries.into_iter().map(String::into_bytes));
        at += count;
        if at >= head.size || count == 0 {
            // What came after the checkpoint is not covered by it.
            entries
                .truncate(usize::try_from(head.size.saturating_sub(*begin)).unwrap_or(usize::MAX));
            let nodes: Option<Vec<Hash>> =
                edge.1.iter().map(|node| Hash::from_base64(node)).collect();
            let parsed = nodes.and_then(|nodes| Frontier::from_parts(edge.0, nodes));
            let edge = parsed.context("keyd answered something that is no audit log")?;
            return Ok((
                *begin,
                Fetched { key, note, head, edge, base: base.clone(), entries, counter },
            ));
        }
    }
}

async fn show(
    context: &Context,
    last: u64,
    refused: bool,
    key: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let client = client(context);
    let size = head(&client).await?.2.size;
    // With a filter, what is wanted may be anywhere.
    let filtered = refused || key.is_some();
    let (from, fetched) =
        fetch(&client, if filtered { 0 } else { size.saturating_sub(last) }).await?;
    let mut lines = Vec::new();
    for (index, entry) in (from..).zip(&fetched.entries) {
        let shown: Shown = serde_json::from_slice(entry)
            .with_context(|| format!("entry {index} cannot be read"))?;
        if (!refused || shown.result == "refused")
            && key.is_none_or(|key| shown.key.as_deref() == Some(key))
        {
            lines.push((index, entry, shown));
        }
    }
    let skip = lines.len().saturating_sub(usize::try_from(last).unwrap_or(usize::MAX));
    let lines = &lines[skip..];
    if context.json {
        let values: Result<Vec<serde_json::Value>, _> = lines
            .iter()
            .map(|(index, entry, _)| {
                let entry: serde_json::Value = serde_json::from_slice(entry)?;
                Ok::<_, serde_json::Error>(serde_json::json!({ "index": index, "entry": entry }))
            })
            .collect();
        output::print_json(&values?)?;
    } else {
        output::print(&table(
            lines.iter().map(|(index, _, shown)| (*index, shown)),
            Style::stdout(),
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table<'a>(lines: impl Iterator<Item = (u64, &'a Shown)>, style: Style) -> String {
    let mut columns = Columns::with_head(&["INDEX", "TIME", "WHO", "PID", "WHAT", "KEY", "RESULT"]);
    for (index, shown) in lines {
        let plain = |text: String| (Hue::Plain, text);
        let number = |number: Option<u32>| {
            plain(number.map_or_else(|| "-".to_owned(), |number| number.to_string()))
        };
        let mut key = shown.key.clone().unwrap_or_else(|| "-".to_owned());
        match &shown.module {
            Some(module) => key.push_str(&format!(" (of {module})")),
            None if shown.derived => key.push_str(" (derived)"),
            None => {}
        }
        if let Some(from) = &shown.from {
            key = format!("{from} -> {key}");
        }
        let (hue, mut result) = match (shown.result.as_str(), &shown.reason) {
            ("done", _) => (Hue::Good, "done".to_owned()),
            ("refused", Some(reason)) => (Hue::Bad, format!("refused: {reason}")),
            ("", _) if shown.clean == Some(false) => {
                (Hue::Warning, "was not closed before".to_owned())
            }
            ("", _) if shown.level.is_some() => (Hue::Plain, assurance(shown)),
            ("", _) if shown.what == "log-behind-counter" => (Hue::Bad, counters(shown)),
            ("", _) if shown.counter.is_some() => (Hue::Warning, counters(shown)),
            ("", _) => (Hue::Plain, "-".to_owned()),
            (other, _) => (Hue::Warning, other.to_owned()),
        };
        if let (Some(count), Some(since)) = (shown.count, &shown.since) {
            result.push_str(&format!(", {count} times since {since}"));
        }
        columns.row(vec![
            plain(index.to_string()),
            plain(shown.time.clone()),
            plain(who(shown)),
            number(shown.pid),
            plain(shown.what.clone()),
            plain(key),
            (hue, result),
        ]);
    }
    columns.render(style, "")
}

/// Renders the assurance from an entry on, and what was lacking.
fn assurance(shown: &Shown) -> String {
    let level = shown.level.as_deref().unwrap_or_default();
    let mut text = match &shown.was {
        Some(was) if was != level => format!("{was} -> {level}"),
        _ => level.to_owned(),
    };
    if !shown.lacks.is_empty() {
        text.push_str(&format!(" (lacks {})", shown.lacks.join(", ")));
    }
    text
}

/// Renders the value of the counter in the log and in the hardware.
fn counters(shown: &Shown) -> String {
    let number =
        |number: Option<u64>| number.map_or_else(|| "none".to_owned(), |number| number.to_string());
    format!("log has {}, hardware {}", number(shown.recorded), number(shown.counter))
}

/// The uid, and on whose behalf it says to have asked.
fn who(shown: &Shown) -> String {
    let Some(uid) = shown.uid else { return "-".to_owned() };
    let Some(module) = &shown.behalf else { return uid.to_string() };
    // The list shows enough of a digest to tell two apart; `--json` has all of it.
    let short = |digest: &str| digest.chars().take("sha256:".len() + 12).collect::<String>();
    match &shown.executable {
        Some(executable) => format!("uid {uid} for module {module} (exe {})", short(executable)),
        None => format!("uid {uid} for module {module}"),
    }
}

async fn check(context: &Context, asked: &Asked) -> anyhow::Result<ExitCode> {
    let given = asked.key.as_deref().map(read_key).transpose()?;
    let checkpoint = asked.checkpoint.as_deref();
    let (key, report, hardware) = match &asked.folder {
        Some(folder) => {
            let key = match &given {
                Some(key) => key.clone(),
                None => read_key(&folder.join("verifier-key").display().to_string())?,
            };
            let report = verify(folder, &Known { key: &key, checkpoint, counter: asked.counter })?;
            (key, report, None)
        }
        None => {
            let (_, log) = fetch(&client(context), 0).await?;
            let key = given.clone().unwrap_or(log.key);
            let read = log.counter.as_ref().and_then(|counter| counter.value);
            let known = Known { key: &key, checkpoint, counter: asked.counter.or(read) };
            let report = verify_read(&log.edge, &log.base, &log.entries, &log.note, &known);
            (key, report, log.counter)
        }
    };
    let verdict = Verdict { key, report, hardware, asked };
    if context.json {
        output::print_json(&verdict.as_json())?;
    } else {
        output::print(&verdict.as_text(given.is_some(), Style::stdout()))?;
    }
    Ok(if verdict.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Result of a check.
struct Verdict<'a> {
    key: VerifierKey,
    report: Report,
    /// The counter as keyd read it.
    hardware: Option<AuditCounter>,
    asked: &'a Asked,
}

impl Verdict<'_> {
    fn is_good(&self) -> bool {
        self.report.is_intact() && self.report.alarms(&self.asked.accept).next().is_none()
    }

    /// Renders the hardware counter that the log was compared with, or the lack of it.
    fn counter(&self) -> String {
        let in_log = self.report.newest.as_ref().and_then(|newest| newest.counter);
        match (&self.hardware, self.asked.counter, in_log) {
            (Some(AuditCounter { index, error: Some(error), .. }), None, _) => format!(
                "the hardware counter at {index:#010x} CANNOT BE READ, so a loss of the newest part would not show: {error}"
            ),
            (Some(AuditCounter { index, value: Some(value), .. }), None, _) => {
                format!("compared with the hardware counter at {index:#010x}, which is {value}")
            }
            (_, Some(value), _) => format!("compared with the hardware counter as given, {value}"),
            (_, None, Some(_)) => "the log has a hardware counter, and its value was not given".to_owned(),
            (_, None, None) => {
                "the log has no hardware counter: a loss of the newest part shows only by --checkpoint".to_owned()
            }
        }
    }

    fn as_json(&self) -> serde_json::Value {
        let report = &self.report;
        let fault = |fault: &Fault| serde_json::json!({ "segment": fault.segment, "entry": fault.entry, "what": fault.kind.to_string() });
        let texts = |gaps: &mut dyn Iterator<Item = &Gap>| {
            gaps.map(ToString::to_string).collect::<Vec<_>>()
        };
        serde_json::json!({
            "good": self.is_good(),
            "intact": report.is_intact(),
            "verifierKey": self.key.to_string(),
            "first": report.first,
            "size": report.size,
            "checkpoints": report.checkpoints,
            "newestCheckpoint": report.newest.as_ref().map(Checkpoint::text),
            "hardwareCounter": self.hardware,
            "counterInLog": report.newest.as_ref().and_then(|newest| newest.counter),
            "alarms": texts(&mut report.alarms(&self.asked.accept)),
            "gaps": texts(&mut report.gaps.iter()),
            "faults": report.faults.iter().map(fault).collect::<Vec<_>>(),
        })
    }

    fn as_text(&self, key_given: bool, style: Style) -> String {
        let Self { key, report, .. } = self;
        let mut text = String::new();
        let verdict = match (report.is_intact(), self.is_good()) {
            (false, _) => style.paint(Hue::Bad, "NOT INTACT"),
            (true, false) => style.paint(Hue::Bad, "intact, but it TELLS OF A LOSS"),
            (true, true) => style.paint(Hue::Good, "intact"),
        };
        let (entries, checkpoints) = (report.entries(), report.checkpoints);
        text.push_str(&format!(
            "{}: {verdict}, {entries} entries, {checkpoints} checkpoints\n",
            key.name()
        ));
        if let Some(newest) = &report.newest {
            let time = newest.time.and_then(|time| time.format(&Rfc3339).ok());
            let time = time.unwrap_or_else(|| "unknown time".to_owned());
            text.push_str(&format!(
                "newest checkpoint: {} entries, {time}, root {}\n",
                newest.size, newest.root
            ));
        }
        text.push_str(&format!("{}\n", output::printable(&self.counter())));
        for gap in &report.gaps {
            let word = match gap.alarm() {
                Some(at) if !self.asked.accept.contains(&at) => style.paint(Hue::Bad, "alarm:"),
                _ => style.paint(Hue::Warning, "gap:"),
            };
            text.push_str(&format!("{word} {gap}\n"));
        }
        for fault in &report.faults {
            text.push_str(&format!(
                "{} {}\n",
                style.paint(Hue::Bad, "fault:"),
                output::printable(&fault.to_string())
            ));
        }
        if let Some(at) = report.alarms(&self.asked.accept).find_map(Gap::alarm) {
            text.push_str(&format!(
                "once you have looked into it, `--accept {at}` lets the check pass\n"
            ));
        }
        if !key_given {
            text.push_str(&format!(
                "checked with the key that the log itself names, so this does not show whether it is the right log; keep \
                 the key elsewhere and pass it with --key:\n{key}\n"
            ));
        }
        text
    }
}

async fn prove(context: &Context, index: u64) -> anyhow::Result<ExitCode> {
    let (_, log) = fetch(&client(context), 0).await?;
    let mut tree = Tree::new(log.edge.clone());
    log.entries.iter().for_each(|entry| tree.append(leaf_hash(entry)));
    let (first, size) = (log.edge.size(), log.head.size);
    if tree.root(size) != Some(log.head.root) {
        bail!("the log is not what its checkpoint says; run `edgekeep audit verify`");
    }
    let place = index.checked_sub(first).and_then(|place| usize::try_from(place).ok());
    let entry = place.and_then(|place| log.entries.get(place));
    let (Some(entry), Some(hashes)) = (entry, tree.inclusion(index, size)) else {
        bail!(
            "there is no entry {index}: the log has entries {first} to {}",
            size.saturating_sub(1)
        );
    };
    output::print(&proof::text(index, entry, &hashes, &log.note))?;
    Ok(ExitCode::SUCCESS)
}

fn check_proof(context: &Context, file: &Path, key: Option<&str>) -> anyhow::Result<ExitCode> {
    let key = read_key(key.context("a proof is checked with --key")?)?;
    let proved = proof::check(&read(file)?, &key)?;
    let entry = String::from_utf8_lossy(&proved.entry);
    if context.json {
        let entry: serde_json::Value =
            serde_json::from_str(&entry).context("the entry cannot be read")?;
        output::print_json(&serde_json::json!({ "index": proved.index, "entry": entry }))?;
    } else {
        let (index, entry) = (proved.index, output::printable(&entry));
        output::print(&format!("entry {index} of {} is in the log:\n{entry}\n", key.name()))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn copy(context: &Context, folder: &Path) -> anyhow::Result<ExitCode> {
    ensure!(!folder.exists(), "{} exists already; name a folder that does not", folder.display());
    let (_, log) = fetch(&client(context), 0).await?;
    export(folder, &log.key, &log.edge, &log.base, &log.entries, &log.note)?;
    if context.json {
        output::print_json(&serde_json::json!({ "folder": folder, "entries": log.entries.len() }))?;
    } else {
        output::print(&format!("{} entries copied to {}\n", log.entries.len(), folder.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A key as text, or from the file of that name.
fn read_key(text: &str) -> anyhow::Result<VerifierKey> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let file =
        read(Path::new(text)).context("--key is neither a verifier key nor a file with one")?;
    Ok(file.trim().parse()?)
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_line_that_says_who_did_what_and_why_not() {
        let shown = |text: &str| serde_json::from_str::<Shown>(text).unwrap();
        let entries = [
            shown(r#"{"time":"2026-07-01T10:00:00.000Z","what":"log-opened","clean":false}"#),
            shown(
                r#"{"time":"2026-07-01T10:00:01.000Z","uid":13,"pid":7,"for":"thermometer","executable":"sha256:0123456789abcdef","module":"m","what":"sign","key":"a\u001b[2J","derived":true,"result":"done"}"#,
            ),
            shown(
                r#"{"time":"2026-07-01T10:00:02.000Z","uid":14,"what":"move","key":"b","from":"a","result":"refused","reason":"no-grant"}"#,
            ),
            shown(
                r#"{"time":"2026-07-01T10:00:03.000Z","what":"log-behind-counter","recorded":5,"counter":7}"#,
            ),
        ];
        let expected = "\
INDEX  TIME                      WHO                                                      PID  WHAT                KEY           RESULT
5      2026-07-01T10:00:00.000Z  -                                                        -    log-opened          -             was not closed before
6      2026-07-01T10:00:01.000Z  uid 13 for module thermometer (exe sha256:0123456789ab)  7    sign                a\u{fffd}[2J (of m)  done
7      2026-07-01T10:00:02.000Z  14                                                       -    move                a -> b        refused: no-grant
8      2026-07-01T10:00:03.000Z  -                                                        -    log-behind-counter  -             log has 5, hardware 7
";
        assert_eq!(table((5..).zip(&entries), Style::plain()), expected);
    }
}
