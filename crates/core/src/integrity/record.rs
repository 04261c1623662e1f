//! One record: its content, and the one way to write it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Hash;
use super::open::Reason;
use crate::digest::Sha256Digest;

/// A short text of printable ASCII without blanks, quotes and backslashes: every writer
/// of JSON writes it in the same way.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Word(String);

/// The error for a text that is no [`Word`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to 256 printable ASCII characters without blanks, quotes and backslashes")]
pub struct WordError;

impl Word {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A number, in decimal.
    #[must_use]
    pub fn number(number: u64) -> Self {
        Self(number.to_string())
    }

    /// A text with every character that a word cannot have replaced by `_`, and without
    /// what is too long.
    #[must_use]
    pub fn cleaned(text: &str) -> Self {
        let text: String =
            text.chars().take(256).map(|it| if fits(it) { it } else { '_' }).collect();
        Self(if text.is_empty() { "_".to_owned() } else { text })
    }
}

fn fits(character: char) -> bool {
    character.is_ascii_graphic() && character != '"' && character != '\\'
}

impl FromStr for Word {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        if (1..=256).contains(&text.len()) && text.chars().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(WordError)
        }
    }
}

impl TryFrom<String> for Word {
    type Error = WordError;

    fn try_from(text: String) -> Result<Self, WordError> {
        text.parse()
    }
}

impl From<Word> for String {
    fn from(word: Word) -> Self {
        word.0
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The beginning of a log: what it follows, and the registers that it is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStart {
    /// The number of the log, from 1 on.
    pub log: Word,
    /// The reason why a new log was begun.
    pub reason: Reason,
    /// The kernel's id of this boot.
    pub boot_id: Word,
    /// SHA-256 of the log before, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Sha256Digest>,
    /// The PCR's value before this record; absent if the log extends none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcr_base: Option<Sha256Digest>,
    /// The NV index, in hexadecimal; absent if the log extends none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nv_index: Option<Word>,
    /// The name of the index before it was written in this boot: the digest of its
    /// number, attributes and policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nv_name: Option<Sha256Digest>,
    /// The index's value before this record; zeros if the index was not written since
    /// the TPM's last reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nv_base: Option<Sha256Digest>,
    /// The TPM's count of its resets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets: Option<Word>,
    /// The TPM's count of its restarts since the last reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<Word>,
}

/// The source of a measurement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Word", try_from = "Word")]
pub enum Source {
    /// keyd measured it itself.
    Keyd,
    /// A caller of this uid said so. The kernel tells the uid.
    Uid(u32),
}

impl From<Source> for Word {
    fn from(source: Source) -> Self {
        match source {
            Source::Keyd => Self("keyd".to_owned()),
            Source::Uid(uid) => Self(format!("uid:{uid}")),
        }
    }
}

impl TryFrom<Word> for Source {
    type Error = WordError;

    fn try_from(word: Word) -> Result<Self, WordError> {
        match word.0.strip_prefix("uid:") {
            Some(uid) => uid.parse().map(Self::Uid).map_err(|_| WordError),
            None if word.0 == "keyd" => Ok(Self::Keyd),
            None => Err(WordError),
        }
    }
}

/// The things that are recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The first record of each log, and of no other place.
    LogStart(LogStart),
    /// A daemon is about to serve.
    DaemonStart {
        /// The daemon's name.
        daemon: Word,
        /// SHA-256 of its executable.
        executable: Sha256Digest,
        /// SHA-256 of the settings in force, as JSON without secrets.
        settings: Sha256Digest,
        /// The version that it says it is.
        version: Word,
        /// The source of this.
        source: Source,
    },
    /// A module was made.
    ModuleCreate {
        /// The module's id.
        module: Word,
        /// SHA-256 of the image's configuration; absent for a program of the host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<Sha256Digest>,
        /// SHA-256 of the options that it was made with.
        options: Sha256Digest,
        /// The source of this.
        source: Source,
    },
    /// A module is about to be started.
    ModuleStart {
        /// The module's id.
        module: Word,
        /// SHA-256 of the image's configuration; absent for a program of the host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<Sha256Digest>,
        /// SHA-256 of the executable of its first process, where it was measured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        executable: Option<Sha256Digest>,
        /// The source of this.
        source: Source,
    },
    /// Records were left out: there were too many.
    Omitted {
        /// Their number since this was recorded last.
        count: Word,
        /// The source of these records.
        source: Source,
    },
    /// The head of the audit log.
    AuditHead {
        /// The number of its entries.
        size: Word,
        /// The root of its tree.
        root: Sha256Digest,
    },
}

/// The thing that a record is about: a newer record of the same takes the place of an
/// older one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The log itself.
    Log,
    /// A daemon.
    Daemon(Word),
    /// The making of a module.
    Created(Word),
    /// The start of a module.
    Started(Word),
    /// Records that were left out.
    Omitted,
    /// The audit log.
    Audit,
}

impl Event {
    /// Returns the thing that the event is about.
    #[must_use]
    pub fn subject(&self) -> Subject {
        match self {
            Self::LogStart(_) => Subject::Log,
            Self::DaemonStart { daemon, .. } => Subject::Daemon(daemon.clone()),
            Self::ModuleCreate { module, .. } => Subject::Created(module.clone()),
            Self::ModuleStart { module, .. } => Subject::Started(module.clone()),
            Self::Omitted { .. } => Subject::Omitted,
            Self::AuditHead { .. } => Subject::Audit,
        }
    }

    /// Returns true if the same once more is another event: a count is of its own time.
    #[must_use]
    pub fn counts(&self) -> bool {
        matches!(self, Self::Omitted { .. })
    }

    /// Returns the uid of the caller who said so, if a caller did.
    #[must_use]
    pub fn speaker(&self) -> Option<u32> {
        match self {
            Self::DaemonStart { source, .. }
            | Self::ModuleCreate { source, .. }
            | Self::ModuleStart { source, .. }
            | Self::Omitted { source, .. } => match source {
                Source::Uid(uid) => Some(*uid),
                Source::Keyd => None,
            },
            Self::LogStart(_) | Self::AuditHead { .. } => None,
        }
    }
}

/// The content of a record: what is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Time by the device's clock, as RFC 3339 has it.
    pub time: Word,
    /// The thing that is recorded.
    #[serde(flatten)]
    pub event: Event,
}

impl Content {
    /// The bytes that are hashed: one JSON object with its members by name, all of them
    /// texts, and no blanks.
    #[must_use]
    pub fn canonical(&self) -> String {
        let members: BTreeMap<String, Value> = match serde_json::to_value(self) {
            Ok(Value::Object(members)) => members.into_iter().collect(),
            // Neither has a member that JSON cannot say.
            _ => BTreeMap::new(),
        };
        serde_json::to_string(&members).unwrap_or_default()
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number in the log, from 0 on.
    pub number: u64,
    /// The PCR that it is extended into.
    pub pcr: u8,
    /// SHA-256 of its content: what is extended.
    pub digest: Sha256Digest,
    /// Its content.
    pub content: Content,
}

/// A record as JSON.
#[derive(Deserialize)]
struct Written {
    recnum: u64,
    pcr: u8,
    digests: Vec<WrittenDigest>,
    content: Content,
}

#[derive(Deserialize)]
struct WrittenDigest {
    digest: Sha256Digest,
}

impl Record {
    /// The byte before each record.
    pub const BEGIN: u8 = 0x1e;

    /// A record of this content.
    #[must_use]
    pub fn new(number: u64, pcr: u8, content: Content, hash: Hash) -> Self {
        let digest = hash(content.canonical().as_bytes());
        Self { number, pcr, digest, content }
    }

    /// The record as JSON, without what stands before and after it in a log.
    #[must_use]
    pub fn json(&self) -> String {
        format!(
            "{{\"recnum\":{},\"pcr\":{},\"digests\":[{{\"hashAlg\":\"sha256\",\"digest\":\"{}\"}}],\
             \"content_type\":\"edgekeep\",\"content\":{}}}",
            self.number,
            self.pcr,
            self.digest.hex(),
            self.content.canonical()
        )
    }

    /// The record as it stands in a log.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let json = self.json();
        let mut line = Vec::with_capacity(json.len() + 2);
        line.push(Self::BEGIN);
        line.extend_from_slice(json.as_bytes());
        line.push(b'\n');
        line
    }

    /// Reads a record's JSON. `None` if it is not written as [`Record::json`] writes it.
    /// The digest is not compared with the content.
    #[must_use]
    pub fn decode(json: &[u8]) -> Option<Self> {
        let written: Written = serde_json::from_slice(json).ok()?;
        let [digest] = &written.digests[..] else { return None };
        let record = Self {
            number: written.recnum,
            pcr: written.pcr,
            digest: digest.digest,
            content: written.content,
        };
        (record.json().as_bytes() == json).then_some(record)
    }
}
