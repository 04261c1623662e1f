//! `cargo xtask vm`: a whole device in a virtual machine: systemd as the first process,
//! cgroup v2, a TPM, Debian's own kernel and container engine, our daemons out of their
//! package.
//!
//! No right to virtualise is needed: the processor is emulated. The root file system is
//! made once (debootstrap) and kept below the target folder; what was built comes in on a
//! second drive. The machine runs the checks of `tests/vm`, which tell line by line on
//! its second serial port, and powers itself off.

mod machine;
mod payload;
mod root;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::{command, package, parts, workspace};
use machine::Machine;

/// Longest time of the machine from power-on to power-off.
const LIMIT: Duration = Duration::from_secs(900);
/// Lines of the console that explain a failure.
const SHOWN_LINES: usize = 150;

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Boot with a shell on this terminal in place of the checks;
    /// `/payload/device-checks /dev/stdout` runs them
    #[arg(long)]
    shell: bool,
    /// Make the root file system anew
    #[arg(long)]
    fresh: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    command::step("build", || {
        let mut build = workspace::cargo();
        build.args(["build", "--workspace", "--bins"]);
        command::run(build)
    })?;
    provide()?;
    check(options)
}

/// The checks, with what is built and installed already.
pub(crate) fn check(options: &Options) -> anyhow::Result<()> {
    let root = command::step("root file system", || root::made(options.fresh))?;
    let folder = tempfile::Builder::new()
        .prefix("ek-vm-")
        .tempdir_in("/tmp")
        .context("cannot write /tmp")?;
    let programs = workspace::target().join("debug");
    let payload = payload::make(&programs, folder.path())?;
    let machine = Machine { root: &root, payload: &payload, folder: folder.path() };
    if options.shell {
        return machine.shell();
    }
    let mut list = Command::new(programs.join("device-checks"));
    list.arg("--list");
    let expected = command::output(list)?;
    // Where it outlives the machine.
    let console = workspace::target().join("vm-console.log");
    let lines = command::step("machine", || machine.run(&console, LIMIT))?;
    let problems = judge(expected.lines(), &lines);
    if problems.is_empty() {
        eprintln!("{} checks in the machine passed", expected.lines().count());
        return Ok(());
    }
    eprintln!(
        "--- the end of {}\n{}\n---",
        console.display(),
        command::tail(&console, SHOWN_LINES)
    );
    Err(command::Failed::new(format!("in the machine: {}", problems.join("; "))).into())
}

/// Installs what the machine is made of; else why it cannot be had.
pub(crate) fn provide() -> anyhow::Result<()> {
    ensure!(std::env::consts::ARCH == "x86_64", "the machine is described for x86_64 only");
    ensure!(parts::is_root(), "only root can make a root file system");
    let missing = parts::provide(&[parts::QEMU, parts::DEBOOTSTRAP, parts::MKE2FS, parts::SWTPM])?;
    ensure!(missing.is_empty(), parts::remedy(&missing));
    package::provide()
}

/// Returns the faults of the lines that came, in words: each expected check must have one
/// line that begins with `ok`.
fn judge<'a>(expected: impl Iterator<Item = &'a str>, lines: &[String]) -> Vec<String> {
    let told: BTreeMap<&str, (bool, &str)> =
        lines.iter().filter_map(|line| outcome(line)).collect();
    expected
        .filter_map(|name| match told.get(name) {
            Some((true, _)) => None,
            Some((false, why)) => Some((*why).to_owned()),
            None => Some(format!("{name}: nothing was heard of it")),
        })
        .collect()
}

/// The check that a line tells of, whether it passed, and what is said of it.
fn outcome(line: &str) -> Option<(&str, (bool, &str))> {
    let (passed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    // Names of checks hold no blank.
    let name = rest.split([' ', '\r']).next()?;
    Some((name.strip_suffix(':').unwrap_or(name), (passed, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(lines: &[&str]) -> Vec<String> {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        judge(["a::one", "a::two"].into_iter(), &lines)
    }

    #[test]
    fn every_check_must_have_said_that_it_passed() {
        assert!(problems(&["ok a::one", "# a::two: a remark", "ok a::two", "# done"]).is_empty());
        assert_eq!(problems(&["ok a::one", "# done"]), ["a::two: nothing was heard of it"]);
        assert_eq!(problems(&["ok a::one", "not ok a::two: x: y"]), ["a::two: x: y"]);
        assert_eq!(
            problems(&["ok a::one", "xok a::two", "ok a::twofold"]),
            ["a::two: nothing was heard of it"]
        );
        assert_eq!(problems(&[]).len(), 2, "a machine that does not boot");
    }

    #[test]
    fn a_check_that_failed_is_not_made_good_by_an_earlier_line() {
        assert_eq!(
            problems(&["ok a::one", "ok a::two", "not ok a::two: after all"]),
            ["a::two: after all"]
        );
    }
}
