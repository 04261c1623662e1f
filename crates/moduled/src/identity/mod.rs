//! Identities, keys and certificates of modules, which the other daemons hold.

pub(crate) mod bundle;
pub(crate) mod edge_ca;
pub(crate) mod identities;
pub(crate) mod keys;
pub(crate) mod layout;
pub(crate) mod remote_key;

use std::sync::Arc;

use edgekeep_api::certd::CertificatesClient;
use edgekeep_api::keyd::KeysClient;
use edgekeep_core::layout::Root;
use edgekeep_core::settings::ModuledSettings;
use edgekeep_daemon::board::Board;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::identity::edge_ca::keeper::EdgeCaKeeper;
use crate::identity::identities::IdentityCache;
use crate::identity::keys::{KeptHandle, ModuleDataKeys, TrustBundleCache};

/// Everything that the other daemons hold for modules, and what is kept of their answers.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) settings: Arc<ModuledSettings>,
    /// The keys service.
    pub(crate) keys: KeysClient,
    /// The certificates service.
    pub(crate) certificates: CertificatesClient,
    /// Module identities.
    pub(crate) identities: Arc<IdentityCache>,
    /// Keys of single modules' data.
    pub(crate) module_data_keys: ModuleDataKeys,
    /// The device's one key for modules' data, for what was encrypted under it.
    pub(crate) device_data_key: KeptHandle,
    /// Handle of the Edge CA's key.
    pub(crate) edge_ca_key: KeptHandle,
    /// The trust bundle.
    pub(crate) trust_bundle: Arc<TrustBundleCache>,
    /// The Edge CA certificate's end, while there is a usable one.
    pub(crate) edge_ca: watch::Sender<Option<OffsetDateTime>>,
    /// Keeps that certificate valid.
    pub(crate) edge_ca_keeper: EdgeCaKeeper,
    board: Board,
}

impl Credentials {
    /// Returns what the daemons of the device below `root` hold. Calls nobody yet.
    pub(crate) fn new(
        root: &Root,
        settings: Arc<ModuledSettings>,
        identities: Arc<IdentityCache>,
        board: Board,
    ) -> Self {
        Self {
            keys: KeysClient::new(root.keyd_socket()),
            certificates: CertificatesClient::new(root.certd_socket()),
            identities,
            module_data_keys: ModuleDataKeys::default(),
            device_data_key: KeptHandle::of_device_data_key(settings.module_encryption),
            edge_ca_key: KeptHandle::of_key_pair(settings.edge_ca.key.clone()),
            trust_bundle: Arc::default(),
            edge_ca: watch::Sender::new(None),
            edge_ca_keeper: EdgeCaKeeper::default(),
            board,
            settings,
        }
    }
}
