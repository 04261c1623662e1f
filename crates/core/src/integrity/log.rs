//! Reading a log: every record in its place, or the first fault.

use super::record::{Event, LogStart, Record};
use super::{Hash, Word};
use crate::digest::Sha256Digest;

/// Longest record, in bytes.
pub const RECORD_LIMIT: usize = 2048;
/// Most records of one log.
pub const RECORDS_LIMIT: usize = 8192;
/// Longest log, in bytes.
pub const SIZE_LIMIT: usize = 4 << 20;

/// The fault of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogFault {
    /// A line is not written as records are.
    #[error("it is not written as records are")]
    NotCanonical,
    /// A number is missing, or there twice, or in another place.
    #[error("its number is not the next one")]
    Number,
    /// A record is of another PCR than the first one.
    #[error("it is of another PCR than the first record")]
    Register,
    /// A digest is not that of the content.
    #[error("its digest is not that of its content")]
    Digest,
    /// The first record does not begin a log.
    #[error("it does not begin a log")]
    NoStart,
    /// A record that begins a log stands within.
    #[error("it begins another log")]
    SecondStart,
    /// The log is longer than any that is written.
    #[error("the log is longer than any that is written")]
    TooLong,
}

/// A log that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("record {at}: {fault}")]
pub struct LogError {
    /// The place of the record, from 0 on.
    pub at: usize,
    /// The fault.
    pub fault: LogFault,
}

/// A log that was read: at least its first record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    records: Vec<Record>,
    /// The bytes of whole records.
    whole: usize,
    /// True if a record's beginning stands at the end: writing it was cut short.
    cut: bool,
}

impl Logged {
    /// Reads a log. A last line without an end is left out, and told by
    /// [`Logged::is_cut`].
    ///
    /// # Errors
    /// The first record that is out of place.
    pub fn read(bytes: &[u8], hash: Hash) -> Result<Self, LogError> {
        let mut records: Vec<Record> = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let at = records.len();
            let fault = |fault| LogError { at, fault };
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            if at >= RECORDS_LIMIT || bytes.len() > SIZE_LIMIT {
                return Err(fault(LogFault::TooLong));
            }
            let json = line.strip_prefix(&[Record::BEGIN]).filter(|it| it.len() <= RECORD_LIMIT);
            let record =
                json.and_then(Record::decode).ok_or_else(|| fault(LogFault::NotCanonical))?;
            check(&record, records.first(), at, hash).map_err(fault)?;
            records.push(record);
            rest = after;
        }
        if records.is_empty() {
            return Err(LogError { at: 0, fault: LogFault::NoStart });
        }
        Ok(Self { records, whole: bytes.len() - rest.len(), cut: !rest.is_empty() })
    }

    /// A log that begins now.
    #[must_use]
    pub fn begin(pcr: u8, time: Word, start: LogStart, hash: Hash) -> Self {
        let content = super::Content { time, event: Event::LogStart(start) };
        let record = Record::new(0, pcr, content, hash);
        let whole = record.encode().len();
        Self { records: vec![record], whole, cut: false }
    }

    /// The records.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The log's beginning.
    #[must_use]
    pub fn start(&self) -> &LogStart {
        match &self.records[0].content.event {
            Event::LogStart(start) => start,
            // Reading and beginning both see to it.
            _ => unreachable!("a log begins with its start"),
        }
    }

    /// The PCR that the records are of.
    #[must_use]
    pub fn pcr(&self) -> u8 {
        self.records[0].pcr
    }

    /// The digests that are extended, in their order.
    pub fn digests(&self) -> impl Iterator<Item = &Sha256Digest> + Clone {
        self.records.iter().map(|record| &record.digest)
    }

    /// The number of bytes of the whole records.
    #[must_use]
    pub fn whole(&self) -> usize {
        self.whole
    }

    /// True if a record's beginning stands at the end.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// Returns true if a record of this event would say nothing new: the last one of the
    /// same subject says the same.
    #[must_use]
    pub fn says(&self, event: &Event) -> bool {
        if event.counts() {
            return false;
        }
        let subject = event.subject();
        self.records
            .iter()
            .rev()
            .map(|record| &record.content.event)
            .find(|it| it.subject() == subject)
            .is_some_and(|last| last == event)
    }

    /// The number of entries of the audit log by its last head in this log.
    #[must_use]
    pub fn audit_size(&self) -> Option<u64> {
        self.records.iter().rev().find_map(|record| match &record.content.event {
            Event::AuditHead { size, .. } => size.as_str().parse().ok(),
            _ => None,
        })
    }

    /// The next record, of this event; `None` if the log is full.
    #[must_use]
    pub fn next(&self, time: Word, event: Event, hash: Hash) -> Option<Record> {
        let number = u64::try_from(self.records.len()).ok()?;
        let record = Record::new(number, self.pcr(), super::Content { time, event }, hash);
        let size = record.encode().len();
        let fits = self.records.len() < RECORDS_LIMIT
            && size <= RECORD_LIMIT
            && self.whole + size <= SIZE_LIMIT;
        fits.then_some(record)
    }

    /// Takes the record that [`Logged::next`] made, once it is written.
    pub fn push(&mut self, record: Record) {
        self.whole += record.encode().len();
        self.cut = false;
        self.records.push(record);
    }
}

fn check(record: &Record, first: Option<&Record>, at: usize, hash: Hash) -> Result<(), LogFault> {
    let is_start = matches!(record.content.event, Event::LogStart(_));
    match first {
        None if !is_start => return Err(LogFault::NoStart),
        Some(_) if is_start => return Err(LogFault::SecondStart),
        Some(first) if first.pcr != record.pcr => return Err(LogFault::Register),
        _ => {}
    }
    if usize::try_from(record.number) != Ok(at) {
        return Err(LogFault::Number);
    }
    if hash(record.content.canonical().as_bytes()) != record.digest {
        return Err(LogFault::Digest);
    }
    Ok(())
}
