//! Settings of the agent, as its environment has them (wire facts 2.10).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edgekeep_daemon::store::sha256;
use percent_encoding::percent_decode_str;

/// URI of the workload socket inside modules' containers, if the place of the agent's own
/// socket is of no use there.
const USUAL_WORKLOAD_URI: &str = "unix:///var/run/iotedge/workload.sock";

const DEFAULT_PERIOD: Duration = Duration::from_secs(5);

/// Failure to take the settings from the environment.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// A variable is not set or blank.
    #[error("{name} is not set; it comes from the daemon that starts this module")]
    Missing {
        /// The variable.
        name: &'static str,
    },
    /// No manifest is named.
    #[error(
        "no manifest: set EDGEKEEP_MANIFEST (or LocalConfigPath) to the path of a deployment manifest"
    )]
    NoManifest,
    /// A variable is no `unix://` URI with an absolute path.
    #[error("{name} must be like unix:///path, and is not")]
    NotUnix {
        /// The variable.
        name: &'static str,
    },
    /// The period is not a number of seconds.
    #[error("EDGEKEEP_AGENT_PERIOD must be a whole number of seconds from 1 to 3600")]
    Period,
}

/// All that the agent is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Socket of the management API.
    pub management_socket: PathBuf,
    /// The manifest.
    pub manifest: PathBuf,
    /// Folder of the agent's own state.
    pub state_folder: PathBuf,
    /// Pause between two rounds.
    pub period: Duration,
    /// Facts about the device that modules are told.
    pub device: Device,
}

/// Facts about the device that modules are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Id at the hub.
    pub device_id: String,
    /// Host name of the hub.
    pub hub: String,
    /// The device's name in its network.
    pub hostname: String,
    /// The parent device, in a nested installation.
    pub parent: Option<String>,
    /// URI at which a container finds its workload socket.
    pub workload_uri: String,
    /// The same as a path.
    pub workload_path: PathBuf,
    /// Folder of the per-module workload sockets on the host.
    pub module_sockets: PathBuf,
    /// Network that containers join.
    pub network: Option<String>,
    /// Version of the workload API that modules are told.
    pub api_version: String,
    /// Scheme by which modules authenticate to the hub.
    pub auth_scheme: String,
    /// Given to modules that do not set it.
    pub log_level: Option<String>,
    /// Given to modules that do not set it.
    pub upstream_protocol: Option<String>,
}

impl Settings {
    /// Reads settings from environment variables, whose names ignore case.
    ///
    /// # Errors
    /// If something needed is missing or does not fit.
    pub fn from_variables(
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, SettingsError> {
        let variables: BTreeMap<String, String> =
            variables.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        let optional = |name: &str| {
            let value = variables.get(&name.to_ascii_lowercase()).map(|value| value.trim());
            value.filter(|value| !value.is_empty()).map(str::to_owned)
        };
        let required = |name| optional(name).ok_or(SettingsError::Missing { name });
        let path = |name| unix_path(&required(name)?).ok_or(SettingsError::NotUnix { name });

        let module_sockets = path("IOTEDGE_WORKLOADLISTEN_MNTURI")?;
        let mut workload_uri = required("IOTEDGE_WORKLOADURI")?;
        let mut workload_path = path("IOTEDGE_WORKLOADURI")?;
        if workload_path.starts_with(&module_sockets) {
            // The agent runs on the host and was given its own socket. In a container the
            // usual place is free.
            USUAL_WORKLOAD_URI.clone_into(&mut workload_uri);
            workload_path = unix_path(USUAL_WORKLOAD_URI).unwrap_or_default();
        }
        let management_socket = path("IOTEDGE_MANAGEMENTURI")?;
        let manifest = optional("EDGEKEEP_MANIFEST").or_else(|| optional("LocalConfigPath"));
        // Others may use the storage folder too.
        let in_storage =
            || optional("StorageFolder").map(|folder| Path::new(&folder).join("edgekeep-agent"));
        let state_folder = optional("EDGEKEEP_AGENT_STATE").map(PathBuf::from).or_else(in_storage);
        let period = match optional("EDGEKEEP_AGENT_PERIOD") {
            None => DEFAULT_PERIOD,
            Some(text) => match text.parse() {
                Ok(seconds @ 1..=3600) => Duration::from_secs(seconds),
                _ => return Err(SettingsError::Period),
            },
        };
        Ok(Self {
            manifest: manifest.ok_or(SettingsError::NoManifest)?.into(),
            state_folder: state_folder.unwrap_or_else(|| usual_state_folder(&management_socket)),
            management_socket,
            period,
            device: Device {
                device_id: required("IOTEDGE_DEVICEID")?,
                hub: required("IOTEDGE_IOTHUBHOSTNAME")?,
                hostname: required("EdgeDeviceHostName")?,
                parent: optional("IOTEDGE_GATEWAYHOSTNAME"),
                workload_uri,
                workload_path,
                module_sockets,
                network: optional("NetworkId"),
                api_version: optional("IOTEDGE_APIVERSION").unwrap_or_else(|| "2022-08-03".into()),
                auth_scheme: optional("IOTEDGE_AUTHSCHEME").unwrap_or_else(|| "sasToken".into()),
                log_level: optional("RuntimeLogLevel"),
                upstream_protocol: optional("UpstreamProtocol"),
            },
        })
    }
}

/// A folder that no other device on this machine uses. It may not outlive a reboot.
fn usual_state_folder(management_socket: &Path) -> PathBuf {
    let digest = sha256(management_socket.as_os_str().as_encoded_bytes()).hex();
    std::env::temp_dir().join(format!("edgekeep-agent-{}", &digest[..16]))
}

/// The absolute path of a `unix://` URI.
fn unix_path(uri: &str) -> Option<PathBuf> {
    let path = percent_decode_str(uri.strip_prefix("unix://")?).decode_utf8().ok()?;
    Path::new(path.as_ref()).is_absolute().then(|| PathBuf::from(path.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Vec<(String, String)> {
        [
            ("IOTEDGE_MANAGEMENTURI", "unix:///run/iotedge/mgmt.sock"),
            ("IOTEDGE_WORKLOADURI", "unix:///var/run/iotedge/workload.sock"),
            ("IOTEDGE_WORKLOADLISTEN_MNTURI", "unix:///var/lib/my%20mnt"),
            ("IOTEDGE_DEVICEID", "d"),
            ("IOTEDGE_IOTHUBHOSTNAME", "hub"),
            ("EDGEDEVICEHOSTNAME", "edge"),
            ("EDGEKEEP_MANIFEST", "/etc/m.json"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    #[test]
    fn names_ignore_case_and_paths_are_decoded() {
        let settings = Settings::from_variables(variables()).unwrap();
        assert_eq!(settings.device.hostname, "edge");
        assert_eq!(settings.device.module_sockets, Path::new("/var/lib/my mnt"));
        assert_eq!(settings.period, Duration::from_secs(5));
        assert_eq!(settings.device.parent, None);
    }

    #[test]
    fn two_devices_on_one_machine_do_not_share_a_state_folder() {
        let mut other = variables();
        other[0].1 = "unix:///tmp/device/run/iotedge/mgmt.sock".into();
        let folder = |variables| Settings::from_variables(variables).unwrap().state_folder;
        assert_ne!(folder(variables()), folder(other));
        let mut told = variables();
        told.push(("StorageFolder".into(), "/data".into()));
        assert_eq!(folder(told.clone()), Path::new("/data/edgekeep-agent"));
        told.push(("EDGEKEEP_AGENT_STATE".into(), "/state".into()));
        assert_eq!(folder(told), Path::new("/state"));
    }

    #[test]
    fn an_agent_on_the_host_gives_containers_the_usual_workload_place() {
        let mut variables = variables();
        variables[1].1 = "unix:///var/lib/my%20mnt/edgeAgent.sock".into();
        let device = Settings::from_variables(variables).unwrap().device;
        assert_eq!(device.workload_uri, USUAL_WORKLOAD_URI);
        assert_eq!(device.workload_path, Path::new("/var/run/iotedge/workload.sock"));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (index, expected) in
            [(0, "IOTEDGE_MANAGEMENTURI"), (3, "IOTEDGE_DEVICEID"), (5, "EdgeDeviceHostName")]
        {
            let mut variables = variables();
            variables.remove(index);
            assert_eq!(
                Settings::from_variables(variables),
                Err(SettingsError::Missing { name: expected })
            );
        }
        let mut without = variables();
        without.pop();
        assert_eq!(Settings::from_variables(without), Err(SettingsError::NoManifest));
        let mut tcp = variables();
        tcp[0].1 = "http://localhost:80".into();
        assert_eq!(
            Settings::from_variables(tcp),
            Err(SettingsError::NotUnix { name: "IOTEDGE_MANAGEMENTURI" })
        );
        let mut period = variables();
        period.push(("EDGEKEEP_AGENT_PERIOD".into(), "0".into()));
        assert_eq!(Settings::from_variables(period), Err(SettingsError::Period));
    }
}
