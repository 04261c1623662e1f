//! Certificates of a device over years.

use edgekeep_core::clock::BUILT;
use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, wait_for};
use serde_json::Value;

use crate::clock::{Clock, Module};
use crate::wait_for_edge_ca;

const DAY: i64 = 86_400;

/// The line of the Edge CA in `edgekeep certs list --json`.
fn edge_ca(device: &Device) -> Option<Value> {
    let output = device.edgekeep(&["certs", "list", "--json"]);
    let list: Value = serde_json::from_slice(&output.stdout).ok()?;
    let lines = list["certificates"].as_array()?;
    lines.iter().find(|line| line["id"] == "aziot-edged-ca").cloned()
}

/// Starts a daemon anew whose cloud is away: only the last good time says what time it
/// is.
fn without_cloud(device: &mut Device) {
    device.cloud_goes_away();
    device.kill(Daemon::Identityd);
    device.start(Daemon::Identityd);
}

#[test]
fn the_edge_ca_is_renewed_three_times_while_a_module_gets_certificates() {
    let Some(clock) = Clock::new() else { return };
    let mut device = clock.device().start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    without_cloud(&mut device);
    let mut module = Module::new(&device, &m1);
    let mut last = module.lives();
    for renewal in 1..=3 {
        let (begin, end) = last.ca;
        // Nine tenths of its life: it is due, and good for days.
        clock.set(begin + (end - begin) * 9 / 10);
        let line = wait_for("the renewed Edge CA", || {
            let served = module.lives();
            let (good, why) = module.verified(&served, clock.now());
            assert!(good, "renewal {renewal}: {why}");
            let line = edge_ca(&device)?;
            (served.ca.1 > end && line["renewal"] == "planned").then_some(line)
        });
        assert!(line["daysLeft"].as_f64().unwrap() > 80.0, "{line}");
        assert!(line["lastError"].is_null(), "{line}");
        let served = module.lives();
        last = served;
    }
    let text = device.edgekeep(&["certs", "list"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("DAYS LEFT") && text.contains("aziot-edged-ca"), "{text}");
}

#[test]
fn after_two_years_in_a_drawer_modules_get_certificates_before_and_after_the_clock_is_set() {
    let Some(clock) = Clock::new() else { return };
    let mut device = clock.device().start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let mut module = Module::new(&device, &m1);
    let before = module.lives();
    device.cloud_goes_away();
    for daemon in Daemon::ALL {
        device.kill(daemon);
    }
    // The battery of the clock is empty.
    clock.set(BUILT);
    device.start_daemons();
    let served = module.lives();
    let (good, why) = module.verified(&served, clock.now());
    assert!(good, "at the build date: {why}");
    // A time server is reached.
    let later = before.ca.1 + 2 * 365 * DAY;
    clock.set(later);
    let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| module.lives()));
    let served = lived.unwrap_or_else(|panic| {
        eprintln!("{}\n{}", device.log(Daemon::Moduled), device.log(Daemon::Identityd));
        std::panic::resume_unwind(panic)
    });
    let (good, why) = module.verified(&served, clock.now());
    assert!(good, "two years later: {why}");
    let line = wait_for("a plan", || edge_ca(&device).filter(|line| line["renewal"] == "planned"));
    assert!(line["daysLeft"].as_f64().unwrap() > 80.0, "{line}");
}

#[test]
fn modules_are_restarted_when_the_edge_ca_gets_a_new_key_and_only_then() {
    for (rotate, on_new_key) in [(true, "restart"), (true, "notify"), (false, "restart")] {
        let tables = format!(
            "[edge_ca]\non_new_key = \"{on_new_key}\"\n\
             [edge_ca.auto_renew]\nrotate_key = {rotate}\n"
        );
        let device = Device::builder().tables(&tables).start();
        let _m1 = device.add_caller("m1");
        wait_for_edge_ca(&device);
        // The key that the modules know is remembered.
        let known = device.root().state_folder(Daemon::Moduled).join("edge-ca-key.json");
        wait_for("the key", || std::fs::read(&known).ok());
        let (before, pids) = (std::fs::read(&known).unwrap(), device.processes_of("m1"));
        let end = device.status().edge_ca_expiration;
        let renew = || {
            let renewed = device.edgekeep(&["certs", "renew", "aziot-edged-ca"]);
            assert!(renewed.status.success(), "{}", String::from_utf8_lossy(&renewed.stderr));
        };
        renew();
        if rotate {
            wait_for("the new key", || std::fs::read(&known).ok().filter(|known| *known != before));
        } else {
            // moduled has seen a new certificate by then. Two of one second end alike.
            wait_for("a look", || {
                renew();
                (device.status().edge_ca_expiration != end).then_some(())
            });
        }
        let restarted = rotate && on_new_key == "restart";
        assert_eq!(device.processes_of("m1") != pids, restarted, "{rotate} {on_new_key}");
        if on_new_key == "notify" {
            let said = String::from_utf8(device.edgekeep(&["status"]).stdout).unwrap();
            assert!(said.contains("The Edge CA has a new key"), "{said}");
        }
    }
}
