//! Rooms of moduled: which room's code may know of which other.
//!
//! moduled holds the most dangerous capability, so a reader must be able to take its
//! rooms one by one. A room is a folder in `crates/moduled/src`. [`ALLOWED`] names the
//! rooms that each may know of, each after all that it may know of: the graph has no
//! circle, because none can be written there. `run.rs` wires the rooms and may know of
//! all.

use std::path::Path;

use anyhow::ensure;

use crate::references::rust_files;

/// The folder of the rooms.
const SOURCE: &str = "crates/moduled/src";

/// Every room, and the rooms that it may know of.
const ALLOWED: &[(&str, &[&str])] = &[
    ("children", &[]),
    ("identity", &[]),
    ("modules", &["identity"]),
    ("fakes", &["identity", "modules"]),
    ("gate", &["modules"]),
    ("report", &["identity", "modules"]),
    ("keepers", &["identity", "modules"]),
    ("http", &["gate", "identity", "modules", "report"]),
];

/// The room of what stands in for the runtimes in tests. Only tests have it, so nothing
/// that is shipped can know of it.
const STANDS_IN: &str = "fakes";

/// Rooms that answer clients, and alone know how.
const SPEAKS_HTTP: &[&str] = &["http"];

/// Fails with one line for each arrow that is not allowed.
pub(crate) fn check() -> anyhow::Result<()> {
    let mut wrong = order(ALLOWED);
    for (name, text) in rust_files()? {
        if let Ok(file) = name.strip_prefix(SOURCE) {
            wrong.extend(found(file, &text));
        }
    }
    ensure!(wrong.is_empty(), "moduled's rooms know too much:\n{}", wrong.join("\n"));
    Ok(())
}

/// Rooms in [`ALLOWED`] that may know of one that does not come before them.
fn order(allowed: &[(&str, &[&str])]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (index, (room, others)) in allowed.iter().enumerate() {
        for other in *others {
            if !allowed[..index].iter().any(|(before, _)| before == other) {
                wrong.push(format!("{room} -> {other}, which does not come before"));
            }
        }
    }
    wrong
}

/// The arrows out of a file that are not allowed. `file` is the path below [`SOURCE`].
fn found(file: &Path, text: &str) -> Vec<String> {
    let mut folders = file.components().map(|part| part.as_os_str().to_string_lossy());
    let (Some(room), Some(_)) = (folders.next(), folders.next()) else { return Vec::new() };
    let shown = |number: usize, what: &str| format!("{}:{number}: {what}", file.display());
    let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == room) else {
        return vec![shown(1, &format!("{room} is no room that is known"))];
    };
    let mut wrong = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        for other in named(line) {
            if other != room && other != STANDS_IN && !allowed.contains(&other.as_str()) {
                wrong.push(shown(number + 1, &format!("{room} -> {other}")));
            }
        }
        if line.contains("crate::{") {
            wrong.push(shown(number + 1, "a group of rooms: import each by itself"));
        }
        if line.contains("HttpError") && !SPEAKS_HTTP.contains(&&*room) {
            wrong.push(shown(number + 1, &format!("{room} answers clients")));
        }
    }
    wrong
}

/// The names that follow `crate::` in a line of code.
fn named(line: &str) -> Vec<String> {
    let starts = line.match_indices("crate::").map(|(at, word)| &line[at + word.len()..]);
    starts
        .map(|rest| {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            rest[..end].to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(file: &str, text: &str) -> Vec<String> {
        found(Path::new(file), text)
    }

    #[test]
    fn rooms_of_moduled_know_only_of_those_below_them() {
        check().unwrap();
    }

    #[test]
    fn an_arrow_back_up_is_told_with_its_place() {
        let text = "use crate::identity::Credentials;\nuse crate::gate::Gate;\n";
        assert_eq!(told("modules/command.rs", text), ["modules/command.rs:2: modules -> gate"]);
        let inline = "    let answer = crate::http::refuse::of(&error);";
        assert_eq!(told("keepers/agent.rs", inline), ["keepers/agent.rs:1: keepers -> http"]);
        let inner = "    crate::report::health::look(self);";
        assert_eq!(told("gate/judge.rs", inner), ["gate/judge.rs:1: gate -> report"]);
        let group = told("gate/judge.rs", "use crate::{modules, report};");
        assert!(group.iter().any(|line| line.ends_with("import each by itself")), "{group:?}");
    }

    #[test]
    fn nobody_imports_the_wiring_and_nobody_but_http_answers_clients() {
        assert_eq!(told("http/mod.rs", "use crate::run::Ended;"), ["http/mod.rs:1: http -> run"]);
        let answer = "fn f() -> Result<(), HttpError> {";
        assert_eq!(told("modules/a.rs", answer), ["modules/a.rs:1: modules answers clients"]);
        assert_eq!(told("http/management/a.rs", answer), [""; 0]);
    }

    #[test]
    fn the_wiring_may_know_of_all_and_words_in_comments_are_no_arrows() {
        assert_eq!(told("run.rs", "use crate::http::Rooms;"), [""; 0]);
        assert_eq!(told("modules/error.rs", "// see crate::http::refuse"), [""; 0]);
        assert_eq!(told("cellar/a.rs", ""), ["cellar/a.rs:1: cellar is no room that is known"]);
    }

    #[test]
    fn a_circle_cannot_be_allowed() {
        let circle: [(&str, &[&str]); 2] = [("a", &["b"]), ("b", &["a"])];
        assert_eq!(order(&circle), ["a -> b, which does not come before"]);
        assert_eq!(order(ALLOWED), [""; 0]);
    }
}
