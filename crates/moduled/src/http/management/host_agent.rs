//! The routes for host agents (ours): what an updater or a security monitor may ask on
//! the management socket in its own folder. Every call is measured; each agent is let
//! into no more than what `management` and `approves` of its entry in the configuration
//! say.

use std::sync::Arc;

use edgekeep_api::management::{API_VERSIONS, Approvals as ApprovalList, ApproveDigest};
use edgekeep_core::attestation::{DenyReason, Door};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::server::{HttpError, Request, Response, Router};
use http::{Method, StatusCode};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{info, modules};
use crate::http::{Rooms, called};
use crate::modules as runtime;
use crate::modules::approvals::Approved;
use crate::modules::error::ModuleError;
use crate::modules::host;
use crate::modules::services;

/// The version from which these routes are open.
const SINCE: &str = "2022-08-03";

/// The management socket of one host agent.
#[derive(Debug)]
pub(crate) struct HostAgentDoor {
    rooms: Arc<Rooms>,
    module: ModuleId,
    door: Door,
}

impl HostAgentDoor {
    async fn admit(&self, request: &Request) -> Result<(), HttpError> {
        Ok(self.rooms.gate.admit(&called(request), &self.door, &self.module, None).await?)
    }

    /// Lets the agent change `target`, or refuses it with an entry in the audit trail.
    async fn admit_for(&self, request: &Request, target: &str) -> Result<(), HttpError> {
        self.admit(request).await?;
        if approves(&self.rooms, &self.module).await.iter().any(|name| name == target) {
            return Ok(());
        }
        Err(self.rooms.gate.refuse(&called(request), &self.module, DenyReason::NotGranted).into())
    }
}

/// The routes on the socket of `module`.
#[must_use]
pub(crate) fn router(rooms: Arc<Rooms>, module: ModuleId) -> Router<HostAgentDoor> {
    let door = Door::ModuleSocket(module.clone());
    Router::new(Arc::new(HostAgentDoor { rooms, module, door }), API_VERSIONS)
        .on_connected(|state, caller| async move {
            state.rooms.gate.connected(&state.door, &caller).await;
        })
        .on_sender_changed(|state, caller, what| async move {
            state.rooms.gate.refuse_sender(&caller, &what).await;
        })
        .route(Method::GET, "/modules", SINCE, list)
        .route(Method::GET, "/modules/{m}", SINCE, get)
        .route(Method::GET, "/status", SINCE, status)
        .route(Method::GET, "/approved-digests", SINCE, approvals)
        .route(Method::PUT, "/approved-digests/{name}", SINCE, approve)
        .route(Method::POST, "/modules/{m}/restart", SINCE, restart)
}

async fn list(state: Arc<HostAgentDoor>, request: Request) -> Result<Response, HttpError> {
    state.admit(&request).await?;
    modules::list(Arc::clone(&state.rooms), request).await
}

async fn get(state: Arc<HostAgentDoor>, request: Request) -> Result<Response, HttpError> {
    state.admit(&request).await?;
    modules::get(Arc::clone(&state.rooms), request).await
}

async fn status(state: Arc<HostAgentDoor>, request: Request) -> Result<Response, HttpError> {
    state.admit(&request).await?;
    info::status(Arc::clone(&state.rooms), request).await
}

async fn approvals(state: Arc<HostAgentDoor>, request: Request) -> Result<Response, HttpError> {
    state.admit(&request).await?;
    Ok(Response::ok(&ApprovalList { approvals: state.rooms.modules.approvals_in_force() }))
}

/// Approves the content that an executable has now, if it is the content that the agent
/// means.
async fn approve(state: Arc<HostAgentDoor>, mut request: Request) -> Result<Response, HttpError> {
    let name = request.param(0).to_owned();
    state.admit_for(&request, &name).await?;
    let body: ApproveDigest = request.json().await?;
    let sha256: Sha256Digest = body
        .sha256
        .parse()
        .map_err(|error| HttpError::bad_request(format!("invalid sha256: {error}")))?;
    let rooms = &state.rooms;
    let (executable, configured) = executable_of(rooms, &name)?;
    // What is not there is not approved: neither a mistaken digest nor one whose file is
    // yet to come.
    rooms.modules.processes.verify(executable.into(), sha256).await.map_err(|error| {
        HttpError::new(StatusCode::CONFLICT, ModuleError::from(error).to_string())
    })?;
    let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let approved = Approved { sha256, configured, by: state.module.to_string(), time };
    rooms
        .modules
        .approvals
        .put(&name, approved)
        .await
        .map_err(|error| HttpError::hidden(&error))?;
    rooms.gate.trail.approved(&request.caller, state.module.as_str(), &name, &sha256);
    services::reregister(&rooms.modules, &name).await?;
    Ok(Response::ok(&ApprovalList { approvals: rooms.modules.approvals_in_force() }))
}

/// Restarts a module whose executable the agent may approve.
async fn restart(state: Arc<HostAgentDoor>, request: Request) -> Result<Response, HttpError> {
    let module: ModuleId = request.id(0)?;
    let image = match state.rooms.modules.processes.spec(&module).await {
        Ok(spec) => spec.image,
        // A name that is granted to nobody.
        Err(_) => String::new(),
    };
    state.admit_for(&request, &image).await?;
    let rooms = Arc::clone(&state.rooms);
    modules::detached(async move { runtime::restart(&rooms.modules, &module).await }).await?;
    Ok(Response::no_content())
}

/// Returns the names that the configuration lets a module approve.
async fn approves(rooms: &Rooms, module: &ModuleId) -> Vec<String> {
    if let Some((_, found)) = services::find(&rooms.modules, module) {
        return found.approves.clone();
    }
    match rooms.modules.processes.spec(module).await {
        Ok(spec) => rooms
            .modules
            .settings
            .host_modules
            .get(&spec.image)
            .map(|found| found.approves.clone())
            .unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

/// Path and configured digest of what is approved under a name.
fn executable_of(rooms: &Rooms, name: &str) -> Result<(String, Sha256Digest), HttpError> {
    if let Ok((module, _)) = host::registered(&rooms.modules, name) {
        return Ok((module.executable.clone(), module.sha256));
    }
    let found =
        name.parse::<ModuleId>().ok().and_then(|id| rooms.modules.settings.host_services.get(&id));
    match found {
        Some(edgekeep_core::host::HostService {
            executable: Some(path),
            sha256: Some(sha256),
            ..
        }) => Ok((path.clone(), *sha256)),
        _ => Err(HttpError::not_found(format!("there is no executable {name:?} to approve"))),
    }
}
