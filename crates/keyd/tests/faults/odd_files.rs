//! Things that are no files in place of keyd's files, files that others may change, and
//! hardware that never answers: keyd serves or says what is wrong, and ends when it is
//! asked to.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{DEADLINE, Keyd};

/// Kinds of what may stand in a file's place, and the words that tell of it.
const KINDS: [(&str, &str); 5] = [
    ("fifo", "a FIFO in place of a file"),
    ("folder", "a folder in place of a file"),
    ("socket", "a socket in place of a file"),
    ("device", "a device in place of a file"),
    ("sparse", "the file is longer than"),
];

fn put(kind: &str, path: &Path) {
    match kind {
        "fifo" => mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
        "folder" => fs::create_dir(path).unwrap(),
        // A socket's path may not be as long.
        "socket" => mknodat(CWD, path, FileType::Socket, Mode::RUSR | Mode::WUSR, 0).unwrap(),
        "device" => std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
        _ => File::create(path).and_then(|file| file.set_len(2 << 30)).unwrap(),
    }
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

struct Attempt {
    child: Child,
    manager: UnixDatagram,
    log: PathBuf,
}

impl Attempt {
    /// Starts keyd in a folder as it is.
    fn new(folder: &Path) -> Self {
        let notify = folder.join("notify");
        let _ = fs::remove_file(&notify);
        let manager = UnixDatagram::bind(&notify).unwrap();
        manager.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let log = folder.join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_edgekeep-keyd"))
            .env(ROOT_VARIABLE, folder)
            .env("NOTIFY_SOCKET", &notify)
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, manager, log }
    }

    /// Waits until it is ready (`None`) or has ended.
    fn outcome(&mut self) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            if self.manager.recv(&mut [0; 64]).is_ok() {
                return None;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            assert!(begun.elapsed() < DEADLINE, "it neither serves nor ends: {}", self.log());
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn terminate(&mut self) -> Duration {
        let begun = Instant::now();
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.child.wait().unwrap();
        begun.elapsed()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A root with a store that has been used.
fn used() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let keyd = Keyd::start(folder.path());
    let key = keyd.key("a-key");
    keyd.hmac(&key);
    keyd.handle("/keypair", &json!({"keyId": "a-pair", "preferredAlgorithms": "ec-p256"}));
    keyd.stop();
    folder
}

#[test]
fn whatever_stands_in_place_of_one_of_its_files_it_serves_or_says_which_and_why() {
    let folder = used();
    let state = Root::new(folder.path()).state_folder(Daemon::Keyd);
    let settings = Root::new(folder.path()).settings_file(Daemon::Keyd);
    let mut there = files(&state);
    there.push(settings.clone());
    assert!(there.len() >= 8, "{there:?}");
    for (at, file) in there.iter().enumerate() {
        // The one that hung, and another one in turn.
        for (kind, told) in [KINDS[0], KINDS[1 + at % 4]] {
            let trial = tempfile::tempdir().unwrap();
            copy(&folder.path().join("."), trial.path());
            let odd = trial.path().join(file.strip_prefix(folder.path()).unwrap());
            fs::remove_file(&odd).unwrap();
            put(kind, &odd);
            let mut attempt = Attempt::new(trial.path());
            let outcome = attempt.outcome();
            let log = attempt.log();
            // The way to the device is a link, and some files may be none.
            let link = kind == "device" && log.contains("a link in place of a file");
            let said = (log.contains(told) || link)
                && log.contains(odd.file_name().unwrap().to_str().unwrap());
            match outcome {
                None => {
                    assert!(attempt.terminate() < Duration::from_secs(10), "{kind} {odd:?}: {log}");
                }
                Some(status) => {
                    assert!(said, "{kind} {odd:?}: {log}");
                    let code = if *file == settings { 153 } else { 1 };
                    assert_eq!(status.code(), Some(code), "{kind} {odd:?}: {log}");
                }
            }
        }
    }
}

#[test]
fn a_store_key_that_is_open_to_others_is_closed_with_a_warning_and_not_believed_where_they_could_reach_it()
 {
    let folder = used();
    let state = Root::new(folder.path()).state_folder(Daemon::Keyd);
    let store_key = state.join("store.key");
    let mode =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&store_key, 0o666);
    let mut attempt = Attempt::new(folder.path());
    assert_eq!(attempt.outcome(), None, "{}", attempt.log());
    assert!(attempt.log().contains("were for others too"), "{}", attempt.log());
    assert_eq!(fs::metadata(&store_key).unwrap().permissions().mode() & 0o777, 0o600);
    attempt.terminate();
    mode(&store_key, 0o666);
    mode(&state, 0o755);
    let mut attempt = Attempt::new(folder.path());
    assert_eq!(attempt.outcome().and_then(|status| status.code()), Some(1), "{}", attempt.log());
    assert!(
        attempt.log().contains("store.key") && attempt.log().contains("chmod go-w"),
        "{}",
        attempt.log()
    );
    // The remedy that the message names.
    mode(&store_key, 0o644);
    let mut attempt = Attempt::new(folder.path());
    assert_eq!(attempt.outcome(), None, "{}", attempt.log());
}

#[test]
fn it_ends_within_a_second_while_hardware_keeps_its_start_waiting() {
    let folder = tempfile::tempdir().unwrap();
    // A TPM that takes commands and never answers.
    let tpm = UnixListener::bind(folder.path().join("tpm")).unwrap();
    let settings = Root::new(folder.path()).settings_file(Daemon::Keyd);
    fs::create_dir_all(settings.parent().unwrap()).unwrap();
    let tcti = format!("swtpm:path={}", folder.path().join("tpm").display());
    fs::write(
        &settings,
        json!({"principals": [], "tpm": {"tcti": tcti, "auth_key_index": 0}}).to_string(),
    )
    .unwrap();
    let mut attempt = Attempt::new(folder.path());
    tpm.set_nonblocking(true).unwrap();
    let begun = Instant::now();
    let mut commands = loop {
        match tpm.accept() {
            Ok((stream, _)) => break stream,
            Err(_) => assert!(begun.elapsed() < DEADLINE, "{}", attempt.log()),
        }
        if let Some(status) = attempt.child.try_wait().unwrap() {
            panic!("{status}: {}", attempt.log());
        }
        std::thread::park_timeout(Duration::from_millis(5));
    };
    commands.set_nonblocking(false).unwrap();
    std::io::Read::read_exact(&mut commands, &mut [0; 10]).unwrap();
    let took = attempt.terminate();
    assert!(took < Duration::from_secs(1), "{took:?}");
}
