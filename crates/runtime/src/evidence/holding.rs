//! The way in which a process holds its end of a connection.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edgekeep_core::attestation::{ExecutableFile, Holding};
use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use super::proc_dir::read_whole;
use super::{EvidenceError, ProcDir};

/// Descriptors that are looked through for a connection.
const MAX_DESCRIPTORS: usize = 16 * 1024;

/// Numbers of descriptors that are remembered for a process: programs that hold more
/// connections at a time are looked through for each further one.
const REMEMBERED: usize = 64;

/// Numbers of descriptors in which a process has had connections, each with how many of
/// the open ones it is known for. Where to look first, and no proof of anything.
#[derive(Debug, Default)]
pub(super) struct Numbers(BTreeMap<u32, u32>);

impl Numbers {
    /// The numbers in the order in which they are worth a look. The kernel gives the
    /// lowest free number to whatever is opened, so the free ones come first.
    fn in_order(&self) -> Vec<u32> {
        let with = |free: bool| {
            self.0.iter().filter(move |(_, uses)| (**uses == 0) == free).map(|(number, _)| *number)
        };
        with(true).chain(with(false)).collect()
    }

    fn begin(&mut self, number: u32) {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&number) {
            let Some(free) = self.0.iter().find(|(_, uses)| **uses == 0).map(|(free, _)| *free)
            else {
                return;
            };
            self.0.remove(&free);
        }
        *self.0.entry(number).or_default() += 1;
    }

    fn end(&mut self, number: u32) {
        if let Some(uses) = self.0.get_mut(&number) {
            *uses = uses.saturating_sub(1);
        }
    }
}

/// The way in which a connection is held, as it was when looked at. While this value
/// lives, its descriptor counts as taken.
#[derive(Debug)]
pub struct Held {
    holding: Holding,
    descriptor: Option<(u32, Arc<Mutex<Numbers>>)>,
}

impl Held {
    /// Makes a value that is known without a look.
    #[must_use]
    pub fn told(holding: Holding) -> Self {
        Self { holding, descriptor: None }
    }

    /// Returns the way in which the connection is held.
    #[must_use]
    pub fn holding(&self) -> Holding {
        self.holding
    }
}

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

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((number, numbers)) = &self.descriptor {
            lock(numbers).end(*number);
        }
    }
}

fn lock(numbers: &Mutex<Numbers>) -> MutexGuard<'_, Numbers> {
    numbers.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub(super) fn holding(
        &self,
        socket: u64,
        program: &ExecutableFile,
    ) -> Result<Held, EvidenceError> {
        let running = self.running()?;
        if self.executable()?.0 != *program {
            return Err(EvidenceError::Changed);
        }
        let held = self.search(socket)?;
        if running.goes_on()? { Ok(held) } else { Err(EvidenceError::Changed) }
    }

    /// Looks for the descriptor. Those in which the process had connections before are
    /// tried first, one call each.
    fn search(&self, socket: u64) -> Result<Held, EvidenceError> {
        let reading = |errno| EvidenceError::reading("fd")(errno);
        let wanted = format!("socket:[{socket}]");
        self.wait_for_exec()?;
        let likely = lock(self.numbers()).in_order();
        for number in likely {
            if self.closes_on_exec(number, &wanted)? == Some(true) {
                return Ok(self.held(number));
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
                Some(true) => return Ok(self.held(number)),
                Some(false) => holding = Holding::Inheritable,
                None => {}
            }
        }
        Ok(Held::told(holding))
    }

    /// Pins the program that the process runs now.
    fn running(&self) -> Result<RunningProgram, EvidenceError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(self.folder(), "maps", flags, Mode::empty());
        opened.map(RunningProgram).map_err(EvidenceError::reading("maps"))
    }

    fn held(&self, number: u32) -> Held {
        lock(self.numbers()).begin(number);
        let descriptor = Some((number, Arc::clone(self.numbers())));
        Held { holding: Holding::CloseOnExec, descriptor }
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

    use proptest::prelude::*;

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
        let holding = || own.holding(inode, &program).expect("own descriptors are seen").holding();
        assert_eq!(holding(), Holding::CloseOnExec);
        // From here on the number is known, which proves nothing by itself.
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).expect("own descriptor");
        assert_eq!(holding(), Holding::Inheritable);
        let again = socket.try_clone().expect("a second descriptor, closed on exec");
        assert_eq!(holding(), Holding::CloseOnExec);
        drop(again);
        assert_eq!(holding(), Holding::Inheritable);
        let other = own.holding(inode + 1_000_000, &program).expect("seen");
        assert_eq!(other.holding(), Holding::NotHeld);
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
        let refused = process.holding(1, &first).map(|held| held.holding());
        assert!(matches!(refused, Err(EvidenceError::Changed)), "{refused:?}");
        shell.kill().and_then(|()| shell.wait()).expect("ours");
    }

    #[test]
    fn a_free_number_is_tried_before_one_that_a_connection_is_known_for() {
        let mut numbers = Numbers::default();
        for number in [7, 5, 9] {
            numbers.begin(number);
        }
        numbers.end(9);
        numbers.end(5);
        assert_eq!(numbers.in_order(), [5, 9, 7]);
    }

    proptest! {
        #[test]
        fn no_program_makes_more_numbers_remembered_than_the_bound(
            events in prop::collection::vec((0_u32..200, any::<bool>()), 0..400),
        ) {
            let mut numbers = Numbers::default();
            for (number, begins) in events {
                if begins { numbers.begin(number) } else { numbers.end(number) }
                prop_assert!(numbers.0.len() <= REMEMBERED);
                prop_assert_eq!(numbers.in_order().len(), numbers.0.len());
            }
        }
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
                let holding = match process.holding(socket, &executable) {
                    // It was executed while its descriptors were looked through.
                    Err(EvidenceError::Changed) => continue,
                    held => held.expect("seen").holding(),
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
