//! Values to which each member may be set without elevated permissions, by the rules of
//! the [table](super::members).

use serde_json::{Map, Value};

use super::members::{self, HOST, Member, Rule, Shape};
use super::paths::{bind_words, clean, within};
use super::volumes::{Reach, Volume};
use super::{Judge, Refusal, Why, is_nothing, list, listed, object, shown, texts};

impl Judge<'_> {
    pub(super) fn host(&self, host: &Value, path: &str) -> Result<(), Refusal> {
        for (name, value) in object(host, path)? {
            let path = members::join(path, name);
            match HOST.iter().find(|member| member.name == name) {
                Some(member) => self.member(member, value, &path)?,
                None => {
                    self.unless_granted(&path, value, || "nothing is known of it".to_owned())?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn member(&self, member: &Member, value: &Value, path: &str) -> Result<(), Refusal> {
        let why = || member.why.to_owned();
        self.inside(member, value, path)?;
        match member.rule {
            Rule::Host => self.host(value, path),
            Rule::Free => Ok(()),
            // At the top level nobody takes it away.
            Rule::TakenAway if path.contains('.') => Ok(()),
            // An empty list closes nothing.
            Rule::Absent if value.is_null() || self.grants_option(path) => Ok(()),
            Rule::Absent => Err(self.refusal(path, why(), &listed("options", path))),
            Rule::TakenAway | Rule::Empty => self.unless_granted(path, value, why),
            Rule::OneOf(words) => self.one_of(words, value, path, why),
            Rule::Within(first, last) => match value.as_i64() {
                Some(number) if (first..=last).contains(&number) => Ok(()),
                _ => self.unless_granted(path, value, why),
            },
            Rule::Names(known) => {
                let mut members = object(value, path)?.iter();
                members.try_for_each(|(name, value)| {
                    match known.contains(&name.as_str()) || self.grants_option(path) {
                        true => Ok(()),
                        false => self.unless_granted(&members::join(path, name), value, why),
                    }
                })
            }
            Rule::Env => self.environment(value, path, member.why),
            Rule::Labels => self.labels(value, path, member.why),
            Rule::WorkingDir => match value.as_str() {
                Some(folder) if is_plain_folder(folder) => Ok(()),
                _ => self.unless_granted(path, value, why),
            },
            Rule::Groups => self.groups(value, path, member.why),
            Rule::Ports => self.ports(value, path),
            Rule::AllPorts => self.all_ports(value, path),
            Rule::Ulimits => self.ulimits(value, path, member.why),
            Rule::Namespace(kind, words) => self.namespace(kind, words, value, path),
            Rule::Network => self.network(value, path),
            Rule::Networking => self.endpoints(value, path),
            Rule::Log => self.log(value, path),
            Rule::OomScore => match value.as_i64() {
                Some(score) if score >= 0 => Ok(()),
                _ => self.unless_granted(path, value, why),
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
                    _ => self.unless_granted_as(path, value, why(), || {
                        listed("runtimes", value.as_str().unwrap_or("NAME"))
                    }),
                }
            }
            Rule::Sysctls => {
                for name in object(value, path)?.keys() {
                    if !self.grant.sysctls.contains(name) && !self.grants_option(path) {
                        let what = "it sets a kernel parameter".to_owned();
                        return Err(self.refusal(
                            &members::join(path, name),
                            what,
                            &listed("sysctls", name),
                        ));
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

    fn binds(&self, value: &Value, path: &str) -> Result<(), Refusal> {
        let mut binds = texts(Some(value), path)?.into_iter().enumerate();
        binds.try_for_each(|(index, bind)| {
            self.bind_options(bind, path, &format!("{path}[{index}]"))
        })
    }

    /// The words behind a bind. Its places were judged with all others; a name in front
    /// of the colon is a volume's.
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
            let told = match name.as_str() {
                "tag" => value.as_str().is_none_or(is_plain_tag),
                "max-buffer-size" => value.as_str().is_none_or(is_small_buffer),
                _ => true,
            };
            if !told && !self.grants_option(path) {
                let what =
                    "it makes the engine do more than name the container, or hold more than 64 MiB"
                        .to_owned();
                return Err(self.refusal(
                    &format!("{path}.Config.{name}"),
                    what,
                    &listed("options", path),
                ));
            }
            if name != "path" && !LOG_OPTIONS.contains(&name.as_str()) && !self.grants_option(path)
            {
                let path = format!("{path}.Config.{}", shown(name));
                self.unless_granted(&path, value, || {
                    "nothing is known of this option of a log".to_owned()
                })?;
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
            (Shape::Map(known), Value::Object(entries)) => {
                entries.iter().try_for_each(|(name, entry)| {
                    entry.as_object().map_or(Ok(()), |members| {
                        self.known(known, members, &members::join(path, name))
                    })
                })
            }
            (Shape::Lists(known), Value::Object(entries)) => {
                entries.iter().try_for_each(|(name, entry)| {
                    let path = members::join(path, name);
                    entry.as_array().into_iter().flatten().enumerate().try_for_each(
                        |(index, item)| {
                            let path = format!("{path}[{index}]");
                            item.as_object()
                                .map_or(Ok(()), |members| self.known(known, members, &path))
                        },
                    )
                })
            }
            (Shape::List(known), Value::Array(items)) => {
                items.iter().enumerate().try_for_each(|(index, item)| {
                    item.as_object().map_or(Ok(()), |members| {
                        self.known(known, members, &format!("{path}[{index}]"))
                    })
                })
            }
            _ => Ok(()),
        }
    }

    fn known(
        &self,
        known: &[Member],
        members: &Map<String, Value>,
        path: &str,
    ) -> Result<(), Refusal> {
        // An option that is granted is granted with all that it holds.
        if self
            .grant
            .options
            .iter()
            .any(|option| path == option || path.starts_with(&format!("{option}[")))
        {
            return Ok(());
        }
        for (name, value) in members {
            let path = members::join(path, name);
            match known.iter().find(|member| member.name == name) {
                Some(member) if is_nothing(value) && member.rule != Rule::Absent => {}
                Some(member) => self.member(member, value, &path)?,
                None => {
                    self.unless_granted(&path, value, || "nothing is known of it".to_owned())?;
                }
            }
        }
        Ok(())
    }

    /// A variable without a value is the image's, taken away; for Podman it is the
    /// engine's, and `*` is all of them.
    fn environment(&self, value: &Value, path: &str, why: &str) -> Result<(), Refusal> {
        for (index, variable) in texts(Some(value), path)?.into_iter().enumerate() {
            if !variable.contains('=') && !self.grants_option(path) {
                return Err(self.refusal(
                    &format!("{path}[{index}]"),
                    why.to_owned(),
                    &listed("options", path),
                ));
            }
        }
        Ok(())
    }

    fn labels(&self, value: &Value, path: &str, why: &str) -> Result<(), Refusal> {
        for name in object(value, path)?.keys() {
            let folded = name.to_ascii_lowercase();
            if ORDERS.iter().any(|order| folded.starts_with(order)) && !self.grants_option(path) {
                return Err(self.refusal(
                    &members::join(path, name),
                    why.to_owned(),
                    &listed("options", path),
                ));
            }
        }
        Ok(())
    }

    fn groups(&self, value: &Value, path: &str, why: &str) -> Result<(), Refusal> {
        for (index, group) in texts(Some(value), path)?.into_iter().enumerate() {
            let plain = group.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c));
            if (!plain || group.eq_ignore_ascii_case("keep-groups")) && !self.grants_option(path) {
                return Err(self.refusal(
                    &format!("{path}[{index}]"),
                    why.to_owned(),
                    &listed("options", path),
                ));
            }
        }
        Ok(())
    }

    fn ulimits(&self, value: &Value, path: &str, why: &str) -> Result<(), Refusal> {
        for (index, limit) in list(value, path)?.iter().enumerate() {
            let name = limit["Name"].as_str().unwrap_or_default();
            let granted = self.grant.ulimits.iter().any(|granted| granted == name);
            if !HARMLESS_ULIMITS.contains(&name) && !granted && !self.grants_option(path) {
                let option = format!("{path}[{index}]");
                return Err(self.refusal(
                    &option,
                    why.to_owned(),
                    &listed("ulimits", &name.to_ascii_lowercase()),
                ));
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
                return Err(Refusal {
                    option: path,
                    why: Why::Expected("of the type bind, volume or tmpfs"),
                });
            }
            // A place was judged with all other places.
            let volume = Volume::from_driver_config(&mount["VolumeOptions"]["DriverConfig"]);
            if volume.is_none_or(|volume| volume.reach() == Reach::Driver) {
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
                self.grant
                    .devices
                    .iter()
                    .filter_map(|grant| clean(grant))
                    .any(|grant| within(&device, &grant))
            });
            if !granted && !self.grants_option(path) {
                let what = format!("it gives the device {}", shown(on_host));
                return Err(self.refusal(
                    &format!("{path}[{index}]"),
                    what,
                    &listed("devices", on_host),
                ));
            }
        }
        Ok(())
    }

    fn namespace(
        &self,
        kind: &str,
        words: &[&str],
        value: &Value,
        path: &str,
    ) -> Result<(), Refusal> {
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
                return Err(self.refusal(
                    &members::join(path, name),
                    what,
                    &listed("namespaces", "network"),
                ));
            }
        }
        Ok(())
    }

    fn each(
        &self,
        value: &Value,
        path: &str,
        harmless: impl Fn(&str) -> bool,
    ) -> Result<(), Refusal> {
        for (index, word) in texts(Some(value), path)?.into_iter().enumerate() {
            if !harmless(word) && !self.grants_option(path) {
                let what = "it weakens what separates containers".to_owned();
                return Err(self.refusal(
                    &format!("{path}[{index}]"),
                    what,
                    &listed("options", path),
                ));
            }
        }
        Ok(())
    }

    fn one_of(
        &self,
        words: &[&str],
        value: &Value,
        path: &str,
        what: impl Fn() -> String,
    ) -> Result<(), Refusal> {
        if value.as_str().is_some_and(|word| words.contains(&word)) {
            return Ok(());
        }
        self.unless_granted(path, value, what)
    }

    pub(super) fn unless_granted(
        &self,
        path: &str,
        value: &Value,
        what: impl Fn() -> String,
    ) -> Result<(), Refusal> {
        self.unless_granted_as(path, value, what(), || listed("options", path))
    }

    pub(super) fn unless_granted_as(
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

    pub(super) fn grants_option(&self, path: &str) -> bool {
        self.grant.options.iter().any(|option| option == path)
    }

    pub(super) fn refusal(&self, option: &str, what: String, grant: &str) -> Refusal {
        let remedy = self.remedy(grant);
        Refusal { option: option.to_owned(), why: Why::NotGranted { what, remedy } }
    }

    pub(super) fn remedy(&self, grant: &str) -> String {
        format!(", or grant it: [modules.{:?}.grant] {grant}", self.module.name())
    }
}

/// Words that may stand behind a bind. Places among the words are judged as places.
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

/// Options that a log driver may be given: how much is kept, and what stands in the log.
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

/// Some engines write a mount as words with commas between them, so that one text could
/// add words, and with them another place than the one that is judged.
pub(super) fn one_place_a_mount(mounts: Option<&Value>, path: &str) -> Result<(), Refusal> {
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
                return Err(Refusal {
                    option,
                    why: Why::Expected("a text without commas and quotes"),
                });
            }
        }
    }
    Ok(())
}

/// Returns true if a log's tag only names properties of the container. Anything else that
/// a template may do is done in the engine, without limit.
fn is_plain_tag(tag: &str) -> bool {
    let mut parts = tag.split("{{");
    let before = parts.next().unwrap_or_default();
    let named = |part: &str| {
        part.split_once("}}").is_some_and(|(name, rest)| {
            let name = name.trim();
            let plain = name
                .strip_prefix('.')
                .is_some_and(|name| name.bytes().all(|c| c.is_ascii_alphanumeric()));
            plain && !rest.contains("}}")
        })
    };
    !before.contains("}}") && parts.all(named)
}

/// Returns true if a log's buffer, in the engine's memory, is small. The size is written
/// as digits and a unit.
fn is_small_buffer(size: &str) -> bool {
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit =
        match size[digits.len()..].to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i')
        {
            "" => 1,
            "k" => 1 << 10,
            "m" => 1 << 20,
            _ => return false,
        };
    digits.parse::<u64>().is_ok_and(|number| number.saturating_mul(unit) <= 64 << 20)
}

/// A folder in which no process's descriptors appear. The kernel goes through the parts
/// before `..`.
fn is_plain_folder(folder: &str) -> bool {
    let Some(folder) =
        clean(&format!("/{folder}")).filter(|_| !folder.split('/').any(|part| part == ".."))
    else {
        return false;
    };
    !["/proc", "/dev/fd", "/sys"].iter().any(|place| within(&folder, place))
}

/// Limits that end with the container's own.
const HARMLESS_ULIMITS: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nofile",
    "nproc",
    "rss",
    "sigpending",
    "stack",
];

/// Labels in which Podman's own services see an order.
const ORDERS: &[&str] = &["io.containers.", "io.podman.", "podman_systemd_unit"];

/// A network by its name: not the host's, not another container's, not a file's, not an
/// id.
fn is_network(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"_.-".contains(&c);
    let id = name.len() >= 12 && name.bytes().all(|c| c.is_ascii_hexdigit());
    // Podman's words for ways around its networks.
    let words = ["host", "slirp4netns", "pasta", "private", "auto"];
    !name.is_empty()
        && name.bytes().all(plain)
        && !id
        && !words.iter().any(|word| name.eq_ignore_ascii_case(word))
}
