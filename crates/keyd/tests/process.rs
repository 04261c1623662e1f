//! The daemon as a process: start, stop, being killed.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use edgekeep_api::keyd::{KeyHandle, KeysClient, SignMechanism};
use edgekeep_api::operations::OperationsClient;
use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use rustix::process::{Pid, Signal, kill_process};

const DEADLINE: Duration = Duration::from_secs(20);

fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgekeep-keyd"));
    command.env(ROOT_VARIABLE, folder).env_remove("NOTIFY_SOCKET").stderr(Stdio::piped());
    // The test's user is granted everything, whoever that is.
    let settings = Root::new(folder).settings_file(Daemon::Keyd);
    if !settings.exists() {
        std::fs::create_dir_all(settings.parent().unwrap()).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        std::fs::write(
            settings,
            format!(r#"{{"principals":[{{"uid":{uid},"keys":["*"]}}],"auditors":[{uid}]}}"#),
        )
        .unwrap();
    }
    command
}

/// Starts the daemon and waits until it says that it is ready.
fn start(folder: &Path) -> Child {
    let notify = folder.join("notify");
    let _ = std::fs::remove_file(&notify);
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let child =
        command(folder).env("NOTIFY_SOCKET", &notify).stderr(Stdio::null()).spawn().unwrap();
    let mut message = [0; 64];
    let length = manager.recv(&mut message).unwrap();
    assert_eq!(&message[..length], b"READY=1");
    child
}

fn end(mut child: Child, signal: Signal) -> ExitStatus {
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait().unwrap()
}

/// Runs a daemon that is expected to give up, and returns its exit code and what it
/// logged.
fn give_up(folder: &Path) -> (Option<i32>, String) {
    let mut child = command(folder).spawn().unwrap();
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    (child.wait().unwrap().code(), log)
}

#[test]
fn it_stops_with_success_on_both_signals_and_starts_again_over_its_old_socket() {
    let folder = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
        assert_eq!(end(start(folder.path()), signal).code(), Some(0));
    }
}

#[test]
fn without_a_tpm_a_passed_socket_of_the_tpm_api_answers_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let sockets = ["keyd", "tpmd"].map(|name| folder.path().join(name));
    let [keyd, tpmd] =
        sockets.each_ref().map(|path| OwnedFd::from(UnixListener::bind(path).unwrap()));
    let plain = command(folder.path());
    // The shell puts the listeners where the protocol wants them, and keeps its own
    // process id.
    let mut passed = Command::new("sh");
    passed.args(["-c", "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$; exec \"$0\""]);
    passed.arg(plain.get_program());
    passed.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    passed.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "aziot-keyd.socket:aziot-tpmd.socket");
    let child = passed
        .stdin(Stdio::from(keyd))
        .stdout(Stdio::from(tpmd))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stream = UnixStream::connect(&sockets[1]).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
        .write_all(b"GET /get_tpm_keys?api-version=2020-10-15 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert_eq!(end(child, Signal::TERM).code(), Some(0));
}

#[test]
fn settings_that_do_not_fit_end_it_with_153_and_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Root::new(folder.path()).settings_file(Daemon::Keyd);
    std::fs::create_dir_all(settings.parent().unwrap()).unwrap();
    for text in ["{", r#"{"principal":[]}"#, r#"{"preloaded_keys":{"device-id":"pkcs11:token=t"}}"#]
    {
        std::fs::write(&settings, text).unwrap();
        let (code, log) = give_up(folder.path());
        assert_eq!(code, Some(153), "{log}");
        assert!(log.contains("keyd.json") || log.contains("device-id"), "{log}");
    }
}

#[test]
fn a_second_daemon_in_the_same_state_folder_gives_up_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let first = start(folder.path());
    let (code, log) = give_up(folder.path());
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("another process listens at"), "{log}");
    assert_eq!(end(first, Signal::TERM).code(), Some(0));
}

#[test]
fn the_audit_log_survives_kill_9_and_says_that_it_was_not_closed() {
    use edgekeep_audit::verify::{Gap, Known, verify};
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let root = Root::new(folder.path());
    let audit = root.state_folder(Daemon::Keyd).join("audit");
    let mut known = None;
    for round in 0..3_u32 {
        let child = start(folder.path());
        let (key, checkpoint) = runtime.block_on(async {
            let client = KeysClient::new(root.keyd_socket());
            client.create_key(&format!("k{round}"), "sign").await.unwrap();
            let head = client.audit_checkpoint().await.unwrap();
            client.create_key("after", "sign").await.unwrap();
            (head.verifier_key.parse().unwrap(), head.checkpoint)
        });
        assert_eq!(end(child, Signal::KILL).signal(), Some(9));
        let report =
            verify(&audit, &Known { key: &key, checkpoint: Some(&checkpoint), counter: None })
                .unwrap();
        assert!(report.is_intact(), "round {round}: {report:?}");
        let unclean = report.gaps.iter().filter(|gap| matches!(gap, Gap::Unclean(_))).count();
        assert!(unclean <= usize::try_from(round).unwrap(), "{report:?}");
        assert_eq!(*known.get_or_insert(key.clone()), key, "it goes on with the same log");
    }
    assert_eq!(end(start(folder.path()), Signal::TERM).code(), Some(0));
    let report =
        verify(&audit, &Known { key: &known.unwrap(), checkpoint: None, counter: None }).unwrap();
    assert!(
        report.is_intact() && !report.gaps.iter().any(|gap| matches!(gap, Gap::Unsigned(_))),
        "{report:?}"
    );
}

/// Killed at no particular point of a stream of imports, it has one of the two keys
/// afterwards, and every handle works.
#[test]
fn kill_9_while_keys_are_being_replaced_leaves_the_old_or_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let socket = Root::new(folder.path()).keyd_socket();
    let keys = [vec![1; 32], vec![2; 2000]];
    let macs = keys.each_ref().map(|key| {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
        aws_lc_rs::hmac::sign(&key, b"m").as_ref().to_vec()
    });
    let mut handle: Option<KeyHandle> = None;
    for round in 0..16_usize {
        let child = start(folder.path());
        runtime.block_on(async {
            let client = KeysClient::new(&socket);
            if let Some(handle) = &handle {
                let mechanism = SignMechanism::HmacSha256 { message: b"m"[..].into() };
                let mac = client.sign(handle, mechanism).await.unwrap();
                assert!(macs.contains(&mac), "round {round}: neither the old nor the new key");
            }
            let pid = Pid::from_child(&child);
            let mut killer = None;
            for count in 0.. {
                if count == 2 {
                    // Each round kills at another point of the imports that follow.
                    let delay = Duration::from_micros(350) * u32::try_from(round).unwrap();
                    killer = Some(std::thread::spawn(move || {
                        let started = Instant::now();
                        while started.elapsed() < delay {
                            std::hint::spin_loop();
                        }
                        kill_process(pid, Signal::KILL).unwrap();
                    }));
                }
                match client.import_key("k", "sign", keys[count % 2].clone()).await {
                    Ok(made) => handle = Some(made),
                    Err(error) => {
                        killer.unwrap_or_else(|| panic!("not killed, but {error}")).join().unwrap();
                        break;
                    }
                }
            }
        });
        let mut child = child;
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
    let folder = Root::new(folder.path()).state_folder(Daemon::Keyd).join("keys");
    let names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_str().unwrap().contains("corrupt")), "{names:?}");
}

#[test]
fn it_serves_from_within_a_sandbox_that_all_its_threads_are_in() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new(folder.path());
    std::fs::create_dir_all(root.key_import_folder()).unwrap();
    std::fs::write(root.key_import_folder().join("device-id"), "secret").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut handles: Vec<KeyHandle> = Vec::new();
    let uid = rustix::process::geteuid().as_raw();
    let settings =
        format!(r#"{{"principals":[{{"uid":{uid},"keys":["*"]}}],"connections_per_uid":200}}"#);
    std::fs::create_dir_all(root.settings_file(Daemon::Keyd).parent().unwrap()).unwrap();
    std::fs::write(root.settings_file(Daemon::Keyd), settings).unwrap();
    for round in 0..2 {
        let child = start(folder.path());
        assert!(
            !root.key_import_folder().join("device-id").exists(),
            "the key was taken in and its file removed"
        );
        runtime.block_on(async {
            let mut calls = tokio::task::JoinSet::new();
            for number in 0..64 {
                let client = KeysClient::new(root.keyd_socket());
                calls.spawn(async move {
                    if number % 2 == 0 {
                        client
                            .create_key_pair(&format!("pair{number}"), Some("ec-p256:rsa-2048"))
                            .await
                            .unwrap()
                    } else {
                        client.create_key(&format!("key{number}"), "sign").await.unwrap()
                    }
                });
            }
            // While keys are being made there are threads for them.
            let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
            for task in tasks.map(|task| task.unwrap().path()) {
                let Ok(status) = std::fs::read_to_string(task.join("status")) else { continue };
                let field = |name: &str| {
                    status
                        .lines()
                        .find_map(|line| line.strip_prefix(name))
                        .map_or("", |value| value.trim_matches([':', '\t']))
                };
                assert_eq!((field("Seccomp"), field("NoNewPrivs")), ("2", "1"), "{status}");
                let kept = if rustix::process::geteuid().is_root() {
                    "0000000000000002"
                } else {
                    "0000000000000000"
                };
                assert_eq!(
                    (field("CapPrm"), field("CapEff"), field("CapAmb")),
                    (kept, kept, "0000000000000000")
                );
            }
            let mut made = Vec::new();
            while let Some(done) = calls.join_next().await {
                made.push(done.unwrap());
            }
            let client = KeysClient::new(root.keyd_socket());
            for handle in handles.iter().chain(&made) {
                let signed = client
                    .sign(handle, SignMechanism::HmacSha256 { message: b"m"[..].into() })
                    .await;
                let signed = match signed {
                    Ok(signed) => Ok(signed),
                    Err(_) => {
                        client
                            .sign(handle, SignMechanism::Ecdsa { digest: vec![1; 32].into() })
                            .await
                    }
                };
                assert!(!signed.unwrap().is_empty(), "round {round}");
            }
            client.delete_key(&client.load_key("device-id").await.unwrap()).await.unwrap();
            let operations = OperationsClient::new(root.metrics_socket(Daemon::Keyd));
            let report = operations.sandbox().await.unwrap();
            assert!(report.enabled && report.widened.is_empty(), "{report:?}");
            assert_eq!(report.layers.len(), 3);
            assert!(
                report.layers.iter().all(|layer| layer.full),
                "this kernel cannot do all of it: {report:?}"
            );
            handles = made;
        });
        // A core dump would have the keys in it.
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        assert!(limits.lines().any(|line| {
            line.split_whitespace().eq(["Max", "core", "file", "size", "0", "0", "bytes"])
        }));
        assert_eq!(end(child, Signal::TERM).code(), Some(0));
        std::fs::write(root.key_import_folder().join("device-id"), "secret").unwrap();
    }
}

#[test]
fn without_sandbox_it_says_so_in_its_log_and_to_who_asks() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Root::new(folder.path()).settings_file(Daemon::Keyd);
    std::fs::create_dir_all(settings.parent().unwrap()).unwrap();
    std::fs::write(settings, r#"{"sandbox":{"enabled":false}}"#).unwrap();
    let notify = folder.path().join("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut child = command(folder.path()).env("NOTIFY_SOCKET", &notify).spawn().unwrap();
    manager.recv(&mut [0; 64]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let socket = Root::new(folder.path()).metrics_socket(Daemon::Keyd);
    let report = runtime.block_on(async { OperationsClient::new(socket).sandbox().await.unwrap() });
    assert!(!report.enabled && report.layers.is_empty());
    let mut log = child.stderr.take().unwrap();
    assert_eq!(end(child, Signal::TERM).code(), Some(0));
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    assert!(text.contains("WARN") && text.contains("sandbox = false"), "{text}");
    let mut message = [0; 64];
    let length = manager.recv(&mut message).unwrap();
    assert_eq!(&message[..length], b"STOPPING=1");
}
