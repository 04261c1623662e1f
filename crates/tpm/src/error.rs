//! Refusals of a TPM, in words, with remedies.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::kdf::Failed;

/// The reason why an operation on the TPM failed.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// There is no such device.
    #[error(
        "there is no TPM device {path:?}: enable the TPM in the firmware, load its driver, or set another tcti"
    )]
    Missing {
        /// The device.
        path: PathBuf,
    },
    /// The device is there but not for this user.
    #[error(
        "the TPM device {path:?} may not be opened by this user: add it to the group of the device, usually with \
         `usermod --append --groups tss USER`, and restart the service"
    )]
    NotPermitted {
        /// The device.
        path: PathBuf,
    },
    /// Another process holds the device.
    #[error(
        "the TPM device {path:?} is in use by another process: use /dev/tpmrm0, which many can open"
    )]
    InUse {
        /// The device.
        path: PathBuf,
    },
    /// The TPM could not be reached.
    #[error("the TPM at {tcti} cannot be reached")]
    Unreachable {
        /// Address at which the TPM should be.
        tcti: String,
        /// Error of the connection.
        #[source]
        source: io::Error,
    },
    /// The connection broke; it will be opened again at the next use.
    #[error("the TPM at {tcti} went away during {command}")]
    Lost {
        /// Address of the TPM.
        tcti: String,
        /// Name of the command that was running.
        command: &'static str,
        /// Error of the connection.
        #[source]
        source: io::Error,
    },
    /// Too many wrong auth values.
    #[error(
        "the TPM is locked against guessing of auth values: wait until its counter has gone down, or reset it with \
         `tpm2_dictionarylockout --clear-lockout` and the lockout auth value"
    )]
    Lockout,
    /// A wrong auth value, or none where there is one.
    #[error("the TPM refused the auth value of {of}: {remedy}")]
    AuthFailed {
        /// Owner of the auth value.
        of: Authorized,
        /// Remedy.
        remedy: &'static str,
    },
    /// A policy does not hold.
    #[error(
        "the policy that the secret is sealed to does not hold: the measured state (PCR) is another than then"
    )]
    PolicyFailed,
    /// The place of a persistent object is taken by another.
    #[error(
        "the persistent handle {handle:#010x} holds {found}, not {expected}: set another handle in the configuration, \
         or, if nothing needs it, remove it with `tpm2_evictcontrol -C o -c {handle:#010x}`"
    )]
    HandleTaken {
        /// The handle.
        handle: u32,
        /// Description of the object under the handle.
        found: String,
        /// Description of the object that should be there.
        expected: &'static str,
    },
    /// There is nothing under a persistent handle.
    #[error("there is nothing under the persistent handle {handle:#010x}: {remedy}")]
    HandleEmpty {
        /// The handle.
        handle: u32,
        /// Remedy.
        remedy: &'static str,
    },
    /// No room for another loaded object or session.
    #[error(
        "the TPM has no room for another {what}: another program holds its own; end that program, or use /dev/tpmrm0, \
         where each program has room of its own"
    )]
    NoRoom {
        /// Object or session.
        what: &'static str,
    },
    /// No room for another persistent object.
    #[error(
        "the TPM has no room for another persistent object: remove one with `tpm2_evictcontrol -C o -c HANDLE`"
    )]
    NoPersistentRoom,
    /// No room for another index.
    #[error(
        "the TPM has no room for another NV index: remove one that nothing needs with `tpm2_nvundefine -C o INDEX`; \
         `tpm2_getcap handles-nv-index` lists them"
    )]
    NoNvRoom,
    /// The place of a counter is taken by something else.
    #[error(
        "the NV index {index:#010x} holds something else than a counter of ours: set another audit_counter_index in \
         [tpm], or, if nothing needs it, remove it with `tpm2_nvundefine -C o {index:#010x}`"
    )]
    NvIndexTaken {
        /// The index.
        index: u32,
    },
    /// The place of a register is taken by something else.
    #[error(
        "the NV index {index:#010x} holds something else than measurements of ours: set another measure_index in \
         [tpm], or, if nothing needs it, remove it with `tpm2_nvundefine -C o {index:#010x}`"
    )]
    NotARegister {
        /// The index.
        index: u32,
    },
    /// There is no register under an index.
    #[error("there is no index for measurements at {index:#010x}")]
    NoRegister {
        /// The index.
        index: u32,
    },
    /// There is no counter under an index.
    #[error("there is no counter under the NV index {index:#010x}")]
    NoCounter {
        /// The index.
        index: u32,
    },
    /// A blob belongs under another storage root.
    #[error(
        "the blob was made under another storage root: by another TPM, or by this one before it was cleared; restore \
         the storage root, or make the key anew"
    )]
    OtherRoot,
    /// A blob is not what was written.
    #[error("the TPM blob is damaged: restore it from a backup, or make the key anew")]
    DamagedBlob,
    /// The TPM was busy for too long.
    #[error("the TPM is busy and did not get to {command} ({code}): try again later")]
    Busy {
        /// Name of the command.
        command: &'static str,
        /// The TPM's last answer.
        code: ResponseCode,
    },
    /// Any other refusal.
    #[error("the TPM refused {command}: {code}")]
    Refused {
        /// Name of the command.
        command: &'static str,
        /// The TPM's answer.
        code: ResponseCode,
    },
    /// An answer that no TPM gives.
    #[error(
        "the answer to {command} is malformed: this is no TPM 2.0, or something changes its answers"
    )]
    Malformed {
        /// Name of the command.
        command: &'static str,
    },
    /// An answer that the TPM did not authenticate.
    #[error(
        "the answer to {command} is not authentic: something between here and the TPM changes its answers"
    )]
    NotAuthentic {
        /// Name of the command.
        command: &'static str,
    },
    /// More than fits.
    #[error("{what} is too long: {limit} bytes are possible")]
    TooLong {
        /// Name of the input.
        what: &'static str,
        /// Most that a TPM takes, in bytes.
        limit: usize,
    },
    /// Nothing where something is needed.
    #[error("{what} is empty")]
    Empty {
        /// Name of the input.
        what: &'static str,
    },
    /// A numbered choice out of its range.
    #[error("{what} is out of range: at most {limit:#x}")]
    OutOfRange {
        /// Name of the input.
        what: &'static str,
        /// The largest allowed value.
        limit: u32,
    },
    /// An import blob that is none.
    #[error(
        "the authentication key to import is not five TPM structures: {missing} cannot be read"
    )]
    ImportBlob {
        /// Name of the structure that cannot be read.
        missing: &'static str,
    },
    /// The cryptographic library failed.
    #[error("the cryptographic library failed in the TPM session layer")]
    Library,
}

impl From<Failed> for TpmError {
    fn from(Failed: Failed) -> Self {
        Self::Library
    }
}

impl TpmError {
    /// Returns true if the connection is gone, or the TPM no longer knows an object or
    /// session that was loaded. Doing the whole operation again may help.
    pub(crate) fn is_stale(&self) -> bool {
        match self {
            Self::Lost { .. } => true,
            Self::Refused { code, .. } => code.is_stale_reference(),
            _ => false,
        }
    }

    /// Turns a refusal into the error that says what to do. `of` is whose auth value was
    /// used.
    pub(crate) fn from_code(command: &'static str, code: ResponseCode, of: Authorized) -> Self {
        match code.base() {
            rc::LOCKOUT => Self::Lockout,
            rc::AUTH_FAIL | rc::BAD_AUTH | rc::AUTH_MISSING => {
                Self::AuthFailed { of, remedy: of.remedy() }
            }
            rc::POLICY_FAIL | rc::PCR_CHANGED => Self::PolicyFailed,
            rc::OBJECT_MEMORY | rc::OBJECT_HANDLES => Self::NoRoom { what: "object" },
            rc::SESSION_MEMORY | rc::SESSION_HANDLES | rc::CONTEXT_GAP => {
                Self::NoRoom { what: "session" }
            }
            rc::NV_SPACE => Self::NoPersistentRoom,
            _ if code.is_busy() => Self::Busy { command, code },
            _ => Self::Refused { command, code },
        }
    }
}

/// The owner of the auth value that an operation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authorized {
    /// The owner hierarchy.
    Owner,
    /// The endorsement hierarchy.
    Endorsement,
    /// A storage root.
    StorageRoot,
    /// A key or sealed secret.
    Object,
    /// A counter.
    Counter,
    /// A register in an NV index.
    Register,
    /// A PCR.
    Pcr,
}

impl Authorized {
    fn remedy(self) -> &'static str {
        match self {
            Self::Owner => {
                "set the owner hierarchy's auth value in the configuration as the TPM has it"
            }
            Self::Endorsement => {
                "set the endorsement hierarchy's auth value in the configuration as the TPM has it"
            }
            Self::StorageRoot => "the storage root has an auth value; name a handle of one without",
            Self::Object => {
                "give the auth value that it was made with; each wrong one counts towards the TPM's lockout"
            }
            Self::Counter => {
                "another installation, or somebody else, made it: set another audit_counter_index in [tpm], or, if \
                 that installation is gone, remove its counter with `tpm2_nvundefine -C o INDEX`"
            }
            Self::Register => {
                "another installation, or somebody else, made it: find out who; then remove it with \
                 `tpm2_nvundefine -C o INDEX` and restart keyd, or set another measure_index in [tpm]"
            }
            Self::Pcr => "somebody gave it one: set another measure_pcr in [tpm]",
        }
    }
}

impl fmt::Display for Authorized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Owner => "the owner hierarchy",
            Self::Endorsement => "the endorsement hierarchy",
            Self::StorageRoot => "the storage root",
            Self::Object => "the key or sealed secret",
            Self::Counter => "the audit log's counter",
            Self::Register => "the NV index of the measurements",
            Self::Pcr => "the PCR of the measurements",
        })
    }
}

/// Numbers of response codes, without the parts that say which parameter, handle or
/// session is meant.
pub(crate) mod rc {
    pub(crate) const INITIALIZE: u32 = 0x100;
    pub(crate) const AUTH_MISSING: u32 = 0x125;
    pub(crate) const PCR_CHANGED: u32 = 0x128;
    /// An index was read that nothing was written to since it was made or reset.
    pub(crate) const NV_UNINITIALIZED: u32 = 0x14a;
    pub(crate) const NV_SPACE: u32 = 0x14b;
    pub(crate) const NV_DEFINED: u32 = 0x14c;
    pub(crate) const VALUE: u32 = 0x084;
    pub(crate) const HANDLE: u32 = 0x08b;
    pub(crate) const AUTH_FAIL: u32 = 0x08e;
    pub(crate) const POLICY_FAIL: u32 = 0x09d;
    pub(crate) const INTEGRITY: u32 = 0x09f;
    pub(crate) const BAD_AUTH: u32 = 0x0a2;
    pub(crate) const CONTEXT_GAP: u32 = 0x901;
    pub(crate) const OBJECT_MEMORY: u32 = 0x902;
    pub(crate) const SESSION_MEMORY: u32 = 0x903;
    pub(crate) const SESSION_HANDLES: u32 = 0x905;
    pub(crate) const OBJECT_HANDLES: u32 = 0x906;
    pub(crate) const YIELDED: u32 = 0x908;
    pub(crate) const TESTING: u32 = 0x90a;
    pub(crate) const REFERENCE_H0: u32 = 0x910;
    pub(crate) const REFERENCE_S6: u32 = 0x91e;
    pub(crate) const NV_RATE: u32 = 0x920;
    pub(crate) const LOCKOUT: u32 = 0x921;
    pub(crate) const RETRY: u32 = 0x922;
    pub(crate) const NV_UNAVAILABLE: u32 = 0x923;
}

/// A TPM's response code (part 2, section 6.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseCode(pub u32);

impl ResponseCode {
    const FORMAT_ONE: u32 = 1 << 7;
    /// Bit of a code of format one that is about a parameter.
    const PARAMETER: u32 = 1 << 6;

    /// The code without the number of the parameter, handle or session that it is about.
    pub(crate) fn base(self) -> u32 {
        if self.0 & Self::FORMAT_ONE == 0 { self.0 } else { self.0 & (Self::FORMAT_ONE | 0x3f) }
    }

    /// Returns true if the TPM asks to send the same command again a little later.
    pub(crate) fn is_busy(self) -> bool {
        matches!(self.0, rc::YIELDED | rc::TESTING | rc::NV_RATE | rc::RETRY | rc::NV_UNAVAILABLE)
    }

    /// Returns true if a loaded object or session is not there: the TPM was reset, or
    /// somebody flushed it.
    fn is_stale_reference(self) -> bool {
        if (rc::REFERENCE_H0..=rc::REFERENCE_S6).contains(&self.0) {
            return true;
        }
        let about = self.about();
        match self.base() {
            rc::HANDLE => true,
            rc::VALUE => matches!(about, Some(("handle" | "session", _))),
            _ => false,
        }
    }

    /// Returns the subject of a code of format one: its kind and its number. `None` for
    /// other codes.
    fn about(self) -> Option<(&'static str, u32)> {
        let number = self.0 >> 8 & 0xf;
        if self.0 & Self::FORMAT_ONE == 0 || number == 0 {
            None
        } else if self.0 & Self::PARAMETER != 0 {
            Some(("parameter", number))
        } else if number & 8 == 0 {
            Some(("handle", number))
        } else {
            Some(("session", number & 7))
        }
    }

    fn name(self) -> Option<&'static str> {
        Some(match self.base() {
            0x100 => "TPM_RC_INITIALIZE",
            0x101 => "TPM_RC_FAILURE",
            0x103 => "TPM_RC_SEQUENCE",
            0x10b => "TPM_RC_PRIVATE",
            0x119 => "TPM_RC_HMAC",
            0x120 => "TPM_RC_DISABLED",
            0x121 => "TPM_RC_EXCLUSIVE",
            0x124 => "TPM_RC_AUTH_TYPE",
            0x125 => "TPM_RC_AUTH_MISSING",
            0x126 => "TPM_RC_POLICY",
            0x127 => "TPM_RC_PCR",
            0x128 => "TPM_RC_PCR_CHANGED",
            0x12d => "TPM_RC_UPGRADE",
            0x12e => "TPM_RC_TOO_MANY_CONTEXTS",
            0x12f => "TPM_RC_AUTH_UNAVAILABLE",
            0x130 => "TPM_RC_REBOOT",
            0x131 => "TPM_RC_UNBALANCED",
            0x142 => "TPM_RC_COMMAND_SIZE",
            0x143 => "TPM_RC_COMMAND_CODE",
            0x144 => "TPM_RC_AUTHSIZE",
            0x145 => "TPM_RC_AUTH_CONTEXT",
            0x146 => "TPM_RC_NV_RANGE",
            0x147 => "TPM_RC_NV_SIZE",
            0x148 => "TPM_RC_NV_LOCKED",
            0x149 => "TPM_RC_NV_AUTHORIZATION",
            0x14a => "TPM_RC_NV_UNINITIALIZED",
            0x14b => "TPM_RC_NV_SPACE",
            0x14c => "TPM_RC_NV_DEFINED",
            0x150 => "TPM_RC_BAD_CONTEXT",
            0x151 => "TPM_RC_CPHASH",
            0x152 => "TPM_RC_PARENT",
            0x153 => "TPM_RC_NEEDS_TEST",
            0x154 => "TPM_RC_NO_RESULT",
            0x155 => "TPM_RC_SENSITIVE",
            0x081 => "TPM_RC_ASYMMETRIC",
            0x082 => "TPM_RC_ATTRIBUTES",
            0x083 => "TPM_RC_HASH",
            0x084 => "TPM_RC_VALUE",
            0x085 => "TPM_RC_HIERARCHY",
            0x087 => "TPM_RC_KEY_SIZE",
            0x088 => "TPM_RC_MGF",
            0x089 => "TPM_RC_MODE",
            0x08a => "TPM_RC_TYPE",
            0x08b => "TPM_RC_HANDLE",
            0x08c => "TPM_RC_KDF",
            0x08d => "TPM_RC_RANGE",
            0x08e => "TPM_RC_AUTH_FAIL",
            0x08f => "TPM_RC_NONCE",
            0x090 => "TPM_RC_PP",
            0x092 => "TPM_RC_SCHEME",
            0x095 => "TPM_RC_SIZE",
            0x096 => "TPM_RC_SYMMETRIC",
            0x097 => "TPM_RC_TAG",
            0x098 => "TPM_RC_SELECTOR",
            0x09a => "TPM_RC_INSUFFICIENT",
            0x09b => "TPM_RC_SIGNATURE",
            0x09c => "TPM_RC_KEY",
            0x09d => "TPM_RC_POLICY_FAIL",
            0x09f => "TPM_RC_INTEGRITY",
            0x0a0 => "TPM_RC_TICKET",
            0x0a1 => "TPM_RC_RESERVED_BITS",
            0x0a2 => "TPM_RC_BAD_AUTH",
            0x0a3 => "TPM_RC_EXPIRED",
            0x0a4 => "TPM_RC_POLICY_CC",
            0x0a5 => "TPM_RC_BINDING",
            0x0a6 => "TPM_RC_CURVE",
            0x0a7 => "TPM_RC_ECC_POINT",
            0x901 => "TPM_RC_CONTEXT_GAP",
            0x902 => "TPM_RC_OBJECT_MEMORY",
            0x903 => "TPM_RC_SESSION_MEMORY",
            0x904 => "TPM_RC_MEMORY",
            0x905 => "TPM_RC_SESSION_HANDLES",
            0x906 => "TPM_RC_OBJECT_HANDLES",
            0x907 => "TPM_RC_LOCALITY",
            0x908 => "TPM_RC_YIELDED",
            0x909 => "TPM_RC_CANCELED",
            0x90a => "TPM_RC_TESTING",
            0x910..=0x916 => "TPM_RC_REFERENCE_H",
            0x918..=0x91e => "TPM_RC_REFERENCE_S",
            0x920 => "TPM_RC_NV_RATE",
            0x921 => "TPM_RC_LOCKOUT",
            0x922 => "TPM_RC_RETRY",
            0x923 => "TPM_RC_NV_UNAVAILABLE",
            _ => return None,
        })
    }
}

impl fmt::Display for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({:#x})", self.0)?,
            None => write!(f, "response code {:#x}", self.0)?,
        }
        match self.about() {
            Some((what, number)) => write!(f, " for {what} {number}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_codes_are_told_by_name_and_what_they_are_about() {
        for (code, text) in [
            (0x1c4, "TPM_RC_VALUE (0x1c4) for parameter 1"),
            (0x18b, "TPM_RC_HANDLE (0x18b) for handle 1"),
            (0x98e, "TPM_RC_AUTH_FAIL (0x98e) for session 1"),
            (0x921, "TPM_RC_LOCKOUT (0x921)"),
            (0x910, "TPM_RC_REFERENCE_H (0x910)"),
            (0xf3f, "response code 0xf3f"),
            (0x12345, "response code 0x12345"),
        ] {
            assert_eq!(ResponseCode(code).to_string(), text);
        }
    }

    #[test]
    fn refusals_name_the_remedy() {
        let error = |code| TpmError::from_code("TPM2_Sign", ResponseCode(code), Authorized::Owner);
        assert!(matches!(error(0x921), TpmError::Lockout));
        assert!(error(0x9a2).to_string().contains("set the owner hierarchy's auth value"));
        assert!(error(0x902).to_string().contains("/dev/tpmrm0"));
        assert!(matches!(error(0x99d), TpmError::PolicyFailed));
        assert!(matches!(error(0x922), TpmError::Busy { .. }));
        assert!(matches!(error(0x1c4), TpmError::Refused { code: ResponseCode(0x1c4), .. }));
    }

    #[test]
    fn a_reset_tpm_is_told_from_a_wrong_value() {
        let stale =
            |code| TpmError::from_code("c", ResponseCode(code), Authorized::Object).is_stale();
        for code in [0x910, 0x918, 0x18b, 0x984] {
            assert!(stale(code), "{code:#x}");
        }
        for code in [0x1c4, 0x98e, 0x9a2, 0x921, 0x101] {
            assert!(!stale(code), "{code:#x}");
        }
    }
}
