//! The folder that the package is made of.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use super::{SHIPPED, notices};
use crate::{command, workspace};

/// Folders of the repository, and where `packaging/debian/install` takes their content
/// from.
const FOLDERS: [(&str, &str); 9] = [
    ("packaging/debian", "debian"),
    ("packaging/systemd", "systemd"),
    ("packaging/sysusers.d", "sysusers.d"),
    ("packaging/tmpfiles.d", "tmpfiles.d"),
    ("packaging/polkit-1", "polkit-1"),
    ("packaging/udev", "udev"),
    ("docs", "docs"),
    ("openapi", "docs/openapi"),
    ("config", "examples"),
];
/// Files of shells, and where each shell looks for them.
const COMPLETIONS: [(&str, &str); 3] =
    [("bash", "edgekeep"), ("zsh", "_edgekeep"), ("fish", "edgekeep.fish")];

/// Lays out the package's parts in `tree`.
pub(super) fn lay_out(
    programs: &Path,
    tree: &Path,
    version: &str,
    time: u64,
) -> anyhow::Result<()> {
    for (from, to) in FOLDERS {
        copy_folder(&workspace::folder().join(from), &tree.join(to))?;
    }
    let template = "config.toml.template";
    copy(&workspace::folder().join("packaging").join(template), &tree.join(template))?;
    for name in SHIPPED {
        copy(&programs.join(name), &tree.join("programs").join(name))?;
    }
    let edgekeep = tree.join("programs/edgekeep");
    for (shell, name) in COMPLETIONS {
        let mut completions = Command::new(&edgekeep);
        completions.args(["completions", shell]);
        write(&tree.join("completions").join(name), &command::output(completions)?)?;
    }
    let mut manual = Command::new(&edgekeep);
    manual.arg("manual").arg(tree.join("man"));
    command::output(manual)?;
    write(&tree.join("third-party.txt"), &notices::text(&SHIPPED)?)?;
    write(&tree.join("debian/changelog"), &changelog(version, time)?)
}

/// The changelog of the package, which has the version and its time. The project's own is
/// beside it.
fn changelog(version: &str, time: u64) -> anyhow::Result<String> {
    let mut date = Command::new("date");
    date.args(["--utc", "--rfc-email", &format!("--date=@{time}")]).env("LC_ALL", "C");
    Ok(format!(
        "edgekeep ({version}) unstable; urgency=medium\n\n  * Build of the project's own package.\n\n \
         -- edgekeep maintainers <maintainers@edgekeep.invalid>  {}\n",
        command::output(date)?.trim()
    ))
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    make_folder_of(path)?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    make_folder_of(to)?;
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {}", from.display()))
}

fn make_folder_of(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else {
            copy(&entry.path(), &to)?;
        }
    }
    Ok(())
}
