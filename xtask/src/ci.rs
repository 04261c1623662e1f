//! `cargo xtask ci`: what must hold before a change is taken.

use std::process::Stdio;

use crate::{command, fuzz, references, rooms, test, widths, workspace};

/// The version that `deny.toml` is written for.
const CARGO_DENY: &str = "0.20.2";

pub(crate) fn run() -> anyhow::Result<()> {
    command::step("format", || cargo(&["fmt", "--all", "--check"]))?;
    command::step("lints", || {
        cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"])
    })?;
    command::step("references", references::check)?;
    command::step("widths", widths::check)?;
    command::step("rooms", rooms::check)?;
    command::step("dependencies", dependencies)?;
    command::step("fuzz", || fuzz::run(&fuzz::Options::short()))?;
    test::run(&test::Options::with_newest())
}

fn dependencies() -> anyhow::Result<()> {
    if !has("deny") {
        cargo(&["install", "cargo-deny", "--locked", "--version", CARGO_DENY])?;
    }
    // What is locked for other systems too, so that the check itself needs no network.
    cargo(&["fetch", "--locked", "--quiet"])?;
    cargo(&["deny", "--offline", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"])
}

fn cargo(words: &[&str]) -> anyhow::Result<()> {
    let mut command = workspace::cargo();
    command.args(words);
    command::run(command)
}

/// Returns true if cargo has this subcommand.
pub(crate) fn has(subcommand: &str) -> bool {
    let mut command = workspace::cargo();
    command
        .args([subcommand, "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
