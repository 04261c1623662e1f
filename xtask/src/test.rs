//! `cargo xtask test`: every test, those against real parts included.

use std::path::PathBuf;

use clap::Args;

use crate::engine::Engine;
use crate::outcomes::Outcomes;
use crate::podman::Podman;
use crate::suite::{Choice, Kind};
use crate::{ci, command, foreign, parts, vm, workspace};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only the tests with a container engine, and with this one: docker, podman,
    /// docker:SUITE or podman:SUITE with the engine of a Debian suite (fetched once),
    /// docker:SUITE:containerd with containerd's image store; may be given again
    #[arg(long = "engine", value_name = "ENGINE")]
    engines: Vec<Choice>,
    /// Whether the engine tests also run on those of the newest stable Debian.
    #[arg(skip)]
    newest: bool,
    /// Only tests whose name contains this; or any arguments of `cargo nextest run`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    filter: Vec<String>,
}

impl Options {
    /// Every test, and those with a container engine on the newest stable Debian's too.
    pub(crate) fn with_newest() -> Self {
        Self { newest: true, ..Self::default() }
    }

    /// Returns true if all tests were asked for, and not some engine or filter.
    fn is_whole(&self) -> bool {
        self.engines.is_empty() && self.filter.is_empty()
    }
}

/// Real parts for the tests, which learn of them by environment variables. The engine
/// ends with this.
struct Parts {
    engine: Option<Engine>,
    python: Option<PathBuf>,
    /// Variables with the folders of what was unpacked.
    unpacked: Vec<(&'static str, PathBuf)>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    // The folder of a test's own package has only that package's programs.
    command::step("build", || {
        let mut build = workspace::cargo();
        build.args(["build", "--workspace", "--bins"]);
        command::run(build)
    })?;
    let mut outcomes = Outcomes::default();
    for choice in &options.engines {
        outcomes.run(&with(choice), || Started::new(choice)?.test(&options.filter))?;
    }
    if options.engines.is_empty() {
        outcomes.run("every test", || every_test(options))?;
    }
    if options.is_whole() && ci::has("nextest") {
        for choice in OTHERS.iter().chain(options.newest.then_some(NEWEST).into_iter().flatten()) {
            let choice: Choice = choice.parse()?;
            outcomes.run(&with(&choice), || {
                let engine = or_skip(&with(&choice), Started::new(&choice))?;
                engine.map_or(Ok(()), |engine| engine.test(&["-E".into(), WITH_OTHERS.into()]))
            })?;
        }
        outcomes.run(MACHINE, || {
            let provided = or_skip(MACHINE, vm::provide())?;
            provided.map_or(Ok(()), |()| vm::check(&vm::Options::default()))
        })?;
    }
    outcomes.close()
}

/// The name of the checks in a virtual machine.
const MACHINE: &str = "the checks of a whole device in a virtual machine";

/// The name of the tests with one engine.
fn with(choice: &Choice) -> String {
    format!("container tests with {choice}")
}

/// Runs the tests of the workspace with all parts, or those of them that were asked for.
fn every_test(options: &Options) -> anyhow::Result<()> {
    let parts = command::step("parts", Parts::provide)?;
    let mut tests = workspace::cargo();
    if ci::has("nextest") {
        tests.args(["nextest", "run"]).args(whole_workspace(&options.filter)).args(&options.filter);
    } else {
        eprintln!(
            "cargo-nextest is missing (cargo install cargo-nextest --locked); using cargo test"
        );
        tests.args(["test", "--workspace", "--all-targets"]);
        tests.args((!options.filter.is_empty()).then_some("--")).args(&options.filter);
    }
    if let Some(engine) = &parts.engine {
        tests.env("EDGEKEEP_TEST_ENGINE", format!("unix://{}", engine.socket().display()));
    }
    if let Some(python) = &parts.python {
        tests.env("EDGEKEEP_TEST_PYTHON", python);
    }
    tests.envs(parts.unpacked.iter().map(|(name, folder)| (name, folder)));
    tests.envs(profile());
    command::run(tests)
}

/// A chosen engine, for as long as it is tested with.
enum Started {
    Docker(Engine),
    Podman(Podman),
}

impl Started {
    fn new(choice: &Choice) -> anyhow::Result<Self> {
        command::step(&choice.to_string(), || {
            let suite = choice.provide()?;
            let started = match choice.kind {
                Kind::Docker { containerd } => {
                    Self::Docker(Engine::private(suite.as_ref(), containerd)?)
                }
                Kind::Podman => Self::Podman(Podman::start(suite.as_ref())?),
            };
            eprintln!("{} {}", choice, crate::engine::version(&started.socket()));
            Ok(started)
        })
    }

    fn socket(&self) -> PathBuf {
        match self {
            Self::Docker(engine) => engine.socket().to_owned(),
            Self::Podman(podman) => podman.socket(),
        }
    }

    /// Runs the tests with a container engine. Their closing line is the last one, so
    /// nothing is said after it.
    fn test(&self, filter: &[String]) -> anyhow::Result<()> {
        let mut tests = workspace::cargo();
        // With one package alone the libraries would be built once more, with other
        // features.
        tests
            .args(["nextest", "run", "--workspace", "--test", "docker", "--test", "attacks"])
            .args(filter);
        tests.env("EDGEKEEP_TEST_ENGINE", format!("unix://{}", self.socket().display()));
        tests.envs(profile());
        command::run(tests)
    }
}

/// Engines that the tests are repeated with, beside the engine that all of them have.
const OTHERS: &[&str] = &["podman"];

/// The engines of the newest stable Debian.
const NEWEST: &[&str] = &["docker:trixie", "podman:trixie"];

/// Filter of the tests that may differ with another engine: modules from creation to
/// removal, updates, what the engine understands, and every attack on a container.
const WITH_OTHERS: &str = "test(/^(lifecycle|updates|touched|options|volumes|behaviour|images|image_collection|engine|attest)::/)";

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
        or_skip("tests with a clock that is moved", needs(&[parts::FAKETIME]))?;
        or_skip("tests of kills at each step of a renewal", needs(&[parts::STRACE]))?;
        let engine = or_skip("tests with a container engine", Engine::answering_or_private())?;
        if let Some(engine) = &engine {
            eprintln!("container engine: {}", engine.describe());
        }
        let python = or_skip("tests with the Python SDK", parts::python())?;
        let mut unpacked = Vec::new();
        for (what, part) in [
            ("tests with libest", foreign::LIBEST),
            ("tests with an OpenSSL that has ML-KEM", foreign::OPENSSL),
            ("tests with Prometheus", foreign::PROMETHEUS),
        ] {
            let folder = or_skip(what, foreign::provide(part))?;
            unpacked.extend(folder.map(|folder| (part.variable, folder)));
        }
        Ok(Self { engine, python, unpacked })
    }
}

fn needs(wanted: &[parts::Part]) -> anyhow::Result<()> {
    let missing = parts::provide(wanted)?;
    anyhow::ensure!(missing.is_empty(), parts::remedy(&missing));
    Ok(())
}

/// Provides the simulators of TPMs and tokens, and the foreign tools that look at them.
/// The tests find these programs by themselves.
fn hardware() -> anyhow::Result<()> {
    needs(&[
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
    ])
}

/// Variable that chooses the profile of cargo-nextest: in CI the one that runs a failed
/// test with real parts again, and names it at the end.
fn profile() -> Option<(&'static str, &'static str)> {
    workspace::in_ci().then_some(("NEXTEST_PROFILE", "ci"))
}

/// In CI a missing part is a failure; elsewhere the tests that need it are skipped, and
/// this says so.
fn or_skip<T>(what: &str, part: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    match part {
        Ok(part) => Ok(Some(part)),
        Err(error) if error.is::<crate::interrupt::Interrupted>() => Err(error),
        Err(error) if workspace::in_ci() => {
            Err(error.context(format!("{what} cannot run, and in CI they must")))
        }
        Err(error) => {
            eprintln!("skipping {what}: {error:#}");
            Ok(None)
        }
    }
}
