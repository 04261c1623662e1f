//! The age format, version 1, with X25519 recipients (age-encryption.org/v1).
//!
//! A random file key is encrypted to the recipient in a header of text lines, which the
//! file key authenticates; the rest is ChaCha20-Poly1305 in chunks of 64 KiB, the last of
//! which is marked.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use aws_lc_rs::{hkdf, hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use zeroize::Zeroizing;

use super::{EnvelopeError, bech32};
use crate::SecretBytes;

pub(super) const MAGIC: &[u8] = b"age-encryption.org/v1\n";
const KEY_LEN: usize = 32;
const FILE_KEY_LEN: usize = 16;
const TAG_LEN: usize = 16;
const CHUNK_LEN: usize = 64 * 1024;
const PAYLOAD_NONCE_LEN: usize = 16;
const X25519_INFO: &[u8] = b"age-encryption.org/v1/X25519";
/// Longest header that is read, in bytes: some hundred recipients.
const HEADER_LIMIT: usize = 64 * 1024;

#[derive(Debug, Clone)]
pub(super) struct PublicKey([u8; KEY_LEN]);

pub(super) struct PrivateKey {
    private: agreement::PrivateKey,
    public: [u8; KEY_LEN],
}

impl PublicKey {
    pub(super) fn parse(text: &str) -> Result<Self, EnvelopeError> {
        let bytes = bech32::decode("age", text).ok_or(EnvelopeError::Recipient)?;
        bytes.as_slice().try_into().map(Self).map_err(|_| EnvelopeError::Recipient)
    }
}

impl PrivateKey {
    pub(super) fn parse(text: &str) -> Result<Self, EnvelopeError> {
        let bytes = bech32::decode("age-secret-key-", text).ok_or(EnvelopeError::Identity)?;
        let private = agreement::PrivateKey::from_private_key(&X25519, &bytes)
            .map_err(|_| EnvelopeError::Identity)?;
        let public = private.compute_public_key().map_err(|_| EnvelopeError::Identity)?;
        let public = public.as_ref().try_into().map_err(|_| EnvelopeError::Identity)?;
        Ok(Self { private, public })
    }
}

/// HKDF-SHA256 to 32 bytes.
fn derive(salt: &[u8], secret: &[u8], info: &[u8]) -> Result<Zeroizing<[u8; 32]>, EnvelopeError> {
    let mut key = Zeroizing::new([0; 32]);
    let info = [info];
    let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let derived = derived.expand(&info, hkdf::HKDF_SHA256).map_err(|_| EnvelopeError::Library)?;
    derived.fill(&mut *key).map_err(|_| EnvelopeError::Library)?;
    Ok(key)
}

fn aead(key: &[u8; 32]) -> Result<LessSafeKey, EnvelopeError> {
    UnboundKey::new(&CHACHA20_POLY1305, key)
        .map(LessSafeKey::new)
        .map_err(|_| EnvelopeError::Library)
}

/// The key that the file key is encrypted under.
fn wrapping_key(
    own: &agreement::PrivateKey,
    other: &[u8],
    share: &[u8],
    recipient: &[u8],
) -> Result<Zeroizing<[u8; 32]>, EnvelopeError> {
    let salt = [share, recipient].concat();
    // The library refuses points that make the shared secret zero.
    agreement::agree(
        own,
        UnparsedPublicKey::new(&X25519, other),
        EnvelopeError::Damaged,
        |shared| derive(&salt, shared, X25519_INFO),
    )
}

/// The key that the header is authenticated with.
fn header_key(file_key: &[u8]) -> Result<hmac::Key, EnvelopeError> {
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &*derive(&[], file_key, b"header")?))
}

/// Nonces of the payload's chunks: a counter, and whether it is the last.
fn chunk_nonce(number: u64, last: bool) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[3..11].copy_from_slice(&number.to_be_bytes());
    nonce[11] = u8::from(last);
    Nonce::assume_unique_for_key(nonce)
}

fn random<const LEN: usize>() -> Result<Zeroizing<[u8; LEN]>, EnvelopeError> {
    let mut bytes = Zeroizing::new([0; LEN]);
    rand::fill(&mut *bytes).map_err(|_| EnvelopeError::Library)?;
    Ok(bytes)
}

pub(super) fn encrypt(to: &PublicKey, secret: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
    let file_key = random::<FILE_KEY_LEN>()?;
    let ephemeral = agreement::PrivateKey::generate(&X25519).map_err(|_| EnvelopeError::Library)?;
    let share = ephemeral.compute_public_key().map_err(|_| EnvelopeError::Library)?;
    let key = wrapping_key(&ephemeral, &to.0, share.as_ref(), &to.0)?;
    let mut body = file_key.to_vec();
    aead(&key)?
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key([0; NONCE_LEN]),
            Aad::empty(),
            &mut body,
        )
        .map_err(|_| EnvelopeError::Library)?;

    let mut sealed = MAGIC.to_vec();
    let (share, body) = (STANDARD_NO_PAD.encode(share.as_ref()), STANDARD_NO_PAD.encode(&body));
    sealed.extend_from_slice(format!("-> X25519 {share}\n{body}\n---").as_bytes());
    let mac = hmac::sign(&header_key(&*file_key)?, &sealed);
    sealed.extend_from_slice(format!(" {}\n", STANDARD_NO_PAD.encode(mac.as_ref())).as_bytes());

    let nonce = random::<PAYLOAD_NONCE_LEN>()?;
    sealed.extend_from_slice(&*nonce);
    let key = aead(&*derive(&*nonce, &*file_key, b"payload")?)?;
    let mut chunks = secret.chunks(CHUNK_LEN).peekable();
    let mut number = 0;
    loop {
        let mut chunk = Zeroizing::new(chunks.next().unwrap_or_default().to_vec());
        let last = chunks.peek().is_none();
        let tag = key
            .seal_in_place_separate_tag(chunk_nonce(number, last), Aad::empty(), &mut chunk)
            .map_err(|_| EnvelopeError::Library)?;
        sealed.extend_from_slice(&chunk);
        sealed.extend_from_slice(tag.as_ref());
        if last {
            return Ok(sealed);
        }
        number += 1;
    }
}

/// A header that was read: X25519 stanzas, and what the file key authenticates.
struct Header<'a> {
    stanzas: Vec<([u8; KEY_LEN], Vec<u8>)>,
    authenticated: &'a [u8],
    mac: Vec<u8>,
    payload: &'a [u8],
}

fn parse(sealed: &[u8]) -> Option<Header<'_>> {
    let decode = |text: &str| STANDARD_NO_PAD.decode(text).ok();
    let mut stanzas = Vec::new();
    let mut at = MAGIC.len();
    let line = |from: usize| -> Option<(&str, usize)> {
        let rest = sealed.get(from..sealed.len().min(HEADER_LIMIT))?;
        let len = rest.iter().position(|byte| *byte == b'\n')?;
        Some((std::str::from_utf8(&rest[..len]).ok()?, from + len + 1))
    };
    loop {
        let (text, next) = line(at)?;
        if let Some(mac) = text.strip_prefix("--- ") {
            let (authenticated, payload) = (&sealed[..at + 3], &sealed[next..]);
            return Some(Header { stanzas, authenticated, mac: decode(mac)?, payload });
        }
        let arguments = text.strip_prefix("-> ")?;
        at = next;
        let mut body = String::new();
        // A body ends with a line shorter than 64 letters.
        loop {
            let (text, next) = line(at)?;
            at = next;
            body.push_str(text);
            match text.len() {
                64 => {}
                0..64 => break,
                _ => return None,
            }
        }
        if let Some(share) = arguments.strip_prefix("X25519 ") {
            stanzas.push((decode(share)?.try_into().ok()?, decode(&body)?));
        }
    }
}

pub(super) fn decrypt(keys: &[PrivateKey], sealed: &[u8]) -> Result<SecretBytes, EnvelopeError> {
    let header = parse(sealed).ok_or(EnvelopeError::Damaged)?;
    let file_key =
        header.stanzas.iter().find_map(|stanza| keys.iter().find_map(|key| file_key(key, stanza)));
    let file_key = file_key.ok_or(EnvelopeError::NotForThis)?;
    let mac_key = header_key(&file_key)?;
    hmac::verify(&mac_key, header.authenticated, &header.mac)
        .map_err(|_| EnvelopeError::Damaged)?;

    let (nonce, mut rest) =
        header.payload.split_at_checked(PAYLOAD_NONCE_LEN).ok_or(EnvelopeError::Damaged)?;
    let key = aead(&*derive(nonce, &file_key, b"payload")?)?;
    let mut secret = Zeroizing::new(Vec::with_capacity(rest.len()));
    for number in 0.. {
        let (chunk, after) = rest.split_at_checked(CHUNK_LEN + TAG_LEN).unwrap_or((rest, &[]));
        let last = after.is_empty();
        let mut opened = Zeroizing::new(chunk.to_vec());
        let plain = key
            .open_in_place(chunk_nonce(number, last), Aad::empty(), &mut opened)
            .map_err(|_| EnvelopeError::Damaged)?;
        // Only an empty file has an empty chunk.
        if plain.is_empty() && number > 0 {
            return Err(EnvelopeError::Damaged);
        }
        secret.extend_from_slice(plain);
        if last {
            break;
        }
        rest = after;
    }
    Ok(std::mem::take(&mut *secret).into())
}

fn file_key(
    key: &PrivateKey,
    (share, body): &([u8; KEY_LEN], Vec<u8>),
) -> Option<Zeroizing<Vec<u8>>> {
    if body.len() != FILE_KEY_LEN + TAG_LEN {
        return None;
    }
    let wrapping = wrapping_key(&key.private, share, share, &key.public).ok()?;
    let mut opened = Zeroizing::new(body.clone());
    let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
    let plain = aead(&wrapping).ok()?.open_in_place(nonce, Aad::empty(), &mut opened).ok()?;
    Some(Zeroizing::new(plain.to_vec()))
}
