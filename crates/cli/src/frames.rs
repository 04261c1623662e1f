//! The engine's log frames: 8 bytes of head (stream, three zeros, length), then the text.

/// Stream of a module that a piece of its log comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Error,
}

/// Takes frames apart. Text is passed on as it comes, also if its frame is not complete
/// yet, so nothing is held back and nothing grows. A log without frames (of a container
/// with a terminal) is passed on as it is.
#[derive(Debug)]
pub(crate) struct Frames(State);

#[derive(Debug)]
enum State {
    Head(Vec<u8>),
    Text { stream: Stream, left: usize },
    Plain,
}

impl Frames {
    pub(crate) const fn new() -> Self {
        Self(State::Head(Vec::new()))
    }

    /// Takes more bytes; calls `each` with what they hold.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Stream, &[u8])) {
        while !bytes.is_empty() {
            match &mut self.0 {
                State::Head(head) => {
                    let taken = (8 - head.len()).min(bytes.len());
                    head.extend_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    let fits = |(at, byte): (usize, &u8)| match at {
                        0 => *byte <= 2,
                        1..=3 => *byte == 0,
                        _ => true,
                    };
                    if !head.iter().enumerate().all(fits) {
                        let text = std::mem::take(head);
                        self.0 = State::Plain;
                        each(Stream::Out, &text);
                    } else if let &[stream, _, _, _, a, b, c, d] = head.as_slice() {
                        let left = u32::from_be_bytes([a, b, c, d]) as usize;
                        let stream = if stream == 2 { Stream::Error } else { Stream::Out };
                        self.0 = if left == 0 {
                            State::Head(Vec::new())
                        } else {
                            State::Text { stream, left }
                        };
                    }
                }
                State::Text { stream, left } => {
                    let taken = (*left).min(bytes.len());
                    each(*stream, &bytes[..taken]);
                    bytes = &bytes[taken..];
                    *left -= taken;
                    if *left == 0 {
                        self.0 = State::Head(Vec::new());
                    }
                }
                State::Plain => {
                    each(Stream::Out, bytes);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u8, text: &[u8]) -> Vec<u8> {
        let mut frame = vec![stream, 0, 0, 0];
        frame.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        frame.extend(text);
        frame
    }

    fn decode(bytes: &[u8], step: usize) -> (Vec<u8>, Vec<u8>) {
        let (mut out, mut error) = (Vec::new(), Vec::new());
        let mut frames = Frames::new();
        for part in bytes.chunks(step) {
            frames.push(part, |stream, text| match stream {
                Stream::Out => out.extend(text),
                Stream::Error => error.extend(text),
            });
        }
        (out, error)
    }

    #[test]
    fn frames_are_told_apart_however_they_are_cut() {
        let bytes =
            [frame(1, b"one\n"), frame(2, b"two\n"), frame(1, b""), frame(1, b"three\n")].concat();
        for step in 1..=bytes.len() {
            assert_eq!(
                decode(&bytes, step),
                (b"one\nthree\n".to_vec(), b"two\n".to_vec()),
                "in steps of {step}"
            );
        }
    }

    #[test]
    fn a_log_without_frames_passes_as_it_is() {
        for step in [1, 3, 100] {
            assert_eq!(decode(b"hello from a terminal\n", step).0, b"hello from a terminal\n");
        }
    }
}
