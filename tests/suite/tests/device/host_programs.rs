//! Programs of the host with a module's identity: confined host modules, services that
//! something else starts, and host agents that look after them. Other users and cgroups
//! take root.

mod updates;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use edgekeep_core::attestation::DenyReason;
use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Caller, Device, VERSION, program, sha256_of, wait_for};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Users that nothing else on the machine has.
const GUEST: u32 = 64_711;
const STRANGER: u32 = 64_712;

fn versioned(target: &str) -> String {
    format!("{target}?{VERSION}")
}

fn am_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root becomes other users and makes cgroups");
    }
    root
}

/// A folder that other users can enter.
fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("ekh-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// A copy of a program that differs from it and from other variants in what it hashes to,
/// and in nothing else.
fn variant(of: &str, folder: &Path, name: &str, mark: &str) -> PathBuf {
    let path = folder.join(name);
    let mut bytes = std::fs::read(program(of)).unwrap();
    bytes.extend_from_slice(mark.as_bytes());
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn host_module(name: &str, path: &Path, more: &str) -> String {
    let sha256 = sha256_of(path);
    format!("[host_modules.{name}]\nexecutable = {path:?}\nsha256 = \"{sha256}\"\n{more}\n")
}

fn log_of(device: &Device, module: &str) -> String {
    let bytes = device.ask("GET", &versioned(&format!("/modules/{module}/logs")), None).body;
    String::from_utf8_lossy(&bytes).into_owned()
}

fn state_of(device: &Device, module: &str) -> Value {
    device.ask("GET", &versioned(&format!("/modules/{module}")), None).expect(200)
}

/// Runs a host agent that does one thing and ends.
fn run_once(device: &Device, module: &str, image: &str, arguments: &[&str]) -> (String, Value) {
    let generation = device.create_identity(module);
    let mut spec = device.spec(module, image, &generation);
    spec["config"]["settings"]["createOptions"] = json!({ "Cmd": arguments });
    device.create_and_start(spec);
    let state = wait_for("the host agent's end", || {
        let state = state_of(device, module);
        (state["status"]["runtimeStatus"]["status"] != "running").then_some(state)
    });
    (log_of(device, module), state)
}

#[test]
fn a_host_module_of_another_user_has_its_identity_and_what_was_granted_and_no_more() {
    if !am_root() {
        return;
    }
    let own = folder();
    let (open, closed) = (own.path().join("open"), own.path().join("closed"));
    for path in [&open, &closed] {
        std::fs::write(path, "x").unwrap();
    }
    let calls = program("calls");
    let table = host_module(
        "guest",
        &calls,
        &format!(
            "user = {GUEST}\ngroup = {GUEST}\ncapabilities = [\"net_bind_service\"]\nread = [{open:?}]\nwrite = [\"/tmp\"]\n\
             memory_max = \"256M\"\npids_max = 32\nnofile = 99\nenv = {{ PLANT = \"7\" }}"
        ),
    );
    // All of /tmp holds the FIFOs of the test; so the closed file lies elsewhere.
    let device = Device::builder().tables(&table).start();
    let guest = device.add_caller_as("guest", "guest", Some(GUEST));
    let _ = guest.sign().expect(200);
    let me = guest.call("GET", "/identity?api-version=2022-08-03", None).expect(200);
    assert_eq!((&me["moduleId"], &me["deviceId"]), (&json!("guest"), &json!("press-04")));

    let report = guest.report(&[&open, Path::new("/etc/passwd"), Path::new("/usr/lib/os-release")]);
    let status = &report["status"];
    assert_eq!(status["Uid"], format!("{GUEST} {GUEST} {GUEST} {GUEST}"));
    assert_eq!(status["Gid"], format!("{GUEST} {GUEST} {GUEST} {GUEST}"));
    assert_eq!(
        (&status["Groups"], &status["NoNewPrivs"], &status["Seccomp"]),
        (&json!(""), &json!("1"), &json!("2"))
    );
    for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0000000000000400", "{set}");
    }
    assert_eq!(
        report["opened"],
        json!(["open", "PermissionDenied", "open"]),
        "libraries are open to all"
    );
    assert_eq!((&report["files"], &report["env"]["PLANT"]), (&json!("99"), &json!("7")));
    let description =
        state_of(&device, "guest")["status"]["runtimeStatus"]["description"].to_string();
    assert!(
        description.contains("memory_max by cgroup") && description.contains("nofile by RLIMIT"),
        "{description}"
    );

    // Its socket folder is its own, and the folders above show nothing.
    let folder = device.root().module_socket_folder().join("guest");
    let metadata = std::fs::metadata(&folder).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (GUEST, 0o700));
    let intruder = |uid: u32, socket: &Path| {
        let generation =
            device.cloud().state().devices["press-04"].modules["guest"].generation_id.clone();
        let mut command = Command::new(program("intruder"));
        command
            .arg("--socket")
            .arg(socket)
            .args(["--module", "guest", "--genid", &generation])
            .uid(uid)
            .gid(uid);
        let output = command.output().unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(0), "{text}");
        text
    };
    let socket = device.module_socket("guest");
    let before = device.status().refusal_count;
    let text = intruder(STRANGER, &socket);
    assert!(text.contains("Permission denied"), "{text}");
    assert_eq!(device.status().refusal_count, before, "a stranger does not even reach the socket");
    // The same user reaches it and is not the module.
    intruder(GUEST, &socket);
    assert_eq!(device.status().refusals[0].reason, DenyReason::NotInModule);
    // Nor the sockets of the agent, whose user is another.
    let text = intruder(GUEST, &device.module_socket("edgeAgent"));
    assert!(text.contains("Permission denied"), "{text}");
}

#[test]
fn what_cannot_be_granted_is_a_400_that_says_why() {
    let calls = program("calls");
    let device = Device::builder()
        .top("allow_root_host_modules = true")
        .tables(&host_module("nobody", &calls, "user = \"no-such-user\""))
        .start();
    let generation = device.create_identity("m1");
    let spec = device.spec("m1", "nobody", &generation);
    let answer = device.agent().manage("POST", &versioned("/modules"), Some(spec));
    answer.expect_error(400, "there is no user \"no-such-user\"");
}

/// The generation of an identity that moduled makes by itself.
fn wait_for_identity(device: &Device, module: &str) -> String {
    let told = format!("service of the host has an identity service={module}");
    wait_for("the service's identity", || {
        device.log(Daemon::Moduled).contains(&told).then_some(())
    });
    device.cloud().state().devices["press-04"].modules[module].generation_id.clone()
}

/// A process of the host that the test starts, as something else than moduled would.
struct Service(Child);

impl Service {
    fn start(
        device: &Device,
        caller: &Caller,
        executable: &Path,
        user: u32,
        cgroup: Option<&Path>,
    ) -> Self {
        caller.give_to(user);
        let module = caller.module();
        let generation = wait_for_identity(device, module);
        let enter = cgroup.map_or_else(String::new, |group| {
            format!("echo $$ > {:?} || exit; ", group.join("cgroup.procs"))
        });
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            &format!(
                "{enter}exec setpriv --reuid {user} --regid {user} --clear-groups {executable:?}"
            ),
        ]);
        command.env(
            "IOTEDGE_WORKLOADURI",
            format!("unix://{}", device.module_socket(module).display()),
        );
        command.env("IOTEDGE_MODULEID", module).env("IOTEDGE_MODULEGENERATIONID", generation);
        command.envs(caller.environment()).stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_service_that_something_else_started_is_known_by_its_user_and_executable() {
    if !am_root() {
        return;
    }
    let own = folder();
    let registered = variant("calls", own.path(), "collector", "registered");
    let other = variant("calls", own.path(), "other", "other");
    let sha256 = sha256_of(&registered);
    let device = Device::builder()
        .tables(&format!(
            "[host_services.collector]\nuser = {GUEST}\nexecutable = {registered:?}\nsha256 = \"{sha256}\"\n"
        ))
        .start();
    let caller = Caller::new(&own.path().join("calls"), "collector");
    let listed = |runs: &str| {
        let state = state_of(&device, "collector");
        let found = (state["type"].clone(), state["status"]["runtimeStatus"]["status"].clone());
        assert_eq!(found, (json!("service"), json!(runs)), "{state}");
    };
    listed("stopped");
    {
        let _service = Service::start(&device, &caller, &registered, GUEST, None);
        let _ = caller.sign().expect(200);
        let me = caller.call("GET", "/identity?api-version=2022-08-03", None).expect(200);
        assert_eq!(me["moduleId"], "collector");
        listed("running");
    }
    for (executable, user, reason) in
        [(&other, GUEST, DenyReason::ExecutableChanged), (&registered, 0, DenyReason::OtherUser)]
    {
        let _service = Service::start(&device, &caller, executable, user, None);
        device.assert_refused(&caller.sign(), "collector", reason);
    }
    // Another module's identity is not to be had on its socket.
    {
        let _service = Service::start(&device, &caller, &registered, GUEST, None);
        let target = "/modules/$edgeAgent/genid/g/sign?api-version=2020-07-07";
        let body = json!({ "keyId": "primary", "algo": "HMACSHA256", "data": "ZGF0YQ==" });
        device.assert_refused(
            &caller.call("POST", target, Some(body)),
            "$edgeAgent",
            DenyReason::SocketOfAnotherModule,
        );
    }
    let folder = device.root().module_socket_folder().join("collector");
    assert_eq!(owner_and_mode(&folder), Some((GUEST, 0o700)));
}

fn owner_and_mode(folder: &Path) -> Option<(u32, u32)> {
    std::fs::symlink_metadata(folder)
        .ok()
        .map(|metadata| (metadata.uid(), metadata.mode() & 0o7777))
}

#[test]
fn the_sockets_of_a_service_and_of_a_host_agent_are_repaired_for_whom_they_are() {
    if !am_root() {
        return;
    }
    let own = folder();
    let registered = variant("calls", own.path(), "collector", "registered");
    let sha256 = sha256_of(&registered);
    let tables = [
        host_module(
            "updater",
            &registered,
            &format!(
                "user = {STRANGER}\ngroup = {STRANGER}\nmanagement = true\nwrite = [\"/tmp\"]"
            ),
        ),
        format!(
            "[host_services.collector]\nuser = {GUEST}\nexecutable = {registered:?}\nsha256 = \"{sha256}\"\n"
        ),
        "[host_services.open]\nunit = \"edgekeep-test-none.service\"\n".to_owned(),
    ];
    let device = Device::builder().tables(&tables.concat()).start();
    let caller = Caller::new(&own.path().join("calls"), "collector");
    let service = Service::start(&device, &caller, &registered, GUEST, None);
    let _ = caller.sign().expect(200);
    let updater = device.add_caller_as("updater", "updater", Some(STRANGER));
    let folders = device.root().module_socket_folder();
    let expected =
        [("collector", (GUEST, 0o700)), ("updater", (STRANGER, 0o700)), ("open", (0, 0o755))];
    let all_as_expected = || {
        expected
            .iter()
            .all(|(name, found)| owner_and_mode(&folders.join(name)) == Some(*found))
            .then_some(())
    };

    for (name, _) in expected {
        std::fs::remove_dir_all(folders.join(name)).unwrap();
    }
    wait_for("the folders to be made anew", all_as_expected);
    wait_for("the service to be served", || caller.try_signed().map(drop));
    wait_for("the host agent to be served", || {
        let target = versioned("/approved-digests");
        Some(updater.manage("GET", &target, None)).filter(|answer| answer.status == 200)
    });
    // Opened to everybody, or given to another user.
    for (name, _) in expected {
        std::fs::set_permissions(folders.join(name), std::fs::Permissions::from_mode(0o777))
            .unwrap();
        std::os::unix::fs::chown(folders.join(name), Some(65_534), None).unwrap();
    }
    wait_for("the folders to be closed again", all_as_expected);

    // What is known of a service is shown as it is of a module.
    let seen = |query: &str| {
        device.ask("GET", &versioned("/attestation").replace('?', &format!("?{query}&")), None)
    };
    seen("module=collector").expect_error(409, "service of the host");
    let pid = service.0.id();
    let served = seen(&format!("pid={pid}")).expect(200);
    assert_eq!(
        (&served["module"], &served["allowed"]),
        (&json!("collector"), &json!(true)),
        "{served}"
    );
    assert_eq!(served["facts"]["state"], "host");
    let refused = seen(&format!("module=open&pid={pid}")).expect(200);
    let failed = refused["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["passed"] == false)
        .unwrap();
    assert_eq!(failed["reason"], "not-in-unit", "{refused}");
}

#[test]
fn a_service_is_not_the_agents_to_see_or_to_change() {
    let device = Device::builder()
        .tables("[host_services.collector]\nunit = \"collector.service\"\n")
        .start();
    let _ = wait_for_identity(&device, "collector");
    let agent = device.agent();
    let names = |list: Value| -> Vec<String> {
        let modules = list["modules"].as_array().or(list["identities"].as_array()).unwrap().clone();
        let name = |module: &Value| {
            module["name"].as_str().or(module["moduleId"].as_str()).unwrap().to_owned()
        };
        modules.iter().map(name).collect()
    };
    // An agent removes what its deployment does not name.
    assert_eq!(names(agent.manage("GET", &versioned("/modules"), None).expect(200)), ["edgeAgent"]);
    assert_eq!(
        names(device.ask("GET", &versioned("/modules"), None).expect(200)),
        ["collector", "edgeAgent"]
    );
    assert_eq!(
        names(agent.manage("GET", &versioned("/identities"), None).expect(200)),
        ["$edgeAgent"]
    );
    let spec = device.spec("collector", "calls", "g");
    for (method, target, body) in [
        ("POST", "/modules/collector/start", None),
        ("POST", "/modules/collector/stop", None),
        ("POST", "/modules/collector/restart", None),
        ("DELETE", "/modules/collector", None),
        ("POST", "/modules", Some(spec.clone())),
        ("PUT", "/modules/collector", Some(spec)),
        ("POST", "/identities", Some(json!({ "moduleId": "collector" }))),
        ("DELETE", "/identities/collector", None),
    ] {
        let answer = agent.manage(method, &versioned(target), body);
        answer.expect_error(409, "systemd's unit collector.service");
    }
    assert!(device.cloud().state().devices["press-04"].modules.contains_key("collector"));
}

/// A cgroup made by hand where systemd would make one, in the hierarchy that is looked
/// at.
struct UnitGroup {
    root: PathBuf,
    group: PathBuf,
}

impl UnitGroup {
    fn make(path: &str) -> Option<Self> {
        let v1 = Path::new("/sys/fs/cgroup/pids");
        let root = if v1.join("cgroup.procs").exists() { v1 } else { Path::new("/sys/fs/cgroup") };
        let group = root.join(path);
        std::fs::create_dir_all(&group).ok()?;
        group.join("cgroup.procs").exists().then(|| Self { root: root.to_owned(), group })
    }
}

impl Drop for UnitGroup {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // A process that was just ended leaves its group a moment later.
            wait_for("the unit's group to be empty", || std::fs::remove_dir(&self.group).ok());
        }
        let above = self.group.ancestors().skip(1).take_while(|above| *above != self.root);
        // What others use stays.
        above.for_each(|above| _ = std::fs::remove_dir(above));
    }
}

#[test]
fn a_service_is_known_by_the_cgroup_of_its_systemd_unit_in_any_slice_and_by_no_look_alike() {
    let unit = format!("edgekeep-test@{}.service", std::process::id());
    let number = std::process::id();
    let groups = [
        (format!("system.slice/system-edgekeep\\x2dtest.slice/{unit}"), true),
        (format!("ekt{number}.slice/ekt{number}-line7.slice/{unit}/worker"), true),
        // A user's own systemd, a container, another unit, and slices that are not
        // nested.
        (format!("user.slice/user-{GUEST}.slice/user@{GUEST}.service/app.slice/{unit}"), false),
        (format!("user.slice/user-{GUEST}.slice/user@{GUEST}.service/system.slice/{unit}"), false),
        (format!("ekt{number}/system.slice/{unit}"), false),
        (format!("ekt{number}.slice/other.service/{unit}"), false),
        (format!("ekt{number}-line7.slice/{unit}"), false),
    ];
    let own = folder();
    let device = Device::builder()
        .tables(&format!("[host_services.collector]\nunit = \"{unit}\"\n"))
        .start();
    let caller = Caller::new(&own.path().join("calls"), "collector");
    for (path, genuine) in groups {
        let (true, Some(group)) = (am_root(), UnitGroup::make(&path)) else {
            eprintln!("skipped: no cgroup can be made here");
            return;
        };
        let _service =
            Service::start(&device, &caller, &program("calls"), GUEST, Some(&group.group));
        if genuine {
            let _ = caller.sign().expect(200);
            let status = &state_of(&device, "collector")["status"]["runtimeStatus"]["status"];
            assert_eq!(status, "running", "{path}");
        } else {
            device.assert_refused(&caller.sign(), "collector", DenyReason::NotInUnit);
        }
    }
    let _service = Service::start(&device, &caller, &program("calls"), GUEST, None);
    device.assert_refused(&caller.sign(), "collector", DenyReason::NotInUnit);
}

#[test]
fn the_update_agent_replaces_a_program_and_has_it_approved_and_nobody_else_can() {
    let own = folder();
    let target = variant("calls", own.path(), "collector", "version 1");
    let downloads = folder();
    let new = variant("calls", downloads.path(), "collector-2", "version 2");
    let updater = program("update-agent");
    let grants = |approves: &str| {
        format!(
            "approves = [{approves}]\nread = [{:?}]\nwrite = [{:?}]\nseccomp = \"strict\"",
            downloads.path(),
            own.path()
        )
    };
    let tables = [
        host_module("collector", &target, ""),
        host_module("updater", &updater, &grants("\"collector\"")),
        host_module("greedy", &updater, &grants("\"greedy\"")),
    ];
    let mut device = Device::builder().tables(&tables.concat()).start();
    let collector = device.add_caller_as("collector", "collector", None);
    let _ = collector.sign().expect(200);
    let old_process = device.processes_of("collector");
    let [old, two] = [&target, &new].map(|path| sha256_of(path));
    let arguments = ["collector", "collector", target.to_str().unwrap(), new.to_str().unwrap()];

    // One that is trusted with another name is refused, and puts the old file back.
    let (log, state) = run_once(&device, "greedy", "greedy", &arguments);
    assert_ne!(state["status"]["exitStatus"]["statusCode"], "0", "{log}");
    assert_eq!(sha256_of(&target), old, "{log}");
    device.assert_latest_refusal("greedy", DenyReason::NotGranted);
    assert!(device.status().approvals.is_empty());

    let (log, state) = run_once(&device, "updater", "updater", &arguments);
    assert_eq!(state["status"]["exitStatus"]["statusCode"], "0", "{log}");
    for line in ["I am updater of press-04", "request signed with 32 bytes", "runs the new program"]
    {
        assert!(log.contains(line), "{log}");
    }
    let approvals = device.status().approvals;
    assert_eq!(approvals.len(), 1);
    assert_eq!(
        (approvals[0].name.as_str(), approvals[0].approved_by.as_str()),
        ("collector", "updater")
    );
    assert_eq!(approvals[0].sha256, format!("sha256:{two}"));
    let trail =
        std::fs::read_to_string(device.root().state_folder(Daemon::Moduled).join("audit.jsonl"))
            .unwrap();
    assert!(trail.contains(&format!("updater approved sha256:{two}")), "{trail}");

    // The module is another process of the new content, with the same identity.
    assert_eq!(
        state_of(&device, "collector")["config"]["settings"]["imageHash"],
        format!("sha256:{two}")
    );
    assert_ne!(device.processes_of("collector"), old_process);
    let _ = collector.sign().expect(200);

    // It survives the daemon; and a content that nobody approved does not start.
    device.kill(Daemon::Moduled);
    device.start(Daemon::Moduled);
    wait_for("the module to be measured again", || collector.try_signed().map(drop));
    std::fs::copy(
        variant("calls", downloads.path(), "evil", "version 3"),
        downloads.path().join("evil-2"),
    )
    .unwrap();
    std::fs::rename(downloads.path().join("evil-2"), &target).unwrap();
    device
        .ask("POST", &versioned("/modules/collector/restart"), None)
        .expect_error(400, "is registered");
    let _ = collector.sign().expect(200);
}

#[test]
fn an_approval_is_for_the_content_that_is_there_and_comes_through_the_agents_own_socket() {
    let own = folder();
    let target = variant("calls", own.path(), "collector", "version 1");
    let tables = [
        host_module("collector", &target, ""),
        host_module("updater", &program("calls"), "approves = [\"collector\"]"),
    ];
    let device = Device::builder().tables(&tables.concat()).start();
    let updater = device.add_caller_as("updater", "updater", None);
    let put = |name: &str, sha256: &str| {
        updater.manage(
            "PUT",
            &versioned(&format!("/approved-digests/{name}")),
            Some(json!({ "sha256": sha256 })),
        )
    };
    let absent = put("collector", &"ab".repeat(32));
    absent.expect_error(409, "is registered");
    put("collector", "abc").expect_error(400, "sha256");
    device.assert_refused(
        &put("edgekeep-agent", &"ab".repeat(32)),
        "updater",
        DenyReason::NotGranted,
    );
    let _ = put("collector", &sha256_of(&target)).expect(200);
    // What is not a host agent's business is not there.
    for (method, target) in [
        ("POST", "/modules/collector/stop"),
        ("DELETE", "/modules/collector"),
        ("GET", "/identities"),
    ] {
        let status = updater.manage(method, &versioned(target), None).status;
        assert!(matches!(status, 400 | 404), "{method} {target}: {status}");
    }
    device.assert_refused(
        &updater.manage("POST", &versioned("/modules/edgeAgent/restart"), None),
        "updater",
        DenyReason::NotGranted,
    );
    // Whoever reaches the socket and is not the updater gets nothing from it: not even
    // this test, which is root.
    let socket = device.root().module_socket_folder().join("updater/mgmt.sock");
    let body = json!({ "sha256": sha256_of(&target) });
    for (method, target, body) in [
        ("GET", "/status", None),
        ("PUT", "/approved-digests/collector", Some(&body)),
        ("GET", "/modules", None),
    ] {
        let answer =
            edgekeep_testkit::http::call(&socket, method, &versioned(target), body).unwrap();
        device.assert_refused(&answer, "updater", DenyReason::NotInModule);
    }
    // And there is no approving on the socket that is open to operators.
    let status = device.ask("PUT", &versioned("/approved-digests/collector"), Some(&body)).status;
    assert!(matches!(status, 400 | 404), "{status}");
}

#[test]
fn the_security_monitor_tells_refusals_and_key_uses() {
    let monitor = program("security-monitor");
    let device = Device::builder()
        .tables(&host_module(
            "monitor",
            &monitor,
            "management = true\nread = []\nseccomp = \"strict\"",
        ))
        .start();
    let _ = device.add_caller("m1").sign().expect(200);
    let refused = device.ask("POST", &versioned("/identities"), Some(&json!({ "moduleId": "x" })));
    device.assert_refused(&refused, "$edgeAgent", DenyReason::NotInModule);
    let keyd = device.root().keyd_socket();
    let (log, state) = run_once(
        &device,
        "monitor",
        "monitor",
        &["--once", "--keyd-socket", keyd.to_str().unwrap()],
    );
    assert_eq!(state["status"]["exitStatus"]["statusCode"], "0", "{log}");
    assert!(log.contains("\"event\":\"refusal\"") && log.contains("not-in-module"), "{log}");
    assert!(log.contains("\"event\":\"key-use\""), "{log}");

    let (log, _) = run_once(&device, "scraped", "monitor", &["--once", "--openmetrics"]);
    assert!(log.contains("edgekeep_refusals_total 1") && log.contains("# EOF"), "{log}");
}

#[test]
fn a_module_that_is_to_run_always_is_started_again_and_one_that_was_stopped_is_not() {
    let calls = program("calls");
    let device =
        Device::builder().tables(&host_module("steady", &calls, "restart = \"always\"")).start();
    let steady = device.add_caller_as("steady", "steady", None);
    let _ = steady.sign().expect(200);
    let before = device.processes_of("steady");
    for pid in &before {
        let pid = rustix::process::Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    let after = wait_for("another process", || {
        Some(device.processes_of("steady")).filter(|now| now.len() == 1 && *now != before)
    });
    let _ = steady.sign().expect(200);
    let _ = device.ask("POST", &versioned("/modules/steady/stop"), None).expect(204);
    assert_eq!(device.processes_of("steady"), Vec::<u32>::new(), "{after:?}");
    assert_eq!(state_of(&device, "steady")["status"]["runtimeStatus"]["status"], "stopped");
}
