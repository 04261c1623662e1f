//! A daemon's end: asked for by signal, carried out by whoever watches.

use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Time for which running requests of keyd and identityd may go on after the daemon was
/// asked to stop. State is replaced whole or not at all, and a caller whose request was
/// cut off asks again.
const GRACE: Duration = Duration::from_millis(700);
/// Time for threads that wait for a disk, a token or a name server after all else has
/// ended.
const THREADS: Duration = Duration::from_millis(200);

/// Raises the limit of open descriptors to what the system allows this process: a caller
/// costs moduled about four, and the usual 1024 would be used up by a few modules' idle
/// connections.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open descriptors stays");
    }
}

/// Turns true when SIGTERM or SIGINT arrives. Give clones to everything that must end.
///
/// # Errors
/// If the signals cannot be watched.
pub fn stop_on_signal() -> std::io::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        crate::systemd::notify_stopping();
        let _ = sender.send(true);
        // Keeps the channel open: a closed one means stop as well, but a receiver may be
        // cloned later.
        std::future::pending::<()>().await;
    });
    Ok(receiver)
}

/// Runs `serve` until it ends, or until a short while after the daemon was asked to stop:
/// hardware or a network that never answers must not keep a daemon from ending.
pub async fn serve_until_stopped(serve: impl Future<Output = ()>, mut stop: watch::Receiver<bool>) {
    let overdue = async {
        let _ = stop.wait_for(|stop| *stop).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        () = serve => {}
        () = overdue => tracing::warn!("requests that had not ended were dropped"),
    }
}

/// Ends a runtime without waiting for threads that never come back.
pub fn end(runtime: Runtime) {
    runtime.shutdown_timeout(THREADS);
}
