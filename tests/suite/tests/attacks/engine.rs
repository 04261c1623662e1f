//! What others may try to get a container module's identity, and the one reason for which each is refused.

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
    binds.extend([json!(format!("{folder}:/other")), json!(format!("{shared}:/shared.sock"))]);
    device.create_and_start(spec);
    let _ = second.sign().expect(200);
    let other = std::path::Path::new("/other/workload.sock");
    let (target, body) = sign_as(&device, &m1);
    let refused = second.call_at(other, "POST", &target, Some(body.clone())).unwrap();
    device.assert_refused(&refused, &m1, DenyReason::NotInModule);
    let refused = second.call("POST", &target, Some(body.clone()));
    device.assert_refused(&refused, &m1, DenyReason::SocketOfAnotherModule);
    let shared = std::path::Path::new("/shared.sock");
    let refused = second.call_at(shared, "POST", &target, Some(body)).unwrap();
    device.assert_refused(&refused, &m1, DenyReason::NotInModule);
    let (target, body) = sign_as(&device, &m2);
    let refused = second.call_at(other, "POST", &target, Some(body.clone())).unwrap();
    device.assert_refused(&refused, &m2, DenyReason::SocketOfAnotherModule);
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
    // It may call before the engine's event about its start has come: refused all the same, as one that does not run.
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
