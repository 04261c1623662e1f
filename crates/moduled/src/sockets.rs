//! The workload sockets: one for each module, in a folder of its own, and the shared one of earlier versions.
//!
//! `mnt/<module>/workload.sock` is the socket; `mnt/<module>.sock` is a link to it, where existing agents expect it. A
//! container gets the *folder* mounted: a socket that is bound anew after a restart of this daemon then appears in a
//! running container, where a mounted socket file would stay the dead one. The agent's folder also has the management
//! socket. A module's socket is there as long as the module is, also while it stops.
//!
//! All lie below this daemon's state folder, which only its user can enter: by path nobody else reaches a module's socket,
//! and a container sees the one folder that it has mounted. Every [`REVIEW`] it is looked whether each socket still is the
//! one that was bound; what was removed, replaced, or could not be made while the disk was full is made anew.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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
/// Time between two looks at the sockets.
pub const REVIEW: Duration = Duration::from_secs(1);
/// Folders with content that are moved out of one socket's place; with more, somebody should look.
const ASIDE: u32 = 4;
/// The socket's file in a module's folder.
const WORKLOAD: &str = "workload.sock";
/// The agent's second one.
const MANAGEMENT: &str = "mgmt.sock";

/// The sockets that are open.
#[derive(Debug, Default)]
pub struct Sockets {
    open: Mutex<HashMap<String, Listening>>,
}

#[derive(Debug)]
struct Listening {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    /// The files that were bound, by device and inode.
    bound: Vec<(&'static str, (u64, u64))>,
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
        if open.get(module.name()).is_some_and(|listening| listening.is_in(&folder)) {
            return link(&folder);
        }
        // Host modules connect by this path; it must fit although the socket itself is made elsewhere.
        let link_path = link_path(&folder);
        if link_path.as_os_str().len() > listen::PATH_LIMIT {
            return Err(ListenError::TooLong { path: link_path }.into());
        }
        let fault = |source| SocketError::Prepare { path: folder.clone(), source };
        make_folder(&folder).map_err(fault)?;
        let (stop, stopped) = watch::channel(false);
        let (mut tasks, mut bound) = (Vec::new(), Vec::new());
        // Open to every user: who it serves is decided by measuring the caller, whose user in the container is not known.
        // The folder is mounted into the module, which may put anything there: the socket is made elsewhere.
        let private = service.state_folder().join("sockets");
        let listener = listen::bind_into(&private, &folder.join(WORKLOAD), 0o666)?;
        bound.extend(identity(&folder.join(WORKLOAD)).map(|file| (WORKLOAD, file)));
        let router = Arc::new(workload::router(Arc::clone(service), Door::ModuleSocket(module.clone())));
        tasks.push(tokio::spawn(serve(listener, router, workload_limits(service), stopped.clone())));
        if module.is_edge_agent() {
            let listener = listen::bind_into(&private, &folder.join(MANAGEMENT), 0o666)?;
            bound.extend(identity(&folder.join(MANAGEMENT)).map(|file| (MANAGEMENT, file)));
            let router = Arc::new(management::router(Arc::clone(service)));
            tasks.push(tokio::spawn(serve(listener, router, management_limits(service), stopped)));
        }
        link(&folder)?;
        if let Some(old) = open.insert(module.name().to_owned(), Listening { stop, tasks, bound }) {
            old.end().await;
        }
        Ok(())
    }

    /// Looks at every registered module's sockets now and then, and makes anew what is not as it was, until `stop`.
    pub async fn keep_open(service: Arc<Moduled>, mut stop: watch::Receiver<bool>) {
        let mut broken: HashMap<String, String> = HashMap::new();
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(REVIEW) => {}
            }
            let mut still_broken = HashMap::new();
            for module in service.registrations.modules() {
                let was_open = service.sockets.is_open(&service, &module).await;
                let done = match was_open {
                    true => link(&folder(&service, &module)),
                    false => service.sockets.open(&service, &module).await,
                };
                match done {
                    Ok(()) if was_open => {}
                    // It was removed while the look was under way.
                    Ok(()) if service.registrations.of(&module).is_none() => {
                        service.sockets.remove(&service, &module).await;
                    }
                    Ok(()) => tracing::warn!(%module, "workload socket was gone; made anew"),
                    Err(error) => {
                        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                        let why = format!("{error}{}", cause.unwrap_or_default());
                        if broken.get(module.name()) != Some(&why) {
                            tracing::error!(%module, error = why, "workload socket not open; tried again");
                        }
                        still_broken.insert(module.name().to_owned(), why);
                    }
                }
            }
            broken = still_broken;
        }
    }

    /// Whether a module's sockets are the ones that were bound.
    async fn is_open(&self, service: &Moduled, module: &ModuleId) -> bool {
        let folder = folder(service, module);
        self.open.lock().await.get(module.name()).is_some_and(|listening| listening.is_in(&folder))
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
    fn is_in(&self, folder: &Path) -> bool {
        !self.bound.is_empty() && self.bound.iter().all(|(name, file)| identity(&folder.join(name)) == Some(*file))
    }

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

/// Device and inode of a socket's file; `None` if there is none, or something else is in its place.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    metadata.file_type().is_socket().then(|| (metadata.dev(), metadata.ino()))
}

/// Makes a module's folder, in the place of whatever is there instead, and clears its sockets' places. The folder is
/// not taken away from a container that has it mounted.
fn make_folder(folder: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(folder) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => std::fs::remove_file(folder)?,
        Err(_) => {}
    }
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    for name in [WORKLOAD, MANAGEMENT] {
        clear(&folder.join(name))?;
    }
    Ok(())
}

/// Takes a folder out of a socket's place: an engine makes one where a bind source is absent. One with content is moved
/// aside, for it is not ours.
fn clear(path: &Path) -> io::Result<()> {
    if !std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()) || std::fs::remove_dir(path).is_ok() {
        return Ok(());
    }
    for number in 0..ASIDE {
        let aside = path.with_extension(format!("aside-{number}"));
        if std::fs::symlink_metadata(&aside).is_err() {
            tracing::warn!(from = %path.display(), to = %aside.display(), "a folder was in a socket's place; moved aside");
            return std::fs::rename(path, aside);
        }
    }
    Err(io::Error::other(format!("{} is in the way of a socket; move it away", path.display())))
}

/// Makes the link, unless it is there.
fn link(folder: &Path) -> Result<(), SocketError> {
    let path = link_path(folder);
    let target = Path::new(folder.file_name().unwrap_or_default()).join(WORKLOAD);
    if std::fs::read_link(&path).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let fault = |source| SocketError::Prepare { path: path.clone(), source };
    match std::fs::symlink_metadata(&path) {
        // An engine makes a folder where a bind source was absent.
        Ok(metadata) if metadata.is_dir() => clear(&path).map_err(fault)?,
        Ok(_) => std::fs::remove_file(&path).map_err(fault)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fault(error)),
    }
    std::os::unix::fs::symlink(target, &path).map_err(fault)
}
