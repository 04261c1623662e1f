//! Checkpoints (C2SP `tlog-checkpoint`): the statement of a log about itself at one size.
//! Pure.
//!
//! Beyond origin, size and root there are extension lines, covered by the signature like
//! the rest: `first <size> <root>` states the prefix that rotation has dropped (nothing:
//! size 0), `time <RFC 3339>` when it was signed, `counter <n>` the value of a counter in
//! hardware.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::note::{self, NoteError, VerifierKey};
use crate::sign::{CheckpointSigner, SignError};
use crate::tree::{Frontier, Hash};

/// A log's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name, which is also that of its key.
    pub origin: String,
    /// Entries in the log, dropped ones included.
    pub size: u64,
    /// Head of the tree over them.
    pub root: Hash,
    /// Entries that rotation may have dropped from the beginning.
    pub first: u64,
    /// Head of the tree over those.
    pub first_root: Hash,
    /// Time at which the checkpoint was signed, by the device's clock; `None` if the note
    /// states none.
    pub time: Option<OffsetDateTime>,
    /// The hardware counter's value.
    pub counter: Option<u64>,
}

/// The reason why a text is not an acceptable checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The note is not acceptable.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The note is signed, but is no checkpoint.
    #[error("the signed text is no checkpoint of an audit log")]
    Content,
    /// The key is that of another log.
    #[error("the checkpoint is of the log {found}, the key of {expected}")]
    Origin {
        /// Name of the log that the checkpoint states.
        found: String,
        /// Name of the log that the key belongs to.
        expected: String,
    },
}

impl Checkpoint {
    /// The text that is signed.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.origin, self.size, self.root);
        text.push_str(&format!("first {} {}\n", self.first, self.first_root));
        if let Some(time) = self.time.and_then(|time| time.format(&Rfc3339).ok()) {
            text.push_str(&format!("time {time}\n"));
        }
        if let Some(counter) = self.counter {
            text.push_str(&format!("counter {counter}\n"));
        }
        text
    }

    /// Reads the text of a note. Extension lines of others are passed over.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        let origin = lines.next().filter(|origin| !origin.is_empty())?.to_owned();
        let size = number(lines.next()?)?;
        let root = Hash::from_base64(lines.next()?)?;
        let mut parsed = Self {
            origin,
            size,
            root,
            first: 0,
            first_root: Frontier::default().root(),
            time: None,
            counter: None,
        };
        for line in lines {
            match line.split_once(' ') {
                None if line.is_empty() => return None,
                Some(("first", rest)) => {
                    let (first, root) = rest.split_once(' ')?;
                    (parsed.first, parsed.first_root) = (number(first)?, Hash::from_base64(root)?);
                }
                Some(("time", rest)) => {
                    parsed.time = Some(OffsetDateTime::parse(rest, &Rfc3339).ok()?);
                }
                Some(("counter", rest)) => parsed.counter = Some(number(rest)?),
                _ => {}
            }
        }
        (parsed.first <= parsed.size).then_some(parsed)
    }

    /// The signed note.
    ///
    /// # Errors
    /// If the signer fails.
    pub fn sign(
        &self,
        key: &VerifierKey,
        signer: &dyn CheckpointSigner,
    ) -> Result<String, SignError> {
        note::sign(&self.text(), key, signer)
    }

    /// Reads a note that `key` signed.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn open(note: &str, key: &VerifierKey) -> Result<Self, CheckpointError> {
        let checkpoint = Self::parse(note::open(note, key)?).ok_or(CheckpointError::Content)?;
        if checkpoint.origin == key.name() {
            Ok(checkpoint)
        } else {
            Err(CheckpointError::Origin {
                found: checkpoint.origin,
                expected: key.name().to_owned(),
            })
        }
    }
}

/// A decimal number without leading zeros.
fn number(text: &str) -> Option<u64> {
    let plain =
        text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tree::leaf_hash;

    #[test]
    fn the_example_of_the_format_is_read_and_lines_of_others_are_passed_over() {
        let text =
            "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
        let parsed = Checkpoint::parse(text).unwrap();
        assert_eq!(
            (parsed.origin.as_str(), parsed.size, parsed.first),
            ("example.com/behind-the-sofa", 20_852_163, 0)
        );
        assert_eq!(Checkpoint::parse(&format!("{text}something else\n")), Some(parsed));
    }

    #[test]
    fn texts_of_another_form_are_no_checkpoints() {
        let root = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";
        for text in [
            String::new(),
            "a\n1\n".to_owned(),
            format!("\n1\n{root}\n"),
            format!("a\n01\n{root}\n"),
            format!("a\n+1\n{root}\n"),
            format!("a\n-1\n{root}\n"),
            format!("a\n\n{root}\n"),
            format!("a\n1\n{root}"),
            format!("a\n1\n{}\n", &root[4..]),
            format!("a\n1\n{root}\n\n"),
            format!("a\n1\n{root}\nfirst 2 {root}\n"),
            format!("a\n1\n{root}\nfirst 1\n"),
            format!("a\n1\n{root}\ncounter x\n"),
        ] {
            assert_eq!(Checkpoint::parse(&text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            first in 0..1000_u64, more in 0..u64::MAX - 1000, counter in prop::option::of(any::<u64>()), seconds in 0..4_000_000_000_i64,
        ) {
            let checkpoint = Checkpoint {
                origin: "edgekeep/audit/1".into(),
                size: first + more,
                root: leaf_hash(b"a"),
                first,
                first_root: leaf_hash(b"b"),
                time: OffsetDateTime::from_unix_timestamp(seconds).ok(),
                counter,
            };
            prop_assert_eq!(Checkpoint::parse(&checkpoint.text()), Some(checkpoint));
        }
    }
}
