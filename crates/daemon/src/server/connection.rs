use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::acceptor::Acceptor;
use super::measure::ConnectionSeries;
use super::response::HttpError;
use super::router::Router;
use crate::metrics::Gauge;
use crate::peer::{Caller, CheckedStream, PeerSocket};

/// Time in which a request head must have come; an idle connection is closed after it as well.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// Time for which running requests may go on after the daemon was asked to stop.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Largest request head.
const HEAD_LIMIT: usize = 16 << 10;
/// Connections over the limit that are being told so, at any one time. Further ones are closed without a word.
const REFUSALS: u32 = 32;

/// How often trouble with accepting is logged.
const WARNING_PERIOD: Duration = Duration::from_secs(60);

/// Bounds of one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open connections that one uid may hold.
    pub connections_per_uid: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections_per_uid: 32 }
    }
}

#[derive(Debug, Default)]
struct Counts {
    by_uid: HashMap<u32, u32>,
    refusing: u32,
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
    fn take(counts: &Arc<Mutex<Counts>>, uid: u32, limit: u32, gauge: &Arc<Gauge>) -> Option<Self> {
        let mut guard = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let open = guard.by_uid.get(&uid).copied().unwrap_or(0);
        let kind = if open < limit {
            guard.by_uid.insert(uid, open + 1);
            SlotKind::Served(uid)
        } else if guard.refusing < REFUSALS {
            guard.refusing += 1;
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
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match self.kind {
            SlotKind::Refused => counts.refusing -= 1,
            SlotKind::Served(uid) => {
                if let Some(open) = counts.by_uid.get_mut(&uid) {
                    *open -= 1;
                    if *open == 0 {
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

/// Accepts connections until `stop` turns true (or its sender is gone), then lets running requests end.
pub async fn serve<S: Send + Sync + 'static>(
    listener: UnixListener,
    router: Arc<Router<S>>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    let counts = Arc::new(Mutex::new(Counts::default()));
    let mut connections = JoinSet::new();
    let mut last_warning: Option<Instant> = None;
    let mut acceptor = match Acceptor::new(listener, router.looks_at_callers()) {
        Ok(acceptor) => acceptor,
        Err(error) => return tracing::error!(%error, "cannot serve a socket"),
    };
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            accepted = acceptor.accept() => match accepted {
                Ok((stream, socket)) => {
                    if let Some((caller, slot)) = admit(&stream, socket, &counts, limits, router.connections()) {
                        if matches!(slot.kind, SlotKind::Served(_)) {
                            router.connected(&caller);
                        }
                        let router = Arc::clone(&router);
                        connections.spawn(converse(stream, caller, slot, router, limits, stop.clone()));
                    }
                }
                Err(error) => {
                    if last_warning.is_none_or(|at| at.elapsed() > WARNING_PERIOD) {
                        last_warning = Some(Instant::now());
                        tracing::warn!(%error, "cannot accept connections");
                    }
                    // Out of descriptors: they come back when connections end, and a busy loop would not help that.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
            // Ended connections are collected as they end, so that the set stays as small as what is open.
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    drop(acceptor);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_GRACE, all_ended).await.is_err() {
        tracing::warn!("requests did not end within {} s and were dropped", STOP_GRACE.as_secs());
    }
}

/// Ends when the daemon was asked to stop, or when nobody is left who could ask.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn admit(
    stream: &UnixStream,
    socket: PeerSocket,
    counts: &Arc<Mutex<Counts>>,
    limits: Limits,
    series: &ConnectionSeries,
) -> Option<(Arc<Caller>, Slot)> {
    match Caller::of(stream, socket) {
        Ok(caller) => {
            let slot = Slot::take(counts, caller.uid(), limits.connections_per_uid, &series.open);
            match slot.as_ref().map(|slot| slot.kind) {
                Some(SlotKind::Served(_)) => series.accepted.increment(),
                Some(SlotKind::Refused) => series.over_limit.increment(),
                None => series.dropped.increment(),
            }
            Some((Arc::new(caller), slot?))
        }
        Err(error) => {
            series.no_credentials.increment();
            tracing::warn!(%error, "connection without peer credentials");
            None
        }
    }
}

async fn converse<S: Send + Sync + 'static>(
    stream: UnixStream,
    caller: Arc<Caller>,
    slot: Slot,
    router: Arc<Router<S>>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    let refused = slot.kind == SlotKind::Refused;
    let io = TokioIo::new(CheckedStream::new(stream, Arc::clone(&caller)));
    let service = service_fn(|request: http::Request<Incoming>| {
        let caller = Arc::clone(&caller);
        let router = Arc::clone(&router);
        async move {
            let answer = if refused {
                let limit = limits.connections_per_uid;
                let message = format!("more than {limit} open connections of uid {}", caller.uid());
                HttpError::new(StatusCode::TOO_MANY_REQUESTS, message).closing().into_response()
            } else if caller.sender_changed() {
                router.refuse_sender(&caller, &format!("{} {}", request.method(), request.uri().path()));
                sender_refused().into_response()
            } else {
                let what = format!("{} {}", request.method(), request.uri().path());
                let answer = router.answer(Arc::clone(&caller), request).await;
                // Noticed while the body was read: the handler has answered with the refusal, the trail needs it too.
                if caller.sender_changed() {
                    router.refuse_sender(&caller, &what);
                    sender_refused().into_response()
                } else {
                    answer
                }
            };
            Ok::<_, Infallible>(answer.0)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_LIMIT)
        // A client that goes away while an answer is streamed is noticed by the end of what it sends.
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
    if let Err(error) = ended {
        tracing::debug!(%error, uid = caller.uid(), "connection ended");
    }
    drop(slot);
}
