//! `edgekeep-identityd`: the identities of a device and of its modules, and certificates.
//!
//! Touches: its state folder, the sockets `identityd.sock` and `certd.sock`, keyd's
//! socket as a client, and the network: the provisioning service and the hub. Starts no
//! process, opens no device, and never has a private key: tokens and certificates are
//! signed by keyd. (Two exceptions that the APIs ask for: a local identity's key, which
//! is made for its caller, and the derived keys of modules while they are sent to the
//! hub.) What it does not need for that it gives up for good before it asks or answers
//! anything (`confine`, `identityd.syscalls`).
//!
//! Questions about known facts are answered from memory. The cloud is asked in the
//! background (`device`, `refresh`), by what [`edgekeep_core::provisioning`] decides, and
//! no lock is held meanwhile.
#![forbid(unsafe_code)]

mod certificates;
mod certificates_api;
mod confine;
mod device;
mod identity_api;
mod keys;
mod local_identity;
mod metrics;
mod modules;
mod operational;
mod prover;
mod refresh;
mod renewals;
mod start;
mod tpm;
mod trusted_time;

use std::collections::BTreeSet;
use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use edgekeep_api::keyd::KeysClient;
use edgekeep_api::operations::SandboxReport;
use edgekeep_api::tpmd::TpmClient;
use edgekeep_cloud::{Proxy, Registration, Transport, Trust};
use edgekeep_core::access::Access;
use edgekeep_core::grants::Grants;
use edgekeep_core::health::Code;
use edgekeep_core::id::ModuleId;
use edgekeep_core::layout::{DEVICE_FILE, Daemon, MODULES_FILE, Root};
use edgekeep_core::provisioning::{Limits, Provisioned, Source, State};
use edgekeep_core::settings::{DeviceCredential, IdentitydSettings, Provisioning};
use edgekeep_daemon::audit::Audit;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::listen::{ListenError, activated_or_bound};
use edgekeep_daemon::operations::{self, Operations};
use edgekeep_daemon::server;
use edgekeep_daemon::store::{StateFile, StoreError, private_folder, sweep_temporary};
use edgekeep_daemon::systemd;
use edgekeep_tls::ProxyError;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use certificates::{
    CertStoreError, CertificateError, ClientIdentityError, EnrolError, IssueError,
};
pub use edgekeep_core::module_refresh::Limits as RefreshLimits;
pub use keys::KeysError;

use certificates::Certificates;
use device::{Device, Provisioner};
use identity_api::IdentityApi;
use keys::DeviceKeys;
use modules::Modules;
use operational::Operational;
use prover::Prover;
use refresh::{Refresh, Refresher, Registry};
use renewals::Renewals;
use trusted_time::TrustedTime;

/// Longest time for a call to the hub that somebody waits for.
const INTERACTIVE: Duration = Duration::from_secs(20);
/// Longest time that the start waits for an identity that needs no network.
const FIRST_IDENTITY: Duration = Duration::from_secs(2);

/// Text that is no name of a host. The system finds this out only after it has asked
/// everything that looks up names.
const NO_NAME: &str = "this-part-of-a-name-is-longer-than-the-sixty-three-bytes-that-one-may-have";

/// Options with which this daemon is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Root folder of the device's files.
    pub root: Root,
    /// Settings that `config apply` wrote for this daemon.
    pub settings: IdentitydSettings,
    /// Waiting times of provisioning.
    pub provisioning: Limits,
    /// Pauses between the rounds in which the hub is asked about modules.
    pub refresh: RefreshLimits,
}

impl Options {
    /// The usual waiting times.
    #[must_use]
    pub fn new(root: Root, settings: IdentitydSettings) -> Self {
        Self { root, settings, provisioning: Limits::default(), refresh: RefreshLimits::default() }
    }
}

/// Failure of the daemon's start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The state folder or a file in it.
    #[error("the state of identityd cannot be used")]
    State(#[from] StoreError),
    /// A socket.
    #[error("identityd cannot listen")]
    Listen(#[from] ListenError),
    /// The proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// A name in the settings.
    #[error(
        "{what} in the settings is not a host name; correct it and run `edgekeep config apply`"
    )]
    Host {
        /// The setting, as the error's text names it.
        what: &'static str,
    },
}

impl StartError {
    /// Returns true if the settings or the environment are wrong, so that starting again
    /// cannot help.
    #[must_use]
    pub fn is_settings(&self) -> bool {
        matches!(self, Self::Host { .. } | Self::Proxy(_))
    }
}

/// A daemon that listens and has begun to provision.
#[derive(Debug)]
pub struct Identityd {
    identity: Arc<IdentityApi>,
    certificates: Arc<certificates_api::CertificatesApi>,
    sockets: (UnixListener, UnixListener),
    operations: (Option<UnixListener>, Arc<Operations>),
    limits: server::Limits,
    background: JoinSet<()>,
    board: Board,
}

impl Identityd {
    /// Reads the state, listens, and begins to provision in the background. The sockets
    /// accept from now on; they are answered once [`Identityd::run`] runs.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(options: Options) -> Result<Self, StartError> {
        Self::begin(options, |_, _, _| None).await
    }

    /// The same, for a process that is nothing else: it gives up what serving does not
    /// need, for good, before the network is used. To be called while the process has one
    /// thread.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_confined(options: Options) -> Result<Self, StartError> {
        Self::begin(options, |root, settings, hub| Some(give_up(root, settings, hub))).await
    }

    async fn begin(
        options: Options,
        confine: impl FnOnce(&Root, &IdentitydSettings, Option<&str>) -> Option<SandboxReport>,
    ) -> Result<Self, StartError> {
        let Options { root, settings, provisioning: limits, refresh: refresh_limits } = options;
        let folder = root.state_folder(Daemon::Identityd);
        private_folder(&folder)?;
        sweep_temporary(&folder);

        let (source, credential, registration) = source(&settings)?;
        let proxy = Proxy::from_environment(&|name| std::env::var_os(name))?;
        if settings.parent_hostname.as_deref().is_some_and(|parent| !device::is_host(parent)) {
            return Err(StartError::Host { what: "parent_hostname" });
        }
        let file = StateFile::of(&folder, DEVICE_FILE);
        let stored = stored_identity(&file)?;
        let sockets = (
            activated_or_bound("aziot-identityd.socket", &root.identityd_socket(), 0o660)?,
            activated_or_bound("aziot-certd.socket", &root.certd_socket(), 0o660)?,
        );
        let operations_socket = operations::listen(Daemon::Identityd, &root);
        let keyd = KeysClient::new(root.keyd_socket());
        let trusted_time = Arc::new(TrustedTime::open(&folder));
        let board = Board::new();
        let time = Arc::clone(&trusted_time);
        let certificates = Arc::new(Certificates::open(
            root.certificate_folder(),
            &settings,
            keyd.clone(),
            time,
            board.clone(),
        )?);
        let refresh_metrics = metrics::refresh(Arc::clone(&certificates), &settings, board.clone());
        let (device, wishes) = Device::new();
        let device = Arc::new(device);
        let renewals = Arc::new(Renewals::open(
            &folder,
            &settings,
            Arc::clone(&certificates),
            Arc::clone(&device),
            Arc::clone(&trusted_time),
            board.clone(),
        ));
        let operations = Operations::new(
            Daemon::Identityd,
            &root,
            metrics::FAMILIES,
            refresh_metrics,
            board.clone(),
        );
        // The sockets are there, and no thread yet, and nothing has been heard from
        // anybody.
        let hub = stored.as_ref().map(|stored| stored.identity.hub.as_str());
        if let Some(report) = confine(&root, &settings, hub) {
            operations.confined(report);
        }
        certificates.look();

        let keys = Arc::new(DeviceKeys::new(keyd, credential.clone()));
        let tpm = TpmClient::new(root.tpmd_socket());
        let prover = Prover::new(credential, Arc::clone(&keys), tpm, Arc::clone(&certificates));
        let is_operational = settings.provisioning.operational().is_some();
        let prover = Arc::new(prover.with_operational(is_operational));
        let trust = match settings.cloud.trusted_certs.as_slice() {
            [] => Trust::System,
            paths => Trust::Files(paths.iter().map(PathBuf::from).collect()),
        };
        let timeout = Duration::from_secs(settings.cloud.timeout_sec.max(1));
        let retries = settings.cloud.retries;
        let background_calls = Arc::new(
            Transport::new(edgekeep_cloud::Limits { timeout, retries }, trust.clone())
                .through(proxy.clone())
                .observed_by(metrics::called),
        );
        let interactive_calls = Transport::new(
            edgekeep_cloud::Limits { timeout: timeout.min(INTERACTIVE), retries },
            trust,
        );
        let interactive_calls =
            Arc::new(interactive_calls.through(proxy).observed_by(metrics::called));

        let modules = Arc::new(Modules::open(StateFile::of(&folder, MODULES_FILE)));
        let refresh = Arc::new(Refresh::new(&refresh_limits));
        let registry = |transport| Registry {
            transport,
            keys: Arc::clone(&keys),
            prover: Arc::clone(&prover),
            parent: settings.parent_hostname.clone(),
            modules: Arc::clone(&modules),
            device: Arc::clone(&device),
            refresh: Arc::clone(&refresh),
            board: board.clone(),
        };
        let audit = Arc::new(Audit::new(&folder));
        let access = Access::new(settings.principals.clone());
        let principals = module_principals(&access);
        modules.serve(principals.clone());

        let needs_no_network = stored.is_some() || matches!(source, Source::Manual { .. });
        let mut served = device.served();
        let mut background = JoinSet::new();
        let transports = vec![Arc::clone(&background_calls), Arc::clone(&interactive_calls)];
        background.spawn(trusted_time.follow(transports, board.clone()));
        for id in renewals.managed() {
            background.spawn(Arc::clone(&renewals).keep(id));
        }
        background.spawn(Arc::clone(&certificates).keep_looking_at_tokens());
        background.spawn(metrics::keep_looking(metrics::refresh(
            Arc::clone(&certificates),
            &settings,
            board.clone(),
        )));
        let provisioner = Provisioner {
            device: Arc::clone(&device),
            wishes,
            file,
            registration,
            transport: Arc::clone(&background_calls),
            keys: Arc::clone(&keys),
            prover: Arc::clone(&prover),
            certificates: certificates.changes(),
            board: board.clone(),
            last: Code::ProvisioningNotAsked,
            wrapped_key: None,
            operational: Operational::new(Arc::clone(&certificates)),
        };
        let state = State::new(source, settings.reprovisioning, limits, stored);
        let state = state.with_certificate(prover.thumbprint());
        let state = state.with_operational(prover.operational_thumbprint());
        background.spawn(provisioner.run(state));
        if needs_no_network {
            // Clients that were started together with us need not meet a device without
            // an identity.
            let _ = tokio::time::timeout(FIRST_IDENTITY, served.changed()).await;
        }
        if let Some(identity) = device.view().identity {
            modules.belong_to(&identity);
        }
        let refresher = Refresher { registry: registry(background_calls), principals };
        background.spawn(refresher.run());

        let mut socket_limits = server::Limits::default();
        if let Some(limit) = settings.connections_per_uid {
            socket_limits.connections_per_uid = limit;
        }
        let grants =
            Grants::new(settings.cert_principals.iter().map(|it| (it.uid, it.certs.clone())));
        Ok(Self {
            certificates: Arc::new(certificates_api::CertificatesApi {
                certificates: Arc::clone(&certificates),
                renewals,
                grants,
                attestors: settings
                    .cert_principals
                    .iter()
                    .filter(|it| it.attestor)
                    .map(|it| it.uid)
                    .collect(),
                audit: Arc::clone(&audit),
            }),
            identity: Arc::new(IdentityApi {
                registry: registry(interactive_calls),
                access,
                device,
                keys: Arc::clone(&keys),
                modules: Arc::clone(&modules),
                refresh: Arc::clone(&refresh),
                certificates,
                audit,
                settings,
            }),
            sockets,
            operations: (operations_socket, operations),
            limits: socket_limits,
            background,
            board,
        })
    }

    /// Returns a report of the rights that this process has given up.
    #[must_use]
    pub fn sandbox(&self) -> SandboxReport {
        self.operations.1.sandbox()
    }

    /// Answers until `stop` turns true.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let Self { identity, certificates, sockets, operations, limits, mut background, board: _ } =
            self;
        let identity = Arc::new(identity_api::router(identity));
        let certificates = Arc::new(certificates_api::router(certificates));
        tokio::join!(
            server::serve(sockets.0, identity, limits, stop.clone()),
            server::serve(sockets.1, certificates, limits, stop.clone()),
            operations::run(operations.0, operations.1, stop),
        );
        // What is under way is given up; files are replaced whole or not at all.
        background.shutdown().await;
    }
}

/// Gives up what serving does not need, for the whole process.
fn give_up(root: &Root, settings: &IdentitydSettings, hub: Option<&str>) -> SandboxReport {
    systemd::prepare();
    // The C library loads what looks names up when it is needed first, which is too late
    // then. No name server is asked: the name is longer than names can be.
    let _ = (NO_NAME, 443).to_socket_addrs();
    let around = confine::Surroundings {
        variable: &|name| std::env::var_os(name),
        real: &confine::real,
        exists: &Path::exists,
        is_root: rustix::process::geteuid().is_root(),
    };
    confine::confinement(root, settings, hub, &around).enter().seal()
}

/// The configured source, in the form that is compared with the stored one; the device's
/// proof; what to register.
fn source(
    settings: &IdentitydSettings,
) -> Result<(Source, Option<DeviceCredential>, Option<Registration>), StartError> {
    let source = Source::of(&settings.provisioning);
    match &settings.provisioning {
        Provisioning::None => Ok((source, None, None)),
        Provisioning::Manual { hub, credential, .. } => {
            if !device::is_host(hub) {
                return Err(StartError::Host { what: "the hub" });
            }
            Ok((source, Some(credential.clone()), None))
        }
        Provisioning::Dps {
            endpoint,
            scope_id,
            registration_id,
            credential,
            payload,
            operational,
        } => {
            let registration = Registration {
                endpoint: endpoint.clone(),
                scope_id: scope_id.clone(),
                // None: the common name of the certificate, when it is there.
                registration_id: registration_id.clone().unwrap_or_default(),
                payload: payload.clone(),
                api_version: operational.as_ref().map(|it| it.api_version.clone()),
                csr: None,
            };
            Ok((source, Some(credential.clone()), Some(registration)))
        }
    }
}

/// The last good identity. A damaged file has been set aside by the time this returns,
/// and the device starts anew; a file of a newer version stays and ends the start.
fn stored_identity(file: &StateFile<Provisioned>) -> Result<Option<Provisioned>, StoreError> {
    match file.load() {
        Err(error @ StoreError::Damaged { .. }) => {
            tracing::error!(%error, "the device's identity is lost; the device is provisioned anew");
            Ok(None)
        }
        other => other,
    }
}

fn module_principals(access: &Access) -> BTreeSet<ModuleId> {
    let mut modules = BTreeSet::new();
    for name in access.modules() {
        match name.parse() {
            Ok(module) => {
                modules.insert(module);
            }
            Err(error) => {
                tracing::error!(%error, "a principal's name cannot be a module's; it gets no identity");
            }
        }
    }
    modules
}
