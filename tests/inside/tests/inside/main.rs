//! Each daemon turned against its device: starts as the daemon does, in this process, and
//! then tries what an attacker who has taken it over would try. Each attempt is first
//! made by a child without sandbox, to see that it is the sandbox that refuses it.
//!
//! It is a program without a test harness, since a harness has threads before it begins,
//! and apart from the daemons, so that nothing of it is in any build of them. As a test
//! runner expects it, it lists its tests, and runs the one that is named.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod attack;
mod attempts;
mod identityd;
mod keyd;
mod moduled;

use std::path::Path;
use std::process::{Command, ExitCode};

use crate::attack::{fork, wait};

/// A test's name, and what it does in a device's folder.
type Test = (&'static str, fn(&Path));

fn main() -> ExitCode {
    // moduled's own processes are this program once more.
    if let Some(code) = edgekeep_moduled::become_child() {
        return code;
    }
    let tests: Vec<&Test> =
        [keyd::TESTS, identityd::TESTS, moduled::TESTS].into_iter().flatten().collect();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has("--list") {
        for (name, _) in tests.iter().filter(|_| !has("--ignored")) {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let chosen =
        tests.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    let chosen: Vec<_> = chosen.collect();
    if let [(_, test)] = chosen[..] {
        let folder = tempfile::tempdir().unwrap();
        // Removed by somebody who may.
        match fork() {
            0 => {
                test(folder.path());
                return ExitCode::SUCCESS;
            }
            child => return if wait(child) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE },
        }
    }
    for (name, _) in chosen {
        let ran = Command::new(std::env::current_exe().unwrap()).arg(name).status().unwrap();
        println!("test {name} ... {}", if ran.success() { "ok" } else { "FAILED" });
        if !ran.success() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
