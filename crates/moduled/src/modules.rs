//! The modules themselves: created, started, stopped and removed in the runtime that their type names, and registered so
//! that their callers can be measured.
//!
//! One operation a module at a time; different modules do not wait for each other, and no call waits for a pull of
//! another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgekeep_api::management::{
    DetailsConfig, ExitStatus, ModuleDetails, ModuleList, ModuleSpec, ModuleStatus, RuntimeStatus,
};
use edgekeep_core::attestation::{HostFacts, Policy, ProcessInstance, Registration, RunningFacts, Workload};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::listen::ListenError;
use edgekeep_daemon::server::HttpError;
use edgekeep_runtime::engine::{Engine, EngineError};
use edgekeep_runtime::evidence::{CgroupHierarchy, ImageLayers};
use edgekeep_runtime::facts::EngineWatch;
use edgekeep_runtime::logs::{LogQuery, LogStream};
use edgekeep_runtime::process::{ProcessError, ProcessRuntime};
use edgekeep_runtime::status::{ModuleState, ModuleStatus as State};
use http::StatusCode;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::OwnedMutexGuard;

use crate::host_modules::{process_spec, registered, renew};
use crate::host_services;
use crate::registrations::Registrations;
use crate::replacements::{self, Replacements};
use crate::service::Moduled;
use crate::sockets::{self, Access, Owner, SocketError};
use crate::spec::{Kind, ValidSpec};
use crate::{container, image};

/// How long the engine may take to answer a question about what is there.
const ENGINE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a stopping host module may take before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// The same for every module when the device ends (wire facts 8).
const GRACE_AT_END: Duration = Duration::from_secs(30);

/// The container engine, and what is known of its containers.
#[derive(Debug)]
pub struct Containers {
    /// Its API.
    pub engine: Engine,
    /// What its event stream says.
    pub watch: EngineWatch,
    /// Its socket, for people.
    pub uri: String,
}

/// Both runtimes.
#[derive(Debug)]
pub struct Modules {
    /// Containers, if an engine is configured.
    pub containers: Option<Containers>,
    /// Host modules.
    pub processes: ProcessRuntime,
    /// In which cgroups are looked for.
    pub hierarchy: CgroupHierarchy,
    /// What services of the host share with the daemon.
    host: HostFacts,
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Modules {
    /// The modules of these runtimes.
    #[must_use]
    pub fn new(
        containers: Option<Containers>,
        processes: ProcessRuntime,
        hierarchy: CgroupHierarchy,
        host: HostFacts,
    ) -> Self {
        Self { containers, processes, hierarchy, host, locks: Mutex::new(HashMap::new()) }
    }

    /// What runs for a module, by its registration.
    #[must_use]
    pub fn facts(&self, module: &ModuleId, registration: Option<&Registration>) -> RunningFacts {
        match registration.map(|registration| &registration.workload) {
            Some(Workload::Container { .. }) => {
                self.containers.as_ref().map_or(RunningFacts::Unknown, |containers| containers.watch.facts(module))
            }
            Some(Workload::Process { .. }) => self.processes.facts(module),
            Some(Workload::Service { .. }) => RunningFacts::Host(self.host),
            None => RunningFacts::Stopped,
        }
    }

    /// Whether a container module was restarted and the engine has not said so yet.
    #[must_use]
    pub fn is_behind(&self, module: &ModuleId) -> bool {
        self.containers.as_ref().is_some_and(|containers| containers.watch.is_behind(module))
    }

    /// What runs for a container module, waiting a moment for it to be known.
    pub async fn facts_soon(&self, module: &ModuleId) -> RunningFacts {
        match &self.containers {
            Some(containers) => containers.watch.facts_within(module, Duration::from_secs(2)).await,
            None => RunningFacts::Unknown,
        }
    }

    /// What runs for a container module, with all that the engine knows of how `process` came into it.
    pub async fn facts_about(&self, module: &ModuleId, process: &ProcessInstance) -> RunningFacts {
        match &self.containers {
            Some(containers) => containers.watch.facts_about(module, process).await,
            None => RunningFacts::Unknown,
        }
    }

    /// The layers of a module's image.
    #[must_use]
    pub fn layers(&self, module: &ModuleId, registration: Option<&Registration>) -> Option<ImageLayers> {
        match registration.map(|registration| &registration.workload) {
            Some(Workload::Container { .. }) => self.containers.as_ref()?.watch.image_layers(module),
            _ => None,
        }
    }

    /// All modules, of both runtimes.
    ///
    /// # Errors
    /// If the engine does not answer: a list without its containers would say that they are gone.
    pub async fn list(
        &self,
        registrations: &Registrations,
        replacements: &Replacements,
    ) -> Result<ModuleList, HttpError> {
        let mut modules: Vec<ModuleDetails> =
            self.processes.list().await.into_iter().map(|state| details(Kind::Process, &state)).collect();
        if let Some(containers) = &self.containers {
            let listed = tokio::time::timeout(ENGINE_PATIENCE, containers.watch.list()).await;
            let listed = listed.map_err(|_| engine_is_silent(containers))?.map_err(|error| of_engine(&error))?;
            let shown = listed.iter().filter(|state| !replacements.is_aside(state.container.as_ref(), &state.name));
            modules.extend(shown.map(|state| container_details(state, registrations)));
        }
        modules.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(ModuleList { modules })
    }

    /// One module's state and runtime.
    ///
    /// # Errors
    /// 404 if there is none.
    pub async fn state(&self, module: &ModuleId) -> Result<(Kind, State), HttpError> {
        if let Some(state) = self.processes.list().await.into_iter().find(|state| state.name == module.name()) {
            return Ok((Kind::Process, state));
        }
        match &self.containers {
            Some(containers) => {
                let found = tokio::time::timeout(ENGINE_PATIENCE, containers.engine.find(module)).await;
                let container = found.map_err(|_| engine_is_silent(containers))?.map_err(|error| of_engine(&error))?;
                Ok((Kind::Docker, container.status()))
            }
            None => Err(no_module(module)),
        }
    }

    /// One module as the API shows it.
    ///
    /// # Errors
    /// 404 if there is none.
    pub async fn details(&self, module: &ModuleId, registrations: &Registrations) -> Result<ModuleDetails, HttpError> {
        Ok(match self.state(module).await? {
            (Kind::Process, state) => details(Kind::Process, &state),
            (Kind::Docker, state) => container_details(&state, registrations),
        })
    }

    /// A module's log.
    ///
    /// # Errors
    /// 404 if there is no such module.
    pub async fn logs(&self, module: &ModuleId, query: &LogQuery) -> Result<LogStream, HttpError> {
        match self.state(module).await?.0 {
            Kind::Process => self.processes.logs(module, query).map_err(|error| of_process(&error)),
            Kind::Docker => self.engine()?.engine.logs(module, query).await.map_err(|error| of_engine(&error)),
        }
    }

    /// Holds other operations on the same module back while the guard lives. An update of it that was cut off is settled
    /// first.
    ///
    /// # Errors
    /// That cannot be settled now.
    pub(crate) async fn claim(
        &self,
        service: &Arc<Moduled>,
        module: &ModuleId,
    ) -> Result<OwnedMutexGuard<()>, HttpError> {
        let guard = self.lock(module).await;
        replacements::settle(service, module).await?;
        Ok(guard)
    }

    async fn lock(&self, module: &ModuleId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody waits for a lock that only the map holds.
            if locks.len() > 1024 {
                locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            }
            Arc::clone(locks.entry(module.name().to_owned()).or_default())
        };
        lock.lock_owned().await
    }

    pub(crate) fn engine(&self) -> Result<&Containers, HttpError> {
        self.containers.as_ref().ok_or_else(|| {
            HttpError::internal("no container engine is configured; set [moby_runtime] uri, or use type \"process\"")
        })
    }
}

/// Checks what a module is to be made of, and fetches a container module's image, which it gives. An image that is present
/// is used when it cannot be fetched: a device must come up without its registry.
///
/// # Errors
/// If there is neither, or something is refused.
pub async fn prepare(service: &Moduled, spec: &ValidSpec) -> Result<Option<Sha256Digest>, HttpError> {
    if spec.kind == Kind::Process {
        let process = process_spec(service, spec)?;
        let verified = service.modules.processes.verify(process.executable, process.sha256).await;
        return verified.map(|()| None).map_err(|error| of_process(&error));
    }
    let engine = &service.modules.engine()?.engine;
    // Nothing is fetched for what is refused anyway.
    let _ = container::options(service, spec).await?;
    let _fetching = service.images.fetching().await;
    if !spec.never_pull
        && let Err(error) = engine.pull(&spec.settings.image, spec.settings.auth.as_ref()).await
    {
        let Ok(image) = engine.image_id(&spec.settings.image).await else { return Err(of_engine(&error)) };
        tracing::warn!(module = %spec.module, %error, %image, "image not pulled; the one that is present is used");
    }
    let measured = image::measured(engine, spec, service.settings.image_policy.as_ref()).await;
    let image = measured.map_err(|error| error.answer())?;
    service.images.touch(image);
    Ok(Some(image))
}

/// Creates and registers a module; it is not started.
///
/// # Errors
/// If it exists, or its runtime refuses.
pub async fn create(service: &Arc<Moduled>, spec: &ValidSpec) -> Result<(), HttpError> {
    let image = prepare(service, spec).await?;
    let _lock = service.modules.claim(service, &spec.module).await?;
    create_locked(service, spec, image).await
}

/// Replaces a module by one of another specification, and starts it if asked to. What is needed is fetched before the old
/// one is touched, and a container that cannot be made or started leaves the old one as it was.
///
/// # Errors
/// 404 if there is none; if its runtime refuses.
pub async fn update(service: &Arc<Moduled>, spec: &ValidSpec, and_start: bool) -> Result<bool, HttpError> {
    host_services::refuse(service, &spec.module)?;
    let (kind, _) = service.modules.state(&spec.module).await?;
    let image = prepare(service, spec).await?;
    let _lock = service.modules.claim(service, &spec.module).await?;
    if (kind, spec.kind) == (Kind::Docker, Kind::Docker) {
        return replacements::replace(service, spec, image, and_start).await.map(|()| and_start);
    }
    stop_locked(service, &spec.module, None).await?;
    remove_locked(service, &spec.module).await?;
    create_locked(service, spec, image).await?;
    if and_start {
        if let Err(error) = start_locked(service, &spec.module).await {
            tracing::warn!(module = %spec.module, %error, "module not started after its update");
            return Ok(false);
        }
        return Ok(true);
    }
    Ok(false)
}

/// Starts a module; one that runs stays as it is.
///
/// # Errors
/// 404 if there is none; if its runtime refuses.
pub async fn start(service: &Arc<Moduled>, module: &ModuleId) -> Result<(), HttpError> {
    host_services::refuse(service, module)?;
    let _lock = service.modules.claim(service, module).await?;
    start_locked(service, module).await
}

/// As [`start`], without beginning to watch over it: for who does.
pub(crate) async fn start_unwatched(service: &Arc<Moduled>, module: &ModuleId) -> Result<(), HttpError> {
    let _lock = service.modules.claim(service, module).await?;
    start_only(service, module).await.map(drop)
}

/// Watches over the host modules that were found running and are to be started again when they end.
pub async fn watch_running(service: &Arc<Moduled>) {
    for state in service.modules.processes.list().await {
        if let (ModuleState::Running, Ok(module)) = (state.state, state.name.parse::<ModuleId>()) {
            watch_over(service, &module, &state.image);
        }
    }
}

fn watch_over(service: &Arc<Moduled>, module: &ModuleId, image: &str) {
    if let Some(registered) = service.settings.host_modules.get(image) {
        service.restarts.watch(service, module, registered.restart);
    }
}

/// Stops a module; one that does not run stays as it is. Its workload socket stays open meanwhile.
///
/// # Errors
/// 404 if there is none; if its runtime refuses.
pub async fn stop(service: &Arc<Moduled>, module: &ModuleId) -> Result<(), HttpError> {
    host_services::refuse(service, module)?;
    stop_within(service, module, None).await
}

async fn stop_within(service: &Arc<Moduled>, module: &ModuleId, grace: Option<Duration>) -> Result<(), HttpError> {
    let _lock = service.modules.claim(service, module).await?;
    stop_locked(service, module, grace).await
}

/// Stops and starts a module.
///
/// # Errors
/// 404 if there is none; if its runtime refuses.
pub async fn restart(service: &Arc<Moduled>, module: &ModuleId) -> Result<(), HttpError> {
    host_services::refuse(service, module)?;
    let _lock = service.modules.claim(service, module).await?;
    let (kind, state) = service.modules.state(module).await?;
    if kind == Kind::Process {
        let (registered, sha256) = registered(service, &state.image)?;
        // An executable that could not be started again leaves what runs alone.
        let verified = service.modules.processes.verify(registered.executable.clone().into(), sha256).await;
        verified.map_err(|error| of_process(&error))?;
    }
    stop_locked(service, module, None).await?;
    start_locked(service, module).await
}

/// Removes a module, its registration and its sockets.
///
/// # Errors
/// 404 if there is none; if its runtime refuses.
pub async fn remove(service: &Arc<Moduled>, module: &ModuleId) -> Result<(), HttpError> {
    host_services::refuse(service, module)?;
    let _lock = service.modules.claim(service, module).await?;
    remove_locked(service, module).await?;
    service.sockets.remove(service, module).await;
    Ok(())
}

/// Stops all modules, the agent first, so that nobody starts the others again. Failures are logged.
pub async fn stop_all(service: &Arc<Moduled>) {
    let agent = crate::service::edge_agent();
    if service.registrations.of(&agent).is_some()
        && let Err(error) = stop_within(service, &agent, Some(GRACE_AT_END)).await
    {
        tracing::warn!(%error, "agent not stopped");
    }
    let mut stopping = tokio::task::JoinSet::new();
    let all = service.registrations.modules().into_iter();
    for module in all.filter(|module| host_services::find(service, module).is_none()) {
        let service = Arc::clone(service);
        stopping.spawn(async move {
            if let Err(error) = stop_within(&service, &module, Some(GRACE_AT_END)).await {
                tracing::warn!(%module, %error, "module not stopped");
            }
        });
    }
    stopping.join_all().await;
}

pub(crate) async fn create_locked(
    service: &Arc<Moduled>,
    spec: &ValidSpec,
    image: Option<Sha256Digest>,
) -> Result<(), HttpError> {
    let module = &spec.module;
    refuse_taken_name(service, spec).await?;
    // Before anything is made: nothing slow stands between making and registering.
    let generation = match service.identities.module(&module.hub_id()).await {
        Ok(identity) => identity.generation.parse().ok(),
        // The agent makes identities first; without one the module starts, and is refused an identity until it has one.
        Err(error) => {
            tracing::debug!(%module, %error, "module created before its identity is known");
            None
        }
    };
    let process = match spec.kind {
        Kind::Docker => None,
        Kind::Process => Some(process_spec(service, spec)?),
    };
    let access = match &process {
        None => Access { owner: Owner::Container, host_agent: false },
        Some(process) => Access {
            owner: Owner::User(process.plan.uid),
            host_agent: registered(service, &process.image)?.0.management,
        },
    };
    service.sockets.open(service, module, access).await.map_err(|error| of_socket(&error))?;
    let workload = match process {
        None => {
            let containers = service.modules.engine()?;
            let _fetching = service.images.fetching().await;
            let image = image.ok_or_else(|| HttpError::internal("the image was not measured"))?;
            let container = container::specification(service, spec, image).await?;
            if let Some(network) = container.network {
                let options = service.settings.engine.as_ref().map(|engine| engine.network_options.clone());
                containers
                    .engine
                    .ensure_network(network, &options.unwrap_or_default())
                    .await
                    .map_err(|error| of_engine(&error))?;
            }
            let created = containers.engine.create(module, &container).await.map_err(|error| of_engine(&error))?;
            service.images.touch(created.image);
            Workload::Container { container: created.container, image: created.image, options: created.options }
        }
        Some(process) => {
            let (executable, uid) = (process.sha256, process.plan.uid);
            service.modules.processes.create(module, process).await.map_err(|error| of_process(&error))?;
            Workload::Process { executable, uid }
        }
    };
    let registration = Registration { module: module.clone(), generation, policy: policy(service, spec), workload };
    if let Err(error) = service.registrations.put(registration).await {
        // What cannot be registered, for example because the disk is full, is not left behind.
        let undone = match spec.kind {
            Kind::Docker => service.modules.engine()?.engine.delete(module).await.map_err(|error| of_engine(&error)),
            Kind::Process => service.modules.processes.remove(module).await.map_err(|error| of_process(&error)),
        };
        if let Err(error) = undone {
            tracing::warn!(%module, %error, "module that could not be registered was not removed");
        }
        return Err(HttpError::internal(chain(&error)));
    }
    Ok(())
}

/// A module has its name in both runtimes: two of one name would share a registration.
async fn refuse_taken_name(service: &Moduled, spec: &ValidSpec) -> Result<(), HttpError> {
    host_services::refuse(service, &spec.module)?;
    match service.modules.state(&spec.module).await {
        Ok(_) => {
            let message = format!("there already is a module {}", spec.module.name());
            Err(HttpError::new(StatusCode::CONFLICT, message))
        }
        Err(error) if error.status() == StatusCode::NOT_FOUND => Ok(()),
        // An engine that does not answer is no obstacle for a host module.
        Err(_) if spec.kind == Kind::Process => Ok(()),
        Err(error) => Err(error),
    }
}

pub(crate) async fn start_locked(service: &Arc<Moduled>, module: &ModuleId) -> Result<(), HttpError> {
    let (kind, state) = start_only(service, module).await?;
    if kind == Kind::Process {
        watch_over(service, module, &state.image);
    }
    Ok(())
}

/// Starts a module and gives its runtime and its state before that.
async fn start_only(service: &Arc<Moduled>, module: &ModuleId) -> Result<(Kind, State), HttpError> {
    let (kind, state) = service.modules.state(module).await?;
    if kind == Kind::Process && state.state != ModuleState::Running {
        renew(service, module).await?;
    }
    let access = sockets::access(service, module).await;
    service.sockets.open(service, module, access).await.map_err(|error| of_socket(&error))?;
    match kind {
        Kind::Docker => service.modules.engine()?.engine.start(module).await.map_err(|error| of_engine(&error)),
        Kind::Process => service.modules.processes.start(module).await.map_err(|error| of_process(&error)),
    }
    .map(|()| (kind, state))
}

/// Without a grace a container has its own (`StopTimeout`), or the engine's.
async fn stop_locked(service: &Moduled, module: &ModuleId, grace: Option<Duration>) -> Result<(), HttpError> {
    service.restarts.forget(module);
    match service.modules.state(module).await?.0 {
        Kind::Docker => service.modules.engine()?.engine.stop(module, grace).await.map_err(|error| of_engine(&error)),
        Kind::Process => {
            service.modules.processes.stop(module, grace.unwrap_or(GRACE)).await.map_err(|error| of_process(&error))
        }
    }
}

async fn remove_locked(service: &Moduled, module: &ModuleId) -> Result<(), HttpError> {
    let (kind, _) = service.modules.state(module).await?;
    // The registration goes first: a module that is half removed has no identity any more.
    service.registrations.remove(module).await.map_err(|error| HttpError::hidden(&error))?;
    match kind {
        Kind::Docker => service.modules.engine()?.engine.delete(module).await.map_err(|error| of_engine(&error)),
        Kind::Process => service.modules.processes.remove(module).await.map_err(|error| of_process(&error)),
    }
}

fn policy(service: &Moduled, spec: &ValidSpec) -> Policy {
    let configured = service.settings.policies.iter().find(|(module, _)| module.name() == spec.module.name());
    match configured {
        Some((_, policy)) => *policy,
        None if spec.module.is_edge_agent() || spec.kind == Kind::Process => Policy::Executable,
        None => Policy::Image,
    }
}

/// A fresh module as create and update answer it: the request's settings, without credentials and environment.
#[must_use]
pub fn echo(request: &ModuleSpec, running: bool) -> ModuleDetails {
    let mut settings = request.config.settings.clone();
    if let Some(settings) = settings.as_object_mut() {
        settings.remove("auth");
        if let Some(options) = settings.get_mut("createOptions").and_then(Value::as_object_mut) {
            options.retain(|name, _| !name.eq_ignore_ascii_case("env"));
        }
    }
    remove_agents_copies(&mut settings);
    ModuleDetails {
        id: "id".into(),
        name: request.name.clone(),
        kind: request.kind.clone(),
        config: DetailsConfig { settings, env: Vec::new() },
        status: ModuleStatus {
            start_time: None,
            exit_status: None,
            runtime_status: RuntimeStatus {
                status: if running { "running" } else { "stopped" }.into(),
                description: None,
            },
        },
    }
}

/// Removes the labels in which agents keep what they applied to themselves, environment and options.
pub(crate) fn remove_agents_copies(settings: &mut Value) {
    let Some(Value::Object(labels)) = settings.pointer_mut("/createOptions/Labels") else { return };
    labels.remove("net.azure-devices.edge.env");
    labels.remove("net.azure-devices.edge.create-options");
}

fn details(kind: Kind, state: &State) -> ModuleDetails {
    let labels: Map<String, Value> =
        state.labels.iter().map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect();
    let mut settings = json!({"image": state.image, "createOptions": {"Labels": labels}});
    if let (Some(content), Some(settings)) = (state.content, settings.as_object_mut()) {
        settings.insert("imageHash".into(), Value::String(content.to_string()));
    }
    ModuleDetails {
        id: "id".into(),
        name: state.name.clone(),
        kind: kind.as_str().into(),
        config: DetailsConfig { settings, env: Vec::new() },
        status: ModuleStatus {
            start_time: state.started.and_then(rfc3339),
            exit_status: state.exit.and_then(|exit| {
                // An end that nobody was told is shown as a failure: restart policies then do their work.
                Some(ExitStatus { exit_time: rfc3339(exit.at)?, status_code: exit.code.unwrap_or(-1).to_string() })
            }),
            runtime_status: RuntimeStatus { status: state.state.as_str().into(), description: state.note.clone() },
        },
    }
}

/// A container as the API shows it. One that is not registered, because it was made by something else or the daemon died
/// while it was made, has no identity and never will: it is shown as dead, which makes agents replace it.
fn container_details(state: &State, registrations: &Registrations) -> ModuleDetails {
    let mut details = details(Kind::Docker, state);
    let registered = state.name.parse().ok().and_then(|module| registrations.of(&module)).is_some_and(|registration| {
        matches!(&registration.workload, Workload::Container { container, .. } if Some(container) == state.container.as_ref())
    });
    if !registered {
        details.status.runtime_status =
            RuntimeStatus { status: "dead".into(), description: Some("not registered by this daemon".into()) };
    }
    details
}

fn engine_is_silent(containers: &Containers) -> HttpError {
    HttpError::internal(format!(
        "the container engine at {} did not answer within {} s",
        containers.uri,
        ENGINE_PATIENCE.as_secs()
    ))
}

fn rfc3339(time: OffsetDateTime) -> Option<String> {
    time.to_offset(time::UtcOffset::UTC).format(&Rfc3339).ok()
}

fn no_module(module: &ModuleId) -> HttpError {
    HttpError::not_found(format!("there is no module {}", module.name()))
}

/// An error of the engine: its own status where it gave one.
pub(crate) fn of_engine(error: &EngineError) -> HttpError {
    let status = error.status().and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.filter(|status| status.is_client_error() || status.is_server_error());
    HttpError::new(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), chain(error))
}

/// A name that is too long for its socket is the caller's to change; other trouble with sockets is ours.
pub(crate) fn of_socket(error: &SocketError) -> HttpError {
    match error {
        SocketError::Listen(ListenError::TooLong { .. }) => HttpError::bad_request(chain(error)),
        other => HttpError::hidden(other),
    }
}

pub(crate) fn of_process(error: &ProcessError) -> HttpError {
    let status = error.status().and_then(|status| StatusCode::from_u16(status).ok());
    HttpError::new(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), chain(error))
}

/// The error and its causes, as existing clients get them (wire facts 1.5).
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str("\ncaused by: ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The state of the agent, as the watchdog sees it.
///
/// # Errors
/// If the engine does not answer.
pub async fn agent_state(service: &Moduled, module: &ModuleId) -> Result<Option<ModuleState>, HttpError> {
    match service.modules.state(module).await {
        Ok((_, state)) => Ok(Some(state.state)),
        Err(error) if error.status() == StatusCode::NOT_FOUND => Ok(None),
        Err(error) => Err(error),
    }
}
