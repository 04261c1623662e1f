//! Things that the configuration names, looked at where they are: real files, folders,
//! sockets and devices.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use edgekeep_config::{Code, Diagnostic, Environment, Severity, environment, translate};

/// Returns the findings about a configuration on this device.
fn said(text: &str) -> Vec<Diagnostic> {
    let text = format!("{text}\n[provisioning]\nsource = \"none\"\n");
    match translate(&text, &environment(&text)) {
        Ok(translated) => translated.notices,
        Err(found) => found,
    }
}

/// The severity and message of what is said of `key`; none if nothing is.
fn of(key: &str, text: &str) -> Option<(Severity, String)> {
    let found = said(text).into_iter().find(|one| one.key == key);
    found.map(|one| (one.severity, format!("{} {}", one.message, one.remedy.unwrap_or_default())))
}

#[track_caller]
fn assert_said(key: &str, text: &str, severity: Severity, words: &str) {
    match of(key, text) {
        Some((found, message)) if found == severity && message.contains(words) => {}
        other => panic!("{key}: {other:?}, not {severity:?} with {words:?}"),
    }
}

fn program(path: &Path, sha256: &str) -> String {
    format!(
        "[agent]\ntype = \"process\"\nconfig.image = \"m\"\n[host_modules.m]\nexecutable = \"{}\"\nsha256 = \"{sha256}\"\n",
        path.display()
    )
}

/// sha256sum of the text "program".
const DIGEST: &str = "1310ca2c8932dbd118668bd97442558a3e1f546b5e15c69699dfbd6024f548d8";

#[test]
fn a_program_must_be_a_file_that_may_be_run_and_has_the_digest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program");
    let key = "host_modules.m.executable";
    assert_said(
        key,
        &program(&path, DIGEST),
        Severity::Notice,
        "is not there: the module does not start",
    );
    std::fs::create_dir(&path).unwrap();
    assert_said(
        key,
        &program(&path, DIGEST),
        Severity::Error,
        "is a folder, and a program is asked for",
    );
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, "program").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_said(key, &program(&path, DIGEST), Severity::Error, "may be run by nobody chmod 755");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(of(key, &program(&path, DIGEST)), None);

    let sum = std::process::Command::new("sha256sum").arg(&path).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    let right = sum.split(' ').next().unwrap();
    let digest = "host_modules.m.sha256";
    assert_eq!(of(digest, &program(&path, right)), None, "the digest of another program");
    let wrong = "0".repeat(64);
    assert_said(digest, &program(&path, &wrong), Severity::Notice, right);
}

#[test]
fn the_engines_socket_must_be_a_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    let text = format!("[moby_runtime]\nuri = \"unix://{}\"\n", path.display());
    let key = "moby_runtime.uri";
    assert_said(key, &text, Severity::Notice, "no container starts until it is");
    std::fs::create_dir(&path).unwrap();
    assert_said(key, &text, Severity::Error, "remove the folder");
    std::fs::remove_dir(&path).unwrap();
    let _socket = UnixListener::bind(&path).unwrap();
    assert_eq!(of(key, &text), None);
}

#[test]
fn the_tpm_must_be_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tpm");
    let text = |path: &Path| format!("[tpm]\ntcti = \"device:{}\"\n", path.display());
    assert_said("tpm.tcti", &text(&path), Severity::Notice, "is not there: keyd waits for it");
    std::fs::write(&path, "").unwrap();
    assert_said(
        "tpm.tcti",
        &text(&path),
        Severity::Error,
        "is a file, and a device node is asked for",
    );
    assert_eq!(of("tpm.tcti", &text(Path::new("/dev/null"))), None);
}

#[test]
fn a_library_that_is_not_there_is_named() {
    let text = "[aziot_keys]\npkcs11_lib_path = \"/nowhere/libtoken.so\"\npkcs11_base_slot = \"pkcs11:token=edge\"\n";
    assert_said("aziot_keys.pkcs11_lib_path", text, Severity::Notice, "no token is found");
    let text = text.replace("/nowhere/libtoken.so", "/tmp");
    assert_said(
        "aziot_keys.pkcs11_lib_path",
        &text,
        Severity::Error,
        "is a folder, and a library is asked for",
    );
}

#[test]
fn users_and_groups_that_this_device_does_not_have_are_named() {
    let text = format!(
        "{}user = \"rooot\"\ngroup = \"no-such-group-here\"\n",
        program(Path::new("/bin/true"), DIGEST)
    );
    assert_said("host_modules.m.user", &text, Severity::Notice, "did you mean \"root\"?");
    assert_said("host_modules.m.group", &text, Severity::Notice, "this device has no group");
}

#[test]
fn a_file_that_others_can_read_is_told_of_if_a_secret_is_in_it() {
    let secret = "[provisioning]\nsource = \"manual\"\nconnection_string = \"HostName=h.example;DeviceId=d;SharedAccessKey=a2V5MQ==\"\n";
    let none = "[provisioning]\nsource = \"none\"\n";
    let notice = |text: &str, mode| {
        let environment = Environment { mode: Some(mode), ..environment(text) };
        let found = translate(text, &environment).unwrap().notices;
        let told = found.into_iter().find(|one| one.message.contains("this secret"));
        if let Some(told) = &told {
            assert_eq!(
                (told.code, told.key.as_str()),
                (Code::Unusual, "provisioning.connection_string")
            );
            assert!(!told.source_line.contains("a2V5"), "{}", told.source_line);
        }
        told.map(|told| told.message)
    };
    assert!(notice(secret, 0o644).unwrap().contains("0644: every user"));
    assert!(notice(secret, 0o640).unwrap().contains("the file's group"));
    assert_eq!(notice(secret, 0o600), None);
    assert_eq!(notice(none, 0o644), None);
}

#[test]
fn a_lenient_look_leaves_unknown_and_misplaced_keys_out_and_says_so() {
    let text = "colour = 1\n[provisioning]\nsource = \"none\"\nauto_reprovisioning_mode = \"OnErrorOnly\"\n";
    let strict = translate(text, &environment(text)).unwrap_err();
    let errors = strict.iter().filter(|one| one.severity == Severity::Error).count();
    assert_eq!(errors, 2);
    let lenient = Environment { lenient: true, ..environment(text) };
    let translated = translate(text, &lenient).unwrap();
    let codes: Vec<Code> = translated.notices.iter().map(|one| one.code).collect();
    assert!(codes.contains(&Code::UnknownKey) && codes.contains(&Code::MisplacedKey), "{codes:?}");
    // A value that is wrong stays an error.
    let text = "cloud_retries = \"many\"\n[provisioning]\nsource = \"none\"\n";
    assert!(translate(text, &lenient).is_err());
}
