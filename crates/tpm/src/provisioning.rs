//! The device's authentication by its TPM: endorsement key and storage root are shown to
//! the provisioning service, which answers with an authentication key that only this TPM
//! can unwrap.

use crate::device::{Blob, Tpm, malformed};
use crate::error::{Authorized, TpmError};
use crate::objects::by_root;
use crate::public::{Algorithm, Public, attribute};
use crate::session::{Auth, Entity};
use crate::wire::{Code, Malformed, Reader, Writer, number};

/// First persistent handle.
const PERSISTENT_BASE: u32 = 0x8100_0000;
/// Largest offset of the authentication key: above it are handles that are not the
/// owner's.
const INDEX_LIMIT: u32 = 0x7f_ffff;
const PROVISION_AGAIN: &str = "provision the device again";

/// The public halves that a provisioning service wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvisioningKeys {
    /// The endorsement key's public area, as the TPM marshals it with its length in
    /// front.
    pub endorsement_key: Vec<u8>,
    /// The storage root's public area, in the same form.
    pub storage_root_key: Vec<u8>,
}

/// The message of a provisioning service: five structures, one after the other.
pub(crate) struct ImportBlob<'a> {
    credential: &'a [u8],
    credential_secret: &'a [u8],
    duplicate: &'a [u8],
    seed: &'a [u8],
    public: &'a [u8],
}

impl<'a> ImportBlob<'a> {
    pub(crate) fn read(blob: &'a [u8]) -> Result<Self, TpmError> {
        let mut reader = Reader::new(blob);
        let mut part =
            |missing| reader.sized().map_err(|Malformed| TpmError::ImportBlob { missing });
        // Services append data of their own, which is not for the TPM.
        Ok(Self {
            credential: part("the credential blob")?,
            credential_secret: part("the encrypted secret")?,
            duplicate: part("the duplicated private area")?,
            seed: part("the seed")?,
            public: part("the public area")?,
        })
    }
}

impl Tpm {
    /// The endorsement key and the storage root, made if they are not there.
    ///
    /// # Errors
    /// If a handle is taken by something else, or the TPM refuses.
    pub fn provisioning_keys(&self) -> Result<ProvisioningKeys, TpmError> {
        self.run(|| {
            let (_, storage_root) = self.root()?;
            let (_, endorsement) = self.endorsement_key()?;
            let sized = |public: &Public| {
                let bytes = Writer::new().sized(&public.area).finish();
                bytes.map(|bytes| bytes.to_vec()).ok_or(TpmError::Library)
            };
            Ok(ProvisioningKeys {
                endorsement_key: sized(&endorsement)?,
                storage_root_key: sized(&storage_root)?,
            })
        })
    }

    /// Unwraps an authentication key and makes it persistent at offset `index`, in the
    /// place of an earlier one. The earlier one is removed when the new one is there
    /// complete.
    ///
    /// # Errors
    /// If the blob is not for this TPM, the handle is taken by something else, or the TPM
    /// refuses.
    pub fn import_auth_key(&self, index: u32, blob: &[u8]) -> Result<(), TpmError> {
        let handle = auth_key_handle(index)?;
        let parts = ImportBlob::read(blob)?;
        self.run(|| {
            let (root, _) = self.root()?;
            let (endorsement, _) = self.endorsement_key()?;
            let earlier = self.auth_key(handle)?;
            self.with_session(|session| {
                let mut policy = self.start_policy(number::SE_POLICY)?;
                let auth = Auth::Hmac {
                    session,
                    value: &self.options.endorsement,
                    of: Authorized::Endorsement,
                };
                let handles = [
                    Entity::permanent(number::RH_ENDORSEMENT),
                    Entity::permanent(policy.session.handle),
                ];
                // No nonce, no command hash, no reference, no end of validity.
                let asked = Writer::new().u16(0).u16(0).u16(0).u32(0);
                self.execute(Code::PolicySecret, &handles, &mut [auth], asked)?;

                let mut auths = [by_root(session), Auth::Policy { session: &mut policy.session }];
                let asked = Writer::new().sized(parts.credential).sized(parts.credential_secret);
                let answer = self.execute(
                    Code::ActivateCredential,
                    &[root.clone(), endorsement.clone()],
                    &mut auths,
                    asked,
                )?;
                drop(policy);
                let inner_key = Reader::new(&answer.parameters)
                    .sized()
                    .map_err(malformed(Code::ActivateCredential))?;

                let asked =
                    Writer::new().sized(inner_key).sized(parts.public).sized(parts.duplicate);
                let asked =
                    asked.sized(parts.seed).u16(number::ALG_AES).u16(128).u16(number::ALG_CFB);
                let imported = self.execute(
                    Code::Import,
                    std::slice::from_ref(&root),
                    &mut [by_root(session)],
                    asked,
                )?;
                let private =
                    Reader::new(&imported.parameters).sized().map_err(malformed(Code::Import))?;
                let blob = Blob { public: parts.public.to_vec(), private: private.to_vec() };

                let loaded = self.load(session, &blob)?;
                if let Some(earlier) = &earlier {
                    self.evict_control(session, earlier, handle)?;
                }
                self.evict_control(session, loaded.entity(), handle)
            })
        })
    }

    /// HMAC-SHA256 with the authentication key at offset `index`.
    ///
    /// # Errors
    /// If none was imported, or the TPM refuses.
    pub fn sign_with_auth_key(&self, index: u32, data: &[u8]) -> Result<[u8; 32], TpmError> {
        let handle = auth_key_handle(index)?;
        self.run(|| {
            let key = self
                .auth_key(handle)?
                .ok_or(TpmError::HandleEmpty { handle, remedy: PROVISION_AGAIN })?;
            self.with_session(|session| self.hmac(session, &key, data))
        })
    }

    /// The authentication key under a handle; `None` if there is nothing.
    fn auth_key(&self, handle: u32) -> Result<Option<Entity>, TpmError> {
        let Some(area) = self.read_public(handle)? else { return Ok(None) };
        let public = Public::read(&area).map_err(malformed(Code::ReadPublic))?;
        match public {
            Some(public)
                if public.algorithm == Algorithm::KeyedHash
                    && public.attributes & attribute::SIGN != 0 =>
            {
                Ok(Some(Entity::object(handle, &public.name())))
            }
            _ => Err(TpmError::HandleTaken {
                handle,
                found: "an object that is no HMAC key".to_owned(),
                expected: "the authentication key of this device (an HMAC key with SHA-256)",
            }),
        }
    }
}

/// Handle of the authentication key at an offset.
fn auth_key_handle(index: u32) -> Result<u32, TpmError> {
    if index > INDEX_LIMIT {
        return Err(TpmError::OutOfRange { what: "auth_key_index", limit: INDEX_LIMIT });
    }
    Ok(PERSISTENT_BASE + index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_blob_names_the_part_that_is_missing() {
        let whole = [&[0, 1, 1, 0, 1, 2, 0, 1, 3, 0, 1, 4, 0, 1, 5][..], b"more"].concat();
        let parts = ImportBlob::read(&whole).unwrap();
        assert_eq!((parts.credential, parts.seed, parts.public), (&[1][..], &[4][..], &[5][..]));
        for (len, part) in
            [(0, "the credential blob"), (5, "the encrypted secret"), (14, "the public area")]
        {
            let error = ImportBlob::read(&whole[..len]).err().unwrap();
            assert!(
                matches!(error, TpmError::ImportBlob { missing } if missing == part),
                "{error}"
            );
        }
    }

    #[test]
    fn the_authentication_key_stays_among_the_owners_handles() {
        assert_eq!(auth_key_handle(0x100).unwrap(), 0x8100_0100);
        assert_eq!(auth_key_handle(0x7f_ffff).unwrap(), 0x817f_ffff);
        assert!(auth_key_handle(0x80_0000).is_err());
    }
}
