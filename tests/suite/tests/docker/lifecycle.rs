//! Container modules from creation to removal.

use edgekeep_core::attestation::DenyReason;
use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, Engine, VERSION, http, wait_for};
use serde_json::{Value, json};

use crate::{image, wait_for_edge_ca, with_engine};

fn versioned(target: &str) -> String {
    format!("{target}?{VERSION}")
}

fn state(device: &Device, module: &str) -> Value {
    device.ask("GET", &versioned(&format!("/modules/{module}")), None).expect(200)
}

#[test]
fn a_container_is_made_served_stopped_and_removed() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let device = with_engine(&engine).start();
    let (m1, spec) = device.container_caller(&name, image.name());
    let manage =
        |method: &str, target: &str, body| device.agent().manage(method, &versioned(target), body);
    let mut with_secret = spec.clone();
    with_secret["config"]["settings"]["auth"] =
        json!({ "username": "u", "password": "a-secret-word" });
    let created = manage("POST", "/modules", Some(with_secret)).expect(201);
    assert_eq!((&created["type"], &created["name"]), (&json!("docker"), &json!(name)));
    assert!(!created.to_string().contains("a-secret-word"));
    assert_eq!(manage("POST", "/modules", Some(spec)).status, 409, "the engine's own status");
    let details = state(&device, &name);
    assert_eq!(details["config"]["settings"]["image"], image.name());
    let id = engine.says(&["image", "inspect", "-f", "{{.Id}}", image.name()]);
    assert_eq!(details["config"]["settings"]["imageHash"], id);
    assert_eq!(details["status"]["runtimeStatus"]["status"], "stopped");

    let start = format!("/modules/{name}/start");
    let _ = manage("POST", &start, None).expect(204);
    let _ = manage("POST", &start, None).expect(204);
    assert_eq!(state(&device, &name)["status"]["runtimeStatus"]["status"], "running");
    let digest = m1.sign().expect(200);
    wait_for_edge_ca(&device);
    for (target, body, status) in [
        (
            format!("/modules/{{m}}/genid/{{g}}/encrypt?{VERSION}"),
            json!({"plaintext": "eA==", "initializationVector": "eA=="}),
            200,
        ),
        (
            format!("/modules/{{m}}/genid/{{g}}/certificate/server?{VERSION}"),
            json!({"commonName": "x", "expiration": ""}),
            201,
        ),
        (format!("/modules/{{m}}/certificate/identity?{VERSION}"), json!({}), 201),
    ] {
        let _ = m1.call("POST", &target, Some(body)).expect(status);
    }
    let bundle = m1.call("GET", &versioned("/trust-bundle"), None).expect(200);
    assert!(bundle["certificate"].as_str().unwrap().contains("BEGIN CERTIFICATE"));

    let _ = manage("POST", &format!("/modules/{name}/restart"), None).expect(204);
    assert_eq!(m1.sign().expect(200), digest);
    let _ = manage("POST", &format!("/modules/{name}/stop"), None).expect(204);
    assert_ne!(state(&device, &name)["status"]["runtimeStatus"]["status"], "running");
    let own = format!("/modules/{name}/genid/1/sign?{VERSION}");
    let refused = http::call(
        &device.root().legacy_workload_socket(),
        "POST",
        &own,
        Some(&json!({"data": ""})),
    )
    .unwrap();
    device.assert_refused(&refused, &name, DenyReason::NotRunning);
    let _ = manage("DELETE", &format!("/modules/{name}"), None).expect(204);
    assert!(!engine.docker(&["inspect", &name]).status.success(), "the container is gone");
    assert_eq!(manage("DELETE", &format!("/modules/{name}"), None).status, 404);
    assert_eq!(manage("POST", &start, None).status, 404);
    assert!(!device.module_socket(&name).exists());
}

#[test]
fn a_container_that_something_else_put_in_a_modules_place_is_not_started() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let device = with_engine(&engine).start();
    let (_m1, spec) = device.container_caller(&name, image.name());
    let manage =
        |method: &str, target: &str, body| device.agent().manage(method, &versioned(target), body);
    let _ = manage("POST", "/modules", Some(spec.clone())).expect(201);
    let labels = engine.says(&[
        "inspect",
        "-f",
        "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}}\n{{end}}",
        &name,
    ]);
    let mut create = vec!["create", "--name", &name, "--privileged"];
    create.extend(
        labels.lines().filter(|line| !line.is_empty()).flat_map(|label| ["--label", label]),
    );
    create.push(image.name());
    let _ = engine.says(&["rm", "-f", &name]);
    let _ = engine.says(&create);
    assert_eq!(state(&device, &name)["status"]["runtimeStatus"]["status"], "dead");
    for action in ["start", "restart"] {
        manage("POST", &format!("/modules/{name}/{action}"), None)
            .expect_error(409, "not made by this daemon");
    }
    assert_eq!(engine.says(&["inspect", "-f", "{{.State.Status}}", &name]), "created");
    // What the refusal tells to do.
    let _ = manage("DELETE", &format!("/modules/{name}"), None).expect(204);
    let _ = manage("POST", "/modules", Some(spec)).expect(201);
    let _ = manage("POST", &format!("/modules/{name}/start"), None).expect(204);
}

#[test]
fn a_container_of_any_user_reaches_its_socket() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let device = with_engine(&engine).start();
    let (m1, mut spec) = device.container_caller(&name, image.name());
    spec["config"]["settings"]["createOptions"]["User"] = json!("1234:1234");
    for entry in ["", "calls", "answers"] {
        std::os::unix::fs::chown(m1.folder().join(entry), Some(1234), Some(1234)).unwrap();
    }
    device.create_and_start(spec);
    let _ = m1.sign().expect(200);
}

#[test]
fn containers_go_on_and_are_served_by_a_daemon_that_was_started_anew() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let mut device = with_engine(&engine).start();
    let (m1, spec) = device.container_caller(&name, image.name());
    device.create_and_start(spec);
    let digest = m1.sign().expect(200);
    let started = engine.says(&["inspect", "-f", "{{.State.StartedAt}}", &name]);
    device.kill(Daemon::Moduled);
    device.start(Daemon::Moduled);
    // The socket is another one, in the folder that the container has mounted; a daemon
    // that answers may not have it yet.
    let served_again = || wait_for("the module to be served again", || m1.try_signed()).expect(200);
    assert_eq!(served_again(), digest);
    device.cloud_goes_away();
    for daemon in Daemon::ALL.into_iter().rev() {
        assert!(device.stop(daemon).success());
    }
    device.start_daemons();
    assert_eq!(served_again(), digest);
    assert_eq!(
        engine.says(&["inspect", "-f", "{{.State.StartedAt}}", &name]),
        started,
        "it was not touched"
    );
}

#[test]
fn the_agent_may_be_a_container() {
    let Some(engine) = Engine::or_skip() else { return };
    if engine.docker(&["inspect", "edgeAgent"]).status.success() {
        eprintln!("skipped: this engine has a container edgeAgent already");
        return;
    }
    let image = image(&engine);
    let device = with_engine(&engine).container_agent(image.name()).start();
    let agent = device.agent();
    let _ = agent.sign().expect(200);
    let identity = agent
        .manage("POST", &versioned("/identities"), Some(json!({"moduleId": "m1"})))
        .expect(200);
    assert_eq!(identity["moduleId"], "m1");
    let list = agent.manage("GET", &versioned("/modules"), None).expect(200);
    assert!(list["modules"].as_array().unwrap().iter().any(|module| module["name"] == "edgeAgent"));
    // Brought into the container by the engine's exec, with the management socket before
    // it: still not the agent.
    let script = "exec /bin/intruder --socket /var/run/iotedge/workload.sock --module '$edgeAgent' --genid 1 --json \
                  > /calls/said 2>&1";
    let said = engine.brought_in("edgeAgent", agent, script);
    assert!(said.ends_with("{\"outcome\":\"refused\"}\n"), "{said}");
    device.assert_latest_refusal("$edgeAgent", DenyReason::NotADescendant);
}
