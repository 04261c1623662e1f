//! The keeper of the workload sockets: makes anew what is not as it was.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::modules::Modules;
use crate::modules::sockets::REVIEW;

/// Looks at every registered module's sockets now and then, and makes anew what is
/// not as it was, until `stop`.
pub(crate) async fn keep(modules: Arc<Modules>, mut stop: watch::Receiver<bool>) {
    let mut broken: HashMap<String, String> = HashMap::new();
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(REVIEW) => {}
        }
        let mut still_broken = HashMap::new();
        for module in modules.registrations.modules() {
            match modules.sockets.review(&modules, &module).await {
                Ok(false) => {}
                Ok(true) => tracing::warn!(%module, "workload socket was gone; made anew"),
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                    let why = format!("{error}{}", cause.unwrap_or_default());
                    if broken.get(module.name()) != Some(&why) {
                        tracing::error!(%module, error = why, "workload socket not open; tried again");
                    }
                    still_broken.insert(module.name().to_owned(), why);
                }
            }
        }
        broken = still_broken;
    }
}
