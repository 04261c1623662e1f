//! Signs that operators see of running daemons: quiet logs whose level changes live, and
//! metrics.

use edgekeep_core::attestation::DenyReason;
use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use edgekeep_testkit::{Device, VERSION, http, program, wait_for};
use serde_json::json;

fn metrics(device: &Device, daemon: Daemon) -> String {
    let answer =
        http::call(&device.root().metrics_socket(daemon), "GET", "/metrics", None).unwrap();
    assert_eq!(
        answer.headers["content-type"],
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let _ = answer.expect(200);
    answer.text()
}

/// The value of the sample that begins so.
fn sample(text: &str, start: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(start)?.trim().parse().ok())
}

#[test]
fn a_hundred_requests_to_each_daemon_log_nothing_at_info() {
    let device = Device::builder().start();
    let module = device.add_caller("m1");
    let _ = module.sign().expect(200);
    wait_for("the Edge CA certificate", || device.status().edge_ca_expiration);
    let lines = || Daemon::ALL.map(|daemon| device.log(daemon).lines().count());
    let before = lines();
    for _ in 0..100 {
        let _ = module.sign().expect(200);
        let _ = device.ask("GET", &format!("/modules?{VERSION}"), None).expect(200);
        for (socket, target) in [
            (device.root().identityd_socket(), "/identities/provisioning?api-version=2022-08-01"),
            (device.root().certd_socket(), "/certificates/aziot-edged-ca?api-version=2020-09-01"),
            (device.root().keyd_socket(), "/audit/entries?api-version=2021-05-01&limit=1"),
        ] {
            let _ = http::call(&socket, "GET", target, None).unwrap().expect(200);
        }
    }
    assert_eq!(lines(), before, "{}", Daemon::ALL.map(|daemon| device.log(daemon)).join("\n"));
}

#[test]
fn errors_that_a_caller_can_repeat_do_not_flood_the_log() {
    let device = Device::builder().start();
    let before = device.log(Daemon::Moduled).lines().count();
    for _ in 0..300 {
        let refused = device.ask("POST", &format!("/modules?{VERSION}"), Some(&json!({})));
        assert_eq!(refused.status, 403);
    }
    let logged = device.log(Daemon::Moduled).lines().count() - before;
    assert!((1..=70).contains(&logged), "{logged} lines for 300 refusals");
}

#[test]
fn the_level_of_the_log_changes_live_and_is_back_after_a_restart() {
    let mut device = Device::builder().start();
    let show = |device: &Device, arguments: &[&str]| {
        let output = device.edgekeep(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(
        show(&device, &["log-level"]),
        "keyd       info\nidentityd  info\nmoduled    info\n"
    );
    let shown = show(&device, &["log-level", "moduled", "trace"]);
    assert_eq!(shown, "moduled    trace  (info after a restart)\n");
    assert!(
        device.log(Daemon::Moduled).contains("the log's level changed"),
        "{}",
        device.log(Daemon::Moduled)
    );
    let before = device.log(Daemon::Moduled).len();
    // At this level a connection that ends badly is told.
    drop(http::connect(&device.root().management_socket()).map(|mut stream| {
        std::io::Write::write_all(&mut stream, b"nonsense\r\n\r\n").unwrap();
    }));
    wait_for("a line of debugging", || {
        device.log(Daemon::Moduled)[before..].contains("DEBUG").then_some(())
    });
    let _ = show(&device, &["log-level", "all", "error"]);
    assert!(show(&device, &["--json", "log-level", "keyd"]).contains("\"error\""));
    device.kill(Daemon::Moduled);
    device.start(Daemon::Moduled);
    assert_eq!(show(&device, &["log-level", "moduled"]), "moduled    info\n");

    let socket = device.root().metrics_socket(Daemon::Keyd);
    http::call(&socket, "PUT", "/log-level", Some(&json!({"level": "loud"})))
        .unwrap()
        .expect_error(400, "one of off");
    http::call(&socket, "PUT", "/log-level", Some(&json!({"level": "3"})))
        .unwrap()
        .expect_error(400, "one of off");
}

#[test]
fn metrics_tell_what_happened_and_never_what_a_caller_wrote() {
    let device = Device::builder().start();
    let module = device.add_caller("m1");
    wait_for("the Edge CA certificate", || device.status().edge_ca_expiration);
    for _ in 0..3 {
        let _ = module.sign().expect(200);
    }
    let stranger = http::call(
        &device.root().legacy_workload_socket(),
        "POST",
        &format!("/modules/m1/genid/1/sign?{VERSION}"),
        Some(&json!({"keyId": "primary", "algo": "HMACSHA256", "data": "eA=="})),
    );
    device.assert_refused(&stranger.unwrap(), "m1", DenyReason::NotInModule);
    for number in 0..50 {
        let _ = device.ask("GET", &format!("/made-up-{number}\"?x=1&{VERSION}"), None);
        let _ = device.ask("GET", &format!("/modules/made-up-{number}?{VERSION}"), None);
    }
    let moduled = metrics(&device, Daemon::Moduled);
    let route = "{api=\"workload\",method=\"POST\",route=\"/modules/{m}/genid/{g}/sign\"";
    assert_eq!(
        sample(&moduled, &format!("edgekeep_http_requests_total{route},status=\"2xx\"}}")),
        Some(3.0)
    );
    assert_eq!(
        sample(&moduled, &format!("edgekeep_http_requests_total{route},status=\"4xx\"}}")),
        Some(1.0)
    );
    assert_eq!(
        sample(&moduled, &format!("edgekeep_http_request_duration_seconds_count{route}}}")),
        Some(4.0)
    );
    let denied = "edgekeep_verdicts_total{verdict=\"deny\",reason=\"not-in-module\"}";
    assert_eq!(sample(&moduled, denied), Some(1.0));
    assert!(
        sample(&moduled, "edgekeep_verdicts_total{verdict=\"allow\",reason=\"none\"}").unwrap()
            >= 3.0
    );
    assert_eq!(
        sample(&moduled, "edgekeep_modules{runtime=\"process\",state=\"running\"}"),
        Some(2.0)
    );
    assert!(
        sample(&moduled, "edgekeep_certificate_days_left{certificate=\"aziot-edged-ca\"}").unwrap()
            > 20.0
    );
    assert_eq!(sample(&moduled, "edgekeep_watchdog_errors_in_a_row"), Some(0.0));
    assert!(sample(&moduled, "edgekeep_http_open_connections{api=\"management\"}").unwrap() >= 0.0);
    assert!(!moduled.contains("made-up"), "{moduled}");

    let keyd = metrics(&device, Daemon::Keyd);
    let signed = "edgekeep_key_operations_total{operation=\"sign\",purpose=\"identity\",backend=\"";
    let line =
        keyd.lines().find(|line| line.starts_with(signed)).unwrap_or_else(|| panic!("{keyd}"));
    assert!(line.contains("result=\"done\"") && !line.contains("unknown"), "{line}");
    // Both are read from inside its sandbox.
    assert!(sample(&keyd, "edgekeep_audit_log_size_bytes").unwrap() > 0.0);
    assert!(sample(&keyd, "edgekeep_resident_memory_bytes").unwrap() > 1e6);
    let identityd = metrics(&device, Daemon::Identityd);
    assert!(
        identityd.contains("edgekeep_cloud_calls_total{service=\"provisioning\""),
        "{identityd}"
    );
    assert!(identityd.contains("edgekeep_cloud_calls_total{service=\"hub\""), "{identityd}");
    assert!(
        sample(&identityd, "edgekeep_certificate_days_left{certificate=\"aziot-edged-ca\"}")
            .unwrap()
            > 20.0
    );
    for text in [&moduled, &keyd, &identityd] {
        assert!(
            text.contains("edgekeep_build_info{daemon=") && text.ends_with("# EOF\n"),
            "{text}"
        );
    }
    let output = device.edgekeep(&["metrics", "keyd"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("edgekeep_key_operations_total"));
}

#[test]
fn a_daemon_whose_metrics_socket_is_taken_still_serves() {
    let mut device = Device::builder().start();
    device.kill(Daemon::Moduled);
    let socket = device.root().metrics_socket(Daemon::Moduled);
    let _ = std::fs::remove_file(&socket);
    std::fs::create_dir(&socket).unwrap();
    std::fs::write(socket.join("in-the-way"), "").unwrap();
    device.start(Daemon::Moduled);
    assert!(device.log(Daemon::Moduled).contains("no metrics"), "{}", device.log(Daemon::Moduled));
    let output = device.edgekeep(&["metrics"]);
    assert_eq!(output.status.code(), Some(1), "one of three does not tell");
    assert!(String::from_utf8(output.stdout).unwrap().contains("daemon=\"keyd\""));
}

#[test]
fn settings_that_do_not_fit_end_each_daemon_with_the_status_that_is_not_started_again() {
    for (daemon, text) in Daemon::ALL
        .map(|daemon| (daemon, "{".to_owned()))
        .into_iter()
        // Read without complaint, but no engine can be reached there.
        .chain([(Daemon::Moduled, settings_with_engine("tcp://127.0.0.1:2375"))])
    {
        let folder = tempfile::tempdir().unwrap();
        let settings = Root::new(folder.path()).settings_file(daemon);
        std::fs::create_dir_all(settings.parent().unwrap()).unwrap();
        std::fs::write(&settings, text).unwrap();
        let mut command =
            std::process::Command::new(program(&format!("edgekeep-{}", daemon.name())));
        let output = command.env(ROOT_VARIABLE, folder.path()).output().unwrap();
        let log = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(153), "{}: {log}", daemon.name());
        assert!(log.contains(".json") || log.contains("unix:///PATH"), "{log}");
    }
}

/// Returns the settings that `config apply` writes for moduled, with another engine.
fn settings_with_engine(uri: &str) -> String {
    let device = Device::builder().start();
    let text = std::fs::read_to_string(device.root().settings_file(Daemon::Moduled)).unwrap();
    let mut settings: serde_json::Value = serde_json::from_str(&text).unwrap();
    settings["engine"] = json!({ "uri": uri });
    settings.to_string()
}

#[test]
fn daemons_give_up_their_rights_and_say_so() {
    let device = Device::builder().start();
    for (daemon, kept) in [
        (Daemon::Keyd, "0000000000000002"),
        (Daemon::Identityd, "0000000000000000"),
        (Daemon::Moduled, "0000000000000002"),
    ] {
        let answer =
            http::call(&device.root().metrics_socket(daemon), "GET", "/sandbox", None).unwrap();
        let report = answer.expect(200);
        assert_eq!(report["enabled"], true, "{report}");
        let layers = report["layers"].as_array().unwrap();
        assert!(layers.len() == 3 && layers.iter().all(|layer| layer["full"] == true), "{report}");
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", device.pid(daemon))).unwrap();
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or_default().trim().to_owned()
        };
        assert_eq!(
            (field("Seccomp"), field("NoNewPrivs")),
            ("2".to_owned(), "1".to_owned()),
            "{status}"
        );
        let kept = if rustix::process::geteuid().is_root() { kept } else { "0000000000000000" };
        assert_eq!(
            (field("CapPrm").as_str(), field("CapEff").as_str()),
            (kept, kept),
            "{daemon:?}"
        );
        if daemon == Daemon::Moduled {
            // Its memory holds no secret that stays.
            continue;
        }
        let limits =
            std::fs::read_to_string(format!("/proc/{}/limits", device.pid(daemon))).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert!(core.split_whitespace().nth(4) == Some("0"), "{core}");
    }
}
