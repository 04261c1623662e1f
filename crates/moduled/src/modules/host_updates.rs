//! Updates of host modules that can be taken back: what a module was is kept beside what
//! it becomes, until that has started.
//!
//! The runtime writes down what was begun. A daemon that finds something written down
//! settles it before anything else happens to the module, by [`settle_host`]. What is
//! taken back is what the deployment or a host agent changed; the configuration counts as
//! it is now, so a module never comes back with more than it grants.

use std::sync::Arc;
use std::time::Duration;

use edgekeep_core::attestation::{Registration, Workload};
use edgekeep_core::id::ModuleId;
use edgekeep_core::replacement::{Runs, Settlement, settle_host};
use edgekeep_runtime::process::{BegunUpdate, ProcessSpec};
use edgekeep_runtime::status::ModuleState;

use crate::modules::Modules;
use crate::modules::error::ModuleError;
use crate::modules::host::{process_spec, registered, renewed};
use crate::modules::spec::ValidSpec;
use crate::modules::{new_registration, start_locked, stop_locked};

/// Longest time that a half-started new process may take to end.
const GRACE: Duration = Duration::from_secs(10);

fn workload(spec: &ProcessSpec) -> Workload {
    Workload::Process { executable: spec.sha256, uid: spec.plan.uid }
}

/// Makes a module what a deployment says, and starts it if asked to. The module's lock is
/// held.
///
/// # Errors
/// The error of the step that failed; the module is then as it was.
pub(crate) async fn update(
    modules: &Arc<Modules>,
    spec: &ValidSpec,
    start: bool,
) -> Result<(), ModuleError> {
    let next = process_spec(modules, spec).await?;
    let registration = new_registration(modules, spec, workload(&next)).await;
    change(modules, next, registration, start).await
}

/// Restarts a module with the executable that was approved since it was started, if there
/// is one; `false`: there is none. The module's lock is held.
///
/// # Errors
/// As [`update`]; the approval is then taken back as well.
pub(crate) async fn restart_approved(
    modules: &Arc<Modules>,
    module: &ModuleId,
) -> Result<bool, ModuleError> {
    let known = modules.processes.spec(module).await?;
    let (configured, sha256) = registered(modules, &known.image)?;
    let status = modules.processes.status(module).await?;
    let approved = sha256 != configured.sha256 && sha256 != known.sha256;
    let Some(registration) = modules.registrations.of(module).filter(|_| approved) else {
        return Ok(false);
    };
    if status.state != ModuleState::Running {
        return Ok(false);
    }
    let next = renewed(modules, module, &known).await?;
    let registration = Registration { workload: workload(&next), ..registration };
    change(modules, next, registration, true).await.map(|()| true)
}

async fn change(
    modules: &Arc<Modules>,
    next: ProcessSpec,
    registration: Registration,
    start: bool,
) -> Result<(), ModuleError> {
    let module = registration.module.clone();
    let processes = &modules.processes;
    processes.begin_update(&module, next, start).await?;
    let swapped = async {
        stop_locked(modules, &module, None).await?;
        modules.registrations.put(registration).await.map_err(ModuleError::hidden)?;
        if start { start_locked(modules, &module).await } else { Ok(()) }
    };
    let Err(error) = swapped.await else {
        if let Err(error) = processes.end_update(&module, true).await {
            tracing::warn!(%module, %error, "the update is whole, but not written down as such; settled later");
        }
        return Ok(());
    };
    let now = match take_back(modules, &module).await {
        Ok(()) => "the module is as it was".to_owned(),
        Err(again) => format!("the module is not yet as it was: {again}"),
    };
    tracing::warn!(%module, %error, now, "update failed");
    Err(ModuleError::UpdateFailed { module, now, cause: Box::new(error) })
}

/// Settles what was begun for a module. The module's lock is held.
///
/// # Errors
/// The state cannot be written, or a process does not end.
pub(crate) async fn settle(modules: &Arc<Modules>, module: &ModuleId) -> Result<(), ModuleError> {
    let Some(begun) = modules.processes.update(module).await else { return Ok(()) };
    let found = modules.registrations.of(module);
    let registered = found.is_some_and(|found| found.workload == workload(&begun.next));
    let settlement = settle_host(begun.runs, registered);
    tracing::warn!(%module, ?settlement, "an update of a host module was cut off");
    if settlement == Settlement::TakeBack {
        return take_back(modules, module).await;
    }
    if begun.start
        && begun.runs == Runs::Nothing
        && let Err(error) = start_locked(modules, module).await
    {
        tracing::warn!(%module, %error, "what the module was to become does not start");
        return take_back(modules, module).await;
    }
    modules.processes.end_update(module, true).await.map_err(ModuleError::from)
}

async fn take_back(modules: &Arc<Modules>, module: &ModuleId) -> Result<(), ModuleError> {
    let processes = &modules.processes;
    let Some(begun) = processes.update(module).await else { return Ok(()) };
    if begun.runs == Runs::New {
        processes.stop(module, GRACE).await?;
    }
    if let Some(registration) = modules.registrations.of(module) {
        let former = Registration { workload: workload(&begun.former), ..registration };
        modules.registrations.put(former).await.map_err(ModuleError::hidden)?;
    }
    withdraw_approval(modules, module, &begun).await?;
    processes.end_update(module, false).await?;
    if begun.ran
        && begun.runs != Runs::Old
        && let Err(error) = start_locked(modules, module).await
    {
        // Whole again, if not running: agents and watchdog see that and start it.
        return Err(ModuleError::DoesNotStartAgain(Box::new(error)));
    }
    Ok(())
}

/// Takes back the approval of an executable that does not start, unless another module
/// runs it.
async fn withdraw_approval(
    modules: &Modules,
    module: &ModuleId,
    begun: &BegunUpdate,
) -> Result<(), ModuleError> {
    let name = &begun.former.image;
    let Ok((configured, now)) = registered(modules, name) else { return Ok(()) };
    let (was, tried) = (begun.former.sha256, begun.next.sha256);
    if begun.next.image != *name || was == tried || now != tried || configured.sha256 == tried {
        return Ok(());
    }
    let others = modules.processes.list().await;
    let runs_it = others.iter().any(|other| {
        other.name != module.name()
            && other.image == *name
            && other.content == Some(tried)
            && other.state == ModuleState::Running
    });
    if runs_it {
        return Ok(());
    }
    tracing::warn!(%module, name, sha256 = %tried, "approval taken back: the new executable does not start");
    modules.approvals.take_back(name, was, configured.sha256).await.map_err(ModuleError::hidden)
}
