//! The management and the workload API, as routes. Nothing below this room knows of HTTP.

pub(crate) mod log_query;
pub(crate) mod management;
pub(crate) mod refuse;
pub(crate) mod workload;

use std::sync::Arc;

use edgekeep_core::attestation::Door;
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::server::{Request, serve};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::gate::{Called, Gate};
use crate::identity::Credentials;
use crate::modules::Modules;
use crate::modules::sockets::{Serving, management_limits, workload_limits};
use crate::report::Report;

/// The rooms behind the routes.
#[derive(Debug, Clone)]
pub(crate) struct Rooms {
    pub(crate) gate: Arc<Gate>,
    pub(crate) modules: Arc<Modules>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) report: Arc<Report>,
}

/// A request as the gate judges and writes it down.
fn called(request: &Request) -> Called<'_> {
    Called { caller: &request.caller, method: request.method().as_str(), route: request.route }
}

impl Serving for Rooms {
    fn workload(
        &self,
        module: &ModuleId,
        listener: UnixListener,
        stop: watch::Receiver<bool>,
    ) -> JoinHandle<()> {
        let door = Door::ModuleSocket(module.clone());
        let router = Arc::new(workload::router(Arc::new(self.clone()), door));
        tokio::spawn(serve(listener, router, workload_limits(&self.modules.settings), stop))
    }

    fn management(
        &self,
        module: &ModuleId,
        listener: UnixListener,
        stop: watch::Receiver<bool>,
    ) -> JoinHandle<()> {
        let (rooms, limits) = (Arc::new(self.clone()), management_limits(&self.modules.settings));
        if module.is_edge_agent() {
            tokio::spawn(serve(listener, Arc::new(management::router(rooms)), limits, stop))
        } else {
            let router = management::host_agent::router(rooms, module.clone());
            tokio::spawn(serve(listener, Arc::new(router), limits, stop))
        }
    }
}
