//! The decision on when to start, create or replace the agent's module: the one module
//! that the daemon itself keeps alive.
//!
//! Once a [`PERIOD`], the first time at once; after an error sooner, because many pass
//! quickly (a device that is just being provisioned), and later from error to error. Only
//! what is known to be dead is removed: a module whose state nobody knows, and an engine
//! that does not answer, are waited for. Errors count in a row; a round in which the
//! agent is seen running forgets them.
//!
//! An agent that starts and then ends again and again is no error of the runtime, but it
//! is started less and less often: after 10 s, 20 s, 40 s and so on up to five minutes.
//! One that has run for [`STABLE`] begins anew. All times are of a monotonic clock: no
//! step of the wall clock brings a round forward or puts it off.

use std::time::Duration;

use crate::backoff::Backoff;

/// Time between two rounds.
pub const PERIOD: Duration = Duration::from_secs(60);

/// Time to the next round after one error. It doubles from error to error.
pub const RETRY: Duration = Duration::from_secs(5);

/// Longest time between two rounds, after errors in a row.
pub const LONGEST_PERIOD: Duration = Duration::from_secs(300);

/// The time for which an agent that was started is left alone at first. The time doubles
/// from start to start.
pub const SETTLE: Duration = Duration::from_secs(10);

/// An agent that was started so long ago is started at once when it ends.
pub const STABLE: Duration = Duration::from_secs(600);

/// The state of the agent's module that a round sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// There is none.
    Absent,
    /// It never ran, or ended with exit code 0.
    Stopped,
    /// It ended with another exit code.
    Failed,
    /// It runs.
    Running,
    /// It is beyond starting.
    Dead,
    /// The runtime does not say what it does.
    Unknown,
    /// The runtime does not answer.
    EngineAway,
}

/// The action that a round takes on the agent's module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing, now.
    Nothing,
    /// Make it and start it.
    CreateAndStart,
    /// Start it.
    Start,
    /// Remove it, make it anew and start it.
    RecreateAndStart,
    /// End the daemon with an error: as many errors in a row as the operator allows.
    GiveUp,
}

/// The watchdog's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    limit: Option<u32>,
    errors: u32,
    due: Duration,
    /// Starts of which each came soon after the one before.
    starts: u32,
    /// The time of the last start.
    started: Option<Duration>,
}

impl State {
    /// Before the first round, which is due at once. `limit` is the number of errors in a
    /// row at which it gives up; `None`: never.
    #[must_use]
    pub const fn new(limit: Option<u32>) -> Self {
        Self { limit, errors: 0, due: Duration::ZERO, starts: 0, started: None }
    }

    /// Returns the time of the next look, on the same monotonic clock that [`step`] is
    /// given.
    #[must_use]
    pub const fn due(&self) -> Duration {
        self.due
    }

    /// Errors in a row.
    #[must_use]
    pub const fn errors(&self) -> u32 {
        self.errors
    }

    /// Makes the next round due at `now`: something happened, for instance the agent
    /// ended or the engine came back.
    #[must_use]
    pub fn wake(self, now: Duration) -> Self {
        Self { due: self.due.min(now.max(self.settled())), ..self }
    }

    /// Until when an agent that was started is left alone.
    #[must_use]
    pub fn settled(&self) -> Duration {
        let pause = Backoff::new(SETTLE, LONGEST_PERIOD).whole(self.starts.saturating_sub(1));
        self.started.map_or(Duration::ZERO, |started| started.saturating_add(pause))
    }

    /// Takes in that what [`step`] asked for failed at `now`.
    #[must_use]
    pub fn action_failed(self, now: Duration) -> Self {
        let errors = self.errors.saturating_add(1);
        // It was not started after all; how soon the next try comes is a matter of the
        // errors.
        Self { errors, due: now.saturating_add(pause_after(errors)), started: None, ..self }
    }
}

/// 5, 10, 20, 40, 80, 160, 300 s.
fn pause_after(errors: u32) -> Duration {
    Backoff::new(RETRY, LONGEST_PERIOD).whole(errors.saturating_sub(1))
}

/// One round, at `now` on a monotonic clock. Before [`State::due`] it does nothing. If
/// the action then fails, tell [`State::action_failed`].
#[must_use]
pub fn step(state: State, seen: Observation, now: Duration) -> (State, Action) {
    if now < state.due {
        return (state, Action::Nothing);
    }
    let mut next = State { due: now.saturating_add(PERIOD), ..state };
    match seen {
        Observation::Running => next.errors = 0,
        Observation::EngineAway => {
            next.errors = next.errors.saturating_add(1);
            // Asking again costs nothing: never later than usual.
            next.due = now.saturating_add(pause_after(next.errors).min(PERIOD));
        }
        _ => {}
    }
    if next.limit.is_some_and(|limit| next.errors >= limit.max(1)) {
        return (next, Action::GiveUp);
    }
    let action = match seen {
        Observation::Running | Observation::Unknown | Observation::EngineAway => Action::Nothing,
        Observation::Absent => Action::CreateAndStart,
        Observation::Stopped | Observation::Failed => Action::Start,
        Observation::Dead => Action::RecreateAndStart,
    };
    if action == Action::Nothing {
        return (next, action);
    }
    if now < next.settled() {
        next.due = next.settled();
        return (next, Action::Nothing);
    }
    let again = next.started.is_some_and(|started| now.saturating_sub(started) < STABLE);
    next.starts = if again { next.starts.saturating_add(1) } else { 1 };
    next.started = Some(now);
    (next, action)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Observation; 7] = [
        Observation::Absent,
        Observation::Stopped,
        Observation::Failed,
        Observation::Running,
        Observation::Dead,
        Observation::Unknown,
        Observation::EngineAway,
    ];

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_round_is_at_once_and_the_next_after_a_period() {
        let (state, action) = step(State::new(None), Observation::Absent, seconds(5));
        assert_eq!(action, Action::CreateAndStart);
        assert_eq!(state.due(), seconds(65));
        assert_eq!(step(state, Observation::Absent, seconds(64)), (state, Action::Nothing));
        assert_eq!(step(state, Observation::Failed, seconds(65)).1, Action::Start);
    }

    #[test]
    fn a_late_round_is_not_made_up_for() {
        let (state, _) = step(State::new(None), Observation::Running, seconds(1000));
        assert_eq!(state.due(), seconds(1060));
    }

    #[test]
    fn failing_actions_wait_longer_and_a_good_round_forgets_them() {
        let mut state = State::new(Some(10));
        let mut waits = Vec::new();
        let mut now = Duration::ZERO;
        for _ in 0..8 {
            let (next, action) = step(state, Observation::Absent, now);
            assert_eq!(action, Action::CreateAndStart);
            state = next.action_failed(now);
            waits.push((state.due() - now).as_secs());
            now = state.due();
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300]);
        let (state, _) = step(state, Observation::Running, now);
        assert_eq!(state.errors(), 0);
        assert_eq!(state.due(), now + PERIOD);
    }

    #[test]
    fn an_engine_that_is_away_is_asked_again_soon_and_then_as_often_as_usual() {
        let mut state = State::new(None);
        let mut now = seconds(7);
        let mut waits = Vec::new();
        for _ in 0..6 {
            (state, _) = step(state, Observation::EngineAway, now);
            waits.push((state.due() - now).as_secs());
            now = state.due();
        }
        assert_eq!(waits, [5, 10, 20, 40, 60, 60]);
    }

    #[test]
    fn it_gives_up_at_the_limit_and_only_there() {
        let mut state = State::new(Some(3));
        let mut now = Duration::ZERO;
        for _ in 0..2 {
            let (next, action) = step(state, Observation::EngineAway, now);
            assert_eq!(action, Action::Nothing);
            (state, now) = (next, next.due());
        }
        assert_eq!(step(state, Observation::EngineAway, now).1, Action::GiveUp);
        assert_eq!(step(state, Observation::Running, now).1, Action::Nothing);
    }

    #[test]
    fn an_agent_that_keeps_ending_is_started_less_and_less_often_until_it_stays() {
        let mut state = State::new(Some(1));
        let mut now = seconds(100);
        let mut pauses = Vec::new();
        let mut last = None;
        for _ in 0..8 {
            loop {
                let (next, action) = step(state.wake(now), Observation::Failed, now);
                state = next;
                if action == Action::Start {
                    break;
                }
                assert_eq!(action, Action::Nothing);
                now += seconds(1);
            }
            pauses.extend(last.map(|last: Duration| (now - last).as_secs()));
            last = Some(now);
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(state.errors(), 0, "no error of the runtime, and no reason to give up");
        now += STABLE;
        let (next, action) = step(state.wake(now), Observation::Failed, now);
        assert_eq!((action, next.settled()), (Action::Start, now + SETTLE));
    }

    #[test]
    fn waking_brings_a_round_forward_and_never_puts_it_off() {
        let (state, _) = step(State::new(None), Observation::Running, seconds(10));
        assert_eq!(
            step(state.wake(seconds(20)), Observation::Stopped, seconds(20)).1,
            Action::Start
        );
        assert_eq!(state.wake(seconds(200)).due(), state.due());
    }

    proptest! {
        #[test]
        fn only_what_is_known_to_be_dead_is_removed_and_rounds_keep_coming(
            rounds in proptest::collection::vec((0..7_usize, any::<bool>(), 0..400_u64), 0..200),
            limit in proptest::option::of(0..5_u32),
        ) {
            let mut state = State::new(limit);
            let mut now = Duration::ZERO;
            for (seen, fails, pause) in rounds {
                let seen = ALL[seen];
                let settling = now < state.settled();
                let was_due = now >= state.due() && !settling;
                let (next, action) = step(state, seen, now);
                prop_assert_eq!(action == Action::RecreateAndStart, was_due && seen == Observation::Dead && action != Action::GiveUp);
                if matches!(seen, Observation::Unknown | Observation::EngineAway | Observation::Running) {
                    prop_assert!(matches!(action, Action::Nothing | Action::GiveUp));
                }
                if action == Action::GiveUp {
                    prop_assert!(limit.is_some());
                    break;
                }
                if was_due && seen == Observation::Running {
                    prop_assert_eq!(next.errors(), 0);
                }
                state = if fails && action != Action::Nothing { next.action_failed(now) } else { next };
                prop_assert!(state.due() <= now + LONGEST_PERIOD);
                if was_due && now >= state.due() {
                    prop_assert!(false, "a round is over and due again");
                }
                if was_due && action != Action::Nothing {
                    let soonest = if state.errors() > 0 { RETRY } else { PERIOD };
                    prop_assert!(state.due() >= now + soonest);
                }
                now += seconds(pause);
            }
        }
    }
}
