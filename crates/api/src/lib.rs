//! The wire: types, versions and typed clients of every API that edgekeep serves.
//!
//! One module per service. The field names, media types and statuses are those that
//! existing clients rely on; where a member of ours is new, its documentation says so.
//! The clients speak HTTP/1.1 over a Unix socket and use nothing that a third party could
//! not use: there is no other way for the daemons to talk to each other.
//!
//! Touches: the Unix sockets it is told to connect to. Never listens, never opens a file,
//! holds no key.
#![forbid(unsafe_code)]

pub mod attestation;
mod bytes64;
pub mod certd;
pub mod client;
mod error_code;
pub mod identityd;
pub mod keyd;
pub mod management;
pub mod operations;
pub mod tpmd;
pub mod workload;

use serde::{Deserialize, Serialize};

pub use bytes64::{Base64Bytes, NOT_BASE64};
pub use error_code::{ErrorCode, Recipient, is_worth_a_fresh_handle, says_absent};

/// The body of every answer that is not a success, of every service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error in words. The text never holds a secret; internal causes stay in the
    /// daemon's log.
    pub message: String,
    /// The cause by a stable name (ours); absent where there is none to tell apart.
    #[serde(
        default,
        deserialize_with = "error_code::lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub code: Option<ErrorCode>,
}

/// Encodes one path segment: everything but unreserved characters, so that no id can
/// change which route is meant.
#[must_use]
pub fn path_segment(text: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const SEGMENT: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    utf8_percent_encode(text, SEGMENT).to_string()
}
