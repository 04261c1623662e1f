//! Reading of the engine's description of a container. Pure.

use std::collections::BTreeMap;

use edgekeep_core::container::Phase;
use edgekeep_core::create_options::{MadeMount, Volume};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::ContainerId;
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::create::{OPTIONS_LABEL, ORIGINAL_IMAGE_LABEL, OWNER, OWNER_LABEL};
use crate::status::{ExitStatus, ModuleState, ModuleStatus};

/// A container, as its inspection shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// Its name, without the engine's leading slash.
    pub name: String,
    /// The image that it runs: its content id, not what its tag names now.
    pub image: Sha256Digest,
    /// The first process, while there is one.
    pub init_pid: Option<u32>,
    /// State in the words of the management API.
    pub state: ModuleState,
    /// State in the engine's own word.
    pub phase: String,
    /// Time of the last start; `None` if no start is known.
    pub started: Option<OffsetDateTime>,
    /// Time and code of the last end; `None` if no end is known.
    pub exit: Option<ExitStatus>,
    /// Its labels.
    pub labels: Vec<(String, String)>,
}

impl Container {
    /// Reads an inspection; `None` if it has not the documented form.
    #[must_use]
    pub fn from_inspect(answer: &Value) -> Option<Self> {
        let state = &answer["State"];
        let phase = state["Status"].as_str().unwrap_or_default();
        let exit_code = state["ExitCode"].as_i64();
        let finished = engine_time(&state["FinishedAt"]);
        let labels = answer["Config"]["Labels"].as_object();
        let pid = state["Pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        Some(Self {
            id: answer["Id"].as_str()?.parse().ok()?,
            name: answer["Name"].as_str()?.trim_start_matches('/').to_owned(),
            image: answer["Image"].as_str()?.parse().ok()?,
            init_pid: pid.filter(|&pid| pid != 0 && state["Running"].as_bool() == Some(true)),
            state: module_state(phase, exit_code),
            phase: phase.to_owned(),
            started: engine_time(&state["StartedAt"]),
            exit: finished.zip(exit_code).map(|(at, code)| ExitStatus { at, code: Some(code) }),
            labels: labels
                .into_iter()
                .flatten()
                .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
                .collect(),
        })
    }

    /// The value of one label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(present, _)| present == name).map(|(_, value)| value.as_str())
    }

    /// Returns true if the container is labelled as a module.
    #[must_use]
    pub fn is_module(&self) -> bool {
        self.label(OWNER_LABEL) == Some(OWNER)
    }

    /// The digest of the create options, if moduled made the container.
    #[must_use]
    pub fn options(&self) -> Option<Sha256Digest> {
        self.label(OPTIONS_LABEL)?.parse().ok()
    }

    /// The container as the management API lists it.
    #[must_use]
    pub fn status(&self) -> ModuleStatus {
        ModuleStatus {
            name: self.name.clone(),
            image: self.label(ORIGINAL_IMAGE_LABEL).unwrap_or(&self.name).to_owned(),
            content: Some(self.image),
            container: Some(self.id.clone()),
            state: self.state,
            started: self.started,
            exit: self.exit,
            labels: self.labels.clone(),
            note: None,
        }
    }
}

/// A container, as the engine's list of all containers shows it: less than an inspection
/// says.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Listed {
    /// Its id.
    #[serde(rename = "Id")]
    pub(crate) id: String,
    #[serde(rename = "Names", default)]
    names: Vec<String>,
    #[serde(rename = "State", default)]
    phase: String,
}

impl Listed {
    /// Returns true if a container that was inspected before still has this name and is
    /// in the same phase of its life.
    pub(crate) fn agrees_with(&self, name: &str, phase: &str) -> bool {
        self.phase == phase
            && self.names.iter().any(|listed| listed.trim_start_matches('/') == name)
    }
}

/// Reads the mounts of a container from its inspection; `None` if the inspection has not
/// the documented form.
pub(super) fn mounts(answer: &Value) -> Option<Vec<MadeMount>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let one = |mount: &Value| {
        Some(MadeMount {
            kind: text(&mount["Type"])?,
            name: text(&mount["Name"]).filter(|name| !name.is_empty()),
            source: text(&mount["Source"]).unwrap_or_default(),
            target: text(&mount["Destination"])?,
            writable: mount["RW"].as_bool()?,
            shared: matches!(mount["Propagation"].as_str(), Some("shared" | "rshared")),
        })
    };
    match &answer["Mounts"] {
        Value::Null => Some(Vec::new()),
        Value::Array(mounts) => mounts.iter().map(one).collect(),
        _ => None,
    }
}

/// Reads a volume from its inspection; `None` if the inspection has not the documented
/// form.
pub(super) fn volume(answer: &Value) -> Option<Volume> {
    let driver = answer["Driver"].as_str()?.to_owned();
    let options = match &answer["Options"] {
        Value::Null => BTreeMap::new(),
        Value::Object(options) => {
            let text =
                |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
            options.iter().map(text).collect::<Option<_>>()?
        }
        _ => return None,
    };
    Some(Volume { driver, options })
}

fn module_state(status: &str, exit_code: Option<i64>) -> ModuleState {
    match Phase::from_word(status) {
        Phase::Created | Phase::Restarting => ModuleState::Stopped,
        Phase::Paused => ModuleState::Paused,
        // What was told to end still runs.
        Phase::Running | Phase::Stopping => ModuleState::Running,
        Phase::Exited | Phase::Removing if exit_code == Some(0) => ModuleState::Stopped,
        Phase::Exited | Phase::Removing => ModuleState::Failed,
        Phase::Dead => ModuleState::Dead,
        Phase::Unknown => ModuleState::Unknown,
    }
}

/// The engine writes "never" as the year 1.
fn engine_time(value: &Value) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(value.as_str()?, &Rfc3339).ok().filter(|time| time.year() > 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn inspection() -> Value {
        json!({
            "Id": "a".repeat(64), "Name": "/thermometer", "Image": format!("sha256:{}", "b".repeat(64)),
            "State": { "Status": "running", "Running": true, "Pid": 42, "ExitCode": 0,
                       "StartedAt": "2026-01-02T03:04:05.123456789Z", "FinishedAt": "0001-01-01T00:00:00Z" },
            "Config": { "Image": "tag-that-may-move:1", "Labels": {
                OWNER_LABEL: OWNER, ORIGINAL_IMAGE_LABEL: "registry/thermometer:1", OPTIONS_LABEL: format!("sha256:{}", "c".repeat(64)) } },
        })
    }

    #[test]
    fn a_running_module_is_read_with_the_image_that_runs() {
        let container = Container::from_inspect(&inspection()).expect("documented form");
        assert_eq!(container.image.hex(), "b".repeat(64));
        assert_eq!(container.options().expect("labelled").hex(), "c".repeat(64));
        assert_eq!(container.init_pid, Some(42));
        assert_eq!(container.exit, None, "it has not ended yet");
        let status = container.status();
        assert_eq!(
            (status.name.as_str(), status.image.as_str()),
            ("thermometer", "registry/thermometer:1")
        );
    }

    #[test]
    fn engine_states_become_module_states() {
        for (status, code, state) in [
            ("created", 0, ModuleState::Stopped),
            ("paused", 0, ModuleState::Paused),
            ("restarting", 1, ModuleState::Stopped),
            ("running", 0, ModuleState::Running),
            ("exited", 0, ModuleState::Stopped),
            ("exited", 137, ModuleState::Failed),
            ("removing", 1, ModuleState::Failed),
            ("dead", 0, ModuleState::Dead),
            ("stopped", 3, ModuleState::Failed),
            ("stopping", 0, ModuleState::Running),
            ("initialized", 0, ModuleState::Stopped),
            ("something new", 0, ModuleState::Unknown),
        ] {
            assert_eq!(module_state(status, Some(code)), state, "{status} {code}");
        }
    }

    #[test]
    fn an_ended_container_has_no_first_process_and_says_how_it_ended() {
        let mut answer = inspection();
        answer["State"]["Running"] = false.into();
        answer["State"]["ExitCode"] = 3.into();
        answer["State"]["FinishedAt"] = "2026-01-02T04:00:00Z".into();
        let container = Container::from_inspect(&answer).expect("documented form");
        assert_eq!(container.init_pid, None);
        assert_eq!(container.exit.expect("ended").code, Some(3));
    }

    #[test]
    fn a_listed_container_agrees_with_its_own_name_and_phase_only() {
        let listed = json!({ "Id": "a", "Names": ["/thermometer", "/other/alias"], "State": "running", "Status": "Up" });
        let listed: Listed = serde_json::from_value(listed).expect("documented form");
        assert!(listed.agrees_with("thermometer", "running"));
        assert!(!listed.agrees_with("thermometer", "exited"), "it ended since");
        assert!(!listed.agrees_with("alias", "running"), "it was renamed since");
        let bare: Listed = serde_json::from_value(json!({ "Id": "a" })).expect("an id is enough");
        assert!(!bare.agrees_with("", ""), "what the engine does not say agrees with nothing");
    }

    #[test]
    fn the_mounts_and_volumes_of_an_inspection_are_read_or_it_is_not_believed() {
        let mut answer = json!({ "Mounts": [
            { "Type": "volume", "Name": "v", "Source": "/d/v/_data", "Destination": "/x", "Driver": "local", "RW": true },
            { "Type": "bind", "Source": "/etc", "Destination": "/e", "RW": false, "Propagation": "rshared" } ] });
        let found = mounts(&answer).expect("documented form");
        assert_eq!(
            (found[0].name.as_deref(), found[0].writable, found[0].shared),
            (Some("v"), true, false)
        );
        assert_eq!(
            (found[1].kind.as_str(), found[1].source.as_str(), found[1].shared),
            ("bind", "/etc", true)
        );
        for member in ["Type", "Destination", "RW"] {
            let mut other = answer.clone();
            other["Mounts"][0][member] = Value::Null;
            assert_eq!(mounts(&other), None, "{member}");
        }
        answer["Mounts"] = "none".into();
        assert_eq!(mounts(&answer), None);
        let made = volume(&json!({ "Driver": "local", "Options": { "device": "/etc" } }))
            .expect("documented form");
        assert_eq!(made.options["device"], "/etc");
        assert_eq!(volume(&json!({ "Driver": "local", "Options": ["x"] })), None);
        assert_eq!(volume(&json!({ "Options": null })), None);
    }

    #[test]
    fn an_inspection_without_id_or_image_is_not_believed() {
        for member in ["Id", "Image", "Name"] {
            let mut answer = inspection();
            answer[member] = "x y".into();
            if member != "Name" {
                assert_eq!(Container::from_inspect(&answer), None, "{member}");
            }
            answer[member] = Value::Null;
            assert_eq!(Container::from_inspect(&answer), None, "{member}");
        }
    }
}
