//! Services of the host that something else starts, for example systemd: registered from
//! the configuration, given an identity, shown in the list, and neither started nor
//! stopped by this daemon.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use edgekeep_api::management::{DetailsConfig, ModuleDetails, ModuleStatus, RuntimeStatus};
use edgekeep_base::error::chain;
use edgekeep_core::attestation::{HostFacts, Policy, Registration, Workload};
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::host::HostService;
use edgekeep_core::id::ModuleId;
use serde_json::json;

use crate::modules::Modules;
use crate::modules::error::ModuleError;

/// First pause before an identity is asked for again.
const RETRY: Duration = Duration::from_millis(500);
/// Longest such pause.
const RETRY_LIMIT: Duration = Duration::from_secs(60);

/// The daemon's own place on the machine. Read once at start: it does not change.
pub(crate) fn host_facts() -> std::io::Result<HostFacts> {
    let inode = |name: &str| {
        std::fs::metadata(format!("/proc/self/ns/{name}")).map(|metadata| metadata.ino())
    };
    Ok(HostFacts { pid_namespace: inode("pid")?, user_namespace: inode("user")? })
}

/// A configured service of this name.
pub(crate) fn find<'a>(
    modules: &'a Modules,
    module: &ModuleId,
) -> Option<(&'a ModuleId, &'a HostService)> {
    modules.settings.host_services.iter().find(|(id, _)| id.name() == module.name())
}

/// Refuses what can be done to modules only.
pub(crate) fn refuse(modules: &Modules, module: &ModuleId) -> Result<(), ModuleError> {
    let Some((id, found)) = find(modules, module) else { return Ok(()) };
    let whose = match &found.unit {
        Some(unit) => format!("systemd's unit {unit}; use systemctl"),
        None => "started by something else on this host".to_owned(),
    };
    let message = format!(
        "{id} is a service of the host, {whose}, or change [host_services.{id}] in the configuration"
    );
    Err(ModuleError::IsService(message))
}

/// Brings the registrations into line with the configuration. What is wrong with a
/// service is told and leaves it without a registration, and so without an identity.
pub(crate) async fn register(modules: &Modules) {
    for module in modules.registrations.modules() {
        let Some(registration) = modules.registrations.of(&module) else { continue };
        let is_service = matches!(registration.workload, Workload::Service { .. });
        if is_service && let Err(error) = modules.registrations.remove(&module).await {
            tracing::error!(%module, %error, "registration of a former service not removed");
        }
    }
    for (id, found) in &modules.settings.host_services {
        let problem = match workload(modules, id, found).await {
            Ok(_) if modules.registrations.of(id).is_some() => {
                "there is a module of that name; remove it".to_owned()
            }
            Ok(workload) => {
                let registration = Registration {
                    module: id.clone(),
                    generation: None,
                    policy: Policy::Executable,
                    workload,
                };
                match modules.registrations.put(registration).await {
                    Ok(()) => continue,
                    Err(error) => error.to_string(),
                }
            }
            Err(problem) => problem,
        };
        modules.board.raise(Code::ServiceNotRegistered, &Subject::module(id), problem);
    }
}

/// Registers a service anew whose executable was approved; another name is left alone.
pub(crate) async fn reregister(modules: &Modules, name: &str) -> Result<(), ModuleError> {
    let Some((id, found)) = name
        .parse()
        .ok()
        .and_then(|id: ModuleId| modules.settings.host_services.get_key_value(&id))
    else {
        return Ok(());
    };
    // One that could not be registered is not registered by the way.
    let Some(registration) = modules.registrations.of(id) else { return Ok(()) };
    if !matches!(registration.workload, Workload::Service { .. }) {
        return Ok(());
    }
    let workload = workload(modules, id, found).await.map_err(ModuleError::Device)?;
    let next = Registration { workload, ..registration };
    modules.registrations.put(next).await.map_err(ModuleError::hidden)
}

/// Returns the workload that a service is matched by.
pub(crate) async fn workload(
    modules: &Modules,
    id: &ModuleId,
    found: &HostService,
) -> Result<Workload, String> {
    let uid = match &found.user {
        Some(user) => {
            let accounts = modules.processes.launching().accounts().await;
            let accounts = accounts.map_err(|error| chain(&error))?;
            Some(accounts.uid(user).map_err(|error| error.to_string())?)
        }
        None => None,
    };
    let executable = found.sha256.map(|sha256| modules.approvals.effective(id.as_str(), sha256));
    Ok(Workload::Service { unit: found.unit.clone(), uid, executable })
}

/// Sees to it that each service has an identity at the hub. Ends when all have one.
pub(crate) async fn ensure_identities(modules: Arc<Modules>) {
    let mut left: Vec<ModuleId> = modules.settings.host_services.keys().cloned().collect();
    let mut pause = RETRY;
    while !left.is_empty() {
        let mut without = Vec::new();
        for id in left {
            let client = modules.identities.client();
            let made = match client.module(id.as_str()).await {
                Ok(identity) => Ok(identity),
                Err(_) => client.create_module(id.as_str()).await,
            };
            match made {
                Ok(_) => tracing::info!(service = %id, "service of the host has an identity"),
                Err(error) => {
                    tracing::debug!(service = %id, %error, "no identity yet");
                    without.push(id);
                }
            }
        }
        left = without;
        if !left.is_empty() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_LIMIT);
        }
    }
}

/// The services as the management API shows them.
pub(crate) async fn list(modules: &Modules) -> Vec<ModuleDetails> {
    let services: Vec<(ModuleId, HostService)> = modules
        .settings
        .host_services
        .iter()
        .map(|(id, found)| (id.clone(), found.clone()))
        .collect();
    let mut all = Vec::with_capacity(services.len());
    for (id, found) in services {
        let uid = uid_of(modules, &id, &found).await;
        let runs = runs(modules, &found, uid).await;
        all.push(details(modules, runs, &id, &found));
    }
    all
}

async fn uid_of(modules: &Modules, id: &ModuleId, found: &HostService) -> Option<u32> {
    match workload(modules, id, found).await {
        Ok(Workload::Service { uid, .. }) => uid,
        _ => None,
    }
}

fn details(
    modules: &Modules,
    runs: Option<bool>,
    id: &ModuleId,
    found: &HostService,
) -> ModuleDetails {
    let image = found
        .executable
        .clone()
        .or_else(|| found.unit.as_ref().map(ToString::to_string))
        .unwrap_or_default();
    let mut settings = json!({"image": image, "createOptions": {}});
    if let (Some(sha256), Some(settings)) = (found.sha256, settings.as_object_mut()) {
        settings.insert(
            "imageHash".into(),
            modules.approvals.effective(id.as_str(), sha256).to_string().into(),
        );
    }
    let status = match runs {
        Some(true) => "running",
        Some(false) => "stopped",
        None => "unknown",
    };
    let description = match &found.unit {
        Some(unit) => format!("service of the host, unit {unit}"),
        None => "service of the host".to_owned(),
    };
    ModuleDetails {
        id: "id".into(),
        name: id.name().to_owned(),
        kind: "service".into(),
        config: DetailsConfig { settings, env: Vec::new() },
        status: ModuleStatus {
            start_time: None,
            exit_status: None,
            runtime_status: RuntimeStatus {
                status: status.into(),
                description: Some(description),
                phase: None,
            },
        },
    }
}

/// Returns true if a process is there that could be the service; `None` if that cannot be
/// found out. For people: no caller is judged by the answer.
async fn runs(modules: &Modules, found: &HostService, uid: Option<u32>) -> Option<bool> {
    if let Some(unit) = &found.unit {
        let (unit, folder) = (unit.clone(), modules.hierarchy.mount_point());
        let populated = tokio::task::spawn_blocking(move || {
            let names: Vec<&str> = unit.nesting().collect();
            let group = group_of(Path::new(&folder), &names, SLICES);
            group.is_some_and(|group| is_populated(&group, BELOW))
        });
        return populated.await.ok();
    }
    // A gauge that does not answer is told as such elsewhere.
    modules.gauge.runs(uid?, found.executable.as_ref()?.into()).await.ok().flatten()
}

/// Most slices that a unit is looked for in, each slice within the one before.
const SLICES: u32 = 8;
/// Most levels below a unit's group at which its processes are looked for.
const BELOW: u32 = 4;

/// The group of the last of these units, each of which is in the one before, or in slices
/// in it.
fn group_of(folder: &Path, units: &[&str], depth: u32) -> Option<PathBuf> {
    let [first, rest @ ..] = units else { return Some(folder.to_owned()) };
    let own = [folder.join(first), folder.join(format!("_{first}"))]
        .into_iter()
        .find(|group| group.is_dir());
    if let Some(own) = own {
        return group_of(&own, rest, SLICES);
    }
    let depth = depth.checked_sub(1)?;
    let slices =
        groups_in(folder).filter(|group| group.extension().is_some_and(|kind| kind == "slice"));
    slices.into_iter().find_map(|slice| group_of(&slice, units, depth))
}

fn is_populated(group: &Path, depth: u32) -> bool {
    std::fs::read_to_string(group.join("cgroup.procs"))
        .is_ok_and(|processes| !processes.trim().is_empty())
        || depth
            .checked_sub(1)
            .is_some_and(|depth| groups_in(group).any(|below| is_populated(&below, depth)))
}

fn groups_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_units_group_is_found_in_any_slice_and_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| std::fs::create_dir_all(root.path().join(path)).unwrap();
        make("docker/abc/system.slice/hidden.service");
        make("plant.slice/plant-line7.slice/collector.service/worker");
        make("system.slice/_memory.service");
        make("user.slice/user-1000.slice/user@1000.service/app.slice/own.service");
        let found = |units: &[&str]| {
            let group = group_of(root.path(), units, SLICES)?;
            Some(group.strip_prefix(root.path()).unwrap().to_str().unwrap().to_owned())
        };
        let collector = "plant.slice/plant-line7.slice/collector.service";
        assert_eq!(found(&["collector.service"]).as_deref(), Some(collector));
        assert_eq!(found(&["memory.service"]).as_deref(), Some("system.slice/_memory.service"));
        assert!(
            found(&["user@1000.service", "own.service"])
                .is_some_and(|group| group.ends_with("/own.service"))
        );
        assert_eq!([found(&["hidden.service"]), found(&["own.service"])], [None, None]);

        let group = root.path().join(collector);
        assert!(!is_populated(&group, BELOW));
        std::fs::write(group.join("worker/cgroup.procs"), "17\n").unwrap();
        assert!(is_populated(&group, BELOW));
    }
}
