//! Specifications that host modules are started from: the operator's grant, the
//! deployment's arguments and environment, and a digest that may have been approved
//! since.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgekeep_core::attestation::{Registration, Workload};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::host::{HostModule, LaunchPlan, plan};
use edgekeep_core::id::ModuleId;
use edgekeep_runtime::process::ProcessSpec;
use serde_json::Value;

use crate::modules::Modules;
use crate::modules::error::ModuleError;
use crate::modules::own_users::{NoOwnUser, own_account};
use crate::modules::sockets;
use crate::modules::spec::ValidSpec;

/// Returns the host module that is registered under a name, and the digest that its
/// executable must have now.
pub(crate) fn registered<'a>(
    modules: &'a Modules,
    name: &str,
) -> Result<(&'a HostModule, Sha256Digest), ModuleError> {
    let module = modules.settings.host_modules.get(name).ok_or_else(|| {
        ModuleError::Invalid(format!(
            "no host module {name:?} is registered; add [host_modules.{name:?}] with its executable and sha256 to the configuration"
        ))
    })?;
    Ok((module, modules.approvals.effective(name, module.sha256)))
}

/// The registered executable that a host module names as its image, as it is to be
/// started.
pub(crate) async fn process_spec(
    modules: &Modules,
    spec: &ValidSpec,
) -> Result<ProcessSpec, ModuleError> {
    let name = &spec.settings.image;
    let (registered, sha256) = registered(modules, name)?;
    for (member, wanted) in
        [("digest", &spec.settings.digest), ("imageHash", &spec.settings.image_hash)]
    {
        if let Some(wanted) = wanted
            && wanted.parse() != Ok(sha256)
        {
            return Err(ModuleError::Invalid(format!(
                "{member} of module {} is not that of the registered executable, {sha256}",
                spec.module
            )));
        }
    }
    let options = &spec.settings.create_options;
    let args = match options.get("Cmd") {
        Some(cmd) => strings(cmd, "Cmd")?,
        None => registered.args.clone(),
    };
    let mut env = spec.env.clone();
    if let Some(own) = options.get("Env") {
        for entry in strings(own, "Env")? {
            if let Some((key, value)) = entry.split_once('=') {
                env.insert(key.to_owned(), value.to_owned());
            }
        }
    }
    // The measurement covers the executable and not what its loader is told to add.
    if let Some(variable) = env.keys().find(|name| HostModule::changes_loading(name)) {
        return Err(ModuleError::Invalid(format!(
            "environment variable {variable} would change what a measured executable runs; use a container module"
        )));
    }
    let working_dir = options.get("WorkingDir").and_then(Value::as_str).map(Into::into);
    let plan = planned(modules, &spec.module, name, registered).await?;
    set_env(modules, &spec.module, registered, &plan, &mut env);
    if spec.module.is_edge_agent()
        && let Some(folder) = agent_folder(modules)
    {
        own_folder(modules, &folder, &plan).await?;
    }
    Ok(ProcessSpec {
        image: name.clone(),
        executable: registered.executable.clone().into(),
        sha256,
        args,
        env,
        // The operator's word, as with the environment.
        working_dir: registered.working_dir.clone().map(Into::into).or(working_dir),
        plan,
    })
}

/// Has a module that does not run start next as the configuration and the approvals have
/// it now.
pub(crate) async fn renew(modules: &Arc<Modules>, module: &ModuleId) -> Result<(), ModuleError> {
    let known = modules.processes.spec(module).await?;
    let next = renewed(modules, module, &known).await?;
    let (sha256, uid) = (next.sha256, next.plan.uid);
    if next != known {
        modules.processes.renew(module, next).await?;
    }
    if let Some(registration) = modules.registrations.of(module) {
        let workload = Workload::Process { executable: sha256, uid };
        if registration.workload != workload {
            let next = Registration { workload, ..registration };
            modules.registrations.put(next).await.map_err(ModuleError::hidden)?;
        }
    }
    Ok(())
}

/// Returns the specification that a module is made from, as the configuration and the
/// approvals have it now.
pub(crate) async fn renewed(
    modules: &Modules,
    module: &ModuleId,
    known: &ProcessSpec,
) -> Result<ProcessSpec, ModuleError> {
    let (registered, sha256) = registered(modules, &known.image)?;
    let plan = planned(modules, module, &known.image, registered).await?;
    let mut env = known.env.clone();
    set_env(modules, module, registered, &plan, &mut env);
    Ok(ProcessSpec {
        executable: registered.executable.clone().into(),
        sha256,
        env,
        plan,
        working_dir: registered
            .working_dir
            .clone()
            .map(Into::into)
            .or_else(|| known.working_dir.clone()),
        ..known.clone()
    })
}

/// The plan by which a program is started, with the users and rights that there are now.
async fn planned(
    modules: &Modules,
    module: &ModuleId,
    name: &str,
    registered: &HostModule,
) -> Result<LaunchPlan, ModuleError> {
    let hidden = |error: io::Error| ModuleError::hidden(error);
    let rights = modules.processes.launching().rights();
    let own =
        rights.ok_or_else(|| hidden(io::Error::other("the daemon's rights are not known")))?;
    let accounts = modules.processes.launching().accounts().await?;
    let refused = |why: &dyn std::fmt::Display| {
        ModuleError::Invalid(format!(
            "[host_modules.{name:?}] cannot be started as {module}: {why}"
        ))
    };
    let account = own_account(modules, module, registered, &accounts).map_err(|why| match why {
        NoOwnUser::User(why) => refused(&why),
        NoOwnUser::Store(why) => ModuleError::hidden(why),
    })?;
    plan(registered, &own, &accounts, modules.settings.allow_root_host_modules, account)
        .map_err(|why| refused(&why))
}

/// The folder in which an agent with a user of its own remembers what it applied.
pub(crate) fn agent_folder(modules: &Modules) -> Option<PathBuf> {
    let registered = modules.settings.host_modules.get(&modules.settings.agent.image)?;
    let own = modules.settings.host_module_ids.is_some() && registered.user.is_none();
    own.then(|| modules.state_folder().join("agent"))
}

/// Makes a folder for a module's own files, which only its user can enter. Other daemons'
/// folders are above it, so it is moduled that makes it.
async fn own_folder(
    modules: &Modules,
    folder: &Path,
    plan: &LaunchPlan,
) -> Result<(), ModuleError> {
    let hidden = |error: io::Error| ModuleError::hidden(error);
    if !folder.exists() {
        std::fs::DirBuilder::new().mode(0o700).create(folder).map_err(hidden)?;
    }
    if std::fs::symlink_metadata(folder).map_err(hidden)?.uid() != plan.uid {
        let launching = modules.processes.launching();
        let given = launching.hand_over(folder, plan.uid, plan.gid).await;
        given?;
    }
    Ok(())
}

/// Sets the variables of the operator and of the daemon in the environment. These
/// variables take precedence over those of the deployment.
fn set_env(
    modules: &Modules,
    module: &ModuleId,
    registered: &HostModule,
    plan: &LaunchPlan,
    env: &mut BTreeMap<String, String>,
) {
    env.extend(registered.env.clone());
    let folder = modules.root.module_socket_folder();
    env.insert(
        "IOTEDGE_WORKLOADURI".into(),
        format!("unix://{}", folder.join(format!("{}.sock", module.name())).display()),
    );
    let other_user = plan.uid != rustix::process::geteuid().as_raw();
    if registered.management || (module.is_edge_agent() && other_user) {
        let socket = folder.join(module.name()).join(sockets::MANAGEMENT_SOCKET);
        env.insert("IOTEDGE_MANAGEMENTURI".into(), format!("unix://{}", socket.display()));
    }
}

fn strings(value: &Value, member: &str) -> Result<Vec<String>, ModuleError> {
    let wrong =
        || ModuleError::Invalid(format!("createOptions.{member} must be an array of strings"));
    value
        .as_array()
        .ok_or_else(wrong)?
        .iter()
        .map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong))
        .collect()
}
