//! The keeper of images: looks from time to time, and has removed what is to go.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::modules::{Modules, images};

/// Looks at images now and then, until `stop`.
pub(crate) async fn keep(modules: Arc<Modules>, mut stop: watch::Receiver<bool>) {
    let pause = Duration::from_secs(modules.settings.image_collection.look_sec.max(1));
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(pause) => {}
        }
        if !images::look(&modules).await {
            return;
        }
    }
}
