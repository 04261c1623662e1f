//! The second drive: what was built, laid out as a package installs it, and the checks
//! with what they need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::root::file_system;
use crate::{command, parts, workspace};

/// Programs of the package, and where it has them.
const INSTALLED: [(&str, &str); 5] = [
    ("edgekeep", "usr/bin"),
    ("edgekeep-keyd", "usr/libexec/edgekeep"),
    ("edgekeep-identityd", "usr/libexec/edgekeep"),
    ("edgekeep-moduled", "usr/libexec/edgekeep"),
    ("edgekeep-agent", "usr/libexec/edgekeep"),
];
/// Folders of `packaging/`, and where the package has what is in them.
const SETTINGS: [(&str, &str); 4] = [
    ("systemd", "usr/lib/systemd/system"),
    ("sysusers.d", "usr/lib/sysusers.d"),
    ("tmpfiles.d", "usr/lib/tmpfiles.d"),
    ("polkit-1/rules.d", "usr/share/polkit-1/rules.d"),
];
/// Programs of the checks.
const FOR_CHECKS: [&str; 3] = ["edgekeep-sim", "calls", "intruder"];

/// Makes the drive's image in `folder`.
pub(super) fn make(programs: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let tree = folder.join("payload");
    let install = tree.join("install");
    for (program, place) in INSTALLED {
        copy_stripped(&programs.join(program), &install.join(place))?;
    }
    for (from, place) in SETTINGS {
        let from = workspace::folder().join("packaging").join(from);
        let entries =
            fs::read_dir(&from).with_context(|| format!("cannot read {}", from.display()))?;
        let place = install.join(place);
        fs::create_dir_all(&place)?;
        for entry in entries {
            let entry = entry?;
            fs::copy(entry.path(), place.join(entry.file_name()))?;
        }
    }
    for program in FOR_CHECKS {
        copy_stripped(&programs.join(program), &tree.join("bin"))?;
    }
    copy_stripped(&programs.join("device-checks"), &tree)?;
    let image = folder.join("payload.img");
    file_system(&tree, &image, "512M", &folder.join("mke2fs.log"))?;
    Ok(image)
}

/// Copies a program without what only a debugger reads.
fn copy_stripped(program: &Path, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let place = folder.join(program.file_name().unwrap_or_default());
    if parts::find("strip").is_none() {
        return fs::copy(program, &place)
            .map(drop)
            .with_context(|| format!("cannot copy {}", program.display()));
    }
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&place).arg(program);
    command::output(strip).map(drop)
}
