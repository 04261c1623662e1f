//! The log of measurements, and the registers of the TPM that it is extended into.
//!
//! A record is on the disk before it is extended, and the one before it is extended
//! before the next is written: whatever happens, the log is one record ahead of a
//! register at most. Each writing begins with reading the registers, and
//! [`core::integrity`](edgekeep_core::integrity) decides whether the log goes on.

mod folder;
mod registers;

use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use edgekeep_base::error::chain;
use edgekeep_base::lock::lock;
use edgekeep_core::assurance::LogState;
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::integrity::{
    Admission, Allowances, Event, LogError, LogFault, LogStart, Logged, Opening, Present, Reason,
    Record, Source, Word, head_is_due, open, state_of,
};
use edgekeep_daemon::board::Board;
use edgekeep_daemon::store::{StoreError, sha256};
use edgekeep_hsm::KeyError;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use self::folder::Folder;
pub(crate) use self::registers::{Bound, Read};

/// Time for which it is shown that records were left out.
const OMITTED_SHOWN: Duration = Duration::from_secs(3600);

/// Failures to write something into the log of measurements.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntegrityError {
    #[error("cannot write the log of measurements")]
    Store(#[from] StoreError),
    #[error("cannot add to the log of measurements")]
    Append(#[source] io::Error),
    #[error("cannot extend the TPM; the record is in the log and is extended next time")]
    Extend(#[source] KeyError),
    #[error("the record is longer than records may be")]
    TooLong,
    #[error("there is no log of that number")]
    NoSuchLog,
    #[error("this caller had too many records written; the log tells how many are left out")]
    TooMany,
}

/// A log as it stands on the disk, with the registers as they are.
pub(crate) struct View {
    pub(crate) logs: Vec<u64>,
    pub(crate) number: u64,
    pub(crate) log: Vec<u8>,
    pub(crate) read: Option<Read>,
    pub(crate) is_bound: bool,
}

/// The log of measurements of this keyd.
pub(crate) struct Integrity {
    folder: Folder,
    boot_id: Word,
    bound: Option<Bound>,
    board: Board,
    /// A clock that is never set begins here.
    opened: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    allowances: Allowances,
    /// Time of the last head of the audit log; zero if keyd recorded none yet.
    headed: Duration,
    number: u64,
    last: Option<Result<Logged, LogError>>,
    /// SHA-256 of the newest log, where it cannot be read.
    damaged: Option<Sha256Digest>,
}

impl State {
    fn log(&self) -> Option<&Logged> {
        self.last.as_ref().and_then(|last| last.as_ref().ok())
    }
}

impl Integrity {
    /// Reads the newest log in `folder`. Nothing is written yet, and the TPM is not
    /// asked.
    pub(crate) fn open(
        folder: &std::path::Path,
        boot_id: Word,
        bound: Option<Bound>,
        board: Board,
    ) -> Result<Self, StoreError> {
        let folder = Folder::open(folder)?;
        let mut state = State::default();
        if let Some(number) = folder.numbers()?.last().copied() {
            state.number = number;
            match folder.read(number) {
                Ok(bytes) => {
                    let read = Logged::read(&bytes, sha256);
                    state.damaged = read.is_err().then(|| sha256(&bytes));
                    if let Ok(log) = &read
                        && log.is_cut()
                    {
                        tracing::warn!(
                            log = number,
                            "writing the log of measurements was cut short"
                        );
                        folder.truncate(number, log.whole())?;
                    }
                    state.last = Some(read);
                }
                Err(error) => {
                    tracing::error!(error = chain(&error), "the log of measurements is unreadable");
                    state.last = Some(Err(LogError { at: 0, fault: LogFault::NotCanonical }));
                }
            }
        }
        let opened = Instant::now();
        Ok(Self { folder, boot_id, bound, board, opened, state: Mutex::new(state) })
    }

    /// Records an event, unless the log says so already. Returns true if a record was
    /// written.
    pub(crate) fn add(&self, event: Event) -> Result<bool, IntegrityError> {
        let added = self.try_add(event);
        let subject = Subject::file(self.folder.path());
        match &added {
            Ok(_) => {
                let log = lock(&self.state);
                match log.log().and_then(|log| log.start().reason.finding()) {
                    Some(finding) => self.board.raise(Code::MeasurementsDiffer, &subject, finding),
                    None => self.board.clear(Code::MeasurementsDiffer, &subject),
                }
            }
            Err(IntegrityError::TooMany) => {
                let why = "a daemon told of too many starts, of which some are not in the log";
                self.board.note(Code::NotMeasured, &subject, why, OMITTED_SHOWN);
            }
            Err(error) => self.board.raise(Code::MeasurementsDiffer, &subject, chain(error)),
        }
        added
    }

    /// Records the head of the audit log, if that is due. Returns true if a record was
    /// written.
    pub(crate) fn note_head(&self, size: u64, root: &[u8; 32]) -> Result<bool, IntegrityError> {
        let now = self.opened.elapsed();
        let mut state = lock(&self.state);
        let recorded = state.log().and_then(Logged::audit_size);
        if !head_is_due(recorded, now.saturating_sub(state.headed), size) {
            return Ok(false);
        }
        state.headed = now;
        drop(state);
        self.add(Event::AuditHead { size: Word::number(size), root: Sha256Digest::new(*root) })
    }

    /// Records how many records were left out, once that can be told.
    pub(crate) fn tell_omitted(&self) -> Result<(), IntegrityError> {
        let untold = lock(&self.state).allowances.untold(self.opened.elapsed());
        for (uid, count) in untold {
            let state = &mut lock(&self.state);
            let read = self.read();
            self.settle(state, read.as_ref())?;
            self.write(state, omitted(uid, count), read.as_ref())?;
        }
        Ok(())
    }

    fn try_add(&self, event: Event) -> Result<bool, IntegrityError> {
        let mut state = lock(&self.state);
        let read = self.read();
        self.settle(&mut state, read.as_ref())?;
        if state.log().is_some_and(|log| log.says(&event)) {
            return Ok(false);
        }
        if let Some(uid) = event.speaker() {
            match state.allowances.admit(uid, self.opened.elapsed()) {
                Admission::Written => {}
                Admission::WrittenAfter { omitted: count } => {
                    self.write(&mut state, omitted(uid, count), read.as_ref())?;
                }
                Admission::Omitted => return Err(IntegrityError::TooMany),
            }
        }
        self.write(&mut state, event, read.as_ref())?;
        Ok(true)
    }

    /// Writes a record into the log that goes on, and extends it. `read` is what the
    /// registers were before.
    fn write(
        &self,
        state: &mut State,
        event: Event,
        read: Option<&Read>,
    ) -> Result<(), IntegrityError> {
        let mut record = state.log().and_then(|log| log.next(now(), event.clone(), sha256));
        if record.is_none() {
            self.begin(state, Reason::Full, read)?;
            record = state.log().and_then(|log| log.next(now(), event, sha256));
        }
        let record = record.ok_or(IntegrityError::TooLong)?;
        let number = state.number;
        let Some(Ok(log)) = &mut state.last else { return Err(IntegrityError::TooLong) };
        self.folder
            .append(number, &record.encode(), log.whole())
            .map_err(IntegrityError::Append)?;
        let digest = record.digest;
        log.push(record);
        if let Some((bound, start)) = self.bound.as_ref().zip(Some(log.start())) {
            let into = (start.pcr_base.is_some(), start.nv_base.is_some());
            bound.extend(into, &digest).map_err(IntegrityError::Extend)?;
        }
        Ok(())
    }

    /// Goes on with the log, or begins another one, and extends what is not extended yet.
    fn settle(&self, state: &mut State, read: Option<&Read>) -> Result<(), IntegrityError> {
        match open(state.last.as_ref(), &self.present(read), sha256) {
            Opening::Begin(reason) => self.begin(state, reason, read),
            Opening::Continue { pcr, nv } => {
                let (Some(log), Some(bound)) = (state.log(), &self.bound) else { return Ok(()) };
                for (at, digest) in log.digests().enumerate() {
                    bound.extend((at >= pcr, at >= nv), digest).map_err(IntegrityError::Extend)?;
                }
                Ok(())
            }
        }
    }

    fn present(&self, read: Option<&Read>) -> Present {
        Present {
            boot_id: self.boot_id.clone(),
            pcr: self.bound.as_ref().map_or(registers::UNBOUND_PCR, Bound::pcr),
            registers: read.map(|read| read.registers),
        }
    }

    fn begin(
        &self,
        state: &mut State,
        reason: Reason,
        read: Option<&Read>,
    ) -> Result<(), IntegrityError> {
        let previous = match (&state.last, state.damaged) {
            (Some(Ok(log)), _) => {
                let bytes: Vec<u8> = log.records().iter().flat_map(Record::encode).collect();
                Some(sha256(&bytes))
            }
            (_, damaged) => damaged,
        };
        let number = state.number + 1;
        let mut start = LogStart {
            log: Word::number(number),
            reason,
            boot_id: self.boot_id.clone(),
            previous,
            pcr_base: None,
            nv_index: None,
            nv_name: None,
            nv_base: None,
            resets: None,
            restarts: None,
        };
        // After `Full` the registers have moved on since they were read.
        let again = (reason == Reason::Full).then(|| self.read()).flatten();
        if let Some((bound, read)) = self.bound.as_ref().zip(again.as_ref().or(read)) {
            bound.describe(read, &mut start).map_err(IntegrityError::Extend)?;
        }
        let is_bound = start.pcr_base.is_some() || start.nv_base.is_some();
        let pcr = self.bound.as_ref().map_or(registers::UNBOUND_PCR, Bound::pcr);
        let log = Logged::begin(pcr, now(), start, sha256);
        self.folder.begin(number, &log.records()[0].encode())?;
        match reason.finding() {
            Some(finding) => tracing::error!(log = number, finding, "began a log of measurements"),
            None => tracing::info!(log = number, ?reason, is_bound, "began a log of measurements"),
        }
        let digest = log.records()[0].digest;
        let into = (log.start().pcr_base.is_some(), log.start().nv_base.is_some());
        state.number = number;
        state.last = Some(Ok(log));
        state.damaged = None;
        match &self.bound {
            Some(bound) => bound.extend(into, &digest).map_err(IntegrityError::Extend),
            None => Ok(()),
        }
    }

    /// Reads the registers; `None` if there is no TPM that can be used.
    fn read(&self) -> Option<Read> {
        let subject = Subject::device();
        match self.bound.as_ref()?.read() {
            Ok(read) => {
                match &read.complaint {
                    Some(why) => self.board.raise(Code::NotMeasured, &subject, why),
                    None => self.board.clear(Code::NotMeasured, &subject),
                }
                Some(read)
            }
            Err(error) => {
                let detail = format!("no TPM binds the log of measurements: {}", chain(&error));
                self.board.raise(Code::NotMeasured, &subject, detail);
                None
            }
        }
    }

    /// Returns the log of this number, or the newest one.
    pub(crate) fn view(&self, number: Option<u64>) -> Result<View, IntegrityError> {
        let state = lock(&self.state);
        let number = number.unwrap_or(state.number);
        let logs = self.folder.numbers()?;
        if !logs.contains(&number) {
            return Err(IntegrityError::NoSuchLog);
        }
        let log = self.folder.read(number)?;
        let is_bound = is_bound(state.log().map(Logged::start));
        Ok(View { logs, number, log, read: self.read(), is_bound })
    }

    /// The state of the newest log beside the registers as they are now. Writes nothing.
    pub(crate) fn condition(&self) -> LogState {
        let state = lock(&self.state);
        let read = self.read();
        let opening = open(state.last.as_ref(), &self.present(read.as_ref()), sha256);
        state_of(state.log().map(Logged::start), opening)
    }

    /// The numbers of the PCR and of the NV index, if they are wanted.
    pub(crate) fn registers(&self) -> (Option<u8>, Option<u32>) {
        self.bound.as_ref().map_or((None, None), Bound::numbers)
    }

    /// Returns true if a register of the TPM binds the newest log.
    pub(crate) fn is_bound(&self) -> bool {
        is_bound(lock(&self.state).log().map(Logged::start))
    }
}

fn omitted(uid: u32, count: u64) -> Event {
    Event::Omitted { count: Word::number(count), source: Source::Uid(uid) }
}

fn is_bound(start: Option<&LogStart>) -> bool {
    start.is_some_and(|it| it.pcr_base.is_some() || it.nv_base.is_some())
}

fn now() -> Word {
    let now = OffsetDateTime::now_utc();
    let text = now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default();
    Word::cleaned(&text)
}
