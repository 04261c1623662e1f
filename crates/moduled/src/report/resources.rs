//! Resources of the machine that are in use (wire facts 2.7, `/systeminfo/resources`).

use std::fs;
use std::io;

use edgekeep_core::layout::Root;
use serde::Serialize;

use crate::report::systeminfo::memory_field;

/// The answer, but for the engine's statistics.
#[derive(Debug, Serialize)]
pub(crate) struct Resources {
    /// Seconds since boot.
    pub(crate) host_uptime: u64,
    /// Seconds since this daemon started.
    pub(crate) process_uptime: u64,
    /// Percent of all processors' time in use, since boot.
    pub(crate) used_cpu: f64,
    /// Bytes of memory in use.
    pub(crate) used_ram: u64,
    /// Bytes of memory.
    pub(crate) total_ram: u64,
    /// File systems that the device's state is on.
    pub(crate) disks: Vec<Disk>,
}

/// One file system.
#[derive(Debug, Serialize)]
pub(crate) struct Disk {
    /// Mount point of the file system.
    pub(crate) name: String,
    /// Free bytes.
    pub(crate) available_space: u64,
    /// Bytes.
    pub(crate) total_space: u64,
    /// Its type.
    pub(crate) file_system: String,
    /// Kind of medium; not determined.
    pub(crate) file_type: String,
}

/// Reads what the kernel says now.
///
/// # Errors
/// If `/proc` cannot be read.
pub(crate) fn read(root: &Root) -> io::Result<Resources> {
    let uptime = fs::read_to_string("/proc/uptime")?;
    let host_uptime = seconds(uptime.split_whitespace().next().unwrap_or_default());
    let memory = fs::read_to_string("/proc/meminfo")?;
    let total_ram = memory_field(&memory, "MemTotal");
    let used_ram = total_ram.saturating_sub(memory_field(&memory, "MemAvailable"));
    Ok(Resources {
        host_uptime,
        process_uptime: host_uptime
            .saturating_sub(started(&fs::read_to_string("/proc/self/stat")?)),
        used_cpu: used_cpu(&fs::read_to_string("/proc/stat")?),
        used_ram,
        total_ram,
        disks: disks(root),
    })
}

/// Whole seconds of a decimal number.
fn seconds(text: &str) -> u64 {
    text.split('.').next().and_then(|whole| whole.parse().ok()).unwrap_or(0)
}

/// Seconds from boot to the start of the process.
fn started(stat: &str) -> u64 {
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    // The command name, in parentheses, may hold anything; the 22nd field is the 20th
    // after it.
    let after = stat.rsplit(')').next().unwrap_or_default();
    after.split_whitespace().nth(19).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0)
        / ticks
}

fn used_cpu(stat: &str) -> f64 {
    let Some(line) = stat.lines().find(|line| line.starts_with("cpu ")) else { return 0.0 };
    let times: Vec<u64> =
        line.split_whitespace().skip(1).take(8).filter_map(|time| time.parse().ok()).collect();
    let total: u64 = times.iter().sum();
    let idle: u64 = times.iter().skip(3).take(2).sum();
    if total == 0 {
        return 0.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "a percentage")]
    let used = (total - idle) as f64 * 100.0 / total as f64;
    used
}

fn disks(root: &Root) -> Vec<Disk> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let folder = root.path().canonicalize().unwrap_or_else(|_| root.path().to_owned());
    let mount = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .filter(|(point, _)| folder.starts_with(point))
        .max_by_key(|(point, _)| point.len());
    let Some((point, kind)) = mount else { return Vec::new() };
    let Ok(space) = rustix::fs::statvfs(point) else { return Vec::new() };
    vec![Disk {
        name: point.to_owned(),
        available_space: space.f_bavail.saturating_mul(space.f_frsize),
        total_space: space.f_blocks.saturating_mul(space.f_frsize),
        file_system: kind.to_owned(),
        file_type: "Unknown".to_owned(),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_blanks_and_parentheses_does_not_shift_the_start_time() {
        let fields: Vec<String> = (3..=30).map(|field| (field * 100).to_string()).collect();
        let stat = format!("7 (a ) b) {}", fields.join(" "));
        assert_eq!(started(&stat), 2200 / rustix::param::clock_ticks_per_second());
    }

    #[test]
    fn this_machine_is_read() {
        let resources = read(&Root::default()).unwrap();
        assert!(resources.total_ram > resources.used_ram && resources.used_ram > 0);
        assert!((0.0..=100.0).contains(&resources.used_cpu));
        assert_eq!(resources.disks.len(), 1);
        assert!(resources.disks[0].total_space >= resources.disks[0].available_space);
    }
}
