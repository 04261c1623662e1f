//! Host modules that the daemon itself starts again when they end, because their entry in
//! the configuration says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edgekeep_core::host::RestartPolicy;
use edgekeep_core::id::ModuleId;
use tokio::task::JoinHandle;

use crate::modules;
use crate::modules::Modules;

/// First pause before a start.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(300);
/// After so long a run, an end counts as the first one again.
const STEADY: Duration = Duration::from_secs(600);

/// Modules that are watched, to be started again when they end.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    watched: Mutex<HashMap<String, JoinHandle<()>>>,
}

impl Restarts {
    /// Watches a module that was started; one that is watched already goes on being so.
    pub(crate) fn watch(&self, modules: &Arc<Modules>, module: &ModuleId, policy: RestartPolicy) {
        if policy == RestartPolicy::Agent {
            return;
        }
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|_, task| !task.is_finished());
        watched
            .entry(module.name().to_owned())
            .or_insert_with(|| tokio::spawn(keep(Arc::clone(modules), module.clone(), policy)));
    }

    /// Lets a module be that is stopped on purpose.
    pub(crate) fn forget(&self, module: &ModuleId) {
        let task =
            self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(module.name());
        if let Some(task) = task {
            task.abort();
        }
    }
}

async fn keep(modules: Arc<Modules>, module: ModuleId, policy: RestartPolicy) {
    let mut failures = 0;
    loop {
        let begin = Instant::now();
        if modules.processes.ended(&module).await.is_err() {
            return;
        }
        let Ok(status) = modules.processes.status(&module).await else { return };
        let code = status.exit.and_then(|exit| exit.code);
        let Some(pause) = pause(policy, code, begin.elapsed(), &mut failures) else { return };
        tracing::info!(%module, code, seconds = pause.as_secs(), "host module ended; it is started again");
        tokio::time::sleep(pause).await;
        // Not through this task's own watch: a start that is refused is tried again as
        // well.
        if let Err(error) = modules::start_unwatched(&modules, &module).await {
            tracing::warn!(%module, %error, "host module not started again");
        }
    }
}

/// Returns the time to wait before the next start; `None`: no start.
fn pause(
    policy: RestartPolicy,
    code: Option<i64>,
    ran: Duration,
    failures: &mut u32,
) -> Option<Duration> {
    match policy {
        RestartPolicy::Agent => return None,
        RestartPolicy::OnFailure if code == Some(0) => return None,
        RestartPolicy::OnFailure | RestartPolicy::Always => {}
    }
    *failures = if ran >= STEADY { 0 } else { failures.saturating_add(1) };
    Some((FIRST * 2_u32.saturating_pow(failures.saturating_sub(1).min(16))).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use edgekeep_runtime::status::ModuleState;

    use super::*;
    use crate::fakes::{PROGRAM_NAME, Site, id, process};

    async fn site(policy: RestartPolicy) -> Site {
        let change = |settings: &mut edgekeep_core::settings::ModuledSettings| {
            let program = settings.host_modules.get_mut(PROGRAM_NAME).expect("registered");
            program.restart = policy;
        };
        let site = Site::with(change).await;
        modules::create(&site.modules, &process("tool", &[])).await.expect("created");
        modules::start(&site.modules, &id("tool")).await.expect("started");
        site
    }

    #[tokio::test]
    async fn a_module_that_ends_is_started_again_and_one_that_was_stopped_is_not() {
        let site = site(RestartPolicy::Always).await;
        site.starter.end_all(3);
        site.starter.until_started(2).await;
        modules::stop(&site.modules, &id("tool")).await.expect("stopped");
        let watched = site.modules.restarts.watched.lock().expect("not poisoned").len();
        assert_eq!(watched, 0, "nobody watches over it any more");
        assert_eq!(site.starter.starts(), 2);
    }

    #[tokio::test]
    async fn a_module_that_ended_well_rests_where_only_failures_count() {
        let site = site(RestartPolicy::OnFailure).await;
        site.starter.end_all(0);
        site.modules.processes.ended(&id("tool")).await.expect("is there");
        let task = site.modules.restarts.watched.lock().expect("not poisoned").remove("tool");
        task.expect("watched").await.expect("ends by itself");
        let (_, state) = site.modules.state(&id("tool")).await.expect("is there");
        assert_eq!((state.state, site.starter.starts()), (ModuleState::Stopped, 1));
    }

    #[test]
    fn pauses_double_up_to_five_minutes_and_begin_anew_after_a_steady_run() {
        let mut failures = 0;
        let short = Duration::from_secs(1);
        let pauses: Vec<u64> = (0..12)
            .filter_map(|_| pause(RestartPolicy::Always, Some(0), short, &mut failures))
            .map(|pause| pause.as_secs())
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(pause(RestartPolicy::Always, None, STEADY, &mut failures), Some(FIRST));
    }

    #[test]
    fn only_a_failure_counts_as_one() {
        for (code, again) in [(Some(0), false), (Some(1), true), (Some(137), true), (None, true)] {
            assert_eq!(
                pause(RestartPolicy::OnFailure, code, FIRST, &mut 0).is_some(),
                again,
                "{code:?}"
            );
        }
        assert_eq!(pause(RestartPolicy::Agent, Some(1), FIRST, &mut 0), None);
    }
}
