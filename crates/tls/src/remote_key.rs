//! A key pair in the keys service, and what it signs.

use std::sync::{Arc, Mutex};

use aws_lc_rs::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{EncryptMechanism, KeyHandle, KeysClient, SignMechanism};
use edgekeep_api::{Recipient, is_worth_a_fresh_handle};
use edgekeep_base::lock::lock;

use crate::pss;
use crate::public_key::{KeyKind, PublicKey};

/// DER of a `DigestInfo` up to the digest itself (RFC 8017, section 9.2, note 1):
/// SHA-256, SHA-384, SHA-512.
const DIGEST_INFO: [[u8; 19]; 3] = [
    [0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20],
    [0x30, 0x41, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2, 5, 0, 4, 0x30],
    [0x30, 0x51, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3, 5, 0, 4, 0x40],
];

/// Failure to use a key pair.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteKeyError {
    /// The keys service refused or cannot be reached.
    #[error("the keys service did not {step}")]
    Service {
        /// The step that was asked for, as the words after "did not".
        step: &'static str,
        /// The failure of the call.
        #[source]
        source: ClientError,
    },
    /// The public half cannot be used.
    #[error("the key cannot be used: {0}")]
    PublicKey(&'static str),
    /// The signature does not fit the public half that was read before.
    #[error("the key was replaced while it was in use; try again")]
    Replaced,
    /// The public half could not be written down.
    #[error("the public half of the key cannot be encoded")]
    Encoding(#[from] der::Error),
}

/// Hash of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::Sha256 => &SHA256,
            Self::Sha384 => &SHA384,
            Self::Sha512 => &SHA512,
        }
    }
}

/// Form of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Ecdsa(Hash),
    Pkcs1(Hash),
    Pss(Hash),
}

/// A key pair in the keys service: in a file, a token or a TPM alike. The private half
/// never comes here. Clones share the handle.
#[derive(Debug, Clone)]
pub struct RemoteKey {
    keys: KeysClient,
    id: String,
    handle: Arc<Mutex<KeyHandle>>,
    public: PublicKey,
}

impl RemoteKey {
    /// Takes an existing key pair.
    ///
    /// # Errors
    /// If the keys service cannot be reached, has no such key pair or refuses, or the key
    /// is of a kind that is not used here.
    pub async fn load(keys: KeysClient, id: &str) -> Result<Self, RemoteKeyError> {
        let handle = keys.load_key_pair(id).await;
        Self::behind(keys, id, handle).await
    }

    /// Takes a key pair, which is made if there is none. `algorithms` is a colon list as
    /// the keys API has it.
    ///
    /// # Errors
    /// If the keys service cannot be reached or refuses, or the key is of a kind that is
    /// not used here.
    pub async fn load_or_make(
        keys: KeysClient,
        id: &str,
        algorithms: &str,
    ) -> Result<Self, RemoteKeyError> {
        let handle = keys.create_key_pair(id, Some(algorithms)).await;
        Self::behind(keys, id, handle).await
    }

    async fn behind(
        keys: KeysClient,
        id: &str,
        handle: Result<KeyHandle, ClientError>,
    ) -> Result<Self, RemoteKeyError> {
        let handle = handle
            .map_err(|source| RemoteKeyError::Service { step: "hand out the key", source })?;
        let public = PublicKey::ask(&keys, &handle).await?;
        Ok(Self { keys, id: id.to_owned(), handle: Arc::new(Mutex::new(handle)), public })
    }

    /// Returns the id in the keys service.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the public half.
    #[must_use]
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs a message with the hash that suits the key, as
    /// [`PublicKey::signature_algorithm`] says. The signature is checked.
    ///
    /// # Errors
    /// If the keys service cannot be reached or refuses, or has another key by now.
    pub async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, RemoteKeyError> {
        let form = match self.public.kind() {
            KeyKind::P256 => Form::Ecdsa(Hash::Sha256),
            KeyKind::P384 => Form::Ecdsa(Hash::Sha384),
            KeyKind::Rsa { .. } => Form::Pkcs1(Hash::Sha256),
        };
        let signature = self.sign_in(form, message).await?;
        if self.public.verifies(message, &signature) {
            Ok(signature)
        } else {
            Err(RemoteKeyError::Replaced)
        }
    }

    /// Signs a message in a form that fits the key.
    pub(crate) async fn sign_in(
        &self,
        form: Form,
        message: &[u8],
    ) -> Result<Vec<u8>, RemoteKeyError> {
        let refused = |source| RemoteKeyError::Service { step: "sign", source };
        let handle = lock(&self.handle).clone();
        match self.operation(&handle, form, message).await? {
            Err(error) if is_worth_a_fresh_handle(&error, Recipient::Keys) => {
                let fresh = self.keys.load_key_pair(&self.id).await.map_err(refused)?;
                fresh.clone_into(&mut lock(&self.handle));
                self.operation(&fresh, form, message).await?.map_err(refused)
            }
            signed => signed.map_err(refused),
        }
    }

    async fn operation(
        &self,
        handle: &KeyHandle,
        form: Form,
        message: &[u8],
    ) -> Result<Result<Vec<u8>, ClientError>, RemoteKeyError> {
        Ok(match form {
            Form::Ecdsa(hash) => {
                let digest = digest(hash.algorithm(), message);
                self.keys
                    .sign(handle, SignMechanism::Ecdsa { digest: digest.as_ref().into() })
                    .await
            }
            Form::Pkcs1(hash) => {
                let digest = digest(hash.algorithm(), message);
                let block = [&DIGEST_INFO[hash as usize][..], digest.as_ref()].concat();
                self.keys.encrypt(handle, EncryptMechanism::RsaPkcs1, block).await
            }
            Form::Pss(hash) => {
                let KeyKind::Rsa { bits } = self.public.kind() else {
                    return Err(RemoteKeyError::PublicKey("it is no RSA key"));
                };
                let block = pss::encoded(hash.algorithm(), message, bits)
                    .ok_or(RemoteKeyError::PublicKey("it is too short for this signature"))?;
                self.keys.encrypt(handle, EncryptMechanism::RsaNoPadding, block).await
            }
        })
    }
}
