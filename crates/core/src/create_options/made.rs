//! Mounts that an engine really made in a container, judged before the container is
//! started. Between the look at a volume and the engine's own look, the volume may have
//! become another. Images and other containers bring mounts, too.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::above::targets;
use super::paths::{HostPath, bind_words, clean, items, sides, split_grant};
use super::volumes::{Reach, Volume, Volumes};
use super::{Found, Grant, Judge, Refusal, Why, listed, shown};

/// A mount of a container, as the engine describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MadeMount {
    /// `bind`, `volume`, `tmpfs` or another word of the engine's.
    pub kind: String,
    /// The volume's name.
    pub name: Option<String>,
    /// The place on the host.
    pub source: String,
    /// The place in the container.
    pub target: String,
    /// True if the container may write to the mount.
    pub writable: bool,
    /// True if mounts made in the container appear on the host.
    pub shared: bool,
}

/// The containers whose mounts a body takes over. Podman does not tell of these mounts,
/// so they are looked up there.
#[must_use]
pub fn volumes_from(body: &Map<String, Value>) -> BTreeSet<String> {
    let all = sides(body).flat_map(|(host, _)| items(host, "VolumesFrom"));
    let name = |(_, text): (usize, &Value)| {
        text.as_str().map(|text| text.split(':').next().unwrap_or_default().to_owned())
    };
    all.filter_map(name).collect()
}

/// The volumes among the mounts, which must be looked at again.
#[must_use]
pub fn volumes_made(made: &[MadeMount]) -> BTreeSet<String> {
    made.iter().filter_map(|mount| mount.name.clone()).collect()
}

/// The paths that must be resolved before the mounts can be judged.
#[must_use]
pub fn paths_made(made: &[MadeMount], volumes: &Volumes, grant: &Grant) -> BTreeSet<String> {
    let reached = volumes.values().flat_map(Volume::paths);
    let granted = grant.binds.iter().map(|grant| split_grant(grant).0);
    let all = made.iter().map(|mount| mount.source.as_str()).chain(reached).chain(granted);
    all.filter_map(clean).collect()
}

impl Judge<'_> {
    /// Judges the mounts of a container that was made from `wanted`, the body that the
    /// engine got. `added` are the binds in it that are not the deployment's; `found` has
    /// the answers to [`volumes_made`] and [`paths_made`].
    ///
    /// # Errors
    /// The first mount that would have been refused.
    pub fn judge_made(
        &self,
        made: &[MadeMount],
        wanted: &Map<String, Value>,
        added: &[String],
        found: &Found,
    ) -> Result<(), Refusal> {
        let covered = targets(made, added);
        for mount in made {
            let option =
                format!("Mounts ({} in the container that was made)", shown(&mount.target));
            let own = |bind: &String| {
                let mut parts = bind.split(':').map(clean);
                parts.next().flatten() == clean(&mount.source)
                    && parts.next().flatten() == clean(&mount.target)
            };
            if mount.kind == "bind" && added.iter().any(own) {
                continue;
            }
            let volume = mount.name.as_ref().and_then(|name| found.volumes.get(name));
            let place = HostPath {
                option,
                path: mount.source.clone(),
                target: Some(mount.target.clone()),
                read_only: !mount.writable,
                shared: mount.shared,
                volume: mount.name.clone(),
            };
            self.own_made(mount, volume, &place, found)?;
            if !self.elevated && !self.grants_option("HostConfig.VolumesFrom") {
                self.made(mount, volume, place.clone(), wanted, found)?;
            }
            let led = volume.map(Volume::reach);
            let path =
                if let Some(Reach::Place { path, .. }) = led { path } else { mount.source.clone() };
            self.covered(&HostPath { path, ..place }, &covered, &found.resolved)?;
        }
        Ok(())
    }

    /// This device's own places, by whatever way.
    fn own_made(
        &self,
        mount: &MadeMount,
        volume: Option<&Volume>,
        place: &HostPath,
        found: &Found,
    ) -> Result<(), Refusal> {
        let paths = volume.into_iter().flat_map(Volume::paths).chain([mount.source.as_str()]);
        for path in paths.filter(|path| path.starts_with('/')) {
            self.own_place(&HostPath { path: path.to_owned(), ..place.clone() }, &found.resolved)?;
        }
        Ok(())
    }

    fn made(
        &self,
        mount: &MadeMount,
        volume: Option<&Volume>,
        place: HostPath,
        wanted: &Map<String, Value>,
        found: &Found,
    ) -> Result<(), Refusal> {
        match (mount.kind.as_str(), volume, &mount.name) {
            ("tmpfs", ..) => Ok(()),
            // Of a folder that was judged the engine mounts a copy made of layers.
            ("bind", ..) if is_layered(wanted, &mount.target) => Ok(()),
            ("bind", ..) => self.place(&place, &found.resolved),
            ("volume", Some(volume), Some(name)) => match volume.reach() {
                Reach::Plain => Ok(()),
                Reach::Place { path, read_only } => {
                    let read_only = place.read_only || read_only;
                    self.place(&HostPath { path, read_only, ..place }, &found.resolved)
                }
                Reach::Driver => self.driver(&place.option, name),
            },
            ("volume", ..) => Err(Refusal {
                option: place.option,
                why: Why::Expected("a volume that the engine can describe"),
            }),
            _ if self.grants_option("HostConfig.Mounts") => Ok(()),
            (kind, ..) => {
                let what =
                    format!("it is of the kind {:?}, of which nothing is known", shown(kind));
                Err(self.refusal(&place.option, what, &listed("options", "HostConfig.Mounts")))
            }
        }
    }
}

/// Returns true if the mount at `target` was asked for as an overlay of a folder
/// (Podman's word `O`).
fn is_layered(wanted: &Map<String, Value>, target: &str) -> bool {
    let volumes = wanted
        .get("Volumes")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, _)| key.as_str());
    let binds = sides(wanted)
        .flat_map(|(host, _)| items(host, "Binds"))
        .filter_map(|(_, bind)| bind.as_str());
    volumes.chain(binds).any(|bind| {
        let there = bind.split(':').nth(1).and_then(clean);
        there.is_some() && there == clean(target) && bind_words(bind).any(|word| word == "O")
    })
}
