//! Budget of calls to a service: a burst, then a steady trickle. It bounds what a device
//! costs a service in whatever state the two are.

use std::time::Duration;

const HOUR_MS: u128 = 3_600_000;

/// Calls that are left. They come back evenly over an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    per_hour: u32,
    /// Calls that are left, in thousandths of `1 / per_hour` hours: each call costs
    /// [`HOUR_MS`], and each millisecond brings `per_hour`.
    left: u128,
    /// Time up to which `left` was counted.
    counted: Duration,
}

impl Budget {
    /// A full budget of this many calls an hour; at least one.
    #[must_use]
    pub const fn new(per_hour: u32) -> Self {
        let per_hour = if per_hour == 0 { 1 } else { per_hour };
        Self { per_hour, left: per_hour as u128 * HOUR_MS, counted: Duration::ZERO }
    }

    /// Takes one call out of the budget at a monotonic time.
    ///
    /// # Errors
    /// The time from which there is a call again, if there is none.
    pub fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let full = u128::from(self.per_hour) * HOUR_MS;
        let passed = now.saturating_sub(self.counted).as_millis();
        self.left = full.min(self.left.saturating_add(passed.saturating_mul(self.per_hour.into())));
        self.counted = self.counted.max(now);
        if let Some(left) = self.left.checked_sub(HOUR_MS) {
            self.left = left;
            return Ok(());
        }
        let missing = (HOUR_MS - self.left).div_ceil(self.per_hour.into());
        let missing = Duration::from_millis(u64::try_from(missing).unwrap_or(u64::MAX));
        Err(self.counted.saturating_add(missing.max(Duration::from_millis(1))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn after_a_burst_calls_come_back_one_by_one() {
        let mut budget = Budget::new(60);
        for _ in 0..60 {
            assert_eq!(budget.take(Duration::from_secs(1)), Ok(()));
        }
        assert_eq!(budget.take(Duration::from_secs(1)), Err(Duration::from_secs(61)));
        assert_eq!(budget.take(Duration::from_secs(61)), Ok(()));
        assert_eq!(budget.take(Duration::from_secs(61)), Err(Duration::from_secs(121)));
    }

    proptest! {
        #[test]
        fn no_hour_has_more_calls_than_twice_the_budget_and_the_promised_time_is_kept(
            per_hour in 1_u32..200, pauses in prop::collection::vec(0_u64..120_000, 0..400)
        ) {
            let mut budget = Budget::new(per_hour);
            let (mut now, mut taken) = (Duration::ZERO, Vec::new());
            for pause in pauses {
                now += Duration::from_millis(pause);
                match budget.take(now) {
                    Ok(()) => taken.push(now),
                    Err(until) => {
                        prop_assert!(until > now);
                        let mut later = budget;
                        prop_assert_eq!(later.take(until), Ok(()));
                    }
                }
                let hour = Duration::from_secs(3600);
                let within = taken.iter().filter(|at| **at + hour > now).count();
                prop_assert!(within <= 2 * per_hour as usize);
            }
        }
    }
}
