//! Counters in non-volatile memory, with the TPM tools as foreign readers and as whoever
//! tampers with them.

use std::path::Path;

use edgekeep_tpm::{AuthValue, Authorized, NvCounter, Tpm, TpmError, TpmOptions};

use crate::swtpm::{Swtpm, assert_no_leak};

const INDEX: u32 = 0x0180_ed00;
const INDEX_TEXT: &str = "0x0180ed00";

fn counter(auth: &[u8]) -> NvCounter {
    NvCounter::new(INDEX, AuthValue::new(auth).unwrap()).unwrap()
}

/// Reads the counter with the tools.
fn tools_read(swtpm: &Swtpm, folder: &Path) -> u64 {
    swtpm.tool_ok(folder, "tpm2_nvread", &["-C", "o", "-o", "value", INDEX_TEXT]);
    u64::from_be_bytes(std::fs::read(folder.join("value")).unwrap().try_into().unwrap())
}

#[test]
fn a_counter_goes_up_survives_a_reset_and_reads_the_same_with_the_tools() {
    if crate::swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    let counter = counter(b"secret of the counter");
    let tpm = swtpm.open();
    assert_eq!(tpm.counter_value(&counter).unwrap(), None);
    assert!(matches!(tpm.step_counter(&counter), Err(TpmError::NoCounter { index: INDEX })));
    let first = tpm.make_counter(&counter).unwrap();
    assert_eq!(tpm.step_counter(&counter).unwrap(), first + 1);
    assert_eq!(tpm.counter_value(&counter).unwrap(), Some(first + 1));
    assert_no_leak(&tpm, "a counter");
    // The power goes, and nothing that was loaded is there any more.
    swtpm.kill();
    assert!(tpm.counter_value(&counter).is_err());
    swtpm.start_again();
    assert_eq!(tpm.counter_value(&counter).unwrap(), Some(first + 1));
    assert_eq!(tpm.step_counter(&counter).unwrap(), first + 2);
    assert_no_leak(&tpm, "a reset");
    drop(tpm);
    assert_eq!(tools_read(&swtpm, &folder), first + 2);
    // The owner may read it, and not step it.
    assert!(!swtpm.tool(&folder, "tpm2_nvincrement", &["-C", "o", INDEX_TEXT]).status.success());
    // Wrong auth values do not bring the TPM nearer to its lockout.
    for _ in 0..3 {
        assert!(
            !swtpm.tool(&folder, "tpm2_nvincrement", &["-P", "guess", INDEX_TEXT]).status.success()
        );
    }
    let properties = swtpm.tool_ok(&folder, "tpm2_getcap", &["properties-variable"]);
    assert!(properties.contains("TPM2_PT_LOCKOUT_COUNTER: 0x0"), "{properties}");
}

#[test]
fn a_counter_that_was_removed_and_made_anew_is_above_every_earlier_value() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    let counter = counter(b"ours");
    let tpm = swtpm.open();
    let mut last = tpm.make_counter(&counter).unwrap();
    for _ in 0..5 {
        last = tpm.step_counter(&counter).unwrap();
    }
    drop(tpm);
    swtpm.tool_ok(&folder, "tpm2_nvundefine", &["-C", "o", INDEX_TEXT]);
    let tpm = swtpm.open();
    assert_eq!(tpm.counter_value(&counter).unwrap(), None);
    assert!(tpm.make_counter(&counter).unwrap() > last);
}

#[test]
fn an_index_of_somebody_else_is_left_alone_and_named() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    let open = || Tpm::open(TpmOptions { keep_loaded: 0, ..swtpm.options() }).unwrap();
    // Another installation's counter.
    let other = counter(b"theirs");
    let value = open().make_counter(&other).unwrap();
    let tpm = open();
    for error in [
        tpm.counter_value(&counter(b"ours")).unwrap_err(),
        tpm.make_counter(&counter(b"ours")).unwrap_err(),
        tpm.step_counter(&counter(b"ours")).unwrap_err(),
    ] {
        assert!(matches!(error, TpmError::AuthFailed { of: Authorized::Counter, .. }), "{error}");
        assert!(error.to_string().contains("tpm2_nvundefine"), "{error}");
    }
    assert_eq!(tpm.counter_value(&other).unwrap(), Some(value));
    assert_no_leak(&tpm, "refusals");
    drop(tpm);
    // One that the owner could step is no witness.
    swtpm.tool_ok(&folder, "tpm2_nvundefine", &["-C", "o", INDEX_TEXT]);
    let attributes = "nt=counter|ownerread|ownerwrite|authread|authwrite|no_da";
    swtpm.tool_ok(&folder, "tpm2_nvdefine", &["-C", "o", "-s", "8", "-a", attributes, INDEX_TEXT]);
    let error = open().make_counter(&counter(b"")).unwrap_err();
    assert!(matches!(error, TpmError::NvIndexTaken { index: INDEX }), "{error}");
    // Nor is it made without the owner's auth value.
    swtpm.tool_ok(&folder, "tpm2_nvundefine", &["-C", "o", INDEX_TEXT]);
    swtpm.tool_ok(&folder, "tpm2_changeauth", &["-c", "o", "owner"]);
    let error = open().make_counter(&counter(b"ours")).unwrap_err();
    assert!(matches!(error, TpmError::AuthFailed { of: Authorized::Owner, .. }), "{error}");
}
