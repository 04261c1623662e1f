//! Modules that should run and do not: what is asked of each against what is seen of it.
//!
//! What should run is known from the orders that come through the management API, which
//! every agent has to use: who had a module started wants it to run until it is stopped
//! or removed through the same API. An agent that says more (which modules its deployment
//! wants running now, ours does) is believed instead.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Code;
use crate::id::ModuleId;

/// A module may be down for so long: a restart takes its time.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The same for the agent, which is started again at once.
pub const AGENT_PATIENCE: Duration = Duration::from_secs(10);
/// A module that was down counts as running again when it has run for so long: one that
/// ends again and again does not run.
pub const SETTLED: Duration = Duration::from_secs(30);

/// The state that is asked of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The deployment wants it to run now.
    Run,
    /// It was started, and nobody says what is to be if it ends by itself.
    Started,
    /// It was stopped, or is wanted to be.
    Rest,
}

/// The state in which a module is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It runs.
    Runs,
    /// It does not run; with its exit code, if that is known.
    Ended(Option<i64>),
    /// There is no such module.
    Missing,
    /// Nothing is known now, for example because the engine is silent.
    Unknown,
}

/// Something that is wrong with a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub code: Code,
    /// The module.
    pub module: ModuleId,
    /// Details of what is seen, for people.
    pub detail: String,
}

/// The memory between two looks: the modules that are down, or were down a moment ago.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch(BTreeMap<ModuleId, Down>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Down {
    since: Duration,
    /// The time since when the module runs again, if it does.
    runs_since: Option<Duration>,
    /// The state that was seen while the module was down.
    last: Seen,
    told: bool,
}

/// Looks at all modules that there are or should be, at `now` on the monotonic clock.
#[must_use]
pub fn step(
    mut watch: Watch,
    modules: &BTreeMap<ModuleId, (Wish, Seen)>,
    now: Duration,
) -> (Watch, Vec<Finding>) {
    watch.0.retain(|module, _| modules.get(module).is_some_and(|(wish, _)| *wish != Wish::Rest));
    let mut findings = Vec::new();
    for (module, (wish, seen)) in modules.iter().filter(|(_, (wish, _))| *wish != Wish::Rest) {
        match seen {
            Seen::Unknown => {}
            Seen::Runs => {
                let Some(down) = watch.0.get_mut(module) else { continue };
                let since = *down.runs_since.get_or_insert(now);
                if now.saturating_sub(since) >= SETTLED {
                    watch.0.remove(module);
                }
            }
            Seen::Ended(_) | Seen::Missing => {
                let fresh = Down { since: now, runs_since: None, last: *seen, told: false };
                let down = watch.0.entry(module.clone()).or_insert(fresh);
                (down.runs_since, down.last) = (None, *seen);
                let patience = if module.is_edge_agent() { AGENT_PATIENCE } else { PATIENCE };
                down.told |= now.saturating_sub(down.since) >= patience;
            }
        }
        if let Some(down) = watch.0.get(module).filter(|down| down.told) {
            findings.push(finding(module, *wish, *down));
        }
    }
    (watch, findings)
}

fn finding(module: &ModuleId, wish: Wish, down: Down) -> Finding {
    let detail = match (down.runs_since, down.last) {
        (Some(_), _) => "it runs again, since a moment ago".to_owned(),
        (None, Seen::Ended(Some(code))) => format!("it ended with exit code {code}"),
        (None, Seen::Missing) => "it is not there".to_owned(),
        (None, _) => "it is stopped".to_owned(),
    };
    let code = match (wish, down.last) {
        _ if module.is_edge_agent() => Code::AgentNotRunning,
        // A job that was done. Who wants more than that to be known says so.
        (Wish::Started, Seen::Ended(Some(0))) => Code::ModuleEnded,
        _ => Code::ModuleNotRunning,
    };
    Finding { code, module: module.clone(), detail }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::health::Severity;

    fn id(name: &str) -> ModuleId {
        name.parse().unwrap()
    }

    fn any_seen() -> impl Strategy<Value = Seen> {
        prop_oneof![
            3 => Just(Seen::Runs),
            2 => Just(Seen::Ended(Some(1))),
            1 => Just(Seen::Ended(Some(0))),
            1 => Just(Seen::Ended(None)),
            1 => Just(Seen::Missing),
            1 => Just(Seen::Unknown),
        ]
    }

    const fn is_down(seen: Seen) -> bool {
        matches!(seen, Seen::Ended(_) | Seen::Missing)
    }

    proptest! {
        /// The promise that `status` makes: a module that should run and has not for a
        /// minute is named, and the device is not healthy.
        #[test]
        fn whenever_a_desired_module_does_not_run_for_a_minute_it_is_named_and_the_device_is_not_healthy(
            looks in prop::collection::vec((1_u64..40, prop::array::uniform3(any_seen())), 1..60)
        ) {
            let names = [id("m1"), id("m2"), id("m3")];
            let (mut watch, mut now) = (Watch::default(), Duration::ZERO);
            let mut history: Vec<(Duration, [Seen; 3])> = Vec::new();
            for (pause, seen) in looks {
                now += Duration::from_secs(pause);
                let modules = names.iter().cloned().zip(seen.map(|seen| (Wish::Run, seen))).collect();
                let (next, findings) = step(watch, &modules, now);
                watch = next;
                history.push((now, seen));
                for (at, name) in names.iter().enumerate() {
                    let found = findings.iter().any(|finding| {
                        finding.module == *name && finding.code.severity() == Severity::Unhealthy
                    });
                    let known: Vec<_> = history.iter().filter(|(_, seen)| seen[at] != Seen::Unknown).collect();
                    let down: Vec<_> = known.iter().rev().take_while(|(_, seen)| is_down(seen[at])).collect();
                    if is_down(seen[at]) && down.last().is_some_and(|(begin, _)| now - *begin >= PATIENCE) {
                        prop_assert!(found, "{} was down for a minute and is not named", name);
                    }
                    let up: Vec<_> = known.iter().rev().take_while(|(_, seen)| seen[at] == Seen::Runs).collect();
                    let settled = up.len() == known.len() || up.last().is_some_and(|(begin, _)| now - *begin >= SETTLED);
                    if settled && seen[at] == Seen::Runs {
                        prop_assert!(!found, "{} has settled and is still named", name);
                    }
                    let first_down = known.iter().find(|(_, seen)| is_down(seen[at])).map(|(begin, _)| *begin);
                    if first_down.is_none_or(|begin| now - begin < PATIENCE) {
                        prop_assert!(!found, "{} is named before its minute is over", name);
                    }
                }
            }
        }

        #[test]
        fn what_is_not_wanted_is_never_a_problem(looks in prop::collection::vec((1_u64..400, any_seen()), 1..30)) {
            let (mut watch, mut now) = (Watch::default(), Duration::ZERO);
            for (pause, seen) in looks {
                now += Duration::from_secs(pause);
                let (next, findings) = step(watch, &BTreeMap::from([(id("m1"), (Wish::Rest, seen))]), now);
                prop_assert_eq!(findings, []);
                prop_assert_eq!(&next, &Watch::default(), "and nothing is kept of it");
                watch = next;
            }
        }
    }

    /// Looks every two seconds, for as long as each state lasts; returns the findings of
    /// the last look.
    fn after(module: &str, wish: Wish, states: &[(Seen, u64)]) -> Vec<(Code, String)> {
        let (mut watch, mut now, mut last) = (Watch::default(), 0, Vec::new());
        for (seen, lasts) in states {
            let end = now + lasts;
            while now <= end {
                let modules = BTreeMap::from([(id(module), (wish, *seen))]);
                (watch, last) = step(watch, &modules, Duration::from_secs(now));
                now += 2;
            }
        }
        last.into_iter().map(|finding| (finding.code, finding.detail)).collect()
    }

    #[test]
    fn a_module_that_ends_again_and_again_does_not_run_although_each_pause_is_short() {
        let looping = [(Seen::Runs, 8), (Seen::Ended(Some(1)), 10)].repeat(5);
        assert_eq!(
            after("m1", Wish::Run, &looping),
            [(Code::ModuleNotRunning, "it ended with exit code 1".into())]
        );
        let then_up = |seconds| [looping.as_slice(), &[(Seen::Runs, seconds)]].concat();
        assert_eq!(
            after("m1", Wish::Run, &then_up(10)),
            [(Code::ModuleNotRunning, "it runs again, since a moment ago".into())]
        );
        assert_eq!(after("m1", Wish::Run, &then_up(40)), []);
        assert_eq!(
            after("m1", Wish::Run, &[(Seen::Runs, 100), (Seen::Ended(None), 40), (Seen::Runs, 20)]),
            [],
            "a slow restart"
        );
    }

    #[test]
    fn a_job_that_was_done_is_a_warning_unless_the_deployment_wants_it_to_run() {
        let done = [(Seen::Runs, 10), (Seen::Ended(Some(0)), 70)];
        let code = |wish, states: &[(Seen, u64)]| after("m1", wish, states)[0].0;
        assert_eq!(code(Wish::Started, &done), Code::ModuleEnded);
        assert_eq!(code(Wish::Run, &done), Code::ModuleNotRunning);
        assert_eq!(code(Wish::Started, &[(Seen::Ended(Some(3)), 70)]), Code::ModuleNotRunning);
        assert_eq!(code(Wish::Started, &[(Seen::Missing, 70)]), Code::ModuleNotRunning);
    }

    #[test]
    fn the_agent_is_missed_sooner() {
        assert_eq!(
            after("$edgeAgent", Wish::Run, &[(Seen::Ended(Some(0)), 12)])[0].0,
            Code::AgentNotRunning
        );
        assert_eq!(after("m1", Wish::Run, &[(Seen::Ended(Some(0)), 12)]), []);
    }

    #[test]
    fn while_nothing_is_known_nothing_changes() {
        let down = [(Seen::Ended(Some(1)), 70)];
        let told = after("m1", Wish::Run, &down);
        assert_eq!(after("m1", Wish::Run, &[down[0], (Seen::Unknown, 500)]), told);
        assert_eq!(after("m1", Wish::Run, &[(Seen::Runs, 10), (Seen::Unknown, 500)]), []);
    }
}
