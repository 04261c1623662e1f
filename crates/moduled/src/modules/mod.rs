//! Modules of the device, in both runtimes, and what is known of each.
//!
//! Operations on modules are in [`command`]; the form in which the API shows modules is
//! in [`shown`]. A module has one operation at a time; different modules do not wait for
//! each other.

pub(crate) mod approvals;
mod command;
pub(crate) mod containers;
pub(crate) mod error;
pub(crate) mod host;
mod host_updates;
pub(crate) mod image;
pub(crate) mod images;
pub(crate) mod measurements;
pub(crate) mod options;
pub(crate) mod own_users;
pub(crate) mod registrations;
pub(crate) mod replacements;
mod restarts;
pub(crate) mod services;
pub(crate) mod shown;
pub(crate) mod sockets;
pub(crate) mod spec;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgekeep_api::management::{Approval, ModuleDetails, ModuleList};
use edgekeep_core::attestation::{
    HostFacts, ProcessInstance, Registration, RunningFacts, Workload,
};
use edgekeep_core::id::ModuleId;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::ModuledSettings;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::store::StoreError;
use edgekeep_runtime::engine::{Engine, EngineError};
use edgekeep_runtime::evidence::{CgroupHierarchy, ImageLayers};
use edgekeep_runtime::facts::EngineWatch;
use edgekeep_runtime::gauge::Gauge;
use edgekeep_runtime::logs::{LogQuery, LogStream};
use edgekeep_runtime::process::ProcessRuntime;
use edgekeep_runtime::status::{ModuleState, ModuleStatus as State};
use tokio::sync::OwnedMutexGuard;

use crate::identity::identities::IdentityCache;
use crate::modules::approvals::Approvals;
use crate::modules::containers::container_of;
use crate::modules::error::ModuleError;
use crate::modules::images::Images;
use crate::modules::measurements::Measurements;
use crate::modules::own_users::OwnUsers;
use crate::modules::registrations::Registrations;
use crate::modules::replacements::Replacements;
use crate::modules::restarts::Restarts;
use crate::modules::sockets::Sockets;
use crate::modules::spec::Kind;

pub(crate) use command::{
    create, prepare, remove, restart, start, stop, stop_all, update, watch_running,
};
pub(crate) use command::{
    create_locked, new_registration, start_locked, start_unwatched, stop_locked,
};
use shown::{Rows, container_details, details, named_as_registered};

/// Longest time that the engine may take to answer a question about what is there.
const ENGINE_PATIENCE: Duration = Duration::from_secs(10);

/// The container engine, and what is known of its containers.
#[derive(Debug)]
pub(crate) struct Containers {
    /// Its API.
    pub(crate) engine: Engine,
    /// State of the containers, as the engine's event stream tells it.
    pub(crate) watch: EngineWatch,
    /// Its socket, for people.
    pub(crate) uri: String,
}

/// The modules: what is registered of them, the runtimes that they run in, and all that
/// is kept of them.
#[derive(Debug)]
pub(crate) struct Modules {
    /// Settings that the operator wants.
    pub(crate) settings: Arc<ModuledSettings>,
    /// Root folder of the device's files.
    pub(crate) root: Root,
    /// Containers, if an engine is configured.
    pub(crate) containers: Option<Containers>,
    /// Host modules.
    pub(crate) processes: ProcessRuntime,
    /// Cgroup hierarchy in which the processes of modules are looked for.
    pub(crate) hierarchy: CgroupHierarchy,
    /// Namespaces that services of the host share with the daemon.
    host: HostFacts,
    /// Whoever looks at processes.
    pub(crate) gauge: Gauge,
    /// Registered modules.
    pub(crate) registrations: Registrations,
    /// Updates that can be taken back.
    pub(crate) replacements: Replacements,
    /// Executables of the host that were approved since they were configured.
    pub(crate) approvals: Approvals,
    /// Users that host modules have for themselves.
    pub(crate) own_users: OwnUsers,
    /// Images of modules, and of former ones.
    pub(crate) images: Images,
    /// Sockets that modules call.
    pub(crate) sockets: Sockets,
    /// Host modules that are started again when they end.
    pub(crate) restarts: Restarts,
    /// Starts that keyd is told of.
    pub(crate) measurements: Measurements,
    /// The modules' identities.
    pub(crate) identities: Arc<IdentityCache>,
    /// Board of problems, for operators.
    pub(crate) board: Board,
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// The runtimes, and what they share with the daemon.
#[derive(Debug)]
pub(crate) struct Runtimes {
    /// Containers, if an engine is configured.
    pub(crate) containers: Option<Containers>,
    /// Host modules.
    pub(crate) processes: ProcessRuntime,
    /// Cgroup hierarchy in which the processes of modules are looked for.
    pub(crate) hierarchy: CgroupHierarchy,
    /// Namespaces that services of the host share with the daemon.
    pub(crate) host: HostFacts,
    /// Whoever looks at processes.
    pub(crate) gauge: Gauge,
}

impl Modules {
    /// Returns the modules that are registered in the state folder below `root`.
    ///
    /// # Errors
    /// If a state file is there and cannot be used.
    pub(crate) fn load(
        root: Root,
        settings: Arc<ModuledSettings>,
        runtimes: Runtimes,
        identities: Arc<IdentityCache>,
        board: Board,
    ) -> Result<Self, StoreError> {
        let folder = root.state_folder(Daemon::Moduled);
        let registrations = Registrations::load(&folder)?;
        let own_users = OwnUsers::load(&folder)?;
        own_users.remember(registrations.of_processes(), &settings);
        let Runtimes { containers, processes, hierarchy, host, gauge } = runtimes;
        Ok(Self {
            containers,
            processes,
            hierarchy,
            host,
            gauge,
            registrations,
            replacements: Replacements::load(&folder)?,
            approvals: Approvals::load(&folder)?,
            own_users,
            images: Images::load(&folder),
            sockets: Sockets::default(),
            restarts: Restarts::default(),
            measurements: Measurements::default(),
            identities,
            board,
            locks: Mutex::default(),
            settings,
            root,
        })
    }

    /// This daemon's state folder.
    #[must_use]
    pub(crate) fn state_folder(&self) -> PathBuf {
        self.root.state_folder(Daemon::Moduled)
    }

    /// The approvals in force.
    #[must_use]
    pub(crate) fn approvals_in_force(&self) -> Vec<Approval> {
        self.approvals.list(|name| {
            let module = self.settings.host_modules.get(name).map(|module| module.sha256);
            let service = || {
                name.parse()
                    .ok()
                    .and_then(|id: ModuleId| self.settings.host_services.get(&id)?.sha256)
            };
            module.or_else(service)
        })
    }

    /// Returns the facts about what runs for a module, by its registration.
    #[must_use]
    pub(crate) fn facts(
        &self,
        module: &ModuleId,
        registration: Option<&Registration>,
    ) -> RunningFacts {
        match registration.map(|registration| &registration.workload) {
            Some(Workload::Container { .. }) => self
                .containers
                .as_ref()
                .map_or(RunningFacts::Unknown, |containers| containers.watch.facts(module)),
            Some(Workload::Process { .. }) => self.processes.facts(module),
            Some(Workload::Service { .. }) => RunningFacts::Host(self.host),
            None => RunningFacts::Stopped,
        }
    }

    /// The first process of a module as far as it is known without asking anybody. Where
    /// the search for a caller's ancestors ends, and no fact.
    #[must_use]
    pub(crate) fn first_process(
        &self,
        module: &ModuleId,
        registration: Option<&Registration>,
    ) -> Option<ProcessInstance> {
        if let Some(Workload::Process { .. }) = registration.map(|one| &one.workload) {
            return self.processes.first_process(module);
        }
        match self.facts(module, registration) {
            RunningFacts::Running(running) => Some(running.init),
            _ => None,
        }
    }

    /// Returns true if a container module was restarted and the engine has not said so
    /// yet.
    #[must_use]
    pub(crate) fn is_behind(&self, module: &ModuleId) -> bool {
        self.containers.as_ref().is_some_and(|containers| containers.watch.is_behind(module))
    }

    /// Returns the facts about what runs for a container module. Waits a moment for them
    /// to be known.
    pub(crate) async fn facts_soon(&self, module: &ModuleId) -> RunningFacts {
        match &self.containers {
            Some(containers) => containers.watch.facts_within(module, Duration::from_secs(2)).await,
            None => RunningFacts::Unknown,
        }
    }

    /// Returns the facts about what runs for a container module, with all that the engine
    /// knows of how `process` came into the container.
    pub(crate) async fn facts_about(
        &self,
        module: &ModuleId,
        process: &ProcessInstance,
    ) -> RunningFacts {
        match &self.containers {
            Some(containers) => containers.watch.facts_about(module, process).await,
            None => RunningFacts::Unknown,
        }
    }

    /// The layers of a module's image.
    #[must_use]
    pub(crate) fn layers(
        &self,
        module: &ModuleId,
        registration: Option<&Registration>,
    ) -> Option<ImageLayers> {
        match registration.map(|registration| &registration.workload) {
            Some(Workload::Container { .. }) => {
                self.containers.as_ref()?.watch.image_layers(module)
            }
            _ => None,
        }
    }

    /// All modules, of both runtimes.
    ///
    /// # Errors
    /// If the engine does not answer: a list without its containers would say that they
    /// are gone.
    pub(crate) async fn list(&self) -> Result<ModuleList, ModuleError> {
        let mut rows = Rows::default();
        for state in self.processes.list().await {
            rows.add(details(Kind::Process, &state), true);
        }
        if let Some(containers) = &self.containers {
            let listed = tokio::time::timeout(ENGINE_PATIENCE, containers.watch.list()).await;
            let listed = listed.map_err(|_| engine_is_silent(containers))?;
            let listed = listed.map_err(|error| engine_failed(containers, error))?;
            for state in listed {
                if !self.replacements.is_aside(state.container.as_ref(), &state.name) {
                    let state = named_as_registered(state, &self.registrations);
                    rows.add(
                        container_details(&state, &self.registrations),
                        shown::is_registered(&state, &self.registrations),
                    );
                }
            }
        }
        Ok(ModuleList { modules: rows.sorted() })
    }

    /// One module's state and runtime. A registered container counts whatever somebody
    /// else called it since.
    ///
    /// # Errors
    /// 404 if there is none.
    pub(crate) async fn state(&self, module: &ModuleId) -> Result<(Kind, State), ModuleError> {
        if let Some(state) =
            self.processes.list().await.into_iter().find(|state| state.name == module.name())
        {
            return Ok((Kind::Process, state));
        }
        match &self.containers {
            Some(containers) => {
                if let Some(own) = container_of(self.registrations.of(module).as_ref()) {
                    let found =
                        tokio::time::timeout(ENGINE_PATIENCE, containers.engine.container(own))
                            .await;
                    let found = found.map_err(|_| engine_is_silent(containers))?;
                    if let Some(container) =
                        found.map_err(|error| engine_failed(containers, error))?
                    {
                        return Ok((
                            Kind::Docker,
                            named_as_registered(container.status(), &self.registrations),
                        ));
                    }
                }
                Ok((Kind::Docker, self.by_name(containers, module).await?))
            }
            None => Err(ModuleError::NoModule(module.clone())),
        }
    }

    /// Checks that something has a module's name, in either runtime.
    ///
    /// # Errors
    /// 404 if nothing has; 409 if a container has that is no module.
    pub(crate) async fn holder(&self, module: &ModuleId) -> Result<(), ModuleError> {
        if self.processes.list().await.into_iter().any(|state| state.name == module.name()) {
            return Ok(());
        }
        match &self.containers {
            Some(containers) => self.by_name(containers, module).await.map(drop),
            None => Err(ModuleError::NoModule(module.clone())),
        }
    }

    async fn by_name(
        &self,
        containers: &Containers,
        module: &ModuleId,
    ) -> Result<State, ModuleError> {
        let found = tokio::time::timeout(ENGINE_PATIENCE, containers.engine.find(module)).await;
        let container = found.map_err(|_| engine_is_silent(containers))?;
        let container = container.map_err(|error| match error.status() {
            Some(404) => ModuleError::NoModule(module.clone()),
            _ => engine_failed(containers, error),
        })?;
        Ok(container.status())
    }

    /// One module as the API shows it.
    ///
    /// # Errors
    /// 404 if there is none.
    pub(crate) async fn details(&self, module: &ModuleId) -> Result<ModuleDetails, ModuleError> {
        Ok(match self.state(module).await? {
            (Kind::Process, state) => details(Kind::Process, &state),
            (Kind::Docker, state) => container_details(&state, &self.registrations),
        })
    }

    /// A module's log.
    ///
    /// # Errors
    /// 404 if there is no such module.
    pub(crate) async fn logs(
        &self,
        module: &ModuleId,
        query: &LogQuery,
    ) -> Result<LogStream, ModuleError> {
        match self.state(module).await?.0 {
            Kind::Process => self.processes.logs(module, query).map_err(ModuleError::from),
            Kind::Docker => {
                self.engine()?.engine.logs(module, query).await.map_err(ModuleError::from)
            }
        }
    }

    /// Holds other operations on the same module back while the guard lives. First
    /// settles an update of the module that was cut off.
    ///
    /// # Errors
    /// If that update cannot be settled now.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        module: &ModuleId,
    ) -> Result<OwnedMutexGuard<()>, ModuleError> {
        let guard = self.lock(module).await;
        replacements::settle(self, module).await?;
        Ok(guard)
    }

    /// As [`Self::claim`], if no other operation holds the module; `None` if one does.
    ///
    /// # Errors
    /// An update that was cut off cannot be settled now.
    pub(crate) async fn claim_now(
        self: &Arc<Self>,
        module: &ModuleId,
    ) -> Result<Option<OwnedMutexGuard<()>>, ModuleError> {
        let Ok(guard) = self.lock_of(module).try_lock_owned() else { return Ok(None) };
        replacements::settle(self, module).await?;
        Ok(Some(guard))
    }

    async fn lock(&self, module: &ModuleId) -> OwnedMutexGuard<()> {
        self.lock_of(module).lock_owned().await
    }

    fn lock_of(&self, module: &ModuleId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody waits for a lock that only the map holds.
        if locks.len() > 1024 {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        Arc::clone(locks.entry(module.name().to_owned()).or_default())
    }

    pub(crate) fn engine(&self) -> Result<&Containers, ModuleError> {
        self.containers.as_ref().ok_or(ModuleError::NoEngine)
    }
}

fn engine_is_silent(containers: &Containers) -> ModuleError {
    let (uri, seconds) = (&containers.uri, ENGINE_PATIENCE.as_secs());
    let what = format!("the container engine at {uri} did not answer within {seconds} s");
    ModuleError::EngineSilent(format!("{what}; {}", heard(containers)))
}

/// An engine that answers says itself what is wrong; of one that does not, when it was
/// heard and what to do.
fn engine_failed(containers: &Containers, error: EngineError) -> ModuleError {
    if error.status().is_some() {
        return error.into();
    }
    ModuleError::EngineAway { source: error, heard: heard(containers) }
}

fn heard(containers: &Containers) -> String {
    const SERVED: &str = "modules that run are served on";
    let (heard, meanwhile) = match containers.watch.silent_for() {
        Some(silent) => (format!("it was heard last {} s ago", silent.as_secs()), SERVED),
        None if containers.watch.is_reconciled() => {
            ("its events come, so it may only be slow".to_owned(), SERVED)
        }
        None => (
            "it was never heard since this daemon started".to_owned(),
            "until it is heard, modules in containers are refused",
        ),
    };
    format!("{heard}. Start it again (for Docker: systemctl restart docker); {meanwhile}")
}

/// The state of the agent, as the watchdog sees it.
///
/// # Errors
/// If the engine does not answer.
pub(crate) async fn agent_state(
    modules: &Modules,
    module: &ModuleId,
) -> Result<Option<ModuleState>, ModuleError> {
    match modules.state(module).await {
        Ok((_, state)) => Ok(Some(state.state)),
        Err(ModuleError::NoModule(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The agent's module id.
#[must_use]
pub(crate) fn edge_agent() -> ModuleId {
    match "$edgeAgent".parse() {
        Ok(id) => id,
        Err(error) => unreachable!("the agent's id is valid: {error}"),
    }
}
