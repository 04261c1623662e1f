//! Key files and the store key on disk.
//!
//! ```text
//! <state folder>/lock                                   held by the process that has the
//! store open <state folder>/store.key                              what the key files
//! are encrypted under; mode 0600 <state folder>/store.key.tpm, store.key.pkcs11
//! the same, in the care of a TPM or a token <state folder>/keys/<letters of the
//! id>-<sha256 of the id>.key <state folder>/internal/...                           the
//! daemon's own keys, named alike <state folder>/older/<as in keys>.<number>.key
//! earlier versions of keys that encrypt
//! ```
//! A file comes into being complete: it is written beside its place, synced, renamed, and
//! the folder is synced. So after a crash at any point there is the old or the new
//! content, and maybe a `.tmp` file, which the next start removes.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use edgekeep_base::file::open_to_lock;
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::KeyId;

use super::durable::{
    KeyFile, failed, give_to_owner_of_folder, make_folder, names, read_key_file, remove,
    remove_leftovers, replace, set_aside,
};
use super::file::{self, LibraryFailed, StoreKey, Unreadable};
use super::protection::{Forms, Protection, Sealers};
use crate::SecretBytes;
use crate::backend::{InputError, KeyError, KeyKind, Usage};

/// Letters of an id that its file name shows. The name has a limit of 255 bytes, of which
/// the hash takes 64.
const SHOWN_LETTERS: usize = 64;
/// Largest key file that is read, in bytes; none that was written here is larger.
pub(super) const FILE_LIMIT: u64 = 128 * 1024;

/// The owner of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NameSpace {
    /// A caller's key.
    Ordinary,
    /// A key of the daemon itself.
    Internal,
    /// An earlier version of a caller's key (see [`super::older`]).
    Older,
}

impl NameSpace {
    pub(super) const ALL: [Self; 3] = [Self::Ordinary, Self::Internal, Self::Older];

    pub(super) fn folder(self) -> &'static str {
        match self {
            Self::Ordinary => "keys",
            Self::Internal => "internal",
            Self::Older => "older",
        }
    }
}

/// A key as it is stored.
pub(super) struct StoredKey {
    pub(super) kind: KeyKind,
    pub(super) usage: Usage,
    /// Raw bytes of a symmetric key, PKCS#8 in DER of a key pair.
    pub(super) secret: SecretBytes,
}

/// Failure of the key store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("could not {action} {path:?}")]
    Io {
        /// The action that failed, as a verb: "replace", "remove".
        action: &'static str,
        /// File of the action.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// There is no room.
    #[error(
        "no room to {action} {path:?}: free space on its file system (or raise the quota) and try again; nothing was \
         changed"
    )]
    NoRoom {
        /// The action that failed, as a verb: "replace", "remove".
        action: &'static str,
        /// File of the action.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// Another process has the store open.
    #[error(
        "the key store {path:?} is in use by another process: stop keyd first; only one process can have it open"
    )]
    InUse {
        /// The state folder.
        path: PathBuf,
    },
    /// Key files, but no store key.
    #[error(
        "the store key {path:?} is missing, and {keys} keys are encrypted under it: restore it, or move the keys away"
    )]
    StoreKeyMissing {
        /// Path at which the store key should be.
        path: PathBuf,
        /// Number of key files.
        keys: usize,
    },
    /// The store key cannot be read.
    #[error("the store key {path:?} is damaged, or of a later version: restore it from a backup")]
    StoreKeyDamaged {
        /// Its file.
        path: PathBuf,
    },
    /// The store key is in the care of hardware that the configuration does not name.
    #[error(
        "the store key {path:?} is protected by {protection}, which the configuration does not name: it needs {needs}"
    )]
    NoSealer {
        /// Its file.
        path: PathBuf,
        /// Protection of the store key.
        protection: Protection,
        /// Settings that the configuration lacks.
        needs: &'static str,
    },
    /// The hardware does not take the store key.
    #[error("{protection} does not take the store key as {path:?}; it is left as it was")]
    Seal {
        /// Its file.
        path: PathBuf,
        /// The protection that was to be applied.
        protection: Protection,
        /// Error of the hardware.
        #[source]
        source: Box<KeyError>,
    },
    /// The hardware takes the store key, and gives back another.
    #[error(
        "{protection} does not give back what it was given for {path:?}; the store key is left as it was"
    )]
    NotGivenBack {
        /// Its file.
        path: PathBuf,
        /// The protection that was to be applied.
        protection: Protection,
    },
    /// The hardware does not give the store key back.
    #[error(
        "{protection} does not give back the store key {path:?}, without which no key in a file can be used: remove the \
         cause, or restore a backup of the keys"
    )]
    Unseal {
        /// Its file.
        path: PathBuf,
        /// Protection of the store key.
        protection: Protection,
        /// Error of the hardware.
        #[source]
        source: Box<KeyError>,
    },
    /// Two forms of the store key hold different keys.
    #[error(
        "{one:?} and {other:?} are different store keys: move away the one that the keys are not encrypted under"
    )]
    TwoStoreKeys {
        /// The one that the settings want.
        one: PathBuf,
        /// Another.
        other: PathBuf,
    },
    /// There is no store.
    #[error("there is no key store in {path:?}: keyd makes it when it starts")]
    NoStore {
        /// The state folder.
        path: PathBuf,
    },
    /// A key file is not what was written.
    #[error(
        "the file of key {id:?} is damaged; it was set aside as {set_aside:?}: restore it, or make the key anew"
    )]
    Damaged {
        /// The key's id.
        id: KeyId,
        /// Path to which the damaged file was moved.
        set_aside: PathBuf,
    },
    /// A key file is damaged, and its store is one that only keyd changes.
    #[error(
        "key file {path:?} is damaged: start keyd, which sets it aside, and make or restore that key"
    )]
    DamagedInUse {
        /// The file.
        path: PathBuf,
    },
    /// Keys come and go while they are read.
    #[error(
        "the keys in {path:?} change faster than they can be read: try again when the device is quieter, or stop keyd"
    )]
    Changing {
        /// Folder of the keys.
        path: PathBuf,
    },
    /// A later version wrote a key file.
    #[error("key file {path:?} has the unknown format version {found}: it needs a later edgekeep")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u8,
    },
    /// A key file belongs to another store key.
    #[error(
        "key file {path:?} is encrypted under another store key: it comes from another device or an older store"
    )]
    OtherStoreKey {
        /// The file.
        path: PathBuf,
    },
    /// A key file holds what this version cannot use.
    #[error("the key in {path:?} cannot be used")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The fault of the key.
        #[source]
        source: InputError,
    },
    /// There are as many earlier versions of keys as are kept.
    #[error(
        "{path:?} has {limit} earlier versions of keys, so no key that encrypts is replaced or deleted; nothing was \
         changed: back the keys up and remove the files of those that nothing is encrypted under any more"
    )]
    TooManyOlder {
        /// Folder of the earlier versions.
        path: PathBuf,
        /// Largest number of earlier versions that are kept.
        limit: usize,
    },
    /// The cryptographic library failed.
    #[error("the cryptographic library failed in the key store")]
    Library,
}

impl From<StoreError> for KeyError {
    fn from(error: StoreError) -> Self {
        Self::backend("key store", error)
    }
}

impl From<LibraryFailed> for StoreError {
    fn from(LibraryFailed: LibraryFailed) -> Self {
        Self::Library
    }
}

/// The files. One change at a time: whoever calls `write`, `remove`, or `read` of what
/// may be damaged, holds a lock.
pub(super) struct Store {
    pub(super) folder: PathBuf,
    pub(super) key: StoreKey,
    /// Keeps other processes out as long as it is open.
    _lock: File,
}

/// The folder of a store that no other process has open.
pub(super) struct Claimed {
    pub(super) folder: PathBuf,
    /// Number of key files.
    pub(super) keys: usize,
    lock: File,
}

impl Claimed {
    /// Keeps other processes out, makes the folders, and removes what writes that were
    /// cut off have left.
    pub(super) fn new(folder: &Path) -> Result<Self, StoreError> {
        make_folder(folder)?;
        let lock_path = folder.join("lock");
        let lock = open_to_lock(&lock_path, 0o600).map_err(failed("open", &lock_path))?;
        give_to_owner_of_folder(&lock, &lock_path).map_err(failed("give away", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse { path: folder.to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", &lock_path)(source)),
        }
        let mut keys = 0;
        remove_leftovers(folder)?;
        for name_space in NameSpace::ALL {
            let folder = folder.join(name_space.folder());
            make_folder(&folder)?;
            File::open(&folder)
                .and_then(|open| give_to_owner_of_folder(&open, &folder))
                .map_err(failed("give away", &folder))?;
            remove_leftovers(&folder)?;
            keys += names(&folder)?.iter().filter(|name| name.ends_with(".key")).count();
        }
        Ok(Self { folder: folder.to_owned(), keys, lock })
    }

    /// The same, if there is a store already.
    pub(super) fn existing(folder: &Path) -> Result<Self, StoreError> {
        if !Protection::ALL.iter().any(|protection| protection.path(folder).exists()) {
            return Err(StoreError::NoStore { path: folder.to_owned() });
        }
        Self::new(folder)
    }
}

impl Store {
    /// Opens the store, and makes it if there is none. The store key is under the
    /// protection `wanted` afterwards; without a wish it stays as it is.
    pub(super) fn open(
        folder: &Path,
        wanted: Option<Protection>,
        sealers: Sealers<'_>,
    ) -> Result<(Self, Protection), StoreError> {
        Self::over(Claimed::new(folder)?, wanted, sealers)
    }

    pub(super) fn over(
        claimed: Claimed,
        wanted: Option<Protection>,
        sealers: Sealers<'_>,
    ) -> Result<(Self, Protection), StoreError> {
        let forms = Forms::read(&claimed.folder, sealers)?;
        let (protection, content) = forms.settle(wanted, |path| {
            if claimed.keys > 0 {
                return Err(StoreError::StoreKeyMissing {
                    path: path.to_owned(),
                    keys: claimed.keys,
                });
            }
            Ok(StoreKey::generate()?.encode())
        })?;
        let damaged = || StoreError::StoreKeyDamaged { path: protection.path(&claimed.folder) };
        let key = StoreKey::decode(&content).ok_or_else(damaged)?;
        Ok((Self { folder: claimed.folder, key, _lock: claimed.lock }, protection))
    }

    /// Returns the path of the key's file, which need not exist.
    pub(super) fn path(&self, name_space: NameSpace, id: &KeyId) -> PathBuf {
        self.name_space_folder(name_space).join(file_name(id))
    }

    pub(super) fn name_space_folder(&self, name_space: NameSpace) -> PathBuf {
        self.folder.join(name_space.folder())
    }

    /// The key; `None` if there is none. A damaged file is renamed, so that nothing
    /// overwrites it.
    pub(super) fn read(
        &self,
        name_space: NameSpace,
        id: &KeyId,
    ) -> Result<Option<StoredKey>, StoreError> {
        self.read_file(name_space, id, self.path(name_space, id))
    }

    pub(super) fn read_file(
        &self,
        name_space: NameSpace,
        id: &KeyId,
        path: PathBuf,
    ) -> Result<Option<StoredKey>, StoreError> {
        let decoded = match read_key_file(&path, FILE_LIMIT)? {
            KeyFile::Absent => return Ok(None),
            KeyFile::TooLong => Err(Unreadable::Damaged),
            KeyFile::Content(content) => file::decode(&self.key, name_space, id, &content),
        };
        match decoded {
            Ok(key) => Ok(Some(key)),
            Err(Unreadable::Version(found)) => Err(StoreError::Version { path, found }),
            Err(Unreadable::OtherStoreKey) => Err(StoreError::OtherStoreKey { path }),
            Err(Unreadable::Damaged) => {
                let set_aside = set_aside(&path)?;
                tracing::error!(key = id.as_str(), file = ?set_aside, "a damaged key file was set aside");
                Err(StoreError::Damaged { id: id.clone(), set_aside })
            }
        }
    }

    /// Stores a key, over what is there.
    pub(super) fn write(
        &self,
        name_space: NameSpace,
        id: &KeyId,
        key: &StoredKey,
    ) -> Result<(), StoreError> {
        let content = file::encode(&self.key, name_space, id, key)?;
        replace(&self.path(name_space, id), &content)
    }

    /// Removes a key's file; there may be none.
    pub(super) fn remove(&self, name_space: NameSpace, id: &KeyId) -> Result<(), StoreError> {
        remove(&self.path(name_space, id)).map(drop)
    }
}

/// Name of a key's file: letters and digits of the id for people, its hash for
/// uniqueness.
pub(crate) fn file_name(id: &KeyId) -> String {
    let letters: String =
        id.as_str().chars().filter(char::is_ascii_alphanumeric).take(SHOWN_LETTERS).collect();
    let hash = digest::digest(&digest::SHA256, id.as_str().as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash.as_ref());
    format!("{letters}-{}.key", Sha256Digest::new(bytes).hex())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn id(text: &str) -> KeyId {
        text.parse().unwrap()
    }

    fn open(folder: &Path) -> Result<Store, StoreError> {
        Store::open(folder, None, Sealers::default()).map(|(store, _)| store)
    }

    fn symmetric(secret: &[u8]) -> StoredKey {
        StoredKey { kind: KeyKind::Symmetric, usage: Usage::ALL, secret: secret.into() }
    }

    fn read(store: &Store, key: &str) -> Option<Vec<u8>> {
        store.read(NameSpace::Ordinary, &id(key)).unwrap().map(|key| key.secret.into_exposed())
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
        }
        found
    }

    #[test]
    fn no_file_holds_a_key_in_clear_and_nobody_else_may_read_them() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("lib/keyd");
        let store = open(&state).unwrap();
        store.write(NameSpace::Ordinary, &id("k"), &symmetric(b"a very secret key")).unwrap();
        assert_eq!(fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
        let usual = folder.path().join("usual");
        fs::create_dir(&usual).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode();
        assert_eq!(
            mode(&folder.path().join("lib")),
            mode(&usual),
            "other daemons pass through the parent"
        );
        for path in files(&state) {
            let content = fs::read(&path).unwrap();
            assert!(!content.windows(6).any(|window| window == b"secret"), "{path:?}");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "{path:?}");
        }
    }

    #[test]
    fn a_file_name_shows_letters_and_is_the_ids_alone() {
        let name = file_name(&id("aziot-edged/ca"));
        assert!(name.starts_with("aziotedgedca-"), "{name}");
        assert_ne!(name, file_name(&id("aziotedgedca")));
        assert!(file_name(&id(&"x".repeat(256))).len() + ".corrupt-4294967295".len() <= 255);
        assert_eq!(Path::new(&file_name(&id("../../etc/passwd"))).components().count(), 1);
    }

    #[test]
    fn leftovers_of_a_write_that_was_cut_off_leave_the_old_key_and_go_away() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        store.write(NameSpace::Ordinary, &id("k"), &symmetric(b"old")).unwrap();
        let path = store.path(NameSpace::Ordinary, &id("k"));
        let complete =
            file::encode(&store.key, NameSpace::Ordinary, &id("k"), &symmetric(b"new")).unwrap();
        let mut beside = path.clone().into_os_string();
        beside.push(".tmp");
        let mut store = Some(store);
        // Cut off after creating, within, and after writing the file beside.
        for written in [0, 1, complete.len() / 2, complete.len()] {
            drop(store.take());
            fs::write(&beside, &complete[..written]).unwrap();
            let reopened = open(folder.path()).unwrap();
            assert_eq!(read(&reopened, "k").as_deref(), Some(&b"old"[..]));
            assert!(!Path::new(&beside).exists());
            store = Some(reopened);
        }
        // Cut off after renaming.
        fs::write(&path, &complete).unwrap();
        assert_eq!(read(&store.unwrap(), "k").as_deref(), Some(&b"new"[..]));
    }

    #[test]
    fn a_leftover_beside_does_not_hinder_the_next_write() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        let mut beside = store.path(NameSpace::Ordinary, &id("k")).into_os_string();
        beside.push(".tmp");
        fs::write(&beside, b"junk").unwrap();
        store.write(NameSpace::Ordinary, &id("k"), &symmetric(b"new")).unwrap();
        assert_eq!(read(&store, "k").as_deref(), Some(&b"new"[..]));
    }

    #[test]
    fn a_write_that_fails_leaves_the_other_keys_and_says_which_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        store.write(NameSpace::Ordinary, &id("k"), &symmetric(b"old")).unwrap();
        // A folder in the way, for root too.
        let path = store.path(NameSpace::Ordinary, &id("blocked"));
        fs::create_dir_all(path.join("full")).unwrap();
        let error =
            store.write(NameSpace::Ordinary, &id("blocked"), &symmetric(b"new")).unwrap_err();
        assert!(
            matches!(&error, StoreError::Io { action: "replace", path: named, .. } if *named == path),
            "{error}"
        );
        let beside = fs::read_dir(path.parent().unwrap()).unwrap().flatten();
        let beside: Vec<_> = beside.map(|entry| entry.file_name()).collect();
        assert!(!beside.iter().any(|name| name.to_string_lossy().ends_with(".tmp")), "{beside:?}");
        assert_eq!(read(&store, "k").as_deref(), Some(&b"old"[..]));
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_named_and_each_one_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        let path = store.path(NameSpace::Ordinary, &id("k"));
        for (number, junk) in [(1, &b""[..]), (2, b"EKEY"), (3, b"-----BEGIN PRIVATE KEY-----")] {
            fs::write(&path, junk).unwrap();
            let error = store.read(NameSpace::Ordinary, &id("k")).err().unwrap();
            let StoreError::Damaged { set_aside, .. } = &error else { panic!("{error}") };
            assert!(
                set_aside.to_str().unwrap().ends_with(&format!(".key.corrupt-{number}")),
                "{error}"
            );
            assert_eq!(fs::read(set_aside).unwrap(), junk);
            assert!(error.to_string().contains("set aside"), "{error}");
            assert_eq!(read(&store, "k"), None);
        }
    }

    #[test]
    fn a_file_under_another_store_key_stays_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        let foreign = open(other.path()).unwrap();
        foreign.write(NameSpace::Ordinary, &id("k"), &symmetric(b"x")).unwrap();
        let path = store.path(NameSpace::Ordinary, &id("k"));
        fs::copy(foreign.path(NameSpace::Ordinary, &id("k")), &path).unwrap();
        let error = store.read(NameSpace::Ordinary, &id("k")).err().unwrap();
        assert!(matches!(error, StoreError::OtherStoreKey { .. }), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn keys_without_their_store_key_stop_the_start_instead_of_making_another() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        store.write(NameSpace::Internal, &id("k"), &symmetric(b"x")).unwrap();
        drop(store);
        fs::remove_file(folder.path().join("store.key")).unwrap();
        let error = open(folder.path()).err().unwrap();
        assert!(matches!(error, StoreError::StoreKeyMissing { keys: 1, .. }), "{error}");
        assert!(!folder.path().join("store.key").exists());
    }

    #[test]
    fn a_store_key_that_was_never_used_is_made_again_after_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path()).unwrap());
        fs::rename(folder.path().join("store.key"), folder.path().join("store.key.tmp")).unwrap();
        drop(open(folder.path()).unwrap());
        assert!(folder.path().join("store.key").exists());
        assert!(!folder.path().join("store.key.tmp").exists());
    }

    #[test]
    fn a_damaged_store_key_stops_the_start_and_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path()).unwrap());
        let path = folder.path().join("store.key");
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let error = open(folder.path()).err().unwrap();
            assert!(matches!(error, StoreError::StoreKeyDamaged { .. }), "byte {at}: {error}");
            assert_eq!(fs::read(&path).unwrap(), bad);
        }
    }

    #[test]
    fn a_second_process_cannot_open_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path()).unwrap();
        assert!(matches!(open(folder.path()), Err(StoreError::InUse { .. })));
        drop(first);
        open(folder.path()).unwrap();
    }
}
