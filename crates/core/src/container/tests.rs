//! The plan against a model of an engine that others touch at any moment.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const NAME: &str = "m1";
const DEVICE: &str = "device-net";
const FOREIGN: &str = "plant-net";
const SUBJECT: Subject<'static> = Subject { name: NAME, device_network: Some(DEVICE) };

fn id(digit: char) -> ContainerId {
    digit.to_string().repeat(64).parse().unwrap()
}

/// As much of an engine as the plan deals with.
#[derive(Debug, Clone)]
struct Engine {
    /// True if networks are known by their names, as Podman does; false if by ids, as
    /// Docker does.
    by_name: bool,
    own: Option<Own>,
    namesake: Option<Namesake>,
    /// The present name of another module's container that had this module's name.
    moved: Option<String>,
    networks: BTreeMap<String, String>,
    made: u32,
}

/// An action of others on the engine.
#[derive(Debug, Clone, Copy)]
enum Act {
    Pause,
    Unpause,
    Kill,
    Start,
    Die,
    Remove,
    Rename,
    Exchange,
    StrangerCreated,
    StrangerRemoved,
    Disconnect(&'static str),
    RemoveNetwork(&'static str),
    MakeNetwork(&'static str),
}

impl Engine {
    fn new(by_name: bool) -> Self {
        let endpoint = json!({ "Aliases": ["db"] });
        let wanted =
            BTreeMap::from([(DEVICE.to_owned(), endpoint.clone()), (FOREIGN.to_owned(), endpoint)]);
        let mut engine = Self {
            by_name,
            own: None,
            namesake: None,
            moved: None,
            networks: BTreeMap::new(),
            made: 0,
        };
        engine.make_network(DEVICE);
        engine.make_network(FOREIGN);
        let attached = wanted.keys().map(|name| (name.clone(), engine.network_id(name))).collect();
        let name = NAME.to_owned();
        engine.own = Some(Own {
            id: id('a'),
            name,
            phase: Phase::Running,
            attached,
            wanted,
            removes_itself: false,
        });
        engine
    }

    fn make_network(&mut self, name: &str) {
        self.made += 1;
        self.networks.entry(name.to_owned()).or_insert_with(|| self.made.to_string());
    }

    fn network_id(&self, name: &str) -> String {
        if self.by_name { name.to_owned() } else { self.networks[name].clone() }
    }

    fn seen(&self) -> Seen {
        let networks =
            self.networks.iter().map(|(name, id)| (name.clone(), BTreeSet::from([id.clone()])));
        let namesake =
            self.namesake.clone().filter(|_| self.own.as_ref().is_none_or(|own| own.name != NAME));
        Seen { own: self.own.clone(), namesake, networks: networks.collect() }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::StrangerCreated
                if self.namesake.is_none()
                    && self.own.as_ref().is_none_or(|own| own.name != NAME) =>
            {
                self.namesake = Some(Namesake::Stranger);
            }
            Act::StrangerRemoved if self.namesake == Some(Namesake::Stranger) => {
                self.namesake = None;
            }
            Act::RemoveNetwork(name) => {
                // Not while somebody is attached and runs; what stands still does not
                // count.
                let used = |own: &Own| own.phase.is_up() && own.attached.contains_key(name);
                if !self.own.as_ref().is_some_and(used) {
                    self.networks.remove(name);
                }
            }
            Act::MakeNetwork(name) => self.make_network(name),
            Act::Remove => self.own = None,
            _ => {}
        }
        let Some(own) = &mut self.own else { return };
        match act {
            Act::Pause if own.phase == Phase::Running => own.phase = Phase::Paused,
            Act::Unpause if own.phase == Phase::Paused => own.phase = Phase::Running,
            Act::Kill if own.phase.is_up() => own.phase = Phase::Exited,
            Act::Die => own.phase = Phase::Dead,
            Act::Start if own.phase == Phase::Exited => drop(self.take(&Step::Start)),
            Act::Rename if self.namesake.is_none() => own.name = "elsewhere".to_owned(),
            Act::Exchange if self.namesake.is_none() => {
                own.name = "m2".to_owned();
                self.namesake = Some(Namesake::OfModule(id('b')));
            }
            Act::Disconnect(name) => drop(own.attached.remove(name)),
            _ => {}
        }
    }

    /// Takes a call as the engine does, and returns its refusal if there is one.
    fn take(&mut self, step: &Step) -> Result<(), &'static str> {
        if let Step::MakeNetwork(name) = step {
            self.make_network(name);
            return Ok(());
        }
        if let Step::Rename { container, name } = step
            && *container == id('b')
        {
            self.namesake = None;
            self.moved = Some(name.clone());
            return Ok(());
        }
        let live = |attached: &BTreeMap<String, String>, networks: &BTreeMap<String, String>| {
            attached.iter().all(|(name, id)| {
                networks.get(name).is_some_and(|now| id.is_empty() || id == name || id == now)
            })
        };
        let (by_name, networks) = (self.by_name, self.networks.clone());
        let own = self.own.as_mut().ok_or("no such container")?;
        match step {
            Step::Rename { name, .. } => {
                if self.namesake.is_some() {
                    return Err("the name is taken");
                }
                own.name = name.clone();
            }
            Step::Disconnect(network) => {
                networks.get(network).ok_or("no such network")?;
                own.attached.remove(network).ok_or("is not connected")?;
            }
            Step::Connect { network, endpoint } => {
                assert_eq!(own.wanted.get(network), Some(endpoint), "attached as it was made");
                let now = networks.get(network).ok_or("no such network")?;
                let id = if by_name { network.clone() } else { now.clone() };
                own.attached.insert(network.clone(), id);
            }
            Step::Unpause if own.phase == Phase::Paused => own.phase = Phase::Running,
            Step::Unpause => return Err("it is not paused"),
            Step::Start => match own.phase {
                Phase::Paused => return Err("cannot start a paused container"),
                Phase::Dead | Phase::Removing => return Err("is dead"),
                _ if !live(&own.attached, &networks) => return Err("no such network"),
                _ => own.phase = Phase::Running,
            },
            Step::Stop => match own.phase {
                // As the stricter of the two engines.
                Phase::Paused => return Err("is paused"),
                _ => own.phase = Phase::Exited,
            },
            Step::MakeNetwork(_) => {}
        }
        Ok(())
    }

    /// As the shell does: look, plan, take; look again when something failed and
    /// something else is seen. `acts` happen before the calls, one each.
    fn carry_out(
        &mut self,
        operation: Operation,
        acts: &mut dyn Iterator<Item = Act>,
    ) -> Result<(), Obstacle> {
        for _ in 0..100 {
            let mut failed = false;
            for step in plan(SUBJECT, &self.seen(), operation)? {
                if let Some(act) = acts.next() {
                    self.act(act);
                }
                if self.take(&step).is_err() {
                    failed = true;
                    break;
                }
            }
            if !failed {
                return Ok(());
            }
        }
        panic!("no end: {self:?}");
    }
}

fn any_act() -> impl Strategy<Value = Act> {
    let network = prop_oneof![Just(DEVICE), Just(FOREIGN)];
    prop_oneof![
        Just(Act::Pause),
        Just(Act::Unpause),
        Just(Act::Kill),
        Just(Act::Start),
        Just(Act::Rename),
        Just(Act::Exchange),
        Just(Act::StrangerCreated),
        Just(Act::StrangerRemoved),
        network.clone().prop_map(Act::Disconnect),
        network.clone().prop_map(Act::RemoveNetwork),
        network.prop_map(Act::MakeNetwork),
        prop_oneof![9 => Just(Act::Kill), 1 => Just(Act::Remove)],
        prop_oneof![9 => Just(Act::Pause), 1 => Just(Act::Die)],
    ]
}

fn any_acts() -> impl Strategy<Value = Vec<Act>> {
    proptest::collection::vec(any_act(), 0..8)
}

/// Returns true if nothing is missing but the phase.
fn is_whole(engine: &Engine, own: &Own) -> bool {
    let attached = own.wanted.keys().all(|network| {
        let now = engine.networks.get(network);
        now.is_some_and(|now| {
            own.attached.get(network).is_some_and(|id| id == now || id == network)
        })
    });
    own.name == NAME && attached
}

/// Returns true if an obstacle says what is the case.
fn is_true(engine: &Engine, obstacle: &Obstacle) -> bool {
    match (obstacle, &engine.own) {
        (Obstacle::Gone, own) => own.is_none() && engine.namesake.is_none(),
        (Obstacle::Stranger, own) => own.is_none() && engine.namesake.is_some(),
        (Obstacle::NameTaken { called }, Some(own)) => {
            own.name == *called && engine.namesake == Some(Namesake::Stranger)
        }
        (Obstacle::NetworkMissing { network }, Some(_)) => {
            network == FOREIGN && !engine.networks.contains_key(FOREIGN)
        }
        (Obstacle::Dead, Some(own)) => own.phase == Phase::Dead,
        (Obstacle::RemovesItself | Obstacle::Removing, _) | (_, None) => false,
    }
}

proptest! {
    #[test]
    fn a_start_makes_it_run_whole_or_says_truly_what_is_in_the_way(
        by_name in any::<bool>(), before in any_acts(), meanwhile in any_acts(),
    ) {
        let mut engine = Engine::new(by_name);
        before.into_iter().for_each(|act| engine.act(act));
        let mut acts = meanwhile.into_iter();
        let first = engine.carry_out(Operation::Start, &mut acts);
        if let Err(obstacle) = &first {
            prop_assert!(is_true(&engine, obstacle), "{obstacle:?} {engine:?}");
        }
        // What others did after the last look is put right by the next.
        match engine.carry_out(Operation::Start, &mut std::iter::empty()) {
            Ok(()) => {
                let own = engine.own.clone().expect("there");
                prop_assert_eq!(own.phase, Phase::Running);
                let whole = is_whole(&engine, &own) || !engine.networks.contains_key(FOREIGN);
                prop_assert!(whole, "{engine:?}");
                prop_assert_eq!(plan(SUBJECT, &engine.seen(), Operation::Start), Ok(Vec::new()), "nothing is left");
            }
            Err(obstacle) => prop_assert!(is_true(&engine, &obstacle), "{obstacle:?} {engine:?}"),
        }
    }

    #[test]
    fn a_stop_ends_it_whatever_is_the_matter_with_it(by_name in any::<bool>(), before in any_acts(), meanwhile in any_acts()) {
        let mut engine = Engine::new(by_name);
        before.into_iter().for_each(|act| engine.act(act));
        let _ = engine.carry_out(Operation::Stop, &mut meanwhile.into_iter());
        match engine.carry_out(Operation::Stop, &mut std::iter::empty()) {
            Ok(()) => prop_assert!(!engine.own.clone().expect("there").phase.is_up()),
            Err(obstacle) => prop_assert!(engine.own.is_none() && is_true(&engine, &obstacle), "{obstacle:?}"),
        }
    }

    #[test]
    fn what_was_found_to_be_startable_before_its_stop_can_be_started_after(by_name in any::<bool>(), before in any_acts()) {
        let mut engine = Engine::new(by_name);
        before.into_iter().for_each(|act| engine.act(act));
        let phase = engine.own.as_ref().map(|own| own.phase);
        let mut none = std::iter::empty();
        if engine.carry_out(Operation::Prepare, &mut none).is_ok() {
            prop_assert_eq!(engine.own.as_ref().map(|own| own.phase), phase, "it was not touched yet");
            prop_assert_eq!(engine.carry_out(Operation::Stop, &mut none), Ok(()));
            prop_assert_eq!(engine.carry_out(Operation::Start, &mut none), Ok(()));
        }
    }

    #[test]
    fn a_review_starts_and_stops_nothing_and_leaves_only_what_it_tells_of(by_name in any::<bool>(), acts in any_acts()) {
        let mut engine = Engine::new(by_name);
        acts.into_iter().for_each(|act| engine.act(act));
        let before = engine.own.clone();
        let steps = plan(SUBJECT, &engine.seen(), Operation::Review).expect("a review has no obstacle");
        let touches = |step: &Step| matches!(step, Step::Start | Step::Stop | Step::Unpause);
        prop_assert!(!steps.iter().any(touches));
        for step in &steps {
            prop_assert_eq!(engine.take(step), Ok(()), "{:?} of {:?}", step, steps);
        }
        prop_assert_eq!(engine.own.as_ref().map(|own| own.phase), before.map(|own| own.phase));
        let trouble = trouble(SUBJECT, &engine.seen());
        prop_assert!(trouble.is_some() || engine.own.as_ref().is_some_and(|own| is_whole(&engine, own)), "{engine:?}");
    }

    #[test]
    fn nobody_elses_container_is_touched(by_name in any::<bool>(), acts in any_acts(), which in 0..4_usize) {
        let mut engine = Engine::new(by_name);
        acts.into_iter().for_each(|act| engine.act(act));
        let operation = [Operation::Start, Operation::Stop, Operation::Prepare, Operation::Review][which];
        for step in plan(SUBJECT, &engine.seen(), operation).unwrap_or_default() {
            if let Step::Rename { container, .. } = step {
                prop_assert!(container == id('a') || container == id('b'), "of modules only");
            }
        }
    }
}

/// The table: what is seen, and what each operation does about it.
#[test]
fn what_is_done_in_each_state() {
    let own = |change: &dyn Fn(&mut Own)| {
        let mut own = Engine::new(false).own.unwrap();
        change(&mut own);
        own
    };
    // Frozen: it goes on first, is attached then, and nothing is done unasked.
    let frozen = Seen {
        own: Some(own(&|own| {
            own.phase = Phase::Paused;
            own.attached.clear();
        })),
        ..Engine::new(false).seen()
    };
    let start = plan(SUBJECT, &frozen, Operation::Start).unwrap();
    assert_eq!(start.first(), Some(&Step::Unpause));
    assert!(matches!(start[1..], [Step::Connect { .. }, ..]), "{start:?}");
    assert_eq!(plan(SUBJECT, &frozen, Operation::Prepare), Ok(vec![]));
    assert_eq!(plan(SUBJECT, &frozen, Operation::Review), Ok(vec![]));
    let phases = [
        (Phase::Running, vec![], vec![Step::Stop]),
        (Phase::Paused, vec![Step::Unpause], vec![Step::Unpause, Step::Stop]),
        (Phase::Created, vec![Step::Start], vec![]),
        (Phase::Exited, vec![Step::Start], vec![Step::Stop]),
        (Phase::Restarting, vec![], vec![Step::Stop]),
        (Phase::Stopping, vec![Step::Start], vec![Step::Stop]),
        (Phase::Unknown, vec![Step::Start], vec![Step::Stop]),
    ];
    for (phase, start, stop) in phases {
        let seen = Seen { own: Some(own(&|own| own.phase = phase)), ..Engine::new(false).seen() };
        assert_eq!(plan(SUBJECT, &seen, Operation::Start), Ok(start), "{phase}");
        assert_eq!(plan(SUBJECT, &seen, Operation::Stop), Ok(stop), "{phase}");
        assert_eq!(plan(SUBJECT, &seen, Operation::Review), Ok(vec![]), "{phase}");
    }
    for (phase, obstacle) in [(Phase::Dead, Obstacle::Dead), (Phase::Removing, Obstacle::Removing)]
    {
        let seen = Seen { own: Some(own(&|own| own.phase = phase)), ..Engine::new(false).seen() };
        assert_eq!(plan(SUBJECT, &seen, Operation::Start), Err(obstacle));
    }
    let removed =
        Seen { own: Some(own(&|own| own.removes_itself = true)), ..Engine::new(false).seen() };
    assert_eq!(plan(SUBJECT, &removed, Operation::Prepare), Err(Obstacle::RemovesItself));
    assert_eq!(plan(SUBJECT, &removed, Operation::Start), Ok(vec![]));
}

/// All modules stopped and their network removed: the case as it was reported.
#[test]
fn a_stopped_container_whose_network_is_gone_gets_both_back_before_its_start() {
    let mut engine = Engine::new(false);
    engine.act(Act::Kill);
    engine.act(Act::RemoveNetwork(DEVICE));
    let endpoint = json!({ "Aliases": ["db"] });
    let (network, name) = (DEVICE.to_owned(), || DEVICE.to_owned());
    let attach =
        [Step::MakeNetwork(name()), Step::Disconnect(name()), Step::Connect { network, endpoint }];
    let started: Vec<Step> = attach.iter().cloned().chain([Step::Start]).collect();
    assert_eq!(plan(SUBJECT, &engine.seen(), Operation::Start), Ok(started));
    assert_eq!(plan(SUBJECT, &engine.seen(), Operation::Review), Ok(attach.into()));
    engine.act(Act::RemoveNetwork(FOREIGN));
    let missing = Obstacle::NetworkMissing { network: FOREIGN.to_owned() };
    assert_eq!(plan(SUBJECT, &engine.seen(), Operation::Start), Err(missing));
}

#[test]
fn every_trouble_names_the_module_and_a_remedy() {
    let network = FOREIGN.to_owned();
    let obstacles = [
        (Obstacle::Gone, "makes it anew"),
        (Obstacle::Stranger, "create it again"),
        (Obstacle::NameTaken { called: "elsewhere".to_owned() }, "rename or remove"),
        (Obstacle::NetworkMissing { network }, "docker network create plant-net"),
        (Obstacle::Dead, "create it again"),
        (Obstacle::Removing, "create the module again"),
        (Obstacle::RemovesItself, "take AutoRemove out"),
    ];
    for (obstacle, remedy) in obstacles {
        let text = obstacle.explained(NAME);
        assert!(text.contains("m1") && text.contains(remedy), "{text}");
        let trouble = Trouble::Obstacle(obstacle);
        assert!(Trouble::CODES.contains(&trouble.code()));
        assert!(
            trouble.detail(NAME) == text
                || trouble.code().explained().remedy.contains("makes it anew")
        );
    }
    assert!(Trouble::CODES.contains(&Trouble::Paused.code()));
}
