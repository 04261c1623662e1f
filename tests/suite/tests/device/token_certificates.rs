//! Certificates that are objects on a token: written there by OpenSC's `pkcs11-tool`,
//! read by keyd, used by identityd.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use edgekeep_core::layout::Daemon;
use edgekeep_test_plant::Plant;
use edgekeep_testkit::{Device, VERSION, wait_for};
use serde_json::json;

use crate::{parts, wait_for_edge_ca};

const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "geheim-1234";

/// A SoftHSM2 token `edge`, and a plant whose CA's key is imported as `edge-ca`.
struct Token {
    plant: Plant,
    conf: PathBuf,
}

impl Token {
    /// `None`: a program is missing.
    fn new() -> Option<Self> {
        if parts::missing(&["softhsm2-util", "pkcs11-tool", SOFTHSM]) {
            return None;
        }
        let plant = Plant::new();
        let folder = plant.folder().to_owned();
        std::fs::create_dir_all(folder.join("hsm/tokens")).unwrap();
        let conf = folder.join("softhsm2.conf");
        let tokens = folder.join("hsm/tokens");
        std::fs::write(&conf, format!("directories.tokendir = {}\n", tokens.display())).unwrap();
        let token = Self { plant, conf };
        openssl(&folder, "pkcs8 -topk8 -nocrypt -in ca.key -out ca.p8");
        for name in ["ca", "root", "other", "server"] {
            openssl(&folder, &format!("x509 -in {name}.pem -outform DER -out {name}.der"));
        }
        token.run(
            "softhsm2-util",
            &format!("--init-token --free --label edge --pin {PIN} --so-pin 87654321"),
        );
        token.run(
            "softhsm2-util",
            &format!("--import ca.p8 --token edge --label edge-ca --id 01 --pin {PIN}"),
        );
        std::fs::remove_file(folder.join("ca.p8")).unwrap();
        Some(token)
    }

    fn folder(&self) -> &Path {
        self.plant.folder()
    }

    fn run(&self, program: &str, arguments: &str) {
        let done = Command::new(program)
            .args(arguments.split_whitespace())
            .current_dir(self.folder())
            .env("SOFTHSM2_CONF", &self.conf)
            .output();
        said(&done.unwrap());
    }

    fn pkcs11_tool(&self, arguments: &str) {
        let login = format!("--module {SOFTHSM} --token-label edge --login --pin {PIN}");
        self.run("pkcs11-tool", &format!("{login} {arguments}"));
    }

    fn write(&self, file: &str, label: &str, id: &str) {
        self.pkcs11_tool(&format!("--type cert --write-object {file} --label {label} --id {id}"));
    }

    fn delete(&self, label: &str) {
        self.pkcs11_tool(&format!("--type cert --delete-object --label {label}"));
    }

    /// Takes the token away, or brings it back.
    fn go(&self, from: &str, to: &str) {
        let at = |name: &str| self.folder().join("hsm").join(name);
        std::fs::rename(at(from), at(to)).unwrap();
    }

    /// Starts a device whose Edge CA is on the token, and whose user CA as well.
    fn device(&self, pin: &str) -> Device {
        let uri = |object: &str| format!("pkcs11:token=edge;object={object}?pin-value={pin}");
        let (cert, key, user) = (uri("edge-ca;type=cert"), uri("edge-ca"), uri("user-ca"));
        let paths = self.folder().display();
        Device::builder()
            .top(&format!("trust_bundle_cert = \"{user}\"\n"))
            .tables(&format!(
                "[aziot_keys]\npkcs11_lib_path = \"{SOFTHSM}\"\nsandbox_paths = [\"{paths}\"]\n\
                 [edge_ca]\ncert = \"{cert}\"\npk = \"{key}\"\n"
            ))
            .variable("SOFTHSM2_CONF", &self.conf.display().to_string())
            .start()
    }
}

fn openssl(folder: &Path, arguments: &str) {
    let words = arguments.split_whitespace();
    said(&Command::new("openssl").args(words).current_dir(folder).output().unwrap());
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Waits until `edgekeep status` says something of a certificate.
fn wait_for_problem(device: &Device, words: &str) {
    let mut last = String::new();
    wait_for(words, || {
        last = String::from_utf8(device.edgekeep(&["status"]).stdout).unwrap();
        last.contains(words).then_some(())
    });
    assert!(!last.contains(PIN), "{last}");
}

fn read(device: &Device, id: &str) -> Result<String, String> {
    let output = device.edgekeep(&["certs", "export", id]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn an_edge_ca_on_a_token_signs_and_what_is_changed_there_is_followed() {
    let Some(token) = Token::new() else { return };
    let folder = token.folder();
    token.write("ca.der", "edge-ca", "01");
    token.write("other.der", "user-ca", "02");
    let device = token.device(PIN);
    wait_for_edge_ca(&device);
    let list = said(&device.edgekeep(&["certs", "list"]));
    assert!(list.contains("not renewed here: pkcs11:token=edge;object=edge-ca"), "{list}");
    assert!(!list.contains(PIN), "{list}");

    let module = device.add_caller("m1");
    let target = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{VERSION}");
    let answer = module.call("POST", &target, Some(json!({ "commonName": "press-04.plant7" })));
    assert_eq!(answer.status, 201, "{}", answer.text());
    let chain = answer.json()["certificate"].as_str().unwrap().to_owned();
    std::fs::write(folder.join("chain.pem"), chain).unwrap();
    openssl(folder, "verify -partial_chain -CAfile ca.pem chain.pem");
    let bundle = module.call("GET", &format!("/trust-bundle?{VERSION}"), None).expect(200);
    let bundle = bundle["certificate"].as_str().unwrap().to_owned();
    for name in ["ca.pem", "other.pem"] {
        assert!(bundle.contains(token.plant.text(name).trim()), "{name}: {bundle}");
    }

    // Two of the name: which of them is meant cannot be known.
    token.write("root.der", "user-ca", "03");
    wait_for_problem(&device, "has 2 certificates pkcs11:object=user-ca");
    let error = read(&device, "trust-bundle-user").unwrap_err();
    assert!(error.contains("add id= or object= to the uri"), "{error}");
    // The other certificates of the bundle are in use.
    assert!(read(&device, "aziot-edged-trust-bundle").unwrap().contains("BEGIN CERTIFICATE"));

    token.delete("user-ca");
    token.delete("user-ca");
    wait_for_problem(&device, "has no certificate pkcs11:object=user-ca");
    let root = token.plant.text("root.pem");
    token.write("root.der", "user-ca", "03");
    wait_for("the certificate that was written", || {
        (read(&device, "trust-bundle-user").ok()?.trim() == root.trim()).then_some(())
    });

    // An object that somebody filled with something else.
    token.delete("user-ca");
    junk(&token, "user-ca");
    wait_for_problem(&device, "the object on the token is not one certificate in DER");
    assert!(!device.log(Daemon::Keyd).contains(PIN));
    assert!(!device.log(Daemon::Identityd).contains(PIN));
}

/// Writes an object whose value is no certificate. `pkcs11-tool` looks at what it writes,
/// so bytes of a good one are broken where SoftHSM2 keeps them.
fn junk(token: &Token, label: &str) {
    token.write("server.der", label, "04");
    let good = std::fs::read(token.folder().join("server.der")).unwrap();
    let mut broken = 0;
    let tokens = token.folder().join("hsm/tokens");
    for slot in std::fs::read_dir(tokens).unwrap() {
        for file in std::fs::read_dir(slot.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let at = bytes.windows(good.len()).position(|window| window == good);
            if let Some(at) = at {
                bytes[at] = 0x31;
                std::fs::write(&path, bytes).unwrap();
                broken += 1;
            }
        }
    }
    assert_eq!(broken, 1, "SoftHSM2 keeps the value of a public object as it is");
}

#[test]
fn a_certificate_stays_in_use_while_its_token_is_away_and_is_missed_after_a_restart() {
    let Some(token) = Token::new() else { return };
    token.write("ca.der", "edge-ca", "01");
    token.write("other.der", "user-ca", "02");
    let mut device = token.device(PIN);
    wait_for_edge_ca(&device);
    let other = token.plant.text("other.pem");
    let id = "trust-bundle-user";
    wait_for("the certificate", || (read(&device, id).ok()?.trim() == other.trim()).then_some(()));
    device.stop(Daemon::Keyd);
    token.go("tokens", "away");
    std::fs::create_dir(token.folder().join("hsm/tokens")).unwrap();
    device.start(Daemon::Keyd);
    wait_for_problem(&device, "keyd's log names the cause");
    assert_eq!(read(&device, id).unwrap().trim(), other.trim());
    assert!(device.log(Daemon::Keyd).contains("plug it in"), "{}", device.log(Daemon::Keyd));

    device.stop(Daemon::Identityd);
    device.start(Daemon::Identityd);
    let error = wait_for("the error", || read(&device, id).err());
    assert!(error.contains("cannot be read from its token"), "{error}");
    std::fs::remove_dir(token.folder().join("hsm/tokens")).unwrap();
    token.go("away", "tokens");
    wait_for("the certificate again", || {
        (read(&device, id).ok()?.trim() == other.trim()).then_some(())
    });
    wait_for_edge_ca(&device);
}

#[test]
fn a_wrong_pin_is_told_and_tried_once() {
    let Some(token) = Token::new() else { return };
    token.write("ca.der", "edge-ca", "01");
    token.write("other.der", "user-ca", "02");
    let device = token.device("falsch");
    wait_for_problem(&device, "cannot read certificate \"aziot-edged-ca\" from its token");
    assert!(read(&device, "aziot-edged-ca").is_err());
    let log = device.log(Daemon::Keyd);
    assert!(log.contains("correct the PIN") && !log.contains("falsch"), "{log}");
    // The token counts wrong PINs and would be locked by now had it been asked each time.
    token.pkcs11_tool("--list-objects");
}
