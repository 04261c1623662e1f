//! Routes about identities, answered by identityd.

use std::sync::Arc;

use edgekeep_api::client::ClientError;
use edgekeep_api::identityd::{AziotIdentity, Identity as ServiceIdentity};
use edgekeep_api::management::{CreateIdentity, Identities, Identity};
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::server::{HttpError, Request, Response};

use crate::http::refuse;
use crate::http::{Rooms, called};
use crate::modules::services;
use crate::report::health::Order;

pub(super) async fn list(rooms: Arc<Rooms>, _: Request) -> Result<Response, HttpError> {
    let identities =
        rooms.credentials.identities.client().modules().await.map_err(|error| failed(&error))?;
    let identities = identities.into_iter().filter_map(|identity| shown(identity, None));
    // An agent deletes identities that its deployment does not name; those of services
    // are not the deployment's.
    let of_service = |identity: &Identity| {
        identity
            .module_id
            .parse()
            .is_ok_and(|id: ModuleId| rooms.modules.settings.host_services.contains_key(&id))
    };
    let identities = identities.filter(|identity| !of_service(identity)).collect();
    Ok(Response::ok(&Identities { identities }))
}

pub(super) async fn create(rooms: Arc<Rooms>, mut request: Request) -> Result<Response, HttpError> {
    rooms.gate.admit_agent(&called(&request)).await?;
    let body: CreateIdentity = request.json().await?;
    let module: ModuleId =
        body.module_id.parse().map_err(|error: edgekeep_core::id::IdError| {
            HttpError::bad_request(format!("invalid moduleId: {error}"))
        })?;
    services::refuse(&rooms.modules, &module)?;
    let identity = rooms.credentials.identities.client().create_module(module.as_str()).await;
    rooms.credentials.identities.forget(&module);
    let answer = answer(identity, body.managed_by);
    let told = answer.as_ref().map_err(HttpError::message);
    rooms.report.orders.took(&rooms.report.board, &module, Order::Identify, &told);
    answer
}

pub(super) async fn update(rooms: Arc<Rooms>, mut request: Request) -> Result<Response, HttpError> {
    rooms.gate.admit_agent(&called(&request)).await?;
    let module: ModuleId = request.id(0)?;
    let _: serde_json::Value = request.json().await?;
    services::refuse(&rooms.modules, &module)?;
    let identity = rooms.credentials.identities.client().update_module(module.as_str()).await;
    rooms.credentials.identities.forget(&module);
    answer(identity, None)
}

pub(super) async fn delete(rooms: Arc<Rooms>, request: Request) -> Result<Response, HttpError> {
    rooms.gate.admit_agent(&called(&request)).await?;
    let module: ModuleId = request.id(0)?;
    services::refuse(&rooms.modules, &module)?;
    let deleted = rooms.credentials.identities.client().delete_module(module.as_str()).await;
    rooms.credentials.identities.forget(&module);
    deleted.map_err(|error| failed(&error))?;
    Ok(Response::no_content())
}

pub(super) async fn reprovision(
    rooms: Arc<Rooms>,
    request: Request,
) -> Result<Response, HttpError> {
    rooms.gate.admit_agent(&called(&request)).await?;
    // identityd keeps the old identity until a new one is complete, so no module is
    // stopped and nothing is cleared here.
    rooms.credentials.identities.client().reprovision().await.map_err(|error| failed(&error))?;
    Ok(Response::no_content())
}

fn answer(
    identity: Result<ServiceIdentity, ClientError>,
    managed_by: Option<String>,
) -> Result<Response, HttpError> {
    let identity = identity.map_err(|error| failed(&error))?;
    let identity = shown(identity, managed_by).ok_or_else(|| {
        HttpError::bad_request("the identity has no module id or no generation id")
    })?;
    Ok(Response::ok(&identity))
}

fn shown(identity: ServiceIdentity, managed_by: Option<String>) -> Option<Identity> {
    let ServiceIdentity::Aziot(AziotIdentity { module_id, gen_id, .. }) = identity else {
        return None;
    };
    Some(Identity {
        module_id: module_id?,
        managed_by: managed_by.unwrap_or_else(|| "iotedge".into()),
        generation_id: gen_id?,
        auth_type: "sas".into(),
    })
}

fn failed(error: &ClientError) -> HttpError {
    refuse::of_service(error)
}
