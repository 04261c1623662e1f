//! Secrets that only this TPM gives back, if asked, only in the state that it is in now.

use crate::device::{Tpm, malformed};
use crate::error::{Authorized, TpmError};
use crate::kdf::HASH_LEN;
use crate::objects::{SEAL_LIMIT, by_object};
use crate::public::Template;
use crate::record::{Record, RecordKind};
use crate::session::{Auth, AuthValue, Entity, Session};
use crate::wire::{Code, Malformed, Reader, Writer, number};
use edgekeep_base::secret::SecretBytes;

/// Registers of the SHA-256 bank that hold what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PcrSelection(u32);

impl PcrSelection {
    /// Registers by number, 0 to 23.
    ///
    /// # Errors
    /// If a number is above 23.
    pub fn new(registers: &[u8]) -> Result<Self, TpmError> {
        registers
            .iter()
            .try_fold(0, |mask, register| match register {
                0..=23 => Ok(mask | 1 << register),
                _ => Err(TpmError::OutOfRange { what: "the number of a PCR", limit: 23 }),
            })
            .map(Self)
    }

    /// The registers' numbers.
    pub fn registers(self) -> impl Iterator<Item = u8> {
        (0..24).filter(move |register| self.0 >> register & 1 != 0)
    }

    pub(crate) fn marshal(self, into: Writer) -> Writer {
        let [low, middle, high, _] = self.0.to_le_bytes();
        into.u32(1).u16(number::ALG_SHA256).u8(3).bytes(&[low, middle, high])
    }
}

/// The condition for the release of a sealed secret, besides its blob and this TPM.
#[derive(Clone)]
pub enum SealTo {
    /// No other condition.
    Tpm,
    /// An auth value. Each wrong one counts towards the TPM's lockout.
    Auth(AuthValue),
    /// The registers having the values that they have when it is sealed.
    Pcrs(PcrSelection),
}

impl Tpm {
    /// Seals up to 128 bytes. The result is not secret, and is needed to unseal.
    ///
    /// # Errors
    /// If the secret is empty or too long, or the TPM refuses.
    pub fn seal(&self, secret: &SecretBytes, to: &SealTo) -> Result<Vec<u8>, TpmError> {
        match secret.expose().len() {
            0 => return Err(TpmError::Empty { what: "the secret to seal" }),
            len if len > SEAL_LIMIT => {
                return Err(TpmError::TooLong { what: "the secret to seal", limit: SEAL_LIMIT });
            }
            _ => {}
        }
        self.run(|| {
            let (policy, pcrs);
            let (template, auth, pcrs) = match to {
                SealTo::Tpm => (Template::Sealed, AuthValue::empty(), PcrSelection::default()),
                SealTo::Auth(auth) => {
                    (Template::SealedWithAuth, auth.clone(), PcrSelection::default())
                }
                SealTo::Pcrs(selection) => {
                    pcrs = *selection;
                    policy = self.pcr_policy(pcrs)?;
                    (Template::SealedWithPolicy(&policy), AuthValue::empty(), pcrs)
                }
            };
            let blob = self
                .with_session(|session| self.create(session, template, &auth, secret.expose()))?;
            let (root, _) = self.root()?;
            let root_name = root.name().to_vec();
            let id = String::new();
            Record { kind: RecordKind::Sealed, usage: 0, pcrs: pcrs.0, id, root_name, blob }
                .encode()
        })
    }

    /// Gives back what was sealed. `auth` is empty for what was sealed without.
    ///
    /// # Errors
    /// If the blob is damaged or belongs to another TPM, the auth value is wrong, or the
    /// registers have other values.
    pub fn unseal(&self, sealed: &[u8], auth: &AuthValue) -> Result<SecretBytes, TpmError> {
        let record = Record::decode(sealed)?;
        if record.kind != RecordKind::Sealed {
            return Err(TpmError::DamagedBlob);
        }
        self.run(|| {
            self.expect_root(&record)?;
            self.with_session(|session| {
                let loaded = self.load(session, &record.blob)?;
                let handles = [loaded.entity().clone()];
                let answer = if record.pcrs == 0 {
                    let auth = Auth::Hmac { session, value: auth, of: Authorized::Object };
                    self.execute(Code::Unseal, &handles, &mut [auth], Writer::new())?
                } else {
                    let mut policy = self.start_policy(number::SE_POLICY)?;
                    self.policy_pcr(session, &policy.session, PcrSelection(record.pcrs))?;
                    let auth = Auth::Policy { session: &mut policy.session };
                    self.execute(Code::Unseal, &handles, &mut [auth], Writer::new())?
                };
                let secret =
                    Reader::new(&answer.parameters).sized().map_err(malformed(Code::Unseal))?;
                Ok(secret.into())
            })
        })
    }

    /// Refuses what was wrapped under another storage root.
    pub(crate) fn expect_root(&self, record: &Record) -> Result<(), TpmError> {
        let (root, _) = self.root()?;
        if root.name() == record.root_name { Ok(()) } else { Err(TpmError::OtherRoot) }
    }

    /// Digest of the policy that the registers have the values that they have now.
    fn pcr_policy(&self, pcrs: PcrSelection) -> Result<[u8; HASH_LEN], TpmError> {
        if pcrs == PcrSelection::default() {
            return Err(TpmError::Empty { what: "the selection of PCRs" });
        }
        let trial = self.start_policy(number::SE_TRIAL)?;
        self.with_session(|session| {
            self.policy_pcr(session, &trial.session, pcrs)?;
            let handles = [Entity::permanent(trial.session.handle)];
            let answer = self.execute(
                Code::PolicyGetDigest,
                &handles,
                &mut [by_object(session)],
                Writer::new(),
            )?;
            let digest = Reader::new(&answer.parameters).sized();
            digest
                .and_then(|digest| digest.try_into().map_err(|_| Malformed))
                .map_err(malformed(Code::PolicyGetDigest))
        })
    }

    /// Needs no authorization, but runs in a session: what is sealed to what somebody
    /// else put here would be open to them.
    fn policy_pcr(
        &self,
        session: &mut Session,
        policy: &Session,
        pcrs: PcrSelection,
    ) -> Result<(), TpmError> {
        let handles = [Entity::permanent(policy.handle)];
        let asked = pcrs.marshal(Writer::new().u16(0));
        self.execute(Code::PolicyPcr, &handles, &mut [by_object(session)], asked).map(drop)
    }
}
