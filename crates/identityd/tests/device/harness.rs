//! A device in a temporary folder: the real keyd, the daemon under test, and a simulated
//! cloud.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgekeep_api::certd::CertificatesClient;
use edgekeep_api::client::{Client, ClientError};
use edgekeep_api::identityd::{AziotIdentity, Identity, IdentityClient};
use edgekeep_api::keyd::KeysClient;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::provisioning::Limits;
use edgekeep_core::settings::{
    CloudSettings, DeviceCredential, IdentitydSettings, KeyPrincipal, KeydSettings, Provisioning,
    ReprovisioningMode,
};
use edgekeep_daemon::{listen, server};
use edgekeep_identityd::{Identityd, Options, RefreshLimits};
use edgekeep_keyd::Keyd;
use edgekeep_sim::token::Key;
use edgekeep_sim::{Enrolment, PresetDevice, Simulator, SimulatorOptions};
use http::{Method, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Longest time that anything in these tests may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// The key of the device and of its registration.
pub(crate) const DEVICE_KEY: [u8; 32] = [42; 32];

/// A part that runs until it is stopped.
struct Part {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Part {
    async fn end(self) {
        let _ = self.stop.send(true);
        self.task.await.unwrap();
    }
}

pub(crate) struct Device {
    pub(crate) settings: IdentitydSettings,
    pub(crate) root: Root,
    pub(crate) folder: TempDir,
    /// Lifetime of keyd's handles in seconds, from keyd's next start on; `None`: keyd's
    /// default.
    pub(crate) handle_lifetime_sec: Option<u64>,
    /// Files of keys that keyd uses where they are, from its next start on.
    pub(crate) preloaded_keys: Vec<(&'static str, PathBuf)>,
    keyd: Option<Part>,
    identityd: Option<Part>,
}

pub(crate) fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// A cloud with the device `press-05`, and a registration `press-04`.
pub(crate) async fn cloud() -> Simulator {
    let options = SimulatorOptions {
        enrolments: vec![Enrolment::new("press-04", Key::new(DEVICE_KEY.to_vec()).unwrap())],
        devices: vec![PresetDevice::new("press-05", Key::new(DEVICE_KEY.to_vec()).unwrap())],
        ..SimulatorOptions::default()
    };
    Simulator::start(options).await.unwrap()
}

fn key() -> DeviceCredential {
    DeviceCredential::SymmetricKey { key: "device-id".parse().unwrap() }
}

pub(crate) fn dps(sim: &Simulator) -> Provisioning {
    Provisioning::Dps {
        endpoint: sim.dps_endpoint(),
        scope_id: "0ne00000001".to_owned(),
        registration_id: Some("press-04".to_owned()),
        credential: key(),
        payload: None,
        operational: None,
    }
}

pub(crate) fn manual(sim: &Simulator) -> Provisioning {
    Provisioning::Manual {
        hub: sim.hub_host(),
        device_id: "press-05".parse().unwrap(),
        credential: key(),
    }
}

impl Device {
    /// A device with keyd running and identityd not started yet.
    pub(crate) async fn new(sim: &Simulator, provisioning: Provisioning) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        std::fs::create_dir_all(root.key_import_folder()).unwrap();
        // A key pair would have the same id.
        let by_certificate = matches!(
            &provisioning,
            Provisioning::Manual { credential: DeviceCredential::X509 { .. }, .. }
                | Provisioning::Dps { credential: DeviceCredential::X509 { .. }, .. }
        );
        if !by_certificate {
            std::fs::write(root.key_import_folder().join("device-id"), DEVICE_KEY).unwrap();
        }
        let ca = folder.path().join("cloud-ca.pem");
        std::fs::write(&ca, sim.ca_pem()).unwrap();
        let settings = IdentitydSettings {
            hostname: "press".to_owned(),
            parent_hostname: None,
            provisioning,
            reprovisioning: ReprovisioningMode::Dynamic,
            cloud: CloudSettings {
                timeout_sec: 10,
                retries: 0,
                trusted_certs: vec![ca.display().to_string()],
            },
            principals: Vec::new(),
            localid_domain: None,
            cert_principals: Vec::new(),
            cert_issuance: [].into(),
            local_ca: None,
            est: None,
            preloaded_certs: [].into(),
            connections_per_uid: None,
            sandbox: false,
        };
        // Whoever runs the tests is the device's daemon, root or not.
        let mut device = Self {
            settings,
            root,
            folder,
            handle_lifetime_sec: None,
            preloaded_keys: Vec::new(),
            keyd: None,
            identityd: None,
        };
        device.settings.principals.push(edgekeep_core::settings::IdentityPrincipal {
            uid: uid(),
            name: "edge".to_owned(),
            kinds: Vec::new(),
        });
        device.settings.cert_principals.push(edgekeep_core::settings::CertPrincipal {
            uid: uid(),
            certs: vec!["*".to_owned()],
            attestor: false,
        });
        device.start_keyd().await;
        device
    }

    /// A device with both daemons running.
    pub(crate) async fn started(sim: &Simulator, provisioning: Provisioning) -> Self {
        let mut device = Self::new(sim, provisioning).await;
        device.start().await;
        device
    }

    pub(crate) async fn start_keyd(&mut self) {
        let all = || vec!["*".to_owned()];
        let daemon = KeyPrincipal {
            uid: uid(),
            keys: all(),
            export: all(),
            certificates: true,
            attestor: true,
            ..KeyPrincipal::default()
        };
        let uri = |path: &PathBuf| format!("file://{}", path.display()).into();
        let preloaded =
            self.preloaded_keys.iter().map(|(id, path)| (id.parse().unwrap(), uri(path)));
        let settings = KeydSettings {
            principals: vec![daemon],
            auditors: vec![uid()],
            preloaded_keys: preloaded.collect(),
            handle_lifetime_sec: self.handle_lifetime_sec,
            ..KeydSettings::default()
        };
        let keyd =
            Keyd::open(&self.root, &settings, edgekeep_core::key_use::Policy::new(&settings))
                .unwrap();
        let router = Arc::new(edgekeep_keyd::routes::router(Arc::new(keyd)));
        let listener = listen::bind(&self.root.keyd_socket(), 0o660).unwrap();
        let (stop, stopped) = watch::channel(false);
        let task =
            tokio::spawn(server::serve(listener, router, server::Limits::default(), stopped));
        self.keyd = Some(Part { stop, task });
    }

    pub(crate) async fn start(&mut self) {
        let mut options = Options::new(self.root.clone(), self.settings.clone());
        // The rhythm of a device, a hundred times as fast.
        options.provisioning = Limits {
            poll_interval: Duration::from_millis(50),
            first_pause: Duration::from_millis(100),
            longest_pause_unreachable: Duration::from_millis(500),
            longest_pause_refused: Duration::from_millis(500),
            refusal_gap: Duration::from_millis(10),
            ..Limits::default()
        };
        options.refresh = RefreshLimits {
            least_gap: Duration::from_millis(50),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_millis(500),
            ..RefreshLimits::default()
        };
        let daemon = Identityd::start(options).await.unwrap();
        let (stop, stopped) = watch::channel(false);
        self.identityd = Some(Part { stop, task: tokio::spawn(daemon.run(stopped)) });
    }

    pub(crate) async fn stop(&mut self) {
        self.identityd.take().unwrap().end().await;
    }

    pub(crate) async fn stop_keyd(&mut self) {
        self.keyd.take().unwrap().end().await;
    }

    pub(crate) async fn restart_keyd(&mut self) {
        self.stop_keyd().await;
        self.start_keyd().await;
    }

    /// Gives keyd a key pair of which the test has a copy.
    pub(crate) async fn import(&mut self, id: &str, pair: &rcgen::KeyPair) {
        std::fs::write(self.root.key_import_folder().join(id), pair.serialize_pem()).unwrap();
        self.restart_keyd().await;
    }

    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    /// Ends the daemon as a kill would: at whatever it is doing.
    pub(crate) async fn kill(&mut self) {
        let Part { task, stop: _stop } = self.identityd.take().unwrap();
        task.abort();
        let _ = task.await;
    }

    pub(crate) fn identities(&self) -> IdentityClient {
        IdentityClient::new(self.root.identityd_socket())
    }

    pub(crate) fn certificates(&self) -> CertificatesClient {
        CertificatesClient::new(self.root.certd_socket())
    }

    pub(crate) fn keys(&self) -> KeysClient {
        KeysClient::new(self.root.keyd_socket())
    }

    pub(crate) fn state_file(&self, name: &str) -> PathBuf {
        self.root.state_folder(Daemon::Identityd).join(name)
    }

    /// Sends anything to the identity API.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, (StatusCode, String)> {
        send(&Client::new(self.root.identityd_socket()), method, path, body).await
    }

    /// Sends anything to the certificates API.
    pub(crate) async fn ask_certificates(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, (StatusCode, String)> {
        send(&Client::new(self.root.certd_socket()), method, path, body).await
    }

    /// Asks again and again until the device's identity is as `wanted`.
    pub(crate) async fn until_device(
        &self,
        wanted: impl Fn(&AziotIdentity) -> bool,
    ) -> AziotIdentity {
        let start = Instant::now();
        let client = self.identities();
        loop {
            let answer = client.device().await;
            if let Ok(Identity::Aziot(identity)) = &answer
                && wanted(identity)
            {
                return identity.clone();
            }
            assert!(start.elapsed() < DEADLINE, "the device's identity is still {answer:?}");
            tokio::task::yield_now().await;
        }
    }
}

async fn send(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<Value, (StatusCode, String)> {
    match client.call::<Value, Value>(method, path, body.as_ref()).await {
        Ok(value) => Ok(value),
        Err(ClientError::Status { status, message, .. }) => Err((status, message)),
        // 204 has no body.
        Err(ClientError::Answer { what, .. }) if what.contains("EOF") => Ok(Value::Null),
        Err(error) => panic!("{error:?}"),
    }
}

/// The hub identity in an answer.
pub(crate) fn aziot(identity: Identity) -> AziotIdentity {
    match identity {
        Identity::Aziot(identity) => identity,
        Identity::Local(identity) => panic!("a local identity: {identity:?}"),
    }
}
