//! Attacks by `execve`, which keeps pid, pidfd, start time and connections and exchanges
//! the program.

use edgekeep_core::attestation::DenyReason;
use edgekeep_core::layout::Daemon;
use edgekeep_testkit::Device;

use crate::scripts::{Script, with_perl};

fn reasons(device: &Device) -> Vec<DenyReason> {
    device.status().refusals.iter().map(|refusal| refusal.reason).collect()
}

#[test]
fn a_program_that_takes_over_a_connection_is_refused_although_its_content_is_the_same() {
    let device = with_perl(Device::builder()).start();
    // The process, its number, its start time and even the program's content stay the
    // same: the file does not.
    let script = Script::start(
        &device,
        "script",
        r#"
        use Fcntl; my $s = dial(); (my $first = $req) =~ s/Connection: close\r\n//;
        syswrite $s, $first; my $answer = '';
        sysread($s, $answer, 4096, length $answer) until $answer =~ /digest.*\}/;
        report(substr $answer, 0, 15);
        $ENV{REQ} = $req; $ENV{FD} = fileno $s; fcntl $s, F_SETFD, 0;
        exec '/usr/bin/perl', '-MIO::Handle', '-e', '
            open(my $s, "+<&=", $ENV{FD}) or die; syswrite $s, $ENV{REQ}; my $l = <$s>; $l =~ s/\r?\n//;
            open(my $f, ">>", $ENV{REPORT}); syswrite $f, "$l\n"; close $f; sleep 1000';
        "#,
    );
    assert_eq!(script.lines(2), ["HTTP/1.1 200 OK", "HTTP/1.1 403 Forbidden"]);
    device.assert_latest_refusal("script", DenyReason::CallerChanged);
}

#[test]
fn another_program_that_a_module_becomes_in_the_middle_of_a_request_is_refused() {
    let device = with_perl(Device::builder()).start();
    // Whether the daemon looks before or after the change is not sure; the reason says
    // which, and both refuse.
    let script = Script::start(
        &device,
        "script",
        r#"
        $^F = 100; my $half = length($req) / 2; $ENV{FIRST} = substr($req, 0, $half); $ENV{REST} = substr($req, $half);
        for my $round (1 .. 10) {
            if (!fork) {
                my $s = dial(); syswrite $s, $ENV{FIRST}; $ENV{FD} = fileno $s;
                exec '/bin/sh', '-c', 'printf %s "$REST" >&$FD; IFS= read -r line <&$FD; printf "%s\n" "$line" >> $REPORT';
            }
            wait;
        }
        sleep 1000
        "#,
    );
    for line in script.lines(10) {
        assert_eq!(line.trim_end(), "HTTP/1.1 403 Forbidden");
    }
    for reason in reasons(&device) {
        assert!(
            matches!(reason, DenyReason::CallerChanged | DenyReason::ExecutableChanged),
            "{reason}"
        );
    }
}

/// Script that runs while the daemon looks elsewhere. Another program than the registered
/// one connects and sends a request. The process of that program then executes the
/// registered program, which says `ready`, while a child waits for the answer.
const ASK_AND_BECOME: &str = r#"
    my $other = "$ENV{REPORT}.perl"; system 'cp', '/usr/bin/perl', $other; system "echo >> $other";
    $ENV{REQ} = $req; $ENV{SOCK} = $path;
    report('waits'); pause() until -e "$ENV{REPORT}.go";
    exec $other, '-MIO::Socket::UNIX', '-e', q{
        sub report { open(my $f, '>>', $ENV{REPORT}) or die; syswrite $f, "$_[0]\n"; close $f }
        $^F = $ENV{KEEPS}; my $s = IO::Socket::UNIX->new(Peer => $ENV{SOCK}) or die;
        if (!fork) { my $l = <$s>; report(substr($l // 'closed', 9, 3)); exit }
        syswrite $s, $ENV{REQ};
        exec '/usr/bin/perl', '-e', 'open(my $f, ">>", $ENV{REPORT}); syswrite $f, "ready\n"; close $f; sleep 1000'
    } if !fork;
    sleep 1000
"#;

/// A daemon that is not running for a moment, so that what happens meanwhile has happened
/// when it looks.
pub(crate) struct Paused(rustix::process::Pid);

impl Paused {
    pub(crate) fn new(device: &Device) -> Self {
        let pid =
            rustix::process::Pid::from_raw(device.pid(Daemon::Moduled).cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::CONT);
    }
}

#[test]
fn a_program_that_asks_and_then_becomes_the_registered_one_is_refused() {
    let device = with_perl(Device::builder()).start();
    // The registered program has the connection from before, or only the waiting child
    // has it.
    for (module, keeps, reason) in [
        ("inherits", 100, DenyReason::ConnectionInheritable),
        ("leaves", 2, DenyReason::ConnectionNotHeld),
    ] {
        let script =
            Script::start(&device, module, &format!("$ENV{{KEEPS}} = {keeps};{ASK_AND_BECOME}"));
        script.lines(1);
        let paused = Paused::new(&device);
        std::fs::write(format!("{}.go", script.report().display()), "").unwrap();
        assert_eq!(script.lines(2)[1], "ready");
        drop(paused);
        assert_eq!(script.lines(3)[2], "403", "{module}");
        device.assert_latest_refusal(module, reason);
    }
}

#[test]
fn a_program_that_asks_and_becomes_the_registered_one_is_refused_whenever_the_daemon_looks() {
    let device = with_perl(Device::builder()).start();
    // Whether the daemon accepts before or after the change is chance, hence the rounds.
    let script = Script::start(
        &device,
        "script",
        r#"
        my $other = "$ENV{REPORT}.perl"; system 'cp', '/usr/bin/perl', $other; system "echo >> $other";
        $ENV{REQ} = $req; $ENV{SOCK} = $path; my %seen;
        for my $round (1 .. 40) {
            $ENV{KEEPS} = $round % 2 ? 100 : 2;
            open(my $out, '-|', $other, '-MIO::Socket::UNIX', '-e', q{
                $^F = $ENV{KEEPS}; my $s = IO::Socket::UNIX->new(Peer => $ENV{SOCK}); my $p = $$;
                if (!fork) { my $l = <$s>; print substr($l // 'closed', 9, 3); kill 9, $p; exit }
                syswrite $s, $ENV{REQ}; exec '/usr/bin/perl', '-e', 'sleep 100'
            }) or die;
            $seen{<$out>}++; close $out;
        }
        report(join ' ', sort keys %seen); sleep 1000
        "#,
    );
    assert_eq!(script.lines(1), ["403"]);
    for reason in reasons(&device) {
        let exchanged = [
            DenyReason::CallerChanged,
            DenyReason::ExecutableChanged,
            DenyReason::ConnectionInheritable,
            DenyReason::ConnectionNotHeld,
        ];
        assert!(exchanged.contains(&reason), "{reason}");
    }
}

#[test]
fn a_connection_passed_to_another_process_is_refused() {
    let device = with_perl(Device::builder()).start();
    // The parent connects; the child, of the same program, uses the connection: by
    // descriptor, as by fork.
    let script = Script::start(
        &device,
        "script",
        r#"
        my $s = dial();
        if (!fork) { open(my $mine, '+<&=', fileno $s) or die; syswrite $mine, $req; status($mine); exit }
        wait; sleep 1000
        "#,
    );
    assert_eq!(script.lines(1), ["HTTP/1.1 403 Forbidden"]);
    device.assert_latest_refusal("", DenyReason::SenderChanged);
}
