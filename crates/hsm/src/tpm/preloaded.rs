//! Keys that were put into a TPM, or wrapped by it, by somebody else: used here, and
//! never changed.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgekeep_base::file::{self, Rules};
use edgekeep_core::id::KeyId;

use super::backend::{FILE_LIMIT, TpmBackend, kind_of, pad_for_rsa, public_value};
use super::blob::Record;
use super::device::{Tpm, malformed};
use super::error::TpmError;
use super::hmac_keys::{HmacKeys, p256_digest};
use super::public::{Algorithm, Public, attribute};
use super::session::{Entity, Session};
use super::wire::Code;
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

/// Where a key is, found to be there.
enum Found {
    Persistent { entity: Entity, public: Option<Public> },
    Wrapped { record: Box<Record>, public: Option<Public> },
}

impl Found {
    fn public(&self) -> Option<&Public> {
        match self {
            Self::Persistent { public, .. } | Self::Wrapped { public, .. } => public.as_ref(),
        }
    }

    fn kind(&self) -> Option<KeyKind> {
        match self {
            Self::Wrapped { record, .. } => kind_of(record),
            Self::Persistent { public, .. } => match public.as_ref()? {
                Public { algorithm: Algorithm::KeyedHash, attributes, .. } => {
                    (attributes & attribute::SIGN != 0).then_some(KeyKind::Symmetric)
                }
                // A storage or endorsement key signs nothing.
                Public { attributes, .. } if attributes & attribute::RESTRICTED != 0 => None,
                Public { .. } => Some(KeyKind::Pair),
            },
        }
    }
}

impl TpmPreloaded {
    /// These keys in the TPM of this backend.
    #[must_use]
    pub fn new(tpm: Arc<TpmBackend>, keys: BTreeMap<KeyId, TpmKey>) -> Self {
        Self { tpm, keys }
    }

    fn find(&self, tpm: &Tpm, id: &KeyId) -> Result<Option<Found>, KeyError> {
        let (area, place): (Vec<u8>, Option<Box<Record>>) = match self.keys.get(id) {
            None => return Ok(None),
            Some(TpmKey::Handle(handle)) => match tpm.run(|| tpm.read_public(*handle))? {
                None => return Ok(None),
                Some(area) => (area, None),
            },
            Some(TpmKey::File(path)) => match read(path)? {
                None => return Ok(None),
                Some(record) => (record.blob.public.clone(), Some(Box::new(record))),
            },
        };
        let public = Public::read(&area).map_err(malformed(Code::ReadPublic))?;
        Ok(Some(match (place, self.keys.get(id)) {
            (Some(record), _) => Found::Wrapped { record, public },
            (None, Some(TpmKey::Handle(handle))) => {
                let name = public.as_ref().map_or_else(Vec::new, Public::name);
                Found::Persistent { entity: Entity::object(*handle, &name), public }
            }
            (None, _) => return Ok(None),
        }))
    }

    /// Does an operation with a key of this kind.
    fn with_key<T>(
        &self,
        id: &KeyId,
        expected: KeyKind,
        prepare: impl FnOnce(&Public) -> Result<(), KeyError>,
        operation: impl Fn(&Tpm, &mut Session, &Entity) -> Result<T, TpmError>,
        name: Operation,
    ) -> Result<T, KeyError> {
        self.tpm.with_tpm(|tpm| {
            let key = self.find(tpm, id)?.ok_or_else(|| KeyError::NotFound { id: id.clone() })?;
            match key.kind() {
                Some(found) if found == expected => {}
                Some(found) => return Err(KeyError::WrongKind { id: id.clone(), found, expected }),
                None => return Err(self.not_supported(name)),
            }
            prepare(key.public().ok_or_else(|| self.not_supported(name))?)?;
            Ok(match &key {
                Found::Persistent { entity, .. } => {
                    tpm.run(|| tpm.with_session(|session| operation(tpm, session, entity)))
                }
                Found::Wrapped { record, .. } => {
                    tpm.run(|| tpm.expect_root(record)).and_then(|()| {
                        tpm.with_loaded(&record.blob, |session, key| operation(tpm, session, key))
                    })
                }
            }?)
        })
    }

    /// It is not ours to change, whether it is there or not.
    fn refuse<T>(&self, id: &KeyId) -> Result<T, KeyError> {
        let path = self.keys.get(id).map(|key| PathBuf::from(KeyUri::Tpm(key.clone()).to_string()));
        Err(KeyError::Preloaded { id: id.clone(), path: path.unwrap_or_default() })
    }

    /// Like every backend, it makes nothing where there is a key already.
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
        let hmac = |tpm: &Tpm, session: &mut Session, key: &Entity| tpm.hmac(session, key, message);
        self.with_key(id, KeyKind::Symmetric, |_| Ok(()), hmac, Operation::HmacSha256)
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
        Ok(self.tpm.with_tpm(|tpm| self.find(tpm, id))?.and_then(|key| key.kind()))
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
        let key = self
            .tpm
            .with_tpm(|tpm| self.find(tpm, id))?
            .ok_or_else(|| KeyError::NotFound { id: id.clone() })?;
        match key.kind() {
            Some(found @ KeyKind::Symmetric) => {
                return Err(KeyError::WrongKind { id: id.clone(), found, expected: KeyKind::Pair });
            }
            Some(KeyKind::Pair) => {}
            None => return Err(self.not_supported(Operation::PublicParameter)),
        }
        public_value(
            key.public().ok_or_else(|| self.not_supported(Operation::PublicParameter))?,
            parameter,
        )
    }

    fn sign_ecdsa(&self, id: &KeyId, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
        let fitted = p256_digest(digest)?;
        let is_ec = |public: &Public| match public.algorithm {
            Algorithm::EccP256 { .. } => Ok(()),
            _ => Err(self.not_supported(Operation::SignEcdsa)),
        };
        let sign =
            |tpm: &Tpm, session: &mut Session, key: &Entity| tpm.sign_p256(session, key, &fitted);
        self.with_key(id, KeyKind::Pair, is_ec, sign, Operation::SignEcdsa)
    }

    fn rsa_private_operation(
        &self,
        id: &KeyId,
        padding: RsaPadding,
        block: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        let padded = std::cell::RefCell::new(Vec::new());
        let pad = |public: &Public| match &public.algorithm {
            Algorithm::Rsa2048 { modulus } => {
                *padded.borrow_mut() = pad_for_rsa(padding, block, modulus)?;
                Ok(())
            }
            _ => Err(self.not_supported(Operation::RsaPrivateOperation)),
        };
        let run = |tpm: &Tpm, session: &mut Session, key: &Entity| {
            tpm.rsa_private_operation(session, key, &padded.borrow())
        };
        self.with_key(id, KeyKind::Pair, pad, run, Operation::RsaPrivateOperation)
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
