//! The state of a takeover, on the disk.

use anyhow::Context as _;
use edgekeep_core::layout::Root;
use edgekeep_daemon::store::{StateFile, private_folder};
use serde::{Deserialize, Serialize};

/// The takeover of this device, as far as it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    pub(super) stage: Stage,
    /// Time of its begin, RFC 3339.
    pub(super) at: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stage {
    /// Some of the files may be written. Running the command again completes it.
    Begun,
    /// The device is taken over.
    Done,
    /// The way back has begun; what was made is moved into folders of this name.
    Undoing {
        /// Name of the folders.
        aside: String,
    },
}

/// Name of the file, in the folder above the daemons' state.
pub(super) const NAME: &str = "migration.json";

fn file(root: &Root) -> StateFile<Journal> {
    StateFile::new(root.path().join("var/lib/edgekeep").join(NAME), "migration", 1)
}

pub(super) fn read(root: &Root) -> anyhow::Result<Option<Journal>> {
    file(root).load().context("cannot tell how far the takeover has come; run as root (sudo)")
}

pub(super) fn write(root: &Root, journal: &Journal) -> anyhow::Result<()> {
    let file = file(root);
    if let Some(folder) = file.path().parent()
        && !folder.exists()
    {
        private_folder(folder)?;
        // The daemons' own folders are below; each is closed by itself.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder, open)?;
    }
    file.save(journal).context("cannot note how far the takeover has come; run as root (sudo)")
}

pub(super) fn remove(root: &Root) -> anyhow::Result<()> {
    let file = file(root);
    std::fs::remove_file(file.path())
        .with_context(|| format!("cannot remove {}", file.path().display()))
}
