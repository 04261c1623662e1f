//! Faults that keep a TPM or a token from being used, and the way to them from within the
//! sandbox.

use super::*;

#[test]
fn each_way_in_which_a_tpm_cannot_be_used_is_named_with_what_to_do() {
    if swtpm::skip() {
        return;
    }
    // What the TPM API answers to each is the same; what it logs is for the operator.
    let logged = |device: &mut Device, expected: &str| {
        device.start();
        run(async {
            assert_eq!(refusal(device.tpm().keys().await), (500, "internal error".to_owned()));
        });
        device.stop();
        let causes: Vec<String> = device
            .log()
            .lines()
            .filter(|line| line.contains("internal error"))
            .map(str::to_owned)
            .collect();
        assert!(causes.iter().any(|line| line.contains(expected)), "{expected}: {causes:?}");
    };
    let with = |tcti: &str| Device::new(&json!({"tpm": {"tcti": tcti, "auth_key_index": 0x100}}));
    logged(&mut with("device:/dev/no-tpm"), "enable the TPM in the firmware, load its driver");

    // A handle that is taken.
    let swtpm = Swtpm::start();
    let tools = swtpm.folder("tools");
    for (name, arguments) in [
        ("tpm2_createprimary", &["-C", "o", "-G", "ecc:ecdsa", "-c", "k.ctx", "-a", SIGNING][..]),
        ("tpm2_evictcontrol", &["-C", "o", "-c", "k.ctx", "0x81000001"]),
        ("tpm2_flushcontext", &["-t"]),
    ] {
        swtpm.tool_ok(&tools, name, arguments);
    }
    let tcti = swtpm.tcti().to_string();
    logged(&mut with(&tcti), "remove it with `tpm2_evictcontrol -C o -c 0x81000001`");

    // A device node that another user may open, and this one not.
    if !rustix::process::geteuid().is_root() || parts::missing(&["setpriv"]) {
        return;
    }
    let mut device = with("unset");
    let node = device.path("tpm");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &node,
        rustix::fs::FileType::CharacterDevice,
        0o600.into(),
        0,
    )
    .unwrap();
    device.set(
        &json!({"tpm": {"tcti": format!("device:{}", node.display()), "auth_key_index": 0x100},
                       "principals": [{"uid": 0, "keys": ["*"]}]}),
    );
    device.wrapper =
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"].map(str::to_owned).into();
    give_to(device.folder.path(), 65_534);
    fs::set_permissions(&node, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&node, Some(0), Some(0)).unwrap();
    logged(&mut device, "usermod --append --groups tss USER");
}

const SIGNING: &str = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign";

/// Gives a folder and all in it to a user.
fn give_to(folder: &Path, uid: u32) {
    std::os::unix::fs::chown(folder, Some(uid), Some(uid)).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            give_to(&path, uid);
        } else {
            std::os::unix::fs::chown(&path, Some(uid), Some(uid)).unwrap();
        }
    }
}

#[test]
fn a_tpm_in_lockout_is_named_with_what_to_do() {
    if swtpm::skip() {
        return;
    }
    let swtpm = Swtpm::start();
    let tools = swtpm.folder("tools");
    let run_tool = |name: &str, arguments: &[&str]| {
        swtpm.tool_ok(&tools, name, arguments);
        swtpm.tool_ok(&tools, "tpm2_flushcontext", &["-t"]);
    };
    // An authentication key that counts wrong guesses, as some services make them.
    run_tool("tpm2_createprimary", &["-C", "o", "-G", "ecc", "-c", "root.ctx"]);
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign";
    run_tool(
        "tpm2_create",
        &["-C", "root.ctx", "-G", "hmac", "-a", attributes, "-u", "k.pub", "-r", "k.priv"],
    );
    run_tool("tpm2_load", &["-C", "root.ctx", "-u", "k.pub", "-r", "k.priv", "-c", "k.ctx"]);
    run_tool("tpm2_evictcontrol", &["-C", "o", "-c", "k.ctx", "0x81000100"]);
    let mut device = device_that_counts(&swtpm);
    device.start();
    run(async {
        device.tpm().sign_with_auth_key(b"m", edgekeep_api::tpmd::AuthKeySlot::Hub).await.unwrap()
    });
    device.stop();
    // One wrong guess is enough, and it is forgiven after an hour.
    swtpm.tool_ok(&tools, "tpm2_dictionarylockout", &["-s", "-n", "1", "-t", "3600", "-l", "3600"]);
    swtpm.tool_ok(
        &tools,
        "tpm2_createprimary",
        &["-C", "o", "-G", "ecc", "-p", "right", "-c", "k.ctx"],
    );
    fs::write(tools.join("digest"), [7; 32]).unwrap();
    swtpm.tool(&tools, "tpm2_create", &["-C", "k.ctx", "-P", "wrong", "-G", "ecc"]);
    swtpm.tool_ok(&tools, "tpm2_flushcontext", &["-t"]);
    assert!(
        swtpm
            .tool_ok(&tools, "tpm2_getcap", &["properties-variable"])
            .contains("inLockout:                 1")
    );
    device.start();
    let signed = run(async {
        device.tpm().sign_with_auth_key(b"m", edgekeep_api::tpmd::AuthKeySlot::Hub).await
    });
    device.stop();
    assert_eq!(refusal(signed).0, 500);
    assert!(device.log().contains("tpm2_dictionarylockout --clear-lockout"), "{}", device.log());
    // The counter is not protected against guessing, so the log goes on being compared.
    let report = check_log(&device, &swtpm);
    assert!(report.is_intact() && report.gaps.is_empty(), "{report:?}");
}

#[test]
fn a_tpm_behind_a_tokens_library_is_reached_from_within_the_sandbox() {
    if tokens::skip() {
        return;
    }
    let token = tokens::Token::bare_tpm2_pkcs11();
    let uri = format!(
        "pkcs11:token={}?pin-value={}",
        tokens::LABEL.replace(' ', "%20"),
        tokens::USER_PIN
    );
    let mut device = Device::new(&json!({"pkcs11": {"library": token.library, "base_slot": uri}}));
    device.environment.clone_from(&token.environment);
    for round in 0..2 {
        device.start();
        run(async {
            let keys = device.keys();
            let pair = keys.create_key_pair("pair", Some("ec-p256")).await;
            let pair = pair.unwrap_or_else(|error| panic!("{error}: {}", device.log()));
            assert!(signs(&keys, &pair, device.folder.path()).await);
            let socket = Root::new(device.folder.path()).metrics_socket(Daemon::Keyd);
            let report = OperationsClient::new(socket).sandbox().await.unwrap();
            assert!(report.layers.iter().all(|layer| layer.full), "{report:?}");
            let said = report.widened.iter().filter(|said| said.contains(" port ")).count();
            assert_eq!(said, 2, "round {round}: {report:?}");
        });
        device.stop();
    }
}

#[test]
fn a_simulated_tpm_on_a_unix_socket_is_reached_from_within_the_sandbox() {
    if swtpm::skip() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let socket = state.path().join("tpm.sock");
    let mut device = Device::new(
        &json!({"tpm": {"tcti": format!("swtpm:path={}", socket.display()), "auth_key_index": 256}}),
    );
    let mut tpm = Command::new("swtpm");
    tpm.args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"]);
    tpm.arg(format!("dir={}", state.path().display())).arg("--server");
    tpm.arg(format!("type=unixio,path={}", socket.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Not there at start.
    device.start();
    run(async { assert_eq!(refusal(device.tpm().keys().await).0, 500) });
    let mut tpm = tpm.spawn().unwrap();
    let end = std::time::Instant::now() + DEADLINE;
    // The socket is there before anybody listens on it.
    let shown = loop {
        let shown = run(async { device.tpm().keys().await });
        if shown.is_ok() || std::time::Instant::now() >= end {
            break shown;
        }
        std::thread::yield_now();
    };
    device.stop();
    tpm.kill().unwrap();
    tpm.wait().unwrap();
    shown.unwrap_or_else(|error| panic!("{error}: {}", device.log()));
}
