//! The command as it is called: help, exit codes, streams, and what it leaves on disk.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::JoinHandle;

fn edgekeep() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgekeep"));
    for variable in ["EDGEKEEP_ROOT", "IOTEDGE_HOST", "NO_COLOR"] {
        command.env_remove(variable);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Compares with a file in `tests/golden`. With EDGEKEEP_BLESS set, writes it instead.
#[track_caller]
fn golden(name: &str, shown: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("EDGEKEEP_BLESS").is_some() {
        std::fs::write(&path, shown).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(shown, expected, "{name} differs; run with EDGEKEEP_BLESS=1 if that is meant");
}

#[test]
fn help_reads_as_it_was_written() {
    for (name, words) in [
        ("help.txt", &["--help"][..]),
        ("help-dev.txt", &["dev", "--help"]),
        ("help-config-apply.txt", &["config", "apply", "--help"]),
        ("help-logs.txt", &["logs", "--help"]),
        ("help-audit.txt", &["audit", "--help"]),
        ("help-audit-verify.txt", &["audit", "verify", "--help"]),
        ("help-keys-doctor.txt", &["keys", "doctor", "--help"]),
    ] {
        let output = edgekeep().args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        golden(name, &text(&output.stdout));
    }
}

#[test]
fn wrong_arguments_are_exit_code_2() {
    for words in [
        &["nonsense"][..],
        &[],
        &["list", "--nonsense"],
        &["logs"],
        &["logs", "m", "--tail", "few"],
    ] {
        assert_eq!(edgekeep().args(words).output().unwrap().status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn the_version_is_told_as_text_and_as_json() {
    let output = edgekeep().arg("version").output().unwrap();
    assert_eq!(text(&output.stdout), format!("edgekeep {}\n", env!("CARGO_PKG_VERSION")));
    let output = edgekeep().args(["--json", "version"]).output().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["version"], env!("CARGO_PKG_VERSION"));
}

const CONFIG: &str = "hostname = \"press\"\n[provisioning]\nsource = \"manual\"\n\
    connection_string = \"HostName=h.example;DeviceId=press-04;SharedAccessKey=a2V5MQ==\"\n";

fn device(config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("etc/edgekeep/config.toml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, config).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    folder
}

fn apply(folder: &Path, words: &[&str]) -> Output {
    edgekeep().arg("--root").arg(folder).args(["config", "apply"]).args(words).output().unwrap()
}

#[test]
fn config_apply_writes_the_settings_once_and_then_nothing() {
    let folder = device(CONFIG);
    let dry = apply(folder.path(), &["--dry-run"]);
    assert_eq!(dry.status.code(), Some(0));
    assert!(text(&dry.stdout).contains("would write"), "{}", text(&dry.stdout));
    assert!(!folder.path().join("etc/edgekeep/keyd.json").exists());

    let first = apply(folder.path(), &[]);
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    assert!(
        text(&first.stdout).contains("restart edgekeep-keyd, edgekeep-identityd, edgekeep-moduled")
    );
    for name in ["keyd.json", "identityd.json", "moduled.json"] {
        let metadata = std::fs::metadata(folder.path().join("etc/edgekeep").join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(
        std::fs::read(folder.path().join("var/lib/edgekeep/keyd/import/device-id")).unwrap(),
        b"key1"
    );

    let second = apply(folder.path(), &[]);
    assert_eq!(text(&second.stdout), "nothing changed\n");
    let json = apply(folder.path(), &["--json"]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value["changes"], serde_json::json!([]));
}

#[test]
fn config_errors_are_exit_code_1_and_stand_on_standard_error() {
    let folder = device(&format!("colour = 1\n{CONFIG}auto_reprovisioning_mode = \"Dynamic\"\n"));
    let output = apply(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    let shown = text(&output.stderr).replace(folder.path().to_str().unwrap(), "ROOT");
    golden("config-errors.txt", &shown);
    assert!(!folder.path().join("etc/edgekeep/keyd.json").exists());

    let check = edgekeep()
        .arg("--root")
        .arg(folder.path())
        .args(["config", "check", "--json"])
        .output()
        .unwrap();
    assert_eq!(check.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    assert_eq!(value["valid"], false);
    assert_eq!(value["diagnostics"][0]["line"], 1);
}

#[test]
fn a_configuration_that_is_not_there_is_told_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = apply(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("write it, or name another file with -c"),
        "{}",
        text(&output.stderr)
    );
}

/// Answers requests on a management socket, each with the bytes given, and returns the
/// request lines.
fn answering(answers: Vec<Vec<u8>>) -> (tempfile::TempDir, PathBuf, JoinHandle<Vec<String>>) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("run/iotedge/mgmt.sock");
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let accepted = move || {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let request = lines.next().unwrap().unwrap();
        while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
        (stream, request)
    };
    // First a command asks whether anybody answers at all.
    let asked = move || loop {
        let (mut stream, request) = accepted();
        if request != "GET / HTTP/1.1" {
            return (stream, request);
        }
        stream.write_all(&answer("404 Not Found", "text/plain", b"")).unwrap();
    };
    let thread = std::thread::spawn(move || {
        let serve = |answer: Vec<u8>| {
            let (mut stream, request) = asked();
            stream.write_all(&answer).unwrap();
            request
        };
        answers.into_iter().map(serve).collect()
    });
    let path = folder.path().to_owned();
    (folder, path, thread)
}

fn answer(status: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend(body);
    bytes
}

#[test]
fn list_shows_a_table_and_json() {
    let body = br#"{"modules":[{"id":"id","name":"t","type":"docker","config":{"settings":{"image":"i:1"},"env":[]},"status":{"runtimeStatus":{"status":"stopped"}}}]}"#;
    let ok = answer("200 OK", "application/json", body);
    let (_folder, root, thread) = answering(vec![ok.clone(), ok.clone(), ok]);
    let output = edgekeep().arg("--root").arg(&root).arg("list").output().unwrap();
    assert_eq!(
        text(&output.stdout),
        "NAME  STATUS   DESCRIPTION  CONFIG\nt     stopped  Stopped      i:1\n"
    );
    assert_eq!(output.status.code(), Some(0));
    let output = edgekeep().env("EDGEKEEP_ROOT", &root).args(["list", "--json"]).output().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value[0]["status"], "stopped");
    let uri = format!("unix://{}", root.join("run/iotedge/mgmt.sock").display());
    let output = edgekeep().args(["-H", &uri, "list"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        thread
            .join()
            .unwrap()
            .iter()
            .all(|line| line == "GET /modules?api-version=2022-08-03 HTTP/1.1")
    );
}

#[test]
fn the_streams_of_a_log_come_out_apart() {
    let body =
        [&[1, 0, 0, 0, 0, 0, 0, 4][..], b"one\n", &[2, 0, 0, 0, 0, 0, 0, 4], b"bad\n"].concat();
    let (_folder, root, thread) = answering(vec![answer("200 OK", "text/plain", &body)]);
    let output = edgekeep()
        .arg("--root")
        .arg(&root)
        .args(["logs", "$edgeAgent", "--tail", "2"])
        .output()
        .unwrap();
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("one\n", "bad\n"));
    let lines = thread.join().unwrap();
    assert_eq!(
        lines,
        [
            "GET /modules/%24edgeAgent/logs?api-version=2022-08-03&follow=false&timestamps=false&tail=2 HTTP/1.1"
        ]
    );
}

#[test]
fn a_refused_restart_is_exit_code_1_with_the_reason() {
    let refusal = answer("404 Not Found", "application/json", br#"{"message":"no such module"}"#);
    let (_folder, root, thread) = answering(vec![refusal]);
    let output = edgekeep().arg("--root").arg(&root).args(["restart", "t"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "error: no such module (status 404)\n");
    assert_eq!(thread.join().unwrap(), ["POST /modules/t/restart?api-version=2022-08-03 HTTP/1.1"]);
}

#[test]
fn a_device_whose_daemons_are_down_is_not_healthy_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = edgekeep().arg("--root").arg(folder.path()).arg("status").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    golden(
        "status-down.txt",
        &text(&output.stdout).replace(folder.path().to_str().unwrap(), "ROOT"),
    );
    let output =
        edgekeep().arg("--root").arg(folder.path()).args(["status", "--json"]).output().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (value["healthy"].clone(), value["daemons"][2]["answers"].clone()),
        (false.into(), false.into())
    );
}

#[test]
fn dev_refuses_a_root_that_it_cannot_use() {
    let output = edgekeep().args(["--root", "/", "dev"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("name a folder with --root"), "{}", text(&output.stderr));
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("d".repeat(80));
    let output = edgekeep().arg("--root").arg(long).arg("dev").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("name a shorter folder with --root"),
        "{}",
        text(&output.stderr)
    );
}
