//! What a module may ask of the container engine.
//!
//! Create options are the engine's own create body, so whoever writes a deployment can ask for all that the engine can do,
//! which is everything that root can do. Without elevated permissions (`allow_elevated_docker_permissions = false`) a module
//! gets what concerns its container alone, and of the host only what the operator's grant names; what engines of the future
//! may understand is refused with what is unknown now. Whatever the permissions: places of this device's own sockets and
//! state are nobody's but by a grant that names them.
//!
//! Pure: links of the file system come in resolved.

mod members;
mod paths;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::ModuleId;
use members::{HOST, Member, Rule, Shape};
use paths::{HostPath, bind_words, clean, covering, mounted, sides, split_grant, within};

pub use paths::Resolved;

/// What the operator grants to one module beyond what any module may have (`[modules.NAME.grant]`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grant {
    /// A privileged container.
    pub privileged: bool,
    /// Capabilities that may be added, such as `NET_ADMIN`.
    pub capabilities: Vec<String>,
    /// Paths of the host that may be mounted, with what lies below; `:ro` at the end for reading only.
    pub binds: Vec<String>,
    /// Device files of the host, or folders of them.
    pub devices: Vec<String>,
    /// Name spaces of the host: `network`, `pid`, `ipc`, `uts`, `user`, `cgroup`.
    pub namespaces: BTreeSet<String>,
    /// Kernel parameters by name.
    pub sysctls: Vec<String>,
    /// Programs that run containers, by the engine's names for them.
    pub runtimes: Vec<String>,
    /// Members of the create options that may have any value, such as `HostConfig.SecurityOpt`.
    pub options: Vec<String>,
}

/// The name spaces that [`Grant::namespaces`] may name.
pub const NAMESPACES: &[&str] = &["network", "pid", "ipc", "uts", "user", "cgroup"];

/// What a module's create options are judged by.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// The module.
    pub module: &'a ModuleId,
    /// What it is granted.
    pub grant: &'a Grant,
    /// Whether every module has elevated permissions.
    pub elevated: bool,
    /// Paths of this device's own sockets and state.
    pub own: &'a [String],
    /// Paths among [`Self::own`] that any module may mount: callers there are measured like anywhere.
    pub open: &'a [String],
}

/// A create option that is refused. The text names option and remedy, and holds no value but paths and names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("create option {option} is refused: {why}")]
pub struct Refusal {
    /// The option, as a path such as `HostConfig.Binds[1]`.
    pub option: String,
    /// Why, and what to do.
    pub why: Why,
}

/// Why a create option is refused.
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
        /// How to grant it.
        remedy: String,
    },
    /// Not granted.
    #[error(
        "{what}, and elevated permissions are off (allow_elevated_docker_permissions = false); take it out{}", .remedy
    )]
    NotGranted {
        /// What it would give.
        what: String,
        /// How to grant it.
        remedy: String,
    },
}

/// Create options with every member in the engine's spelling, whatever case it was written in.
///
/// # Errors
/// Two spellings of one member.
pub fn canonical(options: &Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    members::canonical(options)
}

/// Paths of the host that the judge must know the meaning of: those of the options and of the grant.
#[must_use]
pub fn paths_to_resolve(options: &Map<String, Value>, grant: &Grant) -> BTreeSet<String> {
    paths::to_resolve(options, &grant.binds)
}

/// Takes from canonical options what existing services take silently, `Privileged` and `CapAdd`, as far as it is not
/// granted, and gives the names of what was taken.
///
/// # Errors
/// A member is of another type than engines take.
pub fn without_elevation(options: &mut Map<String, Value>, grant: &Grant) -> Result<Vec<&'static str>, Refusal> {
    let Some(Value::Object(host)) = options.get_mut("HostConfig") else { return Ok(Vec::new()) };
    let mut taken = Vec::new();
    if truth(host.get("Privileged"), "HostConfig.Privileged")? && !grant.privileged {
        host.insert("Privileged".into(), false.into());
        taken.push("HostConfig.Privileged");
    }
    let added = texts(host.get("CapAdd"), "HostConfig.CapAdd")?;
    let kept: Vec<&str> = added.iter().copied().filter(|added| grants_capability(grant, added)).collect();
    if kept.len() < added.len() {
        let kept = Value::from(kept);
        host.insert("CapAdd".into(), kept);
        taken.push("HostConfig.CapAdd");
    }
    if !taken.is_empty() {
        let mut dropped = vec![Value::from("CHOWN"), Value::from("SETUID")];
        dropped.extend(texts(host.get("CapDrop"), "HostConfig.CapDrop")?.into_iter().map(Value::from));
        host.insert("Privileged".into(), (grant.privileged && host.get("Privileged") == Some(&true.into())).into());
        host.insert("CapDrop".into(), dropped.into());
        if host.get("CapAdd").and_then(Value::as_array).is_some_and(Vec::is_empty) {
            host.shift_remove("CapAdd");
        }
    }
    Ok(taken)
}

fn grants_capability(grant: &Grant, added: &str) -> bool {
    let plain = |name: &str| {
        let name = name.to_ascii_uppercase();
        name.strip_prefix("CAP_").map(str::to_owned).unwrap_or(name)
    };
    grant.capabilities.iter().any(|granted| plain(granted) == plain(added))
}

impl Judge<'_> {
    /// Judges canonical options; `resolved` has the answers to [`paths_to_resolve`].
    ///
    /// # Errors
    /// The first option that is refused.
    pub fn judge(&self, options: &Map<String, Value>, resolved: &Resolved) -> Result<(), Refusal> {
        for (side, prefix) in sides(options) {
            one_place_a_mount(side.get("Mounts"), &format!("{prefix}Mounts"))?;
        }
        for place in mounted(options) {
            self.own_place(&place, resolved)?;
        }
        if self.elevated {
            return Ok(());
        }
        for place in mounted(options) {
            self.place(&place, resolved)?;
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

    fn host(&self, host: &Value, path: &str) -> Result<(), Refusal> {
        for (name, value) in object(host, path)? {
            let path = members::join(path, name);
            match HOST.iter().find(|member| member.name == name) {
                Some(member) => self.member(member, value, &path)?,
                None => self.unless_granted(&path, value, || "nothing is known of it".to_owned())?,
            }
        }
        Ok(())
    }

    fn member(&self, member: &Member, value: &Value, path: &str) -> Result<(), Refusal> {
        let say = |what: &'static str| move || what.to_owned();
        self.inside(member, value, path)?;
        match member.rule {
            Rule::Host => self.host(value, path),
            Rule::Free => Ok(()),
            // At the top level nobody takes it away.
            Rule::TakenAway if path.contains('.') => Ok(()),
            // An empty list closes nothing.
            Rule::Absent if value.is_null() || self.grants_option(path) => Ok(()),
            Rule::Absent => Err(self.refusal(path, gives(member.name).to_owned(), &listed("options", path))),
            Rule::TakenAway | Rule::Empty => self.unless_granted(path, value, say(gives(member.name))),
            Rule::OneOf(words) => self.one_of(words, value, path, say(gives(member.name))),
            Rule::Namespace(kind, words) => self.namespace(kind, words, value, path),
            Rule::Network => self.network(value, path),
            Rule::Networking => self.endpoints(value, path),
            Rule::Log => self.log(value, path),
            Rule::OomScore => match value.as_i64() {
                Some(score) if score >= 0 => Ok(()),
                _ => self.unless_granted(path, value, say("it keeps the kernel from ending it before others")),
            },
            Rule::Security => self.each(value, path, |option| {
                matches!(
                    option,
                    "no-new-privileges"
                        | "no-new-privileges:true"
                        | "no-new-privileges=true"
                        | "seccomp=builtin"
                        | "apparmor=docker-default"
                )
            }),
            Rule::Runtime => {
                let runtimes: Vec<&str> = self.grant.runtimes.iter().map(String::as_str).collect();
                match value {
                    Value::String(runtime) if runtimes.contains(&runtime.as_str()) => Ok(()),
                    _ => self.unless_granted_as(path, value, "another program runs the container".into(), || {
                        listed("runtimes", value.as_str().unwrap_or("NAME"))
                    }),
                }
            }
            Rule::Sysctls => {
                for name in object(value, path)?.keys() {
                    if !self.grant.sysctls.contains(name) && !self.grants_option(path) {
                        let what = "it sets a kernel parameter".to_owned();
                        return Err(self.refusal(&members::join(path, name), what, &listed("sysctls", name)));
                    }
                }
                Ok(())
            }
            Rule::Devices => self.devices(value, path),
            Rule::Binds => self.binds(value, path),
            Rule::Volumes => {
                let mut names = object(value, path)?.keys();
                names.try_for_each(|name| self.bind_options(name, path, &members::join(path, name)))
            }
            Rule::Mounts => self.mounts(value, path),
        }
    }

    /// This device's own places, which no permission opens.
    fn own_place(&self, place: &HostPath, resolved: &Resolved) -> Result<(), Refusal> {
        let Some(path) = clean(&place.path) else {
            return Err(Refusal { option: place.option.clone(), why: Why::Expected("an absolute path") });
        };
        let led_to = resolved.get(&path).cloned().flatten();
        for known in [Some(path.as_str()), led_to.as_deref()].into_iter().flatten() {
            let Some(own) = self.own.iter().find(|own| within(known, own)) else { continue };
            let open = self.open.iter().any(|open| open == known);
            let granted = self.grant.binds.iter().filter_map(|grant| clean(split_grant(grant).0));
            // A grant of everything is not one of this.
            if !open && !granted.into_iter().any(|grant| within(&grant, own) && within(known, &grant)) {
                let why = Why::Own { path: shown(known), remedy: self.remedy(&listed("binds", known)) };
                return Err(Refusal { option: place.option.clone(), why });
            }
        }
        Ok(())
    }

    fn place(&self, place: &HostPath, resolved: &Resolved) -> Result<(), Refusal> {
        let of_member = |member: &str| self.grants_option(member) && place.option.starts_with(member);
        if covering(place, &self.grant.binds, resolved).is_some() && !place.path.split('/').any(|part| part == "..")
            || clean(&place.path).is_some_and(|path| self.open.contains(&path))
            || ["HostConfig.Binds", "HostConfig.Mounts", "HostConfig.LogConfig"].into_iter().any(of_member)
        {
            return Ok(());
        }
        let mut what = format!("it mounts {} of the host", shown(&place.path));
        if place.shared {
            what.push_str(" so that what is mounted there appears on the host");
        }
        let read_only = if place.read_only { ":ro" } else { "" };
        let path = clean(&place.path).unwrap_or_default();
        Err(self.refusal(&place.option, what, &listed("binds", &format!("{path}{read_only}"))))
    }

    fn binds(&self, value: &Value, path: &str) -> Result<(), Refusal> {
        let mut binds = texts(Some(value), path)?.into_iter().enumerate();
        binds.try_for_each(|(index, bind)| self.bind_options(bind, path, &format!("{path}[{index}]")))
    }

    /// The words behind a bind. Its places were judged with all others; a name in front of the colon is a volume's.
    fn bind_options(&self, bind: &str, member: &str, path: &str) -> Result<(), Refusal> {
        for word in bind_words(bind) {
            let place = word.starts_with("upperdir=") || word.starts_with("workdir=");
            if !place && !BIND_WORDS.contains(&word) && !self.grants_option(member) {
                let what = format!("nothing is known of the mount option {:?}", shown(word));
                return Err(self.refusal(path, what, &listed("options", member)));
            }
        }
        Ok(())
    }

    fn log(&self, value: &Value, path: &str) -> Result<(), Refusal> {
        let words = &["json-file", "local", "journald", "k8s-file", "none"];
        let what = "it sends logs elsewhere by the engine's own connection";
        self.one_of(words, &value["Type"], path, || what.to_owned())?;
        for (name, value) in object(&value["Config"], path)? {
            // A path was judged with all other places.
            if name != "path" && !LOG_OPTIONS.contains(&name.as_str()) && !self.grants_option(path) {
                let path = format!("{path}.Config.{}", shown(name));
                self.unless_granted(&path, value, || "nothing is known of this option of a log".to_owned())?;
            }
        }
        Ok(())
    }

    /// The members of a member, and theirs.
    fn inside(&self, member: &Member, value: &Value, path: &str) -> Result<(), Refusal> {
        match (member.shape, value) {
            // The host's side has rules of its own.
            _ if member.rule == Rule::Host => Ok(()),
            (Shape::Members(known), Value::Object(members)) => self.known(known, members, path),
            (Shape::Map(known), Value::Object(entries)) => entries.iter().try_for_each(|(name, entry)| {
                entry.as_object().map_or(Ok(()), |members| self.known(known, members, &members::join(path, name)))
            }),
            (Shape::List(known), Value::Array(items)) => items.iter().enumerate().try_for_each(|(index, item)| {
                item.as_object().map_or(Ok(()), |members| self.known(known, members, &format!("{path}[{index}]")))
            }),
            _ => Ok(()),
        }
    }

    fn known(&self, known: &[Member], members: &Map<String, Value>, path: &str) -> Result<(), Refusal> {
        // An option that is granted is granted with all that it holds.
        if self.grant.options.iter().any(|option| path == option || path.starts_with(&format!("{option}["))) {
            return Ok(());
        }
        for (name, value) in members {
            let path = members::join(path, name);
            match known.iter().find(|member| member.name == name) {
                Some(member) if is_nothing(value) && member.rule != Rule::Absent => {}
                Some(member) => self.member(member, value, &path)?,
                None => self.unless_granted(&path, value, || "nothing is known of it".to_owned())?,
            }
        }
        Ok(())
    }

    fn mounts(&self, value: &Value, path: &str) -> Result<(), Refusal> {
        if self.grants_option(path) {
            return Ok(());
        }
        for (index, mount) in list(value, path)?.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let kind = mount["Type"].as_str();
            if !matches!(kind, Some("bind" | "volume" | "tmpfs")) {
                return Err(Refusal { option: path, why: Why::Expected("of the type bind, volume or tmpfs") });
            }
            let driver = &mount["VolumeOptions"]["DriverConfig"];
            let plain = matches!(driver["Name"].as_str(), None | Some("" | "local"));
            if !plain || (!is_nothing(&driver["Options"]) && !binds_a_place(&driver["Options"])) {
                let what = "a volume driver's options reach what the driver reaches".to_owned();
                return Err(self.refusal(
                    &format!("{path}.VolumeOptions.DriverConfig"),
                    what,
                    &listed("options", "HostConfig.Mounts"),
                ));
            }
        }
        Ok(())
    }

    fn devices(&self, value: &Value, path: &str) -> Result<(), Refusal> {
        for (index, device) in list(value, path)?.iter().enumerate() {
            let on_host = device["PathOnHost"].as_str().unwrap_or_default();
            let granted = clean(on_host).is_some_and(|device| {
                self.grant.devices.iter().filter_map(|grant| clean(grant)).any(|grant| within(&device, &grant))
            });
            if !granted && !self.grants_option(path) {
                let what = format!("it gives the device {}", shown(on_host));
                return Err(self.refusal(&format!("{path}[{index}]"), what, &listed("devices", on_host)));
            }
        }
        Ok(())
    }

    fn namespace(&self, kind: &str, words: &[&str], value: &Value, path: &str) -> Result<(), Refusal> {
        if value.as_str() == Some("host") && self.grant.namespaces.contains(kind) {
            return Ok(());
        }
        if value.as_str().is_some_and(|word| words.contains(&word)) {
            return Ok(());
        }
        let what = format!("the {kind} name space would be the host's or another container's");
        self.unless_granted_as(path, value, what, || listed("namespaces", kind))
    }

    fn network(&self, value: &Value, path: &str) -> Result<(), Refusal> {
        match value.as_str() {
            Some(name) if is_network(name) => Ok(()),
            _ => self.namespace("network", &[], value, path),
        }
    }

    fn endpoints(&self, value: &Value, path: &str) -> Result<(), Refusal> {
        if value.is_null() {
            return Ok(());
        }
        for name in object(&value["EndpointsConfig"], path)?.keys() {
            if !is_network(name) && !self.grant.namespaces.contains("network") {
                let what = "the network would be the host's".to_owned();
                return Err(self.refusal(&members::join(path, name), what, &listed("namespaces", "network")));
            }
        }
        Ok(())
    }

    fn each(&self, value: &Value, path: &str, harmless: impl Fn(&str) -> bool) -> Result<(), Refusal> {
        for (index, word) in texts(Some(value), path)?.into_iter().enumerate() {
            if !harmless(word) && !self.grants_option(path) {
                let what = "it weakens what separates containers".to_owned();
                return Err(self.refusal(&format!("{path}[{index}]"), what, &listed("options", path)));
            }
        }
        Ok(())
    }

    fn one_of(&self, words: &[&str], value: &Value, path: &str, what: impl Fn() -> String) -> Result<(), Refusal> {
        if value.as_str().is_some_and(|word| words.contains(&word)) {
            return Ok(());
        }
        self.unless_granted(path, value, what)
    }

    fn unless_granted(&self, path: &str, value: &Value, what: impl Fn() -> String) -> Result<(), Refusal> {
        self.unless_granted_as(path, value, what(), || listed("options", path))
    }

    fn unless_granted_as(
        &self,
        path: &str,
        value: &Value,
        what: String,
        grant: impl Fn() -> String,
    ) -> Result<(), Refusal> {
        if is_nothing(value) || self.grants_option(path) {
            return Ok(());
        }
        Err(self.refusal(path, what, &grant()))
    }

    fn grants_option(&self, path: &str) -> bool {
        self.grant.options.iter().any(|option| option == path)
    }

    fn refusal(&self, option: &str, what: String, grant: &str) -> Refusal {
        let remedy = self.remedy(grant);
        Refusal { option: option.to_owned(), why: Why::NotGranted { what, remedy } }
    }

    fn remedy(&self, grant: &str) -> String {
        format!(", or grant it: [modules.{:?}.grant] {grant}", self.module.name())
    }
}

/// What may stand behind a bind. Places among the words are judged as such.
const BIND_WORDS: &[&str] = &[
    "",
    "ro",
    "rw",
    "z",
    "Z",
    "U",
    "O",
    "nocopy",
    "copy",
    "bind",
    "rbind",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "cached",
    "delegated",
    "consistent",
    "nodev",
    "noexec",
    "nosuid",
];

/// What a log driver may be told: how much is kept, and what stands in it.
const LOG_OPTIONS: &[&str] = &[
    "max-size",
    "max-file",
    "max-buffer-size",
    "compress",
    "mode",
    "tag",
    "labels",
    "labels-regex",
    "env",
    "env-regex",
    "cache-disabled",
    "cache-max-size",
    "cache-max-file",
    "cache-compress",
];

/// Some engines write a mount as words with commas between them, so that one text could add words, and with them another
/// place than the one that is judged.
fn one_place_a_mount(mounts: Option<&Value>, path: &str) -> Result<(), Refusal> {
    for (index, mount) in mounts.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let texts = [
            ("Type", &mount["Type"]),
            ("Source", &mount["Source"]),
            ("Target", &mount["Target"]),
            ("Consistency", &mount["Consistency"]),
            ("BindOptions.Propagation", &mount["BindOptions"]["Propagation"]),
        ];
        for (member, text) in texts {
            if text.as_str().is_some_and(|text| text.contains([',', '"', '\n', '\r'])) {
                let option = format!("{path}[{index}].{member}");
                return Err(Refusal { option, why: Why::Expected("a text without commas and quotes") });
            }
        }
    }
    Ok(())
}

/// Whether options of the local driver do no more than mount one folder in another place. Other file systems may take
/// further places from their options.
fn binds_a_place(options: &Value) -> bool {
    options.as_object().is_some_and(|options| {
        options.contains_key("device")
            && options.iter().all(|(name, value)| match (name.as_str(), value.as_str()) {
                ("device", Some(device)) => device.starts_with('/'),
                ("type", Some(kind)) => matches!(kind, "" | "none" | "bind"),
                ("o", Some(words)) => words.split(',').all(|word| matches!(word, "" | "bind" | "rbind" | "ro" | "rw")),
                _ => false,
            })
    })
}

/// What a member without a grant of its own kind would give.
fn gives(member: &str) -> &'static str {
    match member {
        "VolumesFrom" => "it mounts the volumes of another container",
        "DeviceRequests" | "DeviceCgroupRules" => "it gives devices of the host",
        "CgroupParent" | "Cgroup" => "it leaves the cgroup that modules are measured by",
        "GroupAdd" => "it adds groups, which may be the host's",
        "MaskedPaths" | "ReadonlyPaths" => "it opens parts of /proc and /sys that engines close",
        "DriverOpts" => "it tells the network's driver what to do, which sets kernel parameters too",
        "Links" => "it shows another container's environment",
        "Privileged" | "CapAdd" => "it elevates the container",
        "VolumeDriver" => "a volume driver reaches what the driver reaches",
        "OomKillDisable" => "it keeps the kernel from ending it",
        _ => "it reaches beyond the container",
    }
}

/// A network by its name: not the host's, not another container's, not a file's, not an id.
fn is_network(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"_.-".contains(&c);
    let id = name.len() >= 12 && name.bytes().all(|c| c.is_ascii_hexdigit());
    !name.is_empty() && name.bytes().all(plain) && !id && !name.eq_ignore_ascii_case("host")
}

/// Whether engines take a value for an absent one.
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
mod tests;
