//! Accepting connections, each with the number of the socket at its other end.

use std::io;
use std::os::unix::net;

use rustix::net::SocketFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;

use super::waiting::Waiting;
use crate::peer::PeerSocket;

/// A listening socket, of which this is the only acceptor.
pub(super) struct Acceptor {
    listener: AsyncFd<net::UnixListener>,
    /// Absent where peers' sockets are not asked for or the kernel does not tell them.
    waiting: Option<Waiting>,
}

impl Acceptor {
    /// Takes a listener over; with `peer_sockets` the sockets of those that connect are told apart.
    ///
    /// # Errors
    /// The listener cannot be registered with the runtime.
    pub(super) fn new(listener: UnixListener, peer_sockets: bool) -> io::Result<Self> {
        let listener = listener.into_std()?;
        let waiting = peer_sockets.then(|| Waiting::new(&listener)).transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "the kernel does not tell which sockets connect (UNIX_DIAG): callers that exchange their program between connect and accept are not noticed");
            None
        });
        #[expect(
            deprecated,
            reason = "deprecated for types whose descriptor can change; a listener keeps one, and this crate has no unsafe"
        )]
        let listener = AsyncFd::with_interest(listener, Interest::READABLE)?;
        // Set on the listener, so that bytes sent before accept carry their sender as well.
        if let Err(error) = rustix::net::sockopt::set_socket_passcred(&listener, true) {
            tracing::warn!(%error, "senders of early bytes cannot be checked");
        }
        Ok(Self { listener, waiting })
    }

    /// The next connection, not yet known to the runtime: many of a bad neighbour's are closed at once. Nothing is lost when
    /// this is given up.
    ///
    /// # Errors
    /// What the kernel said, for example that there are no descriptors left.
    pub(super) async fn accept(&mut self) -> io::Result<(net::UnixStream, PeerSocket)> {
        loop {
            let mut ready = self.listener.readable().await?;
            let waiting = &mut self.waiting;
            if let Ok(accepted) = ready.try_io(|listener| accept(listener.get_ref(), waiting.as_mut())) {
                return accepted;
            }
        }
    }
}

fn accept(listener: &net::UnixListener, waiting: Option<&mut Waiting>) -> io::Result<(net::UnixStream, PeerSocket)> {
    let socket = match waiting.map(Waiting::first) {
        None => PeerSocket::Untold,
        Some(Ok(Some(socket))) => socket,
        // Whoever comes now is accepted after the next question.
        Some(Ok(None)) => return Err(io::ErrorKind::WouldBlock.into()),
        Some(Err(error)) => {
            tracing::debug!(%error, "the socket of a caller is not known");
            PeerSocket::Gone
        }
    };
    let stream = rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    Ok((stream.into(), socket))
}
