//! The manifest file, read again whenever it changed.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use edgekeep_base::file::{self, Rules};
use edgekeep_core::deployment::{Deployment, DeploymentError, MANIFEST_LIMIT};

/// Reason for not applying the manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is no file.
    #[error("there is no manifest at {}", path.display())]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// The manifest is refused.
    #[error(transparent)]
    Refused(#[from] DeploymentError),
}

impl ManifestError {
    /// The code that `lastDesiredStatus` reports for this error.
    #[must_use]
    pub const fn code(&self) -> u16 {
        match self {
            Self::Absent { .. } => 417,
            Self::Unreadable { .. } => 400,
            Self::Refused(error) => error.code(),
        }
    }
}

/// The manifest file and what it looked like when it was read.
#[derive(Debug)]
pub struct ManifestFile {
    path: PathBuf,
    parent: Option<String>,
    seen: Option<Signature>,
}

/// Equal signatures: the file was not written to in between.
#[derive(Debug, PartialEq, Eq)]
enum Signature {
    Absent,
    Present { device: u64, inode: u64, size: u64, changed: (i64, i64), modified: (i64, i64) },
}

impl ManifestFile {
    /// The file at `path`; `parent` is the host that `$upstream` stands for.
    #[must_use]
    pub fn new(path: &Path, parent: Option<&str>) -> Self {
        Self { path: path.to_owned(), parent: parent.map(str::to_owned), seen: None }
    }

    /// The manifest and its text if the file is new or changed since the last call,
    /// `None` if it is as it was.
    ///
    /// # Errors
    /// If the file is new or changed, and cannot be read or is refused.
    pub fn poll(&mut self) -> Result<Option<(String, Deployment)>, ManifestError> {
        let unreadable = |source| ManifestError::Unreadable { path: self.path.clone(), source };
        let signature = match std::fs::metadata(&self.path) {
            Ok(metadata) => signature(&metadata),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Signature::Absent,
            // Not remembered: tried again each time.
            Err(error) => return Err(unreadable(error)),
        };
        if self.seen.as_ref() == Some(&signature) {
            return Ok(None);
        }
        let size = match &signature {
            Signature::Absent => None,
            Signature::Present { size, .. } => Some(*size),
        };
        self.seen = Some(signature);
        let size = size.ok_or_else(|| ManifestError::Absent { path: self.path.clone() })?;
        if usize::try_from(size).is_ok_and(|size| size > MANIFEST_LIMIT) {
            return Err(DeploymentError::TooLarge.into());
        }
        let read = file::read_text(&self.path, Rules::named(MANIFEST_LIMIT as u64));
        let text =
            read.map_err(|source| ManifestError::Unreadable { path: self.path.clone(), source })?;
        let deployment = Deployment::parse(&text, self.parent.as_deref())?;
        Ok(Some((text, deployment)))
    }
}

fn signature(metadata: &Metadata) -> Signature {
    Signature::Present {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"schemaVersion":"1.1","runtime":{"type":"docker"},"systemModules":{}}"#;

    #[test]
    fn a_file_is_read_once_for_each_change_and_absence_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manifest.json");
        let mut file = ManifestFile::new(&path, None);
        assert_eq!(file.poll().expect_err("absent").code(), 417);
        assert!(file.poll().unwrap().is_none());
        std::fs::write(&path, GOOD).unwrap();
        assert!(file.poll().unwrap().is_some());
        assert!(file.poll().unwrap().is_none());
        std::fs::write(&path, "{").unwrap();
        assert_eq!(file.poll().expect_err("broken").code(), 400);
        assert!(file.poll().unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = ManifestFile::new(folder.path(), None).poll().expect_err("a folder");
        assert!(error.to_string().starts_with("cannot read /"), "{error}");
        let path = folder.path().join("large");
        let large = std::fs::File::create(&path).unwrap();
        large.set_len(MANIFEST_LIMIT as u64 + 1).unwrap();
        assert!(
            ManifestFile::new(&path, None)
                .poll()
                .expect_err("large")
                .to_string()
                .contains("more than")
        );
    }
}
