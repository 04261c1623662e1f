//! Requests to a token that make a key, and trials of the new key.

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectHandle};
use zeroize::Zeroizing;

use super::error::{Failed, is_unexplained};
use super::objects::Mark;
use super::token::Lent;
use crate::aws_lc::TAG_LEN;
use crate::backend::{PairAlgorithm, Usage};
use crate::gcm;
use crate::material::{P256, P384};

/// Tries to make one object.
const MAKE_TRIES: u32 = 4;
/// Public exponent of RSA keys: 65537.
const RSA_EXPONENT: [u8; 3] = [1, 0, 1];
/// IVs that a token has to take to keep an AES key: the API lets callers choose any.
const TRIAL_IV_LENGTHS: [usize; 3] = [1, 12, 60];

/// Tries to make an object, again if the token failed at it without a reason. By the
/// standard a call that failed has made nothing (PKCS#11 3.0, section 5.1).
pub(super) fn make<T>(
    mut attempt: impl FnMut() -> Result<T, cryptoki::error::Error>,
) -> Result<T, cryptoki::error::Error> {
    for _ in 1..MAKE_TRIES {
        match attempt() {
            Err(error) if is_unexplained(&error) => {}
            other => return other,
        }
    }
    attempt()
}

/// Purpose of a symmetric key on a token.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Hmac,
    Aes,
}

impl Purpose {
    /// `None` for both and for neither.
    pub(super) fn of(usage: Usage) -> Option<Self> {
        match usage {
            Usage { derive_or_sign: true, encrypt: false } => Some(Self::Hmac),
            Usage { derive_or_sign: false, encrypt: true } => Some(Self::Aes),
            _ => None,
        }
    }

    pub(super) fn template(self, label: &[u8], mark: &Mark) -> Vec<Attribute> {
        let (key_type, uses) = match self {
            Self::Hmac => {
                (KeyType::GENERIC_SECRET, [Attribute::Sign(true), Attribute::Verify(true)])
            }
            Self::Aes => (KeyType::AES, [Attribute::Encrypt(true), Attribute::Decrypt(true)]),
        };
        let mut template = vec![
            Attribute::KeyType(key_type),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Label(label.to_vec()),
            Attribute::Id(mark.encode()),
        ];
        template.extend(uses);
        template
    }
}

/// Returns the mechanism that makes a pair, and the attributes of the public and of the
/// private object except their names.
pub(super) fn pair_templates(
    algorithm: PairAlgorithm,
) -> (Mechanism<'static>, Vec<Attribute>, Vec<Attribute>) {
    let mut public =
        vec![Attribute::Token(true), Attribute::Private(false), Attribute::Verify(true)];
    let mut private = vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
    ];
    let bits: u64 = match algorithm {
        PairAlgorithm::EcP256 | PairAlgorithm::EcP384 => {
            let curve = if algorithm == PairAlgorithm::EcP256 { &P256 } else { &P384 };
            public.push(Attribute::EcParams(curve.oid.to_vec()));
            return (Mechanism::EccKeyPairGen, public, private);
        }
        PairAlgorithm::Rsa2048 => 2048,
        PairAlgorithm::Rsa4096 => 4096,
    };
    public.extend([
        Attribute::ModulusBits(bits.into()),
        Attribute::PublicExponent(RSA_EXPONENT.to_vec()),
        Attribute::Encrypt(true),
    ]);
    // Tokens on TPMs do the operation without padding as a decryption.
    private.push(Attribute::Decrypt(true));
    (Mechanism::RsaPkcsKeyPairGen, public, private)
}

/// A key under which HMAC-SHA256 gives the same as under `key`, and which tokens take
/// that want 32 bytes at least. HMAC itself fills keys up with zeros to 64 bytes and
/// hashes longer ones (RFC 2104).
pub(super) fn hmac_equivalent(key: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut equivalent = Zeroizing::new(Vec::with_capacity(64));
    if key.len() > 64 {
        equivalent
            .extend_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key).as_ref());
    } else {
        equivalent.extend_from_slice(key);
        equivalent.resize(key.len().max(32), 0);
    }
    equivalent
}

pub(super) fn hmac(
    session: &Lent<'_>,
    key: ObjectHandle,
    message: &[u8],
) -> Result<Option<[u8; 32]>, Failed> {
    let mac = Zeroizing::new(session.sign(&Mechanism::Sha256Hmac, key, message)?);
    Ok(<[u8; 32]>::try_from(mac.as_slice()).ok())
}

pub(super) fn aes_encrypt(
    session: &Lent<'_>,
    key: ObjectHandle,
    iv: &[u8],
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, cryptoki::error::Error> {
    let mut iv = iv.to_vec();
    let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, aad, (8 * TAG_LEN as u64).into())?);
    session.encrypt(&mechanism, key, plaintext)
}

pub(super) fn aes_decrypt(
    session: &Lent<'_>,
    key: ObjectHandle,
    iv: &[u8],
    aad: &[u8],
    sealed: &[u8],
) -> Result<Vec<u8>, cryptoki::error::Error> {
    let mut iv = iv.to_vec();
    let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, aad, (8 * TAG_LEN as u64).into())?);
    session.decrypt(&mechanism, key, sealed)
}

/// Returns true if the token encrypts and decrypts with IVs of all lengths. Where the key
/// is known, the ciphertext must also be correct.
pub(super) fn aes_trial(
    session: &Lent<'_>,
    key: ObjectHandle,
    known: Option<&[u8]>,
) -> Result<bool, Failed> {
    for iv_len in TRIAL_IV_LENGTHS {
        let iv = vec![7; iv_len];
        let sealed = aes_encrypt(session, key, &iv, b"aad", b"trial")?;
        let right = match known {
            Some(known) => gcm::encrypt(known, &iv, b"aad", b"trial")?[1..] == sealed,
            None => sealed.len() == b"trial".len() + TAG_LEN,
        };
        if !right || aes_decrypt(session, key, &iv, b"aad", &sealed)? != b"trial" {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::material;

    proptest! {
        #[test]
        fn a_key_made_fit_for_tokens_gives_the_same_hmac(
            key in prop::collection::vec(any::<u8>(), 1..200), message in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let equivalent = hmac_equivalent(&key);
            prop_assert!((32..=64).contains(&equivalent.len()));
            prop_assert_eq!(material::hmac_sha256(&equivalent, &message), material::hmac_sha256(&key, &message));
        }
    }

    #[test]
    fn a_symmetric_key_on_a_token_is_for_one_thing() {
        assert!(matches!(Purpose::of("sign,derive".parse().unwrap()), Some(Purpose::Hmac)));
        assert!(matches!(Purpose::of("encrypt".parse().unwrap()), Some(Purpose::Aes)));
        assert!(Purpose::of(Usage::ALL).is_none());
    }
}
