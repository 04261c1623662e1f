//! Which sockets wait to be accepted: the kernel's own list, asked over netlink (`sock_diag`, no privilege needed).
//!
//! An accepted connection does not tell which socket its peer is, and the peer may be in another network namespace, where
//! it cannot be asked for. The list of a listening socket's waiting connections does tell, in the order of `accept`.
//! About 10 µs a question.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use crate::peer::PeerSocket;

/// `SOCK_DIAG_BY_FAMILY`, `AF_UNIX`, `UDIAG_SHOW_ICONS`, `UNIX_DIAG_ICONS` of `linux/{sock_diag,unix_diag}.h`.
const BY_FAMILY: u16 = 20;
const UNIX: u8 = 1;
const SHOW_WAITING: u32 = 0x08;
const WAITING: u16 = 3;

const HEADER: usize = 16;
const REQUEST: usize = 24;
const MESSAGE: usize = 16;

/// Asks about one listening socket, which nobody else accepts from.
#[derive(Debug)]
pub(super) struct Waiting {
    netlink: OwnedFd,
    listener: u32,
    sequence: u32,
}

impl Waiting {
    /// For a listening socket of this network namespace.
    ///
    /// # Errors
    /// The kernel does not tell: built without `UNIX_DIAG`, or the socket belongs to another network namespace.
    pub(super) fn new(listener: &impl AsFd) -> io::Result<Self> {
        let inode = rustix::fs::fstat(listener)?.st_ino;
        let inode = u32::try_from(inode).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::SOCK_DIAG);
        let netlink = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        let mut waiting = Self { netlink, listener: inode, sequence: 0 };
        waiting.first()?;
        Ok(waiting)
    }

    /// The socket that the next `accept` gives the other end of; `None` if nobody waits.
    ///
    /// # Errors
    /// More wait than the kernel tells (about 1000), or it has no memory.
    pub(super) fn first(&mut self) -> io::Result<Option<PeerSocket>> {
        self.sequence = self.sequence.wrapping_add(1);
        rustix::net::send(&self.netlink, &request(self.listener, self.sequence), SendFlags::empty())?;
        // The kernel's answer is at most one page. Not kept: there are as many of these as modules.
        let mut answer = [0; 16 * 1024];
        loop {
            // The answer is there when the question is asked; what is left of an earlier one is passed over.
            let (length, _) = rustix::net::recv(&self.netlink, &mut answer[..], RecvFlags::DONTWAIT)?;
            match first_waiting(&answer[..length], self.sequence) {
                Answer::Other => {}
                Answer::Refused(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Answer::Malformed => return Err(io::ErrorKind::InvalidData.into()),
                Answer::Empty => return Ok(None),
                Answer::First(0) => return Ok(Some(PeerSocket::Gone)),
                Answer::First(inode) => return Ok(Some(PeerSocket::Inode(inode.into()))),
            }
        }
    }
}

fn request(listener: u32, sequence: u32) -> [u8; HEADER + REQUEST] {
    const REQUEST_FLAG: u16 = 1;
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST_FLAG.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([UNIX, 0, 0, 0]);
    // States: all.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(listener.to_ne_bytes());
    bytes.extend(SHOW_WAITING.to_ne_bytes());
    // No cookie: the inode number is ours, and we hold the socket.
    bytes.extend([0xff; 8]);
    let mut request = [0; HEADER + REQUEST];
    request.copy_from_slice(&bytes);
    request
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The answer to an earlier question.
    Other,
    Refused(i32),
    Malformed,
    Empty,
    /// An inode number; 0 for a socket whose process has closed it.
    First(u32),
}

fn first_waiting(message: &[u8], sequence: u32) -> Answer {
    const ERROR: u16 = 2;
    let parse = || -> Option<Answer> {
        let length = word(message, 0)? as usize;
        let body = message.get(HEADER..length)?;
        if word(message, 8)? != sequence {
            return Some(Answer::Other);
        }
        match half(message, 4)? {
            ERROR => Some(Answer::Refused(-i32::from_ne_bytes(body.get(..4)?.try_into().ok()?))),
            BY_FAMILY => {
                let mut attributes = body.get(MESSAGE..)?;
                while !attributes.is_empty() {
                    let (length, kind) = (usize::from(half(attributes, 0)?), half(attributes, 2)?);
                    let value = attributes.get(4..length)?;
                    if kind == WAITING {
                        return Some(word(value, 0).map_or(Answer::Empty, Answer::First));
                    }
                    attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
                }
                Some(Answer::Empty)
            }
            _ => None,
        }
    };
    parse().unwrap_or(Answer::Malformed)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use proptest::prelude::*;

    use super::*;

    fn socket(socket: &impl AsFd) -> PeerSocket {
        PeerSocket::Inode(rustix::fs::fstat(socket).expect("open").st_ino)
    }

    #[test]
    fn the_sockets_that_wait_are_told_in_the_order_of_accept() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).expect("free path");
        let mut waiting = Waiting::new(&listener).expect("this kernel tells");
        assert_eq!(waiting.first().expect("told"), None);
        let clients: Vec<_> = (0..50).map(|_| UnixStream::connect(&path).expect("listens")).collect();
        for client in clients {
            assert_eq!(waiting.first().expect("told"), Some(socket(&client)));
            let _ = listener.accept().expect("one waits");
        }
        assert_eq!(waiting.first().expect("told"), None);
        // Whoever left keeps its place in the line.
        drop(UnixStream::connect(&path).expect("listens"));
        let stays = UnixStream::connect(&path).expect("listens");
        assert_eq!(waiting.first().expect("told"), Some(PeerSocket::Gone));
        let _ = listener.accept().expect("the one that left");
        assert_eq!(waiting.first().expect("told"), Some(socket(&stays)));
    }

    #[test]
    fn more_than_the_kernel_tells_is_an_error_and_not_the_wrong_socket() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).expect("free path");
        rustix::net::listen(&listener, 1100).expect("a longer line");
        let mut waiting = Waiting::new(&listener).expect("this kernel tells");
        let connect = |_| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let client = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
            let address = rustix::net::SocketAddrUnix::new(&path).ok()?;
            rustix::net::connect(&client, &address).ok()?;
            Some(client)
        };
        let clients: Vec<_> = (0..1100).map_while(connect).collect();
        let mut told = 0;
        for client in &clients {
            match waiting.first() {
                Ok(first) => {
                    assert_eq!(first, Some(socket(client)));
                    told += 1;
                }
                Err(error) => assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::MSGSIZE.raw_os_error())),
            }
            let _ = listener.accept().expect("one waits");
        }
        assert!(told >= clients.len().min(900), "{told} of {}", clients.len());
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_parser_panic_or_loop(bytes in prop::collection::vec(any::<u8>(), 0..80), length in 0u32..90) {
            let mut message = bytes;
            if message.len() >= 12 {
                message[..4].copy_from_slice(&length.to_ne_bytes());
                message[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
                message[8..12].copy_from_slice(&7_u32.to_ne_bytes());
            }
            let _ = first_waiting(&message, 7);
        }
    }
}
