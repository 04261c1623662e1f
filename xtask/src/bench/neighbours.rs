//! Bad neighbours: what users who flood the shared workload socket do to the calls of
//! another user.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::figures::{Bar, Figures, median};
use super::workload::Bench;
use super::workload::report::Bar as CallBar;
use crate::engine::dies_with_this_task;
use crate::interrupt;

const ROUNDS: usize = 5;
/// Times the quiet 99th percentile.
const FLOOD_BAR: f64 = 2.0;
const HELD: &str = "500";
const DROPPED: &str = "10000";
/// The uid of bad neighbours: nobody's.
const NEIGHBOUR: &str = "65534";
/// Processes of that uid that do nothing but connect and close.
const STORMS: usize = 3;
const REQUESTS: u32 = 3000;

/// Measures how a user who opens and drops connections, and holds others, slows the calls
/// of another uid.
pub(super) fn one_that_holds(
    bench: &Bench,
    programs: &Path,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let call = bench.sign(8, 0, CallBar::None);
    let (mut quiet, mut flooded, mut ok) = (Vec::new(), Vec::new(), 0);
    let mut said = Value::Null;
    for _ in 0..ROUNDS {
        quiet.extend(bench.perform(&call, 3000)?["p99Us"].as_f64());
        let mut flood = Flood::start(programs, &bench.device.legacy_socket())?;
        let result = thread::scope(|scope| {
            let reading = scope.spawn(|| flood.said());
            let result = bench.perform(&call, 3000);
            said = reading.join().unwrap_or_else(|_| Ok(Value::Null))?;
            result
        })?;
        ok += result["ok"].as_u64().unwrap_or(0);
        flooded.extend(result["p99Us"].as_f64());
        interrupt::end(&mut flood.0, Duration::from_secs(5));
    }
    let (quiet, flooded) = (median(quiet) / 1e3, median(flooded) / 1e3);
    let detail = format!(
        "p99 of sign {quiet:.2} → {flooded:.2} ms; {} dropped in {:.1} s, {} held; {ok} of {} answered",
        said["dropped"],
        said["seconds"].as_f64().unwrap_or(f64::NAN),
        said["held"],
        3000 * ROUNDS
    );
    figures.add("a bad neighbour", flooded / quiet, "×", Bar::AtMost(FLOOD_BAR), detail);
    Ok(())
}

/// Measures how three processes of another uid, which connect and close as fast as they
/// can, slow calls over the same socket. Three processes that only use the processors
/// show the machine's share in this.
///
/// A module in a container does not have the shared socket: there the calls go over the
/// module's own.
pub(super) fn three_that_storm(
    bench: &Bench,
    programs: &Path,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let socket = bench.device.legacy_socket();
    let call = bench.shared_sign(&socket);
    let (mut quiet, mut busy, mut stormy) = (Vec::new(), Vec::new(), Vec::new());
    let (mut medians, mut again, mut refused, mut tries) = (Vec::new(), 0, 0, 0_u64);
    let mut said = Value::Null;
    for _ in 0..ROUNDS {
        quiet.extend(bench.perform(&call, REQUESTS)?["p99Us"].as_f64());
        {
            let _hogs: Vec<Flood> = (0..STORMS)
                .map(|_| Flood::of(&["sh", "-c", "while :; do :; done"]))
                .collect::<anyhow::Result<_>>()?;
            busy.extend(bench.perform(&call, REQUESTS)?["p99Us"].as_f64());
        }
        let program = programs.join("edgekeep-load").display().to_string();
        let path = socket.display().to_string();
        let mut storms: Vec<Flood> = (0..STORMS)
            .map(|_| Flood::of(&[&program, "storm", &path]))
            .collect::<anyhow::Result<_>>()?;
        let result = bench.perform(&call, REQUESTS)?;
        stormy.extend(result["p99Us"].as_f64());
        medians.extend(result["p50Us"].as_f64());
        for (count, field) in [(&mut again, "again"), (&mut refused, "refused")] {
            *count += result[field].as_u64().unwrap_or(0);
        }
        tries += u64::from(REQUESTS);
        for storm in &mut storms {
            // It says what it did when its input ends.
            drop(storm.0.stdin.take());
            said = storm.said()?;
        }
    }
    let (quiet, busy, stormy) = (median(quiet) / 1e3, median(busy) / 1e3, median(stormy) / 1e3);
    let detail = format!(
        "p99 of sign {quiet:.2} → {stormy:.2} ms (p50 {:.2}); {busy:.2} with as many that only compute; each connects {:.0} \
         times a second",
        median(medians) / 1e3,
        said["connected"].as_f64().unwrap_or(f64::NAN)
            / said["seconds"].as_f64().unwrap_or(f64::NAN),
    );
    figures.add("three that storm", stormy / quiet, "×", Bar::AtMost(FLOOD_BAR), detail);
    let detail = format!("of {tries} non-blocking connects; {refused} calls refused in all");
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    figures.add("three that storm: EAGAIN", again as f64, "", Bar::AtMost(0.0), detail);
    Ok(())
}

/// A program with the uid of a bad neighbour.
struct Flood(Child);

impl Flood {
    fn start(programs: &Path, socket: &Path) -> anyhow::Result<Self> {
        let program = programs.join("edgekeep-load");
        Self::of(&[
            &program.display().to_string(),
            "flood",
            &socket.display().to_string(),
            HELD,
            DROPPED,
        ])
    }

    fn of(words: &[&str]) -> anyhow::Result<Self> {
        let mut flood = dies_with_this_task("setpriv");
        flood.args(["--reuid", NEIGHBOUR, "--regid", NEIGHBOUR, "--clear-groups", "--"]);
        flood.args(words);
        flood.stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(Self(interrupt::spawn(&mut flood).context("cannot start setpriv")?))
    }

    /// Reads the line that the program writes when it is done.
    fn said(&mut self) -> anyhow::Result<Value> {
        let output = self.0.stdout.take().context("no pipe")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        serde_json::from_str(&line).context("the bad neighbour could not connect")
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        interrupt::end(&mut self.0, Duration::from_secs(5));
    }
}
