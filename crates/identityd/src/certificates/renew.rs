//! Renewal of one certificate: the successor is made, and takes the place of the old one
//! together with its key.
//!
//! The key is in keyd under the certificate's name, the successor's key under a second
//! name. The certificate's file is replaced by one rename; then keyd moves the key, in
//! one step. Interrupted between the two, [`Certificates::recover`] ends the swap:
//! whichever certificate is in place has its key in keyd at each moment
//! ([`edgekeep_core::renewal::pair`]).

use edgekeep_api::client::ClientError;
use edgekeep_base::lock::lock;
use edgekeep_core::credentials::{Certificate, pem_of};
use edgekeep_core::id::CertId;
use edgekeep_core::names::{DEVICE_KEY, EDGE_CA, OPERATIONAL};
use edgekeep_core::renewal::{Pair, Role, Span, makes_first, pair};
use edgekeep_core::settings::IssuanceMethod;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::keyd_key::KeydKey;
use super::public_key::PublicKey;
use super::{CertificateError, Certificates, IssueError, Request, SigningKey, issuer};

/// Common algorithms of a first key.
const FIRST_KEY: &str = "ec-p256:rsa-2048:*";

impl Certificates {
    /// Ends a swap of certificate and key that was interrupted, if there is one.
    ///
    /// # Errors
    /// If keyd cannot be asked or does not move the key.
    pub(crate) async fn recover(&self, id: &CertId) -> Result<(), CertificateError> {
        {
            let _settled = self.swap.read().await;
            if self.place_of_key(id).await? != Pair::TakeOver {
                lock(&self.unsettled).remove(id);
                return Ok(());
            }
        }
        let _swap = self.swap.write().await;
        // Another caller may have ended the swap meanwhile.
        if self.place_of_key(id).await? == Pair::TakeOver {
            tracing::info!(certificate = %id, "an interrupted renewal is brought to its end");
            let moved = self.keys.move_key_pair(&successor(id), id.as_str()).await;
            moved.map_err(own_key(id, "move the new key"))?;
            self.changed();
        }
        lock(&self.unsettled).remove(id);
        Ok(())
    }

    /// Returns the place of the key of the certificate that is in the store.
    async fn place_of_key(&self, id: &CertId) -> Result<Pair, CertificateError> {
        let Some(leaf) = self.leaf(id) else { return Ok(Pair::NoCertificate) };
        let next_name = successor(id);
        let (key, next) = (self.own_key(id, id.as_str()), self.own_key(id, &next_name));
        let (key, next) = (key.await?, next.await?);
        Ok(pair(Some(&key_of(&leaf)?), key.public(), next.public()))
    }

    /// Makes the successor of a certificate and puts it, with its key, in the place of
    /// the old one. Without an old certificate the first one is made.
    ///
    /// # Errors
    /// If the certificate is not issued, or keyd does not do its part. The old
    /// certificate and its key are in place then.
    pub(crate) async fn renew(&self, id: &CertId, rotate: bool) -> Result<Span, CertificateError> {
        self.recover(id).await?;
        let old = self.leaf(id);
        let (name, public) = self.key_of_next(id, old.as_ref(), rotate, None).await?;
        let chain = self.issued(id, &name, public, old.as_ref()).await?;
        let span = span_of(&leaf_of(&chain)?).ok_or_else(unreadable)?;
        self.swap(id, &chain, &name).await?;
        Ok(span)
    }

    /// Returns the name and the public half of the key that the next certificate is to be
    /// of. `kinds` are the algorithms of a new key, where the old one's do not decide.
    pub(super) async fn key_of_next(
        &self,
        id: &CertId,
        old: Option<&Certificate>,
        rotate: bool,
        kinds: Option<&str>,
    ) -> Result<(String, PublicKey), CertificateError> {
        let (own, next) = (id.as_str(), successor(id));
        Ok(match self.own_key(id, own).await? {
            KeydKey::Pair(_, public) if !rotate => (own.to_owned(), public),
            // The key of a first certificate, for which a server may still want approval.
            KeydKey::Pair(_, public) if old.is_none() && kinds.is_none() => {
                (own.to_owned(), public)
            }
            // A key that is the certificate's, and is not shown, stays.
            KeydKey::Hidden if let (Some(old), false) = (old, rotate) => {
                (own.to_owned(), key_of(old)?)
            }
            KeydKey::Pair(_, public) => {
                let kinds = kinds.unwrap_or_else(|| public.successors());
                let made = self.new_key(id, &next, kinds).await?;
                (next, made)
            }
            KeydKey::Hidden => {
                let former = old.map(key_of).transpose()?;
                let former = former.map_or(FIRST_KEY, |public| public.successors());
                let made = self.new_key(id, &next, kinds.unwrap_or(former)).await?;
                (next, made)
            }
            KeydKey::Absent => {
                (own.to_owned(), self.new_key(id, own, kinds.unwrap_or(FIRST_KEY)).await?)
            }
        })
    }

    /// Has a certificate issued as it is configured, for the key pair of this name.
    async fn issued(
        &self,
        id: &CertId,
        name: &str,
        public: PublicKey,
        old: Option<&Certificate>,
    ) -> Result<String, CertificateError> {
        if self.method(id) == Some(IssuanceMethod::Est) {
            let common_name = self.issuance.get(id).and_then(|it| it.common_name.as_deref());
            if common_name.is_none() && old.is_none() {
                return Err(CertificateError::NoSubject { id: id.clone() });
            }
            let common_name = common_name.unwrap_or_default();
            return Ok(pem_of(&self.enrol_key(id, name, common_name, old).await?));
        }
        let request = match old {
            Some(old) => Request::renewed(old.der(), public)?,
            None => self.first_request(id, public)?,
        };
        let own = vec![SigningKey::Named(name.to_owned())];
        Ok(self.make(&self.keys, id, &request, None, None, own).await?.pem)
    }

    /// Returns whether a certificate that the local CA should have issued was issued by
    /// another one, such as the local CA before its key was replaced.
    pub(crate) fn is_of_another_issuer(&self, id: &CertId) -> bool {
        let (Some(ca), Some(IssuanceMethod::LocalCa)) = (&self.local_ca, self.method(id)) else {
            return false;
        };
        let (Some(leaf), Some(issuer)) = (self.leaf(id), self.leaf(&ca.cert)) else {
            return false;
        };
        !leaf.says_issued_by(&issuer) || !issuer::has_signed(issuer.der(), leaf.der())
    }

    /// Returns the certificate that issues this one, where that is on the device.
    pub(crate) fn issuer_of(&self, id: &CertId) -> Option<Certificate> {
        let ca =
            self.local_ca.as_ref().filter(|_| self.method(id) == Some(IssuanceMethod::LocalCa));
        self.leaf(&ca?.cert)
    }

    /// Puts a certificate in place, and its key of this name where that is not the
    /// certificate's.
    pub(super) async fn swap(
        &self,
        id: &CertId,
        chain: &str,
        key: &str,
    ) -> Result<(), CertificateError> {
        let next = (key != id.as_str()).then_some(key);
        let _swap = self.swap.write().await;
        let before = self.store.read(id).ok().map(|chain| pem_of(&chain));
        self.store.write(id, chain, true)?;
        if let Some(next) = next
            && let Err(source) = self.keys.move_key_pair(next, id.as_str()).await
        {
            // A refusal means that the old key is in place. Anything else may mean that
            // it is not: that is found out before the next attempt.
            if source.status().is_some_and(|status| status.is_client_error())
                && let Some(before) = before
            {
                self.store.write(id, &before, true)?;
            }
            lock(&self.unsettled).insert(id.clone());
            return Err(own_key(id, "move the new key")(source));
        }
        self.changed();
        Ok(())
    }

    /// Makes a key pair under a name. What is left there of an earlier attempt goes.
    async fn new_key(
        &self,
        id: &CertId,
        name: &str,
        algorithms: &str,
    ) -> Result<PublicKey, CertificateError> {
        if let KeydKey::Pair(left_over, public) = self.own_key(id, name).await? {
            // A server at which somebody approves requests expects the same one again,
            // and a registration that failed is made again soon.
            if matches!(self.method(id), Some(IssuanceMethod::Est | IssuanceMethod::Dps)) {
                return Ok(public);
            }
            let deleted = self.keys.delete_key_pair(&left_over).await;
            deleted.map_err(own_key(id, "delete a left-over key"))?;
        }
        let made = self.keys.create_key_pair(name, Some(algorithms)).await;
        made.map_err(own_key(id, "make a new key"))?;
        match self.own_key(id, name).await? {
            KeydKey::Pair(_, public) => Ok(public),
            KeydKey::Absent | KeydKey::Hidden => {
                let what = "its new key is neither EC nor RSA".to_owned();
                Err(IssueError::Request { what }.into())
            }
        }
    }

    async fn own_key(&self, id: &CertId, name: &str) -> Result<KeydKey, CertificateError> {
        KeydKey::look_up(&self.keys, name).await.map_err(own_key(id, "look for the key"))
    }

    /// Returns the request for a certificate that was never issued.
    fn first_request(&self, id: &CertId, public: PublicKey) -> Result<Request, CertificateError> {
        let named = self.issuance.get(id).and_then(|issuance| issuance.common_name.as_deref());
        let is_ca = self.local_ca.as_ref().is_some_and(|ca| ca.cert == *id);
        match named {
            Some(name) if is_ca => Ok(Request::for_ca(name, public)?),
            Some(name) if DEVICE_KEY.is_cert(id) => Ok(Request::for_client(name, public)?),
            None if is_ca => Ok(Request::for_ca(&format!("{} local CA", self.hostname), public)?),
            _ => Err(CertificateError::NoSubject { id: id.clone() }),
        }
    }

    /// Returns whether a first certificate of this id can be made unasked.
    pub(crate) fn makes_first(&self, id: &CertId) -> bool {
        let role = match id {
            id if self.local_ca.as_ref().is_some_and(|ca| ca.cert == *id) => Role::LocalCa,
            id if EDGE_CA.is_cert(id) => Role::EdgeCa,
            id if DEVICE_KEY.is_cert(id) => Role::DeviceIdentity,
            id if OPERATIONAL.is_cert(id) => Role::Operational,
            _ => Role::Other,
        };
        let by_est = self.method(id) == Some(IssuanceMethod::Est);
        let named = self.issuance.get(id).is_some_and(|it| it.common_name.is_some());
        makes_first(role, by_est, named)
    }
}

/// Returns the second name of a certificate's key: the one that the compatible module
/// runtime uses.
fn successor(id: &CertId) -> String {
    format!("{id}-temp")
}

fn own_key(id: &CertId, step: &'static str) -> impl FnOnce(ClientError) -> CertificateError {
    move |source| CertificateError::OwnKey { id: id.clone(), step, source }
}

fn unreadable() -> CertificateError {
    IssueError::Request { what: "the certificate to be renewed cannot be read".to_owned() }.into()
}

fn leaf_of(pem: &str) -> Result<Certificate, CertificateError> {
    super::pem::certificates(pem)?.into_iter().next().ok_or_else(unreadable)
}

/// Returns the public key of a certificate.
fn key_of(certificate: &Certificate) -> Result<PublicKey, CertificateError> {
    let read = <issuer::Certificate<'_> as der::Decode>::from_der(certificate.der());
    let info = read.map_err(|_| unreadable())?.tbs.key;
    PublicKey::read(&info).map_err(|what| IssueError::Request { what: what.to_owned() }.into())
}

/// Returns the end of the first certificate of a chain.
pub(super) fn end_of(chain: &[Certificate]) -> Result<OffsetDateTime, CertificateError> {
    let span = chain.first().and_then(span_of).ok_or_else(unreadable)?;
    OffsetDateTime::from_unix_timestamp(span.end).map_err(|_| unreadable())
}

/// Returns the begin and end of a certificate.
pub(crate) fn span_of(certificate: &Certificate) -> Option<Span> {
    let (_, certificate) = X509Certificate::from_der(certificate.der()).ok()?;
    let validity = certificate.validity();
    Some(Span { begin: validity.not_before.timestamp(), end: validity.not_after.timestamp() })
}
