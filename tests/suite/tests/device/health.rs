//! The health of a device tells the truth: by status, exit code, metric, support bundle
//! and the agent's report alike.

use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use edgekeep_core::layout::Daemon;
use edgekeep_sim::{Faults, RouteFaults};
use edgekeep_testkit::{Device, VERSION, http, program, wait_for};
use serde_json::{Value, json};

fn versioned(target: &str) -> String {
    format!("{target}?{VERSION}")
}

/// `edgekeep status --json`, and whether its exit code was a success.
fn status(device: &Device) -> (bool, Value) {
    let output = device.edgekeep(&["status", "--json"]);
    let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{error}: {} {}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    });
    (output.status.success(), value)
}

/// The problem of this kind in a list of them.
fn of_kind(list: &Value, code: &str) -> Option<Value> {
    list.as_array().into_iter().flatten().find(|problem| problem["code"] == code).cloned()
}

/// Waits for a problem that makes the device unhealthy.
fn wait_for_problem(device: &Device, code: &str) -> Value {
    wait_for(code, || {
        let (success, status) = status(device);
        let problem = of_kind(&status["problems"], code)?;
        assert!(
            !success && status["healthy"] == false && status["health"] == "unhealthy",
            "{status}"
        );
        Some(problem)
    })
}

/// Waits for a warning, with which the device is healthy.
fn wait_for_warning(device: &Device, code: &str) -> Value {
    wait_for(code, || {
        let (success, status) = status(device);
        let warning = of_kind(&status["warnings"], code)?;
        assert!(success && status["health"] == "healthy-with-warnings", "{status}");
        Some(warning)
    })
}

fn wait_for_none_of(device: &Device, codes: &[&str]) {
    wait_for("the problems to be over", || {
        let (_, status) = status(device);
        let there = |code: &&str| {
            of_kind(&status["problems"], code).is_some()
                || of_kind(&status["warnings"], code).is_some()
        };
        (!codes.iter().any(there)).then_some(())
    });
}

/// Has the hub asked about a module that is not known, which nothing but the hub can
/// answer.
fn ask_the_hub(device: &Device) {
    let _ = device.agent().manage(
        "PUT",
        &versioned("/identities/unknown"),
        Some(json!({ "moduleId": "unknown" })),
    );
}

fn metric(device: &Device, daemon: Daemon, code: &str) -> bool {
    let text =
        http::call(&device.root().metrics_socket(daemon), "GET", "/metrics", None).unwrap().text();
    text.lines().any(|line| {
        line.starts_with(&format!("edgekeep_problems{{code=\"{code}\"")) && line.ends_with(" 1")
    })
}

#[test]
fn what_is_survived_of_the_hub_is_a_warning_with_reason_and_begin_until_it_is_over() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let digest = m1.sign().expect(200);
    for (fault, code, reason) in [
        (RouteFaults::status(401), "cloud-refuses", "status 401"),
        (RouteFaults::status(500), "cloud-fault", "status 500"),
        (RouteFaults::garbage(), "cloud-fault", "unexpected answer"),
        (RouteFaults::dropped(), "cloud-unreachable", "cannot be reached"),
        (
            RouteFaults { retry_after_sec: Some(4_000_000), ..RouteFaults::status(503) },
            "cloud-asks-to-wait",
            "86400 s",
        ),
    ] {
        // The provisioning service goes on refusing, lest a new registration settle it.
        let faults =
            Faults { hub: fault.clone(), dps: RouteFaults::status(500), ..Faults::default() };
        device.cloud().faults(faults).unwrap();
        let warning = wait_for(code, || {
            ask_the_hub(&device);
            let warning = wait_for_warning(&device, code);
            warning["detail"].as_str().unwrap().contains(reason).then_some(warning)
        });
        assert_eq!(warning["subject"]["kind"], "cloud", "{warning}");
        assert!(warning["since"].as_str().is_some_and(|since| since.ends_with('Z')), "{warning}");
        assert!(!warning["remedy"].as_str().unwrap().is_empty(), "{warning}");
        assert!(metric(&device, Daemon::Identityd, code), "{fault:?}");
        assert_eq!(m1.sign().expect(200), digest, "{fault:?}");
        let text = String::from_utf8(device.edgekeep(&["status"]).stdout).unwrap();
        assert!(
            text.starts_with("device: healthy, with warnings\n") && text.contains(reason),
            "{text}"
        );
    }
    device.cloud().faults(Faults::default()).unwrap();
    ask_the_hub(&device);
    let hub = ["cloud-refuses", "cloud-fault", "cloud-unreachable"];
    wait_for_none_of(&device, &hub);
}

#[test]
fn a_device_that_the_hub_does_not_know_any_more_says_so() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let _ = m1.sign().expect(200);
    device.cloud().faults(Faults { dps: RouteFaults::status(500), ..Faults::default() }).unwrap();
    assert!(device.cloud().remove_device("press-04"));
    ask_the_hub(&device);
    let warning = wait_for_warning(&device, "cloud-refuses");
    assert!(warning["detail"].as_str().unwrap().contains("no such device"), "{warning}");
    let _ = m1.sign().expect(200);
}

#[test]
fn what_is_survived_of_the_provisioning_service_is_a_warning_and_without_identity_the_device_is_not_healthy()
 {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let _ = m1.sign().expect(200);
    let refused =
        Faults { refuse_registration: Some("\u{202e}not today".into()), ..Faults::default() };
    let of = |dps| Faults { dps, ..Faults::default() };
    for (faults, code, reason) in [
        (refused, "provisioning-refused", "not today"),
        (of(RouteFaults::status(401)), "provisioning-refused", "401"),
        (of(RouteFaults::status(500)), "provisioning-fault", "500"),
        (of(RouteFaults::garbage()), "provisioning-fault", "unexpected answer"),
        (of(RouteFaults::dropped()), "provisioning-unreachable", "cannot be reached"),
        (
            of(RouteFaults { retry_after_sec: Some(4_000_000), ..RouteFaults::status(503) }),
            "cloud-asks-to-wait",
            "86400 s",
        ),
    ] {
        device.cloud().faults(faults).unwrap();
        let warning = wait_for(code, || {
            let asked = device.agent().manage("POST", &versioned("/device/reprovision"), None);
            assert!(asked.status < 300, "{}", asked.text());
            let (success, status) = status(&device);
            assert!(success, "the identity that is there goes on: {status}");
            let warning = of_kind(&status["warnings"], code)?;
            warning["detail"].as_str().unwrap().contains(reason).then_some(warning)
        });
        assert!(!warning["detail"].as_str().unwrap().contains('\u{202e}'), "{warning}");
        let _ = m1.sign().expect(200);
    }
}

#[test]
fn a_new_device_that_is_refused_is_not_healthy_and_says_why() {
    let refused = Faults { refuse_registration: Some("not enrolled".into()), ..Faults::default() };
    let device = Device::builder().faults(refused).start();
    let problem = wait_for("the reason", || {
        let problem = wait_for_problem(&device, "no-identity");
        problem["detail"].as_str().unwrap().contains("not enrolled").then_some(problem)
    });
    assert_eq!(problem["severity"], "unhealthy");
    assert!(of_kind(&status(&device).1["warnings"], "provisioning-refused").is_some());
}

fn manifest(modules: &Value) -> Value {
    json!({ "modulesContent": { "$edgeAgent": { "properties.desired": {
        "schemaVersion": "1.1",
        "runtime": { "type": "docker", "settings": {} },
        "systemModules": {},
        "modules": modules,
    } } } })
}

fn module(image: &str, policy: &str) -> Value {
    json!({ "type": "process", "status": "running", "restartPolicy": policy, "settings": { "image": image, "createOptions": "{}" } })
}

fn write_manifest(device: &Device, text: &str) {
    let manifest = device.root().path().join("deployment.json");
    let next = manifest.with_extension("next");
    std::fs::write(&next, text).unwrap();
    std::fs::rename(&next, &manifest).unwrap();
}

fn agents_report(device: &Device) -> Option<Value> {
    let path = device.root().path().join("var/lib/edgekeep/agent/reported.json");
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The file of this name in moduled's support bundle.
fn in_bundle(device: &Device, name: &str) -> Value {
    let bundle = device.ask("GET", &versioned("/systeminfo/supportbundle"), None);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle.zip");
    std::fs::write(&path, &bundle.body).unwrap();
    unzipped(&path, name)
}

fn unzipped(bundle: &Path, name: &str) -> Value {
    let script = "import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))";
    let mut python = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(bundle)
        .arg(name)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = Vec::new();
    python.stdout.take().unwrap().read_to_end(&mut text).unwrap();
    assert!(python.wait().unwrap().success());
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn a_deployment_that_cannot_be_made_is_said_by_status_metric_bundle_and_report_alike() {
    let device = Device::builder()
        .host_module("thermometer", program("thermometer"))
        .reference_agent(&manifest(&json!({ "thermometer": module("thermometer", "always") })))
        .start();
    wait_for("a healthy device", || status(&device).0.then_some(()));
    write_manifest(&device, "{ no JSON");
    let problem = wait_for_problem(&device, "deployment-not-made");
    assert!(problem["detail"].as_str().unwrap().contains("JSON"), "{problem}");
    assert!(metric(&device, Daemon::Moduled, "deployment-not-made"));
    assert!(
        of_kind(&in_bundle(&device, "check.json")["health"]["problems"], "deployment-not-made")
            .is_some()
    );
    wait_for("the agent's report", || {
        let health = &agents_report(&device)?["health"];
        (health["verdict"] == "unhealthy"
            && of_kind(&health["problems"], "deployment-not-made").is_some())
        .then_some(())
    });
    // A module that cannot be made: the others run, and it is named.
    let modules = json!({ "thermometer": module("thermometer", "always"), "m2": module("no-such-image", "always") });
    write_manifest(&device, &manifest(&modules).to_string());
    let problem = wait_for_problem(&device, "module-not-applied");
    assert_eq!(problem["subject"], json!({ "kind": "module", "name": "m2" }));
    assert!(problem["detail"].as_str().unwrap().contains("no-such-image"), "{problem}");
    write_manifest(
        &device,
        &manifest(&json!({ "thermometer": module("thermometer", "always") })).to_string(),
    );
    wait_for_none_of(&device, &["deployment-not-made", "module-not-applied"]);
    assert!(status(&device).0);
}

#[test]
fn a_desired_module_that_does_not_run_for_a_minute_is_named_and_a_job_that_is_done_is_not() {
    let modules = json!({ "ends": module("false", "never"), "job": module("true", "never") });
    let begin = Instant::now();
    let device = Device::builder()
        .host_module("false", "/bin/false")
        .host_module("true", "/bin/true")
        .reference_agent(&manifest(&modules))
        .start();
    // Longer than everything else is waited for: a minute, and what comes before on a
    // machine with other load.
    let problem = loop {
        let (success, status) = status(&device);
        if let Some(problem) = of_kind(&status["problems"], "module-not-running") {
            assert!(!success, "{status}");
            break problem;
        }
        assert!(begin.elapsed() < Duration::from_secs(240), "{status}");
        std::thread::park_timeout(Duration::from_millis(500));
    };
    assert!(begin.elapsed() > Duration::from_secs(50), "a minute is a minute");
    assert_eq!(problem["subject"], json!({ "kind": "module", "name": "ends" }));
    assert_eq!(problem["detail"], "it ended with exit code 1");
    let all = status(&device).1;
    assert!(
        !all["problems"].to_string().contains("\"job\"")
            && !all["warnings"].to_string().contains("\"job\""),
        "{all}"
    );
}

#[test]
fn a_call_that_failed_for_a_reason_on_the_device_is_named_and_one_that_the_module_got_wrong_is_not()
{
    let mut device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let _ = m1.sign().expect(200);
    let garbage = json!({ "ciphertext": "AAAA", "initializationVector": "AAAA" });
    let wrong = m1.call("POST", &versioned("/modules/{m}/genid/{g}/decrypt"), Some(garbage));
    assert!(wrong.status >= 400, "{}", wrong.text());
    let not_its_own =
        m1.call("POST", &versioned("/modules/edgeAgent/genid/1/sign"), Some(json!({})));
    assert!(not_its_own.status >= 400);
    wait_for_none_of(&device, &["module-call-failed", "module-call-refused"]);

    device.kill(Daemon::Keyd);
    assert!(m1.sign().status >= 500);
    let problem = wait_for_problem(&device, "module-call-failed");
    assert_eq!(problem["subject"], json!({ "kind": "module", "name": "m1" }));
    assert!(problem["detail"].as_str().unwrap().contains("/sign"), "{problem}");
    let _ = wait_for_problem(&device, "daemon-away");
    device.start(Daemon::Keyd);
    wait_for_none_of(&device, &["daemon-away"]);
    let _ = wait_for_problem(&device, "module-call-failed");
}
