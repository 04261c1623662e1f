//! POSIX access control lists of a socket's file, as the kernel reads and writes them
//! (`system.posix_acl_access`, `posix_acl_xattr.h`): users who are kept out of a socket
//! are entries in it, so that the kernel turns them away.
//!
//! An entry of ours has the one permission that means nothing for a socket, to execute.
//! So it is known again after a crash, and nobody else's entry is taken for ours.

use std::collections::BTreeSet;

/// Version of the form.
const VERSION: u32 = 2;
/// The id of an entry that has none.
const NO_ID: u32 = u32::MAX;
const HEAD: usize = 4;
const ENTRY: usize = 8;
/// Permissions of our entries.
const KEPT_OUT: u16 = 1;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The error of a list that the kernel would not have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an access control list of another form")]
pub struct NotAnAccessList;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// An access control list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessList(Vec<Entry>);

impl AccessList {
    /// The list that is the same as a file's mode.
    #[must_use]
    pub fn of_mode(mode: u32) -> Self {
        let entry = |tag, shift: u32| {
            let permissions = u16::try_from((mode >> shift) & 7).unwrap_or_default();
            Entry { tag, permissions, id: NO_ID }
        };
        Self(vec![entry(USER_OBJ, 6), entry(GROUP_OBJ, 3), entry(OTHER, 0)])
    }

    /// Reads a list in the kernel's form.
    ///
    /// # Errors
    /// If it has another form.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotAnAccessList> {
        let (head, rest) = bytes.split_first_chunk::<HEAD>().ok_or(NotAnAccessList)?;
        let (entries, []) = rest.as_chunks::<ENTRY>() else { return Err(NotAnAccessList) };
        if u32::from_le_bytes(*head) != VERSION {
            return Err(NotAnAccessList);
        }
        let entries: Vec<Entry> = entries
            .iter()
            .map(|[t0, t1, p0, p1, i0, i1, i2, i3]| Entry {
                tag: u16::from_le_bytes([*t0, *t1]),
                permissions: u16::from_le_bytes([*p0, *p1]),
                id: u32::from_le_bytes([*i0, *i1, *i2, *i3]),
            })
            .collect();
        let count = |tag| entries.iter().filter(|entry| entry.tag == tag).count();
        let whole = [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(|tag| count(tag) == 1)
            && count(MASK) <= 1
            && entries.iter().all(|entry| {
                [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(&entry.tag)
                    && entry.permissions <= 7
            });
        whole.then_some(Self(entries)).ok_or(NotAnAccessList)
    }

    /// Returns the list in the kernel's form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for Entry { tag, permissions, id } in &self.0 {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    /// Users that our entries keep out.
    #[must_use]
    pub fn kept_out(&self) -> BTreeSet<u32> {
        self.0.iter().filter(|entry| is_ours(entry)).map(|entry| entry.id).collect()
    }

    /// The same list with these users kept out and no others. A user that somebody else
    /// has named in the list keeps what that entry says.
    #[must_use]
    pub fn keeping_out(&self, users: &BTreeSet<u32>) -> Self {
        let mut entries: Vec<Entry> =
            self.0.iter().filter(|entry| !is_ours(entry)).copied().collect();
        let named: BTreeSet<u32> =
            entries.iter().filter(|entry| entry.tag == USER).map(|entry| entry.id).collect();
        let ours = users.difference(&named);
        entries.extend(ours.map(|id| Entry { tag: USER, permissions: KEPT_OUT, id: *id }));
        let names = |entry: &Entry| matches!(entry.tag, USER | GROUP);
        let group = entries.iter().find(|entry| entry.tag == GROUP_OBJ).copied();
        let mask = entries.iter().find(|entry| entry.tag == MASK).copied();
        match (entries.iter().any(names), mask, group) {
            // With names the mask is what the file's mode shows for the group.
            (true, None, Some(group)) => entries.push(Entry { tag: MASK, ..group }),
            // Whoever changed the mode meanwhile has changed the mask.
            (false, Some(mask), _) => {
                entries.retain(|entry| entry.tag != MASK);
                for entry in entries.iter_mut().filter(|entry| entry.tag == GROUP_OBJ) {
                    entry.permissions &= mask.permissions;
                }
            }
            _ => {}
        }
        // The kernel wants this order.
        entries.sort_by_key(|entry| (entry.tag, entry.id));
        Self(entries)
    }
}

fn is_ours(entry: &Entry) -> bool {
    entry.tag == USER && entry.permissions == KEPT_OUT
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Permissions of a user in no group of the file, by the rules of acl(5).
    fn permissions(list: &AccessList, user: u32) -> u16 {
        let of = |tag| list.0.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions);
        let named = list.0.iter().find(|entry| entry.tag == USER && entry.id == user);
        named.map_or_else(
            || of(OTHER).unwrap(),
            |entry| entry.permissions & of(MASK).expect("names need a mask"),
        )
    }

    fn group(list: &AccessList) -> u16 {
        let of = |tag| list.0.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions);
        of(GROUP_OBJ).unwrap() & of(MASK).unwrap_or(7)
    }

    #[test]
    fn a_user_that_is_kept_out_may_not_write_and_all_others_may_as_before() {
        let open = AccessList::of_mode(0o666);
        let kept = open.keeping_out(&BTreeSet::from([65534, 7]));
        assert_eq!(kept.kept_out(), BTreeSet::from([7, 65534]));
        let all = [7, 65534, 8].map(|user| permissions(&kept, user));
        assert_eq!((all, group(&kept)), ([0, 0, 6], 6));
        assert_eq!(kept.keeping_out(&BTreeSet::new()), open);
    }

    #[test]
    fn the_bytes_are_those_that_the_kernel_writes() {
        // getfattr -e hex of a file with mode 0666 and `setfacl -m u:7:x`.
        let list = AccessList::of_mode(0o666).keeping_out(&BTreeSet::from([7]));
        let hex: String = list.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = "02000000\
            01000600ffffffff\
            0200010007000000\
            04000600ffffffff\
            10000600ffffffff\
            20000600ffffffff";
        assert_eq!(hex, expected);
        assert_eq!(AccessList::parse(&list.to_bytes()), Ok(list));
    }

    #[test]
    fn a_mode_that_was_narrowed_meanwhile_stays_narrow() {
        let mut kept = AccessList::of_mode(0o660).keeping_out(&BTreeSet::from([7]));
        // What chmod 0600 does to a list.
        for entry in kept.0.iter_mut().filter(|entry| matches!(entry.tag, MASK | OTHER)) {
            entry.permissions = 0;
        }
        assert_eq!(kept.keeping_out(&BTreeSet::new()), AccessList::of_mode(0o600));
    }

    fn lists() -> impl Strategy<Value = AccessList> {
        let names = prop::collection::btree_map((prop::bool::ANY, 0_u32..6), 0_u16..8, 0..5);
        (0_u32..0o1000, names, 0_u16..8).prop_map(|(mode, names, mask)| {
            let AccessList(mut entries) = AccessList::of_mode(mode);
            for ((user, id), permissions) in &names {
                let tag = if *user { USER } else { GROUP };
                entries.push(Entry { tag, permissions: *permissions, id: *id });
            }
            if !names.is_empty() {
                entries.push(Entry { tag: MASK, permissions: mask, id: NO_ID });
            }
            entries.sort_by_key(|entry| (entry.tag, entry.id));
            AccessList(entries)
        })
    }

    proptest! {
        #[test]
        fn entries_of_others_stay_and_nobody_gets_more_than_before(
            list in lists(), rounds in prop::collection::vec(prop::collection::btree_set(0_u32..9, 0..5), 1..5),
        ) {
            let foreign = |list: &AccessList| -> Vec<Entry> {
                let AccessList(entries) = list;
                entries.iter().filter(|entry| !is_ours(entry) && entry.tag != MASK).copied().collect()
            };
            let clean = list.keeping_out(&BTreeSet::new());
            let mut now = clean.clone();
            for users in rounds {
                now = now.keeping_out(&users);
                prop_assert_eq!(foreign(&now), foreign(&clean));
                prop_assert_eq!(AccessList::parse(&now.to_bytes()), Ok(now.clone()));
                for user in 0..9 {
                    let may = permissions(&now, user);
                    if now.kept_out().contains(&user) {
                        prop_assert_eq!(may & 6, 0);
                    } else {
                        prop_assert_eq!(may, permissions(&clean, user));
                    }
                }
                prop_assert_eq!(group(&now), group(&clean));
            }
            prop_assert_eq!(now.keeping_out(&BTreeSet::new()), clean);
        }

        #[test]
        fn no_bytes_are_taken_for_a_list_that_they_are_not(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(list) = AccessList::parse(&bytes) {
                prop_assert_eq!(list.to_bytes(), bytes);
            }
        }
    }
}
