//! The order in which keyd starts: what must be open before something is given up, and
//! what must be given up before something is opened.

use std::sync::Arc;

use edgekeep_api::operations::SandboxReport;
use edgekeep_core::key_use::Policy;
use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use edgekeep_core::settings::KeydSettings;
use edgekeep_daemon::arguments::Synopsis;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::operations::{self, Operations};
use edgekeep_daemon::program::Program;
use edgekeep_daemon::server::{Limits, serve};
use edgekeep_daemon::{listen, systemd};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::routes::tpm;
use crate::{Keyd, Prepared, StartError, metrics, routes, slow_threads, watching};

/// keyd with its sockets, in a process that has given up what serving does not need.
pub struct Ready {
    keyd: Keyd,
    listener: UnixListener,
    tpm_listener: Option<UnixListener>,
    operations: (Option<UnixListener>, Arc<Operations>),
    limits: Limits,
    tpm_limits: Limits,
}

impl Ready {
    /// Opens everything and gives up the rest, for good, for the whole process. To be
    /// called within a runtime, while the process has one thread.
    ///
    /// # Errors
    /// If the settings are wrong, or something that keyd cannot do without cannot be
    /// opened.
    pub fn open(root: &Root, settings: &KeydSettings) -> Result<Self, StartError> {
        let prepared = Prepared::new(root, settings)?;
        systemd::prepare();
        let listener = listen::activated_or_bound("aziot-keyd.socket", &root.keyd_socket(), 0o660)?;
        let tpm_listener = match &settings.tpm {
            Some(_) => {
                Some(listen::activated_or_bound("aziot-tpmd.socket", &root.tpmd_socket(), 0o660)?)
            }
            None => listen::activated("aziot-tpmd.socket", &root.tpmd_socket())?,
        };
        let refresh = metrics::refresh(root.state_folder(Daemon::Keyd).join("audit"));
        let board = Board::new();
        let operations =
            Operations::new(Daemon::Keyd, root, metrics::FAMILIES, refresh, board.clone());
        let operations = (operations::listen(Daemon::Keyd, root), operations);
        // The sockets are there, and no thread yet: from here on only what the settings
        // name is within reach, also for a token's library and the log's thread, which
        // begin when the store is opened.
        let entered = prepared.confinement()?.enter();
        let keyd = prepared.open(Policy::new(settings), board)?;
        let report = entered.seal();
        keyd.confined(&report);
        operations.1.confined(report);
        tracing::info!(socket = %root.keyd_socket().display(), "serving the keys API");
        let limits = limits(settings.connections_per_uid);
        let tpm_limits = self::limits(settings.tpm.as_ref().and_then(|it| it.connections_per_uid));
        Ok(Self { keyd, listener, tpm_listener, operations, limits, tpm_limits })
    }

    /// Returns the report of what was given up.
    #[must_use]
    pub fn sandbox(&self) -> SandboxReport {
        self.operations.1.sandbox()
    }
}

fn limits(connections_per_uid: Option<u32>) -> Limits {
    connections_per_uid.map_or_else(Limits::default, |connections_per_uid| Limits {
        connections_per_uid,
        ..Limits::default()
    })
}

impl Program for Ready {
    const DAEMON: Daemon = Daemon::Keyd;
    const SYNOPSIS: Synopsis = Synopsis {
        name: "edgekeep-keyd",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Keeps the keys of an edge device and uses them for the other daemons.",
        usage: "[OPTIONS]",
        flags: &[],
        variables: &[(ROOT_VARIABLE, "Root folder of the device [default: /]")],
    };
    type Settings = KeydSettings;
    type Error = StartError;

    fn default_settings() -> Option<KeydSettings> {
        Some(KeydSettings::default())
    }

    /// For the disk and for key generation.
    fn waiting_threads(settings: &KeydSettings) -> usize {
        slow_threads(settings.has_hardware())
    }

    async fn open(root: Root, settings: KeydSettings) -> Result<Self, StartError> {
        Self::open(&root, &settings)
    }

    fn blames_settings(error: &StartError) -> bool {
        error.is_settings()
    }

    async fn serve(self, stop: watch::Receiver<bool>) {
        let tpmd = self.keyd.tpmd();
        let keyd = Arc::new(self.keyd);
        let watching = watching::watch(Arc::clone(&keyd), stop.clone());
        let operations = operations::run(self.operations.0, self.operations.1, stop.clone());
        let router = Arc::new(routes::router(keyd));
        let keys_api = serve(self.listener, router, self.limits, stop.clone());
        let (tpm_listener, limits) = (self.tpm_listener, self.tpm_limits);
        let tpm_api = async move {
            match (tpm_listener, tpmd) {
                (None, _) => {}
                (Some(listener), Some(tpmd)) => {
                    tracing::info!("serving the TPM API");
                    serve(listener, Arc::new(tpm::router(tpmd)), limits, stop).await;
                }
                (Some(listener), None) => {
                    serve(listener, Arc::new(tpm::router_without_tpm()), limits, stop).await;
                }
            }
        };
        tokio::join!(keys_api, tpm_api, operations, watching);
    }
}
