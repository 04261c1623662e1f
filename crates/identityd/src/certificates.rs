//! Certificates: issued from requests, kept, and handed out. Whoever signs does so in
//! keyd; no private key of a CA is ever in this process.

mod client;
mod est;
mod former;
mod issue;
mod issuer;
mod keyd_key;
mod left_out;
mod on_token;
mod operational;
mod pem;
mod public_key;
mod renew;
mod request;
mod store;
mod subject;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::rand;
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{EncryptMechanism, KeyHandle, KeysClient, OnBehalfOf, SignMechanism};
use edgekeep_base::lock::lock;
use edgekeep_core::credentials::{Certificate, encode_pem, pem_of};
use edgekeep_core::id::CertId;
use edgekeep_core::issuance::Rights;
use edgekeep_core::names::{EDGE_CA, EDGE_CA_NEXT};
use edgekeep_core::settings::{EstSettings, IdentitydSettings, Issuance, IssuanceMethod, LocalCa};
use edgekeep_daemon::board::Board;
use edgekeep_daemon::store::StoreError;
use time::OffsetDateTime;
use tokio::sync::{RwLock, watch};

pub use client::ClientIdentityError;
pub(crate) use client::common_name;
pub use est::EnrolError;
pub(crate) use operational::{Candidate, Wanted, checked as checked_operational};
pub(crate) use renew::span_of;
pub use store::CertStoreError;
pub(crate) use store::preloaded_file;

use crate::trusted_time::TrustedTime;
use issue::{Circumstances, Unsigned};
use issuer::Issuer;
use public_key::KeyKind;
use request::Request;
use store::CertStore;

/// Longest time that a reader waits for keyd to end a swap. A keyd that does not answer
/// lets nobody use the key either.
const SETTLING: Duration = Duration::from_secs(2);

/// Failure to issue or store a certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The request.
    #[error("the certificate request is not accepted: {what}")]
    Request {
        /// Fault of the request.
        what: String,
    },
    /// The certificate that should sign.
    #[error("the issuer cannot sign this certificate: {what}")]
    Issuer {
        /// Fault of the issuer.
        what: String,
    },
    /// A text that should be certificates.
    #[error("the text is not PEM certificates: {what}")]
    Pem {
        /// Fault of the text.
        what: String,
    },
    /// The key's signature does not belong to the certificate that should sign.
    #[error("the issuer's key handle does not belong to the issuer's certificate")]
    WrongKey,
    /// The certificate could not be written down.
    #[error("the certificate cannot be encoded")]
    Encoding(#[from] der::Error),
}

/// Failure of an operation on certificates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// The request or the issuer.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The store.
    #[error(transparent)]
    Store(#[from] CertStoreError),
    /// No issuer was named and none is configured.
    #[error("no issuer was named, and no issuance is configured for certificate \"{id}\"")]
    NotConfigured {
        /// Id of the certificate.
        id: CertId,
    },
    /// The EST server did not issue.
    #[error("the certificate was not issued by EST")]
    Est {
        /// Error of the enrolment.
        #[source]
        source: Box<EnrolError>,
    },
    /// A certificate that comes with a registration alone.
    #[error(
        "certificate \"{id}\" is issued by the provisioning service, with a registration; `edgekeep identity reprovision` asks for one"
    )]
    WithRegistration {
        /// Id of the certificate.
        id: CertId,
    },
    /// The request for it was not made.
    #[error("no request for certificate \"{id}\" was made")]
    NoRequest {
        /// Id of the certificate.
        id: CertId,
        /// Error of making the request.
        #[source]
        source: edgekeep_est::CsrError,
    },
    /// Local CA without its section.
    #[error(
        "certificate \"{id}\" is configured to be issued by the local CA, but no local CA is configured"
    )]
    NoLocalCa {
        /// Id of the certificate.
        id: CertId,
    },
    /// keyd did not sign.
    #[error("the key of the issuer cannot be used")]
    Key(#[source] ClientError),
    /// keyd did not make, show or move the certificate's own key.
    #[error(
        "cannot {step} of certificate \"{id}\"; is keyd running, and may this user use the key?"
    )]
    OwnKey {
        /// Id of the certificate.
        id: CertId,
        /// Step that failed, worded to follow "cannot".
        step: &'static str,
        /// Error of the call to keyd.
        #[source]
        source: ClientError,
    },
    /// There is no certificate, and no subject is configured for one.
    #[error("certificate \"{id}\" was never issued, and no common_name is configured for it")]
    NoSubject {
        /// Id of the certificate.
        id: CertId,
    },
    /// The system has no randomness.
    #[error("no random serial number")]
    Random,
}

/// A certificate that was issued.
#[derive(Debug)]
pub(crate) struct Issued {
    /// The leaf and those above it.
    pub(crate) pem: String,
    /// The leaf's end.
    pub(crate) not_after: OffsetDateTime,
}

/// The issuer that a caller named.
#[derive(Debug)]
pub(crate) struct NamedIssuer {
    pub(crate) cert: CertId,
    pub(crate) key: KeyHandle,
}

/// The certificates service.
#[derive(Debug)]
pub(crate) struct Certificates {
    store: CertStore,
    issuance: BTreeMap<CertId, Issuance>,
    local_ca: Option<LocalCa>,
    est: Option<EstSettings>,
    keys: KeysClient,
    time: Arc<TrustedTime>,
    hostname: String,
    /// Written to while a certificate and its key are swapped, so that nobody meets the
    /// one without the other.
    swap: RwLock<()>,
    /// Certificates whose swap was perhaps interrupted: all at the start, later those
    /// whose key keyd did not move.
    unsettled: Mutex<BTreeSet<CertId>>,
    /// Counts the certificates that came and went.
    changes: watch::Sender<u64>,
}

impl Certificates {
    pub(crate) fn open(
        folder: PathBuf,
        settings: &IdentitydSettings,
        keys: KeysClient,
        time: Arc<TrustedTime>,
        board: Board,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            store: CertStore::open(folder, settings.preloaded_certs.clone(), board)?,
            issuance: settings.cert_issuance.clone(),
            local_ca: settings.local_ca.clone(),
            est: settings.est.clone(),
            keys,
            time,
            hostname: settings.hostname.clone(),
            swap: RwLock::new(()),
            unsettled: Mutex::new(settings.cert_issuance.keys().cloned().collect()),
            changes: watch::Sender::new(0),
        })
    }

    /// Looks at the files that the operator keeps elsewhere: what is wrong with them is
    /// told to the board.
    pub(crate) fn look(&self) {
        self.store.look();
    }

    /// Asks keyd now and then for the certificates on tokens, for ever.
    pub(crate) async fn keep_looking_at_tokens(self: Arc<Self>) {
        let mut looks = 0_u32;
        while let Some(pause) = self.store.on_token().pause(looks) {
            if self.store.on_token().look(&self.keys, looks).await {
                self.changed();
            }
            looks = looks.saturating_add(1);
            tokio::time::sleep(pause).await;
        }
    }

    /// A certificate with its chain, or the members of a list, as strict PEM.
    pub(crate) fn read(&self, id: &CertId) -> Result<String, CertificateError> {
        Ok(pem_of(&self.store.read(id)?))
    }

    /// The certificate alone.
    pub(crate) fn leaf(&self, id: &CertId) -> Option<Certificate> {
        self.store.read(id).ok()?.into_iter().next()
    }

    /// Stores what a caller brings, if it is certificates, and returns how it is written.
    pub(crate) async fn import(&self, id: &CertId, text: &str) -> Result<String, CertificateError> {
        let text = pem_of(&pem::certificates(text)?);
        let _settled = self.swap.read().await;
        self.store.write(id, &text, true)?;
        self.changed();
        Ok(text)
    }

    pub(crate) async fn remove(&self, id: &CertId) -> Result<(), CertificateError> {
        let _settled = self.swap.read().await;
        self.store.remove(id)?;
        self.changed();
        Ok(())
    }

    /// Returns a receiver that is told of certificates that come and go.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Waits while certificates and their keys are swapped, and ends swaps that were
    /// interrupted, so that a reader meets no certificate without its key.
    pub(crate) async fn settled(&self) {
        let settling = async {
            if self.store.on_token().first_look(&self.keys).await {
                self.changed();
            }
            let unsettled = lock(&self.unsettled).clone();
            for id in unsettled {
                if let Err(error) = self.recover(&id).await {
                    tracing::debug!(certificate = %id, %error, "cannot look at the key");
                }
            }
            drop(self.swap.read().await);
        };
        let _ = tokio::time::timeout(SETTLING, settling).await;
    }

    /// Issues a certificate for a PKCS#10 request and stores it under `id`. keyd is told
    /// on whose behalf.
    pub(crate) async fn issue(
        &self,
        id: &CertId,
        csr: &str,
        issuer: Option<NamedIssuer>,
        wanted_end: Option<OffsetDateTime>,
        behalf: Option<&OnBehalfOf>,
    ) -> Result<Issued, CertificateError> {
        let der = pem::request(csr)?;
        let request = Request::read(&der)?;
        if issuer.is_none() && self.method(id) == Some(IssuanceMethod::Est) {
            request.expect_granted(Rights::of(id.as_str(), true))?;
            let chain = self.enrol(id, &der).await?;
            let _settled = self.swap.read().await;
            let (pem, not_after) = (pem_of(&chain), renew::end_of(&chain)?);
            self.store.write(id, &pem, true)?;
            self.changed();
            return Ok(Issued { pem, not_after });
        }
        let keys =
            behalf.map_or_else(|| self.keys.clone(), |behalf| self.keys.on_behalf_of(behalf));
        self.certify(&keys, id, &request, issuer, wanted_end).await
    }

    /// Issues a certificate for a local identity, as configured for `id`.
    pub(crate) async fn issue_local(
        &self,
        id: &CertId,
        common_name: &str,
        spki: &[u8],
        server: bool,
    ) -> Result<Issued, CertificateError> {
        let request = Request::for_local_identity(common_name, spki, server)?;
        self.certify(&self.keys, id, &request, None, None).await
    }

    async fn certify(
        &self,
        keys: &KeysClient,
        id: &CertId,
        request: &Request,
        named: Option<NamedIssuer>,
        wanted_end: Option<OffsetDateTime>,
    ) -> Result<Issued, CertificateError> {
        // Made again from its request at any time, unlike one that others were issued
        // under.
        let is_replaceable = named.is_some();
        self.settled().await;
        let _settled = self.swap.read().await;
        let issued = self.make(keys, id, request, named, wanted_end, own_keys(id)).await?;
        self.store.write(id, &issued.pem, !is_replaceable)?;
        if !is_replaceable {
            self.changed();
        }
        Ok(issued)
    }

    /// Makes a certificate without storing it. `own` are the keys by which it signs
    /// itself, where that is its method.
    async fn make(
        &self,
        keys: &KeysClient,
        id: &CertId,
        request: &Request,
        named: Option<NamedIssuer>,
        wanted_end: Option<OffsetDateTime>,
        own: Vec<SigningKey>,
    ) -> Result<Issued, CertificateError> {
        let issuance = self.issuance.get(id);
        let mut serial = [0; 16];
        rand::fill(&mut serial).map_err(|_| CertificateError::Random)?;
        let now = OffsetDateTime::now_utc();
        let (rights, earliest) = (Rights::of(id.as_str(), named.is_none()), self.time.earliest());
        let circumstances = Circumstances { issuance, rights, wanted_end, now, earliest, serial };
        let (issuer, signers) = match (named, issuance) {
            (Some(named), _) => {
                let issuer = self.issuer(&named.cert, now)?;
                (Some(issuer), vec![SigningKey::Handle(named.key)])
            }
            (None, None) => return Err(CertificateError::NotConfigured { id: id.clone() }),
            (None, Some(issuance)) => match issuance.method {
                // Whoever asks with a request of its own is answered before.
                IssuanceMethod::Est => return Err(EnrolError::NoServer.into()),
                IssuanceMethod::Dps => {
                    return Err(CertificateError::WithRegistration { id: id.clone() });
                }
                IssuanceMethod::SelfSigned => (None, own),
                IssuanceMethod::LocalCa => {
                    let ca = self
                        .local_ca
                        .as_ref()
                        .ok_or_else(|| CertificateError::NoLocalCa { id: id.clone() })?;
                    let issuer = self.issuer(&ca.cert, now)?;
                    (Some(issuer), vec![SigningKey::Named(ca.key.to_string())])
                }
            },
        };
        let signer = issuer.as_ref().map(|above| &above.issuer);
        let unsigned = issue::prepare(request, signer, &circumstances)?;
        let mut pem = encode_pem("CERTIFICATE", &signed(keys, &unsigned, signers).await?);
        if let Some(Above { id, chain, .. }) = &issuer {
            // Only now: the signature has shown that the key belongs to the certificate.
            self.store.note_issuer(id, chain, unsigned.not_after)?;
            pem.push_str(&pem_of(chain));
        }
        Ok(Issued { pem, not_after: unsigned.not_after })
    }

    /// Returns how a certificate is issued when nobody names an issuer.
    pub(crate) fn method(&self, id: &CertId) -> Option<IssuanceMethod> {
        Some(self.issuance.get(id)?.method)
    }

    /// The certificate that signs, and its whole chain.
    fn issuer(&self, id: &CertId, now: OffsetDateTime) -> Result<Above, CertificateError> {
        let chain = self.store.read(id)?;
        let first = chain.first().ok_or_else(|| CertStoreError::NotFound { id: id.clone() })?;
        let mut issuer = Issuer::read(first.der(), now)?;
        issuer.subtrees.extend(chain[1..].iter().filter_map(|it| issuer::subtrees(it.der())));
        Ok(Above { id: id.clone(), issuer, chain })
    }
}

/// The CA that signs.
#[derive(Debug)]
struct Above {
    id: CertId,
    issuer: Issuer,
    /// Its certificate and those above it.
    chain: Vec<Certificate>,
}

/// The key that signs.
#[derive(Debug)]
enum SigningKey {
    Handle(KeyHandle),
    Named(String),
}

/// Returns the key pairs by one of which a certificate of this id signs itself, the
/// likeliest first.
///
/// This is the key pair of the certificate's own name. The compatible module runtime
/// renews its CA under a second id, and keeps the key of the first id if it is told not
/// to rotate that key.
fn own_keys(id: &CertId) -> Vec<SigningKey> {
    let second = EDGE_CA_NEXT.is_cert(id).then_some(EDGE_CA.as_str());
    [Some(id.as_str()), second]
        .into_iter()
        .flatten()
        .map(|name| SigningKey::Named(name.to_owned()))
        .collect()
}

/// Has the certificate signed by the first of the keys that it is to be of. The error is
/// that of the first.
async fn signed(
    keys: &KeysClient,
    unsigned: &Unsigned,
    signers: Vec<SigningKey>,
) -> Result<Vec<u8>, CertificateError> {
    let mut first = None;
    for signer in signers {
        let attempt = async {
            let handle = match signer {
                SigningKey::Handle(handle) => handle,
                SigningKey::Named(name) => {
                    keys.load_key_pair(&name).await.map_err(CertificateError::Key)?
                }
            };
            Ok(unsigned.finish(&sign(keys, unsigned, &handle).await?)?)
        };
        match attempt.await {
            Ok(certificate) => return Ok(certificate),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or(CertificateError::Issue(IssueError::WrongKey)))
}

async fn sign(
    keys: &KeysClient,
    unsigned: &Unsigned,
    key: &KeyHandle,
) -> Result<Vec<u8>, CertificateError> {
    match unsigned.key_kind() {
        KeyKind::P256 | KeyKind::P384 => {
            keys.sign(key, SignMechanism::Ecdsa { digest: unsigned.digest().into() }).await
        }
        KeyKind::Rsa => keys.encrypt(key, EncryptMechanism::RsaPkcs1, unsigned.digest_info()).await,
    }
    .map_err(CertificateError::Key)
}
