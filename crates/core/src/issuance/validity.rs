//! Begin and end of a certificate.

use time::{Duration, OffsetDateTime};

/// Time before the present at which a certificate begins. A day covers every time zone,
/// and with it a clock that was set in local time, on this device or on a peer.
pub const SLACK: Duration = Duration::DAY;
/// Days of validity where nothing is configured.
const DEFAULT_DAYS: u32 = 30;

/// Validity of the certificate that signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IssuerValidity {
    /// Its begin.
    pub not_before: OffsetDateTime,
    /// Its end.
    pub not_after: OffsetDateTime,
}

/// Validity of the certificate that is issued, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// Begin.
    pub not_before: OffsetDateTime,
    /// End.
    pub not_after: OffsetDateTime,
}

impl Term {
    /// Returns whether a certificate of this validity is valid at this moment.
    #[must_use]
    pub fn contains(&self, now: OffsetDateTime) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

/// Decides a certificate's validity: inside the issuer's, and no longer than configured
/// or wished.
///
/// `earliest` is the earliest moment that the present can be. A certificate that is made
/// while the clock is behind that moment lasts for its days after that moment, so that a
/// device that boots in 1970 needs no other one when its clock is set. This is meant for
/// CAs. For others `earliest` is `now`.
///
/// `days` are those that are configured for the id. A wished end that is not in the
/// future cannot be met and is passed over: a module whose clock is off still gets a
/// certificate.
#[must_use]
pub fn validity(
    now: OffsetDateTime,
    days: Option<u32>,
    earliest: OffsetDateTime,
    wished_end: Option<OffsetDateTime>,
    issuer: Option<IssuerValidity>,
) -> Term {
    let whole = |moment: OffsetDateTime| moment.replace_nanosecond(0).unwrap_or(moment);
    let now = whole(now);
    let days = days.unwrap_or(DEFAULT_DAYS).max(1);
    let mut term = Term {
        // Certificates know no time before 1970, which is where clocks without a battery
        // begin.
        not_before: now.saturating_sub(SLACK).max(OffsetDateTime::UNIX_EPOCH),
        not_after: now.max(whole(earliest)).saturating_add(Duration::days(days.into())),
    };
    if let Some(wished) = wished_end.map(whole).filter(|end| *end > now) {
        term.not_after = term.not_after.min(wished);
    }
    if let Some(issuer) = issuer {
        term.not_before = term.not_before.max(issuer.not_before);
        term.not_after = term.not_after.min(issuer.not_after);
    }
    term
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_certificate_is_valid_now_and_never_longer_than_its_issuer_its_setting_or_the_wish(
            now in 0i64..4_000_000_000,
            nanosecond in 0u32..1_000_000_000,
            days in proptest::option::of(0u32..40_000),
            wish in proptest::option::of(-100_000_000i64..1_000_000_000),
            issuer in proptest::option::of((0i64..1_000_000_000, 1i64..1_000_000_000)),
            earliest in 0i64..4_000_000_000,
        ) {
            let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap();
            let issuer = issuer.map(|(before, after)| IssuerValidity {
                not_before: at(now - before), not_after: at(now + after),
            });
            let exact = at(now).replace_nanosecond(nanosecond).unwrap();
            let wished = wish.map(|wish| at(now + wish));
            let term = validity(exact, days, at(earliest), wished, issuer);
            prop_assert!(term.not_before <= at(now) && at(now) < term.not_after);
            prop_assert!(term.not_before >= OffsetDateTime::UNIX_EPOCH || issuer.is_some());
            prop_assert_eq!((term.not_before.nanosecond(), term.not_after.nanosecond()), (0, 0));
            let latest = Duration::days(i64::from(days.unwrap_or(30).max(1)));
            prop_assert!(term.not_after - at(now).max(at(earliest)) <= latest);
            if let Some(issuer) = issuer {
                prop_assert!(issuer.not_before <= term.not_before && term.not_after <= issuer.not_after);
            }
            if let Some(wished) = wished.filter(|wished| *wished > at(now)) {
                prop_assert!(term.not_after <= wished);
            }
        }
    }
}
