//! The management API: modules and identities for the agent, information for operators
//! (wire facts 2).
//!
//! Requests that change something are for the agent alone, measured like any caller;
//! start, stop and restart are also for whoever may open the socket. Removing images is
//! for operators: root and this daemon's user. Looking at processes and past refusals is
//! for operators and the agent. Other reading is for whoever may open the socket, and
//! shows no secret.

mod attestation;
pub(crate) mod host_agent;
mod identities;
mod images;
mod info;
mod modules;

use std::sync::Arc;

use edgekeep_api::management::API_VERSIONS;
use edgekeep_core::attestation::Door;
use edgekeep_daemon::server::Router;
use http::Method;

use crate::http::Rooms;

/// The routes.
#[must_use]
pub(crate) fn router(rooms: Arc<Rooms>) -> Router<Rooms> {
    const FIRST: &str = API_VERSIONS[0];
    Router::new(rooms, API_VERSIONS)
        .named("management")
        .on_connected(|rooms, caller| async move {
            rooms.gate.connected(&Door::ManagementSocket, &caller).await;
        })
        .on_sender_changed(|rooms, caller, what| async move {
            rooms.gate.refuse_sender(&caller, &what).await;
        })
        .on_flood(|rooms, uid, lasting| {
            rooms.report.flooded(&rooms.modules.root.management_socket(), uid, lasting);
        })
        .route(Method::GET, "/modules", FIRST, modules::list)
        .route(Method::GET, "/modules/", FIRST, modules::list)
        .route(Method::POST, "/modules", FIRST, modules::create)
        .route(Method::GET, "/modules/{m}", FIRST, modules::get)
        .route(Method::PUT, "/modules/{m}", FIRST, modules::update)
        .route(Method::DELETE, "/modules/{m}", FIRST, modules::delete)
        .route(Method::POST, "/modules/{m}/prepareupdate", "2019-01-30", modules::prepare)
        .route(Method::GET, "/modules/{m}/logs", FIRST, modules::logs)
        // `start`, `stop` and `restart`, in any case of letters.
        .route(Method::POST, "/modules/{m}/{action}", FIRST, modules::action)
        .route(Method::GET, "/identities", FIRST, identities::list)
        .route(Method::GET, "/identities/", FIRST, identities::list)
        .route(Method::POST, "/identities", FIRST, identities::create)
        .route(Method::POST, "/identities/", FIRST, identities::create)
        .route(Method::PUT, "/identities/{m}", FIRST, identities::update)
        .route(Method::DELETE, "/identities/{m}", FIRST, identities::delete)
        .route(Method::GET, "/systeminfo", FIRST, info::system_info)
        .route(Method::GET, "/systeminfo/resources", "2019-11-05", info::resources)
        .route(Method::GET, "/systeminfo/supportbundle", "2020-07-07", info::support_bundle)
        .route(Method::POST, "/device/reprovision", "2019-10-22", identities::reprovision)
        .route(Method::GET, "/status", "2022-08-03", info::status)
        .route(Method::PUT, "/deployment", "2022-08-03", info::deployment)
        .route(Method::GET, "/attestation", "2022-08-03", attestation::show)
        .route(Method::GET, "/refusals", "2022-08-03", attestation::past)
        .route(Method::GET, "/images", "2022-08-03", images::plan)
        .route(Method::POST, "/images/collect", "2022-08-03", images::collect)
        .route(Method::GET, "/approved-digests", "2022-08-03", info::approvals)
}
