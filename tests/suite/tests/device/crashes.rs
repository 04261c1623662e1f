//! Daemons end at any moment, and what ran goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, VERSION, wait_for};
use serde_json::json;

fn versioned(target: &str) -> String {
    format!("{target}?{VERSION}")
}

#[test]
fn each_daemon_may_be_killed_and_nothing_is_lost() {
    let mut device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let m2 = device.add_caller("m2");
    let expected = m1.sign().expect(200);
    let hub = device.cloud().state().devices;
    let pids =
        [device.processes_of("m1"), device.processes_of("m2"), device.processes_of("$edgeAgent")];
    assert!(pids.iter().all(|pids| pids.len() == 1), "{pids:?}");
    for daemon in Daemon::ALL {
        device.kill(daemon);
        let begin = Instant::now();
        match daemon {
            // No key, no signature: said at once.
            Daemon::Keyd => assert_eq!(m1.sign().status, 500),
            // Who is known needs no look-up.
            Daemon::Identityd => assert_eq!(m1.sign().expect(200), expected),
            Daemon::Moduled => {
                let socket = device.module_socket("m1");
                let error =
                    m1.call_at(&socket, "GET", &versioned("/trust-bundle"), None).unwrap_err();
                assert!(error.contains("refused"), "{error}");
            }
        }
        assert!(
            begin.elapsed() < Duration::from_secs(3),
            "{}: {:?}",
            daemon.name(),
            begin.elapsed()
        );
        device.start(daemon);
        assert_eq!(m1.sign().expect(200), expected, "after {}", daemon.name());
        let _ = m2.sign().expect(200);
        let _ = device.agent().sign().expect(200);
        let after = [
            device.processes_of("m1"),
            device.processes_of("m2"),
            device.processes_of("$edgeAgent"),
        ];
        assert_eq!(after, pids, "the same processes after {}", daemon.name());
        assert_eq!(device.cloud().state().devices, hub, "nothing was changed at the hub");
    }
    // Everything at once, as at a power cut that spares the modules.
    for daemon in Daemon::ALL {
        device.kill(daemon);
    }
    device.start_daemons();
    assert_eq!(m1.sign().expect(200), expected);
    // What was found running is still under control.
    let _ = device.agent().manage("POST", &versioned("/modules/m1/stop"), None).expect(204);
    assert_eq!(device.processes_of("m1"), Vec::<u32>::new());
    let _ = device.agent().manage("POST", &versioned("/modules/m1/start"), None).expect(204);
    assert_eq!(m1.sign().expect(200), expected);
    let _ = device.agent().manage("DELETE", &versioned("/modules/m2"), None).expect(204);
    assert_eq!(device.processes_of("m2"), Vec::<u32>::new());
}

#[test]
fn a_module_that_ends_while_no_daemon_sees_it_is_told_as_ended() {
    let mut device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let pid = device.processes_of("m1")[0];
    device.kill(Daemon::Moduled);
    let number = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(number, rustix::process::Signal::KILL).unwrap();
    wait_for("the module's end", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    device.start(Daemon::Moduled);
    let status =
        || device.ask("GET", &versioned("/modules/m1"), None).expect(200)["status"].clone();
    let status = wait_for("the end to be told", || {
        let now = status();
        (now["runtimeStatus"]["status"] != "running").then_some(now)
    });
    assert_eq!(status["runtimeStatus"]["status"], "failed", "{status}");
    let _ = device.agent().manage("POST", &versioned("/modules/m1/start"), None).expect(204);
    let _ = m1.sign().expect(200);
}

#[test]
fn an_agent_that_ends_is_started_again() {
    let device = Device::builder().start();
    let _ = device.agent().sign().expect(200);
    let pid = device.processes_of("$edgeAgent")[0];
    let number = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(number, rustix::process::Signal::KILL).unwrap();
    let again = wait_for("another agent", || {
        device.processes_of("$edgeAgent").into_iter().find(|other| *other != pid)
    });
    assert_ne!(again, pid);
    let _ = device.agent().sign().expect(200);
}

#[test]
fn moduled_killed_in_the_middle_of_changes_comes_back_to_what_can_be_used() {
    let mut device = Device::builder().start();
    let generation = device.create_identity("m1");
    let mut spec = device.spec("m1", "calls", &generation);
    spec["config"]["settings"]["createOptions"] =
        json!({ "Env": ["EDGEKEEP_TEST_CALLS={}", "EDGEKEEP_TEST_ANSWERS=/dev/null"] });
    for round in 0..6_u64 {
        let stop = AtomicBool::new(false);
        let started = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let (device, spec, stop, sender) = (&device, &spec, &stop, started.0);
            let changes = scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    // Each may fail, as the daemon ends in the middle.
                    let agent = device.agent();
                    let socket = device.root().management_socket();
                    let call = |method: &str, path: &str, body| {
                        agent.call_at(&socket, method, &versioned(path), body)
                    };
                    let _ = call("POST", "/modules", Some(spec.clone()));
                    let _ = sender.send(());
                    let _ = call("POST", "/modules/m1/start", None);
                    let _ = call("DELETE", "/modules/m1", None);
                }
            });
            started.1.recv().unwrap();
            // Another moment of the sequence in each round.
            std::thread::park_timeout(Duration::from_millis(round * 7));
            let pid =
                rustix::process::Pid::from_raw(i32::try_from(device.pid(Daemon::Moduled)).unwrap())
                    .unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            stop.store(true, Ordering::SeqCst);
            changes.join().unwrap();
        });
        device.kill(Daemon::Moduled);
        device.start(Daemon::Moduled);
        // Whatever was half done: it can be removed and made anew, and nothing of it is
        // left running.
        let manage =
            |method: &str, path: &str, body| device.agent().manage(method, &versioned(path), body);
        let removed = manage("DELETE", "/modules/m1", None);
        assert!(matches!(removed.status, 204 | 404), "round {round}: {}", removed.text());
        assert_eq!(device.processes_of("m1"), Vec::<u32>::new(), "round {round}");
        let _ = manage("POST", "/modules", Some(spec.clone())).expect(201);
        let _ = manage("POST", "/modules/m1/start", None).expect(204);
        assert_eq!(device.processes_of("m1").len(), 1);
        let _ = manage("DELETE", "/modules/m1", None).expect(204);
        let _ = device.agent().sign().expect(200);
    }
}

#[test]
fn the_daemons_end_in_order_when_they_are_told_to() {
    let mut device = Device::builder().start();
    let m1 = device.add_caller("m1");
    for daemon in Daemon::ALL {
        let begin = Instant::now();
        let status = device.stop(daemon);
        assert_eq!(status.code(), Some(0), "{}", daemon.name());
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{} took {:?}",
            daemon.name(),
            begin.elapsed()
        );
    }
    device.start_daemons();
    let _ = m1.sign().expect(200);
}

#[test]
fn an_agent_that_ends_at_once_is_started_again_after_pauses_and_costs_nothing_between() {
    let agent = "[agent]\ntype = \"process\"\n[agent.config]\nimage = \"false\"\n";
    let device = Device::builder().agent(agent).host_module("false", "/bin/false").start();
    let starts = || device.log(Daemon::Moduled).matches("agent seen=").count();
    wait_for("the first start", || (starts() >= 1).then_some(()));
    let cpu = || {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", device.pid(Daemon::Moduled))).unwrap();
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse().unwrap())
            .collect();
        fields[0] + fields[1]
    };
    let (before, begun) = (cpu(), Instant::now());
    wait_for("the second start", || (starts() >= 2).then_some(()));
    assert!(begun.elapsed() > Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(cpu() - before < 100, "{} ticks of 10 ms", cpu() - before);
    let metrics = edgekeep_testkit::http::call(
        &device.root().metrics_socket(Daemon::Moduled),
        "GET",
        "/metrics",
        None,
    );
    assert!(
        metrics.unwrap().text().contains("edgekeep_watchdog_errors_in_a_row 0\n"),
        "it is no error of the runtime"
    );
}
