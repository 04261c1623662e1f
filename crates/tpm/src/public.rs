//! Public areas of TPM objects (part 2, section 12.2): the templates of the keys made
//! here, and reading those that a TPM answers with.

use crate::kdf::{HASH_LEN, sha256};
use crate::wire::{Malformed, Reader, Writer, number};

/// Object attributes (part 2, section 8.3).
pub(crate) mod attribute {
    pub(crate) const FIXED_TPM: u32 = 1 << 1;
    pub(crate) const FIXED_PARENT: u32 = 1 << 4;
    /// The TPM made the secret itself.
    pub(crate) const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    pub(crate) const USER_WITH_AUTH: u32 = 1 << 6;
    pub(crate) const ADMIN_WITH_POLICY: u32 = 1 << 7;
    /// Wrong auth values for this object do not count towards the TPM's lockout.
    pub(crate) const NO_DA: u32 = 1 << 10;
    pub(crate) const RESTRICTED: u32 = 1 << 16;
    pub(crate) const DECRYPT: u32 = 1 << 17;
    pub(crate) const SIGN: u32 = 1 << 18;
    /// Fixed in this TPM, under this parent.
    pub(crate) const FIXED: u32 = FIXED_TPM | FIXED_PARENT;
}

/// Policy digest of endorsement keys: PolicySecret with the endorsement hierarchy (TCG EK
/// credential profile, B.3.2).
const ENDORSEMENT_POLICY: [u8; HASH_LEN] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// A template for a new object, by its purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Template<'a> {
    /// A storage root, P-256 (TCG's template, with an empty unique field as the tools
    /// send it).
    StorageP256,
    /// A storage root, RSA-2048 (as existing devices have it).
    StorageRsa,
    /// The endorsement key, RSA-2048 (TCG's template L-1).
    EndorsementRsa,
    /// Signs digests that the caller computed.
    SignP256,
    /// Signs, and does the bare private-key operation.
    Rsa2048,
    /// Signs only what the TPM itself made: quotes.
    AttestP256,
    /// Computes HMAC-SHA256; the TPM makes the key.
    HmacGenerated,
    /// Computes HMAC-SHA256 with a key from outside.
    HmacImported,
    /// Keeps bytes, released to whoever has the blob.
    Sealed,
    /// Keeps bytes, released to whoever gives the auth value.
    SealedWithAuth,
    /// Keeps bytes, released when the policy holds.
    SealedWithPolicy(&'a [u8; HASH_LEN]),
}

impl Template<'_> {
    /// The public area to ask the TPM for, without the length in front.
    pub(crate) fn marshal(self) -> Writer {
        use attribute::{
            ADMIN_WITH_POLICY, DECRYPT, FIXED, NO_DA, RESTRICTED, SENSITIVE_DATA_ORIGIN, SIGN,
            USER_WITH_AUTH,
        };
        let own_secret = FIXED | SENSITIVE_DATA_ORIGIN;
        let storage = own_secret | USER_WITH_AUTH | NO_DA | RESTRICTED | DECRYPT;
        let (algorithm, attributes, policy): (u16, u32, &[u8]) = match self {
            Self::StorageP256 => (number::ALG_ECC, storage, &[]),
            Self::StorageRsa => (number::ALG_RSA, storage, &[]),
            Self::EndorsementRsa => (
                number::ALG_RSA,
                own_secret | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT,
                &ENDORSEMENT_POLICY,
            ),
            Self::SignP256 => (number::ALG_ECC, own_secret | USER_WITH_AUTH | NO_DA | SIGN, &[]),
            Self::Rsa2048 => {
                (number::ALG_RSA, own_secret | USER_WITH_AUTH | NO_DA | SIGN | DECRYPT, &[])
            }
            Self::AttestP256 => {
                (number::ALG_ECC, own_secret | USER_WITH_AUTH | NO_DA | RESTRICTED | SIGN, &[])
            }
            Self::HmacGenerated => {
                (number::ALG_KEYEDHASH, own_secret | USER_WITH_AUTH | NO_DA | SIGN, &[])
            }
            Self::HmacImported => {
                (number::ALG_KEYEDHASH, FIXED | USER_WITH_AUTH | NO_DA | SIGN, &[])
            }
            Self::Sealed => (number::ALG_KEYEDHASH, FIXED | USER_WITH_AUTH | NO_DA, &[]),
            // Guessing the auth value counts towards the lockout: it may be a short one.
            Self::SealedWithAuth => (number::ALG_KEYEDHASH, FIXED | USER_WITH_AUTH, &[]),
            Self::SealedWithPolicy(policy) => {
                (number::ALG_KEYEDHASH, FIXED | ADMIN_WITH_POLICY | NO_DA, policy)
            }
        };
        let area =
            Writer::new().u16(algorithm).u16(number::ALG_SHA256).u32(attributes).sized(policy);
        let aes = |area: Writer| area.u16(number::ALG_AES).u16(128).u16(number::ALG_CFB);
        match self {
            Self::StorageP256 => {
                aes(area).u16(number::ALG_NULL).u16(number::CURVE_P256).u16(number::ALG_NULL).u32(0)
            }
            Self::StorageRsa | Self::EndorsementRsa => {
                aes(area).u16(number::ALG_NULL).u16(2048).u32(0).sized(&[0; 256])
            }
            Self::SignP256 => {
                let area = area.u16(number::ALG_NULL).u16(number::ALG_NULL).u16(number::CURVE_P256);
                area.u16(number::ALG_NULL).u32(0)
            }
            Self::AttestP256 => {
                let area =
                    area.u16(number::ALG_NULL).u16(number::ALG_ECDSA).u16(number::ALG_SHA256);
                area.u16(number::CURVE_P256).u16(number::ALG_NULL).u32(0)
            }
            Self::Rsa2048 => {
                area.u16(number::ALG_NULL).u16(number::ALG_NULL).u16(2048).u32(0).u16(0)
            }
            Self::HmacGenerated | Self::HmacImported => {
                area.u16(number::ALG_HMAC).u16(number::ALG_SHA256).u16(0)
            }
            Self::Sealed | Self::SealedWithAuth | Self::SealedWithPolicy(_) => {
                area.u16(number::ALG_NULL).u16(0)
            }
        }
    }
}

/// Kinds of keys that public areas describe. Others are not used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Algorithm {
    /// NIST P-256; coordinates may lack leading zeros.
    EccP256 {
        /// The first coordinate, big-endian.
        x: Vec<u8>,
        /// The second coordinate, big-endian.
        y: Vec<u8>,
    },
    /// RSA-2048 with the exponent 65537.
    Rsa2048 {
        /// The modulus, big-endian.
        modulus: Vec<u8>,
    },
    /// An HMAC key or sealed bytes.
    KeyedHash,
}

/// A public area that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    /// The kind of key, with its public half.
    pub algorithm: Algorithm,
    pub(crate) attributes: u32,
    /// AES-128-CFB protects what is stored under it.
    pub(crate) protects_with_aes: bool,
    /// The area as it came, without the length in front.
    pub(crate) area: Vec<u8>,
}

impl Public {
    /// Reads a public area. `None` for algorithms that are not used here.
    pub(crate) fn read(area: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut reader = Reader::new(area);
        let algorithm = reader.u16()?;
        let name_algorithm = reader.u16()?;
        let attributes = reader.u32()?;
        let _policy = reader.sized()?;
        if name_algorithm != number::ALG_SHA256 {
            return Ok(None);
        }
        let public = |algorithm, protects_with_aes| {
            Some(Self { algorithm, attributes, protects_with_aes, area: area.to_vec() })
        };
        let read = match algorithm {
            number::ALG_KEYEDHASH => {
                match reader.u16()? {
                    number::ALG_NULL => {}
                    number::ALG_HMAC => {
                        reader.u16()?;
                    }
                    _ => return Ok(None),
                }
                reader.sized()?;
                public(Algorithm::KeyedHash, false)
            }
            number::ALG_ECC => {
                let Some(symmetric) = read_symmetric(&mut reader)? else { return Ok(None) };
                if !read_scheme(&mut reader)? || reader.u16()? != number::CURVE_P256 {
                    return Ok(None);
                }
                if reader.u16()? != number::ALG_NULL {
                    return Ok(None);
                }
                let (x, y) = (reader.sized()?.to_vec(), reader.sized()?.to_vec());
                public(Algorithm::EccP256 { x, y }, symmetric)
            }
            number::ALG_RSA => {
                let Some(symmetric) = read_symmetric(&mut reader)? else { return Ok(None) };
                if !read_scheme(&mut reader)?
                    || reader.u16()? != 2048
                    || !matches!(reader.u32()?, 0 | 65_537)
                {
                    return Ok(None);
                }
                public(Algorithm::Rsa2048 { modulus: reader.sized()?.to_vec() }, symmetric)
            }
            _ => return Ok(None),
        };
        reader.end()?;
        Ok(read)
    }

    /// The object's name: what it is called in authorizations.
    pub(crate) fn name(&self) -> Vec<u8> {
        name_of(&self.area)
    }

    /// Returns true if keys can be kept under the object and sessions salted with it.
    pub(crate) fn is_storage_root(&self) -> bool {
        let needed = attribute::FIXED
            | attribute::RESTRICTED
            | attribute::DECRYPT
            | attribute::USER_WITH_AUTH;
        self.attributes & (needed | attribute::SIGN) == needed && self.protects_with_aes
    }

    /// Returns true if the object is an RSA endorsement key with TCG's default template.
    pub(crate) fn is_endorsement_key(&self) -> bool {
        let asked = Template::EndorsementRsa.marshal().finish();
        // Everything up to the modulus.
        asked.is_some_and(|asked| {
            let fixed = asked.len() - 256;
            matches!(self.algorithm, Algorithm::Rsa2048 { .. })
                && self.area.get(..fixed) == asked.get(..fixed)
        })
    }
}

/// Reads a symmetric cipher: true for AES-128-CFB, false for none, `None` for another
/// cipher.
fn read_symmetric(reader: &mut Reader<'_>) -> Result<Option<bool>, Malformed> {
    Ok(match reader.u16()? {
        number::ALG_NULL => Some(false),
        number::ALG_AES => {
            (reader.u16()? == 128 && reader.u16()? == number::ALG_CFB).then_some(true)
        }
        _ => None,
    })
}

/// Reads a signing scheme and returns true if it is used here: none, or ECDSA with
/// SHA-256.
fn read_scheme(reader: &mut Reader<'_>) -> Result<bool, Malformed> {
    Ok(match reader.u16()? {
        number::ALG_NULL => true,
        number::ALG_ECDSA => reader.u16()? == number::ALG_SHA256,
        _ => false,
    })
}

/// The name of an object with this public area and SHA-256 as name algorithm.
pub(crate) fn name_of(area: &[u8]) -> Vec<u8> {
    [&number::ALG_SHA256.to_be_bytes()[..], &sha256(&[area])].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn templates_are_what_they_are_for() {
        let read = |template: Template<'_>| {
            Public::read(&template.marshal().finish().unwrap()).unwrap().unwrap()
        };
        assert!(read(Template::StorageRsa).is_storage_root());
        assert!(!read(Template::EndorsementRsa).is_storage_root(), "its use needs a policy");
        assert!(!read(Template::SignP256).is_storage_root());
        assert!(read(Template::EndorsementRsa).is_endorsement_key());
        assert!(!read(Template::StorageRsa).is_endorsement_key());
        assert_eq!(read(Template::StorageRsa).attributes, 0x0003_0472, "as in TCG's SRK template");
        assert_eq!(
            read(Template::EndorsementRsa).attributes,
            0x0003_00b2,
            "as in TCG's EK template"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_a_public_area_panic(
            algorithm in prop::sample::select(vec![1_u16, 8, 0x23, 7]),
            rest in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let area = Writer::new().u16(algorithm).u16(0x0b).bytes(&rest).finish().unwrap();
            let _ = Public::read(&area);
        }
    }
}
