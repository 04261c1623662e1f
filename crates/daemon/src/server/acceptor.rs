//! Taking connections from the kernel, each with the number of the socket at its other
//! end.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::os::unix::net;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::line::Line;
use super::waiting::{TELLABLE, Waiting};
use crate::peer::PeerSocket;

/// Connections taken at a time where the kernel is not asked about them.
const BATCH: usize = 256;

/// A listening socket, of which this is the only acceptor.
#[derive(Debug)]
pub(super) struct Acceptor {
    listener: net::UnixListener,
    /// Absent where peers' sockets are not asked for or the kernel does not tell them.
    waiting: Option<Waiting>,
    /// The sockets of those that are taken next, in order.
    next: VecDeque<PeerSocket>,
    /// True if more connections may wait than the kernel told.
    more: bool,
    /// True if all connections that waited when senders were asked for are taken: newer
    /// kernels give a connection what the listener had when the connection was made.
    senders_told: bool,
}

impl Acceptor {
    /// Takes a listener over; with `peer_sockets` the sockets of those that connect are
    /// told apart.
    pub(super) fn new(listener: net::UnixListener, peer_sockets: bool) -> Self {
        let waiting = peer_sockets.then(|| Waiting::new(&listener)).transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "the kernel does not tell which sockets connect (UNIX_DIAG): callers that exchange their program between connect and accept are not noticed");
            None
        });
        // Whoever finds no place waits, or is told EAGAIN.
        if waiting.is_some()
            && let Err(error) = rustix::net::listen(&listener, TELLABLE)
        {
            tracing::warn!(%error, "the number of connections that may wait stays as it was");
        }
        // Set on the listener, so that bytes sent before accept carry their sender as
        // well.
        if let Err(error) = rustix::net::sockopt::set_socket_passcred(&listener, true) {
            tracing::warn!(%error, "senders of early bytes cannot be checked");
        }
        Self { listener, waiting, next: VecDeque::new(), more: true, senders_told: false }
    }

    /// Returns true if connections may wait that no event tells of any more.
    pub(super) fn has_more(&self) -> bool {
        self.more
    }

    /// Moves connections that wait in the kernel to `line`; `false` if none did. Never
    /// waits.
    ///
    /// The kernel tells all sockets that wait in one answer, in the order of `accept`,
    /// and only this takes them: so the sockets are known, however many wait, for the
    /// price of one question. Whatever comes after the question is an event of its own.
    ///
    /// # Errors
    /// The error of the kernel, for example that there are no descriptors left.
    /// Connections that were not taken wait on.
    pub(super) fn take(&mut self, line: &Line) -> io::Result<bool> {
        if self.next.is_empty() {
            self.more = false;
            self.ask();
        }
        let mut taken = false;
        while let Some(socket) = self.next.front().copied() {
            match rustix::net::accept_with(
                &self.listener,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            ) {
                Ok(stream) => {
                    self.next.pop_front();
                    if !self.senders_told {
                        // Without it all that comes is a stranger's.
                        let _ = rustix::net::sockopt::set_socket_passcred(&stream, true);
                    }
                    line.push(stream.into(), socket);
                    taken = true;
                }
                // Fewer than were supposed, where the kernel was not asked.
                Err(Errno::AGAIN) => {
                    self.next.clear();
                    self.more = false;
                }
                Err(error) => {
                    self.more = true;
                    return Err(error.into());
                }
            }
        }
        self.senders_told |= !self.more;
        Ok(taken)
    }

    fn ask(&mut self) {
        match self.waiting.as_mut().map(|waiting| waiting.all(&mut self.next)) {
            None => {
                self.next.extend([PeerSocket::Untold; BATCH]);
                self.more = true;
            }
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::debug!(%error, "the socket of a caller is not known");
                self.next.push_back(PeerSocket::Gone);
                self.more = true;
            }
        }
    }

    /// Waits until connections wait, or `stop` can be read; whether it can.
    ///
    /// # Errors
    /// The error of the kernel.
    pub(super) fn wait(&self, stop: &impl std::os::fd::AsFd) -> io::Result<bool> {
        let mut both =
            [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut both, None) {
            Ok(_) => Ok(!both[1].revents().is_empty()),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsRawFd for Acceptor {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_fd().as_raw_fd()
    }
}
