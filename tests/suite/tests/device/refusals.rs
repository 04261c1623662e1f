//! Past refusals as an operator learns of them, and who may learn of them.

use std::os::unix::fs::PermissionsExt as _;

use edgekeep_api::attestation::{PastRefusal, PastRefusals};
use edgekeep_core::attestation::DenyReason;
use edgekeep_core::layout::Daemon;
use edgekeep_core::refusals::PER_MODULE;
use edgekeep_testkit::{Caller, Device, VERSION, program, sha256_of};
use serde_json::json;

const WORKLOAD: &str = "api-version=2021-12-07";

fn past(device: &Device, arguments: &[&str]) -> Vec<PastRefusal> {
    let output = device.edgekeep(&[&["attest", "--refusals", "--json"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<PastRefusals>(&output.stdout).unwrap().refusals
}

/// Asks on the shared socket to be signed for as another module.
fn asks_as(device: &Device, caller: &Caller, module: &str) {
    let body = json!({ "keyId": "primary", "algo": "HMACSHA256", "data": "aGVsbG8=" });
    let target = format!("/modules/{module}/genid/1/sign?{WORKLOAD}");
    let answer = caller
        .call_at(&device.root().legacy_workload_socket(), "POST", &target, Some(body))
        .unwrap();
    assert_eq!((answer.status, answer.json()), (403, json!({ "message": "forbidden" })));
}

#[test]
fn past_refusals_tell_who_asked_for_what_and_each_check_and_noise_hides_none_of_them() {
    let mut device = Device::builder().start();
    let (m1, m2) = (device.add_caller("m1"), device.add_caller("m2"));
    for _ in 0..3 {
        asks_as(&device, &m1, "m2");
    }
    // The noise: more names than are remembered, and each is another refusal.
    for number in 0..PER_MODULE * 4 {
        asks_as(&device, &m2, &format!("made-up-{number}"));
    }
    let [refusal] = &past(&device, &["m2"])[..] else { panic!("one refusal, counted") };
    assert_eq!((refusal.reason, refusal.count), (DenyReason::NotInModule, 3));
    assert!(
        refusal.first_time < refusal.time && refusal.route.starts_with("POST /modules/"),
        "{refusal:?}"
    );
    assert_eq!(vec![refusal.caller.pid], device.processes_of("m1"));
    assert!(
        refusal.caller.executable.as_ref().is_some_and(|path| path.contains("calls")),
        "{refusal:?}"
    );
    let shown = refusal.attestation.as_ref().expect("it was in this run");
    let failed: Vec<DenyReason> = shown
        .checks
        .iter()
        .filter(|check| check.passed == Some(false))
        .map(|check| check.reason)
        .collect();
    assert_eq!((shown.allowed, failed), (false, vec![DenyReason::NotInModule]));
    assert_eq!(shown.evidence.as_ref().map(|seen| seen.process.pid), Some(refusal.caller.pid));
    let all = past(&device, &["--last", "1000"]);
    assert_eq!(all.len(), PER_MODULE + 1, "made-up names have the place of one module");
    assert_eq!(past(&device, &["--last", "2"]).len(), 2);
    assert_eq!(all[0].module, format!("made-up-{}", PER_MODULE * 4 - 1), "the latest first");

    let text = String::from_utf8(device.edgekeep(&["attest", "--refusals", "m2"]).stdout).unwrap();
    for part in [
        "3 times since",
        "of module m1",
        "remedy:  Ask from inside the module",
        "NOT  not-in-module",
        "ok   traced",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // The checks are of that moment: what becomes of the module later does not change
    // them.
    let _ = device.agent().manage("DELETE", &format!("/modules/m1?{VERSION}"), None);
    assert_eq!(past(&device, &["m2"])[0].attestation, refusal.attestation);

    let status = device.status();
    assert!(
        status.refusals.len() > 1
            && status.refusals.iter().any(|one| one.module == "m2" && one.count == 3)
    );
    assert_eq!(status.refusals[0].explanation.remedy, DenyReason::NotRegistered.explained().remedy);

    // After a restart the audit trail still tells who, what and why, in the same bounds.
    let count = status.refusal_count;
    device.kill(Daemon::Moduled);
    device.start(Daemon::Moduled);
    let [refusal] = &past(&device, &["m2"])[..] else { panic!("one refusal, counted") };
    assert_eq!(
        (refusal.reason, refusal.count, &refusal.attestation),
        (DenyReason::NotInModule, 3, &None)
    );
    assert_eq!(past(&device, &["--last", "1000"]).len(), PER_MODULE + 1);
    let status = device.status();
    assert!(
        count > 3 && (status.refusal_count, status.refusals.len()) == (0, 0),
        "the status is of this run: {status:?}"
    );
}

#[test]
fn only_operators_and_the_agent_look_at_processes_and_only_operators_remove_images() {
    const GUEST: u32 = 64_713;
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root becomes another user");
        return;
    }
    let calls = program("calls");
    let sha256 = sha256_of(&calls);
    let table = format!(
        "[host_modules.guest]\nexecutable = {calls:?}\nsha256 = \"{sha256}\"\nuser = {GUEST}\ngroup = {GUEST}\n"
    );
    let device = Device::builder().tables(&table).start();
    let guest = device.add_caller_as("guest", "guest", Some(GUEST));
    let _ = guest.sign().expect(200);
    // As if the guest were in the socket's group.
    let socket = device.root().management_socket();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let routes = [
        ("GET", "/attestation?module=guest&"),
        ("GET", "/refusals?"),
        ("POST", "/images/collect?"),
    ];
    for (method, route) in routes {
        let refused = guest.call_at(&socket, method, &format!("{route}{VERSION}"), None).unwrap();
        let refusal = device.assert_refused(&refused, "", DenyReason::NotAnOperator);
        assert_eq!(
            (refusal.uid, vec![refusal.pid]),
            (GUEST, device.processes_of("guest")),
            "{route}"
        );
        assert!(route.starts_with(refusal.route.split_once(' ').unwrap().1), "{refusal:?}");
    }
    // Reading is for whoever may open the socket, and says without an engine that there
    // is none, and what to do.
    let images = guest.call_at(&socket, "GET", &format!("/images?{VERSION}"), None).unwrap();
    images.expect_error(404, "no container engine is configured");
    // Root is an operator. (Here the agent is root, too.)
    for (method, route) in &routes[..2] {
        let _ = device.ask(method, &format!("{route}{VERSION}"), None).expect(200);
        let _ = device.agent().manage(method, &format!("{route}{VERSION}"), None).expect(200);
    }
    device
        .ask("POST", &format!("/images/collect?{VERSION}"), None)
        .expect_error(404, "[moby_runtime]");
    for arguments in [&["images"][..], &["images", "--collect"]] {
        let output = device.edgekeep(arguments);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("no container engine is configured") && said.contains("config apply"),
            "{said}"
        );
    }
    device.ask("GET", &format!("/refusals?{VERSION}&last=x"), None).expect_error(400, "last");
    device.ask("GET", &format!("/refusals?{VERSION}&module=a/b"), None).expect_error(400, "");
}
