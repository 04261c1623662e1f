//! A starter of host modules that starts nothing: a "process" is a number and a
//! descriptor that becomes readable at its end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edgekeep_core::attestation::{ExecutableFile, ProcessInstance};
use edgekeep_runtime::process::{Answer, Answering, Asked, Failure, Starter};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::watch;

/// A process number that no process of the machine has.
const FIRST_PID: u32 = 1 << 30;

/// The starter. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeStarter(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    next: u32,
    waiting: BTreeMap<u32, ProcessInstance>,
    processes: BTreeMap<u32, Process>,
    refuse_to_begin: bool,
    started: watch::Sender<usize>,
}

#[derive(Debug)]
struct Process {
    end: OwnedFd,
    code: Option<i64>,
}

impl FakeStarter {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has programs begin or not from now on.
    pub(crate) fn refuse_to_begin(&self, refuse: bool) {
        self.state().refuse_to_begin = refuse;
    }

    /// Returns the number of programs that began.
    pub(crate) fn starts(&self) -> usize {
        *self.state().started.borrow()
    }

    /// Waits until so many programs began.
    pub(crate) async fn until_started(&self, count: usize) {
        let mut started = self.state().started.subscribe();
        let waited = started.wait_for(|started| *started >= count);
        let limit = std::time::Duration::from_secs(30);
        let _ = tokio::time::timeout(limit, waited).await.expect("it comes").expect("lives");
    }

    /// Ends the processes that run, as by themselves.
    pub(crate) fn end_all(&self, code: i64) {
        let mut state = self.state();
        for process in state.processes.values_mut() {
            process.end(code);
        }
    }
}

impl Process {
    fn end(&mut self, code: i64) {
        if self.code.is_none() {
            self.code = Some(code);
            let told = self.end.try_clone().map(File::from);
            let _ = told.and_then(|mut file| file.write_all(&1_u64.to_ne_bytes()));
        }
    }
}

impl State {
    fn answer(&mut self, asked: &Asked) -> (Answer, Vec<OwnedFd>) {
        match asked {
            Asked::About => (Answer::About { without_cgroups: None }, Vec::new()),
            Asked::Prepare { .. } => self.prepare(),
            Asked::Begin { number } => (self.begin(*number), Vec::new()),
            Asked::Cancel { number } => {
                if let Some(process) = self.waiting.remove(number) {
                    self.end(process, 137);
                }
                (Answer::Done, Vec::new())
            }
            Asked::Signal { process, kill, .. } => {
                self.end(*process, if *kill { 137 } else { 143 });
                (Answer::Done, Vec::new())
            }
            Asked::Ended { process, .. } => {
                let code = self.processes.get(&process.pid).and_then(|process| process.code);
                (Answer::Exit(code), Vec::new())
            }
            Asked::Clear { .. } => (Answer::Cleared(true), Vec::new()),
            Asked::Accounts | Asked::Discard { .. } | Asked::HandOver { .. } => {
                (Answer::Done, Vec::new())
            }
        }
    }

    fn prepare(&mut self) -> (Answer, Vec<OwnedFd>) {
        self.next += 1;
        let process = ProcessInstance { pid: FIRST_PID + self.next, start_time: 1 };
        let made = eventfd(0, EventfdFlags::CLOEXEC)
            .and_then(|end| Ok((rustix::io::fcntl_dupfd_cloexec(end.as_fd(), 0)?, end)));
        let Ok((watched, end)) = made else {
            return (Answer::Failed(Failure::Machine("no descriptor".into())), Vec::new());
        };
        self.processes.insert(process.pid, Process { end, code: None });
        self.waiting.insert(self.next, process);
        let answer = Answer::Prepared {
            number: self.next,
            process,
            own_copy: ExecutableFile { device: 0, inode: 0, size: 0, ctime_ns: 0 },
            from_file: true,
            cgroup: None,
            limits: None,
            limit_groups: Vec::new(),
        };
        (answer, vec![watched])
    }

    fn begin(&mut self, number: u32) -> Answer {
        let Some(process) = self.waiting.remove(&number) else {
            return Answer::Failed(Failure::Refused("nothing waits".into()));
        };
        if self.refuse_to_begin {
            self.end(process, 1);
            return Answer::Failed(Failure::Machine("cannot execute the program".into()));
        }
        self.started.send_modify(|started| *started += 1);
        Answer::Began(None)
    }

    fn end(&mut self, process: ProcessInstance, code: i64) {
        if let Some(process) = self.processes.get_mut(&process.pid) {
            process.end(code);
        }
    }
}

impl Starter for FakeStarter {
    fn answer(&self, asked: Asked, _: Vec<OwnedFd>) -> Answering {
        let answer = self.state().answer(&asked);
        Box::pin(std::future::ready(answer))
    }
}
