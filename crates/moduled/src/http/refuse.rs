//! Errors of other services and of the runtimes, as answers of this one (wire facts 1.5,
//! column edged).

use edgekeep_api::ErrorCode;
use edgekeep_api::client::ClientError;
use edgekeep_core::container::Obstacle;
use edgekeep_core::image_policy::ImageRefusal;
use edgekeep_daemon::listen::ListenError;
use edgekeep_daemon::server::HttpError;
use http::StatusCode;

use crate::gate::Refused;
use crate::identity::identities::IdentityError;
use crate::identity::keys::{BundleError, DataKeyError};
use crate::modules::error::ModuleError;
use crate::modules::images::LookError;
use crate::modules::sockets::SocketError;
use crate::report::support_bundle::SupportBundleError;

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

/// Returns true if the service found a key handle wrong. This is known by the error's
/// code or, of a compatible service, by the error's text.
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

/// The status that something else gave, if it is one of an error.
fn status_of(told: Option<u16>) -> StatusCode {
    let status = told.and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.filter(|status| status.is_client_error() || status.is_server_error());
    status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The status of an error about modules. An engine's and a runtime's own status is passed
/// on where there is one.
fn status(error: &ModuleError) -> StatusCode {
    match error {
        ModuleError::NoModule(_)
        | ModuleError::NoNetwork(_)
        | ModuleError::Obstacle(_, Obstacle::Gone) => StatusCode::NOT_FOUND,
        ModuleError::NameTaken(_)
        | ModuleError::NotRegistered(_)
        | ModuleError::IsService(_)
        | ModuleError::Obstacle(..)
        | ModuleError::Contended(_) => StatusCode::CONFLICT,
        ModuleError::Invalid(_)
        | ModuleError::Image(ImageRefusal::NotADigest { .. })
        // A name that is too long for its socket is the caller's to change; other trouble
        // with sockets is ours.
        | ModuleError::Socket(SocketError::Listen(ListenError::TooLong { .. })) => {
            StatusCode::BAD_REQUEST
        }
        ModuleError::Image(_) => StatusCode::FORBIDDEN,
        ModuleError::Engine(error) => status_of(error.status()),
        ModuleError::Process(error) => status_of(error.status()),
        ModuleError::UpdateFailed { cause, .. } | ModuleError::DoesNotStartAgain(cause) => {
            status(cause)
        }
        ModuleError::NoEngine
        | ModuleError::EngineSilent(_)
        | ModuleError::EngineAway { .. }
        | ModuleError::NotWritten(_)
        | ModuleError::Device(_)
        | ModuleError::Socket(_)
        | ModuleError::Hidden(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<Refused> for HttpError {
    /// 403 without detail, and 503 if nobody could look at the caller.
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Denied => Self::forbidden(),
            Refused::NoGauge(error) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()).of_device()
            }
        }
    }
}

impl From<ModuleError> for HttpError {
    fn from(error: ModuleError) -> Self {
        match (status(&error), &error) {
            (_, ModuleError::Hidden(cause)) => Self::hidden(&**cause),
            (StatusCode::INTERNAL_SERVER_ERROR, ModuleError::Socket(cause)) => Self::hidden(cause),
            (status, error) => Self::new(status, error.to_string()),
        }
    }
}

/// An error about images of former modules.
pub(crate) fn of_look(error: &LookError) -> HttpError {
    match error {
        LookError::NoEngine => HttpError::not_found(error.to_string()),
        LookError::Engine(_) | LookError::Silent => HttpError::internal(error.to_string()),
    }
}

/// An error about the support bundle.
pub(crate) fn of_support_bundle(error: &SupportBundleError) -> HttpError {
    match error {
        SupportBundleError::Busy => {
            HttpError::new(StatusCode::TOO_MANY_REQUESTS, error.to_string())
        }
        SupportBundleError::Zip(_) => HttpError::internal(error.to_string()),
    }
}

/// An error about a key of modules' data. What keeps modules' data from being encrypted
/// is an error of ours (wire facts 3.3).
pub(crate) fn of_data_key(error: &DataKeyError) -> HttpError {
    let answer = HttpError::internal(error.to_string());
    if error.is_of_caller() { answer.of_caller() } else { answer }
}

/// An error about the trust bundle.
pub(crate) fn of_bundle(error: &BundleError) -> HttpError {
    match error {
        BundleError::Absent => HttpError::not_found(error.to_string()),
        BundleError::Service(error) => of_service(error),
    }
}

#[cfg(test)]
mod tests {
    use edgekeep_runtime::engine::EngineError;

    use super::*;

    #[test]
    fn a_failed_update_is_answered_with_the_status_of_its_cause() {
        let module: edgekeep_core::id::ModuleId = "m1".parse().unwrap();
        let cases = [
            (ModuleError::NoModule(module.clone()), StatusCode::NOT_FOUND),
            (ModuleError::NameTaken(module.clone()), StatusCode::CONFLICT),
            (ModuleError::Invalid("x".into()), StatusCode::BAD_REQUEST),
            (ModuleError::Obstacle(module.clone(), Obstacle::Gone), StatusCode::NOT_FOUND),
            (ModuleError::NoEngine, StatusCode::INTERNAL_SERVER_ERROR),
            (ModuleError::Engine(EngineError::NotJson), StatusCode::INTERNAL_SERVER_ERROR),
        ];
        for (error, expected) in cases {
            let text = error.to_string();
            let now = "the module is as it was".to_owned();
            let failed =
                ModuleError::UpdateFailed { module: module.clone(), now, cause: Box::new(error) };
            let answer = HttpError::from(failed);
            assert_eq!(answer.status(), expected);
            let told =
                format!("the update of m1 failed; the module is as it was\ncaused by: {text}");
            assert_eq!(answer.message(), told);
        }
    }

    #[test]
    fn a_hidden_cause_does_not_reach_the_client() {
        let cause = std::io::Error::other("/var/lib/secret-place");
        let answer = HttpError::from(ModuleError::hidden(cause));
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(answer.message(), "internal error");
    }
}
