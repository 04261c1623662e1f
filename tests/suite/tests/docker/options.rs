//! What deployments may ask of the engine: each trick is first shown to work with the engine itself.

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Engine, VERSION};
use serde_json::{Value, json};

use crate::{image, with_engine};

/// What the engine makes of a create body: privileged or not, and where it mounts `/etc`. Neither where it refuses it.
fn made_by(engine: &Engine, name: &str, body: &Value) -> (bool, bool) {
    let socket = engine.socket();
    let target = format!("/containers/create?name={name}");
    let created = edgekeep_testkit::http::call(&socket, "POST", &target, Some(body)).unwrap();
    if created.status != 201 {
        eprintln!("the engine refuses {body}: {}", created.text());
        return (false, false);
    }
    let seen = engine.says(&["inspect", "-f", "{{.HostConfig.Privileged}} {{json .Mounts}}", name]);
    let _ = engine.says(&["rm", "-f", name]);
    (seen.starts_with("true"), seen.contains("\"Source\":\"/etc\""))
}

#[test]
fn spellings_and_places_that_the_engine_takes_do_not_get_past_the_check() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let device = with_engine(&engine).top("allow_elevated_docker_permissions = false").start();
    let generation = device.create_identity(&name);
    // A mount of a place that any module may have, in which Podman reads another.
    let open = device.root().legacy_workload_socket().display().to_string();
    let mount = |more: &str, value: Value| {
        let mut mount = json!({ "Type": "bind", "Source": open, "Target": "/x" });
        mount[more] = value;
        json!({ "HostConfig": { "Mounts": [mount] } })
    };
    let beside = json!({ "HostConfig": { "Mounts": [{ "Type": "bind", "Source": "/etc", "Target": "/x",
        "VolumeOptions": { "DriverConfig": { "Options": { "device": open } } } }] } });
    // Some of these are Docker's, some are Podman's.
    let tricks = [
        (json!({ "hostconfig": { "PRIVILEGED": true, "pidmode": "host" } }), "HostConfig.PidMode"),
        (json!({ "Privileged": true }), "Privileged"),
        (json!({ "Binds": ["/etc:/x"] }), "Binds[0]"),
        (json!({ "Ho\u{17f}tConfig": { "BIND\u{17f}": ["/etc:/x"] } }), "HostConfig.Binds[0]"),
        (json!({ "HostConfig": { "Binds": [] }, "hostConfig": { "Binds": ["/etc:/x"] } }), "HostConfig"),
        (
            json!({ "HostConfig": { "Mounts": [{ "type": "bind", "SOURCE": "/etc", "target": "/x" }] } }),
            "HostConfig.Mounts[0].Source",
        ),
        (json!({ "Volumes": { "/etc:/x": {} } }), "Volumes./etc:/x"),
        (mount("Consistency", json!("cached,src=/etc")), "HostConfig.Mounts[0].Consistency"),
        (
            mount("BindOptions", json!({ "Propagation": "rprivate,src=/etc" })),
            "HostConfig.Mounts[0].BindOptions.Propagation",
        ),
        (beside, "HostConfig.Mounts[0].Source"),
        (
            json!({ "HostConfig": { "LogConfig": { "Type": "k8s-file", "Config": { "path": "/etc/edgekeep-test" } } } }),
            "HostConfig.LogConfig.Config.path",
        ),
        (
            json!({ "Volumes": { "v:/x:O,upperdir=/etc,workdir=/root": {} } }),
            "Volumes.v:/x:O,upperdir=/etc,workdir=/root",
        ),
    ];
    let mut worked = 0;
    for (options, option) in tricks {
        let mut body = options.clone();
        body["Image"] = json!(image.name());
        let (privileged, mounted) = made_by(&engine, &engine.name("trick"), &body);
        worked += usize::from(privileged || mounted);
        let mut spec = device.container_spec(&name, image.name(), &generation);
        spec["config"]["settings"]["createOptions"] = options;
        let answer = device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec));
        let text = answer.text();
        assert_eq!(answer.status, 400, "{text}");
        assert!(text.contains(&format!("create option {option} is refused: ")), "{text}");
        assert!(!engine.docker(&["inspect", &name]).status.success(), "nothing was made");
    }
    assert!(worked >= 4, "only {worked} of these work with this engine: the test has lost its point");
}

#[test]
fn a_grant_gives_one_module_what_others_are_refused() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let [granted, other] = ["granted", "other"].map(|name| engine.name(name));
    let shared = tempfile::tempdir().unwrap();
    std::fs::create_dir(shared.path().join("in")).unwrap();
    std::os::unix::fs::symlink("/etc", shared.path().join("out")).unwrap();
    let folder = shared.path().display().to_string();
    let device = with_engine(&engine)
        .top("allow_elevated_docker_permissions = false")
        .tables(&format!("[modules.{granted:?}.grant]\nbinds = [{folder:?}]\ncapabilities = [\"NET_ADMIN\"]"))
        .start();
    let create = |module: &str, source: &str| {
        let generation = device.create_identity(module);
        let mut spec = device.container_spec(module, image.name(), &generation);
        let host = &mut spec["config"]["settings"]["createOptions"]["HostConfig"];
        host["Binds"] = json!([format!("{source}:/d")]);
        host["CapAdd"] = json!(["NET_ADMIN", "SYS_ADMIN"]);
        device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec))
    };
    let refused = create(&other, &folder).expect(400)["message"].as_str().unwrap().to_owned();
    assert!(refused.contains(&format!("grant it: [modules.{other:?}.grant] binds = [{folder:?}]")), "{refused}");
    let refused = create(&granted, &format!("{folder}/out")).expect(400);
    assert!(refused["message"].as_str().unwrap().contains("HostConfig.Binds[0]"), "the link leads out: {refused}");
    let _ = create(&granted, &format!("{folder}/in")).expect(201);
    let host = engine.says(&["inspect", "-f", "{{json .HostConfig.CapAdd}} {{json .HostConfig.Binds}}", &granted]);
    assert!(host.contains("NET_ADMIN") && !host.contains("SYS_ADMIN"), "taken, as existing services do: {host}");
    assert!(host.contains(&format!("{folder}/in:/d")), "{host}");
}

#[test]
fn with_any_permissions_the_devices_own_sockets_are_mounted_into_nobody() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let device = with_engine(&engine).start();
    let generation = device.create_identity(&name);
    let root = device.root();
    let folders = root.state_folder(Daemon::Moduled).join("containers");
    let agents = root.module_socket_folder().join("edgeAgent");
    let others = [agents, folders.join("edgeAgent"), folders];
    for place in others.into_iter().chain([
        root.keyd_socket(),
        root.management_socket(),
        root.path().join("run/../etc//edgekeep"),
    ]) {
        let mut spec = device.container_spec(&name, image.name(), &generation);
        spec["config"]["settings"]["createOptions"]["HostConfig"]["Binds"] = json!([format!("{}:/x", place.display())]);
        let refused = device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec)).expect(400);
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains("this device's own sockets or state"), "{message}");
    }
}
