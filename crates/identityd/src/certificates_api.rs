//! The certificates API (wire facts 5.6): reading is open, writing needs a grant for the
//! certificate's id.

use std::collections::BTreeSet;
use std::sync::Arc;

use edgekeep_api::certd::{API_VERSIONS, CreateCertificate, PemBody};
use edgekeep_api::keyd::{ON_BEHALF_OF, OnBehalfOf, OnBehalfOfError};
use edgekeep_core::grants::Grants;
use edgekeep_core::id::{CertId, IdError};
use edgekeep_daemon::audit::{Audit, Entry};
use edgekeep_daemon::server::{HttpError, Request, Response, Router};
use http::{Method, StatusCode};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::certificates::{Certificates, NamedIssuer};
use crate::identity_api::certificate_failed;
use crate::renewals::Renewals;

/// The state behind the certificates API.
#[derive(Debug)]
pub(crate) struct CertificatesApi {
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) renewals: Arc<Renewals>,
    pub(crate) grants: Grants,
    /// User ids of attestors. If an attestor states on whose behalf it asks, the
    /// statement is passed on to keyd. Even root's statements are passed on only by a
    /// grant.
    pub(crate) attestors: BTreeSet<u32>,
    pub(crate) audit: Arc<Audit>,
}

/// The routes.
pub(crate) fn router(api: Arc<CertificatesApi>) -> Router<CertificatesApi> {
    const FIRST: &str = "2020-09-01";
    Router::new(api, API_VERSIONS)
        .named("certificates")
        .route(Method::POST, "/certificates", FIRST, create)
        .route(Method::GET, "/certificates/{id}", FIRST, read)
        .route(Method::PUT, "/certificates/{id}", FIRST, import)
        .route(Method::DELETE, "/certificates/{id}", FIRST, delete)
        .route(Method::GET, "/certificates", API_VERSIONS[1], list)
        .route(Method::POST, "/certificates/{id}/renew", API_VERSIONS[1], renew)
        .on_sender_changed(|api, caller, what| {
            let pid = caller.pid().unwrap_or(0);
            api.audit.refused(&Entry {
                uid: caller.uid(),
                pid,
                action: &what,
                object: "",
                reason: "sender-changed",
            });
            std::future::ready(())
        })
}

impl CertificatesApi {
    fn authorize(&self, request: &Request, id: &CertId) -> Result<(), HttpError> {
        let uid = request.caller.uid();
        if self.grants.allows(uid, id.as_str()) {
            return Ok(());
        }
        let action = format!("{} {}", request.method(), request.route);
        let pid = request.caller.pid().unwrap_or(0);
        self.audit.refused(&Entry {
            uid,
            pid,
            action: &action,
            object: id.as_str(),
            reason: "no-grant",
        });
        Err(HttpError::unauthorized())
    }

    /// On whose behalf the caller asks, if it says so and may.
    fn behalf(&self, request: &Request) -> Result<Option<OnBehalfOf>, HttpError> {
        let Some(text) = request.header(ON_BEHALF_OF)? else { return Ok(None) };
        let says = text
            .parse()
            .map_err(|error: OnBehalfOfError| HttpError::bad_request(error.to_string()))?;
        Ok(self.attestors.contains(&request.caller.uid()).then_some(says))
    }
}

/// Ours: the certificates by their ids, and what is planned for them.
async fn list(api: Arc<CertificatesApi>, _: Request) -> Result<Response, HttpError> {
    api.certificates.settled().await;
    let renewals = Arc::clone(&api.renewals);
    let list = tokio::task::spawn_blocking(move || renewals.list()).await;
    let list = list.map_err(|error| HttpError::internal(error.to_string()))?;
    Ok(Response::json(StatusCode::OK, &list))
}

/// Ours: renews a certificate now, whatever is planned for it.
async fn renew(api: Arc<CertificatesApi>, request: Request) -> Result<Response, HttpError> {
    let id: CertId = request.param(0).parse().map_err(|error| bad_id(&error))?;
    api.authorize(&request, &id)?;
    // Detached: whoever hangs up ends no renewal half-way.
    let renewals = Arc::clone(&api.renewals);
    let renewed = tokio::spawn(async move { renewals.renew_now(&id).await }).await;
    match renewed.map_err(|error| HttpError::internal(error.to_string()))? {
        Ok(()) => Ok(Response::no_content()),
        Err(words) => Err(HttpError::bad_request(words)),
    }
}

fn bad_id(error: &IdError) -> HttpError {
    HttpError::bad_request(error.to_string())
}

async fn create(api: Arc<CertificatesApi>, mut request: Request) -> Result<Response, HttpError> {
    let body: CreateCertificate = request.json().await?;
    let id: CertId = body.cert_id.parse().map_err(|error| bad_id(&error))?;
    api.authorize(&request, &id)?;
    let behalf = api.behalf(&request)?;
    let issuer = match body.issuer {
        Some(issuer) => Some(NamedIssuer {
            cert: issuer.cert_id.parse().map_err(|error| bad_id(&error))?,
            key: issuer.private_key_handle,
        }),
        None => None,
    };
    let wanted_end = match body.not_after {
        Some(text) => Some(OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| {
            HttpError::bad_request("invalid parameter: notAfter is not an RFC 3339 time")
        })?),
        None => None,
    };
    let issued = api.certificates.issue(&id, &body.csr, issuer, wanted_end, behalf.as_ref()).await;
    let issued = issued.map_err(|error| certificate_failed(&error))?;
    Ok(Response::json(StatusCode::CREATED, &PemBody { pem: issued.pem }))
}

async fn read(api: Arc<CertificatesApi>, request: Request) -> Result<Response, HttpError> {
    let id: CertId = request.id(0)?;
    api.certificates.settled().await;
    let pem = api.certificates.read(&id).map_err(|error| certificate_failed(&error))?;
    Ok(Response::ok(&PemBody { pem }))
}

async fn import(api: Arc<CertificatesApi>, mut request: Request) -> Result<Response, HttpError> {
    let id: CertId = request.id(0)?;
    api.authorize(&request, &id)?;
    let body: PemBody = request.json().await?;
    let pem = api
        .certificates
        .import(&id, &body.pem)
        .await
        .map_err(|error| certificate_failed(&error))?;
    Ok(Response::json(StatusCode::CREATED, &PemBody { pem }))
}

async fn delete(api: Arc<CertificatesApi>, request: Request) -> Result<Response, HttpError> {
    let id: CertId = request.id(0)?;
    api.authorize(&request, &id)?;
    api.certificates.remove(&id).await.map_err(|error| certificate_failed(&error))?;
    Ok(Response::no_content())
}

#[cfg(test)]
mod tests {
    use edgekeep_api::certd::{CertificatesClient, CreateCertificate};
    use edgekeep_api::client::ClientError;
    use edgekeep_api::keyd::KeysClient;
    use edgekeep_core::settings::{IdentitydSettings, Provisioning};
    use edgekeep_daemon::{listen, server};
    use tokio::sync::watch;

    use super::*;
    use crate::trusted_time::TrustedTime;

    /// The API with one grant for whoever runs the test, root or not.
    #[tokio::test]
    async fn a_caller_without_a_grant_for_the_id_may_read_and_not_write() {
        let folder = tempfile::tempdir().unwrap();
        let settings: IdentitydSettings = serde_json::from_value(
            serde_json::json!({"hostname": "press", "provisioning": {"source": "none"}}),
        )
        .unwrap();
        assert_eq!(settings.provisioning, Provisioning::None);
        let keys = KeysClient::new(folder.path().join("keyd.sock"));
        let time = Arc::new(TrustedTime::open(folder.path()));
        let board = edgekeep_daemon::board::Board::new();
        let certificates = Certificates::open(
            folder.path().join("certs"),
            &settings,
            keys,
            Arc::clone(&time),
            board.clone(),
        )
        .unwrap();
        let certificates = Arc::new(certificates);
        let device = Arc::new(crate::device::Device::new().0);
        let renewals = Renewals::open(
            folder.path(),
            &settings,
            Arc::clone(&certificates),
            device,
            time,
            board,
        );
        let uid = rustix::process::getuid().as_raw();
        let grants = Grants::new([(uid, ["mine/*"])]).with_root_restricted();
        let audit = Arc::new(Audit::new(folder.path()));
        let api = Arc::new(CertificatesApi {
            certificates,
            renewals: Arc::new(renewals),
            grants,
            attestors: BTreeSet::new(),
            audit: Arc::clone(&audit),
        });
        let socket = folder.path().join("certd.sock");
        let listener = listen::bind(&socket, 0o660).unwrap();
        let (_stop, stopped) = watch::channel(false);
        tokio::spawn(server::serve(
            listener,
            Arc::new(router(api)),
            server::Limits::default(),
            stopped,
        ));

        let client = CertificatesClient::new(&socket);
        let pem = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap().cert.pem();
        client.import("mine/x", &pem).await.unwrap();
        assert_eq!(client.load("mine/x").await.unwrap(), pem);
        let unauthorized = |error: ClientError| error.status() == Some(StatusCode::UNAUTHORIZED);
        let request = CreateCertificate {
            cert_id: "others".to_owned(),
            csr: String::new(),
            issuer: None,
            not_after: None,
        };
        assert!(unauthorized(client.create(&request).await.unwrap_err()));
        assert!(unauthorized(client.import("others", &pem).await.unwrap_err()));
        assert!(unauthorized(client.delete("others").await.unwrap_err()));
        let error = client.load("others").await.unwrap_err();
        assert_eq!(error.status(), Some(StatusCode::BAD_REQUEST), "reading is open: {error}");
        let trail = std::fs::read_to_string(audit.path()).unwrap();
        assert_eq!(
            trail.matches("\"object\":\"others\",\"reason\":\"no-grant\"").count(),
            3,
            "{trail}"
        );
    }
}
