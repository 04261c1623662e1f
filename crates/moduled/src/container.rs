//! What the engine is asked for to make a module's container: the deployment's create options, judged by
//! [`edgekeep_core::create_options`], and what this daemon adds.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};

use edgekeep_core::create_options::{Grant, Judge, Refusal, Resolved, canonical, paths_to_resolve, without_elevation};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::ModuleId;
use edgekeep_core::layout::Root;
use edgekeep_daemon::server::HttpError;
use edgekeep_runtime::engine::ContainerSpec;
use serde_json::{Map, Value};

use crate::service::Moduled;
use crate::sockets;
use crate::spec::ValidSpec;

/// Where a container finds its workload socket: what existing SDKs have built in.
const CONTAINER_SOCKET_FOLDER: &str = "/var/run/iotedge";

/// What to make a container from `image` with.
///
/// # Errors
/// As [`options`].
pub async fn specification<'a>(
    service: &'a Moduled,
    spec: &'a ValidSpec,
    image: Sha256Digest,
) -> Result<ContainerSpec<'a>, HttpError> {
    Ok(ContainerSpec {
        image: &spec.settings.image,
        image_id: Some(image),
        options: options(service, spec).await?,
        env: environment(spec),
        network: service.settings.engine.as_ref().map(|engine| engine.network.as_str()),
        binds: vec![format!(
            "{}:{CONTAINER_SOCKET_FOLDER}",
            sockets::container_folder(&service.root, &spec.module).display()
        )],
        labels: spec.labels.clone(),
    })
}

/// The create options that the engine gets: in its own spelling, without what is taken away or replaced.
///
/// # Errors
/// 400 that names the first option that is refused, and the remedy.
pub async fn options(service: &Moduled, spec: &ValidSpec) -> Result<Map<String, Value>, HttpError> {
    let refused = |refusal: Refusal| HttpError::bad_request(refusal.to_string());
    let mut options = canonical(&spec.settings.create_options).map_err(refused)?;
    leave_out_own_sockets(&mut options, &service.root, &spec.module);
    let none = Grant::default();
    let grants = service.settings.grants.iter();
    let grant = grants.filter(|(module, _)| module.name() == spec.module.name()).map(|(_, grant)| grant).next();
    let grant = grant.unwrap_or(&none);
    let elevated = service.settings.allow_elevated_permissions;
    let (own, open) = own_places(&service.root, &spec.module);
    let paths = paths_to_resolve(&options, grant);
    let resolved = tokio::task::spawn_blocking(move || resolve(paths)).await;
    let resolved = resolved.map_err(|_| HttpError::internal("paths of the create options cannot be looked up"))?;
    let judge = Judge { module: &spec.module, grant, elevated, own: &own, open: &open };
    judge.judge(&options, &resolved).map_err(refused)?;
    if !elevated {
        let taken = without_elevation(&mut options, grant).map_err(refused)?;
        if !taken.is_empty() {
            tracing::warn!(module = %spec.module, options = ?taken, "elevated permissions are off; taken from the module");
        }
    }
    Ok(options)
}

/// Agents bind a module's single socket file, and to themselves the management socket: the folder is bound instead.
fn leave_out_own_sockets(options: &mut Map<String, Value>, root: &Root, module: &ModuleId) {
    let Some(Value::Object(host)) = options.get_mut("HostConfig") else { return };
    let Some(Value::Array(binds)) = host.get_mut("Binds") else { return };
    let folder = root.module_socket_folder();
    binds.retain(|bind| {
        let source = Path::new(bind.as_str().and_then(|bind| bind.split(':').next()).unwrap_or_default());
        let own = source.parent() == Some(&folder) && source.file_stem() == Some(OsStr::new(module.name()));
        let agents = module.is_edge_agent()
            && [root.management_socket(), root.legacy_workload_socket()]
                .iter()
                .any(|socket| socket == source || Path::new("/var").join(strip_root(socket)) == source);
        !own && !agents
    });
}

/// This device's sockets and state, and what of it any module may mount, each also by what links lead to.
fn own_places(root: &Root, module: &ModuleId) -> (Vec<String>, Vec<String>) {
    let base = root.path();
    let own = ["run/aziot", "run/iotedge", "var/lib/edgekeep", "etc/edgekeep"].map(|place| base.join(place));
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

/// Where paths lead. Between this and the engine's own look a link may change; what is in reach of a module only changes
/// below folders that it was granted.
fn resolve(paths: BTreeSet<String>) -> Resolved {
    let one = |path: String| {
        let led_to = lead(Path::new(&path)).and_then(|path| path.into_os_string().into_string().ok());
        (path, led_to)
    };
    paths.into_iter().map(one).collect()
}

/// Where a path leads: its longest part that exists, resolved, and the rest as it is. `None` if that cannot be seen.
fn lead(path: &Path) -> Option<PathBuf> {
    let mut existing = path;
    let mut rest = PathBuf::new();
    loop {
        match existing.canonicalize() {
            Ok(resolved) => return Some(if rest.as_os_str().is_empty() { resolved } else { resolved.join(rest) }),
            // A link to nowhere: what the engine makes of it is not known.
            Err(error) if error.kind() == io::ErrorKind::NotFound && existing.symlink_metadata().is_err() => {
                let last = existing.components().next_back();
                let Some(Component::Normal(name)) = last else { return None };
                rest = if rest.as_os_str().is_empty() { PathBuf::from(name) } else { Path::new(name).join(rest) };
                existing = existing.parent()?;
            }
            Err(_) => return None,
        }
    }
}

fn environment(spec: &ValidSpec) -> BTreeMap<String, String> {
    let mut env = spec.env.clone();
    env.insert("IOTEDGE_WORKLOADURI".into(), format!("unix://{CONTAINER_SOCKET_FOLDER}/workload.sock"));
    if spec.module.is_edge_agent() {
        env.insert("IOTEDGE_MANAGEMENTURI".into(), format!("unix://{CONTAINER_SOCKET_FOLDER}/mgmt.sock"));
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
        let (own, other) = ("/var/lib/edgekeep/moduled/mnt/m1.sock:/s", "/var/lib/edgekeep/moduled/mnt/m2.sock:/s");
        assert_eq!(left("m1", json!([own, other, "v:/d"])), json!([other, "v:/d"]));
        let management = "/var/run/iotedge/mgmt.sock:/var/run/iotedge/mgmt.sock";
        assert_eq!(left("m1", json!([management])), json!([management]));
        assert_eq!(left("$edgeAgent", json!([management, "/run/iotedge/workload.sock:/x"])), json!([]));
    }
}
