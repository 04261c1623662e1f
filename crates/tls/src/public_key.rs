//! The public half of a key pair in the keys service, as its published calls tell it.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::asn1::{Any, BitString, Null, UintRef};
use der::oid::ObjectIdentifier;
use der::{Encode as _, Sequence};
use edgekeep_api::keyd::{KeyHandle, KeysClient};
use edgekeep_core::ec_point;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use crate::remote_key::RemoteKeyError;

const fn oid(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new_unwrap(text)
}

const EC_PUBLIC_KEY: ObjectIdentifier = oid("1.2.840.10045.2.1");
const P256: ObjectIdentifier = oid("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = oid("1.3.132.0.34");
const RSA_ENCRYPTION: ObjectIdentifier = oid("1.2.840.113549.1.1.1");
const ECDSA_SHA256: ObjectIdentifier = oid("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = oid("1.2.840.10045.4.3.3");
const RSA_SHA256: ObjectIdentifier = oid("1.2.840.113549.1.1.11");

/// P-384's object identifier, in DER.
const P384_DER: &[u8] = &[6, 5, 0x2b, 0x81, 4, 0, 0x22];
/// Length of an uncompressed point of P-384, in bytes.
const P384_POINT: usize = 97;
/// Lengths of RSA moduli that are used, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Kind of a key pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// On the curve P-256.
    P256,
    /// On the curve P-384.
    P384,
    /// RSA.
    Rsa {
        /// Length of the modulus, in bits.
        bits: usize,
    },
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    kind: KeyKind,
    /// An uncompressed point, or DER of [`RsaPublicKey`].
    key: Vec<u8>,
    info: Vec<u8>,
}

/// An RSA key (RFC 8017, appendix A.1.1).
#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    exponent: UintRef<'a>,
}

impl PublicKey {
    /// Asks the keys service for the public half of a key pair.
    pub(crate) async fn ask(keys: &KeysClient, handle: &KeyHandle) -> Result<Self, RemoteKeyError> {
        let ask = async |name| {
            keys.parameter(handle, name)
                .await
                .map_err(|source| RemoteKeyError::Service { step: "read its public half", source })
        };
        match ask("algorithm").await?.as_str() {
            "ECDSA" => {
                let curve = decoded(&ask("ec-curve-oid").await?)?;
                match curve.as_slice() {
                    ec_point::P256_OID_DER => Self::p256(&decoded(&ask("ec-point").await?)?),
                    // Nothing here restores the second coordinate on this curve.
                    P384_DER => Self::p384(&decoded(&ask("ec-point-uncompressed").await?)?),
                    _ => Err(RemoteKeyError::PublicKey("its curve is neither P-256 nor P-384")),
                }
            }
            "RSA" => {
                let modulus = decoded(&ask("rsa-modulus").await?)?;
                Self::rsa(&modulus, &decoded(&ask("rsa-exponent").await?)?)
            }
            _ => Err(RemoteKeyError::PublicKey("its algorithm is neither ECDSA nor RSA")),
        }
    }

    fn p256(point: &[u8]) -> Result<Self, RemoteKeyError> {
        let point = ec_point::uncompressed(point)
            .map_err(|_| RemoteKeyError::PublicKey("its point is not on the curve"))?;
        Self::new(KeyKind::P256, point.to_vec())
    }

    fn p384(point: &[u8]) -> Result<Self, RemoteKeyError> {
        if point.len() != P384_POINT || point[0] != 4 {
            return Err(RemoteKeyError::PublicKey("its point is not written uncompressed"));
        }
        Self::new(KeyKind::P384, point.to_vec())
    }

    fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, RemoteKeyError> {
        let modulus = UintRef::new(modulus)?;
        let bytes = modulus.as_bytes();
        let zeros = bytes.first().map_or(8, |first| first.leading_zeros() as usize);
        let bits = bytes.len() * 8 - zeros;
        if !RSA_BITS.contains(&bits) {
            return Err(RemoteKeyError::PublicKey("its modulus is not of 2048 to 8192 bits"));
        }
        let key = RsaPublicKey { modulus, exponent: UintRef::new(exponent)? };
        Self::new(KeyKind::Rsa { bits }, key.to_der()?)
    }

    fn new(kind: KeyKind, key: Vec<u8>) -> Result<Self, RemoteKeyError> {
        let (oid, parameters) = match kind {
            KeyKind::P256 => (EC_PUBLIC_KEY, Any::encode_from(&P256)?),
            KeyKind::P384 => (EC_PUBLIC_KEY, Any::encode_from(&P384)?),
            KeyKind::Rsa { .. } => (RSA_ENCRYPTION, Any::encode_from(&Null)?),
        };
        let info = SubjectPublicKeyInfoOwned {
            algorithm: AlgorithmIdentifierOwned { oid, parameters: Some(parameters) },
            subject_public_key: BitString::from_bytes(&key)?,
        };
        Ok(Self { kind, key, info: info.to_der()? })
    }

    /// Returns the key's kind.
    #[must_use]
    pub const fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn info(&self) -> &[u8] {
        &self.info
    }

    /// Returns the algorithm of the signatures that [`crate::RemoteKey::sign`] makes.
    #[must_use]
    pub fn signature_algorithm(&self) -> AlgorithmIdentifierOwned {
        let (oid, parameters) = match self.kind {
            KeyKind::P256 => (ECDSA_SHA256, None),
            KeyKind::P384 => (ECDSA_SHA384, None),
            KeyKind::Rsa { .. } => (RSA_SHA256, Some(Any::null())),
        };
        AlgorithmIdentifierOwned { oid, parameters }
    }

    /// Returns true if `signature` is this key's over `message`, by its own algorithm.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &'static dyn VerificationAlgorithm = match self.kind {
            KeyKind::P256 => &signature::ECDSA_P256_SHA256_ASN1,
            KeyKind::P384 => &signature::ECDSA_P384_SHA384_ASN1,
            KeyKind::Rsa { .. } => &signature::RSA_PKCS1_2048_8192_SHA256,
        };
        UnparsedPublicKey::new(algorithm, &self.key).verify(message, signature).is_ok()
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, RemoteKeyError> {
    STANDARD.decode(text).map_err(|_| RemoteKeyError::PublicKey("a parameter is not base64"))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
    };

    use super::*;

    #[test]
    fn the_key_is_written_as_another_library_writes_it() {
        use aws_lc_rs::encoding::AsDer as _;
        for algorithm in [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING] {
            let pair = EcdsaKeyPair::generate(algorithm).unwrap();
            let point = pair.public_key().as_ref();
            let read = PublicKey::p256(point).or_else(|_| PublicKey::p384(point)).unwrap();
            let written = pair.public_key().as_der().unwrap();
            assert_eq!(read.info(), written.as_ref());
        }
    }

    #[test]
    fn parameters_that_are_no_key_are_refused_with_the_reason() {
        for (key, reason) in [
            (PublicKey::p256(&[0]), "not on the curve"),
            (PublicKey::p384(&[2; 49]), "not written uncompressed"),
            (PublicKey::rsa(&[0x80; 128], &[1, 0, 1]), "2048 to 8192 bits"),
        ] {
            let error = key.unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
