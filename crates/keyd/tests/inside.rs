//! keyd turned against its device: starts as keyd does, in this process, and then tries what an attacker who has taken it over
//! would try. Each attempt is first made by a child without sandbox, to see that it is the sandbox that refuses it.
//!
//! It is a program of its own without a test harness, since a harness has threads before it begins, and so that nothing of it is in
//! any build of keyd. As a test runner expects it, it lists its tests, and runs the one that is named.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]
#![allow(unsafe_code, reason = "system calls that no library would make")]

use std::ffi::CString;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, ExitCode};

use edgekeep_core::hardware::{SandboxSettings, SecretText, TokenSettings, TpmSettings};
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::KeydSettings;
use edgekeep_keyd::Ready;
use libc::{c_int, c_long, c_ulong, c_void};

/// A test's name, and what it does in a device's folder.
type Test = (&'static str, fn(&Path));

const TESTS: &[Test] = &[
    ("with_software_keys_every_forbidden_thing_is_refused_in_every_thread", software),
    ("with_a_token_every_forbidden_thing_is_refused_but_code_from_files", token),
    ("with_a_simulated_tpm_only_its_port_is_reached", simulated_tpm),
    ("the_audit_log_is_rotated_inside", rotation),
    ("without_sandbox_nothing_is_refused_and_the_report_says_so", without),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has("--list") {
        for (name, _) in TESTS.iter().filter(|_| !has("--ignored")) {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let chosen = TESTS.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    let chosen: Vec<_> = chosen.collect();
    if let [(_, test)] = chosen[..] {
        let folder = tempfile::tempdir().unwrap();
        // Removed by somebody who may.
        match fork() {
            0 => {
                test(folder.path());
                return ExitCode::SUCCESS;
            }
            child => return if wait(child) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE },
        }
    }
    for (name, _) in chosen {
        let ran = Command::new(std::env::current_exe().unwrap()).arg(name).status().unwrap();
        println!("test {name} ... {}", if ran.success() { "ok" } else { "FAILED" });
        if !ran.success() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn fork() -> c_int {
    // SAFETY: this process has one thread.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    pid
}

/// The exit code of a child; -1 if it was killed.
fn wait(child: c_int) -> c_int {
    let mut status = 0;
    // SAFETY: `status` is writable.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
}

/// A call with its arguments; 0 or the error's number.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        // SAFETY: the arguments are numbers, or point to what lives for the whole call.
        let answer = unsafe { libc::syscall($number as c_long $(, $argument)*) };
        if answer < 0 { std::io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
    }};
}

/// An attempt: its name, and what makes it.
struct Attempt {
    name: &'static str,
    make: Box<dyn Fn() -> c_int + Send + Sync>,
    /// What the sandbox answers.
    refused: &'static [c_int],
}

const NULL: *const c_void = std::ptr::null();
/// By the list of system calls.
const CALL: &[c_int] = &[libc::EPERM];
/// By Landlock.
const FILE: &[c_int] = &[libc::EACCES];
/// By what has no such call for the C library.
const ABSENT: &[c_int] = &[libc::ENOSYS];

fn attempts(folder: &Path, target: c_int) -> Vec<Attempt> {
    let mut all: Vec<Attempt> = Vec::new();
    let mut add = |name, refused, make: Box<dyn Fn() -> c_int + Send + Sync>| all.push(Attempt { name, make, refused });
    let text = |path: &str| CString::new(path).unwrap();
    let open = |path: &str, flags: c_int| -> Box<dyn Fn() -> c_int + Send + Sync> {
        let path = text(path);
        Box::new(move || call!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600))
    };
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();

    // Files.
    let root = Root::new(folder);
    let settings = |daemon| root.settings_file(daemon).to_str().unwrap().to_owned();
    add("read /etc/passwd", FILE, open("/etc/passwd", libc::O_RDONLY));
    add("read another daemon's settings", FILE, open(&settings(Daemon::Identityd), libc::O_RDONLY));
    add("write another daemon's settings", FILE, open(&settings(Daemon::Moduled), libc::O_WRONLY));
    add("write its own settings", FILE, open(&settings(Daemon::Keyd), libc::O_WRONLY));
    add("read another daemon's state", FILE, open(&at("var/lib/edgekeep/identityd/state"), libc::O_RDONLY));
    add("make a file beside its folder", FILE, open(&at("new"), libc::O_WRONLY | libc::O_CREAT));
    add("make a file in /tmp", FILE, open("/tmp", libc::O_WRONLY | libc::O_TMPFILE));
    add("list /", FILE, open("/", libc::O_RDONLY | libc::O_DIRECTORY));
    add("list processes", FILE, open("/proc", libc::O_RDONLY | libc::O_DIRECTORY));
    add("its own memory as a file", FILE, open("/proc/self/mem", libc::O_RDWR));
    add("the kernel's settings", FILE, open("/proc/sys/kernel/core_pattern", libc::O_RDONLY));
    add("a device", FILE, open("/dev/zero", libc::O_RDONLY));
    let (socket, moved) = (text(&at("run/aziot/identityd.sock")), text(&at("var/lib/edgekeep/keyd/moved")));
    let mine = text(&at("var/lib/edgekeep/keyd/own"));
    let from = socket.clone();
    add(
        "remove another daemon's socket",
        FILE,
        Box::new(move || call!(libc::SYS_unlinkat, libc::AT_FDCWD, from.as_ptr(), 0)),
    );
    add("move a file into its folder", &[libc::EACCES, libc::EXDEV], {
        let moved = moved.clone();
        Box::new(move || call!(libc::SYS_renameat2, libc::AT_FDCWD, socket.as_ptr(), libc::AT_FDCWD, moved.as_ptr(), 0))
    });
    add("a symbolic link in its folder", CALL, {
        let moved = moved.clone();
        Box::new(move || call!(libc::SYS_symlinkat, c"/etc/passwd".as_ptr(), libc::AT_FDCWD, moved.as_ptr()))
    });
    add("a device node in its folder", CALL, {
        Box::new(move || call!(libc::SYS_mknodat, libc::AT_FDCWD, moved.as_ptr(), libc::S_IFCHR | 0o600, 0x0103))
    });
    add("a file by its handle", CALL, Box::new(move || call!(libc::SYS_open_by_handle_at, -1, NULL, 0)));
    add("truncate by name", CALL, {
        Box::new(move || call!(libc::SYS_truncate, c"/tmp/edgekeep-inside-none".as_ptr(), 0))
    });
    add("an executable file in its folder, run", CALL, {
        Box::new(move || call!(libc::SYS_execve, mine.as_ptr(), NULL, NULL))
    });

    // Network.
    for (name, domain, kind) in [
        ("socket AF_INET stream", libc::AF_INET, libc::SOCK_STREAM),
        ("socket AF_INET datagram", libc::AF_INET, libc::SOCK_DGRAM),
        ("socket AF_INET raw", libc::AF_INET, libc::SOCK_RAW),
        ("socket AF_INET6", libc::AF_INET6, libc::SOCK_STREAM),
        ("socket AF_NETLINK", libc::AF_NETLINK, libc::SOCK_RAW),
        ("socket AF_PACKET", libc::AF_PACKET, libc::SOCK_RAW),
        ("socket AF_UNIX", libc::AF_UNIX, libc::SOCK_STREAM),
        ("socket AF_ALG", libc::AF_ALG, libc::SOCK_SEQPACKET),
        ("socket AF_VSOCK", libc::AF_VSOCK, libc::SOCK_STREAM),
    ] {
        add(name, CALL, Box::new(move || call!(libc::SYS_socket, domain, kind, 0)));
    }
    let pair = || {
        let mut pair = [0; 2];
        call!(libc::SYS_socketpair, libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr())
    };
    add("socketpair", CALL, Box::new(pair));
    add("listen", CALL, Box::new(move || call!(libc::SYS_listen, -1, 1)));

    // Programs and processes.
    add("execve", CALL, Box::new(move || call!(libc::SYS_execve, c"/bin/true".as_ptr(), NULL, NULL)));
    add("execveat", CALL, Box::new(move || call!(libc::SYS_execveat, -1, c"/bin/true".as_ptr(), NULL, NULL, 0)));
    let child = |flags: c_int| call!(libc::SYS_clone, c_ulong::from(flags as u32), NULL, NULL, NULL, 0);
    add("a process by clone", CALL, Box::new(move || ends_in_a_child(|| child(libc::SIGCHLD))));
    add("a process with a user namespace", CALL, {
        Box::new(move || ends_in_a_child(|| child(libc::SIGCHLD | libc::CLONE_NEWUSER)))
    });
    add("a process by clone3", ABSENT, Box::new(move || call!(libc::SYS_clone3, NULL, 0)));
    #[cfg(target_arch = "x86_64")]
    add("a process by fork", CALL, Box::new(|| ends_in_a_child(|| call!(libc::SYS_fork))));
    add("kill", CALL, Box::new(move || call!(libc::SYS_kill, target, 0)));
    add("kill all", CALL, Box::new(move || call!(libc::SYS_kill, -1, 0)));
    add("a signal to a thread", CALL, Box::new(move || call!(libc::SYS_tgkill, target, target, 0)));
    add("SIGABRT to another process", &[libc::EPERM], {
        Box::new(move || call!(libc::SYS_tgkill, target, target, libc::SIGABRT))
    });
    add("ptrace", CALL, Box::new(move || call!(libc::SYS_ptrace, libc::PTRACE_SEIZE, target, NULL, NULL)));
    add("process_vm_readv", CALL, Box::new(move || call!(libc::SYS_process_vm_readv, target, NULL, 0, NULL, 0, 0)));
    add("process_vm_writev", CALL, {
        Box::new(move || call!(libc::SYS_process_vm_writev, target, NULL, 0, NULL, 0, 0))
    });
    add("pidfd_getfd", CALL, Box::new(|| call!(libc::SYS_pidfd_getfd, -1, 0, 0)));
    add("pidfd_send_signal", CALL, Box::new(move || call!(libc::SYS_pidfd_send_signal, -1, 0, NULL, 0)));
    add("limits of another process", CALL, {
        Box::new(move || call!(libc::SYS_prlimit64, target, libc::RLIMIT_NOFILE, NULL, NULL))
    });
    add("signals by a descriptor's owner", CALL, {
        Box::new(move || call!(libc::SYS_fcntl, 2, libc::F_SETOWN, target))
    });

    // Rights.
    add("unshare", CALL, Box::new(|| call!(libc::SYS_unshare, libc::CLONE_NEWUSER)));
    add("setns", CALL, Box::new(|| call!(libc::SYS_setns, -1, 0)));
    add("setuid", CALL, Box::new(|| call!(libc::SYS_setuid, 65534)));
    add("setgid", CALL, Box::new(|| call!(libc::SYS_setgid, 65534)));
    add("setgroups", CALL, Box::new(move || call!(libc::SYS_setgroups, 0, NULL)));
    add("capset", CALL, Box::new(move || call!(libc::SYS_capset, NULL, NULL)));
    add("dumpable again", CALL, Box::new(|| call!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0)));
    add("another seccomp filter", CALL, Box::new(move || call!(libc::SYS_seccomp, 1, 0, NULL)));
    add("personality", CALL, Box::new(|| call!(libc::SYS_personality, libc::READ_IMPLIES_EXEC)));
    add("chroot", CALL, Box::new(|| call!(libc::SYS_chroot, c"/".as_ptr())));

    // The kernel.
    add("mount", CALL, {
        Box::new(move || call!(libc::SYS_mount, c"none".as_ptr(), c"/no".as_ptr(), c"tmpfs".as_ptr(), 0, NULL))
    });
    add("umount", CALL, Box::new(|| call!(libc::SYS_umount2, c"/no".as_ptr(), 0)));
    add("bpf", CALL, Box::new(move || call!(libc::SYS_bpf, 0, NULL, 0)));
    add("io_uring", CALL, Box::new(move || call!(libc::SYS_io_uring_setup, 1, NULL)));
    add("perf_event_open", CALL, Box::new(move || call!(libc::SYS_perf_event_open, NULL, 0, -1, -1, 0)));
    add("userfaultfd", CALL, Box::new(|| call!(libc::SYS_userfaultfd, 0x8000)));
    add("a kernel module", CALL, Box::new(|| call!(libc::SYS_finit_module, -1, c"".as_ptr(), 0)));
    add("another kernel", CALL, Box::new(move || call!(libc::SYS_kexec_load, 0, 17, NULL, 0x7777)));
    add("reboot", CALL, Box::new(move || call!(libc::SYS_reboot, 1, 2, 3, NULL)));
    add("keyctl", CALL, Box::new(|| call!(libc::SYS_keyctl, 0, -3, 0)));
    add("add_key", CALL, {
        Box::new(move || call!(libc::SYS_add_key, c"user".as_ptr(), c"k".as_ptr(), c"v".as_ptr(), 1 << 20, -3))
    });
    add("the kernel's log", CALL, Box::new(move || call!(libc::SYS_syslog, 10, NULL, 0)));
    add("the clock", CALL, Box::new(move || call!(libc::SYS_settimeofday, NULL, NULL)));
    add("shared memory", CALL, Box::new(|| call!(libc::SYS_shmget, 0x7e57, 4096, 0)));
    add("watching files", CALL, Box::new(|| call!(libc::SYS_inotify_init1, 0)));
    add("a terminal's input", CALL, Box::new(|| call!(libc::SYS_ioctl, 2, libc::TIOCSTI, c"x".as_ptr())));
    #[cfg(target_arch = "x86_64")]
    {
        add("a call by its x32 number", CALL, Box::new(|| call!(0x4000_0000 + libc::SYS_getpid)));
        add("ports of the machine", CALL, Box::new(|| call!(libc::SYS_ioperm, 0x80, 1, 1)));
    }

    // Code.
    add("an anonymous file", CALL, Box::new(|| call!(libc::SYS_memfd_create, c"x".as_ptr(), 0)));
    let map = |protection: c_int, flags: c_int, fd: c_int| call!(libc::SYS_mmap, NULL, 4096, protection, flags, fd, 0);
    let private = libc::MAP_PRIVATE;
    add("code in anonymous memory", CALL, {
        Box::new(move || map(libc::PROT_READ | libc::PROT_EXEC, private | libc::MAP_ANONYMOUS, -1))
    });
    add("data turned into code", CALL, {
        Box::new(move || {
            // SAFETY: a fresh page.
            let page = unsafe {
                libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, private | libc::MAP_ANONYMOUS, -1, 0)
            };
            call!(libc::SYS_mprotect, page, 4096, libc::PROT_READ | libc::PROT_EXEC)
        })
    });
    let own = File::open(folder.join("var/lib/edgekeep/keyd/own")).unwrap();
    add("code from a file", CALL, {
        Box::new(move || map(libc::PROT_READ | libc::PROT_EXEC, private, std::os::fd::AsRawFd::as_raw_fd(&own)))
    });
    all
}

/// A child ends here; its parent goes on.
fn ends_in_a_child(make: impl Fn() -> c_int) -> c_int {
    let parent = std::process::id();
    let answer = make();
    if std::process::id() != parent {
        // SAFETY: ends this process, which is a copy.
        unsafe { libc::_exit(0) };
    }
    answer
}

/// Makes a folder of a device in which there is something to attack.
fn device(folder: &Path) {
    let root = Root::new(folder);
    for daemon in [Daemon::Keyd, Daemon::Identityd, Daemon::Moduled] {
        fs::create_dir_all(root.state_folder(daemon)).unwrap();
        fs::create_dir_all(root.settings_file(daemon).parent().unwrap()).unwrap();
        fs::write(root.settings_file(daemon), "{}").unwrap();
        fs::write(root.state_folder(daemon).join("state"), "state").unwrap();
    }
    fs::create_dir_all(root.keyd_socket().parent().unwrap()).unwrap();
    fs::write(root.identityd_socket(), "").unwrap();
    let own = root.state_folder(Daemon::Keyd).join("own");
    fs::copy("/bin/true", own).unwrap();
}

/// Starts keyd, and returns the errors of each attempt before and after.
fn attack(folder: &Path, settings: &KeydSettings) -> Vec<(&'static str, c_int, c_int, &'static [c_int])> {
    device(folder);
    let (target, _alive) = sleeper();
    let attempts = attempts(folder, target);
    // A child each, since some of them change the process that makes them, and one that is not ours to be killed.
    let before: Vec<c_int> = attempts
        .iter()
        .map(|attempt| match fork() {
            0 => {
                let target_lives = attempt.name != "SIGABRT to another process";
                // SAFETY: ends this process, which is a copy.
                unsafe { libc::_exit(if target_lives { (attempt.make)() } else { 0 }) }
            }
            child => wait(child),
        })
        .collect();
    device(folder);
    edgekeep_sandbox::privileges::hide_memory().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ready = runtime.block_on(async { Ready::open(&Root::new(folder), settings).unwrap() });
    let report = ready.sandbox();
    assert!(report.enabled && report.layers.iter().all(|layer| layer.full), "{report:?}");
    let all = || attempts.iter().map(|attempt| (attempt.make)()).collect::<Vec<_>>();
    // Threads that are made now come under it as well.
    let in_thread = std::thread::scope(|scope| scope.spawn(all).join().unwrap());
    let after = all();
    assert_eq!(in_thread, after, "threads differ");
    let rows = attempts.iter().zip(before).zip(after);
    rows.map(|((attempt, before), after)| (attempt.name, before, after, attempt.refused)).collect()
}

/// A process to attack, which ends when `alive` is closed. (The signal at a parent's death would not do: it comes from within the
/// sandbox, and is kept there.)
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

/// Checks that all attempts but `allowed` were refused as they should be, and that it was the sandbox that refused them.
fn check(rows: &[(&'static str, c_int, c_int, &'static [c_int])], allowed: &[&str]) {
    let mut wrong = Vec::new();
    let mut shown = 0;
    for (name, before, after, refused) in rows {
        let is_refused = refused.contains(after);
        if is_refused == allowed.contains(name) {
            wrong.push(format!("{name}: {before} before, {after} inside, expected one of {refused:?}"));
        }
        shown += usize::from(!refused.contains(before));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Some are refused to whom has no rights, or by what is around a container.
    let needed = if rustix::process::geteuid().is_root() { rows.len() - 8 } else { rows.len() / 2 };
    let unshown: Vec<_> = rows.iter().filter(|row| row.3.contains(&row.1)).map(|row| row.0).collect();
    println!("{} attempts, {shown} of which got past this point without sandbox; not: {unshown:?}", rows.len());
    assert!(shown >= needed, "{unshown:?}");
}

fn software(folder: &Path) {
    check(&attack(folder, &KeydSettings::default()), &[]);
}

fn token(folder: &Path) {
    let library = Path::new("/usr/lib/softhsm/libsofthsm2.so");
    let settings = KeydSettings {
        pkcs11: Some(TokenSettings {
            library: Some(library.to_owned()),
            base_slot: Some(SecretText::from("pkcs11:token=none")),
        }),
        sandbox: SandboxSettings { paths: vec![folder.join("tokens")], ..SandboxSettings::default() },
        ..KeydSettings::default()
    };
    // What a library in this process needs: sockets to local services, code from files, and the commands of its devices.
    let allowed = ["socket AF_UNIX", "code from a file", "a terminal's input"];
    check(&attack(folder, &settings), &allowed);
}

fn simulated_tpm(folder: &Path) {
    // Nothing listens there by then, which is an answer as well.
    let vacated = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let (tpm, listening) = (port(&vacated), port(&other));
    drop(vacated);
    let tcti = format!("swtpm:host=127.0.0.1,port={tpm}");
    let settings =
        KeydSettings { tpm: Some(TpmSettings { tcti, ..TpmSettings::default() }), ..KeydSettings::default() };
    let allowed = ["socket AF_INET stream", "socket AF_INET6"];
    check(&attack(folder, &settings), &allowed);
    let connect =
        |port| std::net::TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| error.raw_os_error());
    assert_eq!(connect(listening), Err(Some(libc::EACCES)));
    assert_ne!(connect(tpm), Err(Some(libc::EACCES)));
    let listen = TcpListener::bind("127.0.0.1:0").map(drop).map_err(|error| error.raw_os_error());
    assert_eq!(listen, Err(Some(libc::EPERM)));
}

fn rotation(folder: &Path) {
    use edgekeep_audit::entry::{Entry, Event, Key, Operation, Outcome, Who};
    use edgekeep_audit::{Log, Options, SoftwareSigner};
    device(folder);
    let settings = KeydSettings::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _ready = runtime.block_on(async { Ready::open(&Root::new(folder), &settings).unwrap() });
    let audit = Root::new(folder).state_folder(Daemon::Keyd).join("audit-small");
    for _ in 0..2 {
        let signer = SoftwareSigner::from_seed(&[7; 32]).unwrap();
        let options = Options { segment_bytes: 4096, total_bytes: 16 << 10, reserve_bytes: 4096, ..Options::default() };
        let log = Log::open(&audit, options, Box::new(signer), None).unwrap();
        for number in 0..500 {
            let event = Event::Asked {
                who: Who { uid: 1, pid: None, says: None },
                what: Operation::Sign,
                key: Some(Key::new("device-id".parse().unwrap())),
                outcome: Outcome::Done,
            };
            log.refused(Entry { time: time::OffsetDateTime::now_utc(), event });
            if number % 25 == 0 {
                log.checkpoint().unwrap();
            }
        }
        let sizes: Vec<u64> =
            fs::read_dir(&audit).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
        assert!(sizes.len() > 2 && sizes.iter().sum::<u64>() < 32 << 10, "{sizes:?}");
    }
}

fn without(folder: &Path) {
    device(folder);
    let sandbox = SandboxSettings { enabled: false, ..SandboxSettings::default() };
    let settings = KeydSettings { sandbox, ..KeydSettings::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ready = runtime.block_on(async { Ready::open(&Root::new(folder), &settings).unwrap() });
    assert!(!ready.sandbox().enabled && ready.sandbox().layers.is_empty());
    fs::read("/etc/passwd").unwrap();
}
