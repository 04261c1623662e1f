//! The reach of a volume: an engine's own folder, memory, one place of the host, or
//! whatever the volume's driver reaches. The name alone says nothing: a volume keeps the
//! options that it was made with, whoever made it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::paths::{bind_words, items, sides};

/// A volume that exists, as the engine describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Volume {
    /// The driver's name; empty or `local` is the engine's own.
    pub driver: String,
    /// The options that it was made with.
    pub options: BTreeMap<String, String>,
}

/// Volumes that exist, by name. A name that is absent is one that the engine will make,
/// without options.
pub type Volumes = BTreeMap<String, Volume>;

/// The reach that a module gets when it mounts a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reach {
    /// A folder of the engine's own, or memory.
    Plain,
    /// One place of the host.
    Place { path: String, read_only: bool },
    /// Whatever the volume's driver or its file system reaches.
    Driver,
}

impl Volume {
    /// The volume that a mount's `DriverConfig` would make; `None` if its options are not
    /// texts.
    pub(super) fn from_driver_config(config: &Value) -> Option<Self> {
        let driver = match &config["Name"] {
            Value::Null => String::new(),
            Value::String(name) => name.clone(),
            _ => return None,
        };
        let options = match &config["Options"] {
            Value::Null => BTreeMap::new(),
            Value::Object(options) => {
                let text = |(name, value): (&String, &Value)| {
                    Some((name.clone(), value.as_str()?.to_owned()))
                };
                options.iter().map(text).collect::<Option<_>>()?
            }
            _ => return None,
        };
        Some(Self { driver, options })
    }

    /// Returns the reach that a module gets when it mounts the volume.
    pub(super) fn reach(&self) -> Reach {
        let option = |name: &str| self.options.get(name).map(String::as_str).unwrap_or_default();
        let words = || option("o").split(',').filter(|word| !word.is_empty());
        let known = self
            .options
            .keys()
            .all(|name| matches!(name.as_str(), "type" | "device" | "o" | "size"));
        if !matches!(self.driver.as_str(), "" | "local") || !known {
            return Reach::Driver;
        }
        match (option("type"), option("device")) {
            // A quota, and whose the folder is.
            ("", "") if words().all(|word| is_sized(word) && !word.contains('/')) => Reach::Plain,
            ("tmpfs", device)
                if !device.contains('/') && words().all(|word| !word.contains('/')) =>
            {
                Reach::Plain
            }
            ("" | "none" | "bind", device) if device.starts_with('/') => {
                if words().all(|word| matches!(word, "bind" | "rbind" | "ro" | "rw")) {
                    let read_only =
                        words().any(|word| word == "ro") && !words().any(|word| word == "rw");
                    Reach::Place { path: device.to_owned(), read_only }
                } else {
                    Reach::Driver
                }
            }
            // Other file systems may take further places from their options.
            _ => Reach::Driver,
        }
    }

    /// Every absolute path in its options, for example the layers of an overlay.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.options.values().flat_map(|text| paths_in(text))
    }
}

/// Returns true if a volume of the engine's own may have this word among its options.
/// Such a word reaches no other place.
fn is_sized(word: &str) -> bool {
    matches!(word.split_once('='), Some(("size" | "inodes" | "uid" | "gid", _)))
        || word == "noquota"
}

/// Every absolute path in a text of options.
pub(super) fn paths_in(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', '=', ':', ' ', ';']).filter(|part| part.starts_with('/'))
}

/// The volume that the first part of a bind names, if it names one.
pub(super) fn named_in_bind(bind: &str) -> Option<&str> {
    let (source, _) = bind.split_once(':')?;
    (!source.is_empty() && !source.starts_with(['/', '.'])).then_some(source)
}

/// The volume that a mount names, if it names one, whatever its type says.
pub(super) fn named_in_mount(mount: &Value) -> Option<&str> {
    mount["Source"].as_str().filter(|source| !source.is_empty() && !source.starts_with(['/', '.']))
}

/// The volumes that canonical options name, with the option that does.
pub(super) fn named(body: &Map<String, Value>) -> Vec<(String, &str)> {
    let mut found = Vec::new();
    let volumes = body.get("Volumes").and_then(Value::as_object).into_iter().flatten();
    found.extend(volumes.filter_map(|(key, _)| {
        Some((format!("Volumes.{}", super::shown(key)), named_in_bind(key)?))
    }));
    for (host, prefix) in sides(body) {
        for (index, bind) in items(host, "Binds") {
            let name = bind.as_str().and_then(named_in_bind);
            found.extend(name.map(|name| (format!("{prefix}Binds[{index}]"), name)));
        }
        for (index, mount) in items(host, "Mounts") {
            found.extend(
                named_in_mount(mount).map(|name| (format!("{prefix}Mounts[{index}].Source"), name)),
            );
        }
    }
    found
}

/// The volumes that must be looked at before canonical options can be judged.
#[must_use]
pub fn volumes_to_look_at(options: &Map<String, Value>) -> BTreeSet<String> {
    named(options).into_iter().map(|(_, name)| name.to_owned()).collect()
}

/// Returns true if the words of a bind take writing away and no other word allows it
/// again.
pub(super) fn is_read_only(bind: &str) -> bool {
    // Another owner or label is written on the host, whatever the container may write.
    let has = |words: &[&str]| bind_words(bind).any(|word| words.contains(&word));
    has(&["ro"]) && !has(&["rw", "U", "z", "Z"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(driver: &str, options: &[(&str, &str)]) -> Volume {
        let options =
            options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Volume { driver: driver.to_owned(), options }
    }

    #[test]
    fn what_a_volume_is_follows_from_its_driver_and_options_and_not_from_its_name() {
        let place = |path: &str, read_only| Reach::Place { path: path.to_owned(), read_only };
        for (driver, options, reach) in [
            ("local", vec![], Reach::Plain),
            ("", vec![("size", "10G")], Reach::Plain),
            ("local", vec![("o", "size=1g,uid=1000,noquota")], Reach::Plain),
            (
                "local",
                vec![("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=10m,uid=1")],
                Reach::Plain,
            ),
            (
                "local",
                vec![("type", "none"), ("o", "bind"), ("device", "/etc")],
                place("/etc", false),
            ),
            ("local", vec![("o", "rbind,ro"), ("device", "/etc")], place("/etc", true)),
            ("local", vec![("o", "ro,rw"), ("device", "/etc")], place("/etc", false)),
            (
                "local",
                vec![("type", "none"), ("o", "bind,rshared"), ("device", "/etc")],
                Reach::Driver,
            ),
            ("local", vec![("type", "none"), ("device", "etc")], Reach::Driver),
            ("local", vec![("type", "ext4"), ("device", "/dev/vda")], Reach::Driver),
            (
                "local",
                vec![("type", "nfs"), ("device", ":/x"), ("o", "addr=10.0.0.1")],
                Reach::Driver,
            ),
            (
                "local",
                vec![("type", "overlay"), ("device", "overlay"), ("o", "lowerdir=/etc")],
                Reach::Driver,
            ),
            ("local", vec![("type", "tmpfs"), ("device", "/etc"), ("o", "bind")], Reach::Driver),
            (
                "local",
                vec![("type", "tmpfs"), ("device", "x"), ("o", "lowerdir=/etc")],
                Reach::Driver,
            ),
            ("local", vec![("o", "bind,lowerdir=/etc")], Reach::Driver),
            ("local", vec![("device", "/srv"), ("of-the-future", "/etc")], Reach::Driver),
            ("plant/sshfs", vec![], Reach::Driver),
        ] {
            assert_eq!(volume(driver, &options).reach(), reach, "{driver} {options:?}");
        }
    }

    #[test]
    fn every_path_in_the_options_is_found() {
        let overlay = volume("local", &[("o", "lowerdir=/a:/b,upperdir=/c"), ("device", "/d")]);
        assert_eq!(overlay.paths().collect::<Vec<_>>(), ["/d", "/a", "/b", "/c"]);
    }
}
