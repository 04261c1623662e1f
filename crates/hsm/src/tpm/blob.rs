//! What a wrapped key or a sealed secret looks like in a file.
//!
//! | bytes | |
//! |---|---|
//! | 5 | `EKTPM` |
//! | 1 | version of this format: 1 |
//! | 1 | kind: 0 symmetric key, 1 key pair, 2 sealed secret, 3 attestation key |
//! | 1 | usage: bit 0 derive and sign, bit 1 encrypt |
//! | 4 | PCRs of the SHA-256 bank that it is sealed to, a bit each |
//! | 2 + n | the id, empty for what has none |
//! | 2 + n | name of the storage root that it is wrapped under |
//! | 2 + n | public area |
//! | 2 + n | private area, encrypted and authenticated by the TPM |
//! | 32 | SHA-256 of everything before |
//!
//! Numbers are big-endian. The hash tells a damaged file from one that belongs to another
//! TPM; it protects nothing.

use super::device::Blob;
use super::error::TpmError;
use super::kdf::{HASH_LEN, sha256};
use super::wire::{Malformed, Reader, Writer};
use crate::backend::Usage;

const MAGIC: &[u8; 5] = b"EKTPM";
const VERSION: u8 = 1;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordKind {
    Symmetric,
    Pair,
    Sealed,
    Attestation,
}

/// A wrapped key with what has to be known to use it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: RecordKind,
    pub(crate) usage: Usage,
    pub(crate) pcrs: u32,
    pub(crate) id: String,
    pub(crate) root_name: Vec<u8>,
    pub(crate) blob: Blob,
}

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    Damaged,
    /// A later version wrote it.
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
    pub(crate) fn encode(&self) -> Result<Vec<u8>, TpmError> {
        let kind = match self.kind {
            RecordKind::Symmetric => 0,
            RecordKind::Pair => 1,
            RecordKind::Sealed => 2,
            RecordKind::Attestation => 3,
        };
        let usage = u8::from(self.usage.derive_or_sign) | u8::from(self.usage.encrypt) << 1;
        let content = Writer::new().bytes(MAGIC).u8(VERSION).u8(kind).u8(usage).u32(self.pcrs);
        let content = content.sized(self.id.as_bytes()).sized(&self.root_name);
        let content = content.sized(&self.blob.public).sized(&self.blob.private);
        let mut content = content.finish().ok_or(TpmError::DamagedBlob)?.to_vec();
        let hash = sha256(&[&content]);
        content.extend_from_slice(&hash);
        Ok(content)
    }

    pub(crate) fn decode(content: &[u8]) -> Result<Self, Unreadable> {
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
            usage: Usage { derive_or_sign: usage & 1 != 0, encrypt: usage & 2 != 0 },
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
            usage: Usage::ALL,
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
