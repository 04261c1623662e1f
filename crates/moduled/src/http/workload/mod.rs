//! The workload API: a module's proofs of identity, for callers that are measured first
//! (wire facts 3).

pub(crate) mod certificates;
mod identity;
mod secrets;

use std::sync::Arc;

use edgekeep_api::NOT_BASE64;
use edgekeep_api::keyd::{KeysClient, OnBehalfOf};
use edgekeep_api::workload::{API_VERSIONS, TrustBundle};
use edgekeep_core::attestation::{DenyReason, Door};
use edgekeep_core::health::calls::SHOWN_FOR;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::server::{FailedCall, HttpError, Request, Response, Router};
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;

use crate::http::refuse;
use crate::http::{Rooms, called};
use crate::identity::bundle::written_anew;
use crate::identity::identities::ModuleIdentity;

pub(crate) use secrets::DECRYPTIONS;

/// One workload socket: the service behind it, and the door it is.
#[derive(Debug)]
pub(crate) struct WorkloadDoor {
    rooms: Arc<Rooms>,
    door: Door,
}

impl WorkloadDoor {
    /// Admits the caller as the module in the route's first placeholder.
    async fn admit(
        &self,
        request: &Request,
        generation: Option<&str>,
    ) -> Result<ModuleId, HttpError> {
        let module: ModuleId = request.id(0)?;
        self.rooms.gate.admit(&called(request), &self.door, &module, generation).await?;
        Ok(module)
    }

    /// Admits the caller as the module in the first placeholder, in the generation of the
    /// second: the identity's current one, also where the module was created before its
    /// identity was known.
    async fn admit_generation(
        &self,
        request: &Request,
    ) -> Result<(ModuleId, Arc<ModuleIdentity>), HttpError> {
        let generation = request.param(1);
        let module = self.admit(request, Some(generation)).await?;
        let identity = self
            .rooms
            .credentials
            .identities
            .module(&module)
            .await
            .map_err(|error| refuse::of_identity(&error))?;
        if identity.generation == generation {
            return Ok((module, identity));
        }
        // The identity may have been made anew since it was last looked at.
        self.rooms.credentials.identities.forget(&module);
        let identity = self
            .rooms
            .credentials
            .identities
            .module(&module)
            .await
            .map_err(|error| refuse::of_identity(&error))?;
        if identity.generation == generation {
            return Ok((module, identity));
        }
        Err(self
            .rooms
            .gate
            .refuse(&called(request), &module, DenyReason::GenerationMismatch)
            .into())
    }
}

impl WorkloadDoor {
    /// Tells the operator of a call that failed, if the device is the reason.
    fn failed(&self, call: &FailedCall<'_>) {
        if !call.error.is_of_device() {
            return;
        }
        let named = call.first.and_then(|name| name.parse::<ModuleId>().ok());
        let subject = match (&self.door, &named) {
            (Door::ModuleSocket(module), _) | (_, Some(module)) => Subject::module(module),
            _ => Subject::device(),
        };
        let detail = format!("{} {}: {}", call.method, call.route, call.error.message());
        self.rooms.report.board.note(Code::ModuleCallFailed, &subject, detail, SHOWN_FOR);
    }

    /// keyd, told on whose behalf it is asked.
    fn keys_for(&self, request: &Request, module: &ModuleId) -> KeysClient {
        self.rooms.credentials.keys.on_behalf_of(&self.behalf(request, module))
    }

    /// A module that was admitted, and what asks in its name.
    fn behalf(&self, request: &Request, module: &ModuleId) -> OnBehalfOf {
        OnBehalfOf {
            module: module.clone(),
            executable: self.rooms.gate.attestor.executable(&request.caller),
        }
    }
}

/// The routes, on a socket that is `door`.
#[must_use]
pub(crate) fn router(rooms: Arc<Rooms>, door: Door) -> Router<WorkloadDoor> {
    const FIRST: &str = API_VERSIONS[0];
    Router::new(Arc::new(WorkloadDoor { rooms, door }), API_VERSIONS)
        .named("workload")
        .on_connected(|state, caller| async move {
            state.rooms.gate.connected(&state.door, &caller).await;
        })
        .on_sender_changed(|state, caller, what| async move {
            state.rooms.gate.refuse_sender(&caller, &what).await;
        })
        .on_failed(WorkloadDoor::failed)
        .on_flood(|state, uid, lasting| {
            let report = &state.rooms.report;
            report.flooded(&state.rooms.modules.root.legacy_workload_socket(), uid, lasting);
        })
        .route(Method::POST, "/modules/{m}/genid/{g}/sign", FIRST, secrets::sign)
        .route(Method::POST, "/modules/{m}/genid/{g}/encrypt", FIRST, secrets::encrypt)
        .route(Method::POST, "/modules/{m}/genid/{g}/decrypt", FIRST, secrets::decrypt)
        .route(
            Method::POST,
            "/modules/{m}/genid/{g}/certificate/server",
            FIRST,
            certificates::server,
        )
        .route(Method::POST, "/modules/{m}/certificate/identity", FIRST, certificates::identity)
        .route(Method::GET, "/identity", "2022-08-03", identity::own)
        .route(Method::GET, "/trust-bundle", FIRST, trust_bundle)
        .route(Method::GET, "/manifest-trust-bundle", FIRST, manifest_trust_bundle)
        .route(Method::GET, "/modules", FIRST, list)
        .route(Method::GET, "/modules/", FIRST, list)
}

/// The request's body. Bad base64 is a bad parameter on this API.
async fn body<T: DeserializeOwned>(request: &mut Request) -> Result<T, HttpError> {
    request.json().await.map_err(|error| {
        if error.status() == StatusCode::UNPROCESSABLE_ENTITY
            && error.message().contains(NOT_BASE64)
        {
            HttpError::bad_request(error.message())
        } else {
            error
        }
    })
}

async fn trust_bundle(state: Arc<WorkloadDoor>, _: Request) -> Result<Response, HttpError> {
    // The Edge CA's certificate is in it: one that is not valid now is of no use to who
    // checks its neighbours by the bundle.
    state.rooms.credentials.edge_ca_keeper.ready_soon(&state.rooms.credentials).await;
    let certificate =
        state.rooms.credentials.trust_bundle.get(&state.rooms.credentials.certificates).await;
    let certificate = certificate.map_err(|error| refuse::of_bundle(&error))?;
    Ok(Response::ok(&TrustBundle { certificate: certificate.as_ref().clone() }))
}

async fn manifest_trust_bundle(
    state: Arc<WorkloadDoor>,
    _: Request,
) -> Result<Response, HttpError> {
    // No manifest is signed yet; existing clients take the empty bundle for "none
    // configured".
    let loaded =
        state.rooms.credentials.certificates.load("aziot-edged-manifest-trust-bundle").await.ok();
    let certificate =
        loaded.and_then(|pem| written_anew("manifest trust bundle", &pem)).unwrap_or_default();
    Ok(Response::ok(&TrustBundle { certificate }))
}

async fn list(state: Arc<WorkloadDoor>, _: Request) -> Result<Response, HttpError> {
    let mut list = state.rooms.modules.list().await?;
    for module in &mut list.modules {
        // Labels are their authors'; a neighbour without any proof of identity gets to
        // know what runs, not more.
        if let Some(settings) = module.config.settings.as_object_mut() {
            settings.insert("createOptions".into(), serde_json::json!({}));
        }
    }
    Ok(Response::ok(&list))
}
