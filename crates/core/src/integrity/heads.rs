//! The decision when the head of the audit log is recorded.

use std::time::Duration;

/// Longest time for which new entries of the audit log are in no head that is recorded.
pub const HEAD_EACH: Duration = Duration::from_secs(3600);
/// Number of new entries after which a head is recorded earlier.
pub const HEAD_AFTER: u64 = 4096;
/// Shortest time between two heads in one log.
pub const HEADS_APART: Duration = Duration::from_secs(600);

/// Returns true if a head of the audit log with `size` entries is recorded now.
/// `recorded` is the size of the last head in this log, and `since` the time since it was
/// recorded, or since keyd was started.
#[must_use]
pub fn head_is_due(recorded: Option<u64>, since: Duration, size: u64) -> bool {
    let Some(recorded) = recorded else { return size > 0 };
    match size.checked_sub(recorded) {
        Some(0) => false,
        Some(new) => since >= HEAD_EACH || (new >= HEAD_AFTER && since >= HEADS_APART),
        // Another log took the place of the one that was recorded.
        None => since >= HEADS_APART,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_head_is_recorded_at_once_and_an_idle_log_adds_none() {
        assert!(head_is_due(None, Duration::ZERO, 1));
        assert!(!head_is_due(None, HEAD_EACH, 0));
        assert!(!head_is_due(Some(7), HEAD_EACH * 100, 7));
        assert!(head_is_due(Some(7), HEADS_APART, 3), "the log begins anew");
    }

    proptest! {
        /// However fast the audit log grows, the heads keep their distance; and however
        /// slowly, a new entry is in a head within an hour and a look.
        #[test]
        fn heads_are_apart_and_none_is_late(steps in prop::collection::vec((0_u64..120, 0_u64..3000), 1..300)) {
            let (mut size, mut recorded, mut last) = (1, None, Duration::ZERO);
            let (mut now, mut oldest_new) = (Duration::ZERO, None);
            for (pause, new) in steps {
                let pause = Duration::from_secs(pause);
                now += pause;
                size += new;
                oldest_new = oldest_new.or((new > 0).then_some(now));
                if head_is_due(recorded, now - last, size) {
                    prop_assert!(recorded.is_none() || now - last >= HEADS_APART);
                    (recorded, last, oldest_new) = (Some(size), now, None);
                }
                if let Some(oldest) = oldest_new {
                    prop_assert!(now - oldest < HEAD_EACH);
                }
            }
        }
    }
}
