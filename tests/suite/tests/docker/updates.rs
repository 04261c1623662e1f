//! Updates that fail or are cut off leave a module that works, with its identity.

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Caller, Device, Engine, VERSION, http, wait_for};
use serde_json::{Value, json};

use crate::gate::Gate;
use crate::{image, with_engine};

/// A module that runs, and its specification with the label `version` to tell what is
/// made of it.
fn running(device: &Device, name: &str, image: &str) -> (Caller, Value) {
    let (caller, mut spec) = device.container_caller(name, image);
    spec["config"]["settings"]["createOptions"]["Labels"] = json!({ "version": "1" });
    device.create_and_start(spec.clone());
    let _ = caller.sign().expect(200);
    (caller, spec)
}

fn version(engine: &Engine, name: &str) -> String {
    engine.says(&["inspect", "-f", "{{index .Config.Labels \"version\"}} {{.State.Running}}", name])
}

/// The containers of a module: the one that has its name, and no other is left.
fn containers(engine: &Engine, name: &str) -> Vec<String> {
    let all = engine.says(&["ps", "-a", "--format", "{{.Names}}"]);
    all.lines().filter(|found| found.starts_with(name)).map(str::to_owned).collect()
}

#[test]
fn an_update_whose_container_cannot_be_made_or_started_leaves_the_old_one_running() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let device = with_engine(&engine).start();
    let (caller, spec) = running(&device, &name, image.name());
    let id = engine.says(&["inspect", "-f", "{{.Id}}", &name]);
    let update = |change: &dyn Fn(&mut Value)| {
        let mut spec = spec.clone();
        spec["config"]["settings"]["createOptions"]["Labels"]["version"] = json!("2");
        change(&mut spec["config"]["settings"]);
        device.agent().manage("PUT", &format!("/modules/{name}?start=true&{VERSION}"), Some(spec))
    };
    let faults: [&dyn Fn(&mut Value); 3] = [
        &|settings| settings["image"] = json!("no-such-image:1"),
        &|settings| {
            settings["createOptions"]["HostConfig"]["NetworkMode"] =
                json!("container:no-such-container");
        },
        &|settings| settings["createOptions"]["Entrypoint"] = json!(["/no/such/program"]),
    ];
    for fault in faults {
        let answer = update(fault);
        assert!(answer.status >= 400, "{}", answer.text());
        assert_eq!(version(&engine, &name), "1 true", "{}", answer.text());
        assert_eq!(engine.says(&["inspect", "-f", "{{.Id}}", &name]), id, "the same container");
        assert_eq!(containers(&engine, &name), [name.as_str()]);
        let _ = caller.sign().expect(200);
    }
    let _ = update(&|_| ()).expect(201);
    assert_eq!(version(&engine, &name), "2 true");
    assert_eq!(containers(&engine, &name), [name.as_str()]);
    let _ = caller.sign().expect(200);
}

#[test]
fn an_update_during_which_the_daemon_was_killed_is_finished_or_taken_back() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name, gate) = (image(&engine), engine.name("m1"), Gate::new(&engine));
    let mut device = Device::builder().engine(&engine, &gate.uri()).start();
    let (caller, mut spec) = running(&device, &name, image.name());
    // Where the daemon is killed, and which container serves afterwards.
    let points = [
        ("/stop", "old"),
        ("/rename?", "old"),
        ("/containers/create", "old"),
        ("/start", "new"),
        ("DELETE", "new"),
    ];
    for (number, (line, serves)) in (2..).zip(points) {
        let before = version(&engine, &name);
        spec["config"]["settings"]["createOptions"]["Labels"]["version"] =
            json!(number.to_string());
        gate.hold(line);
        let target = format!("/modules/{name}?start=true&{VERSION}");
        std::thread::scope(|scope| {
            let update = scope.spawn(|| device.agent().manage("PUT", &target, Some(spec.clone())));
            gate.wait();
            // While it goes on nobody sees two.
            let list = http::call(
                &device.root().management_socket(),
                "GET",
                &format!("/modules?{VERSION}"),
                None,
            );
            let list = list.unwrap().expect(200);
            let names = list["modules"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|module| module["name"].as_str());
            assert!(
                names.filter(|other| other.starts_with(&name)).all(|other| other == name),
                "{list}"
            );
            rustix::process::kill_process(
                rustix::process::Pid::from_raw(i32::try_from(device.pid(Daemon::Moduled)).unwrap())
                    .unwrap(),
                rustix::process::Signal::KILL,
            )
            .unwrap();
            let _ = update.join();
        });
        device.kill(Daemon::Moduled);
        gate.open();
        device.start(Daemon::Moduled);
        let expected = if serves == "old" { before } else { format!("{number} true") };
        wait_for(&format!("the update cut off at {line} to be settled"), || {
            (containers(&engine, &name) == [name.as_str()] && version(&engine, &name) == expected)
                .then_some(())
        });
        wait_for("the module to be served", || caller.try_signed().map(drop));
    }
}
