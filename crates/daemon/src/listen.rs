//! Listening sockets: passed by systemd, or bound by the daemon itself.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as Listener;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Connections that may wait to be accepted: as many as the kernel allows
/// (`net.core.somaxconn`). Where callers are measured the server sets less (see
/// `server::acceptor`).
const BACKLOG: i32 = i32::MAX;

/// Longest path, in bytes, that fits into a socket address on Linux.
pub const PATH_LIMIT: usize = 107;

/// The error of listening at a socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path does not fit into a socket address.
    #[error("socket path {} is longer than {PATH_LIMIT} bytes; use a shorter root folder", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// Something at the path is in the way and is not ours to remove.
    #[error("{} is in the way of a socket; move it away", path.display())]
    Occupied {
        /// The path.
        path: PathBuf,
    },
    /// Another process listens there.
    #[error("another process listens at {}; stop it first", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot {step} {}", path.display())]
    Io {
        /// The step that failed, in words.
        step: &'static str,
        /// The path.
        path: PathBuf,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
}

/// Binds a socket in a folder that others may write, such as one that is mounted into a
/// container.
///
/// The socket is made in `private`, a folder that only the daemon writes, and then
/// renamed to `path`: nothing is done by name in the shared folder, where the name could
/// be made to mean another file, and whoever put something there cannot make the daemon
/// wait for it. What was at `path` is replaced, unless it is a folder that is not empty.
///
/// # Errors
/// See [`ListenError`].
pub fn bind_into(private: &Path, path: &Path, mode: u32) -> Result<UnixListener, ListenError> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let fault = |step, source| ListenError::Io { step, path: path.to_owned(), source };
    std::fs::create_dir_all(private)
        .map_err(|source| fault("make the private folder for", source))?;
    let made =
        private.join(format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let listener = bind(&made, mode)?;
    if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
        std::fs::remove_dir(path).map_err(|_| ListenError::Occupied { path: path.to_owned() })?;
    }
    match std::fs::rename(&made, path) {
        Ok(()) => Ok(listener),
        Err(source) => {
            let _ = std::fs::remove_file(&made);
            Err(fault("put into place", source))
        }
    }
}

/// A listening socket whose connections carry their senders' credentials from the first
/// byte on: that is set before anybody can connect.
fn listening(path: &Path) -> Result<Listener, rustix::io::Errno> {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, sockopt,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_passcred(&socket, true)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Returns true if somebody listens at a socket: a dead socket file refuses. Never waits
/// for a listener whose queue is full.
fn is_alive(path: &Path) -> bool {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok(address) = SocketAddrUnix::new(path) else { return false };
    let Ok(socket) = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None) else {
        return true;
    };
    match connect(&socket, &address) {
        Ok(()) => true,
        Err(errno) => errno == rustix::io::Errno::AGAIN,
    }
}

/// The socket that the service manager passed under `name`, else one bound at `path` (see
/// [`bind`]).
///
/// # Errors
/// See [`ListenError`].
pub fn activated_or_bound(name: &str, path: &Path, mode: u32) -> Result<UnixListener, ListenError> {
    in_runtime(take_or_bind(name, path, mode)?, path)
}

/// Does the same as [`activated_or_bound`], outside of a runtime: connections wait until
/// [`in_runtime`] takes the socket over.
///
/// # Errors
/// See [`ListenError`].
pub fn take_or_bind(name: &str, path: &Path, mode: u32) -> Result<Listener, ListenError> {
    taken(name, path)?.map_or_else(|| bound(path, mode), Ok)
}

/// The socket that the service manager passed under `name`, if it did; `path` is where it
/// should be.
///
/// # Errors
/// See [`ListenError`].
pub fn activated(name: &str, path: &Path) -> Result<Option<UnixListener>, ListenError> {
    taken(name, path)?.map(|listener| in_runtime(listener, path)).transpose()
}

fn taken(name: &str, path: &Path) -> Result<Option<Listener>, ListenError> {
    let Some(listener) = crate::activation::take(name) else { return Ok(None) };
    let fault = |source| {
        let step = "prepare the passed socket for";
        ListenError::Io { step, path: path.to_owned(), source }
    };
    listener.set_nonblocking(true).map_err(fault)?;
    Ok(Some(listener))
}

/// Takes a socket over into the runtime. `path` is where the socket is, for messages.
///
/// # Errors
/// See [`ListenError`].
pub fn in_runtime(listener: Listener, path: &Path) -> Result<UnixListener, ListenError> {
    UnixListener::from_std(listener).map_err(|source| ListenError::Io {
        step: "listen at",
        path: path.to_owned(),
        source,
    })
}

/// Binds `path` with `mode`, in a folder that is made if absent.
///
/// What a crashed daemon left is removed, and so is an *empty folder* in the socket's
/// place (container engines make one when a bind source is absent). Anything else in the
/// way is an error.
///
/// # Errors
/// See [`ListenError`].
pub fn bind(path: &Path, mode: u32) -> Result<UnixListener, ListenError> {
    in_runtime(bound(path, mode)?, path)
}

fn bound(path: &Path, mode: u32) -> Result<Listener, ListenError> {
    let fault = |step, source| ListenError::Io { step, path: path.to_owned(), source };
    if path.as_os_str().len() > PATH_LIMIT {
        return Err(ListenError::TooLong { path: path.to_owned() });
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|source| fault("make the folder of", source))?;
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fault("look at", error)),
        Ok(metadata) if metadata.is_dir() => {
            std::fs::remove_dir(path)
                .map_err(|_| ListenError::Occupied { path: path.to_owned() })?;
        }
        Ok(metadata) if metadata.file_type().is_socket() => {
            if is_alive(path) {
                return Err(ListenError::InUse { path: path.to_owned() });
            }
            std::fs::remove_file(path).map_err(|source| fault("remove the old socket", source))?;
        }
        Ok(_) => return Err(ListenError::Occupied { path: path.to_owned() }),
    }
    let listener = listening(path).map_err(|errno| fault("bind", errno.into()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|source| fault("set the mode of", source))?;
    Ok(listener)
}
