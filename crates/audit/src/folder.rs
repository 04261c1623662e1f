//! The files of a log: their names, and reading them while they are written.
//!
//! `<index of the first entry, 20 digits>.log` segments, `checkpoint` the newest one,
//! `verifier-key` what checks it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use edgekeep_base::file::{self, Rules};
use edgekeep_daemon::store::{self, StoreError};

use crate::note::VerifierKey;
use crate::segment::{self, Kind};
use crate::tree::Frontier;

/// The newest checkpoint.
pub(crate) const CHECKPOINT: &str = "checkpoint";
/// The key that checks it. For convenience: who verifies has a copy from elsewhere.
pub(crate) const VERIFIER_KEY: &str = "verifier-key";

/// Largest file of a log that is read, in bytes: several times a segment, the largest of
/// them.
const FILE_LIMIT: u64 = 64 << 20;

/// The error of reading a log.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct ReadError {
    /// The file or folder that could not be read.
    pub path: PathBuf,
    /// The error of the kernel.
    #[source]
    pub source: io::Error,
}

pub(crate) fn segment_path(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("{first:020}.log"))
}

/// The segments with the indices of their first entries, oldest first.
pub(crate) fn segments(folder: &Path) -> Result<Vec<(u64, PathBuf)>, ReadError> {
    let fault = |source| ReadError { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".log"));
        if let Some(first) = name.filter(|name| name.len() == 20).and_then(|name| name.parse().ok())
        {
            found.push((first, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// A file's content; `None` if there is none.
pub(crate) fn content(path: &Path) -> Result<Option<Vec<u8>>, ReadError> {
    // Whoever wrote the file: what is in it is signed.
    match file::read(path, Rules::named(FILE_LIMIT)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ReadError { path: path.to_owned(), source }),
    }
}

/// Some consecutive entries of a log, and what its oldest part stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// Edge of the tree before the oldest entry that is kept.
    pub edge: Frontier,
    /// Signed checkpoint of that size.
    pub base: String,
    /// Index of the first entry in `entries`.
    pub from: u64,
    /// The entries, as they are hashed.
    pub entries: Vec<Vec<u8>>,
}

/// Reads up to `limit` entries from index `from` on, or from the oldest one that is kept.
/// Fewer come if there are no more, or if they would have more than `bytes` bytes. The
/// log may be written meanwhile.
///
/// # Errors
/// If a file cannot be read. A damaged one ends the excerpt: [`crate::verify::verify`]
/// says why.
pub fn read(folder: &Path, from: u64, limit: usize, bytes: usize) -> Result<Excerpt, ReadError> {
    // The oldest segment may be dropped between listing and reading; it is dropped once
    // in a long while.
    for _ in 0..3 {
        if let Some(excerpt) = try_read(folder, from, limit, bytes)? {
            return Ok(excerpt);
        }
    }
    Err(ReadError { path: folder.to_owned(), source: ErrorKind::NotFound.into() })
}

fn try_read(
    folder: &Path,
    from: u64,
    limit: usize,
    bytes: usize,
) -> Result<Option<Excerpt>, ReadError> {
    let segments = segments(folder)?;
    let Some((first, oldest)) = segments.first() else { return Ok(None) };
    let Some(content_of_oldest) = content(oldest)? else { return Ok(None) };
    let Some((edge, base, _)) = segment::beginning(&content_of_oldest) else {
        let source = io::Error::new(ErrorKind::InvalidData, "not a segment of an audit log");
        return Err(ReadError { path: oldest.clone(), source });
    };
    let from = from.max(*first);
    let mut excerpt = Excerpt { edge, base: base.to_owned(), from, entries: Vec::new() };
    let start = segments.partition_point(|(first, _)| *first <= from).saturating_sub(1);
    let mut room = bytes;
    for (_, path) in &segments[start..] {
        let Some(content) = content(path)? else { return Ok(None) };
        let Some((_, _, mut at)) = segment::beginning(&content) else { break };
        while let Some(Ok((record, length))) = segment::read(&content[at..]) {
            at += length;
            if record.kind != Kind::Entry || record.index < from {
                continue;
            }
            if excerpt.entries.len() == limit || record.body.len() > room {
                return Ok(Some(excerpt));
            }
            room -= record.body.len();
            excerpt.entries.push(record.body.to_vec());
        }
    }
    Ok(Some(excerpt))
}

/// Writes a log that was read elsewhere into a new folder, in the form in which
/// [`crate::verify::verify`] reads it.
///
/// # Errors
/// If the folder or a file cannot be written.
pub fn export(
    folder: &Path,
    key: &VerifierKey,
    edge: &Frontier,
    base: &str,
    entries: &[Vec<u8>],
    checkpoint: &str,
) -> Result<(), StoreError> {
    store::private_folder(folder)?;
    store::write_atomic(&segment_path(folder, edge.size()), &joined(edge, base, entries), 0o600)?;
    store::write_atomic(&folder.join(CHECKPOINT), checkpoint.as_bytes(), 0o600)?;
    store::write_atomic(&folder.join(VERIFIER_KEY), format!("{key}\n").as_bytes(), 0o600)
}

/// One segment with all of these entries.
pub(crate) fn joined(edge: &Frontier, base: &str, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = segment::begin(edge, base);
    for (index, entry) in (edge.size()..).zip(entries) {
        // Entries come out of a log and are short enough for one; without one that is
        // not, the rest does not verify.
        let _ = segment::write(&mut bytes, Kind::Entry, index, entry);
    }
    bytes
}
