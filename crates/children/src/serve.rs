//! The side of a child: it answers what the daemon asks.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::channel::{PING, ReceiveError};
use crate::connection::Connection;

/// Questions that are answered at once. The daemon asks fewer.
pub(crate) const MAX_AT_ONCE: usize = 64;

/// Answers questions until the daemon ends or breaks a bound. Each is answered in a task
/// of its own; whether this process is there is answered beside them.
///
/// # Errors
/// The socket cannot be used, or the daemon sent what is no question.
pub async fn serve<Q, A, F>(
    socket: OwnedFd,
    answer: impl Fn(Q, Vec<OwnedFd>) -> F,
) -> io::Result<()>
where
    Q: DeserializeOwned,
    A: Serialize + Send,
    F: Future<Output = (A, Vec<OwnedFd>)> + Send + 'static,
{
    let connection = Arc::new(Connection::new(socket)?);
    let busy = Arc::new(AtomicUsize::new(0));
    loop {
        let message = match connection.receive().await {
            Ok(message) => message,
            Err(ReceiveError::Ended) => return Ok(()),
            Err(error) => return Err(io::Error::other(error)),
        };
        if message.number == PING {
            connection.send(PING, &[], &[]).await?;
            continue;
        }
        let question = serde_json::from_slice(&message.body)?;
        if busy.fetch_add(1, Ordering::Relaxed) >= MAX_AT_ONCE {
            return Err(io::Error::other("the daemon asks too much at once"));
        }
        let work = answer(question, message.files);
        let (connection, busy) = (Arc::clone(&connection), Arc::clone(&busy));
        tokio::spawn(async move {
            let (answer, files) = work.await;
            let body = serde_json::to_vec(&answer).unwrap_or_default();
            let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
            busy.fetch_sub(1, Ordering::Relaxed);
            if let Err(error) = connection.send(message.number, &body, &files).await {
                tracing::debug!(%error, "an answer was not sent");
            }
        });
    }
}
