//! The way back: what was made here is moved aside, and the existing packages find their
//! files as they left them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use edgekeep_core::layout::Root;
use serde_json::json;

use super::journal::{self, Journal, Stage};
use super::running;
use crate::arguments::Context;
use crate::output;

/// Beginning of the names of folders with what was moved aside.
const ASIDE: &str = "undone-";
/// Most ways back whose remains are kept.
const MOST: u32 = 100;

pub(super) fn run(
    context: &Context,
    journal: Option<Journal>,
    dry_run: bool,
) -> anyhow::Result<ExitCode> {
    let root = &context.root;
    let Some(journal) = journal else {
        anyhow::bail!("this device was not taken over by `edgekeep migrate`: there is no way back");
    };
    running::refuse(root)?;
    let aside = match &journal.stage {
        Stage::Undoing { aside } => aside.clone(),
        Stage::Begun | Stage::Done => free_name(root)?,
    };
    let moved = to_move(root)?;
    let links = links(root);
    if !dry_run {
        let undoing = Journal { stage: Stage::Undoing { aside: aside.clone() }, ..journal };
        journal::write(root, &undoing)?;
        carry_out(root, &aside, &moved, &links, || {})?;
    }
    show(context, &aside, &moved, &links, dry_run)?;
    Ok(ExitCode::SUCCESS)
}

/// Moves what was made aside, the settings first: without them no daemon starts.
///
/// # Errors
/// The first move that fails; the next run completes it.
pub(super) fn carry_out(
    root: &Root,
    aside: &str,
    moved: &[PathBuf],
    links: &[PathBuf],
    mut after_step: impl FnMut(),
) -> anyhow::Result<()> {
    for path in moved {
        let Some((folder, name)) = path.parent().zip(path.file_name()) else { continue };
        let folder = folder.join(aside);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        fs::rename(path, folder.join(name))
            .with_context(|| format!("cannot move {}; run as root (sudo)", path.display()))?;
        after_step();
    }
    for link in links {
        fs::remove_file(link).with_context(|| format!("cannot remove {}", link.display()))?;
        after_step();
    }
    journal::remove(root)?;
    after_step();
    Ok(())
}

fn folders(root: &Root) -> [PathBuf; 2] {
    ["etc/edgekeep", "var/lib/edgekeep"].map(|folder| root.path().join(folder))
}

/// A name that no earlier way back has.
fn free_name(root: &Root) -> anyhow::Result<String> {
    let names = (1..=MOST).map(|number| format!("{ASIDE}{number}"));
    let is_free = |name: &String| folders(root).iter().all(|folder| !folder.join(name).exists());
    names.into_iter().find(is_free).with_context(|| {
        format!(
            "{MOST} ways back are kept below var/lib/edgekeep; remove some of the folders {ASIDE}*"
        )
    })
}

/// Everything that is ours, but for the journal and what was moved aside before.
pub(super) fn to_move(root: &Root) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in folders(root) {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("cannot read {}; run as root (sudo)", folder.display())
                });
            }
        };
        let mut here: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        here.retain(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name != journal::NAME && !name.starts_with(ASIDE)
        });
        here.sort();
        found.extend(here);
    }
    Ok(found)
}

/// The links to the shared workload socket.
pub(super) fn links(root: &Root) -> Vec<PathBuf> {
    let target = root.legacy_workload_socket();
    let entries = fs::read_dir(root.former_socket_folder()).into_iter().flatten().flatten();
    let mut links: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| fs::read_link(path).is_ok_and(|to| to == target))
        .collect();
    links.sort();
    links
}

fn show(
    context: &Context,
    aside: &str,
    moved: &[PathBuf],
    links: &[PathBuf],
    dry_run: bool,
) -> anyhow::Result<()> {
    if context.json {
        output::print_json(&json!({
            "dryRun": dry_run, "undone": !dry_run, "moved": moved, "aside": aside, "links": links,
        }))?;
        return Ok(());
    }
    let (moves, removes) =
        if dry_run { ("would move", "would remove") } else { ("moved", "removed") };
    let mut text = String::new();
    for path in moved {
        let to = path.parent().unwrap_or(Path::new("/")).join(aside);
        text.push_str(&format!("{moves} {} into {}\n", path.display(), to.display()));
    }
    for link in links {
        text.push_str(&format!("{removes} {}\n", link.display()));
    }
    text.push_str(if dry_run {
        "nothing was changed\n"
    } else {
        "the existing packages find their files as they left them: remove edgekeep and install them, then \
         `iotedge config apply`\n\
         modules that were made or updated meanwhile are made anew by the agent: remove their containers\n"
    });
    output::print(&text)?;
    Ok(())
}
