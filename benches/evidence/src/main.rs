//! Measures what it costs to know who calls, for `cargo xtask bench runtime`: a copy of
//! this program, as large as told, connects to it, and is looked at as moduled looks at a
//! caller.
//!
//! `edgekeep-bench-evidence MIB` prints one line of JSON:
//! `{"identifyUs", "verdictUs", "hopUs", "firstMs", "againUs"}`: processor time of the
//! look at a new connection and of what each further request takes (another look and the
//! verdict of the strictest policy), the latter from this process and with the gauge as a
//! process of its own, both processes counted; time of the first measurement of an
//! executable of so many MiB and of one from another process that runs the same.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is what it is for")]

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use edgekeep_children::supervisor::{self, take_socket};
use edgekeep_children::{Children, serve};
use edgekeep_core::attestation::{
    Asked, Door, Evidence, PeerHandle, Policy, Registration, Running, RunningFacts, Workload,
    verdict,
};
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::arguments::Synopsis;
use edgekeep_daemon::peer::{Caller, PeerSocket};
use edgekeep_runtime::evidence::{
    CgroupHierarchy, Collector, ContainerCgroups, ProcDir, StartedFrom,
};
use edgekeep_runtime::gauge::{Compared, Gauge, GaugeService, Whom};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

/// Arguments of the processes that this one starts.
const SUPERVISOR: &str = "supervise";
const GAUGE: &str = "gauge";

const RUNS: u32 = 2000;
const SPELLS: u32 = 5;
/// Digests of files that changed less than two seconds ago are not remembered.
const SETTLE: Duration = Duration::from_millis(2500);

const SYNOPSIS: Synopsis = Synopsis {
    name: "edgekeep-bench-evidence",
    version: env!("CARGO_PKG_VERSION"),
    summary: "Measures what it costs to know who calls, with an executable of so many MiB.",
    usage: "MIB",
    flags: &[],
    variables: &[],
};

fn main() -> ExitCode {
    let given = match SYNOPSIS.given(1..=2) {
        Ok(given) => given,
        Err(code) => return code,
    };
    let words: Vec<&str> = given.operands.iter().filter_map(|word| word.to_str()).collect();
    let done = match words[..] {
        ["call", socket] => call(Path::new(socket)),
        [SUPERVISOR] => return supervisor::main(&[GAUGE.into()]),
        [GAUGE] => gauge(),
        [mebibytes] => match mebibytes.parse() {
            Ok(mebibytes) => measure(mebibytes),
            Err(_) => return SYNOPSIS.refuse("MIB is a number"),
        },
        _ => return SYNOPSIS.refuse("arguments that do not fit together"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgekeep-bench-evidence: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The gauge, as moduled has it.
fn gauge() -> anyhow::Result<()> {
    let socket = take_socket()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let collector = Collector::new(CgroupHierarchy::detect(), ContainerCgroups::default());
    let service = GaugeService::new(collector);
    Ok(runtime.block_on(serve(socket, |asked, files| service.answer(asked, files)))?)
}

/// The caller: connects and waits until it is no longer needed.
fn call(socket: &Path) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    let _ = stream.read(&mut [0]);
    Ok(())
}

/// A caller that runs, and the connection from it.
struct Called {
    child: Child,
    stream: UnixStream,
}

impl Drop for Called {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::main(worker_threads = 2)]
async fn measure(mebibytes: u64) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("caller");
    fs::copy(std::env::current_exe()?, &program)?;
    let mut file = OpenOptions::new().append(true).open(&program)?;
    let padding = vec![7; 1 << 20];
    while file.metadata()?.len() < mebibytes << 20 {
        file.write_all(&padding)?;
    }
    drop(file);
    tokio::time::sleep(SETTLE).await;
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket)?;
    let called = || -> anyhow::Result<Called> {
        let child = Command::new(&program).arg("call").arg(&socket).stdin(Stdio::null()).spawn()?;
        let (stream, _) = listener.accept()?;
        Ok(Called { child, stream })
    };

    let collector = Collector::new(CgroupHierarchy::detect(), ContainerCgroups::default());
    let first = called()?;
    let (process, handle) = learn(&first.stream)?;
    let identify = per_run(|| {
        let (process, handle) = learn(&first.stream)?;
        collector.identify(handle, &process, None)?;
        Ok(())
    })?;
    let evidence = collector.identify(handle, &process, None)?;
    // Several times, for a machine that is busy: the best of collectors that remember
    // nothing.
    let mut first_ms = f64::INFINITY;
    for _ in 0..SPELLS {
        let fresh = Collector::new(CgroupHierarchy::detect(), ContainerCgroups::default());
        // A process that is known from before brings its measurement along.
        let (process, _) = learn(&first.stream)?;
        let begin = Instant::now();
        fresh.measure(&process, evidence.clone(), StartedFrom::default(), None)?;
        first_ms = first_ms.min(begin.elapsed().as_secs_f64() * 1e3);
    }
    let measured = collector.measure(&process, evidence, StartedFrom::default(), None)?;
    let verdict = per_request(&collector, &process, &measured)?;
    let hop = tokio::spawn(with_hop(first.stream.try_clone()?, measured.clone())).await??;

    let second = called()?;
    let (process, handle) = learn(&second.stream)?;
    let evidence = collector.identify(handle, &process, None)?;
    let begin = Instant::now();
    let again = collector.measure(&process, evidence, StartedFrom::default(), None)?;
    let again_us = begin.elapsed().as_secs_f64() * 1e6;
    anyhow::ensure!(measured.measurement == again.measurement, "two digests of one file");
    println!(
        "{}",
        json!({"identifyUs": identify, "verdictUs": verdict, "hopUs": hop, "firstMs": first_ms, "againUs": again_us})
    );
    Ok(())
}

/// Measures a request on a new connection of a known caller, through the gauge as a
/// process of its own.
async fn with_hop(stream: UnixStream, evidence: Evidence) -> anyhow::Result<f64> {
    let (children, _troubles) = Children::adopt(supervisor::start(SUPERVISOR.as_ref())?, &[GAUGE])?;
    let gauge = Gauge::child(children.link(0).context("no gauge")?);
    let caller = Caller::of(&stream, PeerSocket::Untold)?;
    let pid = caller.pid().context("no pid")?;
    let (pidfd, handle) = caller.pidfd().context("no handle")?;
    let compared = Compared { started_from: StartedFrom::default(), image: None };
    // The caller's end is not known here; its descriptors are looked through for one.
    let whom = Whom { pid, pidfd, socket: None, measured: Some(compared) };
    let judge = judge(&evidence)?;
    gauge.keep(pid);
    let measured = gauge.measure(pidfd, &evidence.snapshot, compared, None).await?;
    measured.map_err(|reason| anyhow::anyhow!("not measured: {reason}"))?;
    let child = own_gauge().context("no gauge process")?;
    let spent = || -> anyhow::Result<f64> {
        let own = Duration::try_from(clock_gettime(ClockId::ProcessCPUTime))?;
        let text = fs::read_to_string(format!("/proc/{child}/schedstat"))?;
        let theirs: f64 = text.split(' ').next().context("no time")?.parse()?;
        Ok(own.as_secs_f64() * 1e6 + theirs / 1e3)
    };
    let mut best = f64::INFINITY;
    for _ in 0..SPELLS {
        let begin = spent()?;
        for _ in 0..RUNS / SPELLS {
            let seen = gauge.look(whom, Some(evidence.snapshot.process)).await?;
            let (seen, _) = seen.map_err(|reason| anyhow::anyhow!("not seen: {reason}"))?;
            anyhow::ensure!(seen.measurement.is_some(), "it is not warm");
            let (snapshot, ancestry) = (seen.snapshot, seen.ancestry);
            let (measurement, container) = (seen.measurement, seen.container);
            let holding = evidence.holding;
            judge(&Evidence { handle, snapshot, ancestry, holding, container, measurement })?;
        }
        best = best.min((spent()? - begin) / f64::from(RUNS / SPELLS));
    }
    Ok(best)
}

/// Number of the process that the supervisor of this process started.
fn own_gauge() -> Option<u32> {
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let own = Some(std::process::id());
    numbers.find(|pid| parent_of(*pid).is_some_and(|parent| parent_of(parent) == own))
}

/// Measures the cost of each request of a known caller, as moduled checks it.
fn per_request(
    collector: &Collector,
    process: &ProcDir,
    evidence: &Evidence,
) -> anyhow::Result<f64> {
    let judge = judge(evidence)?;
    per_run(|| {
        let evidence = evidence.clone();
        anyhow::ensure!(
            collector.recheck(process, &evidence.snapshot).is_some(),
            "the caller changed"
        );
        judge(&evidence)
    })
}

/// The verdict of the strictest policy on the process that the evidence is of.
fn judge(
    evidence: &Evidence,
) -> anyhow::Result<impl Fn(&Evidence) -> anyhow::Result<()> + Send + use<>> {
    let module: ModuleId = "caller".parse()?;
    let registration = Registration {
        module: module.clone(),
        generation: None,
        policy: Policy::Executable,
        workload: Workload::Process {
            executable: evidence.measurement.context("not measured")?.digest,
            uid: evidence.snapshot.uid,
        },
    };
    let facts = RunningFacts::Running(Running {
        init: evidence.snapshot.process,
        user_namespace: evidence.snapshot.user_namespace,
        cgroup: None,
        container: None,
        exec_since: None,
        own_copy: None,
        filters: None,
    });
    let door = Door::ModuleSocket(module.clone());
    Ok(move |evidence: &Evidence| {
        let asked = Asked { module: &module, generation: None };
        verdict(&door, &asked, Some(&registration), &facts, evidence)
            .map_err(|reason| anyhow::anyhow!("the caller is refused: {reason}"))
    })
}

/// Finds the process behind the connection, as at accept.
fn learn(stream: &UnixStream) -> anyhow::Result<(ProcDir, PeerHandle)> {
    let caller = Caller::of(stream, PeerSocket::Untold)?;
    let pid = caller.pid().context("no pid")?;
    let (pidfd, handle) = caller.pidfd().context("no handle")?;
    Ok((ProcDir::open(pid, pidfd)?, handle))
}

/// Processor time of this thread for one run, in microseconds: the best of several
/// spells.
fn per_run(mut run: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..SPELLS {
        let begin = Duration::try_from(clock_gettime(ClockId::ThreadCPUTime))?;
        for _ in 0..RUNS / SPELLS {
            run()?;
        }
        let spent = Duration::try_from(clock_gettime(ClockId::ThreadCPUTime))? - begin;
        best = best.min(spent.as_secs_f64() * 1e6 / f64::from(RUNS / SPELLS));
    }
    Ok(best)
}
