//! A launcher that waits for its start message, in the group that its module is told by
//! and within the module's limits.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use edgekeep_core::attestation::ProcessInstance;
use edgekeep_core::host::Placement;
use edgekeep_core::id::ModuleId;
use rustix::process::{Pid, PidfdFlags};

use super::group::ModuleCgroups;
use super::launcher;
use super::limits::{self, Applied, Keeper};
use super::program::SealedProgram;
use super::scope::{complaint, ear};
use super::{Launcher, ProcessError, ProcessSpec};
use crate::evidence::ProcDir;

/// Longest time that the launcher may take to start, and to become the module.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Number of attempts to make a scope while the remains of an earlier scope are in the
/// way.
const TRIES: u32 = 3;
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// A launcher that waits for its start message.
pub(super) struct Prepared {
    pub(super) program: SealedProgram,
    pub(super) control: UnixStream,
    /// The module's own, where the launcher's may be another.
    pub(super) stderr: OwnedFd,
    pub(super) process: ProcessInstance,
    pub(super) pidfd: OwnedFd,
    pub(super) cgroup: Option<String>,
    pub(super) limits: Applied,
}

/// The inputs of a start.
pub(super) struct Start<'a> {
    pub(super) id: &'a ModuleId,
    /// The module's standard output and standard error.
    pub(super) ends: [OwnedFd; 2],
    pub(super) spec: &'a ProcessSpec,
    pub(super) launcher: &'a Launcher,
    pub(super) cgroups: &'a ModuleCgroups,
}

impl Start<'_> {
    /// Starts the launcher where the machine and the settings put it. Blocks.
    pub(super) fn prepare(&self, program: SealedProgram) -> Result<Prepared, ProcessError> {
        let no_scope = |why: String| ProcessError::Scope { module: self.id.clone(), why };
        match self.cgroups.scopes().placement() {
            Ok(Placement::Below) => self.below(program, None),
            Ok(Placement::Scope { or_below }) => match self.in_scope() {
                Ok(launched) => self.bounded(program, launched, None),
                Err(why) if or_below => {
                    tracing::warn!(module = %self.id, why, "no systemd scope; the module is started below the daemon's own group");
                    self.below(program, Some(format!("no systemd unit of its own ({why})")))
                }
                Err(why) => Err(no_scope(why)),
            },
            Err(why) => Err(no_scope(why.to_string())),
        }
    }

    fn below(
        &self,
        program: SealedProgram,
        note: Option<String>,
    ) -> Result<Prepared, ProcessError> {
        let failed = |source| ProcessError::Start { module: self.id.clone(), source };
        let mut command = Command::new(&self.launcher.program);
        command.args(&self.launcher.args);
        let mut launched = Launched::spawn(command, &self.ends, None).map_err(failed)?;
        launcher::wait_until_ready(&launched.control).map_err(failed)?;
        launched.cgroup = self.cgroups.join(self.id, launched.process.pid);
        self.bounded(program, launched, note)
    }

    /// Starts the launcher in a scope of its own. What is left of a scope of an earlier
    /// run is ended.
    fn in_scope(&self) -> Result<Launched, String> {
        let unit = self.cgroups.unit(self.id);
        let mut left = TRIES;
        loop {
            left -= 1;
            let command =
                self.cgroups.scopes().command(&unit, &self.spec.plan.limits, self.launcher);
            let (mut ours, theirs) = ear().map_err(|error| error.to_string())?;
            let mut launched = Launched::spawn(command, &self.ends, Some(theirs))
                .map_err(|error| format!("systemd-run: {error}"))?;
            launched
                .patience(self.cgroups.scopes().patience())
                .map_err(|error| error.to_string())?;
            match launcher::wait_until_ready(&launched.control) {
                Ok(()) => {
                    launched.patience(START_LIMIT).map_err(|error| error.to_string())?;
                    launched.cgroup = Some(self.cgroups.scope_path(self.id, launched.process.pid)?);
                    return Ok(launched);
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    drop(launched);
                    let why = complaint(&mut ours);
                    if left == 0 {
                        return Err(why);
                    }
                    tracing::debug!(module = %self.id, why, "asked again for a scope");
                    self.cgroups.scopes().discard(&unit);
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "systemd does not tell when it has unloaded a unit"
                    )]
                    std::thread::sleep(TRY_AGAIN);
                }
                // The launcher ends with `launched`, so what systemd may still make of it
                // is empty.
                Err(_) => return Err("systemd did not answer in time".to_owned()),
            }
        }
    }

    /// Sets the limits, or sees to it that systemd has.
    fn bounded(
        &self,
        program: SealedProgram,
        mut launched: Launched,
        note: Option<String>,
    ) -> Result<Prepared, ProcessError> {
        let pid = launched.pid;
        let in_scope =
            launched.cgroup.as_deref().is_some_and(|path| self.cgroups.is_scope(self.id, path));
        let keeper = if in_scope { Keeper::Scope } else { Keeper::OwnGroup };
        let own_user = self.spec.plan.uid != rustix::process::geteuid().as_raw();
        let mut limits = match limits::apply(
            &self.spec.plan.limits,
            self.id,
            pid,
            own_user,
            self.cgroups,
            keeper,
        ) {
            Ok(limits) => limits,
            Err((why, groups)) => {
                let cgroup = launched.cgroup.take();
                drop(launched);
                self.cgroups.remove_limit_groups(self.id, &groups);
                if let Some(cgroup) = cgroup.filter(|_| !in_scope) {
                    self.cgroups.remove_if_empty(&cgroup);
                }
                return Err(ProcessError::Limits { module: self.id.clone(), why });
            }
        };
        let unit = in_scope.then(|| format!("systemd unit {}", self.cgroups.unit(self.id)));
        let parts: Vec<String> =
            [unit, note, limits.summary.take()].into_iter().flatten().collect();
        limits.summary = (!parts.is_empty()).then(|| parts.join("; "));
        let failed = |source| ProcessError::Start { module: self.id.clone(), source };
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| failed(errno.into()))?;
        let (control, stderr) = launched.parts().map_err(failed)?;
        let (process, cgroup) = (launched.process, launched.cgroup.take());
        launched.let_go();
        Ok(Prepared { program, control, stderr, process, pidfd, cgroup, limits })
    }
}

/// A launcher, or what will become one. Ended when it is dropped.
struct Launched {
    child: Option<Child>,
    pid: Pid,
    process: ProcessInstance,
    control: UnixStream,
    stderr: OwnedFd,
    cgroup: Option<String>,
}

impl Launched {
    /// `complaints`: where it writes until it is the module; absent: to the module's log.
    fn spawn(
        mut command: Command,
        ends: &[OwnedFd; 2],
        complaints: Option<Stdio>,
    ) -> io::Result<Self> {
        let [stdout, stderr] = ends;
        let (stdout, stderr) = (stdout.try_clone()?, stderr.try_clone()?);
        let (control, theirs) = UnixStream::pair()?;
        control.set_write_timeout(Some(START_LIMIT))?;
        let own = match complaints {
            Some(complaints) => complaints,
            None => Stdio::from(stderr.try_clone()?),
        };
        command
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(stdout))
            .stderr(own);
        // The command keeps the launcher's end of the socket open until it is dropped.
        let child = command.spawn();
        let mut child = child.map_err(|error| {
            let program = command.get_program().display();
            io::Error::other(format!("cannot execute {program}: {error}"))
        })?;
        drop(command);
        // Our own child, not waited for: the number is its own.
        let pid = Pid::from_child(&child);
        match ProcDir::open_unproved(child.id()).and_then(|process| process.stat()) {
            Ok(stat) => {
                let process = ProcessInstance { pid: child.id(), start_time: stat.start_time };
                let launched =
                    Self { child: Some(child), pid, process, control, stderr, cgroup: None };
                launched.patience(START_LIMIT)?;
                Ok(launched)
            }
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                Err(io::Error::other(error))
            }
        }
    }

    /// Sets the longest wait for the next word of the launcher.
    fn patience(&self, patience: Duration) -> io::Result<()> {
        self.control.set_read_timeout(Some(patience))
    }

    fn parts(&self) -> io::Result<(UnixStream, OwnedFd)> {
        Ok((self.control.try_clone()?, self.stderr.try_clone()?))
    }

    fn let_go(mut self) {
        self.child = None;
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}
