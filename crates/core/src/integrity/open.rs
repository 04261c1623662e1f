//! The decision at a start: go on with the log that is there, or begin another and say
//! why.

use serde::{Deserialize, Serialize};

use super::{Hash, LogError, LogStart, Logged, Word, ZEROS, position};
use crate::assurance::LogState;
use crate::digest::Sha256Digest;

/// The reason why a log was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// There was no log, and no register tells of one.
    First,
    /// The machine was started.
    Boot,
    /// The log before was full.
    Full,
    /// The settings name other registers.
    Settings,
    /// The TPM can be used, and could not before.
    TpmCame,
    /// The TPM cannot be used, and could be before.
    TpmGone,
    /// There was no log, and a register tells that there was one in this boot.
    LogLost,
    /// The log before could not be read.
    Damaged,
    /// The TPM was reset while the machine ran on.
    TpmReset,
    /// The NV index was gone in the middle of a boot.
    IndexGone,
    /// The NV index was made anew in the middle of a boot.
    IndexRemade,
    /// A register held what the log before does not explain.
    Unlike,
}

impl Reason {
    /// The reason in words, if it tells of something that must not happen by itself.
    #[must_use]
    pub const fn finding(self) -> Option<&'static str> {
        match self {
            Self::First | Self::Boot | Self::Full | Self::Settings | Self::TpmCame => None,
            Self::TpmGone => Some("the TPM that the log was bound to cannot be used"),
            Self::LogLost => {
                Some("the log is gone, and the TPM tells that there was one in this boot")
            }
            Self::Damaged => {
                Some("the log could not be read; it is kept, and another one was begun")
            }
            Self::TpmReset => Some("the TPM was reset while the machine ran on"),
            Self::IndexGone => Some("the NV index was removed while the machine ran"),
            Self::IndexRemade => Some("the NV index was made anew while the machine ran"),
            Self::Unlike => Some("the TPM's registers hold what the log does not explain"),
        }
    }
}

/// The NV index as the TPM has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexState {
    /// There is none.
    Absent,
    /// It was not written since the TPM's last reset.
    Unwritten,
    /// It holds this.
    Value(Sha256Digest),
    /// Somebody else made it, or it is of another kind: it cannot be used.
    Foreign,
}

/// The registers that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// Counts of the TPM's resets and restarts.
    pub resets: (u32, u32),
    /// The PCR's value, if one is extended.
    pub pcr: Option<Sha256Digest>,
    /// The index's number and state, if one is extended.
    pub nv: Option<(u32, IndexState)>,
}

/// The state of the device at a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// The kernel's id of this boot.
    pub boot_id: Word,
    /// The PCR that the settings name.
    pub pcr: u8,
    /// The registers; `None` without a TPM that can be used.
    pub registers: Option<Registers>,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// The log goes on.
    Continue {
        /// Number of records that are extended into the PCR.
        pcr: usize,
        /// Number of records that are extended into the NV index.
        nv: usize,
    },
    /// Another log begins.
    Begin(Reason),
}

/// Judges the newest log, of which the first record is `start`, by what would happen to
/// it at the next record.
#[must_use]
pub fn state_of(start: Option<&LogStart>, next: Opening) -> LogState {
    let Some(start) = start else { return LogState::Differs };
    let is_bound = start.pcr_base.is_some() || start.nv_base.is_some();
    match next {
        _ if start.reason.finding().is_some() && start.reason != Reason::TpmGone => {
            LogState::Differs
        }
        Opening::Continue { .. } if is_bound => LogState::Bound,
        // A TPM that is gone, or came back, is told by the TPM's own state.
        Opening::Continue { .. } => LogState::Unbound,
        Opening::Begin(reason) if reason.finding().is_none() || reason == Reason::TpmGone => {
            LogState::Unbound
        }
        Opening::Begin(_) => LogState::Differs,
    }
}

/// Decides by the last log, if there is one, and the state of the device.
#[must_use]
pub fn open(last: Option<&Result<Logged, LogError>>, present: &Present, hash: Hash) -> Opening {
    let log = match last {
        Some(Ok(log)) => log,
        Some(Err(_)) => return Opening::Begin(Reason::Damaged),
        None => {
            let written = present.registers.is_some_and(
                |it| matches!(it.nv, Some((_, IndexState::Value(value))) if value != ZEROS),
            );
            return Opening::Begin(if written { Reason::LogLost } else { Reason::First });
        }
    };
    let start = log.start();
    let same_boot = start.boot_id == present.boot_id;
    let bound = start.pcr_base.is_some() || start.nv_base.is_some();
    let registers = match (bound, present.registers) {
        (false, None) if same_boot && log.pcr() == present.pcr => {
            let all = log.records().len();
            return Opening::Continue { pcr: all, nv: all };
        }
        (false, None) if same_boot => return Opening::Begin(Reason::Settings),
        (false, Some(_)) if same_boot => return Opening::Begin(Reason::TpmCame),
        (true, None) if same_boot => return Opening::Begin(Reason::TpmGone),
        (false, _) | (true, None) => return Opening::Begin(Reason::Boot),
        (true, Some(registers)) => registers,
    };
    Opening::Begin(match go_on(log, present, &registers, hash) {
        Ok(go_on) => return go_on,
        Err(reason) => {
            let resets =
                (Word::number(registers.resets.0.into()), Word::number(registers.resets.1.into()));
            let was_reset = (start.resets.as_ref(), start.restarts.as_ref())
                != (Some(&resets.0), Some(&resets.1));
            match (was_reset, same_boot) {
                (true, true) if reason != Reason::Settings => Reason::TpmReset,
                (true, false) => Reason::Boot,
                _ => reason,
            }
        }
    })
}

/// The places at which a bound log goes on, or the reason why it cannot.
fn go_on(
    log: &Logged,
    present: &Present,
    registers: &Registers,
    hash: Hash,
) -> Result<Opening, Reason> {
    let start = log.start();
    let index = registers
        .nv
        // A log that was begun beside such an index is not bound to it.
        .filter(|(_, state)| *state != IndexState::Foreign || start.nv_index.is_some())
        .map(|(index, _)| Word::cleaned(&format!("{index:#010x}")));
    if log.pcr() != present.pcr
        || start.pcr_base.is_some() != registers.pcr.is_some()
        || start.nv_index != index
    {
        return Err(Reason::Settings);
    }
    let nv = match (start.nv_base, registers.nv) {
        (Some(base), Some((_, state))) => match state {
            IndexState::Absent => return Err(Reason::IndexGone),
            // A log whose first record was written, and not extended yet.
            IndexState::Unwritten if base == ZEROS && log.records().len() == 1 => 0,
            IndexState::Foreign | IndexState::Unwritten => return Err(Reason::IndexRemade),
            IndexState::Value(value) => position(log, &base, &value, hash).ok_or(Reason::Unlike)?,
        },
        _ => log.records().len(),
    };
    let pcr = match (start.pcr_base, registers.pcr) {
        (Some(base), Some(value)) => position(log, &base, &value, hash).ok_or(Reason::Unlike)?,
        _ => log.records().len(),
    };
    Ok(Opening::Continue { pcr, nv })
}
