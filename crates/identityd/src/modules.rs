//! The module identities of this device, as last heard from the hub: in memory for every
//! answer, on disk for the next start. Nobody waits for the hub to be told about a module
//! that is known here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use edgekeep_base::lock::lock;
use edgekeep_cloud::{ListedModule, ModuleRecord};
use edgekeep_core::id::ModuleId;
use edgekeep_core::module_list::{KnownModule, Listing, StoredModules, makes_room, taken_over};
use edgekeep_core::provisioning::DeviceIdentity;
use edgekeep_daemon::store::{StateFile, StoreError};

/// Most modules remembered. A hub has 50 for a device.
const MODULES: usize = 1000;

/// Facts about one module, out of the hub's answer to a question about it.
pub(crate) fn of_record(record: &ModuleRecord) -> KnownModule {
    let (generation, managed_by) = (record.generation_id.clone(), record.managed_by.clone());
    KnownModule { generation, managed_by }
}

/// Facts about one module, out of the hub's list.
pub(crate) fn of_listed(listed: &ListedModule) -> KnownModule {
    let (generation, managed_by) = (listed.generation_id.clone(), listed.managed_by.clone());
    KnownModule { generation, managed_by }
}

#[derive(Debug, Default)]
struct Known {
    device: Option<DeviceIdentity>,
    modules: BTreeMap<ModuleId, KnownModule>,
    own: BTreeSet<ModuleId>,
    /// Modules of the principals that are configured now.
    principals: BTreeSet<ModuleId>,
    /// True if the hub's whole list has been seen for this device.
    is_complete: bool,
    /// Counts changes that did not come from a list.
    changes: u64,
    /// Modules with such a change, each with the value of `changes` after its last
    /// change.
    changed: BTreeMap<ModuleId, u64>,
    /// Differs from what is on disk.
    is_dirty: bool,
}

/// The modules.
#[derive(Debug)]
pub(crate) struct Modules {
    known: Mutex<Known>,
    file: StateFile<StoredModules>,
    /// Held while writing the file, so that an older state never overwrites a newer one.
    writing: tokio::sync::Mutex<()>,
}

/// A moment in the sequence of changes; see [`Modules::replace`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark(u64);

impl Modules {
    /// The modules in `file`. A damaged file has been set aside by the time this returns;
    /// the hub has the truth.
    pub(crate) fn open(file: StateFile<StoredModules>) -> Self {
        let mut known = Known::default();
        match file.load() {
            Ok(Some(StoredModules { device, modules, own })) => {
                known = Known { device: Some(device), modules, own, ..Known::default() };
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "the list of modules is lost; it is asked for again");
            }
        }
        Self { known: Mutex::new(known), file, writing: tokio::sync::Mutex::new(()) }
    }

    /// Names the modules of the principals that are configured.
    pub(crate) fn serve(&self, principals: BTreeSet<ModuleId>) {
        self.known().principals = principals;
    }

    /// From now on the modules are those of `device`. Those of another device are
    /// forgotten.
    pub(crate) fn belong_to(&self, device: &DeviceIdentity) {
        let mut known = self.known();
        if known.device.as_ref() != Some(device) {
            let changes = known.changes + 1;
            let principals = std::mem::take(&mut known.principals);
            *known = Known {
                device: Some(device.clone()),
                principals,
                changes,
                is_dirty: true,
                ..Known::default()
            };
        }
    }

    /// A module of `device`.
    pub(crate) fn get(&self, device: &DeviceIdentity, module: &ModuleId) -> Option<KnownModule> {
        let known = self.known();
        if known.device.as_ref() == Some(device) {
            known.modules.get(module).cloned()
        } else {
            None
        }
    }

    /// All modules of `device`.
    pub(crate) fn all(&self, device: &DeviceIdentity) -> Vec<(ModuleId, KnownModule)> {
        let known = self.known();
        let is_asked_for = known.device.as_ref() == Some(device);
        known
            .modules
            .iter()
            .filter(|_| is_asked_for)
            .map(|(id, module)| (id.clone(), module.clone()))
            .collect()
    }

    /// Returns true if the hub's whole list for `device` has been seen since the start.
    pub(crate) fn is_complete(&self, device: &DeviceIdentity) -> bool {
        let known = self.known();
        known.is_complete && known.device.as_ref() == Some(device)
    }

    /// Modules that were created for this device's own principals.
    pub(crate) fn own(&self) -> BTreeSet<ModuleId> {
        self.known().own.clone()
    }

    pub(crate) fn set_own(&self, own: BTreeSet<ModuleId>) {
        let mut known = self.known();
        if known.own != own {
            known.own = own;
            known.is_dirty = true;
        }
    }

    /// To be taken before the hub is asked for its list.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.known().changes)
    }

    /// Takes over the hub's list for `device`. What was changed since `mark` stays: the
    /// list may be older than that. How many modules are listed and not remembered.
    pub(crate) fn replace(
        &self,
        device: &DeviceIdentity,
        mark: Mark,
        listing: &Listing<KnownModule>,
    ) -> usize {
        let mut known = self.known();
        if known.device.as_ref() != Some(device) {
            return 0;
        }
        let is_newer = |id: &ModuleId| known.changed.get(id).is_some_and(|change| *change > mark.0);
        let taken = taken_over(&known.modules, listing, is_newer, |id| known.needs(id), MODULES);
        known.changed.retain(|_, change| *change > mark.0);
        known.is_dirty |= known.modules != taken.modules;
        known.modules = taken.modules;
        known.is_complete = true;
        taken.left_out
    }

    /// Takes over one module of `device`, as the hub just answered it.
    pub(crate) fn set(&self, device: &DeviceIdentity, record: &ModuleRecord) {
        let mut known = self.known();
        if known.device.as_ref() != Some(device) {
            return;
        }
        let is_newer = |id: &ModuleId| known.changed.contains_key(id);
        match makes_room(&known.modules, &record.module_id, is_newer, |id| known.needs(id), MODULES)
        {
            Ok(None) => {}
            Ok(Some(other)) => drop(known.modules.remove(&other)),
            Err(error) => {
                return tracing::error!(module = %record.module_id, %error, "a module is not remembered");
            }
        }
        let module = of_record(record);
        known.note_change(&record.module_id);
        known.is_dirty |= known.modules.get(&record.module_id) != Some(&module);
        known.modules.insert(record.module_id.clone(), module);
    }

    /// Forgets one module of `device`, which the hub does not have (any more).
    pub(crate) fn remove(&self, device: &DeviceIdentity, module: &ModuleId) {
        let mut known = self.known();
        if known.device.as_ref() != Some(device) {
            return;
        }
        known.note_change(module);
        known.is_dirty |= known.modules.remove(module).is_some();
    }

    /// Writes the file if anything changed. Callers that were overtaken find nothing to
    /// do.
    pub(crate) async fn save(&self) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        let state = {
            let mut known = self.known();
            let (true, Some(device)) = (known.is_dirty, known.device.clone()) else {
                return Ok(());
            };
            known.is_dirty = false;
            StoredModules { device, modules: known.modules.clone(), own: known.own.clone() }
        };
        let file = self.file.clone();
        let saved = tokio::task::spawn_blocking(move || file.save(&state)).await;
        let saved = saved.unwrap_or_else(|error| {
            let source = std::io::Error::other(error);
            Err(StoreError::Io { step: "write", path: self.file.path().to_owned(), source })
        });
        if saved.is_err() {
            self.known().is_dirty = true;
        }
        saved
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }
}

impl Known {
    /// Returns true if this device cannot do without a module. This holds for the modules
    /// of the device's own principals and for the modules of the runtime itself.
    fn needs(&self, module: &ModuleId) -> bool {
        self.own.contains(module)
            || self.principals.contains(module)
            || module.as_str().starts_with('$')
    }

    fn note_change(&mut self, module: &ModuleId) {
        self.changes += 1;
        // Only what the next list may contradict is kept, and that is cut to what fits.
        if self.changed.len() >= MODULES {
            self.changed.clear();
        }
        self.changed.insert(module.clone(), self.changes);
    }
}

#[cfg(test)]
mod tests {
    use edgekeep_core::layout::MODULES_FILE;
    use edgekeep_core::module_list::Entry;

    use super::*;

    fn device(id: &str) -> DeviceIdentity {
        DeviceIdentity { hub: "hub.test".to_owned(), device_id: id.parse().unwrap() }
    }

    fn record(id: &str, generation: &str) -> ModuleRecord {
        ModuleRecord {
            module_id: id.parse().unwrap(),
            generation_id: generation.parse().unwrap(),
            managed_by: None,
            etag: None,
            keys: None,
        }
    }

    fn list(records: &[ModuleRecord]) -> Listing<KnownModule> {
        records
            .iter()
            .map(|record| Entry::Readable(record.module_id.clone(), of_record(record)))
            .collect()
    }

    fn open(folder: &std::path::Path) -> Modules {
        Modules::open(StateFile::of(folder, MODULES_FILE))
    }

    fn generation(modules: &Modules, id: &str) -> Option<String> {
        let device = modules.known().device.clone().unwrap();
        modules.get(&device, &id.parse().unwrap()).map(|it| it.generation.to_string())
    }

    #[tokio::test]
    async fn what_was_known_is_known_after_a_restart_also_offline() {
        let folder = tempfile::tempdir().unwrap();
        let modules = open(folder.path());
        modules.belong_to(&device("a"));
        modules.replace(&device("a"), modules.mark(), &list(&[record("m", "1")]));
        modules.save().await.unwrap();
        let modules = open(folder.path());
        modules.belong_to(&device("a"));
        assert_eq!(generation(&modules, "m").as_deref(), Some("1"));
        assert!(!modules.is_complete(&device("a")), "the hub has not been heard yet");
    }

    #[tokio::test]
    async fn modules_of_another_device_are_void_even_if_the_file_was_not_rewritten() {
        let folder = tempfile::tempdir().unwrap();
        let modules = open(folder.path());
        modules.belong_to(&device("a"));
        modules.set(&device("a"), &record("m", "1"));
        modules.save().await.unwrap();
        let modules = open(folder.path());
        modules.belong_to(&device("b"));
        assert_eq!(generation(&modules, "m"), None);
        // An answer to a question about the former device comes late.
        modules.set(&device("a"), &record("m", "1"));
        modules.replace(&device("a"), modules.mark(), &list(&[record("m", "1")]));
        assert_eq!(generation(&modules, "m"), None);
    }

    #[test]
    fn a_list_that_was_asked_for_before_a_change_does_not_undo_it() {
        let folder = tempfile::tempdir().unwrap();
        let modules = open(folder.path());
        let it = device("a");
        modules.belong_to(&it);
        modules.set(&it, &record("kept", "1"));
        modules.set(&it, &record("deleted", "1"));
        let mark = modules.mark();
        modules.set(&it, &record("created", "2"));
        modules.remove(&it, &"deleted".parse().unwrap());
        modules.replace(&it, mark, &list(&[record("kept", "9"), record("deleted", "1")]));
        assert_eq!(generation(&modules, "kept").as_deref(), Some("9"));
        assert_eq!(generation(&modules, "created").as_deref(), Some("2"));
        assert_eq!(generation(&modules, "deleted"), None);
        // The next list counts again.
        modules.replace(&it, modules.mark(), &list(&[record("kept", "9")]));
        assert_eq!(generation(&modules, "created"), None);
    }

    #[tokio::test]
    async fn a_damaged_file_is_set_aside_and_the_list_starts_empty() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("modules.json"), "garbage").unwrap();
        let modules = open(folder.path());
        assert!(modules.all(&device("a")).is_empty());
        let names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert!(names[0].to_string_lossy().contains("damaged"), "{names:?}");
    }

    #[test]
    fn an_entry_without_a_usable_generation_leaves_the_module_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let modules = open(folder.path());
        let it = device("a");
        modules.belong_to(&it);
        modules.replace(&it, modules.mark(), &list(&[record("m", "1"), record("n", "1")]));
        let unreadable =
            [Entry::Unreadable("m".parse().unwrap()), Entry::Unreadable("x".parse().unwrap())];
        modules.replace(&it, modules.mark(), &unreadable.into_iter().collect());
        assert_eq!(generation(&modules, "m").as_deref(), Some("1"));
        assert_eq!((generation(&modules, "n"), generation(&modules, "x")), (None, None));
    }

    #[test]
    fn a_list_that_is_too_long_pushes_out_neither_own_modules_nor_known_ones() {
        let folder = tempfile::tempdir().unwrap();
        let modules = open(folder.path());
        let it = device("a");
        modules.belong_to(&it);
        modules.serve(BTreeSet::from(["z-principal".parse().unwrap()]));
        modules.set_own(BTreeSet::from(["z-own".parse().unwrap()]));
        modules.replace(&it, modules.mark(), &list(&[record("z-known", "1")]));
        let named = ["z-own", "z-principal", "z-known", "$edgeHub", "z-strange"];
        let many: Vec<_> =
            (0..MODULES).map(|number| record(&format!("a{number:04}"), "1")).collect();
        let listed: Vec<_> = many.into_iter().chain(named.map(|id| record(id, "1"))).collect();
        assert_eq!(modules.replace(&it, modules.mark(), &list(&listed)), 5);
        let has = |id: &str| generation(&modules, id).is_some();
        assert_eq!(named.map(has), [true, true, true, true, false]);
        // The table is full: a module that is asked for by name is remembered all the
        // same.
        modules.set(&it, &record("z-asked", "1"));
        assert!(has("z-asked") && has("z-own"));
        assert_eq!(modules.all(&it).len(), MODULES);
    }
}
