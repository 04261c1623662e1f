//! The identity service (wire facts 5.2 and 6.3): asks the hub for each module, one
//! request at a time.

use std::sync::Arc;

use edgekeep_daemon::server::Router;
use http::Method;
use serde_json::{Value, json};

use super::{Asked, Later, Refused, Reply, Services, answered, answered_later, keys, refused};
use crate::builder::DEVICE_ID;

const FIRST: &str = "2020-09-01";

/// The published routes.
pub(super) fn router(services: &Arc<Services>) -> Router<Services> {
    Router::new(Arc::clone(services), &["2020-09-01", "2021-12-01", "2022-08-01"])
        .route(Method::POST, "/identities/device", FIRST, |s, r| answered(s, r, device))
        .route(Method::GET, "/identities/modules", FIRST, |s, r| answered_later(s, r, list))
        .route(Method::POST, "/identities/modules", FIRST, |s, r| answered_later(s, r, create))
        .route(Method::GET, "/identities/modules/{id}", FIRST, |s, r| answered_later(s, r, module))
        .route(Method::PUT, "/identities/modules/{id}", FIRST, |s, r| answered_later(s, r, module))
        .route(Method::DELETE, "/identities/modules/{id}", FIRST, |s, r| {
            answered_later(s, r, delete)
        })
        .route(Method::POST, "/identities/device/reprovision", FIRST, |s, r| answered(s, r, gone))
        .route(Method::GET, "/identities/provisioning", "2021-12-01", |s, r| answered(s, r, manual))
}

fn identity(services: &Services, module: Option<(&str, &str)>, key: Option<String>) -> Value {
    let mut spec =
        json!({ "hubName": services.hub, "gatewayHost": services.hub, "deviceId": DEVICE_ID });
    if let Some((module, generation)) = module {
        spec["moduleId"] = json!(module);
        spec["genId"] = json!(generation);
    }
    if let Some(key) = key {
        spec["auth"] = json!({ "type": "sas", "keyHandle": key });
    }
    json!({ "type": "aziot", "spec": spec })
}

fn device(services: &Services, _: &Asked) -> Reply {
    Ok((200, identity(services, None, Some(keys::device_key(services)))))
}

/// Stands for each question to the hub: waits, and fails if the hub is away.
async fn ask_hub(services: &Services) -> Result<(), Refused> {
    let behaviour = services.state().behaviour.clone();
    tokio::time::sleep(behaviour.identity_delay).await;
    if behaviour.hub_is_away {
        Err(refused(404, "Hub client error\ncaused by: connection refused"))
    } else {
        Ok(())
    }
}

fn expect_kind(asked: &Asked) -> Result<(), Refused> {
    match asked.kind.as_deref() {
        Some("aziot") => Ok(()),
        Some(_) => Err(refused(400, "invalid parameter: type")),
        None => Err(refused(400, "missing parameter: type")),
    }
}

fn list<'a>(services: &'a Services, asked: &'a Asked) -> Later<'a> {
    Box::pin(async move {
        expect_kind(asked)?;
        let _one_at_a_time = services.cloud.lock().await;
        ask_hub(services).await?;
        let modules = services.state().modules.clone();
        let identities: Vec<_> = modules
            .iter()
            .map(|(id, generation)| identity(services, Some((id, generation)), None))
            .collect();
        Ok((200, json!({ "identities": identities })))
    })
}

fn create<'a>(services: &'a Services, asked: &'a Asked) -> Later<'a> {
    Box::pin(async move {
        let module = asked.text("moduleId")?;
        let _one_at_a_time = services.cloud.lock().await;
        ask_hub(services).await?;
        let generation = "638000000000000001".to_owned();
        services.state().modules.insert(module.to_owned(), generation.clone());
        let key = keys::module_key(services, module, &generation);
        Ok((200, identity(services, Some((module, &generation)), Some(key))))
    })
}

fn module<'a>(services: &'a Services, asked: &'a Asked) -> Later<'a> {
    Box::pin(async move {
        expect_kind(asked)?;
        let _one_at_a_time = services.cloud.lock().await;
        ask_hub(services).await?;
        let known = services.state().modules.get(&asked.segment).cloned();
        // The hub's own 404, which looks like any other failure of the hub.
        let generation = known
            .ok_or_else(|| refused(404, "Hub client error\ncaused by: HTTP response error 404"))?;
        let key = keys::module_key(services, &asked.segment, &generation);
        Ok((200, identity(services, Some((&asked.segment, &generation)), Some(key))))
    })
}

fn delete<'a>(services: &'a Services, asked: &'a Asked) -> Later<'a> {
    Box::pin(async move {
        expect_kind(asked)?;
        let _one_at_a_time = services.cloud.lock().await;
        ask_hub(services).await?;
        services.state().modules.remove(&asked.segment);
        gone(services, asked)
    })
}

#[expect(clippy::unnecessary_wraps, reason = "an answer like the others")]
fn gone(_: &Services, _: &Asked) -> Reply {
    Ok((204, Value::Null))
}

#[expect(clippy::unnecessary_wraps, reason = "an answer like the others")]
fn manual(_: &Services, _: &Asked) -> Reply {
    Ok((200, json!({ "source": "manual", "auth": "sas" })))
}
