//! Requests that nobody sane sends, at random, to each route: each is answered, none with
//! 500, and the daemon goes on.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value, json};

use crate::{Keyd, refused};

/// Routes that take a body, with one that works.
fn requests(handles: &Handles) -> Vec<(&'static str, String, Value)> {
    let Handles { symmetric, pair, derived } = handles;
    let sign = |handle: &String, algorithm: &str, parameters: Value| json!({"keyHandle": handle, "algorithm": algorithm, "parameters": parameters});
    let seal = json!({"iv": "aXY=", "aad": "YWFk"});
    let route = |method, path: &str, body| (method, path.to_owned(), body);
    vec![
        route("POST", "/key", json!({"keyId": "random", "usage": "derive,sign"})),
        route(
            "POST",
            "/key",
            json!({"keyId": "random", "usage": "encrypt", "keyBytes": "AAECAwQFBgcICQoLDA0ODw=="}),
        ),
        route(
            "POST",
            "/keypair",
            json!({"keyId": "random-pair", "preferredAlgorithms": "ec-p256"}),
        ),
        route("POST", "/keypair/random-pair-2", json!({"from": "random-pair"})),
        route("POST", "/parameters/algorithm", json!({"keyHandle": pair})),
        route(
            "POST",
            "/derivedkey",
            json!({"baseKeyHandle": symmetric, "derivationData": "bW9kdWxl"}),
        ),
        route("POST", "/derivedkey/export", json!({"keyHandle": derived})),
        route("POST", "/sign", sign(symmetric, "HMAC-SHA256", json!({"message": "bQ=="}))),
        route(
            "POST",
            "/sign",
            sign(pair, "ECDSA", json!({"digest": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="})),
        ),
        route(
            "POST",
            "/encrypt",
            json!({"keyHandle": symmetric, "algorithm": "AEAD", "parameters": seal, "plaintext": "dA=="}),
        ),
        route(
            "POST",
            "/encrypt",
            json!({"keyHandle": pair, "algorithm": "RSA-PKCS1", "plaintext": "dA=="}),
        ),
        route(
            "POST",
            "/encrypt",
            json!({"keyHandle": pair, "algorithm": "RSA-NO-PADDING", "plaintext": "dA=="}),
        ),
        route(
            "POST",
            "/decrypt",
            json!({"keyHandle": symmetric, "algorithm": "AEAD", "parameters": seal, "ciphertext": "dA=="}),
        ),
        route("DELETE", "/key", json!({"keyHandle": "AA=="})),
        route("DELETE", "/keypair", json!({"keyHandle": "AA=="})),
        route("GET", "/key/random", Value::Null),
        route("GET", "/keypair/random-pair", Value::Null),
        route("GET", "/audit/entries", Value::Null),
        route("GET", "/audit/checkpoint", Value::Null),
    ]
}

struct Handles {
    symmetric: String,
    pair: String,
    derived: String,
}

/// Returns values to put in place of something that makes sense.
fn nonsense(handles: &Handles) -> impl Strategy<Value = Value> + use<> {
    let known = [handles.symmetric.clone(), handles.pair.clone(), handles.derived.clone()];
    let words = [
        "",
        " ",
        "=",
        "A",
        "AA",
        "AA==",
        "AA=A",
        "aGk",
        "\u{0}",
        "..",
        "../../store.key",
        "/",
        "*",
        "\u{202e}ö",
        "None",
        "HMAC-SHA256",
        "ECDSA",
        "AEAD",
        "RSA-PKCS1",
        "encrypt",
        "derive,sign,encrypt",
        "sign,",
        "ec-p256,rsa-2048",
        "rsa-8192",
        "handle-validation-key",
        "audit-checkpoint-key",
        "algorithm",
        "sr=1&sig=2",
        "pkcs11:token=x",
        "tpm:handle=0x81000001",
    ];
    let long = (0..7_usize).prop_map(|power| Value::from("A".repeat(1 << (3 * power))));
    let text = prop_oneof![
        prop::sample::select(words.to_vec()).prop_map(Value::from),
        prop::sample::select(known.to_vec()).prop_map(Value::from),
        // A handle with one letter changed.
        (prop::sample::select(known.to_vec()), any::<prop::sample::Index>(), "[A-Za-z0-9+/=]")
            .prop_map(|(handle, at, letter)| {
                let at = at.index(handle.len());
                Value::from(format!("{}{letter}{}", &handle[..at], &handle[at + 1..]))
            }),
        ".{0,40}".prop_map(Value::from),
        "[A-Za-z0-9+/]{0,64}={0,2}".prop_map(Value::from),
        long,
    ];
    let leaf = prop_oneof![
        6 => text,
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(6, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(
                (prop::sample::select(&["keyId", "keyHandle", "message", "x"][..]), inner),
                0..4
            )
            .prop_map(|members| Value::from(
                members
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect::<Map<_, _>>()
            )),
        ]
    })
}

/// A change to a body.
#[derive(Debug, Clone)]
enum Change {
    /// A member (of the body, or of its parameters) becomes something else, or goes.
    Member(prop::sample::Index, Option<Value>),
    /// The body is something else.
    Whole(Value),
    /// The body is no JSON at all.
    Bytes(Vec<u8>),
    /// It is cut off, but its length is right.
    Cut(prop::sample::Index),
}

fn change(handles: &Handles) -> impl Strategy<Value = Change> + use<> {
    prop_oneof![
        8 => (any::<prop::sample::Index>(), prop::option::weighted(0.9, nonsense(handles))).prop_map(|(at, value)| Change::Member(at, value)),
        1 => nonsense(handles).prop_map(Change::Whole),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Change::Bytes),
        1 => any::<prop::sample::Index>().prop_map(Change::Cut),
    ]
}

fn changed(mut body: Value, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        match change {
            Change::Whole(value) => body = value.clone(),
            Change::Bytes(bytes) => return bytes.clone(),
            Change::Cut(at) => {
                let text = body.to_string().into_bytes();
                return text[..at.index(text.len())].to_vec();
            }
            Change::Member(at, value) => {
                let Some(members) = body.as_object_mut().filter(|members| !members.is_empty())
                else {
                    continue;
                };
                let own: Vec<String> = members.keys().cloned().collect();
                let name = &own[at.index(own.len())];
                let inner = members
                    .get_mut(name)
                    .and_then(Value::as_object_mut)
                    .filter(|inner| !inner.is_empty());
                let (members, name) = match inner {
                    Some(inner) => {
                        let name = inner.keys().next().cloned().unwrap_or_default();
                        (inner, name)
                    }
                    None => (members, name.clone()),
                };
                match value {
                    Some(value) => drop(members.insert(name, value.clone())),
                    None => drop(members.remove(&name)),
                }
            }
        }
    }
    if body.is_null() { Vec::new() } else { body.to_string().into_bytes() }
}

#[test]
fn no_request_makes_it_fail() {
    let folder = tempfile::tempdir().unwrap();
    let mut keyd = Keyd::start(folder.path());
    let symmetric =
        keyd.handle("/key", &json!({"keyId": "symmetric", "usage": "derive,sign,encrypt"}));
    let pair =
        keyd.handle("/keypair", &json!({"keyId": "pair", "preferredAlgorithms": "rsa-2048"}));
    let derived = keyd.handle(
        "/derivedkey",
        &json!({"baseKeyHandle": symmetric, "derivationData": "bTpnOnByaW1hcnk="}),
    );
    // One that no request names: the others may be deleted by one that does.
    let untouched = keyd.key("untouched");
    let before = keyd.hmac(&untouched);
    let handles = Handles { symmetric, pair, derived };
    let requests = requests(&handles);
    let what = (
        prop::sample::select(requests),
        prop::collection::vec(change(&handles), 0..3),
        // What URIs may hold; anything else does not get past the server's parser.
        prop::option::weighted(0.2, "[A-Za-z0-9%._~*+:;,=@!$&'()/-]{0,80}"),
        prop::option::weighted(
            0.1,
            prop::sample::select(&["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "X"][..]),
        ),
    );
    let answered = [const { Cell::new(0_u32) }; 6];
    // What it made of a request has to be the same for everybody: no file is written
    // beside the sources.
    let config = Config { cases: 1500, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(config).run(
        &what,
        |((method, path, body), changes, segment, other_method)| {
            let mut path = path;
            if let Some(segment) = segment {
                path =
                    format!("{}/{segment}", path.rsplit_once('/').map_or("", |(folder, _)| folder));
            }
            let method = other_method.unwrap_or(method);
            let body = changed(body, &changes);
            let (status, answer) = keyd.send(method, &path, &body);
            prop_assert!(
                (200..500).contains(&status),
                "{method} {path} {}: {status} {answer}",
                String::from_utf8_lossy(&body)
            );
            let count = &answered[usize::from(status / 100)];
            count.set(count.get() + 1);
            // Who is refused is told why; but for a method without answers and for the
            // end of a connection.
            let explained = status < 400
                || method == "HEAD"
                || answer["message"].as_str().is_some_and(|text| !text.is_empty());
            prop_assert!(explained, "{method} {path}: {status} without a reason");
            Ok(())
        },
    );
    run.unwrap_or_else(|error| panic!("{error}\n{}", keyd.log()));
    assert!(keyd.child.try_wait().unwrap().is_none(), "{}", keyd.log());
    assert!(!keyd.log().contains("panicked"), "{}", keyd.log());
    // It is not all refused at the door.
    assert!(answered[2].get() > 30 && answered[4].get() > 300, "{answered:?}");
    assert_eq!(keyd.hmac(&untouched), before);
    keyd.stop();
}

#[test]
fn bad_input_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let keyd = Keyd::start(folder.path());
    let key = keyd.key("key");
    let pair = keyd.handle("/keypair", &json!({"keyId": "pair", "preferredAlgorithms": "ec-p256"}));
    let rsa = keyd.handle("/keypair", &json!({"keyId": "rsa", "preferredAlgorithms": "rsa-2048"}));
    let ecdsa = |digest: &str| json!({"keyHandle": pair, "algorithm": "ECDSA", "parameters": {"digest": digest}});
    refused(
        keyd.post("/key", &json!({"keyId": "k", "usage": "sign", "keyBytes": ""})),
        400,
        "empty",
    );
    // As long as fits into a request; what is longer does not get that far.
    refused(keyd.post("/sign", &ecdsa(&"AAAA".repeat(260_000))), 400, "digest");
    refused(keyd.post("/sign", &ecdsa(&"AAAA".repeat(349_526))), 413, "larger than 1048576 bytes");
    refused(keyd.post("/sign", &ecdsa("")), 400, "digest");
    for block in ["", &"AAAA".repeat(260_000)] {
        let body = json!({"keyHandle": rsa, "algorithm": "RSA-NO-PADDING", "plaintext": block});
        refused(keyd.post("/encrypt", &body), 400, "");
    }
    // Invalid base64 is a body of another type to the clients of these APIs.
    refused(keyd.post("/sign", &ecdsa("not base64!")), 422, "");
    for handle in ["", "AA==", "not a handle", &key[1..], &format!("{key}AAAA")] {
        let body = json!({"keyHandle": handle, "algorithm": "HMAC-SHA256", "parameters": {"message": "bQ=="}});
        refused(keyd.post("/sign", &body), 400, "handle");
    }
    refused(keyd.post("/key", &json!({"keyId": "k", "usage": "fly"})), 422, "usage");
    refused(keyd.send("GET", "/key/k", b""), 400, "there is no key");
    keyd.stop();
}
