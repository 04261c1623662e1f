//! moduled: whether calls stay as fast with many modules as with few, what it costs to
//! know a caller, how much memory it takes, and what a bad neighbour does to others.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::figures::{Bar, Figures, median, memory_kib};
use super::load::Load;
use super::neighbours;
use super::workload::report::Bar as CallBar;
use super::workload::{Bench, FEWEST, RUNNING, trust_bundle};
use super::{DAEMONS, OTHERS, Results, build};
use crate::engine::Engine;
use crate::{command, interrupt};

const ROUNDS: usize = 5;
/// Modules beside the fewest. A real hub allows 50.
const MORE: [usize; 3] = [10, 50, 200];
/// Times the median with the fewest modules.
const GROWTH_BAR: f64 = 1.2;
const LIST_BAR_MS: f64 = 5.0;
const VERDICT_BAR_US: f64 = 20.0;
const FIRST_BAR_MS: f64 = 100.0;
/// A look into a table instead of another hash over 64 MiB, which takes tens of
/// milliseconds.
const AGAIN_BAR_US: f64 = 1000.0;
const MEMORY_BAR: f64 = 10.0;
const EXECUTABLE_MIB: &str = "64";

pub(super) fn run(host: bool) -> anyhow::Result<Results> {
    let packages =
        [&DAEMONS[..], &OTHERS[..], &["edgekeep-load", "edgekeep-bench-evidence"]].concat();
    let programs = build(&packages)?;
    let mut figures = Figures::new();
    evidence(&programs, &mut figures)?;
    let engine = if host { None } else { Some(Engine::answering_or_private()?) };
    let folder = tempfile::Builder::new()
        .prefix("edgekeep-bench-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    let outside = folder.path().join("outside");
    fs::create_dir(&outside)?;
    let load = Load::start(&programs, &outside)?;
    let mut bench =
        Bench::start(programs.clone(), folder.path(), engine.as_ref(), MORE.last().copied())?;
    let engine_socket = engine.as_ref().map(Engine::socket);
    let result = measure(&mut bench, &load, &programs, engine_socket, &mut figures);
    if result.as_ref().is_err_and(|error| !error.is::<interrupt::Interrupted>()) {
        eprintln!("the device's last words:\n{}", bench.device.explanation());
    }
    result?;
    let place = if engine.is_some() { "containers" } else { "host modules" };
    let title = format!(
        "moduled with {place}; medians of {ROUNDS} runs; the agent is one of the modules; more than {RUNNING} are host \
         modules that do not run"
    );
    Ok(Results {
        name: "runtime",
        table: figures.to_table(&title),
        json: figures.to_json(),
        missed: figures.missed(),
    })
}

/// Measures the cost of finding out who calls.
fn evidence(programs: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    let mut results = Vec::new();
    for _ in 0..3 {
        let mut probe = Command::new(programs.join("edgekeep-bench-evidence"));
        probe.arg(EXECUTABLE_MIB);
        results.push(serde_json::from_str::<Value>(&command::output(probe)?)?);
    }
    let of =
        |field: &str| median(results.iter().filter_map(|result| result[field].as_f64()).collect());
    let first = format!("first measurement of {EXECUTABLE_MIB} MiB");
    figures.add("look at a new connection, CPU", of("identifyUs"), "µs", Bar::None, String::new());
    figures.add(
        "warm verdict on a caller, CPU of both processes",
        of("hopUs"),
        "µs",
        Bar::AtMost(VERDICT_BAR_US),
        String::new(),
    );
    figures.add(first, of("firstMs"), "ms", Bar::AtMost(FIRST_BAR_MS), String::new());
    figures.add(
        "the same program again",
        of("againUs"),
        "µs",
        Bar::AtMost(AGAIN_BAR_US),
        String::new(),
    );
    Ok(())
}

fn measure(
    bench: &mut Bench,
    load: &Load,
    programs: &Path,
    engine: Option<&Path>,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let daemons = bench.come_up()?;
    let moduled = *daemons.last().context("no moduled")?;
    let mut fewest: Vec<Timed> = Vec::new();
    for modules in [FEWEST].into_iter().chain(MORE) {
        if modules > FEWEST {
            bench.grow(modules)?;
        }
        let now = calls(bench, modules, figures)?;
        for (now, before) in now.iter().zip(&fewest) {
            let what = format!("{}, {modules} modules against {FEWEST}", now.name);
            let detail = format!("in bare echoes {:.2} ×", now.echoes / before.echoes);
            figures.add(what, now.p50_ms / before.p50_ms, "×", Bar::AtMost(GROWTH_BAR), detail);
        }
        if modules == FEWEST {
            fewest = now;
        }
        list(bench, load, engine, modules, figures)?;
        if let Some(kib) = memory_kib(moduled)? {
            let bar = if modules == RUNNING { Bar::AtMost(MEMORY_BAR) } else { Bar::None };
            figures.add(
                format!("PSS of moduled, {modules} modules"),
                mebibytes(kib),
                "MiB",
                bar,
                String::new(),
            );
        }
    }
    processor_time(bench, moduled, figures)?;
    neighbours::measure(bench, programs, figures)
}

/// The median of one kind of call.
struct Timed {
    name: &'static str,
    p50_ms: f64,
    /// The same in bare echoes of the same rounds: how busy a machine is changes over
    /// minutes.
    echoes: f64,
}

/// Workload calls, in turns with a bare echo.
fn calls(bench: &Bench, modules: usize, figures: &mut Figures) -> anyhow::Result<Vec<Timed>> {
    let requests = 4000_u32;
    let calls = [
        ("bare echo", bench.echo_call(8, requests)),
        ("sign", bench.sign(8, requests, CallBar::None)),
        ("trust bundle", trust_bundle(8, requests)),
    ];
    let mut times = [const { (Vec::new(), Vec::new(), Vec::new()) }; 3];
    for round in 0..=ROUNDS {
        let mut echo = f64::NAN;
        for ((name, call), (p50s, p99s, echoes)) in calls.iter().zip(&mut times) {
            let result = bench.perform(call, requests)?;
            anyhow::ensure!(result["ok"] == requests, "{name}: {result}");
            let of = |field: &str| result[field].as_f64().context("no time");
            let p50 = of("p50Us")?;
            if *name == "bare echo" {
                echo = p50;
            }
            // The first round is to warm up.
            if round > 0 {
                p50s.push(p50 / 1e3);
                p99s.push(of("p99Us")? / 1e3);
                echoes.push(p50 / echo);
            }
        }
    }
    let mut all = Vec::new();
    for ((name, _), (p50s, p99s, echoes)) in calls.into_iter().zip(times) {
        let what = format!("{name}, 8 callers, {modules} modules");
        let p50_ms = median(p50s);
        figures.add(what, p50_ms, "ms", Bar::None, format!("p99 {:.2} ms", median(p99s)));
        if name != "bare echo" {
            all.push(Timed { name, p50_ms, echoes: median(echoes) });
        }
    }
    Ok(all)
}

/// The list of modules, next to what the engine takes for its own list of their
/// containers.
fn list(
    bench: &Bench,
    load: &Load,
    engine: Option<&Path>,
    modules: usize,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let case = |socket: &Path, path: &str| json!({ "socket": socket, "method": "GET", "path": path, "callers": 1, "requests": 100 });
    let ours = case(&bench.device.management_socket(), "/modules?api-version=2022-08-03");
    let own = engine.map(|engine| case(engine, "/containers/json?all=true"));
    let (mut times, mut owns) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        times.extend(load.perform(&ours)?["p50Us"].as_f64());
        if let Some(own) = &own {
            owns.extend(load.perform(own)?["p50Us"].as_f64());
        }
    }
    let detail = own.map_or_else(String::new, |_| {
        format!("the engine's own list: {:.2} ms", median(owns) / 1e3)
    });
    let what = format!("list of modules, {modules} modules");
    figures.add(what, median(times) / 1e3, "ms", Bar::AtMost(LIST_BAR_MS), detail);
    Ok(())
}

/// moduled's own processor time for a call over a new connection.
fn processor_time(bench: &Bench, moduled: u64, figures: &mut Figures) -> anyhow::Result<()> {
    for (name, call) in
        [("sign", bench.sign(8, 0, CallBar::None)), ("trust bundle", trust_bundle(8, 0))]
    {
        let requests = 10_000_u32;
        let before = ticks(moduled)?;
        bench.perform(&call, requests)?;
        // The kernel counts in hundredths of a second.
        let spent = f64::from(ticks(moduled)?.saturating_sub(before)) * 1e4 / f64::from(requests);
        let what = format!("{name}, CPU of moduled");
        figures.add(what, spent, "µs", Bar::None, "a new connection each".to_owned());
    }
    Ok(())
}

fn ticks(process: u64) -> anyhow::Result<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no process")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number =
        |at: usize| fields.get(at).and_then(|field| field.parse::<u32>().ok()).context("no time");
    Ok(number(11)? + number(12)?)
}

#[expect(clippy::cast_precision_loss, reason = "sizes of memory")]
fn mebibytes(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
