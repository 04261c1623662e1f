//! `cargo xtask bench [workload|keys|runtime|certs|neighbours]`: numbers beside their
//! bars, and beside the bare thing measured in the same run (an echo over the same kind
//! of socket, the token's or the TPM's own call), since machines differ and are busy. A
//! bar that is missed is a failure, unless `--no-bars` is given.

mod certs;
mod figures;
mod keys;
mod load;
mod neighbours;
mod runtime;
mod workload;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use crate::command::Failed;
use crate::{command, workspace};
use figures::memory_kib;

const DAEMONS: [&str; 3] = ["edgekeep-keyd", "edgekeep-identityd", "edgekeep-moduled"];
/// Programs of a device beside its daemons.
const OTHERS: [&str; 3] = ["edgekeep", "edgekeep-agent", "edgekeep-sim"];

#[derive(Args)]
pub(crate) struct Options {
    /// What to measure; everything if nothing is named
    #[command(subcommand)]
    what: Option<What>,
    /// Run the load generator as a host module, without a container engine
    #[arg(long, global = true)]
    host: bool,
    /// Print what calls of modules take of each daemon: processor time, system calls
    #[arg(long, global = true)]
    profile: bool,
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
    /// Succeed even if a bar is missed
    #[arg(long, global = true)]
    no_bars: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
enum What {
    /// Calls of modules through all daemons, memory, sizes
    Workload,
    /// keyd over its socket, and keys in tokens and TPMs next to their own calls
    Keys,
    /// Certificates of modules, and bare key generation next to them
    Certs,
    /// moduled with few and with many modules, who calls it, and bad neighbours
    Runtime,
    /// Bad neighbours alone, also measured by `runtime`
    Neighbours,
}

/// The results of one bench.
struct Results {
    name: &'static str,
    table: String,
    json: Value,
    /// Bars that were missed.
    missed: usize,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let wanted = |what| options.what.is_none_or(|one| one == what);
    let mut results = Vec::new();
    if wanted(What::Keys) {
        results.push(keys::run()?);
    }
    if wanted(What::Workload) {
        results.push(workload::run(options.host, options.profile)?);
    }
    if wanted(What::Certs) {
        results.push(certs::run(options.host)?);
    }
    if wanted(What::Runtime) {
        results.push(runtime::run(options.host)?);
    }
    if options.what == Some(What::Neighbours) {
        results.push(neighbours::run()?);
    }
    if options.json {
        let mut all = Map::new();
        all.insert("loadAverage".into(), load_average().into());
        all.extend(results.iter().map(|result| (result.name.to_owned(), result.json.clone())));
        println!("{:#}", Value::from(all));
    } else {
        for result in &results {
            print!("{}", result.table);
        }
        println!("\nload average after the run (1, 5, 15 minutes): {}", load_average());
    }
    let missed: usize = results.iter().map(|result| result.missed).sum();
    if missed > 0 && !options.no_bars {
        return Err(Failed::new(format!("{missed} bars are missed: the bench")).into());
    }
    Ok(())
}

/// Builds these packages for release; the folder of their programs.
fn build(packages: &[&str]) -> anyhow::Result<PathBuf> {
    let mut build = workspace::cargo();
    build.args(["build", "--release", "--bins"]);
    for package in packages {
        build.args(["--package", package]);
    }
    command::run(build)?;
    Ok(workspace::target().join("release"))
}

/// Returns the load averages of the machine, as the kernel tells them.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
