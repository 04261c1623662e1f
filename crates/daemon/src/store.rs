//! State files that survive kill -9, a full disk and a power cut.
//!
//! A file is a line of JSON with the kind, the format's version and the SHA-256 of what
//! follows, then the state as JSON. It is replaced by temp file, fsync, rename and fsync
//! of the folder. A file that cannot be read is set aside under another name and
//! reported; it is never taken for an empty one.

use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use edgekeep_base::durable::{self, ReplaceError, Until};
use edgekeep_base::file::{self, FileFault, Rules};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::layout::StateForm;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest state file that is read, in bytes: some ten times what the largest one, of a
/// device full of modules, can have.
const LIMIT: u64 = 32 << 20;

/// The error of reading or writing a state file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {step} {}", path.display())]
    Io {
        /// The step that failed, in words.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The file system, or the share of it that this user may have, is full.
    #[error(
        "no room to write {}: free space on its file system (or raise the quota) and try again; nothing was changed",
        path.display()
    )]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file's content is damaged; it was set aside.
    #[error("{} is damaged ({what}); it was moved to {}; restore it from a backup, or remove that copy to start anew", path.display(), aside.display())]
    Damaged {
        /// The path that the file had.
        path: PathBuf,
        /// The path of the file now.
        aside: PathBuf,
        /// The damage, in words.
        what: String,
    },
    /// The file was written by a newer version.
    #[error("{} has format {found}, this version reads up to {known}; upgrade edgekeep", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// The state cannot be written as JSON.
    #[error("cannot encode the state of {}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// The error of encoding.
        #[source]
        source: serde_json::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Header {
    edgekeep: String,
    version: u32,
    sha256: Sha256Digest,
}

/// One state file of type `T`.
#[derive(Debug, Clone)]
pub struct StateFile<T> {
    path: PathBuf,
    kind: &'static str,
    version: u32,
    marker: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> StateFile<T> {
    /// The file at `path`, which holds a `kind` in format `version`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, kind: &'static str, version: u32) -> Self {
        Self { path: path.into(), kind, version, marker: PhantomData }
    }

    /// The file of this form in a daemon's state folder.
    #[must_use]
    pub fn of(folder: &Path, form: StateForm) -> Self {
        Self::new(folder.join(form.file), form.kind, form.version)
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the state; `None` if there is no file.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged (it has then been set aside), or is of a
    /// newer version.
    pub fn load(&self) -> Result<Option<T>, StoreError> {
        let read = match file::read(&self.path, Rules::own(LIMIT)) {
            Ok(bytes) => self.decode(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => match FileFault::of(&source) {
                Some(fault @ FileFault::TooLong { .. }) => Err(Fault::Damaged(fault.to_string())),
                _ => return Err(StoreError::Io { step: "read", path: self.path.clone(), source }),
            },
        };
        match read {
            Ok(state) => Ok(Some(state)),
            Err(Fault::Newer(found)) => {
                Err(StoreError::Newer { path: self.path.clone(), found, known: self.version })
            }
            Err(Fault::Damaged(what)) => {
                let aside = set_aside(&self.path)?;
                Err(StoreError::Damaged { path: self.path.clone(), aside, what })
            }
        }
    }

    /// Writes the state durably, with mode 0600.
    ///
    /// # Errors
    /// If the file cannot be written; the old one is then still in place.
    pub fn save(&self, state: &T) -> Result<(), StoreError> {
        let body = serde_json::to_vec(state)
            .map_err(|source| StoreError::Encode { path: self.path.clone(), source })?;
        let header =
            Header { edgekeep: self.kind.to_owned(), version: self.version, sha256: sha256(&body) };
        let mut bytes = serde_json::to_vec(&header)
            .map_err(|source| StoreError::Encode { path: self.path.clone(), source })?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&body);
        write_atomic(&self.path, &bytes, 0o600)
    }

    fn decode(&self, bytes: &[u8]) -> Result<T, Fault> {
        let damaged = |what: &str| Fault::Damaged(what.to_owned());
        let end = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or_else(|| damaged("no header line"))?;
        let (header, body) = (&bytes[..end], &bytes[end + 1..]);
        let header: Header =
            serde_json::from_slice(header).map_err(|_| damaged("unreadable header"))?;
        if header.edgekeep != self.kind {
            return Err(Fault::Damaged(format!(
                "it holds a {:?}, not a {:?}",
                header.edgekeep, self.kind
            )));
        }
        if header.version > self.version {
            return Err(Fault::Newer(header.version));
        }
        if header.sha256 != sha256(body) {
            return Err(damaged("checksum does not match"));
        }
        serde_json::from_slice(body).map_err(|error| Fault::Damaged(error.to_string()))
    }
}

enum Fault {
    Newer(u32),
    Damaged(String),
}

/// SHA-256 of some bytes.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Sha256Digest {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut array = [0; 32];
    array.copy_from_slice(digest.as_ref());
    Sha256Digest::new(array)
}

/// Makes a folder and its parents, the folder itself with mode 0700.
///
/// # Errors
/// If it cannot be made.
pub fn private_folder(path: &Path) -> Result<(), StoreError> {
    let fault = |source| StoreError::Io { step: "make the folder", path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(fault)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(fault(error)),
        _ => Ok(()),
    }
}

/// Replaces a file durably: whoever reads sees the old bytes or the new ones, also after
/// a power cut.
///
/// # Errors
/// If any step fails; the old file is then still in place.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    write(path, bytes, mode, Until::OnDisk)
}

/// Replaces a file so that readers see the old bytes or the new ones, without waiting for
/// the disk. For what can be made again: after a power cut the file may be the old one or
/// be gone.
///
/// # Errors
/// If any step fails; the old file is then still in place.
pub fn write_replaceable(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    write(path, bytes, mode, Until::Visible)
}

fn write(path: &Path, bytes: &[u8], mode: u32, until: Until) -> Result<(), StoreError> {
    durable::replace(path, bytes, mode, until, |_| Ok(())).map_err(
        |ReplaceError { step, source }| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    StoreError::NoRoom { path, source }
                }
                _ => StoreError::Io { step, path, source },
            }
        },
    )
}

/// Removes temporary files that a killed daemon left in `folder`.
pub fn sweep_temporary(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "tmp") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Renames a damaged file to the first free `<name>.damaged-<n>`.
///
/// # Errors
/// If it cannot be renamed.
pub fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    for number in 1..u32::MAX {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".damaged-{number}"));
        let aside = path.with_file_name(name);
        if aside.symlink_metadata().is_err() {
            return std::fs::rename(path, &aside).map(|()| aside).map_err(|source| {
                StoreError::Io { step: "set aside", path: path.to_owned(), source }
            });
        }
    }
    let source = io::Error::other("too many damaged copies");
    Err(StoreError::Io { step: "set aside", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(folder: &Path) -> StateFile<Vec<u32>> {
        StateFile::new(folder.join("state.json"), "numbers", 2)
    }

    #[test]
    fn what_was_saved_is_loaded_and_no_temporary_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        assert_eq!(file.load().unwrap(), None);
        file.save(&vec![1, 2]).unwrap();
        file.save(&vec![3]).unwrap();
        assert_eq!(file.load().unwrap(), Some(vec![3]));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_named_and_the_next_start_can_save() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        file.save(&vec![1, 2]).unwrap();
        let mut bytes = std::fs::read(file.path()).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(file.path(), &bytes).unwrap();
        let Err(StoreError::Damaged { aside, what, .. }) = file.load() else {
            panic!("not noticed")
        };
        assert_eq!(what, "checksum does not match");
        assert_eq!(std::fs::read(aside).unwrap(), bytes, "nothing is lost");
        assert_eq!(file.load().unwrap(), None);
        file.save(&vec![4]).unwrap();
        assert_eq!(file.load().unwrap(), Some(vec![4]));
    }

    #[test]
    fn a_file_of_a_newer_version_is_left_in_place() {
        let folder = tempfile::tempdir().unwrap();
        StateFile::<Vec<u32>>::new(folder.path().join("state.json"), "numbers", 3)
            .save(&vec![1])
            .unwrap();
        let older = file(folder.path());
        assert!(matches!(older.load(), Err(StoreError::Newer { found: 3, known: 2, .. })));
        assert!(older.path().exists());
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in-the-way");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("content"), b"x").unwrap();
        assert!(write_atomic(&path, b"new", 0o600).is_err());
        assert!(path.join("content").exists());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }

    /// Each of these made a daemon wait for ever, or read without end.
    #[test]
    fn what_is_no_file_is_an_error_that_says_so_and_stays_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, file.path(), rustix::fs::FileType::Fifo, mode, 0)
            .unwrap();
        let told = |error: StoreError| match error {
            StoreError::Io { source, .. } => FileFault::of(&source),
            other => panic!("{other:?}"),
        };
        assert_eq!(told(file.load().unwrap_err()), Some(FileFault::NotAFile { kind: "a FIFO" }));
        std::fs::remove_file(file.path()).unwrap();
        std::os::unix::fs::symlink("/dev/zero", file.path()).unwrap();
        assert_eq!(told(file.load().unwrap_err()), Some(FileFault::NotAFile { kind: "a device" }));
        std::fs::remove_file(file.path()).unwrap();
        std::fs::File::create(file.path()).unwrap().set_len(2 << 30).unwrap();
        let error = file.load().unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains("longer than"), "{error}");
        file.save(&vec![4]).unwrap();
        assert_eq!(file.load().unwrap(), Some(vec![4]));
    }

    #[test]
    fn state_that_others_may_have_written_is_not_believed_and_not_moved() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        file.save(&vec![1]).unwrap();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set(file.path(), 0o666);
        set(folder.path(), 0o700);
        assert_eq!(file.load().unwrap(), Some(vec![1]), "behind a closed folder nobody could");
        set(folder.path(), 0o755);
        let StoreError::Io { source, .. } = file.load().unwrap_err() else { panic!("not refused") };
        assert_eq!(FileFault::of(&source), Some(FileFault::Writable { mode: 0o666 }));
        assert!(file.path().exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_truncation_is_taken_for_a_state(cut in 0usize..60) {
            let folder = tempfile::tempdir().unwrap();
            let file = file(folder.path());
            file.save(&vec![1, 2, 3]).unwrap();
            let bytes = std::fs::read(file.path()).unwrap();
            let cut = bytes.len().saturating_sub(cut + 1);
            std::fs::write(file.path(), &bytes[..cut]).unwrap();
            prop_assert!(file.load().is_err());
        }
    }
}
