//! A module's specification as it comes in, checked once.

use std::collections::BTreeMap;

use edgekeep_api::management::{ModuleSettings, ModuleSpec};
use edgekeep_core::id::{IdError, ModuleId};

use crate::modules::error::ModuleError;

/// The runtime of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A container of the engine.
    Docker,
    /// A process of the host.
    Process,
}

impl Kind {
    /// The word on the wire.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Process => "process",
        }
    }
}

/// A specification that has been checked.
#[derive(Debug)]
pub(crate) struct ValidSpec {
    /// The module.
    pub(crate) module: ModuleId,
    /// Its runtime.
    pub(crate) kind: Kind,
    /// True if a missing image is an error and is not pulled.
    pub(crate) never_pull: bool,
    /// Image, options, credentials.
    pub(crate) settings: ModuleSettings,
    /// Environment.
    pub(crate) env: BTreeMap<String, String>,
    /// Labels that are put on a container beside the owner's.
    pub(crate) labels: BTreeMap<String, String>,
}

impl TryFrom<&ModuleSpec> for ValidSpec {
    type Error = ModuleError;

    /// Checks a request (wire facts 2.3): each fault is a 400 with what is wrong.
    fn try_from(spec: &ModuleSpec) -> Result<Self, ModuleError> {
        let module = spec
            .name
            .parse()
            .map_err(|error: IdError| ModuleError::Invalid(format!("invalid name: {error}")))?;
        let module: ModuleId = module;
        if module.name().ends_with(".sock") {
            return Err(ModuleError::Invalid(
                "invalid name: a module's name must not end in \".sock\"".to_owned(),
            ));
        }
        let kind = match spec.kind.as_str() {
            "docker" => Kind::Docker,
            "process" => Kind::Process,
            other => {
                let shown: String = other.chars().take(32).collect();
                return Err(ModuleError::Invalid(format!(
                    "invalid type {shown:?}: expected \"docker\" or \"process\""
                )));
            }
        };
        let never_pull = match spec.image_pull_policy.as_deref() {
            None => false,
            Some(policy) if policy.eq_ignore_ascii_case("on-create") => false,
            Some(policy) if policy.eq_ignore_ascii_case("never") => true,
            Some(_) => return Err(ModuleError::Invalid("invalid imagePullPolicy".to_owned())),
        };
        // The text of the error is not passed on: it may quote credentials.
        let settings: ModuleSettings = serde_json::from_value(spec.config.settings.clone()).map_err(|_| {
            ModuleError::Invalid(
                "invalid Docker config: expected image, and createOptions as an object where it is given".to_owned(),
            )
        })?;
        if settings.image.trim().is_empty() {
            return Err(ModuleError::Invalid("invalid Docker config: image is empty".to_owned()));
        }
        let mut env = BTreeMap::new();
        for variable in spec.config.env.iter().flatten() {
            if variable.key.is_empty()
                || variable.key.contains(['=', '\0'])
                || variable.value.contains('\0')
            {
                return Err(ModuleError::Invalid(
                    "invalid env var: a name must be non-empty and without '='".to_owned(),
                ));
            }
            if env.insert(variable.key.clone(), variable.value.clone()).is_some() {
                let shown: String = variable.key.chars().take(64).collect();
                return Err(ModuleError::Invalid(format!("duplicate env var key: {shown}")));
            }
        }
        Ok(Self { module, kind, never_pull, settings, env, labels: BTreeMap::new() })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(change: impl FnOnce(&mut serde_json::Value)) -> Result<ValidSpec, ModuleError> {
        let mut value = json!({"name": "thermometer", "type": "docker", "config": {
            "settings": {"image": "thermometer:1.0", "createOptions": {}, "auth": null},
            "env": [{"key": "A", "value": "1"}]}});
        change(&mut value);
        ValidSpec::try_from(&serde_json::from_value::<ModuleSpec>(value).unwrap())
    }

    #[test]
    fn a_usual_specification_is_accepted() {
        let spec = spec(|_| ()).unwrap();
        assert_eq!(
            (spec.module.as_str(), spec.kind, spec.never_pull),
            ("thermometer", Kind::Docker, false)
        );
        assert_eq!(spec.env["A"], "1");
    }

    /// A change of the specification.
    type Fault = fn(&mut serde_json::Value);

    #[test]
    fn each_fault_is_named() {
        let faults: [(Fault, &str); 9] = [
            (|spec| spec["name"] = json!(" "), "invalid name"),
            (|spec| spec["name"] = json!("../x"), "invalid name"),
            (|spec| spec["name"] = json!("a.sock"), "invalid name"),
            (|spec| spec["type"] = json!("vm"), "invalid type \"vm\""),
            (|spec| spec["imagePullPolicy"] = json!("sometimes"), "invalid imagePullPolicy"),
            (|spec| spec["config"]["settings"] = json!({}), "invalid Docker config"),
            (
                |spec| spec["config"]["settings"]["createOptions"] = json!(null),
                "invalid Docker config",
            ),
            (
                |spec| {
                    spec["config"]["env"] =
                        json!([{"key": "A", "value": "1"}, {"key": "A", "value": "2"}]);
                },
                "duplicate env var key: A",
            ),
            (
                |spec| spec["config"]["env"] = json!([{"key": "A=B", "value": "1"}]),
                "invalid env var",
            ),
        ];
        for (fault, message) in faults {
            let error = spec(fault).unwrap_err();
            assert!(matches!(error, ModuleError::Invalid(_)), "{error:?}");
            assert!(error.to_string().starts_with(message), "{error} instead of {message}");
        }
    }
}
