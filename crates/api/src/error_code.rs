//! Stable names for the cause of a refusal, and what a client concludes about its key
//! handle.
//!
//! Compatible services answer a text alone, so the absence of a name is a case of its
//! own.

use http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};

use crate::client::ClientError;

/// The cause of a refusal (ours): stands beside the text in the body of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The key handle is too old, or was not made by this service: a new one may do.
    KeyHandle,
    /// The caller lacks a grant.
    Grant,
    /// The object that the request names does not exist.
    Absent,
    /// Something else in the request.
    Request,
    /// A name that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Reads the member `code`; a form that is not ours counts as absent, so that the text is
/// kept.
pub(crate) fn lenient<'de, D: Deserializer<'de>>(value: D) -> Result<Option<ErrorCode>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(value)?;
    Ok(value.and_then(|value| serde_json::from_value(value).ok()))
}

/// The service that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipient {
    /// The keys service, which makes and takes handles.
    Keys,
    /// The certificates service, which passes handles on to the keys service.
    Certificates,
    /// The identity service, which takes none.
    Identities,
}

/// Decides whether the call is worth one more try with a fresh handle.
///
/// Never decided by the text of an error. A service that names causes is believed. One
/// that names none (a compatible service) refuses a handle with 400, in old versions with
/// 401; a compatible certificates service hides what the keys service told it behind a
/// 500. These statuses have other causes too: the second try then fails like the first,
/// which is why there is only one.
#[must_use]
pub fn is_worth_a_fresh_handle(error: &ClientError, recipient: Recipient) -> bool {
    let ClientError::Status { status, code, .. } = error else { return false };
    match code {
        Some(code) => *code == ErrorCode::KeyHandle,
        None if recipient == Recipient::Identities => false,
        None => match *status {
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED => true,
            StatusCode::INTERNAL_SERVER_ERROR => recipient == Recipient::Certificates,
            _ => false,
        },
    }
}

/// Decides whether what was named does not exist, as far as the answer says so.
///
/// Never decided by the text of an error. Of services that name no causes (compatible
/// ones), those of keys and certificates answer 400 then, while the identity service
/// answers 404 also when the hub or the keys service cannot be reached, which says
/// nothing.
#[must_use]
pub fn says_absent(error: &ClientError, recipient: Recipient) -> bool {
    let ClientError::Status { status, code, .. } = error else { return false };
    match (code, recipient) {
        (Some(code), _) => *code == ErrorCode::Absent,
        (None, Recipient::Keys | Recipient::Certificates) => {
            matches!(*status, StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND)
        }
        (None, Recipient::Identities) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorBody;

    fn answered(status: u16, body: &str) -> ClientError {
        let body: ErrorBody = serde_json::from_str(body).unwrap();
        let status = StatusCode::from_u16(status).unwrap();
        ClientError::Status { status, message: body.message, code: body.code }
    }

    #[test]
    fn a_fresh_handle_is_asked_for_by_the_cause_or_the_status_and_never_by_the_text() {
        use Recipient::{Certificates, Identities, Keys};
        let coded =
            |code: &str| format!(r#"{{"message": "the handle, the handle", "code": {code}}}"#);
        let plain = r#"{"message": "nothing that would help"}"#.to_owned();
        for (status, body, recipient, expected) in [
            (400, coded("\"key-handle\""), Keys, true),
            (400, coded("\"key-handle\""), Certificates, true),
            (400, coded("\"request\""), Keys, false),
            (401, coded("\"grant\""), Keys, false),
            (400, coded("\"a-later-version\""), Keys, false),
            (500, coded("\"request\""), Certificates, false),
            // Compatible services.
            (400, plain.clone(), Keys, true),
            (401, plain.clone(), Keys, true),
            (404, plain.clone(), Keys, false),
            (500, plain.clone(), Keys, false),
            (400, plain.clone(), Certificates, true),
            (500, plain.clone(), Certificates, true),
            (503, plain.clone(), Certificates, false),
            (400, plain.clone(), Identities, false),
            (401, plain, Identities, false),
        ] {
            let error = answered(status, &body);
            assert_eq!(
                is_worth_a_fresh_handle(&error, recipient),
                expected,
                "{status} {body} {recipient:?}"
            );
        }
    }

    #[test]
    fn a_failure_of_the_hub_is_not_taken_for_an_identity_that_is_gone() {
        use Recipient::{Certificates, Identities, Keys};
        let plain = r#"{"message": "not found, not found"}"#;
        let coded = |code: &str| format!(r#"{{"message": "m", "code": "{code}"}}"#);
        for (status, body, recipient, expected) in [
            (404, coded("absent"), Identities, true),
            (400, coded("absent"), Certificates, true),
            (400, coded("request"), Certificates, false),
            (404, plain.to_owned(), Identities, false),
            (400, plain.to_owned(), Identities, false),
            (400, plain.to_owned(), Certificates, true),
            (400, plain.to_owned(), Keys, true),
            (401, plain.to_owned(), Keys, false),
            (500, plain.to_owned(), Certificates, false),
        ] {
            assert_eq!(
                says_absent(&answered(status, &body), recipient),
                expected,
                "{status} {body} {recipient:?}"
            );
        }
    }

    #[test]
    fn a_code_of_another_form_does_not_hide_the_text() {
        for code in ["7", "null", "{}", "[1]", "true"] {
            let body: ErrorBody =
                serde_json::from_str(&format!(r#"{{"message": "m", "code": {code}}}"#)).unwrap();
            assert_eq!((body.message.as_str(), body.code), ("m", None), "{code}");
        }
    }

    #[test]
    fn a_body_without_a_code_is_what_existing_clients_know() {
        let body = ErrorBody { message: "m".to_owned(), code: None };
        assert_eq!(serde_json::to_string(&body).unwrap(), r#"{"message":"m"}"#);
    }
}
