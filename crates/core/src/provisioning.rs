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

mod budget;
mod proof;
mod stand;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::id::DeviceId;
use crate::settings::{CredentialKind, Provisioning, ReprovisioningMode};

pub use budget::Budget;
pub use proof::{Proof, judge};
pub use stand::Stand;

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
        /// The registration's name; absent where a certificate's common name counts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        registration_id: Option<String>,
        /// Kind of the proof that the service knows the device by.
        #[serde(default)]
        credential: CredentialKind,
        /// True if the service issues the certificate that the hub knows the device by.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        operational: bool,
    },
    /// There is none: local identities only.
    None,
}

impl Source {
    /// The source that the settings name.
    #[must_use]
    pub fn of(settings: &Provisioning) -> Self {
        match settings {
            Provisioning::None => Self::None,
            Provisioning::Manual { hub, device_id, .. } => Self::Manual {
                identity: DeviceIdentity { hub: hub.clone(), device_id: device_id.clone() },
            },
            Provisioning::Dps {
                endpoint,
                scope_id,
                registration_id,
                credential,
                operational,
                ..
            } => Self::Dps {
                endpoint: endpoint.clone(),
                scope_id: scope_id.clone(),
                registration_id: registration_id.clone(),
                credential: credential.kind(),
                operational: operational.is_some(),
            },
        }
    }
}

/// The record on the disk: an identity and its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioned {
    /// The identity.
    pub identity: DeviceIdentity,
    /// The source of the identity. If the configuration names another source now, a
    /// replacement is asked for.
    pub source: Source,
    /// SHA-256 thumbprint of the certificate that the device showed for it; `None` where
    /// it showed none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// SHA-256 thumbprint of the certificate that the service issued with it; `None`
    /// where it was asked for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operational: Option<String>,
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
    /// Most calls to the service at once, and most in an hour after that.
    pub calls_per_hour: u32,
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
            calls_per_hour: 60,
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

/// Somebody who may ask for a new registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requester {
    /// A person, by hand.
    Operator,
    /// The module runtime, for its agent.
    Runtime,
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
    ReprovisionRequested(Requester),
    /// The hub answered the device as one that it knows.
    HubAcceptedDevice,
    /// The hub says that it does not know the device (any more), or refuses its
    /// credential.
    HubRefusedDevice,
    /// The device's certificate is another one than before: its SHA-256 thumbprint, or
    /// `None` if there is none.
    CertificateChanged(Option<String>),
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
    /// Answer to [`Action::Register`], [`Action::Poll`] or [`Action::Prove`]: no identity
    /// this time.
    Failed(Failure),
    /// Answer to [`Action::Prove`]: the hub takes the certificate with this SHA-256
    /// thumbprint, or there is nothing to lose with it ([`judge`]).
    Proven {
        /// Thumbprint of the certificate.
        certificate: String,
    },
    /// The certificate that the service issues is missing, or its plan has it renewed.
    CertificateDue,
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
    /// Try the certificate that came with an assignment, at the assigned hub. The old
    /// identity and its certificate stay in use.
    Prove {
        /// The assigned identity.
        identity: DeviceIdentity,
    },
    /// Put the certificate that was proven in its place, then write this to the state
    /// file, whole or not at all.
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
    /// The certificate of an assigned identity is being tried.
    Proving {
        /// The time at which this attempt began.
        since: Duration,
        /// The identity.
        identity: DeviceIdentity,
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
    /// Thumbprint of the certificate that is there now.
    certificate: Option<String>,
    /// Thumbprint of the certificate that was there when the attempt under way began.
    shown: Option<String>,
    /// Thumbprint of the certificate that the service issued and that was there at the
    /// start.
    operational: Option<String>,
    /// True once the hub has answered the device since the start.
    is_accepted: bool,
    budget: Budget,
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
            certificate: None,
            shown: None,
            operational: None,
            is_accepted: false,
            budget: Budget::new(limits.calls_per_hour),
        }
    }

    /// The same with the device's certificate: its SHA-256 thumbprint.
    #[must_use]
    pub fn with_certificate(self, thumbprint: Option<String>) -> Self {
        Self { certificate: thumbprint, ..self }
    }

    /// The same with the certificate for the hub that the service issued: its SHA-256
    /// thumbprint.
    #[must_use]
    pub fn with_operational(self, thumbprint: Option<String>) -> Self {
        Self { operational: thumbprint, ..self }
    }

    /// The identity that counts now.
    #[must_use]
    pub fn identity(&self) -> Option<&DeviceIdentity> {
        self.current.as_ref().map(|current| &current.identity)
    }

    /// Returns the SHA-256 thumbprint of the device's certificate.
    #[must_use]
    pub fn certificate(&self) -> Option<&str> {
        self.certificate.as_deref()
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

    /// Returns true if the certificate is not the one that the identity was obtained
    /// with. Where the service knows the device by a certificate, it tells the hub which
    /// one it was shown: the hub refuses another one.
    fn has_new_certificate(&self) -> bool {
        // The hub knows another one where the service issues that.
        let by_certificate = matches!(
            self.source,
            Source::Dps { credential: CredentialKind::X509, operational: false, .. }
        );
        by_certificate
            && self.certificate.is_some()
            && self.current.as_ref().is_some_and(|current| current.certificate != self.certificate)
    }

    /// Returns true if the service issues the certificate for the hub.
    fn is_operational(&self) -> bool {
        matches!(self.source, Source::Dps { operational: true, .. })
    }

    /// Returns true if the certificate that the service issued is not the one that came
    /// with the identity: it is lost, or a crash came between the two.
    fn has_other_operational(&self) -> bool {
        self.is_operational()
            && self.current.as_ref().is_some_and(|current| {
                current.operational.is_none() || current.operational != self.operational
            })
    }

    /// Begins an attempt. Only called when nothing is under way.
    fn begin(&mut self, now: Now) -> Vec<Action> {
        match &self.source {
            Source::None => Vec::new(),
            Source::Manual { identity } => {
                let identity = identity.clone();
                self.replace(identity, None, now)
            }
            Source::Dps { .. } => {
                let since = now.monotonic;
                if let Err(until) = self.budget.take(since) {
                    self.activity = Activity::Pausing { since, until, not_before: until };
                    return vec![Action::WakeAt(until)];
                }
                self.shown.clone_from(&self.certificate);
                self.activity = Activity::Asking { since, operation: None };
                vec![Action::Register]
            }
        }
    }

    /// A complete identity is there; it counts once it is stored.
    fn replace(
        &mut self,
        identity: DeviceIdentity,
        operational: Option<String>,
        now: Now,
    ) -> Vec<Action> {
        let certificate = match self.source {
            Source::Dps { credential: CredentialKind::X509, .. } => self.shown.clone(),
            _ => None,
        };
        let (source, obtained_at) = (self.source.clone(), now.wall);
        let replacement = Provisioned { identity, source, certificate, operational, obtained_at };
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
            Activity::Asking { .. }
            | Activity::Waiting { .. }
            | Activity::Proving { .. }
            | Activity::Storing { .. } => Vec::new(),
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
                || state.has_new_certificate()
                || state.has_other_operational()
            {
                actions.extend(state.begin(now));
            }
            actions
        }
        // A plan shortens no pause.
        (Event::CertificateDue, Activity::Idle) if state.is_operational() => state.begin(now),
        // This mode leaves it to people.
        (Event::ReprovisionRequested(Requester::Runtime), _)
            if state.mode == ReprovisioningMode::OnErrorOnly =>
        {
            Vec::new()
        }
        (Event::ReprovisionRequested(_), _) => state.hasten(now),
        (Event::HubAcceptedDevice, _) => {
            state.is_accepted = true;
            Vec::new()
        }
        (Event::CertificateChanged(thumbprint), activity) => {
            state.certificate = thumbprint;
            match activity {
                Activity::Idle if state.has_new_certificate() => state.begin(now),
                // The one that was missed, or one that is taken where another was
                // refused.
                Activity::Pausing { .. } if state.certificate.is_some() => {
                    state.failures = 0;
                    state.hasten(now)
                }
                _ => Vec::new(),
            }
        }
        // The identity stays in use meanwhile: a hub that errs must not take the device
        // down.
        (Event::HubRefusedDevice, _) => match &state.source {
            // `OnErrorOnly` is for the first meeting after a start: a device that cannot
            // get at its hub at all.
            Source::Dps { .. }
                if state.mode != ReprovisioningMode::OnErrorOnly || !state.is_accepted =>
            {
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
            match state.budget.take(now.monotonic) {
                Ok(()) => {
                    let asked = Some(operation.clone());
                    state.activity = Activity::Asking { since, operation: asked };
                    vec![Action::Poll { operation }]
                }
                Err(until) => {
                    state.activity = Activity::Waiting { since, operation, until };
                    vec![Action::WakeAt(until)]
                }
            }
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
        (Event::Assigned(identity), Activity::Asking { since, .. }) if state.is_operational() => {
            state.activity = Activity::Proving { since, identity: identity.clone() };
            vec![Action::Prove { identity }]
        }
        (Event::Assigned(identity), Activity::Asking { .. }) => state.replace(identity, None, now),
        (Event::Proven { certificate }, Activity::Proving { identity, .. }) => {
            state.replace(identity, Some(certificate), now)
        }
        (
            Event::Failed(failure),
            Activity::Asking { since, .. } | Activity::Proving { since, .. },
        ) => state.fail(failure, since, now),
        (Event::Stored, Activity::Storing { replacement }) => {
            let replaced = state.identity().is_some_and(|old| *old != replacement.identity);
            let identity = replacement.identity.clone();
            state.operational.clone_from(&replacement.operational);
            state.current = Some(replacement);
            state.activity = Activity::Idle;
            state.failures = 0;
            state.last_failure = None;
            state.last_success = Some(now.monotonic);
            // The hub that assigned is another one, or knows the device anew.
            state.is_accepted = false;
            let mut actions = vec![Action::Serve { identity, replaced }];
            if state.has_new_certificate() {
                actions.extend(state.begin(now));
            }
            actions
        }
        (Event::StoreFailed { reason }, Activity::Storing { .. }) => {
            let failure = Failure { refused: false, reason, retry_after: None };
            state.fail(failure, now.monotonic, now)
        }
        _ => Vec::new(),
    };
    (state, actions)
}
