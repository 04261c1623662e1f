//! Replaying a log, and judging it against what the registers hold.

use super::{Hash, Logged};
use crate::digest::Sha256Digest;

/// The value of a register after a digest was extended into it: the same rule for a PCR
/// and for an NV index of type extend.
#[must_use]
pub fn extended(register: &Sha256Digest, digest: &Sha256Digest, hash: Hash) -> Sha256Digest {
    let mut both = [0; 64];
    both[..32].copy_from_slice(register.as_bytes());
    both[32..].copy_from_slice(digest.as_bytes());
    hash(&both)
}

/// Returns the number of records that have to be extended, from `base` on, for a register
/// to have `value`; `None` if there is no such number.
#[must_use]
pub fn position(
    log: &Logged,
    base: &Sha256Digest,
    value: &Sha256Digest,
    hash: Hash,
) -> Option<usize> {
    let mut now = *base;
    if now == *value {
        return Some(0);
    }
    for (at, digest) in log.digests().enumerate() {
        now = extended(&now, digest, hash);
        if now == *value {
            return Some(at + 1);
        }
    }
    None
}

/// A register as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It holds this.
    Value(Sha256Digest),
    /// There is no such register: no such bank, no such index, or something else is in
    /// its place.
    Absent,
    /// It could not be read, or was not.
    Unread,
}

/// The registers as they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// The PCR.
    pub pcr: Seen,
    /// The NV index. One that was not written holds zeros.
    pub nv: Seen,
}

/// The relation between a log and one register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// The register holds what the whole log gives.
    Equal,
    /// The register holds what the log gives without its last records: they were
    /// written, and not extended yet.
    Behind {
        /// The number of these records.
        by: usize,
    },
    /// The register holds what no beginning of this log gives.
    Unlike,
    /// The register that the log is bound to is not there.
    Absent,
    /// The register could not be read.
    Unread,
    /// The log is not bound to such a register.
    Unbound,
}

/// The relation between a log and its registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The PCR.
    pub pcr: Finding,
    /// The value that the whole log gives for the PCR.
    pub pcr_replayed: Option<Sha256Digest>,
    /// The NV index.
    pub nv: Finding,
    /// The value that the whole log gives for the index.
    pub nv_replayed: Option<Sha256Digest>,
}

impl Verdict {
    /// True if a register shows the log to be the whole one, and none shows otherwise.
    #[must_use]
    pub fn holds(&self) -> bool {
        let fine = |it| matches!(it, Finding::Equal | Finding::Unbound);
        let shown = self.pcr == Finding::Equal || self.nv == Finding::Equal;
        shown && fine(self.pcr) && fine(self.nv)
    }
}

/// Judges a log against the registers.
#[must_use]
pub fn judge(log: &Logged, observed: &Observed, hash: Hash) -> Verdict {
    let start = log.start();
    let (pcr, pcr_replayed) = judge_one(log, start.pcr_base, observed.pcr, hash);
    let (nv, nv_replayed) = judge_one(log, start.nv_base, observed.nv, hash);
    Verdict { pcr, pcr_replayed, nv, nv_replayed }
}

fn judge_one(
    log: &Logged,
    base: Option<Sha256Digest>,
    seen: Seen,
    hash: Hash,
) -> (Finding, Option<Sha256Digest>) {
    let Some(base) = base else { return (Finding::Unbound, None) };
    let replayed = log.digests().fold(base, |now, digest| extended(&now, digest, hash));
    let finding = match seen {
        Seen::Absent => Finding::Absent,
        Seen::Unread => Finding::Unread,
        Seen::Value(value) => match position(log, &base, &value, hash) {
            Some(at) if at == log.records().len() => Finding::Equal,
            Some(at) => Finding::Behind { by: log.records().len() - at },
            None => Finding::Unlike,
        },
    };
    (finding, Some(replayed))
}
