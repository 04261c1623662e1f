//! Start and end of the daemon.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use anyhow::Context as _;
use edgekeep_api::identityd::IdentityClient;
use edgekeep_api::keyd::KeysClient;
use edgekeep_api::operations::SandboxReport;
use edgekeep_core::attestation::Door;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::layout::Daemon;
use edgekeep_daemon::board::Board;
use edgekeep_daemon::measured;
use edgekeep_daemon::metrics::Families;
use edgekeep_daemon::operations::{self, Operations};
use edgekeep_daemon::server::{Limits, serve};
use edgekeep_daemon::{lifecycle, listen, memory, systemd};
use edgekeep_runtime::engine::Engine;
use edgekeep_runtime::evidence::CgroupHierarchy;
use edgekeep_runtime::facts::EngineWatch;
use edgekeep_runtime::process::ProcessRuntime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::children::RunningChildren;
use crate::gate::Gate;
use crate::gate::attest::Attestor;
use crate::gate::trail::VERDICTS;
use crate::http::workload::DECRYPTIONS;
use crate::http::{Rooms, management, workload};
use crate::identity::Credentials;
use crate::identity::identities::IdentityCache;
use crate::keepers;
use crate::keepers::agent::{self, Ended, WATCHDOG_ERRORS, WATCHDOG_ERRORS_IN_A_ROW};
use crate::modules::images::IMAGES;
use crate::modules::sockets::{self, management_limits, workload_limits};
use crate::modules::{self, Containers, Modules, Runtimes, measurements, replacements, services};
use crate::prepared::{Prepared, SharedSockets};
use crate::report::metrics::{self, DAYS_LEFT, ENGINE, MODULES};
use crate::report::{Report, health, systeminfo};

/// Metrics of this daemon beyond those that all daemons have.
static FAMILIES: Families = &[
    &VERDICTS,
    &DECRYPTIONS,
    &WATCHDOG_ERRORS,
    &WATCHDOG_ERRORS_IN_A_ROW,
    &IMAGES,
    &MODULES,
    &ENGINE,
    &DAYS_LEFT,
];

/// Treatment of the modules when the daemon ends.
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
/// If it cannot start: its settings or its state are not usable.
pub async fn run(prepared: Prepared, at_end: AtEnd) -> anyhow::Result<Ended> {
    let Prepared { root, settings, measured, children, sockets, sandbox } = prepared;
    let folder = root.state_folder(Daemon::Moduled);
    let hierarchy = CgroupHierarchy::detect();
    let children = children.adopt().context("cannot talk to the daemon's children")?;
    let gauge = children.gauge.clone();
    let containers = match &settings.engine {
        Some(settings) => {
            let engine = Engine::from_uri(&settings.uri)?;
            let watch = EngineWatch::start(engine.clone(), gauge.clone());
            Some(Containers { engine, watch, uri: settings.uri.clone() })
        }
        None => None,
    };
    let launching = children.launching.clone();
    let processes =
        ProcessRuntime::open(&folder.join("processes"), launching, gauge.clone()).await?;
    if let Some(why) = processes.without_cgroups() {
        tracing::info!(%why, "host modules run without cgroups of their own");
    }
    let host = services::host_facts().context("cannot look at the daemon's own namespaces")?;
    let board = Board::new();
    let keys = KeysClient::new(root.keyd_socket());
    measured::tell(&keys, Daemon::Moduled, measured, systeminfo::VERSION, &board).await;
    let settings = Arc::new(settings);
    let identities = Arc::new(IdentityCache::new(IdentityClient::new(root.identityd_socket())));
    let runtimes = Runtimes { containers, processes, hierarchy, host, gauge: gauge.clone() };
    let credentials =
        Credentials::new(&root, Arc::clone(&settings), Arc::clone(&identities), board.clone());
    let credentials = Arc::new(credentials);
    let modules = Modules::load(root, settings, runtimes, identities, board.clone())?;
    let modules = Arc::new(modules);
    let gate = Gate::new(Attestor::new(gauge), Arc::clone(&modules), board.clone());
    let report = Report::new(Arc::clone(&modules), Arc::clone(&credentials), board);
    let rooms = Rooms { gate: Arc::new(gate), modules, credentials, report: Arc::new(report) };
    rooms.modules.sockets.served_by(Box::new(rooms.clone()));
    services::register(&rooms.modules).await;
    let stop = lifecycle::stop_on_signal()?;
    let started = Started { sockets, sandbox, children };
    serve_all(rooms, stop, at_end, started).await
}

/// The things that were there before the rooms.
struct Started {
    sockets: SharedSockets,
    sandbox: SandboxReport,
    children: RunningChildren,
}

/// Serves the shared sockets and runs the keepers until `stop`, then ends both in order.
async fn serve_all(
    rooms: Rooms,
    stop: watch::Receiver<bool>,
    at_end: AtEnd,
    started: Started,
) -> anyhow::Result<Ended> {
    let Started { sockets, sandbox, children } = started;
    let SharedSockets { management, legacy, operations } = sockets;
    let mut servers = shared_sockets(&rooms, (management, legacy), &stop)?;
    let Rooms { gate, modules, credentials, report } = &rooms;
    // After the shared sockets serve: one module's trouble is none of the others'.
    for module in modules.registrations.modules() {
        let access = sockets::access(modules, &module).await;
        if let Err(error) = modules.sockets.open(modules, &module, access).await {
            tracing::error!(%module, %error, "workload socket not opened");
        }
    }
    modules::watch_running(modules).await;
    if let Some(weakness) = gate.attestor.weakness().await {
        report.board.raise(Code::WeakIsolation, &Subject::daemon(Daemon::Moduled), weakness);
    }
    let operations_socket = operations
        .and_then(|listener| operations::in_runtime(Daemon::Moduled, &modules.root, listener));
    let operations = Operations::new(
        Daemon::Moduled,
        &modules.root,
        FAMILIES,
        metrics::refresh(report),
        report.board.clone(),
    );
    operations.confined(sandbox);
    let mut keepers = JoinSet::new();
    keepers.spawn(measurements::keep(Arc::clone(modules), stop.clone()));
    keepers.spawn(operations::run(operations_socket, operations, stop.clone()));
    keepers.spawn(services::ensure_identities(Arc::clone(modules)));
    systemd::notify_ready();
    tracing::info!(version = systeminfo::VERSION, "moduled serves");
    keepers.spawn(replacements::settle_all(Arc::clone(modules), stop.clone()));
    keepers.spawn(keepers::edge_ca::keep(Arc::clone(credentials), stop.clone()));
    keepers.spawn(keepers::new_ca::keep(
        Arc::clone(credentials),
        Arc::clone(modules),
        stop.clone(),
    ));
    keepers.spawn(health::keep(Arc::clone(report), stop.clone()));
    keepers.spawn(keepers::images::keep(Arc::clone(modules), stop.clone()));
    keepers.spawn(keepers::sockets::keep(Arc::clone(modules), stop.clone()));
    keepers.spawn(keepers::upkeep::keep(Arc::clone(modules), stop.clone()));
    keepers.spawn(memory::give_back());
    let edge_ca = credentials.edge_ca.subscribe();
    let ended = tokio::select! {
        ended = agent::watch(Arc::clone(modules), edge_ca, stop) => Some(ended),
        () = children.watch(report.board.clone()) => None,
    };
    if ended == Some(Ended::GaveUp) {
        tracing::error!("edgeAgent could not be kept running; giving up, as configured");
    }
    if at_end == AtEnd::StopModules && ended.is_some() {
        modules::stop_all(modules).await;
    }
    // Before the sockets are closed, lest a keeper opens them again.
    keepers.shutdown().await;
    modules.sockets.close_all().await;
    if ended != Some(Ended::Stopped) {
        servers.abort_all();
    }
    while servers.join_next().await.is_some() {}
    Ok(ended.unwrap_or(Ended::GaveUp))
}

/// Serves the sockets that belong to no single module.
fn shared_sockets(
    rooms: &Rooms,
    (management, legacy): (UnixListener, UnixListener),
    stop: &watch::Receiver<bool>,
) -> anyhow::Result<JoinSet<()>> {
    let root = &rooms.modules.root;
    let management = listen::in_runtime(management, &root.management_socket())?;
    let legacy = listen::in_runtime(legacy, &root.legacy_workload_socket())?;
    let settings = &rooms.modules.settings;
    let mut servers = JoinSet::new();
    servers.spawn(serve(
        management,
        Arc::new(management::router(Arc::new(rooms.clone()))),
        Limits { shared: true, ..management_limits(settings) },
        stop.clone(),
    ));
    servers.spawn(serve(
        legacy,
        Arc::new(workload::router(Arc::new(rooms.clone()), Door::LegacySocket)),
        Limits { shared: true, ..workload_limits(settings) },
        stop.clone(),
    ));
    Ok(servers)
}
