//! The commented template: every line of it is taken.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use edgekeep_config::{Environment, Severity, Users, referenced_files, translate};

fn template() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/config.toml.template");
    std::fs::read_to_string(path).unwrap()
}

/// A device on which each file that is named holds a public key.
fn device(text: &str) -> Environment {
    let key = "-----BEGIN PUBLIC KEY-----\n\
        MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEvvz2Bdm8FJ9HAIVNrV+kT0pRiOVK\n\
        qTbtMTYhPoCmgVjkvv8EodbfvzLX6IjqnvHKU04QFxhIwjhFvx+rmcUAbA==\n\
        -----END PUBLIC KEY-----\n";
    let files = referenced_files(text).into_iter();
    Environment {
        users: Users::all(1000),
        hostname: "press".to_owned(),
        files: files.map(|path| (path, Ok(key.as_bytes().to_vec()))).collect(),
        ..Environment::default()
    }
}

#[track_caller]
fn assert_taken(name: &str, text: &str) {
    if let Err(found) = translate(text, &device(text)) {
        let errors: Vec<_> = found.iter().filter(|one| one.severity == Severity::Error).collect();
        panic!("{name}: {errors:#?}\n{text}");
    }
}

/// A line of a setting that is switched off: a `#` without a blank behind it.
fn setting(line: &str) -> Option<&str> {
    line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#']))
}

#[test]
fn each_section_of_the_template_is_taken_when_it_is_switched_on() {
    let template = template();
    let mut sections = template.split("\n## ").skip(1);
    let device = sections.next().unwrap();
    let on = |section: &str| -> String {
        let (_, lines) = section.split_once('\n').unwrap();
        lines.lines().map(|line| setting(line).unwrap_or(line).to_owned() + "\n").collect()
    };
    let mut count = 0;
    for section in sections {
        let title = section.lines().next().unwrap();
        let text = on(section);
        let identity = if text.contains("[provisioning]") {
            ""
        } else {
            "[provisioning]\nsource = \"none\"\n"
        };
        // A section that is below another in the file goes with all of the first.
        let hostname = on(device).replace("parent_hostname", "# parent_hostname");
        assert_taken(title, &format!("{hostname}\n{text}\n{identity}"));
        count += 1;
    }
    assert!(count > 15, "sections are found: {count}");
}

#[test]
fn the_template_as_it_is_lacks_an_identity_and_nothing_else() {
    let text = template();
    let found = translate(&text, &device(&text)).unwrap_err();
    let errors: Vec<&str> = found
        .iter()
        .filter(|one| one.severity == Severity::Error)
        .map(|one| one.key.as_str())
        .collect();
    assert_eq!(errors, ["provisioning"]);
}
