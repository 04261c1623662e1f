//! `migrate`: takes over a device that runs the compatible packages, and goes back.
//!
//! Their files stay as they are. [`look`] reads them, [`edgekeep_core::migration`]
//! decides, [`carry_out`] writes ours. The daemons' settings are written last, so that no
//! daemon starts with half of the state; whatever was cut off is completed by running the
//! command again.

mod carry_out;
mod engine;
mod journal;
mod look;
mod running;
#[cfg(test)]
mod tests;
mod undo;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use edgekeep_config::render;
use edgekeep_core::id::ModuleId;
use edgekeep_core::layout::Root;
use edgekeep_core::migration::{Plan, Step, plan};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::arguments::Context;
use crate::output::{self, Style, printable};
use journal::{Journal, Stage};

#[derive(Debug, Args)]
pub(crate) struct MigrateOptions {
    /// Say what would be taken over, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Go back: put aside what was made here, so that the existing packages can be
    /// installed again
    #[arg(long)]
    undo: bool,
    /// Leave out keys of the configuration that are unknown or in the wrong table, with a
    /// notice
    #[arg(long, conflicts_with = "undo")]
    lenient: bool,
    /// An id that a key of the device may have, for keys that programs of your own made;
    /// may be repeated
    #[arg(long, value_name = "ID", conflicts_with = "undo")]
    key_id: Vec<String>,
}

pub(crate) async fn run(context: &Context, options: MigrateOptions) -> anyhow::Result<ExitCode> {
    let root = &context.root;
    let journal = journal::read(root)?;
    if options.undo {
        return undo::run(context, journal, options.dry_run);
    }
    refuse_what_is_there(root, journal.as_ref())?;
    let looked = look::device(root, options.lenient, options.key_id).await?;
    let looked = match looked {
        Ok(looked) => looked,
        Err(refused) => return refused.show(context),
    };
    let plan = plan(&looked.device, look::sha256)?;
    if !options.dry_run {
        running::refuse(root)?;
        let begun = Journal { stage: Stage::Begun, at: now() };
        journal::write(root, &begun)?;
        carry_out::carry_out(root, &looked, &plan, || {})?;
        journal::write(root, &Journal { stage: Stage::Done, ..begun })?;
    }
    show(context, &looked, &plan, options.dry_run)?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses to write over the state of a device that is in use.
fn refuse_what_is_there(root: &Root, journal: Option<&Journal>) -> anyhow::Result<()> {
    match journal {
        Some(Journal { stage: Stage::Done, at }) => anyhow::bail!(
            "this device was taken over already ({at}); `edgekeep migrate --undo` goes back"
        ),
        Some(Journal { stage: Stage::Undoing { .. }, .. }) => anyhow::bail!(
            "a way back was begun and cut off: complete it with `edgekeep migrate --undo`"
        ),
        Some(Journal { stage: Stage::Begun, .. }) => return Ok(()),
        None => {}
    }
    let ours = root.config_file();
    anyhow::ensure!(
        !ours.exists(),
        "{} is there: this device is in use. To take the other state over all the same, stop the daemons and move \
         {} and {} away",
        ours.display(),
        ours.parent().unwrap_or(&ours).display(),
        root.path().join("var/lib/edgekeep").display()
    );
    Ok(())
}

fn now() -> String {
    let format = &time::format_description::well_known::Rfc3339;
    OffsetDateTime::now_utc().format(format).unwrap_or_default()
}

fn show(
    context: &Context,
    looked: &look::Looked,
    plan: &Plan,
    dry_run: bool,
) -> anyhow::Result<()> {
    if context.json {
        let taken: Vec<Value> = plan.steps.iter().map(as_json).collect();
        let restart: Vec<&str> = plan.restart.iter().map(ModuleId::name).collect();
        output::print_json(&json!({
            "dryRun": dry_run, "taken": taken, "left": plan.left, "restart": restart, "diagnostics": looked.notices,
        }))?;
        return Ok(());
    }
    let file = looked.configuration.display().to_string();
    output::print_error(&render(&looked.notices, &file, Style::stderr().is_coloured()));
    output::print(&as_text(plan, dry_run)).context("cannot show what was done")?;
    Ok(())
}

fn as_json(step: &Step) -> Value {
    match step {
        Step::Key { from, id } => json!({ "what": "key", "id": id, "from": from }),
        Step::Certificate { from, .. } => json!({ "what": "certificate", "from": from }),
        Step::Identity(provisioned) => json!({
            "what": "identity", "device": provisioned.identity.device_id, "hub": provisioned.identity.hub,
        }),
        Step::Modules(modules) => {
            let ids: Vec<&str> = modules.modules.keys().map(ModuleId::as_str).collect();
            json!({ "what": "module-identities", "modules": ids })
        }
        Step::Registrations(registrations) => {
            let names: Vec<&String> = registrations.keys().collect();
            json!({ "what": "modules", "modules": names })
        }
        Step::Socket(module) => json!({ "what": "socket", "module": module.name() }),
        Step::Configuration => json!({ "what": "configuration" }),
    }
}

fn as_text(plan: &Plan, dry_run: bool) -> String {
    let mut text = String::new();
    let verb = if dry_run { "would take over" } else { "took over" };
    for step in &plan.steps {
        let what = match step {
            Step::Key { from, id } => format!("key {id} ({from})"),
            Step::Certificate { from, .. } => format!("certificate {from}"),
            Step::Identity(provisioned) => {
                let identity = &provisioned.identity;
                format!("the identity: device {} at {}", identity.device_id, identity.hub)
            }
            Step::Modules(modules) if modules.modules.is_empty() => continue,
            Step::Modules(modules) => {
                let ids: Vec<&str> = modules.modules.keys().map(ModuleId::as_str).collect();
                format!("the identities of modules: {}", ids.join(", "))
            }
            Step::Registrations(registrations) => {
                let names: Vec<&str> = registrations.keys().map(String::as_str).collect();
                format!("the containers of modules: {}", names.join(", "))
            }
            Step::Socket(_) => continue,
            Step::Configuration => "the configuration".to_owned(),
        };
        text.push_str(&format!("{verb} {}\n", printable(&what)));
    }
    let (look_at, left): (Vec<_>, Vec<_>) = plan.left.iter().partition(|left| left.attention);
    for left in &left {
        text.push_str(&format!("left {} ({})\n", printable(&left.name), printable(&left.why)));
    }
    for left in &look_at {
        let (name, why) = (printable(&left.name), printable(&left.why));
        text.push_str(&format!("left {name}; look at it: {why}\n"));
    }
    if !look_at.is_empty() {
        text.push_str(&format!(
            "{} of what was found cannot be taken over, see above\n",
            look_at.len()
        ));
    }
    if dry_run {
        text.push_str("nothing was changed\n");
        return text;
    }
    text.push_str(
        "the files of the existing packages are as they were; `edgekeep migrate --undo` goes back\n\
         start the daemons: systemctl restart edgekeep-keyd edgekeep-identityd edgekeep-moduled\n",
    );
    for module in &plan.restart {
        text.push_str(&format!(
            "then, since it still has a socket of the former daemon: edgekeep restart {}\n",
            module.name()
        ));
    }
    text
}
