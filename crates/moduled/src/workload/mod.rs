//! The workload API: a module's proofs of identity, for callers that are measured first (wire facts 3).

pub mod certificates;
mod secrets;

pub(crate) use secrets::ENCRYPTION_KEY;

use std::sync::Arc;

use edgekeep_api::workload::{API_VERSIONS, TrustBundle};
use edgekeep_core::attestation::Door;
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::server::{HttpError, Request, Response, Router};
use http::Method;

use crate::service::Moduled;

/// One workload socket: the service behind it, and the door it is.
#[derive(Debug)]
pub struct WorkloadDoor {
    service: Arc<Moduled>,
    door: Door,
}

impl WorkloadDoor {
    /// Admits the caller as the module in the route's first placeholder.
    async fn admit(&self, request: &Request, generation: Option<&str>) -> Result<ModuleId, HttpError> {
        let module: ModuleId = request.id(0)?;
        self.service.admit(request, &self.door, &module, generation).await?;
        Ok(module)
    }
}

/// The routes, on a socket that is `door`.
#[must_use]
pub fn router(service: Arc<Moduled>, door: Door) -> Router<WorkloadDoor> {
    const FIRST: &str = API_VERSIONS[0];
    Router::new(Arc::new(WorkloadDoor { service, door }), API_VERSIONS)
        .on_connected(|state, caller| state.service.connected(&state.door, caller))
        .on_sender_changed(|state, caller, what| state.service.refuse_sender(caller, what))
        .route(Method::POST, "/modules/{m}/genid/{g}/sign", FIRST, secrets::sign)
        .route(Method::POST, "/modules/{m}/genid/{g}/encrypt", FIRST, secrets::encrypt)
        .route(Method::POST, "/modules/{m}/genid/{g}/decrypt", FIRST, secrets::decrypt)
        .route(Method::POST, "/modules/{m}/genid/{g}/certificate/server", FIRST, certificates::server)
        .route(Method::POST, "/modules/{m}/certificate/identity", FIRST, certificates::identity)
        .route(Method::GET, "/trust-bundle", FIRST, trust_bundle)
        .route(Method::GET, "/manifest-trust-bundle", FIRST, manifest_trust_bundle)
        .route(Method::GET, "/modules", FIRST, list)
        .route(Method::GET, "/modules/", FIRST, list)
}

async fn trust_bundle(state: Arc<WorkloadDoor>, _: Request) -> Result<Response, HttpError> {
    let certificate = state.service.trust_bundle.get(&state.service.certificates).await?;
    Ok(Response::ok(&TrustBundle { certificate: certificate.as_ref().clone() }))
}

async fn manifest_trust_bundle(state: Arc<WorkloadDoor>, _: Request) -> Result<Response, HttpError> {
    // No manifest is signed yet; existing clients take the empty bundle for "none configured".
    let certificate = state.service.certificates.load("aziot-edged-manifest-trust-bundle").await.unwrap_or_default();
    Ok(Response::ok(&TrustBundle { certificate }))
}

async fn list(state: Arc<WorkloadDoor>, _: Request) -> Result<Response, HttpError> {
    Ok(Response::ok(&state.service.modules.list().await?))
}
