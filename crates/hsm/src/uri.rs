//! The names that a key can have in the configuration: where it is, not what it is.
//!
//! | scheme | example |
//! |---|---|
//! | `file:` | `file:///etc/edgekeep/device.pem` |
//! | `pkcs11:` | `pkcs11:token=edge;object=device-id?pin-source=file:/etc/edgekeep/pin` (RFC 7512) |
//! | `tpm:` | `tpm:handle=0x81000001`, `tpm:file=/var/lib/edgekeep/device.tpm` |
//!
//! Reading one touches nothing. Writing one back never writes a PIN.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::SecretBytes;

/// Longest URI that is read, in bytes.
const LENGTH_LIMIT: usize = 4096;
/// Handles that a TPM keeps over a restart (TPM 2.0 part 2, 7.4).
const PERSISTENT_HANDLES: std::ops::RangeInclusive<u32> = 0x8100_0000..=0x81ff_ffff;

/// The place of a key.
#[derive(Debug, Clone)]
pub enum KeyUri {
    /// A file, named by its absolute path.
    File(PathBuf),
    /// A token, or an object on it.
    Pkcs11(Box<Pkcs11Uri>),
    /// A TPM.
    Tpm(TpmKey),
}

/// A key of a TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TpmKey {
    /// A key that the TPM keeps, by its persistent handle.
    Handle(u32),
    /// A key that the TPM wrapped, by the absolute path of its file.
    File(PathBuf),
}

/// A token, or an object on one (RFC 7512). What is `None` matches everything.
#[derive(Clone, Default)]
pub struct Pkcs11Uri {
    /// Attributes that choose the token.
    pub token: TokenAttributes,
    /// Attributes that choose the object on the token.
    pub object: ObjectAttributes,
    /// Source of the user PIN; `None` if the URI has none.
    pub pin: Option<PinSource>,
    /// Absolute path of the library that knows the token.
    pub module_path: Option<PathBuf>,
}

/// The attributes by which a token is chosen. An absent attribute matches every token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenAttributes {
    /// Label of the token.
    pub label: Option<String>,
    /// Number of the slot. It decides alone if it is given: the existing key service does
    /// it so.
    pub slot_id: Option<u64>,
    /// Maker of the token.
    pub manufacturer: Option<String>,
    /// Model of the token.
    pub model: Option<String>,
    /// Serial number of the token.
    pub serial: Option<String>,
}

impl TokenAttributes {
    /// Returns true if no attribute of the token is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The attributes by which an object is chosen. An absent attribute matches every object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectAttributes {
    /// `CKA_LABEL`.
    pub label: Option<String>,
    /// `CKA_ID`.
    pub id: Option<Vec<u8>>,
    /// Class of the object.
    pub class: Option<ObjectType>,
}

/// Class of an object that a URI can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as in RFC 7512")]
pub enum ObjectType {
    Cert,
    Data,
    Private,
    Public,
    SecretKey,
}

impl ObjectType {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Cert, "cert"),
        (Self::Data, "data"),
        (Self::Private, "private"),
        (Self::Public, "public"),
        (Self::SecretKey, "secret-key"),
    ];
}

/// The source of a PIN.
#[derive(Clone)]
pub enum PinSource {
    /// The configuration itself.
    Value(SecretBytes),
    /// The first line of a file, by its absolute path.
    File(PathBuf),
    /// The systemd credential of this name (`LoadCredential=`,
    /// `LoadCredentialEncrypted=`).
    Credential(String),
}

/// The reason why a text is not a key URI. The message never repeats a value, which may
/// be a PIN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Longer than any key URI.
    #[error("the key uri is longer than {LENGTH_LIMIT} bytes")]
    Long,
    /// Of another scheme.
    #[error("a key uri begins with \"file:\", \"pkcs11:\" or \"tpm:\"")]
    Scheme,
    /// A file that is not named by its absolute path on this device.
    #[error(
        "{attribute} needs an absolute path on this device, as in \"file:///etc/edgekeep/device.pem\""
    )]
    Path {
        /// Name of the attribute that has the path.
        attribute: &'static str,
    },
    /// A character that has to be written percent-encoded.
    #[error(
        "character {position} of the key uri has to be percent-encoded (a blank is \"%20\", a percent sign \"%25\")"
    )]
    Character {
        /// Position of the character, from 1.
        position: usize,
    },
    /// A percent sign without two hex digits.
    #[error("a percent sign in a key uri is followed by two hex digits")]
    PercentEncoding,
    /// Text that is not UTF-8 or has a NUL in it.
    #[error("the value of {attribute:?} is not text")]
    Text {
        /// The attribute.
        attribute: &'static str,
    },
    /// An attribute that is not known.
    #[error("the key uri has the unknown attribute {attribute:?}: remove it")]
    UnknownAttribute {
        /// Its name, shortened.
        attribute: String,
    },
    /// An attribute without value.
    #[error("{attribute:?} has no value")]
    Empty {
        /// The attribute.
        attribute: &'static str,
    },
    /// An attribute that is there twice.
    #[error("{attribute:?} is there twice")]
    Twice {
        /// The attribute.
        attribute: &'static str,
    },
    /// A value that is not one of those that the attribute can have.
    #[error("{attribute:?} is {expected}")]
    Value {
        /// The attribute.
        attribute: &'static str,
        /// Description of the allowed values.
        expected: &'static str,
    },
    /// Two ways to the PIN.
    #[error("\"pin-value\" and \"pin-source\" exclude each other")]
    TwoPins,
}

impl FromStr for KeyUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.len() > LENGTH_LIMIT {
            return Err(UriError::Long);
        }
        let (scheme, rest) = text.split_once(':').ok_or(UriError::Scheme)?;
        if let Some(position) = text.bytes().position(|byte| !is_uri_character(byte)) {
            return Err(UriError::Character { position: position + 1 });
        }
        // Schemes are the same in any case (RFC 3986, 3.1).
        match scheme.to_ascii_lowercase().as_str() {
            "file" => file_path(rest).map(Self::File),
            "pkcs11" => Pkcs11Uri::parse(rest).map(|uri| Self::Pkcs11(Box::new(uri))),
            "tpm" => TpmKey::parse(rest).map(Self::Tpm),
            _ => Err(UriError::Scheme),
        }
    }
}

impl fmt::Display for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file://{}", Encoded(path_bytes(path), b"/")),
            Self::Pkcs11(uri) => uri.fmt(f),
            Self::Tpm(key) => key.fmt(f),
        }
    }
}

impl TpmKey {
    fn parse(text: &str) -> Result<Self, UriError> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        match name {
            "handle" => {
                let expected = UriError::Value {
                    attribute: "handle",
                    expected: "a handle from 0x81000000 to 0x81ffffff",
                };
                let digits = value
                    .strip_prefix("0x")
                    .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
                let handle = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
                handle
                    .filter(|handle| PERSISTENT_HANDLES.contains(handle))
                    .map(Self::Handle)
                    .ok_or(expected)
            }
            "file" => absolute_path("file", value).map(Self::File),
            _ => Err(unknown(name)),
        }
    }
}

impl fmt::Display for TpmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handle(handle) => write!(f, "tpm:handle=0x{handle:08x}"),
            Self::File(path) => write!(f, "tpm:file={}", Encoded(path_bytes(path), b"/")),
        }
    }
}

impl Pkcs11Uri {
    fn parse(text: &str) -> Result<Self, UriError> {
        let mut uri = Self::default();
        let (path, query) =
            text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
        if !path.is_empty() {
            for attribute in path.split(';') {
                let (name, value) = attribute.split_once('=').unwrap_or((attribute, ""));
                uri.set_path_attribute(name, value)?;
            }
        }
        for attribute in query.into_iter().flat_map(|query| query.split('&')) {
            let (name, value) = attribute.split_once('=').unwrap_or((attribute, ""));
            uri.set_query_attribute(name, value)?;
        }
        Ok(uri)
    }

    fn set_path_attribute(&mut self, name: &str, value: &str) -> Result<(), UriError> {
        match name {
            "token" => set(&mut self.token.label, "token", text("token", value)?),
            "manufacturer" => {
                set(&mut self.token.manufacturer, "manufacturer", text("manufacturer", value)?)
            }
            "model" => set(&mut self.token.model, "model", text("model", value)?),
            "serial" => set(&mut self.token.serial, "serial", text("serial", value)?),
            "slot-id" => {
                let digits =
                    Some(value).filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()));
                let number = digits.and_then(|digits| digits.parse().ok());
                let expected =
                    UriError::Value { attribute: "slot-id", expected: "a decimal number" };
                set(&mut self.token.slot_id, "slot-id", number.ok_or(expected)?)
            }
            "object" => set(&mut self.object.label, "object", text("object", value)?),
            "id" => set(&mut self.object.id, "id", bytes("id", value)?),
            "type" => {
                let found = ObjectType::ALL
                    .iter()
                    .find(|(_, word)| *word == value)
                    .map(|(class, _)| *class);
                let expected = UriError::Value {
                    attribute: "type",
                    expected: "one of \"cert\", \"data\", \"private\", \"public\", \"secret-key\"",
                };
                set(&mut self.object.class, "type", found.ok_or(expected)?)
            }
            _ => Err(unknown(name)),
        }
    }

    fn set_query_attribute(&mut self, name: &str, value: &str) -> Result<(), UriError> {
        match name {
            "pin-value" => {
                let pin = PinSource::Value(bytes("pin-value", value)?.into());
                self.set_pin("pin-value", pin)
            }
            "pin-source" => {
                let pin = match value.split_once(':') {
                    Some(("file", path)) => PinSource::File(file_path(path)?),
                    Some(("credential", name)) => PinSource::Credential(credential_name(name)?),
                    None if value.starts_with('/') => {
                        PinSource::File(absolute_path("pin-source", value)?)
                    }
                    _ => {
                        return Err(UriError::Value {
                            attribute: "pin-source",
                            expected: "\"file:/PATH\" or \"credential:NAME\"",
                        });
                    }
                };
                self.set_pin("pin-source", pin)
            }
            "module-path" => {
                set(&mut self.module_path, "module-path", absolute_path("module-path", value)?)
            }
            _ => Err(unknown(name)),
        }
    }

    fn set_pin(&mut self, attribute: &'static str, pin: PinSource) -> Result<(), UriError> {
        let from_value = matches!(pin, PinSource::Value(_));
        match &self.pin {
            Some(PinSource::Value(_)) if !from_value => Err(UriError::TwoPins),
            Some(PinSource::File(_) | PinSource::Credential(_)) if from_value => {
                Err(UriError::TwoPins)
            }
            _ => set(&mut self.pin, attribute, pin),
        }
    }
}

/// The same URI without a PIN that stands in it.
impl fmt::Display for Pkcs11Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("pkcs11:")?;
        let mut before = "";
        let mut put = |name: &str, value: &[u8], open: &'static [u8], next: &'static str| {
            let written = write!(f, "{before}{name}={}", Encoded(value, open));
            before = next;
            written
        };
        let slot = self.token.slot_id.map(|slot| slot.to_string());
        for (name, value) in [
            ("token", &self.token.label),
            ("slot-id", &slot),
            ("manufacturer", &self.token.manufacturer),
            ("model", &self.token.model),
            ("serial", &self.token.serial),
            ("object", &self.object.label),
        ] {
            if let Some(value) = value {
                put(name, value.as_bytes(), b"", ";")?;
            }
        }
        if let Some(id) = &self.object.id {
            put("id", id, b"", ";")?;
        }
        if let Some(class) = self.object.class {
            let word = ObjectType::ALL
                .iter()
                .find(|(each, _)| *each == class)
                .map_or("", |(_, word)| word);
            put("type", word.as_bytes(), b"", ";")?;
        }
        let mut before = "?";
        match &self.pin {
            Some(PinSource::File(path)) => {
                write!(f, "{before}pin-source=file://{}", Encoded(path_bytes(path), b"/"))?;
                before = "&";
            }
            Some(PinSource::Credential(name)) => {
                write!(f, "{before}pin-source=credential:{name}")?;
                before = "&";
            }
            Some(PinSource::Value(_)) | None => {}
        }
        match &self.module_path {
            Some(path) => write!(f, "{before}module-path={}", Encoded(path_bytes(path), b"/")),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Pkcs11Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

fn set<T>(place: &mut Option<T>, attribute: &'static str, value: T) -> Result<(), UriError> {
    if place.is_some() {
        return Err(UriError::Twice { attribute });
    }
    *place = Some(value);
    Ok(())
}

/// An attribute name without what it may hold of a value.
fn unknown(name: &str) -> UriError {
    UriError::UnknownAttribute { attribute: name.chars().take(32).collect() }
}

/// Returns true if a byte may stand in a URI unescaped (RFC 3986: unreserved, reserved
/// but for the fragment, and the percent sign).
fn is_uri_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/?[]@!$&'()*+,;=%|".contains(&byte)
}

fn bytes(attribute: &'static str, encoded: &str) -> Result<Vec<u8>, UriError> {
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let digit = |at: usize| after.get(at).and_then(|byte| char::from(*byte).to_digit(16));
            let (Some(high), Some(low)) = (digit(0), digit(1)) else {
                return Err(UriError::PercentEncoding);
            };
            // Two hex digits are below 256.
            decoded.push((high << 4 | low) as u8);
            rest = &after[2..];
        } else {
            decoded.push(first);
            rest = after;
        }
    }
    if decoded.is_empty() { Err(UriError::Empty { attribute }) } else { Ok(decoded) }
}

fn text(attribute: &'static str, encoded: &str) -> Result<String, UriError> {
    let text =
        String::from_utf8(bytes(attribute, encoded)?).map_err(|_| UriError::Text { attribute })?;
    if text.contains('\0') { Err(UriError::Text { attribute }) } else { Ok(text) }
}

fn absolute_path(attribute: &'static str, encoded: &str) -> Result<PathBuf, UriError> {
    let path = PathBuf::from(text(attribute, encoded)?);
    if path.is_absolute() { Ok(path) } else { Err(UriError::Path { attribute }) }
}

/// The path of a `file:` URI without its scheme (RFC 8089): `/path`, or `//` and this
/// device and `/path`.
fn file_path(rest: &str) -> Result<PathBuf, UriError> {
    let path = match rest.strip_prefix("//") {
        None => rest,
        Some(rest) => {
            rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest)
        }
    };
    if path.contains('?') || !path.starts_with('/') {
        return Err(UriError::Path { attribute: "file" });
    }
    absolute_path("file", path)
}

/// A name that is a file name, so that it cannot lead out of the credentials folder.
fn credential_name(encoded: &str) -> Result<String, UriError> {
    let name = text("pin-source", encoded)?;
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if plain && name != "." && name != ".." && name.len() <= 255 {
        Ok(name)
    } else {
        Err(UriError::Value {
            attribute: "pin-source",
            expected: "\"file:/PATH\" or \"credential:NAME\"",
        })
    }
}

/// Paths come from texts only.
fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

/// Percent-encoded but for unreserved characters and some more.
struct Encoded<'a>(&'a [u8], &'static [u8]);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || self.1.contains(byte) {
                write!(f, "{}", char::from(*byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pkcs11(text: &str) -> Pkcs11Uri {
        match text.parse() {
            Ok(KeyUri::Pkcs11(uri)) => *uri,
            other => panic!("{other:?}"),
        }
    }

    fn refused(text: &str) -> UriError {
        match text.parse::<KeyUri>() {
            Err(error) => error,
            Ok(uri) => panic!("{text} was read as {uri}"),
        }
    }

    fn pin(uri: &Pkcs11Uri) -> Option<&[u8]> {
        match &uri.pin {
            Some(PinSource::Value(pin)) => Some(pin.expose()),
            _ => None,
        }
    }

    #[test]
    fn a_pkcs11_uri_as_in_existing_configurations_is_read() {
        let uri = pkcs11("pkcs11:token=edge%20token;object=press-04?pin-value=00%3B00");
        assert_eq!(uri.token.label.as_deref(), Some("edge token"));
        assert_eq!(uri.object.label.as_deref(), Some("press-04"));
        assert_eq!(pin(&uri), Some(&b"00;00"[..]));
        let uri = pkcs11(
            "PKCS11:slot-id=1234;id=%01%ff;type=private?module-path=/usr/lib/libx.so&pin-source=file:/pin",
        );
        assert_eq!(
            (uri.token.slot_id, uri.object.id.as_deref()),
            (Some(1234), Some(&[1, 255][..]))
        );
        assert_eq!(uri.object.class, Some(ObjectType::Private));
        assert_eq!(uri.module_path.as_deref(), Some(Path::new("/usr/lib/libx.so")));
        assert!(matches!(&uri.pin, Some(PinSource::File(path)) if path == Path::new("/pin")));
        let uri = pkcs11("pkcs11:serial=a1;model=m;manufacturer=x?pin-source=credential:token-pin");
        assert!(matches!(&uri.pin, Some(PinSource::Credential(name)) if name == "token-pin"));
        assert!(pkcs11("pkcs11:").token.is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_uri_is_said() {
        use UriError::{
            Character, Empty, Path, PercentEncoding, Scheme, Text, Twice, TwoPins,
            UnknownAttribute, Value,
        };
        let is = |text: &str, check: fn(&UriError) -> bool| {
            assert!(check(&refused(text)), "{text}: {}", refused(text));
        };
        is("", |e| *e == Scheme);
        is("/etc/key", |e| *e == Scheme);
        is("https://a/b", |e| *e == Scheme);
        is("pkcs11:token=my token", |e| *e == Character { position: 16 });
        is("pkcs11:token=a#b", |e| matches!(e, Character { .. }));
        is("pkcs11:token=%4", |e| *e == PercentEncoding);
        is("pkcs11:token=%zz", |e| *e == PercentEncoding);
        is("pkcs11:token=%ff", |e| *e == Text { attribute: "token" });
        is("pkcs11:token=a%00", |e| *e == Text { attribute: "token" });
        is("pkcs11:token=", |e| *e == Empty { attribute: "token" });
        is("pkcs11:token", |e| *e == Empty { attribute: "token" });
        is("pkcs11:token=a;token=b", |e| *e == Twice { attribute: "token" });
        is("pkcs11:token=a;", |e| matches!(e, UnknownAttribute { .. }));
        is(
            "pkcs11:x-vendor=a",
            |e| matches!(e, UnknownAttribute { attribute } if attribute == "x-vendor"),
        );
        is("pkcs11:pin-value=1", |e| matches!(e, UnknownAttribute { .. }));
        is("pkcs11:slot-id=0x10", |e| matches!(e, Value { attribute: "slot-id", .. }));
        is("pkcs11:slot-id=+1", |e| matches!(e, Value { attribute: "slot-id", .. }));
        is("pkcs11:type=key", |e| matches!(e, Value { attribute: "type", .. }));
        is("pkcs11:token=a?pin-value=1&pin-source=file:/p", |e| *e == TwoPins);
        is("pkcs11:token=a?pin-value=1&pin-value=1", |e| *e == Twice { attribute: "pin-value" });
        is("pkcs11:token=a?pin-source=|/bin/pin", |e| {
            matches!(e, Value { attribute: "pin-source", .. })
        });
        is("pkcs11:token=a?pin-source=credential:../pin", |e| {
            matches!(e, Value { attribute: "pin-source", .. })
        });
        is("pkcs11:token=a?module-path=lib.so", |e| *e == Path { attribute: "module-path" });
        is("file:key.pem", |e| matches!(e, Path { .. }));
        is("file://server/key.pem", |e| matches!(e, Path { .. }));
        is("file:///key.pem?x", |e| matches!(e, Path { .. }));
        is("tpm:handle=81000001", |e| matches!(e, Value { attribute: "handle", .. }));
        is("tpm:handle=0x80000001", |e| matches!(e, Value { attribute: "handle", .. }));
        is("tpm:handle=0x+1000001", |e| matches!(e, Value { attribute: "handle", .. }));
        is("tpm:file=blob", |e| *e == Path { attribute: "file" });
        is("tpm:", |e| matches!(e, UnknownAttribute { .. }));
        assert_eq!(refused(&format!("file:/{}", "a".repeat(LENGTH_LIMIT))), UriError::Long);
    }

    #[test]
    fn a_refusal_never_repeats_a_pin() {
        for text in [
            "pkcs11:token=a?pin-value=hunter2%",
            "pkcs11:token=a?pin-value=hunter2&pin-value=hunter2",
            "pkcs11:token=a?pin-value=hunter2&pin-source=/x",
            "pkcs11:token=a?pin-source=hunter2",
            "pkcs11:token=a?pin-value=hunter2#",
        ] {
            let error = refused(text);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn files_and_tpm_keys_are_read_and_written() {
        for (text, written) in [
            ("file:///etc/my%20key.pem", "file:///etc/my%20key.pem"),
            ("file:/etc/key.pem", "file:///etc/key.pem"),
            ("file://localhost/etc/key.pem", "file:///etc/key.pem"),
            ("tpm:handle=0x81000001", "tpm:handle=0x81000001"),
            ("tpm:file=/var/lib/k.tpm", "tpm:file=/var/lib/k.tpm"),
        ] {
            assert_eq!(text.parse::<KeyUri>().unwrap().to_string(), written);
        }
    }

    fn name() -> impl Strategy<Value = Option<String>> {
        prop::option::of("[^\\x00]{1,12}")
    }

    proptest! {
        #[test]
        fn a_uri_reads_back_as_it_was_written_but_for_the_pin(
            names in [name(), name(), name(), name(), name()], slot_id: Option<u64>,
            id in prop::option::of(prop::collection::vec(any::<u8>(), 1..20)), class in 0usize..6,
            module in prop::option::of("/[^\\x00]{0,12}"), secret in "[a-z]{1,8}", pin_kind in 0u8..4,
        ) {
            let [label, manufacturer, model, serial, object] = names;
            let uri = Pkcs11Uri {
                token: TokenAttributes { label, slot_id, manufacturer, model, serial },
                object: ObjectAttributes { label: object, id, class: ObjectType::ALL.get(class).map(|(class, _)| *class) },
                pin: match pin_kind {
                    0 => Some(PinSource::Value(format!("PIN{secret}PIN").into_bytes().into())),
                    1 => Some(PinSource::File(format!("/{secret}").into())),
                    2 => Some(PinSource::Credential(secret.clone())),
                    _ => None,
                },
                module_path: module.map(PathBuf::from),
            };
            let written = uri.to_string();
            let read = pkcs11(&written);
            prop_assert_eq!(&read.token, &uri.token);
            prop_assert_eq!(&read.object, &uri.object);
            prop_assert_eq!(&read.module_path, &uri.module_path);
            prop_assert_eq!(read.pin.is_some(), pin_kind == 1 || pin_kind == 2);
            prop_assert_eq!(read.to_string(), written);
            let secret_text = format!("PIN{secret}PIN");
            let printed = format!("{uri}{uri:?}");
            prop_assert!(pin_kind != 0 || !printed.contains(&secret_text));
        }

        #[test]
        fn a_pin_of_any_bytes_can_be_given(secret in prop::collection::vec(any::<u8>(), 1..30)) {
            let uri = pkcs11(&format!("pkcs11:token=a?pin-value={}", Encoded(&secret, b"")));
            prop_assert_eq!(pin(&uri), Some(secret.as_slice()));
        }

        #[test]
        fn no_text_makes_reading_panic_and_what_is_read_can_be_written(text in "(file|pkcs11|tpm):[ -~é]{0,60}") {
            if let Ok(uri) = text.parse::<KeyUri>() {
                let written = uri.to_string();
                prop_assert_eq!(written.parse::<KeyUri>().unwrap().to_string(), written);
            }
        }
    }
}
