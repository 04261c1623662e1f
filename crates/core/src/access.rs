//! Access to the identity API: a function of the caller's uid and the configured
//! principals (wire facts 5.2).

use crate::settings::{IdentityKind, IdentityPrincipal};

/// Roles of callers of the identity API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role<'a> {
    /// A daemon of this device, or root: everything.
    Daemon,
    /// Somebody with an identity of its own.
    Principal(&'a IdentityPrincipal),
    /// Anybody else.
    Nobody,
}

/// The configured principals.
#[derive(Debug, Clone)]
pub struct Access(Vec<IdentityPrincipal>);

impl Access {
    /// The access of these principals.
    #[must_use]
    pub fn new(principals: Vec<IdentityPrincipal>) -> Self {
        Self(principals)
    }

    /// Returns the role of a uid. Of several entries for one uid the last counts; root
    /// needs none.
    #[must_use]
    pub fn role(&self, uid: u32) -> Role<'_> {
        match self.0.iter().rev().find(|principal| principal.uid == uid) {
            Some(principal) if principal.kinds.is_empty() => Role::Daemon,
            Some(principal) => Role::Principal(principal),
            None if uid == 0 => Role::Daemon,
            None => Role::Nobody,
        }
    }

    /// The principal of this name, if it may have an identity of this kind.
    #[must_use]
    pub fn named(&self, name: &str, kind: IdentityKind) -> Option<&IdentityPrincipal> {
        self.0.iter().find(|principal| principal.name == name && principal.kinds.contains(&kind))
    }

    /// Names of the principals that have a module identity.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(|it| it.kinds.contains(&IdentityKind::Module))
            .map(|it| it.name.as_str())
    }
}

impl Role<'_> {
    /// True for a daemon of this device, and root.
    #[must_use]
    pub fn is_daemon(self) -> bool {
        self == Role::Daemon
    }

    /// True if the device's own identity is for this caller.
    #[must_use]
    pub fn may_have_device(self) -> bool {
        match self {
            Self::Daemon => true,
            Self::Principal(principal) => principal.kinds.contains(&IdentityKind::Device),
            Self::Nobody => false,
        }
    }

    /// True if the identity of this kind and name is for this caller.
    #[must_use]
    pub fn may_have(self, name: &str, kind: IdentityKind) -> bool {
        match self {
            Self::Daemon => true,
            Self::Principal(principal) => principal.name == name && principal.kinds.contains(&kind),
            Self::Nobody => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn principal(uid: u32, name: &str, kinds: &[IdentityKind]) -> IdentityPrincipal {
        IdentityPrincipal { uid, name: name.to_owned(), kinds: kinds.to_vec() }
    }

    fn access() -> Access {
        Access::new(vec![
            principal(10, "edge", &[]),
            principal(11, "scanner", &[IdentityKind::Module]),
            principal(12, "old", &[]),
            principal(12, "updater", &[IdentityKind::Device, IdentityKind::Local]),
        ])
    }

    #[test]
    fn an_entry_without_kinds_is_a_daemon_and_so_is_root() {
        assert!(access().role(10).is_daemon());
        assert!(access().role(0).is_daemon());
        assert_eq!(access().role(13), Role::Nobody);
    }

    #[test]
    fn an_entry_for_root_restricts_root() {
        let access = Access::new(vec![principal(0, "scanner", &[IdentityKind::Module])]);
        assert!(!access.role(0).is_daemon());
    }

    #[test]
    fn of_several_entries_for_one_uid_the_last_counts() {
        let access = access();
        let role = access.role(12);
        assert!(!role.is_daemon() && role.may_have_device());
        assert!(
            role.may_have("updater", IdentityKind::Local)
                && !role.may_have("updater", IdentityKind::Module)
        );
    }

    #[test]
    fn a_module_principal_has_its_own_identity_and_no_other() {
        let access = access();
        let role = access.role(11);
        assert!(role.may_have("scanner", IdentityKind::Module));
        assert!(
            !role.may_have("other", IdentityKind::Module)
                && !role.may_have("scanner", IdentityKind::Local)
        );
        assert!(!role.may_have_device());
        assert_eq!(access.modules().collect::<Vec<_>>(), ["scanner"]);
    }

    proptest! {
        /// Whatever the settings say: no uid has another one's identity, and a uid
        /// without an entry has none, unless it is root.
        #[test]
        fn nobody_has_an_identity_but_by_an_entry_of_its_own(
            entries in prop::collection::vec((0_u32..6, 0_usize..4, 0_usize..8), 0..8),
            uid in 0_u32..6,
        ) {
            let names = ["a", "b", "c", "d"];
            let kinds = [IdentityKind::Module, IdentityKind::Device, IdentityKind::Local];
            let principals: Vec<IdentityPrincipal> = entries
                .into_iter()
                .map(|(uid, name, of)| {
                    let kinds: Vec<_> =
                        (0..3).filter(|at| of >> at & 1 != 0).map(|at| kinds[at]).collect();
                    principal(uid, names[name], &kinds)
                })
                .collect();
            let access = Access::new(principals.clone());
            let role = access.role(uid);
            let own = principals.iter().rfind(|principal| principal.uid == uid);
            for name in names {
                for kind in kinds {
                    let expected = match own {
                        None => uid == 0,
                        Some(own) if own.kinds.is_empty() => true,
                        Some(own) => own.name == name && own.kinds.contains(&kind),
                    };
                    prop_assert_eq!(role.may_have(name, kind), expected);
                }
            }
            prop_assert!(!role.is_daemon() || own.is_none_or(|own| own.kinds.is_empty()));
        }
    }
}
