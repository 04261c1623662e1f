//! Whatever somebody else does to a module's container, image, name or network, in
//! whatever state the module is, and in the middle of an operation: the next operation
//! does what is asked, or says what is in the way and how to remove it; what can be put
//! right without being asked is.
//!
//! The cases are generated: every act in every state before every operation ([`cases`]),
//! and every act in the middle of every operation, at each of its calls to the engine
//! ([`Gate`]).

use std::sync::Mutex;
use std::time::Instant;

use edgekeep_testkit::http::{self, Answer};
use edgekeep_testkit::{Caller, Device, Engine, Image, PrivateEngine, VERSION, program, wait_for};
use serde_json::{Value, json};

use crate::gate::Gate;
use crate::with_engine;

/// Act of somebody with the engine's own command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Nothing,
    Pause,
    Start,
    Stop,
    Kill,
    Rename,
    /// Renames it and makes a container of its own with the name.
    TakeName,
    Disconnect,
    /// Detaches it from its network and removes that.
    RemoveNetwork,
    /// The same, and makes another of the name.
    RemakeNetwork,
    /// Has the engine start it by itself.
    RestartAlways,
    /// Removes the image's name.
    RemoveTag,
    Remove,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Created,
    Running,
    Paused,
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Start,
    Stop,
    Restart,
    Update,
    Delete,
}

/// One line of the table.
#[derive(Debug, Clone, Copy)]
struct Case {
    act: Act,
    state: State,
    operation: Operation,
    /// True if the module has a network that the daemon does not make.
    own_network: bool,
}

/// Every act in every state before every operation, where they have to do with each
/// other.
fn cases() -> Vec<Case> {
    use Operation::{Delete, Restart, Start, Stop, Update};
    use State::{Created, Paused, Running, Stopped};
    let all: &[Operation] = &[Start, Stop, Restart, Update, Delete];
    let starting: &[Operation] = &[Start, Restart, Update];
    let table: [(Act, &[State], &[Operation], bool); 13] = [
        (Act::Nothing, &[Created, Paused], all, false),
        (Act::Stop, &[Running], starting, false),
        (Act::Kill, &[Running], starting, false),
        (Act::Rename, &[Created, Running, Paused, Stopped], all, false),
        (Act::TakeName, &[Running, Stopped], all, false),
        (Act::Disconnect, &[Running, Paused, Stopped], starting, false),
        (Act::RemoveNetwork, &[Created, Running, Paused, Stopped], starting, false),
        (Act::RemoveNetwork, &[Running], &[Restart, Update], true),
        (Act::RemoveNetwork, &[Stopped], starting, true),
        (Act::RemakeNetwork, &[Created, Running, Stopped], starting, true),
        (Act::RestartAlways, &[Running, Stopped], &[Start, Stop, Restart], false),
        (Act::RemoveTag, &[Running, Stopped], all, false),
        (Act::Remove, &[Running, Stopped], all, false),
    ];
    let lines = table.into_iter().flat_map(|(act, states, operations, own_network)| {
        let of_state = move |state: &State| {
            let case = |operation: &Operation| Case {
                act,
                state: *state,
                operation: *operation,
                own_network,
            };
            operations.iter().map(case).collect::<Vec<_>>()
        };
        states.iter().flat_map(of_state).collect::<Vec<_>>()
    });
    lines.collect()
}

/// Returns the answer that must come: done, or refused with this status and these words.
fn expected(case: Case) -> Result<(), (u16, &'static str)> {
    match (case.act, case.operation) {
        (Act::Remove, _) => Err((404, "there is no module")),
        // What has its name is not its own.
        (Act::TakeName, Operation::Stop | Operation::Delete) => Ok(()),
        (Act::TakeName, _) => Err((409, "rename or remove the strange one")),
        (Act::RemoveNetwork, Operation::Update) if case.own_network => {
            Err((404, "docker network create"))
        }
        (Act::RemoveNetwork, _) if case.own_network => Err((409, "docker network create")),
        (Act::RemoveTag, Operation::Update) => Err((404, "image")),
        _ => Ok(()),
    }
}

/// A container module with a network of its own, through which its acts are its alone.
struct Module<'a> {
    engine: &'a Engine,
    device: &'a Device,
    caller: Caller,
    name: String,
    network: String,
    image: String,
    spec: Value,
}

impl<'a> Module<'a> {
    fn new(
        engine: &'a Engine,
        device: &'a Device,
        image: &str,
        name: &str,
        own_network: bool,
    ) -> Self {
        let own_image = format!("{name}:own");
        let _ = engine.says(&["tag", image, &own_image]);
        let (caller, mut spec) = device.container_caller(name, &own_image);
        let options = &mut spec["config"]["settings"]["createOptions"];
        let network = if own_network { format!("{name}-net") } else { engine.network() };
        options["HostConfig"].as_object_mut().unwrap().remove("NetworkMode");
        if own_network {
            options["NetworkingConfig"] =
                json!({ "EndpointsConfig": { network.as_str(): { "Aliases": ["db"] } } });
        }
        Self {
            engine,
            device,
            caller,
            name: name.to_owned(),
            network,
            image: image.to_owned(),
            spec,
        }
    }

    fn docker(&self, arguments: &[&str]) {
        let _ = self.engine.docker(arguments);
    }

    /// The engine's own description of what has the module's name.
    fn inspect(&self) -> Option<Value> {
        self.described(&format!("/containers/{}/json", self.name))
    }

    fn described(&self, target: &str) -> Option<Value> {
        let answer = http::call(&self.engine.socket(), "GET", target, None).unwrap();
        (answer.status == 200).then(|| answer.json())
    }

    fn id(&self) -> Option<String> {
        self.inspect()?["Id"].as_str().map(str::to_owned)
    }

    fn manage(&self, method: &str, target: &str, body: Option<Value>) -> Answer {
        self.device.agent().manage(method, target, body)
    }

    /// Brings the module into a state, whatever it is in.
    fn bring(&self, state: State) {
        let there = self.inspect();
        let own = there.filter(|there| there["Config"]["Labels"]["edgekeep.options"].is_string());
        if own.is_none() {
            // A strange one; the daemon then gives the name back.
            self.docker(&["rm", "-f", &self.name]);
        }
        if self.described(&format!("/images/{}:own/json", self.name)).is_none() {
            self.docker(&["tag", &self.image, &format!("{}:own", self.name)]);
        }
        self.make_network();
        let now = own.map(|own| match own["State"]["Status"].as_str() {
            Some("created") => State::Created,
            Some("running") => State::Running,
            Some("paused") => State::Paused,
            _ => State::Stopped,
        });
        if now == Some(state) {
            return;
        }
        if now.is_none() || state == State::Created {
            let _ = self.manage("DELETE", &self.at(""), None);
            let created =
                self.manage("POST", &format!("/modules?{VERSION}"), Some(self.spec.clone()));
            assert_eq!(created.status, 201, "{}: {}", self.name, created.text());
        }
        match state {
            State::Created => {}
            State::Running => self.expect(Operation::Start),
            State::Paused => {
                self.expect(Operation::Start);
                let _ = self.engine.says(&["pause", &self.name]);
            }
            State::Stopped => {
                self.expect(Operation::Start);
                let _ = self.engine.says(&["stop", "-t", "0", &self.name]);
            }
        }
    }

    fn make_network(&self) {
        if self.described(&format!("/networks/{}", self.network)).is_none() {
            self.docker(&["network", "create", &self.network]);
        }
    }

    fn expect(&self, operation: Operation) {
        let answer = self.operate(operation);
        assert!(
            answer.status < 300,
            "{} {operation:?}: {} {}",
            self.name,
            answer.status,
            answer.text()
        );
    }

    fn at(&self, rest: &str) -> String {
        format!("/modules/{}{rest}?{VERSION}", self.name)
    }

    fn operate(&self, operation: Operation) -> Answer {
        match operation {
            Operation::Start => self.device.ask("POST", &self.at("/start"), None),
            Operation::Stop => self.device.ask("POST", &self.at("/stop"), None),
            Operation::Restart => self.device.ask("POST", &self.at("/restart"), None),
            Operation::Update => {
                let target = format!("/modules/{}?start=true&{VERSION}", self.name);
                self.manage("PUT", &target, Some(self.spec.clone()))
            }
            Operation::Delete => self.manage("DELETE", &self.at(""), None),
        }
    }

    fn act(&self, act: Act) {
        let (name, network) = (self.name.as_str(), self.network.as_str());
        let aside = format!("{name}-elsewhere");
        match act {
            Act::Nothing => {}
            Act::Start => self.docker(&["start", name]),
            Act::Pause => self.docker(&["pause", name]),
            Act::Stop => self.docker(&["stop", "-t", "0", name]),
            Act::Kill => self.docker(&["kill", name]),
            Act::Rename => self.docker(&["rename", name, &aside]),
            Act::TakeName => {
                let image = self.image.as_str();
                let take = || {
                    self.docker(&["rename", name, &aside]);
                    self.engine
                        .docker(&["create", "--name", name, image])
                        .status
                        .success()
                        .then_some(())
                };
                // The daemon gives the name back at once.
                wait_for("the name to be taken", take);
            }
            Act::Disconnect => self.docker(&["network", "disconnect", "-f", network, name]),
            Act::RemoveNetwork | Act::RemakeNetwork => {
                // The daemon attaches it again at once, and who is attached keeps a
                // network from being removed; with Podman also a stopped container that
                // is kept aside.
                for _ in 0..20 {
                    self.docker(&["network", "disconnect", "-f", network, name]);
                    self.docker(&["network", "rm", network]);
                    if self.described(&format!("/networks/{network}")).is_none() {
                        break;
                    }
                }
                if act == Act::RemakeNetwork {
                    self.docker(&["network", "create", network]);
                }
            }
            Act::RestartAlways => self.docker(&["update", "--restart", "always", name]),
            Act::RemoveTag => self.docker(&["rmi", &format!("{name}:own")]),
            Act::Remove => self.docker(&["rm", "-f", name]),
        }
    }

    /// Returns true if a container has the module's name, runs, and is attached to its
    /// network.
    fn is_whole(&self) -> bool {
        let state = self.inspect().unwrap_or_default();
        state["State"]["Status"] == "running"
            && state["NetworkSettings"]["Networks"][&self.network].is_object()
    }

    /// The container is whole and is the one that is served. A name that was taken away
    /// meanwhile comes back at once.
    fn assert_serves(&self, what: &str) {
        wait_for(&format!("{what}: {} to be whole", self.name), || self.is_whole().then_some(()));
        wait_for(&format!("{what}: {} to be served", self.name), || self.caller.try_signed());
    }

    fn assert_outcome(&self, case: Case, answer: &Answer) {
        let what = format!("{case:?} of {}: {} {}", self.name, answer.status, answer.text());
        match expected(case) {
            Ok(()) => assert!(answer.status < 300, "{what}"),
            Err((status, words)) => {
                assert_eq!(answer.status, status, "{what}");
                assert!(answer.message().contains(words), "{what}");
                return;
            }
        }
        match case.operation {
            Operation::Start | Operation::Restart | Operation::Update => self.assert_serves(&what),
            Operation::Stop => {
                let name = if case.act == Act::TakeName {
                    format!("{}-elsewhere", self.name)
                } else {
                    self.name.clone()
                };
                let target = format!("/containers/{name}/json");
                let state =
                    wait_for(&format!("{what}: its name to be back"), || self.described(&target));
                assert_eq!(state["State"]["Running"], false, "{what}");
            }
            Operation::Delete => {
                let answer = self.device.ask("GET", &self.at(""), None);
                let gone = case.act == Act::TakeName || answer.status == 404;
                assert!(gone, "{what}: {}", answer.text());
            }
        }
    }
}

impl Drop for Module<'_> {
    fn drop(&mut self) {
        self.docker(&["rm", "-f", &self.name, &format!("{}-elsewhere", self.name)]);
        self.docker(&["rmi", &format!("{}:own", self.name)]);
        if self.network != self.engine.network() {
            self.docker(&["network", "rm", &self.network]);
        }
    }
}

fn image(engine: &Engine) -> Image {
    engine.import(&[program("calls")], "touched")
}

/// Goes through the lines of the table that begin in one of these states, on a few
/// devices at once.
fn go_through_the_table(states: &[State]) {
    const DEVICES: usize = 2;
    let Some(first) = Engine::or_skip() else { return };
    let image = image(&first);
    let lines: Vec<Case> =
        cases().into_iter().filter(|case| states.contains(&case.state)).collect();
    let (begun, count) = (Instant::now(), lines.len());
    let lines = Mutex::new(lines.into_iter());
    let work = || {
        let engine = Engine::or_skip().unwrap();
        let device = with_engine(&engine).start();
        let modules = [false, true].map(|own| {
            Module::new(&engine, &device, image.name(), &engine.name(&format!("m{own}")), own)
        });
        loop {
            let Some(case) = lock(&lines).next() else { return };
            let module = &modules[usize::from(case.own_network)];
            module.bring(case.state);
            module.act(case.act);
            let answer = module.operate(case.operation);
            module.assert_outcome(case, &answer);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..DEVICES).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    eprintln!("{count} cases in {:?}", begun.elapsed());
}

#[test]
fn whatever_was_done_to_a_running_module_the_next_operation_works_or_names_the_remedy() {
    go_through_the_table(&[State::Running]);
}

#[test]
fn whatever_was_done_to_a_stopped_module_the_next_operation_works_or_names_the_remedy() {
    go_through_the_table(&[State::Stopped]);
}

#[test]
fn whatever_was_done_to_a_new_or_paused_module_the_next_operation_works_or_names_the_remedy() {
    go_through_the_table(&[State::Created, State::Paused]);
}

#[test]
fn whatever_is_done_in_the_middle_of_an_operation_the_next_one_makes_the_module_whole() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, gate) = (image(&engine), Gate::new(&engine));
    let device = Device::builder().engine(&engine, &gate.uri()).start();
    let module = Module::new(&engine, &device, image.name(), &engine.name("m1"), false);
    // The operation, from which state, the call that is held back, and what happens then.
    let cases: &[(Operation, State, &str, &[Act])] = &[
        (
            Operation::Start,
            State::Stopped,
            "/start",
            &[Act::Start, Act::Rename, Act::RemoveNetwork, Act::Remove],
        ),
        (
            Operation::Restart,
            State::Running,
            "/stop",
            &[Act::Pause, Act::Kill, Act::Rename, Act::Remove],
        ),
        (Operation::Restart, State::Running, "/start", &[Act::RemoveNetwork, Act::TakeName]),
        (Operation::Update, State::Running, "/stop", &[Act::Pause, Act::Rename, Act::Remove]),
        (Operation::Update, State::Paused, "/rename?", &[Act::Rename, Act::Remove]),
        (Operation::Update, State::Running, "/containers/create", &[Act::RemoveNetwork]),
        (
            Operation::Update,
            State::Running,
            "/start",
            &[Act::RemoveNetwork, Act::Rename, Act::Remove],
        ),
    ];
    let begun = Instant::now();
    for (operation, state, call, acts) in cases {
        for act in *acts {
            let what = format!("{act:?} at {call} of {operation:?}");
            module.bring(*state);
            gate.hold(call);
            let answer = std::thread::scope(|scope| {
                let operating = scope.spawn(|| module.operate(*operation));
                gate.wait();
                module.act(*act);
                gate.open();
                operating.join().unwrap()
            });
            eprintln!("{what}: {} after {:?}", answer.status, begun.elapsed());
            if answer.status < 300 && *act != Act::TakeName {
                // Done means done, whatever happened meanwhile.
                module.assert_serves(&what);
            }
            if *act == Act::TakeName {
                let told = || {
                    device
                        .status()
                        .problems
                        .iter()
                        .any(|text| text.contains("the strange one"))
                        .then_some(())
                };
                wait_for(&format!("{what}: the problem to be told"), told);
                module.docker(&["rm", "-f", &module.name]);
            }
            // What an agent does next.
            wait_for(&format!("{what}: the module to be whole again"), || {
                match module.operate(Operation::Start).status {
                    204 => Some(()),
                    404 => {
                        let target = format!("/modules?{VERSION}");
                        let _ = module.manage("POST", &target, Some(module.spec.clone()));
                        None
                    }
                    _ => None,
                }
            });
            module.assert_serves(&what);
            let all = engine.says(&["ps", "-a", "--format", "{{.Names}}"]);
            let of_module: Vec<&str> =
                all.lines().filter(|name| name.starts_with(&module.name)).collect();
            assert_eq!(of_module, [module.name.as_str()], "{what}: nothing is left behind");
        }
    }
}

#[test]
fn what_can_be_put_right_without_being_asked_is_and_the_rest_is_a_problem_with_its_remedy() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let device = with_engine(&engine).start();
    let names = ["a", "b", "c"].map(|name| engine.name(name));
    let [a, b, c] = [0, 1, 2]
        .map(|number| Module::new(&engine, &device, image.name(), &names[number], number == 2));
    for module in [&a, &b, &c] {
        module.bring(State::Running);
        module.assert_serves("at first");
    }
    let problems = || device.status().problems.join("; ");
    let ids: Vec<Option<String>> = [&a, &b, &c].map(Module::id).into();
    let whole = |what: &str, module: &Module<'_>| {
        module.assert_serves(what);
        let own = ids.contains(&module.id());
        assert!(own || what == "made anew", "{what}: {}", module.name);
    };

    // Names are given back, also when two were exchanged.
    a.act(Act::Rename);
    whole("the name comes back", &a);
    for (from, to) in [(&a.name, "x".to_owned()), (&b.name, a.name.clone())] {
        let to = if to == "x" { format!("{}-elsewhere", a.name) } else { to };
        a.docker(&["rename", from, &to]);
    }
    a.docker(&["rename", &format!("{}-elsewhere", a.name), &b.name]);
    let back = || (a.id() == ids[0] && b.id() == ids[1]).then_some(());
    wait_for("both names to be back", back);
    whole("exchanged names", &a);
    whole("exchanged names", &b);

    // Networks are attached again, and the device's own is made again.
    c.act(Act::Disconnect);
    whole("attached again", &c);
    a.docker(&["network", "disconnect", "-f", &a.network, &a.name]);
    b.act(Act::RemoveNetwork);
    whole("the network is made again", &a);
    whole("the network is made again", &b);

    // What is the operator's to decide is told.
    let told = |words: &str| wait_for(words, || problems().contains(words).then_some(()));
    // A call that was refused while a container was made anew is told of for a while, and
    // is no act of somebody.
    let acts = [
        "is paused",
        "rename or remove",
        "docker network create",
        "removed a module's container",
        "cannot be",
    ];
    let untold = || {
        wait_for("no problem is left", || {
            (!acts.iter().any(|act| problems().contains(act))).then_some(())
        });
    };
    a.act(Act::Pause);
    told("is paused");
    let list = String::from_utf8(device.edgekeep(&["list"]).stdout).unwrap();
    let line = list.lines().find(|line| line.starts_with(&a.name)).unwrap();
    assert!(line.contains("paused") && !line.contains("stopped"), "{line}");
    let status = device.edgekeep(&["status"]);
    assert_eq!(status.status.code(), Some(1), "{}", String::from_utf8_lossy(&status.stdout));
    // Existing agents do not know the word, and would look after nothing any more.
    let listed = a.manage("GET", &format!("/modules?{VERSION}"), None).expect(200);
    let of_agent = listed["modules"]
        .as_array()
        .unwrap()
        .iter()
        .find(|module| module["name"] == *a.name)
        .unwrap();
    assert_eq!(of_agent["status"]["runtimeStatus"]["status"], "stopped");
    a.expect(Operation::Start);
    whole("goes on", &a);
    untold();
    a.act(Act::TakeName);
    told("rename or remove the strange one");
    a.docker(&["rm", "-f", &a.name]);
    whole("the name comes back", &a);
    c.act(Act::RemoveNetwork);
    told(&format!("docker network create {}", c.network));
    c.make_network();
    whole("attached again", &c);
    b.act(Act::Remove);
    told("removed a module's container");
    b.bring(State::Running);
    whole("made anew", &b);
    untold();
}

#[test]
fn a_container_of_another_agent_gives_no_second_row_of_a_name() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("host"));
    let device = with_engine(&engine).start();
    let host = device.add_caller(&name);
    device.remember_container(&name);
    let label = "net.azure-devices.edge.owner=Microsoft.Azure.Devices.Edge.Agent";
    let _ = engine.says(&["create", "--name", &name, "--label", label, image.name()]);
    let list = device.ask("GET", &format!("/modules?{VERSION}"), None).expect(200);
    let rows: Vec<&Value> = list["modules"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|module| module["name"] == *name)
        .collect();
    assert_eq!(rows.len(), 1, "{list}");
    assert_eq!(
        (&rows[0]["type"], &rows[0]["status"]["runtimeStatus"]["status"]),
        (&json!("process"), &json!("running"))
    );
    let _ = host.sign().expect(200);
}

/// As it was reported: all is stopped and the network removed, a module is paused, and
/// nobody but the agent does anything.
#[test]
fn an_agent_brings_back_modules_whose_network_was_removed_and_one_that_was_paused() {
    // Of its own: an agent removes what its deployment does not name, whosever it is.
    let Some(private) = PrivateEngine::or_skip(false, None) else { return };
    let engine = private.engine();
    let image = image(&engine);
    let names = ["p", "q"].map(|name| engine.name(name));
    let calls = json!({ "EDGEKEEP_TEST_CALLS": { "value": "{}" }, "EDGEKEEP_TEST_ANSWERS": { "value": "/tmp/answers" } });
    let module = json!({ "type": "docker", "status": "running", "restartPolicy": "always", "imagePullPolicy": "never",
        "env": calls, "settings": { "image": image.name(), "createOptions": "{}" } });
    let modules: serde_json::Map<String, Value> =
        names.iter().map(|name| (name.clone(), module.clone())).collect();
    let manifest = json!({ "modulesContent": { "$edgeAgent": { "properties.desired": {
        "schemaVersion": "1.1", "runtime": { "type": "docker", "settings": {} }, "modules": modules,
        "systemModules": {} } } } });
    let device = with_engine(&engine).reference_agent(&manifest).start();
    for name in &names {
        device.remember_container(name);
    }
    let runs = |name: &str| {
        let state = engine.docker(&[
            "inspect",
            "-f",
            "{{.State.Status}} {{json .NetworkSettings.Networks}}",
            name,
        ]);
        let state = String::from_utf8_lossy(&state.stdout).into_owned();
        (state.starts_with("running ") && state.contains(&engine.network())).then_some(())
    };
    let all_run = |what: &str| {
        names.iter().for_each(|name| wait_for(&format!("{what}: {name}"), || runs(name)));
    };
    all_run("at first");
    let first = engine.says(&["inspect", "-f", "{{.Id}}", &names[0]]);
    let _ = engine.says(&["pause", &names[1]]);
    wait_for("to be paused", || runs(&names[1]).is_none().then_some(()));
    let _ = engine.docker(&["kill", &names[0]]);
    all_run("after the pause");
    let _ = engine.docker(&["kill", &names[0], &names[1]]);
    for name in &names {
        let _ = engine.docker(&["network", "disconnect", "-f", &engine.network(), name]);
    }
    let _ = engine.docker(&["network", "rm", &engine.network()]);
    all_run("with a network made anew");
    assert_eq!(
        engine.says(&["inspect", "-f", "{{.Id}}", &names[0]]),
        first,
        "it is the same container"
    );
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
