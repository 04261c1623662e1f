//! Images: pulled with credentials, pinned by content, signed; and what was measured is
//! what is made.

use std::path::Path;
use std::process::Command;

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, Engine, Registry, VERSION};
use serde_json::{Value, json};

use crate::gate::Gate;
use crate::{image, programs, with_engine};

const PASSWORD: &str = "planted-registry-word";

fn create(device: &Device, spec: Value) -> edgekeep_testkit::http::Answer {
    device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec))
}

#[test]
fn an_image_is_pulled_with_credentials_and_pinned_by_its_manifest_and_no_secret_comes_back() {
    let Some(engine) = Engine::or_skip() else { return };
    if engine.says(&["version", "-f", "{{json .Server}}"]).contains("Podman") {
        eprintln!("skipped: Podman asks registries by TLS only unless it is configured otherwise");
        return;
    }
    let registry = Registry::start(&programs(), PASSWORD);
    let (image, name) = (registry.image(), engine.name("m1"));
    let device = with_engine(&engine).variable("EDGEKEEP_LOG", "debug").start();
    let (caller, mut spec) = device.container_caller(&name, &image);
    spec["imagePullPolicy"] = json!("On-Create");
    const WORD: &str = "planted-variable-word";
    spec["config"]["env"].as_array_mut().unwrap().push(json!({ "key": "SECRET", "value": WORD }));
    spec["config"]["settings"]["createOptions"]["Env"] = json!([format!("OTHER={WORD}")]);
    spec["config"]["settings"]["createOptions"]["Labels"] =
        json!({ "net.azure-devices.edge.env": WORD });
    spec["config"]["settings"]["auth"] = json!({ "username": "u", "password": "another-planted-word",
        "serveraddress": image.split('/').next() });
    let mut answers = vec![create(&device, spec.clone())];
    assert!(answers[0].status >= 400, "{}", answers[0].text());
    spec["config"]["settings"]["auth"]["password"] = json!(PASSWORD);
    // Fetched, and then not what the deployment wants.
    spec["config"]["settings"]["digest"] = json!(format!("sha256:{}", "0".repeat(64)));
    answers.push(create(&device, spec.clone()));
    assert_eq!(answers[1].status, 403, "{}", answers[1].text());
    assert!(answers[1].text().contains("digest of the settings is"), "{}", answers[1].text());
    assert!(!engine.docker(&["inspect", &name]).status.success(), "nothing was made");
    spec["config"]["settings"]["digest"] = json!(registry.manifest());
    answers.push(create(&device, spec.clone()));
    assert_eq!(answers[2].status, 201, "{}", answers[2].text());
    let manage = |method: &str, target: &str, body| {
        device.agent().manage(method, &format!("{target}{VERSION}"), body)
    };
    answers.push(manage("PUT", &format!("/modules/{name}?start=true&"), Some(spec.clone())));
    assert_eq!(answers[3].status, 201, "{}", answers[3].text());
    let _ = caller.sign().expect(200);
    answers.push(manage("POST", &format!("/modules/{name}/prepareupdate?"), Some(spec)));
    for route in [
        "/systeminfo",
        "/systeminfo/resources",
        "/status",
        "/identities",
        "/systeminfo/supportbundle",
    ] {
        answers.push(device.ask("GET", &format!("{route}?{VERSION}"), None));
    }
    answers.push(device.ask("GET", &format!("/modules/{name}/logs?{VERSION}"), None));
    let log = device.log(Daemon::Moduled);
    assert!(log.contains("Pulling"), "progress is told at level debug");
    let texts = answers.iter().map(edgekeep_testkit::http::Answer::text).chain([log]);
    for text in texts {
        for word in [WORD, PASSWORD, "another-planted-word"] {
            assert!(!text.contains(word), "{word} came back in {text}");
        }
    }
    // The list has the agent's own label, by which agents know what they applied, and
    // nothing else of it.
    let list = device.ask("GET", &format!("/modules?{VERSION}"), None).text();
    assert!(!list.contains("SECRET") && !list.contains("OTHER="), "{list}");
    drop(device);
    let _ = engine.docker(&["rmi", "-f", &image]);
}

#[test]
fn what_was_measured_is_made_even_if_the_name_moves_meanwhile() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name, gate) = (image(&engine), engine.name("m1"), Gate::new(&engine));
    let device = Device::builder().engine(&engine, &gate.uri()).start();
    let (caller, mut spec) = device.container_caller(&name, image.name());
    let measured = engine.says(&["image", "inspect", "-f", "{{.Id}}", image.name()]);
    spec["config"]["settings"]["imageHash"] = json!(measured);
    gate.hold("/containers/create");
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| create(&device, spec.clone()));
        gate.wait();
        engine.import_as(&programs(), "moved", image.name());
        gate.open();
        let _ = creating.join().unwrap().expect(201);
    });
    assert_eq!(engine.says(&["inspect", "-f", "{{.Image}}", &name]), measured);
    let _ = device
        .agent()
        .manage("POST", &format!("/modules/{name}/start?{VERSION}"), None)
        .expect(204);
    let _ = caller.sign().expect(200);
    // Made anew from the name as it is now, it is not what is pinned.
    let refused = device.agent().manage("PUT", &format!("/modules/{name}?{VERSION}"), Some(spec));
    refused.expect_error(403, "imageHash of the settings is");
    let _ = caller.sign().expect(200);
}

fn openssl(folder: &Path, words: &[&str]) {
    let output = Command::new("openssl")
        .args(words)
        .current_dir(folder)
        .output()
        .expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_image_that_must_be_signed_is_used_only_with_a_signature() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    openssl(path, &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key"]);
    openssl(path, &["ec", "-in", "key", "-pubout", "-out", "key.pem"]);
    let repository = format!("docker.io/library/{}", image.name().split(':').next().unwrap());
    let policy = format!(
        "[image_policy]\nsignatures = {path:?}\n[image_policy.images.\"docker.io/library/edgekeep-suite-*\"]\nkeys = \
         [\"file://{}/key.pem\"]",
        path.display()
    );
    let device = with_engine(&engine).tables(&policy).start();
    let (caller, spec) = device.container_caller(&name, image.name());
    create(&device, spec.clone())
        .expect_error(403, "must be signed by a key of [image_policy], and is not");
    let id = engine.says(&["image", "inspect", "-f", "{{.Id}}", image.name()]);
    // By its id there is no way around.
    let mut by_id = spec.clone();
    by_id["config"]["settings"]["image"] = json!(id);
    create(&device, by_id).expect_error(403, "must be signed");
    let payload = json!({ "critical": { "identity": { "docker-reference": repository },
        "image": { "docker-manifest-digest": id }, "type": "cosign container image signature" } });
    let base = id.replace(':', "-");
    std::fs::write(path.join(format!("{base}.payload")), payload.to_string()).unwrap();
    openssl(path, &["dgst", "-sha256", "-sign", "key", "-out", "raw", &format!("{base}.payload")]);
    openssl(path, &["base64", "-in", "raw", "-out", &format!("{base}.sig")]);
    device.create_and_start(spec);
    let _ = caller.sign().expect(200);
}
