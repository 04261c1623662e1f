//! The files of the logs: one a log, by its number, of which the newest ones are kept.

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use edgekeep_base::file::{self, Rules};
use edgekeep_core::integrity::SIZE_LIMIT;
use edgekeep_daemon::store::{StoreError, private_folder, sweep_temporary, write_atomic};

/// Logs that are kept, the newest one included.
const KEPT: usize = 4;
const ENDING: &str = "cel";

pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        private_folder(path)?;
        sweep_temporary(path);
        Ok(Self(path.to_owned()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    fn file(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number:010}.{ENDING}"))
    }

    fn fault(&self, step: &'static str, number: u64) -> impl Fn(io::Error) -> StoreError {
        let path = self.file(number);
        move |source| StoreError::Io { step, path: path.clone(), source }
    }

    /// The numbers of the logs that are there, oldest first.
    pub(super) fn numbers(&self) -> Result<Vec<u64>, StoreError> {
        let fault = |source| StoreError::Io { step: "read", path: self.0.clone(), source };
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(fault)? {
            let path = entry.map_err(fault)?.path();
            let is_log = path.extension().is_some_and(|ending| ending == ENDING);
            let stem = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| is_log);
            numbers.extend(stem.and_then(|stem| stem.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    pub(super) fn read(&self, number: u64) -> Result<Vec<u8>, StoreError> {
        let rules = Rules::own(2 * SIZE_LIMIT as u64).without_links();
        file::read(&self.file(number), rules).map_err(self.fault("read", number))
    }

    /// Removes what was written of a record that was never whole.
    pub(super) fn truncate(&self, number: u64, len: usize) -> Result<(), StoreError> {
        let cut = || {
            let file = file::open_to_append(&self.file(number), 0o600)?;
            file.set_len(len as u64)?;
            file.sync_all()
        };
        cut().map_err(self.fault("cut", number))
    }

    /// Writes the first record of a log, and drops logs that are older than those that
    /// are kept.
    pub(super) fn begin(&self, number: u64, record: &[u8]) -> Result<(), StoreError> {
        write_atomic(&self.file(number), record, 0o600)?;
        let numbers = self.numbers()?;
        for old in numbers.iter().rev().skip(KEPT) {
            match fs::remove_file(self.file(*old)) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(self.fault("remove", *old)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds a record to a log of `len` bytes, and returns once it is on the disk. If that
    /// fails the log is as before.
    pub(super) fn append(&self, number: u64, record: &[u8], len: usize) -> io::Result<()> {
        let mut file = file::open_to_append(&self.file(number), 0o600)?;
        if file.metadata()?.len() != len as u64 {
            return Err(io::Error::other("somebody else changed the length of the log"));
        }
        file.write_all(record).and_then(|()| file.sync_data()).inspect_err(|_| {
            // Else half a record would stand before the next one.
            let _ = file.set_len(len as u64);
        })
    }
}
