//! Entries of the audit log. An entry is made of ids, numbers and words from fixed lists:
//! there is nowhere to put a secret.
//!
//! The form of an entry in the log is one JSON object without blanks. The members are
//! always in the same order, and absent ones are left out. So the same entry is always
//! the same bytes, and those bytes are what is hashed.

use edgekeep_core::assurance::{Assurance, Level};
use edgekeep_core::id::{KeyId, ModuleId};
pub use edgekeep_core::key_use::{Key, Operation, Outcome, Purpose, Reason, Statement, Who};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;

/// Milliseconds are enough, and a fixed width reads well in a list.
const TIME: &[FormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Time of the event, by the device's clock.
    pub time: OffsetDateTime,
    /// The event.
    pub event: Event,
}

/// An event that the log records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody asked for something.
    Asked {
        /// The caller that asked.
        who: Who,
        /// The operation that was asked for.
        what: Operation,
        /// The key that was to be used. Absent if the key could not be told.
        key: Option<Key>,
        /// The outcome of the request.
        outcome: Outcome,
    },
    /// The same was done many times, by a uid that has used up its share of the log.
    Counted {
        /// The caller that asked.
        who: Who,
        /// The operation that was asked for.
        what: Operation,
        /// The key that was used. Absent if several keys were used.
        key: Option<Key>,
        /// The outcome that all these requests had.
        outcome: Outcome,
        /// Number of times that the same was done.
        count: u64,
        /// Time of the first of these requests. The entry's time is the time when
        /// counting ended.
        since: OffsetDateTime,
    },
    /// The device's assurance is this from here on.
    Assurance {
        /// The level, and what the next one lacks.
        assured: Assurance,
        /// The level before; absent at keyd's start.
        was: Option<Level>,
    },
    /// Something about the log itself.
    Log(LogEvent),
}

/// An event of the log itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEvent {
    /// The log was opened.
    Opened {
        /// True if the log had been closed before. If not, the newest entries may be
        /// missing.
        clean: bool,
        /// Bytes of an unfinished record that were cut off.
        cut: u64,
    },
    /// The log takes the place of one that was damaged and has been set aside.
    Replaces {
        /// The folder that has what is left of it.
        number: u32,
        /// Entries it had by its last readable checkpoint.
        size: Option<u64>,
    },
    /// The counter in hardware is ahead of the log: its newest part is missing.
    CounterAhead {
        /// Value of the counter by the log's newest checkpoint.
        recorded: u64,
        /// Value of the counter in hardware.
        counter: u64,
    },
    /// The counter in hardware was made: from here on it is compared.
    CounterMade {
        /// Its value.
        counter: u64,
    },
    /// The counter is another one than the log's: it was removed and made anew, or the
    /// hardware was exchanged. What was lost before this, if anything, does not show by
    /// it.
    CounterReplaced {
        /// Value of the counter by the log's newest checkpoint.
        recorded: u64,
        /// Value of the counter in hardware.
        counter: u64,
    },
    /// The counter cannot be read. Until it can, nothing is compared.
    CounterUnreachable,
    /// The counter is read again, or is there although the log did not count before.
    CounterBack {
        /// Value of the counter by the log's newest checkpoint, if the checkpoint carries
        /// one.
        recorded: Option<u64>,
        /// Value of the counter in hardware.
        counter: u64,
    },
    /// The log counted before, and is told not to any more.
    CounterOff,
    /// The disk is full, or was: the log has used the room that it keeps for that, and
    /// dropped its oldest part for it if it had to.
    DiskFull,
    /// Refusals came faster than they could be written, and these were not.
    Lost {
        /// Number of refusals that were not written.
        refusals: u64,
    },
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("time", &text_of(self.time)?)?;
        match &self.event {
            Event::Asked { who, what, key, outcome }
            | Event::Counted { who, what, key, outcome, .. } => {
                map.serialize_entry("uid", &who.uid)?;
                some(&mut map, "pid", who.pid)?;
                if let Some(says) = &who.says {
                    some(&mut map, "for", Some(says.module.as_str()))?;
                    some(
                        &mut map,
                        "executable",
                        says.executable.as_ref().map(ToString::to_string),
                    )?;
                }
                map.serialize_entry("what", what.word())?;
                if let Some(key) = key {
                    map.serialize_entry("key", key.id.as_str())?;
                    some(&mut map, "from", key.from.as_ref().map(KeyId::as_str))?;
                    some(&mut map, "derived", key.derived.then_some(true))?;
                    some(&mut map, "module", key.module.as_deref().map(ModuleId::as_str))?;
                    some(&mut map, "purpose", key.purpose.map(Purpose::word))?;
                }
                match outcome {
                    Outcome::Done => map.serialize_entry("result", "done")?,
                    Outcome::Failed => map.serialize_entry("result", "failed")?,
                    Outcome::Interrupted => map.serialize_entry("result", "interrupted")?,
                    Outcome::Refused(reason) => {
                        map.serialize_entry("result", "refused")?;
                        map.serialize_entry("reason", reason.word())?;
                    }
                }
                if let Event::Counted { count, since, .. } = &self.event {
                    map.serialize_entry("count", count)?;
                    map.serialize_entry("since", &text_of(*since)?)?;
                }
            }
            Event::Assurance { assured, was } => {
                map.serialize_entry("what", "assurance")?;
                map.serialize_entry("level", assured.level.word())?;
                some(&mut map, "was", was.map(Level::word))?;
                map.serialize_entry("lacks", &assured.lacks)?;
            }
            Event::Log(LogEvent::Opened { clean, cut }) => {
                map.serialize_entry("what", "log-opened")?;
                map.serialize_entry("clean", clean)?;
                some(&mut map, "cut", (*cut > 0).then_some(cut))?;
            }
            Event::Log(LogEvent::Replaces { number, size }) => {
                map.serialize_entry("what", "log-replaced")?;
                map.serialize_entry("number", number)?;
                some(&mut map, "size", *size)?;
            }
            Event::Log(LogEvent::CounterAhead { recorded, counter }) => {
                map.serialize_entry("what", "log-behind-counter")?;
                map.serialize_entry("recorded", recorded)?;
                map.serialize_entry("counter", counter)?;
            }
            Event::Log(LogEvent::CounterMade { counter }) => {
                map.serialize_entry("what", "log-counter-made")?;
                map.serialize_entry("counter", counter)?;
            }
            Event::Log(LogEvent::CounterReplaced { recorded, counter }) => {
                map.serialize_entry("what", "log-counter-replaced")?;
                map.serialize_entry("recorded", recorded)?;
                map.serialize_entry("counter", counter)?;
            }
            Event::Log(LogEvent::CounterUnreachable) => {
                map.serialize_entry("what", "log-counter-unreachable")?;
            }
            Event::Log(LogEvent::CounterBack { recorded, counter }) => {
                map.serialize_entry("what", "log-counter-back")?;
                some(&mut map, "recorded", *recorded)?;
                map.serialize_entry("counter", counter)?;
            }
            Event::Log(LogEvent::CounterOff) => map.serialize_entry("what", "log-counter-off")?,
            Event::Log(LogEvent::DiskFull) => map.serialize_entry("what", "log-disk-full")?,
            Event::Log(LogEvent::Lost { refusals }) => {
                map.serialize_entry("what", "log-lost")?;
                map.serialize_entry("refusals", refusals)?;
            }
        }
        map.end()
    }
}

fn text_of<E: serde::ser::Error>(time: OffsetDateTime) -> Result<String, E> {
    time.to_offset(time::UtcOffset::UTC).format(TIME).map_err(E::custom)
}

fn some<M: serde::ser::SerializeMap, T: Serialize>(
    map: &mut M,
    name: &str,
    value: Option<T>,
) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(name, &value))
}

/// An entry as a reader of the log sees it: entries of later versions too.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Shown {
    /// Time of the entry, RFC 3339.
    pub time: String,
    /// User id of the caller.
    pub uid: Option<u32>,
    /// Process id of the caller.
    pub pid: Option<u32>,
    /// The module on whose behalf the caller asked, as the caller says.
    #[serde(rename = "for")]
    pub behalf: Option<String>,
    /// Digest of the program that asked that uid, as it says.
    pub executable: Option<String>,
    /// The module whose derived key it is.
    pub module: Option<String>,
    /// Name of the event: the word of an [`Operation`], or `log-...`.
    pub what: String,
    /// Key id.
    pub key: Option<String>,
    /// The id before, if the key was moved.
    pub from: Option<String>,
    /// True if a key derived from this key was meant.
    pub derived: bool,
    /// Purpose of the key.
    pub purpose: Option<String>,
    /// `done`, `failed`, `interrupted`, `refused`; empty for events of the log.
    pub result: String,
    /// Reason for the refusal.
    pub reason: Option<String>,
    /// Number of uses, if more than one use is in this entry.
    pub count: Option<u64>,
    /// Time of the first of these uses.
    pub since: Option<String>,
    /// Of `log-opened`: true if the log had been closed before.
    pub clean: Option<bool>,
    /// Of `log-behind-counter` and `log-counter-...`: value of the counter by the log.
    pub recorded: Option<u64>,
    /// Of the same events: value of the counter in hardware.
    pub counter: Option<u64>,
    /// Of `log-lost`: number of refusals that were not written.
    pub refusals: Option<u64>,
    /// Of `log-replaced`: number of the folder that has the damaged log.
    pub number: Option<u32>,
    /// Of `log-replaced`: entries that the damaged log had.
    pub size: Option<u64>,
    /// Of `log-opened`: bytes that were cut off.
    pub cut: Option<u64>,
    /// Of `assurance`: the level from here on.
    pub level: Option<String>,
    /// Of `assurance`: the level before.
    pub was: Option<String>,
    /// Of `assurance`: words of what the next level lacks.
    pub lacks: Vec<String>,
}

#[cfg(test)]
mod tests {
    use edgekeep_core::assurance::Lack;
    use edgekeep_core::digest::Sha256Digest;
    use time::macros::datetime;

    use super::*;

    fn json(event: Event) -> String {
        serde_json::to_string(&Entry { time: datetime!(2026-07-01 12:00:00.0071 +2), event })
            .unwrap()
    }

    #[test]
    fn the_form_of_an_entry_is_fixed() {
        let who = Who { uid: 7, pid: Some(8), says: None };
        let mut key = Key::new("aziot_identityd_master_id".parse().unwrap());
        key.derived = true;
        key.purpose = Some(Purpose::Identity);
        let asked = |outcome| Event::Asked {
            who: who.clone(),
            what: Operation::Sign,
            key: Some(key.clone()),
            outcome,
        };
        let expected = r#"{"time":"2026-07-01T10:00:00.007Z","uid":7,"pid":8,"what":"sign","key":"aziot_identityd_master_id","derived":true,"purpose":"identity","result":"done"}"#;
        assert_eq!(json(asked(Outcome::Done)), expected);
        let refused = json(asked(Outcome::Refused(Reason::HandleOfAnotherUid)));
        assert!(
            refused.ends_with(r#""result":"refused","reason":"handle-of-another-uid"}"#),
            "{refused}"
        );
        let module: ModuleId = "thermometer".parse().unwrap();
        let says =
            Some(Box::new(Statement { module, executable: Some(Sha256Digest::new([0; 32])) }));
        let who = Who { uid: 998, pid: None, says };
        let behalf = json(Event::Asked {
            who,
            what: Operation::TpmSign,
            key: None,
            outcome: Outcome::Failed,
        });
        let (head, rest) = behalf.split_once("sha256:").unwrap();
        assert_eq!(
            head,
            r#"{"time":"2026-07-01T10:00:00.007Z","uid":998,"for":"thermometer","executable":""#
        );
        assert!(rest.ends_with(r#"00","what":"tpm-sign","result":"failed"}"#), "{rest}");
        let who = Who { uid: 7, pid: None, says: None };
        let since = datetime!(2026-07-01 11:59:30 +2);
        let (what, outcome) = (Operation::Sign, Outcome::Done);
        let counted = json(Event::Counted { who, what, key: None, outcome, count: 12, since });
        let expected = r#"{"time":"2026-07-01T10:00:00.007Z","uid":7,"what":"sign","result":"done","count":12,"since":"2026-07-01T09:59:30.000Z"}"#;
        assert_eq!(counted, expected);
        let assured =
            Assurance { level: Level::Sandboxed, lacks: vec![Lack::TpmLost, Lack::LogUnbound] };
        assert_eq!(
            json(Event::Assurance { assured, was: Some(Level::TpmResident) }),
            r#"{"time":"2026-07-01T10:00:00.007Z","what":"assurance","level":"sandboxed","was":"tpm-resident","lacks":["tpm-lost","log-unbound"]}"#
        );
        let opened = json(Event::Log(LogEvent::Opened { clean: true, cut: 0 }));
        assert_eq!(
            opened,
            r#"{"time":"2026-07-01T10:00:00.007Z","what":"log-opened","clean":true}"#
        );
    }

    #[test]
    fn the_longest_entry_is_far_below_the_limit_of_a_record() {
        let id: KeyId = "\u{22}".repeat(256).parse().unwrap();
        let mut key = Key::new(id.clone());
        key.from = Some(id);
        let module: ModuleId = "m".repeat(128).parse().unwrap();
        key.module = Some(Box::new(module.clone()));
        let says =
            Some(Box::new(Statement { module, executable: Some(Sha256Digest::new([0xff; 32])) }));
        let who = Who { uid: u32::MAX, pid: Some(u32::MAX), says };
        let outcome = Outcome::Refused(Reason::HandleOfAnotherUid);
        assert!(
            json(Event::Asked { who, what: Operation::Parameters, key: Some(key), outcome }).len()
                < 4096
        );
    }

    #[test]
    fn a_reader_sees_what_was_written_and_takes_entries_with_more_members() {
        let text = r#"{"time":"t","uid":7,"what":"sign","key":"k","result":"done","later":1}"#;
        let shown: Shown = serde_json::from_str(text).unwrap();
        assert_eq!(
            (shown.uid, shown.key.as_deref(), shown.result.as_str()),
            (Some(7), Some("k"), "done")
        );
    }
}
