//! Limits on the resources that a host module uses. A cgroup keeps a limit where the
//! daemon may make one with that controller. Otherwise the nearest other means keeps the
//! limit, but only if the operator allows that.

use std::fmt;
use std::path::{Path, PathBuf};

use edgekeep_core::host::{Enforcement, Limits};
use edgekeep_core::id::ModuleId;
use rustix::process::{Pid, Resource, Rlimit};

use super::group::{LimitGroup, ModuleCgroups};

/// Microseconds over which the share of a processor is counted.
const CPU_PERIOD_US: u64 = 100_000;

/// Result of setting one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reached {
    /// The limit as configured, by this means.
    By(&'static str),
    /// A limit near the configured one, by this means, and the reason for the difference.
    Nearly(&'static str, String),
    /// No limit, and the reason.
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
    /// The means that keep each limit, in words; `None` without limits.
    pub(super) summary: Option<String>,
    /// Groups that were made for limits alone.
    pub(super) groups: Vec<PathBuf>,
}

/// The keeper of the limits that are kept by cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeper {
    /// This daemon, in a group that it makes.
    OwnGroup,
    /// systemd, in the module's scope. The limits that systemd was told are looked up in
    /// the kernel.
    Scope,
}

/// A limit that is kept by cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByGroup {
    Memory(u64),
    Cpu(u32),
    Pids(u32),
}

impl ByGroup {
    fn all(limits: &Limits) -> impl Iterator<Item = Self> {
        let memory = limits.memory_max.map(Self::Memory);
        memory
            .into_iter()
            .chain(limits.cpu_quota.map(Self::Cpu))
            .chain(limits.pids_max.map(Self::Pids))
    }

    /// The name in the configuration.
    fn name(self) -> &'static str {
        match self {
            Self::Memory(_) => "memory_max",
            Self::Cpu(_) => "cpu_quota",
            Self::Pids(_) => "pids_max",
        }
    }

    fn controller(self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Cpu(_) => "cpu",
            Self::Pids(_) => "pids",
        }
    }

    /// Returns the properties that set the limit in systemd.
    fn properties(self) -> Vec<String> {
        match self {
            Self::Memory(bytes) => vec![format!("MemoryMax={bytes}"), "MemorySwapMax=0".to_owned()],
            Self::Cpu(percent) => vec![format!("CPUQuota={percent}%")],
            Self::Pids(count) => vec![format!("TasksMax={count}")],
        }
    }

    /// Files of the group and what is written to them. Kernels without swap accounting
    /// lack those with a `?`; then there is no swap to be limited by them.
    fn settings(self, unified: bool) -> Vec<(&'static str, String)> {
        match (self, unified) {
            (Self::Memory(bytes), true) => {
                vec![("memory.max", bytes.to_string()), ("?memory.swap.max", "0".to_owned())]
            }
            // In this order: memory alone must not exceed memory and swap.
            (Self::Memory(bytes), false) => {
                vec![
                    ("memory.limit_in_bytes", bytes.to_string()),
                    ("?memory.memsw.limit_in_bytes", bytes.to_string()),
                ]
            }
            (Self::Cpu(percent), _) => {
                let quota = u64::from(percent) * CPU_PERIOD_US / 100;
                if unified {
                    vec![("cpu.max", format!("{quota} {CPU_PERIOD_US}"))]
                } else {
                    vec![
                        ("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
                        ("cpu.cfs_quota_us", quota.to_string()),
                    ]
                }
            }
            (Self::Pids(count), _) => vec![("pids.max", count.to_string())],
        }
    }

    /// Returns true if the limit in the group's files is at most this one.
    fn is_kept(self, unified: bool, read: impl Fn(&str) -> Option<String>) -> bool {
        let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
        match self {
            Self::Memory(bytes) => {
                number(if unified { "memory.max" } else { "memory.limit_in_bytes" })
                    .is_some_and(|max| max <= bytes)
            }
            Self::Cpu(percent) => {
                let share = if unified {
                    read("cpu.max").and_then(|text| {
                        let (quota, period) = text.trim().split_once(' ')?;
                        Some((quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?))
                    })
                } else {
                    number("cpu.cfs_quota_us").zip(number("cpu.cfs_period_us"))
                };
                share.is_some_and(|(quota, period)| {
                    u128::from(quota) * 100 <= u128::from(percent) * u128::from(period)
                })
            }
            Self::Pids(count) => number("pids.max").is_some_and(|max| max <= u64::from(count)),
        }
    }
}

/// The limits in systemd's words.
pub(super) fn properties(limits: &Limits) -> impl Iterator<Item = String> {
    ByGroup::all(limits).flat_map(ByGroup::properties)
}

/// Sets the limits of a process that waits to become the module, or finds out whether
/// systemd has. `own_user`: nobody but the module runs as its user, as far as the daemon
/// is concerned.
///
/// # Errors
/// A limit that is required is not in force: its name and why.
pub(super) fn apply(
    limits: &Limits,
    module: &ModuleId,
    pid: Pid,
    own_user: bool,
    cgroups: &ModuleCgroups,
    keeper: Keeper,
) -> Result<Applied, (String, Vec<PathBuf>)> {
    let mut groups = Vec::new();
    let mut reached: Vec<(&str, Reached)> = Vec::new();
    for limit in ByGroup::all(limits) {
        let result = match keeper {
            Keeper::OwnGroup => set_in_group(limit, module, pid, cgroups, &mut groups),
            Keeper::Scope => found_in_scope(limit, module, pid, cgroups),
        };
        let fall_back = |why| match limit {
            ByGroup::Memory(bytes) => nearly(pid, Resource::Data, "RLIMIT_DATA", bytes, why),
            // The kernel counts what the user has in all, so it says something only about
            // a user of the module's own.
            ByGroup::Pids(count) if own_user => {
                nearly(pid, Resource::Nproc, "RLIMIT_NPROC", count.into(), why)
            }
            ByGroup::Cpu(_) | ByGroup::Pids(_) => Reached::Not(why),
        };
        reached.push((limit.name(), result.map_or_else(fall_back, Reached::By)));
    }
    if let Some(count) = limits.nofile {
        let result = set(pid, Resource::Nofile, count);
        reached
            .push(("nofile", result.map_or_else(Reached::Not, |()| Reached::By("RLIMIT_NOFILE"))));
    }
    match judge(limits.enforcement, &reached) {
        Ok(summary) => Ok(Applied { summary, groups }),
        Err(why) => Err((why, groups)),
    }
}

fn set_in_group(
    limit: ByGroup,
    module: &ModuleId,
    pid: Pid,
    cgroups: &ModuleCgroups,
    groups: &mut Vec<PathBuf>,
) -> Result<&'static str, String> {
    let group = cgroups.with_controller(module, limit.controller())?;
    if group.for_limits_alone {
        groups.push(group.folder.clone());
    }
    write_settings(&group, &limit.settings(group.unified))?;
    write(&group.folder.join("cgroup.procs"), &pid.as_raw_nonzero().to_string())?;
    Ok(version(group.unified))
}

/// systemd goes on without a limit that it cannot set, and says so in its log at most.
fn found_in_scope(
    limit: ByGroup,
    module: &ModuleId,
    pid: Pid,
    cgroups: &ModuleCgroups,
) -> Result<&'static str, String> {
    let group = cgroups.scope_with_controller(
        module,
        pid.as_raw_nonzero().get().unsigned_abs(),
        limit.controller(),
    )?;
    if !limit.is_kept(group.unified, |file| std::fs::read_to_string(group.folder.join(file)).ok()) {
        return Err(format!("systemd has not set it in {}", group.folder.display()));
    }
    if let (ByGroup::Memory(_), false) = (limit, group.unified) {
        // Swap, for which systemd has no setting on cgroup v1.
        let swap = limit.settings(false).into_iter().filter(|(file, _)| file.starts_with('?'));
        write_settings(&group, &swap.collect::<Vec<_>>())?;
    }
    Ok(version(group.unified))
}

fn version(unified: bool) -> &'static str {
    if unified { "cgroup v2" } else { "cgroup v1" }
}

fn write_settings(group: &LimitGroup, settings: &[(&'static str, String)]) -> Result<(), String> {
    for (file, value) in settings {
        let path = group.folder.join(file.trim_start_matches('?'));
        if !file.starts_with('?') || path.exists() {
            write(&path, value)?;
        }
    }
    Ok(())
}

fn write(path: &Path, value: &str) -> Result<(), String> {
    std::fs::write(path, value).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// Decides if a module may start with the limits that were reached, and returns the text
/// for its status. Pure.
fn judge(enforcement: Enforcement, reached: &[(&str, Reached)]) -> Result<Option<String>, String> {
    let missing = reached.iter().find(|(_, reached)| !matches!(reached, Reached::By(_)));
    if let (Enforcement::Required, Some((name, reached))) = (enforcement, missing) {
        let why = match reached {
            Reached::By(_) => "",
            Reached::Nearly(_, why) | Reached::Not(why) => why,
        };
        return Err(format!("{name} cannot be set: {why}"));
    }
    let parts: Vec<String> =
        reached.iter().map(|(name, reached)| format!("{name} {reached}")).collect();
    Ok((!parts.is_empty()).then(|| format!("limits: {}", parts.join(", "))))
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_required_limit_that_is_not_reached_is_refused_by_name_and_a_best_effort_is_told() {
        let reached = [
            ("memory_max", Reached::By("cgroup v2")),
            ("pids_max", Reached::Nearly("RLIMIT_NPROC", "no cgroup".into())),
            ("cpu_quota", Reached::Not("no cgroup".into())),
        ];
        assert_eq!(
            judge(Enforcement::Required, &reached),
            Err("pids_max cannot be set: no cgroup".into())
        );
        assert_eq!(
            judge(Enforcement::BestEffort, &reached),
            Ok(Some(
                "limits: memory_max by cgroup v2, pids_max only by RLIMIT_NPROC (no cgroup), cpu_quota not set (no cgroup)"
                    .into()
            ))
        );
        assert_eq!(
            judge(Enforcement::Required, &reached[..1]),
            Ok(Some("limits: memory_max by cgroup v2".into()))
        );
        assert_eq!(judge(Enforcement::Required, &[]), Ok(None));
    }

    #[test]
    fn both_cgroup_versions_get_the_same_share() {
        assert_eq!(ByGroup::Cpu(150).settings(true), [("cpu.max", "150000 100000".to_owned())]);
        assert_eq!(ByGroup::Cpu(150).settings(false)[1], ("cpu.cfs_quota_us", "150000".to_owned()));
        assert_eq!(ByGroup::Memory(1024).settings(true)[1], ("?memory.swap.max", "0".to_owned()));
    }

    fn limit() -> impl Strategy<Value = ByGroup> {
        prop_oneof![
            (1_u64..1 << 50).prop_map(ByGroup::Memory),
            (1_u32..100_000).prop_map(ByGroup::Cpu),
            (1_u32..4_194_304).prop_map(ByGroup::Pids),
        ]
    }

    proptest! {
        /// A limit that we would set ourselves counts as kept; one more, or a kernel
        /// without a limit, does not.
        #[test]
        fn a_limit_is_kept_exactly_if_the_kernel_has_at_most_it(limit in limit(), unified in any::<bool>()) {
            let kept = |set: ByGroup| {
                let files = set.settings(unified);
                limit.is_kept(unified, |file| files.iter().find(|(name, _)| *name == file).map(|(_, value)| value.clone()))
            };
            prop_assert!(kept(limit));
            let more = match limit {
                ByGroup::Memory(bytes) => ByGroup::Memory(bytes + 1),
                ByGroup::Cpu(percent) => ByGroup::Cpu(percent + 1),
                ByGroup::Pids(count) => ByGroup::Pids(count + 1),
            };
            prop_assert!(!kept(more));
            for unlimited in ["max", "max 100000", "-1", ""] {
                prop_assert!(!limit.is_kept(unified, |_| Some(unlimited.to_owned())), "{unlimited}");
            }
            // What cgroup v1 has for memory without a limit.
            prop_assert!(!ByGroup::Memory(1 << 50).is_kept(false, |_| Some("9223372036854771712".to_owned())));
            prop_assert!(!limit.is_kept(unified, |_| None));
        }
    }
}
