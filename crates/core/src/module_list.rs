//! Memory of the modules that a device's hub lists: the decision on what is remembered,
//! over values.
//!
//! Two rules: what cannot be read changes nothing, and when there is not room for all,
//! the modules that this device cannot do without come first, then those that it knew,
//! then the rest by name.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::{GenerationId, ModuleId};
use crate::provisioning::DeviceIdentity;

/// A device's knowledge of one of its modules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownModule {
    /// The hub's id for this life of the module.
    pub generation: GenerationId,
    /// The party that manages the module, as the hub tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_by: Option<String>,
}

/// The list of a device's modules, as it is kept on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredModules {
    /// The device whose modules these are.
    pub device: DeviceIdentity,
    /// The modules.
    pub modules: BTreeMap<ModuleId, KnownModule>,
    /// Modules that identityd itself has made, for programs of the host.
    #[serde(default)]
    pub own: BTreeSet<ModuleId>,
}

/// A hub's list, as far as it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T> {
    /// Entries that could be read.
    readable: BTreeMap<ModuleId, T>,
    /// Modules that are listed with something that cannot be used, or twice with
    /// different content.
    unreadable: BTreeSet<ModuleId>,
    /// Entries that name no module that could be one.
    nameless: usize,
}

/// One entry of a hub's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry<T> {
    /// A module, and what the list says about it.
    Readable(ModuleId, T),
    /// A module of which the list says something that cannot be used.
    Unreadable(ModuleId),
    /// No module's id.
    Nameless,
}

impl<T: PartialEq> FromIterator<Entry<T>> for Listing<T> {
    fn from_iter<I: IntoIterator<Item = Entry<T>>>(entries: I) -> Self {
        let mut listing =
            Self { readable: BTreeMap::new(), unreadable: BTreeSet::new(), nameless: 0 };
        for entry in entries {
            match entry {
                Entry::Readable(id, module) => match listing.readable.get(&id) {
                    Some(other) if *other != module => drop(listing.unreadable.insert(id)),
                    _ => drop(listing.readable.insert(id, module)),
                },
                Entry::Unreadable(id) => drop(listing.unreadable.insert(id)),
                Entry::Nameless => listing.nameless += 1,
            }
        }
        let Self { readable, unreadable, .. } = &mut listing;
        readable.retain(|id, _| !unreadable.contains(id));
        listing
    }
}

impl<T> Listing<T> {
    /// Modules of which the list says something that cannot be used.
    #[must_use]
    pub fn unreadable(&self) -> &BTreeSet<ModuleId> {
        &self.unreadable
    }

    /// Returns the number of entries that name no possible module.
    #[must_use]
    pub fn nameless(&self) -> usize {
        self.nameless
    }

    /// The same list with other content of its entries.
    #[must_use]
    pub fn map<U>(self, change: impl Fn(&T) -> U) -> Listing<U> {
        let readable =
            self.readable.into_iter().map(|(id, module)| (id, change(&module))).collect();
        Listing { readable, unreadable: self.unreadable, nameless: self.nameless }
    }

    /// The entries that could be read.
    #[must_use]
    pub fn readable(&self) -> &BTreeMap<ModuleId, T> {
        &self.readable
    }
}

/// The modules that are remembered after a list was taken over, and how many there was no
/// room for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken<T> {
    /// The modules.
    pub modules: BTreeMap<ModuleId, T>,
    /// Modules that are listed and not remembered.
    pub left_out: usize,
}

/// Takes a list over. `known` is what was remembered before; `is_newer` says of a module
/// that it was changed since the list was asked for, so that the list says nothing about
/// it; `is_needed` says that this device cannot do without it. At most `limit` modules
/// are remembered.
#[must_use]
pub fn taken_over<T: Clone>(
    known: &BTreeMap<ModuleId, T>,
    listing: &Listing<T>,
    is_newer: impl Fn(&ModuleId) -> bool,
    is_needed: impl Fn(&ModuleId) -> bool,
    limit: usize,
) -> Taken<T> {
    let stays = |id: &ModuleId| is_newer(id) || listing.unreadable.contains(id);
    let mut all: BTreeMap<&ModuleId, &T> =
        listing.readable.iter().filter(|(id, _)| !stays(id)).collect();
    all.extend(known.iter().filter(|(id, _)| stays(id)));
    let mut order: Vec<_> = all.into_iter().collect();
    // A stable sort: by name within each rank.
    order.sort_by_key(|(id, _)| (!is_needed(id), !known.contains_key(*id)));
    let left_out = order.len().saturating_sub(limit);
    let modules =
        order.into_iter().take(limit).map(|(id, module)| (id.clone(), module.clone())).collect();
    Taken { modules, left_out }
}

/// The module that makes room for `id` when `limit` modules are remembered: one that is
/// not needed, and was not just changed if there is such a one. `Ok(None)` if there is
/// room.
///
/// # Errors
/// If all that are remembered are needed and `id` is not, or there is no room at all.
pub fn makes_room<T>(
    known: &BTreeMap<ModuleId, T>,
    id: &ModuleId,
    is_newer: impl Fn(&ModuleId) -> bool,
    is_needed: impl Fn(&ModuleId) -> bool,
    limit: usize,
) -> Result<Option<ModuleId>, NoRoom> {
    if known.contains_key(id) || known.len() < limit {
        return Ok(None);
    }
    let others = || known.keys().rev().filter(|other| !is_needed(other));
    others()
        .find(|other| !is_newer(other))
        .or_else(|| others().next())
        .cloned()
        .map(Some)
        .ok_or(NoRoom)
}

/// Every module that is remembered is needed, and there are as many as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this device needs as many modules already as are remembered")]
pub struct NoRoom;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> ModuleId {
        format!("m{number:03}").parse().unwrap()
    }

    fn known(numbers: &BTreeMap<u8, u8>) -> BTreeMap<ModuleId, u8> {
        numbers.iter().map(|(number, life)| (id(*number), *life)).collect()
    }

    #[test]
    fn an_entry_that_cannot_be_read_keeps_what_was_known_and_adds_nothing() {
        let before = BTreeMap::from([(id(1), 1), (id(2), 1), (id(3), 1)]);
        let listing = [
            Entry::Unreadable(id(1)),
            Entry::Readable(id(2), 9),
            Entry::Unreadable(id(4)),
            Entry::Nameless,
        ];
        let after = taken_over(&before, &listing.into_iter().collect(), |_| false, |_| false, 10);
        assert_eq!(after.modules, BTreeMap::from([(id(1), 1), (id(2), 9)]));
    }

    #[test]
    fn a_module_that_is_listed_as_two_lives_is_not_readable() {
        let listing: Listing<u8> =
            [Entry::Readable(id(1), 1), Entry::Readable(id(1), 2)].into_iter().collect();
        assert!(listing.readable().is_empty() && listing.unreadable().contains(&id(1)));
        let listing: Listing<u8> =
            [Entry::Readable(id(1), 1), Entry::Readable(id(1), 1)].into_iter().collect();
        assert_eq!(listing.readable().len(), 1, "the same twice is the same");
    }

    fn entries() -> impl Strategy<Value = Vec<Entry<u8>>> {
        prop::collection::vec(
            prop_oneof![
                4 => (0_u8..40, 0_u8..3).prop_map(|(number, life)| Entry::Readable(id(number), life)),
                1 => (0_u8..40).prop_map(|number| Entry::Unreadable(id(number))),
                1 => Just(Entry::Nameless),
            ],
            0..60,
        )
    }

    proptest! {
        #[test]
        fn a_list_changes_only_what_it_says_and_pushes_out_nothing_that_is_needed(
            before in prop::collection::btree_map(0_u8..40, 0_u8..3, 0..20),
            entries in entries(),
            newer in prop::collection::btree_set(0_u8..40, 0..5),
            needed in prop::collection::btree_set(0_u8..40, 0..8),
            limit in 0_usize..30,
        ) {
            let before = known(&before);
            let newer: BTreeSet<_> = newer.into_iter().map(id).collect();
            let needed: BTreeSet<_> = needed.into_iter().map(id).collect();
            let listing: Listing<u8> = entries.into_iter().collect();
            let after = taken_over(&before, &listing, |id| newer.contains(id), |id| needed.contains(id), limit);
            prop_assert!(after.modules.len() <= limit);
            let stays = |id: &ModuleId| newer.contains(id) || listing.unreadable().contains(id);
            for (id, life) in &after.modules {
                let source = if stays(id) { before.get(id) } else { listing.readable().get(id) };
                prop_assert_eq!(source, Some(life));
            }
            let expected: BTreeSet<&ModuleId> = before
                .keys()
                .filter(|id| stays(id))
                .chain(listing.readable().keys().filter(|id| !stays(id)))
                .collect();
            prop_assert_eq!(after.modules.len() + after.left_out, expected.len());
            let rank = |id: &ModuleId| (!needed.contains(id), !before.contains_key(id));
            let last = after.modules.keys().map(rank).max();
            for id in expected {
                // Whoever is out is behind everybody who is in.
                prop_assert!(after.modules.contains_key(id) || last.is_none_or(|last| rank(id) >= last), "{}", id);
            }
        }

        #[test]
        fn who_makes_room_is_not_needed(
            before in prop::collection::btree_map(0_u8..40, 0_u8..3, 0..20),
            newer in prop::collection::btree_set(0_u8..40, 0..10),
            needed in prop::collection::btree_set(0_u8..40, 0..20),
            one in 0_u8..40,
            limit in 0_usize..20,
        ) {
            let before = known(&before);
            let newer: BTreeSet<_> = newer.into_iter().map(id).collect();
            let needed: BTreeSet<_> = needed.into_iter().map(id).collect();
            let (is_newer, is_needed) = (|id: &ModuleId| newer.contains(id), |id: &ModuleId| needed.contains(id));
            match makes_room(&before, &id(one), is_newer, is_needed, limit) {
                Ok(None) => prop_assert!(before.contains_key(&id(one)) || before.len() < limit),
                Ok(Some(out)) => {
                    prop_assert!(before.contains_key(&out) && !needed.contains(&out) && out != id(one));
                    let idle = before.keys().any(|id| !needed.contains(id) && !newer.contains(id));
                    prop_assert!(!idle || !newer.contains(&out));
                }
                Err(NoRoom) => prop_assert!(before.keys().all(|id| needed.contains(id))),
            }
        }
    }
}
