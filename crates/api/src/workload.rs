//! Workload API (one socket per module, and the shared legacy socket; wire facts 3).

use std::path::PathBuf;

use http::Method;
use serde::{Deserialize, Serialize};

use crate::Base64Bytes;
use crate::client::{Client, ClientError};

/// Versions that management *and* workload API accept, oldest first.
pub const API_VERSIONS: &[&str] = &[
    "2018-06-28",
    "2019-01-30",
    "2019-10-22",
    "2019-11-05",
    "2020-07-07",
    "2021-12-07",
    "2022-08-03",
];
const VERSION: &str = "api-version=2020-07-07";

/// `POST …/sign`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sign {
    /// `primary` or `secondary`; other words mean `primary`, as existing clients send
    /// anything.
    #[serde(default)]
    pub key_id: Option<String>,
    /// `HMACSHA256`; not looked at, as existing clients send anything.
    #[serde(default)]
    pub algo: Option<String>,
    /// Data to sign.
    pub data: Base64Bytes,
}

/// Answer of `POST …/sign`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Digest {
    /// HMAC-SHA256 over the data with the module's key.
    pub digest: Base64Bytes,
}

/// Answer of `GET /identity` (ours): who the caller is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnIdentity {
    /// The module's id at the hub.
    pub module_id: String,
    /// The identity's generation, as it stands in the other routes.
    pub generation_id: String,
    /// The device.
    pub device_id: String,
    /// Host name of the hub.
    pub hub_hostname: String,
    /// This device's own name.
    pub gateway_hostname: String,
}

/// `POST …/encrypt`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Encrypt {
    /// Plaintext to encrypt.
    pub plaintext: Base64Bytes,
    /// Initialization vector, of any length.
    pub initialization_vector: Base64Bytes,
}

/// Answer of `POST …/encrypt`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Encrypted {
    /// The versioned ciphertext.
    pub ciphertext: Base64Bytes,
}

/// `POST …/decrypt`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decrypt {
    /// Ciphertext to decrypt.
    pub ciphertext: Base64Bytes,
    /// Initialization vector, the same as for encrypt.
    pub initialization_vector: Base64Bytes,
}

/// Answer of `POST …/decrypt`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Decrypted {
    /// The plaintext.
    pub plaintext: Base64Bytes,
}

/// `POST …/certificate/server`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerCertificate {
    /// Subject and first name of the certificate; a host name or an IP address.
    pub common_name: String,
    /// RFC 3339; the certificate ends then at the latest. Absent or unreadable: the
    /// configured lifetime.
    #[serde(default)]
    pub expiration: Option<String>,
}

/// `POST …/certificate/identity`; the whole body may be absent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct IdentityCertificate {
    /// RFC 3339; the certificate ends then at the latest.
    #[serde(default)]
    pub expiration: Option<String>,
}

/// Answer of both certificate routes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IssuedCertificate {
    /// The new key.
    pub private_key: PrivateKey,
    /// PEM: leaf, then the issuers.
    pub certificate: String,
    /// The leaf's end, RFC 3339 with `+00:00`.
    pub expiration: String,
}

/// A private key in an answer.
#[derive(Clone, Serialize, Deserialize)]
pub struct PrivateKey {
    /// Always `key`.
    #[serde(rename = "type")]
    pub kind: String,
    /// PKCS#8, PEM.
    pub bytes: String,
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// Answer of both trust bundle routes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrustBundle {
    /// Concatenated PEM.
    pub certificate: String,
}

/// Typed client of the workload API.
#[derive(Debug, Clone)]
pub struct WorkloadClient(Client);

impl WorkloadClient {
    /// A client of the workload API behind `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self(Client::new(socket))
    }

    /// Signs with the module's primary key.
    ///
    /// # Errors
    /// If the socket cannot be reached or the caller is refused.
    pub async fn sign(
        &self,
        module: &str,
        generation: &str,
        data: &[u8],
    ) -> Result<Vec<u8>, ClientError> {
        let body = Sign {
            key_id: Some("primary".into()),
            algo: Some("HMACSHA256".into()),
            data: data.into(),
        };
        let path = format!(
            "/modules/{}/genid/{}/sign?{VERSION}",
            crate::path_segment(module),
            crate::path_segment(generation)
        );
        let answer: Digest = self.0.call(Method::POST, &path, Some(&body)).await?;
        Ok(answer.digest.into_inner())
    }

    /// Asks for the identity of the caller, on the caller's own socket (ours).
    ///
    /// # Errors
    /// If moduled cannot be reached or refuses.
    pub async fn identity(&self) -> Result<OwnIdentity, ClientError> {
        self.0.call(Method::GET, "/identity?api-version=2022-08-03", None::<&()>).await
    }

    /// The roots that this device's certificates chain to, PEM.
    ///
    /// # Errors
    /// If the socket cannot be reached.
    pub async fn trust_bundle(&self) -> Result<String, ClientError> {
        let answer: TrustBundle =
            self.0.call(Method::GET, &format!("/trust-bundle?{VERSION}"), None::<&()>).await?;
        Ok(answer.certificate)
    }
}
