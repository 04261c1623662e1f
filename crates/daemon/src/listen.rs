//! Listening sockets: passed by systemd, or bound by the daemon itself.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Longest path that fits into a socket address on Linux.
const PATH_LIMIT: usize = 107;

/// Why a socket cannot be listened on.
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
        /// What was being done.
        step: &'static str,
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The socket that the service manager passed under `name`, else one bound at `path` (see [`bind`]).
///
/// # Errors
/// See [`ListenError`].
pub fn activated_or_bound(name: &str, path: &Path, mode: u32) -> Result<UnixListener, ListenError> {
    let Some(listener) = crate::activation::take(name) else { return bind(path, mode) };
    let fault = |step, source| ListenError::Io { step, path: path.to_owned(), source };
    listener.set_nonblocking(true).map_err(|source| fault("prepare the passed socket for", source))?;
    UnixListener::from_std(listener).map_err(|source| fault("listen at the passed socket for", source))
}

/// Binds `path` with `mode`, in a folder that is made if absent.
///
/// What a crashed daemon left is removed, and so is an *empty folder* in the socket's place (container engines make one
/// when a bind source is absent). Anything else in the way is an error.
///
/// # Errors
/// See [`ListenError`].
pub fn bind(path: &Path, mode: u32) -> Result<UnixListener, ListenError> {
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
            std::fs::remove_dir(path).map_err(|_| ListenError::Occupied { path: path.to_owned() })?;
        }
        Ok(metadata) if metadata.file_type().is_socket() => {
            // A listener that is alive accepts; a dead socket file refuses.
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(ListenError::InUse { path: path.to_owned() });
            }
            std::fs::remove_file(path).map_err(|source| fault("remove the old socket", source))?;
        }
        Ok(_) => return Err(ListenError::Occupied { path: path.to_owned() }),
    }
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(|source| fault("bind", source))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|source| fault("set the mode of", source))?;
    listener.set_nonblocking(true).map_err(|source| fault("prepare", source))?;
    UnixListener::from_std(listener).map_err(|source| fault("listen at", source))
}
