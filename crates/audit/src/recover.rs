//! Opening a log's folder: making it, or finding out where the last run stopped.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use edgekeep_daemon::store::{self, StoreError};
use time::OffsetDateTime;

use crate::checkpoint::Checkpoint;
use crate::entry::LogEvent;
use crate::folder::{self, CHECKPOINT, ReadError, VERIFIER_KEY};
use crate::note::VerifierKey;
use crate::segment::{self, Broken, Kind};
use crate::sign::{CheckpointSigner, SignError};
use crate::tree::{Frontier, Hash, leaf_hash};

/// The error of opening a log.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file cannot be written.
    #[error("cannot make the audit log")]
    Write(#[from] StoreError),
    /// The first checkpoint cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// There are no random numbers for a log's name.
    #[error("no random numbers")]
    Random,
    /// The newest segment cannot be opened for writing.
    #[error("cannot write {}", path.display())]
    Segment {
        /// The file that cannot be written.
        path: PathBuf,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The writer could not be started.
    #[error("cannot start the audit log's thread")]
    Thread(#[source] io::Error),
}

/// A log to go on with.
pub(crate) struct Recovered {
    pub(crate) key: VerifierKey,
    /// First entries of the segments, and their sizes in bytes; oldest first, at least
    /// one.
    pub(crate) segments: Vec<(u64, u64)>,
    pub(crate) file: File,
    pub(crate) tree: Frontier,
    /// The newest checkpoint.
    pub(crate) head: Checkpoint,
    /// The same as a signed note.
    pub(crate) note: String,
    /// Events to write down about the log, before all else.
    pub(crate) events: Vec<LogEvent>,
}

enum Found {
    Nothing,
    Usable(Box<Recovered>),
    Damaged { why: &'static str, size: Option<u64> },
}

/// Opens the log in `folder`, or makes one. A damaged one is set aside, and its successor
/// says so; as it does if there was to be one and there is none.
pub(crate) fn open(
    folder: &Path,
    signer: &dyn CheckpointSigner,
    expected: bool,
) -> Result<Recovered, OpenError> {
    store::private_folder(folder)?;
    store::sweep_temporary(folder);
    match examine(folder, signer)? {
        Found::Usable(recovered) => Ok(*recovered),
        Found::Nothing if expected => {
            tracing::error!(folder = %folder.display(), "the audit log is gone; a new one begins");
            create(folder, signer, vec![LogEvent::Replaces { number: 0, size: None }])
        }
        Found::Nothing => create(folder, signer, Vec::new()),
        Found::Damaged { why, size } => {
            let aside = store::set_aside(folder)?;
            tracing::error!(why, kept = %aside.display(), "the audit log is damaged; it was set aside and a new one begins");
            let number =
                aside.extension().and_then(|text| text.to_str()?.rsplit_once('-')?.1.parse().ok());
            store::private_folder(folder)?;
            create(folder, signer, vec![LogEvent::Replaces { number: number.unwrap_or(0), size }])
        }
    }
}

fn create(
    folder: &Path,
    signer: &dyn CheckpointSigner,
    events: Vec<LogEvent>,
) -> Result<Recovered, OpenError> {
    // Each log has a name of its own: a successor under the same name would contradict
    // what was signed before.
    let mut random = [0; 8];
    rand::fill(&mut random).map_err(|_| OpenError::Random)?;
    let origin = format!("edgekeep/audit/{:016x}", u64::from_be_bytes(random));
    let Ok(key) = VerifierKey::new(&origin, signer.public_key()) else {
        unreachable!("the name has no blanks")
    };
    let tree = Frontier::default();
    let root = tree.root();
    let time = Some(OffsetDateTime::now_utc());
    let head =
        Checkpoint { origin, size: 0, root, first: 0, first_root: root, time, counter: None };
    let note = head.sign(&key, signer)?;
    let bytes = segment::begin(&tree, &note);
    let path = folder::segment_path(folder, 0);
    store::write_atomic(&folder.join(VERIFIER_KEY), format!("{key}\n").as_bytes(), 0o600)?;
    store::write_atomic(&path, &bytes, 0o600)?;
    store::write_atomic(&folder.join(CHECKPOINT), note.as_bytes(), 0o600)?;
    let file = open_segment(&path)?;
    Ok(Recovered { key, segments: vec![(0, bytes.len() as u64)], file, tree, head, note, events })
}

pub(crate) fn open_segment(path: &Path) -> Result<File, OpenError> {
    let fault = |source| OpenError::Segment { path: path.to_owned(), source };
    fs::OpenOptions::new().read(true).write(true).open(path).map_err(fault)
}

fn examine(folder: &Path, signer: &dyn CheckpointSigner) -> Result<Found, OpenError> {
    let mut segments = folder::segments(folder)?;
    let newest = folder::content(&folder.join(CHECKPOINT))?
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let damaged = |why, size| Ok(Found::Damaged { why, size });
    let Some((first, path)) = segments.last().cloned() else {
        return match newest {
            None => Ok(Found::Nothing),
            Some(_) => damaged("it has a checkpoint but no entries", None),
        };
    };
    let bytes = folder::content(&path)?.unwrap_or_default();
    let Some((edge, base, start)) =
        segment::beginning(&bytes).filter(|(edge, ..)| edge.size() == first)
    else {
        return damaged("the newest segment does not begin as one", None);
    };
    // The name is the log's own; that the key is ours is what the signatures below show.
    let origin = base.split('\n').next().unwrap_or_default();
    let Ok(key) = VerifierKey::new(origin, signer.public_key()) else {
        return damaged("the newest segment has no checkpoint", None);
    };
    let Ok(base_head) = Checkpoint::open(base, &key) else {
        return damaged("the newest segment's checkpoint is not signed by this device", None);
    };
    let filed = match newest.as_deref().map(|note| (note, Checkpoint::open(note, &key))) {
        Some((note, Ok(checkpoint))) => Some((note.to_owned(), checkpoint)),
        Some((_, Err(_))) => return damaged("its checkpoint is not signed by this device", None),
        None => None,
    };
    let replayed = replay(
        &bytes,
        start,
        edge,
        &key,
        (base.to_owned(), base_head),
        filed.as_ref().map(|(_, head)| head),
    );
    let (note, head) = match filed {
        Some((_, head)) if replayed.tree.size() < head.size => {
            return damaged("entries that a checkpoint covers are missing", Some(head.size));
        }
        Some((_, head)) if !replayed.agrees => {
            return damaged("its entries are not those that were signed", Some(head.size));
        }
        Some((note, head)) if head.size > replayed.head.size => (note, head),
        None if replayed.tree.size() > 0 => return damaged("its checkpoint is missing", None),
        _ => (replayed.note, replayed.head),
    };
    let file = open_segment(&path)?;
    let cut = bytes.len() - replayed.end;
    if cut > 0 {
        tracing::warn!(bytes = cut, "cut an unfinished record off the audit log");
        let fault = |source| OpenError::Segment { path: path.clone(), source };
        file.set_len(replayed.end as u64).and_then(|()| file.sync_all()).map_err(fault)?;
        // A file system that does not shrink files would leave the rest in place.
        let mut behind = [0; 1];
        if file.read_at(&mut behind, replayed.end as u64).map_err(fault)? != 0 {
            return Err(fault(io::Error::other("the file was not shortened")));
        }
    }
    let clean = cut == 0 && head.size == replayed.tree.size();
    // What rotation was about to remove when it was interrupted.
    let kept = segments.iter().position(|(first, _)| *first >= head.first).unwrap_or(0);
    for (_, path) in segments.drain(..kept) {
        fs::remove_file(&path).map_err(|source| ReadError { path, source })?;
    }
    let mut sizes = Vec::new();
    for (first, path) in segments {
        let size = fs::metadata(&path).map_err(|source| ReadError { path, source })?.len();
        sizes.push((first, size));
    }
    let events = vec![LogEvent::Opened { clean, cut: cut as u64 }];
    let tree = replayed.tree;
    Ok(Found::Usable(Box::new(Recovered { key, segments: sizes, file, tree, head, note, events })))
}

struct Replayed {
    tree: Frontier,
    /// Offset in bytes at which the last whole record ends.
    end: usize,
    note: String,
    head: Checkpoint,
    /// True unless the tree came to the size of the head that was looked for, and had
    /// another head there.
    agrees: bool,
}

/// Goes through the newest segment up to its last whole record that is in its place.
fn replay(
    bytes: &[u8],
    start: usize,
    edge: Frontier,
    key: &VerifierKey,
    base: (String, Checkpoint),
    filed: Option<&Checkpoint>,
) -> Replayed {
    let (note, head) = base;
    let mut replayed = Replayed { tree: edge, end: start, note, head, agrees: true };
    let meets =
        |tree: &Frontier, size: u64, root: &Hash| tree.size() != size || tree.root() == *root;
    replayed.agrees = filed.is_none_or(|filed| meets(&replayed.tree, filed.size, &filed.root));
    while let Some(Ok::<_, Broken>((record, length))) = segment::read(&bytes[replayed.end..]) {
        if record.index != replayed.tree.size() {
            break;
        }
        match record.kind {
            Kind::Edge => break,
            Kind::Entry => {
                replayed.tree.append(leaf_hash(record.body));
                if let Some(filed) = filed {
                    replayed.agrees &= meets(&replayed.tree, filed.size, &filed.root);
                }
            }
            Kind::Checkpoint => {
                let note = String::from_utf8_lossy(record.body);
                match Checkpoint::open(&note, key) {
                    Ok(head) if head.size == record.index && head.root == replayed.tree.root() => {
                        (replayed.note, replayed.head) = (note.into_owned(), head);
                    }
                    _ => break,
                }
            }
        }
        replayed.end += length;
    }
    replayed
}
