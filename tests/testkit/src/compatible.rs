//! Compatible services, as published: keys, certificates and identities, with none of
//! this repository's extensions.
//!
//! Shapes, statuses and texts are those of the published interfaces and of the wire facts
//! (1.5, 5.2 to 5.6, 6.3); they were written from these, not recorded from running
//! services. What a caller sends beyond the published interface is ignored, as existing
//! services do. Keys and certificates are openssl's, so that what is signed and issued
//! here owes nothing to this repository.

mod certificates;
mod identities;
mod keys;
mod openssl;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_core::layout::Root;
use edgekeep_daemon::listen;
use edgekeep_daemon::server::{HttpError, Limits, Request, Response, serve};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;

use self::keys::Key;

/// Most open connections of a uid (wire facts 1.6).
const CONNECTIONS: u32 = 10;

/// Compatible services at the sockets of a device, until dropped.
#[derive(Debug)]
pub struct Compatible {
    state: Arc<Services>,
    stop: watch::Sender<bool>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// A call that a service answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Method and route, such as `POST /certificates`.
    pub route: String,
    /// The segment of the path that the route leaves open, or nothing.
    pub segment: String,
    /// The body, if there was one.
    pub body: Value,
    /// The API's version.
    pub version: &'static str,
    /// The status of the answer.
    pub status: u16,
}

/// Behaviour that a test chooses.
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    /// The hub cannot be reached: the identity service answers 404 for what it has to ask
    /// for.
    pub hub_is_away: bool,
    /// Kind of a key pair that is made: EC if absent or false.
    pub rsa_keys: bool,
    /// Time that the identity service takes for a module. The service answers one
    /// question at a time.
    pub identity_delay: std::time::Duration,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    keys: BTreeMap<String, Key>,
    /// Raised when the services are given a new store: older handles are void.
    generation: u32,
    certificates: BTreeMap<String, String>,
    issuance: BTreeSet<String>,
    modules: BTreeMap<String, String>,
    calls: Vec<Call>,
    behaviour: Behaviour,
}

#[derive(Debug)]
pub(crate) struct Services {
    folder: PathBuf,
    hub: String,
    state: Mutex<State>,
    /// The identity service's lock during cloud calls (wire facts 5.2).
    cloud: tokio::sync::Mutex<()>,
}

impl Services {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Compatible {
    /// Starts the services at the sockets of the device below `root`, where nobody else
    /// listens.
    ///
    /// # Panics
    /// A socket cannot be bound.
    #[must_use]
    pub fn start(root: &Root, hub: &str) -> Self {
        Self::serve(root, hub, true)
    }

    /// Starts the keys service alone.
    ///
    /// # Panics
    /// Its socket cannot be bound.
    #[must_use]
    pub fn keys_alone(root: &Root) -> Self {
        Self::serve(root, "", false)
    }

    fn serve(root: &Root, hub: &str, all: bool) -> Self {
        let folder = root.path().join("compatible");
        std::fs::create_dir_all(&folder).expect("own folder");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime can be started");
        let state = State {
            // As `iotedge config apply` writes them.
            issuance: ["aziot-edged-ca", "aziot-edged-ca-temp"].map(str::to_owned).into(),
            keys: [("device-id".to_owned(), Key::Symmetric(vec![42; 32]))].into(),
            ..State::default()
        };
        let state = Arc::new(Services {
            folder,
            hub: hub.to_owned(),
            state: Mutex::new(state),
            cloud: tokio::sync::Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let routers = [
            (root.keyd_socket(), keys::router(&state)),
            (root.certd_socket(), certificates::router(&state)),
            (root.identityd_socket(), identities::router(&state)),
        ];
        {
            let _inside = runtime.enter();
            for (socket, router) in routers.into_iter().take(if all { 3 } else { 1 }) {
                let _ = std::fs::remove_file(&socket);
                let listener = listen::bind(&socket, 0o660).expect("a socket can be bound");
                let limits = Limits { connections_per_uid: CONNECTIONS, ..Limits::default() };
                tokio::spawn(serve(listener, Arc::new(router), limits, stopped.clone()));
            }
        }
        Self { state, stop, runtime: Some(runtime) }
    }

    /// The calls until now.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state.state().calls.clone()
    }

    /// Chooses how the services behave from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.state.state().behaviour = behaviour;
    }

    /// Makes a module known, as if its identity had been made at the hub.
    pub fn add_module(&self, module: &str, generation: &str) {
        self.state.state().modules.insert(module.to_owned(), generation.to_owned());
    }

    /// Makes all handles void, as a keys service does that was given another store, and
    /// keeps the keys.
    pub fn forget_handles(&self) {
        self.state.state().generation += 1;
    }

    /// A stored certificate.
    #[must_use]
    pub fn certificate(&self, id: &str) -> Option<String> {
        self.state.state().certificates.get(id).cloned()
    }
}

impl Drop for Compatible {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A request, taken apart.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The segment of the path that a route leaves open.
    pub(crate) segment: String,
    /// The query's `type`.
    pub(crate) kind: Option<String>,
    pub(crate) body: Value,
}

impl Asked {
    /// A member of the body that has to be a text.
    pub(crate) fn text(&self, member: &str) -> Result<&str, Refused> {
        self.body[member].as_str().ok_or_else(|| refused(422, &format!("missing field `{member}`")))
    }

    /// A member in base64.
    pub(crate) fn bytes(&self, pointer: &str) -> Result<Vec<u8>, Refused> {
        let text = self.body.pointer(pointer).and_then(Value::as_str);
        text.and_then(|text| STANDARD.decode(text).ok())
            .ok_or_else(|| refused(422, &format!("no base64 at {pointer}")))
    }
}

pub(crate) type Refused = (u16, Value);
pub(crate) type Reply = Result<(u16, Value), Refused>;

/// A refusal as all services word it (wire facts 1.5).
pub(crate) fn refused(status: u16, message: &str) -> Refused {
    (status, json!({ "message": message }))
}

/// An answer that takes a while.
pub(crate) type Later<'a> = Pin<Box<dyn Future<Output = Reply> + Send + 'a>>;

/// Answers a request at once, and remembers it.
pub(crate) async fn answered(
    services: Arc<Services>,
    request: Request,
    serve: fn(&Services, &Asked) -> Reply,
) -> Result<Response, HttpError> {
    let (asked, remembered) = taken_apart(request).await?;
    let reply = serve(&services, &asked);
    Ok(remembered.with(&services, asked, reply))
}

/// As [`answered`], by what takes a while.
pub(crate) async fn answered_later(
    services: Arc<Services>,
    request: Request,
    serve: for<'a> fn(&'a Services, &'a Asked) -> Later<'a>,
) -> Result<Response, HttpError> {
    let (asked, remembered) = taken_apart(request).await?;
    let reply = serve(&services, &asked).await;
    Ok(remembered.with(&services, asked, reply))
}

/// Route and version of a request, which are remembered besides its body.
struct Remembered {
    route: String,
    version: &'static str,
}

async fn taken_apart(mut request: Request) -> Result<(Asked, Remembered), HttpError> {
    let body = request.json_opt::<Value>().await?.unwrap_or(Value::Null);
    let has_segment = request.route.contains('{');
    let segment = if has_segment { request.param(0).to_owned() } else { String::new() };
    let asked = Asked { segment, kind: request.query("type").map(str::to_owned), body };
    let route = format!("{} {}", request.method(), request.route);
    Ok((asked, Remembered { route, version: request.version }))
}

impl Remembered {
    fn with(self, services: &Services, asked: Asked, reply: Reply) -> Response {
        let (status, answer) = reply.unwrap_or_else(|refused| refused);
        let Self { route, version } = self;
        services.state().calls.push(Call {
            route,
            segment: asked.segment,
            body: asked.body,
            version,
            status,
        });
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status == StatusCode::NO_CONTENT {
            Response::no_content()
        } else {
            Response::json(status, &answer)
        }
    }
}
