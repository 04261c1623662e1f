use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use edgekeep_core::id::IdError;
use http::{Method, StatusCode, header, request::Parts};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use serde::de::DeserializeOwned;

use super::response::HttpError;
use crate::peer::Caller;

/// Largest request body.
const BODY_LIMIT: usize = 1 << 20;
/// Time in which a body must have come (wire facts 1.3).
const BODY_DEADLINE: Duration = Duration::from_secs(5);

/// A request that has been routed.
#[derive(Debug)]
pub struct Request {
    /// The process that asks.
    pub caller: Arc<Caller>,
    /// The API version that was asked for, one of the service's.
    pub version: &'static str,
    /// The route's pattern, for logs and the audit trail.
    pub route: &'static str,
    pub(super) parts: Parts,
    pub(super) body: Option<Incoming>,
    pub(super) params: Vec<String>,
    pub(super) query: Vec<(String, String)>,
}

impl Request {
    /// The method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.parts.method
    }

    /// The percent-decoded text of the route's placeholder number `index`.
    #[must_use]
    pub fn param(&self, index: usize) -> &str {
        self.params.get(index).map_or("", String::as_str)
    }

    /// The route's placeholder number `index` as an id.
    ///
    /// # Errors
    /// 400 with what is wrong with it.
    pub fn id<T: std::str::FromStr<Err = IdError>>(&self, index: usize) -> Result<T, HttpError> {
        self.param(index)
            .parse()
            .map_err(|error: IdError| HttpError::bad_request(error.to_string()))
    }

    /// A query parameter, form-decoded; the last one if it is repeated.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The one value of a header.
    ///
    /// # Errors
    /// 400 if it is there more than once, or is not plain ASCII.
    pub fn header(&self, name: &str) -> Result<Option<&str>, HttpError> {
        let mut values = self.parts.headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) if value.to_str().is_ok() => Ok(value.to_str().ok()),
            _ => Err(HttpError::bad_request(format!("header {name} is not one plain text"))),
        }
    }

    /// The JSON body.
    ///
    /// # Errors
    /// 400 if there is none or it breaks off, 408 if it does not come in time, 413 if it
    /// is too large, 415 (PUT) if its media type is another, 422 if it is JSON that does
    /// not fit, or none.
    pub async fn json<T: DeserializeOwned>(&mut self) -> Result<T, HttpError> {
        self.json_opt().await?.ok_or_else(|| HttpError::bad_request("missing request body"))
    }

    /// The JSON body, `None` if there is none. PUT always needs one.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub async fn json_opt<T: DeserializeOwned>(&mut self) -> Result<Option<T>, HttpError> {
        let put = self.parts.method == Method::PUT;
        let bytes = self.read().await?;
        if !self.is_json() {
            if put {
                return Err(HttpError::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "expected media type application/json",
                ));
            }
            return Ok(None);
        }
        if bytes.is_empty() && !put {
            return Ok(None);
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|error| unprocessable(&error))
    }

    fn is_json(&self) -> bool {
        self.parts.headers.get(header::CONTENT_TYPE).is_none_or(|value| {
            value.to_str().is_ok_and(|text| {
                text.split(';')
                    .next()
                    .unwrap_or_default()
                    .trim()
                    .eq_ignore_ascii_case("application/json")
            })
        })
    }

    async fn read(&mut self) -> Result<Bytes, HttpError> {
        let Some(mut body) = self.body.take() else { return Ok(Bytes::new()) };
        let announced = body.size_hint().lower();
        let too_large = || {
            HttpError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("request body is larger than {BODY_LIMIT} bytes"),
            )
            .closing()
        };
        if announced > BODY_LIMIT as u64 {
            return Err(too_large());
        }
        let mut bytes = BytesMut::new();
        let receive = async {
            while let Some(frame) = body.frame().await {
                let frame = frame
                    .map_err(|_| HttpError::bad_request("request body breaks off").closing())?;
                if let Ok(data) = frame.into_data() {
                    if bytes.len() + data.len() > BODY_LIMIT {
                        return Err(too_large());
                    }
                    bytes.extend_from_slice(&data);
                }
            }
            Ok(())
        };
        match tokio::time::timeout(BODY_DEADLINE, receive).await {
            Ok(received) => received?,
            Err(_) => {
                let message =
                    format!("request body did not come within {} s", BODY_DEADLINE.as_secs());
                return Err(HttpError::new(StatusCode::REQUEST_TIMEOUT, message).closing());
            }
        }
        // Bytes of another process may have come with the body, after the head was
        // checked.
        if self.caller.sender_changed() {
            return Err(super::connection::sender_refused());
        }
        Ok(bytes.freeze())
    }
}

/// 422 without repeating what was sent: serde's own text may quote a value, which may be
/// a secret.
fn unprocessable(error: &serde_json::Error) -> HttpError {
    let text = error.to_string();
    let what = if error.is_data()
        && (text.starts_with("missing field") || text.starts_with("unknown variant"))
    {
        text.split(" at line ").next().unwrap_or_default().to_owned()
    } else if error.is_data() && text.starts_with(edgekeep_api::NOT_BASE64) {
        edgekeep_api::NOT_BASE64.to_owned()
    } else if error.is_data() {
        "JSON does not have the expected members".to_owned()
    } else if error.is_eof() {
        "JSON breaks off".to_owned()
    } else {
        "not JSON".to_owned()
    };
    let message =
        format!("invalid request body: {what} (line {}, column {})", error.line(), error.column());
    HttpError::new(StatusCode::UNPROCESSABLE_ENTITY, message)
}
