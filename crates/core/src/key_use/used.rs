//! One use of a key: who asked for what, with which key, and the outcome.

use super::{Operation, Purpose, Reason};
use crate::digest::Sha256Digest;
use crate::id::{KeyId, ModuleId};

/// One use of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// The caller.
    pub who: Who,
    /// The operation.
    pub what: Operation,
    /// The key. Absent if that could not be told.
    pub key: Option<Key>,
    /// The outcome.
    pub outcome: Outcome,
}

/// The caller of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// User id.
    pub uid: u32,
    /// Process id, if it was visible.
    pub pid: Option<u32>,
    /// The module on whose behalf the uid asks, as that uid says and nobody else has
    /// seen. Only of uids that were granted to say so.
    pub says: Option<Box<Statement>>,
}

/// A caller's statement on whose behalf it asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The module.
    pub module: ModuleId,
    /// SHA-256 of the executable, if it was measured.
    pub executable: Option<Sha256Digest>,
}

/// The key of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its id; the base's, if it is derived.
    pub id: KeyId,
    /// True if a key derived from it was meant.
    pub derived: bool,
    /// The key's purpose, if a rule says so.
    pub purpose: Option<Purpose>,
    /// The id that it had before, if it was moved.
    pub from: Option<KeyId>,
    /// The module whose key it is, where that is part of how it is derived.
    pub module: Option<Box<ModuleId>>,
}

impl Key {
    /// A kept key, with nothing known beyond its id.
    #[must_use]
    pub fn new(id: KeyId) -> Self {
        Self { id, derived: false, purpose: None, from: None, module: None }
    }
}

/// Outcomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was allowed but could not be done: no such key, input that does not fit, a
    /// failing store.
    Failed,
    /// The caller went away, or the daemon ended, before it was known.
    Interrupted,
    /// It was not allowed.
    Refused(Reason),
}
