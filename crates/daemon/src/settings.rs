//! Reading a daemon's settings file.

use std::io;
use std::path::{Path, PathBuf};

use edgekeep_base::file::{self, Rules};
use serde::de::DeserializeOwned;

/// The status a daemon exits with when its settings are not usable, that of existing
/// services: it tells the service manager that starting again without another
/// configuration cannot help.
pub const BAD_SETTINGS: u8 = 153;

/// Largest settings file that is read, in bytes. What `config apply` writes comes from a
/// file of at most 1 MiB and from files that are named in it.
const LIMIT: u64 = 16 << 20;

/// The error of reading settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file system refused.
    #[error("cannot read {}; `edgekeep config apply` writes it anew", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The file is not what `config apply` of this version writes.
    #[error("{} does not fit this version; run `edgekeep config apply` again", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The fault of the file's content.
        #[source]
        source: serde_json::Error,
    },
}

/// Reads the settings at `path`; `None` if there is no file yet.
///
/// # Errors
/// See [`SettingsError`].
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SettingsError> {
    match file::read(path, Rules::own(LIMIT)) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| SettingsError::Content { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SettingsError::Read { path: path.to_owned(), source }),
    }
}
