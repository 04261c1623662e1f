//! An Edge CA from files that the operator made with openssl, and replaces.

use std::path::Path;
use std::process::Command;

use edgekeep_core::layout::Daemon;
use edgekeep_test_plant::Plant;
use edgekeep_testkit::{Caller, Device, VERSION, http, wait_for};
use serde_json::json;

use crate::wait_for_edge_ca;

/// Writes a file anew by another. In place: a daemon that is root, as in tests, is left
/// the file that was there at its start; one with a user of its own, the file's folder.
fn replace(folder: &Path, name: &str, by: &str) {
    std::fs::copy(folder.join(by), folder.join(name)).unwrap();
}

fn server_certificate(module: &Caller) -> http::Answer {
    let target = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{VERSION}");
    module.call("POST", &target, Some(json!({ "commonName": "press-04.plant7" })))
}

/// Asks openssl whether a chain leads to a CA of the plant.
fn leads_to(folder: &Path, chain: &str, ca: &str) -> bool {
    verifies(folder, ca, chain)
}

/// Asks openssl whether certificates of a bundle verify the first one of a chain.
fn verifies(folder: &Path, bundle: &str, chain: &str) -> bool {
    let file = folder.join("chain.pem");
    std::fs::write(&file, chain).unwrap();
    let verified = Command::new("openssl")
        .args(["verify", "-partial_chain", "-CAfile"])
        .args([&folder.join(bundle), &file])
        .output()
        .unwrap();
    verified.status.success()
}

#[test]
fn an_edge_ca_from_files_signs_and_its_successor_does_when_both_files_are_replaced() {
    let plant = Plant::new();
    let folder = plant.folder();
    replace(folder, "edge.pem", "ca.pem");
    replace(folder, "edge.key", "ca.key");
    let files = folder.display();
    let device = Device::builder()
        .tables(&format!(
            "[edge_ca]\ncert = \"file://{files}/edge.pem\"\npk = \"file://{files}/edge.key\"\n\
             on_new_key = \"notify\"\n"
        ))
        .start();
    wait_for_edge_ca(&device);
    let module = device.add_caller("m1");
    let chain_of = |answer: &http::Answer| {
        answer.json()["certificate"].as_str().unwrap_or_default().to_owned()
    };
    let answer = server_certificate(&module);
    assert_eq!(answer.status, 201, "{}\n{}", answer.text(), device.log(Daemon::Keyd));
    let first = chain_of(&answer);
    assert!(leads_to(folder, &first, "ca.pem") && !leads_to(folder, &first, "other.pem"));
    let known = device.root().state_folder(Daemon::Moduled).join("edge-ca-key.json");
    wait_for("the key to be known", || known.exists().then_some(()));

    // One half, and a wrong file before it: nothing is signed, and the reason is told.
    for wrong in ["root.pem", "other.pem"] {
        replace(folder, "edge.pem", wrong);
        let answer = server_certificate(&module);
        assert!(answer.status >= 400, "{}", answer.text());
        assert!(
            answer.text().contains("does not belong to the issuer's certificate"),
            "{}",
            answer.text()
        );
    }

    replace(folder, "edge.key", "other.key");
    let chain = wait_for("a certificate of the new CA", || {
        let answer = server_certificate(&module);
        (answer.status == 201).then(|| chain_of(&answer))
    });
    assert!(leads_to(folder, &chain, "other.pem") && !leads_to(folder, &chain, "ca.pem"));
    let root = plant.text("other.pem");
    wait_for("the new CA in the trust bundle", || {
        let bundle = module.call("GET", &format!("/trust-bundle?{VERSION}"), None).expect(200);
        bundle["certificate"].as_str()?.contains(root.trim()).then_some(())
    });
    // Peers still meet certificates of the former CA.
    let bundle = module.call("GET", &format!("/trust-bundle?{VERSION}"), None).expect(200);
    std::fs::write(folder.join("bundle.pem"), bundle["certificate"].as_str().unwrap()).unwrap();
    assert!(verifies(folder, "bundle.pem", &first) && verifies(folder, "bundle.pem", &chain));
    let wrong = plant.text("root.pem");
    let bundle = std::fs::read_to_string(folder.join("bundle.pem")).unwrap();
    assert!(!bundle.contains(wrong.trim()), "a file that signed nothing is not trusted");
    wait_for("the warning of the new key", || {
        let said = String::from_utf8(device.edgekeep(&["status"]).stdout).unwrap();
        said.contains("The Edge CA has a new key").then_some(())
    });
    let list = String::from_utf8(device.edgekeep(&["certs", "list"]).stdout).unwrap();
    assert!(list.contains("aziot-edged-ca") && list.contains("CN=other"), "{list}");
}

#[test]
fn an_edge_ca_whose_file_is_of_no_use_is_told_and_none_is_made_in_its_place() {
    let plant = Plant::new();
    let folder = plant.folder();
    replace(folder, "edge.pem", "ca.pem");
    let files = folder.display();
    let device = Device::builder()
        .tables(&format!(
            "[edge_ca]\ncert = \"file://{files}/edge.pem\"\npk = \"file://{files}/ca.key\"\n"
        ))
        .start();
    wait_for_edge_ca(&device);
    std::fs::write(folder.join("edge.pem"), "nothing").unwrap();
    wait_for("the problem", || {
        let said = String::from_utf8(device.edgekeep(&["status"]).stdout).unwrap();
        let names = said.contains("edge.pem: nothing in the file is PEM or DER");
        (names && said.contains("There is no edge CA certificate")).then_some(())
    });
    assert!(device.status().edge_ca_expiration.is_none());
    assert!(!device.log(Daemon::Moduled).contains("Edge CA certificate issued"));
    replace(folder, "edge.pem", "ca.pem");
    wait_for_edge_ca(&device);
}
