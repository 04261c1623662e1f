//! Rounds of the agent against a management API over a real socket.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

mod device;

use std::path::Path;
use std::process::Stdio;

use device::Device;
use edgekeep_agent::agent::Agent;
use edgekeep_agent::settings::Settings;
use edgekeep_core::reconcile::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;

struct Bench {
    folder: TempDir,
    device: Device,
    agent: Agent,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = Device::start(folder.path());
        let agent = agent(folder.path(), &device);
        Self { folder, device, agent }
    }

    fn deploy(&self, modules: &Value) {
        write_manifest(self.folder.path(), modules);
    }

    /// One round; the requests that it made to change something.
    async fn round(&mut self) -> Vec<String> {
        self.agent.round().await;
        self.device.take_calls()
    }

    fn restart_agent(&mut self) {
        self.agent = agent(self.folder.path(), &self.device);
    }

    fn reported(&self) -> Value {
        serde_json::from_slice(
            &std::fs::read(self.folder.path().join("state/reported.json")).unwrap(),
        )
        .unwrap()
    }

    fn state(&self, module: &str) -> Option<&'static str> {
        self.device.world().modules.get(module).map(|module| module.state)
    }
}

fn variables(folder: &Path, device: &Device) -> Vec<(String, String)> {
    let path = |name: &str| folder.join(name).display().to_string();
    [
        ("IOTEDGE_MANAGEMENTURI", format!("unix://{}", device.socket.display())),
        ("IOTEDGE_WORKLOADURI", "unix:///var/run/iotedge/workload.sock".into()),
        ("IOTEDGE_WORKLOADLISTEN_MNTURI", format!("unix://{}", path("mnt"))),
        ("IOTEDGE_DEVICEID", "dev".into()),
        ("IOTEDGE_IOTHUBHOSTNAME", "hub.example".into()),
        ("EdgeDeviceHostName", "edge".into()),
        ("EDGEKEEP_MANIFEST", path("manifest.json")),
        ("EDGEKEEP_AGENT_STATE", path("state")),
        ("EDGEKEEP_AGENT_PERIOD", "3600".into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

fn agent(folder: &Path, device: &Device) -> Agent {
    let settings = Settings::from_variables(variables(folder, device)).unwrap();
    let clock = device.clone();
    Agent::open(settings, Box::new(move || Timestamp(clock.now()))).unwrap()
}

fn write_manifest(folder: &Path, modules: &Value) {
    let desired = json!({
        "schemaVersion": "1.1",
        "runtime": {"type": "docker", "settings": {}},
        "systemModules": {"edgeAgent": {"type": "docker", "settings": {"image": "another-agent:7"}}},
        "modules": modules,
    });
    let text =
        json!({"modulesContent": {"$edgeAgent": {"properties.desired": desired}}}).to_string();
    std::fs::write(folder.join("manifest.json"), text).unwrap();
}

fn module(env: &str) -> Value {
    json!({"type": "docker", "status": "running", "restartPolicy": "always", "env": {"E": {"value": env}},
        "settings": {"image": "x:1"}})
}

#[tokio::test]
async fn the_first_round_makes_and_starts_what_the_manifest_wants_and_the_second_does_nothing() {
    let mut bench = Bench::new();
    let host = json!({"type": "process", "status": "running", "settings": {"image": "thermometer"}, "startupOrder": 1});
    bench.deploy(&json!({"m": module("1"), "host": host}));
    let expected = [
        "POST /identities/",
        "POST /modules/host/prepareupdate",
        "POST /modules",
        "POST /modules/host/start",
        "POST /identities/",
        "POST /modules/m/prepareupdate",
        "POST /modules",
        "POST /modules/m/start",
    ];
    assert_eq!(bench.round().await, expected);
    {
        let world = bench.device.world();
        let m = &world.modules["m"];
        assert_eq!((m.env("E"), m.env("IOTEDGE_MODULEGENERATIONID")), (Some("1"), Some("g2")));
        let socket = bench.folder.path().join("mnt/host.sock");
        let uri = format!("unix://{}", socket.display());
        assert_eq!(world.modules["host"].env("IOTEDGE_WORKLOADURI"), Some(uri.as_str()));
    }
    assert_eq!(bench.agent.status(), (200, ""));
    let reported = bench.reported();
    assert_eq!(reported["modules"]["m"]["runtimeStatus"], "running");
    assert_eq!(reported["runtime"]["platform"]["version"], "9.9");
    assert_eq!(reported["systemModules"]["edgeAgent"]["settings"]["image"], "agent:1");
    bench.device.pass(5);
    assert_eq!(bench.round().await, Vec::<String>::new());
}

#[tokio::test]
async fn nothing_is_done_again_after_the_agent_was_restarted_even_without_its_state() {
    let mut bench = Bench::new();
    let host =
        json!({"type": "process", "status": "running", "settings": {"image": "thermometer"}});
    bench.deploy(&json!({"m": module("1"), "host": host}));
    bench.round().await;
    bench.restart_agent();
    assert_eq!(bench.round().await, Vec::<String>::new());

    std::fs::remove_dir_all(bench.folder.path().join("state")).unwrap();
    bench.restart_agent();
    // Only the container tells by its label what it was made from.
    let calls = bench.round().await;
    assert!(calls.contains(&"PUT /modules/host".to_owned()), "{calls:?}");
    assert!(!calls.iter().any(|call| call.starts_with("PUT /modules/m")), "{calls:?}");
}

#[tokio::test]
async fn a_changed_environment_replaces_the_container_and_a_changed_policy_does_not() {
    let mut bench = Bench::new();
    bench.deploy(&json!({"m": module("1")}));
    bench.round().await;
    bench.deploy(&json!({"m": module("2")}));
    let expected = [
        "PUT /identities/m",
        "POST /modules/m/prepareupdate",
        "POST /modules/m/stop",
        "PUT /modules/m",
        "POST /modules/m/start",
    ];
    assert_eq!(bench.round().await, expected);
    assert_eq!(bench.device.world().modules["m"].env("E"), Some("2"));

    let mut policy = module("2");
    policy["restartPolicy"] = json!("never");
    bench.deploy(&json!({"m": policy}));
    assert_eq!(bench.round().await, Vec::<String>::new());
    policy["status"] = json!("stopped");
    bench.deploy(&json!({"m": policy}));
    assert_eq!(bench.round().await, ["POST /modules/m/stop"]);
    policy["status"] = json!("running");
    bench.deploy(&json!({"m": policy}));
    assert_eq!(bench.round().await, ["POST /modules/m/start"]);
}

#[tokio::test]
async fn what_is_not_wanted_any_more_goes_with_its_identity_and_the_agent_stays() {
    let mut bench = Bench::new();
    bench.deploy(&json!({"m": module("1"), "n": module("1")}));
    bench.round().await;
    bench.deploy(&json!({"n": module("1")}));
    bench.device.break_call("DELETE /identities/m", "the hub is away");
    assert_eq!(
        bench.round().await,
        ["POST /modules/m/stop", "DELETE /modules/m", "DELETE /identities/m"]
    );
    assert_eq!(bench.agent.status().0, 500);
    bench.device.mend();
    bench.restart_agent();
    bench.device.pass(10);
    assert_eq!(bench.round().await, ["DELETE /identities/m"]);
    let left: Vec<String> = bench.device.world().modules.keys().cloned().collect();
    assert_eq!(left, ["edgeAgent", "n"]);
    assert_eq!(bench.agent.status(), (200, ""));
}

#[tokio::test]
async fn a_bad_manifest_is_reported_with_its_culprit_while_the_last_good_one_is_supervised() {
    let mut bench = Bench::new();
    bench.deploy(&json!({"m": module("1")}));
    bench.round().await;
    let mut bad = module("1");
    bad["settings"]["image"] = json!("<Container_Registry>/x");
    bench.deploy(&json!({"m": bad}));
    bench.device.exit("m", 1);
    bench.device.pass(11);
    assert_eq!(bench.round().await, ["POST /modules/m/start"]);
    let status = &bench.reported()["lastDesiredStatus"];
    assert_eq!(status["code"], 400);
    let text = status["description"].as_str().unwrap();
    assert!(
        text.contains("modules.m.settings.image: holds the placeholder <Container_Registry>"),
        "{text}"
    );
    let told = bench.device.world().deployment.clone();
    assert!(
        told["problem"].as_str().unwrap().contains("the placeholder <Container_Registry>"),
        "{told}"
    );
    assert_eq!(told["running"], json!(["m"]), "by the last good one");
    assert_eq!(bench.reported()["health"]["verdict"], "healthy", "as the daemon told");

    // Also by an agent that never saw the good one, and without a manifest at all.
    bench.restart_agent();
    bench.device.exit("m", 1);
    bench.device.pass(600);
    assert_eq!(bench.round().await, ["POST /modules/m/start"]);
    std::fs::remove_file(bench.folder.path().join("manifest.json")).unwrap();
    assert_eq!(bench.round().await, Vec::<String>::new());
    assert_eq!(bench.agent.status().0, 417);
    assert_eq!(bench.state("m"), Some("running"));
}

#[tokio::test]
async fn a_device_without_any_good_manifest_is_left_as_it_is() {
    let mut bench = Bench::new();
    let found = bench.device.world().modules["edgeAgent"].clone();
    bench.device.world().modules.insert("found".into(), found);
    assert_eq!(bench.round().await, Vec::<String>::new());
    assert_eq!(bench.agent.status().0, 417);
    std::fs::write(bench.folder.path().join("manifest.json"), "{\"schemaVersion\": \"2.0\"}")
        .unwrap();
    assert_eq!(bench.round().await, Vec::<String>::new());
    assert_eq!(bench.agent.status().0, 412);
    assert_eq!(bench.state("found"), Some("running"));
}

#[tokio::test]
async fn a_module_that_cannot_be_made_holds_back_no_other_and_is_tried_again_with_growing_waits() {
    let mut bench = Bench::new();
    bench.device.break_call("POST /modules bad", "no space left\ncaused by: disk full");
    bench.deploy(&json!({"bad": module("1"), "good": module("1")}));
    bench.round().await;
    assert_eq!(bench.state("good"), Some("running"));
    assert_eq!(bench.state("bad"), None);
    assert_eq!(
        bench.agent.status(),
        (500, "bad: cannot create it: no space left: disk full (status 500)")
    );
    let reported = bench.reported();
    assert_eq!(
        reported["modules"]["bad"]["statusDescription"],
        "bad: cannot create it: no space left: disk full (status 500)"
    );
    assert_eq!(reported["modules"]["good"]["runtimeStatus"], "running");

    let mut waits = Vec::new();
    let mut last = bench.device.now();
    while waits.len() < 8 {
        bench.device.pass(5);
        if bench.round().await.contains(&"POST /modules".to_owned()) {
            waits.push((bench.device.now() - last) / 1000);
            last = bench.device.now();
        }
    }
    assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300, 300]);

    bench.device.mend();
    // A manifest that was written again is reason enough to try at once.
    bench.deploy(&json!({"good": module("1"), "bad": module("1")}));
    bench.round().await;
    assert_eq!(bench.state("bad"), Some("running"));
    assert_eq!(bench.agent.status(), (200, ""));
}

#[tokio::test]
async fn a_failed_update_is_not_taken_for_applied() {
    let mut bench = Bench::new();
    bench.deploy(&json!({"m": module("1")}));
    bench.round().await;
    bench.device.break_call("POST /modules/m/prepareupdate", "no such image");
    bench.deploy(&json!({"m": module("2")}));
    bench.round().await;
    assert_eq!(bench.state("m"), Some("running"));
    assert_eq!(bench.device.world().modules["m"].env("E"), Some("1"));
    bench.device.mend();
    bench.device.pass(10);
    bench.round().await;
    assert_eq!(bench.device.world().modules["m"].env("E"), Some("2"));
}

#[tokio::test]
async fn a_module_that_ends_again_and_again_is_started_with_growing_waits() {
    let mut bench = Bench::new();
    bench.deploy(&json!({"m": module("1")}));
    bench.round().await;
    let mut waits = Vec::new();
    for _ in 0..7 {
        bench.device.exit("m", 3);
        let exit = bench.device.now();
        while bench.state("m") != Some("running") {
            bench.device.pass(5);
            bench.round().await;
        }
        waits.push((bench.device.now() - exit) / 1000);
    }
    assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
    let reported = &bench.reported()["modules"]["m"];
    assert_eq!((&reported["restartCount"], &reported["exitCode"]), (&json!(7), &json!(3)));

    bench.device.exit("m", 3);
    bench.round().await;
    assert_eq!(bench.reported()["modules"]["m"]["runtimeStatus"], "backoff");
}

#[tokio::test]
async fn without_the_hub_a_known_identity_is_good_enough_and_an_unknown_one_is_waited_for() {
    let mut bench = Bench::new();
    bench.device.world().identities.insert("known".into(), "g7".into());
    bench.device.break_call("PUT /identities/known", "the hub is away");
    bench.device.break_call("POST /identities/ new", "the hub is away");
    bench.deploy(&json!({"known": module("1"), "new": module("1")}));
    bench.round().await;
    assert_eq!(bench.device.world().modules["known"].env("IOTEDGE_MODULEGENERATIONID"), Some("g7"));
    assert_eq!(bench.state("new"), None);
    assert_eq!(
        bench.agent.status(),
        (500, "new: cannot get its identity: the hub is away (status 500)")
    );
}

#[tokio::test]
async fn a_lost_identity_is_made_again_and_its_module_is_made_anew_for_it() {
    let mut bench = Bench::new();
    let host =
        json!({"type": "process", "status": "running", "settings": {"image": "thermometer"}});
    bench.deploy(&json!({"m": module("1"), "host": host}));
    bench.round().await;
    bench.device.world().identities.clear();
    // The hub is away: the modules go on as they are.
    bench.device.break_call("POST /identities/", "the hub is away");
    assert_eq!(bench.round().await, ["POST /identities/", "POST /identities/"]);
    assert_eq!(bench.agent.status().0, 500);
    assert_eq!((bench.state("m"), bench.state("host")), (Some("running"), Some("running")));
    bench.device.mend();
    bench.device.pass(10);
    assert_eq!(bench.round().await, ["POST /identities/", "POST /identities/"]);

    // A restarted agent knows as well for which identity it made the host module, which
    // carries no label.
    bench.restart_agent();
    let anew = |name: &str| {
        let id = format!("PUT /identities/{name}");
        let on = |call: &str| format!("POST /modules/{name}/{call}");
        [id, on("prepareupdate"), on("stop"), format!("PUT /modules/{name}"), on("start")]
    };
    assert_eq!(bench.round().await, [anew("host"), anew("m")].concat());
    let generation = |bench: &Bench, name: &str| {
        bench.device.world().modules[name].env("IOTEDGE_MODULEGENERATIONID").map(str::to_owned)
    };
    assert_eq!(generation(&bench, "host").as_deref(), Some("g3"));
    assert_eq!(generation(&bench, "m").as_deref(), Some("g4"));
    assert_eq!(bench.round().await, Vec::<String>::new());
    assert_eq!(bench.agent.status(), (200, ""));
}

#[tokio::test]
async fn an_identity_that_was_made_anew_by_somebody_else_is_noticed_even_without_the_agents_state()
{
    let mut bench = Bench::new();
    bench.deploy(&json!({"m": module("1")}));
    bench.round().await;
    std::fs::remove_dir_all(bench.folder.path().join("state")).unwrap();
    bench.device.world().identities.insert("m".into(), "other".into());
    bench.restart_agent();
    assert!(bench.round().await.contains(&"PUT /modules/m".to_owned()));
    assert_eq!(bench.device.world().modules["m"].env("IOTEDGE_MODULEGENERATIONID"), Some("other"));
    assert_eq!(bench.state("m"), Some("running"));
    assert_eq!(bench.round().await, Vec::<String>::new());
}

#[tokio::test]
async fn identities_that_cannot_be_listed_change_nothing_and_fail_nothing() {
    let mut bench = Bench::new();
    bench.deploy(&json!({"m": module("1")}));
    bench.round().await;
    bench.device.world().identities.clear();
    bench.device.break_call("GET /identities/", "identityd is away");
    for _ in 0..3 {
        bench.device.pass(600);
        assert_eq!(bench.round().await, Vec::<String>::new());
        assert_eq!(bench.agent.status(), (200, ""));
    }
    bench.device.exit("m", 1);
    bench.device.pass(11);
    assert_eq!(bench.round().await, ["POST /modules/m/start"]);
    assert_eq!(bench.state("m"), Some("running"));
}

#[tokio::test]
async fn a_daemon_that_is_away_is_reported_and_nothing_is_concluded_from_it() {
    let mut bench = Bench::new();
    bench.deploy(&json!({"m": module("1")}));
    bench.round().await;
    bench.device.break_call("GET /modules", "busy");
    assert_eq!(bench.round().await, Vec::<String>::new());
    assert_eq!(bench.agent.status(), (500, "cannot list modules: busy (status 500)"));
    assert_eq!(bench.reported()["modules"]["m"]["runtimeStatus"], "unknown");
    bench.device.mend();
    assert_eq!(bench.round().await, Vec::<String>::new());
    assert_eq!(bench.agent.status(), (200, ""));
    assert_eq!(bench.reported()["modules"]["m"]["runtimeStatus"], "running");
}

#[tokio::test]
async fn a_damaged_state_file_is_set_aside_and_the_device_goes_on() {
    let mut bench = Bench::new();
    bench.deploy(&json!({"m": module("1")}));
    bench.round().await;
    let file = bench.folder.path().join("state/modules.json");
    std::fs::write(&file, "garbage").unwrap();
    bench.restart_agent();
    assert_eq!(bench.round().await, Vec::<String>::new());
    assert!(bench.folder.path().join("state/modules.json.damaged-1").exists());
}

#[tokio::test]
async fn a_state_folder_that_others_can_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o777)).unwrap();
    let open = || {
        let settings = Settings::from_variables(variables(folder.path(), &device)).unwrap();
        Agent::open(settings, Box::new(|| Timestamp(0))).err().map(|error| error.to_string())
    };
    assert!(open().unwrap().contains("that nobody else can write to; set EDGEKEEP_AGENT_STATE"));
    std::fs::remove_dir(&state).unwrap();
    std::os::unix::fs::symlink(folder.path(), &state).unwrap();
    assert!(open().unwrap().contains("that nobody else can write to"));
    std::fs::remove_file(&state).unwrap();
    assert_eq!(open(), None);
}

#[tokio::test]
async fn the_program_starts_at_once_and_leaves_the_modules_running_when_it_is_terminated() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    write_manifest(folder.path(), &json!({"m": module("1")}));
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_edgekeep-agent"))
        .env_clear()
        .envs(variables(folder.path(), &device))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    device.called("POST /modules/m/start").await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), child.wait()).await;
    assert!(ended.expect("it ends").unwrap().success());
    assert_eq!(device.world().modules["m"].state, "running");
    let reported: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("state/reported.json")).unwrap())
            .unwrap();
    assert_eq!(
        reported["lastDesiredStatus"],
        json!({"code": 406, "description": "Agent is not running"})
    );
}

#[tokio::test]
async fn the_program_says_what_is_missing_in_its_environment() {
    let child = tokio::process::Command::new(env!("CARGO_BIN_EXE_edgekeep-agent"))
        .env_clear()
        .output()
        .await
        .unwrap();
    assert_eq!(child.status.code(), Some(1));
    let text = String::from_utf8(child.stderr).unwrap();
    assert!(text.contains("IOTEDGE_WORKLOADLISTEN_MNTURI is not set"), "{text}");
}
