//! One process's `/proc/PID` folder, opened once.

use std::io::Read as _;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use edgekeep_core::attestation::{Ancestor, ExecutableFile, Holding, ProcessInstance, Snapshot};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{CgroupHierarchy, EvidenceError};

/// Descriptors that are looked through for a connection.
const MAX_DESCRIPTORS: usize = 16 * 1024;

/// Longest table of mounts that is read, in bytes: some thousand mounts.
const MAX_MOUNTS: u64 = 1024 * 1024;

/// A handle on one process through `/proc`. Every read through it is of that process or
/// fails: the kernel ties the open folder to the process, not to the number.
#[derive(Debug)]
pub struct ProcDir {
    pid: u32,
    folder: OwnedFd,
    // Kept open because they are read on every request.
    status: OwnedFd,
    cgroup: OwnedFd,
}

impl ProcDir {
    /// Opens the folder of the process that `pidfd` refers to.
    ///
    /// `pid` is what `SO_PEERCRED` said. The folder is opened first and the pidfd is
    /// asked afterwards: a pid is not reused while its process lives, so a live pidfd of
    /// that pid means that the folder is the same process's.
    ///
    /// # Errors
    /// [`EvidenceError::NotVisible`] for pid 0 or a process of another pid namespace,
    /// [`EvidenceError::Gone`] if it has ended, [`EvidenceError::Changed`] if `pid` and
    /// `pidfd` are two processes.
    pub fn open(pid: u32, pidfd: BorrowedFd<'_>) -> Result<Self, EvidenceError> {
        if pid == 0 {
            return Err(EvidenceError::NotVisible);
        }
        let process = Self::open_unproved(pid)?;
        match pid_of(pidfd)? {
            0 => return Err(EvidenceError::NotVisible),
            -1 => return Err(EvidenceError::Gone),
            other if other != i64::from(pid) => return Err(EvidenceError::Changed),
            _ => {}
        }
        if has_ended(pidfd).map_err(EvidenceError::reading("pidfd"))? {
            return Err(EvidenceError::Gone);
        }
        Ok(process)
    }

    /// Opens the folder of whatever process has `pid` now. The caller proves by other
    /// means which one that is.
    pub(crate) fn open_unproved(pid: u32) -> Result<Self, EvidenceError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let folder =
            rustix::fs::open(format!("/proc/{pid}"), flags | OFlags::DIRECTORY, Mode::empty())
                .map_err(EvidenceError::reading("folder"))?;
        let status = rustix::fs::openat(&folder, "status", flags, Mode::empty())
            .map_err(EvidenceError::reading("status"))?;
        let cgroup = rustix::fs::openat(&folder, "cgroup", flags, Mode::empty())
            .map_err(EvidenceError::reading("cgroup"))?;
        Ok(Self { pid, folder, status, cgroup })
    }

    /// The process's id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn snapshot(&self, hierarchy: &CgroupHierarchy) -> Result<Snapshot, EvidenceError> {
        let stat = self.stat()?;
        let status = self.status()?;
        Ok(Snapshot {
            process: ProcessInstance { pid: self.pid, start_time: stat.start_time },
            uid: status.uid,
            gid: status.gid,
            executable: self.executable()?,
            cgroup: self.cgroup(hierarchy)?,
            pid_namespace: self.namespace("ns/pid")?,
            user_namespace: self.user_namespace()?,
            tracer: status.tracer,
            filters: status.filters,
        })
    }

    pub(super) fn still(&self, hierarchy: &CgroupHierarchy, snapshot: &Snapshot) -> bool {
        self.pid == snapshot.process.pid
            && self.executable().is_ok_and(|executable| executable == snapshot.executable)
            && self.status().is_ok_and(|status| {
                (status.uid, status.gid, status.tracer)
                    == (snapshot.uid, snapshot.gid, snapshot.tracer)
            })
            && self.with_cgroup(hierarchy, |path| path == snapshot.cgroup).unwrap_or(false)
    }

    /// The process and its ancestors, each proved to be the parent of the one before it:
    /// up to `stop_at`, at most `limit`.
    pub(super) fn ancestry(
        &self,
        stop_at: Option<&ProcessInstance>,
        limit: usize,
    ) -> Result<Vec<Ancestor>, EvidenceError> {
        let mut child = open_stat(&self.folder)?;
        let mut stat = read_stat(&child)?;
        let mut chain = vec![stat.as_ancestor(self.pid)];
        // Twice the limit: a process whose parents keep ending costs a bounded number of
        // looks.
        for _ in 0..limit * 2 {
            let last = chain.last().map(|ancestor| &ancestor.process);
            if stat.parent == 0 || chain.len() >= limit || last == stop_at {
                break;
            }
            let Ok(parent) = open_folder(stat.parent)
                .map_err(EvidenceError::reading("stat"))
                .and_then(|f| open_stat(&f))
            else {
                break;
            };
            // Opened, then still named as the parent by a child that is still there, then
            // still alive: so what was opened is the parent's. Otherwise the child got a
            // new parent meanwhile, and the new one is looked at.
            let named = read_stat(&child)?;
            if named.parent != stat.parent {
                stat = named;
                continue;
            }
            let parent_stat = match read_stat(&parent) {
                Ok(parent_stat) => parent_stat,
                Err(EvidenceError::Gone) => continue,
                Err(other) => return Err(other),
            };
            chain.push(parent_stat.as_ancestor(stat.parent));
            stat = parent_stat;
            child = parent;
        }
        Ok(chain)
    }

    /// How the process holds the socket with this inode number, and in which descriptor.
    ///
    /// Between the moment at which a new program shows as the executable and the one at
    /// which descriptors are closed for it, `execve` holds a lock. It is waited for here,
    /// so that whoever has looked at the executable before sees the descriptors of that
    /// program, and none that its predecessor left for a moment.
    ///
    /// About 3 µs for the lock, and 3 µs for each descriptor that is looked at; `first`
    /// is tried before all others. Programs that connect for each request get the same
    /// number each time.
    pub(super) fn holding(
        &self,
        socket: u64,
        first: Option<u32>,
    ) -> Result<(Holding, Option<u32>), EvidenceError> {
        let reading = |errno| EvidenceError::reading("fd")(errno);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
        self.wait_for_exec()?;
        let folder =
            rustix::fs::openat(&self.folder, "fd", flags, Mode::empty()).map_err(reading)?;
        let wanted = format!("socket:[{socket}]");
        if let Some(number) = first
            && self.closes_on_exec(&folder, &number.to_string(), &wanted)? == Some(true)
        {
            return Ok((Holding::CloseOnExec, first));
        }
        let mut holding = Holding::NotHeld;
        for entry in Dir::read_from(&folder).map_err(reading)?.take(MAX_DESCRIPTORS) {
            let entry = entry.map_err(reading)?;
            let number =
                entry.file_name().to_str().map_err(|_| EvidenceError::Malformed { what: "fd" })?;
            match self.closes_on_exec(&folder, number, &wanted)? {
                // One such descriptor is proof, however many others there are.
                Some(true) => return Ok((Holding::CloseOnExec, number.parse().ok())),
                Some(false) => holding = Holding::Inheritable,
                None => {}
            }
        }
        Ok((holding, None))
    }

    /// Returns once an `execve` that has begun to show is through.
    ///
    /// Each read of `personality` takes the lock that `execve` holds (`exec_update_lock`,
    /// before Linux 5.11 `cred_guard_mutex`), before it is decided whether the reader may
    /// see it: being refused serves as well.
    fn wait_for_exec(&self) -> Result<(), EvidenceError> {
        let what = "personality";
        let file =
            rustix::fs::openat(&self.folder, what, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(EvidenceError::reading(what))?;
        match rustix::io::pread(&file, &mut [0; 16], 0) {
            Ok(_) | Err(Errno::PERM | Errno::ACCESS) => Ok(()),
            Err(other) => Err(EvidenceError::reading(what)(other)),
        }
    }

    /// Whether a descriptor is closed on exec; `None` if it is gone or something else
    /// than wanted.
    fn closes_on_exec(
        &self,
        folder: &OwnedFd,
        number: &str,
        wanted: &str,
    ) -> Result<Option<bool>, EvidenceError> {
        // What is longer than the buffer is no socket.
        let mut buffer = [std::mem::MaybeUninit::uninit(); 32];
        match rustix::fs::readlinkat_raw(folder, number, &mut buffer) {
            Ok((target, _)) if target == wanted.as_bytes() => {}
            _ => return Ok(None),
        }
        let path = format!("fdinfo/{number}");
        let Ok(info) = rustix::fs::openat(
            &self.folder,
            &*path,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        ) else {
            return Ok(None);
        };
        let mut buffer = [0; 1024];
        let Ok(text) = read_whole(&info, &mut buffer, "fdinfo") else { return Ok(None) };
        let text = std::str::from_utf8(text).unwrap_or_default();
        let flags = text
            .lines()
            .find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
        let flags = flags.ok_or(EvidenceError::Malformed { what: "fdinfo" })?;
        Ok(Some(flags & OFlags::CLOEXEC.bits() != 0))
    }

    /// Opens the file that the process executes, however it is named now, and says which
    /// file that is.
    pub(super) fn open_executable(&self) -> Result<(ExecutableFile, OwnedFd), EvidenceError> {
        let fd = rustix::fs::openat(
            &self.folder,
            "exe",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(EvidenceError::reading("exe"))?;
        let stat = rustix::fs::fstat(&fd).map_err(EvidenceError::reading("exe"))?;
        Ok((executable_file(&stat), fd))
    }

    /// The path of the executable, as seen from the root of the process's own mount tree.
    ///
    /// # Errors
    /// The process has ended, or the kernel does not let us see it.
    pub fn executable_path(&self) -> Result<PathBuf, EvidenceError> {
        let link = rustix::fs::readlinkat(&self.folder, "exe", Vec::new())
            .map_err(EvidenceError::reading("exe"))?;
        Ok(PathBuf::from(std::ffi::OsString::from_vec(link.into_bytes())))
    }

    fn executable(&self) -> Result<ExecutableFile, EvidenceError> {
        let stat = rustix::fs::statat(&self.folder, "exe", AtFlags::empty())
            .map_err(EvidenceError::reading("exe"))?;
        Ok(executable_file(&stat))
    }

    /// The root folder of the process.
    pub(super) fn root(&self) -> Result<OwnedFd, EvidenceError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
        rustix::fs::openat(&self.folder, "root", flags, Mode::empty())
            .map_err(EvidenceError::reading("root"))
    }

    /// Number of the process's filters of system calls, where the kernel tells.
    pub(crate) fn filters(&self) -> Result<Option<u32>, EvidenceError> {
        Ok(self.status()?.filters)
    }

    /// Inode of the process's user namespace.
    pub(crate) fn user_namespace(&self) -> Result<u64, EvidenceError> {
        self.namespace("ns/user")
    }

    /// The process's mounts.
    pub(crate) fn mounts(&self) -> Result<String, EvidenceError> {
        let what = "mountinfo";
        let file =
            rustix::fs::openat(&self.folder, what, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(EvidenceError::reading(what))?;
        let mut text = String::new();
        let read = std::fs::File::from(file).take(MAX_MOUNTS).read_to_string(&mut text);
        let length = read.map_err(|source| EvidenceError::Unreadable { what, source })?;
        if length as u64 == MAX_MOUNTS { Err(EvidenceError::Malformed { what }) } else { Ok(text) }
    }

    fn namespace(&self, what: &'static str) -> Result<u64, EvidenceError> {
        let stat = rustix::fs::statat(&self.folder, what, AtFlags::empty())
            .map_err(EvidenceError::reading(what))?;
        Ok(stat.st_ino)
    }

    pub(crate) fn stat(&self) -> Result<ProcStat, EvidenceError> {
        read_stat(&open_stat(&self.folder)?)
    }

    fn status(&self) -> Result<ProcStatus, EvidenceError> {
        let mut buffer = [0; 4096];
        let text = read_whole(&self.status, &mut buffer, "status")?;
        parse_status(text).ok_or(EvidenceError::Malformed { what: "status" })
    }

    /// The process's cgroup path.
    pub(crate) fn cgroup(&self, hierarchy: &CgroupHierarchy) -> Result<String, EvidenceError> {
        self.with_cgroup(hierarchy, str::to_owned)
    }

    fn with_cgroup<T>(
        &self,
        hierarchy: &CgroupHierarchy,
        use_it: impl FnOnce(&str) -> T,
    ) -> Result<T, EvidenceError> {
        let mut buffer = [0; 8192];
        let text = read_whole(&self.cgroup, &mut buffer, "cgroup")?;
        let text =
            std::str::from_utf8(text).map_err(|_| EvidenceError::Malformed { what: "cgroup" })?;
        hierarchy.path(text).map(use_it).ok_or(EvidenceError::Malformed { what: "cgroup" })
    }
}

/// Whether the process behind a pidfd has ended.
pub(crate) fn has_ended(pidfd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default()))?;
    Ok(!fds[0].revents().is_empty())
}

#[allow(
    clippy::unnecessary_cast,
    reason = "the kernel's types differ in width and sign between architectures"
)]
pub(crate) fn executable_file(stat: &Stat) -> ExecutableFile {
    ExecutableFile {
        device: stat.st_dev as u64,
        inode: stat.st_ino as u64,
        size: stat.st_size as u64,
        ctime_ns: (stat.st_ctime as i64)
            .saturating_mul(1_000_000_000)
            .saturating_add(stat.st_ctime_nsec as i64),
    }
}

/// What `/proc/PID/stat` is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcStat {
    pub(crate) parent: u32,
    pub(crate) session: u32,
    pub(crate) start_time: u64,
}

impl ProcStat {
    fn as_ancestor(self, pid: u32) -> Ancestor {
        Ancestor {
            process: ProcessInstance { pid, start_time: self.start_time },
            session: self.session,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ProcStatus {
    uid: u32,
    gid: u32,
    tracer: u32,
    filters: Option<u32>,
}

fn open_folder(pid: u32) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        format!("/proc/{pid}"),
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY,
        Mode::empty(),
    )
}

fn open_stat(folder: &OwnedFd) -> Result<OwnedFd, EvidenceError> {
    rustix::fs::openat(folder, "stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(EvidenceError::reading("stat"))
}

fn read_stat(stat: &OwnedFd) -> Result<ProcStat, EvidenceError> {
    let mut buffer = [0; 2048];
    let text = read_whole(stat, &mut buffer, "stat")?;
    parse_stat(text).ok_or(EvidenceError::Malformed { what: "stat" })
}

/// These files are made in one piece, so one read returns all of it; a full buffer could
/// be a part.
fn read_whole<'a>(
    fd: &OwnedFd,
    buffer: &'a mut [u8],
    what: &'static str,
) -> Result<&'a [u8], EvidenceError> {
    let length = rustix::io::pread(fd, &mut *buffer, 0).map_err(EvidenceError::reading(what))?;
    if length == buffer.len() {
        return Err(EvidenceError::Malformed { what });
    }
    Ok(&buffer[..length])
}

/// The pid that a pidfd shows in this namespace: 0 if it is not visible here, -1 if the
/// process is gone.
fn pid_of(pidfd: BorrowedFd<'_>) -> Result<i64, EvidenceError> {
    use std::os::fd::AsRawFd as _;
    let malformed = EvidenceError::Malformed { what: "pidfd" };
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))
        .map_err(|source| EvidenceError::Unreadable { what: "pidfd", source })?;
    text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok()).ok_or(malformed)
}

/// The program's name stands in parentheses and may itself hold parentheses and blanks:
/// fields count from the last `)`.
fn parse_stat(text: &[u8]) -> Option<ProcStat> {
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    // Field 3 (state) comes first here; the parent is field 4, the session field 6, the
    // start time field 22.
    let parent = fields.nth(1)?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let start_time = fields.nth(15)?.parse().ok()?;
    Some(ProcStat { parent, session, start_time })
}

fn parse_status(text: &[u8]) -> Option<ProcStatus> {
    let (mut uid, mut gid, mut tracer, mut filters) = (None, None, None, None);
    for line in text.split(|&byte| byte == b'\n') {
        let field = |name: &[u8], number: usize| {
            let rest = std::str::from_utf8(line.strip_prefix(name)?).ok()?;
            rest.split_ascii_whitespace().nth(number)?.parse::<u32>().ok()
        };
        match line {
            line if line.starts_with(b"TracerPid:") => tracer = field(b"TracerPid:", 0),
            // Real, effective, saved, file system: the effective one acts.
            line if line.starts_with(b"Uid:") => uid = field(b"Uid:", 1),
            line if line.starts_with(b"Gid:") => gid = field(b"Gid:", 1),
            // Behind the others.
            line if line.starts_with(b"Seccomp_filters:") => {
                filters = Some(field(b"Seccomp_filters:", 0)?);
                break;
            }
            _ => {}
        }
    }
    Some(ProcStatus { uid: uid?, gid: gid?, tracer: tracer?, filters })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::process::{Child, Command, Stdio};

    use proptest::prelude::*;

    use super::*;
    use crate::evidence::Collector;
    use crate::evidence::ContainerCgroups;
    use edgekeep_core::attestation::PeerHandle;

    /// A child that is ended with the test.
    struct Sleeper(Child);

    impl Sleeper {
        fn new() -> Self {
            let child = Command::new("/bin/sleep")
                .arg("1000")
                .stdin(Stdio::null())
                .spawn()
                .expect("sleep starts");
            Self(child)
        }

        fn pidfd(&self) -> OwnedFd {
            let pid = rustix::process::Pid::from_child(&self.0);
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
                .expect("child lives")
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn collector() -> Collector {
        Collector::new(CgroupHierarchy::detect(), ContainerCgroups::default())
    }

    #[test]
    fn a_child_is_seen_with_its_program_its_user_and_this_process_as_its_parent() {
        let child = Sleeper::new();
        let process = ProcDir::open(child.0.id(), child.pidfd().as_fd()).expect("child is visible");
        let collector = collector();
        let evidence =
            collector.identify(PeerHandle::PidfdOpen, &process, None).expect("child lives");
        let sleep = rustix::fs::stat("/bin/sleep").expect("exists");
        assert_eq!(evidence.snapshot.executable, executable_file(&sleep));
        assert_eq!(evidence.snapshot.uid, rustix::process::geteuid().as_raw());
        assert_eq!(evidence.snapshot.tracer, 0);
        assert_eq!(evidence.ancestry[0].process, evidence.snapshot.process);
        assert_eq!(evidence.ancestry[1].process.pid, std::process::id());
        assert_eq!(
            evidence.ancestry[0].session, evidence.ancestry[1].session,
            "a child stays in the session"
        );
        assert!(collector.recheck(&process, &evidence.snapshot));
        let short = collector.identify(
            PeerHandle::PidfdOpen,
            &process,
            Some(&evidence.ancestry[1].process),
        );
        assert_eq!(short.expect("child lives").ancestry, evidence.ancestry[..2]);
    }

    #[test]
    fn after_the_process_has_ended_its_folder_answers_for_no_other() {
        let mut child = Sleeper::new();
        let process = ProcDir::open(child.0.id(), child.pidfd().as_fd()).expect("child is visible");
        let collector = collector();
        let snapshot = collector.snapshot(&process).expect("child lives");
        child.0.kill().expect("child lives");
        child.0.wait().expect("child is ours");
        assert!(!collector.recheck(&process, &snapshot));
        assert_eq!(
            collector.snapshot(&process).expect_err("gone").reason().to_string(),
            "caller-gone"
        );
    }

    #[test]
    fn a_pidfd_of_another_or_an_ended_process_opens_nothing() {
        let (one, mut other) = (Sleeper::new(), Sleeper::new());
        let error = ProcDir::open(one.0.id(), other.pidfd().as_fd()).expect_err("two processes");
        assert!(matches!(error, EvidenceError::Changed), "{error}");
        let pidfd = other.pidfd();
        other.0.kill().expect("child lives");
        other.0.wait().expect("child is ours");
        let error = ProcDir::open(other.0.id(), pidfd.as_fd()).expect_err("ended");
        assert!(matches!(error, EvidenceError::Gone), "{error}");
        assert!(matches!(ProcDir::open(0, pidfd.as_fd()), Err(EvidenceError::NotVisible)));
    }

    #[test]
    fn a_process_that_executes_another_program_no_longer_passes_the_recheck() {
        use std::io::{Read as _, Write as _};
        let mut shell = Command::new("/bin/sh")
            .args(["-c", "echo ready; read line; exec /bin/cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("shell starts");
        let mut output = shell.stdout.take().expect("piped");
        let mut input = shell.stdin.take().expect("piped");
        let mut ready = [0; 6];
        output.read_exact(&mut ready).expect("shell says ready");
        let pid = rustix::process::Pid::from_child(&shell);
        let pidfd =
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("lives");
        let process = ProcDir::open(shell.id(), pidfd.as_fd()).expect("visible");
        let collector = collector();
        let before = collector.snapshot(&process).expect("lives");
        assert!(collector.recheck(&process, &before));
        input.write_all(b"go\nx\n").expect("shell reads");
        let mut echoed = [0; 2];
        output.read_exact(&mut echoed).expect("cat echoes");
        assert!(!collector.recheck(&process, &before));
        let after = collector.snapshot(&process).expect("lives");
        assert_eq!(after.process, before.process, "pid and start time survive execve");
        drop(input);
        shell.wait().expect("ours");
    }

    #[test]
    fn a_connection_is_held_by_a_descriptor_that_closes_on_exec_by_one_that_does_not_or_not_at_all()
    {
        let own = ProcDir::open_unproved(std::process::id()).expect("this process");
        let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("two sockets");
        let inode = rustix::fs::fstat(&socket).expect("open").st_ino;
        let holding = || own.holding(inode, None).expect("own descriptors are seen").0;
        assert_eq!(holding(), Holding::CloseOnExec);
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).expect("own descriptor");
        assert_eq!(holding(), Holding::Inheritable);
        let again = socket.try_clone().expect("a second descriptor, closed on exec");
        assert_eq!(holding(), Holding::CloseOnExec);
        drop(again);
        assert_eq!(own.holding(inode + 1_000_000, None).expect("seen").0, Holding::NotHeld);
        // A number to begin with saves looking at the others, and proves nothing by
        // itself.
        let number = own.holding(inode, None).expect("seen").1;
        for first in [None, Some(0), Some(u32::MAX), number] {
            assert_eq!(own.holding(inode, first).expect("seen").0, Holding::Inheritable);
        }
        drop(socket);
        assert_eq!(holding(), Holding::NotHeld);
    }

    #[test]
    fn a_program_name_with_parentheses_and_blanks_does_not_shift_the_fields() {
        let tail = "S 7 1 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 192557 1 1";
        for name in ["sleep", "a) R 1 (b", ") ) )", "x y"] {
            let line = format!("42 ({name}) {tail}");
            assert_eq!(
                parse_stat(line.as_bytes()),
                Some(ProcStat { parent: 7, session: 3, start_time: 192_557 }),
                "{name}"
            );
        }
    }

    #[test]
    fn the_filters_of_system_calls_are_counted_where_the_kernel_tells() {
        let told = "TracerPid:\t0\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nSeccomp:\t2\nSeccomp_filters:\t3\nThreads:\t1\n";
        let status = ProcStatus { uid: 2, gid: 6, tracer: 0, filters: Some(3) };
        assert_eq!(parse_status(told.as_bytes()), Some(status));
        let older = told.replace("Seccomp_filters:\t3\n", "");
        assert_eq!(parse_status(older.as_bytes()), Some(ProcStatus { filters: None, ..status }));
        for wrong in [told.replace("filters:\t3", "filters:\tx"), told.replace("TracerPid", "T")] {
            assert_eq!(parse_status(wrong.as_bytes()), None, "{wrong}");
        }
    }

    /// What the kernel does for a moment in the middle of `execve`: the new program
    /// shows, and the old descriptors are there.
    #[test]
    fn a_descriptor_that_closes_on_exec_is_never_seen_with_the_program_that_was_executed_after_it()
    {
        let rounds = std::env::var("EDGEKEEP_TEST_ROUNDS")
            .ok()
            .and_then(|rounds| rounds.parse().ok())
            .unwrap_or(100);
        let sleep = executable_file(&rustix::fs::stat("/bin/sleep").expect("exists"));
        let script = "use Socket; $^F = 2; socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die; \
                      syswrite STDOUT, (stat $s)[1] . qq(\n); exec '/bin/sleep', '1000'";
        let mut seen_before_exec = 0;
        for _ in 0..rounds {
            let mut command = Command::new("/usr/bin/perl");
            command.args(["-e", script]).stdin(Stdio::null()).stdout(Stdio::piped());
            let mut child = Sleeper(command.spawn().expect("perl starts"));
            let process = ProcDir::open_unproved(child.0.id()).expect("lives");
            let mut line = String::new();
            let mut output = std::io::BufReader::new(child.0.stdout.take().expect("piped"));
            std::io::BufRead::read_line(&mut output, &mut line).expect("the socket's inode");
            let socket = line.trim().parse().expect("a number");
            loop {
                let executable = process.executable().expect("runs");
                let (holding, _) = process.holding(socket, None).expect("seen");
                if executable == sleep {
                    assert_eq!(holding, Holding::NotHeld);
                    break;
                }
                seen_before_exec += u32::from(holding == Holding::CloseOnExec);
            }
        }
        eprintln!("{rounds} rounds, {seen_before_exec} looks before the exec");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_stat(&bytes);
            let _ = parse_status(&bytes);
        }
    }
}
