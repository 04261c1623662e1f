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
use edgekeep_core::attestation::backing::Lasting;
use edgekeep_core::digest::Sha256Digest;

use super::EvidenceError;
use super::backing::Mounted;
use super::proc_dir::executable_file;

/// Larger executables are not measured: hashing one takes about 0.7 s on the slowest
/// machine this was tried on.
pub const MAX_EXECUTABLE_BYTES: u64 = 1 << 30;

/// Digests that are remembered. More programs than this rarely act as modules on one
/// device.
const CACHED_DIGESTS: usize = 1024;

/// The kernel's file times advance in ticks: a file changed within the tick of its last
/// change looks unchanged. A digest taken this soon after the change is right, but is not
/// remembered.
const SETTLED: Duration = Duration::from_secs(2);

/// A map that forgets what was used longest ago.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    limit: usize,
    clock: u64,
    entries: HashMap<K, (V, u64)>,
}

impl<K: Eq + Hash + Clone, V: Clone> Recent<K, V> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, clock: 0, entries: HashMap::new() }
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        self.clock += 1;
        let (value, used) = self.entries.get_mut(key)?;
        *used = self.clock;
        Some(value.clone())
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.entries.remove(key);
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.entries.len() >= self.limit && !self.entries.contains_key(&key) {
            // A scan of a bounded map, next to a hash over a whole file.
            let oldest =
                self.entries.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.entries.remove(&oldest);
            }
        }
        self.clock += 1;
        self.entries.insert(key, (value, self.clock));
    }
}

/// Remembers the digests of files by device, inode, size, change time and mount. The
/// mount counts because a device's number can come back with another file system on it,
/// whose owner wrote its change times.
#[derive(Debug, Clone)]
pub(crate) struct DigestCache(Arc<Mutex<Recent<Mounted, Sha256Digest>>>);

impl Default for DigestCache {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Recent::new(CACHED_DIGESTS))))
    }
}

impl DigestCache {
    /// The digest of an open file that is known to be `mounted`. `lasting` says whether
    /// it may be remembered. Blocks for as long as reading takes.
    ///
    /// # Errors
    /// [`EvidenceError::Changed`] if it is another file or changes meanwhile; too large;
    /// unreadable.
    pub(super) fn digest(
        &self,
        mounted: Mounted,
        lasting: Lasting,
        opened: OwnedFd,
    ) -> Result<Sha256Digest, EvidenceError> {
        if let Some(known) = self.known(&mounted, lasting) {
            return Ok(known);
        }
        let (file, begun) = (mounted.file, SystemTime::now());
        if file.size > MAX_EXECUTABLE_BYTES {
            return Err(EvidenceError::TooLarge);
        }
        let unchanged = |opened: &File| {
            rustix::fs::fstat(opened)
                .map_err(EvidenceError::reading("exe"))
                .map(|stat| executable_file(&stat) == file)
        };
        let mut opened = File::from(opened);
        if !unchanged(&opened)? {
            return Err(EvidenceError::Changed);
        }
        let digest = sha256(&mut opened)
            .map_err(|source| EvidenceError::Unreadable { what: "exe", source })?;
        if !unchanged(&opened)? {
            return Err(EvidenceError::Changed);
        }
        let remember = match lasting {
            Lasting::ForNow => false,
            Lasting::UntilChanged => is_settled(&file, begun),
            Lasting::ForGood => true,
        };
        if remember {
            self.lock().insert(mounted, digest);
        }
        Ok(digest)
    }

    fn known(&self, mounted: &Mounted, lasting: Lasting) -> Option<Sha256Digest> {
        if lasting == Lasting::ForNow { None } else { self.lock().get(mounted) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Recent<Mounted, Sha256Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn is_settled(file: &ExecutableFile, now: SystemTime) -> bool {
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

    use edgekeep_core::attestation::backing::Storage;

    use super::*;

    fn opened(path: &std::path::Path) -> (Mounted, OwnedFd) {
        let file = File::open(path).expect("exists");
        let mounted =
            Mounted { file: executable_file(&rustix::fs::fstat(&file).expect("open")), mount: 1 };
        (mounted, file.into())
    }

    fn digest_of(cache: &DigestCache, path: &std::path::Path, lasting: Lasting) -> Sha256Digest {
        let (file, fd) = opened(path);
        cache.digest(file, lasting, fd).expect("readable")
    }

    #[test]
    fn the_digest_is_that_of_the_content_and_of_known_vectors() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("f");
        std::fs::write(&path, b"abc").expect("written");
        let digest = digest_of(&DigestCache::default(), &path, Lasting::UntilChanged);
        assert_eq!(
            digest.hex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(digest, sha256_of(b"abc"));
    }

    #[test]
    fn a_file_that_is_not_the_expected_one_is_refused() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("f");
        std::fs::write(&path, b"abc").expect("written");
        let (file, fd) = opened(&path);
        File::options().append(true).open(&path).expect("open").write_all(b"d").expect("written");
        let error =
            DigestCache::default().digest(file, Lasting::UntilChanged, fd).expect_err("changed");
        assert!(matches!(error, EvidenceError::Changed), "{error}");
    }

    /// Writes through a mapping, as a program may that unmaps it before it executes the
    /// file. The page is read first: on tmpfs it is then open to writes of which the
    /// kernel hears nothing.
    fn write_mapped(path: &std::path::Path, byte: u8) -> bool {
        let script = "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); \
                      before = m[0]; m[0] = int(sys.argv[2]); m.close(); f.close()";
        let mut command = std::process::Command::new("python3");
        command
            .args(["-c", script])
            .arg(path)
            .arg(byte.to_string())
            .status()
            .is_ok_and(|status| status.success())
    }

    #[test]
    fn what_changes_without_a_sign_is_hashed_each_time_and_what_shows_is_seen() {
        for base in ["/dev/shm".into(), std::env::temp_dir()] {
            let Ok(folder) = tempfile::tempdir_in(&base) else { continue };
            let path = folder.path().join("f");
            std::fs::write(&path, b"abc").expect("written");
            let magic = rustix::fs::statfs(&path).expect("exists").f_type as u64 & 0xffff_ffff;
            let lasting = match Storage::of_file_system(magic) {
                Storage::Memory => Lasting::ForNow,
                Storage::Disk => Lasting::UntilChanged,
                _ => continue,
            };
            let cache = DigestCache::default();
            let (before, _) = opened(&path);
            assert_eq!(digest_of(&cache, &path, lasting), sha256_of(b"abc"));
            if !write_mapped(&path, b'x') {
                return eprintln!("skipped: needs python3");
            }
            let (after, _) = opened(&path);
            if lasting == Lasting::ForNow {
                assert_eq!(
                    before, after,
                    "tmpfs shows no write through a mapping; else it may be remembered"
                );
                // Even what somehow got into the cache is not believed.
                cache.lock().insert(after, sha256_of(b"abc"));
            } else {
                assert_ne!(before, after, "{}: a write through a mapping shows", base.display());
            }
            assert_eq!(digest_of(&cache, &path, lasting), sha256_of(b"xbc"));
        }
    }

    #[test]
    fn a_file_of_the_same_numbers_on_another_mount_is_another_file() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("f");
        std::fs::write(&path, b"abc").expect("written");
        let (one, fd) = opened(&path);
        let cache = DigestCache::default();
        cache.lock().insert(Mounted { mount: 2, ..one }, sha256_of(b"evil"));
        assert_eq!(cache.digest(one, Lasting::ForGood, fd).expect("readable"), sha256_of(b"abc"));
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
        assert_eq!(
            (recent.get(&'a'), recent.get(&'b'), recent.get(&'c')),
            (Some(1), None, Some(3))
        );
    }
}
