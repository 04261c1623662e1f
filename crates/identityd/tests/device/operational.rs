//! Tests of certificates that the provisioning service issues with a registration, by
//! which the hub knows the device.

use std::time::{Duration, Instant};

use edgekeep_api::identityd::{AuthenticationKind, ProvisioningStand};
use edgekeep_core::credentials::{Limits, read_certificates};
use edgekeep_core::renewal::Policy;
use edgekeep_core::settings::{
    Issuance, IssuanceMethod, OperationalCertificate, Provisioning, ReprovisioningMode,
};
use edgekeep_sim::token::Key;
use edgekeep_sim::{
    Enrolment, Faults, IssuedFault, PresetDevice, Proof, RouteFaults, Simulator, SimulatorOptions,
};

use crate::harness::{DEADLINE, DEVICE_KEY, Device, dps};

const ID: &str = "device-operational";
const NEXT: &str = "device-operational-temp";

fn enrolled(policy: Option<&str>) -> Enrolment {
    let key = Key::new(DEVICE_KEY.to_vec()).unwrap();
    let certificate_policy_name = policy.map(str::to_owned);
    Enrolment { certificate_policy_name, ..Enrolment::new("press-04", key) }
}

async fn cloud(policy: Option<&str>) -> Simulator {
    let enrolments = vec![enrolled(policy)];
    Simulator::start(SimulatorOptions { enrolments, ..SimulatorOptions::default() }).await.unwrap()
}

/// A device that asks for a certificate with its registration, not started yet.
async fn device(sim: &Simulator) -> Device {
    let mut provisioning = dps(sim);
    if let Provisioning::Dps { operational, .. } = &mut provisioning {
        *operational = Some(OperationalCertificate { api_version: "2026-11-01".to_owned() });
    }
    let mut device = Device::new(sim, provisioning).await;
    let renewal = Some(Policy { rotate_key: true, ..Policy::default() });
    let method = IssuanceMethod::Dps;
    let issuance = Issuance { method, common_name: None, expiry_days: None, renewal };
    device.settings.cert_issuance.insert(ID.parse().unwrap(), issuance);
    device
}

async fn stand(device: &Device) -> ProvisioningStand {
    device.identities().provisioning_stand().await.unwrap()
}

/// Waits until the stand of provisioning is as `wanted`.
async fn until(device: &Device, wanted: impl Fn(&ProvisioningStand) -> bool) -> ProvisioningStand {
    let begun = Instant::now();
    loop {
        let stand = stand(device).await;
        if wanted(&stand) {
            return stand;
        }
        assert!(begun.elapsed() < DEADLINE, "still {stand:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn thumbprint(stand: &ProvisioningStand) -> Option<String> {
    stand.operational_certificate.as_ref()?.thumbprint.clone()
}

/// Waits for the first certificate.
async fn until_issued(device: &Device) -> String {
    let stand =
        until(device, |stand| thumbprint(stand).is_some() && stand.activity == "idle").await;
    thumbprint(&stand).unwrap()
}

/// Waits until the hub takes the device.
async fn until_module(device: &Device, module: &str) {
    let begun = Instant::now();
    loop {
        let made = device.identities().create_module(module).await;
        if made.is_ok() {
            return;
        }
        assert!(begun.elapsed() < DEADLINE, "no module: {made:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_registration_brings_the_certificate_by_which_the_hub_knows_the_device() {
    let sim = cloud(Some("presses")).await;
    let mut device = device(&sim).await;
    device.start().await;
    let identity = device.until_device(|_| true).await;
    let auth = identity.auth.unwrap();
    assert_eq!((auth.kind, auth.cert_id.as_deref()), (AuthenticationKind::X509, Some(ID)));
    assert!(auth.key_handle.is_some());
    until_module(&device, "camera").await;
    let state = sim.state();
    assert_eq!(state.refusals, Vec::<String>::new(), "no token at the hub");
    assert_eq!(state.calls.dps_register, 1, "one registration, one certificate");
    // The whole chain, the device's own first and the root last.
    let pem = device.certificates().load(ID).await.unwrap();
    let chain = read_certificates(pem.as_bytes(), &Limits::FILE).certificates;
    assert_eq!(chain.len(), 3);
    assert!(chain[2].is_self_issued() && chain[0].says_issued_by(&chain[1]));
    device.keys().load_key_pair(ID).await.unwrap();
    device.keys().load_key_pair(NEXT).await.unwrap_err();
    let lines = device.certificates().list().await.unwrap().certificates;
    let line = lines.iter().find(|line| line.id == ID).unwrap();
    assert_eq!((line.method.as_str(), line.renewal.as_str()), ("dps", "planned"));
    // A start with everything in place asks nobody.
    let before = until_issued(&device).await;
    device.restart().await;
    device.until_device(|_| true).await;
    until_module(&device, "press").await;
    assert_eq!(until_issued(&device).await, before);
    assert_eq!(sim.state().calls.dps_register, 1);
}

#[tokio::test]
async fn an_enrolment_without_a_policy_is_named_and_no_other_proof_takes_the_place() {
    let sim = cloud(None).await;
    let mut device = device(&sim).await;
    device.start().await;
    let stand = until(&device, |stand| !stand.errors.is_empty()).await;
    let reason = &stand.errors[0].reason;
    assert!(reason.contains("issued no certificate") && reason.contains("policy"), "{reason}");
    assert_eq!((&stand.hub_name, thumbprint(&stand)), (&None, None));
    assert_eq!(stand.operational_certificate.unwrap().id, ID);
    let error = device.identities().device().await.unwrap_err().to_string();
    assert!(error.contains("issued no certificate"), "{error}");
    let calls = sim.state().calls;
    assert_eq!((calls.hub_list, calls.hub_put), (0, 0), "the hub was shown nothing");
    // The operator adds the policy.
    sim.enrol(enrolled(Some("presses"))).unwrap();
    until_issued(&device).await;
    until_module(&device, "camera").await;
    assert_eq!(sim.state().refusals, Vec::<String>::new());
}

#[tokio::test]
async fn an_identity_with_a_token_stays_until_there_is_a_certificate_that_works() {
    let sim = cloud(None).await;
    let mut device = device(&sim).await;
    let with = device.settings.provisioning.clone();
    let issuance = std::mem::take(&mut device.settings.cert_issuance);
    device.settings.provisioning = dps(&sim);
    device.start().await;
    device.until_device(|_| true).await;
    until_module(&device, "camera").await;
    device.stop().await;
    // The configuration asks for a certificate now, and the enrolment has no policy.
    (device.settings.provisioning, device.settings.cert_issuance) = (with, issuance);
    device.start().await;
    let stand = until(&device, |stand| !stand.errors.is_empty()).await;
    assert!(stand.errors[0].reason.contains("issued no certificate"), "{stand:?}");
    assert_eq!(stand.device_id.as_deref(), Some("press-04"), "known, and its modules with it");
    device.identities().module("camera").await.unwrap();
    sim.enrol(enrolled(Some("presses"))).unwrap();
    until_issued(&device).await;
    until_module(&device, "press").await;
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_with_its_reason_and_the_old_one_stays() {
    let sim = cloud(Some("presses")).await;
    let mut device = device(&sim).await;
    device.start().await;
    let first = until_issued(&device).await;
    until_module(&device, "camera").await;
    let point = device.keys().load_key_pair(ID).await.unwrap();
    let point = device.keys().parameter(&point, "ec-point").await.unwrap();
    for (fault, words) in [
        (IssuedFault::WrongKey, "none of its certificates belongs to the key of the request"),
        (IssuedFault::WrongName, "does not name \"press-04\""),
        (IssuedFault::Expired, "its certificate ended at"),
        (IssuedFault::NotYetValid, "is valid from"),
        (IssuedFault::WrongChain, "no certificate that was sent leads to one of them"),
        (IssuedFault::Authority, "a certificate of a CA"),
        (IssuedFault::LeafAlone, "does not chain to the last certificate that came with it"),
        (IssuedFault::NotBase64, "an issued certificate that is not base64"),
        (IssuedFault::Junk, "certificate 1 of those that the provisioning service issued"),
        (IssuedFault::Pem, "an issued certificate that is not base64"),
        (IssuedFault::Oversized, "an issued certificate of more than 16 KiB"),
        (IssuedFault::Many, "more than 10 issued certificates"),
        (IssuedFault::NoList, "issued certificates that are no list"),
    ] {
        sim.faults(Faults { issued: Some(fault), ..Faults::default() }).unwrap();
        let begun = Instant::now();
        let error = loop {
            let error = device.certificates().renew(ID).await.unwrap_err().to_string();
            // The reason may be that of the fault before, while its pause lasts.
            if error.contains(words) {
                break error;
            }
            assert!(begun.elapsed() < DEADLINE, "{fault:?}: {words:?} is not in: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let stand = stand(&device).await;
        assert_eq!(thumbprint(&stand), Some(first.clone()), "{fault:?}: {error}");
        assert_eq!(stand.device_id.as_deref(), Some("press-04"), "{fault:?}");
        let key = device.keys().load_key_pair(ID).await.unwrap();
        assert_eq!(device.keys().parameter(&key, "ec-point").await.unwrap(), point);
        // The hub has known the old certificate all the while.
        until_module(&device, &format!("{fault:?}")).await;
    }
    assert_eq!(sim.state().refusals, Vec::<String>::new());
    sim.faults(Faults::default()).unwrap();
    until(&device, |stand| thumbprint(stand).is_some_and(|it| it != first)).await;
}

#[tokio::test]
async fn a_certificate_that_the_hub_does_not_take_stays_out_until_it_does() {
    let sim = cloud(Some("presses")).await;
    let fault = Some(IssuedFault::UnknownToHub);
    sim.faults(Faults { issued: fault, ..Faults::default() }).unwrap();
    let mut device = device(&sim).await;
    device.start().await;
    let stand = until(&device, |stand| !stand.errors.is_empty()).await;
    let reason = &stand.errors[0].reason;
    assert!(reason.contains("is refused at the hub"), "{reason}");
    assert_eq!((&stand.hub_name, thumbprint(&stand)), (&None, None));
    device.certificates().load(ID).await.unwrap_err();
    sim.faults(Faults::default()).unwrap();
    until_issued(&device).await;
    until_module(&device, "camera").await;
}

#[tokio::test]
async fn a_certificate_is_renewed_before_its_end_with_a_new_key_by_registering_again() {
    let sim = cloud(Some("presses")).await;
    // Ends so soon that the plan has it renewed at once, and again and again.
    sim.faults(Faults { issued_validity_sec: Some(8), ..Faults::default() }).unwrap();
    let mut device = device(&sim).await;
    device.settings.reprovisioning = ReprovisioningMode::OnErrorOnly;
    device.start().await;
    let mut last = until_issued(&device).await;
    let mut points = Vec::new();
    for _ in 0..2 {
        let key = device.keys().load_key_pair(ID).await.unwrap();
        points.push(device.keys().parameter(&key, "ec-point").await.unwrap());
        let is_next = |stand: &ProvisioningStand| {
            stand.activity == "idle" && thumbprint(stand).is_some_and(|it| it != last)
        };
        let next = until(&device, is_next).await;
        last = thumbprint(&next).unwrap();
        assert_eq!(next.errors, Vec::new());
    }
    assert_ne!(points[0], points[1]);
    until_module(&device, "camera").await;
}

#[tokio::test]
async fn after_its_end_the_onboarding_credential_brings_a_new_one() {
    let sim = cloud(Some("presses")).await;
    sim.faults(Faults { issued_validity_sec: Some(3), ..Faults::default() }).unwrap();
    let mut device = device(&sim).await;
    device.start().await;
    let first = until_issued(&device).await;
    device.stop().await;
    // Over, by the clock of this machine.
    tokio::time::sleep(Duration::from_secs(4)).await;
    sim.faults(Faults::default()).unwrap();
    device.start().await;
    until(&device, |stand| thumbprint(stand).is_some_and(|it| it != first)).await;
    until_module(&device, "camera").await;
}

#[tokio::test]
async fn a_device_whose_certificate_is_revoked_at_the_hub_registers_again() {
    let sim = cloud(Some("presses")).await;
    let mut device = device(&sim).await;
    device.start().await;
    let first = until_issued(&device).await;
    until_module(&device, "camera").await;
    let other = Proof::thumbprint(b"another certificate");
    sim.add_device(PresetDevice::with_proof("press-04", other)).unwrap();
    let _ = device.identities().create_module("press").await;
    until(&device, |stand| thumbprint(stand).is_some_and(|it| it != first)).await;
    until_module(&device, "press").await;
}

#[tokio::test]
async fn a_hub_that_cannot_be_reached_keeps_a_valid_certificate_in_place() {
    let sim = cloud(Some("presses")).await;
    let mut device = device(&sim).await;
    device.start().await;
    let first = until_issued(&device).await;
    let hub = RouteFaults::status(503);
    sim.faults(Faults { hub, ..Faults::default() }).unwrap();
    let error = device.certificates().renew(ID).await.unwrap_err().to_string();
    assert!(error.contains("could not be tried at the hub"), "{error}");
    assert_eq!(thumbprint(&stand(&device).await), Some(first.clone()));
    sim.faults(Faults::default()).unwrap();
    until(&device, |stand| thumbprint(stand).is_some_and(|it| it != first)).await;
    until_module(&device, "camera").await;
}

#[tokio::test]
async fn without_any_certificate_one_is_taken_although_the_hub_is_away() {
    let sim = cloud(Some("presses")).await;
    let hub = RouteFaults::status(503);
    sim.faults(Faults { hub, ..Faults::default() }).unwrap();
    let mut device = device(&sim).await;
    device.start().await;
    until_issued(&device).await;
    sim.faults(Faults::default()).unwrap();
    until_module(&device, "camera").await;
}

#[tokio::test]
async fn a_device_is_killed_at_any_moment_of_a_renewal_and_comes_right() {
    let sim = cloud(Some("presses")).await;
    let mut device = device(&sim).await;
    device.start().await;
    let mut last = until_issued(&device).await;
    // The service decides at once, so that a renewal is short.
    sim.faults(Faults { poll_after_sec: Some(0), ..Faults::default() }).unwrap();
    let mut renewed = 0;
    // On a busy machine a renewal takes longer than the first pauses.
    for step in 0..48_u64 {
        if step >= 16 && renewed > 0 {
            break;
        }
        let client = device.certificates();
        let asked = tokio::spawn(async move { client.renew(ID).await });
        tokio::time::sleep(Duration::from_millis(step * 25)).await;
        device.kill().await;
        asked.abort();
        device.start().await;
        let now = until_issued(&device).await;
        renewed += usize::from(now != last);
        last = now;
        // Certificate and key go together: the hub takes them.
        until_module(&device, &format!("module-{step}")).await;
    }
    assert!(renewed > 0, "no renewal came to its end between two kills");
    assert_eq!(sim.state().refusals, Vec::<String>::new());
}

#[tokio::test]
async fn a_service_that_knows_no_requests_for_certificates_is_told_from_one_that_issues() {
    let sim = cloud(Some("presses")).await;
    let mut device = device(&sim).await;
    if let Provisioning::Dps { operational: Some(it), .. } = &mut device.settings.provisioning {
        it.api_version = "2021-10-01".to_owned();
    }
    device.start().await;
    let stand = until(&device, |stand| !stand.errors.is_empty()).await;
    assert!(stand.errors[0].reason.contains("the service does not know them"), "{stand:?}");
}
