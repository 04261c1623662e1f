//! The daemons as child processes, and the ending of whatever a device started.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::http;
use crate::programs::program;
use crate::wait::wait_for;

/// One daemon.
#[derive(Debug)]
pub(crate) struct Process {
    daemon: Daemon,
    child: Child,
    log: PathBuf,
    /// Length of the log when the daemon was started, in bytes: an earlier one wrote
    /// that.
    logged_before: usize,
}

impl Process {
    /// Starts a daemon; it does not answer yet.
    pub(crate) fn start(
        daemon: Daemon,
        root: &Root,
        log: PathBuf,
        variables: &[(String, String)],
    ) -> Self {
        let mut command = Command::new(program(&format!("edgekeep-{}", daemon.name())));
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .expect("the log can be written");
        let logged_before = std::fs::metadata(&log)
            .map_or(0, |metadata| usize::try_from(metadata.len()).unwrap_or(0));
        command.env_clear().env(ROOT_VARIABLE, root.path()).env("EDGEKEEP_LOG", log_level());
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(variables.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", daemon.name()));
        Self { daemon, child, log, logged_before }
    }

    /// Waits until all its sockets answer.
    pub(crate) fn wait_until_it_answers(&mut self, root: &Root) {
        let sockets = match self.daemon {
            Daemon::Keyd => vec![root.keyd_socket()],
            Daemon::Identityd => vec![root.identityd_socket(), root.certd_socket()],
            Daemon::Moduled => vec![root.management_socket(), root.legacy_workload_socket()],
        };
        for socket in sockets {
            wait_for(&format!("{} answers at {}", self.daemon.name(), socket.display()), || {
                if let Ok(Some(status)) = self.child.try_wait() {
                    panic!("{} ended with {status}:\n{}", self.daemon.name(), tail(&self.log, 40));
                }
                http::call(&socket, "GET", "/", None).is_ok().then_some(())
            });
        }
        if self.daemon == Daemon::Moduled {
            // Each module has its socket then, as the service manager is told.
            wait_for("moduled serves", || self.says("moduled serves").then_some(()));
        }
    }

    /// Returns whether the daemon has logged these words since it was started.
    fn says(&self, words: &str) -> bool {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(log.get(self.logged_before..).unwrap_or_default()).contains(words)
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it as the service manager would.
    pub(crate) fn stop(mut self) -> ExitStatus {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, Signal::TERM).expect("a child can be signalled");
        wait_for(&format!("{} stops", self.daemon.name()), || self.child.try_wait().ok().flatten())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the exit status of the process, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Processes whose environment names something in `root`, and in which `also` stands, if
/// given. Such a process was started for that device: its folder's name is unique.
pub(crate) fn processes_of(root: &Path, also: Option<&str>) -> Vec<u32> {
    let root = root.display().to_string();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let mut entries = environment.split(|byte| *byte == 0).map(String::from_utf8_lossy);
            let named = entries.clone().any(|entry| entry.contains(&root));
            named && also.is_none_or(|also| entries.any(|entry| entry == also))
        })
        .collect()
}

/// Ends every process of a device, and removes the control groups that were made for
/// them.
pub(crate) fn end_all(root: &Path) {
    let mut groups = BTreeSet::new();
    // Twice: a process may have started another meanwhile.
    for _ in 0..2 {
        for pid in processes_of(root, None) {
            groups.extend(groups_of(pid));
            let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
            let Ok(pidfd) = rustix::process::pidfd_open(number, PidfdFlags::empty()) else {
                continue;
            };
            // The number may have become another process's since; the handle cannot.
            if processes_of(root, None).contains(&pid) {
                let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
    }
    // The groups of modules that ended by themselves lie beside those of the others.
    let parents: BTreeSet<PathBuf> =
        groups.iter().filter_map(|group| group.parent().map(Path::to_owned)).collect();
    for parent in &parents {
        let beside =
            std::fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
        groups.extend(beside.filter(|path| path.is_dir()));
    }
    for folder in groups.iter().chain(&parents) {
        for _ in 0..200 {
            match std::fs::remove_dir(folder) {
                // The kernel is still busy ending what was in it.
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                    std::thread::park_timeout(std::time::Duration::from_millis(5));
                }
                _ => break,
            }
        }
    }
}

/// The folders of the control groups of a process that moduled made.
fn groups_of(pid: u32) -> Vec<PathBuf> {
    let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mount_points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
            kind.starts_with("cgroup").then_some(point)
        })
        .collect();
    let made = |path: &str| path.split('/').any(|part| part.starts_with("edgekeep-"));
    lines
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .filter(|path| made(path))
        .flat_map(|path| {
            mount_points
                .iter()
                .map(move |point| Path::new(point).join(path.trim_start_matches('/')))
        })
        .filter(|folder| folder.exists())
        .collect()
}

/// `EDGEKEEP_TEST_LOG` for whoever looks for a fault.
fn log_level() -> String {
    std::env::var("EDGEKEEP_TEST_LOG").unwrap_or_else(|_| "info".to_owned())
}
