//! Memory of the keys that there are, outside of the places that the keys are in. So a
//! key that is gone is not made anew without a word: what was derived from the key, or
//! encrypted under it, would be void.
//!
//! `kept` in the state folder has the ids. An id is in it only after its key is there,
//! and goes before its key is deleted: cut off in between, a key is there that is not
//! remembered, which the next use makes up for. So a device that had keys before this
//! file was there, remembers them as they are used, and no cut makes a key seem lost.
//!
//! `accepted-losses` has the ids whose loss an operator accepted
//! (`edgekeep keys accept-loss`), a line each, until the next start.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use edgekeep_base::file::{self, Rules};
use edgekeep_base::lock::lock;
use edgekeep_core::id::KeyId;
use edgekeep_daemon::store::{StateFile, StoreError};
use edgekeep_hsm::{KeyBackend, KeyError};
use serde::{Deserialize, Serialize};

/// Most ids that are remembered, several times what a device has. A further key is made,
/// and not missed when it is gone.
const LIMIT: usize = 8192;
/// Largest file of accepted losses, in bytes.
const ACCEPTED_LIMIT: u64 = 256 * 1024;

/// The file of accepted losses in keyd's state folder; `edgekeep keys accept-loss` knows
/// the name too.
fn accepted_losses(state_folder: &Path) -> PathBuf {
    state_folder.join("accepted-losses")
}

/// A key that is remembered, and is in none of the places.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "key \"{id}\" was there and is gone: restore it (`edgekeep keys restore`), or accept that all that was made with it is void \
     (`edgekeep keys accept-loss {id}`) and restart keyd"
)]
pub(crate) struct LostKey {
    id: KeyId,
}

/// The reason why a key was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    #[error(transparent)]
    Lost(#[from] LostKey),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// The keys that are remembered, as the file has them.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    /// Keys of callers.
    keys: BTreeSet<KeyId>,
    /// keyd's own.
    #[serde(default)]
    own: BTreeSet<KeyId>,
}

/// The keys that are remembered.
pub(crate) struct Kept {
    file: StateFile<Memory>,
    memory: Mutex<Memory>,
}

impl Kept {
    /// Opens the memory in the state folder. A damaged memory is set aside, and
    /// remembering begins anew.
    pub(crate) fn open(folder: &Path) -> Result<Self, StoreError> {
        let file = StateFile::new(folder.join("kept"), "keyd-kept", 1);
        let memory = match file.load() {
            Ok(memory) => memory.unwrap_or_default(),
            Err(error @ StoreError::Damaged { .. }) => {
                tracing::error!(%error, "a key that went before this start is not missed");
                Memory::default()
            }
            Err(error) => return Err(error),
        };
        Ok(Self { file, memory: Mutex::new(memory) })
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    /// Returns true if one of keyd's own keys was there before. The key is remembered
    /// from now on.
    pub(crate) fn had_own(&self, id: &KeyId) -> bool {
        let mut memory = self.memory();
        let had = !memory.own.insert(id.clone());
        if !had {
            self.save(&memory, "a key of keyd's own");
        }
        had
    }

    /// Runs `make`, unless the key is one that is gone; one whose content is `given`
    /// comes back. Waits for the disk.
    pub(crate) fn make<E: From<KeepError>>(
        &self,
        id: &KeyId,
        given: bool,
        backend: &dyn KeyBackend,
        make: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        if !given {
            self.expect_not_lost(id, backend)?;
        }
        make()?;
        self.note(id);
        Ok(())
    }

    fn expect_not_lost(&self, id: &KeyId, backend: &dyn KeyBackend) -> Result<(), KeepError> {
        if self.is_noted(id) && backend.kind(id)?.is_none() {
            return Err(LostKey { id: id.clone() }.into());
        }
        Ok(())
    }

    /// Returns true if the key is remembered.
    pub(crate) fn is_noted(&self, id: &KeyId) -> bool {
        self.memory().keys.contains(id)
    }

    /// Remembers a key that is there.
    pub(crate) fn note(&self, id: &KeyId) {
        let mut memory = self.memory();
        if memory.keys.len() < LIMIT && memory.keys.insert(id.clone()) {
            self.save(&memory, id.as_str());
        }
    }

    /// Forgets a key that is about to be deleted, or to have another id.
    pub(crate) fn forget(&self, id: &KeyId) -> Result<(), StoreError> {
        let mut memory = self.memory();
        if !memory.keys.remove(id) {
            return Ok(());
        }
        self.file.save(&memory).inspect_err(|_| {
            memory.keys.insert(id.clone());
        })
    }

    /// A key that cannot be written down now is written down with the next one.
    fn save(&self, memory: &Memory, what: &str) {
        if let Err(error) = self.file.save(memory) {
            tracing::warn!(%error, key = what, "cannot write down that a key is there");
        }
    }

    /// Forgets the keys that are gone and whose loss an operator accepted since the last
    /// start.
    pub(crate) fn accept_losses(&self, folder: &Path, backend: &dyn KeyBackend) {
        let path = accepted_losses(folder);
        let text = match file::read_text(&path, Rules::own(ACCEPTED_LIMIT)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                return tracing::error!(file = %path.display(), %error, "losses are not accepted");
            }
        };
        for line in text.lines() {
            let Ok(id) = line.parse::<KeyId>() else {
                tracing::error!("a line of the accepted losses is no key id");
                continue;
            };
            match backend.kind(&id) {
                Ok(None) if self.is_noted(&id) => match self.forget(&id) {
                    Ok(()) => {
                        tracing::warn!(
                            key = id.as_str(),
                            "the loss of this key is accepted; it may be made anew"
                        );
                    }
                    Err(error) => return tracing::error!(%error, "losses are not accepted"),
                },
                Ok(_) => tracing::warn!(key = id.as_str(), "this key is not lost"),
                Err(error) => {
                    return tracing::error!(%error, key = id.as_str(), "losses are not accepted");
                }
            }
        }
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::error!(file = %path.display(), %error, "cannot remove the accepted losses");
        }
    }

    /// Keys that are remembered and in none of the places. Asks each place for each key.
    pub(crate) fn lost(&self, backend: &dyn KeyBackend) -> Vec<LostKey> {
        let keys = self.memory().keys.clone();
        // What cannot be asked for now is there.
        keys.into_iter()
            .filter(|id| matches!(backend.kind(id), Ok(None)))
            .map(|id| LostKey { id })
            .collect()
    }
}

impl LostKey {
    /// Returns the id of the key.
    pub(crate) fn id(&self) -> &KeyId {
        &self.id
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use edgekeep_hsm::KeyKind;
    use proptest::prelude::*;

    use super::*;

    /// Keys in memory, of which any may go.
    #[derive(Default)]
    struct Place(Mutex<BTreeMap<KeyId, u32>>);

    impl Place {
        fn keys(&self) -> MutexGuard<'_, BTreeMap<KeyId, u32>> {
            self.0.lock().unwrap()
        }
    }

    impl KeyBackend for Place {
        fn name(&self) -> &'static str {
            "place"
        }

        fn kind(&self, id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
            Ok(self.keys().contains_key(id).then_some(KeyKind::Symmetric))
        }
    }

    fn id(number: u8) -> KeyId {
        format!("k{number}").parse().unwrap()
    }

    fn make(kept: &Kept, place: &Place, id: &KeyId, content: u32) -> Result<(), KeepError> {
        kept.make(id, false, place, || {
            place.keys().entry(id.clone()).or_insert(content);
            Ok(())
        })
    }

    #[test]
    fn a_key_that_is_gone_is_not_made_anew_until_its_loss_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::default();
        let kept = Kept::open(folder.path()).unwrap();
        make(&kept, &place, &id(1), 1).unwrap();
        make(&kept, &place, &id(1), 2).unwrap();
        place.keys().clear();
        let kept = Kept::open(folder.path()).unwrap();
        let error = make(&kept, &place, &id(1), 3).unwrap_err();
        assert!(error.to_string().contains("edgekeep keys accept-loss k1"), "{error}");
        assert_eq!(kept.lost(&place), [LostKey { id: id(1) }]);
        make(&kept, &place, &id(2), 1).unwrap();
        std::fs::write(accepted_losses(folder.path()), "k1\nk2\n").unwrap();
        kept.accept_losses(folder.path(), &place);
        assert!(!accepted_losses(folder.path()).exists());
        assert!(kept.lost(&place).is_empty());
        make(&kept, &place, &id(1), 4).unwrap();
        place.keys().clear();
        assert_eq!(
            kept.lost(&place).len(),
            2,
            "what was accepted once is missed again, and what was there stayed known"
        );
    }

    #[test]
    fn a_device_that_had_keys_before_remembers_them_as_they_are_used() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::default();
        place.keys().insert(id(1), 1);
        let kept = Kept::open(folder.path()).unwrap();
        make(&kept, &place, &id(1), 2).unwrap();
        assert_eq!(place.keys()[&id(1)], 1);
        place.keys().clear();
        assert!(make(&Kept::open(folder.path()).unwrap(), &place, &id(1), 3).is_err());
    }

    /// An event: a key is made, deleted or renamed, cut off after so many steps, or goes
    /// by itself.
    #[derive(Debug, Clone)]
    enum Step {
        Make(u8, u8),
        Delete(u8, u8),
        Rename(u8, u8, u8),
        Lose(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = 0_u8..4;
        prop::collection::vec(
            prop_oneof![
                (key.clone(), 0_u8..3).prop_map(|(key, cut)| Step::Make(key, cut)),
                (key.clone(), 0_u8..3).prop_map(|(key, cut)| Step::Delete(key, cut)),
                (key.clone(), key.clone(), 0_u8..4)
                    .prop_map(|(from, to, cut)| Step::Rename(from, to, cut)),
                key.prop_map(Step::Lose),
            ],
            0..30,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_cut_makes_a_key_seem_lost_and_no_lost_key_that_was_used_is_made_anew(steps in steps()) {
            let folder = tempfile::tempdir().unwrap();
            let place = Place::default();
            // Keys that went by themselves, and of those the ones that were remembered.
            let gone = RefCell::new(BTreeSet::new());
            let missed = RefCell::new(BTreeSet::new());
            for (at, step) in steps.into_iter().enumerate() {
                // Each step is a life of its own: what is not on the disk is forgotten.
                let kept = Kept::open(folder.path()).unwrap();
                match step {
                    Step::Make(key, cut) => {
                        let key = id(key);
                        let was_there = place.keys().contains_key(&key);
                        if kept.expect_not_lost(&key, &place).is_err() {
                            prop_assert!(gone.borrow().contains(&key), "{} seems lost", key);
                            continue;
                        }
                        prop_assert!(was_there || !missed.borrow().contains(&key), "{} made anew", key);
                        if cut > 0 {
                            place.keys().entry(key.clone()).or_insert(u32::try_from(at).unwrap());
                            gone.borrow_mut().remove(&key);
                        }
                        if cut > 1 {
                            kept.note(&key);
                        }
                    }
                    Step::Delete(key, cut) => {
                        let key = id(key);
                        if !place.keys().contains_key(&key) {
                            continue;
                        }
                        if cut > 0 {
                            kept.forget(&key).unwrap();
                        }
                        if cut > 1 {
                            place.keys().remove(&key);
                        }
                    }
                    Step::Rename(from, to, cut) => {
                        let (from, to) = (id(from), id(to));
                        if from == to || !place.keys().contains_key(&from) {
                            continue;
                        }
                        if cut > 0 {
                            kept.forget(&from).unwrap();
                        }
                        if cut > 1 {
                            let content = place.keys().remove(&from).unwrap();
                            place.keys().insert(to.clone(), content);
                            gone.borrow_mut().remove(&to);
                            missed.borrow_mut().remove(&to);
                        }
                        if cut > 2 {
                            kept.note(&to);
                        }
                    }
                    Step::Lose(key) => {
                        let key = id(key);
                        if place.keys().remove(&key).is_some() {
                            gone.borrow_mut().insert(key.clone());
                            if kept.is_noted(&key) {
                                missed.borrow_mut().insert(key);
                            }
                        }
                    }
                }
            }
        }
    }
}
