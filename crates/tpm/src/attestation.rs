//! Quotes: what the TPM says about its registers, signed by a key that signs nothing
//! else.

use crate::device::{Tpm, malformed};
use crate::error::TpmError;
use crate::objects::by_object;
use crate::public::Template;
use crate::record::{Record, RecordKind};
use crate::seal::PcrSelection;
use crate::session::AuthValue;
use crate::wire::{Code, Malformed, Reader, Writer, number};

/// A key that signs quotes.
#[derive(Clone, PartialEq, Eq)]
pub struct AttestationKey {
    /// The wrapped key, for the caller to keep. It is needed to use the key, and useless
    /// without this TPM.
    pub blob: Vec<u8>,
    /// The public area as the TPM marshals it, with its length in front.
    pub public: Vec<u8>,
}

/// A signed statement about registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// The attestation structure that is signed.
    pub attested: Vec<u8>,
    /// The signature structure (ECDSA, P-256, SHA-256), as the TPM marshals it.
    pub signature: Vec<u8>,
}

impl Tpm {
    /// Makes a P-256 key that signs only what the TPM itself says.
    ///
    /// # Errors
    /// If the TPM refuses.
    pub fn create_attestation_key(&self) -> Result<AttestationKey, TpmError> {
        self.run(|| {
            let blob = self.with_session(|session| {
                self.create(session, Template::AttestP256, &AuthValue::empty(), &[])
            })?;
            let (root, _) = self.root()?;
            let public =
                Writer::new().sized(&blob.public).finish().ok_or(TpmError::Library)?.to_vec();
            let record = Record {
                kind: RecordKind::Attestation,
                usage: 0,
                pcrs: 0,
                id: String::new(),
                root_name: root.name().to_vec(),
                blob,
            };
            Ok(AttestationKey { blob: record.encode()?, public })
        })
    }

    /// Has the TPM sign the values of registers, together with `nonce` (up to 32 bytes),
    /// which shows that it is fresh.
    ///
    /// # Errors
    /// If the blob is no attestation key of this TPM, the nonce is too long, or the TPM
    /// refuses.
    pub fn quote(&self, key: &[u8], nonce: &[u8], pcrs: PcrSelection) -> Result<Quote, TpmError> {
        let record = Record::decode(key)?;
        if record.kind != RecordKind::Attestation {
            return Err(TpmError::DamagedBlob);
        }
        if nonce.len() > 32 {
            return Err(TpmError::TooLong { what: "the nonce", limit: 32 });
        }
        self.run(|| {
            self.expect_root(&record)?;
            self.with_session(|session| {
                let loaded = self.load_kept(session, &record.blob)?;
                let asked = pcrs.marshal(Writer::new().sized(nonce).u16(number::ALG_NULL));
                let handles = [loaded.entity().clone()];
                let answer =
                    self.execute(Code::Quote, &handles, &mut [by_object(session)], asked)?;
                let mut reader = Reader::new(&answer.parameters);
                let mut read = || -> Result<Quote, Malformed> {
                    let attested = reader.sized()?.to_vec();
                    let mut content = Reader::new(&attested);
                    if (content.u32()?, content.u16()?)
                        != (number::GENERATED, number::ST_ATTEST_QUOTE)
                    {
                        return Err(Malformed);
                    }
                    Ok(Quote { attested, signature: reader.rest().to_vec() })
                };
                read().map_err(malformed(Code::Quote))
            })
        })
    }
}
