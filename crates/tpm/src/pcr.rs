//! Registers of the SHA-256 bank, by themselves: their values, and extending them.

use crate::device::{Tpm, malformed};
use crate::error::{Authorized, TpmError};
use crate::kdf::HASH_LEN;
use crate::seal::PcrSelection;
use crate::session::{Auth, AuthValue, Entity};
use crate::wire::{Code, Malformed, Reader, Writer, number};

impl Tpm {
    /// Returns the value of a register of the SHA-256 bank; `None` if the TPM keeps no
    /// such bank for it, so that nothing that is extended there would last.
    ///
    /// # Errors
    /// If there is no such register, or the TPM refuses.
    pub fn pcr(&self, register: u8) -> Result<Option<[u8; HASH_LEN]>, TpmError> {
        let selection = PcrSelection::new(&[register])?;
        self.run(|| {
            let asked = selection.marshal(Writer::new());
            let answer = self.execute(Code::PcrRead, &[], &mut [], asked)?;
            read_one(&answer.parameters, register).map_err(malformed(Code::PcrRead))
        })
    }

    /// Extends a register of the SHA-256 bank. Not repeated after a broken connection:
    /// whether it was done is for the caller to find out.
    ///
    /// # Errors
    /// If there is no such register, it may not be extended, or the TPM refuses.
    pub fn extend_pcr(&self, register: u8, digest: &[u8; HASH_LEN]) -> Result<(), TpmError> {
        // Before anything is changed, and with a second try: afterwards the connection
        // and the session are good.
        self.pcr(register)?;
        let asked = Writer::new().u32(1).u16(number::ALG_SHA256).bytes(digest);
        self.with_session(|session| {
            let empty = AuthValue::empty();
            let auth = Auth::Hmac { session, value: &empty, of: Authorized::Pcr };
            let handles = [Entity::permanent(register.into())];
            self.execute(Code::PcrExtend, &handles, &mut [auth], asked).map(drop)
        })
    }

    /// Returns the numbers of the TPM's resets and of its restarts since the last reset.
    ///
    /// # Errors
    /// If the TPM does not answer.
    pub fn resets(&self) -> Result<(u32, u32), TpmError> {
        self.run(|| self.reset_counters())
    }
}

/// Reads the answer about one register.
pub(crate) fn read_one(
    parameters: &[u8],
    register: u8,
) -> Result<Option<[u8; HASH_LEN]>, Malformed> {
    let mut reader = Reader::new(parameters);
    reader.u32()?;
    let mut selected = false;
    for _ in 0..reader.u32()?.min(16) {
        let hash = reader.u16()?;
        let len = reader.u8()?;
        let mask = reader.bytes(len.into())?;
        let bit =
            mask.get(usize::from(register / 8)).is_some_and(|it| it >> (register % 8) & 1 == 1);
        selected |= hash == number::ALG_SHA256 && bit;
    }
    match (selected, reader.u32()?) {
        (false, 0) => reader.end().map(|()| None),
        (true, 1) => {
            let value = reader.sized()?.try_into().map_err(|_| Malformed)?;
            reader.end().map(|()| Some(value))
        }
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(mask: [u8; 3], values: &[[u8; 32]]) -> Vec<u8> {
        let count = u32::try_from(values.len()).unwrap();
        let head = Writer::new().u32(7).u32(1).u16(number::ALG_SHA256).u8(3).bytes(&mask);
        let all = values.iter().fold(head.u32(count), |writer, value| writer.sized(value));
        all.finish().unwrap().to_vec()
    }

    #[test]
    fn a_bank_that_is_not_there_is_told_from_a_value() {
        assert_eq!(read_one(&answer([0, 0x20, 0], &[[5; 32]]), 13), Ok(Some([5; 32])));
        assert_eq!(read_one(&answer([0, 0, 0], &[]), 13), Ok(None));
        // Another register's value, a value without a selection, and none with one.
        assert_eq!(read_one(&answer([0, 0x40, 0], &[[5; 32]]), 13), Err(Malformed));
        assert_eq!(read_one(&answer([0, 0, 0], &[[5; 32]]), 13), Err(Malformed));
        assert_eq!(read_one(&answer([0, 0x20, 0], &[]), 13), Err(Malformed));
        let whole = answer([0, 0x20, 0], &[[5; 32]]);
        for end in 0..whole.len() {
            assert_eq!(read_one(&whole[..end], 13), Err(Malformed), "{end}");
        }
    }
}
