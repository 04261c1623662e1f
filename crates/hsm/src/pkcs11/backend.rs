//! The keys API's view of a token.

use std::cell::Cell;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass};
use edgekeep_core::id::KeyId;
use zeroize::{Zeroize as _, Zeroizing};

use super::error::{Connection, connection_after, is_stale_handle};
use super::making::{Purpose, aes_decrypt, aes_encrypt, aes_trial, hmac, hmac_equivalent, make};
use super::objects::{Details, Mark};
use super::{Pkcs11Backend, encoding, expect_kind, objects, wrong_use};
use crate::aws_lc::TAG_LEN;
use crate::backend::{
    InputError, KeyBackend, KeyError, KeyKind, Operation, PairAlgorithm, PublicParameter,
    PublicValue, RsaPadding, SymmetricKey, Usage,
};
use crate::{SecretBytes, gcm, material};

/// Length of generated symmetric keys, in bytes.
const GENERATED_LEN: u8 = 32;

impl KeyBackend for Pkcs11Backend {
    fn name(&self) -> &'static str {
        "pkcs11"
    }

    fn kind(&self, id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
        let done = self.token.run(|session| {
            Ok(self.find(session, id)?.latest(self.token.name())?.map(|key| key.kind))
        });
        done.map_err(|failed| self.token_failed(failed))
    }

    /// A key for HMAC or one for AES; there are none for both on tokens.
    fn create_key(&self, id: &KeyId, usage: Usage) -> Result<(), KeyError> {
        let label = self.label(id)?;
        self.change(Operation::CreateKey, &[id], |session| {
            let found = self.find(session, id)?;
            if let Some(existing) = found.latest(self.token.name())? {
                return Ok(expect_kind(id, existing.kind, KeyKind::Symmetric)?);
            }
            let purpose =
                Purpose::of(usage).ok_or_else(|| self.not_supported(Operation::CreateKey))?;
            let mut template = purpose.template(&label, &Mark::after(&found.keys)?);
            template.push(Attribute::ValueLen(u64::from(GENERATED_LEN).into()));
            let mechanism = match purpose {
                Purpose::Hmac => Mechanism::GenericSecretKeyGen,
                Purpose::Aes => Mechanism::AesKeyGen,
            };
            let key = make(|| session.generate_key(&mechanism, &template))?;
            let trial = match purpose {
                Purpose::Hmac => hmac(session, key, b"trial").map(|mac| mac.is_some()),
                Purpose::Aes => aes_trial(session, key, None),
            };
            self.keep_if(session, key, Operation::CreateKey, trial)
        })
    }

    fn import_key(&self, id: &KeyId, bytes: SecretBytes, usage: Usage) -> Result<(), KeyError> {
        material::check_symmetric(bytes.expose())?;
        self.refuse_preloaded(id)?;
        let unfit = || self.not_supported(Operation::ImportKey);
        let purpose = Purpose::of(usage).ok_or_else(unfit)?;
        let value = match purpose {
            Purpose::Hmac => hmac_equivalent(bytes.expose()),
            Purpose::Aes if bytes.expose().len() == 32 => Zeroizing::new(bytes.expose().to_vec()),
            Purpose::Aes => return Err(unfit()),
        };
        let label = self.label(id)?;
        self.change(Operation::ImportKey, &[id], |session| {
            let found = self.find(session, id)?;
            if let Some(existing) = found.latest(self.token.name())? {
                expect_kind(id, existing.kind, KeyKind::Symmetric)?;
            }
            let mut template = purpose.template(&label, &Mark::after(&found.keys)?);
            template.push(Attribute::Class(ObjectClass::SECRET_KEY));
            template.push(Attribute::Value(value.to_vec()));
            let made = make(|| session.create_object(&template));
            if let Some(Attribute::Value(value)) = template.last_mut() {
                value.zeroize();
            }
            let key = made?;
            let trial = match purpose {
                Purpose::Hmac => hmac(session, key, b"trial")
                    .map(|mac| mac == Some(material::hmac_sha256(bytes.expose(), b"trial"))),
                Purpose::Aes => aes_trial(session, key, Some(bytes.expose())),
            };
            self.keep_if(session, key, Operation::ImportKey, trial)?;
            Self::destroy(session, &found.keys, &found)
        })
    }

    fn create_key_pair(&self, id: &KeyId, preferred: &[PairAlgorithm]) -> Result<(), KeyError> {
        let mut last = InputError::PreferredAlgorithms.into();
        for algorithm in preferred {
            match self.create_pair(id, *algorithm) {
                Err(error @ KeyError::NotSupported { .. }) => last = error,
                done => return done,
            }
        }
        Err(last)
    }

    /// The private half is renamed first, and in the same call made the later one of
    /// those under its new id: from then on it is found there, whether or not what is
    /// left (renaming the public half, deleting what it replaces) is ever done.
    fn move_key_pair(&self, from: &KeyId, to: &KeyId) -> Result<(), KeyError> {
        if from == to {
            return Err(InputError::SameId.into());
        }
        self.refuse_preloaded(from)?;
        self.refuse_preloaded(to)?;
        let label = self.label(to)?;
        // The connection may be lost after renaming; the second run then finds nothing
        // under the old id.
        let renamed = Cell::new(false);
        self.change(Operation::MoveKeyPair, &[from, to], |session| {
            let source = self.find(session, from)?;
            let target = self.find(session, to)?;
            let existing = target.latest(self.token.name())?;
            if let Some(existing) = existing {
                expect_kind(to, existing.kind, KeyKind::Pair)?;
            }
            let Some(key) = source.latest(self.token.name())? else {
                if renamed.get()
                    && let Some((_, earlier)) = target.keys.split_last()
                {
                    return Self::destroy(session, earlier, &target);
                }
                return Err(KeyError::NotFound { id: from.clone() }.into());
            };
            expect_kind(from, key.kind, KeyKind::Pair)?;
            let halves = objects::public_halves(session, key, &source.public)?;
            let mut change = vec![Attribute::Label(label.clone())];
            match key.id_after(&target.keys) {
                Some(id) => change.push(Attribute::Id(id)),
                None if existing.is_some() => {
                    change.push(Attribute::Id(Mark::after(&target.keys)?.encode()));
                }
                // A key that others made and that replaces nothing keeps its own.
                None => {}
            }
            session.update_attributes(key.handle, &change)?;
            renamed.set(true);
            for half in &halves {
                session.update_attributes(half.handle, &change)?;
            }
            Self::destroy(session, &target.keys, &target)
        })
    }

    fn delete(&self, id: &KeyId, kind: KeyKind) -> Result<(), KeyError> {
        self.refuse_preloaded(id)?;
        self.change(Operation::Delete, &[id], |session| {
            let found = self.find(session, id)?;
            let latest = found
                .latest(self.token.name())?
                .ok_or_else(|| KeyError::NotFound { id: id.clone() })?;
            expect_kind(id, latest.kind, kind)?;
            Self::destroy(session, &found.keys, &found)
        })
    }

    fn public_parameter(
        &self,
        id: &KeyId,
        parameter: PublicParameter,
    ) -> Result<PublicValue, KeyError> {
        self.with_key(Operation::PublicParameter, id, |_, key| {
            if key.object.kind != KeyKind::Pair {
                return Err(wrong_use(id, key, KeyKind::Pair, "").into());
            }
            match key.details.public_parameter(parameter) {
                Some(value) => Ok(value?),
                None => Err(self.not_supported(Operation::PublicParameter).into()),
            }
        })
    }

    fn sign_ecdsa(&self, id: &KeyId, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.with_key(Operation::SignEcdsa, id, |session, key| {
            let field_len = match &key.details {
                Details::Ec { field_len, .. } => *field_len,
                _ if key.object.kind == KeyKind::Pair => {
                    return Err(self.not_supported(Operation::SignEcdsa).into());
                }
                _ => return Err(wrong_use(id, key, KeyKind::Pair, "").into()),
            };
            if !matches!(digest.len(), 20 | 28 | 32 | 48 | 64) {
                return Err(InputError::DigestLength { found: digest.len() }.into());
            }
            let digest = material::fit_digest(digest, field_len);
            let raw = session.sign(&Mechanism::Ecdsa, key.object.handle, &digest)?;
            encoding::ecdsa_der(&raw)
                .ok_or_else(|| KeyError::Library { operation: Operation::SignEcdsa }.into())
        })
    }

    fn rsa_private_operation(
        &self,
        id: &KeyId,
        padding: RsaPadding,
        block: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.with_key(Operation::RsaPrivateOperation, id, |session, key| {
            let modulus = match &key.details {
                Details::Rsa { modulus, .. } => modulus,
                _ if key.object.kind == KeyKind::Pair => {
                    return Err(self.not_supported(Operation::RsaPrivateOperation).into());
                }
                _ => return Err(wrong_use(id, key, KeyKind::Pair, "").into()),
            };
            let limit = modulus.len().saturating_sub(11);
            let (fits, mechanism) = match padding {
                RsaPadding::Pkcs1 => (block.len() <= limit, Mechanism::RsaPkcs),
                RsaPadding::None => (
                    block.len() == modulus.len() && encoding::is_below(block, modulus),
                    Mechanism::RsaX509,
                ),
            };
            if !fits {
                return Err(InputError::RsaBlock { limit }.into());
            }
            let raw = session.sign(&mechanism, key.object.handle, block)?;
            let missing = modulus.len().checked_sub(raw.len());
            let missing =
                missing.ok_or(KeyError::Library { operation: Operation::RsaPrivateOperation })?;
            Ok([vec![0; missing], raw].concat())
        })
    }

    fn hmac_sha256(&self, key: SymmetricKey<'_>, message: &[u8]) -> Result<[u8; 32], KeyError> {
        match key {
            SymmetricKey::Stored(id) => self.with_key(Operation::HmacSha256, id, |session, key| {
                self.mac(session, id, key, message)
            }),
            SymmetricKey::Derived { base, data } => {
                let derived = self.derive(base, data, Operation::HmacSha256)?;
                Ok(material::hmac_sha256(&*derived, message))
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
        let id = match key {
            SymmetricKey::Stored(id) => id,
            SymmetricKey::Derived { base, data } => {
                return gcm::encrypt(
                    &*self.derive(base, data, Operation::Encrypt)?,
                    iv,
                    aad,
                    plaintext,
                );
            }
        };
        self.with_key(Operation::Encrypt, id, |session, key| {
            let Details::Aes { allowed: true } = key.details else {
                return Err(wrong_use(id, key, KeyKind::Symmetric, "encrypt").into());
            };
            if iv.is_empty() {
                return Err(InputError::EmptyIv.into());
            }
            let sealed = aes_encrypt(session, key.object.handle, iv, aad, plaintext)?;
            if sealed.len() != plaintext.len() + TAG_LEN {
                return Err(KeyError::Library { operation: Operation::Encrypt }.into());
            }
            Ok([&[gcm::TAG_LAST], sealed.as_slice()].concat())
        })
    }

    fn decrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        let id = match key {
            SymmetricKey::Stored(id) => id,
            SymmetricKey::Derived { base, data } => {
                return gcm::decrypt(
                    &*self.derive(base, data, Operation::Decrypt)?,
                    iv,
                    aad,
                    ciphertext,
                );
            }
        };
        self.with_key(Operation::Decrypt, id, |session, key| {
            let Details::Aes { allowed: true } = key.details else {
                return Err(wrong_use(id, key, KeyKind::Symmetric, "encrypt").into());
            };
            if iv.is_empty() {
                return Err(InputError::EmptyIv.into());
            }
            let (sealed, tag) = gcm::split(ciphertext)?;
            let sealed = [sealed, tag.as_slice()].concat();
            match aes_decrypt(session, key.object.handle, iv, aad, &sealed) {
                Ok(plaintext) => Ok(SecretBytes::from(plaintext)),
                // Libraries name this in many ways. What tells is that the token still
                // works.
                Err(error) => match connection_after(&error) {
                    Connection::Lost => Err(error.into()),
                    _ if is_stale_handle(&error) => Err(error.into()),
                    Connection::Unclear if session.generate_random_vec(8).is_err() => {
                        Err(error.into())
                    }
                    Connection::Unclear | Connection::Stands => {
                        Err(InputError::NotAuthentic.into())
                    }
                },
            }
        })
    }

    fn export_derived(
        &self,
        base: &KeyId,
        derivation_data: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        let derived = self.derive(base, derivation_data, Operation::ExportDerived)?;
        Ok(derived.as_slice().into())
    }
}
