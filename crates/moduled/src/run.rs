//! Start and end of the daemon.

use std::sync::Arc;

use anyhow::Context as _;
use edgekeep_core::attestation::Door;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::layout::{Daemon, Root};
use edgekeep_core::settings::ModuledSettings;
use edgekeep_daemon::operations::{self, Operations};
use edgekeep_daemon::server::{Limits, serve};
use edgekeep_daemon::store::{private_folder, sha256, sweep_temporary};
use edgekeep_daemon::{lifecycle, listen, memory, settings, systemd};
use edgekeep_runtime::engine::Engine;
use edgekeep_runtime::evidence::{CgroupHierarchy, Collector, ContainerCgroups};
use edgekeep_runtime::facts::EngineWatch;
use edgekeep_runtime::process::ProcessRuntime;
use tokio::sync::watch;

use crate::children::{Begun, Helpers};
use crate::gate::attest::Attestor;
use crate::http::management;
use crate::http::workload;
use crate::keepers::agent::{self, Ended};
use crate::keepers::edge_ca;
use crate::keepers::images;
use crate::keepers::upkeep;
use crate::modules::approvals::Approvals;
use crate::modules::own_users::OwnUsers;
use crate::modules::registrations::Registrations;
use crate::modules::replacements::{Replacements, settle_all};
use crate::modules::services;
use crate::modules::sockets::{self, Sockets, management_limits, workload_limits};
use crate::modules::{self, Containers, Modules};
use crate::report::health;
use crate::report::metrics;
use crate::service::Moduled;

/// What happens to the modules when the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtEnd {
    /// They go on: a restart or upgrade of the daemon is none of theirs.
    KeepModules,
    /// They are stopped, the agent first: the whole device ends.
    StopModules,
}

/// Runs the daemon until it is told to stop, or cannot go on without its children.
///
/// # Errors
/// If it cannot start: its settings, state or sockets are not usable.
pub async fn run(root: Root, at_end: AtEnd, children: Begun) -> anyhow::Result<Ended> {
    let path = root.settings_file(Daemon::Moduled);
    let settings: ModuledSettings = settings::load(&path)?.with_context(|| {
        format!("{} is missing; run `edgekeep config apply` first", path.display())
    })?;
    let folder = root.state_folder(Daemon::Moduled);
    private_folder(&folder)?;
    // Programs of other users, if there are any, reach the sockets made for them by their
    // path; all else in here is closed.
    let others = settings.host_module_ids.is_some()
        || settings.host_modules.values().any(|module| module.user.is_some())
        || !settings.host_services.is_empty();
    set_mode(&folder, if others { 0o711 } else { 0o700 })?;
    let links = root.module_socket_folder();
    private_folder(&links)?;
    set_mode(&links, if others { 0o711 } else { 0o700 })?;
    sweep_temporary(&folder);
    // Sockets on their way to a module's folder when the daemon was killed.
    let _ = std::fs::remove_dir_all(folder.join("sockets"));
    let hierarchy = CgroupHierarchy::detect();
    let collector = Collector::new(hierarchy.clone(), ContainerCgroups::default());
    let containers = match &settings.engine {
        Some(settings) => {
            let engine = Engine::from_uri(&settings.uri)?;
            let watch = EngineWatch::start(engine.clone(), hierarchy.clone());
            Some(Containers { engine, watch, uri: settings.uri.clone() })
        }
        None => None,
    };
    let helpers = children.adopt().context("cannot talk to the daemon's children")?;
    let processes =
        ProcessRuntime::open(&folder.join("processes"), helpers.launching.clone()).await?;
    if let Some(why) = processes.without_cgroups() {
        tracing::info!(%why, "host modules run without cgroups of their own");
    }
    let host = services::host_facts().context("cannot look at the daemon's own namespaces")?;
    let registrations = Registrations::load(&folder)?;
    let own_users = OwnUsers::load(&folder)?;
    own_users.remember(registrations.of_processes(), &settings);
    let modules = Modules::new(containers, processes, own_users, hierarchy, host);
    let attestor = Attestor::new(collector);
    let replacements = Replacements::load(&folder)?;
    let approvals = Approvals::load(&folder)?;
    let service =
        Moduled::new(root, settings, attestor, registrations, replacements, approvals, modules);
    services::register(&service).await;
    let stop = lifecycle::stop_on_signal()?;
    serve_all(service, stop, at_end, helpers).await
}

async fn serve_all(
    service: Arc<Moduled>,
    stop: watch::Receiver<bool>,
    at_end: AtEnd,
    helpers: Helpers,
) -> anyhow::Result<Ended> {
    let management = listen::activated_or_bound(
        "aziot-edged.mgmt.socket",
        &service.root.management_socket(),
        0o660,
    )?;
    let legacy = listen::activated_or_bound(
        "aziot-edged.workload.socket",
        &service.root.legacy_workload_socket(),
        0o666,
    )?;
    let servers = [
        tokio::spawn(serve(
            management,
            Arc::new(management::router(Arc::clone(&service))),
            Limits { shared: true, ..management_limits(&service) },
            stop.clone(),
        )),
        tokio::spawn(serve(
            legacy,
            Arc::new(workload::router(Arc::clone(&service), Door::LegacySocket)),
            Limits { shared: true, ..workload_limits(&service) },
            stop.clone(),
        )),
    ];
    // After the shared sockets serve: one module's trouble is none of the others'.
    for module in service.registrations.modules() {
        let access = sockets::access(&service, &module).await;
        if let Err(error) = service.sockets.open(&service, &module, access).await {
            tracing::error!(%module, %error, "workload socket not opened");
        }
    }
    modules::watch_running(&service).await;
    if let Some(weakness) = service.attestor.weakness() {
        service.board.raise(Code::WeakIsolation, &Subject::daemon(Daemon::Moduled), weakness);
    }
    let operations_socket = operations::listen(Daemon::Moduled, &service.root);
    let refresh = metrics::refresh(&service);
    let operations = Operations::new(
        Daemon::Moduled,
        &service.root,
        metrics::FAMILIES,
        refresh,
        service.board.clone(),
    );
    let operations = tokio::spawn(operations::run(operations_socket, operations, stop.clone()));
    let identities = tokio::spawn(services::ensure_identities(Arc::clone(&service)));
    systemd::notify_ready();
    tracing::info!(version = crate::report::systeminfo::VERSION, "moduled serves");
    let settling = tokio::spawn(settle_all(Arc::clone(&service), stop.clone()));
    let edge_ca = tokio::spawn(edge_ca::keep(Arc::clone(&service), stop.clone()));
    let health = tokio::spawn(health::keep(Arc::clone(&service), stop.clone()));
    let images = tokio::spawn(images::keep_collected(Arc::clone(&service), stop.clone()));
    let sockets = tokio::spawn(Sockets::keep_open(Arc::clone(&service), stop.clone()));
    let upkeep = tokio::spawn(upkeep::keep(Arc::clone(&service), stop.clone()));
    let memory = tokio::spawn(memory::give_back());
    let ended = tokio::select! {
        ended = agent::watch(Arc::clone(&service), stop) => Some(ended),
        () = helpers.watch(service.board.clone()) => None,
    };
    if ended == Some(Ended::GaveUp) {
        tracing::error!("edgeAgent could not be kept running; giving up, as configured");
    }
    if at_end == AtEnd::StopModules && ended.is_some() {
        modules::stop_all(&service).await;
    }
    upkeep.abort();
    // Before they are closed, lest it opens them again.
    sockets.abort();
    let _ = sockets.await;
    service.sockets.close_all().await;
    settling.abort();
    edge_ca.abort();
    health.abort();
    images.abort();
    operations.abort();
    identities.abort();
    memory.abort();
    for server in servers {
        if ended != Some(Ended::Stopped) {
            server.abort();
        }
        let _ = server.await;
    }
    Ok(ended.unwrap_or(Ended::GaveUp))
}

/// A name for this device among others on the machine, from its root folder.
pub(crate) fn instance(root: &Root) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    sha256(root.path().as_os_str().as_bytes()).hex()[..8].to_owned()
}

fn set_mode(folder: &std::path::Path, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", folder.display()))
}
