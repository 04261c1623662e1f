//! A management API over a real Unix socket, with modules and identities in memory: it
//! works, it just runs nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::UnixListener;
use tokio::sync::watch;

/// One module of the device.
#[derive(Debug, Clone)]
pub(crate) struct Module {
    pub(crate) spec: Value,
    pub(crate) state: &'static str,
    pub(crate) started: Option<i64>,
    pub(crate) exited: Option<(i64, i32)>,
}

impl Module {
    pub(crate) fn env(&self, name: &str) -> Option<&str> {
        let env = self.spec["config"]["env"].as_array()?;
        env.iter().find(|var| var["key"] == name)?["value"].as_str()
    }
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) modules: BTreeMap<String, Module>,
    /// Generation by module.
    pub(crate) identities: BTreeMap<String, String>,
    /// Requests that changed something, like `POST /modules/m/start`.
    pub(crate) calls: Vec<String>,
    /// The agent's last report on its deployment.
    pub(crate) deployment: Value,
    /// Requests that are answered with 500 and this message.
    pub(crate) faults: BTreeMap<String, String>,
    generations: u32,
}

/// The device: its socket, its modules and its clock.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) socket: PathBuf,
    world: Arc<Mutex<World>>,
    clock: Arc<AtomicI64>,
    called: Arc<watch::Sender<usize>>,
}

impl Device {
    /// Starts serving; it ends with the test's runtime.
    pub(crate) fn start(folder: &Path) -> Self {
        let socket = folder.join("mgmt.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let device = Self {
            socket,
            world: Arc::default(),
            clock: Arc::new(AtomicI64::new(1_700_000_000_000)),
            called: Arc::new(watch::channel(0).0),
        };
        let agent = Module {
            spec: json!({"config": {"settings": {"image": "agent:1"}}}),
            state: "running",
            started: None,
            exited: None,
        };
        device.world().modules.insert("edgeAgent".into(), agent);
        let served = device.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let device = served.clone();
                let service = hyper::service::service_fn(move |request| {
                    let device = device.clone();
                    async move { Ok::<_, Infallible>(device.answer(request).await) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        device
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub(crate) fn now(&self) -> i64 {
        self.clock.load(Ordering::Relaxed)
    }

    pub(crate) fn pass(&self, seconds: i64) {
        self.clock.fetch_add(seconds * 1000, Ordering::Relaxed);
    }

    /// The changes since the last time that this was asked.
    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.world().calls)
    }

    /// Lets requests fail, until [`Self::mend`].
    pub(crate) fn break_call(&self, call: &str, message: &str) {
        self.world().faults.insert(call.into(), message.into());
    }

    pub(crate) fn mend(&self) {
        self.world().faults.clear();
    }

    /// The module ends by itself.
    pub(crate) fn exit(&self, name: &str, code: i32) {
        let now = self.now();
        let mut world = self.world();
        let module = world.modules.get_mut(name).unwrap();
        module.state = if code == 0 { "stopped" } else { "failed" };
        module.exited = Some((now, code));
    }

    /// Returns once some request was answered that changed something and fits.
    pub(crate) async fn called(&self, call: &str) {
        let mut called = self.called.subscribe();
        let seen = called.wait_for(|_| self.world().calls.iter().any(|seen| seen == call));
        let seen = tokio::time::timeout(std::time::Duration::from_secs(20), seen).await;
        assert!(seen.is_ok(), "no {call} among {:?}", self.world().calls);
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body =
            body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let query = head.uri.query().unwrap_or_default();
        let (status, answer) = if query.split('&').any(|part| part == "api-version=2022-08-03") {
            self.act(&head.method, head.uri.path(), &body)
        } else {
            (400, json!({"message": "api-version not specified"}))
        };
        let mut response = Response::new(if answer.is_null() {
            Full::default()
        } else {
            Full::new(Bytes::from(answer.to_string()))
        });
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        self.called.send_modify(|count| *count += 1);
        response
    }

    fn act(&self, method: &Method, path: &str, body: &Value) -> (u16, Value) {
        let now = self.now();
        let path = path.replace("%24", "$");
        let call = format!("{method} {path}");
        let mut world = self.world();
        if path == "/deployment" {
            world.deployment = body.clone();
            return (200, json!({"health": "healthy", "problems": []}));
        }
        if method != Method::GET {
            world.calls.push(call.clone());
        }
        let name =
            body["name"].as_str().or(body["moduleId"].as_str()).unwrap_or_default().to_owned();
        // Creations share a path: they fail by name.
        let fault = world.faults.get(&call).or_else(|| world.faults.get(&format!("{call} {name}")));
        if let Some(message) = fault {
            return (500, json!({"message": message}));
        }
        let missing = (404, json!({"message": "no such module"}));
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match (method.as_str(), segments.as_slice()) {
            ("GET", ["modules"]) => {
                let modules: Vec<Value> =
                    world.modules.iter().map(|(name, module)| details(name, module)).collect();
                (200, json!({"modules": modules}))
            }
            ("GET", ["systeminfo"]) => (
                200,
                json!({"osType": "Linux", "architecture": "x86_64", "cpus": 1,
                "total_memory": 1, "virtualized": "no", "version": "9.9", "provisioning": {"type": "x",
                "dynamicReprovisioning": false, "alwaysReprovisionOnStartup": false}}),
            ),
            ("GET", ["identities", ""]) => {
                let entries: Vec<Value> = world
                    .identities
                    .iter()
                    .map(|(name, generation)| identity(name, generation))
                    .collect();
                (200, json!({"identities": entries}))
            }
            ("POST", ["identities", ""]) => {
                world.generations += 1;
                let generation = format!("g{}", world.generations);
                world.identities.insert(name.clone(), generation.clone());
                (200, identity(&name, &generation))
            }
            ("PUT", ["identities", name]) => match world.identities.get(*name) {
                Some(generation) => (200, identity(name, generation)),
                None => missing,
            },
            ("DELETE", ["identities", name]) => match world.identities.remove(*name) {
                Some(_) => (204, Value::Null),
                None => missing,
            },
            ("POST", ["modules"]) => {
                if world.modules.contains_key(&name) {
                    return (409, json!({"message": "the name is in use"}));
                }
                let module =
                    Module { spec: body.clone(), state: "stopped", started: None, exited: None };
                let answer = details(&name, &module);
                world.modules.insert(name, module);
                (201, answer)
            }
            ("PUT", ["modules", name]) => match world.modules.get_mut(*name) {
                Some(module) => {
                    *module = Module {
                        spec: body.clone(),
                        state: "stopped",
                        started: None,
                        exited: None,
                    };
                    (201, details(name, module))
                }
                None => missing,
            },
            ("DELETE", ["modules", name]) => match world.modules.remove(*name) {
                Some(_) => (204, Value::Null),
                None => missing,
            },
            ("POST", ["modules", _, "prepareupdate"]) => (204, Value::Null),
            ("POST", ["modules", name, "start"]) => match world.modules.get_mut(*name) {
                Some(module) => {
                    (module.state, module.started) = ("running", Some(now));
                    (204, Value::Null)
                }
                None => missing,
            },
            ("POST", ["modules", name, "stop"]) => match world.modules.get_mut(*name) {
                Some(module) => {
                    (module.state, module.exited) = ("stopped", Some((now, 0)));
                    (204, Value::Null)
                }
                None => missing,
            },
            _ => (404, json!({"message": "not found"})),
        }
    }
}

fn identity(name: &str, generation: &str) -> Value {
    json!({"moduleId": name, "managedBy": "iotedge", "generationId": generation, "authType": "sas"})
}

/// As listed: of the settings only image and labels are told, and no environment.
fn details(name: &str, module: &Module) -> Value {
    let settings = &module.spec["config"]["settings"];
    let labels = settings["createOptions"].get("Labels").cloned().unwrap_or_else(|| json!({}));
    let time = |ms: i64| {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
            .unwrap()
            .format(&Rfc3339)
            .unwrap()
    };
    let mut status = json!({"runtimeStatus": {"status": module.state}});
    if let Some(started) = module.started {
        status["startTime"] = time(started).into();
    }
    if let Some((at, code)) = module.exited {
        status["exitStatus"] = json!({"exitTime": time(at), "statusCode": code.to_string()});
    }
    json!({"id": "id", "name": name, "type": module.spec["type"].as_str().unwrap_or("docker"), "status": status,
        "config": {"settings": {"image": settings["image"], "imageHash": "sha256:ab",
            "createOptions": {"Labels": labels}}, "env": []}})
}
