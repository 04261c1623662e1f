//! Attacks on the connection: who sends, who is known by it, and for how long.

use edgekeep_core::attestation::DenyReason;
use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, wait_for};

use crate::scripts::{Script, with_perl};

fn has_python() -> bool {
    let has = std::process::Command::new("python3").arg("-V").output().is_ok();
    if !has {
        eprintln!("skipped: needs python3");
    }
    has
}

#[test]
fn a_request_of_which_another_process_sent_one_half_is_refused() {
    let device = with_perl(Device::builder()).start();
    // By a descriptor that was inherited, which is what a passed one is as well.
    let script = Script::start(
        &device,
        "script",
        r#"
        for my $first_is_parents (1, 0) {
            my $s = dial(); my $half = int(length($req) / 2); my @halves = (substr($req, 0, $half), substr($req, $half));
            my $send = sub { my ($part) = @_; syswrite $s, $halves[$part] };
            if ($first_is_parents) { $send->(0); if (!fork) { $send->(1); exit } wait }
            else { if (!fork) { $send->(0); exit } wait; $send->(1) }
            status($s);
        }
        sleep 1000
        "#,
    );
    for line in script.lines(2) {
        assert!(line == "HTTP/1.1 403 Forbidden" || line == "closed", "{line}");
    }
    device.assert_latest_refusal("", DenyReason::SenderChanged);
}

#[test]
fn a_sender_does_not_pass_for_its_parent_by_the_credentials_that_it_sends() {
    if !has_python() {
        return;
    }
    let device = with_perl(Device::builder()).start();
    let script = Script::start(
        &device,
        "script",
        r#"
        $^F = 100; my $s = dial(); $ENV{FD} = fileno $s; $ENV{REQ} = $req; $ENV{WHO} = $$;
        system 'python3', '-c', '
import os, socket, struct
s = socket.socket(fileno=int(os.environ["FD"]))
def send(pid):
    who = struct.pack("3i", pid, os.getuid(), os.getgid())
    s.sendmsg([os.environ["REQ"].encode()], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who)])
try:
    send(int(os.environ["WHO"])); said = "forged"
except PermissionError:
    said = "not permitted"
open(os.environ["REPORT"], "a").write(said + "\n")
send(os.getpid())
s.detach()
';
        status($s); sleep 1000
        "#,
    );
    assert_eq!(script.lines(2), ["not permitted", "HTTP/1.1 403 Forbidden"]);
    device.assert_latest_refusal("", DenyReason::SenderChanged);
}

#[test]
fn a_connection_whose_maker_ended_serves_nobody() {
    let device = with_perl(Device::builder()).start();
    // Kept alive by a first request that was served; the child has the connection, and
    // the maker is gone.
    let script = Script::start(
        &device,
        "script",
        r#"
        if (!fork) {
            my $s = dial(); (my $first = $req) =~ s/Connection: close\r\n//; my $maker = $$;
            syswrite $s, $first; my $answer = '';
            sysread($s, $answer, 4096, length $answer) until $answer =~ /digest.*\}/;
            report(substr $answer, 0, 15);
            if (!fork) { pause() while getppid() == $maker; syswrite $s, $req; status($s); exit }
            exit
        }
        sleep 1000
        "#,
    );
    let lines = script.lines(2);
    assert_eq!(lines[0], "HTTP/1.1 200 OK");
    assert!(lines[1] == "HTTP/1.1 403 Forbidden" || lines[1] == "closed", "{}", lines[1]);
    let status = device.status();
    assert_eq!(status.refusals[0].reason, DenyReason::SenderChanged);
}

#[test]
fn a_thread_whose_process_looks_ended_is_refused() {
    let number = match std::env::consts::ARCH {
        "x86_64" => 60,
        "aarch64" | "riscv64" => 93,
        other => return eprintln!("skipped: the number of exit on {other} is not known here"),
    };
    let has_threads =
        std::process::Command::new("/usr/bin/perl").args(["-Mthreads", "-e", "1"]).status();
    if !has_threads.is_ok_and(|status| status.success()) {
        return eprintln!("skipped: this Perl has no threads");
    }
    let device = with_perl(Device::builder()).start();
    // The first thread ends alone: what the kernel shows of the process is then a zombie
    // without a program.
    let script = Script::start(
        &device,
        "script",
        &format!(
            r#"
            use threads;
            if (!fork) {{
                my $pid = $$;
                threads->create(sub {{
                    pause() until do {{ open(my $f, '<', "/proc/$pid/stat"); <$f> =~ /\) Z / }};
                    my $s = dial(); syswrite $s, $req; status($s); sleep 1000
                }});
                syscall({number}, 0);
            }}
            sleep 1000
            "#
        ),
    );
    assert_eq!(script.lines(1), ["HTTP/1.1 403 Forbidden"]);
    device.assert_latest_refusal("script", DenyReason::CallerGone);
}

#[test]
fn what_connected_to_an_earlier_daemon_is_not_known_to_the_next() {
    let mut device = with_perl(Device::builder()).start();
    let script = Script::start(
        &device,
        "script",
        r#"
        my $s = dial(); my $half = int(length($req) / 2); syswrite $s, substr($req, 0, $half); report('half');
        pause() until -e "$ENV{REPORT}.go";
        syswrite $s, substr($req, $half); status($s);
        my $t = dial(); syswrite $t, $req; status($t); sleep 1000
        "#,
    );
    script.lines(1);
    device.kill(Daemon::Moduled);
    device.start(Daemon::Moduled);
    let m1 = device.agent();
    wait_for("the daemon to serve again", || m1.try_signed().map(drop));
    std::fs::write(format!("{}.go", script.report().display()), "").unwrap();
    assert_eq!(script.lines(3)[1..], ["closed", "HTTP/1.1 200 OK"]);
}

#[test]
fn no_host_module_takes_descriptors_of_others_or_makes_calls_past_its_filter() {
    let calls = [
        ("pidfd_getfd", 438),
        ("io_uring_setup", 425),
        ("process_vm_writev", 311),
        ("ptrace", 101),
        ("setns", 308),
    ];
    if std::env::consts::ARCH != "x86_64" {
        return eprintln!("skipped: numbers of system calls are those of x86_64");
    }
    let device = with_perl(Device::builder()).start();
    let numbers: Vec<String> = calls.iter().map(|(_, number)| number.to_string()).collect();
    let script = Script::start(
        &device,
        "script",
        &format!(
            "for my $call ({}) {{ $! = 0; syscall($call, -1, 0, 0, 0); report(0 + $!) }} sleep 1000",
            numbers.join(", ")
        ),
    );
    // EPERM, and not what the kernel itself would say to such arguments.
    assert_eq!(script.lines(calls.len()), vec!["1"; calls.len()], "{calls:?}");
}
