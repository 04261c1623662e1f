//! Proofs that one entry is in the log, as texts that are checked without it (C2SP
//! `tlog-proof`). Pure.
//!
//! The entry itself travels as the format's extra data.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::note::VerifierKey;
use crate::tree::{Hash, leaf_hash, verify_inclusion};

const HEAD: &str = "c2sp.org/tlog-proof@v1";

/// The reason why a proof proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// It is no proof.
    #[error("not a proof of the form {HEAD} with the entry as extra data")]
    Malformed,
    /// The checkpoint is not acceptable.
    #[error("the proof's checkpoint is not acceptable")]
    Checkpoint(#[from] CheckpointError),
    /// The entry is not in the log, or was changed.
    #[error("the entry is not in the log at index {0}: it, its index or the proof was changed")]
    NotIncluded(u64),
}

/// The facts that a proof has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved {
    /// The entry's index.
    pub index: u64,
    /// The entry.
    pub entry: Vec<u8>,
    /// The head under which it is.
    pub checkpoint: Checkpoint,
}

/// The text of a proof. `checkpoint` is the signed note.
#[must_use]
pub fn text(index: u64, entry: &[u8], hashes: &[Hash], checkpoint: &str) -> String {
    let mut text = format!("{HEAD}\nextra {}\nindex {index}\n", STANDARD.encode(entry));
    for hash in hashes {
        text.push_str(&format!("{hash}\n"));
    }
    text.push('\n');
    text.push_str(checkpoint);
    text
}

/// Checks a proof against the log's key.
///
/// # Errors
/// See [`ProofError`].
pub fn check(proof: &str, key: &VerifierKey) -> Result<Proved, ProofError> {
    let (head, checkpoint) = proof.split_once("\n\n").ok_or(ProofError::Malformed)?;
    let mut lines = head.split('\n');
    let mut line = |prefix| {
        lines.next().and_then(|line| line.strip_prefix(prefix)).ok_or(ProofError::Malformed)
    };
    if !line(HEAD)?.is_empty() {
        return Err(ProofError::Malformed);
    }
    let entry = STANDARD.decode(line("extra ")?).map_err(|_| ProofError::Malformed)?;
    let index: u64 = line("index ")?.parse().map_err(|_| ProofError::Malformed)?;
    let hashes: Option<Vec<Hash>> = lines.map(Hash::from_base64).collect();
    let hashes = hashes.ok_or(ProofError::Malformed)?;
    let checkpoint = Checkpoint::open(checkpoint, key)?;
    if verify_inclusion(leaf_hash(&entry), index, checkpoint.size, &hashes, &checkpoint.root) {
        Ok(Proved { index, entry, checkpoint })
    } else {
        Err(ProofError::NotIncluded(index))
    }
}
