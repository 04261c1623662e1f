//! Key handles: opaque to clients, passed between daemons, valid across restarts (wire
//! facts 5.4).
//!
//! `sr=<base64>&sig=<base64>`: `sr` is JSON that names a key and holds a nonce; `sig` is
//! HMAC-SHA256 over that JSON under a key that only this keyd has. The format is that of
//! existing services; what ours says beyond theirs, for whom it was made, for what and
//! until when, is in further members, which clients pass through. Its end is counted from
//! the machine's boot, and holds for that boot alone. What follows from it is decided in
//! [`edgekeep_core::key_use::Policy`].

use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_api::keyd::KeyHandle;
use edgekeep_core::clock::{BootId, Deadline};
use edgekeep_core::id::KeyId;
use edgekeep_core::key_use::{Binding, Named, Purpose, Target};
use edgekeep_hsm::SecretBytes;
use serde::{Deserialize, Serialize};

/// Random bytes that make each handle another text.
const NONCE_LEN: usize = 64;
/// Longest derivation data, in bytes. It travels within the handle, four characters a
/// byte.
pub const DERIVATION_DATA_LIMIT: usize = 8 * 1024;

/// The text is no handle that this keyd made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("parameter \"handle\" has an invalid value")]
pub struct InvalidHandle;

/// The reason why no handle was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The base handle is not one of this keyd.
    #[error(transparent)]
    Base(#[from] InvalidHandle),
    /// The base is a key pair, or itself derived.
    #[error("keys are derived from symmetric keys only, and not from derived ones")]
    BaseKind,
    /// The derivation data is too long.
    #[error("derivationData is longer than {DERIVATION_DATA_LIMIT} bytes")]
    LongData,
    /// The cryptographic library failed.
    #[error("no random numbers")]
    Random,
}

/// Makes handles, and tells its own from others.
pub struct Handles {
    key: hmac::Key,
}

/// `sr`.
#[derive(Serialize, Deserialize)]
struct Signed {
    key_id: NamedKey,
    nonce: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    purpose: Option<String>,
    /// The boot that `until` is counted from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
    /// Seconds. Earlier versions had a time of the wall clock instead, under another
    /// name: their handles are over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
}

#[derive(Serialize, Deserialize)]
enum NamedKey {
    KeyPair(String),
    Key(String),
    /// Base handle and derivation data.
    Derived(String, Vec<u8>),
}

impl Handles {
    /// `key` is the handle validation key.
    #[must_use]
    pub fn new(key: &SecretBytes) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key.expose()) }
    }

    /// A handle to a key pair.
    ///
    /// # Errors
    /// If there are no random numbers.
    pub fn pair(&self, id: &KeyId, binding: &Binding) -> Result<KeyHandle, IssueError> {
        self.sign(NamedKey::KeyPair(id.as_str().to_owned()), binding)
    }

    /// A handle to a symmetric key.
    ///
    /// # Errors
    /// If there are no random numbers.
    pub fn symmetric(&self, id: &KeyId, binding: &Binding) -> Result<KeyHandle, IssueError> {
        self.sign(NamedKey::Key(id.as_str().to_owned()), binding)
    }

    /// A handle to the key derived from that of `base` for `data`. What `base` is bound
    /// to plays no part any more.
    ///
    /// # Errors
    /// If `base` is not a handle to a symmetric key, or the data is too long.
    pub fn derived(
        &self,
        base: &KeyHandle,
        data: Vec<u8>,
        binding: &Binding,
    ) -> Result<KeyHandle, IssueError> {
        if data.len() > DERIVATION_DATA_LIMIT {
            return Err(IssueError::LongData);
        }
        match self.open(base)?.target {
            Target::Symmetric(_) => self.sign(NamedKey::Derived(base.0.clone(), data), binding),
            Target::Pair(_) | Target::Derived { .. } => Err(IssueError::BaseKind),
        }
    }

    fn sign(&self, key_id: NamedKey, binding: &Binding) -> Result<KeyHandle, IssueError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| IssueError::Random)?;
        let signed = Signed {
            key_id,
            nonce: STANDARD.encode(nonce),
            uid: Some(binding.uid),
            purpose: binding.purpose.map(|purpose| purpose.word().to_owned()),
            boot: Some(binding.until.boot.hex()),
            until: Some(binding.until.seconds),
        };
        // Texts and numbers: this cannot fail.
        let json = serde_json::to_vec(&signed).map_err(|_| IssueError::Random)?;
        let sig = hmac::sign(&self.key, &json);
        Ok(KeyHandle(format!("sr={}&sig={}", STANDARD.encode(json), STANDARD.encode(sig))))
    }

    /// Returns what `handle` names.
    ///
    /// # Errors
    /// If it is not a handle that this keyd made.
    pub fn open(&self, handle: &KeyHandle) -> Result<Named, InvalidHandle> {
        let id = |text: String| text.parse::<KeyId>().map_err(|_| InvalidHandle);
        let signed = self.verify(&handle.0)?;
        let target = match signed.key_id {
            NamedKey::KeyPair(text) => Target::Pair(id(text)?),
            NamedKey::Key(text) => Target::Symmetric(id(text)?),
            NamedKey::Derived(base, data) => match self.verify(&base)?.key_id {
                NamedKey::Key(text) => Target::Derived { base: id(text)?, data },
                NamedKey::KeyPair(_) | NamedKey::Derived(..) => return Err(InvalidHandle),
            },
        };
        let purpose = match signed.purpose {
            None => None,
            Some(word) => {
                let known = Purpose::ALL.iter().find(|purpose| purpose.word() == word);
                Some(*known.ok_or(InvalidHandle)?)
            }
        };
        let binding = match (signed.uid, signed.boot, signed.until) {
            (Some(uid), Some(boot), Some(seconds)) => {
                let boot = BootId::parse(&boot).ok_or(InvalidHandle)?;
                Some(Binding { uid, purpose, until: Deadline { boot, seconds } })
            }
            (_, None, None) => None,
            _ => return Err(InvalidHandle),
        };
        Ok(Named { target, binding })
    }

    /// Returns the content of the handle, once the handle is known to be ours. Before
    /// that check only base64 is parsed.
    fn verify(&self, handle: &str) -> Result<Signed, InvalidHandle> {
        let (mut sr, mut sig) = (None, None);
        for part in handle.split('&') {
            let (value, slot) = match (part.strip_prefix("sr="), part.strip_prefix("sig=")) {
                (Some(value), _) => (value, &mut sr),
                (None, Some(value)) => (value, &mut sig),
                (None, None) => return Err(InvalidHandle),
            };
            let decoded = STANDARD.decode(value).map_err(|_| InvalidHandle)?;
            if slot.replace(decoded).is_some() {
                return Err(InvalidHandle);
            }
        }
        let (sr, sig) = (sr.ok_or(InvalidHandle)?, sig.ok_or(InvalidHandle)?);
        hmac::verify(&self.key, &sr, &sig).map_err(|_| InvalidHandle)?;
        serde_json::from_slice(&sr).map_err(|_| InvalidHandle)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNTIL: Deadline = Deadline { boot: BootId::from_bytes([0xb0; 16]), seconds: 90_000 };
    const BINDING: Binding = Binding { uid: 7, purpose: Some(Purpose::Identity), until: UNTIL };

    fn handles(key: u8) -> Handles {
        Handles::new(&vec![key; 32].into())
    }

    fn id(text: &str) -> KeyId {
        text.parse().unwrap()
    }

    fn bound(target: Target) -> Named {
        Named { target, binding: Some(BINDING) }
    }

    /// A handle as `sr` and `sig` make it up, whoever knows the key.
    fn signed(key: u8, sr: &str) -> KeyHandle {
        let sig = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[key; 32]), sr.as_bytes());
        KeyHandle(format!("sr={}&sig={}", STANDARD.encode(sr), STANDARD.encode(sig)))
    }

    #[test]
    fn the_text_is_the_one_that_existing_services_make_with_our_members_behind() {
        let handle = handles(1).symmetric(&id("device-id"), &BINDING).unwrap();
        let (sr, sig) = handle.0.strip_prefix("sr=").unwrap().split_once("&sig=").unwrap();
        let sr = STANDARD.decode(sr).unwrap();
        let expected = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]), &sr);
        assert_eq!(STANDARD.decode(sig).unwrap(), expected.as_ref());
        let sr = String::from_utf8(sr).unwrap();
        let (nonce, ours) = sr
            .strip_prefix(r#"{"key_id":{"Key":"device-id"},"nonce":""#)
            .unwrap()
            .split_once('"')
            .unwrap();
        let boot = "b0".repeat(16);
        assert_eq!(
            ours,
            format!(r#","uid":7,"purpose":"identity","boot":"{boot}","until":90000}}"#)
        );
        assert_eq!(STANDARD.decode(nonce).unwrap().len(), 64);
    }

    #[test]
    fn a_derived_handle_holds_its_base_handle_and_the_data_as_numbers() {
        let base = handles(1).symmetric(&id("k"), &BINDING).unwrap();
        let derived = handles(1).derived(&base, vec![0, 255], &BINDING).unwrap();
        let sr = derived.0.strip_prefix("sr=").unwrap().split_once('&').unwrap().0;
        let sr: serde_json::Value = serde_json::from_slice(&STANDARD.decode(sr).unwrap()).unwrap();
        assert_eq!(sr["key_id"], serde_json::json!({"Derived": [base.0, [0, 255]]}));
        assert_eq!(
            handles(1).open(&derived),
            Ok(bound(Target::Derived { base: id("k"), data: vec![0, 255] }))
        );
    }

    #[test]
    fn parts_may_come_in_either_order_and_nothing_may_come_beside_them() {
        let handle = handles(1).pair(&id("p"), &BINDING).unwrap().0;
        let (sr, sig) = handle.split_once('&').unwrap();
        let open = |text: String| handles(1).open(&KeyHandle(text));
        assert_eq!(open(format!("{sig}&{sr}")), Ok(bound(Target::Pair(id("p")))));
        for text in [
            String::new(),
            "&".to_owned(),
            sr.to_owned(),
            sig.to_owned(),
            format!("{handle}&{sr}"),
            format!("{handle}&se=1"),
            format!("{sr}&sig="),
            format!("{handle}\n"),
            handle.replace('=', "%3D"),
        ] {
            assert_eq!(open(text.clone()), Err(InvalidHandle), "{text:?}");
        }
    }

    #[test]
    fn handles_of_another_keyd_and_forged_ones_are_invalid() {
        let handle = handles(2).symmetric(&id("k"), &BINDING).unwrap();
        assert_eq!(handles(1).open(&handle), Err(InvalidHandle));
        // A base of another keyd within a handle of this one: only a bug could have
        // signed it, and it opens nothing.
        let sr = format!(r#"{{"key_id":{{"Derived":["{}",[1]]}},"nonce":""}}"#, handle.0);
        assert_eq!(handles(1).open(&signed(1, &sr)), Err(InvalidHandle));
        for sr in [
            "",
            "{}",
            r#"{"key_id":{"Key":""},"nonce":""}"#,
            r#"{"key_id":{"Key":"a b"},"nonce":""}"#,
        ] {
            assert_eq!(handles(1).open(&signed(1, sr)), Err(InvalidHandle), "{sr}");
        }
        let unbound = handles(1).open(&signed(1, r#"{"key_id":{"Key":"k"},"nonce":""}"#));
        assert_eq!(unbound, Ok(Named { target: Target::Symmetric(id("k")), binding: None }));
        // Of a version whose handles ended on the wall clock.
        let earlier =
            handles(1).open(&signed(1, r#"{"key_id":{"Key":"k"},"nonce":"","uid":7,"expires":7}"#));
        assert_eq!(earlier, Ok(Named { target: Target::Symmetric(id("k")), binding: None }));
        let boot = format!(r#""boot":"{}""#, "b0".repeat(16));
        for members in [
            r#""until":7"#.to_owned(),
            format!(r#""uid":7,{boot}"#),
            format!(r#"{boot},"until":7"#),
            format!(r#""uid":7,{boot},"until":7,"purpose":"all""#),
            format!(r#""uid":-1,{boot},"until":7"#),
            r#""uid":7,"boot":"b0","until":7"#.to_owned(),
        ] {
            let sr = format!(r#"{{"key_id":{{"Key":"k"}},"nonce":"",{members}}}"#);
            assert_eq!(handles(1).open(&signed(1, &sr)), Err(InvalidHandle), "{members}");
        }
    }

    #[test]
    fn keys_are_derived_from_symmetric_keys_only() {
        let ours = handles(1);
        let base = ours.symmetric(&id("k"), &BINDING).unwrap();
        let derived = ours.derived(&base, vec![1], &BINDING).unwrap();
        assert_eq!(ours.derived(&derived, vec![1], &BINDING).err(), Some(IssueError::BaseKind));
        assert_eq!(
            ours.derived(&ours.pair(&id("p"), &BINDING).unwrap(), vec![1], &BINDING).err(),
            Some(IssueError::BaseKind)
        );
        assert_eq!(
            ours.derived(&KeyHandle("x".into()), vec![1], &BINDING).err(),
            Some(IssueError::Base(InvalidHandle))
        );
        assert_eq!(
            ours.derived(&base, vec![0; DERIVATION_DATA_LIMIT + 1], &BINDING).err(),
            Some(IssueError::LongData)
        );
        assert!(ours.derived(&base, vec![0; DERIVATION_DATA_LIMIT], &BINDING).is_ok());
        let nested = format!(r#"{{"key_id":{{"Derived":["{}",[1]]}},"nonce":""}}"#, derived.0);
        assert_eq!(ours.open(&signed(1, &nested)), Err(InvalidHandle));
    }

    proptest! {
        #[test]
        fn a_handle_names_the_key_it_was_made_for(
            name in "[!-~]{1,256}", data in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let ours = handles(1);
            let name: KeyId = name.parse().unwrap();
            prop_assert_eq!(ours.open(&ours.pair(&name, &BINDING).unwrap()), Ok(bound(Target::Pair(name.clone()))));
            let base = ours.symmetric(&name, &BINDING).unwrap();
            prop_assert_eq!(ours.open(&base), Ok(bound(Target::Symmetric(name.clone()))));
            let derived = ours.derived(&base, data.clone(), &BINDING).unwrap();
            prop_assert_eq!(ours.open(&derived), Ok(bound(Target::Derived { base: name, data })));
        }

        #[test]
        fn a_handle_with_any_character_changed_is_invalid(at: prop::sample::Index, to in "[ -~]") {
            let handle = handles(1).symmetric(&id("k"), &BINDING).unwrap().0;
            let at = at.index(handle.len());
            let changed = format!("{}{to}{}", &handle[..at], &handle[at + 1..]);
            prop_assume!(changed != handle);
            prop_assert_eq!(handles(1).open(&KeyHandle(changed)), Err(InvalidHandle));
        }

        #[test]
        fn no_text_makes_opening_a_handle_panic(text in "\\PC{0,200}") {
            prop_assert_eq!(handles(1).open(&KeyHandle(text)), Err(InvalidHandle));
        }
    }
}
