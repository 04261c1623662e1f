//! Kinds, algorithms and parameters of keys, as callers of a backend name them.

use std::fmt;
use std::str::FromStr;

use edgekeep_core::id::KeyId;

use super::InputError;

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

/// Allowed uses of a symmetric key, set when the key is made. Deriving and signing are
/// one right: both are an HMAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Usage {
    /// True if keys may be derived from the key and messages signed with it.
    pub derive_or_sign: bool,
    /// True if the key may encrypt and decrypt.
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
    /// NIST P-384.
    EcP384,
    /// RSA with 2048 bits.
    Rsa2048,
    /// RSA with 4096 bits.
    Rsa4096,
}

impl PairAlgorithm {
    /// Reads a colon list of `ec-p256`, `ec-p384`, `rsa-2048`, `rsa-4096` and `*` (=
    /// `ec-p256:rsa-2048`), best first. Unknown words are left out, so that clients can
    /// name algorithms of later versions first; nothing at all means `*`.
    #[must_use]
    pub fn preferred(text: Option<&str>) -> Vec<Self> {
        let mut algorithms = Vec::new();
        for word in text.unwrap_or("*").split(':') {
            algorithms.extend_from_slice(match word.trim() {
                "ec-p256" => &[Self::EcP256],
                "ec-p384" => &[Self::EcP384],
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

/// Padding of a block before the RSA private-key operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RsaPadding {
    /// PKCS#1 v1.5 for signatures; the block is at most 11 bytes shorter than the
    /// modulus.
    Pkcs1,
    /// None; the block is as long as the modulus.
    None,
}

/// The symmetric key that an operation uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymmetricKey<'a> {
    /// A stored key.
    Stored(&'a KeyId),
    /// A key that is derived from a stored key, for this operation only.
    Derived {
        /// The stored key.
        base: &'a KeyId,
        /// The data that the derivation takes; different data make different keys.
        data: &'a [u8],
    },
}
