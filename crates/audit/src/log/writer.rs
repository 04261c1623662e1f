//! The writer of the log: the work of the log's thread on its files.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use edgekeep_daemon::store::{self, StoreError};
use time::OffsetDateTime;

use super::Options;
use super::counting::{CounterState, Counting};
use super::space::{Reserve, is_full};
use crate::checkpoint::Checkpoint;
use crate::entry::{Entry, Event, LogEvent};
use crate::folder::{self, CHECKPOINT, ReadError};
use crate::note::VerifierKey;
use crate::recover::Recovered;
use crate::segment::{self, Kind};
use crate::sign::{CheckpointSigner, MonotonicCounter, SignError};
use crate::tree::{Frontier, Hash, leaf_hash};

/// The segment that is written and the whole one before it stay.
const KEPT_SEGMENTS: usize = 2;

/// The error of one step of the writer. All of the step's work is kept and tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("cannot write the audit log")]
    Write(#[source] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Sign(#[from] SignError),
}

pub(super) struct Writer {
    folder: PathBuf,
    options: Options,
    key: VerifierKey,
    signer: Box<dyn CheckpointSigner>,
    counting: Counting,
    /// True if the pending checkpoint promises a step of the counter.
    step_planned: bool,
    /// True if something was signed since the counter was stepped.
    uncounted: bool,
    reserve: Reserve,
    tree: Frontier,
    /// First entries and sizes of the segments, oldest first. The last one is written.
    segments: Vec<(u64, u64)>,
    file: File,
    /// Bytes of the last segment that are on the disk.
    synced: u64,
    /// Bytes that come behind the synced ones. They are kept until they are on the disk:
    /// after a failed sync they are written once more.
    unsynced: Vec<u8>,
    /// Number of these bytes that are in the file.
    written: usize,
    /// Times at which the oldest entry that is not on the disk, or not signed, was taken.
    unsynced_since: Option<Instant>,
    unsigned_since: Option<Instant>,
    unsigned: u64,
    /// Entries that rotation dropped: their number, and the head over them.
    dropped: (u64, Hash),
    /// A checkpoint that is in the segment but not yet in its file.
    pending: Option<(Checkpoint, String)>,
    head: Checkpoint,
    note: String,
}

impl Writer {
    pub(super) fn new(
        folder: PathBuf,
        recovered: Recovered,
        options: Options,
        signer: Box<dyn CheckpointSigner>,
        counter: Option<Box<dyn MonotonicCounter>>,
    ) -> Self {
        let Recovered { key, segments, file, tree, head, note, events } = recovered;
        let counting = Counting::new(counter, head.counter, tree.size() > 0, Instant::now());
        let reserve = Reserve::new(&folder, options.reserve_bytes);
        let synced = segments.last().map_or(0, |(_, size)| *size);
        let dropped = (head.first, head.first_root);
        let mut writer = Self {
            folder,
            options,
            key,
            signer,
            counting,
            step_planned: false,
            uncounted: false,
            reserve,
            tree,
            segments,
            file,
            synced,
            unsynced: Vec::new(),
            written: 0,
            unsynced_since: None,
            unsigned_since: None,
            unsigned: 0,
            dropped,
            pending: None,
            head,
            note,
        };
        events.into_iter().for_each(|event| writer.note_event(event));
        writer
    }

    /// Does the work that takes time before the first entry: takes the room on the disk,
    /// and looks at the counter.
    pub(super) fn begin(&mut self) {
        self.reserve.hold(Instant::now());
        self.look_at_counter(false);
    }

    fn note_event(&mut self, event: LogEvent) {
        self.append(&Entry { time: OffsetDateTime::now_utc(), event: Event::Log(event) });
    }

    fn look_at_counter(&mut self, wanted: bool) {
        if let Some(event) = self.counting.look(Instant::now(), wanted) {
            self.note_event(event);
        }
    }

    /// Returns the state of the counter, as far as it is known.
    pub(super) fn counter(&self) -> &CounterState {
        self.counting.state()
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// The newest checkpoint.
    pub(super) fn note(&self) -> &str {
        &self.note
    }

    /// Returns the next time at which there is something to do even if no entry comes.
    pub(super) fn due(&self) -> Option<Instant> {
        let sync = self.unsynced_since.map(|since| since + self.options.sync_after);
        let sign = self.unsigned_since.map(|since| since + self.options.sign_after);
        let count = if self.uncounted { self.counting.due(&self.options) } else { None };
        sync.into_iter().chain(sign).chain(count).min()
    }

    /// Takes an entry into the tree and into what is to be written.
    pub(super) fn append(&mut self, entry: &Entry) {
        let body = match serde_json::to_vec(entry) {
            Ok(body) => body,
            Err(error) => {
                tracing::error!(%error, "an audit entry has no text form");
                return;
            }
        };
        if segment::write(&mut self.unsynced, Kind::Entry, self.tree.size(), &body).is_none() {
            tracing::error!(bytes = body.len(), "an audit entry is too long");
            return;
        }
        self.tree.append(leaf_hash(&body));
        self.unsigned += 1;
        let now = Instant::now();
        self.unsynced_since.get_or_insert(now);
        self.unsigned_since.get_or_insert(now);
    }

    /// Writes what there is, and syncs, signs and rotates if it is time to, or if
    /// everything is wanted `now_all`.
    pub(super) fn step(&mut self, now: Instant, now_all: bool) -> Result<(), WriteError> {
        self.write()?;
        let reached = |since: Option<Instant>, after: Duration| {
            since.is_some_and(|since| now >= since + after)
        };
        if reached(self.unsynced_since, self.options.sync_after) {
            self.sync()?;
        }
        let due = now_all
            || self.unsigned >= self.options.sign_after_entries
            || reached(self.unsigned_since, self.options.sign_after);
        if due || self.pending.is_some() {
            self.look_at_counter(now_all);
        }
        let count = self.uncounted && self.counting.may_step(now, now_all, &self.options);
        let unsigned = self.unsigned > 0 || self.tree.size() != self.head.size;
        if self.pending.is_some() || (due && unsigned) || count {
            self.sign(now_all)?;
        }
        if !self.reserve.is_held() {
            self.reserve.hold(now);
        }
        if self.synced + self.unsynced.len() as u64 >= self.options.segment_bytes
            && self.segments.last().is_some_and(|(first, _)| *first < self.tree.size())
        {
            self.rotate()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), WriteError> {
        let rest = &self.unsynced[self.written..];
        self.file
            .write_all_at(rest, self.synced + self.written as u64)
            .map_err(WriteError::Write)?;
        self.written = self.unsynced.len();
        Ok(())
    }

    fn sync(&mut self) -> Result<(), WriteError> {
        self.write()?;
        if let Err(error) = self.file.sync_data() {
            // What the kernel could not write it may have dropped from its cache: nothing
            // of it counts as written.
            self.written = 0;
            return Err(WriteError::Write(error));
        }
        self.synced += self.unsynced.len() as u64;
        self.unsynced.clear();
        self.unsynced.shrink_to(64 << 10);
        self.written = 0;
        self.unsynced_since = None;
        if let Some((_, size)) = self.segments.last_mut() {
            *size = self.synced;
        }
        Ok(())
    }

    /// Signs the tree as it is. Order: entries and checkpoint to the segment, then the
    /// checkpoint's own file, then the counter. So a checkpoint never covers what is not
    /// on the disk, and the counter is never ahead of a log that lost nothing.
    fn sign(&mut self, step_counter: bool) -> Result<(), WriteError> {
        if self.pending.is_none() {
            self.step_planned = self.counting.plan(Instant::now(), step_counter, &self.options);
            let head = Checkpoint {
                origin: self.key.name().to_owned(),
                size: self.tree.size(),
                root: self.tree.root(),
                first: self.dropped.0,
                first_root: self.dropped.1,
                time: Some(OffsetDateTime::now_utc()),
                counter: self.counting.recorded(),
            };
            let note = head.sign(&self.key, &*self.signer)?;
            // A few hundred bytes, far below the limit of a record.
            let _ =
                segment::write(&mut self.unsynced, Kind::Checkpoint, head.size, note.as_bytes());
            self.pending = Some((head, note));
        }
        self.sync()?;
        let Some((_, note)) = &self.pending else { return Ok(()) };
        store::write_atomic(&self.folder.join(CHECKPOINT), note.as_bytes(), 0o600)?;
        let stepped = std::mem::take(&mut self.step_planned) && self.counting.step(Instant::now());
        self.uncounted = !stepped;
        if let Some((head, note)) = self.pending.take() {
            (self.head, self.note) = (head, note);
        }
        self.unsigned = 0;
        self.unsigned_since = None;
        Ok(())
    }

    /// Ends the segment and begins the next one.
    fn rotate(&mut self) -> Result<(), WriteError> {
        if self.head.size != self.tree.size() || self.pending.is_some() {
            self.sign(false)?;
        }
        self.sync()?;
        let first = self.tree.size();
        let path = folder::segment_path(&self.folder, first);
        let bytes = segment::begin(&self.tree, &self.note);
        store::write_atomic(&path, &bytes, 0o600)?;
        self.file = fs::OpenOptions::new().write(true).open(&path).map_err(WriteError::Write)?;
        self.synced = bytes.len() as u64;
        self.segments.push((first, self.synced));
        self.drop_oldest()
    }

    /// Drops segments from the beginning until the rest is small enough.
    fn drop_oldest(&mut self) -> Result<(), WriteError> {
        let mut total: u64 = self.segments.iter().map(|(_, size)| size).sum();
        let mut count = 0;
        while total > self.options.total_bytes && count + KEPT_SEGMENTS < self.segments.len() {
            total -= self.segments[count].1;
            count += 1;
        }
        self.drop_segments(count).map(drop)
    }

    /// Drops so many segments from the beginning; says whether it did. The checkpoint
    /// that states it comes first.
    fn drop_segments(&mut self, count: usize) -> Result<bool, WriteError> {
        if count == 0 {
            return Ok(false);
        }
        let first = self.segments[count].0;
        let content =
            folder::content(&folder::segment_path(&self.folder, first))?.unwrap_or_default();
        let Some((edge, ..)) =
            segment::beginning(&content).filter(|(edge, ..)| edge.size() == first)
        else {
            // It is damaged; what is before it is needed to show that.
            tracing::error!(
                first,
                "a segment of the audit log is damaged; nothing before it is dropped"
            );
            return Ok(false);
        };
        if self.pending.is_some() {
            // It states what was dropped before.
            self.sign(false)?;
        }
        self.dropped = (first, edge.root());
        self.sign(false)?;
        for (first, _) in self.segments.drain(..count) {
            let path = folder::segment_path(&self.folder, first);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(WriteError::Write(error));
                }
                _ => {}
            }
        }
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(WriteError::Write)?;
        Ok(true)
    }

    /// After a step failed: if it was for a full disk, gives up the room that is kept for
    /// that, and makes room anew by dropping the oldest segment. Says whether the step
    /// may succeed now.
    pub(super) fn make_room(&mut self, error: &WriteError) -> bool {
        if !is_full(error) {
            return false;
        }
        let released = self.reserve.release(Instant::now());
        if released {
            tracing::error!(
                "the disk is full: the audit log uses the room that it keeps, and drops its oldest part"
            );
            self.note_event(LogEvent::DiskFull);
        }
        if self.segments.len() <= KEPT_SEGMENTS {
            return released;
        }
        match self.drop_segments(1) {
            Ok(true) => {
                self.reserve.want_back();
                true
            }
            // No room was made: to try the step again at once would go on for ever.
            Ok(false) | Err(_) => released,
        }
    }
}
