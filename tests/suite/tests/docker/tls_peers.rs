//! A module in a container serves TLS with the certificate that it got, and openssl in
//! another container verifies chain and name.

use std::path::{Path, PathBuf};
use std::process::Output;

use edgekeep_testkit::{Engine, VERSION, wait_for};
use serde_json::{Value, json};

use crate::{image, wait_for_edge_ca, with_engine};

/// The folder of the files as the containers see it.
const MOUNTED: &str = "/tls";

fn openssl(engine: &Engine, folder: &Path, run: &[&str], image: &str, arguments: &str) -> Output {
    let mount = format!("{}:{MOUNTED}:ro", folder.display());
    let mut all = vec!["run", "-v", &mount, "-e", "OPENSSL_CONF=/dev/null"];
    all.extend(run);
    all.push(image);
    all.extend(arguments.split_whitespace());
    engine.docker(&all)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn openssl_in_another_container_verifies_name_and_chain_of_a_modules_tls_service() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let foreign = engine.import(&[PathBuf::from("/usr/bin/openssl")], "openssl");
    let device = with_engine(&engine).start();
    let (m1, mut spec) = device.container_caller(&name, image.name());
    let host = spec["config"]["settings"]["createOptions"]["HostConfig"].as_object_mut().unwrap();
    // In the network of the modules.
    host.remove("NetworkMode");
    device.create_and_start(spec);
    wait_for_edge_ca(&device);

    let folder = tempfile::tempdir().unwrap();
    let target = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{VERSION}");
    let issued = m1.call("POST", &target, Some(json!({ "commonName": name }))).expect(201);
    let bundle = m1.call("GET", &format!("/trust-bundle?{VERSION}"), None).expect(200);
    let file = |name: &str, value: &Value| {
        std::fs::write(folder.path().join(name), value.as_str().unwrap()).unwrap();
    };
    file("server.pem", &issued["certificate"]);
    file("server.key", &issued["privateKey"]["bytes"]);
    file("bundle.pem", &bundle["certificate"]);
    let other = edgekeep_sim::Authority::named("other").unwrap();
    std::fs::write(folder.path().join("other.pem"), other.certificate_pem()).unwrap();

    // openssl serves out of the module's own network, under the module's name.
    let server = engine.name("server");
    device.remember_container(&server);
    let (network, modules) = (format!("container:{name}"), engine.network());
    let serves = format!(
        "s_server -accept 8443 -cert {MOUNTED}/server.pem -cert_chain {MOUNTED}/server.pem -key {MOUNTED}/server.key -www"
    );
    let run = ["-d", "--name", &server, "--network", &network];
    let started = openssl(&engine, folder.path(), &run, foreign.name(), &serves);
    assert!(started.status.success(), "{}", text(&started));
    let asks = |roots: &str, expected: &str| {
        let client = format!(
            "s_client -connect {name}:8443 -servername {name} -brief -verify_return_error -verify_hostname {expected} -CAfile {MOUNTED}/{roots}"
        );
        let run = ["--rm", "--network", &modules];
        openssl(&engine, folder.path(), &run, foreign.name(), &client)
    };
    let verified = wait_for("a handshake", || {
        let answer = asks("bundle.pem", &name);
        (!text(&answer).contains("connect:errno")).then_some(answer)
    });
    let said = text(&verified);
    assert!(verified.status.success() && said.contains("Verification: OK"), "{said}");
    assert!(said.contains(&format!("Verified peername: {name}")), "{said}");
    for (roots, expected, reason) in [
        ("bundle.pem", "another-name", "ostname mismatch"),
        ("other.pem", name.as_str(), "certificate"),
    ] {
        let refused = asks(roots, expected);
        let said = text(&refused);
        assert!(!refused.status.success() && said.contains(reason), "{roots} {expected}: {said}");
        assert!(!said.contains("Verification: OK"), "{said}");
    }
}
