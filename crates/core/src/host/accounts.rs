//! Users and groups out of the text of `/etc/passwd` and `/etc/group`. Directories behind
//! the name service switch are not asked: a module's user must not depend on the network.

/// The reason why a user or group is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// No such user.
    #[error(
        "there is no user {name:?}; make it, for example with `useradd --system`, or give its number"
    )]
    NoUser {
        /// As it was written.
        name: String,
    },
    /// No such group.
    #[error(
        "there is no group {name:?}; make it, for example with `groupadd --system`, or give its number"
    )]
    NoGroup {
        /// As it was written.
        name: String,
    },
    /// A number without an entry has no group of its own.
    #[error("user {uid} has no entry in /etc/passwd: say with `group` which group it runs as")]
    GroupNeeded {
        /// The number.
        uid: u32,
    },
}

/// A user with the group that it runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The system's users and groups.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    /// `/etc/passwd`.
    pub passwd: String,
    /// `/etc/group`.
    pub group: String,
}

impl Accounts {
    /// The id of a user that is given by name or number.
    ///
    /// # Errors
    /// [`AccountError::NoUser`]
    pub fn uid(&self, user: &str) -> Result<u32, AccountError> {
        number(user)
            .or_else(|| number(field(&self.passwd, 0, user, 2)?))
            .ok_or_else(|| AccountError::NoUser { name: user.to_owned() })
    }

    /// The name of a user, if it has one.
    #[must_use]
    pub fn name(&self, uid: u32) -> Option<&str> {
        let number = uid.to_string();
        self.passwd.lines().find_map(|line| {
            let (name, rest) = line.split_once(':')?;
            (rest.split(':').nth(1)? == number && !name.is_empty()).then_some(name)
        })
    }

    /// The name of a group, if it has one.
    #[must_use]
    pub fn group_name(&self, gid: u32) -> Option<&str> {
        let number = gid.to_string();
        self.group.lines().find_map(|line| {
            let (name, rest) = line.split_once(':')?;
            (rest.split(':').nth(1)? == number && !name.is_empty()).then_some(name)
        })
    }

    /// A user and the group it runs as: the one that is given, else its own.
    ///
    /// # Errors
    /// See [`AccountError`].
    pub fn account(&self, user: &str, group: Option<&str>) -> Result<Account, AccountError> {
        let uid = self.uid(user)?;
        let gid = match group {
            Some(group) => number(group)
                .or_else(|| number(field(&self.group, 0, group, 2)?))
                .ok_or_else(|| AccountError::NoGroup { name: group.to_owned() })?,
            None => field(&self.passwd, 2, &uid.to_string(), 3)
                .and_then(number)
                .ok_or(AccountError::GroupNeeded { uid })?,
        };
        Ok(Account { uid, gid })
    }
}

/// A number as an id. All ones mean "unchanged" to the kernel, and are nobody.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number != u32::MAX)
}

/// Field `wanted` of the first line whose field `key` is `value`.
fn field<'a>(text: &'a str, key: usize, value: &str, wanted: usize) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        // One pass: `wanted` stands behind `key` in all uses.
        (fields.nth(key)? == value).then(|| fields.nth(wanted - key - 1)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\n+::::::\nsensor:x:990:991::/:/bin/false\n"
                .into(),
            group: "root:x:0:\ngpio:x:995:sensor\n".into(),
        }
    }

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        let accounts = accounts();
        assert_eq!(accounts.account("sensor", None), Ok(Account { uid: 990, gid: 991 }));
        assert_eq!(accounts.account("990", Some("gpio")), Ok(Account { uid: 990, gid: 995 }));
        assert_eq!(accounts.account("4711", Some("4712")), Ok(Account { uid: 4711, gid: 4712 }));
        assert_eq!(accounts.account("4711", None), Err(AccountError::GroupNeeded { uid: 4711 }));
        assert_eq!((accounts.name(990), accounts.name(991)), (Some("sensor"), None));
        assert_eq!(
            accounts.account("sensor", Some("none")),
            Err(AccountError::NoGroup { name: "none".into() })
        );
    }

    #[test]
    fn what_is_no_user_is_none() {
        // All ones would leave the user as it is: root's.
        for user in ["", "senso", "x", "4294967295", "-1", "+5", "sensor:x"] {
            assert_eq!(
                accounts().uid(user),
                Err(AccountError::NoUser { name: user.into() }),
                "{user}"
            );
        }
    }
}
