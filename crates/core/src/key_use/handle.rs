//! The content of a key handle.

use super::Purpose;
use crate::clock::Deadline;
use crate::id::KeyId;

/// The key that a handle names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A key pair.
    Pair(KeyId),
    /// A symmetric key.
    Symmetric(KeyId),
    /// A key that is derived from a symmetric key at each use.
    Derived {
        /// The symmetric key.
        base: KeyId,
        /// The derivation data.
        data: Vec<u8>,
    },
}

impl Target {
    /// The id of the kept key: of the base, if the key is derived.
    #[must_use]
    pub fn key_id(&self) -> &KeyId {
        match self {
            Self::Pair(id) | Self::Symmetric(id) | Self::Derived { base: id, .. } => id,
        }
    }
}

/// The use that a handle is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The uid that it was made for.
    pub uid: u32,
    /// The key's purpose at that time.
    pub purpose: Option<Purpose>,
    /// Its end, which no step of the wall clock moves.
    pub until: Deadline,
}

/// The statement of a handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The key.
    pub target: Target,
    /// The use that it is bound to; nothing, if it was made by a version or service that
    /// does not bind handles to this.
    pub binding: Option<Binding>,
}
