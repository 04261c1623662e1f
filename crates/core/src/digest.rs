//! SHA-256 digests as values: of executables, images and create options.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A SHA-256 digest. Its text form is `sha256:` and 64 lower-case hex digits, as
/// container engines write it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256Digest([u8; 32]);

impl Sha256Digest {
    /// Wraps the 32 bytes that a hash function returned.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest's 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 lower-case hex digits, without a prefix.
    #[must_use]
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// The error for a text that is not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 hex digits, optionally after \"sha256:\"")]
pub struct DigestError;

impl FromStr for Sha256Digest {
    type Err = DigestError;

    /// Accepts `sha256:<hex>` and bare `<hex>`, in either case.
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text).as_bytes();
        if hex.len() != 64 {
            return Err(DigestError);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            let nibble = |c: u8| char::from(c).to_digit(16).ok_or(DigestError);
            let value = nibble(pair[0])? << 4 | nibble(pair[1])?;
            *byte = u8::try_from(value).map_err(|_| DigestError)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Sha256Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_reads_back_to_the_same_digest() {
        let digest = Sha256Digest::new([0xa5; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(digest.hex().to_uppercase().parse(), Ok(digest));
    }

    #[test]
    fn short_long_and_non_hex_texts_are_refused() {
        for text in
            ["", "sha256:", &"a".repeat(63), &"a".repeat(65), &"g".repeat(64), &"é".repeat(32)]
        {
            assert_eq!(text.parse::<Sha256Digest>(), Err(DigestError), "{text}");
        }
    }
}
