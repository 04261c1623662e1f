//! The Edge CA: the certificate that signs module certificates. Its key never leaves
//! keyd.

pub(crate) mod keeper;

use edgekeep_api::certd::{CertificatesClient, CreateCertificate};
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::KeysClient;
use edgekeep_api::{Recipient, says_absent};
use edgekeep_core::edge_ca::{Due, due};
use edgekeep_core::issuance::Term;
use edgekeep_core::settings::{EdgeCaRenewal, EdgeCaSettings};
use time::OffsetDateTime;

use crate::identity::remote_key::{RemoteKey, RemoteKeyError};

/// Failure to get a usable Edge CA.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EdgeCaError {
    /// keyd or the certificates API refused or cannot be reached.
    #[error("cannot {step}")]
    Service {
        /// Step that failed, worded to follow "cannot".
        step: &'static str,
        /// Error of the call to the service.
        #[source]
        source: ClientError,
    },
    /// The key could not be used.
    #[error(transparent)]
    Key(#[from] RemoteKeyError),
    /// The certificate is of no use now, and nobody is to renew it.
    #[error(
        "the Edge CA certificate is not valid now, and [edge_ca.auto_renew] enabled = false: \
         run `edgekeep certs renew`, or turn renewal on"
    )]
    Off,
    /// The certificate is of no use now, and the operator is to replace its files.
    #[error(
        "the Edge CA certificate in [edge_ca] cert is missing or not valid now: replace what \
         cert and pk name, or set the clock"
    )]
    Files,
    /// The certificate is not one.
    #[error("certificate {0} cannot be read; replace or delete it")]
    Certificate(String),
}

/// Makes sure that there is an Edge CA certificate, and returns when it is valid.
/// `earliest` is the earliest moment that it can be, whatever the clock shows.
///
/// A certificate that is still valid stays in use when a new one cannot be made.
///
/// # Errors
/// If there is no usable certificate and none can be made now.
pub(crate) async fn ensure(
    keys: &KeysClient,
    certificates: &CertificatesClient,
    settings: &EdgeCaSettings,
    device: &str,
    now: OffsetDateTime,
    earliest: OffsetDateTime,
) -> Result<Term, EdgeCaError> {
    let id = settings.cert.as_str();
    let service = |step| move |source| EdgeCaError::Service { step, source };
    let existing = match certificates.load(id).await {
        Ok(pem) => Some(pem),
        Err(error) if says_absent(&error, Recipient::Certificates) => None,
        Err(error) => return Err(service("load the Edge CA certificate")(error)),
    };
    let mut usable = None;
    if let Some(pem) = existing {
        let validity = validity(&pem).ok_or_else(|| EdgeCaError::Certificate(id.to_owned()))?;
        match due(validity, now, earliest) {
            Due::Nothing => return Ok(validity),
            // In time for the certificates service, which renews it.
            Due::Soon if settings.renewal != EdgeCaRenewal::Runtime => return Ok(validity),
            Due::Now if settings.renewal == EdgeCaRenewal::Off => return Err(EdgeCaError::Off),
            Due::Now if settings.renewal == EdgeCaRenewal::Files => return Err(EdgeCaError::Files),
            Due::Soon => usable = Some(validity),
            Due::Now => tracing::info!(
                %id, begin = %validity.not_before, end = %validity.not_after, %now,
                "the Edge CA certificate is not valid at this time; a new one is made"
            ),
        }
    }
    if settings.renewal == EdgeCaRenewal::Files {
        return Err(EdgeCaError::Files);
    }
    match issue(keys, certificates, settings, device).await {
        Ok(validity) => {
            tracing::info!(%id, begin = %validity.not_before, end = %validity.not_after, "Edge CA certificate issued");
            Ok(validity)
        }
        Err(error) => match usable {
            Some(validity) => {
                let end = validity.not_after;
                tracing::warn!(%error, %end, "Edge CA certificate is due for renewal, which failed; the old one stays");
                Ok(validity)
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
) -> Result<Term, EdgeCaError> {
    let service = |step| move |source| EdgeCaError::Service { step, source };
    let handle = keys
        .create_key_pair(settings.key.as_str(), Some(&settings.algorithms))
        .await
        .map_err(service("make the Edge CA key"))?;
    let key = RemoteKey::load(keys.clone(), handle).await?;
    let common_name =
        settings.common_name.clone().unwrap_or_else(|| format!("aziot-edge CA {device}"));
    let csr = key.ca_request(&common_name).await?;
    let request = CreateCertificate {
        cert_id: settings.cert.to_string(),
        csr,
        issuer: None,
        not_after: None,
    };
    let pem =
        certificates.create(&request).await.map_err(service("issue the Edge CA certificate"))?;
    validity(&pem).ok_or_else(|| EdgeCaError::Certificate(settings.cert.to_string()))
}

fn validity(pem: &str) -> Option<Term> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let validity = certificate.validity();
    Some(Term {
        not_before: validity.not_before.to_datetime(),
        not_after: validity.not_after.to_datetime(),
    })
}
