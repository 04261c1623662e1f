//! CMS `AuthEnvelopedData` (RFC 5083) with AES-256-GCM, to a public key without a
//! certificate: RSA by OAEP with SHA-256 (RFC 3560), EC P-256 by ephemeral ECDH and AES
//! key wrap (RFC 5753). The recipient is named by the SHA-1 of its key.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, ECDH_P256, UnparsedPublicKey};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap as _};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey};
use aws_lc_rs::rsa::{PrivateDecryptingKey, PublicEncryptingKey};
use aws_lc_rs::{digest, rand};
use zeroize::Zeroizing;

use super::EnvelopeError;
use super::der::{
    BIT_STRING, INTEGER, OBJECT_ID, OCTET_STRING, Reader, SEQUENCE, SET, context, element,
};
use crate::SecretBytes;

const TAG_LEN: usize = 16;
const KEY_LEN: usize = 32;

const ID_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const ID_AUTH_ENVELOPED: &[u8] =
    &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x10, 0x01, 0x17];
const ID_AES256_GCM: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2e];
const ID_AES256_WRAP: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2d];
const ID_SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const ID_OAEP: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07];
const ID_MGF1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08];
const ID_ECDH_SHA256: &[u8] = &[0x2b, 0x81, 0x04, 0x01, 0x0b, 0x01];
const ID_EC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const ID_RSA_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const ID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// A public key, and how CMS names it.
#[derive(Debug, Clone)]
pub(super) struct PublicKey {
    kind: PublicKind,
    name: Vec<u8>,
}

#[derive(Debug, Clone)]
enum PublicKind {
    Rsa { spki: Vec<u8> },
    Ec { point: Vec<u8> },
}

pub(super) enum PrivateKey {
    Rsa(OaepPrivateDecryptingKey),
    Ec(agreement::PrivateKey),
}

impl PublicKey {
    /// Reads a public key from a DER `SubjectPublicKeyInfo`.
    pub(super) fn from_spki(spki: &[u8]) -> Result<Self, EnvelopeError> {
        let parse = || {
            let mut info = Reader(spki).enter(SEQUENCE)?;
            let mut algorithm = info.enter(SEQUENCE)?;
            let key = info.expect(BIT_STRING)?.strip_prefix(&[0])?;
            Some((algorithm.expect(OBJECT_ID)?, algorithm, key))
        };
        let (algorithm, mut parameters, key) = parse().ok_or(EnvelopeError::Recipient)?;
        let kind = if algorithm == ID_RSA_KEY {
            // The library judges size and form.
            OaepPublicEncryptingKey::new(
                PublicEncryptingKey::from_der(spki).map_err(|_| EnvelopeError::Recipient)?,
            )
            .map_err(|_| EnvelopeError::Recipient)?;
            PublicKind::Rsa { spki: spki.to_vec() }
        } else if algorithm == ID_EC_KEY && parameters.expect(OBJECT_ID) == Some(ID_P256) {
            PublicKind::Ec { point: key.to_vec() }
        } else {
            return Err(EnvelopeError::Recipient);
        };
        let name = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, key).as_ref().to_vec();
        Ok(Self { kind, name })
    }

    /// The content key for this recipient, as a `RecipientInfo`.
    fn recipient_info(&self, content_key: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
        match &self.kind {
            PublicKind::Rsa { spki } => self.key_transport(spki, content_key),
            PublicKind::Ec { point } => self.key_agreement(point, content_key),
        }
    }

    fn key_transport(&self, spki: &[u8], content_key: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
        let failed = |_| EnvelopeError::Library;
        let key = PublicEncryptingKey::from_der(spki).map_err(|_| EnvelopeError::Library)?;
        let key = OaepPublicEncryptingKey::new(key).map_err(failed)?;
        let mut encrypted = vec![0; key.ciphertext_size()];
        let encrypted = key
            .encrypt(&OAEP_SHA256_MGF1SHA256, content_key, &mut encrypted, None)
            .map_err(failed)?;
        let sha256 = algorithm(ID_SHA256, &[]);
        let parameters = element(
            SEQUENCE,
            &[
                &element(context(0, true), &[&sha256]),
                &element(context(1, true), &[&algorithm(ID_MGF1, &sha256)]),
            ],
        );
        Ok(element(
            SEQUENCE,
            &[
                &element(INTEGER, &[&[2]]),
                &element(context(0, false), &[&self.name]),
                &algorithm(ID_OAEP, &parameters),
                &element(OCTET_STRING, &[encrypted]),
            ],
        ))
    }

    fn key_agreement(&self, point: &[u8], content_key: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
        let ephemeral =
            agreement::PrivateKey::generate(&ECDH_P256).map_err(|_| EnvelopeError::Library)?;
        let share = ephemeral.compute_public_key().map_err(|_| EnvelopeError::Library)?;
        let key = wrapping_key(&ephemeral, point).map_err(|_| EnvelopeError::Recipient)?;
        let mut wrapped = vec![0; KEY_LEN + 8];
        let wrapped = AesKek::new(&AES_256, &*key)
            .and_then(|key| key.wrap(content_key, &mut wrapped))
            .map_err(|_| EnvelopeError::Library)?;
        let originator = element(
            context(1, true),
            &[
                &algorithm(ID_EC_KEY, &element(OBJECT_ID, &[ID_P256])),
                &element(BIT_STRING, &[&[0], share.as_ref()]),
            ],
        );
        let recipient = element(context(0, true), &[&element(OCTET_STRING, &[&self.name])]);
        Ok(element(
            context(1, true),
            &[
                &element(INTEGER, &[&[3]]),
                &element(context(0, true), &[&originator]),
                &algorithm(ID_ECDH_SHA256, &algorithm(ID_AES256_WRAP, &[])),
                &element(
                    SEQUENCE,
                    &[&element(SEQUENCE, &[&recipient, &element(OCTET_STRING, &[wrapped])])],
                ),
            ],
        ))
    }
}

impl PrivateKey {
    pub(super) fn from_pkcs8(der: &[u8]) -> Result<Self, EnvelopeError> {
        if let Ok(key) = agreement::PrivateKey::from_private_key_der(&ECDH_P256, der) {
            return Ok(Self::Ec(key));
        }
        let key = PrivateDecryptingKey::from_pkcs8(der).map_err(|_| EnvelopeError::Identity)?;
        OaepPrivateDecryptingKey::new(key).map(Self::Rsa).map_err(|_| EnvelopeError::Identity)
    }

    /// The content key, if this `RecipientInfo` is for this identity.
    fn content_key(&self, (tag, info): (u8, &[u8])) -> Option<Zeroizing<Vec<u8>>> {
        let mut info = Reader(info);
        info.expect(INTEGER)?;
        match (self, tag) {
            (Self::Rsa(key), SEQUENCE) => {
                // Whose it is said to be does not matter: only the right key opens it.
                info.any()?;
                let mut used = info.enter(SEQUENCE)?;
                (used.expect(OBJECT_ID)? == ID_OAEP).then_some(())?;
                let encrypted = info.expect(OCTET_STRING)?;
                let mut out = Zeroizing::new(vec![0; key.min_output_size()]);
                let len =
                    key.decrypt(&OAEP_SHA256_MGF1SHA256, encrypted, &mut out, None).ok()?.len();
                out.truncate(len);
                Some(out)
            }
            (Self::Ec(key), 0xa1) => {
                let mut originator = info.enter(context(0, true))?.enter(context(1, true))?;
                originator.expect(SEQUENCE)?;
                let share = originator.expect(BIT_STRING)?.strip_prefix(&[0])?;
                // Material of the sender would go into the key; nothing here writes it.
                let mut used = info.enter(SEQUENCE)?;
                (used.expect(OBJECT_ID)? == ID_ECDH_SHA256).then_some(())?;
                let wrapping = wrapping_key(key, share).ok()?;
                let mut keys = info.enter(SEQUENCE)?;
                while let Some(mut one) = keys.enter(SEQUENCE) {
                    one.any()?;
                    let wrapped = one.expect(OCTET_STRING)?;
                    let mut out = Zeroizing::new(vec![0; wrapped.len()]);
                    let opened = AesKek::new(&AES_256, &*wrapping)
                        .ok()?
                        .unwrap(wrapped, &mut out)
                        .ok()
                        .map(|key| key.len());
                    if let Some(len) = opened {
                        out.truncate(len);
                        return Some(out);
                    }
                }
                None
            }
            _ => None,
        }
    }
}

/// An `AlgorithmIdentifier`.
fn algorithm(id: &[u8], parameters: &[u8]) -> Vec<u8> {
    element(SEQUENCE, &[&element(OBJECT_ID, &[id]), parameters])
}

/// The key that wraps the content key: the X9.63 derivation, with SHA-256, of one block
/// (RFC 5753, section 7.2).
fn wrapping_key(
    own: &agreement::PrivateKey,
    other: &[u8],
) -> Result<Zeroizing<[u8; 32]>, EnvelopeError> {
    let bits = (KEY_LEN as u32 * 8).to_be_bytes();
    let supplied = element(context(2, true), &[&element(OCTET_STRING, &[&bits])]);
    let shared_info = element(SEQUENCE, &[&algorithm(ID_AES256_WRAP, &[]), &supplied]);
    agreement::agree(
        own,
        UnparsedPublicKey::new(&ECDH_P256, other),
        EnvelopeError::Damaged,
        |shared| {
            let mut context = digest::Context::new(&digest::SHA256);
            for part in [shared, &1_u32.to_be_bytes(), &shared_info] {
                context.update(part);
            }
            let mut key = Zeroizing::new([0; 32]);
            key.copy_from_slice(context.finish().as_ref());
            Ok(key)
        },
    )
}

fn gcm(key: &[u8]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new)
}

pub(super) fn encrypt(to: &PublicKey, secret: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    let mut nonce = [0; NONCE_LEN];
    for bytes in [&mut key[..], &mut nonce[..]] {
        rand::fill(bytes).map_err(|_| EnvelopeError::Library)?;
    }
    let mut content = Zeroizing::new(secret.to_vec());
    let tag = gcm(&*key)
        .ok_or(EnvelopeError::Library)?
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut content)
        .map_err(|_| EnvelopeError::Library)?;
    let parameters = element(
        SEQUENCE,
        &[&element(OCTET_STRING, &[&nonce]), &element(INTEGER, &[&[TAG_LEN as u8]])],
    );
    let encrypted = element(
        SEQUENCE,
        &[
            &element(OBJECT_ID, &[ID_DATA]),
            &algorithm(ID_AES256_GCM, &parameters),
            &element(context(0, false), &[&content]),
        ],
    );
    let enveloped = element(
        SEQUENCE,
        &[
            &element(INTEGER, &[&[0]]),
            &element(SET, &[&to.recipient_info(&*key)?]),
            &encrypted,
            &element(OCTET_STRING, &[tag.as_ref()]),
        ],
    );
    Ok(element(
        SEQUENCE,
        &[&element(OBJECT_ID, &[ID_AUTH_ENVELOPED]), &element(context(0, true), &[&enveloped])],
    ))
}

/// The contents of an `AuthEnvelopedData`.
struct Enveloped<'a> {
    recipients: Reader<'a>,
    nonce: [u8; NONCE_LEN],
    content: &'a [u8],
    tag: &'a [u8],
}

fn parse(der: &[u8]) -> Option<Enveloped<'_>> {
    let mut info = Reader(der).enter(SEQUENCE)?;
    (info.expect(OBJECT_ID)? == ID_AUTH_ENVELOPED).then_some(())?;
    let mut enveloped = info.enter(context(0, true))?.enter(SEQUENCE)?;
    enveloped.expect(INTEGER)?;
    let recipients = enveloped.enter(SET)?;
    let mut encrypted = enveloped.enter(SEQUENCE)?;
    encrypted.expect(OBJECT_ID)?;
    let mut used = encrypted.enter(SEQUENCE)?;
    (used.expect(OBJECT_ID)? == ID_AES256_GCM).then_some(())?;
    let nonce = used.enter(SEQUENCE)?.expect(OCTET_STRING)?.try_into().ok()?;
    let content = encrypted.expect(context(0, false))?;
    // Attributes would be authenticated too; nothing here writes them.
    let tag = enveloped.expect(OCTET_STRING).filter(|tag| tag.len() == TAG_LEN)?;
    enveloped.peek().is_none().then_some(Enveloped { recipients, nonce, content, tag })
}

pub(super) fn decrypt(key: &PrivateKey, der: &[u8]) -> Result<SecretBytes, EnvelopeError> {
    let Enveloped { mut recipients, nonce, content, tag } =
        parse(der).ok_or(EnvelopeError::Damaged)?;
    let mut content_key = None;
    while let Some(info) = recipients.any().filter(|_| content_key.is_none()) {
        content_key = key.content_key(info);
    }
    let gcm = gcm(&content_key.ok_or(EnvelopeError::NotForThis)?).ok_or(EnvelopeError::Damaged)?;
    let mut opened = Zeroizing::new([content, tag].concat());
    let plain = gcm
        .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut opened)
        .map_err(|_| EnvelopeError::Damaged)?;
    Ok((&*plain).into())
}
