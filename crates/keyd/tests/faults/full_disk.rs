//! A state folder on a file system that fills up. It is a small one in memory, in a mount
//! namespace that the test starts itself again in.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use edgekeep_core::layout::{Daemon, Root};
use serde_json::json;

use crate::{Keyd, refused};

/// In the process in the namespace: the folder to work in.
const INSIDE: &str = "EDGEKEEP_TEST_NAMESPACE";

/// Runs the test of this name again in a mount namespace of its own. `false` if there can
/// be none here.
fn run_inside(test: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let namespace: &[&str] =
        if is_root { &["--mount"] } else { &["--user", "--map-root-user", "--mount"] };
    let can = Command::new("unshare")
        .args(namespace)
        .args(["mount", "-t", "tmpfs", "none"])
        .arg(folder.path())
        .output();
    if !can.is_ok_and(|output| output.status.success()) {
        return false;
    }
    let output = Command::new("unshare")
        .args(namespace)
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, folder.path())
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    true
}

/// Files below a folder, with their sizes, but for the audit log, which goes on.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() && entry.file_name().unwrap() != "audit" {
            found.extend(files(&entry));
        } else if entry.is_file() {
            found.push((entry.clone(), fs::metadata(entry).unwrap().size()));
        }
    }
    found.sort();
    found
}

/// Takes all the room that there is.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [4096, 512, 1] {
        while file.write(&vec![1; size]).is_ok_and(|written| written > 0) {}
    }
}

#[test]
fn without_room_for_a_key_nothing_is_half_made_and_with_room_again_it_works() {
    let Some(folder) = std::env::var_os(INSIDE).map(PathBuf::from) else {
        let test =
            "full_disk::without_room_for_a_key_nothing_is_half_made_and_with_room_again_it_works";
        if crate::parts::missing(&["unshare", "mount"]) {
            return;
        }
        if !run_inside(test) {
            eprintln!("skipping {test}: no mount namespace can be made here");
        }
        return;
    };
    let state = Root::new(&folder).state_folder(Daemon::Keyd);
    fs::create_dir_all(&state).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=512k", "none"])
        .arg(&state)
        .status()
        .unwrap();
    assert!(mounted.success());

    let keyd = Keyd::start(&folder);
    let old = keyd.key("old");
    let mac = keyd.hmac(&old);
    let pair = keyd.handle("/keypair", &json!({"keyId": "pair", "preferredAlgorithms": "ec-p256"}));
    // Also what the audit log has to say must be said before.
    assert_eq!(keyd.send("GET", "/audit/checkpoint", b"").0, 200);
    let filler = state.join("filler");
    fill(&filler);
    let before = files(&state);
    for (path, body) in [
        ("/key", json!({"keyId": "new", "usage": "sign"})),
        ("/key", json!({"keyId": "new", "usage": "sign", "keyBytes": "c2VjcmV0"})),
        ("/key", json!({"keyId": "old", "usage": "derive,sign", "keyBytes": "c2VjcmV0"})),
        ("/keypair", json!({"keyId": "new", "preferredAlgorithms": "ec-p256"})),
        ("/keypair/elsewhere", json!({"from": "pair"})),
    ] {
        refused(keyd.post(path, &body), 500, "internal error");
        assert_eq!(files(&state), before, "{path} {body}");
    }
    let log = keyd.log();
    let named = log.lines().filter(|line| {
        line.contains("no room to write") && line.contains("free space on its file")
    });
    assert_eq!(named.count(), 5, "{log}");
    // What is there is used as ever.
    assert_eq!(keyd.hmac(&old), mac);
    let digest = json!({"keyHandle": pair, "algorithm": "ECDSA", "parameters": {"digest": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}});
    assert_eq!(keyd.post("/sign", &digest).0, 200);
    refused(keyd.send("GET", "/key/new", b""), 400, "there is no key");

    fs::remove_file(&filler).unwrap();
    let new = keyd.key("new");
    let new_mac = keyd.hmac(&new);
    assert_eq!(keyd.send("POST", "/keypair/elsewhere", br#"{"from":"pair"}"#).0, 204);
    keyd.stop();
    let keyd = Keyd::start(&folder);
    assert_eq!((keyd.hmac(&old), keyd.hmac(&new)), (mac, new_mac));
    assert_eq!(keyd.send("GET", "/keypair/elsewhere", b"").0, 200);
    refused(keyd.send("GET", "/keypair/pair", b""), 400, "there is no key");
}

#[test]
fn a_device_without_room_for_its_first_keys_says_so_and_starts_when_there_is_room() {
    let Some(folder) = std::env::var_os(INSIDE).map(PathBuf::from) else {
        let test = "full_disk::a_device_without_room_for_its_first_keys_says_so_and_starts_when_there_is_room";
        if crate::parts::missing(&["unshare", "mount"]) {
            return;
        }
        if !run_inside(test) {
            eprintln!("skipping {test}: no mount namespace can be made here");
        }
        return;
    };
    let state = Root::new(&folder).state_folder(Daemon::Keyd);
    fs::create_dir_all(&state).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=128k", "none"])
        .arg(&state)
        .status()
        .unwrap();
    assert!(mounted.success());
    let filler = state.join("filler");
    // From no room at all to nearly enough.
    for left in [0, 4, 8, 12] {
        File::create(&filler).unwrap().write_all(&vec![1; (128 - left) << 10]).unwrap_or_default();
        let output = Command::new(env!("CARGO_BIN_EXE_edgekeep-keyd"))
            .env("EDGEKEEP_ROOT", &folder)
            .env_remove("NOTIFY_SOCKET")
            .output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{left} KiB: {text}");
        assert!(
            text.contains("free space on its file system") || text.contains("No space left"),
            "{left} KiB: {text}"
        );
    }
    fs::remove_file(&filler).unwrap();
    let keyd = Keyd::start(&folder);
    keyd.hmac(&keyd.key("k"));
}
