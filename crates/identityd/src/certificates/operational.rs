//! The certificate that the provisioning service issues with a registration, for use at
//! the hub: its request, the check of what came, and the swap.
//!
//! Its key is made by keyd and stays there. Until the swap the key of a successor has its
//! second name, and the old certificate is in use with the old key.

use std::sync::Arc;

use edgekeep_core::credentials::{Certificate, pem_of};
use edgekeep_core::names::OPERATIONAL;
use edgekeep_daemon::store::sha256;
use edgekeep_est::{AnswerError, Csr, Profile, checked_without_roots};
use edgekeep_tls::{ClientIdentity, RemoteKey, RemoteKeyError, TlsError};
use time::OffsetDateTime;

use super::{CertificateError, Certificates, common_name, span_of};

/// Kinds of key that the service takes, the best one first: its documents promise P-384
/// alone, and its samples use P-256.
const KINDS: &str = "ec-p384:ec-p256";

/// A certificate that the service was asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Name of the key in keyd.
    name: String,
    key: RemoteKey,
    registration_id: String,
    csr: Csr,
}

impl Wanted {
    /// Returns the request, DER.
    pub(crate) fn csr(&self) -> &[u8] {
        self.csr.der()
    }
}

/// A certificate that was issued and checked, and is not in its place yet.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// Name of the key in keyd.
    name: String,
    chain: Vec<Certificate>,
    identity: Arc<ClientIdentity>,
    thumbprint: String,
}

impl Candidate {
    /// Returns the proof by which the hub is to know the device.
    pub(crate) fn identity(&self) -> Arc<ClientIdentity> {
        Arc::clone(&self.identity)
    }

    /// Returns the SHA-256 thumbprint of the device's own certificate.
    pub(crate) fn thumbprint(&self) -> &str {
        &self.thumbprint
    }
}

/// Reason for not taking what the service issued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Refused {
    /// Nothing was issued.
    #[error(
        "the provisioning service assigned the device and issued no certificate: the enrolment has no policy for certificates, or the service does not know them; add a policy to the enrolment, or take operational_certificate out of [provisioning]"
    )]
    None,
    /// Bytes that are no certificate.
    #[error("certificate {0} of those that the provisioning service issued cannot be read")]
    Unreadable(usize),
    /// The chain.
    #[error("the certificate that the provisioning service issued is not taken: {0}")]
    Chain(#[from] AnswerError),
    /// A CA.
    #[error("the provisioning service issued a certificate of a CA, which a device is not")]
    Authority,
    /// Another name.
    #[error("the provisioning service issued a certificate that does not name \"{0}\"")]
    Name(String),
    /// The pair cannot be used together.
    #[error("the certificate that the provisioning service issued cannot be shown")]
    Pair(#[from] TlsError),
    /// keyd.
    #[error("the key of the issued certificate cannot be used")]
    Key(#[from] RemoteKeyError),
}

impl Certificates {
    /// Makes a request for the next certificate, for a new key if the policy has it so.
    ///
    /// # Errors
    /// If keyd does not do its part.
    pub(crate) async fn want_operational(
        &self,
        registration_id: &str,
    ) -> Result<Wanted, CertificateError> {
        let id = OPERATIONAL.cert();
        self.recover(&id).await?;
        let old = self.leaf(&id);
        let renewal = self.issuance.get(&id).and_then(|issuance| issuance.renewal);
        // A key that never had a certificate is not used up by an attempt that failed.
        let rotate = old.is_some() && renewal.is_none_or(|policy| policy.rotate_key);
        let (name, _) = self.key_of_next(&id, old.as_ref(), rotate, Some(KINDS)).await?;
        let made = async {
            let key = RemoteKey::load(self.keys.clone(), &name).await?;
            // Nothing but the name: no other content of a request is documented.
            let profile = Profile { common_name: registration_id.to_owned(), ..Profile::default() };
            Ok((Csr::sign(&key, &profile).await?, key))
        };
        let (csr, key) =
            made.await.map_err(|source| CertificateError::NoRequest { id: id.clone(), source })?;
        Ok(Wanted { name, key, registration_id: registration_id.to_owned(), csr })
    }

    /// Swaps in a certificate that was issued, together with its key.
    ///
    /// # Errors
    /// If it cannot be written or keyd does not move the key.
    pub(crate) async fn take_operational(&self, next: &Candidate) -> Result<(), CertificateError> {
        self.swap(&OPERATIONAL.cert(), &pem_of(&next.chain), &next.name).await
    }

    /// Returns true if a certificate for the hub is there that is valid now.
    pub(crate) fn has_valid_operational(&self) -> bool {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let span = self.leaf(&OPERATIONAL.cert()).as_ref().and_then(span_of);
        span.is_some_and(|span| span.contains(now))
    }
}

/// Checks what was issued (DER, the device's own first) for a request.
///
/// # Errors
/// See [`Refused`].
pub(crate) fn checked(
    wanted: &Wanted,
    issued: &[Vec<u8>],
    now: OffsetDateTime,
) -> Result<Candidate, Refused> {
    if issued.is_empty() {
        return Err(Refused::None);
    }
    let read = |(at, der): (usize, &Vec<u8>)| {
        Certificate::from_der(der).ok_or(Refused::Unreadable(at + 1))
    };
    let certificates = issued.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
    let chain = checked_without_roots(wanted.key.public().info(), &certificates, now)?;
    let leaf = chain.first().ok_or(Refused::None)?;
    if leaf.is_ca() {
        return Err(Refused::Authority);
    }
    if common_name(leaf).as_deref() != Some(&wanted.registration_id) {
        return Err(Refused::Name(wanted.registration_id.clone()));
    }
    let thumbprint = sha256(leaf.der()).hex();
    let identity = Arc::new(ClientIdentity::new(chain.clone(), wanted.key.clone())?);
    Ok(Candidate { name: wanted.name.clone(), chain, identity, thumbprint })
}
