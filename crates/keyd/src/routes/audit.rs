//! Reading the audit log: two routes of our own in the keys API.

use std::sync::Arc;

use edgekeep_api::ErrorCode;
use edgekeep_api::keyd::{AuditCheckpoint, AuditCounter, AuditEntries};
use edgekeep_audit::CounterState;
use edgekeep_core::key_use::Operation;
use edgekeep_daemon::server::{HttpError, Request, Response};

use super::steps::{Answer, wrong_request};
use crate::Keyd;

/// Most entries, and most bytes of them, in one answer.
const AUDIT_ENTRIES: usize = 1000;
const AUDIT_BYTES: usize = 1 << 20;

pub(super) async fn checkpoint(state: Arc<Keyd>, request: Request) -> Answer {
    state.expect_auditor(&request)?;
    state.recorder.write_counted();
    let log = Arc::clone(state.recorder.log());
    let verifier_key = log.key().to_string();
    match tokio::task::spawn_blocking(move || log.checkpoint_and_counter()).await {
        Ok(Ok((checkpoint, counter))) => {
            let index = state.counter_index.unwrap_or_default();
            let counter = match counter {
                CounterState::Off => None,
                CounterState::Value(value) => {
                    Some(AuditCounter { index, value: Some(value), error: None })
                }
                CounterState::Unreachable(why) => {
                    Some(AuditCounter { index, value: None, error: Some(why) })
                }
            };
            Ok(Response::ok(&AuditCheckpoint { checkpoint, verifier_key, counter }))
        }
        Ok(Err(closed)) => Err(HttpError::internal(closed.to_string())),
        Err(failed) => Err(HttpError::hidden(&failed)),
    }
}

pub(super) async fn entries(state: Arc<Keyd>, request: Request) -> Answer {
    state.expect_auditor(&request)?;
    let number = |name: &str, default: u64| match request.query(name) {
        None => Ok(default),
        Some(text) => text
            .parse()
            .map_err(|_| wrong_request(format!("parameter {name:?} has an invalid value"))),
    };
    let from: u64 = number("from", 0)?;
    let limit = usize::try_from(number("limit", AUDIT_ENTRIES as u64)?)
        .unwrap_or(AUDIT_ENTRIES)
        .min(AUDIT_ENTRIES);
    let log = Arc::clone(state.recorder.log());
    let read = move || edgekeep_audit::read(log.folder(), from, limit, AUDIT_BYTES);
    let excerpt = match tokio::task::spawn_blocking(read).await {
        Ok(read) => read.map_err(|error| HttpError::hidden(&error))?,
        Err(failed) => return Err(HttpError::hidden(&failed)),
    };
    Ok(Response::ok(&AuditEntries {
        first: excerpt.edge.size(),
        edge: excerpt.edge.nodes().iter().map(ToString::to_string).collect(),
        base: excerpt.base,
        from: excerpt.from,
        entries: excerpt
            .entries
            .into_iter()
            .map(|entry| String::from_utf8_lossy(&entry).into_owned())
            .collect(),
    }))
}

impl Keyd {
    pub(super) fn expect_auditor(&self, request: &Request) -> Result<(), HttpError> {
        let Err(reason) = self.policy.may_audit(request.caller.uid()) else { return Ok(()) };
        self.recorder.refused(self.refused_who(request), Operation::ReadAudit, None, reason);
        Err(HttpError::unauthorized().with_code(ErrorCode::Grant))
    }
}
