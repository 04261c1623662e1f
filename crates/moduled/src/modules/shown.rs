//! Modules as the management API shows them: never with credentials or environment.

use std::collections::BTreeMap;

use edgekeep_api::management::{
    DetailsConfig, ExitStatus, ModuleDetails, ModuleSpec, ModuleStatus, RuntimeStatus,
};
use edgekeep_core::attestation::Workload;
use edgekeep_runtime::status::{ModuleState, ModuleStatus as State};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::modules::registrations::Registrations;
use crate::modules::spec::Kind;

/// Description of a container that nobody registered.
const UNREGISTERED: &str = "not registered by this daemon, so it has no identity";

/// A fresh module as create and update answer it: the request's settings, without
/// credentials and environment.
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
                phase: None,
            },
        },
    }
}

/// Removes the labels in which agents keep what they applied to themselves, environment
/// and options.
pub(crate) fn remove_agents_copies(settings: &mut Value) {
    let Some(Value::Object(labels)) = settings.pointer_mut("/createOptions/Labels") else { return };
    labels.remove("net.azure-devices.edge.env");
    labels.remove("net.azure-devices.edge.create-options");
}

pub(super) fn details(kind: Kind, state: &State) -> ModuleDetails {
    let labels: Map<String, Value> = state
        .labels
        .iter()
        .map(|(key, value)| (key.clone(), Value::String(value.clone())))
        .collect();
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
                // An end that nobody was told is shown as a failure: restart policies
                // then do their work.
                Some(ExitStatus {
                    exit_time: rfc3339(exit.at)?,
                    status_code: exit.code.unwrap_or(-1).to_string(),
                })
            }),
            runtime_status: RuntimeStatus {
                status: state.state.as_str().into(),
                description: state.note.clone(),
                phase: (state.state == ModuleState::Paused)
                    .then(|| state.state.as_str().to_owned()),
            },
        },
    }
}

/// Returns true if a module's container is the one that was registered. Another container
/// was made by something else, or was left behind when the daemon died while it made the
/// container. Such a container was never judged, has no identity and never will.
pub(super) fn is_registered(state: &State, registrations: &Registrations) -> bool {
    state.name.parse().ok().and_then(|module| registrations.of(&module)).is_some_and(|registration| {
        matches!(&registration.workload, Workload::Container { container, .. } if Some(container) == state.container.as_ref())
    })
}

/// A container as the API shows it. One that is not registered is shown as dead, which
/// makes agents replace it.
pub(super) fn container_details(state: &State, registrations: &Registrations) -> ModuleDetails {
    let mut details = details(Kind::Docker, state);
    if !is_registered(state, registrations) {
        details.status.runtime_status = RuntimeStatus {
            status: "dead".into(),
            description: Some(UNREGISTERED.into()),
            phase: None,
        };
    }
    details
}

/// A container that somebody renamed is shown under the name of the module that it is
/// registered for: under another, agents would remove it.
pub(super) fn named_as_registered(mut state: State, registrations: &Registrations) -> State {
    let module =
        state.container.as_ref().and_then(|container| registrations.of_container(container));
    if let Some(module) = module.filter(|module| module.name() != state.name) {
        state.note = Some(format!(
            "something else than this daemon renamed its container to {}",
            state.name
        ));
        state.name = module.name().to_owned();
    }
    state
}

/// Rows of a list of modules, one for each name.
#[derive(Debug, Default)]
pub(crate) struct Rows(BTreeMap<String, (bool, ModuleDetails)>);

impl Rows {
    /// Adds a row. Of two with one name the registered one stays, and of two such the
    /// first.
    pub(crate) fn add(&mut self, details: ModuleDetails, registered: bool) {
        let known = self.0.get(&details.name);
        if known.is_none_or(|(known, _)| registered && !known) {
            self.0.insert(details.name.clone(), (registered, details));
        }
    }

    /// The rows by their names.
    pub(crate) fn sorted(self) -> Vec<ModuleDetails> {
        self.0.into_values().map(|(_, details)| details).collect()
    }
}

/// Says it in the words that existing agents know. An unknown one they take for a fault
/// of the whole list, and then look after no module.
pub(crate) fn in_known_words(details: &mut ModuleDetails) {
    let status = &mut details.status.runtime_status;
    if status.status == ModuleState::Paused.as_str() {
        status.status = ModuleState::Stopped.as_str().to_owned();
    }
}

fn rfc3339(time: OffsetDateTime) -> Option<String> {
    time.to_offset(time::UtcOffset::UTC).format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, kind: &str, state: ModuleState) -> ModuleDetails {
        let state = State {
            name: name.into(),
            image: "image".into(),
            content: None,
            container: None,
            state,
            started: None,
            exit: None,
            labels: Vec::new(),
            note: None,
        };
        let mut details = details(Kind::Docker, &state);
        details.kind = kind.to_owned();
        details
    }

    #[test]
    fn a_name_is_listed_once_and_by_what_is_registered() {
        for own_first in [true, false] {
            let mut rows = Rows::default();
            let mut both = [("process", true), ("docker", false)];
            if !own_first {
                both.reverse();
            }
            for (kind, registered) in both {
                rows.add(row("edgeAgent", kind, ModuleState::Running), registered);
            }
            rows.add(row("a", "docker", ModuleState::Running), false);
            let seen: Vec<_> = rows.sorted().into_iter().map(|row| (row.name, row.kind)).collect();
            assert_eq!(
                seen,
                [("a".into(), "docker".into()), ("edgeAgent".to_owned(), "process".to_owned())]
            );
        }
    }

    #[test]
    fn existing_agents_get_no_word_that_they_do_not_know() {
        let mut paused = row("a", "docker", ModuleState::Paused);
        assert_eq!(paused.status.runtime_status.status, "paused");
        in_known_words(&mut paused);
        let told = paused.status.runtime_status;
        assert_eq!((told.status.as_str(), told.phase.as_deref()), ("stopped", Some("paused")));
        let mut failed = row("a", "docker", ModuleState::Failed);
        in_known_words(&mut failed);
        assert_eq!(failed.status.runtime_status.status, "failed");
    }
}
