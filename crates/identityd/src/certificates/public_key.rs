//! Public keys: read, checked, and written anew.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{self, ParsedPublicKey, UnparsedPublicKey, VerificationAlgorithm};
use der::asn1::{Any, BitString, Null, UintRef};
use der::oid::ObjectIdentifier;
use der::{Decode as _, Encode as _, Sequence};
use edgekeep_core::ec_point;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

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
const RSA_SHA384: ObjectIdentifier = oid("1.2.840.113549.1.1.12");
const RSA_SHA512: ObjectIdentifier = oid("1.2.840.113549.1.1.13");

/// Length of an uncompressed point of P-384, in bytes.
const P384_POINT: usize = 97;

/// Kinds of keys that sign certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyKind {
    P256,
    P384,
    Rsa,
}

/// A public key that was parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicKey {
    pub(super) kind: KeyKind,
    /// An uncompressed point, or DER of [`RsaPublicKey`].
    key: Vec<u8>,
}

/// An RSA key (RFC 8017, appendix A.1.1).
#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    exponent: UintRef<'a>,
}

impl PublicKey {
    /// Reads a key. The text of an error follows on "the request" or "the issuer".
    pub(super) fn read(info: &SubjectPublicKeyInfoOwned) -> Result<Self, &'static str> {
        let key = info.subject_public_key.as_bytes().ok_or("its key is not of whole bytes")?;
        let parameters = info.algorithm.parameters.as_ref();
        match info.algorithm.oid {
            EC_PUBLIC_KEY => {
                match parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok()) {
                    Some(P256) => Self::p256(key),
                    Some(P384) => Self::p384(key),
                    _ => Err("its key is on a curve other than P-256 and P-384"),
                }
            }
            RSA_ENCRYPTION => match parameters {
                None => Self::rsa(key),
                Some(any) if any.is_null() => Self::rsa(key),
                Some(_) => Err("its RSA key has parameters"),
            },
            _ => Err("its key is neither EC nor RSA"),
        }
    }

    fn p256(point: &[u8]) -> Result<Self, &'static str> {
        let point =
            ec_point::uncompressed(point).map_err(|_| "its key is no point of the curve")?;
        Ok(Self { kind: KeyKind::P256, key: point.to_vec() })
    }

    fn p384(point: &[u8]) -> Result<Self, &'static str> {
        if point.len() != P384_POINT || point[0] != 4 {
            return Err("its key is not an uncompressed point");
        }
        let parsed = ParsedPublicKey::new(&signature::ECDSA_P384_SHA384_ASN1, point);
        parsed.map_err(|_| "its key is no point of the curve")?;
        Ok(Self { kind: KeyKind::P384, key: point.to_vec() })
    }

    fn rsa(der: &[u8]) -> Result<Self, &'static str> {
        let unusable = "its RSA key cannot be used: keys of 2048 to 8192 bits can";
        let key = RsaPublicKey::from_der(der).map_err(|_| "its RSA key cannot be read")?;
        let bytes = key.modulus.as_bytes();
        let bits =
            bytes.len() * 8 - bytes.first().map_or(8, |first| first.leading_zeros() as usize);
        if !(2048..=8192).contains(&bits) {
            return Err(unusable);
        }
        let der = key.to_der().map_err(|_| unusable)?;
        ParsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, &der).map_err(|_| unusable)?;
        Ok(Self { kind: KeyKind::Rsa, key: der })
    }

    /// Writes the key.
    pub(super) fn info(&self) -> der::Result<SubjectPublicKeyInfoOwned> {
        let (oid, parameters) = match self.kind {
            KeyKind::P256 => (EC_PUBLIC_KEY, Any::encode_from(&P256)?),
            KeyKind::P384 => (EC_PUBLIC_KEY, Any::encode_from(&P384)?),
            KeyKind::Rsa => (RSA_ENCRYPTION, Any::encode_from(&Null)?),
        };
        Ok(SubjectPublicKeyInfoOwned {
            algorithm: AlgorithmIdentifierOwned { oid, parameters: Some(parameters) },
            subject_public_key: BitString::from_bytes(&self.key)?,
        })
    }

    /// Returns the algorithms, as keyd takes them, of which a successor of this key can
    /// be, the likest first. keyd makes no keys of the other sizes that it can hold.
    pub(super) fn successors(&self) -> &'static str {
        match self.kind {
            KeyKind::P256 => "ec-p256:rsa-2048:*",
            KeyKind::P384 => "ec-p384:ec-p256:rsa-2048:*",
            // DER of a key of 2048 bits has 270 bytes.
            KeyKind::Rsa if self.key.len() <= 280 => "rsa-2048:ec-p256:*",
            KeyKind::Rsa => "rsa-4096:rsa-2048:*",
        }
    }

    /// Returns the SHA-256 of the key, cut to 160 bits (RFC 7093, method 1).
    pub(super) fn id(&self) -> Vec<u8> {
        digest::digest(&digest::SHA256, &self.key).as_ref()[..20].to_vec()
    }

    /// Tells whether `signature` is this key's over `message`, by this algorithm.
    pub(super) fn verifies(
        &self,
        algorithm: ObjectIdentifier,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        let algorithm: &'static dyn VerificationAlgorithm = match (self.kind, algorithm) {
            (KeyKind::P256, ECDSA_SHA256) => &signature::ECDSA_P256_SHA256_ASN1,
            (KeyKind::P256, ECDSA_SHA384) => &signature::ECDSA_P256_SHA384_ASN1,
            (KeyKind::P384, ECDSA_SHA256) => &signature::ECDSA_P384_SHA256_ASN1,
            (KeyKind::P384, ECDSA_SHA384) => &signature::ECDSA_P384_SHA384_ASN1,
            (KeyKind::Rsa, RSA_SHA256) => &signature::RSA_PKCS1_2048_8192_SHA256,
            (KeyKind::Rsa, RSA_SHA384) => &signature::RSA_PKCS1_2048_8192_SHA384,
            (KeyKind::Rsa, RSA_SHA512) => &signature::RSA_PKCS1_2048_8192_SHA512,
            _ => return false,
        };
        UnparsedPublicKey::new(algorithm, &self.key).verify(message, signature).is_ok()
    }

    /// Returns the algorithm of signatures that are made with this kind of key.
    pub(super) fn signature_algorithm(&self) -> AlgorithmIdentifierOwned {
        match self.kind {
            KeyKind::P256 | KeyKind::P384 => {
                AlgorithmIdentifierOwned { oid: ECDSA_SHA256, parameters: None }
            }
            KeyKind::Rsa => {
                AlgorithmIdentifierOwned { oid: RSA_SHA256, parameters: Some(Any::null()) }
            }
        }
    }
}
