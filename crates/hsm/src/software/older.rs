//! Earlier versions of keys that encrypt.
//!
//! Who loses such a key loses what was encrypted under it. So a key that is replaced or
//! deleted stays here, and decrypting tries the present key first and then these, the
//! latest first: the ciphertext's tag says which one fits. Nothing is ever encrypted
//! under an earlier version.

use std::path::PathBuf;

use edgekeep_core::id::KeyId;

use super::durable::{names, remove, replace};
use super::file;
use super::store::{NameSpace, Store, StoreError, StoredKey, file_name};

/// Earlier versions kept of one key.
pub(super) const VERSION_LIMIT: usize = 16;
/// Earlier versions of all keys together above which no key is replaced or deleted any
/// more. Nothing goes to make room: who fills it with keys of its own must not be able to
/// push out what others need.
pub(super) const TOTAL_LIMIT: usize = 1024;

impl Store {
    /// Keeps a key that is about to be replaced or deleted, unless that is done already.
    pub(super) fn keep_older(&self, id: &KeyId, key: &StoredKey) -> Result<(), StoreError> {
        let folder = self.name_space_folder(NameSpace::Older);
        let there = names(&folder)?.iter().filter(|name| name.ends_with(".key")).count();
        let own = self.older_numbers(id)?.len();
        if own < VERSION_LIMIT && there >= TOTAL_LIMIT && !self.has_older(id, key)? {
            return Err(StoreError::TooManyOlder { path: folder, limit: TOTAL_LIMIT });
        }
        self.add_older(id, key)?;
        for number in self.older_numbers(id)?.into_iter().skip(VERSION_LIMIT) {
            tracing::warn!(
                key = id.as_str(),
                number,
                "more than {VERSION_LIMIT} earlier versions: the first goes"
            );
            remove(&self.older_path(id, number))?;
        }
        Ok(())
    }

    /// Adds an earlier version, unless it is there. None goes for it.
    pub(super) fn add_older(&self, id: &KeyId, key: &StoredKey) -> Result<(), StoreError> {
        if self.has_older(id, key)? {
            return Ok(());
        }
        let number = self.older_numbers(id)?.first().map_or(1, |latest| latest.saturating_add(1));
        replace(&self.older_path(id, number), &file::encode(&self.key, NameSpace::Older, id, key)?)
    }

    fn has_older(&self, id: &KeyId, key: &StoredKey) -> Result<bool, StoreError> {
        Ok(self.older(id)?.iter().any(|kept| kept.secret.expose() == key.secret.expose()))
    }

    /// The earlier versions of a key, the latest first. What is damaged is set aside,
    /// said in the log, and left out.
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
}
