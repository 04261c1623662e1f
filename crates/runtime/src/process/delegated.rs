//! Room for groups below the daemon's own, on cgroup v2: there a group with processes has
//! none with controllers below it.
//!
//! systemd 254 and later start the daemon in a group below the delegated one
//! (`DelegateSubgroup=`). Earlier ones do not know that setting and start it in the
//! delegated group itself; there the daemon moves itself.

use std::path::Path;

use super::group::DAEMON_GROUP;
use crate::evidence::CgroupHierarchy;

/// Set by systemd, from 251 on, on a group that it leaves to the service.
const DELEGATED: &str = "user.delegate";

/// Moves this process out of the group that systemd delegated to it and into one below,
/// if it is not in one already. A group that is not delegated stays as it is: it is
/// systemd's.
pub fn make_room(hierarchy: &CgroupHierarchy) {
    if *hierarchy != CgroupHierarchy::Unified {
        return;
    }
    let lines = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(own) = hierarchy.path(&lines).filter(|own| is_service(own)) else { return };
    let folder = Path::new(&hierarchy.mount_point()).join(own.trim_start_matches('/'));
    let mut value = [0_u8; 8];
    let delegated = rustix::fs::getxattr(&folder, DELEGATED, &mut value[..]);
    if !delegated.is_ok_and(|length| &value[..length] == b"1") {
        return;
    }
    if let Err(error) = enter(&folder.join(DAEMON_GROUP)) {
        tracing::warn!(%error, "cannot move below the delegated cgroup: limits of host modules cannot be set");
    }
}

/// Returns true if this process runs in a service of the system's own systemd, and not in
/// a user's.
pub(super) fn is_system_service() -> bool {
    let lines = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = [CgroupHierarchy::Unified, CgroupHierarchy::V1("name=systemd")]
        .into_iter()
        .find_map(|hierarchy| {
            let path = hierarchy.path(&lines)?;
            (path != "/").then_some(path)
        });
    path.is_some_and(in_system_service)
}

fn in_system_service(own: &str) -> bool {
    own.starts_with("/system.slice/") && own.split('/').any(is_service)
}

/// Returns true if a path ends with the group of a service, and not with a group that the
/// service made.
fn is_service(own: &str) -> bool {
    own.ends_with(".service")
}

fn enter(group: &Path) -> std::io::Result<()> {
    match std::fs::create_dir(group) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // The whole process, with all threads.
    std::fs::write(group.join("cgroup.procs"), "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_service_of_the_systems_own_slice_is_one() {
        for (own, expected) in [
            ("/system.slice/edgekeep-moduled.service", true),
            ("/system.slice/edgekeep-moduled.service/daemon", true),
            ("/system.slice/docker-0a.scope", false),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/edgekeep.service", false),
            ("/", false),
        ] {
            assert_eq!(in_system_service(own), expected, "{own}");
        }
    }
}
