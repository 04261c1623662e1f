//! Requests to the engine to make a module's container: the deployment's create options,
//! judged by [`edgekeep_core::create_options`], and what this daemon adds.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use edgekeep_core::create_options::{
    Found, Grant, Judge, MadeMount, OwnState, PublishedPorts, Refusal, Resolved, Volumes,
    canonical, paths_made, paths_to_resolve, volumes_from, volumes_made, volumes_to_look_at,
    without_elevation, without_self_removal,
};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::ModuleId;
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_runtime::engine::{ContainerSpec, Created};
use serde_json::{Map, Value};

use crate::modules::Modules;
use crate::modules::error::ModuleError;
use crate::modules::sockets;
use crate::modules::spec::ValidSpec;

/// Folder in a container that has the container's workload socket. Existing SDKs have
/// this path built in.
const CONTAINER_SOCKET_FOLDER: &str = "/var/run/iotedge";

/// Most containers from which one container may take mounts over.
const CONTAINERS_LIMIT: usize = 32;

/// Most volumes that the engine is asked about for one module.
const VOLUMES_LIMIT: usize = 256;

/// Returns the specification to make a container from `image` with.
///
/// # Errors
/// As [`options`].
pub(crate) async fn specification<'a>(
    modules: &'a Modules,
    spec: &'a ValidSpec,
    image: Sha256Digest,
) -> Result<ContainerSpec<'a>, ModuleError> {
    let (options, hidden) = options(modules, spec).await?;
    let folder = sockets::container_folder(&modules.root, &spec.module);
    let mut binds = vec![format!("{}:{CONTAINER_SOCKET_FOLDER}", folder.display())];
    if !hidden.is_empty() {
        let nothing = nothing(&modules.root).map_err(ModuleError::hidden)?;
        tracing::info!(module = %spec.module, places = ?hidden, "the device's own state is hidden in the module's mounts");
        binds.extend(hidden.into_iter().map(|place| format!("{}:{place}:ro", nothing.display())));
    }
    Ok(ContainerSpec {
        image: &spec.settings.image,
        image_id: Some(image),
        options,
        env: environment(spec),
        network: modules.settings.engine.as_ref().map(|engine| engine.network.as_str()),
        binds,
        labels: spec.labels.clone(),
    })
}

/// An empty folder, to be mounted over what is hidden.
fn nothing(root: &Root) -> io::Result<PathBuf> {
    let folder = root.state_folder(Daemon::Moduled).join("nothing");
    std::fs::create_dir_all(&folder)?;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o555))?;
    Ok(folder)
}

/// The create options that the engine gets: in its own spelling, without what is taken
/// away or replaced. And the places in the container where something of the device's own
/// would be seen that is to be hidden.
///
/// # Errors
/// 400 that names the first option that is refused, and the remedy; the engine's, if it
/// does not say what a volume is.
pub(crate) async fn options(
    modules: &Modules,
    spec: &ValidSpec,
) -> Result<(Map<String, Value>, BTreeSet<String>), ModuleError> {
    let mut options = canonical(&spec.settings.create_options).map_err(refused)?;
    if without_self_removal(&mut options) {
        tracing::warn!(module = %spec.module, "the create option AutoRemove is left out: a stopped module must be there");
    }
    leave_out_own_sockets(&mut options, &modules.root, &spec.module);
    let law = Law::of(modules, &spec.module);
    let volumes = volumes(modules, volumes_to_look_at(&options)).await?;
    let resolved = resolve(paths_to_resolve(&options, &volumes, &law.grant)).await?;
    let found = Found { volumes, resolved };
    law.judge().judge(&options, &found).map_err(refused)?;
    let hidden = law.judge().hidden(&options, &found).map_err(refused)?;
    if !law.elevated {
        let taken = without_elevation(&mut options, &law.grant).map_err(refused)?;
        if !taken.is_empty() {
            tracing::warn!(module = %spec.module, options = ?taken, "elevated permissions are off; taken from the module");
        }
    }
    Ok((options, hidden))
}

/// Judges what the engine really mounted into a container that it made and that was not
/// started yet. `added` are this daemon's own binds.
///
/// # Errors
/// 400 that names the mount that is refused; the engine's.
pub(crate) async fn judge_made(
    modules: &Modules,
    module: &ModuleId,
    created: &Created,
    added: &[String],
) -> Result<(), ModuleError> {
    let law = Law::of(modules, module);
    let mut mounts = created.mounts.clone();
    mounts.extend(taken_over(modules, &created.body).await?);
    let volumes = volumes(modules, volumes_made(&mounts)).await?;
    let resolved = resolve(paths_made(&mounts, &volumes, &law.grant)).await?;
    let found = Found { volumes, resolved };
    law.judge().judge_made(&mounts, &created.body, added, &found).map_err(refused)
}

/// The mounts of the containers from which a body takes them over, and of those from
/// which they do.
async fn taken_over(
    modules: &Modules,
    body: &Map<String, Value>,
) -> Result<Vec<MadeMount>, ModuleError> {
    let engine = &modules.engine()?.engine;
    let (mut all, mut seen, mut next) = (Vec::new(), BTreeSet::new(), volumes_from(body));
    while let Some(container) = next.pop_first() {
        if !seen.insert(container.clone()) {
            continue;
        }
        let known = engine.mounts(&container).await?;
        let Some((mounts, from)) = known.filter(|_| seen.len() <= CONTAINERS_LIMIT) else {
            let message = "create option HostConfig.VolumesFrom is refused: it must be containers whose mounts can be seen";
            return Err(ModuleError::Invalid(message.to_owned()));
        };
        all.extend(mounts);
        next.extend(from);
    }
    Ok(all)
}

/// Rules that one module's options are judged by.
struct Law<'a> {
    module: &'a ModuleId,
    grant: Grant,
    elevated: bool,
    ports: PublishedPorts,
    own_state: OwnState,
    own: Vec<String>,
    present: Vec<String>,
    open: Vec<String>,
}

impl<'a> Law<'a> {
    fn of(modules: &Modules, module: &'a ModuleId) -> Self {
        let mut grants = modules.settings.grants.iter();
        let grant = grants
            .find(|(granted, _)| granted.name() == module.name())
            .map(|(_, grant)| grant.clone());
        let (own, open) = own_places(&modules.root, module);
        let present = own.iter().filter(|own| Path::new(own).is_dir()).cloned().collect();
        let settings = &modules.settings;
        Self {
            module,
            grant: grant.unwrap_or_default(),
            elevated: settings.allow_elevated_permissions,
            ports: settings.published_ports,
            own_state: settings.own_state_in_mounts,
            own,
            present,
            open,
        }
    }

    fn judge(&self) -> Judge<'_> {
        Judge {
            module: self.module,
            grant: &self.grant,
            elevated: self.elevated,
            ports: self.ports,
            own_state: self.own_state,
            present: &self.present,
            own: &self.own,
            open: &self.open,
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as an error is mapped")]
fn refused(refusal: Refusal) -> ModuleError {
    ModuleError::Invalid(refusal.to_string())
}

/// Returns the engine's answers about those of the named volumes that exist.
async fn volumes(modules: &Modules, names: BTreeSet<String>) -> Result<Volumes, ModuleError> {
    if names.len() > VOLUMES_LIMIT {
        return Err(ModuleError::Invalid(format!(
            "more than {VOLUMES_LIMIT} volumes in one module"
        )));
    }
    let engine = &modules.engine()?.engine;
    let mut found = Volumes::new();
    for name in names {
        if let Some(volume) = engine.volume(&name).await? {
            found.insert(name, volume);
        }
    }
    Ok(found)
}

/// Agents bind a module's single socket file, and to themselves the management socket:
/// the folder is bound instead. An agent whose container a former module runtime has made
/// names that one's folder.
fn leave_out_own_sockets(options: &mut Map<String, Value>, root: &Root, module: &ModuleId) {
    let Some(Value::Object(host)) = options.get_mut("HostConfig") else { return };
    let Some(Value::Array(binds)) = host.get_mut("Binds") else { return };
    let folders = [root.module_socket_folder(), root.former_socket_folder()];
    binds.retain(|bind| {
        let source =
            Path::new(bind.as_str().and_then(|bind| bind.split(':').next()).unwrap_or_default());
        let own = folders.iter().any(|folder| source.parent() == Some(folder))
            && source.file_stem() == Some(OsStr::new(module.name()));
        let agents = module.is_edge_agent()
            && [root.management_socket(), root.legacy_workload_socket()].iter().any(|socket| {
                socket == source || Path::new("/var").join(strip_root(socket)) == source
            });
        !own && !agents
    });
}

/// This device's sockets and state, and what of it any module may mount, each also by
/// what links lead to.
fn own_places(root: &Root, module: &ModuleId) -> (Vec<String>, Vec<String>) {
    let base = root.path();
    let own = ["run/aziot", "run/iotedge", "var/lib/edgekeep", "etc/edgekeep"]
        .map(|place| base.join(place));
    let folder = sockets::container_folder(root, module);
    let link = root.module_socket_folder().join(format!("{}.sock", module.name()));
    let open = [root.legacy_workload_socket(), folder.join("workload.sock"), folder, link];
    let both = |paths: &[PathBuf]| {
        let led_to = paths.iter().filter_map(|path| lead(path));
        let all: BTreeSet<String> =
            paths.iter().cloned().chain(led_to).map(|path| path.display().to_string()).collect();
        all.into_iter().collect()
    };
    (both(&own), both(&open))
}

fn strip_root(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Returns the places where paths lead. The look-up runs on a thread where it holds
/// nobody up.
async fn resolve(paths: BTreeSet<String>) -> Result<Resolved, ModuleError> {
    let resolved = tokio::task::spawn_blocking(move || all_leads(paths)).await;
    resolved.map_err(|_| {
        ModuleError::Device("paths of the create options cannot be looked up".to_owned())
    })
}

/// Returns the places where paths lead. Between this look and the engine's own look a
/// link may change. A module can only change links below folders that it was granted.
fn all_leads(paths: BTreeSet<String>) -> Resolved {
    let one = |path: String| {
        let led_to =
            lead(Path::new(&path)).and_then(|path| path.into_os_string().into_string().ok());
        (path, led_to)
    };
    paths.into_iter().map(one).collect()
}

/// Returns the place where a path leads: the longest beginning of the path that exists,
/// resolved, and the rest as it is. `None` if that cannot be seen.
fn lead(path: &Path) -> Option<PathBuf> {
    let mut existing = path;
    let mut rest = PathBuf::new();
    loop {
        match existing.canonicalize() {
            Ok(resolved) => {
                return Some(if rest.as_os_str().is_empty() {
                    resolved
                } else {
                    resolved.join(rest)
                });
            }
            // A link to nowhere: what the engine makes of it is not known.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && existing.symlink_metadata().is_err() =>
            {
                let last = existing.components().next_back();
                let Some(Component::Normal(name)) = last else { return None };
                rest = if rest.as_os_str().is_empty() {
                    PathBuf::from(name)
                } else {
                    Path::new(name).join(rest)
                };
                existing = existing.parent()?;
            }
            Err(_) => return None,
        }
    }
}

fn environment(spec: &ValidSpec) -> BTreeMap<String, String> {
    let mut env = spec.env.clone();
    env.insert(
        "IOTEDGE_WORKLOADURI".into(),
        format!("unix://{CONTAINER_SOCKET_FOLDER}/workload.sock"),
    );
    if spec.module.is_edge_agent() {
        env.insert(
            "IOTEDGE_MANAGEMENTURI".into(),
            format!("unix://{CONTAINER_SOCKET_FOLDER}/mgmt.sock"),
        );
    }
    env
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_leads_where_its_links_lead_also_below_what_exists() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("a")).unwrap();
        std::os::unix::fs::symlink("a", real.join("link")).unwrap();
        std::os::unix::fs::symlink("gone", real.join("dangling")).unwrap();
        assert_eq!(lead(&real.join("link/b/c")), Some(real.join("a/b/c")));
        assert_eq!(lead(&real.join("link")), Some(real.join("a")));
        assert_eq!(lead(&real.join("dangling")), None);
        assert_eq!(lead(&real.join("dangling/x")), None);
    }

    #[test]
    fn the_binds_that_agents_add_for_sockets_are_left_out() {
        let root = Root::default();
        let left = |module: &str, binds: Value| {
            let mut options = Map::new();
            options.insert("HostConfig".into(), json!({ "Binds": binds }));
            leave_out_own_sockets(&mut options, &root, &module.parse().unwrap());
            options["HostConfig"]["Binds"].clone()
        };
        let (own, other) = (
            "/var/lib/edgekeep/moduled/mnt/m1.sock:/s",
            "/var/lib/edgekeep/moduled/mnt/m2.sock:/s",
        );
        assert_eq!(left("m1", json!([own, other, "v:/d"])), json!([other, "v:/d"]));
        let former = "/var/lib/aziot/edged/mnt/m1.sock:/var/run/iotedge/workload.sock";
        assert_eq!(left("m1", json!([former])), json!([]));
        assert_eq!(left("m2", json!([former])), json!([former]));
        let management = "/var/run/iotedge/mgmt.sock:/var/run/iotedge/mgmt.sock";
        assert_eq!(left("m1", json!([management])), json!([management]));
        assert_eq!(
            left("$edgeAgent", json!([management, "/run/iotedge/workload.sock:/x"])),
            json!([])
        );
    }
}
