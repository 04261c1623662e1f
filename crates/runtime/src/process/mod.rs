//! Host modules: processes of the host, each started from exactly the bytes that were
//! hashed.
//!
//! What runs is written down before it runs, so a daemon that was killed finds its
//! modules again ([`ProcessRuntime::open`]) and ends none of them. Whether a module that
//! ended is started again is the agent's decision.
//!
//! A module runs as long as its first process. What that leaves behind when it ends by
//! itself is not the module any more (its facts say stopped); it is ended when the module
//! is stopped, removed or started, and when the daemon starts. That takes a cgroup of the
//! module's own. Without one ([`ProcessRuntime::without_cgroups`]) a module is held
//! together by its process group alone, and only while its first process lives: children
//! that made a session or group of their own, and all that outlive the first process,
//! survive stop and remove.

mod asked;
mod confine;
mod delegated;
mod group;
pub mod launcher;
mod launching;
mod limits;
mod module;
mod output;
mod prepared;
mod program;
mod scope;
mod service;
mod update;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use edgekeep_children::AskError;
use edgekeep_core::attestation::{ProcessInstance, RunningFacts};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::host::{Account, Accounts, Capabilities, Daemon, LaunchPlan};
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::store::StoreError;
use serde::{Deserialize, Serialize};

use crate::gauge::{Gauge, GaugeError};
use crate::logs::{LogQuery, LogStream};
use crate::status::ModuleStatus;

pub(crate) use asked::words;
pub use asked::{Answer, Asked, Failure};
pub use delegated::make_room;
pub use group::ModuleCgroups;
pub use launcher::forbid_new_privileges;
pub use launching::{Answering, Launching, Starter};
pub use program::{MAX_PROGRAM_BYTES, ProgramError};
pub(crate) use program::{verify, verify_open};
pub use service::{Bounds, LaunchService};

pub use update::BegunUpdate;

use module::Module;

/// A sealed copy of a program, for tests of whoever looks at one that runs.
#[cfg(test)]
pub(crate) fn sealed(path: &Path, sha256: &Sha256Digest) -> std::os::fd::OwnedFd {
    use std::os::fd::AsFd as _;
    let copy = program::SealedProgram::load(path, sha256).expect("a program");
    copy.as_fd().try_clone_to_owned().expect("a descriptor")
}

/// The reason why an operation on a host module failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// There is no such host module.
    #[error("there is no host module {module}")]
    Absent {
        /// Id of the module.
        module: ModuleId,
    },
    /// There already is a host module of this id.
    #[error("there already is a host module {module}")]
    Exists {
        /// Id of the module.
        module: ModuleId,
    },
    /// The module's executable cannot be started.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The executable cannot be started, in the words of the process that starts modules.
    #[error("{why}")]
    Unfit {
        /// The reason, in words.
        why: String,
    },
    /// The request differs from the configuration of the module.
    #[error("host module {module} is not started or ended: {why}; run `edgekeep config apply`")]
    Refused {
        /// Id of the module.
        module: ModuleId,
        /// The difference, in words.
        why: String,
    },
    /// The process that starts host modules does not answer.
    #[error(transparent)]
    Launcher(#[from] AskError),
    /// The process that looks at executables does not answer.
    #[error(transparent)]
    Gauge(#[from] GaugeError),
    /// The system's users and groups are not known.
    #[error("cannot read the lists of users and groups")]
    Accounts {
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// A folder was not given to a module's user.
    #[error("cannot give the folder {} to a module's user", folder.display())]
    HandOver {
        /// Path of the folder.
        folder: PathBuf,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The module's state cannot be written.
    #[error("cannot keep the state of a host module")]
    Store(#[from] StoreError),
    /// The process could not be made.
    #[error("cannot start host module {module}")]
    Start {
        /// Id of the module.
        module: ModuleId,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// A limit that is required cannot be set.
    #[error(
        "host module {module} is not started without its limits: {why}; limits = \"best-effort\" would do without"
    )]
    Limits {
        /// Id of the module.
        module: ModuleId,
        /// The limit, and the reason why it cannot be set.
        why: String,
    },
    /// A systemd scope is required and cannot be had.
    #[error("host module {module} is not started without a systemd scope of its own: {why}")]
    Scope {
        /// Id of the module.
        module: ModuleId,
        /// The reason why there is no scope.
        why: String,
    },
    /// The process does not end.
    #[error(
        "host module {module} does not end, not even by SIGKILL; it may hang in a device driver"
    )]
    Stuck {
        /// Id of the module.
        module: ModuleId,
    },
    /// The module's folder, pipes or log cannot be used.
    #[error("cannot use the folder of host module {module}")]
    Folder {
        /// Id of the module.
        module: ModuleId,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The daemon is ending.
    #[error("the daemon is ending")]
    Ending,
}

impl ProcessError {
    /// The status to pass on to a client of the management API, where the error is the
    /// client's.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Absent { .. } => Some(404),
            Self::Exists { .. } => Some(409),
            Self::Program(_) | Self::Unfit { .. } => Some(400),
            Self::Launcher(_) | Self::Gauge(_) => Some(503),
            _ => None,
        }
    }
}

/// The specification that a host module is made from.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The name under which the executable is registered: the module's image.
    pub image: String,
    /// Absolute path of the executable; the module sees it as its `argv[0]`.
    pub executable: PathBuf,
    /// SHA-256 digest that the executable's content must have.
    pub sha256: Sha256Digest,
    /// Arguments after `argv[0]`.
    pub args: Vec<String>,
    /// The whole environment; `PATH` is added if it is not there.
    pub env: BTreeMap<String, String>,
    /// Working folder; `/` if absent.
    pub working_dir: Option<PathBuf>,
    /// Confinement of the module.
    pub plan: LaunchPlan,
}

/// The environment may hold secrets.
impl std::fmt::Debug for ProcessSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessSpec")
            .field("image", &self.image)
            .field("executable", &self.executable)
            .field("sha256", &self.sha256)
            .finish_non_exhaustive()
    }
}

/// The program between moduled and a module, and its arguments. The program calls
/// [`launcher::main`].
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl Launcher {
    /// Returns the launcher that is this very program, also when its file was replaced by
    /// an update, with [`launcher::ARGUMENT`].
    #[must_use]
    pub fn this_program() -> Self {
        Self { program: "/proc/self/exe".into(), args: vec![launcher::ARGUMENT.into()] }
    }
}

/// The host modules of one device. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ProcessRuntime {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    launching: Launching,
    gauge: Gauge,
    without_cgroups: Option<String>,
    modules: RwLock<HashMap<String, Arc<Module>>>,
}

/// Longest list of users, or of groups, that is read, in bytes.
const MAX_ACCOUNTS: u64 = 16 << 20;

/// Beginning of the name of a folder that is being removed; no module id begins with a
/// dot.
const REMOVED: &str = ".removed-";

impl ProcessRuntime {
    /// Opens the runtime with its state in `folder`, and finds the modules that still
    /// run. `gauge` looks at executables. In a tokio runtime.
    ///
    /// A module whose state is damaged is left out, reported in the log and kept on disk.
    ///
    /// # Errors
    /// `folder` cannot be made or read.
    pub async fn open(
        folder: &Path,
        launching: Launching,
        gauge: Gauge,
    ) -> Result<Self, StoreError> {
        let without_cgroups = match launching.ask(Asked::About, Vec::new()).await {
            Ok((Answer::About { without_cgroups }, _)) => without_cgroups,
            Ok((other, _)) => Some(format!("an answer to something else: {other:?}")),
            Err(error) => Some(error.to_string()),
        };
        edgekeep_daemon::store::private_folder(folder)?;
        let io = |source| StoreError::Io { step: "read", path: folder.to_owned(), source };
        let mut modules = HashMap::new();
        for entry in std::fs::read_dir(folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(REMOVED) {
                remove_folder(&entry.path());
                continue;
            }
            match Module::load(&entry.path(), &launching) {
                Ok(Some(module)) => _ = modules.insert(name, module),
                // A crash between making the folder and writing the state.
                Ok(None) => remove_folder(&entry.path()),
                Err(error) => {
                    tracing::error!(folder = %entry.path().display(), %error, "a host module is left out");
                }
            }
        }
        let (folder, modules) = (folder.to_owned(), RwLock::new(modules));
        let shared = Shared { folder, launching, gauge, without_cgroups, modules };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns the reason why modules have no cgroups of their own; `None` if they have.
    #[must_use]
    pub fn without_cgroups(&self) -> Option<&str> {
        self.shared.without_cgroups.as_deref()
    }

    /// Returns the starter of the modules.
    #[must_use]
    pub fn launching(&self) -> &Launching {
        &self.shared.launching
    }

    /// Returns the specification by which the module will be started next.
    ///
    /// # Errors
    /// [`ProcessError::Absent`].
    pub async fn spec(&self, id: &ModuleId) -> Result<ProcessSpec, ProcessError> {
        Ok(self.module(id)?.spec().await)
    }

    /// Changes what a module is started from the next time. What runs stays as it is.
    ///
    /// # Errors
    /// [`ProcessError::Absent`]; the state cannot be written.
    pub async fn renew(&self, id: &ModuleId, spec: ProcessSpec) -> Result<(), ProcessError> {
        let module = self.module(id)?;
        finished(async move { module.renew(spec).await }).await
    }

    /// Does the same as [`Self::renew`], and remembers the module's state before, until
    /// the update is settled by [`Self::end_update`], also through an end of the daemon.
    ///
    /// # Errors
    /// [`ProcessError::Absent`]; the state cannot be written. The module then is what it
    /// was.
    pub async fn begin_update(
        &self,
        id: &ModuleId,
        spec: ProcessSpec,
        start: bool,
    ) -> Result<(), ProcessError> {
        let (module, gauge) = (self.module(id)?, self.shared.gauge.clone());
        finished(async move { module.begin_update(&gauge, spec, start).await }).await
    }

    /// The update of a module that is not settled.
    pub async fn update(&self, id: &ModuleId) -> Option<BegunUpdate> {
        self.module(id).ok()?.update().await
    }

    /// The modules whose updates are not settled.
    pub async fn begun_updates(&self) -> Vec<ModuleId> {
        let mut begun = Vec::new();
        for module in self.modules() {
            if module.update().await.is_some() {
                begun.push(module.id().clone());
            }
        }
        begun
    }

    /// Settles an update: the module stays what it became (`keep`), or is again what it
    /// was, from its next start.
    ///
    /// # Errors
    /// [`ProcessError::Absent`]; the state cannot be written.
    pub async fn end_update(&self, id: &ModuleId, keep: bool) -> Result<(), ProcessError> {
        let module = self.module(id)?;
        finished(async move { module.end_update(keep).await }).await
    }

    /// Checks an executable against its registered digest, as [`Self::create`] does.
    ///
    /// # Errors
    /// It cannot be started, with the reason and the remedy.
    pub async fn verify(
        &self,
        executable: PathBuf,
        sha256: Sha256Digest,
    ) -> Result<(), ProcessError> {
        let verified = self.shared.gauge.verify(executable, sha256).await?;
        verified.map_err(|why| ProcessError::Unfit { why })
    }

    /// Makes a module, not started.
    ///
    /// # Errors
    /// [`ProcessError::Exists`]; the executable is not the registered one; the state
    /// cannot be written.
    pub async fn create(&self, id: &ModuleId, spec: ProcessSpec) -> Result<(), ProcessError> {
        self.verify(spec.executable.clone(), spec.sha256).await?;
        let (this, id) = (self.clone(), id.clone());
        finished(async move {
            if this.module(&id).is_ok() {
                return Err(ProcessError::Exists { module: id });
            }
            let module = Module::create(&this.shared.folder.join(id.name()), &id, spec)?;
            let mut modules = this.shared.modules.write().unwrap_or_else(PoisonError::into_inner);
            modules.insert(id.name().to_owned(), module);
            Ok(())
        })
        .await
    }

    /// Starts a module; one that runs already stays as it is.
    ///
    /// # Errors
    /// [`ProcessError::Absent`]; the executable is no longer the registered one; the
    /// process cannot be made.
    pub async fn start(&self, id: &ModuleId) -> Result<(), ProcessError> {
        let (module, shared) = (self.module(id)?, Arc::clone(&self.shared));
        finished(async move { module.start(&shared.launching).await }).await
    }

    /// Stops a module: SIGTERM to its process group, after `grace` SIGKILL, then SIGKILL
    /// to whatever is left in its cgroup, also if its first process had ended before.
    ///
    /// # Errors
    /// [`ProcessError::Absent`], [`ProcessError::Stuck`].
    pub async fn stop(&self, id: &ModuleId, grace: Duration) -> Result<(), ProcessError> {
        let (module, shared) = (self.module(id)?, Arc::clone(&self.shared));
        finished(async move { module.stop(&shared.launching, grace).await }).await
    }

    /// Stops and starts a module.
    ///
    /// # Errors
    /// As [`Self::stop`] and [`Self::start`].
    pub async fn restart(&self, id: &ModuleId, grace: Duration) -> Result<(), ProcessError> {
        self.stop(id, grace).await?;
        self.start(id).await
    }

    /// Ends a module by SIGKILL and forgets it with its log.
    ///
    /// # Errors
    /// [`ProcessError::Absent`], [`ProcessError::Stuck`], or its folder cannot be
    /// removed.
    pub async fn remove(&self, id: &ModuleId) -> Result<(), ProcessError> {
        let (module, shared, id) = (self.module(id)?, Arc::clone(&self.shared), id.clone());
        finished(async move {
            module.stop(&shared.launching, Duration::ZERO).await?;
            let folder = shared.folder.join(id.name());
            // Gone at once, also if the daemon ends before everything is deleted.
            let gone = shared.folder.join(format!("{REMOVED}{}", id.name()));
            remove_folder(&gone);
            std::fs::rename(&folder, &gone)
                .map_err(|source| ProcessError::Folder { module: id.clone(), source })?;
            shared.modules.write().unwrap_or_else(PoisonError::into_inner).remove(id.name());
            remove_folder(&gone);
            Ok(())
        })
        .await
    }

    /// Stops all modules at once, each as [`Self::stop`]; for the daemon's own end.
    /// Failures are logged.
    pub async fn stop_all(&self, grace: Duration) {
        let mut stopping = tokio::task::JoinSet::new();
        for module in self.modules() {
            let shared = Arc::clone(&self.shared);
            stopping.spawn(async move {
                if let Err(error) = module.stop(&shared.launching, grace).await {
                    tracing::error!(%error, "a host module goes on");
                }
            });
        }
        stopping.join_all().await;
    }

    /// All modules, by name.
    pub async fn list(&self) -> Vec<ModuleStatus> {
        let mut list = Vec::new();
        for module in self.modules() {
            list.push(module.status().await);
        }
        list.sort_by(|one, other| one.name.cmp(&other.name));
        list
    }

    /// Returns the status of one module.
    ///
    /// # Errors
    /// [`ProcessError::Absent`].
    pub async fn status(&self, id: &ModuleId) -> Result<ModuleStatus, ProcessError> {
        Ok(self.module(id)?.status().await)
    }

    /// A module's log, in the container engine's framing.
    ///
    /// # Errors
    /// [`ProcessError::Absent`], or its log cannot be read.
    pub fn logs(&self, id: &ModuleId, query: &LogQuery) -> Result<LogStream, ProcessError> {
        self.module(id)?.logs(query)
    }

    /// Returns the facts about the module now; a name without a module is
    /// [`RunningFacts::Stopped`].
    #[must_use]
    pub fn facts(&self, id: &ModuleId) -> RunningFacts {
        self.module(id).map_or(RunningFacts::Stopped, |module| module.facts())
    }

    /// The first process of a module that runs, or of its last run: nobody has looked
    /// whether it lives.
    #[must_use]
    pub fn first_process(&self, id: &ModuleId) -> Option<ProcessInstance> {
        self.module(id).ok()?.first_process()
    }

    /// Waits until a module no longer runs and its end is written down.
    ///
    /// # Errors
    /// [`ProcessError::Absent`].
    pub async fn ended(&self, id: &ModuleId) -> Result<(), ProcessError> {
        self.module(id)?.ended().await;
        Ok(())
    }

    fn module(&self, id: &ModuleId) -> Result<Arc<Module>, ProcessError> {
        let modules = self.shared.modules.read().unwrap_or_else(PoisonError::into_inner);
        modules.get(id.name()).cloned().ok_or_else(|| ProcessError::Absent { module: id.clone() })
    }

    fn modules(&self) -> Vec<Arc<Module>> {
        self.shared
            .modules
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }
}

/// Returns the account of this process, and the capabilities that it could give to the
/// modules that it starts.
///
/// # Errors
/// The kernel does not tell.
pub fn own_rights() -> io::Result<Daemon> {
    let account = Account {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    };
    let capabilities =
        Capabilities::from_bits(rustix::thread::capabilities(None)?.permitted.bits());
    Ok(Daemon { account, capabilities })
}

/// The system's users and groups as they are now.
///
/// # Errors
/// `/etc/passwd` or `/etc/group` cannot be read.
pub fn accounts() -> io::Result<Accounts> {
    accounts_in(account_files()?)
}

/// The files of the system's users and groups, open.
fn account_files() -> io::Result<[File; 2]> {
    Ok([File::open("/etc/passwd")?, File::open("/etc/group")?])
}

/// Reads the files of the system's users and groups.
fn accounts_in(files: [File; 2]) -> io::Result<Accounts> {
    let read = |file: File| {
        let mut text = String::new();
        let length = file.take(MAX_ACCOUNTS + 1).read_to_string(&mut text)?;
        if length as u64 > MAX_ACCOUNTS {
            return Err(io::Error::other("the list of users or groups is too long"));
        }
        Ok(text)
    };
    let [passwd, group] = files.map(read);
    Ok(Accounts { passwd: passwd?, group: group? })
}

/// Runs an operation to its end, also when the request that asked for it is dropped: half
/// a start would leave a process.
async fn finished<T: Send + 'static>(
    operation: impl Future<Output = Result<T, ProcessError>> + Send + 'static,
) -> Result<T, ProcessError> {
    tokio::spawn(operation).await.unwrap_or(Err(ProcessError::Ending))
}

async fn blocking<T: Send + 'static>(
    operation: impl FnOnce() -> Result<T, ProcessError> + Send + 'static,
) -> Result<T, ProcessError> {
    tokio::task::spawn_blocking(operation).await.unwrap_or(Err(ProcessError::Ending))
}

fn remove_folder(path: &Path) {
    if let Err(error) = std::fs::remove_dir_all(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(folder = %path.display(), %error, "a folder stays behind");
    }
}

#[cfg(test)]
fn own_plan() -> LaunchPlan {
    let module = edgekeep_core::host::HostModule::new("/bin/sleep", Sha256Digest::new([0; 32]));
    edgekeep_core::host::plan(
        &module,
        &own_rights().expect("known"),
        &Accounts::default(),
        true,
        None,
    )
    .expect("possible")
}
