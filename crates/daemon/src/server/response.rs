use bytes::Bytes;
use edgekeep_api::{ErrorBody, ErrorCode};
use edgekeep_base::error::chain;
use http::{HeaderValue, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::Body;
use serde::Serialize;

/// Body of an answer: bytes, or a stream.
pub type ResponseBody = Either<Full<Bytes>, UnsyncBoxBody<Bytes, std::io::Error>>;

/// An answer of a handler.
#[derive(Debug)]
pub struct Response(pub(super) http::Response<ResponseBody>);

impl Response {
    /// A JSON answer.
    #[must_use]
    pub fn json<T: Serialize>(status: StatusCode, body: &T) -> Self {
        match serde_json::to_vec(body) {
            Ok(bytes) => Self::bytes(status, "application/json", Bytes::from(bytes)),
            Err(error) => {
                HttpError::internal(format!("cannot write the answer: {error}")).into_response()
            }
        }
    }

    /// Status 200 with a JSON body.
    #[must_use]
    pub fn ok<T: Serialize>(body: &T) -> Self {
        Self::json(StatusCode::OK, body)
    }

    /// Status 204.
    #[must_use]
    pub fn no_content() -> Self {
        let mut answer = http::Response::new(Either::Left(Full::default()));
        *answer.status_mut() = StatusCode::NO_CONTENT;
        Self(answer)
    }

    /// Bytes of some media type.
    #[must_use]
    pub fn bytes(status: StatusCode, media_type: &'static str, bytes: Bytes) -> Self {
        let mut answer = http::Response::new(Either::Left(Full::new(bytes)));
        *answer.status_mut() = status;
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        Self(answer)
    }

    /// A stream of some media type, sent in chunks.
    #[must_use]
    pub fn stream(
        status: StatusCode,
        media_type: &'static str,
        body: impl Body<Data = Bytes, Error = std::io::Error> + Send + 'static,
    ) -> Self {
        let mut answer = http::Response::new(Either::Right(body.boxed_unsync()));
        *answer.status_mut() = status;
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        Self(answer)
    }

    /// Adds a header that has a fixed value.
    #[must_use]
    pub fn with_header(mut self, name: header::HeaderName, value: &'static str) -> Self {
        self.0.headers_mut().insert(name, HeaderValue::from_static(value));
        self
    }

    /// The answer's status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.status()
    }
}

/// A refusal or failure: a status that is not a success, and a message for the caller.
///
/// The message goes to the caller as it is; internal causes belong into the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (status {})", status.as_u16())]
pub struct HttpError {
    status: StatusCode,
    message: String,
    code: Option<ErrorCode>,
    close: bool,
    of_device: bool,
}

impl HttpError {
    /// An error with any status. One of the server's (500 and above) is taken to be the
    /// device's, others the caller's.
    #[must_use]
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            code: None,
            close: false,
            of_device: status.is_server_error(),
        }
    }

    /// The same error, of which the device is the reason and not the caller, whatever the
    /// status says.
    #[must_use]
    pub fn of_device(mut self) -> Self {
        self.of_device = true;
        self
    }

    /// The same error, of which the caller is the reason, whatever the status says.
    #[must_use]
    pub fn of_caller(mut self) -> Self {
        self.of_device = false;
        self
    }

    /// Returns true if the device is the reason for the error, so that its operator
    /// should know.
    #[must_use]
    pub fn is_of_device(&self) -> bool {
        self.of_device
    }

    /// 400: the request is wrong.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 401: how keyd, identityd and the certificates API refuse a caller.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized")
    }

    /// 403: how the management and workload API refuse a caller. The reason goes to the
    /// audit trail, not to the caller.
    #[must_use]
    pub fn forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden")
    }

    /// 404.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 500, with a message that the caller may see.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 500 with the cause in the log and not in the answer.
    #[must_use]
    pub fn hidden(cause: &dyn std::error::Error) -> Self {
        tracing::error!(cause = %chain(cause), "internal error");
        Self::internal("internal error")
    }

    /// The same error with a name of its cause, for clients that decide by it.
    #[must_use]
    pub fn with_code(mut self, code: ErrorCode) -> Self {
        self.code = Some(code);
        self
    }

    /// The same error, after which the connection ends.
    #[must_use]
    pub(super) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the text that the caller is told.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The error as an answer.
    #[must_use]
    pub fn into_response(self) -> Response {
        let close = self.close;
        let answer =
            Response::json(self.status, &ErrorBody { message: self.message, code: self.code });
        if close { answer.with_header(header::CONNECTION, "close") } else { answer }
    }
}
