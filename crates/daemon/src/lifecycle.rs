//! A daemon's end: asked for by signal, carried out by whoever watches.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Raises the limit of open descriptors to what the system allows this process: a caller costs moduled about four, and the
/// usual 1024 would be used up by a few modules' idle connections.
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
        // Keeps the channel open: a closed one means stop as well, but a receiver may be cloned later.
        std::future::pending::<()>().await;
    });
    Ok(receiver)
}
