//! Module logs in the framing of the container engine: 8 bytes of header (stream, three
//! zeros, big-endian length), then the text. Both runtimes answer in it, so that clients
//! read one format.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// The wanted lines of a log (wire facts, section 2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogQuery {
    /// True if the answer stays open and sends new lines until the module ends.
    pub follow: bool,
    /// Number of lines from the end; `None` means all lines.
    pub tail: Option<u64>,
    /// Earliest time of a line, seconds since the epoch; 0 means all lines.
    pub since: i64,
    /// Time before which lines are wanted, seconds since the epoch; `None` means no end.
    pub until: Option<i64>,
    /// True if each line begins with its time.
    pub timestamps: bool,
}

/// One of a process's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl OutputStream {
    const fn number(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }
}

/// Length of a frame's header.
pub(crate) const HEADER: usize = 8;

/// Frames `parts` as one piece of output.
pub(crate) fn frame(stream: OutputStream, parts: &[&[u8]]) -> Bytes {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = BytesMut::with_capacity(HEADER + length);
    bytes.put_slice(&[stream.number(), 0, 0, 0]);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    parts.iter().for_each(|part| bytes.put_slice(part));
    bytes.freeze()
}

/// Stream and payload length of a header; `None` for other bytes.
pub(crate) fn parse_header(header: &[u8; HEADER]) -> Option<(OutputStream, usize)> {
    let stream = match header[..4] {
        [1, 0, 0, 0] => OutputStream::Stdout,
        [2, 0, 0, 0] => OutputStream::Stderr,
        _ => return None,
    };
    let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    Some((stream, usize::try_from(length).ok()?))
}

/// A log on its way to a client: an HTTP body of frames. Dropping it ends the work behind
/// it.
#[derive(Debug)]
pub struct LogStream(UnsyncBoxBody<Bytes, io::Error>);

impl LogStream {
    pub(crate) fn from_engine(body: hyper::body::Incoming) -> Self {
        Self(body.map_err(io::Error::other).boxed_unsync())
    }

    /// Engine output of a container with a terminal comes bare; it is framed here.
    pub(crate) fn from_engine_terminal(body: hyper::body::Incoming) -> Self {
        let framed = body.map_err(io::Error::other).map_frame(|piece| match piece.into_data() {
            Ok(data) => Frame::data(frame(OutputStream::Stdout, &[&data])),
            Err(other) => other,
        });
        Self(framed.boxed_unsync())
    }

    pub(crate) fn from_channel(receiver: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self(ChannelBody(receiver).boxed_unsync())
    }

    /// The next piece of the stream; pieces need not be whole frames.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            match self.0.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Body for LogStream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

struct ChannelBody(mpsc::Receiver<io::Result<Bytes>>);

impl Body for ChannelBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_frames_header_gives_its_stream_and_length(error in any::<bool>(), text in prop::collection::vec(any::<u8>(), 0..200)) {
            let stream = if error { OutputStream::Stderr } else { OutputStream::Stdout };
            let bytes = frame(stream, &[b"a ", &text]);
            let header = bytes[..HEADER].try_into().expect("8 bytes");
            prop_assert_eq!(parse_header(&header), Some((stream, text.len() + 2)));
            prop_assert_eq!(&bytes[HEADER + 2..], &text[..]);
        }
    }
}
