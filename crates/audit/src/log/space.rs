//! Room on the disk that the log keeps for itself, so that a disk that others have filled
//! does not stop the keys.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use edgekeep_base::error::causes;

/// Name of the file that takes the room.
const NAME: &str = "reserve";
/// Pause between attempts to take the room back.
const RETRY: Duration = Duration::from_secs(10);

/// A file of zeros that is removed when the room is needed.
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
    held: bool,
    tried: Option<Instant>,
}

impl Reserve {
    pub(super) fn new(folder: &Path, bytes: u64) -> Self {
        let path = folder.join(NAME);
        let held = fs::metadata(&path).is_ok_and(|found| found.len() == bytes);
        Self { path, bytes, held, tried: None }
    }

    /// Takes the room, if it is not held and was not tried to be just now.
    pub(super) fn hold(&mut self, now: Instant) {
        if self.held || self.tried.is_some_and(|tried| now < tried + RETRY) {
            return;
        }
        let first = self.tried.replace(now).is_none();
        match self.take() {
            Ok(()) => self.held = true,
            Err(error) => {
                let _ = fs::remove_file(&self.path);
                if first {
                    tracing::warn!(%error, "the disk has no room to spare for the audit log");
                }
            }
        }
    }

    fn take(&self) -> io::Result<()> {
        // Written out, since a file with holes takes no room.
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&self.path)?;
        let zeros = [0; 64 << 10];
        let mut left = self.bytes;
        while left > 0 {
            let some = left.min(zeros.len() as u64);
            file.write_all(zeros.get(..usize::try_from(some).unwrap_or(0)).unwrap_or(&zeros))?;
            left -= some;
        }
        file.sync_all()
    }

    /// Returns true if the room is held.
    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    /// Gives the room up; `false` if there was none.
    pub(super) fn release(&mut self, now: Instant) -> bool {
        self.tried = Some(now);
        std::mem::take(&mut self.held) && fs::remove_file(&self.path).is_ok()
    }

    /// Takes it back at the next occasion.
    pub(super) fn want_back(&mut self) {
        self.tried = None;
    }
}

/// Returns true if an error, or one of its causes, is a full disk or a used-up quota.
pub(super) fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).find_map(|cause| cause.downcast_ref::<io::Error>()).is_some_and(|error| {
        matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_is_taken_given_up_and_taken_back_after_a_while() {
        let temp = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::new(temp.path(), 100_000);
        let start = Instant::now();
        assert!(!reserve.release(start));
        reserve.want_back();
        reserve.hold(start);
        assert!(reserve.is_held());
        assert_eq!(fs::metadata(temp.path().join(NAME)).unwrap().len(), 100_000);
        assert!(Reserve::new(temp.path(), 100_000).is_held());
        assert!(reserve.release(start) && !temp.path().join(NAME).exists());
        reserve.hold(start);
        assert!(!reserve.is_held(), "not at once, for somebody else fills the disk");
        reserve.hold(start + RETRY);
        assert!(reserve.is_held());
    }

    #[test]
    fn a_full_disk_is_found_behind_other_errors() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] io::Error);
        assert!(is_full(&Outer(ErrorKind::StorageFull.into())));
        assert!(!is_full(&Outer(ErrorKind::PermissionDenied.into())));
    }
}
