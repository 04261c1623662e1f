//! One HTTP call to the engine over its Unix socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::EngineError;

/// Longest answer that is held in memory.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// Longest error message that is passed on.
const MAX_MESSAGE: usize = 1024;

/// Time to the answer's headers, and for a JSON answer to its end.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Characters that stay unescaped in a path segment or query value.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A path with a query, of which every variable part has been escaped.
#[derive(Debug, Clone)]
pub(super) struct Target {
    text: String,
    queried: bool,
}

impl Target {
    /// A path of fixed text.
    pub(super) fn new(path: &'static str) -> Self {
        Self { text: path.to_owned(), queried: false }
    }

    /// Appends one segment from outside, then fixed text.
    pub(super) fn segment(mut self, segment: &str, then: &'static str) -> Self {
        self.text.push('/');
        self.text.extend(utf8_percent_encode(segment, UNRESERVED));
        self.text.push_str(then);
        self
    }

    /// Appends a query parameter.
    pub(super) fn query(mut self, name: &'static str, value: &str) -> Self {
        self.text.push(if self.queried { '&' } else { '?' });
        self.queried = true;
        self.text.push_str(name);
        self.text.push('=');
        self.text.extend(utf8_percent_encode(value, UNRESERVED));
        self
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

#[derive(Debug, Clone)]
pub(super) struct Connector {
    socket: Arc<Path>,
}

/// A call that is about to be made. Not printable: body and credentials hold secrets.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) target: Target,
    pub(super) body: Option<Value>,
    pub(super) registry_auth: Option<String>,
    /// Time limit to the answer's headers, and for [`Connector::json`] to its end.
    pub(super) limit: Duration,
}

impl Call {
    pub(super) fn new(method: Method, target: Target) -> Self {
        Self { method, target, body: None, registry_auth: None, limit: ANSWER_LIMIT }
    }

    pub(super) fn get(target: Target) -> Self {
        Self::new(Method::GET, target)
    }

    pub(super) fn post(target: Target) -> Self {
        Self::new(Method::POST, target)
    }
}

impl Connector {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket: socket.into() }
    }

    /// Makes a call on a connection of its own: calls are rare and a local connection
    /// costs less than the care for a pool of connections that an engine restart breaks.
    pub(super) async fn send(&self, call: Call) -> Result<Response<Incoming>, EngineError> {
        let limit = call.limit;
        let answer = timeout(limit, self.send_unlimited(call))
            .await
            .map_err(|_| EngineError::Timeout { limit })??;
        if answer.status().is_success() || answer.status() == http::StatusCode::NOT_MODIFIED {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let body = timeout(limit, collect(answer.into_body()))
            .await
            .map_err(|_| EngineError::Timeout { limit })??;
        let message = error_message(&body);
        // Podman's word for one that is removed while it is asked about.
        let status =
            if status == 500 && message.ends_with("no such container") { 404 } else { status };
        Err(EngineError::Answer { status, message })
    }

    async fn send_unlimited(&self, call: Call) -> Result<Response<Incoming>, EngineError> {
        let stream = UnixStream::connect(&*self.socket)
            .await
            .map_err(|source| EngineError::Connect { socket: self.socket.to_path_buf(), source })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends when the answer is read or dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "engine connection ended");
            }
        });
        let mut request = Request::builder()
            .method(call.method)
            .uri(call.target.as_str())
            .header(HOST, "localhost")
            .header(USER_AGENT, concat!("edgekeep/", env!("CARGO_PKG_VERSION")));
        if let Some(auth) = call.registry_auth {
            let mut auth = http::HeaderValue::from_str(&auth)
                .map_err(|error| EngineError::Request { source: error.into() })?;
            auth.set_sensitive(true);
            request = request.header("x-registry-auth", auth);
        }
        let body = match call.body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let request =
            request.body(Full::new(body)).map_err(|source| EngineError::Request { source })?;
        Ok(sender.send_request(request).await?)
    }

    /// Makes a call whose answer is JSON.
    pub(super) async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, EngineError> {
        let limit = call.limit;
        timeout(limit, self.json_unlimited(call))
            .await
            .map_err(|_| EngineError::Timeout { limit })?
    }

    async fn json_unlimited<T: DeserializeOwned>(&self, call: Call) -> Result<T, EngineError> {
        let answer = self.send(call).await?;
        // Podman leaves the type out in places; another type is another kind of answer.
        let kind = answer.headers().get(CONTENT_TYPE).map(http::HeaderValue::as_bytes);
        if kind.is_some_and(|kind| !kind.starts_with(b"application/json")) {
            return Err(EngineError::NotJson);
        }
        let body = collect(answer.into_body()).await?;
        serde_json::from_slice(&body).map_err(|_| EngineError::NotJson)
    }

    /// Makes a call whose answer says nothing beyond its status.
    pub(super) async fn status_only(&self, call: Call) -> Result<(), EngineError> {
        self.send(call).await.map(drop)
    }
}

async fn collect(mut body: Incoming) -> Result<Bytes, EngineError> {
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            if all.len() + data.len() > MAX_ANSWER {
                return Err(EngineError::TooLong { limit: MAX_ANSWER });
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(all.freeze())
}

/// The engine's own words: the member `message`, else the text itself.
fn error_message(body: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let text = match json.as_ref().and_then(|json| json["message"].as_str()) {
        Some(message) => message.into(),
        None => String::from_utf8_lossy(body),
    };
    text.trim().chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect()
}

/// Splits a body into lines, each one JSON value, as the engine's streams are written.
#[derive(Debug)]
pub(super) struct JsonLines {
    body: Incoming,
    buffer: BytesMut,
}

/// Longest line of a stream.
const MAX_LINE: usize = 1024 * 1024;

impl JsonLines {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, buffer: BytesMut::new() }
    }

    /// The next value; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, EngineError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return serde_json::from_slice(&line).map(Some).map_err(|_| EngineError::NotJson);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(EngineError::TooLong { limit: MAX_LINE });
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None if self.buffer.trim_ascii().is_empty() => return Ok(None),
                None => self.buffer.extend_from_slice(b"\n"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whatever_a_segment_holds_it_stays_one_segment() {
        let target = Target::new("/containers")
            .segment("../images/a?b#c%2f é", "/json")
            .query("filters", "{\"a\":1}&x");
        assert_eq!(
            target.as_str(),
            "/containers/..%2Fimages%2Fa%3Fb%23c%252f%20%C3%A9/json?filters=%7B%22a%22%3A1%7D%26x"
        );
    }

    #[test]
    fn an_error_says_what_the_engine_said_without_control_characters() {
        assert_eq!(error_message(br#"{"message":"No such container: x"}"#), "No such container: x");
        assert_eq!(error_message(b"plain\x1b[31m text\n"), "plain[31m text");
        assert_eq!(error_message(&[b'a'; 5000]).len(), MAX_MESSAGE);
    }

    proptest! {
        #[test]
        fn a_target_has_no_more_slashes_or_marks_than_its_fixed_text(segment in "\\PC{0,20}", value in "\\PC{0,20}") {
            let target = Target::new("/a").segment(&segment, "/b").query("q", &value);
            let count = |c| target.as_str().matches(c).count();
            prop_assert_eq!((count('/'), count('?'), count('#'), count('&')), (3, 1, 0, 0));
            prop_assert!(target.as_str().is_ascii());
        }
    }
}
