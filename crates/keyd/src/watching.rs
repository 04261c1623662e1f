//! What keyd does without being asked: a look at its own logs now and then.

use std::sync::Arc;
use std::time::Duration;

use edgekeep_base::error::chain;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::integrity::Integrity;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(60);

/// Looks at the logs now and then, until `stop`.
pub(crate) async fn watch(integrity: Arc<Integrity>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = sleep(LOOK) => {}
        }
        let integrity = Arc::clone(&integrity);
        let looked = tokio::task::spawn_blocking(move || integrity.tell_omitted()).await;
        match looked {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(error = chain(&error), "cannot tell what is not in the log");
            }
            Err(error) => tracing::error!(error = chain(&error), "cannot look at the logs"),
        }
    }
}
