//! Devices out of a drawer: two years later every certificate is over, the clock stands
//! at the build date, and the cloud is away. Then somebody sets the clock, and the cloud
//! is there again. The cases of `docs/certificates.md` that need more than an Edge CA.

use edgekeep_core::clock::BUILT;
use edgekeep_core::layout::Daemon;
use edgekeep_sim::token::Key;
use edgekeep_sim::{Authority, Enrolment, EstFaults, EstOptions, Faults, Proof, RouteFaults};
use edgekeep_test_plant::Plant;
use edgekeep_testkit::{Builder, Caller, DEVICE_ID, Device, VERSION, wait_for};
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::{Value, json};

use crate::clock::{Clock, Module};
use crate::wait_for_edge_ca;

const DAY: i64 = 86_400;
const TWO_YEARS: i64 = 2 * 365 * DAY;

/// Provisioning by a certificate that the rest of the table names.
fn by_certificate(rest: &str) -> String {
    format!(
        "[provisioning]\nsource = \"dps\"\nglobal_endpoint = \"{{dps}}\"\n\
         id_scope = \"0ne00000001\"\n\
         [provisioning.attestation]\nmethod = \"x509\"\nregistration_id = \"{DEVICE_ID}\"\n{rest}\n"
    )
}

/// Takes the cloud away from a device and the device out of its drawer: it starts with a
/// clock at the build date.
fn put_away(device: &mut Device, clock: &Clock) {
    let est = EstFaults { route: RouteFaults::dropped(), ..EstFaults::default() };
    let (dps, hub) = (RouteFaults::dropped(), RouteFaults::dropped());
    device.cloud().faults(Faults { dps, hub, est, ..Faults::default() }).unwrap();
    for daemon in Daemon::ALL {
        device.kill(daemon);
    }
    clock.set(BUILT);
    device.start_daemons();
}

/// Sets the clock to two years later. The cloud has that time too, and is still away or
/// there again.
fn set_clock(device: &Device, clock: &Clock, later: i64, is_back: bool) {
    clock.set(later);
    let away = || if is_back { RouteFaults::default() } else { RouteFaults::dropped() };
    let est = EstFaults { route: away(), ..EstFaults::default() };
    let ahead = clock.ahead();
    let faults =
        Faults { clock_offset_sec: ahead, dps: away(), hub: away(), est, ..Faults::default() };
    device.cloud().faults(faults).unwrap();
}

/// Waits until a module has a certificate, and has openssl verify it by the device's
/// clock.
fn until_served(module: &mut Module<'_>, caller: &Caller, clock: &Clock) {
    let target = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{VERSION}");
    wait_for("a module's certificate", || {
        let body = json!({ "commonName": "press-04.plant7" });
        let issued = caller.call("POST", &target, Some(body));
        (issued.status == 201).then_some(())
    });
    let served = module.lives();
    let (good, why) = module.verified(&served, clock.now());
    assert!(good, "{why}");
}

/// Waits until the hub answers the device by the certificate that it has now.
fn until_hub(device: &Device) {
    wait_for("a hub that knows the device", || {
        let target = format!("/identities/?{VERSION}");
        let body = json!({ "moduleId": "probe" });
        (device.agent().manage("POST", &target, Some(body)).status == 200).then_some(())
    });
}

fn line(device: &Device, id: &str) -> Option<Value> {
    let output = device.edgekeep(&["certs", "list", "--json"]);
    let list: Value = serde_json::from_slice(&output.stdout).ok()?;
    list["certificates"].as_array()?.iter().find(|line| line["id"] == id).cloned()
}

/// Waits until a certificate is valid and its next renewal planned, and returns the days
/// that are left.
fn until_planned(device: &Device, id: &str) -> f64 {
    let planned = |line: &Value| line["renewal"] == "planned";
    wait_for(id, || line(device, id).filter(planned))["daysLeft"].as_f64().unwrap()
}

/// Has the provisioning service know the device by a certificate of that CA.
fn enrol_by(device: &Device, plant: &Plant) {
    let enrolment = Enrolment::new(DEVICE_ID, Key::new(vec![1; 32]).unwrap());
    let proof = Proof::Authorities(plant.text("local.pem"));
    device.cloud().enrol(Enrolment { proof, ..enrolment }).unwrap();
}

/// A local CA in files that ends after so many days.
fn write_ca(plant: &Plant, days: u32) {
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    plant.openssl(&format!(
        "req -x509 {new} -keyout local.key -out local.pem -subj /CN=plant7 -days {days} \
         -addext keyUsage=critical,keyCertSign"
    ));
}

fn local_ca_in_files(plant: &Plant) -> String {
    format!(
        "[cert_issuance.local_ca]\n\
         cert = \"file://{0}/local.pem\"\npk = \"file://{0}/local.key\"\n",
        plant.folder().display()
    )
}

/// A device whose manufacturer's certificate is in the files `maker.pem` and `maker.key`,
/// and which gets all else from the cloud's EST server.
fn with_manufacturer(device: Builder, folder: &std::path::Path, roots: String) -> Builder {
    let tables = format!(
        "[edge_ca]\nmethod = \"est\"\ncommon_name = \"edge CA\"\n\
         [cert_issuance.est]\ntrusted_certs = [\"file://{{root}}/est-roots.pem\"]\n\
         [cert_issuance.est.urls]\ndefault = \"{{est}}\"\n\
         [cert_issuance.est.auth]\nbootstrap_identity_cert = \"file://{0}/maker.pem\"\n\
         bootstrap_identity_pk = \"file://{0}/maker.key\"\n",
        folder.display()
    );
    let provisioning =
        by_certificate("[provisioning.attestation.identity_cert]\nmethod = \"est\"\n");
    let est = EstOptions { clients_pem: roots, ..EstOptions::default() };
    device.provisioning(&provisioning).tables(&tables).est(est)
}

#[test]
fn a_local_ca_of_the_devices_own_is_made_anew_by_any_clock_and_all_below_it_with_it() {
    let Some(clock) = Clock::new() else { return };
    let tables = "[cert_issuance.local_ca.cert]\nmethod = \"self_signed\"\nexpiry_days = 90\n\
                  [edge_ca]\nmethod = \"local_ca\"\nexpiry_days = 30\n";
    let mut device = clock.device().tables(tables).start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let mut module = Module::new(&device, &m1);
    let later = module.lives().ca.1 + TWO_YEARS;
    put_away(&mut device, &clock);
    until_served(&mut module, &m1, &clock);
    set_clock(&device, &clock, later, false);
    until_served(&mut module, &m1, &clock);
    assert!(until_planned(&device, "local-ca") > 80.0);
    assert!(until_planned(&device, "aziot-edged-ca") > 20.0);
}

#[test]
fn a_local_ca_in_files_that_is_over_is_named_and_is_used_once_it_is_replaced() {
    let Some(clock) = Clock::new() else { return };
    let plant = Plant::new();
    write_ca(&plant, 30);
    let tables = format!(
        "{}[edge_ca]\nmethod = \"local_ca\"\nexpiry_days = 20\n",
        local_ca_in_files(&plant)
    );
    let mut device = clock.device().tables(&tables).start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let mut module = Module::new(&device, &m1);
    let later = module.lives().ca.1 + TWO_YEARS;
    put_away(&mut device, &clock);
    let _ = m1.sign().expect(200);
    set_clock(&device, &clock, later, false);
    wait_for("the reason", || {
        let line = line(&device, "aziot-edged-ca")?;
        line["lastError"].as_str().is_some_and(|said| said.contains("it has expired")).then_some(())
    });
    write_ca(&plant, 3650);
    until_served(&mut module, &m1, &clock);
}

#[test]
fn by_est_the_certificate_for_the_provisioning_service_comes_first_and_then_the_hub() {
    let Some(clock) = Clock::new() else { return };
    let (maker, folder) = (Authority::named("maker").unwrap(), tempfile::tempdir().unwrap());
    let pair = KeyPair::generate().unwrap();
    let pem = maker.client_certificate_pem("serial-1", &pair.subject_public_key_info()).unwrap();
    std::fs::write(folder.path().join("maker.pem"), pem).unwrap();
    std::fs::write(folder.path().join("maker.key"), pair.serialize_pem()).unwrap();
    let roots = maker.certificate_pem().to_owned();
    let mut device = with_manufacturer(clock.device(), folder.path(), roots).start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let mut module = Module::new(&device, &m1);
    let later = module.lives().ca.1 + TWO_YEARS;
    put_away(&mut device, &clock);
    let _ = m1.sign().expect(200);
    set_clock(&device, &clock, later, true);
    until_hub(&device);
    until_served(&mut module, &m1, &clock);
    for id in ["est-id", "device-id", "aziot-edged-ca"] {
        assert!(until_planned(&device, id) > 20.0, "{id}");
    }
}

#[test]
fn a_manufacturers_certificate_that_is_over_is_named_and_somebody_must_replace_it() {
    let Some(clock) = Clock::new() else { return };
    let plant = Plant::new();
    let maker = |days: u32| {
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout maker.key";
        plant.openssl(&format!("req -new {key} -out maker.csr -subj /CN=serial-1"));
        plant.openssl(&format!(
            "x509 -req -in maker.csr -CA local.pem -CAkey local.key -set_serial {days} \
             -days {days} -extfile server.ext -out maker.pem"
        ));
    };
    write_ca(&plant, 3650);
    maker(30);
    let roots = plant.text("local.pem");
    let mut device = with_manufacturer(clock.device(), plant.folder(), roots).start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let mut module = Module::new(&device, &m1);
    let later = module.lives().ca.1 + TWO_YEARS;
    put_away(&mut device, &clock);
    let enrolled = device.cloud().state().calls.est_enroll;
    set_clock(&device, &clock, later, true);
    let words =
        "certificate \"est-bootstrap-id\", which the EST server is to be shown, is valid from";
    wait_for("the reason", || {
        let line = line(&device, "est-id")?;
        line["lastError"].as_str().is_some_and(|said| said.contains(words)).then_some(())
    });
    assert_eq!(device.cloud().state().calls.est_enroll, enrolled, "nothing to prove it with");
    // Root's daemons may read the files that were there at their start: the same ones.
    maker(3600);
    until_hub(&device);
    until_served(&mut module, &m1, &clock);
}

#[test]
fn by_a_local_ca_that_is_valid_the_provisioning_service_is_shown_a_new_certificate() {
    let Some(clock) = Clock::new() else { return };
    let plant = Plant::new();
    write_ca(&plant, 3650);
    let provisioning = by_certificate(
        "[provisioning.attestation.identity_cert]\nmethod = \"local_ca\"\nexpiry_days = 30\n",
    );
    let tables = format!(
        "{}[edge_ca]\nmethod = \"local_ca\"\nexpiry_days = 20\n",
        local_ca_in_files(&plant)
    );
    let mut device = clock.device().provisioning(&provisioning).tables(&tables).start();
    enrol_by(&device, &plant);
    let m1 = wait_for("an identity", || {
        let shown = device.edgekeep(&["identity", "show"]);
        shown.status.success().then(|| device.add_caller("m1"))
    });
    wait_for_edge_ca(&device);
    let mut module = Module::new(&device, &m1);
    let later = module.lives().ca.1 + TWO_YEARS;
    put_away(&mut device, &clock);
    let _ = m1.sign().expect(200);
    set_clock(&device, &clock, later, true);
    until_hub(&device);
    until_served(&mut module, &m1, &clock);
    assert!(until_planned(&device, "device-id") > 20.0);
    assert!(until_planned(&device, "aziot-edged-ca") > 15.0);
}

#[test]
fn by_a_certificate_in_a_file_that_is_over_the_device_waits_for_another_file() {
    let Some(clock) = Clock::new() else { return };
    let plant = Plant::new();
    write_ca(&plant, 3650);
    let certify = |days: u32| {
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout own.key";
        plant.openssl(&format!("req -new {key} -out own.csr -subj /CN={DEVICE_ID}"));
        plant.openssl(&format!(
            "x509 -req -in own.csr -CA local.pem -CAkey local.key -set_serial {days} \
             -days {days} -extfile server.ext -out own.pem"
        ));
    };
    certify(30);
    let provisioning = by_certificate(&format!(
        "identity_cert = \"file://{0}/own.pem\"\nidentity_pk = \"file://{0}/own.key\"\n",
        plant.folder().display()
    ));
    let mut device = clock.device().provisioning(&provisioning).start();
    enrol_by(&device, &plant);
    let m1 = wait_for("an identity", || {
        let shown = device.edgekeep(&["identity", "show"]);
        shown.status.success().then(|| device.add_caller("m1"))
    });
    wait_for_edge_ca(&device);
    let mut module = Module::new(&device, &m1);
    let later = module.lives().ca.1 + TWO_YEARS;
    put_away(&mut device, &clock);
    set_clock(&device, &clock, later, true);
    until_served(&mut module, &m1, &clock);
    wait_for("the refusal", || {
        let refusals = device.cloud().state().refusals;
        let asked = || {
            let body = json!({ "moduleId": "probe" });
            device.agent().manage("POST", &format!("/identities/?{VERSION}"), Some(body)).status
        };
        let told = refusals.iter().any(|said| said.contains("is not valid now"));
        (asked() != 200 && told).then_some(())
    });
    certify(3600);
    until_hub(&device);
}

#[test]
fn by_a_symmetric_key_the_device_is_back_when_the_service_is_and_its_clock_is_set() {
    let Some(clock) = Clock::new() else { return };
    let mut device = clock.device().start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let mut module = Module::new(&device, &m1);
    let later = module.lives().ca.1 + TWO_YEARS;
    put_away(&mut device, &clock);
    until_served(&mut module, &m1, &clock);
    set_clock(&device, &clock, later, true);
    until_hub(&device);
    until_served(&mut module, &m1, &clock);
}
