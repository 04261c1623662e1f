//! `config rollback`, `explain`, `schema`, `--lenient`, and the places where a
//! configuration is looked for.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FIRST: &str = "hostname = \"first\"\n[provisioning]\nsource = \"manual\"\n\
    connection_string = \"HostName=h.example;DeviceId=press-04;SharedAccessKey=a2V5MQ==\"\n";

fn second() -> String {
    FIRST.replace("first", "second")
}

struct Device(tempfile::TempDir);

impl Device {
    fn new() -> Self {
        let device = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(device.file().parent().unwrap()).unwrap();
        device
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("etc/edgekeep/config.toml")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.file(), text).unwrap();
    }

    fn config(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgekeep"));
        command.env_remove("EDGEKEEP_ROOT").arg("--root").arg(self.0.path());
        command.arg("config").args(words).output().unwrap()
    }

    #[track_caller]
    fn says(&self, words: &[&str]) -> String {
        let output = self.config(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The host name that identityd is told.
    fn hostname(&self) -> String {
        let settings = std::fs::read(self.0.path().join("etc/edgekeep/identityd.json")).unwrap();
        let settings: serde_json::Value = serde_json::from_slice(&settings).unwrap();
        settings["hostname"].as_str().unwrap().to_owned()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_rollback_brings_the_former_configuration_back_and_another_one_the_later() {
    let device = Device::new();
    let nothing = device.config(&["rollback"]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(text(&nothing.stderr).contains("nothing to go back to"), "{}", text(&nothing.stderr));

    device.write(FIRST);
    device.says(&["apply"]);
    device.write(&second());
    device.says(&["apply"]);
    assert_eq!(device.hostname(), "second");

    let dry = device.says(&["rollback", "--dry-run"]);
    assert!(dry.contains("would change") && dry.contains("restart edgekeep-identityd"), "{dry}");
    assert_eq!(std::fs::read_to_string(device.file()).unwrap(), second());

    // What was not applied yet is kept as well.
    device.write("hostname = \"third\"\n");
    let told = device.says(&["rollback"]);
    let kept = device.file().with_extension("toml.before-rollback");
    assert!(told.contains(&format!("kept the present one as {}", kept.display())), "{told}");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "hostname = \"third\"\n");
    assert_eq!(std::fs::read_to_string(device.file()).unwrap(), FIRST);
    assert_eq!(device.hostname(), "first");
    for path in [&kept, &device.file(), &device.file().with_file_name("applied/current.toml")] {
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{} may hold a key", path.display());
    }

    device.says(&["rollback"]);
    assert_eq!(device.hostname(), "second");
}

#[test]
fn a_rollback_to_what_is_not_valid_any_more_changes_nothing() {
    let device = Device::new();
    let secret = device.0.path().join("extra.toml");
    std::fs::write(&secret, "a = \"b\"\n").unwrap();
    device.write(&format!("additional_info = \"file://{}\"\n{FIRST}", secret.display()));
    device.says(&["apply"]);
    device.write(&second());
    device.says(&["apply"]);
    std::fs::remove_file(&secret).unwrap();
    let refused = device.config(&["rollback"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("additional_info"), "{}", text(&refused.stderr));
    assert_eq!(std::fs::read_to_string(device.file()).unwrap(), second());
    assert_eq!(device.hostname(), "second");
}

#[test]
fn lenient_applies_what_is_known_and_tells_the_rest() {
    let device = Device::new();
    device.write(&format!("colour = 1\n{FIRST}"));
    assert_eq!(device.config(&["apply"]).status.code(), Some(1));
    let output = device.config(&["apply", "--lenient"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("notice[unknown-key]: unknown key `colour`"));
    assert_eq!(device.hostname(), "first");
}

#[test]
fn a_configuration_of_the_existing_tools_is_found_below_the_root_alone() {
    let device = Device::new();
    let existing = device.0.path().join("etc/aziot/config.toml");
    std::fs::create_dir_all(existing.parent().unwrap()).unwrap();
    std::fs::write(&existing, FIRST).unwrap();
    let told = device.says(&["check"]);
    assert!(told.contains(&existing.display().to_string()), "{told}");
    device.write(&second());
    let told = device.says(&["check"]);
    assert!(told.contains("etc/edgekeep/config.toml"), "ours comes first: {told}");
}

#[test]
fn a_key_is_explained_and_a_slip_leads_to_it() {
    let device = Device::new();
    let told = device.says(&["explain", "host_modules.sha256"]);
    assert!(told.contains("sha256sum") && told.contains("takes a string"), "{told}");
    assert!(device.says(&["explain"]).lines().any(|line| line.starts_with("provisioning ")));
    let slip = device.config(&["explain", "hostnme"]);
    assert_eq!(slip.status.code(), Some(1));
    assert!(text(&slip.stderr).contains("did you mean hostname?"), "{}", text(&slip.stderr));
}

/// A validator of JSON Schemas that is not ours, where Python has one.
const VALIDATE: &str = "
import json, sys, tomllib
from jsonschema import Draft202012Validator
schema = json.load(open(sys.argv[1]))
Draft202012Validator.check_schema(schema)
for path in sys.argv[2:]:
    errors = [e.message for e in Draft202012Validator(schema).iter_errors(tomllib.load(open(path, 'rb')))]
    print(len(errors), path, errors)
";

#[test]
fn the_schema_takes_the_examples_and_refuses_a_slip() {
    let device = Device::new();
    let schema = device.0.path().join("schema.json");
    std::fs::write(&schema, device.says(&["schema"])).unwrap();
    device.write(&FIRST.replace("hostname", "hostnme"));
    let mut python = Command::new("python3");
    if !python
        .args(["-c", "import jsonschema, tomllib"])
        .output()
        .is_ok_and(|out| out.status.success())
    {
        eprintln!("skipped: no jsonschema for Python");
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config");
    let examples = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut python = Command::new("python3");
    python.args(["-c", VALIDATE]).arg(&schema).arg(device.file()).args(examples);
    let output = python.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    let mut lines = lines.lines();
    let slip = lines.next().unwrap();
    assert!(slip.starts_with('1') && slip.contains("hostnme"), "{slip}");
    let mut count = 0;
    for line in lines {
        assert!(line.starts_with("0 "), "{line}");
        count += 1;
    }
    assert!(count >= 4);
}
