use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Beginning of the decoding error of a member that is not base64. The workload API
/// answers the error as a bad parameter, the keys API as JSON that does not fit (wire
/// facts 3.2 and 1.3).
pub const NOT_BASE64: &str = "not standard base64";

/// Bytes that travel as standard, padded base64.
///
/// They may be secret (key bytes, plaintext), so `Debug` prints the length only. They are
/// not wiped: whoever needs that moves them into a wiping type at once with
/// [`Base64Bytes::into_inner`].
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Base64Bytes(Vec<u8>);

impl Base64Bytes {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, moved out.
    #[must_use]
    pub fn into_inner(self) -> Vec<u8> {
        self.0
    }
}

impl From<Vec<u8>> for Base64Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&[u8]> for Base64Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl std::fmt::Debug for Base64Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

impl Serialize for Base64Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        // The decoder's own message repeats a byte of the input; the input may be a
        // secret.
        STANDARD.decode(text.as_bytes()).map(Self).map_err(|_| serde::de::Error::custom(NOT_BASE64))
    }
}
