//! Checks that a log is what was written.
//!
//! Proved, given the log's verifier key: every entry up to the newest checkpoint is
//! there, unchanged and in its place. Somebody may cut off the entries behind an older
//! checkpoint together with everything that names a newer one. Such a cut can only be
//! noticed with something from outside: a checkpoint that was kept elsewhere, or a
//! counter in hardware. Both can be given here.

use std::fmt;
use std::path::Path;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::entry::Shown;
use crate::folder::{self, ReadError};
use crate::note::VerifierKey;
use crate::segment::{self, Broken, Kind};
use crate::tree::{Frontier, Hash, leaf_hash};

/// Facts about the log that are known from elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The log's key.
    pub key: &'a VerifierKey,
    /// A checkpoint (signed note) that was seen earlier.
    pub checkpoint: Option<&'a str>,
    /// The value of the counter in hardware.
    pub counter: Option<u64>,
}

/// The result of a check.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Index of the oldest entry that is there.
    pub first: u64,
    /// Entries in the log, dropped ones included.
    pub size: u64,
    /// Checkpoints whose signatures were checked.
    pub checkpoints: usize,
    /// The newest one.
    pub newest: Option<Checkpoint>,
    /// Places where entries may be or are missing, as the log itself says.
    pub gaps: Vec<Gap>,
    /// Faults that were found.
    pub faults: Vec<Fault>,
}

impl Report {
    /// Returns true if nothing is wrong. Gaps that the log states are not wrong.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.faults.is_empty()
    }

    /// Returns the gaps that the log tells of itself and that somebody has to look at.
    /// Entries in `accepted`, given by index, were looked at already and are left out.
    pub fn alarms<'a>(&'a self, accepted: &'a [u64]) -> impl Iterator<Item = &'a Gap> {
        self.gaps.iter().filter(|gap| gap.alarm().is_some_and(|at| !accepted.contains(&at)))
    }

    /// Number of entries that are there.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.size - self.first
    }
}

/// A place where entries may be or are missing, or where a loss would not be noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gap {
    /// Rotation dropped everything before this index, and a checkpoint states it.
    Dropped(u64),
    /// Entries from this index on are covered by no checkpoint yet.
    Unsigned(u64),
    /// An unfinished record at the end, of this many bytes: what a kill in the middle of
    /// writing leaves.
    Unfinished(usize),
    /// The daemon ended without closing the log before this index. The entries of its
    /// last moment may be missing.
    Unclean(u64),
    /// At this index the log notes that it takes the place of a damaged one, of so many
    /// entries.
    Replaces(u64, Option<u64>),
    /// At this index the log notes that it was behind its hardware counter: it had lost
    /// its newest part.
    BehindCounter(u64),
    /// From this index on the log did not compare itself with its hardware counter, and
    /// why.
    NotCounting(u64, NotCounting),
    /// The newest checkpoint has this counter, and no value of the hardware was given to
    /// compare it with.
    NotCompared(u64),
    /// Before this index the disk was full.
    DiskFull(u64),
    /// From this index on the log did not compare itself with its hardware counter, for
    /// the reason given.
    Lost(u64, u64),
    /// The given checkpoint is of a time before the oldest entry that is kept.
    Incomparable(u64),
}

impl Gap {
    /// The entry at which the log itself tells of a loss, or of a counter that somebody
    /// has removed: nothing that happens by itself on a healthy device. Somebody has to
    /// look at it, once.
    #[must_use]
    pub fn alarm(&self) -> Option<u64> {
        match self {
            Self::BehindCounter(at)
            | Self::Replaces(at, _)
            | Self::NotCounting(at, NotCounting::Replaced) => Some(*at),
            _ => None,
        }
    }
}

/// The reason why a log does not compare itself with its counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotCounting {
    /// The hardware did not answer.
    Unreachable,
    /// The log was told not to.
    SwitchedOff,
    /// The counter was another than before: removed and made anew, or in other hardware.
    Replaced,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dropped(first) => write!(f, "entries before {first} were dropped by rotation"),
            Self::Unsigned(from) => {
                write!(f, "entries from {from} on are covered by no checkpoint yet")
            }
            Self::Unfinished(bytes) => {
                write!(f, "{bytes} bytes of an unfinished record at the end")
            }
            Self::Unclean(at) => {
                write!(
                    f,
                    "before entry {at} the log was not closed: entries of the last moment may be missing"
                )
            }
            Self::Replaces(at, Some(size)) => {
                write!(
                    f,
                    "entry {at}: this log takes the place of a damaged one with {size} entries"
                )
            }
            Self::Replaces(at, None) => {
                write!(f, "entry {at}: this log takes the place of one that was damaged or removed")
            }
            Self::BehindCounter(at) => {
                write!(
                    f,
                    "entry {at}: the log was behind its hardware counter; its newest part before that is missing"
                )
            }
            Self::NotCounting(at, NotCounting::Unreachable) => {
                write!(
                    f,
                    "entry {at}: the hardware counter could not be read; until it could, a loss would not show"
                )
            }
            Self::NotCounting(at, NotCounting::SwitchedOff) => {
                write!(
                    f,
                    "entry {at}: the hardware counter was switched off; a loss after that would not show"
                )
            }
            Self::NotCounting(at, NotCounting::Replaced) => write!(
                f,
                "entry {at}: the hardware counter is not the one of before (removed and made anew, or other hardware); \
                 a loss before that would not show"
            ),
            Self::NotCompared(counter) => write!(
                f,
                "the newest checkpoint has the hardware counter {counter}, which was not compared with the hardware: \
                 whether the newest part is missing does not show; pass --counter with what `tpm2_nvread` reads"
            ),
            Self::DiskFull(at) => write!(f, "entry {at}: the disk was full"),
            Self::Lost(at, count) => {
                write!(f, "entry {at}: {count} refusals before it were not written")
            }
            Self::Incomparable(size) => {
                write!(
                    f,
                    "the given checkpoint of size {size} is older than the oldest entry: it says nothing here"
                )
            }
        }
    }
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// File name of the segment.
    pub segment: Option<String>,
    /// The first entry that is bad, or after which it is.
    pub entry: u64,
    /// The kind of the fault.
    pub kind: FaultKind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(segment) = &self.segment {
            write!(f, "{segment}: ")?;
        }
        write!(f, "entry {}: {}", self.entry, self.kind)
    }
}

/// A kind of fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// There are no segments at all.
    #[error("there is no log")]
    Empty,
    /// The segment's beginning is damaged.
    #[error("the segment does not begin as one, or with another entry than its name says")]
    Beginning,
    /// A record is damaged.
    #[error("the record is damaged")]
    Record,
    /// An entry is not where it belongs.
    #[error("the record has index {0}: entries were removed, added or put in another order")]
    Order(u64),
    /// Entries are missing between two segments.
    #[error("entries up to {0} are missing")]
    Missing(u64),
    /// A checkpoint is not acceptable.
    #[error("checkpoint: {0}")]
    Checkpoint(CheckpointError),
    /// The tree is another than was signed.
    #[error("entries from this one on, before {0}, are not those that were signed")]
    Content(u64),
    /// There is no file with the newest checkpoint.
    #[error("the file `checkpoint` is missing")]
    NoCheckpoint,
    /// The newest checkpoint covers more entries than there are.
    #[error("the log ends here, but a checkpoint covers {0} entries: the newest part was cut off")]
    Truncated(u64),
    /// More was dropped from the beginning than is stated.
    #[error("the log begins here, but only entries before {0} were dropped by rotation")]
    Beheaded(u64),
    /// The checkpoint given from elsewhere is of another history.
    #[error("the log is not a continuation of the given checkpoint of size {0}")]
    OtherHistory(u64),
    /// The hardware counter is far behind: it is another one.
    #[error(
        "the newest checkpoint has counter {0}, the hardware only {1}: the counter was removed, or is another one"
    )]
    OtherCounter(u64, u64),
    /// The hardware counter is ahead.
    #[error(
        "the newest checkpoint has counter {0:?}, the hardware {1}: the newest part is missing, or was put back"
    )]
    Counter(Option<u64>, u64),
}

/// Checks the log in `folder`.
///
/// # Errors
/// If files cannot be read at all. What is wrong with them is in the report.
pub fn verify(folder: &Path, known: &Known<'_>) -> Result<Report, ReadError> {
    let newest = folder::content(&folder.join(folder::CHECKPOINT))?;
    let segments = folder::segments(folder)?;
    let mut walk = Walk::new(known, newest.as_deref());
    for (place, (first, path)) in segments.iter().enumerate() {
        let Some(content) = folder::content(path)? else { continue };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        walk.segment(&name, *first, &content, place + 1 == segments.len());
    }
    Ok(walk.finish())
}

/// Checks a log that was read elsewhere, oldest entry first: `edge` and `base` are what
/// it stands on, `newest` its newest checkpoint.
#[must_use]
pub fn verify_read(
    edge: &Frontier,
    base: &str,
    entries: &[Vec<u8>],
    newest: &str,
    known: &Known<'_>,
) -> Report {
    let mut walk = Walk::new(known, Some(newest.as_bytes()));
    walk.segment("", edge.size(), &folder::joined(edge, base, entries), true);
    walk.finish()
}

/// A head that has to be met on the way.
struct Awaited {
    size: u64,
    root: Hash,
    /// True if the checkpoint was given from elsewhere.
    given: bool,
}

/// The state of a check that goes through the log once, oldest entry first.
struct Walk<'a> {
    known: &'a Known<'a>,
    report: Report,
    /// The tree so far; `None` after something was wrong, until a segment's beginning
    /// allows to go on.
    tree: Option<Frontier>,
    /// Entries that the last checkpoint that fits covers.
    sure: u64,
    awaited: Vec<Awaited>,
    began: bool,
    name: String,
}

impl<'a> Walk<'a> {
    fn new(known: &'a Known<'a>, newest: Option<&[u8]>) -> Self {
        let mut walk = Self {
            known,
            report: Report::default(),
            tree: None,
            sure: 0,
            awaited: Vec::new(),
            began: false,
            name: String::new(),
        };
        match newest.map(String::from_utf8_lossy) {
            Some(note) => walk.expect(&note, false),
            None => walk.fault(0, FaultKind::NoCheckpoint),
        }
        if let Some(note) = known.checkpoint {
            walk.expect(note, true);
        }
        walk
    }

    fn expect(&mut self, note: &str, given: bool) {
        if let Some(checkpoint) = self.open(note, 0) {
            self.awaited.push(Awaited { size: checkpoint.size, root: checkpoint.root, given });
            if !given {
                self.report.newest = Some(checkpoint);
            }
        }
    }

    fn open(&mut self, note: &str, entry: u64) -> Option<Checkpoint> {
        self.report.checkpoints += 1;
        match Checkpoint::open(note, self.known.key) {
            Ok(checkpoint) => Some(checkpoint),
            Err(error) => {
                self.fault(entry, FaultKind::Checkpoint(error));
                None
            }
        }
    }

    fn fault(&mut self, entry: u64, kind: FaultKind) {
        let segment = (!self.name.is_empty()).then(|| self.name.clone());
        self.report.faults.push(Fault { segment, entry, kind });
    }

    fn segment(&mut self, name: &str, first: u64, content: &[u8], is_last: bool) {
        name.clone_into(&mut self.name);
        self.report.size = self.report.size.max(first);
        if !self.began {
            self.began = true;
            self.report.first = first;
            self.sure = first;
        }
        let Some((edge, note, mut at)) =
            segment::beginning(content).filter(|(edge, ..)| edge.size() == first)
        else {
            self.fault(first, FaultKind::Beginning);
            self.tree = None;
            return;
        };
        let note = note.to_owned();
        self.join(&edge);
        self.tree = Some(edge);
        if !self.checkpoint(&note, first) {
            self.tree = None;
            return;
        }
        loop {
            match segment::read(&content[at..]) {
                None => break,
                Some(Ok((record, length))) => {
                    at += length;
                    if !self.record(record) {
                        self.tree = None;
                        return;
                    }
                }
                Some(Err(Broken::Short)) if is_last => {
                    self.report.gaps.push(Gap::Unfinished(content.len() - at));
                    break;
                }
                Some(Err(_)) => {
                    let entry = self.tree.as_ref().map_or(first, Frontier::size);
                    self.fault(entry, FaultKind::Record);
                    self.tree = None;
                    return;
                }
            }
        }
    }

    /// Compares the end of the segment before with the edge that this one begins with.
    fn join(&mut self, edge: &Frontier) {
        let Some(before) = self.tree.take() else { return };
        if before.size() < edge.size() {
            self.fault(before.size(), FaultKind::Missing(edge.size()));
        } else if before.size() > edge.size() {
            self.fault(edge.size(), FaultKind::Order(edge.size()));
        } else if before != *edge {
            self.fault(self.sure, FaultKind::Content(edge.size()));
        }
    }

    fn record(&mut self, record: segment::Record<'_>) -> bool {
        let Some(tree) = &mut self.tree else { return false };
        let size = tree.size();
        if record.index != size {
            self.fault(size, FaultKind::Order(record.index));
            return false;
        }
        match record.kind {
            Kind::Edge => {
                self.fault(size, FaultKind::Record);
                false
            }
            Kind::Checkpoint => {
                let note = String::from_utf8_lossy(record.body).into_owned();
                self.checkpoint(&note, size)
            }
            Kind::Entry => {
                tree.append(leaf_hash(record.body));
                self.report.size = size + 1;
                self.note_gaps(size, record.body);
                self.meet()
            }
        }
    }

    /// Checks a checkpoint that stands in the log against the tree there.
    fn checkpoint(&mut self, note: &str, size: u64) -> bool {
        let Some(checkpoint) = self.open(note, size) else { return false };
        let root = self.tree.as_ref().map(Frontier::root);
        if checkpoint.size != size || Some(checkpoint.root) != root {
            self.fault(self.sure, FaultKind::Content(size));
            return false;
        }
        self.sure = size;
        if self.report.newest.as_ref().is_none_or(|newest| newest.size <= size) {
            self.report.newest = Some(checkpoint);
        }
        self.meet()
    }

    /// Checks the tree against heads of its present size that came from beside the
    /// segments.
    fn meet(&mut self) -> bool {
        let Some(tree) = &self.tree else { return false };
        let size = tree.size();
        if self.awaited.iter().all(|awaited| awaited.size != size) {
            return true;
        }
        let root = tree.root();
        let (met, rest) =
            std::mem::take(&mut self.awaited).into_iter().partition(|awaited| awaited.size == size);
        self.awaited = rest;
        let met: Vec<Awaited> = met;
        for awaited in met {
            if awaited.root == root {
                self.sure = self.sure.max(size);
            } else if awaited.given {
                self.fault(self.sure, FaultKind::OtherHistory(size));
            } else {
                self.fault(self.sure, FaultKind::Content(size));
                return false;
            }
        }
        true
    }

    fn note_gaps(&mut self, index: u64, entry: &[u8]) {
        const LOG: &[u8] = br#""what":"log-"#;
        if !entry.windows(LOG.len()).any(|window| window == LOG) {
            return;
        }
        let Ok(shown) = serde_json::from_slice::<Shown>(entry) else { return };
        let gap = match shown.what.as_str() {
            "log-opened" if shown.clean == Some(false) => Gap::Unclean(index),
            "log-replaced" => Gap::Replaces(index, shown.size),
            "log-behind-counter" => Gap::BehindCounter(index),
            "log-counter-unreachable" => Gap::NotCounting(index, NotCounting::Unreachable),
            "log-counter-off" => Gap::NotCounting(index, NotCounting::SwitchedOff),
            "log-counter-replaced" => Gap::NotCounting(index, NotCounting::Replaced),
            "log-disk-full" => Gap::DiskFull(index),
            "log-lost" => Gap::Lost(index, shown.refusals.unwrap_or_default()),
            _ => return,
        };
        self.report.gaps.push(gap);
    }

    fn finish(mut self) -> Report {
        self.name.clear();
        if !self.began {
            self.fault(0, FaultKind::Empty);
        }
        let (first, size) = (self.report.first, self.report.size);
        for awaited in std::mem::take(&mut self.awaited) {
            // Those in between were passed over because of a fault that is reported
            // already.
            if awaited.size > size {
                self.fault(size, FaultKind::Truncated(awaited.size));
            } else if awaited.size < first && awaited.given {
                self.report.gaps.push(Gap::Incomparable(awaited.size));
            }
        }
        if let Some(newest) = &self.report.newest {
            let (stated, counter) = (newest.first, newest.counter);
            if first > stated {
                self.fault(first, FaultKind::Beheaded(stated));
            }
            match (counter, self.known.counter) {
                (None, None) => {}
                (Some(counter), None) => self.report.gaps.push(Gap::NotCompared(counter)),
                // A checkpoint names the value that the counter has after its step, which
                // may not have been made.
                (Some(counter), Some(hardware))
                    if hardware == counter || hardware.checked_add(1) == Some(counter) => {}
                (Some(counter), Some(hardware)) if hardware < counter => {
                    self.fault(size, FaultKind::OtherCounter(counter, hardware));
                }
                (counter, Some(hardware)) => {
                    self.fault(size, FaultKind::Counter(counter, hardware));
                }
            }
        }
        if first > 0 {
            self.report.gaps.insert(0, Gap::Dropped(first));
        }
        if self.sure < size && self.report.faults.is_empty() {
            self.report.gaps.push(Gap::Unsigned(self.sure));
        }
        self.report
    }
}
