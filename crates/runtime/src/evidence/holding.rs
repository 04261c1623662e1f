//! The way in which a process holds its end of a connection.

use std::os::fd::OwnedFd;

use edgekeep_core::attestation::{ExecutableFile, Holding};
use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use super::proc_dir::read_whole;
use super::{EvidenceError, ProcDir};

/// Descriptors that are looked through for a connection.
const MAX_DESCRIPTORS: usize = 16 * 1024;

/// The way in which a connection is held, and the number of the descriptor by which it is
/// held safely.
pub(crate) type Held = (Holding, Option<u32>);

/// The program that a process ran at one moment.
///
/// An open `maps` belongs to the memory of that program. Once the process has begun
/// another one, nobody uses that memory any more, and reads find it empty.
struct RunningProgram(OwnedFd);

impl RunningProgram {
    /// Returns true if the process has begun no other program since, and has not ended.
    fn goes_on(&self) -> Result<bool, EvidenceError> {
        let read = rustix::io::pread(&self.0, &mut [0; 1], 0);
        read.map(|bytes| bytes > 0).map_err(EvidenceError::reading("maps"))
    }
}

impl ProcDir {
    /// Finds out how the process holds the socket with this inode number.
    ///
    /// Between the moment at which a new program shows as the executable and the moment
    /// at which descriptors are closed for that program, `execve` holds a lock. This
    /// function waits for the lock. So a caller that has looked at the executable before
    /// sees the descriptors of that program, and none that the previous program left for
    /// a moment.
    ///
    /// A process may have many descriptors, and begin another program while they are
    /// looked through. So the program that runs is pinned before, must be `program`, and
    /// must still run after: a program that began meanwhile could have set the flag that
    /// is looked for.
    ///
    /// The numbers in `likely` are where to look first, and prove nothing.
    pub(super) fn holding(
        &self,
        socket: u64,
        program: &ExecutableFile,
        likely: &[u32],
    ) -> Result<Held, EvidenceError> {
        let running = self.running()?;
        if self.executable()?.0 != *program {
            return Err(EvidenceError::Changed);
        }
        let held = self.search(socket, likely)?;
        if running.goes_on()? { Ok(held) } else { Err(EvidenceError::Changed) }
    }

    /// Looks for the descriptor. The likely ones are tried first, one call each.
    fn search(&self, socket: u64, likely: &[u32]) -> Result<Held, EvidenceError> {
        let reading = |errno| EvidenceError::reading("fd")(errno);
        let wanted = format!("socket:[{socket}]");
        self.wait_for_exec()?;
        for number in likely.iter().copied() {
            if self.closes_on_exec(number, &wanted)? == Some(true) {
                return Ok((Holding::CloseOnExec, Some(number)));
            }
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
        let folder =
            rustix::fs::openat(self.folder(), "fd", flags, Mode::empty()).map_err(reading)?;
        let mut holding = Holding::NotHeld;
        for entry in Dir::read_from(&folder).map_err(reading)?.take(MAX_DESCRIPTORS) {
            let entry = entry.map_err(reading)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let number = name.to_str().ok().and_then(|name| name.parse().ok());
            let number = number.ok_or(EvidenceError::Malformed { what: "fd" })?;
            match self.closes_on_exec(number, &wanted)? {
                // One such descriptor is proof, however many others there are.
                Some(true) => return Ok((Holding::CloseOnExec, Some(number))),
                Some(false) => holding = Holding::Inheritable,
                None => {}
            }
        }
        Ok((holding, None))
    }

    /// Pins the program that the process runs now.
    fn running(&self) -> Result<RunningProgram, EvidenceError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(self.folder(), "maps", flags, Mode::empty());
        opened.map(RunningProgram).map_err(EvidenceError::reading("maps"))
    }

    /// Returns once an `execve` that has begun to show is through.
    ///
    /// Each read of `personality` takes the lock that `execve` holds (`exec_update_lock`,
    /// before Linux 5.11 `cred_guard_mutex`), before it is decided whether the reader may
    /// see it: being refused serves as well.
    fn wait_for_exec(&self) -> Result<(), EvidenceError> {
        let what = "personality";
        match rustix::io::pread(self.personality()?, &mut [0; 16], 0) {
            Ok(_) | Err(Errno::PERM | Errno::ACCESS) => Ok(()),
            Err(other) => Err(EvidenceError::reading(what)(other)),
        }
    }

    /// Returns true if a descriptor is closed on exec; `None` if the descriptor is gone
    /// or is something else than the socket.
    fn closes_on_exec(&self, number: u32, wanted: &str) -> Result<Option<bool>, EvidenceError> {
        // Read and not followed: what lies behind could be a file system that keeps
        // whoever asks waiting. What is longer than the buffer is no socket.
        let mut buffer = [std::mem::MaybeUninit::uninit(); 32];
        match rustix::fs::readlinkat_raw(self.folder(), format!("fd/{number}"), &mut buffer) {
            Ok((target, _)) if target == wanted.as_bytes() => {}
            _ => return Ok(None),
        }
        let Some(info) = self.open_info(number) else { return Ok(None) };
        let mut buffer = [0; 1024];
        let Ok(text) = read_whole(&info, &mut buffer, "fdinfo") else { return Ok(None) };
        let text = std::str::from_utf8(text).unwrap_or_default();
        let flags = text
            .lines()
            .find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
        let flags = flags.ok_or(EvidenceError::Malformed { what: "fdinfo" })?;
        Ok(Some(flags & OFlags::CLOEXEC.bits() != 0))
    }

    fn open_info(&self, number: u32) -> Option<OwnedFd> {
        let path = format!("fdinfo/{number}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(self.folder(), path, flags, Mode::empty()).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::evidence::executable_file;
    use crate::evidence::proc_dir::tests::Sleeper;

    #[test]
    fn a_connection_is_held_by_a_descriptor_that_closes_on_exec_by_one_that_does_not_or_not_at_all()
    {
        let own = ProcDir::open_unproved(std::process::id()).expect("this process");
        let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("two sockets");
        let inode = rustix::fs::fstat(&socket).expect("open").st_ino;
        let program = own.executable().expect("own executable").0;
        let number = std::cell::Cell::new(None);
        let holding = || {
            // The number known so far, which proves nothing by itself.
            let held = own.holding(inode, &program, &Vec::from_iter(number.get()));
            let (holding, found) = held.expect("own descriptors are seen");
            number.set(found.or(number.get()));
            holding
        };
        assert_eq!(holding(), Holding::CloseOnExec);
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).expect("own descriptor");
        assert_eq!(holding(), Holding::Inheritable);
        let again = socket.try_clone().expect("a second descriptor, closed on exec");
        assert_eq!(holding(), Holding::CloseOnExec);
        drop(again);
        assert_eq!(holding(), Holding::Inheritable);
        let other = own.holding(inode + 1_000_000, &program, &[]).expect("seen");
        assert_eq!(other, (Holding::NotHeld, None));
        drop(socket);
        assert_eq!(holding(), Holding::NotHeld);
    }

    #[test]
    fn a_process_that_begins_another_program_meanwhile_holds_nothing() {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", "read line; exec sleep 1000"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell");
        let process = ProcDir::open_unproved(shell.id()).expect("the shell");
        // Until then it runs this test's program.
        let own = ProcDir::open_unproved(std::process::id()).expect("this process");
        let own = own.executable().expect("own executable").0;
        let runs = || process.executable().expect("it lives").0;
        while runs() == own {
            std::thread::yield_now();
        }
        let (first, running) = (runs(), process.running().expect("pinned"));
        assert!(running.goes_on().expect("read") && running.goes_on().expect("read"));
        drop(shell.stdin.take());
        while runs() == first {
            std::thread::yield_now();
        }
        assert!(!running.goes_on().expect("read"));
        let refused = process.holding(1, &first, &[]);
        assert!(matches!(refused, Err(EvidenceError::Changed)), "{refused:?}");
        shell.kill().and_then(|()| shell.wait()).expect("ours");
    }

    /// Looks for a state that the kernel has for a moment in the middle of `execve`: the
    /// new program shows, and the old descriptors are still there.
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
                let (executable, _) = process.executable().expect("runs");
                let holding = match process.holding(socket, &executable, &[]) {
                    // It was executed while its descriptors were looked through.
                    Err(EvidenceError::Changed) => continue,
                    held => held.expect("seen").0,
                };
                if executable == sleep {
                    assert_eq!(holding, Holding::NotHeld);
                    break;
                }
                seen_before_exec += u32::from(holding == Holding::CloseOnExec);
            }
        }
        eprintln!("{rounds} rounds, {seen_before_exec} looks before the exec");
    }
}
