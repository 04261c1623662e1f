//! moduled, its gauge and its launcher from within.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use edgekeep_api::operations::SandboxReport;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_moduled::{ConfinedGauge, ConfinedLauncher, Prepared};
use edgekeep_runtime::gauge::{Answer, Asked};

use crate::Test;
use crate::attack::{Row, attack, attack_by_children, check, device};

pub(crate) const TESTS: &[Test] = &[
    ("moduled_is_refused_every_forbidden_thing_in_every_thread", moduled),
    ("moduled_puts_sockets_pipes_and_links_into_its_own_folder_alone", own_folder),
    ("without_sandbox_moduled_is_refused_nothing_and_says_so", without),
    ("the_gauge_changes_starts_and_connects_nothing_in_every_thread", gauge),
    ("the_confined_gauge_sees_processes_and_reads_programs", gauge_works),
    ("the_launcher_and_all_that_it_starts_are_refused_what_no_host_module_may_do", launcher),
    ("a_host_module_without_a_list_has_the_calls_that_need_no_capability", unbounded),
];

/// The work of moduled: its APIs, the engine, sockets of modules, and facts that any user
/// may see.
const WORK_OF_MODULED: &[&str] = &[
    "socket AF_UNIX",
    "socketpair",
    "listen",
    "a symbolic link in its folder",
    "an anonymous file",
    "list processes",
    "the kernel's settings",
];

/// The work of the gauge: to read whatever is there.
const WORK_OF_GAUGE: &[&str] = &[
    "read /etc/shadow",
    "read a daemon's settings",
    "read a daemon's state",
    "read another daemon's state",
    "list /",
    "list processes",
    "the kernel's settings",
    "a device",
    "read another process's memory as a file",
    "read another process's memory at its address",
    "read another process's environment",
];

/// Calls that neither the launcher nor a host module with the default list may make.
const REFUSED_TO_LAUNCHER: &[&str] = &[
    "a file by its handle",
    "socket AF_PACKET",
    "socket AF_ALG",
    "socket AF_VSOCK",
    "a process with a user namespace",
    "a process by clone3",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "pidfd_getfd",
    "another executable of its own",
    "a listener of system calls",
    "unshare",
    "setns",
    "chroot",
    "mount",
    "umount",
    "bpf",
    "io_uring",
    "perf_event_open",
    "userfaultfd",
    "a kernel module",
    "another kernel",
    "reboot",
    "keyctl",
    "add_key",
    "the kernel's log",
    "the clock",
];

fn settle(folder: &Path, settings: &str) -> Root {
    let root = Root::new(folder);
    fs::write(root.settings_file(Daemon::Moduled), settings).unwrap();
    // Files without content are in the sockets' places, to be attacked.
    let _ = fs::remove_file(root.management_socket());
    root
}

/// moduled up to where its runtime begins, in this process.
fn start(folder: &Path, settings: &str) -> (Prepared, SandboxReport) {
    let root = settle(folder, settings);
    let prepared = Prepared::new(root, edgekeep_moduled::begin().unwrap()).unwrap();
    let report = prepared.sandbox().clone();
    (prepared, report)
}

const PLAIN: &str = r#"{ "hostname": "h" }"#;

fn moduled(folder: &Path) {
    check(&attack(folder, Daemon::Moduled, || start(folder, PLAIN)), WORK_OF_MODULED);
}

fn own_folder(folder: &Path) {
    device(folder, Daemon::Moduled);
    let (_prepared, report) = start(folder, PLAIN);
    assert!(report.layers.iter().all(|layer| layer.full), "{report:?}");
    let root = Root::new(folder);
    let own = root.state_folder(Daemon::Moduled);
    fs::create_dir(own.join("private")).unwrap();
    UnixListener::bind(own.join("private/s")).unwrap();
    fs::rename(own.join("private/s"), root.module_socket_folder().join("s")).unwrap();
    let pipe = |path: &Path| {
        use rustix::fs::{CWD, FileType, Mode};
        rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0)
    };
    pipe(&own.join("pipe")).unwrap();
    std::os::unix::fs::symlink("s", own.join("link")).unwrap();
    let refused = |done: io::Result<()>| {
        assert_eq!(done.map_err(|error| error.raw_os_error()), Err(Some(libc::EACCES)));
    };
    let beside = root.keyd_socket().with_file_name("other.sock");
    refused(UnixListener::bind(&beside).map(drop));
    refused(pipe(&beside).map_err(Into::into));
    refused(std::os::unix::fs::symlink("s", &beside));
    // What is served is within reach, what is not is refused whoever it belongs to.
    fs::read_to_string("/proc/meminfo").unwrap();
    refused(fs::read("/etc/passwd").map(drop));
}

fn without(folder: &Path) {
    device(folder, Daemon::Moduled);
    let (_prepared, report) = start(folder, r#"{ "hostname": "h", "sandbox": false }"#);
    assert!(!report.enabled && report.layers.is_empty());
    fs::read("/etc/passwd").unwrap();
    Command::new("/bin/true").status().unwrap();
    let gauge = ConfinedGauge::begin(&Root::new(folder)).unwrap();
    assert!(!gauge.sandbox.enabled, "{:?}", gauge.sandbox);
}

fn begin_gauge(folder: &Path) -> (ConfinedGauge, SandboxReport) {
    let gauge = ConfinedGauge::begin(&settle(folder, PLAIN)).unwrap();
    let report = gauge.sandbox.clone();
    (gauge, report)
}

fn gauge(folder: &Path) {
    check(&attack(folder, Daemon::Moduled, || begin_gauge(folder)), WORK_OF_GAUGE);
}

fn gauge_works(folder: &Path) {
    device(folder, Daemon::Moduled);
    // It ends when this process does.
    #[expect(clippy::zombie_processes, reason = "it cannot be ended from within")]
    let mut sleeper = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&sleeper);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let (ConfinedGauge { runtime, service, .. }, report) = begin_gauge(folder);
    assert!(report.enabled && report.layers.iter().all(|layer| layer.full), "{report:?}");
    let ask = |asked: serde_json::Value, files: Vec<OwnedFd>| {
        let asked: Asked = serde_json::from_value(asked).unwrap();
        runtime.block_on(service.answer(asked, files)).0
    };
    let number = sleeper.id();
    let look = serde_json::json!({ "Look": {
        "pid": number, "stop_at": null, "again": false, "connection": null, "measured": null, "keep": true,
    }});
    let Answer::Seen(seen) = ask(look, vec![pidfd.as_fd().try_clone_to_owned().unwrap()]) else {
        panic!("the process is not seen");
    };
    assert_eq!(seen.snapshot.process.pid, number);
    assert!(seen.path.unwrap().ends_with("cat") && seen.ancestry.len() > 1);
    let measure = serde_json::json!({ "Measure": {
        "snapshot": seen.snapshot, "compared": { "started_from": {}, "image": null }, "folders": [], "keep": true,
    }});
    let measured = ask(measure, vec![pidfd]);
    assert!(matches!(measured, Answer::Measured(_) | Answer::Unseen(_)), "{measured:?}");
    println!("{measured:?}");
    let runs = serde_json::json!({ "Runs": {
        "uid": rustix::process::geteuid().as_raw(), "executable": fs::canonicalize("/bin/cat").unwrap(),
    }});
    assert!(matches!(ask(runs, Vec::new()), Answer::Runs(Some(true))));
    let first = ask(serde_json::json!({ "First": { "pid": number } }), Vec::new());
    assert!(matches!(first, Answer::First(Some(_))), "{first:?}");
    drop(runtime);
    // Neither may end the process from within.
    let ended = sleeper.kill().map_err(|error| error.raw_os_error());
    assert_eq!(ended, Err(Some(libc::EPERM)));
}

fn begin_launcher(folder: &Path, settings: &str) -> (ConfinedLauncher, SandboxReport) {
    let launcher = ConfinedLauncher::begin(&settle(folder, settings)).unwrap();
    let report = launcher.sandbox.clone();
    (launcher, report)
}

fn with_module(more: &str) -> String {
    let sha256 = "1".repeat(64);
    format!(
        r#"{{ "hostname": "h", "host_modules": {{ "m": {{ "executable": "/bin/sleep", "sha256": "{sha256}" {more} }} }} }}"#
    )
}

/// Those of them that the launcher is to be refused.
fn of_launcher(rows: &[Row], refused: &[&str]) -> Vec<Row> {
    let rows: Vec<Row> = rows.iter().filter(|row| refused.contains(&row.0)).copied().collect();
    assert_eq!(rows.len(), refused.len());
    rows
}

fn launcher(folder: &Path) {
    let start = || begin_launcher(folder, &with_module(""));
    let rows = attack_by_children(folder, Daemon::Moduled, start);
    check(&of_launcher(&rows, REFUSED_TO_LAUNCHER), &[]);
    // What it is for is left.
    let after = |name: &str| rows.iter().find(|row| row.0 == name).unwrap().2;
    for name in ["execve", "an anonymous file", "kill", "a process by clone"] {
        assert_eq!(after(name), 0, "{name}");
    }
}

fn unbounded(folder: &Path) {
    let start = || begin_launcher(folder, &with_module(r#", "seccomp": "none""#));
    let rows = attack_by_children(folder, Daemon::Moduled, start);
    let refused =
        ["another executable of its own", "a listener of system calls", "a kernel module"];
    check(&of_launcher(&rows, &refused), &[]);
    // Those that take no capability.
    for name in ["keyctl", "io_uring"] {
        let (_, before, after, refused) = rows.iter().find(|row| row.0 == name).unwrap();
        assert!(before == after && !refused.contains(after), "{name}: {before}, {after}");
    }
}
