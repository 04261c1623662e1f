//! The engine client, its facts and the evidence about containers, against a real
//! container engine.
//!
//! `EDGEKEEP_TEST_ENGINE=unix:///PATH` names it; without that each test says that it was
//! skipped. Needs root (as the engine does), the `docker` command line and `tar`.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use edgekeep_core::attestation::{
    Asked, DenyReason, Door, Evidence, PeerHandle, Policy, Registration, Running, RunningFacts,
    Workload, verdict,
};
use edgekeep_core::id::ModuleId;
use edgekeep_runtime::engine::{ContainerSpec, Created, Engine, EngineError};
use edgekeep_runtime::evidence::{
    CgroupHierarchy, Collector, ContainerCgroups, ProcDir, StartedFrom,
};
use edgekeep_runtime::facts::EngineWatch;
use edgekeep_runtime::gauge::Gauge;
use edgekeep_runtime::logs::LogQuery;
use edgekeep_runtime::status::ModuleState;
use rustix::process::{Pid, PidfdFlags};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// One test's engine, image and containers; removed with it.
struct Fixture {
    uri: String,
    engine: Engine,
    image: String,
    modules: Vec<ModuleId>,
    folder: tempfile::TempDir,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Fixture {
    fn new() -> Option<Self> {
        let Ok(uri) = std::env::var("EDGEKEEP_TEST_ENGINE") else {
            eprintln!("skipped: EDGEKEEP_TEST_ENGINE does not name a container engine");
            return None;
        };
        let folder = tempfile::tempdir().expect("temp folder");
        let image = format!(
            "edgekeep-test-{}:{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let engine = Engine::from_uri(&uri).expect("unix URI");
        let fixture = Self { uri, engine, image, modules: Vec::new(), folder };
        fixture.import(&fixture.image, "first");
        Some(fixture)
    }

    fn docker(&self, args: &[&str]) -> String {
        let output = Command::new("docker")
            .arg("-H")
            .arg(&self.uri)
            .args(args)
            .output()
            .expect("docker runs");
        assert!(
            output.status.success(),
            "docker {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// An image of this machine's shell and a few programs with their libraries, and a
    /// file that makes it its own.
    fn import(&self, name: &str, mark: &str) {
        let root = self.folder.path().join(mark);
        std::fs::create_dir_all(root.join("tmp")).expect("made");
        std::fs::write(root.join("mark"), mark).expect("written");
        for program in ["/bin/sh", "/bin/sleep", "/bin/cat", "/bin/cp"] {
            let libraries = Command::new("ldd").arg(program).output().expect("ldd runs").stdout;
            let libraries = String::from_utf8(libraries).expect("text");
            let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
            for path in libraries.chain([program]) {
                let inside = root.join(path.trim_start_matches('/'));
                std::fs::create_dir_all(inside.parent().expect("has one")).expect("made");
                std::fs::copy(path, inside).expect("copied");
            }
        }
        let tar = self.folder.path().join(format!("{mark}.tar"));
        let packed = Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .arg(&tar)
            .arg(".")
            .status()
            .expect("tar runs");
        assert!(packed.success());
        self.docker(&["import", tar.to_str().expect("text"), name]);
    }

    fn module(&mut self, name: &str) -> ModuleId {
        let id: ModuleId = format!("ek-{name}-{}", std::process::id()).parse().expect("valid id");
        self.modules.push(id.clone());
        id
    }

    async fn create(&self, id: &ModuleId, script: &str, more: Value) -> Created {
        let Value::Object(mut options) =
            json!({ "Cmd": ["/bin/sh", "-c", script], "HostConfig": { "NetworkMode": "none" } })
        else {
            unreachable!("an object")
        };
        if let Value::Object(more) = more {
            options.extend(more);
        }
        let spec = ContainerSpec { image: &self.image, options, ..ContainerSpec::default() };
        self.engine.create(id, &spec).await.expect("created")
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for id in &self.modules {
            let _ = Command::new("docker").args(["-H", &self.uri, "rm", "-f", id.name()]).output();
        }
        let _ = Command::new("docker").args(["-H", &self.uri, "rmi", "-f", &self.image]).output();
    }
}

fn watch(engine: &Engine) -> EngineWatch {
    EngineWatch::start(
        engine.clone(),
        Gauge::here(Collector::new(CgroupHierarchy::detect(), ContainerCgroups::default())),
    )
}

async fn running(watch: &EngineWatch, id: &ModuleId) -> Running {
    match watch.facts_within(id, LONG).await {
        RunningFacts::Running(running) => running,
        other => panic!("{id} does not run: {other:?}"),
    }
}

async fn until(watch: &EngineWatch, what: &str, reached: impl Fn() -> bool) {
    let mut changes = watch.changes();
    let waiting = async {
        while !reached() {
            changes.changed().await.expect("the watch lives");
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("not reached: {what}"));
}

async fn line(engine: &Engine, id: &ModuleId) -> String {
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let mut log = engine.logs(id, &query).await.expect("readable");
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\n") {
        let piece = tokio::time::timeout(LONG, log.next())
            .await
            .expect("prints")
            .expect("runs")
            .expect("no error");
        bytes.extend_from_slice(&piece);
    }
    assert_eq!(bytes[..4], [1, 0, 0, 0], "a frame of standard output");
    String::from_utf8_lossy(&bytes[8..]).trim().to_owned()
}

async fn evidence(watch: &EngineWatch, id: &ModuleId, pid: u32) -> Evidence {
    let collector = Collector::new(CgroupHierarchy::detect(), ContainerCgroups::default());
    let raw = Pid::from_raw(i32::try_from(pid).expect("pid")).expect("pid");
    let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty()).expect("lives");
    let process = ProcDir::open(pid, pidfd.as_fd()).expect("visible");
    let evidence = collector.identify(PeerHandle::PidfdOpen, &process, None).expect("lives");
    let layers = watch.image_layers(id).expect("overlay folders");
    collector
        .measure(&process, evidence, StartedFrom::from(&watch.facts(id)), Some(&layers))
        .expect("unchanged")
}

fn judged(
    id: &ModuleId,
    created: &Created,
    watch: &EngineWatch,
    evidence: &Evidence,
) -> Result<(), DenyReason> {
    let registration = Registration {
        module: id.clone(),
        generation: None,
        policy: Policy::Executable,
        workload: Workload::Container {
            container: created.container.clone(),
            image: created.image,
            options: created.options,
        },
    };
    let asked = Asked { module: id, generation: None };
    verdict(&Door::LegacySocket, &asked, Some(&registration), &watch.facts(id), evidence)
}

/// The processes of a container whose program has this name, by the kernel.
fn processes(running: &Running, program: &str) -> Vec<u32> {
    let cgroup = running.cgroup.as_deref().expect("containers have one");
    let folder =
        PathBuf::from(CgroupHierarchy::detect().mount_point()).join(cgroup.trim_start_matches('/'));
    let pids = std::fs::read_to_string(folder.join("cgroup.procs")).expect("the container's group");
    let named = |pid: &u32| {
        let link = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        link.file_name().is_some_and(|name| name == program)
    };
    pids.lines().filter_map(|pid| pid.parse().ok()).filter(named).collect()
}

#[tokio::test]
async fn a_modules_whole_life_is_seen_by_its_facts_and_its_processes_are_let_in() {
    let Some(mut fixture) = Fixture::new() else { return };
    let id = fixture.module("life");
    let watch = watch(&fixture.engine);
    until(&watch, "reconciled", || watch.is_reconciled()).await;
    assert_eq!(watch.facts(&id), RunningFacts::Stopped);

    let created = fixture.create(&id, "sleep 1000 & echo started; wait", json!({})).await;
    fixture.engine.start(&id).await.expect("started");
    fixture.engine.start(&id).await.expect("runs already");
    let facts = running(&watch, &id).await;
    assert_eq!(line(&fixture.engine, &id).await, "started");
    let container = facts.container.clone().expect("a container");
    assert_eq!((&container.container, container.image), (&created.container, created.image));
    assert_eq!(container.options, created.options);

    let children = processes(&facts, "sleep");
    assert_eq!(children.len(), 1);
    for pid in [facts.init.pid, children[0]] {
        let evidence = evidence(&watch, &id, pid).await;
        assert_eq!(evidence.container.as_ref(), Some(&created.container));
        assert_eq!(judged(&id, &created, &watch, &evidence), Ok(()));
    }

    let listed = watch.list().await.expect("engine answers");
    let status = listed.iter().find(|status| status.name == id.name()).expect("listed");
    assert_eq!(
        (status.state, status.image.as_str()),
        (ModuleState::Running, fixture.image.as_str())
    );
    assert!(fixture.engine.stats(&id).await.expect("engine answers")["memory_stats"].is_object());
    let inspect = fixture.engine.inspect(&id).await.expect("engine answers");
    assert!(inspect["Image"].as_str().is_some_and(|image| image.ends_with(&created.image.hex())));

    fixture.engine.stop(&id, Some(Duration::ZERO)).await.expect("stopped");
    fixture.engine.stop(&id, Some(Duration::ZERO)).await.expect("stopped already");
    until(&watch, "stopped", || watch.facts(&id) == RunningFacts::Stopped).await;
    let stopped = fixture.engine.find(&id).await.expect("still there");
    assert_eq!(
        (stopped.state, stopped.exit.expect("ended").code),
        (ModuleState::Failed, Some(137))
    );

    fixture.engine.restart(&id, Some(Duration::ZERO)).await.expect("started again");
    let again = running(&watch, &id).await;
    assert_ne!(again.init, facts.init);
    fixture.engine.delete(&id).await.expect("removed while running");
    until(&watch, "gone", || watch.facts(&id) == RunningFacts::Stopped).await;
    let error = fixture.engine.find(&id).await.expect_err("gone");
    assert_eq!(error.status(), Some(404));
}

#[tokio::test]
async fn the_list_is_as_new_as_the_engine_at_every_moment() {
    let Some(mut fixture) = Fixture::new() else { return };
    let id = fixture.module("list");
    let watch = watch(&fixture.engine);
    until(&watch, "reconciled", || watch.is_reconciled()).await;
    let listed = async || {
        let listed = watch.list().await.expect("engine answers");
        listed.into_iter().find(|status| status.name == id.name())
    };
    assert_eq!(listed().await, None);
    let created = fixture.create(&id, "sleep 1000", json!({})).await;
    let new = listed().await.expect("created");
    assert_eq!(
        (new.state, new.container, new.started),
        (ModuleState::Stopped, Some(created.container), None)
    );

    // No event is waited for: whether it has been heard or not, each answer is what the
    // engine itself says.
    let mut last = None;
    for round in 0..6 {
        fixture.engine.restart(&id, Some(Duration::ZERO)).await.expect("restarted");
        let now = listed().await.expect("restarted");
        assert_eq!(now, fixture.engine.find(&id).await.expect("there").status(), "round {round}");
        assert_eq!(now.state, ModuleState::Running);
        assert!(now.started > last, "round {round}: the start before is shown");
        last = now.started;
        if round % 2 == 0 {
            running(&watch, &id).await;
        }
        assert_eq!(listed().await, Some(now), "round {round}: it stays");
    }
    fixture.docker(&["pause", id.name()]);
    assert_eq!(listed().await.expect("paused").state, ModuleState::Paused);
    fixture.docker(&["unpause", id.name()]);
    assert_eq!(listed().await.expect("runs on").state, ModuleState::Running);
    fixture.engine.stop(&id, Some(Duration::ZERO)).await.expect("stopped");
    assert_eq!(listed().await.expect("stopped").exit.expect("ended").code, Some(137));
    fixture.engine.delete(&id).await.expect("removed");
    assert_eq!(listed().await, None);
}

#[tokio::test]
async fn a_process_brought_in_by_the_engines_exec_is_no_descendant() {
    let Some(mut fixture) = Fixture::new() else { return };
    let id = fixture.module("exec");
    let watch = watch(&fixture.engine);
    let created = fixture.create(&id, "sleep 1000", json!({})).await;
    fixture.engine.start(&id).await.expect("started");
    let facts = running(&watch, &id).await;
    fixture.docker(&["exec", "-d", id.name(), "/bin/cat", "/dev/zero"]);
    // The engine answers when the process has been made; it may not have executed its
    // program yet.
    let intruder = loop {
        let intruder = processes(&facts, "cat");
        if !intruder.is_empty() {
            break intruder;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(intruder.len(), 1);
    let evidence = evidence(&watch, &id, intruder[0]).await;
    assert_eq!(evidence.container.as_ref(), Some(&created.container), "it is in the container");
    assert_eq!(judged(&id, &created, &watch, &evidence), Err(DenyReason::NotADescendant));
}

#[tokio::test]
async fn a_program_that_is_not_the_images_is_told_apart_by_content_and_place() {
    let Some(mut fixture) = Fixture::new() else { return };
    let id = fixture.module("changed");
    let watch = watch(&fixture.engine);
    let script = "cp /bin/sleep /tmp/moved; /tmp/moved 1000 & cp /bin/cat /bin/sleep; sleep /dev/zero >/dev/null & echo ready; wait";
    let created = fixture.create(&id, script, json!({})).await;
    fixture.engine.start(&id).await.expect("started");
    let facts = running(&watch, &id).await;
    assert_eq!(line(&fixture.engine, &id).await, "ready");
    for program in ["moved", "sleep"] {
        let pids = loop {
            // The shell has forked; the child may not have executed its program yet.
            let pids = processes(&facts, program);
            if !pids.is_empty() {
                break pids;
            }
            tokio::task::yield_now().await;
        };
        let evidence = evidence(&watch, &id, pids[0]).await;
        assert_eq!(
            evidence.measurement.expect("measured").unmodified_from_image,
            Some(false),
            "{program}"
        );
        assert_eq!(
            judged(&id, &created, &watch, &evidence),
            Err(DenyReason::ExecutableChanged),
            "{program}"
        );
    }
    let shell = evidence(&watch, &id, facts.init.pid).await;
    assert_eq!(judged(&id, &created, &watch, &shell), Ok(()), "the shell is the image's own");
}

#[tokio::test]
async fn moving_the_tag_changes_neither_what_runs_nor_what_the_facts_say() {
    let Some(mut fixture) = Fixture::new() else { return };
    let id = fixture.module("retag");
    let watch = watch(&fixture.engine);
    let created = fixture.create(&id, "sleep 1000", json!({})).await;
    fixture.import(&fixture.image, "second");
    let moved = fixture.engine.image_id(&fixture.image).await.expect("present");
    assert_ne!(moved, created.image);
    fixture.engine.start(&id).await.expect("started");
    let facts = running(&watch, &id).await;
    assert_eq!(facts.container.expect("a container").image, created.image);
    let evidence = evidence(&watch, &id, facts.init.pid).await;
    assert_eq!(judged(&id, &created, &watch, &evidence), Ok(()));
}

#[tokio::test]
async fn a_prefix_of_an_id_and_a_container_that_is_no_module_are_not_reached() {
    let Some(mut fixture) = Fixture::new() else { return };
    let id = fixture.module("prefix");
    let created = fixture.create(&id, "sleep 1000", json!({})).await;
    let prefix: ModuleId = created.container.as_str()[..20].parse().expect("valid id");
    let error = fixture.engine.delete(&prefix).await.expect_err("no module of that name");
    assert!(matches!(error, EngineError::NoContainer { .. }), "{error}");

    let stranger = fixture.module("stranger");
    fixture.docker(&[
        "create",
        "--name",
        stranger.name(),
        "--network",
        "none",
        &fixture.image.clone(),
        "/bin/sleep",
    ]);
    for result in [
        fixture.engine.start(&stranger).await,
        fixture.engine.stop(&stranger, None).await,
        fixture.engine.delete(&stranger).await,
        fixture.engine.logs(&stranger, &LogQuery::default()).await.map(drop),
    ] {
        let error = result.expect_err("not a module");
        assert!(matches!(error, EngineError::NotAModule { .. }), "{error}");
    }
    assert!(!fixture.docker(&["inspect", stranger.name()]).is_empty(), "it is still there");
}

#[tokio::test]
async fn logs_come_framed_with_and_without_a_terminal() {
    let Some(mut fixture) = Fixture::new() else { return };
    for (name, tty) in [("plain", false), ("tty", true)] {
        let id = fixture.module(name);
        fixture.create(&id, "echo one; echo two", json!({ "Tty": tty })).await;
        fixture.engine.start(&id).await.expect("started");
        let query = LogQuery { follow: true, ..LogQuery::default() };
        let mut log = fixture.engine.logs(&id, &query).await.expect("readable");
        let mut bytes = Vec::new();
        while let Some(piece) = tokio::time::timeout(LONG, log.next()).await.expect("ends") {
            bytes.extend_from_slice(&piece.expect("no error"));
        }
        let mut text = String::new();
        let mut rest = &bytes[..];
        while let [stream, 0, 0, 0, a, b, c, d, tail @ ..] = rest {
            assert_eq!(*stream, 1);
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            text.push_str(std::str::from_utf8(&tail[..length]).expect("text"));
            rest = &tail[length..];
        }
        assert!(rest.is_empty());
        assert_eq!(text.replace('\r', ""), "one\ntwo\n", "{name}");
    }
}

#[tokio::test]
async fn what_the_engine_refuses_is_told_with_its_status_and_words() {
    let Some(mut fixture) = Fixture::new() else { return };
    let id = fixture.module("refused");
    let spec = ContainerSpec { image: "edgekeep-test-absent:1", ..ContainerSpec::default() };
    let error = fixture.engine.create(&id, &spec).await.expect_err("no such image");
    assert_eq!(error.status(), Some(404), "{error}");
    fixture.create(&id, "sleep 1000", json!({})).await;
    let options = serde_json::Map::from_iter([("Cmd".to_owned(), json!(["/bin/sleep"]))]);
    let spec = ContainerSpec { image: &fixture.image, options, ..ContainerSpec::default() };
    let error = fixture.engine.create(&id, &spec).await.expect_err("name is taken");
    // Podman has no status of its own for this.
    assert!(
        matches!(error.status(), Some(409 | 500)) && error.to_string().contains("already in use"),
        "{error}"
    );
    // Nothing listens there: the engine says so in its answer or at the end of its
    // stream.
    let error = fixture.engine.pull("localhost:1/none:1", None).await.expect_err("no registry");
    assert!(matches!(error, EngineError::Answer { status: 500.., .. }), "{error}");
    assert!(fixture.engine.info().await.expect("engine answers")["ServerVersion"].is_string());
    assert!(fixture.engine.version().await.expect("engine answers")["ApiVersion"].is_string());
}

#[tokio::test]
async fn a_network_is_made_once() {
    let Some(mut fixture) = Fixture::new() else { return };
    let name = fixture.module("net").name().to_owned();
    let options = serde_json::Map::new();
    for _ in 0..2 {
        fixture.engine.ensure_network(&name, &options).await.expect("made or there");
    }
    // A name that only contains another one's is a network of its own.
    let part = &name[..name.len() - 1];
    fixture.engine.ensure_network(part, &options).await.expect("made");
    let networks = fixture.engine.networks(Some(part)).await.expect("engine answers");
    assert_eq!(networks.len(), 2);
    fixture.docker(&["network", "rm", &name, part]);
}

/// A way to the engine that can be cut.
struct Bridge {
    path: PathBuf,
    connections: tokio::task::JoinHandle<()>,
}

impl Bridge {
    fn open(folder: &Path, uri: &str) -> Self {
        let path = folder.join("bridge.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("bound");
        let engine = uri.strip_prefix("unix://").expect("unix URI").to_owned();
        let connections = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let mut server = UnixStream::connect(&engine).await.expect("engine answers");
                open.spawn(
                    async move { tokio::io::copy_bidirectional(&mut client, &mut server).await },
                );
            }
        });
        Self { path, connections }
    }

    /// Ends all connections and takes no new ones.
    fn cut(&self) {
        self.connections.abort();
        std::fs::remove_file(&self.path).expect("bound");
    }
}

#[tokio::test]
async fn while_the_engine_is_away_nothing_is_known_and_what_happened_meanwhile_is_known_after() {
    let Some(mut fixture) = Fixture::new() else { return };
    let (stays, stops) = (fixture.module("stays"), fixture.module("stops"));
    for id in [&stays, &stops] {
        fixture.create(id, "sleep 1000", json!({})).await;
        fixture.engine.start(id).await.expect("started");
    }
    let bridge = Bridge::open(fixture.folder.path(), &fixture.uri);
    let watch = watch(&Engine::new(&bridge.path));
    let before = running(&watch, &stays).await;
    running(&watch, &stops).await;

    bridge.cut();
    until(&watch, "silent", || !watch.is_reconciled()).await;
    // What runs can only be what it was, but what was brought into it since would not
    // have been heard.
    match watch.facts(&stays) {
        RunningFacts::Running(kept) => {
            assert!(kept.exec_since.is_some());
            assert_eq!(Running { exec_since: None, ..kept }, before);
        }
        other => panic!("{other:?}"),
    }
    fixture.engine.stop(&stops, Some(Duration::ZERO)).await.expect("stopped");
    assert_eq!(watch.facts(&stops), RunningFacts::Unknown, "its first process is gone");
    let unheard: ModuleId = "unheard".parse().expect("valid id");
    assert_eq!(watch.facts(&unheard), RunningFacts::Unknown, "it may have been made meanwhile");
    let _again = Bridge::open(fixture.folder.path(), &fixture.uri);
    until(&watch, "reconciled", || watch.is_reconciled()).await;
    assert_eq!(running(&watch, &stays).await, before);
    assert_eq!(watch.facts(&stops), RunningFacts::Stopped);
}
