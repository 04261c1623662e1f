//! One suite over every configuration of a key backend. What a backend does, it does to
//! the letter; what it does not have, it says with the typed answer, and the
//! configuration here says that it does not have it.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

#[path = "conformance/damage.rs"]
mod damage;
#[path = "../../tpm/tests/parts/mod.rs"]
mod parts;
#[path = "conformance/suite.rs"]
mod suite;
mod tokens;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use edgekeep_hsm::KeyBackend;
use edgekeep_hsm::ordered::{Keyring, PassOn, Place};
use edgekeep_hsm::software::SoftwareBackend;
use edgekeep_hsm::tpm::TpmBackend;
use edgekeep_tpm::{Tcti, Tpm, TpmOptions};
use suite::{Capability, Fixture};
use tokens::{Token, with_token};

fn software(folder: &Path) -> SoftwareBackend {
    SoftwareBackend::open(folder, BTreeMap::new()).unwrap()
}

/// A token has keys for HMAC and keys for AES; none for both.
const TOKEN_LACKS: &[Capability] = &[Capability::MixedUsage];

/// Makes one test per function of the suite.
macro_rules! each_on {
    ($_:tt $configuration:ident, $run:expr) => {
        mod $configuration {
            macro_rules! one {
                        ($_($name:ident),*) => {$_(
                            #[test]
                            fn $name() {
                                let run: fn(&str, super::suite::Test) = $run;
                                run(concat!(stringify!($configuration), "::", stringify!($name)), super::suite::$name);
                            }
                        )*};
                    }
            crate::suite::for_each!(one);
        }
    };
}

each_on!($ in_files, |_, test| {
    let folder = tempfile::tempdir().unwrap();
    test(&super::Fixture::new(&|| Box::new(super::software(folder.path())), &[]));
});

each_on!($ on_softhsm, |name, test| {
    super::with_token(name, super::Token::softhsm, |_| {
        let library = super::tokens::library(super::tokens::SOFTHSM);
        test(&super::Fixture::new(&|| Box::new(super::tokens::open(&library)), super::TOKEN_LACKS));
    });
});

each_on!($ on_softhsm_then_in_files, |name, test| {
    super::with_token(name, super::Token::softhsm, |folder| {
        let library = super::tokens::library(super::tokens::SOFTHSM);
        let open = || super::token_then_files(&library, &folder);
        test(&super::Fixture::new(&|| Box::new(open()), &[]));
    });
});

/// The order of existing configurations: the token, and symmetric keys that it cannot
/// make in files.
fn token_then_files(library: &Path, folder: &Path) -> Keyring {
    let token = Place { backend: Arc::new(tokens::open(library)), pass_on: PassOn::SymmetricKeys };
    let files =
        Place { backend: Arc::new(software(&folder.join("files"))), pass_on: PassOn::Nothing };
    Keyring::new(vec![token, files], BTreeMap::new()).unwrap()
}

/// In one test, because making such a token takes seconds.
#[test]
fn the_suite_passes_on_libtpm2_pkcs11() {
    with_token("the_suite_passes_on_libtpm2_pkcs11", Token::tpm2_pkcs11, |_| {
        let library = tokens::library(tokens::TPM2_PKCS11);
        let open = || -> Box<dyn KeyBackend> { Box::new(tokens::open(&library)) };
        for (name, test) in suite::all() {
            println!("{name}");
            test(&Fixture::new(&open, TPM2_PKCS11_LACKS));
        }
    });
}

/// It makes no keys for HMAC, takes none in, and has AES without GCM.
const TPM2_PKCS11_LACKS: &[Capability] = &[
    Capability::Rsa4096Pair,
    Capability::HmacKey,
    Capability::HmacImport,
    Capability::AesKey,
    Capability::AesImport,
    Capability::MixedUsage,
];

/// Opens the TPM backend with its state in a folder and with this TPM.
fn in_tpm(folder: &Path, tpm: &tokens::SoftwareTpm) -> TpmBackend {
    let tcti = Tcti::SwtpmTcp { host: "127.0.0.1".to_owned(), port: tpm.port };
    TpmBackend::open(Tpm::open(TpmOptions::new(tcti)).unwrap(), folder).unwrap()
}

each_on!($ in_tpm, |_, test| {
    if super::tokens::skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let tpm = super::tokens::SoftwareTpm::start(&folder.path().join("tpm"));
    let open = || super::in_tpm(&folder.path().join("keys"), &tpm);
    test(&super::Fixture::new(&|| Box::new(open()), super::TPM_LACKS));
});

/// TPMs encrypt nothing for others, and have seldom RSA with 4096 bits.
const TPM_LACKS: &[Capability] =
    &[Capability::AesKey, Capability::AesImport, Capability::MixedUsage, Capability::Rsa4096Pair];
