//! A module's socket: nobody else's, there as long as the module is, and repaired when
//! something happened to it.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Caller, Device, VERSION, program, wait_for};

fn wait_until_served(module: &Caller) {
    wait_for("the module to be served", || {
        let target = format!("/modules/{{m}}/genid/{{g}}/sign?{VERSION}");
        let body = serde_json::json!({"keyId": "primary", "algo": "HMACSHA256", "data": "eA=="});
        module
            .try_call("POST", &target, Some(body))
            .is_ok_and(|answer| answer.status == 200)
            .then_some(())
    });
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

#[test]
fn whatever_is_in_a_sockets_place_is_replaced_while_the_daemon_runs() {
    let device = Device::builder().start();
    let module = device.add_caller("m1");
    let _ = module.sign().expect(200);
    let socket = device.module_socket("m1");
    let folder = socket.parent().unwrap().to_owned();
    let link = folder.with_file_name("m1.sock");

    std::fs::remove_file(&socket).unwrap();
    wait_until_served(&module);
    // As an engine does when a bind source is absent.
    std::fs::remove_file(&socket).unwrap();
    std::fs::create_dir(&socket).unwrap();
    wait_until_served(&module);
    std::fs::remove_file(&socket).unwrap();
    std::fs::create_dir(&socket).unwrap();
    std::fs::write(socket.join("content"), "kept").unwrap();
    wait_until_served(&module);
    assert_eq!(std::fs::read_to_string(folder.join("workload.aside-0/content")).unwrap(), "kept");
    std::fs::write(folder.join("other"), "").unwrap();
    std::fs::rename(folder.join("other"), &socket).unwrap();
    wait_until_served(&module);
    // A dead socket of somebody else looks the same from afar.
    std::fs::remove_file(&socket).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    wait_until_served(&module);
    std::fs::remove_dir_all(&folder).unwrap();
    wait_until_served(&module);
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "a file").unwrap();
    wait_until_served(&module);
    std::fs::remove_file(&link).unwrap();
    wait_for("the link", || is_socket(&std::fs::canonicalize(&link).ok()?).then_some(()));
    assert!(is_socket(&socket));
    assert!(device.log(Daemon::Moduled).contains("made anew"));
    // Its removal is not undone.
    let _ = device.agent().manage("DELETE", &format!("/modules/m1?{VERSION}"), None).expect(204);
    assert!(!folder.exists() && std::fs::symlink_metadata(&link).is_err());
}

#[test]
fn another_user_reaches_no_modules_socket_by_its_path() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let device = Device::builder().start();
    let module = device.add_caller("m1");
    let _ = module.sign().expect(200);
    let folder = device.module_socket("m1").parent().unwrap().to_owned();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&device.root().state_folder(Daemon::Moduled)), 0o700);
    assert_eq!(mode(&folder), 0o700);
    let intruder = program("intruder");
    // The program's own folder need not be open to others.
    let copy = device.root().path().join("intruder");
    std::fs::copy(intruder, &copy).unwrap();
    for path in [device.module_socket("m1"), folder.with_file_name("m1.sock")] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy);
        command.arg("--socket").arg(&path).args(["--module", "m1", "--genid", "1", "--json"]);
        let output = command.output().unwrap();
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(said.contains("ermission denied"), "{said}");
    }
}

#[test]
fn sockets_come_back_when_a_full_disk_has_room_again() {
    const AGAIN: &str = "EDGEKEEP_TEST_OWN_MOUNTS";
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can mount");
        return;
    }
    if std::env::var_os(AGAIN).is_none() {
        // The same test in a mount namespace of its own: what it mounts goes when it
        // ends, however that is.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
        command.args([
            "--exact",
            "sockets::sockets_come_back_when_a_full_disk_has_room_again",
            "--nocapture",
        ]);
        let output = command.env(AGAIN, "1").output().unwrap();
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let mut device = Device::builder().start();
    device.kill(Daemon::Moduled);
    let state = device.root().state_folder(Daemon::Moduled);
    let kept = state.with_file_name("kept");
    std::fs::rename(&state, &kept).unwrap();
    std::fs::create_dir(&state).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k,nr_inodes=64", "none"])
        .arg(&state)
        .status();
    assert!(mounted.unwrap().success());
    assert!(
        Command::new("cp").arg("-a").arg(kept.join(".")).arg(&state).status().unwrap().success()
    );
    device.start(Daemon::Moduled);
    wait_until_served(device.agent());
    let module = device.add_caller("m1");
    let _ = module.sign().expect(200);

    let filler = state.join("filler");
    std::fs::create_dir(&filler).unwrap();
    let mut bytes = std::fs::File::create(filler.join("bytes")).unwrap();
    while std::io::Write::write_all(&mut bytes, &[1; 4096]).is_ok() {}
    drop(bytes);
    // Nothing can be made while all inodes are taken.
    std::fs::remove_dir_all(device.module_socket("m1").parent().unwrap()).unwrap();
    let mut made = 0;
    while std::fs::create_dir(filler.join(made.to_string())).is_ok() {
        made += 1;
    }
    wait_for("the trouble to be told", || {
        device.log(Daemon::Moduled).contains("workload socket not open").then_some(())
    });
    let lines = device.log(Daemon::Moduled).matches("workload socket not open").count();
    let _ = device.agent().sign().expect(200);
    let body = serde_json::json!({});
    let refused = device.agent().manage("POST", &format!("/modules?{VERSION}"), Some(body));
    assert!(refused.status >= 400);
    assert_eq!(lines, 1, "told once");
    std::fs::remove_dir_all(&filler).unwrap();
    wait_until_served(&module);
    let _ = device.add_caller("m2").sign().expect(200);
}
