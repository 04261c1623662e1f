//! TPM API (`tpmd.sock`; wire facts 5.7). There is no authorisation beyond the socket's
//! mode; every failure is a 500.

use std::path::PathBuf;

use http::Method;
use serde::{Deserialize, Serialize};

use crate::Base64Bytes;
use crate::client::{Client, ClientError};

/// Versions the service accepts, oldest first.
pub const API_VERSIONS: &[&str] = &["2020-09-01"];
const VERSION: &str = "api-version=2020-09-01";

/// Answer of `GET /get_tpm_keys`: public halves, as the TPM marshals them
/// (`TPM2B_PUBLIC`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TpmKeys {
    /// The endorsement key's.
    pub endorsement_key: Base64Bytes,
    /// The storage root key's.
    pub storage_root_key: Base64Bytes,
}

/// Place of an authentication key in the TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthKeySlot {
    /// Of the device's key at the hub: the one place that existing services have.
    #[default]
    Hub,
    /// Of the key for a registration that is under way: the handle after that. Ours.
    Registration,
}

impl AuthKeySlot {
    fn is_hub(&self) -> bool {
        *self == Self::Hub
    }
}

/// `POST /import_auth_key`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImportAuthKey {
    /// The place of the key.
    #[serde(default, skip_serializing_if = "AuthKeySlot::is_hub")]
    pub slot: AuthKeySlot,
    /// The key that the provisioning service sent.
    pub key: Base64Bytes,
}

/// Answer of `POST /import_auth_key`: an empty object.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Imported {}

/// `POST /sign_with_auth_key`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SignWithAuthKey {
    /// The place of the key.
    #[serde(default, skip_serializing_if = "AuthKeySlot::is_hub")]
    pub slot: AuthKeySlot,
    /// The message.
    pub data: Base64Bytes,
}

/// Answer of `POST /sign_with_auth_key`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuthKeyDigest {
    /// Its HMAC-SHA256.
    pub digest: Base64Bytes,
}

/// A client of the TPM API.
#[derive(Debug, Clone)]
pub struct TpmClient(Client);

impl TpmClient {
    /// A client of the service behind `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self(Client::new(socket))
    }

    /// The public halves of endorsement key and storage root key.
    ///
    /// # Errors
    /// If the service cannot be reached, or the TPM fails.
    pub async fn keys(&self) -> Result<TpmKeys, ClientError> {
        self.0.call(Method::GET, &format!("/get_tpm_keys?{VERSION}"), None::<&()>).await
    }

    /// Has the TPM unwrap and keep the authentication key.
    ///
    /// # Errors
    /// If the service cannot be reached, the key is not for this TPM, or the TPM fails.
    pub async fn import_auth_key(
        &self,
        key: Vec<u8>,
        slot: AuthKeySlot,
    ) -> Result<(), ClientError> {
        let body = ImportAuthKey { slot, key: key.into() };
        let _: Imported =
            self.0.call(Method::POST, &format!("/import_auth_key?{VERSION}"), Some(&body)).await?;
        Ok(())
    }

    /// HMAC-SHA256 with the authentication key.
    ///
    /// # Errors
    /// If the service cannot be reached, no key was imported, or the TPM fails.
    pub async fn sign_with_auth_key(
        &self,
        data: &[u8],
        slot: AuthKeySlot,
    ) -> Result<Vec<u8>, ClientError> {
        let body = SignWithAuthKey { slot, data: data.into() };
        let answer: AuthKeyDigest = self
            .0
            .call(Method::POST, &format!("/sign_with_auth_key?{VERSION}"), Some(&body))
            .await?;
        Ok(answer.digest.into_inner())
    }
}
