//! Operational certificates: those that the provisioning service issues with a
//! registration, by which the hub knows the device. What is asked for, what came, and
//! what it is worth at the hub.

use std::sync::Arc;

use edgekeep_base::error;
use edgekeep_cloud::{CloudError, Credential, Hub, Registration, Transport};
use edgekeep_core::foreign_text::{CHAIN_LIMIT, cleaned};
use edgekeep_core::provisioning::{DeviceIdentity, Failure, Proof, judge};
use time::OffsetDateTime;
use tokio::sync::oneshot;

use crate::certificates::{Candidate, Certificates, Wanted, checked_operational};
use crate::device::CertificateOutcome;
use crate::tpm::DeviceSigner;

/// The certificate of the registration under way, and those who wait for it.
#[derive(Debug)]
pub(crate) struct Operational {
    certificates: Arc<Certificates>,
    /// The certificate that was asked for.
    wanted: Option<Wanted>,
    /// Certificates that came with the assignment, DER.
    pub(crate) issued: Vec<Vec<u8>>,
    /// The certificate that was tried, and is to be put in its place.
    next: Option<Candidate>,
    /// Those who wish to be told of a new certificate.
    pub(crate) wishes: Vec<oneshot::Sender<CertificateOutcome>>,
}

impl Operational {
    pub(crate) fn new(certificates: Arc<Certificates>) -> Self {
        Self { certificates, wanted: None, issued: Vec::new(), next: None, wishes: Vec::new() }
    }

    /// Has a registration ask for a certificate.
    pub(crate) async fn want(&mut self, registration: &mut Registration) -> Result<(), Failure> {
        (self.issued, self.next) = (Vec::new(), None);
        let wanted = self.certificates.want_operational(&registration.registration_id).await;
        let wanted = wanted.map_err(|fault| Failure { refused: false, ..refused(&fault) })?;
        registration.csr = Some(wanted.csr().to_vec());
        self.wanted = Some(wanted);
        Ok(())
    }

    /// Checks the certificate that came, and tries it at the assigned hub. Returns its
    /// SHA-256 thumbprint.
    pub(crate) async fn prove(
        &mut self,
        transport: &Arc<Transport>,
        identity: &DeviceIdentity,
    ) -> Result<String, Failure> {
        let issued = std::mem::take(&mut self.issued);
        let wanted = self.wanted.take().ok_or_else(|| Failure {
            refused: false,
            reason: "the request for the certificate is lost".to_owned(),
            retry_after: None,
        })?;
        let now = OffsetDateTime::now_utc();
        let next = checked_operational(&wanted, &issued, now).map_err(|fault| refused(&fault))?;
        let shown = Credential::<DeviceSigner>::Certificate(next.identity());
        let tried = match Hub::new(Arc::clone(transport), identity, None, shown) {
            Ok(hub) => hub.list().await.map(drop),
            Err(fault) => Err(CloudError::Request { what: fault.to_string() }),
        };
        let proof = match &tried {
            Ok(()) => Proof::Accepted,
            Err(error) if error.refuses_device() || matches!(error, CloudError::Refused { .. }) => {
                Proof::Refused
            }
            Err(_) => Proof::Unknown,
        };
        if let Err(error) = &tried {
            let words = error.chain();
            if !judge(proof, self.certificates.has_valid_operational()) {
                let is_refused = proof == Proof::Refused;
                let what = if is_refused { "is refused" } else { "could not be tried" };
                let reason = format!("the certificate that was issued {what} at the hub: {words}");
                let retry_after = error.retry_after();
                return Err(Failure { refused: is_refused, reason, retry_after });
            }
            tracing::warn!(error = %words, "the certificate that was issued is taken untried: there is no valid one");
        }
        let thumbprint = next.thumbprint().to_owned();
        self.next = Some(next);
        Ok(thumbprint)
    }

    /// Puts the certificate that was tried in its place, if there is one. The error is in
    /// words.
    pub(crate) async fn take(&mut self) -> Result<(), String> {
        let Some(next) = self.next.take() else { return Ok(()) };
        let taken = self.certificates.take_operational(&next).await;
        taken.map_err(|fault| cleaned(&error::chain(&fault), CHAIN_LIMIT))
    }
}

fn refused(fault: &(dyn std::error::Error + 'static)) -> Failure {
    let reason = cleaned(&error::chain(fault), CHAIN_LIMIT);
    Failure { refused: true, reason, retry_after: None }
}
