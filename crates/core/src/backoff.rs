//! Pauses that grow after failures.

use std::time::Duration;

/// A pause that doubles with each failure, from a first to a longest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// Pauses from `first` to `longest`. If `first` is the longer of the two, every pause
    /// is `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// The pause after a failure that `earlier` failures preceded: for what fails alone,
    /// or promises its times.
    #[must_use]
    pub const fn whole(self, earlier: u32) -> Duration {
        let doubled = match 1_u32.checked_shl(earlier) {
            Some(factor) => self.first.saturating_mul(factor),
            None => self.longest,
        };
        if doubled.as_nanos() < self.longest.as_nanos() { doubled } else { self.longest }
    }

    /// The same pause with a random part of up to a half taken off, so that a fleet that
    /// failed together does not come back together.
    #[must_use]
    pub fn spread(self, earlier: u32, random: u64) -> Duration {
        let whole = self.whole(earlier);
        let half = u64::try_from(whole.as_millis() / 2).unwrap_or(u64::MAX);
        whole.saturating_sub(Duration::from_millis(random % half.saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let seconds = Duration::from_secs;
        let backoff = Backoff::new(seconds(5), seconds(300));
        let pauses: Vec<u64> = (0..9).map(|earlier| backoff.whole(earlier).as_secs()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(Backoff::new(Duration::ZERO, seconds(9)).whole(3), Duration::ZERO);
        assert_eq!(Backoff::new(Duration::ZERO, seconds(9)).whole(99), seconds(9));
    }

    proptest! {
        #[test]
        fn a_pause_lies_between_half_and_the_whole_of_its_step_and_no_step_is_shorter_than_the_last(
            first in 1_u64..100_000, longest in 1_u64..10_000_000, earlier in 0_u32..200,
            random in any::<u64>(),
        ) {
            let (first, longest) = (Duration::from_millis(first), Duration::from_millis(longest));
            let backoff = Backoff::new(first, longest);
            let (whole, pause) = (backoff.whole(earlier), backoff.spread(earlier, random));
            prop_assert!(whole / 2 <= pause && pause <= whole);
            prop_assert!(first.min(longest) <= whole && whole <= longest);
            prop_assert!(whole <= backoff.whole(earlier + 1));
            prop_assert_eq!(backoff.spread(earlier, 0), whole);
        }
    }
}
