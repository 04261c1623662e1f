//! `check` and `check-list` on a device in a folder, with nothing running and with an
//! engine that we play.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

fn device(engine: Option<&Path>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("etc/edgekeep/config.toml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let engine = engine.map_or(
        "[agent]\ntype = \"process\"\nconfig.image = \"m\"\n[host_modules.m]\nexecutable = \"/bin/true\"\nsha256 = \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"\n"
            .to_owned(),
        |socket| format!("[moby_runtime]\nuri = \"unix://{}\"\n", socket.display()),
    );
    let text = format!(
        "hostname = \"press\"\nallow_elevated_docker_permissions = false\n[provisioning]\nsource = \"none\"\n{engine}"
    );
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let applied = edgekeep(folder.path(), &["config", "apply"]);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    folder
}

fn edgekeep(root: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgekeep"));
    for variable in ["EDGEKEEP_ROOT", "https_proxy", "HTTPS_PROXY"] {
        command.env_remove(variable);
    }
    command.arg("--root").arg(root).args(words).output().unwrap()
}

fn checked(root: &Path, words: &[&str]) -> (Option<i32>, Value) {
    let output = edgekeep(root, &[&["check", "-o", "json"], words].concat());
    let value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), value)
}

fn result<'a>(value: &'a Value, id: &str) -> &'a str {
    value["checks"][id]["result"]["result"].as_str().unwrap_or_else(|| panic!("no {id}: {value}"))
}

#[test]
fn what_is_down_is_an_error_with_its_fix_and_what_is_not_used_is_skipped() {
    let folder = device(None);
    let (code, value) = checked(folder.path(), &[]);
    assert_eq!(code, Some(1));
    for id in ["keyd-running", "certd-running", "identityd-running", "connect-management-uri"] {
        assert_eq!(result(&value, id), "error", "{id}");
        let finding = &value["checks"][id]["result"];
        assert!(finding["fix"].as_str().unwrap().contains("systemctl start"), "{finding}");
        assert!(!finding["why"].as_str().unwrap().is_empty());
    }
    for id in ["config-well-formed", "configs-up-to-date", "hostname"] {
        let expected = if id == "config-well-formed" { "warning" } else { "ok" };
        assert_eq!(result(&value, id), expected, "{id}: {}", value["checks"][id]);
    }
    for id in [
        "parent_hostname",
        "container-engine-uri",
        "container-engine-hardening",
        "tpmd-running",
        "host-connect-dps-endpoint",
        "host-connect-iothub-mqtt",
    ] {
        assert_eq!(result(&value, id), "skipped", "{id}: {}", value["checks"][id]);
    }
}

#[test]
fn checks_that_are_left_out_do_not_fail_and_unknown_ids_are_refused() {
    let folder = device(None);
    let root = folder.path();
    let wrong = edgekeep(root, &["check", "--dont-run", "nonsense"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("check-list"));
    let (_, all) = checked(root, &[]);
    let failed: Vec<&str> = all["checks"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, check)| check["result"]["result"] == "error")
        .map(|(id, _)| id.as_str())
        .collect();
    let (code, value) = checked(root, &["--dont-run", &failed.join(",")]);
    assert_eq!(code, Some(0), "warnings do not fail: {value}");
    assert_eq!(result(&value, "keyd-running"), "ignored");
    let (code, _) = checked(root, &["--warnings-as-errors", "--dont-run", &failed.join(" ")]);
    assert_eq!(code, Some(1), "but they do if asked to");
}

#[test]
fn a_configuration_that_was_not_applied_and_one_with_an_error_are_told() {
    let folder = device(None);
    let file = folder.path().join("etc/edgekeep/config.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("press", "lathe")).unwrap();
    let (_, value) = checked(folder.path(), &[]);
    assert_eq!(result(&value, "configs-up-to-date"), "warning");
    std::fs::write(&file, format!("colour = 1\n{text}")).unwrap();
    let (_, value) = checked(folder.path(), &[]);
    assert_eq!(result(&value, "config-well-formed"), "error");
    let details = value["checks"]["config-well-formed"]["result"]["details"].as_str().unwrap();
    assert!(details.contains("line 1: unknown key `colour`"), "{details}");
}

#[test]
fn a_folder_in_the_place_of_the_engines_socket_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let device = device(Some(&socket));
    drop(listener);
    std::fs::remove_file(&socket).unwrap();
    std::fs::create_dir(&socket).unwrap();
    let (_, value) = checked(device.path(), &[]);
    assert_eq!(result(&value, "container-engine-uri"), "error");
    let details = value["checks"]["container-engine-uri"]["result"]["details"].as_str().unwrap();
    assert!(details.ends_with("docker.sock is a folder"), "{details}");
}

/// An engine that answers each question with the same values.
fn engine(listener: UnixListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let body =
                "{\"SecurityOptions\":[\"name=apparmor\"],\"Config\":{\"Env\":[]},\"Mounts\":[]}";
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length:";
            let _ = stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes());
        }
    });
}

#[test]
fn what_an_engine_tells_is_judged() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    engine(UnixListener::bind(&socket).unwrap());
    let device = device(Some(&socket));
    let (_, value) = checked(device.path(), &[]);
    assert_eq!(result(&value, "container-engine-uri"), "ok");
    assert_eq!(result(&value, "container-engine-hardening"), "warning");
    assert_eq!(result(&value, "edge-agent-storage-mounted-from-host"), "warning");
    assert_eq!(result(&value, "container-engine-logrotate"), "skipped", "it is not Docker");
}

#[test]
fn an_engine_that_never_answers_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let device = device(Some(&socket));
    let begun = Instant::now();
    let (_, value) = checked(device.path(), &[]);
    assert_eq!(result(&value, "container-engine-uri"), "error");
    // Each check has 2.5 s; the rest is for a machine that is busy.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[test]
fn the_list_has_each_check_with_category_and_description() {
    let folder = tempfile::tempdir().unwrap();
    let text = edgekeep(folder.path(), &["check-list"]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("CATEGORY"), "{text}");
    for id in ["container-engine-uri", "hostname", "host-connect-iothub-amqp", "disk-space"] {
        assert!(text.lines().any(|line| line.split_whitespace().nth(1) == Some(id)), "{id}");
    }
}
