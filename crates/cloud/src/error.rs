use std::path::PathBuf;
use std::time::Duration;

use edgekeep_base::error;
use edgekeep_core::foreign_text::{CHAIN_LIMIT, cleaned};

/// Failure to sign a token.
#[derive(Debug, thiserror::Error)]
#[error("the device key could not sign a token for the cloud")]
pub struct SignerError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Failure of a call to the cloud.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloudError {
    /// Nobody was reached: name resolution, connecting, or a connection that broke.
    #[error("{host} cannot be reached ({what}); check the network, the host name and the firewall")]
    NetworkDown {
        /// Host that was called.
        host: String,
        /// The step that failed.
        what: &'static str,
        /// The system's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No whole answer within the limit.
    #[error("{host} did not answer within {} s", limit.as_secs_f32())]
    Timeout {
        /// Host that was called.
        host: String,
        /// The limit of the whole call.
        limit: Duration,
    },
    /// The host was reached and is not trusted, or does not speak TLS.
    #[error(
        "no trusted TLS connection to {host}; check the trusted roots, the host name and the device's clock"
    )]
    Untrusted {
        /// Host that was called.
        host: String,
        /// The error of the TLS library.
        #[source]
        source: std::io::Error,
    },
    /// The service answered that it is in trouble itself.
    #[error("{host} answered with a fault of its own (status {status}): {message}")]
    Service {
        /// Host that was called.
        host: String,
        /// HTTP status.
        status: u16,
        /// The service's message.
        message: String,
        /// Pause that the service asks for; `None` if it names none.
        retry_after: Option<Duration>,
    },
    /// The service asks for fewer calls.
    #[error("{host} asks for fewer calls (status 429)")]
    Throttled {
        /// Host that was called.
        host: String,
        /// Pause that the service asks for; `None` if it names none.
        retry_after: Option<Duration>,
    },
    /// The service does not accept the device's credential, or does not know the device.
    #[error("{host} refuses this device (status {status}): {message}{clock}", clock = clock_remark(*clock_offset))]
    DeviceRefused {
        /// Host that was called.
        host: String,
        /// HTTP status: 401, or 404 for an unknown device.
        status: u16,
        /// The service's message.
        message: String,
        /// By how many seconds the service's clock is ahead of this device's.
        clock_offset: i64,
    },
    /// The service does not take the device's certificate, or misses one.
    #[error(
        "{host} refuses this device in the TLS handshake ({alert}); check that the certificate is enrolled there and valid, and the device's clock"
    )]
    CertificateRefused {
        /// Host that was called.
        host: String,
        /// The service's reason.
        alert: &'static str,
    },
    /// The service has no such thing.
    #[error("{host} has no such {what}")]
    NotFound {
        /// Host that was called.
        host: String,
        /// The kind of thing that was asked for.
        what: &'static str,
    },
    /// The thing exists already or was changed by somebody else meanwhile.
    #[error("{host} answered that this was changed by somebody else meanwhile (status {status})")]
    Conflict {
        /// Host that was called.
        host: String,
        /// HTTP status: 409 or 412.
        status: u16,
    },
    /// The service understood and refused.
    #[error("{host} refused (status {status}): {message}")]
    Refused {
        /// Host that was called.
        host: String,
        /// HTTP status.
        status: u16,
        /// The service's message.
        message: String,
    },
    /// The answer is not what the service's interface promises.
    #[error("unexpected answer from {host}: {what}")]
    Answer {
        /// Host that was called.
        host: String,
        /// The fault of the answer.
        what: String,
    },
    /// The roots to trust cannot be loaded.
    #[error("the trusted roots{} cannot be loaded: {what}", path.as_ref().map(|path| format!(" in {}", path.display())).unwrap_or_default())]
    Roots {
        /// The file; `None` for the system's store.
        path: Option<PathBuf>,
        /// The reason.
        what: String,
    },
    /// The token could not be signed.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The request cannot be made or sent.
    #[error("the call cannot be made: {what}")]
    Request {
        /// The reason.
        what: String,
    },
}

fn clock_remark(offset: i64) -> String {
    match offset {
        -60..=60 => String::new(),
        offset => format!("; its clock differs from this device's by {offset} s"),
    }
}

impl CloudError {
    /// Returns the kind of the failure, as a word that never changes.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NetworkDown { .. } => "network-down",
            Self::Timeout { .. } => "timeout",
            Self::Untrusted { .. } => "untrusted",
            Self::Service { .. } => "service-error",
            Self::Throttled { .. } => "throttled",
            Self::DeviceRefused { .. } | Self::CertificateRefused { .. } => "device-refused",
            Self::NotFound { .. } => "not-found",
            Self::Conflict { .. } => "conflict",
            Self::Refused { .. } => "refused",
            Self::Answer { .. } | Self::Roots { .. } | Self::Signer(_) | Self::Request { .. } => {
                "other"
            }
        }
    }

    /// Returns true if the service could not be asked, or could not answer. What was
    /// known before still counts then.
    #[must_use]
    pub fn is_network_down(&self) -> bool {
        matches!(
            self,
            Self::NetworkDown { .. }
                | Self::Timeout { .. }
                | Self::Untrusted { .. }
                | Self::Service { .. }
                | Self::Throttled { .. }
        )
    }

    /// Returns true if the service does not accept this device at all.
    #[must_use]
    pub fn refuses_device(&self) -> bool {
        matches!(self, Self::DeviceRefused { .. } | Self::CertificateRefused { .. })
    }

    /// Returns the pause that the service asks for, if it named one.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Service { retry_after, .. } | Self::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The whole chain of causes in one line, within bounds: a cause may repeat what a
    /// peer sent, its certificate's names.
    #[must_use]
    pub fn chain(&self) -> String {
        cleaned(&error::chain(self), CHAIN_LIMIT)
    }
}
