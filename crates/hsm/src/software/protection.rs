//! Protections of the store key, and moves from one protection to another.
//!
//! | file | protection |
//! |---|---|
//! | `store.key` | the rights on the file |
//! | `store.key.tpm` | sealed by the TPM |
//! | `store.key.pkcs11` | encrypted under a key that does not leave a token |
//!
//! A move is: write the new form, see that it gives the key back, remove the old form.
//! Until the last step both are there and hold the same key, so whichever of the two the
//! settings name, a start finds it and completes the move in its direction. Nothing is
//! removed that was not compared with what stays.
//!
//! A file that was removed can still be on the medium. Whoever moves keys that matter
//! makes them anew afterwards.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use edgekeep_base::file::{self as base_file, Rules};
use zeroize::Zeroizing;

use super::durable::{failed, remove, replace};
use super::file::StoreKey;
use super::store::StoreError;
use crate::backend::KeyError;
use crate::{SecretBytes, secret_file};

/// Largest form of the store key that is read, in bytes: several times what a TPM seals.
const FORM_LIMIT: u64 = 64 * 1024;

/// A protection of the store key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// The rights on its file.
    File,
    /// The TPM.
    Tpm,
    /// A key on the token of the base slot.
    Token,
}

impl Protection {
    /// All of them, the one that gives least to a thief first.
    pub const ALL: [Self; 3] = [Self::Token, Self::Tpm, Self::File];

    /// Returns the configuration's word for the protection.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Tpm => "tpm",
            Self::Token => "pkcs11",
        }
    }

    /// The store key's file under this protection.
    #[must_use]
    pub fn path(self, folder: &Path) -> PathBuf {
        folder.join(match self {
            Self::File => "store.key",
            Self::Tpm => "store.key.tpm",
            Self::Token => "store.key.pkcs11",
        })
    }

    /// The settings that it needs, in words.
    fn needs(self) -> &'static str {
        match self {
            Self::File => "nothing",
            Self::Tpm => "a table [tpm]",
            Self::Token => "pkcs11_lib_path and pkcs11_base_slot in [aziot_keys]",
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "the rights on its file",
            Self::Tpm => "the TPM",
            Self::Token => "a key on the token",
        })
    }
}

/// A means of protecting a secret so that only this device can recover it.
pub trait Sealer {
    /// Protects a secret of at most 128 bytes. The result is not secret.
    ///
    /// # Errors
    /// If the hardware is absent or refuses.
    fn seal(&self, secret: &SecretBytes) -> Result<Vec<u8>, KeyError>;

    /// Gives back what was protected.
    ///
    /// # Errors
    /// If the hardware is absent, is another, or refuses.
    fn unseal(&self, sealed: &[u8]) -> Result<SecretBytes, KeyError>;
}

/// The hardware that the settings name. It is used only if the store key is, or is to be,
/// in its care.
#[derive(Clone, Copy, Default)]
pub struct Sealers<'a> {
    /// The TPM.
    pub tpm: Option<&'a dyn Sealer>,
    /// The token.
    pub token: Option<&'a dyn Sealer>,
}

impl<'a> Sealers<'a> {
    /// `None` for the rights on a file, which take no hardware.
    fn of(
        &self,
        protection: Protection,
        folder: &Path,
    ) -> Result<Option<&'a dyn Sealer>, StoreError> {
        let sealer = match protection {
            Protection::File => return Ok(None),
            Protection::Tpm => self.tpm,
            Protection::Token => self.token,
        };
        let path = protection.path(folder);
        sealer.map(Some).ok_or(StoreError::NoSealer { path, protection, needs: protection.needs() })
    }
}

/// The forms of the store key that are in a folder, the best protected one first.
pub(super) struct Forms<'a> {
    folder: &'a Path,
    sealers: Sealers<'a>,
    present: Vec<(Protection, Zeroizing<Vec<u8>>)>,
}

impl<'a> Forms<'a> {
    pub(super) fn read(folder: &'a Path, sealers: Sealers<'a>) -> Result<Self, StoreError> {
        let mut present = Vec::new();
        for protection in Protection::ALL {
            let path = protection.path(folder);
            let read = match protection {
                Protection::File => {
                    secret_file::read_own(&path, FORM_LIMIT).map(SecretBytes::into_exposed)
                }
                // Of use only to who has the hardware.
                Protection::Tpm | Protection::Token => {
                    base_file::read(&path, Rules::own(FORM_LIMIT))
                }
            };
            match read {
                Ok(content) => present.push((protection, Zeroizing::new(content))),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(source) => return Err(failed("read", &path)(source)),
            }
        }
        Ok(Self { folder, sealers, present })
    }

    /// Returns the protections under which the store key exists.
    pub(super) fn present(&self) -> Vec<Protection> {
        self.present.iter().map(|(protection, _)| *protection).collect()
    }

    /// The store key's content, in no form but `wanted` when this is done; without a wish
    /// it stays as it is protected best. `make` makes it where there is none.
    pub(super) fn settle(
        self,
        wanted: Option<Protection>,
        make: impl FnOnce(&Path) -> Result<SecretBytes, StoreError>,
    ) -> Result<(Protection, SecretBytes), StoreError> {
        let best = self.present.first().map(|(protection, _)| *protection);
        let wanted = wanted.or(best).unwrap_or(Protection::File);
        let content = match best {
            None => {
                let made = make(&wanted.path(self.folder))?;
                self.write(wanted, &made)?;
                made
            }
            Some(_) => self.add(wanted)?,
        };
        let same = self.expect_agreement(wanted, &content)?;
        for protection in same {
            self.retire(protection, wanted)?;
        }
        Ok((wanted, content))
    }

    /// The store key's content, in the form `wanted` too when this is done. No form goes
    /// away.
    pub(super) fn add(&self, wanted: Protection) -> Result<SecretBytes, StoreError> {
        if let Some((_, form)) = self.present.iter().find(|(protection, _)| *protection == wanted) {
            return self.open(wanted, form);
        }
        // Before any hardware is asked for a key that it could not pass on.
        self.sealers.of(wanted, self.folder)?;
        let content = self.open_any()?;
        self.write(wanted, &content)?;
        Ok(content)
    }

    /// The store key's content, from any form.
    pub(super) fn open_any(&self) -> Result<SecretBytes, StoreError> {
        let mut why =
            StoreError::StoreKeyMissing { path: Protection::File.path(self.folder), keys: 0 };
        for (at, (protection, form)) in self.present.iter().enumerate() {
            match self.open(*protection, form) {
                Ok(content) => return Ok(content),
                Err(error) if at == 0 => why = error,
                Err(_) => {}
            }
        }
        Err(why)
    }

    /// Sees whether a protection would give back what it was given; changes no file.
    pub(super) fn rehearse(&self, wanted: Protection) -> Result<(), StoreError> {
        self.protect(wanted, &SecretBytes::from(&b"what is not the store key"[..])).map(drop)
    }

    fn open(
        &self,
        protection: Protection,
        form: &Zeroizing<Vec<u8>>,
    ) -> Result<SecretBytes, StoreError> {
        let path = protection.path(self.folder);
        let content = match self.sealers.of(protection, self.folder)? {
            None => form.as_slice().into(),
            Some(sealer) => sealer.unseal(form).map_err(|source| StoreError::Unseal {
                path: path.clone(),
                protection,
                source: source.into(),
            })?,
        };
        if StoreKey::decode(&content).is_some() {
            Ok(content)
        } else {
            Err(StoreError::StoreKeyDamaged { path })
        }
    }

    /// The form of the store key under a protection that was seen to give it back.
    fn protect(
        &self,
        protection: Protection,
        content: &SecretBytes,
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let path = protection.path(self.folder);
        let Some(sealer) = self.sealers.of(protection, self.folder)? else {
            return Ok(Zeroizing::new(content.expose().to_vec()));
        };
        let refused = |source: KeyError| StoreError::Seal {
            path: path.clone(),
            protection,
            source: source.into(),
        };
        let form = Zeroizing::new(sealer.seal(content).map_err(refused)?);
        if sealer.unseal(&form).map_err(refused)?.expose() != content.expose() {
            return Err(StoreError::NotGivenBack { path, protection });
        }
        Ok(form)
    }

    fn write(&self, protection: Protection, content: &SecretBytes) -> Result<(), StoreError> {
        let path = protection.path(self.folder);
        let form = self.protect(protection, content)?;
        replace(&path, &form)?;
        let written = base_file::read(&path, Rules::own(FORM_LIMIT)).map(Zeroizing::new);
        let written = written.map_err(failed("read", &path))?;
        if written == form { Ok(()) } else { Err(StoreError::StoreKeyDamaged { path }) }
    }

    /// The forms besides `wanted` that hold the same key. What cannot be opened cannot be
    /// compared: it is left alone, as it may be of use again, unless it is in clear.
    pub(super) fn expect_agreement(
        &self,
        wanted: Protection,
        content: &SecretBytes,
    ) -> Result<Vec<Protection>, StoreError> {
        let mut same = Vec::new();
        for (protection, form) in
            self.present.iter().filter(|(protection, _)| *protection != wanted)
        {
            let other = protection.path(self.folder);
            match self.open(*protection, form) {
                Ok(opened) if opened.expose() == content.expose() => same.push(*protection),
                Ok(_) => {
                    return Err(StoreError::TwoStoreKeys { one: wanted.path(self.folder), other });
                }
                Err(error) if *protection == Protection::File => return Err(error),
                Err(error) => {
                    tracing::warn!(file = ?other, %error, "this form of the store key cannot be compared; it is kept");
                }
            }
        }
        Ok(same)
    }

    /// Removes a form that was seen to hold what `wanted` holds.
    fn retire(&self, protection: Protection, wanted: Protection) -> Result<(), StoreError> {
        remove(&protection.path(self.folder))?;
        let file = wanted.path(self.folder);
        match wanted {
            Protection::File => tracing::warn!(
                ?file,
                "as the settings say, the store key is in a file now, for anybody to use who copies it"
            ),
            Protection::Tpm | Protection::Token => {
                tracing::info!(
                    ?file,
                    by = wanted.word(),
                    "the store key is protected by hardware now"
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use super::*;
    use crate::backend::InputError;

    /// Gives back what it sealed, unless it has forgotten everything.
    #[derive(Default)]
    struct Simulated {
        cleared: Cell<bool>,
    }

    impl Sealer for Simulated {
        fn seal(&self, secret: &SecretBytes) -> Result<Vec<u8>, KeyError> {
            Ok(secret.expose().iter().map(|byte| byte ^ 0x55).collect())
        }

        fn unseal(&self, sealed: &[u8]) -> Result<SecretBytes, KeyError> {
            if self.cleared.get() {
                return Err(InputError::NotAuthentic.into());
            }
            Ok(sealed.iter().map(|byte| byte ^ 0x55).collect::<Vec<_>>().into())
        }
    }

    fn store_key() -> SecretBytes {
        StoreKey::generate().unwrap().encode()
    }

    fn settle(
        folder: &Path,
        wanted: Option<Protection>,
        tpm: Option<&Simulated>,
    ) -> Result<Vec<u8>, StoreError> {
        let sealers = Sealers { tpm: tpm.map(|tpm| tpm as &dyn Sealer), token: None };
        let forms = Forms::read(folder, sealers)?;
        forms.settle(wanted, |_| Ok(store_key())).map(|(_, content)| content.into_exposed())
    }

    fn there(folder: &Path) -> Vec<Protection> {
        Protection::ALL.into_iter().filter(|protection| protection.path(folder).exists()).collect()
    }

    #[test]
    fn the_key_goes_where_the_settings_say_and_without_settings_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, tpm) = (folder.path(), Simulated::default());
        let key = settle(folder, None, None).unwrap();
        assert_eq!(there(folder), [Protection::File]);
        for (wanted, now) in [
            (Some(Protection::Tpm), Protection::Tpm),
            (None, Protection::Tpm),
            (Some(Protection::File), Protection::File),
            (None, Protection::File),
        ] {
            assert_eq!(settle(folder, wanted, Some(&tpm)).unwrap(), key);
            assert_eq!(there(folder), [now]);
        }
    }

    #[test]
    fn hardware_that_is_not_configured_is_named_and_nothing_is_made_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, tpm) = (folder.path(), Simulated::default());
        settle(folder, Some(Protection::Tpm), Some(&tpm)).unwrap();
        for wanted in [None, Some(Protection::File), Some(Protection::Token)] {
            let error = settle(folder, wanted, None).unwrap_err();
            assert!(matches!(error, StoreError::NoSealer { .. }), "{error}");
            assert!(error.to_string().contains("it needs "), "{error}");
        }
        tpm.cleared.set(true);
        for wanted in [None, Some(Protection::File), Some(Protection::Tpm)] {
            let error = settle(folder, wanted, Some(&tpm)).unwrap_err();
            assert!(matches!(error, StoreError::Unseal { .. }), "{error}");
        }
        assert_eq!(there(folder), [Protection::Tpm]);
    }

    #[test]
    fn a_new_store_key_is_never_in_a_plain_file() {
        let folder = tempfile::tempdir().unwrap();
        settle(folder.path(), Some(Protection::Tpm), Some(&Simulated::default())).unwrap();
        assert_eq!(there(folder.path()), [Protection::Tpm]);
    }

    #[test]
    fn two_different_keys_are_left_alone_and_both_named() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, tpm) = (folder.path(), Simulated::default());
        fs::write(Protection::File.path(folder), store_key().expose()).unwrap();
        fs::write(Protection::Tpm.path(folder), tpm.seal(&store_key()).unwrap()).unwrap();
        for wanted in [None, Some(Protection::File), Some(Protection::Tpm)] {
            let error = settle(folder, wanted, Some(&tpm)).unwrap_err();
            assert!(matches!(error, StoreError::TwoStoreKeys { .. }), "{error}");
        }
        assert_eq!(there(folder), [Protection::Tpm, Protection::File]);
    }

    #[test]
    fn hardware_that_does_not_give_back_what_it_was_given_gets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, tpm) = (folder.path(), Simulated::default());
        let key = settle(folder, None, None).unwrap();
        tpm.cleared.set(true);
        assert!(matches!(
            settle(folder, Some(Protection::Tpm), Some(&tpm)),
            Err(StoreError::Seal { .. })
        ));
        assert_eq!(there(folder), [Protection::File]);
        assert_eq!(settle(folder, None, None).unwrap(), key);
    }

    #[test]
    fn a_damaged_form_is_not_passed_on() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, tpm) = (folder.path(), Simulated::default());
        let mut key = settle(folder, None, None).unwrap();
        key[9] ^= 1;
        fs::write(Protection::File.path(folder), &key).unwrap();
        let error = settle(folder, Some(Protection::Tpm), Some(&tpm)).unwrap_err();
        assert!(matches!(error, StoreError::StoreKeyDamaged { .. }), "{error}");
        assert_eq!(there(folder), [Protection::File]);
    }

    #[test]
    fn a_move_whose_settings_cannot_be_changed_leaves_a_store_that_opens_either_way() {
        use crate::software::{MigrateError, migrate};
        let folder = tempfile::tempdir().unwrap();
        let (folder, tpm) = (folder.path(), Simulated::default());
        let sealers = Sealers { tpm: Some(&tpm), token: None };
        let error = migrate(folder, Protection::Tpm, sealers, || Ok(())).unwrap_err();
        assert!(matches!(error, MigrateError::Store(StoreError::NoStore { .. })), "{error}");
        for wanted in [Protection::File, Protection::Tpm] {
            let _ = fs::remove_file(Protection::Tpm.path(folder));
            let key = settle(folder, Some(Protection::File), Some(&tpm)).unwrap();
            let error =
                migrate(folder, Protection::Tpm, sealers, || Err("full".into())).unwrap_err();
            assert!(
                matches!(error, MigrateError::Switch(_))
                    && error.to_string().contains("run this again"),
                "{error}"
            );
            assert_eq!(there(folder), [Protection::Tpm, Protection::File]);
            assert_eq!(settle(folder, Some(wanted), Some(&tpm)).unwrap(), key);
            assert_eq!(there(folder), [wanted]);
        }
    }
}
