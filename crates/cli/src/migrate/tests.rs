//! A takeover and a way back that are cut off after each step, on a device that openssl
//! and coreutils have laid out.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use edgekeep_core::layout::Root;
use edgekeep_core::migration::{Plan, plan};

use super::journal::{self, Journal, Stage};
use super::look::{self, Looked};
use super::{carry_out, undo};

const CONFIG: &str = "hostname = \"press-04\"\n[provisioning]\nsource = \"dps\"\n\
    global_endpoint = \"https://global.azure-devices-provisioning.net\"\nid_scope = \"0ne00000000\"\n\
    [provisioning.attestation]\nmethod = \"symmetric_key\"\nregistration_id = \"press-04\"\n\
    symmetric_key = { value = \"a2V5MQ==\" }\n";

fn former() -> (tempfile::TempDir, Root) {
    let folder = tempfile::tempdir().unwrap();
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/testkit/former/lay-out.sh");
    let laid_out = Command::new(script)
        .arg(folder.path())
        .args(["plant7.azure-devices.net", "press-04"])
        .output()
        .unwrap();
    assert!(laid_out.status.success(), "{}", String::from_utf8_lossy(&laid_out.stderr));
    fs::write(folder.path().join("etc/aziot/config.toml"), CONFIG).unwrap();
    let root = Root::new(folder.path());
    (folder, root)
}

fn copy_of(root: &Root) -> (tempfile::TempDir, Root) {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("device");
    assert!(Command::new("cp").arg("-a").arg(root.path()).arg(&to).status().unwrap().success());
    (folder, Root::new(to))
}

fn looked(root: &Root) -> (Looked, Plan) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let looked = runtime.block_on(look::device(root, false, Vec::new())).unwrap();
    let Ok(mut looked) = looked else { panic!("the configuration is refused") };
    looked.device.now = 1_800_000_000;
    let plan = plan(&looked.device, look::sha256).unwrap();
    (looked, plan)
}

/// All files with their content, by their path below `folder`.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else {
                let content = fs::read(&path).unwrap_or_default();
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), content);
            }
        }
    }
    found
}

/// Returns the existing packages' files and ours, without those that are drawn anew.
fn both(root: &Root) -> (BTreeMap<PathBuf, Vec<u8>>, BTreeMap<PathBuf, Vec<u8>>) {
    let (mut ours, mut theirs) = (tree(root.path()), BTreeMap::new());
    ours.retain(|path, content| {
        let is_ours = path.components().any(|part| part.as_os_str() == "edgekeep");
        if !is_ours {
            theirs.insert(path.clone(), std::mem::take(content));
        }
        is_ours && !path.ends_with("imported-keys.json")
    });
    (theirs, ours)
}

/// Does `work`, cut off after step `number`; `false` if there are fewer.
fn cut_off(number: usize, work: impl FnOnce(&mut dyn FnMut())) -> bool {
    let mut count = 0;
    let mut step = || {
        assert!(count != number, "cut off");
        count += 1;
    };
    catch_unwind(AssertUnwindSafe(|| work(&mut step))).is_err()
}

#[test]
fn a_takeover_that_is_cut_off_anywhere_is_completed_by_the_next_and_harms_nothing() {
    let (_folder, origin) = former();
    let (_whole_folder, whole) = copy_of(&origin);
    let (device, steps) = looked(&whole);
    carry_out::carry_out(&whole, &device, &steps, || {}).unwrap();
    let (theirs, ours) = both(&whole);
    assert_eq!(theirs, both(&origin).0, "their files are as they were");
    assert!(ours.keys().any(|path| path.ends_with("import/aziot_identityd_master_id")));
    let mut cuts = 0;
    for number in 0.. {
        let (_folder, root) = copy_of(&origin);
        let (device, steps) = looked(&root);
        let was_cut = cut_off(number, |step| {
            carry_out::carry_out(&root, &device, &steps, step).unwrap();
        });
        assert_eq!(both(&root).0, theirs, "after step {number}");
        if !was_cut {
            break;
        }
        cuts += 1;
        let (device, steps) = looked(&root);
        carry_out::carry_out(&root, &device, &steps, || {}).unwrap();
        assert_eq!(both(&root).1.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
        for (path, content) in &both(&root).1 {
            // Settings name no folder of the device; the history keeps times.
            if !path.starts_with("etc/edgekeep/applied") {
                assert_eq!(content, &ours[path], "{} after step {number}", path.display());
            }
        }
    }
    assert!(cuts >= 6, "{cuts} steps");
}

#[test]
fn no_settings_are_there_before_everything_else_is() {
    let (_folder, root) = former();
    let (device, steps) = looked(&root);
    let state = |root: &Root| {
        let mut state = both(root).1;
        state.retain(|path, _| path.starts_with("var/lib/edgekeep"));
        state
    };
    let mut before = BTreeMap::new();
    carry_out::carry_out(&root, &device, &steps, || {
        let (_, ours) = both(&root);
        if !ours.keys().any(|path| path.ends_with("keyd.json")) {
            before = state(&root);
        }
    })
    .unwrap();
    let missing: Vec<_> =
        state(&root).into_keys().filter(|path| !before.contains_key(path)).collect();
    // `config apply` itself hands this one over.
    assert_eq!(missing, [Path::new("var/lib/edgekeep/keyd/import/device-id")]);
}

#[test]
fn a_way_back_that_is_cut_off_anywhere_is_completed_and_keeps_both() {
    let (_folder, origin) = former();
    let (theirs, _) = both(&origin);
    let (device, steps) = looked(&origin);
    carry_out::carry_out(&origin, &device, &steps, || {}).unwrap();
    let ours: Vec<Vec<u8>> = both(&origin).1.into_values().collect();
    let undoing = Journal { stage: Stage::Undoing { aside: "undone-1".into() }, at: "now".into() };
    let mut cuts = 0;
    for number in 0.. {
        let (_folder, root) = copy_of(&origin);
        journal::write(&root, &undoing).unwrap();
        let back = |step: &mut dyn FnMut()| {
            let moved = undo::to_move(&root).unwrap();
            undo::carry_out(&root, "undone-1", &moved, &undo::links(&root), step).unwrap();
        };
        let was_cut = cut_off(number, back);
        if was_cut && journal::read(&root).unwrap().is_some() {
            back(&mut || {});
        }
        let (still_theirs, kept) = both(&root);
        assert_eq!(still_theirs, theirs, "after step {number}");
        assert!(
            kept.keys().all(|path| path.iter().any(|part| part == "undone-1")),
            "{:?}",
            kept.keys()
        );
        assert_eq!(kept.into_values().collect::<Vec<_>>(), ours, "after step {number}");
        if !was_cut {
            break;
        }
        cuts += 1;
    }
    assert!(cuts >= 5, "{cuts} steps");
}
