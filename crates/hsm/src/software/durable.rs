//! Files that are there as a whole or not at all, whatever moment the power fails at:
//! written beside their place, synced, renamed, and the folder synced.
//!
//! [`point`] stands before and after each step that reaches the disk. In the tests it
//! ends the process at the one that was asked for; in what is delivered it is nothing.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

use edgekeep_base::durable::{self, Until};
use edgekeep_base::file::{self, FileFault, Rules};

use super::store::StoreError;

#[cfg(test)]
pub(crate) use super::crash::point;

#[cfg(not(test))]
pub(crate) fn point() {}

/// Puts a file with this content at `path`, over what is there, so that after a crash one
/// or the other is there.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let give = |file: &File| give_to_owner_of_folder(file, path);
    durable::replace_by_steps(path, content, 0o600, Until::OnDisk, give, point)
        .map_err(|error| failed(error.step, path)(error.source))
}

/// The content of the place where a key file may be.
pub(crate) enum KeyFile {
    /// Nothing.
    Absent,
    /// A file that is too long to be a key file.
    TooLong,
    /// A file. Its content is encrypted, or bound to a TPM.
    Content(Vec<u8>),
}

/// Reads a key file of at most `limit` bytes, whatever stands in its place.
pub(crate) fn read_key_file(path: &Path, limit: u64) -> Result<KeyFile, StoreError> {
    match file::read(path, Rules::own(limit)) {
        Ok(content) => Ok(KeyFile::Content(content)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(KeyFile::Absent),
        Err(source) => match FileFault::of(&source) {
            Some(FileFault::TooLong { .. }) => Ok(KeyFile::TooLong),
            _ => Err(failed("read", path)(source)),
        },
    }
}

/// Removes a file for good; whether there was one.
pub(crate) fn remove(path: &Path) -> Result<bool, StoreError> {
    point();
    match fs::remove_file(path) {
        Ok(()) => {
            point();
            sync_folder_of(path)?;
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(source) => Err(failed("remove", path)(source)),
    }
}

/// Gives a file to the owner of its folder, so that the daemon can use what root writes
/// there.
pub(crate) fn give_to_owner_of_folder(file: &File, path: &Path) -> io::Result<()> {
    let folder = fs::metadata(path.parent().unwrap_or(Path::new("/")))?;
    if folder.uid() == file.metadata()?.uid() {
        return Ok(());
    }
    fchown(file, Some(folder.uid()), Some(folder.gid()))
}

/// Renames a damaged file to the first free name.
pub(crate) fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let mut number = 1_u32;
    let target = loop {
        let mut target = path.as_os_str().to_owned();
        target.push(format!(".corrupt-{number}"));
        let target = PathBuf::from(target);
        match fs::symlink_metadata(&target) {
            Ok(_) => number += 1,
            Err(error) if error.kind() == ErrorKind::NotFound => break target,
            Err(source) => return Err(failed("look at", &target)(source)),
        }
    };
    fs::rename(path, &target).map_err(failed("set aside", path))?;
    sync_folder_of(path)?;
    Ok(target)
}

/// Makes a folder for nobody else. Its parents get the usual mode: other daemons have
/// folders beside it.
pub(crate) fn make_folder(path: &Path) -> Result<(), StoreError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("make the folder", parent))?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(source) if source.kind() != ErrorKind::AlreadyExists => {
            Err(failed("make the folder", path)(source))
        }
        _ => Ok(()),
    }
}

/// Removes what writes that were cut off left in `folder`.
pub(crate) fn remove_leftovers(folder: &Path) -> Result<(), StoreError> {
    for name in names(folder)?.iter().filter(|name| name.ends_with(".tmp")) {
        let path = folder.join(name);
        fs::remove_file(&path).map_err(failed("remove", &path))?;
    }
    Ok(())
}

/// Names in a folder. Names that are not text are none of ours and are left out.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, StoreError> {
    let entries = fs::read_dir(folder).map_err(failed("list", folder))?;
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
    names.filter_map(Result::transpose).collect::<io::Result<_>>().map_err(failed("list", folder))
}

pub(crate) fn sync_folder_of(path: &Path) -> Result<(), StoreError> {
    durable::sync_folder_of(path).map_err(failed("sync the folder of", path))?;
    point();
    Ok(())
}

pub(crate) fn failed(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            StoreError::NoRoom { action, path, source }
        }
        _ => StoreError::Io { action, path, source },
    }
}
