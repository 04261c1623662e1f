//! Names that come from outside, as types that only parsing makes.
//!
//! A value of one of these types is safe to put into a file name (after hashing or as is,
//! see each type), a URL segment (after encoding) or a log line. Nothing else that a
//! caller sent is. This is the guard against the path and URL confusion of wire facts,
//! section 10, W1.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::names::{EDGE_AGENT, EDGE_HUB};

/// The reason why a text is not an id of its kind. The text itself is not repeated: it
/// may be hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("{kind} is empty")]
    Empty {
        /// The kind of id that was parsed.
        kind: &'static str,
    },
    /// The text has more characters than allowed.
    #[error("{kind} is longer than {limit} characters")]
    TooLong {
        /// The kind of id that was parsed.
        kind: &'static str,
        /// The number of characters that are allowed.
        limit: usize,
    },
    /// The text holds a character outside the allowed set.
    #[error("{kind} has a character that is not allowed at position {position}: {allowed}")]
    Character {
        /// The kind of id that was parsed.
        kind: &'static str,
        /// The position of the first such character, in bytes from 0.
        position: usize,
        /// The characters that are allowed there, in words.
        allowed: &'static str,
    },
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $limit:literal, $allowed:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The id as it was written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl $name {
            /// An id that is known to be valid. Only for [`crate::names`], whose tests
            /// parse each.
            #[allow(dead_code, reason = "not each kind of id has well-known ones")]
            pub(crate) fn known(text: &'static str) -> Self {
                Self(text.to_owned())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if text.is_empty() {
                    return Err(IdError::Empty { kind: $kind });
                }
                if text.len() > $limit {
                    return Err(IdError::TooLong { kind: $kind, limit: $limit });
                }
                let check: fn(&[u8], usize) -> bool = $check;
                match (0..text.len()).find(|&position| !check(text.as_bytes(), position)) {
                    Some(position) => Err(IdError::Character { kind: $kind, position, allowed: $allowed }),
                    None => Ok(Self(text.to_owned())),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

fn is_name(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-')
}

/// Returns true if the hub allows the character in device ids: letters, digits and this
/// punctuation. `/` and control characters are not allowed.
fn is_hub_name(c: u8) -> bool {
    c.is_ascii_alphanumeric() || b"-:.+%_#*?!(),=@$'".contains(&c)
}

id_type! {
    /// A module's id: what both the hub and the container engines accept as a name.
    ///
    /// An optional leading `$` (system modules: `$edgeAgent`, `$edgeHub`), then a letter
    /// or digit, then letters, digits, `_`, `.`, `-`. Safe as one path component and as
    /// one container name.
    ModuleId, "module id", 128,
    "a letter or digit first (system modules: after one '$'), then letters, digits, '_', '.', '-'",
    |text, position| match text[position] {
        b'$' => position == 0 && text.len() > 1,
        c if position == 0 || (position == 1 && text[0] == b'$') => c.is_ascii_alphanumeric(),
        c => is_name(c),
    }
}

impl ModuleId {
    /// The name of the module's container, process, socket file: the id without a leading
    /// `$`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.strip_prefix('$').unwrap_or(&self.0)
    }

    /// The id under which the hub knows the runtime's own modules: `edgeAgent` is
    /// `$edgeAgent` there, `edgeHub` is `$edgeHub`; any other module keeps its name.
    #[must_use]
    pub fn hub_id(&self) -> Self {
        match self.name() {
            name @ (EDGE_AGENT | EDGE_HUB) => Self(format!("${name}")),
            _ => self.clone(),
        }
    }

    /// Returns true if this is the module that holds the deployment. The management API
    /// obeys no other module.
    #[must_use]
    pub fn is_edge_agent(&self) -> bool {
        self.name() == EDGE_AGENT
    }
}

id_type! {
    /// A device's id at the hub.
    DeviceId, "device id", 128, "letters, digits and -:.+%_#*?!(),=@$'",
    |text, position| is_hub_name(text[position])
}

id_type! {
    /// The hub's id for one life of a module identity. An identity that is deleted and
    /// created again has another generation id.
    GenerationId, "generation id", 128, "letters, digits, '_', '.', '-'",
    |text, position| is_name(text[position])
}

id_type! {
    /// The name of a key in keyd. Printable ASCII without blanks; used as a file name
    /// only after hashing.
    KeyId, "key id", 256, "printable ASCII without blanks",
    |text, position| text[position].is_ascii_graphic()
}

id_type! {
    /// The name of a certificate in the certificates API. Printable ASCII without blanks;
    /// a file name only after hashing.
    CertId, "certificate id", 512, "printable ASCII without blanks",
    |text, position| text[position].is_ascii_graphic()
}

id_type! {
    /// A container's id: 64 lower-case hex digits, as engines make them.
    ContainerId, "container id", 64, "64 lower-case hex digits",
    |text, position| text.len() == 64 && matches!(text[position], b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn system_modules_are_known_to_the_hub_with_a_dollar() {
        let plain: ModuleId = "edgeAgent".parse().expect("valid");
        let system: ModuleId = "$edgeAgent".parse().expect("valid");
        assert_eq!(plain.hub_id(), system);
        assert_eq!(system.name(), "edgeAgent");
        assert_eq!(
            "thermometer".parse::<ModuleId>().expect("valid").hub_id().as_str(),
            "thermometer"
        );
    }

    #[test]
    fn ids_that_could_steer_a_path_or_a_url_are_refused() {
        for text in [
            "", ".", "..", "$", "$$a", "a/b", "a%2fb", "../x", ".hidden", "-x", "a b", "a\0",
            "a?b", "é", "$.x",
        ] {
            assert!(text.parse::<ModuleId>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn a_refusal_says_where_and_what_is_allowed_without_repeating_the_text() {
        let error = "ab/../secret".parse::<ModuleId>().expect_err("slash");
        assert_eq!(
            error,
            IdError::Character {
                kind: "module id",
                position: 2,
                allowed: "a letter or digit first (system modules: after one '$'), then letters, digits, '_', '.', '-'"
            }
        );
        assert!(!error.to_string().contains("secret"));
    }

    proptest! {
        #[test]
        fn an_accepted_module_name_is_one_plain_path_component(text in "\\PC{0,140}") {
            if let Ok(id) = text.parse::<ModuleId>() {
                let path = std::path::Path::new(id.name());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert!(matches!(path.components().next(), Some(std::path::Component::Normal(_))));
                prop_assert!(id.as_str().len() <= 128);
            }
        }
    }
}
