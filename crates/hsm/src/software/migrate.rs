//! The store key brought under another protection while keyd is stopped.

use std::error::Error;
use std::path::Path;

use super::protection::{Forms, Protection, Sealers};
use super::store::{Claimed, Store, StoreError};

/// The store key's place before a move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Protections that the store key had, the best first. There is more than one if an
    /// earlier move was cut off.
    pub from: Vec<Protection>,
    /// Number of keys that are encrypted under the store key. Their files stay as they
    /// are.
    pub keys: usize,
}

/// The reason why the store key was not moved. In every case the key still exists,
/// and the same command completes the move.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The store or the hardware failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The settings could not be changed. The key is under both protections now.
    #[error(
        "the store key is under the new protection too, but the settings could not be changed: run this again"
    )]
    Switch(#[source] Box<dyn Error + Send + Sync>),
}

/// Moves the store key. `switch` changes the settings; it is called while the key is
/// under the old and the new protection, so that a start with either finds it. Only after
/// that the old form is removed.
///
/// # Errors
/// If a process has the store open, there is none, the hardware refuses, or the settings
/// cannot be changed.
pub fn migrate(
    folder: &Path,
    to: Protection,
    sealers: Sealers<'_>,
    switch: impl FnOnce() -> Result<(), Box<dyn Error + Send + Sync>>,
) -> Result<Migrated, MigrateError> {
    let claimed = Claimed::existing(folder)?;
    let forms = Forms::read(folder, sealers)?;
    let done = Migrated { from: forms.present(), keys: claimed.keys };
    let content = forms.add(to)?;
    forms.expect_agreement(to, &content)?;
    switch().map_err(MigrateError::Switch)?;
    Store::over(claimed, Some(to), sealers)?;
    Ok(done)
}

/// Sees whether [`migrate`] could be done, up to the last step before the first change to
/// a file. A token may have a new key for it afterwards.
///
/// # Errors
/// As [`migrate`].
pub fn rehearse_migration(
    folder: &Path,
    to: Protection,
    sealers: Sealers<'_>,
) -> Result<Migrated, MigrateError> {
    let claimed = Claimed::existing(folder)?;
    let forms = Forms::read(folder, sealers)?;
    let content = forms.open_any()?;
    forms.expect_agreement(to, &content)?;
    forms.rehearse(to)?;
    Ok(Migrated { from: forms.present(), keys: claimed.keys })
}
