//! Makers of keys: the uid that made each key, so that one uid cannot make keys without
//! end.
//!
//! `makers` in the state folder has the ids by uid. An id is in it before its key is
//! there: cut off in between, an id may be there whose key is not, which is found when
//! the uid has as many as it may. Keys that were there before this file, that the
//! configuration brings, or that uid 0 makes, are nobody's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use edgekeep_base::lock::lock;
use edgekeep_core::id::KeyId;
use edgekeep_daemon::store::{StateFile, StoreError};
use edgekeep_hsm::{KeyBackend, KeyError};
use serde::{Deserialize, Serialize};

use crate::kept::{KeepError, LostKey};

/// Keys that a uid may make if the settings say nothing else. A daemon makes a few.
pub(crate) const KEYS_PER_UID: u32 = 1024;
/// Shortest time between two looks for keys that are gone.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Ids by the uid that made them.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Ledger(BTreeMap<u32, BTreeSet<KeyId>>);

impl Ledger {
    /// Has a uid as the maker of a key; whether it may have one more.
    fn admit(&mut self, uid: u32, id: &KeyId, limit: u32) -> bool {
        let ids = self.0.entry(uid).or_default();
        if ids.contains(id) {
            return true;
        }
        if ids.len() >= usize::try_from(limit).unwrap_or(usize::MAX) {
            return false;
        }
        // An id has one maker: the key that another one made is gone.
        self.remove(id);
        self.0.entry(uid).or_default().insert(id.clone());
        true
    }

    /// Removes a key, and returns the uid that made it.
    fn remove(&mut self, id: &KeyId) -> Option<u32> {
        let uid = self.0.iter_mut().find_map(|(uid, ids)| ids.remove(id).then_some(*uid))?;
        self.0.retain(|_, ids| !ids.is_empty());
        Some(uid)
    }

    /// The key has another id now.
    fn rename(&mut self, from: &KeyId, to: &KeyId) {
        self.remove(to);
        if let Some(uid) = self.remove(from) {
            self.0.entry(uid).or_default().insert(to.clone());
        }
    }
}

/// A uid has made as many keys as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "uid {uid} has made {limit} keys, and keys_per_uid in [aziot_keys] allows no more: delete keys that nothing needs any \
     more, or raise it"
)]
pub(crate) struct TooManyKeys {
    uid: u32,
    limit: u32,
}

/// The reason why a key was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeError {
    #[error(transparent)]
    TooMany(#[from] TooManyKeys),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Lost(LostKey),
    #[error("cannot write down who makes the key")]
    Ledger(#[from] StoreError),
}

impl From<KeepError> for MakeError {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::Lost(lost) => Self::Lost(lost),
            KeepError::Key(error) => Self::Key(error),
        }
    }
}

struct State {
    ledger: Ledger,
    /// Time of the last look for keys that are gone.
    looked: Option<Instant>,
}

/// The makers of keys.
pub(crate) struct Makers {
    file: StateFile<Ledger>,
    limit: u32,
    state: Mutex<State>,
}

impl Makers {
    /// The makers in the state folder. What is damaged is set aside, and counting begins
    /// anew.
    pub(crate) fn open(folder: &Path, limit: u32) -> Result<Self, StoreError> {
        let file = StateFile::new(folder.join("makers"), "keyd-makers", 1);
        let ledger = match file.load() {
            Ok(ledger) => ledger.unwrap_or_default(),
            Err(error @ StoreError::Damaged { .. }) => {
                tracing::error!(%error, "keys that were made before count for nobody");
                Ledger::default()
            }
            Err(error) => return Err(error),
        };
        Ok(Self { file, limit, state: Mutex::new(State { ledger, looked: None }) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Runs `make`, if it makes no new key or this uid may have one more; `None` may have
    /// any. Waits for the disk.
    pub(crate) fn make(
        &self,
        uid: Option<u32>,
        id: &KeyId,
        backend: &dyn KeyBackend,
        make: impl FnOnce() -> Result<(), KeyError>,
    ) -> Result<(), MakeError> {
        let Some(uid) = uid else { return Ok(make()?) };
        if backend.kind(id)?.is_some() {
            return Ok(make()?);
        }
        self.admit(uid, id, backend)?;
        let made = make();
        if made.is_err() && matches!(backend.kind(id), Ok(None)) {
            self.forget(id);
        }
        Ok(made?)
    }

    fn admit(&self, uid: u32, id: &KeyId, backend: &dyn KeyBackend) -> Result<(), MakeError> {
        let mut state = self.lock();
        let before = state.ledger.clone();
        if !state.ledger.admit(uid, id, self.limit) {
            if state.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
                return Err(TooManyKeys { uid, limit: self.limit }.into());
            }
            state.looked = Some(Instant::now());
            if let Some(ids) = state.ledger.0.get_mut(&uid) {
                // What cannot be asked for now is there.
                ids.retain(|id| !matches!(backend.kind(id), Ok(None)));
            }
            if !state.ledger.admit(uid, id, self.limit) {
                return Err(TooManyKeys { uid, limit: self.limit }.into());
            }
        }
        self.save(&mut state, before)?;
        Ok(())
    }

    fn save(&self, state: &mut State, before: Ledger) -> Result<(), StoreError> {
        if state.ledger == before {
            return Ok(());
        }
        self.file.save(&state.ledger).inspect_err(|_| state.ledger = before)
    }

    /// The key is gone.
    pub(crate) fn forget(&self, id: &KeyId) {
        self.change(|ledger| {
            ledger.remove(id);
        });
    }

    /// The key has another id.
    pub(crate) fn renamed(&self, from: &KeyId, to: &KeyId) {
        self.change(|ledger| ledger.rename(from, to));
    }

    /// Changes the ledger after something was done with a key. If the change cannot be
    /// written down now, this is made up for when the uid has as many keys as it may.
    fn change(&self, change: impl FnOnce(&mut Ledger)) {
        let mut state = self.lock();
        let before = state.ledger.clone();
        change(&mut state.ledger);
        if state.ledger != before
            && let Err(error) = self.file.save(&state.ledger)
        {
            tracing::warn!(%error, "cannot write down that a key is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> KeyId {
        format!("k{number}").parse().unwrap()
    }

    proptest! {
        #[test]
        fn no_uid_has_more_than_the_limit_and_no_key_two_makers(
            limit in 0_u32..6, steps in prop::collection::vec((0_u8..3, 0_u32..3, 0_u8..9, 0_u8..9), 0..100),
        ) {
            let mut ledger = Ledger::default();
            for (step, uid, one, other) in steps {
                match step {
                    0 => {
                        let before = ledger.clone();
                        let had = before.0.get(&uid).map_or(0, BTreeSet::len);
                        let own = before.0.get(&uid).is_some_and(|ids| ids.contains(&id(one)));
                        prop_assert_eq!(ledger.admit(uid, &id(one), limit), own || had < limit as usize);
                    }
                    1 => {
                        ledger.remove(&id(one));
                    }
                    _ => ledger.rename(&id(one), &id(other)),
                }
                let all: Vec<&KeyId> = ledger.0.values().flatten().collect();
                prop_assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len());
                prop_assert!(ledger.0.values().all(|ids| ids.len() <= limit as usize));
            }
        }
    }
}
