//! Image collection: looks at the engine's images and the disk, and removes what
//! [`edgekeep_core::image_collection`] says.
//!
//! Nothing is removed while an image is being fetched or a container made, nor on a look
//! that did not see everything.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use edgekeep_api::management::{ImageDisk, ImageLine, ImagePlan};
use edgekeep_core::attestation::Workload;
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::image_collection::{Disk, Image, Seen, Tracked, Verdict, is_plausible, plan};
use edgekeep_daemon::metrics::{Counter, Family};
use edgekeep_daemon::store::{StateFile, StoreError};
use edgekeep_runtime::engine::{Engine, EngineError};
use serde_json::Value;
use tokio::sync::{RwLock, RwLockReadGuard};

use crate::modules::Modules;

/// Images that were removed, or could not be.
pub(crate) static IMAGES: Family<Counter, 2> = Family::new(
    "edgekeep_image_removals",
    "Images that were removed or could not be, and why they should go.",
    ["result", "reason"],
);

/// Ages are written at least so often; what is lost in between makes images younger.
const SAVE_EVERY: Duration = Duration::from_secs(3600);
/// Longest time that one look at the engine may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most images that one collection removes.
const REMOVED_AT_ONCE: usize = 256;

/// Records about images, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Images {
    file: StateFile<Tracked>,
    kept: Mutex<Kept>,
    /// Shared by who fetches images and makes containers; a removal takes it alone.
    fetching: RwLock<()>,
    /// One collection at a time.
    collecting: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Kept {
    tracked: Tracked,
    /// Of the last look: monotonic time, and the wall clock in seconds since 1970.
    looked: (Instant, i64),
    saved: Instant,
}

/// Held while an image is fetched or a container made from it.
#[derive(Debug)]
pub(crate) struct Fetching<'a> {
    _guard: RwLockReadGuard<'a, ()>,
}

/// Failure of a look at images, or of a removal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    /// The engine refuses or cannot be reached.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine does not answer.
    #[error("the container engine did not answer within {} s", PATIENCE.as_secs())]
    Silent,
    /// There is no engine, and so no image.
    #[error(
        "no container engine is configured, so there are no images; if there should be one, set uri in [moby_runtime], run \
         `edgekeep config apply` and restart moduled"
    )]
    NoEngine,
}

impl Images {
    /// Reads what is remembered in `state_folder`. What cannot be read is as if nothing
    /// had been used yet: images are then kept for longer.
    #[must_use]
    pub(crate) fn load(state_folder: &Path) -> Self {
        let file = StateFile::new(state_folder.join("images.json"), "images", 1);
        let tracked = file.load().unwrap_or_else(|error: StoreError| {
            tracing::warn!(%error, "the ages of images are not known; they begin anew");
            None
        });
        let now = Instant::now();
        let kept = Kept { tracked: tracked.unwrap_or_default(), looked: (now, wall()), saved: now };
        Self {
            file,
            kept: Mutex::new(kept),
            fetching: RwLock::default(),
            collecting: tokio::sync::Mutex::default(),
        }
    }

    /// Keeps images from being removed while something is fetched or made.
    pub(crate) async fn fetching(&self) -> Fetching<'_> {
        Fetching { _guard: self.fetching.read().await }
    }

    /// An image was fetched or used.
    pub(crate) fn touch(&self, image: Sha256Digest) {
        let mut kept = self.kept();
        let is_new = kept.tracked.idle(&image).is_none();
        kept.tracked.touch(image);
        // That it is ours at all outlives the daemon from now on; ages may be lost.
        if is_new {
            self.save(&mut kept);
        }
    }

    fn save(&self, kept: &mut Kept) {
        match self.file.save(&kept.tracked) {
            Ok(()) => kept.saved = Instant::now(),
            Err(error) => tracing::warn!(%error, "the ages of images are not remembered"),
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a look, or that there was none; whether it is time to remove for age.
    fn take_in(&self, seen: Option<&Seen>, modules: &Modules) -> bool {
        let mut kept = self.kept();
        let (now, clock) = (Instant::now(), wall());
        let (then, clock_then) = std::mem::replace(&mut kept.looked, (now, clock));
        // Time for which nobody could look does not make anything older.
        let Some(seen) = seen else { return false };
        // Whole seconds count; the rest is left for the next look, however soon that is.
        let elapsed = Duration::from_secs(now.saturating_duration_since(then).as_secs());
        kept.looked.0 = then + elapsed;
        kept.tracked.advance(elapsed, seen);
        let due = kept.tracked.is_due(&modules.settings.image_collection, clock_then, clock);
        if due {
            kept.tracked.looked_through();
        }
        if due || kept.saved.elapsed() >= SAVE_EVERY {
            self.save(&mut kept);
        }
        due
    }
}

/// Looks at the images once, and removes what is to go if collection is on. Returns
/// whether there is an engine.
pub(crate) async fn look(modules: &Modules) -> bool {
    let Some(containers) = &modules.containers else { return false };
    let seen = see(modules, &containers.engine).await;
    if let Err(error) = &seen {
        tracing::debug!(%error, "images not looked at");
    }
    let due = modules.images.take_in(seen.as_ref().ok(), modules);
    if modules.settings.image_collection.enabled && seen.is_ok() {
        let _ = collect(modules, due).await;
    }
    true
}

/// Returns the plan that a collection of images would carry out now, with its reasons.
///
/// # Errors
/// If there is no engine or it does not answer.
pub(crate) async fn planned(modules: &Modules) -> Result<ImagePlan, LookError> {
    let seen = see(modules, engine(modules)?).await?;
    modules.images.take_in(Some(&seen), modules);
    let verdicts = verdicts(modules, &seen, true);
    Ok(shown(modules, &seen, &verdicts, &BTreeSet::new()))
}

/// Collects images now, as an operator asked.
///
/// # Errors
/// If there is no engine or it does not answer.
pub(crate) async fn collect_now(modules: &Modules) -> Result<ImagePlan, LookError> {
    let seen = see(modules, engine(modules)?).await?;
    modules.images.take_in(Some(&seen), modules);
    let verdicts = verdicts(modules, &seen, true);
    let removed = collect(modules, true).await?;
    Ok(shown(modules, &seen, &verdicts, &removed))
}

fn engine(modules: &Modules) -> Result<&Engine, LookError> {
    let containers = modules.containers.as_ref();
    containers.map(|containers| &containers.engine).ok_or(LookError::NoEngine)
}

fn verdicts(modules: &Modules, seen: &Seen, by_age: bool) -> Vec<Verdict> {
    plan(&modules.images.kept().tracked, seen, &modules.settings.image_collection, by_age, wall())
}

/// Removes one image after the other, each on a look of its own: what was so a moment ago
/// may have changed.
async fn collect(modules: &Modules, by_age: bool) -> Result<BTreeSet<Sha256Digest>, LookError> {
    let _one = modules.images.collecting.lock().await;
    let (mut removed, mut failed) = (BTreeSet::new(), BTreeSet::new());
    let Some(containers) = &modules.containers else { return Ok(removed) };
    while removed.len() + failed.len() < REMOVED_AT_ONCE {
        // Who fetches goes first: the next look comes soon enough.
        let Ok(_alone) = modules.images.fetching.try_write() else {
            tracing::debug!("images are being fetched; none is removed meanwhile");
            break;
        };
        let seen = see(modules, &containers.engine).await?;
        let verdicts = verdicts(modules, &seen, by_age);
        let mut going = seen.images.iter().zip(&verdicts).filter(|(image, verdict)| {
            verdict.removes() && !failed.contains(&image.id) && !removed.contains(&image.id)
        });
        let Some((image, verdict)) = going.next() else { break };
        let reason = verdict.reason();
        let names = image.names.join(", ");
        match tokio::time::timeout(
            PATIENCE,
            containers.engine.delete_image(&image.id, &image.names),
        )
        .await
        {
            Ok(Ok(())) => {
                tracing::info!(image = %image.id, names, bytes = image.bytes, reason, "image removed");
                IMAGES.with(["removed", reason]).increment();
                removed.insert(image.id);
            }
            Ok(Err(error)) => {
                tracing::warn!(image = %image.id, names, reason, %error, "image not removed");
                IMAGES.with(["failed", reason]).increment();
                failed.insert(image.id);
            }
            Err(_) => return Err(LookError::Silent),
        }
    }
    Ok(removed)
}

/// Everything that the decision needs, or an error.
async fn see(modules: &Modules, engine: &Engine) -> Result<Seen, LookError> {
    tokio::time::timeout(PATIENCE, see_unlimited(modules, engine))
        .await
        .map_err(|_| LookError::Silent)?
}

async fn see_unlimited(modules: &Modules, engine: &Engine) -> Result<Seen, LookError> {
    let images = images(&engine.images().await?).ok_or(EngineError::NotJson)?;
    let containers = engine.container_images().await?.into_iter().collect();
    let bootstrap = match engine.image_id(&modules.settings.agent.image).await {
        Ok(id) => Some(id),
        // Not there, or not an image's name, for the agent is a host module: there is
        // nothing to keep.
        Err(error) if matches!(error.status(), Some(400 | 404)) => None,
        Err(error) => return Err(error.into()),
    };
    let registrations = modules.registrations.modules();
    let registered = registrations
        .iter()
        .filter_map(|module| match modules.registrations.of(module)?.workload {
            Workload::Container { image, .. } => Some(image),
            Workload::Process { .. } | Workload::Service { .. } => None,
        })
        .collect();
    let disk =
        engine.info().await?["DockerRootDir"].as_str().and_then(|folder| disk(Path::new(folder)));
    Ok(Seen { images, containers, registered, bootstrap, disk })
}

/// The engine's list; `None` if it is of an unknown form.
fn images(list: &Value) -> Option<Vec<Image>> {
    let image = |entry: &Value| {
        let names = entry["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str);
        Some(Image {
            id: entry["Id"].as_str()?.parse().ok()?,
            // What has no name is listed with this one.
            names: names.filter(|name| *name != "<none>:<none>").map(str::to_owned).collect(),
            bytes: entry["Size"].as_u64().unwrap_or(0),
        })
    };
    list.as_array()?.iter().map(image).collect()
}

fn disk(folder: &Path) -> Option<Disk> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(Disk {
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

fn shown(
    modules: &Modules,
    seen: &Seen,
    verdicts: &[Verdict],
    removed: &BTreeSet<Sha256Digest>,
) -> ImagePlan {
    let settings = &modules.settings.image_collection;
    let kept = modules.images.kept();
    let images = seen.images.iter().zip(verdicts).map(|(image, verdict)| ImageLine {
        id: image.id,
        names: image.names.clone(),
        bytes: image.bytes,
        unused_seconds: kept.tracked.idle(&image.id).map(|idle| idle.as_secs()),
        remove: verdict.removes(),
        reason: verdict.reason().to_owned(),
        removed: removed.contains(&image.id),
    });
    ImagePlan {
        enabled: settings.enabled,
        clock_plausible: is_plausible(wall()),
        unused_limit_seconds: settings.unused_sec,
        disk: seen.disk.map(|disk| ImageDisk {
            used_percent: disk.used_percent(),
            high_percent: settings.high_percent,
            low_percent: settings.low_percent,
        }),
        images: images.collect(),
    }
}

fn wall() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_engines_list_is_taken_whole_or_not_at_all() {
        let id = format!("sha256:{}", "a".repeat(64));
        let good = json!({"Id": id, "RepoTags": ["a:1", "b:2"], "Size": 7});
        let unnamed = json!({"Id": id, "RepoTags": ["<none>:<none>"], "Size": 7});
        let list =
            images(&json!([good, unnamed, {"Id": id, "RepoTags": null}])).expect("documented form");
        assert_eq!(list[0].names, ["a:1", "b:2"]);
        assert!(list[1].names.is_empty() && list[2].names.is_empty());
        assert_eq!(images(&json!([good, {"Id": "x"}])), None);
        assert_eq!(images(&json!({})), None);
    }
}
