//! Attacks by processes that the daemon knows from an earlier connection: whatever it
//! keeps about them must not outlive what it describes. Each is served once, becomes
//! something else, and connects again.

use edgekeep_core::attestation::DenyReason;
use edgekeep_testkit::{Device, wait_for};

use crate::exec::Paused;
use crate::host::group_of;
use crate::scripts::{Script, with_perl, with_perl_granted};

const SERVED: &str = "HTTP/1.1 200 OK";
const REFUSED: &str = "HTTP/1.1 403 Forbidden";

/// A child that was served twice, the second time as one that is known.
const KNOWN: &str = "sub ask { my $s = dial(); syswrite $s, $req; status($s) } ask(); ask();";

#[test]
fn a_known_process_that_executes_another_program_is_refused() {
    let device = with_perl(Device::builder()).start();
    let script = Script::start(
        &device,
        "script",
        &format!(
            r#"
            my $other = "$ENV{{REPORT}}.perl"; system 'cp', '/usr/bin/perl', $other; system "echo >> $other";
            $ENV{{REQ}} = $req; $ENV{{SOCK}} = $path;
            my $ask = q{{use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => $ENV{{SOCK}}) or die;
                syswrite $s, $ENV{{REQ}}; my $l = <$s>; $l =~ s/\r?\n//;
                open(my $f, '>>', $ENV{{REPORT}}); syswrite $f, "$l\n"; close $f;}};
            {KNOWN}
            $ENV{{ASK}} = $ask; exec $other, '-e', "$ask; exec '/usr/bin/perl', '-e', 'eval \$ENV{{ASK}}; sleep 1000'";
            "#
        ),
    );
    // The registered program again, with a connection of its own, is the module again.
    assert_eq!(script.lines(4), [SERVED, SERVED, REFUSED, SERVED]);
    device.assert_latest_refusal("script", DenyReason::ExecutableChanged);
}

#[test]
fn a_known_process_gets_no_answer_to_what_another_program_asked_in_it() {
    let device = with_perl(Device::builder()).start();
    for (module, keeps, reason) in [
        ("inherits", 100, DenyReason::ConnectionInheritable),
        ("leaves", 2, DenyReason::ConnectionNotHeld),
    ] {
        let script = Script::start(
            &device,
            module,
            &format!(
                r#"
                my $other = "$ENV{{REPORT}}.perl"; system 'cp', '/usr/bin/perl', $other; system "echo >> $other";
                $ENV{{REQ}} = $req; $ENV{{SOCK}} = $path; $ENV{{KEEPS}} = {keeps};
                {KNOWN}
                pause() until -e "$ENV{{REPORT}}.go";
                exec $other, '-MIO::Socket::UNIX', '-e', q{{
                    sub report {{ open(my $f, '>>', $ENV{{REPORT}}) or die; syswrite $f, "$_[0]\n"; close $f }}
                    $^F = $ENV{{KEEPS}}; my $s = IO::Socket::UNIX->new(Peer => $ENV{{SOCK}}) or die;
                    if (!fork) {{ my $l = <$s>; report(substr($l // 'closed', 9, 3)); exit }}
                    syswrite $s, $ENV{{REQ}};
                    exec '/usr/bin/perl', '-e', 'open(my $f, ">>", $ENV{{REPORT}}); syswrite $f, "ready\n"; close $f; sleep 1000'
                }};
                "#
            ),
        );
        assert_eq!(script.lines(2), [SERVED, SERVED]);
        let paused = Paused::new(&device);
        std::fs::write(format!("{}.go", script.report().display()), "").unwrap();
        assert_eq!(script.lines(3)[2], "ready");
        drop(paused);
        assert_eq!(script.lines(4)[3], "403", "{module}");
        device.assert_latest_refusal(module, reason);
    }
}

#[test]
fn a_known_process_that_changes_its_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to change the user");
        return;
    }
    let device = with_perl_granted(Device::builder(), "capabilities = [\"setuid\"]").start();
    let script = Script::start(
        &device,
        "script",
        &format!(
            r#"
            use POSIX (); {KNOWN} open(my $f, '>>', $ENV{{REPORT}}) or die; $f->autoflush(1);
            POSIX::setuid(65534); $path = $ENV{{SHARED}}; my $s = dial(); syswrite $s, $req;
            my $l = <$s>; $l =~ s/\r?\n//; syswrite $f, "$l\n"; sleep 1000
            "#
        ),
    );
    assert_eq!(script.lines(3), [SERVED, SERVED, REFUSED]);
    device.assert_latest_refusal("script", DenyReason::OtherUser);
}

#[test]
fn a_known_process_that_moves_into_a_user_namespace_of_its_own_is_refused() {
    let number = match std::env::consts::ARCH {
        "x86_64" => 272,
        "aarch64" | "riscv64" => 97,
        other => return eprintln!("skipped: the number of unshare on {other} is not known here"),
    };
    let device = with_perl_granted(Device::builder(), "seccomp = \"none\"").start();
    // On a connection from before as on a new one.
    let script = Script::start(
        &device,
        "script",
        &format!(
            r#"
            {KNOWN} my $before = dial(); (my $first = $req) =~ s/Connection: close\r\n//;
            syswrite $before, $first; my $answer = '';
            sysread($before, $answer, 4096, length $answer) until $answer =~ /digest.*\}}/;
            report(substr $answer, 0, 15);
            syscall({number}, 0x10000000) == 0 or die; ask(); syswrite $before, $req; status($before); sleep 1000
            "#
        ),
    );
    assert_eq!(script.lines(5), [SERVED, SERVED, SERVED, REFUSED, REFUSED]);
    device.assert_latest_refusal("script", DenyReason::OtherUserNamespace);
    let refusals = device.status().refusals;
    assert!(
        refusals.iter().all(|one| one.reason == DenyReason::OtherUserNamespace),
        "{refusals:?}"
    );
}

#[test]
fn a_known_process_that_leaves_the_modules_tree_is_refused() {
    let device = with_perl(Device::builder()).start();
    // One or two links below the module's first process.
    for (module, links) in [("child", 1), ("grandchild", 2)] {
        let script = Script::start(
            &device,
            module,
            &format!(
                r#"
                for my $link (1 .. {links}) {{
                    if (fork) {{ pause() until -e "$ENV{{REPORT}}.asked"; exit if $link > 1; wait; sleep 1000; exit }}
                }}
                {KNOWN} my $parent = getppid(); open(my $f, '>', "$ENV{{REPORT}}.asked"); close $f;
                if ({links} > 1) {{ pause() while getppid() == $parent }} ask(); sleep 1000
                "#
            ),
        );
        if links == 1 {
            assert_eq!(script.lines(3), [SERVED; 3], "its parent is the first process");
            continue;
        }
        assert_eq!(script.lines(3), [SERVED, SERVED, REFUSED]);
        let expected = if device.status().process_cgroups {
            DenyReason::NotADescendant
        } else {
            DenyReason::NotInModule
        };
        device.assert_latest_refusal(module, expected);
    }
}

#[test]
fn a_known_process_that_is_moved_out_of_the_modules_group_is_refused() {
    let device = with_perl(Device::builder()).start();
    if !device.status().process_cgroups {
        eprintln!("skipped: host modules have no control groups here");
        return;
    }
    let script = Script::start(
        &device,
        "script",
        &format!("{KNOWN} pause() until -e \"$ENV{{REPORT}}.go\"; ask(); sleep 1000"),
    );
    assert_eq!(script.lines(2), [SERVED, SERVED]);
    let pid = device.processes_of("script")[0];
    let group = wait_for("the module's group", || group_of(pid));
    let outside = group.parent().unwrap().parent().unwrap_or(&group);
    let moved = std::iter::successors(Some(outside), |folder| folder.parent())
        .any(|folder| std::fs::write(folder.join("cgroup.procs"), pid.to_string()).is_ok());
    if !moved {
        return eprintln!("skipped: no other control group takes the process");
    }
    std::fs::write(format!("{}.go", script.report().display()), "").unwrap();
    assert_eq!(script.lines(3)[2], REFUSED);
    device.assert_latest_refusal("script", DenyReason::NotInModule);
}

#[test]
fn a_known_process_that_is_traced_is_refused() {
    let number = match std::env::consts::ARCH {
        "x86_64" => 101,
        "aarch64" | "riscv64" => 117,
        other => return eprintln!("skipped: the number of ptrace on {other} is not known here"),
    };
    let device = with_perl_granted(Device::builder(), "seccomp = \"none\"").start();
    // It has its parent trace it (PTRACE_TRACEME), which no program has to be asked for.
    let script = Script::start(
        &device,
        "script",
        &format!(
            "if (!fork) {{ {KNOWN} syscall({number}, 0, 0, 0, 0) == 0 or die; ask(); sleep 1000 }} sleep 1000"
        ),
    );
    assert_eq!(script.lines(3), [SERVED, SERVED, REFUSED]);
    device.assert_latest_refusal("script", DenyReason::Traced);
}
