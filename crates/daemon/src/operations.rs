//! The operations socket, `run/edgekeep/<daemon>.metrics.sock`: metrics for whoever may
//! open it, the log's level, what the daemon has given up, and the problems that it knows
//! of.
//!
//! One in each daemon and the same in each, so that an operator learns it once:
//! `GET /metrics`, `GET /log-level`, `PUT /log-level`, `GET /sandbox`, `GET /problems`.
//! It tells nothing secret; its mode is 0660.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixListener as Listener;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use edgekeep_api::operations::{LogLevel, ProblemList, SandboxReport};
use edgekeep_core::layout::{Daemon, Root};
use http::{Method, StatusCode};
use tokio::net::UnixListener;
use tokio::sync::{Mutex, watch};
use tracing_subscriber::filter::LevelFilter;

use crate::board::Board;
use crate::listen::ListenError;
use crate::metrics::{CONTENT_TYPE, Families, Family, Gauge, Info, exposition};
use crate::server::{HttpError, Limits, Request, Response, Router, serve};
use crate::{listen, logging, server};

static STARTED: Family<Gauge, 0> = Family::new(
    "edgekeep_start_time_seconds",
    "When the daemon started, in seconds since 1970.",
    [],
);
static RESIDENT: Family<Gauge, 0> = Family::new(
    "edgekeep_resident_memory_bytes",
    "Memory of the daemon that is not swapped out.",
    [],
);
static BUILD: Family<Info, 2> =
    Family::new("edgekeep_build", "Version of the daemon.", ["daemon", "version"]);

static PROBLEMS: Family<Gauge, 2> = Family::new(
    "edgekeep_problems",
    "Problems that the daemon knows of, by kind.",
    ["code", "severity"],
);

static OWN: Families = &[&STARTED, &RESIDENT, &BUILD, &PROBLEMS];

/// Connections of one uid: a scraper and a person.
const CONNECTIONS: u32 = 8;

/// Finds out what is not counted as it happens, such as how many modules run.
pub type Refresh = Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// The state that a daemon shows at its operations socket.
pub struct Operations {
    families: Vec<Families>,
    refresh: Refresh,
    /// One at a time, so that what is found out anew is whole when it is written.
    writing: Mutex<()>,
    /// Besides uid 0: the daemon's own user, on a device that is one user's own.
    may_change: Option<u32>,
    /// Opened, and the size of a page asked for, before a sandbox takes them out of
    /// reach.
    memory: Option<(File, usize)>,
    board: Board,
    /// The report of what the process has given up. Empty for a daemon that runs within
    /// another program, as in tests.
    sandbox: OnceLock<SandboxReport>,
}

impl std::fmt::Debug for Operations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operations").finish_non_exhaustive()
    }
}

impl Operations {
    /// Makes the operations of `daemon`. They show `families`, what every daemon counts,
    /// what `refresh` sets before, and the problems on `board`.
    #[must_use]
    pub fn new(
        daemon: Daemon,
        root: &Root,
        families: Families,
        refresh: Refresh,
        board: Board,
    ) -> Arc<Self> {
        let _ = BUILD.with([daemon.name(), env!("CARGO_PKG_VERSION")]);
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        STARTED.with([]).set(now.as_secs_f64());
        // With a root of its own the device belongs to who runs it; installed, its users
        // are not its operators.
        let own = root.path() != std::path::Path::new("/");
        Arc::new(Self {
            families: vec![OWN, server::FAMILIES, logging::FAMILIES, families],
            refresh,
            writing: Mutex::new(()),
            memory: File::open("/proc/self/statm")
                .ok()
                .map(|statm| (statm, rustix::param::page_size())),
            may_change: own.then(|| rustix::process::geteuid().as_raw()),
            board,
            sandbox: OnceLock::new(),
        })
    }

    /// Takes in what this process has given up, to show it. The first time counts.
    pub fn confined(&self, report: SandboxReport) {
        let _ = self.sandbox.set(report);
    }

    /// Returns the report of what this process has given up.
    #[must_use]
    pub fn sandbox(&self) -> SandboxReport {
        let nothing = || SandboxReport { enabled: false, layers: Vec::new(), widened: Vec::new() };
        self.sandbox.get().cloned().unwrap_or_else(nothing)
    }
}

/// Nothing to find out.
#[must_use]
pub fn nothing_to_refresh() -> Refresh {
    Box::new(|| Box::pin(std::future::ready(())))
}

/// Listens at the operations socket. A daemon without it still does its work, so trouble
/// is a warning.
#[must_use]
pub fn listen(daemon: Daemon, root: &Root) -> Option<UnixListener> {
    in_runtime(daemon, root, take_or_bind(daemon, root)?)
}

/// Takes a socket over into the runtime; trouble is a warning.
#[must_use]
pub fn in_runtime(daemon: Daemon, root: &Root, listener: Listener) -> Option<UnixListener> {
    listen::in_runtime(listener, &root.metrics_socket(daemon)).map_err(without).ok()
}

/// Does the same as [`listen`](fn@listen), outside of a runtime.
#[must_use]
pub fn take_or_bind(daemon: Daemon, root: &Root) -> Option<Listener> {
    let name = match daemon {
        Daemon::Keyd => "edgekeep-keyd.metrics.socket",
        Daemon::Identityd => "edgekeep-identityd.metrics.socket",
        Daemon::Moduled => "edgekeep-moduled.metrics.socket",
    };
    listen::take_or_bind(name, &root.metrics_socket(daemon), 0o660).map_err(without).ok()
}

#[expect(clippy::needless_pass_by_value, reason = "the end of an error")]
fn without(error: ListenError) {
    tracing::warn!(%error, "no metrics and no change of the log's level");
}

/// Answers at the operations socket until `stop`; at once if there is none.
pub async fn run(
    listener: Option<UnixListener>,
    operations: Arc<Operations>,
    stop: watch::Receiver<bool>,
) {
    let Some(listener) = listener else { return };
    serve(
        listener,
        Arc::new(router(operations)),
        Limits { connections_per_uid: CONNECTIONS, ..Limits::default() },
        stop,
    )
    .await;
}

/// The routes. They need no api-version, so that any scraper can ask.
#[must_use]
pub fn router(operations: Arc<Operations>) -> Router<Operations> {
    Router::new(operations, &[])
        .named("operations")
        .route(Method::GET, "/metrics", "", metrics)
        .route(Method::GET, "/log-level", "", log_level)
        .route(Method::PUT, "/log-level", "", set_log_level)
        .route(Method::GET, "/sandbox", "", sandbox)
        .route(Method::GET, "/problems", "", problems)
}

async fn metrics(operations: Arc<Operations>, _: Request) -> Result<Response, HttpError> {
    let _writing = operations.writing.lock().await;
    (operations.refresh)().await;
    PROBLEMS.clear();
    for problem in operations.board.health().problems() {
        PROBLEMS.with([problem.code().word(), problem.severity().word()]).add(1.0);
    }
    if let Some(bytes) = operations.memory.as_ref().and_then(|(statm, page)| resident(statm, *page))
    {
        RESIDENT.with([]).set(bytes);
    }
    Ok(Response::bytes(StatusCode::OK, CONTENT_TYPE, Bytes::from(exposition(&operations.families))))
}

#[expect(clippy::cast_precision_loss, reason = "memory of a process")]
fn resident(statm: &File, page: usize) -> Option<f64> {
    let mut text = [0; 128];
    let read = statm.read_at(&mut text, 0).ok()?;
    let pages: u64 = std::str::from_utf8(&text[..read]).ok()?.split(' ').nth(1)?.parse().ok()?;
    Some((pages * page as u64) as f64)
}

async fn log_level(_: Arc<Operations>, _: Request) -> Result<Response, HttpError> {
    let (level, at_start) =
        logging::levels().ok_or_else(|| HttpError::internal("this daemon does not log"))?;
    Ok(Response::ok(&LogLevel { level: level.to_string(), at_start: Some(at_start.to_string()) }))
}

async fn sandbox(operations: Arc<Operations>, _: Request) -> Result<Response, HttpError> {
    Ok(Response::ok(&operations.sandbox()))
}

async fn problems(operations: Arc<Operations>, _: Request) -> Result<Response, HttpError> {
    // What is found out only when somebody asks may raise a problem too.
    let _writing = operations.writing.lock().await;
    (operations.refresh)().await;
    Ok(Response::ok(&ProblemList::from(&operations.board.health())))
}

async fn set_log_level(
    operations: Arc<Operations>,
    mut request: Request,
) -> Result<Response, HttpError> {
    let uid = request.caller.uid();
    if uid != 0 && operations.may_change != Some(uid) {
        tracing::warn!(uid, "refused to change the log's level");
        return Err(HttpError::forbidden());
    }
    let wanted: LogLevel = request.json().await?;
    let level: LevelFilter = wanted
        .level
        .parse()
        .ok()
        .filter(|_| wanted.level.starts_with(|c: char| c.is_ascii_alphabetic()))
        .ok_or_else(|| {
            HttpError::bad_request("the level is one of off, error, warn, info, debug, trace")
        })?;
    let (before, _) =
        logging::levels().ok_or_else(|| HttpError::internal("this daemon does not log"))?;
    // Said while it is heard: before it becomes quieter, after it became louder.
    if level < before {
        tracing::warn!(uid, from = %before, to = %level, "the log's level changes");
    }
    if !logging::set_level(level) {
        return Err(HttpError::internal("the level could not be changed"));
    }
    if level > before {
        tracing::warn!(uid, from = %before, to = %level, "the log's level changed");
    }
    log_level(operations, request).await
}
