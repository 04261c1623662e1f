//! The keeper's loop over the Edge CA's certificate.

use std::sync::Arc;
use std::time::Instant;

use edgekeep_daemon::clock::Steps;
use tokio::sync::watch;

use crate::identity::Credentials;

/// Looks at the certificate until `stop`.
pub(crate) async fn keep(credentials: Arc<Credentials>, mut stop: watch::Receiver<bool>) {
    let keeper = &credentials.edge_ca_keeper;
    let mut steps = Steps::watch();
    loop {
        // Reported where operators look for it.
        let _ = keeper.look(&credentials, Instant::now()).await;
        let pause = keeper.pause().await;
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            moved = steps.next() => tracing::info!(seconds = moved, "the clock was put to another time"),
            () = tokio::time::sleep(pause) => {}
        }
    }
}
