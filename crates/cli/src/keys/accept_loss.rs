//! `edgekeep keys accept-loss`: tells keyd that a key which is gone may be made anew.
//!
//! The id goes to a file in keyd's state folder, which keyd reads at its next start. A
//! key that is not gone stays as it is.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use edgekeep_base::file::open_to_append;
use edgekeep_core::id::KeyId;
use edgekeep_core::layout::Daemon;
use serde_json::json;

use crate::arguments::Context;
use crate::output;

/// Name of that file. keyd has it too (`keyd::kept`): a tool does not depend on a daemon.
const ACCEPTED_LOSSES: &str = "accepted-losses";

#[derive(Debug, Args)]
pub(crate) struct AcceptLossOptions {
    /// Id of the key, as `edgekeep status` names it
    key: KeyId,
}

pub(crate) fn run(context: &Context, options: &AcceptLossOptions) -> anyhow::Result<ExitCode> {
    let folder = context.root.state_folder(Daemon::Keyd);
    let path = folder.join(ACCEPTED_LOSSES);
    let cannot =
        || format!("cannot write {}; run as root, or as the user that runs keyd", path.display());
    let owner = std::fs::metadata(&folder).with_context(cannot)?;
    let mut file = open_to_append(&path, 0o600).with_context(cannot)?;
    // What root writes, keyd has to be able to read.
    if file.metadata().with_context(cannot)?.uid() != owner.uid() {
        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))
            .with_context(cannot)?;
    }
    let written =
        file.write_all(format!("{}\n", options.key).as_bytes()).and_then(|()| file.sync_all());
    written.with_context(cannot)?;
    if context.json {
        output::print_json(&json!({ "key": options.key.as_str(), "accepted": true }))?;
    } else {
        output::print(&format!(
            "the loss of key {} is accepted from keyd's next start on: restart edgekeep-keyd\n",
            options.key
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
