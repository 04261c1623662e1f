//! The daemon's side: it asks children, and has one that does not answer started anew.

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::channel::{MAX_BODY, Message, PING, ReceiveError};
use crate::connection::Connection;
use crate::serve::MAX_AT_ONCE;
use crate::supervisor::{Started, Word};

/// Time without a word after which a child counts as hanging. A caller gets its answer
/// within two seconds.
const SILENCE: Duration = Duration::from_millis(1500);

/// Time between two pings of a child that works on a question.
const PING_EVERY: Duration = Duration::from_millis(500);

/// Troubles that wait to be told.
const TROUBLES: usize = 16;

/// Failure to get an answer of a child.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The child ended.
    #[error("the {0} process ended before it answered; it is started anew")]
    Ended(&'static str),
    /// The child does not answer.
    #[error("the {0} process does not answer; it is started anew")]
    Hangs(&'static str),
    /// The child answers what is no answer.
    #[error("the {0} process answered what is no answer; it is started anew")]
    Foreign(&'static str),
    /// The child lives and takes too long.
    #[error("the {0} process has not done in time what it was asked for")]
    Slow(&'static str),
    /// There is nobody any more to start the child.
    #[error("the {0} process ended, and the supervisor with it; restart the daemon")]
    Gone(&'static str),
    /// The question breaks a bound.
    #[error("what the {0} process should be asked is too long")]
    TooLong(&'static str),
}

/// Something that went wrong with a child, for the list of problems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// The child's name.
    pub child: &'static str,
    /// The reason in words.
    pub why: String,
}

/// The children of this daemon.
#[derive(Debug)]
pub struct Children {
    links: Vec<Link>,
    gone: watch::Receiver<bool>,
}

/// A child, as whoever asks it has it.
#[derive(Debug, Clone)]
pub struct Link(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: &'static str,
    child: usize,
    line: watch::Sender<Option<Arc<Line>>>,
    at_once: Semaphore,
    supervisor: Arc<Connection>,
    gone: watch::Receiver<bool>,
    troubles: mpsc::Sender<Trouble>,
}

/// The connection to one run of a child.
#[derive(Debug)]
struct Line {
    start: u64,
    connection: Connection,
    next: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// `None` when the line is dead.
    answers: Option<HashMap<u64, oneshot::Sender<Message>>>,
    heard: Instant,
}

impl Line {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a question, and where its answer comes.
    fn expect(self: &Arc<Self>) -> Option<(Expected, oneshot::Receiver<Message>)> {
        let (sender, receiver) = oneshot::channel();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.waiting().answers.as_mut()?.insert(number, sender);
        Some((Expected { line: Arc::clone(self), number }, receiver))
    }

    /// Reads answers until the child ends or sends what was not asked for.
    async fn read(&self) -> ReceiveError {
        loop {
            let message = match self.connection.receive().await {
                Ok(message) => message,
                Err(error) => return error,
            };
            let mut waiting = self.waiting();
            waiting.heard = Instant::now();
            if message.number >= self.next.load(Ordering::Relaxed) {
                return ReceiveError::Foreign("that nobody asked for");
            }
            // Nobody waits for it any more if the caller went away.
            let sender =
                waiting.answers.as_mut().and_then(|answers| answers.remove(&message.number));
            if let Some(sender) = sender {
                let _ = sender.send(message);
            }
        }
    }

    /// Ends the line. Returns true if the line was in use until now.
    fn end(&self) -> bool {
        self.waiting().answers.take().is_some()
    }
}

/// A question under way, forgotten when its caller goes away.
struct Expected {
    line: Arc<Line>,
    number: u64,
}

impl Drop for Expected {
    fn drop(&mut self) {
        if let Some(answers) = &mut self.line.waiting().answers {
            answers.remove(&self.number);
        }
    }
}

impl Children {
    /// Takes over a supervisor whose children have these names, in the order of its
    /// arguments. In a tokio runtime. Troubles come out of the receiver; those that are
    /// not taken out are dropped.
    ///
    /// # Errors
    /// The socket cannot be watched.
    pub fn adopt(
        started: Started,
        names: &[&'static str],
    ) -> io::Result<(Self, mpsc::Receiver<Trouble>)> {
        let supervisor = Arc::new(Connection::new(started.socket)?);
        let (troubles, told) = mpsc::channel(TROUBLES);
        let (gone_sender, gone) = watch::channel(false);
        let link = |(child, name): (usize, &&'static str)| {
            Link(Arc::new(Shared {
                name,
                child,
                line: watch::Sender::new(None),
                at_once: Semaphore::new(MAX_AT_ONCE / 2),
                supervisor: Arc::clone(&supervisor),
                gone: gone.clone(),
                troubles: troubles.clone(),
            }))
        };
        let links: Vec<Link> = names.iter().enumerate().map(link).collect();
        let (listening, mut process) = (links.clone(), started.process);
        tokio::spawn(async move {
            while let Ok(message) = supervisor.receive().await {
                if !begin_line(&listening, message) {
                    break;
                }
            }
            gone_sender.send_replace(true);
            let _ = process.kill().and_then(|()| process.wait());
        });
        Ok((Self { links, gone }, told))
    }

    /// A child, by its place in the list of names.
    #[must_use]
    pub fn link(&self, child: usize) -> Option<Link> {
        self.links.get(child).cloned()
    }

    /// Waits until the supervisor is gone, after which no child is started any more.
    pub async fn gone(&self) {
        // A closed channel says the same.
        let _ = self.gone.clone().wait_for(|gone| *gone).await;
    }
}

/// Takes over the socket of a child that was started; whether the supervisor's message
/// was one.
fn begin_line(links: &[Link], mut message: Message) -> bool {
    let word = serde_json::from_slice::<Word>(&message.body);
    let (Ok(word), Some(socket)) = (word, message.files.pop()) else { return false };
    let Some(link) = links.get(word.child) else { return false };
    let Ok(connection) = Connection::new(socket) else { return false };
    let line = Arc::new(Line {
        start: word.start,
        connection,
        next: AtomicU64::new(PING + 1),
        waiting: Mutex::new(Waiting { answers: Some(HashMap::new()), heard: Instant::now() }),
    });
    link.0.line.send_replace(Some(Arc::clone(&line)));
    let link = link.clone();
    tokio::spawn(async move {
        let ended = line.read().await;
        link.0.end(&line, &ended.to_string(), !matches!(ended, ReceiveError::Ended));
    });
    true
}

impl Shared {
    /// Takes a line out of use, and has the child started anew if it lives.
    fn end(self: &Arc<Self>, line: &Arc<Line>, why: &str, lives: bool) {
        let was_in_use = line.end();
        // The next one may be there already.
        self.line.send_if_modified(|current| {
            let same = current.as_ref().is_some_and(|current| Arc::ptr_eq(current, line));
            if same {
                *current = None;
            }
            same
        });
        if !was_in_use {
            return;
        }
        let trouble = Trouble { child: self.name, why: why.to_owned() };
        let _ = self.troubles.try_send(trouble);
        if lives {
            let (this, start) = (Arc::clone(self), line.start);
            tokio::spawn(async move {
                let body = serde_json::to_vec(&Word { child: this.child, start });
                let body = body.unwrap_or_default();
                let _ = this.supervisor.send(start, &body, &[]).await;
            });
        }
    }
}

impl Link {
    /// Asks the child, and waits for its answer: for at most `limit` while it says that
    /// it is there, and for less than two seconds if it does not.
    ///
    /// # Errors
    /// See [`AskError`]. Whether the child did what it was asked for is not known then.
    pub async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        question: &Q,
        files: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(A, Vec<OwnedFd>), AskError> {
        let shared = &self.0;
        let name = shared.name;
        let body = serde_json::to_vec(question).map_err(|_| AskError::TooLong(name))?;
        if body.len() > MAX_BODY {
            return Err(AskError::TooLong(name));
        }
        let began = Instant::now();
        let Ok(Ok(_turn)) = timeout_at(began + limit, shared.at_once.acquire()).await else {
            return Err(AskError::Slow(name));
        };
        let line = self.line().await?;
        let (expected, answer) = line.expect().ok_or(AskError::Ended(name))?;
        let asked = Instant::now();
        let sent = line.connection.send(expected.number, &body, files);
        match timeout_at(asked + SILENCE, sent).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(AskError::Ended(name)),
            Err(_) => return Err(self.hangs(&line)),
        }
        let mut message =
            wait(&line, answer, asked, began + limit).await.map_err(|end| match end {
                Silent::Ended => AskError::Ended(name),
                Silent::Hangs => self.hangs(&line),
                Silent::Slow => AskError::Slow(name),
            })?;
        match serde_json::from_slice(&message.body) {
            Ok(answer) => Ok((answer, std::mem::take(&mut message.files))),
            Err(_) => {
                shared.end(&line, "it answered what is no answer", true);
                Err(AskError::Foreign(name))
            }
        }
    }

    /// The line to the child; one that is being started is waited for.
    async fn line(&self) -> Result<Arc<Line>, AskError> {
        let shared = &self.0;
        let (mut lines, mut gone) = (shared.line.subscribe(), shared.gone.clone());
        let there = async {
            tokio::select! {
                biased;
                line = lines.wait_for(Option::is_some) => line.ok().and_then(|line| line.clone()),
                _ = gone.wait_for(|gone| *gone) => None,
            }
        };
        match timeout_at(Instant::now() + SILENCE, there).await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => Err(AskError::Gone(shared.name)),
            Err(_) => Err(AskError::Ended(shared.name)),
        }
    }

    fn hangs(&self, line: &Arc<Line>) -> AskError {
        self.0.end(line, "it does not answer", true);
        AskError::Hangs(self.0.name)
    }
}

/// Reason for the lack of an answer.
enum Silent {
    Ended,
    Hangs,
    Slow,
}

async fn wait(
    line: &Line,
    mut answer: oneshot::Receiver<Message>,
    asked: Instant,
    until: Instant,
) -> Result<Message, Silent> {
    let mut ping = asked + PING_EVERY;
    loop {
        let silent = line.waiting().heard.max(asked) + SILENCE;
        tokio::select! {
            biased;
            answer = &mut answer => return answer.map_err(|_| Silent::Ended),
            () = sleep_until(ping.min(silent).min(until)) => {}
        }
        let now = Instant::now();
        if now >= until {
            return Err(Silent::Slow);
        }
        if now >= silent && line.waiting().heard.max(asked) + SILENCE <= now {
            return Err(Silent::Hangs);
        }
        if now >= ping {
            ping = now + PING_EVERY;
            // Not waited for without end: a full queue is the same as no answer.
            let sent = line.connection.send(PING, &[], &[]);
            if let Ok(Err(_)) = timeout_at(ping, sent).await {
                return Err(Silent::Ended);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::{channel, serve};

    /// Longer than anything here takes on a busy machine.
    const LONG: Duration = Duration::from_secs(60);

    /// The supervisor's end, and what stands for its process.
    struct Stage {
        supervisor: Connection,
        children: Children,
        troubles: mpsc::Receiver<Trouble>,
        link: Link,
    }

    impl Stage {
        fn new() -> Self {
            let (socket, theirs) = channel::pair().expect("pair");
            let process = Command::new("/bin/true").stdin(Stdio::null()).spawn();
            let started = Started { process: process.expect("started"), socket };
            let (children, troubles) = Children::adopt(started, &["worker"]).expect("adopted");
            let link = children.link(0).expect("the first");
            let supervisor = Connection::new(theirs).expect("watched");
            Self { supervisor, children, troubles, link }
        }

        /// Hands the daemon's end of a new child over.
        async fn child(&self, start: u64) -> OwnedFd {
            let (ours, theirs) = channel::pair().expect("pair");
            let word = serde_json::to_vec(&Word { child: 0, start }).expect("text");
            self.supervisor.send(start, &word, &[ours.as_fd()]).await.expect("sent");
            theirs
        }

        async fn ask(&self, question: &str, limit: Duration) -> Result<String, AskError> {
            self.link.ask(&question, &[], limit).await.map(|(answer, _)| answer)
        }

        /// The start that is to be replaced.
        async fn unwanted(&self) -> u64 {
            let message = self.supervisor.receive().await.expect("a word");
            serde_json::from_slice::<Word>(&message.body).expect("a word").start
        }
    }

    /// A child that repeats what it is asked, and never answers "nothing".
    async fn repeat(socket: OwnedFd) -> io::Result<()> {
        let answer = |question: String, _| async move {
            if question == "nothing" {
                std::future::pending::<()>().await;
            }
            (question, Vec::new())
        };
        serve(socket, answer).await
    }

    #[tokio::test]
    async fn a_child_answers_until_it_ends_and_the_next_one_goes_on() {
        let mut stage = Stage::new();
        let first = tokio::spawn(repeat(stage.child(1).await));
        let (one, other) = tokio::join!(stage.ask("a", LONG), stage.ask("b", LONG));
        assert_eq!((one.expect("answered"), other.expect("answered")), ("a".into(), "b".into()));

        let (cut_off, ()) = tokio::join!(stage.ask("nothing", LONG), async {
            tokio::task::yield_now().await;
            first.abort();
        });
        assert!(matches!(cut_off, Err(AskError::Ended("worker"))), "{cut_off:?}");
        let told = stage.troubles.recv().await.expect("told");
        assert_eq!(told.why, "the other process has ended");

        let _second = tokio::spawn(repeat(stage.child(2).await));
        assert_eq!(stage.ask("c", LONG).await.expect("answered"), "c");
    }

    #[tokio::test]
    async fn a_child_that_hangs_is_told_of_within_two_seconds_and_is_replaced() {
        let mut stage = Stage::new();
        let silent = stage.child(7).await;
        let asked = Instant::now();
        let error = stage.ask("a", LONG).await.expect_err("nobody reads");
        let took = asked.elapsed();
        assert!(matches!(error, AskError::Hangs("worker")), "{error}");
        assert!((SILENCE..Duration::from_secs(20)).contains(&took), "{took:?}");
        assert_eq!(stage.unwanted().await, 7);
        assert_eq!(stage.troubles.recv().await.expect("told").why, "it does not answer");
        drop(silent);
        // Meanwhile there is none, which is told in time as well.
        let absent = stage.ask("a", LONG).await;
        assert!(matches!(absent, Err(AskError::Ended("worker"))), "{absent:?}");
        let _next = tokio::spawn(repeat(stage.child(8).await));
        assert_eq!(stage.ask("b", LONG).await.expect("answered"), "b");
    }

    #[tokio::test]
    async fn a_child_that_works_long_is_waited_for_up_to_the_limit_and_not_replaced() {
        let mut stage = Stage::new();
        let _child = tokio::spawn(repeat(stage.child(1).await));
        let limit = SILENCE * 2;
        let error = stage.ask("nothing", limit).await.expect_err("takes too long");
        assert!(matches!(error, AskError::Slow("worker")), "{error}");
        assert_eq!(stage.ask("a", LONG).await.expect("still there"), "a");
        assert!(stage.troubles.try_recv().is_err());
    }

    #[tokio::test]
    async fn an_answer_that_is_none_or_that_nobody_asked_for_ends_the_child() {
        for (number, body, foreign) in
            [(1, &b"no text"[..], true), (99, &b"\"a\""[..], false), (u64::MAX, &b""[..], false)]
        {
            let stage = Stage::new();
            let child = Connection::new(stage.child(3).await).expect("watched");
            let (error, ()) = tokio::join!(stage.ask("a", LONG), async {
                child.receive().await.expect("asked");
                child.send(number, body, &[]).await.expect("sent");
            });
            match error {
                Err(AskError::Foreign(_)) if foreign => {}
                Err(AskError::Ended(_)) if !foreign => {}
                other => panic!("{number}: {other:?}"),
            }
            assert_eq!(stage.unwanted().await, 3);
        }
    }

    #[tokio::test]
    async fn without_a_supervisor_there_is_no_child_any_more() {
        let Stage { supervisor, children, link, .. } = Stage::new();
        drop(supervisor);
        children.gone().await;
        let error = link.ask::<_, String>(&"a", &[], LONG).await.expect_err("nobody");
        assert!(matches!(error, AskError::Gone("worker")), "{error}");
    }

    #[tokio::test]
    async fn what_is_too_long_to_be_asked_is_refused_and_harms_nobody() {
        let stage = Stage::new();
        let _child = tokio::spawn(repeat(stage.child(1).await));
        let error = stage.ask(&"x".repeat(MAX_BODY), LONG).await.expect_err("too long");
        assert!(matches!(error, AskError::TooLong("worker")), "{error}");
        assert_eq!(stage.ask("a", LONG).await.expect("answered"), "a");
    }

    #[tokio::test]
    async fn a_daemon_that_asks_what_is_no_question_is_not_served_any_more() {
        for body in [&b"{"[..], b"", b"17"] {
            let (ours, theirs) = channel::pair().expect("pair");
            channel::send(&ours, 1, body, &[]).expect("sent");
            repeat(theirs).await.expect_err("no question");
        }
    }
}
