//! The peer of a connection: the process at the other end, as the kernel tells it.
//!
//! The identity is taken at accept. Every read then carries the credentials of the
//! process that *sent* those bytes (`SO_PASSCRED`); bytes of another process mark the
//! connection, and the server refuses every request on it. While the connecting process's
//! pidfd is alive its pid cannot be reused, so equal pids are the same process.

use std::any::Any;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use edgekeep_core::attestation::PeerHandle;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixCredentials, getsockopt, recvmsg, sockopt,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// The socket at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerSocket {
    /// Its inode number, as `/proc/PID/fd` shows it.
    Inode(u64),
    /// It was closed before the connection was accepted, or the kernel could not say
    /// which it is.
    Gone,
    /// Not asked for, or this kernel does not tell.
    Untold,
}

/// Credentials of the process that connected, as one cheap question tells them: enough to
/// count connections by user.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Credentials(UnixCredentials);

impl Credentials {
    /// Of the peer of a fresh connection.
    ///
    /// # Errors
    /// If the socket has no peer credentials, which a Unix socket always has.
    pub(crate) fn of(stream: &impl AsFd) -> io::Result<Self> {
        Ok(Self(getsockopt(stream, sockopt::PeerCredentials)?))
    }

    /// Effective user id at connect.
    pub(crate) fn uid(self) -> u32 {
        self.0.uid()
    }
}

/// The process that connected.
#[derive(Debug)]
pub struct Caller {
    uid: u32,
    gid: u32,
    pid: Option<u32>,
    pidfd: Option<(OwnedFd, PeerHandle)>,
    socket: PeerSocket,
    sender_changed: AtomicBool,
    attached: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Caller {
    /// Reads the peer of a fresh connection.
    ///
    /// # Errors
    /// If the socket has no peer credentials, which a Unix socket always has.
    pub fn of(stream: &impl AsFd, socket: PeerSocket) -> io::Result<Self> {
        rustix::net::sockopt::set_socket_passcred(stream, true)?;
        Ok(Self::with(Credentials::of(stream)?, stream, socket))
    }

    /// As [`Self::of`], where the credentials are known already. Senders are told if the
    /// listener has that set.
    pub(crate) fn with(
        Credentials(credentials): Credentials,
        stream: &impl AsFd,
        socket: PeerSocket,
    ) -> Self {
        // 0 stands for a process that is not visible in our pid namespace.
        let pid = u32::try_from(credentials.pid()).ok().filter(|pid| *pid != 0);
        let handle = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(pidfd) => Some((pidfd, PeerHandle::PeerPidfd)),
            // Only a kernel without the option. Kernels that have it may refuse for a
            // process that was reaped, whose number may be another's by now.
            Err(nix::errno::Errno::ENOPROTOOPT) => by_number(credentials.pid()),
            Err(_) => None,
        };
        Self {
            pid,
            pidfd: handle,
            socket,
            ..Self::without_process(credentials.uid(), credentials.gid())
        }
    }

    /// A caller that gets nothing but a refusal, whatever it is: no handle to its process
    /// is taken.
    pub(crate) fn turned_away(Credentials(credentials): Credentials) -> Self {
        Self::without_process(credentials.uid(), credentials.gid())
    }

    /// A caller that no socket stands behind, for unit tests of handlers.
    #[must_use]
    pub fn simulated(uid: u32, gid: u32) -> Self {
        Self::without_process(uid, gid)
    }

    fn without_process(uid: u32, gid: u32) -> Self {
        Self {
            uid,
            gid,
            pid: None,
            pidfd: None,
            socket: PeerSocket::Untold,
            sender_changed: AtomicBool::new(false),
            attached: OnceLock::new(),
        }
    }

    /// Effective user id at connect.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Effective group id at connect.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Process id in our pid namespace, if the process is visible there.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// A handle to the process, and how it was obtained. `None` if the process is not
    /// visible or has ended.
    #[must_use]
    pub fn pidfd(&self) -> Option<(BorrowedFd<'_>, PeerHandle)> {
        self.pidfd.as_ref().map(|(pidfd, handle)| (pidfd.as_fd(), *handle))
    }

    /// The socket that it connected with.
    #[must_use]
    pub fn socket(&self) -> PeerSocket {
        self.socket
    }

    /// Returns what the service learned about this caller on an earlier request of the
    /// same connection. If nothing was learned yet, learns it now.
    ///
    /// One type a service: if something of another type is attached already, `None`.
    pub fn attached<T: Any + Send + Sync>(&self, learn: impl FnOnce() -> T) -> Option<&T> {
        self.attached.get_or_init(|| Box::new(learn())).downcast_ref()
    }

    /// Returns true if any bytes on the connection came from another process.
    #[must_use]
    pub fn sender_changed(&self) -> bool {
        self.sender_changed.load(Ordering::Acquire)
    }
}

/// Returns the way in which this kernel lets callers be identified.
#[must_use]
pub fn strongest_handle() -> PeerHandle {
    let probe = || {
        let (one, _two) = std::os::unix::net::UnixStream::pair().ok()?;
        Caller::of(&one, PeerSocket::Untold).ok()?.pidfd().map(|(_, handle)| handle)
    };
    probe().unwrap_or(PeerHandle::PidfdOpen)
}

/// A connection whose reads check who sent.
pub(crate) struct CheckedStream {
    stream: UnixStream,
    caller: Arc<Caller>,
    /// Space for the control message of one read.
    control: Vec<u8>,
}

impl CheckedStream {
    pub(crate) fn new(stream: UnixStream, caller: Arc<Caller>) -> Self {
        Self { stream, caller, control: nix::cmsg_space!(UnixCredentials) }
    }

    fn receive(
        stream: &UnixStream,
        caller: &Caller,
        control: &mut [u8],
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        let mut slices = [IoSliceMut::new(buffer)];
        // Descriptors that the peer passes along do not fit into the space and are closed
        // by the kernel.
        let message = recvmsg::<()>(
            stream.as_raw_fd(),
            &mut slices,
            Some(control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        // Whoever passes descriptors along makes the control data not fit: no client
        // does, so that counts as a stranger.
        let known = message.cmsgs().is_ok_and(|mut controls| {
            controls.any(|control| match control {
                ControlMessageOwned::ScmCredentials(sender) => {
                    let pid = u32::try_from(sender.pid()).ok().filter(|pid| *pid != 0);
                    // While the process's handle is held its pid is nobody else's. User
                    // ids are not compared then: here they are the real ones, at connect
                    // they were the effective ones.
                    let held = caller.pidfd.is_some() && pid.is_some();
                    pid == caller.pid
                        && (held || (sender.uid() == caller.uid && sender.gid() == caller.gid))
                }
                _ => false,
            })
        });
        if !known && message.bytes > 0 {
            caller.sender_changed.store(true, Ordering::Release);
        }
        Ok(message.bytes)
    }
}

impl AsyncRead for CheckedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            ready!(this.stream.poll_read_ready(cx))?;
            let Self { stream, caller, control } = &mut *this;
            let received = stream.try_io(tokio::io::Interest::READABLE, || {
                Self::receive(stream, caller, control, buffer.initialize_unfilled())
            });
            match received {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for CheckedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    /// Does nothing: the server drops a connection as soon as this is done, which ends it
    /// in both directions.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
/// Opens the process with a number. The number may be another process's by now, if the
/// one that was meant has ended.
fn by_number(pid: i32) -> Option<(OwnedFd, PeerHandle)> {
    let pid = rustix::process::Pid::from_raw(pid)?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
    Some((pidfd, PeerHandle::PidfdOpen))
}
