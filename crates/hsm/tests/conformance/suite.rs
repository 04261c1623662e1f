//! Tests of the duties of every key backend. Each function uses ids of its own, so that
//! all functions can run on one store.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use edgekeep_core::id::KeyId;
use edgekeep_hsm::{
    InputError, KeyBackend, KeyError, KeyKind, PairAlgorithm, PublicParameter, PublicValue,
    RsaPadding, SecretBytes, SymmetricKey, Usage,
};

use crate::tokens::{ec_public_key, openssl_recovers, openssl_verifies, rsa_public_key};

pub(crate) const SIGN: Usage = Usage { derive_or_sign: true, encrypt: false };
pub(crate) const ENCRYPT: Usage = Usage { derive_or_sign: false, encrypt: true };

/// A capability that a backend may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "named for the backends to come")]
pub(crate) enum Capability {
    EcPair,
    Rsa2048Pair,
    Rsa4096Pair,
    RsaWithoutPadding,
    HmacKey,
    HmacImport,
    AesKey,
    AesImport,
    MixedUsage,
    Move,
}

/// A backend under test, and what it does not have.
pub(crate) struct Fixture<'a> {
    open: &'a dyn Fn() -> Box<dyn KeyBackend>,
    lacks: &'a [Capability],
}

impl<'a> Fixture<'a> {
    pub(crate) fn new(open: &'a dyn Fn() -> Box<dyn KeyBackend>, lacks: &'a [Capability]) -> Self {
        Self { open, lacks }
    }

    fn open(&self) -> Box<dyn KeyBackend> {
        (self.open)()
    }

    /// The result of something that takes `capability`, or `None` if the backend said, as
    /// it should, that it lacks that.
    fn result<T>(&self, capability: Capability, result: Result<T, KeyError>) -> Option<T> {
        let lacks = self.lacks.contains(&capability);
        match result {
            Ok(value) => {
                assert!(!lacks, "{capability:?} is there and should not be");
                Some(value)
            }
            Err(KeyError::NotSupported { .. }) if lacks => None,
            Err(error) => panic!("{capability:?}: {}", with_causes(&error)),
        }
    }
}

/// Hands the names of all functions of the suite to a macro.
macro_rules! for_each {
    ($macro:ident) => {
        $macro!(
            an_unknown_id_is_not_found_by_any_operation,
            an_ec_pair_has_its_parameters_and_openssl_verifies_its_signatures,
            an_rsa_pair_has_its_parameters_and_openssl_verifies_its_signatures,
            an_rsa_pair_of_4096_bits_signs,
            a_generated_key_signs_and_derives,
            an_imported_key_gives_the_known_hmac_whatever_its_length,
            importing_replaces_and_refuses_what_is_no_key,
            a_generated_key_encrypts_with_any_iv,
            an_imported_key_gives_the_known_ciphertext,
            bad_ciphertexts_are_refused_with_their_reason,
            usage_is_enforced,
            a_key_for_everything_does_everything,
            the_two_kinds_share_one_name_space,
            a_deleted_key_is_gone,
            creating_again_keeps_the_key,
            moving_a_pair_replaces_what_it_is_moved_onto,
            keys_survive_a_restart,
            a_pair_on_p384_signs_for_openssl,
            the_first_algorithm_that_can_be_done_is_taken,
            any_id_can_be_used,
            many_at_once_make_and_use_one_key
        );
    };
}
pub(crate) use for_each;

/// A function of the suite.
pub(crate) type Test = fn(&Fixture<'_>);

/// All of them, for configurations that are dear to set up.
pub(crate) fn all() -> Vec<(&'static str, Test)> {
    let mut all: Vec<(&'static str, Test)> = Vec::new();
    macro_rules! push {
        ($($name:ident),*) => { $(all.push((stringify!($name), $name));)* };
    }
    for_each!(push);
    all
}

fn id(text: &str) -> KeyId {
    text.parse().unwrap()
}

fn with_causes(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", with_causes(cause)),
        None => error.to_string(),
    }
}

fn failure<T>(result: Result<T, KeyError>) -> KeyError {
    match result {
        Err(error) => error,
        Ok(_) => panic!("was accepted"),
    }
}

/// Asserts that a result is an error of this pattern.
macro_rules! refused {
    ($result:expr, $pattern:pat) => {
        let error = failure($result);
        assert!(matches!(error, $pattern), "{}", with_causes(&error));
        assert!(error.is_callers_fault(), "{error}");
    };
}

fn bytes(value: Result<PublicValue, KeyError>) -> Vec<u8> {
    match value {
        Ok(PublicValue::Bytes(bytes)) => bytes,
        Ok(PublicValue::Word(word)) => panic!("{word}"),
        Err(error) => panic!("{}", with_causes(&error)),
    }
}

fn mac(backend: &dyn KeyBackend, key: &KeyId, message: &[u8]) -> [u8; 32] {
    match backend.hmac_sha256(SymmetricKey::Stored(key), message) {
        Ok(mac) => mac,
        Err(error) => panic!("{}", with_causes(&error)),
    }
}

fn known_mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec()
}

fn ec_public(backend: &dyn KeyBackend, key: &KeyId) -> Vec<u8> {
    let oid = bytes(backend.public_parameter(key, PublicParameter::EcCurveOid));
    ec_public_key(&oid, &bytes(backend.public_parameter(key, PublicParameter::EcPointUncompressed)))
}

pub(crate) fn an_unknown_id_is_not_found_by_any_operation(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let unknown = id("unknown");
    let (stored, derived) =
        (SymmetricKey::Stored(&unknown), SymmetricKey::Derived { base: &unknown, data: b"d" });
    assert_eq!(backend.kind(&unknown).unwrap(), None);
    for key in [stored, derived] {
        refused!(backend.hmac_sha256(key, b"m"), KeyError::NotFound { .. });
        refused!(backend.encrypt(key, b"iv", b"", b"m"), KeyError::NotFound { .. });
        refused!(backend.decrypt(key, b"iv", b"", &[2; 40]), KeyError::NotFound { .. });
    }
    refused!(backend.export_derived(&unknown, b"d"), KeyError::NotFound { .. });
    refused!(backend.sign_ecdsa(&unknown, &[0; 32]), KeyError::NotFound { .. });
    refused!(
        backend.rsa_private_operation(&unknown, RsaPadding::Pkcs1, b"m"),
        KeyError::NotFound { .. }
    );
    refused!(
        backend.public_parameter(&unknown, PublicParameter::Algorithm),
        KeyError::NotFound { .. }
    );
    refused!(backend.delete(&unknown, KeyKind::Symmetric), KeyError::NotFound { .. });
    refused!(backend.delete(&unknown, KeyKind::Pair), KeyError::NotFound { .. });
    if !fixture.lacks.contains(&Capability::Move) {
        refused!(backend.move_key_pair(&unknown, &id("unknown-2")), KeyError::NotFound { .. });
        refused!(backend.move_key_pair(&unknown, &unknown), KeyError::Input(InputError::SameId));
    }
}

pub(crate) fn an_ec_pair_has_its_parameters_and_openssl_verifies_its_signatures(
    fixture: &Fixture<'_>,
) {
    let backend = fixture.open();
    let key = id("ec");
    let made = backend.create_key_pair(&key, &[PairAlgorithm::EcP256]);
    if fixture.result(Capability::EcPair, made).is_none() {
        return;
    }
    assert_eq!(backend.kind(&key).unwrap(), Some(KeyKind::Pair));
    assert_eq!(
        backend.public_parameter(&key, PublicParameter::Algorithm).unwrap(),
        PublicValue::Word("ECDSA")
    );
    assert_eq!(
        bytes(backend.public_parameter(&key, PublicParameter::EcCurveOid)),
        [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]
    );
    let point = bytes(backend.public_parameter(&key, PublicParameter::EcPointUncompressed));
    assert_eq!((point.len(), point[0]), (65, 4));
    let compressed = bytes(backend.public_parameter(&key, PublicParameter::EcPoint));
    assert_eq!((compressed.len(), compressed[0]), (33, 2 + (point[64] & 1)));
    assert_eq!(compressed[1..], point[1..33]);
    for parameter in [PublicParameter::RsaModulus, PublicParameter::RsaExponent] {
        refused!(
            backend.public_parameter(&key, parameter),
            KeyError::Input(InputError::NoSuchParameter)
        );
    }
    let public = ec_public(&*backend, &key);
    for len in [20, 28, 32, 48, 64] {
        // The first byte is not zero, the last is not either.
        let digest: Vec<u8> = (0..len).map(|at| 255 - at).collect();
        let signature = backend.sign_ecdsa(&key, &digest).unwrap();
        assert!(openssl_verifies(&public, &digest, &signature, &[]), "a digest of {len} bytes");
        let mut other = digest.clone();
        other[5] ^= 1;
        assert!(!openssl_verifies(&public, &other, &signature, &[]), "a digest of {len} bytes");
    }
    for digest in [&[][..], &[1; 31], &[1; 33], &vec![1; 1 << 20]] {
        refused!(
            backend.sign_ecdsa(&key, digest),
            KeyError::Input(InputError::DigestLength { .. })
        );
    }
    refused!(
        backend.rsa_private_operation(&key, RsaPadding::Pkcs1, &[1; 32]),
        KeyError::NotSupported { .. }
    );
}

/// Returns the structure that PKCS#1 signs: the name of SHA-256 and a digest.
fn digest_info(digest: &[u8; 32]) -> Vec<u8> {
    let mut info = vec![
        0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01,
    ];
    info.extend([0x05, 0x00, 0x04, 0x20]);
    info.extend(digest);
    info
}

fn rsa_pair(fixture: &Fixture<'_>, backend: &dyn KeyBackend, key: &KeyId, bits: usize) {
    assert_eq!(
        backend.public_parameter(key, PublicParameter::Algorithm).unwrap(),
        PublicValue::Word("RSA")
    );
    let modulus = bytes(backend.public_parameter(key, PublicParameter::RsaModulus));
    assert_eq!(modulus.len(), bits / 8);
    assert!(modulus[0] >= 0x80);
    let exponent = bytes(backend.public_parameter(key, PublicParameter::RsaExponent));
    assert_eq!(exponent, [1, 0, 1]);
    for parameter in [
        PublicParameter::EcPoint,
        PublicParameter::EcCurveOid,
        PublicParameter::EcPointUncompressed,
    ] {
        refused!(
            backend.public_parameter(key, parameter),
            KeyError::Input(InputError::NoSuchParameter)
        );
    }
    let public = rsa_public_key(&modulus, &exponent);
    let block = digest_info(&[0x5a; 32]);
    let signature = backend.rsa_private_operation(key, RsaPadding::Pkcs1, &block).unwrap();
    assert_eq!(signature.len(), modulus.len());
    assert!(openssl_verifies(&public, &[0x5a; 32], &signature, &["-pkeyopt", "digest:sha256"]));
    assert!(!openssl_verifies(&public, &[0x5b; 32], &signature, &["-pkeyopt", "digest:sha256"]));
    // Any block, not only what a digest makes; and the longest.
    let limit = modulus.len() - 11;
    for len in [1, 36, limit] {
        let block = vec![0x5a; len];
        let signature = backend.rsa_private_operation(key, RsaPadding::Pkcs1, &block).unwrap();
        assert_eq!(openssl_recovers(&public, &signature), block, "a block of {len} bytes");
    }
    let long = vec![1; 1 << 20];
    for block in [&vec![1; limit + 1], &vec![1; modulus.len()], &long] {
        refused!(
            backend.rsa_private_operation(key, RsaPadding::Pkcs1, block),
            KeyError::Input(InputError::RsaBlock { .. })
        );
    }
    // The same signature by hand.
    let mut padded = vec![0, 1];
    padded.resize(modulus.len() - block.len() - 1, 0xff);
    padded.push(0);
    padded.extend(&block);
    let raw = backend.rsa_private_operation(key, RsaPadding::None, &padded);
    if let Some(raw) = fixture.result(Capability::RsaWithoutPadding, raw) {
        assert_eq!(raw, signature_of(backend, key, &block));
        let pss = backend
            .rsa_private_operation(key, RsaPadding::None, &pss_block(&[0x5a; 32], modulus.len()))
            .unwrap();
        let options = ["rsa_padding_mode:pss", "rsa_pss_saltlen:32", "digest:sha256"];
        let options: Vec<&str> = options.iter().flat_map(|option| ["-pkeyopt", option]).collect();
        assert!(openssl_verifies(&public, &[0x5a; 32], &pss, &options));
        assert!(!openssl_verifies(&public, &[0x5b; 32], &pss, &options));
        for block in [&[][..], &padded[1..], &modulus, &vec![0xff; modulus.len()], &long] {
            refused!(
                backend.rsa_private_operation(key, RsaPadding::None, block),
                KeyError::Input(InputError::RsaBlock { .. })
            );
        }
    }
    refused!(backend.sign_ecdsa(key, &[1; 32]), KeyError::NotSupported { .. });
}

/// Returns the RSASSA-PSS encoding of a SHA-256 digest (RFC 8017, 9.1.1), for a modulus
/// of `len` bytes.
fn pss_block(digest: &[u8; 32], len: usize) -> Vec<u8> {
    let sha256 = |bytes: &[u8]| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let salt = [0x11; 32];
    let hash = sha256(&[&[0; 8][..], digest, &salt].concat());
    let mut block = vec![0; len - 32 - 32 - 2];
    block.push(1);
    block.extend(salt);
    let mask = (0_u32..)
        .flat_map(|at| sha256(&[hash.as_ref(), &at.to_be_bytes()].concat()).as_ref().to_vec());
    block.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    block[0] &= 0x7f;
    block.extend(hash.as_ref());
    block.push(0xbc);
    block
}

fn signature_of(backend: &dyn KeyBackend, key: &KeyId, block: &[u8]) -> Vec<u8> {
    backend.rsa_private_operation(key, RsaPadding::Pkcs1, block).unwrap()
}

pub(crate) fn an_rsa_pair_has_its_parameters_and_openssl_verifies_its_signatures(
    fixture: &Fixture<'_>,
) {
    let backend = fixture.open();
    let key = id("rsa");
    let made = backend.create_key_pair(&key, &[PairAlgorithm::Rsa2048]);
    if fixture.result(Capability::Rsa2048Pair, made).is_some() {
        rsa_pair(fixture, &*backend, &key, 2048);
    }
}

pub(crate) fn an_rsa_pair_of_4096_bits_signs(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let key = id("rsa-4096");
    let made = backend.create_key_pair(&key, &[PairAlgorithm::Rsa4096]);
    match fixture.result(Capability::Rsa4096Pair, made) {
        Some(()) => rsa_pair(fixture, &*backend, &key, 4096),
        None => assert_eq!(backend.kind(&key).unwrap(), None),
    }
}

pub(crate) fn a_generated_key_signs_and_derives(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let key = id("sign");
    let made = backend.create_key(&key, SIGN);
    if fixture.result(Capability::HmacKey, made).is_none() {
        return assert_eq!(backend.kind(&key).unwrap(), None);
    }
    assert_eq!(backend.kind(&key).unwrap(), Some(KeyKind::Symmetric));
    let long = vec![b'm'; 1 << 20];
    for message in [&b""[..], b"m", &long] {
        assert_eq!(mac(&*backend, &key, message), mac(&*backend, &key, message));
    }
    assert_ne!(mac(&*backend, &key, b"a"), mac(&*backend, &key, b"b"));
    let derived = backend.export_derived(&key, b"module").unwrap();
    assert_eq!(derived.expose(), mac(&*backend, &key, b"module"));
    let used = SymmetricKey::Derived { base: &key, data: b"module" };
    assert_eq!(
        backend.hmac_sha256(used, b"m").unwrap().to_vec(),
        known_mac(derived.expose(), b"m")
    );
    let sealed = backend.encrypt(used, &[3; 33], b"aad", b"text").unwrap();
    assert_eq!((sealed[0], sealed.len()), (2, 1 + 4 + 16));
    assert_eq!(backend.decrypt(used, &[3; 33], b"aad", &sealed).unwrap().expose(), b"text");
    let other = SymmetricKey::Derived { base: &key, data: b"other" };
    refused!(
        backend.decrypt(other, &[3; 33], b"aad", &sealed),
        KeyError::Input(InputError::NotAuthentic)
    );
    assert_ne!(backend.export_derived(&key, b"").unwrap().expose(), derived.expose());
}

pub(crate) fn an_imported_key_gives_the_known_hmac_whatever_its_length(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    for len in [1, 16, 31, 32, 33, 63, 64, 65, 200] {
        let key = id(&format!("imported-{len}"));
        let secret: Vec<u8> = (0..len).map(|at| at as u8 ^ 0x80).collect();
        let made = backend.import_key(&key, secret.clone().into(), SIGN);
        if fixture.result(Capability::HmacImport, made).is_none() {
            return assert_eq!(backend.kind(&key).unwrap(), None);
        }
        assert_eq!(
            mac(&*backend, &key, b"message").to_vec(),
            known_mac(&secret, b"message"),
            "{len} bytes"
        );
        assert_eq!(
            backend.export_derived(&key, b"d").unwrap().into_exposed(),
            known_mac(&secret, b"d")
        );
    }
}

pub(crate) fn importing_replaces_and_refuses_what_is_no_key(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let key = id("replaced");
    refused!(backend.import_key(&key, vec![].into(), SIGN), KeyError::Input(InputError::EmptyKey));
    refused!(
        backend.import_key(&key, vec![1; 1 << 20].into(), SIGN),
        KeyError::Input(InputError::LongKey { .. })
    );
    assert_eq!(backend.kind(&key).unwrap(), None);
    for secret in [&[1; 32][..], &[2; 32], &[3; 40]] {
        let made = backend.import_key(&key, secret.into(), SIGN);
        if fixture.result(Capability::HmacImport, made).is_none() {
            return;
        }
        assert_eq!(mac(&*backend, &key, b"m").to_vec(), known_mac(secret, b"m"));
    }
    refused!(backend.import_key(&key, vec![].into(), SIGN), KeyError::Input(InputError::EmptyKey));
    assert_eq!(mac(&*backend, &key, b"m").to_vec(), known_mac(&[3; 40], b"m"));
    drop(backend);
    let backend = fixture.open();
    assert_eq!(mac(&*backend, &key, b"m").to_vec(), known_mac(&[3; 40], b"m"));
    backend.delete(&key, KeyKind::Symmetric).unwrap();
    assert_eq!(backend.kind(&key).unwrap(), None);
}

pub(crate) fn a_generated_key_encrypts_with_any_iv(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let name = id("encrypt");
    let made = backend.create_key(&name, ENCRYPT);
    if fixture.result(Capability::AesKey, made).is_none() {
        return assert_eq!(backend.kind(&name).unwrap(), None);
    }
    let key = SymmetricKey::Stored(&name);
    let long = vec![b'p'; 100_000];
    for iv_len in [1, 7, 12, 16, 60, 200] {
        for (aad, plaintext) in [(&b""[..], &b""[..]), (b"aad", b"text"), (b"", &long)] {
            let iv = vec![9; iv_len];
            let sealed = backend.encrypt(key, &iv, aad, plaintext).unwrap();
            assert_eq!((sealed[0], sealed.len()), (2, 1 + plaintext.len() + 16));
            assert_eq!(
                backend.decrypt(key, &iv, aad, &sealed).unwrap().expose(),
                plaintext,
                "an iv of {iv_len}"
            );
        }
    }
    refused!(backend.encrypt(key, b"", b"", b"m"), KeyError::Input(InputError::EmptyIv));
    refused!(backend.decrypt(key, b"", b"", &[2; 40]), KeyError::Input(InputError::EmptyIv));
}

pub(crate) fn an_imported_key_gives_the_known_ciphertext(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let name = id("imported-aes");
    let secret = [0x42; 32];
    let made = backend.import_key(&name, secret.as_slice().into(), ENCRYPT);
    if fixture.result(Capability::AesImport, made).is_none() {
        return assert_eq!(backend.kind(&name).unwrap(), None);
    }
    let sealed = backend.encrypt(SymmetricKey::Stored(&name), &[1; 12], b"aad", b"text").unwrap();
    let other = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &secret).unwrap());
    let mut expected = b"text".to_vec();
    other
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key([1; 12]),
            Aad::from(b"aad"),
            &mut expected,
        )
        .unwrap();
    assert_eq!(sealed[1..], expected);
}

pub(crate) fn bad_ciphertexts_are_refused_with_their_reason(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let name = id("tampered");
    let made = backend.create_key(&name, ENCRYPT);
    if fixture.result(Capability::AesKey, made).is_none() {
        return;
    }
    let key = SymmetricKey::Stored(&name);
    let sealed = backend.encrypt(key, &[4; 16], b"aad", b"plaintext").unwrap();
    // The layout of the earliest versions has the tag first.
    let (ciphertext, tag) = sealed[1..].split_at(9);
    let earliest = [&[1], tag, ciphertext].concat();
    assert_eq!(backend.decrypt(key, &[4; 16], b"aad", &earliest).unwrap().expose(), b"plaintext");
    for at in 1..sealed.len() {
        let mut bad = sealed.clone();
        bad[at] ^= 0x40;
        refused!(
            backend.decrypt(key, &[4; 16], b"aad", &bad),
            KeyError::Input(InputError::NotAuthentic)
        );
    }
    for (iv, aad) in
        [(&[4; 15][..], &b"aad"[..]), (&[5; 16], b"aad"), (&[4; 16], b"aae"), (&[4; 16], b"")]
    {
        refused!(backend.decrypt(key, iv, aad, &sealed), KeyError::Input(InputError::NotAuthentic));
    }
    for short in [&[][..], &[2], &[2; 16], &[1; 16]] {
        refused!(
            backend.decrypt(key, &[4; 16], b"", short),
            KeyError::Input(InputError::ShortCiphertext)
        );
    }
    refused!(
        backend.decrypt(key, &[4; 16], b"", &[7; 40]),
        KeyError::Input(InputError::CiphertextVersion { found: 7 })
    );
    assert_eq!(backend.decrypt(key, &[4; 16], b"aad", &sealed).unwrap().expose(), b"plaintext");
}

pub(crate) fn usage_is_enforced(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let (signing, encrypting) = (id("usage-sign"), id("usage-encrypt"));
    let made = backend.create_key(&signing, SIGN);
    if fixture.result(Capability::HmacKey, made).is_some() {
        let key = SymmetricKey::Stored(&signing);
        refused!(backend.encrypt(key, b"iv", b"", b"m"), KeyError::UsageNotAllowed { .. });
        refused!(backend.decrypt(key, b"iv", b"", &[2; 40]), KeyError::UsageNotAllowed { .. });
    }
    let made = backend.create_key(&encrypting, ENCRYPT);
    if fixture.result(Capability::AesKey, made).is_some() {
        refused!(
            backend.hmac_sha256(SymmetricKey::Stored(&encrypting), b"m"),
            KeyError::UsageNotAllowed { .. }
        );
        refused!(backend.export_derived(&encrypting, b"d"), KeyError::UsageNotAllowed { .. });
        let derived = SymmetricKey::Derived { base: &encrypting, data: b"d" };
        refused!(backend.encrypt(derived, b"iv", b"", b"m"), KeyError::UsageNotAllowed { .. });
    }
}

pub(crate) fn a_key_for_everything_does_everything(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let name = id("mixed");
    let made = backend.create_key(&name, Usage::ALL);
    if fixture.result(Capability::MixedUsage, made).is_none() {
        assert_eq!(backend.kind(&name).unwrap(), None);
        refused!(
            backend.import_key(&name, vec![1; 32].into(), Usage::ALL),
            KeyError::NotSupported { .. }
        );
        return assert_eq!(backend.kind(&name).unwrap(), None);
    }
    let key = SymmetricKey::Stored(&name);
    assert_eq!(mac(&*backend, &name, b"m"), mac(&*backend, &name, b"m"));
    let sealed = backend.encrypt(key, b"iv", b"", b"text").unwrap();
    assert_eq!(backend.decrypt(key, b"iv", b"", &sealed).unwrap().expose(), b"text");
}

pub(crate) fn the_two_kinds_share_one_name_space(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let (symmetric, pair) = (id("kind-symmetric"), id("kind-pair"));
    let made = backend.create_key_pair(&pair, &[PairAlgorithm::EcP256]);
    if fixture.result(Capability::EcPair, made).is_some() {
        refused!(backend.create_key(&pair, SIGN), KeyError::WrongKind { found: KeyKind::Pair, .. });
        refused!(backend.hmac_sha256(SymmetricKey::Stored(&pair), b""), KeyError::WrongKind { .. });
        refused!(
            backend.encrypt(SymmetricKey::Stored(&pair), b"iv", b"", b""),
            KeyError::WrongKind { .. }
        );
        refused!(backend.export_derived(&pair, b""), KeyError::WrongKind { .. });
        refused!(backend.delete(&pair, KeyKind::Symmetric), KeyError::WrongKind { .. });
        if !fixture.lacks.contains(&Capability::HmacImport) {
            refused!(
                backend.import_key(&pair, vec![1; 32].into(), SIGN),
                KeyError::WrongKind { .. }
            );
        }
        assert_eq!(backend.kind(&pair).unwrap(), Some(KeyKind::Pair));
    }
    let made = backend.create_key(&symmetric, SIGN);
    if fixture.result(Capability::HmacKey, made).is_some() {
        let found_symmetric = [PairAlgorithm::EcP256];
        refused!(
            backend.create_key_pair(&symmetric, &found_symmetric),
            KeyError::WrongKind { found: KeyKind::Symmetric, .. }
        );
        refused!(backend.sign_ecdsa(&symmetric, &[1; 32]), KeyError::WrongKind { .. });
        refused!(
            backend.rsa_private_operation(&symmetric, RsaPadding::Pkcs1, b"m"),
            KeyError::WrongKind { .. }
        );
        refused!(
            backend.public_parameter(&symmetric, PublicParameter::Algorithm),
            KeyError::WrongKind { .. }
        );
        refused!(backend.delete(&symmetric, KeyKind::Pair), KeyError::WrongKind { .. });
        if !fixture.lacks.contains(&Capability::Move) {
            refused!(
                backend.move_key_pair(&symmetric, &id("kind-moved")),
                KeyError::WrongKind { .. }
            );
            refused!(backend.move_key_pair(&pair, &symmetric), KeyError::WrongKind { .. });
        }
        assert_eq!(backend.kind(&symmetric).unwrap(), Some(KeyKind::Symmetric));
    }
}

pub(crate) fn a_deleted_key_is_gone(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let (symmetric, pair) = (id("deleted"), id("deleted-pair"));
    let made = backend.create_key(&symmetric, SIGN);
    if fixture.result(Capability::HmacKey, made).is_some() {
        let before = mac(&*backend, &symmetric, b"m");
        backend.delete(&symmetric, KeyKind::Symmetric).unwrap();
        assert_eq!(backend.kind(&symmetric).unwrap(), None);
        refused!(
            backend.hmac_sha256(SymmetricKey::Stored(&symmetric), b"m"),
            KeyError::NotFound { .. }
        );
        refused!(backend.delete(&symmetric, KeyKind::Symmetric), KeyError::NotFound { .. });
        backend.create_key(&symmetric, SIGN).unwrap();
        assert_ne!(mac(&*backend, &symmetric, b"m"), before);
    }
    let made = backend.create_key_pair(&pair, &[PairAlgorithm::EcP256]);
    if fixture.result(Capability::EcPair, made).is_some() {
        let before = ec_public(&*backend, &pair);
        backend.delete(&pair, KeyKind::Pair).unwrap();
        assert_eq!(backend.kind(&pair).unwrap(), None);
        refused!(backend.sign_ecdsa(&pair, &[1; 32]), KeyError::NotFound { .. });
        backend.create_key_pair(&pair, &[PairAlgorithm::EcP256]).unwrap();
        assert_ne!(ec_public(&*backend, &pair), before);
        backend.delete(&pair, KeyKind::Pair).unwrap();
    }
}

pub(crate) fn creating_again_keeps_the_key(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let (symmetric, pair) = (id("again"), id("again-pair"));
    let made = backend.create_key(&symmetric, SIGN);
    if fixture.result(Capability::HmacKey, made).is_some() {
        let before = mac(&*backend, &symmetric, b"m");
        backend.create_key(&symmetric, SIGN).unwrap();
        assert_eq!(mac(&*backend, &symmetric, b"m"), before);
    }
    let made = backend.create_key_pair(&pair, &[PairAlgorithm::EcP256]);
    if fixture.result(Capability::EcPair, made).is_some() {
        let before = ec_public(&*backend, &pair);
        backend.create_key_pair(&pair, &[PairAlgorithm::Rsa2048]).unwrap();
        assert_eq!(ec_public(&*backend, &pair), before);
    }
}

pub(crate) fn moving_a_pair_replaces_what_it_is_moved_onto(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let (current, next) = (id("ca"), id("ca-next"));
    for _ in 0..3 {
        let made = backend.create_key_pair(&next, &[PairAlgorithm::EcP256]);
        if fixture.result(Capability::EcPair, made).is_none() {
            return;
        }
        let new = ec_public(&*backend, &next);
        // A use before: nothing that was remembered of the old one may be left.
        if backend.kind(&current).unwrap().is_some() {
            assert_ne!(ec_public(&*backend, &current), new);
        }
        let moved = backend.move_key_pair(&next, &current);
        if fixture.result(Capability::Move, moved).is_none() {
            return;
        }
        assert_eq!(backend.kind(&next).unwrap(), None);
        refused!(backend.sign_ecdsa(&next, &[1; 32]), KeyError::NotFound { .. });
        assert_eq!(ec_public(&*backend, &current), new);
        let signature = backend.sign_ecdsa(&current, &[7; 32]).unwrap();
        assert!(openssl_verifies(&new, &[7; 32], &signature, &[]));
    }
    refused!(backend.move_key_pair(&next, &current), KeyError::NotFound { .. });
    refused!(backend.move_key_pair(&current, &current), KeyError::Input(InputError::SameId));
    let before = ec_public(&*backend, &current);
    drop(backend);
    let backend = fixture.open();
    assert_eq!(ec_public(&*backend, &current), before);
    backend.delete(&current, KeyKind::Pair).unwrap();
    assert_eq!(backend.kind(&current).unwrap(), None);
}

pub(crate) fn keys_survive_a_restart(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let (sign, encrypt, pair) = (id("kept-sign"), id("kept-encrypt"), id("kept-pair"));
    let signed = fixture
        .result(Capability::HmacKey, backend.create_key(&sign, SIGN))
        .map(|()| mac(&*backend, &sign, b"m"));
    let sealed = fixture
        .result(Capability::AesKey, backend.create_key(&encrypt, ENCRYPT))
        .map(|()| backend.encrypt(SymmetricKey::Stored(&encrypt), &[1; 12], b"", b"text").unwrap());
    let made = backend.create_key_pair(&pair, &[PairAlgorithm::EcP256]);
    let public = fixture.result(Capability::EcPair, made).map(|()| ec_public(&*backend, &pair));
    drop(backend);
    let backend = fixture.open();
    if let Some(signed) = signed {
        assert_eq!(mac(&*backend, &sign, b"m"), signed);
        refused!(
            backend.encrypt(SymmetricKey::Stored(&sign), b"iv", b"", b""),
            KeyError::UsageNotAllowed { .. }
        );
    }
    if let Some(sealed) = sealed {
        let opened: SecretBytes =
            backend.decrypt(SymmetricKey::Stored(&encrypt), &[1; 12], b"", &sealed).unwrap();
        assert_eq!(opened.expose(), b"text");
    }
    if let Some(public) = public {
        assert_eq!(ec_public(&*backend, &pair), public);
        let signature = backend.sign_ecdsa(&pair, &[7; 32]).unwrap();
        assert!(openssl_verifies(&public, &[7; 32], &signature, &[]));
    }
}

/// Places without this curve make the next of the list.
pub(crate) fn a_pair_on_p384_signs_for_openssl(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let key = id("p384");
    let wanted = [PairAlgorithm::EcP384, PairAlgorithm::EcP256];
    if fixture.result(Capability::EcPair, backend.create_key_pair(&key, &wanted)).is_none() {
        return;
    }
    let on_p384 = bytes(backend.public_parameter(&key, PublicParameter::EcPointUncompressed)).len();
    let len = if on_p384 == 97 { 48 } else { 32 };
    let public = ec_public(&*backend, &key);
    let signature = backend.sign_ecdsa(&key, &vec![7; len]).unwrap();
    assert!(openssl_verifies(&public, &vec![7; len], &signature, &[]));
    assert!(!openssl_verifies(&public, &vec![8; len], &signature, &[]));
}

pub(crate) fn the_first_algorithm_that_can_be_done_is_taken(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let key = id("preferred");
    refused!(backend.create_key_pair(&key, &[]), KeyError::Input(InputError::PreferredAlgorithms));
    let wanted = [PairAlgorithm::Rsa4096, PairAlgorithm::EcP256];
    backend.create_key_pair(&key, &wanted).unwrap();
    let word = if fixture.lacks.contains(&Capability::Rsa4096Pair) { "ECDSA" } else { "RSA" };
    assert_eq!(
        backend.public_parameter(&key, PublicParameter::Algorithm).unwrap(),
        PublicValue::Word(word)
    );
}

pub(crate) fn any_id_can_be_used(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let all: String = ('!'..='~').collect();
    let long = "x".repeat(256);
    let almost = "x".repeat(255);
    for name in ["../../etc/passwd", "a;b?c=d&e%20", "'\"\\$(id)", &all, &long, &almost] {
        let made = backend.create_key(&id(name), SIGN);
        if fixture.result(Capability::HmacKey, made).is_none() {
            return;
        }
    }
    assert_ne!(mac(&*backend, &id(&long), b"m"), mac(&*backend, &id(&almost), b"m"));
    backend.delete(&id(&long), KeyKind::Symmetric).unwrap();
    assert_eq!(backend.kind(&id(&almost)).unwrap(), Some(KeyKind::Symmetric));
    assert_eq!(backend.kind(&id(&long)).unwrap(), None);
}

pub(crate) fn many_at_once_make_and_use_one_key(fixture: &Fixture<'_>) {
    let backend = fixture.open();
    let (key, pair) = (id("shared"), id("shared-pair"));
    if fixture.lacks.contains(&Capability::EcPair) {
        return;
    }
    let symmetric = !fixture.lacks.contains(&Capability::HmacKey);
    let results: Vec<_> = std::thread::scope(|scope| {
        let users: Vec<_> = (0..12)
            .map(|_| {
                scope.spawn(|| {
                    let mac = symmetric.then(|| {
                        backend.create_key(&key, SIGN).unwrap();
                        mac(&*backend, &key, b"m")
                    });
                    backend.create_key_pair(&pair, &[PairAlgorithm::EcP256]).unwrap();
                    backend.sign_ecdsa(&pair, &[7; 32]).unwrap();
                    (mac, ec_public(&*backend, &pair))
                })
            })
            .collect();
        users.into_iter().map(|user| user.join().unwrap()).collect()
    });
    assert!(results.windows(2).all(|two| two[0] == two[1]));
}
