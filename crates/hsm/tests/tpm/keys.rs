//! The keys API over a TPM, judged by openssl and by the software backend.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use edgekeep_core::id::KeyId;
use edgekeep_hsm::software::{SoftwareBackend, StoreError};
use edgekeep_hsm::tpm::TpmBackend;
use edgekeep_hsm::{
    InputError, KeyBackend, KeyError, KeyKind, Operation, PairAlgorithm, PublicParameter,
    PublicValue, RsaPadding, SymmetricKey, Usage,
};
use edgekeep_tpm::TpmError;

use crate::swtpm::{Swtpm, assert_no_leak, loaded};

const SIGN: Usage = Usage { derive_or_sign: true, encrypt: false };

fn id(text: &str) -> KeyId {
    text.parse().unwrap()
}

fn open(swtpm: &Swtpm) -> TpmBackend {
    TpmBackend::open(swtpm.open(), &swtpm.folder("keys")).unwrap()
}

fn bytes(backend: &TpmBackend, key: &str, parameter: PublicParameter) -> Vec<u8> {
    match backend.public_parameter(&id(key), parameter).unwrap() {
        PublicValue::Bytes(bytes) => bytes,
        PublicValue::Word(word) => panic!("{word}"),
    }
}

fn no_leak(backend: &TpmBackend, after: &str) {
    backend.with_tpm(|tpm| assert_no_leak(tpm, after));
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let mut out = vec![tag];
    match len {
        0..0x80 => out.push(u8::try_from(len).unwrap()),
        _ => {
            out.push(0x82);
            out.extend_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
        }
    }
    out.extend_from_slice(content);
    out
}

fn openssl(folder: &Path, arguments: &[&str]) -> bool {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
    output.status.success()
}

#[test]
fn openssl_verifies_ecdsa_signatures_over_digests_of_every_length() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let folder = swtpm.folder("openssl");
    let backend = open(&swtpm);
    backend.create_key_pair(&id("p"), &[PairAlgorithm::Rsa4096, PairAlgorithm::EcP256]).unwrap();
    no_leak(&backend, "making a key pair");
    let point = bytes(&backend, "p", PublicParameter::EcPointUncompressed);
    let algorithm = [
        der(6, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1]),
        bytes(&backend, "p", PublicParameter::EcCurveOid),
    ];
    let spki =
        der(0x30, &[der(0x30, &algorithm.concat()), der(3, &[&[0], &point[..]].concat())].concat());
    fs::write(folder.join("public.der"), spki).unwrap();
    for len in [20, 28, 32, 48, 64] {
        let digest: Vec<u8> = (0..len).map(|at| at as u8 ^ 0x5a).collect();
        fs::write(folder.join("digest"), &digest).unwrap();
        for _ in 0..4 {
            fs::write(folder.join("signature"), backend.sign_ecdsa(&id("p"), &digest).unwrap())
                .unwrap();
            let arguments = [
                "pkeyutl",
                "-verify",
                "-pubin",
                "-keyform",
                "DER",
                "-inkey",
                "public.der",
                "-in",
                "digest",
                "-sigfile",
                "signature",
            ];
            assert!(openssl(&folder, &arguments), "{len}");
        }
        no_leak(&backend, "signing");
    }
    for len in [0, 31, 33, 1 << 20] {
        let error = backend.sign_ecdsa(&id("p"), &vec![0; len]).unwrap_err();
        assert!(
            matches!(error, KeyError::Input(InputError::DigestLength { found }) if found == len),
            "{error}"
        );
    }
    let compressed = bytes(&backend, "p", PublicParameter::EcPoint);
    assert_eq!((compressed[0] & 1, &compressed[1..]), (point[64] & 1, &point[1..33]));
}

#[test]
fn openssl_verifies_rsa_signatures_and_bare_operations() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let folder = swtpm.folder("openssl");
    let backend = open(&swtpm);
    backend.create_key_pair(&id("r"), &[PairAlgorithm::Rsa2048]).unwrap();
    let modulus = bytes(&backend, "r", PublicParameter::RsaModulus);
    let exponent = bytes(&backend, "r", PublicParameter::RsaExponent);
    let key = der(0x30, &[der(2, &[&[0], &modulus[..]].concat()), der(2, &exponent)].concat());
    let algorithm =
        der(0x30, &[der(6, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1]), der(5, &[])].concat());
    fs::write(
        folder.join("public.der"),
        der(0x30, &[algorithm, der(3, &[&[0], &key[..]].concat())].concat()),
    )
    .unwrap();

    fs::write(folder.join("message"), "message").unwrap();
    assert!(openssl(&folder, &["dgst", "-sha256", "-binary", "-out", "digest", "message"]));
    let digest = fs::read(folder.join("digest")).unwrap();
    let info = der(
        0x30,
        &[&[0x30, 13, 6, 9, 0x60, 0x86, 0x48, 1, 101, 3, 4, 2, 1, 5, 0][..], &der(4, &digest)]
            .concat(),
    );
    let signature = backend.rsa_private_operation(&id("r"), RsaPadding::Pkcs1, &info).unwrap();
    fs::write(folder.join("signature"), &signature).unwrap();
    let verify = [
        "dgst",
        "-sha256",
        "-verify",
        "public.der",
        "-keyform",
        "DER",
        "-signature",
        "signature",
        "message",
    ];
    assert!(openssl(&folder, &verify));

    let mut padded = vec![0, 1];
    padded.resize(256 - info.len() - 1, 0xff);
    padded.push(0);
    padded.extend_from_slice(&info);
    assert_eq!(
        backend.rsa_private_operation(&id("r"), RsaPadding::None, &padded).unwrap(),
        signature
    );
    no_leak(&backend, "RSA");
    for (padding, len) in
        [(RsaPadding::Pkcs1, 246), (RsaPadding::None, 255), (RsaPadding::None, 1 << 20)]
    {
        let error = backend.rsa_private_operation(&id("r"), padding, &vec![1; len]).unwrap_err();
        assert!(matches!(error, KeyError::Input(InputError::RsaBlock { limit: 245 })), "{error}");
    }
    assert!(matches!(
        backend.sign_ecdsa(&id("r"), &[0; 32]),
        Err(KeyError::NotSupported { operation: Operation::SignEcdsa, .. })
    ));
}

#[test]
fn hmac_with_an_imported_key_is_what_software_computes() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let backend = open(&swtpm);
    let folder = tempfile::tempdir().unwrap();
    let software = SoftwareBackend::open(folder.path(), BTreeMap::new()).unwrap();
    for key_len in [1, 32, 63, 64, 65, 300, 64 * 1024] {
        let key: Vec<u8> = (0..key_len).map(|at| at as u8).collect();
        backend.import_key(&id("k"), key.as_slice().into(), SIGN).unwrap();
        software.import_key(&id("k"), key.as_slice().into(), Usage::ALL).unwrap();
        no_leak(&backend, "importing");
        for message_len in [0, 1, 1024, 1025, 2048, 5000] {
            let message = vec![0xa5; message_len];
            let stored = SymmetricKey::Stored(&id("k"));
            assert_eq!(
                backend.hmac_sha256(stored, &message).unwrap(),
                software.hmac_sha256(stored, &message).unwrap(),
                "key {key_len}, message {message_len}"
            );
            no_leak(&backend, "an HMAC");
        }
    }
    let (base, data) = (id("k"), b"module-1".as_slice());
    let derived = SymmetricKey::Derived { base: &base, data };
    assert_eq!(
        backend.hmac_sha256(derived, b"m").unwrap(),
        software.hmac_sha256(derived, b"m").unwrap()
    );
    assert_eq!(
        backend.export_derived(&base, data).unwrap().expose(),
        software.export_derived(&base, data).unwrap().expose()
    );
    let ciphertext = backend.encrypt(derived, b"iv", b"aad", b"plaintext").unwrap();
    assert_eq!(
        software.decrypt(derived, b"iv", b"aad", &ciphertext).unwrap().expose(),
        b"plaintext"
    );
    assert_eq!(
        backend.decrypt(derived, b"iv", b"aad", &ciphertext).unwrap().expose(),
        b"plaintext"
    );
}

#[test]
fn keys_survive_restart_and_power_cut_and_no_file_holds_one_in_clear() {
    if crate::swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let backend = open(&swtpm);
    backend.create_key(&id("k"), SIGN).unwrap();
    backend.import_key(&id("imported"), b"a very secret key".as_slice().into(), SIGN).unwrap();
    backend.create_key_pair(&id("p"), &[PairAlgorithm::EcP256]).unwrap();
    let use_all = |backend: &TpmBackend| {
        let mac = |key: &str| backend.hmac_sha256(SymmetricKey::Stored(&id(key)), b"m").unwrap();
        backend.sign_ecdsa(&id("p"), &[1; 32]).unwrap();
        no_leak(backend, "use");
        (mac("k"), mac("imported"), bytes(backend, "p", PublicParameter::EcPoint))
    };
    let before = use_all(&backend);
    backend.create_key(&id("k"), SIGN).unwrap();
    backend.create_key_pair(&id("p"), &[PairAlgorithm::Rsa2048]).unwrap();
    assert_eq!(use_all(&backend), before, "creating again keeps what is there");
    drop(backend);
    let backend = open(&swtpm);
    assert!(backend.with_tpm(loaded).is_empty());
    assert_eq!(use_all(&backend), before);
    swtpm.kill();
    let error = backend.sign_ecdsa(&id("p"), &[1; 32]).unwrap_err();
    assert!(matches!(error.cause(), Some(TpmError::Unreachable { .. })), "{error:?}");
    assert!(!error.is_callers_fault());
    swtpm.start_again();
    assert_eq!(use_all(&backend), before);
    for entry in fs::read_dir(swtpm.folder("keys")).unwrap() {
        let content = fs::read(entry.unwrap().path()).unwrap();
        assert!(!content.windows(6).any(|window| window == b"secret"));
    }
}

#[test]
fn what_a_tpm_does_not_do_is_refused_with_a_typed_answer() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let backend = open(&swtpm);
    let refused = |result: Result<(), KeyError>, expected| {
        let error = result.unwrap_err();
        assert!(
            matches!(error, KeyError::NotSupported { backend: "tpm", operation } if operation == expected),
            "{error}"
        );
    };
    refused(backend.create_key(&id("k"), Usage::ALL), Operation::CreateKey);
    refused(backend.import_key(&id("k"), b"x".as_slice().into(), Usage::ALL), Operation::ImportKey);
    refused(backend.create_key_pair(&id("k"), &[PairAlgorithm::Rsa4096]), Operation::CreateKeyPair);
    assert_eq!(backend.kind(&id("k")).unwrap(), None);
    backend.create_key(&id("k"), SIGN).unwrap();
    assert!(matches!(
        backend.encrypt(SymmetricKey::Stored(&id("k")), b"iv", b"", b""),
        Err(KeyError::UsageNotAllowed { needed: "encrypt", .. })
    ));
    assert!(matches!(
        backend.import_key(&id("k"), b"".as_slice().into(), SIGN),
        Err(KeyError::Input(InputError::EmptyKey))
    ));
    assert!(matches!(
        backend.create_key_pair(&id("k"), &[PairAlgorithm::EcP256]),
        Err(KeyError::WrongKind { .. })
    ));
    assert!(matches!(
        backend.create_key_pair(&id("n"), &[]),
        Err(KeyError::Input(InputError::PreferredAlgorithms))
    ));
    assert!(matches!(backend.sign_ecdsa(&id("none"), &[0; 32]), Err(KeyError::NotFound { .. })));
}

#[test]
fn key_pairs_move_over_others_and_deleted_keys_are_gone() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let backend = open(&swtpm);
    for key in ["a", "b"] {
        backend.create_key_pair(&id(key), &[PairAlgorithm::EcP256]).unwrap();
        backend.sign_ecdsa(&id(key), &[1; 32]).unwrap();
    }
    backend.create_key(&id("k"), SIGN).unwrap();
    let point = bytes(&backend, "a", PublicParameter::EcPoint);
    backend.move_key_pair(&id("a"), &id("b")).unwrap();
    assert_eq!(bytes(&backend, "b", PublicParameter::EcPoint), point);
    assert_eq!(backend.kind(&id("a")).unwrap(), None);
    no_leak(&backend, "moving");
    assert!(matches!(backend.move_key_pair(&id("b"), &id("k")), Err(KeyError::WrongKind { .. })));
    assert!(matches!(
        backend.move_key_pair(&id("b"), &id("b")),
        Err(KeyError::Input(InputError::SameId))
    ));
    assert!(matches!(
        backend.delete(&id("b"), KeyKind::Symmetric),
        Err(KeyError::WrongKind { .. })
    ));
    backend.delete(&id("b"), KeyKind::Pair).unwrap();
    assert!(matches!(backend.delete(&id("b"), KeyKind::Pair), Err(KeyError::NotFound { .. })));
    no_leak(&backend, "deleting");
    drop(backend);
    assert_eq!(open(&swtpm).kind(&id("k")).unwrap(), Some(KeyKind::Symmetric));
}

#[test]
fn a_damaged_file_is_set_aside_and_a_renamed_one_is_damaged() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let keys = swtpm.folder("keys");
    let backend = open(&swtpm);
    for key in ["a", "b"] {
        backend.create_key(&id(key), SIGN).unwrap();
    }
    drop(backend);
    let file = |letter: &str| {
        let entries = fs::read_dir(&keys).unwrap().map(|entry| entry.unwrap().path());
        entries
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(letter))
            .min()
            .unwrap()
    };
    fs::copy(file("b-"), file("a-")).unwrap();
    let backend = open(&swtpm);
    let error = backend.kind(&id("a")).unwrap_err();
    let Some(StoreError::Damaged { set_aside, .. }) = error.cause() else { panic!("{error}") };
    assert!(set_aside.exists());
    assert_eq!(backend.kind(&id("a")).unwrap(), None);
    backend.hmac_sha256(SymmetricKey::Stored(&id("b")), b"m").unwrap();
}

#[test]
fn keys_of_another_tpm_are_refused_as_such() {
    if crate::swtpm::skip() {
        return;
    }
    let (one, other) = (Swtpm::start(), Swtpm::start());
    let folder = one.folder("keys");
    TpmBackend::open(one.open(), &folder).unwrap().create_key(&id("k"), SIGN).unwrap();
    let backend = TpmBackend::open(other.open(), &folder).unwrap();
    assert_eq!(backend.kind(&id("k")).unwrap(), Some(KeyKind::Symmetric));
    let error = backend.hmac_sha256(SymmetricKey::Stored(&id("k")), b"m").unwrap_err();
    assert!(matches!(error.cause(), Some(TpmError::OtherRoot)), "{error:?}");
}

#[test]
fn many_threads_share_a_tpm() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let backend = open(&swtpm);
    backend.create_key(&id("k"), SIGN).unwrap();
    backend.create_key_pair(&id("p"), &[PairAlgorithm::EcP256]).unwrap();
    let expected = backend.hmac_sha256(SymmetricKey::Stored(&id("k")), b"m").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    assert_eq!(
                        backend.hmac_sha256(SymmetricKey::Stored(&id("k")), b"m").unwrap(),
                        expected
                    );
                    backend.sign_ecdsa(&id("p"), &[1; 32]).unwrap();
                }
            });
        }
    });
    no_leak(&backend, "threads");
}
