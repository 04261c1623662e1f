//! Tests of provisioning.

use proptest::prelude::*;

use super::*;

mod operational;

fn at(seconds: u64) -> Now {
    Now { monotonic: Duration::from_secs(seconds), wall: 1_700_000_000, random: 0 }
}

fn identity(device: &str) -> DeviceIdentity {
    DeviceIdentity { hub: "hub.test".into(), device_id: device.parse().expect("valid") }
}

fn dps(scope: &str) -> Source {
    Source::Dps {
        endpoint: "https://dps.test".into(),
        scope_id: scope.into(),
        registration_id: Some("press-04".into()),
        credential: CredentialKind::SymmetricKey,
        operational: false,
    }
}

fn stored(device: &str, source: Source) -> Provisioned {
    let (certificate, operational) = (None, None);
    Provisioned { identity: identity(device), source, certificate, operational, obtained_at: 1 }
}

fn fresh(stored: Option<Provisioned>, mode: ReprovisioningMode) -> State {
    State::new(dps("0ne1"), mode, Limits::default(), stored)
}

fn refusal(reason: &str) -> Event {
    Event::Failed(Failure { refused: true, reason: reason.into(), retry_after: None })
}

#[test]
fn a_device_with_a_stored_identity_serves_it_at_once_and_asks_nobody() {
    let state = fresh(Some(stored("press-04", dps("0ne1"))), ReprovisioningMode::Dynamic);
    let (state, actions) = step(state, Event::Started, at(0));
    assert_eq!(actions, [Action::Serve { identity: identity("press-04"), replaced: false }]);
    assert_eq!(*state.activity(), Activity::Idle);
}

proptest! {
    #[test]
    fn no_answer_makes_a_hammer_and_none_loses_the_device(asked in prop::option::of(any::<u64>())) {
        let limits = Limits::default();
        let asked = asked.map(Duration::from_secs);
        let pause = poll_pause(asked, &limits);
        prop_assert!(pause >= Duration::from_secs(1) && pause <= limits.longest_retry_after, "{pause:?}");
        prop_assert!(call_pause(asked) >= Duration::from_secs(1));
        let mut state = fresh(None, ReprovisioningMode::Dynamic);
        state = step(state, Event::Started, at(0)).0;
        let (state, actions) = step(state, Event::Assigning { operation: "op".into(), retry_after: asked }, at(1));
        let woken = actions.iter().find_map(|action| match action {
            Action::WakeAt(until) => Some(*until),
            _ => None,
        });
        prop_assert!(woken >= Some(Duration::from_secs(2)), "{actions:?}");
        prop_assert!(!matches!(state.activity(), Activity::Idle));
    }
}

#[test]
fn with_always_on_startup_the_stored_identity_is_served_before_the_registration_begins() {
    let state = fresh(Some(stored("press-04", dps("0ne1"))), ReprovisioningMode::AlwaysOnStartup);
    let (_, actions) = step(state, Event::Started, at(0));
    assert_eq!(
        actions,
        [Action::Serve { identity: identity("press-04"), replaced: false }, Action::Register]
    );
}

#[test]
fn a_new_scope_in_the_configuration_is_taken_at_the_next_start_while_the_old_identity_serves() {
    let state = fresh(Some(stored("press-04", dps("0ne-old"))), ReprovisioningMode::OnErrorOnly);
    let (state, actions) = step(state, Event::Started, at(0));
    assert_eq!(actions.last(), Some(&Action::Register));
    let (state, _) = step(state, refusal("unknown scope"), at(1));
    assert_eq!(state.identity(), Some(&identity("press-04")));
}

#[test]
fn a_device_is_registered_polled_as_the_service_asks_stored_and_only_then_served() {
    let (state, actions) = step(fresh(None, ReprovisioningMode::Dynamic), Event::Started, at(0));
    assert_eq!(actions, [Action::Register]);
    let assigning =
        Event::Assigning { operation: "op".into(), retry_after: Some(Duration::from_secs(7)) };
    let (state, actions) = step(state, assigning, at(1));
    assert_eq!(actions, [Action::WakeAt(Duration::from_secs(8))]);
    let (state, actions) = step(state, Event::Woken, at(7));
    assert_eq!(actions, [Action::WakeAt(Duration::from_secs(8))], "woken too early: waits on");
    let (state, actions) = step(state, Event::Woken, at(8));
    assert_eq!(actions, [Action::Poll { operation: "op".into() }]);
    let (state, actions) = step(state, Event::Assigned(identity("press-04")), at(9));
    assert!(
        matches!(&actions[..], [Action::Store(it)] if it.identity == identity("press-04")),
        "{actions:?}"
    );
    assert_eq!(state.identity(), None, "not before it is stored");
    let (state, actions) = step(state, Event::Stored, at(9));
    assert_eq!(actions, [Action::Serve { identity: identity("press-04"), replaced: false }]);
    assert_eq!(state.identity(), Some(&identity("press-04")));
}

#[test]
fn a_service_that_never_decides_makes_the_attempt_fail_after_the_overall_limit() {
    let (mut state, _) = step(fresh(None, ReprovisioningMode::Dynamic), Event::Started, at(0));
    let mut now = 0;
    for _ in 0..1000 {
        let assigning = Event::Assigning { operation: "op".into(), retry_after: None };
        let (next, actions) = step(state, assigning, at(now));
        if let Some(Action::Report(failure)) = actions.first() {
            assert!(failure.reason.contains("600 s"), "{failure:?}");
            assert!((590..=600).contains(&now), "failed at {now} s");
            return;
        }
        now += 3;
        state = step(next, Event::Woken, at(now)).0;
    }
    panic!("polled for ever");
}

#[test]
fn a_rejected_device_tries_again_by_itself_with_growing_pauses() {
    let (mut state, _) = step(fresh(None, ReprovisioningMode::Dynamic), Event::Started, at(0));
    let (mut now, mut pauses) = (0, Vec::new());
    for _ in 0..12 {
        let (next, actions) = step(state, refusal("disabled"), at(now));
        let Some(Action::WakeAt(until)) = actions.last() else {
            panic!("no retry planned: {actions:?}")
        };
        pauses.push(until.as_secs() - now);
        now = until.as_secs();
        let (next, actions) = step(next, Event::Woken, at(now));
        assert_eq!(actions, [Action::Register]);
        state = next;
    }
    assert_eq!(pauses[..5], [5, 10, 20, 40, 80]);
    assert_eq!(pauses[11], 1800);
}

#[test]
fn the_service_s_retry_after_prolongs_a_pause_and_no_request_shortens_it() {
    let (state, _) = step(fresh(None, ReprovisioningMode::Dynamic), Event::Started, at(0));
    let throttled = Failure {
        refused: true,
        reason: "throttled".into(),
        retry_after: Some(Duration::from_secs(120)),
    };
    let (state, actions) = step(state, Event::Failed(throttled), at(0));
    assert_eq!(actions.last(), Some(&Action::WakeAt(Duration::from_secs(120))));
    let (_, actions) = step(state, Event::ReprovisionRequested(Requester::Operator), at(30));
    assert_eq!(actions, [Action::WakeAt(Duration::from_secs(120))]);
}

#[test]
fn a_request_shortens_a_long_pause_but_not_below_the_least_time_between_attempts() {
    let mut state = step(fresh(None, ReprovisioningMode::Dynamic), Event::Started, at(0)).0;
    state.failures = 8;
    let (state, _) = step(state, refusal("disabled"), at(1));
    let (state, actions) = step(state, Event::ReprovisionRequested(Requester::Operator), at(2));
    assert_eq!(actions, [Action::WakeAt(Duration::from_secs(5))]);
    let (_, actions) = step(state, Event::ReprovisionRequested(Requester::Operator), at(5));
    assert_eq!(actions, [Action::Register]);
}

#[test]
fn a_hub_that_refuses_the_device_makes_it_register_anew_on_error_only_at_the_first_meeting() {
    use ReprovisioningMode::{AlwaysOnStartup, Dynamic, OnErrorOnly};
    for (mode, first, later) in
        [(Dynamic, true, true), (AlwaysOnStartup, true, true), (OnErrorOnly, true, false)]
    {
        let start = || {
            let state = fresh(Some(stored("press-04", dps("0ne1"))), mode);
            let (state, actions) = step(state, Event::Started, at(0));
            assert_eq!(actions.contains(&Action::Register), mode == AlwaysOnStartup, "{mode:?}");
            if mode == AlwaysOnStartup {
                let state = step(state, Event::Assigned(identity("press-04")), at(0)).0;
                return step(state, Event::Stored, at(0)).0;
            }
            state
        };
        let (state, actions) = step(start(), Event::HubRefusedDevice, at(1000));
        assert_eq!(actions.contains(&Action::Register), first, "{mode:?}");
        assert_eq!(state.identity(), Some(&identity("press-04")), "{mode:?}");
        let state = step(start(), Event::HubAcceptedDevice, at(1000)).0;
        let (state, actions) = step(state, Event::HubRefusedDevice, at(2000));
        assert_eq!(actions.contains(&Action::Register), later, "{mode:?}");
        assert_eq!(state.identity(), Some(&identity("press-04")), "{mode:?}");
    }
}

#[test]
fn on_error_only_follows_a_person_and_not_the_module_runtime() {
    for (mode, by, registers) in [
        (ReprovisioningMode::Dynamic, Requester::Runtime, true),
        (ReprovisioningMode::OnErrorOnly, Requester::Runtime, false),
        (ReprovisioningMode::OnErrorOnly, Requester::Operator, true),
    ] {
        let state = fresh(Some(stored("press-04", dps("0ne1"))), mode);
        let state = step(state, Event::Started, at(0)).0;
        let (_, actions) = step(state, Event::ReprovisionRequested(by), at(1));
        assert_eq!(actions.contains(&Action::Register), registers, "{mode:?} {by:?}");
    }
}

fn by_certificate() -> Source {
    Source::Dps {
        endpoint: "https://dps.test".into(),
        scope_id: "0ne1".into(),
        registration_id: None,
        credential: CredentialKind::X509,
        operational: false,
    }
}

#[test]
fn another_certificate_is_told_to_the_service_while_the_identity_serves() {
    let start = |known: &str, found: Option<&str>| {
        let kept =
            Provisioned { certificate: Some(known.into()), ..stored("press-04", by_certificate()) };
        let mode = ReprovisioningMode::OnErrorOnly;
        let state = State::new(by_certificate(), mode, Limits::default(), Some(kept));
        step(state.with_certificate(found.map(Into::into)), Event::Started, at(0))
    };
    assert_eq!(start("a", Some("a")).1.len(), 1, "served, and nobody asked");
    assert_eq!(start("a", None).1.len(), 1, "none is no other one");
    assert_eq!(
        start("a", Some("b")).1.last(),
        Some(&Action::Register),
        "replaced while it was off"
    );
    let (state, actions) =
        step(start("a", Some("a")).0, Event::CertificateChanged(Some("b".into())), at(9));
    assert_eq!(actions, [Action::Register]);
    // Replaced again while the service decides: it was shown the one before.
    let state = step(state, Event::CertificateChanged(Some("c".into())), at(9)).0;
    let (state, actions) = step(state, Event::Assigned(identity("press-04")), at(10));
    assert!(
        matches!(&actions[..], [Action::Store(it)] if it.certificate.as_deref() == Some("b")),
        "{actions:?}"
    );
    let (state, actions) = step(state, Event::Stored, at(10));
    assert_eq!(actions.last(), Some(&Action::Register));
    assert_eq!(state.identity(), Some(&identity("press-04")));
}

#[test]
fn a_certificate_that_was_missed_ends_the_pause_when_it_comes() {
    let mode = ReprovisioningMode::Dynamic;
    let state = State::new(by_certificate(), mode, Limits::default(), None);
    let mut state = step(state, Event::Started, at(0)).0;
    for _ in 0..6 {
        state = step(state, refusal("no certificate"), at(0)).0;
        state = step(state, Event::Woken, at(0)).0;
        state.activity = Activity::Asking { since: Duration::ZERO, operation: None };
    }
    let state = step(state, refusal("no certificate"), at(0)).0;
    let (_, actions) = step(state, Event::CertificateChanged(Some("a".into())), at(6));
    assert_eq!(actions, [Action::Register]);
}

#[test]
fn a_service_that_is_asked_for_ever_is_asked_once_a_minute_after_the_first_burst() {
    let limits = Limits { longest_pause_refused: Duration::from_secs(1), ..Limits::default() };
    let state = State::new(dps("0ne1"), ReprovisioningMode::Dynamic, limits, None);
    let (mut state, mut actions) = step(state, Event::Started, at(0));
    let (mut now, mut calls) = (at(0), Vec::new());
    while now.monotonic < Duration::from_secs(3 * 3600) {
        let event = match actions.last() {
            Some(Action::Register | Action::Poll { .. }) => {
                calls.push(now.monotonic);
                refusal("no")
            }
            Some(Action::WakeAt(until)) => {
                now.monotonic = *until;
                Event::Woken
            }
            other => panic!("{other:?}"),
        };
        (state, actions) = step(state, event, now);
    }
    let after = |minutes: u64| calls.iter().filter(|at| at.as_secs() >= minutes * 60).count();
    assert!(after(10) <= 170, "{} calls in 170 minutes", after(10));
    assert!(after(0) <= 60 + 180, "{} calls", after(0));
}

#[test]
fn a_hub_that_refuses_what_was_just_assigned_does_not_make_the_device_ask_again_and_again() {
    let state = step(fresh(None, ReprovisioningMode::Dynamic), Event::Started, at(0)).0;
    let state = step(state, Event::Assigned(identity("press-04")), at(1)).0;
    let state = step(state, Event::Stored, at(1)).0;
    let (state, actions) = step(state, Event::HubRefusedDevice, at(2));
    assert_eq!(actions, []);
    let (_, actions) = step(state, Event::HubRefusedDevice, at(1000));
    assert_eq!(actions, [Action::Register]);
}

#[test]
fn a_manual_identity_needs_no_answer_from_anybody() {
    let source = Source::Manual { identity: identity("press-04") };
    let state = State::new(source, ReprovisioningMode::Dynamic, Limits::default(), None);
    let (state, actions) = step(state, Event::Started, at(0));
    assert!(
        matches!(&actions[..], [Action::Store(it)] if it.identity == identity("press-04")),
        "{actions:?}"
    );
    let (state, _) = step(state, Event::Stored, at(0));
    assert_eq!(state.identity(), Some(&identity("press-04")));
}

#[test]
fn a_full_disk_leaves_the_old_identity_in_use_and_the_replacement_is_tried_again() {
    let state = fresh(Some(stored("old", dps("0ne-old"))), ReprovisioningMode::Dynamic);
    let state = step(state, Event::Started, at(0)).0;
    let state = step(state, Event::Assigned(identity("new")), at(1)).0;
    let (state, actions) = step(state, Event::StoreFailed { reason: "no space".into() }, at(2));
    assert_eq!(state.identity(), Some(&identity("old")));
    assert!(matches!(actions.last(), Some(Action::WakeAt(_))), "{actions:?}");
}

#[test]
fn without_a_source_nothing_is_asked_and_a_request_does_nothing() {
    let state = State::new(Source::None, ReprovisioningMode::Dynamic, Limits::default(), None);
    let (state, actions) = step(state, Event::Started, at(0));
    assert_eq!(actions, []);
    assert_eq!(step(state, Event::ReprovisionRequested(Requester::Operator), at(1)).1, []);
}

#[derive(Debug, Clone)]
struct Happening {
    event: Event,
    after: u32,
    random: u64,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let wait = proptest::option::of((0..10_000_u64).prop_map(Duration::from_secs));
    let event = prop_oneof![
        1 => Just(Event::Started),
        4 => Just(Event::Woken),
        1 => Just(Event::ReprovisionRequested(Requester::Operator)),
        1 => Just(Event::ReprovisionRequested(Requester::Runtime)),
        1 => Just(Event::HubRefusedDevice),
        1 => Just(Event::HubAcceptedDevice),
        1 => prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))]
            .prop_map(|found| Event::CertificateChanged(found.map(Into::into))),
        1 => Just(Event::ClockStepped),
        1 => Just(Event::CertificateDue),
        2 => Just(Event::Proven { certificate: "c".into() }),
        2 => wait.clone().prop_map(|retry_after| Event::Assigning { operation: "op".into(), retry_after }),
        2 => prop_oneof![Just("a"), Just("b")].prop_map(|device| Event::Assigned(identity(device))),
        2 => (any::<bool>(), wait).prop_map(|(refused, retry_after)| Event::Failed(Failure {
            refused, reason: "failed".into(), retry_after })),
        2 => Just(Event::Stored),
        1 => Just(Event::StoreFailed { reason: "disk full".into() }),
    ];
    let happening = (event, prop_oneof![0..5_000_u32, 0..4_000_000_u32], any::<u64>())
        .prop_map(|(event, after, random)| Happening { event, after, random });
    proptest::collection::vec(happening, 0..60)
}

fn sources() -> impl Strategy<Value = Source> {
    prop_oneof![
        3 => Just(dps("0ne1")),
        1 => Just(dps("0ne2")),
        2 => Just(by_certificate()),
        2 => Just(operational::source()),
        1 => Just(Source::Manual { identity: identity("m") }),
        1 => Just(Source::None),
    ]
}

fn modes() -> impl Strategy<Value = ReprovisioningMode> {
    prop_oneof![
        Just(ReprovisioningMode::Dynamic),
        Just(ReprovisioningMode::AlwaysOnStartup),
        Just(ReprovisioningMode::OnErrorOnly)
    ]
}

#[test]
fn a_step_of_the_clock_ends_a_long_pause_but_not_one_that_the_service_asked_for() {
    let mut state = step(fresh(None, ReprovisioningMode::Dynamic), Event::Started, at(0)).0;
    let mut clock = 0;
    for _ in 0..10 {
        // The certificate of the service is not valid in 1970.
        state = step(state, refusal("not valid yet"), at(clock)).0;
        clock += 3600;
        state = step(state, Event::Woken, at(clock)).0;
    }
    state = step(state, refusal("not valid yet"), at(clock)).0;
    let (set, actions) = step(state, Event::ClockStepped, at(clock + 6));
    assert_eq!(actions, [Action::Register]);
    let asked = Failure {
        refused: true,
        reason: "busy".into(),
        retry_after: Some(Duration::from_secs(600)),
    };
    let (state, _) = step(set, Event::Failed(asked), at(clock + 7));
    let (_, actions) = step(state, Event::ClockStepped, at(clock + 8));
    assert_eq!(actions, [Action::WakeAt(Duration::from_secs(clock + 607))]);
    // Nothing is under way: a device that has its identity asks nobody because of a
    // clock.
    let idle = fresh(Some(stored("press-04", dps("0ne1"))), ReprovisioningMode::Dynamic);
    let idle = step(idle, Event::Started, at(0)).0;
    assert_eq!(step(idle, Event::ClockStepped, at(1)).1, []);
}

proptest! {
    #[test]
    fn over_any_events_an_identity_is_lost_or_changed_only_by_a_replacement_that_was_stored(
        source in sources(), mode in modes(), events in happenings(),
        kept in proptest::option::of(sources().prop_map(|source| stored("kept", source)))
    ) {
        let mut state = State::new(source, mode, Limits::default(), kept);
        let (mut clock, mut on_disk) = (Duration::ZERO, state.current.clone());
        let mut writing: Option<Provisioned> = None;
        for Happening { event, after, random } in events {
            clock += Duration::from_millis(u64::from(after));
            let before = state.current.clone();
            let stored_now = event == Event::Stored && writing.is_some();
            if stored_now { on_disk = writing.take(); }
            let failed_now = matches!(event, Event::StoreFailed { .. });
            let (next, actions) = step(state, event, Now { monotonic: clock, wall: 0, random });
            if failed_now { writing = None; }
            for action in &actions {
                if let Action::Store(replacement) = action {
                    prop_assert!(writing.is_none(), "two stores at once");
                    writing = Some(replacement.clone());
                }
                if let Action::Serve { identity, .. } = action {
                    prop_assert_eq!(Some(identity), next.identity());
                }
            }
            if next.current != before {
                prop_assert!(stored_now, "changed without a completed store");
            }
            prop_assert!(before.is_none() || next.current.is_some(), "unprovisioned");
            // What is in memory is what the next start would find.
            prop_assert_eq!(&next.current, &on_disk);
            state = next;
        }
    }

    #[test]
    fn over_any_events_only_one_call_is_under_way_and_never_two_attempts_within_the_least_pause(
        mode in modes(), events in happenings()
    ) {
        let mut state = fresh(None, mode);
        let (mut clock, mut pending, mut last_failed_start) = (Duration::ZERO, false, None::<Duration>);
        for Happening { event, after, random } in events {
            clock += Duration::from_millis(u64::from(after));
            if matches!(event, Event::Assigning { .. } | Event::Assigned(_) | Event::Failed(_)) {
                // The world answers only what was asked.
                if !pending { continue; }
                pending = false;
            }
            let (next, actions) = step(state, event, Now { monotonic: clock, wall: 0, random });
            let mut wakes = 0;
            for action in &actions {
                match action {
                    Action::Register | Action::Poll { .. } => {
                        prop_assert!(!pending, "two calls at once");
                        pending = true;
                        if *action == Action::Register && let Some(start) = last_failed_start.replace(clock)
                            && next.failures() > 0 {
                            prop_assert!(clock - start >= Limits::default().first_pause / 2, "hammering");
                        }
                    }
                    Action::WakeAt(until) => { wakes += 1; prop_assert!(*until > clock); }
                    Action::Prove { .. }
                    | Action::Store(_)
                    | Action::Serve { .. }
                    | Action::Report(_) => {}
                }
            }
            prop_assert!(wakes <= 1);
            // Whoever waits has been promised to be woken or is waiting for an
            // answer.
            if matches!(next.activity(), Activity::Asking { .. }) { prop_assert!(pending); }
            state = next;
        }
    }
}

/// Anything that the world may do next.
#[derive(Debug, Clone)]
enum World {
    /// Nobody answers, or what answers is no service (slow, malformed, a wrong name).
    Away,
    /// The service has not decided.
    Undecided,
    /// It refuses: a disabled device, or one 401.
    Refuses,
    /// It asks for a pause.
    Throttles(u64),
    /// It assigns this device.
    Assigns(&'static str),
    /// The disk is full.
    DiskFull,
    /// The hub refuses, or takes, the device.
    Hub(bool),
    /// Another certificate is there.
    Certificate(&'static str),
    /// Somebody asks.
    Asked(Requester),
    /// The clock is set.
    Clock,
    /// The plan of the certificate for the hub has come to its time.
    Due,
    /// Power goes, at whatever the device does.
    Reboot,
}

fn worlds() -> impl Strategy<Value = Vec<World>> {
    let one = prop_oneof![
        3 => Just(World::Away),
        3 => Just(World::Undecided),
        3 => Just(World::Refuses),
        2 => (0..8000_u64).prop_map(World::Throttles),
        4 => prop_oneof![Just("a"), Just("b")].prop_map(World::Assigns),
        1 => Just(World::DiskFull),
        2 => any::<bool>().prop_map(World::Hub),
        1 => prop_oneof![Just("x"), Just("y")].prop_map(World::Certificate),
        1 => prop_oneof![Just(Requester::Operator), Just(Requester::Runtime)].prop_map(World::Asked),
        1 => Just(World::Clock),
        1 => Just(World::Due),
        2 => Just(World::Reboot),
    ];
    proptest::collection::vec(one, 0..120)
}

proptest! {
    #[test]
    fn in_a_world_of_faults_and_reboots_an_identity_gives_way_only_to_a_complete_one(
        source in sources(), mode in modes(), worlds in worlds(), random in any::<u64>(),
        kept in proptest::option::of(sources().prop_map(|source| stored("kept", source)))
    ) {
        let boot = |disk: Option<Provisioned>, certificate: &str| {
            let operational = disk.as_ref().and_then(|it| it.operational.clone());
            State::new(source.clone(), mode, Limits::default(), disk)
                .with_operational(operational).with_certificate(Some(certificate.into()))
        };
        let (mut disk, mut certificate) = (kept, "x");
        let (mut now, mut calls) = (Duration::ZERO, Vec::new());
        let mut state = boot(disk.clone(), certificate);
        let mut events = std::collections::VecDeque::from([Event::Started]);
        // What waits for an answer, and the time to wake at.
        let (mut pending, mut wake): (Option<Action>, Option<Duration>) = (None, None);
        let mut served: Option<DeviceIdentity> = None;
        for world in worlds {
            while let Some(event) = events.pop_front() {
                let (next, actions) = step(state, event, Now { monotonic: now, wall: 0, random });
                state = next;
                for action in actions {
                    match action {
                        Action::Register | Action::Poll { .. } => {
                            prop_assert!(pending.is_none(), "two things at once");
                            calls.push(now);
                            pending = Some(action);
                        }
                        Action::Store(_) | Action::Prove { .. } => {
                            prop_assert!(pending.is_none(), "two things at once");
                            pending = Some(action);
                        }
                        Action::Serve { identity, replaced } => {
                            prop_assert_eq!(Some(&identity), disk.as_ref().map(|it| &it.identity));
                            let differs = served.as_ref().is_some_and(|old| *old != identity);
                            prop_assert_eq!(replaced, differs);
                            served = Some(identity);
                        }
                        Action::WakeAt(at) => wake = Some(at),
                        Action::Report(_) => {}
                    }
                }
            }
            // Whatever happens: who had an identity has it.
            prop_assert_eq!(served.as_ref(), disk.as_ref().map(|it| &it.identity));
            match (&world, pending.take()) {
                (World::Reboot, _) => {
                    (now, calls, wake, served) = (Duration::ZERO, Vec::new(), None, None);
                    state = boot(disk.clone(), certificate);
                    events.push_back(Event::Started);
                }
                (World::DiskFull, Some(Action::Store(_))) => {
                    events.push_back(Event::StoreFailed { reason: "disk full".into() });
                }
                (_, Some(Action::Store(replacement))) => {
                    disk = Some(replacement);
                    events.push_back(Event::Stored);
                }
                (World::Assigns(device), Some(Action::Prove { .. })) => {
                    events.push_back(Event::Proven { certificate: (*device).into() });
                }
                (World::Undecided, Some(Action::Prove { .. })) => {
                    events.push_back(refusal("the hub refuses the certificate"));
                }
                (World::Due, waits) => {
                    pending = waits;
                    events.push_back(Event::CertificateDue);
                }
                (World::Assigns(device), Some(_)) => {
                    events.push_back(Event::Assigned(identity(device)));
                }
                (World::Undecided, Some(_)) => events.push_back(Event::Assigning {
                    operation: "op".into(),
                    retry_after: None,
                }),
                (World::Throttles(seconds), Some(_)) => events.push_back(Event::Failed(Failure {
                    refused: false,
                    reason: "429".into(),
                    retry_after: Some(Duration::from_secs(*seconds)),
                })),
                (World::Refuses, Some(_)) => events.push_back(refusal("disabled")),
                (World::Hub(true), waits) => {
                    pending = waits;
                    events.push_back(Event::HubAcceptedDevice);
                }
                (World::Hub(false), waits) => {
                    pending = waits;
                    events.push_back(Event::HubRefusedDevice);
                }
                (World::Certificate(found), waits) => {
                    (pending, certificate) = (waits, *found);
                    events.push_back(Event::CertificateChanged(Some((*found).into())));
                }
                (World::Asked(by), waits) => {
                    pending = waits;
                    events.push_back(Event::ReprovisionRequested(*by));
                }
                (World::Clock, waits) => {
                    pending = waits;
                    events.push_back(Event::ClockStepped);
                }
                (_, Some(_)) => events.push_back(Event::Failed(Failure {
                    refused: false,
                    reason: "away".into(),
                    retry_after: None,
                })),
                (_, None) => {
                    now = wake.take().unwrap_or(now + Duration::from_secs(600)).max(now);
                    events.push_back(Event::Woken);
                }
            }
            let hour = Duration::from_secs(3600);
            let within = calls.iter().filter(|at| **at + hour > now).count();
            prop_assert!(within <= 120, "{within} calls in an hour");
        }
    }
}
