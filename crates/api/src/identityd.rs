//! Identity API (`identityd.sock`; wire facts 5.2).

use std::path::PathBuf;
use std::time::Duration;

use edgekeep_core::assurance::Level;
use http::Method;
use serde::{Deserialize, Serialize};

use crate::client::{Client, ClientError};
use crate::keyd::KeyHandle;

/// Versions the service accepts, oldest first.
pub const API_VERSIONS: &[&str] = &["2020-09-01", "2021-12-01", "2022-08-01", "2026-11-01"];
/// The oldest version, which has all published routes but one: so this client works with
/// every service.
const VERSION: &str = "api-version=2020-09-01";
/// The version from which it can be asked how the device is provisioned.
const PROVISIONING_VERSION: &str = "api-version=2021-12-01";
/// The version from which it tells how provisioning stands: ours.
const STAND_VERSION: &str = "api-version=2026-11-01";

/// An identity as the API answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "spec", rename_all = "lowercase")]
pub enum Identity {
    /// An identity at the hub.
    Aziot(AziotIdentity),
    /// An identity that only this device vouches for.
    Local(LocalIdentity),
}

/// An identity at the hub: of the device, or of one of its modules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AziotIdentity {
    /// Host name of the hub.
    pub hub_name: String,
    /// Host to connect to: the parent in a nested installation, else the hub.
    pub gateway_host: String,
    /// The device.
    pub device_id: String,
    /// The module; absent for the device's own identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_id: Option<String>,
    /// Generation of the module identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gen_id: Option<String>,
    /// The way in which the identity proves itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Authentication>,
    /// The assurance of the device that vouches for its own identity, as keyd tells it:
    /// ours. Absent: nothing is claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assurance: Option<Level>,
}

/// The way in which an identity proves itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authentication {
    /// `sas`, `x509` or `tpm`.
    #[serde(rename = "type")]
    pub kind: AuthenticationKind,
    /// The key, for `sas` and `x509`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_handle: Option<KeyHandle>,
    /// The certificate, for `x509`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_id: Option<String>,
}

/// Kinds of proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthenticationKind {
    /// A symmetric key behind keyd.
    Sas,
    /// A key pair behind keyd and a certificate.
    X509,
    /// A key in the TPM.
    Tpm,
}

/// A local identity: a certificate that this device issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalIdentity {
    /// The module.
    pub module_id: String,
    /// Its key and certificate.
    pub auth: LocalAuthentication,
}

/// Key and certificate of a local identity.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalAuthentication {
    /// PKCS#8, PEM.
    pub private_key: String,
    /// Chain, PEM.
    pub certificate: String,
    /// RFC 3339.
    pub expiration: String,
}

impl std::fmt::Debug for LocalAuthentication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalAuthentication")
            .field("expiration", &self.expiration)
            .finish_non_exhaustive()
    }
}

/// Answer of `GET /identities/modules`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identities {
    /// The module identities, without `auth`.
    pub identities: Vec<Identity>,
}

/// `POST /identities/modules`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateModuleIdentity {
    /// `aziot` or `local`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The module.
    pub module_id: String,
    /// Options of a local identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_id_opts: Option<serde_json::Value>,
}

/// Answer of `GET /identities/provisioning`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "lowercase")]
pub enum ProvisioningInfo {
    /// By the provisioning service.
    Dps {
        /// `symmetric_key`, `x509` or `tpm`.
        auth: String,
        /// Base URL.
        endpoint: String,
        /// The tenant's scope.
        scope_id: String,
        /// The registration's name.
        registration_id: String,
        /// Payload that is sent along with the registration; `null` if none.
        payload: Option<serde_json::Value>,
    },
    /// By hand.
    Manual {
        /// `sas` or `x509`.
        auth: String,
    },
    /// Local identities only.
    None,
}

/// Answer of `GET /identities/provisioning/stand`: how provisioning stands. Ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProvisioningStand {
    /// `dps`, `manual` or `none`.
    pub source: String,
    /// `symmetric_key`, `x509` or `tpm`; empty for `none`.
    pub auth: String,
    /// The occasions on which the device registers anew, as the configuration has them.
    pub mode: String,
    /// `idle`, `asking`, `waiting`, `proving`, `storing` or `pausing`.
    pub activity: String,
    /// The hub of the identity that counts now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub_name: Option<String>,
    /// The device there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Time at which the identity was obtained, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obtained_at: Option<String>,
    /// SHA-256 thumbprint of the device's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The certificate for the hub that the provisioning service issues, where it is
    /// asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operational_certificate: Option<OperationalStand>,
    /// Failed attempts since the last success.
    pub failures: u32,
    /// Seconds until the next call to the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_in_sec: Option<u64>,
    /// True if no request makes the next call earlier.
    pub is_firm: bool,
    /// The last failures, the newest first; at most eight.
    pub errors: Vec<ProvisioningFailure>,
}

/// The certificate for the hub that the provisioning service issues with a registration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationalStand {
    /// Its id.
    pub id: String,
    /// SHA-256 thumbprint; absent if none was issued yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thumbprint: Option<String>,
    /// The end of its validity, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
}

/// A failed attempt to provision the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisioningFailure {
    /// Time of the failure, RFC 3339.
    pub at: String,
    /// The reason in words.
    pub reason: String,
}

/// Typed client of the identity API.
#[derive(Debug, Clone)]
pub struct IdentityClient(Client);

impl IdentityClient {
    /// A client of the identityd behind `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self(Client::new(socket))
    }

    /// The same client on the same connections, with another limit for a whole call (30 s
    /// by default).
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self(self.0.clone().with_timeout(timeout))
    }

    /// The device's identity.
    ///
    /// # Errors
    /// If identityd cannot be reached, refuses, or the device has no identity yet.
    pub async fn device(&self) -> Result<Identity, ClientError> {
        let body = serde_json::json!({"type": "aziot"});
        self.0.call(Method::POST, &format!("/identities/device?{VERSION}"), Some(&body)).await
    }

    /// The module identities of this device.
    ///
    /// # Errors
    /// If identityd cannot be reached or refuses.
    pub async fn modules(&self) -> Result<Vec<Identity>, ClientError> {
        let path = format!("/identities/modules?{VERSION}&type=aziot");
        let answer: Identities = self.0.call(Method::GET, &path, None::<&()>).await?;
        Ok(answer.identities)
    }

    /// One module's identity.
    ///
    /// # Errors
    /// If identityd cannot be reached, refuses, or knows no such module.
    pub async fn module(&self, module: &str) -> Result<Identity, ClientError> {
        self.0.call(Method::GET, &self.module_path(module), None::<&()>).await
    }

    /// Creates a module identity.
    ///
    /// # Errors
    /// If identityd cannot be reached or refuses, or the hub cannot be reached or
    /// refuses.
    pub async fn create_module(&self, module: &str) -> Result<Identity, ClientError> {
        let body = CreateModuleIdentity {
            kind: "aziot".into(),
            module_id: module.to_owned(),
            local_id_opts: None,
        };
        self.0.call(Method::POST, &format!("/identities/modules?{VERSION}"), Some(&body)).await
    }

    /// Repairs a module identity's keys at the hub and returns it.
    ///
    /// # Errors
    /// If identityd cannot be reached or refuses, or there is no such identity.
    pub async fn update_module(&self, module: &str) -> Result<Identity, ClientError> {
        let body = serde_json::json!({"type": "aziot", "moduleId": module});
        self.0.call(Method::PUT, &self.module_path(module), Some(&body)).await
    }

    /// Deletes a module identity.
    ///
    /// # Errors
    /// If identityd cannot be reached or refuses, or the hub cannot be reached or
    /// refuses.
    pub async fn delete_module(&self, module: &str) -> Result<(), ClientError> {
        self.0.call_empty(Method::DELETE, &self.module_path(module), None::<&()>).await
    }

    /// Asks for a new provisioning of the device.
    ///
    /// # Errors
    /// If identityd cannot be reached or refuses.
    pub async fn reprovision(&self) -> Result<(), ClientError> {
        let body = serde_json::json!({"type": "aziot"});
        self.0
            .call_empty(
                Method::POST,
                &format!("/identities/device/reprovision?{VERSION}"),
                Some(&body),
            )
            .await
    }

    /// Asks for the way in which the device is provisioned.
    ///
    /// # Errors
    /// If identityd cannot be reached.
    pub async fn provisioning(&self) -> Result<ProvisioningInfo, ClientError> {
        self.0
            .call(
                Method::GET,
                &format!("/identities/provisioning?{PROVISIONING_VERSION}"),
                None::<&()>,
            )
            .await
    }

    /// Asks how provisioning stands.
    ///
    /// # Errors
    /// If identityd cannot be reached or refuses, or is one that does not tell.
    pub async fn provisioning_stand(&self) -> Result<ProvisioningStand, ClientError> {
        let path = format!("/identities/provisioning/stand?{STAND_VERSION}");
        self.0.call(Method::GET, &path, None::<&()>).await
    }

    fn module_path(&self, module: &str) -> String {
        format!("/identities/modules/{}?{VERSION}&type=aziot", crate::path_segment(module))
    }
}
