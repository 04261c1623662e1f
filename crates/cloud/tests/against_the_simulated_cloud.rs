//! The clients against the simulated provisioning service and hub, over TLS on loopback.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use edgekeep_cloud::{
    CloudError, Credential, Dps, EnsureError, Hub, Limits, ModuleKeys, ModuleRecord, Progress,
    Registration, Signer, SignerError, Transport, Trust,
};
use edgekeep_core::id::{GenerationId, ModuleId};
use edgekeep_core::provisioning::DeviceIdentity;
use edgekeep_sim::token::Key;
use edgekeep_sim::{
    Enrolment, Faults, Keys, PresetDevice, RouteFaults, Simulator, SimulatorOptions,
};
use tempfile::TempDir;

const KEY: [u8; 32] = [7; 32];

/// Signs with a key in memory, as keyd would.
struct MemorySigner(hmac::Key);

impl MemorySigner {
    fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }
}

impl Signer for MemorySigner {
    fn sign(&self, data: Vec<u8>) -> impl Future<Output = Result<Vec<u8>, SignerError>> + Send {
        ready(Ok(hmac::sign(&self.0, &data).as_ref().to_vec()))
    }
}

struct Cloud {
    sim: Simulator,
    folder: TempDir,
}

impl Cloud {
    async fn start() -> Self {
        let mut enrolment = Enrolment::new("press-04", Key::new(KEY.to_vec()).unwrap());
        enrolment.device_id = Some("Press-04".to_owned());
        let options = SimulatorOptions {
            enrolments: vec![enrolment],
            devices: vec![PresetDevice::new("press-05", Key::new(KEY.to_vec()).unwrap())],
            ..SimulatorOptions::default()
        };
        let sim = Simulator::start(options).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), sim.ca_pem()).unwrap();
        Self { sim, folder }
    }

    fn transport(&self, timeout: Duration, retries: u32) -> Arc<Transport> {
        let trust = Trust::Files(vec![self.folder.path().join("ca.pem")]);
        Arc::new(Transport::new(Limits { timeout, retries }, trust))
    }

    fn dps(&self, key: &[u8]) -> Dps<MemorySigner> {
        let registration = Registration {
            endpoint: self.sim.dps_endpoint(),
            scope_id: "0ne00000001".to_owned(),
            registration_id: "press-04".to_owned(),
            payload: None,
            api_version: None,
            csr: None,
        };
        Dps::new(
            self.transport(Duration::from_secs(20), 1),
            registration,
            Credential::Token(MemorySigner::new(key)),
        )
        .unwrap()
    }

    fn hub_with(&self, timeout: Duration, retries: u32) -> Hub<MemorySigner> {
        let identity =
            DeviceIdentity { hub: self.sim.hub_host(), device_id: "press-05".parse().unwrap() };
        Hub::new(
            self.transport(timeout, retries),
            &identity,
            None,
            Credential::Token(MemorySigner::new(&KEY)),
        )
        .unwrap()
    }

    fn hub(&self) -> Hub<MemorySigner> {
        self.hub_with(Duration::from_secs(20), 1)
    }

    fn hub_faults(&self, hub: RouteFaults) {
        self.sim.faults(Faults { hub, ..Faults::default() }).unwrap();
    }
}

fn module(id: &str) -> ModuleId {
    id.parse().unwrap()
}

/// Keys as a device derives them: another pair for another generation.
fn keys_for(generation: &GenerationId) -> ModuleKeys {
    let key = |name: &str| {
        hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, &KEY),
            format!("{generation}{name}").as_bytes(),
        )
    };
    ModuleKeys::new(key("primary").as_ref(), key("secondary").as_ref())
}

async fn ensure(
    hub: &Hub<MemorySigner>,
    id: &str,
    create: bool,
) -> Result<ModuleRecord, EnsureError<Infallible>> {
    hub.ensure(&module(id), create, |generation| ready(Ok(keys_for(&generation)))).await
}

fn cloud_error<T: std::fmt::Debug>(result: Result<T, EnsureError<Infallible>>) -> CloudError {
    match result.unwrap_err() {
        EnsureError::Cloud(error) => error,
        EnsureError::Keys(never) => match never {},
    }
}

#[tokio::test]
async fn a_device_registers_polls_and_is_assigned() {
    let cloud = Cloud::start().await;
    cloud
        .sim
        .faults(Faults { polls_assigning: 1, poll_after_sec: Some(9), ..Faults::default() })
        .unwrap();
    let dps = cloud.dps(&KEY);
    let Progress::Assigning { operation, retry_after } = dps.register().await.unwrap() else {
        panic!("too early")
    };
    assert_eq!(retry_after, Some(Duration::from_secs(9)));
    let Progress::Assigning { .. } = dps.poll(&operation).await.unwrap() else {
        panic!("too early")
    };
    let expected = Progress::Assigned {
        hub: cloud.sim.hub_host(),
        device_id: "Press-04".parse().unwrap(),
        tpm_key: None,
        issued: Vec::new(),
    };
    assert_eq!(dps.poll(&operation).await.unwrap(), expected);
}

#[tokio::test]
async fn a_wrong_registration_key_is_a_refusal_of_the_device() {
    let cloud = Cloud::start().await;
    let error = cloud.dps(&[8; 32]).register().await.unwrap_err();
    assert!(matches!(error, CloudError::DeviceRefused { status: 401, .. }), "{error:?}");
    assert!(error.to_string().contains("signature does not verify"), "{error}");
}

#[tokio::test]
async fn a_registration_that_the_service_decides_against_says_why() {
    let cloud = Cloud::start().await;
    let faults = Faults {
        refuse_registration: Some("not in the allow list".to_owned()),
        ..Faults::default()
    };
    cloud.sim.faults(faults).unwrap();
    let dps = cloud.dps(&KEY);
    let Progress::Assigning { operation, .. } = dps.register().await.unwrap() else {
        panic!("too early")
    };
    let Progress::Failed { reason } = dps.poll(&operation).await.unwrap() else {
        panic!("not failed")
    };
    assert!(reason.contains("not in the allow list") && reason.contains("400207"), "{reason}");
}

#[tokio::test]
async fn a_module_is_created_with_the_keys_of_its_generation_listed_and_deleted() {
    let cloud = Cloud::start().await;
    let hub = cloud.hub();
    let created = ensure(&hub, "$edgeAgent", true).await.unwrap();
    assert_eq!(created.keys, Some(keys_for(&created.generation_id)));
    assert_eq!(cloud.sim.state().devices["press-05"].modules["$edgeAgent"].keys, Keys::Given);

    let listed = hub.list().await.unwrap();
    assert_eq!(listed.readable().len(), 1);
    assert_eq!(listed.readable().values().next().unwrap().generation_id, created.generation_id);
    assert_eq!(hub.get(&module("$edgeAgent")).await.unwrap().etag, created.etag);

    hub.delete(&module("$edgeAgent")).await.unwrap();
    let error = hub.get(&module("$edgeAgent")).await.unwrap_err();
    assert!(matches!(error, CloudError::NotFound { what: "module", .. }), "{error:?}");
    assert!(!error.is_network_down() && !error.refuses_device());
}

#[tokio::test]
async fn an_update_writes_nothing_when_the_hub_has_the_right_keys_already() {
    let cloud = Cloud::start().await;
    let hub = cloud.hub();
    ensure(&hub, "thermometer", true).await.unwrap();
    cloud.sim.clear_calls();
    ensure(&hub, "thermometer", false).await.unwrap();
    assert_eq!((cloud.sim.state().calls.hub_get, cloud.sim.state().calls.hub_put), (1, 0));
}

#[tokio::test]
async fn a_creation_whose_answer_was_lost_is_taken_over_and_completed() {
    let cloud = Cloud::start().await;
    cloud.hub_faults(RouteFaults { after_effect: true, times: Some(1), ..RouteFaults::dropped() });
    let created = ensure(&cloud.hub(), "thermometer", true).await.unwrap();
    assert_eq!(created.keys, Some(keys_for(&created.generation_id)));
    assert_eq!(cloud.sim.state().devices["press-05"].modules["thermometer"].keys, Keys::Given);
}

#[tokio::test]
async fn updating_a_module_that_the_hub_does_not_know_is_not_found() {
    let cloud = Cloud::start().await;
    let error = cloud_error(ensure(&cloud.hub(), "thermometer", false).await);
    assert!(matches!(error, CloudError::NotFound { what: "module", .. }), "{error:?}");
}

#[tokio::test]
async fn one_fault_of_the_service_is_survived_by_a_second_attempt() {
    let cloud = Cloud::start().await;
    for fault in [RouteFaults::status(500), RouteFaults::dropped()] {
        cloud.hub_faults(RouteFaults { times: Some(1), ..fault });
        cloud.hub().list().await.unwrap();
    }
}

#[tokio::test]
async fn a_service_that_stays_in_trouble_counts_as_network_down() {
    let cloud = Cloud::start().await;
    cloud.hub_faults(RouteFaults::status(503));
    let error = cloud.hub().list().await.unwrap_err();
    assert!(
        matches!(error, CloudError::Service { status: 503, .. }) && error.is_network_down(),
        "{error:?}"
    );
    assert_eq!(cloud.sim.state().calls.hub_list, 2, "one attempt and one retry");
}

#[tokio::test]
async fn a_short_retry_after_is_waited_for_and_a_long_one_is_handed_on() {
    let cloud = Cloud::start().await;
    let throttled =
        RouteFaults { retry_after_sec: Some(2), times: Some(1), ..RouteFaults::status(429) };
    cloud.hub_faults(throttled.clone());
    let start = Instant::now();
    cloud.hub().list().await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());

    cloud.hub_faults(RouteFaults { retry_after_sec: Some(3000), ..throttled });
    let error = cloud.hub().list().await.unwrap_err();
    assert!(matches!(error, CloudError::Throttled { .. }), "{error:?}");
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3000)));
}

#[tokio::test]
async fn a_call_ends_within_its_limit_however_slow_the_service_is() {
    let cloud = Cloud::start().await;
    cloud.hub_faults(RouteFaults { delay_ms: 60_000, ..RouteFaults::default() });
    let start = Instant::now();
    let error = cloud.hub_with(Duration::from_millis(2500), 1).list().await.unwrap_err();
    assert!(matches!(error, CloudError::Timeout { .. }) && error.is_network_down(), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_network_down() {
    let cloud = Cloud::start().await;
    let hub = cloud.hub_with(Duration::from_secs(5), 0);
    let Cloud { sim, folder: _folder } = cloud;
    sim.stop().await;
    let error = hub.list().await.unwrap_err();
    assert!(error.is_network_down(), "{error:?}");
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}

#[tokio::test]
async fn a_service_with_a_certificate_of_another_ca_is_not_spoken_to() {
    let cloud = Cloud::start().await;
    let other = Cloud::start().await;
    let identity =
        DeviceIdentity { hub: cloud.sim.hub_host(), device_id: "press-05".parse().unwrap() };
    let transport = other.transport(Duration::from_secs(5), 1);
    let hub =
        Hub::new(transport, &identity, None, Credential::Token(MemorySigner::new(&KEY))).unwrap();
    let error = hub.list().await.unwrap_err();
    assert!(matches!(error, CloudError::Untrusted { .. }), "{error:?}");
    assert_eq!(cloud.sim.state().calls.total(), 0);
}

#[tokio::test]
async fn a_device_whose_clock_is_an_hour_off_corrects_its_tokens_by_the_service_s_clock() {
    for offset in [3600, -3600] {
        let cloud = Cloud::start().await;
        cloud.sim.faults(Faults { clock_offset_sec: offset, ..Faults::default() }).unwrap();
        let transport = cloud.transport(Duration::from_secs(20), 0);
        let identity =
            DeviceIdentity { hub: cloud.sim.hub_host(), device_id: "press-05".parse().unwrap() };
        let hub = Hub::new(
            Arc::clone(&transport),
            &identity,
            None,
            Credential::Token(MemorySigner::new(&KEY)),
        )
        .unwrap();
        hub.list().await.unwrap();
        assert!(transport.clock_offset().abs_diff(offset) < 5, "{}", transport.clock_offset());
    }
}

#[tokio::test]
async fn an_unknown_device_is_refused_and_that_is_not_network_down() {
    let cloud = Cloud::start().await;
    cloud.sim.remove_device("press-05");
    let error = cloud.hub().list().await.unwrap_err();
    assert!(error.refuses_device() && !error.is_network_down(), "{error:?}");
}

#[tokio::test]
async fn through_a_parent_the_token_still_names_the_hub() {
    let cloud = Cloud::start().await;
    let mut enrolment = Enrolment::new("press-04", Key::new(KEY.to_vec()).unwrap());
    enrolment.hub = Some("plant7.example.net".to_owned());
    cloud.sim.enrol(enrolment).unwrap();
    let dps = cloud.dps(&KEY);
    let Progress::Assigning { operation, .. } = dps.register().await.unwrap() else {
        panic!("too early")
    };
    let Progress::Assigned { hub, device_id, .. } = dps.poll(&operation).await.unwrap() else {
        panic!("not assigned")
    };
    assert_eq!(hub, "plant7.example.net");
    let parent = cloud.sim.hub_host();
    let identity = DeviceIdentity { hub, device_id };
    let transport = cloud.transport(Duration::from_secs(20), 0);
    let hub =
        Hub::new(transport, &identity, Some(&parent), Credential::Token(MemorySigner::new(&KEY)))
            .unwrap();
    assert!(hub.list().await.unwrap().readable().is_empty());
}

#[tokio::test]
async fn an_endpoint_that_is_no_https_url_of_a_host_is_refused() {
    for endpoint in ["http://dps.test", "https://dps.test/path", "dps.test", "https://a@dps.test"] {
        let registration = Registration {
            endpoint: endpoint.to_owned(),
            scope_id: "s".to_owned(),
            registration_id: "r".to_owned(),
            payload: None,
            api_version: None,
            csr: None,
        };
        let limits = Limits { timeout: Duration::from_secs(1), retries: 0 };
        let transport = Arc::new(Transport::new(limits, Trust::System));
        assert!(
            Dps::new(transport, registration, Credential::Token(MemorySigner::new(&KEY))).is_err(),
            "{endpoint}"
        );
    }
}
