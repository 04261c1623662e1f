//! Shares of the audit log: a use and the time come in, the entries to write come out.
//! Times are since any fixed moment of a clock that is never set.
//!
//! The log has a bounded size, and what is newest pushes out what is oldest. Each uid may
//! write so many entries an hour, all of them at once if it likes. Beyond that equal uses
//! are counted together, and one entry says how many they were: a key that is used
//! without end takes two entries a minute, and what others did stays.

use std::collections::HashMap;
use std::time::Duration;

use time::OffsetDateTime;

use super::{Key, Operation, Outcome, Statement, Used, Who};

/// The time in which a uid gets its whole share anew.
const HOUR: Duration = Duration::from_secs(3600);
/// Time in which equal uses are counted together. So long a crash of keyd can take what
/// was counted.
const TOGETHER: Duration = Duration::from_secs(30);
/// Kinds of uses of one uid that are counted apart; the rest is told apart by operation
/// and outcome only.
const KINDS: usize = 16;
/// Uids that are told apart. Only who was granted something does what is allowed, and the
/// settings name those.
const UIDS: usize = 256;

/// The properties that equal uses have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kind {
    what: Operation,
    key: Option<Key>,
    outcome: Outcome,
    says: Option<Box<Statement>>,
}

/// Equal uses of one uid.
struct Group<P> {
    kind: Kind,
    /// The process, if it was always the same.
    pid: Option<u32>,
    count: u64,
    since: OffsetDateTime,
    due: Duration,
    /// The place in the log that the first of them had.
    place: P,
}

/// Equal uses, to be written down as one entry.
#[derive(Debug, PartialEq, Eq)]
pub struct Counted<P> {
    /// The caller, with its process if that was always the same.
    pub who: Who,
    /// The operation.
    pub what: Operation,
    /// The key; absent if with several.
    pub key: Option<Key>,
    /// The outcome.
    pub outcome: Outcome,
    /// The number of uses.
    pub count: u64,
    /// The time of the first of them.
    pub since: OffsetDateTime,
    /// The place in the log that the first of them had.
    pub place: P,
}

struct Uid<P> {
    /// The time at which all of the uid's share is free again. A share that is used up is
    /// free in an hour.
    full: Duration,
    groups: Vec<Group<P>>,
}

/// The shares of all uids. `P` is a place in the log.
pub struct Shares<P> {
    /// The time in which a uid gets one entry.
    each: Duration,
    by_uid: HashMap<u32, Uid<P>>,
    /// True if nothing is to be counted together any more.
    closed: bool,
}

/// The fate of a use.
#[derive(Debug, PartialEq, Eq)]
pub enum Told<P> {
    /// It is written down by itself.
    Itself(Used, P),
    /// It is counted together with others; with the first of them, until then.
    Together {
        /// The end of counting.
        until: Option<Duration>,
    },
}

impl<P> Shares<P> {
    /// Shares of so many entries an hour.
    #[must_use]
    pub fn new(entries_per_hour: u32) -> Self {
        Self { each: HOUR / entries_per_hour.max(1), by_uid: HashMap::new(), closed: false }
    }

    /// Takes in a use, which has a place in the log.
    pub fn take(&mut self, used: Used, place: P, now: Duration, time: OffsetDateTime) -> Told<P> {
        if self.closed || !self.make_room_for(used.who.uid, now) {
            return Told::Itself(used, place);
        }
        let uid = self.by_uid.entry(used.who.uid).or_insert(Uid { full: now, groups: Vec::new() });
        let full = uid.full.max(now) + self.each;
        if full.saturating_sub(now) <= HOUR {
            uid.full = full;
            return Told::Itself(used, place);
        }
        let Used { who, what, key, outcome } = used;
        let mut kind = Kind { what, key, outcome, says: who.says };
        if !uid.groups.iter().any(|group| group.kind == kind) && uid.groups.len() >= KINDS {
            kind = Kind { what, key: None, outcome, says: None };
        }
        if let Some(group) = uid.groups.iter_mut().find(|group| group.kind == kind) {
            group.count += 1;
            group.pid = group.pid.filter(|pid| who.pid == Some(*pid));
            return Told::Together { until: None };
        }
        let due = now + TOGETHER;
        uid.groups.push(Group { kind, pid: who.pid, count: 1, since: time, due, place });
        Told::Together { until: Some(due) }
    }

    /// True if this uid is among those that are told apart.
    fn make_room_for(&mut self, uid: u32, now: Duration) -> bool {
        if self.by_uid.len() < UIDS || self.by_uid.contains_key(&uid) {
            return true;
        }
        self.by_uid.retain(|_, uid| uid.full > now || !uid.groups.is_empty());
        self.by_uid.len() < UIDS
    }

    /// Takes out the uses that were counted long enough by now.
    pub fn due(&mut self, now: Duration) -> Vec<Counted<P>> {
        self.drain(|group| group.due <= now)
    }

    /// Takes out all uses that were counted so far.
    pub fn all(&mut self) -> Vec<Counted<P>> {
        self.drain(|_| true)
    }

    /// The same, and nothing is counted together any more.
    pub fn close(&mut self) -> Vec<Counted<P>> {
        self.closed = true;
        self.all()
    }

    fn drain(&mut self, is_due: impl Fn(&Group<P>) -> bool) -> Vec<Counted<P>> {
        let mut counted = Vec::new();
        for (uid, Uid { groups, .. }) in &mut self.by_uid {
            for Group { kind, pid, count, since, place, .. } in
                groups.extract_if(.., |group| is_due(group))
            {
                let Kind { what, key, outcome, says } = kind;
                let who = Who { uid: *uid, pid, says };
                counted.push(Counted { who, what, key, outcome, count, since, place });
            }
        }
        counted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn used(uid: u32, key: u32, outcome: Outcome) -> Used {
        let key = Some(Key::new(format!("k{key}").parse().unwrap()));
        Used { who: Who { uid, pid: Some(uid), says: None }, what: Operation::Sign, key, outcome }
    }

    proptest! {
        /// Whatever is done, in whatever order: each use is in exactly one entry, and no
        /// uid has more than its share and what the groups make of it.
        #[test]
        fn every_use_is_in_one_entry_and_no_uid_takes_more_than_its_share(
            share in 1_u32..50,
            uses in prop::collection::vec((0_u32..3, 0_u32..40, any::<bool>(), 0_u64..20_000), 1..400),
        ) {
            let start = Duration::ZERO;
            let mut shares = Shares::new(share);
            let (mut now, mut entries, mut told) = (start, [0_u64; 3], [0_u64; 3]);
            let mut asked = [0_u64; 3];
            for (uid, key, done, pause) in uses {
                now += Duration::from_millis(pause);
                for counted in shares.due(now) {
                    entries[counted.who.uid as usize] += 1;
                    told[counted.who.uid as usize] += counted.count;
                }
                let at = uid as usize;
                asked[at] += 1;
                let outcome = if done { Outcome::Done } else { Outcome::Failed };
                match shares.take(used(uid, key, outcome), (), now, NOW) {
                    Told::Itself(itself, ()) => {
                        prop_assert_eq!(itself, used(uid, key, outcome));
                        entries[at] += 1;
                        told[at] += 1;
                    }
                    Told::Together { until } => prop_assert!(until.is_none_or(|until| until == now + TOGETHER)),
                }
            }
            for counted in shares.close() {
                entries[counted.who.uid as usize] += 1;
                told[counted.who.uid as usize] += counted.count;
            }
            prop_assert_eq!(told, asked);
            let passed = (now - start).as_secs();
            // Its share and what came since; and in each while of counting the kinds, and
            // one an outcome for the rest.
            let most = u64::from(share) * (3600 + passed) / 3600 + 1 + (passed / TOGETHER.as_secs() + 2) * (KINDS as u64 + 2);
            prop_assert!(entries.iter().all(|entries| *entries <= most), "{entries:?} {most}");
            prop_assert_eq!(shares.take(used(0, 0, Outcome::Done), (), now, NOW), Told::Itself(used(0, 0, Outcome::Done), ()));
        }
    }

    #[test]
    fn a_flood_with_one_key_takes_two_entries_a_minute_and_leaves_the_others_their_own() {
        let mut shares = Shares::new(100);
        let start = Duration::ZERO;
        let (mut itself, mut counted) = (0, Vec::new());
        for number in 0..60_000_u32 {
            let now = start + Duration::from_millis(number.into());
            itself += u32::from(matches!(
                shares.take(used(7, 1, Outcome::Done), (), now, NOW),
                Told::Itself(..)
            ));
            counted.extend(shares.due(now));
        }
        assert!(matches!(shares.take(used(8, 1, Outcome::Done), (), start, NOW), Told::Itself(..)));
        counted.extend(shares.all());
        // 100, and one more for each 36 s.
        assert_eq!((itself, counted.len()), (101, 2), "{counted:?}");
        assert_eq!(
            counted.iter().map(|counted| counted.count).sum::<u64>() + u64::from(itself),
            60_000
        );
        assert_eq!(
            (counted[0].who.pid, counted[0].key.as_ref().unwrap().id.as_str()),
            (Some(7), "k1")
        );
    }

    #[test]
    fn many_uids_take_bounded_memory() {
        let mut shares = Shares::new(10);
        let now = Duration::ZERO;
        for uid in 0..1000 {
            let _ = shares.take(used(uid, 1, Outcome::Done), (), now, NOW);
        }
        assert_eq!(shares.by_uid.len(), UIDS);
        let _ = shares.take(used(2000, 1, Outcome::Done), (), now + HOUR * 2, NOW);
        assert_eq!(shares.by_uid.len(), 1);
    }
}
