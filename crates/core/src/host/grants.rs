//! Requests that the process that starts host modules accepts: what is in the
//! configuration, and nothing that the caller has added.

use std::collections::BTreeMap;

use super::plan::{Daemon, LaunchPlan, PlanError, plan};
use super::{Account, Accounts, HostModule, HostService, IdRange};
use crate::digest::Sha256Digest;
use crate::id::ModuleId;
use crate::settings::ModuledSettings;

/// The host modules and services of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Grants {
    modules: BTreeMap<String, HostModule>,
    services: BTreeMap<ModuleId, HostService>,
    ids: Option<IdRange>,
    allow_root: bool,
}

/// A start that is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The name in the configuration.
    pub name: &'a str,
    /// Absolute path.
    pub executable: &'a str,
    /// The digest that the executable's content must have.
    pub sha256: &'a Sha256Digest,
    /// The whole environment.
    pub env: &'a BTreeMap<String, String>,
    /// The folder that it starts in.
    pub working_dir: Option<&'a str>,
    /// The confinement of the program.
    pub plan: &'a LaunchPlan,
}

/// The reason why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotGranted {
    /// The configuration has no such module.
    #[error("the configuration has no host module {name:?}")]
    Unknown {
        /// As it was asked for.
        name: String,
    },
    /// One thing about it differs from the configuration.
    #[error("the {what} of host module {name:?} is not that of the configuration")]
    Differs {
        /// The name in the configuration.
        name: String,
        /// The thing, in words.
        what: &'static str,
    },
    /// As configured it cannot be started.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Nobody of the configuration has this user.
    #[error("no host module or service of the configuration has user {uid}")]
    User {
        /// The user's id.
        uid: u32,
    },
}

impl Grants {
    /// Returns the grants of the settings.
    #[must_use]
    pub fn of(settings: &ModuledSettings) -> Self {
        Self {
            modules: settings.host_modules.clone(),
            services: settings.host_services.clone(),
            ids: settings.host_module_ids,
            allow_root: settings.allow_root_host_modules,
        }
    }

    /// Lets a start pass that is as configured. The plan is made anew and compared.
    /// Arguments are the deployment's to choose, and so is what else the environment has.
    ///
    /// # Errors
    /// See [`NotGranted`].
    pub fn admit(
        &self,
        wanted: &Wanted<'_>,
        daemon: &Daemon,
        accounts: &Accounts,
    ) -> Result<(), NotGranted> {
        let unknown = || NotGranted::Unknown { name: wanted.name.to_owned() };
        let module = self.modules.get(wanted.name).ok_or_else(unknown)?;
        let differs = |what| Err(NotGranted::Differs { name: wanted.name.to_owned(), what });
        if wanted.executable != module.executable {
            return differs("executable");
        }
        // Which content was approved is the word of the one who asks. Where the program
        // is, is not.
        if *wanted.sha256 != module.sha256 && !self.is_approved_by_any(wanted.name) {
            return differs("digest");
        }
        if wanted.env.keys().any(|variable| HostModule::changes_loading(variable)) {
            return differs("environment");
        }
        if module.working_dir.is_some() && wanted.working_dir != module.working_dir.as_deref() {
            return differs("working folder");
        }
        let asked = Account { uid: wanted.plan.uid, gid: wanted.plan.gid };
        let own = self.own(asked, accounts).filter(|_| module.user.is_none());
        if module.user.is_none() && self.ids.is_some() && own.is_none() {
            return differs("user");
        }
        if plan(module, daemon, accounts, self.allow_root, own)? != *wanted.plan {
            return differs("plan");
        }
        Ok(())
    }

    /// Lets pass that a user's processes are ended, or that folders change hands with it:
    /// one that a host module or service has, or the daemon itself.
    ///
    /// # Errors
    /// [`NotGranted::User`].
    pub fn admit_user(
        &self,
        uid: u32,
        daemon: &Daemon,
        accounts: &Accounts,
    ) -> Result<(), NotGranted> {
        let modules = self.modules.values().filter_map(|module| module.user.as_deref());
        let services = self.services.values().filter_map(|service| service.user.as_deref());
        let named = || modules.chain(services).any(|user| accounts.uid(user) == Ok(uid));
        let own = || self.own(Account { uid, gid: uid }, accounts).is_some();
        if uid == daemon.account.uid || named() || own() {
            return Ok(());
        }
        Err(NotGranted::User { uid })
    }

    /// Returns true if a host agent may approve another content for a name.
    fn is_approved_by_any(&self, name: &str) -> bool {
        let modules = self.modules.values().map(|module| &module.approves);
        let services = self.services.values().map(|service| &service.approves);
        modules.chain(services).any(|approves| approves.iter().any(|approved| approved == name))
    }

    /// A user out of the range of host modules, if this is one and nobody else's.
    fn own(&self, account: Account, accounts: &Accounts) -> Option<Account> {
        let in_range = self.ids?.contains(account.uid) && account.gid == account.uid;
        (in_range && accounts.name(account.uid).is_none()).then_some(account)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host::{Capabilities, Capability};

    fn root() -> Daemon {
        let names = Capability::names();
        let capabilities: Capabilities =
            names.iter().map(|name| name.parse::<Capability>().expect("known")).collect();
        Daemon { account: Account { uid: 300, gid: 300 }, capabilities }
    }

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0::/:/bin/sh\nsensor:x:990:991::/:/bin/false\nkeyd:x:301:301::/:\n"
                .into(),
            group: String::new(),
        }
    }

    fn grants() -> Grants {
        let sensor =
            HostModule { user: Some("sensor".into()), ..HostModule::new("/opt/s", digest(1)) };
        let agent =
            HostModule { approves: vec!["agent".into()], ..HostModule::new("/opt/a", digest(2)) };
        Grants {
            modules: [("sensor".to_owned(), sensor), ("agent".to_owned(), agent)].into(),
            services: BTreeMap::new(),
            ids: Some(IdRange::new(70_000, 70_010).expect("a range")),
            allow_root: false,
        }
    }

    fn digest(byte: u8) -> Sha256Digest {
        Sha256Digest::new([byte; 32])
    }

    fn planned(name: &str, own: Option<u32>) -> LaunchPlan {
        let own = own.map(|id| Account { uid: id, gid: id });
        plan(&grants().modules[name], &root(), &accounts(), true, own).expect("possible")
    }

    #[test]
    fn what_is_configured_is_started_and_each_thing_that_differs_is_refused_by_name() {
        let (sensor, agent) = (planned("sensor", None), planned("agent", Some(70_003)));
        let env = BTreeMap::new();
        let preload = [("LD_PRELOAD".to_owned(), "/tmp/x.so".to_owned())].into();
        let (one, two, three) = (digest(1), digest(2), digest(3));
        let good = Wanted {
            name: "sensor",
            executable: "/opt/s",
            sha256: &one,
            env: &env,
            working_dir: None,
            plan: &sensor,
        };
        let own =
            Wanted { name: "agent", executable: "/opt/a", sha256: &two, plan: &agent, ..good };
        let admit = |wanted: Wanted<'_>| grants().admit(&wanted, &root(), &accounts());
        assert_eq!(admit(good), Ok(()));
        assert_eq!(admit(own), Ok(()));
        // A host agent may approve another content of this one.
        assert_eq!(admit(Wanted { sha256: &three, ..own }), Ok(()));

        let as_keyd = LaunchPlan { uid: 301, gid: 301, ..agent.clone() };
        let as_root = LaunchPlan { uid: 0, gid: 0, ..sensor.clone() };
        let in_daemons_place = planned("agent", None);
        let capable = LaunchPlan { capabilities: root().capabilities, ..sensor.clone() };
        let cases = [
            (Wanted { executable: "/bin/sh", ..good }, "executable"),
            (Wanted { sha256: &three, ..good }, "digest"),
            (Wanted { env: &preload, ..good }, "environment"),
            (Wanted { plan: &as_keyd, ..own }, "user"),
            (Wanted { plan: &in_daemons_place, ..own }, "user"),
            (Wanted { plan: &as_root, ..good }, "plan"),
            (Wanted { plan: &capable, ..good }, "plan"),
        ];
        for (wanted, what) in cases {
            let name = wanted.name.to_owned();
            assert_eq!(admit(wanted), Err(NotGranted::Differs { name, what }));
        }
        let unknown = NotGranted::Unknown { name: "other".into() };
        assert_eq!(admit(Wanted { name: "other", ..good }), Err(unknown));
    }

    #[test]
    fn only_users_of_modules_and_the_daemons_own_change_hands() {
        let admits = |uid| grants().admit_user(uid, &root(), &accounts()).is_ok();
        assert!(admits(300) && admits(990) && admits(70_000) && admits(70_010));
        assert!(!admits(0) && !admits(301) && !admits(70_011) && !admits(991));
    }

    proptest! {
        /// Whatever user and rights are asked for, what passes is what the plan of the
        /// configuration has.
        #[test]
        fn no_start_passes_with_another_plan(
            uid in prop_oneof![Just(0), Just(301), Just(990), 69_990u32..70_020], same: bool, bits: u64,
        ) {
            let mut asked = planned("agent", Some(70_000));
            asked.uid = uid;
            asked.gid = if same { uid } else { 0 };
            asked.capabilities =
                root().capabilities.iter().filter(|one| bits >> one.number() & 1 == 1).collect();
            let (env, sha256) = (BTreeMap::new(), digest(2));
            let wanted = Wanted {
                name: "agent", executable: "/opt/a", sha256: &sha256, env: &env, working_dir: None, plan: &asked,
            };
            let passes = grants().admit(&wanted, &root(), &accounts()).is_ok();
            let as_planned = same && (70_000..=70_010).contains(&uid) && asked.capabilities.is_empty();
            prop_assert_eq!(passes, as_planned);
        }
    }
}
