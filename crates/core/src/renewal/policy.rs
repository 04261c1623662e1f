//! Policy of renewals, as the operator writes it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Span, Window};

/// A point in the life of a certificate, or a time: `N%` of its life, `Nmin` or `Nday`
/// before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Margin {
    /// Percent of the life, 1 to 99.
    Percent(u8),
    /// Minutes.
    Minutes(u32),
    /// Days.
    Days(u32),
}

impl Margin {
    /// Returns the time in seconds, for a life of so many seconds.
    #[must_use]
    pub fn of(self, life: i64) -> i64 {
        match self {
            Self::Percent(percent) => {
                let part = i128::from(life.max(0)) * i128::from(percent) / 100;
                i64::try_from(part).unwrap_or(i64::MAX)
            }
            Self::Minutes(minutes) => i64::from(minutes) * 60,
            Self::Days(days) => i64::from(days) * 86_400,
        }
    }
}

impl FromStr for Margin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| digits.trim().parse::<u32>().ok().filter(|count| *count > 0);
        let percent = |count: u32| u8::try_from(count).ok().filter(|percent| *percent < 100);
        let read = if let Some(digits) = text.strip_suffix('%') {
            number(digits).and_then(percent).map(Self::Percent)
        } else if let Some(digits) = text.strip_suffix("min") {
            number(digits).map(Self::Minutes)
        } else {
            text.strip_suffix("day").and_then(number).map(Self::Days)
        };
        read.ok_or_else(|| "expected \"80%\" (1 to 99), \"30min\" or \"10day\"".to_owned())
    }
}

impl fmt::Display for Margin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Minutes(minutes) => write!(f, "{minutes}min"),
            Self::Days(days) => write!(f, "{days}day"),
        }
    }
}

impl Serialize for Margin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Margin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Policy of one certificate's renewals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// True if the certificate is renewed at all, unasked.
    pub enabled: bool,
    /// The moment of the renewal: percent of the life from its begin, or a time before
    /// its end.
    pub threshold: Margin,
    /// Longest pause between two attempts.
    pub retry: Margin,
    /// True if each renewal makes a new key.
    pub rotate_key: bool,
    /// The time of day, UTC, at which renewals are made while there is enough time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            enabled: true,
            threshold: Margin::Percent(80),
            retry: Margin::Percent(4),
            rotate_key: false,
            window: None,
        }
    }
}

impl Policy {
    /// Returns the planned moment of the renewal, in seconds since 1970: never in the
    /// first half of the life, so that a margin as long as the life does not renew
    /// without end.
    #[must_use]
    pub fn planned(&self, held: Span) -> i64 {
        let life = held.end.saturating_sub(held.begin).max(0);
        let planned = match self.threshold {
            Margin::Percent(_) => held.begin.saturating_add(self.threshold.of(life)),
            Margin::Minutes(_) | Margin::Days(_) => {
                held.end.saturating_sub(self.threshold.of(life))
            }
        };
        planned.max(held.begin.saturating_add(life / 2))
    }
}
