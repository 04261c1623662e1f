//! One host module: its record on disk, its process, and the task that waits for the
//! process's end.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use edgekeep_core::attestation::{ExecutableFile, ProcessInstance, Running, RunningFacts};
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::store::StateFile;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;

use super::asked::{Answer, Asked, Failure, spec_file};
use super::launching::Launching;
use super::output::{ModuleLog, OutputPump, module_ends};
use super::update::{self, BegunUpdate, Former, kept};
use super::{ProcessError, ProcessSpec, blocking};
use crate::evidence::ProcDir;
use crate::gauge::Gauge;
use crate::logs::{LogQuery, LogStream};
use crate::status::{ExitStatus, ModuleState, ModuleStatus};

/// Longest time that a process may take to end after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The record of a module on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    module: ModuleId,
    spec: ProcessSpec,
    /// The run that is under way, by the last record; `None` if no process runs.
    run: Option<Run>,
    /// Time of the last start, in nanoseconds since the epoch.
    started_ns: Option<i64>,
    exit: Option<Exit>,
    /// The cgroup of its last run: what its first process left behind may live on in it.
    #[serde(default)]
    cgroup: Option<String>,
    /// Groups that were made for its limits alone.
    #[serde(default)]
    limit_groups: Vec<PathBuf>,
    /// The means that keep each limit since the last start, in words.
    #[serde(default)]
    limits: Option<String>,
    /// The module before an update that is not settled; `None` if no update is under way.
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

/// Time between two attempts to end a process whose end is not seen.
const AGAIN: Duration = Duration::from_secs(1);

/// The process that runs now.
#[derive(Debug, Clone)]
struct Current {
    process: ProcessInstance,
    pidfd: Arc<OwnedFd>,
    cgroup: Option<String>,
    /// The sealed copy that it was started from; `None` for what an earlier version
    /// started, which is not known by it.
    own_copy: Option<ExecutableFile>,
    /// True if the process was asked to end.
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
    /// True while a process runs or its end is still being written down.
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
        launching: &Launching,
    ) -> Result<Option<Arc<Self>>, ProcessError> {
        let Some(mut record) = state_file(folder).load()? else { return Ok(None) };
        let run = record.run.take();
        let adopted = run.as_ref().and_then(adopt);
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
        if let Some(current) = adopted {
            tracing::info!(module = %module.id, pid = current.process.pid, "host module found running");
            module.set_current(current);
            tokio::spawn(Arc::clone(&module).wait_for_end(launching.clone()));
        } else {
            let (module, launching) = (Arc::clone(&module), launching.clone());
            tokio::spawn(async move { module.clear_leftovers(&launching).await });
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
    async fn clear_leftovers(&self, launching: &Launching) {
        let _operation = self.operation.lock().await;
        if !*self.running.borrow()
            && let Err(error) = self.clear(launching).await
        {
            tracing::error!(module = %self.id, %error, "what an earlier run left behind goes on");
        }
    }

    /// Ends all that is in the module's cgroup. For whoever holds `operation`.
    async fn clear(&self, launching: &Launching) -> Result<(), ProcessError> {
        let (former, groups) = {
            let record = self.record.lock().await;
            (record.cgroup.clone(), record.limit_groups.clone())
        };
        let asked = Asked::Clear { id: self.id.clone(), former, limit_groups: groups };
        match launching.ask(asked, Vec::new()).await?.0 {
            Answer::Cleared(true) => Ok(()),
            Answer::Failed(failure) => Err(self.failed(failure)),
            _ => Err(ProcessError::Stuck { module: self.id.clone() }),
        }
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

    /// The first process of what runs or ran last, without a look at it.
    pub(super) fn first_process(&self) -> Option<ProcessInstance> {
        match &*self.facts.read().unwrap_or_else(PoisonError::into_inner) {
            RunningFacts::Running(running) => Some(running.init),
            _ => None,
        }
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
        gauge: &Gauge,
        spec: ProcessSpec,
        start: bool,
    ) -> Result<(), ProcessError> {
        let _operation = self.operation.lock().await;
        let mut record = self.record.lock().await;
        let process = record.run.as_ref().map(|run| run.process);
        if let Some(process) = process {
            let failed = |source| ProcessError::Folder { module: self.id.clone(), source };
            kept::keep(gauge, &record.spec, process, &self.folder).await?.map_err(failed)?;
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

    pub(super) async fn start(self: &Arc<Self>, launching: &Launching) -> Result<(), ProcessError> {
        let _operation = self.operation.lock().await;
        if *self.running.borrow() {
            return Ok(());
        }
        // What is left in the group would be taken for the new run.
        self.clear(launching).await?;
        let (spec, settled) = {
            let record = self.record.lock().await;
            (record.spec.clone(), record.former.is_none())
        };
        let files = {
            let (id, folder) = (self.id.clone(), self.folder.clone());
            blocking(move || {
                let failed = |source| ProcessError::Start { module: id.clone(), source };
                let [stdout, stderr] = module_ends(&folder).map_err(failed)?;
                let kept = kept::open(&folder).map(OwnedFd::from);
                let given = [spec_file(&spec).map_err(failed)?, stdout, stderr];
                Ok(given.into_iter().chain(kept).collect())
            })
            .await?
        };
        let asked = Asked::Prepare { id: self.id.clone() };
        let (answer, pidfd) = launching.ask(asked, files).await?;
        let Answer::Prepared { number, process, own_copy, from_file, cgroup, limits, limit_groups } =
            answer
        else {
            return Err(self.not_done(answer));
        };
        let Some(pidfd) = pidfd.into_iter().next() else {
            return Err(self.not_done(Answer::Done));
        };
        if settled && from_file {
            kept::forget(&self.folder);
        }
        let current = Current {
            process,
            pidfd: Arc::new(pidfd),
            cgroup,
            own_copy: Some(own_copy),
            stopping: false,
        };
        if let Some(summary) = &limits {
            tracing::info!(module = %self.id, "{summary}");
        }

        // Written down first; only then does the launcher learn what to become.
        {
            let mut record = self.record.lock().await;
            let before = record.clone();
            let own_copy = current.own_copy;
            record.run =
                Some(Run { process, boot: boot_id(), cgroup: current.cgroup.clone(), own_copy });
            record.cgroup.clone_from(&current.cgroup);
            record.started_ns = Some(now_ns());
            record.limits = limits;
            record.limit_groups = limit_groups;
            if let Err(error) = self.save(&record).await {
                *record = before;
                drop(record);
                // If that cannot be asked for, whoever holds it is gone, and it ends.
                let _ = launching.ask(Asked::Cancel { number }, Vec::new()).await;
                return Err(error);
            }
        }
        self.set_current(current);
        tokio::spawn(Arc::clone(self).wait_for_end(launching.clone()));

        // Without an answer the process runs or ends by itself: it is watched either way.
        match launching.ask(Asked::Begin { number }, Vec::new()).await?.0 {
            Answer::Began(None) => Ok(()),
            Answer::Began(Some(note)) => {
                tracing::warn!(module = %self.id, note, "host module confined in part");
                let mut record = self.record.lock().await;
                let parts = [record.limits.take(), Some(note)];
                record.limits = Some(parts.into_iter().flatten().collect::<Vec<_>>().join("; "));
                self.save(&record).await
            }
            other => {
                self.end(launching).await?;
                Err(self.not_done(other))
            }
        }
    }

    /// Ends a process that should have become the module.
    async fn end(&self, launching: &Launching) -> Result<(), ProcessError> {
        loop {
            self.signal(launching, true).await?;
            if timeout(AGAIN, self.ended()).await.is_ok() {
                return Ok(());
            }
        }
    }

    fn failed(&self, failure: Failure) -> ProcessError {
        Failure::of(self.id.clone())(failure)
    }

    fn not_done(&self, answer: Answer) -> ProcessError {
        match answer {
            Answer::Failed(failure) => self.failed(failure),
            other => {
                self.failed(Failure::Machine(format!("an answer to something else: {other:?}")))
            }
        }
    }

    pub(super) async fn stop(
        &self,
        launching: &Launching,
        grace: Duration,
    ) -> Result<(), ProcessError> {
        let _operation = self.operation.lock().await;
        if let Some(current) = self.current().as_mut() {
            current.stopping = true;
        }
        if *self.running.borrow() {
            if !grace.is_zero() {
                self.signal(launching, false).await?;
            }
            if timeout(grace, self.ended()).await.is_err() {
                self.signal(launching, true).await?;
                let stuck = ProcessError::Stuck { module: self.id.clone() };
                timeout(KILL_LIMIT, self.ended()).await.map_err(|_| stuck)?;
            }
        }
        // Also if nothing ran: a process that ended by itself may have left others
        // behind.
        self.clear(launching).await
    }

    /// Sends SIGTERM or SIGKILL to the module's process group, and to its first process,
    /// in case that left the group.
    async fn signal(&self, launching: &Launching, kill: bool) -> Result<(), ProcessError> {
        let Some(current) = self.current().clone() else { return Ok(()) };
        if crate::evidence::has_ended(current.pidfd.as_fd()).unwrap_or(true) {
            return Ok(());
        }
        let asked = Asked::Signal { id: self.id.clone(), process: current.process, kill };
        match launching.ask(asked, Vec::new()).await?.0 {
            Answer::Failed(failure) => Err(self.failed(failure)),
            _ => Ok(()),
        }
    }

    async fn wait_for_end(self: Arc<Self>, launching: Launching) {
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
        let asked = Asked::Ended { process: current.process, stopping };
        let code = match launching.ask(asked, Vec::new()).await {
            Ok((Answer::Exit(code), _)) => code,
            // Whoever started it is gone, and with it the code.
            _ => None,
        };
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
        if !stopping && current.cgroup.is_some() {
            let limit_groups = self.record.lock().await.limit_groups.clone();
            let (id, cgroup) = (self.id.clone(), current.cgroup);
            let asked = Asked::Discard { id, cgroup, limit_groups };
            // What stays behind is removed before the next start.
            let _ = launching.ask(asked, Vec::new()).await;
        }
        *self.current() = None;
        self.log.end();
        self.running.send_replace(false);
    }

    fn set_current(&self, current: Current) {
        // Host modules run in the daemon's own; one that cannot be read is nobody's.
        let own = ProcDir::open_unproved(std::process::id()).and_then(|own| own.user_namespace());
        let user_namespace = own.unwrap_or_default();
        let running = Running {
            init: current.process,
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
    let (pidfd, own_copy) = (Arc::new(pidfd), run.own_copy);
    Some(Current { process: run.process, pidfd, cgroup, own_copy, stopping: false })
}

fn state_file(folder: &Path) -> StateFile<Record> {
    StateFile::new(folder.join("module.json"), "host-module", 1)
}

/// Returns the kernel's id of this boot.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn now_ns() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

fn time_of(ns: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(ns.into()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
