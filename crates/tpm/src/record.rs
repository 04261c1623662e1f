//! The form of a wrapped key or a sealed secret in a file.
//!
//! | bytes | |
//! |---|---|
//! | 5 | `EKTPM` |
//! | 1 | version of this format: 1 |
//! | 1 | kind: 0 symmetric key, 1 key pair, 2 sealed secret, 3 attestation key |
//! | 1 | usage: for the writer to say; 0 if it is nobody's key |
//! | 4 | PCRs of the SHA-256 bank that it is sealed to, a bit each |
//! | 2 + n | the id, empty for what has none |
//! | 2 + n | name of the storage root that it is wrapped under |
//! | 2 + n | public area |
//! | 2 + n | private area, encrypted and authenticated by the TPM |
//! | 32 | SHA-256 of everything before |
//!
//! Numbers are big-endian. The hash tells a damaged file from one that belongs to another
//! TPM; it protects nothing.

use crate::device::Blob;
use crate::error::TpmError;
use crate::kdf::{HASH_LEN, sha256};
use crate::wire::{Malformed, Reader, Writer};

const MAGIC: &[u8; 5] = b"EKTPM";
const VERSION: u8 = 1;

/// The kinds of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// A key that computes HMACs.
    Symmetric,
    /// A key pair.
    Pair,
    /// A sealed secret.
    Sealed,
    /// A key that signs quotes.
    Attestation,
}

/// A wrapped key or sealed secret, with all that its use takes besides the TPM.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// The kind of record.
    pub kind: RecordKind,
    /// Bits for the writer's own purposes.
    pub usage: u8,
    /// PCRs of the SHA-256 bank that a secret is sealed to, a bit each.
    pub pcrs: u32,
    /// The writer's name for the key; empty if there is none.
    pub id: String,
    /// Name of the storage root that the blob is wrapped under.
    pub root_name: Vec<u8>,
    /// The wrapped key or secret.
    pub blob: Blob,
}

/// Reasons why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// The bytes are cut off or changed, or were never a record.
    Damaged,
    /// A later version wrote the record: this one.
    Version(u8),
}

impl From<Malformed> for Unreadable {
    fn from(Malformed: Malformed) -> Self {
        Self::Damaged
    }
}

impl From<Unreadable> for TpmError {
    fn from(_: Unreadable) -> Self {
        Self::DamagedBlob
    }
}

impl Record {
    /// The record as bytes for a file.
    ///
    /// # Errors
    /// If a part is too long for its length field.
    pub fn encode(&self) -> Result<Vec<u8>, TpmError> {
        let kind = match self.kind {
            RecordKind::Symmetric => 0,
            RecordKind::Pair => 1,
            RecordKind::Sealed => 2,
            RecordKind::Attestation => 3,
        };
        let content = Writer::new().bytes(MAGIC).u8(VERSION).u8(kind).u8(self.usage).u32(self.pcrs);
        let content = content.sized(self.id.as_bytes()).sized(&self.root_name);
        let content = content.sized(&self.blob.public).sized(&self.blob.private);
        let mut content = content.finish().ok_or(TpmError::DamagedBlob)?.to_vec();
        let hash = sha256(&[&content]);
        content.extend_from_slice(&hash);
        Ok(content)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// See [`Unreadable`].
    pub fn decode(content: &[u8]) -> Result<Self, Unreadable> {
        let (content, hash) = content.split_last_chunk::<HASH_LEN>().ok_or(Unreadable::Damaged)?;
        let mut reader = Reader::new(content);
        if reader.bytes(MAGIC.len())? != MAGIC {
            return Err(Unreadable::Damaged);
        }
        // A later version may end in another check.
        let version = reader.u8()?;
        if version != VERSION {
            return Err(Unreadable::Version(version));
        }
        if sha256(&[content]) != *hash {
            return Err(Unreadable::Damaged);
        }
        let kind = match reader.u8()? {
            0 => RecordKind::Symmetric,
            1 => RecordKind::Pair,
            2 => RecordKind::Sealed,
            3 => RecordKind::Attestation,
            _ => return Err(Unreadable::Damaged),
        };
        let usage = reader.u8()?;
        let record = Self {
            kind,
            usage,
            pcrs: reader.u32()?,
            id: String::from_utf8(reader.sized()?.to_vec()).map_err(|_| Unreadable::Damaged)?,
            root_name: reader.sized()?.to_vec(),
            blob: Blob { public: reader.sized()?.to_vec(), private: reader.sized()?.to_vec() },
        };
        reader.end()?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> Record {
        Record {
            kind: RecordKind::Pair,
            usage: 3,
            pcrs: 0x80,
            id: "device-id".to_owned(),
            root_name: vec![1; 34],
            blob: Blob { public: vec![2; 90], private: vec![3; 120] },
        }
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        assert!(Record::decode(&record().encode().unwrap()) == Ok(record()));
    }

    #[test]
    fn a_later_version_is_not_taken_for_damage() {
        let mut content = record().encode().unwrap();
        content[5] = 2;
        assert_eq!(Record::decode(&content).err(), Some(Unreadable::Version(2)));
    }

    proptest! {
        #[test]
        fn no_changed_bit_and_no_cut_goes_unnoticed(at: prop::sample::Index, bit in 0u8..8) {
            let content = record().encode().unwrap();
            let at = at.index(content.len());
            prop_assert!(Record::decode(&content[..at]).is_err());
            let mut changed = content;
            changed[at] ^= 1 << bit;
            prop_assert!(Record::decode(&changed).is_err());
        }
    }
}
