//! The time that a command waits: for long work as long as the daemon is alive, for a
//! daemon that accepts and never answers not at all.

use std::io::IsTerminal as _;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use edgekeep_api::client::{Client, ClientError};
use http::Method;

use crate::failure::daemon_of;
use crate::output;

/// Time in which a daemon that is alive answers a question about nothing, and the number
/// of times that it is asked: a machine may be busy.
const ANSWER: Duration = Duration::from_secs(4);
const QUESTIONS: u32 = 2;
/// Time between looks at a daemon that works.
const INTERVAL: Duration = Duration::from_secs(5);

/// Longest time until a daemon that does not answer is given up.
pub(crate) const LIMIT: Duration = ANSWER.saturating_mul(QUESTIONS);

/// Words that are shown on a terminal while something takes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Shown,
    Silent,
}

/// Does `work`, which asks the daemon behind `socket`, as long as that daemon answers
/// anything at all. Nothing is asked of one that does not.
///
/// # Errors
/// Those of `work`, and that the daemon does not answer.
pub(crate) async fn with<T>(
    socket: &Path,
    progress: Progress,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    alive(socket).await?;
    let work = pin!(work);
    let hung = pin!(hung(socket, progress));
    tokio::select! {
        biased;
        done = work => done,
        error = hung => Err(error),
    }
}

/// Ends when the daemon has ceased to answer.
async fn hung(socket: &Path, progress: Progress) -> anyhow::Error {
    let begun = Instant::now();
    loop {
        tokio::time::sleep(INTERVAL).await;
        if let Err(error) = alive(socket).await {
            return error;
        }
        if progress == Progress::Shown && std::io::stderr().is_terminal() {
            let seconds = begun.elapsed().as_secs();
            output::print_error(&format!("{} is at work, {seconds} s\n", daemon_of(socket)));
        }
    }
}

/// Asks for what no service has: any answer will do. Only silence is an error, for what
/// else is the matter the command finds out itself, with better words.
async fn alive(socket: &Path) -> anyhow::Result<()> {
    for _ in 0..QUESTIONS {
        let client = Client::new(socket).with_timeout(ANSWER);
        match client.call_empty(Method::GET, "/", None::<&()>).await {
            Err(ClientError::Timeout { .. }) => {}
            _ => return Ok(()),
        }
    }
    let error = ClientError::Timeout { path: socket.to_owned(), limit: LIMIT };
    let daemon = daemon_of(socket);
    Err(anyhow::Error::new(error)
        .context(format!("{daemon} takes connections and does not answer")))
}
