//! Keys API (`keyd.sock`; wire facts 5.3 and 5.4).

mod integrity;

use std::path::PathBuf;

use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::ModuleId;
use http::Method;
use http::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use crate::Base64Bytes;
use crate::client::{Client, ClientError};

pub use self::integrity::{IntegrityLog, Measurement, Recorded, RegisterValue};

/// Versions the service accepts, oldest first.
pub const API_VERSIONS: &[&str] = &["2020-09-01", "2021-05-01"];
/// The oldest version, which has all published routes: so this client works with every
/// service.
const VERSION: &str = "api-version=2020-09-01";
/// The version from which the routes to the audit log (ours) are open.
const AUDIT_VERSION: &str = "api-version=2021-05-01";

/// An opaque handle to a key, made by keyd for one user. Others may use it if they have a
/// grant to; it is no secret, but is treated as one, since existing services take it from
/// anybody.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyHandle(pub String);

impl std::fmt::Debug for KeyHandle {
    /// Not printed: where the configuration lets any user use handles, it is a bearer
    /// token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHandle(..)")
    }
}

/// Answer that carries a handle; also the request body of routes that take just a handle.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandleBody {
    /// The handle.
    pub key_handle: KeyHandle,
}

/// `POST /key`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateKey {
    /// Name of the key.
    pub key_id: String,
    /// Comma list of `derive`, `encrypt`, `sign`.
    pub usage: String,
    /// Present: import these bytes over whatever is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_bytes: Option<Base64Bytes>,
}

/// `POST /keypair`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateKeyPair {
    /// Name of the key pair.
    pub key_id: String,
    /// Colon list of `ec-p256`, `ec-p384`, `rsa-2048`, `rsa-4096`, `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_algorithms: Option<String>,
}

/// `POST /keypair/{id}`: move.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MoveKeyPair {
    /// Name the key pair has now.
    pub from: String,
}

/// Answer of `POST /parameters/{name}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ParameterValue {
    /// The value: a word for `algorithm`, else base64.
    pub value: String,
}

/// `POST /derivedkey`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateDerivedKey {
    /// Handle of the base key.
    pub base_key_handle: KeyHandle,
    /// Derivation data: the use that the derived key is for. Other data make another key.
    pub derivation_data: Base64Bytes,
}

/// Answer of `POST /derivedkey/export`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExportedKey {
    /// The derived key's bytes.
    pub key: Base64Bytes,
}

/// `POST /sign`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sign {
    /// Handle of the key to sign with.
    pub key_handle: KeyHandle,
    /// Mechanism, with the data to sign.
    #[serde(flatten)]
    pub mechanism: SignMechanism,
}

/// Mechanisms of `POST /sign`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "algorithm", content = "parameters")]
pub enum SignMechanism {
    /// Over a digest that the caller computed; the signature is DER.
    #[serde(rename = "ECDSA")]
    Ecdsa {
        /// The digest.
        digest: Base64Bytes,
    },
    /// HMAC over a message.
    #[serde(rename = "HMAC-SHA256")]
    HmacSha256 {
        /// The message.
        message: Base64Bytes,
    },
}

/// Answer of `POST /sign`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Signature {
    /// The signature.
    pub signature: Base64Bytes,
}

/// `POST /encrypt`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Encrypt {
    /// Handle of the key to encrypt with.
    pub key_handle: KeyHandle,
    /// Mechanism.
    #[serde(flatten)]
    pub mechanism: EncryptMechanism,
    /// Plaintext to encrypt.
    pub plaintext: Base64Bytes,
}

/// `POST /decrypt`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decrypt {
    /// Handle of the key to decrypt with.
    pub key_handle: KeyHandle,
    /// Mechanism.
    #[serde(flatten)]
    pub mechanism: EncryptMechanism,
    /// Ciphertext to decrypt.
    pub ciphertext: Base64Bytes,
}

/// Mechanisms of `POST /encrypt` and `/decrypt`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "algorithm", content = "parameters")]
pub enum EncryptMechanism {
    /// AES-GCM.
    #[serde(rename = "AEAD")]
    Aead {
        /// Initialization vector, of any length.
        iv: Base64Bytes,
        /// Additional data that is authenticated.
        aad: Base64Bytes,
    },
    /// The private-key operation with PKCS#1 v1.5 signature padding.
    #[serde(rename = "RSA-PKCS1")]
    RsaPkcs1,
    /// The private-key operation alone.
    #[serde(rename = "RSA-NO-PADDING")]
    RsaNoPadding,
}

/// Answer of `POST /encrypt`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ciphertext {
    /// The versioned ciphertext (wire facts 5.5).
    pub ciphertext: Base64Bytes,
}

/// Answer of `POST /decrypt`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plaintext {
    /// The plaintext.
    pub plaintext: Base64Bytes,
}

/// Answer of `GET /certificate/{id}` (ours, since 2021-05-01): a certificate that is an
/// object on a token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenCertificate {
    /// The object's value as the token has it: DER, if whoever wrote it did right.
    pub certificate: Base64Bytes,
}

/// Answer of `GET /audit/checkpoint` (ours, since 2021-05-01): everything that was
/// written down before the request is covered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditCheckpoint {
    /// A signed note (C2SP `tlog-checkpoint`).
    pub checkpoint: String,
    /// The key that it is checked with, as `<name>+<id>+<base64>`.
    pub verifier_key: String,
    /// The counter in hardware, read right after the checkpoint was signed; absent if the
    /// log has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter: Option<AuditCounter>,
}

/// The counter in hardware against which the audit log compares itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditCounter {
    /// Its NV index.
    pub index: u32,
    /// Its value; absent if it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<u64>,
    /// The reason why the counter could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Name of the header (ours) in which a service that measures its callers says on whose
/// behalf it asks.
pub const ON_BEHALF_OF: &str = "x-edgekeep-on-behalf-of";

/// The module on whose behalf a service asks, as the service says:
/// `module=<percent-encoded id>` and, if it measured the executable,
/// `;executable=sha256:<hex>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnBehalfOf {
    /// The module.
    pub module: ModuleId,
    /// SHA-256 of the executable that asked it.
    pub executable: Option<Sha256Digest>,
}

impl OnBehalfOf {
    /// A client that says so in each request.
    pub(crate) fn said_by(&self, client: &Client) -> Client {
        // Both its parts are plain ASCII.
        match HeaderValue::try_from(self.to_string()) {
            Ok(value) => client.with_header(HeaderName::from_static(ON_BEHALF_OF), value),
            Err(_) => client.clone(),
        }
    }
}

/// It is not of that form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("header {ON_BEHALF_OF} is not of the form module=<id>;executable=sha256:<hex>")]
pub struct OnBehalfOfError;

impl std::fmt::Display for OnBehalfOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "module={}", crate::path_segment(self.module.as_str()))?;
        self.executable.as_ref().map_or(Ok(()), |executable| write!(f, ";executable={executable}"))
    }
}

impl std::str::FromStr for OnBehalfOf {
    type Err = OnBehalfOfError;

    fn from_str(text: &str) -> Result<Self, OnBehalfOfError> {
        let (module, executable) = match text.split_once(";executable=") {
            Some((module, executable)) => (module, Some(executable)),
            None => (text, None),
        };
        let module = module.strip_prefix("module=").ok_or(OnBehalfOfError)?;
        let module = percent_encoding::percent_decode_str(module)
            .decode_utf8()
            .map_err(|_| OnBehalfOfError)?;
        let executable = match executable {
            Some(text) if text.starts_with("sha256:") => {
                Some(text.parse().map_err(|_| OnBehalfOfError)?)
            }
            Some(_) => return Err(OnBehalfOfError),
            None => None,
        };
        Ok(Self { module: module.parse().map_err(|_| OnBehalfOfError)?, executable })
    }
}

/// Answer of `GET /audit/entries?from=<index>&limit=<count>` (ours, since 2021-05-01).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntries {
    /// Index of the oldest entry that is kept; those before it were dropped by rotation.
    pub first: u64,
    /// Roots of the complete subtrees over the dropped entries, largest first, in base64.
    pub edge: Vec<String>,
    /// Signed checkpoint over the dropped entries.
    pub base: String,
    /// Index of the first entry in `entries`: what was asked for, or `first`.
    pub from: u64,
    /// The entries, each the exact JSON text that is hashed. Fewer than asked for if
    /// there are no more or they are large.
    pub entries: Vec<String>,
}

/// Typed client of the keys API.
#[derive(Debug, Clone)]
pub struct KeysClient(Client);

impl KeysClient {
    /// A client of the keyd behind `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self(Client::new(socket))
    }

    /// The same client on the same connections, whose requests say on whose behalf they
    /// are made. keyd writes that into its audit log, as a statement of the uid that
    /// makes it, if that uid was granted to.
    #[must_use]
    pub fn on_behalf_of(&self, behalf: &OnBehalfOf) -> Self {
        Self(behalf.said_by(&self.0))
    }

    /// Loads a symmetric key, or generates it if there is none.
    ///
    /// # Errors
    /// If keyd cannot be reached or refuses.
    pub async fn create_key(&self, key_id: &str, usage: &str) -> Result<KeyHandle, ClientError> {
        let body =
            CreateKey { key_id: key_id.to_owned(), usage: usage.to_owned(), key_bytes: None };
        let answer: HandleBody =
            self.0.call(Method::POST, &format!("/key?{VERSION}"), Some(&body)).await?;
        Ok(answer.key_handle)
    }

    /// Imports a symmetric key over whatever is there.
    ///
    /// # Errors
    /// If keyd cannot be reached or refuses.
    pub async fn import_key(
        &self,
        key_id: &str,
        usage: &str,
        bytes: Vec<u8>,
    ) -> Result<KeyHandle, ClientError> {
        let body = CreateKey {
            key_id: key_id.to_owned(),
            usage: usage.to_owned(),
            key_bytes: Some(bytes.into()),
        };
        let answer: HandleBody =
            self.0.call(Method::POST, &format!("/key?{VERSION}"), Some(&body)).await?;
        Ok(answer.key_handle)
    }

    /// Loads an existing symmetric key.
    ///
    /// # Errors
    /// If keyd cannot be reached, has no such key, or refuses.
    pub async fn load_key(&self, key_id: &str) -> Result<KeyHandle, ClientError> {
        let path = format!("/key/{}?{VERSION}", crate::path_segment(key_id));
        let answer: HandleBody = self.0.call(Method::GET, &path, None::<&()>).await?;
        Ok(answer.key_handle)
    }

    /// Loads a key pair, or generates it if there is none.
    ///
    /// # Errors
    /// If keyd cannot be reached or refuses.
    pub async fn create_key_pair(
        &self,
        key_id: &str,
        algorithms: Option<&str>,
    ) -> Result<KeyHandle, ClientError> {
        let body = CreateKeyPair {
            key_id: key_id.to_owned(),
            preferred_algorithms: algorithms.map(str::to_owned),
        };
        let answer: HandleBody =
            self.0.call(Method::POST, &format!("/keypair?{VERSION}"), Some(&body)).await?;
        Ok(answer.key_handle)
    }

    /// Loads an existing key pair.
    ///
    /// # Errors
    /// If keyd cannot be reached, has no such key pair, or refuses.
    pub async fn load_key_pair(&self, key_id: &str) -> Result<KeyHandle, ClientError> {
        let path = format!("/keypair/{}?{VERSION}", crate::path_segment(key_id));
        let answer: HandleBody = self.0.call(Method::GET, &path, None::<&()>).await?;
        Ok(answer.key_handle)
    }

    /// One public parameter of a key pair: `algorithm`, `ec-curve-oid`, `ec-point`,
    /// `ec-point-uncompressed` (ours), `rsa-modulus`, `rsa-exponent`.
    ///
    /// # Errors
    /// If keyd cannot be reached or refuses.
    pub async fn parameter(&self, handle: &KeyHandle, name: &str) -> Result<String, ClientError> {
        let path = format!("/parameters/{}?{VERSION}", crate::path_segment(name));
        let body = HandleBody { key_handle: handle.clone() };
        let answer: ParameterValue = self.0.call(Method::POST, &path, Some(&body)).await?;
        Ok(answer.value)
    }

    /// The value of a certificate on a token that the configuration names.
    ///
    /// # Errors
    /// If keyd cannot be reached, or the token cannot; with a client's error if the token
    /// has no such certificate, or more than one.
    pub async fn certificate(&self, cert_id: &str) -> Result<Vec<u8>, ClientError> {
        let path = format!("/certificate/{}?{AUDIT_VERSION}", crate::path_segment(cert_id));
        let answer: TokenCertificate = self.0.call(Method::GET, &path, None::<&()>).await?;
        Ok(answer.certificate.into_inner())
    }

    /// A fresh checkpoint of the audit log.
    ///
    /// # Errors
    /// If keyd cannot be reached, refuses, or cannot write its log.
    pub async fn audit_checkpoint(&self) -> Result<AuditCheckpoint, ClientError> {
        self.0.call(Method::GET, &format!("/audit/checkpoint?{AUDIT_VERSION}"), None::<&()>).await
    }

    /// Up to `limit` entries of the audit log from index `from` on.
    ///
    /// # Errors
    /// If keyd cannot be reached or refuses.
    pub async fn audit_entries(
        &self,
        from: u64,
        limit: usize,
    ) -> Result<AuditEntries, ClientError> {
        let path = format!("/audit/entries?{AUDIT_VERSION}&from={from}&limit={limit}");
        self.0.call(Method::GET, &path, None::<&()>).await
    }

    /// A handle to the key derived from `base` and `data`.
    ///
    /// # Errors
    /// If keyd cannot be reached or refuses.
    pub async fn derive_key(
        &self,
        base: &KeyHandle,
        data: &[u8],
    ) -> Result<KeyHandle, ClientError> {
        let body = CreateDerivedKey { base_key_handle: base.clone(), derivation_data: data.into() };
        let answer: HandleBody =
            self.0.call(Method::POST, &format!("/derivedkey?{VERSION}"), Some(&body)).await?;
        Ok(answer.key_handle)
    }

    /// The bytes of a derived key.
    ///
    /// # Errors
    /// If keyd cannot be reached or refuses.
    pub async fn export_derived_key(&self, handle: &KeyHandle) -> Result<Vec<u8>, ClientError> {
        let body = HandleBody { key_handle: handle.clone() };
        let path = format!("/derivedkey/export?{VERSION}");
        let answer: ExportedKey = self.0.call(Method::POST, &path, Some(&body)).await?;
        Ok(answer.key.into_inner())
    }

    /// Signs.
    ///
    /// # Errors
    /// If keyd cannot be reached or refuses.
    pub async fn sign(
        &self,
        handle: &KeyHandle,
        mechanism: SignMechanism,
    ) -> Result<Vec<u8>, ClientError> {
        let body = Sign { key_handle: handle.clone(), mechanism };
        let answer: Signature =
            self.0.call(Method::POST, &format!("/sign?{VERSION}"), Some(&body)).await?;
        Ok(answer.signature.into_inner())
    }

    /// Encrypts.
    ///
    /// # Errors
    /// If keyd cannot be reached or refuses.
    pub async fn encrypt(
        &self,
        handle: &KeyHandle,
        mechanism: EncryptMechanism,
        plaintext: Vec<u8>,
    ) -> Result<Vec<u8>, ClientError> {
        let body = Encrypt { key_handle: handle.clone(), mechanism, plaintext: plaintext.into() };
        let answer: Ciphertext =
            self.0.call(Method::POST, &format!("/encrypt?{VERSION}"), Some(&body)).await?;
        Ok(answer.ciphertext.into_inner())
    }

    /// Decrypts.
    ///
    /// # Errors
    /// If keyd cannot be reached, refuses, or the ciphertext is not authentic.
    pub async fn decrypt(
        &self,
        handle: &KeyHandle,
        mechanism: EncryptMechanism,
        ciphertext: Vec<u8>,
    ) -> Result<Vec<u8>, ClientError> {
        let body = Decrypt { key_handle: handle.clone(), mechanism, ciphertext: ciphertext.into() };
        let answer: Plaintext =
            self.0.call(Method::POST, &format!("/decrypt?{VERSION}"), Some(&body)).await?;
        Ok(answer.plaintext.into_inner())
    }

    /// Deletes a symmetric key.
    ///
    /// # Errors
    /// If keyd cannot be reached or refuses.
    pub async fn delete_key(&self, handle: &KeyHandle) -> Result<(), ClientError> {
        let body = HandleBody { key_handle: handle.clone() };
        self.0.call_empty(Method::DELETE, &format!("/key?{VERSION}"), Some(&body)).await
    }

    /// Deletes a key pair.
    ///
    /// # Errors
    /// If keyd cannot be reached or refuses.
    pub async fn delete_key_pair(&self, handle: &KeyHandle) -> Result<(), ClientError> {
        let body = HandleBody { key_handle: handle.clone() };
        self.0.call_empty(Method::DELETE, &format!("/keypair?{VERSION}"), Some(&body)).await
    }

    /// Renames a key pair over whatever has the new name.
    ///
    /// # Errors
    /// If keyd cannot be reached or refuses.
    pub async fn move_key_pair(&self, from: &str, to: &str) -> Result<(), ClientError> {
        let path = format!("/keypair/{}?{VERSION}", crate::path_segment(to));
        self.0.call_empty(Method::POST, &path, Some(&MoveKeyPair { from: from.to_owned() })).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_whose_behalf_is_read_as_it_was_written_and_nothing_else_is() {
        for module in ["thermometer", "$edgeAgent", "a;executable=b%=c"] {
            for executable in [None, Some(Sha256Digest::new([7; 32]))] {
                let Ok(module) = module.parse() else { continue };
                let behalf = OnBehalfOf { module, executable };
                let text = behalf.to_string();
                assert!(text.len() < 512 && text.is_ascii(), "{text}");
                assert_eq!(text.parse(), Ok(behalf));
            }
        }
        let digest = "0".repeat(64);
        for text in [
            String::new(),
            "thermometer".to_owned(),
            "module=".to_owned(),
            "module=a/b".to_owned(),
            "module=%ff".to_owned(),
            format!("module=a;executable={digest}"),
            format!("module=a;executable=sha256:{digest}0"),
            format!("module=a;executable=sha256:{digest};more=1"),
            format!("executable=sha256:{digest}"),
        ] {
            assert_eq!(text.parse::<OnBehalfOf>(), Err(OnBehalfOfError), "{text}");
        }
    }
}
