//! Certificates by which this device proves who it is in a TLS handshake.

use std::sync::Arc;

use edgekeep_core::credentials::Certificate;
use edgekeep_core::id::{CertId, KeyId};
use edgekeep_tls::{ClientIdentity, RemoteKey, RemoteKeyError, TlsError};

use super::{CertStoreError, Certificates};

/// Failure to prove who this device is by a certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientIdentityError {
    /// The certificate.
    #[error("the device's certificate \"{id}\" cannot be used")]
    Certificate {
        /// Id of the certificate.
        id: CertId,
        /// Error of the store.
        #[source]
        source: CertStoreError,
    },
    /// Its key.
    #[error("the key of the device's certificate \"{id}\" cannot be used")]
    Key {
        /// Id of the certificate.
        id: CertId,
        /// Error of using the key in keyd.
        #[source]
        source: RemoteKeyError,
    },
    /// The two together.
    #[error("the device's certificate \"{id}\" cannot be shown")]
    Pair {
        /// Id of the certificate.
        id: CertId,
        /// Reason why the two cannot be used together.
        #[source]
        source: TlsError,
    },
}

impl Certificates {
    /// Returns a certificate with its chain and its key in keyd, which belong together.
    /// `known` is returned if it is of the certificate that is there.
    ///
    /// # Errors
    /// See [`ClientIdentityError`].
    pub(crate) async fn client_identity(
        &self,
        id: &CertId,
        key: &KeyId,
        known: Option<Arc<ClientIdentity>>,
    ) -> Result<Arc<ClientIdentity>, ClientIdentityError> {
        let _settled = self.swap.read().await;
        let chain = self.store.read(id);
        let chain =
            chain.map_err(|source| ClientIdentityError::Certificate { id: id.clone(), source })?;
        if let Some(known) = known.filter(|known| known.leaf() == chain.first()) {
            return Ok(known);
        }
        let key = RemoteKey::load(self.keys.clone(), key.as_str()).await;
        let key = key.map_err(|source| ClientIdentityError::Key { id: id.clone(), source })?;
        ClientIdentity::new(chain, key)
            .map(Arc::new)
            .map_err(|source| ClientIdentityError::Pair { id: id.clone(), source })
    }
}

/// Returns the common name of a certificate's subject.
pub(crate) fn common_name(certificate: &Certificate) -> Option<String> {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(certificate.der()).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}
