//! Attacks on a module that is a container.

use std::process::Output;

use edgekeep_core::attestation::DenyReason;
use edgekeep_testkit::{Caller, Device, Engine, VERSION, http, wait_for};
use serde_json::{Value, json};

use crate::{image, programs, wait_for_edge_ca, with_engine};

const SOCKET: &str = "/var/run/iotedge/workload.sock";

fn generation_of(device: &Device, module: &str) -> String {
    device.cloud().state().devices["press-04"].modules[module].generation_id.clone()
}

fn sign_as(device: &Device, module: &str) -> (String, Value) {
    let target = format!("/modules/{module}/genid/{}/sign?{VERSION}", generation_of(device, module));
    (target, json!({ "data": "ZGF0YQ==" }))
}

fn intruder(device: &Device, module: &str) -> Vec<String> {
    let words =
        ["/bin/intruder", "--socket", SOCKET, "--module", module, "--genid", &generation_of(device, module), "--json"];
    words.map(str::to_owned).into()
}

/// All calls were refused.
fn assert_all_refused(output: &Output) {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{text}");
}

fn docker(engine: &Engine, arguments: &[&str], more: &[String]) -> Output {
    let mut all = arguments.to_vec();
    all.extend(more.iter().map(String::as_str));
    engine.docker(&all)
}

fn started(device: &Device, engine: &Engine, name: &str, image: &str) -> (String, Caller) {
    let name = engine.name(name);
    let (caller, spec) = device.container_caller(&name, image);
    device.create_and_start(spec);
    let _ = caller.sign().expect(200);
    (name, caller)
}

#[test]
fn what_the_engine_brings_into_the_container_is_refused_unless_the_policy_allows_it() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let lax = engine.name("lax");
    let device = with_engine(&engine).tables(&format!("[module_policies]\n{lax:?} = \"process\"")).start();
    wait_for_edge_ca(&device);
    let (m1, caller) = started(&device, &engine, "m1", image.name());
    assert_all_refused(&docker(&engine, &["exec", &m1], &intruder(&device, &m1)));
    device.assert_latest_refusal(&m1, DenyReason::NotADescendant);
    let (lax, _lax_caller) = started(&device, &engine, "lax", image.name());
    let allowed = docker(&engine, &["exec", &lax], &intruder(&device, &lax));
    assert_eq!(allowed.status.code(), Some(1), "granted: {}", String::from_utf8_lossy(&allowed.stdout));
    let _ = caller.sign().expect(200);
}

#[test]
fn another_container_with_the_modules_socket_is_refused() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let device = with_engine(&engine).start();
    let (m1, caller) = started(&device, &engine, "m1", image.name());
    let folder = device.module_socket(&m1).parent().unwrap().display().to_string();
    // The same image, the same program, the same variables if it likes: another container.
    let mount = format!("{folder}:/var/run/iotedge");
    let stranger = engine.name("stranger");
    device.remember_container(&stranger);
    let arguments = [
        "run",
        "--rm",
        "--name",
        &stranger,
        "--network",
        "none",
        "-v",
        &mount,
        "--entrypoint",
        "/bin/intruder",
        image.name(),
    ];
    assert_all_refused(&docker(&engine, &arguments, &intruder(&device, &m1)[1..]));
    device.assert_latest_refusal(&m1, DenyReason::NotInModule);
    // It may even see the module's processes: it is still another container.
    let namespace = format!("container:{m1}");
    let arguments = [
        "run",
        "--rm",
        "--pid",
        &namespace,
        "--network",
        "none",
        "-v",
        &mount,
        "--entrypoint",
        "/bin/intruder",
        image.name(),
    ];
    assert_all_refused(&docker(&engine, &arguments, &intruder(&device, &m1)[1..]));
    device.assert_latest_refusal(&m1, DenyReason::NotInModule);
    let _ = caller.sign().expect(200);
}

#[test]
fn a_module_with_anothers_socket_mounted_gets_neither_identity() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let device = with_engine(&engine).start();
    let (m1, caller) = started(&device, &engine, "m1", image.name());
    let m2 = engine.name("m2");
    let (second, mut spec) = device.container_caller(&m2, image.name());
    let folder = device.module_socket(&m1).parent().unwrap().display().to_string();
    let shared = device.root().legacy_workload_socket().display().to_string();
    let binds = spec["config"]["settings"]["createOptions"]["HostConfig"]["Binds"].as_array_mut().unwrap();
    binds.push(json!(format!("{folder}:/other")));
    let refused = device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec.clone())).expect(400);
    assert!(refused["message"].as_str().unwrap().contains("create option HostConfig.Binds[1] is refused"), "{refused}");
    // The shared socket is everybody's.
    spec["config"]["settings"]["createOptions"]["HostConfig"]["Binds"][1] = json!(format!("{shared}:/shared.sock"));
    device.create_and_start(spec);
    let _ = second.sign().expect(200);
    let (target, body) = sign_as(&device, &m1);
    let refused = second.call("POST", &target, Some(body.clone()));
    device.assert_refused(&refused, &m1, DenyReason::SocketOfAnotherModule);
    let shared = std::path::Path::new("/shared.sock");
    let refused = second.call_at(shared, "POST", &target, Some(body)).unwrap();
    device.assert_refused(&refused, &m1, DenyReason::NotInModule);
    let (target, body) = sign_as(&device, &m2);
    // By the shared socket it gets its own.
    let _ = second.call_at(shared, "POST", &target, Some(body)).unwrap().expect(200);
    let _ = caller.sign().expect(200);
}

#[test]
fn a_process_of_the_host_is_refused_on_a_containers_socket() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let device = with_engine(&engine).start();
    let (m1, caller) = started(&device, &engine, "m1", image.name());
    let (target, body) = sign_as(&device, &m1);
    for socket in [device.module_socket(&m1), device.root().legacy_workload_socket()] {
        let refused = http::call(&socket, "POST", &target, Some(&body)).unwrap();
        device.assert_refused(&refused, &m1, DenyReason::NotInModule);
    }
    let host = device.add_caller("host");
    let refused = host.call_at(&device.module_socket(&m1), "POST", &target, Some(body)).unwrap();
    device.assert_refused(&refused, &m1, DenyReason::NotInModule);
    let _ = caller.sign().expect(200);
}

#[test]
fn a_container_put_in_the_modules_place_is_refused() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let device = with_engine(&engine).start();
    let (m1, caller) = started(&device, &engine, "m1", image.name());
    // Another image under the same tag does not touch what runs.
    engine.import_as(&programs(), "second", image.name());
    let _ = caller.sign().expect(200);
    // A container of the module's name with its labels, made by whoever may speak to the engine.
    let folder = device.module_socket(&m1).parent().unwrap().display().to_string();
    let (mount, calls) = (format!("{folder}:/var/run/iotedge"), format!("{}:/calls", caller.folder().display()));
    let labels = engine.says(&["inspect", "-f", "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}}\n{{end}}", &m1]);
    let environment = engine.says(&["inspect", "-f", "{{range .Config.Env}}{{.}}\n{{end}}", &m1]);
    let _ = engine.says(&["rm", "-f", &m1]);
    let mut arguments = vec!["run", "-d", "--name", &m1, "--network", "none", "-v", &mount, "-v", &calls];
    for label in labels.lines() {
        arguments.extend(["--label", label]);
    }
    for variable in environment.lines().filter(|line| !line.is_empty()) {
        arguments.extend(["-e", variable]);
    }
    arguments.push(image.name());
    let _ = engine.says(&arguments);
    assert_refused_as_changed(&device, &caller);
}

/// It may call before the engine's event about its start has come: refused all the same, as one that does not run.
fn assert_refused_as_changed(device: &Device, caller: &Caller) {
    wait_for("the engine's word about the container", || {
        let refused = caller.sign();
        assert_eq!(refused.status, 403);
        let reason = device.status().refusals[0].reason;
        assert!(matches!(reason, DenyReason::ContainerChanged | DenyReason::NotRunning), "{reason}");
        (reason == DenyReason::ContainerChanged).then_some(())
    });
}

#[test]
fn with_the_strictest_policy_only_the_images_own_programs_are_served() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let names = ["strict", "usual"].map(|name| engine.name(name));
    let device = with_engine(&engine).tables(&format!("[module_policies]\n{:?} = \"executable\"", names[0])).start();
    wait_for_edge_ca(&device);
    for (name, expected) in names.iter().zip([["1", "0"], ["1", "1"]]) {
        let generation = device.create_identity(name);
        let mut spec = device.container_spec(name, image.name(), &generation);
        // First the image's own copy, then the same bytes and one more in a file that the image does not have.
        let script = format!(
            "try() {{ $1 --socket {SOCKET} --module {name} --genid {generation} > /dev/null; echo \"exit $?\"; }}
             try /bin/intruder; cp /bin/intruder /tmp/copy; echo >> /tmp/copy; try /tmp/copy; exec sleep 1000"
        );
        let options = &mut spec["config"]["settings"]["createOptions"];
        options["Entrypoint"] = json!(["/bin/sh"]);
        options["Cmd"] = json!(["-c", script]);
        device.create_and_start(spec);
        let lines = wait_for("both tries", || {
            let text = engine.says(&["logs", name]);
            let lines: Vec<String> =
                text.lines().filter_map(|line| line.strip_prefix("exit ")).map(str::to_owned).collect();
            (lines.len() == 2).then_some(lines)
        });
        assert_eq!(lines, expected, "{name}: 1 is granted, 0 refused");
        if expected == ["1", "0"] {
            device.assert_latest_refusal(name, DenyReason::ExecutableChanged);
        }
    }
}

/// Has the engine's `exec` start a shell that leaves `command` behind and ends; gives what that said. It says it into a
/// file: not every engine listens for longer than the shell lives.
fn left_behind(engine: &Engine, caller: &Caller, before: &str, command: &[String]) -> String {
    let said = caller.folder().join("said");
    let _ = std::fs::remove_file(&said);
    let script = format!("{before} {} --when-orphaned > /calls/said 2>&1 &", quoted(command));
    let _ = docker(engine, &["exec", caller.module(), "/bin/sh", "-c"], &[script]);
    wait_for("all tries, of which the trust bundle is anybody's", || {
        std::fs::read_to_string(&said).ok().filter(|said| said.matches("\"verdict\"").count() == 5)
    })
}

fn quoted(command: &[String]) -> String {
    command.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Each try was refused, whatever became of the shell that began it.
fn assert_refused_lines(text: &str, count: usize) {
    assert_eq!(text.matches("\"verdict\":\"refused\"").count(), count, "{text}");
    assert!(!text.contains("\"verdict\":\"neither\""), "{text}");
}

#[test]
fn a_detached_exec_that_became_a_child_of_the_first_process_is_refused() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let mut device = with_engine(&engine).start();
    wait_for_edge_ca(&device);
    let (m1, caller) = started(&device, &engine, "m1", image.name());
    // In the session that the engine made, and in one of its own.
    for before in [&[][..], &["/bin/setsid".to_owned()][..]] {
        let command = [before, &intruder(&device, &m1)].concat();
        assert_refused_lines(&left_behind(&engine, &caller, "", &command), 4);
        device.assert_latest_refusal(&m1, DenyReason::AfterExec);
    }
    // A daemon that is started anew asks the engine what happened before.
    device.kill(edgekeep_core::layout::Daemon::Moduled);
    device.start(edgekeep_core::layout::Daemon::Moduled);
    wait_for("the module to be served again", || caller.try_signed().map(drop));
    assert_refused_lines(&left_behind(&engine, &caller, "sleep 0.1;", &intruder(&device, &m1)), 4);
    device.assert_latest_refusal(&m1, DenyReason::AfterExec);
    let _ = caller.sign().expect(200);
}

#[test]
fn a_modules_own_daemon_is_served_although_it_has_a_session_of_its_own() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let name = engine.name("m1");
    let device = with_engine(&engine).start();
    wait_for_edge_ca(&device);
    let generation = device.create_identity(&name);
    let mut spec = device.container_spec(&name, image.name(), &generation);
    let script = format!(
        "/bin/setsid /bin/intruder --socket {SOCKET} --module {name} --genid {generation} > /dev/null; echo \"exit $?\"
         exec sleep 1000"
    );
    let options = &mut spec["config"]["settings"]["createOptions"];
    options["Entrypoint"] = json!(["/bin/sh"]);
    options["Cmd"] = json!(["-c", script]);
    device.create_and_start(spec);
    // Kept waiting until the engine could have told of an exec, of which there was none.
    let text = wait_for("the daemon's try", || Some(engine.says(&["logs", &name])).filter(|text| !text.is_empty()));
    assert_eq!(text, "exit 1", "1 is granted");
}

#[test]
fn a_container_that_forges_the_modules_place_is_refused() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let lax = engine.name("lax");
    let device = with_engine(&engine).tables(&format!("[module_policies]\n{lax:?} = \"process\"")).start();
    wait_for_edge_ca(&device);
    let (m1, _caller) = started(&device, &engine, "m1", image.name());
    let (lax, _lax_caller) = started(&device, &engine, "lax", image.name());
    let stranger = engine.name("stranger");
    device.remember_container(&stranger);
    for module in [&m1, &lax] {
        let folder = device.module_socket(module).parent().unwrap().display().to_string();
        let id = engine.says(&["inspect", "-f", "{{.Id}}", module]);
        let init = engine.says(&["inspect", "-f", "{{.State.Pid}}", module]);
        let (mount, pid) = (format!("{folder}:/var/run/iotedge"), format!("container:{module}"));
        let group = cgroup_of(&init);
        let forged = format!("/evil{group}");
        for options in [
            // The host's /proc, and the module's network.
            vec!["-v", "/proc:/host/proc:ro", "--network", &pid],
            // A control group that is only named like the module's.
            vec!["--cgroup-parent", &forged, "--network", "none"],
            // In the module's own control group.
            vec!["--cgroup-parent", &group, "--network", "none"],
            // There, among its processes, and with the module's first process as its parent.
            vec!["--cgroup-parent", &group, "--pid", &pid, "--network", "none"],
        ] {
            let mut arguments = vec!["run", "--rm", "--name", &stranger, "-v", &mount, "--entrypoint", "/bin/sh"];
            arguments.extend(&options);
            arguments.push(image.name());
            let mut command = quoted(&intruder(&device, module));
            if options.contains(&"--pid") {
                command = format!("({command} --when-orphaned &) ; sleep 3");
            }
            let output = docker(&engine, &arguments, &["-c".into(), command]);
            assert_refused_lines(&said(&output), 4);
            device.assert_latest_refusal(module, DenyReason::NotInModule);
        }
        assert_eq!(engine.says(&["inspect", "-f", "{{.Id}}", module]), id, "it was not touched");
    }
}

/// A process's place in the hierarchy that is looked at.
fn cgroup_of(pid: &str) -> String {
    let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    edgekeep_runtime::evidence::CgroupHierarchy::detect().path(&lines).unwrap().to_owned()
}

#[test]
fn a_tag_moved_between_create_and_start_changes_nothing_and_a_container_made_anew_is_refused() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let device = with_engine(&engine).start();
    let create = |name: &str| {
        let (caller, spec) = device.container_caller(name, image.name());
        let _ = device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec)).expect(201);
        caller
    };
    let start = |name: &str| device.agent().manage("POST", &format!("/modules/{name}/start?{VERSION}"), None);
    let (kept, anew) = (engine.name("kept"), engine.name("anew"));
    let (kept_caller, anew_caller) = (create(&kept), create(&anew));
    let registered = engine.says(&["inspect", "-f", "{{.Image}}", &kept]);
    engine.import_as(&programs(), "second", image.name());
    assert_ne!(engine.says(&["image", "inspect", "-f", "{{.Id}}", image.name()]), registered);
    let _ = start(&kept).expect(204);
    let _ = kept_caller.sign().expect(200);
    // Made anew by hand from what the tag names now, with everything else as it was.
    let folder = device.module_socket(&anew).parent().unwrap().display().to_string();
    let (mount, calls) = (format!("{folder}:/var/run/iotedge"), format!("{}:/calls", anew_caller.folder().display()));
    let labels = engine.says(&["inspect", "-f", "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}}\n{{end}}", &anew]);
    let environment = engine.says(&["inspect", "-f", "{{range .Config.Env}}{{.}}\n{{end}}", &anew]);
    let _ = engine.says(&["rm", "-f", &anew]);
    let mut arguments = vec!["create", "--name", &anew, "--network", "none", "-v", &mount, "-v", &calls];
    labels.lines().filter(|line| !line.is_empty()).for_each(|line| arguments.extend(["--label", line]));
    environment.lines().filter(|line| !line.is_empty()).for_each(|line| arguments.extend(["-e", line]));
    arguments.push(image.name());
    let _ = engine.says(&arguments);
    let _ = start(&anew).expect(204);
    assert_refused_as_changed(&device, &anew_caller);
}

#[test]
fn a_module_with_uid_0_is_not_the_agent_and_not_its_neighbour() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let root = engine.name("root");
    // Without the operator's grant the daemon's sockets are not even mounted.
    let grant = format!("[modules.{root:?}.grant]\nbinds = [\"{{root}}/run/iotedge/mgmt.sock\"]");
    let device = with_engine(&engine).tables(&grant).start();
    let (m1, _caller) = started(&device, &engine, "m1", image.name());
    let (second, mut spec) = device.container_caller(&root, image.name());
    let binds = spec["config"]["settings"]["createOptions"]["HostConfig"]["Binds"].as_array_mut().unwrap();
    for (from, to) in
        [(device.root().management_socket(), "/mgmt.sock"), (device.root().legacy_workload_socket(), "/shared.sock")]
    {
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
    for (module, reason) in [(m1.as_str(), DenyReason::NotInModule), ("$edgeAgent", DenyReason::NotInModule)] {
        let target = format!("/modules/{module}/genid/{}/sign?{VERSION}", generation_of(&device, module));
        let refused = at("/shared.sock", "POST", &target, Some(json!({ "data": "ZGF0YQ==" })));
        device.assert_refused(&refused, module, reason);
    }
}
