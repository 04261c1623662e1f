//! The launcher: the process that starts and ends host modules.
//!
//! Touches: its socket to moduled, moduled's settings, the executables of configured host
//! modules, control groups, systemd's tools, and the host modules. Starts what the
//! settings have, confined as they have it, and nothing that moduled could add. It gives
//! up the system calls that no host module is to have ([`ConfinedLauncher`]).

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use edgekeep_api::operations::SandboxReport;
use edgekeep_children::serve;
use edgekeep_children::supervisor::{OutlivesSignals, take_socket};
use edgekeep_core::host::{Capabilities, Grants};
use edgekeep_core::layout::{Daemon, ROOT_VARIABLE, Root};
use edgekeep_core::settings::ModuledSettings;
use edgekeep_daemon::settings;
use edgekeep_daemon::store::sha256;
use edgekeep_runtime::evidence::CgroupHierarchy;
use edgekeep_runtime::process::{Bounds, LaunchService, Launcher, ModuleCgroups};
use edgekeep_sandbox::privileges;
use rustix::thread::CapabilitySet;
use tokio::runtime::Runtime;

use crate::children::confine;

/// Capabilities to start programs as other users within limits, to give the programs
/// their folders, and to end them. A process that may become any user can read any file,
/// so the right to read a program that only root may read adds nothing.
const KEPT: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::DAC_READ_SEARCH);

/// Questions that are worked on at once.
const THREADS: usize = 32;

pub(super) fn main() -> ExitCode {
    edgekeep_daemon::logging::init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("the launcher ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let socket = take_socket().context("this is for edgekeep-moduled alone")?;
    let root = Root::from_variable(std::env::var_os(ROOT_VARIABLE));
    let ConfinedLauncher { runtime, service, .. } = ConfinedLauncher::begin(&root)?;
    let served = runtime.block_on(async {
        let _outlives = OutlivesSignals::begin()?;
        serve(socket, |asked, files| service.answer(asked, files)).await
    });
    // What is under way for a moduled that ended must not go on.
    runtime.shutdown_background();
    Ok(served?)
}

/// The launcher, in a process that has given up what neither it nor a host module needs.
#[derive(Debug)]
pub struct ConfinedLauncher {
    /// The runtime that questions are answered in.
    pub runtime: Runtime,
    /// Answers to questions.
    pub service: LaunchService,
    /// Report of what was given up.
    pub sandbox: SandboxReport,
}

impl ConfinedLauncher {
    /// Reads the settings in `root`, and gives up what starting does not need and no host
    /// module is granted. To be called before there are other threads.
    ///
    /// # Errors
    /// There are no settings, or the runtime cannot be made.
    pub fn begin(root: &Root) -> anyhow::Result<Self> {
        let settings: ModuledSettings = settings::load(&root.settings_file(Daemon::Moduled))?
            .context("the settings are missing; run `edgekeep config apply` first")?;
        privileges::reduce(kept(&settings)).context("cannot give up rights")?;
        let sandbox = confine::seal_launcher(settings.sandbox, &settings.host_modules);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(THREADS)
            .thread_keep_alive(Duration::from_secs(2))
            .build()?;
        let first = root.path() == std::path::Path::new("/");
        let cgroups = ModuleCgroups::below_own(CgroupHierarchy::detect(), &instance(root))
            .in_scopes(settings.host_module_scopes, first);
        let bounds =
            Bounds { grants: Grants::of(&settings), folder: root.state_folder(Daemon::Moduled) };
        let service = LaunchService::bounded(Launcher::this_program(), cgroups, bounds);
        Ok(Self { runtime, service, sandbox })
    }
}

/// The rights that starting needs, and those that the settings grant to modules.
fn kept(settings: &ModuledSettings) -> CapabilitySet {
    let granted = settings.host_modules.values().map(|module| module.capabilities);
    let granted = granted.fold(0, |bits, capabilities: Capabilities| bits | capabilities.bits());
    let mut kept = KEPT | CapabilitySet::from_bits_retain(granted);
    if rustix::process::geteuid().is_root() {
        // Without it root can do less than the owners of the files, which need not be
        // root.
        kept |= CapabilitySet::DAC_OVERRIDE;
    }
    kept
}

/// A name for this device among others on the machine, from its root folder.
fn instance(root: &Root) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    sha256(root.path().as_os_str().as_bytes()).hex()[..8].to_owned()
}
