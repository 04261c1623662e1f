//! The folders below a container's root file system, as the kernel has them mounted: for
//! engines that do not tell where an image's layers are (Docker with containerd's image
//! store, the default of Docker 29).
//!
//! What is mounted is no word of the engine, and a process that may mount could make it
//! say anything: who asks has made sure that nothing in the container ever could
//! ([`may_mount`]). Pure.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::image::MAX_LAYERS;
use super::mountinfo::MountLine;

/// The read-only folders below `/` in a process's `mountinfo`, top-most first; `None`
/// unless exactly one overlay is there and its folders are sure.
pub(crate) fn lower_folders(mountinfo: &str) -> Option<Vec<PathBuf>> {
    let mut roots = mountinfo.lines().filter(|line| line.split(' ').nth(4) == Some("/"));
    let (root, None) = (roots.next()?, roots.next()) else { return None };
    let MountLine { root: "/", file_system: "overlay", options, .. } = MountLine::parse(root)?
    else {
        return None;
    };
    // A folder of the overlay would be only some of it. Escaped characters are in no
    // engine's paths.
    if options.contains('\\') {
        return None;
    }
    let (mut lower, mut upper) = (Vec::new(), None);
    for option in options.split(',') {
        match option.split_once('=') {
            Some(("lowerdir", folders)) => lower.extend(folders.split(':')),
            Some(("lowerdir+", folder)) => lower.push(folder),
            Some(("upperdir", folder)) => upper = Some(Path::new(folder)),
            Some(("datadir+", _)) => return None,
            _ => {}
        }
    }
    // Many folders are given relative to the one that holds them all, the container's own
    // included: <all>/<number>/<content>.
    let all =
        upper.filter(|upper| upper.is_absolute()).and_then(|upper| upper.parent()?.parent())?;
    let usable = !lower.is_empty() && lower.iter().all(|folder| !folder.is_empty());
    (usable && lower.len() <= MAX_LAYERS)
        .then(|| lower.into_iter().map(|folder| all.join(folder)).collect())
}

/// Returns true if a process in the container may have mounted file systems, by the
/// engine's description of the container.
pub(crate) fn may_mount(inspection: &Value) -> bool {
    may(inspection, &["ALL", "SYS_ADMIN"])
}

/// Returns true if a process in the container may name another file than the one that it
/// executes (`PR_SET_MM`), by the engine's description of the container. A process may do
/// so by a capability, or in a user namespace of its own, which the engine's filter of
/// system calls is to refuse.
pub(crate) fn may_name_executable(inspection: &Value) -> bool {
    let unfiltered = match &inspection["HostConfig"]["SecurityOpt"] {
        Value::Null => false,
        Value::Array(options) => options.iter().any(|option| {
            let option = option.as_str().unwrap_or("seccomp=?");
            let profile =
                option.strip_prefix("seccomp").and_then(|rest| rest.strip_prefix(['=', ':']));
            profile.is_some_and(|profile| profile != "builtin")
        }),
        _ => true,
    };
    unfiltered || may(inspection, &["ALL", "SYS_ADMIN", "SYS_RESOURCE", "CHECKPOINT_RESTORE"])
}

/// Returns true if the container has one of these capabilities beyond the engine's own
/// choice, or may do everything.
fn may(inspection: &Value, capabilities: &[&str]) -> bool {
    let host = &inspection["HostConfig"];
    let added = match &host["CapAdd"] {
        Value::Null => false,
        Value::Array(names) => names.iter().any(|name| {
            let name = name.as_str().unwrap_or("ALL").to_ascii_uppercase();
            capabilities.contains(&name.strip_prefix("CAP_").unwrap_or(&name))
        }),
        _ => true,
    };
    added || host["Privileged"] != Value::Bool(false)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PROC: &str = "560 558 0:62 / /proc rw,nosuid - proc proc rw\n";

    fn root(options: &str) -> String {
        format!("558 287 0:49 / / rw,relatime master:1 - overlay overlay rw,{options}\n{PROC}")
    }

    #[test]
    fn the_folders_below_the_root_are_listed_from_the_top() {
        let mounts = root("lowerdir=/s/3/fs:/s/1/fs,upperdir=/s/4/fs,workdir=/s/4/work");
        assert_eq!(
            lower_folders(&mounts).expect("overlay"),
            ["/s/3/fs", "/s/1/fs"].map(PathBuf::from)
        );
        let each = root("lowerdir+=/s/3/fs,lowerdir+=/s/1/fs,upperdir=/s/4/fs,workdir=/s/4/work");
        assert_eq!(
            lower_folders(&each).expect("overlay"),
            ["/s/3/fs", "/s/1/fs"].map(PathBuf::from)
        );
        let relative = root("lowerdir=3/fs:1/fs,upperdir=/s/4/fs,workdir=/s/4/work");
        assert_eq!(
            lower_folders(&relative).expect("overlay"),
            ["/s/3/fs", "/s/1/fs"].map(PathBuf::from)
        );
    }

    #[test]
    fn a_root_that_is_not_sure_has_no_folders() {
        let good = root("lowerdir=/s/1/fs,upperdir=/s/4/fs");
        assert!(lower_folders(&good).is_some());
        for (what, mounts) in [
            ("nothing", String::new()),
            ("no root", PROC.to_owned()),
            (
                "something mounted over it",
                format!(
                    "{good}600 558 0:50 / / rw - overlay overlay rw,lowerdir=/evil,upperdir=/x/y/z\n"
                ),
            ),
            (
                "another file system",
                "558 287 8:1 / / rw - ext4 /dev/sda1 rw,lowerdir=/s/1/fs,upperdir=/s/4/fs\n".into(),
            ),
            (
                "a folder of an overlay",
                "558 287 0:49 /sub / rw - overlay overlay rw,lowerdir=/s/1/fs,upperdir=/s/4/fs\n"
                    .into(),
            ),
            ("no upper folder", root("lowerdir=/s/1/fs:/s/2/fs")),
            ("a relative upper folder", root("lowerdir=/s/1/fs,upperdir=4/fs")),
            ("no lower folder", root("upperdir=/s/4/fs")),
            ("a folder with data only", root("lowerdir=/s/1/fs::/s/2/fs,upperdir=/s/4/fs")),
            (
                "a folder with data only, alone",
                root("lowerdir+=/s/1/fs,datadir+=/s/2/fs,upperdir=/s/4/fs"),
            ),
            ("an escaped character", root("lowerdir=/s/1\\134:x/fs,upperdir=/s/4/fs")),
        ] {
            assert_eq!(lower_folders(&mounts), None, "{what}");
        }
    }

    #[test]
    fn a_container_that_may_mount_is_told_in_every_spelling() {
        let inspection = |host: Value| json!({ "HostConfig": host });
        for host in [
            json!({ "Privileged": false }),
            json!({ "Privileged": false, "CapAdd": ["NET_ADMIN", "CAP_CHOWN"] }),
        ] {
            assert!(!may_mount(&inspection(host.clone())), "{host}");
        }
        for host in [
            json!({}),
            json!({ "Privileged": true }),
            json!({ "Privileged": false, "CapAdd": ["all"] }),
            json!({ "Privileged": false, "CapAdd": ["CHOWN", "cap_sys_admin"] }),
            json!({ "Privileged": false, "CapAdd": ["SYS_ADMIN"] }),
            json!({ "Privileged": false, "CapAdd": [1] }),
            json!({ "Privileged": false, "CapAdd": "SYS_ADMIN" }),
        ] {
            assert!(may_mount(&inspection(host.clone())), "{host}");
            assert!(may_name_executable(&inspection(host.clone())), "{host}");
        }
    }

    #[test]
    fn a_container_that_may_name_its_executable_is_told_in_every_spelling() {
        let inspection = |more: Value| {
            let mut host = json!({ "Privileged": false });
            host.as_object_mut()
                .expect("an object")
                .extend(more.as_object().expect("an object").clone());
            json!({ "HostConfig": host })
        };
        for host in [
            json!({}),
            json!({ "CapAdd": ["NET_ADMIN"], "SecurityOpt": null }),
            json!({ "SecurityOpt": ["no-new-privileges", "seccomp=builtin", "apparmor=docker-default", "label:disable"] }),
        ] {
            assert!(!may_name_executable(&inspection(host.clone())), "{host}");
        }
        for host in [
            json!({ "CapAdd": ["CAP_CHECKPOINT_RESTORE"] }),
            json!({ "CapAdd": ["sys_resource"] }),
            json!({ "SecurityOpt": ["seccomp=unconfined"] }),
            json!({ "SecurityOpt": ["seccomp:unconfined"] }),
            json!({ "SecurityOpt": ["seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"] }),
            json!({ "SecurityOpt": [1] }),
            json!({ "SecurityOpt": "seccomp=unconfined" }),
        ] {
            assert!(may_name_executable(&inspection(host.clone())), "{host}");
        }
    }
}
