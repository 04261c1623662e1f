//! The store key in the care of a token: encrypted under a key that does not leave it.
//!
//! Tokens differ in what they have, so the first of these that the token can do is used:
//!
//! 1. an AES-256 key on the token encrypts the store key (AES-GCM);
//! 2. an HMAC key on the token gives the key that encrypts it: the HMAC of a random salt;
//! 3. an RSA key on the token gives it: the hash of the PKCS#1 v1.5 signature of a random
//!    salt, which is the same each time and which nobody can make without the token.
//!
//! | bytes | |
//! |---|---|
//! | 7 | `EKTOKEN` |
//! | 1 | version of this format: 1 |
//! | 1 | which of the three |
//! | 32 | salt; its first 12 bytes are the nonce |
//! | n | the store key, encrypted; everything before is authenticated with it |

use aws_lc_rs::{digest, rand};
use edgekeep_core::id::KeyId;
use edgekeep_core::names;
use zeroize::Zeroizing;

use super::protection::Sealer;
use crate::backend::{
    KeyBackend, KeyError, Operation, PairAlgorithm, RsaPadding, SymmetricKey, Usage,
};
use crate::{InputError, SecretBytes, gcm, material};

const MAGIC: &[u8; 8] = b"EKTOKEN\x01";
const SALT_LEN: usize = 32;
const NONCE_LEN: usize = 12;
/// `DigestInfo` of SHA-256 up to the digest (RFC 8017, section 9.2).
const SHA256_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

/// A place for keys, most of all a token, as what seals the store key. It makes a key for
/// that under an id that no caller of the daemon can name.
pub struct WrappingKey<'a>(pub &'a dyn KeyBackend);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Aes = 1,
    Hmac = 2,
    Rsa = 3,
}

impl Method {
    const ALL: [Self; 3] = [Self::Aes, Self::Hmac, Self::Rsa];

    /// Each has a key of its own, so that a token which learns something new does not
    /// confuse them.
    fn key(self) -> KeyId {
        let name = match self {
            Self::Aes => names::STORE_KEY_AES,
            Self::Hmac => names::STORE_KEY_HMAC,
            Self::Rsa => names::STORE_KEY_RSA,
        };
        name.key()
    }
}

impl WrappingKey<'_> {
    fn make(&self, method: Method) -> Result<(), KeyError> {
        match method {
            Method::Aes => {
                self.0.create_key(&method.key(), Usage { derive_or_sign: false, encrypt: true })
            }
            Method::Hmac => {
                self.0.create_key(&method.key(), Usage { derive_or_sign: true, encrypt: false })
            }
            Method::Rsa => self.0.create_key_pair(&method.key(), &[PairAlgorithm::Rsa2048]),
        }
    }

    /// The key that this process encrypts under, where the token does not encrypt itself.
    fn derived(&self, method: Method, salt: &[u8]) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        let signed = [&b"edgekeep: store key"[..], salt].concat();
        match method {
            Method::Rsa => {
                let hash = digest::digest(&digest::SHA256, &signed);
                let block = [&SHA256_INFO[..], hash.as_ref()].concat();
                let signature = Zeroizing::new(self.0.rsa_private_operation(
                    &method.key(),
                    RsaPadding::Pkcs1,
                    &block,
                )?);
                Ok(Zeroizing::new(material::hmac_sha256(&signature, b"edgekeep: wrapping key")))
            }
            Method::Aes | Method::Hmac => {
                self.0.hmac_sha256(SymmetricKey::Stored(&method.key()), &signed).map(Zeroizing::new)
            }
        }
    }

    fn seal_by(&self, method: Method, secret: &SecretBytes) -> Result<Vec<u8>, KeyError> {
        self.make(method)?;
        let mut sealed = [&MAGIC[..], &[method as u8], &[0; SALT_LEN]].concat();
        let head = MAGIC.len() + 1;
        rand::fill(&mut sealed[head..])
            .map_err(|_| KeyError::Library { operation: Operation::Encrypt })?;
        let (salt, secret) = (&sealed[head..], secret.expose());
        let nonce = &salt[..NONCE_LEN];
        let ciphertext = match method {
            Method::Aes => {
                self.0.encrypt(SymmetricKey::Stored(&method.key()), nonce, &sealed, secret)?
            }
            Method::Hmac | Method::Rsa => {
                gcm::encrypt(&*self.derived(method, salt)?, nonce, &sealed, secret)?
            }
        };
        sealed.extend_from_slice(&ciphertext);
        Ok(sealed)
    }
}

impl Sealer for WrappingKey<'_> {
    fn seal(&self, secret: &SecretBytes) -> Result<Vec<u8>, KeyError> {
        let mut last =
            KeyError::NotSupported { backend: self.0.name(), operation: Operation::CreateKey };
        for method in Method::ALL {
            match self.seal_by(method, secret) {
                Err(error @ KeyError::NotSupported { .. }) => last = error,
                done => return done,
            }
        }
        Err(last)
    }

    fn unseal(&self, sealed: &[u8]) -> Result<SecretBytes, KeyError> {
        let body = sealed.strip_prefix(MAGIC.as_slice()).and_then(<[u8]>::split_first);
        let (method, rest) = body.ok_or(InputError::ShortCiphertext)?;
        let found = InputError::CiphertextVersion { found: *method };
        let method = Method::ALL.into_iter().find(|known| *known as u8 == *method).ok_or(found)?;
        let (salt, ciphertext) =
            rest.split_first_chunk::<SALT_LEN>().ok_or(InputError::ShortCiphertext)?;
        let (head, nonce) = (&sealed[..sealed.len() - ciphertext.len()], &salt[..NONCE_LEN]);
        match method {
            Method::Aes => {
                self.0.decrypt(SymmetricKey::Stored(&method.key()), nonce, head, ciphertext)
            }
            Method::Hmac | Method::Rsa => {
                gcm::decrypt(&*self.derived(method, salt)?, nonce, head, ciphertext)
            }
        }
    }
}
