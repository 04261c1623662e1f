//! Sockets that wait to be accepted: the kernel's own list, asked over netlink
//! (`sock_diag`, no privilege needed).
//!
//! An accepted connection does not tell which socket its peer is, and the peer may be in
//! another network namespace, where it cannot be asked for. The list of a listening
//! socket's waiting connections does tell, in the order of `accept`. About 10 µs a
//! question, whose answer has all that wait.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use crate::peer::PeerSocket;

/// `SOCK_DIAG_BY_FAMILY`, `AF_UNIX`, `UDIAG_SHOW_ICONS`, `UNIX_DIAG_ICONS` of
/// `linux/{sock_diag,unix_diag}.h`.
const BY_FAMILY: u16 = 20;
const UNIX: u8 = 1;
const SHOW_WAITING: u32 = 0x08;
const WAITING: u16 = 3;

/// So many may wait that the kernel tells all of them: its answer is at most one page.
pub(super) const TELLABLE: i32 = 900;

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
    /// The kernel does not tell: built without `UNIX_DIAG`, or the socket belongs to
    /// another network namespace.
    pub(super) fn new(listener: &impl AsFd) -> io::Result<Self> {
        let inode = rustix::fs::fstat(listener)?.st_ino;
        let inode =
            u32::try_from(inode).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::SOCK_DIAG);
        let netlink =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        let mut waiting = Self { netlink, listener: inode, sequence: 0 };
        match waiting.all(&mut VecDeque::new()) {
            // Whoever had a socket of the service manager's overflow before the daemon
            // started gets no other service for it.
            Err(error) if error.raw_os_error() == Some(Errno::MSGSIZE.raw_os_error()) => {
                Ok(waiting)
            }
            asked => asked.map(|()| waiting),
        }
    }

    /// Adds the sockets of which the next calls of `accept` give the other ends, in that
    /// order.
    ///
    /// # Errors
    /// More wait than the kernel tells (about 1000), or it has no memory.
    pub(super) fn all(&mut self, sockets: &mut VecDeque<PeerSocket>) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        rustix::net::send(
            &self.netlink,
            &request(self.listener, self.sequence),
            SendFlags::empty(),
        )?;
        // The kernel's answer is at most one page. Not kept: there are as many of these
        // as modules.
        let mut answer = [0; 16 * 1024];
        loop {
            // The answer is there when the question is asked; what is left of an earlier
            // one is passed over.
            let (length, _) =
                rustix::net::recv(&self.netlink, &mut answer[..], RecvFlags::DONTWAIT)?;
            match waiting_in(&answer[..length], self.sequence) {
                Answer::Other => {}
                Answer::Refused(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Answer::Malformed => return Err(io::ErrorKind::InvalidData.into()),
                Answer::Waiting(inodes) => {
                    sockets.extend(inodes.chunks_exact(4).filter_map(|inode| word(inode, 0)).map(
                        |inode| match inode {
                            // Its process has closed it.
                            0 => PeerSocket::Gone,
                            inode => PeerSocket::Inode(inode.into()),
                        },
                    ));
                    return Ok(());
                }
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
enum Answer<'a> {
    /// The answer to an earlier question.
    Other,
    Refused(i32),
    Malformed,
    /// Inode numbers of four bytes; 0 for a socket whose process has closed it.
    Waiting(&'a [u8]),
}

fn waiting_in(message: &[u8], sequence: u32) -> Answer<'_> {
    const ERROR: u16 = 2;
    let parse = || -> Option<Answer<'_>> {
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
                        return value.len().is_multiple_of(4).then_some(Answer::Waiting(value));
                    }
                    attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
                }
                Some(Answer::Waiting(&[]))
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

    fn told(waiting: &mut Waiting) -> Vec<PeerSocket> {
        let mut sockets = VecDeque::new();
        waiting.all(&mut sockets).expect("told");
        sockets.into()
    }

    #[test]
    fn the_sockets_that_wait_are_told_in_the_order_of_accept() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).expect("free path");
        let mut waiting = Waiting::new(&listener).expect("this kernel tells");
        assert_eq!(told(&mut waiting), []);
        let clients: Vec<_> =
            (0..50).map(|_| UnixStream::connect(&path).expect("listens")).collect();
        let sockets: Vec<_> = clients.iter().map(socket).collect();
        for number in 0..50 {
            assert_eq!(told(&mut waiting), sockets[number..]);
            let (accepted, _) = listener.accept().expect("one waits");
            // What is written at one end is read at the other: the order is that of
            // `accept`.
            io::Write::write_all(&mut &clients[number], &[7]).expect("open");
            io::Read::read_exact(&mut &accepted, &mut [0]).expect("its other end");
        }
        assert_eq!(told(&mut waiting), []);
        // Whoever left keeps its place in the line.
        drop(UnixStream::connect(&path).expect("listens"));
        let stays = UnixStream::connect(&path).expect("listens");
        assert_eq!(told(&mut waiting), [PeerSocket::Gone, socket(&stays)]);
    }

    #[test]
    fn as_many_as_may_wait_are_told() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).expect("free path");
        rustix::net::listen(&listener, TELLABLE).expect("a line of this length");
        let mut waiting = Waiting::new(&listener).expect("this kernel tells");
        let clients: Vec<_> = (0..2 * TELLABLE).map_while(|_| connect(&path)).collect();
        assert!(clients.len() > TELLABLE as usize, "{}", clients.len());
        assert_eq!(told(&mut waiting), clients.iter().map(socket).collect::<Vec<_>>());
    }

    #[test]
    fn more_than_the_kernel_tells_is_an_error_and_not_the_wrong_socket() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).expect("free path");
        rustix::net::listen(&listener, 3000).expect("a longer line");
        crate::lifecycle::raise_descriptor_limit();
        let clients: Vec<_> = (0..3000).map_while(|_| connect(&path)).collect();
        // Full before the daemon starts.
        let mut waiting = Waiting::new(&listener).expect("this kernel tells");
        let error = waiting.all(&mut VecDeque::new()).expect_err("too many");
        assert_eq!(error.raw_os_error(), Some(Errno::MSGSIZE.raw_os_error()));
        for _ in 0..2200 {
            let _ = listener.accept().expect("one waits");
        }
        assert_eq!(told(&mut waiting), clients[2200..].iter().map(socket).collect::<Vec<_>>());
    }

    fn connect(path: &std::path::Path) -> Option<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let client =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
        let address = rustix::net::SocketAddrUnix::new(path).ok()?;
        rustix::net::connect(&client, &address).ok()?;
        Some(client)
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
            let _ = waiting_in(&message, 7);
        }
    }
}
