//! The checks there are. Ids of the existing tools keep their meaning.

use serde::Serialize;

/// A check.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Check {
    pub(super) category: &'static str,
    pub(super) id: &'static str,
    pub(super) description: &'static str,
}

const fn check(category: &'static str, id: &'static str, description: &'static str) -> Check {
    Check { category, id, description }
}

const CONFIGURATION: &str = "configuration";
const CONNECTIVITY: &str = "connectivity";
const DEVICE: &str = "device";

pub(super) const CHECKS: &[Check] = &[
    check(CONFIGURATION, "config-well-formed", "config.toml is well-formed"),
    check(CONFIGURATION, "configs-up-to-date", "what is applied is what config.toml says"),
    check(CONFIGURATION, "hostname", "the device's name can stand in certificates"),
    check(CONFIGURATION, "parent_hostname", "the parent's name can be looked up"),
    check(CONFIGURATION, "container-engine-uri", "the container engine answers"),
    check(CONFIGURATION, "container-engine-logrotate", "logs of containers are bounded"),
    check(CONFIGURATION, "container-engine-hardening", "the container engine confines containers"),
    check(
        CONFIGURATION,
        "edge-agent-storage-mounted-from-host",
        "the agent's data outlives its container",
    ),
    check(
        CONFIGURATION,
        "edge-hub-storage-mounted-from-host",
        "the hub module's data outlives its container",
    ),
    check(CONFIGURATION, "connect-management-uri", "modules can reach the management API"),
    check(CONFIGURATION, "connect-workload-uri", "modules can reach the workload API"),
    check(CONNECTIVITY, "keyd-running", "the keys daemon answers"),
    check(CONNECTIVITY, "certd-running", "the certificates API answers"),
    check(CONNECTIVITY, "identityd-running", "the identities daemon answers"),
    check(CONNECTIVITY, "tpmd-running", "the TPM API answers"),
    check(CONNECTIVITY, "host-connect-dps-endpoint", "the provisioning service can be reached"),
    check(CONNECTIVITY, "host-connect-iothub-https", "the hub can be reached by HTTPS"),
    check(CONNECTIVITY, "host-connect-iothub-mqtt", "the hub can be reached by MQTT"),
    check(CONNECTIVITY, "host-connect-iothub-amqp", "the hub can be reached by AMQP"),
    check(DEVICE, "identity-certificate-expiry", "certificates are valid for a while"),
    check(DEVICE, "host-local-time", "the device's clock is plausible"),
    check(DEVICE, "key-store-protection", "the key store is sealed"),
    check(DEVICE, "disk-space", "there is room for state"),
    check(DEVICE, "problems", "the daemons know of no problem"),
];
