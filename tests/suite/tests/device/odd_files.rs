//! Things that are no files in place of the daemons' files: a daemon serves, or ends and
//! says which file and why.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use edgekeep_testkit::{Device, http, program, wait_for};
use rustix::fs::{CWD, FileType, Mode, mknodat};

fn put(kind: &str, path: &Path) {
    let own = Mode::RUSR | Mode::WUSR;
    match kind {
        "a FIFO" => mknodat(CWD, path, FileType::Fifo, own, 0).expect("own folder"),
        "a folder" => fs::create_dir(path).expect("own folder"),
        "a socket" => mknodat(CWD, path, FileType::Socket, own, 0).expect("own folder"),
        "a device" => std::os::unix::fs::symlink("/dev/zero", path).expect("own folder"),
        _ => File::create(path).and_then(|file| file.set_len(2 << 30)).expect("own folder"),
    }
}

/// Files at the top of a daemon's state folder, its settings, and for identityd its
/// certificates.
fn files(root: &Root, daemon: Daemon) -> Vec<PathBuf> {
    let state = root.state_folder(daemon);
    let mut found = vec![root.settings_file(daemon)];
    for folder in [state.join("certs"), state] {
        let entries =
            fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        found.extend(entries.filter(|path| path.is_file()));
    }
    found
}

fn answers(root: &Root, daemon: Daemon) -> bool {
    let socket = match daemon {
        Daemon::Keyd => root.keyd_socket(),
        Daemon::Identityd => root.identityd_socket(),
        Daemon::Moduled => root.management_socket(),
    };
    http::call(&socket, "GET", "/", None).is_ok()
}

/// Starts the daemon, waits until it answers or has ended, and ends it. Its log, and
/// whether it answered.
fn attempt(device: &Device, daemon: Daemon) -> (String, bool) {
    let log = device.root().path().join("attempt.log");
    let mut child = Command::new(program(&format!("edgekeep-{}", daemon.name())))
        .env(ROOT_VARIABLE, device.root().path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).expect("own folder"))
        .spawn()
        .expect("it can be started");
    let answered =
        wait_for(&format!("{} answers or ends", daemon.name()), || match child.try_wait() {
            Ok(Some(status)) => {
                assert!(!status.success(), "{}", fs::read_to_string(&log).unwrap_or_default());
                Some(false)
            }
            _ => answers(device.root(), daemon).then_some(true),
        });
    let _ = child.kill();
    let _ = child.wait();
    (fs::read_to_string(&log).expect("its log"), answered)
}

#[test]
fn identityd_and_moduled_serve_or_say_which_file_is_none() {
    let mut device = Device::builder().start();
    let _ = device.create_identity("press");
    for daemon in [Daemon::Identityd, Daemon::Moduled] {
        assert_eq!(device.stop(daemon).code(), Some(0));
        let there = files(device.root(), daemon);
        assert!(there.len() >= 3, "{there:?}");
        let others = ["a folder", "a socket", "a device", "longer than"];
        for (at, file) in there.iter().enumerate() {
            for kind in ["a FIFO", others[at % others.len()]] {
                let kept = file.with_extension("kept");
                fs::rename(file, &kept).expect("own folder");
                put(kind, file);
                let (log, answered) = attempt(&device, daemon);
                let named = log.contains(kind)
                    && log.contains(&*file.file_name().expect("a name").to_string_lossy());
                assert!(answered || named, "{kind} in place of {}: {log}", file.display());
                let _ = fs::remove_file(file).or_else(|_| fs::remove_dir_all(file));
                fs::rename(&kept, file).expect("own folder");
            }
        }
        device.start(daemon);
    }
}

#[test]
fn config_check_and_apply_refuse_what_is_no_file_at_once() {
    let device = Device::builder().start();
    let config = device.root().config_file();
    for kind in ["a FIFO", "a folder", "a socket", "a device", "longer than"] {
        let _ = fs::remove_file(&config).or_else(|_| fs::remove_dir_all(&config));
        put(kind, &config);
        for verb in ["check", "apply"] {
            let output = device.edgekeep(&["config", verb]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && said.contains(kind), "{verb} of {kind}: {said}");
            assert!(said.contains("config.toml"), "{said}");
        }
    }
}
