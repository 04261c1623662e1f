//! The workload API, route by route, and what its answers are worth to others.

use std::path::Path;
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_core::attestation::DenyReason;
use edgekeep_testkit::{Device, base64, http, program, wait_for};
use serde_json::{Value, json};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::prelude::X509Certificate;

use crate::wait_for_edge_ca;

const V: &str = "api-version=2020-07-07";

#[test]
fn a_module_gets_from_nothing_to_a_message_that_the_hub_accepts() {
    let device = Device::builder().host_module("thermometer", program("thermometer")).start();
    wait_for_edge_ca(&device);
    let generation = device.create_identity("thermometer");
    let report = device.root().path().join("report.jsonl");
    let mut spec = device.spec("thermometer", "thermometer", &generation);
    spec["config"]["settings"]["createOptions"] = json!({ "Env": [
        "EDGEKEEP_DEMO_PERIOD=0",
        format!("EDGEKEEP_DEMO_REPORT={}", report.display()),
        format!("EDGEKEEP_DEMO_HUB_CA={}", device.root().path().join("cloud.pem").display()),
    ] });
    device.create_and_start(spec);
    let steps: Vec<Value> = wait_for("all steps of the module", || {
        let text = std::fs::read_to_string(&report).unwrap_or_default();
        let steps: Vec<Value> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (steps.len() >= 5).then_some(steps)
    });
    assert!(steps.iter().all(|step| step["ok"] == true), "{steps:#?}");
    let names: Vec<&str> = steps.iter().filter_map(|step| step["step"].as_str()).collect();
    assert_eq!(names, ["trust-bundle", "certificate/server", "verify chain", "sign", "hub"]);
    let state = device.cloud().state();
    assert_eq!(state.devices["press-04"].modules["thermometer"].accepted_messages, 1);
    assert_eq!(state.refusals, Vec::<String>::new());
}

#[test]
fn signatures_belong_to_one_module_in_one_life() {
    let device = Device::builder().start();
    let (m1, m2) = (device.add_caller("m1"), device.add_caller("m2"));
    let digest = |caller: &edgekeep_testkit::Caller| {
        caller.sign().expect(200)["digest"].as_str().unwrap().to_owned()
    };
    let first = digest(&m1);
    assert_eq!(STANDARD.decode(&first).unwrap().len(), 32);
    assert_eq!(digest(&m1), first, "the same every time");
    assert_ne!(digest(&m2), first);
    // What clients send for key and algorithm does not matter.
    let target = format!("/modules/{{m}}/genid/{{g}}/sign?{V}");
    for body in [
        json!({"data": "ZGF0YQ=="}),
        json!({"keyId": "x", "algo": "y", "data": "ZGF0YQ==", "z": 1}),
    ] {
        assert_eq!(m1.call("POST", &target, Some(body)).expect(200)["digest"], first);
    }
    // Another life of the identity signs with another key, and the old name of it is
    // refused.
    let other = m1.call(
        "POST",
        &format!("/modules/{{m}}/genid/636000000000000000/sign?{V}"),
        Some(json!({"data": ""})),
    );
    device.assert_refused(&other, "m1", DenyReason::GenerationMismatch);
    for (body, status) in
        [(Some(json!({"keyId": "primary"})), 422), (Some(json!({"data": 5})), 422), (None, 400)]
    {
        assert_eq!(m1.call("POST", &target, body.clone()).status, status, "{body:?}");
    }
    let answer = m1.call("POST", &target, Some(json!({"data": "not base64!"})));
    assert!(matches!(answer.status, 400 | 422), "{}", answer.text());
    assert!(!answer.text().contains("not base64!"), "{}", answer.text());
}

#[test]
fn the_log_of_key_uses_says_for_which_module_and_program_a_key_was_used() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let _ = m1.sign().expect(200);
    let output = device.edgekeep(&["audit", "show", "-n", "1000", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let entries: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let entries = entries.iter().map(|line| &line["entry"]).filter(|entry| entry["for"] == "m1");
    let entries: Vec<&Value> = entries.collect();
    let sum = Command::new("sha256sum").arg(program("calls")).output().unwrap().stdout;
    let digest = format!("sha256:{}", &String::from_utf8(sum).unwrap()[..64]);
    assert_eq!(entries.len(), 1, "{entries:?}");
    let expected = json!({"what": "sign", "key": "aziot_identityd_master_id", "module": "m1", "executable": digest});
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&entries[0][name], value, "{name}: {}", entries[0]);
    }
    let text = String::from_utf8(device.edgekeep(&["audit", "show", "-n", "1000"]).stdout).unwrap();
    let shown = format!("for module m1 (exe {})", &digest[..19]);
    assert!(text.contains(&shown), "{text}");
    let verified = device.edgekeep(&["audit", "verify"]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

#[test]
fn what_a_module_encrypts_only_it_decrypts() {
    let device = Device::builder().start();
    let (m1, m2) = (device.add_caller("m1"), device.add_caller("m2"));
    let encrypt = format!("/modules/{{m}}/genid/{{g}}/encrypt?{V}");
    let decrypt = format!("/modules/{{m}}/genid/{{g}}/decrypt?{V}");
    let large = vec![7; 100_000];
    // Existing clients use initialization vectors of 12 to 32 bytes and more.
    for (iv, plaintext) in
        [(&b"0123456789ab"[..], &b"text"[..]), (&[b'f'; 32], b""), (b"x", &large)]
    {
        let body = json!({ "plaintext": base64(plaintext), "initializationVector": base64(iv) });
        // Large bodies do not fit into one line of the module's FIFO at once, but arrive
        // all the same.
        let ciphertext = m1.call("POST", &encrypt, Some(body)).expect(200)["ciphertext"].clone();
        let body = json!({ "ciphertext": ciphertext, "initializationVector": base64(iv) });
        let decrypted =
            m1.call("POST", &decrypt, Some(body.clone())).expect(200)["plaintext"].clone();
        assert_eq!(STANDARD.decode(decrypted.as_str().unwrap()).unwrap(), plaintext);
        assert_eq!(
            m2.call("POST", &decrypt, Some(body.clone())).status,
            500,
            "another module cannot"
        );
        let other_iv =
            json!({ "ciphertext": ciphertext, "initializationVector": base64(b"another vector") });
        assert_eq!(m1.call("POST", &decrypt, Some(other_iv)).status, 500);
        let mut bytes = STANDARD.decode(ciphertext.as_str().unwrap()).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        let changed = json!({ "ciphertext": base64(&bytes), "initializationVector": base64(iv) });
        let answer = m1.call("POST", &decrypt, Some(changed));
        assert_eq!(answer.status, 500, "{}", answer.text());
    }
    for body in [json!({"plaintext": "eA=="}), json!({"initializationVector": "eA=="}), json!({})] {
        assert_eq!(m1.call("POST", &encrypt, Some(body)).status, 422);
    }
    let survives = json!({ "plaintext": base64(b"kept"), "initializationVector": base64(b"iv") });
    let ciphertext = m1.call("POST", &encrypt, Some(survives)).expect(200)["ciphertext"].clone();
    // Keys are kept: also by a keyd that was started anew.
    let mut device = device;
    device.kill(edgekeep_core::layout::Daemon::Keyd);
    device.start(edgekeep_core::layout::Daemon::Keyd);
    let body = json!({ "ciphertext": ciphertext, "initializationVector": base64(b"iv") });
    assert_eq!(m1.call("POST", &decrypt, Some(body)).expect(200)["plaintext"], base64(b"kept"));
}

struct Issued {
    chain: Vec<Pem>,
    answer: Value,
}

impl Issued {
    fn new(answer: Value) -> Self {
        let text = answer["certificate"].as_str().unwrap().as_bytes();
        let chain = Pem::iter_from_buffer(text).collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(answer["privateKey"]["type"], "key");
        assert!(
            answer["privateKey"]["bytes"]
                .as_str()
                .unwrap()
                .starts_with("-----BEGIN PRIVATE KEY-----"),
            "PKCS#8"
        );
        assert!(answer["expiration"].as_str().unwrap().ends_with("+00:00"), "{answer}");
        Self { chain, answer }
    }

    fn leaf(&self) -> X509Certificate<'_> {
        self.chain[0].parse_x509().unwrap()
    }

    fn common_name(&self) -> String {
        let leaf = self.leaf();
        leaf.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned()
    }

    fn names(&self) -> Vec<String> {
        let leaf = self.leaf();
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        let shown = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => format!("dns:{name}"),
            GeneralName::URI(name) => format!("uri:{name}"),
            GeneralName::IPAddress(bytes) => format!("ip:{bytes:?}"),
            other => format!("{other:?}"),
        };
        names.value.general_names.iter().map(shown).collect()
    }
}

fn openssl(arguments: &[&str]) -> Output {
    Command::new("openssl")
        .args(arguments)
        .output()
        .expect("openssl is installed: apt-get install openssl")
}

/// A foreign implementation builds and checks the chain, and checks that the key is the
/// certificate's.
fn verified_by_openssl(folder: &Path, bundle: &str, issued: &Issued, purpose: &str) {
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let chain = issued.answer["certificate"].as_str().unwrap();
    let (bundle, chain) = (file("bundle.pem", bundle), file("chain.pem", chain));
    let key = file("key.pem", issued.answer["privateKey"]["bytes"].as_str().unwrap());
    let verified = openssl(&[
        "verify",
        "-x509_strict",
        "-purpose",
        purpose,
        "-CAfile",
        &bundle,
        "-untrusted",
        &chain,
        &chain,
    ]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let of_certificate = openssl(&["x509", "-in", &chain, "-pubkey", "-noout"]);
    let of_key = openssl(&["pkey", "-in", &key, "-pubout"]);
    assert!(
        of_key.status.success() && of_key.stdout == of_certificate.stdout,
        "the key is another one's"
    );
}

#[test]
fn certificates_are_what_a_foreign_implementation_verifies() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let bundle = m1.call("GET", &format!("/trust-bundle?{V}"), None).expect(200)["certificate"]
        .as_str()
        .unwrap()
        .to_owned();
    let folder = device.root().path().join("check");
    std::fs::create_dir(&folder).unwrap();

    let server = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{V}");
    let ask = |name: &str, expiration: &str| {
        m1.call("POST", &server, Some(json!({"commonName": name, "expiration": expiration})))
    };
    let issued = Issued::new(ask("press-04.plant7", "2099-01-01T00:00:00Z").expect(201));
    assert_eq!(issued.common_name(), "press-04.plant7");
    assert_eq!(issued.names(), ["dns:press-04.plant7", "dns:m1"]);
    verified_by_openssl(&folder, &bundle, &issued, "sslserver");
    let issuer = issued.chain.get(1).expect("the issuer comes along").parse_x509().unwrap();
    assert!(issuer.is_ca());
    let leaf = issued.leaf();
    assert!(!leaf.is_ca());
    assert!(leaf.validity().not_after <= issuer.validity().not_after, "not longer than its issuer");
    assert_ne!(leaf.raw_serial(), [0], "each has a serial number of its own");
    let second = Issued::new(ask("press-04.plant7", "2099-01-01T00:00:00Z").expect(201));
    assert_ne!(second.leaf().raw_serial(), leaf.raw_serial());
    assert_ne!(second.answer["privateKey"], issued.answer["privateKey"], "a new key each time");

    let address = Issued::new(ask("192.0.2.7", "2099-01-01T00:00:00Z").expect(201));
    assert_eq!(address.names(), ["ip:[192, 0, 2, 7]", "dns:m1"]);
    for wrong in ["", "two words", "a/b", "x\u{0}y", "*..", &"a".repeat(300)] {
        ask(wrong, "2099-01-01T00:00:00Z").expect_error(400, "commonName");
    }
    assert_eq!(m1.call("POST", &server, Some(json!({}))).status, 422);
    assert_eq!(m1.call("POST", &server, None).status, 400);

    // The body of the other route may be absent, empty, or anything.
    let identity = format!("/modules/{{m}}/certificate/identity?{V}");
    for body in [None, Some(json!({})), Some(json!({"expiration": "2099-01-01T00:00:00Z"}))] {
        let issued = Issued::new(m1.call("POST", &identity, body).expect(201));
        assert_eq!(issued.common_name(), "m1");
        let uri =
            format!("uri:azureiot://{}/devices/press-04/modules/m1", device.cloud().hub_host());
        assert_eq!(issued.names(), [uri]);
        verified_by_openssl(&folder, &bundle, &issued, "sslclient");
    }
}

#[test]
fn the_trust_bundle_is_for_everybody_and_names_the_edge_ca() {
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let target = format!("/trust-bundle?{V}");
    let own = m1.call("GET", &target, None).expect(200);
    let pem = own["certificate"].as_str().unwrap().as_bytes();
    let certificates: Vec<Pem> = Pem::iter_from_buffer(pem).collect::<Result<_, _>>().unwrap();
    assert!(certificates.iter().all(|pem| pem.parse_x509().unwrap().is_ca()));
    assert_eq!(certificates.len(), 1);
    for socket in [device.module_socket("m1"), device.root().legacy_workload_socket()] {
        assert_eq!(http::call(&socket, "GET", &target, None).unwrap().expect(200), own);
        let manifest =
            http::call(&socket, "GET", &format!("/manifest-trust-bundle?{V}"), None).unwrap();
        assert_eq!(manifest.expect(200), json!({ "certificate": "" }));
        for list in ["/modules", "/modules/"] {
            let list =
                http::call(&socket, "GET", &format!("{list}?{V}"), None).unwrap().expect(200);
            let names: Vec<&str> = list["modules"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|it| it["name"].as_str())
                .collect();
            assert_eq!(names, ["edgeAgent", "m1"]);
        }
    }
}

#[test]
fn the_shared_socket_serves_each_module_by_evidence_alone() {
    let device = Device::builder().start();
    let (m1, m2) = (device.add_caller("m1"), device.add_caller("m2"));
    let shared = device.root().legacy_workload_socket();
    let target = format!("/modules/{{m}}/genid/{{g}}/sign?{V}");
    let body = Some(json!({"data": "ZGF0YQ=="}));
    for caller in [&m1, &m2, device.agent()] {
        let own = caller.call("POST", &target, body.clone()).expect(200);
        assert_eq!(
            caller.call_at(&shared, "POST", &target, body.clone()).unwrap().expect(200),
            own
        );
    }
}
