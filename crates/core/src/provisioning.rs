//! Decisions by which a device comes to an identity, keeps it and replaces it. The
//! decisions need no sockets, files or clocks.
//!
//! One rule holds over every sequence of events: *the last good identity is
//! authoritative*. It is served from the first moment after a start, whatever the cloud
//! does, and it gives way only to a complete replacement that has been stored (devices
//! are lost in the field to offline boots, to re-provisioning that clears before it
//! succeeds, and to devices that hammer the cloud).
//!
//! The driver calls [`step`] with what happened and carries out the [`Action`]s in order.
//! At most one of [`Action::Register`], [`Action::Poll`] and [`Action::Store`] is under
//! way at any time: the next one is asked for only after the answer to the previous one
//! has been reported.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::id::DeviceId;
use crate::settings::ReprovisioningMode;

/// The identity of a device that is provisioned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIdentity {
    /// Host name of the hub, with a port where it is not 443.
    pub hub: String,
    /// Id of the device there.
    pub device_id: DeviceId,
}

/// A source of identities as configured, in a form that can be compared with the one that
/// a stored identity came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum Source {
    /// The configuration names hub and device: there is nothing to ask.
    Manual {
        /// The identity that the configuration names.
        identity: DeviceIdentity,
    },
    /// The provisioning service assigns them.
    Dps {
        /// Base URL of the service.
        endpoint: String,
        /// The tenant's scope.
        scope_id: String,
        /// The registration's name.
        registration_id: String,
    },
    /// There is none: local identities only.
    None,
}

/// The record on the disk: an identity and its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioned {
    /// The identity.
    pub identity: DeviceIdentity,
    /// The source of the identity. If the configuration names another source now, a
    /// replacement is asked for.
    pub source: Source,
    /// Wall clock when it was obtained, in seconds since the epoch; informative.
    pub obtained_at: i64,
}

/// The moment of an event. Durations are measured by `monotonic`, which no clock
/// correction moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since some fixed moment of this process.
    pub monotonic: Duration,
    /// Wall clock, seconds since the epoch. It may jump and may be wrong.
    pub wall: i64,
    /// A fresh random number, used for jitter.
    pub random: u64,
}

/// Waiting times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Between polls, where the service names no other time.
    pub poll_interval: Duration,
    /// The longest time that the service's own Retry-After is believed for.
    pub longest_retry_after: Duration,
    /// From a registration's first request to its assignment; after that the attempt
    /// counts as failed.
    pub overall: Duration,
    /// Pause after the first failure; it doubles with each further one. Also the least
    /// time between two attempts.
    pub first_pause: Duration,
    /// The longest pause after failures to reach the service.
    pub longest_pause_unreachable: Duration,
    /// The longest pause after refusals by the service.
    pub longest_pause_refused: Duration,
    /// Least time from a successful registration to the next one that only a refusal by
    /// the hub asks for: if the hub goes on refusing what the service assigns (a wrong
    /// clock is enough), the service is not asked all the time.
    pub refusal_gap: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            poll_interval: Duration::from_secs(3),
            longest_retry_after: Duration::from_secs(3600),
            overall: Duration::from_secs(600),
            first_pause: Duration::from_secs(5),
            longest_pause_unreachable: Duration::from_secs(300),
            longest_pause_refused: Duration::from_secs(1800),
            refusal_gap: Duration::from_secs(900),
        }
    }
}

/// The reason why an attempt did not lead to an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// True if the service answered and refused, rather than not having been reached.
    pub refused: bool,
    /// The reason in words, for people.
    pub reason: String,
    /// The time for which the service asks to be left alone.
    pub retry_after: Option<Duration>,
}

/// An event that the driver reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The process started (once, first).
    Started,
    /// The moment named by [`Action::WakeAt`] came. Waking too early or twice does no
    /// harm.
    Woken,
    /// Somebody who may asked for a new registration.
    ReprovisionRequested,
    /// The hub says that it does not know the device (any more), or refuses its
    /// credential.
    HubRefusedDevice,
    /// The wall clock was put to another time: what failed by the old one may succeed.
    ClockStepped,
    /// Answer to [`Action::Register`] or [`Action::Poll`]: not decided yet.
    Assigning {
        /// The operation to ask about.
        operation: String,
        /// The time after which the service wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Answer to [`Action::Register`] or [`Action::Poll`]: the device has an identity.
    Assigned(DeviceIdentity),
    /// Answer to [`Action::Register`] or [`Action::Poll`]: no identity this time.
    Failed(Failure),
    /// [`Action::Store`] is done: the file is on the disk.
    Stored,
    /// [`Action::Store`] failed; the file on the disk is the old one.
    StoreFailed {
        /// The reason in words, for people.
        reason: String,
    },
}

/// An action that the driver is to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a registration to the provisioning service.
    Register,
    /// Ask about a registration.
    Poll {
        /// The operation's id, as the service gave it.
        operation: String,
    },
    /// Write this to the state file, whole or not at all.
    Store(Provisioned),
    /// Serve this identity from now on.
    Serve {
        /// The identity.
        identity: DeviceIdentity,
        /// True if another identity was served before. What belongs to that identity is
        /// void.
        replaced: bool,
    },
    /// Send [`Event::Woken`] at this monotonic time, unless a later action names another.
    WakeAt(Duration),
    /// Tell people.
    Report(Failure),
}

/// The work that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Activity {
    /// Nothing, and nothing is due.
    Idle,
    /// A registration or a poll has been sent.
    Asking {
        /// The time at which this attempt began.
        since: Duration,
        /// The operation, from the first answer on.
        operation: Option<String>,
    },
    /// Waiting to poll.
    Waiting {
        /// The time at which this attempt began.
        since: Duration,
        /// The operation.
        operation: String,
        /// The time of the next poll.
        until: Duration,
    },
    /// A complete replacement is being written.
    Storing {
        /// The replacement.
        replacement: Provisioned,
    },
    /// Waiting after a failure.
    Pausing {
        /// The time at which the failed attempt began.
        since: Duration,
        /// The time of the next attempt.
        until: Duration,
        /// Before this moment no request shortens the pause: the service asked for it.
        not_before: Duration,
    },
}

/// Everything that provisioning knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    source: Source,
    mode: ReprovisioningMode,
    limits: Limits,
    current: Option<Provisioned>,
    activity: Activity,
    failures: u32,
    last_failure: Option<Failure>,
    last_success: Option<Duration>,
}

impl State {
    /// The state at a start, from the configuration and from what the state file holds.
    #[must_use]
    pub fn new(
        source: Source,
        mode: ReprovisioningMode,
        limits: Limits,
        stored: Option<Provisioned>,
    ) -> Self {
        Self {
            source,
            mode,
            limits,
            current: stored,
            activity: Activity::Idle,
            failures: 0,
            last_failure: None,
            last_success: None,
        }
    }

    /// The identity that counts now.
    #[must_use]
    pub fn identity(&self) -> Option<&DeviceIdentity> {
        self.current.as_ref().map(|current| &current.identity)
    }

    /// Returns the work that is under way.
    #[must_use]
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Failed attempts since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Returns the failure of the last attempt, until an attempt succeeds.
    #[must_use]
    pub fn last_failure(&self) -> Option<&Failure> {
        self.last_failure.as_ref()
    }

    /// Returns true if the stored identity came from the source that is configured now.
    fn is_from_configured_source(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.source == self.source)
    }

    /// Begins an attempt. Only called when nothing is under way.
    fn begin(&mut self, now: Now) -> Vec<Action> {
        match &self.source {
            Source::None => Vec::new(),
            Source::Manual { identity } => {
                let identity = identity.clone();
                self.replace(identity, now)
            }
            Source::Dps { .. } => {
                self.activity = Activity::Asking { since: now.monotonic, operation: None };
                vec![Action::Register]
            }
        }
    }

    /// A complete identity is there; it counts once it is stored.
    fn replace(&mut self, identity: DeviceIdentity, now: Now) -> Vec<Action> {
        let replacement =
            Provisioned { identity, source: self.source.clone(), obtained_at: now.wall };
        self.activity = Activity::Storing { replacement: replacement.clone() };
        vec![Action::Store(replacement)]
    }

    /// An attempt that began at `since` failed.
    fn fail(&mut self, failure: Failure, since: Duration, now: Now) -> Vec<Action> {
        let asked = failure.retry_after.unwrap_or_default().min(self.limits.longest_retry_after);
        let longest = if failure.refused {
            self.limits.longest_pause_refused
        } else {
            self.limits.longest_pause_unreachable
        };
        let pause = Backoff::new(self.limits.first_pause, longest)
            .spread(self.failures, now.random)
            .max(asked);
        self.failures = self.failures.saturating_add(1);
        let until = now.monotonic.saturating_add(pause);
        let not_before = now.monotonic.saturating_add(asked);
        self.activity = Activity::Pausing { since, until, not_before };
        self.last_failure = Some(failure.clone());
        vec![Action::Report(failure), Action::WakeAt(until)]
    }

    /// Somebody or something wants a new registration now.
    fn hasten(&mut self, now: Now) -> Vec<Action> {
        match self.activity.clone() {
            Activity::Idle => self.begin(now),
            // One is under way: its outcome is the answer to this wish, too.
            Activity::Asking { .. } | Activity::Waiting { .. } | Activity::Storing { .. } => {
                Vec::new()
            }
            // Earlier than planned, but never so early that repeated wishes make a
            // hammer.
            Activity::Pausing { since, until, not_before } => {
                let until =
                    until.min(since.saturating_add(self.limits.first_pause).max(not_before));
                if until <= now.monotonic {
                    return self.begin(now);
                }
                self.activity = Activity::Pausing { since, until, not_before };
                vec![Action::WakeAt(until)]
            }
        }
    }
}

/// Least pause between two calls to a service, or two attempts of one call, whatever the
/// service asks for.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// The pause before a call that failed is tried again, if the service asks for `asked`.
#[must_use]
pub fn call_pause(asked: Option<Duration>) -> Duration {
    asked.unwrap_or_default().max(LEAST_PAUSE)
}

/// The pause before a registration is asked about again, if the service asks for `asked`.
/// A service that answers "at once" for ever makes no hammer of this device, and one that
/// answers "next year" loses no device.
#[must_use]
pub fn poll_pause(asked: Option<Duration>, limits: &Limits) -> Duration {
    // Tests have a device that polls fast; then it may.
    let least = LEAST_PAUSE.min(limits.poll_interval);
    asked.unwrap_or(limits.poll_interval).min(limits.longest_retry_after).max(least)
}

/// Returns the state and the actions that follow from `event` at `now`.
///
/// An event that does not fit the state (an answer nobody waits for, a timer that was
/// overtaken) changes nothing.
#[must_use]
pub fn step(mut state: State, event: Event, now: Now) -> (State, Vec<Action>) {
    let actions = match (event, state.activity.clone()) {
        (Event::Started, Activity::Idle) => {
            let mut actions = Vec::new();
            if let Some(current) = &state.current {
                actions.push(Action::Serve { identity: current.identity.clone(), replaced: false });
            }
            if !state.is_from_configured_source()
                || state.mode == ReprovisioningMode::AlwaysOnStartup
            {
                actions.extend(state.begin(now));
            }
            actions
        }
        (Event::ReprovisionRequested, _) => state.hasten(now),
        // The identity stays in use meanwhile: a hub that errs must not take the device
        // down.
        (Event::HubRefusedDevice, _) => match (state.mode, &state.source) {
            (
                ReprovisioningMode::Dynamic | ReprovisioningMode::AlwaysOnStartup,
                Source::Dps { .. },
            ) => {
                let recently = state
                    .last_success
                    .is_some_and(|last| now.monotonic < last + state.limits.refusal_gap);
                match state.activity {
                    Activity::Idle if !recently => state.begin(now),
                    // Automatic wishes shorten no pause.
                    _ => Vec::new(),
                }
            }
            _ => Vec::new(),
        },
        (Event::ClockStepped, Activity::Pausing { .. }) => {
            state.failures = 0;
            state.hasten(now)
        }
        (Event::Woken, Activity::Waiting { since, operation, until }) if until <= now.monotonic => {
            state.activity = Activity::Asking { since, operation: Some(operation.clone()) };
            vec![Action::Poll { operation }]
        }
        (Event::Woken, Activity::Pausing { until, .. }) if until <= now.monotonic => {
            state.begin(now)
        }
        (Event::Woken, Activity::Waiting { until, .. } | Activity::Pausing { until, .. }) => {
            vec![Action::WakeAt(until)]
        }
        (Event::Assigning { operation, retry_after }, Activity::Asking { since, .. }) => {
            let until = now.monotonic.saturating_add(poll_pause(retry_after, &state.limits));
            if until > since.saturating_add(state.limits.overall) {
                let reason = format!(
                    "the provisioning service did not assign an identity within {} s",
                    state.limits.overall.as_secs()
                );
                state.fail(Failure { refused: true, reason, retry_after }, since, now)
            } else {
                state.activity = Activity::Waiting { since, operation, until };
                vec![Action::WakeAt(until)]
            }
        }
        (Event::Assigned(identity), Activity::Asking { .. }) => state.replace(identity, now),
        (Event::Failed(failure), Activity::Asking { since, .. }) => state.fail(failure, since, now),
        (Event::Stored, Activity::Storing { replacement }) => {
            let replaced = state.identity().is_some_and(|old| *old != replacement.identity);
            let identity = replacement.identity.clone();
            state.current = Some(replacement);
            state.activity = Activity::Idle;
            state.failures = 0;
            state.last_failure = None;
            state.last_success = Some(now.monotonic);
            vec![Action::Serve { identity, replaced }]
        }
        (Event::StoreFailed { reason }, Activity::Storing { .. }) => {
            let failure = Failure { refused: false, reason, retry_after: None };
            state.fail(failure, now.monotonic, now)
        }
        _ => Vec::new(),
    };
    (state, actions)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            registration_id: "press-04".into(),
        }
    }

    fn stored(device: &str, source: Source) -> Provisioned {
        Provisioned { identity: identity(device), source, obtained_at: 1 }
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
        let state =
            fresh(Some(stored("press-04", dps("0ne1"))), ReprovisioningMode::AlwaysOnStartup);
        let (_, actions) = step(state, Event::Started, at(0));
        assert_eq!(
            actions,
            [Action::Serve { identity: identity("press-04"), replaced: false }, Action::Register]
        );
    }

    #[test]
    fn a_new_scope_in_the_configuration_is_taken_at_the_next_start_while_the_old_identity_serves() {
        let state =
            fresh(Some(stored("press-04", dps("0ne-old"))), ReprovisioningMode::OnErrorOnly);
        let (state, actions) = step(state, Event::Started, at(0));
        assert_eq!(actions.last(), Some(&Action::Register));
        let (state, _) = step(state, refusal("unknown scope"), at(1));
        assert_eq!(state.identity(), Some(&identity("press-04")));
    }

    #[test]
    fn a_device_is_registered_polled_as_the_service_asks_stored_and_only_then_served() {
        let (state, actions) =
            step(fresh(None, ReprovisioningMode::Dynamic), Event::Started, at(0));
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
        let (_, actions) = step(state, Event::ReprovisionRequested, at(30));
        assert_eq!(actions, [Action::WakeAt(Duration::from_secs(120))]);
    }

    #[test]
    fn a_request_shortens_a_long_pause_but_not_below_the_least_time_between_attempts() {
        let mut state = step(fresh(None, ReprovisioningMode::Dynamic), Event::Started, at(0)).0;
        state.failures = 8;
        let (state, _) = step(state, refusal("disabled"), at(1));
        let (state, actions) = step(state, Event::ReprovisionRequested, at(2));
        assert_eq!(actions, [Action::WakeAt(Duration::from_secs(5))]);
        let (_, actions) = step(state, Event::ReprovisionRequested, at(5));
        assert_eq!(actions, [Action::Register]);
    }

    #[test]
    fn when_the_hub_refuses_the_device_it_registers_anew_except_in_on_error_only_mode() {
        for (mode, registers) in
            [(ReprovisioningMode::Dynamic, true), (ReprovisioningMode::OnErrorOnly, false)]
        {
            let state =
                step(fresh(Some(stored("press-04", dps("0ne1"))), mode), Event::Started, at(0)).0;
            let (state, actions) = step(state, Event::HubRefusedDevice, at(1));
            assert_eq!(actions.contains(&Action::Register), registers, "{mode:?}");
            assert_eq!(state.identity(), Some(&identity("press-04")), "{mode:?}");
        }
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
        assert_eq!(step(state, Event::ReprovisionRequested, at(1)).1, []);
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
            1 => Just(Event::ReprovisionRequested),
            1 => Just(Event::HubRefusedDevice),
            1 => Just(Event::ClockStepped),
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
                        Action::Store(_) | Action::Serve { .. } | Action::Report(_) => {}
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
}
