//! What moduled finds out about the device's health by looking from time to time. Parts that see a problem themselves tell the
//! board of it on their own.

use std::sync::Arc;
use std::time::Duration;

use edgekeep_core::health::{Code, Subject};
use tokio::sync::watch;

use crate::service::Moduled;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(2);

/// Looks until `stop`.
pub(crate) async fn keep(service: Arc<Moduled>, mut stop: watch::Receiver<bool>) {
    loop {
        look(&service);
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Brings the board up to date. Asks nobody, least of all the engine.
pub(crate) fn look(service: &Moduled) {
    let silent = service.modules.containers.as_ref().filter(|containers| !containers.watch.is_reconciled());
    let found = silent.map(|containers| {
        let detail = match containers.watch.silent_for() {
            Some(silent) => {
                format!("not heard for {} s; modules that ran then are served on, others are refused", silent.as_secs())
            }
            None => "never heard since moduled started; all modules in containers are refused".to_owned(),
        };
        (Subject::engine(&containers.uri), detail)
    });
    service.board.replace(Code::EngineSilent, found);
}
