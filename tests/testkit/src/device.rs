//! One device: its folder, its cloud, its daemons.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_api::management::{Refusal, Status};
use edgekeep_core::attestation::DenyReason;
use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use edgekeep_sim::{Authority, EstOptions, Simulator, SimulatorOptions, Snapshot, State};
use serde_json::{Value, json};

use crate::VERSION;
use crate::builder::{Builder, DEVICE_ID};
use crate::caller::Caller;
use crate::engine::Engine;
use crate::http::{self, Answer};
use crate::processes::{Process, end_all, processes_of, tail};
use crate::programs::program;

/// A device that runs.
#[derive(Debug)]
pub struct Device {
    daemons: BTreeMap<&'static str, Process>,
    agent: Option<Caller>,
    cloud: Option<Simulator>,
    /// Port, CA and snapshot of a cloud that is away, to have the same cloud again.
    away: Option<(u16, Authority, Snapshot)>,
    /// Clients of the cloud's EST server.
    est: EstOptions,
    runtime: tokio::runtime::Runtime,
    root: Root,
    logs: PathBuf,
    variables: Vec<(String, String)>,
    containers: Mutex<Vec<String>>,
    engine: Option<Engine>,
    folder: Option<tempfile::TempDir>,
}

impl Device {
    /// Returns the builder of a device. By default, the provisioning service assigns the
    /// device, and there is no container engine. The agent is the program `calls`, so
    /// that the test makes the agent's calls.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// A device whose daemons are not started.
    pub(crate) fn new(
        folder: tempfile::TempDir,
        runtime: tokio::runtime::Runtime,
        (cloud, est): (Simulator, EstOptions),
        agent: Option<Caller>,
        engine: Option<Engine>,
        variables: Vec<(String, String)>,
    ) -> Self {
        let logs = folder.path().join("log");
        std::fs::create_dir(&logs).expect("own folder");
        Self {
            daemons: BTreeMap::new(),
            agent,
            cloud: Some(cloud),
            away: None,
            est,
            runtime,
            root: Root::new(folder.path()),
            logs,
            variables,
            containers: Mutex::new(Vec::new()),
            engine,
            folder: Some(folder),
        }
    }

    // The parts.

    /// Returns the device's root folder.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The agent that the test speaks through.
    ///
    /// # Panics
    /// The device has another agent.
    #[must_use]
    pub fn agent(&self) -> &Caller {
        self.agent.as_ref().expect("this device has an agent of its own")
    }

    /// The simulated cloud.
    ///
    /// # Panics
    /// It is away.
    #[must_use]
    pub fn cloud(&self) -> &Simulator {
        self.cloud.as_ref().expect("the cloud is there")
    }

    /// Waits for a state of the cloud.
    ///
    /// # Panics
    /// It is not reached in time.
    pub fn wait_for_cloud(&self, reached: impl Fn(&State) -> bool) -> State {
        let wait = self.cloud().wait_until(crate::PATIENCE, reached);
        self.runtime.block_on(wait).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs a future, for example a typed client's call.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Stops the cloud: its address refuses connections.
    ///
    /// # Panics
    /// It is away already.
    pub fn cloud_goes_away(&mut self) {
        let simulator = self.cloud.take().expect("the cloud is there");
        self.away = Some((simulator.port(), simulator.authority().clone(), simulator.snapshot()));
        self.runtime.block_on(simulator.stop());
    }

    /// Starts the cloud again where it was, with what it knew.
    ///
    /// # Panics
    /// It is not away, or its port is taken.
    pub fn cloud_comes_back(&mut self) {
        let (port, authority, snapshot) = self.away.take().expect("the cloud is away");
        let options = SimulatorOptions {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            authority: Some(authority),
            snapshot,
            est: self.est.clone(),
            ..SimulatorOptions::default()
        };
        self.cloud = Some(
            self.runtime.block_on(Simulator::start(options)).expect("the simulated cloud starts"),
        );
    }

    /// The workload socket of a module.
    #[must_use]
    pub fn module_socket(&self, module: &str) -> PathBuf {
        let name = module.trim_start_matches('$');
        let links = self.root.module_socket_folder();
        // Where the link leads, without the link: engines and other users get this path.
        let target = std::fs::read_link(links.join(format!("{name}.sock")));
        let target = target.unwrap_or_else(|_| PathBuf::from(name).join("workload.sock"));
        match target.strip_prefix("..") {
            Ok(beside) => self.root.state_folder(Daemon::Moduled).join(beside),
            Err(_) => links.join(target),
        }
    }

    // The daemons.

    /// Runs the command line on this device.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn edgekeep(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(program("edgekeep"));
        command.args(arguments).env(ROOT_VARIABLE, self.root.path()).env("NO_COLOR", "1");
        command.output().expect("the command can be started")
    }

    /// `edgekeep config apply`.
    ///
    /// # Panics
    /// The configuration is refused.
    pub fn apply(&self) {
        let output = self.edgekeep(&["config", "apply"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts all daemons that do not run, and waits until they answer.
    ///
    /// # Panics
    /// One does not answer in time.
    pub fn start_daemons(&mut self) {
        let missing: Vec<Daemon> = Daemon::ALL
            .into_iter()
            .filter(|daemon| !self.daemons.contains_key(daemon.name()))
            .collect();
        // At once, as a service manager would: none may need another to be up.
        for daemon in &missing {
            let log = self.logs.join(daemon.name());
            self.daemons
                .insert(daemon.name(), Process::start(*daemon, &self.root, log, &self.variables));
        }
        for daemon in missing {
            let process = self.daemons.get_mut(daemon.name()).expect("just started");
            process.wait_until_it_answers(&self.root);
        }
    }

    /// Starts one daemon and waits until it answers.
    ///
    /// # Panics
    /// It does not answer in time.
    pub fn start(&mut self, daemon: Daemon) {
        let log = self.logs.join(daemon.name());
        let mut process = Process::start(daemon, &self.root, log, &self.variables);
        process.wait_until_it_answers(&self.root);
        self.daemons.insert(daemon.name(), process);
    }

    /// Ends a daemon as a crash would (SIGKILL).
    ///
    /// # Panics
    /// It does not run.
    pub fn kill(&mut self, daemon: Daemon) {
        self.daemons.remove(daemon.name()).expect("the daemon runs").kill();
    }

    /// Ends a daemon as the service manager would (SIGTERM).
    ///
    /// # Panics
    /// It does not run, or does not end in time.
    pub fn stop(&mut self, daemon: Daemon) -> ExitStatus {
        self.daemons.remove(daemon.name()).expect("the daemon runs").stop()
    }

    /// The process id of a daemon.
    ///
    /// # Panics
    /// It does not run.
    #[must_use]
    pub fn pid(&self, daemon: Daemon) -> u32 {
        self.daemons.get(daemon.name()).expect("the daemon runs").pid()
    }

    /// Returns the log of a daemon since the device was started.
    #[must_use]
    pub fn log(&self, daemon: Daemon) -> String {
        std::fs::read_to_string(self.logs.join(daemon.name())).unwrap_or_default()
    }

    // What the test asks as itself.

    /// A call over the management socket, as this test's own process.
    ///
    /// # Panics
    /// There is no HTTP answer.
    #[track_caller]
    #[must_use]
    pub fn ask(&self, method: &str, target: &str, body: Option<&Value>) -> Answer {
        http::call(&self.root.management_socket(), method, target, body)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// `GET /status`.
    ///
    /// # Panics
    /// There is no good answer.
    #[must_use]
    pub fn status(&self) -> Status {
        let answer = self.ask("GET", &format!("/status?{VERSION}"), None).expect(200);
        serde_json::from_value(answer).expect("the status is of its type")
    }

    /// Asserts that the caller was refused without detail, and that the newest refusal in
    /// the status has the reason.
    ///
    /// # Panics
    /// It is otherwise.
    #[track_caller]
    pub fn assert_refused(&self, answer: &Answer, module: &str, reason: DenyReason) -> Refusal {
        assert_eq!((answer.status, answer.json()), (403, json!({ "message": "forbidden" })));
        self.assert_latest_refusal(module, reason)
    }

    /// Asserts that the newest refusal in the status is of `module` and has the reason.
    ///
    /// # Panics
    /// It is otherwise.
    #[track_caller]
    pub fn assert_latest_refusal(&self, module: &str, reason: DenyReason) -> Refusal {
        let latest = self.status().refusals.into_iter().next().expect("a refusal is in the status");
        assert_eq!((latest.module.as_str(), latest.reason), (module, reason), "{latest:?}");
        latest
    }

    /// The processes of a module.
    #[must_use]
    pub fn processes_of(&self, module: &str) -> Vec<u32> {
        processes_of(self.root.path(), Some(&format!("IOTEDGE_MODULEID={module}")))
    }

    // What the agent does for the test.

    /// Makes an identity and gives its generation.
    ///
    /// # Panics
    /// The agent is refused.
    #[track_caller]
    #[must_use]
    pub fn create_identity(&self, module: &str) -> String {
        let body = json!({ "moduleId": module });
        let identity =
            self.agent().manage("POST", &format!("/identities/?{VERSION}"), Some(body)).expect(200);
        identity["generationId"].as_str().expect("a generation").to_owned()
    }

    /// The specification of a host module, with the environment that agents give modules.
    #[must_use]
    pub fn spec(&self, module: &str, image: &str, generation: &str) -> Value {
        let hub = self.cloud.as_ref().map(Simulator::hub_host).unwrap_or_default();
        module_spec(&self.root, &hub, module, image, generation)
    }

    /// Makes and starts a module.
    ///
    /// # Panics
    /// The agent is refused, or the module cannot be started.
    #[track_caller]
    pub fn create_and_start(&self, spec: Value) {
        let module = spec["name"].as_str().expect("a name").to_owned();
        let _ = self.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec)).expect(201);
        let _ = self
            .agent()
            .manage("POST", &format!("/modules/{module}/start?{VERSION}"), None)
            .expect(204);
    }

    /// A module that the test speaks through, with an identity of its own.
    ///
    /// # Panics
    /// The agent is refused, or the module cannot be started.
    #[track_caller]
    #[must_use]
    pub fn add_caller(&self, module: &str) -> Caller {
        self.add_caller_as(module, "calls", None)
    }

    /// As [`Self::add_caller`], of another name in `[host_modules]` and perhaps of
    /// another user.
    ///
    /// # Panics
    /// The agent is refused, or the module cannot be started.
    #[track_caller]
    #[must_use]
    pub fn add_caller_as(&self, module: &str, image: &str, uid: Option<u32>) -> Caller {
        let generation = self.create_identity(module);
        let caller = Caller::new(&self.root.path().join("calls"), module);
        match uid {
            Some(uid) => caller.give_to(uid),
            None => caller.open_to_all(),
        }
        let mut spec = self.spec(module, image, &generation);
        for (name, value) in caller.environment() {
            add_variable(&mut spec, &name, &value);
        }
        self.create_and_start(spec);
        caller
    }

    /// The specification of a container module that the test speaks through, and the
    /// test's end of it.
    ///
    /// # Panics
    /// The agent is refused.
    #[track_caller]
    #[must_use]
    pub fn container_caller(&self, module: &str, image: &str) -> (Caller, Value) {
        let generation = self.create_identity(module);
        let caller = Caller::new(&self.root.path().join("calls"), module);
        let mut spec = self.container_spec(module, image, &generation);
        spec["config"]["settings"]["createOptions"]["HostConfig"]["Binds"] =
            json!([format!("{}:/calls", caller.folder().display())]);
        for (name, value) in caller.environment_at("/calls") {
            add_variable(&mut spec, &name, &value);
        }
        (caller, spec)
    }

    /// The specification of a container module. The container is removed with the device.
    #[must_use]
    pub fn container_spec(&self, module: &str, image: &str, generation: &str) -> Value {
        let mut spec = self.spec(module, image, generation);
        spec["type"] = json!("docker");
        spec["imagePullPolicy"] = json!("Never");
        // Nothing of the tests needs a network.
        spec["config"]["settings"]["createOptions"] =
            json!({ "HostConfig": { "NetworkMode": "none" } });
        self.remember_container(module);
        spec
    }

    /// Has a container removed with the device.
    pub fn remember_container(&self, name: &str) {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
    }
}

/// The specification of a host module of the device at `root`, with the environment that
/// agents give modules.
#[must_use]
pub fn module_spec(root: &Root, hub: &str, module: &str, image: &str, generation: &str) -> Value {
    // System modules are called without their `$` everywhere but at the hub.
    let name = module.trim_start_matches('$');
    let socket = root.module_socket_folder().join(format!("{name}.sock"));
    let mut spec = json!({ "name": name, "type": "process",
        "config": { "settings": { "image": image, "createOptions": {} }, "env": [] } });
    for (name, value) in [
        ("IOTEDGE_WORKLOADURI", format!("unix://{}", socket.display())),
        ("IOTEDGE_MODULEID", module.to_owned()),
        ("IOTEDGE_MODULEGENERATIONID", generation.to_owned()),
        ("IOTEDGE_DEVICEID", DEVICE_ID.to_owned()),
        ("IOTEDGE_IOTHUBHOSTNAME", hub.to_owned()),
        ("IOTEDGE_GATEWAYHOSTNAME", "press-04.plant7".to_owned()),
        ("IOTEDGE_AUTHSCHEME", "sasToken".to_owned()),
        ("IOTEDGE_APIVERSION", "2022-08-03".to_owned()),
        ("IOTEDGE_MANAGEMENTURI", format!("unix://{}", root.management_socket().display())),
    ] {
        add_variable(&mut spec, name, &value);
    }
    spec
}

/// Adds a variable to the environment in a module's specification.
pub fn add_variable(spec: &mut Value, name: &str, value: &str) {
    if let Some(env) = spec["config"]["env"].as_array_mut() {
        env.push(json!({ "key": name, "value": value }));
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for daemon in Daemon::ALL {
                let ended = self.daemons.get_mut(daemon.name()).and_then(Process::ended);
                let state =
                    ended.map_or_else(String::new, |status| format!(", ended with {status}"));
                let log = tail(&self.logs.join(daemon.name()), 60);
                eprintln!("--- {}{state} ---\n{log}", daemon.name());
            }
        }
        // Who starts others goes first.
        for daemon in Daemon::ALL.into_iter().rev() {
            if let Some(process) = self.daemons.remove(daemon.name()) {
                process.kill();
            }
        }
        if let Some(engine) = &self.engine {
            let containers = std::mem::take(
                &mut *self.containers.lock().unwrap_or_else(PoisonError::into_inner),
            );
            let mut arguments = vec!["rm", "-f"];
            arguments.extend(containers.iter().map(String::as_str));
            let _ = engine.docker(&arguments);
            let _ = engine.docker(&["network", "rm", &engine.network()]);
        }
        end_all(self.root.path());
        if let Some(folder) = self.folder.take()
            && std::env::var_os("EDGEKEEP_TEST_KEEP").is_some()
        {
            eprintln!("kept {}", folder.keep().display());
        }
    }
}

/// Base64 as all the APIs use it.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
