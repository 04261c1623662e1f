//! Shared access signatures, as the provisioning service and the hub check them.
//!
//! Form: `SharedAccessSignature sr=<R>&sig=<S>&se=<E>[&skn=<N>]`, in any order. The
//! signed bytes are `R`, a line feed and `E`, with `R` exactly as it stands in the token.
//! `R` names the audience, percent-encoded and in any case.

use std::fmt;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Characters that are encoded in an audience or signature: all but letters, digits, `-`,
/// `.`, `_` and `~`.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Longest key taken, in bytes. The real services take 16 to 64.
const KEY_LIMIT: usize = 64;

/// A symmetric key of an enrolment, a device or a module. Its text form is base64; it is
/// wiped when dropped and not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Zeroizing<Vec<u8>>);

/// Failure to read a [`Key`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not base64 with padding.
    #[error("the key is not base64 with padding")]
    Base64,
    /// The key has a length that the services refuse.
    #[error("the key has {length} bytes; 16 to 64 are accepted")]
    Length {
        /// Its length in bytes.
        length: usize,
    },
}

impl Key {
    /// A key of 16 to 64 bytes.
    ///
    /// # Errors
    /// Any other length.
    pub fn new(bytes: Vec<u8>) -> Result<Self, KeyError> {
        let bytes = Zeroizing::new(bytes);
        match bytes.len() {
            16..=KEY_LIMIT => Ok(Self(bytes)),
            length => Err(KeyError::Length { length }),
        }
    }

    /// A key in its text form.
    ///
    /// # Errors
    /// Text that is not base64, or a key of another length than 16 to 64 bytes.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Self::new(STANDARD.decode(text).map_err(|_| KeyError::Base64)?)
    }

    /// The text form, which is the secret itself.
    #[must_use]
    pub fn expose_base64(&self) -> String {
        STANDARD.encode(&*self.0)
    }

    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }

    fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(not shown)")
    }
}

impl Serialize for Key {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.expose_base64())
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_base64(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Reason for the refusal of a token. The text goes into the answer's body and into
/// [`State::refusals`](crate::State::refusals).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is no Authorization header (or password).
    #[error("no SharedAccessSignature was sent")]
    Missing,
    /// It is not a shared access signature of the known form.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// `se` is not in the future.
    #[error("the token expired {seconds} s ago by the service's clock")]
    Expired {
        /// Time since it expired, in seconds.
        seconds: u64,
    },
    /// `sr` names something else.
    #[error("the token is for audience \"{found}\", not \"{expected}\"")]
    Audience {
        /// The audience in the token, decoded and in lower case.
        found: String,
        /// The audience it was presented to.
        expected: String,
    },
    /// `skn` is not what this service asks for.
    #[error("the token's skn must be {0}")]
    KeyName(&'static str),
    /// Neither key made this signature.
    #[error("the signature does not verify with the registered key")]
    Signature,
    /// Whoever presents the token is not known, switched off, or has no key.
    #[error("{0}")]
    Principal(&'static str),
}

/// Properties that a token must have to be accepted.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    /// The audience in plain text, in any case.
    pub(crate) audience: &'a str,
    /// Any of these keys may have signed.
    pub(crate) keys: &'a [&'a Key],
    /// The value that `skn` must have; `None`: absent or empty.
    pub(crate) key_name: Option<&'static str>,
    /// The service's clock, in seconds since 1970.
    pub(crate) now: u64,
}

/// Checks a token; `header` is the Authorization header's value, or an MQTT password.
pub(crate) fn verify(header: Option<&str>, expected: &Expected<'_>) -> Result<(), TokenError> {
    let fields = header.ok_or(TokenError::Missing)?;
    let fields = fields
        .strip_prefix("SharedAccessSignature ")
        .ok_or(TokenError::Malformed("another scheme than SharedAccessSignature"))?;
    let (mut sr, mut sig, mut se, mut skn) = (None, None, None, None);
    for field in fields.split('&') {
        let (name, value) =
            field.split_once('=').ok_or(TokenError::Malformed("a field without \"=\""))?;
        let slot = match name {
            "sr" => &mut sr,
            "sig" => &mut sig,
            "se" => &mut se,
            "skn" => &mut skn,
            _ => return Err(TokenError::Malformed("a field other than sr, sig, se, skn")),
        };
        if slot.replace(value).is_some() {
            return Err(TokenError::Malformed("a field is repeated"));
        }
    }
    let resource = sr.ok_or(TokenError::Malformed("no sr"))?;
    let expiry = se.ok_or(TokenError::Malformed("no se"))?;
    let signature = decode(sig.ok_or(TokenError::Malformed("no sig"))?)?;
    let signature = STANDARD
        .decode(signature)
        .map_err(|_| TokenError::Malformed("sig is not percent-encoded base64"))?;
    let seconds: u64 =
        expiry.parse().map_err(|_| TokenError::Malformed("se is not a number of seconds"))?;

    let (found, wanted) = (decode(resource)?.to_lowercase(), expected.audience.to_lowercase());
    if found != wanted {
        return Err(TokenError::Audience { found, expected: wanted });
    }
    match (expected.key_name, skn.unwrap_or_default()) {
        (None, "") => {}
        (Some(name), found) if name == found => {}
        (None, _) => return Err(TokenError::KeyName("absent")),
        (Some(name), _) => return Err(TokenError::KeyName(name)),
    }
    let signed = format!("{resource}\n{expiry}");
    if !expected
        .keys
        .iter()
        .any(|key| hmac::verify(&key.hmac(), signed.as_bytes(), &signature).is_ok())
    {
        return Err(TokenError::Signature);
    }
    // Last, so that "expired" is only ever said of a token that was good.
    if seconds <= expected.now {
        return Err(TokenError::Expired { seconds: expected.now - seconds });
    }
    Ok(())
}

/// Makes a token as a device would, for tests and tools. `audience` is plain text;
/// `expiry` is in seconds since 1970.
#[must_use]
pub fn issue(audience: &str, key: &Key, expiry: u64, key_name: Option<&str>) -> String {
    let resource = utf8_percent_encode(audience, UNRESERVED);
    let tag = hmac::sign(&key.hmac(), format!("{resource}\n{expiry}").as_bytes());
    let signature = STANDARD.encode(tag.as_ref());
    let skn = key_name.map(|name| format!("&skn={name}")).unwrap_or_default();
    format!(
        "SharedAccessSignature sr={resource}&sig={}&se={expiry}{skn}",
        utf8_percent_encode(&signature, UNRESERVED)
    )
}

/// The services decode as for forms: a bare `+` is a blank, so that a signature that was
/// not encoded is found here.
fn decode(text: &str) -> Result<String, TokenError> {
    let text = text.replace('+', " ");
    let text = percent_decode_str(&text)
        .decode_utf8()
        .map_err(|_| TokenError::Malformed("not UTF-8 when decoded"))?;
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AUDIENCE: &str = "localhost:8443/devices/Press-04";

    fn key(byte: u8) -> Key {
        Key::new(vec![byte; 32]).unwrap()
    }

    fn check(
        token: &str,
        keys: &[&Key],
        key_name: Option<&'static str>,
        now: u64,
    ) -> Result<(), TokenError> {
        verify(Some(token), &Expected { audience: AUDIENCE, keys, key_name, now })
    }

    #[test]
    fn a_token_is_good_until_the_second_of_its_expiry() {
        let token = issue(AUDIENCE, &key(1), 100, None);
        assert_eq!(check(&token, &[&key(1)], None, 99), Ok(()));
        assert_eq!(check(&token, &[&key(1)], None, 100), Err(TokenError::Expired { seconds: 0 }));
        assert_eq!(check(&token, &[&key(1)], None, 160), Err(TokenError::Expired { seconds: 60 }));
    }

    #[test]
    fn either_of_two_keys_may_sign_and_no_third() {
        let token = issue(AUDIENCE, &key(2), 100, None);
        assert_eq!(check(&token, &[&key(1), &key(2)], None, 0), Ok(()));
        assert_eq!(check(&token, &[&key(1), &key(3)], None, 0), Err(TokenError::Signature));
        assert_eq!(check(&token, &[], None, 0), Err(TokenError::Signature));
    }

    #[test]
    fn the_audience_is_compared_decoded_and_in_lower_case_but_signed_as_written() {
        let resource = "localhost%3a8443/devices/press-04";
        let tag = hmac::sign(&key(1).hmac(), format!("{resource}\n100").as_bytes());
        let signature = utf8_percent_encode(&STANDARD.encode(tag.as_ref()), UNRESERVED).to_string();
        let token = format!("SharedAccessSignature sr={resource}&sig={signature}&se=100");
        assert_eq!(check(&token, &[&key(1)], None, 0), Ok(()));
        let other = token.replace("%3a", "%3A");
        assert_eq!(check(&other, &[&key(1)], None, 0), Err(TokenError::Signature));
    }

    #[test]
    fn a_token_for_another_audience_is_refused_with_both_names() {
        let token = issue("localhost:8443/devices/press-05", &key(1), 100, None);
        let error = check(&token, &[&key(1)], None, 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the token is for audience \"localhost:8443/devices/press-05\", not \"localhost:8443/devices/press-04\""
        );
    }

    #[test]
    fn the_key_name_must_be_there_exactly_where_it_is_asked_for() {
        let (plain, named) =
            (issue(AUDIENCE, &key(1), 9, None), issue(AUDIENCE, &key(1), 9, Some("registration")));
        assert_eq!(check(&named, &[&key(1)], Some("registration"), 0), Ok(()));
        assert_eq!(
            check(&plain, &[&key(1)], Some("registration"), 0),
            Err(TokenError::KeyName("registration"))
        );
        assert_eq!(check(&named, &[&key(1)], None, 0), Err(TokenError::KeyName("absent")));
    }

    #[test]
    fn malformed_tokens_are_refused_with_the_fault() {
        let good = issue(AUDIENCE, &key(1), 9, None);
        for (token, fault) in [
            ("Bearer x".to_owned(), "another scheme than SharedAccessSignature"),
            (format!("{good}&se=9"), "a field is repeated"),
            (format!("{good}&x=9"), "a field other than sr, sig, se, skn"),
            (format!("{good}&"), "a field without \"=\""),
            (good.replace("se=9", "se=soon"), "se is not a number of seconds"),
            (good.replace("&se=9", ""), "no se"),
            (
                "SharedAccessSignature sr=a&sig=a+b%3D&se=1".to_owned(),
                "sig is not percent-encoded base64",
            ),
            ("SharedAccessSignature sr=%ff&sig=aaaa&se=1".to_owned(), "not UTF-8 when decoded"),
        ] {
            assert_eq!(
                check(&token, &[&key(1)], None, 0),
                Err(TokenError::Malformed(fault)),
                "{token}"
            );
        }
        let expected = Expected { audience: AUDIENCE, keys: &[], key_name: None, now: 0 };
        assert_eq!(verify(None, &expected), Err(TokenError::Missing));
    }

    #[test]
    fn a_key_does_not_print_itself_and_has_a_sane_length() {
        assert_eq!(format!("{:?}", key(65)), "Key(not shown)");
        assert_eq!(Key::new(vec![0; 15]), Err(KeyError::Length { length: 15 }));
        assert_eq!(Key::from_base64("not base64"), Err(KeyError::Base64));
    }

    proptest! {
        #[test]
        fn any_text_is_judged_without_panic(text in "\\PC{0,80}") {
            prop_assert!(check(&text, &[&key(1)], None, 0).is_err());
            let with_scheme = format!("SharedAccessSignature {text}");
            prop_assert!(check(&with_scheme, &[&key(1)], None, 0).is_err());
        }

        #[test]
        fn a_changed_character_is_always_noticed(at in 22_usize..120, with in "[a-zA-Z0-9]") {
            let token = issue(AUDIENCE, &key(1), 100, None);
            let mut changed = token.clone();
            let at = at.min(token.len() - 1);
            changed.replace_range(at..=at, &with);
            let same = changed.to_lowercase() == token.to_lowercase() || changed == token;
            prop_assert!(same || check(&changed, &[&key(1)], None, 0).is_err());
        }
    }
}
