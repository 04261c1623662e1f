//! `config rollback`: the configuration before the present one.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use edgekeep_base::durable::{self, Until};

use super::Given;
use crate::arguments::Context;
use crate::output;

/// End of the name that the replaced configuration is kept under.
const KEPT: &str = "toml.before-rollback";

pub(crate) fn run(
    context: &Context,
    file: Option<PathBuf>,
    dry_run: bool,
) -> anyhow::Result<ExitCode> {
    let file = file.unwrap_or_else(|| context.root.config_file());
    let previous = edgekeep_config::previous_config(&context.root)
        .context("cannot read the configuration that was applied before; check as root (sudo)")?;
    let Some(previous) = previous else {
        bail!(
            "no configuration was applied before the present one: there is nothing to go back to"
        );
    };
    let given = Given::of(&file, previous, false);
    // What is not valid on this device any more must not replace what is.
    if edgekeep_config::translate(&given.text, &given.environment).is_err() {
        return given.check(context);
    }
    if !dry_run {
        let replace = |path: &PathBuf, content: &[u8]| {
            durable::replace(path, content, 0o600, Until::OnDisk, |_| Ok(()))
                .with_context(|| format!("cannot write {}", path.display()))
        };
        match std::fs::read(&file) {
            Ok(present) if present != given.text.as_bytes() => {
                let kept = file.with_extension(KEPT);
                replace(&kept, &present)?;
                if !context.json {
                    output::print(&format!("kept the present one as {}\n", kept.display()))?;
                }
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", file.display()));
            }
        }
        replace(&file, given.text.as_bytes())?;
    }
    given.apply(context, dry_run)
}
