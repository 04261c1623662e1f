//! Metrics of keyd: uses of keys and the size of the audit log.

use std::path::{Path, PathBuf};

use edgekeep_core::key_use::{Key, Operation, Outcome, Reason};
use edgekeep_daemon::metrics::{Counter, Families, Family, Gauge};
use edgekeep_daemon::operations::Refresh;

static KEY_OPERATIONS: Family<Counter, 4> = Family::new(
    "edgekeep_key_operations",
    "Uses of keys by what was done, what the key is for, where it is and what came of it.",
    ["operation", "purpose", "backend", "result"],
);
static REFUSALS: Family<Counter, 2> =
    Family::new("edgekeep_key_refusals", "Refused uses of keys.", ["operation", "reason"]);
static AUDIT_LOG: Family<Gauge, 0> =
    Family::new("edgekeep_audit_log_size_bytes", "Size of the log of key uses on disk.", []);

/// Metrics of this daemon beyond those that all daemons have.
pub static FAMILIES: Families = &[&KEY_OPERATIONS, &REFUSALS, &AUDIT_LOG];

/// Counts an operation that ended. `backend` is where its key is, if that is known.
pub(crate) fn ended(
    what: Operation,
    key: Option<&Key>,
    backend: Option<&'static str>,
    outcome: Outcome,
) {
    let purpose = key.and_then(|key| key.purpose).map_or("none", |purpose| purpose.word());
    let backend = backend.unwrap_or("unknown");
    match outcome {
        Outcome::Done => KEY_OPERATIONS.with([what.word(), purpose, backend, "done"]).increment(),
        Outcome::Failed => {
            KEY_OPERATIONS.with([what.word(), purpose, backend, "failed"]).increment();
        }
        Outcome::Interrupted => {
            KEY_OPERATIONS.with([what.word(), purpose, backend, "interrupted"]).increment();
        }
        Outcome::Refused(reason) => refused(what, reason),
    }
}

/// Counts a refusal.
pub(crate) fn refused(what: Operation, reason: Reason) {
    REFUSALS.with([what.word(), reason.word()]).increment();
}

/// Measures the audit log in `folder` when metrics are asked for.
#[must_use]
pub fn refresh(folder: PathBuf) -> Refresh {
    Box::new(move || {
        let folder = folder.clone();
        Box::pin(async move {
            if let Ok(Some(bytes)) = tokio::task::spawn_blocking(move || size(&folder)).await {
                AUDIT_LOG.with([]).set(bytes);
            }
        })
    })
}

#[expect(clippy::cast_precision_loss, reason = "the log's size is bounded far below")]
fn size(folder: &Path) -> Option<f64> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    Some(entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum::<u64>() as f64)
}
