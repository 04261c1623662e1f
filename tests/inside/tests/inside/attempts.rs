//! Attempts of an attacker who runs code within a daemon.
#![allow(unsafe_code, reason = "system calls that no library would make")]

use std::ffi::CString;
use std::fs::File;
use std::path::Path;

use edgekeep_core::layout::{Daemon, Root};
use libc::{c_int, c_long, c_ulong, c_void};

/// A call with its arguments; 0 or the error's number.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        // SAFETY: the arguments are numbers, or point to what lives for the whole call.
        let answer = unsafe { libc::syscall($number as c_long $(, $argument)*) };
        if answer < 0 { std::io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
    }};
}

/// An attempt: its name, and what makes it.
pub(crate) struct Attempt {
    pub(crate) name: &'static str,
    pub(crate) make: Box<dyn Fn() -> c_int + Send + Sync>,
    /// Errors with which the sandbox may refuse the attempt.
    pub(crate) refused: &'static [c_int],
}

/// Something to be read in another process that is a copy of this one.
static SECRET: [u8; 6] = *b"secret";

const NULL: *const c_void = std::ptr::null();
/// By the list of system calls.
const CALL: &[c_int] = &[libc::EPERM];
/// By Landlock.
const FILE: &[c_int] = &[libc::EACCES];
/// By Landlock, or without it by the list.
const CHANGE: &[c_int] = &[libc::EACCES, libc::EPERM];
/// By what has no such call for the C library.
const ABSENT: &[c_int] = &[libc::ENOSYS];

pub(crate) fn attempts(folder: &Path, own: Daemon, target: c_int) -> Vec<Attempt> {
    let mut all: Vec<Attempt> = Vec::new();
    let mut add = |name, refused, make: Box<dyn Fn() -> c_int + Send + Sync>| {
        all.push(Attempt { name, make, refused });
    };
    let text = |path: &str| CString::new(path).unwrap();
    let open = |path: &str, flags: c_int| -> Box<dyn Fn() -> c_int + Send + Sync> {
        let path = text(path);
        Box::new(move || call!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600))
    };
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();

    // Files.
    let root = Root::new(folder);
    let path = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    let others: Vec<Daemon> = Daemon::ALL.into_iter().filter(|daemon| *daemon != own).collect();
    let settings = |daemon| path(root.settings_file(daemon));
    let state = |daemon, name: &str| path(root.state_folder(daemon).join(name));
    add("read /etc/shadow", FILE, open("/etc/shadow", libc::O_RDONLY));
    add("read a daemon's settings", FILE, open(&settings(others[0]), libc::O_RDONLY));
    add("write another daemon's settings", CHANGE, open(&settings(others[1]), libc::O_WRONLY));
    add("write its own settings", CHANGE, open(&settings(own), libc::O_WRONLY));
    add("read a daemon's state", FILE, open(&state(others[0], "state"), libc::O_RDONLY));
    add("read another daemon's state", FILE, open(&state(others[1], "state"), libc::O_RDONLY));
    add(
        "write another daemon's state",
        CHANGE,
        open(&state(others[0], "new"), libc::O_WRONLY | libc::O_CREAT),
    );
    add("make a file beside its folder", CHANGE, open(&at("new"), libc::O_WRONLY | libc::O_CREAT));
    add("make a file in /tmp", CHANGE, open("/tmp", libc::O_WRONLY | libc::O_TMPFILE));
    add("list /", FILE, open("/", libc::O_RDONLY | libc::O_DIRECTORY));
    add("list processes", FILE, open("/proc", libc::O_RDONLY | libc::O_DIRECTORY));
    add("its own memory as a file", CHANGE, open("/proc/self/mem", libc::O_RDWR));
    add("the kernel's settings", FILE, open("/proc/sys/kernel/core_pattern", libc::O_RDONLY));
    add("a device", FILE, open("/dev/zero", libc::O_RDONLY));
    let (socket, moved) = (text(&path(root.management_socket())), text(&state(own, "moved")));
    let mine = text(&state(own, "own"));
    let from = socket.clone();
    add(
        "remove another daemon's socket",
        CHANGE,
        Box::new(move || call!(libc::SYS_unlinkat, libc::AT_FDCWD, from.as_ptr(), 0)),
    );
    add("move a file into its folder", &[libc::EACCES, libc::EXDEV, libc::EPERM], {
        let moved = moved.clone();
        Box::new(move || {
            call!(
                libc::SYS_renameat2,
                libc::AT_FDCWD,
                socket.as_ptr(),
                libc::AT_FDCWD,
                moved.as_ptr(),
                0
            )
        })
    });
    add("a symbolic link in its folder", CALL, {
        let moved = moved.clone();
        Box::new(move || {
            call!(libc::SYS_symlinkat, c"/etc/passwd".as_ptr(), libc::AT_FDCWD, moved.as_ptr())
        })
    });
    add("a device node in its folder", CALL, {
        Box::new(move || {
            call!(libc::SYS_mknodat, libc::AT_FDCWD, moved.as_ptr(), libc::S_IFCHR | 0o600, 0x0103)
        })
    });
    add(
        "a file by its handle",
        CALL,
        Box::new(move || call!(libc::SYS_open_by_handle_at, -1, NULL, 0)),
    );
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
        ("socket AF_INET6 raw", libc::AF_INET6, libc::SOCK_RAW),
        ("socket AF_NETLINK", libc::AF_NETLINK, libc::SOCK_RAW),
        ("socket AF_PACKET", libc::AF_PACKET, libc::SOCK_RAW),
        ("socket AF_UNIX", libc::AF_UNIX, libc::SOCK_STREAM),
        ("socket AF_ALG", libc::AF_ALG, libc::SOCK_SEQPACKET),
        ("socket AF_VSOCK", libc::AF_VSOCK, libc::SOCK_STREAM),
    ] {
        add(name, CALL, Box::new(move || call!(libc::SYS_socket, domain, kind, 0)));
    }
    // Landlock sees only TCP.
    for (name, kind, protocol) in [
        ("socket for multipath TCP", libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
        ("socket for SCTP", libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        ("socket for ICMP", libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
    ] {
        add(name, CALL, Box::new(move || call!(libc::SYS_socket, libc::AF_INET, kind, protocol)));
    }
    let pair = || {
        let mut pair = [0; 2];
        call!(libc::SYS_socketpair, libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr())
    };
    add("socketpair", CALL, Box::new(pair));
    add("listen", CALL, Box::new(move || call!(libc::SYS_listen, -1, 1)));

    // Programs and processes.
    add(
        "execve",
        CALL,
        Box::new(move || call!(libc::SYS_execve, c"/bin/true".as_ptr(), NULL, NULL)),
    );
    add(
        "execveat",
        CALL,
        Box::new(move || call!(libc::SYS_execveat, -1, c"/bin/true".as_ptr(), NULL, NULL, 0)),
    );
    let child =
        |flags: c_int| call!(libc::SYS_clone, c_ulong::from(flags as u32), NULL, NULL, NULL, 0);
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
    add(
        "ptrace",
        CALL,
        Box::new(move || call!(libc::SYS_ptrace, libc::PTRACE_SEIZE, target, NULL, NULL)),
    );
    add(
        "process_vm_readv",
        CALL,
        Box::new(move || call!(libc::SYS_process_vm_readv, target, NULL, 0, NULL, 0, 0)),
    );
    add("process_vm_writev", CALL, {
        Box::new(move || call!(libc::SYS_process_vm_writev, target, NULL, 0, NULL, 0, 0))
    });
    add("pidfd_getfd", CALL, Box::new(|| call!(libc::SYS_pidfd_getfd, -1, 0, 0)));
    add(
        "pidfd_send_signal",
        CALL,
        Box::new(move || call!(libc::SYS_pidfd_send_signal, -1, 0, NULL, 0)),
    );
    add("a signal by a pidfd of the process", CALL, {
        Box::new(move || {
            // SAFETY: a number.
            let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, target, 0) };
            call!(libc::SYS_pidfd_send_signal, pidfd, 0, NULL, 0)
        })
    });
    let memory = format!("/proc/{target}/mem");
    add("read another process's memory as a file", CHANGE, open(&memory, libc::O_RDONLY));
    add("write another process's memory as a file", CHANGE, open(&memory, libc::O_RDWR));
    add("read another process's memory at its address", CHANGE, {
        let memory = text(&memory);
        Box::new(move || {
            let mut read = [0_u8; 6];
            // SAFETY: both point to what lives for the whole call.
            let opened = unsafe { libc::open(memory.as_ptr(), libc::O_RDONLY) };
            if opened < 0 {
                return std::io::Error::last_os_error().raw_os_error().unwrap();
            }
            let at = SECRET.as_ptr() as usize;
            let done = call!(libc::SYS_pread64, opened, read.as_mut_ptr(), read.len(), at);
            // SAFETY: it was opened here.
            unsafe { libc::close(opened) };
            done
        })
    });
    let environment = format!("/proc/{target}/environ");
    add("read another process's environment", CHANGE, open(&environment, libc::O_RDONLY));
    add("another executable of its own", CALL, {
        Box::new(|| call!(libc::SYS_prctl, libc::PR_SET_MM, libc::PR_SET_MM_EXE_FILE, -1, 0, 0))
    });
    add("a listener of system calls", CALL, {
        Box::new(move || call!(libc::SYS_seccomp, 1, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER, NULL))
    });
    add("advice on another process's memory", CALL, {
        Box::new(|| call!(libc::SYS_process_madvise, -1, NULL, 0, libc::MADV_COLD, 0))
    });
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
    add(
        "dumpable again",
        CALL,
        Box::new(|| call!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0)),
    );
    add("another seccomp filter", CALL, Box::new(move || call!(libc::SYS_seccomp, 1, 0, NULL)));
    add("personality", CALL, Box::new(|| call!(libc::SYS_personality, libc::READ_IMPLIES_EXEC)));
    add("chroot", CALL, Box::new(|| call!(libc::SYS_chroot, c"/".as_ptr())));

    // The kernel.
    add("mount", CALL, {
        Box::new(move || {
            call!(libc::SYS_mount, c"none".as_ptr(), c"/no".as_ptr(), c"tmpfs".as_ptr(), 0, NULL)
        })
    });
    add("umount", CALL, Box::new(|| call!(libc::SYS_umount2, c"/no".as_ptr(), 0)));
    add("bpf", CALL, Box::new(move || call!(libc::SYS_bpf, 0, NULL, 0)));
    add("io_uring", CALL, Box::new(move || call!(libc::SYS_io_uring_setup, 1, NULL)));
    add(
        "perf_event_open",
        CALL,
        Box::new(move || call!(libc::SYS_perf_event_open, NULL, 0, -1, -1, 0)),
    );
    add("userfaultfd", CALL, Box::new(|| call!(libc::SYS_userfaultfd, 0x8000)));
    add("a kernel module", CALL, Box::new(|| call!(libc::SYS_finit_module, -1, c"".as_ptr(), 0)));
    add("another kernel", CALL, Box::new(move || call!(libc::SYS_kexec_load, 0, 17, NULL, 0x7777)));
    add("reboot", CALL, Box::new(move || call!(libc::SYS_reboot, 1, 2, 3, NULL)));
    add("keyctl", CALL, Box::new(|| call!(libc::SYS_keyctl, 0, -3, 0)));
    add("add_key", CALL, {
        Box::new(move || {
            call!(libc::SYS_add_key, c"user".as_ptr(), c"k".as_ptr(), c"v".as_ptr(), 1 << 20, -3)
        })
    });
    add("the kernel's log", CALL, Box::new(move || call!(libc::SYS_syslog, 10, NULL, 0)));
    add("the clock", CALL, Box::new(move || call!(libc::SYS_settimeofday, NULL, NULL)));
    add("shared memory", CALL, Box::new(|| call!(libc::SYS_shmget, 0x7e57, 4096, 0)));
    add("watching files", CALL, Box::new(|| call!(libc::SYS_inotify_init1, 0)));
    add(
        "a terminal's input",
        CALL,
        Box::new(|| call!(libc::SYS_ioctl, 2, libc::TIOCSTI, c"x".as_ptr())),
    );
    #[cfg(target_arch = "x86_64")]
    {
        add("a call by its x32 number", CALL, Box::new(|| call!(0x4000_0000 + libc::SYS_getpid)));
        add("ports of the machine", CALL, Box::new(|| call!(libc::SYS_ioperm, 0x80, 1, 1)));
    }

    // Code.
    add("an anonymous file", CALL, Box::new(|| call!(libc::SYS_memfd_create, c"x".as_ptr(), 0)));
    let map = |protection: c_int, flags: c_int, fd: c_int| {
        call!(libc::SYS_mmap, NULL, 4096, protection, flags, fd, 0)
    };
    let private = libc::MAP_PRIVATE;
    add("code in anonymous memory", CALL, {
        Box::new(move || map(libc::PROT_READ | libc::PROT_EXEC, private | libc::MAP_ANONYMOUS, -1))
    });
    add("data turned into code", CALL, {
        Box::new(move || {
            // SAFETY: a fresh page.
            let page = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ,
                    private | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            call!(libc::SYS_mprotect, page, 4096, libc::PROT_READ | libc::PROT_EXEC)
        })
    });
    let own = File::open(state(own, "own")).unwrap();
    add("code from a file", CALL, {
        Box::new(move || {
            map(libc::PROT_READ | libc::PROT_EXEC, private, std::os::fd::AsRawFd::as_raw_fd(&own))
        })
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
