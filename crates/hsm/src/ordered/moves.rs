//! Moves of a key pair onto an id that another place has a pair under: written down
//! before they begin, so that one that is cut off is completed.
//!
//! A move adds before it removes: the pair gets its new id in its own place, then the one
//! that it replaces goes from the other. In between both places have the id, and only
//! what is written down here says which of the two is to stay. One file a move:
//! `moves/<letters of the id>-<its hash>.key`, with the line
//! `move 1 <id> <from place> <replaced in> <public key>`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use aws_lc_rs::digest;
use edgekeep_base::lock::lock;
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::KeyId;

use crate::backend::{InputError, KeyBackend, KeyError, KeyKind, PublicParameter, PublicValue};
use crate::software::StoreError;
use crate::software::durable::{
    KeyFile, make_folder, names, read_key_file, remove, remove_leftovers, replace, set_aside,
};
use crate::software::store::file_name;

/// Largest note of a move that is read, in bytes: two ids, two names of places and a
/// digest.
const NOTE_LIMIT: u64 = 4096;

/// One move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Move {
    /// The id after it.
    pub(super) to: KeyId,
    /// Number and name of the place in which the pair is.
    pub(super) source: String,
    /// Number and name of the place in which the replaced pair is.
    pub(super) target: String,
    /// The moved pair's public half: who has it under the new id has been moved.
    pub(super) public: Sha256Digest,
}

impl Move {
    fn encode(&self) -> String {
        format!("move 1 {} {} {} {}\n", self.to, self.source, self.target, self.public)
    }

    fn decode(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.strip_suffix('\n')?.split(' ').collect();
        let ["move", "1", to, source, target, public] = words[..] else { return None };
        let (source, target) = (source.to_owned(), target.to_owned());
        Some(Self { to: to.parse().ok()?, source, target, public: public.parse().ok()? })
    }
}

/// The moves that are under way, by the id after them.
pub(super) struct Moves {
    /// Folder of the notes of the moves; `None` if the moves are forgotten with the
    /// process.
    folder: Option<PathBuf>,
    pending: Mutex<BTreeMap<KeyId, Move>>,
}

impl Moves {
    /// Moves that are forgotten with the process.
    pub(super) fn unwritten() -> Self {
        Self { folder: None, pending: Mutex::default() }
    }

    /// Reads the moves in `folder`, which is made if it is not there. Damaged notes are
    /// set aside.
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        make_folder(folder)?;
        remove_leftovers(folder)?;
        let mut pending = BTreeMap::new();
        for name in names(folder)?.into_iter().filter(|name| name.ends_with(".key")) {
            let path = folder.join(name);
            let text = match read_key_file(&path, NOTE_LIMIT)? {
                KeyFile::Absent => continue,
                KeyFile::TooLong => String::new(),
                KeyFile::Content(content) => String::from_utf8(content).unwrap_or_default(),
            };
            match Move::decode(&text) {
                Some(moved) => drop(pending.insert(moved.to.clone(), moved)),
                None => {
                    let aside = set_aside(&path)?;
                    tracing::error!(file = ?aside, "a damaged note of a move was set aside");
                }
            }
        }
        Ok(Self { folder: Some(folder.to_owned()), pending: Mutex::new(pending) })
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<KeyId, Move>> {
        lock(&self.pending)
    }

    /// The move onto this id, if one is under way.
    pub(super) fn onto(&self, to: &KeyId) -> Option<Move> {
        self.pending().get(to).cloned()
    }

    /// Writes a move down that is about to begin.
    pub(super) fn begin(&self, moved: &Move) -> Result<(), StoreError> {
        if let Some(folder) = &self.folder {
            replace(&folder.join(file_name(&moved.to)), moved.encode().as_bytes())?;
        }
        self.pending().insert(moved.to.clone(), moved.clone());
        Ok(())
    }

    /// Forgets a move that is completed, or was never begun.
    pub(super) fn end(&self, to: &KeyId) -> Result<(), StoreError> {
        if let Some(folder) = &self.folder {
            remove(&folder.join(file_name(to)))?;
        }
        self.pending().remove(to);
        Ok(())
    }
}

/// The hash of a pair's public half; `None` if there is no such pair.
pub(super) fn public_half(
    backend: &dyn KeyBackend,
    id: &KeyId,
) -> Result<Option<Sha256Digest>, KeyError> {
    match backend.kind(id)? {
        Some(KeyKind::Pair) => {}
        Some(KeyKind::Symmetric) | None => return Ok(None),
    }
    let value = match backend.public_parameter(id, PublicParameter::EcPoint) {
        Err(KeyError::Input(InputError::NoSuchParameter)) => {
            backend.public_parameter(id, PublicParameter::RsaModulus)?
        }
        point => point?,
    };
    let hash = match &value {
        PublicValue::Word(word) => digest::digest(&digest::SHA256, word.as_bytes()),
        PublicValue::Bytes(bytes) => digest::digest(&digest::SHA256, bytes),
    };
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash.as_ref());
    Ok(Some(Sha256Digest::new(bytes)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_down_is_read_again(to in "[!-~]{1,256}", public: [u8; 32]) {
            let to: KeyId = to.parse().unwrap();
            let (source, target) = ("1:software".to_owned(), "0:pkcs11".to_owned());
            let moved = Move { to, source, target, public: Sha256Digest::new(public) };
            prop_assert_eq!(Move::decode(&moved.encode()), Some(moved));
        }
    }

    #[test]
    fn what_is_damaged_is_no_move_and_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.key"), b"move 1 ca").unwrap();
        fs::write(folder.path().join("b.key"), [0xff, 0xfe]).unwrap();
        let moves = Moves::open(folder.path()).unwrap();
        assert!(moves.pending().is_empty());
        assert!(
            folder.path().join("a.key.corrupt-1").exists()
                && folder.path().join("b.key.corrupt-1").exists()
        );
    }
}
