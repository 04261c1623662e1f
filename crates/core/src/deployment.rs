//! The standard deployment manifest: from text to a checked value, or to an error that
//! names the culprit.
//!
//! One bad member refuses the whole manifest, as devices in the field expect, but with
//! the real reason and its place. Three outer forms are read: the full file
//! (`modulesContent`, also inside `content`), the file of a locally configured agent
//! (`{"version", "deploymentConfig"}`), and the bare desired properties of `$edgeAgent`.
//!
//! Where we are stricter than the field: module names are checked, desired states other
//! than `running` and `stopped` are refused, and so are two members whose names differ
//! only in case. Where we are more lenient: an image may carry both tag and digest, chunk
//! numbers need no leading zero, and a manifest without `edgeAgent` leaves the agent
//! alone.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use crate::id::{IdError, ModuleId};
use crate::names::{EDGE_AGENT, EDGE_HUB};

mod create_options;
mod image;
mod node;

pub use create_options::{CHUNK_CHARACTERS, CHUNK_LIMIT, split_create_options};
pub use image::registry_of;
use node::Node;

/// Largest manifest that is read, in bytes. Hubs allow far less.
pub const MANIFEST_LIMIT: usize = 4 << 20;

/// `startupOrder` of a module that does not say one: after all that do.
pub const DEFAULT_STARTUP_ORDER: u32 = u32::MAX;

/// The reason why a manifest is not applied.
#[derive(Debug, thiserror::Error)]
pub enum DeploymentError {
    /// The desired properties hold nothing: the device has no deployment yet.
    #[error(
        "the device has an empty configuration: the desired properties of $edgeAgent hold nothing"
    )]
    Empty,
    /// The text is longer than [`MANIFEST_LIMIT`].
    #[error("the manifest has more than {MANIFEST_LIMIT} bytes")]
    TooLarge,
    /// The text is not JSON.
    #[error("the manifest is not JSON: {0}")]
    NotJson(serde_json::Error),
    /// The schema version is not one that is understood.
    #[error("{path}: schema version {found:?} is not supported; use 1.0 or 1.1")]
    SchemaVersion {
        /// The path of the version in the manifest.
        path: String,
        /// The version that was found.
        found: String,
    },
    /// A member is missing or does not fit.
    #[error("{path}: {reason}")]
    Format {
        /// The path of the member, like `modules.thermometer.settings.image`.
        path: String,
        /// The reason why the member is not accepted.
        reason: Reason,
    },
}

impl DeploymentError {
    /// The code that `lastDesiredStatus` reports for this error.
    #[must_use]
    pub const fn code(&self) -> u16 {
        match self {
            Self::Empty => 417,
            Self::SchemaVersion { .. } => 412,
            Self::TooLarge | Self::NotJson(_) | Self::Format { .. } => 400,
        }
    }
}

/// The reason why one member is not accepted. No value is repeated, except placeholders:
/// values may be secret.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// It must be there and is not.
    #[error("is required and missing")]
    Missing,
    /// It has another JSON type or form.
    #[error("must be {0}")]
    Expected(&'static str),
    /// Two members differ only in the case of their names.
    #[error("is given twice, in different letter case")]
    Twice,
    /// A template was not filled in.
    #[error("holds the placeholder {0}: this is a template; fill it in first")]
    Placeholder(String),
    /// A name cannot be a module's.
    #[error("is not a module name: {0}")]
    Name(IdError),
    /// A user's module has the name of a system module.
    #[error("is the name of a system module; put it into systemModules or choose another name")]
    Reserved,
    /// `$upstream` was used on a device without a parent.
    #[error("uses $upstream, but this device has no parent")]
    NoParent,
    /// The create options are not JSON.
    #[error("must be a JSON object written as a string, and is not JSON: {0}")]
    CreateOptions(serde_json::Error),
    /// The numbered pieces of the create options do not follow one another.
    #[error(
        "has a gap before it: pieces are createOptions, createOptions01, createOptions02 and so on"
    )]
    ChunkGap,
    /// The file holds changes to another deployment.
    #[error("is a layered deployment, which only a hub can merge; give the base manifest")]
    Layered,
}

/// A text that must not show up in logs. Its `Debug` form does not print it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself. Never for a log or an error.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A whole, checked deployment.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    /// `$version` or the file's `version`, if it has one.
    pub version: Option<i64>,
    /// As written, e.g. `1.1`.
    pub schema_version: String,
    /// Settings that are not one module's.
    pub runtime: Runtime,
    /// The desired state of the agent itself; `None` leaves the agent as it is.
    pub edge_agent: Option<Module>,
    /// All other modules, edgeHub among them.
    pub modules: BTreeMap<ModuleId, Module>,
    /// True if the manifest carries a signature. The signature is not verified here.
    pub signed: bool,
}

/// The manifest's `runtime`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Runtime {
    /// Only reported back.
    pub min_docker_version: Option<String>,
    /// Only reported back.
    pub logging_options: Option<String>,
    /// In the order in which they were written: the first that fits an image is used.
    pub registry_credentials: Vec<RegistryCredential>,
}

/// The credential that a registry asks for before it hands out an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryCredential {
    /// The manifest's free name for it.
    pub label: String,
    /// Host, with port if not 443.
    pub address: String,
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: SecretText,
}

impl Runtime {
    /// The credential that goes with `image`, if any.
    #[must_use]
    pub fn credential_for(&self, image: &str) -> Option<&RegistryCredential> {
        let registry = registry_of(image)?;
        self.registry_credentials
            .iter()
            .find(|credential| credential.address.eq_ignore_ascii_case(registry))
    }
}

/// The type of a module: the kind of thing that runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleType {
    /// A container.
    Docker,
    /// A program on the host; its image is a name that the device's configuration knows.
    Process,
}

impl ModuleType {
    /// Its word in manifests and in the management API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Process => "process",
        }
    }
}

/// The state a module should be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DesiredStatus {
    /// Started, and kept running as its restart policy says.
    Running,
    /// Created, but not running.
    Stopped,
}

impl DesiredStatus {
    /// Its word in manifests and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

/// The condition under which a module that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Not at all.
    Never,
    /// If the module failed. See [`crate::reconcile`] for clean exits.
    OnFailure,
    /// As [`Self::OnFailure`]: there is no health probe.
    OnUnhealthy,
    /// Whenever it ended.
    Always,
}

impl RestartPolicy {
    /// Its word in manifests and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::OnFailure => "on-failure",
            Self::OnUnhealthy => "on-unhealthy",
            Self::Always => "always",
        }
    }
}

/// The time at which an image is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImagePullPolicy {
    /// Before the container is made.
    OnCreate,
    /// Never: it must be on the device.
    Never,
}

impl ImagePullPolicy {
    /// Its word in manifests and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OnCreate => "on-create",
            Self::Never => "never",
        }
    }
}

/// One module of a deployment.
#[derive(Clone, PartialEq)]
pub struct Module {
    /// The type of the module.
    pub kind: ModuleType,
    /// The state it should be in.
    pub status: DesiredStatus,
    /// The condition under which the module is started again after it ended.
    pub restart_policy: RestartPolicy,
    /// Lower starts earlier.
    pub startup_order: u32,
    /// The time at which the module's image is fetched.
    pub image_pull_policy: ImagePullPolicy,
    /// Free text. A change of it makes the container anew.
    pub version: String,
    /// Its own environment. Values may be secret.
    pub env: BTreeMap<String, String>,
    /// Image with tag or digest; for [`ModuleType::Process`] the registered name.
    pub image: String,
    /// The engine's create body.
    pub create_options: Map<String, Value>,
    /// The image's digest, passed on.
    pub digest: Option<String>,
}

impl fmt::Debug for Module {
    /// Leaves out environment and create options: they may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module")
            .field("kind", &self.kind)
            .field("image", &self.image)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Module {
    /// Everything that a module's container is made from, as one text: equal texts need
    /// no new container, whatever the order of members and white space in the manifest.
    /// Status, restart policy, startup order and pull policy are not in it: they take
    /// effect without a new container.
    #[must_use]
    pub fn canonical_spec(&self) -> String {
        let mut parts = Map::new();
        parts.insert("type".into(), self.kind.as_str().into());
        parts.insert("image".into(), self.image.as_str().into());
        parts.insert("digest".into(), self.digest.clone().into());
        parts.insert("version".into(), self.version.as_str().into());
        let env = self
            .env
            .iter()
            .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
            .collect();
        parts.insert("env".into(), Value::Object(env));
        parts.insert("createOptions".into(), sorted(&Value::Object(self.create_options.clone())));
        Value::Object(parts).to_string()
    }
}

/// The same value with the members of all objects in the order of their names.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let ordered: BTreeMap<_, _> =
                members.iter().map(|(name, value)| (name.clone(), sorted(value))).collect();
            ordered.into_iter().collect()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

impl Deployment {
    /// Reads a manifest in any of the three outer forms. `parent` is the host that
    /// `$upstream` stands for, on a device that has one.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place. See [`DeploymentError::code`] for
    /// what to report.
    pub fn parse(text: &str, parent: Option<&str>) -> Result<Self, DeploymentError> {
        if text.len() > MANIFEST_LIMIT {
            return Err(DeploymentError::TooLarge);
        }
        let text = text.trim_start_matches('\u{feff}');
        if text.trim().is_empty() {
            return Err(DeploymentError::Empty);
        }
        let value: Value = serde_json::from_str(text).map_err(DeploymentError::NotJson)?;
        Self::from_value(&value, parent)
    }

    /// As [`Self::parse`], from JSON that was read already.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn from_value(value: &Value, parent: Option<&str>) -> Result<Self, DeploymentError> {
        let (version, desired) = unwrap_outer(Node::root(value))?;
        let members = match desired.value {
            Value::Null => return Err(DeploymentError::Empty),
            _ => desired.object()?,
        };
        if members.keys().all(|name| name.starts_with('$')) {
            return Err(DeploymentError::Empty);
        }
        let version = match desired.optional("$version")? {
            Some(node) => Some(node.integer()?),
            None => version,
        };
        let schema_version = schema_version(&desired.required("schemaVersion")?)?;
        let runtime = runtime(&desired.required("runtime")?, parent)?;

        let system = desired.required("systemModules")?;
        system.object()?;
        let edge_agent = match system.optional(EDGE_AGENT)? {
            Some(node) => Some(module(&node, Role::Agent, parent)?),
            None => None,
        };
        let mut modules = BTreeMap::new();
        if let Some(node) = system.optional(EDGE_HUB)? {
            let id = EDGE_HUB.parse().map_err(|error| node.error(Reason::Name(error)))?;
            modules.insert(id, module(&node, Role::Hub, parent)?);
        }
        if let Some(user) = desired.optional("modules")? {
            for name in user.object()?.keys() {
                let node = user.entry(name)?;
                let id: ModuleId = name.parse().map_err(|error| node.error(Reason::Name(error)))?;
                if id.as_str().starts_with('$') || matches!(id.name(), EDGE_AGENT | EDGE_HUB) {
                    return Err(node.error(Reason::Reserved));
                }
                modules.insert(id, module(&node, Role::User, parent)?);
            }
        }
        let signed = desired.optional("integrity")?.is_some();
        Ok(Self { version, schema_version, runtime, edge_agent, modules, signed })
    }
}

/// Takes off what stands around the desired properties.
fn unwrap_outer(root: Node<'_>) -> Result<(Option<i64>, Node<'_>), DeploymentError> {
    let root = match root.optional("content")? {
        Some(content) => content,
        None => root,
    };
    if let Some(content) = root.optional("modulesContent")? {
        let agent = content.required("$edgeAgent")?;
        if let Some(desired) = agent.optional("properties.desired")? {
            return Ok((None, desired));
        }
        if agent.object()?.keys().any(|name| name.starts_with("properties.desired.")) {
            return Err(agent.error(Reason::Layered));
        }
        return match agent.optional("properties")? {
            Some(properties) => Ok((None, properties.required("desired")?)),
            None => Err(agent.child("properties.desired", &Value::Null).error(Reason::Missing)),
        };
    }
    if let Some(config) = root.optional("deploymentConfig")? {
        let version = root.optional("version")?.map(|node| node.integer()).transpose()?;
        return Ok((version, config));
    }
    Ok((None, root))
}

/// `1.x` up to `1.1.0`, as 2 to 4 dotted numbers. A missing part counts as less than 0,
/// so `1.1.0.0` is too new.
fn schema_version(node: &Node<'_>) -> Result<String, DeploymentError> {
    let text = node.text_or_number()?;
    let parts: Option<Vec<u32>> = text
        .split('.')
        .map(|part| part.parse().ok().filter(|_| part.bytes().all(|c| c.is_ascii_digit())))
        .collect();
    let supported = parts.is_some_and(|parts| {
        (2..=4).contains(&parts.len()) && parts[0] == 1 && parts.as_slice() <= &[1, 1, 0]
    });
    if supported {
        Ok(text)
    } else {
        let found = text.chars().take(32).collect();
        Err(DeploymentError::SchemaVersion { path: node.path.clone(), found })
    }
}

fn runtime(node: &Node<'_>, parent: Option<&str>) -> Result<Runtime, DeploymentError> {
    let kind = node.required("type")?;
    if kind.text()? != "docker" {
        return Err(kind.error(Reason::Expected("\"docker\"")));
    }
    let Some(settings) = node.optional("settings")? else { return Ok(Runtime::default()) };
    let text =
        |name| settings.optional(name)?.map(|node| node.text().map(str::to_owned)).transpose();
    let mut runtime = Runtime {
        min_docker_version: text("minDockerVersion")?,
        logging_options: text("loggingOptions")?,
        registry_credentials: Vec::new(),
    };
    if let Some(credentials) = settings.optional("registryCredentials")? {
        for label in credentials.object()?.keys() {
            let entry = credentials.entry(label)?;
            runtime.registry_credentials.push(RegistryCredential {
                label: label.clone(),
                address: image::registry_address(&entry.required("address")?, parent)?,
                username: entry.required("username")?.filled()?.to_owned(),
                password: SecretText::new(entry.required("password")?.filled()?),
            });
        }
    }
    Ok(runtime)
}

/// The role of a module. The role decides which rules of defaults apply.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Agent,
    Hub,
    User,
}

fn module(node: &Node<'_>, role: Role, parent: Option<&str>) -> Result<Module, DeploymentError> {
    let kind = node.required("type")?;
    // Exactly these words: other letter case is refused in the field too.
    let kind = match kind.text()? {
        "docker" => ModuleType::Docker,
        "process" => ModuleType::Process,
        _ => return Err(kind.error(Reason::Expected("\"docker\" or \"process\""))),
    };
    let status = match role {
        Role::Agent => DesiredStatus::Running,
        Role::Hub | Role::User => {
            let words = [("running", DesiredStatus::Running), ("stopped", DesiredStatus::Stopped)];
            node.required("status")?.one_of(&words, "\"running\" or \"stopped\"")?
        }
    };
    let restart_policy = match (role, node.present("restartPolicy")?) {
        (Role::Agent, _) | (Role::Hub, None) => RestartPolicy::Always,
        (Role::User, None) => RestartPolicy::OnUnhealthy,
        (_, Some(policy)) => policy.one_of(
            &[
                RestartPolicy::Never,
                RestartPolicy::OnFailure,
                RestartPolicy::OnUnhealthy,
                RestartPolicy::Always,
            ]
            .map(|policy| (policy.as_str(), policy)),
            "\"never\", \"on-failure\", \"on-unhealthy\" or \"always\"",
        )?,
    };
    let startup_order = match (role, node.present("startupOrder")?) {
        (Role::Agent, _) => 0,
        (_, None) => DEFAULT_STARTUP_ORDER,
        (_, Some(order)) => {
            let number = order.value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.ok_or_else(|| {
                order.error(Reason::Expected("a whole number from 0 to 4294967295"))
            })?
        }
    };
    let image_pull_policy = match node.optional("imagePullPolicy")? {
        None => ImagePullPolicy::OnCreate,
        Some(policy) => policy.one_of(
            &[ImagePullPolicy::OnCreate, ImagePullPolicy::Never]
                .map(|policy| (policy.as_str(), policy)),
            "\"on-create\" or \"never\"",
        )?,
    };
    let version = node
        .optional("version")?
        .map(|node| node.text_or_number())
        .transpose()?
        .unwrap_or_default();
    let env = env(node)?;

    let settings = node.required("settings")?;
    let image = settings.required("image")?;
    let image = match kind {
        ModuleType::Docker => image::normalised(&image, parent)?,
        ModuleType::Process => image::registered_program(&image)?,
    };
    let create_options = create_options::parse(&settings)?;
    let digest =
        settings.optional("digest")?.map(|node| node.text().map(str::to_owned)).transpose()?;
    Ok(Module {
        kind,
        status,
        restart_policy,
        startup_order,
        image_pull_policy,
        version,
        env,
        image,
        create_options,
        digest,
    })
}

fn env(module: &Node<'_>) -> Result<BTreeMap<String, String>, DeploymentError> {
    let Some(node) = module.optional("env")? else { return Ok(BTreeMap::new()) };
    let mut env = BTreeMap::new();
    for name in node.object()?.keys() {
        let entry = node.entry(name)?;
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(entry.error(Reason::Expected("named without '=' or NUL, and not empty")));
        }
        if !entry.value.is_object() {
            return Err(entry.error(Reason::Expected("an object with the member \"value\"")));
        }
        let value = match entry.optional("value")? {
            None => String::new(),
            Some(value) => match value.value {
                // Byte for byte, whatever it looks like.
                Value::String(text) if !text.contains('\0') => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Bool(flag) => flag.to_string(),
                _ => {
                    return Err(value
                        .error(Reason::Expected("a string without NUL, a number or a boolean")));
                }
            },
        };
        env.insert(name.clone(), value);
    }
    Ok(env)
}

#[cfg(test)]
mod tests;
