//! Digests of executables, cached until the file changes.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use edgekeep_core::attestation::ExecutableFile;
use edgekeep_core::digest::Sha256Digest;

use super::EvidenceError;
use super::proc_dir::executable_file;

/// Larger executables are not measured: hashing one takes about 0.7 s on the slowest machine this was tried on.
pub const MAX_EXECUTABLE_BYTES: u64 = 1 << 30;

/// Up to this size a file is hashed where the request runs (about 0.2 ms); larger ones go to a thread of their own.
const INLINE_BYTES: u64 = 256 * 1024;

/// Digests that are remembered. More programs than this rarely act as modules on one device.
const CACHED_DIGESTS: usize = 1024;

/// The kernel's file times advance in ticks: a file changed within the tick of its last change looks unchanged. A digest
/// taken this soon after the change is right, but is not remembered.
const SETTLED: Duration = Duration::from_secs(2);

/// A map that forgets what was used longest ago.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    limit: usize,
    clock: u64,
    entries: HashMap<K, (V, u64)>,
}

impl<K: Eq + Hash + Clone, V: Copy> Recent<K, V> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, clock: 0, entries: HashMap::new() }
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        self.clock += 1;
        let (value, used) = self.entries.get_mut(key)?;
        *used = self.clock;
        Some(*value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.entries.len() >= self.limit && !self.entries.contains_key(&key) {
            // A scan of a bounded map, next to a hash over a whole file.
            let oldest = self.entries.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.entries.remove(&oldest);
            }
        }
        self.clock += 1;
        self.entries.insert(key, (value, self.clock));
    }
}

/// Remembers the digests of files by device, inode, size and change time.
#[derive(Debug, Clone)]
pub struct DigestCache(Arc<Mutex<Recent<ExecutableFile, Sha256Digest>>>);

impl Default for DigestCache {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Recent::new(CACHED_DIGESTS))))
    }
}

impl DigestCache {
    /// The digest of an open file that is known to be `file`.
    ///
    /// # Errors
    /// [`EvidenceError::Changed`] if it is another file or changes meanwhile; too large; unreadable.
    pub async fn digest(&self, file: ExecutableFile, opened: OwnedFd) -> Result<Sha256Digest, EvidenceError> {
        if let Some(known) = self.known(&file) {
            return Ok(known);
        }
        if file.size <= INLINE_BYTES {
            return self.digest_blocking(file, opened);
        }
        let cache = self.clone();
        let hashed = tokio::task::spawn_blocking(move || cache.digest_blocking(file, opened)).await;
        // The task only ends early when the daemon does.
        hashed.unwrap_or(Err(EvidenceError::Gone))
    }

    /// As [`Self::digest`], on the calling thread.
    pub(super) fn digest_blocking(&self, file: ExecutableFile, opened: OwnedFd) -> Result<Sha256Digest, EvidenceError> {
        if let Some(known) = self.known(&file) {
            return Ok(known);
        }
        if file.size > MAX_EXECUTABLE_BYTES {
            return Err(EvidenceError::TooLarge);
        }
        let unchanged = |opened: &File| {
            rustix::fs::fstat(opened).map_err(EvidenceError::reading("exe")).map(|stat| executable_file(&stat) == file)
        };
        let mut opened = File::from(opened);
        if !unchanged(&opened)? {
            return Err(EvidenceError::Changed);
        }
        let digest = sha256(&mut opened).map_err(|source| EvidenceError::Unreadable { what: "exe", source })?;
        if !unchanged(&opened)? {
            return Err(EvidenceError::Changed);
        }
        if is_settled(&file, SystemTime::now()) {
            self.lock().insert(file, digest);
        }
        Ok(digest)
    }

    fn known(&self, file: &ExecutableFile) -> Option<Sha256Digest> {
        self.lock().get(file)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Recent<ExecutableFile, Sha256Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_settled(file: &ExecutableFile, now: SystemTime) -> bool {
    let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else { return false };
    let limit = i64::try_from(now.saturating_sub(SETTLED).as_nanos()).unwrap_or(i64::MAX);
    file.ctime_ns < limit
}

/// Hashes a file from where it stands to its end, at most [`MAX_EXECUTABLE_BYTES`] of it.
fn sha256(file: &mut File) -> std::io::Result<Sha256Digest> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 128 * 1024];
    let mut file = file.take(MAX_EXECUTABLE_BYTES);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(finish(context)),
            Ok(length) => context.update(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The value of a finished SHA-256 computation.
pub(crate) fn finish(context: digest::Context) -> Sha256Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Sha256Digest::new(bytes)
}

/// SHA-256 of bytes in memory.
pub(crate) fn sha256_of(bytes: &[u8]) -> Sha256Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(bytes);
    finish(context)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn opened(path: &std::path::Path) -> (ExecutableFile, OwnedFd) {
        let file = File::open(path).expect("exists");
        (executable_file(&rustix::fs::fstat(&file).expect("open")), file.into())
    }

    #[test]
    fn the_digest_is_that_of_the_content_and_of_known_vectors() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("f");
        std::fs::write(&path, b"abc").expect("written");
        let (file, fd) = opened(&path);
        let digest = DigestCache::default().digest_blocking(file, fd).expect("readable");
        assert_eq!(digest.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(digest, sha256_of(b"abc"));
    }

    #[test]
    fn a_file_that_is_not_the_expected_one_is_refused() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("f");
        std::fs::write(&path, b"abc").expect("written");
        let (file, fd) = opened(&path);
        File::options().append(true).open(&path).expect("open").write_all(b"d").expect("written");
        let error = DigestCache::default().digest_blocking(file, fd).expect_err("changed");
        assert!(matches!(error, EvidenceError::Changed), "{error}");
    }

    #[test]
    fn a_file_changed_a_moment_ago_is_hashed_again_next_time() {
        let file = ExecutableFile { device: 1, inode: 1, size: 1, ctime_ns: 10_000_000_000 };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(!is_settled(&file, at(9)), "the clock was set back");
        assert!(!is_settled(&file, at(11)));
        assert!(is_settled(&file, at(13)));
    }

    #[test]
    fn the_cache_keeps_what_is_used_and_forgets_the_rest() {
        let mut recent = Recent::new(2);
        recent.insert('a', 1);
        recent.insert('b', 2);
        assert_eq!(recent.get(&'a'), Some(1));
        recent.insert('c', 3);
        assert_eq!((recent.get(&'a'), recent.get(&'b'), recent.get(&'c')), (Some(1), None, Some(3)));
    }
}
