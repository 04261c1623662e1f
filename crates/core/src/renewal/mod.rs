//! Renewal of certificates: the moment of each attempt, decided over values.
//!
//! [`step`] is a pure function of a certificate's [`State`], an [`Event`] and both
//! clocks. A certificate is renewed at the threshold of its [`Policy`], a little later by
//! chance, so that a fleet does not come all at once. After a failure the pauses grow up
//! to the policy's retry time, and shrink again as the end comes near: the closer the
//! end, the more often a renewal is tried. Pauses are on the monotonic clock, ends on the
//! wall clock. A step of the wall clock makes void what was learned before.
//!
//! Nothing is planned by a clock that cannot be right. Only a certificate that is over by
//! the last good time, or one that is missing, is asked for under such a clock; and a CA
//! that signs itself is made anew if it is not valid by that clock, since those below it
//! must be valid by the same clock.

mod look;
mod policy;
mod swap;
mod window;

use std::time::Duration;

pub use look::{Role, Seen, makes_first, news};
pub use policy::{Margin, Policy};
use serde::{Deserialize, Serialize};
pub use swap::{Pair, pair};
pub use window::Window;

use crate::clock::{LATEST, Reading, step as clock_step};
use crate::issuance::Term;

/// Longest time between two looks at a certificate for which nothing is due.
pub const LONGEST_SLEEP: Duration = Duration::from_secs(6 * 3600);
/// First pause after a failure, in seconds; it doubles with each further one.
pub const FIRST_PAUSE: i64 = 60;
/// The same while no valid certificate is there, as when daemons start together.
pub const FIRST_OUTAGE_PAUSE: i64 = 5;
/// Longest pause while no valid certificate is there, in seconds.
pub const LONGEST_OUTAGE_PAUSE: i64 = 600;
/// Longest pause that a service can ask for, in seconds.
const LONGEST_ASKED: i64 = 86_400;

/// Begin and end of a certificate, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Begin.
    pub begin: i64,
    /// End.
    pub end: i64,
}

impl From<Term> for Span {
    fn from(term: Term) -> Self {
        Self { begin: term.not_before.unix_timestamp(), end: term.not_after.unix_timestamp() }
    }
}

impl Span {
    /// Returns whether a certificate of this span is valid at this moment.
    #[must_use]
    pub fn contains(&self, wall: i64) -> bool {
        self.begin <= wall && wall < self.end
    }
}

/// The present, by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The clocks.
    pub reading: Reading,
    /// Earliest moment that the present can be ([`crate::clock::earliest`]).
    pub earliest: i64,
    /// True if the wall clock can be right ([`crate::clock::judge`]).
    pub plausible: bool,
}

/// News about a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// None: time went by, or a clock was set.
    Look,
    /// The certificate was read, with its key; `None` if there is no usable pair.
    Found(Option<Span>),
    /// The certificate that issues this one is another now: what failed before may not.
    IssuerChanged,
    /// An operator asked for a renewal now.
    Asked,
    /// A new certificate and its key are in place.
    Succeeded(Span),
    /// The attempt failed. The old certificate is in use.
    Failed {
        /// The time that the service asks to be left alone.
        retry_after: Option<Duration>,
    },
}

impl Event {
    /// Returns whether an attempt can begin with this event. The others are told amid
    /// something else, and an attempt that nobody makes would never end.
    fn may_begin(self) -> bool {
        match self {
            Self::Look | Self::Found(_) | Self::Asked => true,
            Self::IssuerChanged | Self::Succeeded(_) | Self::Failed { .. } => false,
        }
    }
}

/// The plan for one certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    policy: Policy,
    kept: Kept,
    signs_itself: bool,
    held: Option<Span>,
    /// Moment on the monotonic clock before which no attempt is made.
    pause: Option<Duration>,
    asked: bool,
    working: bool,
    seen: Option<Reading>,
}

/// The state of a plan that is kept over a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Random number of this certificate on this device, of which the jitter comes.
    pub seed: u64,
    /// Failures in a row.
    pub failures: u32,
    /// End of the pause after the last failure, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_until: Option<i64>,
    /// Moment before which the certificate with this end is not renewed: it was renewed
    /// so short a time before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh: Option<Fresh>,
}

/// A certificate that was just renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fresh {
    /// The certificate's end, in seconds since 1970.
    pub end: i64,
    /// The earliest moment of the next renewal, in seconds since 1970.
    pub until: i64,
}

/// Stand of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "stand", content = "at")]
pub enum Stand {
    /// A renewal is planned for this moment, in seconds since 1970.
    Planned(i64),
    /// A renewal is due and waits for the maintenance window that opens then.
    Window(i64),
    /// The last attempt failed; the next one is made then.
    Retry(i64),
    /// The clock cannot be right, so that nothing is planned.
    ClockImplausible,
    /// A renewal is under way.
    UnderWay,
    /// The configuration turns renewal off.
    Off,
}

/// Decision about one certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// True if an attempt is to be made now.
    pub attempt: bool,
    /// Time after which [`Event::Look`] is due again.
    pub wake: Duration,
    /// True if [`State::kept`] changed and is to be written.
    pub keep: bool,
    /// Stand of the plan, to be shown.
    pub stand: Stand,
}

impl State {
    /// Begins a plan, or goes on with one that was kept. The pause that was kept is
    /// measured anew: a device that was off for longer tries at once, and a clock that
    /// went back makes no pause longer.
    #[must_use]
    pub fn new(policy: Policy, kept: Kept, now: Now) -> Self {
        let left = kept.pause_until.map(|until| until.saturating_sub(now.reading.wall).max(0));
        let pause = left
            .map(|left| now.reading.monotonic + seconds(left.min(longest_pause(&policy, None))));
        Self {
            policy,
            kept,
            signs_itself: false,
            held: None,
            pause,
            asked: false,
            working: false,
            seen: None,
        }
    }

    /// The same for a CA on the device whose certificate is signed by its own key, so
    /// that it can be had under any clock.
    #[must_use]
    pub fn of_ca_that_signs_itself(self) -> Self {
        Self { signs_itself: true, ..self }
    }

    /// Returns what is to be kept over a restart.
    #[must_use]
    pub fn kept(&self) -> Kept {
        self.kept
    }

    /// Returns the certificate that was found last.
    #[must_use]
    pub fn held(&self) -> Option<Span> {
        self.held
    }

    /// Returns the policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns the planned moment of the renewal of a certificate, in seconds since 1970.
    fn due(&self, held: Span) -> i64 {
        let planned = self.policy.planned(held);
        // Up to a tenth of what is left then: the rest is for failures.
        let left = held.end.saturating_sub(planned).max(0);
        let jitter = fraction(left / 10, self.kept.seed ^ held.end.cast_unsigned());
        let due = planned.saturating_add(jitter);
        match self.kept.fresh {
            Some(fresh) if fresh.end == held.end => due.max(fresh.until),
            _ => due,
        }
    }
}

/// Degrees of need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// A renewal at this moment.
    At(i64),
    /// A renewal that is due and can wait for a maintenance window.
    Due(Span, i64),
    /// A renewal now: no valid certificate is there, or an operator asks.
    Now,
    Held,
    Off,
}

/// Takes in an event and decides what follows.
#[must_use]
pub fn step(mut state: State, event: Event, now: Now) -> (State, Decision) {
    let before = state.kept;
    if state.seen.is_some_and(|seen| clock_step(seen, now.reading).is_some()) {
        // What failed may have failed for the clock.
        (state.pause, state.kept.failures, state.kept.pause_until) = (None, 0, None);
    }
    state.seen = Some(now.reading);
    match event {
        Event::Look => {}
        Event::Found(held) => state.held = held,
        Event::IssuerChanged => {
            (state.pause, state.kept.failures, state.kept.pause_until) = (None, 0, None);
        }
        Event::Asked => (state.asked, state.pause) = (true, None),
        Event::Succeeded(span) => {
            let left = span.end.saturating_sub(now.reading.wall);
            let until = now.reading.wall.saturating_add(left / 2);
            state.kept = Kept {
                fresh: Some(Fresh { end: span.end, until }),
                failures: 0,
                pause_until: None,
                ..state.kept
            };
            (state.held, state.pause) = (Some(span), None);
            (state.asked, state.working) = (false, false);
            if need(&state, now) == Need::Now {
                // A certificate that is of no use now makes no hammer of this device.
                put_off(&mut state, None, now);
            }
        }
        Event::Failed { retry_after } => put_off(&mut state, retry_after, now),
    }
    let (stand, wanted, wake) = decide(&state, now);
    let attempt = wanted && event.may_begin();
    // Wanted by news that begins nothing: the look that follows begins it.
    let wake = if wanted && !attempt { Duration::ZERO } else { wake };
    state.working |= attempt;
    let keep = state.kept != before;
    (state, Decision { attempt, wake: wake.min(LONGEST_SLEEP), keep, stand })
}

/// Notes a failed attempt, and pauses.
fn put_off(state: &mut State, retry_after: Option<Duration>, now: Now) {
    let pause = pause(state, retry_after, now);
    state.kept.failures = state.kept.failures.saturating_add(1);
    state.kept.pause_until = Some(now.reading.wall.saturating_add(pause));
    state.pause = Some(now.reading.monotonic + seconds(pause));
    (state.asked, state.working) = (false, false);
}

fn decide(state: &State, now: Now) -> (Stand, bool, Duration) {
    let wall = now.reading.wall;
    let sleep = |until: i64| seconds(until.saturating_sub(wall).max(1));
    if state.working {
        return (Stand::UnderWay, false, LONGEST_SLEEP);
    }
    let need = need(state, now);
    let wants = match need {
        Need::Off => return (Stand::Off, false, LONGEST_SLEEP),
        Need::Held => return (Stand::ClockImplausible, false, LONGEST_SLEEP),
        Need::At(due) => return (Stand::Planned(due), false, sleep(due)),
        Need::Due(..) | Need::Now => true,
    };
    if let Some(left) = state.pause.and_then(|end| end.checked_sub(now.reading.monotonic))
        && !left.is_zero()
    {
        let left_seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        return (Stand::Retry(wall.saturating_add(left_seconds)), false, left);
    }
    if let (Need::Due(held, due), Some(window)) = (need, state.policy.window) {
        let opens = window.next_opening(wall);
        // No window is waited for that opens in the last quarter of the time that is
        // left for failures.
        let safe = held.end.saturating_sub(held.end.saturating_sub(due) / 4);
        if opens > wall && opens < safe {
            return (Stand::Window(opens), false, sleep(opens));
        }
    }
    (Stand::UnderWay, wants, LONGEST_SLEEP)
}

fn need(state: &State, now: Now) -> Need {
    let wall = now.reading.wall;
    if state.asked {
        return Need::Now;
    }
    let Some(held) = state.held else { return Need::Now };
    if !state.policy.enabled {
        return Need::Off;
    }
    if held.end <= now.earliest && now.earliest < LATEST {
        return Need::Now;
    }
    if !now.plausible && !state.signs_itself {
        return Need::Held;
    }
    if !held.contains(wall) {
        return Need::Now;
    }
    if !now.plausible {
        return Need::Held;
    }
    let due = state.due(held);
    if wall < due { Need::At(due) } else { Need::Due(held, due) }
}

/// Returns the pause after a failure, in seconds.
fn pause(state: &State, retry_after: Option<Duration>, now: Now) -> i64 {
    let wall = now.reading.wall;
    let valid = state.held.filter(|held| held.contains(wall) && held.end > now.earliest);
    let longest = longest_pause(&state.policy, valid);
    let left = valid.map(|held| held.end - wall);
    let cap = left.map_or(LONGEST_OUTAGE_PAUSE, |left| (left / 8).max(FIRST_PAUSE)).min(longest);
    let first = if valid.is_some() { FIRST_PAUSE } else { FIRST_OUTAGE_PAUSE };
    let doubled = first << state.kept.failures.min(20);
    let whole = doubled.min(cap);
    let random = state.kept.seed ^ u64::from(state.kept.failures).wrapping_mul(0x9e37_79b9);
    let pause = whole - fraction(whole / 4, random);
    let asked = retry_after.map_or(0, |asked| i64::try_from(asked.as_secs()).unwrap_or(i64::MAX));
    // A service may ask for patience, yet not for so much that no attempt is left.
    let patience =
        left.map_or(LONGEST_ASKED / 24, |left| (left / 2).clamp(FIRST_PAUSE, LONGEST_ASKED));
    pause.max(asked.min(patience))
}

fn longest_pause(policy: &Policy, valid: Option<Span>) -> i64 {
    policy.retry.of(valid.map_or(0, |held| held.end - held.begin)).max(LONGEST_OUTAGE_PAUSE)
}

/// Returns a part of `whole` that a random number chooses.
fn fraction(whole: i64, random: u64) -> i64 {
    // Neighbouring numbers must not choose neighbouring parts (splitmix64).
    let mut mixed = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let of_a_thousand = i64::try_from((mixed ^ (mixed >> 31)) % 1001).unwrap_or(0);
    let whole = i128::from(whole.max(0)) * i128::from(of_a_thousand) / 1000;
    i64::try_from(whole).unwrap_or(i64::MAX)
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod years;
