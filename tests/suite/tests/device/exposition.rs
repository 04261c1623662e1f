//! What `edgekeep metrics` prints, before judges that are not ours: Prometheus' own
//! linter, and the strict OpenMetrics parser of Prometheus' Python client.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, wait_for};

/// The folder into which Debian's Prometheus was unpacked.
const PROMETHEUS: &str = "EDGEKEEP_TEST_PROMETHEUS";
const PYTHON: &str = "EDGEKEEP_TEST_PYTHON";

/// The one thing that the linter wants otherwise: what is alerted on is a number of days.
const IN_DAYS: &str =
    "edgekeep_certificate_days_left use base unit \"seconds\" instead of \"days\"";

/// What a program says of `text`.
fn said_of(program: &PathBuf, words: &[&str], text: &[u8]) -> Vec<String> {
    let mut judge = Command::new(program);
    judge.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut judge = judge.spawn().unwrap();
    judge.stdin.take().unwrap().write_all(text).unwrap();
    let output = judge.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let mut lines: Vec<String> =
        said.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if !output.status.success() {
        lines.push(format!("exit code {:?}", output.status.code()));
    }
    lines
}

fn device() -> Device {
    let device = Device::builder().start();
    let module = device.add_caller("m1");
    wait_for("the Edge CA certificate", || device.status().edge_ca_expiration);
    let _ = module.sign().expect(200);
    device
}

#[track_caller]
fn metrics(device: &Device, words: &[&str]) -> Vec<u8> {
    let output = device.edgekeep(&[&["metrics"], words].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn prometheus_own_linter_finds_nothing_in_the_metrics_of_all_daemons() {
    let folder = std::env::var_os(PROMETHEUS).map(PathBuf::from);
    let Some(promtool) = folder.map(|folder| folder.join("usr/bin/promtool")) else {
        eprintln!("skipped: {PROMETHEUS} is not set; cargo xtask test sets it");
        return;
    };
    let device = device();
    for words in [&["--format", "prometheus"][..], &["keyd", "--format", "prometheus"]] {
        let text = metrics(&device, words);
        assert!(text.starts_with(b"# TYPE edgekeep_"));
        let said = said_of(&promtool, &["check", "metrics"], &text);
        // 3 is its exit code for advice.
        let advice = [IN_DAYS.to_owned(), "exit code Some(3)".to_owned()];
        let expected = if words[0] == "keyd" { &[][..] } else { &advice[..] };
        assert_eq!(said, expected, "{}", String::from_utf8_lossy(&text));
    }
}

#[test]
fn the_metrics_of_all_daemons_are_one_openmetrics_document() {
    let device = device();
    let text = metrics(&device, &[]);
    let shown = String::from_utf8_lossy(&text);
    assert_eq!(shown.matches("# EOF").count(), 1);
    for daemon in Daemon::ALL {
        let sample = format!("edgekeep_start_time_seconds{{daemon=\"{}\"}} ", daemon.name());
        assert!(shown.contains(&sample), "{shown}");
    }
    let Some(python) = std::env::var_os(PYTHON).map(PathBuf::from) else {
        eprintln!("half skipped: {PYTHON} is not set; cargo xtask test sets it");
        return;
    };
    let parse = "import sys\n\
        from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
        print(len(list(parse(sys.stdin.read()))) > 10)";
    assert_eq!(said_of(&python, &["-c", parse], &text), ["True"], "{shown}");
}

#[test]
fn head_is_answered_as_get_is_without_a_body() {
    let device = Device::builder().start();
    let socket = device.root().metrics_socket(Daemon::Keyd).display().to_string();
    let curl = |words: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--max-time", "20", "--unix-socket", &socket]).args(words);
        String::from_utf8(curl.output().unwrap().stdout).unwrap()
    };
    let head = curl(&["--head", "http://x/metrics"]);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
    assert!(curl(&["--head", "http://x/nowhere"]).starts_with("HTTP/1.1 404"));
}
