//! Handles to moduled's own keys in keyd, asked for once and kept until keyd objects to them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use edgekeep_api::certd::CertificatesClient;
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{KeyHandle, KeysClient};
use edgekeep_api::{Recipient, is_worth_a_fresh_handle, says_absent};
use edgekeep_core::id::KeyId;
use edgekeep_core::settings::ModuleEncryption;
use edgekeep_daemon::server::HttpError;
use http::StatusCode;
use tokio::sync::Mutex;

use crate::failure;

/// The device's key for modules' data (wire facts 3.3).
const DEVICE_DATA_KEY: &str = "iotedge_master_encryption_id";
/// What the keys of single modules' data are derived from.
const MODULE_DATA_BASE: &str = "edgekeep-module-data";
/// Derived keys whose handles are kept: more modules than a device has; a bound all the same.
const DERIVED_LIMIT: usize = 1024;

/// How a key is obtained.
#[derive(Debug, Clone)]
enum Origin {
    /// A symmetric key that is made when first used, for this usage.
    Made { id: &'static str, usage: &'static str },
    /// A symmetric key that exists.
    Symmetric(&'static str),
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
    fn new(origin: Origin) -> Self {
        Self { origin, handle: Mutex::new(None) }
    }

    /// The device's key for modules' data; made when first used if new data is encrypted under it.
    #[must_use]
    pub fn of_device_data_key(encryption: ModuleEncryption) -> Self {
        Self::new(match encryption {
            ModuleEncryption::DeviceKey => Origin::Made { id: DEVICE_DATA_KEY, usage: "encrypt" },
            ModuleEncryption::ModuleKey | ModuleEncryption::ModuleKeyOnly => Origin::Symmetric(DEVICE_DATA_KEY),
        })
    }

    /// An existing key pair.
    #[must_use]
    pub fn of_key_pair(id: KeyId) -> Self {
        Self::new(Origin::Pair(id))
    }

    /// The handle.
    ///
    /// # Errors
    /// As an answer, if keyd cannot be reached or refuses.
    pub async fn get(&self, keys: &KeysClient) -> Result<KeyHandle, HttpError> {
        self.ask(keys).await.map_err(|error| failure::of_service(&error))
    }

    async fn ask(&self, keys: &KeysClient) -> Result<KeyHandle, ClientError> {
        let mut kept = self.handle.lock().await;
        if let Some(handle) = &*kept {
            return Ok(handle.clone());
        }
        let handle = match &self.origin {
            Origin::Made { id, usage } => keys.create_key(id, usage).await,
            Origin::Symmetric(id) => keys.load_key(id).await,
            Origin::Pair(id) => keys.load_key_pair(id.as_str()).await,
        }?;
        *kept = Some(handle.clone());
        Ok(handle)
    }

    /// A new handle in place of `old`, which keyd objected to.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn renew(&self, keys: &KeysClient, old: &KeyHandle) -> Result<KeyHandle, HttpError> {
        self.forget(old).await;
        self.get(keys).await
    }

    /// Somebody else may have renewed it meanwhile.
    async fn forget(&self, old: &KeyHandle) {
        let mut kept = self.handle.lock().await;
        if kept.as_ref() == Some(old) {
            *kept = None;
        }
    }
}

/// The keys of modules' data: each derived, in keyd, from one base that is made when first used. Only their handles are here.
#[derive(Debug)]
pub struct ModuleDataKeys {
    base: KeptHandle,
    /// By what they are derived for.
    derived: RwLock<HashMap<Vec<u8>, KeyHandle>>,
}

impl Default for ModuleDataKeys {
    fn default() -> Self {
        let base = KeptHandle::new(Origin::Made { id: MODULE_DATA_BASE, usage: "derive" });
        Self { base, derived: RwLock::default() }
    }
}

impl ModuleDataKeys {
    async fn derive(&self, keys: &KeysClient, data: &[u8]) -> Result<KeyHandle, ClientError> {
        let base = self.base.ask(keys).await?;
        match keys.derive_key(&base, data).await {
            Err(error) if is_worth_a_fresh_handle(&error, Recipient::Keys) => {
                self.base.forget(&base).await;
                keys.derive_key(&self.base.ask(keys).await?, data).await
            }
            done => done,
        }
    }

    fn kept(&self, data: &[u8]) -> Option<KeyHandle> {
        self.derived.read().unwrap_or_else(PoisonError::into_inner).get(data).cloned()
    }

    fn keep(&self, data: &[u8], handle: &KeyHandle) {
        let mut derived = self.derived.write().unwrap_or_else(PoisonError::into_inner);
        if derived.len() >= DERIVED_LIMIT {
            derived.clear();
        }
        derived.insert(data.to_vec(), handle.clone());
    }

    async fn forget(&self, data: &[u8], old: &KeyHandle) {
        if self.kept(data).as_ref() == Some(old) {
            self.derived.write().unwrap_or_else(PoisonError::into_inner).remove(data);
            // The base's is as old.
            *self.base.handle.lock().await = None;
        }
    }
}

/// A key that modules' data is encrypted under.
pub(crate) enum DataKey<'a> {
    /// The device's one key.
    Device(&'a KeptHandle),
    /// The one that is derived for this.
    Module(&'a ModuleDataKeys, &'a [u8]),
}

impl DataKey<'_> {
    /// Its handle.
    ///
    /// # Errors
    /// 500 if keyd cannot be reached or refuses: whatever keeps modules' data from being encrypted is an error of ours (wire
    /// facts 3.3).
    pub(crate) async fn get(&self, keys: &KeysClient) -> Result<KeyHandle, HttpError> {
        let asked = match self {
            Self::Device(key) => key.ask(keys).await,
            Self::Module(all, data) => match all.kept(data) {
                Some(handle) => Ok(handle),
                None => all.derive(keys, data).await.inspect(|handle| all.keep(data, handle)),
            },
        };
        asked.map_err(|error| {
            let remedy = match error {
                ClientError::Status { status: StatusCode::UNAUTHORIZED, .. } => {
                    "; `edgekeep config apply` grants it to moduled"
                }
                _ => "",
            };
            HttpError::internal(format!("no key of modules' data: {error}{remedy}"))
        })
    }

    /// A new handle in place of `old`, which keyd objected to.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) async fn renew(&self, keys: &KeysClient, old: &KeyHandle) -> Result<KeyHandle, HttpError> {
        match self {
            Self::Device(key) => key.forget(old).await,
            Self::Module(all, data) => all.forget(data, old).await,
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
                Err(error) if says_absent(&error, Recipient::Certificates) => {
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

    /// Forgets the bundle: what is in it was replaced, and the old one is of no use to anybody.
    pub fn forget(&self) {
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn keep(&self, pem: String) -> Arc<String> {
        let bundle = Arc::new(pem);
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Arc::clone(&bundle)));
        bundle
    }
}
