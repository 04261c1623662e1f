//! Bad neighbours: what users who flood the shared workload socket do to the calls of
//! another user. A user who floods is kept out of the socket for a while, so each round
//! has another one: the flood's first moments count each time.

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
use super::{DAEMONS, OTHERS, Results, build};
use crate::engine::dies_with_this_task;
use crate::{interrupt, parts};

const ROUNDS: usize = 5;
/// Times the quiet 99th percentile.
const FLOOD_BAR: f64 = 2.0;
const HELD: &str = "500";
const DROPPED: &str = "10000";
/// Uids of bad neighbours, one a round, from here on.
const NEIGHBOURS: usize = 64_001;
/// Processes of that uid that do nothing but connect and close.
const STORMS: usize = 3;
const REQUESTS: u32 = 3000;

/// Measures bad neighbours alone, with the load generator as a host module: a container
/// does not have the shared socket.
pub(super) fn run() -> anyhow::Result<Results> {
    let programs = build(&[&DAEMONS[..], &OTHERS[..], &["edgekeep-load"]].concat())?;
    let folder = tempfile::Builder::new()
        .prefix("edgekeep-bench-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    let mut bench = Bench::start(programs.clone(), folder.path(), None, None)?;
    let mut figures = Figures::new();
    let result = bench.come_up().and_then(|_daemons| measure(&bench, &programs, &mut figures));
    if result.as_ref().is_err_and(|error| !error.is::<interrupt::Interrupted>()) {
        eprintln!("the device's last words:\n{}", bench.device.explanation());
    }
    result?;
    Ok(Results {
        name: "neighbours",
        table: figures.to_table(&format!("bad neighbours; medians of {ROUNDS} rounds")),
        json: figures.to_json(),
        missed: figures.missed(),
    })
}

/// Measures each kind of bad neighbour.
pub(super) fn measure(bench: &Bench, programs: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    if !parts::is_root() {
        eprintln!("a bad neighbour is another user, which takes root: not measured");
        return Ok(());
    }
    one_that_holds(bench, programs, figures)?;
    three_that_storm(bench, programs, figures)
}

/// Measures how a user who opens and drops connections, and holds others, slows the calls
/// of another uid.
fn one_that_holds(bench: &Bench, programs: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    let call = bench.sign(8, 0, CallBar::None);
    let (mut quiet, mut flooded, mut ok) = (Vec::new(), Vec::new(), 0);
    let mut said = Value::Null;
    for round in 0..ROUNDS {
        quiet.extend(bench.perform(&call, 3000)?["p99Us"].as_f64());
        let neighbour = NEIGHBOURS + round;
        let mut flood = Flood::start(programs, &bench.device.legacy_socket(), neighbour)?;
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
/// can, slow calls over the same socket. Three processes that only use the processors,
/// and a bare echo beside the same floods, show the machine's share in this.
///
/// A module in a container does not have the shared socket: there the calls go over the
/// module's own.
fn three_that_storm(bench: &Bench, programs: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    let socket = bench.device.legacy_socket();
    let call = bench.shared_sign(&socket);
    let echo = bench.echo_call(1, REQUESTS);
    let [mut quiet, mut busy, mut stormy] = [const { Timed::new() }; 3];
    let (mut again, mut refused, mut tries) = (0, 0, 0_u64);
    let mut said = Value::Null;
    for round in 0..ROUNDS {
        let neighbour = NEIGHBOURS + ROUNDS + round;
        quiet.add(&bench.perform(&call, REQUESTS)?, &bench.perform(&echo, REQUESTS)?);
        {
            let _hogs: Vec<Flood> = (0..STORMS)
                .map(|_| Flood::of(&["sh", "-c", "while :; do :; done"], neighbour))
                .collect::<anyhow::Result<_>>()?;
            busy.add(&bench.perform(&call, REQUESTS)?, &bench.perform(&echo, REQUESTS)?);
        }
        let program = programs.join("edgekeep-load").display().to_string();
        let path = socket.display().to_string();
        let mut storms: Vec<Flood> = (0..STORMS)
            .map(|_| Flood::of(&[&program, "storm", &path], neighbour))
            .collect::<anyhow::Result<_>>()?;
        let result = bench.perform(&call, REQUESTS)?;
        stormy.add(&result, &bench.perform(&echo, REQUESTS)?);
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
    let [quiet, busy, stormy] = [quiet, busy, stormy].map(Timed::medians);
    let rate = |field: &str| {
        said[field].as_f64().unwrap_or(f64::NAN) / said["seconds"].as_f64().unwrap_or(f64::NAN)
    };
    let detail = format!(
        "p99 of sign {:.2} → {:.2} ms (p50 {:.2} → {:.2}); {:.2} with as many that only compute; each connects {:.0} times a \
         second and is kept out {:.0} times",
        quiet.p99,
        stormy.p99,
        quiet.p50,
        stormy.p50,
        busy.p99,
        rate("connected"),
        rate("refused"),
    );
    figures.add("three that storm", stormy.p99 / quiet.p99, "×", Bar::AtMost(FLOOD_BAR), detail);
    let detail = format!(
        "p99 {:.2} → {:.2} ms; {:.2} with as many that only compute",
        quiet.echo, stormy.echo, busy.echo
    );
    figures.add(
        "three that storm: a bare echo elsewhere",
        stormy.echo / quiet.echo,
        "×",
        Bar::None,
        detail,
    );
    let detail = format!("of {tries} non-blocking connects; {refused} calls refused in all");
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    figures.add("three that storm: EAGAIN", again as f64, "", Bar::AtMost(0.0), detail);
    Ok(())
}

/// Times of calls, and of bare echoes in the same rounds, in milliseconds.
struct Timed {
    p50: Vec<f64>,
    p99: Vec<f64>,
    echo: Vec<f64>,
}

/// Medians of [`Timed`].
struct Medians {
    p50: f64,
    p99: f64,
    /// The 99th percentile of the bare echo.
    echo: f64,
}

impl Timed {
    const fn new() -> Self {
        Self { p50: Vec::new(), p99: Vec::new(), echo: Vec::new() }
    }

    fn add(&mut self, call: &Value, echo: &Value) {
        self.p50.extend(call["p50Us"].as_f64());
        self.p99.extend(call["p99Us"].as_f64());
        self.echo.extend(echo["p99Us"].as_f64());
    }

    fn medians(self) -> Medians {
        let [p50, p99, echo] = [self.p50, self.p99, self.echo].map(|times| median(times) / 1e3);
        Medians { p50, p99, echo }
    }
}

/// A program with the uid of a bad neighbour.
struct Flood(Child);

impl Flood {
    fn start(programs: &Path, socket: &Path, user: usize) -> anyhow::Result<Self> {
        let program = programs.join("edgekeep-load").display().to_string();
        Self::of(&[&program, "flood", &socket.display().to_string(), HELD, DROPPED], user)
    }

    fn of(words: &[&str], user: usize) -> anyhow::Result<Self> {
        let mut flood = dies_with_this_task("setpriv");
        let user = user.to_string();
        flood.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"]);
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
