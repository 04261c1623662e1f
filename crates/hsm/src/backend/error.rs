//! Refusals and failures of key operations.

use std::fmt;
use std::path::PathBuf;

use edgekeep_core::credentials::{Finding, Purpose};
use edgekeep_core::id::KeyId;

use super::{KeyKind, Operation};

/// The reason why an operation on a key failed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No key has this id.
    #[error("there is no key {id:?}")]
    NotFound {
        /// The id.
        id: KeyId,
    },
    /// The key is of the other kind.
    #[error("{id:?} is a {found}, not a {expected}")]
    WrongKind {
        /// The id.
        id: KeyId,
        /// Kind of the key.
        found: KeyKind,
        /// Kind of key that the operation needs.
        expected: KeyKind,
    },
    /// The key may not be used for this.
    #[error("key {id:?} was not made with the usage {needed:?}; make another key with that usage")]
    UsageNotAllowed {
        /// The id.
        id: KeyId,
        /// The usage that the key lacks.
        needed: &'static str,
    },
    /// The key is in a file that the configuration names, which is not this backend's to
    /// change.
    #[error(
        "key {id:?} is preloaded from the file {path:?}: change that file, or [preloaded_keys] in the configuration"
    )]
    Preloaded {
        /// The id.
        id: KeyId,
        /// Path of the file, or URI of the token object, that holds the key.
        path: PathBuf,
    },
    /// The key is in a file that the configuration names, and the file holds no key that
    /// can be used.
    #[error("key {id:?} cannot be read from the file {path:?}: {why}")]
    PreloadedUnusable {
        /// The id.
        id: KeyId,
        /// The file.
        path: PathBuf,
        /// The fault of the file's content.
        why: InputError,
    },
    /// The backend cannot do this at all, or not with this key's algorithm.
    #[error("{operation} is not possible with this key in the {backend} backend")]
    NotSupported {
        /// The backend.
        backend: &'static str,
        /// The operation that was asked of the backend.
        operation: Operation,
    },
    /// The caller's input does not fit the operation.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The backend's own part failed, refused, or could not be reached.
    #[error("{part}")]
    Backend {
        /// The part: "key store", "TPM", "token".
        part: &'static str,
        /// The part's own error; [`KeyError::cause`] looks for one of a type.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The operation would wait for a disk, and the caller asked not to wait.
    #[error("the key is not in memory")]
    WouldWait,
    /// The cryptographic library failed, which it has no reason to.
    #[error("the cryptographic library failed at {operation}")]
    Library {
        /// The operation that failed.
        operation: Operation,
    },
}

impl KeyError {
    /// The failure of a backend's own part.
    pub fn backend(
        part: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Backend { part, source: source.into() }
    }

    /// The error of a backend's own part, if it is one of this type.
    #[must_use]
    pub fn cause<E: std::error::Error + 'static>(&self) -> Option<&E> {
        match self {
            Self::Backend { source, .. } => source.downcast_ref(),
            _ => None,
        }
    }

    /// True if another request could have succeeded: the request was wrong, not the
    /// device.
    #[must_use]
    pub fn is_callers_fault(&self) -> bool {
        !matches!(self, Self::Backend { .. } | Self::WouldWait | Self::Library { .. })
    }
}

/// A fault in a caller's input. The message never repeats the input, which may be secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// Not a list of known usages.
    #[error("usage is not a comma list of \"derive\", \"encrypt\", \"sign\"")]
    Usage,
    /// No algorithm among those asked for is known.
    #[error(
        "none of the preferred algorithms is known: \"ec-p256\", \"ec-p384\", \"rsa-2048\", \"rsa-4096\", \"*\""
    )]
    PreferredAlgorithms,
    /// No public parameter has this name.
    #[error(
        "unknown public parameter: algorithm, ec-curve-oid, ec-point, ec-point-uncompressed, rsa-modulus, rsa-exponent are known"
    )]
    PublicParameter,
    /// The key's algorithm has no such parameter.
    #[error("the key pair's algorithm has no such public parameter")]
    NoSuchParameter,
    /// A key without bytes.
    #[error("the key is empty")]
    EmptyKey,
    /// A key that is too long to be one.
    #[error("the key is longer than {limit} bytes")]
    LongKey {
        /// Longest allowed key, in bytes.
        limit: usize,
    },
    /// A key that AES-256 cannot use.
    #[error("encryption needs a key of 32 bytes, this one has {found}")]
    KeyLength {
        /// Length of the key, in bytes.
        found: usize,
    },
    /// A private key that cannot be used.
    #[error(
        "the private key is damaged or cannot be used: use EC P-256, EC P-384 or RSA of 2048 to 8192 bits"
    )]
    PrivateKey,
    /// A key file that holds no key, or one of a form that is not read.
    #[error("{0}")]
    KeyFile(KeyFileFault),
    /// An empty IV.
    #[error("the iv is empty")]
    EmptyIv,
    /// A ciphertext shorter than its version byte and tag.
    #[error("the ciphertext is shorter than 17 bytes")]
    ShortCiphertext,
    /// A ciphertext of another version.
    #[error("the ciphertext has the unknown version {found}")]
    CiphertextVersion {
        /// Its version byte.
        found: u8,
    },
    /// A ciphertext that was not made with this key, IV and additional data, or was
    /// changed since.
    #[error("the ciphertext is not authentic under this key, iv and aad")]
    NotAuthentic,
    /// The same, under every version of the key that there is.
    #[error(
        "the ciphertext is not authentic under any of the {versions} versions of this key, with this iv and aad: it was \
         changed, or made with another key"
    )]
    NoVersionFits {
        /// Number of versions of the key, the present one included.
        versions: usize,
    },
    /// A digest of a length that no known hash has.
    #[error("the digest has {found} bytes; SHA-1 has 20, SHA-2 has 28, 32, 48 or 64")]
    DigestLength {
        /// Length of the digest, in bytes.
        found: usize,
    },
    /// A block that does not fit modulus and padding.
    #[error(
        "the block does not fit: at most {limit} bytes for PKCS#1, and exactly the modulus's length and below it without padding"
    )]
    RsaBlock {
        /// Longest block with PKCS#1 padding under this key.
        limit: usize,
    },
    /// A key pair moved onto itself.
    #[error("the key pair has this id already")]
    SameId,
}

/// A fault of a key file, with what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyFileFault(pub Finding);

impl fmt::Display for KeyFileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.0, self.0.fault.remedy(Purpose::Key))
    }
}
