//! Looks of keyd at its own logs, without being asked.

use std::sync::Arc;
use std::time::Duration;

use edgekeep_base::error::chain;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::Keyd;
use crate::integrity::IntegrityError;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(15);
/// Time until the first look: not while everything starts.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// Looks at the logs now and then, until `stop`.
pub(crate) async fn watch(keyd: Arc<Keyd>, mut stop: watch::Receiver<bool>) {
    let mut pause = FIRST_LOOK;
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = sleep(pause) => {}
        }
        let looking = Arc::clone(&keyd);
        let looked = tokio::task::spawn_blocking(move || look(&looking)).await;
        // The first head of the audit log is recorded as soon as it is signed.
        pause = if matches!(looked, Ok(Ok(false))) { FIRST_LOOK } else { LOOK };
        match looked {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::error!(
                    error = chain(&error),
                    "cannot bring the log of measurements up to date"
                );
            }
            Err(error) => tracing::error!(error = chain(&error), "cannot look at the logs"),
        }
    }
}

/// Returns false if no entry of the audit log was signed yet.
fn look(keyd: &Keyd) -> Result<bool, IntegrityError> {
    let _ = keyd.assured.now();
    keyd.integrity.tell_omitted()?;
    let Some(head) = keyd.recorder.log().signed() else { return Ok(false) };
    keyd.integrity.note_head(head.size, head.root.as_bytes())?;
    Ok(head.size > 0)
}
