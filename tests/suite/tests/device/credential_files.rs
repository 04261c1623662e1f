//! Files of certificates that an operator changes while a device runs, as modules and the
//! operator see them.

use edgekeep_core::layout::Daemon;
use edgekeep_test_plant::{Plant, count_by_openssl, count_by_python, is_strict};
use edgekeep_testkit::{Device, http, wait_for};

use crate::wait_for_edge_ca;

#[test]
fn a_private_key_in_the_trust_bundle_reaches_no_module_and_is_named() {
    let plant = Plant::new();
    let bundle = plant.folder().join("bundle.pem");
    std::fs::write(&bundle, plant.der("root")).unwrap();
    let device = Device::builder()
        .top(&format!("trust_bundle_cert = \"file://{}\"", bundle.display()))
        .start();
    wait_for_edge_ca(&device);
    let module = device.add_caller("m1");
    let trusted = || {
        let answer = module.call("GET", "/trust-bundle?api-version=2020-07-07", None).expect(200);
        answer["certificate"].as_str().unwrap().to_owned()
    };
    let (root, other, key) =
        (plant.text("root.pem"), plant.text("other.pem"), plant.text("root.key"));
    wait_for("the root, whose file is DER", || trusted().ends_with(&root).then_some(()));

    // After it was applied: nobody checks the file then but identityd.
    let cut = &plant.text("ca.pem")[..150];
    std::fs::write(&bundle, format!("\u{feff}{}{other}{key}{cut}\n", root.trim_end())).unwrap();
    let pem = wait_for("both roots", || {
        Some(trusted()).filter(|pem| pem.ends_with(&format!("{root}{other}")))
    });
    // And the edge CA's, the first one.
    assert_eq!((count_by_openssl(&pem), count_by_python(&pem)), (Ok(3), Ok(3)));
    assert!(is_strict(&pem) && !pem.contains("PRIVATE"));

    let lines = root.lines().count() + other.lines().count();
    let named = format!("bundle.pem: line {lines}, block 3: it is a private key");
    let socket = device.root().path().join("run/edgekeep/identityd.metrics.sock");
    let problems = http::call(&socket, "GET", "/problems", None).unwrap().text();
    assert!(
        problems.contains(&named) && problems.contains("certificate-file"),
        "{named}: {problems}"
    );
    let check = device.edgekeep(&["config", "check"]);
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(
        !check.status.success()
            && said.contains(&named)
            && said.contains("the END line is missing"),
        "{said}"
    );
    for secret in key.lines().filter(|line| !line.starts_with('-')) {
        let log = device.log(Daemon::Identityd);
        assert!([&pem, &problems, &said, &log].iter().all(|text| !text.contains(secret)));
    }
}
