//! The Edge CA's certificate under a clock that moves: the moment at which it is made
//! anew, and the pace of attempts.
//!
//! Signing needs a certificate that is valid *now*. The certificate begins with slack in
//! the past, so that a clock that goes back a little (a real-time clock in local time)
//! changes nothing. The certificate is made anew the moment it is not valid, whatever
//! moved the clock there. Its key stays.

use std::time::Duration;

use time::OffsetDateTime;

use crate::backoff::Backoff;
use crate::clock::{Reading, step};
use crate::issuance::Term;
use crate::settings::OnNewKey;

/// Least time between two attempts to make the certificate, however many callers miss
/// one.
pub const LEAST_GAP: Duration = Duration::from_millis(200);
/// Pause after the first failed attempt; it doubles with each further one.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause after failures.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Urgency of a new certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// None: the certificate is good for a while.
    Nothing,
    /// Low: the certificate is in the last fifth of its life. A new one is made in the
    /// background.
    Soon,
    /// High: the certificate is not valid now, so that nothing can be signed with it.
    Now,
}

/// Decides about a certificate by its validity. `earliest` is the earliest moment that
/// the present can be ([`crate::clock::earliest`]). A clock that shows less cannot tell
/// how old a certificate is.
#[must_use]
pub fn due(validity: Term, now: OffsetDateTime, earliest: OffsetDateTime) -> Due {
    if !validity.contains(now) {
        return Due::Now;
    }
    let life = validity.not_after - validity.not_before;
    if now >= earliest && now - validity.not_before > life * 4 / 5 {
        Due::Soon
    } else {
        Due::Nothing
    }
}

/// Consequence for the modules of a look at the Edge CA's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consequence {
    /// None: the modules know the key, or the operator wants it so.
    Nothing,
    /// Operators are told.
    Tell,
    /// Modules that run are restarted.
    Restart,
}

/// Decides about the Edge CA's key. `known` is the one that the modules know: none, if
/// the device has no modules from an earlier time.
#[must_use]
pub fn consequence(known: Option<&str>, key: &str, wanted: OnNewKey) -> Consequence {
    match (known, wanted) {
        (None, _) | (_, OnNewKey::None) => Consequence::Nothing,
        (Some(known), _) if known == key => Consequence::Nothing,
        (Some(_), OnNewKey::Notify) => Consequence::Tell,
        (Some(_), OnNewKey::Restart) => Consequence::Restart,
    }
}

/// The attempts to make the certificate. Their bounds are on the monotonic clock. A step
/// of the wall clock makes void what was learned from earlier failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attempts {
    last: Option<Reading>,
    failures: u32,
}

impl Attempts {
    /// Returns the time for which the next attempt has to wait.
    #[must_use]
    pub fn wait(&self, now: Reading) -> Duration {
        let Some(last) = self.last else { return Duration::ZERO };
        let gap = match self.failures.checked_sub(1) {
            Some(earlier) if step(last, now).is_none() => {
                Backoff::new(FIRST_PAUSE, LONGEST_PAUSE).whole(earlier)
            }
            Some(_) | None => LEAST_GAP,
        };
        gap.saturating_sub(now.monotonic.saturating_sub(last.monotonic))
    }

    /// Notes an attempt that began now.
    pub fn begin(&mut self, now: Reading) {
        if self.last.is_some_and(|last| step(last, now).is_some()) {
            self.failures = 0;
        }
        self.last = Some(now);
    }

    /// Notes the end of that attempt.
    pub fn end(&mut self, succeeded: bool) {
        self.failures = if succeeded { 0 } else { self.failures.saturating_add(1) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::BUILT;
    use crate::issuance::{IssuerValidity, validity};

    fn time(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    const DAY: i64 = 86_400;

    #[test]
    fn a_ca_is_renewed_in_the_last_fifth_of_its_life_and_when_it_is_not_valid() {
        let (begin, end) = (time(BUILT), time(BUILT + 100 * DAY));
        let validity = Term { not_before: begin, not_after: end };
        let at = |days| due(validity, begin + time::Duration::days(days), time(BUILT));
        assert_eq!(
            (at(0), at(79), at(81), at(100)),
            (Due::Nothing, Due::Nothing, Due::Soon, Due::Now)
        );
        assert_eq!(
            due(validity, begin - time::Duration::SECOND, time(BUILT)),
            Due::Now,
            "not valid yet"
        );
        let inverted = Term { not_before: end, not_after: begin };
        assert_eq!(due(inverted, begin, time(BUILT)), Due::Now);
    }

    #[test]
    fn a_ca_that_is_made_in_1970_is_valid_then_and_when_the_clock_is_set() {
        let made = validity(time(0), Some(30), time(BUILT), None, None);
        assert_eq!(due(made, time(0), time(BUILT)), Due::Nothing);
        assert_eq!(due(made, time(BUILT - 1), time(BUILT)), Due::Nothing);
        assert!(made.contains(time(BUILT + 29 * DAY)));
        // It is as old as the epoch then, so that an ordinary one takes its place when
        // there is time for that.
        assert_eq!(due(made, time(BUILT), time(BUILT)), Due::Soon);
        // A module's certificate is not stretched like that.
        assert!(!validity(time(0), Some(30), time(0), None, None).contains(time(BUILT)));
    }

    #[test]
    fn only_another_key_than_the_modules_know_has_consequences() {
        for wanted in [OnNewKey::Restart, OnNewKey::Notify, OnNewKey::None] {
            assert_eq!(consequence(None, "new", wanted), Consequence::Nothing);
            assert_eq!(consequence(Some("same"), "same", wanted), Consequence::Nothing);
        }
        let of = |wanted| consequence(Some("old"), "new", wanted);
        assert_eq!(of(OnNewKey::Restart), Consequence::Restart);
        assert_eq!(of(OnNewKey::Notify), Consequence::Tell);
        assert_eq!(of(OnNewKey::None), Consequence::Nothing);
    }

    #[test]
    fn a_wish_that_lies_behind_is_passed_over_and_the_issuer_bounds_everything() {
        let now = time(BUILT + 50 * DAY);
        let ends =
            |wanted: Option<i64>| validity(now, Some(30), now, wanted.map(time), None).not_after;
        assert_eq!(ends(Some(0)), time(BUILT + 80 * DAY));
        assert_eq!(ends(Some(BUILT + 51 * DAY)), time(BUILT + 51 * DAY));
        let issuer = IssuerValidity {
            not_before: now - time::Duration::HOUR,
            not_after: now + time::Duration::HOUR,
        };
        let bounded = validity(now, Some(30), now, None, Some(issuer));
        assert_eq!((bounded.not_before, bounded.not_after), (issuer.not_before, issuer.not_after));
    }

    #[test]
    fn failures_slow_down_and_a_step_of_the_clock_forgives_them() {
        let reading = |seconds, wall| Reading { monotonic: Duration::from_secs(seconds), wall };
        let mut attempts = Attempts::default();
        assert_eq!(attempts.wait(reading(0, 0)), Duration::ZERO);
        for doubled in [1, 2, 4, 8] {
            attempts.begin(reading(0, 0));
            attempts.end(false);
            assert_eq!(attempts.wait(reading(0, 0)), FIRST_PAUSE * doubled);
        }
        assert_eq!(attempts.wait(reading(0, 1000)), LEAST_GAP, "the clock moved, and time did not");
        assert_eq!(attempts.wait(reading(1, 1000)), Duration::ZERO);
        attempts.begin(reading(1, 1000));
        attempts.end(false);
        assert_eq!(attempts.wait(reading(1, 1000)), FIRST_PAUSE, "counted anew");
        attempts.end(true);
        assert_eq!(attempts.wait(reading(1, 1000)), LEAST_GAP);
    }

    /// A step of the clock, and how long it then goes on.
    fn walk() -> impl Strategy<Value = Vec<(i64, i64)>> {
        let step = prop_oneof![
            -3600_i64..3600,
            -3 * DAY..3 * DAY,
            -800 * DAY..800 * DAY,
            // Back to the epoch: the battery is empty.
            Just(-100_000 * DAY),
            Just(0),
        ];
        prop::collection::vec((step, 0_i64..40 * DAY), 1..40)
    }

    /// Walks a clock from the build's date, and calls with each moment.
    fn walked(steps: Vec<(i64, i64)>, mut visit: impl FnMut(OffsetDateTime)) {
        let mut wall = BUILT;
        for (step, goes_on) in steps {
            wall = (wall + step).clamp(0, crate::clock::LATEST);
            visit(time(wall));
            wall += goes_on;
            visit(time(wall));
        }
    }

    proptest! {
        #[test]
        fn after_any_walk_of_the_clock_what_is_signed_with_is_valid_at_that_moment(
            steps in walk(), days in 1_u32..400, last_good in prop::option::of(BUILT..BUILT + 400 * DAY),
        ) {
            let earliest = time(crate::clock::earliest(last_good));
            let mut ca = validity(time(BUILT), Some(days), earliest, None, None);
            walked(steps, |now| {
                if due(ca, now, earliest) != Due::Nothing {
                    ca = validity(now, Some(days), earliest, None, None);
                }
                assert!(ca.contains(now), "{ca:?} {now}");
                // A new one is not at once due again at the same moment, or each look
                // would make another.
                let fresh = validity(now, Some(days), earliest, None, None);
                assert_ne!(due(fresh, now, earliest), Due::Now);
                let issuer = IssuerValidity { not_before: ca.not_before, not_after: ca.not_after };
                let leaf = validity(now, Some(30), now, None, Some(issuer));
                assert!(leaf.contains(now) && leaf.not_before >= ca.not_before && leaf.not_after <= ca.not_after);
            });
        }

        #[test]
        fn a_clock_that_goes_back_by_less_than_a_day_needs_no_other_certificate(
            begun in BUILT..BUILT + 1000 * DAY, days in 2_u32..400, back in 0..DAY,
        ) {
            let ca = validity(time(begun), Some(days), time(BUILT), None, None);
            prop_assert_eq!(due(ca, time(begun - back), time(BUILT)), Due::Nothing);
        }

        #[test]
        fn however_the_clock_walks_attempts_keep_their_distance_and_none_waits_for_ever(
            walk in prop::collection::vec((0_u64..5000, any::<i32>(), any::<bool>()), 1..200),
        ) {
            let (mut attempts, mut millis, mut wall) = (Attempts::default(), 0_u64, 0_i64);
            let mut last: Option<u64> = None;
            for (goes_on, moves, succeeds) in walk {
                millis += goes_on;
                wall += i64::from(moves);
                let now = Reading { monotonic: Duration::from_millis(millis), wall };
                let wait = attempts.wait(now);
                prop_assert!(wait <= LONGEST_PAUSE);
                if !wait.is_zero() {
                    continue;
                }
                prop_assert!(last.is_none_or(|last| millis - last >= 200));
                last = Some(millis);
                attempts.begin(now);
                attempts.end(succeeds);
            }
        }
    }
}
