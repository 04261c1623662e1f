//! `restart`: one module.

use std::process::ExitCode;

use edgekeep_api::management::ManagementClient;
use serde_json::json;

use crate::arguments::Context;
use crate::output;

pub(crate) async fn run(context: &Context, module: &str) -> anyhow::Result<ExitCode> {
    ManagementClient::new(&context.management).restart_module(module).await?;
    if context.json {
        output::print_json(&json!({ "module": module, "restarted": true }))?;
    } else {
        output::print(&format!("{}\n", output::printable(module)))?;
    }
    Ok(ExitCode::SUCCESS)
}
