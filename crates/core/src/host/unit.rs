//! systemd units and where their processes are in the cgroup tree.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name of a unit.
const LIMIT: usize = 255;

/// The text is not the name of a service unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected the name of a systemd service, for example \"collector.service\" or \"collector@north.service\"")]
pub struct UnitError;

/// The name of a systemd service that runs in `system.slice`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnitName(String);

impl UnitName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The cgroup in which systemd places the unit's processes, from the root of the hierarchy. Instances of a template
    /// have a slice in between.
    #[must_use]
    pub fn cgroup(&self) -> String {
        match self.0.split_once('@') {
            Some((template, _)) => format!("/system.slice/{}/{}", template_slice(template), self.0),
            None => format!("/system.slice/{}", self.0),
        }
    }

    /// Whether a process with this cgroup path is the unit's: in its group, or in one below.
    #[must_use]
    pub fn holds(&self, cgroup: &str) -> bool {
        let rest = cgroup.strip_prefix(self.cgroup().as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) && !cgroup.split('/').any(|part| part == "..")
    }
}

/// Slices use `-` for their own nesting, so systemd writes one in a template's name as `\x2d`.
fn template_slice(template: &str) -> String {
    format!("system-{}.slice", template.replace('-', "\\x2d"))
}

impl FromStr for UnitName {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let stem = text.strip_suffix(".service").filter(|stem| !stem.is_empty()).ok_or(UnitError)?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '\\' | '@');
        let instances = stem.matches('@').count();
        // A template itself, `x@.service`, never runs.
        let whole = instances == 0 || (instances == 1 && !stem.starts_with('@') && !stem.ends_with('@'));
        let plain = text.len() <= LIMIT && stem.chars().all(allowed) && !stem.starts_with('.');
        if whole && plain { Ok(Self(text.to_owned())) } else { Err(UnitError) }
    }
}

impl TryFrom<String> for UnitName {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<UnitName> for String {
    fn from(name: UnitName) -> Self {
        name.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unit(text: &str) -> UnitName {
        text.parse().expect("a unit's name")
    }

    #[test]
    fn a_unit_holds_its_own_group_and_those_below_and_no_other() {
        let unit = unit("collector.service");
        for path in ["/system.slice/collector.service", "/system.slice/collector.service/worker"] {
            assert!(unit.holds(path), "{path}");
        }
        for path in [
            "/",
            "/collector.service",
            "/system.slice/collector.service2",
            "/system.slice/collector.servic",
            "/system.slice/other.service",
            "/docker/abc/system.slice/collector.service",
            "/user.slice/user-1000.slice/user@1000.service/system.slice/collector.service",
            "/system.slice/collector.service/../other.service",
            "/../system.slice/collector.service",
            "system.slice/collector.service",
        ] {
            assert!(!unit.holds(path), "{path}");
        }
    }

    #[test]
    fn an_instance_lies_in_its_templates_slice() {
        assert_eq!(
            unit("serial-getty@ttyS0.service").cgroup(),
            "/system.slice/system-serial\\x2dgetty.slice/serial-getty@ttyS0.service"
        );
    }

    #[test]
    fn what_is_no_running_service_is_refused() {
        for text in [
            "",
            ".service",
            "a.socket",
            "a@.service",
            "@a.service",
            "a@b@c.service",
            "a/b.service",
            "..service",
            "a b.service",
        ] {
            assert_eq!(text.parse::<UnitName>(), Err(UnitError), "{text}");
        }
    }

    proptest! {
        /// Whatever a unit is called, another unit's group is never its own.
        #[test]
        fn no_two_units_share_a_process(one in "[a-z@.-]{1,8}", other in "[a-z@.-]{1,8}", below in "(/[a-z.]{1,6}){0,2}") {
            let (Ok(one), Ok(other)) = (format!("{one}.service").parse::<UnitName>(), format!("{other}.service").parse::<UnitName>()) else {
                return Ok(());
            };
            let path = format!("{}{below}", one.cgroup());
            prop_assert!(!(one != other && one.holds(&path) && other.holds(&path)));
        }
    }
}
