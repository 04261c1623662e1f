//! Places of all files under one root folder. Pure path arithmetic: nothing is opened
//! here.
//!
//! With the root `/` these are the places that existing clients have built in; with any
//! other root a whole device lives in one folder, so that many run side by side.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of the environment variable that moves a whole device into a folder.
pub const ROOT_VARIABLE: &str = "EDGEKEEP_ROOT";

/// The name and form of a state file that a command makes for a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateForm {
    /// File name in the daemon's state folder.
    pub file: &'static str,
    /// Kind of the content, which stands in the file.
    pub kind: &'static str,
    /// Version of the content's form.
    pub version: u32,
}

/// identityd's file of the device's identity.
pub const DEVICE_FILE: StateForm = StateForm { file: "device.json", kind: "device", version: 1 };
/// identityd's file of the device's modules.
pub const MODULES_FILE: StateForm = StateForm { file: "modules.json", kind: "modules", version: 1 };
/// moduled's file of the registrations.
pub const REGISTRATIONS_FILE: StateForm =
    StateForm { file: "registrations.json", kind: "registrations", version: 1 };

/// The three daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Daemon {
    /// Holds keys and hardware.
    Keyd,
    /// Holds the network.
    Identityd,
    /// Holds containers and host modules.
    Moduled,
}

impl Daemon {
    /// All of them, in the order in which they start.
    pub const ALL: [Self; 3] = [Self::Keyd, Self::Identityd, Self::Moduled];

    /// Its short name, as in `edgekeep-<name>`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keyd => "keyd",
            Self::Identityd => "identityd",
            Self::Moduled => "moduled",
        }
    }
}

/// The root folder of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self(PathBuf::from("/"))
    }
}

impl Root {
    /// A device in `folder`. The path should be absolute: it is handed to other
    /// processes.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// The value of [`ROOT_VARIABLE`] as a root; unset or empty is `/`.
    #[must_use]
    pub fn from_variable(value: Option<std::ffi::OsString>) -> Self {
        value.filter(|value| !value.is_empty()).map_or_else(Self::default, Self::new)
    }

    /// The root folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The operator's one configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.0.join("etc/edgekeep/config.toml")
    }

    /// Returns the path of the settings that `config apply` makes for one daemon.
    #[must_use]
    pub fn settings_file(&self, daemon: Daemon) -> PathBuf {
        self.0.join(format!("etc/edgekeep/{}.json", daemon.name()))
    }

    /// One daemon's state folder, which no other daemon reads.
    #[must_use]
    pub fn state_folder(&self, daemon: Daemon) -> PathBuf {
        self.0.join("var/lib/edgekeep").join(daemon.name())
    }

    /// Folder of keys that `config apply` found in the configuration, until keyd has
    /// taken them into its store.
    #[must_use]
    pub fn key_import_folder(&self) -> PathBuf {
        self.state_folder(Daemon::Keyd).join("import")
    }

    /// Folder of the per-module workload sockets, `<module>.sock`.
    #[must_use]
    pub fn module_socket_folder(&self) -> PathBuf {
        self.state_folder(Daemon::Moduled).join("mnt")
    }

    /// Folder of the certificates that identityd has issued or was given, one file each.
    #[must_use]
    pub fn certificate_folder(&self) -> PathBuf {
        self.state_folder(Daemon::Identityd).join("certs")
    }

    /// Folder in which the compatible module runtime has its modules' sockets. Agents
    /// that it made go on naming this folder.
    #[must_use]
    pub fn former_socket_folder(&self) -> PathBuf {
        self.0.join("var/lib/aziot/edged/mnt")
    }

    /// keyd's keys API.
    #[must_use]
    pub fn keyd_socket(&self) -> PathBuf {
        self.0.join("run/aziot/keyd.sock")
    }

    /// keyd's TPM API.
    #[must_use]
    pub fn tpmd_socket(&self) -> PathBuf {
        self.0.join("run/aziot/tpmd.sock")
    }

    /// identityd's identity API.
    #[must_use]
    pub fn identityd_socket(&self) -> PathBuf {
        self.0.join("run/aziot/identityd.sock")
    }

    /// identityd's certificates API.
    #[must_use]
    pub fn certd_socket(&self) -> PathBuf {
        self.0.join("run/aziot/certd.sock")
    }

    /// A daemon's metrics, and its log's level.
    #[must_use]
    pub fn metrics_socket(&self, daemon: Daemon) -> PathBuf {
        self.0.join(format!("run/edgekeep/{}.metrics.sock", daemon.name()))
    }

    /// moduled's management API.
    #[must_use]
    pub fn management_socket(&self) -> PathBuf {
        self.0.join("run/iotedge/mgmt.sock")
    }

    /// moduled's shared workload socket of earlier versions.
    #[must_use]
    pub fn legacy_workload_socket(&self) -> PathBuf {
        self.0.join("run/iotedge/workload.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_the_default_root_sockets_are_where_existing_clients_look() {
        let root = Root::from_variable(None);
        assert_eq!(root.keyd_socket(), Path::new("/run/aziot/keyd.sock"));
        assert_eq!(root.management_socket(), Path::new("/run/iotedge/mgmt.sock"));
    }

    #[test]
    fn with_another_root_every_path_lies_in_it() {
        let root = Root::from_variable(Some("/tmp/device".into()));
        let mut paths =
            vec![root.config_file(), root.key_import_folder(), root.module_socket_folder()];
        paths.extend([
            root.keyd_socket(),
            root.tpmd_socket(),
            root.identityd_socket(),
            root.certd_socket(),
        ]);
        paths.extend([root.management_socket(), root.legacy_workload_socket()]);
        for daemon in Daemon::ALL {
            paths.extend([
                root.settings_file(daemon),
                root.state_folder(daemon),
                root.metrics_socket(daemon),
            ]);
        }
        assert!(paths.iter().all(|path| path.starts_with("/tmp/device")), "{paths:?}");
    }
}
