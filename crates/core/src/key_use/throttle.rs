//! A bound on the refusals that one uid writes into the audit log.

use std::collections::HashMap;
use std::time::Duration;

/// Refusals of one uid that are written down at once. The rest is counted: a caller that
/// is refused must not be able to push what others did out of a log of bounded size.
const REFUSALS: u32 = 100;
/// Time after which one more is written down.
const REFUSAL_EVERY: Duration = Duration::from_secs(1);
/// Uids that are told apart.
const UIDS: usize = 256;

/// Refusals that each uid may still write down, and the time of the last gain. The number
/// grows with time, up to a hundred. Times are since any fixed moment of a clock that is
/// never set.
#[derive(Debug, Default)]
pub struct Throttle(HashMap<u32, (u32, Duration)>);

impl Throttle {
    /// True if one more refusal of this uid is written down.
    pub fn admit(&mut self, uid: u32, now: Duration) -> bool {
        if self.0.len() >= UIDS && !self.0.contains_key(&uid) {
            // A uid that was not refused for long enough has all of its share again.
            let full = REFUSAL_EVERY * REFUSALS;
            self.0.retain(|_, (_, since)| now.saturating_sub(*since) < full);
            if self.0.len() >= UIDS {
                return false;
            }
        }
        let (left, since) = self.0.entry(uid).or_insert((REFUSALS, now));
        let gained = now.saturating_sub(*since).as_secs() / REFUSAL_EVERY.as_secs();
        if gained > 0 {
            *left = left.saturating_add(u32::try_from(gained).unwrap_or(REFUSALS)).min(REFUSALS);
            *since = now;
        }
        let admitted = *left > 0;
        *left = left.saturating_sub(1);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_flood_of_refusals_of_one_uid_is_counted_and_leaves_others_their_share() {
        let mut throttle = Throttle::default();
        let start = Duration::ZERO;
        let admitted = (0..10_000).filter(|_| throttle.admit(7, start)).count();
        assert_eq!(admitted, 100);
        assert!(throttle.admit(8, start));
        let later = start + Duration::from_secs(3);
        assert_eq!((0..10).filter(|_| throttle.admit(7, later)).count(), 3);
        let much_later = start + Duration::from_secs(3600);
        assert_eq!((0..10_000).filter(|_| throttle.admit(7, much_later)).count(), 100);
    }

    #[test]
    fn many_uids_take_bounded_memory_and_come_to_their_share_again() {
        let mut throttle = Throttle::default();
        let admitted = (0..10_000).filter(|uid| throttle.admit(*uid, Duration::ZERO)).count();
        assert_eq!((admitted, throttle.0.len()), (UIDS, UIDS));
        assert!(throttle.admit(20_000, Duration::from_secs(3600)));
    }

    proptest! {
        #[test]
        fn no_uid_writes_more_than_its_share_and_what_came_since(
            asks in prop::collection::vec((0_u32..3, 0_u64..5_000), 1..500),
        ) {
            let mut throttle = Throttle::default();
            let (mut now, mut written) = (Duration::ZERO, [0_u64; 3]);
            for (uid, pause) in asks {
                now += Duration::from_millis(pause);
                written[uid as usize] += u64::from(throttle.admit(uid, now));
            }
            let most = u64::from(REFUSALS) + now.as_secs();
            prop_assert!(written.iter().all(|written| *written <= most), "{written:?} {most}");
        }
    }
}
