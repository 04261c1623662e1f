//! Door of a shared socket: users who flood it are kept out by the kernel.
//!
//! [`edgekeep_core::flood`] says who; the access control list of the socket's file has
//! the kernel turn these users away when they connect, before they take a place in the
//! one line that all users share.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use edgekeep_base::lock::lock;
use edgekeep_core::access_list::AccessList;
use edgekeep_core::flood::FloodGuard;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use tokio::sync::Notify;

const ATTRIBUTE: &str = "system.posix_acl_access";
/// Room for a list: entries of ours and as many of somebody else's.
const LIST_LIMIT: usize = 4096;
/// The mapping of user ids in a user namespace that has all of them.
const ALL_USERS: [&str; 3] = ["0", "0", "4294967295"];
/// The user that stands for all that a user namespace does not have.
const OVERFLOW_USER: u32 = 65534;

/// Told that a user is kept out, and for how long.
type Tell = Box<dyn Fn(u32, Duration) + Send + Sync>;

/// The door of one socket.
pub(super) struct Door {
    path: PathBuf,
    guard: Mutex<FloodGuard>,
    begin: Instant,
    /// Somebody is kept out who was not before.
    shut: Notify,
    tell: Tell,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Door").field(&self.path).finish()
    }
}

impl Door {
    /// The door of a listening socket that has a path, with nobody kept out: not by what
    /// a daemon that was killed has left either.
    pub(super) fn of(listener: &net::UnixListener, tell: Tell) -> Option<Self> {
        let address = listener.local_addr().ok()?;
        let path = address.as_pathname()?;
        let found = std::fs::symlink_metadata(path).ok()?;
        if !found.file_type().is_socket() {
            return None;
        }
        let own = rustix::process::geteuid().as_raw();
        // The file's owner cannot be kept out by an entry, root by none, and this daemon
        // does not flood itself.
        let mut exempt = BTreeSet::from([0, own, found.uid()]);
        if !has_all_users() {
            exempt.insert(OVERFLOW_USER);
        }
        let door = Self {
            path: path.to_owned(),
            guard: Mutex::new(FloodGuard::new(exempt)),
            begin: Instant::now(),
            shut: Notify::new(),
            tell,
        };
        door.apply(&BTreeSet::new());
        Some(door)
    }

    /// Takes in that a connection of a user came to nothing.
    pub(super) fn wasted(&self, user: u32) {
        let now = self.begin.elapsed();
        let mut guard = lock(&self.guard);
        if !guard.wasted(user, now) {
            return;
        }
        let lasting = guard.until(user).unwrap_or_default().saturating_sub(now);
        self.apply(&guard.kept_out().collect());
        drop(guard);
        self.shut.notify_one();
        tracing::warn!(
            uid = user,
            socket = %self.path.display(),
            seconds = lasting.as_secs(),
            "user kept out of a socket: a flood of connections that come to nothing"
        );
        (self.tell)(user, lasting);
    }

    /// Lets users in again as their time is over. Never ends.
    pub(super) async fn keep(&self) {
        loop {
            let next = lock(&self.guard).next();
            let Some(next) = next else {
                self.shut.notified().await;
                continue;
            };
            tokio::select! {
                () = tokio::time::sleep(next.saturating_sub(self.begin.elapsed())) => {}
                () = self.shut.notified() => {}
            }
            let mut guard = lock(&self.guard);
            if guard.let_in(self.begin.elapsed()) {
                self.apply(&guard.kept_out().collect());
            }
        }
    }

    /// Keeps these users out and nobody else. Under the guard's lock, so that lists are
    /// written in the order of the decisions.
    fn apply(&self, users: &BTreeSet<u32>) {
        if let Err(error) = set(&self.path, users) {
            // Without it users still wait in lines of their own.
            tracing::warn!(
                %error,
                socket = %self.path.display(),
                "users who flood a socket are not kept out of it (its access control list cannot be written)"
            );
        }
    }
}

impl Drop for Door {
    /// A socket may outlive the daemon, and nobody would let them in again.
    fn drop(&mut self) {
        if lock(&self.guard).next().is_some() {
            self.apply(&BTreeSet::new());
        }
    }
}

fn set(path: &Path, users: &BTreeSet<u32>) -> io::Result<()> {
    let mut bytes = [0; LIST_LIMIT];
    let list = match rustix::fs::lgetxattr(path, ATTRIBUTE, &mut bytes[..]) {
        Ok(length) => AccessList::parse(&bytes[..length]).map_err(io::Error::other)?,
        Err(Errno::NODATA) => AccessList::of_mode(std::fs::symlink_metadata(path)?.mode()),
        // A file system without lists has nothing to clear.
        Err(Errno::OPNOTSUPP) if users.is_empty() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let wanted = list.keeping_out(users);
    if wanted == list {
        return Ok(());
    }
    rustix::fs::lsetxattr(path, ATTRIBUTE, &wanted.to_bytes(), XattrFlags::empty())?;
    Ok(())
}

fn has_all_users() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(ALL_USERS))
}
