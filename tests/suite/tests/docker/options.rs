//! Options that deployments may ask of the engine: each trick is first shown to work with
//! the engine itself.

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Engine, VERSION};
use serde_json::{Value, json};

use crate::{image, with_engine};

/// Has the engine make a container of a create body. Tells if the container is
/// privileged, and if it mounts `/etc`; neither if the engine refuses the body.
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
        (
            json!({ "HostConfig": { "Binds": [] }, "hostConfig": { "Binds": ["/etc:/x"] } }),
            "HostConfig",
        ),
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
    assert!(
        worked >= 4,
        "only {worked} of these work with this engine: the test has lost its point"
    );
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
        .tables(&format!(
            "[modules.{granted:?}.grant]\nbinds = [{folder:?}]\ncapabilities = [\"NET_ADMIN\"]"
        ))
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
    assert!(
        refused.contains(&format!("grant it: [modules.{other:?}.grant] binds = [{folder:?}]")),
        "{refused}"
    );
    let refused = create(&granted, &format!("{folder}/out")).expect(400);
    assert!(
        refused["message"].as_str().unwrap().contains("HostConfig.Binds[0]"),
        "the link leads out: {refused}"
    );
    let _ = create(&granted, &format!("{folder}/in")).expect(201);
    let host = engine.says(&[
        "inspect",
        "-f",
        "{{json .HostConfig.CapAdd}} {{json .HostConfig.Binds}}",
        &granted,
    ]);
    assert!(
        host.contains("NET_ADMIN") && !host.contains("SYS_ADMIN"),
        "taken, as existing services do: {host}"
    );
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
        spec["config"]["settings"]["createOptions"]["HostConfig"]["Binds"] =
            json!([format!("{}:/x", place.display())]);
        let refused =
            device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec)).expect(400);
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains("this device's own sockets or state"), "{message}");
    }
}

/// Returns what a script prints in a container of these options; `None` where the engine
/// refuses the container.
fn printed(engine: &Engine, image: &str, options: &Value, script: &str) -> Option<String> {
    let name = engine.name("probe");
    let mut body = options.clone();
    body["Image"] = json!(image);
    body["Entrypoint"] = json!(["/bin/sh", "-c", script]);
    body["HostConfig"]["NetworkMode"] = json!("none");
    let target = format!("/containers/create?name={name}");
    let created =
        edgekeep_testkit::http::call(&engine.socket(), "POST", &target, Some(&body)).unwrap();
    if created.status != 201 {
        return None;
    }
    let started = engine.docker(&["start", &name]).status.success();
    let text = started.then(|| {
        let _ = engine.says(&["wait", &name]);
        engine.says(&["logs", &name])
    });
    let _ = engine.says(&["rm", "-f", &name]);
    text
}

/// Ways to the host that are not mounts. What an engine makes of each is said, for
/// engines differ; none gets past the check.
#[test]
fn members_that_reach_the_host_in_some_engine_are_refused_by_their_name() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let device = with_engine(&engine).top("allow_elevated_docker_permissions = false").start();
    let generation = device.create_identity(&name);
    let host = |member: &str, value: Value| json!({ "HostConfig": { member: value } });
    let mut taken = 0;
    let inherited =
        |text: &str| text.lines().any(|line| line.starts_with("_=") || line.starts_with("SHELL="));
    for (options, option, script, reached) in [
        // Podman gives the whole environment of its own service.
        (json!({ "Env": ["*"] }), "Env[0]", "set", &inherited as &dyn Fn(&str) -> bool),
        (json!({ "Env": ["SHELL", "_"] }), "Env[0]", "set", &inherited),
        (
            host("OomScoreAdj", json!(-999)),
            "HostConfig.OomScoreAdj",
            "read a </proc/self/oom_score_adj; echo $a",
            &|t| t == "-999",
        ),
        (
            host("Ulimits", json!([{ "Name": "rtprio", "Soft": 99, "Hard": 99 }])),
            "HostConfig.Ulimits[0]",
            "ulimit -r",
            &|text| text == "99",
        ),
        (
            host("Sysctls", json!({ "net.ipv4.ip_unprivileged_port_start": "0" })),
            "HostConfig.Sysctls.net.ipv4.ip_unprivileged_port_start",
            "read a </proc/sys/net/ipv4/ip_unprivileged_port_start; echo $a",
            &|text| text == "0",
        ),
        (host("PidMode", json!("host")), "HostConfig.PidMode", "echo $$", &|text| text != "1"),
        (host("UTSMode", json!("host")), "HostConfig.UTSMode", "echo made", &|text| text == "made"),
        (host("IpcMode", json!("host")), "HostConfig.IpcMode", "echo made", &|text| text == "made"),
        (
            host("SecurityOpt", json!(["seccomp=unconfined"])),
            "HostConfig.SecurityOpt[0]",
            "while read a b; do test $a = Seccomp: && echo $b; done </proc/self/status",
            &|text| text == "0",
        ),
        (
            host("MaskedPaths", json!([])),
            "HostConfig.MaskedPaths",
            "test -c /proc/keys || echo open",
            &|text| text == "open",
        ),
        (
            host("CgroupParent", json!("/ek-elsewhere")),
            "HostConfig.CgroupParent",
            "echo made",
            &|text| text == "made",
        ),
        (
            host("DeviceCgroupRules", json!(["a *:* rwm"])),
            "HostConfig.DeviceCgroupRules",
            "echo made",
            &|text| text == "made",
        ),
        (
            host(
                "Devices",
                json!([{ "PathOnHost": "/dev/kmsg", "PathInContainer": "/dev/x", "CgroupPermissions": "rwm" }]),
            ),
            "HostConfig.Devices[0]",
            "test -c /dev/x && echo made",
            &|text| text == "made",
        ),
        (
            host("ContainerIDFile", json!("/tmp/ek-x")),
            "HostConfig.ContainerIDFile",
            "echo made",
            &|text| text == "made",
        ),
        (
            host("Annotations", json!({ "io.podman.annotations.cid-file": "/tmp/ek-x" })),
            "HostConfig.Annotations",
            "echo made",
            &|text| text == "made",
        ),
        (
            json!({ "Labels": { "io.containers.autoupdate": "registry" } }),
            "Labels.io.containers.autoupdate",
            "echo made",
            &|text| text == "made",
        ),
        (json!({ "StopTimeout": -1 }), "StopTimeout", "echo made", &|text| text == "made"),
        (
            host(
                "LogConfig",
                json!({ "Type": "json-file", "Config": { "tag": "{{upper .Name}}" } }),
            ),
            "HostConfig.LogConfig.Config.tag",
            "echo made",
            &|text| text == "made",
        ),
        (json!({ "WorkingDir": "/proc/self/fd/7" }), "WorkingDir", "echo made", &|text| {
            text == "made"
        }),
    ] {
        let seen = printed(&engine, image.name(), &options, script);
        taken += usize::from(seen.as_deref().is_some_and(reached));
        eprintln!(
            "{option}: {}",
            match &seen {
                None => "refused by the engine",
                Some(text) if reached(text) => "taken by the engine",
                Some(_) => "without effect here",
            }
        );
        let mut spec = device.container_spec(&name, image.name(), &generation);
        spec["config"]["settings"]["createOptions"] = options;
        let text = device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec)).text();
        assert!(text.contains(&format!("create option {option} is refused: ")), "{text}");
    }
    assert!(taken >= 8, "only {taken} of these work with this engine: the test has lost its point");
}

#[test]
fn a_mount_of_what_lies_above_the_devices_own_places_shows_nothing_of_them() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, names) =
        (image(&engine), ["hidden", "granted", "again"].map(|name| engine.name(name)));
    let [hidden, granted, again] = &names;
    let grant = format!("[modules.{granted:?}.grant]\nbinds = [\"{{root}}/run/aziot\"]");
    let device = with_engine(&engine).tables(&grant).start();
    let above = device.root().path().display().to_string();
    let script = "for f in /h/run/aziot/keyd.sock /h/run/iotedge/mgmt.sock /h/etc /h/var/lib/edgekeep/keyd \
                  /v/run/aziot/keyd.sock; do test -e $f && echo $f; done; echo end";
    let seen = |module: &str, host: Value| {
        let generation = device.create_identity(module);
        let mut spec = device.container_spec(module, image.name(), &generation);
        let mut host = host;
        host["NetworkMode"] = json!("none");
        let options = json!({ "Entrypoint": ["/bin/sh", "-c", script], "HostConfig": host });
        spec["config"]["settings"]["createOptions"] = options;
        device.create_and_start(spec);
        let _ = engine.says(&["wait", module]);
        engine.says(&["logs", module])
    };
    let binds = json!({ "Binds": [format!("{above}:/h:ro"), format!("{above}/run:/v/run")] });
    assert_eq!(seen(hidden, binds.clone()), "/h/etc\nend", "what is not the device's own is seen");
    let text = seen(granted, binds);
    assert_eq!(
        text, "/h/run/aziot/keyd.sock\n/h/etc\n/v/run/aziot/keyd.sock\nend",
        "what is granted is seen"
    );
    // The same by a volume that leads there, and by another container, which cannot be
    // changed.
    let volume = engine.name("all");
    let device_option = format!("--opt=device={above}");
    let _ = engine.says(&[
        "volume",
        "create",
        "--opt=type=none",
        "--opt=o=bind",
        &device_option,
        &volume,
    ]);
    assert_eq!(seen(again, json!({ "Binds": [format!("{volume}:/h")] })), "/h/etc\nend");
    let mut spec = device.container_spec(again, image.name(), &device.create_identity("other"));
    spec["name"] = json!("other");
    let bare = engine.name("bare");
    let _ = engine.says(&["create", "--name", &bare, "-v", &format!("{above}:/h"), image.name()]);
    spec["config"]["settings"]["createOptions"] =
        json!({ "HostConfig": { "VolumesFrom": [bare] } });
    let refused =
        device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec)).expect(400);
    assert!(refused["message"].as_str().unwrap().contains("would be seen in it"), "{refused}");
    let _ = engine.docker(&["rm", "-f", &bare, hidden, granted, again]);
    let _ = engine.docker(&["volume", "rm", "-f", &volume]);
}

#[test]
fn a_grant_of_a_folder_does_not_become_one_of_the_host_by_a_link_at_the_next_start() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let shared = tempfile::tempdir().unwrap();
    let (folder, inner) = (shared.path().display().to_string(), shared.path().join("x"));
    std::fs::create_dir(&inner).unwrap();
    let device = with_engine(&engine)
        .top("allow_elevated_docker_permissions = false")
        .tables(&format!("[modules.{name:?}.grant]\nbinds = [{folder:?}]"))
        .start();
    let binds = json!([format!("{folder}:/d"), format!("{folder}/x:/e")]);
    // With the engine alone: what was a folder is another place at the next start.
    let probe = engine.name("probe");
    let body = json!({ "Image": image.name(), "HostConfig": { "NetworkMode": "none", "Binds": binds },
        "Entrypoint": ["/bin/sh", "-c", "test -e /e/hostname && echo out; true"] });
    let target = format!("/containers/create?name={probe}");
    let _ = edgekeep_testkit::http::call(&engine.socket(), "POST", &target, Some(&body))
        .unwrap()
        .expect(201);
    std::fs::remove_dir(&inner).unwrap();
    std::os::unix::fs::symlink("/etc", &inner).unwrap();
    let _ = engine.says(&["start", &probe]);
    let _ = engine.says(&["wait", &probe]);
    assert_eq!(engine.says(&["logs", &probe]), "out", "else the test has lost its point");
    let _ = engine.says(&["rm", "-f", &probe]);
    std::fs::remove_file(&inner).unwrap();
    std::fs::create_dir(&inner).unwrap();

    let mut spec = device.container_spec(&name, image.name(), &device.create_identity(&name));
    spec["config"]["settings"]["createOptions"]["HostConfig"]["Binds"] = binds;
    let refused =
        device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec)).expect(400);
    assert!(
        refused["message"].as_str().unwrap().contains("could put a link in place of"),
        "{refused}"
    );
}
