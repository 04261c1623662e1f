//! Child processes: started, listened to, started again when they end, stopped.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use edgekeep_base::lock::lock;
use edgekeep_core::backoff::Backoff;
use edgekeep_core::layout::{ROOT_VARIABLE, Root};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::dev::event::{Event, Events, milliseconds};

/// Pause before a process that ended is started again; doubled each time up to the
/// longest.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
/// A process that ran this long is well: the next pause is the first again.
const WELL_AFTER: Duration = Duration::from_secs(30);
/// Longest line that is passed on whole.
const MAX_LINE: u64 = 16 * 1024;
/// Lines kept to explain why a process did not start.
const KEPT_LINES: usize = 12;

/// A program that is to be run.
pub(super) struct Program {
    name: &'static str,
    path: PathBuf,
    root: PathBuf,
    pub(super) arguments: Vec<OsString>,
    /// Gets the first line of its standard output, instead of the log.
    pub(super) first_line: Option<oneshot::Sender<String>>,
}

impl Program {
    pub(super) fn new(name: &'static str, path: PathBuf, root: &Root) -> Self {
        Self { name, path, root: root.path().to_owned(), arguments: Vec::new(), first_line: None }
    }
}

/// A process that is kept running.
pub(super) struct Running {
    name: &'static str,
    /// The arguments with which it is started the next time.
    pub(super) arguments: Arc<Mutex<Vec<OsString>>>,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    pid: watch::Receiver<Option<u32>>,
    ends: watch::Receiver<Option<String>>,
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Starts a program and keeps it running until `stopping` turns true or [`Running::stop`]
/// is called.
pub(super) fn start(program: Program, events: Events, stopping: watch::Receiver<bool>) -> Running {
    let arguments = Arc::new(Mutex::new(program.arguments.clone()));
    let last_lines = Arc::new(Mutex::new(VecDeque::new()));
    let (pid_sender, pid) = watch::channel(None);
    let (ends_sender, ends) = watch::channel(None);
    let (end, end_receiver) = watch::channel(false);
    let name = program.name;
    let keeper = Keeper {
        program,
        events,
        arguments: Arc::clone(&arguments),
        last_lines: Arc::clone(&last_lines),
        pid: pid_sender,
        ends: ends_sender,
        stopping,
        end: end_receiver,
    };
    let task = tokio::spawn(keeper.run());
    Running { name, arguments, last_lines, pid, ends, end, task }
}

impl Running {
    /// The first line of its output.
    pub(super) async fn first_line(
        &self,
        line: oneshot::Receiver<String>,
        limit: Duration,
    ) -> anyhow::Result<String> {
        let name = self.name;
        self.unless_ended(line, limit).await?.with_context(|| format!("{name} said nothing"))
    }

    /// Returns the result of `wait`, unless the process ends before, or the time limit
    /// passes.
    pub(super) async fn unless_ended<T>(
        &self,
        wait: impl Future<Output = T>,
        limit: Duration,
    ) -> anyhow::Result<T> {
        let mut ends = self.ends.clone();
        let ended = async {
            match ends.wait_for(Option::is_some).await {
                Ok(how) => how.clone().unwrap_or_default(),
                Err(_) => "it was stopped".to_owned(),
            }
        };
        tokio::select! {
            biased;
            result = wait => Ok(result),
            how = ended => bail!("{} did not start: {how}{}", self.name, self.explanation()),
            () = tokio::time::sleep(limit) => {
                bail!("{} does not answer after {} s{}", self.name, limit.as_secs(), self.explanation())
            }
        }
    }

    fn explanation(&self) -> String {
        let lines = lock(&self.last_lines);
        lines
            .iter()
            .map(|line| format!("\n  {} | {}", self.name, crate::output::printable(line)))
            .collect()
    }

    /// Asks the process to end, and kills it if it does not in time.
    pub(super) async fn stop(mut self, limit: Duration) {
        let _ = self.end.send(true);
        if tokio::time::timeout(limit, &mut self.task).await.is_err() {
            self.kill();
        }
    }

    /// Kills the process.
    pub(super) fn kill(self) {
        signal(*self.pid.borrow(), Signal::KILL);
        self.task.abort();
    }
}

/// The task that keeps one process.
struct Keeper {
    program: Program,
    events: Events,
    arguments: Arc<Mutex<Vec<OsString>>>,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    pid: watch::Sender<Option<u32>>,
    ends: watch::Sender<Option<String>>,
    stopping: watch::Receiver<bool>,
    end: watch::Receiver<bool>,
}

impl Keeper {
    async fn run(mut self) {
        let mut ends = 0;
        loop {
            let begin = Instant::now();
            let how = match self.spawn() {
                Ok(mut child) => {
                    let pid = child.id();
                    let _ = self.pid.send(pid);
                    if let Some(pid) = pid {
                        self.events.emit(&Event::Started { name: self.program.name, pid });
                    }
                    let listening = self.listen(&mut child);
                    let status = tokio::select! {
                        status = child.wait() => status,
                        () = turned(&mut self.end) => {
                            signal(pid, Signal::TERM);
                            let _ = child.wait().await;
                            let _ = self.pid.send(None);
                            join(listening).await;
                            return;
                        }
                    };
                    let _ = self.pid.send(None);
                    join(listening).await;
                    status.map_or_else(|error| error.to_string(), describe)
                }
                Err(error) => format!("cannot start {}: {error}", self.program.path.display()),
            };
            if begin.elapsed() > WELL_AFTER {
                ends = 0;
            }
            let pause = PAUSES.whole(ends);
            ends += 1;
            let _ = self.ends.send(Some(how.clone()));
            if *self.stopping.borrow() {
                return;
            }
            self.events.emit(&Event::Exited {
                name: self.program.name,
                how,
                restart_in_ms: milliseconds(pause),
            });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = turned(&mut self.end) => return,
                () = turned(&mut self.stopping) => return,
            }
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let arguments = lock(&self.arguments).clone();
        let mut command = Command::new(&self.program.path);
        command
            .args(arguments)
            .env(ROOT_VARIABLE, &self.program.root)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: the terminal's Ctrl-C is ours to pass on, in order.
            .process_group(0)
            .kill_on_drop(true);
        for variable in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
            command.env_remove(variable);
        }
        command.spawn()
    }

    fn listen(&mut self, child: &mut Child) -> [Option<JoinHandle<()>>; 2] {
        let log = |first_line| Log {
            name: self.program.name,
            events: self.events.clone(),
            last_lines: Arc::clone(&self.last_lines),
            first_line,
        };
        let out = child
            .stdout
            .take()
            .map(|out| tokio::spawn(log(self.program.first_line.take()).read(out)));
        let error = child.stderr.take().map(|error| tokio::spawn(log(None).read(error)));
        [out, error]
    }
}

/// Waits until a switch is turned on, or nobody is left who could.
async fn turned(switch: &mut watch::Receiver<bool>) {
    let _ = switch.wait_for(|on| *on).await;
}

async fn join(tasks: [Option<JoinHandle<()>>; 2]) {
    for task in tasks.into_iter().flatten() {
        // A grandchild may hold the pipe open.
        let abort = task.abort_handle();
        if tokio::time::timeout(Duration::from_millis(500), task).await.is_err() {
            abort.abort();
        }
    }
}

fn signal(pid: Option<u32>, signal: Signal) {
    if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
        // It may have ended meanwhile; it is not reaped before this task sees it, so its
        // id is still its own.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Passes on what a process writes.
struct Log {
    name: &'static str,
    events: Events,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    first_line: Option<oneshot::Sender<String>>,
}

impl Log {
    async fn read(mut self, from: impl AsyncRead + Unpin) {
        let mut reader = BufReader::new(from);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            if let Some(first) = self.first_line.take() {
                let _ = first.send(line);
                continue;
            }
            {
                let mut kept = lock(&self.last_lines);
                kept.push_back(line.clone());
                while kept.len() > KEPT_LINES {
                    kept.pop_front();
                }
            }
            self.events.emit(&Event::Log { name: self.name, line });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (Program, watch::Sender<bool>, watch::Receiver<bool>) {
        let mut program = Program::new("test", "/bin/sh".into(), &Root::new("/tmp/device"));
        program.arguments = vec!["-c".into(), script.into()];
        let (sender, receiver) = watch::channel(false);
        (program, sender, receiver)
    }

    #[tokio::test]
    async fn a_process_that_ends_is_started_again() {
        let (program, _stop, stopping) = shell("exit 3");
        let running = start(program, Events::new(true), stopping);
        let mut ends = running.ends.clone();
        ends.wait_for(Option::is_some).await.unwrap();
        assert_eq!(ends.borrow_and_update().as_deref(), Some("ended with exit code 3"));
        // Ends again, so it was started again.
        tokio::time::timeout(Duration::from_secs(20), ends.changed()).await.unwrap().unwrap();
        running.stop(Duration::from_secs(5)).await;
    }

    #[tokio::test]
    async fn a_process_that_does_not_start_is_explained_by_its_last_lines() {
        let (program, _stop, stopping) = shell("echo no such key >&2; exit 1");
        let running = start(program, Events::new(true), stopping);
        let error = running
            .unless_ended(std::future::pending::<()>(), Duration::from_secs(20))
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("test did not start: ended with exit code 1")
                && text.contains("| no such key"),
            "{text}"
        );
        running.stop(Duration::from_secs(5)).await;
    }

    #[tokio::test]
    async fn the_first_line_and_the_root_reach_their_places() {
        let (mut program, _stop, stopping) = shell("echo \"$EDGEKEEP_ROOT\"; exec sleep 100");
        let (sender, receiver) = oneshot::channel();
        program.first_line = Some(sender);
        let running = start(program, Events::new(true), stopping);
        assert_eq!(
            running.first_line(receiver, Duration::from_secs(20)).await.unwrap(),
            "/tmp/device"
        );
        let pid = *running.pid.borrow();
        running.stop(Duration::from_secs(5)).await;
        let pid = Pid::from_raw(i32::try_from(pid.unwrap()).unwrap()).unwrap();
        assert!(rustix::process::test_kill_process(pid).is_err(), "still there");
    }

    #[tokio::test]
    async fn a_process_that_ignores_the_request_to_end_is_killed() {
        let (mut program, _stop, stopping) =
            shell("trap '' TERM; echo deaf; while :; do sleep 0.1; done");
        let (sender, receiver) = oneshot::channel();
        program.first_line = Some(sender);
        let running = start(program, Events::new(true), stopping);
        running.first_line(receiver, Duration::from_secs(20)).await.unwrap();
        let pid = running.pid.clone();
        running.stop(Duration::from_millis(300)).await;
        let pid = pid.borrow().map(|pid| Pid::from_raw(i32::try_from(pid).unwrap()).unwrap());
        // Reaped by the runtime when the task that held it is gone.
        if let Some(pid) = pid {
            let gone = async {
                while std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
                    .is_ok_and(|stat| !stat.contains(") Z "))
                {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), gone).await.expect("still running");
        }
    }
}
