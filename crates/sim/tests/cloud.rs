//! The simulated cloud over real TLS, as a device and as an operator see it.
#![expect(
    clippy::unwrap_used,
    reason = "functions that tests share expect by unwrapping, as tests do"
)]

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use edgekeep_sim::token::{Key, issue};
use edgekeep_sim::{
    Enrolment, Faults, Keys, MqttOptions, PresetDevice, RouteFaults, Simulator, SimulatorOptions,
};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const DEVICE: &str = "press-04";
const REGISTRY: &str = "api-version=2017-11-08-preview";
const REGISTRATION: &str = "api-version=2021-06-01";

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap()
    }

    fn message(&self) -> &str {
        ["Message", "message"].iter().find_map(|name| self.body[name].as_str()).unwrap_or_default()
    }
}

fn device_key() -> Key {
    Key::new(vec![4; 32]).unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

async fn start() -> Simulator {
    let options = SimulatorOptions {
        enrolments: vec![Enrolment::new(DEVICE, device_key())],
        devices: vec![PresetDevice::new(DEVICE, device_key())],
        mqtt: Some(MqttOptions { listen: ([127, 0, 0, 1], 0).into(), certificate: None }),
        ..SimulatorOptions::default()
    };
    Simulator::start(options).await.unwrap()
}

async fn connect(
    ca_pem: &str,
    address: std::net::SocketAddr,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_root_certificates(roots)
    .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
}

/// `headers` as `Name: value` lines.
async fn send(
    simulator: &Simulator,
    method: &str,
    target: &str,
    headers: &[String],
    body: Option<Value>,
) -> anyhow::Result<Answer> {
    let stream = connect(simulator.ca_pem(), ([127, 0, 0, 1], simulator.port()).into()).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request =
        Request::builder().method(method).uri(target).header("host", simulator.hub_host());
    for header in headers {
        let (name, value) = header.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let response = sender.send_request(request.body(Full::new(Bytes::from(body)))?).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? };
    Ok(Answer { status: head.status, headers: head.headers, body })
}

fn bearing(audience: &str, key: &Key, key_name: Option<&str>) -> String {
    format!("Authorization: {}", issue(&audience.to_lowercase(), key, now() + 30, key_name))
}

fn as_device(simulator: &Simulator) -> String {
    bearing(&format!("{}/devices/{DEVICE}", simulator.hub_host()), &device_key(), None)
}

fn as_enrolled() -> String {
    bearing(&format!("0ne00000001/registrations/{DEVICE}"), &device_key(), Some("registration"))
}

async fn hub(
    simulator: &Simulator,
    method: &str,
    module: &str,
    condition: Option<&str>,
    body: Option<Value>,
) -> Answer {
    let mut headers = vec![as_device(simulator)];
    headers.extend(condition.map(str::to_owned));
    let target = format!("/devices/{DEVICE}/modules/{module}?{REGISTRY}");
    send(simulator, method, &target, &headers, body).await.unwrap()
}

async fn register(simulator: &Simulator, headers: &[String]) -> Answer {
    let target = format!("/0ne00000001/registrations/{DEVICE}/register?{REGISTRATION}");
    send(simulator, "PUT", &target, headers, Some(json!({ "registrationId": DEVICE })))
        .await
        .unwrap()
}

async fn poll(simulator: &Simulator, operation: &str) -> Answer {
    let target =
        format!("/0ne00000001/registrations/{DEVICE}/operations/{operation}?{REGISTRATION}");
    send(simulator, "GET", &target, &[as_enrolled()], None).await.unwrap()
}

fn module_body(module: &str, keys: Option<(&Key, &Key)>) -> Value {
    let mut body = json!({ "moduleId": module, "deviceId": DEVICE });
    if let Some((primary, secondary)) = keys {
        let keys = json!({ "primaryKey": primary.expose_base64(), "secondaryKey": secondary.expose_base64() });
        body["authentication"] = json!({ "type": "sas", "symmetricKey": keys });
    }
    body
}

#[tokio::test]
async fn a_device_registers_waits_and_is_assigned() {
    let simulator = start().await;
    simulator
        .faults(Faults { polls_assigning: 2, poll_after_sec: Some(3), ..Faults::default() })
        .unwrap();
    assert!(simulator.remove_device(DEVICE));

    let registered = register(&simulator, &[as_enrolled()]).await;
    assert_eq!(registered.status, StatusCode::ACCEPTED);
    assert_eq!(registered.header("retry-after"), "3");
    let operation = registered.body["operationId"].as_str().unwrap();
    for _ in 0..2 {
        let waiting = poll(&simulator, operation).await;
        assert_eq!(
            (waiting.status, &waiting.body["status"]),
            (StatusCode::ACCEPTED, &json!("assigning"))
        );
    }
    let assigned = poll(&simulator, operation).await;
    assert_eq!((assigned.status, &assigned.body["status"]), (StatusCode::OK, &json!("assigned")));
    assert_eq!(assigned.body["registrationState"]["assignedHub"], simulator.hub_host());
    assert_eq!(assigned.body["registrationState"]["deviceId"], DEVICE);

    let target = format!("/devices/{DEVICE}/modules?{REGISTRY}");
    let list = send(&simulator, "GET", &target, &[as_device(&simulator)], None).await.unwrap();
    assert_eq!(list.body, json!([]));
    let calls = simulator.state().calls;
    assert_eq!(
        (calls.dps_register, calls.dps_operation, calls.hub_list, calls.total()),
        (1, 3, 1, 5)
    );
}

#[tokio::test]
async fn a_registration_is_refused_with_its_reason() {
    let simulator = start().await;
    let audience = format!("0ne00000001/registrations/{DEVICE}");
    let (other, skn) = (Key::new(vec![5; 32]).unwrap(), Some("registration"));
    let expired = format!("Authorization: {}", issue(&audience, &device_key(), now() - 5, skn));
    for (headers, reason) in [
        (vec![], "no SharedAccessSignature was sent"),
        (
            vec![bearing(&audience, &other, skn)],
            "the signature does not verify with the registered key",
        ),
        (vec![bearing(&audience, &device_key(), None)], "the token's skn must be registration"),
        (
            vec![bearing("0ne00000001/registrations/x", &device_key(), skn)],
            "for audience \"0ne00000001/registrations/x\"",
        ),
        (vec![expired], "the token expired"),
    ] {
        let refused = register(&simulator, &headers).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{reason}");
        assert!(refused.message().contains(reason), "{} lacks {reason}", refused.message());
        assert!(simulator.state().refusals.last().unwrap().contains(reason));
    }
    let body = Some(json!({ "registrationId": DEVICE }));
    for (target, body, status, reason) in [
        (
            format!("/other/registrations/{DEVICE}/register?{REGISTRATION}"),
            body.clone(),
            404,
            "no such id scope",
        ),
        (
            format!("/0ne00000001/registrations/{DEVICE}/register"),
            body.clone(),
            400,
            "api-version is missing",
        ),
        (
            format!("/0ne00000001/registrations/{DEVICE}/register?{REGISTRATION}"),
            None,
            400,
            "the body does not fit",
        ),
        (
            format!("/0ne00000001/registrations/{DEVICE}/register?{REGISTRATION}"),
            Some(json!({ "registrationId": "x" })),
            400,
            "in the body and in the path differ",
        ),
    ] {
        let refused = send(&simulator, "PUT", &target, &[as_enrolled()], body).await.unwrap();
        assert_eq!(refused.status.as_u16(), status, "{reason}");
        assert!(refused.message().contains(reason), "{}", refused.message());
    }
    assert_eq!(poll(&simulator, "5.unknown").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_registration_that_is_not_wanted_ends_in_failed() {
    let simulator = start().await;
    simulator
        .faults(Faults { refuse_registration: Some("over quota".to_owned()), ..Faults::default() })
        .unwrap();
    let registered = register(&simulator, &[as_enrolled()]).await;
    let failed = poll(&simulator, registered.body["operationId"].as_str().unwrap()).await;
    assert_eq!(failed.body["status"], "failed");
    assert_eq!(failed.body["registrationState"]["errorMessage"], "over quota");
}

#[tokio::test]
async fn an_enrolment_may_name_another_device_hub_and_payload() {
    let simulator = start().await;
    let enrolment = Enrolment {
        device_id: Some("line-2".to_owned()),
        hub: Some("other.hub".to_owned()),
        payload: Some(json!({ "site": 7 })),
        ..Enrolment::new(DEVICE, device_key())
    };
    simulator.enrol(enrolment).unwrap();
    let registered = register(&simulator, &[as_enrolled()]).await;
    let state =
        poll(&simulator, registered.body["operationId"].as_str().unwrap()).await.body["registrationState"].take();
    assert_eq!(
        (&state["deviceId"], &state["assignedHub"]),
        (&json!("line-2"), &json!("other.hub"))
    );
    assert_eq!(state["payload"]["site"], 7);
    let audience = bearing("other.hub/devices/line-2", &device_key(), None);
    let list =
        send(&simulator, "GET", &format!("/devices/line-2/modules?{REGISTRY}"), &[audience], None)
            .await
            .unwrap();
    assert_eq!(list.status, StatusCode::OK);
}

#[tokio::test]
async fn a_module_is_created_keyed_read_and_deleted_and_gets_a_new_generation_when_made_again() {
    let simulator = start().await;
    let created =
        hub(&simulator, "PUT", "%24edgeAgent", None, Some(module_body("$edgeAgent", None))).await;
    assert_eq!(created.status, StatusCode::OK, "{}", created.body);
    let generation = created.body["generationId"].as_str().unwrap().to_owned();
    assert_eq!(simulator.state().devices[DEVICE].modules["$edgeAgent"].keys, Keys::Generated);

    let (primary, secondary) = (Key::new(vec![1; 32]).unwrap(), Key::new(vec![2; 32]).unwrap());
    let body = module_body("$edgeAgent", Some((&primary, &secondary)));
    let updated =
        hub(&simulator, "PUT", "$edgeAgent", Some("If-Match: *"), Some(body.clone())).await;
    assert_eq!(
        (updated.status, &updated.body["generationId"]),
        (StatusCode::OK, &json!(generation))
    );
    assert_eq!(
        updated.body["authentication"]["symmetricKey"]["primaryKey"],
        primary.expose_base64()
    );
    assert_eq!(simulator.state().devices[DEVICE].modules["$edgeAgent"].keys, Keys::Given);

    let read = hub(&simulator, "GET", "$edgeAgent", None, None).await;
    assert_eq!((read.status, &read.body), (StatusCode::OK, &updated.body));
    let list = hub(&simulator, "GET", "", None, None).await;
    assert_eq!(list.status, StatusCode::NOT_FOUND, "a trailing slash is no module");

    assert_eq!(
        hub(&simulator, "DELETE", "$edgeAgent", Some("If-Match: *"), None).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        hub(&simulator, "GET", "$edgeAgent", None, None).await.status,
        StatusCode::NOT_FOUND
    );
    let again = hub(&simulator, "PUT", "$edgeAgent", None, Some(body)).await;
    assert_ne!(again.body["generationId"], json!(generation));
}

#[tokio::test]
async fn an_entity_tag_guards_updates_and_deletes() {
    let simulator = start().await;
    let body = Some(module_body("m", None));
    let first = hub(&simulator, "PUT", "m", None, body.clone()).await.header("etag").to_owned();
    let second =
        hub(&simulator, "PUT", "m", Some(&format!("If-Match: {first}")), body.clone()).await;
    assert_eq!(second.status, StatusCode::OK);
    let second = second.header("etag").to_owned();
    assert_ne!(first, second);

    let stale = format!("If-Match: {first}");
    for (method, condition, status, reason) in [
        ("PUT", Some(stale.as_str()), 412, "the ETag differs"),
        ("PUT", Some("If-None-Match: *"), 412, "the module exists"),
        ("PUT", None, 409, "ModuleAlreadyExistsOnDevice"),
        ("DELETE", Some(stale.as_str()), 412, "the ETag differs"),
        ("DELETE", None, 412, "If-Match is required"),
        ("POST", None, 405, "only GET, PUT and DELETE"),
    ] {
        let refused = hub(&simulator, method, "m", condition, body.clone()).await;
        assert_eq!(refused.status.as_u16(), status, "{method} {condition:?}");
        assert!(refused.message().contains(reason), "{}", refused.message());
    }
    let unchanged =
        hub(&simulator, "GET", "m", Some(&format!("If-None-Match: {second}")), None).await;
    assert_eq!(
        (unchanged.status, unchanged.header("etag")),
        (StatusCode::NOT_MODIFIED, second.as_str())
    );
    assert_eq!(
        hub(&simulator, "GET", "m", Some(&stale.replace("If-", "If-None-")), None).await.status,
        StatusCode::OK
    );
    let deleted = hub(&simulator, "DELETE", "m", Some(&format!("If-Match: {second}")), None).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    for (method, condition) in
        [("GET", None), ("DELETE", Some("If-Match: *")), ("PUT", Some("If-Match: *"))]
    {
        let absent = hub(&simulator, method, "m", condition, body.clone()).await;
        assert_eq!(
            (absent.status, absent.message()),
            (StatusCode::NOT_FOUND, "ErrorCode:ModuleNotFound;no such module")
        );
    }
}

#[tokio::test]
async fn a_body_that_does_not_fit_its_path_is_refused() {
    let simulator = start().await;
    let mut one_key = module_body("m", None);
    one_key["authentication"] =
        json!({ "type": "sas", "symmetricKey": { "primaryKey": device_key().expose_base64() } });
    let mut bad_key = module_body("m", None);
    bad_key["authentication"] =
        json!({ "symmetricKey": { "primaryKey": "AAAA", "secondaryKey": "AAAA" } });
    let mut bad_kind = module_body("m", None);
    bad_kind["authentication"] = json!({ "type": "magic" });
    for (path, body, reason) in [
        ("m", module_body("n", None), "moduleId or deviceId differs from the path"),
        ("m", json!([]), "the body does not fit"),
        ("m", one_key, "symmetricKey needs both keys"),
        ("m", bad_key, "the key has 3 bytes; 16 to 64 are accepted"),
        ("m", bad_kind, "authentication.type is not one of"),
        ("a%2fb", module_body("a/b", None), "the id is not one that the hub allows"),
    ] {
        let refused = hub(&simulator, "PUT", path, None, Some(body)).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        assert!(refused.message().contains(reason), "{} lacks {reason}", refused.message());
    }
    assert!(simulator.state().devices[DEVICE].modules.is_empty());
}

#[tokio::test]
async fn the_registry_refuses_tokens_that_are_not_the_devices() {
    let simulator = start().await;
    simulator.add_device(PresetDevice::new("press-05", device_key())).unwrap();
    let target = format!("/devices/{DEVICE}/modules?{REGISTRY}");
    let audience = format!("{}/devices/{DEVICE}", simulator.hub_host());
    let expired = format!("Authorization: {}", issue(&audience, &device_key(), now(), None));
    let elsewhere =
        bearing(&format!("{}/devices/press-05", simulator.hub_host()), &device_key(), None);
    for (headers, reason) in [
        (vec![], "no SharedAccessSignature was sent"),
        (
            vec![bearing(&audience, &Key::new(vec![9; 32]).unwrap(), None)],
            "does not verify with the registered key",
        ),
        (vec![expired], "the token expired"),
        (vec![elsewhere], "the token is for audience"),
    ] {
        let refused = send(&simulator, "GET", &target, &headers, None).await.unwrap();
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{reason}");
        assert!(refused.message().contains(reason), "{}", refused.message());
    }
    simulator
        .add_device(PresetDevice { enabled: false, ..PresetDevice::new(DEVICE, device_key()) })
        .unwrap();
    let disabled = send(&simulator, "GET", &target, &[as_device(&simulator)], None).await.unwrap();
    assert_eq!(
        (disabled.status.as_u16(), disabled.message()),
        (401, "ErrorCode:IotHubUnauthorizedAccess;the device is disabled")
    );
    assert!(simulator.remove_device(DEVICE));
    let unknown = send(&simulator, "GET", &target, &[as_device(&simulator)], None).await.unwrap();
    assert_eq!(
        (unknown.status.as_u16(), unknown.message()),
        (401, "ErrorCode:IotHubUnauthorizedAccess;no such device")
    );
    assert_eq!(
        send(&simulator, "GET", "/elsewhere", &[], None).await.unwrap().status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_device_has_at_most_as_many_modules_as_the_hub_allows() {
    assert_eq!(SimulatorOptions::default().module_limit, 50, "the real hub's number");
    let options = SimulatorOptions {
        devices: vec![PresetDevice::new(DEVICE, device_key())],
        module_limit: 8,
        ..SimulatorOptions::default()
    };
    let simulator = Simulator::start(options).await.unwrap();
    for number in 0..8 {
        let name = format!("m{number}");
        assert_eq!(
            hub(&simulator, "PUT", &name, None, Some(module_body(&name, None))).await.status,
            StatusCode::OK
        );
    }
    let refused =
        hub(&simulator, "PUT", "one-more", None, Some(module_body("one-more", None))).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert!(refused.message().contains("TooManyModulesOnDevice"));
    let known =
        hub(&simulator, "PUT", "m7", Some("If-Match: *"), Some(module_body("m7", None))).await;
    assert_eq!(known.status, StatusCode::OK);
}

#[tokio::test]
async fn messages_are_accepted_with_either_key_of_the_module_and_counted() {
    let simulator = start().await;
    let (primary, secondary) = (Key::new(vec![1; 32]).unwrap(), Key::new(vec![2; 32]).unwrap());
    hub(&simulator, "PUT", "m", None, Some(module_body("m", Some((&primary, &secondary))))).await;
    let target = format!("/devices/{DEVICE}/modules/m/messages/events?api-version=2020-03-13");
    let audience = format!("{}/devices/{DEVICE}/modules/m", simulator.hub_host());
    for key in [&primary, &secondary] {
        let sent = send(
            &simulator,
            "POST",
            &target,
            &[bearing(&audience, key, None)],
            Some(json!({ "t": 21 })),
        )
        .await;
        assert_eq!(sent.unwrap().status, StatusCode::NO_CONTENT);
    }
    let refused =
        send(&simulator, "POST", &target, &[bearing(&audience, &device_key(), None)], None)
            .await
            .unwrap();
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert!(refused.message().contains("the signature does not verify with the registered key"));
    assert_eq!(simulator.state().devices[DEVICE].modules["m"].accepted_messages, 2);
    let (target, token) = (target.replace("/m/", "/n/"), bearing(&audience, &primary, None));
    let absent = send(&simulator, "POST", &target, &[token], None).await.unwrap();
    assert!(absent.message().contains("no such module"));
}

#[tokio::test]
async fn each_fault_hits_its_own_class_of_routes() {
    let simulator = start().await;
    let busy = RouteFaults { retry_after_sec: Some(17), ..RouteFaults::status(429) };
    simulator.faults(Faults { hub: busy.times(1), ..Faults::default() }).unwrap();
    assert_eq!(register(&simulator, &[as_enrolled()]).await.status, StatusCode::ACCEPTED);
    let throttled = hub(&simulator, "GET", "m", None, None).await;
    assert_eq!((throttled.status.as_u16(), throttled.header("retry-after")), (429, "17"));
    assert_eq!(
        hub(&simulator, "GET", "m", None, None).await.status,
        StatusCode::NOT_FOUND,
        "the fault was for one call"
    );

    simulator.faults(Faults { dps: RouteFaults::status(500), ..Faults::default() }).unwrap();
    let broken = register(&simulator, &[as_enrolled()]).await;
    assert_eq!((broken.status.as_u16(), &broken.body["errorCode"]), (500, &json!(500_000)));

    simulator.faults(Faults { hub: RouteFaults::dropped(), ..Faults::default() }).unwrap();
    let target = format!("/devices/{DEVICE}/modules?{REGISTRY}");
    assert!(
        send(&simulator, "GET", &target, &[as_device(&simulator)], None).await.is_err(),
        "an answer came"
    );
    assert_eq!(simulator.state().calls.hub_list, 1, "a dropped call counts");

    let slow = RouteFaults { delay_ms: 300, ..RouteFaults::default() };
    simulator.faults(Faults { hub: slow, ..Faults::default() }).unwrap();
    let before = std::time::Instant::now();
    assert_eq!(hub(&simulator, "GET", "m", None, None).await.status, StatusCode::NOT_FOUND);
    assert!(before.elapsed() >= Duration::from_millis(300), "{:?}", before.elapsed());
}

#[tokio::test]
async fn an_answer_can_be_lost_after_the_call_took_effect() {
    let simulator = start().await;
    let lost = RouteFaults { after_effect: true, ..RouteFaults::status(500) };
    simulator.faults(Faults { hub: lost, ..Faults::default() }).unwrap();
    let answer = hub(&simulator, "PUT", "m", None, Some(module_body("m", None))).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(simulator.state().devices[DEVICE].modules.contains_key("m"));
}

#[tokio::test]
async fn a_clock_ahead_shows_in_the_date_and_expires_tokens() {
    let simulator = start().await;
    simulator.faults(Faults { clock_offset_sec: 86_400, ..Faults::default() }).unwrap();
    let refused = hub(&simulator, "GET", "m", None, None).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert!(refused.message().contains("the token expired 863"), "{}", refused.message());
    let tomorrow = time::OffsetDateTime::now_utc() + time::Duration::DAY;
    let weekday = tomorrow.weekday().to_string();
    let date = refused.header("date");
    assert!(
        date.starts_with(&weekday[..3]) && date.ends_with(" GMT") && date.len() == 29,
        "{date}"
    );
    simulator.faults(Faults { clock_offset_sec: -86_400, ..Faults::default() }).unwrap();
    assert_eq!(hub(&simulator, "GET", "m", None, None).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_admin_routes_do_what_the_library_does() {
    let simulator = start().await;
    let admin = async |method: &str, path: &str, body: Option<Value>| {
        let answer = send(&simulator, method, &format!("/admin/{path}"), &[], body).await.unwrap();
        (answer.status.as_u16(), answer.message().to_owned(), answer.body)
    };
    let key = device_key().expose_base64();
    assert_eq!(admin("PUT", "enrolments/line-9", Some(json!({ "key": key }))).await.0, 204);
    assert_eq!(admin("PUT", "devices/line-9", Some(json!({ "key": key }))).await.0, 204);
    assert_eq!(
        admin("PUT", "faults", Some(json!({ "hub": { "status": 503, "times": 1 } }))).await.0,
        204
    );
    assert_eq!(hub(&simulator, "GET", "m", None, None).await.status.as_u16(), 503);
    let state = admin("GET", "state", None).await.2;
    assert_eq!(state["enrolments"], json!(["line-9", DEVICE]));
    assert!(state["devices"]["line-9"].is_object());
    assert_eq!(state["calls"]["hubGet"], 1);
    assert_eq!(state["faults"]["hub"]["times"], 0);
    assert_eq!(admin("DELETE", "calls", None).await.0, 204);
    assert_eq!(simulator.state().calls.total(), 0, "admin calls are not counted");
    hub(&simulator, "PUT", "m", None, Some(module_body("m", None))).await;
    assert_eq!(admin("DELETE", &format!("devices/{DEVICE}/modules/m"), None).await.0, 204);
    assert_eq!(admin("DELETE", "devices/line-9", None).await.0, 204);
    assert_eq!(admin("DELETE", "enrolments/line-9", None).await.0, 204);
    assert_eq!(simulator.state().enrolments, [DEVICE]);
    for (method, path, body, status, reason) in [
        (
            "PUT",
            "faults",
            json!({ "hub": { "status": 200 } }),
            400,
            "status 200 is not one of 400 to 599",
        ),
        ("PUT", "faults", json!({ "hubb": {} }), 400, "unknown field `hubb`"),
        ("PUT", "enrolments/x", json!({ "key": "AAAA" }), 400, "the key has 3 bytes"),
        (
            "PUT",
            "devices/a%2fb",
            json!({ "key": key }),
            400,
            "the id is not one that the hub allows",
        ),
        ("DELETE", "devices/absent", Value::Null, 404, "no such thing"),
        ("GET", "nothing", Value::Null, 404, "no such thing"),
    ] {
        let (found, message, _) = admin(method, path, Some(body)).await;
        assert_eq!(found, status, "{method} {path}");
        assert!(message.contains(reason), "{message} lacks {reason}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let simulator = start().await;
    let body = Some(json!({ "text": "x".repeat(300 * 1024) }));
    let target = format!("/devices/{DEVICE}/modules/m?{REGISTRY}");
    // The server may close before all of the body was sent; then there is no answer to
    // see.
    if let Ok(answer) = send(&simulator, "PUT", &target, &[as_device(&simulator)], body).await {
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    }
    assert!(simulator.state().devices[DEVICE].modules.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_devices_at_once_lose_nothing() {
    let simulator = Arc::new(start().await);
    let calls: Vec<_> = (0..40)
        .map(|number| {
            let simulator = Arc::clone(&simulator);
            tokio::spawn(async move {
                let name = format!("m{number}");
                let made =
                    hub(&simulator, "PUT", &name, None, Some(module_body(&name, None))).await;
                made.body["generationId"].as_str().unwrap().to_owned()
            })
        })
        .collect();
    let mut generations = std::collections::BTreeSet::new();
    for call in calls {
        generations.insert(call.await.unwrap());
    }
    assert_eq!(generations.len(), 40, "generations are unique");
    let state = simulator.state();
    assert_eq!((state.devices[DEVICE].modules.len(), state.calls.hub_put), (40, 40));
}

#[tokio::test]
async fn a_simulator_started_from_a_snapshot_on_the_same_port_continues() {
    let simulator = start().await;
    hub(&simulator, "PUT", "m", None, Some(module_body("m", None))).await;
    let (port, state) = (simulator.port(), simulator.state());
    let (authority, snapshot) = (simulator.authority().clone(), simulator.snapshot());
    simulator.stop().await;
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "it still listens");
    let listen = ([127, 0, 0, 1], port).into();
    let again = SimulatorOptions {
        listen,
        authority: Some(authority),
        snapshot,
        ..SimulatorOptions::default()
    };
    let again = Simulator::start(again).await.unwrap();
    assert_eq!(again.state().devices, state.devices);
    assert_eq!(hub(&again, "GET", "m", None, None).await.status, StatusCode::OK);
}

#[tokio::test]
async fn waiting_for_a_state_ends_with_it_or_says_what_was_there_instead() {
    let simulator = Arc::new(start().await);
    let waiter = Arc::clone(&simulator);
    let wait = tokio::spawn(async move {
        waiter
            .wait_until(Duration::from_secs(20), |state| state.calls.hub_get == 1)
            .await
            .map(|state| state.calls.hub_get)
    });
    hub(&simulator, "GET", "m", None, None).await;
    assert_eq!(wait.await.unwrap().unwrap(), 1);
    let error = simulator
        .wait_until(Duration::from_millis(20), |state| state.calls.hub_get == 9)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("hub_get: 1"), "{error}");
}

/// CONNECT with the given username and password; the return code, and the open session.
async fn mqtt_connect(
    simulator: &Simulator,
    username: &str,
    password: &str,
) -> (u8, TlsStream<TcpStream>) {
    let mut stream = connect(simulator.ca_pem(), simulator.mqtt_address().unwrap()).await.unwrap();
    let mut packet = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 0xc2, 0, 60];
    for text in ["press-04/m", username, password] {
        packet.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
        packet.extend(text.as_bytes());
    }
    let length = packet.len();
    let head =
        [0x10, u8::try_from(length % 128).unwrap() | 0x80, u8::try_from(length / 128).unwrap()];
    stream.write_all(&[&head[..], &packet].concat()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[..3], [0x20, 2, 0]);
    (answer[3], stream)
}

#[tokio::test]
async fn an_mqtt_session_opens_with_the_modules_token_and_its_messages_count() {
    let simulator = start().await;
    let key = Key::new(vec![1; 32]).unwrap();
    hub(&simulator, "PUT", "m", None, Some(module_body("m", Some((&key, &key))))).await;
    let username = format!("{}/{DEVICE}/m/?api-version=2019-10-01", simulator.hub_host());
    let token = issue(
        &format!("{}/devices/{DEVICE}/modules/m", simulator.hub_host()),
        &key,
        now() + 60,
        None,
    );
    let (code, mut stream) = mqtt_connect(&simulator, &username, &token).await;
    assert_eq!(code, 0);
    stream.write_all(&[0x32, 6, 0, 1, b't', 0, 8, b'x', 0xc0, 0]).await.unwrap();
    stream.flush().await.unwrap();
    let mut answers = [0; 6];
    stream.read_exact(&mut answers).await.unwrap();
    assert_eq!(answers, [0x40, 2, 0, 8, 0xd0, 0]);
    assert_eq!(simulator.state().devices[DEVICE].modules["m"].accepted_messages, 1);
}

#[tokio::test]
async fn an_mqtt_session_is_refused_with_a_wrong_token_hub_or_username() {
    let simulator = start().await;
    let key = Key::new(vec![1; 32]).unwrap();
    hub(&simulator, "PUT", "m", None, Some(module_body("m", Some((&key, &key))))).await;
    let audience = format!("{}/devices/{DEVICE}/modules/m", simulator.hub_host());
    let good = issue(&audience, &key, now() + 60, None);
    let username = format!("{}/{DEVICE}/m/?api-version=2019-10-01", simulator.hub_host());
    for (username, password, reason) in [
        (
            username.as_str(),
            issue(&audience, &device_key(), now() + 60, None),
            "the signature does not verify",
        ),
        (&username, issue(&audience, &key, now() - 60, None), "the token expired"),
        (&username.replace("localhost", "elsewhere"), good.clone(), "is not \"localhost"),
        (&format!("{}/{DEVICE}", simulator.hub_host()), good.clone(), "the username is not"),
    ] {
        assert_eq!(mqtt_connect(&simulator, username, &password).await.0, 5, "{reason}");
        let last = simulator.state().refusals.last().cloned().unwrap();
        assert!(last.contains(reason), "{last} lacks {reason}");
    }
    simulator.faults(Faults { hub: RouteFaults::status(503), ..Faults::default() }).unwrap();
    assert_eq!(mqtt_connect(&simulator, &username, &good).await.0, 3);
    assert_eq!(simulator.state().calls.mqtt_connect, 5);
}
