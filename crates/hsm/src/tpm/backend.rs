//! The keys API's view of a TPM: keys under ids, each a wrapped blob in a file.
//!
//! What a TPM does not do is refused with a typed answer, so that another backend can be
//! asked: AES-GCM with a kept key (with a derived one it is done here, as for every
//! backend), RSA with 4096 bits.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use aws_lc_rs::digest::{SHA256, digest};
use edgekeep_base::file;
use edgekeep_base::lock::lock;
use edgekeep_core::id::KeyId;
use edgekeep_tpm::{
    Algorithm, Blob, Key, KeyType, NewKey, Public, Record, RecordKind, Tpm, TpmError, Unreadable,
};

use super::hmac_keys::{HmacKeys, p256_digest};
use crate::SecretBytes;
use crate::backend::{
    InputError, KeyBackend, KeyError, KeyKind, Operation, PairAlgorithm, PublicParameter,
    PublicValue, RsaPadding, SymmetricKey, Usage,
};
use crate::material;
use crate::software::StoreError;
use crate::software::durable::{
    KeyFile, failed, make_folder, names, read_key_file, remove_leftovers, replace, set_aside,
    sync_folder_of,
};
use crate::software::store::file_name;

/// Keys whose blobs are held in memory.
const READY_LIMIT: usize = 128;
/// Largest blob file that is read, in bytes; none that is written here is larger.
pub(super) const FILE_LIMIT: u64 = 16 * 1024;
/// Block length of SHA-256: what HMAC keys longer than it are hashed to is the same key.
const HMAC_BLOCK_LEN: usize = 64;
/// Length of the modulus, in bytes.
const RSA_LEN: usize = 256;
/// Least number of bytes that PKCS#1 v1.5 padding adds.
const PKCS1_OVERHEAD: usize = 11;

/// Keys in a TPM.
pub struct TpmBackend {
    tpm: Mutex<Tpm>,
    folder: PathBuf,
    ready: Mutex<HashMap<KeyId, Arc<Record>>>,
    /// Held while files are changed.
    changing: Mutex<()>,
    /// Keeps other processes out as long as it is open.
    _lock: File,
}

type Changing<'a> = MutexGuard<'a, ()>;

impl TpmBackend {
    /// Keeps the blobs in `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// If another process uses the folder, or it cannot be used.
    pub fn open(tpm: Tpm, folder: &Path) -> Result<Self, StoreError> {
        make_folder(folder)?;
        let lock_path = folder.join("lock");
        let lock = file::open_to_lock(&lock_path, 0o600).map_err(failed("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse { path: folder.to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", &lock_path)(source)),
        }
        remove_leftovers(folder)?;
        Ok(Self {
            tpm: Mutex::new(tpm),
            folder: folder.to_owned(),
            ready: Mutex::default(),
            changing: Mutex::default(),
            _lock: lock,
        })
    }

    /// The TPM itself, for what is not about keys under ids. Other uses wait meanwhile.
    pub fn with_tpm<T>(&self, operation: impl FnOnce(&Tpm) -> T) -> T {
        operation(&self.tpm())
    }

    fn tpm(&self) -> MutexGuard<'_, Tpm> {
        // What a panic left loaded was flushed by its guards.
        lock(&self.tpm)
    }

    fn ready(&self) -> MutexGuard<'_, HashMap<KeyId, Arc<Record>>> {
        lock(&self.ready)
    }

    fn lock_for_change(&self) -> Changing<'_> {
        lock(&self.changing)
    }

    fn path(&self, id: &KeyId) -> PathBuf {
        self.folder.join(file_name(id))
    }

    fn load(&self, id: &KeyId) -> Result<Option<Arc<Record>>, KeyError> {
        if let Some(ready) = self.ready().get(id) {
            return Ok(Some(Arc::clone(ready)));
        }
        let changing = self.lock_for_change();
        let Some(record) = self.read(&changing, id)? else { return Ok(None) };
        let record = Arc::new(record);
        let mut ready = self.ready();
        if ready.len() >= READY_LIMIT {
            // Rare: a device has a few dozen. Reading them again costs a file read each.
            ready.clear();
        }
        ready.insert(id.clone(), Arc::clone(&record));
        Ok(Some(record))
    }

    fn read(&self, _changing: &Changing<'_>, id: &KeyId) -> Result<Option<Record>, StoreError> {
        let path = self.path(id);
        let decoded = match read_key_file(&path, FILE_LIMIT)? {
            KeyFile::Absent => return Ok(None),
            KeyFile::TooLong => Err(Unreadable::Damaged),
            KeyFile::Content(content) => Record::decode(&content),
        };
        match decoded {
            Ok(record) if record.id == id.as_str() && kind_in(&record).is_some() => {
                Ok(Some(record))
            }
            Err(Unreadable::Version(found)) => Err(StoreError::Version { path, found }),
            Ok(_) | Err(Unreadable::Damaged) => {
                let set_aside = set_aside(&path)?;
                tracing::error!(key = id.as_str(), file = ?set_aside, "a damaged key file was set aside");
                Err(StoreError::Damaged { id: id.clone(), set_aside })
            }
        }
    }

    fn write(&self, _changing: &Changing<'_>, id: &KeyId, record: &Record) -> Result<(), KeyError> {
        let written = replace(&self.path(id), &record.encode()?);
        // Also after a failure: it may have come after the new file was in place.
        self.ready().remove(id);
        Ok(written?)
    }

    fn remove(&self, _changing: &Changing<'_>, id: &KeyId) -> Result<(), KeyError> {
        self.ready().remove(id);
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(failed("remove", &path)(error).into())
            }
            _ => Ok(sync_folder_of(&path)?),
        }
    }

    /// Makes a wrapped key.
    fn make(
        &self,
        id: &KeyId,
        kind: RecordKind,
        usage: Usage,
        new: NewKey<'_>,
    ) -> Result<Record, KeyError> {
        let (blob, root_name) = self.tpm().create_key(new)?;
        let usage = usage_bits(usage);
        Ok(Record { kind, usage, pcrs: 0, id: id.as_str().to_owned(), root_name, blob })
    }

    /// Stores what `make` makes, unless there is a key under this id; then that one has
    /// to be of the same kind.
    fn create(
        &self,
        id: &KeyId,
        kind: KeyKind,
        make: impl FnOnce() -> Result<Record, KeyError>,
    ) -> Result<(), KeyError> {
        if let Some(existing) = self.load(id)? {
            return expect_kind(id, &existing, kind);
        }
        // Without the lock: making an RSA key takes long.
        let record = make()?;
        let changing = self.lock_for_change();
        match self.read(&changing, id)? {
            Some(existing) => expect_kind(id, &existing, kind),
            None => self.write(&changing, id, &record),
        }
    }

    fn expect(&self, id: &KeyId, kind: KeyKind) -> Result<Arc<Record>, KeyError> {
        let record = self.load(id)?.ok_or_else(|| KeyError::NotFound { id: id.clone() })?;
        expect_kind(id, &record, kind)?;
        Ok(record)
    }

    fn pair(&self, id: &KeyId) -> Result<(Arc<Record>, Public), KeyError> {
        let record = self.expect(id, KeyKind::Pair)?;
        let public = Key::wrapped(Cow::Borrowed(&record))?.public().cloned();
        Ok((record, public.ok_or(TpmError::DamagedBlob)?))
    }

    fn forget(&self, blob: &Blob) {
        self.tpm().forget(blob);
    }
}

/// Ids of the keys that a TPM's folder has, in order. Needs no TPM; what is damaged is
/// left out.
///
/// # Errors
/// If the folder cannot be read. That there is none is no error.
pub fn kept_keys(folder: &Path) -> Result<Vec<KeyId>, StoreError> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut ids = Vec::new();
    for name in names(folder)?.into_iter().filter(|name| name.ends_with(".key")) {
        let path = folder.join(name);
        let KeyFile::Content(content) = read_key_file(&path, FILE_LIMIT)? else { continue };
        ids.extend(Record::decode(&content).ok().and_then(|record| record.id.parse().ok()));
    }
    ids.sort();
    Ok(ids)
}

impl HmacKeys for TpmBackend {
    fn kept_hmac(&self, id: &KeyId, message: &[u8]) -> Result<[u8; 32], KeyError> {
        let record = self.expect(id, KeyKind::Symmetric)?;
        if !usage_of(&record).derive_or_sign {
            return Err(KeyError::UsageNotAllowed { id: id.clone(), needed: "derive,sign" });
        }
        Ok(self.tpm().hmac_sha256(&Key::wrapped(Cow::Borrowed(&record))?, message)?)
    }

    fn no_cipher(&self, id: &KeyId, operation: Operation) -> KeyError {
        match self.expect(id, KeyKind::Symmetric) {
            Err(error) => error,
            Ok(record) if usage_of(&record).encrypt => self.not_supported(operation),
            Ok(_) => KeyError::UsageNotAllowed { id: id.clone(), needed: "encrypt" },
        }
    }
}

impl KeyBackend for TpmBackend {
    fn name(&self) -> &'static str {
        "tpm"
    }

    fn kind(&self, id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
        Ok(self.load(id)?.and_then(|record| kind_in(&record)))
    }

    fn create_key(&self, id: &KeyId, usage: Usage) -> Result<(), KeyError> {
        self.create(id, KeyKind::Symmetric, || {
            if usage.encrypt || !usage.derive_or_sign {
                return Err(self.not_supported(Operation::CreateKey));
            }
            self.make(id, RecordKind::Symmetric, usage, NewKey::Hmac)
        })
    }

    fn import_key(&self, id: &KeyId, bytes: SecretBytes, usage: Usage) -> Result<(), KeyError> {
        material::check_symmetric(bytes.expose())?;
        if usage.encrypt || !usage.derive_or_sign {
            return Err(self.not_supported(Operation::ImportKey));
        }
        let hashed;
        let secret = if bytes.expose().len() > HMAC_BLOCK_LEN {
            hashed = digest(&SHA256, bytes.expose());
            hashed.as_ref()
        } else {
            bytes.expose()
        };
        if let Some(existing) = self.load(id)? {
            expect_kind(id, &existing, KeyKind::Symmetric)?;
        }
        let record = self.make(id, RecordKind::Symmetric, usage, NewKey::HmacOf(secret))?;
        let changing = self.lock_for_change();
        let existing = self.read(&changing, id)?;
        if let Some(existing) = &existing {
            expect_kind(id, existing, KeyKind::Symmetric)?;
        }
        self.write(&changing, id, &record)?;
        drop(changing);
        if let Some(existing) = existing {
            self.forget(&existing.blob);
        }
        Ok(())
    }

    fn create_key_pair(&self, id: &KeyId, preferred: &[PairAlgorithm]) -> Result<(), KeyError> {
        if preferred.is_empty() {
            return Err(InputError::PreferredAlgorithms.into());
        }
        self.create(id, KeyKind::Pair, || {
            let new = preferred.iter().find_map(|algorithm| match algorithm {
                PairAlgorithm::EcP256 => Some(NewKey::SignP256),
                PairAlgorithm::Rsa2048 => Some(NewKey::Rsa2048),
                // A TPM need not have these.
                PairAlgorithm::EcP384 | PairAlgorithm::Rsa4096 => None,
            });
            let new = new.ok_or_else(|| self.not_supported(Operation::CreateKeyPair))?;
            self.make(id, RecordKind::Pair, Usage::ALL, new)
        })
    }

    /// Two steps, each atomic: the key is written under its new id, then removed under
    /// the old one. A crash between them leaves it under both, and moving again completes
    /// it.
    fn move_key_pair(&self, from: &KeyId, to: &KeyId) -> Result<(), KeyError> {
        if from == to {
            return Err(InputError::SameId.into());
        }
        let changing = self.lock_for_change();
        let mut record =
            self.read(&changing, from)?.ok_or_else(|| KeyError::NotFound { id: from.clone() })?;
        expect_kind(from, &record, KeyKind::Pair)?;
        let replaced = self.read(&changing, to)?;
        if let Some(existing) = &replaced {
            expect_kind(to, existing, KeyKind::Pair)?;
        }
        to.as_str().clone_into(&mut record.id);
        self.write(&changing, to, &record)?;
        self.remove(&changing, from)?;
        drop(changing);
        if let Some(replaced) = replaced.filter(|replaced| replaced.blob != record.blob) {
            self.forget(&replaced.blob);
        }
        Ok(())
    }

    fn delete(&self, id: &KeyId, kind: KeyKind) -> Result<(), KeyError> {
        let changing = self.lock_for_change();
        let record =
            self.read(&changing, id)?.ok_or_else(|| KeyError::NotFound { id: id.clone() })?;
        expect_kind(id, &record, kind)?;
        self.remove(&changing, id)?;
        drop(changing);
        self.forget(&record.blob);
        Ok(())
    }

    fn public_parameter(
        &self,
        id: &KeyId,
        parameter: PublicParameter,
    ) -> Result<PublicValue, KeyError> {
        public_value(&self.pair(id)?.1, parameter)
    }

    fn sign_ecdsa(&self, id: &KeyId, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
        let (record, public) = self.pair(id)?;
        if !matches!(public.algorithm, Algorithm::EccP256 { .. }) {
            return Err(self.not_supported(Operation::SignEcdsa));
        }
        let fitted = p256_digest(digest)?;
        Ok(self.tpm().sign_ecdsa_p256(&Key::wrapped(Cow::Borrowed(&record))?, &fitted)?)
    }

    fn rsa_private_operation(
        &self,
        id: &KeyId,
        padding: RsaPadding,
        block: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        let (record, public) = self.pair(id)?;
        let Algorithm::Rsa2048 { modulus } = &public.algorithm else {
            return Err(self.not_supported(Operation::RsaPrivateOperation));
        };
        let block = pad_for_rsa(padding, block, modulus)?;
        Ok(self.tpm().rsa_private(&Key::wrapped(Cow::Borrowed(&record))?, &block)?)
    }

    fn hmac_sha256(&self, key: SymmetricKey<'_>, message: &[u8]) -> Result<[u8; 32], KeyError> {
        self.hmac_with(key, message)
    }

    fn encrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.encrypt_with(key, iv, aad, plaintext)
    }

    fn decrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        self.decrypt_with(key, iv, aad, ciphertext)
    }

    fn export_derived(
        &self,
        base: &KeyId,
        derivation_data: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        self.derive(base, derivation_data)
    }
}

pub(super) fn kind_of(key: KeyType) -> KeyKind {
    match key {
        KeyType::Hmac => KeyKind::Symmetric,
        KeyType::Pair => KeyKind::Pair,
    }
}

/// The kind of key in a record; `None` if it holds none that can have an id.
fn kind_in(record: &Record) -> Option<KeyKind> {
    record.kind.key_type().map(kind_of)
}

/// A usage as records keep it: bit 0 derive and sign, bit 1 encrypt.
fn usage_bits(usage: Usage) -> u8 {
    u8::from(usage.derive_or_sign) | u8::from(usage.encrypt) << 1
}

fn usage_of(record: &Record) -> Usage {
    Usage { derive_or_sign: record.usage & 1 != 0, encrypt: record.usage & 2 != 0 }
}

fn expect_kind(id: &KeyId, record: &Record, expected: KeyKind) -> Result<(), KeyError> {
    match kind_in(record) {
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(KeyError::WrongKind { id: id.clone(), found, expected }),
        None => Err(TpmError::DamagedBlob.into()),
    }
}

/// A parameter of a public key.
pub(super) fn public_value(
    public: &Public,
    parameter: PublicParameter,
) -> Result<PublicValue, KeyError> {
    Ok(match (&public.algorithm, parameter) {
        (Algorithm::EccP256 { .. }, PublicParameter::Algorithm) => PublicValue::Word("ECDSA"),
        (Algorithm::EccP256 { .. }, PublicParameter::EcCurveOid) => {
            PublicValue::Bytes(material::P256.oid.to_vec())
        }
        (Algorithm::EccP256 { x, y }, PublicParameter::EcPointUncompressed) => {
            PublicValue::Bytes(uncompressed(x, y)?)
        }
        (Algorithm::EccP256 { x, y }, PublicParameter::EcPoint) => {
            let point = material::compress(&uncompressed(x, y)?, material::P256.len);
            PublicValue::Bytes(point.ok_or(TpmError::DamagedBlob)?)
        }
        (Algorithm::Rsa2048 { .. }, PublicParameter::Algorithm) => PublicValue::Word("RSA"),
        (Algorithm::Rsa2048 { modulus }, PublicParameter::RsaModulus) => {
            PublicValue::Bytes(modulus.clone())
        }
        (Algorithm::Rsa2048 { .. }, PublicParameter::RsaExponent) => {
            PublicValue::Bytes(vec![1, 0, 1])
        }
        _ => return Err(InputError::NoSuchParameter.into()),
    })
}

/// The point in the form that certificates hold.
fn uncompressed(x: &[u8], y: &[u8]) -> Result<Vec<u8>, TpmError> {
    let mut point = vec![4];
    for coordinate in [x, y] {
        let missing =
            material::P256.len.checked_sub(coordinate.len()).ok_or(TpmError::DamagedBlob)?;
        point.resize(point.len() + missing, 0);
        point.extend_from_slice(coordinate);
    }
    Ok(point)
}

/// The block as long as the modulus that the private-key operation is done on.
pub(super) fn pad_for_rsa(
    padding: RsaPadding,
    block: &[u8],
    modulus: &[u8],
) -> Result<Vec<u8>, InputError> {
    let wrong = InputError::RsaBlock { limit: RSA_LEN - PKCS1_OVERHEAD };
    match padding {
        RsaPadding::Pkcs1 if block.len() <= RSA_LEN - PKCS1_OVERHEAD => {
            // Type 1, for signatures (RFC 8017, 9.2).
            let mut padded = vec![0, 1];
            padded.resize(RSA_LEN - block.len() - 1, 0xff);
            padded.push(0);
            padded.extend_from_slice(block);
            Ok(padded)
        }
        RsaPadding::None if block.len() == modulus.len() && block < modulus => Ok(block.to_vec()),
        _ => Err(wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rsa_blocks_that_do_not_fit_never_reach_the_tpm() {
        let modulus = [0xc0; RSA_LEN];
        for (padding, block) in [
            (RsaPadding::Pkcs1, vec![1; 246]),
            (RsaPadding::None, vec![1; 255]),
            (RsaPadding::None, vec![1; 257]),
            (RsaPadding::None, modulus.to_vec()),
        ] {
            assert_eq!(
                pad_for_rsa(padding, &block, &modulus),
                Err(InputError::RsaBlock { limit: 245 })
            );
        }
        let padded = pad_for_rsa(RsaPadding::Pkcs1, &[7; 245], &modulus).unwrap();
        assert_eq!(padded[..11], [0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
        assert_eq!(padded.len(), RSA_LEN);
    }

    #[test]
    fn short_coordinates_get_their_zeros_back() {
        let point = uncompressed(&[7; 31], &[8; 32]).unwrap();
        assert_eq!((point.len(), point[0], point[1], point[2]), (65, 4, 0, 7));
        assert!(uncompressed(&[7; 33], &[8; 32]).is_err());
    }
}
