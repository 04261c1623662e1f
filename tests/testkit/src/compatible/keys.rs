//! The keys service (wire facts 5.3 to 5.5).

use std::sync::Arc;

use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_daemon::server::Router;
use http::Method;
use serde_json::{Value, json};

use super::{Asked, Refused, Reply, Services, State, answered, openssl, refused};

/// A key.
#[derive(Debug, Clone)]
pub(crate) enum Key {
    Symmetric(Vec<u8>),
    /// A file with a private key.
    Pair {
        file: String,
        rsa: bool,
    },
}

/// The key that a handle names.
#[derive(Debug)]
pub(crate) enum Named {
    Symmetric(Vec<u8>),
    Pair { file: String, rsa: bool },
    Derived(Vec<u8>),
}

/// Keys that the users of the daemons may name, as `iotedge config apply` writes it.
const GRANTED: [&str; 5] = [
    "aziot_identityd_master_id",
    "device-id",
    "aziot-edged-ca",
    "aziot-edged-ca-temp",
    "iotedge_master_encryption_id",
];

const FIRST: &str = "2020-09-01";

/// The published routes.
pub(super) fn router(services: &Arc<Services>) -> Router<Services> {
    Router::new(Arc::clone(services), &["2020-09-01", "2021-05-01"])
        .route(Method::POST, "/key", FIRST, |s, r| answered(s, r, create_key))
        .route(Method::GET, "/key/{id}", FIRST, |s, r| answered(s, r, load_key))
        .route(Method::POST, "/keypair", FIRST, |s, r| answered(s, r, create_pair))
        .route(Method::GET, "/keypair/{id}", FIRST, |s, r| answered(s, r, load_pair))
        .route(Method::POST, "/parameters/{name}", FIRST, |s, r| answered(s, r, parameter))
        .route(Method::POST, "/derivedkey", FIRST, |s, r| answered(s, r, derive))
        .route(Method::POST, "/derivedkey/export", FIRST, |s, r| answered(s, r, export))
        .route(Method::POST, "/sign", FIRST, |s, r| answered(s, r, sign))
        .route(Method::POST, "/encrypt", FIRST, |s, r| answered(s, r, encrypt))
        .route(Method::POST, "/decrypt", FIRST, |s, r| answered(s, r, decrypt))
}

fn granted(id: &str) -> Result<(), Refused> {
    if GRANTED.contains(&id) { Ok(()) } else { Err(refused(401, "unauthorized")) }
}

fn wrong(parameter: &str) -> Refused {
    refused(400, &format!("parameter \"{parameter}\" has an invalid value"))
}

/// A handle in the form that clients pass on.
fn handle(state: &State, key_id: &Value) -> String {
    let signed =
        json!({ "key_id": key_id, "nonce": STANDARD.encode(state.generation.to_be_bytes()) })
            .to_string();
    let signature = hmac::sign(&validation_key(state), signed.as_bytes());
    format!("sr={}&sig={}", STANDARD.encode(&signed), STANDARD.encode(signature))
}

/// The key that a keys service makes anew with its store.
fn validation_key(state: &State) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &state.generation.to_be_bytes())
}

/// The key that a handle names.
pub(super) fn named(state: &State, handle: &str) -> Result<Named, Refused> {
    let open = || {
        let (signed, signature) = handle.strip_prefix("sr=")?.split_once("&sig=")?;
        let (signed, signature) = (STANDARD.decode(signed).ok()?, STANDARD.decode(signature).ok()?);
        hmac::verify(&validation_key(state), &signed, &signature).ok()?;
        serde_json::from_slice::<Value>(&signed).ok()
    };
    let signed = open().ok_or_else(|| wrong("handle"))?;
    let of =
        |name: &str| signed["key_id"][name].as_str().and_then(|id| state.keys.get(id).cloned());
    if let Some(Key::Symmetric(bytes)) = of("Key") {
        return Ok(Named::Symmetric(bytes));
    }
    if let Some(Key::Pair { file, rsa }) = of("KeyPair") {
        return Ok(Named::Pair { file, rsa });
    }
    let derived = signed["key_id"]["Derived"].as_array().ok_or_else(|| wrong("handle"))?;
    let Named::Symmetric(base) = named(state, derived[0].as_str().unwrap_or_default())? else {
        return Err(wrong("handle"));
    };
    let data: Vec<u8> = serde_json::from_value(derived[1].clone()).unwrap_or_default();
    Ok(Named::Derived(mac(&base, &[&data])))
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &parts.concat()).as_ref().to_vec()
}

fn create_key(services: &Services, asked: &Asked) -> Reply {
    let (id, _usage) = (asked.text("keyId")?, asked.text("usage")?);
    granted(id)?;
    let mut state = services.state();
    if !state.keys.contains_key(id) {
        let mut bytes = vec![0; 32];
        rand::fill(&mut bytes).map_err(|_| refused(500, "internal error"))?;
        state.keys.insert(id.to_owned(), Key::Symmetric(bytes));
    }
    Ok((200, json!({ "keyHandle": handle(&state, &json!({ "Key": id })) })))
}

fn load_key(services: &Services, asked: &Asked) -> Reply {
    load(services, asked, "Key")
}

fn load_pair(services: &Services, asked: &Asked) -> Reply {
    load(services, asked, "KeyPair")
}

fn load(services: &Services, asked: &Asked, kind: &str) -> Reply {
    granted(&asked.segment)?;
    let state = services.state();
    match state.keys.get(&asked.segment) {
        Some(Key::Symmetric(_)) if kind == "Key" => {}
        Some(Key::Pair { .. }) if kind == "KeyPair" => {}
        _ => return Err(wrong("id")),
    }
    Ok((200, json!({ "keyHandle": handle(&state, &json!({ kind: asked.segment })) })))
}

fn create_pair(services: &Services, asked: &Asked) -> Reply {
    let id = asked.text("keyId")?;
    granted(id)?;
    let mut state = services.state();
    if !state.keys.contains_key(id) {
        let (file, rsa) = (format!("{id}.key"), state.behaviour.rsa_keys);
        let algorithm: &[&str] = if rsa {
            &["-algorithm", "RSA"]
        } else {
            &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
        };
        let arguments = [&["genpkey", "-out", &file][..], algorithm].concat();
        openssl::run(services.folder(), &arguments, &[])
            .map_err(|_| refused(500, "internal error"))?;
        state.keys.insert(id.to_owned(), Key::Pair { file, rsa });
    }
    Ok((200, json!({ "keyHandle": handle(&state, &json!({ "KeyPair": id })) })))
}

fn parameter(services: &Services, asked: &Asked) -> Reply {
    let Named::Pair { file, rsa } = named(&services.state(), asked.text("keyHandle")?)? else {
        return Err(wrong("handle"));
    };
    let internal = |_| refused(500, "internal error");
    let value = match (asked.segment.as_str(), rsa) {
        ("algorithm", false) => "ECDSA".to_owned(),
        ("algorithm", true) => "RSA".to_owned(),
        ("ec-curve-oid", false) => STANDARD.encode([6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]),
        ("ec-point", false) => {
            let arguments =
                ["ec", "-in", &file, "-pubout", "-conv_form", "compressed", "-outform", "DER"];
            let info = openssl::run(services.folder(), &arguments, &[]).map_err(internal)?;
            STANDARD.encode(&info[info.len() - 33..])
        }
        ("rsa-modulus", true) => {
            let text =
                openssl::run(services.folder(), &["rsa", "-in", &file, "-noout", "-modulus"], &[]);
            let text = String::from_utf8(text.map_err(internal)?).unwrap_or_default();
            let digits = text.trim().trim_start_matches("Modulus=").to_owned();
            let bytes = (0..digits.len())
                .step_by(2)
                .filter_map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok());
            STANDARD.encode(bytes.collect::<Vec<u8>>())
        }
        ("rsa-exponent", true) => "AQAB".to_owned(),
        _ => return Err(wrong("name")),
    };
    Ok((200, json!({ "value": value })))
}

fn derive(services: &Services, asked: &Asked) -> Reply {
    let base = asked.text("baseKeyHandle")?;
    let state = services.state();
    let Named::Symmetric(_) = named(&state, base)? else { return Err(wrong("handle")) };
    let data = asked.bytes("/derivationData")?;
    Ok((200, json!({ "keyHandle": handle(&state, &json!({ "Derived": [base, data] })) })))
}

fn export(services: &Services, asked: &Asked) -> Reply {
    let Named::Derived(bytes) = named(&services.state(), asked.text("keyHandle")?)? else {
        return Err(wrong("handle"));
    };
    Ok((200, json!({ "key": STANDARD.encode(bytes) })))
}

fn sign(services: &Services, asked: &Asked) -> Reply {
    let key = named(&services.state(), asked.text("keyHandle")?)?;
    let signature = match (asked.text("algorithm")?, key) {
        ("ECDSA", Named::Pair { file, rsa: false }) => {
            let digest = asked.bytes("/parameters/digest")?;
            openssl::run(services.folder(), &["pkeyutl", "-sign", "-inkey", &file], &digest)
                .map_err(|_| refused(500, "internal error"))?
        }
        ("HMAC-SHA256", Named::Symmetric(key) | Named::Derived(key)) => {
            mac(&key, &[&asked.bytes("/parameters/message")?])
        }
        _ => return Err(wrong("algorithm")),
    };
    Ok((200, json!({ "signature": STANDARD.encode(signature) })))
}

/// AEAD in the published layout (version 2, ciphertext, tag of 16 bytes). The cipher is a
/// stand-in: what is encrypted here is decrypted here alone.
fn encrypt(services: &Services, asked: &Asked) -> Reply {
    let key = named(&services.state(), asked.text("keyHandle")?)?;
    let plaintext = asked.bytes("/plaintext")?;
    let ciphertext = match (asked.text("algorithm")?, key) {
        ("AEAD", Named::Symmetric(key) | Named::Derived(key)) => {
            let (iv, aad) = (asked.bytes("/parameters/iv")?, asked.bytes("/parameters/aad")?);
            let hidden = keystream(&key, &iv, &plaintext);
            let tag = mac(&key, &[b"tag", &iv, &aad, &hidden]);
            [&[2], &hidden[..], &tag[..16]].concat()
        }
        ("RSA-PKCS1", Named::Pair { file, rsa: true }) => {
            let arguments =
                ["pkeyutl", "-sign", "-inkey", &file, "-pkeyopt", "rsa_padding_mode:pkcs1"];
            openssl::run(services.folder(), &arguments, &plaintext)
                .map_err(|_| refused(500, "internal error"))?
        }
        _ => return Err(wrong("algorithm")),
    };
    Ok((200, json!({ "ciphertext": STANDARD.encode(ciphertext) })))
}

fn decrypt(services: &Services, asked: &Asked) -> Reply {
    let key = named(&services.state(), asked.text("keyHandle")?)?;
    let (Named::Symmetric(key) | Named::Derived(key)) = key else { return Err(wrong("algorithm")) };
    let (iv, aad) = (asked.bytes("/parameters/iv")?, asked.bytes("/parameters/aad")?);
    let ciphertext = asked.bytes("/ciphertext")?;
    let Some((2, rest)) = ciphertext.split_first().filter(|(_, rest)| rest.len() >= 16) else {
        return Err(wrong("ciphertext"));
    };
    let (hidden, tag) = rest.split_at(rest.len() - 16);
    if mac(&key, &[b"tag", &iv, &aad, hidden])[..16] != *tag {
        return Err(refused(500, "internal error"));
    }
    Ok((200, json!({ "plaintext": STANDARD.encode(keystream(&key, &iv, hidden)) })))
}

fn keystream(key: &[u8], iv: &[u8], text: &[u8]) -> Vec<u8> {
    let blocks = text.chunks(32).enumerate();
    let hide = |(at, block): (usize, &[u8])| -> Vec<u8> {
        let mask = mac(key, &[b"stream", &(at as u64).to_be_bytes(), iv]);
        block.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect()
    };
    blocks.flat_map(hide).collect()
}

/// Handle of a module's key, for the identity service (wire facts 3.2).
pub(super) fn module_key(services: &Services, module: &str, generation: &str) -> String {
    let mut state = services.state();
    let master = "aziot_identityd_master_id";
    state
        .keys
        .entry(master.to_owned())
        .or_insert_with(|| Key::Symmetric(b"a master key of 32 bytes exactly".to_vec()));
    let base = handle(&state, &json!({ "Key": master }));
    let data = format!("{module}:{generation}:primary").into_bytes();
    handle(&state, &json!({ "Derived": [base, data] }))
}

/// Handle of the device's key.
pub(super) fn device_key(services: &Services) -> String {
    handle(&services.state(), &json!({ "Key": "device-id" }))
}
