//! `audit`: what keyd has written down about the use of keys, and whether that is what it wrote.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use edgekeep_api::keyd::KeysClient;
use edgekeep_audit::checkpoint::Checkpoint;
use edgekeep_audit::entry::Shown;
use edgekeep_audit::note::VerifierKey;
use edgekeep_audit::tree::{Frontier, Hash, Tree, leaf_hash};
use edgekeep_audit::verify::{Known, Report, verify, verify_read};
use edgekeep_audit::{export, proof};
use time::format_description::well_known::Rfc3339;

use crate::arguments::Context;
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
        /// The log's verifier key, or a file with it [default: what keyd or the folder itself says]
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        /// A file with a checkpoint that was kept earlier: the log has to be its continuation
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
        /// The value of the hardware counter, if the log has one
        #[arg(long, value_name = "NUM")]
        counter: Option<u64>,
        /// Check this proof of one entry instead of a log; needs the key
        #[arg(long, value_name = "FILE", requires = "key", conflicts_with_all = ["folder", "checkpoint", "counter"])]
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

pub(crate) async fn run(context: &Context, verb: AuditVerb) -> anyhow::Result<ExitCode> {
    match verb {
        AuditVerb::Show { last, refused, key } => show(context, last, refused, key.as_deref()).await,
        AuditVerb::Verify { proof: Some(file), key, .. } => check_proof(context, &file, key.as_deref()),
        AuditVerb::Verify { folder, key, checkpoint, counter, proof: None } => {
            let checkpoint = checkpoint.map(|file| read(&file)).transpose()?;
            check(context, folder.as_deref(), key.as_deref(), checkpoint.as_deref(), counter).await
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
}

fn client(context: &Context) -> KeysClient {
    KeysClient::new(context.root.keyd_socket())
}

const NOT_ALLOWED: &str =
    "keyd does not show its audit log; root may read it, and who is named under `auditors` in its settings";

/// The head of keyd's log, and the key that it says is its own.
async fn head(client: &KeysClient) -> anyhow::Result<(VerifierKey, String, Checkpoint)> {
    let answer = client.audit_checkpoint().await.context(NOT_ALLOWED)?;
    let key: VerifierKey = answer.verifier_key.parse()?;
    let head = Checkpoint::open(&answer.checkpoint, &key)?;
    Ok((key, answer.checkpoint, head))
}

/// The log from `from` on, or from its oldest entry. Without `from` being the oldest, `edge` and `base` are not where the
/// entries begin.
async fn fetch(client: &KeysClient, from: u64) -> anyhow::Result<(u64, Fetched)> {
    let (key, note, head) = head(client).await?;
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
            entries.truncate(usize::try_from(head.size.saturating_sub(*begin)).unwrap_or(usize::MAX));
            let nodes: Option<Vec<Hash>> = edge.1.iter().map(|node| Hash::from_base64(node)).collect();
            let parsed = nodes.and_then(|nodes| Frontier::from_parts(edge.0, nodes));
            let edge = parsed.context("keyd answered something that is no audit log")?;
            return Ok((*begin, Fetched { key, note, head, edge, base: base.clone(), entries }));
        }
    }
}

async fn show(context: &Context, last: u64, refused: bool, key: Option<&str>) -> anyhow::Result<ExitCode> {
    let client = client(context);
    let size = head(&client).await?.2.size;
    // With a filter, what is wanted may be anywhere.
    let filtered = refused || key.is_some();
    let (from, fetched) = fetch(&client, if filtered { 0 } else { size.saturating_sub(last) }).await?;
    let mut lines = Vec::new();
    for (index, entry) in (from..).zip(&fetched.entries) {
        let shown: Shown = serde_json::from_slice(entry).with_context(|| format!("entry {index} cannot be read"))?;
        if (!refused || shown.result == "refused") && key.is_none_or(|key| shown.key.as_deref() == Some(key)) {
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
        output::print(&table(lines.iter().map(|(index, _, shown)| (*index, shown)), Style::stdout()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table<'a>(lines: impl Iterator<Item = (u64, &'a Shown)>, style: Style) -> String {
    let mut columns = Columns::with_head(&["INDEX", "TIME", "UID", "PID", "WHAT", "KEY", "RESULT"]);
    for (index, shown) in lines {
        let plain = |text: String| (Hue::Plain, text);
        let number = |number: Option<u32>| plain(number.map_or_else(|| "-".to_owned(), |number| number.to_string()));
        let mut key = shown.key.clone().unwrap_or_else(|| "-".to_owned());
        match &shown.module {
            Some(module) => key.push_str(&format!(" (of {module})")),
            None if shown.derived => key.push_str(" (derived)"),
            None => {}
        }
        if let Some(from) = &shown.from {
            key = format!("{from} -> {key}");
        }
        let (hue, result) = match (shown.result.as_str(), &shown.reason) {
            ("done", _) => (Hue::Good, "done".to_owned()),
            ("refused", Some(reason)) => (Hue::Bad, format!("refused: {reason}")),
            ("", _) if shown.clean == Some(false) => (Hue::Warning, "was not closed before".to_owned()),
            ("", _) => (Hue::Plain, "-".to_owned()),
            (other, _) => (Hue::Warning, other.to_owned()),
        };
        columns.row(vec![
            plain(index.to_string()),
            plain(shown.time.clone()),
            number(shown.uid),
            number(shown.pid),
            plain(shown.what.clone()),
            plain(key),
            (hue, result),
        ]);
    }
    columns.render(style, "")
}

async fn check(
    context: &Context,
    folder: Option<&Path>,
    key: Option<&str>,
    checkpoint: Option<&str>,
    counter: Option<u64>,
) -> anyhow::Result<ExitCode> {
    let given = key.map(read_key).transpose()?;
    let (key, report) = match folder {
        Some(folder) => {
            let key = match &given {
                Some(key) => key.clone(),
                None => read_key(&folder.join("verifier-key").display().to_string())?,
            };
            let report = verify(folder, &Known { key: &key, checkpoint, counter })?;
            (key, report)
        }
        None => {
            let (_, log) = fetch(&client(context), 0).await?;
            let key = given.clone().unwrap_or(log.key);
            let known = Known { key: &key, checkpoint, counter };
            let report = verify_read(&log.edge, &log.base, &log.entries, &log.note, &known);
            (key, report)
        }
    };
    if context.json {
        output::print_json(&as_json(&key, &report))?;
    } else {
        output::print(&as_text(&key, &report, given.is_some(), Style::stdout()))?;
    }
    Ok(if report.is_intact() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn as_json(key: &VerifierKey, report: &Report) -> serde_json::Value {
    let faults: Vec<_> = report
        .faults
        .iter()
        .map(|fault| {
            serde_json::json!({ "segment": fault.segment, "entry": fault.entry, "what": fault.kind.to_string() })
        })
        .collect();
    let gaps: Vec<String> = report.gaps.iter().map(ToString::to_string).collect();
    serde_json::json!({
        "intact": report.is_intact(),
        "verifierKey": key.to_string(),
        "first": report.first,
        "size": report.size,
        "checkpoints": report.checkpoints,
        "newestCheckpoint": report.newest.as_ref().map(Checkpoint::text),
        "gaps": gaps,
        "faults": faults,
    })
}

fn as_text(key: &VerifierKey, report: &Report, key_given: bool, style: Style) -> String {
    let mut text = String::new();
    let verdict =
        if report.is_intact() { style.paint(Hue::Good, "intact") } else { style.paint(Hue::Bad, "NOT INTACT") };
    let (entries, checkpoints) = (report.entries(), report.checkpoints);
    text.push_str(&format!("{}: {verdict}, {entries} entries, {checkpoints} checkpoints\n", key.name()));
    if let Some(newest) = &report.newest {
        let time = newest.time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| "unknown time".to_owned());
        text.push_str(&format!("newest checkpoint: {} entries, {time}, root {}\n", newest.size, newest.root));
    }
    for gap in &report.gaps {
        text.push_str(&format!("{} {gap}\n", style.paint(Hue::Warning, "gap:")));
    }
    for fault in &report.faults {
        text.push_str(&format!("{} {}\n", style.paint(Hue::Bad, "fault:"), output::printable(&fault.to_string())));
    }
    if !key_given {
        text.push_str(&format!(
            "checked with the key that the log itself names, so this does not show whether it is the right log; keep the \
             key elsewhere and pass it with --key:\n{key}\n"
        ));
    }
    text
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
        bail!("there is no entry {index}: the log has entries {first} to {}", size.saturating_sub(1));
    };
    output::print(&proof::text(index, entry, &hashes, &log.note))?;
    Ok(ExitCode::SUCCESS)
}

fn check_proof(context: &Context, file: &Path, key: Option<&str>) -> anyhow::Result<ExitCode> {
    let key = read_key(key.context("a proof is checked with --key")?)?;
    let proved = proof::check(&read(file)?, &key)?;
    let entry = String::from_utf8_lossy(&proved.entry);
    if context.json {
        let entry: serde_json::Value = serde_json::from_str(&entry).context("the entry cannot be read")?;
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
    let file = read(Path::new(text)).context("--key is neither a verifier key nor a file with one")?;
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
                r#"{"time":"2026-07-01T10:00:01.000Z","uid":13,"pid":7,"module":"m","what":"sign","key":"a\u001b[2J","derived":true,"result":"done"}"#,
            ),
            shown(
                r#"{"time":"2026-07-01T10:00:02.000Z","uid":14,"what":"move","key":"b","from":"a","result":"refused","reason":"no-grant"}"#,
            ),
        ];
        let expected = "\
INDEX  TIME                      UID  PID  WHAT        KEY           RESULT
5      2026-07-01T10:00:00.000Z  -    -    log-opened  -             was not closed before
6      2026-07-01T10:00:01.000Z  13   7    sign        a\u{fffd}[2J (of m)  done
7      2026-07-01T10:00:02.000Z  14   -    move        a -> b        refused: no-grant
";
        assert_eq!(table((5..).zip(&entries), Style::plain()), expected);
    }
}
