//! Rights that the launcher gives up before it becomes the module, in the one order that
//! works. For a process with a single thread: the kernel keeps most of these rights for
//! each thread.

use std::error::Error;
use std::io;

use edgekeep_core::host::{Capability, Folders, LaunchPlan, SeccompPreset};
use edgekeep_sandbox::{Level, Reach, Rights, SyscallList};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

const DEFAULT_CALLS: &str = include_str!("seccomp/default.txt");
const STRICT_CALLS: &str = include_str!("seccomp/strict.txt");

/// Paths that almost every program has to read before its first line runs: the loader,
/// its libraries, and its own process.
const ALWAYS_READ: [&str; 8] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
    "/proc/self",
    "/dev/urandom",
    "/dev/zero",
];

/// Carries the plan out. After an error the process must not go on. What this kernel
/// restricts only in part is in the answer, in words.
pub(super) fn confine(plan: &LaunchPlan) -> io::Result<Option<String>> {
    let filter = syscalls(plan)?;
    // The daemon's leave to raise a thread's priority is none of the module's.
    setrlimit(Resource::Nice, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|errno| step("give up higher priorities", errno))?;
    // While the daemon's capabilities are still there.
    drop_bounding_set(plan)
        .map_err(|errno| step("drop the bounding set of capabilities", errno))?;
    if plan.set_user {
        become_user(plan).map_err(|errno| step("become the module's user", errno))?;
    } else if rustix::process::geteuid().as_raw() != plan.uid
        || rustix::process::getegid().as_raw() != plan.gid
    {
        return Err(io::Error::other("the plan is for another user than the daemon's"));
    }
    keep_capabilities(plan).map_err(|errno| step("give up capabilities", errno))?;
    let mut note = None;
    if let Some(folders) = &plan.folders {
        note = restrict_folders(folders)?;
    }
    // Whatever the preset: without these two a module's programs can pass for one
    // another.
    let measured = edgekeep_sandbox::measured::filter();
    if let level @ (Level::Absent { .. } | Level::Partial { .. }) = measured
        .restrict_thread()
        .map_err(|error| with_causes("cannot keep what is measured", &error))?
    {
        let gap = format!(
            "system calls that make another program pass for this one are not refused ({level})"
        );
        note = Some(note.map_or(gap.clone(), |note| format!("{note}; {gap}")));
    }
    // After this one even what is needed above may be refused.
    if let Some(filter) = filter
        && let level @ (Level::Absent { .. } | Level::Partial { .. }) = filter
            .restrict_thread()
            .map_err(|error| with_causes("cannot restrict system calls", &error))?
    {
        return Err(io::Error::other(format!(
            "cannot restrict system calls ({level}); seccomp = \"none\" goes without"
        )));
    }
    Ok(note)
}

/// The filter that goes with the plan.
fn syscalls(plan: &LaunchPlan) -> io::Result<Option<edgekeep_sandbox::Filter>> {
    let wrong = |error: &dyn Error| with_causes("cannot make the filter of system calls", error);
    let (text, sections) = match plan.seccomp {
        SeccompPreset::None => return Ok(None),
        SeccompPreset::Strict => (STRICT_CALLS, Vec::new()),
        SeccompPreset::Default => (DEFAULT_CALLS, without(plan)),
    };
    let list = SyscallList::parse(text).map_err(|error| wrong(&error))?;
    let sections: Vec<&str> = sections.iter().map(String::as_str).collect();
    list.compile(&sections).map(Some).map_err(|error| wrong(&error))
}

/// The sections of [`DEFAULT_CALLS`] about capabilities that the plan does not grant.
fn without(plan: &LaunchPlan) -> Vec<String> {
    let granted = |name: &str| {
        name.parse().is_ok_and(|one: Capability| plan.capabilities.iter().any(|own| own == one))
    };
    let named = DEFAULT_CALLS.lines().filter_map(|line| line.strip_prefix("[no-")?.split_once(']'));
    named.filter(|(name, _)| !granted(name)).map(|(name, _)| format!("no-{name}")).collect()
}

fn restrict_folders(folders: &Folders) -> io::Result<Option<String>> {
    let reach = Reach::none()
        .any_port()
        .grant_all(ALWAYS_READ, Rights::Execute)
        .grant("/dev/null", Rights::Device)
        .grant_all(&folders.read, Rights::Execute)
        .grant_all(&folders.write, Rights::Write);
    let reached =
        reach.restrict().map_err(|error| with_causes("cannot restrict folders", &error))?;
    // Not those that are granted to all: which there are differs from machine to machine.
    let named = |path: &&std::path::PathBuf| {
        folders.read.iter().chain(&folders.write).any(|own| path.as_os_str() == own.as_str())
    };
    if let Some(path) = reached.missing.iter().find(named) {
        let why = "a folder that is granted must be there, and the module's user must be able to look into it";
        return Err(io::Error::other(format!("cannot grant {}: {why}", path.display())));
    }
    match reached.level {
        Level::Full => Ok(None),
        Level::Partial { missing } => Ok(Some(missing)),
        Level::Absent { reason } => Err(io::Error::other(format!(
            "cannot restrict folders: {reason}; leave `read` and `write` out to go without"
        ))),
    }
}

fn with_causes(what: &str, error: &dyn Error) -> io::Error {
    let mut text = format!("{what}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    io::Error::other(text)
}

fn step(what: &str, errno: Errno) -> io::Error {
    io::Error::other(format!("cannot {what}: {}", io::Error::from(errno)))
}

/// Removes all that is not kept from what any program executed later could ever gain.
fn drop_bounding_set(plan: &LaunchPlan) -> Result<(), Errno> {
    for number in 0..64 {
        let bit = 1_u64 << number;
        let capability = CapabilitySet::from_bits_retain(bit);
        match rustix::thread::capability_is_in_bounding_set(capability) {
            // Beyond the last that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
            Ok(true) if plan.capabilities.bits() & bit == 0 => {
                match rustix::thread::remove_capability_from_bounding_set(capability) {
                    // An unprivileged daemon cannot. Nothing is gained from the set
                    // either: no new privileges.
                    Err(Errno::PERM) if !plan.set_user => {}
                    other => other?,
                }
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

fn become_user(plan: &LaunchPlan) -> Result<(), Errno> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(plan.uid), rustix::fs::Gid::from_raw(plan.gid));
    // Else the kernel takes all capabilities away with user 0, also those to be kept.
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_keep_capabilities(false)
}

/// Keeps exactly the planned capabilities, also through executing a program that has none
/// of its own.
fn keep_capabilities(plan: &LaunchPlan) -> Result<(), Errno> {
    rustix::thread::clear_ambient_capability_set()?;
    let kept = CapabilitySet::from_bits_retain(plan.capabilities.bits());
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: kept },
    )?;
    for capability in plan.capabilities.iter() {
        let one = CapabilitySet::from_bits_retain(1 << capability.number());
        rustix::thread::configure_capability_in_ambient_set(one, true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lists_are_understood_and_a_granted_capability_lifts_its_section() {
        let mut plan = super::super::own_plan();
        for preset in [SeccompPreset::Default, SeccompPreset::Strict] {
            plan.seccomp = preset;
            assert!(syscalls(&plan).expect("compiles").is_some());
        }
        let all = without(&plan);
        assert!(all.contains(&"no-sys_time".to_owned()) && all.len() == 8, "{all:?}");
        for section in &all {
            let name = section.trim_start_matches("no-");
            plan.capabilities =
                [name.parse::<Capability>().expect("a capability's name")].into_iter().collect();
            assert!(!without(&plan).contains(section) && without(&plan).len() == 7, "{section}");
        }
    }
}
