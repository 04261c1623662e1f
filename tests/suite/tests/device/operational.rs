//! Certificates that the provisioning service issues with a registration, on the real
//! daemons: request and chain are judged by openssl, renewals come by a moved clock.

use std::path::Path;
use std::process::Command;

use edgekeep_core::layout::Daemon;
use edgekeep_sim::token::Key;
use edgekeep_sim::{Enrolment, Faults, IssuedFault};
use edgekeep_testkit::{Device, wait_for};
use serde_json::Value;

use crate::clock::Clock;

const ID: &str = "device-operational";
const TOML: &str = "[provisioning]\nsource = \"dps\"\nglobal_endpoint = \"{dps}\"\n\
    id_scope = \"0ne00000001\"\noperational_certificate = { method = \"dps\" }\n\
    [provisioning.attestation]\nmethod = \"symmetric_key\"\nregistration_id = \"press-04\"\n\
    symmetric_key = { value = \"{key}\" }\n";

fn enrol(device: &Device, policy: Option<&str>) {
    let certificate_policy_name = policy.map(str::to_owned);
    let key = Key::new(vec![7; 32]).unwrap();
    let enrolment = Enrolment { certificate_policy_name, ..Enrolment::new("press-04", key) };
    device.cloud().enrol(enrolment).unwrap();
}

fn toml() -> String {
    TOML.replace("{key}", &edgekeep_testkit::base64(&[7; 32]))
}

/// Returns the answer of `edgekeep` with `--json`.
fn said(device: &Device, arguments: &[&str]) -> Value {
    let output = device.edgekeep(&[arguments, &["--json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// The certificate in `edgekeep certs list`, once it is there.
fn line(device: &Device) -> Option<Value> {
    let list = said(device, &["certs", "list"]);
    list["certificates"].as_array()?.iter().find(|line| line["id"] == ID).cloned()
}

/// Waits until the device has a certificate other than `before`; returns its thumbprint.
fn until_issued(device: &Device, before: &str) -> String {
    wait_for("a certificate for the hub", || {
        let stand = said(device, &["identity", "why"]);
        let thumbprint = stand["operationalCertificate"]["thumbprint"].as_str()?.to_owned();
        (stand["activity"] == "idle" && thumbprint != before).then_some(thumbprint)
    })
}

fn openssl(folder: &Path, arguments: &str) -> (bool, String) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .expect("openssl is installed");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.success(), text)
}

#[test]
fn openssl_verifies_the_request_and_the_chain_that_came_for_it() {
    let device = Device::builder().provisioning(&toml()).start();
    enrol(&device, Some("presses"));
    let thumbprint = until_issued(&device, "");
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    put("request.der", &device.cloud().last_csr().unwrap());
    let (good, text) =
        openssl(folder.path(), "req -inform DER -in request.der -verify -noout -text");
    assert!(good && text.contains("verify OK"), "{text}");
    assert!(text.contains("CN = press-04") || text.contains("CN=press-04"), "{text}");
    assert!(text.contains("secp384r1") && text.contains("ecdsa-with-SHA384"), "{text}");
    // A request of which one byte is another is none.
    let mut broken = device.cloud().last_csr().unwrap();
    let at = broken.len() - 1;
    broken[at] ^= 1;
    put("broken.der", &broken);
    let (_, text) = openssl(folder.path(), "req -inform DER -in broken.der -verify -noout");
    assert!(!text.contains("verify OK"), "{text}");

    let chain = folder.path().join("chain.pem");
    let exported = device.edgekeep(&["certs", "export", ID, "-o", &chain.display().to_string()]);
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    put("root.pem", device.cloud().issuance_root_pem().unwrap().as_bytes());
    let verify = "verify -purpose sslclient -CAfile root.pem -untrusted chain.pem chain.pem";
    let (good, text) = openssl(folder.path(), verify);
    assert!(good, "{text}");
    put("root.pem", device.cloud().ca_pem().as_bytes());
    assert!(!openssl(folder.path(), verify).0, "another root verifies it, too");
    let (_, printed) = openssl(folder.path(), "x509 -in chain.pem -noout -fingerprint -sha256");
    let printed = printed.split('=').nth(1).unwrap().trim().replace(':', "").to_lowercase();
    assert_eq!(printed, thumbprint);
    // The key is in keyd, and in no file of the daemon that asked.
    let state = device.root().state_folder(Daemon::Identityd);
    let found = Command::new("grep").args(["-rl", "PRIVATE KEY"]).arg(&state).output().unwrap();
    assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));

    let shown = said(&device, &["identity", "show"]);
    assert_eq!((&shown["auth"]["type"], &shown["auth"]["certId"]), (&"x509".into(), &ID.into()));
    let line = line(&device).unwrap();
    assert_eq!((&line["method"], &line["renewal"]), (&"dps".into(), &"planned".into()), "{line}");
    let text = String::from_utf8(device.edgekeep(&["identity", "why"]).stdout).unwrap();
    assert!(text.contains("issued with the registration, until") && text.contains(&thumbprint));
    // Modules get their identities by this certificate.
    crate::wait_for_edge_ca(&device);
    let _ = device.add_caller("m1").sign().expect(200);
    assert_eq!(device.cloud().state().refusals, Vec::<String>::new());
}

#[test]
fn an_enrolment_without_a_policy_is_told_everywhere_and_a_policy_helps() {
    let device = Device::builder().provisioning(&toml()).start();
    enrol(&device, None);
    let words = "issued no certificate";
    wait_for("the reason", || {
        let stand = said(&device, &["identity", "why"]);
        stand["errors"][0]["reason"].as_str().filter(|reason| reason.contains(words)).map(drop)
    });
    let text = String::from_utf8(device.edgekeep(&["identity", "why"]).stdout).unwrap();
    assert!(text.contains(words) && text.contains("nothing else is shown to the hub"), "{text}");
    let status = device.edgekeep(&["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(!status.status.success() && text.contains(words), "{text}");
    assert_eq!(device.cloud().state().calls.hub_list, 0, "the token was shown to the hub");
    enrol(&device, Some("presses"));
    // By hand, not by the next pause.
    assert!(device.edgekeep(&["identity", "reprovision"]).status.success());
    until_issued(&device, "");
}

#[test]
fn the_clock_brings_a_renewal_and_after_the_end_the_onboarding_key_brings_another() {
    let Some(clock) = Clock::new() else { return };
    let mut device = clock.device().provisioning(&toml()).start();
    enrol(&device, Some("presses"));
    let first = until_issued(&device, "");
    let day = 86_400;
    let ahead = |days: i64| {
        clock.set_ahead(days * day);
        let clock_offset_sec = days * day;
        device.cloud().faults(Faults { clock_offset_sec, ..Faults::default() }).unwrap();
    };
    // 30 days are its life: the plan has it renewed after 24 and before 27.
    ahead(20);
    let planned = wait_for("a plan", || line(&device).filter(|line| line["renewal"] == "planned"));
    assert!(planned["daysLeft"].as_f64().unwrap() < 10.5, "{planned}");
    assert_eq!(said(&device, &["identity", "why"])["operationalCertificate"]["thumbprint"], first);
    ahead(28);
    let second = until_issued(&device, &first);
    // In a drawer until long after the end: the hub takes it no more.
    for daemon in Daemon::ALL {
        device.kill(daemon);
    }
    clock.set_ahead(400 * day);
    let clock_offset_sec = 400 * day;
    device.cloud().faults(Faults { clock_offset_sec, ..Faults::default() }).unwrap();
    device.start_daemons();
    until_issued(&device, &second);
    let _ = device.add_caller("m1").sign().expect(200);
}

#[test]
fn a_bad_answer_to_a_renewal_is_told_and_the_device_goes_on_with_the_old_one() {
    let device = Device::builder().provisioning(&toml()).start();
    enrol(&device, Some("presses"));
    let first = until_issued(&device, "");
    let issued = Some(IssuedFault::WrongKey);
    device.cloud().faults(Faults { issued, ..Faults::default() }).unwrap();
    let renewed = device.edgekeep(&["certs", "renew", ID]);
    let words = "none of its certificates belongs to the key of the request";
    let text = String::from_utf8_lossy(&renewed.stderr).into_owned();
    assert!(!renewed.status.success() && text.contains(words), "{text}");
    let line = line(&device).unwrap();
    assert!(line["lastError"].as_str().unwrap().contains(words), "{line}");
    let stand = said(&device, &["identity", "why"]);
    assert_eq!(stand["operationalCertificate"]["thumbprint"], first);
    crate::wait_for_edge_ca(&device);
    let _ = device.add_caller("m1").sign().expect(200);
    device.cloud().faults(Faults::default()).unwrap();
    assert!(device.edgekeep(&["identity", "reprovision"]).status.success());
    until_issued(&device, &first);
}
