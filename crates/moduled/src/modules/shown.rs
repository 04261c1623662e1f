//! Modules as the management API shows them: never with credentials or environment.

use edgekeep_api::management::{DetailsConfig, ExitStatus, ModuleDetails, ModuleSpec, ModuleStatus, RuntimeStatus};
use edgekeep_core::attestation::Workload;
use edgekeep_runtime::status::ModuleStatus as State;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::registrations::Registrations;
use crate::spec::Kind;

/// What there is to say about a container that nobody registered.
const UNREGISTERED: &str = "not registered by this daemon, so it has no identity";

/// A fresh module as create and update answer it: the request's settings, without credentials and environment.
#[must_use]
pub(crate) fn echo(request: &ModuleSpec, running: bool) -> ModuleDetails {
    let mut settings = request.config.settings.clone();
    if let Some(settings) = settings.as_object_mut() {
        settings.remove("auth");
        if let Some(options) = settings.get_mut("createOptions").and_then(Value::as_object_mut) {
            options.retain(|name, _| !name.eq_ignore_ascii_case("env"));
        }
    }
    remove_agents_copies(&mut settings);
    ModuleDetails {
        id: "id".into(),
        name: request.name.clone(),
        kind: request.kind.clone(),
        config: DetailsConfig { settings, env: Vec::new() },
        status: ModuleStatus {
            start_time: None,
            exit_status: None,
            runtime_status: RuntimeStatus {
                status: if running { "running" } else { "stopped" }.into(),
                description: None,
            },
        },
    }
}

/// Removes the labels in which agents keep what they applied to themselves, environment and options.
pub(crate) fn remove_agents_copies(settings: &mut Value) {
    let Some(Value::Object(labels)) = settings.pointer_mut("/createOptions/Labels") else { return };
    labels.remove("net.azure-devices.edge.env");
    labels.remove("net.azure-devices.edge.create-options");
}

pub(super) fn details(kind: Kind, state: &State) -> ModuleDetails {
    let labels: Map<String, Value> =
        state.labels.iter().map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect();
    let mut settings = json!({"image": state.image, "createOptions": {"Labels": labels}});
    if let (Some(content), Some(settings)) = (state.content, settings.as_object_mut()) {
        settings.insert("imageHash".into(), Value::String(content.to_string()));
    }
    ModuleDetails {
        id: "id".into(),
        name: state.name.clone(),
        kind: kind.as_str().into(),
        config: DetailsConfig { settings, env: Vec::new() },
        status: ModuleStatus {
            start_time: state.started.and_then(rfc3339),
            exit_status: state.exit.and_then(|exit| {
                // An end that nobody was told is shown as a failure: restart policies then do their work.
                Some(ExitStatus { exit_time: rfc3339(exit.at)?, status_code: exit.code.unwrap_or(-1).to_string() })
            }),
            runtime_status: RuntimeStatus { status: state.state.as_str().into(), description: state.note.clone() },
        },
    }
}

/// Whether a module's container is the one that was registered. Another, made by something else or left behind when the
/// daemon died while it was made, was never judged, has no identity and never will.
pub(super) fn is_registered(state: &State, registrations: &Registrations) -> bool {
    state.name.parse().ok().and_then(|module| registrations.of(&module)).is_some_and(|registration| {
        matches!(&registration.workload, Workload::Container { container, .. } if Some(container) == state.container.as_ref())
    })
}

/// A container as the API shows it. One that is not registered is shown as dead, which makes agents replace it.
pub(super) fn container_details(state: &State, registrations: &Registrations) -> ModuleDetails {
    let mut details = details(Kind::Docker, state);
    if !is_registered(state, registrations) {
        details.status.runtime_status = RuntimeStatus { status: "dead".into(), description: Some(UNREGISTERED.into()) };
    }
    details
}

fn rfc3339(time: OffsetDateTime) -> Option<String> {
    time.to_offset(time::UtcOffset::UTC).format(&Rfc3339).ok()
}
