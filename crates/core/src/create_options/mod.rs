//! Requests that a module may make of the container engine.
//!
//! Create options are the engine's own create body, so whoever writes a deployment can
//! ask for all that the engine can do, which is everything that root can do. Without
//! elevated permissions (`allow_elevated_docker_permissions = false`) a module gets what
//! concerns its container alone, and of the host only what the operator's grant names;
//! what engines of the future may understand is refused with what is unknown now.
//! Whatever the permissions: places of this device's own sockets and state are nobody's
//! but by a grant that names them.
//!
//! Pure: links of the file system come in resolved.

mod above;
mod made;
mod members;
mod paths;
mod ports;
mod rules;
mod volumes;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::ModuleId;
use paths::{HostPath, clean, covering, mentioned, mounted, sides, split_grant, within};
use rules::one_place_a_mount;
use volumes::{Reach, named};

pub use above::OwnState;
pub use made::{MadeMount, paths_made, volumes_from, volumes_made};
pub use paths::Resolved;
pub use ports::{PortGrant, PublishedPorts};
pub use volumes::{Volume, Volumes, volumes_to_look_at};

/// The operator's grant to one module, beyond what any module may have
/// (`[modules.NAME.grant]`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grant {
    /// A privileged container.
    pub privileged: bool,
    /// Capabilities that may be added, such as `NET_ADMIN`.
    pub capabilities: Vec<String>,
    /// Paths of the host that may be mounted, with what lies below; `:ro` at the end for
    /// reading only.
    pub binds: Vec<String>,
    /// Volumes that may be mounted by name whatever they were made with.
    pub volumes: Vec<String>,
    /// Device files of the host, or folders of them.
    pub devices: Vec<String>,
    /// Name spaces of the host: `network`, `pid`, `ipc`, `uts`, `user`, `cgroup`.
    pub namespaces: BTreeSet<String>,
    /// Ports of the host that may be published, each as [`PortGrant`] reads it; where
    /// ports are granted at all.
    pub ports: Vec<String>,
    /// Limits that may be set beyond those of the container's own resources: `nice`,
    /// `rtprio`, `rttime`.
    pub ulimits: Vec<String>,
    /// Kernel parameters by name.
    pub sysctls: Vec<String>,
    /// Programs that run containers, by the engine's names for them.
    pub runtimes: Vec<String>,
    /// Members of the create options that may have any value, such as
    /// `HostConfig.SecurityOpt`.
    pub options: Vec<String>,
}

/// The limits that [`Grant::ulimits`] may name.
pub const ULIMITS: &[&str] = &["nice", "rtprio", "rttime"];

/// The name spaces that [`Grant::namespaces`] may name.
pub const NAMESPACES: &[&str] = &["network", "pid", "ipc", "uts", "user", "cgroup"];

/// Everything by which a module's create options are judged.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// The module.
    pub module: &'a ModuleId,
    /// The module's grant.
    pub grant: &'a Grant,
    /// True if every module has elevated permissions.
    pub elevated: bool,
    /// The ports that the module may publish.
    pub ports: PublishedPorts,
    /// The treatment of [`Self::present`] in a mount of a folder above them.
    pub own_state: OwnState,
    /// Those of [`Self::own`] that exist.
    pub present: &'a [String],
    /// Paths of this device's own sockets and state.
    pub own: &'a [String],
    /// Paths among [`Self::own`] that any module may mount: callers there are measured
    /// like anywhere.
    pub open: &'a [String],
}

/// The volumes and paths that the options name, as they were found on the device.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Answers to [`volumes_to_look_at`] or [`volumes_made`].
    pub volumes: Volumes,
    /// Answers to [`paths_to_resolve`] or [`paths_made`].
    pub resolved: Resolved,
}

/// A create option that is refused. The text names option and remedy, and holds no value
/// but paths and names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("create option {option} is refused: {why}")]
pub struct Refusal {
    /// The option, as a path such as `HostConfig.Binds[1]`.
    pub option: String,
    /// The reason, and what to do.
    pub why: Why,
}

/// The reason why a create option is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// Two spellings of one member.
    #[error("it is given twice, in two spellings; keep one")]
    Twice,
    /// Of another type than engines take.
    #[error("it must be {0}")]
    Expected(&'static str),
    /// A place of this device.
    #[error("it reaches {path}, which holds this device's own sockets or state; take it out{}", .remedy)]
    Own {
        /// The place.
        path: String,
        /// Words on how to grant the place, to end the text.
        remedy: String,
    },
    /// A place of this device lies below what is mounted.
    #[error(
        "{path}, which holds this device's own sockets or state, would be seen in it; take it out, or set \
         own_state_in_mounts = \"hide\"{}", .remedy
    )]
    Shows {
        /// The place.
        path: String,
        /// Words on how to grant the place, to end the text.
        remedy: String,
    },
    /// The mounted place can become another.
    #[error(
        "the module could put a link in place of {path}, for it can write to {above}, and engines follow it at the next \
         start; mount only one of them"
    )]
    Replaceable {
        /// The place.
        path: String,
        /// The writable one above it.
        above: String,
    },
    /// Not granted.
    #[error(
        "{what}, and elevated permissions are off (allow_elevated_docker_permissions = false); take it out{}", .remedy
    )]
    NotGranted {
        /// The thing that the option would give.
        what: String,
        /// Words on how to grant it, to end the text.
        remedy: String,
    },
}

/// The known members, as [`Grant::options`] names them.
pub fn option_names() -> impl Iterator<Item = String> {
    let top = members::CONFIG.iter().map(|member| member.name.to_owned());
    top.chain(members::HOST.iter().map(|member| format!("HostConfig.{}", member.name)))
}

/// Create options with every member in the engine's spelling, whatever case it was
/// written in.
///
/// # Errors
/// Two spellings of one member.
pub fn canonical(options: &Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    members::canonical(options)
}

/// Paths of the host that the judge must know the meaning of: those of the options, of
/// the volumes that these name and of the grant.
#[must_use]
pub fn paths_to_resolve(
    options: &Map<String, Value>,
    volumes: &Volumes,
    grant: &Grant,
) -> BTreeSet<String> {
    paths::to_resolve(options, volumes, &grant.binds)
}

/// Takes from canonical options what existing services take silently, `Privileged` and
/// `CapAdd`, as far as it is not granted, and gives the names of what was taken.
///
/// # Errors
/// A member is of another type than engines take.
pub fn without_elevation(
    options: &mut Map<String, Value>,
    grant: &Grant,
) -> Result<Vec<&'static str>, Refusal> {
    let Some(Value::Object(host)) = options.get_mut("HostConfig") else { return Ok(Vec::new()) };
    let mut taken = Vec::new();
    if truth(host.get("Privileged"), "HostConfig.Privileged")? && !grant.privileged {
        host.insert("Privileged".into(), false.into());
        taken.push("HostConfig.Privileged");
    }
    let added = texts(host.get("CapAdd"), "HostConfig.CapAdd")?;
    let kept: Vec<&str> =
        added.iter().copied().filter(|added| grants_capability(grant, added)).collect();
    if kept.len() < added.len() {
        let kept = Value::from(kept);
        host.insert("CapAdd".into(), kept);
        taken.push("HostConfig.CapAdd");
    }
    if !taken.is_empty() {
        let mut dropped = vec![Value::from("CHOWN"), Value::from("SETUID")];
        dropped
            .extend(texts(host.get("CapDrop"), "HostConfig.CapDrop")?.into_iter().map(Value::from));
        host.insert(
            "Privileged".into(),
            (grant.privileged && host.get("Privileged") == Some(&true.into())).into(),
        );
        host.insert("CapDrop".into(), dropped.into());
        if host.get("CapAdd").and_then(Value::as_array).is_some_and(Vec::is_empty) {
            host.shift_remove("CapAdd");
        }
    }
    Ok(taken)
}

/// Takes away that the engine removes the container by itself when it ends: a module that
/// was stopped could not be started again, nor an update be taken back. Says whether that
/// was asked for.
pub fn without_self_removal(options: &mut Map<String, Value>) -> bool {
    let host = options.get_mut("HostConfig").and_then(Value::as_object_mut);
    host.and_then(|host| host.shift_remove("AutoRemove")).is_some_and(|asked| asked == true)
}

fn grants_capability(grant: &Grant, added: &str) -> bool {
    let plain = |name: &str| {
        let name = name.to_ascii_uppercase();
        name.strip_prefix("CAP_").map(str::to_owned).unwrap_or(name)
    };
    grant.capabilities.iter().any(|granted| plain(granted) == plain(added))
}

impl Judge<'_> {
    /// Judges canonical options with what was found of what they name.
    ///
    /// # Errors
    /// The first option that is refused.
    pub fn judge(&self, options: &Map<String, Value>, found: &Found) -> Result<(), Refusal> {
        for (side, prefix) in sides(options) {
            one_place_a_mount(side.get("Mounts"), &format!("{prefix}Mounts"))?;
        }
        let mounted = mounted(options, &found.volumes);
        for place in mounted.iter().chain(&mentioned(options, &found.volumes)) {
            self.own_place(place, &found.resolved)?;
        }
        if self.elevated {
            return Ok(());
        }
        for place in &mounted {
            self.place(place, &found.resolved)?;
        }
        self.replaceable(&mounted, &found.resolved)?;
        for (option, name) in named(options) {
            if found.volumes.get(name).is_some_and(|volume| volume.reach() == Reach::Driver) {
                self.driver(&option, name)?;
            }
        }
        for (name, value) in options {
            match members::at_top(name) {
                // Engines of some versions take the host's side here as well.
                Some(member) => self.member(member, value, name)?,
                None => self.unless_granted(name, value, || "nothing is known of it".to_owned())?,
            }
        }
        Ok(())
    }

    /// This device's own places, which no permission opens.
    fn own_place(&self, place: &HostPath, resolved: &Resolved) -> Result<(), Refusal> {
        let Some(path) = clean(&place.path) else {
            return Err(Refusal {
                option: place.option.clone(),
                why: Why::Expected("an absolute path"),
            });
        };
        let led_to = resolved.get(&path).cloned().flatten();
        for known in [Some(path.as_str()), led_to.as_deref()].into_iter().flatten() {
            let Some(own) = self.own.iter().find(|own| within(known, own)) else { continue };
            let open = self.open.iter().any(|open| open == known);
            let granted = self.grant.binds.iter().filter_map(|grant| clean(split_grant(grant).0));
            // A grant of everything is not one of this.
            if !open
                && !granted.into_iter().any(|grant| within(&grant, own) && within(known, &grant))
            {
                let why =
                    Why::Own { path: shown(known), remedy: self.remedy(&listed("binds", known)) };
                return Err(Refusal { option: place.option.clone(), why });
            }
        }
        Ok(())
    }

    /// A volume that reaches what its driver reaches.
    fn driver(&self, option: &str, name: &str) -> Result<(), Refusal> {
        let member = ["HostConfig.Binds", "HostConfig.Mounts"]
            .into_iter()
            .find(|member| option.starts_with(member));
        if self.grants_volume(name) || member.is_some_and(|member| self.grants_option(member)) {
            return Ok(());
        }
        let what = format!(
            "the volume {} was made with options that reach beyond the engine's own folders",
            shown(name)
        );
        Err(self.refusal(option, what, &listed("volumes", name)))
    }

    /// A place below one that the module writes to is not the same place at the next
    /// start if the module does not want it.
    fn replaceable(&self, mounted: &[HostPath], resolved: &Resolved) -> Result<(), Refusal> {
        if self.grants_option("HostConfig.Binds") || self.grants_option("HostConfig.Mounts") {
            return Ok(());
        }
        let real = |place: &HostPath| {
            let path = clean(&place.path)?;
            Some(resolved.get(&path).cloned().flatten().unwrap_or(path))
        };
        for (place, path) in mounted.iter().filter_map(|place| Some((place, real(place)?))) {
            let above = mounted.iter().filter(|above| !above.read_only).filter_map(real);
            if let Some(above) =
                above.into_iter().find(|above| *above != path && within(&path, above))
            {
                let why = Why::Replaceable { path: shown(&path), above: shown(&above) };
                return Err(Refusal { option: place.option.clone(), why });
            }
        }
        Ok(())
    }

    fn grants_volume(&self, name: &str) -> bool {
        self.grant.volumes.iter().any(|granted| granted == name)
    }

    /// A place of the host that only a grant opens.
    fn place(&self, place: &HostPath, resolved: &Resolved) -> Result<(), Refusal> {
        let of_member =
            |member: &str| self.grants_option(member) && place.option.starts_with(member);
        if covering(place, &self.grant.binds, resolved).is_some()
            && !place.path.split('/').any(|part| part == "..")
            || clean(&place.path).is_some_and(|path| self.open.contains(&path))
            || ["HostConfig.Binds", "HostConfig.Mounts", "HostConfig.LogConfig"]
                .into_iter()
                .any(of_member)
            || place.volume.as_ref().is_some_and(|volume| self.grants_volume(volume))
        {
            return Ok(());
        }
        let mut what = format!("it mounts {} of the host", shown(&place.path));
        if let Some(volume) = &place.volume {
            what.push_str(&format!(" by the volume {}", shown(volume)));
        }
        if place.shared {
            what.push_str(" so that what is mounted there appears on the host");
        }
        let read_only = if place.read_only { ":ro" } else { "" };
        let path = clean(&place.path).unwrap_or_default();
        Err(self.refusal(&place.option, what, &listed("binds", &format!("{path}{read_only}"))))
    }
}

/// Returns true if engines take a value for an absent one.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}

fn listed(kind: &str, what: &str) -> String {
    format!("{kind} = [{:?}]", shown(what))
}

fn object<'a>(value: &'a Value, path: &str) -> Result<&'a Map<String, Value>, Refusal> {
    static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    match value {
        Value::Object(members) => Ok(members),
        Value::Null => Ok(&NONE),
        _ => Err(Refusal { option: path.to_owned(), why: Why::Expected("an object") }),
    }
}

fn list<'a>(value: &'a Value, path: &str) -> Result<&'a [Value], Refusal> {
    match value {
        Value::Array(items) => Ok(items),
        Value::Null => Ok(&[]),
        _ => Err(Refusal { option: path.to_owned(), why: Why::Expected("a list") }),
    }
}

fn texts<'a>(value: Option<&'a Value>, path: &str) -> Result<Vec<&'a str>, Refusal> {
    let wrong = || Refusal { option: path.to_owned(), why: Why::Expected("a list of strings") };
    let items = list(value.unwrap_or(&Value::Null), path).map_err(|_| wrong())?;
    items.iter().map(|item| item.as_str().ok_or_else(wrong)).collect()
}

fn truth(value: Option<&Value>, path: &str) -> Result<bool, Refusal> {
    match value {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(truth)) => Ok(*truth),
        Some(_) => Err(Refusal { option: path.to_owned(), why: Why::Expected("true or false") }),
    }
}

/// A name or path from outside as it may be shown: short and without control characters.
fn shown(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod page;
#[cfg(test)]
mod tests;
