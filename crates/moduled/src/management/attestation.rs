//! A process looked at as if it called: what an operator needs to understand a refusal.

use std::sync::Arc;

use edgekeep_api::attestation::{Attestation, Check, Facts, Registered};
use edgekeep_core::attestation::{RunningFacts, checks};
use edgekeep_core::id::ModuleId;
use edgekeep_daemon::server::{HttpError, Request, Response};
use http::StatusCode;

use crate::attest::Subject;
use crate::service::Moduled;

/// For root, the daemon's own user and the agent: it tells about processes of other users.
pub(super) async fn show(service: Arc<Moduled>, request: Request) -> Result<Response, HttpError> {
    let uid = request.caller.uid();
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        service.admit_agent(&request).await?;
    }
    let pid = request
        .query("pid")
        .map(|pid| pid.parse::<u32>().map_err(|_| HttpError::bad_request("invalid parameter: pid")));
    let pid = pid.transpose()?;
    let module = request
        .query("module")
        .map(|module| module.parse::<ModuleId>().map_err(|error| HttpError::bad_request(error.to_string())));
    match (module.transpose()?, pid) {
        (Some(module), pid) => Ok(Response::ok(&examine(&service, &module, pid).await?)),
        (None, Some(pid)) => Ok(Response::ok(&nearest(&service, pid).await?)),
        (None, None) => Err(HttpError::bad_request("one of the parameters pid and module is needed")),
    }
}

/// The module that the process is let in as, else the one for which most checks pass.
async fn nearest(service: &Arc<Moduled>, pid: u32) -> Result<Attestation, HttpError> {
    let mut nearest: Option<(usize, Attestation)> = None;
    for module in service.registrations.modules() {
        let attestation = examine(service, &module, Some(pid)).await?;
        if attestation.allowed {
            return Ok(attestation);
        }
        let passed = attestation.checks.iter().filter(|check| check.passed == Some(true)).count();
        if nearest.as_ref().is_none_or(|(best, _)| passed > *best) {
            nearest = Some((passed, attestation));
        }
    }
    nearest.map(|(_, attestation)| attestation).ok_or_else(|| HttpError::not_found("no module is registered"))
}

async fn examine(service: &Arc<Moduled>, module: &ModuleId, pid: Option<u32>) -> Result<Attestation, HttpError> {
    let registration = service.registrations.of(module);
    let subject = Subject {
        facts: service.modules.facts(module, registration.as_ref()),
        layers: service.modules.layers(module, registration.as_ref()),
        registration,
    };
    let init = match &subject.facts {
        RunningFacts::Running(running) => Some(running.init.pid),
        _ => None,
    };
    let pid = pid.or(init).ok_or_else(|| {
        let message = match &subject.facts {
            RunningFacts::Host(_) => format!("{module} is a service of the host, which something else starts"),
            _ => format!("module {module} does not run or is not known"),
        };
        let message = format!("{message}: name a process by pid");
        HttpError::new(StatusCode::CONFLICT, message)
    })?;
    let (evidence, verdict) = service.attestor.examine(pid, module, &subject).await;
    let mut before = true;
    let mut list: Vec<Check> = checks(subject.registration.as_ref())
        .into_iter()
        .map(|reason| {
            let failed = verdict == Err(reason);
            let passed = (before && !reason.is_of_connection()).then_some(!failed);
            before &= !failed;
            Check { reason, passed }
        })
        .collect();
    if let Err(reason) = verdict
        && before
    {
        // The process could not even be looked at.
        list.iter_mut().for_each(|check| check.passed = None);
        list.insert(0, Check { reason, passed: Some(false) });
    }
    Ok(Attestation {
        module: module.to_string(),
        pid,
        allowed: verdict.is_ok(),
        registration: subject.registration.as_ref().map(Registered::from),
        facts: Facts::from(&subject.facts),
        evidence,
        checks: list,
    })
}
