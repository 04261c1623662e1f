use aws_lc_rs::rsa::KeySize;
use proptest::prelude::*;

use super::*;

/// The example in the documentation of age.
const EXAMPLE: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

fn age_pair(seed: u8) -> (Recipient, Identity) {
    let private = [seed; 32];
    let key =
        aws_lc_rs::agreement::PrivateKey::from_private_key(&aws_lc_rs::agreement::X25519, &private)
            .unwrap();
    let public = bech32::encode("age", key.compute_public_key().unwrap().as_ref());
    let identity =
        format!("# a comment\n\n{}\n", bech32::encode("age-secret-key-", &private).to_uppercase());
    (public.parse().unwrap(), Identity::from_file_content(&identity.into_bytes().into()).unwrap())
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

fn pem_pair(ec: bool) -> (Recipient, Identity) {
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, RsaKeyPair,
    };
    let (private, public) = if ec {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let public =
            AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
        (pair.to_pkcs8v1().unwrap().as_ref().to_vec(), public.as_ref().to_vec())
    } else {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let public =
            AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
        (pair.as_der().unwrap().as_ref().to_vec(), public.as_ref().to_vec())
    };
    let identity = pem("PRIVATE KEY", &private).into_bytes();
    (
        pem("PUBLIC KEY", &public).parse().unwrap(),
        Identity::from_file_content(&identity.into()).unwrap(),
    )
}

fn all() -> [(Recipient, Identity); 3] {
    [age_pair(7), pem_pair(true), pem_pair(false)]
}

#[test]
fn what_was_encrypted_to_an_identity_it_decrypts_and_no_other_does() {
    for (recipient, identity) in all() {
        for len in [0, 1, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 200_000] {
            let secret: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let sealed = recipient.encrypt(&secret.as_slice().into()).unwrap();
            assert!(len < 8 || !sealed.windows(8).any(|window| window == &secret[..8]));
            assert_eq!(identity.decrypt(&sealed).unwrap().expose(), secret);
        }
        let sealed = recipient.encrypt(&b"secret"[..].into()).unwrap();
        for other in [age_pair(8).1, pem_pair(true).1, pem_pair(false).1] {
            let error = other.decrypt(&sealed).err().unwrap();
            assert!(
                matches!(error, EnvelopeError::NotForThis | EnvelopeError::OtherKind { .. }),
                "{error}"
            );
        }
    }
}

#[test]
fn no_changed_byte_and_no_cut_goes_unnoticed() {
    for (recipient, identity) in all() {
        let sealed = recipient.encrypt(&b"secret"[..].into()).unwrap();
        for at in 0..sealed.len() {
            assert!(identity.decrypt(&sealed[..at]).is_err(), "cut at {at}");
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            // The versions in a CMS and the name of its recipient say nothing of the
            // content.
            if let Ok(secret) = identity.decrypt(&changed) {
                assert_eq!(secret.expose(), b"secret", "byte {at}");
                assert!(!sealed.starts_with(age::MAGIC), "byte {at}");
            }
        }
        assert!(
            identity.decrypt(&[&sealed[..], b"x"].concat()).is_err()
                || !sealed.starts_with(age::MAGIC)
        );
    }
}

#[test]
fn a_chunk_that_is_left_out_or_moved_is_noticed() {
    let (recipient, identity) = age_pair(1);
    let sealed = recipient.encrypt(&vec![1; 3 * 64 * 1024].into()).unwrap();
    let chunk = 64 * 1024 + 16;
    let payload = sealed.len() - 3 * chunk;
    let without_last = sealed[..payload + 2 * chunk].to_vec();
    let without_first = [&sealed[..payload], &sealed[payload + chunk..]].concat();
    let swapped = [
        &sealed[..payload],
        &sealed[payload + chunk..payload + 2 * chunk],
        &sealed[payload..payload + chunk],
    ]
    .concat();
    for changed in [without_last, without_first, swapped] {
        assert_eq!(identity.decrypt(&changed).err(), Some(EnvelopeError::Damaged));
    }
}

#[test]
fn keys_of_other_kinds_are_refused_without_being_repeated() {
    EXAMPLE.parse::<Recipient>().unwrap();
    let mut wrong = EXAMPLE.to_owned();
    wrong.replace_range(20..21, "q");
    for text in [
        wrong.as_str(),
        "age1",
        "ssh-ed25519 AAAA",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
    ] {
        assert_eq!(text.parse::<Recipient>().err(), Some(EnvelopeError::Recipient), "{text}");
    }
    for text in ["", "# nothing\n", EXAMPLE, "AGE-SECRET-KEY-1QQQ"] {
        let error = Identity::from_file_content(&text.as_bytes().into()).err();
        assert_eq!(error, Some(EnvelopeError::Identity), "{text}");
    }
}

#[test]
fn bech32_is_read_as_its_authors_say() {
    assert_eq!(bech32::decode("a", "A12UEL5L").unwrap().len(), 0);
    let all = "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw";
    assert_eq!(bech32::decode("abcdef", all).unwrap()[..4], [0x00, 0x44, 0x32, 0x14]);
    for wrong in ["A12uEL5L", "a12uel5m", "a1", "b12uel5l", ""] {
        assert!(bech32::decode("a", wrong).is_none(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_decrypting_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..3_usize) {
        let (_, identity) = age_pair(3);
        let _ = identity.decrypt(&bytes);
        let _ = identity.decrypt(&[age::MAGIC, &bytes].concat());
        let _ = pem_pair(true).1.decrypt(&der::element([der::SEQUENCE, der::SET, 0xa1][kind], &[&bytes]));
    }

    #[test]
    fn bech32_reads_what_it_writes(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let text = bech32::encode("age", &bytes);
        prop_assert_eq!(bech32::decode("age", &text).unwrap().to_vec(), bytes);
    }
}
