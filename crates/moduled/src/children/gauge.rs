//! The gauge: the process that looks at other processes, and at the files that they run.
//!
//! Touches: its socket to moduled; `/proc`; executables, memory files and image layers,
//! to read them. Answers what it saw and decides nothing. It changes no file and no
//! process. It has no Landlock: that would keep it from the processes that it looks at.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use edgekeep_children::serve;
use edgekeep_children::supervisor::{OutlivesSignals, take_socket};
use edgekeep_runtime::evidence::{CgroupHierarchy, Collector, ContainerCgroups};
use edgekeep_runtime::gauge::GaugeService;
use edgekeep_sandbox::privileges;
use rustix::thread::CapabilitySet;

/// Capabilities to look at the processes and executables of any user, and at the image
/// layers, which are root's.
const KEPT: CapabilitySet = CapabilitySet::SYS_PTRACE.union(CapabilitySet::DAC_READ_SEARCH);

/// Files that are read at once.
const THREADS: usize = 32;

pub(super) fn main() -> ExitCode {
    edgekeep_daemon::logging::init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("the gauge ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let socket = take_socket().context("this is for edgekeep-moduled alone")?;
    // Also where there are no capabilities to split moduled cannot trace this process.
    privileges::hide_memory().context("cannot hide the process's memory")?;
    privileges::give_up(KEPT).context("cannot give up rights")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(THREADS)
        .thread_keep_alive(Duration::from_secs(2))
        .build()?;
    let served = runtime.block_on(async {
        let _outlives = OutlivesSignals::begin()?;
        let collector = Collector::new(CgroupHierarchy::detect(), ContainerCgroups::default());
        let service = GaugeService::new(collector);
        serve(socket, |asked, files| service.answer(asked, files)).await
    });
    // What is being read for a moduled that ended is nobody's.
    runtime.shutdown_background();
    Ok(served?)
}
