//! Attacks on a daemon from within: once without its sandbox, once with it, and the
//! answers that are expected.
#![allow(unsafe_code, reason = "processes that are copies of this one")]

use std::fs;
use std::path::Path;

use edgekeep_api::operations::SandboxReport;
use edgekeep_core::layout::{Daemon, Root};
use libc::c_int;

use crate::attempts::{Attempt, attempts};

/// An attempt's name, its answers without sandbox and within, and what the sandbox should
/// answer.
pub(crate) type Row = (&'static str, c_int, c_int, &'static [c_int]);

pub(crate) fn fork() -> c_int {
    // SAFETY: this process has one thread.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    pid
}

/// The exit code of a child; -1 if it was killed.
pub(crate) fn wait(child: c_int) -> c_int {
    let mut status = 0;
    // SAFETY: `status` is writable.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
}

/// Makes a folder of a device in which there is something to attack for a daemon.
pub(crate) fn device(folder: &Path, own: Daemon) {
    let root = Root::new(folder);
    for daemon in [Daemon::Keyd, Daemon::Identityd, Daemon::Moduled] {
        fs::create_dir_all(root.state_folder(daemon)).unwrap();
        fs::create_dir_all(root.settings_file(daemon).parent().unwrap()).unwrap();
        fs::write(root.settings_file(daemon), "{}").unwrap();
        fs::write(root.state_folder(daemon).join("state"), "state").unwrap();
    }
    fs::create_dir_all(root.management_socket().parent().unwrap()).unwrap();
    fs::create_dir_all(root.keyd_socket().parent().unwrap()).unwrap();
    fs::write(root.management_socket(), "").unwrap();
    let own = root.state_folder(own).join("own");
    fs::copy("/bin/true", own).unwrap();
}

/// Starts a daemon, and returns the errors of each attempt before and after. What `start`
/// returns lives that long.
pub(crate) fn attack<T>(
    folder: &Path,
    own: Daemon,
    start: impl FnOnce() -> (T, SandboxReport),
) -> Vec<Row> {
    device(folder, own);
    let (target, _alive) = sleeper();
    let attempts = attempts(folder, own, target);
    let before: Vec<c_int> = attempts.iter().map(made_by_a_child).collect();
    device(folder, own);
    edgekeep_sandbox::privileges::hide_memory().unwrap();
    let (_started, report) = start();
    assert!(report.enabled && report.layers.iter().all(|layer| layer.full), "{report:?}");
    let all = || attempts.iter().map(|attempt| (attempt.make)()).collect::<Vec<_>>();
    // Threads that are made now come under it as well.
    let in_thread = std::thread::scope(|scope| scope.spawn(all).join().unwrap());
    let after = all();
    assert_eq!(in_thread, after, "threads differ");
    rows(&attempts, before, after)
}

/// Does the same for a process that may still change itself: all attempts are made by
/// children, which inherit what it has given up.
pub(crate) fn attack_by_children<T>(
    folder: &Path,
    own: Daemon,
    start: impl FnOnce() -> (T, SandboxReport),
) -> Vec<Row> {
    device(folder, own);
    let (target, _alive) = sleeper();
    let attempts = attempts(folder, own, target);
    let before: Vec<c_int> = attempts.iter().map(made_by_a_child).collect();
    device(folder, own);
    let (_started, report) = start();
    assert!(report.enabled && report.layers.iter().all(|layer| layer.full), "{report:?}");
    let after = attempts.iter().map(made_by_a_child).collect();
    rows(&attempts, before, after)
}

fn rows(attempts: &[Attempt], before: Vec<c_int>, after: Vec<c_int>) -> Vec<Row> {
    let rows = attempts.iter().zip(before).zip(after);
    rows.map(|((attempt, before), after)| (attempt.name, before, after, attempt.refused)).collect()
}

/// Some of them change the process that makes them, and one that is not ours to be
/// killed.
fn made_by_a_child(attempt: &Attempt) -> c_int {
    match fork() {
        0 => {
            let target_lives = attempt.name != "SIGABRT to another process";
            // SAFETY: ends this process, which is a copy.
            unsafe { libc::_exit(if target_lives { (attempt.make)() } else { 0 }) }
        }
        child => wait(child),
    }
}

/// A process to attack, which ends when `alive` is closed. (The signal at a parent's
/// death would not do: it comes from within the sandbox, and is kept there.)
fn sleeper() -> (c_int, std::io::PipeWriter) {
    use std::io::Read as _;
    let (mut until, alive) = std::io::pipe().unwrap();
    match fork() {
        0 => {
            drop(alive);
            let _ = until.read(&mut [0]);
            // SAFETY: ends this process, which is a copy.
            unsafe { libc::_exit(0) }
        }
        child => (child, alive),
    }
}

/// Checks that all attempts but `allowed` were refused as they should be, and that it was
/// the sandbox that refused them.
pub(crate) fn check(rows: &[Row], allowed: &[&str]) {
    let mut wrong = Vec::new();
    let mut shown = 0;
    for (name, before, after, refused) in rows {
        let is_refused = refused.contains(after);
        if is_refused == allowed.contains(name) {
            wrong.push(format!(
                "{name}: {before} before, {after} inside, expected one of {refused:?}"
            ));
        }
        shown += usize::from(!refused.contains(before));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Some are refused to whom has no rights, or by what is around a container.
    let needed = if rustix::process::geteuid().is_root() {
        rows.len().saturating_sub(8)
    } else {
        rows.len() / 2
    };
    let unshown: Vec<_> =
        rows.iter().filter(|row| row.3.contains(&row.1)).map(|row| row.0).collect();
    println!(
        "{} attempts, {shown} of which got past this point without sandbox; not: {unshown:?}",
        rows.len()
    );
    assert!(shown >= needed, "{unshown:?}");
}
