//! Errors of other services and of the runtimes, as answers of this one (wire facts 1.5,
//! column edged).

use edgekeep_api::ErrorCode;
use edgekeep_api::client::ClientError;
use edgekeep_daemon::listen::ListenError;
use edgekeep_daemon::server::HttpError;
use edgekeep_runtime::engine::EngineError;
use edgekeep_runtime::process::ProcessError;
use http::StatusCode;

use crate::identity::identities::IdentityError;
use crate::modules::sockets::SocketError;

/// An error of keyd, identityd or the certificates API.
///
/// A parameter that they found wrong is the caller's (400), unless it is a handle, which
/// no caller gives; anything else is ours (500). The text is passed on: it tells the
/// module's author what to do, and holds no secret.
#[must_use]
pub(crate) fn of_service(error: &ClientError) -> HttpError {
    match error {
        ClientError::Status { status: StatusCode::BAD_REQUEST, message, .. }
            if is_about_a_handle(error) =>
        {
            HttpError::bad_request(message).of_device()
        }
        ClientError::Status { status: StatusCode::BAD_REQUEST, message, .. } => {
            HttpError::bad_request(message)
        }
        other => HttpError::internal(other.to_string()),
    }
}

/// Whether what was found wrong is a key handle, by the error's code or, of a compatible
/// service, its text.
pub(crate) fn is_about_a_handle(error: &ClientError) -> bool {
    matches!(error, ClientError::Status { message, code, .. }
        if *code == Some(ErrorCode::KeyHandle) || (code.is_none() && message.contains("handle")))
}

/// An error about a module's identity. A module that was let in should have one, so the
/// device is the reason.
#[must_use]
pub(crate) fn of_identity(error: &IdentityError) -> HttpError {
    match error {
        IdentityError::Client(error) => of_service(error).of_device(),
        IdentityError::Incomplete { .. } => HttpError::bad_request(error.to_string()).of_device(),
        IdentityError::Slow { .. } => HttpError::internal(error.to_string()),
    }
}

/// An error of the engine: its own status where it gave one.
pub(crate) fn of_engine(error: &EngineError) -> HttpError {
    let status = error.status().and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.filter(|status| status.is_client_error() || status.is_server_error());
    HttpError::new(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), chain(error))
}

/// A name that is too long for its socket is the caller's to change; other trouble with
/// sockets is ours.
pub(crate) fn of_socket(error: &SocketError) -> HttpError {
    match error {
        SocketError::Listen(ListenError::TooLong { .. }) => HttpError::bad_request(chain(error)),
        other => HttpError::hidden(other),
    }
}

pub(crate) fn of_process(error: &ProcessError) -> HttpError {
    let status = error.status().and_then(|status| StatusCode::from_u16(status).ok());
    HttpError::new(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), chain(error))
}

/// The error and its causes, as existing clients get them (wire facts 1.5).
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str("\ncaused by: ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
