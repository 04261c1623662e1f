//! The workload sockets: one for each module, in a folder of its own, and the shared one of earlier versions.
//!
//! `mnt/<module>/workload.sock` is the socket; `mnt/<module>.sock` is a link to it, where existing agents expect it. A
//! container gets the *folder* mounted: a socket that is bound anew after a restart of this daemon then appears in a
//! running container, where a mounted socket file would stay the dead one. The agent's folder also has the management
//! socket. A module's socket is there as long as the module is, also while it stops.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgekeep_core::attestation::Door;
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::listen::{self, ListenError};
use edgekeep_daemon::server::{Limits, serve};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use crate::service::Moduled;
use crate::{management, workload};

/// Default bound of open connections per uid and workload socket.
const WORKLOAD_CONNECTIONS: u32 = 64;
/// Default bound of open connections per uid at the management socket (wire facts 1.6).
const MANAGEMENT_CONNECTIONS: u32 = 50;

/// The sockets that are open.
#[derive(Debug, Default)]
pub struct Sockets {
    open: Mutex<HashMap<String, Listening>>,
}

#[derive(Debug)]
struct Listening {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// Why a module's sockets could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A socket could not be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The module's folder or link could not be made.
    #[error("cannot prepare {}", path.display())]
    Prepare {
        /// Which path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Sockets {
    /// Opens a module's sockets; those that are open stay as they are.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub async fn open(&self, service: &Arc<Moduled>, module: &ModuleId) -> Result<(), SocketError> {
        let mut open = self.open.lock().await;
        let folder = folder(service, module);
        if open.contains_key(module.name()) && folder.join("workload.sock").exists() {
            return Ok(());
        }
        // Host modules connect by this path; it must fit although the socket itself is made elsewhere.
        let link_path = link_path(&folder);
        if link_path.as_os_str().len() > listen::PATH_LIMIT {
            return Err(ListenError::TooLong { path: link_path }.into());
        }
        let fault = |source| SocketError::Prepare { path: folder.clone(), source };
        std::fs::create_dir_all(&folder).map_err(fault)?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).map_err(fault)?;
        let (stop, stopped) = watch::channel(false);
        let mut tasks = Vec::new();
        // Open to every user: who it serves is decided by measuring the caller, whose user in the container is not known.
        // The folder is mounted into the module, which may put anything there: the socket is made elsewhere.
        let private = service.state_folder().join("sockets");
        let listener = listen::bind_into(&private, &folder.join("workload.sock"), 0o666)?;
        let router = Arc::new(workload::router(Arc::clone(service), Door::ModuleSocket(module.clone())));
        tasks.push(tokio::spawn(serve(listener, router, workload_limits(service), stopped.clone())));
        if module.is_edge_agent() {
            let listener = listen::bind_into(&private, &folder.join("mgmt.sock"), 0o666)?;
            let router = Arc::new(management::router(Arc::clone(service)));
            tasks.push(tokio::spawn(serve(listener, router, management_limits(service), stopped)));
        }
        link(&folder)?;
        if let Some(old) = open.insert(module.name().to_owned(), Listening { stop, tasks }) {
            old.end().await;
        }
        Ok(())
    }

    /// Closes and removes a module's sockets.
    pub async fn remove(&self, service: &Moduled, module: &ModuleId) {
        let listening = self.open.lock().await.remove(module.name());
        if let Some(listening) = listening {
            listening.end().await;
        }
        let folder = folder(service, module);
        // What cannot be removed is made anew by the next open.
        let _ = std::fs::remove_file(link_path(&folder));
        let _ = std::fs::remove_dir_all(&folder);
    }

    /// Stops accepting everywhere and waits for running requests.
    pub async fn close_all(&self) {
        let listening: Vec<Listening> = self.open.lock().await.drain().map(|(_, listening)| listening).collect();
        for one in &listening {
            let _ = one.stop.send(true);
        }
        for one in listening {
            one.end().await;
        }
    }
}

impl Listening {
    async fn end(self) {
        let _ = self.stop.send(true);
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

/// The folder of a module's sockets.
#[must_use]
pub fn folder(service: &Moduled, module: &ModuleId) -> PathBuf {
    service.root.module_socket_folder().join(module.name())
}

/// Limits of a workload socket.
#[must_use]
pub fn workload_limits(service: &Moduled) -> Limits {
    Limits { connections_per_uid: service.settings.workload_connections_per_uid.unwrap_or(WORKLOAD_CONNECTIONS) }
}

/// Limits of the management socket.
#[must_use]
pub fn management_limits(service: &Moduled) -> Limits {
    Limits { connections_per_uid: service.settings.management_connections_per_uid.unwrap_or(MANAGEMENT_CONNECTIONS) }
}

fn link_path(folder: &Path) -> PathBuf {
    // Module names may hold dots, so this is not `with_extension`.
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".sock");
    folder.with_file_name(name)
}

fn link(folder: &Path) -> Result<(), SocketError> {
    let path = link_path(folder);
    let fault = |source| SocketError::Prepare { path: path.clone(), source };
    match std::fs::symlink_metadata(&path) {
        // An engine makes a folder where a bind source was absent.
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir(&path).map_err(fault)?,
        Ok(_) => std::fs::remove_file(&path).map_err(fault)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fault(error)),
    }
    let target = Path::new(folder.file_name().unwrap_or_default()).join("workload.sock");
    std::os::unix::fs::symlink(target, &path).map_err(fault)
}
