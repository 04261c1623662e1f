//! Each way to an identity, on the real daemons: what `config.toml` says, what the cloud
//! enrolled, and a module that works in the end.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_core::layout::Daemon;
use edgekeep_sim::token::Key;
use edgekeep_sim::{Enrolment, EnrolmentGroup, PresetDevice, Proof};
use edgekeep_testkit::{Device, wait_for};
use serde_json::Value;
use tempfile::TempDir;

use crate::{parts, swtpm};

const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// A CA and certificates of it, made by openssl.
struct Plant(TempDir);

impl Plant {
    fn new() -> Self {
        let plant = Self(tempfile::Builder::new().prefix("ek-").tempdir_in("/tmp").unwrap());
        // Without an extension openssl makes certificates of version 1, which TLS servers
        // of other makes refuse.
        std::fs::write(plant.path("v3"), "basicConstraints = CA:FALSE\n").unwrap();
        plant.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem \
             -subj /CN=plant -days 30",
        );
        plant
    }

    fn openssl(&self, arguments: &str) {
        let done = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .expect("openssl is installed");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// A certificate of this name and its key, in files.
    fn certify(&self, name: &str) -> (PathBuf, PathBuf) {
        self.openssl(&format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 10 -extfile v3"
        ));
        (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")))
    }

    fn thumbprint(&self, name: &str) -> Proof {
        self.openssl(&format!("x509 -in {name}.pem -outform DER -out {name}.der"));
        Proof::thumbprint(&std::fs::read(self.path(&format!("{name}.der"))).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn enrolled(name: &str, proof: Proof) -> Enrolment {
    Enrolment { proof, ..Enrolment::new(name, Key::new(vec![1; 32]).unwrap()) }
}

fn by_certificate(registration: &str, cert: &Path, key: &str) -> String {
    format!(
        "[provisioning]\nsource = \"dps\"\nglobal_endpoint = \"{{dps}}\"\nid_scope = \"0ne00000001\"\n\
         [provisioning.attestation]\nmethod = \"x509\"\n{registration}\nidentity_cert = \"file://{}\"\n\
         identity_pk = \"{key}\"\n",
        cert.display()
    )
}

/// Waits until the device has this identity, as an operator sees it.
fn until_identity(device: &Device, id: &str) -> Value {
    wait_for(&format!("the identity {id}"), || {
        let shown = device.edgekeep(&["identity", "show", "--json"]);
        let shown: Value = serde_json::from_slice(&shown.stdout).ok()?;
        (shown["deviceId"] == id).then_some(shown)
    })
}

/// What `edgekeep identity why` says.
fn why(device: &Device) -> Value {
    let shown = device.edgekeep(&["identity", "why", "--json"]);
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    serde_json::from_slice(&shown.stdout).unwrap()
}

/// Has a module made and used: hub, keys and certificates are in order.
fn use_a_module(device: &Device) {
    crate::wait_for_edge_ca(device);
    let module = device.add_caller("m1");
    let _ = module.sign().expect(200);
}

#[test]
fn a_symmetric_key_of_the_registration_leads_to_an_identity_that_says_how() {
    let device = Device::builder().start();
    let shown = until_identity(&device, "press-04");
    assert_eq!(shown["auth"]["type"], "sas");
    assert_eq!(shown["auth"]["keyHandle"], Value::Null, "a handle is nobody's to see");
    let stand = why(&device);
    assert_eq!((&stand["source"], &stand["auth"]), (&"dps".into(), &"symmetric_key".into()));
    assert_eq!((&stand["activity"], &stand["failures"]), (&"idle".into(), &0.into()));
    assert!(stand["obtainedAt"].as_str().unwrap().ends_with('Z'), "{stand}");
    let before = device.cloud().state().calls.dps_register;
    assert!(device.edgekeep(&["identity", "reprovision"]).status.success());
    device.wait_for_cloud(|state| state.calls.dps_register > before);
    use_a_module(&device);
}

#[test]
fn a_certificate_in_files_is_refused_with_a_reason_until_it_is_enrolled() {
    let plant = Plant::new();
    let (cert, key) = plant.certify("press-09");
    let toml = by_certificate("", &cert, &format!("file://{}", key.display()));
    let device = Device::builder().provisioning(&toml).start();
    let stand = wait_for("a failure", || {
        let stand = why(&device);
        stand["errors"][0]["reason"].is_string().then_some(stand)
    });
    assert!(
        stand["errors"][0]["reason"].as_str().unwrap().contains("no such enrolment"),
        "{stand}"
    );
    assert_eq!(stand["activity"], "pausing");
    assert!(stand["nextAttemptInSec"].is_u64() && stand["hubName"].is_null(), "{stand}");
    let text = device.edgekeep(&["identity", "why"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("no such enrolment") && text.contains("next attempt"), "{text}");

    let proof = Proof::Authorities(std::fs::read_to_string(plant.path("ca.pem")).unwrap());
    let group_id = "presses".to_owned();
    device
        .cloud()
        .enrol_group(EnrolmentGroup { group_id, proof, hub: None, certificate_policy_name: None })
        .unwrap();
    let shown = until_identity(&device, "press-09");
    assert_eq!(
        (&shown["auth"]["type"], &shown["auth"]["certId"]),
        (&"x509".into(), &"device-id".into())
    );
    use_a_module(&device);
    // The operator puts another pair in place: the hub is told by the service.
    let registered = device.cloud().state().calls.dps_register;
    plant.openssl("req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout n.key -out n.csr -subj /CN=press-09");
    plant.openssl(
        "x509 -req -in n.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out n.pem -days 10 -extfile v3",
    );
    // Into the same files: root's daemons may read those that were there at their start.
    std::fs::copy(plant.path("n.key"), &key).unwrap();
    std::fs::copy(plant.path("n.pem"), &cert).unwrap();
    device.wait_for_cloud(|state| state.calls.dps_register > registered);
    wait_for("a module by the new certificate", || {
        (device
            .agent()
            .manage(
                "POST",
                "/identities?api-version=2021-12-07",
                Some(serde_json::json!({"moduleId": "m2"})),
            )
            .status
            == 200)
            .then_some(())
    });
}

#[test]
fn a_device_of_a_hub_is_known_by_its_certificate() {
    let plant = Plant::new();
    let (cert, key) = plant.certify("press-08");
    let toml = format!(
        "[provisioning]\nsource = \"manual\"\niothub_hostname = \"{{hub}}\"\ndevice_id = \"press-08\"\n\
         [provisioning.authentication]\nmethod = \"x509\"\nidentity_cert = \"file://{}\"\nidentity_pk = \"file://{}\"\n",
        cert.display(),
        key.display()
    );
    let device = Device::builder().provisioning(&toml).start();
    let preset = PresetDevice::with_proof("press-08", plant.thumbprint("press-08"));
    device.cloud().add_device(preset).unwrap();
    assert_eq!(until_identity(&device, "press-08")["auth"]["type"], "x509");
    assert_eq!(why(&device)["source"], "manual");
    use_a_module(&device);
}

#[test]
fn a_certificate_whose_key_is_in_a_token_is_shown() {
    if parts::missing(&["softhsm2-util", SOFTHSM]) {
        return;
    }
    let plant = Plant::new();
    let (cert, key) = plant.certify("press-07");
    plant.openssl("pkcs8 -topk8 -nocrypt -in press-07.key -out press-07.p8");
    std::fs::create_dir(plant.path("tokens")).unwrap();
    let conf = plant.path("softhsm2.conf");
    std::fs::write(&conf, format!("directories.tokendir = {}\n", plant.path("tokens").display()))
        .unwrap();
    for arguments in [
        "--init-token --free --label edge --pin 1234 --so-pin 5678",
        "--import press-07.p8 --token edge --label press-07 --id 07 --pin 1234",
    ] {
        let done = Command::new("softhsm2-util")
            .args(arguments.split_whitespace())
            .current_dir(plant.0.path())
            .env("SOFTHSM2_CONF", &conf)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    // The token alone has it from now on.
    std::fs::remove_file(&key).unwrap();
    std::fs::remove_file(plant.path("press-07.p8")).unwrap();
    let uri = "pkcs11:token=edge;object=press-07?pin-value=1234";
    let toml = by_certificate("registration_id = \"press-07\"", &cert, uri);
    let paths = plant.0.path().display();
    let device = Device::builder()
        .provisioning(&toml)
        .tables(&format!(
            "[aziot_keys]\npkcs11_lib_path = \"{SOFTHSM}\"\nsandbox_paths = [\"{paths}\"]\n"
        ))
        .variable("SOFTHSM2_CONF", &conf.display().to_string())
        .start();
    device.cloud().enrol(enrolled("press-07", plant.thumbprint("press-07"))).unwrap();
    assert_eq!(until_identity(&device, "press-07")["auth"]["type"], "x509");
    use_a_module(&device);
}

#[test]
fn a_tpm_proves_itself_by_a_credential_that_only_it_can_activate() {
    if swtpm::skip() {
        return;
    }
    let tpm = swtpm::Swtpm::start();
    let tools = tpm.folder("tools");
    // The enrolment is what the manufacturer's tools say of the TPM.
    tpm.tool_ok(&tools, "tpm2_createek", &["-G", "rsa", "-c", "0x81010001"]);
    tpm.tool_ok(&tools, "tpm2_readpublic", &["-c", "0x81010001", "-f", "tss", "-o", "ek.pub"]);
    let endorsement = STANDARD.encode(std::fs::read(tools.join("ek.pub")).unwrap());
    let toml = "[provisioning]\nsource = \"dps\"\nglobal_endpoint = \"{dps}\"\nid_scope = \"0ne00000001\"\n\
                attestation = { method = \"tpm\", registration_id = \"press-06\" }\n";
    let mut device = Device::builder()
        .provisioning(toml)
        .tables(&format!("[tpm]\ntcti = \"{}\"\n", tpm.tcti()))
        .start();
    // Another TPM's enrolment is not this one's.
    let other = STANDARD.encode([7; 100]);
    device.cloud().enrol(enrolled("press-06", Proof::EndorsementKey(other))).unwrap();
    wait_for("the refusal", || {
        let stand = why(&device);
        let errors = stand["errors"].as_array()?;
        errors
            .iter()
            .any(|error| {
                error["reason"]
                    .as_str()
                    .is_some_and(|reason| reason.contains("endorsement key is another one"))
            })
            .then_some(())
    });
    device.cloud().enrol(enrolled("press-06", Proof::EndorsementKey(endorsement))).unwrap();
    let shown = until_identity(&device, "press-06");
    assert_eq!(shown["auth"], serde_json::json!({ "type": "tpm" }));
    use_a_module(&device);
    // A registration that fails leaves the hub's key in its place.
    device
        .cloud()
        .enrol(enrolled("press-06", Proof::EndorsementKey(STANDARD.encode([7; 100]))))
        .unwrap();
    assert!(device.edgekeep(&["identity", "reprovision"]).status.success());
    wait_for("the failure", || (why(&device)["failures"] != 0).then_some(()));
    let _ = device.create_identity("m2");
    // After a restart without the service the TPM's key is there.
    device.kill(Daemon::Identityd);
    device.start(Daemon::Identityd);
    until_identity(&device, "press-06");
    let _ = device.create_identity("m3");
}
