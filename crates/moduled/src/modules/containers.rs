//! Modules' own containers, put right before anything is done with them: what is missing
//! is decided by [`edgekeep_core::container`], each step is one call to the engine.

use std::time::Duration;

use edgekeep_core::attestation::{Registration, Workload};
use edgekeep_core::container::{Obstacle, Operation, Seen, Step, Subject, Trouble, plan, trouble};
use edgekeep_core::id::{ContainerId, ModuleId};
use edgekeep_runtime::engine::{Engine, EngineError, create_body, wanted_networks};

use crate::modules::Modules;
use crate::modules::error::ModuleError;

/// Most rounds in which an operation looks again because something else changed the
/// container meanwhile. More changes are somebody's intent.
const ROUNDS: u32 = 8;

/// The container of a registration, if it is one of a container.
pub(crate) fn container_of(registration: Option<&Registration>) -> Option<&ContainerId> {
    match &registration?.workload {
        Workload::Container { container, .. } => Some(container),
        Workload::Process { .. } | Workload::Service { .. } => None,
    }
}

/// Work that is asked of one container.
pub(crate) struct Task<'a> {
    modules: &'a Modules,
    module: &'a ModuleId,
    own: &'a ContainerId,
}

impl<'a> Task<'a> {
    pub(crate) fn new(modules: &'a Modules, module: &'a ModuleId, own: &'a ContainerId) -> Self {
        Self { modules, module, own }
    }

    fn subject(&self) -> Subject<'a> {
        let engine = self.modules.settings.engine.as_ref();
        Subject {
            name: self.module.name(),
            device_network: engine.map(|engine| engine.network.as_str()),
        }
    }

    fn engine(&self) -> Result<&'a Engine, ModuleError> {
        Ok(&self.modules.engine()?.engine)
    }

    /// Returns the state of the container at the engine.
    ///
    /// # Errors
    /// The engine is away, or answers in an unknown form.
    pub(crate) async fn look(&self) -> Result<Seen, ModuleError> {
        let is_module = |id: &ContainerId| self.modules.registrations.of_container(id).is_some();
        let seen = self.engine()?.seen(self.module.name(), self.own, is_module).await;
        seen.map_err(ModuleError::from)
    }

    /// Returns the trouble with the container that an operator must know; `None` if there
    /// is none.
    pub(crate) fn trouble(&self, seen: &Seen) -> Option<Trouble> {
        trouble(self.subject(), seen)
    }

    /// Refuses if it has another name than the module's, which something else has.
    ///
    /// # Errors
    /// 409 with the remedy; the engine's.
    pub(crate) async fn refuse_another_name(&self) -> Result<(), ModuleError> {
        match self.look().await?.own {
            Some(own) if own.name != self.module.name() => {
                let obstacle = Obstacle::NameTaken { called: own.name };
                Err(ModuleError::Obstacle(self.module.clone(), obstacle))
            }
            _ => Ok(()),
        }
    }

    /// Does what is asked, and what must be done before. When a call fails it is looked
    /// again: only what fails although nothing has changed is an error. A start or stop
    /// that the engine itself failed at is tried once more: an engine that cannot take
    /// down a network, because somebody changed it, forgets it all the same (Podman 5).
    ///
    /// # Errors
    /// 404 if it is gone, 409 for another obstacle, each with its remedy; what the engine
    /// says.
    pub(crate) async fn carry_out(
        &self,
        operation: Operation,
        grace: Option<Duration>,
    ) -> Result<(), ModuleError> {
        let engine = self.engine()?;
        let options =
            self.modules.settings.engine.as_ref().map(|engine| engine.network_options.clone());
        let options = options.unwrap_or_default();
        let mut steps = self.plan(&self.look().await?, operation)?;
        let mut tried_again = false;
        for _ in 0..ROUNDS {
            let Some((left, error)) = self.take(engine, &steps, &options, grace).await else {
                return Ok(());
            };
            let next = self.plan(&self.look().await?, operation)?;
            if next == left {
                if tried_again || !left.first().is_some_and(|step| may_work_again(step, &error)) {
                    return Err(error.into());
                }
                tried_again = true;
            }
            tracing::info!(module = %self.module, %error, "something else changed the container meanwhile; looked again");
            steps = next;
        }
        Err(ModuleError::Contended(self.module.clone()))
    }

    /// Takes steps; if one fails, gives it with those after it.
    async fn take<'s>(
        &self,
        engine: &Engine,
        steps: &'s [Step],
        options: &serde_json::Map<String, serde_json::Value>,
        grace: Option<Duration>,
    ) -> Option<(&'s [Step], EngineError)> {
        for (number, step) in steps.iter().enumerate() {
            if !matches!(step, Step::Start | Step::Stop) {
                tracing::warn!(module = %self.module, ?step, "the container is put right");
            }
            if let Err(error) = engine.take(self.own, step, options, grace).await {
                return Some((&steps[number..], error));
            }
        }
        None
    }

    fn plan(&self, seen: &Seen, operation: Operation) -> Result<Vec<Step>, ModuleError> {
        plan(self.subject(), seen, operation)
            .map_err(|obstacle| ModuleError::Obstacle(self.module.clone(), obstacle))
    }
}

/// Tells a start or stop at which the engine itself failed from a refusal.
fn may_work_again(step: &Step, error: &EngineError) -> bool {
    matches!(step, Step::Start | Step::Stop) && error.status().is_some_and(|status| status >= 500)
}

/// Makes sure that the networks are there to which a container that is to be made is
/// attached: the device's own is made, others must exist.
///
/// # Errors
/// 404 that names the network and the remedy; what the engine says.
pub(crate) async fn ensure_networks(
    modules: &Modules,
    spec: &edgekeep_runtime::engine::ContainerSpec<'_>,
) -> Result<(), ModuleError> {
    let engine = &modules.engine()?.engine;
    let body = create_body(spec, None).map_err(EngineError::from)?.body;
    let wanted = body.as_object().map(wanted_networks).unwrap_or_default();
    let settings = modules.settings.engine.as_ref();
    if let Some(settings) = settings.filter(|settings| wanted.contains_key(&settings.network)) {
        let made = engine.ensure_network(&settings.network, &settings.network_options).await;
        made?;
    }
    let foreign = |name: &&String| settings.is_none_or(|settings| settings.network != **name);
    if !wanted.keys().any(|name| foreign(&name)) {
        return Ok(());
    }
    let there = engine.network_ids().await?;
    // A network may also be named by its id.
    let known = |name: &str| {
        there.contains_key(name) || there.values().flatten().any(|id| id.starts_with(name))
    };
    match wanted.keys().filter(foreign).find(|name| !known(name)) {
        None => Ok(()),
        Some(name) => Err(ModuleError::NoNetwork(name.clone())),
    }
}
