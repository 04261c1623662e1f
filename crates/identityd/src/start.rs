//! identityd as a daemon's program.

use edgekeep_api::keyd::KeysClient;
use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use edgekeep_core::settings::IdentitydSettings;
use edgekeep_daemon::arguments::Synopsis;
use edgekeep_daemon::measured::{self, Measured};
use edgekeep_daemon::program::Program;
use tokio::sync::watch;

use crate::{Identityd, Options, StartError};

impl Program for Identityd {
    const DAEMON: Daemon = Daemon::Identityd;
    const SYNOPSIS: Synopsis = Synopsis {
        name: "edgekeep-identityd",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Holds the identities of an edge device and its modules, and issues certificates.",
        usage: "[OPTIONS]",
        flags: &[],
        variables: &[(ROOT_VARIABLE, "Root folder of the device [default: /]")],
    };
    type Settings = IdentitydSettings;
    type Error = StartError;

    /// Without a host name there is nothing to be.
    fn default_settings() -> Option<IdentitydSettings> {
        None
    }

    /// For name resolution and for the disk.
    fn waiting_threads(_settings: &IdentitydSettings) -> usize {
        4
    }

    async fn open(root: Root, settings: IdentitydSettings) -> Result<Self, StartError> {
        // While the executable is within reach.
        let measured = Measured::take(&settings);
        let keys = KeysClient::new(root.keyd_socket());
        let identityd = Self::start_confined(Options::new(root, settings)).await?;
        let version = Self::SYNOPSIS.version;
        measured::tell(&keys, Self::DAEMON, measured, version, &identityd.board).await;
        Ok(identityd)
    }

    fn blames_settings(error: &StartError) -> bool {
        error.is_settings()
    }

    async fn serve(self, stop: watch::Receiver<bool>) {
        self.run(stop).await;
    }
}
