//! Attacks on the measurement of the executable: what is measured is to be what runs.
//!
//! The other program is the registered one with one byte more or another one at its end,
//! so that it runs the same code until it is made to have the registered content: what it
//! does then, any other could.

use std::path::Path;

use edgekeep_core::attestation::DenyReason;
use edgekeep_testkit::Device;

use crate::scripts::{Script, with_perl, with_perl_granted};

/// The number of a system call here, by its numbers on x86_64 and on newer architectures.
fn number(x86_64: u32, newer: u32) -> Option<u32> {
    match std::env::consts::ARCH {
        "x86_64" => Some(x86_64),
        "aarch64" | "riscv64" => Some(newer),
        other => {
            eprintln!("skipped: numbers of system calls on {other} are not known here");
            None
        }
    }
}

/// Returns the code that executes the other program. Once this program runs, `rewrite`
/// gives it the registered content.
fn as_registered(rewrite: &str) -> String {
    format!(
        r#"exec $other, '-MIO::Socket::UNIX', '-e', q{{
            {rewrite};
            my $s = IO::Socket::UNIX->new(Peer => $ENV{{SOCK}}) or die; syswrite $s, $ENV{{REQ}};
            my $l = <$s>; $l =~ s/\r?\n//; open(my $f, '>>', $ENV{{REPORT}}) or die; syswrite $f, "$l\n"; close $f; sleep 1000
        }} or report("exec: $!")"#
    )
}

/// Defines the registered program's content and what the other program needs.
const PREPARED: &str = r#"
    open(my $own, '<:raw', '/usr/bin/perl') or die; my $bytes = do { local $/; <$own> }; close $own;
    $ENV{SIZE} = length $bytes; $ENV{REQ} = $req; $ENV{SOCK} = $path;
"#;

#[test]
fn a_program_in_memory_that_takes_the_registered_content_while_it_runs_is_refused() {
    let Some(memfd_create) = number(319, 279) else { return };
    let device = with_perl(Device::builder()).start();
    let run =
        as_registered("open(my $m, '+<&=', $ENV{FD}) or die; truncate($m, $ENV{SIZE}) or die");
    let script = Script::start(
        &device,
        "script",
        &format!(
            r#"{PREPARED}
            if (!fork) {{
                $^F = 100; my $name = 'x'; my $fd = syscall({memfd_create}, $name, 0); die if $fd < 0; $ENV{{FD}} = $fd;
                open(my $m, '+<&=', $fd) or die; binmode $m; syswrite $m, $bytes . 'x' or die;
                my $other = "/proc/self/fd/$fd"; {run}; exit
            }}
            sleep 1000"#
        ),
    );
    assert_eq!(script.lines(1), ["HTTP/1.1 403 Forbidden"]);
    device.assert_latest_refusal("script", DenyReason::ExecutableNameless);
}

#[test]
fn a_program_whose_file_is_removed_is_nobody_even_with_the_registered_content() {
    let device = with_perl(Device::builder()).start();
    let run = as_registered("unlink $ENV{FILE} or die");
    let script = Script::start(
        &device,
        "script",
        &format!(
            r#"{PREPARED}
            $ENV{{FILE}} = "$ENV{{REPORT}}.perl"; system 'cp', '/usr/bin/perl', $ENV{{FILE}};
            if (!fork) {{ my $other = $ENV{{FILE}}; {run}; exit }}
            sleep 1000"#
        ),
    );
    assert_eq!(script.lines(1), ["HTTP/1.1 403 Forbidden"]);
    device.assert_latest_refusal("script", DenyReason::ExecutableNameless);
}

#[test]
fn the_kernel_keeps_a_program_that_runs_from_rewriting_its_own_file() {
    let device = with_perl(Device::builder()).start();
    // Also through a descriptor or a mapping from before: then the file cannot be
    // executed at all.
    let run = as_registered(
        "truncate($ENV{FILE}, $ENV{SIZE}) and die; $!{ETXTBSY} or die; open(my $m, '+<', $ENV{FILE}) and die; $!{ETXTBSY} or die",
    );
    let script = Script::start(
        &device,
        "script",
        &format!(
            r#"{PREPARED}
            $ENV{{FILE}} = "$ENV{{REPORT}}.perl";
            system 'cp', '/usr/bin/perl', $ENV{{FILE}}; system "printf x >> $ENV{{FILE}}";
            open(my $writer, '+<', $ENV{{FILE}}) or die;
            if (!fork) {{ exec $ENV{{FILE}}, '-e', '1'; use Errno; report($!{{ETXTBSY}} ? 'busy' : "$!"); exit }}
            wait; close $writer;
            if (!fork) {{ my $other = $ENV{{FILE}}; {run}; exit }}
            sleep 1000"#
        ),
    );
    assert_eq!(script.lines(2), ["busy", "HTTP/1.1 403 Forbidden"]);
    device.assert_latest_refusal("script", DenyReason::ExecutableChanged);
}

#[test]
fn content_that_changes_without_a_sign_is_not_remembered() {
    let python = std::process::Command::new("python3").arg("-V").output().is_ok();
    if !python || !Path::new("/dev/shm").is_dir() {
        return eprintln!("skipped: needs python3 and /dev/shm");
    }
    let device = with_perl(Device::builder()).start();
    // On tmpfs a write through a mapping moves no time. First the file is what was
    // registered, and is served.
    let run = as_registered("1");
    let script = Script::start(
        &device,
        "script",
        &format!(
            r#"{PREPARED}
            $ENV{{FILE}} = "/dev/shm/ek-attack-$$"; system 'cp', '/usr/bin/perl', $ENV{{FILE}};
            # As old as a digest has to be to be remembered.
            select undef, undef, undef, 2.5;
            sub ask {{ my $pid = fork; if (!$pid) {{ my $other = $ENV{{FILE}}; {run}; exit }} $pid }}
            my $first = ask(); pause() until -s $ENV{{REPORT}}; kill 9, $first; waitpid $first, 0;
            my $seen = join ' ', (stat $ENV{{FILE}})[0, 1, 7, 10];
            system 'python3', '-c', 'import mmap, os
f = open(os.environ["FILE"], "r+b"); m = mmap.mmap(f.fileno(), 0); m[len(m) - 1] ^= 1; m.close()';
            report($seen eq join(' ', (stat $ENV{{FILE}})[0, 1, 7, 10]) ? 'looks unchanged' : 'shows');
            my $second = ask(); pause() until do {{ open(my $r, '<', $ENV{{REPORT}}); my @l = <$r>; @l > 2 }};
            kill 9, $second; unlink $ENV{{FILE}}; sleep 1000"#
        ),
    );
    assert_eq!(script.lines(3), ["HTTP/1.1 200 OK", "looks unchanged", "HTTP/1.1 403 Forbidden"]);
    device.assert_latest_refusal("script", DenyReason::ExecutableChanged);
}

#[test]
fn a_program_on_layers_that_the_module_itself_writes_to_is_refused() {
    let (Some(unshare), Some(mount)) = (number(272, 97), number(165, 40)) else { return };
    // What a host module may call by default does not take it there. As root it needs a
    // capability to be root in a user namespace; other users need none.
    let granted = "seccomp = \"none\"\ncapabilities = [\"setfcap\"]";
    let device = with_perl_granted(Device::builder(), granted).start();
    // The file that is executed is the overlay's, whose writers the kernel keeps out; the
    // layer's has none that it minds.
    let run = as_registered("truncate($ENV{LAYER}, $ENV{SIZE}) or die");
    let script = Script::start(
        &device,
        "script",
        &format!(
            r#"{PREPARED}
            my $at = "$ENV{{REPORT}}.d"; mkdir $_ for $at, map {{ "$at/$_" }} qw(l u w m);
            $ENV{{LAYER}} = "$at/u/perl"; system 'cp', '/usr/bin/perl', $ENV{{LAYER}}; system "printf x >> $ENV{{LAYER}}";
            pipe(my $r, my $w) or die;
            # In a namespace without a map everybody is somebody else.
            my ($me, $group) = ($>, $) + 0); my $mounter = fork;
            if (!$mounter) {{
                my $kind = 'overlay'; my $where = "$at/m"; my $what = "lowerdir=$at/l,upperdir=$at/u,workdir=$at/w,userxattr";
                my $ok = syscall({unshare}, 0x10020000) == 0;
                for (['uid_map', "0 $me 1"], ['setgroups', 'deny'], ['gid_map', "0 $group 1"]) {{
                    open(my $f, '>', "/proc/self/$_->[0]"); $ok &&= syswrite $f, $_->[1]; close $f
                }}
                $ok &&= syscall({mount}, $kind, $where, $kind, 0, $what) == 0;
                syswrite $w, $ok ? 'y' : "no overlay: $!"; sleep 1000; exit
            }}
            sysread $r, my $said, 100;
            if ($said ne 'y') {{ report($said); sleep 1000 }}
            if (!fork) {{ my $other = "/proc/$mounter/root$at/m/perl"; {run}; exit }}
            sleep 1000"#
        ),
    );
    let said = script.lines(1);
    if said[0].starts_with("no overlay") {
        return eprintln!("skipped: {}", said[0]);
    }
    assert_eq!(said, ["HTTP/1.1 403 Forbidden"]);
    device.assert_latest_refusal("script", DenyReason::ExecutableNotFinal);
}

#[test]
fn the_modules_own_copy_is_known_again_after_a_restart_of_the_daemon() {
    let mut device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let _ = m1.sign().expect(200);
    let before = device.processes_of("m1");
    device.kill(edgekeep_core::layout::Daemon::Moduled);
    device.start(edgekeep_core::layout::Daemon::Moduled);
    edgekeep_testkit::wait_for("the module to be served again", || m1.try_signed().map(drop));
    assert_eq!(device.processes_of("m1"), before);
}

#[test]
fn no_host_module_names_its_executable_or_holds_a_listener_of_system_calls() {
    let (Some(prctl), Some(seccomp)) = (number(157, 167), number(317, 277)) else { return };
    let device = with_perl_granted(Device::builder(), "seccomp = \"none\"").start();
    // With these another program would pass for the registered one, or take its
    // connection, and no look would tell. 1 is EPERM, and 14 (EFAULT) what a filter
    // without a listener fails by here.
    let script = Script::start(
        &device,
        "script",
        &format!(
            "for ([{prctl}, 35, 14], [{seccomp}, 1, 8], [{seccomp}, 1, 0]) {{
                 $! = 0; syscall($_->[0], $_->[1], $_->[2], 0, 0); report(0 + $!)
             }}
             my $s = dial(); syswrite $s, $req; status($s); sleep 1000"
        ),
    );
    assert_eq!(script.lines(4), ["1", "1", "14", "HTTP/1.1 200 OK"]);
}
