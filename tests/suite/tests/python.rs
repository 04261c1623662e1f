//! The unmodified device SDK for Python as a host module, from the trust bundle to a message over MQTT.
//!
//! `EDGEKEEP_TEST_PYTHON` names an interpreter that has it; without that the test says that it is skipped.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use edgekeep_core::attestation::DenyReason;
use edgekeep_sim::{MqttOptions, ServerCertificate, Simulator, SimulatorOptions};
use edgekeep_testkit::{Device, VERSION, wait_for};
use serde_json::json;

const SCRIPT: &str = r#"
import os, time
from azure.iot.device import IoTHubModuleClient, Message

def report(line):
    with open(os.environ["REPORT"], "a") as file:
        file.write(line + "\n")

try:
    client = IoTHubModuleClient.create_from_edge_environment()
    client.connect()
    client.send_message(Message('{"temperature": 21}'))
    report("sent")
    client.shutdown()
except BaseException as error:
    report(repr(error) + " " + repr(error.__cause__))
time.sleep(float(os.environ.get("STAY", "1000")))
"#;

/// An address of its own: the SDK's port is fixed, and other tests may run beside this one.
fn gateway() -> Ipv4Addr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 88, high, low.max(1))
}

#[test]
fn the_unmodified_python_sdk_sends_a_message_as_a_host_module() {
    let Some(python) = std::env::var_os("EDGEKEEP_TEST_PYTHON").map(PathBuf::from) else {
        eprintln!("skipped: EDGEKEEP_TEST_PYTHON does not name a Python with the device SDK");
        return;
    };
    let device = Device::builder().host_module("python", &python).start();
    wait_for("the Edge CA certificate", || device.status().edge_ca_expiration);
    let gateway = gateway();
    let generation = device.create_identity("sdk");

    // The hub of the device's own network, as edgeHub would be: with a certificate that the trust bundle verifies.
    let hub = device.add_caller("$edgeHub");
    let body = json!({ "commonName": gateway.to_string(), "expiration": "2099-01-01T00:00:00Z" });
    let target = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{VERSION}");
    let issued = hub.call("POST", &target, Some(body)).expect(201);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let certificate = ServerCertificate {
        chain_pem: text(&issued["certificate"]),
        key_pem: text(&issued["privateKey"]["bytes"]).into(),
    };
    let options = SimulatorOptions {
        snapshot: device.cloud().snapshot(),
        mqtt: Some(MqttOptions {
            listen: SocketAddr::from((IpAddr::V4(gateway), 8883)),
            certificate: Some(certificate),
        }),
        ..SimulatorOptions::default()
    };
    let hub = device.block_on(Simulator::start(options)).unwrap();

    let script = device.root().path().join("module.py");
    std::fs::write(&script, SCRIPT).unwrap();
    let report = device.root().path().join("report");
    let mut spec = device.spec("sdk", "python", &generation);
    for variable in spec["config"]["env"].as_array_mut().unwrap() {
        if variable["key"] == "IOTEDGE_GATEWAYHOSTNAME" {
            variable["value"] = json!(gateway.to_string());
        }
    }
    let variables: Vec<(String, String)> = spec["config"]["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| (text(&variable["key"]), text(&variable["value"])))
        .collect();
    spec["config"]["settings"]["createOptions"] =
        json!({ "Cmd": [script], "Env": [format!("REPORT={}", report.display())] });
    device.create_and_start(spec);
    let said = wait_for("the SDK to say how it went", || {
        std::fs::read_to_string(&report).ok().filter(|text| text.ends_with('\n'))
    });
    assert_eq!(said, "sent\n", "{:?}", hub.state().refusals);
    let state = hub.state();
    assert_eq!(state.devices["press-04"].modules["sdk"].accepted_messages, 1);
    assert_eq!(state.refusals, Vec::<String>::new());

    // The same interpreter, script and environment, started by somebody else: no token, no session.
    let report = device.root().path().join("other");
    let mut command = Command::new(&python);
    command.arg(&script).envs(variables).env("REPORT", &report).env("STAY", "0");
    command.env("PATH", "/usr/bin:/bin").output().unwrap();
    let said = std::fs::read_to_string(&report).unwrap();
    assert_ne!(said, "sent\n");
    device.assert_latest_refusal("sdk", DenyReason::NotInModule);
    assert_eq!(hub.state().devices["press-04"].modules["sdk"].accepted_messages, 1);
}
