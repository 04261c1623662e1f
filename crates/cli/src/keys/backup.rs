//! stub
use std::process::ExitCode;
use clap::Args;
use crate::arguments::Context;
#[derive(Debug, Args)]
pub(crate) struct BackupOptions {}
#[derive(Debug, Args)]
pub(crate) struct RestoreOptions {}
pub(crate) fn backup(_context: &Context, _o: &BackupOptions) -> anyhow::Result<ExitCode> { anyhow::bail!("x") }
pub(crate) fn restore(_context: &Context, _o: &RestoreOptions) -> anyhow::Result<ExitCode> { anyhow::bail!("x") }
