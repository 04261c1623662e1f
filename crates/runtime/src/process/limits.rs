//! What a host module may use up: by cgroup where the daemon may make one with that controller, else, only if the operator
//! says that this will do, by what comes nearest.

use std::fmt;
use std::path::PathBuf;

use edgekeep_core::host::{Enforcement, Limits};
use edgekeep_core::id::ModuleId;
use rustix::process::{Pid, Resource, Rlimit};

use super::group::ModuleCgroups;

/// Microseconds over which the share of a processor is counted.
const CPU_PERIOD_US: u64 = 100_000;

/// What was reached for one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reached {
    /// As configured, by this.
    By(&'static str),
    /// Something near it, and why not itself.
    Nearly(&'static str, String),
    /// Nothing, and why.
    Not(String),
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By(what) => write!(f, "by {what}"),
            Self::Nearly(what, why) => write!(f, "only by {what} ({why})"),
            Self::Not(why) => write!(f, "not set ({why})"),
        }
    }
}

/// Limits as they are in force.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Which limit is kept by what, in words; `None` without limits.
    pub(super) summary: Option<String>,
    /// Groups that were made for limits alone.
    pub(super) groups: Vec<PathBuf>,
}

/// Sets the limits of a process that waits to become the module. `own_user`: nobody but the module runs as its user, as
/// far as the daemon is concerned.
///
/// # Errors
/// A limit that is required cannot be set: its name and why.
pub(super) fn apply(
    limits: &Limits,
    module: &ModuleId,
    pid: Pid,
    own_user: bool,
    cgroups: &ModuleCgroups,
) -> Result<Applied, (String, Vec<PathBuf>)> {
    let mut groups = Vec::new();
    let mut reached: Vec<(&str, Reached)> = Vec::new();
    let mut by_group = |controller: &'static str, settings: &dyn Fn(bool) -> Vec<(&'static str, String)>| {
        let group = cgroups.with_controller(module, controller)?;
        if group.for_limits_alone {
            groups.push(group.folder.clone());
        }
        let version = if group.unified { "cgroup v2" } else { "cgroup v1" };
        for (file, value) in settings(group.unified) {
            let path = group.folder.join(file.trim_start_matches('?'));
            // Kernels without swap accounting lack the file; then there is no swap to be limited by it.
            if file.starts_with('?') && !path.exists() {
                continue;
            }
            std::fs::write(&path, value).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        let procs = group.folder.join("cgroup.procs");
        std::fs::write(&procs, pid.as_raw_nonzero().to_string())
            .map_err(|error| format!("cannot write {}: {error}", procs.display()))?;
        Ok(version)
    };
    if let Some(bytes) = limits.memory_max {
        let result = by_group("memory", &|unified| memory_settings(bytes, unified));
        reached.push((
            "memory_max",
            result.map_or_else(|why| nearly(pid, Resource::Data, "RLIMIT_DATA", bytes, why), Reached::By),
        ));
    }
    if let Some(percent) = limits.cpu_quota {
        let result = by_group("cpu", &|unified| cpu_settings(percent, unified));
        reached.push(("cpu_quota", result.map_or_else(Reached::Not, Reached::By)));
    }
    if let Some(count) = limits.pids_max {
        let result = by_group("pids", &|_| vec![("pids.max", count.to_string())]);
        let fall_back = |why| {
            // The kernel counts what the user has in all, so it says something only about a user of the module's own.
            if own_user { nearly(pid, Resource::Nproc, "RLIMIT_NPROC", count.into(), why) } else { Reached::Not(why) }
        };
        reached.push(("pids_max", result.map_or_else(fall_back, Reached::By)));
    }
    if let Some(count) = limits.nofile {
        let result = set(pid, Resource::Nofile, count);
        reached.push(("nofile", result.map_or_else(Reached::Not, |()| Reached::By("RLIMIT_NOFILE"))));
    }
    match judge(limits.enforcement, &reached) {
        Ok(summary) => Ok(Applied { summary, groups }),
        Err(why) => Err((why, groups)),
    }
}

/// Whether a module may start with what was reached, and what its status says. Pure.
fn judge(enforcement: Enforcement, reached: &[(&str, Reached)]) -> Result<Option<String>, String> {
    let missing = reached.iter().find(|(_, reached)| !matches!(reached, Reached::By(_)));
    if let (Enforcement::Required, Some((name, reached))) = (enforcement, missing) {
        let why = match reached {
            Reached::By(_) => "",
            Reached::Nearly(_, why) | Reached::Not(why) => why,
        };
        return Err(format!("{name} cannot be set: {why}"));
    }
    let parts: Vec<String> = reached.iter().map(|(name, reached)| format!("{name} {reached}")).collect();
    Ok((!parts.is_empty()).then(|| format!("limits: {}", parts.join(", "))))
}

fn memory_settings(bytes: u64, unified: bool) -> Vec<(&'static str, String)> {
    if unified {
        vec![("memory.max", bytes.to_string()), ("?memory.swap.max", "0".to_owned())]
    } else {
        // In this order: memory alone must not exceed memory and swap.
        vec![("memory.limit_in_bytes", bytes.to_string()), ("?memory.memsw.limit_in_bytes", bytes.to_string())]
    }
}

fn cpu_settings(percent: u32, unified: bool) -> Vec<(&'static str, String)> {
    let quota = u64::from(percent) * CPU_PERIOD_US / 100;
    if unified {
        vec![("cpu.max", format!("{quota} {CPU_PERIOD_US}"))]
    } else {
        vec![("cpu.cfs_period_us", CPU_PERIOD_US.to_string()), ("cpu.cfs_quota_us", quota.to_string())]
    }
}

fn nearly(pid: Pid, resource: Resource, name: &'static str, value: u64, why: String) -> Reached {
    match set(pid, resource, value) {
        Ok(()) => Reached::Nearly(name, why),
        Err(_) => Reached::Not(why),
    }
}

fn set(pid: Pid, resource: Resource, value: u64) -> Result<(), String> {
    let limit = Rlimit { current: Some(value), maximum: Some(value) };
    rustix::process::prlimit(Some(pid), resource, limit).map(drop).map_err(io_text)
}

fn io_text(errno: rustix::io::Errno) -> String {
    std::io::Error::from(errno).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_required_limit_that_is_not_reached_is_refused_by_name_and_a_best_effort_is_told() {
        let reached = [
            ("memory_max", Reached::By("cgroup v2")),
            ("pids_max", Reached::Nearly("RLIMIT_NPROC", "no cgroup".into())),
            ("cpu_quota", Reached::Not("no cgroup".into())),
        ];
        assert_eq!(judge(Enforcement::Required, &reached), Err("pids_max cannot be set: no cgroup".into()));
        assert_eq!(
            judge(Enforcement::BestEffort, &reached),
            Ok(Some(
                "limits: memory_max by cgroup v2, pids_max only by RLIMIT_NPROC (no cgroup), cpu_quota not set (no cgroup)"
                    .into()
            ))
        );
        assert_eq!(judge(Enforcement::Required, &reached[..1]), Ok(Some("limits: memory_max by cgroup v2".into())));
        assert_eq!(judge(Enforcement::Required, &[]), Ok(None));
    }

    #[test]
    fn both_cgroup_versions_get_the_same_share() {
        assert_eq!(cpu_settings(150, true), [("cpu.max", "150000 100000".to_owned())]);
        assert_eq!(cpu_settings(150, false)[1], ("cpu.cfs_quota_us", "150000".to_owned()));
        assert_eq!(memory_settings(1024, true)[1], ("?memory.swap.max", "0".to_owned()));
    }
}
