//! `config apply` and `config check`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use edgekeep_config::{
    ApplyError, ApplyMode, Diagnostic, apply as apply_config, environment, render,
};
use edgekeep_core::layout::Daemon;
use serde_json::json;

use crate::arguments::Context;
use crate::output::{self, Style};

/// Configuration file of the tool that this one stands in for.
const IOTEDGE_CONFIG: &str = "/etc/aziot/config.toml";

pub(crate) fn apply(
    context: &Context,
    file: Option<PathBuf>,
    dry_run: bool,
) -> anyhow::Result<ExitCode> {
    let (file, text) = read(context, file)?;
    let mode = if dry_run { ApplyMode::DryRun } else { ApplyMode::Write };
    let shown = file.display().to_string();
    let applied = match apply_config(&context.root, &text, &environment(&text), mode) {
        Ok(applied) => applied,
        Err(ApplyError::Invalid(found)) => return refused(context, &found, &shown),
        Err(error) => return Err(error.into()),
    };
    show(&applied.notices, &shown);
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
    } else if !dry_run && !applied.restart.is_empty() {
        text.push_str(&restart_hint(context, &applied.restart));
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn restart_hint(context: &Context, restart: &[Daemon]) -> String {
    let units: Vec<String> =
        restart.iter().map(|daemon| format!("edgekeep-{}", daemon.name())).collect();
    if context.root.path() == std::path::Path::new("/") {
        format!("to put it into effect: systemctl restart {}\n", units.join(" "))
    } else {
        format!("to put it into effect, restart {}\n", units.join(", "))
    }
}

pub(crate) fn check(context: &Context, file: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let (file, text) = read(context, file)?;
    let shown = file.display().to_string();
    match edgekeep_config::translate(&text, &environment(&text)) {
        Ok(translated) if context.json => {
            output::print_json(
                &json!({ "file": shown, "valid": true, "diagnostics": translated.notices }),
            )?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(translated) => {
            show(&translated.notices, &shown);
            output::print(&format!("{shown} is valid\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(found) => refused(context, &found, &shown),
    }
}

fn refused(context: &Context, found: &[Diagnostic], file: &str) -> anyhow::Result<ExitCode> {
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

fn read(context: &Context, file: Option<PathBuf>) -> anyhow::Result<(PathBuf, String)> {
    let file = file.unwrap_or_else(|| {
        let own = context.root.config_file();
        let other = PathBuf::from(IOTEDGE_CONFIG);
        if context.as_iotedge && !own.exists() && other.exists() { other } else { own }
    });
    let text = edgekeep_config::read_config(&file).with_context(|| {
        format!("cannot read {}; write it, or name another file with -c", file.display())
    })?;
    Ok((file, text))
}
