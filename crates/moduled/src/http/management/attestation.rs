//! A process looked at as if it called, and callers that were refused: what an operator
//! needs to understand a refusal.

use std::sync::Arc;

use edgekeep_api::ErrorCode;
use edgekeep_api::attestation::{Attestation, PastRefusals};
use edgekeep_core::attestation::{Asked, Door, RunningFacts};
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::server::{HttpError, Request, Response};
use http::StatusCode;

use crate::gate::Refused;
use crate::gate::attest::Who;
use crate::http::{Rooms, called};

/// For root, the daemon's own user and the agent: it tells about processes of other
/// users.
pub(super) async fn show(rooms: Arc<Rooms>, request: Request) -> Result<Response, HttpError> {
    rooms.gate.admit_operator_or_agent(&called(&request)).await?;
    let pid = request.query("pid").map(|pid| {
        pid.parse::<u32>().map_err(|_| HttpError::bad_request("invalid parameter: pid"))
    });
    let pid = pid.transpose()?;
    let module = request.query("module").map(|module| {
        module.parse::<ModuleId>().map_err(|error| HttpError::bad_request(error.to_string()))
    });
    match (module.transpose()?, pid) {
        (Some(module), pid) => Ok(Response::ok(&examine(&rooms, &module, pid).await?)),
        (None, Some(pid)) => Ok(Response::ok(&nearest(&rooms, pid).await?)),
        (None, None) => {
            Err(HttpError::bad_request("one of the parameters pid and module is needed"))
        }
    }
}

/// The module that the process is let in as, else the one for which most checks pass.
async fn nearest(rooms: &Arc<Rooms>, pid: u32) -> Result<Attestation, HttpError> {
    let mut nearest: Option<(usize, Attestation)> = None;
    for module in rooms.modules.registrations.modules() {
        let attestation = examine(rooms, &module, Some(pid)).await?;
        if attestation.allowed {
            return Ok(attestation);
        }
        let passed = attestation.checks.iter().filter(|check| check.passed == Some(true)).count();
        if nearest.as_ref().is_none_or(|(best, _)| passed > *best) {
            nearest = Some((passed, attestation));
        }
    }
    nearest
        .map(|(_, attestation)| attestation)
        .ok_or_else(|| HttpError::not_found("no module is registered").with_code(ErrorCode::Absent))
}

async fn examine(
    rooms: &Arc<Rooms>,
    module: &ModuleId,
    pid: Option<u32>,
) -> Result<Attestation, HttpError> {
    let pid = match pid {
        Some(pid) => pid,
        None => {
            rooms
                .gate
                .first_process(module)
                .await
                .map_err(|facts| no_process(rooms, module, &facts))?
                .pid
        }
    };
    let examined = rooms.gate.attestor.examine(pid);
    let (who, door) = (Who::Process(&examined), Door::ModuleSocket(module.clone()));
    let asked = Asked { module, generation: None };
    let (subject, verdict) =
        rooms.gate.judge(who, &door, &asked).await.map_err(Refused::NoGauge)?;
    Ok(rooms.gate.attestation(who, pid, module, &subject, verdict))
}

/// Returns the error that tells why there is no process to look at, and what to do.
fn no_process(rooms: &Rooms, module: &ModuleId, facts: &RunningFacts) -> HttpError {
    let why = match facts {
        RunningFacts::Host(_) => {
            format!("{module} is a service of the host, which something else starts")
        }
        _ if rooms.modules.registrations.of(module).is_none() => {
            format!("there is no registered module {module}: see `edgekeep list`")
        }
        RunningFacts::Unknown => format!(
            "it is not known whether {module} runs, for the container engine has not been heard: see `edgekeep status`"
        ),
        _ => format!(
            "module {module} does not run: start it with `edgekeep restart {}`",
            module.name()
        ),
    };
    HttpError::new(StatusCode::CONFLICT, format!("{why}; or name a process by pid"))
}

/// Callers that were refused: for who may look at processes.
pub(super) async fn past(rooms: Arc<Rooms>, request: Request) -> Result<Response, HttpError> {
    rooms.gate.admit_operator_or_agent(&called(&request)).await?;
    let module = request.query("module").map(|module| {
        module.parse::<ModuleId>().map_err(|error| HttpError::bad_request(error.to_string()))
    });
    let last = request.query("last").map(|last| {
        last.parse::<usize>().map_err(|_| HttpError::bad_request("invalid parameter: last"))
    });
    let refusals = rooms
        .gate
        .trail
        .past(module.transpose()?.as_ref(), last.transpose()?.unwrap_or(usize::MAX));
    Ok(Response::ok(&PastRefusals { refusals }))
}
