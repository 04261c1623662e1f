//! Facts about the device: read once at start, except those that change (wire facts 2.7).

use std::collections::BTreeMap;
use std::fs;

use edgekeep_api::identityd::ProvisioningInfo;
use edgekeep_api::management::{SystemInfo, SystemProvisioning};
use serde_json::Value;

/// Version of this daemon, as systeminfo and `edgekeep version` show it.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything about the machine that does not change while it runs.
#[must_use]
pub(crate) fn read(additional: &BTreeMap<String, String>) -> SystemInfo {
    let kernel = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_str().ok().map(str::to_owned);
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let mut info = SystemInfo {
        os_type: text(kernel.sysname()).unwrap_or_else(|| "UNKNOWN".into()),
        kernel_release: text(kernel.release()),
        kernel_version: text(kernel.version()),
        operating_system: os_release_field(&os_release, "ID"),
        operating_system_version: os_release_field(&os_release, "VERSION_ID"),
        operating_system_variant: os_release_field(&os_release, "VARIANT_ID"),
        operating_system_build: os_release_field(&os_release, "BUILD_ID"),
        architecture: std::env::consts::ARCH.to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        total_memory: memory_field(
            &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
            "MemTotal",
        ),
        virtualized: virtualized().to_owned(),
        product_name: dmi("product_name"),
        system_vendor: dmi("sys_vendor"),
        version: VERSION.to_owned(),
        server_version: None,
        provisioning: provisioning(None),
        additional: serde_json::Map::new(),
    };
    for (key, value) in additional {
        add(&mut info, key, value);
    }
    info
}

/// Provisioning in the words of systeminfo.
#[must_use]
pub(crate) fn provisioning(info: Option<&ProvisioningInfo>) -> SystemProvisioning {
    let kind = match info {
        Some(ProvisioningInfo::Dps { auth, .. }) => format!("dps.{auth}"),
        Some(ProvisioningInfo::Manual { auth }) => format!("manual.{auth}"),
        Some(ProvisioningInfo::None) => "none".to_owned(),
        None => "unknown".to_owned(),
    };
    SystemProvisioning { kind, dynamic_reprovisioning: true, always_reprovision_on_startup: false }
}

/// The operator's strings: they override what was measured, where a member of that name
/// exists.
fn add(info: &mut SystemInfo, key: &str, value: &str) {
    let own = || value.to_owned();
    match key {
        "kernel" => info.os_type = own(),
        "kernel_release" => info.kernel_release = Some(own()),
        "kernel_version" => info.kernel_version = Some(own()),
        "operating_system" => info.operating_system = Some(own()),
        "operating_system_version" => info.operating_system_version = Some(own()),
        "operating_system_variant" => info.operating_system_variant = Some(own()),
        "operating_system_build" => info.operating_system_build = Some(own()),
        "architecture" => info.architecture = own(),
        "virtualized" => info.virtualized = own(),
        "product_name" => info.product_name = Some(own()),
        "system_vendor" => info.system_vendor = Some(own()),
        "server_version" => info.server_version = Some(own()),
        // Members that say what the daemon is and has are not the operator's to set: a
        // repeated one would be ambiguous.
        "osType" | "cpus" | "total_memory" | "version" | "provisioning" => {}
        _ => {
            info.additional.insert(key.to_owned(), Value::String(own()));
        }
    }
}

fn os_release_field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix('=')?;
        Some(value.trim().trim_matches(['"', '\'']).to_owned())
    })
}

/// A field of `/proc/meminfo`, in bytes.
pub(crate) fn memory_field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kibibytes| kibibytes.saturating_mul(1024))
}

fn dmi(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/sys/class/dmi/id/{name}")).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Returns "yes" if the processor says that it runs below a hypervisor, else "no".
/// Returns "unknown" on other processors than x86, which do not have the flag, or if
/// `/proc/cpuinfo` cannot be read.
fn virtualized() -> &'static str {
    match fs::read_to_string("/proc/cpuinfo") {
        Ok(text) if std::env::consts::ARCH.starts_with("x86") => {
            let flagged = text
                .lines()
                .filter(|line| line.starts_with("flags"))
                .any(|line| line.split_whitespace().any(|flag| flag == "hypervisor"));
            if flagged { "yes" } else { "no" }
        }
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_values_lose_their_quotes() {
        let text = "PRETTY_NAME=\"Some OS\"\nID=debian\nVERSION_ID=\"12\"\n";
        assert_eq!(os_release_field(text, "ID").as_deref(), Some("debian"));
        assert_eq!(os_release_field(text, "VERSION_ID").as_deref(), Some("12"));
        assert_eq!(os_release_field(text, "BUILD_ID"), None);
    }

    #[test]
    fn the_operators_strings_override_measurements_but_not_what_the_daemon_is() {
        let strings = [("kernel", "MyOS"), ("version", "9"), ("site", "plant 7")];
        let info = read(
            &strings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        );
        assert_eq!(info.os_type, "MyOS");
        assert_eq!(info.version, VERSION);
        assert_eq!(info.additional["site"], "plant 7");
        assert!(info.total_memory > 0 && info.cpus > 0);
    }
}
