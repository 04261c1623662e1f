//! A counter in the TPM's non-volatile memory that only ever goes up, also across
//! removal: a TPM begins a new counter above every value that any counter of it ever had.
//!
//! The index is the owner's, counts with an auth value that only its maker knows, and
//! reads with that or with the owner's (`tpm2_nvread -C o INDEX`). It is exempt from the
//! protection against guessing, so that nobody can lock the TPM by it; the auth value is
//! 32 random bytes. It is written through, not orderly: an orderly counter jumps ahead
//! after a power cut, which looks like a loss. So each step wears the memory, and who
//! uses it bounds how often.

use crate::device::{Tpm, malformed};
use crate::error::{Authorized, TpmError, rc};
use crate::kdf::sha256;
use crate::session::{Auth, AuthValue, Entity};
use crate::wire::{Code, Malformed, Reader, Writer, number};

/// Written only with the index's auth value, never by the owner.
const AUTH_WRITE: u32 = 1 << 2;
/// The type of index: a counter.
const COUNTER: u32 = 1 << 4;
const TYPE_MASK: u32 = 0xf << 4;
const OWNER_READ: u32 = 1 << 17;
const AUTH_READ: u32 = 1 << 18;
const NO_LOCKOUT: u32 = 1 << 25;
/// Set by the TPM at the first step.
const WRITTEN: u32 = 1 << 29;
const ATTRIBUTES: u32 = AUTH_WRITE | COUNTER | OWNER_READ | AUTH_READ | NO_LOCKOUT;
/// A counter's length in bytes.
const LENGTH: u16 = 8;

/// A place for a counter, and what allows to use it.
#[derive(Clone)]
pub struct NvCounter {
    index: u32,
    auth: AuthValue,
}

impl NvCounter {
    /// First and last index of the owner's range.
    pub const RANGE: (u32, u32) = (0x0180_0000, 0x01bf_ffff);

    /// The counter at `index`, made and used with `auth`.
    ///
    /// # Errors
    /// If the index is not in the owner's range.
    pub fn new(index: u32, auth: AuthValue) -> Result<Self, TpmError> {
        let (first, last) = Self::RANGE;
        if (first..=last).contains(&index) {
            Ok(Self { index, auth })
        } else {
            Err(TpmError::OutOfRange { what: "the index of the audit log's counter", limit: last })
        }
    }

    /// Its index.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Tpm {
    /// The value; `None` if there is no such counter, or it was never stepped.
    ///
    /// # Errors
    /// If something else is at the index, it was made by somebody else, or the TPM
    /// refuses.
    pub fn counter_value(&self, counter: &NvCounter) -> Result<Option<u64>, TpmError> {
        self.run(|| match self.nv_public(counter.index)? {
            Some(found) if found.written => self.nv_read(counter, &found.entity).map(Some),
            _ => Ok(None),
        })
    }

    /// Makes the counter, if it is not there, and steps it once: before that it has no
    /// value.
    ///
    /// # Errors
    /// If something else is at the index, it was made by somebody else, there is no room,
    /// or the TPM refuses.
    pub fn make_counter(&self, counter: &NvCounter) -> Result<u64, TpmError> {
        self.run(|| {
            if self.nv_public(counter.index)?.is_none() {
                self.nv_define(counter)?;
            }
            self.nv_step(counter)
        })
    }

    /// Adds one and gives the new value. Not repeated after a broken connection: whether
    /// it was done is for the caller to find out.
    ///
    /// # Errors
    /// If there is no such counter, something else is at the index, it was made by
    /// somebody else, or the TPM refuses.
    pub fn step_counter(&self, counter: &NvCounter) -> Result<u64, TpmError> {
        // Before anything is changed, and with a second try: afterwards the connection
        // and the session are good.
        self.counter_value(counter)?;
        self.nv_step(counter)
    }

    fn nv_step(&self, counter: &NvCounter) -> Result<u64, TpmError> {
        let absent = || TpmError::NoCounter { index: counter.index };
        let found = self.nv_public(counter.index)?.ok_or_else(absent)?;
        self.with_session(|session| {
            let auth = Auth::Hmac { session, value: &counter.auth, of: Authorized::Counter };
            let handles = [found.entity.clone(), found.entity.clone()];
            self.execute(Code::NvIncrement, &handles, &mut [auth], Writer::new()).map(drop)
        })?;
        // The first step changes the name.
        let found = self.nv_public(counter.index)?.ok_or_else(absent)?;
        self.nv_read(counter, &found.entity)
    }

    fn nv_read(&self, counter: &NvCounter, entity: &Entity) -> Result<u64, TpmError> {
        let bytes = self.nv_read_bytes(entity, (&counter.auth, Authorized::Counter), LENGTH)?;
        let value = bytes.try_into().map_err(|_| Malformed);
        value.map(u64::from_be_bytes).map_err(malformed(Code::NvRead))
    }

    /// Reads a whole index with its own auth value.
    pub(crate) fn nv_read_bytes(
        &self,
        entity: &Entity,
        (value, of): (&AuthValue, Authorized),
        length: u16,
    ) -> Result<Vec<u8>, TpmError> {
        self.with_session(|session| {
            let auth = Auth::Hmac { session, value, of };
            let asked = Writer::new().u16(length).u16(0);
            let answer =
                self.execute(Code::NvRead, &[entity.clone(), entity.clone()], &mut [auth], asked)?;
            let bytes = Reader::new(&answer.parameters).sized();
            bytes.map(<[u8]>::to_vec).map_err(malformed(Code::NvRead))
        })
    }

    fn nv_define(&self, counter: &NvCounter) -> Result<(), TpmError> {
        let public = Writer::new()
            .u32(counter.index)
            .u16(number::ALG_SHA256)
            .u32(ATTRIBUTES)
            .u16(0)
            .u16(LENGTH);
        let public = public.finish().ok_or(TpmError::Library)?;
        self.nv_define_area(&counter.auth, &public)?;
        tracing::info!(
            index = format_args!("{:#010x}", counter.index),
            "made a counter in the TPM"
        );
        Ok(())
    }

    /// Makes an index with this public area, to be used with this auth value.
    pub(crate) fn nv_define_area(&self, auth: &AuthValue, public: &[u8]) -> Result<(), TpmError> {
        let asked = Writer::new().sized(auth.expose()).sized(public);
        self.with_session(|session| {
            let auth = Auth::Hmac { session, value: &self.options.owner, of: Authorized::Owner };
            let handles = [Entity::permanent(number::RH_OWNER)];
            match self.execute(Code::NvDefineSpace, &handles, &mut [auth], asked) {
                Err(TpmError::NoPersistentRoom) => Err(TpmError::NoNvRoom),
                done => done.map(drop),
            }
        })
    }

    /// The counter at an index; `None` if there is nothing.
    fn nv_public(&self, index: u32) -> Result<Option<Found>, TpmError> {
        let Some((entity, area)) = self.nv_area(index)? else { return Ok(None) };
        let is_counter = area_is_counter(index, &area).map_err(malformed(Code::NvReadPublic))?;
        let written = is_counter.ok_or(TpmError::NvIndexTaken { index })?;
        Ok(Some(Found { entity, written }))
    }

    /// The public area of an index, with its name; `None` if there is nothing.
    pub(crate) fn nv_area(&self, index: u32) -> Result<Option<(Entity, Vec<u8>)>, TpmError> {
        // The name is what is asked for, and authorizations do not cover this command.
        let answer = match self.execute(
            Code::NvReadPublic,
            &[Entity::object(index, &[])],
            &mut [],
            Writer::new(),
        ) {
            Err(TpmError::Refused { code, .. }) if code.base() == rc::HANDLE => return Ok(None),
            other => other?,
        };
        let area =
            Reader::new(&answer.parameters).sized().map_err(malformed(Code::NvReadPublic))?;
        // The name is computed here: a name that something in between invented fails the
        // HMACs.
        let name = [&number::ALG_SHA256.to_be_bytes()[..], &sha256(&[area])].concat();
        Ok(Some((Entity::object(index, &name), area.to_vec())))
    }
}

struct Found {
    entity: Entity,
    /// True if the counter was stepped since it was made.
    written: bool,
}

/// Reads the public area of a counter: true if the counter was stepped. `None` if the
/// area is not that of a counter as this module makes them.
pub(crate) fn area_is_counter(index: u32, area: &[u8]) -> Result<Option<bool>, Malformed> {
    let mut reader = Reader::new(area);
    let (found, hash, attributes) = (reader.u32()?, reader.u16()?, reader.u32()?);
    let (policy, length) = (reader.sized()?, reader.u16()?);
    reader.end()?;
    if found != index {
        return Err(Malformed);
    }
    let fits = hash == number::ALG_SHA256
        && attributes & !WRITTEN == ATTRIBUTES
        && attributes & TYPE_MASK == COUNTER
        && policy.is_empty()
        && length == LENGTH;
    Ok(fits.then_some(attributes & WRITTEN != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_counter_that_nobody_else_can_step_passes_for_one() {
        const INDEX: u32 = 0x0180_ed00;
        let area = |attributes: u32, length: u16| {
            let area =
                Writer::new().u32(INDEX).u16(number::ALG_SHA256).u32(attributes).u16(0).u16(length);
            area.finish().unwrap().to_vec()
        };
        assert_eq!(area_is_counter(INDEX, &area(ATTRIBUTES, 8)), Ok(Some(false)));
        assert_eq!(area_is_counter(INDEX, &area(ATTRIBUTES | WRITTEN, 8)), Ok(Some(true)));
        // Owner may write, an ordinary index, orderly, another length.
        for other in [
            area(ATTRIBUTES | 1 << 1, 8),
            area(ATTRIBUTES & !COUNTER, 8),
            area(ATTRIBUTES | 1 << 26, 8),
            area(ATTRIBUTES, 9),
        ] {
            assert_eq!(area_is_counter(INDEX, &other), Ok(None));
        }
        assert!(area_is_counter(INDEX + 1, &area(ATTRIBUTES, 8)).is_err());
        assert!(NvCounter::new(0x0140_0000, AuthValue::empty()).is_err());
    }
}
