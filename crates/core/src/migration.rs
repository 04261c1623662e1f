//! Takeover of a device that ran the compatible packages: the plan, out of a listing of
//! what they left (wire facts 5.5, 5.6 and 6.8).
//!
//! Nothing of theirs is changed or removed, so that the way back is open. Each file is
//! taken over, or left with a reason; a file that nobody knows is left and named.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::attestation::{Policy, Registration, Workload};
use crate::digest::Sha256Digest;
use crate::grants::is_reserved;
use crate::id::{ContainerId, KeyId, ModuleId};
use crate::module_list::{KnownModule, StoredModules};
use crate::names;
use crate::provisioning::{DeviceIdentity, Provisioned, Source};

/// The folders that the compatible packages keep their files in, below the root folder.
pub const FOLDERS: [&str; 3] = ["etc/aziot", "var/lib/aziot", "var/secrets/aziot"];
/// Folder of the compatible module runtime. Where it is absent there are no modules.
pub const RUNTIME_FOLDER: &str = "var/lib/aziot/edged";
/// The configuration of the compatible tools, below the root folder.
pub const CONFIGURATION: &str = "etc/aziot/config.toml";
/// Label, with its value, of the containers that a module runtime has made.
pub const OWNER_LABEL: &str = "net.azure-devices.edge.owner=Microsoft.Azure.Devices.Edge.Agent";

/// Letters and digits of an id that our own certificate store has in a file's name.
const READABLE_PART: usize = 64;
/// Digest of the create options of a container that this program did not make.
const NO_OPTIONS: Sha256Digest = Sha256Digest::new([0; 32]);

/// The meaning of a file, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role<'a> {
    /// A key of the keys service.
    Key(Name<'a>),
    /// A certificate of the certificates service.
    Certificate(Name<'a>),
    /// The identity that the provisioning service gave.
    DeviceInfo,
    /// The identity of a module, in the folder of a device.
    Module(&'a str),
    /// The operator's configuration.
    Configuration,
    /// A file that is not needed, and why.
    NotNeeded(&'static str),
    /// Settings that the operator wrote beside the configuration.
    DropIn,
    /// A file that nobody knows.
    Unknown,
}

/// The two halves of a file name: the letters and digits of an id, and its SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a> {
    readable: &'a str,
    hash: &'a str,
}

impl<'a> Name<'a> {
    fn of(file: &'a str, extension: &str) -> Option<Self> {
        let (readable, hash) = file.strip_suffix(extension)?.rsplit_once('-')?;
        let is_hash = hash.len() == 64
            && hash.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
        let is_readable = readable.bytes().all(|c| c.is_ascii_alphanumeric());
        (is_hash && is_readable).then_some(Self { readable, hash })
    }
}

/// Returns the meaning of a file at `path`, which is relative to the root folder.
#[must_use]
pub fn role(path: &str) -> Role<'_> {
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["etc", "aziot", "config.toml"] => Role::Configuration,
        ["etc", "aziot", file] if file.starts_with("config.toml.") => {
            Role::NotNeeded("a template, or a copy of the configuration")
        }
        ["etc", "aziot", _, "config.toml.default"] => Role::NotNeeded("the packages' defaults"),
        ["etc", "aziot", _, "config.d", "00-super.toml"] => {
            Role::NotNeeded("made from the configuration")
        }
        ["etc", "aziot", _, "config.d", file] if file.ends_with(".toml") => Role::DropIn,
        ["etc", "aziot", _, "config.toml"] => Role::DropIn,
        ["var", "lib", "aziot", "keyd", "keys", file] => {
            Name::of(file, ".key").map_or(Role::Unknown, Role::Key)
        }
        ["var", "lib", "aziot", "certd", "certs", file] => {
            Name::of(file, ".cer").map_or(Role::Unknown, Role::Certificate)
        }
        ["var", "lib", "aziot", "identityd", "device_info"] => Role::DeviceInfo,
        ["var", "lib", "aziot", "identityd", "prev_state"] => {
            Role::NotNeeded("settings of the last start, which the configuration has")
        }
        ["var", "lib", "aziot", "identityd", "modules", device, _] => Role::Module(device),
        ["var", "lib", "aziot", "edged", "cache", "provisioning_state"] => {
            Role::NotNeeded("a digest of the identity")
        }
        ["var", "lib", "aziot", "edged", "gc", "image_use"] => {
            Role::NotNeeded("the use of images, which is noted anew")
        }
        ["var", "lib", "aziot", "edged", "mnt", file] if file.ends_with(".sock") => {
            Role::NotNeeded("a socket")
        }
        ["var", "secrets", "aziot", "keyd", "device-id" | "imported-master-encryption-key"] => {
            Role::NotNeeded("a key that the configuration has, or names")
        }
        _ => Role::Unknown,
    }
}

/// The content of a file, as far as the plan needs it. No key is in here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The content was not looked at.
    Unread,
    /// Keys or certificates, as the place of the file says.
    Usable,
    /// The identity in it; `None` for a device that was not provisioned.
    Identity(Option<DeviceIdentity>),
    /// JSON.
    Json(Value),
    /// The reason for which the content cannot be used.
    Unusable(String),
}

/// A file that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Path, relative to the root folder.
    pub path: String,
    /// The content.
    pub content: Content,
}

/// A container that the compatible module runtime has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Name of the container, which is the module's.
    pub name: String,
    /// Id of the container.
    pub id: ContainerId,
    /// Image that it was made from.
    pub image: Sha256Digest,
    /// Digest of its create options, where it was made by this program before.
    pub options: Option<Sha256Digest>,
    /// True if it runs, with a socket that nobody serves any more.
    pub runs: bool,
}

/// Everything that a plan is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Files below [`FOLDERS`].
    pub files: Vec<Found>,
    /// Containers of modules.
    pub containers: Vec<Container>,
    /// Ids that keys may have, besides the well-known ones.
    pub ids: BTreeSet<String>,
    /// The source of the identity that the configuration names.
    pub source: Source,
    /// Thumbprint of the certificate that proves the device, where it has one.
    pub certificate: Option<String>,
    /// Policies that the configuration has for single modules.
    pub policies: BTreeMap<ModuleId, Policy>,
    /// Wall clock, seconds since the epoch.
    pub now: i64,
}

/// A step of the migration. Each may be done again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A key goes to keyd, which takes it into its store.
    Key {
        /// Its file, relative to the root folder.
        from: String,
        /// Its id.
        id: KeyId,
    },
    /// A certificate goes to identityd.
    Certificate {
        /// Its file, relative to the root folder.
        from: String,
        /// The file's name in identityd's folder of certificates.
        file: String,
    },
    /// The identity that the provisioning service gave.
    Identity(Provisioned),
    /// The modules' identities.
    Modules(StoredModules),
    /// The containers that are modules.
    Registrations(BTreeMap<String, Registration>),
    /// A link to the shared workload socket, where a module's container expects its own.
    Socket(ModuleId),
    /// The operator's configuration.
    Configuration,
}

/// A file or container that is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Path relative to the root folder, or the name of a container.
    pub name: String,
    /// The reason.
    pub why: String,
    /// True if the operator should look at it.
    pub attention: bool,
}

/// The plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Steps in their order. The configuration is the last one: without it no daemon
    /// starts.
    pub steps: Vec<Step>,
    /// Everything else that was found.
    pub left: Vec<Left>,
    /// Modules whose containers run, with a socket that nobody serves any more.
    pub restart: Vec<ModuleId>,
}

/// The reason why a device cannot be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MigrationError {
    /// There is nothing to go by.
    #[error(
        "there is no etc/aziot/config.toml: write one that names the device's provisioning, or start with a configuration of your own"
    )]
    NoConfiguration,
    /// The device would become another one.
    #[error(
        "the configuration names device {configured} and the device is {found} now; correct etc/aziot/config.toml, so that the identity stays"
    )]
    OtherIdentity {
        /// Device and hub in the configuration.
        configured: String,
        /// Device and hub in the state.
        found: String,
    },
    /// A file that the identity is in cannot be used.
    #[error(
        "{path} cannot be used ({why}); correct it, or move it away to have the device provisioned anew"
    )]
    Unusable {
        /// The file.
        path: String,
        /// The fault.
        why: String,
    },
}

/// Plans the takeover. `sha256` returns the SHA-256 of a text in hexadecimal digits.
///
/// # Errors
/// If there is no configuration, or the device would have another identity afterwards.
pub fn plan(device: &Device, sha256: impl Fn(&str) -> String) -> Result<Plan, MigrationError> {
    let mut plan = Plan::default();
    let ids = known_ids(device, &sha256);
    if !device.files.iter().any(|found| role(&found.path) == Role::Configuration) {
        return Err(MigrationError::NoConfiguration);
    }
    let identity = identity(device, &mut plan)?;
    let mut hashes = BTreeSet::new();
    for found in &device.files {
        let leave = |why: &str, attention| Left {
            name: found.path.clone(),
            why: why.to_owned(),
            attention,
        };
        let left = match (role(&found.path), &found.content) {
            (Role::Configuration | Role::DeviceInfo | Role::Module(_), _) => continue,
            (Role::NotNeeded(why), _) => leave(why, false),
            (Role::DropIn, _) => leave(
                "settings beside the configuration are not read: what it grants to programs of the host becomes a table \
                 [host_services.NAME]",
                true,
            ),
            (Role::Unknown, Content::Unusable(why)) => leave(why, true),
            (Role::Unknown, _) => leave("no file that is known", true),
            (_, Content::Unusable(why)) => leave(why, true),
            (Role::Key(name), _) => match key(name, &ids) {
                Ok(id) if hashes.insert(format!("key {}", name.hash)) => {
                    plan.steps.push(Step::Key { from: found.path.clone(), id });
                    continue;
                }
                Ok(_) => leave("a second file of the same key", true),
                Err((why, attention)) => leave(&why, attention),
            },
            (Role::Certificate(name), _) => {
                if is_next(ids.get(name.hash)) {
                    leave("of a renewal that was cut off, which is made anew", false)
                } else if hashes.insert(format!("certificate {}", name.hash)) {
                    let readable = &name.readable[..name.readable.len().min(READABLE_PART)];
                    let file = format!("{readable}-{}.cer", name.hash);
                    plan.steps.push(Step::Certificate { from: found.path.clone(), file });
                    continue;
                } else {
                    leave("a second file of the same certificate", true)
                }
            }
        };
        plan.left.push(left);
    }
    let modules = identity.map(|identity| modules(device, &identity, &sha256, &mut plan));
    registrations(device, modules.as_ref(), &mut plan);
    plan.steps.extend(modules.map(Step::Modules));
    plan.steps.push(Step::Configuration);
    Ok(plan)
}

/// Ids that a key or certificate may have, by their SHA-256.
fn known_ids(device: &Device, sha256: impl Fn(&str) -> String) -> BTreeMap<String, String> {
    let well_known = [
        names::EDGE_CA,
        names::EDGE_CA_NEXT,
        names::LOCAL_CA,
        names::LOCAL_CA_NEXT,
        names::DEVICE_KEY,
        names::IDENTITY_MASTER_KEY,
        names::DEVICE_DATA_KEY,
        names::HANDLE_VALIDATION_KEY,
    ];
    let others = ["device-id-temp", "est-id", "est-id-temp", "est-bootstrap-id"];
    let well_known = well_known.iter().map(|name| name.as_str().to_owned());
    let mut ids: BTreeSet<String> = well_known.chain(others.map(str::to_owned)).collect();
    for id in &device.ids {
        ids.extend([
            id.clone(),
            format!("{id}-temp"),
            format!("est-id-{id}"),
            format!("est-id-{id}-temp"),
            format!("est-bootstrap-id-{id}"),
        ]);
    }
    ids.into_iter().map(|id| (sha256(&id), id)).collect()
}

fn is_next(id: Option<&String>) -> bool {
    id.is_some_and(|id| id.ends_with("-temp"))
}

/// The id of a key that is taken over, or why the key is left and if somebody should
/// look.
fn key(name: Name<'_>, ids: &BTreeMap<String, String>) -> Result<KeyId, (String, bool)> {
    let Some(id) = ids.get(name.hash) else {
        let why = format!(
            "a key whose id is not known; if it is needed, name the id with --key-id (its letters and digits are {:?})",
            name.readable
        );
        return Err((why, true));
    };
    let readable: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    if readable != name.readable {
        return Err((format!("the file's name is not that of key {id:?}"), true));
    }
    if is_next(Some(id)) {
        return Err(("of a renewal that was cut off, which is made anew".to_owned(), false));
    }
    let parsed: KeyId = id.parse().map_err(|_| (format!("{id:?} is no key id"), true))?;
    if is_reserved(&parsed) || names::HANDLE_VALIDATION_KEY.is_key(&parsed) {
        return Err(("proves key handles, which are given out anew".to_owned(), false));
    }
    if id.contains('/') || id.ends_with(".tmp") || id.starts_with('.') {
        return Err((format!("keyd takes no key with the id {id:?} over"), true));
    }
    Ok(parsed)
}

/// The identity that the device has, if it has one. It must be the configuration's.
fn identity(device: &Device, plan: &mut Plan) -> Result<Option<DeviceIdentity>, MigrationError> {
    let file = device.files.iter().find(|found| role(&found.path) == Role::DeviceInfo);
    let found = match file.map(|file| (&file.path, &file.content)) {
        Some((path, Content::Unusable(why))) => {
            return Err(MigrationError::Unusable { path: path.clone(), why: why.clone() });
        }
        Some((_, Content::Identity(identity))) => identity.clone(),
        _ => None,
    };
    let leave = |why: &str| {
        file.map(|file| Left { name: file.path.clone(), why: why.to_owned(), attention: false })
    };
    match (&device.source, found) {
        (Source::Manual { identity }, found) => {
            if let Some(found) = found.filter(|found| !is_same(found, identity)) {
                let words = |it: &DeviceIdentity| format!("{} at {}", it.device_id, it.hub);
                let (configured, found) = (words(identity), words(&found));
                return Err(MigrationError::OtherIdentity { configured, found });
            }
            plan.left.extend(leave("the configuration names the identity"));
            Ok(Some(identity.clone()))
        }
        (Source::Dps { .. }, Some(identity)) => {
            plan.steps.push(Step::Identity(Provisioned {
                identity: identity.clone(),
                source: device.source.clone(),
                certificate: device.certificate.clone(),
                // The earlier service has none.
                operational: None,
                obtained_at: device.now,
            }));
            Ok(Some(identity))
        }
        (Source::Dps { .. }, None) => {
            plan.left.extend(leave("the device was not provisioned yet"));
            Ok(None)
        }
        (Source::None, _) => {
            plan.left.extend(leave("the configuration names no provisioning"));
            Ok(None)
        }
    }
}

fn is_same(one: &DeviceIdentity, other: &DeviceIdentity) -> bool {
    one.device_id == other.device_id && one.hub.eq_ignore_ascii_case(&other.hub)
}

/// The identities of the device's modules.
fn modules(
    device: &Device,
    identity: &DeviceIdentity,
    sha256: impl Fn(&str) -> String,
    plan: &mut Plan,
) -> StoredModules {
    let own = format!("{}-{}", sha256(&identity.hub), sha256(identity.device_id.as_str()));
    let mut modules = BTreeMap::new();
    for found in &device.files {
        let Role::Module(folder) = role(&found.path) else { continue };
        let left = match &found.content {
            _ if folder != own => Some(("of another device, or of an earlier identity", false)),
            Content::Json(record) => match record_of(record) {
                Some((id, module)) => {
                    modules.insert(id, module);
                    None
                }
                None => {
                    Some(("names no module with its generation; the hub is asked again", false))
                }
            },
            _ => Some(("is no JSON; the hub is asked again", true)),
        };
        plan.left.extend(left.map(|(why, attention)| Left {
            name: found.path.clone(),
            why: why.to_owned(),
            attention,
        }));
    }
    StoredModules { device: identity.clone(), modules, own: BTreeSet::new() }
}

fn record_of(record: &Value) -> Option<(ModuleId, KnownModule)> {
    let text = |name: &str| record[name].as_str().map(str::to_owned);
    let id = text("moduleId")?.parse().ok()?;
    let generation = text("generationId")?.parse().ok()?;
    Some((id, KnownModule { generation, managed_by: text("managedBy") }))
}

/// Registers the containers under the names that they have. One that is no module's is
/// named and left.
fn registrations(device: &Device, known: Option<&StoredModules>, plan: &mut Plan) {
    let mut registered = BTreeMap::new();
    for container in &device.containers {
        let Ok(module) = container.name.parse::<ModuleId>() else {
            plan.left.push(Left {
                name: container.name.clone(),
                why: "the container's name is no module's".to_owned(),
                attention: true,
            });
            continue;
        };
        let generation = known.and_then(|known| known.modules.get(&module.hub_id()));
        let configured = device.policies.iter().find(|(id, _)| id.name() == module.name());
        let usual = if module.is_edge_agent() { Policy::Executable } else { Policy::Image };
        let registration = Registration {
            module: module.clone(),
            generation: generation.map(|known| known.generation.clone()),
            policy: configured.map_or(usual, |(_, policy)| *policy),
            workload: Workload::Container {
                container: container.id.clone(),
                image: container.image,
                options: container.options.unwrap_or(NO_OPTIONS),
            },
        };
        registered.insert(module.name().to_owned(), registration);
        plan.steps.push(Step::Socket(module.clone()));
        if container.runs {
            plan.restart.push(module);
        }
    }
    if !registered.is_empty() {
        plan.steps.push(Step::Registrations(registered));
    }
}

#[cfg(test)]
mod tests;
