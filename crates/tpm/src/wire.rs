//! Form of values on the way to a TPM and back (TPM 2.0 Library, part 2): big-endian
//! integers, byte strings behind a 16-bit length.
//!
//! Written here and not taken from a marshalling crate for two reasons. A session hashes
//! and encrypts the parameters of a command as bytes, so the bytes are what has to be at
//! hand; and what is sent holds secrets, which such a crate copies into buffers that
//! nobody wipes. The thirty commands needed take less text than the conversions would.

use zeroize::Zeroizing;

/// Longest command and answer that is sent or taken, in bytes. TPMs have 4096 at most.
pub(crate) const MESSAGE_LIMIT: usize = 4096;

/// Room that a writer begins with, in bytes: enough for most commands.
const FIRST_ROOM: usize = 256;

/// Builds bytes; wiped when dropped, and where it moved from when it grew.
pub(crate) struct Writer {
    bytes: Zeroizing<Vec<u8>>,
    too_long: bool,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { bytes: Zeroizing::new(Vec::with_capacity(FIRST_ROOM)), too_long: false }
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        if bytes.len() > MESSAGE_LIMIT - self.bytes.len() {
            self.too_long = true;
            return self;
        }
        let needed = self.bytes.len() + bytes.len();
        if needed > self.bytes.capacity() {
            let mut moved = Zeroizing::new(Vec::with_capacity((2 * needed).min(MESSAGE_LIMIT)));
            moved.extend_from_slice(&self.bytes);
            self.bytes = moved;
        }
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// A byte string behind its length.
    pub(crate) fn sized(mut self, bytes: &[u8]) -> Self {
        let Ok(len) = u16::try_from(bytes.len()) else {
            self.too_long = true;
            return self;
        };
        self.u16(len).bytes(bytes)
    }

    /// Returns the written bytes; `None` if they are longer than any message.
    pub(crate) fn finish(self) -> Option<Zeroizing<Vec<u8>>> {
        (!self.too_long).then_some(self.bytes)
    }
}

/// An answer ended early, went on for too long, or holds what nobody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads values off the front of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// A byte string behind its length.
    pub(crate) fn sized(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u16()?;
        self.bytes(usize::from(len))
    }

    /// Everything not read yet.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Says that there is nothing more.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

/// Commands: their codes, and what the session layer has to know of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    EvictControl,
    CreatePrimary,
    Startup,
    ActivateCredential,
    PolicySecret,
    Create,
    Hmac,
    HmacStart,
    Import,
    Load,
    Quote,
    RsaDecrypt,
    SequenceComplete,
    SequenceUpdate,
    Sign,
    Unseal,
    FlushContext,
    ReadPublic,
    StartAuthSession,
    GetCapability,
    GetRandom,
    PolicyPcr,
    ReadClock,
    PolicyGetDigest,
    NvDefineSpace,
    NvIncrement,
    NvRead,
    NvReadPublic,
    NvExtend,
    PcrExtend,
    PcrRead,
}

impl Code {
    /// The command code.
    pub(crate) fn value(self) -> u32 {
        match self {
            Self::EvictControl => 0x120,
            Self::NvDefineSpace => 0x12a,
            Self::CreatePrimary => 0x131,
            Self::NvIncrement => 0x134,
            Self::SequenceComplete => 0x13e,
            Self::Startup => 0x144,
            Self::ActivateCredential => 0x147,
            Self::NvExtend => 0x136,
            Self::NvRead => 0x14e,
            Self::PolicySecret => 0x151,
            Self::Create => 0x153,
            Self::Hmac => 0x155,
            Self::Import => 0x156,
            Self::Load => 0x157,
            Self::Quote => 0x158,
            Self::RsaDecrypt => 0x159,
            Self::HmacStart => 0x15b,
            Self::SequenceUpdate => 0x15c,
            Self::Sign => 0x15d,
            Self::Unseal => 0x15e,
            Self::FlushContext => 0x165,
            Self::NvReadPublic => 0x169,
            Self::ReadPublic => 0x173,
            Self::StartAuthSession => 0x176,
            Self::GetCapability => 0x17a,
            Self::GetRandom => 0x17b,
            Self::PcrRead => 0x17e,
            Self::PolicyPcr => 0x17f,
            Self::ReadClock => 0x181,
            Self::PcrExtend => 0x182,
            Self::PolicyGetDigest => 0x189,
        }
    }

    /// The specification's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::EvictControl => "TPM2_EvictControl",
            Self::CreatePrimary => "TPM2_CreatePrimary",
            Self::SequenceComplete => "TPM2_SequenceComplete",
            Self::Startup => "TPM2_Startup",
            Self::ActivateCredential => "TPM2_ActivateCredential",
            Self::PolicySecret => "TPM2_PolicySecret",
            Self::Create => "TPM2_Create",
            Self::Hmac => "TPM2_HMAC",
            Self::Import => "TPM2_Import",
            Self::Load => "TPM2_Load",
            Self::Quote => "TPM2_Quote",
            Self::RsaDecrypt => "TPM2_RSA_Decrypt",
            Self::HmacStart => "TPM2_HMAC_Start",
            Self::SequenceUpdate => "TPM2_SequenceUpdate",
            Self::Sign => "TPM2_Sign",
            Self::Unseal => "TPM2_Unseal",
            Self::FlushContext => "TPM2_FlushContext",
            Self::ReadPublic => "TPM2_ReadPublic",
            Self::StartAuthSession => "TPM2_StartAuthSession",
            Self::GetCapability => "TPM2_GetCapability",
            Self::GetRandom => "TPM2_GetRandom",
            Self::PolicyPcr => "TPM2_PolicyPCR",
            Self::ReadClock => "TPM2_ReadClock",
            Self::PolicyGetDigest => "TPM2_PolicyGetDigest",
            Self::NvDefineSpace => "TPM2_NV_DefineSpace",
            Self::NvIncrement => "TPM2_NV_Increment",
            Self::NvRead => "TPM2_NV_Read",
            Self::NvReadPublic => "TPM2_NV_ReadPublic",
            Self::NvExtend => "TPM2_NV_Extend",
            Self::PcrExtend => "TPM2_PCR_Extend",
            Self::PcrRead => "TPM2_PCR_Read",
        }
    }

    /// Returns true if the first parameter is a byte string, which a session can encrypt.
    pub(crate) fn first_parameter_is_sized(self) -> bool {
        matches!(
            self,
            Self::CreatePrimary
                | Self::SequenceComplete
                | Self::SequenceUpdate
                | Self::ActivateCredential
                | Self::PolicySecret
                | Self::Create
                | Self::Hmac
                | Self::HmacStart
                | Self::Import
                | Self::Load
                | Self::Quote
                | Self::RsaDecrypt
                | Self::Sign
                | Self::PolicyPcr
                | Self::NvDefineSpace
                | Self::NvExtend
        )
    }

    /// Returns true if the first parameter of the answer is a byte string, which a
    /// session can encrypt.
    pub(crate) fn first_answer_is_sized(self) -> bool {
        matches!(
            self,
            Self::CreatePrimary
                | Self::SequenceComplete
                | Self::ActivateCredential
                | Self::PolicySecret
                | Self::Create
                | Self::Hmac
                | Self::Import
                | Self::Load
                | Self::Quote
                | Self::RsaDecrypt
                | Self::Unseal
                | Self::GetRandom
                | Self::PolicyGetDigest
                | Self::NvRead
        )
    }

    /// Returns true if the answer begins with a handle.
    pub(crate) fn answers_with_handle(self) -> bool {
        matches!(self, Self::CreatePrimary | Self::HmacStart | Self::Load | Self::StartAuthSession)
    }
}

/// Numbers of the specification.
pub(crate) mod number {
    pub(crate) const ST_NO_SESSIONS: u16 = 0x8001;
    pub(crate) const ST_SESSIONS: u16 = 0x8002;
    pub(crate) const ST_ATTEST_QUOTE: u16 = 0x8018;
    pub(crate) const ST_HASHCHECK: u16 = 0x8024;

    pub(crate) const RH_OWNER: u32 = 0x4000_0001;
    pub(crate) const RH_NULL: u32 = 0x4000_0007;
    pub(crate) const RS_PW: u32 = 0x4000_0009;
    pub(crate) const RH_ENDORSEMENT: u32 = 0x4000_000b;
    /// Number that a TPM puts in front of everything that it made itself and signs.
    pub(crate) const GENERATED: u32 = 0xff54_4347;

    pub(crate) const ALG_RSA: u16 = 0x0001;
    pub(crate) const ALG_HMAC: u16 = 0x0005;
    pub(crate) const ALG_AES: u16 = 0x0006;
    pub(crate) const ALG_KEYEDHASH: u16 = 0x0008;
    pub(crate) const ALG_SHA256: u16 = 0x000b;
    pub(crate) const ALG_NULL: u16 = 0x0010;
    pub(crate) const ALG_ECDSA: u16 = 0x0018;
    pub(crate) const ALG_ECC: u16 = 0x0023;
    pub(crate) const ALG_CFB: u16 = 0x0043;
    pub(crate) const CURVE_P256: u16 = 0x0003;

    pub(crate) const SE_HMAC: u8 = 0;
    pub(crate) const SE_POLICY: u8 = 1;
    pub(crate) const SE_TRIAL: u8 = 3;

    pub(crate) const CAP_HANDLES: u32 = 1;
    pub(crate) const CAP_PCRS: u32 = 5;
    pub(crate) const CAP_TPM_PROPERTIES: u32 = 6;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_longer_than_a_message_is_not_sent() {
        assert!(Writer::new().bytes(&[0; MESSAGE_LIMIT]).finish().is_some());
        assert!(Writer::new().bytes(&[0; MESSAGE_LIMIT]).u8(0).finish().is_none());
        assert!(Writer::new().sized(&[0; 70_000]).finish().is_none());
    }

    proptest! {
        #[test]
        fn values_read_back_as_they_were_written(a: u8, b: u16, c: u32, d in prop::collection::vec(any::<u8>(), 0..300)) {
            let written = Writer::new().u8(a).sized(&d).u16(b).u32(c).finish().unwrap();
            let mut reader = Reader::new(&written);
            prop_assert_eq!(reader.u8(), Ok(a));
            prop_assert_eq!(reader.sized(), Ok(&d[..]));
            prop_assert_eq!((reader.u16(), reader.u32()), (Ok(b), Ok(c)));
            prop_assert_eq!(reader.end(), Ok(()));
            prop_assert_eq!(reader.u8(), Err(Malformed));
        }
    }
}
