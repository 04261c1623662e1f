//! A daemon's end: asked for by signal, carried out by whoever watches.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

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
