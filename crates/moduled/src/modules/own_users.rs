//! The users that host modules have for themselves, as they were given and written down.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use edgekeep_core::health::{Code, Subject};
use edgekeep_core::host::{self, Account, Accounts, HostModule, IdRange, OwnUserError};
use edgekeep_core::id::ModuleId;
use edgekeep_core::settings::ModuledSettings;
use edgekeep_daemon::store::{StateFile, StoreError};

use crate::modules::Modules;

/// The ids of host modules, in memory and on disk.
#[derive(Debug)]
pub(crate) struct OwnUsers {
    file: StateFile<host::OwnUsers>,
    known: Mutex<host::OwnUsers>,
}

/// Failure to give a module a user of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoOwnUser {
    /// There is none for it.
    #[error(transparent)]
    User(#[from] OwnUserError),
    /// It cannot be written down, so it might be given to another one later.
    #[error("its user cannot be written down")]
    Store(#[from] StoreError),
}

impl OwnUsers {
    /// Reads the ids in `state_folder`.
    ///
    /// # Errors
    /// If the file is there and cannot be used: without it ids could be given twice.
    pub(crate) fn load(state_folder: &Path) -> Result<Self, StoreError> {
        let file = StateFile::new(state_folder.join("own-users.json"), "own-users", 1);
        let known = file.load()?.unwrap_or_default();
        Ok(Self { file, known: Mutex::new(known) })
    }

    /// Takes over which ids modules have that are there already, in case the file was
    /// lost.
    pub(crate) fn remember(
        &self,
        modules: impl IntoIterator<Item = (ModuleId, u32)>,
        settings: &ModuledSettings,
    ) {
        let Some(range) = settings.host_module_ids else { return };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (module, id) in modules {
            if range.contains(id) {
                known.remember(&module, id);
            }
        }
    }

    /// The user and group that a module has for itself, written down before it is used.
    fn of(
        &self,
        module: &ModuleId,
        range: IdRange,
        accounts: &Accounts,
        used: &BTreeSet<u32>,
    ) -> Result<Account, NoOwnUser> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = known.clone();
        let account = next.of(module, range, accounts, used)?;
        if next != *known {
            self.file.save(&next)?;
            *known = next;
        }
        Ok(account)
    }
}

/// The user that a module has for itself, if the configuration gives its program none and
/// modules have some.
///
/// # Errors
/// See [`NoOwnUser`].
pub(crate) fn own_account(
    modules: &Modules,
    module: &ModuleId,
    registered: &HostModule,
    accounts: &Accounts,
) -> Result<Option<Account>, NoOwnUser> {
    let Some(range) = modules.settings.host_module_ids.filter(|_| registered.user.is_none()) else {
        return Ok(None);
    };
    let of_modules =
        modules.settings.host_modules.values().filter_map(|module| module.user.as_deref());
    let of_services =
        modules.settings.host_services.values().filter_map(|service| service.user.as_deref());
    let used = of_modules.chain(of_services).filter_map(|user| accounts.uid(user).ok()).collect();
    modules.own_users.of(module, range, accounts, &used).map(Some)
}

/// Tells the board which host modules share a user, on a device whose daemons do not.
pub(crate) fn look(modules: &Modules) {
    if modules.settings.host_module_ids.is_none() {
        return;
    }
    let users: BTreeMap<ModuleId, u32> = modules.registrations.of_processes().into_iter().collect();
    let shared = host::sharing(&users, rustix::process::geteuid().as_raw());
    let found = shared.into_iter().map(|(module, uid, others)| {
        (Subject::module(&module), format!("user {uid} is also that of {}", others.join(", ")))
    });
    modules.board.replace(Code::SharedUser, found);
}
