//! `cargo xtask fuzz`: libFuzzer on every parser at a trust boundary.
//!
//! The targets are in `fuzz/`, a workspace of its own. They are built with the coverage
//! that libFuzzer needs, by flags of the stable compiler, and optimised, with checks of
//! overflow and assertions. Inputs that led to new code are kept below the target folder
//! and tried first the next time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::{command, interrupt, parts, workspace};

/// Flags for coverage, as libFuzzer reads it.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
     -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Longest input, in bytes: every grammar's rules fit several times.
const LONGEST: usize = 8192;
/// Most memory of one target, in MiB. No parser needs a fraction of it.
const MEMORY: usize = 1024;
/// Seconds after which one input counts as endless.
const PATIENCE: usize = 10;

#[derive(Args)]
pub(crate) struct Options {
    /// How long each target runs, in seconds
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u64,
    /// Stop each target after so many inputs
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// Only these targets; all without
    targets: Vec<String>,
}

impl Options {
    /// A short round over all targets.
    pub(crate) fn short() -> Self {
        Self { seconds: 5, runs: None, targets: Vec::new() }
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let known = targets()?;
    let unknown = options.targets.iter().find(|target| !known.contains(target));
    if let Some(target) = unknown {
        bail!("there is no target {target}; there are {}", known.join(", "));
    }
    let missing = parts::provide(&[parts::CPP])?;
    ensure!(missing.is_empty(), parts::remedy(&missing));
    build()?;
    let chosen = if options.targets.is_empty() { &known } else { &options.targets };
    let mut failed = Vec::new();
    for target in chosen {
        match fuzz(target, options)? {
            Round::Clean { inputs } => println!("{target:<16} {inputs:>12} inputs, no failure"),
            Round::Failed { input } => {
                println!("{target:<16} failed; {}", again(target, &input));
                failed.push(target.as_str());
            }
        }
    }
    ensure!(failed.is_empty(), "{} of {} targets failed", failed.len(), chosen.len());
    Ok(())
}

/// The names of the targets: those of their files.
fn targets() -> anyhow::Result<Vec<String>> {
    let folder = workspace::folder().join("fuzz/targets");
    let mut names = Vec::new();
    for entry in
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        if let Some(name) =
            path.file_stem().filter(|_| path.extension().is_some_and(|it| it == "rs"))
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn folder() -> PathBuf {
    workspace::target().join("fuzz")
}

/// The platform. It is named so that build scripts and macros are built without coverage.
fn platform() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// Returns the path of a target's program.
fn program(target: &str) -> PathBuf {
    folder().join(platform()).join("release").join(target)
}

/// Builds all targets, with the versions of dependencies that the repository has locked.
fn build() -> anyhow::Result<()> {
    let (top, fuzz) = (workspace::folder(), workspace::folder().join("fuzz"));
    // Cargo adds what only the targets need.
    fs::copy(top.join("Cargo.lock"), fuzz.join("Cargo.lock"))
        .context("cannot copy Cargo.lock into fuzz")?;
    let mut build = workspace::cargo();
    build.current_dir(fuzz);
    build.args(["build", "--release", "--target", &platform()]);
    build.env("CARGO_TARGET_DIR", folder()).env("RUSTFLAGS", FLAGS);
    build.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command::run(build)
}

/// The end of one target's round.
#[derive(Debug, PartialEq, Eq)]
enum Round {
    Clean {
        inputs: u64,
    },
    /// With the file that holds the input.
    Failed {
        input: String,
    },
}

fn fuzz(target: &str, options: &Options) -> anyhow::Result<Round> {
    let corpus = folder().join("corpus").join(target);
    let failures = folder().join("failures");
    for folder in [&corpus, &failures] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let log = folder().join(format!("{target}.log"));
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut fuzzer = Command::new(program(target));
    fuzzer.arg(&corpus).args(seeds(target));
    fuzzer.arg(format!("-artifact_prefix={}/{target}-", failures.display()));
    fuzzer.arg(format!("-max_total_time={}", options.seconds));
    fuzzer.args(options.runs.map(|runs| format!("-runs={runs}")));
    fuzzer.arg(format!("-max_len={LONGEST}")).arg(format!("-rss_limit_mb={MEMORY}"));
    fuzzer.arg(format!("-timeout={PATIENCE}")).arg("-print_final_stats=1");
    fuzzer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
    interrupt::check()?;
    let mut child = interrupt::spawn(&mut fuzzer)
        .with_context(|| format!("cannot start the fuzz target {target}"))?;
    let status = interrupt::wait(&mut child)?;
    let said =
        String::from_utf8_lossy(&fs::read(&log).context("cannot read the log")?).into_owned();
    let round = outcome(status.success(), &said);
    round.with_context(|| format!("{target} said nothing that is known; see {}", log.display()))
}

/// Reads the words of libFuzzer.
fn outcome(succeeded: bool, said: &str) -> Option<Round> {
    let after = |word: &str| said.lines().rev().find_map(|line| line.split_once(word));
    if succeeded {
        let (_, inputs) = after("stat::number_of_executed_units:")?;
        return Some(Round::Clean { inputs: inputs.trim().parse().ok()? });
    }
    let (_, input) = after("Test unit written to ")?;
    Some(Round::Failed { input: input.trim().to_owned() })
}

/// Folders of inputs to begin with: those of the target, and what the repository holds
/// of the kind.
fn seeds(target: &str) -> Vec<PathBuf> {
    let top = workspace::folder();
    let mut seeds = vec![top.join("fuzz/seeds").join(target)];
    if target == "configuration" {
        seeds.extend([top.join("config"), top.join("crates/config/tests/fixtures")]);
    }
    seeds.retain(|folder| folder.is_dir());
    seeds
}

fn again(target: &str, input: &str) -> String {
    format!("try it again with: {} {}", shown(&program(target)), shown(Path::new(input)))
}

fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(workspace::folder()).unwrap_or(path).display()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_inputs_and_the_failing_one_are_read_from_what_is_said() {
        let clean = "#8 DONE\nstat::number_of_executed_units: 1234\nstat::peak_rss_mb: 40\n";
        assert_eq!(outcome(true, clean), Some(Round::Clean { inputs: 1234 }));
        let failed = "==1== ERROR\nTest unit written to target/fuzz/failures/ids-crash-1\n";
        let input = "target/fuzz/failures/ids-crash-1".to_owned();
        assert_eq!(outcome(false, failed), Some(Round::Failed { input }));
        assert_eq!(outcome(false, "cannot execute"), None);
    }

    #[test]
    fn every_target_is_declared_and_every_declared_one_is_there() {
        let manifest = fs::read_to_string(workspace::folder().join("fuzz/Cargo.toml")).unwrap();
        let declared = manifest.lines().filter_map(|line| line.strip_prefix("path = \"targets/"));
        let mut declared: Vec<&str> =
            declared.filter_map(|line| line.strip_suffix(".rs\"")).collect();
        declared.sort_unstable();
        assert_eq!(targets().unwrap(), declared);
    }

    #[test]
    fn every_folder_of_seeds_belongs_to_a_target() {
        let known = targets().unwrap();
        for entry in fs::read_dir(workspace::folder().join("fuzz/seeds")).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            assert!(known.contains(&name), "{name}");
        }
    }
}
