//! Every route of the keys API over a real socket: what it answers to who may ask, to who
//! may not, and to bad requests.
#![allow(clippy::unwrap_used, reason = "tests")]

mod bounds;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use aws_lc_rs::{hmac, signature};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_audit::checkpoint::Checkpoint;
use edgekeep_audit::tree::{Frontier, leaf_hash};
use edgekeep_core::clock::{BootId, Deadline};
use edgekeep_core::key_use::Binding;
use edgekeep_core::key_use::Policy;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::{KeyPrincipal, KeydSettings};
use edgekeep_daemon::clock::BootClock;
use edgekeep_daemon::listen;
use edgekeep_daemon::server::{Limits, serve};
use edgekeep_hsm::software::SoftwareBackend;
use edgekeep_keyd::handle::Handles;
use edgekeep_keyd::{Keyd, routes};
use serde_json::{Value, json};
use tokio::sync::watch;

/// A running keyd. It stops when dropped.
struct Device {
    root: Root,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Device {
    /// A keyd in `folder` whose every key the test's own user may name.
    fn start(folder: &Path) -> Self {
        Self::start_with(folder, &["*"], &BTreeMap::new())
    }

    /// A keyd that grants the test's own user these patterns only, whoever that user is.
    fn start_with(folder: &Path, patterns: &[&str], preloaded: &BTreeMap<&str, PathBuf>) -> Self {
        let keys: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        let uri = |path: &PathBuf| format!("file://{}", path.display()).into();
        let export = keys.clone();
        Self::start_as(
            folder,
            KeydSettings {
                principals: vec![KeyPrincipal {
                    uid: uid(),
                    keys,
                    export,
                    ..KeyPrincipal::default()
                }],
                preloaded_keys: preloaded
                    .iter()
                    .map(|(id, path)| (id.parse().unwrap(), uri(path)))
                    .collect(),
                auditors: vec![uid()],
                ..KeydSettings::default()
            },
        )
    }

    /// A keyd with these settings, in which uid 0 has no more than they say.
    fn start_as(folder: &Path, settings: KeydSettings) -> Self {
        let root = Root::new(folder);
        let policy = Policy::new(&settings).with_root_restricted();
        let (stop, stopping) = watch::channel(false);
        let (bound, ready) = std::sync::mpsc::channel();
        let device = root.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let keyd = Keyd::open(&device, &settings, policy).unwrap();
                let listener = listen::bind(&device.keyd_socket(), 0o660).unwrap();
                bound.send(()).unwrap();
                serve(
                    listener,
                    Arc::new(routes::router(Arc::new(keyd))),
                    Limits::default(),
                    stopping,
                )
                .await;
            });
        });
        ready.recv().unwrap();
        Self { root, stop, thread: Some(thread) }
    }

    /// One request on a connection of its own.
    fn send(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.root.keyd_socket()).unwrap();
        let request = format!(
            "{method} {path}{}api-version=2021-05-01 HTTP/1.1\r\nHost: keyd.sock\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            if path.contains('?') { '&' } else { '?' },
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() })
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("POST", path, &body.to_string())
    }

    /// The answer's one member, if the request succeeds with 200.
    fn value(&self, path: &str, body: &Value, member: &str) -> String {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer.as_object().unwrap().len(), 1, "{answer}");
        answer[member].as_str().unwrap().to_owned()
    }

    fn bytes(&self, path: &str, body: &Value, member: &str) -> Vec<u8> {
        STANDARD.decode(self.value(path, body, member)).unwrap()
    }

    /// Makes or loads a symmetric key.
    fn key(&self, id: &str) -> String {
        self.value("/key", &json!({"keyId": id, "usage": "derive,sign,encrypt"}), "keyHandle")
    }

    fn import(&self, id: &str, bytes: &[u8]) -> String {
        let body = json!({"keyId": id, "usage": "derive,sign,encrypt", "keyBytes": b64(bytes)});
        self.value("/key", &body, "keyHandle")
    }

    fn pair(&self, id: &str, algorithms: &str) -> String {
        self.value(
            "/keypair",
            &json!({"keyId": id, "preferredAlgorithms": algorithms}),
            "keyHandle",
        )
    }

    fn derive(&self, base: &str, data: &[u8]) -> String {
        self.value(
            "/derivedkey",
            &json!({"baseKeyHandle": base, "derivationData": b64(data)}),
            "keyHandle",
        )
    }

    fn parameter(&self, handle: &str, name: &str) -> String {
        self.value(&format!("/parameters/{name}"), &json!({ "keyHandle": handle }), "value")
    }

    fn hmac(&self, handle: &str, message: &[u8]) -> Vec<u8> {
        let body = json!({"keyHandle": handle, "algorithm": "HMAC-SHA256", "parameters": {"message": b64(message)}});
        self.bytes("/sign", &body, "signature")
    }

    /// A GET that has to succeed.
    fn get(&self, path: &str) -> Value {
        let (status, answer) = self.send("GET", path, "");
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The audit log's entries about keys, without their times and pids.
    fn audit(&self) -> Vec<Value> {
        // Also waits until everything is written.
        self.get("/audit/checkpoint");
        let answer = self.get("/audit/entries");
        let entries = answer["entries"].as_array().unwrap().iter();
        let mut entries: Vec<Value> =
            entries.map(|entry| serde_json::from_str(entry.as_str().unwrap()).unwrap()).collect();
        entries.retain(|entry| !entry["what"].as_str().unwrap().starts_with("log-"));
        for entry in &mut entries {
            let entry = entry.as_object_mut().unwrap();
            assert!(entry.remove("time").is_some() && entry.remove("pid").is_some());
        }
        entries
    }

    fn last_entry(&self) -> Value {
        self.audit().pop().unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// The end of a handle that is made now and good for an hour.
fn in_an_hour() -> Deadline {
    Deadline::after(BootClock::read().now(), std::time::Duration::from_secs(3600))
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The handles that a keyd in `folder` makes. No keyd runs there meanwhile.
fn handles(folder: &Path) -> Handles {
    let folder = Root::new(folder).state_folder(Daemon::Keyd);
    let backend = SoftwareBackend::open(&folder, BTreeMap::new()).unwrap();
    Handles::new(&backend.internal_key(&"handle-validation-key".parse().unwrap()).unwrap())
}

fn b64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec()
}

#[track_caller]
fn refused((status, answer): (u16, Value), expected: u16, reason: &str) {
    let message = answer["message"].as_str().unwrap_or_default();
    assert_eq!(status, expected, "{answer}");
    assert!(message.contains(reason), "{answer} should mention {reason:?}");
}

const INVALID_HANDLE: &str = "parameter \"handle\" has an invalid value";

#[test]
fn creating_a_key_again_gives_the_same_key_and_loading_does_too() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let first = device.key("k");
    let again = device.key("k");
    let (status, loaded) = device.send("GET", "/key/k", "");
    assert_eq!(status, 200);
    let loaded = loaded["keyHandle"].as_str().unwrap();
    assert_ne!(first, again, "each handle has a nonce of its own");
    assert_eq!(device.hmac(&first, b"m"), device.hmac(&again, b"m"));
    assert_eq!(device.hmac(&first, b"m"), device.hmac(loaded, b"m"));
}

#[test]
fn an_imported_key_replaces_the_one_before_and_signs_as_itself() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let handle = device.key("device-id");
    device.import("device-id", b"imported");
    assert_eq!(device.hmac(&handle, b"m"), hmac_sha256(b"imported", b"m"));
}

#[test]
fn keys_and_handles_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let (key, pair) = (device.key("k"), device.pair("p", "ec-p256"));
    let derived = device.derive(&key, b"module");
    let before =
        (device.hmac(&key, b"m"), device.hmac(&derived, b"m"), device.parameter(&pair, "ec-point"));
    drop(device);
    let device = Device::start(folder.path());
    let after =
        (device.hmac(&key, b"m"), device.hmac(&derived, b"m"), device.parameter(&pair, "ec-point"));
    assert_eq!(after, before);
}

#[test]
fn a_key_created_with_bad_bytes_usage_or_id_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let create = |body: Value| device.post("/key", &body);
    refused(
        create(json!({"keyId": "k", "usage": "sign", "keyBytes": ""})),
        400,
        "the key is empty",
    );
    refused(
        create(json!({"keyId": "k", "usage": "sign", "keyBytes": "A==="})),
        422,
        "not standard base64",
    );
    refused(
        create(json!({"keyId": "k", "usage": "sign", "keyBytes": 7})),
        422,
        "invalid request body",
    );
    refused(create(json!({"keyId": "k", "usage": "wrap"})), 422, "usage is not a comma list");
    refused(create(json!({"keyId": "k"})), 422, "missing field `usage`");
    refused(
        create(json!({"keyId": "", "usage": "sign"})),
        400,
        "parameter \"id\" has an invalid value",
    );
    refused(
        create(json!({"keyId": "a b", "usage": "sign"})),
        400,
        "parameter \"id\" has an invalid value",
    );
    refused(device.send("POST", "/key", r#"{"keyId":"k","usa"#), 422, "breaks off");
    refused(device.send("POST", "/key", ""), 400, "missing request body");
    refused(device.send("GET", "/key/k", ""), 400, "there is no key \"k\"");
}

#[test]
fn a_refused_body_is_not_repeated_in_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let (status, answer) =
        device.post("/key", &json!({"keyId": "k", "usage": "sign", "keyBytes": "hunter2!"}));
    assert_eq!(status, 422);
    assert!(!answer.to_string().contains("hunter2"), "{answer}");
}

#[test]
fn deleted_keys_are_gone_and_their_handles_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let (key, pair) = (device.key("k"), device.pair("p", "ec-p256"));
    let derived = device.derive(&key, b"d");
    let delete = |path: &str, handle: &str| {
        device.send("DELETE", path, &json!({ "keyHandle": handle }).to_string())
    };
    refused(delete("/key", &pair), 400, "another kind of key");
    refused(delete("/keypair", &key), 400, "another kind of key");
    refused(delete("/key", &derived), 400, "another kind of key");
    refused(delete("/key", "x"), 400, INVALID_HANDLE);
    assert_eq!(delete("/key", &key), (204, Value::Null));
    assert_eq!(delete("/keypair", &pair), (204, Value::Null));
    refused(delete("/key", &key), 400, "there is no key \"k\"");
    refused(delete("/keypair", &pair), 400, "there is no key \"p\"");
    let sign =
        json!({"keyHandle": derived, "algorithm": "HMAC-SHA256", "parameters": {"message": ""}});
    refused(device.post("/sign", &sign), 400, "there is no key \"k\"");
    refused(device.send("GET", "/keypair/p", ""), 400, "there is no key \"p\"");
}

#[test]
fn a_caller_without_a_grant_is_refused_with_401_on_every_route_that_takes_an_id() {
    let folder = tempfile::tempdir().unwrap();
    let owner = Device::start(folder.path());
    let (key, pair) = (owner.key("secret"), owner.pair("secret-pair", "ec-p256"));
    let derived = owner.derive(&key, b"d");
    drop(owner);
    let device = Device::start_with(folder.path(), &["mine*"], &BTreeMap::new());
    device.pair("mine-pair", "ec-p256");
    let by_handle = |handle: &str| json!({ "keyHandle": handle }).to_string();
    for (method, path, body, what, object) in [
        (
            "POST",
            "/key",
            json!({"keyId": "secret", "usage": "sign"}).to_string(),
            "create",
            "secret",
        ),
        (
            "POST",
            "/key",
            json!({"keyId": "secret", "usage": "sign", "keyBytes": "AAAA"}).to_string(),
            "import",
            "secret",
        ),
        ("GET", "/key/secret", String::new(), "load", "secret"),
        ("GET", "/key/absent", String::new(), "load", "absent"),
        ("DELETE", "/key", by_handle(&key), "delete", "secret"),
        ("POST", "/keypair", json!({"keyId": "secret-pair"}).to_string(), "create", "secret-pair"),
        ("GET", "/keypair/secret-pair", String::new(), "load", "secret-pair"),
        (
            "POST",
            "/keypair/mine",
            json!({"from": "secret-pair"}).to_string(),
            "move",
            "secret-pair",
        ),
        (
            "POST",
            "/keypair/secret-pair",
            json!({"from": "mine-pair"}).to_string(),
            "move",
            "secret-pair",
        ),
        ("DELETE", "/keypair", by_handle(&pair), "delete", "secret-pair"),
    ] {
        refused(device.send(method, path, &body), 401, "unauthorized");
        let expected = json!({"uid": uid(), "what": what, "key": object, "result": "refused", "reason": "no-grant"});
        assert_eq!(device.last_entry(), expected);
    }
    refused(device.send("POST", "/derivedkey/export", &by_handle(&derived)), 401, "unauthorized");
    assert_eq!(device.last_entry()["reason"], "no-export-grant");
    // A handle from when there was a grant is good as long as handles are.
    assert_eq!(device.hmac(&derived, b"m").len(), 32);
    assert_eq!(device.parameter(&pair, "algorithm"), "ECDSA");
}

#[test]
fn the_handle_validation_key_cannot_be_named_by_anybody() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let id = "handle-validation-key";
    for (method, path, body) in [
        ("POST", "/key".to_owned(), json!({"keyId": id, "usage": "sign"}).to_string()),
        (
            "POST",
            "/key".to_owned(),
            json!({"keyId": id, "usage": "sign", "keyBytes": "AAAA"}).to_string(),
        ),
        ("GET", format!("/key/{id}"), String::new()),
        ("POST", "/keypair".to_owned(), json!({ "keyId": id }).to_string()),
        ("POST", format!("/keypair/{id}"), json!({"from": "a"}).to_string()),
        ("POST", "/keypair/a".to_owned(), json!({ "from": id }).to_string()),
    ] {
        refused(device.send(method, &path, &body), 401, "unauthorized");
        assert_eq!(device.last_entry()["reason"], "reserved-key");
    }
}

#[test]
fn forged_foreign_and_mangled_handles_are_refused_everywhere_and_written_down() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let device = Device::start(folder.path());
    device.key("k");
    let foreign = Device::start(elsewhere.path()).key("k");
    let ours = device.key("k");
    let mut forged = ours.clone().into_bytes();
    forged[8] ^= 1;
    for handle in
        [foreign.as_str(), std::str::from_utf8(&forged).unwrap(), "", "sr=&sig=", &ours[1..]]
    {
        for (method, path, body) in [
            ("DELETE", "/key", json!({ "keyHandle": handle })),
            ("DELETE", "/keypair", json!({ "keyHandle": handle })),
            ("POST", "/parameters/algorithm", json!({ "keyHandle": handle })),
            ("POST", "/derivedkey", json!({"baseKeyHandle": handle, "derivationData": ""})),
            ("POST", "/derivedkey/export", json!({ "keyHandle": handle })),
            (
                "POST",
                "/sign",
                json!({"keyHandle": handle, "algorithm": "ECDSA", "parameters": {"digest": ""}}),
            ),
            (
                "POST",
                "/encrypt",
                json!({"keyHandle": handle, "algorithm": "RSA-PKCS1", "plaintext": ""}),
            ),
            (
                "POST",
                "/decrypt",
                json!({"keyHandle": handle, "algorithm": "AEAD", "parameters": {"iv": "", "aad": ""}, "ciphertext": ""}),
            ),
        ] {
            let (status, answer) = device.send(method, path, &body.to_string());
            assert_eq!(
                (status, &answer),
                (400, &json!({"message": INVALID_HANDLE, "code": "key-handle"})),
                "{method} {path}"
            );
        }
    }
    let expected =
        json!({"uid": uid(), "what": "decrypt", "result": "refused", "reason": "foreign-handle"});
    assert_eq!(device.last_entry(), expected);
}

/// The routes that take a handle of a symmetric key or of one derived from it, and what
/// each is written down as.
fn uses(handle: &str) -> Vec<(&'static str, &'static str, Value, &'static str)> {
    let aead = json!({"iv": "AAAA", "aad": ""});
    vec![
        (
            "POST",
            "/sign",
            json!({"keyHandle": handle, "algorithm": "HMAC-SHA256", "parameters": {"message": ""}}),
            "sign",
        ),
        (
            "POST",
            "/encrypt",
            json!({"keyHandle": handle, "algorithm": "AEAD", "parameters": aead, "plaintext": ""}),
            "encrypt",
        ),
        (
            "POST",
            "/decrypt",
            json!({"keyHandle": handle, "algorithm": "AEAD", "parameters": aead, "ciphertext": ""}),
            "decrypt",
        ),
        ("POST", "/derivedkey", json!({"baseKeyHandle": handle, "derivationData": ""}), "derive"),
        ("POST", "/derivedkey/export", json!({"keyHandle": handle}), "export"),
        ("POST", "/parameters/algorithm", json!({"keyHandle": handle}), "parameters"),
        ("DELETE", "/key", json!({"keyHandle": handle}), "delete"),
    ]
}

#[test]
fn a_handle_that_was_stolen_from_another_uid_is_refused_everywhere_and_written_down() {
    let folder = tempfile::tempdir().unwrap();
    Device::start(folder.path()).key("aziot_identityd_master_id");
    let id = "aziot_identityd_master_id".parse().unwrap();
    let purpose = Some(edgekeep_audit::entry::Purpose::Identity);
    let binding = Binding { uid: uid() + 1, purpose, until: in_an_hour() };
    let handles = handles(folder.path());
    let base = handles.symmetric(&id, &binding).unwrap();
    let derived = handles.derived(&base, b"module".to_vec(), &binding).unwrap();
    let device = Device::start_with(folder.path(), &["mine"], &BTreeMap::new());
    for handle in [&base.0, &derived.0] {
        for (method, path, body, what) in uses(handle) {
            refused(device.send(method, path, &body.to_string()), 401, "unauthorized");
            let entry = device.last_entry();
            assert_eq!(
                (&entry["what"], &entry["key"]),
                (&json!(what), &json!("aziot_identityd_master_id"))
            );
            assert_eq!(
                entry["derived"],
                if *handle == derived.0 { json!(true) } else { Value::Null }
            );
            assert_eq!(
                (&entry["reason"], &entry["purpose"]),
                (&json!("handle-of-another-uid"), &json!("identity"))
            );
        }
    }
    // Who was granted the use of derived keys uses this one, and only that.
    drop(device);
    let principal = KeyPrincipal {
        uid: uid(),
        use_derived: vec!["aziot_identityd_*".into()],
        ..KeyPrincipal::default()
    };
    let settings = KeydSettings {
        principals: vec![principal],
        auditors: vec![uid()],
        ..KeydSettings::default()
    };
    let device = Device::start_as(folder.path(), settings.clone());
    assert_eq!(device.hmac(&derived.0, b"m").len(), 32);
    for (method, path, body, what) in uses(&derived.0) {
        if !["sign", "encrypt", "decrypt", "parameters"].contains(&what) {
            refused(device.send(method, path, &body.to_string()), 401, "unauthorized");
        }
    }
    refused(device.post("/sign", &uses(&base.0)[0].2), 401, "unauthorized");
    // As existing services have it: whoever shows a handle.
    drop(device);
    let device =
        Device::start_as(folder.path(), KeydSettings { handles_any_uid: true, ..settings });
    assert_eq!(device.hmac(&base.0, b"m").len(), 32);
}

#[test]
fn handles_that_are_too_old_or_of_another_boot_are_to_be_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    Device::start(folder.path()).key("k");
    let good = in_an_hour();
    let of_another_boot = Deadline { boot: BootId::from_bytes([0; 16]), ..good };
    let handles = handles(folder.path());
    let handle = |until| {
        let binding = Binding { uid: uid(), purpose: None, until };
        handles.symmetric(&"k".parse().unwrap(), &binding).unwrap()
    };
    let device = Device::start(folder.path());
    for until in [Deadline { seconds: 0, ..good }, of_another_boot] {
        for (method, path, body, _) in uses(&handle(until).0) {
            let (status, answer) = device.send(method, path, &body.to_string());
            assert_eq!(answer["code"], "key-handle", "{answer}");
            refused((status, answer), 400, INVALID_HANDLE);
            assert_eq!(device.last_entry()["reason"], "expired-handle");
        }
    }
    assert_eq!(device.hmac(&handle(good).0, b"m").len(), 32);
}

#[test]
fn a_refusal_names_its_cause_so_that_clients_ask_for_another_handle_only_where_that_helps() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let handle = device.key("k");
    let decrypt = json!({
        "keyHandle": handle, "algorithm": "AEAD", "ciphertext": b64(b"short"),
        "parameters": {"iv": b64(b"iv"), "aad": b64(b"aad")},
    });
    for (answer, code) in [
        (device.post("/sign", &uses("sr=x&sig=y")[0].2), "key-handle"),
        (
            device
                .post("/derivedkey", &json!({"baseKeyHandle": "sr=x&sig=y", "derivationData": ""})),
            "key-handle",
        ),
        (device.post("/parameters/algorithm", &json!({"keyHandle": handle})), "request"),
        (device.post("/decrypt", &decrypt), "request"),
        (device.send("GET", "/key/absent", ""), "absent"),
    ] {
        let (status, body) = answer;
        assert_eq!((status, body["code"].as_str()), (400, Some(code)), "{body}");
    }
}

#[test]
fn keys_of_a_known_purpose_do_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let (seal, identity) = (device.key("iotedge_master_encryption_id"), device.key("device-id"));
    let ca = device.pair("aziot-edged-ca", "ec-p256");
    let sign_with_ca =
        json!({"keyHandle": ca, "algorithm": "ECDSA", "parameters": {"digest": b64(&[1; 32])}});
    let mut refusals = vec![(sign_with_ca, "/sign", "not-for-certificates")];
    refusals.push((uses(&seal)[0].2.clone(), "/sign", "purpose"));
    refusals.push((uses(&identity)[1].2.clone(), "/encrypt", "purpose"));
    for (body, path, reason) in refusals {
        refused(device.post(path, &body), 401, "unauthorized");
        assert_eq!(device.last_entry()["reason"], reason);
    }
    assert_eq!(device.parameter(&ca, "algorithm"), "ECDSA");
    drop(device);
    let principal = KeyPrincipal { uid: uid(), certificates: true, ..KeyPrincipal::default() };
    let device = Device::start_as(
        folder.path(),
        KeydSettings { principals: vec![principal], ..KeydSettings::default() },
    );
    let signed = device.post(
        "/sign",
        &json!({"keyHandle": ca, "algorithm": "ECDSA", "parameters": {"digest": b64(&[1; 32])}}),
    );
    assert_eq!(signed.0, 200, "{}", signed.1);
}

#[test]
fn each_use_of_a_key_is_in_the_audit_log_with_what_came_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let key = device.key("k");
    let derived = device.derive(&key, b"d");
    device.hmac(&derived, b"m");
    let pair = device.pair("p", "ec-p256");
    device.parameter(&pair, "algorithm");
    device.post("/sign", &uses(&pair)[0].2);
    device.import("device-id", b"hunter2");
    device.get("/key/device-id");
    device.send("GET", "/key/absent", "");
    device.post("/keypair/q", &json!({"from": "p"}));
    device.post("/derivedkey/export", &json!({ "keyHandle": derived }));
    device.send("DELETE", "/key", &json!({ "keyHandle": key }).to_string());
    let done =
        |what: &str, key: &str| json!({"uid": uid(), "what": what, "key": key, "result": "done"});
    let with = |mut entry: Value, member: &str, value: Value| {
        entry[member] = value;
        entry
    };
    let expected = [
        done("create", "k"),
        done("derive", "k"),
        with(done("sign", "k"), "derived", json!(true)),
        done("create", "p"),
        with(done("sign", "p"), "result", json!("failed")),
        with(done("import", "device-id"), "purpose", json!("identity")),
        with(done("load", "device-id"), "purpose", json!("identity")),
        with(done("load", "absent"), "result", json!("failed")),
        with(done("move", "q"), "from", json!("p")),
        with(done("export", "k"), "derived", json!(true)),
        done("delete", "k"),
    ];
    assert_eq!(device.audit(), expected);
    let master = device.key("aziot_identityd_master_id");
    device.hmac(&device.derive(&master, b"$edgeAgent:638:primary"), b"m");
    assert_eq!(device.last_entry()["module"], "$edgeAgent");
    device.hmac(&device.derive(&master, b"a/b:638:primary"), b"m");
    assert_eq!(device.last_entry()["module"], Value::Null);
    let folder = device.root.state_folder(Daemon::Keyd).join("audit");
    for file in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(7).any(|window| window == b"hunter2"));
    }
}

#[test]
fn the_audit_log_is_read_by_auditors_and_adds_up_to_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    for number in 0..20 {
        device.key(&format!("k{number}"));
    }
    let head = device.get("/audit/checkpoint");
    let key = head["verifierKey"].as_str().unwrap().parse().unwrap();
    let checkpoint = Checkpoint::open(head["checkpoint"].as_str().unwrap(), &key).unwrap();
    let mut tree = Frontier::default();
    while tree.size() < checkpoint.size {
        let path = format!("/audit/entries?limit=7&from={}", tree.size());
        let answer = device.get(&path);
        assert_eq!((&answer["from"], &answer["first"]), (&json!(tree.size()), &json!(0)));
        let entries = answer["entries"].as_array().unwrap();
        assert!((1..=7).contains(&entries.len()));
        entries.iter().for_each(|entry| tree.append(leaf_hash(entry.as_str().unwrap().as_bytes())));
    }
    assert_eq!((tree.size(), tree.root()), (checkpoint.size, checkpoint.root));
    refused(
        device.send("GET", "/audit/entries?from=-1", ""),
        400,
        "parameter \"from\" has an invalid value",
    );
    drop(device);
    let device = Device::start_as(folder.path(), KeydSettings::default());
    for path in ["/audit/checkpoint", "/audit/entries"] {
        refused(device.send("GET", path, ""), 401, "unauthorized");
    }
}

#[test]
fn key_pairs_have_the_parameters_of_their_algorithm_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let (ec, rsa) = (device.pair("e", "*"), device.pair("r", "ml-dsa-65:rsa-2048"));
    assert_eq!(device.parameter(&ec, "algorithm"), "ECDSA");
    assert_eq!(device.parameter(&ec, "ec-curve-oid"), "BggqhkjOPQMBBw==");
    assert_eq!(STANDARD.decode(device.parameter(&ec, "ec-point")).unwrap().len(), 33);
    assert_eq!(device.parameter(&rsa, "algorithm"), "RSA");
    assert_eq!(STANDARD.decode(device.parameter(&rsa, "rsa-modulus")).unwrap().len(), 256);
    assert_eq!(device.parameter(&rsa, "rsa-exponent"), "AQAB");
    let ask = |name: &str, handle: &str| {
        device.post(&format!("/parameters/{name}"), &json!({ "keyHandle": handle }))
    };
    refused(ask("rsa-modulus", &ec), 400, "no such public parameter");
    refused(ask("ec-point", &rsa), 400, "no such public parameter");
    refused(ask("d", &rsa), 400, "unknown public parameter");
    refused(ask("algorithm", &device.key("k")), 400, "another kind of key");
}

#[test]
fn a_pair_without_a_known_algorithm_or_over_a_symmetric_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let create = |body: Value| device.post("/keypair", &body);
    refused(
        create(json!({"keyId": "p", "preferredAlgorithms": "ml-dsa-65"})),
        400,
        "none of the preferred algorithms",
    );
    device.key("k");
    refused(create(json!({"keyId": "k"})), 400, "\"k\" is a symmetric key, not a key pair");
    refused(device.send("GET", "/keypair/k", ""), 400, "not a key pair");
    device.pair("p", "ec-p256");
    refused(device.send("GET", "/key/p", ""), 400, "not a symmetric key");
    refused(create(json!({})), 422, "missing field");
}

#[test]
fn moving_a_pair_replaces_the_target_and_old_handles_follow_the_id() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let (current, next) = (device.pair("ca", "ec-p256"), device.pair("ca-temp", "ec-p256"));
    let point = device.parameter(&next, "ec-point");
    assert_eq!(device.post("/keypair/ca", &json!({"from": "ca-temp"})), (204, Value::Null));
    assert_eq!(device.parameter(&current, "ec-point"), point);
    refused(device.send("GET", "/keypair/ca-temp", ""), 400, "there is no key");
    refused(
        device.post("/keypair/ca", &json!({"from": "ca-temp"})),
        400,
        "there is no key \"ca-temp\"",
    );
    refused(device.post("/keypair/ca", &json!({"from": "ca"})), 400, "has this id already");
    refused(device.post("/keypair/ca", &json!({})), 422, "missing field `from`");
}

#[test]
fn a_ca_key_under_another_id_is_no_free_key() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    device.pair("aziot-edged-ca", "ec-p256");
    refused(device.post("/keypair/mine", &json!({"from": "aziot-edged-ca"})), 401, "");
    let last = device.last_entry();
    assert_eq!(
        (&last["what"], &last["key"], &last["reason"]),
        (&json!("move"), &json!("mine"), &json!("purpose"))
    );
    assert_eq!(device.send("GET", "/keypair/aziot-edged-ca", "").0, 200);
    assert_eq!(device.send("GET", "/keypair/mine", "").0, 400);
}

#[test]
fn a_slash_in_a_key_id_is_part_of_the_id() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let handle = device.pair("aziot-edged/module/m", "ec-p256");
    let (status, loaded) = device.send("GET", "/keypair/aziot-edged%2Fmodule%2Fm", "");
    assert_eq!(status, 200);
    let loaded = loaded["keyHandle"].as_str().unwrap();
    assert_eq!(device.parameter(&handle, "ec-point"), device.parameter(loaded, "ec-point"));
    refused(device.send("GET", "/keypair/..%2F..%2Fstore.key", ""), 400, "there is no key");
}

#[test]
fn derived_keys_sign_encrypt_and_export_as_the_hmac_of_their_data() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let base = device.import("base", b"the base");
    let derived = device.derive(&base, b"module 1");
    let key = hmac_sha256(b"the base", b"module 1");
    assert_eq!(device.bytes("/derivedkey/export", &json!({ "keyHandle": derived }), "key"), key);
    assert_eq!(device.hmac(&derived, b"m"), hmac_sha256(&key, b"m"));
    let aead = json!({"iv": b64(&[3; 32]), "aad": b64(b"a")});
    let seal = json!({"keyHandle": derived, "algorithm": "AEAD", "parameters": aead, "plaintext": b64(b"text")});
    let sealed = device.value("/encrypt", &seal, "ciphertext");
    let open = json!({"keyHandle": derived, "algorithm": "AEAD", "parameters": aead, "ciphertext": sealed});
    assert_eq!(device.bytes("/decrypt", &open, "plaintext"), b"text");

    let derive = |handle: &str| {
        device.post("/derivedkey", &json!({"baseKeyHandle": handle, "derivationData": ""}))
    };
    refused(derive(&derived), 400, "not from derived ones");
    refused(derive(&device.pair("p", "ec-p256")), 400, "from symmetric keys only");
    let export = |handle: &str| device.post("/derivedkey/export", &json!({ "keyHandle": handle }));
    refused(export(&base), 400, "only derived keys can be exported");
    let long = json!({"baseKeyHandle": base, "derivationData": b64(&[0; 9000])});
    refused(device.post("/derivedkey", &long), 400, "longer than");
}

#[test]
fn ecdsa_signatures_over_a_digest_verify_with_the_public_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let handle = device.pair("p", "ec-p256");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"message");
    let sign = |digest: &[u8]| json!({"keyHandle": handle, "algorithm": "ECDSA", "parameters": {"digest": b64(digest)}});
    let der = device.bytes("/sign", &sign(digest.as_ref()), "signature");
    let point = STANDARD.decode(device.parameter(&handle, "ec-point")).unwrap();
    let public = signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, point);
    public.verify(b"message", &der).unwrap();
    refused(device.post("/sign", &sign(b"not a digest")), 400, "the digest has 12 bytes");
}

#[test]
fn rsa_private_operations_verify_as_signatures() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let handle = device.pair("r", "rsa-2048");
    let mut info = STANDARD.decode("MDEwDQYJYIZIAWUDBAIBBQAEIA==").unwrap();
    info.extend_from_slice(
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"message").as_ref(),
    );
    let raw = |algorithm: &str, block: &[u8]| json!({"keyHandle": handle, "algorithm": algorithm, "plaintext": b64(block)});
    let signed = device.bytes("/encrypt", &raw("RSA-PKCS1", &info), "ciphertext");
    let public = signature::RsaPublicKeyComponents {
        n: STANDARD.decode(device.parameter(&handle, "rsa-modulus")).unwrap(),
        e: STANDARD.decode(device.parameter(&handle, "rsa-exponent")).unwrap(),
    };
    public.verify(&signature::RSA_PKCS1_2048_8192_SHA256, b"message", &signed).unwrap();
    let padded = [&[0, 1][..], &[0xff; 202], &[0], &info].concat();
    assert_eq!(device.bytes("/encrypt", &raw("RSA-NO-PADDING", &padded), "ciphertext"), signed);
    refused(device.post("/encrypt", &raw("RSA-NO-PADDING", b"short")), 400, "does not fit");
    refused(device.post("/encrypt", &raw("RSA-PKCS1", &[1; 246])), 400, "does not fit");
    let open = json!({"keyHandle": handle, "algorithm": "RSA-PKCS1", "ciphertext": b64(&signed)});
    refused(device.post("/decrypt", &open), 400, "cannot be used with this kind of key");
}

#[test]
fn encryption_writes_version_2_reads_version_1_and_takes_ivs_of_any_length() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let handle = device.import("k", &[9; 32]);
    let parameters = |iv: &[u8]| json!({"iv": b64(iv), "aad": b64(b"module")});
    let open = |iv: &[u8], sealed: &[u8]| {
        let body = json!({"keyHandle": handle, "algorithm": "AEAD", "parameters": parameters(iv), "ciphertext": b64(sealed)});
        device.post("/decrypt", &body)
    };
    for iv in [&[1; 1][..], &[1; 12], &[1; 32], &[1; 200]] {
        let body = json!({"keyHandle": handle, "algorithm": "AEAD", "parameters": parameters(iv), "plaintext": b64(b"text")});
        let sealed = device.bytes("/encrypt", &body, "ciphertext");
        assert_eq!((sealed[0], sealed.len()), (2, 1 + 4 + 16));
        assert_eq!(open(iv, &sealed), (200, json!({"plaintext": b64(b"text")})));
        let earliest = [&[1], &sealed[5..], &sealed[1..5]].concat();
        assert_eq!(open(iv, &earliest), (200, json!({"plaintext": b64(b"text")})));
        let mut changed = sealed.clone();
        changed[3] ^= 1;
        refused(open(iv, &changed), 400, "not authentic");
        refused(open(iv, &sealed[..16]), 400, "shorter than 17 bytes");
        refused(open(iv, &[&[3], &sealed[1..]].concat()), 400, "unknown version 3");
    }
    let no_iv = json!({"keyHandle": handle, "algorithm": "AEAD", "parameters": parameters(b""), "plaintext": ""});
    refused(device.post("/encrypt", &no_iv), 400, "the iv is empty");
    let short_key = device.import("short", b"short");
    let body = json!({"keyHandle": short_key, "algorithm": "AEAD", "parameters": parameters(b"i"), "plaintext": ""});
    refused(device.post("/encrypt", &body), 400, "needs a key of 32 bytes");
    let missing = json!({"keyHandle": handle, "algorithm": "AEAD", "plaintext": ""});
    assert_eq!(device.post("/encrypt", &missing).0, 422);
}

#[test]
fn algorithms_that_do_not_fit_the_key_and_unknown_ones_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let (key, pair) = (device.key("k"), device.pair("p", "ec-p256"));
    let sign = |handle: &str, algorithm: &str| {
        let parameters = json!({"digest": b64(&[0; 32]), "message": ""});
        device.post(
            "/sign",
            &json!({"keyHandle": handle, "algorithm": algorithm, "parameters": parameters}),
        )
    };
    refused(sign(&key, "ECDSA"), 400, "cannot be used with this kind of key");
    refused(sign(&pair, "HMAC-SHA256"), 400, "cannot be used with this kind of key");
    refused(sign(&key, "HMAC-MD5"), 422, "unknown variant");
    let encrypt = |handle: &str, body: Value| {
        let mut body = body;
        body["keyHandle"] = json!(handle);
        body["plaintext"] = json!("");
        device.post("/encrypt", &body)
    };
    let aead = json!({"algorithm": "AEAD", "parameters": {"iv": "AAAA", "aad": ""}});
    refused(encrypt(&pair, aead), 400, "cannot be used with this kind of key");
    refused(
        encrypt(&key, json!({"algorithm": "RSA-PKCS1"})),
        400,
        "cannot be used with this kind of key",
    );
    refused(encrypt(&pair, json!({"algorithm": "RSA-PKCS1"})), 400, "not possible with this key");
    let rsa = device.pair("r", "rsa-2048");
    refused(sign(&rsa, "ECDSA"), 400, "not possible with this key");
}

#[test]
fn the_usage_a_key_was_made_with_is_enforced() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let make = |id: &str, usage: &str| {
        device.value("/key", &json!({"keyId": id, "usage": usage}), "keyHandle")
    };
    let (signing, encrypting) = (make("s", "sign"), make("e", "encrypt"));
    let sign =
        json!({"keyHandle": encrypting, "algorithm": "HMAC-SHA256", "parameters": {"message": ""}});
    refused(device.post("/sign", &sign), 400, "was not made with the usage \"derive,sign\"");
    let aead = json!({"iv": "AAAA", "aad": ""});
    let seal =
        json!({"keyHandle": signing, "algorithm": "AEAD", "parameters": aead, "plaintext": ""});
    refused(device.post("/encrypt", &seal), 400, "was not made with the usage \"encrypt\"");
    assert_eq!(device.hmac(&signing, b"m").len(), 32);
}

#[test]
fn preloaded_keys_are_used_from_their_files_and_cannot_be_changed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("preloaded secret");
    std::fs::write(&file, b"raw bytes\n").unwrap();
    let escaped = PathBuf::from(file.to_str().unwrap().replace(' ', "%20"));
    let preloaded =
        BTreeMap::from([("device-id", escaped), ("absent", folder.path().join("absent"))]);
    let device = Device::start_with(folder.path(), &["*"], &preloaded);
    let handle = device.key("device-id");
    assert_eq!(device.hmac(&handle, b"m"), hmac_sha256(b"raw bytes\n", b"m"));
    let import = json!({"keyId": "device-id", "usage": "sign", "keyBytes": "AAAA"});
    refused(device.post("/key", &import), 400, "is preloaded from the file");
    refused(
        device.send("DELETE", "/key", &json!({ "keyHandle": handle }).to_string()),
        400,
        "is preloaded",
    );
    refused(device.send("GET", "/key/absent", ""), 400, "there is no key");
}

#[test]
fn a_damaged_key_file_is_set_aside_and_its_key_is_missed_and_not_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let handle = device.key("k");
    let keys = device.root.state_folder(Daemon::Keyd).join("keys");
    drop(device);
    let file = std::fs::read_dir(&keys).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&file, b"EKEY\x01 damaged").unwrap();
    let device = Device::start(folder.path());
    let sign =
        json!({"keyHandle": handle, "algorithm": "HMAC-SHA256", "parameters": {"message": ""}});
    refused(device.post("/sign", &sign), 400, "there is no key");
    let aside = PathBuf::from(format!("{}.corrupt-1", file.display()));
    assert_eq!(std::fs::read(aside).unwrap(), b"EKEY\x01 damaged");
    refused(
        device.post("/key", &json!({"keyId": "k", "usage": "sign"})),
        500,
        "was there and is gone: restore it",
    );
}

#[test]
fn unknown_paths_methods_and_versions_are_answered_as_clients_know_it() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    refused(device.send("GET", "/keys", ""), 404, "not found");
    refused(device.send("PUT", "/key", "{}"), 400, "method not allowed");
    refused(device.send("GET", "/sign", ""), 400, "method not allowed");
    let mut stream = UnixStream::connect(device.root.keyd_socket()).unwrap();
    stream
        .write_all(b"GET /key/k?api-version=2019-01-30 HTTP/1.1\r\nHost: keyd.sock\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.ends_with(r#"{"message":"invalid api-version \"2019-01-30\""}"#), "{answer}");
}

#[test]
fn the_socket_is_for_owner_and_group() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let mode = std::fs::metadata(device.root.keyd_socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
}

#[test]
fn the_typed_client_of_the_other_daemons_understands_every_answer() {
    use edgekeep_api::keyd::{EncryptMechanism, KeysClient, SignMechanism};
    let folder = tempfile::tempdir().unwrap();
    let device = Device::start(folder.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = KeysClient::new(device.root.keyd_socket());
        let base = client.import_key("base", "derive,encrypt", vec![5; 32]).await.unwrap();
        client.create_key("base", "derive").await.unwrap();
        client.load_key("base").await.unwrap();
        let derived = client.derive_key(&base, b"m").await.unwrap();
        let key = client.export_derived_key(&derived).await.unwrap();
        assert_eq!(key, hmac_sha256(&[5; 32], b"m"));
        let message = SignMechanism::HmacSha256 { message: b"x"[..].into() };
        assert_eq!(client.sign(&derived, message).await.unwrap(), hmac_sha256(&key, b"x"));
        let aead = EncryptMechanism::Aead { iv: vec![1; 32].into(), aad: vec![].into() };
        let sealed = client.encrypt(&base, aead.clone(), b"text".to_vec()).await.unwrap();
        assert_eq!(client.decrypt(&base, aead, sealed).await.unwrap(), b"text");
        let pair = client.create_key_pair("p-temp", None).await.unwrap();
        assert_eq!(client.parameter(&pair, "algorithm").await.unwrap(), "ECDSA");
        client.move_key_pair("p-temp", "p").await.unwrap();
        let pair = client.load_key_pair("p").await.unwrap();
        let digest = SignMechanism::Ecdsa { digest: vec![1; 32].into() };
        assert!(!client.sign(&pair, digest).await.unwrap().is_empty());
        client.delete_key_pair(&pair).await.unwrap();
        client.delete_key(&base).await.unwrap();
        let error = client.load_key("base").await.unwrap_err();
        assert_eq!(error.status(), Some(http::StatusCode::BAD_REQUEST));
    });
}

#[test]
fn on_whose_behalf_a_uid_asks_is_written_down_as_its_statement_if_it_may_say_so() {
    use edgekeep_api::keyd::{KeysClient, OnBehalfOf, SignMechanism};
    let folder = tempfile::tempdir().unwrap();
    let digest = "sha256:0707070707070707070707070707070707070707070707070707070707070707";
    let behalf = OnBehalfOf {
        module: "thermometer".parse().unwrap(),
        executable: Some(digest.parse().unwrap()),
    };
    let unmeasured = OnBehalfOf { module: "$edgeAgent".parse().unwrap(), executable: None };
    let principal = |attestor| KeyPrincipal {
        uid: uid(),
        keys: vec!["k".into()],
        attestor,
        ..KeyPrincipal::default()
    };
    let settings = |attestor| KeydSettings {
        principals: vec![principal(attestor)],
        auditors: vec![uid()],
        ..KeydSettings::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let message = || SignMechanism::HmacSha256 { message: b"x"[..].into() };
    let device = Device::start_as(folder.path(), settings(true));
    runtime.block_on(async {
        let client = KeysClient::new(device.root.keyd_socket());
        let key = client.create_key("k", "sign").await.unwrap();
        client.on_behalf_of(&behalf).sign(&key, message()).await.unwrap();
        client.on_behalf_of(&unmeasured).sign(&key, message()).await.unwrap();
        client.sign(&key, message()).await.unwrap();
        client.on_behalf_of(&behalf).load_key("other").await.unwrap_err();
    });
    let said: Vec<(Value, Value)> = device
        .audit()
        .iter()
        .map(|entry| (entry["for"].clone(), entry["executable"].clone()))
        .collect();
    let says = |module: &str, executable: Value| (json!(module), executable);
    let nothing = (Value::Null, Value::Null);
    let expected = [
        nothing.clone(),
        says("thermometer", json!(digest)),
        says("$edgeAgent", Value::Null),
        nothing,
        says("thermometer", json!(digest)),
    ];
    assert_eq!(said, expected);
    // What is no statement is refused, before anything is done.
    for header in [
        "module=a/b",
        "thermometer",
        "module=a\r\nx-edgekeep-on-behalf-of: module=b",
        "module=\u{e4}",
    ] {
        let mut stream = UnixStream::connect(device.root.keyd_socket()).unwrap();
        let request = format!(
            "GET /key/k?api-version=2021-05-01 HTTP/1.1\r\nHost: k\r\nConnection: close\r\n\
             x-edgekeep-on-behalf-of: {header}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("x-edgekeep-on-behalf-of"),
            "{answer}"
        );
    }
    assert_eq!(device.audit().len(), 5);
    // Nor does it keep a refusal out of the log.
    let foreign = json!({"keyHandle": "sr=x&sig=y"}).to_string();
    for (request, reason) in
        [("GET /key/other".to_owned(), "no-grant"), ("DELETE /key".to_owned(), "foreign-handle")]
    {
        let mut stream = UnixStream::connect(device.root.keyd_socket()).unwrap();
        let request = format!(
            "{request}?api-version=2021-05-01 HTTP/1.1\r\nHost: k\r\nConnection: close\r\n\
             x-edgekeep-on-behalf-of: no statement\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{foreign}",
            foreign.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        stream.read_to_string(&mut String::new()).unwrap();
        let last = device.last_entry();
        assert_eq!((&last["reason"], &last["for"]), (&json!(reason), &Value::Null), "{last}");
    }
    drop(device);
    // Without the grant it is nothing that the log would repeat, root or not.
    let device = Device::start_as(folder.path(), settings(false));
    runtime.block_on(async {
        let client = KeysClient::new(device.root.keyd_socket()).on_behalf_of(&behalf);
        let key = client.load_key("k").await.unwrap();
        client.sign(&key, message()).await.unwrap();
    });
    let last = device.last_entry();
    assert_eq!(
        (&last["what"], &last["for"], &last["executable"]),
        (&json!("sign"), &Value::Null, &Value::Null)
    );
}

#[test]
fn the_routes_that_are_ours_are_in_the_openapi_document() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/extensions.yaml");
    let document = std::fs::read_to_string(document).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let settings = KeydSettings::default();
    let policy = Policy::new(&settings);
    let router =
        routes::router(Arc::new(Keyd::open(&Root::new(folder.path()), &settings, policy).unwrap()));
    let ours: Vec<&str> =
        router.routes().map(|(_, path)| path).filter(|path| path.starts_with("/audit/")).collect();
    assert_eq!(ours.len(), 2, "{ours:?}");
    for path in ours {
        assert!(document.contains(&format!("\n  {path}:\n")), "{path}");
    }
    for operation in edgekeep_audit::entry::Operation::ALL {
        assert!(document.contains(operation.word()), "{operation}");
    }
    assert!(document.contains(edgekeep_api::keyd::ON_BEHALF_OF));
}
