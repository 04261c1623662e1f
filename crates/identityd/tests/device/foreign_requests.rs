//! Requests that openssl made, and openssl's word on what was issued for them.

use std::path::{Path, PathBuf};
use std::process::Command;

use edgekeep_api::certd::CreateCertificate;
use http::StatusCode;
use rcgen::KeyPair;

use crate::certificates::{CA, device_with_ca, leaf, refusal};

/// Runs openssl in a folder.
#[track_caller]
fn openssl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "openssl {arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// A request with these extensions, for a new key.
fn request(folder: &Path, key: &[&str], subject: &str, extensions: &[&str]) -> String {
    let mut arguments =
        vec!["req", "-new", "-utf8", "-nodes", "-out", "leaf.csr", "-subj", subject];
    if key == COMPRESSED {
        openssl(
            folder,
            &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "whole.key"],
        );
        openssl(
            folder,
            &["ec", "-in", "whole.key", "-conv_form", "compressed", "-out", "leaf.key"],
        );
        arguments.extend_from_slice(&["-key", "leaf.key"]);
    } else {
        arguments.extend_from_slice(&["-keyout", "leaf.key", "-newkey"]);
        arguments.extend_from_slice(key);
    }
    for extension in extensions {
        arguments.extend_from_slice(&["-addext", extension]);
    }
    openssl(folder, &arguments);
    std::fs::read_to_string(folder.join("leaf.csr")).unwrap()
}

const P256: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
const P384: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:P-384"];
const COMPRESSED: &[&str] = &["compressed"];
const RSA: &[&str] = &["rsa:2048"];

#[tokio::test]
async fn what_openssl_asks_for_is_issued_as_it_was_asked_and_verifies_strictly() {
    let (device, ca) = device_with_ca(&KeyPair::generate().unwrap()).await;
    let folder: PathBuf = device.folder.path().to_owned();
    std::fs::write(folder.join("ca.pem"), &ca).unwrap();
    let names = "subjectAltName=DNS:press-04.example,DNS:*.plant.example,IP:10.0.0.1,IP:fe80::1,URI:urn:uuid:1";
    for (key, subject, extensions, shown) in [
        (
            P256,
            "/CN=press-04",
            &[names, "extendedKeyUsage=serverAuth,clientAuth", "keyUsage=digitalSignature"][..],
            &[
                "DNS:press-04.example, DNS:*.plant.example, IP Address:10.0.0.1, IP Address:FE80:0:0:0:0:0:0:1, URI:urn:uuid:1",
                "TLS Web Server Authentication, TLS Web Client Authentication",
                "X509v3 Key Usage: critical\n                Digital Signature\n",
            ][..],
        ),
        (
            P384,
            "/C=DE/O=Plant 7/OU=Presses+OU=Old/CN=pr\u{fc}fer",
            &["basicConstraints=CA:FALSE"],
            &["CA:FALSE"],
        ),
        (
            RSA,
            "/CN=press-04",
            &["keyUsage=critical,keyEncipherment", "subjectKeyIdentifier=hash"],
            &["Key Encipherment"],
        ),
        // A key whose point is compressed is certified in the form that all readers know.
        (
            COMPRESSED,
            "/CN=press-04",
            &["extendedKeyUsage=critical,ipsecIKE"],
            &["ipsec Internet Key Exchange"],
        ),
        (
            P256,
            "/",
            &["subjectAltName=DNS:press-04"],
            &["X509v3 Subject Alternative Name: critical"],
        ),
        // As the compatible module runtime names a module's identity.
        (
            P256,
            "/CN=$edgeHub",
            &[
                "subjectAltName=DNS:URI: azureiot://hub.example/devices/d/modules/\\$edgeHub",
                "extendedKeyUsage=clientAuth",
            ],
            &["URI:azureiot://hub.example/devices/d/modules/$edgeHub"],
        ),
        (P256, "/CN=press-04", &["tlsfeature=status_request"], &[]),
    ] {
        let csr = request(&folder, key, subject, extensions);
        let chain = leaf(&device, "host/certificate", csr).await.unwrap();
        std::fs::write(folder.join("leaf.pem"), &chain).unwrap();
        openssl(&folder, &["verify", "-x509_strict", "-CAfile", "ca.pem", "leaf.pem"]);
        let text = openssl(&folder, &["x509", "-in", "leaf.pem", "-noout", "-text"]);
        for part in shown {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(!text.contains("TLS Feature"), "what is not known is left out: {text}");
        // Same subject, same key, as openssl reads them.
        for what in ["-subject", "-pubkey"] {
            let asked = openssl(&folder, &["req", "-in", "leaf.csr", "-noout", what]);
            let issued = openssl(&folder, &["x509", "-in", "leaf.pem", "-noout", what]);
            assert_eq!(
                asked == issued,
                key != COMPRESSED || what == "-subject",
                "{asked} {issued}"
            );
        }
        openssl(&folder, &["x509", "-in", "leaf.pem", "-outform", "DER", "-out", "leaf.der"]);
        openssl(&folder, &["asn1parse", "-inform", "DER", "-in", "leaf.der"]);
    }
}

#[tokio::test]
async fn what_openssl_asks_for_and_may_not_have_is_refused_with_the_reason() {
    let (device, _) = device_with_ca(&KeyPair::generate().unwrap()).await;
    let folder: PathBuf = device.folder.path().to_owned();
    for (id, subject, extension, reason) in [
        ("host", "/CN=a", "basicConstraints=DER:30:00:00", "behind its value"),
        (
            "host",
            "/CN=a",
            "subjectAltName=DER:30:03:82:01:61:82:04:62:61:6e:6b",
            "behind its value",
        ),
        (
            "host",
            "/CN=a",
            "subjectAltName=DER:30:06:82:04:61:00:2e:62",
            "alternative name 1: not a host name",
        ),
        ("host", "/CN=a", "subjectAltName=DNS:a,DNS:b c", "alternative name 2: not a host name"),
        ("host", "/CN=a", "subjectAltName=email:a@b.example", "its kind is not issued"),
        ("host", "/CN=a", "subjectAltName=otherName:1.2.3;UTF8:x", "its kind is not issued"),
        ("host", "/CN=a", "subjectAltName=RID:1.2.3", "its kind is not issued"),
        (
            "host",
            "/CN=a",
            "extendedKeyUsage=anyExtendedKeyUsage",
            "purpose 2.5.29.37.0 is not issued",
        ),
        (
            "host",
            "/CN=a",
            "extendedKeyUsage=OCSPSigning",
            "purpose 1.3.6.1.5.5.7.3.9 is not issued",
        ),
        (
            "host",
            "/CN=a",
            "nameConstraints=critical,permitted;DNS:a",
            "insists on extension 2.5.29.30",
        ),
        ("host", "/CN=a", "basicConstraints=CA:TRUE", "asks for a CA's rights"),
        ("host", "/CN=a", "keyUsage=cRLSign", "asks for a CA's rights"),
        ("host", "/", "keyUsage=digitalSignature", "neither a subject nor an alternative name"),
        (
            "aziot-edged/module/m:1:server",
            "/CN=a",
            "subjectAltName=DNS:*.plant.example",
            "no wildcards",
        ),
        ("aziot-edged/module/m:1:server", "/CN=a", "extendedKeyUsage=codeSigning", "is not issued"),
    ] {
        let csr = request(&folder, P256, subject, &[extension]);
        let (status, message) = refusal(leaf(&device, id, csr).await.unwrap_err());
        assert_eq!(status, StatusCode::BAD_REQUEST, "{extension}: {message}");
        assert!(message.contains(reason), "{extension}: {message}, not {reason}");
        assert!(device.certificates().load(id).await.is_err(), "nothing was stored");
    }
    let odd: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"];
    for (key, reason) in [
        (odd, "a curve other than"),
        (&["rsa:1024"], "2048 to 8192 bits"),
        (&["ed25519"], "neither EC nor RSA"),
    ] {
        let (_, message) =
            refusal(leaf(&device, "host", request(&folder, key, "/CN=a", &[])).await.unwrap_err());
        assert!(message.contains(reason), "{message}");
    }
}

/// The calls of the compatible module runtime when it renews its CA (it asks without an
/// issuer, under a second id), with a key of RSA as it prefers, made with and without a
/// new key.
#[tokio::test]
async fn the_compatible_module_runtime_renews_its_ca_with_a_new_key_and_with_the_old_one() {
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let (mut device, first) = device_with_ca(&rsa).await;
    const NEXT: &str = "aziot-edged-ca-temp";
    let issuance = device.settings.cert_issuance[CA].clone();
    device.settings.cert_issuance.insert(NEXT.parse().unwrap(), issuance);
    device.restart().await;
    let (keys, certificates) = (device.keys(), device.certificates());
    let mut before = first;
    for rotates in [true, false] {
        let pair = if rotates {
            let pair = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
                .unwrap();
            device.import(NEXT, &pair).await;
            pair
        } else {
            let pair = KeyPair::generate().unwrap();
            device.import(CA, &pair).await;
            pair
        };
        let csr = crate::certificates::ca_request(&pair, rcgen::BasicConstraints::Constrained(0));
        let request =
            CreateCertificate { cert_id: NEXT.to_owned(), csr, issuer: None, not_after: None };
        let renewed = certificates.create(&request).await.unwrap();
        certificates.delete(NEXT).await.unwrap();
        certificates.import(CA, &renewed).await.unwrap();
        if rotates {
            keys.move_key_pair(NEXT, CA).await.unwrap();
        }
        assert_ne!(renewed, before);
        // What stands below verifies with the renewed certificate, and not with the one
        // before.
        let folder: PathBuf = device.folder.path().to_owned();
        let chain = leaf(&device, "m", request_leaf(&folder)).await.unwrap();
        for (file, text) in [("ca.pem", &renewed), ("old.pem", &before), ("leaf.pem", &chain)] {
            std::fs::write(folder.join(file), text).unwrap();
        }
        openssl(&folder, &["verify", "-x509_strict", "-CAfile", "ca.pem", "leaf.pem"]);
        let old = Command::new("openssl")
            .args(["verify", "-CAfile", "old.pem", "leaf.pem"])
            .current_dir(&folder)
            .output();
        assert!(!old.unwrap().status.success());
        before = renewed;
    }
}

fn request_leaf(folder: &Path) -> String {
    request(folder, P256, "/CN=m", &["subjectAltName=DNS:m", "extendedKeyUsage=serverAuth"])
}
