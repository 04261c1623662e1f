//! Choice of the cgroup path that counts, and of the container that the path names.

use edgekeep_core::id::ContainerId;

/// `statfs` type of the unified hierarchy.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// The hierarchy in which the engine places containers: the line of `/proc/PID/cgroup`
/// that is read.
///
/// Where `/sys/fs/cgroup` is the unified hierarchy there is one line, `0::PATH`. On older
/// and hybrid set-ups engines place containers in every v1 hierarchy, while `0::` may
/// stay at the root. There the hierarchy is chosen that ordinary users cannot write to:
/// `pids`, else `memory`, else `devices`, else systemd's own (`name=systemd`), which may
/// be delegated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupHierarchy {
    /// cgroup v2.
    Unified,
    /// A v1 hierarchy, by its controller or `name=...`.
    V1(&'static str),
}

impl CgroupHierarchy {
    /// Looks at this machine. Done once at start: the answer does not change while it
    /// runs.
    #[must_use]
    pub fn detect() -> Self {
        let unified = rustix::fs::statfs("/sys/fs/cgroup")
            .is_ok_and(|stat| stat.f_type as u64 == CGROUP2_MAGIC);
        Self::choose(unified, &std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
    }

    fn choose(unified: bool, own_lines: &str) -> Self {
        if unified {
            return Self::Unified;
        }
        ["pids", "memory", "devices", "name=systemd"]
            .into_iter()
            .map(Self::V1)
            .find(|hierarchy| hierarchy.path(own_lines).is_some())
            .unwrap_or(Self::Unified)
    }

    /// This hierarchy's path in the text of a `/proc/PID/cgroup`.
    #[must_use]
    pub fn path<'a>(&self, lines: &'a str) -> Option<&'a str> {
        lines.lines().find_map(|line| {
            // The path is the rest of the line: a group's name may hold colons.
            let mut parts = line.splitn(3, ':');
            let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let wanted = match self {
                Self::Unified => number == "0" && controllers.is_empty(),
                Self::V1(controller) => controllers.split(',').any(|name| name == *controller),
            };
            wanted.then_some(path)
        })
    }

    /// Returns the conventional mount point of this hierarchy.
    #[must_use]
    pub fn mount_point(&self) -> String {
        match self {
            Self::Unified => "/sys/fs/cgroup".to_owned(),
            Self::V1(controller) => {
                format!("/sys/fs/cgroup/{}", controller.strip_prefix("name=").unwrap_or(controller))
            }
        }
    }
}

/// One form of cgroup path that an engine gives its containers: what stands before and
/// after the id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerCgroup {
    /// The path up to the id, from the root of the hierarchy.
    pub before: String,
    /// Rest of the path component after the id.
    pub after: String,
}

/// The forms that are believed. The id is taken from the engine's own place in the tree
/// only: a group elsewhere that is merely *named* like a container proves nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerCgroups(Vec<ContainerCgroup>);

impl Default for ContainerCgroups {
    /// Docker and Podman as they come, with the cgroupfs and the systemd driver.
    fn default() -> Self {
        let form = |before: &str, after: &str| ContainerCgroup {
            before: before.into(),
            after: after.into(),
        };
        Self(vec![
            form("/docker/", ""),
            form("/system.slice/docker-", ".scope"),
            form("/libpod_parent/libpod-", ""),
            form("/machine.slice/libpod-", ".scope"),
        ])
    }
}

impl ContainerCgroups {
    /// Other forms, for an engine with an own `cgroup-parent`.
    #[must_use]
    pub fn new(forms: Vec<ContainerCgroup>) -> Self {
        Self(forms)
    }

    /// The container whose group `path` is, or lies in.
    #[must_use]
    pub fn container_id(&self, path: &str) -> Option<ContainerId> {
        self.0.iter().find_map(|form| {
            let rest = path.strip_prefix(form.before.as_str())?;
            let (id, rest) = rest.split_at_checked(64)?;
            let below = rest.strip_prefix(form.after.as_str())?;
            let whole_component = below.is_empty() || below.starts_with('/');
            let plain = below.split('/').all(|part| part != "..");
            (whole_component && plain).then(|| id.parse().ok()).flatten()
        })
    }
}

/// The part of `path` up to and with the component that names `container`: the
/// container's own group, also when its first process has moved itself into a group
/// below.
pub(crate) fn container_group<'a>(path: &'a str, container: &ContainerId) -> Option<&'a str> {
    let at = path.find(container.as_str())?;
    let end = at + container.as_str().len();
    let end = path[end..].find('/').map_or(path.len(), |slash| end + slash);
    let component = path[..end].rsplit('/').next()?;
    let tail = component.strip_suffix(".scope").unwrap_or(component);
    let own = tail.strip_suffix(container.as_str())?;
    (own.is_empty() || own.ends_with('-')).then_some(&path[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HYBRID: &str = "9:name=systemd:/a\n8:pids:/b\n4:cpu,memory:/c:d\n0::/e\n";

    fn id(c: char) -> ContainerId {
        c.to_string().repeat(64).parse().expect("64 digits")
    }

    #[test]
    fn on_a_hybrid_host_the_pids_hierarchy_is_read_and_on_a_unified_one_the_only_line() {
        assert_eq!(CgroupHierarchy::choose(false, HYBRID), CgroupHierarchy::V1("pids"));
        assert_eq!(CgroupHierarchy::choose(true, "0::/e\n"), CgroupHierarchy::Unified);
        assert_eq!(
            CgroupHierarchy::choose(false, "1:name=systemd:/\n0::/\n"),
            CgroupHierarchy::V1("name=systemd")
        );
        assert_eq!(CgroupHierarchy::V1("pids").path(HYBRID), Some("/b"));
        assert_eq!(
            CgroupHierarchy::V1("memory").path(HYBRID),
            Some("/c:d"),
            "a colon belongs to the path"
        );
        assert_eq!(CgroupHierarchy::Unified.path(HYBRID), Some("/e"));
        assert_eq!(CgroupHierarchy::V1("freezer").path(HYBRID), None);
    }

    #[test]
    fn the_engines_own_paths_name_their_container() {
        let known = ContainerCgroups::default();
        let a = id('a');
        for path in [
            format!("/docker/{a}"),
            format!("/docker/{a}/init.scope"),
            format!("/system.slice/docker-{a}.scope"),
            format!("/system.slice/docker-{a}.scope/x/y"),
            format!("/libpod_parent/libpod-{a}"),
            format!("/machine.slice/libpod-{a}.scope/container"),
        ] {
            assert_eq!(known.container_id(&path), Some(a.clone()), "{path}");
        }
    }

    #[test]
    fn a_group_that_is_only_named_like_a_container_names_none() {
        let known = ContainerCgroups::default();
        let a = id('a');
        for path in [
            format!("/{a}"),
            format!("/user.slice/docker/{a}"),
            format!("/docker/{a}b"),
            format!("/docker/{a}.scope"),
            format!("/docker/{a} (deleted)"),
            format!("/docker/{a}/../{}", id('b')),
            format!("/docker/x{a}"),
            format!("/system.slice/docker-{a}"),
            format!("/../docker/{a}"),
            format!("/docker/{}", "A".repeat(64)),
            format!("/docker/{}é", "a".repeat(63)),
        ] {
            assert_eq!(known.container_id(&path), None, "{path}");
        }
    }

    #[test]
    fn a_group_made_inside_a_container_still_names_the_outer_one() {
        let path = format!("/docker/{}/docker/{}", id('a'), id('b'));
        assert_eq!(ContainerCgroups::default().container_id(&path), Some(id('a')));
    }

    #[test]
    fn a_containers_group_ends_with_the_component_that_names_it() {
        let a = id('a');
        for (path, group) in [
            (format!("/docker/{a}/init.scope"), Some(format!("/docker/{a}"))),
            (
                format!("/machine.slice/libpod-{a}.scope/container"),
                Some(format!("/machine.slice/libpod-{a}.scope")),
            ),
            (format!("/custom/{a}"), Some(format!("/custom/{a}"))),
            (format!("/custom/{a}b/x"), None),
            (format!("/custom/b{a}"), None),
            ("/".to_owned(), None),
        ] {
            assert_eq!(container_group(&path, &a), group.as_deref(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_path_names_a_container_only_below_a_known_parent(path in "(/|docker|-|\\.scope|[0-9a-f]{64}|libpod_parent|\\.\\.|x){0,8}") {
            if let Some(container) = ContainerCgroups::default().container_id(&path) {
                let at = path.find(container.as_str()).expect("id is in the path");
                prop_assert!(["/docker/", "/system.slice/docker-", "/libpod_parent/libpod-", "/machine.slice/libpod-"]
                    .contains(&&path[..at]), "{path}");
            }
        }
    }
}
