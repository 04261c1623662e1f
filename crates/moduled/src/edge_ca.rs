//! The Edge CA: the certificate that signs module certificates. Its key never leaves keyd.

use edgekeep_api::certd::{CertificatesClient, CreateCertificate};
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::KeysClient;
use edgekeep_api::{Recipient, says_absent};
use edgekeep_core::settings::EdgeCaSettings;
use time::OffsetDateTime;

use crate::remote_key::{RemoteKey, RemoteKeyError};

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
    /// The key could not be used.
    #[error("the Edge CA's key cannot be used")]
    Key(#[from] RemoteKeyError),
    /// The certificate is not one.
    #[error("certificate {0} cannot be read; replace or delete it")]
    Certificate(String),
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
        Err(error) if says_absent(&error, Recipient::Certificates) => None,
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
    let csr = key.ca_request(&common_name).await?;
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
