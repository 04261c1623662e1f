//! The times at which the hub is asked for its list of modules: at the start, from time
//! to time, when somebody misses a module, and after errors with growing pauses.
//!
//! [`step`] takes in what happened; a round is due at [`State::due`], and one runs at a
//! time. All times are of a monotonic clock, since any fixed moment.

use std::time::Duration;

use crate::backoff::Backoff;

/// Time for which a failure to reach the hub is taken as a sign that the next call would
/// fail, too.
const OFFLINE_MEMORY: Duration = Duration::from_secs(60);
/// Longest time for which the hub is left alone because it asked for that.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// The pauses between rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Time between rounds when all is well; up to a half of it is taken off at random.
    pub period: Duration,
    /// Least time between two rounds, whoever wishes for one. A list that is younger
    /// counts as the truth.
    pub least_gap: Duration,
    /// Pause after the first failed round; it doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause after failures.
    pub longest_pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(3600),
            least_gap: Duration::from_secs(30),
            first_pause: Duration::from_secs(5),
            longest_pause: Duration::from_secs(600),
        }
    }
}

/// Events that move the time of the next round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The device has an identity, which may be another one than before.
    Served,
    /// A round ended, and the list was taken over.
    Succeeded,
    /// A round ended without the list. `retry_after` is what the hub asked for.
    Failed {
        /// The pause that the hub asked for.
        retry_after: Option<Duration>,
    },
    /// Somebody misses a module, or has one to be looked after.
    Wished,
    /// The wall clock was set: what failed by another time may succeed by this one, above
    /// all the check of the hub's certificate.
    ClockSet,
    /// A call to the hub, of whatever kind, got an answer.
    Reached,
    /// A call to the hub got none, or the answer to leave it alone for a while.
    Unreached {
        /// The pause that the hub asked for.
        retry_after: Option<Duration>,
    },
}

/// The rounds so far, and the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    limits: Limits,
    failures: u32,
    due: Duration,
    /// No wish brings the next round before this.
    not_before: Duration,
    offline_until: Option<Duration>,
    last_success: Option<Duration>,
}

impl State {
    /// No round so far: the first is due at once.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            failures: 0,
            due: Duration::ZERO,
            not_before: Duration::ZERO,
            offline_until: None,
            last_success: None,
        }
    }

    /// The time of the next round.
    #[must_use]
    pub const fn due(&self) -> Duration {
        self.due
    }

    /// Rounds that failed in a row.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// True if the hub could not be reached a moment ago, or asked to be left alone until
    /// later than `now`.
    #[must_use]
    pub fn is_offline(&self, now: Duration) -> bool {
        self.offline_until.is_some_and(|until| now < until)
    }

    /// True if the hub's list was taken over so shortly ago that it is not worth asking
    /// again.
    #[must_use]
    pub fn is_fresh(&self, now: Duration) -> bool {
        self.last_success.is_some_and(|last| now.saturating_sub(last) < self.limits.least_gap)
    }
}

/// Takes in an event that happened at `now`. `random` spreads the rounds of a fleet.
#[must_use]
pub fn step(state: State, event: Event, now: Duration, random: u64) -> State {
    let limits = state.limits;
    match event {
        // Nothing is known yet of another identity's modules.
        Event::Served => State { due: now, ..state },
        Event::Succeeded => State {
            failures: 0,
            due: now + Backoff::new(limits.period, limits.period).spread(0, random),
            not_before: now + limits.least_gap,
            last_success: Some(now),
            ..state
        },
        Event::Failed { retry_after } => {
            let asked = retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
            let pause = Backoff::new(limits.first_pause, limits.longest_pause)
                .spread(state.failures, random);
            State {
                failures: state.failures.saturating_add(1),
                due: now + pause.max(asked),
                not_before: now + limits.first_pause.max(asked),
                ..state
            }
        }
        // However many wish for it, not more often than this.
        Event::Wished => State { due: state.due.min(state.not_before), ..state },
        Event::ClockSet if state.failures > 0 => {
            let due = state.due.min(state.not_before);
            State { failures: 0, due, offline_until: None, ..state }
        }
        Event::ClockSet => state,
        Event::Reached => State { offline_until: None, ..state },
        Event::Unreached { retry_after } => {
            let pause = retry_after.unwrap_or_default().clamp(OFFLINE_MEMORY, LONGEST_RETRY_AFTER);
            State { offline_until: Some(now + pause), ..state }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn after(events: &[(u64, Event)]) -> State {
        events.iter().fold(State::new(Limits::default()), |state, (at, event)| {
            step(state, *event, seconds(*at), 0)
        })
    }

    const FAILED: Event = Event::Failed { retry_after: None };

    #[test]
    fn rounds_come_by_the_hour_and_after_failures_with_doubling_pauses() {
        assert_eq!(after(&[]).due(), Duration::ZERO);
        assert_eq!(after(&[(7, Event::Succeeded)]).due(), seconds(3607));
        let mut state = after(&[]);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let now = state.due();
            state = step(state, FAILED, now, 0);
            pauses.push((state.due() - now).as_secs());
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        assert_eq!(step(state, Event::Succeeded, state.due(), 0).failures(), 0);
    }

    #[test]
    fn a_wish_brings_a_round_forward_but_not_below_the_least_gap() {
        let wished = after(&[(100, Event::Succeeded), (101, Event::Wished)]);
        assert_eq!(wished.due(), seconds(130));
        let failed = [(0, FAILED), (5, FAILED), (15, FAILED), (16, Event::Wished)];
        assert_eq!(after(&failed).due(), seconds(20));
        let asked = Event::Failed { retry_after: Some(seconds(90)) };
        assert_eq!(after(&[(0, asked), (1, Event::Wished)]).due(), seconds(90), "the hub asked");
    }

    #[test]
    fn a_set_clock_ends_pauses_after_failures_and_no_others() {
        let failed = [(0, FAILED), (5, FAILED), (15, FAILED)];
        let unreached = Event::Unreached { retry_after: None };
        let state = after(&[&failed[..], &[(15, unreached), (16, Event::ClockSet)]].concat());
        assert_eq!((state.due(), state.failures()), (seconds(20), 0));
        assert!(!state.is_offline(seconds(16)));
        let well = after(&[(0, Event::Succeeded), (1, Event::ClockSet)]);
        assert_eq!(well, after(&[(0, Event::Succeeded)]));
    }

    #[test]
    fn another_identity_is_asked_for_at_once() {
        let asked = Event::Failed { retry_after: Some(seconds(900)) };
        assert_eq!(after(&[(0, asked), (7, Event::Served)]).due(), seconds(7));
    }

    #[test]
    fn a_hub_that_was_not_reached_is_taken_for_away_for_a_while_and_not_for_ever() {
        let unreached = |retry_after| Event::Unreached { retry_after };
        let state = after(&[(10, unreached(None))]);
        assert!(state.is_offline(seconds(69)) && !state.is_offline(seconds(70)));
        let state = after(&[(0, unreached(Some(seconds(1_000_000))))]);
        assert!(state.is_offline(seconds(3599)) && !state.is_offline(seconds(3600)));
        let state = after(&[(0, unreached(None)), (1, Event::Reached)]);
        assert!(!state.is_offline(seconds(1)));
    }

    #[test]
    fn a_list_is_fresh_for_the_least_gap() {
        let state = after(&[(10, Event::Succeeded)]);
        assert!(state.is_fresh(seconds(39)) && !state.is_fresh(seconds(40)));
        assert!(!after(&[(10, FAILED)]).is_fresh(seconds(10)));
    }

    fn events() -> impl Strategy<Value = Event> {
        let retry_after = || prop::option::of((0_u64..10_000).prop_map(seconds));
        prop_oneof![
            1 => Just(Event::Served),
            4 => Just(Event::Wished),
            1 => Just(Event::ClockSet),
            1 => Just(Event::Reached),
            1 => retry_after().prop_map(|retry_after| Event::Unreached { retry_after }),
        ]
    }

    proptest! {
        /// A driver that begins a round when one is due: whatever happens meanwhile.
        #[test]
        fn rounds_never_come_closer_than_they_may_and_always_come(
            rounds in prop::collection::vec(
                (
                    prop::collection::vec((0_u64..50, events()), 0..6),
                    any::<bool>(),
                    prop::option::of(0_u64..10_000),
                    any::<u64>(),
                ),
                1..60,
            ),
        ) {
            let limits = Limits::default();
            let (mut state, mut now) = (State::new(limits), Duration::ZERO);
            for (meanwhile, succeeds, asked, random) in rounds {
                let retry_after = asked.map(seconds);
                let event =
                    if succeeds { Event::Succeeded } else { Event::Failed { retry_after } };
                state = step(state, event, now, random);
                let ended = now;
                let mut served = false;
                for (pause, event) in meanwhile {
                    if now + seconds(pause) >= state.due() {
                        break;
                    }
                    now += seconds(pause);
                    served |= event == Event::Served;
                    state = step(state, event, now, random);
                }
                now = now.max(state.due());
                let gap = now - ended;
                if !served {
                    let least = if succeeds { limits.least_gap } else { limits.first_pause / 2 };
                    prop_assert!(gap >= least, "{gap:?}");
                    let asked = retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
                    prop_assert!(succeeds || gap >= asked, "{gap:?}, asked for {asked:?}");
                }
                prop_assert!(gap <= limits.period.max(LONGEST_RETRY_AFTER), "{gap:?}");
            }
        }
    }
}
