//! Looks after modules' containers while nothing is asked of them: what somebody else
//! renamed gets its name back, what was detached from its network is attached again, and
//! what cannot be put right without being asked is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use edgekeep_core::container::{Operation, Trouble};
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::id::{ContainerId, ModuleId};
use edgekeep_runtime::status::ModuleState;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::modules::Modules;
use crate::modules::containers::{Task, container_of};

/// Every container is looked at again so often, in case an event was not heard.
const PERIOD: Duration = Duration::from_secs(60);

/// Pause before a look after an event, in which the events of one operation come
/// together.
const SETTLE: Duration = Duration::from_millis(200);

/// Time until a module is looked at again that was being worked on, or whose container
/// could not be put right. Also the least time between two looks at all modules when a
/// network changes: engines tell of such changes at every start and end of a container
/// too.
const RETRY: Duration = Duration::from_secs(5);

/// Of a container, what is in the engine's list: a change of it is a reason to look.
type Listed = BTreeMap<ContainerId, (String, ModuleState)>;

/// Looks after all containers until `stop`.
pub(crate) async fn keep(modules: Arc<Modules>, mut stop: watch::Receiver<bool>) {
    let Some(containers) = &modules.containers else { return };
    let mut changes = containers.watch.changes();
    let mut networks = containers.watch.network_changes();
    let mut known = Listed::new();
    let mut told: BTreeSet<ModuleId> = BTreeSet::new();
    let mut again: BTreeSet<ModuleId> = BTreeSet::new();
    let mut due = Instant::now();
    let mut reviewed = due;
    loop {
        let retry = if again.is_empty() { due } else { due.min(Instant::now() + RETRY) };
        let changed = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep_until(retry) => false,
            changed = changes.changed() => changed.is_ok(),
            _ = networks.changed() => {
                due = due.min(reviewed + RETRY).max(Instant::now());
                continue;
            }
        };
        if changed {
            tokio::time::sleep(SETTLE).await;
            let _ = changes.borrow_and_update();
        }
        let all_own = of_containers(&modules);
        let gone: Vec<ModuleId> =
            told.iter().filter(|module| !all_own.contains_key(*module)).cloned().collect();
        for module in gone {
            tell(&modules, &module, None);
            told.remove(&module);
        }
        let all = Instant::now() >= due;
        let Some(listed) = listed(&modules).await else {
            // A silent engine is told of by itself, and nothing can be put right.
            due = Instant::now() + RETRY;
            continue;
        };
        if all {
            reviewed = Instant::now();
            due = Instant::now() + PERIOD;
        }
        let mut next = BTreeSet::new();
        for (module, container) in all_own {
            let changed =
                listed.get(&container) != known.get(&container) || !listed.contains_key(&container);
            if (all || changed || again.contains(&module))
                && !review(&modules, &module, &container).await
            {
                told.insert(module.clone());
                next.insert(module);
            }
        }
        (known, again) = (listed, next);
    }
}

fn of_containers(modules: &Modules) -> BTreeMap<ModuleId, ContainerId> {
    let all = modules.registrations.modules().into_iter();
    let container =
        |module: &ModuleId| container_of(modules.registrations.of(module).as_ref()).cloned();
    all.filter_map(|module| container(&module).map(|container| (module, container))).collect()
}

async fn listed(modules: &Modules) -> Option<Listed> {
    let containers = modules.containers.as_ref()?;
    let listed = tokio::time::timeout(PERIOD, containers.watch.list()).await.ok()?.ok()?;
    Some(
        listed
            .into_iter()
            .filter_map(|state| Some((state.container?, (state.name, state.state))))
            .collect(),
    )
}

/// Puts one right and notes what is left; `false` if it is to be looked at again soon.
async fn review(modules: &Arc<Modules>, module: &ModuleId, container: &ContainerId) -> bool {
    // An operation puts right what it needs itself, and an update that was cut off is
    // settled first.
    let _lock = match modules.claim_now(module).await {
        Ok(Some(lock)) => lock,
        Ok(None) => return false,
        Err(error) => {
            let text = format!("an update was cut off and cannot be settled: {error}");
            tell(modules, module, Some(&(Code::ContainerNotRestored, text)));
            return false;
        }
    };
    if container_of(modules.registrations.of(module).as_ref()) != Some(container) {
        return false;
    }
    let task = Task::new(modules, module, container);
    let failed = task.carry_out(Operation::Review, None).await.err();
    let Ok(seen) = task.look().await else { return false };
    let trouble =
        task.trouble(&seen).map(|trouble| (trouble.code(), trouble.detail(module.name())));
    let failed = failed.map(|error| (Code::ContainerNotRestored, error.to_string()));
    let found = trouble.or(failed);
    let good = found.is_none();
    tell(modules, module, found.as_ref());
    good
}

/// Puts on the board what is the matter with a module's container, in place of what was.
fn tell(modules: &Modules, module: &ModuleId, trouble: Option<&(Code, String)>) {
    let subject = Subject::module(module);
    for code in Trouble::CODES {
        match trouble {
            Some((found, detail)) if *found == code => modules.board.raise(code, &subject, detail),
            _ => modules.board.clear(code, &subject),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fakes::{Site, container, id, soon};
    use crate::modules;

    /// A running container module whose containers are looked after.
    async fn kept() -> (Site, watch::Sender<bool>) {
        let site = Site::new().await;
        site.heard().await;
        modules::create(&site.modules, &container("box", &json!({}))).await.expect("created");
        modules::start(&site.modules, &id("box")).await.expect("started");
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(keep(Arc::clone(&site.modules), stopped));
        (site, stop)
    }

    fn problems(site: &Site) -> Vec<Code> {
        site.board.health().problems().iter().map(edgekeep_core::health::Problem::code).collect()
    }

    #[tokio::test]
    async fn a_container_that_somebody_renamed_gets_its_name_back() {
        let (site, _stop) = kept().await;
        site.engine.meddle("box", "rename elsewhere");
        soon(|| site.engine.names() == ["box"]).await;
        assert_eq!(problems(&site), []);
    }

    #[tokio::test]
    async fn a_container_that_was_removed_is_told_until_its_module_is_gone() {
        let (site, _stop) = kept().await;
        site.engine.meddle("box", "rm");
        soon(|| problems(&site) == [Code::ContainerGone]).await;
        modules::remove(&site.modules, &id("box")).await.expect_err("is not there");
    }

    #[tokio::test]
    async fn a_paused_container_is_told_and_stays_as_it_is() {
        let (site, _stop) = kept().await;
        site.engine.meddle("box", "pause");
        soon(|| problems(&site) == [Code::ModulePaused]).await;
        assert_eq!(site.engine.phase("box").as_deref(), Some("paused"));
        modules::start(&site.modules, &id("box")).await.expect("goes on");
        soon(|| problems(&site).is_empty()).await;
    }

    #[tokio::test]
    async fn a_network_that_was_removed_is_made_anew_at_the_next_start() {
        let (site, stop) = kept().await;
        stop.send_replace(true);
        site.engine.remove_network("azure-iot-edge");
        let made = site.engine.calls("POST /networks/create");
        modules::restart(&site.modules, &id("box")).await.expect("restarted");
        assert_eq!(site.engine.calls("POST /networks/create"), made + 1);
        assert!(site.engine.calls("POST /connect") >= 1, "and is joined");
    }
}
