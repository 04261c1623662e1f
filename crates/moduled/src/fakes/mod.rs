//! Stand-ins for tests: a container engine and a starter of host modules, both in memory.
//! They behave as the real parts do where this daemon looks, never panic, and fail on
//! demand. The real parts are in the tests of the whole device.

mod engine;
mod starter;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edgekeep_api::identityd::IdentityClient;
use edgekeep_api::management::ModuleSpec;
use edgekeep_core::attestation::HostFacts;
use edgekeep_core::host::HostModule;
use edgekeep_core::id::ModuleId;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::ModuledSettings;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::store::private_folder;
use edgekeep_runtime::engine::Engine;
use edgekeep_runtime::evidence::{CgroupHierarchy, Collector, ContainerCgroups};
use edgekeep_runtime::facts::EngineWatch;
use edgekeep_runtime::gauge::Gauge;
use edgekeep_runtime::process::{Launching, ProcessRuntime};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) use engine::FakeEngine;
pub(crate) use starter::FakeStarter;

use crate::identity::identities::IdentityCache;
use crate::modules::sockets::Serving;
use crate::modules::spec::ValidSpec;
use crate::modules::{Containers, Modules, Runtimes};

/// The program of the host module [`PROGRAM_NAME`].
pub(crate) const PROGRAM: &str = "/bin/sleep";
/// The name under which the program is registered.
pub(crate) const PROGRAM_NAME: &str = "sleeper";
/// The name of the image that the engine has.
pub(crate) const IMAGE: &str = "registry/app:1";

/// A daemon's modules on runtimes in memory.
pub(crate) struct Site {
    pub(crate) modules: Arc<Modules>,
    pub(crate) engine: FakeEngine,
    pub(crate) starter: FakeStarter,
    pub(crate) board: Board,
    _folder: tempfile::TempDir,
}

impl Site {
    /// Makes a site with one image at its engine and one registered program.
    pub(crate) async fn new() -> Self {
        Self::with(|_| ()).await
    }

    /// Makes the same, after a change of the settings.
    pub(crate) async fn with(change: impl FnOnce(&mut ModuledSettings)) -> Self {
        let folder = tempfile::tempdir().expect("temp folder");
        let root = Root::new(folder.path());
        let engine = FakeEngine::serve(&folder.path().join("engine.sock"));
        engine.add_image(IMAGE);
        let uri = format!("unix://{}", folder.path().join("engine.sock").display());
        let mut settings: ModuledSettings = serde_json::from_value(json!({
            "hostname": "press-04",
            "engine": { "uri": uri, "network": "azure-iot-edge" },
        }))
        .expect("settings");
        let program = HostModule::new(PROGRAM, digest_of(PROGRAM));
        settings.host_modules.insert(PROGRAM_NAME.into(), program);
        change(&mut settings);
        let starter = FakeStarter::default();
        let state = root.state_folder(Daemon::Moduled);
        private_folder(&state).expect("state folder");
        private_folder(&root.module_socket_folder()).expect("socket folder");
        let launching = Launching::here(starter.clone());
        let hierarchy = CgroupHierarchy::detect();
        let collector = Collector::new(hierarchy.clone(), ContainerCgroups::default());
        let gauge = Gauge::here(collector);
        let own = state.join("processes");
        let processes = ProcessRuntime::open(&own, launching, gauge.clone()).await.expect("opened");
        let containers = settings.engine.as_ref().map(|settings| {
            let engine = Engine::from_uri(&settings.uri).expect("a socket");
            let watch = EngineWatch::start(engine.clone(), gauge.clone());
            Containers { engine, watch, uri: settings.uri.clone() }
        });
        let host = HostFacts { pid_namespace: 1, user_namespace: 1 };
        let runtimes = Runtimes { containers, processes, hierarchy, host, gauge };
        // Nobody is there: identities are not known.
        let client = IdentityClient::new(root.identityd_socket());
        let identities = Arc::new(IdentityCache::new(client));
        let board = Board::new();
        let modules = Modules::load(root, Arc::new(settings), runtimes, identities, board.clone());
        let modules = Arc::new(modules.expect("no state yet"));
        modules.sockets.served_by(Box::new(Silent));
        Self { modules, engine, starter, board, _folder: folder }
    }

    /// Waits until the engine's events are followed.
    pub(crate) async fn heard(&self) {
        let containers = self.modules.containers.as_ref().expect("an engine is configured");
        let mut changes = containers.watch.changes();
        while !containers.watch.is_reconciled() {
            let changed = tokio::time::timeout(Duration::from_secs(30), changes.changed()).await;
            changed.expect("the engine is there").expect("the watch lives");
        }
    }
}

/// Serves nothing on any socket.
#[derive(Debug)]
struct Silent;

impl Serving for Silent {
    fn workload(
        &self,
        _: &ModuleId,
        listener: UnixListener,
        stop: watch::Receiver<bool>,
    ) -> JoinHandle<()> {
        held(listener, stop)
    }

    fn management(
        &self,
        _: &ModuleId,
        listener: UnixListener,
        stop: watch::Receiver<bool>,
    ) -> JoinHandle<()> {
        held(listener, stop)
    }
}

fn held(listener: UnixListener, mut stop: watch::Receiver<bool>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let _ = stop.wait_for(|stop| *stop).await;
        drop(listener);
    })
}

/// Waits until something is so.
pub(crate) async fn soon(is_so: impl Fn() -> bool) {
    for _ in 0..3000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not come");
}

/// The digest of a program of this machine.
fn digest_of(path: &str) -> edgekeep_core::digest::Sha256Digest {
    let bytes = std::fs::read(Path::new(path)).expect("the program is there");
    edgekeep_daemon::store::sha256(&bytes)
}

/// A module id.
pub(crate) fn id(name: &str) -> ModuleId {
    name.parse().expect("a module id")
}

/// The specification of a container module with these create options.
pub(crate) fn container(name: &str, options: &Value) -> ValidSpec {
    spec(name, "docker", &json!({ "image": IMAGE, "createOptions": options }))
}

/// The specification of a host module with these arguments.
pub(crate) fn process(name: &str, args: &[&str]) -> ValidSpec {
    let options = json!({ "Cmd": args });
    spec(name, "process", &json!({ "image": PROGRAM_NAME, "createOptions": options }))
}

fn spec(name: &str, kind: &str, settings: &Value) -> ValidSpec {
    let spec: ModuleSpec = serde_json::from_value(json!({
        "name": name, "type": kind, "config": { "settings": settings },
    }))
    .expect("a specification");
    ValidSpec::try_from(&spec).expect("valid")
}
