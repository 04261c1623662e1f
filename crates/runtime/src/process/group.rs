//! A cgroup for each host module, where the daemon may make one: what runs for the module
//! can then be told, and ended, as a whole, also after its first process ended and others
//! of it live on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use edgekeep_core::host::{Placement, ScopeUse, scope_name};
use edgekeep_core::id::ModuleId;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::delegated;
use super::scope::{Scopes, scope_path};
use crate::evidence::{CgroupHierarchy, ProcDir};

/// Rounds of ending what is in a group before giving up, [`ROUND`] apart.
const ROUNDS: u32 = 200;
const ROUND: Duration = Duration::from_millis(10);

/// Number of levels below a module's group that are searched for processes. A privileged
/// module may make groups of its own.
const DEPTH: u32 = 16;

/// Name of a module's group. The prefix keeps a module's name from being that of a
/// control file.
fn group_name(module: &ModuleId) -> String {
    format!("m-{}", module.name())
}

/// A group in which a controller's limits can be set.
#[derive(Debug)]
pub(super) struct LimitGroup {
    pub(super) folder: PathBuf,
    pub(super) unified: bool,
    /// True if the group only keeps limits, and another group tells which processes are
    /// the module's.
    pub(super) for_limits_alone: bool,
}

/// The place at which module groups are made.
#[derive(Debug, Clone)]
pub struct ModuleCgroups {
    hierarchy: CgroupHierarchy,
    instance: String,
    /// The group that holds the modules' groups, as a cgroup path.
    base: Result<String, String>,
    scopes: Scopes,
    /// The part of the scopes' names that keeps devices apart.
    scope_instance: Option<String>,
}

impl ModuleCgroups {
    /// Makes a group `edgekeep-<instance>` below the daemon's own. `instance` keeps
    /// devices on one machine apart.
    ///
    /// Where that is not allowed, modules run without groups of their own, and
    /// [`Self::unavailable`] says why.
    #[must_use]
    pub fn below_own(hierarchy: CgroupHierarchy, instance: &str) -> Self {
        delegated::make_room(&hierarchy);
        let base = (|| {
            let base = base_in(&hierarchy, instance)?;
            // Tried once, then made when it is needed and removed when it is not.
            let folder = make(&hierarchy, &base)?;
            let _ = std::fs::remove_dir(folder);
            Ok(base)
        })();
        Self {
            hierarchy,
            instance: instance.to_owned(),
            base,
            scopes: Scopes::none(),
            scope_instance: None,
        }
    }

    /// Does the same as [`Self::below_own`], and puts modules into scopes where systemd
    /// runs, as `wanted` says. Only the scopes of the first device on a machine have
    /// names without the `instance`.
    #[must_use]
    pub fn in_scopes(mut self, wanted: ScopeUse, first: bool) -> Self {
        self.scopes = Scopes::choose(wanted);
        self.scope_instance = (!first).then(|| self.instance.clone());
        self
    }

    /// Makes no groups: modules run without groups of their own.
    #[must_use]
    pub fn none(hierarchy: CgroupHierarchy, why: &str) -> Self {
        Self {
            hierarchy,
            instance: String::new(),
            base: Err(why.to_owned()),
            scopes: Scopes::none(),
            scope_instance: None,
        }
    }

    /// Does the same as [`Self::in_scopes`] where systemd runs, with the tools in another
    /// folder: for tests of a systemd that refuses, hangs or does something else than it
    /// was asked for.
    #[must_use]
    pub fn in_scopes_made_by(mut self, tools: PathBuf, or_below: bool, patience: Duration) -> Self {
        self.scopes = Scopes::made_by(tools, or_below, patience);
        self.scope_instance = Some(self.instance.clone());
        self
    }

    pub(super) fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// The name of a module's scope.
    pub(super) fn unit(&self, module: &ModuleId) -> String {
        scope_name(self.scope_instance.as_deref(), module)
    }

    /// Returns true if a former group of the module is the module's scope, perhaps of a
    /// daemon of another instance. systemd makes and removes scopes.
    pub(super) fn is_scope(&self, module: &ModuleId, path: &str) -> bool {
        let unit = last_of(path).strip_prefix("edgekeep-");
        unit.is_some_and(|unit| unit.ends_with(&format!("m-{}.scope", module.name())))
    }

    /// Returns true if a path looks like a group of the module: one that was made here or
    /// by an earlier daemon, or the module's scope.
    pub(super) fn is_modules(&self, module: &ModuleId, path: &str) -> bool {
        last_of(path) == group_name(module) || self.is_scope(module, path)
    }

    /// Returns true if a process is in a group of the module, or below one.
    pub(super) fn holds(&self, module: &ModuleId, pid: u32) -> bool {
        let path = ProcDir::open_unproved(pid).and_then(|process| process.cgroup(&self.hierarchy));
        path.is_ok_and(|path| {
            let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
            ends.into_iter().any(|end| self.is_modules(module, &path[..end]))
        })
    }

    /// The scope in which a process is, as the kernel has it.
    pub(super) fn scope_path(&self, module: &ModuleId, pid: u32) -> Result<String, String> {
        self.scope_in(&self.hierarchy, module, pid)
    }

    fn scope_in(
        &self,
        hierarchy: &CgroupHierarchy,
        module: &ModuleId,
        pid: u32,
    ) -> Result<String, String> {
        let path = ProcDir::open_unproved(pid).and_then(|process| process.cgroup(hierarchy));
        let path = path.map_err(|error| error.to_string())?;
        let scope = scope_path(&path, &self.unit(module)).map(str::to_owned);
        scope.ok_or_else(|| {
            format!("systemd made one, but the module is in {path} of {}", hierarchy.mount_point())
        })
    }

    /// The group of a module's scope in the hierarchy of a controller.
    pub(super) fn scope_with_controller(
        &self,
        module: &ModuleId,
        pid: u32,
        controller: &'static str,
    ) -> Result<LimitGroup, String> {
        let unified = self.hierarchy == CgroupHierarchy::Unified;
        let hierarchy =
            if unified { CgroupHierarchy::Unified } else { CgroupHierarchy::V1(controller) };
        let path = self.scope_in(&hierarchy, module, pid)?;
        let folder = Path::new(&hierarchy.mount_point()).join(path.trim_start_matches('/'));
        Ok(LimitGroup { folder, unified, for_limits_alone: false })
    }

    /// The module's group in the hierarchy of a controller, made if it is not there.
    pub(super) fn with_controller(
        &self,
        module: &ModuleId,
        controller: &'static str,
    ) -> Result<LimitGroup, String> {
        let base = self.base.as_ref().map_err(Clone::clone)?;
        let name = group_name(module);
        if self.hierarchy == CgroupHierarchy::Unified {
            let own = base.rsplit_once('/').map_or("", |(own, _)| own);
            make(&self.hierarchy, base)?;
            // A controller reaches a group only if each one above hands it on.
            for above in [own, base] {
                let control = self.folder(above).join("cgroup.subtree_control");
                std::fs::write(&control, format!("+{controller}")).map_err(|error| {
                    format!(
                        "cannot enable the {controller} controller in {}: {error}; run the daemon as a systemd service \
                         with Delegate=yes and DelegateSubgroup={DAEMON_GROUP}",
                        control.display()
                    )
                })?;
            }
            let folder = make(&self.hierarchy, &format!("{base}/{name}"))?;
            return Ok(LimitGroup { folder, unified: true, for_limits_alone: false });
        }
        let hierarchy = CgroupHierarchy::V1(controller);
        let base = base_in(&hierarchy, &self.instance)?;
        make(&hierarchy, &base)?;
        let folder = make(&hierarchy, &format!("{base}/{name}"))?;
        Ok(LimitGroup { folder, unified: false, for_limits_alone: hierarchy != self.hierarchy })
    }

    /// Removes the groups that were made for a module's limits alone, if nothing runs in
    /// them.
    pub(super) fn remove_limit_groups(&self, module: &ModuleId, groups: &[PathBuf]) {
        let name = group_name(module);
        // What was read from disk must at least look like a module's group; only an empty
        // group can be removed.
        for group in groups
            .iter()
            .filter(|group| group.ends_with(&name) && group.starts_with("/sys/fs/cgroup"))
        {
            if std::fs::remove_dir(group).is_ok()
                && let Some(base) = group.parent()
            {
                // Stays while other modules have groups in it.
                let _ = std::fs::remove_dir(base);
            }
        }
    }

    /// Returns the reason why modules have no groups; `None` if they have groups.
    #[must_use]
    pub fn unavailable(&self) -> Option<&str> {
        if matches!(self.scopes.placement(), Ok(Placement::Scope { .. })) {
            return None;
        }
        self.base.as_ref().err().map(String::as_str)
    }

    /// Puts a process into the module's group and gives the group's path; `None` if there
    /// are no groups.
    pub(super) fn join(&self, module: &ModuleId, pid: u32) -> Option<String> {
        let base = self.base.as_ref().ok()?;
        let path = format!("{base}/{}", group_name(module));
        let make_both = || make(&self.hierarchy, base).and_then(|_| make(&self.hierarchy, &path));
        // Between the two, the end of another module may remove the base, for want of
        // groups in it.
        let made = make_both().or_else(|_| make_both()).or_else(|_| make_both());
        let joined = made.and_then(|folder| {
            std::fs::write(folder.join("cgroup.procs"), pid.to_string())
                .map_err(|error| error.to_string())
        });
        match joined {
            Ok(()) => Some(path),
            Err(error) => {
                tracing::warn!(%module, error, "the module runs without a cgroup of its own");
                None
            }
        }
    }

    /// Ends everything in the module's group and removes it; also in `former`, the group
    /// that an earlier daemon, perhaps at another place in the tree, had made for it.
    /// Whether both are empty by now.
    pub(super) async fn clear(&self, module: &ModuleId, former: Option<&str>) -> bool {
        let name = group_name(module);
        let own = self.base.as_ref().ok().map(|base| format!("{base}/{name}"));
        // What was read from disk must at least look like a module's group before all in
        // it is killed.
        let former = former.filter(|former| self.is_modules(module, former));
        let former = former.filter(|former| own.as_deref() != Some(*former));
        let mut cleared = true;
        for path in own.as_deref().into_iter().chain(former) {
            cleared &= self.clear_path(module, path).await;
        }
        cleared
    }

    async fn clear_path(&self, module: &ModuleId, path: &str) -> bool {
        let folder = self.folder(path);
        if !folder.exists() {
            return true;
        }
        let mut empty = false;
        for _ in 0..ROUNDS {
            let processes = processes_below(&folder, DEPTH);
            empty = processes.is_empty();
            if empty {
                break;
            }
            // One write where the kernel offers it (cgroup v2, 5.14 and later); else
            // process by process.
            if std::fs::write(folder.join("cgroup.kill"), "1").is_err() {
                processes.into_iter().for_each(|pid| self.kill_in(path, pid));
            }
            tokio::time::sleep(ROUND).await;
        }
        if self.is_scope(module, path) {
            self.forget_scope(last_of(path), &folder).await;
        } else if let Err(error) = self.remove(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(cgroup = path, %error, "the module's cgroup stays behind");
        }
        empty
    }

    /// Waits until systemd has noticed that nothing runs in a scope, or makes it take
    /// note.
    async fn forget_scope(&self, unit: &str, folder: &Path) {
        for _ in 0..ROUNDS / 4 {
            if !folder.exists() {
                return;
            }
            tokio::time::sleep(ROUND).await;
        }
        let (scopes, unit) = (self.scopes.clone(), unit.to_owned());
        let _ = tokio::task::spawn_blocking(move || scopes.discard(&unit)).await;
    }

    /// Removes a group that nothing runs in.
    pub(super) fn remove_if_empty(&self, path: &str) {
        let _ = self.remove(path);
    }

    fn remove(&self, path: &str) -> std::io::Result<()> {
        remove_groups(&self.folder(path), DEPTH)?;
        if let Some((base, _)) = path.rsplit_once('/') {
            // Stays while other modules have groups in it.
            let _ = std::fs::remove_dir(self.folder(base));
        }
        Ok(())
    }

    /// Ends a process, if it is the one in the group and not another that got its number
    /// meanwhile.
    fn kill_in(&self, path: &str, pid: u32) {
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(Ok(pidfd)) =
            process.map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()))
        else {
            return;
        };
        let inside =
            ProcDir::open_unproved(pid).and_then(|process| process.cgroup(&self.hierarchy));
        let inside = inside.ok().and_then(|inside| inside.strip_prefix(path).map(str::to_owned));
        if inside.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    fn folder(&self, path: &str) -> PathBuf {
        Path::new(&self.hierarchy.mount_point()).join(path.trim_start_matches('/'))
    }
}

/// The daemon's own group inside of what systemd delegates to it, for on cgroup v2 a
/// group with processes has no others with controllers below it.
pub(super) const DAEMON_GROUP: &str = "daemon";

fn last_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, last)| last)
}

/// The path of the group that holds the modules' groups in a hierarchy: below the
/// daemon's own, or beside it where that was made for the purpose.
fn base_in(hierarchy: &CgroupHierarchy, instance: &str) -> Result<String, String> {
    let lines = std::fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
    let own =
        hierarchy.path(&lines).ok_or("the daemon has no cgroup in the hierarchy that is read")?;
    Ok(base_below(own, instance))
}

fn base_below(own: &str, instance: &str) -> String {
    let own = own.trim_end_matches('/');
    let service = own.strip_suffix(DAEMON_GROUP).and_then(|own| own.strip_suffix('/'));
    let delegated = service.filter(|service| service.ends_with(".service"));
    format!("{}/edgekeep-{instance}", delegated.unwrap_or(own))
}

/// The processes in a group and the groups below it.
fn processes_below(folder: &Path, depth: u32) -> Vec<u32> {
    let processes = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let mut processes: Vec<u32> = processes.lines().filter_map(|line| line.parse().ok()).collect();
    for below in groups_below(folder, depth) {
        processes.extend(processes_below(&below, depth - 1));
    }
    processes
}

/// Removes a group and the groups below it, none of which may have processes.
fn remove_groups(folder: &Path, depth: u32) -> std::io::Result<()> {
    for below in groups_below(folder, depth) {
        remove_groups(&below, depth - 1)?;
    }
    std::fs::remove_dir(folder)
}

fn groups_below(folder: &Path, depth: u32) -> Vec<PathBuf> {
    if depth == 0 {
        return Vec::new();
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn make(hierarchy: &CgroupHierarchy, path: &str) -> Result<PathBuf, String> {
    let mount = hierarchy.mount_point();
    // Without this check a group would be made in an ordinary folder.
    if !Path::new(&mount).join("cgroup.procs").exists() {
        return Err(format!("no cgroup hierarchy is mounted at {mount}"));
    }
    let folder = Path::new(&mount).join(path.trim_start_matches('/'));
    match std::fs::create_dir(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(format!("cannot make {}: {error}", folder.display()))
        }
        _ => Ok(folder),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_made_below_the_daemons_own_or_beside_it_where_it_is_delegated() {
        for (own, base) in [
            ("/", "/edgekeep-x"),
            (
                "/system.slice/edgekeep-moduled.service",
                "/system.slice/edgekeep-moduled.service/edgekeep-x",
            ),
            (
                "/system.slice/edgekeep-moduled.service/daemon",
                "/system.slice/edgekeep-moduled.service/edgekeep-x",
            ),
            ("/a/daemon", "/a/daemon/edgekeep-x"),
        ] {
            assert_eq!(base_below(own, "x"), base, "{own}");
        }
    }
}
