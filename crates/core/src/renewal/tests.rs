use proptest::prelude::*;

use super::*;

const DAY: i64 = 86_400;
const START: i64 = 1_800_000_000;

fn at(monotonic: i64, wall: i64) -> Now {
    let reading = Reading { monotonic: seconds(monotonic), wall };
    Now { reading, earliest: crate::clock::BUILT, plausible: true }
}

/// A state that found a certificate of so many days that began at [`START`].
fn found(policy: Policy, days: i64) -> (State, Span) {
    let span = Span { begin: START, end: START + days * DAY };
    let state = State::new(policy, Kept { seed: 7, ..Kept::default() }, at(0, START));
    (step(state, Event::Found(Some(span)), at(0, START)).0, span)
}

#[test]
fn margins_and_windows_are_read_as_they_are_written_and_nothing_else_is() {
    for text in ["1%", "80%", "99%", "1min", "30min", "10day"] {
        assert_eq!(text.parse::<Margin>().unwrap().to_string(), text);
    }
    for text in ["0%", "100%", "300%", "0day", "0min", "80", "1h", "", "-1day", "9999999999day"] {
        assert!(text.parse::<Margin>().is_err(), "{text}");
    }
    for text in ["02:00-04:00", "22:30-01:00", "00:00-23:59"] {
        assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
    }
    for text in ["2:00-4:00", "02:00", "02:00-02:00", "24:00-01:00", "+1:00-02:00", "é2:00-04:00"]
    {
        assert!(text.parse::<Window>().is_err(), "{text}");
    }
}

#[test]
fn a_certificate_is_renewed_at_its_threshold_or_a_little_later() {
    for (threshold, planned) in
        [("80%", 80), ("10day", 90), ("1440min", 99), ("200day", 50), ("1%", 50)]
    {
        let policy = Policy { threshold: threshold.parse().unwrap(), ..Policy::default() };
        let (state, span) = found(policy, 100);
        let planned = START + planned * DAY;
        let due = state.due(span);
        assert!((planned..=planned + (span.end - planned) / 10).contains(&due), "{threshold}");
        let just_before = step(state, Event::Look, at(due - 1 - START, due - 1)).1;
        assert_eq!((just_before.attempt, just_before.stand), (false, Stand::Planned(due)));
        assert!(step(state, Event::Look, at(due - START, due)).1.attempt, "{threshold}");
    }
}

#[test]
fn a_fleet_does_not_come_at_once() {
    let span = Span { begin: START, end: START + 100 * DAY };
    let dues = (0..1000).map(|seed| {
        State::new(Policy::default(), Kept { seed, ..Kept::default() }, at(0, START)).due(span)
    });
    let mut dues: Vec<_> = dues.map(|due| due / (DAY / 24)).collect();
    dues.sort_unstable();
    dues.dedup();
    assert!(dues.len() > 40, "over two days, they come in {} hours", dues.len());
}

#[test]
fn only_a_ca_that_signs_itself_is_made_anew_for_a_clock_that_cannot_be_right() {
    let (of_others, span) = found(Policy::default(), 100);
    let own = of_others.of_ca_that_signs_itself();
    for (wall, is_made) in [
        (span.begin - 1, true),
        (span.end, true),
        (span.begin, false),
        // Due, and valid: that is planned by a clock that can be right.
        (span.end - 1, false),
    ] {
        let now = Now { plausible: false, ..at(wall - START, wall) };
        let decision = step(own, Event::Look, now).1;
        assert_eq!(decision.attempt, is_made, "{wall}");
        let held = step(of_others, Event::Look, now).1;
        assert_eq!((held.attempt, held.stand), (false, Stand::ClockImplausible), "{wall}");
    }
    // Made, and still not valid by that clock: no hammer.
    let now = Now { plausible: false, ..at(0, span.end) };
    let made = step(step(own, Event::Look, now).0, Event::Succeeded(span), now).1;
    assert!(!made.attempt && made.wake > Duration::from_secs(1), "{made:?}");
    let off = Policy { enabled: false, ..Policy::default() };
    let off = found(off, 100).0.of_ca_that_signs_itself();
    assert!(!step(off, Event::Look, now).1.attempt);
}

#[test]
fn renewal_that_is_turned_off_is_off_until_somebody_asks() {
    let policy = Policy { enabled: false, ..Policy::default() };
    let (state, span) = found(policy, 100);
    for wall in [span.begin, span.end - 1, span.end, span.end + 1000 * DAY] {
        let decision = step(state, Event::Look, at(wall - START, wall)).1;
        assert_eq!((decision.attempt, decision.stand), (false, Stand::Off));
    }
    assert!(step(state, Event::Asked, at(1, START + 1)).1.attempt);
}

#[test]
fn pauses_grow_and_shrink_again_as_the_end_comes_near() {
    let (mut state, span) = found(Policy::default(), 100);
    let mut wall = state.due(span);
    let mut pauses = Vec::new();
    while wall < span.end + 2 * DAY {
        let now = at(wall - START, wall);
        let (next, decision) = step(state, Event::Look, now);
        assert!(decision.attempt, "at {wall}");
        let (next, decision) = step(next, Event::Failed { retry_after: None }, now);
        assert!(matches!(decision.stand, Stand::Retry(_)), "{:?}", decision.stand);
        state = next;
        let pause = next.kept.pause_until.unwrap() - wall;
        pauses.push((wall, pause));
        wall += pause;
    }
    assert!((45..=60).contains(&pauses[0].1), "{pauses:?}");
    let longest = pauses.iter().map(|it| it.1).max().unwrap();
    assert!(longest > 86_400 && longest <= 4 * DAY, "{longest}");
    let after = pauses.iter().filter(|it| it.0 >= span.end).map(|it| it.1);
    assert!(after.max().unwrap() <= LONGEST_OUTAGE_PAUSE);
    let last_before = pauses.iter().rfind(|it| it.0 < span.end).unwrap();
    assert!(span.end - last_before.0 <= 120, "it is tried until the end");
    assert!(pauses.len() < 1000, "without a hammer: {}", pauses.len());
}

#[test]
fn a_service_may_ask_for_patience_but_not_for_the_life_of_the_device() {
    let (state, span) = found(Policy::default(), 100);
    let asked = |left: i64, asked: u64| {
        let wall = span.end - left;
        let failed = Event::Failed { retry_after: Some(Duration::from_secs(asked)) };
        let kept = step(state, failed, at(wall - START, wall)).0.kept;
        kept.pause_until.unwrap() - wall
    };
    assert_eq!(asked(20 * DAY, 7200), 7200);
    assert_eq!(asked(20 * DAY, u64::MAX), DAY);
    assert_eq!(asked(3600, 7200), 1800);
    assert_eq!(asked(-1, 7200), 3600);
}

#[test]
fn nothing_is_planned_by_a_clock_that_cannot_be_right() {
    let (state, span) = found(Policy::default(), 100);
    let wrong = |wall: i64, earliest: i64| Now { earliest, plausible: false, ..at(5, wall) };
    let held = |wall| step(state, Event::Look, wrong(wall, START)).1;
    assert_eq!((held(0).attempt, held(0).stand), (false, Stand::ClockImplausible));
    assert_eq!(held(i64::MAX).stand, Stand::ClockImplausible);
    assert!(step(state, Event::Look, wrong(0, span.end)).1.attempt, "it is over for certain");
    assert!(step(state, Event::Found(None), wrong(0, START)).1.attempt, "nothing to lose");
}

#[test]
fn a_step_of_the_clock_voids_the_pause_and_the_plan() {
    let (state, span) = found(Policy::default(), 100);
    let due = state.due(span);
    let (state, _) = step(state, Event::Look, at(10, due));
    let (state, decision) = step(state, Event::Failed { retry_after: None }, at(11, due + 1));
    assert!(!decision.attempt && state.pause.is_some());
    let (state, decision) = step(state, Event::Look, at(12, START + 1));
    assert_eq!((decision.attempt, decision.stand), (false, Stand::Planned(due)));
    assert_eq!(state.kept.failures, 0);
    let (_, decision) = step(state, Event::Look, at(13, span.end + 700 * DAY));
    assert!(decision.attempt, "after a long time without power");
}

#[test]
fn the_plan_goes_on_after_a_restart() {
    let (state, span) = found(Policy::default(), 100);
    let wall = span.end - DAY;
    let (mut state, _) = step(state, Event::Look, at(wall - START, wall));
    for _ in 0..5 {
        state = step(state, Event::Failed { retry_after: None }, at(wall - START, wall)).0;
    }
    let kept: Kept = serde_json::from_str(&serde_json::to_string(&state.kept()).unwrap()).unwrap();
    assert_eq!(kept.failures, 5);
    let again = |monotonic: i64, wall: i64| {
        let now = at(monotonic, wall);
        step(State::new(Policy::default(), kept, now), Event::Found(Some(span)), now).1
    };
    let decision = again(1, wall + 10);
    assert!(!decision.attempt && decision.wake <= seconds(LONGEST_OUTAGE_PAUSE), "{decision:?}");
    assert!(again(1, wall + DAY).attempt, "the pause is over, and so is the certificate");
    // The clock went back by years while the device was off.
    assert!(again(1, START - 3000 * DAY).wake <= seconds(LONGEST_OUTAGE_PAUSE));
}

#[test]
fn a_window_is_kept_while_there_is_time_and_no_longer() {
    let (state, span) = found(Policy::default(), 100);
    let due = state.due(span);
    let windows = ["02:00-04:00", "14:00-16:00"].map(|text| text.parse::<Window>().unwrap());
    let window = windows.into_iter().find(|it| !it.is_open(due)).unwrap();
    let (state, _) = found(Policy { window: Some(window), ..Policy::default() }, 100);
    let decision = step(state, Event::Look, at(due - START, due)).1;
    let Stand::Window(opens) = decision.stand else { panic!("{decision:?}") };
    assert!(!decision.attempt && window.is_open(opens) && !window.is_open(opens - 1));
    assert!(opens - due < DAY);
    assert!(step(state, Event::Look, at(opens - START, opens)).1.attempt);
    let late = (span.end - DAY..span.end).rfind(|wall| !window.is_open(*wall)).unwrap();
    assert!(step(state, Event::Look, at(late - START, late)).1.attempt, "it cannot wait");
}

#[test]
fn a_certificate_that_is_of_no_use_when_it_comes_is_not_asked_for_without_pause() {
    let (state, _) = found(Policy::default(), 100);
    for span in [
        Span { begin: START - 10, end: START - 5 },
        Span { begin: START + 50, end: START + 100 },
        Span { begin: START, end: START },
    ] {
        let (state, decision) = step(state, Event::Succeeded(span), at(0, START));
        assert!(!decision.attempt && state.kept.failures == 1, "{decision:?}");
        assert!(decision.wake >= seconds(3));
    }
    // One whose begin lies back, as certificates of ours have it, is not over at once.
    let short = Span { begin: START - DAY, end: START + 600 };
    let decision = step(state, Event::Succeeded(short), at(0, START)).1;
    assert_eq!(decision.stand, Stand::Planned(START + 300));
}

#[test]
fn news_that_begins_nothing_leaves_the_attempt_to_the_look_that_follows() {
    let (state, span) = found(Policy::default(), 100);
    let now = at(99 * DAY, START + 99 * DAY);
    let (failed, _) = step(state, Event::Failed { retry_after: None }, now);
    let (changed, decision) = step(failed, Event::IssuerChanged, now);
    assert_eq!((decision.attempt, decision.wake), (false, Duration::ZERO));
    let (begun, decision) = step(changed, Event::Found(Some(span)), now);
    assert!(decision.attempt, "the change ended the pause");
    assert!(!step(begun, Event::IssuerChanged, now).1.attempt, "one at a time");
}

fn any_event() -> impl Strategy<Value = Event> {
    let any_span = (any::<i32>(), any::<i32>())
        .prop_map(|(begin, end)| Span { begin: begin.into(), end: end.into() });
    prop_oneof![
        Just(Event::Look),
        Just(Event::Asked),
        Just(Event::IssuerChanged),
        any_span.clone().prop_map(|span| Event::Found(Some(span))),
        Just(Event::Found(None)),
        any_span.prop_map(Event::Succeeded),
        any::<Option<u64>>()
            .prop_map(|asked| Event::Failed { retry_after: asked.map(Duration::from_secs) }),
    ]
}

proptest! {
    #[test]
    fn whatever_comes_nothing_overflows_and_one_attempt_is_made_at_a_time(
        events in proptest::collection::vec((any_event(), any::<i64>(), any::<i64>(), any::<bool>()), 0..60),
        seed: u64,
    ) {
        let kept = Kept { seed, failures: u32::MAX, pause_until: Some(i64::MAX), fresh: None };
        let mut state = State::new(Policy::default(), kept, at(0, 0));
        let (mut under_way, mut monotonic) = (false, 0);
        for (event, wall, earliest, plausible) in events {
            monotonic += wall.rem_euclid(100);
            let now = Now { earliest, plausible, ..at(monotonic, wall) };
            let (next, decision) = step(state, event, now);
            if matches!(event, Event::Succeeded(_) | Event::Failed { .. }) {
                under_way = false;
            }
            prop_assert!(!(under_way && decision.attempt), "two at a time");
            // Those who tell of these events make no attempt.
            let told_amid = matches!(
                event,
                Event::IssuerChanged | Event::Succeeded(_) | Event::Failed { .. }
            );
            prop_assert!(!(told_amid && decision.attempt), "an attempt that nobody makes");
            prop_assert!(under_way || decision.attempt || !next.working, "it would never end");
            under_way |= decision.attempt;
            prop_assert!(decision.wake <= LONGEST_SLEEP);
            prop_assert_eq!(decision.keep, next.kept != state.kept);
            state = next;
        }
    }
}
