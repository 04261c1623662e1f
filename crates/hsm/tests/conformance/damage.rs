//! Key files that are not what was written: every byte changed, cut off after every byte.

use std::fs;
use std::path::{Path, PathBuf};

use edgekeep_hsm::software::StoreError;
use edgekeep_hsm::{KeyBackend, SymmetricKey};

use crate::suite::SIGN;
use crate::tokens::SoftwareTpm;

/// The one key file in `folder` that belongs to `name`.
fn file_of(folder: &Path, name: &str) -> PathBuf {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let own = |path: &PathBuf| {
        path.file_name().unwrap().to_str().unwrap().starts_with(&format!("{name}-"))
    };
    let mut found: Vec<PathBuf> = files.filter(own).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Damages the file of one key in each way and looks what the backend makes of it, and of
/// another key.
fn each_damage_is_noticed<B: KeyBackend>(folder: &Path, open: impl Fn() -> B) {
    let (victim, other) = ("victim".parse().unwrap(), "other".parse().unwrap());
    let mac = |backend: &B| backend.hmac_sha256(SymmetricKey::Stored(&other), b"m").unwrap();
    let backend = open();
    backend.create_key(&victim, SIGN).unwrap();
    backend.create_key(&other, SIGN).unwrap();
    let (before, path) = (mac(&backend), file_of(folder, "victim"));
    drop(backend);
    let good = fs::read(&path).unwrap();
    let flipped = (0..good.len()).map(|at| {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        (format!("byte {at} changed"), bad)
    });
    let cut = (0..good.len()).map(|len| (format!("cut to {len} bytes"), good[..len].to_vec()));
    let longer = [("a byte too long".to_owned(), [&good[..], &[0]].concat())];
    for (how, bad) in flipped.chain(cut).chain(longer) {
        fs::write(&path, &bad).unwrap();
        let backend = open();
        let error = backend.kind(&victim).err().unwrap_or_else(|| panic!("{how}: not noticed"));
        let Some(error) = error.cause::<StoreError>() else { panic!("{how}: {error}") };
        // Where the file is afterwards: what is damaged is moved away, what somebody else
        // may read stays.
        let kept = match error {
            StoreError::Damaged { id, set_aside } => {
                assert_eq!(*id, victim);
                assert_eq!(backend.kind(&victim).unwrap(), None, "{how}");
                set_aside
            }
            StoreError::Version { path, .. } | StoreError::OtherStoreKey { path } => path,
            error => panic!("{how}: {error}"),
        };
        assert_eq!(fs::read(kept).unwrap(), bad, "{how}");
        fs::remove_file(kept).unwrap();
        assert_eq!(mac(&backend), before, "{how}: the other key");
    }
    fs::write(&path, &good).unwrap();
    assert!(open().kind(&victim).unwrap().is_some());
}

#[test]
fn each_damage_to_a_key_file_is_noticed_and_concerns_no_other_key() {
    let folder = tempfile::tempdir().unwrap();
    each_damage_is_noticed(&folder.path().join("keys"), || crate::software(folder.path()));
}

#[test]
fn each_damage_to_a_wrapped_key_of_a_tpm_is_noticed_and_concerns_no_other_key() {
    if crate::tokens::skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let tpm = SoftwareTpm::start(&folder.path().join("tpm"));
    let keys = folder.path().join("keys");
    each_damage_is_noticed(&keys, || crate::in_tpm(&keys, &tpm));
}
