//! A TLS service of a module while its certificates and the Edge CA are renewed.

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::wait_for;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clock::Clock;
use crate::service::Service;
use crate::wait_for_edge_ca;

const HOUR: i64 = 3600;
/// Life of the Edge CA in days: short, so that the clock makes small steps.
const DAYS: i64 = 8;

#[test]
fn a_tls_service_fails_no_handshake_while_the_edge_ca_is_renewed_three_times_with_new_keys() {
    let Some(clock) = Clock::new() else { return };
    let tables = format!(
        "[edge_ca]\nauto_generated_edge_ca_expiry_days = {DAYS}\non_new_key = \"notify\"\n\
         [edge_ca.auto_renew]\nrotate_key = true\n"
    );
    let mut device = clock.device().tables(&tables).start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    // Only the last good time says what time it is, as on a device that is alone.
    device.cloud_goes_away();
    device.kill(Daemon::Identityd);
    device.start(Daemon::Identityd);
    let mut service = Service::start(&clock, &m1);

    let edge_ca = || -> Value {
        let output = device.edgekeep(&["certs", "list", "--json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        let lines = list["certificates"].as_array().unwrap();
        lines.iter().find(|line| line["id"] == "aziot-edged-ca").unwrap().clone()
    };
    let mut last = edge_ca();
    let (mut renewals, mut fetched) = (0, 0);
    while renewals < 3 {
        clock.set(clock.now() + 4 * HOUR);
        // A handshake or more at each time, and the plan is made for it.
        let before = service.good();
        let line = wait_for("a plan for what is to come", || {
            let line = edge_ca();
            let next = line["nextRenewal"].as_str()?;
            let next = OffsetDateTime::parse(next, &Rfc3339).unwrap().unix_timestamp();
            (service.good() > before && line["renewal"] == "planned" && next > clock.now())
                .then_some(line)
        });
        if line["notAfter"] != last["notAfter"] {
            renewals += 1;
            last = line;
        }
        if clock.now() > service.renewal() {
            service.renew();
            fetched += 1;
        }
        assert!(fetched < 1000, "the Edge CA is not renewed: {last}");
    }
    let text = String::from_utf8(device.edgekeep(&["certs", "list"]).stdout).unwrap();
    assert!(text.contains("DAYS LEFT") && text.contains("aziot-edged-ca"), "{text}");
    let told = service.end();
    eprintln!("{renewals} renewals of the Edge CA, {fetched} of the module's: {told}");
    assert_eq!(told["bad"], json!([]), "no handshake failed");
    assert!(told["leaves"].as_u64().unwrap() > 3, "{told}");
}
