//! The audit trail: each refusal, one JSON object a line, bounded.
//!
//! Two files, `audit.jsonl` and the one before it, each at most [`FILE_LIMIT`] bytes. An
//! entry never holds a secret. A full disk loses entries, never the daemon: how many were
//! lost is written with the next entry that fits.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use edgekeep_base::file::{self, Rules};
use edgekeep_base::lock::lock;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Largest size of one file of the trail, in bytes.
pub const FILE_LIMIT: u64 = 1 << 20;

/// Refusals of one minute that go into the log as well.
pub const LOGGED_PER_MINUTE: u64 = 20;
const MINUTE: Duration = Duration::from_secs(60);

/// A refusal, as the trail records it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry<'a> {
    /// User id of the caller.
    pub uid: u32,
    /// Process id of the caller, 0 if not visible.
    pub pid: u32,
    /// Method and route that were asked for.
    pub action: &'a str,
    /// Object of the request: a key, certificate or module id.
    pub object: &'a str,
    /// The one reason of the refusal.
    pub reason: &'a str,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(skip_serializing_if = "is_zero")]
    lost: u64,
    #[serde(flatten)]
    entry: &'a Entry<'a>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Default)]
struct Trail {
    file: Option<(File, u64)>,
    lost: u64,
    /// Begin of the current minute, and how many refusals it had.
    minute: Option<(Instant, u64)>,
}

impl Trail {
    fn may_log(&mut self, now: Instant) -> bool {
        match &mut self.minute {
            Some((begin, count)) if now.duration_since(*begin) < MINUTE => {
                *count += 1;
                *count <= LOGGED_PER_MINUTE
            }
            other => {
                let unlogged =
                    other.map_or(0, |(_, count)| count.saturating_sub(LOGGED_PER_MINUTE));
                if unlogged > 0 {
                    tracing::warn!(unlogged, "more refusals are in the audit trail");
                }
                *other = Some((now, 1));
                true
            }
        }
    }
}

/// An entry of an earlier run, or of this one, as it was read back.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Past {
    /// RFC 3339.
    pub time: String,
    /// As [`Entry::uid`].
    pub uid: u32,
    /// As [`Entry::pid`].
    pub pid: u32,
    /// As [`Entry::action`].
    pub action: String,
    /// As [`Entry::object`].
    pub object: String,
    /// As [`Entry::reason`].
    pub reason: String,
}

/// The trail in `folder`, the oldest first, as far as it can be read: at most two files
/// of [`FILE_LIMIT`]. A line that was cut off is left out.
#[must_use]
pub fn read(folder: &Path) -> Vec<Past> {
    let mut all = Vec::new();
    for name in ["audit.1.jsonl", "audit.jsonl"] {
        // No line is begun that would make a file longer than this.
        let text = match file::read(&folder.join(name), Rules::own(FILE_LIMIT)) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                tracing::warn!(%error, name, "the audit trail of earlier runs is not shown");
                continue;
            }
        };
        all.extend(
            text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()),
        );
    }
    all
}

/// The audit trail of one daemon.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    trail: Mutex<Trail>,
}

impl Audit {
    /// The trail in `folder`. Nothing is opened before the first entry.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { path: folder.join("audit.jsonl"), trail: Mutex::new(Trail::default()) }
    }

    /// The current file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a refusal down, here and in the log. The log gets the first
    /// [`LOGGED_PER_MINUTE`] of a minute only: a caller who tries again and again must
    /// not fill it.
    pub fn refused(&self, entry: &Entry<'_>) {
        let mut trail = lock(&self.trail);
        if trail.may_log(Instant::now()) {
            tracing::warn!(
                uid = entry.uid,
                pid = entry.pid,
                action = entry.action,
                object = entry.object,
                reason = entry.reason,
                "refused"
            );
        }
        self.write(&mut trail, entry);
    }

    /// Writes down what was granted and changes what will be granted later; `reason` says
    /// what it is.
    pub fn granted(&self, entry: &Entry<'_>) {
        tracing::info!(
            uid = entry.uid,
            pid = entry.pid,
            action = entry.action,
            object = entry.object,
            reason = entry.reason,
            "granted"
        );
        self.write(&mut lock(&self.trail), entry);
    }

    fn write(&self, trail: &mut Trail, entry: &Entry<'_>) {
        let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let lost = trail.lost;
        let written = serde_json::to_vec(&Line { time, lost, entry })
            .map_err(std::io::Error::other)
            .and_then(|mut line| {
                line.push(b'\n');
                self.append(trail, &line)
            });
        match written {
            Ok(()) => trail.lost = 0,
            Err(error) => {
                trail.lost += 1;
                trail.file = None;
                if trail.lost == 1 {
                    tracing::error!(%error, path = %self.path.display(), "cannot write the audit trail");
                }
            }
        }
    }

    fn append(&self, trail: &mut Trail, line: &[u8]) -> std::io::Result<()> {
        let size = match &trail.file {
            Some((_, size)) => *size,
            None => {
                let file = file::open_to_append(&self.path, 0o600)?;
                let size = file.metadata()?.len();
                trail.file = Some((file, size));
                size
            }
        };
        if size + line.len() as u64 > FILE_LIMIT {
            trail.file = None;
            std::fs::rename(&self.path, self.path.with_extension("1.jsonl"))?;
            let file = file::open_to_append(&self.path, 0o600)?;
            trail.file = Some((file, 0));
        }
        let Some((file, size)) = &mut trail.file else { return Ok(()) };
        file.write_all(line)?;
        *size += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trail_never_grows_beyond_two_files() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::new(folder.path());
        let object = "m".repeat(100_000);
        for pid in 0..40 {
            audit.refused(&Entry {
                uid: 1,
                pid,
                action: "POST /sign",
                object: &object,
                reason: "not-in-module",
            });
        }
        let read = read(folder.path());
        assert_eq!(
            read.last().map(|entry| (entry.pid, entry.reason.as_str())),
            Some((39, "not-in-module"))
        );
        assert!(
            read.len() > 10 && read.windows(2).all(|pair| pair[0].pid < pair[1].pid),
            "two files, in order"
        );
        let sizes: Vec<u64> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|size| *size <= FILE_LIMIT), "{sizes:?}");
        let last = std::fs::read_to_string(audit.path()).unwrap();
        assert!(last.lines().last().unwrap().contains("\"pid\":39"));
    }

    #[test]
    fn the_log_gets_a_bounded_number_of_refusals_a_minute() {
        let mut trail = Trail::default();
        let begin = Instant::now();
        let logged = (0..1000).filter(|_| trail.may_log(begin)).count() as u64;
        assert_eq!(logged, LOGGED_PER_MINUTE);
        assert!(trail.may_log(begin + MINUTE), "the next minute starts anew");
    }

    #[test]
    fn a_line_that_was_cut_off_and_what_is_no_entry_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()), []);
        let audit = Audit::new(folder.path());
        audit.refused(&Entry { uid: 1, pid: 2, action: "a", object: "o", reason: "r" });
        let mut text = std::fs::read(audit.path()).unwrap();
        let whole = text.clone();
        text.extend_from_slice(b"{\"time\":1}\n\xff\xfe\n");
        text.extend_from_slice(&whole[..whole.len() / 2]);
        std::fs::write(audit.path(), text).unwrap();
        let read = read(folder.path());
        assert_eq!((read.len(), read[0].pid, read[0].object.as_str()), (1, 2, "o"));
    }

    #[test]
    fn entries_lost_to_a_full_disk_are_counted_in_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let audit = Audit::new(&missing);
        let entry = Entry { uid: 1, pid: 2, action: "a", object: "o", reason: "r" };
        audit.refused(&entry);
        audit.refused(&entry);
        std::fs::create_dir(&missing).unwrap();
        audit.refused(&entry);
        assert!(std::fs::read_to_string(audit.path()).unwrap().contains("\"lost\":2"));
    }
}
