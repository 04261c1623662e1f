//! The log of what was started on a device, and the registers of the TPM that bind it.
//!
//! Each [record](Record) tells of one thing that was measured. The digest of its content
//! is extended into a PCR and into an NV index of the TPM, so that the values there are
//! those of this log and of no other. Reading a log, replaying it and judging it against
//! the registers are functions over values: the device, the command line and a verifier
//! elsewhere share them.
//!
//! The log is a sequence of JSON texts (RFC 7464) in the JSON encoding of the TCG's
//! Canonical Event Log: before each record stands the byte 0x1e, after it a line feed.
//! There is one way to write a record. A line that is written in any other way is no line
//! of the log, so that two readers cannot read two things.

mod allowance;
mod heads;
mod log;
mod open;
mod record;
mod replay;

pub use allowance::{AT_ONCE, Admission, Allowances, ONE_MORE_AFTER};
pub use heads::{HEAD_AFTER, HEAD_EACH, HEADS_APART, head_is_due};
pub use log::{LogError, LogFault, Logged, RECORD_LIMIT, RECORDS_LIMIT, SIZE_LIMIT};
pub use open::{IndexState, Opening, Present, Reason, Registers, open, state_of};
pub use record::{Content, Event, LogStart, Record, Source, Subject, Word, WordError};
pub use replay::{Finding, Observed, Seen, Verdict, extended, judge, position};

use crate::digest::Sha256Digest;

/// SHA-256, as the caller computes it.
pub type Hash = fn(&[u8]) -> Sha256Digest;

/// The value of a register that nothing was extended into.
pub const ZEROS: Sha256Digest = Sha256Digest::new([0; 32]);

#[cfg(test)]
mod tests;
