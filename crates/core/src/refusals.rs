//! Memory of refusals: bounded, and kept so that nobody's noise pushes out what is known
//! of others.
//!
//! Equal refusals are one entry with a count. A module has few entries; where there are
//! too many the caller with the most loses its oldest. What was asked for under names
//! that are not registered shares the place of one module, for such names are the
//! caller's to make up. Age is the order of arrival: clocks step.

use std::collections::BTreeMap;

use crate::attestation::{DenyReason, ExecutableFile};
use crate::id::ContainerId;

/// Different refusals that are remembered for one module.
pub const PER_MODULE: usize = 8;
/// Different refusals that are remembered in all.
pub const IN_ALL: usize = 256;

/// The party that was refused, named so that it cannot make itself many.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// Any process of a container.
    Container(ContainerId),
    /// Any other process of a user.
    User(u32),
}

/// The properties that two equal refusals have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// The module that was asked for.
    pub module: String,
    /// Method and route.
    pub route: String,
    /// The reason for the refusal.
    pub reason: DenyReason,
    /// The party that was refused.
    pub refused: Refused,
    /// The file that the party executed, if it is known.
    pub program: Option<ExecutableFile>,
}

/// A refusal, and how often it was repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered<T> {
    /// The kind of the refusal.
    pub kind: Kind,
    /// The number of equal refusals, the first included.
    pub count: u64,
    /// The time of the first of them.
    pub since: String,
    /// Details of the latest of them.
    pub latest: T,
    arrival: u64,
}

/// The refusals that are remembered.
#[derive(Debug)]
pub struct Refusals<T> {
    /// By registered module; empty for all other names.
    by_module: BTreeMap<String, Vec<Remembered<T>>>,
    arrivals: u64,
}

impl<T> Default for Refusals<T> {
    fn default() -> Self {
        Self { by_module: BTreeMap::new(), arrivals: 0 }
    }
}

impl<T> Refusals<T> {
    /// Takes a refusal in, with all that is told of it. `registered` says whether the
    /// name that was asked for is that of a registered module; `time` is only passed on.
    pub fn add(&mut self, kind: Kind, registered: bool, time: &str, told: T) {
        self.arrivals += 1;
        let arrival = self.arrivals;
        let bucket = if registered { kind.module.clone() } else { String::new() };
        let entries = self.by_module.entry(bucket).or_default();
        if let Some(same) = entries.iter_mut().find(|entry| entry.kind == kind) {
            same.count += 1;
            same.latest = told;
            same.arrival = arrival;
            return;
        }
        entries.push(Remembered { kind, count: 1, since: time.to_owned(), latest: told, arrival });
        if entries.len() > PER_MODULE {
            forget_one(entries);
        }
        if self.by_module.values().map(Vec::len).sum::<usize>() > IN_ALL {
            let fullest =
                self.by_module.values_mut().max_by_key(|entries| (entries.len(), age(entries)));
            fullest.into_iter().for_each(forget_one);
            self.by_module.retain(|_, entries| !entries.is_empty());
        }
    }

    /// Returns the remembered refusals, the latest first.
    #[must_use]
    pub fn latest(&self) -> Vec<&Remembered<T>> {
        let mut all: Vec<_> = self.by_module.values().flatten().collect();
        all.sort_by_key(|entry| std::cmp::Reverse(entry.arrival));
        all
    }
}

/// The oldest entry of the caller with the most of them; of several such callers, the
/// oldest of all.
fn forget_one<T>(entries: &mut Vec<Remembered<T>>) {
    let of =
        |refused: &Refused| entries.iter().filter(|entry| entry.kind.refused == *refused).count();
    let places = 0..entries.len();
    let goes = places
        .max_by_key(|at| (of(&entries[*at].kind.refused), std::cmp::Reverse(entries[*at].arrival)));
    if let Some(at) = goes {
        entries.remove(at);
    }
}

/// Greater for what is longer ago.
fn age<T>(entries: &[Remembered<T>]) -> std::cmp::Reverse<Option<u64>> {
    std::cmp::Reverse(entries.iter().map(|entry| entry.arrival).min())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind(module: &str, uid: u32, program: u64) -> Kind {
        Kind {
            module: module.to_owned(),
            route: "POST /sign".to_owned(),
            reason: DenyReason::NotInModule,
            refused: Refused::User(uid),
            program: Some(ExecutableFile { device: 1, inode: program, size: 0, ctime_ns: 0 }),
        }
    }

    #[test]
    fn equal_refusals_are_counted_and_tell_of_the_first_and_the_latest_time() {
        let mut refusals = Refusals::default();
        for time in 0..1000 {
            refusals.add(kind("m1", 1, 1), true, &time.to_string(), time);
        }
        let all = refusals.latest();
        assert_eq!(
            (all.len(), all[0].count, all[0].since.as_str(), all[0].latest),
            (1, 1000, "0", 999)
        );
    }

    #[test]
    fn who_makes_names_up_pushes_nobody_out() {
        let mut refusals = Refusals::default();
        refusals.add(kind("m1", 7, 1), true, "", ());
        for number in 0..10_000_u64 {
            refusals.add(kind(&format!("made-up-{number}"), 8, number), false, "", ());
        }
        assert_eq!(refusals.latest().len(), PER_MODULE + 1);
        assert!(refusals.latest().iter().any(|entry| entry.kind.module == "m1"));
    }

    #[test]
    fn who_makes_programs_up_pushes_only_itself_out() {
        let mut refusals = Refusals::default();
        for uid in 0..4 {
            refusals.add(kind("m1", uid, 1), true, "", ());
        }
        for program in 0..10_000 {
            refusals.add(kind("m1", 99, program), true, "", ());
        }
        let left: Vec<u32> = refusals
            .latest()
            .iter()
            .map(|entry| match entry.kind.refused {
                Refused::User(uid) => uid,
                Refused::Container(_) => unreachable!("none was added"),
            })
            .collect();
        assert!((0..4).all(|uid| left.contains(&uid)), "{left:?}");
        assert_eq!(left.len(), PER_MODULE);
    }

    proptest! {
        // Each case is long: it has to fill all places.
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn there_are_never_more_than_the_bounds_and_the_newest_is_always_there(
            added in prop::collection::vec((0_u32..80, any::<bool>(), 0_u32..6, 0_u64..20), 1..900)
        ) {
            let mut refusals = Refusals::default();
            for (at, (module, registered, uid, program)) in added.into_iter().enumerate() {
                let kind = kind(&format!("m{module}"), uid, program);
                refusals.add(kind.clone(), registered, "", at);
                let all = refusals.latest();
                prop_assert_eq!(all[0].latest, at);
                prop_assert_eq!(&all[0].kind, &kind);
                prop_assert!(all.len() <= IN_ALL);
                prop_assert!(all.windows(2).all(|pair| pair[0].arrival > pair[1].arrival));
            }
            prop_assert!(refusals.by_module.values().all(|entries| entries.len() <= PER_MODULE));
        }

    }

    proptest! {
        /// With few callers each keeps its share, whatever the others do.
        #[test]
        fn a_caller_within_its_share_loses_nothing(
            quiet in prop::collection::vec(0_u64..100, 1..=PER_MODULE / 2), noise in prop::collection::vec(any::<u64>(), 0..200)
        ) {
            let mut refusals = Refusals::default();
            for program in &quiet {
                refusals.add(kind("m1", 1, *program), true, "", ());
            }
            for program in noise {
                refusals.add(kind("m1", 2, program), true, "", ());
            }
            for program in quiet {
                prop_assert!(refusals.latest().iter().any(|entry| entry.kind == kind("m1", 1, program)));
            }
        }
    }
}
