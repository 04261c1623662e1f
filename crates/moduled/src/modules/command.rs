//! Operations on modules. Modules are prepared, created, updated, started, stopped and
//! removed in the runtime that their type names. They are registered so that their
//! callers can be measured.
//!
//! No call waits for a pull of another module.

use std::sync::Arc;
use std::time::Duration;

use edgekeep_core::attestation::{Policy, Registration, Workload};
use edgekeep_core::container::Operation;
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::{GenerationId, ModuleId};
use edgekeep_runtime::status::{ModuleState, ModuleStatus as State};

use super::shown;
use crate::modules::Modules;
use crate::modules::containers::{Task, container_of, ensure_networks};
use crate::modules::error::ModuleError;
use crate::modules::host::{process_spec, registered, renew};
use crate::modules::host_updates;
use crate::modules::image;
use crate::modules::measurements;
use crate::modules::options;
use crate::modules::replacements;
use crate::modules::services;
use crate::modules::sockets::{self, Access, Owner};
use crate::modules::spec::{Kind, ValidSpec};

/// Longest time that a stopping host module may take before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// The same for every module when the device ends (wire facts 8).
const GRACE_AT_END: Duration = Duration::from_secs(30);

/// Checks what a module is to be made of, and fetches a container module's image, which
/// it gives. An image that is present is used when it cannot be fetched: a device must
/// come up without its registry.
///
/// # Errors
/// If there is neither, or something is refused.
pub(crate) async fn prepare(
    modules: &Modules,
    spec: &ValidSpec,
) -> Result<Option<Sha256Digest>, ModuleError> {
    if spec.kind == Kind::Process {
        let process = process_spec(modules, spec).await?;
        let verified = modules.processes.verify(process.executable, process.sha256).await;
        return verified.map(|()| None).map_err(ModuleError::from);
    }
    let engine = &modules.engine()?.engine;
    // Nothing is fetched for what is refused anyway.
    let _ = options::options(modules, spec).await?;
    let _fetching = modules.images.fetching().await;
    if !spec.never_pull
        && let Err(error) = engine.pull(&spec.settings.image, spec.settings.auth.as_ref()).await
    {
        let Ok(image) = engine.image_id(&spec.settings.image).await else {
            return Err(error.into());
        };
        tracing::warn!(module = %spec.module, %error, %image, "image not pulled; the one that is present is used");
    }
    let measured = image::measured(engine, spec, modules.settings.image_policy.as_ref()).await;
    let image = measured?;
    modules.images.touch(image);
    Ok(Some(image))
}

/// Creates and registers a module; it is not started.
///
/// # Errors
/// If it exists, or its runtime refuses.
pub(crate) async fn create(modules: &Arc<Modules>, spec: &ValidSpec) -> Result<(), ModuleError> {
    let image = prepare(modules, spec).await?;
    let _lock = modules.claim(&spec.module).await?;
    if let Some(own) = container_of(modules.registrations.of(&spec.module).as_ref()) {
        // One that somebody renamed is still there.
        Task::new(modules, &spec.module, own).carry_out(Operation::Review, None).await?;
    }
    create_locked(modules, spec, image).await
}

/// Replaces a module by one of another specification, and starts it if asked to. What is
/// needed is fetched before the old one is touched, and what cannot be made or started
/// leaves the old one as it was, unless its type changes.
///
/// # Errors
/// 404 if there is none; if its runtime refuses.
pub(crate) async fn update(
    modules: &Arc<Modules>,
    spec: &ValidSpec,
    and_start: bool,
) -> Result<bool, ModuleError> {
    services::refuse(modules, &spec.module)?;
    let (kind, _) = modules.state(&spec.module).await?;
    let image = prepare(modules, spec).await?;
    let _lock = modules.claim(&spec.module).await?;
    match (kind, spec.kind) {
        (Kind::Docker, Kind::Docker) => {
            replacements::replace(modules, spec, image, and_start).await?;
        }
        (Kind::Process, Kind::Process) => host_updates::update(modules, spec, and_start).await?,
        _ => return remake(modules, spec, image, and_start).await,
    }
    Ok(and_start)
}

/// Replaces a module by one of another type.
async fn remake(
    modules: &Arc<Modules>,
    spec: &ValidSpec,
    image: Option<Sha256Digest>,
    and_start: bool,
) -> Result<bool, ModuleError> {
    if let Some(image) = image {
        ensure_networks(modules, &options::specification(modules, spec, image).await?).await?;
    }
    stop_locked(modules, &spec.module, None).await?;
    remove_locked(modules, &spec.module).await?;
    create_locked(modules, spec, image).await?;
    if and_start {
        if let Err(error) = start_locked(modules, &spec.module).await {
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
/// 404 if there is none; 409 for a container that this daemon did not register; if its
/// runtime refuses.
pub(crate) async fn start(modules: &Arc<Modules>, module: &ModuleId) -> Result<(), ModuleError> {
    services::refuse(modules, module)?;
    let _lock = modules.claim(module).await?;
    start_locked(modules, module).await
}

/// As [`start`], without beginning to watch over it: for who does.
pub(crate) async fn start_unwatched(
    modules: &Arc<Modules>,
    module: &ModuleId,
) -> Result<(), ModuleError> {
    let _lock = modules.claim(module).await?;
    start_only(modules, module).await.map(drop)
}

/// Watches over the host modules that were found running and are to be started again when
/// they end.
pub(crate) async fn watch_running(modules: &Arc<Modules>) {
    for state in modules.processes.list().await {
        if let (ModuleState::Running, Ok(module)) = (state.state, state.name.parse::<ModuleId>()) {
            watch_over(modules, &module, &state.image);
        }
    }
}

fn watch_over(modules: &Arc<Modules>, module: &ModuleId, image: &str) {
    if let Some(registered) = modules.settings.host_modules.get(image) {
        modules.restarts.watch(modules, module, registered.restart);
    }
}

/// Stops a module; one that does not run stays as it is. Its workload socket stays open
/// meanwhile.
///
/// # Errors
/// 404 if there is none; if its runtime refuses.
pub(crate) async fn stop(modules: &Arc<Modules>, module: &ModuleId) -> Result<(), ModuleError> {
    services::refuse(modules, module)?;
    stop_within(modules, module, None).await
}

async fn stop_within(
    modules: &Arc<Modules>,
    module: &ModuleId,
    grace: Option<Duration>,
) -> Result<(), ModuleError> {
    let _lock = modules.claim(module).await?;
    stop_locked(modules, module, grace).await
}

/// Stops and starts a module.
///
/// # Errors
/// 404 if there is none; if its runtime refuses.
pub(crate) async fn restart(modules: &Arc<Modules>, module: &ModuleId) -> Result<(), ModuleError> {
    services::refuse(modules, module)?;
    let _lock = modules.claim(module).await?;
    let (kind, state) = modules.state(module).await?;
    if kind == Kind::Process {
        let (registered, sha256) = registered(modules, &state.image)?;
        // An executable that could not be started again leaves what runs alone.
        let verified = modules.processes.verify(registered.executable.clone().into(), sha256).await;
        verified?;
        if host_updates::restart_approved(modules, module).await? {
            return Ok(());
        }
    }
    refuse_unregistered(modules, kind, &state)?;
    if let Some(own) = &state.container {
        // What could not be started again goes on running.
        Task::new(modules, module, own).carry_out(Operation::Prepare, None).await?;
    }
    stop_locked(modules, module, None).await?;
    start_locked(modules, module).await
}

/// Removes a module, its registration and its sockets.
///
/// # Errors
/// 404 if there is none; if its runtime refuses.
pub(crate) async fn remove(modules: &Arc<Modules>, module: &ModuleId) -> Result<(), ModuleError> {
    services::refuse(modules, module)?;
    let _lock = modules.claim(module).await?;
    remove_locked(modules, module).await?;
    modules.sockets.remove(modules, module).await;
    Ok(())
}

/// Stops all modules, the agent first, so that nobody starts the others again. Failures
/// are logged.
pub(crate) async fn stop_all(modules: &Arc<Modules>) {
    let agent = crate::modules::edge_agent();
    if modules.registrations.of(&agent).is_some()
        && let Err(error) = stop_within(modules, &agent, Some(GRACE_AT_END)).await
    {
        tracing::warn!(%error, "agent not stopped");
    }
    let mut stopping = tokio::task::JoinSet::new();
    let all = modules.registrations.modules().into_iter();
    for module in all.filter(|module| services::find(modules, module).is_none()) {
        let modules = Arc::clone(modules);
        stopping.spawn(async move {
            if let Err(error) = stop_within(&modules, &module, Some(GRACE_AT_END)).await {
                tracing::warn!(%module, %error, "module not stopped");
            }
        });
    }
    stopping.join_all().await;
}

pub(crate) async fn create_locked(
    modules: &Arc<Modules>,
    spec: &ValidSpec,
    image: Option<Sha256Digest>,
) -> Result<(), ModuleError> {
    let module = &spec.module;
    refuse_taken_name(modules, spec).await?;
    // Before anything is made: nothing slow stands between making and registering.
    let generation = generation_of(modules, module).await;
    let process = match spec.kind {
        Kind::Docker => None,
        Kind::Process => Some(process_spec(modules, spec).await?),
    };
    let access = match &process {
        None => Access { owner: Owner::Container, host_agent: false },
        Some(process) => Access {
            owner: Owner::User(process.plan.uid),
            host_agent: registered(modules, &process.image)?.0.management,
        },
    };
    modules.sockets.open(modules, module, access).await?;
    let workload = match process {
        None => {
            let containers = modules.engine()?;
            let _fetching = modules.images.fetching().await;
            let image = image
                .ok_or_else(|| ModuleError::Device("the image was not measured".to_owned()))?;
            let container = options::specification(modules, spec, image).await?;
            ensure_networks(modules, &container).await?;
            let created = containers.engine.create(module, &container).await?;
            if let Err(refused) =
                options::judge_made(modules, module, &created, &container.binds).await
            {
                // Nothing of it ran yet.
                containers.engine.remove(&created.container).await?;
                return Err(refused);
            }
            modules.images.touch(created.image);
            Workload::Container {
                container: created.container,
                image: created.image,
                options: created.options,
            }
        }
        Some(process) => {
            let (executable, uid) = (process.sha256, process.plan.uid);
            modules.processes.create(module, process).await?;
            Workload::Process { executable, uid }
        }
    };
    let registration = Registration {
        module: module.clone(),
        generation,
        policy: policy(modules, spec),
        workload,
    };
    if let Err(error) = modules.registrations.put(registration).await {
        // What cannot be registered, for example because the disk is full, is not left
        // behind.
        let undone = match spec.kind {
            Kind::Docker => {
                modules.engine()?.engine.delete(module).await.map_err(ModuleError::from)
            }
            Kind::Process => modules.processes.remove(module).await.map_err(ModuleError::from),
        };
        if let Err(error) = undone {
            tracing::warn!(%module, %error, "module that could not be registered was not removed");
        }
        return Err(ModuleError::NotWritten(error));
    }
    measurements::made(modules, module).await;
    Ok(())
}

async fn generation_of(modules: &Modules, module: &ModuleId) -> Option<GenerationId> {
    match modules.identities.module(&module.hub_id()).await {
        Ok(identity) => identity.generation.parse().ok(),
        // The agent makes identities first; without one the module starts, and is refused
        // an identity until it has one.
        Err(error) => {
            tracing::debug!(%module, %error, "module created before its identity is known");
            None
        }
    }
}

/// The registration of a module that is made of this.
pub(crate) async fn new_registration(
    modules: &Modules,
    spec: &ValidSpec,
    workload: Workload,
) -> Registration {
    let generation = generation_of(modules, &spec.module).await;
    Registration {
        module: spec.module.clone(),
        generation,
        policy: policy(modules, spec),
        workload,
    }
}

/// A module has its name in both runtimes: two of one name would share a registration.
async fn refuse_taken_name(modules: &Modules, spec: &ValidSpec) -> Result<(), ModuleError> {
    services::refuse(modules, &spec.module)?;
    match modules.holder(&spec.module).await {
        Ok(()) => Err(ModuleError::NameTaken(spec.module.clone())),
        Err(ModuleError::NoModule(_)) => Ok(()),
        // An engine that does not answer is no obstacle for a host module.
        Err(_) if spec.kind == Kind::Process => Ok(()),
        Err(error) => Err(error),
    }
}

pub(crate) async fn start_locked(
    modules: &Arc<Modules>,
    module: &ModuleId,
) -> Result<(), ModuleError> {
    let (kind, state) = start_only(modules, module).await?;
    if kind == Kind::Process {
        watch_over(modules, module, &state.image);
    }
    Ok(())
}

/// Starts a module and gives its runtime and its state before that.
async fn start_only(
    modules: &Arc<Modules>,
    module: &ModuleId,
) -> Result<(Kind, State), ModuleError> {
    let (kind, state) = modules.state(module).await?;
    refuse_unregistered(modules, kind, &state)?;
    if kind == Kind::Process && state.state != ModuleState::Running {
        renew(modules, module).await?;
    }
    let access = sockets::access(modules, module).await;
    modules.sockets.open(modules, module, access).await?;
    // Measured first, started then.
    measurements::starting(modules, module).await;
    match &state.container {
        Some(own) => Task::new(modules, module, own).carry_out(Operation::Start, None).await?,
        None => {
            modules.processes.start(module).await?;
        }
    }
    Ok((kind, state))
}

/// Nobody judged the options of a container that something else made.
fn refuse_unregistered(modules: &Modules, kind: Kind, state: &State) -> Result<(), ModuleError> {
    if kind == Kind::Process || shown::is_registered(state, &modules.registrations) {
        return Ok(());
    }
    Err(ModuleError::NotRegistered(state.name.clone()))
}

/// Without a grace a container has its own (`StopTimeout`), or the engine's.
pub(crate) async fn stop_locked(
    modules: &Modules,
    module: &ModuleId,
    grace: Option<Duration>,
) -> Result<(), ModuleError> {
    modules.restarts.forget(module);
    let (kind, state) = modules.state(module).await?;
    match (kind, &state.container) {
        (Kind::Docker, Some(container)) => {
            Task::new(modules, module, container).carry_out(Operation::Stop, grace).await
        }
        _ => {
            modules.processes.stop(module, grace.unwrap_or(GRACE)).await.map_err(ModuleError::from)
        }
    }
}

async fn remove_locked(modules: &Modules, module: &ModuleId) -> Result<(), ModuleError> {
    let (kind, state) = modules.state(module).await?;
    // The registration goes first: a module that is half removed has no identity any
    // more.
    modules.registrations.remove(module).await.map_err(ModuleError::hidden)?;
    match kind {
        Kind::Docker => {
            let engine = &modules.engine()?.engine;
            // By its id: somebody may have given it another name, or its name to another.
            match &state.container {
                Some(container) => engine.remove(container).await,
                None => engine.delete(module).await,
            }
            .map_err(ModuleError::from)
        }
        Kind::Process => modules.processes.remove(module).await.map_err(ModuleError::from),
    }
}

fn policy(modules: &Modules, spec: &ValidSpec) -> Policy {
    let configured =
        modules.settings.policies.iter().find(|(module, _)| module.name() == spec.module.name());
    match configured {
        Some((_, policy)) => *policy,
        None if spec.module.is_edge_agent() || spec.kind == Kind::Process => Policy::Executable,
        None => Policy::Image,
    }
}

#[cfg(test)]
mod tests;
