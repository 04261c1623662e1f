//! Cryptography of the session layer: key derivation, parameter encryption, and secrets
//! for a TPM's public key (TPM 2.0 Library, part 1, sections 11.4.10, 21 and annexes B
//! and C). SHA-256 and AES-128 throughout.

use aws_lc_rs::agreement::{self, ECDH_P256};
use aws_lc_rs::cipher::{
    AES_128, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use aws_lc_rs::{digest, hmac, rand};
use zeroize::Zeroizing;

use crate::public::{Algorithm, Public};
use crate::wire::Writer;

/// Length of SHA-256, of nonces and of salts, in bytes.
pub(crate) const HASH_LEN: usize = 32;
const AES_LEN: usize = 16;

/// The library failed, or the TPM's public key is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed;

impl From<aws_lc_rs::error::Unspecified> for Failed {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self
    }
}

/// SHA-256 of the parts, one after the other.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; HASH_LEN] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    fixed(context.finish().as_ref())
}

/// HMAC-SHA256 of the parts, one after the other.
pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; HASH_LEN] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    fixed(context.sign().as_ref())
}

fn fixed(bytes: &[u8]) -> [u8; HASH_LEN] {
    let mut array = [0; HASH_LEN];
    array.copy_from_slice(bytes);
    array
}

/// Random bytes of this process.
pub(crate) fn random() -> Result<[u8; HASH_LEN], Failed> {
    let mut bytes = [0; HASH_LEN];
    rand::fill(&mut bytes)?;
    Ok(bytes)
}

/// KDFa: the counter-mode derivation of SP 800-108. `label` is text without its final
/// zero.
pub(crate) fn kdfa(key: &[u8], label: &str, u: &[u8], v: &[u8], len: usize) -> Zeroizing<Vec<u8>> {
    let bits = u32::try_from(len * 8).unwrap_or(u32::MAX).to_be_bytes();
    let block = |counter: u32| {
        hmac_sha256(key, &[&counter.to_be_bytes(), label.as_bytes(), &[0], u, v, &bits])
    };
    blocks(len, block)
}

/// KDFe: the derivation after a key agreement (SP 800-56A).
pub(crate) fn kdfe(z: &[u8], label: &str, u: &[u8], v: &[u8], len: usize) -> Zeroizing<Vec<u8>> {
    blocks(len, |counter| sha256(&[&counter.to_be_bytes(), z, label.as_bytes(), &[0], u, v]))
}

fn blocks(len: usize, block: impl Fn(u32) -> [u8; HASH_LEN]) -> Zeroizing<Vec<u8>> {
    let mut derived = Zeroizing::new(Vec::with_capacity(len + HASH_LEN));
    let mut counter = 1;
    while derived.len() < len {
        derived.extend_from_slice(&*Zeroizing::new(block(counter)));
        counter += 1;
    }
    derived.truncate(len);
    derived
}

/// AES-128-CFB with key and IV as KDFa gives them for a session's parameter.
pub(crate) struct ParameterCipher(Zeroizing<Vec<u8>>);

impl ParameterCipher {
    pub(crate) fn new(session_value: &[u8], nonce_newer: &[u8], nonce_older: &[u8]) -> Self {
        Self(kdfa(session_value, "CFB", nonce_newer, nonce_older, 2 * AES_LEN))
    }

    pub(crate) fn encrypt(&self, parameter: &mut [u8]) -> Result<(), Failed> {
        let (key, iv) = self.0.split_at(AES_LEN);
        cfb_encrypt(key, iv, parameter)
    }

    pub(crate) fn decrypt(&self, parameter: &mut [u8]) -> Result<(), Failed> {
        if parameter.is_empty() {
            return Ok(());
        }
        let (key, iv) = self.0.split_at(AES_LEN);
        let key = DecryptingKey::cfb128(UnboundCipherKey::new(&AES_128, key)?)?;
        key.decrypt(parameter, DecryptionContext::Iv128(FixedLength::try_from(iv)?))?;
        Ok(())
    }
}

/// AES-128-CFB in place.
pub(crate) fn cfb_encrypt(key: &[u8], iv: &[u8], text: &mut [u8]) -> Result<(), Failed> {
    if text.is_empty() {
        return Ok(());
    }
    let key = EncryptingKey::cfb128(UnboundCipherKey::new(&AES_128, key)?)?;
    // The IV comes out of the derivation, over nonces that are used once.
    key.less_safe_encrypt(text, EncryptionContext::Iv128(FixedLength::try_from(iv)?))?;
    Ok(())
}

/// A secret that only the holder of a public key's private half can have, and what to
/// send it.
pub(crate) struct SharedSecret {
    pub(crate) secret: Zeroizing<Vec<u8>>,
    /// Content of the encrypted-secret parameter.
    pub(crate) encrypted: Vec<u8>,
}

/// Makes a secret for the holder of `public`; `label` says what for (part 1, annexes
/// B.10.2 and C.6.1).
pub(crate) fn share_secret(public: &Public, label: &str) -> Result<SharedSecret, Failed> {
    match &public.algorithm {
        Algorithm::EccP256 { x, y } => {
            let ephemeral = agreement::PrivateKey::generate(&ECDH_P256)?;
            let ours = ephemeral.compute_public_key()?;
            let (our_x, our_y) =
                ours.as_ref().get(1..).ok_or(Failed)?.split_at_checked(32).ok_or(Failed)?;
            let theirs = [&[4][..], &pad(x)?, &pad(y)?].concat();
            let theirs = agreement::UnparsedPublicKey::new(&ECDH_P256, theirs);
            let secret = agreement::agree(&ephemeral, theirs, Failed, |z| {
                Ok(kdfe(z, label, our_x, &pad(x)?, HASH_LEN))
            })?;
            let encrypted =
                Writer::new().sized(our_x).sized(our_y).finish().ok_or(Failed)?.to_vec();
            Ok(SharedSecret { secret, encrypted })
        }
        Algorithm::Rsa2048 { modulus } => {
            let mut secret = Zeroizing::new(vec![0; HASH_LEN]);
            rand::fill(&mut secret)?;
            let key = PublicEncryptingKey::from_der(&rsa_spki(modulus)).map_err(|_| Failed)?;
            let key = OaepPublicEncryptingKey::new(key)?;
            let mut encrypted = vec![0; key.ciphertext_size()];
            let label = [label.as_bytes(), &[0]].concat();
            key.encrypt(&OAEP_SHA256_MGF1SHA256, &secret, &mut encrypted, Some(&label))?;
            Ok(SharedSecret { secret, encrypted })
        }
        Algorithm::KeyedHash => Err(Failed),
    }
}

/// A coordinate in full length: TPMs may leave out leading zeros.
fn pad(coordinate: &[u8]) -> Result<[u8; 32], Failed> {
    let mut padded = [0; 32];
    let at = 32_usize.checked_sub(coordinate.len()).ok_or(Failed)?;
    padded[at..].copy_from_slice(coordinate);
    Ok(padded)
}

/// SubjectPublicKeyInfo in DER of an RSA key with the exponent 65537.
pub(crate) fn rsa_spki(modulus: &[u8]) -> Vec<u8> {
    const ALGORITHM: &[u8] =
        &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let exponent = der(0x02, &[1, 0, 1]);
    // The sign byte: a modulus has its top bit set.
    let modulus = der(0x02, &[&[0], modulus].concat());
    let key = der(0x30, &[modulus, exponent].concat());
    let bits = der(0x03, &[&[0], &key[..]].concat());
    der(0x30, &[ALGORITHM, &bits].concat())
}

/// One DER element.
pub(crate) fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let mut element = vec![tag];
    match u8::try_from(len) {
        Ok(short) if short < 0x80 => element.push(short),
        Ok(byte) => element.extend_from_slice(&[0x81, byte]),
        Err(_) => {
            element.push(0x82);
            element.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    element.extend_from_slice(content);
    element
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_keys_have_the_length_asked_for_and_depend_on_every_input() {
        let key = kdfa(b"key", "CFB", b"u", b"v", 32);
        assert_eq!(key.len(), 32);
        for other in [
            kdfa(b"kez", "CFB", b"u", b"v", 32),
            kdfa(b"key", "CFA", b"u", b"v", 32),
            kdfa(b"key", "CFB", b"w", b"v", 32),
            kdfa(b"key", "CFB", b"u", b"w", 32),
        ] {
            assert_ne!(*key, *other);
        }
        assert_eq!(kdfa(b"key", "CFB", b"u", b"v", 70).len(), 70);
        // The length is part of what is hashed, here, and not there.
        assert_ne!(kdfa(b"key", "CFB", b"u", b"v", 16)[..], key[..16]);
        assert_eq!(
            kdfe(b"z", "SECRET", b"u", b"v", 16)[..],
            kdfe(b"z", "SECRET", b"u", b"v", 32)[..16]
        );
    }

    #[test]
    fn a_parameter_encrypted_for_a_session_decrypts_to_itself() {
        for len in [0, 1, 15, 16, 17, 100] {
            let cipher = ParameterCipher::new(b"session value", b"newer", b"older");
            let mut text = vec![7; len];
            cipher.encrypt(&mut text).unwrap();
            assert!(len == 0 || text != vec![7; len]);
            cipher.decrypt(&mut text).unwrap();
            assert_eq!(text, vec![7; len]);
        }
    }
}
