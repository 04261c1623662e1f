//! Connections between the kernel and the server: taken from the kernel, waiting for
//! their turn.
//!
//! The kernel has one line for all users. It is emptied at once, at the price of an
//! accept and one question for the user. Here users wait in lines of their own: a flood
//! of one user's fills that user's line and is closed beyond it.

use std::os::unix::net;
use std::sync::Mutex;

use edgekeep_base::lock::lock;
use edgekeep_core::fair_queue::FairQueue;
use rustix::net::RecvFlags;
use tokio::sync::Notify;

use super::door::Door;
use super::measure::ConnectionSeries;
use crate::peer::{Credentials, PeerSocket};

/// Connections of one user that wait at a socket.
const SHARE: usize = 256;
/// Connections of all users that wait at a socket.
const LIMIT: usize = 1024;

/// A connection of which nothing is known but what the kernel tells for nothing.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) stream: net::UnixStream,
    pub(super) credentials: Credentials,
    pub(super) socket: PeerSocket,
    /// True if the peer had sent something when the connection was last looked at.
    pub(super) has_asked: bool,
}

impl Fresh {
    /// Returns true if the peer has closed its end without having sent a byte: nobody is
    /// left to be known or answered. A peer that has sent something is answered in any
    /// case.
    pub(super) fn is_abandoned(&mut self) -> bool {
        if self.has_asked {
            return false;
        }
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.stream, &mut [0; 1][..], flags) {
            Ok((length, _)) => {
                self.has_asked = length > 0;
                length == 0
            }
            Err(_) => false,
        }
    }
}

/// The connections that wait at one socket.
#[derive(Debug)]
pub(super) struct Line {
    waiting: Mutex<FairQueue<u32, Fresh>>,
    filled: Notify,
    series: ConnectionSeries,
    /// Absent at a socket that is not shared.
    door: Option<Door>,
}

impl Line {
    pub(super) fn new(series: ConnectionSeries, door: Option<Door>) -> Self {
        let waiting = Mutex::new(FairQueue::new(SHARE, LIMIT));
        Self { waiting, filled: Notify::new(), series, door }
    }

    /// Takes in that a connection of a user came to nothing.
    pub(super) fn wasted(&self, user: u32) {
        if let Some(door) = &self.door {
            door.wasted(user);
        }
    }

    /// Lets users in again who were kept out. Ends at once where nobody can be.
    pub(super) async fn keep_door(&self) {
        if let Some(door) = &self.door {
            door.keep().await;
        }
    }

    /// Puts a connection into the line of its user, or closes what has no place.
    pub(super) fn push(&self, stream: net::UnixStream, socket: PeerSocket) {
        let credentials = match Credentials::of(&stream) {
            Ok(credentials) => credentials,
            Err(error) => {
                self.series.no_credentials.increment();
                return tracing::warn!(%error, "connection closed: its peer cannot be known");
            }
        };
        let mut fresh = Fresh { stream, credentials, socket, has_asked: false };
        if fresh.is_abandoned() {
            self.wasted(credentials.uid());
            return self.series.abandoned.increment();
        }
        let mut waiting = lock(&self.waiting);
        let displaced = waiting.push(credentials.uid(), fresh);
        drop(waiting);
        if let Some(displaced) = displaced {
            self.wasted(displaced.credentials.uid());
            self.series.dropped.increment();
        }
    }

    /// The connection whose turn it is.
    pub(super) fn pop(&self) -> Option<Fresh> {
        lock(&self.waiting).pop()
    }

    /// Says that there is something to pop.
    pub(super) fn wake(&self) {
        self.filled.notify_one();
    }

    /// Waits for [`Self::wake`].
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_peer_that_has_hung_up_is_abandoned_unless_it_has_asked() {
        let fresh = |asks: bool, hangs_up: bool| {
            let (stream, peer) = net::UnixStream::pair().expect("two sockets");
            let credentials = Credentials::of(&stream).expect("a peer");
            if asks {
                io::Write::write_all(&mut &peer, b"GET").expect("open");
            }
            let kept = (!hangs_up).then_some(peer);
            (Fresh { stream, credentials, socket: PeerSocket::Untold, has_asked: false }, kept)
        };
        for (asks, hangs_up, abandoned) in
            [(false, false, false), (false, true, true), (true, false, false), (true, true, false)]
        {
            let (mut fresh, _peer) = fresh(asks, hangs_up);
            assert_eq!(fresh.is_abandoned(), abandoned, "{asks} {hangs_up}");
            assert_eq!(fresh.has_asked, asks);
            assert_eq!(fresh.is_abandoned(), abandoned, "again");
        }
    }
}
