//! Routes that tell about the device.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use edgekeep_api::management::{Approvals, DeploymentReport, EngineStatus, Status};
use edgekeep_api::operations::ProblemList;
use edgekeep_core::health::{Problem, Severity};
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::peer::strongest_handle;
use edgekeep_daemon::server::{HttpError, Request, Response};
use http::StatusCode;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::http::Rooms;
use crate::http::workload::certificates::rfc3339_with_offset;
use crate::http::{called, log_query, refuse};
use crate::report::health;
use crate::report::resources;
use crate::report::support_bundle;
use crate::report::systeminfo::{self, VERSION};

/// The engine and identityd may take so long before systeminfo is answered without what
/// they know.
const PATIENCE: Duration = Duration::from_millis(500);
/// The same for the engine's list, and then for its statistics of one container, before
/// resources are told without.
const STATS_PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn system_info(rooms: Arc<Rooms>, _: Request) -> Result<Response, HttpError> {
    let mut info = rooms.report.system_info.clone();
    let engine = async {
        let containers = rooms.modules.containers.as_ref()?;
        let version = containers.engine.version().await.ok()?;
        version["Version"].as_str().map(str::to_owned)
    };
    let provisioning =
        async { rooms.credentials.identities.quick_client().provisioning().await.ok() };
    let (engine, provisioning) = tokio::join!(
        tokio::time::timeout(PATIENCE, engine),
        tokio::time::timeout(PATIENCE, provisioning)
    );
    info.server_version = info.server_version.or_else(|| engine.ok().flatten());
    info.provisioning = systeminfo::provisioning(provisioning.ok().flatten().as_ref());
    Ok(Response::ok(&info))
}

pub(super) async fn resources(rooms: Arc<Rooms>, _: Request) -> Result<Response, HttpError> {
    let stats = statistics(&rooms).await;
    let resources = resources::read(&rooms.modules.root)
        .map_err(|error| HttpError::internal(error.to_string()))?;
    let mut answer =
        serde_json::to_value(resources).map_err(|error| HttpError::internal(error.to_string()))?;
    // A string that holds JSON: what existing clients parse (wire facts 2.7).
    answer["docker_stats"] = Value::String(json!(stats).to_string());
    Ok(Response::ok(&answer))
}

/// The engine's statistics of all modules' containers, asked for at the same time: each
/// takes the engine a second or two. What it does not tell in time is left out.
async fn statistics(rooms: &Rooms) -> Vec<Value> {
    let Some(containers) = &rooms.modules.containers else { return Vec::new() };
    let listed = tokio::time::timeout(STATS_PATIENCE, containers.watch.list()).await;
    let mut asked = tokio::task::JoinSet::new();
    for state in listed.ok().and_then(Result::ok).unwrap_or_default() {
        if rooms.modules.replacements.is_aside(state.container.as_ref(), &state.name) {
            continue;
        }
        let Ok(module) = state.name.parse::<ModuleId>() else { continue };
        let engine = containers.engine.clone();
        asked.spawn(tokio::time::timeout(STATS_PATIENCE, async move {
            (state.name, engine.stats(&module).await)
        }));
    }
    let mut stats = std::collections::BTreeMap::new();
    while let Some(answer) = asked.join_next().await {
        if let Ok(Ok((name, Ok(one)))) = answer {
            stats.insert(name, one);
        }
    }
    stats.into_values().collect()
}

pub(super) async fn support_bundle(
    rooms: Arc<Rooms>,
    request: Request,
) -> Result<Response, HttpError> {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let mut query = log_query::parse(
        |name| matches!(name, "since" | "until").then(|| request.query(name)).flatten(),
        now,
    )?;
    if request.query("since").is_none() {
        query.since = now.saturating_sub(86_400);
    }
    let runtime_only = match request.query("edge_runtime_only") {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(HttpError::bad_request("invalid parameter: edge_runtime_only")),
    };
    let bundle =
        support_bundle::make(&rooms.report, &query, runtime_only, rooms.gate.trail.latest()).await;
    let bytes = bundle.map_err(|error| refuse::of_support_bundle(&error))?;
    // Existing clients expect this header although the body is a plain zip.
    Ok(Response::bytes(StatusCode::OK, "application/zip", Bytes::from(bytes))
        .with_header(http::header::CONTENT_ENCODING, "deflate"))
}

pub(super) async fn approvals(rooms: Arc<Rooms>, _: Request) -> Result<Response, HttpError> {
    Ok(Response::ok(&Approvals { approvals: rooms.modules.approvals_in_force() }))
}

pub(super) async fn deployment(
    rooms: Arc<Rooms>,
    mut request: Request,
) -> Result<Response, HttpError> {
    rooms.gate.admit_agent(&called(&request)).await?;
    let report: DeploymentReport = request.json().await?;
    rooms.report.orders.reported(&rooms.report.board, &report);
    Ok(Response::ok(&ProblemList::from(&health::of_device(&rooms.report).await)))
}

pub(super) async fn status(rooms: Arc<Rooms>, _: Request) -> Result<Response, HttpError> {
    let (refusals, refusal_count) = rooms.gate.trail.latest();
    let edge_ca_expiration = rooms.credentials.edge_ca.borrow().map(rfc3339_with_offset);
    let engine = rooms.modules.containers.as_ref().map(|containers| EngineStatus {
        uri: containers.uri.clone(),
        reachable: containers.watch.is_reconciled(),
        silent_for_seconds: containers.watch.silent_for().map(|silent| silent.as_secs()),
    });
    let health = health::of_device(&rooms.report).await;
    let own = rooms.report.board.health();
    let unhealthy =
        own.problems().iter().filter(|problem| problem.severity() == Severity::Unhealthy);
    let problems = unhealthy.map(Problem::sentence).collect();
    Ok(Response::ok(&Status {
        version: VERSION.to_owned(),
        uid: rustix::process::geteuid().as_raw(),
        peer_handle: strongest_handle(),
        process_cgroups: rooms.modules.processes.without_cgroups().is_none(),
        engine,
        edge_ca_expiration,
        problems,
        health: Some(ProblemList::from(&health)),
        approvals: rooms.modules.approvals_in_force(),
        refusals,
        refusal_count,
    }))
}
