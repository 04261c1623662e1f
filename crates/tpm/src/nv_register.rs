//! A register in the TPM's non-volatile index space: like a PCR it is only ever extended,
//! but only by its maker, and nobody resets it without a reset of the TPM.
//!
//! The index is the owner's and of type extend. Its attributes are those of a PCR: it
//! forgets its value at each reset of the TPM, and the value is kept in RAM (orderly), so
//! that extending wears nothing. It is extended with an auth value that only its maker
//! knows and read with that or with the owner's (`tpm2_nvread -C o INDEX`). The owner can
//! remove the index and make another one. That one cannot be extended with the maker's
//! auth value, and one that the maker makes again is empty: both show.

use crate::device::{Tpm, malformed};
use crate::error::{Authorized, TpmError, rc};
use crate::kdf::{HASH_LEN, sha256};
use crate::nv::NvCounter;
use crate::session::{Auth, AuthValue, Entity};
use crate::wire::{Code, Malformed, Reader, Writer, number};

/// Written only with the index's auth value, never by the owner.
const AUTH_WRITE: u32 = 1 << 2;
/// The type of index: extend.
const EXTEND: u32 = 4 << 4;
const OWNER_READ: u32 = 1 << 17;
const AUTH_READ: u32 = 1 << 18;
const NO_LOCKOUT: u32 = 1 << 25;
/// Kept in RAM until the TPM is shut down.
const ORDERLY: u32 = 1 << 26;
/// Unwritten again after each reset.
const CLEAR_AT_RESET: u32 = 1 << 27;
const WRITTEN: u32 = 1 << 29;
const ATTRIBUTES: u32 =
    AUTH_WRITE | EXTEND | OWNER_READ | AUTH_READ | NO_LOCKOUT | ORDERLY | CLEAR_AT_RESET;
/// Length of the value, in bytes: that of SHA-256.
const LENGTH: u16 = 32;

/// A place for a register, and what allows to use it.
#[derive(Clone)]
pub struct NvRegister {
    index: u32,
    auth: AuthValue,
}

/// The state of a register's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NvRegisterState {
    /// There is no such index.
    Absent,
    /// Nothing was extended into it since the last reset.
    Unwritten,
    /// It holds this.
    Value([u8; HASH_LEN]),
}

impl NvRegister {
    /// The register at `index`, made and used with `auth`.
    ///
    /// # Errors
    /// If the index is not in the owner's range.
    pub fn new(index: u32, auth: AuthValue) -> Result<Self, TpmError> {
        let (first, last) = NvCounter::RANGE;
        if (first..=last).contains(&index) {
            Ok(Self { index, auth })
        } else {
            Err(TpmError::OutOfRange { what: "the index of the measurements", limit: last })
        }
    }

    /// Its index.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Returns the SHA-256 digest of its public area before it was written: its name,
    /// without the number of the algorithm.
    ///
    /// # Errors
    /// If the library fails.
    pub fn name(&self) -> Result<[u8; HASH_LEN], TpmError> {
        Ok(sha256(&[&self.area()?]))
    }

    /// Its public area before it was written.
    fn area(&self) -> Result<Vec<u8>, TpmError> {
        let area = Writer::new()
            .u32(self.index)
            .u16(number::ALG_SHA256)
            .u32(ATTRIBUTES)
            .u16(0)
            .u16(LENGTH);
        Ok(area.finish().ok_or(TpmError::Library)?.to_vec())
    }
}

impl Tpm {
    /// Returns the state of the index.
    ///
    /// # Errors
    /// If something else is at the index, it was made by somebody else, or the TPM
    /// refuses.
    pub fn register_state(&self, register: &NvRegister) -> Result<NvRegisterState, TpmError> {
        self.run(|| {
            let Some((entity, written)) = self.register_public(register)? else {
                return Ok(NvRegisterState::Absent);
            };
            let auth = (&register.auth, Authorized::Register);
            match self.nv_read_bytes(&entity, auth, LENGTH) {
                // The auth value was looked at first: the index is its maker's.
                Err(TpmError::Refused { code, .. })
                    if !written && code.base() == rc::NV_UNINITIALIZED =>
                {
                    Ok(NvRegisterState::Unwritten)
                }
                read => {
                    let value = read?.try_into().map_err(|_| Malformed);
                    value.map(NvRegisterState::Value).map_err(malformed(Code::NvRead))
                }
            }
        })
    }

    /// Makes the index, if it is not there.
    ///
    /// # Errors
    /// If something else is at the index, there is no room, or the TPM refuses.
    pub fn make_register(&self, register: &NvRegister) -> Result<(), TpmError> {
        self.run(|| {
            if self.register_public(register)?.is_some() {
                return Ok(());
            }
            self.nv_define_area(&register.auth, &register.area()?)?;
            tracing::info!(
                index = format_args!("{:#010x}", register.index),
                "made an index for measurements in the TPM"
            );
            Ok(())
        })
    }

    /// Extends the register. Not repeated after a broken connection: whether it was done
    /// is for the caller to find out.
    ///
    /// # Errors
    /// If there is no such index, something else is there, it was made by somebody else,
    /// or the TPM refuses.
    pub fn extend_register(
        &self,
        register: &NvRegister,
        digest: &[u8; HASH_LEN],
    ) -> Result<(), TpmError> {
        // With a second try, before anything is changed.
        let found = self.run(|| self.register_public(register))?;
        let (entity, _) = found.ok_or(TpmError::NoRegister { index: register.index })?;
        self.with_session(|session| {
            let auth = Auth::Hmac { session, value: &register.auth, of: Authorized::Register };
            let handles = [entity.clone(), entity.clone()];
            let asked = Writer::new().sized(digest);
            self.execute(Code::NvExtend, &handles, &mut [auth], asked).map(drop)
        })
    }

    /// The index, and true if it was written; `None` if there is nothing.
    fn register_public(&self, register: &NvRegister) -> Result<Option<(Entity, bool)>, TpmError> {
        let Some((entity, area)) = self.nv_area(register.index)? else { return Ok(None) };
        let taken = || TpmError::NotARegister { index: register.index };
        let written =
            area_is_register(register.index, &area).map_err(malformed(Code::NvReadPublic))?;
        Ok(Some((entity, written.ok_or_else(taken)?)))
    }
}

/// Reads the public area of a register: true if it was written. `None` if the area is not
/// that of a register as this module makes them.
pub(crate) fn area_is_register(index: u32, area: &[u8]) -> Result<Option<bool>, Malformed> {
    let mut reader = Reader::new(area);
    let (found, hash, attributes) = (reader.u32()?, reader.u16()?, reader.u32()?);
    let (policy, length) = (reader.sized()?, reader.u16()?);
    reader.end()?;
    if found != index {
        return Err(Malformed);
    }
    let fits = hash == number::ALG_SHA256
        && attributes & !WRITTEN == ATTRIBUTES
        && policy.is_empty()
        && length == LENGTH;
    Ok(fits.then_some(attributes & WRITTEN != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_register_that_nobody_else_extends_and_a_reset_empties_passes_for_one() {
        const INDEX: u32 = 0x0180_ed01;
        let register = NvRegister::new(INDEX, AuthValue::empty()).unwrap();
        let area = register.area().unwrap();
        assert_eq!(area_is_register(INDEX, &area), Ok(Some(false)));
        let with = |attributes: u32, length: u16| {
            let area = Writer::new().u32(INDEX).u16(number::ALG_SHA256).u32(attributes);
            area.u16(0).u16(length).finish().unwrap().to_vec()
        };
        assert_eq!(area_is_register(INDEX, &with(ATTRIBUTES | WRITTEN, 32)), Ok(Some(true)));
        // The owner may write, an ordinary index, one that keeps its value, another
        // length.
        for other in [
            with(ATTRIBUTES | 1 << 1, 32),
            with(ATTRIBUTES & !EXTEND, 32),
            with(ATTRIBUTES & !CLEAR_AT_RESET, 32),
            with(ATTRIBUTES, 20),
        ] {
            assert_eq!(area_is_register(INDEX, &other), Ok(None));
        }
        assert!(area_is_register(INDEX + 1, &area).is_err());
        assert!(NvRegister::new(0x0140_0000, AuthValue::empty()).is_err());
    }
}
