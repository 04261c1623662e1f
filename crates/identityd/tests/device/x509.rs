//! Tests of a device that proves who it is by a certificate: at the provisioning service
//! and at the hub, with a key in a file, made in keyd, or of a certificate that an EST
//! server issued.

use std::path::PathBuf;

use edgekeep_api::identityd::AuthenticationKind;
use edgekeep_core::credentials::{Limits, read_certificates};
use edgekeep_core::renewal::Policy;
use edgekeep_core::settings::{
    DeviceCredential, EstBasic, EstSettings, Issuance, IssuanceMethod, PreloadedCert, Provisioning,
};
use edgekeep_sim::{
    Authority, Enrolment, EnrolmentGroup, EstOptions, PresetDevice, Proof, Simulator,
    SimulatorOptions,
};
use edgekeep_tls::RemoteKey;
use rcgen::{KeyPair, PublicKeyData as _};

use crate::certificates::issuance;
use crate::harness::{DEADLINE, Device, dps, manual};

const ID: &str = "device-id";

/// A certificate and its key in files.
struct Pair {
    cert: PathBuf,
    key: PathBuf,
    der: Vec<u8>,
}

fn der_of(pem: &str) -> Vec<u8> {
    read_certificates(pem.as_bytes(), &Limits::FILE).certificates[0].der().to_vec()
}

/// Writes a certificate of `ca` for `name`, and its key, over what is there.
fn write_pair(device: &Device, ca: &Authority, name: &str) -> Pair {
    let pair = KeyPair::generate().unwrap();
    let pem = ca.client_certificate_pem(name, &pair.subject_public_key_info()).unwrap();
    let (cert, key) = (device.folder.path().join("own.pem"), device.folder.path().join("own.key"));
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    std::fs::write(&cert, &pem).unwrap();
    Pair { cert, key, der: der_of(&pem) }
}

fn by_certificate(mut provisioning: Provisioning) -> Provisioning {
    let proof = DeviceCredential::X509 { cert: ID.parse().unwrap(), key: ID.parse().unwrap() };
    match &mut provisioning {
        Provisioning::Manual { credential, .. } | Provisioning::Dps { credential, .. } => {
            *credential = proof;
        }
        Provisioning::None => panic!("a device of no cloud shows no certificate"),
    }
    provisioning
}

/// A device whose certificate and key are in files.
async fn device_with_files(
    sim: &Simulator,
    provisioning: Provisioning,
    ca: &Authority,
    name: &str,
) -> (Device, Pair) {
    let mut device = Device::new(sim, by_certificate(provisioning)).await;
    let pair = write_pair(&device, ca, name);
    let file = PreloadedCert::File(format!("file://{}", pair.cert.display()));
    device.settings.preloaded_certs.insert(ID.parse().unwrap(), file);
    device.preloaded_keys.push((ID, pair.key.clone()));
    device.restart_keyd().await;
    (device, pair)
}

async fn empty_cloud() -> Simulator {
    Simulator::start(SimulatorOptions::default()).await.unwrap()
}

fn enrolled(name: &str, proof: Proof) -> Enrolment {
    let key = edgekeep_sim::token::Key::new(vec![1; 32]).unwrap();
    Enrolment { proof, ..Enrolment::new(name, key) }
}

/// Waits until the device has a module at the hub: the hub took its proof.
async fn until_module(device: &Device, module: &str) {
    let begun = std::time::Instant::now();
    loop {
        let made = device.identities().create_module(module).await;
        if made.is_ok() {
            return;
        }
        assert!(begun.elapsed() < DEADLINE, "no module: {made:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Waits until the reason why there is no identity has these words.
async fn until_reason(device: &Device, words: &str) -> String {
    let begun = std::time::Instant::now();
    loop {
        let reason = device.identities().device().await.unwrap_err().to_string();
        if reason.contains(words) {
            return reason;
        }
        assert!(begun.elapsed() < DEADLINE, "{words:?} is not in: {reason}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_device_of_a_hub_is_known_by_the_thumbprint_of_the_certificate_in_its_file() {
    let (sim, ca) = (empty_cloud().await, Authority::named("plant").unwrap());
    let (mut device, pair) = device_with_files(&sim, manual(&sim), &ca, "press-05").await;
    sim.add_device(PresetDevice::with_proof("press-05", Proof::thumbprint(&pair.der))).unwrap();
    device.start().await;
    let identity = device.until_device(|_| true).await;
    let auth = identity.auth.unwrap();
    assert_eq!((auth.kind, auth.cert_id.as_deref()), (AuthenticationKind::X509, Some(ID)));
    assert!(auth.key_handle.is_some());
    until_module(&device, "camera").await;
    assert_eq!(sim.state().refusals, Vec::<String>::new(), "no token, and the right certificate");
    // Modules sign tokens all the same.
    let module = crate::harness::aziot(device.identities().module("camera").await.unwrap());
    assert_eq!(module.auth.unwrap().kind, AuthenticationKind::Sas);
}

#[tokio::test]
async fn a_device_registers_by_its_certificate_and_the_hub_is_told_which_one_it_showed() {
    let (sim, ca) = (empty_cloud().await, Authority::named("plant").unwrap());
    let (mut device, pair) = device_with_files(&sim, dps(&sim), &ca, "press-04").await;
    sim.enrol(enrolled("press-04", Proof::thumbprint(&pair.der))).unwrap();
    device.start().await;
    device.until_device(|identity| identity.device_id == "press-04").await;
    until_module(&device, "camera").await;
    let told = device.identities().provisioning().await.unwrap();
    assert!(format!("{told:?}").contains("auth: \"x509\""), "{told:?}");
    assert_eq!(sim.state().refusals, Vec::<String>::new());
}

#[tokio::test]
async fn a_device_of_a_group_registers_under_the_name_in_its_certificate() {
    let (sim, ca) = (empty_cloud().await, Authority::named("plant").unwrap());
    let (mut device, _) = device_with_files(&sim, dps(&sim), &ca, "press-77").await;
    if let Provisioning::Dps { registration_id, .. } = &mut device.settings.provisioning {
        *registration_id = None;
    }
    let proof = Proof::Authorities(ca.certificate_pem().to_owned());
    sim.enrol_group(EnrolmentGroup {
        group_id: "presses".to_owned(),
        proof,
        hub: None,
        certificate_policy_name: None,
    })
    .unwrap();
    device.start().await;
    device.until_device(|identity| identity.device_id == "press-77").await;
    until_module(&device, "camera").await;
}

#[tokio::test]
async fn a_certificate_of_a_key_that_never_left_keyd_is_shown() {
    for algorithms in ["ec-p256", "rsa-2048"] {
        let (sim, ca) = (empty_cloud().await, Authority::named("plant").unwrap());
        let mut device = Device::new(&sim, by_certificate(dps(&sim))).await;
        let id = "device-key";
        let key = RemoteKey::load_or_make(device.keys(), id, algorithms).await.unwrap();
        let pem = ca.client_certificate_pem("press-04", key.public().info()).unwrap();
        let cert = device.folder.path().join("own.pem");
        std::fs::write(&cert, &pem).unwrap();
        let file = PreloadedCert::File(format!("file://{}", cert.display()));
        device.settings.preloaded_certs.insert(ID.parse().unwrap(), file);
        if let Provisioning::Dps { credential: DeviceCredential::X509 { key, .. }, .. } =
            &mut device.settings.provisioning
        {
            *key = id.parse().unwrap();
        }
        sim.enrol(enrolled("press-04", Proof::thumbprint(&der_of(&pem)))).unwrap();
        device.start().await;
        device.until_device(|identity| identity.device_id == "press-04").await;
        until_module(&device, "camera").await;
    }
}

#[tokio::test]
async fn a_certificate_that_the_service_does_not_know_is_named_as_the_reason() {
    let (sim, ca) = (empty_cloud().await, Authority::named("plant").unwrap());
    let other = Authority::named("another plant").unwrap();
    let (mut device, _) = device_with_files(&sim, dps(&sim), &other, "press-04").await;
    let proof = Proof::Authorities(ca.certificate_pem().to_owned());
    sim.enrol(enrolled("press-04", proof)).unwrap();
    device.start().await;
    until_reason(&device, "the client certificate is of no CA that is enrolled").await;
    device.stop().await;
    let wrong_name = write_pair(&device, &ca, "press-99");
    device.restart_keyd().await;
    device.start().await;
    until_reason(&device, "the client certificate names another device").await;
    std::fs::remove_file(&wrong_name.cert).unwrap();
    until_reason(&device, "certificate \"device-id\" not found").await;
}

#[tokio::test]
async fn a_key_that_is_not_the_certificates_is_never_used() {
    let (sim, ca) = (empty_cloud().await, Authority::named("plant").unwrap());
    let (mut device, pair) = device_with_files(&sim, dps(&sim), &ca, "press-04").await;
    sim.enrol(enrolled("press-04", Proof::thumbprint(&pair.der))).unwrap();
    std::fs::write(&pair.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    device.restart_keyd().await;
    device.start().await;
    until_reason(&device, "does not belong to key").await;
    assert_eq!(sim.state().calls.total(), 0, "nobody was shown anything");
}

#[tokio::test]
async fn a_certificate_by_est_is_waited_for_and_its_successor_is_told_to_the_hub() {
    let est = EstOptions {
        basic: Some(("plant".to_owned(), "wrench".to_owned().into())),
        clients_pem: String::new(),
        labels: Vec::new(),
    };
    let options = SimulatorOptions { est, ..SimulatorOptions::default() };
    let sim = Simulator::start(options).await.unwrap();
    let proof = Proof::Authorities(sim.est_root_pem(None).unwrap());
    sim.enrol(enrolled("press-04", proof)).unwrap();
    let mut device = Device::new(&sim, by_certificate(dps(&sim))).await;
    let roots = device.folder.path().join("est-roots.pem");
    std::fs::write(&roots, [sim.ca_pem(), &sim.est_root_pem(None).unwrap()].concat()).unwrap();
    device.settings.est = Some(EstSettings {
        trusted_certs: vec![roots.display().to_string()],
        urls: [("default".to_owned(), sim.est_url())].into(),
        basic: Some(EstBasic { username: "plant".to_owned(), password: "wrench".into() }),
    });
    let issued = Issuance {
        common_name: Some("press-04".to_owned()),
        renewal: Some(Policy { rotate_key: true, ..Policy::default() }),
        ..issuance(IssuanceMethod::Est)
    };
    device.settings.cert_issuance.insert(ID.parse().unwrap(), issued);
    device.start().await;
    device.until_device(|identity| identity.device_id == "press-04").await;
    until_module(&device, "camera").await;
    let (first, registered) =
        (device.certificates().load(ID).await.unwrap(), sim.state().calls.dps_register);
    device.certificates().renew(ID).await.unwrap();
    assert_ne!(device.certificates().load(ID).await.unwrap(), first);
    // The hub knows the device by the certificate that the service was shown: the device
    // registers anew, and is served all the while.
    until_module(&device, "lamp").await;
    assert!(sim.state().calls.dps_register > registered, "{:?}", sim.state().calls);
    // Renewed, and killed before it could tell: told by the next start.
    device.certificates().renew(ID).await.unwrap();
    device.kill().await;
    device.start().await;
    device.until_device(|identity| identity.device_id == "press-04").await;
    until_module(&device, "valve").await;
}

/// openssl's server as a hub: it demands a certificate of `plant/ca.pem`, and answers
/// each request with the file of its name.
struct OpensslHub {
    child: std::process::Child,
    port: u16,
    said: PathBuf,
}

impl OpensslHub {
    fn start(plant: &std::path::Path) -> Self {
        let said = plant.join("said");
        let file = std::fs::File::create(&said).unwrap();
        let child = std::process::Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-HTTP", "-Verify", "2"])
            .args(["-verify_return_error", "-CAfile", "ca.pem", "-cert", "server.pem"])
            .args(["-key", "server.key"])
            .current_dir(plant)
            .stdin(std::process::Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .expect("openssl is installed");
        let mut hub = Self { child, port: 0, said };
        let begun = std::time::Instant::now();
        while hub.port == 0 {
            assert!(begun.elapsed() < DEADLINE, "openssl does not listen: {}", hub.said());
            let said = hub.said();
            let port = said.lines().find_map(|line| line.strip_prefix("ACCEPT 127.0.0.1:"));
            hub.port = port.and_then(|port| port.trim().parse().ok()).unwrap_or(0);
            std::thread::yield_now();
        }
        hub
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap_or_default()
    }
}

impl Drop for OpensslHub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn openssl_as_the_hub_takes_the_certificate_of_its_ca_and_no_other() {
    let sim = empty_cloud().await;
    let (ca, other) = (Authority::named("plant").unwrap(), Authority::named("other").unwrap());
    let plant = tempfile::tempdir().unwrap();
    let server = ca.issue(&["localhost".to_owned()]).unwrap();
    std::fs::write(plant.path().join("ca.pem"), ca.certificate_pem()).unwrap();
    std::fs::write(plant.path().join("server.pem"), &server.chain_pem).unwrap();
    std::fs::write(plant.path().join("server.key"), server.key_pem.as_bytes()).unwrap();
    let folder = plant.path().join("devices/press-05");
    std::fs::create_dir_all(&folder).unwrap();
    let empty_list = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]";
    std::fs::write(folder.join("modules?api-version=2017-11-08-preview"), empty_list).unwrap();
    let hub = OpensslHub::start(plant.path());
    let at_openssl = Provisioning::Manual {
        hub: format!("localhost:{}", hub.port),
        device_id: "press-05".parse().unwrap(),
        credential: DeviceCredential::X509 { cert: ID.parse().unwrap(), key: ID.parse().unwrap() },
    };
    for (issuer, is_taken) in [(&ca, true), (&other, false)] {
        let (mut device, _) = device_with_files(&sim, at_openssl.clone(), issuer, "press-05").await;
        let roots = plant.path().join("ca.pem").display().to_string();
        device.settings.cloud.trusted_certs = vec![roots];
        device.start().await;
        let begun = std::time::Instant::now();
        loop {
            let list = device.identities().modules().await;
            let refused = device.identities().create_module("camera").await;
            let why = format!("{refused:?}");
            if is_taken && list.is_ok() && hub.said().contains("CN = press-05") {
                break;
            }
            if !is_taken && why.contains("refuses this device in the TLS handshake (unknown CA)") {
                break;
            }
            assert!(begun.elapsed() < DEADLINE, "{is_taken}: {list:?} {why}\n{}", hub.said());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        device.stop().await;
    }
}
