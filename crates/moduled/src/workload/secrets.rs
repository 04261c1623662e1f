//! Sign, encrypt, decrypt: with keys that stay in keyd.

use std::sync::Arc;

use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{EncryptMechanism, SignMechanism};
use edgekeep_api::workload::{Decrypt, Decrypted, Digest, Encrypt, Encrypted, Sign};
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::server::{HttpError, Request, Response};
use http::StatusCode;

use super::WorkloadDoor;
use crate::failure;

/// The device's key for modules' data (wire facts 3.3).
pub(crate) const ENCRYPTION_KEY: &str = "iotedge_master_encryption_id";

pub(super) async fn sign(state: Arc<WorkloadDoor>, mut request: Request) -> Result<Response, HttpError> {
    let (module, identity) = state.admit_generation(&request).await?;
    let body: Sign = super::body(&mut request).await?;
    let (service, keys) = (&state.service, state.keys_for(&request, &module));
    let mechanism = SignMechanism::HmacSha256 { message: body.data };
    let digest = match keys.sign(&identity.key, mechanism.clone()).await {
        Err(error) if is_stale(&error) => {
            // The handle is no longer good, for example because keyd was given a new store: ask for one and try once.
            service.identities.forget(&module);
            let identity = service.identities.module(&module).await.map_err(|error| failure::of_identity(&error))?;
            keys.sign(&identity.key, mechanism).await
        }
        other => other,
    };
    let digest = digest.map_err(|error| failure::of_service(&error))?;
    Ok(Response::ok(&Digest { digest: digest.into() }))
}

pub(super) async fn encrypt(state: Arc<WorkloadDoor>, mut request: Request) -> Result<Response, HttpError> {
    let (module, _) = state.admit_generation(&request).await?;
    let body: Encrypt = super::body(&mut request).await?;
    let keys = &state.keys_for(&request, &module);
    let mechanism = aead(&module, request.param(1), body.initialization_vector);
    let handle = state.service.encryption_key.get(keys).await?;
    let ciphertext = match keys.encrypt(&handle, mechanism.clone(), body.plaintext.as_slice().to_vec()).await {
        Err(error) if is_stale(&error) => {
            let handle = state.service.encryption_key.renew(keys, &handle).await?;
            keys.encrypt(&handle, mechanism, body.plaintext.into_inner()).await
        }
        other => other,
    };
    // Whatever keyd objects to is an error of ours on this API (wire facts 3.3).
    let ciphertext = ciphertext.map_err(|error| HttpError::internal(error.to_string()))?;
    Ok(Response::ok(&Encrypted { ciphertext: ciphertext.into() }))
}

pub(super) async fn decrypt(state: Arc<WorkloadDoor>, mut request: Request) -> Result<Response, HttpError> {
    let (module, _) = state.admit_generation(&request).await?;
    let body: Decrypt = super::body(&mut request).await?;
    let keys = &state.keys_for(&request, &module);
    let mechanism = aead(&module, request.param(1), body.initialization_vector);
    let handle = state.service.encryption_key.get(keys).await?;
    let plaintext = match keys.decrypt(&handle, mechanism.clone(), body.ciphertext.as_slice().to_vec()).await {
        Err(error) if is_stale(&error) => {
            let handle = state.service.encryption_key.renew(keys, &handle).await?;
            keys.decrypt(&handle, mechanism, body.ciphertext.into_inner()).await
        }
        other => other,
    };
    let plaintext = plaintext.map_err(|error| HttpError::internal(error.to_string()))?;
    Ok(Response::ok(&Decrypted { plaintext: plaintext.into() }))
}

/// Module id and generation without a separator, as existing ciphertexts have it (wire facts 3.3).
fn aead(module: &ModuleId, generation: &str, iv: edgekeep_api::Base64Bytes) -> EncryptMechanism {
    EncryptMechanism::Aead { iv, aad: format!("{module}{generation}").into_bytes().into() }
}

/// Whether keyd objects to the handle itself.
fn is_stale(error: &ClientError) -> bool {
    matches!(error, ClientError::Status { status, message }
        if matches!(*status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED) && message.contains("handle"))
}
