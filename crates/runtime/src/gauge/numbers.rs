//! Descriptors in which processes have had connections: where to look first, and no proof
//! of anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edgekeep_core::attestation::Holding;

/// Numbers of descriptors that are remembered for a process: programs that hold more
/// connections at a time are looked through for each further one.
const REMEMBERED: usize = 64;

/// Numbers of descriptors in which a process has had connections, each with how many of
/// the open ones it is known for.
#[derive(Debug, Default)]
pub(super) struct Numbers(BTreeMap<u32, u32>);

impl Numbers {
    /// The numbers in the order in which they are worth a look. The kernel gives the
    /// lowest free number to whatever is opened, so the free ones come first.
    pub(super) fn in_order(&self) -> Vec<u32> {
        let with = |free: bool| {
            self.0.iter().filter(move |(_, uses)| (**uses == 0) == free).map(|(number, _)| *number)
        };
        with(true).chain(with(false)).collect()
    }

    fn begin(&mut self, number: u32) {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&number) {
            let Some(free) = self.0.iter().find(|(_, uses)| **uses == 0).map(|(free, _)| *free)
            else {
                return;
            };
            self.0.remove(&free);
        }
        *self.0.entry(number).or_default() += 1;
    }

    fn end(&mut self, number: u32) {
        if let Some(uses) = self.0.get_mut(&number) {
            *uses = uses.saturating_sub(1);
        }
    }
}

/// The way in which a connection is held, as it was when looked at. While this value
/// lives, its descriptor counts as taken.
#[derive(Debug)]
pub struct Held {
    holding: Holding,
    descriptor: Option<(u32, Arc<Mutex<Numbers>>)>,
}

impl Held {
    /// Makes a value that is known without a look.
    #[must_use]
    pub fn told(holding: Holding) -> Self {
        Self { holding, descriptor: None }
    }

    /// Makes a value from a look at a process whose numbers are remembered.
    pub(super) fn seen(
        holding: Holding,
        number: Option<u32>,
        numbers: Option<&Arc<Mutex<Numbers>>>,
    ) -> Self {
        let descriptor = number.zip(numbers.cloned());
        if let Some((number, numbers)) = &descriptor {
            lock(numbers).begin(*number);
        }
        Self { holding, descriptor }
    }

    /// Returns the way in which the connection is held.
    #[must_use]
    pub fn holding(&self) -> Holding {
        self.holding
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((number, numbers)) = &self.descriptor {
            lock(numbers).end(*number);
        }
    }
}

pub(super) fn lock(numbers: &Mutex<Numbers>) -> MutexGuard<'_, Numbers> {
    numbers.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_free_number_is_tried_before_one_that_a_connection_is_known_for() {
        let mut numbers = Numbers::default();
        for number in [7, 5, 9] {
            numbers.begin(number);
        }
        numbers.end(9);
        numbers.end(5);
        assert_eq!(numbers.in_order(), [5, 9, 7]);
    }

    proptest! {
        #[test]
        fn no_program_makes_more_numbers_remembered_than_the_bound(
            events in prop::collection::vec((0_u32..200, any::<bool>()), 0..400),
        ) {
            let mut numbers = Numbers::default();
            for (number, begins) in events {
                if begins { numbers.begin(number) } else { numbers.end(number) }
                prop_assert!(numbers.0.len() <= REMEMBERED);
                prop_assert_eq!(numbers.in_order().len(), numbers.0.len());
            }
        }
    }
}
