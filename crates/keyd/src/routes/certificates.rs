//! Certificates on tokens: a route of our own in the keys API. They are no secret, so
//! whoever may open the socket may read them.

use std::sync::Arc;

use edgekeep_api::ErrorCode;
use edgekeep_api::keyd::TokenCertificate;
use edgekeep_core::id::{CertId, IdError};
use edgekeep_daemon::server::{HttpError, Request, Response};

use super::steps::Answer;
use crate::Keyd;

pub(super) async fn read(state: Arc<Keyd>, request: Request) -> Answer {
    let id: CertId = request
        .param(0)
        .parse()
        .map_err(|error: IdError| HttpError::bad_request(error.to_string()))?;
    let turn = state.turns.take(request.caller.uid()).await;
    let certificates = Arc::clone(&state.certificates);
    let wanted = id.clone();
    let read = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        certificates.read(&wanted)
    });
    match read.await {
        Ok(Some(Ok(der))) => Ok(Response::ok(&TokenCertificate { certificate: der.into() })),
        Ok(Some(Err(error))) if error.is_answer() => {
            Err(HttpError::bad_request(error.to_string()).with_code(ErrorCode::Absent))
        }
        Ok(Some(Err(error))) => Err(HttpError::hidden(&error)),
        Ok(None) => {
            let words = format!("certificate \"{id}\" is not one that is named on a token");
            Err(HttpError::bad_request(words).with_code(ErrorCode::Absent))
        }
        Err(failed) => Err(HttpError::hidden(&failed)),
    }
}
