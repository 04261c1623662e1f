//! The unmodified device SDK for Python as a host module and in a container, from the
//! trust bundle to a message over MQTT.
//!
//! `EDGEKEEP_TEST_PYTHON` names an interpreter that has it; the container's test needs
//! `EDGEKEEP_TEST_ENGINE` as well. Without them a test says that it is skipped.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use edgekeep_core::attestation::DenyReason;
use edgekeep_core::layout::Daemon;
use edgekeep_sim::{MqttOptions, ServerCertificate, Simulator, SimulatorOptions};
use edgekeep_testkit::{Device, Engine, Image, VERSION, http, wait_for};
use serde_json::{Value, json};

/// The SDK takes everything from its environment. An argument is another socket than the
/// one that it finds there.
const SCRIPT: &str = r#"
import os, sys, time
from azure.iot.device import IoTHubModuleClient, Message

def report(line):
    with open(os.environ["REPORT"], "a") as file:
        file.write(line + "\n")

os.environ["IOTEDGE_WORKLOADURI"] = (sys.argv[1:] or [os.environ["IOTEDGE_WORKLOADURI"]])[0]
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

/// Asks an interpreter what it is made of: its program, its library, the packages of its
/// virtual environment.
const PARTS: &str = "
import sys, sysconfig
print(sys.executable, sysconfig.get_path('stdlib'), sysconfig.get_path('purelib'), sep='\\n')
";

/// Folders and packages of an interpreter that no module needs, most of them large.
const LEFT_OUT: [&str; 10] = [
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "ensurepip",
    "lib2to3",
    "tkinter",
    "pip",
    "setuptools",
    "pkg_resources",
];
/// The same by how names begin: the graphics library, and what only those need who build
/// an interpreter.
const LEFT_OUT_BY_START: [&str; 2] = ["_tkinter.", "config-"];

/// Takes the file it is given apart with the reference parser of OpenMetrics, and names
/// the families.
const PARSE: &str = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(open(sys.argv[1]).read()):
    print(family.type, family.name)
";

fn python_or_skip() -> Option<PathBuf> {
    let python = std::env::var_os("EDGEKEEP_TEST_PYTHON").map(PathBuf::from);
    if python.is_none() {
        eprintln!("skipped: EDGEKEEP_TEST_PYTHON does not name a Python with the device SDK");
    }
    python
}

/// An address of a test's own: the SDK's port is fixed, and other tests may run beside
/// this one.
fn gateway(network: u8) -> Ipv4Addr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, network, high, low.max(1))
}

/// The hub of the device's own network, as edgeHub would be: with a certificate that the
/// trust bundle verifies. Modules that are made before it are the ones that it knows.
fn hub(device: &Device, gateway: Ipv4Addr) -> Simulator {
    wait_for("the Edge CA certificate", || device.status().edge_ca_expiration);
    let hub = device.add_caller("$edgeHub");
    let body = json!({ "commonName": gateway.to_string(), "expiration": "2099-01-01T00:00:00Z" });
    let target = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{VERSION}");
    let issued = hub.call("POST", &target, Some(body)).expect(201);
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
    device.block_on(Simulator::start(options)).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn set_gateway(spec: &mut Value, gateway: Ipv4Addr) {
    for variable in spec["config"]["env"].as_array_mut().unwrap() {
        if variable["key"] == "IOTEDGE_GATEWAYHOSTNAME" {
            variable["value"] = json!(gateway.to_string());
        }
    }
}

fn wait_for_report(report: &Path) -> String {
    wait_for("the SDK to say how it went", || {
        std::fs::read_to_string(report).ok().filter(|text| text.ends_with('\n'))
    })
}

fn assert_accepted(hub: &Simulator, module: &str) {
    let state = hub.state();
    assert_eq!(state.devices["press-04"].modules[module].accepted_messages, 1);
    assert_eq!(state.refusals, Vec::<String>::new());
}

#[test]
fn the_unmodified_python_sdk_sends_a_message_as_a_host_module() {
    let Some(python) = python_or_skip() else { return };
    let device = Device::builder().host_module("python", &python).start();
    let generation = device.create_identity("sdk");
    let gateway = gateway(88);
    let hub = hub(&device, gateway);

    let script = device.root().path().join("module.py");
    std::fs::write(&script, SCRIPT).unwrap();
    let report = device.root().path().join("report");
    let mut spec = device.spec("sdk", "python", &generation);
    set_gateway(&mut spec, gateway);
    let variables: Vec<(String, String)> = spec["config"]["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| (text(&variable["key"]), text(&variable["value"])))
        .collect();
    spec["config"]["settings"]["createOptions"] =
        json!({ "Cmd": [script], "Env": [format!("REPORT={}", report.display())] });
    device.create_and_start(spec);
    assert_eq!(wait_for_report(&report), "sent\n", "{:?}", hub.state().refusals);
    assert_accepted(&hub, "sdk");

    // The same interpreter, script and environment, started by somebody else: no token,
    // no session.
    let report = device.root().path().join("other");
    let mut command = Command::new(&python);
    command.arg(&script).envs(variables).env("REPORT", &report).env("STAY", "0");
    command.env("PATH", "/usr/bin:/bin").output().unwrap();
    let said = std::fs::read_to_string(&report).unwrap();
    assert_ne!(said, "sent\n");
    device.assert_latest_refusal("sdk", DenyReason::NotInModule);
    assert_eq!(hub.state().devices["press-04"].modules["sdk"].accepted_messages, 1);
}

#[test]
fn the_unmodified_python_sdk_sends_a_message_from_a_container() {
    let Some(python) = python_or_skip() else { return };
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine, &python);
    // Without the operator's grant nobody gets a neighbour's socket mounted.
    let [m1, m2, m3] = ["m1", "m2", "m3"].map(|name| engine.name(name));
    let grant = format!("[modules.{m3:?}.grant]\nbinds = [\"{{root}}/var/lib/edgekeep/moduled\"]");
    let device = Device::builder().engine(&engine, engine.uri()).tables(&grant).start();
    let generation = device.create_identity(&m1);
    let gateway = gateway(89);
    let hub = hub(&device, gateway);
    let folder = device.root().path().join("sdk");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("module.py"), SCRIPT).unwrap();

    // A container of the image with the environment of m1, whatever it is called itself.
    let say = |name: &str, more_binds: &[String], arguments: &[&str]| {
        let mut spec = device.container_spec(&m1, image.name(), &generation);
        device.remember_container(name);
        set_gateway(&mut spec, gateway);
        spec["name"] = json!(name);
        let mut binds = vec![format!("{}:/sdk", folder.display())];
        binds.extend_from_slice(more_binds);
        let command = [&["/sdk/module.py"], arguments].concat();
        spec["config"]["settings"]["createOptions"] = json!({
            "Cmd": command,
            "Env": [format!("REPORT=/sdk/{name}")],
            // The hub listens on the host's loopback.
            "HostConfig": { "NetworkMode": "host", "Binds": binds },
        });
        device.create_and_start(spec);
        wait_for_report(&folder.join(name))
    };
    assert_eq!(say(&m1, &[], &[]), "sent\n", "{:?}", hub.state().refusals);
    assert_accepted(&hub, &m1);
    assert_eq!(device.status().refusals, []);

    // Other modules of the same image and script that say they are m1, at their own
    // socket and at the one of m1.
    for other in [&m2, &m3] {
        let _ = device.create_identity(other);
    }
    assert_ne!(say(&m2, &[], &[]), "sent\n");
    device.assert_latest_refusal(&m1, DenyReason::SocketOfAnotherModule);
    let socket = device.module_socket(&m1).parent().unwrap().display().to_string();
    assert_ne!(say(&m3, &[format!("{socket}:/other")], &["unix:///other/workload.sock"]), "sent\n");
    device.assert_latest_refusal(&m1, DenyReason::NotInModule);
    assert_eq!(hub.state().devices["press-04"].modules[&m1].accepted_messages, 1);
}

/// An image of the interpreter, everything at the place where the host has it.
fn image(engine: &Engine, python: &Path) -> Image {
    let output = Command::new(python).args(["-I", "-c", PARTS]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let [program, library, packages] =
        said.lines().map(PathBuf::from).collect::<Vec<_>>().try_into().unwrap();
    let mut files = vec![program.canonicalize().unwrap()];
    add_files(&library, &mut files);
    add_files(&packages, &mut files);
    // It says where the interpreter is that the environment was made of.
    files.extend(
        program
            .ancestors()
            .nth(2)
            .map(|folder| folder.join("pyvenv.cfg"))
            .filter(|file| file.exists()),
    );
    engine.import_in_place(&files, &program)
}

fn add_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        // Packages in a library are those of the interpreter without the environment.
        let packages = ["site-packages", "dist-packages"].contains(&name.as_str());
        if packages
            || LEFT_OUT.contains(&name.as_str())
            || LEFT_OUT_BY_START.iter().any(|start| name.starts_with(start))
        {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            add_files(&entry.path(), files);
        } else {
            files.push(entry.path());
        }
    }
}

#[test]
fn the_reference_parser_takes_the_metrics_of_every_daemon() {
    let Some(python) = python_or_skip() else { return };
    let device = Device::builder().start();
    let _ = device.add_caller("m1").sign().expect(200);
    wait_for("the Edge CA certificate", || device.status().edge_ca_expiration);
    for (daemon, expected) in [
        (Daemon::Keyd, "counter edgekeep_key_operations"),
        (Daemon::Identityd, "histogram edgekeep_cloud_call_duration_seconds"),
        (Daemon::Moduled, "counter edgekeep_verdicts"),
    ] {
        // Twice: the first answer is in the second.
        for _ in 0..2 {
            let answer =
                http::call(&device.root().metrics_socket(daemon), "GET", "/metrics", None).unwrap();
            let _ = answer.expect(200);
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &answer.body).unwrap();
            let output =
                Command::new(&python).args(["-c", PARSE]).arg(file.path()).output().unwrap();
            let (families, error) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{error}\n{}", answer.text());
            assert!(families.lines().any(|line| line == expected), "{families}");
            assert!(families.lines().any(|line| line == "info edgekeep_build"), "{families}");
        }
    }
}
