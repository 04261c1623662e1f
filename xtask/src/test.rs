//! `cargo xtask test`: every test, those against real parts included.

use std::path::PathBuf;

use clap::Args;

use crate::engine::Engine;
use crate::podman::Podman;
use crate::{ci, command, parts, vm, workspace};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only tests whose name contains this; or any arguments of `cargo nextest run`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    filter: Vec<String>,
}

/// Real parts for the tests, which learn of them by environment variables. The engine ends with this.
struct Parts {
    engine: Option<Engine>,
    python: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    // The folder of a test's own package has only that package's programs.
    command::step("build", || {
        let mut build = workspace::cargo();
        build.args(["build", "--workspace", "--bins"]);
        command::run(build)
    })?;
    let parts = command::step("parts", Parts::provide)?;

    let mut tests = workspace::cargo();
    if ci::has("nextest") {
        tests.args(["nextest", "run"]).args(whole_workspace(&options.filter)).args(&options.filter);
    } else {
        eprintln!("cargo-nextest is missing (cargo install cargo-nextest --locked); using cargo test");
        tests.args(["test", "--workspace", "--all-targets"]);
        tests.args((!options.filter.is_empty()).then_some("--")).args(&options.filter);
    }
    if let Some(engine) = &parts.engine {
        tests.env("EDGEKEEP_TEST_ENGINE", format!("unix://{}", engine.socket().display()));
    }
    if let Some(python) = &parts.python {
        tests.env("EDGEKEEP_TEST_PYTHON", python);
    }
    command::run(tests)?;
    if !options.filter.is_empty() || !ci::has("nextest") {
        return Ok(());
    }
    if let Some(podman) = or_skip("container tests with Podman", command::step("podman", Podman::start))? {
        let mut again = workspace::cargo();
        again.args([
            "nextest",
            "run",
            "-p",
            "edgekeep-suite",
            "--test",
            "docker",
            "--test",
            "attacks",
            "-E",
            WITH_PODMAN,
        ]);
        // Podman 4.3 at times answers another exit status of an exec than the program's.
        again.args(["--retries", "2"]);
        again.env("EDGEKEEP_TEST_ENGINE", format!("unix://{}", podman.socket().display()));
        command::run(again)?;
    }
    drop(parts);
    match or_skip("the checks of a whole device in a virtual machine", vm::provide())? {
        Some(()) => vm::check(&vm::Options::default()),
        None => Ok(()),
    }
}

/// What may differ with another engine: modules from creation to removal, updates, what the engine understands, and every
/// attack on a container.
const WITH_PODMAN: &str = "test(/^(lifecycle|updates|options|volumes|behaviour|engine)::/)";

/// Everything, unless packages are named.
fn whole_workspace(filter: &[String]) -> Option<&'static str> {
    let named = filter.iter().any(|word| word.starts_with("-p") || word.starts_with("--package"));
    (!named).then_some("--workspace")
}

impl Parts {
    fn provide() -> anyhow::Result<Self> {
        let missing = parts::provide(&[parts::CURL, parts::OPENSSL])?;
        anyhow::ensure!(missing.is_empty(), parts::remedy(&missing));
        or_skip("tests with TPMs and tokens", hardware())?;
        let engine = or_skip("tests with a container engine", Engine::answering_or_private())?;
        if let Some(engine) = &engine {
            eprintln!("container engine: {}", engine.describe());
        }
        let python = or_skip("tests with the Python SDK", parts::python())?;
        Ok(Self { engine, python })
    }
}

/// What simulates TPMs and tokens, and the foreign tools that look at them. The tests find it by themselves.
fn hardware() -> anyhow::Result<()> {
    let missing = parts::provide(&[
        parts::SWTPM,
        parts::TPM2_TOOLS,
        parts::SOFTHSM,
        parts::AGE,
        parts::OPENSC,
        parts::TPM2_PKCS11,
        parts::TPM2_PTOOL,
        parts::TPM2_ABRMD,
        parts::TCTI_TABRMD,
        parts::DBUS_DAEMON,
        parts::DBUS_SEND,
    ])?;
    anyhow::ensure!(missing.is_empty(), parts::remedy(&missing));
    Ok(())
}

/// In CI a missing part is a failure; elsewhere the tests that need it are skipped, and this says so.
fn or_skip<T>(what: &str, part: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    match part {
        Ok(part) => Ok(Some(part)),
        Err(error) if error.is::<crate::interrupt::Interrupted>() => Err(error),
        Err(error) if workspace::in_ci() => Err(error.context(format!("{what} cannot run, and in CI they must"))),
        Err(error) => {
            eprintln!("skipping {what}: {error:#}");
            Ok(None)
        }
    }
}
