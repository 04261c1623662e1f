//! The device that the checks share, and how they look at it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use edgekeep_api::management::Status;
use edgekeep_core::attestation::DenyReason;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_testkit::{Caller, DEVICE_ID, Image, VERSION, http, module_spec};
use serde_json::{Value, json};

/// Mount point of the second drive.
pub(crate) const PAYLOAD: &str = "/payload";
/// Folder of the FIFOs through which checks speak to modules.
const CALLS: &str = "/run/calls";

/// Longest wait for anything, and the pause between two looks.
const PATIENCE: Duration = Duration::from_secs(120);
const INTERVAL: Duration = Duration::from_millis(200);

/// State that earlier checks have brought about.
#[derive(Default)]
pub(crate) struct Device {
    /// Worth telling, whatever the outcome.
    pub(crate) remarks: Vec<String>,
    pub(crate) agent: Option<Caller>,
    pub(crate) image: Option<Image>,
    pub(crate) modules: BTreeMap<&'static str, Caller>,
}

impl Device {
    pub(crate) fn remark(&mut self, remark: impl Into<String>) {
        self.remarks.push(remark.into());
    }

    pub(crate) fn module(&self, name: &str) -> &Caller {
        self.modules
            .get(name)
            .unwrap_or_else(|| panic!("module {name} was not made; see an earlier check"))
    }

    /// A call of the agent at the management API.
    #[track_caller]
    pub(crate) fn manage(&self, method: &str, target: &str, body: Option<Value>) -> http::Answer {
        let agent = self.agent.as_ref().expect("there is no agent; see an earlier check");
        agent.manage(method, &format!("{target}?{VERSION}"), body)
    }

    /// Makes the identity and the specification of a module that a check speaks through.
    pub(crate) fn caller(&self, module: &str, image: &str) -> (Caller, Value) {
        let identity =
            self.manage("POST", "/identities/", Some(json!({ "moduleId": module }))).expect(200);
        let generation = identity["generationId"].as_str().expect("a generation");
        let caller = Caller::new(Path::new(CALLS), module);
        (caller, module_spec(&root(), "localhost", module, image, generation))
    }

    pub(crate) fn start(&self, spec: Value) {
        let module = spec["name"].as_str().expect("a name").to_owned();
        let _ = self.manage("POST", "/modules", Some(spec)).expect(201);
        let _ = self.manage("POST", &format!("/modules/{module}/start"), None).expect(204);
    }
}

/// The agent's caller, before the agent runs.
pub(crate) fn agent_caller() -> Caller {
    Caller::new(Path::new(CALLS), "$edgeAgent")
}

pub(crate) fn root() -> Root {
    Root::default()
}

/// `GET /status`, as root.
pub(crate) fn status() -> Status {
    serde_json::from_value(ask("/status").expect(200)).expect("the status is of its type")
}

/// A question to the management API, as root.
#[track_caller]
pub(crate) fn ask(target: &str) -> http::Answer {
    http::call(&root().management_socket(), "GET", &format!("{target}?{VERSION}"), None)
        .expect("moduled answers")
}

#[track_caller]
pub(crate) fn assert_latest_refusal(module: &str, reason: DenyReason) {
    let latest = status().refusals.into_iter().next().expect("a refusal is in the status");
    assert_eq!((latest.module.as_str(), latest.reason), (module, reason), "{latest:?}");
}

/// The state of a module in words of the management API.
pub(crate) fn module_state(module: &str) -> Value {
    ask(&format!("/modules/{module}")).json()["status"].clone()
}

/// The first process of a host module, by its environment.
pub(crate) fn process_of(module: &str) -> Option<u32> {
    let wanted = format!("IOTEDGE_MODULEID={module}");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
    })
}

/// The group of a process on cgroup v2, as a folder.
pub(crate) fn cgroup_of(pid: u32) -> PathBuf {
    let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = lines.trim().strip_prefix("0::").expect("one line, of cgroup v2");
    Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'))
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("cannot start {program}: {error}"))
}

/// Runs a command, which must succeed, and returns its output.
#[track_caller]
pub(crate) fn says(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {} {}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// The number of a user.
pub(crate) fn uid(user: &str) -> u32 {
    says("id", &["--user", user]).parse().unwrap()
}

/// A property of a unit.
pub(crate) fn property(unit: &str, name: &str) -> String {
    says("systemctl", &["show", "--value", "--property", name, unit])
}

pub(crate) fn unit(daemon: Daemon) -> String {
    format!("edgekeep-{}.service", daemon.name())
}

/// Waits until the device has its identity and the Edge CA that module certificates need.
pub(crate) fn wait_for_edge_ca() {
    wait_for("the Edge CA certificate", || status().edge_ca_expiration);
}

/// Looks until there is something, and gives it. An emulated machine is slow, on a busy
/// host very slow.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::park_timeout(INTERVAL);
    }
}

/// The id under which the simulated cloud knows the device.
pub(crate) const ID: &str = DEVICE_ID;
