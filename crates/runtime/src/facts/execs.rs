//! Times at which the engine's `exec` brought processes into a container, on the clock of
//! process start times.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Longest time by which an `exec` may have started its process before its event. Podman
/// reports an `exec` afterwards, and the wall clock may have been set in between.
const LATE_BY: Duration = Duration::from_secs(2);

/// Time after which an event has come, or the stream is broken and nothing is known.
pub(super) const HEARD_AFTER: Duration = Duration::from_secs(5);

/// Time for which a process is kept waiting before the engine is asked if an `exec` made
/// it: until then the engine may not have told of one.
pub(super) const TOLD_AFTER: Duration = LATE_BY;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// Nanoseconds since the epoch.
    real: i128,
    /// Nanoseconds since boot.
    boot: i128,
    ticks_per_second: i128,
}

impl Now {
    pub(super) fn read() -> Self {
        let nanoseconds = |clock| {
            let time = clock_gettime(clock);
            i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
        };
        Self {
            real: nanoseconds(ClockId::Realtime),
            boot: nanoseconds(ClockId::Boottime),
            ticks_per_second: i128::from(rustix::param::clock_ticks_per_second().max(1)),
        }
    }

    /// The earliest start time that a process of an `exec` can have, which was told of at
    /// `event` (nanoseconds since the epoch; unknown: now).
    pub(super) fn earliest_start(&self, event: Option<i64>) -> u64 {
        let ago = event.map_or(0, |event| self.real - i128::from(event)).max(0);
        let at = self.boot - ago - i128::try_from(LATE_BY.as_nanos()).unwrap_or_default();
        u64::try_from(at * self.ticks_per_second / 1_000_000_000).unwrap_or(0)
    }

    /// Returns the time since a process with this start time was started.
    pub(super) fn age(&self, start_time: u64) -> Duration {
        let started = i128::from(start_time) * 1_000_000_000 / self.ticks_per_second;
        Duration::from_nanos(u64::try_from(self.boot - started).unwrap_or(0))
    }

    /// Returns the time since the event that gave this earliest start time.
    pub(super) fn since_told(&self, earliest_start: u64) -> Duration {
        self.age(earliest_start).saturating_sub(LATE_BY)
    }

    /// Seconds since the epoch, so long ago.
    pub(super) fn seconds_ago(&self, ago: Duration) -> i64 {
        i64::try_from(self.real / 1_000_000_000)
            .unwrap_or(0)
            .saturating_sub(i64::try_from(ago.as_secs()).unwrap_or(0))
    }
}

/// Returns true if an event's action says that a process is about to be, or was, brought
/// into a container.
pub(super) fn is_exec(action: &str) -> bool {
    action == "exec" || action.starts_with("exec_create") || action.starts_with("exec_start")
}

/// The earlier of two marks.
pub(super) fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now { real: 1_000_000_000_000, boot: 100_000_000_000, ticks_per_second: 100 };

    #[test]
    fn an_event_marks_a_start_time_a_little_before_it() {
        assert_eq!(NOW.earliest_start(Some(1_000_000_000_000)), 9800);
        assert_eq!(NOW.earliest_start(Some(990_000_000_000)), 8800);
        assert_eq!(NOW.earliest_start(None), 9800);
    }

    #[test]
    fn a_clock_that_was_set_marks_now_or_earlier_and_never_later() {
        assert_eq!(NOW.earliest_start(Some(i64::MAX)), 9800, "an event of the future");
        assert_eq!(NOW.earliest_start(Some(0)), 0, "an event of before the clock was set");
        assert_eq!(NOW.earliest_start(Some(i64::MIN)), 0);
    }

    #[test]
    fn ages_are_those_of_the_start_time() {
        assert_eq!(NOW.age(9900), Duration::from_secs(1));
        assert_eq!(NOW.age(20_000), Duration::ZERO);
        let age = Now::read().age(0);
        assert!(age > Duration::from_secs(1), "{age:?} since boot");
    }

    #[test]
    fn the_engines_words_for_an_exec_are_known() {
        for action in ["exec_create: sh -c true", "exec_start: sh", "exec_start", "exec"] {
            assert!(is_exec(action), "{action}");
        }
        for action in ["exec_die", "exec_died", "exec_detach", "start", "die"] {
            assert!(!is_exec(action), "{action}");
        }
    }
}
