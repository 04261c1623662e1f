//! The HTTPS listener: accepts, applies faults, reads the body, asks the [`World`],
//! writes the answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use edgekeep_base::lock::lock;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::body::Body;
use crate::exchange::{Answer, Class, Exchange, Pace, Route};
use crate::faults::RouteFaults;
use crate::world::World;
use crate::{admin, dps, hub};

/// Connections at once, HTTP and MQTT together; more wait in the listener's backlog.
pub(crate) const CONNECTION_LIMIT: usize = 256;
/// Largest request body, in bytes: the real hub's limit for one message.
pub(crate) const BODY_LIMIT: usize = 256 * 1024;
/// Longest time of a handshake, of a request head and of a request body.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The `Date` header's form.
const HTTP_DATE: &[BorrowedFormatItem<'_>] = format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);

/// State that all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    world: Mutex<World>,
    /// Told after each call; carries nothing.
    pub(crate) changed: watch::Sender<()>,
    pub(crate) places: Arc<Semaphore>,
}

impl Shared {
    pub(crate) fn new(world: World) -> Self {
        Self {
            world: Mutex::new(world),
            changed: watch::Sender::new(()),
            places: Arc::new(Semaphore::new(CONNECTION_LIMIT)),
        }
    }

    /// The world. A panic of another holder leaves single values at worst, so it stays
    /// usable.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    /// The service's clock, with the offset in force, in seconds since 1970.
    pub(crate) fn clock(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.world().faults.clock(now)
    }
}

/// The protocol of a listener.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Protocol {
    Http,
    Mqtt,
}

/// Accepts connections until the task is aborted; that also ends all of them.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    protocol: Protocol,
) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&shared.places).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of descriptors, most likely: others must end first.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            let _place = place;
            let stream = match tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::info!(%peer, %error, "TLS handshake failed"),
                Err(_) => return tracing::info!(%peer, "TLS handshake took too long"),
            };
            match protocol {
                Protocol::Http => serve_http(stream, peer, shared).await,
                Protocol::Mqtt => crate::mqtt::serve(stream, shared).await,
            }
        });
    }
}

async fn serve_http(stream: TlsStream<TcpStream>, peer: SocketAddr, shared: Arc<Shared>) {
    let client: Vec<_> = stream
        .get_ref()
        .1
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|it| it.clone().into_owned())
        .collect();
    let service = service_fn(|request| answer(request, peer, &client, &shared));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_headers(64)
        .max_buf_size(64 * 1024)
        .auto_date_header(false)
        // There are EST clients that know names of headers in their usual case alone.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// Ends the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("dropped as the faults say")]
struct Dropped;

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    client: &[CertificateDer<'static>],
    shared: &Shared,
) -> Result<Response<Body>, Dropped> {
    let (head, body) = request.into_parts();
    let route = Route::of(head.uri.path());
    let (class, fault) = {
        let mut world = shared.world();
        route.count(&head.method, &mut world.calls);
        let class = route.class();
        let fault = match class {
            Class::Dps => world.faults.dps.hit(),
            Class::Hub => world.faults.hub.hit(),
            Class::Est => world.faults.est.route.hit(),
            Class::Other => RouteFaults::default(),
        };
        (class, fault)
    };
    shared.changed.send_replace(());
    if fault.delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(fault.delay_ms)).await;
    }
    if !fault.after_effect
        && let Some(failure) = failure(class, &fault)
    {
        return failure.map(|failure| write(failure, shared.clock()));
    }

    let now = shared.clock();
    let answer =
        match tokio::time::timeout(PATIENCE, Limited::new(body, BODY_LIMIT).collect()).await {
            Err(_) => admin::error(StatusCode::REQUEST_TIMEOUT, "the body took too long"),
            Ok(Err(error)) => admin::error(
                StatusCode::PAYLOAD_TOO_LARGE,
                &format!("the body cannot be read: {error}"),
            ),
            Ok(Ok(body)) => {
                let body = body.to_bytes();
                let exchange = Exchange {
                    headers: &head.headers,
                    query: head.uri.query().unwrap_or_default(),
                    body: &body,
                    now,
                    client,
                };
                decide(&route, &head.method, peer, &exchange, shared)
            }
        };
    shared.changed.send_replace(());
    tracing::info!(method = %head.method, path = head.uri.path(), status = answer.status.as_u16(), "call");
    let answer = failure(class, &fault).unwrap_or(Ok(answer))?;
    Ok(write(answer, now))
}

/// Returns the answer of a fault in place of the service's; `None` if the fault only
/// delays, or if there is no fault.
fn failure(class: Class, fault: &RouteFaults) -> Option<Result<Answer, Dropped>> {
    if fault.drop {
        return Some(Err(Dropped));
    }
    if fault.garbage {
        return Some(Ok(Answer::json(StatusCode::OK, serde_json::json!("this is no answer"))));
    }
    let status = StatusCode::from_u16(fault.status?).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let answer = match class {
        Class::Dps => dps::error(status, "this fault was asked for"),
        Class::Hub | Class::Est | Class::Other => {
            hub::error(status, "SimulatedFault", "this fault was asked for")
        }
    };
    Some(Ok(Answer { retry_after_sec: fault.retry_after_sec, ..answer }))
}

fn decide(
    route: &Route,
    method: &Method,
    peer: SocketAddr,
    exchange: &Exchange<'_>,
    shared: &Shared,
) -> Answer {
    let mut world = shared.world();
    match route {
        Route::Register { scope, registration } => {
            world.register(method, scope, registration, exchange)
        }
        Route::Operation { scope, registration, operation } => {
            world.operation(method, scope, registration, operation, exchange)
        }
        Route::Modules { device } => world.module_list(method, device, exchange),
        Route::Module { device, module } => world.module(method, device, module, exchange),
        Route::Messages { device, module } => world.message(method, device, module, exchange),
        Route::Est { label, operation } => world.est(method, label.as_deref(), operation, exchange),
        Route::Admin(_) if !peer.ip().to_canonical().is_loopback() => {
            admin::error(StatusCode::FORBIDDEN, "only from this machine")
        }
        Route::Admin(path) => world.admin(method, path, exchange),
        Route::Unknown => admin::error(StatusCode::NOT_FOUND, "no such route"),
    }
}

fn write(answer: Answer, now: u64) -> Response<Body> {
    let Answer { status, etag, retry_after_sec, body, raw } = answer;
    let content_type = match (&body, &raw) {
        (_, Some(raw)) => Some(raw.content_type),
        (Some(_), None) => Some("application/json; charset=utf-8"),
        (None, None) => None,
    };
    // The other services' clients come with a token; those of EST wait to be asked.
    let asks = status == StatusCode::UNAUTHORIZED && raw.is_some();
    let body = match (raw, body) {
        (Some(raw), _) => Body::new(raw.bytes, raw.pace),
        (None, body) => {
            let text = body.map(|body| body.to_string()).unwrap_or_default();
            Body::new(text.into_bytes(), Pace::Whole)
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let date =
        i64::try_from(now).ok().and_then(|now| OffsetDateTime::from_unix_timestamp(now).ok());
    let fields = [
        (header::DATE, date.and_then(|date| date.format(HTTP_DATE).ok())),
        (header::ETAG, etag.map(|tag| format!("\"{tag}\""))),
        (header::WWW_AUTHENTICATE, asks.then(|| "Basic realm=\"edgekeep\"".to_owned())),
        (header::RETRY_AFTER, retry_after_sec.map(|seconds| seconds.to_string())),
        (header::CONTENT_TYPE, content_type.map(str::to_owned)),
    ];
    for (name, value) in fields {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
    response
}
