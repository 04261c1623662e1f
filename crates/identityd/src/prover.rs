//! The proof of the device towards the provisioning service and the hub: a token that
//! keyd or the TPM signs, or a certificate whose key is in keyd.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use edgekeep_api::tpmd::{AuthKeySlot, TpmClient};
use edgekeep_base::lock::lock;
use edgekeep_cloud::{CloudError, Credential};
use edgekeep_core::credentials::Certificate;
use edgekeep_core::id::{CertId, KeyId};
use edgekeep_core::names::OPERATIONAL;
use edgekeep_core::settings::{CredentialKind, DeviceCredential};
use edgekeep_daemon::store::sha256;
use edgekeep_tls::ClientIdentity;

use crate::certificates::{Certificates, common_name};
use crate::keys::DeviceKeys;
use crate::refresh::chain;
use crate::tpm::DeviceSigner;

/// Time for which a key is used before keyd is asked again which one it is: one in a file
/// may have been replaced together with the certificate.
const KEY_AGE: Duration = Duration::from_secs(600);

/// The proof of the device.
#[derive(Debug)]
pub(crate) struct Prover {
    credential: Option<DeviceCredential>,
    /// True if the hub knows the device by the certificate that the provisioning service
    /// issues, and by nothing else.
    is_operational: bool,
    keys: Arc<DeviceKeys>,
    tpm: TpmClient,
    certificates: Arc<Certificates>,
    shown: Mutex<Shown>,
    shown_to_hub: Mutex<Shown>,
}

/// The certificate that was shown last, and the time at which its key was looked up.
type Shown = Option<(Arc<ClientIdentity>, Instant)>;

impl Prover {
    pub(crate) fn new(
        credential: Option<DeviceCredential>,
        keys: Arc<DeviceKeys>,
        tpm: TpmClient,
        certificates: Arc<Certificates>,
    ) -> Self {
        let (shown, shown_to_hub) = (Mutex::new(None), Mutex::new(None));
        let is_operational = false;
        Self { credential, is_operational, keys, tpm, certificates, shown, shown_to_hub }
    }

    /// The same, of a device that the hub knows by the certificate that the provisioning
    /// service issues if `is_operational`.
    pub(crate) fn with_operational(self, is_operational: bool) -> Self {
        Self { is_operational, ..self }
    }

    /// Returns true if the hub knows the device by the certificate that the provisioning
    /// service issues.
    pub(crate) fn is_operational(&self) -> bool {
        self.is_operational
    }

    /// Returns the kind of the proof; `None` for a device of no cloud.
    pub(crate) fn kind(&self) -> Option<CredentialKind> {
        self.credential.as_ref().map(DeviceCredential::kind)
    }

    /// Returns the TPM, where the device proves itself by it.
    pub(crate) fn tpm(&self) -> Option<&TpmClient> {
        matches!(self.credential, Some(DeviceCredential::Tpm)).then_some(&self.tpm)
    }

    /// Returns the proof for a call to the hub. There is one kind of proof for a hub: if
    /// it cannot be had, no other takes its place.
    ///
    /// # Errors
    /// [`CloudError::Request`] if there is no certificate, or its key cannot be used.
    pub(crate) async fn to_hub(&self) -> Result<Credential<DeviceSigner>, CloudError> {
        if self.is_operational {
            let (cert, key) = (OPERATIONAL.cert(), OPERATIONAL.key());
            return self.by_certificate(&cert, &key, &self.shown_to_hub).await;
        }
        self.by(AuthKeySlot::Hub).await
    }

    /// Returns the proof for a call to the provisioning service.
    ///
    /// # Errors
    /// As [`Self::to_hub`].
    pub(crate) async fn to_service(&self) -> Result<Credential<DeviceSigner>, CloudError> {
        self.by(AuthKeySlot::Registration).await
    }

    async fn by(&self, slot: AuthKeySlot) -> Result<Credential<DeviceSigner>, CloudError> {
        if let Some(tpm) = self.tpm() {
            return Ok(Credential::Token(DeviceSigner::Tpm(tpm.clone(), slot)));
        }
        let Some(DeviceCredential::X509 { cert, key }) = &self.credential else {
            return Ok(Credential::Token(DeviceSigner::Keyd(Arc::clone(&self.keys))));
        };
        self.by_certificate(cert, key, &self.shown).await
    }

    async fn by_certificate(
        &self,
        cert: &CertId,
        key: &KeyId,
        shown: &Mutex<Shown>,
    ) -> Result<Credential<DeviceSigner>, CloudError> {
        let known = lock(shown).clone();
        let known = known.filter(|(_, since)| since.elapsed() < KEY_AGE);
        let (known, since) = known.unzip();
        let identity = self
            .certificates
            .client_identity(cert, key, known.clone())
            .await
            .map_err(|error| CloudError::Request { what: chain(&error) })?;
        let is_known = known.is_some_and(|known| Arc::ptr_eq(&known, &identity));
        let since = since.filter(|_| is_known).unwrap_or_else(Instant::now);
        *lock(shown) = Some((Arc::clone(&identity), since));
        Ok(Credential::Certificate(identity))
    }

    /// Returns the certificate, where the device has one.
    pub(crate) fn leaf(&self) -> Option<Certificate> {
        match &self.credential {
            Some(DeviceCredential::X509 { cert, .. }) => self.certificates.leaf(cert),
            _ => None,
        }
    }

    /// Returns the certificate for the hub that the provisioning service issued, where
    /// there is one.
    pub(crate) fn operational(&self) -> Option<Certificate> {
        self.is_operational.then(|| self.certificates.leaf(&OPERATIONAL.cert())).flatten()
    }

    /// Returns the SHA-256 thumbprint of that certificate.
    pub(crate) fn operational_thumbprint(&self) -> Option<String> {
        self.operational().map(|leaf| sha256(leaf.der()).hex())
    }

    /// Returns the SHA-256 thumbprint of the certificate, where the device has one.
    pub(crate) fn thumbprint(&self) -> Option<String> {
        self.leaf().map(|leaf| sha256(leaf.der()).hex())
    }

    /// Returns the common name in the certificate, where the device has one.
    pub(crate) fn common_name(&self) -> Option<String> {
        self.leaf().as_ref().and_then(common_name)
    }
}
