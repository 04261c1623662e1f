//! Moments as the options name them.

use std::str::FromStr;

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

/// A moment: at a time, or so long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    At(i64),
    Ago(Duration),
}

impl Moment {
    /// Seconds since the epoch.
    pub(super) fn seconds(self, now: OffsetDateTime) -> i64 {
        match self {
            Self::At(seconds) => seconds,
            Self::Ago(duration) => now.unix_timestamp().saturating_sub(duration.whole_seconds()),
        }
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const WANTED: &str =
            "expected a duration (\"90m\", \"1d 2h\"), a time (RFC 3339) or Unix seconds";
        if let Ok(seconds) = text.parse() {
            return Ok(Self::At(seconds));
        }
        if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
            return Ok(Self::At(time.unix_timestamp()));
        }
        let mut total = 0_i64;
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(WANTED.to_owned());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(WANTED)?;
            let (number, after) = rest.split_at(digits);
            let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let (unit, after) = after.split_at(end);
            let unit = match unit {
                "s" | "sec" | "second" | "seconds" => 1,
                "m" | "min" | "minute" | "minutes" => 60,
                "h" | "hr" | "hour" | "hours" => 3600,
                "d" | "day" | "days" => 86_400,
                "w" | "week" | "weeks" => 604_800,
                _ => return Err(WANTED.to_owned()),
            };
            let number: i64 = number.parse().map_err(|_| WANTED)?;
            let seconds = number.checked_mul(unit).ok_or(WANTED)?;
            total = total.checked_add(seconds).ok_or(WANTED)?;
            rest = after.trim_start();
        }
        Ok(Self::Ago(Duration::seconds(total)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_every_form_and_others_refused() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        for (text, ago) in
            [("90m", 5400), ("1d", 86_400), ("1h 20min", 4800), ("2weeks", 1_209_600)]
        {
            let moment: Moment = text.parse().unwrap();
            assert_eq!(moment.seconds(now), 1_800_000_000 - ago, "{text}");
        }
        assert_eq!("1700000000".parse::<Moment>().unwrap().seconds(now), 1_700_000_000);
        assert_eq!("2027-01-01T00:00:00Z".parse::<Moment>().unwrap().seconds(now), 1_798_761_600);
        for text in ["", "d", "1", "yesterday", "1 fortnight", "99999999999999999999d", "1d-"] {
            let read = text.parse::<Moment>();
            assert!(read.is_err() || text == "1", "{text}: {read:?}");
        }
    }
}
