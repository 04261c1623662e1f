//! The client: one call, one connection.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use edgekeep_core::authority::Authority;
use edgekeep_core::credentials::{Certificate, each_once};
use edgekeep_tls::{ClientIdentity, ConnectError, Connector, Proxy, Trust, of_tls};
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::answer::{ANSWER_LIMIT, Answer, Verdict};
use crate::attributes::CsrAttributes;
use crate::chain::{Pool, checked};
use crate::csr::request_key;
use crate::error::{AnswerError, EstError};

/// Time for one call unless the caller says otherwise.
const USUAL_LIMIT: Duration = Duration::from_secs(70);
/// Length of the lines of a request's base64.
const LINE: usize = 64;
/// Names of roots, for people.
const GIVEN: &str = "the configured roots (trusted_certs)";
const SERVERS: &str = "the roots of the server's own list of CAs";

/// The base URL of an EST server: `https://host[:port]/.well-known/est[/label]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EstUrl {
    authority: Authority,
    path: String,
}

/// A text that is no base URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected an https URL such as https://est.example/.well-known/est, without user, query and fragment"
)]
pub struct UrlError;

impl std::str::FromStr for EstUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let rest = text.strip_prefix("https://").ok_or(UrlError)?;
        let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
        let plain =
            |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%/".contains(&byte);
        let path = path.trim_end_matches('/');
        if !path.bytes().all(plain) || path.split('/').any(|it| it == ".." || it == ".") {
            return Err(UrlError);
        }
        let path = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Self { authority: host.parse().map_err(|_| UrlError)?, path })
    }
}

impl EstUrl {
    /// Returns host and port.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }
}

/// Name and password.
#[derive(Clone)]
pub struct Basic(Zeroizing<String>);

impl Basic {
    /// Puts name and password together. Neither is printed.
    #[must_use]
    pub fn new(username: &str, password: &str) -> Self {
        let pair = Zeroizing::new(format!("{username}:{password}"));
        Self(Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes()))))
    }
}

impl std::fmt::Debug for Basic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Basic(..)")
    }
}

/// Outcome of a request for a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enrolment {
    /// The certificate and those above it, up to a root: checked.
    Issued(Vec<Certificate>),
    /// Somebody must approve it; the same request is to be sent again after this time.
    Later(Duration),
}

/// A client of one EST server.
#[derive(Debug)]
pub struct Est {
    url: EstUrl,
    trust: Trust,
    identity: Option<ClientIdentity>,
    basic: Option<Basic>,
    proxy: Option<Proxy>,
    limit: Duration,
}

impl Est {
    /// A client that believes in `trust` alone: with [`Trust::System`], the server's own
    /// list of CAs says what its certificates chain to (RFC 7030, section 4.1.1).
    #[must_use]
    pub fn new(url: EstUrl, trust: Trust) -> Self {
        Self { url, trust, identity: None, basic: None, proxy: None, limit: USUAL_LIMIT }
    }

    /// The same, which proves who it is by a certificate.
    #[must_use]
    pub fn with_identity(self, identity: ClientIdentity) -> Self {
        Self { identity: Some(identity), ..self }
    }

    /// The same, which proves who it is by name and password.
    #[must_use]
    pub fn with_basic(self, basic: Basic) -> Self {
        Self { basic: Some(basic), ..self }
    }

    /// The same, through a proxy if there is one.
    #[must_use]
    pub fn through(self, proxy: Option<Proxy>) -> Self {
        Self { proxy, ..self }
    }

    /// The same, with another limit for each call.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Asks for the certificates of the server's CA.
    ///
    /// # Errors
    /// See [`EstError`].
    pub async fn cacerts(&self) -> Result<Vec<Certificate>, EstError> {
        let answer = self.call(Method::GET, "/cacerts", None).await?;
        match answer.verdict(now()) {
            Verdict::Done => answer.certificates().map_err(|what| self.answer(what)),
            other => Err(self.refusal(&answer, other, "/cacerts")),
        }
    }

    /// Asks for the attributes that the server wants in requests; none if it has none.
    ///
    /// # Errors
    /// See [`EstError`].
    pub async fn csrattrs(&self) -> Result<CsrAttributes, EstError> {
        let answer = self.call(Method::GET, "/csrattrs", None).await?;
        match answer.verdict(now()) {
            Verdict::Nothing | Verdict::NotFound => Ok(CsrAttributes::default()),
            Verdict::Done => answer.attributes().map_err(|what| self.answer(what)),
            other => Err(self.refusal(&answer, other, "/csrattrs")),
        }
    }

    /// Asks for a certificate. `csr` is a request, DER.
    ///
    /// # Errors
    /// See [`EstError`].
    pub async fn enroll(&self, csr: &[u8]) -> Result<Enrolment, EstError> {
        self.request("/simpleenroll", csr).await
    }

    /// Asks for the successor of the certificate that this client proves its identity
    /// with. `csr` is a request of the same subject and names, DER.
    ///
    /// # Errors
    /// See [`EstError`].
    pub async fn reenroll(&self, csr: &[u8]) -> Result<Enrolment, EstError> {
        self.request("/simplereenroll", csr).await
    }

    async fn request(&self, path: &str, csr: &[u8]) -> Result<Enrolment, EstError> {
        let key = request_key(csr).ok_or(EstError::Request)?;
        let given = self.trust.certificates().map_err(edgekeep_tls::TlsError::from)?;
        // Asked for first: a certificate that is issued and then cannot be judged is
        // lost.
        let cas = self.cacerts().await?;
        let answer = self.call(Method::POST, path, Some(lines(csr))).await?;
        let now = now();
        match answer.verdict(now) {
            Verdict::Done => {}
            Verdict::Later(wait) => return Ok(Enrolment::Later(wait)),
            other => return Err(self.refusal(&answer, other, path)),
        }
        let issued = answer.certificates().map_err(|what| self.answer(what))?;
        let (roots, named) = match given {
            Some(roots) => (roots, GIVEN),
            None => {
                let own = cas.iter().filter(|it| it.is_self_issued() && it.is_ca()).cloned();
                (each_once([own.collect()]), SERVERS)
            }
        };
        checked(&key, &issued, Pool { sent: &cas, roots: &roots, named }, now)
            .map(Enrolment::Issued)
            .map_err(|what| self.answer(what))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Answer, EstError> {
        match tokio::time::timeout(self.limit, self.exchange(method, path, body)).await {
            Ok(done) => done,
            Err(_) => Err(EstError::Timeout { server: self.server(), limit: self.limit }),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Answer, EstError> {
        let mut connector = Connector::new(self.trust.clone()).through(self.proxy.clone());
        if let Some(identity) = &self.identity {
            connector = connector.with_identity(identity.clone());
        }
        let stream =
            connector.prepare()?.connect(&self.url.authority).await.map_err(
                |error| match error {
                    ConnectError::Down { what, source } => {
                        EstError::Down { server: self.server(), what, source }
                    }
                    ConnectError::Untrusted { source } => {
                        EstError::Untrusted { server: self.server(), source: source.into() }
                    }
                    other => self.down("connecting", other),
                },
            )?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(64 * 1024)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.down("connecting", error))?;
        // Its end is seen by the sender; there is nobody else to tell.
        tokio::spawn(async move { drop(connection.await) });
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url.path))
            .header(header::HOST, self.server())
            .header(header::USER_AGENT, concat!("edgekeep/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "close")
            .header(header::ACCEPT, "*/*");
        if let Some(basic) = &self.basic {
            request = request.header(header::AUTHORIZATION, basic.0.as_str());
        }
        if body.is_some() {
            request = request
                .header(header::CONTENT_TYPE, "application/pkcs10")
                .header("content-transfer-encoding", "base64");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| self.down("writing the request", error))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| self.down("sending the request", error))?;
        let (head, body) = answer.into_parts();
        Ok(Answer { status: head.status, headers: head.headers, body: self.read(body).await? })
    }

    async fn read(&self, mut body: Incoming) -> Result<Vec<u8>, EstError> {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.down("reading the answer", error))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > ANSWER_LIMIT {
                return Err(self.answer(AnswerError::Large(ANSWER_LIMIT)));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }

    fn refusal(&self, answer: &Answer, verdict: Verdict, path: &str) -> EstError {
        let (server, status) = (self.server(), answer.status.as_u16());
        match verdict {
            Verdict::Credentials(message) => EstError::Credentials { server, status, message },
            Verdict::NotFound => {
                EstError::NotFound { server, path: format!("{}{path}", self.url.path) }
            }
            Verdict::Redirect => EstError::Redirect { server, status },
            Verdict::Refused(message) => EstError::Refused { server, status, message },
            Verdict::Service { message, retry_after } => {
                EstError::Service { server, status, message, retry_after }
            }
            Verdict::Done | Verdict::Later(_) | Verdict::Nothing | Verdict::Unexpected => {
                self.answer(AnswerError::Status(status))
            }
        }
    }

    fn answer(&self, what: AnswerError) -> EstError {
        EstError::Answer { server: self.server(), what }
    }

    /// A connection that broke. A peer that does not take this device's certificate may
    /// say so only now.
    fn down(
        &self,
        what: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> EstError {
        let (server, source) = (self.server(), source.into());
        if of_tls(source.as_ref()).is_some() {
            return EstError::Untrusted { server, source };
        }
        EstError::Down { server, what, source }
    }

    fn server(&self) -> String {
        self.url.authority.to_string()
    }
}

/// Returns base64 in lines.
fn lines(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::with_capacity(text.len() + text.len() / LINE + 1);
    for line in text.as_bytes().chunks(LINE) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out
}

fn now() -> OffsetDateTime {
    SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_https_with_a_path_and_nothing_else() {
        for (text, path) in [
            ("https://est.example", ""),
            ("https://est.example/", ""),
            ("https://est.example:8443/.well-known/est", "/.well-known/est"),
            ("https://127.0.0.1:8085/.well-known/est/plant7/", "/.well-known/est/plant7"),
        ] {
            assert_eq!(text.parse::<EstUrl>().unwrap().path, path, "{text}");
        }
        for text in [
            "http://est.example/.well-known/est",
            "est.example",
            "https://",
            "https://user:secret@est.example/",
            "https://est.example/a?b=c",
            "https://est.example/a#b",
            "https://est.example/../admin",
            "https://est.example/a b",
            "https://est.example/a\r\nHost: b",
        ] {
            assert_eq!(text.parse::<EstUrl>(), Err(UrlError), "{text}");
        }
    }

    #[test]
    fn a_request_is_written_in_lines_of_64() {
        let text = lines(&[7; 100]);
        assert!(text.lines().all(|line| line.len() <= 64) && text.ends_with('\n'));
        assert_eq!(STANDARD.decode(text.replace('\n', "")).unwrap(), [7; 100]);
    }

    #[test]
    fn name_and_password_are_not_printed() {
        assert_eq!(format!("{:?}", Basic::new("plant", "secret")), "Basic(..)");
    }
}
