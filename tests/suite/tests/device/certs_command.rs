//! `edgekeep certs`: what an operator sees of certificates and does with them, and what
//! becomes of a renewal that waits for a window or is turned off.

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, wait_for};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clock::Clock;
use crate::wait_for_edge_ca;

const EDGE_CA: &str = "aziot-edged-ca";
const DAY: i64 = 86_400;

/// Runs the command; returns whether it succeeded, and what it said.
fn said(device: &Device, arguments: &[&str]) -> (bool, String) {
    let output = device.edgekeep(arguments);
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[track_caller]
fn good(device: &Device, arguments: &[&str]) -> String {
    let (success, text) = said(device, arguments);
    assert!(success, "{arguments:?}: {text}");
    text
}

fn shown(device: &Device) -> Value {
    serde_json::from_str(&good(device, &["certs", "show", EDGE_CA, "--json"])).unwrap()
}

fn moment(text: &Value) -> i64 {
    OffsetDateTime::parse(text.as_str().unwrap(), &Rfc3339).unwrap().unix_timestamp()
}

#[test]
fn certificates_are_listed_shown_renewed_and_exported_without_a_key() {
    let device = Device::builder().start();
    wait_for_edge_ca(&device);
    let list = good(&device, &["certs", "list"]);
    let heading = list.lines().next().unwrap();
    for word in ["ID", "SUBJECT", "ISSUER", "KEY", "NOT AFTER", "DAYS LEFT", "NEXT RENEWAL"] {
        assert!(heading.contains(word), "{list}");
    }
    let text = good(&device, &["certs", "show", EDGE_CA]);
    assert!(text.contains("self_signed") && text.contains("keyd:aziot-edged-ca"), "{text}");
    let line = shown(&device);
    let all: Value = serde_json::from_str(&good(&device, &["certs", "list", "--json"])).unwrap();
    assert!(all["certificates"].as_array().unwrap().contains(&line), "{all}");

    // Three ways to one text, which openssl reads.
    let file = device.root().path().join("exported.pem");
    let path = file.display().to_string();
    let pem = good(&device, &["certs", "export", EDGE_CA]);
    let _ = good(&device, &["certs", "export", EDGE_CA, "--output", &path]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), pem);
    let json = good(&device, &["certs", "export", EDGE_CA, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["pem"], Value::from(pem.as_str()));
    assert!(!pem.contains("PRIVATE"), "{pem}");
    let openssl = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-checkend", "86400", "-in", &path])
        .output()
        .unwrap();
    assert!(openssl.status.success(), "{openssl:?}");

    assert!(good(&device, &["certs", "renew", EDGE_CA]).contains("renewed"));
    assert_ne!(good(&device, &["certs", "export", EDGE_CA]), pem);
    for (arguments, reason) in [
        (["certs", "show", "device-id"], "there is no certificate \"device-id\""),
        (["certs", "export", "device-id"], "not found"),
        (["certs", "renew", "device-id"], "is not renewed by this service"),
        (["certs", "renew", "a b"], "certificate \"a b\" was not renewed"),
    ] {
        let (success, text) = said(&device, &arguments);
        assert!(!success && text.contains(reason), "{arguments:?}: {text}");
    }
}

/// A device that is alone: only the last good time says what time it is.
fn alone(clock: &Clock, auto_renew: &str) -> Device {
    let tables = format!("[edge_ca.auto_renew]\n{auto_renew}\n");
    let mut device = clock.device().tables(&tables).start();
    wait_for_edge_ca(&device);
    device.cloud_goes_away();
    device.kill(Daemon::Identityd);
    device.start(Daemon::Identityd);
    device
}

#[test]
fn a_renewal_that_is_due_waits_for_its_window_and_comes_in_it() {
    let Some(clock) = Clock::new() else { return };
    let device = alone(&clock, "window = \"02:00-04:00\"");
    let line = shown(&device);
    let (begin, end) = (moment(&line["notBefore"]), moment(&line["notAfter"]));
    // Behind the threshold and all that chance adds to it, and noon there.
    let due = begin + (end - begin) * 83 / 100;
    let noon = due - due.rem_euclid(DAY) + DAY + DAY / 2;
    clock.set(noon);
    let waiting =
        wait_for("the window", || Some(shown(&device)).filter(|line| line["renewal"] == "window"));
    let opens = noon + 14 * 3600;
    assert_eq!(moment(&waiting["nextRenewal"]), opens, "{waiting}");
    assert!(good(&device, &["certs", "list"]).contains(", in the window"));
    clock.set(opens + 60);
    wait_for("the renewal", || {
        let line = shown(&device);
        (line["renewal"] == "planned" && moment(&line["notAfter"]) > end).then_some(())
    });
}

/// The days that are left of the Edge CA's certificate, by the metric.
fn days_left(device: &Device) -> f64 {
    let text = good(device, &["metrics", "identityd"]);
    let sample = text
        .lines()
        .find(|line| line.starts_with("edgekeep_certificate_days_left{") && line.contains(EDGE_CA));
    sample.unwrap_or_else(|| panic!("{text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_renewal_that_is_turned_off_is_off_and_the_end_is_told_by_status_and_metric() {
    let Some(clock) = Clock::new() else { return };
    let device = alone(&clock, "enabled = false");
    assert!((88.0..91.0).contains(&days_left(&device)), "{}", days_left(&device));
    let line = shown(&device);
    let end = moment(&line["notAfter"]);
    assert_eq!(line["renewal"], "off");
    clock.set(end - 3 * DAY);
    let left = wait_for("the days that are left", || Some(days_left(&device)).filter(|d| *d < 4.0));
    assert!(left > 2.0, "{left}");
    // The metric was looked at, so the problem is told as well.
    let status = wait_for("a warning", || {
        let (_, text) = said(&device, &["status"]);
        text.contains("it ends in ").then_some(text)
    });
    assert!(status.contains(EDGE_CA), "{status}");
    assert_eq!(moment(&shown(&device)["notAfter"]), end, "nobody asked for it");
    let _ = good(&device, &["certs", "renew", EDGE_CA]);
    assert!(moment(&shown(&device)["notAfter"]) > end);
    assert_eq!(shown(&device)["renewal"], "off");
}
