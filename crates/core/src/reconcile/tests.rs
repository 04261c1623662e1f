use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn id(name: &str) -> ModuleId {
    name.parse().unwrap()
}

fn target(version: u8) -> Target {
    Target {
        fingerprint: Sha256Digest::new([version; 32]),
        status: DesiredStatus::Running,
        restart_policy: RestartPolicy::OnUnhealthy,
        startup_order: u32::MAX,
    }
}

const GENERATION: &str = "g0";

fn observed(state: RuntimeState) -> Observed {
    let (fingerprint, generation) = (Some(target(1).fingerprint), Some(GENERATION.to_owned()));
    Observed { state, fingerprint, generation, last_start: Some(Timestamp(0)), last_exit: None }
}

fn targets(entries: &[(&str, Target)]) -> Targets {
    entries.iter().map(|(name, target)| (id(name), *target)).collect()
}

fn current(entries: &[(&str, Observed)]) -> Current {
    entries.iter().map(|(name, observed)| (id(name), observed.clone())).collect()
}

/// The plan where all identities are those for which everything was made.
fn plan(desired: &Targets, current: &Current, memory: &Memory, now: Timestamp) -> Vec<Step> {
    super::plan(desired, current, Some(&unchanged()), memory, now)
}

fn unchanged() -> Generations {
    ["m", "a", "b", "c", "z", "edgeHub"]
        .into_iter()
        .map(|name| (id(name), GENERATION.to_owned()))
        .collect()
}

/// The plan for one wanted module `m` whose identity is of this generation, if there is
/// any.
fn with_identity(
    generation: Option<&str>,
    state: RuntimeState,
    memory: &Memory,
    now: i64,
) -> Vec<Step> {
    let identities =
        generation.map(|generation| (id("m"), generation.to_owned())).into_iter().collect();
    let there = current(&[("m", observed(state))]);
    super::plan(&targets(&[("m", target(1))]), &there, Some(&identities), memory, Timestamp(now))
}

/// The plan for one module `m`, as purpose and actions.
fn one(
    target: Option<Target>,
    observed: Option<Observed>,
    memory: &Memory,
    now: i64,
) -> Vec<(Purpose, Vec<Action>)> {
    let desired = target.map(|target| targets(&[("m", target)])).unwrap_or_default();
    let current = observed.map(|observed| current(&[("m", observed)])).unwrap_or_default();
    plan(&desired, &current, memory, Timestamp(now))
        .into_iter()
        .map(|step| (step.purpose, step.actions))
        .collect()
}

use Action::{Create, DeleteIdentity, EnsureIdentity, PrepareUpdate, Remove, Start, Stop, Update};

#[test]
fn a_new_module_gets_identity_image_container_and_start_in_this_order() {
    let actions = vec![EnsureIdentity, PrepareUpdate, Create, Start];
    assert_eq!(one(Some(target(1)), None, &Memory::default(), 0), [(Purpose::Create, actions)]);
    let stopped = Target { status: DesiredStatus::Stopped, ..target(1) };
    let actions = vec![EnsureIdentity, PrepareUpdate, Create];
    assert_eq!(one(Some(stopped), None, &Memory::default(), 0), [(Purpose::Create, actions)]);
}

#[test]
fn a_changed_spec_replaces_the_container_and_a_changed_policy_does_not() {
    let running = observed(RuntimeState::Running);
    let actions = vec![EnsureIdentity, PrepareUpdate, Stop, Update, Start];
    assert_eq!(
        one(Some(target(2)), Some(running.clone()), &Memory::default(), 0),
        [(Purpose::Update, actions)]
    );
    let policy = Target { restart_policy: RestartPolicy::Never, startup_order: 1, ..target(1) };
    assert_eq!(one(Some(policy), Some(running), &Memory::default(), 0), []);
}

#[test]
fn what_is_not_wanted_goes_first_and_its_identity_last() {
    let desired = targets(&[
        ("b", Target { startup_order: 2, ..target(1) }),
        ("z", Target { startup_order: 1, ..target(1) }),
    ]);
    let there =
        current(&[("a", observed(RuntimeState::Running)), ("c", observed(RuntimeState::Dead))]);
    let plan = plan(&desired, &there, &Memory::default(), Timestamp(0));
    let order: Vec<_> =
        plan.iter().map(|step| (step.module.as_str(), step.actions.clone())).collect();
    let make = vec![EnsureIdentity, PrepareUpdate, Create, Start];
    let expected = [
        ("a", vec![Stop, Remove]),
        ("c", vec![Remove]),
        ("z", make.clone()),
        ("b", make),
        ("a", vec![DeleteIdentity]),
        ("c", vec![DeleteIdentity]),
    ];
    assert_eq!(order, expected);
}

#[test]
fn the_agent_is_in_no_plan_wanted_or_not() {
    for name in ["edgeAgent", "$edgeAgent"] {
        for state in [RuntimeState::Running, RuntimeState::Dead, RuntimeState::Unknown] {
            let there = current(&[(name, observed(state))]);
            assert_eq!(plan(&Targets::new(), &there, &Memory::default(), Timestamp(0)), []);
            let desired = targets(&[(name, target(9))]);
            assert_eq!(plan(&desired, &there, &Memory::default(), Timestamp(0)), []);
        }
    }
}

#[test]
fn a_module_in_an_unknown_state_is_left_alone_and_holds_back_no_other() {
    let desired = targets(&[("a", target(1)), ("b", target(1))]);
    let there = current(&[("a", observed(RuntimeState::Unknown))]);
    let plan = plan(&desired, &there, &Memory::default(), Timestamp(0));
    assert_eq!(plan.iter().map(|step| step.module.as_str()).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn restarts_wait_10_20_40_80_160_and_then_300_seconds() {
    let desired = targets(&[("m", target(1))]);
    let mut memory = Memory::default();
    let mut now = 1_000_000;
    let mut waits = Vec::new();
    for _ in 0..8 {
        let exit = now;
        let there = current(&[(
            "m",
            Observed { last_exit: Some(Timestamp(exit)), ..observed(RuntimeState::Failed) },
        )]);
        loop {
            memory.observe(&desired, &there, Some(&unchanged()), Timestamp(now));
            let plan = plan(&desired, &there, &memory, Timestamp(now));
            if let [step] = plan.as_slice() {
                assert_eq!(
                    (step.purpose, step.actions.as_slice()),
                    (Purpose::Restart, [Start].as_slice())
                );
                memory.record(step, 1, Some(GENERATION), Timestamp(now));
                break;
            }
            now += 1000;
        }
        waits.push((now - exit) / 1000);
    }
    assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300, 300]);
    assert_eq!(memory.restarts(&id("m")), (8, Some(Timestamp(now))));

    let there = current(&[(
        "m",
        Observed { last_start: Some(Timestamp(now)), ..observed(RuntimeState::Running) },
    )]);
    memory.observe(&desired, &there, Some(&unchanged()), Timestamp(now + INTENSIVE_CARE));
    assert_eq!(memory.restarts(&id("m")).0, 8);
    memory.observe(&desired, &there, Some(&unchanged()), Timestamp(now + INTENSIVE_CARE + 1));
    assert_eq!(memory.restarts(&id("m")).0, 0);
}

#[test]
fn restart_policies_decide_about_ended_modules() {
    use RestartPolicy::{Always, Never, OnFailure, OnUnhealthy};
    for (policy, restarts) in
        [(Never, false), (OnFailure, true), (OnUnhealthy, true), (Always, true)]
    {
        for state in [RuntimeState::Stopped, RuntimeState::Failed] {
            let ended = Observed { last_exit: Some(Timestamp(0)), ..observed(state) };
            let target = Target { restart_policy: policy, ..target(1) };
            let plan = one(Some(target), Some(ended), &Memory::default(), 60_000);
            assert_eq!(!plan.is_empty(), restarts, "{policy:?} {state:?}");
        }
    }
}

#[test]
fn a_module_that_was_never_started_or_was_wanted_stopped_before_is_started_at_once() {
    let never = Target { restart_policy: RestartPolicy::Never, ..target(1) };
    let fresh = Observed { last_start: None, ..observed(RuntimeState::Stopped) };
    assert_eq!(
        one(Some(never), Some(fresh), &Memory::default(), 0),
        [(Purpose::Start, vec![Start])]
    );

    let stopped = Target { status: DesiredStatus::Stopped, ..never };
    let ended = Observed { last_exit: Some(Timestamp(0)), ..observed(RuntimeState::Stopped) };
    let mut memory = Memory::default();
    memory.record(
        &Step {
            module: id("m"),
            purpose: Purpose::Stop,
            target: Some(stopped),
            actions: vec![Stop],
        },
        1,
        Some(GENERATION),
        Timestamp(0),
    );
    assert_eq!(one(Some(stopped), Some(ended.clone()), &memory, 1), []);
    assert_eq!(one(Some(never), Some(ended), &memory, 1), [(Purpose::Start, vec![Start])]);
}

#[test]
fn a_failed_exit_that_should_be_stopped_is_not_stopped_again_and_again() {
    let stopped = Target { status: DesiredStatus::Stopped, ..target(1) };
    assert_eq!(one(Some(stopped), Some(observed(RuntimeState::Failed)), &Memory::default(), 0), []);
    let running = one(Some(stopped), Some(observed(RuntimeState::Running)), &Memory::default(), 0);
    assert_eq!(running, [(Purpose::Stop, vec![Stop])]);
}

#[test]
fn a_dead_container_is_made_anew() {
    let actions = vec![EnsureIdentity, PrepareUpdate, Remove, Create, Start];
    let plan = one(Some(target(1)), Some(observed(RuntimeState::Dead)), &Memory::default(), 0);
    assert_eq!(plan, [(Purpose::Recreate, actions)]);
}

#[test]
fn a_failed_update_waits_while_the_old_container_is_looked_after() {
    let mut memory = Memory::default();
    let desired = targets(&[("m", target(2))]);
    let there = current(&[("m", observed(RuntimeState::Running))]);
    let step = plan(&desired, &there, &memory, Timestamp(0)).remove(0);
    memory.record(&step, 1, Some(GENERATION), Timestamp(0));
    assert!(memory.is_failing(&id("m")));
    assert_eq!(plan(&desired, &there, &memory, Timestamp(9_999)), []);
    assert_eq!(plan(&desired, &there, &memory, Timestamp(10_000)).len(), 1);

    let crashed =
        Observed { last_exit: Some(Timestamp(-60_000)), ..observed(RuntimeState::Failed) };
    let restart = one(Some(target(2)), Some(crashed), &memory, 5_000);
    assert_eq!(restart, [(Purpose::Restart, vec![Start])]);
    // Another target need not wait.
    let actions = vec![EnsureIdentity, PrepareUpdate, Stop, Update, Start];
    let plan = one(Some(target(3)), Some(observed(RuntimeState::Running)), &memory, 1);
    assert_eq!(plan, [(Purpose::Update, actions)]);
}

#[test]
fn a_container_whose_start_failed_is_not_made_again() {
    let mut memory = Memory::default();
    let desired = targets(&[("m", target(1))]);
    let step = plan(&desired, &Current::new(), &memory, Timestamp(0)).remove(0);
    memory.record(&step, 3, Some(GENERATION), Timestamp(0));
    let made = Observed { fingerprint: None, last_start: None, ..observed(RuntimeState::Stopped) };
    assert_eq!(one(Some(target(1)), Some(made.clone()), &memory, 1), []);
    assert_eq!(one(Some(target(1)), Some(made), &memory, 10_000), [(Purpose::Start, vec![Start])]);
}

#[test]
fn an_identity_that_could_not_be_deleted_is_deleted_later() {
    let mut memory = Memory::default();
    let there = current(&[("m", observed(RuntimeState::Running))]);
    for step in plan(&Targets::new(), &there, &memory, Timestamp(0)) {
        let completed = if step.purpose == Purpose::DropIdentity { 0 } else { step.actions.len() };
        memory.record(&step, completed, Some(GENERATION), Timestamp(0));
    }
    memory.observe(&Targets::new(), &Current::new(), Some(&unchanged()), Timestamp(1));
    assert_eq!(one(None, None, &memory, 1), []);
    let later = plan(&Targets::new(), &Current::new(), &memory, Timestamp(10_000));
    assert_eq!(later.len(), 1);
    memory.record(&later[0], 1, Some(GENERATION), Timestamp(10_000));
    memory.observe(&Targets::new(), &Current::new(), Some(&unchanged()), Timestamp(10_001));
    assert_eq!(memory, Memory::default());
}

#[test]
fn a_module_wanted_again_after_its_identity_went_is_made_anew_for_a_new_one() {
    let mut memory = Memory::default();
    let there = current(&[("m", observed(RuntimeState::Running))]);
    for step in plan(&Targets::new(), &there, &memory, Timestamp(0)) {
        let completed = if step.purpose == Purpose::Remove { 0 } else { step.actions.len() };
        memory.record(&step, completed, Some(GENERATION), Timestamp(0));
    }
    let desired = targets(&[("m", target(1))]);
    let step = plan(&desired, &there, &memory, Timestamp(1)).remove(0);
    assert_eq!(step.purpose, Purpose::Update);
    // The identity alone is not enough: the container still has the old one.
    memory.record(&step, 1, Some(GENERATION), Timestamp(1));
    let step = plan(&desired, &there, &memory, Timestamp(20_000)).remove(0);
    assert_eq!(step.purpose, Purpose::Update);
    memory.record(&step, 5, Some(GENERATION), Timestamp(20_000));
    assert_eq!(plan(&desired, &there, &memory, Timestamp(20_001)), []);
}

#[test]
fn a_lost_identity_is_made_anew_without_touching_the_module() {
    let mut memory = Memory::default();
    for state in [RuntimeState::Running, RuntimeState::Unknown] {
        let plan = with_identity(None, state, &memory, 0);
        let steps: Vec<_> =
            plan.iter().map(|step| (step.purpose, step.actions.as_slice())).collect();
        assert_eq!(steps, [(Purpose::Identify, [EnsureIdentity].as_slice())], "{state:?}");
    }
    // One that cannot be made waits, and holds back no restart.
    let step = with_identity(None, RuntimeState::Running, &memory, 0).remove(0);
    memory.record(&step, 0, None, Timestamp(0));
    assert!(memory.is_failing(&id("m")));
    assert_eq!(with_identity(None, RuntimeState::Running, &memory, 9_999), []);
    let actions =
        |plan: Vec<Step>| plan.into_iter().flat_map(|step| step.actions).collect::<Vec<_>>();
    assert_eq!(actions(with_identity(None, RuntimeState::Failed, &memory, 9_999)), [Start]);
    assert_eq!(
        actions(with_identity(None, RuntimeState::Failed, &memory, 10_000)),
        [EnsureIdentity, Start]
    );
    let there = current(&[("m", observed(RuntimeState::Running))]);
    memory.observe(&targets(&[("m", target(1))]), &there, Some(&unchanged()), Timestamp(10_001));
    assert!(!memory.is_failing(&id("m")));
}

#[test]
fn a_module_made_for_another_generation_is_made_anew() {
    let memory = Memory::default();
    let plan = with_identity(Some("g1"), RuntimeState::Running, &memory, 0);
    let actions = [EnsureIdentity, PrepareUpdate, Stop, Update, Start];
    assert_eq!(plan.len(), 1);
    assert_eq!((plan[0].purpose, plan[0].actions.as_slice()), (Purpose::Renew, actions.as_slice()));
    assert_eq!(with_identity(Some(GENERATION), RuntimeState::Running, &memory, 0), []);
}

#[test]
fn a_container_without_a_noted_generation_counts_as_made_for_the_first_that_is_seen() {
    let desired = targets(&[("m", target(1))]);
    let there = current(&[("m", Observed { generation: None, ..observed(RuntimeState::Running) })]);
    let mut memory = Memory::default();
    memory.observe(&desired, &there, None, Timestamp(0));
    assert_eq!(super::plan(&desired, &there, None, &memory, Timestamp(0)), []);
    memory.observe(&desired, &there, Some(&unchanged()), Timestamp(0));
    assert_eq!(plan(&desired, &there, &memory, Timestamp(0)), []);
    let renewed = Generations::from([(id("m"), "g1".to_owned())]);
    memory.observe(&desired, &there, Some(&renewed), Timestamp(0));
    let steps = super::plan(&desired, &there, Some(&renewed), &memory, Timestamp(0));
    assert_eq!(steps.iter().map(|step| step.purpose).collect::<Vec<_>>(), [Purpose::Renew]);
}

#[test]
fn a_list_of_identities_that_stays_behind_makes_no_container_anew_again_and_again() {
    let desired = targets(&[("m", target(1))]);
    let there = current(&[("m", observed(RuntimeState::Running))]);
    let behind = Generations::from([(id("m"), "older".to_owned())]);
    let mut memory = Memory::default();
    let mut renewals = Vec::new();
    for now in (0..1_000_000).step_by(5000).map(Timestamp) {
        memory.observe(&desired, &there, Some(&behind), now);
        for step in super::plan(&desired, &there, Some(&behind), &memory, now) {
            memory.record(&step, step.actions.len(), Some(GENERATION), now);
            renewals.push(now.0 / 1000);
        }
    }
    assert_eq!(renewals, [0, 10, 30, 70, 150, 310, 610, 910]);
}

#[test]
fn a_paused_module_goes_on_after_a_moment_whatever_its_policy_and_one_that_is_to_stop_is_stopped() {
    let policies = [
        RestartPolicy::Never,
        RestartPolicy::OnFailure,
        RestartPolicy::OnUnhealthy,
        RestartPolicy::Always,
    ];
    for restart_policy in policies {
        let wanted = Target { restart_policy, ..target(1) };
        let (desired, there) =
            (targets(&[("m", wanted)]), current(&[("m", observed(RuntimeState::Paused))]));
        let mut memory = Memory::default();
        memory.observe(&desired, &there, Some(&unchanged()), Timestamp(5_000));
        assert_eq!(
            plan(&desired, &there, &memory, Timestamp(14_999)),
            [],
            "a tool copies its data"
        );
        memory.observe(&desired, &there, Some(&unchanged()), Timestamp(15_000));
        let steps = plan(&desired, &there, &memory, Timestamp(15_000));
        assert_eq!(
            steps.iter().map(|step| (step.purpose, step.actions.clone())).collect::<Vec<_>>(),
            [(Purpose::Resume, vec![Start])]
        );
        memory.record(&steps[0], 1, Some(GENERATION), Timestamp(15_000));
        assert_eq!(memory.restarts(&id("m")), (0, None), "it has not ended");
        // It went on and is frozen anew: the moment begins anew.
        let running = current(&[("m", observed(RuntimeState::Running))]);
        memory.observe(&desired, &running, Some(&unchanged()), Timestamp(16_000));
        memory.observe(&desired, &there, Some(&unchanged()), Timestamp(20_000));
        assert_eq!(plan(&desired, &there, &memory, Timestamp(25_000)), []);
        assert_eq!(
            plan(&desired, &there, &memory, Timestamp(0)).len(),
            1,
            "the clock was set back"
        );
    }
    let stopped = Target { status: DesiredStatus::Stopped, ..target(1) };
    let paused = Some(observed(RuntimeState::Paused));
    assert_eq!(
        one(Some(stopped), paused.clone(), &Memory::default(), 0),
        [(Purpose::Stop, vec![Stop])]
    );
    let removed = one(None, paused, &Memory::default(), 0).remove(0);
    assert_eq!(removed, (Purpose::Remove, vec![Remove]), "it does not go on to be removed");
}

#[test]
fn memory_reads_back_from_json() {
    let mut memory = Memory::default();
    let step =
        plan(&targets(&[("m", target(1))]), &Current::new(), &memory, Timestamp(0)).remove(0);
    memory.record(&step, 3, Some(GENERATION), Timestamp(7));
    let text = serde_json::to_string(&memory).unwrap();
    assert_eq!(serde_json::from_str::<Memory>(&text).unwrap(), memory);
}

// A model of a device, for random histories.

#[derive(Debug, Clone)]
enum Event {
    /// The manifest now wants these.
    Deploy(Vec<(u8, u8, bool, u8)>),
    /// Time passes, in seconds; it may also be set back.
    Pass(i32),
    /// A module ends with this exit code.
    Exit(u8, i32),
    /// Calls about a module fail at this action, or no longer.
    Fault(u8, Option<u8>),
    /// A container is dead.
    Die(u8),
    /// A module's identity is made anew at the hub.
    Regenerate(u8),
    /// A module's identity is lost.
    LoseIdentity(u8),
    /// Identities cannot be listed, or they can again.
    IdentitiesAway(bool),
    /// The agent loses its state folder.
    Forget,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        proptest::collection::vec((0..5_u8, 0..3_u8, any::<bool>(), 0..4_u8), 0..5)
            .prop_map(Event::Deploy),
        (-5000..5000_i32).prop_map(Event::Pass),
        (0..100_i32).prop_map(Event::Pass),
        (0..5_u8, 0..2_i32).prop_map(|(module, code)| Event::Exit(module, code)),
        (0..5_u8, proptest::option::of(0..8_u8))
            .prop_map(|(module, action)| Event::Fault(module, action)),
        (0..5_u8).prop_map(Event::Die),
        (0..5_u8).prop_map(Event::Regenerate),
        (0..5_u8).prop_map(Event::LoseIdentity),
        any::<bool>().prop_map(Event::IdentitiesAway),
        Just(Event::Forget),
    ]
}

#[derive(Default)]
struct Device {
    now: i64,
    desired: Targets,
    current: Current,
    identities: Generations,
    generations: u32,
    identities_away: bool,
    memory: Memory,
    faults: BTreeMap<ModuleId, Action>,
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "edgeHub"];
const ACTIONS: [Action; 8] =
    [EnsureIdentity, PrepareUpdate, Create, Update, Remove, Start, Stop, DeleteIdentity];

impl Device {
    fn new() -> Self {
        let agent = observed(RuntimeState::Running);
        Self { current: current(&[("edgeAgent", agent)]), ..Self::default() }
    }

    fn apply(&mut self, event: Event) {
        let name = |index: u8| id(NAMES[usize::from(index) % NAMES.len()]);
        match event {
            Event::Deploy(modules) => {
                let policies = [
                    RestartPolicy::Never,
                    RestartPolicy::OnFailure,
                    RestartPolicy::OnUnhealthy,
                    RestartPolicy::Always,
                ];
                self.desired = modules
                    .into_iter()
                    .map(|(module, version, running, policy)| {
                        let status =
                            if running { DesiredStatus::Running } else { DesiredStatus::Stopped };
                        let restart_policy = policies[usize::from(policy)];
                        let startup_order = u32::from(version);
                        (
                            name(module),
                            Target { status, restart_policy, startup_order, ..target(version) },
                        )
                    })
                    .collect();
            }
            Event::Pass(seconds) => self.now += i64::from(seconds) * 1000,
            Event::Exit(module, code) => {
                if let Some(module) =
                    self.current.get_mut(&name(module)).filter(|m| m.state == RuntimeState::Running)
                {
                    module.state =
                        if code == 0 { RuntimeState::Stopped } else { RuntimeState::Failed };
                    module.last_exit = Some(Timestamp(self.now));
                }
            }
            Event::Fault(module, Some(action)) => {
                self.faults.insert(name(module), ACTIONS[usize::from(action)]);
            }
            Event::Fault(module, None) => {
                self.faults.remove(&name(module));
            }
            Event::Die(module) => {
                if let Some(module) = self.current.get_mut(&name(module)) {
                    module.state = RuntimeState::Dead;
                }
            }
            Event::Regenerate(module) => {
                let module = name(module);
                if self.identities.remove(&module).is_some() {
                    self.ensure_identity(&module);
                }
            }
            Event::LoseIdentity(module) => drop(self.identities.remove(&name(module))),
            Event::IdentitiesAway(away) => self.identities_away = away,
            Event::Forget => self.memory = Memory::default(),
        }
    }

    fn ensure_identity(&mut self, module: &ModuleId) {
        let generations = &mut self.generations;
        self.identities.entry(module.clone()).or_insert_with(|| {
            *generations += 1;
            format!("g{generations}")
        });
    }

    /// One call of the management API, as a real daemon would answer it.
    fn call(&mut self, step: &Step, action: Action) -> bool {
        let module = &step.module;
        let about_identity = matches!(action, EnsureIdentity | DeleteIdentity);
        if self.faults.get(module) == Some(&action) || (about_identity && self.identities_away) {
            return false;
        }
        let fresh = Observed {
            state: RuntimeState::Stopped,
            fingerprint: step.target.map(|target| target.fingerprint),
            generation: self.identities.get(module).cloned(),
            last_start: None,
            last_exit: None,
        };
        let present = self.current.contains_key(module);
        match action {
            EnsureIdentity => {
                self.ensure_identity(module);
                true
            }
            DeleteIdentity => {
                self.identities.remove(module);
                true
            }
            PrepareUpdate => true,
            Create => !present && self.current.insert(module.clone(), fresh).is_none(),
            Update => present && self.current.insert(module.clone(), fresh).is_some(),
            Remove => self.current.remove(module).is_some(),
            Start => match self
                .current
                .get_mut(module)
                .filter(|module| module.state != RuntimeState::Dead)
            {
                Some(module) => {
                    module.state = RuntimeState::Running;
                    module.last_start = Some(Timestamp(self.now));
                    true
                }
                None => false,
            },
            Stop => match self.current.get_mut(module) {
                Some(module) => {
                    module.state = RuntimeState::Stopped;
                    module.last_exit = Some(Timestamp(self.now));
                    true
                }
                None => false,
            },
        }
    }

    fn round(&mut self) -> Vec<Step> {
        let now = Timestamp(self.now);
        let mut seen = self.current.clone();
        for (module, observed) in &mut seen {
            // Host modules carry no label.
            if ["c", "d"].contains(&module.as_str()) {
                observed.fingerprint = None;
                observed.generation = None;
            }
        }
        let listed = self.identities.clone();
        let listed = (!self.identities_away).then_some(&listed);
        self.memory.observe(&self.desired, &seen, listed, now);
        let steps = super::plan(&self.desired, &seen, listed, &self.memory, now);
        for step in &steps {
            let completed =
                step.actions.iter().take_while(|action| self.call(step, **action)).count();
            let generation = self.identities.get(&step.module).map(String::as_str);
            self.memory.record(step, completed, generation, now);
        }
        steps
    }

    fn is_converged(&self, module: &ModuleId) -> bool {
        match (self.desired.get(module), self.current.get(module)) {
            (None, None) => !self.identities.contains_key(module),
            (Some(target), Some(observed)) => {
                let runs = observed.state == RuntimeState::Running;
                let ran =
                    observed.last_start.is_some() && target.restart_policy == RestartPolicy::Never;
                observed.fingerprint == Some(target.fingerprint)
                    && observed.generation.is_some()
                    && observed.generation.as_ref() == self.identities.get(module)
                    && match target.status {
                        DesiredStatus::Running => runs || ran,
                        DesiredStatus::Stopped => !runs,
                    }
            }
            _ => false,
        }
    }
}

proptest! {
    #[test]
    fn after_any_history_a_device_comes_to_be_as_wanted_except_where_calls_fail(
        events in proptest::collection::vec(event(), 0..60)
    ) {
        let mut device = Device::new();
        for event in events {
            // What only the state folder knows is lost with it: which identities are
            // still to be deleted, and which containers have lost theirs.
            if matches!(event, Event::Forget) {
                let known: BTreeSet<_> = device.current.keys().chain(device.desired.keys()).cloned().collect();
                device.identities.retain(|module, _| known.contains(module));
                known.iter().for_each(|module| device.ensure_identity(module));
            }
            device.apply(event);
            for step in device.round() {
                prop_assert!(!step.module.is_edge_agent());
            }
        }
        device.identities_away = false;
        // Some calls go on failing: the modules that have no fault must not suffer.
        for _ in 0..4 {
            device.now += LONGEST_WAIT + 1000;
            device.round();
        }
        for name in NAMES {
            if !device.faults.contains_key(&id(name)) {
                prop_assert!(device.is_converged(&id(name)), "{name} beside {:?}", device.faults);
            }
        }
        device.faults.clear();
        for _ in 0..4 {
            device.now += LONGEST_WAIT + 1000;
            device.round();
        }
        for name in NAMES {
            prop_assert!(device.is_converged(&id(name)), "{name}: {:?}", device.current.get(&id(name)));
        }
        prop_assert_eq!(device.round(), vec![]);
        prop_assert!(NAMES.iter().all(|name| !device.memory.is_failing(&id(name))), "{:?}", device.memory);
        prop_assert!(device.current.contains_key(&id("edgeAgent")));
    }

    #[test]
    fn an_identity_list_that_fails_never_leads_to_a_destructive_action(
        before in proptest::collection::vec(event(), 0..40), after in proptest::collection::vec(event(), 1..40)
    ) {
        let mut device = Device::new();
        for event in before {
            device.apply(event);
            device.round();
        }
        device.identities_away = false;
        device.faults.clear();
        for _ in 0..5 {
            device.now += LONGEST_WAIT + 1000;
            device.round();
        }
        device.identities_away = true;
        for event in after {
            // All that has to do with identities, time and ends; nothing that is a reason
            // of its own.
            if matches!(event, Event::Pass(_) | Event::Exit(..) | Event::Regenerate(_) | Event::LoseIdentity(_)) {
                device.apply(event);
            }
            for step in device.round() {
                prop_assert_eq!(&step.actions, &[Start], "{:?}", step);
            }
        }
    }

    #[test]
    fn nothing_that_fails_is_tried_too_often_or_waits_longer_than_300_seconds(
        action in 0..8_usize, stopped in any::<bool>(), rounds in 50..200_usize
    ) {
        let mut device = Device::new();
        device.now = 1_000_000_000;
        let status = if stopped { DesiredStatus::Stopped } else { DesiredStatus::Running };
        device.desired = targets(&[("a", Target { status, ..target(1) })]);
        device.round();
        device.desired = if action == 4 || action == 7 { Targets::new() } else { targets(&[("a", target(2))]) };
        device.faults.insert(id("a"), ACTIONS[action]);
        let mut tries: Vec<i64> = Vec::new();
        for _ in 0..rounds {
            device.now += 5000;
            let steps = device.round();
            if steps.iter().any(|step| step.actions.contains(&ACTIONS[action])) {
                tries.push(device.now);
            }
        }
        for pair in tries.windows(2) {
            prop_assert!((SHORTEST_WAIT..=LONGEST_WAIT + 5000).contains(&(pair[1] - pair[0])), "{tries:?}");
        }
    }
}
