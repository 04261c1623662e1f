//! One HTTP/1.1 request over a stream, blocking.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Longest wait of a read or write: that of the Python SDK.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest answer read, in bytes.
const ANSWER_LIMIT: u64 = 4 * 1024 * 1024;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, decoded if it came in chunks.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; `null` if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The error text of a daemon (`message`) or a hub (`Message`); else the whole body
    /// as text.
    #[must_use]
    pub fn message(&self) -> String {
        let json = self.json();
        let message = ["message", "Message"].iter().find_map(|name| json[name].as_str());
        message.map_or_else(|| String::from_utf8_lossy(&self.body).into_owned(), str::to_owned)
    }

    /// The body of a success as JSON.
    ///
    /// # Errors
    /// Any other status than 2xx.
    pub fn into_json(self) -> anyhow::Result<Value> {
        anyhow::ensure!(
            (200..300).contains(&self.status),
            "HTTP {}: {}",
            self.status,
            self.message()
        );
        Ok(self.json())
    }
}

/// A connection to a daemon's socket, with time limits.
///
/// # Errors
/// It cannot be opened.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The bytes of a request that asks for the connection to be closed after the answer.
/// `headers` are whole lines without their ends.
#[must_use]
pub fn request(
    method: &str,
    target: &str,
    host: &str,
    headers: &[String],
    body: Option<&Value>,
) -> Vec<u8> {
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    let body = body.map(Value::to_string);
    if let Some(body) = &body {
        text.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    text.push_str("\r\n");
    text.push_str(body.as_deref().unwrap_or_default());
    text.into_bytes()
}

/// Reads the answer to a request made by [`request`]: all until the other side closes.
///
/// # Errors
/// The stream fails, or what came is no HTTP answer; `UnexpectedEof` if nothing came at
/// all.
pub fn read_answer(stream: impl Read) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    match stream.take(ANSWER_LIMIT).read_to_end(&mut bytes) {
        // A TLS or Unix peer that closes roughly after a whole answer is as good as one
        // that closes politely.
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
            ) =>
        {
            return Err(error);
        }
        _ => {}
    }
    if bytes.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer"));
    }
    parse(&bytes)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a whole HTTP answer"))
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let body = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    let (mut length, mut chunked) = (None, false);
    for line in lines {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse::<usize>().ok()?);
        }
        chunked |= name.eq_ignore_ascii_case("transfer-encoding")
            && value.trim().eq_ignore_ascii_case("chunked");
    }
    let body = match length {
        _ if chunked => unchunk(body)?,
        Some(length) => body.get(..length)?.to_vec(),
        None => body.to_vec(),
    };
    Some(Answer { status, body })
}

fn unchunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n")?;
        let length =
            usize::from_str_radix(std::str::from_utf8(&bytes[..end]).ok()?.trim(), 16).ok()?;
        bytes = &bytes[end + 2..];
        if length == 0 {
            return Some(body);
        }
        body.extend_from_slice(bytes.get(..length)?);
        bytes = bytes.get(length..)?.strip_prefix(b"\r\n")?;
    }
}

/// Sends a request over any stream and reads the answer.
///
/// # Errors
/// The stream fails, or what came is no HTTP answer.
pub fn exchange<S: Read + Write>(mut stream: S, request: &[u8]) -> io::Result<Answer> {
    let written = stream.write_all(request).and_then(|()| stream.flush());
    match read_answer(&mut stream) {
        // A server may refuse and close before it has read everything: its answer counts.
        Ok(answer) => Ok(answer),
        Err(error) => written.and(Err(error)),
    }
}

/// One call on a daemon's socket.
///
/// # Errors
/// The socket cannot be reached, or what came is no HTTP answer.
pub fn call(socket: &Path, method: &str, target: &str, body: Option<&Value>) -> io::Result<Answer> {
    exchange(connect(socket)?, &request(method, target, "localhost", &[], body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_with_a_length_in_chunks_and_until_the_end_are_read() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloGARBAGE",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nhello",
        ] {
            assert_eq!(
                read_answer(text.as_bytes()).unwrap(),
                Answer { status: 200, body: b"hello".to_vec() },
                "{text}"
            );
        }
    }

    #[test]
    fn a_cut_answer_is_an_error_and_never_a_short_body() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "HTTP/1.1 200 OK\r\n",
            "SSH-2.0",
        ] {
            assert_eq!(
                read_answer(text.as_bytes()).unwrap_err().kind(),
                io::ErrorKind::InvalidData,
                "{text}"
            );
        }
        assert_eq!(read_answer(&b""[..]).unwrap_err().to_string(), "closed without an answer");
    }

    #[test]
    fn a_refusal_keeps_the_daemons_words() {
        let answer = Answer { status: 403, body: br#"{"message":"forbidden"}"#.to_vec() };
        assert_eq!(answer.into_json().unwrap_err().to_string(), "HTTP 403: forbidden");
        let answer = Answer { status: 502, body: b"plain".to_vec() };
        assert_eq!(answer.message(), "plain");
    }
}
