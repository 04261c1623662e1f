//! The routes of the identity API: success, wrong caller, bad input; and what happens to
//! them while the hub is in trouble.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_api::client::ClientError;
use edgekeep_api::keyd::SignMechanism;
use edgekeep_core::settings::{
    IdentityKind, IdentityPrincipal, Issuance, IssuanceMethod, LocalCa, PreloadedCert,
};
use edgekeep_sim::{Faults, Keys, RouteFaults, Simulator};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Device, aziot, cloud, dps, manual, uid};

fn hub_faults(sim: &Simulator, hub: RouteFaults) {
    sim.faults(Faults { hub, ..Faults::default() }).unwrap();
}

fn status(error: &ClientError) -> StatusCode {
    error.status().unwrap()
}

/// The key that the hub has for a module.
fn key_at_hub(sim: &Simulator, module: &str) -> Value {
    let snapshot = serde_json::to_value(sim.snapshot()).unwrap();
    snapshot["devices"]["press-05"]["modules"][module]["credential"]["keys"]["primary"].clone()
}

#[tokio::test]
async fn a_module_is_created_with_keys_that_its_handle_signs_with() {
    let sim = cloud().await;
    let device = Device::started(&sim, manual(&sim)).await;
    let created = aziot(device.identities().create_module("$edgeHub").await.unwrap());
    assert_eq!(
        (created.device_id.as_str(), created.module_id.as_deref()),
        ("press-05", Some("$edgeHub"))
    );
    let module = &sim.state().devices["press-05"].modules["$edgeHub"];
    assert_eq!((module.keys, Some(&module.generation_id)), (Keys::Given, created.gen_id.as_ref()));

    let found = aziot(device.identities().module("$edgeHub").await.unwrap());
    let handle = found.auth.unwrap().key_handle.unwrap();
    let key = device.keys().export_derived_key(&handle).await.unwrap();
    assert_eq!(Value::from(STANDARD.encode(key)), key_at_hub(&sim, "$edgeHub"));
}

#[tokio::test]
async fn modules_are_listed_without_their_credentials_and_deleted() {
    let sim = cloud().await;
    let device = Device::started(&sim, manual(&sim)).await;
    for module in ["a", "b"] {
        device.identities().create_module(module).await.unwrap();
    }
    let listed = device.identities().modules().await.unwrap();
    let listed: Vec<_> = listed.into_iter().map(aziot).collect();
    assert_eq!(
        listed.iter().filter_map(|it| it.module_id.as_deref()).collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert!(listed.iter().all(|it| it.auth.is_none() && it.gen_id.is_some()));

    device.identities().delete_module("a").await.unwrap();
    assert!(!sim.state().devices["press-05"].modules.contains_key("a"));
    assert_eq!(status(&device.identities().module("a").await.unwrap_err()), StatusCode::NOT_FOUND);
    assert_eq!(
        status(&device.identities().delete_module("a").await.unwrap_err()),
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn creating_a_module_again_repairs_its_keys_and_keeps_its_generation() {
    let sim = cloud().await;
    let device = Device::started(&sim, manual(&sim)).await;
    let first = aziot(device.identities().create_module("m").await.unwrap());
    let second = aziot(device.identities().create_module("m").await.unwrap());
    assert_eq!(first.gen_id, second.gen_id);
}

#[tokio::test]
async fn an_update_follows_a_module_that_was_made_anew_and_misses_one_that_is_gone() {
    let sim = cloud().await;
    let device = Device::started(&sim, manual(&sim)).await;
    let first = aziot(device.identities().create_module("m").await.unwrap());
    sim.remove_module("press-05", "m");
    assert_eq!(
        status(&device.identities().update_module("m").await.unwrap_err()),
        StatusCode::NOT_FOUND
    );
    assert_eq!(status(&device.identities().module("m").await.unwrap_err()), StatusCode::NOT_FOUND);
    device.identities().create_module("m").await.unwrap();
    let updated = aziot(device.identities().update_module("m").await.unwrap());
    assert_ne!(first.gen_id, updated.gen_id);
}

#[tokio::test]
async fn the_agent_s_own_identity_comes_into_being_by_its_update() {
    let sim = cloud().await;
    let device = Device::started(&sim, manual(&sim)).await;
    let updated = aziot(device.identities().update_module("$edgeAgent").await.unwrap());
    assert!(updated.gen_id.is_some());
    assert_eq!(sim.state().devices["press-05"].modules["$edgeAgent"].keys, Keys::Given);
}

#[tokio::test]
async fn a_module_that_others_made_at_the_hub_is_found_when_it_is_missed() {
    let sim = cloud().await;
    let device = Device::started(&sim, manual(&sim)).await;
    let other = Device::started(&sim, manual(&sim)).await;
    sim.wait_until(DEADLINE, |state| state.calls.hub_list >= 2).await.unwrap();
    other.identities().create_module("late").await.unwrap();
    // A list that is younger than the least gap counts as the truth; then the hub is
    // asked.
    let start = Instant::now();
    while let Err(error) = device.identities().module("late").await {
        assert!(start.elapsed() < DEADLINE, "{error}");
    }
}

#[tokio::test]
async fn however_often_a_missing_module_is_asked_for_the_hub_is_asked_rarely() {
    let sim = cloud().await;
    let device = Device::started(&sim, manual(&sim)).await;
    device.identities().create_module("m").await.unwrap();
    let (start, lists) = (Instant::now(), sim.state().calls.hub_list);
    for _ in 0..200 {
        let error = device.identities().module("missing").await.unwrap_err();
        assert_eq!(status(&error), StatusCode::NOT_FOUND);
        assert!(error.to_string().contains("has no identity at the hub"), "{error}");
    }
    // The least gap of these tests is 50 ms.
    let allowed = u64::try_from(start.elapsed().as_millis() / 50).unwrap() + 2;
    let asked = sim.state().calls.hub_list - lists;
    assert!(asked <= allowed.min(100), "{asked} lists, {allowed} allowed");
}

#[tokio::test]
async fn offline_everything_that_is_known_is_answered_also_after_a_restart() {
    let sim = cloud().await;
    let mut device = Device::started(&sim, manual(&sim)).await;
    let known = aziot(device.identities().create_module("$edgeAgent").await.unwrap());
    device.stop().await;
    sim.stop().await;
    device.start().await;

    let start = Instant::now();
    let found = aziot(device.identities().module("$edgeAgent").await.unwrap());
    let updated = aziot(device.identities().update_module("$edgeAgent").await.unwrap());
    assert_eq!((&found.gen_id, &updated.gen_id), (&known.gen_id, &known.gen_id));
    assert!(found.auth.is_some() && updated.auth.is_some());
    assert_eq!(device.identities().modules().await.unwrap().len(), 1);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());

    let error = device.identities().create_module("new").await.unwrap_err();
    assert_eq!(status(&error), StatusCode::NOT_FOUND);
    assert!(error.to_string().contains("cannot be reached"), "{error}");
    assert_eq!(
        status(&device.identities().delete_module("$edgeAgent").await.unwrap_err()),
        StatusCode::NOT_FOUND
    );
    assert!(device.identities().module("$edgeAgent").await.is_ok(), "not deleted, so still known");
}

#[tokio::test]
async fn a_hub_that_does_not_answer_delays_nobody_who_asks_for_what_is_known() {
    let sim = cloud().await;
    let device = Device::started(&sim, manual(&sim)).await;
    device.identities().create_module("m").await.unwrap();
    hub_faults(&sim, RouteFaults { delay_ms: 60_000, ..RouteFaults::default() });
    let start = Instant::now();
    device.identities().module("m").await.unwrap();
    device.identities().device().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    device.identities().update_module("m").await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

#[tokio::test]
async fn what_was_answered_from_memory_is_made_good_at_the_hub_later() {
    let sim = cloud().await;
    let device = Device::started(&sim, manual(&sim)).await;
    device.identities().create_module("m").await.unwrap();
    for fault in [RouteFaults::status(500), RouteFaults::status(429), RouteFaults::dropped()] {
        hub_faults(&sim, fault);
        sim.clear_calls();
        device.identities().update_module("m").await.unwrap();
        sim.wait_until(DEADLINE, |state| state.calls.hub_list >= 2).await.unwrap();
        sim.faults(Faults::default()).unwrap();
        let got = sim.state().calls.hub_get;
        sim.wait_until(DEADLINE, |state| state.calls.hub_get > got).await.unwrap();
    }
}

#[tokio::test]
async fn requests_that_cannot_be_right_are_refused_with_the_reason() {
    let sim = cloud().await;
    let device = Device::started(&sim, manual(&sim)).await;
    let body = || Some(json!({"type": "aziot", "moduleId": "m"}));
    let bad = StatusCode::BAD_REQUEST;
    for (method, path, body, expected, reason) in [
        (Method::GET, "/identities/modules", None, bad, "missing parameter: type"),
        (Method::GET, "/identities/modules?type=other", None, bad, "invalid parameter: type"),
        (Method::GET, "/identities/modules?type=local", None, bad, "invalid parameter: type"),
        (Method::GET, "/identities/modules/m", None, bad, "missing parameter: type"),
        (Method::GET, "/identities/modules/m?type=x", None, bad, "invalid parameter: type"),
        (
            Method::GET,
            "/identities/modules/..%2Fx?type=aziot",
            None,
            bad,
            "module id has a character",
        ),
        (Method::GET, "/identities/modules/m?type=local", None, bad, "no principal"),
        (Method::PUT, "/identities/modules/m", body(), bad, "missing parameter: type"),
        (Method::PUT, "/identities/modules/m?type=local", body(), bad, "invalid parameter: type"),
        (
            Method::PUT,
            "/identities/modules/a%20b?type=aziot",
            body(),
            bad,
            "module id has a character",
        ),
        (
            Method::PUT,
            "/identities/modules/m?type=aziot",
            None,
            StatusCode::UNPROCESSABLE_ENTITY,
            "JSON breaks off",
        ),
        (Method::DELETE, "/identities/modules/m", None, bad, "missing parameter: type"),
        (
            Method::DELETE,
            "/identities/modules/a%3Fb?type=aziot",
            None,
            bad,
            "module id has a character",
        ),
        (Method::POST, "/identities/modules", None, bad, "missing request body"),
        (
            Method::POST,
            "/identities/modules",
            Some(json!({"type": "aziot"})),
            StatusCode::UNPROCESSABLE_ENTITY,
            "moduleId",
        ),
        (
            Method::POST,
            "/identities/modules",
            Some(json!({"type": "x", "moduleId": "m"})),
            bad,
            "invalid parameter: type",
        ),
        (
            Method::POST,
            "/identities/modules",
            Some(json!({"type": "aziot", "moduleId": ""})),
            bad,
            "module id is empty",
        ),
        (
            Method::POST,
            "/identities/modules",
            Some(json!({"type": "local", "moduleId": "m"})),
            bad,
            "[localid] domain",
        ),
        (Method::POST, "/identities/device", None, bad, "missing request body"),
        (Method::DELETE, "/identities/device", None, bad, "method not allowed"),
    ] {
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}api-version=2020-09-01");
        let (status, message) = device.ask(method.clone(), &path, body).await.unwrap_err();
        assert_eq!(status, expected, "{method} {path}: {message}");
        assert!(message.contains(reason), "{method} {path}: {message}");
    }
    assert_eq!(sim.state().calls.hub_put, 0);
}

#[tokio::test]
async fn a_module_principal_gets_its_own_identity_and_nothing_else() {
    let sim = cloud().await;
    let mut device = Device::new(&sim, manual(&sim)).await;
    let scanner = |kinds: &[IdentityKind]| IdentityPrincipal {
        uid: uid(),
        name: "scanner".to_owned(),
        kinds: kinds.to_vec(),
    };
    device.settings.principals = vec![scanner(&[IdentityKind::Module])];
    device.start().await;
    // The identity was made for it, without anybody's asking.
    let own =
        device.ask(Method::GET, "/identities/identity?api-version=2020-09-01", None).await.unwrap();
    assert_eq!(own["spec"]["moduleId"], "scanner");
    assert_eq!(own["spec"]["auth"]["type"], "sas");
    assert!(device.identities().module("scanner").await.is_ok());

    let body = || Some(json!({"type": "aziot", "moduleId": "m"}));
    for (method, path, body) in [
        (Method::GET, "/identities/modules?type=aziot", None),
        (Method::GET, "/identities/modules/other?type=aziot", None),
        (Method::GET, "/identities/modules/scanner?type=local", None),
        (Method::PUT, "/identities/modules/scanner?type=aziot", body()),
        (Method::DELETE, "/identities/modules/scanner?type=aziot", None),
        (Method::POST, "/identities/modules?", body()),
        (Method::POST, "/identities/device?", body()),
        (Method::POST, "/identities/device/reprovision?", body()),
    ] {
        let path = format!("{path}&api-version=2020-09-01");
        let refused = device.ask(method.clone(), &path, body).await.unwrap_err();
        assert_eq!(
            refused,
            (StatusCode::UNAUTHORIZED, "unauthorized".to_owned()),
            "{method} {path}"
        );
    }
    let trail = std::fs::read_to_string(device.state_file("audit.jsonl")).unwrap();
    assert_eq!(trail.lines().count(), 8, "{trail}");
    assert!(
        trail.contains("\"action\":\"DELETE /identities/modules/{id}\",\"object\":\"scanner\""),
        "{trail}"
    );

    // A principal that is not configured any more loses its identity.
    device.settings.principals = vec![scanner(&[])];
    device.restart().await;
    sim.wait_until(DEADLINE, |state| state.devices["press-05"].modules.is_empty()).await.unwrap();
}

#[tokio::test]
async fn a_stranger_gets_nothing_but_what_is_open_to_everyone() {
    let sim = cloud().await;
    let mut device = Device::new(&sim, manual(&sim)).await;
    // Whoever runs the test has no right: an entry with a kind that fits nothing below.
    let kinds = vec![IdentityKind::Local];
    device.settings.principals =
        vec![IdentityPrincipal { uid: uid(), name: "nobody".to_owned(), kinds }];
    device.start().await;
    for path in [
        "/identities/modules?type=aziot&",
        "/identities/modules/m?type=aziot&",
        "/identities/modules/nobody?type=aziot&",
    ] {
        let (status, _) = device
            .ask(Method::GET, &format!("{path}api-version=2020-09-01"), None)
            .await
            .unwrap_err();
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let bundle =
        device.ask(Method::GET, "/trust-bundle?api-version=2020-09-01", None).await.unwrap();
    assert_eq!(bundle, json!({"certificate": ""}));
    assert!(device.identities().provisioning().await.is_ok());
}

#[tokio::test]
async fn provisioning_is_described_from_the_version_that_introduced_it() {
    let sim = cloud().await;
    let device = Device::started(&sim, dps(&sim)).await;
    let path = |version| format!("/identities/provisioning?api-version={version}");
    let info = device.ask(Method::GET, &path("2022-08-01"), None).await.unwrap();
    let expected = json!({
        "source": "dps", "auth": "symmetric_key", "endpoint": sim.dps_endpoint(), "scope_id": "0ne00000001",
        "registration_id": "press-04", "payload": null,
    });
    assert_eq!(info, expected);
    let (status, _) = device.ask(Method::GET, &path("2020-09-01"), None).await.unwrap_err();
    assert_eq!(status, StatusCode::NOT_FOUND);
    let device = Device::started(&sim, manual(&sim)).await;
    let info = device.ask(Method::GET, &path("2021-12-01"), None).await.unwrap();
    assert_eq!(info, json!({"source": "manual", "auth": "sas"}));
}

#[tokio::test]
async fn keyd_may_be_away_for_a_while_and_come_back() {
    let sim = cloud().await;
    let mut device = Device::started(&sim, manual(&sim)).await;
    device.identities().create_module("m").await.unwrap();
    device.restart_keyd().await;
    assert!(device.identities().module("m").await.is_ok());
    device.identities().create_module("n").await.unwrap();
    device.stop_keyd().await;
    assert!(device.identities().module("m").await.is_ok(), "its handle is known");
    let error = device.identities().create_module("o").await.unwrap_err();
    assert_eq!(status(&error), StatusCode::NOT_FOUND);
    assert!(error.to_string().contains("is keyd running"), "{error}");
}

#[tokio::test]
async fn a_handle_that_keyd_stopped_accepting_is_not_handed_out_again() {
    let sim = cloud().await;
    let mut device = Device::started(&sim, manual(&sim)).await;
    let handle = |identity| aziot(identity).auth.unwrap().key_handle.unwrap();
    let message = || SignMechanism::HmacSha256 { message: b"m".to_vec().into() };
    let old = [
        handle(device.identities().create_module("m").await.unwrap()),
        handle(device.identities().device().await.unwrap()),
    ];
    let mut signed = Vec::new();
    for handle in &old {
        signed.push(device.keys().sign(handle, message()).await.unwrap());
    }
    // Handles of a day are none for a keyd that makes them for an hour.
    device.handle_lifetime_sec = Some(3600);
    device.restart_keyd().await;
    for handle in &old {
        let error = device.keys().sign(handle, message()).await.unwrap_err();
        assert!(error.to_string().contains("parameter \"handle\" has an invalid value"), "{error}");
    }
    let new = [
        handle(device.identities().module("m").await.unwrap()),
        handle(device.identities().device().await.unwrap()),
    ];
    for (handle, signed) in new.iter().zip(signed) {
        assert_eq!(device.keys().sign(handle, message()).await.unwrap(), signed, "the same keys");
    }
    // What identityd does for itself goes on as well.
    device.identities().create_module("n").await.unwrap();
}

#[tokio::test]
async fn in_a_nested_installation_the_parent_is_the_gateway() {
    let sim = cloud().await;
    let mut device = Device::new(&sim, manual(&sim)).await;
    let parent = format!("127.0.0.1:{}", sim.port());
    device.settings.parent_hostname = Some(parent.clone());
    device.start().await;
    let identity = aziot(device.identities().create_module("m").await.unwrap());
    assert_eq!((identity.gateway_host, identity.hub_name), (parent, sim.hub_host()));
}

#[tokio::test]
async fn a_local_identity_is_a_key_and_a_certificate_of_this_device_s_ca() {
    let sim = cloud().await;
    let mut device = Device::new(&sim, manual(&sim)).await;
    let issuance =
        |method| Issuance { method, common_name: None, expiry_days: Some(7), renewal: None };
    let settings = &mut device.settings;
    settings.localid_domain = Some("plant7.example".to_owned());
    settings.cert_issuance.insert("updater".parse().unwrap(), issuance(IssuanceMethod::LocalCa));
    settings
        .cert_issuance
        .insert("local-ca".parse().unwrap(), issuance(IssuanceMethod::SelfSigned));
    settings.local_ca =
        Some(LocalCa { cert: "local-ca".parse().unwrap(), key: "local-ca".parse().unwrap() });
    settings.preloaded_certs.insert(
        "aziot-edged-trust-bundle".parse().unwrap(),
        PreloadedCert::List(vec![
            "local-ca".parse().unwrap(),
            "trust-bundle-user".parse().unwrap(),
        ]),
    );
    device.start().await;
    let ca = crate::certificates::self_signed_ca(
        &mut device,
        "local-ca",
        &rcgen::KeyPair::generate().unwrap(),
    )
    .await;

    let body = json!({"type": "local", "moduleId": "updater", "localIdOpts": {"type": "x509", "attributes": "server"}});
    let answer = device
        .ask(Method::POST, "/identities/modules?api-version=2020-09-01", Some(body))
        .await
        .unwrap();
    assert_eq!(
        (&answer["type"], &answer["spec"]["moduleId"]),
        (&json!("local"), &json!("updater"))
    );
    let auth = &answer["spec"]["auth"];
    assert!(auth["expiration"].as_str().unwrap().ends_with("+00:00"), "{auth}");
    let key = rcgen::KeyPair::from_pem(auth["privateKey"].as_str().unwrap()).unwrap();
    let chain = auth["certificate"].as_str().unwrap();
    let (_, leaf) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).unwrap();
    let leaf = leaf.parse_x509().unwrap();
    assert_eq!(leaf.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
    let name = leaf.subject().iter_common_name().next().unwrap().as_str().unwrap();
    assert_eq!(name, "updater.press.plant7.example");
    assert!(chain.ends_with(&ca));

    // The CA is in the trust bundle; the user's part of it is missing and skipped.
    let bundle =
        device.ask(Method::GET, "/trust-bundle?api-version=2020-09-01", None).await.unwrap();
    assert_eq!(bundle["certificate"], ca);
}
