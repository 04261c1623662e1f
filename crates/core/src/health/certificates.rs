//! Certificates near their end.

use time::{Duration, OffsetDateTime};

use super::Code;

/// A certificate that ends sooner is told of, if it lives long.
const FEW_DAYS: Duration = Duration::days(14);

/// Judges a certificate by its validity. It should be renewed in the last fifth of its
/// life: if less than the last tenth is left, that has failed.
#[must_use]
pub fn judge(
    begin: OffsetDateTime,
    end: OffsetDateTime,
    now: OffsetDateTime,
) -> Option<(Code, String)> {
    if end <= now {
        return Some((Code::CertificateExpired, format!("it ended {}", day(end))));
    }
    let left = end - now;
    if left < FEW_DAYS.min((end - begin) / 10) {
        let words = match (left.whole_days(), left.whole_hours()) {
            (0, 0) => format!("{} minutes", left.whole_minutes()),
            (0, hours) => format!("{hours} hours"),
            (days, _) => format!("{days} days"),
        };
        return Some((Code::CertificateEndsSoon, format!("it ends in {words}, {}", day(end))));
    }
    None
}

fn day(time: OffsetDateTime) -> String {
    let format =
        time::macros::format_description!("on [year]-[month]-[day] at [hour]:[minute] UTC");
    time.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_certificate_is_told_of_in_the_last_tenth_of_its_life_and_in_the_last_days_of_a_long_one() {
        let begin = datetime!(2026-01-01 0:00 UTC);
        let judged =
            |life: Duration, left: Duration| judge(begin, begin + life, begin + life - left);
        assert_eq!(judged(Duration::days(90), Duration::days(10)), None);
        let soon =
            (Code::CertificateEndsSoon, "it ends in 8 days, on 2026-04-01 at 00:00 UTC".to_owned());
        assert_eq!(judged(Duration::days(90), Duration::days(8)), Some(soon));
        assert_eq!(judged(Duration::days(3650), Duration::days(15)), None);
        assert_eq!(
            judged(Duration::days(3650), Duration::days(13)).map(|it| it.0),
            Some(Code::CertificateEndsSoon)
        );
        assert_eq!(
            judged(Duration::hours(1), Duration::minutes(20)),
            None,
            "it lives for an hour, and is renewed in time"
        );
        let over = (Code::CertificateExpired, "it ended on 2026-01-02 at 00:00 UTC".to_owned());
        assert_eq!(judged(Duration::days(1), Duration::ZERO), Some(over));
    }

    proptest! {
        #[test]
        fn what_has_ended_is_never_passed_over_at_any_time_of_any_clock(
            begin in -60_000_000_000_i64..200_000_000_000, life in -1_000_000_i64..10_000_000_000, now in -60_000_000_000_i64..200_000_000_000
        ) {
            let time = |seconds: i64| OffsetDateTime::from_unix_timestamp(seconds).unwrap();
            let judged = judge(time(begin), time(begin + life), time(now));
            prop_assert_eq!(begin + life <= now, judged.is_some_and(|(code, _)| code == Code::CertificateExpired));
        }
    }
}
