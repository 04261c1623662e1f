//! The seam between the keys API and what keeps the keys.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use edgekeep_core::id::KeyId;

use crate::SecretBytes;
use crate::key_file::KeyFileFault;
use crate::pkcs11::TokenError;
use crate::software::StoreError;
use crate::tpm::TpmError;

/// Keeps keys under ids and uses them.
///
/// Symmetric keys and key pairs share one name space. Every method may be called from
/// several threads at once. Methods that a backend does not have answer
/// [`KeyError::NotSupported`].
pub trait KeyBackend: Send + Sync {
    /// What the backend is called in errors and reports.
    fn name(&self) -> &'static str;

    /// The kind of the key named `id`; `None` if there is none.
    ///
    /// # Errors
    /// If the key is there but cannot be loaded.
    fn kind(&self, id: &KeyId) -> Result<Option<KeyKind>, KeyError>;

    /// The same keys, for a thread that must not wait: uses of a key that would take more
    /// than this process's memory are answered with [`KeyError::WouldWait`]. `None` if
    /// that is all of them.
    fn without_waiting(&self) -> Option<Box<dyn KeyBackend + '_>> {
        None
    }

    /// What is known to keep the key named `id`, without looking for it; `None` if
    /// nothing is.
    fn keeper(&self, id: &KeyId) -> Option<&'static str> {
        let _ = id;
        Some(self.name())
    }

    /// Makes a random symmetric key, unless there is one under this id.
    ///
    /// # Errors
    /// If a key pair has this id, or the key cannot be stored.
    fn create_key(&self, id: &KeyId, usage: Usage) -> Result<(), KeyError> {
        let _ = (id, usage);
        Err(self.not_supported(Operation::CreateKey))
    }

    /// Stores a symmetric key, over one that has this id.
    ///
    /// # Errors
    /// If the key is empty or too long, a key pair has this id, or the key cannot be
    /// stored.
    fn import_key(&self, id: &KeyId, bytes: SecretBytes, usage: Usage) -> Result<(), KeyError> {
        let _ = (id, bytes, usage);
        Err(self.not_supported(Operation::ImportKey))
    }

    /// Makes a key pair with the first of `preferred` that the backend can do, unless
    /// there is one under this id.
    ///
    /// # Errors
    /// If a symmetric key has this id, none of the algorithms can be done, or the key
    /// cannot be stored.
    fn create_key_pair(&self, id: &KeyId, preferred: &[PairAlgorithm]) -> Result<(), KeyError> {
        let _ = (id, preferred);
        Err(self.not_supported(Operation::CreateKeyPair))
    }

    /// Gives the key pair `from` the id `to`, over one that has it. At no time is neither
    /// there.
    ///
    /// # Errors
    /// If `from` is not there, a symmetric key has the id `to`, both are the same, or the
    /// store fails.
    fn move_key_pair(&self, from: &KeyId, to: &KeyId) -> Result<(), KeyError> {
        let _ = (from, to);
        Err(self.not_supported(Operation::MoveKeyPair))
    }

    /// Deletes a key for good.
    ///
    /// # Errors
    /// If there is no key of this kind under this id, or the store fails.
    fn delete(&self, id: &KeyId, kind: KeyKind) -> Result<(), KeyError> {
        let _ = (id, kind);
        Err(self.not_supported(Operation::Delete))
    }

    /// One parameter of a key pair's public half.
    ///
    /// # Errors
    /// If there is no such key pair, or its algorithm has no such parameter.
    fn public_parameter(
        &self,
        id: &KeyId,
        parameter: PublicParameter,
    ) -> Result<PublicValue, KeyError> {
        let _ = (id, parameter);
        Err(self.not_supported(Operation::PublicParameter))
    }

    /// ECDSA over a digest that the caller computed. The signature is the DER sequence of
    /// r and s.
    ///
    /// # Errors
    /// If there is no such key pair, it is not an EC one, or the digest has no digest's
    /// length.
    fn sign_ecdsa(&self, id: &KeyId, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
        let _ = (id, digest);
        Err(self.not_supported(Operation::SignEcdsa))
    }

    /// The RSA private-key operation: what a signature is made with. As long as the
    /// modulus.
    ///
    /// # Errors
    /// If there is no such key pair, it is not an RSA one, or the block does not fit the
    /// padding.
    fn rsa_private_operation(
        &self,
        id: &KeyId,
        padding: RsaPadding,
        block: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        let _ = (id, padding, block);
        Err(self.not_supported(Operation::RsaPrivateOperation))
    }

    /// HMAC-SHA256 of a message.
    ///
    /// # Errors
    /// If there is no such symmetric key, or its usage does not cover signing.
    fn hmac_sha256(&self, key: SymmetricKey<'_>, message: &[u8]) -> Result<[u8; 32], KeyError> {
        let _ = (key, message);
        Err(self.not_supported(Operation::HmacSha256))
    }

    /// Encrypts with AES-256-GCM into the versioned layout of existing ciphertexts (wire
    /// facts 5.5).
    ///
    /// # Errors
    /// If there is no such symmetric key, its usage does not cover encryption, it has not
    /// 32 bytes, or `iv` is empty.
    fn encrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        let _ = (key, iv, aad, plaintext);
        Err(self.not_supported(Operation::Encrypt))
    }

    /// Decrypts what [`KeyBackend::encrypt`] returned, and the older layout.
    ///
    /// # Errors
    /// As for encryption; also if the ciphertext is not authentic.
    fn decrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        let _ = (key, iv, aad, ciphertext);
        Err(self.not_supported(Operation::Decrypt))
    }

    /// The key derived from a symmetric key: HMAC-SHA256 of the derivation data, 32
    /// bytes.
    ///
    /// # Errors
    /// If there is no such symmetric key, or its usage does not cover derivation.
    fn export_derived(
        &self,
        base: &KeyId,
        derivation_data: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        let _ = (base, derivation_data);
        Err(self.not_supported(Operation::ExportDerived))
    }

    /// The typed answer for what this backend does not have.
    fn not_supported(&self, operation: Operation) -> KeyError {
        KeyError::NotSupported { backend: self.name(), operation }
    }
}

/// A backend that is another one, under a name of its own, once that one can be had.
pub trait Delegate: Send + Sync {
    /// What does the work.
    type To: KeyBackend;

    /// See [`KeyBackend::name`].
    fn delegate_name(&self) -> &'static str;

    /// What does the work.
    ///
    /// # Errors
    /// If it cannot be had now.
    fn delegate(&self) -> Result<&Self::To, KeyError>;
}

impl<D: Delegate> KeyBackend for D {
    fn name(&self) -> &'static str {
        self.delegate_name()
    }

    fn kind(&self, id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
        self.delegate()?.kind(id)
    }

    fn create_key(&self, id: &KeyId, usage: Usage) -> Result<(), KeyError> {
        self.delegate()?.create_key(id, usage)
    }

    fn import_key(&self, id: &KeyId, bytes: SecretBytes, usage: Usage) -> Result<(), KeyError> {
        self.delegate()?.import_key(id, bytes, usage)
    }

    fn create_key_pair(&self, id: &KeyId, preferred: &[PairAlgorithm]) -> Result<(), KeyError> {
        self.delegate()?.create_key_pair(id, preferred)
    }

    fn move_key_pair(&self, from: &KeyId, to: &KeyId) -> Result<(), KeyError> {
        self.delegate()?.move_key_pair(from, to)
    }

    fn delete(&self, id: &KeyId, kind: KeyKind) -> Result<(), KeyError> {
        self.delegate()?.delete(id, kind)
    }

    fn public_parameter(
        &self,
        id: &KeyId,
        parameter: PublicParameter,
    ) -> Result<PublicValue, KeyError> {
        self.delegate()?.public_parameter(id, parameter)
    }

    fn sign_ecdsa(&self, id: &KeyId, digest: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.delegate()?.sign_ecdsa(id, digest)
    }

    fn rsa_private_operation(
        &self,
        id: &KeyId,
        padding: RsaPadding,
        block: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.delegate()?.rsa_private_operation(id, padding, block)
    }

    fn hmac_sha256(&self, key: SymmetricKey<'_>, message: &[u8]) -> Result<[u8; 32], KeyError> {
        self.delegate()?.hmac_sha256(key, message)
    }

    fn encrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.delegate()?.encrypt(key, iv, aad, plaintext)
    }

    fn decrypt(
        &self,
        key: SymmetricKey<'_>,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        self.delegate()?.decrypt(key, iv, aad, ciphertext)
    }

    fn export_derived(
        &self,
        base: &KeyId,
        derivation_data: &[u8],
    ) -> Result<SecretBytes, KeyError> {
        self.delegate()?.export_derived(base, derivation_data)
    }
}

/// What a backend may be asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is named after its method")]
pub enum Operation {
    CreateKey,
    ImportKey,
    CreateKeyPair,
    MoveKeyPair,
    Delete,
    PublicParameter,
    SignEcdsa,
    RsaPrivateOperation,
    HmacSha256,
    Encrypt,
    Decrypt,
    ExportDerived,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CreateKey => "making a symmetric key",
            Self::ImportKey => "importing a symmetric key",
            Self::CreateKeyPair => "making a key pair of these algorithms",
            Self::MoveKeyPair => "moving a key pair",
            Self::Delete => "deleting a key",
            Self::PublicParameter => "reading a public parameter",
            Self::SignEcdsa => "signing with ECDSA",
            Self::RsaPrivateOperation => "the RSA private-key operation",
            Self::HmacSha256 => "signing with HMAC-SHA256",
            Self::Encrypt => "encrypting",
            Self::Decrypt => "decrypting",
            Self::ExportDerived => "exporting a derived key",
        })
    }
}

/// The two kinds of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// One secret.
    Symmetric,
    /// A private and a public half.
    Pair,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Symmetric => "symmetric key",
            Self::Pair => "key pair",
        })
    }
}

/// What a symmetric key may be used for, decided when it is made. Deriving and signing
/// are one right: both are an HMAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Usage {
    /// Keys may be derived from it and messages signed with it.
    pub derive_or_sign: bool,
    /// It may encrypt and decrypt.
    pub encrypt: bool,
}

impl Usage {
    /// Everything: keys whose maker did not say.
    pub const ALL: Self = Self { derive_or_sign: true, encrypt: true };
}

impl FromStr for Usage {
    type Err = InputError;

    /// Reads a comma list of `derive`, `encrypt`, `sign`.
    fn from_str(text: &str) -> Result<Self, InputError> {
        let mut usage = Self { derive_or_sign: false, encrypt: false };
        for word in text.split(',') {
            match word.trim() {
                "derive" | "sign" => usage.derive_or_sign = true,
                "encrypt" => usage.encrypt = true,
                _ => return Err(InputError::Usage),
            }
        }
        Ok(usage)
    }
}

/// Algorithms of key pairs that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PairAlgorithm {
    /// NIST P-256.
    EcP256,
    /// RSA with 2048 bits.
    Rsa2048,
    /// RSA with 4096 bits.
    Rsa4096,
}

impl PairAlgorithm {
    /// Reads a colon list of `ec-p256`, `rsa-2048`, `rsa-4096` and `*` (=
    /// `ec-p256:rsa-2048`), best first. Unknown words are left out, so that clients can
    /// name algorithms of later versions first; nothing at all means `*`.
    #[must_use]
    pub fn preferred(text: Option<&str>) -> Vec<Self> {
        let mut algorithms = Vec::new();
        for word in text.unwrap_or("*").split(':') {
            algorithms.extend_from_slice(match word.trim() {
                "ec-p256" => &[Self::EcP256],
                "rsa-2048" => &[Self::Rsa2048],
                "rsa-4096" => &[Self::Rsa4096],
                "*" => &[Self::EcP256, Self::Rsa2048],
                _ => &[],
            });
        }
        algorithms
    }
}

/// Parameters of a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PublicParameter {
    /// `ECDSA` or `RSA`.
    Algorithm,
    /// The curve, as a DER object identifier.
    EcCurveOid,
    /// The point, compressed.
    EcPoint,
    /// The point, uncompressed: the form that certificates hold. Ours; the compatible
    /// service has only the other.
    EcPointUncompressed,
    /// The modulus, big-endian without leading zeros.
    RsaModulus,
    /// The public exponent, big-endian without leading zeros.
    RsaExponent,
}

impl FromStr for PublicParameter {
    type Err = InputError;

    fn from_str(name: &str) -> Result<Self, InputError> {
        Ok(match name {
            "algorithm" => Self::Algorithm,
            "ec-curve-oid" => Self::EcCurveOid,
            "ec-point" => Self::EcPoint,
            "ec-point-uncompressed" => Self::EcPointUncompressed,
            "rsa-modulus" => Self::RsaModulus,
            "rsa-exponent" => Self::RsaExponent,
            _ => return Err(InputError::PublicParameter),
        })
    }
}

/// Value of a public parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicValue {
    /// A word.
    Word(&'static str),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// How a block is padded before the RSA private-key operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RsaPadding {
    /// PKCS#1 v1.5 for signatures; the block is at most 11 bytes shorter than the
    /// modulus.
    Pkcs1,
    /// None; the block is as long as the modulus.
    None,
}

/// Which symmetric key an operation uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymmetricKey<'a> {
    /// One that is kept.
    Stored(&'a KeyId),
    /// One that is derived from one that is kept, for this operation only.
    Derived {
        /// The kept one.
        base: &'a KeyId,
        /// What it is derived for.
        data: &'a [u8],
    },
}

/// Why something was not done with a key.
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
        /// What it is.
        found: KeyKind,
        /// What the operation needs.
        expected: KeyKind,
    },
    /// The key may not be used for this.
    #[error("key {id:?} was not made with the usage {needed:?}; make another key with that usage")]
    UsageNotAllowed {
        /// The id.
        id: KeyId,
        /// The usage it would need.
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
        /// Where the key is.
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
        /// Why.
        why: InputError,
    },
    /// The backend cannot do this at all, or not with this key's algorithm.
    #[error("{operation} is not possible with this key in the {backend} backend")]
    NotSupported {
        /// The backend.
        backend: &'static str,
        /// What it was asked to do.
        operation: Operation,
    },
    /// What the caller gave does not fit the operation.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The key store failed.
    #[error("key store")]
    Store(#[from] StoreError),
    /// The TPM failed or refused.
    #[error("TPM")]
    Tpm(#[from] TpmError),
    /// The token failed, or could not be reached.
    #[error("token")]
    Token(#[from] TokenError),
    /// It takes waiting for a disk, and was to be done without.
    #[error("the key is not in memory")]
    WouldWait,
    /// The cryptographic library failed, which it has no reason to.
    #[error("the cryptographic library failed at {operation}")]
    Library {
        /// What it was asked to do.
        operation: Operation,
    },
}

impl KeyError {
    /// Whether another request could have succeeded: the request was wrong, not the
    /// device.
    #[must_use]
    pub fn is_callers_fault(&self) -> bool {
        !matches!(
            self,
            Self::Store(_) | Self::Tpm(_) | Self::Token(_) | Self::WouldWait | Self::Library { .. }
        )
    }
}

/// What is wrong with what a caller gave. Never repeats it: it may be secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// Not a list of known usages.
    #[error("usage is not a comma list of \"derive\", \"encrypt\", \"sign\"")]
    Usage,
    /// No algorithm among those asked for is known.
    #[error(
        "none of the preferred algorithms is known: \"ec-p256\", \"rsa-2048\", \"rsa-4096\", \"*\""
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
        /// How many bytes are allowed.
        limit: usize,
    },
    /// A key that AES-256 cannot use.
    #[error("encryption needs a key of 32 bytes, this one has {found}")]
    KeyLength {
        /// How many it has.
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
        /// How many versions of the key there are, the present one included.
        versions: usize,
    },
    /// A digest of a length that no known hash has.
    #[error("the digest has {found} bytes; SHA-1 has 20, SHA-2 has 28, 32, 48 or 64")]
    DigestLength {
        /// How many it has.
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl KeyBackend for Nothing {
        fn name(&self) -> &'static str {
            "empty"
        }

        fn kind(&self, _id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
            Ok(None)
        }
    }

    #[test]
    fn what_a_backend_does_not_have_it_refuses_with_a_typed_answer() {
        let id: KeyId = "k".parse().unwrap();
        let error = Nothing.hmac_sha256(SymmetricKey::Stored(&id), b"m").unwrap_err();
        assert!(
            matches!(
                error,
                KeyError::NotSupported { backend: "empty", operation: Operation::HmacSha256 }
            ),
            "{error}"
        );
        assert!(error.is_callers_fault());
    }

    #[test]
    fn usage_is_a_comma_list_of_known_words() {
        assert_eq!("derive".parse(), Ok(Usage { derive_or_sign: true, encrypt: false }));
        assert_eq!("sign".parse(), Ok(Usage { derive_or_sign: true, encrypt: false }));
        assert_eq!("encrypt".parse(), Ok(Usage { derive_or_sign: false, encrypt: true }));
        assert_eq!("derive, sign,encrypt".parse(), Ok(Usage::ALL));
        for text in ["", ",", "Sign", "sign,", "sign;encrypt", "wrap"] {
            assert_eq!(text.parse::<Usage>(), Err(InputError::Usage), "{text:?}");
        }
    }

    #[test]
    fn preferred_algorithms_keep_their_order_and_leave_out_unknown_words() {
        use PairAlgorithm::{EcP256, Rsa2048, Rsa4096};
        assert_eq!(PairAlgorithm::preferred(None), [EcP256, Rsa2048]);
        assert_eq!(
            PairAlgorithm::preferred(Some("ml-dsa-65:rsa-4096:*")),
            [Rsa4096, EcP256, Rsa2048]
        );
        assert_eq!(PairAlgorithm::preferred(Some("ml-dsa-65")), []);
        assert_eq!(PairAlgorithm::preferred(Some("")), []);
    }
}
