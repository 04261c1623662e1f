//! Signed notes (C2SP `signed-note`): text with Ed25519 signatures below it. Pure but for
//! the signer.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::sign::{CheckpointSigner, SignError};

/// Signature type of Ed25519 in key ids and verifier keys.
const ED25519_TYPE: u8 = 1;
/// Largest note that is read, in bytes.
const NOTE_LIMIT: usize = 64 * 1024;
/// Most signatures that are looked at.
const SIGNATURES: usize = 32;

/// A public key under a name, written as in Go's checksum database:
/// `<name>+<key id in hex>+<base64 of type and key>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    key: [u8; 32],
}

/// The text is no verifier key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a verifier key of the form <name>+<key id>+<base64>, with an Ed25519 key")]
pub struct InvalidKey;

/// The reason why a note was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// It is no note.
    #[error("not a signed note")]
    Malformed,
    /// The expected key did not sign it.
    #[error("not signed by {0}")]
    Unsigned(String),
    /// It claims a signature of the expected key, which is wrong.
    #[error("the signature of {0} is wrong")]
    Signature(String),
}

impl VerifierKey {
    /// A key under a name.
    ///
    /// # Errors
    /// If the name is empty or has blanks, control characters or `+`.
    pub fn new(name: &str, key: [u8; 32]) -> Result<Self, InvalidKey> {
        let fits = !name.is_empty()
            && !name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+');
        if fits { Ok(Self { name: name.to_owned(), key }) } else { Err(InvalidKey) }
    }

    /// The name, for a log its origin.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Ed25519 public key.
    #[must_use]
    pub fn public_key(&self) -> &[u8; 32] {
        &self.key
    }

    fn id(&self) -> [u8; 4] {
        let input = [self.name.as_bytes(), b"\n", &[ED25519_TYPE], &self.key].concat();
        let mut id = [0; 4];
        id.copy_from_slice(&digest(&SHA256, &input).as_ref()[..4]);
        id
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = u32::from_be_bytes(self.id());
        let key = STANDARD.encode([&[ED25519_TYPE][..], &self.key].concat());
        write!(f, "{}+{id:08x}+{key}", self.name)
    }
}

impl FromStr for VerifierKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(InvalidKey);
        };
        let key = STANDARD.decode(key).map_err(|_| InvalidKey)?;
        let [ED25519_TYPE, key @ ..] = key.as_slice() else { return Err(InvalidKey) };
        let parsed = Self::new(name, key.try_into().map_err(|_| InvalidKey)?)?;
        if id == format!("{:08x}", u32::from_be_bytes(parsed.id())) {
            Ok(parsed)
        } else {
            Err(InvalidKey)
        }
    }
}

/// `text` with the signer's signature below it. The text ends with a newline.
///
/// # Errors
/// If the signer fails.
pub fn sign(
    text: &str,
    name: &VerifierKey,
    signer: &dyn CheckpointSigner,
) -> Result<String, SignError> {
    let signature = signer.sign(text.as_bytes())?;
    let line = STANDARD.encode([&name.id()[..], &signature].concat());
    Ok(format!("{text}\n\u{2014} {} {line}\n", name.name))
}

/// The text of a note that `key` signed.
///
/// # Errors
/// See [`NoteError`].
pub fn open<'a>(note: &'a str, key: &VerifierKey) -> Result<&'a str, NoteError> {
    if note.len() > NOTE_LIMIT || note.chars().any(|c| c < ' ' && c != '\n') {
        return Err(NoteError::Malformed);
    }
    let end = note.rfind("\n\n").ok_or(NoteError::Malformed)? + 1;
    let (text, lines) = (&note[..end], &note[end + 1..]);
    let lines = lines.strip_suffix('\n').ok_or(NoteError::Malformed)?;
    let mut signed = false;
    for (number, line) in lines.split('\n').enumerate() {
        let (name, signature) = line
            .strip_prefix("\u{2014} ")
            .and_then(|rest| rest.split_once(' '))
            .ok_or(NoteError::Malformed)?;
        let signature = STANDARD.decode(signature).map_err(|_| NoteError::Malformed)?;
        if number >= SIGNATURES || name.is_empty() || signature.len() < 5 {
            return Err(NoteError::Malformed);
        }
        let (id, signature) = signature.split_at(4);
        if name != key.name || id != key.id() {
            continue;
        }
        UnparsedPublicKey::new(&ED25519, &key.key)
            .verify(text.as_bytes(), signature)
            .map_err(|_| NoteError::Signature(key.name.clone()))?;
        signed = true;
    }
    if signed { Ok(text) } else { Err(NoteError::Unsigned(key.name.clone())) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sign::SoftwareSigner;

    /// Key and signature that the tests of Go's `note` package publish.
    const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const SEED: &str = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    const TEXT: &str = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
    const SIGNATURE: &str = "\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    fn signer() -> SoftwareSigner {
        SoftwareSigner::from_seed(STANDARD.decode(SEED).unwrap()[1..].try_into().unwrap()).unwrap()
    }

    #[test]
    fn notes_are_the_same_as_another_implementation_makes() {
        let key: VerifierKey = KEY.parse().unwrap();
        assert_eq!(key.to_string(), KEY);
        assert_eq!(key, VerifierKey::new("PeterNeumann", signer().public_key()).unwrap());
        let note = sign(TEXT, &key, &signer()).unwrap();
        assert_eq!(note, format!("{TEXT}\n{SIGNATURE}"));
        assert_eq!(open(&note, &key), Ok(TEXT));
    }

    #[test]
    fn signatures_of_others_are_passed_over_and_bad_ones_of_ours_are_not() {
        let key: VerifierKey = KEY.parse().unwrap();
        let other = "\u{2014} EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n";
        assert_eq!(open(&format!("{TEXT}\n{other}{SIGNATURE}"), &key), Ok(TEXT));
        assert_eq!(
            open(&format!("{TEXT}\n{other}"), &key),
            Err(NoteError::Unsigned("PeterNeumann".into()))
        );
        let wrong = SIGNATURE.replace("ZJkuBS9UG", "ZJkuBS8UG");
        assert_eq!(
            open(&format!("{TEXT}\n{SIGNATURE}{wrong}"), &key),
            Err(NoteError::Signature("PeterNeumann".into()))
        );
        let shifted = format!("more\n{TEXT}\n{SIGNATURE}");
        assert_eq!(open(&shifted, &key), Err(NoteError::Signature("PeterNeumann".into())));
    }

    #[test]
    fn malformed_notes_and_keys_are_refused() {
        let key: VerifierKey = KEY.parse().unwrap();
        for note in [
            TEXT.to_owned(),
            format!("{TEXT}\n"),
            format!("{TEXT}\n{}", SIGNATURE.trim_end()),
            format!("\u{1}{TEXT}\n{SIGNATURE}"),
            format!("{TEXT}\n{SIGNATURE}more\n"),
            format!("{TEXT}\n{}", SIGNATURE.repeat(33)),
        ] {
            assert_eq!(open(&note, &key), Err(NoteError::Malformed), "{note:?}");
        }
        for text in [
            "",
            "a",
            "a+b",
            "a+00000000+AQ==",
            &KEY.replace("c74f", "c74e"),
            &KEY.replace("Peter", "P ter"),
        ] {
            assert_eq!(text.parse::<VerifierKey>(), Err(InvalidKey), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_note_with_any_character_changed_is_refused(at in any::<prop::sample::Index>(), to in "[ -~]") {
            let key: VerifierKey = KEY.parse().unwrap();
            let note: Vec<char> = format!("{TEXT}\n{SIGNATURE}").chars().collect();
            let mut changed = note.clone();
            changed[at.index(note.len())] = to.chars().next().unwrap();
            prop_assume!(changed != note);
            let changed: String = changed.into_iter().collect();
            prop_assert!(open(&changed, &key).is_err());
        }
    }
}
