//! A real Docker engine is killed, started again, hung, and runs out of disk. Each test
//! has one of its own.
//!
//! Whatever happens to the engine: every call has its answer in bounded time, what does
//! not need the engine goes on, and when the engine is back nothing is lost and every
//! identity is what it was.

use std::time::{Duration, Instant};

use edgekeep_testkit::{
    Caller, Device, Engine, Image, PrivateEngine, Registry, VERSION, program, wait_for,
};
use serde_json::{Value, json};

/// Longest time in which any call has its answer: the daemon's patience and some for a
/// slow machine.
const BOUND: Duration = Duration::from_secs(15);

fn bounded<T>(what: &str, call: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let answer = call();
    let took = begun.elapsed();
    eprintln!("{what}: {took:?}");
    assert!(took < BOUND, "{what} took {took:?}");
    answer
}

/// A device with a container module and a host module that are served.
struct Site {
    device: Device,
    _image: Image,
    engine: Engine,
    name: String,
    container: Caller,
    host: Caller,
    identity: [Value; 2],
}

impl Site {
    fn new(engine: Engine) -> Self {
        let (image, name) = (engine.import(&[program("calls")], "first"), engine.name("m1"));
        let device = Device::builder().engine(&engine, engine.uri()).start();
        let (container, spec) = device.container_caller(&name, image.name());
        device.create_and_start(spec);
        let host = device.add_caller("host");
        let identity = [container.sign().expect(200), host.sign().expect(200)];
        Self { device, _image: image, engine, name, container, host, identity }
    }

    fn list(&self) -> edgekeep_testkit::http::Answer {
        bounded("list", || self.device.ask("GET", &format!("/modules?{VERSION}"), None))
    }

    fn pid(&self) -> String {
        self.engine.says(&["inspect", "-f", "{{.State.Pid}}", &self.name])
    }

    /// While the engine is away or hangs: an error for what needs it, and no delay for
    /// what does not.
    fn assert_bounded(&self) {
        // Both at once: a hung engine is waited for.
        let stop = || {
            self.device.agent().manage(
                "POST",
                &format!("/modules/{}/stop?{VERSION}", self.name),
                None,
            )
        };
        let (list, stop) = std::thread::scope(|scope| {
            let list = scope.spawn(|| self.list());
            let stop = bounded("stop", stop);
            (list.join().unwrap(), stop)
        });
        assert_eq!((list.status, stop.status), (500, 500), "{}", list.text());
        assert!(list.message().contains("container engine"), "{}", list.message());
        assert_eq!(
            bounded("sign of a host module", || self.host.sign()).expect(200),
            self.identity[1]
        );
        let _ = bounded("status", || self.device.status());
        assert_eq!(
            self.device.create_identity("host"),
            self.generation("host"),
            "identities are not the engine's"
        );
    }

    fn generation(&self, module: &str) -> String {
        self.device.cloud().state().devices["press-04"].modules[module].generation_id.clone()
    }

    fn wait_until_served(&self) {
        wait_for("the container to be served", || {
            (self.container.sign().status == 200).then_some(())
        });
        assert_eq!(
            self.container.sign().expect(200),
            self.identity[0],
            "the identity is what it was"
        );
        assert_eq!(self.host.sign().expect(200), self.identity[1]);
        let list = self.list().expect(200);
        let listed = |name: &str| {
            list["modules"].as_array().unwrap().iter().any(|module| module["name"] == name)
        };
        assert!([&self.name, "host", "edgeAgent"].into_iter().all(listed), "{list}");
    }
}

#[test]
fn an_engine_that_hangs_and_is_killed_and_comes_back_changes_no_module_with_live_restore() {
    let Some(mut private) = PrivateEngine::or_skip(true, None) else { return };
    let site = Site::new(private.engine());
    let (pid, generation) = (site.pid(), site.generation(&site.name));
    private.hang();
    // What runs was heard before the engine fell silent.
    assert_eq!(bounded("sign", || site.container.sign()).expect(200), site.identity[0]);
    site.assert_bounded();
    private.go_on();
    site.wait_until_served();

    private.kill();
    site.assert_away();
    private.start();
    site.wait_until_served();
    assert_eq!((site.pid(), site.generation(&site.name)), (pid, generation));
}

impl Site {
    /// While nobody listens.
    fn assert_away(&self) {
        wait_for("the loss to be noticed", || {
            self.device.status().engine.is_some_and(|engine| !engine.reachable).then_some(())
        });
        // The container runs on without its engine, and it can only be what it was.
        assert_eq!(bounded("sign", || self.container.sign()).expect(200), self.identity[0]);
        self.assert_bounded();
    }
}

#[test]
fn without_live_restore_the_containers_end_with_the_engine_and_are_the_same_when_they_are_started_again()
 {
    let Some(mut private) = PrivateEngine::or_skip(false, None) else { return };
    let site = Site::new(private.engine());
    let (pid, generation) = (site.pid(), site.generation(&site.name));
    let id = site.engine.says(&["inspect", "-f", "{{.Id}}", &site.name]);
    private.kill();
    site.assert_away();
    private.start();
    // A new engine ends what the old one left.
    wait_for("the daemon to know that the container stopped", || {
        let status = site.device.ask("GET", &format!("/modules/{}?{VERSION}", site.name), None);
        (status.status == 200 && status.json()["status"]["runtimeStatus"]["status"] != "running")
            .then_some(())
    });
    let start = || {
        site.device.agent().manage("POST", &format!("/modules/{}/start?{VERSION}", site.name), None)
    };
    let _ = bounded("start", start).expect(204);
    site.wait_until_served();
    assert_ne!(site.pid(), pid);
    assert_eq!(
        site.engine.says(&["inspect", "-f", "{{.Id}}", &site.name]),
        id,
        "it is the registered container"
    );
    assert_eq!(site.generation(&site.name), generation);
}

#[test]
fn a_pull_onto_a_full_disk_is_an_error_that_says_so_and_costs_no_module() {
    let Some(private) = PrivateEngine::or_skip(true, Some(64)) else { return };
    let site = Site::new(private.engine());
    let folder = tempfile::tempdir().unwrap();
    let filler = folder.path().join("filler");
    std::fs::File::create(&filler).unwrap().set_len(64 << 20).unwrap();
    let registry = Registry::start(&[program("calls"), filler], "word");
    let new = site.engine.name("m2");
    let generation = site.device.create_identity(&new);
    let mut spec = site.device.container_spec(&new, &registry.image(), &generation);
    spec["imagePullPolicy"] = json!("On-Create");
    spec["config"]["settings"]["auth"] = json!({ "username": "u", "password": "word",
        "serveraddress": registry.image().split('/').next() });
    let create = |spec: &Value| {
        site.device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec.clone()))
    };
    bounded("create", || create(&spec)).expect_error(500, "no space left on device");
    // Nor is what runs lost for an image that cannot be had.
    spec["name"] = json!(site.name);
    let target = format!("/modules/{}?start=true&{VERSION}", site.name);
    let update = || site.device.agent().manage("PUT", &target, Some(spec.clone()));
    bounded("update", update).expect_error(500, "no space left on device");
    site.wait_until_served();
}
