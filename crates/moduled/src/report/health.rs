//! Health of the device, as far as moduled finds it out by looking from time to time:
//! modules that should run, the engine, the Edge CA, the disk. Code that sees a problem
//! itself tells the board of the problem on its own.

mod orders;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edgekeep_api::operations::problems_of;
use edgekeep_core::attestation::{Registration, RunningFacts, Workload};
use edgekeep_core::health::modules::{self, Seen, Watch, Wish};
use edgekeep_core::health::{Code, Health, Subject, disk};
use edgekeep_core::id::ModuleId;
use edgekeep_core::layout::Daemon;
use edgekeep_runtime::status::ModuleState;
use tokio::sync::watch;

pub(crate) use orders::{Order, Orders};

use crate::modules::error::ModuleError;
use crate::modules::own_users;
use crate::report::Report;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(2);
/// Longest time that another daemon may take to tell its problems.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest time that the engine may take to tell how a container ended.
const ENGINE_PATIENCE: Duration = Duration::from_secs(2);

/// Facts that are remembered between two looks at the modules.
#[derive(Debug)]
struct Looked {
    begin: Instant,
    watch: Watch,
    /// Ends of the modules that do not run. The engine is asked once for each end.
    ended: HashMap<ModuleId, Seen>,
}

/// Looks until `stop`.
pub(crate) async fn keep(report: Arc<Report>, mut stop: watch::Receiver<bool>) {
    let mut looked =
        Looked { begin: Instant::now(), watch: Watch::default(), ended: HashMap::new() };
    loop {
        look(&report);
        look_at_modules(&report, &mut looked).await;
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Brings the board up to date but for the modules. Asks nobody, least of all the engine.
pub(crate) fn look(report: &Report) {
    own_users::look(&report.modules);
    let silent =
        report.modules.containers.as_ref().filter(|containers| !containers.watch.is_reconciled());
    let found = silent.map(|containers| {
        let detail = match containers.watch.silent_for() {
            Some(_) => "modules that ran when it was heard last are served on, others are refused",
            None => {
                "it was never heard since moduled started; all modules in containers are refused"
            }
        };
        (Subject::engine(&containers.uri), detail)
    });
    report.board.replace(Code::EngineSilent, found);
    let folder = report.root.path().join("var/lib/edgekeep");
    let full = rustix::fs::statvfs(&folder).ok().and_then(|space| {
        let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
        disk::judge(disk::Space { size: bytes(space.f_blocks), free: bytes(space.f_bavail) })
    });
    for code in [Code::DiskFull, Code::DiskNearlyFull] {
        let found = full.as_ref().filter(|(found, _)| *found == code);
        report.board.replace(code, found.map(|(_, detail)| (Subject::file(&folder), detail)));
    }
}

/// The health of the device, by all that its daemons know.
pub(crate) async fn of_device(report: &Report) -> Health {
    look(report);
    let others = problems_of(&report.root, &[Daemon::Keyd, Daemon::Identityd], PATIENCE).await;
    Health::of(report.board.health().problems().iter().cloned().chain(others))
}

async fn look_at_modules(report: &Report, looked: &mut Looked) {
    let mut registered: BTreeMap<ModuleId, Registration> = BTreeMap::new();
    for module in report.modules.registrations.modules() {
        if let Some(registration) = report.modules.registrations.of(&module) {
            // Something else starts and stops these.
            if !matches!(registration.workload, Workload::Service { .. }) {
                registered.insert(module.hub_id(), registration);
            }
        }
    }
    let processes: HashMap<String, _> = report
        .modules
        .processes
        .list()
        .await
        .into_iter()
        .map(|state| (state.name.clone(), state))
        .collect();
    let mut all = BTreeMap::new();
    let wanted = report.orders.wanted(registered.keys());
    for (module, wish) in wanted {
        let registration = registered.get(&module);
        let seen = match (
            report.modules.facts(&module, registration),
            registration.map(|it| &it.workload),
        ) {
            (_, None) => Seen::Missing,
            (_, Some(Workload::Process { .. })) => match processes.get(module.name()) {
                Some(state) if state.state == ModuleState::Running => Seen::Runs,
                Some(state) => Seen::Ended(state.exit.and_then(|exit| exit.code)),
                None => Seen::Missing,
            },
            (RunningFacts::Running(_), _) => Seen::Runs,
            (RunningFacts::Stopped, _) => match looked.ended.get(&module) {
                Some(ended) => *ended,
                None => how_it_ended(report, &module).await,
            },
            (RunningFacts::Unknown | RunningFacts::Host(_), _) => Seen::Unknown,
        };
        match seen {
            Seen::Ended(_) | Seen::Missing => drop(looked.ended.insert(module.clone(), seen)),
            Seen::Runs => drop(looked.ended.remove(&module)),
            Seen::Unknown => {}
        }
        report.orders.seen(&report.board, &module, seen);
        let wish = match (wish, seen) {
            (Some(wish), _) => wish,
            // The agent is always wanted; of others that run somebody wanted that, before
            // this daemon was started.
            (None, _) if module.is_edge_agent() => Wish::Run,
            (None, Seen::Runs) => {
                report.orders.found_running(&module);
                Wish::Started
            }
            (None, _) => Wish::Rest,
        };
        all.insert(module, (wish, seen));
    }
    looked.ended.retain(|module, _| all.contains_key(module));
    let (watch, findings) =
        modules::step(std::mem::take(&mut looked.watch), &all, looked.begin.elapsed());
    looked.watch = watch;
    for code in [Code::AgentNotRunning, Code::ModuleNotRunning, Code::ModuleEnded] {
        let found = findings.iter().filter(|finding| finding.code == code);
        report.board.replace(
            code,
            found.map(|finding| (Subject::module(&finding.module), &finding.detail)),
        );
    }
}

/// Returns how a container module ended, as the engine tells it. Nothing is known if the
/// engine does not answer soon.
async fn how_it_ended(report: &Report, module: &ModuleId) -> Seen {
    match tokio::time::timeout(ENGINE_PATIENCE, report.modules.state(module)).await {
        Ok(Ok((_, state))) if state.state == ModuleState::Running => Seen::Unknown,
        Ok(Ok((_, state))) => Seen::Ended(state.exit.and_then(|exit| exit.code)),
        Ok(Err(ModuleError::NoModule(_))) => Seen::Missing,
        Ok(Err(_)) | Err(_) => Seen::Unknown,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
