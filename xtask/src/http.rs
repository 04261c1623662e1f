//! One HTTP/1.1 request over a Unix socket, blocking: enough for a container engine and
//! for our own daemons.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

/// A body to send.
#[derive(Clone, Copy)]
pub(crate) enum Body<'a> {
    Empty,
    Json(&'a Value),
    Tar(&'a [u8]),
}

/// Sends a request and returns the status and the whole body.
pub(crate) fn call(
    socket: &Path,
    method: &str,
    target: &str,
    body: Body<'_>,
) -> anyhow::Result<(u16, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    let text;
    let (media_type, body): (&str, &[u8]) = match body {
        Body::Empty => ("", b""),
        Body::Json(value) => {
            text = value.to_string();
            ("Content-Type: application/json\r\n", text.as_bytes())
        }
        Body::Tar(bytes) => ("Content-Type: application/x-tar\r\n", bytes),
    };
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{media_type}Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("no answer to {method} {target}"))?;
    parse(&answer).with_context(|| format!("a broken answer to {method} {target}"))
}

/// Sends a request that must succeed and returns its JSON; `null` if there is none.
pub(crate) fn json(
    socket: &Path,
    method: &str,
    target: &str,
    body: Body<'_>,
) -> anyhow::Result<Value> {
    let (status, body) = call(socket, method, target, body)?;
    if !(200..300).contains(&status) {
        bail!("{method} {target}: HTTP {status}: {}", String::from_utf8_lossy(&body).trim());
    }
    Ok(serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn parse(bytes: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?.to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = &bytes[end + 4..];
    let body =
        if head.contains("\r\ntransfer-encoding: chunked") { joined(body)? } else { body.to_vec() };
    Some((status, body))
}

/// A body that came in chunks, in one piece.
fn joined(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n")?;
        let length = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).ok()?, 16).ok()?;
        bytes = &bytes[end + 2..];
        if length == 0 {
            return Some(body);
        }
        body.extend_from_slice(bytes.get(..length)?);
        bytes = bytes.get(length + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_answers_are_read() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        let chunked = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n";
        assert_eq!(parse(plain), Some((200, b"hi".to_vec())));
        assert_eq!(parse(chunked), Some((201, b"hi".to_vec())));
    }

    #[test]
    fn a_cut_answer_is_none() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhi"), None);
    }
}
