//! HTTP/1.1 over a Unix socket, with a small pool of connections that are kept.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use edgekeep_base::lock::lock;

use bytes::{Bytes, BytesMut};
use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use crate::{ErrorBody, ErrorCode};

/// Connections one client holds at most; below every server's limit per uid. Further
/// calls wait for one.
const CONNECTIONS: usize = 6;
/// Largest answer that is read.
const ANSWER_LIMIT: usize = 8 << 20;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The error of a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nothing answers at the socket.
    #[error("cannot connect to {}; is the daemon running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The error of the kernel.
        #[source]
        source: std::io::Error,
    },
    /// No whole answer within the time limit.
    #[error("no answer from {} within {} s", path.display(), limit.as_secs())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// The limit.
        limit: Duration,
    },
    /// The service answered with an error.
    #[error("{message} (status {})", status.as_u16())]
    Status {
        /// The HTTP status.
        status: StatusCode,
        /// The service's message.
        message: String,
        /// The cause by a stable name, if the service tells one.
        code: Option<ErrorCode>,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("connection to {} failed", path.display())]
    Transport {
        /// The socket.
        path: PathBuf,
        /// The error of the connection.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not what the API promises.
    #[error("unexpected answer from {}: {what}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// The fault of the answer, in words.
        what: String,
    },
}

impl ClientError {
    /// The HTTP status, if the service answered.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

struct Pool {
    path: PathBuf,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    permits: Semaphore,
}

/// A client of one Unix socket. Clones share the pool, so that a process stays below the
/// connections that a service lets one uid have, however it varies header and time limit.
#[derive(Clone)]
pub struct Client {
    pool: Arc<Pool>,
    header: Option<(HeaderName, HeaderValue)>,
    timeout: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Client").field(&self.pool.path).finish()
    }
}

impl Client {
    /// A client of the service behind `socket`. Nothing is opened before the first call.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let pool = Pool {
            path: socket.into(),
            idle: Mutex::new(Vec::new()),
            permits: Semaphore::new(CONNECTIONS),
        };
        Self { pool: Arc::new(pool), header: None, timeout: DEFAULT_TIMEOUT }
    }

    /// The same client on the same connections, with a header in each request.
    #[must_use]
    pub fn with_header(&self, name: HeaderName, value: HeaderValue) -> Self {
        Self { header: Some((name, value)), ..self.clone() }
    }

    /// The same client on the same connections, with another limit for a whole call (30 s
    /// by default).
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.pool.path
    }

    /// Sends `body` as JSON and reads a JSON answer.
    ///
    /// # Errors
    /// See [`ClientError`]; any status that is not 2xx is one.
    pub async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path_and_query: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let answer = self.call_raw(method, path_and_query, body).await?;
        serde_json::from_slice(&answer).map_err(|error| self.unexpected(error.to_string()))
    }

    /// Sends `body` as JSON and ignores what a successful answer holds.
    ///
    /// # Errors
    /// See [`ClientError`]; any status that is not 2xx is one.
    pub async fn call_empty<B: Serialize>(
        &self,
        method: Method,
        path_and_query: &str,
        body: Option<&B>,
    ) -> Result<(), ClientError> {
        self.call_raw(method, path_and_query, body).await.map(drop)
    }

    /// Sends a request without a body and reads an answer that is text.
    ///
    /// # Errors
    /// See [`ClientError`]; any status that is not 2xx is one.
    pub async fn call_text(
        &self,
        method: Method,
        path_and_query: &str,
    ) -> Result<String, ClientError> {
        let answer = self.call_raw(method, path_and_query, None::<&()>).await?;
        String::from_utf8(answer.into()).map_err(|error| self.unexpected(error.to_string()))
    }

    /// Sends a request and returns the answer whatever its status, with its body as a
    /// stream on a connection of its own.
    ///
    /// # Errors
    /// If the socket cannot be reached or a status other than 2xx came.
    pub async fn stream(
        &self,
        method: Method,
        path_and_query: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let exchange = async {
            let mut sender = self.connect().await?;
            let request = self.request(method, path_and_query, body)?;
            let answer = sender.send_request(request).await.map_err(|error| self.broken(error))?;
            if answer.status().is_success() {
                return Ok(answer);
            }
            let status = answer.status();
            let bytes = self.read(answer.into_body()).await?;
            Err(refusal(status, &bytes))
        };
        self.limited(exchange).await
    }

    async fn call_raw<B: Serialize>(
        &self,
        method: Method,
        path_and_query: &str,
        body: Option<&B>,
    ) -> Result<Bytes, ClientError> {
        let body = match body {
            Some(body) => {
                Bytes::from(serde_json::to_vec(body).map_err(|error| self.broken(error))?)
            }
            None => Bytes::new(),
        };
        let request = self.request(method, path_and_query, body)?;
        self.limited(self.exchange(request)).await
    }

    async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<Bytes, ClientError> {
        let _permit = self.pool.permits.acquire().await.map_err(|error| self.broken(error))?;
        loop {
            let kept = self.idle().pop();
            let was_kept = kept.is_some();
            let mut sender = match kept {
                // Waits until the connection has digested the last answer; fails if the
                // service closed it meanwhile.
                Some(mut sender) => match sender.ready().await {
                    Ok(()) => sender,
                    Err(_) => continue,
                },
                None => self.connect().await?,
            };
            match sender.try_send_request(request).await {
                Ok(answer) => {
                    let status = answer.status();
                    let bytes = self.read(answer.into_body()).await?;
                    if !sender.is_closed() {
                        self.idle().push(sender);
                    }
                    if status.is_success() {
                        return Ok(bytes);
                    }
                    return Err(refusal(status, &bytes));
                }
                // A kept connection may have been closed while idle. Only a request that
                // was not sent is sent again.
                Err(mut error) => match error.take_message() {
                    Some(unsent) if was_kept => request = unsent,
                    _ => return Err(self.broken(error.into_error())),
                },
            }
        }
    }

    fn request(
        &self,
        method: Method,
        path_and_query: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let host = self
            .pool
            .path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("localhost")
            .to_owned();
        let mut request =
            Request::builder().method(method).uri(path_and_query).header(header::HOST, host);
        if let Some((name, value)) = &self.header {
            request = request.header(name, value);
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request.body(Full::new(body)).map_err(|error| self.broken(error))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let stream = UnixStream::connect(&self.pool.path)
            .await
            .map_err(|source| ClientError::Connect { path: self.pool.path.clone(), source })?;
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        // Its end is seen by the sender; there is nobody else to tell.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    async fn read(&self, mut body: Incoming) -> Result<Bytes, ClientError> {
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(|error| self.broken(error))?.into_data() {
                if bytes.len() + data.len() > ANSWER_LIMIT {
                    return Err(self.unexpected(format!("more than {ANSWER_LIMIT} bytes")));
                }
                bytes.extend_from_slice(&data);
            }
        }
        Ok(bytes.freeze())
    }

    async fn limited<T>(
        &self,
        exchange: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::time::timeout(self.timeout, exchange).await.unwrap_or_else(|_| {
            Err(ClientError::Timeout { path: self.pool.path.clone(), limit: self.timeout })
        })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<SendRequest<Full<Bytes>>>> {
        lock(&self.pool.idle)
    }

    fn broken(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Transport { path: self.pool.path.clone(), source: error.into() }
    }

    fn unexpected(&self, what: String) -> ClientError {
        ClientError::Answer { path: self.pool.path.clone(), what }
    }
}

/// An answer with a status other than 2xx. A body that is not ours is kept as text, cut.
fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => ClientError::Status { status, message: body.message, code: body.code },
        Err(_) => {
            let message = String::from_utf8_lossy(body).chars().take(200).collect();
            ClientError::Status { status, message, code: None }
        }
    }
}
