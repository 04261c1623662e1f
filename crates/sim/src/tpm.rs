//! The provisioning service's half of TPM attestation (wire facts 5.7, 6.2): a key that
//! only the TPM of this endorsement key and storage root key can unwrap.
//!
//! Done as TPM2_MakeCredential and TPM2_Duplicate do it (TPM 2.0 library, part 1,
//! sections 23 and 24), in software, for the usual RSA templates.

use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey, PublicKeyComponents,
};
use aws_lc_rs::{hmac, rand};

use crate::token::Key;

const ALG_RSA: u16 = 0x0001;
const ALG_HMAC: u16 = 0x0005;
const ALG_AES: u16 = 0x0006;
const ALG_KEYEDHASH: u16 = 0x0008;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
const ALG_CFB: u16 = 0x0043;
/// The object's user may sign with it: userWithAuth, noDA, sign.
const ATTRIBUTES: u32 = 1 << 6 | 1 << 10 | 1 << 18;

/// Failure to make a key for a TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct MakeError(&'static str);

/// Public area of an RSA storage key.
struct StorageKey {
    name: Vec<u8>,
    key: OaepPublicEncryptingKey,
}

impl StorageKey {
    /// Reads a TPM2B_PUBLIC: RSA with SHA-256 and AES-128 in CFB mode.
    fn read(marshalled: &[u8]) -> Result<Self, MakeError> {
        let bad = MakeError("the TPM's key is not an RSA storage key with SHA-256 and AES-128-CFB");
        let (length, area) = marshalled.split_first_chunk::<2>().ok_or(bad)?;
        if usize::from(u16::from_be_bytes(*length)) != area.len() {
            return Err(bad);
        }
        let mut rest = area;
        let mut take = |count: usize| -> Result<&[u8], MakeError> {
            let (taken, left) = rest.split_at_checked(count).ok_or(bad)?;
            rest = left;
            Ok(taken)
        };
        let number =
            |bytes: &[u8]| bytes.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
        if number(take(2)?) != usize::from(ALG_RSA) || number(take(2)?) != usize::from(ALG_SHA256) {
            return Err(bad);
        }
        take(4)?;
        let policy = number(take(2)?);
        take(policy)?;
        let symmetric = [ALG_AES, 128, ALG_CFB, ALG_NULL];
        for wanted in symmetric {
            if number(take(2)?) != usize::from(wanted) {
                return Err(bad);
            }
        }
        take(2)?;
        let exponent = match number(take(4)?) {
            0 => 65537,
            given => given,
        };
        let length = number(take(2)?);
        let modulus = take(length)?;
        let exponent = u32::try_from(exponent).map_err(|_| bad)?.to_be_bytes();
        let first = exponent.iter().position(|byte| *byte != 0).unwrap_or(3);
        let components = PublicKeyComponents { n: modulus, e: &exponent[first..] };
        let key: PublicEncryptingKey = components.try_into().map_err(|_| bad)?;
        let name = [&ALG_SHA256.to_be_bytes()[..], digest(&SHA256, area).as_ref()].concat();
        Ok(Self { name, key: OaepPublicEncryptingKey::new(key).map_err(|_| bad)? })
    }

    fn seal(&self, seed: &[u8], label: &[u8]) -> Result<Vec<u8>, MakeError> {
        let mut sealed = vec![0; self.key.ciphertext_size()];
        let sealed_len = self
            .key
            .encrypt(&OAEP_SHA256_MGF1SHA256, seed, &mut sealed, Some(label))
            .map_err(|_| MakeError("the seed cannot be encrypted"))?
            .len();
        sealed.truncate(sealed_len);
        Ok(sealed)
    }
}

/// Returns what a device hands to its TPM to get at `key`: five structures, each with its
/// length: credential, its secret, the duplicate, its seed and its public area.
pub(crate) fn import_blob(
    endorsement: &[u8],
    storage_root: &[u8],
    key: &Key,
) -> Result<Vec<u8>, MakeError> {
    let (endorsement, root) = (StorageKey::read(endorsement)?, StorageKey::read(storage_root)?);
    let inner_key: [u8; 16] = random()?;

    // The key as an object, wrapped inside by the inner key and outside for the root.
    let obfuscation: [u8; 32] = random()?;
    let unique = digest(&SHA256, &[&obfuscation[..], key.expose()].concat());
    let mut public = [ALG_KEYEDHASH, ALG_SHA256].map(u16::to_be_bytes).concat();
    public.extend_from_slice(&ATTRIBUTES.to_be_bytes());
    public.extend_from_slice(&[0, 0]);
    public.extend([ALG_HMAC, ALG_SHA256].map(u16::to_be_bytes).concat());
    public.extend(sized(unique.as_ref())?);
    let name = [&ALG_SHA256.to_be_bytes()[..], digest(&SHA256, &public).as_ref()].concat();
    let sensitive =
        [&ALG_KEYEDHASH.to_be_bytes()[..], &[0, 0], &sized(&obfuscation)?, &sized(key.expose())?];
    let sensitive = sized(&sensitive.concat())?;
    let integrity = digest(&SHA256, &[&sensitive[..], &name].concat());
    let mut inner = [&sized(integrity.as_ref())?[..], &sensitive].concat();
    encrypt(&inner_key, &mut inner)?;
    let seed: [u8; 32] = random()?;
    let duplicate = protected(&seed, &name, inner)?;
    let seed = root.seal(&seed, b"DUPLICATE\0")?;

    // The inner key as a credential of the root, for the endorsement key.
    let credential_seed: [u8; 32] = random()?;
    let credential = protected(&credential_seed, &root.name, sized(&inner_key)?)?;
    let secret = endorsement.seal(&credential_seed, b"IDENTITY\0")?;

    let parts = [credential, secret, duplicate, seed, public];
    let parts = parts.iter().map(|part| sized(part)).collect::<Result<Vec<_>, _>>()?;
    Ok(parts.concat())
}

/// Returns bytes that only who has `seed` can read, and that belong to the object of this
/// name.
fn protected(seed: &[u8], name: &[u8], mut bytes: Vec<u8>) -> Result<Vec<u8>, MakeError> {
    let key = derived(seed, b"STORAGE\0", name, 128);
    encrypt(&key[..16], &mut bytes)?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &derived(seed, b"INTEGRITY\0", &[], 256));
    let integrity = hmac::sign(&key, &[&bytes[..], name].concat());
    Ok([&sized(integrity.as_ref())?[..], &bytes].concat())
}

/// KDFa (part 1, section 11.4.10.2), for one block of SHA-256.
fn derived(seed: &[u8], label: &[u8], context: &[u8], bits: u32) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, seed);
    let message = [&1_u32.to_be_bytes()[..], label, context, &bits.to_be_bytes()].concat();
    hmac::sign(&key, &message).as_ref().to_vec()
}

fn encrypt(key: &[u8], bytes: &mut [u8]) -> Result<(), MakeError> {
    let failed = |_| MakeError("the key cannot be encrypted");
    let key = UnboundCipherKey::new(&AES_128, key).map_err(failed)?;
    let key = EncryptingKey::cfb128(key).map_err(failed)?;
    let start = EncryptionContext::Iv128(FixedLength::from([0; 16]));
    key.less_safe_encrypt(bytes, start).map(drop).map_err(failed)
}

fn sized(bytes: &[u8]) -> Result<Vec<u8>, MakeError> {
    let length = u16::try_from(bytes.len()).map_err(|_| MakeError("a part is too long"))?;
    Ok([&length.to_be_bytes()[..], bytes].concat())
}

fn random<const N: usize>() -> Result<[u8; N], MakeError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| MakeError("no randomness"))?;
    Ok(bytes)
}
