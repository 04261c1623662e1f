//! The log and its counter in hardware.
//!
//! The invariant: what checkpoints carry is never below the hardware's value, so that a
//! log which lost nothing is never behind. A step is therefore written down before it is
//! made, and one whose answer was lost counts as made until the hardware is read again.

use std::io;
use std::time::{Duration, Instant};

use super::Options;
use crate::entry::LogEvent;
use crate::sign::MonotonicCounter;

/// Pause between attempts to read a counter that does not answer, if nobody asks.
const RETRY: Duration = Duration::from_secs(30);
/// Shortest time from the opening of the log to its first step, and between two steps
/// when a checkpoint is asked for or the log is closed. Hardware wears, also if somebody
/// asks all the time, or a daemon does not stay up.
const EARLY: Duration = Duration::from_secs(60);

/// The state of the counter in hardware, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CounterState {
    /// The log has none.
    Off,
    /// Its value when it was last looked at.
    Value(u64),
    /// The counter does not answer, for the reason given: a loss of the log's newest
    /// entries would not be noticed now.
    Unreachable(String),
}

/// The result of comparing the log with its counter. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Met {
    event: Option<LogEventKind>,
    /// The value that checkpoints carry from now on.
    recorded: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LogEventKind {
    Ahead,
    Replaced,
    Back,
}

/// Compares a counter that is there with the value in the newest checkpoint. `has_past`
/// is true if the log has entries of before this comparison; `was_away` is true if the
/// counter could not be read for a while.
fn meet(recorded: Option<u64>, found: u64, has_past: bool, was_away: bool) -> Met {
    let back = was_away.then_some(LogEventKind::Back);
    match recorded {
        // A log without a past, and a counter with one: there was another log, which is
        // gone.
        None if !has_past => Met { event: Some(LogEventKind::Ahead), recorded: found },
        None => Met { event: Some(LogEventKind::Back), recorded: found },
        Some(recorded) if found > recorded => {
            Met { event: Some(LogEventKind::Ahead), recorded: found }
        }
        Some(recorded) if found == recorded || found.checked_add(1) == Some(recorded) => {
            Met { event: back, recorded }
        }
        Some(_) => Met { event: Some(LogEventKind::Replaced), recorded: found },
    }
}

pub(super) struct Counting {
    hardware: Option<Box<dyn MonotonicCounter>>,
    state: CounterState,
    /// The value that checkpoints carry.
    recorded: Option<u64>,
    has_past: bool,
    /// Time of the last failed look at the hardware; `None` once a look has succeeded.
    failed: Option<Instant>,
    /// Time of the last step; before the first step, time of opening the log.
    rested_since: Instant,
    /// True if the counter was stepped since the log was opened.
    stepped: bool,
    was_off: bool,
}

impl Counting {
    /// `recorded` is what the log's newest checkpoint carries.
    pub(super) fn new(
        hardware: Option<Box<dyn MonotonicCounter>>,
        recorded: Option<u64>,
        has_past: bool,
        now: Instant,
    ) -> Self {
        let state = match hardware {
            None => CounterState::Off,
            Some(_) => CounterState::Unreachable("it was not asked yet".to_owned()),
        };
        Self {
            hardware,
            state,
            recorded,
            has_past,
            failed: None,
            rested_since: now,
            stepped: false,
            was_off: false,
        }
    }

    pub(super) fn state(&self) -> &CounterState {
        &self.state
    }

    /// Returns the value that the next checkpoint carries. The value is kept while the
    /// counter is away or switched off: it is a lower bound still.
    pub(super) fn recorded(&self) -> Option<u64> {
        self.recorded
    }

    /// Looks at the hardware if it was not seen yet, is due again, or if somebody wants
    /// to know; says what is to be written down.
    pub(super) fn look(&mut self, now: Instant, wanted: bool) -> Option<LogEvent> {
        let Some(hardware) = &mut self.hardware else {
            let first = !std::mem::replace(&mut self.was_off, true);
            return (first && self.recorded.is_some()).then_some(LogEvent::CounterOff);
        };
        let known = matches!(self.state, CounterState::Value(_));
        let due = self.failed.is_none_or(|failed| now >= failed + RETRY);
        if !wanted && (known || !due) {
            return None;
        }
        let was_away = self.failed.is_some();
        let found = match hardware.read() {
            Ok(Some(found)) => Ok((found, false)),
            Ok(None) => hardware.make().map(|value| (value, true)),
            Err(error) => Err(error),
        };
        let (found, made) = match found {
            Ok(found) => found,
            Err(error) => return self.lose(&error, now),
        };
        self.state = CounterState::Value(found);
        self.failed = None;
        if made {
            let recorded = self.recorded.replace(found);
            self.has_past = true;
            tracing::info!(counter = found, "the audit log's counter was made");
            return Some(match recorded {
                None => LogEvent::CounterMade { counter: found },
                Some(recorded) => LogEvent::CounterReplaced { recorded, counter: found },
            });
        }
        let before = self.recorded;
        let met = meet(before, found, self.has_past, was_away);
        self.recorded = Some(met.recorded);
        self.has_past = true;
        let recorded = before.unwrap_or(0);
        Some(match met.event? {
            LogEventKind::Ahead => {
                tracing::error!(
                    recorded,
                    found,
                    "the audit log is behind its counter: its newest part is missing"
                );
                LogEvent::CounterAhead { recorded, counter: found }
            }
            LogEventKind::Replaced => {
                tracing::error!(
                    recorded,
                    found,
                    "the audit log's counter is another one than before"
                );
                LogEvent::CounterReplaced { recorded, counter: found }
            }
            LogEventKind::Back => {
                tracing::info!(recorded, found, "the audit log's counter can be read again");
                LogEvent::CounterBack { recorded: before, counter: found }
            }
        })
    }

    /// Returns true if it is time for a step.
    pub(super) fn may_step(&self, now: Instant, wanted: bool, options: &Options) -> bool {
        let early = wanted || !self.stepped;
        let enough = if early { options.count_after.min(EARLY) } else { options.count_after };
        matches!(self.state, CounterState::Value(_))
            && now.saturating_duration_since(self.rested_since) >= enough
    }

    /// Returns the time of the next step; `None` if the counter's value is not known.
    pub(super) fn due(&self, options: &Options) -> Option<Instant> {
        let enough =
            if self.stepped { options.count_after } else { options.count_after.min(EARLY) };
        matches!(self.state, CounterState::Value(_)).then(|| self.rested_since + enough)
    }

    /// Plans a step, if it is time for one: from now on it counts as made.
    pub(super) fn plan(&mut self, now: Instant, wanted: bool, options: &Options) -> bool {
        let CounterState::Value(value) = self.state else { return false };
        let steps = self.may_step(now, wanted, options);
        // One that was planned and not made is made at the next occasion, and needs no
        // further plan.
        if steps && self.recorded == Some(value) {
            self.recorded = value.checked_add(1);
        }
        steps
    }

    /// Makes the planned step, after the checkpoint that carries it is on the disk; says
    /// whether it is known to be made.
    pub(super) fn step(&mut self, now: Instant) -> bool {
        let Some(hardware) = &mut self.hardware else { return false };
        (self.rested_since, self.stepped) = (now, true);
        match hardware.increment() {
            Ok(value) => {
                self.state = CounterState::Value(value);
                true
            }
            Err(error) => {
                // What is written down about it comes with the next look.
                tracing::error!(%error, "the audit log's counter cannot be stepped");
                self.state = CounterState::Unreachable(error.to_string());
                false
            }
        }
    }

    fn lose(&mut self, error: &io::Error, now: Instant) -> Option<LogEvent> {
        let first = self.failed.replace(now).is_none();
        let text = error.to_string();
        if first {
            tracing::error!(
                error = text,
                "the audit log's counter cannot be read; until it can, a loss of the log's newest part will not show"
            );
        }
        self.state = CounterState::Unreachable(text);
        first.then_some(LogEvent::CounterUnreachable)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;

    /// Hardware that can be away, lose answers, and be removed.
    #[derive(Default)]
    struct Chip {
        value: Option<u64>,
        highest: u64,
        away: bool,
        loses_answer: bool,
        steps: u32,
    }

    struct Handle(Arc<Mutex<Chip>>);

    fn away() -> io::Error {
        io::Error::other("away")
    }

    impl MonotonicCounter for Handle {
        fn read(&mut self) -> io::Result<Option<u64>> {
            let chip = self.0.lock().unwrap();
            if chip.away { Err(away()) } else { Ok(chip.value) }
        }

        fn make(&mut self) -> io::Result<u64> {
            let mut chip = self.0.lock().unwrap();
            chip.highest += 1;
            chip.value = Some(chip.highest);
            Ok(chip.highest)
        }

        fn increment(&mut self) -> io::Result<u64> {
            let mut chip = self.0.lock().unwrap();
            if chip.away {
                return Err(away());
            }
            let value = chip.value.ok_or_else(away)? + 1;
            (chip.value, chip.highest) = (Some(value), value);
            chip.steps += 1;
            if chip.loses_answer { Err(away()) } else { Ok(value) }
        }
    }

    #[test]
    fn what_a_counter_says_about_a_log() {
        let event =
            |recorded, found, has_past, was_away| meet(recorded, found, has_past, was_away).event;
        assert_eq!(event(Some(5), 5, true, false), None);
        assert_eq!(event(Some(6), 5, true, false), None, "a step that was planned and not made");
        assert_eq!(event(Some(5), 5, true, true), Some(LogEventKind::Back));
        assert_eq!(event(Some(5), 6, true, true), Some(LogEventKind::Ahead));
        assert_eq!(event(Some(7), 5, true, false), Some(LogEventKind::Replaced));
        assert_eq!(event(None, 5, false, false), Some(LogEventKind::Ahead));
        assert_eq!(event(None, 5, true, false), Some(LogEventKind::Back));
    }

    #[derive(Debug, Clone)]
    enum Act {
        Sign { wanted: bool },
        Wait(u16),
        Away(bool),
        LoseAnswers(bool),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            any::<bool>().prop_map(|wanted| Act::Sign { wanted }),
            (0..700_u16).prop_map(Act::Wait),
            any::<bool>().prop_map(Act::Away),
            any::<bool>().prop_map(Act::LoseAnswers),
        ]
    }

    proptest! {
        /// Whatever the hardware does, a log that lost nothing is never behind it, and is
        /// never said to be; and the hardware is stepped no more often than it may be.
        #[test]
        fn an_honest_log_is_never_behind(acts in prop::collection::vec(act(), 1..60)) {
            let chip = Arc::new(Mutex::new(Chip::default()));
            let options = Options { count_after: Duration::from_secs(300), ..Options::default() };
            let start = Instant::now();
            let mut now = start;
            let mut counting = Counting::new(Some(Box::new(Handle(Arc::clone(&chip)))), None, false, now);
            for act in acts {
                match act {
                    Act::Wait(seconds) => now += Duration::from_secs(seconds.into()),
                    Act::Away(away) => chip.lock().unwrap().away = away,
                    Act::LoseAnswers(loses) => chip.lock().unwrap().loses_answer = loses,
                    Act::Sign { wanted } => {
                        let event = counting.look(now, wanted);
                        let alarm = matches!(event, Some(LogEvent::CounterAhead { .. } | LogEvent::CounterReplaced { .. }));
                        prop_assert!(!alarm, "{:?}", event);
                        let step = counting.plan(now, wanted, &options);
                        if step {
                            counting.step(now);
                        }
                        let hardware = chip.lock().unwrap().value;
                        prop_assert!(counting.recorded() >= hardware, "{:?} {:?}", counting.recorded(), hardware);
                    }
                }
            }
            let seconds = now.duration_since(start).as_secs();
            prop_assert!(u64::from(chip.lock().unwrap().steps) <= seconds / 60);
        }
    }

    #[test]
    fn a_counter_that_is_removed_while_the_log_runs_is_noticed_when_somebody_asks() {
        let chip = Arc::new(Mutex::new(Chip::default()));
        let now = Instant::now();
        let mut counting =
            Counting::new(Some(Box::new(Handle(Arc::clone(&chip)))), None, false, now);
        assert_eq!(counting.look(now, false), Some(LogEvent::CounterMade { counter: 1 }));
        chip.lock().unwrap().value = None;
        assert_eq!(counting.look(now, false), None);
        assert_eq!(
            counting.look(now, true),
            Some(LogEvent::CounterReplaced { recorded: 1, counter: 2 })
        );
    }

    #[test]
    fn a_counter_that_is_switched_off_or_away_is_said_to_be_once() {
        let now = Instant::now();
        let mut off = Counting::new(None, Some(5), true, now);
        assert_eq!((off.look(now, false), off.look(now, true)), (Some(LogEvent::CounterOff), None));
        assert_eq!((off.recorded(), off.state()), (Some(5), &CounterState::Off));
        assert_eq!(Counting::new(None, None, true, now).look(now, true), None);
        let chip = Arc::new(Mutex::new(Chip { away: true, value: Some(5), ..Chip::default() }));
        let mut away = Counting::new(Some(Box::new(Handle(Arc::clone(&chip)))), Some(5), true, now);
        assert_eq!(
            (away.look(now, true), away.look(now, true)),
            (Some(LogEvent::CounterUnreachable), None)
        );
        assert_eq!(away.state(), &CounterState::Unreachable("away".into()));
        chip.lock().unwrap().away = false;
        assert_eq!(away.look(now, false), None, "it is not asked all the time");
        let later = now + RETRY;
        assert_eq!(
            away.look(later, false),
            Some(LogEvent::CounterBack { recorded: Some(5), counter: 5 })
        );
    }
}
