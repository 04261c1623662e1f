//! A key pair in the keys service: its public half as published calls tell it, and
//! requests for certificates that it signs. The private half never comes here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::asn1::{Any, BitString, Null, OctetString, SetOfVec, UintRef, Utf8StringRef};
use der::oid::{AssociatedOid, ObjectIdentifier};
use der::{Encode, Sequence};
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{EncryptMechanism, KeyHandle, KeysClient, SignMechanism};
use edgekeep_core::ec_point;
use x509_cert::attr::{Attribute, AttributeTypeAndValue};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};
use x509_cert::name::{RdnSequence, RelativeDistinguishedName};
use x509_cert::request::ExtensionReq;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// Longest common name, in characters (RFC 5280, appendix A.1).
const COMMON_NAME_LIMIT: usize = 64;

/// DER of a `DigestInfo` for SHA-256 up to the digest itself (RFC 8017, section 9.2, note
/// 1).
const DIGEST_INFO_SHA256: [u8; 19] =
    [0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20];

/// Failure to use a key pair.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteKeyError {
    /// The keys service refused or cannot be reached.
    #[error("cannot {step}")]
    Service {
        /// Step that failed, worded to follow "cannot".
        step: &'static str,
        /// Error of the call to the service.
        #[source]
        source: ClientError,
    },
    /// The public half cannot be used.
    #[error("the Edge CA's key is unusable: {0}")]
    PublicKey(&'static str),
    /// The request could not be written.
    #[error("the request for the certificate cannot be encoded")]
    Encoding(#[from] der::Error),
}

/// A key pair that can sign.
#[derive(Debug)]
pub(crate) struct RemoteKey {
    keys: KeysClient,
    handle: KeyHandle,
    public: PublicKey,
}

/// The public half.
#[derive(Debug, PartialEq, Eq)]
enum PublicKey {
    /// An uncompressed point of P-256.
    Ec([u8; ec_point::UNCOMPRESSED_LEN]),
    /// DER of [`RsaPublicKey`].
    Rsa(Vec<u8>),
}

/// An RSA key (RFC 8017, appendix A.1.1).
#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    exponent: UintRef<'a>,
}

/// The signed part of a request (RFC 2986, section 4.1).
#[derive(Sequence)]
struct RequestInfo {
    version: u8,
    subject: RdnSequence,
    key: SubjectPublicKeyInfoOwned,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT")]
    attributes: SetOfVec<Attribute>,
}

/// A request.
#[derive(Sequence)]
struct Request {
    info: Any,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

impl RemoteKey {
    /// Asks for the public half, by published parameters alone.
    pub(crate) async fn load(keys: KeysClient, handle: KeyHandle) -> Result<Self, RemoteKeyError> {
        let ask = async |name| {
            let answer = keys.parameter(&handle, name).await;
            answer.map_err(|source| RemoteKeyError::Service {
                step: "read the public key of the Edge CA",
                source,
            })
        };
        let public = match ask("algorithm").await?.as_str() {
            "ECDSA" => PublicKey::ec(&ask("ec-curve-oid").await?, &ask("ec-point").await?)?,
            "RSA" => PublicKey::rsa(&ask("rsa-modulus").await?, &ask("rsa-exponent").await?)?,
            _ => return Err(RemoteKeyError::PublicKey("its algorithm is neither ECDSA nor RSA")),
        };
        Ok(Self { keys, handle, public })
    }

    /// Returns a request, in PEM, for the certificate of a CA that signs leaves alone.
    pub(crate) async fn ca_request(&self, common_name: &str) -> Result<String, RemoteKeyError> {
        let info = self.public.ca_request(common_name)?;
        let digest = edgekeep_daemon::store::sha256(&info);
        let signature = match &self.public {
            PublicKey::Ec(_) => {
                let mechanism =
                    SignMechanism::Ecdsa { digest: digest.as_bytes().as_slice().into() };
                self.keys.sign(&self.handle, mechanism).await
            }
            PublicKey::Rsa(_) => {
                let block = [&DIGEST_INFO_SHA256[..], digest.as_bytes()].concat();
                self.keys.encrypt(&self.handle, EncryptMechanism::RsaPkcs1, block).await
            }
        };
        let signature = signature.map_err(|source| RemoteKeyError::Service {
            step: "have the request for the Edge CA certificate signed",
            source,
        })?;
        let request = Request {
            info: der::Decode::from_der(&info)?,
            algorithm: self.public.signature_algorithm(),
            signature: BitString::from_bytes(&signature)?,
        };
        Ok(pem("CERTIFICATE REQUEST", &request.to_der()?))
    }
}

impl PublicKey {
    /// Reads the parameters of an EC key. The point is compressed, in a service of ours
    /// and in others.
    fn ec(curve: &str, point: &str) -> Result<Self, RemoteKeyError> {
        if decoded(curve)? != ec_point::P256_OID_DER {
            return Err(RemoteKeyError::PublicKey("its curve is not P-256"));
        }
        let point = ec_point::uncompressed(&decoded(point)?);
        point.map(Self::Ec).map_err(|_| RemoteKeyError::PublicKey("its point is not on the curve"))
    }

    fn rsa(modulus: &str, exponent: &str) -> Result<Self, RemoteKeyError> {
        let (modulus, exponent) = (decoded(modulus)?, decoded(exponent)?);
        let key =
            RsaPublicKey { modulus: UintRef::new(&modulus)?, exponent: UintRef::new(&exponent)? };
        Ok(Self::Rsa(key.to_der()?))
    }

    fn info(&self) -> der::Result<SubjectPublicKeyInfoOwned> {
        let (oid, parameters, key) = match self {
            Self::Ec(point) => (EC_PUBLIC_KEY, Any::encode_from(&P256)?, &point[..]),
            Self::Rsa(key) => (RSA_ENCRYPTION, Any::encode_from(&Null)?, &key[..]),
        };
        Ok(SubjectPublicKeyInfoOwned {
            algorithm: AlgorithmIdentifierOwned { oid, parameters: Some(parameters) },
            subject_public_key: BitString::from_bytes(key)?,
        })
    }

    fn signature_algorithm(&self) -> AlgorithmIdentifierOwned {
        match self {
            Self::Ec(_) => AlgorithmIdentifierOwned { oid: ECDSA_SHA256, parameters: None },
            Self::Rsa(_) => {
                AlgorithmIdentifierOwned { oid: RSA_SHA256, parameters: Some(Any::null()) }
            }
        }
    }

    /// Returns what of a request is to be signed.
    fn ca_request(&self, common_name: &str) -> der::Result<Vec<u8>> {
        let name: String = common_name.chars().take(COMMON_NAME_LIMIT).collect();
        let pair = AttributeTypeAndValue {
            oid: COMMON_NAME,
            value: Any::encode_from(&Utf8StringRef::new(&name)?)?,
        };
        let usage = KeyUsage(KeyUsages::DigitalSignature | KeyUsages::KeyCertSign);
        let extensions = vec![
            critical(&BasicConstraints { ca: true, path_len_constraint: Some(0) })?,
            critical(&usage)?,
        ];
        let info = RequestInfo {
            version: 0,
            subject: RdnSequence::from(vec![RelativeDistinguishedName::from(SetOfVec::try_from(
                [pair],
            )?)]),
            key: self.info()?,
            attributes: SetOfVec::try_from([Attribute::try_from(ExtensionReq(extensions))?])?,
        };
        info.to_der()
    }
}

fn critical<T: AssociatedOid + Encode>(value: &T) -> der::Result<Extension> {
    Ok(Extension {
        extn_id: T::OID,
        critical: true,
        extn_value: OctetString::new(value.to_der()?)?,
    })
}

fn decoded(text: &str) -> Result<Vec<u8>, RemoteKeyError> {
    STANDARD.decode(text).map_err(|_| RemoteKeyError::PublicKey("a parameter is not base64"))
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsBigEndian, EcPublicKeyCompressedBin};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

    use super::*;

    #[test]
    fn a_compressed_point_is_the_key_that_another_library_made() {
        for _ in 0..50 {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
            let compressed: EcPublicKeyCompressedBin<'_> = pair.public_key().as_be_bytes().unwrap();
            let curve = STANDARD.encode(ec_point::P256_OID_DER);
            let read = PublicKey::ec(&curve, &STANDARD.encode(compressed.as_ref())).unwrap();
            let uncompressed = pair.public_key().as_ref();
            assert!(matches!(&read, PublicKey::Ec(point) if point[..] == *uncompressed));
            assert_eq!(PublicKey::ec(&curve, &STANDARD.encode(uncompressed)).unwrap(), read);
        }
    }

    #[test]
    fn parameters_that_are_no_key_are_refused_with_the_reason() {
        let curve = STANDARD.encode(ec_point::P256_OID_DER);
        let p384 = STANDARD.encode([6, 5, 0x2b, 0x81, 4, 0, 0x22]);
        for (curve, point, reason) in [
            (p384.as_str(), "", "its curve is not P-256"),
            (&curve, "AA==", "not on the curve"),
            (&curve, "!", "not base64"),
            ("!", "", "not base64"),
        ] {
            let error = PublicKey::ec(curve, point).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_modulus_with_its_top_bit_set_is_not_written_as_a_negative_number() {
        let key = PublicKey::rsa(&STANDARD.encode([0x80, 1]), &STANDARD.encode([1, 0, 1])).unwrap();
        assert_eq!(key, PublicKey::Rsa(vec![0x30, 10, 2, 3, 0, 0x80, 1, 2, 3, 1, 0, 1]));
    }
}
