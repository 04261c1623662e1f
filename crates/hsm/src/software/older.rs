//! Earlier versions of keys that encrypt.
//!
//! Who loses such a key loses what was encrypted under it. So a key that is replaced or deleted stays here, and decrypting
//! tries the present key first and then these, the latest first: the ciphertext's tag says which one fits. Nothing is ever
//! encrypted under an earlier version.

use std::fs;
use std::path::PathBuf;

use edgekeep_core::id::KeyId;

use super::durable::{names, remove, replace};
use super::file;
use super::store::{NameSpace, Store, StoreError, StoredKey, file_name};

/// Earlier versions kept of one key.
pub(super) const VERSION_LIMIT: usize = 16;
/// Earlier versions kept of all keys together.
const TOTAL_LIMIT: usize = 1024;

impl Store {
    /// Keeps a key that is about to be replaced or deleted, unless that is done already.
    pub(super) fn keep_older(&self, id: &KeyId, key: &StoredKey) -> Result<(), StoreError> {
        if self.older(id)?.iter().any(|kept| kept.secret.expose() == key.secret.expose()) {
            return Ok(());
        }
        let mut numbers = self.older_numbers(id)?;
        let number = numbers.first().map_or(1, |latest| latest.saturating_add(1));
        replace(&self.older_path(id, number), &file::encode(&self.key, NameSpace::Older, id, key)?)?;
        numbers.insert(0, number);
        for number in numbers.into_iter().skip(VERSION_LIMIT) {
            tracing::warn!(key = id.as_str(), number, "more than {VERSION_LIMIT} earlier versions: the first goes");
            remove(&self.older_path(id, number))?;
        }
        self.bound_older()
    }

    /// The earlier versions of a key, the latest first. What is damaged is set aside, said in the log, and left out.
    pub(super) fn older(&self, id: &KeyId) -> Result<Vec<StoredKey>, StoreError> {
        let mut found = Vec::new();
        for number in self.older_numbers(id)? {
            match self.read_file(NameSpace::Older, id, self.older_path(id, number)) {
                Ok(key) => found.extend(key),
                Err(error @ StoreError::Io { .. }) => return Err(error),
                Err(error) => tracing::error!(%error, "an earlier version of a key cannot be used"),
            }
        }
        Ok(found)
    }

    /// The numbers of the versions that are there, the latest first.
    fn older_numbers(&self, id: &KeyId) -> Result<Vec<u32>, StoreError> {
        let name = file_name(id);
        let stem = name.strip_suffix("key").unwrap_or(&name);
        let number = |name: &String| name.strip_prefix(stem)?.strip_suffix(".key")?.parse().ok();
        let mut numbers: Vec<u32> =
            names(&self.name_space_folder(NameSpace::Older))?.iter().filter_map(number).collect();
        numbers.sort_unstable_by(|one, other| other.cmp(one));
        Ok(numbers)
    }

    fn older_path(&self, id: &KeyId, number: u32) -> PathBuf {
        self.path(NameSpace::Older, id).with_extension(format!("{number}.key"))
    }

    /// Removes the earliest of all keys' versions, if there are too many.
    fn bound_older(&self) -> Result<(), StoreError> {
        let folder = self.name_space_folder(NameSpace::Older);
        let mut files: Vec<_> = names(&folder)?.into_iter().filter(|name| name.ends_with(".key")).collect();
        if files.len() <= TOTAL_LIMIT {
            return Ok(());
        }
        files.sort_by_cached_key(|name| fs::metadata(folder.join(name)).and_then(|data| data.modified()).ok());
        let excess = files.len() - TOTAL_LIMIT;
        for name in files.into_iter().take(excess) {
            tracing::warn!(file = name, "more than {TOTAL_LIMIT} earlier versions of keys: the earliest goes");
            remove(&folder.join(&name))?;
        }
        Ok(())
    }
}
