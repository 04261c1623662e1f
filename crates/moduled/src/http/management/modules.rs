//! Routes about modules.

use std::sync::Arc;

use edgekeep_api::management::{ModuleList, ModuleSpec};
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::server::{HttpError, Request, Response};
use edgekeep_runtime::logs::LogQuery;
use http::StatusCode;
use time::OffsetDateTime;

use crate::http::log_query;
use crate::http::{Rooms, called};
use crate::modules as runtime;
use crate::modules::error::ModuleError;
use crate::modules::services;
use crate::modules::shown::{Rows, echo, in_known_words};
use crate::modules::spec::ValidSpec;
use crate::report::health::Order;

pub(super) async fn list(rooms: Arc<Rooms>, request: Request) -> Result<Response, HttpError> {
    let mut list: ModuleList = rooms.modules.list().await?;
    // Not for the agent: it removes what its deployment does not name, and services are
    // not its to remove.
    let paused = list.modules.iter().any(|details| details.status.runtime_status.phase.is_some());
    if (!paused && rooms.modules.settings.host_services.is_empty())
        || rooms.gate.is_agent(&called(&request)).await?
    {
        list.modules.iter_mut().for_each(in_known_words);
        return Ok(Response::ok(&list));
    }
    let mut rows = Rows::default();
    services::list(&rooms.modules).await.into_iter().for_each(|details| rows.add(details, true));
    list.modules.into_iter().for_each(|details| rows.add(details, true));
    Ok(Response::ok(&ModuleList { modules: rows.sorted() }))
}

pub(super) async fn get(rooms: Arc<Rooms>, request: Request) -> Result<Response, HttpError> {
    let module: ModuleId = request.id(0)?;
    if services::find(&rooms.modules, &module).is_some() {
        let found = services::list(&rooms.modules)
            .await
            .into_iter()
            .find(|details| details.name == module.name());
        return found
            .map(|details| Response::ok(&details))
            .ok_or_else(|| HttpError::not_found("there is no such service"));
    }
    let mut details = rooms.modules.details(&module).await?;
    if details.status.runtime_status.phase.is_some()
        && rooms.gate.is_agent(&called(&request)).await?
    {
        in_known_words(&mut details);
    }
    Ok(Response::ok(&details))
}

pub(super) async fn create(rooms: Arc<Rooms>, mut request: Request) -> Result<Response, HttpError> {
    rooms.gate.admit_agent(&called(&request)).await?;
    let spec: ModuleSpec = request.json().await?;
    let valid = judged(&rooms, &spec)?;
    detached(async move {
        let made = runtime::create(&rooms.modules, &valid).await;
        rooms.report.orders.took(&rooms.report.board, &valid.module, Order::Make, &made);
        made
    })
    .await?;
    Ok(Response::json(StatusCode::CREATED, &echo(&spec, false)))
}

pub(super) async fn update(rooms: Arc<Rooms>, mut request: Request) -> Result<Response, HttpError> {
    rooms.gate.admit_agent(&called(&request)).await?;
    let module: ModuleId = request.id(0)?;
    let start = match request.query("start") {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(HttpError::bad_request("invalid parameter: start")),
    };
    let spec: ModuleSpec = request.json().await?;
    let mut valid = judged(&rooms, &spec)?;
    // The path says which module is meant, as with existing services.
    valid.module = module;
    if valid.module.is_edge_agent() {
        // The caller dies of this: it gets its answer first, and the watchdog repairs
        // what goes wrong.
        tokio::spawn(async move {
            if let Err(error) = runtime::update(&rooms.modules, &valid, start).await {
                tracing::error!(%error, "agent not updated; the watchdog will restore it");
            }
        });
        return Ok(Response::json(StatusCode::CREATED, &echo(&spec, start)));
    }
    let running = detached(async move {
        let updated = runtime::update(&rooms.modules, &valid, start).await;
        // What could not be updated goes on running as it was.
        let order = if start && updated.is_ok() { Order::Start } else { Order::Make };
        rooms.report.orders.took(&rooms.report.board, &valid.module, order, &updated);
        updated
    })
    .await?;
    Ok(Response::json(StatusCode::CREATED, &echo(&spec, running)))
}

pub(super) async fn delete(rooms: Arc<Rooms>, request: Request) -> Result<Response, HttpError> {
    rooms.gate.admit_agent(&called(&request)).await?;
    let module: ModuleId = request.id(0)?;
    detached(async move {
        let removed = runtime::remove(&rooms.modules, &module).await;
        // Something that is not there need not be removed.
        if removed.is_ok() || rooms.modules.registrations.of(&module).is_some() {
            rooms.report.orders.took(&rooms.report.board, &module, Order::Remove, &removed);
        }
        removed
    })
    .await?;
    Ok(Response::no_content())
}

pub(super) async fn prepare(
    rooms: Arc<Rooms>,
    mut request: Request,
) -> Result<Response, HttpError> {
    rooms.gate.admit_agent(&called(&request)).await?;
    let module: ModuleId = request.id(0)?;
    let spec: ModuleSpec = request.json().await?;
    let valid = judged(&rooms, &spec)?;
    if valid.module.name() != module.name() {
        return Err(HttpError::bad_request("module name in spec does not match URI"));
    }
    let _ = detached(async move {
        let prepared = runtime::prepare(&rooms.modules, &valid).await;
        rooms.report.orders.took(&rooms.report.board, &valid.module, Order::Prepare, &prepared);
        prepared
    })
    .await?;
    Ok(Response::no_content())
}

pub(super) async fn action(rooms: Arc<Rooms>, request: Request) -> Result<Response, HttpError> {
    let module: ModuleId = request.id(0)?;
    let action = request.param(1).to_ascii_lowercase();
    if !matches!(action.as_str(), "start" | "stop" | "restart") {
        return Err(HttpError::not_found("not found"));
    }
    detached(async move {
        let (order, done) = match action.as_str() {
            "start" => (Order::Start, runtime::start(&rooms.modules, &module).await),
            "stop" => (Order::Stop, runtime::stop(&rooms.modules, &module).await),
            _ => (Order::Start, runtime::restart(&rooms.modules, &module).await),
        };
        // A name that is a mistake of who asks is no problem of the device; nor are
        // services, which something else starts.
        if rooms.modules.registrations.of(&module).is_some()
            && services::find(&rooms.modules, &module).is_none()
        {
            rooms.report.orders.took(&rooms.report.board, &module, order, &done);
        }
        done
    })
    .await?;
    Ok(Response::no_content())
}

/// A specification of the agent's; one that is not usable is a problem of the deployment.
fn judged(rooms: &Rooms, spec: &ModuleSpec) -> Result<ValidSpec, ModuleError> {
    let valid = ValidSpec::try_from(spec);
    if let (Err(_), Ok(module)) = (&valid, spec.name.parse()) {
        rooms.report.orders.took(&rooms.report.board, &module, Order::Make, &valid);
    }
    valid
}

pub(super) async fn logs(rooms: Arc<Rooms>, request: Request) -> Result<Response, HttpError> {
    let module: ModuleId = request.id(0)?;
    let query: LogQuery =
        log_query::parse(|name| request.query(name), OffsetDateTime::now_utc().unix_timestamp())?;
    services::refuse(&rooms.modules, &module)?;
    let stream = rooms.modules.logs(&module, &query).await?;
    Ok(Response::stream(StatusCode::OK, "text/plain", stream))
}

/// Runs work to its end even if the connection that asked for it breaks: half of it is
/// worse than none.
pub(super) async fn detached<T: Send + 'static, E: Into<HttpError> + Send + 'static>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, HttpError> {
    match tokio::spawn(work).await {
        Ok(done) => done.map_err(Into::into),
        Err(error) => {
            tracing::error!(%error, "operation ended abnormally");
            Err(HttpError::internal("the operation ended abnormally; see the daemon's log"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fakes::{Site, container, id};

    #[tokio::test]
    async fn who_hangs_up_in_the_middle_of_a_create_finds_a_whole_module_later() {
        let site = Site::new().await;
        let (reached, goes_on) = site.engine.hold("POST /containers/create");
        let modules = Arc::clone(&site.modules);
        let request = tokio::spawn(detached(async move {
            runtime::create(&modules, &container("box", &json!({}))).await
        }));
        reached.notified().await;
        // As the server does when the connection is gone.
        request.abort();
        assert!(request.await.expect_err("aborted").is_cancelled());
        goes_on.notify_one();
        // The next operation waits until that one is over.
        runtime::start(&site.modules, &id("box")).await.expect("it was made");
        assert!(site.modules.registrations.of(&id("box")).is_some());
        assert_eq!(site.engine.phase("box").as_deref(), Some("running"));
    }
}
