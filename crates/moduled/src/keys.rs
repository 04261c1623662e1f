//! Handles to moduled's own keys in keyd, asked for once and kept until keyd objects to them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use edgekeep_api::certd::CertificatesClient;
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{KeyHandle, KeysClient};
use edgekeep_core::id::KeyId;
use edgekeep_daemon::server::HttpError;
use http::StatusCode;
use tokio::sync::Mutex;

use crate::failure;

/// How a key is obtained.
#[derive(Debug, Clone)]
enum Origin {
    /// A symmetric key that is made when first used.
    Encryption(String),
    /// A key pair that exists.
    Pair(KeyId),
}

/// One key's handle.
#[derive(Debug)]
pub struct KeptHandle {
    origin: Origin,
    handle: Mutex<Option<KeyHandle>>,
}

impl KeptHandle {
    /// A symmetric key for encryption, made when first used.
    #[must_use]
    pub fn of_encryption_key(id: &str) -> Self {
        Self { origin: Origin::Encryption(id.to_owned()), handle: Mutex::new(None) }
    }

    /// An existing key pair.
    #[must_use]
    pub fn of_key_pair(id: KeyId) -> Self {
        Self { origin: Origin::Pair(id), handle: Mutex::new(None) }
    }

    /// The handle.
    ///
    /// # Errors
    /// As an answer, if keyd cannot be reached or refuses.
    pub async fn get(&self, keys: &KeysClient) -> Result<KeyHandle, HttpError> {
        let mut kept = self.handle.lock().await;
        if let Some(handle) = &*kept {
            return Ok(handle.clone());
        }
        let handle = match &self.origin {
            Origin::Encryption(id) => keys.create_key(id, "encrypt").await,
            Origin::Pair(id) => keys.load_key_pair(id.as_str()).await,
        };
        let handle = handle.map_err(|error| failure::of_service(&error))?;
        *kept = Some(handle.clone());
        Ok(handle)
    }

    /// A new handle in place of `old`, which keyd objected to.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn renew(&self, keys: &KeysClient, old: &KeyHandle) -> Result<KeyHandle, HttpError> {
        {
            let mut kept = self.handle.lock().await;
            // Somebody else may have renewed it meanwhile.
            if kept.as_ref() == Some(old) {
                *kept = None;
            }
        }
        self.get(keys).await
    }
}

/// The trust bundle, asked for again after a few seconds in the background: while the certificates API is slow or away, the
/// last one is served.
#[derive(Debug, Default)]
pub struct TrustBundleCache {
    kept: RwLock<Option<(Instant, Arc<String>)>>,
    refreshing: AtomicBool,
}

impl TrustBundleCache {
    const FRESH: Duration = Duration::from_secs(5);
    const CERT_ID: &str = "aziot-edged-trust-bundle";

    /// The bundle.
    ///
    /// # Errors
    /// 404 if there is none; 500 if the certificates API was never reached.
    pub async fn get(self: &Arc<Self>, certificates: &CertificatesClient) -> Result<Arc<String>, HttpError> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((since, bundle)) = kept else {
            return match certificates.load(Self::CERT_ID).await {
                Ok(pem) => Ok(self.keep(pem)),
                Err(ClientError::Status { status: StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND, .. }) => {
                    Err(HttpError::not_found(format!("certificate {:?} not found", Self::CERT_ID)))
                }
                Err(error) => Err(failure::of_service(&error)),
            };
        };
        if since.elapsed() > Self::FRESH && !self.refreshing.swap(true, Ordering::AcqRel) {
            let (this, certificates) = (Arc::clone(self), certificates.clone());
            tokio::spawn(async move {
                match certificates.load(Self::CERT_ID).await {
                    Ok(pem) => drop(this.keep(pem)),
                    Err(error) => tracing::debug!(%error, "trust bundle not refreshed"),
                }
                this.refreshing.store(false, Ordering::Release);
            });
        }
        Ok(bundle)
    }

    fn keep(&self, pem: String) -> Arc<String> {
        let bundle = Arc::new(pem);
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Arc::clone(&bundle)));
        bundle
    }
}
