//! Report of the agent: the shape of the reported properties of `$edgeAgent` (deployment
//! facts, section 5). Pure.
//!
//! Environment values, and passwords of registries, are masked. Modules that are wanted
//! but not there yet are listed too, with the reason as `statusDescription`.

use std::collections::BTreeMap;

use edgekeep_api::management::{ModuleDetails, RuntimeStatus};
use edgekeep_api::operations::{ProblemList, ShownProblem};
use edgekeep_core::deployment::{
    DEFAULT_STARTUP_ORDER, Deployment, DesiredStatus, Module, RestartPolicy, Runtime,
    split_create_options,
};
use edgekeep_core::id::ModuleId;
use edgekeep_core::names::EDGE_HUB;
use edgekeep_core::reconcile::{Memory, RuntimeState, Timestamp};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const MASK: &str = "******";
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// Everything a report is made from.
#[derive(Debug)]
pub struct View<'a> {
    /// The deployment that is applied; `None` if none was ever good enough.
    pub deployment: Option<&'a Deployment>,
    /// Code and description of the last round.
    pub status: (u16, &'a str),
    /// Operating system, architecture and version of the daemon.
    pub platform: Option<&'a Platform>,
    /// The modules as they are.
    pub modules: &'a BTreeMap<ModuleId, ModuleDetails>,
    /// Counts of restarts.
    pub memory: &'a Memory,
    /// Last failure of each module about which something fails.
    pub errors: &'a BTreeMap<ModuleId, String>,
    /// The device's health by all that its daemons know, if they tell.
    pub health: Option<&'a ProblemList>,
    /// True if `modules` is up to date. If not, states are reported as unknown.
    pub fresh: bool,
}

/// Platform of the device: operating system, processor and daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `osType` of systeminfo.
    pub os: String,
    /// Processor architecture.
    pub architecture: String,
    /// Version of the daemon.
    pub version: String,
}

/// The reported properties.
#[must_use]
pub fn reported(view: &View<'_>) -> Value {
    let empty = Runtime::default();
    let runtime = view.deployment.map_or(&empty, |deployment| &deployment.runtime);
    let credentials: Map<String, Value> = runtime
        .registry_credentials
        .iter()
        .map(|credential| {
            let shown = json!({"address": credential.address, "username": credential.username, "password": MASK});
            (credential.label.clone(), shown)
        })
        .collect();
    let platform = view
        .platform
        .map(|platform| json!({"os": platform.os, "architecture": platform.architecture, "version": platform.version}));

    let wanted = view.deployment.into_iter().flat_map(|deployment| &deployment.modules);
    let mut modules: BTreeMap<&ModuleId, Value> =
        wanted.map(|(id, module)| (id, one(view, id, Some(module)))).collect();
    for id in view.modules.keys().filter(|id| !id.is_edge_agent()) {
        modules.entry(id).or_insert_with(|| one(view, id, None));
    }
    let mut hub = json!({"type": "Unknown"});
    modules.retain(|id, module| {
        let is_hub = id.name() == EDGE_HUB;
        if is_hub {
            hub = module.take();
        }
        !is_hub
    });
    let modules: Map<String, Value> =
        modules.into_iter().map(|(id, module)| (id.as_str().to_owned(), module)).collect();

    json!({
        "schemaVersion": "1.0",
        "version": {"version": env!("CARGO_PKG_VERSION"), "build": "", "commit": ""},
        "lastDesiredVersion": view.deployment.and_then(|deployment| deployment.version).unwrap_or(0),
        "lastDesiredStatus": {"code": view.status.0, "description": view.status.1},
        "health": view.health.map(health),
        "runtime": {
            "type": "docker",
            "settings": {
                "minDockerVersion": runtime.min_docker_version,
                "loggingOptions": runtime.logging_options,
                "registryCredentials": credentials,
            },
            "platform": platform,
        },
        "systemModules": {"edgeAgent": agent(view), EDGE_HUB: hub},
        "modules": modules,
    })
}

/// The device's health. Without begins: what only counts time would make a new report of
/// each round.
fn health(list: &ProblemList) -> Value {
    let problem = |shown: &ShownProblem| {
        let problem = &shown.problem;
        json!({"code": problem.code(), "severity": problem.severity(), "subject": problem.subject(), "detail": problem.detail()})
    };
    json!({"verdict": list.health, "problems": list.problems.iter().map(problem).collect::<Vec<_>>()})
}

/// Returns true if a module should run now. A module that ended well and is never to be
/// started again should not.
#[must_use]
pub fn should_run(module: &Module, details: Option<&ModuleDetails>) -> bool {
    let done = || {
        details.is_some_and(|details| {
            let state = RuntimeState::from_word(&details.status.runtime_status.status);
            state == RuntimeState::Stopped
                && details.status.exit_status.as_ref().is_some_and(|exit| exit.status_code == "0")
        })
    };
    module.status == DesiredStatus::Running
        && !(module.restart_policy == RestartPolicy::Never && done())
}

/// The agent's own entry, from what runs: the manifest has no say in it.
fn agent(view: &View<'_>) -> Value {
    let Some((_, details)) = view.modules.iter().find(|(id, _)| id.is_edge_agent()) else {
        return json!({"type": "Unknown"});
    };
    let mut entry = Map::new();
    entry.insert("type".into(), details.kind.as_str().into());
    entry.insert("startupOrder".into(), 0.into());
    let state = runtime_state(&details.status.runtime_status);
    add_state(&mut entry, view, details, state_word(state));
    entry.insert("settings".into(), json!({"image": details.config.settings["image"]}));
    entry.into()
}

fn one(view: &View<'_>, id: &ModuleId, module: Option<&Module>) -> Value {
    let mut entry = Map::new();
    let details = view.modules.get(id);
    let kind =
        module.map(|module| module.kind.as_str()).or(details.map(|details| details.kind.as_str()));
    entry.insert("type".into(), kind.unwrap_or("Unknown").into());
    if let Some(module) = module {
        entry.insert("status".into(), module.status.as_str().into());
        entry.insert("restartPolicy".into(), module.restart_policy.as_str().into());
        entry.insert("imagePullPolicy".into(), module.image_pull_policy.as_str().into());
        if module.startup_order != DEFAULT_STARTUP_ORDER {
            entry.insert("startupOrder".into(), module.startup_order.into());
        }
        if id.name() != EDGE_HUB {
            entry.insert("version".into(), module.version.as_str().into());
        }
        let env: Map<String, Value> =
            module.env.keys().map(|name| (name.clone(), json!({"value": MASK}))).collect();
        entry.insert("env".into(), env.into());
    }
    match details {
        Some(details) => {
            let state = runtime_state(&details.status.runtime_status);
            let waits = module.is_some_and(|module| {
                module.status == DesiredStatus::Running
                    && module.restart_policy != RestartPolicy::Never
            });
            let word = match state {
                RuntimeState::Failed if waits => "backoff",
                RuntimeState::Stopped if waits && details.status.exit_status.is_some() => "backoff",
                state => state_word(state),
            };
            add_state(&mut entry, view, details, word);
        }
        None => drop(entry.insert("runtimeStatus".into(), "unknown".into())),
    }
    if let Some(error) = view.errors.get(id) {
        entry.insert("statusDescription".into(), error.as_str().into());
    }
    let (restarts, last_restart) = view.memory.restarts(id);
    entry.insert("restartCount".into(), restarts.into());
    let last_restart = match last_restart.and_then(to_rfc3339) {
        Some(time) => time.into(),
        None => entry.get("lastExitTimeUtc").cloned().unwrap_or_else(|| NO_TIME.into()),
    };
    entry.insert("lastRestartTimeUtc".into(), last_restart);
    entry.insert("settings".into(), settings(module, details).into());
    entry.into()
}

fn add_state(entry: &mut Map<String, Value>, view: &View<'_>, details: &ModuleDetails, word: &str) {
    let word = if view.fresh { word } else { "unknown" };
    entry.insert("runtimeStatus".into(), word.into());
    let status = &details.status;
    entry.insert("statusDescription".into(), status.runtime_status.description.clone().into());
    let exit = status.exit_status.as_ref();
    let code = exit.and_then(|exit| exit.status_code.parse::<i64>().ok()).unwrap_or(0);
    entry.insert("exitCode".into(), code.into());
    entry.insert("lastStartTimeUtc".into(), status.start_time.as_deref().unwrap_or(NO_TIME).into());
    entry.insert(
        "lastExitTimeUtc".into(),
        exit.map_or(NO_TIME, |exit| exit.exit_time.as_str()).into(),
    );
}

/// Returns the state of a module by the daemon's words. The newer word, `phase`, says
/// more where it is there.
#[must_use]
pub fn runtime_state(status: &RuntimeStatus) -> RuntimeState {
    RuntimeState::from_word(status.phase.as_ref().unwrap_or(&status.status))
}

const fn state_word(state: RuntimeState) -> &'static str {
    match state {
        RuntimeState::Running => "running",
        RuntimeState::Paused => "paused",
        RuntimeState::Stopped => "stopped",
        RuntimeState::Failed => "failed",
        RuntimeState::Dead => "dead",
        RuntimeState::Unknown => "unknown",
    }
}

/// Image as it runs (so the old one shows until an update worked), options as they were
/// written.
fn settings(module: Option<&Module>, details: Option<&ModuleDetails>) -> Map<String, Value> {
    let mut settings = Map::new();
    let seen = details.map(|details| &details.config.settings);
    let image =
        seen.and_then(|seen| seen["image"].as_str()).or(module.map(|module| module.image.as_str()));
    settings.insert("image".into(), image.unwrap_or_default().into());
    if let Some(hash) = seen.and_then(|seen| seen["imageHash"].as_str()) {
        settings.insert("imageHash".into(), hash.into());
    }
    if let Some(module) = module {
        let options = Value::Object(masked(&module.create_options)).to_string();
        for (name, piece) in split_create_options(&options).into_iter().flatten() {
            settings.insert(name, piece.into());
        }
        if let Some(digest) = &module.digest {
            settings.insert("digest".into(), digest.as_str().into());
        }
    }
    settings
}

/// The create options with the values of their environment masked.
fn masked(options: &Map<String, Value>) -> Map<String, Value> {
    let mut options = options.clone();
    for (name, value) in &mut options {
        if !name.eq_ignore_ascii_case("Env") {
            continue;
        }
        let entries = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        *value = entries
            .map(|entry| {
                entry
                    .split_once('=')
                    .map_or_else(|| entry.to_owned(), |(key, _)| format!("{key}={MASK}"))
            })
            .collect();
    }
    options
}

/// A moment of the API as a [`Timestamp`]; the engine's "never" and what does not parse
/// are none.
#[must_use]
pub fn from_rfc3339(text: &str) -> Option<Timestamp> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok().filter(|time| time.year() > 1)?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok().map(Timestamp)
}

fn to_rfc3339(time: Timestamp) -> Option<String> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(time.0) * 1_000_000)
        .ok()?
        .format(&Rfc3339)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> Deployment {
        let value = json!({
            "$version": 7,
            "schemaVersion": "1.1",
            "runtime": {"type": "docker", "settings": {"minDockerVersion": "v1.25", "registryCredentials":
                {"r": {"address": "registry.example", "username": "u", "password": "very-secret"}}}},
            "systemModules": {"edgeHub": {"type": "docker", "status": "running", "settings": {"image": "hub:1"}}},
            "modules": {"m": {"type": "docker", "status": "running", "startupOrder": 3,
                "env": {"K": {"value": "very-secret"}},
                "settings": {"image": "x:2", "createOptions": "{\"Env\": [\"P=very-secret\"], \"Cmd\": [\"c\"]}"}}},
        });
        Deployment::from_value(&value, None).unwrap()
    }

    fn details(name: &str, image: &str, status: &Value) -> (ModuleId, ModuleDetails) {
        let value = json!({"id": "id", "name": name, "type": "docker", "status": status,
            "config": {"settings": {"image": image, "imageHash": "sha256:ab"}, "env": []}});
        (name.parse().unwrap(), serde_json::from_value(value).unwrap())
    }

    fn report(fresh: bool) -> Value {
        let deployment = deployment();
        let failed = json!({"startTime": "2025-01-01T00:00:00Z", "runtimeStatus": {"status": "failed"},
            "exitStatus": {"exitTime": "2025-01-01T00:01:00Z", "statusCode": "3"}});
        let running = json!({"runtimeStatus": {"status": "running"}});
        let modules = BTreeMap::from([
            details("m", "x:1", &failed),
            details("edgeAgent", "agent:1", &running),
        ]);
        let hub: ModuleId = EDGE_HUB.parse().unwrap();
        reported(&View {
            deployment: Some(&deployment),
            status: (500, "something"),
            platform: Some(&Platform { os: "Linux".into(), architecture: "x86_64".into(), version: "1.0".into() }),
            modules: &modules,
            memory: &Memory::default(),
            errors: &BTreeMap::from([(hub, "no such image".to_owned())]),
            health: Some(&serde_json::from_value(json!({"health": "unhealthy", "problems": [{"code": "module-not-running",
                "severity": "unhealthy", "subject": {"kind": "module", "name": "m"}, "detail": "it ended with exit code 3",
                "since": "2025-01-01T00:01:00Z", "cause": "c", "remedy": "r"}]})).unwrap()),
            fresh,
        })
    }

    #[test]
    fn the_report_has_the_fields_shape() {
        let report = report(true);
        assert_eq!(report["lastDesiredVersion"], 7);
        assert_eq!(report["lastDesiredStatus"], json!({"code": 500, "description": "something"}));
        let platform = json!({"os": "Linux", "architecture": "x86_64", "version": "1.0"});
        assert_eq!(report["runtime"]["platform"], platform);
        let expected = json!({
            "type": "docker", "status": "running", "restartPolicy": "on-unhealthy", "imagePullPolicy": "on-create",
            "startupOrder": 3, "version": "", "env": {"K": {"value": MASK}}, "runtimeStatus": "backoff",
            "statusDescription": null, "exitCode": 3, "lastStartTimeUtc": "2025-01-01T00:00:00Z",
            "lastExitTimeUtc": "2025-01-01T00:01:00Z", "restartCount": 0, "lastRestartTimeUtc": "2025-01-01T00:01:00Z",
            "settings": {"image": "x:1", "imageHash": "sha256:ab",
                "createOptions": "{\"Env\":[\"P=******\"],\"Cmd\":[\"c\"]}"},
        });
        assert_eq!(report["modules"]["m"], expected);
        let health = json!({"verdict": "unhealthy", "problems": [{"code": "module-not-running", "severity": "unhealthy",
            "subject": {"kind": "module", "name": "m"}, "detail": "it ended with exit code 3"}]});
        assert_eq!(report["health"], health);
        let hub = &report["systemModules"]["edgeHub"];
        assert_eq!(hub["runtimeStatus"], "unknown");
        assert_eq!(hub["statusDescription"], "no such image");
        assert!(hub.get("version").is_none() && hub.get("startupOrder").is_none());
        assert_eq!(report["systemModules"]["edgeAgent"]["runtimeStatus"], "running");
    }

    #[test]
    fn a_job_that_is_done_should_not_run_and_everything_else_that_is_wanted_should() {
        let module = |policy: RestartPolicy| Module {
            restart_policy: policy,
            ..deployment().modules.values().next().unwrap().clone()
        };
        let ended = |status: &str, code: &str| {
            let exit = json!({"exitTime": "2025-01-01T00:01:00Z", "statusCode": code});
            details("m", "x:1", &json!({"runtimeStatus": {"status": status}, "exitStatus": exit})).1
        };
        let (done, failed) = (ended("stopped", "0"), ended("failed", "1"));
        assert!(should_run(&module(RestartPolicy::Never), None));
        assert!(!should_run(&module(RestartPolicy::Never), Some(&done)));
        assert!(
            should_run(&module(RestartPolicy::Never), Some(&failed)),
            "a job that failed is not done"
        );
        assert!(should_run(&module(RestartPolicy::Always), Some(&done)));
        assert!(!should_run(
            &Module { status: DesiredStatus::Stopped, ..module(RestartPolicy::Always) },
            None
        ));
    }

    #[test]
    fn no_secret_is_reported() {
        assert!(!report(true).to_string().contains("very-secret"));
    }

    #[test]
    fn states_that_may_be_out_of_date_are_unknown() {
        let report = report(false);
        assert_eq!(report["modules"]["m"]["runtimeStatus"], "unknown");
        assert_eq!(report["systemModules"]["edgeAgent"]["runtimeStatus"], "unknown");
    }

    #[test]
    fn times_are_read_and_the_engines_never_is_none() {
        assert_eq!(from_rfc3339("1970-01-01T00:00:01.5Z"), Some(Timestamp(1500)));
        assert_eq!(from_rfc3339(NO_TIME), None);
        assert_eq!(from_rfc3339("yesterday"), None);
        assert_eq!(to_rfc3339(Timestamp(1000)).unwrap(), "1970-01-01T00:00:01Z");
    }
}
