//! A socket for messages, watched by tokio.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram as Watched;

use tokio::io::Interest;
use tokio::net::UnixDatagram;

use crate::channel::{self, Message, ReceiveError};

/// One end. tokio's datagram socket only waits for it: its messages are those of
/// [`channel`].
#[derive(Debug)]
pub(crate) struct Connection(UnixDatagram);

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        UnixDatagram::from_std(Watched::from(socket)).map(Self)
    }

    pub(crate) async fn send(
        &self,
        number: u64,
        body: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.0
            .async_io(Interest::WRITABLE, || channel::send(self.0.as_fd(), number, body, files))
            .await
    }

    pub(crate) async fn receive(&self) -> Result<Message, ReceiveError> {
        let receive = || match channel::receive(self.0.as_fd()) {
            Err(ReceiveError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            other => Ok(other),
        };
        match self.0.async_io(Interest::READABLE, receive).await {
            Ok(received) => received,
            Err(error) => Err(ReceiveError::Io(error)),
        }
    }
}
