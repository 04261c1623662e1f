//! The step between moduled and a host module: moduled runs itself as `exec-module`, this
//! code receives what to execute, and becomes it. The process id stays the same, so what
//! moduled wrote down about it stays true.
//!
//! The start message comes over a socket at standard input, after moduled has written the
//! process down: if moduled dies before that, the socket closes and nothing is executed,
//! so there is no process that nobody knows.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use edgekeep_core::host::LaunchPlan;
use edgekeep_daemon::arguments::WRONG_ARGUMENTS;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

/// The argument with which moduled's executable must call [`main`].
pub const ARGUMENT: &str = "exec-module";

/// Longest start message; arguments and environment are bounded by the kernel to about
/// the same.
const MAX_MESSAGE: usize = 2 * 1024 * 1024;

/// Longest report of a failure.
const MAX_REPORT: u64 = 4096;

/// Byte by which the launcher reports that it has started.
const READY: u8 = b'R';

/// Begin of the line with which the launcher says what could not be confined as a whole,
/// before it goes on.
const NOTE: &str = "note: ";

/// The command that becomes the module. The program itself and the module's standard
/// error come as file descriptors. Not printable: the environment holds secrets.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StartMessage {
    pub(super) argv0: String,
    pub(super) args: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) working_dir: Option<PathBuf>,
    pub(super) plan: LaunchPlan,
}

/// Keeps this process and all it starts from gaining rights by set-user-id programs. For
/// the main thread before any other starts; every later thread and child inherits it.
///
/// # Errors
/// The kernel does not know `PR_SET_NO_NEW_PRIVS` (before 3.5).
pub fn forbid_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Receives a start message at standard input and becomes the module. Returns only if
/// that failed, with the exit code.
///
/// moduled's `main` calls this, before it starts any thread, when its first argument is
/// [`ARGUMENT`].
#[must_use]
pub fn main() -> i32 {
    let Ok(control) = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3).map(UnixStream::from) else {
        return 2;
    };
    // Fails also when moduled went away, or when this was called by hand.
    let started =
        rustix::net::send(&control, &[READY], SendFlags::NOSIGNAL).map_err(io::Error::from);
    if started.is_err() {
        let _ = writeln!(
            io::stderr(),
            "{ARGUMENT} is for edgekeep-moduled alone, which starts host modules by it"
        );
        return WRONG_ARGUMENTS.into();
    }
    let error = match started.and_then(|_| receive(&control)) {
        Ok((message, [program, stderr])) => {
            become_module(&control, &message, program.as_fd(), stderr)
        }
        Err(error) => step("read the start message", &error),
    };
    let _ = rustix::net::send(&control, error.to_string().as_bytes(), SendFlags::NOSIGNAL);
    1
}

fn become_module(
    control: &UnixStream,
    message: &StartMessage,
    program: BorrowedFd<'_>,
    stderr: OwnedFd,
) -> io::Error {
    let prepared = (|| {
        forbid_new_privileges().map_err(|error| step("forbid new privileges", &error))?;
        rustix::stdio::dup2_stderr(stderr)
            .map_err(|error| step("set the standard error", &error))?;
        // An own session: signals of moduled's terminal do not reach the module.
        rustix::process::setsid().map_err(|error| step("begin a session", &error))?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        std::fs::File::open("/dev/null")
            .and_then(|null| Ok(rustix::stdio::dup2_stdin(null)?))
            .map_err(|error| step("set the standard input to /dev/null", &error))?;
        // Last: what comes after has the module's rights only.
        super::confine::confine(&message.plan)
    })();
    match prepared {
        Ok(None) => {}
        Ok(Some(note)) => {
            let note = format!("{NOTE}{note}\n");
            if let Err(errno) = rustix::net::send(control, note.as_bytes(), SendFlags::NOSIGNAL) {
                return errno.into();
            }
        }
        Err(error) => return error,
    }
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.arg0(&message.argv0).args(&message.args).env_clear().envs(&message.env);
    // As the module's user: it must be able to enter it.
    command.current_dir(message.working_dir.as_deref().unwrap_or(Path::new("/")));
    step("execute the program, or enter its working folder", &command.exec())
}

/// Returns the error with the step that failed.
fn step(what: &str, error: &dyn std::error::Error) -> io::Error {
    io::Error::other(format!("cannot {what}: {error}"))
}

/// Waits until the launcher is there. `control` should have time limits set.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] if it ended before.
pub(super) fn wait_until_ready(control: &UnixStream) -> io::Result<()> {
    let mut stream = control;
    stream.read_exact(&mut [0])
}

/// Sends the start message to a launcher that is there, and waits until the launcher has
/// become the module or said why not. `control` should have time limits set. The answer
/// is what could not be confined as a whole, if anything.
pub(super) fn send(
    control: &UnixStream,
    message: &StartMessage,
    program: BorrowedFd<'_>,
    stderr: BorrowedFd<'_>,
) -> io::Result<Option<String>> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "arguments and environment are too long",
        ));
    }
    let length = u32::try_from(body.len()).map_err(io::Error::other)?.to_be_bytes();
    let fds = [program, stderr];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = rustix::net::sendmsg(
        control,
        &[IoSlice::new(&length)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    if sent != length.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut stream = control;
    stream.write_all(&body)?;
    let mut report = String::new();
    // The launcher's end closes when it has executed the program.
    stream.take(MAX_REPORT).read_to_string(&mut report)?;
    let (note, failure) = match report.strip_prefix(NOTE).and_then(|rest| rest.split_once('\n')) {
        Some((note, failure)) => (Some(note.to_owned()), failure),
        None => (None, report.as_str()),
    };
    if failure.is_empty() { Ok(note) } else { Err(io::Error::other(failure.to_owned())) }
}

fn receive(control: &UnixStream) -> io::Result<(StartMessage, [OwnedFd; 2])> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        control,
        &mut [IoSliceMut::new(&mut length)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
    )?;
    if received.bytes != length.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let files = ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => Some([fds.next()?, fds.next()?]),
            _ => None,
        })
        .ok_or(io::ErrorKind::InvalidData)?;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    if length > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    let mut stream = control;
    stream.read_exact(&mut body)?;
    Ok((serde_json::from_slice(&body)?, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_with_its_files() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let sent = StartMessage {
            argv0: "/usr/bin/a".into(),
            args: vec!["x".repeat(300_000)],
            env: [("K".to_owned(), "V".to_owned())].into(),
            working_dir: None,
            plan: super::super::own_plan(),
        };
        let expected = sent.clone();
        let sender = std::thread::spawn(move || {
            let program = std::fs::File::open("/bin/sleep").expect("exists");
            let stderr = std::fs::File::open("/dev/null").expect("exists");
            send(&ours, &sent, program.as_fd(), stderr.as_fd())
        });
        let (message, [program, _]) = receive(&theirs).expect("whole message");
        assert_eq!(
            (message.argv0, message.args, message.env),
            (expected.argv0, expected.args, expected.env)
        );
        let sleep = rustix::fs::stat("/bin/sleep").expect("exists");
        assert_eq!(rustix::fs::fstat(&program).expect("open").st_ino, sleep.st_ino);
        (&theirs).write_all(b"no such folder").expect("open");
        drop(theirs);
        let error = sender.join().expect("no panic").expect_err("reported");
        assert_eq!(error.to_string(), "no such folder");
    }

    #[test]
    fn without_a_message_nothing_is_received() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        drop(ours);
        assert_eq!(
            receive(&theirs).err().map(|error| error.kind()),
            Some(io::ErrorKind::UnexpectedEof)
        );
    }
}
