//! The PKCS#11 backend on real tokens: what other programs see of its keys, what it does
//! when the token goes away, and that it never locks one.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

#[path = "../../tpm/tests/parts/mod.rs"]
mod parts;
mod tokens;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use edgekeep_core::id::KeyId;
use edgekeep_hsm::pkcs11::doctor::{self, Verdict};
use edgekeep_hsm::pkcs11::{Pkcs11Backend, Pkcs11Settings, TokenError};
use edgekeep_hsm::uri::ObjectAttributes;
use edgekeep_hsm::{
    KeyBackend, KeyError, KeyKind, PairAlgorithm, PublicParameter, PublicValue, RsaPadding,
    SymmetricKey, Usage,
};
use tokens::{
    LABEL, SOFTHSM, TPM2_PKCS11, Token, USER_PIN, ec_public_key, in_child, library,
    openssl_verifies, with_token,
};

const SIGN: Usage = Usage { derive_or_sign: true, encrypt: false };
const SPY: &[&str] =
    &["/usr/lib/x86_64-linux-gnu/pkcs11-spy.so", "/usr/lib/aarch64-linux-gnu/pkcs11-spy.so"];

fn id(text: &str) -> KeyId {
    text.parse().unwrap()
}

fn public(backend: &dyn KeyBackend, key: &str) -> Vec<u8> {
    let bytes = |parameter| match backend.public_parameter(&id(key), parameter) {
        Ok(PublicValue::Bytes(bytes)) => bytes,
        other => panic!("{key}: {other:?}"),
    };
    ec_public_key(&bytes(PublicParameter::EcCurveOid), &bytes(PublicParameter::EcPointUncompressed))
}

fn mac(backend: &dyn KeyBackend, key: &str) -> [u8; 32] {
    backend.hmac_sha256(SymmetricKey::Stored(&id(key)), b"m").unwrap()
}

fn token_error<T>(result: Result<T, KeyError>) -> TokenError {
    match result {
        Err(KeyError::Backend { source, .. }) => *source.downcast().expect("a token's error"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("was done"),
    }
}

/// Another user of the library in this process.
struct Other {
    pkcs11: Pkcs11,
}

impl Other {
    fn new(library: &Path) -> Self {
        let pkcs11 = Pkcs11::new(library).unwrap();
        // Initialized already or not: both will do.
        let _ = pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
        Self { pkcs11 }
    }

    fn slot(&self) -> Slot {
        let slots = self.pkcs11.get_slots_with_token().unwrap();
        slots
            .into_iter()
            .find(|slot| self.pkcs11.get_token_info(*slot).unwrap().label() == LABEL)
            .unwrap()
    }

    fn session(&self) -> Session {
        let session = self.pkcs11.open_rw_session(self.slot()).unwrap();
        // As above.
        let _ = session.login(UserType::User, Some(&AuthPin::new(USER_PIN.into())));
        session
    }

    fn finalize(&self) {
        self.pkcs11.clone().finalize().unwrap();
    }
}

fn object(session: &Session, class: ObjectClass, label: &str) -> ObjectHandle {
    let template = [Attribute::Class(class), Attribute::Label(label.as_bytes().to_vec())];
    let found = session.find_objects(&template).unwrap();
    assert_eq!(found.len(), 1, "{label}");
    found[0]
}

/// Both directions: keys of ours used by `pkcs11-tool`, and a key that it made used by
/// us.
fn keys_are_shared_with_pkcs11_tool(test: &str, make: fn() -> Token, paths: &[&str]) {
    if let Some(folder) = in_child() {
        let backend = tokens::open(&library(paths));
        backend.create_key_pair(&id("ours"), &[PairAlgorithm::EcP256]).unwrap();
        fs::write(folder.join("ours.der"), public(&backend, "ours")).unwrap();
        assert_eq!(backend.kind(&id("theirs")).unwrap(), Some(KeyKind::Pair));
        let digest = [0x3c; 32];
        let signature = backend.sign_ecdsa(&id("theirs"), &digest).unwrap();
        assert!(openssl_verifies(&public(&backend, "theirs"), &digest, &signature, &[]));
        backend.delete(&id("theirs-deleted"), KeyKind::Pair).unwrap();
        return;
    }
    let token = make();
    for label in ["theirs", "theirs-deleted"] {
        let made = ["--keypairgen", "--key-type", "EC:prime256v1", "--label", label, "--id"];
        token.pkcs11_tool(&[&made[..], &[if label == "theirs" { "0a" } else { "0b" }]].concat());
    }
    token.run_child(test);
    let objects = token.pkcs11_tool(&["--list-objects"]);
    assert!(objects.contains("theirs") && !objects.contains("theirs-deleted"), "{objects}");
    let private = token.pkcs11_tool(&["--list-objects", "--type", "privkey"]);
    assert!(private.contains("label:      ours"), "{private}");
    assert!(
        private.contains("never extractable") && private.contains("always sensitive"),
        "{private}"
    );
    let path = |name: &str| token.folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("digest"), [0x77; 32]).unwrap();
    // Keys to sign with are chosen by their CKA_ID.
    let (_, ours) = private.split_once("label:      ours").unwrap();
    let number = ours.lines().find_map(|line| line.trim().strip_prefix("ID:")).unwrap().trim();
    let sign = ["--sign", "--mechanism", "ECDSA", "--id", number, "--signature-format", "openssl"];
    token.pkcs11_tool(
        &[&sign[..], &["--input-file", &path("digest"), "--output-file", &path("signature")]]
            .concat(),
    );
    let (key, signature) =
        (fs::read(path("ours.der")).unwrap(), fs::read(path("signature")).unwrap());
    assert!(openssl_verifies(&key, &[0x77; 32], &signature, &[]));
}

#[test]
fn keys_on_softhsm_are_shared_with_pkcs11_tool() {
    if tokens::skip() {
        return;
    }
    keys_are_shared_with_pkcs11_tool(
        "keys_on_softhsm_are_shared_with_pkcs11_tool",
        Token::softhsm,
        SOFTHSM,
    );
}

#[test]
fn keys_on_libtpm2_pkcs11_are_shared_with_pkcs11_tool() {
    if tokens::skip() {
        return;
    }
    let test = "keys_on_libtpm2_pkcs11_are_shared_with_pkcs11_tool";
    keys_are_shared_with_pkcs11_tool(test, Token::tpm2_pkcs11, TPM2_PKCS11);
}

#[test]
fn signatures_of_ours_are_verified_by_pkcs11_tool_with_our_key_on_the_token() {
    if tokens::skip() {
        return;
    }
    let test = "signatures_of_ours_are_verified_by_pkcs11_tool_with_our_key_on_the_token";
    if let Some(folder) = in_child() {
        let backend = tokens::open(&library(SOFTHSM));
        backend.create_key_pair(&id("rsa"), &[PairAlgorithm::Rsa2048]).unwrap();
        let signature =
            backend.rsa_private_operation(&id("rsa"), RsaPadding::Pkcs1, b"any block").unwrap();
        fs::write(folder.join("signature"), signature).unwrap();
        return;
    }
    let token = Token::softhsm();
    token.run_child(test);
    let path = |name: &str| token.folder.path().join(name).to_str().unwrap().to_owned();
    let verify = |block: &[u8]| {
        fs::write(path("block"), block).unwrap();
        let files = ["--input-file", &path("block"), "--signature-file", &path("signature")];
        let text = token.pkcs11_tool(
            &[&["--verify", "--mechanism", "RSA-PKCS", "--label", "rsa"][..], &files].concat(),
        );
        text.contains("Signature is valid")
    };
    assert!(verify(b"any block"));
    assert!(!verify(b"another block"));
}

/// A SoftHSM token with a spy before it.
fn spied_softhsm() -> Token {
    let mut token = Token::softhsm();
    token.environment.push(("PKCS11SPY", token.library.to_str().unwrap().to_owned()));
    token
        .environment
        .push(("PKCS11SPY_OUTPUT", token.folder.path().join("log").to_str().unwrap().to_owned()));
    token
}

/// The calls that a spy between us and the token wrote down.
fn calls(log: &Path, function: &str) -> usize {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .filter(|line| line.split_once(": ").is_some_and(|(_, name)| name.trim() == function))
        .count()
}

#[test]
fn a_wrong_pin_is_sent_to_the_token_once_and_a_corrected_one_works_without_restart() {
    if tokens::skip() {
        return;
    }
    let test = "a_wrong_pin_is_sent_to_the_token_once_and_a_corrected_one_works_without_restart";
    let Some(folder) = in_child() else { return spied_softhsm().run_child(test) };
    let (log, pin) = (folder.join("log"), folder.join("pin"));
    fs::write(&pin, "9999\n").unwrap();
    let settings = || Pkcs11Settings {
        library: Some(library(SPY)),
        ..Pkcs11Settings::new(tokens::uri(&format!("?pin-source=file:{}", pin.display())))
    };
    let backend = Pkcs11Backend::open(settings()).unwrap();
    for _ in 0..4 {
        let error = token_error(backend.create_key(&id("k"), SIGN));
        assert!(
            matches!(&error, TokenError::PinRefused { code, .. } if code == "CKR_PIN_INCORRECT"),
            "{error}"
        );
        assert!(error.to_string().contains("correct the PIN in the configuration"), "{error}");
    }
    // Another backend of the process does not try it either.
    let second = Pkcs11Backend::open(settings()).unwrap();
    assert!(matches!(token_error(second.kind(&id("k"))), TokenError::PinRefused { .. }));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                assert!(matches!(
                    token_error(backend.kind(&id("k"))),
                    TokenError::PinRefused { .. }
                ));
            });
        }
    });
    assert_eq!(calls(&log, "C_Login"), 1, "{}", fs::read_to_string(&log).unwrap());
    fs::write(&pin, format!("{USER_PIN}\n")).unwrap();
    backend.create_key(&id("k"), SIGN).unwrap();
    assert_eq!(mac(&backend, "k"), mac(&second, "k"));
    assert_eq!(calls(&log, "C_Initialize"), 1);
}

#[test]
fn a_missing_pin_is_not_guessed() {
    if tokens::skip() {
        return;
    }
    with_token("a_missing_pin_is_not_guessed", Token::softhsm, |folder| {
        let open = |rest: &str| {
            let settings = Pkcs11Settings {
                library: Some(library(SOFTHSM)),
                ..Pkcs11Settings::new(tokens::uri(rest))
            };
            Pkcs11Backend::open(settings).unwrap()
        };
        let error = token_error(open("").connect());
        assert!(matches!(error, TokenError::PinMissing { .. }), "{error}");
        let gone = folder.join("gone");
        let error = token_error(open(&format!("?pin-source=file:{}", gone.display())).connect());
        assert!(
            matches!(&error, TokenError::PinUnreadable { path, .. } if *path == gone),
            "{error}"
        );
        // An ordinary error text never has the PIN in it.
        let error = token_error(open("?pin-value=hunter2").connect());
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    });
}

#[test]
fn the_pin_can_be_a_systemd_credential() {
    if tokens::skip() {
        return;
    }
    let test = "the_pin_can_be_a_systemd_credential";
    if in_child().is_none() {
        let mut token = Token::softhsm();
        fs::write(token.folder.path().join("token-pin"), USER_PIN).unwrap();
        token
            .environment
            .push(("CREDENTIALS_DIRECTORY", token.folder.path().to_str().unwrap().to_owned()));
        return token.run_child(test);
    }
    let uri = tokens::uri("?pin-source=credential:token-pin");
    let settings = Pkcs11Settings { library: Some(library(SOFTHSM)), ..Pkcs11Settings::new(uri) };
    Pkcs11Backend::open(settings).unwrap().connect().unwrap();
}

#[test]
fn a_logout_or_an_ended_library_behind_our_back_is_recovered_from() {
    if tokens::skip() {
        return;
    }
    with_token(
        "a_logout_or_an_ended_library_behind_our_back_is_recovered_from",
        Token::softhsm,
        |_| {
            let path = library(SOFTHSM);
            let backend = tokens::open(&path);
            backend.create_key(&id("k"), SIGN).unwrap();
            backend.create_key_pair(&id("p"), &[PairAlgorithm::EcP256]).unwrap();
            let (before, key) = (mac(&backend, "k"), public(&backend, "p"));
            let other = Other::new(&path);
            let check = |event: &str| {
                assert_eq!(mac(&backend, "k"), before, "{event}");
                let signature = backend.sign_ecdsa(&id("p"), &[7; 32]).unwrap();
                assert!(openssl_verifies(&key, &[7; 32], &signature, &[]), "{event}");
            };
            other.session().logout().unwrap();
            // Objects of a token that nobody is logged in to are not refused but
            // invisible.
            assert_eq!(backend.kind(&id("k")).unwrap(), Some(KeyKind::Symmetric));
            check("logged out");
            other.session().logout().unwrap();
            check("logged out, with remembered keys");
            other.finalize();
            check("finalized");
            other.finalize();
            let other = Other::new(&path);
            check("finalized and initialized again: our handles are somebody else's");
            let taken: Vec<Session> = (0..4).map(|_| other.session()).collect();
            check("with others' sessions");
            assert!(taken.iter().all(|session| session.get_session_info().is_ok()));
        },
    );
}

#[test]
fn a_key_replaced_or_deleted_by_another_program_is_noticed() {
    if tokens::skip() {
        return;
    }
    with_token("a_key_replaced_or_deleted_by_another_program_is_noticed", Token::softhsm, |_| {
        let path = library(SOFTHSM);
        let (backend, other) = (tokens::open(&path), tokens::open(&path));
        backend.import_key(&id("k"), vec![1; 32].into(), SIGN).unwrap();
        let before = mac(&backend, "k");
        assert_eq!(mac(&other, "k"), before);
        other.import_key(&id("k"), vec![2; 32].into(), SIGN).unwrap();
        assert_ne!(mac(&backend, "k"), before);
        assert_eq!(mac(&backend, "k"), mac(&other, "k"));
        other.delete(&id("k"), KeyKind::Symmetric).unwrap();
        assert!(matches!(
            backend.hmac_sha256(SymmetricKey::Stored(&id("k")), b"m"),
            Err(KeyError::NotFound { .. })
        ));
    });
}

#[test]
fn a_token_that_is_not_there_is_named_and_used_when_it_is_back() {
    if tokens::skip() {
        return;
    }
    with_token(
        "a_token_that_is_not_there_is_named_and_used_when_it_is_back",
        Token::softhsm,
        |folder| {
            let path = library(SOFTHSM);
            let backend = tokens::open(&path);
            backend.create_key(&id("k"), SIGN).unwrap();
            let before = mac(&backend, "k");
            // Out: SoftHSM shows it only to who looks anew.
            fs::rename(folder.join("tokens"), folder.join("away")).unwrap();
            fs::create_dir(folder.join("tokens")).unwrap();
            Other::new(&path).finalize();
            for _ in 0..3 {
                let error = token_error(backend.hmac_sha256(SymmetricKey::Stored(&id("k")), b"m"));
                assert!(matches!(error, TokenError::Absent { .. }), "{error}");
                assert!(error.to_string().contains("plug it in"), "{error}");
            }
            // And back in.
            fs::remove_dir_all(folder.join("tokens")).unwrap();
            fs::rename(folder.join("away"), folder.join("tokens")).unwrap();
            assert_eq!(mac(&backend, "k"), before);
        },
    );
}

#[test]
fn a_token_that_stays_away_does_not_disturb_the_others_of_its_library() {
    if tokens::skip() {
        return;
    }
    let test = "a_token_that_stays_away_does_not_disturb_the_others_of_its_library";
    let Some(folder) = in_child() else { return spied_softhsm().run_child(test) };
    let there = Pkcs11Backend::open(tokens::settings(&library(SPY))).unwrap();
    there.create_key(&id("k"), SIGN).unwrap();
    let mut settings = tokens::settings(&library(SPY));
    settings.uri.token.label = Some("away".to_owned());
    let away = Pkcs11Backend::open(settings).unwrap();
    for _ in 0..20 {
        assert!(matches!(token_error(away.kind(&id("k"))), TokenError::Absent { .. }));
        mac(&there, "k");
    }
    let log = folder.join("log");
    assert!(calls(&log, "C_Finalize") <= 1, "{}", calls(&log, "C_Finalize"));
    assert!(calls(&log, "C_Login") <= 2, "{}", calls(&log, "C_Login"));
}

#[test]
fn a_tpm_behind_pkcs11_that_was_pulled_out_is_used_when_it_is_back() {
    if tokens::skip() {
        return;
    }
    let test = "a_tpm_behind_pkcs11_that_was_pulled_out_is_used_when_it_is_back";
    let Some(folder) = in_child() else {
        let mut token = Token::bare_tpm2_pkcs11();
        let tpm = token.tpm.as_mut().unwrap();
        tpm.stop();
        let port = tpm.port.to_string();
        token.environment.push(("EDGEKEEP_TEST_PORT", port));
        return token.run_child(test);
    };
    let port = std::env::var("EDGEKEEP_TEST_PORT").unwrap().parse().unwrap();
    let mut tpm = tokens::SoftwareTpm::start_at(&folder.join("tpm"), port);
    let backend = tokens::open(&library(TPM2_PKCS11));
    backend.create_key_pair(&id("p"), &[PairAlgorithm::EcP256]).unwrap();
    let key = public(&backend, "p");
    // Once only: a TPM that loses its power without warning counts that as a wrong
    // authorization.
    tpm.stop();
    for _ in 0..3 {
        let error = token_error(backend.sign_ecdsa(&id("p"), &[7; 32]));
        assert!(!matches!(error, TokenError::PinRefused { .. }), "{error}");
    }
    tpm.restart();
    let signature = backend.sign_ecdsa(&id("p"), &[7; 32]).unwrap();
    assert!(openssl_verifies(&key, &[7; 32], &signature, &[]));
}

/// Stops a move after each of its steps, and then uses, moves onto and deletes what there
/// is.
#[test]
fn a_move_that_was_cut_off_anywhere_has_happened_and_nothing_earlier_comes_back() {
    if tokens::skip() {
        return;
    }
    with_token(
        "a_move_that_was_cut_off_anywhere_has_happened_and_nothing_earlier_comes_back",
        Token::softhsm,
        |_| {
            let path = library(SOFTHSM);
            for steps in 1..=4 {
                let backend = tokens::open(&path);
                backend.create_key_pair(&id("ca"), &[PairAlgorithm::EcP256]).unwrap();
                backend.create_key_pair(&id("next"), &[PairAlgorithm::EcP256]).unwrap();
                let (old, new) = (public(&backend, "ca"), public(&backend, "next"));
                let session = Other::new(&path).session();
                let (private, public_half) = (
                    object(&session, ObjectClass::PRIVATE_KEY, "next"),
                    object(&session, ObjectClass::PUBLIC_KEY, "next"),
                );
                let earlier = [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY]
                    .map(|class| object(&session, class, "ca"));
                let Attribute::Id(mut mark) =
                    session.get_attributes(private, &[AttributeType::Id]).unwrap().remove(0)
                else {
                    panic!("no id");
                };
                // The number of the later one: 2.
                *mark.last_mut().unwrap() += 1;
                let change = [Attribute::Label(b"ca".to_vec()), Attribute::Id(mark)];
                let done: [&dyn Fn(); 4] = [
                    &|| session.update_attributes(private, &change).unwrap(),
                    &|| session.update_attributes(public_half, &change).unwrap(),
                    &|| session.destroy_object(earlier[0]).unwrap(),
                    &|| session.destroy_object(earlier[1]).unwrap(),
                ];
                done[..steps].iter().for_each(|step| step());

                let backend = tokens::open(&path);
                assert_eq!(public(&backend, "ca"), new, "after {steps} steps");
                let signature = backend.sign_ecdsa(&id("ca"), &[7; 32]).unwrap();
                assert!(openssl_verifies(&new, &[7; 32], &signature, &[]), "after {steps} steps");
                assert_eq!(backend.kind(&id("next")).unwrap(), None, "after {steps} steps");
                // The next renewal.
                backend.create_key_pair(&id("next"), &[PairAlgorithm::EcP256]).unwrap();
                let newer = public(&backend, "next");
                backend.move_key_pair(&id("next"), &id("ca")).unwrap();
                assert_eq!(public(&backend, "ca"), newer, "after {steps} steps");
                assert_ne!(newer, old);
                backend.delete(&id("ca"), KeyKind::Pair).unwrap();
                assert_eq!(backend.kind(&id("ca")).unwrap(), None, "after {steps} steps");
                let left =
                    session.find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)]).unwrap();
                assert_eq!(left.len(), 0, "after {steps} steps");
            }
        },
    );
}

#[test]
fn two_keys_of_others_with_one_name_are_not_chosen_from() {
    if tokens::skip() {
        return;
    }
    let test = "two_keys_of_others_with_one_name_are_not_chosen_from";
    if in_child().is_none() {
        let token = Token::softhsm();
        for number in ["0a", "0b"] {
            token.pkcs11_tool(&[
                "--keypairgen",
                "--key-type",
                "EC:prime256v1",
                "--label",
                "twice",
                "--id",
                number,
            ]);
        }
        return token.run_child(test);
    }
    let path = library(SOFTHSM);
    let error = token_error(tokens::open(&path).sign_ecdsa(&id("twice"), &[7; 32]));
    assert!(
        matches!(&error, TokenError::SeveralKeys { label, count: 2, .. } if label == "twice"),
        "{error}"
    );
    // Named by its id, one of them is used.
    let by_id = ObjectAttributes { id: Some(vec![0x0b]), ..ObjectAttributes::default() };
    let settings = Pkcs11Settings {
        preloaded: BTreeMap::from([(id("device-id"), by_id)]),
        ..tokens::settings(&path)
    };
    let backend = Pkcs11Backend::open(settings).unwrap();
    let signature = backend.sign_ecdsa(&id("device-id"), &[7; 32]).unwrap();
    assert!(openssl_verifies(&public(&backend, "device-id"), &[7; 32], &signature, &[]));
    for refused in [
        backend.delete(&id("device-id"), KeyKind::Pair),
        backend.move_key_pair(&id("device-id"), &id("other")),
        backend.import_key(&id("device-id"), vec![1; 32].into(), SIGN),
    ] {
        assert!(matches!(refused, Err(KeyError::Preloaded { .. })));
    }
}

#[test]
fn a_preloaded_key_is_made_under_the_name_that_it_is_given() {
    if tokens::skip() {
        return;
    }
    with_token("a_preloaded_key_is_made_under_the_name_that_it_is_given", Token::softhsm, |_| {
        let path = library(SOFTHSM);
        let named = tokens::uri(";object=press-04").object;
        let settings = Pkcs11Settings {
            preloaded: BTreeMap::from([(id("device-id"), named)]),
            ..tokens::settings(&path)
        };
        let backend = Pkcs11Backend::open(settings).unwrap();
        backend.create_key_pair(&id("device-id"), &[PairAlgorithm::EcP256]).unwrap();
        assert_eq!(public(&tokens::open(&path), "press-04"), public(&backend, "device-id"));
        assert_eq!(tokens::open(&path).kind(&id("device-id")).unwrap(), None);
    });
}

#[test]
fn no_more_sessions_than_the_limit_are_open_and_all_are_served() {
    if tokens::skip() {
        return;
    }
    let test = "no_more_sessions_than_the_limit_are_open_and_all_are_served";
    let Some(folder) = in_child() else { return spied_softhsm().run_child(test) };
    let log = folder.join("log");
    let settings = Pkcs11Settings { sessions: 3, ..tokens::settings(&library(SPY)) };
    let backend = Pkcs11Backend::open(settings).unwrap();
    backend.create_key(&id("k"), SIGN).unwrap();
    let expected = mac(&backend, "k");
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(mac(&backend, "k"), expected)));
        }
    });
    let opened = calls(&log, "C_OpenSession");
    assert!((1..=3).contains(&opened), "{opened}");
    assert_eq!(calls(&log, "C_CloseSession"), 0);
    assert_eq!(calls(&log, "C_Login"), 1);
    drop(backend);
    assert_eq!(calls(&log, "C_CloseSession"), opened);
}

#[test]
fn two_tokens_of_one_library_are_told_apart_by_label_serial_and_slot() {
    if tokens::skip() {
        return;
    }
    let test = "two_tokens_of_one_library_are_told_apart_by_label_serial_and_slot";
    if in_child().is_none() {
        let token = Token::softhsm();
        token.initialize_softhsm("second");
        token.initialize_softhsm("second");
        return token.run_child(test);
    }
    let path = library(SOFTHSM);
    let other = Other::new(&path);
    let at = |text: String| {
        let Ok(edgekeep_hsm::uri::KeyUri::Pkcs11(uri)) = text.parse() else { panic!("{text}") };
        Pkcs11Backend::open(Pkcs11Settings {
            library: Some(path.clone()),
            ..Pkcs11Settings::new(*uri)
        })
        .unwrap()
    };
    let pin = format!("?pin-value={USER_PIN}");
    let first = tokens::open(&path);
    first.create_key(&id("k"), SIGN).unwrap();
    let info = other.pkcs11.get_token_info(other.slot()).unwrap();
    let by_serial = at(format!("pkcs11:serial={}{pin}", info.serial_number()));
    let by_slot = at(format!("pkcs11:slot-id={}{pin}", other.slot().id()));
    assert_eq!(mac(&by_serial, "k"), mac(&first, "k"));
    assert_eq!(mac(&by_slot, "k"), mac(&first, "k"));
    let error = token_error(at(format!("pkcs11:token=second{pin}")).connect());
    assert!(matches!(error, TokenError::SeveralTokens { .. }), "{error}");
    assert!(error.to_string().contains("add serial="), "{error}");
    let error = token_error(at(format!("pkcs11:{pin}")).connect());
    assert!(matches!(error, TokenError::Unspecific { .. }), "{error}");
    let error = token_error(at(format!("pkcs11:token=third{pin}")).connect());
    let TokenError::Absent { found, .. } = &error else { panic!("{error}") };
    assert!(found.iter().any(|token| token.contains("\"edge token\"")), "{error}");
}

#[test]
fn the_doctor_finds_a_good_token_good_and_leaves_nothing_on_it() {
    if tokens::skip() {
        return;
    }
    let test = "the_doctor_finds_a_good_token_good_and_leaves_nothing_on_it";
    if in_child().is_none() {
        let token = Token::softhsm();
        token.run_child(test);
        assert!(!token.pkcs11_tool(&["--list-objects"]).contains("label"));
        return;
    }
    let findings = doctor::examine(
        Some(&library(SOFTHSM)),
        Some(&tokens::uri(&format!("?pin-value={USER_PIN}"))),
    );
    let bad: Vec<_> = findings.iter().filter(|finding| finding.verdict == Verdict::Bad).collect();
    assert!(bad.is_empty(), "{bad:?}");
    let text = serde_json::to_string(&findings).unwrap();
    assert!(!text.contains(USER_PIN) || !text.contains("pin-value"), "{text}");
    for made in [
        "EC P-256 key pair: made",
        "RSA-2048 key pair: made",
        "HMAC-SHA256 key: made",
        "AES-256-GCM key: made",
    ] {
        assert!(text.contains(made), "{made} is not in {text}");
    }
    // That the PIN stands in the configuration is told.
    assert!(
        findings
            .iter()
            .any(|finding| finding.check == "PIN" && finding.verdict == Verdict::Warning)
    );
}

#[test]
fn the_doctor_tells_a_wrong_pin_a_missing_store_and_what_a_tpm_does_not_have() {
    if tokens::skip() {
        return;
    }
    let test = "the_doctor_tells_a_wrong_pin_a_missing_store_and_what_a_tpm_does_not_have";
    let Some(folder) = in_child() else {
        let token = Token::softhsm();
        token.run_child(test);
        return Token::tpm2_pkcs11().run_child(test);
    };
    if std::env::var_os("TPM2_PKCS11_STORE").is_some() {
        let uri = tokens::uri(&format!("?pin-value={USER_PIN}"));
        let findings = doctor::examine(Some(&library(TPM2_PKCS11)), Some(&uri));
        let missing = findings.iter().find(|finding| finding.check == "mechanisms").unwrap();
        assert!(missing.text.contains("CKM_AES_GCM"), "{missing:?}");
        assert!(findings.iter().all(|finding| finding.verdict != Verdict::Bad), "{findings:?}");
        assert!(findings.iter().any(|finding| finding.text == "EC P-256 key pair: made, used"));
        assert!(
            findings.iter().any(|finding| finding
                .text
                .starts_with("AES-256-GCM key: the token does not have"))
        );
        return;
    }
    let pin = folder.join("pin");
    fs::write(&pin, "0000").unwrap();
    let uri = tokens::uri(&format!("?pin-source=file:{}", pin.display()));
    let findings = doctor::examine(Some(&library(SOFTHSM)), Some(&uri));
    let last = findings.last().unwrap();
    assert_eq!((last.check, last.verdict), ("login", Verdict::Bad));
    assert!(last.text.contains("CKR_PIN_INCORRECT"), "{last:?}");
    let readable = findings.iter().find(|finding| finding.check == "PIN").unwrap();
    assert_eq!(readable.fix.as_deref(), Some(format!("chmod 0400 {}", pin.display()).as_str()));
    fs::remove_dir_all(folder.join("tokens")).unwrap();
    let findings = doctor::examine(Some(&library(SOFTHSM)), None);
    let rights = findings.iter().find(|finding| finding.verdict == Verdict::Bad).unwrap();
    assert_eq!(rights.check, "rights");
    assert!(rights.fix.as_deref().unwrap().starts_with("install -d -m 0770 -o "), "{rights:?}");
}

/// Measures how many times a second one thread does something.
fn per_second(mut run: impl FnMut()) -> f64 {
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < Duration::from_millis(700) {
        for _ in 0..20 {
            run();
        }
        count += 20;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

/// Compares the backend with the bare binding, in turns so that what else the machine
/// does hits both.
#[test]
#[ignore = "a measurement: run it alone, with --run-ignored only --no-capture"]
fn measured_the_backend_takes_at_most_1_3_times_the_time_of_the_bare_token() {
    if tokens::skip() {
        return;
    }
    let test = "measured_the_backend_takes_at_most_1_3_times_the_time_of_the_bare_token";
    let Some(_) = in_child() else {
        Token::softhsm().run_child(test);
        return Token::tpm2_pkcs11().run_child(test);
    };
    let on_tpm = std::env::var_os("TPM2_PKCS11_STORE").is_some();
    let path: PathBuf = library(if on_tpm { TPM2_PKCS11 } else { SOFTHSM });
    let name = if on_tpm { "libtpm2-pkcs11" } else { "SoftHSM" };
    let backend = tokens::open(&path);
    let other = Other::new(&path);
    backend.create_key_pair(&id("p"), &[PairAlgorithm::EcP256]).unwrap();
    let session = other.session();
    let private = object(&session, ObjectClass::PRIVATE_KEY, "p");
    let pair = id("p");
    let report = |what: &str, ours: &mut dyn FnMut(), bare: &mut dyn FnMut()| {
        let (mut best_ours, mut best_bare) = (0.0_f64, 0.0_f64);
        for _ in 0..4 {
            best_ours = best_ours.max(per_second(&mut *ours));
            best_bare = best_bare.max(per_second(&mut *bare));
        }
        let ratio = best_bare / best_ours;
        println!(
            "measured: {name} {what}: backend {best_ours:.0}/s, bare {best_bare:.0}/s, {ratio:.3} times the time"
        );
        assert!(ratio <= 1.3, "{what}: {ratio}");
    };
    report("ECDSA P-256", &mut || drop(backend.sign_ecdsa(&pair, &[7; 32]).unwrap()), &mut || {
        drop(session.sign(&Mechanism::Ecdsa, private, &[7; 32]).unwrap());
    });
    if on_tpm {
        return;
    }
    backend.create_key(&id("k"), SIGN).unwrap();
    let secret = object(&session, ObjectClass::SECRET_KEY, "k");
    let key = id("k");
    report(
        "HMAC-SHA256 of 64 bytes",
        &mut || _ = backend.hmac_sha256(SymmetricKey::Stored(&key), &[7; 64]).unwrap(),
        &mut || drop(session.sign(&Mechanism::Sha256Hmac, secret, &[7; 64]).unwrap()),
    );
}

/// A store key that goes into the token's care, is used, and does not come out without
/// it.
fn protects_a_store(library: &Path, folder: &Path, method: u8) {
    use edgekeep_hsm::software::{
        Protection, Sealer, Sealers, SoftwareBackend, StoreError, WrappingKey,
    };
    let store = folder.join("keys in files");
    let open = |wanted| {
        let token = tokens::open(library);
        let token = WrappingKey(&token);
        let sealers = Sealers { tpm: None, token: Some(&token as &dyn Sealer) };
        SoftwareBackend::open_protected(&store, BTreeMap::new(), wanted, sealers)
    };
    let plain = open(None).unwrap();
    plain.create_key(&id("k"), SIGN).unwrap();
    let before = mac(&plain, "k");
    drop(plain);
    let key = fs::read(Protection::File.path(&store)).unwrap();
    for wanted in [Protection::Token, Protection::File, Protection::Token] {
        assert_eq!(mac(&open(Some(wanted)).unwrap(), "k"), before);
        assert_eq!(Protection::File.path(&store).exists(), wanted == Protection::File);
    }
    let sealed = Protection::Token.path(&store);
    let content = fs::read(&sealed).unwrap();
    assert_eq!(content[8], method);
    assert!(!content.windows(32).any(|window| window == &key[8..40]));
    for at in 0..content.len() {
        // Each byte counts. A token is slow, and the tag is the same for all of what it
        // covers.
        if at % 9 == 0 || at < 10 {
            let mut changed = content.clone();
            changed[at] ^= 1;
            fs::write(&sealed, &changed).unwrap();
            let error = open(None).err().unwrap();
            assert!(matches!(error, StoreError::Unseal { .. }), "byte {at}: {error}");
        }
    }
    fs::write(&sealed, &content).unwrap();
    assert_eq!(mac(&open(None).unwrap(), "k"), before);
}

#[test]
fn a_key_on_softhsm_protects_a_store_and_does_not_leave_the_token() {
    with_token(
        "a_key_on_softhsm_protects_a_store_and_does_not_leave_the_token",
        Token::softhsm,
        |folder| {
            let library = library(SOFTHSM);
            protects_a_store(&library, &folder, 1);
            let other = Other::new(&library);
            let session = other.session();
            let made = session
                .find_objects(&[Attribute::Label(b"edgekeep-store-key-aes".to_vec())])
                .unwrap();
            let [made] = made[..] else { panic!("{made:?}") };
            let attributes = session
                .get_attributes(made, &[AttributeType::Extractable, AttributeType::Sensitive])
                .unwrap();
            assert_eq!(attributes, [Attribute::Extractable(false), Attribute::Sensitive(true)]);
            assert!(session.get_attributes(made, &[AttributeType::Value]).unwrap().is_empty());
        },
    );
}

#[test]
fn a_key_on_libtpm2_pkcs11_protects_a_store() {
    with_token("a_key_on_libtpm2_pkcs11_protects_a_store", Token::tpm2_pkcs11, |folder| {
        // Neither AES-GCM nor HMAC keys: what it signs with RSA.
        protects_a_store(&library(TPM2_PKCS11), &folder, 3);
    });
}
