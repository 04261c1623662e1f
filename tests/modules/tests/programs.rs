//! The programs against a scripted workload socket, and the thermometer against the
//! simulated cloud too.
#![expect(
    clippy::unwrap_used,
    reason = "functions that tests share expect by unwrapping, as tests do"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_sim::token::Key;
use edgekeep_sim::{Authority, PresetDevice, Simulator, SimulatorOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A request as the script sees it.
struct Request {
    method: String,
    path: String,
    body: Value,
}

/// A workload socket that answers what `script` says: a status and a body. It ends with
/// the test's process.
fn serve(socket: &Path, script: impl Fn(&Request) -> (u16, Value) + Send + 'static) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = answer(&stream.unwrap(), &script);
        }
    });
}

fn answer(stream: &UnixStream, script: &impl Fn(&Request) -> (u16, Value)) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("Content-Length: ") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request = Request { method, path, body: serde_json::from_slice(&body).unwrap_or_default() };
    let (status, body) = script(&request);
    let body = body.to_string();
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{body}", body.len()).ok()
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("w.sock");
    (folder, socket)
}

fn intruder(arguments: &[&str], socket: &Path) -> (Option<i32>, Vec<Value>) {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_intruder"))
        .args(["--json", "--module", "filter", "--genid", "7", "--socket"])
        .arg(socket)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let lines = String::from_utf8(text).unwrap();
    (output.status.code(), lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn forbidden(_: &Request) -> (u16, Value) {
    (403, json!({ "message": "forbidden" }))
}

fn granted(_: &Request) -> (u16, Value) {
    (200, json!({ "digest": "c2VjcmV0" }))
}

#[test]
fn an_intruder_tells_refused_granted_and_neither_apart() {
    let (_folder, socket) = folder();
    assert_eq!(intruder(&[], &socket).0, Some(3), "nobody there is no refusal");

    serve(&socket, forbidden);
    let (code, lines) = intruder(&[], &socket);
    assert_eq!((code, lines.len()), (Some(0), 6));
    assert_eq!(lines[5], json!({ "outcome": "refused" }));
    assert_eq!(
        lines[1],
        json!({ "try": "sign", "status": 403, "message": "forbidden", "verdict": "refused" })
    );

    let other = socket.with_extension("2");
    serve(&other, |request| {
        if request.path.contains("/encrypt") { granted(request) } else { forbidden(request) }
    });
    let (code, lines) = intruder(&[], &other);
    assert_eq!((code, lines[4]["verdict"].as_str()), (Some(1), Some("granted")));
    assert_eq!(lines[5], json!({ "outcome": "granted" }));
    assert!(!format!("{lines:?}").contains("c2VjcmV0"), "what was granted is not shown");

    let broken = socket.with_extension("3");
    serve(&broken, |_| (500, json!({ "message": "broken" })));
    assert_eq!(intruder(&[], &broken).0, Some(3));
}

#[test]
fn each_attack_delivers_one_whole_sign_request_and_tells_its_outcome() {
    let program = env!("CARGO_BIN_EXE_intruder");
    let (_folder, socket) = folder();
    let (sender, received) = mpsc::channel();
    serve(&socket, move |request| {
        sender
            .send((request.method.clone(), request.path.clone(), request.body["algo"].clone()))
            .unwrap();
        granted(request)
    });
    for attack in [&["--pass-fd"][..], &["--exec-after-connect", program]] {
        let (code, lines) = intruder(attack, &socket);
        assert_eq!(code, Some(1), "{attack:?}: {lines:?}");
        assert_eq!(
            lines,
            [json!({ "try": "sign", "status": 200, "message": "", "verdict": "granted" })]
        );
        let (method, path, algorithm) = received.recv().unwrap();
        assert_eq!((method.as_str(), algorithm), ("POST", json!("HMACSHA256")));
        assert_eq!(path, "/modules/filter/genid/7/sign?api-version=2020-07-07");
    }

    // Here the first process goes on as the other program, and a child tells.
    let mut child = Command::new(program)
        .args([
            "--json",
            "--module",
            "filter",
            "--genid",
            "7",
            "--exec-after-request",
            program,
            "--socket",
        ])
        .arg(&socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["verdict"], "granted");
    // It may not have become the other program yet, so how it ends is open.
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn wrong_arguments_are_told_from_an_outcome() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_intruder")).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (arguments, words) in [
        (&["--steal"][..], "intruder: unknown argument \"--steal\"\n"),
        (&["--module"], "intruder: --module needs a value\n"),
        (&[], "intruder: --socket and --module are needed\n"),
    ] {
        let (code, text) = run(arguments);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.starts_with(words) && text.contains("Usage: intruder "), "{text}");
    }
}

/// SIGTERM must end it with code 0.
fn stop(child: &mut Child) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn module(program: &str, socket: &Path, hub: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("IOTEDGE_WORKLOADURI", format!("unix://{}", socket.display()))
        .env("IOTEDGE_APIVERSION", "2020-07-07")
        .env("IOTEDGE_MODULEID", "filter")
        .env("IOTEDGE_MODULEGENERATIONID", "7")
        .env("IOTEDGE_DEVICEID", "press-04")
        .env("IOTEDGE_IOTHUBHOSTNAME", hub)
        .stdout(Stdio::piped());
    command
}

#[test]
fn calls_are_made_in_order_and_answered_in_a_file() {
    let (folder, socket) = folder();
    serve(&socket, |request| (200, json!({ "path": request.path, "given": request.body })));
    let answers = folder.path().join("answers");
    let calls = [
        r#"{"method":"POST","path":"/modules/{m}/genid/{g}/sign?x=1","body":{"a":1}}"#,
        r#"{"method":"GET","path":"/modules","api":"management"}"#,
        r#"{"method":"GET","path":"/x","socket":"/nowhere.sock"}"#,
    ];
    let mut child = module(env!("CARGO_BIN_EXE_calls"), &socket, "hub")
        .env("EDGEKEEP_TEST_CALLS", calls.join("\n"))
        .env("EDGEKEEP_TEST_ANSWERS", &answers)
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let lines: Vec<Value> = loop {
        let text = std::fs::read_to_string(&answers).unwrap_or_default();
        if text.contains("\"done\"") && text.ends_with('\n') {
            break text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        }
        assert!(std::time::Instant::now() < deadline, "no end in: {text}");
        edgekeep_test_modules::pause(std::time::Duration::from_millis(10));
    };
    stop(&mut child);
    assert_eq!(
        lines[0]["body"],
        json!({ "path": "/modules/filter/genid/7/sign?x=1", "given": { "a": 1 } })
    );
    assert_eq!(
        lines[1]["error"],
        "cannot use the variable IOTEDGE_MANAGEMENTURI: environment variable not found"
    );
    assert!(lines[2]["error"].as_str().unwrap().contains("No such file"), "{}", lines[2]);
    assert_eq!(lines[3], json!({ "done": 3 }));
}

/// A workload API that works: `key` signs, `authority` issues for the name asked for.
fn workload(key: Key, authority: Authority) -> impl Fn(&Request) -> (u16, Value) + Send {
    move |request| match (request.method.as_str(), request.path.split('?').next().unwrap()) {
        ("GET", "/trust-bundle") => (200, json!({ "certificate": authority.certificate_pem() })),
        ("POST", "/modules/filter/genid/7/sign") => {
            let data = STANDARD.decode(request.body["data"].as_str().unwrap()).unwrap();
            let key =
                hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key.expose_base64()).unwrap());
            (200, json!({ "digest": STANDARD.encode(hmac::sign(&key, &data)) }))
        }
        ("POST", "/modules/filter/genid/7/certificate/server") => {
            let issued = authority
                .issue(&[request.body["commonName"].as_str().unwrap().to_owned()])
                .unwrap();
            let key = json!({ "type": "key", "bytes": *issued.key_pem });
            let expiration = "2036-01-01T00:00:00+00:00";
            (
                201,
                json!({ "privateKey": key, "certificate": issued.chain_pem, "expiration": expiration }),
            )
        }
        _ => (404, json!({ "message": "not found" })),
    }
}

/// Runs one round and returns the lines of its report.
fn thermometer(folder: &Path, socket: &Path, simulator: &Simulator) -> Vec<Value> {
    let (ca, report) = (folder.join("hub.pem"), folder.join("report"));
    std::fs::write(&ca, simulator.ca_pem()).unwrap();
    let mut child = module(env!("CARGO_BIN_EXE_thermometer"), socket, &simulator.hub_host())
        .env("IOTEDGE_GATEWAYHOSTNAME", "gateway.local")
        .env("EDGEKEEP_DEMO_PERIOD", "0")
        .env("EDGEKEEP_DEMO_HUB_CA", &ca)
        .env("EDGEKEEP_DEMO_REPORT", &report)
        .spawn()
        .unwrap();
    // The last step of a round is the message, or the signature that failed; its line is
    // printed before it is reported.
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.contains(" hub: ") || line.contains(" sign: failed") {
            break;
        }
    }
    let steps = loop {
        let text = std::fs::read_to_string(&report).unwrap_or_default();
        if text.ends_with('\n')
            && (text.contains("\"hub\"") || text.contains("\"sign\",\"ok\":false"))
        {
            break text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        }
        edgekeep_test_modules::pause(std::time::Duration::from_millis(10));
    };
    stop(&mut child);
    steps
}

async fn simulator(key: &Key) -> Simulator {
    let options = SimulatorOptions {
        devices: vec![PresetDevice::new("press-04", key.clone())],
        ..SimulatorOptions::default()
    };
    Simulator::start(options).await.unwrap()
}

/// Registers the module at the hub with `key`, as a device would.
fn register(simulator: &Simulator, folder: &Path, device_key: &Key, key: &Key) {
    let token = edgekeep_sim::token::issue(
        &format!("{}/devices/press-04", simulator.hub_host()),
        device_key,
        edgekeep_test_modules::now() + 60,
        None,
    );
    let key = key.expose_base64();
    let keys = json!({ "primaryKey": key, "secondaryKey": key });
    let body = json!({ "moduleId": "filter", "deviceId": "press-04",
        "authentication": { "type": "sas", "symmetricKey": keys } });
    let ca = folder.join("ca.pem");
    std::fs::write(&ca, simulator.ca_pem()).unwrap();
    // A foreign client, so that not only our own code has spoken to the simulator.
    let url = format!(
        "{}/devices/press-04/modules/filter?api-version=2017-11-08-preview",
        simulator.dps_endpoint()
    );
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--request", "PUT", "--cacert"])
        .arg(&ca)
        .args([
            "--header",
            &format!("Authorization: {token}"),
            "--header",
            "Content-Type: application/json",
        ])
        .args(["--data", &body.to_string(), &url])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thermometer_gets_all_it_needs_and_its_message_is_accepted() {
    let (folder, socket) = folder();
    let (device_key, key) = (Key::new(vec![1; 32]).unwrap(), Key::new(vec![2; 32]).unwrap());
    let simulator = simulator(&device_key).await;
    register(&simulator, folder.path(), &device_key, &key);
    serve(&socket, workload(key, Authority::new().unwrap()));
    let steps = thermometer(folder.path(), &socket, &simulator);
    let names: Vec<_> =
        steps.iter().map(|step| (step["step"].as_str().unwrap(), step["ok"] == true)).collect();
    let all = ["trust-bundle", "certificate/server", "verify chain", "sign", "hub"]
        .map(|name| (name, true));
    assert_eq!(names, all, "{steps:#?}");
    assert_eq!(simulator.state().devices["press-04"].modules["filter"].accepted_messages, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thermometer_says_why_a_step_failed() {
    let (folder, socket) = folder();
    let (device_key, key) = (Key::new(vec![1; 32]).unwrap(), Key::new(vec![2; 32]).unwrap());
    let simulator = simulator(&device_key).await;
    register(&simulator, folder.path(), &device_key, &key);
    // Signs with another key than the registered one, and shows a bundle that is not its
    // certificates' issuer.
    let (good, other) =
        (workload(device_key, Authority::new().unwrap()), Authority::new().unwrap());
    serve(&socket, move |request| match request.method.as_str() {
        "GET" => (200, json!({ "certificate": other.certificate_pem() })),
        _ => good(request),
    });
    let steps = thermometer(folder.path(), &socket, &simulator);
    let failed = |at: usize, name: &str, reason: &str| {
        assert_eq!((steps[at]["step"].as_str(), &steps[at]["ok"]), (Some(name), &json!(false)));
        let detail = steps[at]["detail"].as_str().unwrap();
        assert!(detail.contains(reason), "{detail} lacks {reason}");
    };
    failed(2, "verify chain", "invalid peer certificate");
    failed(4, "hub", "HTTP 401: ErrorCode:IotHubUnauthorizedAccess;the signature does not verify");
    assert_eq!(simulator.state().devices["press-04"].modules["filter"].accepted_messages, 0);

    let refused = socket.with_extension("2");
    std::fs::remove_file(folder.path().join("report")).unwrap();
    serve(&refused, forbidden);
    let steps = thermometer(folder.path(), &refused, &simulator);
    assert_eq!(steps.len(), 3, "{steps:#?}");
    assert_eq!(steps[2]["detail"], "HTTP 403: forbidden");
}
