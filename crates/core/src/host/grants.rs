//! Requests that the process that starts host modules accepts: what is in the
//! configuration, and nothing that the caller has added.

use std::collections::BTreeMap;

use super::plan::{Daemon, LaunchPlan, PlanError, plan};
use super::{Account, Accounts, HostModule, HostService, IdRange};
use crate::digest::Sha256Digest;
use crate::id::ModuleId;
use crate::settings::ModuledSettings;

/// Variables that the daemon sets, whatever the configuration says about them: the
/// sockets of the module.
const OWN_VARIABLES: [&str; 2] = ["IOTEDGE_WORKLOADURI", "IOTEDGE_MANAGEMENTURI"];

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
    /// Arguments are the deployment's to choose, and so are variables that the
    /// configuration does not set.
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
        let set = module.env.iter().filter(|(name, _)| !OWN_VARIABLES.contains(&name.as_str()));
        let as_set = |(name, value): (&String, &String)| wanted.env.get(name) == Some(value);
        if wanted.env.keys().any(|variable| HostModule::changes_loading(variable))
            || !set.into_iter().all(as_set)
        {
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

    /// Lets pass that folders change hands with a user: one that a host module or service
    /// has, or the daemon itself.
    ///
    /// # Errors
    /// [`NotGranted::User`].
    pub fn admit_owner(
        &self,
        uid: u32,
        daemon: &Daemon,
        accounts: &Accounts,
    ) -> Result<(), NotGranted> {
        let mut services = self.services.values().filter_map(|service| service.user.as_deref());
        let mut served = || services.any(|user| accounts.uid(user) == Ok(uid));
        if uid == daemon.account.uid || self.is_modules(uid, accounts) || served() {
            return Ok(());
        }
        Err(NotGranted::User { uid })
    }

    /// Lets pass that processes of a user are ended, although they may be no module's:
    /// only of a user that a host module has. The daemon's own user counts where modules
    /// share it. A service's user never counts.
    ///
    /// # Errors
    /// [`NotGranted::User`].
    pub fn admit_end(
        &self,
        uid: u32,
        daemon: &Daemon,
        accounts: &Accounts,
    ) -> Result<(), NotGranted> {
        let shared =
            || self.ids.is_none() && self.modules.values().any(|module| module.user.is_none());
        if self.is_modules(uid, accounts) || (uid == daemon.account.uid && shared()) {
            return Ok(());
        }
        Err(NotGranted::User { uid })
    }

    /// Returns true if a host module has this user, by its name or out of the range.
    fn is_modules(&self, uid: u32, accounts: &Accounts) -> bool {
        let mut named = self.modules.values().filter_map(|module| module.user.as_deref());
        named.any(|user| accounts.uid(user) == Ok(uid))
            || self.own(Account { uid, gid: uid }, accounts).is_some()
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

    /// The same, with a service that has the user keyd.
    fn served() -> Grants {
        let service: HostService =
            serde_json::from_value(serde_json::json!({ "unit": "k.service", "user": "keyd" }))
                .expect("a service");
        Grants { services: [("service".parse().expect("an id"), service)].into(), ..grants() }
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
    fn folders_change_hands_with_users_of_modules_services_and_the_daemon_alone() {
        let admits = |uid| served().admit_owner(uid, &root(), &accounts()).is_ok();
        assert!(admits(300) && admits(301) && admits(990) && admits(70_000) && admits(70_010));
        assert!(!admits(0) && !admits(70_011) && !admits(991));
    }

    #[test]
    fn processes_of_services_are_never_ended_and_the_daemons_own_only_where_modules_share_it() {
        let admits = |grants: &Grants, uid| grants.admit_end(uid, &root(), &accounts()).is_ok();
        assert!(admits(&served(), 990) && admits(&served(), 70_000));
        assert!(!admits(&served(), 0) && !admits(&served(), 301), "a service's");
        assert!(!admits(&served(), 300), "each module has a user of its own");
        let shared = Grants { ids: None, ..served() };
        assert!(admits(&shared, 300) && !admits(&shared, 70_000));
    }

    #[test]
    fn what_the_operator_sets_in_the_environment_cannot_be_left_out_or_changed() {
        let mut grants = grants();
        let env = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
        };
        let sensor = grants.modules.get_mut("sensor").expect("there");
        sensor.env = env(&[("MODE", "safe"), ("IOTEDGE_WORKLOADURI", "unix:///elsewhere")]);
        let (sha256, plan) = (digest(1), planned("sensor", None));
        let admits = |env: &BTreeMap<String, String>| {
            let wanted = Wanted {
                name: "sensor",
                executable: "/opt/s",
                sha256: &sha256,
                env,
                working_dir: None,
                plan: &plan,
            };
            grants.admit(&wanted, &root(), &accounts())
        };
        let own = ("IOTEDGE_WORKLOADURI", "unix:///run/m.sock");
        assert_eq!(admits(&env(&[("MODE", "safe"), ("MORE", "1"), own])), Ok(()));
        let name = "sensor".to_owned();
        let refused = Err(NotGranted::Differs { name, what: "environment" });
        assert_eq!(admits(&env(&[("MODE", "unsafe"), own])), refused);
        assert_eq!(admits(&env(&[own])), refused);
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
