//! One HTTP/1.1 request over a Unix socket, blocking, with every byte under the caller's
//! control.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Longest wait of a read or write: longer than any single call of a device may take.
const PATIENCE: Duration = Duration::from_secs(100);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Headers, with names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body, decoded if it came in chunks.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; `null` if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The message of an error answer.
    ///
    /// # Panics
    /// The body is not exactly `{"message": ...}`.
    #[must_use]
    pub fn message(&self) -> String {
        let json = self.json();
        let message = json
            .as_object()
            .filter(|members| members.len() == 1)
            .and_then(|members| members["message"].as_str());
        message
            .unwrap_or_else(|| {
                panic!("status {} without an error body: {}", self.status, self.text())
            })
            .to_owned()
    }

    /// The body of an answer that must have `status`.
    ///
    /// # Panics
    /// It has another one.
    #[track_caller]
    #[must_use]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }

    /// Asserts `status` and that the error's message contains `part`.
    ///
    /// # Panics
    /// It is otherwise.
    #[track_caller]
    pub fn expect_error(&self, status: u16, part: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        let message = self.message();
        assert!(message.contains(part), "{message:?} does not contain {part:?}");
    }
}

/// Sends one request with a JSON body, or none, and reads the answer.
///
/// # Errors
/// The socket cannot be reached, or what came is no HTTP answer.
pub fn call(socket: &Path, method: &str, target: &str, body: Option<&Value>) -> io::Result<Answer> {
    let body = body.map(Value::to_string);
    let headers: &[(&str, &str)] =
        if body.is_some() { &[("Content-Type", "application/json")] } else { &[] };
    http(socket, method, target, headers, body.as_deref().unwrap_or_default().as_bytes())
}

/// Sends one request and reads the answer. `Content-Length` is added when there is a
/// body.
///
/// # Errors
/// The socket cannot be reached, or what came is no HTTP answer.
pub fn http(
    socket: &Path,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let mut stream = connect(socket)?;
    stream.write_all(&request(method, target, headers, body))?;
    read_answer(&mut stream)
}

/// A connection with time limits.
///
/// # Errors
/// The socket cannot be reached.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The bytes of a request after whose answer the connection is closed.
#[must_use]
pub fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text =
        format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Reads all until the other side closes, as one answer.
///
/// # Errors
/// The stream fails before anything came, or what came is no HTTP answer.
pub fn read_answer(stream: &mut UnixStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes)
        && (bytes.is_empty() || error.kind() != io::ErrorKind::ConnectionReset)
    {
        return Err(error);
    }
    if bytes.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer"));
    }
    let odd = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("no HTTP answer: {}", String::from_utf8_lossy(&bytes)),
        )
    };
    parse(&bytes).ok_or_else(odd)
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let body = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    let headers: BTreeMap<String, String> = lines
        .map(|line| {
            line.split_once(':')
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect::<Option<_>>()?;
    let body = match headers.get("content-length") {
        Some(length) => body.get(..length.parse().ok()?)?.to_vec(),
        None if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") => {
            unchunk(body)?
        }
        None => body.to_vec(),
    };
    Some(Answer { status, headers, body })
}

fn unchunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n")?;
        // Plain hex: what existing clients can read.
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).ok()?, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(bytes.get(end + 2..end + 2 + size)?);
        bytes = bytes.get(end + 4 + size..)?;
    }
}
