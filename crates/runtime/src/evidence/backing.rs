//! Facts from the kernel about the file that a process executes, for the decision in
//! [`edgekeep_core::attestation::backing`].

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use edgekeep_core::attestation::backing::{
    Backing, MountedBy, Overlay, Storage, keeps_writers_out,
};
use edgekeep_core::attestation::{ExecutableFile, ProcessInstance};
use rustix::fs::{AtFlags, Mode, OFlags, SealFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::executable::Recent;
use super::mountinfo::MountLine;
use super::proc_dir::{MOUNT_ID_UNIQUE, mount_of as number_of_mount};
use super::{EvidenceError, ProcDir};

/// Overlays that are remembered, by their mounts.
const REMEMBERED_MOUNTS: usize = 256;

/// Looks at files that are executed.
#[derive(Debug)]
pub(super) struct Backings {
    denies_writers: bool,
    /// By the unique number of the mount, with the first process that stood for the
    /// container.
    overlays: Mutex<Recent<(u64, Option<ProcessInstance>), Overlay>>,
}

/// A file that is executed, and the mount that it was found on: 0 if the kernel does not
/// tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Mounted {
    pub(super) file: ExecutableFile,
    pub(super) mount: u64,
}

impl Backings {
    pub(super) fn new() -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let denies_writers = keeps_writers_out(tried_to_write(), &release);
        if !denies_writers {
            tracing::warn!(
                release,
                "this kernel lets executables be written to while they run, so no program can be known by its content but those \
                 that this daemon starts; update the kernel"
            );
        }
        Self { denies_writers, overlays: Mutex::new(Recent::new(REMEMBERED_MOUNTS)) }
    }

    /// Returns true if this kernel keeps writers out of files that are executed.
    pub(super) fn denies_writers(&self) -> bool {
        self.denies_writers
    }

    /// Looks at the open executable of a process, and says whether the number of its
    /// mount is one that no later mount gets. `init` is the first process of the
    /// container that the process has to be in, if it has to be in one.
    pub(super) fn look(
        &self,
        process: &ProcDir,
        file: ExecutableFile,
        opened: BorrowedFd<'_>,
        init: Option<ProcessInstance>,
    ) -> Result<(Backing, Mounted, bool), EvidenceError> {
        let reading = |errno: Errno| EvidenceError::reading("exe")(errno);
        let wanted = StatxFlags::NLINK
            | StatxFlags::UID
            | StatxFlags::MODE
            | StatxFlags::MNT_ID
            | MOUNT_ID_UNIQUE;
        let seen = rustix::fs::statx(opened, "", AtFlags::EMPTY_PATH, wanted).map_err(reading)?;
        let (mount, is_unique) = number_of_mount(&seen);
        let storage = storage(opened).map_err(reading)?;
        let links = u64::from(seen.stx_nlink);
        let overlay = match storage {
            Storage::Overlay => self.overlay(process, opened, is_unique.then_some(mount), init),
            _ => None,
        };
        let backing = Backing {
            file,
            links,
            storage,
            overlay,
            sealed: storage == Storage::Memory && links == 0 && is_sealed(opened),
            verity: seen.stx_attributes.contains(StatxAttributes::VERITY),
            only_root_writes: seen.stx_uid == 0 && seen.stx_mode & 0o022 == 0,
        };
        Ok((backing, Mounted { file, mount }, is_unique))
    }

    fn overlay(
        &self,
        process: &ProcDir,
        opened: BorrowedFd<'_>,
        unique: Option<u64>,
        init: Option<ProcessInstance>,
    ) -> Option<Overlay> {
        let known = unique.and_then(|mount| self.lock().get(&(mount, init)));
        if known.is_some() {
            return known;
        }
        let found = match init {
            Some(init) => of_container(opened, init),
            None => of_machine(process, opened),
        };
        let found = found.unwrap_or(Overlay { mounted: MountedBy::Unknown, upper: None });
        if let Some(mount) = unique {
            self.lock().insert((mount, init), found);
        }
        Some(found)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Recent<(u64, Option<ProcessInstance>), Overlay>> {
        self.overlays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tries to open this process's own executable for writing. True if the kernel refuses
/// because the file is executed, false if the kernel allows it. `None` if this process
/// may not write the file in any case.
fn tried_to_write() -> Option<bool> {
    match rustix::fs::open("/proc/self/exe", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::TXTBSY) => Some(true),
        // Nothing is written, and the descriptor is closed at once.
        Ok(_) => Some(false),
        Err(_) => None,
    }
}

#[allow(
    clippy::cast_sign_loss,
    clippy::unnecessary_cast,
    reason = "the kernel's types differ between architectures"
)]
fn storage(opened: BorrowedFd<'_>) -> Result<Storage, Errno> {
    // Numbers of file systems have 32 bits.
    Ok(Storage::of_file_system(rustix::fs::fstatfs(opened)?.f_type as u64 & 0xffff_ffff))
}

fn is_sealed(opened: BorrowedFd<'_>) -> bool {
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_get_seals(opened).is_ok_and(|seals| seals.contains(all))
}

/// The overlay that is the root of a container, if the file is on that mount.
fn of_container(opened: BorrowedFd<'_>, init: ProcessInstance) -> Option<Overlay> {
    let first = ProcDir::open_unproved(init.pid).ok()?;
    let root = first.root().ok()?;
    if mount_of(opened)? != mount_of(root.as_fd())? {
        return None;
    }
    let mounts = first.mounts().ok()?;
    let mount = mount_of(opened)?;
    let line =
        mounts.lines().filter_map(MountLine::parse).find(|line| u64::from(line.id) == mount)?;
    // What was read above was the first process's only if it still is.
    if first.stat().ok()?.start_time != init.start_time {
        return None;
    }
    Some(Overlay { mounted: MountedBy::Engine, upper: upper(&line) })
}

/// The overlay that holds the file, if it is among this daemon's own mounts. The process
/// may have mounts of its own, as services have that systemd protects; the file system
/// behind them is the same.
fn of_machine(process: &ProcDir, opened: BorrowedFd<'_>) -> Option<Overlay> {
    let mount = mount_of(opened)?;
    let theirs = process.mounts().ok()?;
    let device = theirs
        .lines()
        .filter_map(MountLine::parse)
        .find(|line| u64::from(line.id) == mount)?
        .device;
    let ours = ProcDir::open_unproved(std::process::id()).and_then(|own| own.mounts()).ok()?;
    let line = ours.lines().filter_map(MountLine::parse).find(|line| line.device == device)?;
    (line.file_system == "overlay")
        .then(|| Overlay { mounted: MountedBy::Machine, upper: upper(&line) })
}

/// The number of a file's mount, as tables of mounts have it.
fn mount_of(opened: BorrowedFd<'_>) -> Option<u64> {
    let seen = rustix::fs::statx(opened, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    StatxFlags::from_bits_retain(seen.stx_mask)
        .contains(StatxFlags::MNT_ID)
        .then_some(seen.stx_mnt_id)
}

/// Finds the storage of an overlay's changes. A folder that cannot be looked at counts as
/// storage of an unknown kind.
fn upper(line: &MountLine<'_>) -> Option<Storage> {
    let folder = line.options.split(',').find_map(|option| option.strip_prefix("upperdir="))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(folder, flags, Mode::empty());
    Some(opened.and_then(|folder| storage(folder.as_fd())).unwrap_or(Storage::Other))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::fd::OwnedFd;

    use edgekeep_core::attestation::backing::{Doubt, Lasting, judge};
    use rustix::fs::MemfdFlags;

    use super::*;
    use crate::evidence::proc_dir::executable_file;

    fn look(opened: BorrowedFd<'_>) -> Backing {
        let own = ProcDir::open_unproved(std::process::id()).expect("this process");
        let file = executable_file(&rustix::fs::fstat(opened).expect("open"));
        Backings::new().look(&own, file, opened, None).expect("told").0
    }

    fn memory(seals: SealFlags) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("x", flags).expect("memory");
        rustix::fs::fcntl_add_seals(&fd, seals).expect("sealed");
        fd
    }

    #[test]
    fn a_memory_file_is_believed_only_if_it_is_sealed_as_a_whole_and_the_very_copy() {
        let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        let (copy, other) = (memory(all), memory(all));
        let file = look(copy.as_fd()).file;
        assert_eq!(judge(&look(copy.as_fd()), Some(&file), true), Ok(Lasting::ForGood));
        assert_eq!(judge(&look(other.as_fd()), Some(&file), true), Err(Doubt::Nameless));
        for missing in [SealFlags::SEAL, SealFlags::SHRINK, SealFlags::GROW, SealFlags::WRITE] {
            let fd = memory(all & !missing);
            let seen = look(fd.as_fd());
            assert_eq!(
                judge(&seen, Some(&seen.file), true),
                Err(Doubt::Nameless),
                "without {missing:?}"
            );
        }
    }

    #[test]
    fn a_file_is_seen_with_its_names_and_the_kind_of_its_file_system() {
        for (folder, expected) in
            [(std::env::temp_dir(), None), ("/dev/shm".into(), Some(Storage::Memory))]
        {
            let Ok(folder) = tempfile::tempdir_in(&folder) else { continue };
            let path = folder.path().join("f");
            File::create(&path).and_then(|mut file| file.write_all(b"abc")).expect("written");
            let opened = File::open(&path).expect("exists");
            let seen = look(opened.as_fd());
            assert_eq!((seen.links, seen.sealed, seen.verity), (1, false, false));
            if let Some(expected) = expected {
                assert_eq!(seen.storage, expected);
            }
            std::fs::hard_link(&path, folder.path().join("g")).expect("a second name");
            assert_eq!(look(opened.as_fd()).links, 2);
            std::fs::remove_file(&path).expect("there");
            std::fs::remove_file(folder.path().join("g")).expect("there");
            let seen = look(opened.as_fd());
            assert_eq!(judge(&seen, None, true), Err(Doubt::Nameless));
        }
    }

    #[test]
    fn proc_is_no_place_for_executables() {
        let opened = File::open("/proc/self/status").expect("exists");
        assert_eq!(look(opened.as_fd()).storage, Storage::Other);
    }

    #[test]
    fn this_kernel_keeps_writers_out_of_what_runs() {
        let folder = tempfile::tempdir().expect("temp folder");
        let program = folder.path().join("sleep");
        std::fs::copy("/bin/sleep", &program).expect("copied");
        let mut child = std::process::Command::new(&program).arg("1000").spawn().expect("started");
        let opened = File::options().write(true).open(&program).map(|_| ());
        child.kill().and_then(|()| child.wait()).expect("ours");
        let denied =
            opened.is_err_and(|error| error.raw_os_error() == Some(Errno::TXTBSY.raw_os_error()));
        assert_eq!(Backings::new().denies_writers(), denied);
    }

    /// A mapping that is shared and writable outlives its descriptors, and is a writer
    /// all the same.
    #[test]
    fn a_file_that_is_mapped_for_writing_is_not_executed() {
        let folder = tempfile::tempdir().expect("temp folder");
        let program = folder.path().join("true");
        std::fs::copy("/bin/true", &program).expect("copied");
        let script = "import mmap, os, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); os.closerange(3, 64)\n\
                      pid = os.fork()\n\
                      if pid == 0:\n\
                      \ttry: os.execv(sys.argv[1], ['true'])\n\
                      \texcept OSError as error: os._exit(error.errno)\n\
                      os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))";
        let Ok(status) =
            std::process::Command::new("python3").args(["-c", script]).arg(&program).status()
        else {
            return eprintln!("skipped: needs python3");
        };
        assert_eq!(status.code(), Some(Errno::TXTBSY.raw_os_error()), "{status}");
        assert!(std::process::Command::new(&program).status().expect("executed").success());
    }

    /// An overlay as any user may mount one, of layers that this user writes to.
    #[test]
    fn an_overlay_that_is_not_the_machines_own_is_of_unknown_making() {
        let folder = tempfile::tempdir().expect("temp folder");
        let script = "set -e; cd \"$1\"; mkdir l u w m; cp /bin/sleep l/; mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m; \
                      m/sleep 1000 & echo ready; wait";
        let mut command = std::process::Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
            .arg(folder.path());
        let mut child = match command.stdout(std::process::Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => return eprintln!("skipped: unshare: {error}"),
        };
        let mut ready = [0; 6];
        let output = child.stdout.as_mut().expect("piped");
        if std::io::Read::read_exact(output, &mut ready).is_err() {
            let _ = child.wait();
            return eprintln!("skipped: no overlay in a user namespace here");
        }
        let sleeper = sleeper_below(child.id());
        let process = ProcDir::open_unproved(sleeper).expect("runs");
        let (file, opened) = process.open_executable().expect("readable");
        let (seen, ..) = Backings::new().look(&process, file, opened.as_fd(), None).expect("told");
        let kill = |pid: u32| {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a number");
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        };
        kill(sleeper);
        child.kill().and_then(|()| child.wait()).expect("ours");
        assert_eq!(seen.storage, Storage::Overlay);
        assert_eq!(seen.overlay.map(|overlay| overlay.mounted), Some(MountedBy::Unknown));
        assert_eq!(judge(&seen, None, true), Err(Doubt::Layers));
    }

    /// The process that the shell started, once it is `sleep`.
    fn sleeper_below(shell: u32) -> u32 {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"))
                .unwrap_or_default();
            let found = children.split_whitespace().find(|pid| {
                std::fs::read_link(format!("/proc/{pid}/exe"))
                    .is_ok_and(|path| path.ends_with("sleep"))
            });
            if let Some(pid) = found {
                return pid.parse().expect("a number");
            }
            assert!(std::time::Instant::now() < deadline, "no sleep below {shell}: {children}");
            std::thread::yield_now();
        }
    }
}
