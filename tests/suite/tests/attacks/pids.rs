//! Attacks with process numbers, in a small pid namespace of their own where numbers can
//! be chosen.
//!
//! Each test runs itself again inside the namespace, with the whole device.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use edgekeep_core::attestation::{DenyReason, PeerHandle};
use edgekeep_testkit::{Device, VERSION, http, wait_for};
use serde_json::{Value, json};

use crate::exec::Paused;
use crate::scripts::{Script, with_perl, with_perl_granted};

const INSIDE: &str = "EDGEKEEP_TEST_INSIDE";

fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// This test again, as the first process but one of a pid namespace; `None` with a word
/// of why if that cannot be.
fn again(test: &str) -> Option<Child> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to make a pid namespace");
        return None;
    }
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    Some(command.spawn().unwrap())
}

/// An unconnected socket, which a child connects and asks with before it ends; the parent
/// keeps it. The child's number is reported, and then the answer.
const ASK_AND_END: &str = r#"
    use strict; use Socket; my ($path, $req, $report) = @ARGV; $SIG{PIPE} = 'IGNORE';
    sub report { open(my $f, '>>', $report) or die; syswrite $f, "$_[0]\n"; close $f }
    socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die;
    my $pid = fork;
    if (!$pid) { connect($s, pack_sockaddr_un($path)) or die; syswrite $s, $req; exit }
    waitpid $pid, 0; report($pid);
    my $l = <$s>; report(substr($l // 'closed', 0, 12)); sleep 1000
"#;

#[test]
fn a_process_with_the_number_of_the_one_that_connected_is_refused() {
    if !is_inside() {
        let Some(child) =
            again("pids::a_process_with_the_number_of_the_one_that_connected_is_refused")
        else {
            return;
        };
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    // To choose its children's numbers.
    let device = with_perl_granted(Device::builder(), "capabilities = [\"sys_admin\"]").start();
    if device.status().peer_handle != PeerHandle::PeerPidfd {
        eprintln!("skipped: this kernel has no SO_PEERPIDFD");
        return;
    }
    // A module that makes children of its own until one has the wanted number; that one
    // would be served.
    let script = Script::start(
        &device,
        "script",
        r#"
        pause() until -s "$ENV{REPORT}.pid"; open(my $f, '<', "$ENV{REPORT}.pid"); my $wanted = int <$f>; my $got = 0;
        for (1 .. 1000) {
            open(my $last, '>', '/proc/sys/kernel/ns_last_pid') or die; syswrite $last, $wanted - 1; close $last;
            $got = fork; if (!$got) { sleep 1000; exit }
            last if $got == $wanted; kill 9, $got; waitpid $got, 0;
        }
        report($got == $wanted ? 'reused' : 'not reused'); sleep 1000
        "#,
    );
    let own = device.cloud().state().devices["press-04"].modules["script"].generation_id.clone();
    let body = json!({ "data": "ZGF0YQ==" }).to_string();
    let request = format!(
        "POST /modules/script/genid/{own}/sign?{VERSION} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let report = device.root().path().join("attacker");
    let paused = Paused::new(&device);
    let mut attacker = Command::new("perl");
    attacker
        .args(["-e", ASK_AND_END])
        .arg(device.module_socket("script"))
        .arg(&request)
        .arg(&report);
    let mut attacker = attacker.spawn().unwrap();
    let lines = |count: usize| {
        wait_for("the attacker's report", || {
            let text = std::fs::read_to_string(&report).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            (lines.len() >= count && text.ends_with('\n')).then_some(lines)
        })
    };
    let pid = lines(1)[0].clone();
    let wanted = format!("{}.pid", script.report().display());
    std::fs::write(format!("{wanted}.new"), &pid).unwrap();
    std::fs::rename(format!("{wanted}.new"), &wanted).unwrap();
    assert_eq!(script.lines(1), ["reused"]);
    drop(paused);
    assert_eq!(lines(2)[1], "HTTP/1.1 403");
    let refusal = device.assert_latest_refusal("script", DenyReason::CallerGone);
    assert_eq!(refusal.pid.to_string(), pid);
    attacker.kill().unwrap();
    attacker.wait().unwrap();
}

#[test]
fn a_process_with_the_number_of_one_that_is_known_is_refused() {
    if !is_inside() {
        let Some(child) = again("pids::a_process_with_the_number_of_one_that_is_known_is_refused")
        else {
            return;
        };
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let device = with_perl(Device::builder()).start();
    // A child of the module that is served, and is known from then on, until it ends.
    let script = Script::start(
        &device,
        "script",
        r#"
        $ENV{REQ} = $req; my $pid = fork;
        if (!$pid) { for (1, 2) { my $s = dial(); syswrite $s, $req; status($s) } exit }
        waitpid $pid, 0; report($pid); sleep 1000
        "#,
    );
    let said = script.lines(3);
    assert_eq!(said[..2], ["HTTP/1.1 200 OK"; 2]);
    let wanted: u32 = said[2].parse().unwrap();
    let own = device.cloud().state().devices["press-04"].modules["script"].generation_id.clone();
    let body = json!({ "keyId": "primary", "algo": "HMACSHA256", "data": "ZGF0YQ==" }).to_string();
    let request = format!(
        "POST /modules/script/genid/{own}/sign?{VERSION} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    const ASK: &str = r#"
        use strict; use IO::Socket::UNIX; <STDIN>; my ($path, $req) = @ARGV;
        my $s = IO::Socket::UNIX->new(Peer => $path) or die; syswrite $s, $req; my $l = <$s>; print substr($l, 0, 12)
    "#;
    let stranger = wait_for("the number to be given again", || {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (wanted - 1).to_string()).unwrap();
        let mut command = Command::new("/usr/bin/perl");
        command.args(["-e", ASK]).arg(device.module_socket("script")).arg(&request);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        if child.id() == wanted {
            return Some(child);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        None
    });
    let output = stranger.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "HTTP/1.1 403");
    let refusal = device.assert_latest_refusal("script", DenyReason::NotInModule);
    assert_eq!(refusal.pid, wanted);
}

#[test]
fn a_process_that_the_daemon_cannot_see_is_refused() {
    if is_inside() {
        let device = Device::builder().start();
        println!("socket {}", device.root().legacy_workload_socket().display());
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        let refusal = device.assert_latest_refusal("$edgeAgent", DenyReason::PidNotVisible);
        assert_eq!(refusal.pid, 0);
        return;
    }
    let Some(mut child) = again("pids::a_process_that_the_daemon_cannot_see_is_refused") else {
        return;
    };
    let mut said = Vec::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let socket = lines.find_map(|line| {
        said.push(line.clone());
        Some(line.split_once("socket ")?.1.to_owned())
    });
    let socket = socket.unwrap_or_else(|| panic!("{said:?}"));
    let body: Value = json!({ "data": "ZGF0YQ==" });
    let target = format!("/modules/$edgeAgent/genid/1/sign?{VERSION}");
    assert_eq!(http::call(Path::new(&socket), "POST", &target, Some(&body)).unwrap().status, 403);
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let rest: Vec<String> = lines.collect();
    assert!(child.wait().unwrap().success(), "{rest:?}");
}
