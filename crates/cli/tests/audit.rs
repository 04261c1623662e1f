//! `edgekeep audit` against a keyd with a real log.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

#[path = "../../tpm/tests/parts/mod.rs"]
mod parts;
#[path = "../../tpm/tests/tpm/swtpm.rs"]
#[allow(dead_code, reason = "the TPM layer's own tests use the rest")]
mod swtpm;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread::JoinHandle;

use edgekeep_api::keyd::KeysClient;
use edgekeep_core::hardware::{AuditCounter, TpmSettings};
use edgekeep_core::key_use::Policy;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::{KeyPrincipal, KeydSettings};
use edgekeep_daemon::listen;
use edgekeep_daemon::server::{Limits, serve};
use edgekeep_keyd::{Keyd, routes};
use tokio::sync::watch;

/// A running keyd. It stops when dropped.
struct Running {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(root: &Root) -> Self {
        Self::start_with(root, KeydSettings::default())
    }

    fn start_with(root: &Root, settings: KeydSettings) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let principal = KeyPrincipal { uid, keys: vec!["mine*".into()], ..KeyPrincipal::default() };
        let settings =
            KeydSettings { principals: vec![principal], auditors: vec![uid], ..settings };
        let (stop, stopping) = watch::channel(false);
        let (bound, ready) = std::sync::mpsc::channel();
        let root = root.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let policy = Policy::new(&settings).with_root_restricted();
                let keyd = Keyd::open(&root, &settings, policy).unwrap();
                let listener = listen::bind(&root.keyd_socket(), 0o660).unwrap();
                bound.send(()).unwrap();
                serve(
                    listener,
                    Arc::new(routes::router(Arc::new(keyd))),
                    Limits::default(),
                    stopping,
                )
                .await;
            });
        });
        ready.recv().unwrap();
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        let _ = self.thread.take().unwrap().join();
    }
}

fn audit(root: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgekeep"));
    command
        .env_remove("EDGEKEEP_ROOT")
        .arg("--root")
        .arg(root)
        .arg("audit")
        .args(words)
        .output()
        .unwrap()
}

#[track_caller]
fn done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_log_is_shown_verified_proved_and_copied_and_tampering_with_the_copy_fails() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new(folder.path());
    let keyd = Running::start(&root);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = KeysClient::new(root.keyd_socket());
        client.create_key("mine", "sign").await.unwrap();
        client.create_key("yours", "sign").await.unwrap_err();
        for number in 0..5 {
            client.create_key(&format!("mine-{number}"), "sign").await.unwrap();
        }
    });
    let shown = done(&audit(folder.path(), &["show", "-n", "3"]));
    assert_eq!(shown.lines().count(), 4);
    assert!(shown.lines().last().unwrap().contains("mine-4"), "{shown}");
    let refused = done(&audit(folder.path(), &["show", "--refused"]));
    let words: Vec<&str> = refused.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((words[0], &words[4..]), ("1", &["create", "yours", "refused:", "no-grant"][..]));

    let verified: serde_json::Value =
        serde_json::from_str(&done(&audit(folder.path(), &["verify", "--json"]))).unwrap();
    assert_eq!((&verified["intact"], &verified["size"]), (&true.into(), &7.into()));
    let key = verified["verifierKey"].as_str().unwrap();

    let proof = folder.path().join("entry.tlog-proof");
    std::fs::write(&proof, done(&audit(folder.path(), &["prove", "1"]))).unwrap();
    let copy = folder.path().join("copy");
    done(&audit(folder.path(), &["export", copy.to_str().unwrap()]));
    // From here on without the device.
    drop(keyd);
    let proved =
        done(&audit(folder.path(), &["verify", "--key", key, "--proof", proof.to_str().unwrap()]));
    assert!(proved.contains(r#""key":"yours","result":"refused""#), "{proved}");
    let verify = ["verify", "--key", key, "--folder", copy.to_str().unwrap()];
    done(&audit(folder.path(), &verify));
    // What was copied is an earlier state of the log that goes on at keyd.
    let kept = copy.join("checkpoint");
    let original = root.state_folder(Daemon::Keyd).join("audit");
    let folders =
        ["verify", "--folder", original.to_str().unwrap(), "--checkpoint", kept.to_str().unwrap()];
    done(&audit(folder.path(), &folders));

    let segment = copy.join(format!("{:020}.log", 0));
    let mut bytes = std::fs::read(&segment).unwrap();
    let place = bytes.windows(5).position(|word| word == b"yours").unwrap();
    bytes[place] = b'Y';
    std::fs::write(&segment, bytes).unwrap();
    let output = audit(folder.path(), &verify);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("NOT INTACT") && text.contains("entry 1: the record is damaged"),
        "{text}"
    );
}

#[test]
fn a_wrong_key_a_folder_that_exists_and_an_index_that_does_not_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new(folder.path());
    let _keyd = Running::start(&root);
    for (words, code, reason) in [
        (&["verify", "--key", "nonsense"][..], 1, "neither a verifier key nor a file"),
        (&["export", folder.path().to_str().unwrap()], 1, "exists already"),
        (&["prove", "1000"], 1, "there is no entry 1000"),
        (&["verify", "--proof", "x"], 2, "--key"),
    ] {
        let output = audit(folder.path(), words);
        assert_eq!(output.status.code(), Some(code), "{words:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(reason), "{text}");
    }
    let other = "edgekeep/audit/0000000000000000";
    let key = edgekeep_audit::note::VerifierKey::new(other, [1; 32]).unwrap().to_string();
    let output = audit(folder.path(), &["verify", "--key", &key]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("not signed by edgekeep/audit/0000000000000000")
    );
}

#[test]
fn a_check_compares_the_log_with_the_tpms_counter_and_fails_until_a_loss_was_looked_into() {
    if swtpm::skip() {
        return;
    }
    let mut swtpm = swtpm::Swtpm::start();
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new(folder.path());
    let settings = KeydSettings {
        tpm: Some(TpmSettings {
            tcti: swtpm.tcti().to_string(),
            audit_counter: AuditCounter { interval_sec: 0, ..AuditCounter::default() },
            ..TpmSettings::default()
        }),
        ..KeydSettings::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let create = |id: &str| {
        let client = KeysClient::new(root.keyd_socket());
        runtime.block_on(client.create_key(id, "sign")).unwrap();
    };
    let audit = |words: &[&str]| {
        let output = audit(folder.path(), words);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let log = root.state_folder(Daemon::Keyd).join("audit");
    let log_text = log.to_str().unwrap();

    let keyd = Running::start_with(&root, settings.clone());
    create("mine");
    let (code, text) = audit(&["verify"]);
    assert!(
        code == Some(0)
            && text.contains("compared with the hardware counter at 0x0180ed00, which is"),
        "{text}"
    );
    let exported = folder.path().join("exported");
    assert_eq!(audit(&["export", exported.to_str().unwrap()]).0, Some(0));
    drop(keyd);
    let earlier = folder.path().join("earlier");
    assert!(Command::new("cp").arg("-r").arg(&log).arg(&earlier).status().unwrap().success());
    let keyd = Running::start_with(&root, settings.clone());
    create("mine-too");
    drop(keyd);

    // Elsewhere, with what the TPM tools read.
    let tools = swtpm.folder("tools");
    swtpm.tool_ok(&tools, "tpm2_nvread", &["-C", "o", "-o", "value", "0x0180ed00"]);
    let value = u64::from_be_bytes(std::fs::read(tools.join("value")).unwrap().try_into().unwrap());
    let (decimal, hex) = (value.to_string(), format!("{value:#x}"));
    for counter in [&decimal, &hex] {
        let (code, text) = audit(&["verify", "--folder", log_text, "--counter", counter]);
        assert_eq!(code, Some(0), "{text}");
    }
    let (code, text) = audit(&["verify", "--folder", log_text]);
    assert!(code == Some(0) && text.contains("which was not compared with the hardware"), "{text}");
    // What was copied before has less than there is, and another TPM is not this log's.
    let (code, text) =
        audit(&["verify", "--folder", exported.to_str().unwrap(), "--counter", &decimal]);
    assert!(
        code == Some(1)
            && text.contains("NOT INTACT")
            && text.contains("the newest part is missing"),
        "{text}"
    );
    let (code, text) = audit(&["verify", "--folder", log_text, "--counter", "0"]);
    assert!(code == Some(1) && text.contains("is another one"), "{text}");

    // Put back as a whole, and keyd started on it: its own word for it fails the check,
    // until somebody has looked.
    std::fs::remove_dir_all(&log).unwrap();
    std::fs::rename(&earlier, &log).unwrap();
    let keyd = Running::start_with(&root, settings.clone());
    let (code, text) = audit(&["verify"]);
    assert!(
        code == Some(1) && text.contains("TELLS OF A LOSS") && text.contains("alarm: entry "),
        "{text}"
    );
    let at = text.split_once("`--accept ").unwrap().1.split('`').next().unwrap();
    let (code, text) = audit(&["verify", "--accept", at]);
    assert!(code == Some(0) && text.contains("gap: entry"), "{text}");
    let (code, text) = audit(&["verify", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &json["good"], &json["intact"]), (Some(1), &false.into(), &true.into()));
    assert_eq!(json["hardwareCounter"]["value"], json["counterInLog"]);
    assert!(audit(&["show"]).1.contains("log-behind-counter"));
    drop(keyd);

    // Without its TPM the log says that it is not compared.
    swtpm.kill();
    let _keyd = Running::start_with(&root, settings);
    let (_, text) = audit(&["verify", "--accept", at]);
    assert!(text.contains("CANNOT BE READ") && text.contains("cannot be reached"), "{text}");
}
