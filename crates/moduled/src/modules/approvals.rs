//! New executables of host modules and services that a host agent has approved. They take
//! the place of the digest in the configuration, until the operator writes another one
//! there: whoever edits the configuration has the last word.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use edgekeep_api::management::Approval;
use edgekeep_core::digest::Sha256Digest;
use edgekeep_daemon::store::{StateFile, StoreError};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

/// An approval as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Approved {
    /// Digest that the executable must have from now on.
    pub(crate) sha256: Sha256Digest,
    /// The digest in the configuration at that time; with another one there, the approval
    /// has lapsed.
    pub(crate) configured: Sha256Digest,
    /// The module that approved.
    pub(crate) by: String,
    /// Time of the approval, RFC 3339.
    pub(crate) time: String,
}

/// All approvals, by the name in `[host_modules]` or `[host_services]`. In memory and on
/// disk.
#[derive(Debug)]
pub(crate) struct Approvals {
    file: StateFile<BTreeMap<String, Approved>>,
    known: RwLock<BTreeMap<String, Approved>>,
    writing: Mutex<()>,
}

impl Approvals {
    /// Reads the approvals in `state_folder`.
    ///
    /// # Errors
    /// If the file is there and cannot be used.
    pub(crate) fn load(state_folder: &Path) -> Result<Self, StoreError> {
        let file = StateFile::new(state_folder.join("approvals.json"), "approvals", 1);
        let known = file.load()?.unwrap_or_default();
        Ok(Self { file, known: RwLock::new(known), writing: Mutex::new(()) })
    }

    /// Returns the digest that an executable must have, where `configured` is in the
    /// configuration.
    #[must_use]
    pub(crate) fn effective(&self, name: &str, configured: Sha256Digest) -> Sha256Digest {
        effective(self.known.read().unwrap_or_else(PoisonError::into_inner).get(name), configured)
    }

    /// Writes an approval over an earlier one.
    ///
    /// # Errors
    /// If it cannot be written; the earlier one is then still in force.
    pub(crate) async fn put(&self, name: &str, approved: Approved) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        let mut next = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        next.insert(name.to_owned(), approved);
        self.file.save(&next)?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// Has the digest in force again that was before the latest approval: another one
    /// that was approved, or the configured one.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub(crate) async fn take_back(
        &self,
        name: &str,
        to: Sha256Digest,
        configured: Sha256Digest,
    ) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        let mut next = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        let latest = next.remove(name);
        if let Some(latest) = latest.filter(|_| to != configured) {
            next.insert(name.to_owned(), Approved { sha256: to, configured, ..latest });
        }
        self.file.save(&next)?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// All that are in force, as the API shows them. `configured` gives the digest in the
    /// configuration.
    #[must_use]
    pub(crate) fn list(&self, configured: impl Fn(&str) -> Option<Sha256Digest>) -> Vec<Approval> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let in_force =
            known.iter().filter(|(name, approved)| configured(name) == Some(approved.configured));
        in_force
            .map(|(name, approved)| Approval {
                name: name.clone(),
                sha256: approved.sha256.to_string(),
                approved_by: approved.by.clone(),
                time: approved.time.clone(),
            })
            .collect()
    }
}

fn effective(approved: Option<&Approved>, configured: Sha256Digest) -> Sha256Digest {
    approved
        .filter(|approved| approved.configured == configured)
        .map_or(configured, |approved| approved.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: u8) -> Sha256Digest {
        Sha256Digest::new([byte; 32])
    }

    #[tokio::test]
    async fn an_approval_counts_until_the_operator_writes_another_digest_and_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let approvals = Approvals::load(folder.path()).unwrap();
        assert_eq!(approvals.effective("a", digest(1)), digest(1));
        let approved = Approved {
            sha256: digest(2),
            configured: digest(1),
            by: "updater".into(),
            time: "2026-07-01T12:00:00Z".into(),
        };
        approvals.put("a", approved).await.unwrap();
        let again = Approvals::load(folder.path()).unwrap();
        for approvals in [&approvals, &again] {
            assert_eq!(approvals.effective("a", digest(1)), digest(2));
            assert_eq!(
                approvals.effective("a", digest(3)),
                digest(3),
                "the operator has the last word"
            );
            assert_eq!(approvals.effective("b", digest(1)), digest(1));
            assert_eq!(approvals.list(|_| Some(digest(1))).len(), 1);
            assert!(
                approvals.list(|_| Some(digest(3))).is_empty()
                    && approvals.list(|_| None).is_empty()
            );
        }
        // Back to another one that had been approved, then to the configured one.
        for (to, left) in [(4, 1), (1, 0)] {
            approvals.take_back("a", digest(to), digest(1)).await.unwrap();
            assert_eq!(
                (approvals.effective("a", digest(1)), approvals.list(|_| Some(digest(1))).len()),
                (digest(to), left)
            );
        }
    }
}
