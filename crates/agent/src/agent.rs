//! One round: look at manifest and modules, let `edgekeep-core` decide, make the calls,
//! report.

use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use edgekeep_api::client::ClientError;
use edgekeep_api::management::{
    CreateIdentity, DeploymentReport, Identity, ManagementClient, ModuleDetails, ModuleSpec,
};
use edgekeep_api::operations::ProblemList;
use edgekeep_base::error;
use edgekeep_core::deployment::Deployment;
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::ModuleId;
use edgekeep_core::reconcile::{
    self, Action, Current, Generations, Memory, Observed, Step, Target, Targets, Timestamp,
};
use edgekeep_daemon::store::{self, StateFile, StoreError};

use crate::manifest::ManifestFile;
use crate::reported::{self, Platform, View, from_rfc3339, runtime_state};
use crate::settings::Settings;
use crate::spec::{self, FINGERPRINT_LABEL, GENERATION_LABEL};

/// Value of `managedBy` of the identities made here, as the field's agent sets it.
const MANAGED_BY: &str = "IotEdge";

/// Characters of one error that are kept.
const ERROR_LIMIT: usize = 1000;

/// Failure to open the agent.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state folder could be written by somebody else, who could then decide what
    /// counts as applied.
    #[error("{} must be a folder of user {uid} that nobody else can write to; set EDGEKEEP_AGENT_STATE to one", path.display())]
    Folder {
        /// The state folder.
        path: PathBuf,
        /// The agent's user.
        uid: u32,
    },
    /// The state folder cannot be used, or is of a newer version.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Tells the time by the wall clock.
pub type Clock = Box<dyn Fn() -> Timestamp>;

/// The agent between two rounds.
pub struct Agent {
    settings: Settings,
    clock: Clock,
    client: ManagementClient,
    manifest: ManifestFile,
    last_good: StateFile<String>,
    memory_file: StateFile<Memory>,

    deployment: Option<Deployment>,
    /// Code and text of the reason why the manifest, as it is now, is not applied; `None`
    /// if it is applied.
    manifest_error: Option<(u16, String)>,
    memory: Memory,
    saved: Memory,
    /// Last failure of each module about which something fails.
    errors: BTreeMap<ModuleId, String>,
    /// The modules as they were seen last.
    modules: BTreeMap<ModuleId, ModuleDetails>,
    platform: Option<Platform>,
    /// Failure to list the identities in the last round; `None` if they were listed.
    identities_error: Option<String>,
    status: (u16, String),
    /// The device's health, as the daemon knows it.
    health: Option<ProblemList>,
    written: Option<String>,
}

impl Agent {
    /// An agent that goes on where the state folder says that the last one ended.
    ///
    /// # Errors
    /// If the state folder cannot be used. Damaged files are set aside and done without.
    pub fn open(settings: Settings, clock: Clock) -> Result<Self, OpenError> {
        let folder = settings.state_folder.clone();
        store::private_folder(&folder)?;
        check_owner(&folder)?;
        store::sweep_temporary(&folder);
        let memory_file = StateFile::new(folder.join("modules.json"), "agent-modules", 1);
        let last_good = StateFile::new(folder.join("deployment.json"), "agent-deployment", 1);
        let memory: Memory = undamaged(memory_file.load())?.unwrap_or_default();
        let text: Option<String> = undamaged(last_good.load())?;
        let parent = settings.device.parent.clone();
        let deployment = text.and_then(|text| match Deployment::parse(&text, parent.as_deref()) {
            Ok(deployment) => Some(deployment),
            Err(error) => {
                tracing::warn!("the last good deployment is not usable any more: {error}");
                None
            }
        });
        Ok(Self {
            client: ManagementClient::new(&settings.management_socket),
            manifest: ManifestFile::new(&settings.manifest, parent.as_deref()),
            settings,
            clock,
            last_good,
            memory_file,
            deployment,
            manifest_error: None,
            saved: memory.clone(),
            memory,
            errors: BTreeMap::new(),
            modules: BTreeMap::new(),
            platform: None,
            identities_error: None,
            status: (200, String::new()),
            health: None,
            written: None,
        })
    }

    /// Code and description of the last round, as reported.
    #[must_use]
    pub fn status(&self) -> (u16, &str) {
        (self.status.0, &self.status.1)
    }

    /// Does all that can be done now.
    pub async fn round(&mut self) {
        self.read_manifest();
        let fresh = match self.reconcile().await {
            Ok(()) => {
                let code = if self.errors.is_empty() { 200 } else { 500 };
                let errors: Vec<&str> = self.errors.values().map(String::as_str).collect();
                self.set_status(code, &errors.join("; "));
                true
            }
            Err(error) => {
                self.set_status(500, &format!("cannot list modules: {}", chain(&error)));
                self.platform = None;
                false
            }
        };
        self.save_memory();
        self.tell().await;
        self.report(fresh);
    }

    /// Tells the daemon what should run and what cannot be done, so that the device's
    /// health shows it, and asks for that health.
    async fn tell(&mut self) {
        let modules = self.deployment.iter().flat_map(|deployment| &deployment.modules);
        let running =
            modules.filter(|(id, module)| reported::should_run(module, self.modules.get(*id)));
        let report = DeploymentReport {
            problem: self.manifest_error.as_ref().map(|(_, reason)| reason.clone()),
            running: running.map(|(id, _)| id.to_string()).collect(),
            failing: self
                .errors
                .iter()
                .map(|(id, error)| (id.to_string(), error.clone()))
                .collect(),
        };
        self.health = match self.client.report_deployment(&report).await {
            Ok(health) => Some(health),
            Err(error) => {
                tracing::debug!("the daemon takes no report: {}", chain(&error));
                None
            }
        };
    }

    /// Reports that nobody looks after the modules any more. They keep running.
    pub fn ended(&mut self) {
        self.save_memory();
        self.status = (406, "Agent is not running".to_owned());
        self.health = None;
        self.report(false);
    }

    fn read_manifest(&mut self) {
        match self.manifest.poll() {
            Ok(None) => {}
            Ok(Some((text, deployment))) => {
                let version = deployment
                    .version
                    .map_or_else(String::new, |version| format!(" version {version}"));
                tracing::info!("manifest{version} read: {} modules", deployment.modules.len());
                if deployment.signed {
                    tracing::warn!("the manifest carries a signature, which is not verified");
                }
                // Asking again is how an operator says "now".
                self.memory.forget_failures();
                if let Err(error) = self.last_good.save(&text) {
                    tracing::warn!(
                        "cannot keep the manifest for the next start: {}",
                        chain(&error)
                    );
                }
                self.deployment = Some(deployment);
                self.manifest_error = None;
            }
            Err(error) => {
                let going_on = if self.deployment.is_some() {
                    "; the last good one stays in force"
                } else {
                    ""
                };
                let text = chain(&error);
                if self.manifest_error.as_ref().is_none_or(|(_, earlier)| *earlier != text) {
                    tracing::error!("{text}{going_on}");
                }
                self.manifest_error = Some((error.code(), text));
            }
        }
    }

    async fn reconcile(&mut self) -> Result<(), ClientError> {
        self.list_modules().await?;
        if self.platform.is_none() {
            match self.client.system_info().await {
                Ok(info) => {
                    let (os, architecture, version) =
                        (info.os_type, info.architecture, info.version);
                    self.platform = Some(Platform { os, architecture, version });
                }
                Err(error) => tracing::warn!("cannot read systeminfo: {}", chain(&error)),
            }
        }
        let Some(deployment) = self.deployment.clone() else { return Ok(()) };
        let desired = self.targets(&deployment);
        let current = self.current();
        let mut identities = Identities::default();
        let generations = self.generations(&desired, &mut identities).await;
        let now = (self.clock)();
        self.memory.observe(&desired, &current, generations.as_ref(), now);
        let steps = reconcile::plan(&desired, &current, generations.as_ref(), &self.memory, now);
        let idle = steps.is_empty();
        for step in steps {
            self.take(&step, &deployment, &mut identities).await;
            self.save_memory();
        }
        let memory = &self.memory;
        self.errors.retain(|module, _| memory.is_failing(module));
        for module in desired.keys().filter(|module| memory.is_failing(module)) {
            self.errors
                .entry(module.clone())
                .or_insert_with(|| format!("{module}: an earlier attempt failed"));
        }
        if !idle {
            self.list_modules().await?;
        }
        Ok(())
    }

    async fn list_modules(&mut self) -> Result<(), ClientError> {
        let modules = self.client.list_modules().await?;
        self.modules = modules
            .into_iter()
            .filter_map(|details| match details.name.parse() {
                Ok(id) => Some((id, details)),
                Err(error) => {
                    tracing::warn!("a module of the device is left alone: {error}");
                    None
                }
            })
            .collect();
        Ok(())
    }

    fn targets(&self, deployment: &Deployment) -> Targets {
        let target = |(id, module): (&ModuleId, &edgekeep_core::deployment::Module)| {
            let target = Target {
                fingerprint: spec::fingerprint(id, module, &self.settings.device),
                status: module.status,
                restart_policy: module.restart_policy,
                startup_order: module.startup_order,
            };
            (id.clone(), target)
        };
        deployment.modules.iter().map(target).collect()
    }

    fn current(&self) -> Current {
        self.modules.iter().map(|(id, details)| (id.clone(), observed(details))).collect()
    }

    /// The generations of the wanted modules' identities; `None` if they cannot be
    /// listed, which is told once and fails nothing: what needs an identity says so
    /// itself.
    async fn generations(
        &mut self,
        desired: &Targets,
        identities: &mut Identities,
    ) -> Option<Generations> {
        match identities.list(&self.client).await {
            Ok(list) => {
                self.identities_error = None;
                let generation = |id: &ModuleId| {
                    let identity = list.get(id.hub_id().as_str())?;
                    Some((id.clone(), identity.generation_id.clone()))
                };
                Some(desired.keys().filter_map(generation).collect())
            }
            Err(error) => {
                if self.identities_error.as_ref() != Some(&error) {
                    tracing::warn!("cannot list identities, and goes on without: {error}");
                    self.identities_error = Some(error);
                }
                None
            }
        }
    }

    /// Takes one step as far as it goes, and remembers how far that was.
    async fn take(&mut self, step: &Step, deployment: &Deployment, identities: &mut Identities) {
        let module = &step.module;
        let mut completed = 0;
        for action in &step.actions {
            match self.call(*action, module, deployment, identities).await {
                Ok(done) => {
                    tracing::info!("{module}: {done}");
                    completed += 1;
                }
                Err(error) => {
                    let text = format!("{module}: cannot {}: {error}", words(*action));
                    tracing::warn!("{text}");
                    self.errors.insert(module.clone(), text);
                    break;
                }
            }
        }
        self.memory.record(step, completed, identities.generation(module), (self.clock)());
    }

    /// One call; what was done or what went wrong, in words.
    async fn call(
        &self,
        action: Action,
        id: &ModuleId,
        deployment: &Deployment,
        identities: &mut Identities,
    ) -> Result<&'static str, String> {
        let name = id.name();
        match action {
            Action::EnsureIdentity => identities.ensure(&self.client, id).await,
            Action::DeleteIdentity => identities.delete(&self.client, id).await,
            Action::PrepareUpdate => {
                let mut spec = self.spec(id, deployment, identities)?;
                // Fetching an image needs no environment.
                spec.config.env = Some(Vec::new());
                answer(self.client.prepare_update(&spec).await, "image is ready")
            }
            Action::Create => {
                let spec = self.spec(id, deployment, identities)?;
                answer(self.client.create_module(&spec).await.map(drop), "created")
            }
            Action::Update => {
                let spec = self.spec(id, deployment, identities)?;
                answer(self.client.update_module(&spec, false).await.map(drop), "replaced")
            }
            Action::Start => {
                answer(unchanged_is_fine(self.client.start_module(name).await), "started")
            }
            Action::Stop => {
                answer(unchanged_is_fine(self.client.stop_module(name).await), "stopped")
            }
            Action::Remove => match self.client.remove_module(name).await {
                Err(error) if error.status().is_some_and(|status| status.as_u16() == 404) => {
                    Ok("was removed already")
                }
                result => answer(result, "removed"),
            },
        }
    }

    fn spec(
        &self,
        id: &ModuleId,
        deployment: &Deployment,
        identities: &Identities,
    ) -> Result<ModuleSpec, String> {
        let module = deployment.modules.get(id).ok_or("it is not in the deployment")?;
        let generation = identities.generation(id).ok_or("it has no identity")?;
        let credential = deployment.runtime.credential_for(&module.image);
        spec::module_spec(id, module, &self.settings.device, generation, credential)
            .map_err(|error| error.to_string())
    }

    /// A refused manifest stays the headline, whatever else there is.
    fn set_status(&mut self, code: u16, description: &str) {
        let status = match &self.manifest_error {
            None => (code, description.to_owned()),
            Some((code, reason)) if description.is_empty() => (*code, reason.clone()),
            Some((code, reason)) => (*code, format!("{reason}; {description}")),
        };
        if status != self.status {
            match &status {
                (200, _) => tracing::info!("all is as it should be"),
                (code, description) => tracing::warn!("status {code}: {description}"),
            }
            self.status = status;
        }
    }

    fn save_memory(&mut self) {
        if self.memory == self.saved {
            return;
        }
        match self.memory_file.save(&self.memory) {
            Ok(()) => self.saved = self.memory.clone(),
            Err(error) => tracing::warn!("cannot keep what was applied: {}", chain(&error)),
        }
    }

    fn report(&mut self, fresh: bool) {
        let view = View {
            deployment: self.deployment.as_ref(),
            status: (self.status.0, &self.status.1),
            platform: self.platform.as_ref(),
            modules: &self.modules,
            memory: &self.memory,
            errors: &self.errors,
            health: self.health.as_ref(),
            fresh,
        };
        let text = format!("{:#}\n", reported::reported(&view));
        if self.written.as_ref() == Some(&text) {
            return;
        }
        let path = self.settings.state_folder.join("reported.json");
        match store::write_replaceable(&path, text.as_bytes(), 0o600) {
            Ok(()) => self.written = Some(text),
            Err(error) => tracing::warn!("cannot report: {}", chain(&error)),
        }
    }
}

/// The hub's view of module identities, read once a round: identityd knows it by heart.
#[derive(Default)]
struct Identities {
    /// By hub id.
    listed: Option<Result<BTreeMap<String, Identity>, String>>,
}

impl Identities {
    async fn list(
        &mut self,
        client: &ManagementClient,
    ) -> Result<&mut BTreeMap<String, Identity>, String> {
        if self.listed.is_none() {
            let list = client.list_identities().await.map_err(|error| chain(&error));
            let list = list.map(|list| {
                list.into_iter().map(|entry| (entry.module_id.clone(), entry)).collect()
            });
            self.listed = Some(list);
        }
        match &mut self.listed {
            Some(Ok(list)) => Ok(list),
            Some(Err(error)) => Err(error.clone()),
            None => Err("identities were not listed".to_owned()),
        }
    }

    fn generation(&self, id: &ModuleId) -> Option<&str> {
        let list = self.listed.as_ref()?.as_ref().ok()?;
        list.get(id.hub_id().as_str()).map(|identity| identity.generation_id.as_str())
    }

    async fn ensure(
        &mut self,
        client: &ManagementClient,
        id: &ModuleId,
    ) -> Result<&'static str, String> {
        let hub_id = id.hub_id();
        let list = self.list(client).await?;
        let known = list.contains_key(hub_id.as_str());
        let result = if known {
            client.update_identity(hub_id.as_str()).await
        } else {
            let request = CreateIdentity {
                module_id: hub_id.to_string(),
                managed_by: Some(MANAGED_BY.to_owned()),
            };
            client.create_identity(&request).await
        };
        match result {
            Ok(identity) => {
                list.insert(hub_id.to_string(), identity);
                Ok(if known { "identity is up to date" } else { "identity created" })
            }
            // The hub may be away. An identity that is known is good enough to start
            // with.
            Err(error) if known => {
                tracing::warn!("{id}: identity could not be brought up to date: {}", chain(&error));
                Ok("identity is the one known before")
            }
            Err(error) => Err(chain(&error)),
        }
    }

    async fn delete(
        &mut self,
        client: &ManagementClient,
        id: &ModuleId,
    ) -> Result<&'static str, String> {
        let hub_id = id.hub_id();
        let list = self.list(client).await?;
        match list.get(hub_id.as_str()) {
            None => return Ok("has no identity left"),
            Some(identity) if !identity.managed_by.eq_ignore_ascii_case(MANAGED_BY) => {
                return Ok("identity is managed by somebody else and stays");
            }
            Some(_) => {}
        }
        client.delete_identity(hub_id.as_str()).await.map_err(|error| chain(&error))?;
        list.remove(hub_id.as_str());
        Ok("identity deleted")
    }
}

fn observed(details: &ModuleDetails) -> Observed {
    let status = &details.status;
    let labels = &details.config.settings["createOptions"]["Labels"];
    Observed {
        state: runtime_state(&status.runtime_status),
        fingerprint: labels[FINGERPRINT_LABEL]
            .as_str()
            .and_then(|label| label.parse::<Sha256Digest>().ok()),
        generation: labels[GENERATION_LABEL].as_str().map(str::to_owned),
        last_start: status.start_time.as_deref().and_then(from_rfc3339),
        last_exit: status.exit_status.as_ref().and_then(|exit| from_rfc3339(&exit.exit_time)),
    }
}

const fn words(action: Action) -> &'static str {
    match action {
        Action::EnsureIdentity => "get its identity",
        Action::PrepareUpdate => "fetch its image",
        Action::Create => "create it",
        Action::Update => "replace it",
        Action::Remove => "remove it",
        Action::Start => "start it",
        Action::Stop => "stop it",
        Action::DeleteIdentity => "delete its identity",
    }
}

/// A daemon of the field may answer 304 where nothing was to be done.
fn unchanged_is_fine(result: Result<(), ClientError>) -> Result<(), ClientError> {
    match result {
        Err(error) if error.status().is_some_and(|status| status.as_u16() == 304) => Ok(()),
        result => result,
    }
}

fn answer(result: Result<(), ClientError>, done: &'static str) -> Result<&'static str, String> {
    result.map(|()| done).map_err(|error| chain(&error))
}

/// An error with its causes, in one line that is not too long. Daemons put their causes
/// on lines of their own.
fn chain(error: &dyn Error) -> String {
    let text = error::chain(error).replace("\ncaused by: ", ": ");
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ERROR_LIMIT).collect()
}

/// The usual place is a folder where anybody may make folders: an attacker's is not taken
/// for ours.
fn check_owner(folder: &Path) -> Result<(), OpenError> {
    let uid = rustix::process::geteuid().as_raw();
    let metadata = std::fs::symlink_metadata(folder);
    let good = metadata
        .is_ok_and(|found| found.is_dir() && found.uid() == uid && found.mode() & 0o022 == 0);
    if good { Ok(()) } else { Err(OpenError::Folder { path: folder.to_owned(), uid }) }
}

/// A damaged file has been set aside: the device goes on without it.
fn undamaged<T>(loaded: Result<Option<T>, StoreError>) -> Result<Option<T>, StoreError> {
    match loaded {
        Err(StoreError::Damaged { .. }) => {
            if let Err(error) = &loaded {
                tracing::error!("{error}");
            }
            Ok(None)
        }
        loaded => loaded,
    }
}
