//! Key files in every form that people have them in, used by the software backend and
//! checked by openssl.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use edgekeep_core::id::KeyId;
use edgekeep_hsm::key_file::{Inspected, inspect};
use edgekeep_hsm::software::SoftwareBackend;
use edgekeep_hsm::{KeyBackend as _, KeyError, KeyKind, RsaPadding, SecretBytes};
use edgekeep_test_plant::{Plant, Says};

fn backend(plant: &Plant, name: &str, content: &[u8]) -> (SoftwareBackend, KeyId) {
    let file = plant.folder().join(format!("{name}.preloaded"));
    std::fs::write(&file, content).unwrap();
    let id: KeyId = "preloaded".parse().unwrap();
    let store = plant.folder().join(format!("{name}.store"));
    (SoftwareBackend::open(&store, BTreeMap::from([(id.clone(), file)])).unwrap(), id)
}

/// Returns true if openssl finds that `signature` is over `digest`, by the key in `key`.
fn openssl_verifies(folder: &Path, key: &str, digest: &[u8], signature: &[u8]) -> bool {
    std::fs::write(folder.join("digest"), digest).unwrap();
    std::fs::write(folder.join("signature"), signature).unwrap();
    let arguments = ["pkeyutl", "-verify", "-inkey", key, "-in", "digest", "-sigfile", "signature"];
    Command::new("openssl").args(arguments).current_dir(folder).output().unwrap().status.success()
}

#[test]
fn a_preloaded_key_in_any_form_is_that_key_or_an_error_that_says_what_to_do() {
    let plant = Plant::new();
    let public = plant.openssl("pkey -in root.key -pubout -outform DER");
    for form in plant.key_forms() {
        let (keys, id) = backend(&plant, form.name, &form.content);
        let seen = inspect(&SecretBytes::from(form.content.as_slice()));
        match form.says {
            Says::Nothing => {
                assert_eq!(keys.kind(&id).unwrap(), Some(KeyKind::Pair), "{}", form.name);
                let signature = keys.sign_ecdsa(&id, &[7; 32]).unwrap();
                assert!(
                    openssl_verifies(plant.folder(), "root.key", &[7; 32], &signature),
                    "{}",
                    form.name
                );
                assert!(
                    !openssl_verifies(plant.folder(), "other.key", &[7; 32], &signature),
                    "{}",
                    form.name
                );
                assert_eq!(seen, Ok(Inspected::Pair(public.clone())), "{}", form.name);
            }
            Says::Error(part) => {
                let error = keys.kind(&id).unwrap_err();
                assert!(
                    matches!(error, KeyError::PreloadedUnusable { .. }),
                    "{}: {error:?}",
                    form.name
                );
                let text = error.to_string();
                assert!(
                    text.contains(part) && text.contains(".preloaded"),
                    "{}: {text}",
                    form.name
                );
                assert!(seen.unwrap_err().to_string().contains(part), "{}", form.name);
                assert!(
                    keys.import_file_content(&"other".parse().unwrap(), &form.content.into())
                        .is_err()
                );
            }
        }
    }
}

#[test]
fn rsa_keys_of_both_forms_are_the_same_key() {
    let plant = Plant::new();
    plant.openssl("genrsa -out rsa.key 2048");
    let public = plant.openssl("pkey -in rsa.key -pubout -outform DER");
    // DigestInfo for SHA-256 (RFC 8017, 9.2), which the caller puts in front of its
    // digest.
    let mut block =
        vec![0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20];
    block.extend_from_slice(&[7; 32]);
    for (name, line) in [
        ("PKCS#8", "pkey -in rsa.key"),
        ("PKCS#1", "rsa -in rsa.key -traditional"),
        ("PKCS#1 in DER", "rsa -in rsa.key -traditional -outform DER"),
    ] {
        let content = plant.openssl(line);
        let (keys, id) = backend(&plant, name, &content);
        let signature = keys.rsa_private_operation(&id, RsaPadding::Pkcs1, &block).unwrap();
        assert!(openssl_verifies(plant.folder(), "rsa.key", &block, &signature), "{name}");
        assert_eq!(inspect(&content.into()), Ok(Inspected::Pair(public.clone())), "{name}");
    }
    let small = plant.openssl("genrsa 1024");
    let (keys, id) = backend(&plant, "small", &small);
    assert!(keys.kind(&id).unwrap_err().to_string().contains("RSA of 2048 to 8192 bits"));
}

#[test]
fn a_file_of_bytes_that_are_no_form_of_a_key_is_a_symmetric_key_byte_for_byte() {
    let plant = Plant::new();
    for (name, content, is_text) in
        [("raw", &[7; 32][..], false), ("text", b"not PEM, and a line end behind it\n", true)]
    {
        let (keys, id) = backend(&plant, name, content);
        assert_eq!(keys.kind(&id).unwrap(), Some(KeyKind::Symmetric));
        let imported: KeyId = "imported".parse().unwrap();
        keys.import_file_content(&imported, &content.into()).unwrap();
        let mac = |id| keys.hmac_sha256(edgekeep_hsm::SymmetricKey::Stored(id), b"m").unwrap();
        assert_eq!(mac(&id), mac(&imported));
        assert_eq!(inspect(&content.into()), Ok(Inspected::Symmetric { is_text }));
    }
}
