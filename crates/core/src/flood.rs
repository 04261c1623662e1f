//! Users who flood a socket: connections that came to nothing go in, users to keep out
//! come out. Times are since any fixed moment of a clock that is never set.
//!
//! A line of its own for each user does not help where the kernel has one for all: the
//! kernel's is full before anybody can empty it. So a user who fills it is kept out of
//! the socket for a while, and the kernel turns that user's connections away before they
//! wait anywhere.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// Connections of one user that may come to nothing at once: far fewer than wait in the
/// kernel, so that a flood is known before it has filled the line.
const ALLOWANCE: u32 = 250;
/// Time after which one more may.
const ONE_MORE: Duration = Duration::from_millis(10);
/// Time for which a user is kept out at first. It doubles each time that the flood goes
/// on afterwards.
const FIRST: Duration = Duration::from_secs(10);
/// Longest time for which a user is kept out.
const LONGEST: Duration = Duration::from_secs(320);
/// Time without a flood after which the next one is a first one again.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Users that are told apart.
const USERS: usize = 256;
/// Users that are kept out at any one time.
const KEPT_OUT: usize = 64;
/// Shortest time between two searches for users that need not be told apart any more.
const SEARCH: Duration = Duration::from_millis(100);

/// Users of one socket: what came to nothing of late, and who is kept out.
#[derive(Debug, Default)]
pub struct FloodGuard {
    by_user: HashMap<u32, User>,
    /// Users who are never kept out.
    exempt: BTreeSet<u32>,
    /// The time before which there is no search for users to forget.
    search: Duration,
}

#[derive(Debug)]
struct User {
    /// The time at which all of the allowance is there again.
    full: Duration,
    /// End of the time for which the user is kept out.
    until: Option<Duration>,
    /// Times that the user was kept out, and the end of the last one.
    before: (u32, Duration),
}

impl User {
    fn is_forgotten(&self, now: Duration) -> bool {
        let (times, end) = self.before;
        self.until.is_none() && self.full <= now && (times == 0 || end + FORGOTTEN <= now)
    }
}

impl FloodGuard {
    /// A socket at which these users are never kept out.
    #[must_use]
    pub fn new(exempt: BTreeSet<u32>) -> Self {
        Self { exempt, ..Self::default() }
    }

    /// Takes in that a connection of a user came to nothing: it ended before it had one
    /// whole answer, or there was no place for it. Returns true if the user is to be kept
    /// out from now on.
    pub fn wasted(&mut self, user: u32, now: Duration) -> bool {
        if self.exempt.contains(&user) || !self.make_room_for(user, now) {
            return false;
        }
        let entry =
            self.by_user.entry(user).or_insert(User { full: now, until: None, before: (0, now) });
        if entry.until.is_some() {
            // It was on its way when the user was kept out.
            return false;
        }
        entry.full = entry.full.max(now) + ONE_MORE;
        let allowed = ONE_MORE * ALLOWANCE;
        if entry.full - now <= allowed {
            return false;
        }
        entry.full = now + allowed;
        if self.kept_out().count() >= KEPT_OUT {
            return false;
        }
        let Some(entry) = self.by_user.get_mut(&user) else { return false };
        let (times, end) = entry.before;
        let times = if end + FORGOTTEN <= now { 0 } else { times };
        let lasting = FIRST.saturating_mul(1 << times.min(16)).min(LONGEST);
        entry.until = Some(now + lasting);
        entry.before = (times + 1, now + lasting);
        true
    }

    /// Lets in again whose time is over. Returns true if there are such users.
    pub fn let_in(&mut self, now: Duration) -> bool {
        let mut any = false;
        for user in self.by_user.values_mut() {
            if user.until.is_some_and(|until| until <= now) {
                (user.until, user.full) = (None, now);
                any = true;
            }
        }
        any
    }

    /// Users who are kept out.
    pub fn kept_out(&self) -> impl Iterator<Item = u32> {
        self.by_user.iter().filter(|(_, user)| user.until.is_some()).map(|(uid, _)| *uid)
    }

    /// The time until which a user is kept out.
    #[must_use]
    pub fn until(&self, user: u32) -> Option<Duration> {
        self.by_user.get(&user)?.until
    }

    /// The next time at which a user may be let in.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        self.by_user.values().filter_map(|user| user.until).min()
    }

    /// Returns true if this user is among those that are told apart.
    fn make_room_for(&mut self, user: u32, now: Duration) -> bool {
        if self.by_user.len() < USERS || self.by_user.contains_key(&user) {
            return true;
        }
        if now < self.search {
            return false;
        }
        self.search = now + SEARCH;
        self.by_user.retain(|_, user| !user.is_forgotten(now));
        if self.by_user.len() >= USERS {
            self.by_user.retain(|_, user| user.until.is_some() || user.full > now);
        }
        self.by_user.len() < USERS
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Duration = Duration::from_secs(5);

    fn kept_out(guard: &FloodGuard) -> Vec<u32> {
        guard.kept_out().collect()
    }

    /// Floods as one user from `now` on until it is kept out: the connections it took.
    fn flood(guard: &mut FloodGuard, user: u32, now: Duration) -> Option<u32> {
        (1..=2 * ALLOWANCE).find(|_| guard.wasted(user, now))
    }

    #[test]
    fn a_flood_keeps_its_own_user_out_for_a_while_and_longer_each_time() {
        let mut guard = FloodGuard::default();
        let (mut now, mut times) = (START, Vec::new());
        for _ in 0..8 {
            assert_eq!(flood(&mut guard, 7, now), Some(ALLOWANCE + 1));
            assert_eq!(kept_out(&guard), [7]);
            assert_eq!(flood(&mut guard, 7, now), None, "kept out already");
            let end = guard.next().unwrap();
            assert!(!guard.let_in(end - Duration::from_millis(1)));
            assert!(guard.let_in(end));
            assert_eq!((kept_out(&guard), guard.next()), (vec![], None));
            times.push((end - now).as_secs());
            now = end;
        }
        assert_eq!(times, [10, 20, 40, 80, 160, 320, 320, 320]);
        now += FORGOTTEN;
        assert!(flood(&mut guard, 7, now).is_some());
        assert_eq!(guard.next(), Some(now + FIRST));
    }

    #[test]
    fn exempt_users_are_never_kept_out() {
        let mut guard = FloodGuard::new(BTreeSet::from([0, 990]));
        assert_eq!((flood(&mut guard, 0, START), flood(&mut guard, 990, START)), (None, None));
        assert!(flood(&mut guard, 991, START).is_some());
    }

    #[test]
    fn users_without_number_take_bounded_memory_and_one_who_comes_later_is_seen_again() {
        let mut guard = FloodGuard::default();
        for user in 1..600 {
            let _ = flood(&mut guard, user, START);
        }
        assert_eq!((guard.by_user.len(), kept_out(&guard).len()), (USERS, KEPT_OUT));
        let later = START + LONGEST;
        assert!(guard.let_in(later));
        assert_eq!(flood(&mut guard, 5000, later), Some(ALLOWANCE + 1));
    }

    proptest! {
        /// Whatever the others do.
        #[test]
        fn a_user_within_the_allowance_is_never_kept_out(
            before in 0..ALLOWANCE,
            steps in prop::collection::vec((0_u64..100, 1_u32..300), 1..30),
        ) {
            let mut guard = FloodGuard::default();
            let mut now = START;
            for _ in 0..before {
                prop_assert!(!guard.wasted(1, now));
            }
            for (pause, others) in steps {
                // One each time that one more may.
                for _ in 0..pause {
                    now += ONE_MORE;
                    guard.let_in(now);
                    prop_assert!(!guard.wasted(1, now));
                }
                for _ in 0..others {
                    let _ = guard.wasted(2, now);
                }
                prop_assert!(!kept_out(&guard).contains(&1));
            }
        }

        #[test]
        fn while_a_user_is_let_in_no_more_than_the_allowance_and_what_came_since_is_wasted(
            steps in prop::collection::vec((0_u64..4_000, 0_u32..1500), 1..20),
        ) {
            let mut guard = FloodGuard::default();
            let (mut now, mut since, mut count) = (START, START, 0_u32);
            for (pause, wasted) in steps {
                now += Duration::from_millis(pause);
                if guard.let_in(now) {
                    (since, count) = (now, 0);
                }
                for _ in 0..wasted {
                    if guard.next().is_none() {
                        count += 1;
                    }
                    let kept = guard.wasted(1, now);
                    prop_assert_eq!(kept_out(&guard).is_empty(), guard.next().is_none());
                    prop_assert!(!kept || guard.next().unwrap() <= now + LONGEST);
                }
                let more = (now - since).as_millis() / ONE_MORE.as_millis();
                prop_assert!(u128::from(count) <= u128::from(ALLOWANCE) + more + 1, "{count}");
            }
        }
    }
}
