//! A systemd scope for each host module, where systemd runs: a unit beside the daemon's
//! own, so that a restart of that one ends no module, with limits that systemd keeps.
//!
//! systemd is asked through its own `systemd-run --scope`: it puts itself into a new
//! scope and then becomes the launcher, with its process id. So the scope is there before
//! the module is, moduled is the parent, and nothing here speaks D-Bus. What came of it
//! is read back from the kernel: where the process is, and which limits are in force.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use edgekeep_core::host::{Limits, Machine, Placement, PlacementError, SLICE, ScopeUse, place};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags};

use super::limits;
use super::{Launcher, delegated};

/// Longest time that systemd may take to make a scope. Normally it takes some hundredths
/// of a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest time that `systemctl` may take.
const TOOL_LIMIT: Duration = Duration::from_secs(5);

/// Longest text of a tool's failure that is passed on.
const MAX_TEXT: u64 = 512;

/// The way in which scopes are made on this machine.
#[derive(Debug, Clone)]
pub(super) struct Scopes {
    placement: Result<Placement, PlacementError>,
    /// Folder of systemd's tools.
    tools: PathBuf,
    /// Longest time that systemd may take to make a scope.
    patience: Duration,
}

impl Scopes {
    /// No scopes.
    pub(super) fn none() -> Self {
        Self { placement: Ok(Placement::Below), tools: "/usr/bin".into(), patience: PATIENCE }
    }

    /// Looks at the machine and chooses.
    pub(super) fn choose(wanted: ScopeUse) -> Self {
        // The folder alone may have been mounted into a container, where the process ids
        // that systemd knows are others.
        let first = std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
        let systemd = Path::new("/run/systemd/system").is_dir() && first.trim() == "systemd";
        let tools = ["/usr/bin", "/bin"]
            .map(PathBuf::from)
            .into_iter()
            .find(|folder| folder.join("systemd-run").exists());
        let root = rustix::process::geteuid().is_root();
        let machine = Machine {
            systemd,
            tool: tools.is_some(),
            root,
            service: delegated::is_system_service(),
        };
        Self {
            placement: place(wanted, machine),
            tools: tools.unwrap_or("/usr/bin".into()),
            patience: PATIENCE,
        }
    }

    /// Scopes as these tools make them.
    pub(super) fn made_by(tools: PathBuf, or_below: bool, patience: Duration) -> Self {
        Self { placement: Ok(Placement::Scope { or_below }), tools, patience }
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    pub(super) fn placement(&self) -> Result<Placement, PlacementError> {
        self.placement
    }

    /// The command that becomes the launcher in a scope of this name.
    pub(super) fn command(&self, unit: &str, limits: &Limits, launcher: &Launcher) -> Command {
        let mut command = Command::new(self.tools.join("systemd-run"));
        command.args(arguments(unit, limits));
        // What `self` is, is another program here.
        let own = launcher.program.strip_prefix("/proc/self");
        let program =
            own.map(|rest| Path::new("/proc").join(std::process::id().to_string()).join(rest));
        command.arg("--").arg(program.as_ref().unwrap_or(&launcher.program)).args(&launcher.args);
        command
    }

    /// Has systemd end what is left of a scope and forget it. Blocks, for a bounded time;
    /// what fails shows when the name is used again.
    pub(super) fn discard(&self, unit: &str) {
        for verb in [&["kill", "--signal=SIGKILL"][..], &["stop"], &["reset-failed"]] {
            let mut command = Command::new(self.tools.join("systemctl"));
            command.args(verb).args(["--quiet", "--no-ask-password", unit]).env_clear();
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            match command.spawn() {
                Ok(child) => wait_or_kill(child, TOOL_LIMIT),
                Err(error) => tracing::debug!(%error, "systemctl cannot be run"),
            }
        }
    }
}

/// Returns the arguments for `systemd-run`.
fn arguments(unit: &str, limits: &Limits) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = ["--scope", "--quiet", "--collect", "--no-ask-password"]
        .into_iter()
        .map(Into::into)
        .collect();
    arguments.push(format!("--unit={unit}").into());
    arguments.push(format!("--slice={SLICE}").into());
    arguments.push("--description=edgekeep host module".into());
    // On cgroup v1 a scope has a group in a controller's hierarchy only if something is
    // counted there.
    let counted = ["TasksAccounting=yes".to_owned(), "MemoryAccounting=yes".to_owned()];
    for property in counted.into_iter().chain(limits::properties(limits)) {
        arguments.push("-p".into());
        arguments.push(property.into());
    }
    arguments
}

/// Reads the message with which a tool failed, and puts it on one line.
pub(super) fn complaint(said: &mut impl std::io::Read) -> String {
    let mut text = Vec::new();
    let _ = said.take(MAX_TEXT).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect();
    if words.is_empty() { "systemd-run ended without a word".to_owned() } else { words.join(" ") }
}

/// The part of a cgroup path up to the scope.
pub(super) fn scope_path<'a>(path: &'a str, unit: &str) -> Option<&'a str> {
    let at = path.find(&format!("/{unit}"))? + 1 + unit.len();
    let whole = path[at..].is_empty() || path[at..].starts_with('/');
    whole.then_some(&path[..at])
}

fn wait_or_kill(mut child: Child, limit: Duration) {
    let ended = Pid::from_raw(i32::try_from(child.id()).unwrap_or_default())
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
        .is_some_and(|pidfd| {
            let limit = Timespec::try_from(limit).ok();
            poll(&mut [PollFd::new(&pidfd.as_fd(), PollFlags::IN)], limit.as_ref())
                .is_ok_and(|ready| ready > 0)
        });
    if !ended {
        let _ = child.kill();
    }
    let _ = child.wait();
}

/// A pipe for what a tool says.
pub(super) fn ear() -> std::io::Result<(File, Stdio)> {
    let (ours, theirs) = std::io::pipe()?;
    Ok((File::from(std::os::fd::OwnedFd::from(ours)), Stdio::from(theirs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_asked_for_with_its_limits_and_the_launcher_by_the_daemons_own_number() {
        let limits = Limits {
            memory_max: Some(1 << 20),
            cpu_quota: Some(150),
            pids_max: Some(7),
            ..Limits::default()
        };
        let scopes = Scopes::made_by("/opt/tools".into(), true, PATIENCE);
        let command = scopes.command("edgekeep-m-a.scope", &limits, &Launcher::this_program());
        assert_eq!(command.get_program(), "/opt/tools/systemd-run");
        let arguments: Vec<&str> =
            command.get_args().map(|argument| argument.to_str().expect("text")).collect();
        let line = arguments.join(" ");
        for part in [
            "--unit=edgekeep-m-a.scope --slice=edgekeep.slice",
            "-p MemoryMax=1048576 -p MemorySwapMax=0",
            "-p CPUQuota=150%",
            "-p TasksMax=7",
        ] {
            assert!(line.contains(part), "{line}");
        }
        let end = format!("-- /proc/{}/exe exec-module", std::process::id());
        assert!(line.ends_with(&end), "{line}");
        let other = Launcher { program: "/opt/launcher".into(), args: Vec::new() };
        let command = scopes.command("x", &Limits::default(), &other);
        assert_eq!(command.get_args().last().expect("some"), "/opt/launcher");
        assert!(
            !command.get_args().any(|argument| argument.to_string_lossy().contains("Max")),
            "no limit, no property"
        );
    }

    #[test]
    fn a_scopes_path_ends_with_the_whole_name_of_the_unit() {
        for (path, expected) in [
            ("/edgekeep.slice/edgekeep-m-a.scope", Some("/edgekeep.slice/edgekeep-m-a.scope")),
            ("/edgekeep.slice/edgekeep-m-a.scope/x/y", Some("/edgekeep.slice/edgekeep-m-a.scope")),
            ("/edgekeep.slice/edgekeep-m-a.scope2", None),
            ("/edgekeep.slice/xedgekeep-m-a.scope", None),
            ("/edgekeep.slice", None),
            ("/", None),
        ] {
            assert_eq!(scope_path(path, "edgekeep-m-a.scope"), expected, "{path}");
        }
    }

    #[test]
    fn a_complaint_is_one_bounded_line() {
        assert_eq!(
            complaint(&mut &b"Failed to start:\n\tAccess \x1b[31mdenied\n"[..]),
            "Failed to start: Access [31mdenied"
        );
        assert!(complaint(&mut &[b'x'; 10_000][..]).len() <= 512);
        assert_eq!(complaint(&mut &b""[..]), "systemd-run ended without a word");
    }

    #[test]
    fn a_tool_that_hangs_is_ended() {
        let child = Command::new("/bin/sleep").arg("1000").spawn().expect("started");
        let pid = child.id();
        wait_or_kill(child, Duration::from_millis(1));
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
