//! Keys in files, taken out of one store and brought into another.
//!
//! In clear a backup is lines of text, so that whoever opens it with another tool can
//! read it:
//!
//! ```text
//! edgekeep-keys 1
//! made <RFC 3339>
//! key <keys|internal|older:NUMBER> <symmetric|pair> <usage: d, e, de or -> <id>
//!     <base64: raw bytes, or PKCS#8 in DER>
//! elsewhere <where> <id>                                  a key that is not in it, as hardware does not give it away
//! sha256 <hex of everything before this line>
//! ```
//! It is never on a disk like that: whoever calls this encrypts it ([`crate::envelope`]).

use std::collections::BTreeSet;
use std::path::Path;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::KeyId;
use zeroize::Zeroizing;

use super::durable::{KeyFile, names, read_key_file};
use super::file::{self, Unreadable};
use super::protection::{Forms, Protection, Sealers};
use super::store::{FILE_LIMIT, NameSpace, Store, StoreError, StoredKey};
use crate::SecretBytes;
use crate::backend::{KeyKind, Usage};
use crate::material::Material;

const FIRST_LINE: &str = "edgekeep-keys 1";

/// The keys of a store.
pub struct Backup {
    entries: Vec<Entry>,
}

struct Entry {
    name_space: NameSpace,
    /// Number of an earlier version.
    number: u32,
    id: KeyId,
    key: StoredKey,
}

/// A key that a backup does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// The place that holds the key, in one word.
    pub place: &'static str,
    /// Its id.
    pub id: KeyId,
}

/// Numbers of keys, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// The callers' keys.
    pub keys: usize,
    /// Earlier versions of them.
    pub older: usize,
    /// The daemon's own.
    pub own: usize,
}

/// The reason why keys were not restored from a backup.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The key store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file is no backup, or a damaged one.
    #[error("not a backup of keys, or a damaged one (line {line})")]
    Damaged {
        /// First line that shows the damage, from 1.
        line: usize,
    },
    /// A later version wrote the backup.
    #[error("the backup has an unknown format version: it needs a later edgekeep")]
    Version,
    /// Other keys are there under the same ids.
    #[error(
        "other keys are there already under the ids of the backup: {}; nothing was changed. To replace them use --force: \
         what is replaced is kept as an earlier version",
        list(.ids)
    )]
    Conflict {
        /// The ids that are taken by other keys.
        ids: Vec<KeyId>,
    },
}

fn list(ids: &[KeyId]) -> String {
    ids.iter().map(KeyId::as_str).collect::<Vec<_>>().join(", ")
}

impl Backup {
    /// Reads all keys of a store, which may be in use, and changes nothing in it.
    ///
    /// # Errors
    /// If there is no store, its store key cannot be opened, or a key is damaged: there
    /// is no backup of a part.
    pub fn read(folder: &Path, sealers: Sealers<'_>) -> Result<Self, StoreError> {
        let forms = Forms::read(folder, sealers)?;
        let Some(best) = forms.present().first().copied() else {
            return Err(StoreError::NoStore { path: folder.to_owned() });
        };
        let damaged = || StoreError::StoreKeyDamaged { path: best.path(folder) };
        let store_key = file::StoreKey::decode(&forms.open_any()?).ok_or_else(damaged)?;
        let mut entries = Vec::new();
        for name_space in NameSpace::ALL {
            let folder = folder.join(name_space.folder());
            if folder.exists() {
                entries
                    .extend(read_folder(&folder, name_space, &store_key, || key_files(&folder))?);
            }
        }
        entries.sort_by(|one, other| {
            let place = |entry: &Entry| (entry.name_space as u8, entry.id.clone(), entry.number);
            place(one).cmp(&place(other))
        });
        Ok(Self { entries })
    }

    /// Counts the keys in the backup.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let of =
            |name_space| self.entries.iter().filter(|entry| entry.name_space == name_space).count();
        Counts {
            keys: of(NameSpace::Ordinary),
            older: of(NameSpace::Older),
            own: of(NameSpace::Internal),
        }
    }

    /// The text of this backup, in clear.
    #[must_use]
    pub fn encode(&self, made: &str, elsewhere: &[Elsewhere]) -> SecretBytes {
        let room: usize =
            self.entries.iter().map(|entry| entry.key.secret.expose().len() * 4 / 3 + 400).sum();
        let others: usize = elsewhere.iter().map(|key| key.id.as_str().len() + 64).sum();
        // All at once: what a text grows out of is not wiped.
        let mut text = Zeroizing::new(String::with_capacity(room + others + 400));
        text.push_str(&format!("{FIRST_LINE}\nmade {made}\n"));
        for Entry { name_space, number, id, key } in &self.entries {
            let place = match name_space {
                NameSpace::Older => format!("older:{number}"),
                NameSpace::Ordinary | NameSpace::Internal => name_space.folder().to_owned(),
            };
            let kind = match key.kind {
                KeyKind::Symmetric => "symmetric",
                KeyKind::Pair => "pair",
            };
            let usage = match key.usage {
                Usage { derive_or_sign: true, encrypt: true } => "de",
                Usage { derive_or_sign: true, encrypt: false } => "d",
                Usage { derive_or_sign: false, encrypt: true } => "e",
                Usage { derive_or_sign: false, encrypt: false } => "-",
            };
            text.push_str(&format!("key {place} {kind} {usage} {id} "));
            STANDARD.encode_string(key.secret.expose(), &mut text);
            text.push('\n');
        }
        for Elsewhere { place, id } in elsewhere {
            text.push_str(&format!("elsewhere {place} {id}\n"));
        }
        let sum = sha256(text.as_bytes());
        text.push_str(&format!("sha256 {sum}\n"));
        std::mem::take(&mut *text).into_bytes().into()
    }

    /// Reads the text of a backup.
    ///
    /// # Errors
    /// If it is none, or not whole.
    pub fn decode(text: &SecretBytes) -> Result<Self, RestoreError> {
        let damaged = |line| RestoreError::Damaged { line };
        let text = std::str::from_utf8(text.expose()).map_err(|_| damaged(1))?;
        match text.lines().next() {
            Some(FIRST_LINE) => {}
            Some(other) if other.starts_with("edgekeep-keys ") => {
                return Err(RestoreError::Version);
            }
            _ => return Err(damaged(1)),
        }
        let count = text.lines().count();
        let end = text.trim_end_matches('\n').rfind('\n').ok_or(damaged(count))? + 1;
        if text[end..] != format!("sha256 {}\n", sha256(&text.as_bytes()[..end])) {
            return Err(damaged(count));
        }
        let (mut entries, mut seen) = (Vec::new(), BTreeSet::new());
        for (at, line) in text[..end].lines().enumerate() {
            let Some(line) = line.strip_prefix("key ") else { continue };
            let entry = Entry::decode(line).ok_or(damaged(at + 1))?;
            if !seen.insert((entry.name_space as u8, entry.id.clone(), entry.number)) {
                return Err(damaged(at + 1));
            }
            entries.push(entry);
        }
        Ok(Self { entries })
    }
}

impl Entry {
    fn decode(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (name_space, number) = match words.next()? {
            "keys" => (NameSpace::Ordinary, 0),
            "internal" => (NameSpace::Internal, 0),
            older => (NameSpace::Older, older.strip_prefix("older:")?.parse().ok()?),
        };
        let kind = match words.next()? {
            "symmetric" => KeyKind::Symmetric,
            "pair" => KeyKind::Pair,
            _ => return None,
        };
        let (derive_or_sign, encrypt) = match words.next()? {
            "de" => (true, true),
            "d" => (true, false),
            "e" => (false, true),
            "-" => (false, false),
            _ => return None,
        };
        let usage = Usage { derive_or_sign, encrypt };
        let id = words.next()?.parse().ok()?;
        let secret = SecretBytes::from(STANDARD.decode(words.next()?).ok()?);
        // What could not be used is found before anything is written.
        Material::from_stored(kind, usage, secret.clone()).ok()?;
        words.next().is_none().then_some(Self {
            name_space,
            number,
            id,
            key: StoredKey { kind, usage, secret },
        })
    }
}

fn sha256(content: &[u8]) -> String {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, content).as_ref());
    Sha256Digest::new(bytes).hex().to_string()
}

/// The names of the key files in a folder.
fn key_files(folder: &Path) -> Result<BTreeSet<String>, StoreError> {
    Ok(names(folder)?.into_iter().filter(|name| name.ends_with(".key")).collect())
}

/// Number of times that a changing folder is read before giving up.
const READ_TRIES: u32 = 20;

/// The keys in a folder, which a daemon may change meanwhile: read again if its list of
/// files is another one afterwards. A key pair that is moved between listing and reading
/// would else be in the backup under neither id.
fn read_folder(
    folder: &Path,
    name_space: NameSpace,
    store_key: &file::StoreKey,
    mut list: impl FnMut() -> Result<BTreeSet<String>, StoreError>,
) -> Result<Vec<Entry>, StoreError> {
    let mut listed = list()?;
    for _ in 0..READ_TRIES {
        let mut entries = Vec::new();
        for name in &listed {
            let path = folder.join(name);
            let number =
                name.rsplit('.').nth(1).and_then(|number| number.parse().ok()).unwrap_or_default();
            let content = match read_key_file(&path, FILE_LIMIT)? {
                // Deleted since it was listed.
                KeyFile::Absent => continue,
                KeyFile::TooLong => return Err(StoreError::DamagedInUse { path }),
                KeyFile::Content(content) => content,
            };
            let (id, key) = decode(store_key, name_space, &content, &path)?;
            entries.push(Entry { name_space, number, id, key });
        }
        let now = list()?;
        if now == listed {
            return Ok(entries);
        }
        listed = now;
    }
    Err(StoreError::Changing { path: folder.to_owned() })
}

/// A key out of its file, without setting it aside if it is damaged: the store may be in
/// use.
fn decode(
    store_key: &file::StoreKey,
    name_space: NameSpace,
    content: &[u8],
    path: &Path,
) -> Result<(KeyId, StoredKey), StoreError> {
    let unusable = || StoreError::DamagedInUse { path: path.to_owned() };
    let id = file::id(content).ok_or_else(unusable)?;
    match file::decode(store_key, name_space, &id, content) {
        Ok(key) => Ok((id, key)),
        Err(Unreadable::Damaged) => Err(unusable()),
        Err(Unreadable::OtherStoreKey) => Err(StoreError::OtherStoreKey { path: path.to_owned() }),
        Err(Unreadable::Version(found)) => {
            Err(StoreError::Version { path: path.to_owned(), found })
        }
    }
}

/// Choice of the changes that a restore makes to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreMode {
    /// True if other keys of the same ids are replaced.
    pub force: bool,
    /// True if nothing is changed and the result is only reported.
    pub dry_run: bool,
}

/// Result of a restore, or of a dry run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Keys that were not there.
    pub added: Vec<KeyId>,
    /// Keys that replaced another, which is kept as an earlier version.
    pub replaced: Vec<KeyId>,
    /// Keys that are there, and the same.
    pub same: usize,
    /// Earlier versions in the backup.
    pub older: usize,
    /// The daemon's own keys that stay as they are on this device.
    pub own_kept: Vec<KeyId>,
}

/// Brings the keys of a backup into a store, under the store key there. A store that is
/// not there is made. Cut off at any point, it is completed by running it again.
///
/// The daemon's own keys are taken only where there are none: what is beside them, like
/// the audit log, goes with them.
///
/// # Errors
/// If a process has the store open, its store key cannot be opened, or other keys are
/// there and `force` is not given. Then nothing was changed.
pub fn restore(
    folder: &Path,
    wanted: Option<Protection>,
    sealers: Sealers<'_>,
    backup: &Backup,
    mode: RestoreMode,
) -> Result<Restored, RestoreError> {
    let (store, _) = Store::open(folder, wanted, sealers)?;
    let mut done = Restored::default();
    let (mut conflicts, mut writes) = (Vec::new(), Vec::new());
    for entry in &backup.entries {
        let id = || entry.id.clone();
        if entry.name_space == NameSpace::Older {
            done.older += 1;
            continue;
        }
        let present = store.read(entry.name_space, &entry.id)?;
        let same = present.as_ref().map(|key| is_same(key, &entry.key));
        match (same, entry.name_space) {
            (Some(true), _) => done.same += 1,
            (Some(false), NameSpace::Internal) => done.own_kept.push(id()),
            (Some(false), _) => {
                conflicts.push(id());
                writes.push((entry, present));
            }
            (None, _) => {
                done.added.push(id());
                writes.push((entry, None));
            }
        }
    }
    if !conflicts.is_empty() && !mode.force {
        return Err(RestoreError::Conflict { ids: conflicts });
    }
    done.replaced = conflicts;
    if mode.dry_run {
        return Ok(done);
    }
    // In order of their numbers, so that the latest stays the latest.
    for entry in backup.entries.iter().filter(|entry| entry.name_space == NameSpace::Older) {
        store.add_older(&entry.id, &entry.key)?;
    }
    for (entry, present) in writes {
        if let Some(present) = present {
            store.add_older(&entry.id, &present)?;
        }
        store.write(entry.name_space, &entry.id, &entry.key)?;
    }
    Ok(done)
}

fn is_same(one: &StoredKey, other: &StoredKey) -> bool {
    one.kind == other.kind
        && one.usage == other.usage
        && one.secret.expose() == other.secret.expose()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use std::collections::BTreeMap;

    use super::*;
    use crate::backend::{KeyBackend as _, PairAlgorithm, SymmetricKey};
    use crate::software::SoftwareBackend;

    const MODE: RestoreMode = RestoreMode { force: false, dry_run: false };
    const ENCRYPT: Usage = Usage { derive_or_sign: false, encrypt: true };

    fn id(text: &str) -> KeyId {
        text.parse().unwrap()
    }

    fn open(folder: &Path) -> SoftwareBackend {
        SoftwareBackend::open(folder, BTreeMap::new()).unwrap()
    }

    /// A store with each kind of key, and something that only an earlier version
    /// decrypts.
    fn store(folder: &Path) -> Vec<u8> {
        let backend = open(folder);
        backend.import_key(&id("master"), vec![1; 32].into(), ENCRYPT).unwrap();
        let sealed =
            backend.encrypt(SymmetricKey::Stored(&id("master")), b"iv", b"", b"text").unwrap();
        backend.import_key(&id("master"), vec![2; 32].into(), ENCRYPT).unwrap();
        backend.create_key_pair(&id("ca/key"), &[PairAlgorithm::EcP256]).unwrap();
        backend.internal_key(&id("own")).unwrap();
        sealed
    }

    fn decrypts(folder: &Path, sealed: &[u8]) -> bool {
        let text = open(folder).decrypt(SymmetricKey::Stored(&id("master")), b"iv", b"", sealed);
        text.is_ok_and(|text| text.expose() == b"text")
    }

    fn text_of(folder: &Path) -> SecretBytes {
        let elsewhere = [Elsewhere { place: "tpm", id: id("in-tpm") }];
        Backup::read(folder, Sealers::default()).unwrap().encode("2026-11-22T00:00:00Z", &elsewhere)
    }

    fn restore_to(
        folder: &Path,
        text: &SecretBytes,
        mode: RestoreMode,
    ) -> Result<Restored, RestoreError> {
        restore(folder, None, Sealers::default(), &Backup::decode(text)?, mode)
    }

    #[test]
    fn all_keys_come_to_another_device_under_its_own_store_key() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sealed = store(one.path());
        let text = text_of(one.path());
        let other = other.path().join("store");
        let done = restore_to(&other, &text, MODE).unwrap();
        assert_eq!((done.added.len(), done.older, done.same), (3, 1, 0));
        assert!(decrypts(&other, &sealed));
        assert_ne!(
            fs::read(other.join("store.key")).unwrap(),
            fs::read(one.path().join("store.key")).unwrap()
        );
        let key_of = |folder: &Path| {
            let der = open(folder).store.read(NameSpace::Ordinary, &id("ca/key")).unwrap().unwrap();
            let own = open_own(folder);
            (der.secret.into_exposed(), own)
        };
        assert_eq!(key_of(&other), key_of(one.path()));
        let again = restore_to(&other, &text, MODE).unwrap();
        assert_eq!((again.added.len(), again.same), (0, 3));
        assert_eq!(Backup::read(&other, Sealers::default()).unwrap().counts().older, 1);
        assert_eq!(text_of(&other).expose(), text.expose());
    }

    #[test]
    fn a_key_that_is_moved_while_it_is_backed_up_is_in_the_backup() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        backend.create_key_pair(&id("from"), &[PairAlgorithm::EcP256]).unwrap();
        let keys = folder.path().join("keys");
        let read = |list: &mut dyn FnMut() -> Result<BTreeSet<String>, StoreError>| {
            read_folder(&keys, NameSpace::Ordinary, &backend.store.key, list)
        };
        let mut moved = false;
        let entries = read(&mut || {
            let listed = key_files(&keys);
            if !std::mem::replace(&mut moved, true) {
                backend.move_key_pair(&id("from"), &id("to")).unwrap();
            }
            listed
        });
        let ids: Vec<String> = entries.unwrap().iter().map(|entry| entry.id.to_string()).collect();
        assert_eq!(ids, ["to"]);
        // It does not go on for ever.
        let mut count = 0_u32;
        let error = read(&mut || {
            count += 1;
            Ok([format!("{count}.key")].into())
        });
        assert!(matches!(error, Err(StoreError::Changing { .. })));
    }

    #[test]
    fn restoring_drops_no_earlier_version_that_is_there() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let versions = |folder: &Path, from: u8| {
            let backend = open(folder);
            for fill in from..from + 17 {
                backend.import_key(&id("master"), vec![fill; 32].into(), ENCRYPT).unwrap();
            }
        };
        versions(one.path(), 1);
        versions(other.path(), 101);
        let force = RestoreMode { force: true, dry_run: false };
        restore_to(other.path(), &text_of(one.path()), force).unwrap();
        for fill in (1..=17).chain(101..=117) {
            let sealed = crate::gcm::encrypt(&[fill; 32], b"iv", b"", b"text").unwrap();
            assert!(decrypts(other.path(), &sealed), "{fill}");
        }
    }

    fn open_own(folder: &Path) -> Vec<u8> {
        open(folder).internal_key(&id("own")).unwrap().into_exposed()
    }

    #[test]
    fn other_keys_are_replaced_only_by_force_and_then_kept() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sealed = store(one.path());
        let text = text_of(one.path());
        let backend = open(other.path());
        backend.import_key(&id("master"), vec![3; 32].into(), ENCRYPT).unwrap();
        let own = backend.internal_key(&id("own")).unwrap().into_exposed();
        let others =
            backend.encrypt(SymmetricKey::Stored(&id("master")), b"iv", b"", b"text").unwrap();
        drop(backend);
        let before = text_of(other.path());
        let error = restore_to(other.path(), &text, MODE).unwrap_err();
        assert!(
            error.to_string().contains("master") && error.to_string().contains("--force"),
            "{error}"
        );
        let rehearsed =
            restore_to(other.path(), &text, RestoreMode { force: true, dry_run: true }).unwrap();
        assert_eq!(text_of(other.path()).expose(), before.expose(), "nothing was changed");
        let done =
            restore_to(other.path(), &text, RestoreMode { force: true, dry_run: false }).unwrap();
        assert_eq!(done, rehearsed);
        assert_eq!((done.replaced, done.own_kept), (vec![id("master")], vec![id("own")]));
        assert!(decrypts(other.path(), &sealed) && decrypts(other.path(), &others));
        assert_eq!(open_own(other.path()), own);
    }

    #[test]
    fn a_changed_backup_is_refused_as_a_whole() {
        let one = tempfile::tempdir().unwrap();
        store(one.path());
        let text = text_of(one.path()).into_exposed();
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 1;
            assert!(Backup::decode(&changed.into()).is_err(), "byte {at}");
            assert!(Backup::decode(&text[..at].into()).is_err(), "cut at {at}");
        }
        assert!(matches!(
            Backup::decode(&b"edgekeep-keys 2\n"[..].into()),
            Err(RestoreError::Version)
        ));
    }

    #[test]
    fn a_damaged_key_stops_the_backup_and_is_named_and_left() {
        let one = tempfile::tempdir().unwrap();
        store(one.path());
        let folder = one.path().join("keys");
        let name = names(&folder).unwrap().remove(0);
        let mut content = fs::read(folder.join(&name)).unwrap();
        *content.last_mut().unwrap() ^= 1;
        fs::write(folder.join(&name), &content).unwrap();
        let error = Backup::read(one.path(), Sealers::default()).err().unwrap();
        assert!(
            matches!(error, StoreError::DamagedInUse { .. }) && error.to_string().contains(&name),
            "{error}"
        );
        assert!(folder.join(&name).exists());
    }
}
