//! Persistent objects, sealing, quotes, leaks, and a TPM that fails.

use std::fs;

use edgekeep_base::secret::SecretBytes;
use edgekeep_tpm::{
    AuthValue, Authorized, PcrSelection, RootAlgorithm, SealTo, Tcti, Tpm, TpmError, TpmOptions,
};

use crate::swtpm::{Swtpm, TRANSIENT, assert_no_leak, loaded};

fn secret(text: &str) -> SecretBytes {
    text.as_bytes().into()
}

#[test]
fn the_storage_root_is_made_once_and_the_tools_see_it() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    let first = swtpm.open().provisioning_keys().unwrap();
    let tpm = swtpm.open();
    assert_eq!(tpm.provisioning_keys().unwrap(), first);
    assert_eq!(tpm.handles(0x8100_0000).unwrap(), [0x8100_0001, 0x8101_0001]);
    drop(tpm);
    swtpm.tool_ok(&folder, "tpm2_readpublic", &["-c", "0x81000001", "-o", "srk.tpm2b"]);
    swtpm.tool_ok(&folder, "tpm2_readpublic", &["-c", "0x81010001", "-o", "ek.tpm2b"]);
    assert_eq!(fs::read(folder.join("srk.tpm2b")).unwrap(), first.storage_root_key);
    assert_eq!(fs::read(folder.join("ek.tpm2b")).unwrap(), first.endorsement_key);
    // The same key as the tools make from TCG's template: it is a function of the TPM's
    // seed.
    swtpm.tool_ok(&folder, "tpm2_createek", &["-G", "rsa", "-c", "ek.ctx", "-u", "again.tpm2b"]);
    assert_eq!(fs::read(folder.join("again.tpm2b")).unwrap(), first.endorsement_key);
}

#[test]
fn a_storage_root_of_another_program_is_used_as_it_is() {
    if crate::swtpm::skip() {
        return;
    }
    for algorithm in ["ecc", "rsa"] {
        let swtpm = Swtpm::start();
        let folder = swtpm.folder("tools");
        swtpm.tool_ok(
            &folder,
            "tpm2_createprimary",
            &["-C", "o", "-G", algorithm, "-c", "srk.ctx"],
        );
        swtpm.tool_ok(&folder, "tpm2_evictcontrol", &["-C", "o", "-c", "srk.ctx", "0x81000001"]);
        let before = swtpm.tool_ok(&folder, "tpm2_readpublic", &["-c", "0x81000001"]);
        swtpm.tool_ok(&folder, "tpm2_flushcontext", &["-t"]);
        let tpm = swtpm.open();
        let sealed = tpm.seal(&secret("s"), &SealTo::Tpm).unwrap();
        assert_eq!(tpm.unseal(&sealed, &AuthValue::empty()).unwrap().expose(), b"s");
        assert_no_leak(&tpm, algorithm);
        drop(tpm);
        assert_eq!(swtpm.tool_ok(&folder, "tpm2_readpublic", &["-c", "0x81000001"]), before);
    }
}

#[test]
fn a_root_can_be_an_rsa_key() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tpm = Tpm::open(TpmOptions { root_algorithm: RootAlgorithm::Rsa2048, ..swtpm.options() })
        .unwrap();
    let sealed = tpm.seal(&secret("s"), &SealTo::Tpm).unwrap();
    assert_eq!(tpm.unseal(&sealed, &AuthValue::empty()).unwrap().expose(), b"s");
    assert_no_leak(&tpm, "an RSA root");
    drop(tpm);
    let shown = swtpm.tool_ok(&swtpm.folder("tools"), "tpm2_readpublic", &["-c", "0x81000001"]);
    assert!(shown.contains("rsa"), "{shown}");
}

#[test]
fn a_handle_that_something_else_has_is_left_alone_and_named() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    swtpm.tool_ok(&folder, "tpm2_createprimary", &["-C", "o", "-G", "ecc", "-c", "srk.ctx"]);
    swtpm.tool_ok(&folder, "tpm2_create", &["-C", "srk.ctx", "-G", "ecc:ecdsa", "-c", "key.ctx"]);
    swtpm.tool_ok(&folder, "tpm2_flushcontext", &["-t"]);
    swtpm.tool_ok(&folder, "tpm2_evictcontrol", &["-C", "o", "-c", "key.ctx", "0x81000001"]);
    swtpm.tool_ok(&folder, "tpm2_flushcontext", &["-t"]);
    let tpm = swtpm.open();
    let error = tpm.seal(&secret("s"), &SealTo::Tpm).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, TpmError::HandleTaken { handle: 0x8100_0001, .. }), "{text}");
    assert!(
        text.contains("a P-256 key") && text.contains("tpm2_evictcontrol -C o -c 0x81000001"),
        "{text}"
    );
    assert_eq!(tpm.handles(0x8100_0000).unwrap(), [0x8100_0001]);
    assert_no_leak(&tpm, "a taken handle");
}

#[test]
fn a_wrong_owner_auth_value_is_told_as_such() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    swtpm.tool_ok(&swtpm.folder("tools"), "tpm2_changeauth", &["-c", "o", "owner secret"]);
    for wrong in [&b""[..], b"other"] {
        let options = TpmOptions { owner: AuthValue::new(wrong).unwrap(), ..swtpm.options() };
        let tpm = Tpm::open(options).unwrap();
        let error = tpm.seal(&secret("s"), &SealTo::Tpm).unwrap_err();
        assert!(matches!(error, TpmError::AuthFailed { of: Authorized::Owner, .. }), "{error}");
        assert_no_leak(&tpm, "a wrong owner auth value");
        assert!(loaded(&tpm).is_empty());
    }
    // As other programs write it into their configuration: with a zero at the end, which
    // is none of it.
    let owner = AuthValue::new(b"owner secret\0").unwrap();
    let tpm = Tpm::open(TpmOptions { owner, ..swtpm.options() }).unwrap();
    tpm.seal(&secret("s"), &SealTo::Tpm).unwrap();
    drop(tpm);
    // Once the root is there, its use does not need the owner.
    let sealed = swtpm.open().seal(&secret("s"), &SealTo::Tpm);
    assert!(sealed.is_ok(), "{:?}", sealed.err());
}

#[test]
fn what_is_sealed_comes_back_also_after_a_power_cut() {
    if crate::swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let tpm = swtpm.open();
    let longest = "x".repeat(128);
    let sealed: Vec<_> =
        ["s", &longest].map(|text| tpm.seal(&secret(text), &SealTo::Tpm).unwrap()).into();
    assert!(matches!(tpm.seal(&secret(""), &SealTo::Tpm), Err(TpmError::Empty { .. })));
    assert!(matches!(
        tpm.seal(&secret(&"x".repeat(129)), &SealTo::Tpm),
        Err(TpmError::TooLong { limit: 128, .. })
    ));
    swtpm.kill();
    let error = tpm.unseal(&sealed[0], &AuthValue::empty()).err().unwrap();
    assert!(matches!(error, TpmError::Unreachable { .. }), "{error}");
    swtpm.start_again();
    assert_eq!(tpm.unseal(&sealed[0], &AuthValue::empty()).unwrap().expose(), b"s");
    assert_eq!(tpm.unseal(&sealed[1], &AuthValue::empty()).unwrap().expose(), longest.as_bytes());
    assert_no_leak(&tpm, "a power cut");
}

#[test]
fn what_was_loaded_is_loaded_again_after_a_reset_that_nobody_announced() {
    if crate::swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let tpm = swtpm.open();
    let key = tpm.create_attestation_key().unwrap();
    let pcrs = PcrSelection::new(&[7]).unwrap();
    tpm.quote(&key.blob, b"n", pcrs).unwrap();
    assert_eq!(tpm.kept_handles().len(), 2, "a session and a key");
    swtpm.kill();
    swtpm.start_again();
    tpm.quote(&key.blob, b"n", pcrs).unwrap();
    assert_no_leak(&tpm, "a reset");
}

#[test]
fn a_tpm_that_lost_its_power_is_started_if_no_firmware_does() {
    if crate::swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let tpm = swtpm.open();
    let sealed = tpm.seal(&secret("s"), &SealTo::Tpm).unwrap();
    for _ in 0..2 {
        swtpm.kill();
        swtpm.power_on();
        // With the connection of before, and with a new one.
        assert_eq!(tpm.unseal(&sealed, &AuthValue::empty()).unwrap().expose(), b"s");
        assert_no_leak(&tpm, "a start");
    }
    drop(tpm);
    swtpm.kill();
    swtpm.power_on();
    assert_eq!(swtpm.open().unseal(&sealed, &AuthValue::empty()).unwrap().expose(), b"s");
}

#[test]
fn sealed_to_an_auth_value_it_needs_that_one_and_guessing_ends_in_lockout() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    swtpm.tool_ok(
        &folder,
        "tpm2_dictionarylockout",
        &["-s", "-n", "3", "-t", "1000", "-l", "1000"],
    );
    let tpm = swtpm.open();
    let right = AuthValue::new(b"right").unwrap();
    let sealed = tpm.seal(&secret("s"), &SealTo::Auth(right.clone())).unwrap();
    let free = tpm.seal(&secret("free"), &SealTo::Tpm).unwrap();
    assert_eq!(tpm.unseal(&sealed, &right).unwrap().expose(), b"s");
    let mut last = None;
    for attempt in 0..4 {
        let error = tpm.unseal(&sealed, &AuthValue::new(b"wrong").unwrap()).err().unwrap();
        assert_no_leak(&tpm, "a wrong auth value");
        if attempt == 0 {
            assert!(
                matches!(error, TpmError::AuthFailed { of: Authorized::Object, .. }),
                "{error}"
            );
        }
        last = Some(error);
    }
    let error = last.unwrap();
    assert!(matches!(error, TpmError::Lockout), "{error}");
    assert!(error.to_string().contains("tpm2_dictionarylockout --clear-lockout"));
    assert!(
        matches!(tpm.unseal(&sealed, &right), Err(TpmError::Lockout)),
        "even the right one has to wait"
    );
    assert_eq!(
        tpm.unseal(&free, &AuthValue::empty()).unwrap().expose(),
        b"free",
        "the lockout is not for this one"
    );
    drop(tpm);
    swtpm.tool_ok(&folder, "tpm2_dictionarylockout", &["-c"]);
    assert_eq!(swtpm.open().unseal(&sealed, &right).unwrap().expose(), b"s");
}

#[test]
fn sealed_to_registers_it_comes_back_only_while_they_are_the_same() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    let pcrs = PcrSelection::new(&[7, 23]).unwrap();
    let sealed = {
        let tpm = swtpm.open();
        let sealed = tpm.seal(&secret("s"), &SealTo::Pcrs(pcrs)).unwrap();
        assert_no_leak(&tpm, "sealing to PCRs");
        assert_eq!(tpm.unseal(&sealed, &AuthValue::empty()).unwrap().expose(), b"s");
        assert_no_leak(&tpm, "unsealing with PCRs");
        assert!(matches!(
            tpm.seal(&secret("s"), &SealTo::Pcrs(PcrSelection::default())),
            Err(TpmError::Empty { .. })
        ));
        sealed
    };
    let digest = format!("23:sha256={}", "ab".repeat(32));
    swtpm.tool_ok(&folder, "tpm2_pcrextend", &[&digest]);
    let tpm = swtpm.open();
    let error = tpm.unseal(&sealed, &AuthValue::empty()).err().unwrap();
    assert!(matches!(error, TpmError::PolicyFailed), "{error}");
    assert_no_leak(&tpm, "a policy that does not hold");
    drop(tpm);
    swtpm.tool_ok(&folder, "tpm2_pcrreset", &["23"]);
    assert_eq!(swtpm.open().unseal(&sealed, &AuthValue::empty()).unwrap().expose(), b"s");
}

#[test]
fn blobs_of_another_tpm_and_damaged_ones_are_told_apart() {
    if crate::swtpm::skip() {
        return;
    }
    let (one, other) = (Swtpm::start(), Swtpm::start());
    let sealed = one.open().seal(&secret("s"), &SealTo::Tpm).unwrap();
    let tpm = other.open();
    assert!(matches!(tpm.unseal(&sealed, &AuthValue::empty()), Err(TpmError::OtherRoot)));
    for at in 0..sealed.len() {
        let mut damaged = sealed.clone();
        damaged[at] ^= 1;
        assert!(
            matches!(tpm.unseal(&damaged, &AuthValue::empty()), Err(TpmError::DamagedBlob)),
            "{at}"
        );
    }
    assert_no_leak(&tpm, "blobs that are no use");
}

#[test]
fn the_tools_verify_a_quote() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    let tpm = swtpm.open();
    let key = tpm.create_attestation_key().unwrap();
    let quote = tpm.quote(&key.blob, b"nonce", PcrSelection::new(&[0, 7, 23]).unwrap()).unwrap();
    assert_no_leak(&tpm, "a quote");
    assert!(matches!(
        tpm.quote(&key.blob, &[0; 33], PcrSelection::default()),
        Err(TpmError::TooLong { .. })
    ));
    drop(tpm);
    fs::write(folder.join("key.pub"), &key.public).unwrap();
    fs::write(folder.join("quote"), &quote.attested).unwrap();
    fs::write(folder.join("signature"), &quote.signature).unwrap();
    let check = |nonce| {
        let arguments =
            ["-u", "key.pub", "-m", "quote", "-s", "signature", "-g", "sha256", "-q", nonce];
        swtpm.tool(&folder, "tpm2_checkquote", &arguments)
    };
    let good = check("6e6f6e6365");
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(!check("6e6f6e6366").status.success(), "a quote for another nonce");
}

#[test]
fn nothing_stays_loaded_when_nothing_is_to_stay() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tpm = Tpm::open(TpmOptions { keep_loaded: 0, ..swtpm.options() }).unwrap();
    let key = tpm.create_attestation_key().unwrap();
    tpm.quote(&key.blob, b"n", PcrSelection::new(&[7]).unwrap()).unwrap();
    tpm.random(100).unwrap();
    assert!(tpm.kept_handles().is_empty());
    assert!(loaded(&tpm).is_empty());
}

#[test]
fn what_is_kept_loaded_goes_at_the_end_and_on_request() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tpm = swtpm.open();
    let keys = [tpm.create_attestation_key().unwrap(), tpm.create_attestation_key().unwrap()];
    for key in keys.iter().cycle().take(6) {
        tpm.quote(&key.blob, b"n", PcrSelection::new(&[7]).unwrap()).unwrap();
        assert_eq!(tpm.handles(TRANSIENT).unwrap().len(), 1, "one at a time");
        assert_no_leak(&tpm, "a quote");
    }
    tpm.release();
    assert!(loaded(&tpm).is_empty());
    tpm.quote(&keys[0].blob, b"n", PcrSelection::new(&[7]).unwrap()).unwrap();
    drop(tpm);
    assert!(loaded(&swtpm.open()).is_empty());
}

#[test]
fn what_a_killed_program_left_loaded_is_flushed_when_its_room_is_needed() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    for number in 0..3 {
        let context = format!("{number}.ctx");
        swtpm.tool_ok(&folder, "tpm2_createprimary", &["-C", "n", "-G", "ecc", "-c", &context]);
    }
    let tpm = swtpm.open();
    assert_eq!(tpm.handles(TRANSIENT).unwrap().len(), 3, "no room is left");
    let sealed = tpm.seal(&secret("s"), &SealTo::Tpm).unwrap();
    assert_eq!(tpm.unseal(&sealed, &AuthValue::empty()).unwrap().expose(), b"s");
    assert_no_leak(&tpm, "leftovers");
}

#[test]
fn random_bytes_differ_and_have_the_length_asked_for() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tpm = swtpm.open();
    for len in [0, 1, 32, 33, 200] {
        assert_eq!(tpm.random(len).unwrap().expose().len(), len);
    }
    assert_ne!(tpm.random(32).unwrap().expose(), tpm.random(32).unwrap().expose());
    assert_no_leak(&tpm, "random bytes");
}

#[test]
fn a_tpm_that_is_not_there_is_named_with_what_to_do() {
    if crate::swtpm::skip() {
        return;
    }
    let open = |tcti: Tcti| Tpm::open(TpmOptions::new(tcti)).err().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let missing = open(Tcti::Device(folder.path().join("tpmrm0")));
    assert!(matches!(missing, TpmError::Missing { .. }), "{missing}");
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let no_device = open(Tcti::Device(file));
    assert!(matches!(no_device, TpmError::Unreachable { .. }), "{no_device}");
    let mut swtpm = Swtpm::start();
    let tcti = swtpm.tcti();
    swtpm.kill();
    let away = open(tcti);
    assert!(matches!(away, TpmError::Unreachable { .. }), "{away}");
}

#[test]
fn the_report_tells_what_the_tools_tell() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    swtpm.tool_ok(&folder, "tpm2_changeauth", &["-c", "e", "endorsement"]);
    swtpm.tool_ok(
        &folder,
        "tpm2_dictionarylockout",
        &["-s", "-n", "5", "-t", "1234", "-l", "1000"],
    );
    let tpm = swtpm.open();
    tpm.seal(&secret("s"), &SealTo::Tpm).unwrap();
    let report = tpm.report().unwrap();
    assert_no_leak(&tpm, "a report");
    assert_eq!(report.auth_set, [false, true, false]);
    assert_eq!((report.in_lockout, report.attempts_limit, report.forgiven_after), (false, 5, 1234));
    assert_eq!(report.persistent, [0x8100_0001]);
    let text = report.to_string();
    assert!(
        text.contains("IBM") && text.contains("sha256") && text.contains("0x81000001"),
        "{text}"
    );
    drop(tpm);
    let banks = swtpm.tool_ok(&folder, "tpm2_getcap", &["pcrs"]);
    assert_eq!(banks.contains("sha1: [ 0"), report.banks.contains(&4), "{banks}");
}
