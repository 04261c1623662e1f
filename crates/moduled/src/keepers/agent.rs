//! The watchdog: keeps the agent's module running, with the environment that agents
//! expect (wire facts 2.10 and 8).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgekeep_api::identityd::Identity;
use edgekeep_api::management::ModuleSettings;
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::settings::AgentSettings;
use edgekeep_core::watchdog::{Action, Observation, State, step};
use edgekeep_daemon::metrics::{Counter, Family, Gauge};
use edgekeep_daemon::store::{StateFile, sha256};
use edgekeep_runtime::status::ModuleState;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::modules;
use crate::modules::error::ModuleError;
use crate::modules::host::agent_folder;
use crate::modules::spec::{Kind, ValidSpec};
use crate::modules::{Modules, edge_agent};

/// Failed tries of the watchdog.
pub(crate) static WATCHDOG_ERRORS: Family<Counter, 0> = Family::new(
    "edgekeep_watchdog_errors",
    "Rounds of the watchdog in which edgeAgent could not be kept running.",
    [],
);
/// Those since the agent was last seen running.
pub(crate) static WATCHDOG_ERRORS_IN_A_ROW: Family<Gauge, 0> = Family::new(
    "edgekeep_watchdog_errors_in_a_row",
    "The same since edgeAgent was last seen running.",
    [],
);

/// URI of the workload API in a container, as existing agents have it.
const CONTAINER_WORKLOAD_URI: &str = "unix:///var/run/iotedge/workload.sock";
/// URI of the management API in a container, as existing agents have it.
const CONTAINER_MANAGEMENT_URI: &str = "unix:///var/run/iotedge/mgmt.sock";

/// Time until identityd is asked again while the device has no identity. identityd
/// answers from memory.
const IDENTITY_RETRY: Duration = Duration::from_millis(500);

/// Longest time after the daemon's start that the agent waits for the Edge CA.
const EDGE_CA_PATIENCE: Duration = Duration::from_secs(5);

/// Reason why the watchdog ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The daemon stops.
    Stopped,
    /// As many errors in a row as the operator allows.
    GaveUp,
}

/// Watches over the agent until `stop`. `edge_ca` is the end of the Edge CA's
/// certificate, while there is one.
pub(crate) async fn watch(
    modules: Arc<Modules>,
    mut edge_ca: watch::Receiver<Option<OffsetDateTime>>,
    mut stop: watch::Receiver<bool>,
) -> Ended {
    let begin = Instant::now();
    let mut state = State::new(modules.settings.watchdog_max_retries);
    // A configuration that changed while the daemon was down replaces the agent once; a
    // deployment's own update of the agent does not count as one.
    let mut replace = configuration_changed(&modules);
    let mut changes = modules.containers.as_ref().map(|containers| containers.watch.changes());
    loop {
        let seen = observe(&modules, replace).await;
        if matches!(seen, Observation::Absent | Observation::Dead)
            && let Err(error) = specification(&modules).await
        {
            // Not a fault of the agent: the device is still being provisioned. Asked
            // again soon, and counted as no error.
            report(&modules, seen, Some(&error.to_string()));
            tokio::select! {
                () = stopped(&mut stop) => return Ended::Stopped,
                () = tokio::time::sleep(IDENTITY_RETRY) => continue,
            }
        }
        if begin.elapsed() < EDGE_CA_PATIENCE && seen != Observation::Running {
            // Modules ask for certificates first thing; but a device without its CA is
            // better than one without modules.
            let issued = edge_ca.wait_for(Option::is_some);
            let _ = tokio::time::timeout(EDGE_CA_PATIENCE.saturating_sub(begin.elapsed()), issued)
                .await;
        }
        let (next, action) = step(state, seen, begin.elapsed());
        if next.errors() > state.errors() {
            WATCHDOG_ERRORS.with([]).increment();
        }
        state = next;
        let done = act(&modules, action, replace).await;
        match done {
            Ok(acted) => {
                if acted {
                    tracing::info!(?seen, ?action, "agent");
                    remember_configuration(&modules);
                    replace = false;
                }
                report(&modules, seen, None);
            }
            Err(error) => {
                tracing::warn!(?seen, ?action, %error, "agent not restored");
                state = state.action_failed(begin.elapsed());
                WATCHDOG_ERRORS.with([]).increment();
                report(&modules, seen, Some(&error.to_string()));
            }
        }
        WATCHDOG_ERRORS_IN_A_ROW.with([]).set(f64::from(state.errors()));
        if action == Action::GiveUp {
            return Ended::GaveUp;
        }
        let pause = state.due().saturating_sub(begin.elapsed());
        tokio::select! {
            () = stopped(&mut stop) => return Ended::Stopped,
            () = tokio::time::sleep(pause) => {}
            // Something ended or the engine came back: a dead agent is found at once, but
            // not restarted in a tight loop. The pause after a failure is kept.
            () = something_changed(&modules, changes.as_mut(), begin + state.settled()), if state.errors() == 0 => {
                state = state.wake(begin.elapsed());
            }
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Ends when a container changed or the agent's process ended, but not before `settled`.
async fn something_changed(
    modules: &Modules,
    changes: Option<&mut watch::Receiver<u64>>,
    settled: Instant,
) {
    tokio::time::sleep_until(settled.into()).await;
    let container = async {
        match changes {
            Some(changes) => {
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            None => std::future::pending().await,
        }
    };
    let process = async {
        match modules.processes.status(&edge_agent()).await.map(|status| status.state) {
            // It ended while it was being left alone.
            Ok(ModuleState::Stopped | ModuleState::Failed) => {}
            Ok(_) => drop(modules.processes.ended(&edge_agent()).await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = container => {}
        () = process => {}
    }
}

fn report(modules: &Modules, seen: Observation, error: Option<&str>) {
    let subject = Subject::module(&edge_agent());
    match (error, seen) {
        (Some(error), _) => modules.board.raise(Code::AgentNotStarted, &subject, error),
        (None, Observation::Unknown) => {
            modules.board.raise(Code::AgentNotStarted, &subject, "its state is not known");
        }
        (None, _) => modules.board.clear(Code::AgentNotStarted, &subject),
    }
}

async fn observe(modules: &Modules, replace: bool) -> Observation {
    match modules::agent_state(modules, &edge_agent()).await {
        Err(_) => Observation::EngineAway,
        Ok(None) => Observation::Absent,
        // A new configuration makes of any agent one that must be made anew.
        Ok(Some(_)) if replace => Observation::Dead,
        // What runs under the agent's name without a registration is not the agent.
        Ok(Some(_)) if modules.registrations.of(&edge_agent()).is_none() => Observation::Dead,
        Ok(Some(ModuleState::Running)) => Observation::Running,
        // A start has one that is paused go on.
        Ok(Some(ModuleState::Stopped | ModuleState::Paused)) => Observation::Stopped,
        Ok(Some(ModuleState::Failed)) => Observation::Failed,
        Ok(Some(ModuleState::Dead)) => Observation::Dead,
        Ok(Some(ModuleState::Unknown)) => Observation::Unknown,
    }
}

/// Carries an action out; `false` if there was none.
async fn act(modules: &Arc<Modules>, action: Action, replaced: bool) -> Result<bool, ModuleError> {
    let agent = edge_agent();
    match action {
        Action::Nothing | Action::GiveUp => return Ok(false),
        Action::Start => modules::start(modules, &agent).await?,
        Action::CreateAndStart | Action::RecreateAndStart => {
            let spec = specification(modules).await?;
            if action == Action::RecreateAndStart {
                // What is needed is fetched first, so that an agent is not lost to a
                // missing image.
                let _ = modules::prepare(modules, &spec).await?;
                if replaced {
                    modules::stop(modules, &agent).await?;
                }
                modules::remove(modules, &agent).await?;
            }
            modules::create(modules, &spec).await?;
            modules::start(modules, &agent).await?;
        }
    }
    Ok(true)
}

/// The agent's specification: the operator's settings and the environment that the daemon
/// sets.
async fn specification(modules: &Modules) -> Result<ValidSpec, ModuleError> {
    let settings = &modules.settings.agent;
    let kind = match settings.kind.as_str() {
        "docker" => Kind::Docker,
        "process" => Kind::Process,
        other => return Err(ModuleError::Invalid(format!("invalid [agent] type {other:?}"))),
    };
    let agent = edge_agent();
    let not_yet = |error: edgekeep_api::client::ClientError| {
        ModuleError::Device(format!("the agent's identity is not known yet: {error}"))
    };
    // The cached identity will do: the agent starts without the cloud if it ever had one.
    let client = modules.identities.client();
    let identity = match client.module(agent.as_str()).await {
        Ok(identity) => identity,
        Err(_) => client.update_module(agent.as_str()).await.map_err(not_yet)?,
    };
    let Identity::Aziot(identity) = identity else {
        return Err(ModuleError::Device("the agent has a local identity only".to_owned()));
    };
    let options = match &settings.create_options {
        Value::Object(options) => options.clone(),
        _ => serde_json::Map::new(),
    };
    let mut env = settings.env.clone();
    if kind == Kind::Process {
        // Where our own agent remembers what it applied; a container's agent brings a
        // volume.
        let folder = agent_folder(modules)
            .unwrap_or_else(|| modules.root.path().join("var/lib/edgekeep/agent"));
        env.entry("EDGEKEEP_AGENT_STATE".into()).or_insert_with(|| folder.display().to_string());
    }
    let (workload, management) = match kind {
        Kind::Docker => (CONTAINER_WORKLOAD_URI.to_owned(), CONTAINER_MANAGEMENT_URI.to_owned()),
        Kind::Process => {
            let folder = modules.root.module_socket_folder();
            (
                format!("unix://{}", folder.join("edgeAgent.sock").display()),
                format!("unix://{}", modules.root.management_socket().display()),
            )
        }
    };
    let network =
        modules.settings.engine.as_ref().map(|engine| engine.network.clone()).unwrap_or_default();
    let set = [
        ("EdgeDeviceHostName", modules.settings.hostname.clone()),
        ("IOTEDGE_APIVERSION", "2022-08-03".to_owned()),
        ("IOTEDGE_AUTHSCHEME", "sasToken".to_owned()),
        ("IOTEDGE_DEVICEID", identity.device_id),
        ("IOTEDGE_IOTHUBHOSTNAME", identity.hub_name.clone()),
        ("IOTEDGE_MODULEID", agent.to_string()),
        ("IOTEDGE_MODULEGENERATIONID", identity.gen_id.unwrap_or_default()),
        ("IOTEDGE_WORKLOADURI", workload),
        ("IOTEDGE_MANAGEMENTURI", management),
        (
            "IOTEDGE_WORKLOADLISTEN_MNTURI",
            format!("unix://{}", modules.root.module_socket_folder().display()),
        ),
        ("Mode", "iotedged".to_owned()),
        ("NetworkId", network),
    ];
    env.extend(set.map(|(name, value)| (name.to_owned(), value)));
    if !identity.gateway_host.eq_ignore_ascii_case(&identity.hub_name) {
        env.insert("IOTEDGE_GATEWAYHOSTNAME".into(), identity.gateway_host);
    }
    // How agents remember what they applied to themselves; empty at the first start.
    let labels =
        [("net.azure-devices.edge.create-options", "{}"), ("net.azure-devices.edge.env", "{}")];
    Ok(ValidSpec {
        module: agent,
        kind,
        never_pull: settings.image_pull_policy.eq_ignore_ascii_case("never"),
        settings: ModuleSettings {
            image: settings.image.clone(),
            image_hash: settings.image_hash.map(|digest| digest.to_string()),
            create_options: options,
            digest: settings.digest.map(|digest| digest.to_string()),
            auth: settings.auth.clone(),
        },
        env,
        labels: labels
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect::<BTreeMap<_, _>>(),
    })
}

fn configuration_file(modules: &Modules) -> StateFile<Sha256Digest> {
    StateFile::new(modules.state_folder().join("agent.json"), "agent-configuration", 1)
}

fn configuration(settings: &AgentSettings, modules: &Modules) -> Sha256Digest {
    let host_module = modules.settings.host_modules.get(&settings.image);
    let parts = serde_json::to_vec(&(
        settings,
        host_module,
        &modules.settings.hostname,
        modules.root.path(),
    ));
    sha256(&parts.unwrap_or_default())
}

fn configuration_changed(modules: &Modules) -> bool {
    match configuration_file(modules).load() {
        Ok(Some(known)) => known != configuration(&modules.settings.agent, modules),
        Ok(None) => false,
        Err(error) => {
            tracing::warn!(%error, "cannot tell whether the agent's configuration changed; it stays");
            false
        }
    }
}

fn remember_configuration(modules: &Modules) {
    if let Err(error) =
        configuration_file(modules).save(&configuration(&modules.settings.agent, modules))
    {
        tracing::warn!(%error, "the agent's configuration is not remembered");
    }
}
