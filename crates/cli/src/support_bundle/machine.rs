//! Facts about the machine that the device runs on.

use std::path::Path;

use edgekeep_base::file::{self, Rules};
use edgekeep_core::layout::{Daemon, Root};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Longest file of the kernel's or the system's that is read, in bytes.
const LIMIT: u64 = 64 << 10;

pub(super) fn facts(root: &Root) -> Value {
    let uname = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let now = OffsetDateTime::now_utc();
    json!({
        "time": now.format(&Rfc3339).unwrap_or_default(),
        "kernel": {
            "release": text(uname.release()), "version": text(uname.version()), "machine": text(uname.machine()),
        },
        "system": system(),
        "hardware": {
            "vendor": line("/sys/class/dmi/id/sys_vendor"), "product": line("/sys/class/dmi/id/product_name"),
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
        },
        "uptimeSeconds": first_number("/proc/uptime"),
        "load": line("/proc/loadavg"),
        "memory": memory(),
        "disks": disks(root),
        "tpm": tpms(),
        "securityModules": line("/sys/kernel/security/lsm"),
    })
}

fn tpms() -> Vec<&'static str> {
    ["/dev/tpmrm0", "/dev/tpm0"].into_iter().filter(|path| Path::new(path).exists()).collect()
}

fn read(path: &str) -> Option<String> {
    let content = file::read(Path::new(path), Rules::named(LIMIT)).ok()?;
    Some(String::from_utf8_lossy(&content).into_owned())
}

fn line(path: &str) -> Option<String> {
    read(path).map(|text| text.trim().to_owned())
}

fn first_number(path: &str) -> Option<f64> {
    read(path)?.split_whitespace().next()?.parse().ok()
}

/// The system's own description.
fn system() -> Map<String, Value> {
    const NAMES: [&str; 4] = ["ID", "VERSION_ID", "VARIANT_ID", "BUILD_ID"];
    let text = read("/etc/os-release").unwrap_or_default();
    let pair = |line: &str| {
        let (name, value) = line.split_once('=')?;
        let value = value.trim_matches('"').to_owned();
        NAMES.contains(&name).then(|| (name.to_ascii_lowercase(), Value::from(value)))
    };
    text.lines().filter_map(pair).collect()
}

fn memory() -> Map<String, Value> {
    const NAMES: [&str; 4] = ["MemTotal", "MemAvailable", "SwapTotal", "SwapFree"];
    let text = read("/proc/meminfo").unwrap_or_default();
    let pair = |line: &str| {
        let (name, value) = line.split_once(':')?;
        NAMES.contains(&name).then(|| (name.to_owned(), Value::from(value.trim())))
    };
    text.lines().filter_map(pair).collect()
}

fn disks(root: &Root) -> Vec<Value> {
    let mut folders = vec![root.path().to_owned(), root.path().join("run")];
    folders.extend(Daemon::ALL.map(|daemon| root.state_folder(daemon)));
    let space = |folder: &std::path::PathBuf| {
        let found = rustix::fs::statvfs(folder).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Some(json!({
            "folder": folder, "totalBytes": bytes(found.f_blocks), "freeBytes": bytes(found.f_bavail),
            "freeInodes": found.f_favail,
        }))
    };
    folders.iter().filter_map(space).collect()
}
