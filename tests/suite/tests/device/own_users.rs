//! Host modules that the configuration gives no user: each has one of its own, and none
//! reaches into another.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Caller, Device, VERSION, wait_for};

/// Ids that nobody else on the machine has.
const FIRST: u32 = 64_720;
const IDS: &str = "64720-64724";

fn uid(caller: &Caller) -> u32 {
    let report = caller.report(&[]);
    let of = |line: &str| {
        let ids: BTreeSet<u32> = report["status"][line]
            .as_str()
            .unwrap()
            .split(' ')
            .map(|id| id.parse().unwrap())
            .collect();
        assert_eq!(ids.len(), 1, "real, effective, saved and file system id: {report}");
        ids.into_iter().next().unwrap()
    };
    assert_eq!(of("Uid"), of("Gid"));
    assert_eq!(report["status"]["Groups"], "");
    of("Uid")
}

/// Has the system's own tools read a file as this user, and returns their errors.
fn read_as(uid: u32, path: &Path) -> String {
    let mut read = Command::new("setpriv");
    read.args([
        "--reuid",
        &uid.to_string(),
        "--regid",
        &uid.to_string(),
        "--clear-groups",
        "head",
        "-c1",
    ]);
    let output = read.arg(path).output().unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn host_modules_without_a_user_have_one_each_and_cannot_reach_into_each_other() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root starts modules as other users");
        return;
    }
    let mut device = Device::builder().own_users(IDS).start();
    let (one, two) = (device.add_caller("one"), device.add_caller("two"));
    let (agent, first, second) = (uid(device.agent()), uid(&one), uid(&two));
    assert_eq!([agent, first, second], [FIRST, FIRST + 1, FIRST + 2]);
    // Each gets its token on its own socket, in a folder that is its own.
    for (caller, uid) in [(&one, first), (&two, second)] {
        let _ = caller.sign().expect(200);
        let folder =
            std::fs::metadata(device.root().module_socket_folder().join(caller.module())).unwrap();
        assert_eq!((folder.uid(), folder.mode() & 0o777), (uid, 0o700));
    }
    // None opens the other's memory, environment, files and socket; its own it does.
    let process = device.processes_of("two")[0];
    let proc = |name: &str| format!("/proc/{process}/{name}");
    let (memory, environment) = (proc("mem"), proc("environ"));
    let folder = device.root().module_socket_folder().join("two");
    let state = device.root().state_folder(Daemon::Moduled).join("own-users.json");
    let paths = [Path::new(&memory), Path::new(&environment), &folder, &state];
    assert_eq!(
        two.report(&paths)["opened"],
        serde_json::json!(["open", "open", "open", "PermissionDenied"])
    );
    assert_eq!(one.report(&paths)["opened"], serde_json::json!(vec!["PermissionDenied"; 4]));
    for path in paths {
        let said = read_as(first, path);
        assert!(said.contains("Permission denied"), "{}: {said}", path.display());
    }
    let refused = one.call_at(
        &device.module_socket("two"),
        "GET",
        "/trust-bundle?api-version=2020-07-07",
        None,
    );
    assert!(refused.unwrap_err().contains("Permission denied"));

    // The ids stay the modules', through restarts of both, and through the loss of what
    // was written down.
    let _ =
        device.agent().manage("POST", &format!("/modules/one/restart?{VERSION}"), None).expect(204);
    assert_eq!(wait_for("the module", || one.try_signed().map(|_| uid(&one))), first);
    device.kill(Daemon::Moduled);
    std::fs::remove_file(&state).unwrap();
    device.start(Daemon::Moduled);
    let _ = wait_for("the module", || two.try_signed());
    let three = device.add_caller("three");
    assert_eq!(uid(&three), FIRST + 3, "not one of the others', though the file was lost");
    // An id of a module that is gone is not given to another; the module has it again
    // when it comes back.
    let _ = device.agent().manage("DELETE", &format!("/modules/three?{VERSION}"), None).expect(204);
    let folder = three.folder().to_owned();
    drop(three);
    std::fs::remove_dir_all(folder).unwrap();
    let four = device.add_caller("four");
    assert_eq!(uid(&four), FIRST + 4);
    let generation = device.create_identity("five");
    let answer = device.agent().manage(
        "POST",
        &format!("/modules?{VERSION}"),
        Some(device.spec("five", "calls", &generation)),
    );
    answer.expect_error(400, "no id of host_module_ids");
    let three = device.add_caller("three");
    assert_eq!(uid(&three), FIRST + 3);
    let _ = three.sign().expect(200);
}
