//! The workload sockets: one for each module, in a folder of its own, and the shared one
//! of earlier versions.
//!
//! `mnt/<module>.sock`, where existing agents expect it, is a link to `workload.sock` in
//! a folder of the module's own. For a program of the host that is `mnt/<module>`, which
//! only its user can enter. For a container it is `containers/<module>`, closed to all
//! users of the host by the folder above, since the user in the container is not known:
//! the *folder* is mounted, so that a socket that is bound anew after a restart of this
//! daemon appears in a running container, where a mounted socket file would stay the dead
//! one. The folders of the agent and of host agents also have a management socket. A
//! module's socket is there as long as the module is, also while it stops.
//!
//! Every [`REVIEW`] it is looked whether each socket still is the one that was bound, in
//! a folder for whom it should be; what was removed, replaced, or could not be made while
//! the disk was full is made anew.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use edgekeep_core::attestation::{Registration, Workload};
use edgekeep_core::id::ModuleId;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::ModuledSettings;
use edgekeep_daemon::listen::{self, ListenError};
use edgekeep_daemon::server::Limits;
use edgekeep_daemon::store::{StoreError, private_folder};
use tokio::net::UnixListener;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use crate::modules::Modules;
use crate::modules::services;

/// Beside the folder of the links.
const CONTAINER_FOLDERS: &str = "containers";
/// Default bound of open connections per uid and workload socket.
const WORKLOAD_CONNECTIONS: u32 = 64;
/// Default bound of open connections per uid at the management socket (wire facts 1.6).
const MANAGEMENT_CONNECTIONS: u32 = 50;
/// Time between two looks at the sockets.
pub(crate) const REVIEW: Duration = Duration::from_secs(1);
/// Folders with content that are moved out of one socket's place; with more, somebody
/// should look.
const ASIDE: u32 = 4;
/// The socket's file in a module's folder.
const WORKLOAD: &str = "workload.sock";

/// Name of the management socket in the folders that have one.
pub(crate) const MANAGEMENT_SOCKET: &str = "mgmt.sock";

/// Owner of a module's folder: whoever the folder is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Whoever is in the container that it is mounted into.
    Container,
    /// A user of the host.
    User(u32),
    /// A service of the host whose user is not known.
    Anyone,
}

/// Properties of a module's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// Owner of the folder.
    pub(crate) owner: Owner,
    /// True if the folder has a management socket for a host agent.
    pub(crate) host_agent: bool,
}

impl Owner {
    /// Returns the owner of a module's folder, by the module's registration.
    #[must_use]
    pub(crate) fn of(registration: Option<&Registration>) -> Self {
        match registration.map(|registration| &registration.workload) {
            Some(Workload::Process { uid, .. } | Workload::Service { uid: Some(uid), .. }) => {
                Self::User(*uid)
            }
            Some(Workload::Service { uid: None, .. }) => Self::Anyone,
            Some(Workload::Container { .. }) | None => Self::Container,
        }
    }
}

/// The APIs that are served on modules' sockets. Each runs until `stop`.
pub(crate) trait Serving: fmt::Debug + Send + Sync {
    /// Serves a module's workload API.
    fn workload(
        &self,
        module: &ModuleId,
        listener: UnixListener,
        stop: watch::Receiver<bool>,
    ) -> JoinHandle<()>;

    /// Serves the management API of the agent, or the routes of a host agent.
    fn management(
        &self,
        module: &ModuleId,
        listener: UnixListener,
        stop: watch::Receiver<bool>,
    ) -> JoinHandle<()>;
}

/// The sockets that are open.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    open: Mutex<HashMap<String, Listening>>,
    serving: OnceLock<Box<dyn Serving>>,
}

#[derive(Debug)]
struct Listening {
    folder: PathBuf,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    /// The files that were bound, by device and inode.
    bound: Vec<(&'static str, (u64, u64))>,
}

/// Failure to open a module's sockets.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// A socket could not be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The daemon is still starting.
    #[error("no API is served yet")]
    NotServing,
    /// A folder of the daemon's own could not be made.
    #[error(transparent)]
    Folder(#[from] StoreError),
    /// The module's folder or link could not be made.
    #[error("cannot prepare {}", path.display())]
    Prepare {
        /// Path that could not be prepared.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
}

impl Sockets {
    /// Has sockets that are opened from now on served by `serving`; the first one stays.
    pub(crate) fn served_by(&self, serving: Box<dyn Serving>) {
        let _ = self.serving.set(serving);
    }

    /// Opens a module's sockets and gives whether they had to be made; those that are
    /// open stay as they are.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub(crate) async fn open(
        &self,
        modules: &Arc<Modules>,
        module: &ModuleId,
        access: Access,
    ) -> Result<bool, SocketError> {
        let mut open = self.open.lock().await;
        open_in(&mut open, modules, module, access).await
    }

    /// Makes a registered module's sockets anew if they are not as they were, and gives
    /// whether that was needed.
    pub(crate) async fn review(
        &self,
        modules: &Arc<Modules>,
        module: &ModuleId,
    ) -> Result<bool, SocketError> {
        let mut open = self.open.lock().await;
        // Looked up under the lock: who changes a registration opens or removes the
        // sockets after that.
        let Some(registration) = modules.registrations.of(module) else { return Ok(false) };
        let access = access_of(modules, module, Some(&registration)).await;
        open_in(&mut open, modules, module, access).await
    }

    /// Closes and removes a module's sockets.
    pub(crate) async fn remove(&self, modules: &Modules, module: &ModuleId) {
        let listening = self.open.lock().await.remove(module.name());
        if let Some(listening) = listening {
            listening.end().await;
        }
        // What cannot be removed is made anew by the next open.
        let _ = std::fs::remove_file(link_path(modules, module));
        for owner in [Owner::Container, Owner::Anyone] {
            let _ = std::fs::remove_dir_all(folder(modules, module, owner));
        }
    }

    /// Stops accepting everywhere and waits for running requests.
    pub(crate) async fn close_all(&self) {
        let listening: Vec<Listening> =
            self.open.lock().await.drain().map(|(_, listening)| listening).collect();
        for one in &listening {
            let _ = one.stop.send(true);
        }
        for one in listening {
            one.end().await;
        }
    }
}

impl Listening {
    /// Returns true if the sockets are the ones that were bound, in this folder, with a
    /// socket for management exactly if `managed`.
    fn is_in(&self, folder: &Path, managed: bool) -> bool {
        let there = |(name, file): &(&str, (u64, u64))| identity(&folder.join(name)) == Some(*file);
        self.folder == folder
            && self.is_managed() == managed
            && !self.bound.is_empty()
            && self.bound.iter().all(there)
    }

    fn is_managed(&self) -> bool {
        self.bound.iter().any(|(name, _)| *name == MANAGEMENT_SOCKET)
    }

    async fn end(self) {
        let _ = self.stop.send(true);
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

async fn open_in(
    open: &mut HashMap<String, Listening>,
    modules: &Arc<Modules>,
    module: &ModuleId,
    access: Access,
) -> Result<bool, SocketError> {
    let owner = access.owner;
    let folder = folder(modules, module, owner);
    let link_path = link_path(modules, module);
    let managed = module.is_edge_agent() || access.host_agent;
    let fault = |source| SocketError::Prepare { path: folder.clone(), source };
    if open.get(module.name()).is_some_and(|listening| listening.is_in(&folder, managed)) {
        // The module's user may be another one by now.
        own(modules, &folder, owner).await.map_err(fault)?;
        link(&link_path, owner, module)?;
        return Ok(false);
    }
    // Host modules connect by this path; it must fit although the socket itself is made
    // elsewhere.
    if link_path.as_os_str().len() > listen::PATH_LIMIT {
        return Err(ListenError::TooLong { path: link_path }.into());
    }
    if owner == Owner::Container {
        private_folder(&container_folders(&modules.root))?;
    }
    make_folder(modules, &folder, owner).await.map_err(fault)?;
    let (stop, stopped) = watch::channel(false);
    let (mut tasks, mut bound) = (Vec::new(), Vec::new());
    // Open to every user: who it serves is decided by measuring the caller, whose user in
    // the container is not known. The folder is mounted into the module, which may put
    // anything there: the socket is made elsewhere.
    let private = modules.state_folder().join("sockets");
    private_folder(&private)?;
    let listener = listen::bind_into(&private, &folder.join(WORKLOAD), 0o666)?;
    bound.extend(identity(&folder.join(WORKLOAD)).map(|file| (WORKLOAD, file)));
    let serving = modules.sockets.serving.get().ok_or(SocketError::NotServing)?;
    tasks.push(serving.workload(module, listener, stopped.clone()));
    if managed {
        let listener = listen::bind_into(&private, &folder.join(MANAGEMENT_SOCKET), 0o666)?;
        bound.extend(
            identity(&folder.join(MANAGEMENT_SOCKET)).map(|file| (MANAGEMENT_SOCKET, file)),
        );
        tasks.push(serving.management(module, listener, stopped));
    }
    link(&link_path, owner, module)?;
    let listening = Listening { folder: folder.clone(), stop, tasks, bound };
    if let Some(old) = open.insert(module.name().to_owned(), listening) {
        if old.folder != folder {
            let _ = std::fs::remove_dir_all(&old.folder);
        } else if old.is_managed() && !managed {
            let _ = std::fs::remove_file(folder.join(MANAGEMENT_SOCKET));
        }
        // Not waited for: a request that is under way there may itself wait for the lock
        // that is held here.
        drop(tokio::spawn(old.end()));
    }
    Ok(true)
}

/// The folder of a module's sockets.
#[must_use]
pub(crate) fn folder(modules: &Modules, module: &ModuleId, owner: Owner) -> PathBuf {
    match owner {
        Owner::Container => container_folder(&modules.root, module),
        Owner::User(_) | Owner::Anyone => modules.root.module_socket_folder().join(module.name()),
    }
}

/// The folder that a module's container has mounted.
#[must_use]
pub(crate) fn container_folder(root: &Root, module: &ModuleId) -> PathBuf {
    container_folders(root).join(module.name())
}

fn container_folders(root: &Root) -> PathBuf {
    root.state_folder(Daemon::Moduled).join(CONTAINER_FOLDERS)
}

/// Returns the properties of a registered module's folder.
pub(crate) async fn access(modules: &Modules, module: &ModuleId) -> Access {
    access_of(modules, module, modules.registrations.of(module).as_ref()).await
}

async fn access_of(
    modules: &Modules,
    module: &ModuleId,
    registration: Option<&Registration>,
) -> Access {
    let owner = Owner::of(registration);
    let host_agent = match services::find(modules, module) {
        Some((_, found)) => found.management,
        None => match modules.processes.spec(module).await {
            Ok(spec) => {
                modules.settings.host_modules.get(&spec.image).is_some_and(|found| found.management)
            }
            Err(_) => false,
        },
    };
    Access { owner, host_agent }
}

/// Makes the folder if it is not there, and lets in whom it is for.
async fn own(modules: &Modules, folder: &Path, owner: Owner) -> io::Result<()> {
    let launching = modules.processes.launching();
    std::fs::create_dir_all(folder)?;
    let (own_uid, own_gid) =
        (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (mode, uid) = match owner {
        Owner::Container | Owner::Anyone => (0o755, own_uid),
        Owner::User(uid) if uid == own_uid || own_uid == 0 => (0o700, uid),
        // A daemon that is not root puts sockets into the folder by its group, which
        // nobody else has.
        Owner::User(uid) => (0o770, uid),
    };
    let found = std::fs::metadata(folder)?;
    // Closed before it changes hands, and only its owner may do that.
    if found.mode() & 0o7777 != mode {
        if found.uid() != own_uid {
            let given = launching.hand_over(folder, own_uid, own_gid).await;
            given.map_err(io::Error::other)?;
        }
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode))?;
    }
    let found = std::fs::metadata(folder)?;
    if (found.uid(), found.gid()) != (uid, own_gid) {
        let given = launching.hand_over(folder, uid, own_gid).await;
        given.map_err(io::Error::other)?;
    }
    Ok(())
}

/// Limits of a workload socket.
pub(crate) fn workload_limits(settings: &ModuledSettings) -> Limits {
    let connections = settings.workload_connections_per_uid;
    Limits { connections_per_uid: connections.unwrap_or(WORKLOAD_CONNECTIONS), ..Limits::default() }
}

/// Limits of the management socket.
pub(crate) fn management_limits(settings: &ModuledSettings) -> Limits {
    let connections = settings.management_connections_per_uid;
    Limits {
        connections_per_uid: connections.unwrap_or(MANAGEMENT_CONNECTIONS),
        ..Limits::default()
    }
}

fn link_path(modules: &Modules, module: &ModuleId) -> PathBuf {
    modules.root.module_socket_folder().join(format!("{}.sock", module.name()))
}

/// Device and inode of a socket's file; `None` if there is none, or something else is in
/// its place.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    metadata.file_type().is_socket().then(|| (metadata.dev(), metadata.ino()))
}

/// Makes a module's folder, in the place of whatever is there instead, and clears its
/// sockets' places. The folder is not taken away from a container that has it mounted.
async fn make_folder(modules: &Modules, folder: &Path, owner: Owner) -> io::Result<()> {
    match std::fs::symlink_metadata(folder) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => std::fs::remove_file(folder)?,
        Err(_) => {}
    }
    own(modules, folder, owner).await?;
    for name in [WORKLOAD, MANAGEMENT_SOCKET] {
        clear(&folder.join(name))?;
    }
    Ok(())
}

/// Takes a folder out of a socket's place: an engine makes one where a bind source is
/// absent. One with content is moved aside, for it is not ours.
fn clear(path: &Path) -> io::Result<()> {
    if !std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
        || std::fs::remove_dir(path).is_ok()
    {
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
fn link(path: &Path, owner: Owner, module: &ModuleId) -> Result<(), SocketError> {
    // Not from the root, so that it also holds where the folder above is mounted in
    // another place.
    let folder = match owner {
        Owner::Container => Path::new("..").join(CONTAINER_FOLDERS),
        Owner::User(_) | Owner::Anyone => PathBuf::new(),
    };
    let target = folder.join(module.name()).join(WORKLOAD);
    if std::fs::read_link(path).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let fault = |source| SocketError::Prepare { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        // An engine makes a folder where a bind source was absent.
        Ok(metadata) if metadata.is_dir() => clear(path).map_err(fault)?,
        Ok(_) => std::fs::remove_file(path).map_err(fault)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fault(error)),
    }
    std::os::unix::fs::symlink(target, path).map_err(fault)
}
