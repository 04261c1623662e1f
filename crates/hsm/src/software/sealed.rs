//! The store key sealed by a TPM: its file is of no use without that TPM.
//!
//! | `store.key` | `store.key.tpm` | opened with a TPM | without |
//! |---|---|---|---|
//! | - | - | made, and sealed (unless there are key files) | made |
//! | there | - | sealed, unsealed to see that it can be, then removed | used |
//! | - | there | unsealed | refused |
//! | there | there | a move that was cut off: completed, if both are the same key | refused |
//!
//! A file that was removed can still be on the medium. Whoever moves keys that matter makes them anew afterwards.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::store::{StoreError, failed, replace, sync_folder_of};
use crate::SecretBytes;
use crate::tpm::{AuthValue, SealTo, Tpm, TpmError};

const PLAIN: &str = "store.key";
const SEALED: &str = "store.key.tpm";

/// What gives a secret back on this device only.
pub(super) trait Sealer {
    fn seal(&self, secret: &SecretBytes) -> Result<Vec<u8>, TpmError>;
    fn unseal(&self, sealed: &[u8]) -> Result<SecretBytes, TpmError>;
}

impl Sealer for Tpm {
    fn seal(&self, secret: &SecretBytes) -> Result<Vec<u8>, TpmError> {
        Tpm::seal(self, secret, &SealTo::Tpm)
    }

    fn unseal(&self, sealed: &[u8]) -> Result<SecretBytes, TpmError> {
        Tpm::unseal(self, sealed, &AuthValue::empty())
    }
}

/// The content of the store key's file, with what protects it in place. `make` makes it where there is none yet.
pub(super) fn content(
    folder: &Path,
    sealer: Option<&dyn Sealer>,
    make: impl FnOnce(&Path) -> Result<Zeroizing<Vec<u8>>, StoreError>,
) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let (plain_path, sealed_path) = (folder.join(PLAIN), folder.join(SEALED));
    let plain = read(&plain_path)?;
    let sealed = read(&sealed_path)?;
    let Some(sealer) = sealer else {
        return match (plain, sealed) {
            (_, Some(_)) => Err(StoreError::Sealed { path: sealed_path }),
            (Some(plain), None) => Ok(plain),
            (None, None) => {
                let made = make(&plain_path)?;
                replace(&plain_path, &made)?;
                Ok(made)
            }
        };
    };
    let unseal = |sealed: &[u8]| {
        let opened = sealer.unseal(sealed);
        opened.map_err(|source| StoreError::Unseal { path: sealed_path.clone(), source })
    };
    let content = match (plain.as_ref(), sealed) {
        (_, Some(sealed)) => unseal(&sealed)?,
        (plain, None) => {
            let content = match plain {
                Some(plain) => plain.to_vec(),
                None => std::mem::take(&mut *make(&sealed_path)?),
            };
            let content = SecretBytes::from(content);
            let sealed = sealer.seal(&content);
            replace(&sealed_path, &sealed.map_err(|source| StoreError::Seal { path: sealed_path.clone(), source })?)?;
            // What the TPM does not give back must not be the only copy.
            let written =
                read(&sealed_path)?.ok_or_else(|| StoreError::StoreKeyDamaged { path: sealed_path.clone() })?;
            if unseal(&written)?.expose() != content.expose() {
                return Err(StoreError::StoreKeyDamaged { path: sealed_path.clone() });
            }
            content
        }
    };
    if let Some(plain) = plain {
        if plain.as_slice() != content.expose() {
            return Err(StoreError::TwoStoreKeys { plain: plain_path, sealed: sealed_path });
        }
        fs::remove_file(&plain_path).map_err(failed("remove", &plain_path))?;
        sync_folder_of(&plain_path)?;
        tracing::info!(file = ?sealed_path, "the store key is sealed by the TPM now");
    }
    Ok(Zeroizing::new(content.into_exposed()))
}

/// Where the store key is, for errors about its content.
pub(super) fn path(folder: &Path, sealed: bool) -> PathBuf {
    folder.join(if sealed { SEALED } else { PLAIN })
}

fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(Zeroizing::new(content))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path)(source)),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Gives back what it sealed, unless it has forgotten everything.
    #[derive(Default)]
    struct Simulated {
        cleared: Cell<bool>,
    }

    impl Sealer for Simulated {
        fn seal(&self, secret: &SecretBytes) -> Result<Vec<u8>, TpmError> {
            Ok(secret.expose().iter().map(|byte| byte ^ 0x55).collect())
        }

        fn unseal(&self, sealed: &[u8]) -> Result<SecretBytes, TpmError> {
            if self.cleared.get() {
                return Err(TpmError::OtherRoot);
            }
            Ok(sealed.iter().map(|byte| byte ^ 0x55).collect::<Vec<_>>().into())
        }
    }

    fn open(folder: &Path, sealer: Option<&dyn Sealer>) -> Result<Vec<u8>, StoreError> {
        content(folder, sealer, |_| Ok(Zeroizing::new(b"made".to_vec()))).map(|content| content.to_vec())
    }

    fn there(folder: &Path) -> (bool, bool) {
        (folder.join(PLAIN).exists(), folder.join(SEALED).exists())
    }

    #[test]
    fn a_key_in_a_file_is_moved_into_the_seal_and_never_back_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, tpm) = (folder.path(), Simulated::default());
        fs::write(folder.join(PLAIN), b"before").unwrap();
        assert_eq!(open(folder, None).unwrap(), b"before");
        assert_eq!(open(folder, Some(&tpm)).unwrap(), b"before");
        assert_eq!(there(folder), (false, true));
        assert_ne!(fs::read(folder.join(SEALED)).unwrap(), b"before");
        assert_eq!(open(folder, Some(&tpm)).unwrap(), b"before");
        let error = open(folder, None).unwrap_err();
        assert!(error.to_string().contains("seal = \"tpm\""), "{error}");
        tpm.cleared.set(true);
        assert!(matches!(open(folder, Some(&tpm)), Err(StoreError::Unseal { .. })));
        assert_eq!(there(folder), (false, true), "nothing was made in its place");
    }

    #[test]
    fn a_new_store_key_is_never_in_a_plain_file() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(open(folder.path(), Some(&Simulated::default())).unwrap(), b"made");
        assert_eq!(there(folder.path()), (false, true));
    }

    #[test]
    fn a_move_that_was_cut_off_is_completed_and_two_different_keys_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, tpm) = (folder.path(), Simulated::default());
        fs::write(folder.join(PLAIN), b"before").unwrap();
        fs::write(folder.join(SEALED), tpm.seal(&b"before"[..].into()).unwrap()).unwrap();
        assert!(matches!(open(folder, None), Err(StoreError::Sealed { .. })));
        assert_eq!(open(folder, Some(&tpm)).unwrap(), b"before");
        assert_eq!(there(folder), (false, true));
        fs::write(folder.join(PLAIN), b"another").unwrap();
        assert!(matches!(open(folder, Some(&tpm)), Err(StoreError::TwoStoreKeys { .. })));
        assert_eq!(there(folder), (true, true));
    }

    #[test]
    fn a_tpm_that_does_not_give_back_what_it_sealed_costs_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, tpm) = (folder.path(), Simulated::default());
        fs::write(folder.join(PLAIN), b"before").unwrap();
        tpm.cleared.set(true);
        assert!(open(folder, Some(&tpm)).is_err());
        assert!(folder.join(PLAIN).exists());
    }
}
