//! Keys that were put into a TPM, or wrapped by it, by somebody else: used here, and
//! never changed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgekeep_base::file::{self, Rules};
use edgekeep_core::id::KeyId;
use edgekeep_tpm::{Algorithm, Key, Public, Record, Tpm, TpmError};

use super::backend::{FILE_LIMIT, TpmBackend, kind_of, pad_for_rsa, public_value};
use super::hmac_keys::{HmacKeys, p256_digest};
use crate::SecretBytes;
use crate::backend::{
    KeyBackend, KeyError, KeyKind, Operation, PairAlgorithm, PublicParameter, PublicValue,
    RsaPadding, SymmetricKey, Usage,
};
use crate::software::durable::failed;
use crate::uri::{KeyUri, TpmKey};

/// Keys under the handles and in the files that the configuration names. They have no
/// auth values.
pub struct TpmPreloaded {
    tpm: Arc<TpmBackend>,
    keys: BTreeMap<KeyId, TpmKey>,
}

impl TpmPreloaded {
    /// These keys in the TPM of this backend.
    #[must_use]
    pub fn new(tpm: Arc<TpmBackend>, keys: BTreeMap<KeyId, TpmKey>) -> Self {
        Self { tpm, keys }
    }

    fn find(&self, tpm: &Tpm, id: &KeyId) -> Result<Option<Key<'static>>, KeyError> {
        Ok(match self.keys.get(id) {
            None => None,
            Some(TpmKey::Handle(handle)) => tpm.persistent_key(*handle)?,
            Some(TpmKey::File(path)) => match read(path)? {
                None => None,
                Some(record) => Some(Key::wrapped(Cow::Owned(record))?),
            },
        })
    }

    /// Does an operation with a key of this kind.
    fn with_key<T>(
        &self,
        id: &KeyId,
        expected: KeyKind,
        operation: impl FnOnce(&Tpm, &Key<'_>, &Public) -> Result<T, KeyError>,
        name: Operation,
    ) -> Result<T, KeyError> {
        self.tpm.with_tpm(|tpm| {
            let key = self.find(tpm, id)?.ok_or_else(|| KeyError::NotFound { id: id.clone() })?;
            match key.key_type().map(kind_of) {
                Some(found) if found == expected => {}
                Some(found) => return Err(KeyError::WrongKind { id: id.clone(), found, expected }),
                None => return Err(self.not_supported(name)),
            }
            let public = key.public().ok_or_else(|| self.not_supported(name))?;
            operation(tpm, &key, public)
        })
    }

    /// Refuses to change a key: the TPM's keys are not ours to change, whether a key
    /// exists or not.
    fn refuse<T>(&self, id: &KeyId) -> Result<T, KeyError> {
        let path = self.keys.get(id).map(|key| PathBuf::from(KeyUri::Tpm(key.clone()).to_string()));
        Err(KeyError::Preloaded { id: id.clone(), path: path.unwrap_or_default() })
    }

    /// Keeps an existing key, as every backend does. A missing key is not made but
    /// refused.
    fn keep(&self, id: &KeyId, expected: KeyKind) -> Result<(), KeyError> {
        match self.kind(id)? {
            Some(found) if found == expected => Ok(()),
            Some(found) => Err(KeyError::WrongKind { id: id.clone(), found, expected }),
            None => self.refuse(id),
        }
    }
}

impl HmacKeys for TpmPreloaded {
    fn kept_hmac(&self, id: &KeyId, message: &[u8]) -> Result<[u8; 32], KeyError> {
        let hmac = |tpm: &Tpm, key: &Key<'_>, _: &Public| Ok(tpm.hmac_sha256(key, message)?);
        self.with_key(id, KeyKind::Symmetric, hmac, Operation::HmacSha256)
    }

    fn no_cipher(&self, _id: &KeyId, operation: Operation) -> KeyError {
        self.not_supported(operation)
    }
}

impl KeyBackend for TpmPreloaded {
    fn name(&self) -> &'static str {
        "tpm"
    }

    fn kind(&self, id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
        let key = self.tpm.with_tpm(|tpm| self.find(tpm, id))?;
        Ok(key.and_then(|key| key.key_type()).map(kind_of))
    }

    fn create_key(&self, id: &KeyId, _usage: Usage) -> Result<(), KeyError> {
        self.keep(id, KeyKind::Symmetric)
    }

    fn import_key(&self, id: &KeyId, _bytes: SecretBytes, _usage: Usage) -> Result<(), KeyError> {
        self.refuse(id)
    }

    fn create_key_pair(&self, id: &KeyId, _preferred: &[PairAlgorithm]) -> Result<(), KeyError> {
        self.keep(id, KeyKind::Pair)
    }

    fn move_key_pair(&self, from: &KeyId, _to: &KeyId) -> Result<(), KeyError> {
        self.refuse(from)
    }

    fn delete(&self, id: &KeyId, _kind: KeyKind) -> Result<(), KeyError> {
        self.refuse(id)
    }

    fn public_parameter(
        &self,
        id: &KeyId,
        parameter: PublicParameter,
    ) -> Result<PublicValue, KeyError> {
        self.with_key(
            id,
            KeyKind::Pair,
            |_, _, public| public_value(public, parameter),
            Operation::PublicParameter,
        )
    }

    fn sign_ecdsa(&self, id: &KeyId, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
        let fitted = p256_digest(digest)?;
        let sign = |tpm: &Tpm, key: &Key<'_>, public: &Public| match public.algorithm {
            Algorithm::EccP256 { .. } => Ok(tpm.sign_ecdsa_p256(key, &fitted)?),
            _ => Err(self.not_supported(Operation::SignEcdsa)),
        };
        self.with_key(id, KeyKind::Pair, sign, Operation::SignEcdsa)
    }

    fn rsa_private_operation(
        &self,
        id: &KeyId,
        padding: RsaPadding,
        block: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        let run = |tpm: &Tpm, key: &Key<'_>, public: &Public| match &public.algorithm {
            Algorithm::Rsa2048 { modulus } => {
                Ok(tpm.rsa_private(key, &pad_for_rsa(padding, block, modulus)?)?)
            }
            _ => Err(self.not_supported(Operation::RsaPrivateOperation)),
        };
        self.with_key(id, KeyKind::Pair, run, Operation::RsaPrivateOperation)
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

/// A blob file of [`TpmBackend`]'s format; `None` if there is none.
fn read(path: &Path) -> Result<Option<Record>, KeyError> {
    let content = match file::read(path, Rules::named(FILE_LIMIT)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("read", path)(source).into()),
        Ok(content) => content,
    };
    Ok(Some(Record::decode(&content).map_err(TpmError::from)?))
}
