//! Updates of containers that can be taken back: the old container is kept aside until
//! the new one is whole.
//!
//! What was begun is written down first. A daemon that finds something written down,
//! because it was killed meanwhile or the engine went away, settles it before anything
//! else happens to the module, by
//! [`Replacement::settle`](edgekeep_core::replacement::Replacement::settle).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use edgekeep_core::container::{Obstacle, Operation};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::{ContainerId, ModuleId};
use edgekeep_core::replacement::{Replacement, Settlement};
use edgekeep_daemon::store::{StateFile, StoreError};
use edgekeep_runtime::engine::{Container, Engine, EngineError};
use edgekeep_runtime::status::ModuleState;
use tokio::sync::{Mutex, watch};

use crate::modules::Modules;
use crate::modules::containers::{Task, container_of, ensure_networks};
use crate::modules::error::ModuleError;
use crate::modules::host_updates;
use crate::modules::options;
use crate::modules::spec::ValidSpec;
use crate::modules::{create_locked, start_locked};

/// Time until an update that could not be settled is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// The updates that were begun, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Replacements {
    file: StateFile<BTreeMap<String, Replacement>>,
    begun: RwLock<BTreeMap<String, Replacement>>,
    /// Held while a change is being written, so that the file always has the newest.
    writing: Mutex<()>,
}

impl Replacements {
    /// Reads what was begun and not settled.
    ///
    /// # Errors
    /// If the file is there and cannot be used.
    pub(crate) fn load(state_folder: &Path) -> Result<Self, StoreError> {
        let file = StateFile::new(state_folder.join("replacements.json"), "replacements", 1);
        let begun = RwLock::new(file.load()?.unwrap_or_default());
        Ok(Self { file, begun, writing: Mutex::new(()) })
    }

    /// Returns the update that was begun for a module.
    #[must_use]
    pub(crate) fn of(&self, module: &ModuleId) -> Option<Replacement> {
        self.begun.read().unwrap_or_else(PoisonError::into_inner).get(module.name()).cloned()
    }

    /// Returns true if a container is kept aside. Such a container is no module, whatever
    /// its labels say.
    #[must_use]
    pub(crate) fn is_aside(&self, container: Option<&ContainerId>, name: &str) -> bool {
        let begun = self.begun.read().unwrap_or_else(PoisonError::into_inner);
        begun
            .iter()
            .any(|(module, replacement)| Some(&replacement.old) == container && module != name)
    }

    fn modules(&self) -> Vec<ModuleId> {
        let begun = self.begun.read().unwrap_or_else(PoisonError::into_inner);
        begun.values().map(|replacement| replacement.module.clone()).collect()
    }

    async fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Replacement>),
    ) -> Result<(), ModuleError> {
        let _writing = self.writing.lock().await;
        let mut next = self.begun.read().unwrap_or_else(PoisonError::into_inner).clone();
        change(&mut next);
        self.file.save(&next).map_err(ModuleError::hidden)?;
        *self.begun.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    async fn begin(&self, replacement: Replacement) -> Result<(), ModuleError> {
        self.change(|begun| _ = begun.insert(replacement.module.name().to_owned(), replacement))
            .await
    }

    async fn end(&self, module: &ModuleId) -> Result<(), ModuleError> {
        self.change(|begun| _ = begun.remove(module.name())).await
    }
}

/// Replaces a module's container by one of `image`, and starts that if asked to. What
/// fails leaves the old one as it was. The module's lock is held.
///
/// # Errors
/// The error of the step that failed; the old container is then back, or will be as soon
/// as the engine can be reached.
pub(crate) async fn replace(
    modules: &Arc<Modules>,
    spec: &ValidSpec,
    image: Option<Sha256Digest>,
    start: bool,
) -> Result<(), ModuleError> {
    let engine = &modules.engine()?.engine;
    let registration = modules.registrations.of(&spec.module);
    if let Some(own) = container_of(registration.as_ref()) {
        // What is to be taken back if need be must be whole, and the name is to be the
        // new one's.
        let task = Task::new(modules, &spec.module, own);
        task.carry_out(Operation::Review, None).await?;
        task.refuse_another_name().await?;
    }
    // Before the old one is stopped: what the new one needs.
    if let Some(image) = image {
        ensure_networks(modules, &options::specification(modules, spec, image).await?).await?;
    }
    let old = engine.find(&spec.module).await?;
    let replacement = Replacement {
        module: spec.module.clone(),
        registration,
        ran: matches!(old.state, ModuleState::Running | ModuleState::Paused),
        old: old.id,
        start,
    };
    modules.replacements.begin(replacement.clone()).await?;
    match swap(modules, engine, spec, image, &replacement).await {
        // The new one serves; if the old one cannot be removed now, it is later.
        Ok(()) => {
            if let Err(error) = finish(modules, engine, &replacement).await {
                tracing::warn!(module = %spec.module, %error, "the replaced container is still there; tried again");
            }
            Ok(())
        }
        Err(error) => {
            match take_back(modules, engine, &replacement).await {
                Ok(()) => {
                    tracing::warn!(module = %spec.module, %error, "update failed; the module is as it was");
                }
                Err(again) => {
                    tracing::error!(module = %spec.module, %error, %again, "update failed; to be taken back later");
                }
            }
            Err(error)
        }
    }
}

async fn swap(
    modules: &Arc<Modules>,
    engine: &Engine,
    spec: &ValidSpec,
    image: Option<Sha256Digest>,
    replacement: &Replacement,
) -> Result<(), ModuleError> {
    Task::new(modules, &spec.module, &replacement.old).carry_out(Operation::Stop, None).await?;
    let aside = replacement.aside_name();
    match engine.rename(&replacement.old, &aside).await {
        // One that the engine removes when it ends cannot be kept.
        Err(error) if error.status() == Some(404) => {
            tracing::warn!(module = %spec.module, "the old container is gone; the update cannot be taken back");
        }
        renamed => renamed?,
    }
    create_locked(modules, spec, image).await?;
    if replacement.start {
        start_locked(modules, &spec.module).await?;
    }
    Ok(())
}

/// Settles what was begun for a module. The module's lock is held.
///
/// # Errors
/// The engine is away, or refuses.
pub(crate) async fn settle(modules: &Arc<Modules>, module: &ModuleId) -> Result<(), ModuleError> {
    host_updates::settle(modules, module).await?;
    let Some(replacement) = modules.replacements.of(module) else { return Ok(()) };
    let engine = &modules.engine()?.engine;
    let named = named(engine, module).await?;
    let old = engine.container(&replacement.old).await?;
    let registration = modules.registrations.of(module);
    let settlement = replacement.settle(
        registration.as_ref(),
        named.as_ref().map(|container| &container.id),
        old.is_some(),
    );
    tracing::warn!(%module, ?settlement, "an update was cut off");
    match settlement {
        Settlement::Finish => {
            if replacement.start
                && let Err(error) = start_locked(modules, module).await
            {
                tracing::warn!(%module, %error, "the new container does not start");
                return take_back(modules, engine, &replacement).await;
            }
            finish(modules, engine, &replacement).await
        }
        Settlement::TakeBack => take_back(modules, engine, &replacement).await,
        Settlement::Forget => modules.replacements.end(module).await,
    }
}

/// Settles all that was begun before the daemon started, as soon as the engine can be
/// reached.
pub(crate) async fn settle_all(modules: Arc<Modules>, mut stop: watch::Receiver<bool>) {
    let host_modules = modules.processes.begun_updates().await;
    for module in modules.replacements.modules().into_iter().chain(host_modules) {
        // Taking the lock settles.
        while let Err(error) = modules.claim(&module).await {
            tracing::debug!(%module, %error, "an update that was cut off is not settled yet");
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

/// The container that has the module's name.
async fn named(engine: &Engine, module: &ModuleId) -> Result<Option<Container>, ModuleError> {
    match engine.find(module).await {
        Ok(container) => Ok(Some(container)),
        Err(EngineError::NoContainer { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes the old container, if it is still there, and forgets the update.
async fn finish(
    modules: &Modules,
    engine: &Engine,
    replacement: &Replacement,
) -> Result<(), ModuleError> {
    engine.remove(&replacement.old).await?;
    modules.replacements.end(&replacement.module).await
}

async fn take_back(
    modules: &Arc<Modules>,
    engine: &Engine,
    replacement: &Replacement,
) -> Result<(), ModuleError> {
    let module = &replacement.module;
    let failed = ModuleError::Engine;
    let mut back = false;
    if let Some(container) = named(engine, module).await? {
        back = container.id == replacement.old;
        if !back && container.options().is_none() {
            let obstacle = Obstacle::NameTaken { called: replacement.aside_name() };
            return Err(ModuleError::Obstacle(module.clone(), obstacle));
        }
        if !back {
            engine.remove(&container.id).await.map_err(failed)?;
        }
    }
    // Before it gets its name back: from then on it counts.
    match &replacement.registration {
        Some(registration) => modules.registrations.put(registration.clone()).await,
        None => modules.registrations.remove(module).await,
    }
    .map_err(ModuleError::hidden)?;
    if !back {
        engine.rename(&replacement.old, module.name()).await.map_err(failed)?;
    }
    if replacement.ran
        && let Err(error) = start_locked(modules, module).await
    {
        // Whole again, if not running: agents and watchdog see that and start it.
        tracing::warn!(%module, %error, "the module is back, but does not start");
    }
    modules.replacements.end(module).await
}
