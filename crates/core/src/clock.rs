//! Time as a value: moments that no correction of the clock moves, steps of the wall
//! clock, and whether it can be right.
//!
//! The wall clock of a device is set by a battery, a radio, a server, an operator or
//! nobody. So what has to last for a while is measured on the clock that counts from the
//! boot ([`Moment`], [`Deadline`]). Only what strangers judge by their own calendar
//! (certificates, tokens of services) is on the wall clock, and is decided anew when that
//! moves ([`step`]).

use std::time::Duration;

/// The earliest moment that the wall clock can rightly show, in seconds since 1970:
/// `SOURCE_DATE_EPOCH` of the build if there is one, and never before 2026, when this
/// program was written.
pub const BUILT: i64 = {
    let written = 1_767_225_600;
    let built = match option_env!("SOURCE_DATE_EPOCH") {
        Some(text) => seconds(text),
        None => written,
    };
    // A mistaken date of the build must not make every clock look wrong.
    if built > written && built < LATEST { built } else { written }
};

/// From here on the wall clock was set wrongly: the beginning of 2100, in seconds since
/// 1970.
pub const LATEST: i64 = 4_102_444_800;

/// A change of the wall clock against the monotonic one that is a step, in seconds. Less
/// is how time servers correct a clock while it runs.
pub const STEP: i64 = 2;

const fn seconds(text: &str) -> i64 {
    match i64::from_str_radix(text, 10) {
        Ok(seconds) => seconds,
        Err(_) => 0,
    }
}

/// One boot of the machine: 128 random bits that the kernel draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BootId([u8; 16]);

impl BootId {
    /// The id with these bits.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Reads the kernel's text (`/proc/sys/kernel/random/boot_id`), and that of
    /// [`Self::hex`]: 32 hex digits, perhaps with hyphens.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        let mut digits =
            text.trim_end().bytes().filter(|c| *c != b'-').map(|c| char::from(c).to_digit(16));
        for byte in &mut bytes {
            let (high, low) = (digits.next()??, digits.next()??);
            *byte = u8::try_from(high * 16 + low).ok()?;
        }
        digits.next().is_none().then_some(Self(bytes))
    }

    /// 32 hex digits.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A moment on the clock that counts from the boot. No correction of the wall clock moves
/// it; time asleep counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The boot that is counted from.
    pub boot: BootId,
    /// Seconds since it.
    pub seconds: u64,
}

/// The end of what lasts within one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// The boot that is counted from.
    pub boot: BootId,
    /// Seconds since it.
    pub seconds: u64,
}

impl Deadline {
    /// Returns the end of a `lifetime` that begins now.
    #[must_use]
    pub const fn after(now: Moment, lifetime: Duration) -> Self {
        Self { boot: now.boot, seconds: now.seconds.saturating_add(lifetime.as_secs()) }
    }

    /// Returns whether the deadline is still to come, and is not later than one of a
    /// `lifetime` that begins now. A deadline of another boot, or of a longer lifetime,
    /// counts as over.
    #[must_use]
    pub const fn is_ahead(&self, now: Moment, lifetime: Duration) -> bool {
        let latest = now.seconds.saturating_add(lifetime.as_secs());
        u128::from_ne_bytes(self.boot.0) == u128::from_ne_bytes(now.boot.0)
            && now.seconds < self.seconds
            && self.seconds <= latest
    }
}

/// The two clocks, read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Time since some fixed moment of this process.
    pub monotonic: Duration,
    /// The wall clock, in seconds since 1970.
    pub wall: i64,
}

/// Returns the seconds by which the wall clock was put forward between two readings,
/// negative if back. `None` if the clock only went on.
#[must_use]
pub fn step(before: Reading, after: Reading) -> Option<i64> {
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let went_by = seconds(after.monotonic).saturating_sub(seconds(before.monotonic));
    let moved = after.wall.saturating_sub(before.wall).saturating_sub(went_by);
    // Both readings are cut to whole seconds, which alone makes a difference of one.
    (moved.unsigned_abs() > STEP.unsigned_abs()).then_some(moved)
}

/// A judgement on what the wall clock shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plausibility {
    /// A time that can be right.
    Plausible,
    /// A time before this program was built.
    BeforeBuild,
    /// A time so many seconds before one that a trusted service told at some time.
    BeforeLastGood(i64),
    /// So many seconds ahead of the clock of a trusted service, or behind if negative.
    Off(i64),
    /// A time that no device of today lives to see.
    FarFuture,
}

impl Plausibility {
    /// Returns what is wrong with the clock, in words; nothing if it can be right.
    #[must_use]
    pub fn words(self) -> Option<String> {
        let away = |seconds: i64| match seconds.unsigned_abs() {
            short @ ..7200 => format!("{} min", short / 60),
            hours @ ..172_800 => format!("{} h", hours / 3600),
            days => format!("{} days", days / 86_400),
        };
        Some(match self {
            Self::Plausible => return None,
            Self::BeforeBuild => "it shows a time before this program was built".to_owned(),
            Self::BeforeLastGood(behind) => {
                format!(
                    "it is {} behind a time that a service in the cloud told before",
                    away(behind)
                )
            }
            Self::Off(ahead @ 0..) => {
                format!("it is {} ahead of the clock of a service in the cloud", away(ahead))
            }
            Self::Off(behind) => {
                format!("it is {} behind the clock of a service in the cloud", away(behind))
            }
            Self::FarFuture => "it shows a time from 2100 on".to_owned(),
        })
    }
}

/// Judges the wall clock. `last_good` is the last time that a trusted service told at
/// all. `told` is the present by the service's clock, where the service was heard since
/// the boot. All are in seconds since 1970.
///
/// A time that the clock itself could not show is a mistake of that service and counts as
/// nothing.
#[must_use]
pub fn judge(wall: i64, last_good: Option<i64>, told: Option<i64>) -> Plausibility {
    if wall < BUILT {
        return Plausibility::BeforeBuild;
    }
    if wall >= LATEST {
        return Plausibility::FarFuture;
    }
    let can_be = |good: &i64| (BUILT..LATEST).contains(good);
    if let Some(told) = told.filter(can_be) {
        let ahead = wall - told;
        return if ahead.abs() > TOLERANCE {
            Plausibility::Off(ahead)
        } else {
            Plausibility::Plausible
        };
    }
    let last_good = last_good.filter(can_be);
    match last_good.map(|good| good - wall) {
        // Services' clocks are not exact either.
        Some(behind) if behind > TOLERANCE => Plausibility::BeforeLastGood(behind),
        _ => Plausibility::Plausible,
    }
}

/// Difference to a service's clock that is none, in seconds.
const TOLERANCE: i64 = 300;

/// Returns the earliest moment that the present can be, in seconds since 1970, whatever
/// the clock shows.
#[must_use]
pub fn earliest(last_good: Option<i64>) -> i64 {
    last_good.filter(|good| (BUILT..LATEST).contains(good)).unwrap_or(BUILT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOOT: BootId = BootId::from_bytes([7; 16]);

    fn at(seconds: u64) -> Moment {
        Moment { boot: BOOT, seconds }
    }

    #[test]
    fn the_kernels_text_and_our_own_name_the_same_boot() {
        let kernel = "0d1f7d2c-5a3e-4b6f-8c9d-0123456789ab\n";
        let boot = BootId::parse(kernel).unwrap();
        assert_eq!(boot.hex(), "0d1f7d2c5a3e4b6f8c9d0123456789ab");
        assert_eq!(BootId::parse(&boot.hex()), Some(boot));
        for wrong in
            ["", "0", "x", &"0".repeat(31), &"0".repeat(33), &"g".repeat(32), &"é".repeat(16)]
        {
            assert_eq!(BootId::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_deadline_of_another_boot_is_over() {
        let (day, other) = (Duration::from_secs(86_400), BootId::from_bytes([8; 16]));
        let deadline = Deadline::after(at(10), day);
        assert!(deadline.is_ahead(at(10), day) && deadline.is_ahead(at(86_409), day));
        assert!(!deadline.is_ahead(at(86_410), day));
        assert!(!deadline.is_ahead(Moment { boot: other, seconds: 10 }, day));
        assert!(!deadline.is_ahead(at(9), day), "made later than now: not of this clock");
        assert!(
            !deadline.is_ahead(at(10), day - Duration::from_secs(1)),
            "the lifetime was made shorter"
        );
    }

    #[test]
    fn a_clock_is_implausible_before_the_build_and_before_the_last_good_time() {
        assert_eq!(judge(0, None, None), Plausibility::BeforeBuild);
        assert_eq!(judge(BUILT - 1, Some(0), None), Plausibility::BeforeBuild);
        assert_eq!(judge(BUILT, None, None), Plausibility::Plausible);
        assert_eq!(
            judge(BUILT + 1000, Some(BUILT + 1301), None),
            Plausibility::BeforeLastGood(301)
        );
        assert_eq!(judge(BUILT + 1000, Some(BUILT + 1300), None), Plausibility::Plausible);
        assert_eq!(
            judge(BUILT + 1000, Some(i64::MAX), None),
            Plausibility::Plausible,
            "no service of today said that"
        );
        assert_eq!(judge(LATEST, None, None), Plausibility::FarFuture);
    }

    #[test]
    fn what_a_service_told_since_the_boot_counts_in_both_directions_and_before_what_it_told_earlier()
     {
        let wall = BUILT + 100_000;
        assert_eq!(judge(wall, None, Some(wall - 301)), Plausibility::Off(301));
        assert_eq!(judge(wall, None, Some(wall + 301)), Plausibility::Off(-301));
        assert_eq!(
            judge(wall, Some(wall + 86_400), Some(wall + 300)),
            Plausibility::Plausible,
            "it erred before"
        );
        assert_eq!(
            judge(wall, None, Some(0)),
            Plausibility::Plausible,
            "no service of today said that"
        );
        let words = Plausibility::Off(-3 * 3600).words();
        assert_eq!(words.as_deref(), Some("it is 3 h behind the clock of a service in the cloud"));
        assert_eq!(Plausibility::Plausible.words(), None);
    }

    proptest! {
        #[test]
        fn no_step_of_the_wall_clock_ends_or_prolongs_what_lasts(
            lifetime in 1_u64..1_000_000, begun in 0_u64..1_000_000_000, waits in prop::collection::vec(0_u64..100_000, 0..30),
        ) {
            // The walk of the wall clock does not appear: nothing takes one.
            let lifetime = Duration::from_secs(lifetime);
            let deadline = Deadline::after(at(begun), lifetime);
            let mut now = begun;
            for wait in waits {
                now += wait;
                prop_assert_eq!(deadline.is_ahead(at(now), lifetime), now - begun < lifetime.as_secs());
            }
        }

        #[test]
        fn a_step_is_seen_and_an_even_walk_is_none(
            wall in -1_000_000_000_i64..5_000_000_000, went_by in 0_u64..100_000, millis in 0_u64..1000, moved: i32,
        ) {
            let before = Reading { monotonic: Duration::from_millis(millis), wall };
            let after = Reading {
                monotonic: before.monotonic + Duration::from_secs(went_by),
                wall: wall + i64::try_from(went_by).unwrap() + i64::from(moved),
            };
            let moved = i64::from(moved);
            prop_assert_eq!(step(before, after), (moved.abs() > STEP).then_some(moved));
        }

        #[test]
        fn no_reading_makes_a_judgement_panic(
            wall: i64, good: Option<i64>, told: Option<i64>, before: (u64, i64), after: (u64, i64),
        ) {
            let verdict = judge(wall, good, told);
            prop_assert_eq!(verdict.words().is_none(), verdict == Plausibility::Plausible);
            prop_assert_eq!(wall < BUILT, verdict == Plausibility::BeforeBuild);
            prop_assert!((BUILT..LATEST).contains(&earliest(good)));
            let reading = |(seconds, wall)| Reading { monotonic: Duration::from_secs(seconds), wall };
            let _ = step(reading(before), reading(after));
        }
    }
}
