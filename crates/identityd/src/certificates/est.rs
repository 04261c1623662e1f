//! Certificates that an EST server issues. `edgekeep_est` asks and checks; here is
//! decided which server is asked, and by which of its certificates the device proves who
//! it is.

use std::path::PathBuf;
use std::time::Duration;

use edgekeep_core::credentials::Certificate;
use edgekeep_core::id::CertId;
use edgekeep_core::names::{EDGE_CA, EDGE_CA_NEXT};
use edgekeep_core::settings::EstSettings;
use edgekeep_est::{Basic, Csr, Enrolment, Est, EstError, EstUrl, Profile};
use edgekeep_tls::{ClientIdentity, Proxy, RemoteKey, RemoteKeyError, TlsError, Trust};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::issuer::Issuer;
use super::{CertificateError, Certificates, span_of};

/// Id of the certificate and key by which the device proves who it is.
const EST_ID: &str = "est-id";
/// Id of the manufacturer's certificate and key, by which it gets that.
const EST_BOOTSTRAP: &str = "est-bootstrap-id";
/// Id of the URL that counts where none has the certificate's name.
const DEFAULT: &str = "default";

/// Failure to get a certificate from an EST server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// No server is configured.
    #[error("no EST server is configured for it; add [cert_issuance.est.urls] default")]
    NoServer,
    /// The URL.
    #[error("the URL of its EST server cannot be used: {0}")]
    Url(String),
    /// The proxy of the environment.
    #[error("the proxy in HTTPS_PROXY cannot be used")]
    Proxy(#[from] edgekeep_tls::ProxyError),
    /// The key by which the device proves who it is.
    #[error("the key of certificate \"{id}\", which the EST server is shown, cannot be used")]
    IdentityKey {
        /// The certificate's id.
        id: &'static str,
        /// Error of using the key in keyd.
        #[source]
        source: RemoteKeyError,
    },
    /// The certificate by which the device proves who it is.
    #[error("certificate \"{id}\", which the EST server is shown, cannot be used")]
    Identity {
        /// The certificate's id.
        id: &'static str,
        /// Reason why the certificate cannot be used.
        #[source]
        source: TlsError,
    },
    /// Every certificate by which the device could prove who it is, and there is no
    /// password.
    #[error(
        "certificate \"{id}\", which the EST server is to be shown, is valid from {begin} to \
         {end}, which is not now; replace its file, or set the clock if that is wrong"
    )]
    NotValidNow {
        /// The certificate's id.
        id: &'static str,
        /// Its begin.
        begin: String,
        /// Its end.
        end: String,
    },
    /// The request was not made.
    #[error("no request for it was made")]
    Request(#[from] edgekeep_est::CsrError),
    /// The key that the certificate is to be of.
    #[error("its key cannot be used")]
    Key(#[from] RemoteKeyError),
    /// The server, or its answer.
    #[error(transparent)]
    Server(#[from] EstError),
    /// Somebody must approve it first.
    #[error("the EST server has not approved it yet and asks to come back in {} s", .0.as_secs())]
    Later(Duration),
    /// A CA was asked for, and something else came.
    #[error("the EST server issued a certificate that is no CA that can sign now")]
    NoCa,
}

impl EnrolError {
    /// Returns how long the server asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Later(wait) => Some(*wait),
            Self::Server(error) => error.retry_after(),
            _ => None,
        }
    }
}

impl Certificates {
    /// Has a certificate issued for a key pair in keyd: the successor of `old`, or a
    /// first one of this name.
    pub(super) async fn enrol_key(
        &self,
        id: &CertId,
        key: &str,
        common_name: &str,
        old: Option<&Certificate>,
    ) -> Result<Vec<Certificate>, EnrolError> {
        let key = RemoteKey::load(self.keys.clone(), key).await?;
        let profile = match is_edge_ca(id) {
            true => Profile::edge_ca(common_name),
            false => Profile::client(common_name),
        };
        let profile = match old {
            Some(old) => profile.renewing(old),
            None => profile,
        };
        let csr = Csr::sign(&key, &profile).await?;
        self.enrol(id, csr.der()).await
    }

    /// Has a certificate issued for a request, DER.
    pub(super) async fn enrol(
        &self,
        id: &CertId,
        csr: &[u8],
    ) -> Result<Vec<Certificate>, EnrolError> {
        let settings = self.est.as_ref().ok_or(EnrolError::NoServer)?;
        let proxy = Proxy::from_environment(&|name| std::env::var_os(name))?;
        let mut est = Est::new(url(settings, id)?, trust(settings)).through(proxy);
        if let Some(basic) = &settings.basic {
            est = est.with_basic(Basic::new(&basic.username, basic.password.expose()));
        }
        let shown = self.est_identity(settings.basic.is_some()).await?;
        let is_own = shown.as_ref().is_some_and(|(shown, _)| *shown == id.as_str());
        if let Some((_, identity)) = shown {
            est = est.with_identity(identity);
        }
        let enrolment = if is_own { est.reenroll(csr).await? } else { est.enroll(csr).await? };
        let chain = match enrolment {
            Enrolment::Issued(chain) => chain,
            Enrolment::Later(wait) => return Err(EnrolError::Later(wait)),
        };
        if is_edge_ca(id) {
            let first = chain.first().ok_or(EnrolError::NoCa)?;
            Issuer::read(first.der(), OffsetDateTime::now_utc()).map_err(|_| EnrolError::NoCa)?;
        }
        Ok(chain)
    }

    /// Returns the certificate that the server is shown: the first that is valid now of
    /// the device's own and the manufacturer's. Without one the name and password, or
    /// nothing, must do.
    async fn est_identity(
        &self,
        has_password: bool,
    ) -> Result<Option<(&'static str, ClientIdentity)>, EnrolError> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut not_valid = None;
        for id in [EST_ID, EST_BOOTSTRAP] {
            let Some(chain) = id.parse().ok().and_then(|id| self.store.read(&id).ok()) else {
                continue;
            };
            let span = chain.first().and_then(span_of);
            if !span.is_some_and(|span| span.contains(now)) {
                not_valid = span.map(|span| (id, span)).or(not_valid);
                continue;
            }
            let key = RemoteKey::load(self.keys.clone(), id).await;
            let key = key.map_err(|source| EnrolError::IdentityKey { id, source })?;
            let identity = ClientIdentity::new(chain, key);
            let identity = identity.map_err(|source| EnrolError::Identity { id, source })?;
            return Ok(Some((id, identity)));
        }
        match not_valid {
            Some((id, span)) if !has_password => {
                let (begin, end) = (moment(span.begin), moment(span.end));
                Err(EnrolError::NotValidNow { id, begin, end })
            }
            _ => Ok(None),
        }
    }
}

/// Returns a moment, in seconds since 1970, as people read it.
fn moment(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|moment| moment.format(&Rfc3339).ok())
        .unwrap_or_default()
}

fn url(settings: &EstSettings, id: &CertId) -> Result<EstUrl, EnrolError> {
    let named = settings.urls.get(id.as_str()).or_else(|| settings.urls.get(DEFAULT));
    let text = named.ok_or(EnrolError::NoServer)?;
    text.parse().map_err(|error: edgekeep_est::UrlError| EnrolError::Url(error.to_string()))
}

fn trust(settings: &EstSettings) -> Trust {
    match settings.trusted_certs.as_slice() {
        [] => Trust::System,
        files => Trust::Files(files.iter().map(PathBuf::from).collect()),
    }
}

impl From<EnrolError> for CertificateError {
    fn from(source: EnrolError) -> Self {
        Self::Est { source: Box::new(source) }
    }
}

/// True for the certificate of the CA of modules' certificates, and of its successor.
fn is_edge_ca(id: &CertId) -> bool {
    EDGE_CA.is_cert(id) || EDGE_CA_NEXT.is_cert(id)
}
