//! Messages between two processes of a daemon: each with a number, a body within bounds,
//! and a few descriptors.
//!
//! The kernel keeps the messages of a `SOCK_SEQPACKET` socket apart, so nothing is
//! searched for in a stream. A message that breaks a bound is an error of the other side,
//! after which the socket is not used any more.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// Longest body of a message, in bytes. What is longer goes into a memory file.
pub const MAX_BODY: usize = 64 * 1024;

/// Most descriptors of one message.
pub const MAX_FILES: usize = 4;

/// Bytes before the body: the number.
const HEAD: usize = 8;

/// The number of a message that asks only whether the other side is there.
pub(crate) const PING: u64 = 0;

/// A message as it was received.
#[derive(Debug)]
pub struct Message {
    /// Links an answer to its question.
    pub number: u64,
    /// The question or answer.
    pub body: Vec<u8>,
    /// The descriptors that came with it.
    pub files: Vec<OwnedFd>,
}

/// Failure to receive a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The other side has ended.
    #[error("the other process has ended")]
    Ended,
    /// The message breaks a bound.
    #[error("the other process sent a message {0}")]
    Foreign(&'static str),
    /// The kernel refused.
    #[error("cannot receive from the other process")]
    Io(#[source] io::Error),
}

/// Two ends of a socket for messages, both non-blocking and closed on exec.
///
/// # Errors
/// The kernel has no more descriptors.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends one message.
///
/// # Errors
/// The message is too large; the other side has ended; its queue is full
/// ([`io::ErrorKind::WouldBlock`]).
pub fn send(
    socket: impl AsFd,
    number: u64,
    body: &[u8],
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if body.len() > MAX_BODY || files.len() > MAX_FILES {
        let text = "a message between the daemon's processes is too long";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(files));
    }
    let head = number.to_be_bytes();
    let pieces = [IoSlice::new(&head), IoSlice::new(body)];
    rustix::net::sendmsg(socket, &pieces, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message.
///
/// # Errors
/// See [`ReceiveError`].
pub fn receive(socket: impl AsFd) -> Result<Message, ReceiveError> {
    let mut bytes = vec![0; HEAD + MAX_BODY + 1];
    // Room for one more than allowed, so that too many are told from enough.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES + 1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    let received = received.map_err(|errno| match errno {
        Errno::CONNRESET | Errno::PIPE => ReceiveError::Ended,
        other => ReceiveError::Io(other.into()),
    })?;
    let files: Vec<OwnedFd> = ancillary
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => files.collect(),
            _ => Vec::new(),
        })
        .collect();
    if received.bytes == 0 {
        return Err(ReceiveError::Ended);
    }
    if received.bytes > HEAD + MAX_BODY || received.flags.contains(ReturnFlags::TRUNC) {
        return Err(ReceiveError::Foreign("that is too long"));
    }
    if files.len() > MAX_FILES || received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(ReceiveError::Foreign("with too many descriptors"));
    }
    let Some((head, body)) = bytes[..received.bytes].split_first_chunk::<HEAD>() else {
        return Err(ReceiveError::Foreign("without a number"));
    };
    Ok(Message { number: u64::from_be_bytes(*head), body: body.to_vec(), files })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(socket: &OwnedFd, bytes: &[u8]) {
        rustix::net::send(socket, bytes, SendFlags::NOSIGNAL).expect("sent");
    }

    #[test]
    fn a_message_arrives_with_its_descriptors_and_one_that_breaks_a_bound_is_refused() {
        let (ours, theirs) = pair().expect("pair");
        let file = std::fs::File::open("/dev/null").expect("exists");
        send(&ours, 7, b"body", &[file.as_fd(); MAX_FILES]).expect("sent");
        let message = receive(&theirs).expect("received");
        assert_eq!((message.number, &message.body[..]), (7, &b"body"[..]));
        assert_eq!(message.files.len(), MAX_FILES);
        send(&ours, 8, &[1; MAX_BODY], &[]).expect("the longest");
        assert_eq!(receive(&theirs).expect("received").body.len(), MAX_BODY);

        let too_long = send(&ours, 9, &[1; MAX_BODY + 1], &[]).expect_err("refused here");
        assert_eq!(too_long.kind(), io::ErrorKind::InvalidInput);
        for (bytes, why) in [
            (vec![0; HEAD + MAX_BODY + 1], "that is too long"),
            (vec![0; 3 * MAX_BODY], "that is too long"),
            (vec![0; HEAD - 1], "without a number"),
        ] {
            raw(&ours, &bytes);
            let refused = receive(&theirs).expect_err("refused there");
            assert!(matches!(refused, ReceiveError::Foreign(found) if found == why), "{refused}");
        }
        let files = [file.as_fd(); MAX_FILES + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES + 1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&files));
        let head = [IoSlice::new(&[0; HEAD])];
        rustix::net::sendmsg(&ours, &head, &mut ancillary, SendFlags::NOSIGNAL).expect("sent");
        let refused = receive(&theirs).expect_err("refused there");
        assert!(matches!(refused, ReceiveError::Foreign("with too many descriptors")));

        let nothing = receive(&theirs).expect_err("nothing is there");
        assert!(
            matches!(nothing, ReceiveError::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
        );
        drop(ours);
        assert!(matches!(receive(&theirs), Err(ReceiveError::Ended)));
    }

    proptest! {
        /// Whatever bytes come, they are a message within bounds or an error.
        #[test]
        fn any_bytes_are_a_message_or_refused(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
            let (ours, theirs) = pair().expect("pair");
            raw(&ours, &bytes);
            match receive(&theirs) {
                Ok(message) => {
                    prop_assert_eq!(&message.number.to_be_bytes()[..], &bytes[..HEAD]);
                    prop_assert_eq!(&message.body[..], &bytes[HEAD..]);
                }
                Err(error) => {
                    prop_assert!(bytes.len() < HEAD, "{}", error);
                }
            }
        }
    }
}
