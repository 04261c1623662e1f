//! Which paths of the host create options reach, and whether a grant covers them. Text only: what a path means on the
//! device comes in as [`Resolved`].

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// Where paths lead once symbolic links are followed; `None` where that could not be found out.
pub type Resolved = BTreeMap<String, Option<String>>;

/// A place of the host that create options mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostPath {
    /// Where it is written.
    pub(super) option: String,
    /// The path, as written.
    pub(super) path: String,
    /// Whether the container may not write there.
    pub(super) read_only: bool,
    /// Whether mounts made in the container appear on the host.
    pub(super) shared: bool,
}

/// All places of the host that `body`, in canonical spelling, mounts or has written. More than the engine would take
/// rather than less.
pub(super) fn mounted(body: &Map<String, Value>) -> Vec<HostPath> {
    let mut found = Vec::new();
    if let Some(Value::Object(volumes)) = body.get("Volumes") {
        for name in volumes.keys() {
            found.extend(of_bind(name, &format!("Volumes.{}", super::shown(name))));
        }
    }
    for (host, prefix) in sides(body) {
        for (index, bind) in items(host, "Binds") {
            if let Some(bind) = bind.as_str() {
                found.extend(of_bind(bind, &format!("{prefix}Binds[{index}]")));
            }
        }
        for (index, mount) in items(host, "Mounts") {
            found.extend(of_mount(mount, &format!("{prefix}Mounts[{index}]")));
        }
        // Podman writes the container's log there, as root.
        if let Some(path) = host.get("LogConfig").and_then(|log| log["Config"]["path"].as_str()) {
            let option = format!("{prefix}LogConfig.Config.path");
            found.push(HostPath { option, path: path.to_owned(), read_only: false, shared: false });
        }
    }
    found
}

/// The places where engines look for the host's side of a body, with the beginning of their members' paths.
pub(super) fn sides(body: &Map<String, Value>) -> impl Iterator<Item = (&Map<String, Value>, &'static str)> {
    let inner = body.get("HostConfig").and_then(Value::as_object).map(|host| (host, "HostConfig."));
    inner.into_iter().chain([(body, "")])
}

fn items<'a>(host: &'a Map<String, Value>, name: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    host.get(name).and_then(Value::as_array).into_iter().flatten().enumerate()
}

/// The words after a bind's two places.
pub(super) fn bind_words(bind: &str) -> impl Iterator<Item = &str> {
    bind.split(':').skip(2).flat_map(|options| options.split(','))
}

/// A bind that begins with a path, which a volume's name does not; and the folders that Podman lays over what is mounted.
fn of_bind<'a>(bind: &'a str, option: &str) -> impl Iterator<Item = HostPath> + use<'a> {
    let mut parts = bind.split(':');
    let (path, target) = (parts.next().unwrap_or_default(), parts.next());
    // Another owner or label is written on the host, whatever the container may write.
    let has = |words: &[&str]| bind_words(bind).any(|word| words.contains(&word));
    let read_only = has(&["ro"]) && !has(&["rw", "U", "z", "Z"]);
    let shared = has(&["shared", "rshared"]);
    // Podman takes a relative path too.
    let own = (target.is_some() && path.starts_with(['/', '.'])).then_some((path, read_only, shared));
    let layers = bind_words(bind).filter_map(|word| {
        let (name, path) = word.split_once('=')?;
        matches!(name.trim(), "upperdir" | "workdir").then_some((path, false, false))
    });
    let option = option.to_owned();
    own.into_iter().chain(layers).map(move |(path, read_only, shared)| HostPath {
        option: option.clone(),
        path: path.to_owned(),
        read_only,
        shared,
    })
}

fn of_mount(mount: &Value, option: &str) -> impl Iterator<Item = HostPath> {
    let read_only = mount["ReadOnly"] == Value::Bool(true);
    let shared = matches!(mount["BindOptions"]["Propagation"].as_str(), Some("shared" | "rshared"));
    // Both, for an engine looks at one of them only: the local driver mounts the device that it is told.
    let source = (&mount["Source"], mount["Type"] == "bind", format!("{option}.Source"));
    let device = &mount["VolumeOptions"]["DriverConfig"]["Options"]["device"];
    let device = (device, false, format!("{option}.VolumeOptions.DriverConfig.Options.device"));
    let found = [source, device].into_iter().filter_map(move |(path, always, option)| {
        let path = path.as_str()?.to_owned();
        (always || path.starts_with(['/', '.'])).then_some(HostPath { option, path, read_only, shared })
    });
    found.collect::<Vec<_>>().into_iter()
}

/// The paths that must be resolved before a body can be judged.
pub(super) fn to_resolve(body: &Map<String, Value>, grants: &[String]) -> BTreeSet<String> {
    let written = mounted(body).into_iter().map(|place| place.path);
    let granted = grants.iter().map(|grant| split_grant(grant).0.to_owned());
    written.chain(granted).filter_map(|path| clean(&path)).collect()
}

/// A path without empty and dot parts, as engines clean it; `None` if it is not absolute.
#[must_use]
pub(super) fn clean(path: &str) -> Option<String> {
    if !path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    // One place with two names on every system that has both.
    if let ["var", "run", ..] = parts[..] {
        parts.remove(0);
    }
    Some(format!("/{}", parts.join("/")))
}

/// Whether `path` is `folder` or lies in it; both clean.
pub(super) fn within(path: &str, folder: &str) -> bool {
    folder == "/" || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A granted path, and whether it is for reading only.
pub(super) fn split_grant(grant: &str) -> (&str, bool) {
    match grant.strip_suffix(":ro") {
        Some(path) => (path, true),
        None => (grant, false),
    }
}

/// The grant that covers a place: by its name and by where that leads.
pub(super) fn covering<'a>(place: &HostPath, grants: &'a [String], resolved: &Resolved) -> Option<&'a str> {
    let path = clean(&place.path)?;
    grants.iter().map(String::as_str).find(|grant| {
        let (granted, read_only) = split_grant(grant);
        let Some(granted) = clean(granted) else { return false };
        let led_to = |path: &str| resolved.get(path).cloned().flatten();
        let covers = match (led_to(&path), led_to(&granted)) {
            // A link inside a granted folder, which the module may have made itself, must not lead out of it.
            (Some(place), Some(granted)) => within(&place, &granted),
            // What cannot be looked at is only covered by its own name.
            _ => path == granted,
        };
        covers && within(&path, &granted) && (place.read_only || !read_only) && !place.shared
    })
}
