//! The system calls that the gauge and the launcher give up before they hear anything.
//!
//! Neither has Landlock: it would keep the gauge from the processes that it looks at, and
//! the launcher's would be every host module's.

use std::collections::BTreeMap;

use edgekeep_api::operations::{Layer, SandboxReport};
use edgekeep_base::error::chain;
use edgekeep_core::host::{Capabilities, Capability, HostModule, SeccompPreset};
use edgekeep_sandbox::{Filter, FilterError, Level, SyscallList, measured};

/// The calls that the gauge makes.
const GAUGE: &str = include_str!("../../gauge.syscalls");

/// The calls that nothing makes that the launcher starts.
const LAUNCHER: &str = include_str!("../../launcher.syscalls");

/// Gives up, for good and for all threads, the system calls that looking does not need.
pub(super) fn seal_gauge(enabled: bool) -> SandboxReport {
    report("gauge", enabled, || vec![("system calls", seal(GAUGE, &[]))])
}

/// Gives up, for good and for all threads and for whatever is started, the system calls
/// that starting does not need and that no host module is to have.
pub(super) fn seal_launcher(
    enabled: bool,
    modules: &BTreeMap<String, HostModule>,
) -> SandboxReport {
    let sections = sections(modules);
    // First: the other list may refuse any more filters.
    let seals = || {
        vec![
            ("measured calls", apply(Ok(measured::filter()))),
            ("system calls", seal(LAUNCHER, &sections)),
        ]
    };
    report("launcher", enabled, seals)
}

/// The sections of the launcher's list that count with these host modules.
fn sections(modules: &BTreeMap<String, HostModule>) -> Vec<&'static str> {
    let bounded = modules.values().all(|module| module.seccomp != SeccompPreset::None);
    let granted =
        modules.values().fold(0, |bits, module| bits | Capabilities::bits(module.capabilities));
    let is_granted = |name: &str| {
        let number = name.parse::<Capability>().map(Capability::number);
        number.is_ok_and(|number| granted >> number & 1 == 1)
    };
    let counts = |section: &&str| {
        let rest = section.strip_prefix("bounded");
        (bounded || rest.is_none())
            && !rest
                .unwrap_or(section)
                .trim_start_matches('-')
                .strip_prefix("no-")
                .is_some_and(is_granted)
    };
    let named =
        LAUNCHER.lines().filter_map(|line| Some(line.strip_prefix('[')?.split_once(']')?.0));
    named.filter(counts).collect()
}

fn seal(list: &str, sections: &[&str]) -> Level {
    let list = SyscallList::parse(list).map_err(|error| Level::Absent { reason: chain(&error) });
    list.map_or_else(|level| level, |list| apply(list.compile(sections)))
}

fn apply(filter: Result<Filter, FilterError>) -> Level {
    filter
        .and_then(|filter| filter.restrict_process())
        .unwrap_or_else(|error| Level::Absent { reason: chain(&error) })
}

/// Carries it out. A kernel that cannot is logged and goes on: a device without it is
/// lost to its operator.
fn report(
    child: &str,
    enabled: bool,
    seals: impl FnOnce() -> Vec<(&'static str, Level)>,
) -> SandboxReport {
    let levels = if enabled { seals() } else { Vec::new() };
    for (name, level) in levels.iter().filter(|(_, level)| !level.is_full()) {
        tracing::warn!("the {child}'s sandbox is weaker than it should be: {name}: {level}");
    }
    let layers = levels.into_iter().map(|(name, level)| Layer {
        name: name.to_owned(),
        full: level.is_full(),
        in_force: !matches!(level, Level::Absent { .. }),
        level: level.to_string(),
    });
    SandboxReport { enabled, layers: layers.collect(), widened: Vec::new() }
}

#[cfg(test)]
mod tests {
    use edgekeep_core::digest::Sha256Digest;
    use edgekeep_sandbox::syscalls::FOR_NO_DAEMON;

    use super::*;

    fn modules(change: impl FnOnce(&mut HostModule)) -> BTreeMap<String, HostModule> {
        let plain = || HostModule::new("/bin/sleep", Sha256Digest::new([1; 32]));
        let mut other = plain();
        change(&mut other);
        [("plain".to_owned(), plain()), ("other".to_owned(), other)].into()
    }

    #[test]
    fn the_gauge_keeps_no_call_that_changes_anything() {
        let list = SyscallList::parse(GAUGE).expect("a list");
        list.compile(&[]).expect("a filter");
        let own = [
            "kill",
            "tkill",
            "tgkill",
            "pidfd_send_signal",
            "chown",
            "fchown",
            "lchown",
            "fchownat",
            "chmod",
            "fchmod",
            "fchmodat",
            "mkdir",
            "mkdirat",
            "rename",
            "renameat",
            "renameat2",
            "unlink",
            "unlinkat",
            "rmdir",
            "link",
            "linkat",
            "symlink",
            "symlinkat",
            "truncate",
            "ftruncate",
            "fallocate",
            "copy_file_range",
            "sendfile",
            "creat",
            "setxattr",
            "fsetxattr",
            "socket",
            "socketpair",
            "connect",
            "bind",
            "listen",
            "accept",
            "accept4",
            "memfd_create",
            "process_madvise",
            "kcmp",
            "setpriority",
            "utimensat",
            "inotify_init1",
            "fanotify_init",
        ];
        for call in FOR_NO_DAEMON.iter().chain(&own) {
            assert!(!list.names(call), "{call}");
        }
    }

    #[test]
    fn the_launcher_gives_up_what_no_host_module_is_granted_and_no_more() {
        let list = SyscallList::parse(LAUNCHER).expect("a list");
        let of = |change: fn(&mut HostModule)| {
            let sections = sections(&modules(change));
            list.compile(&sections).expect("a filter");
            sections
        };
        let all = of(|_| ());
        assert_eq!(all.len(), LAUNCHER.lines().filter(|line| line.starts_with('[')).count());
        for (capability, lifted) in [
            ("sys_admin", "bounded-no-sys_admin"),
            ("sys_module", "no-sys_module"),
            ("syslog", "bounded-no-syslog"),
        ] {
            let granted = [capability.parse::<Capability>().expect("known")];
            let granted = modules(|module| module.capabilities = granted.into_iter().collect());
            let left: Vec<_> = all.iter().filter(|section| **section != lifted).copied().collect();
            assert_eq!(sections(&granted), left, "{lifted}");
        }
        let unbounded = of(|module| module.seccomp = SeccompPreset::None);
        assert!(unbounded.contains(&"no-sys_module") && !unbounded.is_empty());
        assert!(unbounded.iter().all(|section| !section.starts_with("bounded")));
    }

    #[test]
    fn what_the_launcher_itself_needs_is_not_given_up() {
        let list = SyscallList::parse(LAUNCHER).expect("a list");
        for call in [
            "execve",
            "memfd_create",
            "setresuid",
            "setgroups",
            "capset",
            "kill",
            "seccomp",
            "prctl",
            "vfork",
            "fchownat",
        ] {
            assert!(!list.names(call), "{call}");
        }
    }
}
