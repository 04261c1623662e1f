//! The log as the daemon holds it: a bounded queue, and the thread behind it that writes,
//! syncs and signs.
//!
//! The side that asks for a key pays for a place in the queue and for handing over the
//! entry; text, hashes, files and signatures are the thread's work. A place is taken
//! *before* the key is used, so that nothing is done that could not be written down.
//! While the disk refuses, entries wait in the queue; when that is full, everything is
//! refused.

mod counting;
mod space;
mod writer;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use edgekeep_base::error::chain;
use edgekeep_base::lock::{lock, waited};

use time::OffsetDateTime;

pub use self::counting::CounterState;
use self::writer::{WriteError, Writer};
use crate::checkpoint::Checkpoint;
use crate::entry::{Entry, Event, LogEvent};
use crate::note::VerifierKey;
use crate::recover::{self, OpenError};
use crate::sign::{CheckpointSigner, MonotonicCounter};

/// Pause between attempts while the disk refuses.
const RETRY: Duration = Duration::from_millis(250);

/// Bounds of a log.
#[derive(Debug, Clone)]
pub struct Options {
    /// Most entries that are accepted but not yet in the file. With it, what a power cut
    /// can lose is bounded in number.
    pub queue: usize,
    /// Longest time before an accepted entry is in the file, where a kill of the daemon
    /// does not reach it.
    pub write_after: Duration,
    /// Longest time before it is on the disk, where a power cut does not reach it, but
    /// for the time that the disk takes.
    pub sync_after: Duration,
    /// Entries after which a checkpoint is signed.
    pub sign_after_entries: u64,
    /// Longest time between an entry and a checkpoint that covers it.
    pub sign_after: Duration,
    /// Shortest time between two steps of the hardware counter, which are made only if
    /// something was written. What was lost within it may go unnoticed. A minute is
    /// enough for the first step after opening, and where a checkpoint is asked for or
    /// the log is closed.
    pub count_after: Duration,
    /// Size at which a segment ends, in bytes.
    pub segment_bytes: u64,
    /// Size of all segments above which the oldest is dropped, in bytes. At least one
    /// whole segment stays.
    pub total_bytes: u64,
    /// Room on the disk that is kept for the log, in bytes. When the disk is full it is
    /// used, and the oldest segments are dropped one by one; only when all that is gone
    /// the log refuses.
    pub reserve_bytes: u64,
    /// True if something else knows that there has been a log in this folder. If the log
    /// is gone, the new log says so.
    pub expected: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue: 4096,
            write_after: Duration::from_millis(5),
            sync_after: Duration::from_millis(200),
            sign_after_entries: 4096,
            sign_after: Duration::from_secs(10),
            count_after: Duration::from_secs(300),
            segment_bytes: 2 << 20,
            total_bytes: 64 << 20,
            reserve_bytes: 1 << 20,
            expected: false,
        }
    }
}

/// No entry is taken: the log cannot be written, or not fast enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the audit log cannot be written fast enough, so nothing is done that it should show; is the disk full?"
)]
pub struct Busy;

/// No checkpoint was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no checkpoint of the audit log: {0}")]
pub struct Closed(pub String);

/// The state in which the log was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Entries that it has.
    pub size: u64,
    /// Events that were written down about the opening.
    pub events: Vec<LogEvent>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Entry>,
    /// Places that are taken and not yet used.
    taken: usize,
    /// Entries that the writer has and the file does not.
    writing: usize,
    /// True if the disk or the signer refuses.
    failing: bool,
    /// Refusals that were not written.
    lost: u64,
    /// Number of the last checkpoint that was asked for, and of the last that was made.
    asked: u64,
    made: u64,
    head: Option<Result<(String, CounterState), String>>,
    /// The newest checkpoint that was signed, whoever asked for it.
    signed: String,
    stop: bool,
    ended: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Something for the writer to do.
    work: Condvar,
    /// The writer has done something that somebody may wait for.
    done: Condvar,
    queue: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn has_room(&self, state: &State) -> bool {
        !state.ended && state.queue.len() + state.taken + state.writing < self.queue
    }

    fn push(&self, state: &mut State, entry: Entry) {
        state.queue.push_back(entry);
        // The writer wakes up for the first entry and then gathers for a while; it must
        // not sleep over a full queue.
        if state.queue.len() == 1 || state.queue.len() == self.queue / 2 {
            self.work.notify_one();
        }
    }
}

/// An open log. It is closed, with everything written and signed, when dropped.
pub struct Log {
    shared: Arc<Shared>,
    folder: PathBuf,
    key: VerifierKey,
    opened: Opened,
    thread: Option<JoinHandle<()>>,
}

/// A place in the queue.
pub struct Permit {
    shared: Arc<Shared>,
    used: bool,
}

impl Permit {
    /// Hands an entry over.
    pub fn append(mut self, entry: Entry) {
        self.used = true;
        let mut state = self.shared.lock();
        state.taken -= 1;
        self.shared.push(&mut state, entry);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.used {
            self.shared.lock().taken -= 1;
            self.shared.done.notify_all();
        }
    }
}

impl Log {
    /// Opens the log in `folder`, or makes one, and starts its thread.
    ///
    /// # Errors
    /// If files cannot be read or written, or the key cannot sign. A damaged log is no
    /// error: it is set aside, and the new one says so.
    pub fn open(
        folder: &Path,
        options: Options,
        signer: Box<dyn CheckpointSigner>,
        counter: Option<Box<dyn MonotonicCounter>>,
    ) -> Result<Self, OpenError> {
        let recovered = recover::open(folder, &*signer, options.expected)?;
        let key = recovered.key.clone();
        let opened = Opened { size: recovered.tree.size(), events: recovered.events.clone() };
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            queue: options.queue.max(1),
        });
        let writer = Writer::new(folder.to_owned(), recovered, options, signer, counter);
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || run(writer, &for_thread))
            .map_err(OpenError::Thread)?;
        Ok(Self { shared, folder: folder.to_owned(), key, opened, thread: Some(thread) })
    }

    /// Returns the key that checks this log's checkpoints.
    #[must_use]
    pub fn key(&self) -> &VerifierKey {
        &self.key
    }

    /// Returns the folder of the log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the state in which the log was found.
    #[must_use]
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// A place for one entry. Never waits for the disk.
    ///
    /// # Errors
    /// If all places are taken.
    pub fn reserve(&self) -> Result<Permit, Busy> {
        let mut state = self.shared.lock();
        if !self.shared.has_room(&state) {
            return Err(Busy);
        }
        state.taken += 1;
        Ok(Permit { shared: Arc::clone(&self.shared), used: false })
    }

    /// A place for one entry; waits for one if need be, but not while the disk refuses.
    ///
    /// # Errors
    /// If none became free within `patience`.
    pub fn reserve_within(&self, patience: Duration) -> Result<Permit, Busy> {
        let end = Instant::now() + patience;
        let mut state = self.shared.lock();
        while !self.shared.has_room(&state) {
            let left = end.saturating_duration_since(Instant::now());
            if state.ended || state.failing || left.is_zero() {
                return Err(Busy);
            }
            state = waited(self.shared.done.wait_timeout(state, left)).0;
        }
        state.taken += 1;
        Ok(Permit { shared: Arc::clone(&self.shared), used: false })
    }

    /// Hands over a refusal, which needs no place beforehand: what it is about does not
    /// happen anyway. If there is none, the next entry says how many were lost.
    pub fn refused(&self, entry: Entry) {
        let mut state = self.shared.lock();
        if self.shared.has_room(&state) {
            self.shared.push(&mut state, entry);
        } else {
            state.lost += 1;
        }
    }

    /// Counts a refusal that is not to be written down, since there are too many of its
    /// kind. The next entry says how many there were.
    pub fn count_refusal(&self) {
        self.shared.lock().lost += 1;
    }

    /// The newest checkpoint that was signed since the log was opened. Asks for none and
    /// waits for nothing.
    #[must_use]
    pub fn signed(&self) -> Option<Checkpoint> {
        let note = self.shared.lock().signed.clone();
        Checkpoint::open(&note, &self.key).ok()
    }

    /// A signed checkpoint over everything that was handed over so far, which is then on
    /// the disk. Waits for both.
    ///
    /// # Errors
    /// If the log cannot be written or signed, or has ended.
    pub fn checkpoint(&self) -> Result<String, Closed> {
        self.checkpoint_and_counter().map(|(note, _)| note)
    }

    /// The same, with the state of the counter in hardware right after it.
    ///
    /// # Errors
    /// As [`Self::checkpoint`].
    pub fn checkpoint_and_counter(&self) -> Result<(String, CounterState), Closed> {
        let mut state = self.shared.lock();
        state.asked += 1;
        let ticket = state.asked;
        self.shared.work.notify_one();
        while state.made < ticket && !state.ended {
            state = waited(self.shared.done.wait(state));
        }
        match &state.head {
            Some(Ok(head)) if state.made >= ticket => Ok(head.clone()),
            Some(Err(why)) => Err(Closed(why.clone())),
            _ => Err(Closed("it is closed".to_owned())),
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Ends the log for whoever waits, also if the thread panics.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.done.notify_all();
    }
}

/// The thread.
fn run(mut writer: Writer, shared: &Shared) {
    let _ending = Ending(shared);
    let mut failing = false;
    writer.begin();
    loop {
        let mut state = shared.lock();
        state = wait_for_work(state, shared, &writer, failing);
        // While the disk refuses, what is there is kept as it is, and the queue fills.
        let batch = if failing { VecDeque::new() } else { std::mem::take(&mut state.queue) };
        state.writing += batch.len();
        let (ticket, stop) = (state.asked, state.stop);
        let asked = ticket > state.made;
        let tell = !failing && (stop || asked || !batch.is_empty());
        let lost = if tell { std::mem::take(&mut state.lost) } else { 0 };
        drop(state);
        if lost > 0 {
            let event = Event::Log(LogEvent::Lost { refusals: lost });
            writer.append(&Entry { time: OffsetDateTime::now_utc(), event });
        }
        batch.iter().for_each(|entry| writer.append(entry));
        let done = step(&mut writer, asked || stop);
        if let Err(error) = &done
            && !failing
        {
            tracing::error!(
                error = chain(error),
                "cannot write the audit log; key operations will be refused"
            );
        } else if done.is_ok() && failing {
            tracing::info!("the audit log can be written again");
        }
        failing = done.is_err();
        let mut state = shared.lock();
        state.failing = failing;
        if state.signed != writer.note() {
            writer.note().clone_into(&mut state.signed);
        }
        if !failing {
            state.writing = 0;
        }
        if asked {
            state.made = ticket;
            state.head = Some(
                done.map(|()| (writer.note().to_owned(), writer.counter().clone()))
                    .map_err(|error| chain(&error)),
            );
        }
        let left = state.queue.len() + state.writing;
        let more = !state.queue.is_empty() && !failing;
        drop(state);
        shared.done.notify_all();
        if stop && !more {
            if left > 0 {
                tracing::error!(
                    entries = left,
                    "the audit log was closed without its newest entries"
                );
            }
            return;
        }
    }
}

/// A step, again as long as room can be made for it on a full disk.
fn step(writer: &mut Writer, now_all: bool) -> Result<(), WriteError> {
    loop {
        match writer.step(Instant::now(), now_all) {
            Err(error) if writer.make_room(&error) => {}
            done => return done,
        }
    }
}

fn wait_for_work<'a>(
    mut state: MutexGuard<'a, State>,
    shared: &Shared,
    writer: &Writer,
    failing: bool,
) -> MutexGuard<'a, State> {
    let due = if failing { Some(Instant::now() + RETRY) } else { writer.due() };
    let urgent = |state: &State| state.stop || state.asked > state.made;
    loop {
        if urgent(&state) || (!failing && !state.queue.is_empty()) {
            break;
        }
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        state = match left {
            None => waited(shared.work.wait(state)),
            Some(left) if left.is_zero() => return state,
            Some(left) => waited(shared.work.wait_timeout(state, left)).0,
        };
    }
    // Gathers what comes within a moment: one write for many.
    let end = Instant::now() + writer.options().write_after;
    while !urgent(&state) && state.queue.len() < shared.queue / 2 {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        state = waited(shared.work.wait_timeout(state, left)).0;
    }
    state
}
