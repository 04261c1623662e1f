//! The caller's own identity (a route that only edgekeep has): for services of the host,
//! whose environment nobody sets, and for callers that would rather ask than trust their
//! environment.

use std::sync::Arc;

use edgekeep_api::workload::OwnIdentity;
use edgekeep_core::attestation::Door;
use edgekeep_daemon::server::{HttpError, Request, Response};

use super::WorkloadDoor;
use crate::http::called;
use crate::http::refuse;

pub(super) async fn own(state: Arc<WorkloadDoor>, request: Request) -> Result<Response, HttpError> {
    let Door::ModuleSocket(module) = &state.door else {
        return Err(HttpError::not_found(
            "the shared socket belongs to nobody; ask on the module's own socket",
        ));
    };
    state.rooms.gate.admit(&called(&request), &state.door, module, None).await?;
    let identity = state.rooms.credentials.identities.module(&module.hub_id()).await;
    let identity = identity.map_err(|error| refuse::of_identity(&error))?;
    Ok(Response::ok(&OwnIdentity {
        module_id: module.hub_id().to_string(),
        generation_id: identity.generation.clone(),
        device_id: identity.device.clone(),
        hub_hostname: identity.hub.clone(),
        gateway_hostname: state.rooms.modules.settings.hostname.clone(),
    }))
}
