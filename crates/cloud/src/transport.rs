//! One HTTPS call: connect, send, read, judge; with a limit on the whole of it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use edgekeep_core::authority::Authority;
use edgekeep_core::foreign_text::{MESSAGE_LIMIT, cleaned};
use edgekeep_core::provisioning::call_pause;
use edgekeep_tls::{
    ConnectError, Connector, Prepared, Proxy, TlsError, Trust, refused_certificate,
};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::credential::Credential;
use crate::error::CloudError;
use crate::sas::{Audience, LIFETIME, Signer};

/// Largest answer that is read, in bytes. A hub's list of 50 modules has about 40 KiB.
const ANSWER_LIMIT: usize = 1 << 20;
/// Longest time for which a service is taken to ask to be left alone. Those who wait have
/// lower limits of their own.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(86_400);
/// A difference of clocks below this is network delay, in seconds.
const CLOCK_TOLERANCE: i64 = 30;

/// Limits of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For a whole call, all its attempts and pauses included.
    pub timeout: Duration,
    /// Attempts after the first. Each may take its share of the time that is left.
    pub retries: u32,
}

/// Outcome of a call and the time it took, retries included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// `hub` or `provisioning`.
    pub service: &'static str,
    /// The HTTP method.
    pub method: &'static str,
    /// `ok`, or the kind of failure ([`CloudError::kind`]).
    pub result: &'static str,
    /// From the first attempt to the last answer.
    pub took: Duration,
}

/// Is told about each call.
pub type Observer = fn(Observed);

/// Means that all calls share: limits, connector, the services' clock. Roots are read
/// when a call is made, and forgotten after the last call that is under way.
#[derive(Debug)]
pub struct Transport {
    limits: Limits,
    connector: Connector,
    /// Seconds by which the services' clocks are ahead of this device's, as their answers
    /// show.
    clock_offset: AtomicI64,
    /// Time in the last answer, in seconds since the epoch; [`i64::MIN`] once the time
    /// was taken.
    last_date: AtomicI64,
    observer: Option<Observer>,
}

/// A request that is to be sent.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// Path and query, encoded.
    pub(crate) path: String,
    /// The Host header, which in a nested installation is not who is connected to.
    pub(crate) host: &'a str,
    pub(crate) if_match: Option<String>,
    pub(crate) body: Option<Zeroizing<Vec<u8>>>,
    pub(crate) audience: &'a Audience,
    /// True for a request that proves nothing, and is answered 401 with a challenge.
    pub(crate) is_anonymous: bool,
    /// The thing that is missing when the answer is 404.
    pub(crate) subject: &'static str,
}

/// A successful answer.
pub(crate) struct Answer {
    pub(crate) retry_after: Option<Duration>,
    pub(crate) etag: Option<String>,
    /// May hold keys of modules, hence wiped.
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// A connection that several calls of one operation may use.
pub(crate) struct Session<'a> {
    transport: &'a Transport,
    to: &'a Authority,
    tls: Prepared,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Transport {
    /// A transport with these limits and this trust. Nothing is opened.
    #[must_use]
    pub fn new(limits: Limits, trust: Trust) -> Self {
        Self {
            limits,
            connector: Connector::new(trust),
            clock_offset: AtomicI64::new(0),
            last_date: AtomicI64::new(i64::MIN),
            observer: None,
        }
    }

    /// The same, through a proxy if there is one.
    #[must_use]
    pub fn through(self, proxy: Option<Proxy>) -> Self {
        Self { connector: self.connector.through(proxy), ..self }
    }

    /// The same, telling `observer` about each call.
    #[must_use]
    pub fn observed_by(mut self, observer: Observer) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Seconds by which the services' clocks were ahead of this device's at the last
    /// answer; 0 if about equal.
    #[must_use]
    pub fn clock_offset(&self) -> i64 {
        self.clock_offset.load(Ordering::Relaxed)
    }

    /// Takes the time that an answer told since this was called last, in seconds since
    /// the epoch.
    #[must_use]
    pub fn take_date(&self) -> Option<i64> {
        Some(self.last_date.swap(i64::MIN, Ordering::Relaxed)).filter(|date| *date != i64::MIN)
    }

    /// Opens nothing yet; reads the roots.
    pub(crate) fn session<'a, S>(
        &'a self,
        to: &'a Authority,
        credential: &Credential<S>,
    ) -> Result<Session<'a>, CloudError> {
        let prepared = match credential {
            Credential::Token(_) => self.connector.prepare(),
            Credential::Certificate(identity) => self.connector.prepare_as(identity),
        };
        let tls = prepared.map_err(|error| match error {
            TlsError::Roots(roots) => CloudError::Roots { path: roots.path, what: roots.what },
            other => CloudError::Request { what: other.to_string() },
        })?;
        Ok(Session { transport: self, to, tls, sender: None })
    }

    /// The services' idea of the time, in seconds since the epoch.
    fn service_time(&self) -> i64 {
        wall_clock().saturating_add(self.clock_offset())
    }

    /// Learns the services' clock from an answer.
    fn learn_clock(&self, headers: &HeaderMap) {
        let Some(date) = text(headers, header::DATE).and_then(parse_date) else { return };
        self.last_date.store(date, Ordering::Relaxed);
        let offset = date.saturating_sub(wall_clock());
        let offset = if offset.abs() < CLOCK_TOLERANCE { 0 } else { offset };
        // Kept unless it moved noticeably, so that equal offsets compare equal.
        if self.clock_offset().abs_diff(offset) >= CLOCK_TOLERANCE.unsigned_abs() || offset == 0 {
            self.clock_offset.store(offset, Ordering::Relaxed);
        }
    }
}

impl Session<'_> {
    /// Makes the call, with retries, within the transport's limit.
    pub(crate) async fn call(
        &mut self,
        call: &Call<'_>,
        credential: &Credential<impl Signer>,
    ) -> Result<Answer, CloudError> {
        let begun = Instant::now();
        let done = self.call_and_retry(call, credential).await;
        if let Some(observer) = self.transport.observer {
            let known = ["GET", "PUT", "POST", "DELETE"];
            observer(Observed {
                service: if call.audience.is_registration() { "provisioning" } else { "hub" },
                method: known
                    .into_iter()
                    .find(|word| *word == call.method.as_str())
                    .unwrap_or("OTHER"),
                result: done.as_ref().err().map_or("ok", CloudError::kind),
                took: begun.elapsed(),
            });
        }
        done
    }

    async fn call_and_retry(
        &mut self,
        call: &Call<'_>,
        credential: &Credential<impl Signer>,
    ) -> Result<Answer, CloudError> {
        let limits = self.transport.limits;
        let deadline = Instant::now() + limits.timeout;
        let (mut attempt, mut clock_was_corrected) = (0, false);
        loop {
            let offset = self.transport.clock_offset();
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / (limits.retries.saturating_sub(attempt) + 1);
            let outcome = tokio::time::timeout(share, self.attempt(call, credential))
                .await
                .unwrap_or_else(|_| {
                    Err(CloudError::Timeout { host: self.to.to_string(), limit: limits.timeout })
                });
            let error = match outcome {
                Ok(answer) => return Ok(answer),
                // The token was made by a clock that the service does not share: make it
                // by the service's.
                Err(CloudError::DeviceRefused { status: 401, clock_offset, .. })
                    if clock_offset != offset
                        && !clock_was_corrected
                        && matches!(credential, Credential::Token(_)) =>
                {
                    clock_was_corrected = true;
                    continue;
                }
                Err(error) => error,
            };
            self.sender = None;
            let is_transient =
                error.is_network_down() && !matches!(error, CloudError::Untrusted { .. });
            let pause = call_pause(error.retry_after());
            let left = deadline.saturating_duration_since(Instant::now());
            if !is_transient || attempt >= limits.retries || pause >= left {
                return Err(error);
            }
            attempt += 1;
            tracing::debug!(host = %self.to, attempt, error = %error.chain(), "call to the cloud failed; trying again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(
        &mut self,
        call: &Call<'_>,
        credential: &Credential<impl Signer>,
    ) -> Result<Answer, CloudError> {
        let expiry = self.transport.service_time().saturating_add(LIFETIME);
        let token = match credential {
            _ if call.is_anonymous => None,
            Credential::Token(signer) => Some(call.audience.token(signer, expiry).await?),
            Credential::Certificate(_) => None,
        };
        let mut sender = match self.sender.take() {
            Some(sender) if !sender.is_closed() => sender,
            _ => self.connect().await?,
        };
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(&call.path)
            .header(header::HOST, call.host)
            .header(header::USER_AGENT, concat!("edgekeep/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "application/json");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, token);
        }
        if let Some(tag) = &call.if_match {
            request = request.header(header::IF_MATCH, tag);
        }
        let body = match &call.body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::copy_from_slice(body)
            }
            None => Bytes::new(),
        };
        let request = request
            .body(Full::new(body))
            .map_err(|error| CloudError::Request { what: error.to_string() })?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken("sending the request", error))?;
        let (head, body) = answer.into_parts();
        self.transport.learn_clock(&head.headers);
        let body = self.read(body).await?;
        self.sender = Some(sender);
        let is_challenge = call.is_anonymous && head.status == StatusCode::UNAUTHORIZED;
        if head.status.is_success() || (is_challenge && has_challenge(&body)) {
            let etag =
                text(&head.headers, header::ETAG).map(|tag| tag.trim_matches('"').to_owned());
            return Ok(Answer { retry_after: retry_after(&head.headers), etag, body });
        }
        Err(self.judge(head.status.as_u16(), &head.headers, &body, call.subject))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, CloudError> {
        let stream = self.tls.connect(self.to).await.map_err(|error| match error {
            ConnectError::Down { what, source } => self.down(what, source),
            ConnectError::Untrusted { source } => match refused_certificate(&source) {
                Some(alert) => CloudError::CertificateRefused { host: self.to.to_string(), alert },
                None => CloudError::Untrusted { host: self.to.to_string(), source },
            },
            other => CloudError::Request { what: other.to_string() },
        })?;
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(64 * 1024)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.down("connecting", error))?;
        // Its end is seen by the sender; there is nobody else to tell.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    async fn read(&self, mut body: Incoming) -> Result<Zeroizing<Vec<u8>>, CloudError> {
        let mut bytes = Zeroizing::new(Vec::new());
        while let Some(frame) = body.frame().await {
            let Ok(data) =
                frame.map_err(|error| self.broken("reading the answer", error))?.into_data()
            else {
                continue;
            };
            if bytes.len() + data.len() > ANSWER_LIMIT {
                return Err(self.unexpected(&format!("more than {ANSWER_LIMIT} bytes")));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }

    fn judge(
        &self,
        status: u16,
        headers: &HeaderMap,
        body: &[u8],
        subject: &'static str,
    ) -> CloudError {
        let host = self.to.to_string();
        let Refusal { message, network_error } = refusal(body);
        match status {
            404 if message.contains("DeviceNotFound") || subject == "device" => {
                CloudError::DeviceRefused {
                    host,
                    status,
                    message,
                    clock_offset: self.transport.clock_offset(),
                }
            }
            404 if !network_error => CloudError::NotFound { host, what: subject },
            401 => CloudError::DeviceRefused {
                host,
                status,
                message,
                clock_offset: self.transport.clock_offset(),
            },
            409 | 412 => CloudError::Conflict { host, status },
            429 => CloudError::Throttled { host, retry_after: retry_after(headers) },
            500.. => {
                CloudError::Service { host, status, message, retry_after: retry_after(headers) }
            }
            _ if network_error => {
                CloudError::Service { host, status, message, retry_after: retry_after(headers) }
            }
            _ => CloudError::Refused { host, status, message },
        }
    }

    /// An answer that is not what it should be. `what` may repeat parts of the answer.
    pub(crate) fn unexpected(&self, what: &str) -> CloudError {
        CloudError::Answer { host: self.to.to_string(), what: cleaned(what, MESSAGE_LIMIT) }
    }

    /// A connection that broke. In TLS 1.3 a service that does not take this device's
    /// certificate says so only after the handshake.
    fn broken(&self, what: &'static str, source: hyper::Error) -> CloudError {
        match refused_certificate(&source) {
            Some(alert) => CloudError::CertificateRefused { host: self.to.to_string(), alert },
            None => self.down(what, source),
        }
    }

    fn down(
        &self,
        what: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> CloudError {
        CloudError::NetworkDown { host: self.to.to_string(), what, source: source.into() }
    }
}

/// Returns true if the body of a refusal has a key that proves the TPM that unwraps it.
fn has_challenge(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body)
        .is_ok_and(|value| value.get("authenticationKey").is_some())
}

struct Refusal {
    message: String,
    network_error: bool,
}

/// Reads a refusal from its body, in the different spellings of the services.
fn refusal(body: &[u8]) -> Refusal {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = ["Message", "errorMessage", "message", "ExceptionMessage"]
        .iter()
        .find_map(|name| value.get(name)?.as_str())
        .unwrap_or("no message");
    let message = cleaned(text, MESSAGE_LIMIT);
    Refusal {
        message,
        network_error: value
            .get("networkError")
            .and_then(serde_json::Value::as_bool)
            .unwrap_or(false),
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// `Retry-After` in seconds, at most a day. The form with a date is not used by these
/// services.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let asked = text(headers, header::RETRY_AFTER)?.trim();
    let digits = !asked.is_empty() && asked.bytes().all(|c| c.is_ascii_digit());
    // A number too large for a number is a very long time all the same.
    digits.then(|| Duration::from_secs(asked.parse().unwrap_or(u64::MAX)).min(LONGEST_RETRY_AFTER))
}

/// The `Date` header, in seconds since the epoch.
fn parse_date(value: &str) -> Option<i64> {
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    time::PrimitiveDateTime::parse(value, format)
        .ok()
        .map(|date| date.assume_utc().unix_timestamp())
}

fn wall_clock() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_header_is_read_as_seconds() {
        assert_eq!(parse_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(parse_date("yesterday"), None);
    }

    #[test]
    fn refusals_are_read_in_every_spelling_and_cut() {
        for body in [r#"{"Message":"no"}"#, r#"{"errorMessage":"no"}"#, r#"{"message":"no"}"#] {
            assert_eq!(refusal(body.as_bytes()).message, "no");
        }
        assert!(refusal(br#"{"errorMessage":"no","networkError":true}"#).network_error);
        let long = format!(r#"{{"message":"{}\n"}}"#, "x".repeat(5000));
        assert_eq!(refusal(long.as_bytes()).message.chars().count(), 300);
        let turned = "{\"message\":\"a\\u202eb\\u0007\"}";
        assert_eq!(refusal(turned.as_bytes()).message, "a\u{fffd}b\u{fffd}");
        assert_eq!(refusal(b"<html>").message, "no message");
    }

    #[test]
    fn the_time_that_a_service_asks_for_is_read_and_bounded() {
        let read = |value: &str| {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())]);
            retry_after(&headers).map(|asked| asked.as_secs())
        };
        for (value, seconds) in [
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("4294967296", Some(86_400)),
            ("99999999999999999999999", Some(86_400)),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
        ] {
            assert_eq!(read(value), seconds, "{value}");
        }
    }
}
