//! Failures of enrolment.

use std::time::Duration;

use edgekeep_core::credentials::CertsOnlyError;
use edgekeep_tls::TlsError;

/// Failure of a call to an EST server. Each text is one reason, with its remedy where
/// there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EstError {
    /// Roots, certificate or key of this side.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nobody was reached, or the connection broke.
    #[error(
        "the EST server {server} cannot be reached ({what}); check the network, the URL and the proxy"
    )]
    Down {
        /// Host and port.
        server: String,
        /// The step that failed.
        what: &'static str,
        /// The system's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No whole answer in time.
    #[error("the EST server {server} did not answer within {} s", limit.as_secs())]
    Timeout {
        /// Host and port.
        server: String,
        /// The limit of the call.
        limit: Duration,
    },
    /// No trusted connection, in either direction.
    #[error(
        "no trusted TLS connection to the EST server {server}; check trusted_certs, the host name in the URL, this device's certificate and its clock"
    )]
    Untrusted {
        /// Host and port.
        server: String,
        /// The error of the TLS library.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Name and password, or the certificate, are not accepted.
    #[error(
        "the EST server {server} does not accept this device's credentials (status {status}): {message}"
    )]
    Credentials {
        /// Host and port.
        server: String,
        /// HTTP status: 401 or 403.
        status: u16,
        /// The server's message.
        message: String,
    },
    /// The server has no such service.
    #[error(
        "the EST server {server} has nothing at {path} (status 404); check the URL and its label"
    )]
    NotFound {
        /// Host and port.
        server: String,
        /// The path that was asked for.
        path: String,
    },
    /// The server sends elsewhere.
    #[error("the EST server {server} sends to another URL (status {status}); configure that one")]
    Redirect {
        /// Host and port.
        server: String,
        /// HTTP status.
        status: u16,
    },
    /// The server refused the request.
    #[error("the EST server {server} refused the request (status {status}): {message}")]
    Refused {
        /// Host and port.
        server: String,
        /// HTTP status.
        status: u16,
        /// The server's message.
        message: String,
    },
    /// The server is in trouble itself, or busy.
    #[error(
        "the EST server {server} answered with a fault of its own (status {status}): {message}"
    )]
    Service {
        /// Host and port.
        server: String,
        /// HTTP status.
        status: u16,
        /// The server's message.
        message: String,
        /// Pause that the server asks for; `None` if it names none.
        retry_after: Option<Duration>,
    },
    /// The answer is not what EST promises.
    #[error("the answer of the EST server {server} is not accepted: {what}")]
    Answer {
        /// Host and port.
        server: String,
        /// The fault of the answer.
        what: AnswerError,
    },
    /// The request that should be sent.
    #[error("the certificate request cannot be sent: it is not PKCS#10 in DER")]
    Request,
}

impl EstError {
    /// Returns true if the same call may succeed later without anybody's doing.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Down { .. } | Self::Timeout { .. } | Self::Service { .. })
    }

    /// Returns how long the server asks to be left alone, if it said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Service { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Fault of an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// A status that no answer to this call has.
    #[error("status {0} does not belong to this call")]
    Status(u16),
    /// A body of another kind, a page for people among them.
    #[error("it is {found}, not {expected}")]
    ContentType {
        /// The Content-Type header, cleaned; "of no stated type".
        found: String,
        /// The type that the answer should have.
        expected: &'static str,
    },
    /// A body without an end, or a large one.
    #[error("it is larger than {0} bytes")]
    Large(usize),
    /// A body that is not base64.
    #[error("its body is not base64")]
    Base64,
    /// A body that is no list of certificates.
    #[error(transparent)]
    CertsOnly(#[from] CertsOnlyError),
    /// Attributes that cannot be read.
    #[error("its list of attributes cannot be read")]
    Attributes,
    /// None of the certificates is of the key that was asked for.
    #[error("none of its certificates belongs to the key of the request")]
    OtherKey,
    /// Two certificates are of the key that was asked for.
    #[error("several of its certificates belong to the key of the request")]
    Ambiguous,
    /// The certificate has ended.
    #[error("its certificate ended at {0}; check this device's clock and the server's")]
    Expired(String),
    /// The certificate has not begun.
    #[error("its certificate is valid from {0} on; check this device's clock and the server's")]
    NotYetValid(String),
    /// No path to a root that is believed.
    #[error("its certificate does not chain to {roots}: {why}")]
    Chain {
        /// The roots that were looked for.
        roots: &'static str,
        /// The reason why the certificate does not chain to the roots.
        why: String,
    },
}
