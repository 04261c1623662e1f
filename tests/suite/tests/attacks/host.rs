//! Attacks on a module that is a program of the host.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use edgekeep_core::attestation::DenyReason;
use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Caller, Device, VERSION, http, program, wait_for};
use serde_json::{Value, json};

use crate::scripts::{Script, with_perl, with_perl_granted};
use crate::wait_for_edge_ca;

const V: &str = "api-version=2020-07-07";

fn sign_body() -> Option<Value> {
    Some(json!({ "keyId": "primary", "algo": "HMACSHA256", "data": "ZGF0YQ==" }))
}

fn generation_of(device: &Device, module: &str) -> String {
    device.cloud().state().devices["press-04"].modules[module].generation_id.clone()
}

/// The program that asks for another's secrets. Its exit code is 0 if all was refused.
fn intruder(device: &Device, socket: &Path, module: &str) -> Command {
    let mut command = Command::new(program("intruder"));
    command.arg("--socket").arg(socket).args([
        "--module",
        module,
        "--genid",
        &generation_of(device, module),
        "--json",
    ]);
    command
}

fn assert_all_refused(output: &Output) {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(0), "{text}");
}

fn reasons(device: &Device) -> Vec<DenyReason> {
    device.status().refusals.iter().map(|refusal| refusal.reason).collect()
}

#[test]
fn a_stranger_of_the_same_user_is_refused_on_every_socket() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    for (module, socket) in [
        ("m1", device.module_socket("m1")),
        ("m1", device.root().legacy_workload_socket()),
        ("$edgeAgent", device.module_socket("edgeAgent")),
        ("$edgeAgent", device.root().legacy_workload_socket()),
    ] {
        let before = device.status().refusal_count;
        assert_all_refused(&intruder(&device, &socket, module).output().unwrap());
        let status = device.status();
        assert_eq!(status.refusal_count - before, 4, "each try is in the trail");
        for refusal in &status.refusals[..4] {
            assert_eq!(
                (refusal.module.as_str(), refusal.reason),
                (module, DenyReason::NotInModule),
                "{refusal:?}"
            );
        }
    }
    // Through a socket of its own choice: not even the name is right.
    let body = sign_body().unwrap();
    let asked = |socket: &Path, module: &str| {
        http::call(socket, "POST", &format!("/modules/{module}/genid/1/sign?{V}"), Some(&body))
            .unwrap()
    };
    device.assert_refused(
        &asked(&device.module_socket("m1"), "m2"),
        "m2",
        DenyReason::SocketOfAnotherModule,
    );
    device.assert_refused(
        &asked(&device.root().legacy_workload_socket(), "m2"),
        "m2",
        DenyReason::NotRegistered,
    );
    let _ = m1.sign().expect(200);
}

#[test]
fn a_copy_of_the_module_with_its_environment_is_not_the_module() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let pid = device.processes_of("m1")[0];
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let answers = device.root().path().join("copy.answers");
    // The same bytes, the same variables, the same user; started by somebody else.
    let mut command = Command::new(program("calls"));
    command.env_clear();
    for entry in environment.split(|byte| *byte == 0).map(String::from_utf8_lossy) {
        if let Some((name, value)) = entry.split_once('=') {
            command.env(name, value);
        }
    }
    let call = json!({"method": "POST", "path": format!("/modules/{{m}}/genid/{{g}}/sign?{V}"), "body": sign_body()});
    command.env("EDGEKEEP_TEST_CALLS", call.to_string()).env("EDGEKEEP_TEST_ANSWERS", &answers);
    let mut copy = command.stdin(Stdio::null()).spawn().unwrap();
    let answer: Value = wait_for("the copy's answer", || {
        let text = std::fs::read_to_string(&answers).ok()?;
        serde_json::from_str(text.lines().next()?).ok()
    });
    assert_eq!(answer["status"], 403, "{answer}");
    let refusal = device.assert_latest_refusal("m1", DenyReason::NotInModule);
    assert_eq!(refusal.pid, copy.id());
    copy.kill().unwrap();
    copy.wait().unwrap();
    let _ = m1.sign().expect(200);
}

#[test]
fn another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to act as another user");
        return;
    }
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    // The program's own folder may not be open to other users.
    let copy = device.root().path().join("intruder");
    std::fs::copy(program("intruder"), &copy).unwrap();
    let tried = |socket: &Path| {
        let mut command = Command::new(&copy);
        command.arg("--socket").arg(socket).args([
            "--module",
            "m1",
            "--genid",
            &generation_of(&device, "m1"),
            "--json",
        ]);
        command.gid(65534).uid(65534).output().unwrap()
    };
    assert_all_refused(&tried(&device.root().legacy_workload_socket()));
    let refusal = device.assert_latest_refusal("m1", DenyReason::OtherUser);
    assert_eq!(refusal.uid, 65534);
    // Modules' own sockets and the management socket are not even open to other users.
    for socket in [device.module_socket("m1"), device.root().management_socket()] {
        let text = String::from_utf8_lossy(&tried(&socket).stdout).into_owned();
        assert_eq!(text.matches("Permission denied").count(), 5, "{}: {text}", socket.display());
    }
    let _ = m1.sign().expect(200);
}

#[test]
fn a_module_gets_no_identity_but_its_own() {
    let device = Device::builder().start();
    let (m1, m2) = (device.add_caller("m1"), device.add_caller("m2"));
    let as_m1 = format!("/modules/m1/genid/{}/sign?{V}", generation_of(&device, "m1"));
    let at = |caller: &Caller, socket: &Path| {
        caller.call_at(socket, "POST", &as_m1, sign_body()).unwrap()
    };
    let refused = at(&m2, &device.module_socket("m2"));
    device.assert_refused(&refused, "m1", DenyReason::SocketOfAnotherModule);
    let refused = at(&m2, &device.module_socket("m1"));
    device.assert_refused(&refused, "m1", DenyReason::NotInModule);
    let refused = at(&m2, &device.root().legacy_workload_socket());
    device.assert_refused(&refused, "m1", DenyReason::NotInModule);
    // The agent may do everything to modules, but not act as one.
    let refused = at(device.agent(), &device.module_socket("m1"));
    device.assert_refused(&refused, "m1", DenyReason::NotInModule);
    // A module's own identity does not open another's socket to it.
    let as_m2 = format!("/modules/m2/genid/{}/sign?{V}", generation_of(&device, "m2"));
    let refused = m2.call_at(&device.module_socket("m1"), "POST", &as_m2, sign_body()).unwrap();
    device.assert_refused(&refused, "m2", DenyReason::SocketOfAnotherModule);
    for target in ["encrypt", "decrypt", "certificate/server"] {
        let target = format!("/modules/m1/genid/{}/{target}?{V}", generation_of(&device, "m1"));
        let refused =
            m2.call_at(&device.module_socket("m1"), "POST", &target, Some(json!({}))).unwrap();
        device.assert_refused(&refused, "m1", DenyReason::NotInModule);
    }
    let refused = m2.call("POST", &format!("/modules/m1/certificate/identity?{V}"), None);
    device.assert_refused(&refused, "m1", DenyReason::SocketOfAnotherModule);
    for caller in [&m1, &m2] {
        let _ = caller.sign().expect(200);
    }
}

#[test]
fn a_module_that_was_removed_or_stopped_has_no_identity_left() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let target = format!("/modules/m1/genid/{}/sign?{V}", generation_of(&device, "m1"));
    let shared = device.root().legacy_workload_socket();
    let ask = || http::call(&shared, "POST", &target, sign_body().as_ref()).unwrap();
    let manage = |method: &str, path: &str| {
        device.agent().manage(method, &format!("{path}?{VERSION}"), None)
    };
    let _ = manage("POST", "/modules/m1/stop").expect(204);
    device.assert_refused(&ask(), "m1", DenyReason::NotRunning);
    let _ = manage("DELETE", "/modules/m1").expect(204);
    device.assert_refused(&ask(), "m1", DenyReason::NotRegistered);
    drop(m1);
}

#[test]
fn a_modules_own_children_may_act_for_it() {
    let device = with_perl(Device::builder()).start();
    // What is refused below is refused for its own reason, and not because scripts are.
    let script = Script::start(
        &device,
        "script",
        "my $s = dial(); syswrite $s, $req; status($s);
         if (!fork) { my $c = dial(); syswrite $c, $req; status($c); exit } wait; sleep 1000",
    );
    assert_eq!(script.lines(2), ["HTTP/1.1 200 OK", "HTTP/1.1 200 OK"]);
    assert_eq!(reasons(&device), []);
}

#[test]
fn bytes_of_a_child_on_the_parents_connection_are_refused() {
    let device = with_perl(Device::builder()).start();
    let script = Script::start(
        &device,
        "script",
        "my $s = dial(); if (!fork) { syswrite $s, $req; exit } status($s); wait; sleep 1000",
    );
    assert_eq!(script.lines(1), ["HTTP/1.1 403 Forbidden"]);
    device.assert_latest_refusal("", DenyReason::SenderChanged);
}

#[test]
fn another_program_that_a_module_starts_is_refused() {
    let device = with_perl(Device::builder()).start();
    wait_for_edge_ca(&device);
    let script = Script::start(
        &device,
        "script",
        &format!(
            "my $code = system '{}', '--socket', $path, '--module', 'script', '--genid', $ENV{{IOTEDGE_MODULEGENERATIONID}};
             report($code); sleep 1000",
            program("intruder").display()
        ),
    );
    assert_eq!(script.lines(1), ["0"], "all refused");
    device.assert_latest_refusal("script", DenyReason::ExecutableChanged);
}

#[test]
fn a_module_that_changes_its_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to change the user");
        return;
    }
    // A host module cannot become another user unless that is granted.
    let device = with_perl_granted(Device::builder(), "capabilities = [\"setuid\"]").start();
    let script = Script::start(
        &device,
        "script",
        // The report is opened while that is allowed.
        r#"
        use POSIX (); open(my $f, '>>', $ENV{REPORT}) or die; $f->autoflush(1);
        my $before = dial(); (my $first = $req) =~ s/Connection: close\r\n//;
        syswrite $before, $first; my $answer = '';
        sysread($before, $answer, 4096, length $answer) until $answer =~ /digest.*\}/;
        syswrite $f, substr($answer, 0, 15) . "\n";
        POSIX::setuid(65534); $path = $ENV{SHARED}; my $after = dial();
        for my $s ($before, $after) { syswrite $s, $req; my $l = <$s>; $l =~ s/\r?\n//; syswrite $f, "$l\n" }
        sleep 1000
        "#,
    );
    assert_eq!(
        script.lines(3),
        ["HTTP/1.1 200 OK", "HTTP/1.1 403 Forbidden", "HTTP/1.1 403 Forbidden"]
    );
    // Newest first: the one that connected as another user, then the one that changed
    // since it connected.
    assert_eq!(reasons(&device)[..2], [DenyReason::OtherUser, DenyReason::CallerChanged]);
}

#[test]
fn a_process_in_a_user_namespace_of_its_own_is_refused() {
    let number = match std::env::consts::ARCH {
        "x86_64" => 272,
        "aarch64" | "riscv64" => 97,
        other => return eprintln!("skipped: the number of unshare on {other} is not known here"),
    };
    // What a host module may call by default does not take it there.
    let device = with_perl_granted(Device::builder(), "seccomp = \"none\"").start();
    // There it may name any file as the one that it executes.
    let script = Script::start(
        &device,
        "script",
        &format!(
            "syscall({number}, 0x10000000) == 0 or die; my $s = dial(); syswrite $s, $req; status($s); sleep 1000"
        ),
    );
    assert_eq!(script.lines(1), ["HTTP/1.1 403 Forbidden"]);
    device.assert_latest_refusal("script", DenyReason::OtherUserNamespace);
}

#[test]
fn a_process_that_left_the_modules_tree_is_refused() {
    let device = with_perl(Device::builder()).start();
    let script = Script::start(
        &device,
        "script",
        r#"
        if (!fork) {
            my $parent = $$;
            if (!fork) {
                pause() while getppid() == $parent;
                my $s = dial(); syswrite $s, $req; status($s); sleep 1000; exit
            }
            exit
        }
        wait; sleep 1000
        "#,
    );
    assert_eq!(script.lines(1), ["HTTP/1.1 403 Forbidden"]);
    let expected = if device.status().process_cgroups {
        DenyReason::NotADescendant
    } else {
        DenyReason::NotInModule
    };
    device.assert_latest_refusal("script", expected);
}

#[test]
fn a_process_put_into_the_modules_group_from_outside_is_refused() {
    let device = Device::builder().start();
    if !device.status().process_cgroups {
        eprintln!("skipped: host modules have no control groups here");
        return;
    }
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let pid = device.processes_of("m1")[0];
    let Some(group) = group_of(pid) else {
        panic!("m1 has a group of its own, but it is not found")
    };
    // Whoever may write there is root. Moving a process in does not make it the module's.
    let mut command = Command::new("sh");
    command
        .args(["-c", "echo $$ > \"$GROUP/cgroup.procs\" && exec \"$@\"", "sh"])
        .env("GROUP", &group);
    let inner = intruder(&device, &device.module_socket("m1"), "m1");
    command.arg(inner.get_program()).args(inner.get_args());
    assert_all_refused(&command.output().unwrap());
    device.assert_latest_refusal("m1", DenyReason::NotADescendant);
    let _ = m1.sign().expect(200);
}

/// The folder of the control group that moduled made for a process.
pub(crate) fn group_of(pid: u32) -> Option<std::path::PathBuf> {
    let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = lines
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .find(|path| path.contains("/edgekeep-"))?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    points.find_map(|point| {
        let folder = Path::new(point).join(path.trim_start_matches('/'));
        let procs = std::fs::read_to_string(folder.join("cgroup.procs")).ok()?;
        procs.lines().any(|line| line == pid.to_string()).then_some(folder)
    })
}

#[test]
fn a_module_under_a_debugger_is_refused_as_long_as_it_is() {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("skipped: needs strace: apt-get install strace");
        return;
    }
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let _ = m1.sign().expect(200);
    let pid = device.processes_of("m1")[0];
    let tracer = || -> Option<u32> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?.trim().parse().ok()
    };
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null", "-p", &pid.to_string()]).stderr(Stdio::null());
    let mut strace = strace.spawn().unwrap();
    wait_for("strace to attach", || tracer().filter(|tracer| *tracer != 0));
    let refused = m1.sign();
    strace.kill().unwrap();
    strace.wait().unwrap();
    device.assert_refused(&refused, "m1", DenyReason::Traced);
    wait_for("strace to be gone", || tracer().filter(|tracer| *tracer == 0));
    let _ = m1.sign().expect(200);
}

#[test]
fn an_executable_that_changed_after_registration_is_not_started_and_what_runs_stays_what_it_was() {
    let folder = std::env::temp_dir().join(format!("ek-changed-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let executable = folder.join("calls");
    std::fs::copy(program("calls"), &executable).unwrap();
    let device = Device::builder().host_module("calls", &executable).start();
    let m1 = device.add_caller("m1");
    let before = device.processes_of("m1");
    // Overwritten in place, as an attacker who may write the file would; the running copy
    // is sealed.
    std::fs::write(&executable, std::fs::read(program("intruder")).unwrap()).unwrap();
    let _ = m1.sign().expect(200);
    let manage = |method: &str, path: &str, body| {
        device.agent().manage(method, &format!("{path}?{VERSION}"), body)
    };
    let refused = manage("POST", "/modules/m1/restart", None);
    assert!(refused.status >= 400, "{}", refused.text());
    let message = refused.message();
    assert!(
        message.contains("is registered") && message.contains(&executable.display().to_string()),
        "{message}"
    );
    // A restart that could not end in a running module does not begin.
    assert_eq!(device.processes_of("m1"), before);
    let _ = m1.sign().expect(200);
    let other = manage("POST", "/modules", Some(device.spec("m2", "calls", "g")));
    other.expect_error(400, "is registered");
    let unprepared =
        manage("POST", "/modules/m2/prepareupdate", Some(device.spec("m2", "calls", "g")));
    unprepared.expect_error(400, "is registered");
    std::fs::remove_dir_all(&folder).unwrap();
    // The agent runs on the same registration and is served: its own bytes did not
    // change.
    let _ = device.agent().sign().expect(200);
}

#[test]
fn no_module_gets_a_certificate_in_a_neighbours_name() {
    let device = Device::builder().start();
    let (m1, _m2) = (device.add_caller("m1"), device.add_caller("m2"));
    wait_for_edge_ca(&device);
    let target = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{V}");
    let ask = |name: &str| m1.call("POST", &target, Some(json!({ "commonName": name })));
    for neighbour in ["m2", "M2", "edgeHub"] {
        device.assert_refused(&ask(neighbour), "m1", DenyReason::NameOfAnotherModule);
    }
    ask("*.plant7").expect_error(400, "invalid commonName");
    let _ = ask("m1").expect(201);
}

#[test]
fn a_measured_host_module_takes_no_orders_for_its_loader() {
    let device = Device::builder().start();
    let mut spec = device.spec("m1", "calls", &device.create_identity("m1"));
    for variable in ["LD_PRELOAD", "LD_LIBRARY_PATH", "GLIBC_TUNABLES"] {
        spec["config"]["settings"]["createOptions"] =
            json!({ "Env": [format!("{variable}=/tmp/x")] });
        let refused =
            device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(spec.clone()));
        refused.expect_error(400, variable);
    }
}

#[test]
fn refusals_are_written_down_and_survive_the_daemon() {
    let mut device = Device::builder().start();
    let _ = device.agent().sign().expect(200);
    let body = sign_body().unwrap();
    let target = format!("/modules/$edgeAgent/genid/1/sign?{V}");
    let answer =
        http::call(&device.root().legacy_workload_socket(), "POST", &target, Some(&body)).unwrap();
    assert_eq!(answer.status, 403);
    device.kill(Daemon::Moduled);
    let trail =
        std::fs::read_to_string(device.root().state_folder(Daemon::Moduled).join("audit.jsonl"))
            .unwrap();
    let entry: Value = serde_json::from_str(trail.lines().last().unwrap()).unwrap();
    assert_eq!(entry["object"], "$edgeAgent");
    assert_eq!(entry["pid"], std::process::id());
    assert_eq!(entry["reason"], "not-in-module");
    assert!(!trail.contains("ZGF0YQ"), "what was to be signed is not in the trail");
}

#[test]
fn idle_connections_keep_no_other_module_from_being_served() {
    let device = Device::builder().start();
    let (m1, m2) = (device.add_caller("m1"), device.add_caller("m2"));
    let target = format!("/modules/{{m}}/genid/{{g}}/sign?{V}");
    let idle: Vec<_> = (0..200)
        .filter_map(|_| std::os::unix::net::UnixStream::connect(device.module_socket("m1")).ok())
        .collect();
    assert_eq!(idle.len(), 200);
    // All places of this user at this socket are taken: that is said, or the connection
    // ends; nobody waits.
    match m1.call_at(&device.module_socket("m1"), "POST", &target, sign_body()) {
        Ok(answer) => assert_eq!(answer.status, 429),
        Err(error) => assert!(error.contains("closed"), "{error}"),
    }
    let _ = m2.sign().expect(200);
    let _ = device.ask("GET", &format!("/modules?{VERSION}"), None).expect(200);
    drop(idle);
    wait_for("a free place", || {
        m1.call_at(&device.module_socket("m1"), "POST", &target, sign_body())
            .is_ok_and(|it| it.status == 200)
            .then_some(())
    });
}
