//! Users that host modules have for themselves: ids out of a range that nobody else uses.
//!
//! An id that was ever given stays the module's, also when the module is gone: files of
//! it may be anywhere, and another module must not find itself their owner. A module that
//! comes back under its name has its id again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::accounts::{Account, Accounts};
use crate::id::ModuleId;

/// Ids that host modules get, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdRange {
    first: u32,
    last: u32,
}

/// The reason why a text is no range of ids for host modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdRangeError {
    /// It has another form.
    #[error("expected two numbers like \"61184-65519\", the smaller first, or \"off\"")]
    Form,
    /// It has ids that mean something.
    #[error(
        "ids below 1000, 65534, 65535 and 4294967295 are other users' on every system; choose others"
    )]
    Reserved,
}

impl IdRange {
    /// Ids of these two and between.
    ///
    /// # Errors
    /// There are none, or some are not for a module.
    pub fn new(first: u32, last: u32) -> Result<Self, IdRangeError> {
        if first > last {
            return Err(IdRangeError::Form);
        }
        let range = Self { first, last };
        let reserved =
            first < 1000 || [65534, 65535, u32::MAX].into_iter().any(|id| range.contains(id));
        if reserved { Err(IdRangeError::Reserved) } else { Ok(range) }
    }

    /// Returns true if an id is in the range.
    #[must_use]
    pub fn contains(self, id: u32) -> bool {
        (self.first..=self.last).contains(&id)
    }
}

impl Default for IdRange {
    /// 4096 ids right behind those of systemd's containers, where systemd's list of uses
    /// (<https://systemd.io/UIDS-GIDS/>) has nothing.
    fn default() -> Self {
        Self { first: 0x7000_0000, last: 0x7000_0fff }
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for IdRange {
    type Err = IdRangeError;

    fn from_str(text: &str) -> Result<Self, IdRangeError> {
        let number = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
        };
        let (first, last) = text.split_once('-').ok_or(IdRangeError::Form)?;
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(IdRangeError::Form);
        };
        Self::new(first, last)
    }
}

impl From<IdRange> for String {
    fn from(range: IdRange) -> Self {
        range.to_string()
    }
}

impl TryFrom<String> for IdRange {
    type Error = IdRangeError;

    fn try_from(text: String) -> Result<Self, IdRangeError> {
        text.parse()
    }
}

/// The reason why a module gets no user of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OwnUserError {
    /// Each id of the range is or was another's.
    #[error(
        "no id of host_module_ids = \"{range}\" is left for it: ids of former modules are not given again, since files \
         of theirs may be left; name a larger range, or give it a `user`"
    )]
    Exhausted {
        /// The range.
        range: IdRange,
    },
    /// Its id has become somebody's.
    #[error(
        "its id {id} is now that of `{name}` in /etc/passwd or /etc/group, which would share files and memory with it; \
         give `{name}` another id, or the module a `user`"
    )]
    Taken {
        /// The id.
        id: u32,
        /// The user or group.
        name: String,
    },
}

/// The ids that modules have, or had.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OwnUsers(BTreeMap<ModuleId, u32>);

impl OwnUsers {
    /// The user and group of a module: those that it has had before, else the lowest ones
    /// of `range` that no module has or had, that are nobody's in `accounts` and not in
    /// `used`. What is new must be written down before it is used.
    ///
    /// # Errors
    /// See [`OwnUserError`]. Nothing has changed then.
    pub fn of(
        &mut self,
        module: &ModuleId,
        range: IdRange,
        accounts: &Accounts,
        used: &BTreeSet<u32>,
    ) -> Result<Account, OwnUserError> {
        if let Some(id) = self.0.get(module).copied() {
            return match accounts.name(id).or_else(|| accounts.group_name(id)) {
                Some(name) => Err(OwnUserError::Taken { id, name: name.to_owned() }),
                None => Ok(Account { uid: id, gid: id }),
            };
        }
        let given: BTreeSet<u32> = self.0.values().copied().collect();
        let free = |id: &u32| {
            !given.contains(id)
                && !used.contains(id)
                && accounts.name(*id).is_none()
                && accounts.group_name(*id).is_none()
        };
        let id = (range.first..=range.last).find(free).ok_or(OwnUserError::Exhausted { range })?;
        self.0.insert(module.clone(), id);
        Ok(Account { uid: id, gid: id })
    }

    /// Takes over that a module has an id, as far as neither it nor the id is known.
    pub fn remember(&mut self, module: &ModuleId, id: u32) {
        if !self.0.values().any(|given| *given == id) {
            self.0.entry(module.clone()).or_insert(id);
        }
    }
}

/// The host modules that share their user with another one or with the daemon, each with
/// the others. uid 0 is over all others anyway, and is left out.
#[must_use]
pub fn sharing(
    modules: &BTreeMap<ModuleId, u32>,
    daemon: u32,
) -> Vec<(ModuleId, u32, Vec<String>)> {
    let others = |module: &ModuleId, uid: u32| {
        let of_it = modules.iter().filter(|(other, of)| *other != module && **of == uid);
        let names = of_it.map(|(other, _)| other.to_string());
        names.chain((uid == daemon).then(|| "moduled".to_owned())).collect::<Vec<_>>()
    };
    let shared = modules.iter().map(|(module, uid)| (module.clone(), *uid, others(module, *uid)));
    shared.filter(|(_, uid, others)| *uid != 0 && !others.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: u32, last: u32) -> IdRange {
        IdRange::new(first, last).expect("usable")
    }

    fn module(number: usize) -> ModuleId {
        format!("m{number}").parse().expect("a name")
    }

    #[test]
    fn a_range_is_two_numbers_that_are_nobodys() {
        assert_eq!("61184-65519".parse(), Ok(range(61184, 65519)));
        assert_eq!(range(61184, 65519).to_string(), "61184-65519");
        assert_eq!("5000-5000".parse(), Ok(range(5000, 5000)));
        for text in [
            "",
            "5000",
            "-",
            "5000-",
            "-5000",
            "5001-5000",
            "a-b",
            "+5000-6000",
            "5000-6000-7000",
            "5000 - 6000",
        ] {
            assert_eq!(text.parse::<IdRange>(), Err(IdRangeError::Form), "{text}");
        }
        for text in ["0-10", "999-2000", "60000-65534", "65535-70000", "5000-4294967295"] {
            assert_eq!(text.parse::<IdRange>(), Err(IdRangeError::Reserved), "{text}");
        }
        assert_eq!(IdRange::default().to_string().parse(), Ok(IdRange::default()));
    }

    #[test]
    fn who_shares_a_user_is_told_with_whom() {
        let modules =
            BTreeMap::from([(module(0), 5000), (module(1), 5000), (module(2), 13), (module(3), 0)]);
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let expected = [
            (module(0), 5000, of(&["m1"])),
            (module(1), 5000, of(&["m0"])),
            (module(2), 13, of(&["moduled"])),
        ];
        assert_eq!(sharing(&modules, 13), expected);
        assert_eq!(sharing(&BTreeMap::from([(module(3), 0), (module(4), 0)]), 0), []);
    }

    #[test]
    fn an_id_that_becomes_somebodys_is_not_used_on() {
        let mut users = OwnUsers::default();
        let (range, used) = (range(5000, 5001), BTreeSet::new());
        assert_eq!(
            users.of(&module(0), range, &Accounts::default(), &used),
            Ok(Account { uid: 5000, gid: 5000 })
        );
        let mut accounts =
            Accounts { passwd: "eve:x:5000:5000::/:/bin/sh\n".into(), group: String::new() };
        let taken = OwnUserError::Taken { id: 5000, name: "eve".into() };
        assert_eq!(users.of(&module(0), range, &accounts, &used), Err(taken));
        accounts = Accounts { passwd: String::new(), group: "eve:x:5001:\n".into() };
        assert_eq!(
            users.of(&module(1), range, &accounts, &used),
            Err(OwnUserError::Exhausted { range })
        );
    }

    #[test]
    fn an_id_that_is_found_is_kept_for_its_module_and_no_other() {
        let mut users = OwnUsers::default();
        users.remember(&module(0), 5000);
        users.remember(&module(1), 5000);
        users.remember(&module(0), 5001);
        let of = |users: &mut OwnUsers, number| {
            users
                .of(&module(number), range(5000, 5009), &Accounts::default(), &BTreeSet::new())
                .map(|it| it.uid)
        };
        assert_eq!(
            (of(&mut users, 0), of(&mut users, 1), of(&mut users, 2)),
            (Ok(5000), Ok(5001), Ok(5002))
        );
    }

    proptest! {
        /// In whatever order modules come, go and come back, and whatever becomes of the
        /// range, of the system's users and of the state on disk: no two modules ever
        /// have one id, a module always has the same, and it is nobody else's.
        #[test]
        fn no_id_is_ever_given_to_two_modules(
            steps in prop::collection::vec((0usize..12, 5000u32..5006, 1u32..12, prop::option::of(5000u32..5016)), 1..80),
        ) {
            let mut users = OwnUsers::default();
            let mut known: BTreeMap<usize, u32> = BTreeMap::new();
            for (number, first, length, somebody) in steps {
                let range = range(first, first + length);
                let accounts = Accounts {
                    passwd: somebody.map(|id| format!("s:x:{id}:{id}::/:/bin/sh\n")).unwrap_or_default(),
                    group: String::new(),
                };
                let used = BTreeSet::from([5003]);
                let before = users.clone();
                match users.of(&module(number), range, &accounts, &used) {
                    Ok(account) => {
                        prop_assert_eq!(account.uid, account.gid);
                        prop_assert_ne!(Some(account.uid), somebody);
                        if let Some(had) = known.insert(number, account.uid) {
                            prop_assert_eq!(had, account.uid);
                        } else {
                            prop_assert!(range.contains(account.uid) && account.uid != 5003);
                        }
                    }
                    Err(error) => {
                        prop_assert_eq!(&users, &before);
                        match error {
                            OwnUserError::Taken { id, .. } => prop_assert_eq!(known.get(&number), Some(&id)),
                            OwnUserError::Exhausted { .. } => prop_assert!(!known.contains_key(&number)),
                        }
                    }
                }
                let ids: BTreeSet<u32> = known.values().copied().collect();
                prop_assert_eq!(ids.len(), known.len());
                let text = serde_json::to_string(&users).expect("it has text");
                users = serde_json::from_str(&text).expect("it can be read");
            }
        }
    }
}
