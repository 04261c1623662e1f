//! State of a TPM, for people who look for the cause of a failure.

use std::fmt;

use crate::device::{Tpm, malformed};
use crate::error::TpmError;
use crate::wire::{Code, Malformed, Reader, Writer, number};

const PERSISTENT: u32 = 0x8100_0000;
/// Numbers of properties (part 2, section 6.13).
const MANUFACTURER: u32 = 0x105;
const VENDOR_STRINGS: std::ops::Range<u32> = 0x106..0x10a;
const FIRMWARE_VERSION_1: u32 = 0x10b;
const PERMANENT: u32 = 0x200;
const LOCKOUT_COUNTER: u32 = 0x20e;
const MAX_AUTH_FAIL: u32 = 0x20f;
const LOCKOUT_INTERVAL: u32 = 0x210;
/// Bits of the property `PERMANENT`.
const OWNER_AUTH_SET: u32 = 1;
const ENDORSEMENT_AUTH_SET: u32 = 1 << 1;
const LOCKOUT_AUTH_SET: u32 = 1 << 2;
const IN_LOCKOUT: u32 = 1 << 9;

/// State of a TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmReport {
    /// Address of the TPM.
    pub tcti: String,
    /// The manufacturer's four letters.
    pub manufacturer: String,
    /// The manufacturer's name for the model.
    pub model: String,
    /// Version of its firmware, upper and lower half.
    pub firmware: (u16, u16),
    /// Numbers of resets and restarts.
    pub resets: (u32, u32),
    /// True for each of the owner, endorsement and lockout hierarchies that has an auth
    /// value.
    pub auth_set: [bool; 3],
    /// True if the TPM refuses objects that are protected against guessing.
    pub in_lockout: bool,
    /// Wrong auth values that count now.
    pub failed_attempts: u32,
    /// Number of wrong auth values at which lockout begins.
    pub attempts_limit: u32,
    /// Seconds after which one wrong auth value is forgiven.
    pub forgiven_after: u32,
    /// Persistent handles.
    pub persistent: Vec<u32>,
    /// Hash algorithms that have registers, by number.
    pub banks: Vec<u16>,
}

impl Tpm {
    /// Asks the TPM for its state. Changes nothing.
    ///
    /// # Errors
    /// If the TPM does not answer.
    pub fn report(&self) -> Result<TpmReport, TpmError> {
        self.run(|| {
            let fixed = self.properties(MANUFACTURER, 16)?;
            let variable = self.properties(PERMANENT, 32)?;
            let value = |properties: &[(u32, u32)], wanted| {
                properties
                    .iter()
                    .find(|(property, _)| *property == wanted)
                    .map_or(0, |(_, value)| *value)
            };
            let text = |wanted: std::ops::Range<u32>| {
                let bytes = wanted.flat_map(|property| value(&fixed, property).to_be_bytes());
                let letters =
                    bytes.filter(|byte| byte.is_ascii_graphic() || *byte == b' ').map(char::from);
                letters.collect::<String>().trim().to_owned()
            };
            let firmware = value(&fixed, FIRMWARE_VERSION_1);
            let permanent = value(&variable, PERMANENT);
            Ok(TpmReport {
                tcti: self.options.tcti.to_string(),
                manufacturer: text(MANUFACTURER..MANUFACTURER + 1),
                model: text(VENDOR_STRINGS),
                firmware: ((firmware >> 16) as u16, (firmware & 0xffff) as u16),
                resets: self.reset_counters()?,
                auth_set: [OWNER_AUTH_SET, ENDORSEMENT_AUTH_SET, LOCKOUT_AUTH_SET]
                    .map(|bit| permanent & bit != 0),
                in_lockout: permanent & IN_LOCKOUT != 0,
                failed_attempts: value(&variable, LOCKOUT_COUNTER),
                attempts_limit: value(&variable, MAX_AUTH_FAIL),
                forgiven_after: value(&variable, LOCKOUT_INTERVAL),
                persistent: self.handles_once(PERSISTENT)?,
                banks: self.banks()?,
            })
        })
    }

    /// Returns true if the TPM refuses objects that are protected against guessing.
    ///
    /// # Errors
    /// If the TPM does not answer.
    pub fn in_lockout(&self) -> Result<bool, TpmError> {
        self.run(|| {
            let permanent = self.properties(PERMANENT, 1)?;
            let value = permanent.iter().find(|(property, _)| *property == PERMANENT);
            Ok(value.is_some_and(|(_, value)| value & IN_LOCKOUT != 0))
        })
    }

    fn properties(&self, first: u32, count: u32) -> Result<Vec<(u32, u32)>, TpmError> {
        let asked = Writer::new().u32(number::CAP_TPM_PROPERTIES).u32(first).u32(count);
        let answer = self.execute(Code::GetCapability, &[], &mut [], asked)?;
        let mut reader = Reader::new(&answer.parameters);
        let mut read = || -> Result<Vec<_>, Malformed> {
            reader.u8()?;
            reader.u32()?;
            (0..reader.u32()?.min(count)).map(|_| Ok((reader.u32()?, reader.u32()?))).collect()
        };
        read().map_err(malformed(Code::GetCapability))
    }

    /// Banks in which any register is allocated.
    fn banks(&self) -> Result<Vec<u16>, TpmError> {
        let asked = Writer::new().u32(number::CAP_PCRS).u32(0).u32(16);
        let answer = self.execute(Code::GetCapability, &[], &mut [], asked)?;
        let mut reader = Reader::new(&answer.parameters);
        let mut read = || -> Result<Vec<_>, Malformed> {
            reader.u8()?;
            reader.u32()?;
            let mut banks = Vec::new();
            for _ in 0..reader.u32()?.min(16) {
                let hash = reader.u16()?;
                let len = reader.u8()?;
                if reader.bytes(usize::from(len))?.iter().any(|byte| *byte != 0) {
                    banks.push(hash);
                }
            }
            Ok(banks)
        };
        read().map_err(malformed(Code::GetCapability))
    }
}

impl fmt::Display for TpmReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |at: usize| if self.auth_set[at] { "set" } else { "empty" };
        let (major, minor) = self.firmware;
        writeln!(
            f,
            "TPM at {}: {} {}, firmware {major}.{minor}",
            self.tcti, self.manufacturer, self.model
        )?;
        writeln!(f, "resets {}, restarts {}", self.resets.0, self.resets.1)?;
        writeln!(f, "auth values: owner {}, endorsement {}, lockout {}", set(0), set(1), set(2))?;
        writeln!(
            f,
            "lockout: {}, {} of {} wrong attempts, one forgiven every {} s",
            if self.in_lockout { "LOCKED" } else { "not locked" },
            self.failed_attempts,
            self.attempts_limit,
            self.forgiven_after
        )?;
        write!(f, "persistent handles:")?;
        for handle in &self.persistent {
            write!(f, " {handle:#010x}")?;
        }
        write!(f, "\nPCR banks:")?;
        for bank in &self.banks {
            match bank {
                0x04 => write!(f, " sha1")?,
                0x0b => write!(f, " sha256")?,
                0x0c => write!(f, " sha384")?,
                0x0d => write!(f, " sha512")?,
                other => write!(f, " {other:#06x}")?,
            }
        }
        Ok(())
    }
}
