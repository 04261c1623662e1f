//! The command lines of all programs of the workspace: each answers `--help` and
//! `--version`, refuses what it does not take, and does nothing else then.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use edgekeep_testkit::{program, wait_for};

/// Programs that a person or a service manager can start.
const PROGRAMS: [&str; 17] = [
    "calls",
    "device-checks",
    "edgekeep",
    "edgekeep-agent",
    "edgekeep-bench-certs",
    "edgekeep-bench-evidence",
    "edgekeep-bench-keys",
    "edgekeep-echo",
    "edgekeep-identityd",
    "edgekeep-keyd",
    "edgekeep-load",
    "edgekeep-moduled",
    "edgekeep-sim",
    "intruder",
    "security-monitor",
    "thermometer",
    "update-agent",
];

/// The tasks of the repository, which are not built with the tests, and a stand-in for a
/// part of moduled.
const OTHERS: [&str; 2] = ["edgekeep-test-launcher", "xtask"];

#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    output: String,
    error: String,
}

/// Runs a program in an empty folder, which is also its root, and asserts that the folder
/// stays empty.
fn run(name: &str, arguments: &[&OsStr]) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program(name));
    command
        .args(arguments)
        .current_dir(folder.path())
        .env_clear()
        .env("EDGEKEEP_ROOT", folder.path());
    // Files, because a pipe that nobody reads has an end.
    let (mut output, mut error) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(error.try_clone().unwrap());
    let mut started = Started(command.spawn().unwrap());
    let child = &mut started.0;
    let code = wait_for(&format!("the end of {name}"), || child.try_wait().unwrap()).code();
    let text = |file: &mut File| {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    let (output, error) = (text(&mut output), text(&mut error));
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [] as [OsString; 0], "{name} {arguments:?} makes files");
    Ran { code, output, error }
}

/// A program that is ended with the test.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_table_has_every_program_of_the_workspace() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut metadata = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    metadata
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(workspace);
    let metadata: serde_json::Value =
        serde_json::from_slice(&metadata.output().unwrap().stdout).unwrap();
    let targets = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|p| p["targets"].as_array().unwrap());
    let programs = targets
        .filter(|target| target["kind"][0] == "bin")
        .map(|target| target["name"].as_str().unwrap());
    let named: BTreeSet<&str> = PROGRAMS.into_iter().chain(OTHERS).collect();
    assert_eq!(programs.collect::<BTreeSet<_>>(), named);
}

#[test]
fn every_program_tells_its_help_and_its_version_and_does_nothing_else() {
    for name in PROGRAMS {
        for word in ["--help", "-h"] {
            let ran = run(name, &[word.as_ref()]);
            assert_eq!((ran.code, ran.error.as_str()), (Some(0), ""), "{name} {word}");
            assert!(
                ran.output.contains(&format!("Usage: {name}")),
                "{name} {word}: {}",
                ran.output
            );
        }
        for word in ["--version", "-V"] {
            let ran = run(name, &[word.as_ref()]);
            assert_eq!((ran.code, ran.error.as_str()), (Some(0), ""), "{name} {word}");
            assert_eq!(ran.output, format!("{name} {}\n", env!("CARGO_PKG_VERSION")), "{word}");
        }
    }
}

#[test]
fn every_program_refuses_arguments_that_it_does_not_take_with_one_line_and_its_usage() {
    let not_utf8 = OsStr::from_bytes(b"--\xff\xfe");
    let long = "x".repeat(100_000);
    let long = format!("--{long}");
    let words: [&OsStr; 6] = [
        "--nonsense".as_ref(),
        "--help=yes".as_ref(),
        "-x".as_ref(),
        "--\u{1b}[2J".as_ref(),
        not_utf8,
        long.as_ref(),
    ];
    for name in PROGRAMS {
        for word in words {
            let ran = run(name, &[word]);
            let shown = word.to_string_lossy().chars().take(60).collect::<String>();
            assert_eq!(
                (ran.code, ran.output.as_str()),
                (Some(2), ""),
                "{name} {shown}: {}",
                ran.error
            );
            assert!(ran.error.contains("Usage: "), "{name} {shown}: {}", ran.error);
            assert!(!ran.error.contains("panicked"), "{name} {shown}: {}", ran.error);
        }
    }
    for name in ["edgekeep-keyd", "edgekeep-identityd", "edgekeep-moduled", "edgekeep-agent"] {
        for words in [&["start"][..], &[""], &["--", "--help"], &["exec-module", "--help"]] {
            let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
            let ran = run(name, &words);
            assert_eq!(
                (ran.code, ran.output.as_str()),
                (Some(2), ""),
                "{name} {words:?}: {}",
                ran.error
            );
            assert!(
                ran.error.starts_with("error: unexpected argument "),
                "{name} {words:?}: {}",
                ran.error
            );
        }
        let ran = run(name, &[long.as_ref()]);
        assert!(ran.error.len() < 300, "{name}: {} bytes", ran.error.len());
        assert!(!run(name, &["\u{1b}[2J".as_ref()]).error.contains('\u{1b}'), "{name}");
    }
}

#[test]
fn the_step_to_a_host_module_is_not_for_people() {
    let ran = run("edgekeep-moduled", &["exec-module".as_ref()]);
    assert_eq!((ran.code, ran.output.as_str()), (Some(2), ""));
    assert!(ran.error.starts_with("exec-module is for edgekeep-moduled alone"), "{}", ran.error);
}

#[test]
fn the_command_tells_its_help_under_every_name_it_has() {
    for name in ["iotedge", "aziotctl"] {
        let output = Command::new(program("edgekeep")).arg0(name).arg("--help").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}");
        let output = Command::new(program("edgekeep"))
            .arg0(name)
            .arg(OsStr::from_bytes(b"\xff"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
    }
}
