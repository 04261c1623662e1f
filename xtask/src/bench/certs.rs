//! Certificates of modules, as a module gets them: through the workload API and all three
//! daemons. Leaves with RSA keys are held against bare key generation in the same run.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

use super::figures::{Bar, Figures, median};
use super::workload::report::Bar as CallBar;
use super::workload::{Bench, Call, certificate};
use super::{DAEMONS, OTHERS, Results, build};
use crate::command;
use crate::engine::Engine;
use crate::interrupt;

/// Module certificates are asked for by this many callers at a time, and bare keys are
/// made on as many threads.
const CALLERS: u32 = 8;
const P256_ROUNDS: usize = 5;
const P256_REQUESTS: u32 = 1500;
const P256_BAR: f64 = 300.0;
/// The search for primes takes a random time that differs by half its mean: the rates are
/// those of all rounds together.
const RSA_ROUNDS: usize = 12;
const RSA_REQUESTS: u32 = 120;
const RSA_BAR: f64 = 0.9;
/// Table of the configuration that makes the keys of module certificates RSA keys.
const RSA_KEYS: &str = "\n[edge_ca]\nmodule_keys = \"rsa-2048\"\n";

/// Measures, with the load generator in a container or (`host`) as a host module.
pub(super) fn run(host: bool) -> anyhow::Result<Results> {
    let packages: Vec<&str> =
        [&DAEMONS[..], &OTHERS[..], &["edgekeep-load", "edgekeep-bench-certs"]].concat();
    let programs = build(&packages)?;
    let engine = if host { None } else { Some(Engine::answering_or_private()?) };
    let folder = tempfile::Builder::new()
        .prefix("edgekeep-bench-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    let mut figures = Figures::new();
    let mut bench = Bench::start(programs.clone(), folder.path(), engine.as_ref(), None)?;
    let result = measure(&mut bench, &programs, &mut figures);
    if result.as_ref().is_err_and(|error| !error.is::<interrupt::Interrupted>()) {
        eprintln!("the device's last words:\n{}", bench.device.explanation());
    }
    result?;
    let place = if engine.is_some() { "a container" } else { "a host module" };
    let title =
        format!("certificates for {place}, {CALLERS} callers, a new connection for each request");
    Ok(Results {
        name: "certs",
        table: figures.to_table(&title),
        json: figures.to_json(),
        missed: figures.missed(),
    })
}

fn measure(bench: &mut Bench, programs: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    bench.come_up()?;
    p256(bench, figures)?;
    bench.start_again_with(RSA_KEYS)?;
    bench.come_up()?;
    rsa(bench, programs, figures)
}

fn p256(bench: &Bench, figures: &mut Figures) -> anyhow::Result<()> {
    let call = certificate(CALLERS, P256_REQUESTS, CallBar::None);
    let (mut rates, mut p50s, mut p99s) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=P256_ROUNDS {
        let result = issued(bench, &call, P256_REQUESTS)?;
        // The first round is to warm up.
        if round > 0 {
            rates.extend(result["perSecond"].as_f64());
            p50s.extend(result["p50Us"].as_f64());
            p99s.extend(result["p99Us"].as_f64());
        }
    }
    let detail = format!("p50 {:.1} ms, p99 {:.1} ms", median(p50s) / 1e3, median(p99s) / 1e3);
    let bar = Bar::AtLeast(P256_BAR);
    figures.add("P-256 leaf, workload API", median(rates), "/s", bar, detail);
    Ok(())
}

/// Makes leaves and bare keys in turns: how busy a machine is changes over minutes.
fn rsa(bench: &Bench, programs: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    let call = certificate(CALLERS, RSA_REQUESTS, CallBar::None);
    let (mut leaves, mut bare) = (Rate::default(), Rate::default());
    for round in 0..=RSA_ROUNDS {
        let result = issued(bench, &call, RSA_REQUESTS)?;
        let per_second = result["perSecond"].as_f64().context("no rate")?;
        let made = bare_keys(programs)?;
        if round > 0 {
            leaves.add(RSA_REQUESTS, f64::from(RSA_REQUESTS) / per_second);
            bare.add(RSA_REQUESTS, made["seconds"].as_f64().context("no time")?);
        }
    }
    let detail = |rate: &Rate| format!("{} in {:.0} s", rate.count, rate.seconds);
    let (leaf, key) = (leaves.per_second(), bare.per_second());
    let what = format!("bare RSA-2048 key, {CALLERS} threads");
    figures.add(what, key, "/s", Bar::None, detail(&bare));
    figures.add("RSA-2048 leaf, workload API", leaf, "/s", Bar::None, detail(&leaves));
    let bar = Bar::AtLeast(RSA_BAR);
    figures.add("RSA-2048 leaf against bare key", leaf / key, "×", bar, String::new());
    Ok(())
}

/// Runs a case, none of whose requests may be lost.
fn issued(bench: &Bench, call: &Call, requests: u32) -> anyhow::Result<Value> {
    let result = bench.perform(call, requests)?;
    anyhow::ensure!(result["ok"] == requests, "a certificate was not issued: {result}");
    Ok(result)
}

fn bare_keys(programs: &Path) -> anyhow::Result<Value> {
    interrupt::check()?;
    let mut probe = Command::new(programs.join("edgekeep-bench-certs"));
    probe.arg("rsa-2048").arg(CALLERS.to_string()).arg(RSA_REQUESTS.to_string());
    let made: Value = serde_json::from_str(&command::output(probe)?)?;
    anyhow::ensure!(made["made"] == RSA_REQUESTS, "keys are missing: {made}");
    Ok(made)
}

/// Things made over several rounds.
#[derive(Debug, Default)]
struct Rate {
    count: u32,
    seconds: f64,
}

impl Rate {
    fn add(&mut self, count: u32, seconds: f64) {
        self.count += count;
        self.seconds += seconds;
    }

    fn per_second(&self) -> f64 {
        f64::from(self.count) / self.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_over_several_rounds_is_of_all_that_was_made_in_all_the_time() {
        let mut rate = Rate::default();
        rate.add(10, 1.0);
        rate.add(10, 3.0);
        assert!((rate.per_second() - 5.0).abs() < 1e-9);
        assert!(Rate::default().per_second().is_nan(), "which keeps no bar");
    }
}
