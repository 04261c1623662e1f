//! Errors of other services, as answers of this one (wire facts 1.5, column edged).

use edgekeep_api::client::ClientError;
use edgekeep_daemon::server::HttpError;
use http::StatusCode;

use crate::identities::IdentityError;

/// An error of keyd, identityd or the certificates API.
///
/// A parameter that they found wrong is the caller's (400); anything else is ours (500). The text is passed on: it tells
/// the module's author what to do, and holds no secret.
#[must_use]
pub fn of_service(error: &ClientError) -> HttpError {
    match error {
        ClientError::Status { status: StatusCode::BAD_REQUEST, message } => HttpError::bad_request(message),
        other => HttpError::internal(other.to_string()),
    }
}

/// An error about a module's identity.
#[must_use]
pub fn of_identity(error: &IdentityError) -> HttpError {
    match error {
        IdentityError::Client(error) => of_service(error),
        IdentityError::Incomplete { .. } => HttpError::bad_request(error.to_string()),
    }
}
