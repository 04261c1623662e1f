//! A PIN that the token refuses, as the daemon meets it: said once to the token, however
//! often keys are asked for.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::{Keyd, refused};

const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
const SPY: &str = "/usr/lib/x86_64-linux-gnu/pkcs11-spy.so";

#[test]
fn a_wrong_pin_reaches_the_token_once_and_the_log_says_what_to_do() {
    if crate::parts::missing(&["softhsm2-util", SOFTHSM, SPY]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("tokens")).unwrap();
    fs::write(
        path("conf"),
        format!("directories.tokendir = {}\nlog.level = ERROR\n", path("tokens").display()),
    )
    .unwrap();
    let made = Command::new("softhsm2-util")
        .args([
            "--init-token",
            "--free",
            "--label",
            "edge",
            "--so-pin",
            "87654321",
            "--pin",
            "geheim",
        ])
        .env("SOFTHSM2_CONF", path("conf"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    fs::write(path("pin"), "falsch").unwrap();
    let uri = format!("pkcs11:token=edge?pin-source=file:{}", path("pin").display());
    // Nobody but the operator knows what a library that is not a well-known one touches.
    let sandbox = json!({"paths": [folder.path()]});
    let settings = json!({"pkcs11": {"library": SPY, "base_slot": uri}, "sandbox": sandbox});
    let spied = path("calls");
    let environment = [
        ("SOFTHSM2_CONF", path("conf")),
        ("PKCS11SPY", SOFTHSM.into()),
        ("PKCS11SPY_OUTPUT", spied.clone()),
    ];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_path()));
    let keyd = Keyd::start_with(folder.path(), &settings, &environment);
    let logins = || {
        fs::read_to_string(&spied)
            .unwrap()
            .lines()
            .filter(|line| line.ends_with(": C_Login"))
            .count()
    };
    for attempt in 0..5 {
        refused(
            keyd.post("/keypair", &json!({"keyId": format!("k{attempt}")})),
            500,
            "internal error",
        );
        refused(keyd.send("GET", "/key/k", b""), 500, "internal error");
    }
    assert_eq!(logins(), 1, "{}", fs::read_to_string(&spied).unwrap());
    assert!(keyd.log().contains("correct the PIN"), "{}", keyd.log());
    assert!(!keyd.log().contains("falsch"));
    // A corrected one is used without a restart.
    fs::write(path("pin"), "geheim").unwrap();
    keyd.handle("/keypair", &json!({"keyId": "pair", "preferredAlgorithms": "ec-p256"}));
    assert_eq!(logins(), 2);
    keyd.stop();
}
