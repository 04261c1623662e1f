//! Tests of how the device gets its identity, and keeps it.

use std::time::Instant;

use edgekeep_api::keyd::SignMechanism;
use edgekeep_core::settings::{Provisioning, ReprovisioningMode};
use edgekeep_sim::token::Key;
use edgekeep_sim::{Enrolment, Faults, PresetDevice, RouteFaults};
use http::{Method, StatusCode};
use serde_json::json;

use crate::harness::{DEADLINE, DEVICE_KEY, Device, aziot, cloud, dps, manual};

#[tokio::test]
async fn a_manually_provisioned_device_has_its_identity_at_once_and_offline() {
    let sim = cloud().await;
    let device = Device::new(&sim, manual(&sim)).await;
    let hub = sim.hub_host();
    sim.stop().await;
    let mut device = device;
    device.start().await;
    let identity = aziot(device.identities().device().await.unwrap());
    assert_eq!((identity.hub_name, identity.gateway_host), (hub.clone(), hub));
    assert_eq!((identity.device_id.as_str(), identity.module_id), ("press-05", None));
    // The handle is to the device's key.
    let handle = identity.auth.unwrap().key_handle.unwrap();
    let mechanism = SignMechanism::HmacSha256 { message: b"text".to_vec().into() };
    let signed = device.keys().sign(&handle, mechanism).await.unwrap();
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &DEVICE_KEY);
    assert_eq!(signed, aws_lc_rs::hmac::sign(&key, b"text").as_ref());
}

#[tokio::test]
async fn a_device_is_provisioned_by_the_service_and_keeps_the_identity_over_an_offline_restart() {
    let sim = cloud().await;
    let mut device = Device::started(&sim, dps(&sim)).await;
    let identity = device.until_device(|_| true).await;
    assert_eq!((identity.device_id.as_str(), identity.hub_name), ("press-04", sim.hub_host()));
    device.stop().await;
    sim.stop().await;
    device.start().await;
    assert_eq!(aziot(device.identities().device().await.unwrap()).device_id, "press-04");
}

#[tokio::test]
async fn a_stored_identity_is_not_asked_for_again_unless_always_is_configured() {
    let sim = cloud().await;
    let mut device = Device::started(&sim, dps(&sim)).await;
    device.until_device(|_| true).await;
    let registered = sim.state().calls.dps_register;
    device.restart().await;
    // A round of the refresh has ended: the start is over.
    let lists = sim.state().calls.hub_list;
    device
        .ask(Method::GET, "/identities/modules?api-version=2020-09-01&type=aziot", None)
        .await
        .unwrap();
    assert!(sim.state().calls.hub_list >= lists);
    assert_eq!(sim.state().calls.dps_register, registered);

    device.settings.reprovisioning = ReprovisioningMode::AlwaysOnStartup;
    device.restart().await;
    sim.wait_until(DEADLINE, |state| state.calls.dps_register > registered).await.unwrap();
}

#[tokio::test]
async fn until_it_is_provisioned_the_device_says_why_not_and_recovers_by_itself() {
    let sim = cloud().await;
    let refusing =
        Faults { refuse_registration: Some("not on the list".to_owned()), ..Faults::default() };
    sim.faults(refusing).unwrap();
    let device = Device::started(&sim, dps(&sim)).await;
    sim.wait_until(DEADLINE, |state| state.calls.dps_register >= 2).await.unwrap();
    let path = "/identities/device?api-version=2020-09-01";
    let start = Instant::now();
    let (status, message) =
        device.ask(Method::POST, path, Some(json!({"type": "aziot"}))).await.unwrap_err();
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(
        message.contains("not provisioned yet") && message.contains("not on the list"),
        "{message}"
    );
    assert!(start.elapsed().as_secs() < 1);
    let (status, _) = device
        .ask(Method::GET, "/identities/modules/m?api-version=2020-09-01&type=aziot", None)
        .await
        .unwrap_err();
    assert_eq!(status, StatusCode::BAD_REQUEST);

    sim.faults(Faults::default()).unwrap();
    assert_eq!(device.until_device(|_| true).await.device_id, "press-04");
}

#[tokio::test]
async fn faults_of_the_provisioning_service_are_survived() {
    for fault in [RouteFaults::status(500), RouteFaults::status(429), RouteFaults::dropped()] {
        let sim = cloud().await;
        let faults = Faults {
            dps: RouteFaults { times: Some(2), ..fault },
            polls_assigning: 1,
            ..Faults::default()
        };
        sim.faults(faults).unwrap();
        let device = Device::started(&sim, dps(&sim)).await;
        assert_eq!(device.until_device(|_| true).await.device_id, "press-04");
    }
}

#[tokio::test]
async fn a_new_provisioning_moves_the_device_and_voids_the_modules_of_the_former_one() {
    let sim = cloud().await;
    let device = Device::started(&sim, dps(&sim)).await;
    device.until_device(|_| true).await;
    device.identities().create_module("thermometer").await.unwrap();

    let mut moved = Enrolment::new("press-04", Key::new(DEVICE_KEY.to_vec()).unwrap());
    moved.device_id = Some("press-44".to_owned());
    sim.enrol(moved).unwrap();
    device.identities().reprovision().await.unwrap();
    device.until_device(|identity| identity.device_id == "press-44").await;
    assert_eq!(device.identities().modules().await.unwrap(), []);
}

#[tokio::test]
async fn while_a_new_provisioning_fails_the_device_keeps_its_identity_and_its_modules() {
    let sim = cloud().await;
    let mut device = Device::started(&sim, dps(&sim)).await;
    device.until_device(|_| true).await;
    device.identities().create_module("thermometer").await.unwrap();
    let registered = sim.state().calls.dps_register;
    sim.faults(Faults {
        dps: RouteFaults::status(500),
        hub: RouteFaults::dropped(),
        ..Faults::default()
    })
    .unwrap();
    device.identities().reprovision().await.unwrap();
    sim.wait_until(DEADLINE, |state| state.calls.dps_register >= registered + 2).await.unwrap();
    assert_eq!(aziot(device.identities().device().await.unwrap()).device_id, "press-04");
    assert_eq!(
        aziot(device.identities().module("thermometer").await.unwrap()).device_id,
        "press-04"
    );
    device.restart().await;
    assert_eq!(aziot(device.identities().device().await.unwrap()).device_id, "press-04");
    assert!(device.identities().module("thermometer").await.is_ok());
}

#[tokio::test]
async fn a_device_that_the_hub_does_not_know_any_more_registers_anew() {
    let sim = cloud().await;
    let mut device = Device::started(&sim, dps(&sim)).await;
    device.until_device(|_| true).await;
    device.stop().await;
    sim.remove_device("press-04");
    sim.clear_calls();
    device.start().await;
    sim.wait_until(DEADLINE, |state| state.devices.contains_key("press-04")).await.unwrap();
    assert_eq!(aziot(device.identities().device().await.unwrap()).device_id, "press-04");
}

#[tokio::test]
async fn in_on_error_only_mode_a_hub_that_knew_the_device_and_refuses_it_makes_it_register_nothing()
{
    let sim = cloud().await;
    let mut device = Device::new(&sim, dps(&sim)).await;
    device.settings.reprovisioning = ReprovisioningMode::OnErrorOnly;
    device.start().await;
    device.until_device(|_| true).await;
    sim.wait_until(DEADLINE, |state| state.calls.hub_list >= 1).await.unwrap();
    device.identities().create_module("camera").await.unwrap();
    sim.remove_device("press-04");
    sim.clear_calls();
    let _ = device.identities().create_module("lamp").await.unwrap_err();
    sim.wait_until(DEADLINE, |state| state.calls.hub_put >= 1).await.unwrap();
    assert_eq!(sim.state().calls.dps_register, 0);
    // At the next start the device meets a hub that has never known it: the fallback.
    device.restart().await;
    sim.wait_until(DEADLINE, |state| state.devices.contains_key("press-04")).await.unwrap();
}

#[tokio::test]
async fn killed_at_any_step_of_a_move_the_device_is_the_old_one_or_the_new_one() {
    let sim = cloud().await;
    let mut device = Device::started(&sim, dps(&sim)).await;
    device.until_device(|_| true).await;
    device.identities().create_module("thermometer").await.unwrap();
    let file = device.state_file("device.json");
    let old = std::fs::read(&file).unwrap();

    let mut moved = Enrolment::new("press-04", Key::new(DEVICE_KEY.to_vec()).unwrap());
    moved.device_id = Some("press-44".to_owned());
    sim.enrol(moved).unwrap();
    // Killed after the registration was sent, and then after the poll was: the answers
    // are on their way.
    for polls in [0, 1] {
        sim.clear_calls();
        let slow = RouteFaults { delay_ms: 300, ..RouteFaults::default() };
        sim.faults(Faults { dps: slow, ..Faults::default() }).unwrap();
        device.identities().reprovision().await.unwrap();
        sim.wait_until(DEADLINE, |state| {
            state.calls.dps_register >= 1 && state.calls.dps_operation >= polls
        })
        .await
        .unwrap();
        device.kill().await;
        assert_eq!(std::fs::read(&file).unwrap(), old);
        sim.faults(Faults::default()).unwrap();
        device.start().await;
        assert_eq!(aziot(device.identities().device().await.unwrap()).device_id, "press-04");
    }
    // Killed right after the replacement was served: the file is the new one, and the
    // modules' file still the old one's.
    let modules = std::fs::read(device.state_file("modules.json")).unwrap();
    device.identities().reprovision().await.unwrap();
    device.until_device(|identity| identity.device_id == "press-44").await;
    device.kill().await;
    std::fs::write(device.state_file("modules.json"), modules).unwrap();
    sim.faults(Faults { hub: RouteFaults::dropped(), ..Faults::default() }).unwrap();
    device.start().await;
    assert_eq!(aziot(device.identities().device().await.unwrap()).device_id, "press-44");
    assert_eq!(device.identities().modules().await.unwrap(), []);
}

#[tokio::test]
async fn a_damaged_identity_file_is_set_aside_and_the_device_provisions_anew() {
    let sim = cloud().await;
    let mut device = Device::started(&sim, dps(&sim)).await;
    device.until_device(|_| true).await;
    device.stop().await;
    std::fs::write(device.state_file("device.json"), "half a fi").unwrap();
    device.start().await;
    assert_eq!(device.until_device(|_| true).await.device_id, "press-04");
    assert_eq!(std::fs::read(device.state_file("device.json.damaged-1")).unwrap(), b"half a fi");
}

#[tokio::test]
async fn another_manual_device_in_the_settings_counts_from_the_next_start() {
    let sim = cloud().await;
    let mut device = Device::started(&sim, manual(&sim)).await;
    sim.add_device(PresetDevice::new("press-06", Key::new(DEVICE_KEY.to_vec()).unwrap())).unwrap();
    device.identities().create_module("thermometer").await.unwrap();
    if let Provisioning::Manual { device_id, .. } = &mut device.settings.provisioning {
        *device_id = "press-06".parse().unwrap();
    }
    device.restart().await;
    device.until_device(|identity| identity.device_id == "press-06").await;
    assert_eq!(device.identities().modules().await.unwrap(), []);
}

#[tokio::test]
async fn without_a_source_there_are_no_identities_at_a_hub_and_nothing_to_provision() {
    let sim = cloud().await;
    let device = Device::started(&sim, Provisioning::None).await;
    for (method, path) in [
        (Method::GET, "/identities/identity?api-version=2020-09-01"),
        (Method::POST, "/identities/device/reprovision?api-version=2020-09-01"),
    ] {
        let (status, message) = device.ask(method, path, None).await.unwrap_err();
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(message.contains("local identities only"), "{message}");
    }
    let info = device
        .ask(Method::GET, "/identities/provisioning?api-version=2021-12-01", None)
        .await
        .unwrap();
    assert_eq!(info, json!({"source": "none"}));
    assert_eq!(sim.state().calls.total(), 0);
}
