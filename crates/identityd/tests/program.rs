//! The program itself, as the service manager starts it.

use std::fs;
use std::process::{Command, Output};

use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};

fn run(root: &Root) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_edgekeep-identityd"));
    program.env(ROOT_VARIABLE, root.path()).output().expect("the program runs")
}

#[test]
fn without_settings_it_ends_and_names_what_writes_them() {
    let folder = tempfile::tempdir().expect("folder");
    let ended = run(&Root::new(folder.path()));
    let log = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{log}");
    assert!(log.contains("no settings at") && log.contains("edgekeep config apply"), "{log}");
}

#[test]
fn settings_to_blame_end_it_with_the_status_that_keeps_it_from_being_started_again() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::new(folder.path());
    let path = root.settings_file(Daemon::Identityd);
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    // No settings at all; and settings whose parent is no host, which only opening finds.
    let parent = r#"{"hostname": "press", "parent_hostname": "no host!", "provisioning": {"source": "none"}}"#;
    for (settings, why) in [("{", "does not fit this version"), (parent, "is not a host name")] {
        fs::write(&path, settings).expect("written");
        let ended = run(&root);
        let log = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
        assert_eq!(ended.status.code(), Some(153), "{log}");
        assert!(log.contains(why), "{log}");
    }
}
