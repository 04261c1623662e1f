//! The tamper-evident audit log: who used which key for what, and who was refused.
//!
//! Entries are the leaves of a Merkle tree (RFC 6962); its head is signed again and again
//! as a checkpoint in the public formats for transparency logs (C2SP `signed-note` and
//! `tlog-checkpoint`), so that tools of others can read and witness it. Whoever has the
//! verifier key and the folder, or a copy of it, can tell whether anything was changed,
//! taken out, put in, put in another order or cut off: [`verify::verify`].
//!
//! The newest entries are all that the log can lose, and the log says so. An entry that
//! was accepted is in the file within [`Options::write_after`] and safe from a power cut
//! within [`Options::sync_after`]; at no time are more than [`Options::queue`] entries on
//! their way. A log that cannot be written refuses, and so does everything that must be
//! written down before it is done.
//!
//! Touches: the one folder it is given. Starts one thread. Never sees a secret: an
//! [`entry::Entry`] has no place for one.
//!
//! Segment files rather than the tiles of public logs: a device's log is read whole, on
//! the device or from a copy, and has to forget its oldest part, which tiles cannot. Each
//! segment begins with the tree's right edge at that point, from which everything behind
//! it can be proved without anything before it.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod entry;
mod folder;
mod log;
pub mod note;
pub mod proof;
mod recover;
mod segment;
mod sign;
pub mod tree;
pub mod verify;

pub use folder::{Excerpt, ReadError, export, read};
pub use log::{Busy, Closed, CounterState, Log, Opened, Options, Permit};
pub use recover::OpenError;
pub use sign::{CheckpointSigner, MonotonicCounter, SignError, SoftwareSigner};
