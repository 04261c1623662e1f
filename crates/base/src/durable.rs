//! Replacing a file whole: written beside its place, synced, renamed, and the folder
//! synced.
//!
//! A reader sees the old content or the new one, also after a power cut at any moment.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The moment at which [`replace`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// [`replace`] returns when the new content is on the disk for good.
    OnDisk,
    /// [`replace`] returns when readers see the new content. After a power cut the file
    /// may have the old content, or be gone: for content that can be made again.
    Visible,
}

/// The step at which a replacement failed, and its cause. The old file is still in place.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} the file")]
pub struct ReplaceError {
    /// The step that failed, as a verb: "write", "sync the folder of".
    pub step: &'static str,
    /// The error of the operating system.
    #[source]
    pub source: io::Error,
}

/// Replaces the file at `path`. `prepare` sees the new file, empty, with these permission
/// bits: to give it another owner.
///
/// # Errors
/// If a step fails. Nothing is left beside the file then.
pub fn replace(
    path: &Path,
    content: &[u8],
    mode: u32,
    until: Until,
    prepare: impl FnOnce(&File) -> io::Result<()>,
) -> Result<(), ReplaceError> {
    replace_by_steps(path, content, mode, until, prepare, || {})
}

/// [`replace`], with `after_step` called after each step that changes the disk: for tests
/// that end the process there.
///
/// # Errors
/// As [`replace`].
pub fn replace_by_steps(
    path: &Path,
    content: &[u8],
    mode: u32,
    until: Until,
    prepare: impl FnOnce(&File) -> io::Result<()>,
    mut after_step: impl FnMut(),
) -> Result<(), ReplaceError> {
    let temporary = temporary_name(path);
    let attempt = || -> Result<(), (&'static str, io::Error)> {
        let created = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary);
        let mut file = created.map_err(|error| ("create a temporary file for", error))?;
        after_step();
        prepare(&file).map_err(|error| ("change the owner of", error))?;
        file.write_all(content).map_err(|error| ("write", error))?;
        after_step();
        if until == Until::OnDisk {
            file.sync_all().map_err(|error| ("sync", error))?;
            after_step();
        }
        drop(file);
        fs::rename(&temporary, path).map_err(|error| ("replace", error))?;
        after_step();
        if until == Until::OnDisk {
            sync_folder_of(path).map_err(|error| ("sync the folder of", error))?;
            after_step();
        }
        Ok(())
    };
    attempt().map_err(|(step, source)| {
        let _ = fs::remove_file(&temporary);
        ReplaceError { step, source }
    })
}

/// Makes names that were added to or taken from a file's folder last.
///
/// # Errors
/// If the folder cannot be opened or synced.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

/// `<name>.<pid>-<count>.tmp` beside the file: on the same file system, and no two
/// writers share one. All daemons leave files of this ending alone, or remove them at
/// their start.
fn temporary_name(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut name = OsString::from(path.file_name().unwrap_or_default());
    name.push(format!(".{}-{count}.tmp", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(folder: &Path) -> usize {
        fs::read_dir(folder).expect("folder").count()
    }

    #[test]
    fn a_replaced_file_has_the_new_content_and_mode_and_nothing_stays_beside_it() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("state");
        for until in [Until::OnDisk, Until::Visible] {
            fs::write(&path, "old").expect("written");
            replace(&path, b"new", 0o640, until, |_| Ok(())).expect("replaced");
            assert_eq!(fs::read(&path).expect("read"), b"new");
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
            assert_eq!(names(folder.path()), 1);
        }
    }

    #[test]
    fn a_step_that_fails_is_named_and_leaves_the_old_file_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("state");
        fs::write(&path, "old").expect("written");
        let refused = |_: &File| Err(io::Error::other("no such user"));
        let error = replace(&path, b"new", 0o600, Until::OnDisk, refused).expect_err("refused");
        assert_eq!(error.step, "change the owner of");
        assert_eq!(fs::read(&path).expect("read"), b"old");
        assert_eq!(names(folder.path()), 1);
        let in_the_way = folder.path().join("folder");
        fs::create_dir_all(in_the_way.join("full")).expect("made");
        let error =
            replace(&in_the_way, b"new", 0o600, Until::OnDisk, |_| Ok(())).expect_err("a folder");
        assert_eq!(error.step, "replace");
        assert_eq!(names(folder.path()), 2);
    }
}
