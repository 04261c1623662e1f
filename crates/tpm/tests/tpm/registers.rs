//! PCRs and NV indices of type extend, with the TPM tools as foreign readers and as
//! whoever tampers with them.

use std::path::Path;

use edgekeep_tpm::{AuthValue, Authorized, NvRegister, NvRegisterState, Tpm, TpmError, TpmOptions};

use crate::swtpm::{Swtpm, assert_no_leak};

const INDEX: u32 = 0x0180_ed01;
const INDEX_TEXT: &str = "0x0180ed01";
const PCR: u8 = 13;

fn register(auth: &[u8]) -> NvRegister {
    NvRegister::new(INDEX, AuthValue::new(auth).unwrap()).unwrap()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().try_into().unwrap()
}

fn replayed(digests: &[[u8; 32]]) -> [u8; 32] {
    digests.iter().fold([0; 32], |now, digest| sha256(&[now, *digest].concat()))
}

fn tools_nv(swtpm: &Swtpm, folder: &Path) -> Vec<u8> {
    swtpm.tool_ok(folder, "tpm2_nvread", &["-C", "o", "-o", "value", INDEX_TEXT]);
    std::fs::read(folder.join("value")).unwrap()
}

fn tools_pcr(swtpm: &Swtpm, folder: &Path) -> Vec<u8> {
    swtpm.tool_ok(folder, "tpm2_pcrread", &["-o", "pcr", "sha256:13"]);
    std::fs::read(folder.join("pcr")).unwrap()
}

#[test]
fn both_registers_hold_the_replay_by_the_tools_too_and_a_reset_empties_them() {
    if crate::swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    let register = register(b"secret of the register");
    let tpm = swtpm.open();
    assert_eq!(tpm.register_state(&register).unwrap(), NvRegisterState::Absent);
    let error = tpm.extend_register(&register, &[1; 32]).unwrap_err();
    assert!(matches!(error, TpmError::NoRegister { index: INDEX }), "{error}");
    tpm.make_register(&register).unwrap();
    tpm.make_register(&register).unwrap();
    assert_eq!(tpm.register_state(&register).unwrap(), NvRegisterState::Unwritten);
    let digests = [[1; 32], [2; 32], [1; 32]];
    for digest in &digests {
        tpm.extend_register(&register, digest).unwrap();
        tpm.extend_pcr(PCR, digest).unwrap();
    }
    let value = replayed(&digests);
    assert_eq!(tpm.register_state(&register).unwrap(), NvRegisterState::Value(value));
    assert_eq!(tpm.pcr(PCR).unwrap(), Some(value));
    assert_no_leak(&tpm, "registers");
    drop(tpm);
    assert_eq!(tools_nv(&swtpm, &folder), value);
    assert_eq!(tools_pcr(&swtpm, &folder), value);
    let public = swtpm.tool_ok(&folder, "tpm2_nvreadpublic", &[INDEX_TEXT]);
    assert!(public.contains("0x2E060044") && public.contains("clear_stclear"), "{public}");
    // The owner may read it, and neither extend nor write it; nobody resets the PCR.
    std::fs::write(folder.join("digest"), [3; 32]).unwrap();
    for (tool, arguments) in [
        ("tpm2_nvextend", &["-C", "o", "-i", "digest", INDEX_TEXT][..]),
        ("tpm2_nvextend", &["-P", "guess", "-i", "digest", INDEX_TEXT]),
        ("tpm2_nvwrite", &["-C", "o", "-i", "digest", INDEX_TEXT]),
        ("tpm2_pcrreset", &["13"]),
    ] {
        assert!(!swtpm.tool(&folder, tool, arguments).status.success(), "{tool} {arguments:?}");
    }
    assert_eq!(tools_nv(&swtpm, &folder), value);
    let tpm = swtpm.open();
    let before = tpm.resets().unwrap();
    drop(tpm);
    swtpm.kill();
    swtpm.start_again();
    let tpm = swtpm.open();
    assert_ne!(tpm.resets().unwrap(), before);
    assert_eq!(tpm.register_state(&register).unwrap(), NvRegisterState::Unwritten);
    assert_eq!(tpm.pcr(PCR).unwrap(), Some([0; 32]));
}

#[test]
fn an_index_that_somebody_else_made_is_told_from_ours() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    let open = || Tpm::open(TpmOptions { keep_loaded: 0, ..swtpm.options() }).unwrap();
    let ours = register(b"ours");
    // The same attributes, another auth value: as another installation makes it.
    let theirs = register(b"theirs");
    let tpm = open();
    tpm.make_register(&theirs).unwrap();
    assert_eq!(ours.name().unwrap(), theirs.name().unwrap());
    // Also while nothing was extended into it.
    let error = tpm.register_state(&ours).unwrap_err();
    assert!(matches!(error, TpmError::AuthFailed { of: Authorized::Register, .. }), "{error}");
    let error = tpm.extend_register(&ours, &[1; 32]).unwrap_err();
    assert!(matches!(error, TpmError::AuthFailed { of: Authorized::Register, .. }), "{error}");
    tpm.extend_register(&theirs, &[1; 32]).unwrap();
    let error = tpm.register_state(&ours).unwrap_err();
    assert!(matches!(error, TpmError::AuthFailed { of: Authorized::Register, .. }), "{error}");
    assert_no_leak(&tpm, "refusals");
    drop(tpm);
    // One that the owner could write.
    swtpm.tool_ok(&folder, "tpm2_nvundefine", &["-C", "o", INDEX_TEXT]);
    let attributes = "nt=extend|ownerread|ownerwrite|authread|authwrite|no_da";
    swtpm.tool_ok(
        &folder,
        "tpm2_nvdefine",
        &["-C", "o", "-g", "sha256", "-s", "32", "-a", attributes, INDEX_TEXT],
    );
    let error = open().make_register(&ours).unwrap_err();
    assert!(matches!(error, TpmError::NotARegister { index: INDEX }), "{error}");
}

#[test]
fn a_bank_that_is_not_there_is_no_place_to_extend_into() {
    if crate::swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    swtpm.tool_ok(&folder, "tpm2_pcrallocate", &["sha1:all+sha256:none"]);
    swtpm.kill();
    swtpm.start_again();
    assert_eq!(swtpm.open().pcr(PCR).unwrap(), None);
}
