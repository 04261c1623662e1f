//! A container engine in memory, behind a Unix socket as a real one: containers,
//! networks, images and events, as far as this daemon asks for them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edgekeep_core::digest::Sha256Digest;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, broadcast};

/// Longest request that is read, in bytes.
const MAX_REQUEST: usize = 1 << 20;

/// The engine. Cheap to clone; serves until its runtime ends.
#[derive(Debug, Clone)]
pub(crate) struct FakeEngine(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    events: broadcast::Sender<String>,
}

#[derive(Debug, Default)]
struct State {
    containers: BTreeMap<String, Value>,
    networks: BTreeMap<String, String>,
    images: BTreeMap<String, String>,
    faults: Vec<Fault>,
    held: Option<Held>,
    calls: Vec<String>,
    next: u64,
}

/// A call that is answered with an error: its method, a piece of its path, and how often.
#[derive(Debug)]
struct Fault {
    call: String,
    status: u16,
    times: usize,
}

/// A call that is held back.
#[derive(Debug, Clone)]
struct Held {
    call: String,
    reached: Arc<Notify>,
    goes_on: Arc<Notify>,
}

type Reply = (u16, Value);

impl FakeEngine {
    /// Serves at this socket.
    pub(crate) fn serve(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).expect("bound");
        let shared = Shared { state: Mutex::default(), events: broadcast::Sender::new(64) };
        let engine = Self(Arc::new(shared));
        let serving = engine.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let engine = serving.clone();
                tokio::spawn(async move { engine.converse(stream).await });
            }
        });
        engine
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an image under a name, and returns its id.
    pub(crate) fn add_image(&self, name: &str) -> Sha256Digest {
        let id = edgekeep_daemon::store::sha256(name.as_bytes());
        self.state().images.insert(name.to_owned(), id.to_string());
        id
    }

    /// Answers so many calls like `"POST /start"` with this status, beginning now.
    pub(crate) fn fail(&self, call: &str, status: u16, times: usize) {
        self.state().faults.push(Fault { call: call.to_owned(), status, times });
    }

    /// Holds the next call like this back. The first is notified when the call is there;
    /// the second lets it go on.
    pub(crate) fn hold(&self, call: &str) -> (Arc<Notify>, Arc<Notify>) {
        let (reached, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let held = Held {
            call: call.to_owned(),
            reached: Arc::clone(&reached),
            goes_on: Arc::clone(&goes_on),
        };
        self.state().held = Some(held);
        (reached, goes_on)
    }

    /// Returns the calls so far that are like this one.
    pub(crate) fn calls(&self, call: &str) -> usize {
        self.state().calls.iter().filter(|made| is_like(made, call)).count()
    }

    /// Returns the phase of the container of this name; `None` if there is none.
    pub(crate) fn phase(&self, name: &str) -> Option<String> {
        let state = self.state();
        let container = state.containers.values().find(|one| name_of(one) == name)?;
        container["State"]["Status"].as_str().map(str::to_owned)
    }

    /// Returns the names of all containers.
    pub(crate) fn names(&self) -> Vec<String> {
        self.state().containers.values().map(|one| name_of(one).to_owned()).collect()
    }

    /// Does to a container what somebody at the engine's command line would, behind the
    /// daemon's back: `"stop"`, `"pause"`, `"rm"`, or `"rename NEW"`.
    pub(crate) fn meddle(&self, name: &str, act: &str) {
        let mut state = self.state();
        let Some(id) = state.id_of(name) else { return };
        let (status, _) = match act.split_once(' ') {
            Some((_, new)) => state.rename(&id, new),
            None if act == "rm" => state.remove(&id),
            None => state.set_phase(&id, if act == "stop" { "exited" } else { "paused" }),
        };
        drop(state);
        if status < 300 {
            let _ = self.0.events.send(event(&id, act.split(' ').next().unwrap_or(act)));
        }
    }

    /// Removes a network behind the daemon's back.
    pub(crate) fn remove_network(&self, name: &str) {
        let mut state = self.state();
        state.networks.remove(name);
        for container in state.containers.values_mut() {
            if let Some(networks) = container["NetworkSettings"]["Networks"].as_object_mut() {
                networks.remove(name);
            }
        }
    }

    async fn converse(&self, mut stream: UnixStream) {
        let Some((method, target, body)) = read(&mut stream).await else { return };
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned();
        let call = format!("{method} {path}");
        let held = {
            let mut state = self.state();
            state.calls.push(call.clone());
            state.held.take_if(|held| is_like(&call, &held.call))
        };
        if let Some(held) = held {
            held.reached.notify_one();
            held.goes_on.notified().await;
        }
        if path == "/events" && !query.contains("until=") {
            return self.tell_events(stream).await;
        }
        let fault = self.state().fault(&call);
        let (status, answer) = match fault {
            Some(status) => (status, json!({ "message": "as the test wants it" })),
            None => self.answer(&method, &path, query, &body),
        };
        let text = if answer.is_null() { String::new() } else { answer.to_string() };
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            text.len()
        );
        let _ = stream.write_all(format!("{head}{text}").as_bytes()).await;
    }

    async fn tell_events(&self, mut stream: UnixStream) {
        let mut events = self.0.events.subscribe();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
        if stream.write_all(head.as_bytes()).await.is_err() {
            return;
        }
        while let Ok(event) = events.recv().await {
            if stream.write_all(event.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, method: &str, path: &str, query: &str, body: &Value) -> Reply {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let mut state = self.state();
        let mut told = None;
        let reply = match (method, parts.as_slice()) {
            ("GET", ["containers", "json"]) => state.list(),
            ("POST", ["containers", "create"]) => state.create(&parameter(query, "name"), body),
            ("GET", ["images", "json"]) => (200, json!([])),
            ("GET", ["images", name @ .., "json"]) => state.image(&name.join("/")),
            ("POST", ["images", "create"]) => state.pull(&parameter(query, "fromImage")),
            ("GET", ["networks"]) => state.list_networks(),
            ("POST", ["networks", "create"]) => state.make_network(body),
            ("POST", ["networks", name, "connect"]) => state.connect(name, body),
            ("POST", ["networks", name, "disconnect"]) => state.disconnect(name, body),
            ("GET", ["events"]) => (200, Value::Null),
            (_, ["containers", named, rest @ ..]) => match state.id_of(named) {
                None => no_container(named),
                Some(id) => {
                    let (reply, action) = state.on_container(method, &id, rest, query);
                    told = action.filter(|_| reply.0 < 300).map(|action| event(&id, action));
                    reply
                }
            },
            _ => (404, json!({ "message": format!("no route {method} {path}") })),
        };
        drop(state);
        if let Some(event) = told {
            let _ = self.0.events.send(event);
        }
        reply
    }
}

impl State {
    fn fault(&mut self, call: &str) -> Option<u16> {
        let fault = self.faults.iter_mut().find(|one| one.times > 0 && is_like(call, &one.call))?;
        fault.times -= 1;
        Some(fault.status)
    }

    fn id_of(&self, named: &str) -> Option<String> {
        let named = |(id, one): &(&String, &Value)| *id == named || name_of(one) == named;
        self.containers.iter().find(named).map(|(id, _)| id.clone())
    }

    fn list(&self) -> Reply {
        let one = |(id, one): (&String, &Value)| {
            json!({ "Id": id, "Names": [one["Name"]], "State": one["State"]["Status"],
                    "ImageID": one["Image"] })
        };
        (200, self.containers.iter().map(one).collect())
    }

    fn create(&mut self, name: &str, body: &Value) -> Reply {
        if self.id_of(name).is_some() {
            return (409, json!({ "message": format!("the name {name} is in use") }));
        }
        let wanted = body["Image"].as_str().unwrap_or_default();
        if !self.images.values().any(|id| id == wanted) {
            return (404, json!({ "message": "no such image" }));
        }
        self.next += 1;
        let id = format!("{:064x}", self.next);
        let endpoints = body["NetworkingConfig"]["EndpointsConfig"].as_object();
        let networks: Map<String, Value> = endpoints
            .into_iter()
            .flatten()
            .filter_map(|(name, _)| {
                Some((name.clone(), json!({ "NetworkID": self.networks.get(name)? })))
            })
            .collect();
        let container = json!({
            "Id": id, "Name": format!("/{name}"), "Image": wanted,
            "State": { "Status": "created", "Running": false, "Pid": 0, "ExitCode": 0 },
            "Config": { "Labels": body["Labels"], "Tty": false },
            "HostConfig": { "AutoRemove": false }, "Mounts": [],
            "NetworkSettings": { "Networks": networks },
        });
        self.containers.insert(id.clone(), container);
        (201, json!({ "Id": id, "Warnings": [] }))
    }

    fn on_container(
        &mut self,
        method: &str,
        id: &str,
        rest: &[&str],
        query: &str,
    ) -> (Reply, Option<&'static str>) {
        match (method, rest) {
            ("GET", ["json"]) => ((200, self.containers[id].clone()), None),
            ("POST", ["start"]) => (self.set_phase(id, "running"), Some("start")),
            ("POST", ["unpause"]) => (self.set_phase(id, "running"), Some("unpause")),
            ("POST", ["stop"]) => (self.set_phase(id, "exited"), Some("die")),
            ("POST", ["rename"]) => (self.rename(id, &parameter(query, "name")), Some("rename")),
            ("DELETE", [] | [""]) => (self.remove(id), Some("destroy")),
            _ => ((404, json!({ "message": "no such route" })), None),
        }
    }

    fn set_phase(&mut self, id: &str, phase: &str) -> Reply {
        let Some(container) = self.containers.get_mut(id) else { return no_container(id) };
        let runs = phase == "running";
        // No process stands behind it, so none is named.
        container["State"] = json!({ "Status": phase, "Running": runs, "Pid": 0, "ExitCode": 0 });
        (204, Value::Null)
    }

    fn rename(&mut self, id: &str, name: &str) -> Reply {
        if self.id_of(name).is_some() {
            return (409, json!({ "message": format!("the name {name} is in use") }));
        }
        let Some(container) = self.containers.get_mut(id) else { return no_container(id) };
        container["Name"] = format!("/{name}").into();
        (204, Value::Null)
    }

    fn remove(&mut self, id: &str) -> Reply {
        self.containers.remove(id).map_or_else(|| no_container(id), |_| (204, Value::Null))
    }

    fn image(&self, name: &str) -> Reply {
        let found = self.images.iter().find(|(known, id)| *known == name || *id == name);
        found.map_or_else(
            || (404, json!({ "message": format!("no such image: {name}") })),
            |(name, id)| (200, json!({ "Id": id, "RepoTags": [name], "RepoDigests": [] })),
        )
    }

    fn pull(&self, name: &str) -> Reply {
        match self.image(name).0 {
            200 => (200, json!({ "status": "Image is up to date" })),
            _ => (404, json!({ "message": format!("manifest for {name} not found") })),
        }
    }

    fn list_networks(&self) -> Reply {
        let one = |(name, id): (&String, &String)| json!({ "Name": name, "Id": id });
        (200, self.networks.iter().map(one).collect())
    }

    fn make_network(&mut self, body: &Value) -> Reply {
        self.next += 1;
        let id = format!("network-{}", self.next);
        let name = body["Name"].as_str().unwrap_or_default().to_owned();
        self.networks.insert(name, id.clone());
        (201, json!({ "Id": id }))
    }

    fn connect(&mut self, network: &str, body: &Value) -> Reply {
        let Some(network_id) = self.networks.get(network).cloned() else {
            return (404, json!({ "message": format!("network {network} not found") }));
        };
        self.attach(network, body, Some(json!({ "NetworkID": network_id })))
    }

    fn disconnect(&mut self, network: &str, body: &Value) -> Reply {
        self.attach(network, body, None)
    }

    fn attach(&mut self, network: &str, body: &Value, entry: Option<Value>) -> Reply {
        let id = body["Container"].as_str().unwrap_or_default();
        let Some(container) = self.containers.get_mut(id) else { return no_container(id) };
        if let Some(networks) = container["NetworkSettings"]["Networks"].as_object_mut() {
            match entry {
                Some(entry) => _ = networks.insert(network.to_owned(), entry),
                None => _ = networks.remove(network),
            }
        }
        (200, Value::Null)
    }
}

fn no_container(named: &str) -> Reply {
    (404, json!({ "message": format!("No such container: {named}") }))
}

fn name_of(container: &Value) -> &str {
    container["Name"].as_str().unwrap_or_default().trim_start_matches('/')
}

/// Returns true if a call has the method and the end, or the begin, of a path.
fn is_like(call: &str, wanted: &str) -> bool {
    let (Some((method, path)), Some((wanted_method, piece))) =
        (call.split_once(' '), wanted.split_once(' '))
    else {
        return false;
    };
    method == wanted_method && (path.ends_with(piece) || path.starts_with(piece))
}

fn parameter(query: &str, name: &str) -> String {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    percent_encoding::percent_decode_str(value.unwrap_or_default()).decode_utf8_lossy().into_owned()
}

fn event(id: &str, action: &str) -> String {
    format!("{}\n", json!({ "Type": "container", "Action": action, "Actor": { "ID": id } }))
}

/// Reads one request: its method, its target, and its body.
async fn read(stream: &mut UnixStream) -> Option<(String, String, Value)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if bytes.len() > MAX_REQUEST || stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.map_or(Some(0), |length| length.trim().parse().ok())?;
    while bytes.len() < end + length.min(MAX_REQUEST) {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    Some((method, target, serde_json::from_slice(&bytes[end..]).unwrap_or_default()))
}
