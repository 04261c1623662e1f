//! Devices out of a drawer whose certificates come from an EST server: all of them are
//! over, the clock stood at the build date, and the server was away.

use edgekeep_core::clock::BUILT;
use edgekeep_core::layout::Daemon;
use edgekeep_sim::{
    Authority, EstFaults, EstOptions, Faults, RouteFaults, Simulator, SimulatorOptions,
};
use edgekeep_testkit::wait_for;
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::Value;

use crate::clock::{Clock, Module};
use crate::wait_for_edge_ca;

const DAY: i64 = 86_400;

/// Ways by which the device proves to the server who it is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Proof {
    Password,
    Manufacturer,
}

fn out_of_the_drawer(proof: Proof) {
    let Some(clock) = Clock::new() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let maker = Authority::named("maker").unwrap();
    let est = EstOptions {
        basic: (proof == Proof::Password).then(|| ("plant".to_owned(), "wrench".to_owned().into())),
        clients_pem: maker.certificate_pem().to_owned(),
        labels: Vec::new(),
    };
    let options = SimulatorOptions { est, ..SimulatorOptions::default() };
    let server = runtime.block_on(Simulator::start(options)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        format!("file://{}", folder.path().join(name).display())
    };
    let roots = file("roots.pem", &[server.ca_pem(), &server.est_root_pem(None).unwrap()].concat());
    let auth = match proof {
        Proof::Password => "username = \"plant\"\npassword = \"wrench\"".to_owned(),
        Proof::Manufacturer => {
            let pair = KeyPair::generate().unwrap();
            let info = pair.subject_public_key_info();
            let cert = file("maker.pem", &maker.client_certificate_pem("serial-1", &info).unwrap());
            let key = file("maker.key", &pair.serialize_pem());
            format!("bootstrap_identity_cert = \"{cert}\"\nbootstrap_identity_pk = \"{key}\"")
        }
    };
    let tables = format!(
        "[edge_ca]\nmethod = \"est\"\ncommon_name = \"edge CA\"\n\
         [cert_issuance.est]\ntrusted_certs = [\"{roots}\"]\n\
         [cert_issuance.est.urls]\ndefault = \"{}\"\n\
         [cert_issuance.est.auth]\n{auth}\n",
        server.est_url()
    );
    let mut device = clock.device().tables(&tables).start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let mut module = Module::new(&device, &m1);
    let before = module.lives();
    let line = |device: &edgekeep_testkit::Device, id: &str| -> Option<Value> {
        let output = device.edgekeep(&["certs", "list", "--json"]);
        let list: Value = serde_json::from_slice(&output.stdout).ok()?;
        list["certificates"].as_array()?.iter().find(|line| line["id"] == id).cloned()
    };
    if proof == Proof::Manufacturer {
        wait_for("an identity of the device's own", || line(&device, "est-id"));
    }

    device.cloud_goes_away();
    let away = EstFaults { route: RouteFaults::dropped(), ..EstFaults::default() };
    server.faults(Faults { est: away, ..Faults::default() }).unwrap();
    for daemon in Daemon::ALL {
        device.kill(daemon);
    }
    clock.set(BUILT);
    device.start_daemons();
    // The keys are there, and the device says what it waits for.
    let _ = m1.sign().expect(200);
    // A time server is reached, two years later, and then the EST server.
    clock.set(before.ca.1 + 2 * 365 * DAY);
    wait_for("the failure to be told", || {
        let line = line(&device, "aziot-edged-ca")?;
        line["lastError"].as_str().map(drop)
    });
    // By the clock of the server it is still the day on which the device was put away.
    let back = EstFaults { validity_sec: Some(1000 * 86_400), ..EstFaults::default() };
    server.faults(Faults { est: back, ..Faults::default() }).unwrap();
    let served = wait_for("certificates without a visit", || {
        // Any call of the module that needs one has it tried at once.
        let target = "/modules/{m}/genid/{g}/certificate/server?api-version=2020-07-07";
        let body = serde_json::json!({ "commonName": "press-04.plant7" });
        (m1.call("POST", target, Some(body)).status == 201).then(|| module.lives())
    });
    let (good, why) = module.verified(&served, clock.now());
    assert!(good, "two years later: {why}");
    assert!(served.ca.1 > clock.now());
    if proof == Proof::Manufacturer {
        let own = wait_for("the device's own identity", || {
            line(&device, "est-id").filter(|line| line["renewal"] == "planned")
        });
        assert!(own["daysLeft"].as_f64().unwrap() > 0.0, "{own}");
    }
    drop(device);
    runtime.block_on(server.stop());
}

#[test]
fn after_two_years_in_a_drawer_a_device_with_a_password_for_est_needs_no_visit() {
    out_of_the_drawer(Proof::Password);
}

#[test]
fn after_two_years_in_a_drawer_a_device_with_its_manufacturers_certificate_needs_no_visit() {
    out_of_the_drawer(Proof::Manufacturer);
}
