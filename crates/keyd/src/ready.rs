//! The order in which keyd starts: what must be open before something is given up, and
//! what must be given up before something is opened.

use std::sync::Arc;

use edgekeep_api::operations::SandboxReport;
use edgekeep_core::key_use::Policy;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::KeydSettings;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::operations::{self, Operations};
use edgekeep_daemon::server::{Limits, serve};
use edgekeep_daemon::{listen, systemd};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::{Keyd, Prepared, StartError, metrics, routes, tpmd};

/// keyd with its sockets, in a process that has given up what serving does not need.
pub struct Ready {
    keyd: Keyd,
    listener: UnixListener,
    tpm_listener: Option<UnixListener>,
    operations: (Option<UnixListener>, Arc<Operations>),
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
        operations.1.confined(entered.seal());
        Ok(Self { keyd, listener, tpm_listener, operations })
    }

    /// What was given up.
    #[must_use]
    pub fn sandbox(&self) -> SandboxReport {
        self.operations.1.sandbox()
    }

    /// Serves until `stop` turns true.
    pub async fn serve(self, settings: &KeydSettings, stop: watch::Receiver<bool>) {
        let limits = |connections: Option<u32>| {
            connections.map_or_else(Limits::default, |connections_per_uid| Limits {
                connections_per_uid,
                ..Limits::default()
            })
        };
        let tpmd = self.keyd.tpmd();
        let operations = operations::run(self.operations.0, self.operations.1, stop.clone());
        let router = Arc::new(routes::router(Arc::new(self.keyd)));
        let keys_api =
            serve(self.listener, router, limits(settings.connections_per_uid), stop.clone());
        let tpm_limits = limits(settings.tpm.as_ref().and_then(|tpm| tpm.connections_per_uid));
        let tpm_api = async move {
            match (self.tpm_listener, tpmd) {
                (None, _) => {}
                (Some(listener), Some(tpmd)) => {
                    tracing::info!("serving the TPM API");
                    serve(listener, Arc::new(tpmd::router(tpmd)), tpm_limits, stop).await;
                }
                (Some(listener), None) => {
                    serve(listener, Arc::new(tpmd::router_without_tpm()), tpm_limits, stop).await;
                }
            }
        };
        tokio::join!(keys_api, tpm_api, operations);
    }
}
