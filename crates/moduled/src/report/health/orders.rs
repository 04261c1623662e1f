//! Wishes for the modules: the orders that came through the management API, and the
//! wishes of the deployment, as the agent reports them. Wishes are kept in memory. After
//! a restart the modules that run are taken as wanted, and agents order the others again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use edgekeep_api::management::DeploymentReport;
use edgekeep_core::health::modules::{Seen, Wish};
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::board::Board;

use super::locked;

/// Time for which the agent's report counts if the agent does not repeat it.
const REPORT_LASTS: Duration = Duration::from_secs(300);
/// Modules of one report that are looked after; more than a device has.
const REPORTED: usize = 1024;

/// Something that is done to a module because somebody ordered it. Each includes what is
/// before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    /// Its identity is made.
    Identify,
    /// Its image is fetched.
    Prepare,
    /// It is made, or made anew.
    Make,
    /// It is stopped.
    Stop,
    /// It is started.
    Start,
    /// It is removed.
    Remove,
}

impl Order {
    const fn words(self) -> &'static str {
        match self {
            Self::Identify => "its identity cannot be made",
            Self::Prepare => "its image cannot be fetched",
            Self::Make => "it cannot be made",
            Self::Stop => "it cannot be stopped",
            Self::Start => "it cannot be started",
            Self::Remove => "it cannot be removed",
        }
    }

    /// Returns whether this order, carried out, makes up for one that failed before it.
    fn makes_up_for(self, failed: Self) -> bool {
        // A module that is made or started after its removal failed is wanted again.
        failed <= self || (failed == Self::Remove && matches!(self, Self::Make | Self::Start))
    }
}

/// The orders, and the agent's word. Modules go by the id that the hub has for them.
#[derive(Debug, Default)]
pub(crate) struct Orders(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    wishes: BTreeMap<ModuleId, Wish>,
    /// The last order that failed, of modules of which one did.
    failed: BTreeMap<ModuleId, Order>,
    report: Option<(Instant, Reported)>,
}

#[derive(Debug)]
struct Reported {
    running: BTreeSet<ModuleId>,
    failing: BTreeSet<ModuleId>,
}

impl Orders {
    /// Takes down an order and how it went. One that failed is a problem until that step
    /// is done or the module is gone.
    pub(crate) fn took<T, E: Display>(
        &self,
        board: &Board,
        module: &ModuleId,
        order: Order,
        result: &Result<T, E>,
    ) {
        let module = &module.hub_id();
        let mut known = locked(&self.0);
        match order {
            Order::Start => drop(known.wishes.insert(module.clone(), Wish::Started)),
            Order::Stop => drop(known.wishes.insert(module.clone(), Wish::Rest)),
            Order::Remove if result.is_ok() => drop(known.wishes.remove(module)),
            _ => {}
        }
        let subject = Subject::module(module);
        match result {
            Err(error) => {
                known.failed.insert(module.clone(), order);
                drop(known);
                board.raise(
                    Code::ModuleNotApplied,
                    &subject,
                    format!("{}: {error}", order.words()),
                );
            }
            Ok(_) if known.failed.get(module).is_some_and(|failed| order.makes_up_for(*failed)) => {
                known.failed.remove(module);
                drop(known);
                board.clear(Code::ModuleNotApplied, &subject);
            }
            Ok(_) => {}
        }
    }

    /// Takes down what is seen of a module: an order that failed is no problem any more
    /// if things are as it wanted them.
    pub(crate) fn seen(&self, board: &Board, module: &ModuleId, seen: Seen) {
        let mut known = locked(&self.0);
        let done = match known.failed.get(module) {
            Some(Order::Start) => seen == Seen::Runs,
            Some(Order::Stop) => matches!(seen, Seen::Ended(_) | Seen::Missing),
            Some(Order::Remove) => seen == Seen::Missing,
            _ => false,
        };
        if done {
            known.failed.remove(module);
            drop(known);
            board.clear(Code::ModuleNotApplied, &Subject::module(module));
        }
    }

    /// Takes down that a module runs of which no order is known.
    pub(crate) fn found_running(&self, module: &ModuleId) {
        locked(&self.0).wishes.entry(module.hub_id()).or_insert(Wish::Started);
    }

    /// Takes down what the agent says of its deployment.
    pub(crate) fn reported(&self, board: &Board, report: &DeploymentReport) {
        let modules = |names: &mut dyn Iterator<Item = &String>| -> BTreeSet<ModuleId> {
            names
                .take(REPORTED)
                .filter_map(|name| Some(name.parse::<ModuleId>().ok()?.hub_id()))
                .collect()
        };
        let running = modules(&mut report.running.iter());
        let failing = modules(&mut report.failing.keys());
        let mut known = locked(&self.0);
        let before = known.report.take().map(|(_, before)| before.failing).unwrap_or_default();
        let over: Vec<ModuleId> = before.difference(&failing).cloned().collect();
        for module in &over {
            known.failed.remove(module);
        }
        known.report = Some((Instant::now(), Reported { running, failing }));
        drop(known);
        match &report.problem {
            Some(problem) => board.raise(Code::DeploymentNotMade, &Subject::device(), problem),
            None => board.clear_all(Code::DeploymentNotMade),
        }
        for module in over {
            board.clear(Code::ModuleNotApplied, &Subject::module(&module));
        }
        for (name, error) in report.failing.iter().take(REPORTED) {
            if let Ok(module) = name.parse() {
                board.raise(Code::ModuleNotApplied, &Subject::module(&module), error);
            }
        }
    }

    /// All modules that are registered or wanted, with what is asked of each, if anything
    /// is known to be.
    pub(crate) fn wanted<'a>(
        &self,
        registered: impl Iterator<Item = &'a ModuleId>,
    ) -> BTreeMap<ModuleId, Option<Wish>> {
        let mut known = locked(&self.0);
        if known.report.as_ref().is_some_and(|(at, _)| at.elapsed() > REPORT_LASTS) {
            known.report = None;
        }
        let mut all: BTreeMap<ModuleId, Option<Wish>> = registered
            .map(|module| (module.hub_id(), known.wishes.get(&module.hub_id()).copied()))
            .collect();
        // What is neither registered nor in a deployment is nobody's any more.
        known.wishes.retain(|module, _| all.contains_key(module));
        if let Some((_, report)) = &known.report {
            for (module, wish) in all.iter_mut().filter(|(module, _)| !module.is_edge_agent()) {
                *wish = Some(if report.running.contains(module) { Wish::Run } else { Wish::Rest });
            }
            for module in report.running.iter().filter(|module| !module.is_edge_agent()) {
                all.entry(module.clone()).or_insert(Some(Wish::Run));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use edgekeep_core::health::Verdict;

    use super::*;

    fn id(name: &str) -> ModuleId {
        name.parse().unwrap()
    }

    const DONE: Result<(), &str> = Ok(());

    fn failed() -> Result<(), &'static str> {
        Err("network x not found")
    }

    fn told(board: &Board) -> Vec<String> {
        board.health().problems().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_order_that_failed_is_a_problem_until_it_or_a_later_step_is_done() {
        let (orders, board, m1) = (Orders::default(), Board::new(), id("m1"));
        orders.took(&board, &m1, Order::Start, &failed());
        let expected = "module-not-applied (module m1): it cannot be started: network x not found";
        assert_eq!(told(&board), [expected]);
        orders.took(&board, &m1, Order::Make, &DONE);
        assert_eq!(told(&board), [expected], "made anew is not started");
        orders.took(&board, &id("m2"), Order::Start, &DONE);
        assert_eq!(told(&board), [expected], "another module");
        orders.took(&board, &m1, Order::Start, &DONE);
        assert_eq!(board.health().verdict(), Verdict::Healthy);
        orders.took(&board, &m1, Order::Prepare, &failed());
        orders.took(&board, &m1, Order::Remove, &DONE);
        assert_eq!(board.health().verdict(), Verdict::Healthy, "it is not wanted any more");
        orders.took(&board, &m1, Order::Remove, &failed());
        orders.took(&board, &m1, Order::Stop, &DONE);
        assert_eq!(told(&board).len(), 1, "stopped is not removed");
        orders.took(&board, &m1, Order::Make, &DONE);
        assert_eq!(board.health().verdict(), Verdict::Healthy, "it is wanted again");
    }

    #[test]
    fn an_order_that_failed_is_no_problem_any_more_when_things_are_as_it_wanted_them() {
        let (orders, board, m1) = (Orders::default(), Board::new(), id("m1"));
        for (order, other, wanted) in [
            (Order::Start, Seen::Ended(Some(0)), Seen::Runs),
            (Order::Stop, Seen::Runs, Seen::Ended(None)),
            (Order::Remove, Seen::Runs, Seen::Missing),
        ] {
            orders.took(&board, &m1, order, &failed());
            orders.seen(&board, &m1, other);
            orders.seen(&board, &m1, Seen::Unknown);
            assert_eq!(told(&board).len(), 1, "{order:?}");
            orders.seen(&board, &m1, wanted);
            assert_eq!(board.health().verdict(), Verdict::Healthy, "{order:?}");
        }
        orders.took(&board, &m1, Order::Make, &failed());
        orders.seen(&board, &m1, Seen::Runs);
        assert_eq!(told(&board).len(), 1, "the old one runs, and the new one was not made");
    }

    #[test]
    fn what_was_started_is_wanted_until_it_is_stopped() {
        let (orders, board, m1) = (Orders::default(), Board::new(), id("m1"));
        let wish = |orders: &Orders| orders.wanted([&m1].into_iter())[&m1];
        assert_eq!(wish(&orders), None);
        orders.took(&board, &m1, Order::Start, &failed());
        assert_eq!(
            wish(&orders),
            Some(Wish::Started),
            "who orders a start wants it to run, whether that works or not"
        );
        orders.took(&board, &m1, Order::Stop, &DONE);
        orders.found_running(&m1);
        assert_eq!(wish(&orders), Some(Wish::Rest), "it is on its way down");
        assert_eq!(orders.wanted([].into_iter()), BTreeMap::new());
        assert_eq!(wish(&orders), None, "it was removed, and another one has its name");
    }

    #[test]
    fn the_agents_word_counts_before_orders_and_names_what_is_not_even_there() {
        let (orders, board) = (Orders::default(), Board::new());
        let (m1, m2, m3) = (id("m1"), id("m2"), id("m3"));
        orders.took(&board, &m1, Order::Start, &DONE);
        let report = DeploymentReport {
            problem: Some("the manifest is not JSON".into()),
            running: vec!["m2".into(), "m3".into(), "not a name".into()],
            failing: [("m3".to_owned(), "no such image".to_owned())].into(),
        };
        orders.reported(&board, &report);
        let wanted = orders.wanted([&m1, &m2].into_iter());
        assert_eq!(
            wanted,
            [(m1, Some(Wish::Rest)), (m2, Some(Wish::Run)), (m3.clone(), Some(Wish::Run))].into()
        );
        let expected = [
            "deployment-not-made (device): the manifest is not JSON",
            "module-not-applied (module m3): no such image",
        ];
        assert_eq!(told(&board), expected);
        orders.reported(
            &board,
            &DeploymentReport { problem: None, failing: BTreeMap::new(), ..report },
        );
        assert_eq!(board.health().verdict(), Verdict::Healthy);
    }
}
