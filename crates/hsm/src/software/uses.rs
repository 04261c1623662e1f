//! Uses of the keys in files: by threads that may wait for the disk, and by those that
//! must not.

use std::sync::Arc;

use edgekeep_core::id::KeyId;
use zeroize::Zeroizing;

use super::SoftwareBackend;
use crate::backend::{
    InputError, KeyBackend, KeyError, KeyKind, Operation, PublicParameter, PublicValue, RsaPadding,
    SymmetricKey, Usage,
};
use crate::material::{self, Material, Pair, Symmetric};
use crate::{SecretBytes, gcm};

/// The keys of a backend, as they are used.
pub(super) struct Use<'a> {
    pub(super) backend: &'a SoftwareBackend,
    /// True if a key that is not in memory is read from the disk.
    pub(super) wait: bool,
}

impl Use<'_> {
    /// The key, ready for use; `None` if there is none.
    fn load(&self, id: &KeyId) -> Result<Option<Arc<Material>>, KeyError> {
        if self.wait {
            self.backend.load(id)
        } else {
            self.backend.in_memory(id).map(Some).ok_or(KeyError::WouldWait)
        }
    }

    fn pair<T>(
        &self,
        id: &KeyId,
        run: impl FnOnce(&Pair) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        match &*self.load(id)?.ok_or_else(|| KeyError::NotFound { id: id.clone() })? {
            Material::Pair(pair) => run(pair),
            Material::Symmetric(_) => Err(KeyError::WrongKind {
                id: id.clone(),
                found: KeyKind::Symmetric,
                expected: KeyKind::Pair,
            }),
        }
    }

    fn symmetric<T>(
        &self,
        id: &KeyId,
        needed: Needed,
        run: impl FnOnce(&Symmetric) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        match &*self.load(id)?.ok_or_else(|| KeyError::NotFound { id: id.clone() })? {
            Material::Symmetric(key) if needed.is_in(key.usage) => run(key),
            Material::Symmetric(_) => {
                Err(KeyError::UsageNotAllowed { id: id.clone(), needed: needed.name() })
            }
            Material::Pair(_) => Err(KeyError::WrongKind {
                id: id.clone(),
                found: KeyKind::Pair,
                expected: KeyKind::Symmetric,
            }),
        }
    }

    /// Decrypts what the present version of a key does not.
    fn decrypt_with_older(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        let (id, data) = match key {
            SymmetricKey::Stored(id) => (id, None),
            SymmetricKey::Derived { base, data } => (base, Some(data)),
        };
        if !self.wait {
            return Err(KeyError::WouldWait);
        }
        let older = {
            let _changing = self.backend.lock_for_change();
            self.backend.store.older(id)?
        };
        for version in older.iter().filter(|version| version.kind == KeyKind::Symmetric) {
            let derived = data
                .map(|data| Zeroizing::new(material::hmac_sha256(version.secret.expose(), data)));
            let bytes =
                derived.as_ref().map_or(version.secret.expose(), |derived| derived.as_slice());
            match gcm::decrypt(bytes, iv, aad, ciphertext) {
                Err(KeyError::Input(InputError::NotAuthentic | InputError::KeyLength { .. })) => {}
                done => return done,
            }
        }
        Err(match older.len() {
            0 => InputError::NotAuthentic,
            older => InputError::NoVersionFits { versions: older + 1 },
        }
        .into())
    }

    /// Runs an operation of encryption with the bytes of a kept or a derived key.
    fn with_cipher_key<T>(
        &self,
        key: SymmetricKey<'_>,
        run: impl FnOnce(&[u8]) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        match key {
            SymmetricKey::Stored(id) => {
                self.symmetric(id, Needed::Encrypt, |key| run(key.bytes.expose()))
            }
            SymmetricKey::Derived { base, data } => {
                self.symmetric(base, Needed::DeriveOrSign, |base| run(&*base.derive(data)))
            }
        }
    }
}

impl KeyBackend for Use<'_> {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn kind(&self, id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
        Ok(self.load(id)?.map(|key| key.kind()))
    }

    fn public_parameter(
        &self,
        id: &KeyId,
        parameter: PublicParameter,
    ) -> Result<PublicValue, KeyError> {
        self.pair(id, |pair| Ok(pair.public_parameter(parameter)?))
    }

    fn sign_ecdsa(&self, id: &KeyId, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.pair(id, |pair| {
            pair.sign_ecdsa(digest).unwrap_or_else(|| Err(self.not_supported(Operation::SignEcdsa)))
        })
    }

    fn rsa_private_operation(
        &self,
        id: &KeyId,
        padding: RsaPadding,
        block: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.pair(id, |pair| match pair.rsa_private_operation(padding, block) {
            Some(done) => Ok(done?),
            None => Err(self.not_supported(Operation::RsaPrivateOperation)),
        })
    }

    fn hmac_sha256(&self, key: SymmetricKey<'_>, message: &[u8]) -> Result<[u8; 32], KeyError> {
        match key {
            SymmetricKey::Stored(id) => {
                self.symmetric(id, Needed::DeriveOrSign, |key| Ok(key.hmac_sha256(message)))
            }
            SymmetricKey::Derived { base, data } => {
                self.symmetric(base, Needed::DeriveOrSign, |base| {
                    Ok(material::hmac_sha256(&*base.derive(data), message))
                })
            }
        }
    }

    fn encrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.with_cipher_key(key, |key| gcm::encrypt(key, iv, aad, plaintext))
    }

    fn decrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        match self.with_cipher_key(key, |key| gcm::decrypt(key, iv, aad, ciphertext)) {
            Err(KeyError::Input(InputError::NotAuthentic)) => {
                self.decrypt_with_older(key, iv, aad, ciphertext)
            }
            done => done,
        }
    }

    fn export_derived(
        &self,
        base: &KeyId,
        derivation_data: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        self.symmetric(base, Needed::DeriveOrSign, |base| {
            Ok(base.derive(derivation_data).as_slice().into())
        })
    }
}

/// The right that an operation needs of a symmetric key.
#[derive(Clone, Copy)]
enum Needed {
    DeriveOrSign,
    Encrypt,
}

impl Needed {
    fn is_in(self, usage: Usage) -> bool {
        match self {
            Self::DeriveOrSign => usage.derive_or_sign,
            Self::Encrypt => usage.encrypt,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::DeriveOrSign => "derive,sign",
            Self::Encrypt => "encrypt",
        }
    }
}
