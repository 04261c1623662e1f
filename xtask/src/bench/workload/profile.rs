//! Profile of a call: processor time and system calls a call, by daemon.
//!
//! Processor time is the kernel's count of each thread (`/proc/PID/task/*/schedstat`).
//! System calls are counted by `strace -c` in a run of its own, since that slows all that
//! it looks at; instructions by `perf stat`. Both are robust on a busy machine, and are
//! left out with a word where the program or the kernel does not have them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Bench, Call};
use crate::bench::{DAEMONS, Results, load_average};
use crate::interrupt;

/// System calls that are shown by name, the most frequent first.
const SHOWN: usize = 12;
/// Requests of a run under `strace`.
const TRACED: u32 = 1000;

/// Cost of one call of one kind in one daemon.
struct Part {
    daemon: &'static str,
    cpu_us: f64,
    kernel_share: f64,
    instructions: Option<f64>,
    system_calls: Option<BTreeMap<String, f64>>,
}

/// Measures `calls`, one after the other.
pub(super) fn measure(bench: &Bench, daemons: &[u64], calls: &[Call]) -> anyhow::Result<Results> {
    let mut table = String::from("\nwhat one call takes of each daemon\n");
    let mut all = Vec::new();
    for call in calls {
        bench.perform(call, call.requests / 10)?;
        let parts = of_call(bench, daemons, call)?;
        write_table(&mut table, call, &parts);
        all.push(json!({
            "call": call.name, "callers": call.callers,
            "daemons": parts.iter().map(Part::to_json).collect::<Vec<_>>(),
        }));
    }
    let missing: Vec<_> = ["strace", "perf"].into_iter().filter(|name| !has(name)).collect();
    if !missing.is_empty() {
        let _ = writeln!(table, "\nnot counted: {} missing here", missing.join(" and "));
    }
    let _ = writeln!(table, "\nload average: {}", load_average());
    Ok(Results { name: "profile", table, json: Value::from(all), missed: 0 })
}

fn of_call(bench: &Bench, daemons: &[u64], call: &Call) -> anyhow::Result<Vec<Part>> {
    let before = daemons.iter().map(|pid| Times::of(*pid)).collect::<anyhow::Result<Vec<_>>>()?;
    let done = bench.perform(call, call.requests)?["ok"].as_f64().unwrap_or_default().max(1.0);
    let after = daemons.iter().map(|pid| Times::of(*pid)).collect::<anyhow::Result<Vec<_>>>()?;
    let counted = instructions(bench, daemons, call)?;
    let traced = system_calls(bench, daemons, call)?;
    let times = before.into_iter().zip(after);
    let rest = counted.into_iter().zip(traced);
    Ok(DAEMONS
        .into_iter()
        .zip(times.zip(rest))
        .map(|(daemon, ((before, after), (instructions, system_calls)))| Part {
            daemon,
            cpu_us: (after.run_ns - before.run_ns) / 1000.0 / done,
            kernel_share: (after.kernel - before.kernel)
                / (after.kernel + after.user - before.kernel - before.user).max(1.0),
            instructions,
            system_calls,
        })
        .collect())
}

/// Processor time of a process so far.
struct Times {
    run_ns: f64,
    /// In clock ticks: for the share alone.
    user: f64,
    kernel: f64,
}

impl Times {
    fn of(pid: u64) -> anyhow::Result<Self> {
        let mut run_ns = 0.0;
        for task in tasks(pid)? {
            // A thread may end meanwhile.
            let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
            let first = text.split(' ').next().and_then(|run| run.parse::<f64>().ok());
            run_ns += first.unwrap_or_default();
        }
        let path = format!("/proc/{pid}/stat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let fields = text.rsplit(')').next().unwrap_or_default();
        let mut ticks = fields.split_ascii_whitespace().skip(11).map(str::parse);
        let mut next = || ticks.next().and_then(Result::ok).unwrap_or_default();
        Ok(Self { run_ns, user: next(), kernel: next() })
    }
}

fn tasks(pid: u64) -> anyhow::Result<Vec<PathBuf>> {
    let path = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Ends a program that counts, which then writes what it has counted.
fn finish(mut counter: Child) -> anyhow::Result<()> {
    let _ = kill(Pid::from_raw(counter.id().cast_signed()), Signal::SIGINT);
    counter.wait()?;
    Ok(())
}

/// Instructions a call of each daemon, if the machine counts them.
fn instructions(bench: &Bench, daemons: &[u64], call: &Call) -> anyhow::Result<Vec<Option<f64>>> {
    if !has("perf") {
        return Ok(vec![None; daemons.len()]);
    }
    let folder = tempfile::tempdir()?;
    let mut counters = Vec::new();
    for pid in daemons {
        let mut perf = Command::new("perf");
        perf.args(["stat", "-x", ",", "-e", "instructions", "-p", &pid.to_string(), "-o"]);
        perf.arg(folder.path().join(pid.to_string())).stderr(Stdio::null());
        counters.push(interrupt::spawn(&mut perf)?);
    }
    interrupt::pause(Duration::from_secs(1))?;
    let done = bench.perform(call, call.requests)?["ok"].as_f64().unwrap_or_default().max(1.0);
    counters.into_iter().try_for_each(finish)?;
    let read = |pid: &u64| {
        let text = fs::read_to_string(folder.path().join(pid.to_string())).ok()?;
        let counted = text.lines().find(|line| line.contains("instructions"))?;
        Some(counted.split(',').next()?.parse::<f64>().ok()? / done)
    };
    Ok(daemons.iter().map(read).collect())
}

/// System calls a call of each daemon, by name.
fn system_calls(
    bench: &Bench,
    daemons: &[u64],
    call: &Call,
) -> anyhow::Result<Vec<Option<BTreeMap<String, f64>>>> {
    if !has("strace") {
        return Ok(vec![None; daemons.len()]);
    }
    let folder = tempfile::tempdir()?;
    let mut counters = Vec::new();
    for pid in daemons {
        let mut strace = Command::new("strace");
        strace.args(["-c", "-f", "-p", &pid.to_string(), "-o"]);
        strace.arg(folder.path().join(pid.to_string())).stderr(Stdio::null());
        counters.push(interrupt::spawn(&mut strace)?);
    }
    let attached = || {
        let all = daemons
            .iter()
            .all(|pid| tasks(*pid).is_ok_and(|tasks| tasks.iter().all(|task| is_traced(task))));
        Ok(all.then_some(()))
    };
    let attached = interrupt::poll(Duration::from_secs(20), attached)?;
    let done = bench.perform(call, call.requests.min(TRACED));
    counters.into_iter().try_for_each(finish)?;
    let done = done?["ok"].as_f64().unwrap_or_default().max(1.0);
    if attached.is_none() {
        return Ok(vec![None; daemons.len()]);
    }
    let read = |pid: &u64| {
        let text = fs::read_to_string(folder.path().join(pid.to_string())).ok()?;
        Some(counts(&text).map(|(name, count)| (name.to_owned(), count / done)).collect())
    };
    Ok(daemons.iter().map(read).collect())
}

fn is_traced(task: &Path) -> bool {
    let text = fs::read_to_string(task.join("status")).unwrap_or_default();
    !text.lines().any(|line| line == "TracerPid:\t0")
}

/// Names and counts in a summary of `strace -c`. Columns: share, seconds, microseconds a
/// call, calls, errors where there were any, name.
fn counts(summary: &str) -> impl Iterator<Item = (&str, f64)> {
    summary.lines().filter_map(|line| {
        let columns: Vec<_> = line.split_ascii_whitespace().collect();
        let (name, count) = (*columns.last()?, columns.get(3)?.parse().ok()?);
        (columns.len() >= 5 && name != "total").then_some((name, count))
    })
}

impl Part {
    fn total(&self) -> Option<f64> {
        Some(self.system_calls.as_ref()?.values().sum())
    }

    fn to_json(&self) -> Value {
        json!({
            "daemon": self.daemon, "cpuUs": self.cpu_us, "kernelShare": self.kernel_share,
            "instructions": self.instructions, "systemCalls": self.total(), "byName": self.system_calls,
        })
    }
}

fn write_table(table: &mut String, call: &Call, parts: &[Part]) {
    let _ = writeln!(table, "\n{}, {} callers", call.name, call.callers);
    for part in parts {
        let or_not = |number: Option<f64>| {
            number.map_or_else(|| "not counted".to_owned(), |number| format!("{number:.1}"))
        };
        let _ = writeln!(
            table,
            "  {:<20} {:>7.1} µs CPU ({:.0} % in the kernel), system calls: {}, instructions: {}",
            part.daemon,
            part.cpu_us,
            part.kernel_share * 100.0,
            or_not(part.total()),
            or_not(part.instructions.map(f64::round)),
        );
        let mut by_name: Vec<_> = part.system_calls.iter().flatten().collect();
        by_name.sort_by(|one, other| other.1.total_cmp(one.1));
        let shown = by_name.iter().filter(|(_, count)| **count >= 0.05).take(SHOWN);
        let names: Vec<_> = shown.map(|(name, count)| format!("{name} {count:.1}")).collect();
        if !names.is_empty() {
            let _ = writeln!(table, "  {:<20} {}", "", names.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_of_strace_is_read_with_and_without_errors() {
        let summary = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.012000           1      3000         7 recvmsg
 40.00    0.008000           2      1000           close
------ ----------- ----------- --------- --------- ----------------
100.00    0.020000           1      4000         7 total
";
        let read: Vec<_> = counts(summary).collect();
        assert_eq!(read, [("recvmsg", 3000.0), ("close", 1000.0)]);
        assert_eq!(counts("").count(), 0);
    }
}
