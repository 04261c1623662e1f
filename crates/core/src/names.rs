//! Well-known names of keys, certificates and modules.
//!
//! Daemons agree on these names through grants and settings: one that is misspelt in one
//! of them is refused there, in silence. So each stands here once, and is checked when
//! this program is compiled.

use crate::id::{CertId, KeyId, ModuleId};

/// A name that is a valid key id and a valid certificate id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WellKnown(&'static str);

impl WellKnown {
    /// Checks the name; evaluated at compile time.
    const fn new(name: &'static str) -> Self {
        let bytes = name.as_bytes();
        assert!(!bytes.is_empty() && bytes.len() <= 256, "a name has 1 to 256 characters");
        let mut at = 0;
        while at < bytes.len() {
            assert!(bytes[at].is_ascii_graphic(), "a name is printable ASCII without blanks");
            at += 1;
        }
        Self(name)
    }

    /// The name as a text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// The key of this name.
    #[must_use]
    pub fn key(self) -> KeyId {
        KeyId::known(self.0)
    }

    /// The certificate of this name.
    #[must_use]
    pub fn cert(self) -> CertId {
        CertId::known(self.0)
    }

    /// True for this key.
    #[must_use]
    pub fn is_key(self, id: &KeyId) -> bool {
        id.as_str() == self.0
    }

    /// True for this certificate.
    #[must_use]
    pub fn is_cert(self, id: &CertId) -> bool {
        id.as_str() == self.0
    }
}

/// Key and certificate of the CA that moduled issues module certificates with.
pub const EDGE_CA: WellKnown = WellKnown::new("aziot-edged-ca");
/// Key and certificate of that CA's successor while it is made.
pub const EDGE_CA_NEXT: WellKnown = WellKnown::new("aziot-edged-ca-temp");
/// Key and certificate of the device's own CA.
pub const LOCAL_CA: WellKnown = WellKnown::new("local-ca");
/// Key and certificate of that CA's successor while it is made.
pub const LOCAL_CA_NEXT: WellKnown = WellKnown::new("local-ca-temp");
/// Certificate that modules trust.
pub const TRUST_BUNDLE: WellKnown = WellKnown::new("aziot-edged-trust-bundle");
/// Certificate that signs deployments, for the agent.
pub const MANIFEST_TRUST_BUNDLE: WellKnown = WellKnown::new("aziot-edged-manifest-trust-bundle");
/// Certificate of the operator's addition to the trust bundle.
pub const TRUST_BUNDLE_USER: WellKnown = WellKnown::new("trust-bundle-user");
/// Key of the device's identity: the shared key, or the one of its certificate.
pub const DEVICE_KEY: WellKnown = WellKnown::new("device-id");
/// Key and certificate that the provisioning service issues for use at the hub.
pub const OPERATIONAL: WellKnown = WellKnown::new("device-operational");
/// The same key of a request under way.
pub const OPERATIONAL_NEXT: WellKnown = WellKnown::new("device-operational-temp");
/// Key that module identities are derived from.
pub const IDENTITY_MASTER_KEY: WellKnown = WellKnown::new("aziot_identityd_master_id");
/// Key that modules' data is encrypted with on compatible services, and was here before.
pub const DEVICE_DATA_KEY: WellKnown = WellKnown::new("iotedge_master_encryption_id");
/// Key that the keys for modules' data are derived from.
pub const MODULE_DATA_KEY: WellKnown = WellKnown::new("edgekeep-module-data");
/// Key that proves key handles.
pub const HANDLE_VALIDATION_KEY: WellKnown = WellKnown::new("handle-validation-key");
/// Key that signs the audit log's checkpoints.
pub const CHECKPOINT_KEY: WellKnown = WellKnown::new("audit-checkpoint-key");
/// Key that steps the audit log's counter in the TPM.
pub const COUNTER_KEY: WellKnown = WellKnown::new("audit-counter-key");
/// Key that extends the measurements' index in the TPM.
pub const MEASURE_KEY: WellKnown = WellKnown::new("measure-key");
/// Key on a token that a store key is encrypted under by AES.
pub const STORE_KEY_AES: WellKnown = WellKnown::new("edgekeep-store-key-aes");
/// Key on a token that a store key is encrypted under by HMAC.
pub const STORE_KEY_HMAC: WellKnown = WellKnown::new("edgekeep-store-key-hmac");
/// Key on a token that a store key is encrypted under by RSA.
pub const STORE_KEY_RSA: WellKnown = WellKnown::new("edgekeep-store-key-rsa");

/// Name of the module that holds the deployment.
pub const EDGE_AGENT: &str = "edgeAgent";
/// Name of the module that routes messages.
pub const EDGE_HUB: &str = "edgeHub";

/// Id of the module that holds the deployment, as the hub knows it.
#[must_use]
pub fn edge_agent() -> ModuleId {
    ModuleId::known("$edgeAgent")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_the_id_that_parsing_makes_of_it() {
        for name in [
            EDGE_CA,
            EDGE_CA_NEXT,
            LOCAL_CA,
            LOCAL_CA_NEXT,
            TRUST_BUNDLE,
            MANIFEST_TRUST_BUNDLE,
            TRUST_BUNDLE_USER,
            DEVICE_KEY,
            OPERATIONAL,
            OPERATIONAL_NEXT,
            IDENTITY_MASTER_KEY,
            DEVICE_DATA_KEY,
            MODULE_DATA_KEY,
            HANDLE_VALIDATION_KEY,
            CHECKPOINT_KEY,
            COUNTER_KEY,
            MEASURE_KEY,
            STORE_KEY_AES,
            STORE_KEY_HMAC,
            STORE_KEY_RSA,
        ] {
            assert_eq!(name.as_str().parse(), Ok(name.key()));
            assert_eq!(name.as_str().parse(), Ok(name.cert()));
        }
        assert_eq!("$edgeAgent".parse(), Ok(edge_agent()));
        assert_eq!(edge_agent().name(), EDGE_AGENT);
    }
}
