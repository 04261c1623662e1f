//! Rights that are given up for good and need no list: to gain privileges, and to use
//! capabilities. Others lose the right to look into the process.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The error of giving privileges up. The steps after the failed step were not made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct PrivilegeError {
    step: &'static str,
    #[source]
    source: io::Error,
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> PrivilegeError {
    move |error| PrivilegeError { step, source: error.into() }
}

/// Hides this process's memory: no core dump of it, no tracer of the same user, and
/// `/proc/<pid>` belongs to root.
///
/// Not inherited over `execve`: for a process that has secrets, not for a launcher.
///
/// # Errors
/// If the kernel refuses.
pub fn hide_memory() -> Result<(), PrivilegeError> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).map_err(failed("switch off core dumps"))?;
    // Before Linux 6.4 this is read from a file in `/proc/self`, which afterwards is
    // root's: asked now, it is remembered.
    let _ = rustix::param::page_size();
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(failed("keep tracers away"))
}

/// Gives up, for the calling thread and what it starts from now on: privileges that an
/// executable file would bring, and all capabilities but `kept`. Call it before there are
/// other threads.
///
/// # Errors
/// If the kernel refuses.
pub fn give_up(kept: CapabilitySet) -> Result<(), PrivilegeError> {
    rustix::thread::clear_ambient_capability_set()
        .map_err(failed("give up ambient capabilities"))?;
    keep(kept, CapabilitySet::empty())
}

/// As [`give_up`], but programs that are executed later have what is left as well: for a
/// process that starts others with rights.
///
/// # Errors
/// If the kernel refuses.
pub fn reduce(kept: CapabilitySet) -> Result<(), PrivilegeError> {
    // The kernel takes out of the ambient set what is not inheritable any more.
    keep(kept, kept)
}

fn keep(kept: CapabilitySet, inheritable: CapabilitySet) -> Result<(), PrivilegeError> {
    rustix::thread::set_no_new_privs(true).map_err(failed("give up new privileges"))?;
    let now = rustix::thread::capabilities(None).map_err(failed("look at capabilities"))?;
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(kept).iter() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // Newer than this kernel.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(failed("bound capabilities")(error)),
            }
        }
    }
    let left = CapabilitySets {
        effective: now.effective & kept,
        permitted: now.permitted & kept,
        inheritable: now.inheritable & inheritable,
    };
    rustix::thread::set_capabilities(None, left).map_err(failed("give up capabilities"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_the_capabilities_that_are_named_and_cannot_get_others_back() {
        let before = rustix::thread::capabilities(None).unwrap();
        let after = std::thread::spawn(move || {
            give_up(CapabilitySet::DAC_OVERRIDE).unwrap();
            let after = rustix::thread::capabilities(None).unwrap();
            let all = CapabilitySets {
                effective: CapabilitySet::CHOWN,
                permitted: CapabilitySet::CHOWN,
                ..after
            };
            assert_eq!(rustix::thread::set_capabilities(None, all), Err(rustix::io::Errno::PERM));
            assert!(rustix::thread::no_new_privs().unwrap());
            assert!(
                !rustix::thread::capability_is_in_bounding_set(CapabilitySet::SYS_ADMIN).unwrap()
                    || !before.effective.contains(CapabilitySet::SETPCAP)
            );
            after
        })
        .join()
        .unwrap();
        assert_eq!(after.permitted, before.permitted & CapabilitySet::DAC_OVERRIDE);
        assert_eq!(after.inheritable, CapabilitySet::empty());
        assert_eq!(rustix::thread::capabilities(None).unwrap(), before, "other threads go on");
    }
}
