//! The gauge: the process that looks at other processes, and at the files that they run.
//!
//! Touches: its socket to moduled; `/proc`; executables, memory files and image layers,
//! to read them. Answers what it saw and decides nothing. It changes no file and no
//! process: what it does not need for that it gives up ([`ConfinedGauge`]).

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use edgekeep_api::operations::SandboxReport;
use edgekeep_children::serve;
use edgekeep_children::supervisor::{OutlivesSignals, take_socket};
use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use edgekeep_daemon::settings;
use edgekeep_runtime::evidence::{CgroupHierarchy, Collector, ContainerCgroups};
use edgekeep_runtime::gauge::GaugeService;
use edgekeep_sandbox::privileges;
use rustix::thread::CapabilitySet;
use serde::Deserialize;
use tokio::runtime::Runtime;

use crate::children::confine;

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
    let root = Root::from_variable(std::env::var_os(ROOT_VARIABLE));
    let ConfinedGauge { runtime, service, .. } = ConfinedGauge::begin(&root)?;
    let served = runtime.block_on(async {
        let _outlives = OutlivesSignals::begin()?;
        serve(socket, |asked, files| service.answer(asked, files)).await
    });
    // What is being read for a moduled that ended is nobody's.
    runtime.shutdown_background();
    Ok(served?)
}

/// The gauge, in a process that has given up what looking does not need.
#[derive(Debug)]
pub struct ConfinedGauge {
    /// The runtime that questions are answered in.
    pub runtime: Runtime,
    /// Answers to questions.
    pub service: GaugeService,
    /// Report of what was given up.
    pub sandbox: SandboxReport,
}

impl ConfinedGauge {
    /// Gives up what looking does not need, unless the settings in `root` say otherwise.
    /// To be called before there are other threads.
    ///
    /// # Errors
    /// The kernel keeps capabilities, or the runtime cannot be made.
    pub fn begin(root: &Root) -> anyhow::Result<Self> {
        // Also where there are no capabilities to split moduled cannot trace this
        // process.
        privileges::hide_memory().context("cannot hide the process's memory")?;
        privileges::give_up(KEPT).context("cannot give up rights")?;
        let enabled = is_enabled(root);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(THREADS)
            .thread_keep_alive(Duration::from_secs(2))
            .build()?;
        let collector = Collector::new(CgroupHierarchy::detect(), ContainerCgroups::default());
        let service = GaugeService::new(collector);
        let sandbox = confine::seal_gauge(enabled);
        Ok(Self { runtime, service, sandbox })
    }
}

/// The one setting that the gauge needs.
#[derive(Deserialize)]
struct Switch {
    #[serde(default)]
    sandbox: Option<bool>,
}

/// Returns false if the settings switch the sandbox off. Settings that cannot be read are
/// moduled's to complain about.
fn is_enabled(root: &Root) -> bool {
    let switch = settings::load::<Switch>(&root.settings_file(Daemon::Moduled));
    switch.ok().flatten().and_then(|switch| switch.sandbox).unwrap_or(true)
}
