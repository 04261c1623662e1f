//! Container modules, with the engine as Debian has it: cgroup v2, systemd's cgroup
//! driver.

use std::path::PathBuf;

use edgekeep_core::attestation::DenyReason;
use edgekeep_testkit::{Engine, add_variable};
use serde_json::{Value, json};

use crate::device::{
    Device, PAYLOAD, assert_latest_refusal, run, says, wait_for, wait_for_edge_ca,
};

const MODULE: &str = "thermometer";
const SOCKET: &str = "/var/run/iotedge/workload.sock";

fn engine() -> Engine {
    Engine::or_skip().expect("the unit of the checks names the engine")
}

pub(crate) fn a_container_under_the_systemd_driver_gets_its_token(device: &mut Device) {
    let programs = ["calls", "intruder"].map(|name| PathBuf::from(format!("{PAYLOAD}/bin/{name}")));
    let image = engine().import(&programs, "vm");
    wait_for("the agent answers", || device.agent.as_ref()?.try_signed());
    let (caller, mut spec) = device.caller(MODULE, image.name());
    spec["type"] = json!("docker");
    spec["imagePullPolicy"] = json!("Never");
    spec["config"]["settings"]["createOptions"] = json!({
        "HostConfig": { "NetworkMode": "none", "Binds": [format!("{}:/calls", caller.folder().display())] } });
    for (name, value) in caller.environment_at("/calls") {
        add_variable(&mut spec, &name, &value);
    }
    device.image = Some(image);
    device.start(spec);
    let pid = says("docker", &["inspect", "--format", "{{.State.Pid}}", MODULE]);
    let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let id = says("docker", &["inspect", "--format", "{{.Id}}", MODULE]);
    assert_eq!(lines.trim(), format!("0::/system.slice/docker-{id}.scope"));
    let digest = caller.sign().expect(200);
    assert!(digest["digest"].is_string(), "{digest}");
    wait_for_edge_ca();
    let body = json!({ "commonName": "x", "expiration": "" });
    let target = "/modules/{m}/genid/{g}/certificate/server?api-version=2022-08-03";
    let _ = caller.call("POST", target, Some(body)).expect(201);
    device.modules.insert(MODULE, caller);
    let attested = run("edgekeep", &["attest", &pid]);
    device.remark(format!("attest: {}", String::from_utf8_lossy(&attested.stdout)));
    assert!(attested.status.success(), "{}", String::from_utf8_lossy(&attested.stderr));
}

/// Has an intruder ask for the module's secrets without being the module. All its tries
/// must be refused.
fn intrude(device: &Device, engine_words: &[&str]) {
    let identity = device.manage("GET", "/identities/", None).expect(200);
    let own = |identity: &&Value| identity["moduleId"] == MODULE;
    let identity =
        identity["identities"].as_array().unwrap().iter().find(own).expect("the identity").clone();
    let generation = identity["generationId"].as_str().unwrap();
    let mut words = engine_words.to_vec();
    words.extend(["--socket", SOCKET, "--module", MODULE, "--genid", generation]);
    let output = run("docker", &words);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(0), "{text}");
}

pub(crate) fn what_the_engine_brings_into_a_container_is_refused(device: &mut Device) {
    intrude(device, &["exec", MODULE, "/bin/intruder"]);
    assert_latest_refusal(MODULE, DenyReason::NotADescendant);
    let _ = device.module(MODULE).sign().expect(200);
}

pub(crate) fn another_container_with_the_modules_socket_is_refused(device: &mut Device) {
    let image = device.image.as_ref().expect("the image; see an earlier check");
    let mounts = says("docker", &["inspect", "--format", "{{json .HostConfig.Binds}}", MODULE]);
    let mounts: Vec<String> = serde_json::from_str(&mounts).unwrap();
    let folder = mounts
        .iter()
        .find(|bind| bind.contains("/var/lib/edgekeep"))
        .expect("the socket's folder is mounted");
    let folder = folder.split(':').next().unwrap();
    let mount = format!("{folder}:/var/run/iotedge");
    let words = [
        "run",
        "--rm",
        "--network",
        "none",
        "--volume",
        &mount,
        "--entrypoint",
        "/bin/intruder",
        image.name(),
    ];
    intrude(device, &words);
    assert_latest_refusal(MODULE, DenyReason::NotInModule);
    let _ = device.module(MODULE).sign().expect(200);
}
