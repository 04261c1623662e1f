//! The way from the operator's grant to what the launcher does.

use serde::{Deserialize, Serialize};

use super::accounts::{Account, AccountError, Accounts};
use super::capability::{Capabilities, Capability};
use super::{HostModule, Limits, SeccompPreset};

/// The daemon's own rights, which bound the rights that it can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Daemon {
    /// Its user and group.
    pub account: Account,
    /// The daemon's capabilities.
    pub capabilities: Capabilities,
}

/// Everything that happens to a host module's process before it becomes the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchPlan {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// True if user, group and supplementary groups are set. An unprivileged daemon can
    /// only leave them as they are.
    pub set_user: bool,
    /// The capabilities that the module keeps. All others leave the bounding set, too.
    pub capabilities: Capabilities,
    /// The only places of the file system that it reaches; `None`: wherever its user
    /// does.
    pub folders: Option<Folders>,
    /// The system calls that the module may make.
    pub seccomp: SeccompPreset,
    /// The resources that the module may use up.
    pub limits: Limits,
}

/// Places of the file system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Folders {
    /// For reading and executing.
    pub read: Vec<String>,
    /// For reading and changing.
    pub write: Vec<String>,
}

/// The reason why a host module cannot be started as it is configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Its user or group is not known.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// A group without a user.
    #[error("`group` takes a `user` beside it")]
    GroupAlone,
    /// It would run as uid 0.
    #[error(
        "it would run as root, which allow_root_host_modules = false forbids; give it a `user`"
    )]
    Root,
    /// The daemon cannot become its user.
    #[error(
        "the daemon runs as user {own} and cannot start it as user {wanted}; that takes CAP_SETUID and CAP_SETGID"
    )]
    OtherUser {
        /// The daemon's.
        own: u32,
        /// The module's.
        wanted: u32,
    },
    /// The daemon does not have what it should give.
    #[error("the daemon has no capability {capability} to give it")]
    Capability {
        /// The capability that the daemon lacks.
        capability: Capability,
    },
}

/// Plans the start of a host module. `own` is the user that it has for itself if the
/// configuration names none; without one it runs as the daemon does.
///
/// # Errors
/// What is configured cannot be done, or must not. Never a plan with less protection or
/// more rights than configured.
pub fn plan(
    module: &HostModule,
    daemon: &Daemon,
    accounts: &Accounts,
    allow_root: bool,
    own: Option<Account>,
) -> Result<LaunchPlan, PlanError> {
    let account = match (&module.user, &module.group) {
        (Some(user), group) => accounts.account(user, group.as_deref())?,
        (None, Some(_)) => return Err(PlanError::GroupAlone),
        (None, None) => own.unwrap_or(daemon.account),
    };
    if account.uid == 0 && !allow_root {
        return Err(PlanError::Root);
    }
    let has = |name: &str| {
        name.parse().is_ok_and(|one: Capability| daemon.capabilities.iter().any(|own| own == one))
    };
    let may_set = has("setuid") && has("setgid");
    if account != daemon.account && !may_set {
        return Err(PlanError::OtherUser { own: daemon.account.uid, wanted: account.uid });
    }
    if let Some(capability) =
        module.capabilities.iter().find(|one| daemon.capabilities.iter().all(|own| own != *one))
    {
        return Err(PlanError::Capability { capability });
    }
    let folders = (module.read.is_some() || module.write.is_some()).then(|| Folders {
        read: module.read.clone().unwrap_or_default(),
        write: module.write.clone().unwrap_or_default(),
    });
    Ok(LaunchPlan {
        uid: account.uid,
        gid: account.gid,
        set_user: may_set,
        capabilities: module.capabilities,
        folders,
        seccomp: module.seccomp,
        limits: module.limits,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest::Sha256Digest;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0::/:/bin/sh\nsensor:x:990:991::/:/bin/false\n".into(),
            group: "gpio:x:995:\n".into(),
        }
    }

    fn module() -> HostModule {
        HostModule::new("/opt/a", Sha256Digest::new([1; 32]))
    }

    fn all() -> Capabilities {
        Capability::names().iter().map(|name| name.parse::<Capability>().expect("known")).collect()
    }

    fn root() -> Daemon {
        Daemon { account: Account { uid: 0, gid: 0 }, capabilities: all() }
    }

    fn nobody() -> Daemon {
        Daemon { account: Account { uid: 700, gid: 701 }, capabilities: Capabilities::default() }
    }

    #[test]
    fn without_a_user_it_runs_as_the_daemon_with_no_capability() {
        for (daemon, set_user) in [(root(), true), (nobody(), false)] {
            let plan = plan(&module(), &daemon, &accounts(), true, None).expect("possible");
            assert_eq!(
                (plan.uid, plan.gid, plan.set_user),
                (daemon.account.uid, daemon.account.gid, set_user)
            );
            assert!(plan.capabilities.is_empty() && plan.folders.is_none());
        }
    }

    #[test]
    fn without_a_user_it_runs_as_its_own_where_there_is_one() {
        let own = Account { uid: 70_000, gid: 70_000 };
        let planned = plan(&module(), &root(), &accounts(), false, Some(own)).expect("possible");
        assert_eq!((planned.uid, planned.gid, planned.set_user), (70_000, 70_000, true));
        // Never as the daemon instead.
        let refused = PlanError::OtherUser { own: 700, wanted: 70_000 };
        assert_eq!(plan(&module(), &nobody(), &accounts(), true, Some(own)), Err(refused));
        let named = HostModule { user: Some("sensor".into()), ..module() };
        assert_eq!(
            plan(&named, &root(), &accounts(), false, Some(own)).map(|plan| plan.uid),
            Ok(990)
        );
    }

    #[test]
    fn what_cannot_or_must_not_be_is_refused_with_the_reason() {
        let with = |change: fn(&mut HostModule)| {
            let mut module = module();
            change(&mut module);
            module
        };
        let user = with(|module| module.user = Some("sensor".into()));
        let capable = with(|module| {
            module.capabilities = ["kill".parse().expect("known")].into_iter().collect();
        });
        let kill = "kill".parse().expect("known");
        let cases = [
            (module(), root(), false, PlanError::Root),
            (with(|module| module.user = Some("0".into())), root(), false, PlanError::Root),
            (user.clone(), nobody(), true, PlanError::OtherUser { own: 700, wanted: 990 }),
            (capable, nobody(), true, PlanError::Capability { capability: kill }),
            (
                with(|module| module.group = Some("gpio".into())),
                root(),
                true,
                PlanError::GroupAlone,
            ),
            (
                with(|module| module.user = Some("none".into())),
                root(),
                true,
                PlanError::Account(AccountError::NoUser { name: "none".into() }),
            ),
        ];
        for (module, daemon, allow_root, expected) in cases {
            assert_eq!(plan(&module, &daemon, &accounts(), allow_root, None), Err(expected));
        }
        assert_eq!(
            plan(&user, &root(), &accounts(), false, None).map(|plan| (plan.uid, plan.gid)),
            Ok((990, 991))
        );
    }

    proptest! {
        /// A plan never has more rights than what was configured, nor than the daemon,
        /// and keeps every restriction.
        #[test]
        fn a_plan_never_gives_more_than_configured(
            uid in prop::option::of(0u32..3), caps in any::<u64>(), own in any::<u64>(), allow_root in any::<bool>(),
            read in prop::option::of(prop::collection::vec("/[a-z]{1,3}", 0..3)),
        ) {
            let set = |bits: u64| all().iter().filter(|one| bits & (1 << one.number()) != 0).collect::<Capabilities>();
            let mut module = module();
            module.user = uid.map(|uid| uid.to_string());
            module.group = uid.map(|uid| uid.to_string());
            module.capabilities = set(caps & 0x3);
            module.read = read.clone();
            let daemon = Daemon { account: Account { uid: 0, gid: 0 }, capabilities: set(own) };
            if let Ok(plan) = plan(&module, &daemon, &accounts(), allow_root, None) {
                prop_assert_eq!(plan.capabilities, module.capabilities);
                prop_assert_eq!(plan.capabilities.bits() & !daemon.capabilities.bits(), 0);
                prop_assert!(allow_root || plan.uid != 0);
                prop_assert_eq!(plan.uid, uid.unwrap_or(0));
                prop_assert!(plan.set_user || plan.uid == 0);
                prop_assert_eq!(plan.folders.map(|folders| folders.read), read);
            }
        }
    }
}
