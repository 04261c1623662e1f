use proptest::prelude::*;

use super::*;

fn digest(byte: u8) -> Sha256Digest {
    Sha256Digest::new([byte; 32])
}

fn container(c: char) -> ContainerId {
    c.to_string().repeat(64).parse().expect("64 hex digits")
}

fn module(name: &str) -> ModuleId {
    name.parse().expect("valid id")
}

const INIT: ProcessInstance = ProcessInstance { pid: 100, start_time: 1000 };

/// A process in the session of the first one.
fn ancestor(process: ProcessInstance) -> Ancestor {
    Ancestor { process, session: INIT.pid }
}

struct Case {
    door: Door,
    generation: Option<&'static str>,
    registration: Registration,
    facts: RunningFacts,
    evidence: Evidence,
}

impl Case {
    /// A container module's own child process, with everything in order.
    fn container() -> Self {
        let id = container('a');
        let cgroup = format!("/docker/{id}");
        Self {
            door: Door::ModuleSocket(module("thermometer")),
            generation: Some("g1"),
            registration: Registration {
                module: module("thermometer"),
                generation: Some("g1".parse().expect("valid")),
                policy: Policy::Executable,
                workload: Workload::Container {
                    container: id.clone(),
                    image: digest(1),
                    options: digest(2),
                },
            },
            facts: RunningFacts::Running(Running {
                init: INIT,
                user_namespace: 6,
                cgroup: Some(cgroup.clone()),
                container: Some(ContainerFacts {
                    container: id.clone(),
                    image: digest(1),
                    options: digest(2),
                    names_executable: false,
                }),
                exec_since: None,
                own_copy: None,
                filters: Some(1),
            }),
            evidence: Evidence {
                handle: PeerHandle::PeerPidfd,
                snapshot: Snapshot {
                    process: ProcessInstance { pid: 101, start_time: 1001 },
                    uid: 0,
                    gid: 0,
                    executable: ExecutableFile { device: 1, inode: 2, size: 3, ctime_ns: 4 },
                    executable_mount: 5,
                    cgroup,
                    pid_namespace: 5,
                    user_namespace: 6,
                    tracer: 0,
                    filters: Some(1),
                },
                ancestry: [ProcessInstance { pid: 101, start_time: 1001 }, INIT]
                    .map(ancestor)
                    .into(),
                holding: Holding::CloseOnExec,
                container: Some(id),
                measurement: Some(Measurement {
                    digest: digest(3),
                    unmodified_from_image: Some(true),
                }),
            },
        }
    }

    /// A host module's first process, with everything in order.
    fn host() -> Self {
        let mut case = Self::container();
        case.registration.workload = Workload::Process { executable: digest(3), uid: 0 };
        case.facts = RunningFacts::Running(Running {
            init: INIT,
            user_namespace: 6,
            cgroup: None,
            container: None,
            exec_since: None,
            own_copy: None,
            filters: None,
        });
        case.evidence.container = None;
        case
    }

    /// A service of the host, with everything in order.
    fn service() -> Self {
        let mut case = Self::host();
        case.registration.workload = Workload::Service {
            unit: Some("collector.service".parse().expect("a unit")),
            uid: Some(990),
            executable: Some(digest(3)),
        };
        case.facts = RunningFacts::Host(HostFacts { pid_namespace: 5, user_namespace: 6 });
        case.evidence.snapshot.uid = 990;
        case.evidence.snapshot.cgroup = "/system.slice/collector.service".into();
        case.evidence.ancestry.clear();
        case
    }

    fn set_service(&mut self, with_unit: bool, with_uid: bool, with_executable: bool) {
        if let Workload::Service { unit, uid, executable } = &mut self.registration.workload {
            *unit = unit.take().filter(|_| with_unit);
            *uid = uid.filter(|_| with_uid);
            *executable = executable.filter(|_| with_executable);
        }
    }

    fn verdict(&self) -> Result<(), DenyReason> {
        let name = module("thermometer");
        let asked = Asked { module: &name, generation: self.generation };
        verdict(&self.door, &asked, Some(&self.registration), &self.facts, &self.evidence)
    }

    fn running(&mut self) -> &mut Running {
        match &mut self.facts {
            RunningFacts::Running(running) => running,
            other => panic!("case does not run: {other:?}"),
        }
    }

    fn container_facts(&mut self) -> &mut ContainerFacts {
        self.running().container.as_mut().expect("container case")
    }
}

#[test]
fn a_module_in_order_is_allowed_by_its_own_and_by_the_legacy_socket() {
    for mut case in [Case::container(), Case::host(), Case::service()] {
        assert_eq!(case.verdict(), Ok(()));
        case.door = Door::LegacySocket;
        assert_eq!(case.verdict(), Ok(()));
    }
}

/// One thing wrong with a case.
type Fault = fn(&mut Case);

#[test]
fn each_single_fault_is_refused_with_its_own_reason() {
    let faults: [(Fault, DenyReason); 20] = [
        (|c| c.door = Door::ModuleSocket(module("other")), DenyReason::SocketOfAnotherModule),
        (|c| c.registration.module = module("other"), DenyReason::NotRegistered),
        (|c| c.generation = Some("g0"), DenyReason::GenerationMismatch),
        (|c| c.facts = RunningFacts::Unknown, DenyReason::FactsUnknown),
        (|c| c.facts = RunningFacts::Stopped, DenyReason::NotRunning),
        (|c| c.evidence.snapshot.tracer = 7, DenyReason::Traced),
        (|c| c.container_facts().container = container('b'), DenyReason::ContainerChanged),
        (|c| c.evidence.container = Some(container('b')), DenyReason::NotInModule),
        (
            |c| c.evidence.snapshot.cgroup = format!("/evil/docker/{}", container('a')),
            DenyReason::NotInModule,
        ),
        (|c| c.evidence.ancestry.truncate(1), DenyReason::NotADescendant),
        (|c| c.container_facts().image = digest(9), DenyReason::ImageChanged),
        (|c| c.container_facts().options = digest(9), DenyReason::OptionsChanged),
        (|c| c.evidence.measurement = None, DenyReason::ExecutableUnmeasured),
        (|c| c.evidence.snapshot.user_namespace = 7, DenyReason::OtherUserNamespace),
        (|c| c.container_facts().names_executable = true, DenyReason::ExecutableOfItsChoice),
        (|c| c.evidence.snapshot.filters = Some(2), DenyReason::ForeignFilter),
        (
            |c| {
                c.evidence.snapshot.cgroup =
                    format!("/docker/{}/docker-{}.scope", container('a'), container('b'));
            },
            DenyReason::NotInModule,
        ),
        (|c| c.evidence.holding = Holding::Inheritable, DenyReason::ConnectionInheritable),
        (|c| c.evidence.holding = Holding::NotHeld, DenyReason::ConnectionNotHeld),
        (
            |c| {
                c.evidence.ancestry[0].session = 101;
                c.running().exec_since = Some(1001);
            },
            DenyReason::AfterExec,
        ),
    ];
    for (fault, reason) in faults {
        let mut case = Case::container();
        fault(&mut case);
        assert_eq!(case.verdict(), Err(reason));
    }
    let host_faults: [(Fault, DenyReason); 4] = [
        (|c| c.evidence.snapshot.uid = 1, DenyReason::OtherUser),
        (|c| c.evidence.ancestry.truncate(1), DenyReason::NotInModule),
        (|c| c.running().cgroup = Some("/edgekeep/thermometer".into()), DenyReason::NotInModule),
        (
            |c| c.registration.workload = Workload::Process { executable: digest(9), uid: 0 },
            DenyReason::ExecutableChanged,
        ),
    ];
    for (fault, reason) in host_faults {
        let mut case = Case::host();
        fault(&mut case);
        assert_eq!(case.verdict(), Err(reason));
    }
}

#[test]
fn each_fault_of_a_service_is_refused_with_its_own_reason() {
    let faults: [(Fault, DenyReason); 13] = [
        (|c| c.evidence.holding = Holding::Inheritable, DenyReason::ConnectionInheritable),
        (|c| c.evidence.holding = Holding::NotHeld, DenyReason::ConnectionNotHeld),
        (
            |c| c.evidence.snapshot.cgroup = "/system.slice/other.service".into(),
            DenyReason::NotInUnit,
        ),
        (
            |c| c.evidence.snapshot.cgroup = "/evil/system.slice/collector.service".into(),
            DenyReason::NotInUnit,
        ),
        (|c| c.evidence.snapshot.uid = 0, DenyReason::OtherUser),
        (|c| c.evidence.measurement = None, DenyReason::ExecutableUnmeasured),
        (
            |c| c.evidence.measurement.as_mut().expect("measured").digest = digest(9),
            DenyReason::ExecutableChanged,
        ),
        (|c| c.evidence.snapshot.pid_namespace = 7, DenyReason::NotOnHost),
        (|c| c.evidence.snapshot.user_namespace = 7, DenyReason::NotOnHost),
        (|c| c.evidence.container = Some(container('a')), DenyReason::NotOnHost),
        (|c| c.evidence.snapshot.tracer = 7, DenyReason::Traced),
        (|c| c.facts = RunningFacts::Stopped, DenyReason::NotRunning),
        (|c| c.generation = Some("g0"), DenyReason::GenerationMismatch),
    ];
    for (fault, reason) in faults {
        let mut case = Case::service();
        fault(&mut case);
        assert_eq!(case.verdict(), Err(reason));
    }
}

#[test]
fn what_runs_in_a_users_own_systemd_is_not_known_by_its_name_alone() {
    for (unit, cgroup) in [
        (
            "user@1000.service/a.service",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/a.service",
        ),
        ("user@1000.service", "/user.slice/user-1000.slice/user@1000.service/init.scope"),
    ] {
        for (uid, executable) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut case = Case::service();
            case.set_service(true, uid, executable);
            case.evidence.snapshot.cgroup = cgroup.to_owned();
            if let Workload::Service { unit: own, .. } = &mut case.registration.workload {
                *own = Some(unit.parse().expect("a unit"));
            }
            let expected = if uid && executable { Ok(()) } else { Err(DenyReason::NotInUnit) };
            assert_eq!(case.verdict(), expected, "{unit} {uid} {executable}");
        }
    }
}

#[test]
fn a_service_is_known_by_its_unit_or_by_user_and_executable_and_by_nothing_less() {
    for (unit, uid, executable, expected) in [
        (true, false, false, Ok(())),
        (false, true, true, Ok(())),
        (false, true, false, Err(DenyReason::NotInUnit)),
        (false, false, true, Err(DenyReason::NotInUnit)),
        (false, false, false, Err(DenyReason::NotInUnit)),
    ] {
        let mut case = Case::service();
        case.set_service(unit, uid, executable);
        assert_eq!(case.verdict(), expected, "{unit} {uid} {executable}");
        if let Err(reason) = expected {
            assert!(
                checks(Some(&case.registration)).contains(&reason),
                "{unit} {uid} {executable}"
            );
        }
    }
}

#[test]
fn facts_of_another_kind_than_the_registration_prove_nothing() {
    let mut case = Case::service();
    case.facts = Case::host().facts;
    assert_eq!(case.verdict(), Err(DenyReason::FactsUnknown));
    for mut case in [Case::host(), Case::container()] {
        case.facts = Case::service().facts;
        assert_eq!(case.verdict(), Err(DenyReason::FactsUnknown));
    }
}

#[test]
fn a_sibling_cgroup_with_the_same_prefix_is_not_inside() {
    let mut case = Case::host();
    case.running().cgroup = Some("/edgekeep/thermo".into());
    case.evidence.snapshot.cgroup = "/edgekeep/thermometer".into();
    assert_eq!(case.verdict(), Err(DenyReason::NotInModule));
    case.evidence.snapshot.cgroup = "/edgekeep/thermo/../x".into();
    assert_eq!(case.verdict(), Err(DenyReason::NotInModule));
    case.running().cgroup = Some("/".into());
    assert_eq!(case.verdict(), Err(DenyReason::NotInModule), "the root group proves nothing");
}

#[test]
fn the_engines_exec_is_allowed_only_by_the_weakest_policy() {
    let mut case = Case::container();
    case.evidence.ancestry.truncate(1);
    for (policy, expected) in [
        (Policy::Process, Ok(())),
        (Policy::Image, Err(DenyReason::NotADescendant)),
        (Policy::Executable, Err(DenyReason::NotADescendant)),
    ] {
        case.registration.policy = policy;
        assert_eq!(case.verdict(), expected);
    }
}

#[test]
fn a_reused_pid_is_not_the_modules_first_process() {
    let mut case = Case::container();
    case.evidence.ancestry =
        vec![ancestor(ProcessInstance { start_time: INIT.start_time + 1, ..INIT })];
    assert_eq!(case.verdict(), Err(DenyReason::NotADescendant));
}

#[test]
fn after_an_exec_only_young_processes_of_foreign_sessions_are_doubted() {
    let verdict = |session, since, caller_is_init: bool| {
        let mut case = Case::container();
        case.evidence.ancestry[0].session = session;
        if caller_is_init {
            case.evidence.ancestry.remove(0);
            case.evidence.snapshot.process = INIT;
        }
        case.running().exec_since = since;
        case.verdict()
    };
    assert_eq!(verdict(101, None, false), Ok(()), "no exec");
    assert_eq!(verdict(101, Some(1002), false), Ok(()), "older than the exec");
    assert_eq!(verdict(INIT.pid, Some(0), false), Ok(()), "in the module's session");
    assert_eq!(verdict(101, Some(0), true), Ok(()), "the first process itself");
    assert_eq!(verdict(101, Some(0), false), Err(DenyReason::AfterExec));
    let mut case = Case::container();
    case.evidence.ancestry[0].session = 101;
    case.running().exec_since = Some(0);
    // A grandchild is what its ancestor below the first process is.
    case.evidence
        .ancestry
        .insert(0, Ancestor { process: ProcessInstance { pid: 102, start_time: 1 }, session: 100 });
    assert_eq!(case.verdict(), Err(DenyReason::AfterExec));
    case.registration.policy = Policy::Process;
    assert_eq!(case.verdict(), Ok(()));
}

#[test]
fn the_checks_are_told_in_the_order_in_which_they_are_made() {
    let faults: [(Fault, DenyReason); 15] = [
        (|c| c.door = Door::ModuleSocket(module("other")), DenyReason::SocketOfAnotherModule),
        (|c| c.registration.module = module("other"), DenyReason::NotRegistered),
        (|c| c.evidence.snapshot.tracer = 7, DenyReason::Traced),
        (|c| c.container_facts().container = container('b'), DenyReason::ContainerChanged),
        (|c| c.evidence.container = None, DenyReason::NotInModule),
        (|c| c.evidence.ancestry.truncate(1), DenyReason::NotADescendant),
        (
            |c| {
                c.evidence.ancestry[0].session = 101;
                c.running().exec_since = Some(0);
            },
            DenyReason::AfterExec,
        ),
        (|c| c.container_facts().image = digest(9), DenyReason::ImageChanged),
        (|c| c.container_facts().options = digest(9), DenyReason::OptionsChanged),
        (|c| c.evidence.measurement = None, DenyReason::ExecutableUnmeasured),
        (
            |c| {
                if let Some(measurement) = &mut c.evidence.measurement {
                    measurement.unmodified_from_image = Some(false);
                }
            },
            DenyReason::ExecutableChanged,
        ),
        (|c| c.evidence.snapshot.user_namespace = 7, DenyReason::OtherUserNamespace),
        (|c| c.container_facts().names_executable = true, DenyReason::ExecutableOfItsChoice),
        (|c| c.evidence.snapshot.filters = Some(2), DenyReason::ForeignFilter),
        (|c| c.evidence.holding = Holding::NotHeld, DenyReason::ConnectionNotHeld),
    ];
    let order = checks(Some(&Case::container().registration));
    let place =
        |reason| order.iter().position(|check| *check == reason).expect("a check of containers");
    for (one, first) in faults {
        for (other, second) in faults {
            let mut case = Case::container();
            one(&mut case);
            other(&mut case);
            let earlier = if place(first) <= place(second) { first } else { second };
            assert_eq!(case.verdict(), Err(earlier), "{first} and {second}");
        }
    }
    assert_eq!(checks(None), [DenyReason::SocketOfAnotherModule, DenyReason::NotRegistered]);
    assert!(!checks(Some(&Case::host().registration)).contains(&DenyReason::ImageChanged));
}

#[test]
fn filters_count_where_it_is_known_with_how_many_the_module_started() {
    for (now, started_with, allowed) in [
        (Some(1), Some(1), true),
        (Some(0), Some(1), true),
        (Some(2), Some(1), false),
        // A host module's own filter refuses listeners; a kernel that does not tell
        // is older than filters that matter.
        (Some(5), None, true),
        (None, Some(0), true),
    ] {
        let mut case = Case::container();
        case.evidence.snapshot.filters = now;
        case.running().filters = started_with;
        let expected = if allowed { Ok(()) } else { Err(DenyReason::ForeignFilter) };
        assert_eq!(case.verdict(), expected, "{now:?} {started_with:?}");
        case.registration.policy = Policy::Image;
        assert_eq!(case.verdict(), Ok(()), "the image counts, whatever runs of it");
    }
}

#[test]
fn the_checks_of_a_service_are_those_that_its_entry_asks_for_in_their_order() {
    use DenyReason as Reason;
    let faults: [(Fault, DenyReason); 7] = [
        (|c| c.evidence.snapshot.tracer = 7, Reason::Traced),
        (|c| c.evidence.snapshot.user_namespace = 7, Reason::NotOnHost),
        (|c| c.evidence.snapshot.cgroup = "/elsewhere".into(), Reason::NotInUnit),
        (|c| c.evidence.snapshot.uid = 0, Reason::OtherUser),
        (|c| c.evidence.measurement = None, Reason::ExecutableUnmeasured),
        (
            |c| c.evidence.measurement.iter_mut().for_each(|found| found.digest = digest(9)),
            Reason::ExecutableChanged,
        ),
        (|c| c.evidence.holding = Holding::NotHeld, Reason::ConnectionNotHeld),
    ];
    for with in [(true, true, true), (true, false, false), (false, true, true), (true, true, false)]
    {
        let service = || {
            let mut case = Case::service();
            case.set_service(with.0, with.1, with.2);
            case
        };
        let order = checks(Some(&service().registration));
        for (at, (fault, reason)) in faults.iter().enumerate() {
            let mut case = service();
            fault(&mut case);
            let expected = if order.contains(reason) { Err(*reason) } else { Ok(()) };
            assert_eq!(case.verdict(), expected, "{with:?} {reason}");
            for (later, _) in faults.iter().skip(at).filter(|_| order.contains(reason)) {
                let mut case = service();
                later(&mut case);
                fault(&mut case);
                assert_eq!(case.verdict(), Err(*reason), "{with:?}");
            }
        }
    }
}

#[test]
fn the_outcome_names_the_refusal_once_and_nothing_after_it_as_passed() {
    let registrations =
        [Case::container(), Case::host(), Case::service()].map(|case| case.registration);
    for registration in registrations.iter().map(Some).chain([None]) {
        assert!(
            outcome(registration, Ok(()), true).iter().all(|(_, passed)| *passed == Some(true))
        );
        for reason in DenyReason::ALL {
            let list = outcome(registration, Err(reason), true);
            let at = list
                .iter()
                .position(|(_, passed)| *passed == Some(false))
                .expect("a check that failed");
            assert_eq!(list[at].0, reason);
            assert!(
                list[..at].iter().all(|(_, passed)| *passed == Some(true)),
                "{reason}: {list:?}"
            );
            assert!(
                list[at + 1..].iter().all(|(_, passed)| passed.is_none()),
                "{reason}: {list:?}"
            );
            assert_eq!(list.iter().filter(|(check, _)| *check == reason).count(), 1, "{reason}");
        }
    }
    let without = outcome(Some(&registrations[0]), Ok(()), false);
    assert_eq!(without.iter().filter(|(_, passed)| passed.is_none()).count(), 3, "{without:?}");
}

proptest! {
    /// A stronger policy never lets in a caller that a weaker one refuses.
    #[test]
    fn a_stronger_policy_is_never_more_permissive(
        ancestor in any::<bool>(), image in any::<bool>(), options in any::<bool>(),
        unmodified in prop::option::of(any::<bool>()), inside in any::<bool>(), tracer in 0u32..2,
        session in 100u32..102, since in prop::option::of(1000u64..1003), held in any::<bool>(),
    ) {
        let mut case = Case::container();
        if !ancestor { case.evidence.ancestry.clear(); }
        if !image { case.container_facts().image = digest(8); }
        if !options { case.container_facts().options = digest(8); }
        if !inside { case.evidence.snapshot.cgroup = "/elsewhere".into(); }
        case.evidence.ancestry.iter_mut().take(1).for_each(|ancestor| ancestor.session = session);
        case.running().exec_since = since;
        if !held { case.evidence.holding = Holding::NotHeld; }
        case.evidence.snapshot.tracer = tracer;
        case.evidence.measurement = Some(Measurement { digest: digest(3), unmodified_from_image: unmodified });
        let mut allowed = Vec::new();
        for policy in [Policy::Process, Policy::Image, Policy::Executable] {
            case.registration.policy = policy;
            allowed.push(case.verdict().is_ok());
        }
        prop_assert!(allowed.windows(2).all(|pair| pair[0] || !pair[1]), "{allowed:?}");
    }
}
