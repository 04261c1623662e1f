//! `edgekeep keys doctor` on a SoftHSM2 token and a software TPM.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

#[path = "../../hsm/tests/parts/mod.rs"]
mod parts;
#[path = "../../hsm/tests/tpm/swtpm.rs"]
#[allow(dead_code, reason = "the TPM layer's own tests use the rest")]
mod swtpm;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use swtpm::Swtpm;

const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

fn doctor(folder: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgekeep"));
    command.env_remove("EDGEKEEP_ROOT").env("SOFTHSM2_CONF", folder.join("softhsm2.conf"));
    command.arg("--root").arg(folder).args(["keys", "doctor"]).args(words).output().unwrap()
}

#[track_caller]
fn examined(output: &Output, code: i32) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// An initialized token, its PIN in a file.
fn token(folder: &Path) {
    fs::create_dir(folder.join("tokens")).unwrap();
    let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", folder.join("tokens").display());
    fs::write(folder.join("softhsm2.conf"), text).unwrap();
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "edge", "--so-pin", "87654321", "--pin", "1234"])
        .env("SOFTHSM2_CONF", folder.join("softhsm2.conf"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    fs::write(folder.join("pin"), "1234\n").unwrap();
}

fn settings(folder: &Path, settings: &Value) {
    let path = folder.join("etc/edgekeep/keyd.json");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, settings.to_string()).unwrap();
}

#[test]
fn a_token_is_examined_as_asked_and_as_configured() {
    if parts::missing(&["softhsm2-util", SOFTHSM]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    token(folder);
    let uri = format!("pkcs11:token=edge?pin-source=file:{}", folder.join("pin").display());
    let text = examined(&doctor(folder, &["--library", SOFTHSM, "--token", &uri]), 0);
    assert!(text.contains("EC P-256 key pair: made, used") && text.contains("logged in"), "{text}");
    let listed = examined(&doctor(folder, &["--library", SOFTHSM]), 0);
    assert!(listed.contains("edge") && !listed.contains("logged in"), "{listed}");

    settings(folder, &json!({"pkcs11": {"library": SOFTHSM, "base_slot": uri}}));
    let json: Value = serde_json::from_str(&examined(&doctor(folder, &["--json"]), 0)).unwrap();
    let findings = json["findings"].as_array().unwrap();
    assert!(findings.iter().all(|finding| finding["part"] == "token" && finding["verdict"] != "bad"), "{json}");

    let away = uri.replace("token=edge", "token=away");
    let text = examined(&doctor(folder, &["--library", SOFTHSM, "--token", &away]), 1);
    assert!(text.contains("bad") && text.contains("plug it in"), "{text}");
    let text = examined(&doctor(folder, &["--library", "/no/such.so"]), 1);
    assert!(text.contains("bad") && text.contains("fix: "), "{text}");
}

#[test]
fn a_tpm_is_examined_and_left_as_it_was() {
    if swtpm::skip() {
        return;
    }
    let mut swtpm = Swtpm::start();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let tools = swtpm.folder("tools");
    let tcti = swtpm.tcti().to_string();
    let text = examined(&doctor(folder, &["--tpm", &tcti]), 0);
    for part in ["TPM 2.0 at", "not locked, 0 of", "PCR banks", "sha256", "is made at 0x81000001 at first use"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!swtpm.tool_ok(&tools, "tpm2_getcap", &["handles-persistent"]).contains("0x8"), "it made nothing");

    swtpm.tool_ok(&tools, "tpm2_changeauth", &["-c", "o", "owner"]);
    settings(folder, &json!({"tpm": {"tcti": tcti, "auth_key_index": 256}}));
    let text = examined(&doctor(folder, &[]), 0);
    assert!(text.contains("fix: set `owner` in [tpm.hierarchy_authorization]"), "{text}");
    settings(folder, &json!({"tpm": {"tcti": tcti, "auth_key_index": 256, "owner": {"value": "owner"}}}));
    assert!(!examined(&doctor(folder, &[]), 0).contains("fix: "));

    // As many wrong values as it allows, of a key that counts them.
    swtpm.tool_ok(&tools, "tpm2_dictionarylockout", &["--setup-parameters", "--max-tries=1"]);
    swtpm.tool_ok(&tools, "tpm2_createprimary", &["-C", "e", "-G", "ecc", "-p", "right", "-c", "key.ctx"]);
    fs::write(tools.join("message"), "m").unwrap();
    let sign = ["-c", "key.ctx", "-p", "wrong", "-o", "signature", "message"];
    assert!(!swtpm.tool(&tools, "tpm2_sign", &sign).status.success());
    let text = examined(&doctor(folder, &["--tpm", &tcti]), 1);
    assert!(text.contains("locked against guessing") && text.contains("tpm2_dictionarylockout"), "{text}");

    swtpm.kill();
    let text = examined(&doctor(folder, &["--tpm", &tcti]), 1);
    assert!(text.contains("cannot be reached") && text.contains("fix: start the TPM"), "{text}");
    let text = examined(&doctor(folder, &["--tpm", "device:/no/tpm"]), 1);
    assert!(text.contains("there is no TPM device"), "{text}");
}

#[test]
fn without_hardware_there_is_nothing_to_examine_and_without_settings_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let output = doctor(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("run `edgekeep config apply`"));
    settings(folder.path(), &json!({}));
    assert!(examined(&doctor(folder.path(), &[]), 0).contains("keys are in files"));
    // A PIN in a wrong URI is not repeated.
    let output = doctor(folder.path(), &["--token", "pkcs11:tokn=a?pin-value=geheim"]);
    assert_eq!(output.status.code(), Some(1));
    let shown = String::from_utf8(output.stderr).unwrap();
    assert!(shown.contains("tokn") && !shown.contains("geheim"), "{shown}");
}
