//! Placement of a host module's processes, so that they can be told from others, bounded
//! and ended as a whole. The processes are put into a scope that systemd makes for them,
//! or into a group below the daemon's own. Pure: what the machine offers comes in as a
//! value.

use serde::{Deserialize, Serialize};

use crate::id::ModuleId;

/// The slice that all scopes of host modules are in.
pub const SLICE: &str = "edgekeep.slice";

/// The use of systemd scopes for host modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScopeUse {
    /// Scopes are used where systemd runs and the daemon is root or a service. Where
    /// systemd makes none, modules are put below the daemon's own group.
    #[default]
    Auto,
    /// Scopes are used, or modules are not started.
    Required,
    /// Scopes are never used.
    Off,
}

/// The features of the machine that the placement depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// systemd is the first process of the daemon's pid namespace.
    pub systemd: bool,
    /// Its `systemd-run` is installed.
    pub tool: bool,
    /// The daemon is root, and so needs nobody's leave to have a scope made.
    pub root: bool,
    /// The daemon is a service of the system, whose user may have been given that leave.
    pub service: bool,
}

/// The place of a host module's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Into a scope of its own: it outlives the daemon's unit, and systemd keeps its
    /// limits.
    Scope {
        /// True if the module is started below the daemon's group when systemd makes no
        /// scope.
        or_below: bool,
    },
    /// Into a group below the daemon's own, if one can be made.
    Below,
}

/// Scopes are required, and there is nothing that makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// No systemd.
    #[error("systemd does not run here; host_module_scopes = \"auto\" goes without")]
    NoSystemd,
    /// No `systemd-run`.
    #[error("systemd-run is not installed; host_module_scopes = \"auto\" goes without")]
    NoTool,
}

/// Chooses.
///
/// # Errors
/// Scopes are required and cannot be had.
pub fn place(wanted: ScopeUse, machine: Machine) -> Result<Placement, PlacementError> {
    match wanted {
        ScopeUse::Auto if machine.systemd && machine.tool && (machine.root || machine.service) => {
            Ok(Placement::Scope { or_below: true })
        }
        ScopeUse::Auto | ScopeUse::Off => Ok(Placement::Below),
        ScopeUse::Required if !machine.systemd => Err(PlacementError::NoSystemd),
        ScopeUse::Required if !machine.tool => Err(PlacementError::NoTool),
        ScopeUse::Required => Ok(Placement::Scope { or_below: false }),
    }
}

/// The name of a module's scope. `instance` keeps devices on one machine apart. A
/// module's name has no character that the name of a unit could not have, so there is
/// nothing to be escaped.
#[must_use]
pub fn scope_name(instance: Option<&str>, module: &ModuleId) -> String {
    let instance = instance.map(|instance| format!("{instance}-")).unwrap_or_default();
    format!("edgekeep-{instance}m-{}.scope", module.name())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host::UnitName;

    fn machine() -> impl Strategy<Value = Machine> {
        (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(systemd, tool, root, service)| Machine { systemd, tool, root, service })
    }

    fn wanted() -> impl Strategy<Value = ScopeUse> {
        prop_oneof![Just(ScopeUse::Auto), Just(ScopeUse::Required), Just(ScopeUse::Off)]
    }

    fn module() -> impl Strategy<Value = ModuleId> {
        "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
            .prop_filter_map("a module's name", |name| name.parse().ok())
    }

    proptest! {
        #[test]
        fn a_scope_is_asked_for_only_where_systemd_can_be_asked(wanted in wanted(), machine in machine()) {
            if let Ok(Placement::Scope { .. }) = place(wanted, machine) {
                prop_assert!(machine.systemd && machine.tool && wanted != ScopeUse::Off);
                prop_assert!(machine.root || machine.service || wanted == ScopeUse::Required);
            }
        }

        #[test]
        fn what_is_required_is_had_or_refused_and_nothing_else_is_refused(wanted in wanted(), machine in machine()) {
            let placed = place(wanted, machine);
            let fits = match wanted {
                ScopeUse::Required => matches!(placed, Err(_) | Ok(Placement::Scope { or_below: false })),
                ScopeUse::Auto => matches!(placed, Ok(Placement::Below | Placement::Scope { or_below: true })),
                ScopeUse::Off => placed == Ok(Placement::Below),
            };
            prop_assert!(fits, "{placed:?}");
        }

        #[test]
        fn every_module_of_every_device_has_a_scope_of_its_own_with_a_name_that_systemd_takes(
            one in (module(), prop::option::of("[0-9a-f]{8}")), other in (module(), prop::option::of("[0-9a-f]{8}")),
        ) {
            let [name, another] = [&one, &other].map(|(module, instance)| scope_name(instance.as_deref(), module));
            prop_assert!(name.parse::<UnitName>().is_ok(), "{name}");
            prop_assert_eq!(name == another, one.0.name() == other.0.name() && one.1 == other.1);
        }
    }
}
