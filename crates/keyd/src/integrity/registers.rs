//! The registers that the log is bound to, in a TPM that may be absent.

use edgekeep_base::error::chain;
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::hardware::MeasureInto;
use edgekeep_core::integrity::{IndexState, LogStart, Registers, Word, ZEROS};
use edgekeep_hsm::KeyError;
use edgekeep_tpm::{AuthValue, Authorized, NvRegister, NvRegisterState, Tpm, TpmError};

use crate::places::SharedTpm;

/// The PCR that the records of a log are of that is extended into none.
pub(super) const UNBOUND_PCR: u8 = MeasureInto::PCR;

/// The registers, and the TPM that has them.
pub(crate) struct Bound {
    tpm: SharedTpm,
    pcr: Option<u8>,
    register: Option<NvRegister>,
}

/// The registers as they were read.
pub(crate) struct Read {
    pub(crate) registers: Registers,
    /// The reason why a register that is wanted is not used.
    pub(crate) complaint: Option<String>,
}

impl Bound {
    /// The registers of `tpm` that the settings name. `auth` extends the index.
    ///
    /// # Errors
    /// If the index is not in the owner's range.
    pub(crate) fn new(
        tpm: SharedTpm,
        into: MeasureInto,
        auth: AuthValue,
    ) -> Result<Self, TpmError> {
        let register = into.index.map(|index| NvRegister::new(index, auth)).transpose()?;
        Ok(Self { tpm, pcr: into.pcr, register })
    }

    /// The PCR that the records are of.
    pub(super) fn pcr(&self) -> u8 {
        self.pcr.unwrap_or(UNBOUND_PCR)
    }

    /// The number of the PCR and of the NV index, if they are wanted.
    pub(crate) fn numbers(&self) -> (Option<u8>, Option<u32>) {
        (self.pcr, self.register.as_ref().map(NvRegister::index))
    }

    pub(super) fn read(&self) -> Result<Read, KeyError> {
        Ok(self.tpm.get()?.with_tpm(|tpm| self.read_from(tpm))?)
    }

    fn read_from(&self, tpm: &Tpm) -> Result<Read, TpmError> {
        let resets = tpm.resets()?;
        let mut complaint = None;
        let pcr = match self.pcr {
            Some(pcr) => {
                let value = tpm.pcr(pcr)?.map(Sha256Digest::new);
                if value.is_none() {
                    complaint = Some(format!(
                        "the TPM keeps no SHA-256 bank for PCR {pcr}: allocate one (tpm2_pcrallocate, then restart \
                         the machine), or set another measure_pcr in [tpm]"
                    ));
                }
                value
            }
            None => None,
        };
        let nv = match &self.register {
            Some(register) => {
                let state = match tpm.register_state(register) {
                    Ok(NvRegisterState::Absent) => IndexState::Absent,
                    Ok(NvRegisterState::Unwritten) => IndexState::Unwritten,
                    Ok(NvRegisterState::Value(value)) => {
                        IndexState::Value(Sha256Digest::new(value))
                    }
                    Err(
                        error @ (TpmError::NotARegister { .. }
                        | TpmError::AuthFailed { of: Authorized::Register, .. }),
                    ) => {
                        complaint = Some(chain(&error));
                        IndexState::Foreign
                    }
                    Err(error) => return Err(error),
                };
                Some((register.index(), state))
            }
            None => None,
        };
        Ok(Read { registers: Registers { resets, pcr, nv }, complaint })
    }

    /// Makes the index if it is not there, and says in the log's beginning what the log
    /// is bound to.
    pub(super) fn describe(&self, read: &Read, start: &mut LogStart) -> Result<(), KeyError> {
        let Registers { resets, pcr, nv } = read.registers;
        start.pcr_base = pcr;
        start.resets = Some(Word::number(resets.0.into()));
        start.restarts = Some(Word::number(resets.1.into()));
        let (Some(register), Some((index, state))) = (&self.register, nv) else { return Ok(()) };
        let base = match state {
            IndexState::Foreign => return Ok(()),
            IndexState::Absent => {
                self.with_tpm(|tpm| tpm.make_register(register))?;
                ZEROS
            }
            IndexState::Unwritten => ZEROS,
            IndexState::Value(value) => value,
        };
        start.nv_index = Some(Word::cleaned(&format!("{index:#010x}")));
        start.nv_name = Some(Sha256Digest::new(register.name()?));
        start.nv_base = Some(base);
        Ok(())
    }

    /// Extends a digest into the PCR, into the index, or into both.
    pub(super) fn extend(
        &self,
        (pcr, nv): (bool, bool),
        digest: &Sha256Digest,
    ) -> Result<(), KeyError> {
        if !pcr && !nv {
            return Ok(());
        }
        self.with_tpm(|tpm| {
            if let Some(number) = self.pcr.filter(|_| pcr) {
                tpm.extend_pcr(number, digest.as_bytes())?;
            }
            if let Some(register) = self.register.as_ref().filter(|_| nv) {
                tpm.extend_register(register, digest.as_bytes())?;
            }
            Ok(())
        })
    }

    fn with_tpm<T>(&self, ask: impl FnOnce(&Tpm) -> Result<T, TpmError>) -> Result<T, KeyError> {
        Ok(self.tpm.get()?.with_tpm(ask)?)
    }
}
