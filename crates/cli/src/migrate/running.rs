//! Daemons that run on this device's root folder: nothing is taken over under their feet.

use std::path::Path;

use edgekeep_core::layout::{ROOT_VARIABLE, Root};

/// Programs, as the kernel shows them, which cuts names after 15 bytes.
const OURS: [&str; 3] = ["edgekeep-keyd", "edgekeep-identi", "edgekeep-module"];
/// Programs of the compatible packages. They know no root folder but `/`.
const THEIRS: [&str; 6] =
    ["aziot-edged", "aziot-identityd", "aziot-keyd", "aziot-certd", "aziot-tpmd", "aziotd"];

/// Refuses while one of the daemons runs.
///
/// # Errors
/// Daemons run: the error names them and the command that stops them.
pub(super) fn refuse(root: &Root) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(name) = std::fs::read_to_string(entry.path().join("comm")) else { continue };
        let name = name.trim();
        let theirs = THEIRS.contains(&name) && root.path() == Path::new("/");
        let ours = OURS.contains(&name) && is_of(&entry.path(), root);
        if theirs || ours {
            found.push(format!("{name} (process {})", entry.file_name().to_string_lossy()));
        }
    }
    anyhow::ensure!(
        found.is_empty(),
        "these daemons run: {}. Stop them, and run this again: systemctl stop 'aziot-*' 'edgekeep-*'",
        found.join(", ")
    );
    Ok(())
}

/// Returns true if a process of ours has this root folder.
fn is_of(process: &Path, root: &Root) -> bool {
    let environment = std::fs::read(process.join("environ")).unwrap_or_default();
    let prefix = format!("{ROOT_VARIABLE}=");
    let named = environment
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.strip_prefix(&prefix))
        .find(|folder| !folder.is_empty());
    Path::new(named.unwrap_or("/")) == root.path()
}
