//! The second drive: the package of what was built, and the checks with what they need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::root::file_system;
use crate::{command, package, parts};

/// Programs of the checks.
const FOR_CHECKS: [&str; 3] = ["edgekeep-sim", "calls", "intruder"];

/// Makes the drive's image in `folder`.
pub(super) fn make(programs: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let tree = folder.join("payload");
    let device = package::for_now(programs)?;
    fs::create_dir_all(&tree).with_context(|| format!("cannot make {}", tree.display()))?;
    fs::copy(&device, tree.join("edgekeep.deb"))
        .with_context(|| format!("cannot copy {}", device.display()))?;
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
