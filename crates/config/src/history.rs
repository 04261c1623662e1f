//! The configuration that was applied last, and the one before: so that the way back is
//! one command.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use edgekeep_base::file::{self, Rules};
use edgekeep_core::layout::Root;

use crate::apply::{ApplyError, Ownership, write_atomic};
use crate::document::MAX_BYTES;

/// Folder of the two, beside the configuration. Each may hold keys, so it is closed.
const FOLDER: &str = "applied";
const CURRENT: &str = "current.toml";
const PREVIOUS: &str = "previous.toml";

fn place(root: &Root, name: &str) -> PathBuf {
    root.config_file().with_file_name(FOLDER).join(name)
}

fn kept(root: &Root, name: &str) -> io::Result<Option<String>> {
    match file::read_text(&place(root, name), Rules::own(MAX_BYTES as u64)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Keeps `text`, which was applied, and the text that was applied before it.
pub(crate) fn keep(root: &Root, text: &str) -> Result<(), ApplyError> {
    // One that cannot be read is replaced: it is a convenience, not state.
    let current = kept(root, CURRENT).ok().flatten();
    if current.as_deref() == Some(text) {
        return Ok(());
    }
    let folder = root.config_file().with_file_name(FOLDER);
    if !folder.exists() {
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|source| ApplyError::File {
            action: "make",
            path: folder.clone(),
            source,
        })?;
    }
    let own = Ownership::alone(rustix::process::geteuid().as_raw());
    if let Some(current) = current {
        write_atomic(&place(root, PREVIOUS), current.as_bytes(), own)?;
    }
    write_atomic(&place(root, CURRENT), text.as_bytes(), own)
}

/// The configuration that was in force before the present one; none if there was none.
///
/// # Errors
/// If it is there and cannot be read.
pub fn previous_config(root: &Root) -> io::Result<Option<String>> {
    kept(root, PREVIOUS)
}
