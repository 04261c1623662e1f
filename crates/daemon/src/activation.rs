//! Sockets passed by the service manager (`LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`;
//! wire facts 1.2).
//!
//! The one place of this crate with `unsafe`: a descriptor number from the environment
//! becomes an owned descriptor.
#![allow(unsafe_code, reason = "a passed descriptor is known by its number only")]

use std::collections::HashMap;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, OnceLock};

use edgekeep_base::lock::lock;

/// Number of the first passed descriptor.
const FIRST: RawFd = 3;
/// More sockets than any daemon of ours has.
const LIMIT: usize = 16;

/// Names that systemd units give their sockets; a socket of one name is never taken for
/// another.
const UNIT_NAMES: [&str; 9] = [
    "aziot-keyd.socket",
    "aziot-tpmd.socket",
    "aziot-identityd.socket",
    "aziot-certd.socket",
    "aziot-edged.mgmt.socket",
    "aziot-edged.workload.socket",
    "edgekeep-keyd.metrics.socket",
    "edgekeep-identityd.metrics.socket",
    "edgekeep-moduled.metrics.socket",
];

static PASSED: OnceLock<Mutex<HashMap<String, OwnedFd>>> = OnceLock::new();

/// Closes the passed sockets to programs that this process executes, until they are
/// taken: for a daemon that starts children before it serves.
pub fn keep_to_this_process() {
    let _ = PASSED.get_or_init(|| Mutex::new(claim()));
}

/// Takes the passed socket called `name`. A single passed socket is taken whatever its
/// name, unless that is the name of another service's.
///
/// Each socket can be taken once. `None` if there is no such socket.
#[must_use]
pub fn take(name: &str) -> Option<UnixListener> {
    let passed = PASSED.get_or_init(|| Mutex::new(claim()));
    let mut passed = lock(passed);
    let taken = passed.remove(name).or_else(|| {
        let only = (passed.len() == 1).then(|| passed.keys().next().cloned()).flatten()?;
        (!UNIT_NAMES.contains(&only.as_str())).then(|| passed.remove(&only)).flatten()
    })?;
    Some(UnixListener::from(taken))
}

fn claim() -> HashMap<String, OwnedFd> {
    let variable = |name: &str| std::env::var(name).ok();
    let for_us =
        variable("LISTEN_PID").and_then(|pid| pid.parse::<u32>().ok()) == Some(std::process::id());
    if !for_us {
        return HashMap::new();
    }
    let count = variable("LISTEN_FDS")
        .and_then(|count| count.parse::<usize>().ok())
        .unwrap_or(0)
        .min(LIMIT);
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut passed = HashMap::new();
    for number in (FIRST..).take(count) {
        // SAFETY: the service manager passes descriptors `FIRST..FIRST+LISTEN_FDS` to the
        // process whose id is LISTEN_PID, which is this one; nothing else in this process
        // owns them, and this runs once.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        if rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC).is_err() {
            // Not an open descriptor after all: forget it without closing a number that
            // may become somebody's.
            std::mem::forget(descriptor);
            continue;
        }
        let name = names.next().unwrap_or_default();
        // `unknown` is what the manager writes when a unit gives no name.
        let name = if name == "unknown" { "" } else { name };
        passed.insert(name.to_owned(), descriptor);
    }
    passed
}
