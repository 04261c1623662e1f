use proptest::prelude::*;
use serde_json::json;

use super::*;

const SECRET: &str = "Zm9yYmlkZGVuIHRleHQ+/w";

fn masked(text: &str) -> String {
    Redactor::default().text(text)
}

#[test]
fn a_secret_after_its_name_is_masked_in_every_usual_form() {
    for text in [
        "HostName=h;DeviceId=d;SharedAccessKey=SECRET;x=1",
        "SharedAccessSignature sr=h%2Fdevices%2Fd&sig=SECRET&se=1",
        "password=SECRET",
        "registry password: SECRET",
        "PASSWORD = 'SECRET'",
        "REGISTRY_PASSWORD=SECRET next",
        "{\"password\":\"SECRET\"}",
        "{\"password\" : \"SECRET\", \"user\": \"u\"}",
        "{\\\"password\\\":\\\"SECRET\\\"}",
        "symmetric_key = \"SECRET\"",
        "provisioning.attestation.symmetric_key = \"SECRET\"",
        "pkcs11:token=edge;object=x?pin-value=SECRET",
        "Authorization: Bearer SECRET",
        "authorization: SharedAccessSignature sr=x&sig=SECRET",
        "got header Basic SECRET from client",
        "https://user:SECRET@proxy.example:3128/x",
        "proxy http://user:SE:CRET@proxy".replace("SE:CRET", "SECRET").as_str(),
        "-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nSECRET cut off",
        "a\n-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n-----BEGIN EC PRIVATE KEY-----\nSECRET",
        "x-registry-auth: SECRET",
        "Set-Cookie: a=b; c=SECRET",
        "api_key:SECRET",
        "clientSecret\t=\tSECRET",
    ] {
        let text = text.replace("SECRET", SECRET);
        let out = masked(&text);
        assert!(!out.contains(SECRET), "{text}\n{out}");
        assert!(out.contains(MASK), "{text}\n{out}");
    }
    assert_eq!(masked("key AGE-SECRET-KEY-1ABCQQQQ end"), "key *** end");
    assert_eq!(masked("token=a b"), "token=*** b");
    assert_eq!(
        masked("HostName=h;SharedAccessKey=a;x=1"),
        "HostName=h;SharedAccessKey=***;x=1",
        "what stands beside it stays"
    );
}

#[test]
fn a_web_token_is_known_by_its_form() {
    let token = format!("eyJ{}.{}.{}", "a".repeat(20), "b".repeat(20), "c_-");
    assert_eq!(masked(&format!("got {token}, thanks")), "got ***, thanks");
}

#[test]
fn texts_without_secrets_stay_as_they_are() {
    for text in [
        "",
        "the key of edgeAgent is device-id",
        "value: 12, key: device-id, keyId=x",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        "GET https://plant7.azure-devices.net/devices/press-04?api-version=2020",
        "token expired\nsecret rotation is on",
        "basic auth is off; bearer of news",
        "Grüße aus der Presse — 12 °C",
    ] {
        assert_eq!(masked(text), text);
    }
}

#[test]
fn a_configuration_loses_its_secrets_and_keeps_the_rest() {
    let mut value = json!({
        "hostname": "press-04",
        "provisioning": {
            "source": "dps",
            "attestation": { "registration_id": "r", "symmetric_key": { "value": SECRET } },
        },
        "manual": { "connection_string": format!("HostName=h;SharedAccessKey={SECRET}") },
        "preloaded_keys": { "a": format!("pkcs11:token=t?pin-value={SECRET}"), "b": "file:///b" },
        "tpm": { "hierarchy_authorization": { "owner": SECRET } },
        "agent": {
            "env": { "A": SECRET, "N": 1 },
            "config": { "auth": { "username": "u", "password": SECRET },
                "createOptions": { "Env": [format!("A={SECRET}")] } },
        },
    });
    let found = secrets_in(&value);
    assert!(found.iter().filter(|one| one.as_str() == SECRET).count() >= 7, "{}", found.len());
    Redactor::default().redact(&mut value);
    let text = value.to_string();
    assert!(!text.contains(SECRET), "{text}");
    for part in
        ["press-04", "\"registration_id\":\"r\"", "file:///b", "\"username\":\"u\"", "A=***"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_known_secret_is_masked_wherever_it_stands() {
    let known = [Zeroizing::new("hunter22".to_owned()), Zeroizing::new("ab".to_owned())];
    let redactor = Redactor::new(known);
    assert_eq!(redactor.text("said hunter22hunter22 and ab"), "said ****** and ab");
    let mut value = json!({ "log": ["it is hunter22"] });
    redactor.redact(&mut value);
    assert_eq!(value, json!({ "log": ["it is ***"] }));
}

proptest! {
    #[test]
    fn no_known_secret_survives_in_any_text(
        secret in "[A-Za-z0-9+/=]{6,40}",
        before in "\\PC{0,40}",
        after in "\\PC{0,40}",
    ) {
        let redactor = Redactor::new([Zeroizing::new(secret.clone())]);
        let out = redactor.text(&format!("{before}{secret}{after}"));
        prop_assert!(!out.contains(&secret));
    }

    #[test]
    fn no_text_is_too_odd(text in "\\PC{0,200}") {
        let once = masked(&text);
        prop_assert_eq!(masked(&once), once.clone());
    }

    #[test]
    fn a_named_secret_never_survives(
        name in prop::sample::select(vec!["password", "SharedAccessKey", "api_key", "X_TOKEN", "pin-value"]),
        separator in prop::sample::select(vec!["=", ": ", "\": \"", " = '", "\\\":\\\""]),
        secret in "[A-Za-z0-9+/=]{12,40}",
        after in "[ \"',;&}\n]\\PC{0,20}",
    ) {
        let out = masked(&format!("x {name}{separator}{secret}{after}"));
        prop_assert!(!out.contains(&secret), "{}", out);
    }
}
