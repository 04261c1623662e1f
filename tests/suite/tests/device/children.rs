//! moduled's own children end or hang at any moment. What needs them is refused with the
//! reason, what ran goes on, and they are started anew.

use std::path::Path;
use std::time::{Duration, Instant};

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, VERSION, program, wait_for};
use rustix::process::{Pid, Signal, kill_process};

/// The time in which a call must be answered when a child does not, and twice as much for
/// a busy machine.
const AT_MOST: Duration = Duration::from_secs(4);

fn versioned(target: &str) -> String {
    format!("{target}?{VERSION}")
}

/// A process of moduled's own, by its argument.
fn child(device: &Device, argument: &str) -> Option<u32> {
    let moduled = device.pid(Daemon::Moduled);
    let supervisor = below(moduled, "supervise")?;
    if argument == "supervise" { Some(supervisor) } else { below(supervisor, argument) }
}

fn below(parent: u32, argument: &str) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.find(|pid| {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let of = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        of == Some(parent) && read("cmdline").ends_with(format!("\0{argument}\0").as_bytes())
    })
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Waits for a child that is another process than before.
fn another(device: &Device, argument: &str, before: u32) -> u32 {
    wait_for("a child that is started anew", || {
        child(device, argument).filter(|pid| *pid != before)
    })
}

fn shows_the_failure(device: &Device, why: &str) {
    wait_for("the problem", || {
        let problems = device.edgekeep(&["status", "--json"]).stdout;
        let text = String::from_utf8_lossy(&problems).into_owned();
        (text.contains("child-failed") && text.contains(why)).then_some(())
    });
}

#[test]
fn a_launcher_that_is_killed_is_started_anew_and_no_module_is_stopped() {
    let device = Device::builder().start();
    let (m1, m2) = (device.add_caller("m1"), device.add_caller("m2"));
    let before = [device.processes_of("m1"), device.processes_of("m2")];
    let launcher = child(&device, "launch-modules").unwrap();
    signal(launcher, Signal::KILL);
    let _ = m1.sign().expect(200);
    let next = another(&device, "launch-modules", launcher);
    assert_eq!([device.processes_of("m1"), device.processes_of("m2")], before);
    // The new one ends and starts what the old one had started.
    let _ = device.ask("POST", &versioned("/modules/m2/restart"), None).expect(204);
    let _ = m2.sign().expect(200);
    assert_eq!(device.processes_of("m1"), before[0]);
    assert_ne!(device.processes_of("m2"), before[1]);
    assert_eq!(child(&device, "launch-modules"), Some(next));
    shows_the_failure(&device, "has ended");
}

#[test]
fn a_launcher_that_hangs_costs_two_seconds_and_a_503_and_is_started_anew() {
    let device = Device::builder().start();
    let (m1, m2) = (device.add_caller("m1"), device.add_caller("m2"));
    let before = [device.processes_of("m1"), device.processes_of("m2")];
    let launcher = child(&device, "launch-modules").unwrap();
    signal(launcher, Signal::STOP);
    let began = Instant::now();
    let answer = device.ask("POST", &versioned("/modules/m2/restart"), None);
    assert!(began.elapsed() < AT_MOST, "{:?}", began.elapsed());
    assert_eq!(answer.status, 503, "{}", answer.json());
    assert!(
        answer.json()["message"].as_str().unwrap().contains("launcher process does not answer")
    );
    // Verdicts need no launcher.
    let _ = m1.sign().expect(200);
    another(&device, "launch-modules", launcher);
    assert_eq!([device.processes_of("m1"), device.processes_of("m2")], before);
    let _ = device.ask("POST", &versioned("/modules/m2/restart"), None).expect(204);
    let _ = m2.sign().expect(200);
    shows_the_failure(&device, "does not answer");
    assert!(!Path::new(&format!("/proc/{launcher}")).exists(), "the one that hung was ended");
}

#[test]
fn a_gauge_that_is_killed_is_started_anew_and_lets_nobody_in_until_then() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let _ = m1.sign().expect(200);
    let before = device.processes_of("m1");
    let gauge = child(&device, "gauge-processes").unwrap();
    // Nobody starts another one.
    let supervisor = child(&device, "supervise").unwrap();
    signal(supervisor, Signal::STOP);
    signal(gauge, Signal::KILL);
    let began = Instant::now();
    let answer = m1.sign();
    assert!(began.elapsed() < AT_MOST, "{:?}", began.elapsed());
    assert_eq!(answer.status, 503, "{}", answer.json());
    let why = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(why.contains("gauge process ended"), "{why}");
    // What needs no look goes on.
    let _ = device.ask("GET", &versioned("/systeminfo"), None).expect(200);
    signal(supervisor, Signal::CONT);
    another(&device, "gauge-processes", gauge);
    let _ = m1.sign().expect(200);
    assert_eq!(device.processes_of("m1"), before);
    shows_the_failure(&device, "has ended");
}

#[test]
fn a_gauge_that_hangs_costs_two_seconds_and_lets_nobody_in_before_it_is_started_anew() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let _ = m1.sign().expect(200);
    let before = device.processes_of("m1");
    for _ in 0..2 {
        let gauge = child(&device, "gauge-processes").unwrap();
        signal(gauge, Signal::STOP);
        let began = Instant::now();
        let answer = m1.sign();
        assert!(began.elapsed() < AT_MOST, "{:?}", began.elapsed());
        // A request that came after the connection may find the next gauge.
        if answer.status == 503 {
            let why = answer.json()["message"].as_str().unwrap().to_owned();
            assert!(why.contains("gauge process does not answer"), "{why}");
        } else {
            assert_eq!(answer.status, 200, "{}", answer.json());
            assert_ne!(child(&device, "gauge-processes"), Some(gauge));
        }
        another(&device, "gauge-processes", gauge);
        let _ = m1.sign().expect(200);
        assert!(!Path::new(&format!("/proc/{gauge}")).exists(), "the one that hung was ended");
    }
    assert_eq!(device.processes_of("m1"), before);
    shows_the_failure(&device, "does not answer");
}

#[test]
fn without_its_supervisor_moduled_ends_and_the_next_one_finds_all_modules() {
    let mut device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let before = device.processes_of("m1");
    let supervisor = child(&device, "supervise").unwrap();
    let moduled = device.pid(Daemon::Moduled);
    signal(supervisor, Signal::KILL);
    wait_for("moduled's end", || {
        let stat = std::fs::read_to_string(format!("/proc/{moduled}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    let log = device.log(Daemon::Moduled);
    assert!(log.contains("the supervisor of the daemon's children ended"), "{log}");
    assert_eq!(device.processes_of("m1"), before);
    device.kill(Daemon::Moduled);
    device.start(Daemon::Moduled);
    assert_eq!(device.processes_of("m1"), before);
    let _ = m1.sign().expect(200);
}

#[test]
fn the_children_end_with_moduled_also_while_one_hangs() {
    let mut device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let before = device.processes_of("m1");
    let own = ["supervise", "launch-modules", "gauge-processes"];
    let own = own.map(|name| child(&device, name).unwrap());
    signal(own[1], Signal::STOP);
    signal(own[2], Signal::STOP);
    device.kill(Daemon::Moduled);
    wait_for("the children's end", || {
        own.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
    device.start(Daemon::Moduled);
    assert_eq!(device.processes_of("m1"), before);
    let _ = m1.sign().expect(200);
}

#[test]
fn moduled_has_no_rights_the_gauge_those_to_look_and_the_launcher_those_to_start() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root has rights to give up");
        return;
    }
    let device = Device::builder().start();
    let rights = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        assert_eq!(line("CapEff:"), line("CapPrm:"));
        (line("CapPrm:"), line("CapBnd:"))
    };
    let bit = |number: u32| 1_u64 << number;
    let (override_files, read, trace) = (bit(1), bit(2), bit(19));
    let start = bit(0) | bit(5) | bit(6) | bit(7) | bit(8) | bit(24);
    // A container may have fewer than all.
    let (own, _) = rights(std::process::id());
    // Root needs the first for files that are not root's.
    let moduled = own & override_files;
    assert_eq!(rights(device.pid(Daemon::Moduled)), (moduled, moduled));
    let gauge = own & (read | trace);
    assert_eq!(rights(child(&device, "gauge-processes").unwrap()), (gauge, gauge));
    let launcher = own & (override_files | read | start);
    let (has, bound) = rights(child(&device, "launch-modules").unwrap());
    assert_eq!((has, bound), (launcher, launcher), "{has:x} {bound:x}");
}

/// Reads a byte of what only a tracer of the process may read, with the rights of
/// moduled, as a program that we did not write.
fn may_trace(pid: u32) -> bool {
    let mut command = std::process::Command::new("setpriv");
    command.args(["--inh-caps=-all", "--bounding-set=-all,+dac_override", "--"]);
    let ran = command.args(["head", "-c1", &format!("/proc/{pid}/maps")]).output().unwrap();
    ran.status.success() && ran.stdout.len() == 1
}

#[test]
fn whoever_has_moduleds_rights_traces_moduled_and_none_of_its_children() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root has rights to give up");
        return;
    }
    let device = Device::builder().start();
    // They give their rights up a moment after they were started.
    let m1 = device.add_caller("m1");
    let _ = m1.sign().expect(200);
    assert!(may_trace(device.pid(Daemon::Moduled)), "what is refused is refused by rights");
    for name in ["supervise", "launch-modules", "gauge-processes"] {
        let pid = child(&device, name).unwrap();
        assert!(std::fs::read(format!("/proc/{pid}/maps")).is_ok_and(|maps| !maps.is_empty()));
        assert!(!may_trace(pid), "{name}");
    }
}

#[test]
fn the_children_are_not_started_by_hand() {
    for argument in ["supervise", "launch-modules", "gauge-processes"] {
        let mut command = std::process::Command::new(program("edgekeep-moduled"));
        let ran = command.arg(argument).stdin(std::process::Stdio::null()).output().unwrap();
        assert!(!ran.status.success(), "{argument}");
    }
}
