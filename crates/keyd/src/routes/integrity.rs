//! The log of measurements: routes of our own in the keys API. Daemons say what they
//! measured, and whoever may read the audit log reads this one.

use std::sync::Arc;

use edgekeep_api::ErrorCode;
use edgekeep_api::keyd::{IntegrityLog, Measurement, Recorded, RegisterValue};
use edgekeep_core::integrity::{Event, IndexState, Source, Word, ZEROS};
use edgekeep_core::key_use::{Operation, Reason};
use edgekeep_core::layout::Daemon;
use edgekeep_daemon::server::{HttpError, Request, Response};
use http::StatusCode;

use super::steps::{Answer, wrong_request};
use crate::Keyd;
use crate::integrity::{IntegrityError, Read, View};

pub(super) async fn record(state: Arc<Keyd>, mut request: Request) -> Answer {
    let body: Measurement = request.json().await?;
    let daemon = match &body {
        Measurement::DaemonStart { daemon, .. } | Measurement::Omitted { daemon, .. } => *daemon,
        Measurement::ModuleCreate { .. } | Measurement::ModuleStart { .. } => Daemon::Moduled,
    };
    let uid = request.caller.uid();
    if let Err(reason) = state.policy.speaks_for(uid, daemon) {
        return Err(state.refuse_measurement(&request, reason));
    }
    let doing = state.recorder.begin(state.who(&request)?, Operation::Measure, None).await?;
    let integrity = Arc::clone(&state.integrity);
    let event = event(body, Source::Uid(uid));
    let turn = state.turns.take(uid).await;
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let recorded = integrity.add(event)?;
        Ok(Recorded { recorded, bound: integrity.is_bound() })
    });
    let done = match done.await {
        Ok(done) => done.map_err(|error: IntegrityError| match error {
            IntegrityError::TooMany => {
                HttpError::new(StatusCode::TOO_MANY_REQUESTS, error.to_string())
            }
            error => HttpError::hidden(&error),
        }),
        Err(failed) => Err(HttpError::hidden(&failed)),
    };
    doing.end(done).map(|recorded| Response::ok(&recorded))
}

pub(super) async fn log(state: Arc<Keyd>, request: Request) -> Answer {
    state.expect_auditor(&request)?;
    let number = match request.query("log") {
        None => None,
        Some(text) => Some(
            text.parse().map_err(|_| wrong_request("parameter \"log\" has an invalid value"))?,
        ),
    };
    let integrity = Arc::clone(&state.integrity);
    let turn = state.turns.take(request.caller.uid()).await;
    let read = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        integrity.view(number).map(|view| shown(view, integrity.registers()))
    });
    match read.await {
        Ok(Ok(shown)) => Ok(Response::ok(&shown)),
        Ok(Err(IntegrityError::NoSuchLog)) => {
            Err(wrong_request(IntegrityError::NoSuchLog.to_string()))
        }
        Ok(Err(error)) => Err(HttpError::hidden(&error)),
        Err(failed) => Err(HttpError::hidden(&failed)),
    }
}

/// The device's assurance, for whoever may connect: there is nothing in it that helps
/// somebody who may not.
pub(super) async fn assurance(state: Arc<Keyd>, request: Request) -> Answer {
    let turn = state.turns.take(request.caller.uid()).await;
    let assured = Arc::clone(&state);
    let asked = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        assured.assured.now()
    });
    match asked.await {
        Ok(assurance) => Ok(Response::ok(&assurance)),
        Err(failed) => Err(HttpError::hidden(&failed)),
    }
}

impl Keyd {
    fn refuse_measurement(&self, request: &Request, reason: Reason) -> HttpError {
        self.recorder.refused(self.refused_who(request), Operation::Measure, None, reason);
        HttpError::unauthorized().with_code(ErrorCode::Grant)
    }
}

fn event(body: Measurement, source: Source) -> Event {
    match body {
        Measurement::DaemonStart { daemon, executable, settings, version } => {
            let daemon = Word::cleaned(daemon.name());
            Event::DaemonStart { daemon, executable, settings, version, source }
        }
        Measurement::ModuleCreate { module, image, options } => {
            Event::ModuleCreate { module, image, options, source }
        }
        Measurement::ModuleStart { module, image, executable } => {
            Event::ModuleStart { module, image, executable, source }
        }
        Measurement::Omitted { daemon: _, count } => {
            Event::Omitted { count: Word::number(count), source }
        }
    }
}

fn shown(view: View, (pcr, nv): (Option<u8>, Option<u32>)) -> IntegrityLog {
    let View { logs, number, log, read, is_bound } = view;
    let complaint = read.as_ref().and_then(|it| it.complaint.clone());
    let registers = read.as_ref().map(|it: &Read| it.registers);
    let error = |none: bool| {
        let why = complaint.clone().unwrap_or_else(|| "the TPM cannot be used now".to_owned());
        none.then_some(why)
    };
    let pcr = pcr.map(|number| {
        let value = registers.and_then(|it| it.pcr);
        RegisterValue { register: number.into(), value, error: error(value.is_none()) }
    });
    let nv = nv.map(|index| {
        let state = registers.and_then(|it| it.nv).map(|(_, state)| state);
        let (value, error) = match state {
            Some(IndexState::Value(value)) => (Some(value), None),
            Some(IndexState::Unwritten) => (Some(ZEROS), None),
            Some(IndexState::Absent) => (None, Some("there is no such index".to_owned())),
            Some(IndexState::Foreign) | None => (None, error(true)),
        };
        RegisterValue { register: index, value, error }
    });
    let log = String::from_utf8_lossy(&log).into_owned();
    IntegrityLog { bound: is_bound, pcr, nv, logs, number, log }
}
