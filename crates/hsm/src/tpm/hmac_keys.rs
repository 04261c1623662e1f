//! Operations that both backends of the TPM do alike. The TPM computes HMACs, keys
//! derived by them are used here, and kept keys encrypt nothing.

use edgekeep_core::id::KeyId;
use zeroize::Zeroizing;

use crate::backend::{InputError, KeyBackend, KeyError, Operation, SymmetricKey};
use crate::{SecretBytes, gcm, material};

/// A backend whose kept symmetric keys compute HMACs, in the TPM, and nothing else.
pub(super) trait HmacKeys: KeyBackend {
    /// HMAC-SHA256 with a kept key.
    fn kept_hmac(&self, id: &KeyId, message: &[u8]) -> Result<[u8; 32], KeyError>;

    /// Returns the error for a kept key that is asked to encrypt or decrypt.
    fn no_cipher(&self, id: &KeyId, operation: Operation) -> KeyError;

    /// The key derived from a kept one; computed by the TPM, used here.
    fn derive(&self, base: &KeyId, data: &[u8]) -> Result<SecretBytes, KeyError> {
        let derived = Zeroizing::new(self.kept_hmac(base, data)?);
        Ok(SecretBytes::from(&derived[..]))
    }

    fn hmac_with(&self, key: SymmetricKey<'_>, message: &[u8]) -> Result<[u8; 32], KeyError> {
        match key {
            SymmetricKey::Stored(id) => self.kept_hmac(id, message),
            SymmetricKey::Derived { base, data } => {
                Ok(material::hmac_sha256(self.derive(base, data)?.expose(), message))
            }
        }
    }

    fn cipher_key(
        &self,
        key: SymmetricKey<'_>,
        operation: Operation,
    ) -> Result<SecretBytes, KeyError> {
        match key {
            SymmetricKey::Derived { base, data } => self.derive(base, data),
            SymmetricKey::Stored(id) => Err(self.no_cipher(id, operation)),
        }
    }

    fn encrypt_with(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        plain: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        gcm::encrypt(self.cipher_key(key, Operation::Encrypt)?.expose(), iv, aad, plain)
    }

    fn decrypt_with(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        gcm::decrypt(self.cipher_key(key, Operation::Decrypt)?.expose(), iv, aad, sealed)
    }
}

/// A digest as a P-256 key signs it.
pub(super) fn p256_digest(digest: &[u8]) -> Result<[u8; 32], KeyError> {
    if !matches!(digest.len(), 20 | 28 | 32 | 48 | 64) {
        return Err(InputError::DigestLength { found: digest.len() }.into());
    }
    let fitted = material::fit_digest(digest, material::P256.len);
    fitted.as_slice().try_into().map_err(|_| KeyError::Library { operation: Operation::SignEcdsa })
}
