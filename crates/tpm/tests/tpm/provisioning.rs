//! Provisioning with a TPM: a second TPM and the TPM tools play the provisioning service.

use std::path::Path;

use edgekeep_tpm::{AuthValue, Authorized, RootAlgorithm, Tpm, TpmError, TpmOptions};

use crate::service;
use crate::swtpm::{Swtpm, assert_no_leak};

const INDEX: u32 = 0x100;

/// Returns a provisioning service's message for this TPM, and the expected HMACs.
fn import_blob(service: &Swtpm, tpm: &Tpm, messages: &[&[u8]]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let keys = tpm.provisioning_keys().unwrap();
    service::import_blob(service, &keys.endorsement_key, &keys.storage_root_key, messages)
}

fn persistent(swtpm: &Swtpm, folder: &Path) -> String {
    swtpm.tool_ok(folder, "tpm2_getcap", &["handles-persistent"])
}

#[test]
fn an_authentication_key_is_unwrapped_made_persistent_and_signs() {
    if crate::swtpm::skip() {
        return;
    }
    let messages: [&[u8]; 3] = [b"", b"data to sign", &[7; 3000]];
    for root_algorithm in [RootAlgorithm::EcP256, RootAlgorithm::Rsa2048] {
        let (device, service) = (Swtpm::start(), Swtpm::start());
        let folder = device.folder("tools");
        // A device whose hierarchies have auth values.
        device.tool_ok(&folder, "tpm2_changeauth", &["-c", "o", "owner"]);
        device.tool_ok(&folder, "tpm2_changeauth", &["-c", "e", "endorsement"]);
        let options = TpmOptions {
            root_algorithm,
            owner: AuthValue::new(b"owner\0").unwrap(),
            endorsement: AuthValue::new(b"endorsement\0").unwrap(),
            ..device.options()
        };
        let tpm = Tpm::open(options.clone()).unwrap();
        let error = tpm.sign_with_auth_key(INDEX, b"m").unwrap_err();
        assert!(matches!(error, TpmError::HandleEmpty { handle: 0x8100_0100, .. }), "{error}");

        let (blob, macs) = import_blob(&service, &tpm, &messages);
        tpm.import_auth_key(INDEX, &blob).unwrap();
        assert_no_leak(&tpm, "an import");
        for (message, mac) in messages.iter().zip(&macs) {
            assert_eq!(tpm.sign_with_auth_key(INDEX, message).unwrap(), mac.as_slice());
            assert_no_leak(&tpm, "an HMAC");
        }
        // A second one takes its place.
        let (blob, again) = import_blob(&service, &tpm, &messages);
        assert_ne!(again, macs);
        tpm.import_auth_key(INDEX, &blob).unwrap();
        assert_eq!(tpm.sign_with_auth_key(INDEX, messages[1]).unwrap(), again[1].as_slice());

        // A blob that was tampered with changes nothing.
        for at in [10, 60, 400, 560, blob.len() - 40] {
            let mut bad = blob.clone();
            bad[at] ^= 1;
            assert!(tpm.import_auth_key(INDEX, &bad).is_err(), "{at}");
            assert_no_leak(&tpm, "a bad import");
        }
        assert_eq!(tpm.sign_with_auth_key(INDEX, messages[1]).unwrap(), again[1].as_slice());
        drop(tpm);
        assert!(persistent(&device, &folder).contains("0x81000100"));
        // It needs the endorsement hierarchy's auth value.
        let tpm =
            Tpm::open(TpmOptions { endorsement: AuthValue::new(b"wrong").unwrap(), ..options })
                .unwrap();
        let error = tpm.import_auth_key(INDEX, &blob).unwrap_err();
        assert!(
            matches!(error, TpmError::AuthFailed { of: Authorized::Endorsement, .. }),
            "{error}"
        );
        assert_no_leak(&tpm, "a wrong endorsement auth value");
    }
}

#[test]
fn a_blob_for_another_tpm_is_refused() {
    if crate::swtpm::skip() {
        return;
    }
    let (device, other, service) = (Swtpm::start(), Swtpm::start(), Swtpm::start());
    let (blob, _) = import_blob(&service, &other.open(), &[]);
    let tpm = device.open();
    let error = tpm.import_auth_key(INDEX, &blob).unwrap_err();
    assert!(
        matches!(error, TpmError::Refused { command: "TPM2_ActivateCredential", .. }),
        "{error}"
    );
    assert_no_leak(&tpm, "a foreign import");
    assert!(matches!(tpm.import_auth_key(INDEX, b"\0\x01x"), Err(TpmError::ImportBlob { .. })));
    assert!(matches!(tpm.import_auth_key(0x80_0000, &blob), Err(TpmError::OutOfRange { .. })));
}

#[test]
fn a_key_of_somebody_else_at_the_index_is_left_alone() {
    if crate::swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let folder = swtpm.folder("tools");
    swtpm.tool_ok(&folder, "tpm2_createprimary", &["-C", "o", "-G", "ecc", "-c", "key.ctx"]);
    swtpm.tool_ok(&folder, "tpm2_evictcontrol", &["-C", "o", "-c", "key.ctx", "0x81000100"]);
    swtpm.tool_ok(&folder, "tpm2_flushcontext", &["-t"]);
    let service = Swtpm::start();
    let tpm = swtpm.open();
    let (blob, _) = import_blob(&service, &tpm, &[]);
    let error = tpm.import_auth_key(INDEX, &blob).unwrap_err();
    assert!(matches!(error, TpmError::HandleTaken { handle: 0x8100_0100, .. }), "{error}");
    drop(tpm);
    assert!(persistent(&swtpm, &folder).contains("0x81000100"));
}
