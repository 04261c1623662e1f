//! Configurations that are too much: what is said of them is bounded, and so is the work.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::time::Duration;

use edgekeep_config::{
    Code, Diagnostic, Environment, Severity, Users, referenced_files, render, translate,
};
use rustix::time::{ClockId, clock_gettime};

fn environment() -> Environment {
    Environment { users: Users::all(1000), hostname: "press".to_owned(), ..Environment::default() }
}

fn check(text: &str) -> Vec<Diagnostic> {
    match translate(text, &environment()) {
        Ok(translated) => translated.notices,
        Err(found) => found,
    }
}

/// Time of the processor that this thread took: what else the machine does counts for
/// nothing.
fn effort(work: impl FnOnce()) -> Duration {
    let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let begun = now();
    work();
    now() - begun
}

fn repeat(count: usize, line: impl Fn(usize) -> String) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        let _ = writeln!(text, "{}", line(number));
        text
    })
}

/// Configurations of which every line is wrong, of a given number of lines.
fn wrong(kind: usize, count: usize) -> String {
    match kind {
        0 => repeat(count, |number| format!("unknown_key_{number} = {number}")),
        1 => repeat(count, |number| format!("[modules.\"m{number}\"]\nsymetric_key = 1")),
        2 => repeat(count, |number| format!("[host_modules.m{number}]\nsha256 = \"{number}\"")),
        3 => repeat(count, |number| {
            format!("[modules.\"bad name {number}\".grant]\nprivileged = true")
        }),
        4 => repeat(count, |number| format!("[[principal]]\nuid = \"{number}\"\nname = 7")),
        5 => repeat(count, |number| {
            format!("[image_policy.images.\"i{number}\"]\nkeys = [\"file:///k{number}\", 7]")
        }),
        6 => repeat(count, |number| format!("[host_services.s{number}]\nunit = \"{number}\"")),
        7 => repeat(count, |number| format!("line {number} is no TOML")),
        8 => repeat(count, |number| {
            format!("provisioning.u{number}.v.w = [1, [2, {{ x = {number} }}]]")
        }),
        _ => format!(
            "symmetric_keys = [{}]\n",
            repeat(count, |number| format!("\"a key {number}\","))
        ),
    }
}
const KINDS: usize = 10;

#[test]
fn ten_thousand_wrong_lines_are_told_as_fifty_and_a_count() {
    for kind in 0..KINDS {
        let text = wrong(kind, 10_000);
        let found = check(&text);
        assert!(!found.is_empty(), "{kind}");
        assert!(found.len() <= 101, "{kind}: {}", found.len());
        let rendered = render(&found, "config.toml", false);
        assert!(rendered.len() < 200_000, "{kind}: {}", rendered.len());
        for one in &found {
            assert!(
                one.message.chars().count() <= 600 && one.source_line.chars().count() <= 162,
                "{kind}: {one:?}"
            );
        }
        let errors = found.iter().filter(|one| one.severity == Severity::Error).count();
        if errors > 50 {
            let last = found.last().unwrap();
            assert_eq!((last.code, errors), (Code::More, 51), "{kind}");
            assert!(last.message.contains("more error"), "{}", last.message);
        }
    }
    let found = check(&wrong(0, 10_000));
    assert!(found.last().unwrap().message.starts_with("9951 more errors"), "{:?}", found.last());
}

#[test]
fn work_grows_as_the_configuration_does() {
    let small = Duration::from_millis(20);
    for kind in 0..KINDS {
        let [few, many] = [1_000, 8_000].map(|count| {
            let text = wrong(kind, count);
            effort(|| {
                drop(check(&text));
                drop(referenced_files(&text));
            })
        });
        // Eight times the lines: if each were compared with each, sixty-four times the
        // work.
        assert!(many < (few + small) * 24, "{kind}: {few:?}, then {many:?}");
    }
}

#[test]
fn of_a_long_line_the_place_that_is_meant_is_shown() {
    let padding = "x".repeat(500_000);
    let text = format!(
        "hostname = \"press\"\nprovisioning = {{ a = \"{padding}\", souce = 1, b = \"{padding}\" }}\n"
    );
    let found = check(&text);
    let one = found.iter().find(|one| one.key == "provisioning.souce").unwrap();
    assert!(
        one.source_line.starts_with('…') && one.source_line.ends_with('…'),
        "{}",
        one.source_line
    );
    assert!(one.source_line.contains("souce = *"), "{}", one.source_line);
    let rendered = render(std::slice::from_ref(one), "config.toml", false);
    let lines: Vec<&str> = rendered.lines().collect();
    let source = lines.iter().position(|line| line.contains("souce = *")).unwrap();
    let at = |line: &str, what: &str| line[..line.find(what).unwrap()].chars().count();
    assert_eq!(at(lines[source], "souce"), at(lines[source + 1], "^^^^^"), "{rendered}");
    let all = render(&found, "config.toml", false);
    assert!(all.len() < 20_000, "{}", all.len());
}

#[test]
fn a_secret_in_a_long_line_stays_hidden_wherever_the_line_is_cut() {
    let secret = "geheim".repeat(40_000);
    for text in [
        format!(
            "provisioning = {{ attestation = {{ symmetric_key = \"{secret}\", methd = 1 }} }}\n"
        ),
        format!(
            "provisioning = {{ attestation = {{ symmetric_key = {{ value = \"{secret}\" }} , methd = 1 }} }}\n"
        ),
        format!("symmetric_key = {secret}\n"),
        format!("[provisioning]\nsource = 7 # {secret}\n"),
    ] {
        let shown = render(&check(&text), "config.toml", false);
        assert!(!shown.contains("geheim"), "{shown}");
        assert!(shown.len() < 20_000, "{}", shown.len());
    }
}

#[test]
fn nesting_without_end_is_an_error() {
    let deep = 200_000;
    for text in [
        format!("a = {}", "[".repeat(deep)),
        format!("a = {}{}", "[".repeat(deep), "]".repeat(deep)),
        format!("a = {}", "{ a = ".repeat(deep)),
        format!("a{} = 1", ".a".repeat(deep)),
        format!("[a{}]", ".a".repeat(deep)),
    ] {
        let found = check(&text);
        assert!(found.iter().any(|one| one.severity == Severity::Error), "{text:.40}");
        assert!(render(&found, "config.toml", false).len() < 100_000);
    }
}
