//! Renewal of all certificates of a device: its identity and what it shows to its EST
//! server, which that server issues, its Edge CA, and a module's.
//!
//! The cloud's clock goes with the device's. No certificate is a fixed time old at any
//! step: the clock goes on to what is planned, however long the renewals take.

use std::collections::BTreeMap;

use edgekeep_api::certd::{CertificateLine, CertificatesClient};
use edgekeep_sim::{Authority, EstFaults, EstOptions, Faults, Proof};
use edgekeep_testkit::{DEVICE_ID, Device, VERSION, wait_for};
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clock::Clock;
use crate::service::Service;
use crate::wait_for_edge_ca;

const DAY: i64 = 86_400;
/// Life of each certificate in days.
const DAYS: u32 = 8;
/// Longest step of the clock.
const STEP: i64 = 3 * DAY;
/// Time within which renewals that are planned are met with one step.
const TOGETHER: i64 = DAY;
/// Certificates that are renewed without being asked for.
const RENEWED: [&str; 3] = ["device-id", "est-id", "aziot-edged-ca"];

/// A device that has nothing but its manufacturer's certificate, and its cloud.
fn device(clock: &Clock, folder: &std::path::Path) -> Device {
    let maker = Authority::named("maker").unwrap();
    let pair = KeyPair::generate().unwrap();
    let pem = maker.client_certificate_pem("serial-1", &pair.subject_public_key_info()).unwrap();
    std::fs::write(folder.join("maker.pem"), pem).unwrap();
    std::fs::write(folder.join("maker.key"), pair.serialize_pem()).unwrap();
    let provisioning = format!(
        "[provisioning]\nsource = \"dps\"\nglobal_endpoint = \"{{dps}}\"\n\
         id_scope = \"0ne00000001\"\n\
         [provisioning.attestation]\nmethod = \"x509\"\nregistration_id = \"{DEVICE_ID}\"\n\
         [provisioning.attestation.identity_cert]\nmethod = \"est\"\n\
         [provisioning.attestation.identity_cert.auto_renew]\nrotate_key = true\n"
    );
    let tables = format!(
        "[edge_ca]\nauto_generated_edge_ca_expiry_days = {DAYS}\non_new_key = \"notify\"\n\
         [edge_ca.auto_renew]\nrotate_key = true\n\
         [cert_issuance.est]\ntrusted_certs = [\"file://{{root}}/est-roots.pem\"]\n\
         [cert_issuance.est.urls]\ndefault = \"{{est}}\"\n\
         [cert_issuance.est.auth]\n\
         bootstrap_identity_cert = \"file://{0}/maker.pem\"\n\
         bootstrap_identity_pk = \"file://{0}/maker.key\"\n",
        folder.display()
    );
    let est =
        EstOptions { clients_pem: maker.certificate_pem().to_owned(), ..EstOptions::default() };
    clock.device().provisioning(&provisioning).tables(&tables).est(est).faults(cloud(0)).start()
}

/// A cloud whose clock is ahead, and which issues for a short time.
fn cloud(ahead: i64) -> Faults {
    let est = EstFaults { validity_sec: Some(DAYS * 86_400), ..EstFaults::default() };
    Faults { clock_offset_sec: ahead, est, ..Faults::default() }
}

/// The certificates that are renewed by themselves; `None` until each has a plan for what
/// is to come.
fn planned(device: &Device, now: i64) -> Option<BTreeMap<String, CertificateLine>> {
    let client = CertificatesClient::new(device.root().certd_socket());
    let list = device.block_on(client.list()).unwrap().certificates;
    let lines = RENEWED.map(|id| list.iter().find(|line| line.id == id).cloned());
    let planned = |line: &CertificateLine| line.renewal == "planned" && next(line) > now;
    let lines = lines.into_iter().map(|line| line.filter(&planned));
    lines.map(|line| line.map(|line| (line.id.clone(), line))).collect()
}

fn next(line: &CertificateLine) -> i64 {
    let next = line.next_renewal.as_deref().unwrap();
    OffsetDateTime::parse(next, &Rfc3339).unwrap().unix_timestamp()
}

/// Returns true if the hub answers the device, which it knows by the certificate that is
/// in use now.
fn hub_answers(device: &Device) -> bool {
    let body = json!({ "moduleId": "probe" });
    let target = format!("/identities/?{VERSION}");
    let made = device.agent().manage("POST", &target, Some(body)).status == 200;
    let target = format!("/identities/probe?{VERSION}");
    let answered = made && device.agent().manage("DELETE", &target, None).status == 204;
    let exported = device.edgekeep(&["certs", "export", "device-id"]);
    let (_, block) = x509_parser::pem::parse_x509_pem(&exported.stdout).unwrap();
    let known = device.cloud().state().devices[DEVICE_ID].thumbprints.clone();
    answered && Proof::Thumbprints(known) == Proof::thumbprint(&block.contents)
}

/// Returns where the clock goes: to what comes next and what comes soon after it.
fn step(events: impl Iterator<Item = i64> + Clone, now: i64) -> i64 {
    let first = events.clone().min().unwrap();
    let last = events.filter(|at| *at <= first + TOGETHER).max().unwrap();
    (last + 60).min(now + STEP)
}

#[test]
fn no_handshake_fails_while_identity_edge_ca_and_module_certificates_are_renewed_three_times() {
    let Some(clock) = Clock::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let device = device(&clock, folder.path());
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let mut service = Service::start(&clock, &m1);
    let mut last = wait_for("the first plans", || planned(&device, clock.now()));
    assert!(hub_answers(&device));
    let (mut renewals, mut of_the_module) = (BTreeMap::<String, u32>::new(), 0);
    let mut steps = 0;
    while of_the_module < 3 || RENEWED.iter().any(|id| renewals.get(*id) < Some(&3)) {
        let events = last.values().map(next).chain([service.renewal()]);
        clock.set(step(events, clock.now()));
        device.cloud().faults(cloud(clock.ahead())).unwrap();
        // A handshake or more at each time, by what was there before and after.
        let before = service.good();
        let lines = wait_for("renewals, and a hub that knows the device by them", || {
            // Its answer also tells the device that the clock is right.
            let known = hub_answers(&device);
            let lines = planned(&device, clock.now())?;
            (known && service.good() > before).then_some(lines)
        });
        for (id, line) in &lines {
            let is_new = line.not_after != last[id].not_after;
            *renewals.entry(id.clone()).or_default() += u32::from(is_new);
            assert_eq!(line.last_error, None, "{line:?}");
        }
        last = lines;
        if clock.now() > service.renewal() {
            service.renew();
            of_the_module += 1;
        }
        steps += 1;
        assert!(steps < 40, "not renewed: {last:?}");
    }
    let list = String::from_utf8(device.edgekeep(&["certs", "list"]).stdout).unwrap();
    let told = service.end();
    eprintln!("{list}{renewals:?}, {of_the_module} of the module, in {steps} steps: {told}");
    assert!(RENEWED.iter().all(|id| list.contains(id)) && list.contains("DAYS LEFT"), "{list}");
    assert_eq!(told["bad"], json!([]), "no handshake failed");
    assert!(told["leaves"].as_u64().unwrap() > 3, "{told}");
    // Of nothing but the moments between a new identity and its registration.
    let refusals = device.cloud().state().refusals;
    let at_the_hub = |said: &String| said.contains("the client certificate is another one");
    assert!(refusals.iter().all(at_the_hub), "{refusals:?}");
}
