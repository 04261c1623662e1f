//! Maintenance windows: a time of each day.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const DAY: i64 = 86_400;

/// A time of each day, UTC, from one minute to another. It may cross midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from: u16,
    to: u16,
}

impl Window {
    /// Returns whether the window is open at this moment, in seconds since 1970.
    #[must_use]
    pub fn is_open(&self, wall: i64) -> bool {
        let minute = wall.rem_euclid(DAY) / 60;
        let (from, to) = (i64::from(self.from), i64::from(self.to));
        if from < to { from <= minute && minute < to } else { minute >= from || minute < to }
    }

    /// Returns the moment at which the window is open next: `wall` itself if it is open.
    #[must_use]
    pub fn next_opening(&self, wall: i64) -> i64 {
        if self.is_open(wall) {
            return wall;
        }
        let opens = i64::from(self.from) * 60;
        wall.saturating_add((opens - wall.rem_euclid(DAY)).rem_euclid(DAY))
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (from, to) = text.split_once('-')?;
            let (from, to) = (minute(from.trim())?, minute(to.trim())?);
            (from != to).then_some(Self { from, to })
        };
        read().ok_or_else(|| {
            "expected two different times of the day in UTC, like \"02:00-04:00\"".to_owned()
        })
    }
}

fn minute(text: &str) -> Option<u16> {
    let two = |digits: &str| {
        let is_number = digits.len() == 2 && digits.bytes().all(|c| c.is_ascii_digit());
        is_number.then(|| digits.parse::<u16>().ok()).flatten()
    };
    let (hours, minutes) = text.split_once(':')?;
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
