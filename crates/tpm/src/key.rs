//! Keys for callers: made, found and used by value, with sessions and loading inside.

use std::borrow::Cow;

use crate::device::{Blob, Tpm, malformed};
use crate::error::TpmError;
use crate::public::{Algorithm, Public, Template, attribute};
use crate::record::{Record, RecordKind};
use crate::session::{AuthValue, Entity, Session};
use crate::wire::Code;

/// A key to be made under the storage root.
#[derive(Clone, Copy)]
pub enum NewKey<'a> {
    /// A P-256 key pair that signs digests.
    SignP256,
    /// An RSA-2048 key pair for the bare private-key operation.
    Rsa2048,
    /// An HMAC-SHA256 key that the TPM makes.
    Hmac,
    /// An HMAC-SHA256 key of these bytes; at most 64, the block length of the hash.
    HmacOf(&'a [u8]),
}

/// The kinds of keys that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// Computes HMACs.
    Hmac,
    /// Signs, or does the RSA private-key operation.
    Pair,
}

/// A key with its place: wrapped, to be loaded for each use, or persistent in the TPM.
pub struct Key<'a> {
    place: Place<'a>,
    public: Option<Public>,
}

enum Place<'a> {
    Persistent(Entity),
    Wrapped(Cow<'a, Record>),
}

impl<'a> Key<'a> {
    /// The key in a record.
    ///
    /// # Errors
    /// If the record's public area cannot be read.
    pub fn wrapped(record: Cow<'a, Record>) -> Result<Self, TpmError> {
        let public = Public::read(&record.blob.public).map_err(|_| TpmError::DamagedBlob)?;
        Ok(Self { place: Place::Wrapped(record), public })
    }

    /// The public half; `None` for algorithms that are not used here.
    #[must_use]
    pub fn public(&self) -> Option<&Public> {
        self.public.as_ref()
    }

    /// The kind of key; `None` for objects that are no key for general use, as storage
    /// and endorsement keys.
    #[must_use]
    pub fn key_type(&self) -> Option<KeyType> {
        if let Place::Wrapped(record) = &self.place {
            return record.kind.key_type();
        }
        match self.public.as_ref()? {
            Public { algorithm: Algorithm::KeyedHash, attributes, .. } => {
                (attributes & attribute::SIGN != 0).then_some(KeyType::Hmac)
            }
            // A storage or endorsement key signs nothing.
            Public { attributes, .. } if attributes & attribute::RESTRICTED != 0 => None,
            Public { .. } => Some(KeyType::Pair),
        }
    }
}

impl RecordKind {
    /// The kind of key in such a record; `None` if it holds no key for general use.
    #[must_use]
    pub fn key_type(self) -> Option<KeyType> {
        match self {
            Self::Symmetric => Some(KeyType::Hmac),
            Self::Pair => Some(KeyType::Pair),
            Self::Sealed | Self::Attestation => None,
        }
    }
}

impl Tpm {
    /// Makes a key under the storage root. It has no auth value: whoever has the wrapped
    /// key and this TPM can use it. Returns the wrapped key and the root's name.
    ///
    /// # Errors
    /// If the TPM cannot be reached or refuses.
    pub fn create_key(&self, new: NewKey<'_>) -> Result<(Blob, Vec<u8>), TpmError> {
        let (template, secret): (_, &[u8]) = match new {
            NewKey::SignP256 => (Template::SignP256, &[]),
            NewKey::Rsa2048 => (Template::Rsa2048, &[]),
            NewKey::Hmac => (Template::HmacGenerated, &[]),
            NewKey::HmacOf(bytes) => (Template::HmacImported, bytes),
        };
        self.run(|| {
            let blob = self.with_session(|session| {
                self.create(session, template, &AuthValue::empty(), secret)
            })?;
            let (root, _) = self.root()?;
            Ok((blob, root.name().to_vec()))
        })
    }

    /// The key that is persistent under a handle; `None` if there is none.
    ///
    /// # Errors
    /// If the TPM cannot be reached, or answers with what is no public area.
    pub fn persistent_key(&self, handle: u32) -> Result<Option<Key<'static>>, TpmError> {
        let Some(area) = self.run(|| self.read_public(handle))? else { return Ok(None) };
        let public = Public::read(&area).map_err(malformed(Code::ReadPublic))?;
        let name = public.as_ref().map_or_else(Vec::new, Public::name);
        Ok(Some(Key { place: Place::Persistent(Entity::object(handle, &name)), public }))
    }

    /// HMAC-SHA256 of a text of any length.
    ///
    /// # Errors
    /// If the key is another TPM's, is damaged or computes no HMAC, or the TPM cannot be
    /// reached.
    pub fn hmac_sha256(&self, key: &Key<'_>, text: &[u8]) -> Result<[u8; 32], TpmError> {
        self.with_key(key, |session, entity| self.hmac(session, entity, text))
    }

    /// ECDSA on P-256 over a digest that the caller computed: the DER sequence of r and
    /// s.
    ///
    /// # Errors
    /// As [`Tpm::hmac_sha256`], for keys that do not sign.
    pub fn sign_ecdsa_p256(&self, key: &Key<'_>, digest: &[u8; 32]) -> Result<Vec<u8>, TpmError> {
        self.with_key(key, |session, entity| self.sign_p256(session, entity, digest))
    }

    /// The bare RSA private-key operation on a block as long as the modulus, and below
    /// it.
    ///
    /// # Errors
    /// As [`Tpm::hmac_sha256`], for keys that are no RSA keys.
    pub fn rsa_private(&self, key: &Key<'_>, block: &[u8]) -> Result<Vec<u8>, TpmError> {
        self.with_key(key, |session, entity| self.rsa_private_operation(session, entity, block))
    }

    /// Flushes a wrapped key, if it is loaded: it is not to be used any more.
    pub fn forget(&self, blob: &Blob) {
        self.unload(blob);
    }

    /// Uses a key in the session that stays.
    fn with_key<T>(
        &self,
        key: &Key<'_>,
        operation: impl Fn(&mut Session, &Entity) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        match &key.place {
            Place::Persistent(entity) => {
                self.run(|| self.with_session(|session| operation(session, entity)))
            }
            Place::Wrapped(record) => {
                self.run(|| self.expect_root(record))?;
                self.with_loaded(&record.blob, operation)
            }
        }
    }
}
