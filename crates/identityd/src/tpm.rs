//! Proof by a TPM: tokens that the TPM signs, and the registration that brings it the
//! keys (wire facts 5.7, 6.2).
//!
//! The hub's key and the registration's key have a place each, so that a registration
//! that fails leaves the device able to prove itself to its hub.

use std::sync::Arc;

use edgekeep_api::client::ClientError;
use edgekeep_api::tpmd::{AuthKeySlot, TpmClient};
use edgekeep_cloud::{CloudError, Dps, Signer, SignerError};

use crate::keys::DeviceKeys;
use crate::refresh::chain;

/// Signer of the device's tokens.
#[derive(Debug, Clone)]
pub(crate) enum DeviceSigner {
    /// A symmetric key in keyd.
    Keyd(Arc<DeviceKeys>),
    /// A key in the TPM.
    Tpm(TpmClient, AuthKeySlot),
}

/// Failure of the TPM, or of keyd, which has the TPM.
#[derive(Debug, thiserror::Error)]
#[error("the TPM did not {step}; is [tpm] configured, and is keyd running? Its log says more")]
pub(crate) struct TpmFailed {
    step: &'static str,
    #[source]
    source: ClientError,
}

fn failed(step: &'static str) -> impl FnOnce(ClientError) -> TpmFailed {
    move |source| TpmFailed { step, source }
}

fn request(error: &TpmFailed) -> CloudError {
    CloudError::Request { what: chain(error) }
}

impl Signer for DeviceSigner {
    async fn sign(&self, data: Vec<u8>) -> Result<Vec<u8>, SignerError> {
        match self {
            Self::Keyd(keys) => keys.sign(data).await,
            Self::Tpm(tpm, slot) => {
                let signed = tpm.sign_with_auth_key(&data, *slot).await;
                signed.map_err(|source| SignerError(Box::new(failed("sign")(source))))
            }
        }
    }
}

/// Shows the TPM to the service, and puts the registration's key into the TPM. Returns
/// the key, as only the TPM can read it.
pub(crate) async fn attest(
    tpm: &TpmClient,
    dps: &Dps<DeviceSigner>,
) -> Result<Vec<u8>, CloudError> {
    let keys = tpm.keys().await.map_err(|error| request(&failed("show its keys")(error)))?;
    let blob =
        dps.attest(keys.endorsement_key.as_slice(), keys.storage_root_key.as_slice()).await?;
    import(tpm, &blob, AuthKeySlot::Registration).await?;
    Ok(blob)
}

/// Puts a key into the TPM.
pub(crate) async fn import(
    tpm: &TpmClient,
    blob: &[u8],
    slot: AuthKeySlot,
) -> Result<(), CloudError> {
    let imported = tpm.import_auth_key(blob.to_vec(), slot).await;
    imported.map_err(|error| request(&failed("take the key that the service sent")(error)))
}
