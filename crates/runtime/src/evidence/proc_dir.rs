//! One process's `/proc/PID` folder, opened once.

use std::io::Read as _;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use edgekeep_core::attestation::{Ancestor, ExecutableFile, ProcessInstance, Snapshot};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, Mode, OFlags, Stat, Statx, StatxFlags};
use rustix::io::Errno;

use super::kept::Measured;
use super::proc_text::{ProcStat, ProcStatus, parse_stat, parse_status};
use super::{CgroupHierarchy, EvidenceError};

/// Asks for a number of the mount that no later mount gets (Linux 6.8 and later).
pub(super) const MOUNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

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
    /// Opened when first read.
    personality: OnceLock<OwnedFd>,
    fixed: OnceLock<Fixed>,
    found: Mutex<Found>,
}

/// The properties that stay the same as long as a process lives.
#[derive(Debug, Clone, Copy)]
struct Fixed {
    start_time: u64,
    /// `setns` and `unshare` only change that of later children.
    pid_namespace: u64,
}

/// Results of earlier looks. No result is believed without a new look that confirms it.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The last snapshot that two looks in a row agreed on.
    pub(super) agreed: Option<Snapshot>,
    pub(super) chain: Option<Vec<Ancestor>>,
    pub(super) measured: Option<Measured>,
}

/// One moment's view of a process.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) snapshot: Snapshot,
    /// Process id of the parent.
    pub(super) parent: u32,
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
        Ok(Self {
            pid,
            folder,
            status,
            cgroup,
            personality: OnceLock::new(),
            fixed: OnceLock::new(),
            found: Mutex::default(),
        })
    }

    /// The process's id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn folder(&self) -> &OwnedFd {
        &self.folder
    }

    pub(super) fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open `personality`.
    pub(super) fn personality(&self) -> Result<&OwnedFd, EvidenceError> {
        if let Some(open) = self.personality.get() {
            return Ok(open);
        }
        let what = "personality";
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.folder, what, flags, Mode::empty())
            .map_err(EvidenceError::reading(what))?;
        Ok(self.personality.get_or_init(|| opened))
    }

    /// Looks at everything that can change, in four system calls, and for the first time
    /// also at what cannot.
    ///
    /// The executable comes first: whoever asks for the descriptors afterwards
    /// ([`Self::holding`]) relies on that.
    pub(super) fn look(&self, hierarchy: &CgroupHierarchy) -> Result<Look, EvidenceError> {
        let fixed = self.fixed()?;
        let (executable, executable_mount) = self.executable()?;
        let status = self.status()?;
        let snapshot = Snapshot {
            process: ProcessInstance { pid: self.pid, start_time: fixed.start_time },
            uid: status.uid,
            gid: status.gid,
            executable,
            executable_mount,
            cgroup: self.cgroup(hierarchy)?,
            pid_namespace: fixed.pid_namespace,
            user_namespace: self.user_namespace()?,
            tracer: status.tracer,
            filters: status.filters,
        };
        Ok(Look { snapshot, parent: status.parent })
    }

    fn fixed(&self) -> Result<Fixed, EvidenceError> {
        if let Some(fixed) = self.fixed.get() {
            return Ok(*fixed);
        }
        let start_time = self.stat()?.start_time;
        let fixed = Fixed { start_time, pid_namespace: self.namespace("ns/pid")? };
        Ok(*self.fixed.get_or_init(|| fixed))
    }

    /// Opens the file that the process executes, however it is named now, and says which
    /// file that is.
    pub(crate) fn open_executable(&self) -> Result<(ExecutableFile, OwnedFd), EvidenceError> {
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

    /// The file that the process executes, and the number of the mount that it is on
    /// (see [`Snapshot::executable_mount`]).
    pub(super) fn executable(&self) -> Result<(ExecutableFile, u64), EvidenceError> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID | MOUNT_ID_UNIQUE;
        // Not asked of a server, which could let whoever asks wait: what a file system is
        // told of on the wire is no file that is believed.
        let seen = rustix::fs::statx(&self.folder, "exe", AtFlags::STATX_DONT_SYNC, wanted)
            .map_err(EvidenceError::reading("exe"))?;
        let file = ExecutableFile {
            device: rustix::fs::makedev(seen.stx_dev_major, seen.stx_dev_minor),
            inode: seen.stx_ino,
            size: seen.stx_size,
            ctime_ns: nanoseconds(seen.stx_ctime.tv_sec, seen.stx_ctime.tv_nsec.into()),
        };
        Ok((file, mount_of(&seen).0))
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

/// Returns true if the process behind a pidfd has ended.
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
        ctime_ns: nanoseconds(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
    }
}

fn nanoseconds(seconds: i64, rest: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// The number of a file's mount, 0 if the kernel does not tell, and whether no later
/// mount gets the same.
pub(super) fn mount_of(seen: &Statx) -> (u64, bool) {
    let told = StatxFlags::from_bits_retain(seen.stx_mask);
    let is_unique = told.contains(MOUNT_ID_UNIQUE);
    let is_told = is_unique || told.contains(StatxFlags::MNT_ID);
    (if is_told { seen.stx_mnt_id } else { 0 }, is_unique)
}

pub(super) fn open_stat(folder: &OwnedFd) -> Result<OwnedFd, EvidenceError> {
    rustix::fs::openat(folder, "stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(EvidenceError::reading("stat"))
}

pub(super) fn read_stat(stat: &OwnedFd) -> Result<ProcStat, EvidenceError> {
    let mut buffer = [0; 2048];
    let text = read_whole(stat, &mut buffer, "stat")?;
    parse_stat(text).ok_or(EvidenceError::Malformed { what: "stat" })
}

/// These files are made in one piece, so one read returns all of it; a full buffer could
/// be a part.
pub(super) fn read_whole<'a>(
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

#[cfg(test)]
pub(super) mod tests {
    use std::os::fd::AsFd as _;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::evidence::Collector;
    use crate::evidence::ContainerCgroups;
    use edgekeep_core::attestation::PeerHandle;

    /// A child that is ended with the test.
    pub(crate) struct Sleeper(pub(crate) Child);

    impl Sleeper {
        pub(crate) fn new() -> Self {
            let child = Command::new("/bin/sleep")
                .arg("1000")
                .stdin(Stdio::null())
                .spawn()
                .expect("sleep starts");
            Self(child)
        }

        pub(crate) fn pidfd(&self) -> OwnedFd {
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
        assert!(collector.recheck(&process, &evidence.snapshot).is_some());
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
        assert!(collector.recheck(&process, &snapshot).is_none());
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
        assert!(collector.recheck(&process, &before).is_some());
        input.write_all(b"go\nx\n").expect("shell reads");
        let mut echoed = [0; 2];
        output.read_exact(&mut echoed).expect("cat echoes");
        assert!(collector.recheck(&process, &before).is_none());
        let after = collector.snapshot(&process).expect("lives");
        assert_eq!(after.process, before.process, "pid and start time survive execve");
        drop(input);
        shell.wait().expect("ours");
    }
}
