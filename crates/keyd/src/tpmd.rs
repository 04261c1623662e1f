//! The TPM API (wire facts 5.7): what a provisioning service needs of the device's TPM.
//!
//! Whoever can open the socket may call it. A failure is a 500 whose cause is in the log only.

use std::sync::Arc;

use edgekeep_api::tpmd::{API_VERSIONS, AuthKeyDigest, ImportAuthKey, Imported, SignWithAuthKey, TpmKeys};
use edgekeep_core::hardware::TpmSettings;
use edgekeep_daemon::server::{HttpError, Request, Response, Router};
use edgekeep_hsm::KeyError;
use edgekeep_hsm::tpm::{Tpm, TpmError};
use http::Method;

use crate::places::SharedTpm;

/// What the routes work on.
pub struct Tpmd {
    tpm: SharedTpm,
    auth_key_index: u32,
}

/// The TPM API over `state`.
#[must_use]
pub fn router(state: Arc<Tpmd>) -> Router<Tpmd> {
    let since = API_VERSIONS[0];
    Router::new(state, API_VERSIONS)
        .route(Method::GET, "/get_tpm_keys", since, keys)
        .route(Method::POST, "/import_auth_key", since, import)
        .route(Method::POST, "/sign_with_auth_key", since, sign)
}

async fn keys(state: Arc<Tpmd>, _request: Request) -> Result<Response, HttpError> {
    let keys = state.run(Tpm::provisioning_keys).await?;
    Ok(Response::ok(&TpmKeys {
        endorsement_key: keys.endorsement_key.into(),
        storage_root_key: keys.storage_root_key.into(),
    }))
}

async fn import(state: Arc<Tpmd>, mut request: Request) -> Result<Response, HttpError> {
    let body: ImportAuthKey = request.json().await?;
    let index = state.auth_key_index;
    state.run(move |tpm| tpm.import_auth_key(index, body.key.as_slice())).await?;
    tracing::info!(uid = request.caller.uid(), index, "imported the TPM's authentication key");
    Ok(Response::ok(&Imported {}))
}

async fn sign(state: Arc<Tpmd>, mut request: Request) -> Result<Response, HttpError> {
    let body: SignWithAuthKey = request.json().await?;
    let index = state.auth_key_index;
    let digest = state.run(move |tpm| tpm.sign_with_auth_key(index, body.data.as_slice())).await?;
    Ok(Response::ok(&AuthKeyDigest { digest: digest.to_vec().into() }))
}

impl Tpmd {
    pub(crate) fn new(tpm: SharedTpm, settings: &TpmSettings) -> Self {
        Self { tpm, auth_key_index: settings.auth_key_index }
    }

    /// Runs what waits for the TPM off the thread that answers requests.
    async fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Tpm) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, HttpError> {
        let tpm = Arc::clone(&self.tpm);
        let done = tokio::task::spawn_blocking(move || -> Result<T, KeyError> { Ok(tpm.get()?.with_tpm(operation)?) });
        match done.await {
            Ok(done) => done.map_err(|error| HttpError::hidden(&error)),
            Err(failed) => Err(HttpError::hidden(&failed)),
        }
    }
}
