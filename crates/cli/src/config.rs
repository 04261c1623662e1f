//! `config`: checks, applies and explains the configuration, and goes back to the one
//! before.

mod explain;
mod rollback;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use edgekeep_config::{
    ApplyError, ApplyMode, Diagnostic, Environment, apply as apply_config, environment, mode_of,
    render,
};
use edgekeep_core::layout::Daemon;
use serde_json::json;

use crate::arguments::{ConfigVerb, Context};
use crate::output::{self, Style};

/// Configuration of the tools that this one stands in for, below the root folder. It is
/// read where there is none of our own.
const EXISTING_CONFIG: &str = "etc/aziot/config.toml";

pub(crate) fn run(context: &Context, verb: ConfigVerb) -> anyhow::Result<ExitCode> {
    match verb {
        ConfigVerb::Apply { file, dry_run, lenient } => {
            let given = Given::read(context, file, lenient)?;
            given.apply(context, dry_run)
        }
        ConfigVerb::Check { file, lenient } => Given::read(context, file, lenient)?.check(context),
        ConfigVerb::Rollback { file, dry_run } => rollback::run(context, file, dry_run),
        ConfigVerb::Explain { key } => explain::run(context, key.as_deref()),
        ConfigVerb::Schema => {
            output::print_json(&edgekeep_config::json_schema())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// A configuration that a command was given.
struct Given {
    /// The file's name, to be shown.
    shown: String,
    text: String,
    environment: Environment,
}

impl Given {
    fn read(context: &Context, file: Option<PathBuf>, lenient: bool) -> anyhow::Result<Self> {
        let file = file.unwrap_or_else(|| {
            let own = context.root.config_file();
            let other = context.root.path().join(EXISTING_CONFIG);
            if !own.exists() && other.exists() { other } else { own }
        });
        let text = edgekeep_config::read_config(&file).with_context(|| unreadable(&file))?;
        Ok(Self::of(&file, text, lenient))
    }

    fn of(file: &Path, text: String, lenient: bool) -> Self {
        let environment = Environment { mode: mode_of(file), lenient, ..environment(&text) };
        Self { shown: file.display().to_string(), text, environment }
    }

    fn apply(self, context: &Context, dry_run: bool) -> anyhow::Result<ExitCode> {
        let mode = if dry_run { ApplyMode::DryRun } else { ApplyMode::Write };
        let shown = &self.shown;
        let applied = match apply_config(&context.root, &self.text, &self.environment, mode) {
            Ok(applied) => applied,
            Err(ApplyError::Invalid(found)) => return refused(context, &found, shown),
            Err(error) => return Err(error.into()),
        };
        show(&applied.notices, shown);
        let restart: Vec<&str> = applied.restart.iter().map(|daemon| daemon.name()).collect();
        if context.json {
            output::print_json(&json!({
                "file": shown, "dryRun": dry_run, "changes": applied.changes, "restart": restart, "diagnostics": applied.notices,
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut text = String::new();
        for change in &applied.changes {
            let verb = match (dry_run, change.created) {
                (false, true) => "wrote",
                (false, false) => "changed",
                (true, true) => "would write",
                (true, false) => "would change",
            };
            text.push_str(&format!("{verb} {} ({})\n", change.path.display(), change.what));
        }
        if applied.changes.is_empty() {
            text.push_str("nothing changed\n");
        } else if !applied.restart.is_empty() {
            text.push_str(&restart_hint(context, &applied.restart, dry_run));
        }
        output::print(&text)?;
        Ok(ExitCode::SUCCESS)
    }

    fn check(self, context: &Context) -> anyhow::Result<ExitCode> {
        let shown = &self.shown;
        match edgekeep_config::translate(&self.text, &self.environment) {
            Ok(translated) if context.json => {
                output::print_json(
                    &json!({ "file": shown, "valid": true, "diagnostics": translated.notices }),
                )?;
                Ok(ExitCode::SUCCESS)
            }
            Ok(translated) => {
                show(&translated.notices, shown);
                output::print(&format!("{shown} is valid\n"))?;
                Ok(ExitCode::SUCCESS)
            }
            Err(found) => refused(context, &found, shown),
        }
    }
}

/// The words for a file that cannot be read; its cause follows them.
fn unreadable(file: &Path) -> String {
    let shown = file.display();
    match std::fs::metadata(file) {
        Ok(_) => format!("cannot read {shown}; check as root (sudo)"),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            format!("cannot read {shown}; check as root (sudo)")
        }
        Err(_) => format!("cannot read {shown}; write it, or name another file with -c"),
    }
}

fn restart_hint(context: &Context, restart: &[Daemon], dry_run: bool) -> String {
    let units: Vec<String> =
        restart.iter().map(|daemon| format!("edgekeep-{}", daemon.name())).collect();
    let lead = if dry_run { "then, " } else { "" };
    if context.root.path() == Path::new("/") {
        format!("{lead}to put it into effect: systemctl restart {}\n", units.join(" "))
    } else {
        format!("{lead}to put it into effect, restart {}\n", units.join(", "))
    }
}

pub(crate) fn refused(
    context: &Context,
    found: &[Diagnostic],
    file: &str,
) -> anyhow::Result<ExitCode> {
    if context.json {
        output::print_json(&json!({ "file": file, "valid": false, "diagnostics": found }))?;
        return Ok(ExitCode::FAILURE);
    }
    show(found, file);
    let errors =
        found.iter().filter(|one| one.severity == edgekeep_config::Severity::Error).count();
    let plural = if errors == 1 { "" } else { "s" };
    output::print_error(&format!("{file}: {errors} error{plural}; nothing was changed\n"));
    Ok(ExitCode::FAILURE)
}

fn show(found: &[Diagnostic], file: &str) {
    output::print_error(&render(found, file, Style::stderr().is_coloured()));
}
