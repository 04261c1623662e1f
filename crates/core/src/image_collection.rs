//! Selection of the images to remove. An image is removed if modules used it and no
//! longer do, after nobody has used it for some time, and sooner when the disk runs full.
//!
//! Ages are not differences of wall-clock times. What is counted is operating time that
//! went by on the monotonic clock while an image was seen unused ([`Tracked`]): a step of
//! the clock changes no age, time for which the device or the daemon was off does not
//! count, and what is not known makes an image younger, never older. The wall clock says
//! at what time of day to look, and nothing is removed for its age while it is
//! implausible; a full disk is one whatever the clock says.
//!
//! Only images that this daemon fetched, or that its modules used, are ever removed:
//! others of the engine are somebody's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::{BUILT, LATEST};
use crate::digest::Sha256Digest;
use crate::settings::ImageCollectionSettings;

/// Images that are remembered at most; the longest unused are forgotten first, and then
/// are not ours to remove.
const TRACKED: usize = 2048;
const DAY: u64 = 86_400;

/// The memory of images, also over restarts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tracked {
    /// Seconds of operation for which each image has been seen unused.
    idle: BTreeMap<Sha256Digest, u64>,
    /// Seconds of operation since images were last looked through for their age.
    since_run: u64,
}

impl Tracked {
    /// An image was fetched or used just now.
    pub fn touch(&mut self, image: Sha256Digest) {
        self.idle.insert(image, 0);
        while self.idle.len() > TRACKED {
            let longest = self.idle.iter().max_by_key(|(_, idle)| **idle).map(|(image, _)| *image);
            longest.map(|image| self.idle.remove(&image));
        }
    }

    /// Takes in what is seen now, `elapsed` of monotonic time after the last look (or the
    /// daemon's start).
    pub fn advance(&mut self, elapsed: Duration, seen: &Seen) {
        let seconds = elapsed.as_secs();
        self.since_run = self.since_run.saturating_add(seconds);
        let present: BTreeSet<_> = seen.images.iter().map(|image| image.id).collect();
        self.idle.retain(|image, _| present.contains(image));
        for (image, idle) in &mut self.idle {
            *idle = if seen.is_used(image) { 0 } else { idle.saturating_add(seconds) };
        }
        for image in seen.registered.intersection(&present) {
            if !self.idle.contains_key(image) {
                self.touch(*image);
            }
        }
    }

    /// Images were looked through for their age just now.
    pub fn looked_through(&mut self) {
        self.since_run = 0;
    }

    /// Returns the time for which an image has been seen unused; `None` if it is not one
    /// of ours.
    #[must_use]
    pub fn idle(&self, image: &Sha256Digest) -> Option<Duration> {
        self.idle.get(image).copied().map(Duration::from_secs)
    }

    /// Returns the number of images that are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.idle.len()
    }

    /// Returns true if no image is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.idle.is_empty()
    }

    /// Returns true if it is time to look through the images for their age: after the
    /// configured time of operation, at the configured time of day (UTC).
    ///
    /// `before` and `now` are wall-clock times of the last look and of this one, in
    /// seconds since 1970. A step that never lets the time of day come delays the run by
    /// a day of operation at most; one that repeats it repeats no run.
    #[must_use]
    pub fn is_due(&self, settings: &ImageCollectionSettings, before: i64, now: i64) -> bool {
        let every = settings.recurrence_sec;
        if every < DAY {
            return self.since_run >= every;
        }
        if self.since_run >= every.saturating_add(DAY) {
            return true;
        }
        // Half a day early is still the same day's run.
        self.since_run >= every - DAY / 2
            && passes_time_of_day(u64::from(settings.at_minute) * 60, before, now)
    }
}

/// Returns true if a time of day lies in `before..now`, which is at most a day long.
fn passes_time_of_day(second: u64, before: i64, now: i64) -> bool {
    let Ok(second) = i64::try_from(second) else { return false };
    let day = |time: i64| (time - second).div_euclid(86_400);
    now > before && day(now) > day(before)
}

/// An image that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its id.
    pub id: Sha256Digest,
    /// Its names, for people.
    pub names: Vec<String>,
    /// Its size, layers that it shares included.
    pub bytes: u64,
}

/// The file system that images are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its size in bytes.
    pub total: u64,
    /// The free space in bytes.
    pub available: u64,
}

impl Disk {
    fn used(self) -> u64 {
        self.total.saturating_sub(self.available)
    }

    /// Returns the used percentage of the disk, rounded up.
    #[must_use]
    pub fn used_percent(self) -> u8 {
        let percent = (u128::from(self.used()) * 100).div_ceil(u128::from(self.total.max(1)));
        u8::try_from(percent.min(100)).unwrap_or(100)
    }

    /// Bytes to free until less than `percent` are used.
    fn above(self, percent: u8) -> u64 {
        let mark = u128::from(self.total) * u128::from(percent) / 100;
        self.used().saturating_sub(u64::try_from(mark).unwrap_or(u64::MAX))
    }
}

/// Everything that is seen at one time: images, containers and the disk. A look sees all
/// of it: an engine that does not tell everything is asked again later.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The engine's images.
    pub images: Vec<Image>,
    /// Images of containers, whoever's and in whatever state.
    pub containers: BTreeSet<Sha256Digest>,
    /// Images of registered modules.
    pub registered: BTreeSet<Sha256Digest>,
    /// The image that the agent is made from, where it is known.
    pub bootstrap: Option<Sha256Digest>,
    /// The disk on which images are kept, if it can be seen.
    pub disk: Option<Disk>,
}

impl Seen {
    fn is_used(&self, image: &Sha256Digest) -> bool {
        self.use_of(image).is_some()
    }

    fn use_of(&self, image: &Sha256Digest) -> Option<Keep> {
        if self.bootstrap.as_ref() == Some(image) {
            Some(Keep::Bootstrap)
        } else if self.containers.contains(image) {
            Some(Keep::UsedByContainer)
        } else if self.registered.contains(image) {
            Some(Keep::Registered)
        } else {
            None
        }
    }
}

/// The decision about an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Keep(Keep),
    /// It goes.
    Remove(Remove),
}

/// The reason why an image stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The agent is made from it.
    Bootstrap,
    /// A container was made from it.
    UsedByContainer,
    /// A module is registered with it.
    Registered,
    /// Neither fetched nor used by this daemon.
    NotOurs,
    /// It was used or fetched a moment ago: an update may be on its way.
    RecentlyUsed,
    /// Not unused for long enough.
    Young,
    /// It would go if the clock were plausible.
    ClockImplausible,
}

/// The reason why an image goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remove {
    /// Nobody used it for the configured time.
    Unused,
    /// The disk is full and it was unused the longest.
    DiskPressure,
}

impl Verdict {
    /// The reason in one word that never changes.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Keep(Keep::Bootstrap) => "bootstrap",
            Self::Keep(Keep::UsedByContainer) => "used-by-container",
            Self::Keep(Keep::Registered) => "registered",
            Self::Keep(Keep::NotOurs) => "not-ours",
            Self::Keep(Keep::RecentlyUsed) => "recently-used",
            Self::Keep(Keep::Young) => "young",
            Self::Keep(Keep::ClockImplausible) => "clock-implausible",
            Self::Remove(Remove::Unused) => "unused",
            Self::Remove(Remove::DiskPressure) => "disk-pressure",
        }
    }

    /// Returns true if the image goes.
    #[must_use]
    pub const fn removes(self) -> bool {
        matches!(self, Self::Remove(_))
    }
}

/// Returns true if a wall-clock time, in seconds since 1970, is plausible.
#[must_use]
pub const fn is_plausible(wall: i64) -> bool {
    wall >= BUILT && wall < LATEST
}

/// Decides about each of the images seen, and returns the decisions in the images' order.
/// `by_age` is true if now is the time to remove images for their age.
#[must_use]
pub fn plan(
    tracked: &Tracked,
    seen: &Seen,
    settings: &ImageCollectionSettings,
    by_age: bool,
    wall: i64,
) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = seen
        .images
        .iter()
        .map(|image| {
            if let Some(keep) = seen.use_of(&image.id) {
                return Verdict::Keep(keep);
            }
            let Some(idle) = tracked.idle(&image.id) else { return Verdict::Keep(Keep::NotOurs) };
            if idle.as_secs() < settings.grace_sec {
                return Verdict::Keep(Keep::RecentlyUsed);
            }
            let old = idle.as_secs() >= settings.unused_sec;
            match (old && by_age, is_plausible(wall)) {
                (false, _) => Verdict::Keep(Keep::Young),
                (true, false) => Verdict::Keep(Keep::ClockImplausible),
                (true, true) => Verdict::Remove(Remove::Unused),
            }
        })
        .collect();
    relieve(tracked, seen, settings, &mut verdicts);
    verdicts
}

/// Turns the longest unused into what goes until enough is freed.
fn relieve(
    tracked: &Tracked,
    seen: &Seen,
    settings: &ImageCollectionSettings,
    verdicts: &mut [Verdict],
) {
    let Some(disk) = seen.disk.filter(|disk| disk.used_percent() >= settings.high_percent) else {
        return;
    };
    let removed = seen.images.iter().zip(verdicts.iter()).filter(|(_, verdict)| verdict.removes());
    let mut freed: u64 = removed.fold(0, |sum, (image, _)| sum.saturating_add(image.bytes));
    let wanted = disk.above(settings.low_percent);
    let mut candidates: Vec<usize> = (0..verdicts.len())
        .filter(|at| matches!(verdicts[*at], Verdict::Keep(Keep::Young | Keep::ClockImplausible)))
        .collect();
    candidates.sort_by_key(|at| {
        let image = &seen.images[*at];
        (std::cmp::Reverse(tracked.idle(&image.id)), std::cmp::Reverse(image.bytes), image.id)
    });
    for at in candidates {
        if freed > wanted {
            return;
        }
        verdicts[at] = Verdict::Remove(Remove::DiskPressure);
        freed = freed.saturating_add(seen.images[at].bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_790_000_000;

    fn id(number: u8) -> Sha256Digest {
        Sha256Digest::new([number; 32])
    }

    fn image(number: u8, bytes: u64) -> Image {
        Image { id: id(number), names: Vec::new(), bytes }
    }

    fn settings() -> ImageCollectionSettings {
        ImageCollectionSettings::default()
    }

    fn seen(numbers: &[u8]) -> Seen {
        Seen {
            images: numbers.iter().map(|number| image(*number, 10)).collect(),
            ..Seen::default()
        }
    }

    fn reasons(verdicts: &[Verdict]) -> Vec<&'static str> {
        verdicts.iter().map(|verdict| verdict.reason()).collect()
    }

    /// Every image tracked, each unused for so many seconds.
    fn tracked(idle: &[(u8, u64)]) -> Tracked {
        Tracked {
            idle: idle.iter().map(|(number, idle)| (id(*number), *idle)).collect(),
            since_run: 0,
        }
    }

    #[test]
    fn what_is_used_stays_and_what_is_old_goes_each_with_its_reason() {
        let mut seen = seen(&[1, 2, 3, 4, 5, 6, 7]);
        seen.bootstrap = Some(id(1));
        seen.containers = [id(1), id(2)].into();
        seen.registered = [id(2), id(3)].into();
        let week = 7 * DAY;
        let tracked =
            tracked(&[(1, week), (2, week), (3, week), (5, 599), (6, week - 1), (7, week)]);
        let expected = [
            "bootstrap",
            "used-by-container",
            "registered",
            "not-ours",
            "recently-used",
            "young",
            "unused",
        ];
        assert_eq!(reasons(&plan(&tracked, &seen, &settings(), true, NOW)), expected);
        let mut not_now = expected;
        not_now[6] = "young";
        assert_eq!(reasons(&plan(&tracked, &seen, &settings(), false, NOW)), not_now);
    }

    #[test]
    fn while_the_clock_is_implausible_nothing_goes_for_its_age() {
        let (seen, tracked) = (seen(&[1]), tracked(&[(1, u64::MAX)]));
        for wall in [0, -5, BUILT - 1, LATEST, i64::MAX, i64::MIN] {
            assert_eq!(
                reasons(&plan(&tracked, &seen, &settings(), true, wall)),
                ["clock-implausible"],
                "{wall}"
            );
        }
    }

    #[test]
    fn a_full_disk_takes_the_longest_unused_until_the_low_mark() {
        let mut seen = seen(&[1, 2, 3, 4]);
        let tracked = tracked(&[(1, 700), (2, 900), (3, 800), (4, 5)]);
        seen.disk = Some(Disk { total: 100, available: 16 });
        assert!(
            plan(&tracked, &seen, &settings(), false, NOW).iter().all(|verdict| !verdict.removes()),
            "below 85 %"
        );
        // 86 used, the low mark is 75: two images of 10 each.
        seen.disk = Some(Disk { total: 100, available: 14 });
        let expected = ["young", "disk-pressure", "disk-pressure", "recently-used"];
        assert_eq!(reasons(&plan(&tracked, &seen, &settings(), false, NOW)), expected);
        assert_eq!(
            reasons(&plan(&tracked, &seen, &settings(), false, 0)),
            expected,
            "whatever the clock says"
        );
    }

    #[test]
    fn use_makes_an_image_young_and_being_off_makes_none_old() {
        let mut tracked = Tracked::default();
        let mut seen = seen(&[1, 2]);
        seen.registered = [id(1)].into();
        tracked.advance(Duration::from_secs(100), &seen);
        assert_eq!((tracked.idle(&id(1)), tracked.idle(&id(2))), (Some(Duration::ZERO), None));
        seen.registered.clear();
        tracked.advance(Duration::from_secs(100), &seen);
        assert_eq!(tracked.idle(&id(1)), Some(Duration::from_secs(100)));
        // Written and read again by a daemon that was off for years: the same age.
        let text = serde_json::to_string(&tracked).unwrap();
        let mut again: Tracked = serde_json::from_str(&text).unwrap();
        again.advance(Duration::ZERO, &seen);
        assert_eq!(again.idle(&id(1)), Some(Duration::from_secs(100)));
        seen.containers = [id(1)].into();
        again.advance(Duration::from_secs(100), &seen);
        assert_eq!(again.idle(&id(1)), Some(Duration::ZERO));
        seen.images.clear();
        again.advance(Duration::from_secs(1), &seen);
        assert!(again.is_empty(), "an image that is gone is forgotten");
    }

    #[test]
    fn a_run_comes_at_its_time_of_day_once_a_recurrence() {
        let mut settings = settings();
        settings.at_minute = 90;
        let midnight = 1_789_948_800;
        assert_eq!(midnight % 86_400, 0);
        let at = |minute: i64| midnight + minute * 60;
        let mut tracked = Tracked { since_run: DAY, ..Tracked::default() };
        assert!(!tracked.is_due(&settings, at(70), at(80)));
        assert!(tracked.is_due(&settings, at(85), at(90)));
        assert!(!tracked.is_due(&settings, at(90), at(95)));
        // The clock goes back over it: not again.
        tracked.looked_through();
        assert!(!tracked.is_due(&settings, at(85), at(95)));
        // The time of day never comes, for the clock stands still: a day late.
        tracked.since_run = 2 * DAY;
        assert!(tracked.is_due(&settings, at(5), at(5)));
        settings.recurrence_sec = 60;
        tracked.since_run = 60;
        assert!(tracked.is_due(&settings, 0, 0));
    }

    fn any_seen() -> impl Strategy<Value = Seen> {
        let set = || proptest::collection::btree_set(0..20_u8, 0..6);
        let disk = proptest::option::of((0..1000_u64, 0..1000_u64));
        (
            proptest::collection::btree_map(0..20_u8, 0..100_u64, 0..20),
            set(),
            set(),
            proptest::option::of(0..20_u8),
            disk,
        )
            .prop_map(|(images, containers, registered, bootstrap, disk)| Seen {
                images: images.into_iter().map(|(number, bytes)| image(number, bytes)).collect(),
                containers: containers.into_iter().map(id).collect(),
                registered: registered.into_iter().map(id).collect(),
                bootstrap: bootstrap.map(id),
                disk: disk.map(|(total, available)| Disk { total, available }),
            })
    }

    proptest! {
        #[test]
        fn whatever_happens_only_unused_images_of_ours_go_and_ages_are_times_that_went_by(
            rounds in proptest::collection::vec((any_seen(), 0..20 * DAY, any::<i64>(), any::<bool>()), 1..20),
        ) {
            let settings = settings();
            let mut tracked = Tracked::default();
            let mut went_by = 0;
            for (seen, elapsed, wall, by_age) in rounds {
                went_by += elapsed;
                tracked.advance(Duration::from_secs(elapsed), &seen);
                let verdicts = plan(&tracked, &seen, &settings, by_age, wall);
                prop_assert_eq!(verdicts.len(), seen.images.len());
                for (image, verdict) in seen.images.iter().zip(&verdicts) {
                    let idle = tracked.idle(&image.id);
                    prop_assert!(idle.is_none_or(|idle| idle <= Duration::from_secs(went_by)));
                    if verdict.removes() {
                        prop_assert!(!seen.containers.contains(&image.id) && !seen.registered.contains(&image.id));
                        prop_assert!(seen.bootstrap != Some(image.id));
                        prop_assert!(idle.is_some_and(|idle| idle.as_secs() >= settings.grace_sec));
                    }
                    if *verdict == Verdict::Remove(Remove::Unused) {
                        prop_assert!(by_age && is_plausible(wall));
                        prop_assert!(idle.is_some_and(|idle| idle.as_secs() >= settings.unused_sec));
                    }
                }
                let pressed = seen.disk.is_some_and(|disk| disk.used_percent() >= settings.high_percent);
                let kept_idle = seen.images.iter().zip(&verdicts)
                    .filter(|(_, verdict)| **verdict == Verdict::Keep(Keep::Young)).map(|(image, _)| tracked.idle(&image.id)).max();
                for (image, verdict) in seen.images.iter().zip(&verdicts) {
                    if *verdict == Verdict::Remove(Remove::DiskPressure) {
                        prop_assert!(pressed);
                        prop_assert!(kept_idle.is_none_or(|kept| kept <= tracked.idle(&image.id)), "oldest first");
                    }
                }
                // The clock is no part of it beyond being plausible.
                if is_plausible(wall) {
                    prop_assert_eq!(&verdicts, &plan(&tracked, &seen, &settings, by_age, NOW));
                }
            }
        }

        #[test]
        fn no_walk_of_the_clock_makes_two_runs_within_half_a_recurrence(
            walls in proptest::collection::vec(any::<i32>(), 1..200), elapsed in 1..3600_u64,
        ) {
            let settings = settings();
            let mut tracked = Tracked::default();
            let (mut before, mut since) = (0, DAY);
            for wall in walls {
                tracked.advance(Duration::from_secs(elapsed), &Seen::default());
                since += elapsed;
                if tracked.is_due(&settings, before, i64::from(wall)) {
                    prop_assert!(since >= DAY / 2);
                    tracked.looked_through();
                    since = 0;
                }
                before = i64::from(wall);
            }
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut tracked = Tracked::default();
        for number in 0..u16::try_from(TRACKED).unwrap() + 5 {
            let mut bytes = [0; 32];
            bytes[..2].copy_from_slice(&number.to_be_bytes());
            tracked.touch(Sha256Digest::new(bytes));
        }
        assert_eq!(tracked.len(), TRACKED);
    }
}
