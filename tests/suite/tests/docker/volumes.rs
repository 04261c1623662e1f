//! Volumes are what they were made to be, whatever their name says, and a container is
//! what the engine made of it.

use std::process::Command;

use edgekeep_testkit::{Engine, VERSION, http};
use serde_json::{Value, json};

use crate::gate::Gate;
use crate::{image, with_engine};

/// A volume that leads to a place of the host; removed with this.
struct Leading<'a> {
    engine: &'a Engine,
    name: String,
}

impl<'a> Leading<'a> {
    fn new(engine: &'a Engine, name: String, place: &str) -> Self {
        let options = ["type=none", "o=bind", &format!("device={place}")]
            .map(|option| format!("--opt={option}"));
        let mut arguments = vec!["volume", "create"];
        arguments.extend(options.iter().map(String::as_str));
        arguments.push(&name);
        let _ = engine.says(&arguments);
        Self { engine, name }
    }
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        let _ = self.engine.docker(&["volume", "rm", "-f", &self.name]);
    }
}

/// Returns true if a container of these options sees `file` below `/x`.
fn sees(engine: &Engine, image: &str, options: &Value, file: &str) -> bool {
    let name = engine.name("probe");
    let mut body = options.clone();
    body["Image"] = json!(image);
    body["Entrypoint"] = json!(["/bin/sh", "-c", format!("test -e /x/{file}")]);
    body["HostConfig"]["NetworkMode"] = json!("none");
    let created = http::call(
        &engine.socket(),
        "POST",
        &format!("/containers/create?name={name}"),
        Some(&body),
    )
    .unwrap();
    assert_eq!(created.status, 201, "{}", created.text());
    let ran =
        engine.docker(&["start", &name]).status.success() && engine.says(&["wait", &name]) == "0";
    let _ = engine.says(&["rm", "-f", &name]);
    ran
}

fn create(
    device: &edgekeep_testkit::Device,
    module: &str,
    image: &str,
    options: &Value,
) -> http::Answer {
    let generation = device.create_identity(module);
    let mut spec = device.container_spec(module, image, &generation);
    spec["config"]["settings"]["createOptions"] = options.clone();
    device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec))
}

#[test]
fn a_volume_made_before_to_lead_to_the_host_is_refused_by_its_name() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, [m1, granted]) = (image(&engine), ["m1", "granted"].map(|name| engine.name(name)));
    let volume = Leading::new(&engine, engine.name("etc"), "/etc");
    let device = with_engine(&engine)
        .top("allow_elevated_docker_permissions = false")
        .tables(&format!("[modules.{granted:?}.grant]\nvolumes = [{:?}]", volume.name))
        .start();
    let bind = json!({ "HostConfig": { "Binds": [format!("{}:/x", volume.name)] } });
    let mount = json!({ "Type": "volume", "Source": volume.name, "Target": "/x" });
    for options in [bind.clone(), json!({ "HostConfig": { "Mounts": [mount] } })] {
        assert!(
            sees(&engine, image.name(), &options, "hostname"),
            "else the test has lost its point"
        );
        let text = create(&device, &m1, image.name(), &options).expect(400)["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            text.contains(&format!("it mounts /etc of the host by the volume {}", volume.name)),
            "{text}"
        );
    }
    let _ = create(&device, &granted, image.name(), &bind).expect(201);
    let plain = json!({ "HostConfig": { "Binds": [format!("{}:/x", engine.name("plain"))] } });
    let _ = create(&device, &m1, image.name(), &plain).expect(201);
    let _ = engine.docker(&["rm", "-f", &m1, &granted]);
    let _ = engine.docker(&["volume", "rm", &engine.name("plain")]);
}

#[test]
fn a_volume_that_appears_between_the_look_and_the_engines_create_leaves_no_container() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name, gate) = (image(&engine), engine.name("m1"), Gate::new(&engine));
    let device = edgekeep_testkit::Device::builder()
        .engine(&engine, &gate.uri())
        .top("allow_elevated_docker_permissions = false")
        .start();
    let swapped = engine.name("swapped");
    let options = json!({ "HostConfig": { "Binds": [format!("{swapped}:/x")] } });
    gate.hold("/containers/create");
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| create(&device, &name, image.name(), &options));
        gate.wait();
        let _volume = Leading::new(&engine, swapped.clone(), "/etc");
        gate.open();
        let text = creating.join().unwrap().expect(400)["message"].as_str().unwrap().to_owned();
        assert!(
            text.contains("(/x in the container that was made) is refused: it mounts /etc"),
            "{text}"
        );
        assert!(!engine.docker(&["inspect", &name]).status.success(), "nothing is left of it");
    });
}

#[test]
fn with_any_permissions_no_volume_and_no_other_container_brings_the_devices_own_places() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name, other) = (image(&engine), engine.name("m1"), engine.name("other"));
    let device = with_engine(&engine).start();
    let keys = device.root().keyd_socket().parent().unwrap().display().to_string();
    let volume = Leading::new(&engine, engine.name("keys"), &keys);
    let bind = json!({ "HostConfig": { "Binds": [format!("{}:/x", volume.name)] } });
    assert!(sees(&engine, image.name(), &bind, "keyd.sock"), "else the test has lost its point");
    let _ = engine.says(&["create", "--name", &other, "-v", &format!("{keys}:/x"), image.name()]);
    // Podman does not tell of what is taken over, and less of what is taken over twice.
    let second = engine.name("second");
    let _ = engine.says(&["create", "--name", &second, "--volumes-from", &other, image.name()]);
    let overlay = format!("lowerdir={keys},upperdir=/tmp/u,workdir=/tmp/w");
    let layers = json!({ "Type": "volume", "Target": "/x", "VolumeOptions": { "DriverConfig": { "Name": "local",
        "Options": { "type": "overlay", "device": "overlay", "o": overlay } } } });
    for options in [
        bind,
        json!({ "HostConfig": { "VolumesFrom": [other] } }),
        json!({ "HostConfig": { "Mounts": [layers] } }),
    ] {
        let text = create(&device, &name, image.name(), &options).expect(400)["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(text.contains("this device's own sockets or state"), "{text}");
        assert!(!engine.docker(&["inspect", &name]).status.success(), "nothing is left of it");
    }
    let _ = engine.docker(&["rm", "-f", &second, &other]);
}

/// An image's own `VOLUME`s are no way round: they are folders of the engine's own.
#[test]
fn a_volume_of_the_image_is_never_a_place_of_the_host() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let derived = format!("{}-volumes", image.name());
    let exported = tempfile::NamedTempFile::new().unwrap();
    let id = engine.says(&["create", image.name()]);
    let mut export = Command::new("docker");
    export.args(["-H", engine.uri(), "export", "-o"]).arg(exported.path()).arg(&id);
    assert!(export.status().unwrap().success());
    let _ = engine.says(&["rm", "-f", &id]);
    let volumes = "VOLUME [\"/etc:/x\", \"/data\"]";
    let _ =
        engine.says(&["import", "-c", volumes, &exported.path().display().to_string(), &derived]);
    let device = with_engine(&engine).top("allow_elevated_docker_permissions = false").start();
    let options = json!({ "Entrypoint": ["/bin/sleep", "1000"] });
    let created = create(&device, &name, &derived, &options);
    // Podman may refuse such a path; what is made shows nothing of the host.
    if created.status == 201 {
        let mounts = engine.says(&["inspect", "-f", "{{json .Mounts}}", &name]);
        assert!(!mounts.contains("\"Source\":\"/etc\""), "{mounts}");
        assert!(mounts.contains("\"Destination\":\"/data\""), "{mounts}");
    }
    let _ = engine.docker(&["rm", "-f", "-v", &name]);
    let _ = engine.docker(&["rmi", "-f", &derived]);
}
