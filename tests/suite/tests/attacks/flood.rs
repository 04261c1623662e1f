//! Attacks on service: a user who connects without end.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, VERSION, http, wait_for};

const SOCKET: &str = "EDGEKEEP_TEST_FLOODED_SOCKET";
const NOBODY: u32 = 65534;
/// Far more than any user may waste.
const MOST: u32 = 1_000_000;

/// Not a test of its own: floods a socket until it is kept out.
#[test]
fn what_the_flooding_user_does() {
    let Some(socket) = std::env::var_os(SOCKET).map(PathBuf::from) else { return };
    let kept_out = |_: &u32| {
        UnixStream::connect(&socket).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    };
    assert!((0..MOST).find(kept_out).is_some(), "the socket stays open to a flood");
}

#[test]
fn a_user_who_floods_the_shared_socket_is_kept_out_of_it_and_operators_are_told() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to act as another user");
        return;
    }
    let device = Device::builder().start();
    let module = device.add_caller("m1");
    let socket = device.root().legacy_workload_socket();
    // The program's own folder may not be open to other users.
    let copy = device.root().path().join("flood");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let mut flood = Command::new(&copy);
    flood.args(["--exact", "flood::what_the_flooding_user_does"]).env(SOCKET, &socket);
    let output = flood.gid(NOBODY).uid(NOBODY).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));

    let target = format!("/modules/{{m}}/genid/{{g}}/sign?{VERSION}");
    let body = serde_json::json!({ "keyId": "primary", "algo": "HMACSHA256", "data": "ZGF0YQ==" });
    let _ = module.call_at(&socket, "POST", &target, Some(body)).unwrap().expect(200);
    let operations = device.root().metrics_socket(Daemon::Moduled);
    let told = wait_for("the flood to be told of", || {
        let problems = http::call(&operations, "GET", "/problems", None).unwrap().text();
        problems.contains("socket-flooded").then_some(problems)
    });
    assert!(told.contains("by user 65534, who is kept out for 10 s"), "{told}");
}
