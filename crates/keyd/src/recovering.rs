//! A backend whose hardware may be absent: opened at the first use that finds it there.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use edgekeep_core::id::KeyId;
use edgekeep_hsm::{
    KeyBackend, KeyError, KeyKind, PairAlgorithm, PublicParameter, PublicValue, RsaPadding, SecretBytes, SymmetricKey,
    Usage,
};

type Open<B> = dyn Fn() -> Result<B, KeyError> + Send + Sync;

/// Opens a backend, and answers with the error of opening it until that succeeds. From then on the backend itself deals
/// with what comes and goes.
pub(crate) struct Recovering<B> {
    name: &'static str,
    open: Box<Open<B>>,
    opened: OnceLock<Arc<B>>,
    /// Held while it is opened.
    opening: Mutex<()>,
}

impl<B> Recovering<B> {
    pub(crate) fn new(name: &'static str, open: impl Fn() -> Result<B, KeyError> + Send + Sync + 'static) -> Self {
        Self { name, open: Box::new(open), opened: OnceLock::new(), opening: Mutex::default() }
    }

    /// The backend, opened if it was not yet.
    pub(crate) fn get(&self) -> Result<&Arc<B>, KeyError> {
        if let Some(backend) = self.opened.get() {
            return Ok(backend);
        }
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backend) = self.opened.get() {
            return Ok(backend);
        }
        let backend = Arc::new((self.open)()?);
        Ok(self.opened.get_or_init(|| backend))
    }
}

impl<B: KeyBackend> KeyBackend for Recovering<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self, id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
        self.get()?.kind(id)
    }

    fn create_key(&self, id: &KeyId, usage: Usage) -> Result<(), KeyError> {
        self.get()?.create_key(id, usage)
    }

    fn import_key(&self, id: &KeyId, bytes: SecretBytes, usage: Usage) -> Result<(), KeyError> {
        self.get()?.import_key(id, bytes, usage)
    }

    fn create_key_pair(&self, id: &KeyId, preferred: &[PairAlgorithm]) -> Result<(), KeyError> {
        self.get()?.create_key_pair(id, preferred)
    }

    fn move_key_pair(&self, from: &KeyId, to: &KeyId) -> Result<(), KeyError> {
        self.get()?.move_key_pair(from, to)
    }

    fn delete(&self, id: &KeyId, kind: KeyKind) -> Result<(), KeyError> {
        self.get()?.delete(id, kind)
    }

    fn public_parameter(&self, id: &KeyId, parameter: PublicParameter) -> Result<PublicValue, KeyError> {
        self.get()?.public_parameter(id, parameter)
    }

    fn sign_ecdsa(&self, id: &KeyId, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.get()?.sign_ecdsa(id, digest)
    }

    fn rsa_private_operation(&self, id: &KeyId, padding: RsaPadding, block: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.get()?.rsa_private_operation(id, padding, block)
    }

    fn hmac_sha256(&self, key: SymmetricKey<'_>, message: &[u8]) -> Result<[u8; 32], KeyError> {
        self.get()?.hmac_sha256(key, message)
    }

    fn encrypt(&self, key: SymmetricKey<'_>, iv: &[u8], aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.get()?.encrypt(key, iv, aad, plaintext)
    }

    fn decrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        self.get()?.decrypt(key, iv, aad, ciphertext)
    }

    fn export_derived(&self, base: &KeyId, derivation_data: &[u8]) -> Result<SecretBytes, KeyError> {
        self.get()?.export_derived(base, derivation_data)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Present;

    impl KeyBackend for Present {
        fn name(&self) -> &'static str {
            "present"
        }

        fn kind(&self, _id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
            Ok(None)
        }
    }

    #[test]
    fn what_cannot_be_opened_is_tried_again_and_what_is_open_stays_so() {
        let attempts = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&attempts);
        let backend = Recovering::new("t", move || match counted.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Err(edgekeep_hsm::pkcs11::TokenError::NoLibrary.into()),
            _ => Ok(Present),
        });
        let id: KeyId = "k".parse().unwrap();
        for _ in 0..2 {
            assert!(matches!(backend.kind(&id), Err(KeyError::Token(_))));
        }
        for _ in 0..3 {
            assert_eq!(backend.kind(&id).unwrap(), None);
        }
        assert_eq!(attempts.load(Ordering::Relaxed), 3);
    }
}
