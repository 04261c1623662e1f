//! A socket in front of the engine's that can hold one kind of call back.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use edgekeep_testkit::Engine;

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

#[derive(Default)]
struct State {
    /// Calls whose first line contains this wait.
    hold: Option<String>,
    /// One waits.
    held: bool,
}

/// The gate; open until told otherwise.
pub(crate) struct Gate {
    path: PathBuf,
    state: Arc<(Mutex<State>, Condvar)>,
    _folder: tempfile::TempDir,
}

impl Gate {
    pub(crate) fn new(engine: &Engine) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let (engine, shared) = (engine.socket(), Arc::clone(&state));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (engine, shared) = (engine.clone(), Arc::clone(&shared));
                std::thread::spawn(move || pass(client, &engine, &shared));
            }
        });
        Self { path, state, _folder: folder }
    }

    pub(crate) fn uri(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// Holds calls back from now on.
    pub(crate) fn hold(&self, line: &str) {
        *self.state.0.lock().unwrap_or_else(PoisonError::into_inner) =
            State { hold: Some(line.to_owned()), held: false };
    }

    /// Waits until a call is held back.
    pub(crate) fn wait(&self) {
        let state = self.state.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) = self.state.1.wait_timeout_while(state, LONG, |state| !state.held).unwrap();
        assert!(state.held, "no call came to {:?}", state.hold);
    }

    /// Lets all pass again.
    pub(crate) fn open(&self) {
        *self.state.0.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
        self.state.1.notify_all();
    }
}

fn pass(mut client: UnixStream, engine: &PathBuf, (state, changed): &(Mutex<State>, Condvar)) {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        match client.read(&mut byte) {
            Ok(1) => line.push(byte[0]),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&line).into_owned();
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    while state.hold.as_ref().is_some_and(|hold| text.contains(hold)) {
        state.held = true;
        changed.notify_all();
        state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    drop(state);
    // Who was killed meanwhile asks for nothing any more.
    if is_gone(&client) {
        return;
    }
    let Ok(mut server) = UnixStream::connect(engine) else { return };
    if server.write_all(&line).is_err() {
        return;
    }
    let (Ok(mut from), Ok(mut to)) = (client.try_clone(), server.try_clone()) else { return };
    std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
}

fn is_gone(client: &UnixStream) -> bool {
    use std::os::fd::AsFd as _;
    let mut fds =
        [rustix::event::PollFd::from_borrowed_fd(client.as_fd(), rustix::event::PollFlags::HUP)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}
