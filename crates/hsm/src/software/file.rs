//! Format of a key file: a header in clear and the key, encrypted under the store key.
//!
//! | bytes | |
//! |---|---|
//! | 4 | `EKEY` |
//! | 1 | version of this format: 1 |
//! | 1 | name space: 0 the callers', 1 the daemon's own, 2 earlier versions of the callers' |
//! | 1 | kind: 0 symmetric, 1 key pair |
//! | 1 | usage: bit 0 derive and sign, bit 1 encrypt |
//! | 8 | which store key it is encrypted under |
//! | 2 | length of the id, big-endian |
//! | n | the id |
//! | 12 | nonce |
//! | m + 16 | AES-256-GCM of the key (raw bytes, or PKCS#8 in DER) and the tag |
//!
//! Everything before the nonce is authenticated with the key, so a file that was renamed,
//! or whose kind or usage was changed, is as damaged as one with a flipped bit.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hmac, rand};
use edgekeep_core::id::KeyId;
use zeroize::Zeroizing;

use super::store::{NameSpace, StoredKey};
use crate::SecretBytes;
use crate::backend::{KeyKind, Usage};

const MAGIC: &[u8; 4] = b"EKEY";
const VERSION: u8 = 1;
const STORE_KEY_ID_LEN: usize = 8;
/// Magic, version, name space, kind, usage, store key id, length of the id.
const FIXED_LEN: usize = 4 + 4 + STORE_KEY_ID_LEN + 2;

/// The store key's own form: a mark with a version, the key, and the key's public mark
/// against flipped bits.
const STORE_KEY_MAGIC: &[u8; 8] = b"EKSTORE\x01";
const STORE_KEY_LEN: usize = 32;

/// The key that all key files are encrypted under. It is expanded for each use: what the
/// library expands it into is in memory that others could read.
pub(super) struct StoreKey {
    bytes: SecretBytes,
    id: [u8; STORE_KEY_ID_LEN],
}

/// The library failed.
#[derive(Debug)]
pub(super) struct LibraryFailed;

impl StoreKey {
    pub(super) fn generate() -> Result<Self, LibraryFailed> {
        let mut bytes = Zeroizing::new([0; STORE_KEY_LEN]);
        rand::fill(&mut *bytes).map_err(|_| LibraryFailed)?;
        Ok(Self::new(bytes.as_slice().into()))
    }

    fn new(bytes: SecretBytes) -> Self {
        let mark = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, bytes.expose()),
            b"edgekeep: which store key this is",
        );
        let mut id = [0; STORE_KEY_ID_LEN];
        id.copy_from_slice(&mark.as_ref()[..STORE_KEY_ID_LEN]);
        Self { bytes: bytes.kept(), id }
    }

    /// The store key's own form, which whoever protects it keeps.
    pub(super) fn encode(&self) -> SecretBytes {
        let mut content =
            Vec::with_capacity(STORE_KEY_MAGIC.len() + STORE_KEY_LEN + STORE_KEY_ID_LEN);
        for part in [&STORE_KEY_MAGIC[..], self.bytes.expose(), &self.id] {
            content.extend_from_slice(part);
        }
        content.into()
    }

    /// `None` if this is no store key, or a damaged one.
    pub(super) fn decode(content: &SecretBytes) -> Option<Self> {
        let (bytes, mark) =
            content.expose().strip_prefix(STORE_KEY_MAGIC)?.split_at_checked(STORE_KEY_LEN)?;
        let key = Self::new(bytes.into());
        (mark == key.id).then_some(key)
    }

    fn aead(&self) -> Result<LessSafeKey, LibraryFailed> {
        UnboundKey::new(&AES_256_GCM, self.bytes.expose())
            .map(LessSafeKey::new)
            .map_err(|_| LibraryFailed)
    }
}

/// The reason why a file's content is not the expected key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// The content is not what was written.
    Damaged,
    /// A later version wrote the file.
    Version(u8),
    /// The content is encrypted under another store key.
    OtherStoreKey,
}

/// The content of the file of key `id`.
pub(super) fn encode(
    store_key: &StoreKey,
    name_space: NameSpace,
    id: &KeyId,
    key: &StoredKey,
) -> Result<Vec<u8>, LibraryFailed> {
    let mut content = header(store_key, name_space, id, key.kind, key.usage)?;
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).map_err(|_| LibraryFailed)?;
    let mut sealed = Zeroizing::new(key.secret.expose().to_vec());
    let tag = store_key
        .aead()?
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(&content),
            &mut sealed,
        )
        .map_err(|_| LibraryFailed)?;
    content.extend_from_slice(&nonce);
    content.extend_from_slice(&sealed);
    content.extend_from_slice(tag.as_ref());
    Ok(content)
}

fn header(
    store_key: &StoreKey,
    name_space: NameSpace,
    id: &KeyId,
    kind: KeyKind,
    usage: Usage,
) -> Result<Vec<u8>, LibraryFailed> {
    let id = id.as_str().as_bytes();
    let mut header = MAGIC.to_vec();
    header.push(VERSION);
    header.push(match name_space {
        NameSpace::Ordinary => 0,
        NameSpace::Internal => 1,
        NameSpace::Older => 2,
    });
    header.push(match kind {
        KeyKind::Symmetric => 0,
        KeyKind::Pair => 1,
    });
    header.push(u8::from(usage.derive_or_sign) | u8::from(usage.encrypt) << 1);
    header.extend_from_slice(&store_key.id);
    header.extend_from_slice(&u16::try_from(id.len()).map_err(|_| LibraryFailed)?.to_be_bytes());
    header.extend_from_slice(id);
    Ok(header)
}

/// The id of the key that a file says to be, before it is known whether it is.
pub(super) fn id(content: &[u8]) -> Option<KeyId> {
    let (len, rest) = content.get(FIXED_LEN - 2..)?.split_first_chunk::<2>()?;
    std::str::from_utf8(rest.get(..usize::from(u16::from_be_bytes(*len)))?).ok()?.parse().ok()
}

/// The key in `content`, if that is the file of key `id`.
pub(super) fn decode(
    store_key: &StoreKey,
    name_space: NameSpace,
    id: &KeyId,
    content: &[u8],
) -> Result<StoredKey, Unreadable> {
    let fixed = content.get(..FIXED_LEN).ok_or(Unreadable::Damaged)?;
    if &fixed[..4] != MAGIC {
        return Err(Unreadable::Damaged);
    }
    if fixed[4] != VERSION {
        return Err(Unreadable::Version(fixed[4]));
    }
    if fixed[8..8 + STORE_KEY_ID_LEN] != store_key.id {
        return Err(Unreadable::OtherStoreKey);
    }
    let kind = match fixed[6] {
        0 => KeyKind::Symmetric,
        1 => KeyKind::Pair,
        _ => return Err(Unreadable::Damaged),
    };
    let usage = Usage { derive_or_sign: fixed[7] & 1 != 0, encrypt: fixed[7] & 2 != 0 };
    // What the header must be, rather than what it is: that covers id, name space and
    // every unused bit.
    let expected =
        header(store_key, name_space, id, kind, usage).map_err(|_| Unreadable::Damaged)?;
    let rest = content.strip_prefix(expected.as_slice()).ok_or(Unreadable::Damaged)?;
    let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(Unreadable::Damaged)?;
    let mut opened = Zeroizing::new(sealed.to_vec());
    let secret = store_key
        .aead()
        .map_err(|_| Unreadable::Damaged)?
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(&expected), &mut opened)
        .map_err(|_| Unreadable::Damaged)?;
    Ok(StoredKey { kind, usage, secret: SecretBytes::from(&*secret) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key_id(text: &str) -> KeyId {
        text.parse().unwrap()
    }

    fn written(store_key: &StoreKey, id: &str, secret: &[u8]) -> Vec<u8> {
        let key = StoredKey { kind: KeyKind::Symmetric, usage: Usage::ALL, secret: secret.into() };
        encode(store_key, NameSpace::Ordinary, &key_id(id), &key).unwrap()
    }

    proptest! {
        #[test]
        fn a_key_reads_back_as_it_was_written(
            id in "[!-~]{1,256}", pair: bool, derive_or_sign: bool, encrypt: bool,
            secret in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let store_key = StoreKey::new(vec![3; 32].into());
            let kind = if pair { KeyKind::Pair } else { KeyKind::Symmetric };
            let usage = Usage { derive_or_sign, encrypt };
            let key = StoredKey { kind, usage, secret: secret.as_slice().into() };
            let content = encode(&store_key, NameSpace::Internal, &key_id(&id), &key).unwrap();
            prop_assert!(secret.len() < 8 || !content.windows(secret.len()).any(|window| window == secret));
            let Ok(read) = decode(&store_key, NameSpace::Internal, &key_id(&id), &content) else {
                return Err(TestCaseError::fail("did not read back"));
            };
            prop_assert_eq!((read.kind, read.usage, read.secret.expose()), (kind, usage, secret.as_slice()));
        }

        #[test]
        fn no_changed_bit_goes_unnoticed(at: prop::sample::Index, bit in 0u8..8) {
            let store_key = StoreKey::new(vec![3; 32].into());
            let mut content = written(&store_key, "device-id", b"secret");
            let at = at.index(content.len());
            content[at] ^= 1 << bit;
            prop_assert!(decode(&store_key, NameSpace::Ordinary, &key_id("device-id"), &content).is_err());
        }

        #[test]
        fn no_cut_file_goes_unnoticed(at: prop::sample::Index) {
            let store_key = StoreKey::new(vec![3; 32].into());
            let content = written(&store_key, "device-id", b"secret");
            let cut = &content[..at.index(content.len())];
            let read = decode(&store_key, NameSpace::Ordinary, &key_id("device-id"), cut);
            prop_assert_eq!(read.err(), Some(Unreadable::Damaged));
        }
    }

    #[test]
    fn a_file_of_another_key_name_space_store_or_version_is_not_this_key() {
        let store_key = StoreKey::new(vec![3; 32].into());
        let (id, other_id) = (key_id("a"), key_id("b"));
        let mut content = written(&store_key, "a", b"secret");
        let read = |store_key, name_space, id, content: &[u8]| {
            decode(store_key, name_space, id, content).err()
        };
        assert_eq!(read(&store_key, NameSpace::Ordinary, &id, &content), None);
        assert_eq!(
            read(&store_key, NameSpace::Ordinary, &other_id, &content),
            Some(Unreadable::Damaged)
        );
        assert_eq!(read(&store_key, NameSpace::Internal, &id, &content), Some(Unreadable::Damaged));
        let other = StoreKey::new(vec![4; 32].into());
        assert_eq!(
            read(&other, NameSpace::Ordinary, &id, &content),
            Some(Unreadable::OtherStoreKey)
        );
        content[4] = 2;
        assert_eq!(
            read(&store_key, NameSpace::Ordinary, &id, &content),
            Some(Unreadable::Version(2))
        );
    }
}
