//! Certificates API (`certd.sock`; wire facts 5.6).

use std::path::PathBuf;

use http::Method;
use serde::{Deserialize, Serialize};

use crate::client::{Client, ClientError};
use crate::keyd::{KeyHandle, OnBehalfOf};

/// Versions the service accepts, oldest first.
pub const API_VERSIONS: &[&str] = &["2020-09-01", "2026-11-01"];
const VERSION: &str = "api-version=2020-09-01";
/// The version from which the routes that tell of renewals (ours) are open.
const RENEWAL_VERSION: &str = "api-version=2026-11-01";

/// `POST /certificates`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateCertificate {
    /// Name under which the result is stored.
    pub cert_id: String,
    /// PKCS#10 request, PEM.
    pub csr: String,
    /// Sign with this certificate and key instead of the configured way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<Issuer>,
    /// Ours: the certificate ends then at the latest; RFC 3339. It never makes a
    /// certificate last longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
}

/// The signer of a certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issuer {
    /// Id of the CA certificate.
    pub cert_id: String,
    /// Handle of its key.
    pub private_key_handle: KeyHandle,
}

/// A PEM chain: body of `PUT` and of every answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PemBody {
    /// One or more certificates, leaf first.
    pub pem: String,
}

/// Answer of `GET /certificates` (ours): the certificates that the configuration names,
/// and the usual ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateList {
    /// One each, sorted by id.
    pub certificates: Vec<CertificateLine>,
}

/// One certificate and what is planned for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateLine {
    /// Its id.
    pub id: String,
    /// Place that it comes from: `self_signed`, `local_ca`, `est`, `file`, `token`, or
    /// `api` for one that a caller brought.
    pub method: String,
    /// URI of the file or of the object on a token; absent for other methods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Subject, as text.
    pub subject: String,
    /// Issuer, as text.
    pub issuer: String,
    /// Place of its key: `keyd`, and what stands before a colon names the key there.
    pub key: String,
    /// Begin, RFC 3339.
    pub not_before: String,
    /// End, RFC 3339.
    pub not_after: String,
    /// Days until the end; less than nothing after it.
    pub days_left: f64,
    /// Stand of its renewal: `planned`, `window`, `retry`, `clock-implausible`,
    /// `under-way`, `off`, or `none` if it is not renewed by the service.
    pub renewal: String,
    /// Moment of the next attempt, RFC 3339, where one is planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_renewal: Option<String>,
    /// Reason of the last attempt's failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Typed client of the certificates API.
#[derive(Debug, Clone)]
pub struct CertificatesClient(Client);

impl CertificatesClient {
    /// A client of the certificates API behind `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self(Client::new(socket))
    }

    /// The same client on the same connections, whose requests say on whose behalf they
    /// are made. The service passes it on to keyd with the signature that it asks for, if
    /// the uid that says so was granted to.
    #[must_use]
    pub fn on_behalf_of(&self, behalf: &OnBehalfOf) -> Self {
        Self(behalf.said_by(&self.0))
    }

    /// Issues a certificate and returns its chain in PEM.
    ///
    /// # Errors
    /// If the service cannot be reached or refuses.
    pub async fn create(&self, request: &CreateCertificate) -> Result<String, ClientError> {
        let answer: PemBody =
            self.0.call(Method::POST, &format!("/certificates?{VERSION}"), Some(request)).await?;
        Ok(answer.pem)
    }

    /// A stored certificate's chain in PEM.
    ///
    /// # Errors
    /// If the service cannot be reached or has no such certificate (status 400).
    pub async fn load(&self, cert_id: &str) -> Result<String, ClientError> {
        let path = format!("/certificates/{}?{VERSION}", crate::path_segment(cert_id));
        let answer: PemBody = self.0.call(Method::GET, &path, None::<&()>).await?;
        Ok(answer.pem)
    }

    /// Stores a chain under a name.
    ///
    /// # Errors
    /// If the service cannot be reached or refuses.
    pub async fn import(&self, cert_id: &str, pem: &str) -> Result<(), ClientError> {
        let path = format!("/certificates/{}?{VERSION}", crate::path_segment(cert_id));
        let _: PemBody =
            self.0.call(Method::PUT, &path, Some(&PemBody { pem: pem.to_owned() })).await?;
        Ok(())
    }

    /// The certificates and what is planned for them (ours).
    ///
    /// # Errors
    /// If the service cannot be reached or is another one.
    pub async fn list(&self) -> Result<CertificateList, ClientError> {
        let path = format!("/certificates?{RENEWAL_VERSION}");
        self.0.call(Method::GET, &path, None::<&()>).await
    }

    /// Renews a certificate now (ours).
    ///
    /// # Errors
    /// If the service cannot be reached or refuses, or the renewal fails.
    pub async fn renew(&self, cert_id: &str) -> Result<(), ClientError> {
        let id = crate::path_segment(cert_id);
        let path = format!("/certificates/{id}/renew?{RENEWAL_VERSION}");
        self.0.call_empty(Method::POST, &path, None::<&()>).await
    }

    /// Deletes a stored certificate; one that is absent counts as deleted.
    ///
    /// # Errors
    /// If the service cannot be reached or refuses.
    pub async fn delete(&self, cert_id: &str) -> Result<(), ClientError> {
        let path = format!("/certificates/{}?{VERSION}", crate::path_segment(cert_id));
        self.0.call_empty(Method::DELETE, &path, None::<&()>).await
    }
}
