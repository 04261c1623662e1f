//! Management API (`mgmt.sock`; wire facts 2).

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use edgekeep_core::attestation::{DenyReason, PeerHandle};
use edgekeep_core::digest::Sha256Digest;
use http::Method;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::attestation::{Attestation, Explanation, PastRefusals};
use crate::client::{Client, ClientError};
use crate::operations::ProblemList;
pub use crate::workload::API_VERSIONS;

const VERSION: &str = "api-version=2022-08-03";

/// The specification of a module: body of create, update and prepare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModuleSpec {
    /// The module's name.
    pub name: String,
    /// `docker`, or `process` for a host module (ours).
    #[serde(rename = "type")]
    pub kind: String,
    /// `On-Create` (default) or `Never`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
    /// Image, options and environment.
    pub config: ModuleConfig,
}

/// Image, options and environment of a module.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleConfig {
    /// See [`ModuleSettings`].
    pub settings: Value,
    /// Environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<EnvVar>>,
}

impl std::fmt::Debug for ModuleConfig {
    /// Settings may hold registry credentials, the environment anything: neither is
    /// printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModuleConfig").finish_non_exhaustive()
    }
}

/// One environment variable.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name.
    pub key: String,
    /// Value.
    pub value: String,
}

impl std::fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnvVar").field("key", &self.key).finish_non_exhaustive()
    }
}

/// `config.settings` of a module, parsed.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModuleSettings {
    /// Image name, or a name of the device's host modules.
    pub image: String,
    /// Content hash of the image, enforced if given.
    #[serde(default)]
    pub image_hash: Option<String>,
    /// Engine create body.
    #[serde(default)]
    pub create_options: Map<String, Value>,
    /// Digest of the image, or of the executable of a host module; enforced if given for
    /// a host module.
    #[serde(default)]
    pub digest: Option<String>,
    /// Registry credentials.
    #[serde(default)]
    pub auth: Option<Value>,
}

impl std::fmt::Debug for ModuleSettings {
    /// Credentials and options (which may hold an environment) are not printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModuleSettings").field("image", &self.image).finish_non_exhaustive()
    }
}

/// Answer of list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleList {
    /// The modules.
    pub modules: Vec<ModuleDetails>,
}

/// A module as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleDetails {
    /// The constant `id`, as existing clients get it.
    pub id: String,
    /// The module's name.
    pub name: String,
    /// `docker` or `process`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Configuration that the module was created with. Credentials are masked.
    pub config: DetailsConfig,
    /// Run state of the module.
    pub status: ModuleStatus,
}

/// Configuration in an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DetailsConfig {
    /// Settings.
    pub settings: Value,
    /// Environment; empty in list and get.
    pub env: Vec<EnvVar>,
}

/// Run state of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModuleStatus {
    /// RFC 3339 with `Z`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    /// The module's latest end, if it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<ExitStatus>,
    /// State of the module now.
    pub runtime_status: RuntimeStatus,
}

/// The end of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitStatus {
    /// RFC 3339 with `Z`.
    pub exit_time: String,
    /// Exit code, as text.
    pub status_code: String,
}

/// The state of a module now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeStatus {
    /// `running`, `stopped`, `failed`, `dead` or `unknown`; ours, and not to the agent,
    /// which may not know the word: `paused`.
    pub status: String,
    /// The state in words; ours: the reason why a module is not running, if the runtime
    /// knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Ours: `paused` where `status` may not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
}

/// A module's identity at the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The module.
    pub module_id: String,
    /// The manager of the identity.
    pub managed_by: String,
    /// Its generation.
    pub generation_id: String,
    /// Always `sas`.
    pub auth_type: String,
}

/// Answer of the identity list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identities {
    /// The identities.
    pub identities: Vec<Identity>,
}

/// `POST /identities`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateIdentity {
    /// The module.
    pub module_id: String,
    /// The manager of the identity; `iotedge` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_by: Option<String>,
}

/// Answer of `GET /systeminfo` (wire facts 2.7; mixed case on purpose).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SystemInfo {
    /// Kernel name.
    #[serde(rename = "osType")]
    pub os_type: String,
    /// Kernel release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_release: Option<String>,
    /// Kernel version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
    /// os-release `ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operating_system: Option<String>,
    /// os-release `VERSION_ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operating_system_version: Option<String>,
    /// os-release `VARIANT_ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operating_system_variant: Option<String>,
    /// os-release `BUILD_ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operating_system_build: Option<String>,
    /// Processor architecture.
    pub architecture: String,
    /// Number of processors.
    pub cpus: u64,
    /// Bytes of memory.
    pub total_memory: u64,
    /// `yes`, `no` or `unknown`.
    pub virtualized: String,
    /// DMI product name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product_name: Option<String>,
    /// DMI vendor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_vendor: Option<String>,
    /// Version of moduled.
    pub version: String,
    /// Version of the container engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// The way in which the device is provisioned.
    pub provisioning: SystemProvisioning,
    /// Strings of the operator.
    #[serde(flatten)]
    pub additional: Map<String, Value>,
}

/// Provisioning in systeminfo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SystemProvisioning {
    /// `dps.symmetric_key`, `manual.sas`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// True if the hub's refusal leads to a new provisioning.
    pub dynamic_reprovisioning: bool,
    /// True if each start leads to a new provisioning.
    pub always_reprovision_on_startup: bool,
}

/// Answer of `GET /status` (ours): what an operator wants to know at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of moduled.
    pub version: String,
    /// Unix user id that moduled runs as.
    pub uid: u32,
    /// The way in which callers are identified on this kernel.
    pub peer_handle: PeerHandle,
    /// True if host modules get a cgroup of their own.
    pub process_cgroups: bool,
    /// The container engine, if one is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineStatus>,
    /// End of the Edge CA certificate, RFC 3339, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge_ca_expiration: Option<String>,
    /// Problems that keep moduled from working, in words; empty when all is well.
    pub problems: Vec<String>,
    /// The health of the device by all that its daemons know. An older moduled does not
    /// say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<ProblemList>,
    /// Executables of the host that were approved in place of those in the configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
    /// The latest refusals that differ, newest first, at most 20.
    pub refusals: Vec<Refusal>,
    /// Refusals since start.
    pub refusal_count: u64,
}

/// A new executable of a host module or service that a host agent has approved (ours).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// The name in `[host_modules]` or `[host_services]`.
    pub name: String,
    /// Digest that the executable must have, in place of the digest in the configuration.
    pub sha256: String,
    /// The module that approved.
    pub approved_by: String,
    /// Time of the approval, RFC 3339.
    pub time: String,
}

/// Answer of the routes under `/approved-digests` (ours).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approvals {
    /// All that are in force.
    pub approvals: Vec<Approval>,
}

/// Body of `PUT /approved-digests/{name}` (ours).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproveDigest {
    /// Digest of the executable now: SHA-256 in hex.
    pub sha256: String,
}

/// Body of `PUT /deployment` (ours): what the agent says of the deployment that it
/// applies. Its word counts for five minutes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentReport {
    /// The reason why the deployment as a whole cannot be applied, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The modules that should run now.
    #[serde(default)]
    pub running: Vec<String>,
    /// Modules that the agent cannot bring into the state that the deployment wants, with
    /// the reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failing: BTreeMap<String, String>,
}

/// The container engine in a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineStatus {
    /// Its socket.
    pub uri: String,
    /// True if the event stream of the engine is being followed, so that facts are known.
    pub reachable: bool,
    /// Seconds since it was heard, while it is silent; absent if it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_for_seconds: Option<u64>,
}

/// Answer of `GET /images` and `POST /images/collect` (ours): what becomes of the
/// engine's images, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImagePlan {
    /// True if images are removed without being asked for.
    pub enabled: bool,
    /// True if the clock can be right; otherwise nothing is removed for its age.
    pub clock_plausible: bool,
    /// Seconds of operation after which an unused image goes.
    pub unused_limit_seconds: u64,
    /// The disk that the images are on, if it can be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<ImageDisk>,
    /// Each image.
    pub images: Vec<ImageLine>,
}

/// The disk that images are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageDisk {
    /// Used share of the disk, in percent.
    pub used_percent: u8,
    /// Used share, in percent, from which on the longest unused images go.
    pub high_percent: u8,
    /// Used share, in percent, down to which they go.
    pub low_percent: u8,
}

/// One image and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageLine {
    /// Its id.
    pub id: Sha256Digest,
    /// Its names.
    pub names: Vec<String>,
    /// Its size, shared layers included.
    pub bytes: u64,
    /// Seconds of operation for which it has been seen unused; absent for an image that
    /// is not this daemon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unused_seconds: Option<u64>,
    /// True if the image is to be removed.
    pub remove: bool,
    /// The reason why the image goes or stays, in one word.
    pub reason: String,
    /// True if the image is gone now.
    #[serde(default)]
    pub removed: bool,
}

/// One refused caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The latest time, RFC 3339.
    pub time: String,
    /// Number of times that the caller was refused.
    pub count: u64,
    /// The module that was named.
    pub module: String,
    /// Method and route.
    pub route: String,
    /// The one reason.
    pub reason: DenyReason,
    /// Cause and remedy of the refusal.
    #[serde(flatten)]
    pub explanation: Explanation,
    /// Process id of the caller, 0 if not visible.
    pub pid: u32,
    /// User id of the caller.
    pub uid: u32,
}

/// Typed client of the management API.
#[derive(Debug, Clone)]
pub struct ManagementClient(Client);

impl ManagementClient {
    /// A client of the management API behind `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self(Client::new(socket).with_timeout(std::time::Duration::from_secs(300)))
    }

    /// All modules.
    ///
    /// # Errors
    /// As every call: if the socket cannot be reached or the caller is refused.
    pub async fn list_modules(&self) -> Result<Vec<ModuleDetails>, ClientError> {
        let list: ModuleList =
            self.0.call(Method::GET, &format!("/modules?{VERSION}"), None::<&()>).await?;
        Ok(list.modules)
    }

    /// One module.
    ///
    /// # Errors
    /// As [`Self::list_modules`]; status 404 if there is none.
    pub async fn module(&self, name: &str) -> Result<ModuleDetails, ClientError> {
        self.0.call(Method::GET, &module_path(name, ""), None::<&()>).await
    }

    /// Creates a module; it does not start.
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn create_module(&self, spec: &ModuleSpec) -> Result<ModuleDetails, ClientError> {
        self.0.call(Method::POST, &format!("/modules?{VERSION}"), Some(spec)).await
    }

    /// Replaces a module.
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn update_module(
        &self,
        spec: &ModuleSpec,
        start: bool,
    ) -> Result<ModuleDetails, ClientError> {
        let path = format!("{}&start={start}", module_path(&spec.name, ""));
        self.0.call(Method::PUT, &path, Some(spec)).await
    }

    /// Fetches what an update will need.
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn prepare_update(&self, spec: &ModuleSpec) -> Result<(), ClientError> {
        self.0
            .call_empty(Method::POST, &module_path(&spec.name, "/prepareupdate"), Some(spec))
            .await
    }

    /// Removes a module.
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn remove_module(&self, name: &str) -> Result<(), ClientError> {
        self.0.call_empty(Method::DELETE, &module_path(name, ""), None::<&()>).await
    }

    /// Starts a module; one that runs stays as it is.
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn start_module(&self, name: &str) -> Result<(), ClientError> {
        self.0.call_empty(Method::POST, &module_path(name, "/start"), None::<&()>).await
    }

    /// Stops a module; one that does not run stays as it is.
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn stop_module(&self, name: &str) -> Result<(), ClientError> {
        self.0.call_empty(Method::POST, &module_path(name, "/stop"), None::<&()>).await
    }

    /// Restarts a module.
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn restart_module(&self, name: &str) -> Result<(), ClientError> {
        self.0.call_empty(Method::POST, &module_path(name, "/restart"), None::<&()>).await
    }

    /// A module's log in the engine's frames. `query` is what follows the api-version,
    /// for example `&tail=10`.
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn logs(
        &self,
        name: &str,
        query: &str,
    ) -> Result<http::Response<Incoming>, ClientError> {
        let path = format!("{}{query}", module_path(name, "/logs"));
        self.0.stream(Method::GET, &path, Bytes::new()).await
    }

    /// All module identities.
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn list_identities(&self) -> Result<Vec<Identity>, ClientError> {
        let list: Identities =
            self.0.call(Method::GET, &format!("/identities/?{VERSION}"), None::<&()>).await?;
        Ok(list.identities)
    }

    /// Creates a module identity.
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn create_identity(&self, request: &CreateIdentity) -> Result<Identity, ClientError> {
        self.0.call(Method::POST, &format!("/identities/?{VERSION}"), Some(request)).await
    }

    /// Repairs a module identity.
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn update_identity(&self, module: &str) -> Result<Identity, ClientError> {
        let path = format!("/identities/{}?{VERSION}", crate::path_segment(module));
        self.0.call(Method::PUT, &path, Some(&serde_json::json!({"moduleId": module}))).await
    }

    /// Deletes a module identity.
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn delete_identity(&self, module: &str) -> Result<(), ClientError> {
        let path = format!("/identities/{}?{VERSION}", crate::path_segment(module));
        self.0.call_empty(Method::DELETE, &path, None::<&()>).await
    }

    /// About the device.
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn system_info(&self) -> Result<SystemInfo, ClientError> {
        self.0.call(Method::GET, &format!("/systeminfo?{VERSION}"), None::<&()>).await
    }

    /// A process looked at as if it called (ours): as `module`, else as the module that
    /// it fits best; without `pid` the module's first process.
    ///
    /// # Errors
    /// As [`Self::list_modules`]; 403 for others than root, the daemon's user and the
    /// agent.
    pub async fn attestation(
        &self,
        pid: Option<u32>,
        module: Option<&str>,
    ) -> Result<Attestation, ClientError> {
        let pid = pid.map(|pid| format!("&pid={pid}")).unwrap_or_default();
        let module = module
            .map(|module| format!("&module={}", crate::path_segment(module)))
            .unwrap_or_default();
        self.0.call(Method::GET, &format!("/attestation?{VERSION}{pid}{module}"), None::<&()>).await
    }

    /// Callers that were refused (ours), the latest first, `last` at most: of one module,
    /// or of all.
    ///
    /// # Errors
    /// As [`Self::attestation`].
    pub async fn refusals(
        &self,
        module: Option<&str>,
        last: usize,
    ) -> Result<PastRefusals, ClientError> {
        let module = module
            .map(|module| format!("&module={}", crate::path_segment(module)))
            .unwrap_or_default();
        self.0
            .call(Method::GET, &format!("/refusals?{VERSION}&last={last}{module}"), None::<&()>)
            .await
    }

    /// Asks what would be done with the engine's images (ours).
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn images(&self) -> Result<ImagePlan, ClientError> {
        self.0.call(Method::GET, &format!("/images?{VERSION}"), None::<&()>).await
    }

    /// Removes the images that are to go, now (ours).
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn collect_images(&self) -> Result<ImagePlan, ClientError> {
        self.0.call(Method::POST, &format!("/images/collect?{VERSION}"), None::<&()>).await
    }

    /// Approves the content that an executable of the host has now (ours). For host
    /// agents, on the socket of their own.
    ///
    /// # Errors
    /// If moduled cannot be reached or refuses.
    pub async fn approve_digest(&self, name: &str, sha256: &str) -> Result<Approvals, ClientError> {
        let body = ApproveDigest { sha256: sha256.to_owned() };
        self.0
            .call(
                Method::PUT,
                &format!("/approved-digests/{}?{VERSION}", crate::path_segment(name)),
                Some(&body),
            )
            .await
    }

    /// Tells what is wanted by the deployment, for the agent alone (ours). Returns the
    /// health of the device.
    ///
    /// # Errors
    /// As [`Self::list_modules`]; 404 from a moduled without this route.
    pub async fn report_deployment(
        &self,
        report: &DeploymentReport,
    ) -> Result<ProblemList, ClientError> {
        self.0.call(Method::PUT, &format!("/deployment?{VERSION}"), Some(report)).await
    }

    /// Asks for the state of the device that an operator wants to know (ours).
    ///
    /// # Errors
    /// As [`Self::list_modules`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.0.call(Method::GET, &format!("/status?{VERSION}"), None::<&()>).await
    }
}

fn module_path(name: &str, action: &str) -> String {
    format!("/modules/{}{action}?{VERSION}", crate::path_segment(name))
}
