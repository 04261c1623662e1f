//! The measurements of this process by itself: its executable and its settings.

use std::fs::File;
use std::io::{self, Read as _};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{KeysClient, Measurement};
use edgekeep_base::error::chain;
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::hardware::without_secrets;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::integrity::Word;
use edgekeep_core::layout::Daemon;
use serde::Serialize;

use crate::board::Board;
use crate::store::sha256;

/// The executable of this process. The link leads to the file that runs, also if another
/// one has its name by now.
const EXECUTABLE: &str = "/proc/self/exe";
/// Bytes that are hashed at once.
const STEP: usize = 64 << 10;

/// Longest wait for keyd before this process serves all the same.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time until the second attempt while keyd cannot be reached. It doubles with each one.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest time between two attempts.
const AGAIN_AT_MOST: Duration = Duration::from_secs(30);
/// Time between two attempts after keyd refused: it goes on doing so until it is given
/// other settings.
const AFTER_REFUSAL: Duration = Duration::from_secs(600);

/// The measurements of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// SHA-256 of the executable.
    pub executable: Sha256Digest,
    /// SHA-256 of the settings in force, as JSON without secrets.
    pub settings: Sha256Digest,
}

impl Measured {
    /// Measures this process. To be called before it gives up its rights, which reach no
    /// executable.
    ///
    /// # Errors
    /// If the executable cannot be read, or the settings cannot be written as JSON.
    pub fn take(settings: &impl Serialize) -> io::Result<Self> {
        let settings = without_secrets(|| serde_json::to_vec(settings))?;
        Ok(Self { executable: executable()?, settings: sha256(&settings) })
    }
}

/// Has keyd record the start of this daemon. Waits some seconds for keyd at most; what
/// fails then is on the board and is tried again in the background.
pub async fn tell(
    keys: &KeysClient,
    daemon: Daemon,
    measured: io::Result<Measured>,
    version: &str,
    board: &Board,
) {
    let subject = Subject::daemon(daemon);
    let Measured { executable, settings } = match measured {
        Ok(measured) => measured,
        Err(error) => {
            let detail = format!("this daemon cannot measure itself: {error}");
            board.raise(Code::NotMeasured, &subject, detail);
            return;
        }
    };
    tracing::info!(%executable, %settings, "measured");
    let version = Word::cleaned(version);
    let start = Measurement::DaemonStart { daemon, executable, settings, version };
    let first = match tokio::time::timeout(PATIENCE, keys.measured(&start)).await {
        Ok(Ok(_)) => return,
        Ok(Err(error)) => tell_failure(&error, board, &subject).unwrap_or(AGAIN),
        Err(_) => {
            let detail = "the start of this daemon is not recorded: keyd does not answer";
            board.raise(Code::NotMeasured, &subject, detail);
            AGAIN
        }
    };
    let (keys, board) = (keys.clone(), board.clone());
    tokio::spawn(async move {
        let mut wait = first;
        loop {
            tokio::time::sleep(wait).await;
            match keys.measured(&start).await {
                Ok(_) => break board.clear(Code::NotMeasured, &subject),
                Err(error) => {
                    let longer = (wait * 2).min(AGAIN_AT_MOST);
                    wait = tell_failure(&error, &board, &subject).unwrap_or(longer);
                }
            }
        }
    });
}

/// Tells of a failure. Returns the time until the next attempt, if it is of no use
/// before.
fn tell_failure(error: &ClientError, board: &Board, subject: &Subject) -> Option<Duration> {
    let detail = format!("the start of this daemon is not recorded: {}", chain(error));
    board.raise(Code::NotMeasured, subject, detail);
    error.status().map(|_| AFTER_REFUSAL)
}

fn executable() -> io::Result<Sha256Digest> {
    let mut file = File::open(EXECUTABLE)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; STEP];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => context.update(&buffer[..count]),
        }
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Ok(Sha256Digest::new(digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_the_one_that_runs_and_settings_count_by_their_content() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let one = Measured::take(&[1, 2]).unwrap();
        assert_eq!(one.executable, sha256(&bytes));
        assert_eq!(one.settings, sha256(b"[1,2]"));
        assert_ne!(one.settings, Measured::take(&[2, 1]).unwrap().settings);
    }
}
