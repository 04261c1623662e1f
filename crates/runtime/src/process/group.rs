//! A cgroup for each host module, where the daemon may make one: what runs for the module can then be told, and ended, as
//! a whole.

use std::path::{Path, PathBuf};
use std::time::Duration;

use edgekeep_core::id::ModuleId;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::evidence::{CgroupHierarchy, ProcDir};

/// Rounds of ending what is in a group before giving up, [`ROUND`] apart.
const ROUNDS: u32 = 200;
const ROUND: Duration = Duration::from_millis(10);

/// Where module groups are made.
#[derive(Debug, Clone)]
pub struct ModuleCgroups {
    hierarchy: CgroupHierarchy,
    /// The group that holds the modules' groups, as a cgroup path.
    base: Result<String, String>,
}

impl ModuleCgroups {
    /// Makes a group `edgekeep-<instance>` below the daemon's own. `instance` keeps devices on one machine apart.
    ///
    /// Where that is not allowed, modules run without groups of their own, and [`Self::unavailable`] says why.
    #[must_use]
    pub fn below_own(hierarchy: CgroupHierarchy, instance: &str) -> Self {
        let base = (|| {
            let lines = std::fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
            let own = hierarchy.path(&lines).ok_or("the daemon has no cgroup in the hierarchy that is read")?;
            let base = format!("{}/edgekeep-{instance}", own.trim_end_matches('/'));
            // Tried once, then made when it is needed and removed when it is not.
            let folder = make(&hierarchy, &base)?;
            let _ = std::fs::remove_dir(folder);
            Ok(base)
        })();
        Self { hierarchy, base }
    }

    /// Modules run without groups of their own.
    #[must_use]
    pub fn none(hierarchy: CgroupHierarchy, why: &str) -> Self {
        Self { hierarchy, base: Err(why.to_owned()) }
    }

    /// Why modules have no groups, if they have none.
    #[must_use]
    pub fn unavailable(&self) -> Option<&str> {
        self.base.as_ref().err().map(String::as_str)
    }

    /// Puts a process into the module's group and gives the group's path; `None` if there are no groups.
    pub(super) fn join(&self, module: &ModuleId, pid: u32) -> Option<String> {
        let base = self.base.as_ref().ok()?;
        // The prefix keeps a module's name from being that of a control file.
        let path = format!("{base}/m-{}", module.name());
        let made = make(&self.hierarchy, base).and_then(|_| make(&self.hierarchy, &path));
        let joined = made.and_then(|folder| {
            std::fs::write(folder.join("cgroup.procs"), pid.to_string()).map_err(|error| error.to_string())
        });
        match joined {
            Ok(()) => Some(path),
            Err(error) => {
                tracing::warn!(%module, error, "the module runs without a cgroup of its own");
                None
            }
        }
    }

    /// Ends everything in a group and removes it.
    pub(super) async fn clear(&self, path: &str) {
        let folder = self.folder(path);
        // One write where the kernel offers it (cgroup v2, 5.14 and later); else process by process.
        let at_once = std::fs::write(folder.join("cgroup.kill"), "1").is_ok();
        for _ in 0..ROUNDS {
            let processes = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            if processes.trim().is_empty() {
                break;
            }
            if !at_once {
                processes.lines().filter_map(|line| line.parse().ok()).for_each(|pid| self.kill_in(path, pid));
            }
            tokio::time::sleep(ROUND).await;
        }
        if let Err(error) = self.remove(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(cgroup = path, %error, "the module's cgroup stays behind");
        }
    }

    /// Removes a group that nothing runs in.
    pub(super) fn remove_if_empty(&self, path: &str) {
        let _ = self.remove(path);
    }

    fn remove(&self, path: &str) -> std::io::Result<()> {
        std::fs::remove_dir(self.folder(path))?;
        if let Ok(base) = &self.base {
            // Stays while other modules have groups in it.
            let _ = std::fs::remove_dir(self.folder(base));
        }
        Ok(())
    }

    /// Ends a process, if it is the one in the group and not another that got its number meanwhile.
    fn kill_in(&self, path: &str, pid: u32) {
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(Ok(pidfd)) = process.map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty())) else { return };
        let inside = ProcDir::open_unproved(pid).and_then(|process| process.cgroup(&self.hierarchy));
        if inside.is_ok_and(|inside| inside == path) {
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    fn folder(&self, path: &str) -> PathBuf {
        Path::new(&self.hierarchy.mount_point()).join(path.trim_start_matches('/'))
    }
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
