//! Registrations: what moduled wrote down about each module when it made the module. They
//! survive restarts. A module without a registration has no identity, whatever runs under
//! its name.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use edgekeep_core::attestation::{Registration, Workload};
use edgekeep_core::id::{ContainerId, ModuleId};
use edgekeep_core::layout::REGISTRATIONS_FILE;
use edgekeep_daemon::store::{StateFile, StoreError};
use tokio::sync::Mutex;

/// The registrations, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Registrations {
    file: StateFile<BTreeMap<String, Registration>>,
    known: RwLock<BTreeMap<String, Registration>>,
    /// Held while a change is being written, so that the file always has the newest.
    writing: Mutex<()>,
}

impl Registrations {
    /// Reads the registrations in `state_folder`.
    ///
    /// # Errors
    /// If the file is there and cannot be used.
    pub(crate) fn load(state_folder: &Path) -> Result<Self, StoreError> {
        let file = StateFile::of(state_folder, REGISTRATIONS_FILE);
        let known = file.load()?.unwrap_or_default();
        Ok(Self { file, known: RwLock::new(known), writing: Mutex::new(()) })
    }

    /// The registration of a module.
    #[must_use]
    pub(crate) fn of(&self, module: &ModuleId) -> Option<Registration> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(module.name()).cloned()
    }

    /// All registered modules.
    #[must_use]
    pub(crate) fn modules(&self) -> Vec<ModuleId> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().map(|registration| registration.module.clone()).collect()
    }

    /// Host modules with the users that they run as.
    #[must_use]
    pub(crate) fn of_processes(&self) -> Vec<(ModuleId, u32)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let process = |registration: &Registration| match registration.workload {
            Workload::Process { uid, .. } => Some((registration.module.clone(), uid)),
            _ => None,
        };
        known.values().filter_map(process).collect()
    }

    /// The module for which a container was made.
    #[must_use]
    pub(crate) fn of_container(&self, container: &ContainerId) -> Option<ModuleId> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let made = known.values().find(|registration| {
            matches!(&registration.workload, Workload::Container { container: made, .. } if made == container)
        });
        made.map(|registration| registration.module.clone())
    }

    /// Writes a registration over the module's earlier one.
    ///
    /// # Errors
    /// If it cannot be written; the earlier one is then still in force.
    pub(crate) async fn put(&self, registration: Registration) -> Result<(), StoreError> {
        self.change(|known| {
            known.insert(registration.module.name().to_owned(), registration);
        })
        .await
    }

    /// Removes a module's registration, if it has one.
    ///
    /// # Errors
    /// If that cannot be written; the registration is then still in force.
    pub(crate) async fn remove(&self, module: &ModuleId) -> Result<(), StoreError> {
        if self.of(module).is_none() {
            return Ok(());
        }
        self.change(|known| {
            known.remove(module.name());
        })
        .await
    }

    async fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Registration>),
    ) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        let mut next = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        change(&mut next);
        self.file.save(&next)?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }
}
