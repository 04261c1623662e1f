//! The keys behind identities. They stay in keyd; here are handles to them, remembered
//! for a while.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::{KeyHandle, KeysClient, SignMechanism};
use edgekeep_api::{Recipient, is_worth_a_fresh_handle};
use edgekeep_base::lock::lock;
use edgekeep_cloud::{ModuleKeys, Signer, SignerError};
use edgekeep_core::assurance::Level;
use edgekeep_core::id::{GenerationId, KeyId, ModuleId};
use edgekeep_core::names::{IDENTITY_MASTER_KEY, OPERATIONAL};
use edgekeep_core::settings::DeviceCredential;
use zeroize::Zeroizing;

/// The key that module keys are derived from; the name is what other implementations use
/// (wire facts 3.2).
const MASTER_KEY: &str = IDENTITY_MASTER_KEY.as_str();
/// Time for which a handle is used here before keyd is asked again. If keyd has stopped
/// accepting a handle meanwhile, its first use shows this, and another handle is asked
/// for.
const HANDLE_AGE: Duration = Duration::from_secs(600);
/// Most handles remembered: several times the modules of a device.
const HANDLES: usize = 256;

/// Longest time that background work waits for a keyd that is being started at the same
/// time, and time between two tries.
const KEYD_START: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(100));

/// Longest time that an answer waits for the device's assurance.
const ASSURANCE_PATIENCE: Duration = Duration::from_secs(1);

/// Failure to use a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// keyd did not do it.
    #[error("key \"{key}\" cannot be used; is keyd running, and may this user use the key?")]
    Keyd {
        /// Name of the key.
        key: String,
        /// Error of the call to keyd.
        #[source]
        source: ClientError,
    },
    /// The device has no key, because it has no identity at a hub.
    #[error("no device key is configured")]
    NotConfigured,
}

/// The key that a handle stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Name {
    Device,
    Operational,
    Master,
    Module(ModuleId, GenerationId),
}

/// The device's key and the keys derived for its modules.
#[derive(Debug)]
pub(crate) struct DeviceKeys {
    keyd: KeysClient,
    device: Option<DeviceCredential>,
    handles: Mutex<HashMap<Name, (KeyHandle, Instant)>>,
}

impl DeviceKeys {
    pub(crate) fn new(keyd: KeysClient, device: Option<DeviceCredential>) -> Self {
        Self { keyd, device, handles: Mutex::new(HashMap::new()) }
    }

    /// Waits until somebody listens at keyd's socket, for a while. For work in the
    /// background only: daemons that are started together need no failed attempt and no
    /// pause after it.
    pub(crate) async fn wait_for_keyd(&self) {
        let (patience, interval) = KEYD_START;
        let start = Instant::now();
        while let Err(KeysError::Keyd { source: ClientError::Connect { .. }, .. }) =
            self.own_device().await
        {
            if start.elapsed() > patience {
                return;
            }
            tokio::time::sleep(interval).await;
        }
    }

    /// The device's assurance, as keyd tells it. `None` if keyd does not tell in time, or
    /// is of an earlier version: then nothing is claimed.
    pub(crate) async fn assurance(&self) -> Option<Level> {
        let asked = tokio::time::timeout(ASSURANCE_PATIENCE, self.keyd.assurance()).await;
        asked.ok()?.ok().map(|assurance| assurance.level)
    }

    /// A handle to the device's key, to be handed out.
    pub(crate) async fn device(&self) -> Result<KeyHandle, KeysError> {
        self.handed_out(Name::Device, self.load_device()).await
    }

    /// A handle to the key of the certificate that the provisioning service issued, to be
    /// handed out.
    pub(crate) async fn operational(&self) -> Result<KeyHandle, KeysError> {
        let key = OPERATIONAL.as_str();
        let load =
            async { self.keyd.load_key_pair(key).await.map_err(|source| fault(key, source)) };
        self.handed_out(Name::Operational, load).await
    }

    /// A handle to a module's primary key, to be handed out.
    pub(crate) async fn module(
        &self,
        module: &ModuleId,
        generation: &GenerationId,
    ) -> Result<KeyHandle, KeysError> {
        let name = Name::Module(module.clone(), generation.clone());
        self.handed_out(name, self.derive(module, generation, "primary")).await
    }

    /// A handle that keyd makes now. Its caller may come because the last one was
    /// refused, and nothing here would learn of that: so one that was remembered is
    /// handed out only while keyd cannot say anything.
    async fn handed_out(
        &self,
        name: Name,
        fresh: impl Future<Output = Result<KeyHandle, KeysError>>,
    ) -> Result<KeyHandle, KeysError> {
        match fresh.await {
            Ok(handle) => {
                self.remember(name, &handle);
                Ok(handle)
            }
            Err(error @ KeysError::Keyd { source: ClientError::Status { .. }, .. }) => Err(error),
            Err(error) => self.remembered(&name).ok_or(error),
        }
    }

    /// A handle to the device's key, to be used here.
    async fn own_device(&self) -> Result<KeyHandle, KeysError> {
        if let Some(handle) = self.remembered(&Name::Device) {
            return Ok(handle);
        }
        let handle = self.load_device().await?;
        self.remember(Name::Device, &handle);
        Ok(handle)
    }

    async fn load_device(&self) -> Result<KeyHandle, KeysError> {
        // The TPM's key is no key of the keys API. The answer shows that keyd is there.
        if matches!(self.device, Some(DeviceCredential::Tpm)) {
            return self.master().await;
        }
        let key = self.device_key().ok_or(KeysError::NotConfigured)?.as_str();
        let loaded = match &self.device {
            Some(DeviceCredential::X509 { .. }) => self.keyd.load_key_pair(key).await,
            _ => self.keyd.load_key(key).await,
        };
        loaded.map_err(|source| fault(key, source))
    }

    fn device_key(&self) -> Option<&KeyId> {
        match self.device.as_ref()? {
            DeviceCredential::SymmetricKey { key } | DeviceCredential::X509 { key, .. } => {
                Some(key)
            }
            DeviceCredential::Tpm => None,
        }
    }

    /// The bytes of both keys of a module, as the hub is told them.
    pub(crate) async fn export(
        &self,
        module: &ModuleId,
        generation: &GenerationId,
    ) -> Result<ModuleKeys, KeysError> {
        let export = async |which| {
            let handle = self.derive(module, generation, which).await?;
            let bytes = self
                .keyd
                .export_derived_key(&handle)
                .await
                .map_err(|source| fault(MASTER_KEY, source))?;
            Ok::<_, KeysError>(Zeroizing::new(bytes))
        };
        let (primary, secondary) = (export("primary").await?, export("secondary").await?);
        Ok(ModuleKeys::new(&primary, &secondary))
    }

    async fn derive(
        &self,
        module: &ModuleId,
        generation: &GenerationId,
        which: &str,
    ) -> Result<KeyHandle, KeysError> {
        let data = format!("{module}:{generation}:{which}");
        let master = self.master().await?;
        let derived = match self.keyd.derive_key(&master, data.as_bytes()).await {
            Err(error) if is_worth_a_fresh_handle(&error, Recipient::Keys) => {
                self.forget();
                self.keyd.derive_key(&self.master().await?, data.as_bytes()).await
            }
            other => other,
        };
        derived.map_err(|source| fault(MASTER_KEY, source))
    }

    async fn master(&self) -> Result<KeyHandle, KeysError> {
        if let Some(handle) = self.remembered(&Name::Master) {
            return Ok(handle);
        }
        let handle = self
            .keyd
            .create_key(MASTER_KEY, "derive")
            .await
            .map_err(|source| fault(MASTER_KEY, source))?;
        self.remember(Name::Master, &handle);
        Ok(handle)
    }

    async fn sign_with_device_key(&self, message: Vec<u8>) -> Result<Vec<u8>, KeysError> {
        let mechanism = SignMechanism::HmacSha256 { message: message.into() };
        let signed = match self.keyd.sign(&self.own_device().await?, mechanism.clone()).await {
            Err(error) if is_worth_a_fresh_handle(&error, Recipient::Keys) => {
                self.forget();
                self.keyd.sign(&self.own_device().await?, mechanism).await
            }
            other => other,
        };
        signed.map_err(|source| fault(self.device_key().map_or("", KeyId::as_str), source))
    }

    /// Forgets all handles: one that keyd does not accept any more is a sign that it
    /// accepts none of them.
    pub(crate) fn forget(&self) {
        self.handles().clear();
    }

    fn remembered(&self, name: &Name) -> Option<KeyHandle> {
        let handles = self.handles();
        let (handle, since) = handles.get(name)?;
        (since.elapsed() < HANDLE_AGE).then(|| handle.clone())
    }

    fn remember(&self, name: Name, handle: &KeyHandle) {
        let mut handles = self.handles();
        if handles.len() >= HANDLES {
            handles.clear();
        }
        handles.insert(name, (handle.clone(), Instant::now()));
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<Name, (KeyHandle, Instant)>> {
        lock(&self.handles)
    }
}

impl Signer for DeviceKeys {
    async fn sign(&self, data: Vec<u8>) -> Result<Vec<u8>, SignerError> {
        self.sign_with_device_key(data).await.map_err(|error| SignerError(Box::new(error)))
    }
}

fn fault(key: &str, source: ClientError) -> KeysError {
    KeysError::Keyd { key: key.to_owned(), source }
}
