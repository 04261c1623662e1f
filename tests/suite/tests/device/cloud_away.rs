//! The cloud is slow, broken or gone: what the device knows keeps working.

use std::time::{Duration, Instant};

use edgekeep_core::layout::Daemon;
use edgekeep_sim::{Faults, RouteFaults};
use edgekeep_testkit::{Device, VERSION, wait_for};
use serde_json::{Value, json};

use crate::wait_for_edge_ca;

/// Longest time of a call whose answer the device knows. The Python SDK would wait 60 s.
const FAST: Duration = Duration::from_secs(2);

fn fast<T>(what: &str, call: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = call();
    assert!(begin.elapsed() < FAST, "{what} took {:?}", begin.elapsed());
    result
}

fn versioned(target: &str) -> String {
    format!("{target}?{VERSION}")
}

#[test]
fn a_hub_that_is_slow_or_broken_delays_no_module() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let expected = m1.sign().expect(200);
    let slow = RouteFaults { delay_ms: 60_000, ..RouteFaults::default() };
    let throttled = RouteFaults { retry_after_sec: Some(600), ..RouteFaults::status(429) };
    for fault in [RouteFaults::dropped(), RouteFaults::status(500), throttled, slow] {
        device.cloud().faults(Faults { hub: fault.clone(), ..Faults::default() }).unwrap();
        for _ in 0..3 {
            assert_eq!(fast("sign", || m1.sign()).expect(200), expected, "{fault:?}");
        }
        let trust = fast("trust bundle", || m1.call("GET", &versioned("/trust-bundle"), None));
        assert_eq!(trust.status, 200);
        let list = fast("list", || device.ask("GET", &versioned("/modules"), None));
        assert_eq!(list.status, 200);
        // What is known of identities is answered; a call that needs the hub does not
        // hold the others up.
        std::thread::scope(|scope| {
            let unknown = scope.spawn(|| {
                device.agent().manage(
                    "POST",
                    &versioned("/identities"),
                    Some(json!({"moduleId": "new"})),
                )
            });
            let begin = Instant::now();
            let mut signed = 0;
            while !unknown.is_finished() && begin.elapsed() < Duration::from_secs(1) {
                let _ = fast("sign beside it", || m1.sign()).expect(200);
                signed += 1;
            }
            device.cloud().faults(Faults::default()).unwrap();
            assert!(signed > 0);
        });
    }
}

#[test]
fn restarting_modules_needs_no_cloud() {
    let mut device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let expected = m1.sign().expect(200);
    device.cloud_goes_away();
    for action in ["stop", "start", "restart"] {
        let _ = device
            .agent()
            .manage("POST", &versioned(&format!("/modules/m1/{action}")), None)
            .expect(204);
    }
    assert_eq!(m1.sign().expect(200), expected);
    let refused =
        device.agent().manage("POST", &versioned("/identities"), Some(json!({"moduleId": "new"})));
    assert!(refused.status >= 400, "no identity can be made without the hub: {}", refused.text());
}

#[test]
fn a_device_whose_cloud_comes_up_late_gets_its_identity() {
    let faults = Faults { dps: RouteFaults::dropped(), ..Faults::default() };
    let device = Device::builder().faults(faults).start();
    let problem = wait_for("a problem to be told", || device.status().problems.into_iter().next());
    assert!(problem.contains("not provisioned yet"), "{problem}");
    // A call that needs the identity says what is missing instead of waiting.
    let answer = device.ask("GET", &versioned("/identities"), None);
    assert!(
        answer.status >= 400 && answer.message().contains("not provisioned"),
        "{}",
        answer.text()
    );
    device.cloud().faults(Faults { dps: RouteFaults::status(500), ..Faults::default() }).unwrap();
    let before = device.cloud().state().calls.dps_register;
    device.wait_for_cloud(|state| state.calls.dps_register > before);
    device
        .cloud()
        .faults(Faults { polls_assigning: 2, poll_after_sec: Some(1), ..Faults::default() })
        .unwrap();
    // The agent is started by itself as soon as there is an identity.
    let _ = device.agent().sign().expect(200);
    assert!(device.cloud().state().calls.dps_operation >= 3);
    wait_for("no problem to be left", || device.status().problems.is_empty().then_some(()));
}

#[test]
fn a_whole_device_starts_again_without_its_cloud() {
    let mut device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let (expected, agent) = (m1.sign().expect(200), device.agent().sign().expect(200));
    let before = device.processes_of("m1");
    device.cloud_goes_away();
    for daemon in Daemon::ALL.into_iter().rev() {
        assert!(device.stop(daemon).success(), "{} ends well", daemon.name());
    }
    assert_eq!(device.processes_of("m1"), before, "modules do not depend on the daemons");
    device.start_daemons();
    assert_eq!(fast("sign", || m1.sign()).expect(200), expected);
    assert_eq!(device.agent().sign().expect(200), agent);
    assert_eq!(device.processes_of("m1"), before);
    let identities = device.ask("GET", &versioned("/identities"), None).expect(200);
    let ids: Vec<&str> = identities["identities"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|identity| identity["moduleId"].as_str())
        .collect();
    assert_eq!(ids, ["$edgeAgent", "m1"], "what is known is told");
    device.cloud_comes_back();
    // Nothing was lost meanwhile, and new identities can be made again.
    wait_for("a new identity", || {
        let answer = device.agent().manage(
            "POST",
            &versioned("/identities"),
            Some(json!({"moduleId": "m2"})),
        );
        (answer.status == 200).then_some(())
    });
    assert!(device.cloud().state().devices["press-04"].modules.contains_key("m1"));
    assert_eq!(m1.sign().expect(200), expected);
}

#[test]
fn a_module_that_an_operator_deleted_at_the_hub_is_not_brought_back_by_signing() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let _ = m1.sign().expect(200);
    assert!(device.cloud().remove_module("press-04", "m1"));
    // It may sign for as long as it is remembered; the hub does not accept it, and gets
    // no new module from it.
    let _: Value = m1.sign().json();
    assert!(!device.cloud().state().devices["press-04"].modules.contains_key("m1"));
}
