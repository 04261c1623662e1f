//! Waiting in turns: items of several owners, of whom none can push another aside or keep
//! it waiting.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// A bounded queue with a line for each owner. Lines are served in turns, one item at a
/// time.
///
/// One item of an owner waits for at most one item of each other owner, however much
/// these have handed in.
#[derive(Debug)]
pub struct FairQueue<K, T> {
    /// Most items of one owner.
    share: usize,
    /// Most items of all owners.
    limit: usize,
    waiting: usize,
    /// Lines with at least one item.
    lines: HashMap<K, VecDeque<T>>,
    /// The owner of each line, once, the next one first.
    turns: VecDeque<K>,
}

impl<K: Copy + Eq + Hash, T> FairQueue<K, T> {
    /// Makes a queue that holds at most `share` items of an owner and `limit` of all
    /// owners; at least one of each.
    #[must_use]
    pub fn new(share: usize, limit: usize) -> Self {
        Self {
            share: share.max(1),
            limit: limit.max(1),
            waiting: 0,
            lines: HashMap::new(),
            turns: VecDeque::new(),
        }
    }

    /// Hands an item in, and returns the item that has no place: this one if its owner
    /// has its share, or if all is full and nobody has more than its owner; else the
    /// newest item of the longest line.
    pub fn push(&mut self, owner: K, item: T) -> Option<T> {
        let own = self.lines.get(&owner).map_or(0, VecDeque::len);
        if own >= self.share {
            return Some(item);
        }
        let mut displaced = None;
        if self.waiting >= self.limit {
            let longest = self
                .lines
                .iter()
                .max_by_key(|(_, line)| line.len())
                .map(|(owner, line)| (*owner, line.len()));
            match longest {
                Some((longest, length)) if length > own + 1 => {
                    // Its line has other items left, so its turn stays.
                    displaced = self.lines.get_mut(&longest).and_then(VecDeque::pop_back);
                    self.waiting -= 1;
                }
                _ => return Some(item),
            }
        }
        let line = self.lines.entry(owner).or_default();
        if line.is_empty() {
            self.turns.push_back(owner);
        }
        line.push_back(item);
        self.waiting += 1;
        displaced
    }

    /// Takes the next item: the oldest one of the owner whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let owner = self.turns.pop_front()?;
        let line = self.lines.get_mut(&owner)?;
        let item = line.pop_front()?;
        self.waiting -= 1;
        if line.is_empty() {
            self.lines.remove(&owner);
        } else {
            self.turns.push_back(owner);
        }
        Some(item)
    }

    /// Returns true if nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_served_in_turns() {
        let mut queue = FairQueue::new(3, 10);
        for number in 0..4 {
            assert_eq!(queue.push('a', ('a', number)), (number == 3).then_some(('a', 3)));
        }
        assert_eq!(queue.push('b', ('b', 0)), None);
        let served: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(served, [('a', 0), ('b', 0), ('a', 1), ('a', 2)]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_full_queue_takes_from_the_longest_line() {
        let mut queue = FairQueue::new(3, 3);
        for number in 0..3 {
            assert_eq!(queue.push('a', ('a', number)), None);
        }
        assert_eq!(queue.push('b', ('b', 0)), Some(('a', 2)));
        assert_eq!(
            queue.push('b', ('b', 1)),
            Some(('b', 1)),
            "two and two of three would be no fairer"
        );
        assert_eq!(queue.push('c', ('c', 0)), Some(('a', 1)));
        assert_eq!(queue.push('d', ('d', 0)), Some(('d', 0)));
        let served: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(served, [('a', 0), ('b', 0), ('c', 0)]);
    }

    /// `Some(owner)` hands an item of an owner in, `None` takes one.
    fn steps() -> impl Strategy<Value = Vec<Option<u8>>> {
        prop::collection::vec(prop::option::weighted(0.7, 0u8..6), 0..300)
    }

    proptest! {
        #[test]
        fn bounds_hold_nothing_is_lost_and_each_line_keeps_its_order(
            steps in steps(), share in 1usize..6, limit in 1usize..20,
        ) {
            let mut queue = FairQueue::new(share, limit);
            let (mut held, mut last_served) = (BTreeSet::new(), HashMap::new());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Some(owner) => {
                        held.insert((owner, number));
                        if let Some(displaced) = queue.push(owner, (owner, number)) {
                            prop_assert!(held.remove(&displaced));
                        }
                    }
                    None => {
                        let served = queue.pop();
                        prop_assert_eq!(served.is_none(), held.is_empty());
                        if let Some((owner, number)) = served {
                            prop_assert!(held.remove(&(owner, number)));
                            prop_assert!(last_served.insert(owner, number).is_none_or(|last| last < number));
                        }
                    }
                }
                prop_assert!(held.len() <= limit);
                prop_assert_eq!(queue.is_empty(), held.is_empty());
                for owner in 0..6 {
                    prop_assert!(held.iter().filter(|(of, _)| *of == owner).count() <= share);
                }
            }
        }

        /// Whatever others do before and after, one item of an owner gets a place and is
        /// served after one of each other.
        #[test]
        fn nobody_keeps_another_waiting(before in steps(), after in steps(), share in 1usize..6, limit in 7usize..20) {
            const VICTIM: u8 = 200;
            let mut queue = FairQueue::new(share, limit);
            for step in before {
                let _ = match step {
                    Some(owner) => queue.push(owner, owner),
                    None => queue.pop(),
                };
            }
            prop_assert_ne!(queue.push(VICTIM, VICTIM), Some(VICTIM));
            let mut served_before = 0;
            for step in after.into_iter().chain(std::iter::repeat(None)) {
                match step {
                    Some(owner) => prop_assert_ne!(queue.push(owner, owner), Some(VICTIM)),
                    None => match queue.pop() {
                        Some(VICTIM) => break,
                        Some(_) => served_before += 1,
                        None => prop_assert!(false, "the item is lost"),
                    },
                }
            }
            prop_assert!(served_before <= 6, "{} others went first", served_before);
        }
    }
}
