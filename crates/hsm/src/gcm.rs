//! The versioned layout of ciphertexts that existing clients keep (wire facts 5.5).
//!
//! `02 | ciphertext | tag` is written. `01 | tag | ciphertext`, of the earliest versions,
//! is read too. The IV comes from the caller with each call and is not part of the
//! ciphertext. Versions from 80 on are other services' (the workload API's 81 holds a
//! ciphertext of these) and never become one here.

use crate::SecretBytes;
use crate::aws_lc::{Aes256Gcm, TAG_LEN};
use crate::backend::{InputError, KeyError, Operation};

const TAG_FIRST: u8 = 1;
pub(crate) const TAG_LAST: u8 = 2;

/// Expands a key for AES-256-GCM.
fn expand(key: &[u8], operation: Operation) -> Result<Aes256Gcm, KeyError> {
    let key: &[u8; 32] = key.try_into().map_err(|_| InputError::KeyLength { found: key.len() })?;
    Aes256Gcm::new(key).map_err(|_| KeyError::Library { operation })
}

/// Encrypts into the layout of version 2.
pub(crate) fn encrypt(
    key: &[u8],
    iv: &[u8],
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, KeyError> {
    if iv.is_empty() {
        return Err(InputError::EmptyIv.into());
    }
    let gcm = expand(key, Operation::Encrypt)?;
    let mut sealed = vec![0; 1 + plaintext.len() + TAG_LEN];
    sealed[0] = TAG_LAST;
    let (ciphertext, tag) = sealed[1..].split_at_mut(plaintext.len());
    let made = gcm
        .seal(iv, aad, plaintext, ciphertext)
        .map_err(|_| KeyError::Library { operation: Operation::Encrypt })?;
    tag.copy_from_slice(&made);
    Ok(sealed)
}

/// Decrypts either layout.
pub(crate) fn decrypt(
    key: &[u8],
    iv: &[u8],
    aad: &[u8],
    sealed: &[u8],
) -> Result<SecretBytes, KeyError> {
    if iv.is_empty() {
        return Err(InputError::EmptyIv.into());
    }
    let (ciphertext, tag) = split(sealed)?;
    let gcm = expand(key, Operation::Decrypt)?;
    let mut plaintext = vec![0; ciphertext.len()];
    gcm.open(iv, aad, ciphertext, tag, &mut plaintext).map_err(|_| InputError::NotAuthentic)?;
    Ok(plaintext.into())
}

/// Finds ciphertext and tag.
pub(crate) fn split(sealed: &[u8]) -> Result<(&[u8], &[u8; TAG_LEN]), InputError> {
    let (version, rest) = sealed.split_first().ok_or(InputError::ShortCiphertext)?;
    match *version {
        TAG_FIRST => rest.split_first_chunk().map(|(tag, ciphertext)| (ciphertext, tag)),
        TAG_LAST => rest.split_last_chunk(),
        found => return Err(InputError::CiphertextVersion { found }),
    }
    .ok_or(InputError::ShortCiphertext)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn input_error<T>(result: Result<T, KeyError>) -> InputError {
        match result {
            Err(KeyError::Input(error)) => error,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("was accepted"),
        }
    }

    proptest! {
        #[test]
        fn both_layouts_decrypt_to_the_plaintext(
            key: [u8; 32], iv in prop::collection::vec(any::<u8>(), 1..64),
            aad in prop::collection::vec(any::<u8>(), 0..40), plaintext in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let sealed = encrypt(&key, &iv, &aad, &plaintext).unwrap();
            prop_assert_eq!(sealed.len(), 1 + plaintext.len() + 16);
            prop_assert_eq!(sealed[0], 2);
            prop_assert_eq!(decrypt(&key, &iv, &aad, &sealed).unwrap().into_exposed(), plaintext.clone());

            let (ciphertext, tag) = sealed[1..].split_at(plaintext.len());
            let earliest = [&[1], tag, ciphertext].concat();
            prop_assert_eq!(decrypt(&key, &iv, &aad, &earliest).unwrap().into_exposed(), plaintext);
        }

        #[test]
        fn no_bytes_make_decryption_panic(sealed in prop::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(decrypt(&[1; 32], &[2; 32], b"", &sealed).is_err());
        }
    }

    #[test]
    fn wrong_key_iv_aad_or_layout_is_not_authentic() {
        let sealed = encrypt(&[1; 32], &[2; 32], b"module", b"text").unwrap();
        let mut other_layout = sealed.clone();
        other_layout[0] = 1;
        for (key, iv, aad, sealed) in [
            ([9; 32], &[2; 32][..], &b"module"[..], &sealed),
            ([1; 32], &[2; 31], b"module", &sealed),
            ([1; 32], &[2; 32], b"modulo", &sealed),
            ([1; 32], &[2; 32], b"module", &other_layout),
        ] {
            assert_eq!(input_error(decrypt(&key, iv, aad, sealed)), InputError::NotAuthentic);
        }
    }

    #[test]
    fn short_and_unknown_ciphertexts_empty_ivs_and_odd_keys_are_named() {
        assert_eq!(input_error(decrypt(&[1; 32], b"iv", b"", &[])), InputError::ShortCiphertext);
        assert_eq!(
            input_error(decrypt(&[1; 32], b"iv", b"", &[2; 16])),
            InputError::ShortCiphertext
        );
        assert_eq!(
            input_error(decrypt(&[1; 32], b"iv", b"", &[1; 16])),
            InputError::ShortCiphertext
        );
        assert_eq!(
            input_error(decrypt(&[1; 32], b"iv", b"", &[3; 40])),
            InputError::CiphertextVersion { found: 3 }
        );
        assert_eq!(input_error(decrypt(&[1; 32], b"", b"", &[2; 40])), InputError::EmptyIv);
        assert_eq!(input_error(encrypt(&[1; 32], b"", b"", b"")), InputError::EmptyIv);
        assert_eq!(
            input_error(encrypt(&[1; 16], b"iv", b"", b"")),
            InputError::KeyLength { found: 16 }
        );
    }
}
