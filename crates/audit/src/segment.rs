//! The form of a segment file. Pure.
//!
//! A line that names the format, then records: kind (1 byte), length of the body (2),
//! index (8), check (8), body; numbers are big-endian. The first record holds the tree's
//! edge before the segment, the second the checkpoint of that size; then entries and
//! checkpoints follow in the order in which they were written. The check is no protection
//! against whoever means it: it tells which record was damaged, and finds the unfinished
//! end that a power cut leaves.

use aws_lc_rs::digest::{Context, SHA256};

use crate::tree::{Frontier, Hash};

/// First bytes of a segment.
pub(crate) const MAGIC: &[u8] = b"edgekeep audit log 1\n";
/// Bytes of a record before its body.
const HEAD: usize = 19;

/// The kind of a record's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The tree's edge; the index is its size.
    Edge,
    /// An entry; the index is its own.
    Entry,
    /// A signed checkpoint; the index is its size.
    Checkpoint,
}

impl Kind {
    const fn byte(self) -> u8 {
        match self {
            Self::Edge => b'F',
            Self::Entry => b'E',
            Self::Checkpoint => b'C',
        }
    }
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    pub(crate) index: u64,
    pub(crate) body: &'a [u8],
}

/// The fault at a place of a segment where a record should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The bytes end within the record.
    Short,
    /// The record is not what was written.
    Damaged,
}

fn check(kind: u8, length: [u8; 2], index: [u8; 8], body: &[u8]) -> [u8; 8] {
    let mut context = Context::new(&SHA256);
    for part in [&[kind][..], &length, &index, body] {
        context.update(part);
    }
    let mut check = [0; 8];
    check.copy_from_slice(&context.finish().as_ref()[..8]);
    check
}

/// Adds a record to `out`; `None` if the body is too long.
pub(crate) fn write(out: &mut Vec<u8>, kind: Kind, index: u64, body: &[u8]) -> Option<()> {
    let length = u16::try_from(body.len()).ok()?.to_be_bytes();
    let (kind, index) = (kind.byte(), index.to_be_bytes());
    out.push(kind);
    out.extend_from_slice(&length);
    out.extend_from_slice(&index);
    out.extend_from_slice(&check(kind, length, index, body));
    out.extend_from_slice(body);
    Some(())
}

/// The record at the beginning of `bytes`, and how many of them it takes. `None` at the
/// end.
pub(crate) fn read(bytes: &[u8]) -> Option<Result<(Record<'_>, usize), Broken>> {
    if bytes.is_empty() {
        return None;
    }
    Some(parse(bytes))
}

fn parse(bytes: &[u8]) -> Result<(Record<'_>, usize), Broken> {
    let kind = match bytes[0] {
        b'F' => Kind::Edge,
        b'E' => Kind::Entry,
        b'C' => Kind::Checkpoint,
        _ => return Err(Broken::Damaged),
    };
    let (head, rest) = bytes.split_at_checked(HEAD).ok_or(Broken::Short)?;
    let field = |from: usize| {
        head.get(from..from + 8).and_then(|bytes| bytes.try_into().ok()).ok_or(Broken::Damaged)
    };
    let (length, index, expected): (_, [u8; 8], [u8; 8]) =
        ([head[1], head[2]], field(3)?, field(11)?);
    let size = usize::from(u16::from_be_bytes(length));
    let body = rest.get(..size).ok_or(Broken::Short)?;
    if check(head[0], length, index, body) != expected {
        return Err(Broken::Damaged);
    }
    Ok((Record { kind, index: u64::from_be_bytes(index), body }, HEAD + size))
}

/// Text of an edge: its hashes, largest subtree first, a line each.
pub(crate) fn edge_text(edge: &Frontier) -> String {
    edge.nodes().iter().map(|node| format!("{node}\n")).collect()
}

/// The edge that a record holds.
pub(crate) fn edge(record: &Record<'_>) -> Option<Frontier> {
    let text = std::str::from_utf8(record.body).ok()?;
    let nodes: Option<Vec<Hash>> = text.split_terminator('\n').map(Hash::from_base64).collect();
    Frontier::from_parts(record.index, nodes?)
}

/// The beginning of a segment: format, edge, checkpoint.
pub(crate) fn begin(edge: &Frontier, checkpoint: &str) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    // At most 64 hashes, and a checkpoint of some hundred bytes: both are far below the
    // limit.
    let _ = write(&mut out, Kind::Edge, edge.size(), edge_text(edge).as_bytes());
    let _ = write(&mut out, Kind::Checkpoint, edge.size(), checkpoint.as_bytes());
    out
}

/// The edge and the checkpoint (as a note) that a segment begins with, and where its
/// records go on.
pub(crate) fn beginning(bytes: &[u8]) -> Option<(Frontier, &str, usize)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let Some(Ok((first, first_len))) = read(rest) else { return None };
    let Some(Ok((second, second_len))) = read(&rest[first_len..]) else { return None };
    if first.kind != Kind::Edge || second.kind != Kind::Checkpoint || second.index != first.index {
        return None;
    }
    Some((
        edge(&first)?,
        std::str::from_utf8(second.body).ok()?,
        MAGIC.len() + first_len + second_len,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tree::leaf_hash;

    proptest! {
        #[test]
        fn a_record_is_read_as_written_and_no_changed_or_shortened_one_is(
            index in any::<u64>(), body in prop::collection::vec(any::<u8>(), 0..300),
            flip in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            write(&mut bytes, Kind::Entry, index, &body).unwrap();
            let record = Record { kind: Kind::Entry, index, body: &body };
            prop_assert_eq!(read(&bytes), Some(Ok((record, bytes.len()))));
            let cut = 1 + cut.index(bytes.len() - 1);
            prop_assert_eq!(read(&bytes[..cut]), Some(Err(Broken::Short)));
            let at = flip.index(bytes.len() * 8);
            let mut changed = bytes.clone();
            changed[at / 8] ^= 1 << (at % 8);
            prop_assert!(matches!(read(&changed), Some(Err(_))));
        }

        #[test]
        fn a_segment_begins_with_its_edge(size in 0..300_u64) {
            let mut edge = Frontier::default();
            (0..size).for_each(|number| edge.append(leaf_hash(&number.to_be_bytes())));
            let bytes = begin(&edge, "note");
            prop_assert_eq!(beginning(&bytes), Some((edge, "note", bytes.len())));
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = read(&bytes);
            let _ = beginning(&[MAGIC, &bytes].concat());
        }
    }

    #[test]
    fn a_body_that_is_too_long_is_not_written() {
        assert_eq!(write(&mut Vec::new(), Kind::Entry, 0, &vec![0; 0x1_0000]), None);
    }
}
