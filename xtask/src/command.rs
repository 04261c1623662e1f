//! Running programs, and saying which part of a task they are.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;

use crate::interrupt;

/// A program that did not succeed.
#[derive(Debug)]
pub(crate) struct Failed {
    what: String,
    /// Its exit code, or 1.
    pub(crate) code: u8,
    /// True if the program's own output, which was shown, is all that there is to say.
    pub(crate) explained: bool,
}

impl Failed {
    /// Something of this task's own that has said by its output what was wrong.
    pub(crate) fn new(what: String) -> Self {
        Self { what, code: 1, explained: false }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} failed", self.what)
    }
}

impl std::error::Error for Failed {}

/// The command as somebody would type it, without the folder of the program.
fn typed(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a program whose output is shown.
pub(crate) fn run(mut command: Command) -> anyhow::Result<()> {
    let what = typed(&command);
    interrupt::check()?;
    let mut child =
        interrupt::spawn(&mut command).with_context(|| format!("cannot start {what}"))?;
    let status = interrupt::wait(&mut child)?;
    if status.success() {
        return Ok(());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Err(Failed { what, code, explained: true }.into())
}

/// Runs a program whose output goes to `log`, and is shown only if it fails.
pub(crate) fn run_quietly(mut command: Command, log: &Path) -> anyhow::Result<()> {
    let what = typed(&command);
    interrupt::check()?;
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut child =
        interrupt::spawn(&mut command).with_context(|| format!("cannot start {what}"))?;
    let status = interrupt::wait(&mut child)?;
    if status.success() {
        return Ok(());
    }
    anyhow::bail!("{what} failed:\n{}", tail(log, 30))
}

/// Runs a program and returns its standard output; for small outputs only.
pub(crate) fn output(mut command: Command) -> anyhow::Result<String> {
    let what = typed(&command);
    interrupt::check()?;
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {what}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{what} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The last lines of a file.
pub(crate) fn tail(file: &Path, count: usize) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Does one step of a task, between a line that names it and one that tells its time.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    interrupt::check()?;
    eprintln!("--- {name}");
    let begin = Instant::now();
    let result = work();
    let word = if result.is_ok() { "ok" } else { "failed" };
    eprintln!("--- {name}: {word}, {:.1} s", begin.elapsed().as_secs_f64());
    result
}
