//! `edgekeep attest`: what an operator is told about a process.

use edgekeep_api::attestation::Attestation;
use edgekeep_core::attestation::DenyReason;
use edgekeep_testkit::{Device, Engine, VERSION, wait_for};

use crate::{image, with_engine};

/// The command's answer, and whether it said that the process is served.
fn attest(device: &Device, arguments: &[&str]) -> Attestation {
    let output = device.edgekeep(&[&["attest", "--json"], arguments].concat());
    let attestation: Attestation = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.success(), attestation.allowed);
    attestation
}

fn failed(attestation: &Attestation) -> Option<DenyReason> {
    attestation.checks.iter().find(|check| check.passed == Some(false)).map(|check| check.reason)
}

#[test]
fn a_module_is_shown_with_its_evidence_and_a_stranger_with_the_reason_that_it_would_be_refused_for()
{
    let device = Device::builder().start();
    let m1 = device.add_caller("m1");
    let own = device.processes_of("m1")[0];
    let attestation = attest(&device, &["m1"]);
    assert_eq!((attestation.pid, attestation.allowed, failed(&attestation)), (own, true, None));
    let evidence = attestation.evidence.unwrap();
    assert!(evidence.measurement.is_some(), "it was measured");
    assert_eq!(
        attest(&device, &[&own.to_string()]).module,
        "m1",
        "the module is found by the process"
    );

    let mine = std::process::id().to_string();
    let attestation = attest(&device, &[&mine, "--module", "m1"]);
    assert_eq!(failed(&attestation), Some(DenyReason::NotInModule));
    assert!(attestation.evidence.unwrap().measurement.is_none(), "a stranger gets nothing hashed");
    assert_eq!(
        failed(&attest(&device, &[&mine, "--module", "m2"])),
        Some(DenyReason::NotRegistered)
    );
    let gone = {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id().to_string()
    };
    assert_eq!(failed(&attest(&device, &[&gone, "--module", "m1"])), Some(DenyReason::CallerGone));

    let text =
        String::from_utf8(device.edgekeep(&["attest", &mine, "--module", "m1"]).stdout).unwrap();
    assert!(text.contains("NOT  not-in-module"), "{text}");
    assert!(text.contains("This process is refused: not-in-module."), "{text}");
    // To look is no call: the trail is as it was, and the module is served.
    assert_eq!(device.status().refusal_count, 0);
    let _ = m1.sign().expect(200);

    let ask = |query: &str| device.ask("GET", &format!("/attestation?{VERSION}{query}"), None);
    ask("").expect_error(400, "pid and module");
    ask("&pid=x").expect_error(400, "pid");
    ask("&module=a/b").expect_error(400, "");
    let stopped = device.agent().manage("POST", &format!("/modules/m1/stop?{VERSION}"), None);
    assert_eq!(stopped.status, 204);
    ask("&module=m1").expect_error(409, "does not run");
}

#[test]
fn what_the_engine_brought_into_a_container_is_shown_as_that() {
    let Some(engine) = Engine::or_skip() else { return };
    let image = image(&engine);
    let device = with_engine(&engine).start();
    let name = engine.name("m1");
    let (caller, spec) = device.container_caller(&name, image.name());
    device.create_and_start(spec);
    let _ = caller.sign().expect(200);
    assert!(attest(&device, &[&name]).allowed);
    let _ = engine.docker(&["exec", "-d", &name, "/bin/sleep", "1000"]);
    let inside = wait_for("the process", || engine.process_in(&name, "/bin/sleep"));
    let attestation = attest(&device, &[&inside.to_string()]);
    assert_eq!(
        (attestation.module.as_str(), failed(&attestation)),
        (name.as_str(), Some(DenyReason::NotADescendant))
    );
}
