//! Intake of connections: the task that serves, or a thread of its own, empties the
//! kernel's line.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::acceptor::Acceptor;
use super::line::Line;

/// Shortest time between two log lines about trouble with accepting.
const WARNING_PERIOD: Duration = Duration::from_secs(60);
/// Pause after an accept that failed. Descriptors come back when connections end, and a
/// busy loop would not help that.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_OF_THREAD: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// Nice value of the thread, as far as the system allows: it must get a processor
/// although a flood takes them all.
const NICE: i32 = -10;

/// Connections on their way from the kernel to a [`Line`].
pub(super) enum Intake {
    Task { acceptor: AsyncFd<Acceptor>, trouble: Trouble },
    Thread(#[expect(dead_code, reason = "ends the thread when it is dropped")] Thread),
}

impl Intake {
    /// Begins to take connections; with `thread` on a thread of its own.
    ///
    /// # Errors
    /// The listener cannot be registered with the runtime, or there is no thread to be
    /// had.
    pub(super) fn begin(
        listener: net::UnixListener,
        peer_sockets: bool,
        thread: bool,
        line: &Arc<Line>,
    ) -> io::Result<Self> {
        let acceptor = Acceptor::new(listener, peer_sockets);
        if thread {
            return Thread::begin(acceptor, Arc::clone(line)).map(Self::Thread);
        }
        #[expect(
            deprecated,
            reason = "deprecated for types whose descriptor can change; a listener keeps one, and this crate has no unsafe"
        )]
        let acceptor = AsyncFd::with_interest(acceptor, Interest::READABLE)?;
        Ok(Self::Task { acceptor, trouble: Trouble::default() })
    }

    /// Waits until something may be in the line. Nothing is lost when this is given up.
    pub(super) async fn wait(&mut self, line: &Line) {
        match self {
            Self::Thread(_) => line.filled().await,
            Self::Task { acceptor, trouble } => {
                let may_take = if acceptor.get_ref().has_more() {
                    Ok(())
                } else {
                    // Cleared before the kernel is asked: what comes later is an event.
                    acceptor.readable_mut().await.map(|mut ready| ready.clear_ready())
                };
                let taken = may_take.and_then(|()| acceptor.get_mut().take(line));
                if let Err(error) = taken {
                    trouble.tell(&error);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// As [`Self::wait`], where there is something to do meanwhile.
    pub(super) async fn look(&mut self, line: &Line) {
        if matches!(self, Self::Task { .. }) {
            tokio::select! {
                biased;
                () = self.wait(line) => {}
                () = std::future::ready(()) => {}
            }
        }
    }
}

/// Trouble with accepting, and the time when it was last logged.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    told: Option<Instant>,
}

impl Trouble {
    fn tell(&mut self, error: &io::Error) {
        if self.told.is_none_or(|at| at.elapsed() > WARNING_PERIOD) {
            self.told = Some(Instant::now());
            tracing::warn!(%error, "cannot accept connections");
        }
    }
}

/// A thread that does nothing but accept.
pub(super) struct Thread {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Thread {
    fn begin(mut acceptor: Acceptor, line: Arc<Line>) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("accept".into()).spawn(move || {
            // Of this thread alone. Takes CAP_SYS_NICE or LimitNICE=; without them all
            // threads are equal.
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
            let mut trouble = Trouble::default();
            loop {
                let taken = match acceptor.wait(&stopped) {
                    Ok(true) => return,
                    Ok(false) => acceptor.take(&line),
                    Err(error) => Err(error),
                };
                match taken {
                    Ok(true) => line.wake(),
                    Ok(false) => {}
                    Err(error) => {
                        trouble.tell(&error);
                        // Ends early when it is to stop.
                        let _ = poll(
                            &mut [PollFd::new(&*stopped, PollFlags::IN)],
                            Some(&PAUSE_OF_THREAD),
                        );
                    }
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Thread {
    /// Ends the thread, which closes the listener: it is not listened on any more when
    /// this returns.
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
