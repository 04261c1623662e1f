//! Paths of the host that create options reach, and the check whether a grant covers
//! them. Only text is compared: what a path means on the device comes in as [`Resolved`].

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::volumes::{
    Reach, Volume, Volumes, is_read_only, named, named_in_bind, named_in_mount, paths_in,
};

/// The places to which paths lead once symbolic links are followed; `None` where the
/// place could not be found out.
pub type Resolved = BTreeMap<String, Option<String>>;

/// A place of the host that create options mount.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct HostPath {
    /// The option in which the path is written.
    pub(super) option: String,
    /// The path, as written.
    pub(super) path: String,
    /// The path at which the container sees the place, if it is mounted.
    pub(super) target: Option<String>,
    /// True if the container may not write to the place.
    pub(super) read_only: bool,
    /// True if mounts made in the container appear on the host.
    pub(super) shared: bool,
    /// The volume that leads there.
    pub(super) volume: Option<String>,
}

/// All places of the host that `body`, in canonical spelling, mounts or has written, also
/// by volumes that exist. More than the engine would take rather than less.
pub(super) fn mounted(body: &Map<String, Value>, volumes: &Volumes) -> Vec<HostPath> {
    let mut found = Vec::new();
    if let Some(Value::Object(binds)) = body.get("Volumes") {
        for name in binds.keys() {
            found.extend(of_bind(name, &format!("Volumes.{}", super::shown(name)), volumes));
        }
    }
    for (host, prefix) in sides(body) {
        for (index, bind) in items(host, "Binds") {
            if let Some(bind) = bind.as_str() {
                found.extend(of_bind(bind, &format!("{prefix}Binds[{index}]"), volumes));
            }
        }
        for (index, mount) in items(host, "Mounts") {
            found.extend(of_mount(mount, &format!("{prefix}Mounts[{index}]"), volumes));
        }
        // Podman writes the container's log there, as root.
        if let Some(path) = host.get("LogConfig").and_then(|log| log["Config"]["path"].as_str()) {
            let option = format!("{prefix}LogConfig.Config.path");
            found.push(HostPath { option, path: path.to_owned(), ..HostPath::default() });
        }
    }
    found
}

/// Further paths of the host that `body` mentions where some engine mounts, writes or
/// removes what they name. They are nobody's to grant one by one.
pub(super) fn mentioned(body: &Map<String, Value>, volumes: &Volumes) -> Vec<HostPath> {
    let mut found = Vec::new();
    let mut add = |option: String, path: &str| {
        found.push(HostPath { option, path: path.to_owned(), ..HostPath::default() });
    };
    for (option, name) in named(body) {
        volumes
            .get(name)
            .into_iter()
            .flat_map(Volume::paths)
            .for_each(|path| add(option.clone(), path));
    }
    for (host, prefix) in sides(body) {
        for (index, mount) in items(host, "Mounts") {
            let option = format!("{prefix}Mounts[{index}].VolumeOptions.DriverConfig.Options");
            let texts =
                mount["VolumeOptions"]["DriverConfig"]["Options"].as_object().into_iter().flatten();
            for (name, text) in texts.filter_map(|(name, value)| Some((name, value.as_str()?))) {
                paths_in(text).for_each(|path| add(super::members::join(&option, name), path));
            }
        }
        // Podman removes this file with the container.
        for path in
            host.get("ContainerIDFile").and_then(Value::as_str).into_iter().flat_map(paths_in)
        {
            add(format!("{prefix}ContainerIDFile"), path);
        }
        for (name, text) in host.get("Annotations").and_then(Value::as_object).into_iter().flatten()
        {
            let option = super::members::join(&format!("{prefix}Annotations"), name);
            text.as_str().into_iter().flat_map(paths_in).for_each(|path| add(option.clone(), path));
        }
    }
    found
}

/// The places where engines look for the host's side of a body, with the beginning of
/// their members' paths.
pub(super) fn sides(
    body: &Map<String, Value>,
) -> impl Iterator<Item = (&Map<String, Value>, &'static str)> {
    let inner = body.get("HostConfig").and_then(Value::as_object).map(|host| (host, "HostConfig."));
    inner.into_iter().chain([(body, "")])
}

pub(super) fn items<'a>(
    host: &'a Map<String, Value>,
    name: &str,
) -> impl Iterator<Item = (usize, &'a Value)> {
    host.get(name).and_then(Value::as_array).into_iter().flatten().enumerate()
}

/// The words after a bind's two places.
pub(super) fn bind_words(bind: &str) -> impl Iterator<Item = &str> {
    bind.split(':').skip(2).flat_map(|options| options.split(','))
}

/// A bind that begins with a path, or with the name of a volume that leads to one; and
/// the folders that Podman lays over what is mounted.
fn of_bind(bind: &str, option: &str, volumes: &Volumes) -> Vec<HostPath> {
    let mut parts = bind.split(':');
    let (path, target) = (parts.next().unwrap_or_default(), parts.next());
    let base = HostPath {
        option: option.to_owned(),
        target: target.map(str::to_owned),
        read_only: is_read_only(bind),
        shared: bind_words(bind).any(|word| matches!(word, "shared" | "rshared")),
        ..HostPath::default()
    };
    let mut found = Vec::new();
    // Podman takes a relative path too.
    if target.is_some() && path.starts_with(['/', '.']) {
        found.push(HostPath { path: path.to_owned(), ..base.clone() });
    }
    found.extend(named_in_bind(bind).and_then(|name| of_volume(name, volumes, &base)));
    let layers = bind_words(bind).filter_map(|word| {
        let (name, path) = word.split_once('=')?;
        matches!(name.trim(), "upperdir" | "workdir").then_some(path)
    });
    found.extend(layers.map(|path| HostPath {
        option: option.to_owned(),
        path: path.to_owned(),
        ..HostPath::default()
    }));
    found
}

fn of_mount(mount: &Value, option: &str, volumes: &Volumes) -> Vec<HostPath> {
    let base = HostPath {
        option: format!("{option}.Source"),
        target: mount["Target"].as_str().map(str::to_owned),
        // What is mounted below the place stays writable with this.
        read_only: mount["ReadOnly"] == Value::Bool(true)
            && mount["BindOptions"]["ReadOnlyNonRecursive"] != Value::Bool(true),
        shared: matches!(mount["BindOptions"]["Propagation"].as_str(), Some("shared" | "rshared")),
        ..HostPath::default()
    };
    // Both, for an engine looks at one of them only: the local driver mounts the device
    // that it is told.
    let source = (&mount["Source"], mount["Type"] == "bind", base.option.clone());
    let device = &mount["VolumeOptions"]["DriverConfig"]["Options"]["device"];
    let device = (device, false, format!("{option}.VolumeOptions.DriverConfig.Options.device"));
    let mut found: Vec<HostPath> = [source, device]
        .into_iter()
        .filter_map(|(path, always, option)| {
            let path = path.as_str()?.to_owned();
            (always || path.starts_with(['/', '.'])).then(|| HostPath {
                option,
                path,
                ..base.clone()
            })
        })
        .collect();
    if mount["Type"] != "bind" {
        found.extend(named_in_mount(mount).and_then(|name| of_volume(name, volumes, &base)));
    }
    found
}

/// The place that a volume leads to, mounted as `base` says.
fn of_volume(name: &str, volumes: &Volumes, base: &HostPath) -> Option<HostPath> {
    match volumes.get(name)?.reach() {
        Reach::Place { path, read_only } => Some(HostPath {
            path,
            read_only: base.read_only || read_only,
            volume: Some(name.to_owned()),
            ..base.clone()
        }),
        Reach::Plain | Reach::Driver => None,
    }
}

/// The paths that must be resolved before a body can be judged.
pub(super) fn to_resolve(
    body: &Map<String, Value>,
    volumes: &Volumes,
    grants: &[String],
) -> BTreeSet<String> {
    let places = mounted(body, volumes).into_iter().chain(mentioned(body, volumes));
    let written = places.map(|place| place.path);
    let granted = grants.iter().map(|grant| split_grant(grant).0.to_owned());
    written.chain(granted).filter_map(|path| clean(&path)).collect()
}

/// A path of the host without empty and dot parts, as engines clean it; `None` if it is
/// not absolute.
#[must_use]
pub(super) fn clean(path: &str) -> Option<String> {
    let path = tidy(path)?;
    // One place with two names on every system that has both.
    match path.strip_prefix("/var/run") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Some(format!("/run{rest}")),
        _ => Some(path),
    }
}

/// The same of a path in a container.
pub(super) fn tidy(path: &str) -> Option<String> {
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
    Some(format!("/{}", parts.join("/")))
}

/// Returns true if `path` is `folder` or lies in it. Both are clean.
pub(super) fn within(path: &str, folder: &str) -> bool {
    folder == "/"
        || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A granted path, and whether it is for reading only.
pub(super) fn split_grant(grant: &str) -> (&str, bool) {
    match grant.strip_suffix(":ro") {
        Some(path) => (path, true),
        None => (grant, false),
    }
}

/// The grant that covers a place: by its name and by where that leads.
pub(super) fn covering<'a>(
    place: &HostPath,
    grants: &'a [String],
    resolved: &Resolved,
) -> Option<&'a str> {
    let path = clean(&place.path)?;
    grants.iter().map(String::as_str).find(|grant| {
        let (granted, read_only) = split_grant(grant);
        let Some(granted) = clean(granted) else { return false };
        let led_to = |path: &str| resolved.get(path).cloned().flatten();
        let covers = match (led_to(&path), led_to(&granted)) {
            // A link inside a granted folder, which the module may have made itself, must
            // not lead out of it.
            (Some(place), Some(granted)) => within(&place, &granted),
            // What cannot be looked at is only covered by its own name.
            _ => path == granted,
        };
        covers && within(&path, &granted) && (place.read_only || !read_only) && !place.shared
    })
}
