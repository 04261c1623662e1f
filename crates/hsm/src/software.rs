//! The software backend: keys in files, encrypted under a store key, used by AWS-LC in
//! this process.
//!
//! It protects keys against whoever gets a copy of single files, not against whoever can
//! read the whole state folder: the store key lies beside the keys unless a TPM or a
//! token protects it ([`Protection`]).

mod backup;
#[cfg(test)]
mod crash;
pub(crate) mod durable;
mod file;
mod migrate;
mod older;
mod protection;
pub(crate) mod store;
mod token;
mod uses;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use aws_lc_rs::rand;
pub use backup::{Backup, Counts, Elsewhere, RestoreError, RestoreMode, Restored, restore};
use edgekeep_base::lock::lock;
use edgekeep_core::id::KeyId;
pub use migrate::{MigrateError, Migrated, migrate, rehearse_migration};
pub use protection::{Protection, Sealer, Sealers};
pub use store::StoreError;
use store::{NameSpace, Store, StoredKey};
pub use token::WrappingKey;
use uses::Use;

use crate::backend::{
    InputError, KeyBackend, KeyError, KeyKind, Operation, PairAlgorithm, PublicParameter,
    PublicValue, RsaPadding, SymmetricKey, Usage,
};
use crate::key_file::{KEY_FILE_LIMIT, read_key_file};
use crate::material::{self, Material, Pair};
use crate::{SecretBytes, secret_file};
use edgekeep_tpm::{AuthValue, SealTo, Tpm};

/// Keys held ready in memory. A device has a few dozen; loading one again costs a file
/// read.
const READY_LIMIT: usize = 128;
/// Length of generated symmetric keys, in bytes.
const GENERATED_LEN: usize = 32;

/// Keys in files.
pub struct SoftwareBackend {
    store: Store,
    protection: Protection,
    preloaded: BTreeMap<KeyId, PathBuf>,
    /// Returns true for a key whose derived keys encrypt.
    derived_encrypt: Box<dyn Fn(&KeyId) -> bool + Send + Sync>,
    ready: Mutex<ReadyKeys>,
    /// Held while files are changed, and while a key is loaded, so that no change falls
    /// between reading a file and making the key ready.
    changing: Mutex<()>,
}

/// Shows that files may be changed.
type Changing<'a> = MutexGuard<'a, ()>;

impl SoftwareBackend {
    /// Opens the store in `folder`, and makes it if it is not there. `preloaded` keys are
    /// read from the files that they name and never changed here; each file holds a
    /// private key (see [`crate::key_file`]) or a symmetric key's raw bytes.
    ///
    /// # Errors
    /// If another process has the store open, its store key is missing or damaged, or the
    /// folder cannot be used.
    pub fn open(folder: &Path, preloaded: BTreeMap<KeyId, PathBuf>) -> Result<Self, StoreError> {
        Self::open_protected(folder, preloaded, None, Sealers::default())
    }

    /// The same with a store key under the protection `wanted`: if it is under another,
    /// it is moved. Without a wish it stays as it is; that of a new store is in a file.
    ///
    /// # Errors
    /// As [`SoftwareBackend::open`]; also if the hardware that is to protect it, or that
    /// does now, refuses. Then the store key is left as it was.
    pub fn open_protected(
        folder: &Path,
        preloaded: BTreeMap<KeyId, PathBuf>,
        wanted: Option<Protection>,
        sealers: Sealers<'_>,
    ) -> Result<Self, StoreError> {
        let (store, protection) = Store::open(folder, wanted, sealers)?;
        tracing::info!(protection = protection.word(), "key store");
        Ok(Self::over(store, protection, preloaded))
    }

    fn over(store: Store, protection: Protection, preloaded: BTreeMap<KeyId, PathBuf>) -> Self {
        let derived_encrypt = Box::new(|_: &KeyId| false);
        Self {
            store,
            protection,
            preloaded,
            derived_encrypt,
            ready: Mutex::default(),
            changing: Mutex::default(),
        }
    }

    /// The protection of the store key.
    #[must_use]
    pub const fn protection(&self) -> Protection {
        self.protection
    }

    /// The same store, in which a key that only derives is kept as an earlier version too
    /// if `derived_encrypt` says of it that what is derived from it encrypts.
    #[must_use]
    pub fn keeping_replaced(
        mut self,
        derived_encrypt: impl Fn(&KeyId) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.derived_encrypt = Box::new(derived_encrypt);
        self
    }

    /// A symmetric key of the daemon itself, made at first use. It lives outside the name
    /// space of the other methods.
    ///
    /// # Errors
    /// If it is damaged or cannot be stored.
    pub fn internal_key(&self, id: &KeyId) -> Result<SecretBytes, KeyError> {
        let _changing = self.lock_for_change();
        if let Some(found) = self.store.read(NameSpace::Internal, id)? {
            return Ok(found.secret);
        }
        let secret = random_key()?;
        let made =
            StoredKey { kind: KeyKind::Symmetric, usage: Usage::ALL, secret: secret.clone() };
        self.store.write(NameSpace::Internal, id, &made)?;
        Ok(secret)
    }

    /// Returns true if [`SoftwareBackend::internal_key`] has already made this key.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn has_internal_key(&self, id: &KeyId) -> Result<bool, KeyError> {
        let _changing = self.lock_for_change();
        Ok(self.store.read(NameSpace::Internal, id)?.is_some())
    }

    /// Stores the content of a key file that somebody else made, over a key that has this
    /// id: a private key becomes a key pair, bytes of no known form a symmetric key with
    /// every usage.
    ///
    /// # Errors
    /// If the content is no usable key, the id is a preloaded key's, or the store fails.
    pub fn import_file_content(&self, id: &KeyId, content: &SecretBytes) -> Result<(), KeyError> {
        let (kind, secret) = read_key_file(content)?;
        self.refuse_preloaded(id)?;
        let changing = self.lock_for_change();
        if let Some(existing) = self.store.read(NameSpace::Ordinary, id)? {
            self.keep_older(&changing, id, &existing, Some(&secret))?;
        }
        self.write(&changing, id, &StoredKey { kind, usage: Usage::ALL, secret })
    }

    /// Keeps what is about to be replaced, or deleted, for what is encrypted under it.
    fn keep_older(
        &self,
        _changing: &Changing<'_>,
        id: &KeyId,
        existing: &StoredKey,
        replacement: Option<&SecretBytes>,
    ) -> Result<(), KeyError> {
        let same = replacement.is_some_and(|new| new.expose() == existing.secret.expose());
        let encrypts =
            existing.usage.encrypt || existing.usage.derive_or_sign && (self.derived_encrypt)(id);
        if existing.kind == KeyKind::Symmetric && encrypts && !same {
            self.store.keep_older(id, existing)?;
        }
        Ok(())
    }

    fn lock_for_change(&self) -> Changing<'_> {
        lock(&self.changing)
    }

    fn ready(&self) -> MutexGuard<'_, ReadyKeys> {
        lock(&self.ready)
    }

    /// The key, ready for use; `None` if there is none.
    fn load(&self, id: &KeyId) -> Result<Option<Arc<Material>>, KeyError> {
        let stamp = match self.preloaded.get(id) {
            None => None,
            Some(path) => match FileStamp::of(path)? {
                None => return Ok(None),
                found => found,
            },
        };
        if let Some(ready) = self.ready().find(id, stamp) {
            return Ok(Some(ready));
        }
        let changing = self.lock_for_change();
        self.load_from_disk(&changing, id, stamp)
    }

    /// The key, if it is here. One that is preloaded may be another by now, which only
    /// its file says.
    fn in_memory(&self, id: &KeyId) -> Option<Arc<Material>> {
        if self.preloaded.contains_key(id) { None } else { self.ready().find(id, None) }
    }

    fn waiting(&self) -> Use<'_> {
        Use { backend: self, wait: true }
    }

    fn load_from_disk(
        &self,
        _changing: &Changing<'_>,
        id: &KeyId,
        stamp: Option<FileStamp>,
    ) -> Result<Option<Arc<Material>>, KeyError> {
        let material = if let Some(path) = self.preloaded.get(id) {
            let content = match secret_file::read(path, KEY_FILE_LIMIT as u64) {
                Ok(content) => content,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(source) => {
                    return Err(
                        StoreError::Io { action: "read", path: path.clone(), source }.into()
                    );
                }
            };
            read_key_file(&content)
                .and_then(|(kind, secret)| Material::from_stored(kind, Usage::ALL, secret))
                .map_err(|why| KeyError::PreloadedUnusable {
                    id: id.clone(),
                    path: path.clone(),
                    why,
                })?
        } else {
            let Some(stored) = self.store.read(NameSpace::Ordinary, id)? else { return Ok(None) };
            Material::from_stored(stored.kind, stored.usage, stored.secret).map_err(|source| {
                StoreError::Unusable { path: self.store.path(NameSpace::Ordinary, id), source }
            })?
        };
        let material = Arc::new(material);
        self.ready().insert(id.clone(), Arc::clone(&material), stamp);
        Ok(Some(material))
    }

    fn write(&self, _changing: &Changing<'_>, id: &KeyId, key: &StoredKey) -> Result<(), KeyError> {
        let written = self.store.write(NameSpace::Ordinary, id, key);
        // Also after a failure: it may have come after the new file was in place.
        self.ready().remove(id);
        Ok(written?)
    }

    fn refuse_preloaded(&self, id: &KeyId) -> Result<(), KeyError> {
        match self.preloaded.get(id) {
            Some(path) => Err(KeyError::Preloaded { id: id.clone(), path: path.clone() }),
            None => Ok(()),
        }
    }

    /// Stores what `make` makes, unless there is a key under this id; then that one has
    /// to be of the same kind.
    fn create(
        &self,
        id: &KeyId,
        kind: KeyKind,
        make: impl FnOnce() -> Result<(Usage, SecretBytes), KeyError>,
    ) -> Result<(), KeyError> {
        if let Some(existing) = self.load(id)? {
            return expect_kind(id, existing.kind(), kind);
        }
        self.refuse_preloaded(id)?;
        // Without the lock: making an RSA key takes long.
        let (usage, secret) = make()?;
        let changing = self.lock_for_change();
        match self.store.read(NameSpace::Ordinary, id)? {
            Some(existing) => expect_kind(id, existing.kind, kind),
            None => self.write(&changing, id, &StoredKey { kind, usage, secret }),
        }
    }
}

impl KeyBackend for SoftwareBackend {
    fn name(&self) -> &'static str {
        "software"
    }

    fn kind(&self, id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
        self.waiting().kind(id)
    }

    fn create_key(&self, id: &KeyId, usage: Usage) -> Result<(), KeyError> {
        self.create(id, KeyKind::Symmetric, || Ok((usage, random_key()?)))
    }

    fn import_key(&self, id: &KeyId, bytes: SecretBytes, usage: Usage) -> Result<(), KeyError> {
        material::check_symmetric(bytes.expose())?;
        self.refuse_preloaded(id)?;
        let changing = self.lock_for_change();
        if let Some(existing) = self.store.read(NameSpace::Ordinary, id)? {
            expect_kind(id, existing.kind, KeyKind::Symmetric)?;
            self.keep_older(&changing, id, &existing, Some(&bytes))?;
        }
        self.write(&changing, id, &StoredKey { kind: KeyKind::Symmetric, usage, secret: bytes })
    }

    fn create_key_pair(&self, id: &KeyId, preferred: &[PairAlgorithm]) -> Result<(), KeyError> {
        // Every algorithm that has a name here can be made here.
        let algorithm = *preferred.first().ok_or(InputError::PreferredAlgorithms)?;
        self.create(id, KeyKind::Pair, || Ok((Usage::ALL, Pair::generate(algorithm)?)))
    }

    /// Two steps, each atomic: the key is written under its new id, then removed under
    /// the old one. A crash between them leaves it under both, and moving again completes
    /// it.
    fn move_key_pair(&self, from: &KeyId, to: &KeyId) -> Result<(), KeyError> {
        if from == to {
            return Err(InputError::SameId.into());
        }
        self.refuse_preloaded(from)?;
        self.refuse_preloaded(to)?;
        let changing = self.lock_for_change();
        let key = self
            .store
            .read(NameSpace::Ordinary, from)?
            .ok_or_else(|| KeyError::NotFound { id: from.clone() })?;
        expect_kind(from, key.kind, KeyKind::Pair)?;
        if let Some(existing) = self.store.read(NameSpace::Ordinary, to)? {
            expect_kind(to, existing.kind, KeyKind::Pair)?;
        }
        self.write(&changing, to, &key)?;
        self.ready().remove(from);
        self.store.remove(NameSpace::Ordinary, from)?;
        Ok(())
    }

    fn delete(&self, id: &KeyId, kind: KeyKind) -> Result<(), KeyError> {
        self.refuse_preloaded(id)?;
        let changing = self.lock_for_change();
        let found = self
            .store
            .read(NameSpace::Ordinary, id)?
            .ok_or_else(|| KeyError::NotFound { id: id.clone() })?;
        expect_kind(id, found.kind, kind)?;
        self.keep_older(&changing, id, &found, None)?;
        self.ready().remove(id);
        self.store.remove(NameSpace::Ordinary, id)?;
        Ok(())
    }

    fn without_waiting(&self) -> Option<Box<dyn KeyBackend + '_>> {
        Some(Box::new(Use { backend: self, wait: false }))
    }

    fn public_parameter(
        &self,
        id: &KeyId,
        parameter: PublicParameter,
    ) -> Result<PublicValue, KeyError> {
        self.waiting().public_parameter(id, parameter)
    }

    fn sign_ecdsa(&self, id: &KeyId, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.waiting().sign_ecdsa(id, digest)
    }

    fn rsa_private_operation(
        &self,
        id: &KeyId,
        padding: RsaPadding,
        block: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.waiting().rsa_private_operation(id, padding, block)
    }

    fn hmac_sha256(&self, key: SymmetricKey<'_>, message: &[u8]) -> Result<[u8; 32], KeyError> {
        self.waiting().hmac_sha256(key, message)
    }

    fn encrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.waiting().encrypt(key, iv, aad, plaintext)
    }

    fn decrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        self.waiting().decrypt(key, iv, aad, ciphertext)
    }

    fn export_derived(
        &self,
        base: &KeyId,
        derivation_data: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        self.waiting().export_derived(base, derivation_data)
    }
}

impl Sealer for Tpm {
    fn seal(&self, secret: &SecretBytes) -> Result<Vec<u8>, KeyError> {
        Ok(Self::seal(self, secret, &SealTo::Tpm)?)
    }

    fn unseal(&self, sealed: &[u8]) -> Result<SecretBytes, KeyError> {
        Ok(Self::unseal(self, sealed, &AuthValue::empty())?)
    }
}

fn expect_kind(id: &KeyId, found: KeyKind, expected: KeyKind) -> Result<(), KeyError> {
    if found == expected {
        Ok(())
    } else {
        Err(KeyError::WrongKind { id: id.clone(), found, expected })
    }
}

fn random_key() -> Result<SecretBytes, KeyError> {
    let mut bytes = vec![0; GENERATED_LEN];
    rand::fill(&mut bytes).map_err(|_| KeyError::Library { operation: Operation::CreateKey })?;
    Ok(bytes.into())
}

/// Tells one content of a preloaded file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl FileStamp {
    fn of(path: &Path) -> Result<Option<Self>, StoreError> {
        match fs::metadata(path) {
            Ok(data) => Ok(Some(Self {
                device: data.dev(),
                inode: data.ino(),
                size: data.size(),
                changed: (data.ctime(), data.ctime_nsec()),
            })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { action: "look at", path: path.to_owned(), source }),
        }
    }
}

/// Keys in memory, a bounded number of them: the one used longest ago makes room.
#[derive(Default)]
struct ReadyKeys {
    keys: HashMap<KeyId, ReadyKey>,
    /// Counts uses.
    now: u64,
}

struct ReadyKey {
    material: Arc<Material>,
    /// Stamp of the file content that a preloaded key was read from; `None` for other
    /// keys.
    stamp: Option<FileStamp>,
    last_used: u64,
}

impl ReadyKeys {
    fn find(&mut self, id: &KeyId, stamp: Option<FileStamp>) -> Option<Arc<Material>> {
        self.now += 1;
        let key = self.keys.get_mut(id).filter(|key| key.stamp == stamp)?;
        key.last_used = self.now;
        Some(Arc::clone(&key.material))
    }

    fn insert(&mut self, id: KeyId, material: Arc<Material>, stamp: Option<FileStamp>) {
        if self.keys.len() >= READY_LIMIT && !self.keys.contains_key(&id) {
            let oldest =
                self.keys.iter().min_by_key(|(_, key)| key.last_used).map(|(id, _)| id.clone());
            if let Some(oldest) = oldest {
                self.keys.remove(&oldest);
            }
        }
        self.now += 1;
        self.keys.insert(id, ReadyKey { material, stamp, last_used: self.now });
    }

    fn remove(&mut self, id: &KeyId) {
        self.keys.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gcm;

    fn id(text: &str) -> KeyId {
        text.parse().unwrap()
    }

    fn open(folder: &Path) -> SoftwareBackend {
        SoftwareBackend::open(folder, BTreeMap::new()).unwrap()
    }

    fn mac(backend: &SoftwareBackend, key: &str) -> [u8; 32] {
        backend.hmac_sha256(SymmetricKey::Stored(&id(key)), b"message").unwrap()
    }

    fn point(backend: &SoftwareBackend, key: &str) -> PublicValue {
        backend.public_parameter(&id(key), PublicParameter::EcPoint).unwrap()
    }

    const SIGN: Usage = Usage { derive_or_sign: true, encrypt: false };
    const ENCRYPT: Usage = Usage { derive_or_sign: false, encrypt: true };

    #[test]
    fn keys_survive_a_restart_and_creating_again_keeps_them() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        backend.create_key(&id("k"), SIGN).unwrap();
        backend.create_key_pair(&id("p"), &[PairAlgorithm::EcP256]).unwrap();
        let before = (mac(&backend, "k"), point(&backend, "p"));
        drop(backend);
        let backend = open(folder.path());
        backend.create_key(&id("k"), SIGN).unwrap();
        backend.create_key_pair(&id("p"), &[PairAlgorithm::Rsa2048]).unwrap();
        assert_eq!((mac(&backend, "k"), point(&backend, "p")), before);
    }

    #[test]
    fn importing_replaces_the_key_also_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        backend.create_key(&id("k"), SIGN).unwrap();
        let before = mac(&backend, "k");
        backend.import_key(&id("k"), vec![7].into(), SIGN).unwrap();
        assert_ne!(mac(&backend, "k"), before);
        assert_eq!(mac(&backend, "k"), material::hmac_sha256(&[7], b"message"));
        let error = backend.import_key(&id("k"), vec![].into(), SIGN).unwrap_err();
        assert!(matches!(error, KeyError::Input(InputError::EmptyKey)), "{error}");
    }

    #[test]
    fn moving_a_pair_overwrites_the_target_and_leaves_nothing_at_the_source() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        backend.create_key_pair(&id("ca"), &[PairAlgorithm::EcP256]).unwrap();
        backend.create_key_pair(&id("ca-temp"), &[PairAlgorithm::EcP256]).unwrap();
        let (old, new) = (point(&backend, "ca"), point(&backend, "ca-temp"));
        assert_ne!(old, new);
        backend.move_key_pair(&id("ca-temp"), &id("ca")).unwrap();
        assert_eq!(point(&backend, "ca"), new);
        assert_eq!(backend.kind(&id("ca-temp")).unwrap(), None);
        assert!(matches!(
            backend.move_key_pair(&id("ca-temp"), &id("ca")),
            Err(KeyError::NotFound { id }) if id.as_str() == "ca-temp"
        ));
        assert!(matches!(
            backend.move_key_pair(&id("ca"), &id("ca")),
            Err(KeyError::Input(InputError::SameId))
        ));
    }

    #[test]
    fn a_move_that_was_cut_off_between_its_steps_is_completed_by_moving_again() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        backend.create_key_pair(&id("ca-temp"), &[PairAlgorithm::EcP256]).unwrap();
        let new = point(&backend, "ca-temp");
        let key = backend.store.read(NameSpace::Ordinary, &id("ca-temp")).unwrap().unwrap();
        backend.store.write(NameSpace::Ordinary, &id("ca"), &key).unwrap();
        drop(backend);

        let backend = open(folder.path());
        assert_eq!(point(&backend, "ca"), new);
        backend.move_key_pair(&id("ca-temp"), &id("ca")).unwrap();
        assert_eq!(point(&backend, "ca"), new);
        assert_eq!(backend.kind(&id("ca-temp")).unwrap(), None);
    }

    #[test]
    fn usage_is_enforced_and_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        backend.create_key(&id("s"), SIGN).unwrap();
        backend.create_key(&id("e"), ENCRYPT).unwrap();
        drop(backend);
        let backend = open(folder.path());
        let (signing, encrypting) = (id("s"), id("e"));
        let refused = |error: KeyError| matches!(error, KeyError::UsageNotAllowed { .. });
        assert!(refused(
            backend.encrypt(SymmetricKey::Stored(&signing), b"iv", b"", b"").unwrap_err()
        ));
        assert!(refused(backend.hmac_sha256(SymmetricKey::Stored(&encrypting), b"").unwrap_err()));
        assert!(refused(backend.export_derived(&encrypting, b"").err().unwrap()));
        let derived = SymmetricKey::Derived { base: &encrypting, data: b"d" };
        assert!(refused(backend.hmac_sha256(derived, b"").unwrap_err()));
        backend.encrypt(SymmetricKey::Stored(&encrypting), b"iv", b"", b"").unwrap();
        backend
            .encrypt(SymmetricKey::Derived { base: &signing, data: b"d" }, b"iv", b"", b"")
            .unwrap();
    }

    #[test]
    fn a_derived_key_is_the_hmac_of_its_data_wherever_it_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        backend.import_key(&id("base"), b"base key".to_vec().into(), SIGN).unwrap();
        let base = id("base");
        let derived = material::hmac_sha256(b"base key", b"module");
        assert_eq!(backend.export_derived(&base, b"module").unwrap().expose(), derived);
        let key = SymmetricKey::Derived { base: &base, data: b"module" };
        assert_eq!(backend.hmac_sha256(key, b"m").unwrap(), material::hmac_sha256(&derived, b"m"));
        let sealed = backend.encrypt(key, b"iv", b"aad", b"text").unwrap();
        assert_eq!(gcm::decrypt(&derived, b"iv", b"aad", &sealed).unwrap().expose(), b"text");
        assert_eq!(backend.decrypt(key, b"iv", b"aad", &sealed).unwrap().expose(), b"text");
    }

    #[test]
    fn the_two_kinds_share_one_name_space_and_never_replace_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        backend.create_key(&id("k"), Usage::ALL).unwrap();
        backend.create_key_pair(&id("p"), &[PairAlgorithm::EcP256]).unwrap();
        let wrong =
            |result: Result<(), KeyError>| matches!(result, Err(KeyError::WrongKind { .. }));
        assert!(wrong(backend.create_key(&id("p"), Usage::ALL)));
        assert!(wrong(backend.create_key_pair(&id("k"), &[PairAlgorithm::EcP256])));
        assert!(wrong(backend.import_key(&id("p"), vec![1].into(), Usage::ALL)));
        assert!(wrong(backend.move_key_pair(&id("p"), &id("k"))));
        assert!(wrong(backend.move_key_pair(&id("k"), &id("q"))));
        assert!(wrong(backend.delete(&id("p"), KeyKind::Symmetric)));
        assert!(wrong(backend.sign_ecdsa(&id("k"), &[0; 32]).map(drop)));
        assert!(wrong(backend.hmac_sha256(SymmetricKey::Stored(&id("p")), b"").map(drop)));
        assert_eq!(backend.kind(&id("k")).unwrap(), Some(KeyKind::Symmetric));
        assert_eq!(backend.kind(&id("p")).unwrap(), Some(KeyKind::Pair));
    }

    #[test]
    fn a_deleted_key_is_gone_from_disk_and_memory() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        backend.create_key(&id("k"), SIGN).unwrap();
        let _ = mac(&backend, "k");
        backend.delete(&id("k"), KeyKind::Symmetric).unwrap();
        assert!(matches!(
            backend.hmac_sha256(SymmetricKey::Stored(&id("k")), b""),
            Err(KeyError::NotFound { .. })
        ));
        assert!(matches!(
            backend.delete(&id("k"), KeyKind::Symmetric),
            Err(KeyError::NotFound { .. })
        ));
    }

    fn decrypts(
        backend: &SoftwareBackend,
        key: SymmetricKey<'_>,
        sealed: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        backend.decrypt(key, b"iv", b"aad", sealed).map(SecretBytes::into_exposed)
    }

    #[test]
    fn what_an_earlier_version_encrypted_is_decrypted_however_the_key_was_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        let master = id("master");
        let key = SymmetricKey::Stored(&master);
        let mut sealed = Vec::new();
        let encrypt =
            |backend: &SoftwareBackend| backend.encrypt(key, b"iv", b"aad", b"text").unwrap();
        backend.create_key(&master, ENCRYPT).unwrap();
        sealed.push(encrypt(&backend));
        backend.import_key(&master, vec![1; 32].into(), ENCRYPT).unwrap();
        sealed.push(encrypt(&backend));
        backend.delete(&master, KeyKind::Symmetric).unwrap();
        assert!(matches!(decrypts(&backend, key, &sealed[0]), Err(KeyError::NotFound { .. })));
        backend.create_key(&master, ENCRYPT).unwrap();
        sealed.push(encrypt(&backend));
        backend.import_file_content(&master, &vec![2; 32].into()).unwrap();
        sealed.push(encrypt(&backend));
        drop(backend);
        let backend = open(folder.path());
        for sealed in &sealed {
            assert_eq!(decrypts(&backend, key, sealed).unwrap(), b"text");
        }
        // Only the present version encrypts.
        assert_eq!(
            gcm::decrypt(&[2; 32], b"iv", b"aad", &encrypt(&backend)).unwrap().expose(),
            b"text"
        );
        // What no version fits is told from what has no version to fit.
        let foreign = gcm::encrypt(&[9; 32], b"iv", b"aad", b"text").unwrap();
        let error = decrypts(&backend, key, &foreign).unwrap_err();
        assert!(
            matches!(error, KeyError::Input(InputError::NoVersionFits { versions: 4 })),
            "{error}"
        );
        assert!(error.is_callers_fault() && error.to_string().contains("4 versions"), "{error}");
        assert!(matches!(
            decrypts(&backend, key, b"x"),
            Err(KeyError::Input(InputError::CiphertextVersion { .. }))
        ));
        assert!(matches!(
            decrypts(&backend, key, &[2; 9]),
            Err(KeyError::Input(InputError::ShortCiphertext))
        ));
    }

    #[test]
    fn earlier_versions_of_a_base_decrypt_what_was_encrypted_under_what_it_derives() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        let base = id("base");
        backend.import_key(&base, vec![1].into(), Usage::ALL).unwrap();
        let key = SymmetricKey::Derived { base: &base, data: b"module" };
        let sealed = backend.encrypt(key, b"iv", b"aad", b"text").unwrap();
        backend.import_key(&base, vec![2].into(), Usage::ALL).unwrap();
        assert_eq!(decrypts(&backend, key, &sealed).unwrap(), b"text");
        let other = SymmetricKey::Derived { base: &base, data: b"another" };
        assert!(decrypts(&backend, other, &sealed).is_err());
    }

    #[test]
    fn a_base_that_only_derives_is_kept_if_what_it_derives_encrypts() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path()).keeping_replaced(|id| id.as_str() == "base");
        for (name, kept) in [("base", true), ("signs", false)] {
            let base = id(name);
            let key = SymmetricKey::Derived { base: &base, data: b"module" };
            let mut sealed = Vec::new();
            for fill in [1, 2] {
                backend.import_key(&base, vec![fill].into(), SIGN).unwrap();
                sealed.push(backend.encrypt(key, b"iv", b"aad", b"text").unwrap());
            }
            backend.delete(&base, KeyKind::Symmetric).unwrap();
            backend.create_key(&base, SIGN).unwrap();
            for sealed in &sealed {
                assert_eq!(decrypts(&backend, key, sealed).is_ok(), kept, "{name}");
            }
        }
    }

    #[test]
    fn the_latest_versions_are_kept_and_no_more_than_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        let master = id("master");
        let key = SymmetricKey::Stored(&master);
        let versions = u8::try_from(older::VERSION_LIMIT).unwrap() + 4;
        for fill in 0..versions {
            // Each one twice: the same key is not a version.
            for _ in 0..2 {
                backend.import_key(&master, vec![fill; 32].into(), ENCRYPT).unwrap();
            }
        }
        for fill in 0..versions {
            let sealed = gcm::encrypt(&[fill; 32], b"iv", b"aad", b"text").unwrap();
            assert_eq!(decrypts(&backend, key, &sealed).is_ok(), fill >= 3, "{fill}");
        }
        // A key that only signs leaves nothing behind.
        backend.create_key(&id("s"), SIGN).unwrap();
        backend.delete(&id("s"), KeyKind::Symmetric).unwrap();
        assert_eq!(backend.store.older(&id("s")).unwrap().len(), 0);
        assert_eq!(
            fs::read_dir(folder.path().join("older")).unwrap().count(),
            older::VERSION_LIMIT
        );
    }

    #[test]
    fn who_fills_the_earlier_versions_pushes_out_none_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        let master = id("master");
        let sealed = gcm::encrypt(&[1; 32], b"iv", b"aad", b"text").unwrap();
        for fill in [1, 2] {
            backend.import_key(&master, vec![fill; 32].into(), ENCRYPT).unwrap();
        }
        // As many versions of others, without the time that writing them takes.
        for number in 0..older::TOTAL_LIMIT {
            fs::write(folder.path().join(format!("older/flood-{number}.1.key")), b"").unwrap();
        }
        backend.create_key(&id("flood"), ENCRYPT).unwrap();
        let error = backend.delete(&id("flood"), KeyKind::Symmetric).unwrap_err();
        assert!(matches!(error.cause(), Some(StoreError::TooManyOlder { .. })), "{error}");
        assert!(backend.kind(&id("flood")).unwrap().is_some());
        assert!(backend.import_key(&id("flood"), vec![7; 32].into(), ENCRYPT).is_err());
        assert!(decrypts(&backend, SymmetricKey::Stored(&master), &sealed).is_ok());
        // What leaves nothing behind goes on.
        backend.create_key(&id("s"), SIGN).unwrap();
        backend.delete(&id("s"), KeyKind::Symmetric).unwrap();
    }

    #[test]
    fn a_damaged_earlier_version_costs_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        let master = id("master");
        for fill in 1..=3 {
            backend.import_key(&master, vec![fill; 32].into(), ENCRYPT).unwrap();
        }
        let path = backend.store.path(NameSpace::Older, &master).with_extension("2.key");
        fs::write(&path, b"junk").unwrap();
        for (fill, there) in [(1, true), (2, false), (3, true)] {
            let sealed = gcm::encrypt(&[fill; 32], b"iv", b"aad", b"text").unwrap();
            assert_eq!(
                decrypts(&backend, SymmetricKey::Stored(&master), &sealed).is_ok(),
                there,
                "{fill}"
            );
        }
        assert!(path.with_extension("key.corrupt-1").exists());
    }

    #[test]
    fn the_daemons_own_keys_are_not_in_the_name_space_of_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        let own = backend.internal_key(&id("handle-validation-key")).unwrap();
        assert_eq!(backend.kind(&id("handle-validation-key")).unwrap(), None);
        backend.create_key(&id("handle-validation-key"), SIGN).unwrap();
        drop(backend);
        let backend = open(folder.path());
        assert_eq!(
            backend.internal_key(&id("handle-validation-key")).unwrap().expose(),
            own.expose()
        );
    }

    #[test]
    fn a_preloaded_key_follows_its_file_and_is_never_changed_here() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, b"one").unwrap();
        let preloaded = BTreeMap::from([(id("k"), path.clone())]);
        let backend = SoftwareBackend::open(&folder.path().join("state"), preloaded).unwrap();
        assert_eq!(mac(&backend, "k"), material::hmac_sha256(b"one", b"message"));
        fs::write(&path, b"another").unwrap();
        assert_eq!(mac(&backend, "k"), material::hmac_sha256(b"another", b"message"));
        backend.create_key(&id("k"), SIGN).unwrap();
        let preloaded =
            |result: Result<(), KeyError>| matches!(result, Err(KeyError::Preloaded { .. }));
        assert!(preloaded(backend.import_key(&id("k"), vec![1].into(), SIGN)));
        assert!(preloaded(backend.delete(&id("k"), KeyKind::Symmetric)));
        assert!(preloaded(backend.move_key_pair(&id("k"), &id("p"))));
        fs::remove_file(&path).unwrap();
        assert_eq!(backend.kind(&id("k")).unwrap(), None);
        assert!(preloaded(backend.create_key(&id("k"), SIGN)));
    }

    #[test]
    fn no_more_keys_than_the_limit_are_held_in_memory_and_the_rest_still_work() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        let names: Vec<String> = (0..READY_LIMIT + 3).map(|number| format!("k{number}")).collect();
        for (number, name) in names.iter().enumerate() {
            backend.import_key(&id(name), number.to_be_bytes().to_vec().into(), SIGN).unwrap();
        }
        for _ in 0..2 {
            for (number, name) in names.iter().enumerate() {
                assert_eq!(
                    mac(&backend, name),
                    material::hmac_sha256(&number.to_be_bytes(), b"message")
                );
            }
        }
        assert_eq!(backend.ready().keys.len(), READY_LIMIT);
    }

    #[test]
    fn of_many_who_create_the_same_key_at_once_all_get_the_same_one() {
        let folder = tempfile::tempdir().unwrap();
        let backend = open(folder.path());
        let macs: Vec<[u8; 32]> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        backend.create_key(&id("k"), SIGN).unwrap();
                        mac(&backend, "k")
                    })
                })
                .collect();
            makers.into_iter().map(|maker| maker.join().unwrap()).collect()
        });
        assert!(macs.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
