//! The management API, route by route.

use edgekeep_core::attestation::DenyReason;
use edgekeep_testkit::{Device, VERSION, program, sha256_of, wait_for};
use serde_json::{Value, json};

/// Every route that changes something, with a body that would do.
fn changes(device: &Device) -> Vec<(&'static str, String, Option<Value>)> {
    let spec = device.spec("intruder", "calls", "g");
    vec![
        ("POST", "/modules".into(), Some(spec.clone())),
        ("PUT", "/modules/victim?start=true".into(), Some(spec.clone())),
        ("DELETE", "/modules/victim".into(), None),
        ("POST", "/modules/intruder/prepareupdate".into(), Some(spec)),
        ("POST", "/identities".into(), Some(json!({"moduleId": "intruder"}))),
        ("POST", "/identities/".into(), Some(json!({"moduleId": "intruder"}))),
        ("PUT", "/identities/victim".into(), Some(json!({"managedBy": "intruder"}))),
        ("DELETE", "/identities/victim".into(), None),
        ("POST", "/device/reprovision".into(), None),
    ]
}

fn versioned(target: &str) -> String {
    format!("{target}{}{VERSION}", if target.contains('?') { '&' } else { '?' })
}

#[test]
fn only_the_agent_changes_anything() {
    let device = Device::builder().start();
    let victim = device.add_caller("victim");
    let before = device.cloud().state().devices;
    for (method, target, body) in changes(&device) {
        let target = versioned(&target);
        // Root, and in the socket's group: that is not enough.
        let refused = device.ask(method, &target, body.as_ref());
        let refusal = device.assert_refused(&refused, "$edgeAgent", DenyReason::NotInModule);
        assert_eq!(refusal.pid, std::process::id(), "{method} {target}");
        assert!(refusal.route.starts_with(method), "{refusal:?}");
        let refused = victim.manage(method, &target, body);
        let refusal = device.assert_refused(&refused, "$edgeAgent", DenyReason::NotInModule);
        assert_eq!(vec![refusal.pid], device.processes_of("victim"), "{method} {target}");
    }
    assert_eq!(device.cloud().state().devices, before, "nothing changed at the hub");
    let modules = device.ask("GET", &versioned("/modules"), None).expect(200);
    let names: Vec<&str> = modules["modules"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|it| it["name"].as_str())
        .collect();
    assert_eq!(names, ["edgeAgent", "victim"]);
    let _ = victim.sign().expect(200);
}

#[test]
fn a_module_is_made_started_stopped_updated_and_removed() {
    let device = Device::builder().start();
    let agent = device.agent();
    let manage = |method: &str, target: &str, body: Option<Value>| {
        agent.manage(method, &versioned(target), body)
    };
    let generation = device.create_identity("m1");
    let mut spec = device.spec("m1", "calls", &generation);
    let answers = device.root().path().join("m1.answers");
    let answers_to = format!("EDGEKEEP_TEST_ANSWERS={}", answers.display());
    spec["config"]["settings"]["createOptions"] =
        json!({ "Env": ["EDGEKEEP_TEST_CALLS={}", answers_to] });
    spec["config"]["settings"]["auth"] =
        json!({ "username": "u", "password": "a-secret-word", "serveraddress": "r" });

    let created = manage("POST", "/modules", Some(spec.clone())).expect(201);
    assert_eq!(
        (&created["name"], &created["type"], &created["id"]),
        (&json!("m1"), &json!("process"), &json!("id"))
    );
    assert_eq!(created["status"]["runtimeStatus"]["status"], "stopped");
    assert!(!created.to_string().contains("a-secret-word"));
    manage("POST", "/modules", Some(spec.clone())).expect_error(409, "m1");

    let details = device.ask("GET", &versioned("/modules/m1"), None).expect(200);
    let digest = format!("sha256:{}", sha256_of(&program("calls")));
    assert_eq!(details["config"]["settings"]["image"], "calls");
    assert_eq!(details["config"]["settings"]["imageHash"], digest);
    assert_eq!(details["config"]["env"], json!([]));
    assert_eq!(details["status"], json!({ "runtimeStatus": { "status": "stopped" } }));

    let status =
        || device.ask("GET", &versioned("/modules/m1"), None).expect(200)["status"].clone();
    // Starting what runs and stopping what does not is no error; the action word may be
    // written in any case.
    for action in ["start", "Start", "RESTART"] {
        let _ = manage("POST", &format!("/modules/m1/{action}"), None).expect(204);
        let now = status();
        assert_eq!(now["runtimeStatus"]["status"], "running", "{action}");
        assert!(now["startTime"].as_str().unwrap().ends_with('Z'), "{now}");
        // Only then does it know what to do with a signal.
        wait_for("the module to be up", || {
            std::fs::read_to_string(&answers).ok().filter(|text| text.contains("done"))
        });
        std::fs::write(&answers, if action == "start" { "done" } else { "" }).unwrap();
    }
    for action in ["stop", "stop"] {
        let _ = manage("POST", &format!("/modules/m1/{action}"), None).expect(204);
        let now = status();
        assert_eq!(now["runtimeStatus"]["status"], "stopped");
        assert_eq!(now["exitStatus"]["statusCode"], "0", "a string: {now}");
    }
    assert_eq!(device.processes_of("m1"), Vec::<u32>::new());
    // Operators may start, too: whoever may open the socket.
    let _ = device.ask("POST", &versioned("/modules/m1/start"), None).expect(204);
    assert_eq!(device.processes_of("m1").len(), 1);

    manage("PUT", "/modules/m1?start=maybe", Some(spec.clone()))
        .expect_error(400, "invalid parameter: start");
    let before = device.processes_of("m1");
    let updated = manage("PUT", "/modules/m1?start=true", Some(spec.clone())).expect(201);
    assert_eq!(updated["status"]["runtimeStatus"]["status"], "running");
    let after = device.processes_of("m1");
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
    let updated = manage("PUT", "/modules/m1", Some(spec.clone())).expect(201);
    assert_eq!(updated["status"]["runtimeStatus"]["status"], "stopped");
    assert_eq!(device.processes_of("m1"), Vec::<u32>::new());
    assert_eq!(manage("PUT", "/modules/absent", Some(spec.clone())).status, 404);

    let _ = manage("POST", "/modules/m1/prepareupdate", Some(spec.clone())).expect(204);
    let mismatch = manage("POST", "/modules/m2/prepareupdate", Some(spec.clone()));
    mismatch.expect_error(400, "module name in spec does not match URI");

    let _ = manage("POST", "/modules/m1/start", None).expect(204);
    let _ = manage("DELETE", "/modules/m1", None).expect(204);
    assert_eq!(device.processes_of("m1"), Vec::<u32>::new());
    for name in ["m1", "m1.sock"] {
        assert!(!device.root().module_socket_folder().join(name).exists(), "{name} stays behind");
    }
    for (method, target) in [
        ("GET", "/modules/m1"),
        ("DELETE", "/modules/m1"),
        ("POST", "/modules/m1/start"),
        ("POST", "/modules/m1/stop"),
        ("POST", "/modules/m1/restart"),
        ("GET", "/modules/m1/logs"),
    ] {
        let answer = manage(method, target, None);
        assert_eq!(answer.status, 404, "{method} {target}: {}", answer.text());
        assert!(
            !device.module_socket("m1").exists(),
            "{method} {target} makes a socket for no module"
        );
    }
}

#[test]
fn a_bad_specification_is_400_and_nothing_is_made() {
    let device = Device::builder().start();
    let good = device.spec("m1", "calls", "g");
    type Fault = fn(&mut Value);
    let faults: [(Fault, &str); 12] = [
        (|spec| spec["name"] = json!(""), "name"),
        (|spec| spec["name"] = json!("   "), "name"),
        (|spec| spec["type"] = json!(""), "type"),
        (|spec| spec["type"] = json!("vm"), "type"),
        (|spec| spec["imagePullPolicy"] = json!("Sometimes"), "invalid imagePullPolicy"),
        (|spec| spec["config"]["settings"] = json!({}), "invalid Docker config"),
        (|spec| spec["config"]["settings"]["createOptions"] = json!(null), "invalid Docker config"),
        (|spec| spec["config"]["settings"]["image"] = json!("unknown"), "host_modules"),
        (|spec| spec["config"]["settings"]["digest"] = json!("sha256:00"), "digest"),
        (|spec| spec["config"]["settings"]["createOptions"] = json!({"Cmd": "sh"}), "Cmd"),
        (
            |spec| {
                spec["config"]["env"] =
                    json!([{"key": "A", "value": "1"}, {"key": "A", "value": "2"}]);
            },
            "duplicate env var key: A",
        ),
        (|spec| spec["config"]["env"] = json!([{"key": "", "value": "1"}]), "env"),
    ];
    for (fault, part) in faults {
        let mut spec = good.clone();
        fault(&mut spec);
        device
            .agent()
            .manage("POST", &versioned("/modules"), Some(spec.clone()))
            .expect_error(400, part);
    }
    // A shape that does not fit, and no body.
    for (body, status) in [(Some(json!({"name": "m1"})), 422), (Some(json!([])), 422), (None, 400)]
    {
        assert_eq!(device.agent().manage("POST", &versioned("/modules"), body).status, status);
    }
    // Containers need an engine, which this device does not have.
    let mut spec = good;
    spec["type"] = json!("docker");
    device
        .agent()
        .manage("POST", &versioned("/modules"), Some(spec))
        .expect_error(500, "no container engine");
    let modules = device.ask("GET", &versioned("/modules/"), None).expect(200);
    assert_eq!(modules["modules"].as_array().unwrap().len(), 1, "only the agent: {modules}");
    assert!(!device.module_socket("m1").exists());
}

#[test]
fn identities_are_made_listed_updated_and_deleted_at_the_hub() {
    let device = Device::builder().start();
    let manage =
        |method: &str, target: &str, body| device.agent().manage(method, &versioned(target), body);
    let made =
        manage("POST", "/identities", Some(json!({"moduleId": "m1", "managedBy": "IotEdge"})))
            .expect(200);
    let generation = made["generationId"].as_str().unwrap().to_owned();
    let expected = json!({"moduleId": "m1", "managedBy": "IotEdge", "generationId": generation, "authType": "sas"});
    assert_eq!(made, expected);
    let module =
        device.wait_for_cloud(|state| state.devices["press-04"].modules.contains_key("m1"));
    assert_eq!(module.devices["press-04"].modules["m1"].generation_id, generation);
    // Made again: the same life.
    let again = manage("POST", "/identities/", Some(json!({"moduleId": "m1"}))).expect(200);
    assert_eq!(
        (&again["generationId"], &again["managedBy"]),
        (&json!(generation), &json!("iotedge"))
    );
    let updated = manage("PUT", "/identities/m1", Some(json!({"anything": 1}))).expect(200);
    assert_eq!(updated["generationId"], generation);
    assert_eq!(manage("PUT", "/identities/m1", None).status, 422, "a PUT has a body");
    for target in ["/identities", "/identities/"] {
        let list = device.ask("GET", &versioned(target), None).expect(200);
        let ids: Vec<&str> = list["identities"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|it| it["moduleId"].as_str())
            .collect();
        assert_eq!(ids, ["$edgeAgent", "m1"], "{list}");
    }
    let _ = manage("DELETE", "/identities/m1", None).expect(204);
    assert!(!device.cloud().state().devices["press-04"].modules.contains_key("m1"));
    // Another life under the same name.
    let other = device.create_identity("m1");
    assert_ne!(other, generation);
    manage("POST", "/identities", Some(json!({"moduleId": "../m1"}))).expect_error(400, "moduleId");
    assert_eq!(manage("POST", "/identities", Some(json!({}))).status, 422);
    assert_eq!(manage("POST", "/identities", None).status, 400);
    assert_ne!(manage("PUT", "/identities/never-made", Some(json!({}))).status, 200);
}

#[test]
fn what_is_read_holds_no_secret() {
    let device = Device::builder().start();
    let generation = device.create_identity("m1");
    let mut spec = device.spec("m1", "calls", &generation);
    spec["config"]["settings"]["createOptions"] = json!({ "Env": ["EDGEKEEP_TEST_CALLS={}", "EDGEKEEP_TEST_ANSWERS=/dev/null", "TOKEN=a-secret-word"] });
    spec["config"]["settings"]["auth"] =
        json!({ "username": "u", "password": "a-secret-word", "serveraddress": "r" });
    device.create_and_start(spec);
    for target in [
        "/modules",
        "/modules/",
        "/modules/m1",
        "/modules/m1/logs",
        "/identities",
        "/systeminfo",
        "/systeminfo/resources",
        "/systeminfo/supportbundle",
        "/status",
    ] {
        let answer = device.ask("GET", &versioned(target), None);
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        assert!(!answer.text().contains("a-secret-word"), "{target}");
    }
    for daemon in edgekeep_core::layout::Daemon::ALL {
        assert!(!device.log(daemon).contains("a-secret-word"), "the log of {}", daemon.name());
    }
}

#[test]
fn the_device_tells_about_itself() {
    let device = Device::builder().start();
    let _ = device.agent().sign().expect(200);
    let info = device.ask("GET", &versioned("/systeminfo"), None).expect(200);
    for member in
        ["osType", "architecture", "version", "cpus", "total_memory", "virtualized", "provisioning"]
    {
        assert!(!info[member].is_null(), "{member} is missing: {info}");
    }
    assert_eq!(info["osType"], "Linux");
    assert_eq!(info["provisioning"]["type"], "dps.symmetric_key");
    let resources = device.ask("GET", &versioned("/systeminfo/resources"), None).expect(200);
    for member in [
        "host_uptime",
        "process_uptime",
        "used_cpu",
        "used_ram",
        "total_ram",
        "disks",
        "docker_stats",
    ] {
        assert!(!resources[member].is_null(), "{member} is missing: {resources}");
    }
    let stats: Value = serde_json::from_str(resources["docker_stats"].as_str().unwrap()).unwrap();
    assert_eq!(stats, json!([]), "a string that holds an array");

    let bundle =
        device.ask("GET", &versioned("/systeminfo/supportbundle?edge_runtime_only=true"), None);
    assert_eq!((bundle.status, bundle.headers["content-type"].as_str()), (200, "application/zip"));
    assert!(bundle.body.starts_with(b"PK"), "a plain zip");
    for wrong in ["edge_runtime_only=yes", "since=tomorrowish", "until=x"] {
        let answer =
            device.ask("GET", &versioned(&format!("/systeminfo/supportbundle?{wrong}")), None);
        answer
            .expect_error(400, &format!("invalid parameter: {}", wrong.split('=').next().unwrap()));
    }
}

#[test]
fn logs_come_in_the_engines_frames() {
    let device = Device::builder().host_module("sh", "/bin/sh").start();
    let generation = device.create_identity("talker");
    let mut spec = device.spec("talker", "sh", &generation);
    spec["config"]["settings"]["createOptions"] =
        json!({ "Cmd": ["-c", "echo one; echo two >&2; echo three; exec sleep 1000"] });
    device.create_and_start(spec);
    let logs =
        |query: &str| device.ask("GET", &versioned(&format!("/modules/talker/logs{query}")), None);
    let text = wait_for("three lines", || {
        let answer = logs("");
        assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, "text/plain"));
        let frames = frames(&answer.body);
        (frames.len() >= 3).then_some(frames)
    });
    // Two pipes: only the order within each is sure.
    let of = |stream: u8| -> String {
        text.iter().filter(|(from, _)| *from == stream).map(|(_, text)| text.as_str()).collect()
    };
    assert_eq!((of(1), of(2)), ("one\nthree\n".to_owned(), "two\n".to_owned()));
    assert_eq!(frames(&logs("?tail=1").body).len(), 1);
    assert_eq!(frames(&logs("?tail=0").body).len(), 0);
    assert_eq!(frames(&logs("?since=4102444800").body).len(), 0);
    assert_eq!(frames(&logs("?since=1h%2020m&tail=all").body).len(), 3);
    let stamped = frames(&logs("?timestamps=true").body);
    assert!(stamped.iter().all(|(_, text)| text.starts_with("20")), "{stamped:?}");
    for wrong in ["follow=1", "tail=some", "since=soon", "until=later", "timestamps=on"] {
        logs(&format!("?{wrong}"))
            .expect_error(400, &format!("invalid parameter: {}", wrong.split('=').next().unwrap()));
    }
}

/// Stream number and text of each frame.
fn frames(mut bytes: &[u8]) -> Vec<(u8, String)> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = bytes.split_at_checked(8) {
        assert_eq!(header[1..4], [0, 0, 0]);
        let length = u32::from_be_bytes(header[4..].try_into().unwrap()) as usize;
        let (payload, rest) = rest.split_at(length);
        frames.push((header[0], String::from_utf8_lossy(payload).into_owned()));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "a frame is cut off");
    frames
}

#[test]
fn routes_open_with_their_version() {
    let device = Device::builder().start();
    let _ = device.agent().sign().expect(200);
    let spec = device.spec("m1", "calls", "g");
    let routes: [(&str, &str, &str, Option<Value>); 5] = [
        ("POST", "/modules/m1/prepareupdate", "2019-01-30", Some(spec)),
        ("POST", "/device/reprovision", "2019-10-22", None),
        ("GET", "/systeminfo/resources", "2019-11-05", None),
        ("GET", "/systeminfo/supportbundle", "2020-07-07", None),
        ("GET", "/status", "2022-08-03", None),
    ];
    let versions = [
        "2018-06-28",
        "2019-01-30",
        "2019-10-22",
        "2019-11-05",
        "2020-07-07",
        "2021-12-07",
        "2022-08-03",
    ];
    for (method, path, since, body) in routes {
        for version in versions {
            let answer = device.agent().manage(
                method,
                &format!("{path}?api-version={version}"),
                body.clone(),
            );
            if version < since {
                answer.expect_error(404, "not found");
            } else {
                assert!(
                    (200..300).contains(&answer.status),
                    "{method} {path} {version}: {}",
                    answer.text()
                );
            }
        }
    }
    for wrong in ["2021-05-11", "2020-09-01", "2022-08-03-preview", ""] {
        device
            .ask("GET", &format!("/modules?api-version={wrong}"), None)
            .expect_error(400, "invalid api-version");
    }
    device.ask("GET", "/modules", None).expect_error(400, "api-version not specified");
}

#[test]
fn reprovisioning_keeps_modules_running() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let before = device.processes_of("m1");
    let registered = device.cloud().state().calls.dps_register;
    let _ = device.agent().manage("POST", &versioned("/device/reprovision"), None).expect(204);
    device.wait_for_cloud(|state| state.calls.dps_register > registered);
    let _ = m1.sign().expect(200);
    assert_eq!(device.processes_of("m1"), before);
}
