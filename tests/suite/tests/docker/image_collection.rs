//! Images of former modules are removed when they should be, and no others.

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, Engine, VERSION, wait_for};
use serde_json::{Value, json};

use crate::{programs, with_engine};

/// Makes ages of seconds count as old.
fn in_a_hurry(device: &mut Device, settings: &Value) {
    device.kill(Daemon::Moduled);
    let file = device.root().settings_file(Daemon::Moduled);
    let mut all: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for (name, value) in settings.as_object().unwrap() {
        all["image_collection"][name] = value.clone();
    }
    std::fs::write(&file, all.to_string()).unwrap();
    device.start(Daemon::Moduled);
}

fn line(plan: &Value, image: &str) -> Option<Value> {
    plan["images"]
        .as_array()
        .unwrap()
        .iter()
        .find(|line| line["names"].to_string().contains(image))
        .cloned()
}

fn plan(device: &Device, arguments: &[&str]) -> Value {
    let output = device.edgekeep(&[&["--json", "images"], arguments].concat());
    assert!(!output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn exists(engine: &Engine, image: &str) -> bool {
    engine.docker(&["image", "inspect", image]).status.success()
}

#[test]
fn an_image_goes_when_no_module_uses_it_any_more_and_others_stay() {
    let Some(engine) = Engine::or_skip() else { return };
    let [old, new, foreign] =
        ["old", "new", "foreign"].map(|mark| engine.import(&programs(), &engine.name(mark)));
    // A second name is no obstacle.
    let second = format!("{}-again", old.name());
    let _ = engine.says(&["tag", old.name(), &second]);
    let (name, stopped) = (engine.name("m1"), engine.name("stopped"));
    let mut device = with_engine(&engine).start();
    // The disk of who runs the test is not to decide.
    in_a_hurry(
        &mut device,
        &json!({"grace_sec": 3600, "unused_sec": 1, "enabled": false, "high_percent": 101}),
    );
    let (m1, spec) = device.container_caller(&name, old.name());
    device.create_and_start(spec);
    let _ = m1.sign().expect(200);
    assert_eq!(line(&plan(&device, &[]), old.name()).unwrap()["reason"], "used-by-container");

    let generation = device.create_identity(&stopped);
    let idle = device.container_spec(&stopped, new.name(), &generation);
    let _ = device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(idle)).expect(201);
    let _ =
        device.agent().manage("DELETE", &format!("/modules/{name}?{VERSION}"), None).expect(204);
    assert_eq!(
        line(&plan(&device, &["--dry-run"]), old.name()).unwrap()["reason"],
        "recently-used"
    );
    in_a_hurry(&mut device, &json!({ "grace_sec": 0 }));
    let due = wait_for("the image to be old", || {
        let line = line(&plan(&device, &[]), old.name()).unwrap();
        (line["reason"] == "unused").then_some(line)
    });
    assert_eq!((&due["remove"], &due["removed"]), (&json!(true), &json!(false)));
    assert!(exists(&engine, old.name()), "a dry run removes nothing");

    let collected = plan(&device, &["--collect"]);
    assert_eq!(line(&collected, old.name()).unwrap()["removed"], true, "{collected}");
    assert!(!exists(&engine, old.name()) && !exists(&engine, &second));
    assert_eq!(
        line(&collected, new.name()).unwrap()["reason"],
        "used-by-container",
        "a stopped container's"
    );
    assert_eq!(line(&collected, foreign.name()).unwrap()["reason"], "not-ours");
    assert!(exists(&engine, new.name()) && exists(&engine, foreign.name()));
    assert!(device.log(Daemon::Moduled).contains("image removed"));
    let _ = device.edgekeep(&["images"]);
}

#[test]
fn it_happens_unasked_survives_restarts_and_never_takes_the_agents_image() {
    let Some(engine) = Engine::or_skip() else { return };
    let [used, agent] =
        ["used", "agent"].map(|mark| engine.import(&programs(), &engine.name(mark)));
    let name = engine.name("m1");
    let mut device = with_engine(&engine).start();
    let (_m1, spec) = device.container_caller(&name, used.name());
    device.create_and_start(spec);
    // The other was used as well, and then becomes what the agent is to be made from.
    let other = engine.name("other");
    let (_other, spec) = device.container_caller(&other, agent.name());
    device.create_and_start(spec);
    for module in [&name, &other] {
        let _ = device
            .agent()
            .manage("DELETE", &format!("/modules/{module}?{VERSION}"), None)
            .expect(204);
    }
    // Only what a former daemon remembers says that the images were ours.
    let file = device.root().settings_file(Daemon::Moduled);
    let mut all: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    all["agent"]["image"] = json!(agent.name());
    std::fs::write(&file, all.to_string()).unwrap();
    let hurry = json!({"grace_sec": 1, "unused_sec": 2, "recurrence_sec": 2, "look_sec": 1, "high_percent": 101});
    in_a_hurry(&mut device, &hurry);
    wait_for("the image to go", || (!exists(&engine, used.name())).then_some(()));
    let line = line(&plan(&device, &[]), agent.name()).unwrap();
    assert_eq!(line["reason"], "bootstrap", "{line}");
    assert!(exists(&engine, agent.name()));
}
