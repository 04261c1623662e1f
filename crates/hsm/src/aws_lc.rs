//! The two operations of AWS-LC that the keys API needs and its safe binding does not
//! offer: AES-256-GCM with an IV of any length, and the bare RSA private-key operation.
//! All of this crate's `unsafe` is here.
#![allow(unsafe_code, reason = "calls into AWS-LC")]

use std::ffi::c_int;
use std::ptr::{self, NonNull};

use aws_lc_sys::{
    CBS, CBS_init, CBS_len, ERR_clear_error, EVP_AEAD_CTX, EVP_AEAD_CTX_free, EVP_AEAD_CTX_new,
    EVP_AEAD_CTX_open_gather, EVP_AEAD_CTX_seal_scatter, EVP_PKEY, EVP_PKEY_free,
    EVP_PKEY_get1_RSA, EVP_aead_aes_256_gcm, EVP_parse_private_key, RSA, RSA_NO_PADDING,
    RSA_PKCS1_PADDING, RSA_free, RSA_sign_raw, RSA_size,
};

use crate::backend::RsaPadding;

/// Length of a GCM tag, in bytes.
pub(crate) const TAG_LEN: usize = 16;

/// The library refused. It does not say why in a way that may be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// Turns the library's 1 or 0 into a result. The reason it leaves in the thread's queue
/// is of no use and would stay.
fn check(returned: c_int) -> Result<(), Refused> {
    if returned == 1 {
        return Ok(());
    }
    // SAFETY: takes no arguments and works on the calling thread's own queue.
    unsafe { ERR_clear_error() };
    Err(Refused)
}

/// An AES-256 key, expanded for GCM. The library wipes it when it is freed.
pub(crate) struct Aes256Gcm(NonNull<EVP_AEAD_CTX>);

// SAFETY: the context is owned by this value alone and is not tied to the thread that
// made it.
unsafe impl Send for Aes256Gcm {}
// SAFETY: seal and open take the context as const; the library documents for AES-256-GCM
// that they may run concurrently on one context.
unsafe impl Sync for Aes256Gcm {}

impl Aes256Gcm {
    pub(crate) fn new(key: &[u8; 32]) -> Result<Self, Refused> {
        // SAFETY: the first call returns a static table; `key` is readable for the length
        // passed, which is the one that the algorithm wants. The library copies the key.
        let context =
            unsafe { EVP_AEAD_CTX_new(EVP_aead_aes_256_gcm(), key.as_ptr(), key.len(), TAG_LEN) };
        NonNull::new(context).map(Self).ok_or(Refused)
    }

    /// Encrypts `plaintext` into `ciphertext`, which has the same length, and returns the
    /// tag. An empty IV is refused.
    pub(crate) fn seal(
        &self,
        iv: &[u8],
        aad: &[u8],
        plaintext: &[u8],
        ciphertext: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Refused> {
        assert_eq!(
            plaintext.len(),
            ciphertext.len(),
            "the output buffer has the plaintext's length"
        );
        let mut tag = [0; TAG_LEN];
        let mut tag_len = 0;
        // SAFETY: the context is alive as long as self. Each input pointer is readable
        // for the length beside it. The library writes `plaintext.len()` bytes to
        // `ciphertext`, which has that length (checked above) and, being a unique borrow,
        // overlaps no input; and at most `tag.len()` bytes to `tag`. There is no extra
        // input (null, 0).
        check(unsafe {
            EVP_AEAD_CTX_seal_scatter(
                self.0.as_ptr(),
                ciphertext.as_mut_ptr(),
                tag.as_mut_ptr(),
                &raw mut tag_len,
                tag.len(),
                iv.as_ptr(),
                iv.len(),
                plaintext.as_ptr(),
                plaintext.len(),
                ptr::null(),
                0,
                aad.as_ptr(),
                aad.len(),
            )
        })?;
        if tag_len == TAG_LEN { Ok(tag) } else { Err(Refused) }
    }

    /// Decrypts `ciphertext` into `plaintext`, which has the same length, if the tag
    /// fits. An empty IV is refused.
    pub(crate) fn open(
        &self,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_LEN],
        plaintext: &mut [u8],
    ) -> Result<(), Refused> {
        assert_eq!(
            ciphertext.len(),
            plaintext.len(),
            "the output buffer has the ciphertext's length"
        );
        // SAFETY: as for sealing: inputs are readable for the lengths beside them, and
        // `plaintext` is a unique borrow that is writable for `ciphertext.len()` bytes
        // (checked above).
        check(unsafe {
            EVP_AEAD_CTX_open_gather(
                self.0.as_ptr(),
                plaintext.as_mut_ptr(),
                iv.as_ptr(),
                iv.len(),
                ciphertext.as_ptr(),
                ciphertext.len(),
                tag.as_ptr(),
                tag.len(),
                aad.as_ptr(),
                aad.len(),
            )
        })
    }
}

impl Drop for Aes256Gcm {
    fn drop(&mut self) {
        // SAFETY: made by EVP_AEAD_CTX_new, owned by self, not used after this.
        unsafe { EVP_AEAD_CTX_free(self.0.as_ptr()) }
    }
}

/// An RSA private key. The library wipes it when it is freed.
pub(crate) struct RsaPrivateKey(NonNull<RSA>);

// SAFETY: the key's only reference is owned by this value and is not tied to the thread
// that made it.
unsafe impl Send for RsaPrivateKey {}
// SAFETY: only RSA_sign_raw and RSA_size are called on it, which the library documents as
// not mutating: they may run concurrently (blinding values are behind the key's own
// lock).
unsafe impl Sync for RsaPrivateKey {}

/// Frees a parsed key when dropped.
struct ParsedKey(NonNull<EVP_PKEY>);

impl Drop for ParsedKey {
    fn drop(&mut self) {
        // SAFETY: made by EVP_parse_private_key, owned by self, not used after this.
        unsafe { EVP_PKEY_free(self.0.as_ptr()) }
    }
}

impl RsaPrivateKey {
    /// Reads a DER PKCS#8 private key. Refuses anything that is not RSA, and bytes after
    /// it.
    pub(crate) fn from_pkcs8(der: &[u8]) -> Result<Self, Refused> {
        let mut reader = CBS { data: ptr::null(), len: 0 };
        // SAFETY: `reader` is valid for writes and afterwards reads from `der`, which
        // outlives it.
        let parsed = unsafe {
            CBS_init(&raw mut reader, der.as_ptr(), der.len());
            EVP_parse_private_key(&raw mut reader)
        };
        let Some(parsed) = NonNull::new(parsed) else {
            return Err(check(0).err().unwrap_or(Refused));
        };
        let parsed = ParsedKey(parsed);
        // SAFETY: `reader` was initialized above.
        if unsafe { CBS_len(&raw const reader) } != 0 {
            return Err(Refused);
        }
        // SAFETY: the parsed key is alive. The returned reference is counted on its own,
        // and is null for another algorithm than RSA.
        match NonNull::new(unsafe { EVP_PKEY_get1_RSA(parsed.0.as_ptr()) }) {
            Some(rsa) => Ok(Self(rsa)),
            None => Err(check(0).err().unwrap_or(Refused)),
        }
    }

    /// Length of the modulus in bytes.
    pub(crate) fn modulus_len(&self) -> usize {
        // SAFETY: the key is alive as long as self.
        (unsafe { RSA_size(self.0.as_ptr()) }) as usize
    }

    /// Pads `block` and raises it to the private exponent, blinded. The result is as long
    /// as the modulus.
    pub(crate) fn private_operation(
        &self,
        padding: RsaPadding,
        block: &[u8],
    ) -> Result<Vec<u8>, Refused> {
        let padding = match padding {
            RsaPadding::Pkcs1 => RSA_PKCS1_PADDING,
            RsaPadding::None => RSA_NO_PADDING,
        };
        let mut out = vec![0; self.modulus_len()];
        let mut out_len = 0;
        // SAFETY: the key is alive as long as self; it is passed as mut but not changed
        // (see Sync above). `block` is readable and `out` writable for the length passed
        // with it.
        check(unsafe {
            RSA_sign_raw(
                self.0.as_ptr(),
                &raw mut out_len,
                out.as_mut_ptr(),
                out.len(),
                block.as_ptr(),
                block.len(),
                padding,
            )
        })?;
        if out_len == out.len() { Ok(out) } else { Err(Refused) }
    }
}

impl Drop for RsaPrivateKey {
    fn drop(&mut self) {
        // SAFETY: from EVP_PKEY_get1_RSA, owned by self, not used after this.
        unsafe { RSA_free(self.0.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    /// Test case 18 of the GCM specification (McGrew and Viega): AES-256 with an IV of 60
    /// bytes.
    #[test]
    fn an_iv_of_60_bytes_gives_the_published_ciphertext_and_tag() {
        let key: [u8; 32] = hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308")
            .try_into()
            .unwrap();
        let plaintext = hex(concat!(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72",
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
        ));
        let iv = hex(concat!(
            "9313225df88406e555909c5aff5269aa6a7a9538534f7da1e4c303d2a318a728",
            "c3c0c95156809539fcf0e2429a6b525416aedbf5a0de6a57a637b39b"
        ));
        let aad = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let gcm = Aes256Gcm::new(&key).unwrap();
        let mut ciphertext = vec![0; plaintext.len()];
        let tag = gcm.seal(&iv, &aad, &plaintext, &mut ciphertext).unwrap();
        assert_eq!(
            ciphertext,
            hex(concat!(
                "5a8def2f0c9e53f1f75d7853659e2a20eeb2b22aafde6419a058ab4f6f746bf4",
                "0fc0c3b780f244452da3ebf1c5d82cdea2418997200ef82e44ae7e3f"
            ))
        );
        assert_eq!(tag.to_vec(), hex("a44a8266ee1c8eb0c8b5d4cf5ae9f19a"));
        let mut opened = vec![0; ciphertext.len()];
        gcm.open(&iv, &aad, &ciphertext, &tag, &mut opened).unwrap();
        assert_eq!(opened, plaintext);
    }

    #[test]
    fn an_empty_iv_is_refused() {
        let gcm = Aes256Gcm::new(&[7; 32]).unwrap();
        assert_eq!(gcm.seal(&[], &[], &[1], &mut [0]), Err(Refused));
    }

    #[test]
    fn what_is_not_an_rsa_key_is_refused_without_leaving_errors_behind() {
        let ec = aws_lc_rs::signature::EcdsaKeyPair::generate(
            &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING,
        )
        .unwrap()
        .to_pkcs8v1()
        .unwrap();
        for der in [ec.as_ref(), b"", b"\x30\x03\x02\x01\x00", &[0xff; 100]] {
            assert!(RsaPrivateKey::from_pkcs8(der).is_err());
        }
    }

    proptest! {
        #[test]
        fn with_12_byte_ivs_it_is_the_safe_bindings_gcm(
            key: [u8; 32], iv: [u8; 12],
            aad in prop::collection::vec(any::<u8>(), 0..40), plaintext in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut ciphertext = vec![0; plaintext.len()];
            let tag = Aes256Gcm::new(&key).unwrap().seal(&iv, &aad, &plaintext, &mut ciphertext).unwrap();
            ciphertext.extend_from_slice(&tag);
            let other = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
            let mut expected = plaintext;
            other
                .seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::from(&aad), &mut expected)
                .unwrap();
            prop_assert_eq!(ciphertext, expected);
        }

        #[test]
        fn a_changed_bit_anywhere_is_noticed(
            key: [u8; 32], iv in prop::collection::vec(any::<u8>(), 1..80), plaintext: [u8; 20], bit in 0usize..36 * 8,
        ) {
            let gcm = Aes256Gcm::new(&key).unwrap();
            let mut sealed = vec![0; 20];
            let tag = gcm.seal(&iv, b"aad", &plaintext, &mut sealed).unwrap();
            sealed.extend_from_slice(&tag);
            sealed[bit / 8] ^= 1 << (bit % 8);
            let tag = sealed[20..].try_into().unwrap();
            prop_assert_eq!(gcm.open(&iv, b"aad", &sealed[..20], &tag, &mut [0; 20]), Err(Refused));
        }
    }
}
