//! The daemon before its runtime: has its settings, folders and shared sockets, and has
//! given up everything else.

use std::io;
use std::os::unix::net::UnixListener;

use anyhow::Context as _;
use edgekeep_api::operations::SandboxReport;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::ModuledSettings;
use edgekeep_daemon::measured::Measured;
use edgekeep_daemon::store::{private_folder, sweep_temporary};
use edgekeep_daemon::{listen, operations, settings, systemd};

use crate::children::Begun;
use crate::confine::confinement;

/// A daemon that is ready to begin, in a process that has given up what it does not need.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) root: Root,
    pub(crate) settings: ModuledSettings,
    /// Taken while the executable is within reach.
    pub(crate) measured: io::Result<Measured>,
    pub(crate) children: Begun,
    pub(crate) sockets: SharedSockets,
    pub(crate) sandbox: SandboxReport,
}

/// The sockets that belong to no single module. Connections wait until they are served.
#[derive(Debug)]
pub(crate) struct SharedSockets {
    pub(crate) management: UnixListener,
    pub(crate) legacy: UnixListener,
    pub(crate) operations: Option<UnixListener>,
}

impl Prepared {
    /// Reads the settings, makes the daemon's folders, listens, and gives up what is
    /// left, for good. To be called before there are other threads.
    ///
    /// # Errors
    /// The settings, the folders or the sockets are not usable.
    pub fn new(root: Root, children: Begun) -> anyhow::Result<Self> {
        let path = root.settings_file(Daemon::Moduled);
        let settings: ModuledSettings = settings::load(&path)?.with_context(|| {
            format!("{} is missing; run `edgekeep config apply` first", path.display())
        })?;
        let measured = Measured::take(&settings);
        folders(&root, &settings)?;
        let sockets = SharedSockets {
            management: listen::take_or_bind(
                "aziot-edged.mgmt.socket",
                &root.management_socket(),
                0o660,
            )?,
            legacy: listen::take_or_bind(
                "aziot-edged.workload.socket",
                &root.legacy_workload_socket(),
                0o666,
            )?,
            operations: operations::take_or_bind(Daemon::Moduled, &root),
        };
        systemd::prepare();
        let is_root = rustix::process::geteuid().is_root();
        let sandbox = confinement(&root, &settings, is_root).enter().seal();
        Ok(Self { root, settings, measured, children, sockets, sandbox })
    }

    /// Returns the report of what was given up.
    #[must_use]
    pub fn sandbox(&self) -> &SandboxReport {
        &self.sandbox
    }
}

fn folders(root: &Root, settings: &ModuledSettings) -> anyhow::Result<()> {
    let folder = root.state_folder(Daemon::Moduled);
    private_folder(&folder)?;
    // Programs of other users, if there are any, reach the sockets made for them by their
    // path; all else in here is closed.
    let others = settings.host_module_ids.is_some()
        || settings.host_modules.values().any(|module| module.user.is_some())
        || !settings.host_services.is_empty();
    let mode = if others { 0o711 } else { 0o700 };
    set_mode(&folder, mode)?;
    let links = root.module_socket_folder();
    private_folder(&links)?;
    set_mode(&links, mode)?;
    sweep_temporary(&folder);
    // Sockets on their way to a module's folder when the daemon was killed.
    let _ = std::fs::remove_dir_all(folder.join("sockets"));
    Ok(())
}

fn set_mode(folder: &std::path::Path, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", folder.display()))
}
