//! Attacks on a module that is a container.

use std::process::Output;

use edgekeep_core::attestation::DenyReason;
use edgekeep_testkit::{Caller, Device, Engine, Image, VERSION, http, wait_for};
use serde_json::{Value, json};

use crate::{image, programs, wait_for_edge_ca, with_engine};

const SOCKET: &str = "/var/run/iotedge/workload.sock";

/// An engine with an image and a device whose agent is a host program. The device ends
/// first.
struct Site {
    device: Device,
    image: Image,
    engine: Engine,
}

/// A container module that is served.
struct Module {
    name: String,
    caller: Caller,
}

impl Site {
    fn or_skip() -> Option<Self> {
        Self::with(|_| String::new())
    }

    /// With further tables of the configuration.
    fn with(tables: impl FnOnce(&Engine) -> String) -> Option<Self> {
        let engine = Engine::or_skip()?;
        let image = image(&engine);
        let device = with_engine(&engine).tables(&tables(&engine)).start();
        Some(Self { device, image, engine })
    }

    /// With `module` under this policy.
    fn with_policy(module: &str, policy: &str) -> Option<Self> {
        Self::with(|engine| format!("[module_policies]\n{:?} = {policy:?}", engine.name(module)))
    }

    fn module(&self, name: &str) -> Module {
        let name = self.engine.name(name);
        let (caller, spec) = self.device.container_caller(&name, self.image.name());
        self.device.create_and_start(spec);
        let _ = caller.sign().expect(200);
        Module { name, caller }
    }

    /// A module that runs a shell script, of which `{call}` is what the intruder is told
    /// to ask for.
    fn scripted(&self, name: &str, script: &str) -> String {
        let name = self.engine.name(name);
        let generation = self.device.create_identity(&name);
        let mut spec = self.device.container_spec(&name, self.image.name(), &generation);
        let call = format!("--socket {SOCKET} --module {name} --genid {generation}");
        let options = &mut spec["config"]["settings"]["createOptions"];
        options["Entrypoint"] = json!(["/bin/sh"]);
        options["Cmd"] = json!(["-c", script.replace("{call}", &call)]);
        self.device.create_and_start(spec);
        name
    }

    fn manage(&self, method: &str, target: &str, body: Option<Value>) -> http::Answer {
        self.device.agent().manage(method, &format!("{target}?{VERSION}"), body)
    }

    fn inspected(&self, container: &str, what: &str) -> String {
        self.engine.says(&["inspect", "-f", what, container])
    }

    fn generation(&self, module: &str) -> String {
        self.device.cloud().state().devices["press-04"].modules[module].generation_id.clone()
    }

    fn sign_as(&self, module: &str) -> (String, Value) {
        let target = format!("/modules/{module}/genid/{}/sign?{VERSION}", self.generation(module));
        (target, json!({ "data": "ZGF0YQ==" }))
    }

    /// The intruder's command line: it asks for everything of a module, at the place
    /// where modules have their socket.
    fn intruder(&self, module: &str) -> Vec<String> {
        let generation = self.generation(module);
        let words = [
            "/bin/intruder",
            "--socket",
            SOCKET,
            "--module",
            module,
            "--genid",
            &generation,
            "--json",
        ];
        words.map(str::to_owned).into()
    }

    /// The mount that gives a container the module's socket.
    fn socket_of(&self, module: &str) -> String {
        format!(
            "{}:/var/run/iotedge",
            self.device.module_socket(module).parent().unwrap().display()
        )
    }

    /// Returns the output of the intruder in a module's container, into which the
    /// engine's `exec` brings it.
    fn exec(&self, module: &Module) -> String {
        let script = format!("exec {} > /calls/said 2>&1", quoted(&self.intruder(&module.name)));
        self.engine.brought_in(&module.name, &module.caller, &script)
    }

    /// Returns the output of a shell in another container, of the same image and with the
    /// module's socket.
    fn stranger(&self, module: &str, options: &[&str], command: &str) -> String {
        let (name, mount) = (self.engine.name("stranger"), self.socket_of(module));
        self.device.remember_container(&name);
        let first = ["run", "--rm", "--name", &name, "-v", &mount, "--entrypoint", "/bin/sh"];
        said(&self.engine.docker(&[&first, options, &[self.image.name(), "-c", command]].concat()))
    }

    /// Has the engine's `exec` start a shell that leaves `command` behind and ends; gives
    /// what that said.
    fn left_behind(&self, module: &Module, before: &str, command: &[String]) -> String {
        let script = format!("{before} {} --when-orphaned > /calls/said 2>&1 &", quoted(command));
        self.engine.brought_in(&module.name, &module.caller, &script)
    }

    /// Puts a container in the place of a module's: its name, its labels, its environment
    /// and its mounts, made with the engine's `verb` from what the image's name means
    /// now.
    fn replace(&self, name: &str, caller: &Caller, verb: &[&str]) {
        let (mount, calls) =
            (self.socket_of(name), format!("{}:/calls", caller.folder().display()));
        let labels =
            self.inspected(name, "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}}\n{{end}}");
        let environment = self.inspected(name, "{{range .Config.Env}}{{.}}\n{{end}}");
        let _ = self.engine.says(&["rm", "-f", name]);
        let mut arguments =
            [verb, &["--name", name, "--network", "none", "-v", &mount, "-v", &calls]].concat();
        labels
            .lines()
            .filter(|line| !line.is_empty())
            .for_each(|line| arguments.extend(["--label", line]));
        environment
            .lines()
            .filter(|line| !line.is_empty())
            .for_each(|line| arguments.extend(["-e", line]));
        arguments.push(self.image.name());
        let _ = self.engine.says(&arguments);
    }

    /// It may call before the engine's event about its start has come: refused all the
    /// same, as one that does not run.
    fn assert_refused_as_changed(&self, caller: &Caller) {
        wait_for("the engine's word about the container", || {
            let refused = caller.sign();
            assert_eq!(refused.status, 403);
            let reason = self.device.status().refusals[0].reason;
            assert!(
                matches!(reason, DenyReason::ContainerChanged | DenyReason::NotRunning),
                "{reason}"
            );
            (reason == DenyReason::ContainerChanged).then_some(())
        });
    }
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn quoted(command: &[String]) -> String {
    command.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ")
}

/// Every try of the intruder was refused, and it came to its end.
#[track_caller]
fn assert_all_refused(said: &str) {
    assert!(said.contains(r#"{"outcome":"refused"}"#), "{said}");
}

#[test]
fn what_the_engine_brings_into_the_container_is_refused_unless_the_policy_allows_it() {
    let Some(site) = Site::with_policy("lax", "process") else { return };
    wait_for_edge_ca(&site.device);
    let m1 = site.module("m1");
    assert_all_refused(&site.exec(&m1));
    site.device.assert_latest_refusal(&m1.name, DenyReason::NotADescendant);
    let lax = site.module("lax");
    let granted = site.exec(&lax);
    assert!(granted.contains(r#"{"outcome":"granted"}"#), "{granted}");
    let _ = m1.caller.sign().expect(200);
}

#[test]
fn another_container_with_the_modules_socket_is_refused() {
    let Some(site) = Site::or_skip() else { return };
    let m1 = site.module("m1");
    let command = quoted(&site.intruder(&m1.name));
    // The same image, the same program, the same variables if it likes: another
    // container. It may even see the module's processes.
    let namespace = format!("container:{}", m1.name);
    for options in [&["--network", "none"][..], &["--network", "none", "--pid", &namespace]] {
        assert_all_refused(&site.stranger(&m1.name, options, &command));
        site.device.assert_latest_refusal(&m1.name, DenyReason::NotInModule);
    }
    // With all that is mounted in the module, its socket among it.
    let name = site.engine.name("volumes");
    site.device.remember_container(&name);
    let (image, from) = (site.image.name(), m1.name.as_str());
    let run = [
        "run",
        "--rm",
        "--name",
        &name,
        "--volumes-from",
        from,
        "--network",
        "none",
        "--entrypoint",
        "/bin/sh",
    ];
    assert_all_refused(&said(&site.engine.docker(&[&run[..], &[image, "-c", &command]].concat())));
    site.device.assert_latest_refusal(&m1.name, DenyReason::NotInModule);
    let _ = m1.caller.sign().expect(200);
}

#[test]
fn a_module_with_anothers_socket_mounted_gets_neither_identity() {
    let Some(site) = Site::or_skip() else { return };
    let device = &site.device;
    let m1 = site.module("m1");
    let m2 = site.engine.name("m2");
    let (second, mut spec) = device.container_caller(&m2, site.image.name());
    let folder = device.module_socket(&m1.name).parent().unwrap().display().to_string();
    let shared = device.root().legacy_workload_socket().display().to_string();
    let binds =
        spec["config"]["settings"]["createOptions"]["HostConfig"]["Binds"].as_array_mut().unwrap();
    binds.push(json!(format!("{folder}:/other")));
    let refused = site.manage("POST", "/modules", Some(spec.clone())).expect(400);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("create option HostConfig.Binds[1] is refused"),
        "{refused}"
    );
    // The shared socket is everybody's.
    spec["config"]["settings"]["createOptions"]["HostConfig"]["Binds"][1] =
        json!(format!("{shared}:/shared.sock"));
    device.create_and_start(spec);
    let _ = second.sign().expect(200);
    let (target, body) = site.sign_as(&m1.name);
    let refused = second.call("POST", &target, Some(body.clone()));
    device.assert_refused(&refused, &m1.name, DenyReason::SocketOfAnotherModule);
    let shared = std::path::Path::new("/shared.sock");
    let refused = second.call_at(shared, "POST", &target, Some(body)).unwrap();
    device.assert_refused(&refused, &m1.name, DenyReason::NotInModule);
    let (target, body) = site.sign_as(&m2);
    // By the shared socket it gets its own.
    let _ = second.call_at(shared, "POST", &target, Some(body)).unwrap().expect(200);
    let _ = m1.caller.sign().expect(200);
}

#[test]
fn a_process_of_the_host_is_refused_on_a_containers_socket() {
    let Some(site) = Site::or_skip() else { return };
    let device = &site.device;
    let m1 = site.module("m1");
    let (target, body) = site.sign_as(&m1.name);
    for socket in [device.module_socket(&m1.name), device.root().legacy_workload_socket()] {
        let refused = http::call(&socket, "POST", &target, Some(&body)).unwrap();
        device.assert_refused(&refused, &m1.name, DenyReason::NotInModule);
    }
    let host = device.add_caller("host");
    let refused =
        host.call_at(&device.module_socket(&m1.name), "POST", &target, Some(body)).unwrap();
    device.assert_refused(&refused, &m1.name, DenyReason::NotInModule);
    let _ = m1.caller.sign().expect(200);
}

#[test]
fn a_container_put_in_the_modules_place_is_refused() {
    let Some(site) = Site::or_skip() else { return };
    let m1 = site.module("m1");
    // Another image under the same tag does not touch what runs.
    site.engine.import_as(&programs(), "second", site.image.name());
    let _ = m1.caller.sign().expect(200);
    // A container of the module's name with its labels, made by whoever may speak to the
    // engine.
    site.replace(&m1.name, &m1.caller, &["run", "-d"]);
    site.assert_refused_as_changed(&m1.caller);
}

#[test]
fn with_the_strictest_policy_only_the_images_own_programs_are_served() {
    let Some(site) = Site::with_policy("strict", "executable") else { return };
    wait_for_edge_ca(&site.device);
    for (name, expected) in [("strict", ["1", "0"]), ("usual", ["1", "1"])] {
        // First the image's own copy, then the same bytes and one more in a file that the
        // image does not have.
        let script = "try() { $1 {call} > /dev/null; echo \"exit $?\"; }
             try /bin/intruder; cp /bin/intruder /tmp/copy; echo >> /tmp/copy; try /tmp/copy; exec sleep 1000";
        let name = site.scripted(name, script);
        let lines = wait_for("both tries", || {
            let text = site.engine.says(&["logs", &name]);
            let lines: Vec<String> = text
                .lines()
                .filter_map(|line| line.strip_prefix("exit "))
                .map(str::to_owned)
                .collect();
            (lines.len() == 2).then_some(lines)
        });
        assert_eq!(lines, expected, "{name}: 1 is granted, 0 refused");
        if expected == ["1", "0"] {
            site.device.assert_latest_refusal(&name, DenyReason::ExecutableChanged);
        }
    }
}

#[test]
fn a_detached_exec_that_became_a_child_of_the_first_process_is_refused() {
    let Some(mut site) = Site::or_skip() else { return };
    wait_for_edge_ca(&site.device);
    let m1 = site.module("m1");
    // In the session that the engine made, and in one of its own.
    for before in [&[][..], &["/bin/setsid".to_owned()][..]] {
        let command = [before, &site.intruder(&m1.name)].concat();
        assert_all_refused(&site.left_behind(&m1, "", &command));
        site.device.assert_latest_refusal(&m1.name, DenyReason::AfterExec);
    }
    // A daemon that is started anew asks the engine what happened before.
    site.device.kill(edgekeep_core::layout::Daemon::Moduled);
    site.device.start(edgekeep_core::layout::Daemon::Moduled);
    wait_for("the module to be served again", || m1.caller.try_signed().map(drop));
    assert_all_refused(&site.left_behind(&m1, "sleep 0.1;", &site.intruder(&m1.name)));
    site.device.assert_latest_refusal(&m1.name, DenyReason::AfterExec);
    let _ = m1.caller.sign().expect(200);
}

#[test]
fn a_modules_own_daemon_is_served_although_it_has_a_session_of_its_own() {
    let Some(site) = Site::or_skip() else { return };
    wait_for_edge_ca(&site.device);
    let script = "/bin/setsid /bin/intruder {call} > /dev/null; echo \"exit $?\"; exec sleep 1000";
    let name = site.scripted("m1", script);
    // Kept waiting until the engine could have told of an exec, of which there was none.
    let text = wait_for("the daemon's try", || {
        Some(site.engine.says(&["logs", &name])).filter(|text| !text.is_empty())
    });
    assert_eq!(text, "exit 1", "1 is granted");
}

#[test]
fn a_container_that_forges_the_modules_place_is_refused() {
    let Some(site) = Site::with_policy("lax", "process") else { return };
    wait_for_edge_ca(&site.device);
    for module in [site.module("m1"), site.module("lax")] {
        let name = &module.name;
        let id = site.inspected(name, "{{.Id}}");
        let pid = format!("container:{name}");
        let group = cgroup_of(&site.inspected(name, "{{.State.Pid}}"));
        let forged = format!("/evil{group}");
        for options in [
            // The host's /proc, and the module's network.
            &["-v", "/proc:/host/proc:ro", "--network", &pid][..],
            // A control group that is only named like the module's.
            &["--cgroup-parent", &forged, "--network", "none"],
            // In the module's own control group.
            &["--cgroup-parent", &group, "--network", "none"],
            // There, among its processes, and with the module's first process as its
            // parent.
            &["--cgroup-parent", &group, "--pid", &pid, "--network", "none"],
        ] {
            let mut command = quoted(&site.intruder(name));
            if options.contains(&"--pid") {
                command = format!("({command} --when-orphaned &) ; sleep 3");
            }
            assert_all_refused(&site.stranger(name, options, &command));
            site.device.assert_latest_refusal(name, DenyReason::NotInModule);
        }
        assert_eq!(site.inspected(name, "{{.Id}}"), id, "it was not touched");
    }
}

/// A process's place in the hierarchy that is looked at.
fn cgroup_of(pid: &str) -> String {
    let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    edgekeep_runtime::evidence::CgroupHierarchy::detect().path(&lines).unwrap().to_owned()
}

#[test]
fn a_tag_moved_between_create_and_start_changes_nothing_and_a_container_made_anew_is_refused() {
    let Some(site) = Site::or_skip() else { return };
    let create = |name: &str| {
        let name = site.engine.name(name);
        let (caller, spec) = site.device.container_caller(&name, site.image.name());
        let _ = site.manage("POST", "/modules", Some(spec)).expect(201);
        Module { name, caller }
    };
    let start =
        |module: &Module| site.manage("POST", &format!("/modules/{}/start", module.name), None);
    let (kept, anew) = (create("kept"), create("anew"));
    let registered = site.inspected(&kept.name, "{{.Image}}");
    site.engine.import_as(&programs(), "second", site.image.name());
    assert_ne!(
        site.engine.says(&["image", "inspect", "-f", "{{.Id}}", site.image.name()]),
        registered
    );
    let _ = start(&kept).expect(204);
    let _ = kept.caller.sign().expect(200);
    // Made anew by hand from what the tag names now, with everything else as it was.
    site.replace(&anew.name, &anew.caller, &["create"]);
    start(&anew).expect_error(409, "not made by this daemon");
    let _ = site.engine.says(&["start", &anew.name]);
    site.assert_refused_as_changed(&anew.caller);
}

#[test]
fn a_module_with_uid_0_is_not_the_agent_and_not_its_neighbour() {
    // Without the operator's grant the daemon's sockets are not even mounted.
    let grant = |name: &str| {
        format!("[modules.{name:?}.grant]\nbinds = [\"{{root}}/run/iotedge/mgmt.sock\"]")
    };
    let Some(site) = Site::with(|engine| grant(&engine.name("root"))) else { return };
    let (device, root) = (&site.device, site.engine.name("root"));
    let m1 = site.module("m1");
    let (second, mut spec) = device.container_caller(&root, site.image.name());
    let binds =
        spec["config"]["settings"]["createOptions"]["HostConfig"]["Binds"].as_array_mut().unwrap();
    for (from, to) in [
        (device.root().management_socket(), "/mgmt.sock"),
        (device.root().legacy_workload_socket(), "/shared.sock"),
    ] {
        binds.push(json!(format!("{}:{to}", from.display())));
    }
    spec["config"]["settings"]["createOptions"]["User"] = json!("0:0");
    device.create_and_start(spec);
    let _ = second.sign().expect(200);
    let at = |socket: &str, method: &str, target: &str, body| {
        second.call_at(std::path::Path::new(socket), method, target, body).unwrap()
    };
    for (method, target, body) in [
        ("POST", "/identities", Some(json!({"moduleId": "evil"}))),
        ("DELETE", "/identities/m1", None),
        ("DELETE", "/modules/m1", None),
        ("POST", "/modules", Some(json!({}))),
        ("POST", "/device/reprovision", None),
    ] {
        let refused = at("/mgmt.sock", method, &format!("{target}?{VERSION}"), body);
        let refusal = device.assert_refused(&refused, "$edgeAgent", DenyReason::NotInModule);
        assert_eq!(refusal.uid, 0);
    }
    for (module, reason) in
        [(m1.name.as_str(), DenyReason::NotInModule), ("$edgeAgent", DenyReason::NotInModule)]
    {
        let target = format!("/modules/{module}/genid/{}/sign?{VERSION}", site.generation(module));
        let refused = at("/shared.sock", "POST", &target, Some(json!({ "data": "ZGF0YQ==" })));
        device.assert_refused(&refused, module, reason);
    }
}

/// Waits for the tries of a script in a container, and returns the exit code of each.
fn exits(site: &Site, name: &str, count: usize) -> Vec<String> {
    wait_for("the tries", || {
        let text = site.engine.says(&["logs", name]);
        let lines: Vec<String> =
            text.lines().filter_map(|line| line.strip_prefix("exit ")).map(str::to_owned).collect();
        (lines.len() == count).then_some(lines)
    })
}

#[test]
fn a_program_that_filters_system_calls_and_becomes_the_registered_one_is_refused() {
    let Some(site) = Site::with_policy("strict", "executable") else { return };
    wait_for_edge_ca(&site.device);
    // A filter outlives execve. One with a listener would have its holder answer the
    // calls of the program that is measured.
    let script = "try() { /bin/intruder $1 {call} > /dev/null; echo \"exit $?\"; }
         try; try '--filter-and-exec /bin/intruder'; exec sleep 1000";
    let name = site.scripted("strict", script);
    assert_eq!(exits(&site, &name, 2), ["1", "0"], "1 is granted, 0 refused");
    site.device.assert_latest_refusal(&name, DenyReason::ForeignFilter);
    // Where the image counts, each of its programs does what it likes.
    let name = site.scripted("usual", script);
    assert_eq!(exits(&site, &name, 2), ["1", "1"]);
}

#[test]
fn a_container_that_may_name_its_executable_is_not_known_by_it() {
    // Without the engine's filter of system calls each process may make a user namespace,
    // and is mighty there.
    let grant = |name: &str| {
        let option = "options = [\"HostConfig.SecurityOpt\"]";
        format!("[module_policies]\n{name:?} = \"executable\"\n[modules.{name:?}.grant]\n{option}")
    };
    let Some(site) = Site::with(|engine| grant(&engine.name("strong"))) else { return };
    let name = site.engine.name("strong");
    let (caller, mut spec) = site.device.container_caller(&name, site.image.name());
    spec["config"]["settings"]["createOptions"]["HostConfig"]["SecurityOpt"] =
        json!(["seccomp=unconfined"]);
    site.device.create_and_start(spec);
    let refused = wait_for("the engine's word about the container", || {
        let answer = caller.sign();
        let reason = site.device.status().refusals.first().map(|refusal| refusal.reason);
        (!matches!(reason, Some(DenyReason::NotRunning | DenyReason::FactsUnknown)))
            .then_some(answer)
    });
    site.device.assert_refused(&refused, &name, DenyReason::ExecutableOfItsChoice);
}

#[test]
fn a_container_renamed_and_committed_leaves_its_name_to_nobody() {
    let Some(site) = Site::or_skip() else { return };
    wait_for_edge_ca(&site.device);
    let m1 = site.module("m1");
    let (aside, copy) = (site.engine.name("aside"), format!("{}-copy", site.image.name()));
    site.device.remember_container(&aside);
    // What is in the module goes on, in an image that is called as the module's and in a
    // container that has its name. Not by the command line, which sends no body: Podman
    // wants one.
    let (repo, tag) = copy.rsplit_once(':').unwrap();
    let commit = format!("/commit?container={}&repo={repo}&tag={tag}", m1.name);
    let _ =
        http::call(&site.engine.socket(), "POST", &commit, Some(&json!({}))).unwrap().expect(201);
    let command = quoted(&site.intruder(&m1.name));
    let mount = site.socket_of(&m1.name);
    let run = [
        "run",
        "--rm",
        "--name",
        &m1.name,
        "-v",
        &mount,
        "--network",
        "none",
        "--entrypoint",
        "/bin/sh",
    ];
    // The daemon gives the module its name back at once.
    let text = wait_for("the name to be taken", || {
        let _ = site.engine.docker(&["rename", &m1.name, &aside]);
        let text = said(&site.engine.docker(&[&run[..], &[&copy, "-c", &command]].concat()));
        text.contains("outcome").then_some(text)
    });
    let _ = site.engine.docker(&["rmi", "-f", &copy]);
    assert_all_refused(&text);
    let reason = site.device.status().refusals[0].reason;
    assert!(
        matches!(
            reason,
            DenyReason::ContainerChanged | DenyReason::NotInModule | DenyReason::NotRunning
        ),
        "{reason}"
    );
}

#[test]
fn a_health_check_is_not_the_module() {
    let Some(site) = Site::or_skip() else { return };
    if site.engine.says(&["version", "-f", "{{json .Server}}"]).contains("Podman") {
        eprintln!("skipped: Podman has systemd run health checks, which is not everywhere");
        return;
    }
    wait_for_edge_ca(&site.device);
    let name = site.engine.name("m1");
    let (caller, mut spec) = site.device.container_caller(&name, site.image.name());
    let generation = site.generation(&name);
    let call = format!(
        "/bin/intruder --socket {SOCKET} --module {name} --genid {generation} --json > /calls/said.new 2>&1"
    );
    spec["config"]["settings"]["createOptions"]["Healthcheck"] = json!({
        "Test": ["CMD-SHELL", format!("{call}; cp /calls/said.new /calls/said")],
        "Interval": 1_000_000_000_u64,
        "Timeout": 20_000_000_000_u64,
    });
    site.device.create_and_start(spec);
    let said = wait_for("a health check", || {
        std::fs::read_to_string(caller.folder().join("said"))
            .ok()
            .filter(|text| text.contains("outcome"))
    });
    assert_all_refused(&said);
    let reasons: Vec<_> =
        site.device.status().refusals.iter().map(|refusal| refusal.reason).collect();
    assert!(
        reasons
            .iter()
            .all(|reason| matches!(reason, DenyReason::NotADescendant | DenyReason::AfterExec)),
        "{reasons:?}"
    );
    let _ = caller.sign().expect(200);
}
