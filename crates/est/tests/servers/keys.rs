//! A keyd in this process.

use std::sync::Arc;

use edgekeep_api::keyd::KeysClient;
use edgekeep_core::layout::Root;
use edgekeep_core::settings::{KeyPrincipal, KeydSettings};
use edgekeep_daemon::{listen, server};
use edgekeep_keyd::Keyd;
use edgekeep_tls::RemoteKey;
use tempfile::TempDir;
use tokio::sync::watch;

pub(crate) struct Keys {
    root: Root,
    _stop: watch::Sender<bool>,
    _folder: TempDir,
}

impl Keys {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// As [`Self::start`], with key pairs that are made elsewhere.
    pub(crate) fn with(pairs: &[(&str, &rcgen::KeyPair)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        std::fs::create_dir_all(root.key_import_folder()).unwrap();
        for (id, pair) in pairs {
            std::fs::write(root.key_import_folder().join(id), pair.serialize_pem()).unwrap();
        }
        let all = vec!["*".to_owned()];
        let uid = rustix::process::getuid().as_raw();
        let principal = KeyPrincipal { uid, keys: all, certificates: true, ..Default::default() };
        let settings = KeydSettings { principals: vec![principal], ..KeydSettings::default() };
        let policy = edgekeep_core::key_use::Policy::new(&settings);
        let keyd = Arc::new(Keyd::open(&root, &settings, policy).unwrap());
        let router = Arc::new(edgekeep_keyd::routes::router(keyd));
        let listener = listen::bind(&root.keyd_socket(), 0o660).unwrap();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(server::serve(listener, router, server::Limits::default(), stopped));
        Self { root, _stop: stop, _folder: folder }
    }

    pub(crate) async fn make(&self, id: &str, algorithms: &str) -> RemoteKey {
        let keys = KeysClient::new(self.root.keyd_socket());
        RemoteKey::load_or_make(keys, id, algorithms).await.unwrap()
    }
}

/// A certificate of a key in keyd, of a CA of which the test has the key.
pub(crate) fn signed_by(
    ca: &edgekeep_sim::Authority,
    name: &str,
    key: &RemoteKey,
) -> Vec<edgekeep_core::credentials::Certificate> {
    super::certificates(&ca.client_certificate_pem(name, key.public().info()).unwrap())
}
