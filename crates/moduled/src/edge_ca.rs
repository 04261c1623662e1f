//! The Edge CA: the certificate that signs module certificates. Its key never leaves keyd.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_api::certd::{CertificatesClient, CreateCertificate};
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{EncryptMechanism, KeyHandle, KeysClient, SignMechanism};
use edgekeep_core::settings::EdgeCaSettings;
use http::StatusCode;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_RSA_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey,
};
use time::OffsetDateTime;
use tokio::runtime::Handle;

/// Why there is no usable Edge CA.
#[derive(Debug, thiserror::Error)]
pub enum EdgeCaError {
    /// keyd or the certificates API refused or cannot be reached.
    #[error("cannot {step}")]
    Service {
        /// What was being done.
        step: &'static str,
        /// What the service said.
        #[source]
        source: ClientError,
    },
    /// The request could not be made.
    #[error("cannot make the request for the Edge CA certificate")]
    Request(#[from] rcgen::Error),
    /// keyd answered a public key that cannot be used.
    #[error("the Edge CA's public key is unusable: {0}")]
    PublicKey(&'static str),
    /// The certificate is not one.
    #[error("certificate {0} cannot be read; replace or delete it")]
    Certificate(String),
    /// The work was interrupted.
    #[error("interrupted")]
    Interrupted,
}

/// What to do about the Edge CA certificate that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It is good for a while.
    Nothing,
    /// It is in the last fifth of its life, over, or begins in the far future (made by a clock that was ahead): make a new
    /// one.
    Issue,
}

/// Decides about a certificate by its validity.
#[must_use]
pub fn due(not_before: OffsetDateTime, not_after: OffsetDateTime, now: OffsetDateTime) -> Due {
    let life = not_after - not_before;
    let expired = now >= not_after || not_after <= not_before;
    // Signing with it would be refused until then.
    let from_the_future = not_before > now.saturating_add(time::Duration::DAY);
    if expired || from_the_future || now - not_before > life * 4 / 5 { Due::Issue } else { Due::Nothing }
}

/// Makes sure that there is an Edge CA certificate, and returns its end.
///
/// A certificate that is still valid stays in use when a new one cannot be made.
///
/// # Errors
/// If there is no usable certificate and none can be made now.
pub async fn ensure(
    keys: &KeysClient,
    certificates: &CertificatesClient,
    settings: &EdgeCaSettings,
    device: &str,
    now: OffsetDateTime,
) -> Result<OffsetDateTime, EdgeCaError> {
    let id = settings.cert.as_str();
    let service = |step| move |source| EdgeCaError::Service { step, source };
    let existing = match certificates.load(id).await {
        Ok(pem) => Some(pem),
        Err(error) if error.status() == Some(StatusCode::BAD_REQUEST) => None,
        Err(error) => return Err(service("load the Edge CA certificate")(error)),
    };
    let mut usable = None;
    if let Some(pem) = existing {
        let (begin, end) = validity(&pem).ok_or_else(|| EdgeCaError::Certificate(id.to_owned()))?;
        if due(begin, end, now) == Due::Nothing {
            return Ok(end);
        }
        usable = (end > now).then_some(end);
    }
    match issue(keys, certificates, settings, device).await {
        Ok(end) => {
            tracing::info!(%id, %end, "Edge CA certificate issued");
            Ok(end)
        }
        Err(error) => match usable {
            Some(end) => {
                tracing::warn!(%error, %end, "Edge CA certificate is due for renewal, which failed; the old one stays");
                Ok(end)
            }
            None => Err(error),
        },
    }
}

async fn issue(
    keys: &KeysClient,
    certificates: &CertificatesClient,
    settings: &EdgeCaSettings,
    device: &str,
) -> Result<OffsetDateTime, EdgeCaError> {
    let service = |step| move |source| EdgeCaError::Service { step, source };
    let handle = keys
        .create_key_pair(settings.key.as_str(), Some(&settings.algorithms))
        .await
        .map_err(service("make the Edge CA key"))?;
    let key = RemoteKey::load(keys.clone(), handle).await?;
    let common_name = settings.common_name.clone().unwrap_or_else(|| format!("aziot-edge CA {device}"));
    // The signature is asked for from inside a synchronous library call, so that call gets a thread of its own.
    let csr = tokio::task::spawn_blocking(move || {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        parameters.serialize_request(&key)?.pem()
    })
    .await
    .map_err(|_| EdgeCaError::Interrupted)??;
    let request = CreateCertificate { cert_id: settings.cert.to_string(), csr, issuer: None, not_after: None };
    let pem = certificates.create(&request).await.map_err(service("issue the Edge CA certificate"))?;
    validity(&pem).map(|(_, end)| end).ok_or_else(|| EdgeCaError::Certificate(settings.cert.to_string()))
}

fn validity(pem: &str) -> Option<(OffsetDateTime, OffsetDateTime)> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.to_datetime(), validity.not_after.to_datetime()))
}

/// A key pair in keyd, as rcgen wants one.
struct RemoteKey {
    keys: KeysClient,
    handle: KeyHandle,
    public: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
    runtime: Handle,
}

impl RemoteKey {
    async fn load(keys: KeysClient, handle: KeyHandle) -> Result<Self, EdgeCaError> {
        let service = |source| EdgeCaError::Service { step: "read the Edge CA's public key", source };
        let decode = |text: String| STANDARD.decode(text).map_err(|_| EdgeCaError::PublicKey("not base64"));
        let algorithm = keys.parameter(&handle, "algorithm").await.map_err(service)?;
        let (algorithm, public) = match algorithm.as_str() {
            "ECDSA" => {
                let point = keys.parameter(&handle, "ec-point-uncompressed").await.map_err(service)?;
                (&PKCS_ECDSA_P256_SHA256, decode(point)?)
            }
            "RSA" => {
                let modulus = decode(keys.parameter(&handle, "rsa-modulus").await.map_err(service)?)?;
                let exponent = decode(keys.parameter(&handle, "rsa-exponent").await.map_err(service)?)?;
                (&PKCS_RSA_SHA256, rsa_public_key(&modulus, &exponent))
            }
            _ => return Err(EdgeCaError::PublicKey("unknown algorithm")),
        };
        Ok(Self { keys, handle, public, algorithm, runtime: Handle::current() })
    }
}

impl PublicKeyData for RemoteKey {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl SigningKey for RemoteKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let digest = edgekeep_daemon::store::sha256(message);
        let signature = self.runtime.block_on(async {
            if self.algorithm == &PKCS_ECDSA_P256_SHA256 {
                let mechanism = SignMechanism::Ecdsa { digest: digest.as_bytes().as_slice().into() };
                self.keys.sign(&self.handle, mechanism).await
            } else {
                let info = [SHA256_DIGEST_INFO, digest.as_bytes()].concat();
                self.keys.encrypt(&self.handle, EncryptMechanism::RsaPkcs1, info).await
            }
        });
        signature.map_err(|error| {
            tracing::warn!(%error, "keyd did not sign the request for the Edge CA certificate");
            rcgen::Error::RemoteKeyError
        })
    }
}

/// DER of a `DigestInfo` for SHA-256 up to the digest itself (RFC 8017, section 9.2, note 1).
const SHA256_DIGEST_INFO: &[u8] =
    &[0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20];

/// `RSAPublicKey` of RFC 8017, appendix A.1.1.
fn rsa_public_key(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let body = [der_integer(modulus), der_integer(exponent)].concat();
    [vec![0x30], der_length(body.len()), body].concat()
}

fn der_integer(big_endian: &[u8]) -> Vec<u8> {
    let significant = big_endian.iter().position(|byte| *byte != 0).map_or(&[0][..], |start| &big_endian[start..]);
    // A set top bit would read as negative.
    let padded = if significant[0] & 0x80 == 0 { significant.to_vec() } else { [&[0], significant].concat() };
    [vec![0x02], der_length(padded.len()), padded].concat()
}

fn der_length(length: usize) -> Vec<u8> {
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => vec![short],
        _ => {
            let bytes = length.to_be_bytes();
            let significant = &bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len() - 1)..];
            // At most 8 bytes: the count fits.
            #[expect(clippy::cast_possible_truncation, reason = "a usize has at most 8 bytes")]
            let count = significant.len() as u8;
            [&[0x80 | count], significant].concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::Duration;

    use super::*;

    #[test]
    fn a_ca_is_renewed_in_the_last_fifth_of_its_life_and_when_it_is_over() {
        let begin = OffsetDateTime::UNIX_EPOCH;
        let end = begin + Duration::days(100);
        assert_eq!(due(begin, end, begin + Duration::days(79)), Due::Nothing);
        assert_eq!(due(begin, end, begin + Duration::days(81)), Due::Issue);
        assert_eq!(due(begin, end, begin + Duration::days(101)), Due::Issue);
        assert_eq!(due(end, begin, begin), Due::Issue, "inverted validity");
        // A clock that is a little behind does not throw a good certificate away.
        assert_eq!(due(begin, end, begin - Duration::hours(23)), Due::Nothing);
        assert_eq!(due(begin, end, begin - Duration::days(2)), Due::Issue, "made by a clock that was ahead");
    }

    #[test]
    fn lengths_and_integers_are_der() {
        assert_eq!(der_length(0x7f), [0x7f]);
        assert_eq!(der_length(0x80), [0x81, 0x80]);
        assert_eq!(der_length(0x0102), [0x82, 0x01, 0x02]);
        assert_eq!(der_integer(&[0, 0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(der_integer(&[]), [2, 1, 0]);
    }

    proptest! {
        #[test]
        fn whatever_the_clock_says_an_expired_certificate_is_never_kept(
            begin in 0i64..4_000_000_000, life in 1i64..400_000_000, now in 0i64..4_000_000_000,
        ) {
            let time = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap();
            let decision = due(time(begin), time(begin + life), time(now));
            prop_assert!(now < begin + life || decision == Due::Issue);
        }
    }
}
