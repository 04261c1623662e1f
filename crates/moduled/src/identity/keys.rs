//! Handles to moduled's own keys in keyd, asked for once and kept until keyd objects to
//! them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use edgekeep_api::certd::CertificatesClient;
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{KeyHandle, KeysClient};
use edgekeep_api::{Recipient, is_worth_a_fresh_handle, says_absent};
use edgekeep_core::id::KeyId;
use edgekeep_core::settings::ModuleEncryption;
use http::StatusCode;
use tokio::sync::Mutex;

use crate::identity::bundle::written_anew;

/// The device's key for modules' data (wire facts 3.3).
const DEVICE_DATA_KEY: &str = "iotedge_master_encryption_id";
/// Id of the key that the keys of single modules' data are derived from.
const MODULE_DATA_BASE: &str = "edgekeep-module-data";
/// Derived keys whose handles are kept: more modules than a device has; a bound all the
/// same.
const DERIVED_LIMIT: usize = 1024;

/// Way in which a key is obtained.
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
pub(crate) struct KeptHandle {
    origin: Origin,
    handle: Mutex<Option<KeyHandle>>,
}

impl KeptHandle {
    fn new(origin: Origin) -> Self {
        Self { origin, handle: Mutex::new(None) }
    }

    /// The device's key for modules' data; made when first used if new data is encrypted
    /// under it.
    #[must_use]
    pub(crate) fn of_device_data_key(encryption: ModuleEncryption) -> Self {
        Self::new(match encryption {
            ModuleEncryption::DeviceKey => Origin::Made { id: DEVICE_DATA_KEY, usage: "encrypt" },
            ModuleEncryption::ModuleKey | ModuleEncryption::ModuleKeyOnly => {
                Origin::Symmetric(DEVICE_DATA_KEY)
            }
        })
    }

    /// An existing key pair.
    #[must_use]
    pub(crate) fn of_key_pair(id: KeyId) -> Self {
        Self::new(Origin::Pair(id))
    }

    /// Returns the handle.
    ///
    /// # Errors
    /// If keyd cannot be reached or refuses.
    pub(crate) async fn get(&self, keys: &KeysClient) -> Result<KeyHandle, ClientError> {
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
    pub(crate) async fn renew(
        &self,
        keys: &KeysClient,
        old: &KeyHandle,
    ) -> Result<KeyHandle, ClientError> {
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

/// The key that keys of modules' data are derived from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Base {
    /// A key for nothing else (ours).
    ModuleData,
    /// The device's key for modules' data, where the keys service has the other one for
    /// nobody: compatible services grant the module runtime the keys that the published
    /// interface names, and no others.
    DeviceData,
}

/// The keys of modules' data: each derived, in keyd, from one base that is made when
/// first used. Only their handles are here.
#[derive(Debug)]
pub(crate) struct ModuleDataKeys {
    module_data: KeptHandle,
    device_data: KeptHandle,
    /// Handles of the derived keys, by the base that a key is derived from and the data
    /// that it is derived for.
    derived: RwLock<HashMap<(Base, Vec<u8>), KeyHandle>>,
    /// The base of new data, once keyd has said which.
    base: OnceLock<Base>,
}

impl Default for ModuleDataKeys {
    fn default() -> Self {
        Self {
            module_data: KeptHandle::new(Origin::Made { id: MODULE_DATA_BASE, usage: "derive" }),
            // Made when new data is to be under it, and never for a ciphertext that
            // somebody sends.
            device_data: KeptHandle::new(Origin::Symmetric(DEVICE_DATA_KEY)),
            derived: RwLock::default(),
            base: OnceLock::new(),
        }
    }
}

impl ModuleDataKeys {
    /// Base of new data, as far as keyd grants one.
    ///
    /// # Errors
    /// As [`DataKey::get`].
    pub(crate) async fn base(&self, keys: &KeysClient) -> Result<Base, DataKeyError> {
        if let Some(base) = self.base.get() {
            return Ok(*base);
        }
        let base = match self.module_data.get(keys).await {
            Ok(_) => Base::ModuleData,
            Err(error) if grants_published_keys_alone(&error) => {
                tracing::warn!(
                    "the keys service grants no key {MODULE_DATA_BASE:?}, as compatible ones do: modules' keys are derived \
                     from {DEVICE_DATA_KEY:?}"
                );
                keys.create_key(DEVICE_DATA_KEY, "encrypt").await.map_err(DataKeyError::new)?;
                Base::DeviceData
            }
            Err(error) => return Err(DataKeyError::new(error)),
        };
        Ok(*self.base.get_or_init(|| base))
    }

    fn kept_base(&self, base: Base) -> &KeptHandle {
        match base {
            Base::ModuleData => &self.module_data,
            Base::DeviceData => &self.device_data,
        }
    }

    async fn derive(
        &self,
        keys: &KeysClient,
        base: Base,
        data: &[u8],
    ) -> Result<KeyHandle, ClientError> {
        let kept = self.kept_base(base);
        let handle = kept.get(keys).await?;
        match keys.derive_key(&handle, data).await {
            Err(error) if is_worth_a_fresh_handle(&error, Recipient::Keys) => {
                kept.forget(&handle).await;
                keys.derive_key(&kept.get(keys).await?, data).await
            }
            done => done,
        }
    }

    fn kept(&self, base: Base, data: &[u8]) -> Option<KeyHandle> {
        self.derived
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(base, data.to_vec()))
            .cloned()
    }

    fn keep(&self, base: Base, data: &[u8], handle: &KeyHandle) {
        let mut derived = self.derived.write().unwrap_or_else(PoisonError::into_inner);
        if derived.len() >= DERIVED_LIMIT {
            derived.clear();
        }
        derived.insert((base, data.to_vec()), handle.clone());
    }

    async fn forget(&self, base: Base, data: &[u8], old: &KeyHandle) {
        if self.kept(base, data).as_ref() == Some(old) {
            self.derived
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&(base, data.to_vec()));
            // The base's is as old.
            *self.kept_base(base).handle.lock().await = None;
        }
    }
}

/// Decides whether a refusal is that of a service with the published grants alone. Ours
/// names the cause, and `edgekeep config apply` then grants what is missing.
fn grants_published_keys_alone(error: &ClientError) -> bool {
    matches!(error, ClientError::Status { status: StatusCode::UNAUTHORIZED, code: None, .. })
}

/// Failure to obtain a key of modules' data.
#[derive(Debug, thiserror::Error)]
#[error("no key of modules' data: {source}{}", self.remedy())]
pub(crate) struct DataKeyError {
    source: ClientError,
    /// True if the key was to be derived from the device's key.
    derived_from_device: bool,
    /// True if the caller named a key that there never was.
    of_caller: bool,
}

impl DataKeyError {
    fn new(source: ClientError) -> Self {
        Self { source, derived_from_device: false, of_caller: false }
    }

    /// Returns whether the reason is what the caller sent, and not the device.
    pub(crate) fn is_of_caller(&self) -> bool {
        self.of_caller
    }

    fn remedy(&self) -> &'static str {
        match &self.source {
            // A key that was made to encrypt derives nothing on a token, nor in our own
            // keys service.
            error if self.derived_from_device && error.status().is_some() => {
                "; keys derived from \"iotedge_master_encryption_id\" are made where a compatible keys \
                 service can do that (else: module_encryption = \"device-key\"), and are of use there alone"
            }
            ClientError::Status { status: StatusCode::UNAUTHORIZED, .. } => {
                "; `edgekeep config apply` grants it to moduled"
            }
            _ => "",
        }
    }
}

/// A key that modules' data is encrypted under.
pub(crate) enum DataKey<'a> {
    /// The device's one key.
    Device(&'a KeptHandle),
    /// The one that is derived from this base for this.
    Module(&'a ModuleDataKeys, Base, &'a [u8]),
}

impl DataKey<'_> {
    /// Its handle.
    ///
    /// # Errors
    /// If keyd cannot be reached or refuses.
    pub(crate) async fn get(&self, keys: &KeysClient) -> Result<KeyHandle, DataKeyError> {
        let asked = match self {
            Self::Device(key) => key.get(keys).await,
            Self::Module(all, base, data) => match all.kept(*base, data) {
                Some(handle) => Ok(handle),
                None => all
                    .derive(keys, *base, data)
                    .await
                    .inspect(|handle| all.keep(*base, data, handle)),
            },
        };
        asked.map_err(|source| DataKeyError {
            // A ciphertext can name a key that there never was: that is its sender's. Of
            // a key that was lost keyd tells itself.
            of_caller: says_absent(&source, Recipient::Keys),
            derived_from_device: matches!(self, Self::Module(_, Base::DeviceData, _)),
            source,
        })
    }

    /// A new handle in place of `old`, which keyd objected to.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) async fn renew(
        &self,
        keys: &KeysClient,
        old: &KeyHandle,
    ) -> Result<KeyHandle, DataKeyError> {
        match self {
            Self::Device(key) => key.forget(old).await,
            Self::Module(all, base, data) => all.forget(*base, data, old).await,
        }
        self.get(keys).await
    }
}

/// The trust bundle, asked for again after a few seconds in the background: while the
/// certificates API is slow or away, the last one is served. A bundle that lacks the
/// issuer of a new certificate is asked for again at once.
#[derive(Debug, Default)]
pub(crate) struct TrustBundleCache {
    kept: RwLock<Option<(Instant, Arc<String>)>>,
    refreshing: AtomicBool,
    /// Number of times that the bundle was found to lack an issuer.
    lacks: AtomicU64,
    /// The number that the bundle was asked for again for.
    asked: AtomicU64,
}

/// Reason for which there is no trust bundle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    /// The certificates service has none, or one without a certificate.
    #[error("certificate {:?} not found", TrustBundleCache::CERT_ID)]
    Absent,
    /// The certificates service was never reached, or refuses.
    #[error(transparent)]
    Service(ClientError),
}

impl TrustBundleCache {
    const FRESH: Duration = Duration::from_secs(5);
    const CERT_ID: &str = "aziot-edged-trust-bundle";

    /// The bundle.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub(crate) async fn get(
        self: &Arc<Self>,
        certificates: &CertificatesClient,
    ) -> Result<Arc<String>, BundleError> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((since, bundle)) = kept else {
            return match certificates.load(Self::CERT_ID).await {
                Ok(pem) => match written_anew("trust bundle", &pem) {
                    Some(pem) => Ok(self.keep(pem)),
                    None => Err(BundleError::Absent),
                },
                Err(error) if says_absent(&error, Recipient::Certificates) => {
                    Err(BundleError::Absent)
                }
                Err(error) => Err(BundleError::Service(error)),
            };
        };
        let lacks = self.lacks.load(Ordering::Acquire);
        if lacks > self.asked.load(Ordering::Acquire) {
            let loaded = certificates.load(Self::CERT_ID).await;
            self.asked.fetch_max(lacks, Ordering::AcqRel);
            let loaded = loaded.ok().and_then(|pem| written_anew("trust bundle", &pem));
            return Ok(loaded.map_or(bundle, |pem| self.keep(pem)));
        }
        if since.elapsed() > Self::FRESH && !self.refreshing.swap(true, Ordering::AcqRel) {
            let (this, certificates) = (Arc::clone(self), certificates.clone());
            tokio::spawn(async move {
                match certificates.load(Self::CERT_ID).await {
                    // One without a certificate would leave modules without any: the last
                    // one stays.
                    Ok(pem) => drop(written_anew("trust bundle", &pem).map(|pem| this.keep(pem))),
                    Err(error) => tracing::debug!(%error, "trust bundle not refreshed"),
                }
                this.refreshing.store(false, Ordering::Release);
            });
        }
        Ok(bundle)
    }

    /// Takes note of a chain on its way to a module, which will look for the issuer in
    /// the bundle.
    pub(crate) fn note(&self, chain: &str) {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_some_and(|(_, bundle)| !has_issuer_of(bundle, chain)) {
            self.lacks.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Forgets the bundle: what is in it was replaced, and the old one is of no use to
    /// anybody.
    pub(crate) fn forget(&self) {
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn keep(&self, pem: String) -> Arc<String> {
        let bundle = Arc::new(pem);
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), Arc::clone(&bundle)));
        bundle
    }
}

/// Returns true if the second certificate of a chain is in the bundle, or the chain has
/// none. Both are strict PEM.
fn has_issuer_of(bundle: &str, chain: &str) -> bool {
    let issuer = chain.split_inclusive("-----END CERTIFICATE-----").nth(1).map(str::trim);
    issuer.is_none_or(|issuer| bundle.contains(issuer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_behind_if_it_lacks_the_issuer_of_a_chain() {
        let pem = |name: &str| {
            format!("-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n")
        };
        let (leaf, ca, root) = (pem("leaf"), pem("ca"), pem("root"));
        let chain = format!("{leaf}{ca}{root}");
        assert!(has_issuer_of(&format!("{root}{ca}"), &chain));
        assert!(!has_issuer_of(&root, &chain), "clients may not send the CA");
        assert!(!has_issuer_of(&leaf, &chain));
        assert!(has_issuer_of(&root, &leaf), "a chain without an issuer names none");

        let cache = TrustBundleCache::default();
        cache.note(&chain);
        assert_eq!(cache.lacks.load(Ordering::Acquire), 0, "no bundle is kept");
        cache.keep(root.clone());
        cache.note(&chain);
        assert_eq!(cache.lacks.load(Ordering::Acquire), 1);
        cache.keep(format!("{ca}{root}"));
        cache.note(&chain);
        assert_eq!(cache.lacks.load(Ordering::Acquire), 1);
    }
}
