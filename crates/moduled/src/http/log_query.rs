//! The query of the logs route (wire facts 2.6), with times beyond 2038.

use edgekeep_daemon::server::HttpError;
use edgekeep_runtime::logs::LogQuery;
use percent_encoding::percent_decode_str;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Reads the query's parameters; `now` is seconds since the epoch, for ages.
///
/// # Errors
/// 400 that names the parameter.
pub(crate) fn parse<'a>(
    parameter: impl Fn(&str) -> Option<&'a str>,
    now: i64,
) -> Result<LogQuery, HttpError> {
    let wrong = |name: &str| HttpError::bad_request(format!("invalid parameter: {name}"));
    let flag = |name: &'static str| match parameter(name) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(wrong(name)),
    };
    let moment = |name: &'static str| match parameter(name) {
        None => Ok(None),
        Some(text) => {
            // Existing clients encode these twice.
            let text = percent_decode_str(text).decode_utf8().map_err(|_| wrong(name))?;
            moment(&text, now).map(Some).ok_or_else(|| wrong(name))
        }
    };
    let tail = match parameter("tail") {
        None | Some("all") => None,
        Some(count) => Some(count.parse().map_err(|_| wrong("tail"))?),
    };
    Ok(LogQuery {
        follow: flag("follow")?,
        tail,
        since: moment("since")?.unwrap_or(0),
        until: moment("until")?,
        timestamps: flag("timestamps")?,
    })
}

/// RFC 3339, Unix seconds, or an age such as `1h 20m`: seconds since the epoch.
fn moment(text: &str, now: i64) -> Option<i64> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<i64>() {
        return (seconds >= 0).then_some(seconds);
    }
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Some(time.unix_timestamp().max(0));
    }
    age(text).map(|seconds| now.saturating_sub(seconds).max(0))
}

fn age(text: &str) -> Option<i64> {
    let mut total: i64 = 0;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: i64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..].trim_start();
        let end = unit.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(unit.len());
        let seconds = match &unit[..end] {
            "s" | "sec" | "secs" | "second" | "seconds" => 1,
            "m" | "min" | "mins" | "minute" | "minutes" => 60,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            _ => return None,
        };
        total = total.checked_add(count.checked_mul(seconds)?)?;
        rest = unit[end..].trim_start();
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ages_times_and_seconds_are_understood() {
        assert_eq!(moment("1h 20m", 10_000), Some(10_000 - 4800));
        assert_eq!(moment("90m", 10_000), Some(10_000 - 5400));
        assert_eq!(moment("1d", 10), Some(0), "older than the epoch is the epoch");
        assert_eq!(moment("2001-09-09T01:46:40Z", 0), Some(1_000_000_000));
        assert_eq!(moment("4102444800", 0), Some(4_102_444_800), "beyond 2038");
        for wrong in ["", "x", "1x", "m", "-5", "1h20", "yesterday"] {
            assert_eq!(moment(wrong, 10), None, "{wrong}");
        }
    }

    #[test]
    fn a_wrong_parameter_is_named() {
        for (name, value) in [
            ("follow", "yes"),
            ("tail", "-1"),
            ("since", "soon"),
            ("until", "%zz"),
            ("timestamps", "1"),
        ] {
            let error = parse(|asked| (asked == name).then_some(value), 0).unwrap_err();
            assert_eq!(error.message(), format!("invalid parameter: {name}"));
        }
    }

    #[test]
    fn twice_encoded_times_are_decoded() {
        let query =
            parse(|name| (name == "since").then_some("1970-01-01T00%3A00%3A05Z"), 0).unwrap();
        assert_eq!(query.since, 5);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,24}", now in any::<i64>()) {
            let _ = moment(&text, now);
        }
    }
}
