//! The TPM API (wire facts 5.7): what a provisioning service needs of the device's TPM.
//!
//! Whoever can open the socket may call it. Each call is in the audit log before the
//! answer goes out, with what came of it. A failure is a 500 whose cause, with its
//! remedy, is in the daemon's log only.

use std::sync::Arc;

use edgekeep_api::tpmd::{
    API_VERSIONS, AuthKeyDigest, AuthKeySlot, ImportAuthKey, Imported, SignWithAuthKey, TpmKeys,
};
use edgekeep_core::hardware::TpmSettings;
use edgekeep_core::key_use::{Operation, Policy, Reason};
use edgekeep_daemon::server::{HttpError, Request, Response, Router};
use edgekeep_hsm::{KeyBackend, KeyError};
use edgekeep_tpm::{Tpm, TpmError};
use http::Method;

use crate::places::SharedTpm;
use crate::record::{self, Recorder};
use crate::turns::Turns;

/// The state that the routes work on.
pub struct Tpmd {
    /// First, so that it is closed before the backend gives up the folder for another
    /// process.
    recorder: Arc<Recorder>,
    turns: Arc<Turns>,
    tpm: SharedTpm,
    auth_key_index: u32,
    policy: Policy,
    _backend: Arc<dyn KeyBackend>,
}

/// The TPM API over `state`.
#[must_use]
pub(crate) fn router(state: Arc<Tpmd>) -> Router<Tpmd> {
    let since = API_VERSIONS[0];
    Router::new(state, API_VERSIONS)
        .named("tpm")
        .route(Method::GET, "/get_tpm_keys", since, keys)
        .route(Method::POST, "/import_auth_key", since, import)
        .route(Method::POST, "/sign_with_auth_key", since, sign)
        .on_sender_changed(|state, caller, _| {
            state.recorder.refused(
                record::connected(&caller),
                Operation::Connect,
                None,
                Reason::SenderChanged,
            );
            std::future::ready(())
        })
}

/// The TPM API of a device without a TPM, where systemd listens all the same: whoever
/// asks is told, and does not wait.
#[must_use]
pub(crate) fn router_without_tpm() -> Router<()> {
    Router::new(Arc::new(()), &[]).named("tpm")
}

async fn keys(state: Arc<Tpmd>, request: Request) -> Result<Response, HttpError> {
    let keys = state.run(&request, Operation::TpmKeys, Tpm::provisioning_keys).await?;
    Ok(Response::ok(&TpmKeys {
        endorsement_key: keys.endorsement_key.into(),
        storage_root_key: keys.storage_root_key.into(),
    }))
}

async fn import(state: Arc<Tpmd>, mut request: Request) -> Result<Response, HttpError> {
    let body: ImportAuthKey = request.json().await?;
    let index = state.index(body.slot);
    let import = move |tpm: &Tpm| tpm.import_auth_key(index, body.key.as_slice());
    state.run(&request, Operation::TpmImport, import).await?;
    tracing::info!(uid = request.caller.uid(), index, "imported the TPM's authentication key");
    Ok(Response::ok(&Imported {}))
}

async fn sign(state: Arc<Tpmd>, mut request: Request) -> Result<Response, HttpError> {
    let body: SignWithAuthKey = request.json().await?;
    let index = state.index(body.slot);
    let sign = move |tpm: &Tpm| tpm.sign_with_auth_key(index, body.data.as_slice());
    let digest = state.run(&request, Operation::TpmSign, sign).await?;
    Ok(Response::ok(&AuthKeyDigest { digest: digest.to_vec().into() }))
}

impl Tpmd {
    pub(crate) fn new(
        tpm: SharedTpm,
        settings: &TpmSettings,
        (recorder, turns): (Arc<Recorder>, Arc<Turns>),
        policy: &Policy,
        backend: Arc<dyn KeyBackend>,
    ) -> Self {
        let (auth_key_index, policy) = (settings.auth_key_index, policy.clone());
        Self { recorder, turns, tpm, auth_key_index, policy, _backend: backend }
    }

    /// Returns the place of a key among the owner's handles.
    fn index(&self, slot: AuthKeySlot) -> u32 {
        match slot {
            AuthKeySlot::Hub => self.auth_key_index,
            AuthKeySlot::Registration => self.auth_key_index.saturating_add(1),
        }
    }

    /// Runs what waits for the TPM off the thread that answers requests, and writes it
    /// down.
    async fn run<T: Send + 'static>(
        &self,
        request: &Request,
        what: Operation,
        operation: impl FnOnce(&Tpm) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, HttpError> {
        let doing = self.recorder.begin(record::who(request, &self.policy)?, what, None).await?;
        let tpm = Arc::clone(&self.tpm);
        let turn = self.turns.take(request.caller.uid()).await;
        let done = tokio::task::spawn_blocking(move || -> Result<T, KeyError> {
            let _turn = turn;
            Ok(tpm.get()?.with_tpm(operation)?)
        });
        doing.end(match done.await {
            Ok(done) => done.map_err(|error| HttpError::hidden(&error)),
            Err(failed) => Err(HttpError::hidden(&failed)),
        })
    }
}
