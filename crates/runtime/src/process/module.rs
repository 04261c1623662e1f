//! One host module: its record on disk, its process, and the task that waits for the
//! process's end.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use edgekeep_core::attestation::{ExecutableFile, ProcessInstance, Running, RunningFacts};
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::store::StateFile;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;

use super::group::ModuleCgroups;
use super::launcher::{self, StartMessage};
use super::output::{ModuleLog, OutputPump};
use super::prepared::{Prepared, Start};
use super::update::{self, BegunUpdate, Former, kept};
use super::{Launcher, ProcessError, ProcessSpec, blocking};
use crate::evidence::ProcDir;
use crate::logs::{LogQuery, LogStream};
use crate::status::{ExitStatus, ModuleState, ModuleStatus};

/// How long a process may take to end after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is kept on disk about a module.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    module: ModuleId,
    spec: ProcessSpec,
    /// What runs, as far as it was known last.
    run: Option<Run>,
    /// When it was last started, nanoseconds since the epoch.
    started_ns: Option<i64>,
    exit: Option<Exit>,
    /// The cgroup of its last run: what its first process left behind may live on in it.
    #[serde(default)]
    cgroup: Option<String>,
    /// Groups that were made for its limits alone.
    #[serde(default)]
    limit_groups: Vec<PathBuf>,
    /// What keeps which limit since the last start, in words.
    #[serde(default)]
    limits: Option<String>,
    /// What it was before an update that is not settled.
    #[serde(default)]
    former: Option<Former>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Run {
    process: ProcessInstance,
    /// Process id and start time name one process of one boot only.
    boot: String,
    cgroup: Option<String>,
    /// The sealed copy that it was started from.
    #[serde(default)]
    own_copy: Option<ExecutableFile>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Exit {
    at_ns: i64,
    code: Option<i64>,
}

/// The process that runs now.
#[derive(Debug, Clone)]
struct Current {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    cgroup: Option<String>,
    /// The sealed copy that it was started from; `None` for what an earlier version
    /// started, which is not known by it.
    own_copy: Option<ExecutableFile>,
    /// Whether this daemon is its parent, and so is told how it ended.
    child: bool,
    /// Whether it was asked to end.
    stopping: bool,
}

#[derive(Debug)]
pub(super) struct Module {
    id: ModuleId,
    folder: PathBuf,
    file: StateFile<Record>,
    log: Arc<ModuleLog>,
    pump: OutputPump,
    /// One operation at a time.
    operation: tokio::sync::Mutex<()>,
    record: tokio::sync::Mutex<Record>,
    current: Mutex<Option<Current>>,
    /// Read on each request of the module: never held across anything slow.
    facts: RwLock<RunningFacts>,
    /// Whether a process runs or its end is still being written down.
    running: watch::Sender<bool>,
}

impl Module {
    pub(super) fn create(
        folder: &Path,
        id: &ModuleId,
        spec: ProcessSpec,
    ) -> Result<Arc<Self>, ProcessError> {
        edgekeep_daemon::store::private_folder(folder)?;
        let record = Record {
            module: id.clone(),
            spec,
            run: None,
            started_ns: None,
            exit: None,
            cgroup: None,
            limit_groups: Vec::new(),
            limits: None,
            former: None,
        };
        let module = Self::new(folder, record)?;
        let record = module.record.try_lock().map_err(|_| ProcessError::Ending)?;
        module.file.save(&record)?;
        drop(record);
        Ok(module)
    }

    /// Reads a module back, and finds its process if it still runs. `None` if the folder
    /// holds no module.
    pub(super) fn load(
        folder: &Path,
        cgroups: &ModuleCgroups,
    ) -> Result<Option<Arc<Self>>, ProcessError> {
        let Some(mut record) = state_file(folder).load()? else { return Ok(None) };
        let run = record.run.take();
        let adopted = run.as_ref().and_then(|run| adopt(run).map(|current| (run.process, current)));
        if let Some(run) = run {
            record.cgroup = record.cgroup.or_else(|| run.cgroup.clone());
            if adopted.is_some() {
                record.run = Some(run);
            } else {
                // It ended while no daemon was there to see it.
                record.exit = Some(Exit { at_ns: now_ns(), code: None });
            }
        }
        let module = Self::new(folder, record)?;
        if let Some((process, current)) = adopted {
            tracing::info!(module = %module.id, pid = process.pid, "host module found running");
            module.set_current(process, current);
            tokio::spawn(Arc::clone(&module).wait_for_end(cgroups.clone()));
        } else {
            let (module, cgroups) = (Arc::clone(&module), cgroups.clone());
            tokio::spawn(async move { module.clear_leftovers(&cgroups).await });
        }
        Ok(Some(module))
    }

    fn new(folder: &Path, record: Record) -> Result<Arc<Self>, ProcessError> {
        let unusable = |source| ProcessError::Folder { module: record.module.clone(), source };
        let log = Arc::new(ModuleLog::open(folder).map_err(unusable)?);
        let pump = OutputPump::start(folder, &log).map_err(unusable)?;
        Ok(Arc::new(Self {
            id: record.module.clone(),
            folder: folder.to_owned(),
            file: state_file(folder),
            log,
            pump,
            operation: tokio::sync::Mutex::new(()),
            record: tokio::sync::Mutex::new(record),
            current: Mutex::new(None),
            facts: RwLock::new(RunningFacts::Stopped),
            running: watch::Sender::new(false),
        }))
    }

    /// Ends what an earlier run left behind, unless a new one began meanwhile, which has
    /// done so itself.
    async fn clear_leftovers(&self, cgroups: &ModuleCgroups) {
        let _operation = self.operation.lock().await;
        if !*self.running.borrow()
            && let Err(error) = self.clear(cgroups).await
        {
            tracing::error!(module = %self.id, %error, "what an earlier run left behind goes on");
        }
    }

    /// Ends all that is in the module's cgroup. For whoever holds `operation`.
    async fn clear(&self, cgroups: &ModuleCgroups) -> Result<(), ProcessError> {
        let (former, groups) = {
            let record = self.record.lock().await;
            (record.cgroup.clone(), record.limit_groups.clone())
        };
        let cleared = cgroups.clear(&self.id, former.as_deref()).await;
        cgroups.remove_limit_groups(&self.id, &groups);
        if cleared { Ok(()) } else { Err(ProcessError::Stuck { module: self.id.clone() }) }
    }

    pub(super) fn id(&self) -> &ModuleId {
        &self.id
    }

    pub(super) fn facts(&self) -> RunningFacts {
        // At once, not only when the end has been taken note of: what the first process
        // left behind is not the module.
        let ended =
            |current: &Current| crate::evidence::has_ended(current.pidfd.as_fd()).unwrap_or(true);
        if self.current().as_ref().is_none_or(ended) {
            return RunningFacts::Stopped;
        }
        self.facts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn status(&self) -> ModuleStatus {
        let record = self.record.lock().await;
        let exit = record.exit.map(|exit| ExitStatus { at: time_of(exit.at_ns), code: exit.code });
        let state = match (record.run.is_some(), exit) {
            (true, _) => ModuleState::Running,
            (false, None | Some(ExitStatus { code: Some(0), .. })) => ModuleState::Stopped,
            (false, Some(_)) => ModuleState::Failed,
        };
        ModuleStatus {
            name: self.id.name().to_owned(),
            image: record.spec.image.clone(),
            content: Some(record.spec.sha256),
            container: None,
            state,
            started: record.started_ns.map(time_of),
            exit,
            labels: Vec::new(),
            note: record.run.is_some().then(|| record.limits.clone()).flatten(),
        }
    }

    pub(super) fn logs(&self, query: &LogQuery) -> Result<LogStream, ProcessError> {
        let running = *self.running.borrow();
        self.log
            .read(*query, running)
            .map_err(|source| ProcessError::Folder { module: self.id.clone(), source })
    }

    pub(super) async fn spec(&self) -> ProcessSpec {
        self.record.lock().await.spec.clone()
    }

    pub(super) async fn renew(&self, spec: ProcessSpec) -> Result<(), ProcessError> {
        let _operation = self.operation.lock().await;
        let mut record = self.record.lock().await;
        let before = record.clone();
        record.spec = spec;
        self.saved_or(&mut record, before).await
    }

    /// Changes what a module is started from the next time, and remembers what it was. A
    /// copy of the program that runs is kept if its file has another content by now.
    pub(super) async fn begin_update(
        &self,
        spec: ProcessSpec,
        start: bool,
    ) -> Result<(), ProcessError> {
        let _operation = self.operation.lock().await;
        let mut record = self.record.lock().await;
        let process = record.run.as_ref().map(|run| run.process);
        if let Some(process) = process {
            let (id, former, folder) = (self.id.clone(), record.spec.clone(), self.folder.clone());
            blocking(move || {
                kept::keep(&former, process, &folder)
                    .map_err(|source| ProcessError::Folder { module: id, source })
            })
            .await?;
        }
        let next = update::begun(&record.spec, record.former.as_ref(), process, start);
        let before = record.clone();
        record.former = Some(next);
        record.spec = spec;
        self.saved_or(&mut record, before).await
    }

    /// The update that is not settled.
    pub(super) async fn update(&self) -> Option<BegunUpdate> {
        let record = self.record.lock().await;
        record
            .former
            .as_ref()
            .map(|former| former.seen(&record.spec, record.run.as_ref().map(|run| run.process)))
    }

    /// Settles an update: the module stays what it became, or is again what it was.
    pub(super) async fn end_update(&self, keep: bool) -> Result<(), ProcessError> {
        let _operation = self.operation.lock().await;
        let mut record = self.record.lock().await;
        let before = record.clone();
        let Some(former) = record.former.take() else { return Ok(()) };
        if !keep {
            record.spec = former.spec;
        } else if record.run.is_none() {
            // How the old one ended says nothing about the new one.
            (record.exit, record.started_ns) = (None, None);
        }
        self.saved_or(&mut record, before).await?;
        if keep {
            kept::forget(&self.folder);
        }
        Ok(())
    }

    async fn saved_or(&self, record: &mut Record, before: Record) -> Result<(), ProcessError> {
        let saved = self.save(record).await;
        if saved.is_err() {
            *record = before;
        }
        saved
    }

    pub(super) async fn ended(&self) {
        // The sender lives in `self`, so there is no error.
        let _ = self.running.subscribe().wait_for(|running| !running).await;
    }

    pub(super) async fn start(
        self: &Arc<Self>,
        launcher: &Launcher,
        cgroups: &ModuleCgroups,
    ) -> Result<(), ProcessError> {
        let _operation = self.operation.lock().await;
        if *self.running.borrow() {
            return Ok(());
        }
        // What is left in the group would be taken for the new run.
        self.clear(cgroups).await?;
        let (spec, settled) = {
            let record = self.record.lock().await;
            (record.spec.clone(), record.former.is_none())
        };
        let prepared = {
            let (spec, launcher, cgroups) = (spec.clone(), launcher.clone(), cgroups.clone());
            let (id, folder) = (self.id.clone(), self.folder.clone());
            blocking(move || {
                let program = kept::load(&spec, &folder, settled)?;
                let start = Start {
                    id: &id,
                    folder: &folder,
                    spec: &spec,
                    launcher: &launcher,
                    cgroups: &cgroups,
                };
                start.prepare(program)
            })
            .await?
        };
        let Prepared { program, control, stderr, process, pid, pidfd, cgroup, limits } = prepared;
        let own_copy = Some(
            program
                .file()
                .map_err(|source| ProcessError::Start { module: self.id.clone(), source })?,
        );
        let current = Current { pid, pidfd, cgroup, own_copy, child: true, stopping: false };
        if let Some(summary) = &limits.summary {
            tracing::info!(module = %self.id, "{summary}");
        }

        // Written down first; only then does the launcher learn what to become.
        {
            let mut record = self.record.lock().await;
            let before = record.clone();
            record.run =
                Some(Run { process, boot: boot_id(), cgroup: current.cgroup.clone(), own_copy });
            record.cgroup.clone_from(&current.cgroup);
            record.started_ns = Some(now_ns());
            record.limits = limits.summary;
            record.limit_groups = limits.groups;
            if let Err(error) = self.save(&record).await {
                *record = before;
                drop(record);
                drop(control);
                reap(current).await;
                return Err(error);
            }
        }
        self.set_current(process, current.clone());
        tokio::spawn(Arc::clone(self).wait_for_end(cgroups.clone()));

        let message = StartMessage {
            argv0: spec.executable.to_string_lossy().into_owned(),
            args: spec.args,
            env: with_path(spec.env),
            working_dir: spec.working_dir,
            plan: spec.plan,
        };
        let id = self.id.clone();
        let sent = blocking(move || {
            launcher::send(&control, &message, program.as_fd(), stderr.as_fd())
                .map_err(|source| ProcessError::Start { module: id, source })
        })
        .await;
        match sent {
            Ok(None) => Ok(()),
            Ok(Some(note)) => {
                tracing::warn!(module = %self.id, note, "host module confined in part");
                let mut record = self.record.lock().await;
                let parts = [record.limits.take(), Some(note)];
                record.limits = Some(parts.into_iter().flatten().collect::<Vec<_>>().join("; "));
                self.save(&record).await
            }
            Err(error) => {
                self.signal(Signal::KILL);
                self.ended().await;
                Err(error)
            }
        }
    }

    pub(super) async fn stop(
        &self,
        cgroups: &ModuleCgroups,
        grace: Duration,
    ) -> Result<(), ProcessError> {
        let _operation = self.operation.lock().await;
        if let Some(current) = self.current().as_mut() {
            current.stopping = true;
        }
        if *self.running.borrow() {
            if !grace.is_zero() {
                self.signal(Signal::TERM);
            }
            if timeout(grace, self.ended()).await.is_err() {
                self.signal(Signal::KILL);
                let stuck = ProcessError::Stuck { module: self.id.clone() };
                timeout(KILL_LIMIT, self.ended()).await.map_err(|_| stuck)?;
            }
        }
        // Also if nothing ran: a process that ended by itself may have left others
        // behind.
        self.clear(cgroups).await
    }

    /// Sends a signal to the module's process group, and to its first process in case
    /// that left the group.
    fn signal(&self, signal: Signal) {
        let Some(current) = self.current().clone() else { return };
        // While the process has not been waited for, its number, and so its group's, is
        // its own.
        if !crate::evidence::has_ended(current.pidfd.as_fd()).unwrap_or(true) {
            let _ = rustix::process::kill_process_group(current.pid, signal);
            let _ = rustix::process::pidfd_send_signal(&current.pidfd, signal);
        }
    }

    async fn wait_for_end(self: Arc<Self>, cgroups: ModuleCgroups) {
        let Some(current) = self.current().clone() else { return };
        #[expect(
            deprecated,
            reason = "deprecated for types whose descriptor can change; an `OwnedFd` keeps one, and this crate has no unsafe"
        )]
        let watch = AsyncFd::with_interest(Arc::clone(&current.pidfd), Interest::READABLE);
        match watch {
            Ok(pidfd) => _ = pidfd.readable().await,
            Err(error) => {
                // Without a watch the process counts as running until it is stopped.
                tracing::error!(module = %self.id, %error, "cannot wait for the host module's end");
                return;
            }
        }
        *self.facts.write().unwrap_or_else(PoisonError::into_inner) = RunningFacts::Stopped;
        let stopping = self.current().as_ref().is_some_and(|current| current.stopping);
        if stopping && current.child {
            // Not waited for yet: the number is still its own, and what is left of its
            // group can be ended.
            let _ = rustix::process::kill_process_group(current.pid, Signal::KILL);
        }
        let code = if current.child { exit_code(&current.pidfd) } else { None };
        self.pump.drain().await;
        {
            let mut record = self.record.lock().await;
            record.run = None;
            record.exit = Some(Exit { at_ns: now_ns(), code });
            if let Err(error) = self.save(&record).await {
                // The next start of the daemon finds that the process is gone.
                tracing::error!(module = %self.id, %error, "the host module's end is not written down");
            }
        }
        tracing::info!(module = %self.id, code, "host module ended");
        if !stopping && let Some(cgroup) = &current.cgroup {
            if !cgroups.is_scope(&self.id, cgroup) {
                cgroups.remove_if_empty(cgroup);
            }
            let groups = self.record.lock().await.limit_groups.clone();
            cgroups.remove_limit_groups(&self.id, &groups);
        }
        *self.current() = None;
        self.log.end();
        self.running.send_replace(false);
    }

    fn set_current(&self, process: ProcessInstance, current: Current) {
        // Host modules run in the daemon's own; one that cannot be read is nobody's.
        let own = ProcDir::open_unproved(std::process::id()).and_then(|own| own.user_namespace());
        let user_namespace = own.unwrap_or_default();
        let running = Running {
            init: process,
            cgroup: current.cgroup.clone(),
            container: None,
            exec_since: None,
            own_copy: current.own_copy,
            // The launcher's own filter refuses listeners to the module and to all that
            // it starts.
            filters: None,
            user_namespace,
        };
        *self.current() = Some(current);
        *self.facts.write().unwrap_or_else(PoisonError::into_inner) =
            RunningFacts::Running(running);
        self.running.send_replace(true);
    }

    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn save(&self, record: &Record) -> Result<(), ProcessError> {
        let (file, record) = (self.file.clone(), record.clone());
        blocking(move || Ok(file.save(&record)?)).await
    }
}

/// Ends a launcher that never got its message.
async fn reap(current: Current) {
    let _ = rustix::process::pidfd_send_signal(&current.pidfd, Signal::KILL);
    let _ = blocking(move || {
        let _ =
            rustix::process::waitid(WaitId::PidFd(current.pidfd.as_fd()), WaitIdOptions::EXITED);
        Ok(())
    })
    .await;
}

/// Finds the process of an earlier daemon, if it still is the same one.
fn adopt(run: &Run) -> Option<Current> {
    if run.boot != boot_id() {
        return None;
    }
    let pid = Pid::from_raw(i32::try_from(run.process.pid).ok()?)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let found = ProcDir::open(run.process.pid, pidfd.as_fd()).ok()?;
    if found.stat().ok()?.start_time != run.process.start_time {
        return None;
    }
    let cgroup = run.cgroup.clone();
    Some(Current {
        pid,
        pidfd: Arc::new(pidfd),
        cgroup,
        own_copy: run.own_copy,
        child: false,
        stopping: false,
    })
}

/// How a child ended; it is waited for by this.
fn exit_code(pidfd: &OwnedFd) -> Option<i64> {
    let status =
        rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).ok()??;
    let signal = status.terminating_signal().map(|signal| 128 + signal);
    status.exit_status().or(signal).map(i64::from)
}

fn state_file(folder: &Path) -> StateFile<Record> {
    StateFile::new(folder.join("module.json"), "host-module", 1)
}

fn with_path(
    mut env: std::collections::BTreeMap<String, String>,
) -> std::collections::BTreeMap<String, String> {
    env.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
    env
}

/// What the kernel calls this boot.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn now_ns() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

fn time_of(ns: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(ns.into()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
