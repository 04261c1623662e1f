//! The container engine goes away, hangs, breaks off or fills its disk, and comes back:
//! between the daemon and the engine stands a proxy that the test tells how to behave.
//! What needs the engine gets an answer in bounded time; what does not is as quick as
//! ever; nothing is lost.

use std::time::{Duration, Instant};

use edgekeep_core::attestation::DenyReason;
use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Caller, Device, Engine, EngineFault, EngineProxy, VERSION, http, wait_for};
use serde_json::{Value, json};

use crate::{image, programs};

/// Longest time in which a call that needs the engine has its answer: the daemon's
/// patience and some for a slow machine.
const BOUND: Duration = Duration::from_secs(15);
/// Longest time for what needs no engine. Other tests share the machine; to wait for an
/// engine that hangs takes the daemon ten seconds.
const AT_ONCE: Duration = Duration::from_secs(3);

/// The middle of how long some runs take.
fn median(mut run: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..31)
        .map(|_| {
            let begun = Instant::now();
            run();
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// The same calls with and without a fault, none of which needs the engine.
fn unaffected(device: &Device, host: &Caller) -> [Duration; 3] {
    [
        median(|| drop(host.sign().expect(200))),
        median(|| drop(device.status())),
        median(|| {
            let socket = device.root().metrics_socket(Daemon::Moduled);
            let _ = http::call(&socket, "GET", "/metrics", None).unwrap().expect(200);
        }),
    ]
}

fn assert_as_quick(what: &str, before: [Duration; 3], now: [Duration; 3]) {
    for ((name, before), now) in ["sign", "status", "metrics"].into_iter().zip(before).zip(now) {
        eprintln!(
            "{what}: {name} {before:?} -> {now:?}, {:.2} x",
            now.as_secs_f64() / before.as_secs_f64()
        );
        assert!(now < AT_ONCE, "{what}: {name} {before:?} -> {now:?}");
    }
}

/// Asks in bounded time and gives the status.
fn bounded(device: &Device, method: &str, target: &str, body: Option<&Value>) -> u16 {
    let begun = Instant::now();
    let status = device.ask(method, &format!("{target}?{VERSION}"), body).status;
    let took = begun.elapsed();
    eprintln!("{method} {target}: {status} after {took:?}");
    assert!(took < BOUND, "{method} {target} took {took:?}");
    status
}

/// A device behind a proxy, with a container module and a host module that are served.
struct Site {
    proxy: EngineProxy,
    device: Device,
    container: Caller,
    name: String,
    host: Caller,
    started: String,
    engine: Engine,
    _image: edgekeep_testkit::Image,
    _folder: tempfile::TempDir,
}

impl Site {
    fn or_skip() -> Option<Self> {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Value)) -> Option<Self> {
        let engine = Engine::or_skip()?;
        let (image, name) = (image(&engine), engine.name("m1"));
        let folder = tempfile::tempdir().unwrap();
        let proxy = EngineProxy::new(folder.path().join("engine.sock"), engine.socket());
        let device = Device::builder().engine(&engine, &proxy.uri()).start();
        let (container, mut spec) = device.container_caller(&name, image.name());
        change(&mut spec);
        device.create_and_start(spec);
        let _ = container.sign().expect(200);
        let host = device.add_caller("host");
        let _ = host.sign().expect(200);
        let started = engine.says(&["inspect", "-f", "{{.State.StartedAt}}", &name]);
        Some(Self {
            proxy,
            device,
            container,
            name,
            host,
            started,
            engine,
            _image: image,
            _folder: folder,
        })
    }

    fn assert_nothing_lost(&self) {
        self.proxy.set(EngineFault::None);
        wait_for("the container to be served again", || {
            (self.container.sign().status == 200).then_some(())
        });
        let started = self.engine.says(&["inspect", "-f", "{{.State.StartedAt}}", &self.name]);
        assert_eq!(started, self.started, "the container was not touched");
        let list = self.device.ask("GET", &format!("/modules?{VERSION}"), None).expect(200);
        // Others' containers may be at this engine as well.
        let listed = |name: &str| {
            list["modules"].as_array().unwrap().iter().any(|module| module["name"] == name)
        };
        assert!([&self.name, "host", "edgeAgent"].into_iter().all(listed));
    }
}

#[test]
fn a_hung_engine_holds_up_nothing_but_what_needs_it() {
    let Some(mut site) = Site::or_skip() else { return };
    let before = unaffected(&site.device, &site.host);
    let normal_start = {
        site.device.kill(Daemon::Moduled);
        let begun = Instant::now();
        site.device.start(Daemon::Moduled);
        begun.elapsed()
    };
    wait_for("the container to be served", || (site.container.sign().status == 200).then_some(()));
    site.proxy.set(EngineFault::Hangs);
    std::thread::scope(|scope| {
        // While calls that need the engine wait for it.
        let device = &site.device;
        let waiting: Vec<_> =
            (0..3).map(|_| scope.spawn(|| bounded(device, "GET", "/modules", None))).collect();
        assert_as_quick("hung", before, unaffected(device, &site.host));
        for answer in waiting {
            assert_eq!(answer.join().unwrap(), 500);
        }
    });
    // What runs was heard before the engine fell silent, and nothing else has been heard
    // since.
    let _ = site.container.sign().expect(200);
    let device = &site.device;
    assert_eq!(bounded(device, "GET", "/systeminfo", None), 200);
    assert_eq!(bounded(device, "GET", "/systeminfo/resources", None), 200);
    assert_eq!(bounded(device, "GET", "/modules/host", None), 200);
    assert_eq!(bounded(device, "POST", "/modules/host/restart", None), 204);
    assert_eq!(bounded(device, "POST", &format!("/modules/{}/stop", site.name), None), 500);

    site.device.kill(Daemon::Moduled);
    let begun = Instant::now();
    site.device.start(Daemon::Moduled);
    let start = begun.elapsed();
    eprintln!("start: {normal_start:?} -> {start:?}");
    assert!(start < normal_start + 2 * AT_ONCE, "{normal_start:?} -> {start:?}");
    // Nothing was heard by this one.
    site.device.assert_refused(&site.container.sign(), &site.name, DenyReason::FactsUnknown);
    let _ = site.host.sign().expect(200);
    site.assert_nothing_lost();
}

#[test]
fn an_engine_that_answers_halves_is_given_up_in_time() {
    let Some(site) = Site::or_skip() else { return };
    let before = unaffected(&site.device, &site.host);
    for fault in [EngineFault::HangsAfterHead, EngineFault::Trickles, EngineFault::BreaksOff] {
        site.proxy.set(fault);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| bounded(&site.device, "GET", "/modules", None));
            assert_as_quick(&format!("{fault:?}"), before, unaffected(&site.device, &site.host));
            assert_eq!(waiting.join().unwrap(), 500);
        });
        // Its stream of events is no more, but what ran before can only be what it was.
        let _ = site.container.sign().expect(200);
        site.assert_nothing_lost();
    }
}

#[test]
fn a_stream_of_events_that_is_cut_again_and_again_leaves_nothing_behind() {
    let Some(site) = Site::or_skip() else { return };
    let open = || {
        std::fs::read_dir(format!("/proc/{}/fd", site.device.pid(Daemon::Moduled))).unwrap().count()
    };
    let before = open();
    for _ in 0..20 {
        site.proxy.cut();
        wait_for("the container to be served again", || {
            (site.container.sign().status == 200).then_some(())
        });
        let _ = site.host.sign().expect(200);
    }
    // What happened while nobody listened is found out.
    let _ = site.engine.says(&["stop", "-t", "0", &site.name]);
    site.proxy.cut();
    wait_for("the stopped container to be known", || {
        let status =
            site.device.ask("GET", &format!("/modules/{}?{VERSION}", site.name), None).json();
        (status["status"]["runtimeStatus"]["status"] != "running").then_some(())
    });
    let after = open();
    assert!(after <= before + 8, "{before} -> {after} descriptors");
}

#[test]
fn a_pull_that_fills_the_disk_costs_no_module() {
    let Some(site) = Site::or_skip() else { return };
    site.proxy.set(EngineFault::PullsFillTheDisk);
    wait_for("the container to be served again", || {
        (site.container.sign().status == 200).then_some(())
    });
    let absent = format!("edgekeep-absent-{}:1", std::process::id());
    let new = site.engine.name("m2");
    let generation = site.device.create_identity(&new);
    let mut spec = site.device.container_spec(&new, &absent, &generation);
    spec["imagePullPolicy"] = json!("On-Create");
    let agent = site.device.agent();
    let refused = agent.manage("POST", &format!("/modules?{VERSION}"), Some(spec.clone()));
    refused.expect_error(500, "no space left on device");
    assert_eq!(agent.manage("POST", &format!("/modules/{new}/start?{VERSION}"), None).status, 404);

    // The old module stays when what is to replace it cannot be had.
    spec["name"] = json!(site.name);
    let refused = agent.manage(
        "PUT",
        &format!("/modules/{}?start=true&{VERSION}", site.name),
        Some(spec.clone()),
    );
    refused.expect_error(500, "no space left on device");
    let _ = site.container.sign().expect(200);
    site.assert_nothing_lost();

    site.engine.import_as(&programs(), "late", &absent);
    spec["name"] = json!(new);
    spec["imagePullPolicy"] = json!("Never");
    let _ = agent.manage("POST", &format!("/modules?{VERSION}"), Some(spec)).expect(201);
    let _ = agent.manage("DELETE", &format!("/modules/{new}?{VERSION}"), None).expect(204);
    let _ = site.engine.docker(&["rmi", "-f", &absent]);
}

#[test]
fn the_workload_socket_is_open_while_the_module_stops() {
    // What ignores SIGTERM has its whole grace. All of it does: Podman 4 signals every
    // process, not the first alone.
    let stubborn = |spec: &mut Value| {
        let options = &mut spec["config"]["settings"]["createOptions"];
        options["Entrypoint"] = json!(["/bin/sh"]);
        options["Cmd"] = json!(["-c", "trap '' TERM; /bin/calls; true"]);
    };
    let Some(site) = Site::with(stubborn) else { return };
    std::thread::scope(|scope| {
        let stopping = scope
            .spawn(|| bounded(&site.device, "POST", &format!("/modules/{}/stop", site.name), None));
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            let _ = site.container.sign().expect(200);
        }
        assert!(!stopping.is_finished(), "it stops, and its calls were answered meanwhile");
        assert_eq!(stopping.join().unwrap(), 204);
    });
}

#[test]
fn without_the_engine_host_modules_are_served_and_containers_that_ran_before() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let folder = tempfile::tempdir().unwrap();
    let proxy = EngineProxy::new(folder.path().join("engine.sock"), engine.socket());
    let mut device = Device::builder().engine(&engine, &proxy.uri()).start();
    let (m1, spec) = device.container_caller(&name, image.name());
    device.create_and_start(spec);
    let digest = m1.sign().expect(200);
    let host = device.add_caller("host");

    proxy.set(EngineFault::Away);
    let problem = wait_for("the problem to be told", || {
        let status = device.status();
        let away = status.engine.as_ref().is_some_and(|engine| !engine.reachable);
        away.then(|| status.problems.join("; "))
    });
    assert!(problem.contains("container engine"), "{problem}");
    assert_eq!(m1.sign().expect(200), digest);
    let _ = host.sign().expect(200);
    let _ = device.agent().sign().expect(200);
    // A list without the containers would say that they are gone.
    assert_eq!(device.ask("GET", &format!("/modules?{VERSION}"), None).status, 500);
    let stopped = device.agent().manage("POST", &format!("/modules/{name}/stop?{VERSION}"), None);
    assert!(stopped.status >= 500, "{}", stopped.text());

    // A daemon that starts meanwhile knows nothing: not waved through.
    device.kill(Daemon::Moduled);
    device.start(Daemon::Moduled);
    device.assert_refused(&m1.sign(), &name, DenyReason::FactsUnknown);
    let _ = host.sign().expect(200);

    proxy.set(EngineFault::None);
    wait_for("the container to be served again", || (m1.sign().status == 200).then_some(()));
    assert_eq!(m1.sign().expect(200), digest);
    let _ = device.ask("GET", &format!("/modules?{VERSION}"), None).expect(200);
}

#[test]
fn what_is_done_to_a_container_while_its_engine_is_not_heard_is_not_served() {
    let Some(site) = Site::or_skip() else { return };
    let generation =
        site.device.cloud().state().devices["press-04"].modules[&site.name].generation_id.clone();
    site.proxy.set(EngineFault::Away);
    wait_for("the loss to be noticed", || {
        site.device.status().engine.is_some_and(|engine| !engine.reachable).then_some(())
    });
    let _ = site.container.sign().expect(200);
    // Brought in by the engine's exec, and left behind as a child of the container's
    // first process.
    let intruder = format!(
        "/bin/intruder --socket /var/run/iotedge/workload.sock --module {} --genid {generation} --json",
        site.name
    );
    let script = format!("{intruder} --when-orphaned > /calls/said 2>&1 &");
    let text = site.engine.brought_in(&site.name, &site.container, &script);
    assert!(text.contains(r#"{"outcome":"refused"}"#), "{text}");
    let reason = site.device.status().refusals[0].reason;
    assert!(matches!(reason, DenyReason::AfterExec | DenyReason::FactsUnknown), "{reason}");
    let _ = site.container.sign().expect(200);
    // Started anew: what it is now nobody said.
    let _ = site.engine.says(&["restart", "-t", "0", &site.name]);
    site.device.assert_refused(&site.container.sign(), &site.name, DenyReason::FactsUnknown);
    site.proxy.set(EngineFault::None);
    wait_for("the container to be served again", || {
        (site.container.sign().status == 200).then_some(())
    });
}
