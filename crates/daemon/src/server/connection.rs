use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use edgekeep_base::lock::lock;

use http::StatusCode;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::door::Door;
use super::intake::Intake;
use super::line::{Fresh, Line};
use super::measure::ConnectionSeries;
use super::response::HttpError;
use super::router::Router;
use crate::metrics::Gauge;
use crate::peer::{Caller, CheckedStream, PeerSocket};

/// Time in which a request head must have come; an idle connection is closed after it as
/// well.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// Time for which running requests may go on after the daemon was asked to stop.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Largest request head.
const HEAD_LIMIT: usize = 16 << 10;
/// Connections over the limit that are being told so, at any one time. Further ones are
/// closed without a word.
const REFUSALS: u32 = 32;
/// Connections over the limit that one uid is told of in [`TELLING_PERIOD`]: telling
/// takes a task and an answer, a close takes neither, and others wait for both.
const TOLD: u32 = 256;
const TELLING_PERIOD: Duration = Duration::from_secs(1);
/// Connections that get their place between two looks at what came meanwhile.
const TURN: u32 = 8;

/// Bounds of one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open connections that one uid may hold.
    pub connections_per_uid: u32,
    /// True if a thread of its own takes the connections: for a socket that users open
    /// who have nothing to do with each other. Then a flood of one user's connections
    /// leaves the kernel's line, which all users share, at once, and a user who goes on
    /// flooding is kept out for a while.
    pub shared: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections_per_uid: 32, shared: false }
    }
}

#[derive(Debug, Default)]
struct Counts {
    /// Of those that hold a connection, so there are never more than connections.
    by_uid: HashMap<u32, Share>,
    refusing: u32,
}

/// The share of a socket that one uid has.
#[derive(Debug)]
struct Share {
    open: u32,
    /// Refusals told since the time.
    told: (u32, Instant),
}

impl Share {
    fn new(now: Instant) -> Self {
        Self { open: 0, told: (0, now) }
    }

    /// Counts one more refusal. Returns true if the refusal is told.
    fn tell(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.told.1) >= TELLING_PERIOD {
            self.told = (0, now);
        }
        self.told.0 += 1;
        self.told.0 <= TOLD
    }
}

/// A place among the connections of a uid; gives it back when the connection ends.
struct Slot {
    counts: Arc<Mutex<Counts>>,
    kind: SlotKind,
    open: Arc<Gauge>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotKind {
    Served(u32),
    Refused,
}

impl Slot {
    fn take(
        counts: &Arc<Mutex<Counts>>,
        uid: u32,
        limit: u32,
        now: Instant,
        gauge: &Arc<Gauge>,
    ) -> Option<Self> {
        let mut guard = lock(counts);
        let Counts { by_uid, refusing } = &mut *guard;
        let share = by_uid.entry(uid).or_insert_with(|| Share::new(now));
        let kind = if share.open < limit {
            share.open += 1;
            SlotKind::Served(uid)
        } else if *refusing < REFUSALS && share.tell(now) {
            *refusing += 1;
            SlotKind::Refused
        } else {
            return None;
        };
        drop(guard);
        gauge.add(1.0);
        Some(Self { counts: Arc::clone(counts), kind, open: Arc::clone(gauge) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.open.add(-1.0);
        let mut counts = lock(&self.counts);
        match self.kind {
            SlotKind::Refused => counts.refusing -= 1,
            SlotKind::Served(uid) => {
                if let Some(share) = counts.by_uid.get_mut(&uid) {
                    share.open -= 1;
                    if share.open == 0 {
                        counts.by_uid.remove(&uid);
                    }
                }
            }
        }
    }
}

/// The answer on a connection on which another process sent bytes.
pub(super) fn sender_refused() -> HttpError {
    HttpError::forbidden().closing()
}

/// Accepts connections until `stop` turns true (or its sender is gone), then lets running
/// requests end.
pub async fn serve<S: Send + Sync + 'static>(
    listener: UnixListener,
    router: Arc<Router<S>>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    let counts = Arc::new(Mutex::new(Counts::default()));
    let mut connections = JoinSet::new();
    let begun = listener.into_std().and_then(|listener| {
        let told = Arc::clone(&router);
        let tell = Box::new(move |user, lasting| told.flooded(user, lasting));
        let door = if limits.shared { Door::of(&listener, tell) } else { None };
        let line = Arc::new(Line::new(router.connections().clone(), door));
        let intake = Intake::begin(listener, router.looks_at_callers(), limits.shared, &line)?;
        Ok((line, intake))
    });
    let (line, mut intake) = match begun {
        Ok(begun) => begun,
        Err(error) => return tracing::error!(%error, "cannot serve a socket"),
    };
    let doorkeeper = AbortOnDrop(tokio::spawn({
        let line = Arc::clone(&line);
        async move { line.keep_door().await }
    }));
    let mut turn = 0;
    loop {
        // Ended connections are collected as they end, so that the set stays as small as
        // what is open.
        while connections.try_join_next().is_some() {}
        let Some(fresh) = line.pop() else {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                () = intake.wait(&line) => continue,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            }
        };
        if let Some(admitted) = admit(fresh, &counts, limits, router.connections(), &line) {
            let Admitted { stream, caller, slot, has_asked } = admitted;
            // A caller whose bytes are there is looked at when the request is whole: not
            // before, or it would have to be looked at twice. It may become another
            // program until then, which shows in the descriptor of its connection, where
            // that is known.
            let may_wait = has_asked && caller.socket() != PeerSocket::Untold;
            let looks = !may_wait && matches!(slot.kind, SlotKind::Served(_));
            let (router, stop, line) = (Arc::clone(&router), stop.clone(), Arc::clone(&line));
            connections.spawn(async move {
                if looks {
                    router.connected(&caller).await;
                }
                let user = caller.uid();
                if !converse(stream, caller, slot, router, limits, stop).await {
                    line.wasted(user);
                }
            });
        }
        turn += 1;
        if turn == TURN {
            turn = 0;
            intake.look(&line).await;
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                () = tokio::task::yield_now() => {}
            }
        }
    }
    drop((intake, doorkeeper));
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_GRACE, all_ended).await.is_err() {
        tracing::warn!("requests did not end within {} s and were dropped", STOP_GRACE.as_secs());
    }
}

/// Ends when the daemon was asked to stop, or when nobody is left who could ask.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A connection that has its place.
struct Admitted {
    stream: UnixStream,
    caller: Arc<Caller>,
    slot: Slot,
    /// True if something was sent before the connection was accepted.
    has_asked: bool,
}

/// Gives a fresh connection its place. One over the limit costs as little as can be: who
/// floods a socket keeps others waiting.
fn admit(
    mut fresh: Fresh,
    counts: &Arc<Mutex<Counts>>,
    limits: Limits,
    series: &ConnectionSeries,
    line: &Line,
) -> Option<Admitted> {
    if fresh.is_abandoned() {
        series.abandoned.increment();
        line.wasted(fresh.credentials.uid());
        return None;
    }
    let Fresh { stream, credentials, socket, has_asked } = fresh;
    let taken = Slot::take(
        counts,
        credentials.uid(),
        limits.connections_per_uid,
        Instant::now(),
        &series.open,
    );
    let Some(slot) = taken else {
        series.dropped.increment();
        line.wasted(credentials.uid());
        return None;
    };
    let caller = if slot.kind == SlotKind::Refused {
        series.over_limit.increment();
        Caller::turned_away(credentials)
    } else {
        series.accepted.increment();
        Caller::with(credentials, &stream, socket)
    };
    UnixStream::from_std(stream)
        .inspect_err(|error| {
            tracing::warn!(%error, "connection closed: the runtime takes no more");
        })
        .ok()
        .map(|stream| Admitted { stream, caller: Arc::new(caller), slot, has_asked })
}

/// Answers what is asked on a connection. Returns false if the connection came to
/// nothing: it was over the limit, or ended before it had one whole answer.
async fn converse<S: Send + Sync + 'static>(
    stream: UnixStream,
    caller: Arc<Caller>,
    slot: Slot,
    router: Arc<Router<S>>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) -> bool {
    let refused = slot.kind == SlotKind::Refused;
    let answered = AtomicBool::new(false);
    let io = TokioIo::new(CheckedStream::new(stream, Arc::clone(&caller)));
    let service = service_fn(|request: http::Request<Incoming>| {
        let caller = Arc::clone(&caller);
        let router = Arc::clone(&router);
        let answered = &answered;
        async move {
            let answer = if refused {
                let limit = limits.connections_per_uid;
                let message = format!("more than {limit} open connections of uid {}", caller.uid());
                HttpError::new(StatusCode::TOO_MANY_REQUESTS, message).closing().into_response()
            } else if caller.sender_changed() {
                let what = format!("{} {}", request.method(), request.uri().path());
                router.refuse_sender(&caller, what).await;
                sender_refused().into_response()
            } else {
                let what = format!("{} {}", request.method(), request.uri().path());
                let answer = router.answer(Arc::clone(&caller), request).await;
                // Noticed while the body was read: the handler has answered with the
                // refusal, the trail needs it too.
                if caller.sender_changed() {
                    router.refuse_sender(&caller, what).await;
                    sender_refused().into_response()
                } else {
                    answer
                }
            };
            answered.store(true, Ordering::Relaxed);
            Ok::<_, Infallible>(answer.0)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_LIMIT)
        // A client that goes away while an answer is streamed is noticed by the end of
        // what it sends.
        .half_close(false)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    let mut delivered = !refused && answered.load(Ordering::Relaxed);
    if let Err(error) = ended {
        delivered &= !is_hang_up(&error);
        tracing::debug!(%error, uid = caller.uid(), "connection ended");
    }
    drop(slot);
    delivered
}

/// Returns true if the peer was gone when it was answered.
fn is_hang_up(error: &hyper::Error) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A task that ends with its owner.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flooding_uid_is_told_so_often_a_period_and_no_more() {
        let begin = Instant::now();
        let mut share = Share::new(begin);
        let told = |share: &mut Share, now| (0..1000).filter(|_| share.tell(now)).count();
        assert_eq!(told(&mut share, begin), TOLD as usize);
        assert_eq!(told(&mut share, begin + TELLING_PERIOD / 2), 0);
        assert_eq!(told(&mut share, begin + TELLING_PERIOD), TOLD as usize);
    }
}
