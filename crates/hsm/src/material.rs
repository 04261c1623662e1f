//! Keys in memory, ready for use.

use aws_lc_rs::digest::{Digest, SHA256, SHA384};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::hmac;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair as _, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::SecretBytes;
use crate::aws_lc::RsaPrivateKey;
use crate::backend::{
    InputError, KeyError, KeyKind, Operation, PairAlgorithm, PublicParameter, PublicValue,
    RsaPadding, Usage,
};

/// Longest symmetric key that is taken in. HMAC hashes anything above 64 bytes down to
/// 32, so this only bounds memory.
const SYMMETRIC_LIMIT: usize = 64 * 1024;

/// A key that can be used at once.
pub(crate) enum Material {
    Symmetric(Box<Symmetric>),
    Pair(Pair),
}

/// A symmetric key.
pub(crate) struct Symmetric {
    pub(crate) usage: Usage,
    /// Expanded for each use: what the library makes of it is in memory that others could
    /// read.
    pub(crate) bytes: SecretBytes,
}

/// A key pair.
pub(crate) enum Pair {
    /// The private half is read anew for each signature (a dozen microseconds): what the
    /// library makes of it is in memory that others could read, and is wiped when it
    /// goes.
    Ec {
        curve: &'static Curve,
        /// PKCS#8 in DER.
        private: SecretBytes,
        /// The public point, uncompressed.
        point: Vec<u8>,
    },
    Rsa {
        private: RsaPrivateKey,
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
}

/// The parameters that differ between the supported curves.
pub(crate) struct Curve {
    pub(crate) signing: &'static EcdsaSigningAlgorithm,
    digest: &'static aws_lc_rs::digest::Algorithm,
    /// Length of a field element, and of the digests that a signature covers, in bytes.
    pub(crate) len: usize,
    /// The curve's object identifier in DER, with tag and length.
    pub(crate) oid: &'static [u8],
}

pub(crate) static P256: Curve = Curve {
    signing: &ECDSA_P256_SHA256_ASN1_SIGNING,
    digest: &SHA256,
    len: 32,
    oid: &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
};

pub(crate) static P384: Curve = Curve {
    signing: &ECDSA_P384_SHA384_ASN1_SIGNING,
    digest: &SHA384,
    len: 48,
    oid: &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
};

impl Material {
    /// Returns the kind of the key.
    pub(crate) fn kind(&self) -> KeyKind {
        match self {
            Self::Symmetric(_) => KeyKind::Symmetric,
            Self::Pair(_) => KeyKind::Pair,
        }
    }

    /// Readies a key from its stored form: raw bytes, or a PKCS#8 private key in DER.
    pub(crate) fn from_stored(
        kind: KeyKind,
        usage: Usage,
        secret: SecretBytes,
    ) -> Result<Self, InputError> {
        match kind {
            KeyKind::Symmetric => {
                Symmetric::new(secret, usage).map(|key| Self::Symmetric(Box::new(key)))
            }
            KeyKind::Pair => Pair::from_pkcs8(secret.expose()).map(Self::Pair),
        }
    }
}

impl Symmetric {
    pub(crate) fn new(bytes: SecretBytes, usage: Usage) -> Result<Self, InputError> {
        check_symmetric(bytes.expose())?;
        Ok(Self { usage, bytes: bytes.kept() })
    }

    /// HMAC-SHA256 of `message`.
    pub(crate) fn hmac_sha256(&self, message: &[u8]) -> [u8; 32] {
        hmac_sha256(self.bytes.expose(), message)
    }

    /// The key derived for `data`.
    pub(crate) fn derive(&self, data: &[u8]) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.hmac_sha256(data))
    }
}

/// Checks that bytes can be a symmetric key: not empty, and not too long.
pub(crate) fn check_symmetric(bytes: &[u8]) -> Result<(), InputError> {
    match bytes.len() {
        0 => Err(InputError::EmptyKey),
        len if len > SYMMETRIC_LIMIT => Err(InputError::LongKey { limit: SYMMETRIC_LIMIT }),
        _ => Ok(()),
    }
}

/// HMAC-SHA256 under a key that is used once.
pub(crate) fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(tag.as_ref());
    bytes
}

impl Pair {
    /// Makes a key pair and returns its PKCS#8 form. RSA takes a while: up to seconds for
    /// 4096 bits.
    pub(crate) fn generate(algorithm: PairAlgorithm) -> Result<SecretBytes, KeyError> {
        let failed = |_| KeyError::Library { operation: Operation::CreateKeyPair };
        let on_curve = |curve: &Curve| {
            let pair = EcdsaKeyPair::generate(curve.signing).map_err(failed)?;
            Ok(pair.to_pkcs8v1().map_err(failed)?.as_ref().into())
        };
        let size = match algorithm {
            PairAlgorithm::EcP256 => return on_curve(&P256),
            PairAlgorithm::EcP384 => return on_curve(&P384),
            PairAlgorithm::Rsa2048 => KeySize::Rsa2048,
            PairAlgorithm::Rsa4096 => KeySize::Rsa4096,
        };
        let pair = RsaKeyPair::generate(size).map_err(failed)?;
        Ok(pair.as_der().map_err(failed)?.as_ref().into())
    }

    /// Reads a PKCS#8 private key in DER.
    pub(crate) fn from_pkcs8(der: &[u8]) -> Result<Self, InputError> {
        for curve in [&P256, &P384] {
            if let Ok(private) = EcdsaKeyPair::from_pkcs8(curve.signing, der) {
                let point = private.public_key().as_ref().to_vec();
                return Ok(Self::Ec { curve, private: SecretBytes::from(der).kept(), point });
            }
        }
        // The safe binding judges the key (size, consistency) and shows its public half;
        // the other does the private operation, which the safe one does not offer.
        let judged = RsaKeyPair::from_pkcs8(der).map_err(|_| InputError::PrivateKey)?;
        let (modulus, exponent) =
            rsa_public_parts(judged.public_key().as_ref()).ok_or(InputError::PrivateKey)?;
        let private = RsaPrivateKey::from_pkcs8(der).map_err(|_| InputError::PrivateKey)?;
        Ok(Self::Rsa { private, modulus, exponent })
    }

    /// The public half as a SubjectPublicKeyInfo in DER (RFC 5480, RFC 8017).
    pub(crate) fn public_key_info(&self) -> Vec<u8> {
        let (algorithm, key) = match self {
            Self::Ec { curve, point, .. } => {
                (der(0x30, &[EC_PUBLIC_KEY, curve.oid]), point.clone())
            }
            Self::Rsa { modulus, exponent, .. } => (
                der(0x30, &[RSA_ENCRYPTION, &[5, 0]]),
                der(0x30, &[&der_unsigned(modulus), &der_unsigned(exponent)]),
            ),
        };
        der(0x30, &[&algorithm, &der(0x03, &[&[0], &key])])
    }

    pub(crate) fn public_parameter(
        &self,
        parameter: PublicParameter,
    ) -> Result<PublicValue, InputError> {
        Ok(match (self, parameter) {
            (Self::Ec { .. }, PublicParameter::Algorithm) => PublicValue::Word("ECDSA"),
            (Self::Ec { curve, .. }, PublicParameter::EcCurveOid) => {
                PublicValue::Bytes(curve.oid.to_vec())
            }
            (Self::Ec { curve, point, .. }, PublicParameter::EcPoint) => {
                PublicValue::Bytes(compress(point, curve.len).ok_or(InputError::PrivateKey)?)
            }
            (Self::Ec { point, .. }, PublicParameter::EcPointUncompressed) => {
                PublicValue::Bytes(point.clone())
            }
            (Self::Rsa { .. }, PublicParameter::Algorithm) => PublicValue::Word("RSA"),
            (Self::Rsa { modulus, .. }, PublicParameter::RsaModulus) => {
                PublicValue::Bytes(modulus.clone())
            }
            (Self::Rsa { exponent, .. }, PublicParameter::RsaExponent) => {
                PublicValue::Bytes(exponent.clone())
            }
            (Self::Ec { .. }, PublicParameter::RsaModulus | PublicParameter::RsaExponent)
            | (
                Self::Rsa { .. },
                PublicParameter::EcCurveOid
                | PublicParameter::EcPoint
                | PublicParameter::EcPointUncompressed,
            ) => {
                return Err(InputError::NoSuchParameter);
            }
        })
    }

    /// ECDSA over a digest, or `None` if this is not an EC key.
    pub(crate) fn sign_ecdsa(&self, digest: &[u8]) -> Option<Result<Vec<u8>, KeyError>> {
        let Self::Ec { curve, private, .. } = self else { return None };
        if !matches!(digest.len(), 20 | 28 | 32 | 48 | 64) {
            return Some(Err(InputError::DigestLength { found: digest.len() }.into()));
        }
        let signature = Digest::import_less_safe(&fit_digest(digest, curve.len), curve.digest)
            .ok()
            .zip(EcdsaKeyPair::from_pkcs8(curve.signing, private.expose()).ok())
            .and_then(|(digest, private)| private.sign_digest(&digest).ok())
            .map(|signature| signature.as_ref().to_vec());
        Some(signature.ok_or(KeyError::Library { operation: Operation::SignEcdsa }))
    }

    /// The private-key operation, or `None` if this is not an RSA key.
    pub(crate) fn rsa_private_operation(
        &self,
        padding: RsaPadding,
        block: &[u8],
    ) -> Option<Result<Vec<u8>, InputError>> {
        let Self::Rsa { private, .. } = self else { return None };
        let limit = private.modulus_len() - 11;
        let fits = match padding {
            RsaPadding::Pkcs1 => block.len() <= limit,
            RsaPadding::None => block.len() == private.modulus_len(),
        };
        // Of what fits, the library refuses only blocks that are not below the modulus.
        Some(
            (if fits { private.private_operation(padding, block).ok() } else { None })
                .ok_or(InputError::RsaBlock { limit }),
        )
    }
}

/// The digest as ECDSA takes it (SEC 1, 4.1.3): the leftmost bits up to the length of the
/// group order. A shorter digest is the same number with zeros in front.
pub(crate) fn fit_digest(digest: &[u8], len: usize) -> Vec<u8> {
    let kept = &digest[..digest.len().min(len)];
    let mut fitted = vec![0; len - kept.len()];
    fitted.extend_from_slice(kept);
    fitted
}

/// The compressed form of an uncompressed point: one coordinate and the other's parity.
pub(crate) fn compress(point: &[u8], len: usize) -> Option<Vec<u8>> {
    let (&form, coordinates) = point.split_first()?;
    if form != 4 || coordinates.len() != 2 * len {
        return None;
    }
    let (x, y) = coordinates.split_at(len);
    let mut compressed = vec![2 | (y.last()? & 1)];
    compressed.extend_from_slice(x);
    Some(compressed)
}

/// Object identifiers in DER, with tag and length.
const EC_PUBLIC_KEY: &[u8] = &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const RSA_ENCRYPTION: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];

/// A DER element around `parts`.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let bytes = content.len().to_be_bytes();
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len() - 1);
    let length = &bytes[first..];
    let mut element = vec![tag];
    if content.len() >= 0x80 {
        element.push(0x80 | u8::try_from(length.len()).unwrap_or(u8::MAX));
    }
    element.extend_from_slice(length);
    element.extend_from_slice(&content);
    element
}

/// A DER INTEGER of a number without sign or leading zeros.
fn der_unsigned(number: &[u8]) -> Vec<u8> {
    let sign: &[u8] = if number.first().is_none_or(|first| *first >= 0x80) { &[0] } else { &[] };
    der(0x02, &[sign, number])
}

/// Modulus and exponent out of a DER `RSAPublicKey`, without the sign byte.
fn rsa_public_parts(der: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (sequence, rest) = der_element(0x30, der)?;
    let (modulus, after) = der_element(0x02, sequence)?;
    let (exponent, end) = der_element(0x02, after)?;
    let unsigned = |integer: &[u8]| {
        let zeros = integer.iter().take_while(|byte| **byte == 0).count();
        integer[zeros..].to_vec()
    };
    (rest.is_empty() && end.is_empty()).then(|| (unsigned(modulus), unsigned(exponent)))
}

/// Content of the DER element that `input` begins with, and what follows it.
fn der_element(tag: u8, input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        let fits = bytes.len() <= 4;
        (fits.then(|| bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)))?, rest)
    };
    (found == tag).then_some(())?;
    rest.split_at_checked(len)
}

/// The decoded first section with this label.
pub(crate) fn pem_section(text: &[u8], label: &str) -> Option<Zeroizing<Vec<u8>>> {
    let begin = format!("-----BEGIN {label}-----");
    let body = &text[find(text, begin.as_bytes())? + begin.len()..];
    let body = &body[..find(body, format!("-----END {label}-----").as_bytes())?];
    let compact = Zeroizing::new(
        body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<u8>>(),
    );
    let mut der = Zeroizing::new(vec![0; compact.len()]);
    let len = STANDARD.decode_slice(&*compact, &mut der).ok()?;
    der.truncate(len);
    Some(der)
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256,
        RsaPublicKeyComponents, UnparsedPublicKey,
    };
    use proptest::prelude::*;

    use super::*;

    fn bytes(value: Result<PublicValue, InputError>) -> Vec<u8> {
        match value.unwrap() {
            PublicValue::Bytes(bytes) => bytes,
            PublicValue::Word(word) => panic!("{word}"),
        }
    }

    #[test]
    fn a_signature_over_a_digest_is_one_over_the_message() {
        let pair =
            Pair::from_pkcs8(Pair::generate(PairAlgorithm::EcP256).unwrap().expose()).unwrap();
        let Pair::Ec { point, .. } = &pair else { panic!("not an EC key") };
        let digest = aws_lc_rs::digest::digest(&SHA256, b"message");
        let signature = pair.sign_ecdsa(digest.as_ref()).unwrap().unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point);
        public.verify(b"message", &signature).unwrap();
    }

    #[test]
    fn p384_keys_sign_and_show_their_curve() {
        let document = Pair::generate(PairAlgorithm::EcP384).unwrap();
        let pair = Pair::from_pkcs8(document.expose()).unwrap();
        assert_eq!(bytes(pair.public_parameter(PublicParameter::EcCurveOid)), P384.oid);
        let Pair::Ec { point, .. } = &pair else { panic!("not an EC key") };
        let digest = aws_lc_rs::digest::digest(&SHA384, b"message");
        let signature = pair.sign_ecdsa(digest.as_ref()).unwrap().unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, point);
        public.verify(b"message", &signature).unwrap();
    }

    #[test]
    fn digests_of_every_known_length_can_be_signed_and_others_cannot() {
        let pair =
            Pair::from_pkcs8(Pair::generate(PairAlgorithm::EcP256).unwrap().expose()).unwrap();
        for len in [20, 28, 32, 48, 64] {
            pair.sign_ecdsa(&vec![0xa5; len]).unwrap().unwrap();
        }
        for len in [0, 1, 31, 33, 65, 4096] {
            let error = pair.sign_ecdsa(&vec![0xa5; len]).unwrap().unwrap_err();
            assert!(
                matches!(error, KeyError::Input(InputError::DigestLength { found }) if found == len),
                "{error}"
            );
        }
    }

    #[test]
    fn the_rsa_private_operation_with_pkcs1_padding_is_a_signature() {
        let pair =
            Pair::from_pkcs8(Pair::generate(PairAlgorithm::Rsa2048).unwrap().expose()).unwrap();
        // DigestInfo for SHA-256 (RFC 8017, 9.2), which the caller puts in front of its
        // digest.
        let mut block = vec![
            0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
            0x01,
        ];
        block.extend_from_slice(&[0x05, 0x00, 0x04, 0x20]);
        block.extend_from_slice(aws_lc_rs::digest::digest(&SHA256, b"message").as_ref());
        let signature = pair.rsa_private_operation(RsaPadding::Pkcs1, &block).unwrap().unwrap();
        let public = RsaPublicKeyComponents {
            n: bytes(pair.public_parameter(PublicParameter::RsaModulus)),
            e: bytes(pair.public_parameter(PublicParameter::RsaExponent)),
        };
        public.verify(&RSA_PKCS1_2048_8192_SHA256, b"message", &signature).unwrap();

        // Without padding the caller does the padding too: the result is the same.
        let mut padded = vec![0, 1];
        padded.resize(256 - block.len() - 1, 0xff);
        padded.push(0);
        padded.extend_from_slice(&block);
        assert_eq!(
            pair.rsa_private_operation(RsaPadding::None, &padded).unwrap().unwrap(),
            signature
        );
    }

    #[test]
    fn blocks_that_do_not_fit_the_modulus_are_refused() {
        let pair =
            Pair::from_pkcs8(Pair::generate(PairAlgorithm::Rsa2048).unwrap().expose()).unwrap();
        for (padding, block) in [
            (RsaPadding::Pkcs1, vec![1; 246]),
            (RsaPadding::None, vec![1; 255]),
            (RsaPadding::None, vec![1; 257]),
            (RsaPadding::None, vec![0xff; 256]),
        ] {
            let error = pair.rsa_private_operation(padding, &block).unwrap().unwrap_err();
            assert_eq!(error, InputError::RsaBlock { limit: 245 });
        }
        assert!(pair.rsa_private_operation(RsaPadding::Pkcs1, &[1; 245]).unwrap().is_ok());
        assert!(pair.sign_ecdsa(&[0; 32]).is_none());
    }

    #[test]
    fn the_compressed_point_keeps_x_and_the_parity_of_y() {
        let mut point = vec![4];
        point.extend_from_slice(&[7; 32]);
        point.extend_from_slice(&[8; 31]);
        for (last, form) in [(2, 2), (9, 3)] {
            let mut point = point.clone();
            point.push(last);
            assert_eq!(compress(&point, 32).unwrap(), [&[form][..], &[7; 32]].concat());
        }
        assert_eq!(compress(&point, 32), None);
        assert_eq!(compress(&[], 32), None);
    }

    #[test]
    fn a_key_of_one_algorithm_has_not_the_others_parameters() {
        let pair =
            Pair::from_pkcs8(Pair::generate(PairAlgorithm::EcP256).unwrap().expose()).unwrap();
        assert_eq!(
            pair.public_parameter(PublicParameter::Algorithm),
            Ok(PublicValue::Word("ECDSA"))
        );
        assert_eq!(
            pair.public_parameter(PublicParameter::RsaModulus),
            Err(InputError::NoSuchParameter)
        );
        assert!(pair.rsa_private_operation(RsaPadding::Pkcs1, b"x").is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_a_key_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = rsa_public_parts(&bytes);
            let _ = Pair::from_pkcs8(&bytes);
        }

        #[test]
        fn a_fitted_digest_is_the_leftmost_part_or_the_same_number(
            digest in prop::collection::vec(any::<u8>(), 20..=64),
        ) {
            let fitted = fit_digest(&digest, 32);
            prop_assert_eq!(fitted.len(), 32);
            if digest.len() >= 32 {
                prop_assert_eq!(&fitted[..], &digest[..32]);
            } else {
                prop_assert!(fitted.ends_with(&digest) && fitted[..32 - digest.len()].iter().all(|byte| *byte == 0));
            }
        }
    }
}
