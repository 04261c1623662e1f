//! systemd units and where their processes are in the cgroup tree.
//!
//! systemd puts a unit's processes into a group of the unit's name, below its slice, and
//! that below the slices in whose names its own begins (`a-b.slice` lies in `a.slice`).
//! Slices are the system's: nobody is handed one. So, seen from the root of the
//! hierarchy, the first group that is no slice is the unit, and what is below may be the
//! making of whoever runs in it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name of a unit.
const LIMIT: usize = 255;

/// The text is not the name of a service or scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// It is no such name.
    #[error(
        "expected the name of a systemd service or scope, for example \"collector.service\", \"collector@north.service\" or \
         \"user@1000.service/collector.service\""
    )]
    NotAUnit,
    /// It is the scope of a login.
    #[error("the scope of a login session belongs to whoever logs in next; name a service")]
    Session,
}

/// The name of a systemd service or scope, in whatever slice; or, after the name of a
/// user's manager and a slash, of one that this user's own systemd runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnitName(String);

impl UnitName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The units in whose groups its processes are, each in the one before: its own, or a
    /// user's manager and its own.
    pub fn nesting(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Returns true if a user decides what runs in the unit. The name alone then proves
    /// nothing but who the user is.
    #[must_use]
    pub fn is_a_users(&self) -> bool {
        self.0.split('/').next().is_some_and(|first| user_of_manager(first).is_some())
    }

    /// Returns true if a process with this cgroup path belongs to the unit: the process
    /// is in the unit's group, or in a group below.
    #[must_use]
    pub fn holds(&self, cgroup: &str) -> bool {
        let Some(path) = cgroup.strip_prefix('/') else { return false };
        if path.split('/').any(|group| matches!(group, "" | "." | "..")) {
            return false;
        }
        let mut groups = path.split('/');
        self.nesting().all(|unit| next_unit(&mut groups) == Some(unit))
    }
}

/// The unit of the first group that is no slice, if all before it are slices nested as
/// systemd nests them.
fn next_unit<'a>(groups: &mut impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut above = "";
    for group in groups {
        let unit = unescaped(group);
        let Some(slice) = unit.strip_suffix(".slice") else { return Some(unit) };
        if !lies_in(slice, above) {
            return None;
        }
        above = slice;
    }
    None
}

/// The unit that a group is named for. systemd puts `_` before a name that could be that
/// of a control file (`memory.service`), and before one that begins so anyway.
fn unescaped(group: &str) -> &str {
    group.strip_prefix('_').unwrap_or(group)
}

/// Returns true if a slice lies directly in the slice above; `""` is the root.
fn lies_in(slice: &str, above: &str) -> bool {
    let own = match above {
        "" => Some(slice),
        above => slice.strip_prefix(above).and_then(|rest| rest.strip_prefix('-')),
    };
    own.is_some_and(|own| !own.is_empty() && !own.contains('-'))
}

/// The user of `user@UID.service`.
fn user_of_manager(unit: &str) -> Option<&str> {
    let user = unit.strip_prefix("user@")?.strip_suffix(".service")?;
    (!user.is_empty() && user.bytes().all(|c| c.is_ascii_digit())).then_some(user)
}

fn check(unit: &str) -> Result<(), UnitError> {
    let stem = unit.strip_suffix(".service").or_else(|| unit.strip_suffix(".scope"));
    let stem = stem.filter(|stem| !stem.is_empty()).ok_or(UnitError::NotAUnit)?;
    let allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '\\' | '@');
    let instances = stem.matches('@').count();
    // A template itself, `x@.service`, never runs.
    let whole =
        instances == 0 || (instances == 1 && !stem.starts_with('@') && !stem.ends_with('@'));
    let plain = unit.len() <= LIMIT && stem.chars().all(allowed) && !stem.starts_with('.');
    if !whole || !plain {
        return Err(UnitError::NotAUnit);
    }
    if unit.starts_with("session-") && unit.ends_with(".scope") {
        Err(UnitError::Session)
    } else {
        Ok(())
    }
}

impl FromStr for UnitName {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match text.split_once('/') {
            None => check(text)?,
            Some((manager, unit)) if user_of_manager(manager).is_some() => check(unit)?,
            Some(_) => return Err(UnitError::NotAUnit),
        }
        Ok(Self(text.to_owned()))
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
    fn a_unit_holds_its_own_group_and_those_below_in_whatever_slice_systemd_puts_it() {
        for (name, path) in [
            ("collector.service", "/system.slice/collector.service"),
            ("collector.service", "/system.slice/collector.service/worker"),
            ("collector.service", "/collector.service"),
            ("collector.service", "/plant.slice/plant-line7.slice/collector.service"),
            ("collector.service", "/user.slice/user-1000.slice/collector.service"),
            (
                "serial-getty@ttyS0.service",
                "/system.slice/system-serial\\x2dgetty.slice/serial-getty@ttyS0.service",
            ),
            ("memory.service", "/system.slice/_memory.service"),
            ("_own.service", "/system.slice/__own.service"),
            ("collector.scope", "/edge.slice/collector.scope"),
            (
                "user@1000.service/collector.service",
                "/user.slice/user-1000.slice/user@1000.service/app.slice/collector.service/worker",
            ),
            (
                "user@1000.service/app@x.service",
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-app.slice/app@x.service",
            ),
            (
                "user@1000.service",
                "/user.slice/user-1000.slice/user@1000.service/app.slice/anything.service",
            ),
        ] {
            assert!(unit(name).holds(path), "{name} {path}");
        }
    }

    #[test]
    fn groups_that_only_look_like_a_units_are_nobodys() {
        let unit = unit("collector.service");
        for path in [
            "",
            "/",
            "/system.slice",
            "/system.slice/collector.service2",
            "/system.slice/collector.servic",
            "/system.slice/other.service",
            "/system.slice/other.service/collector.service",
            "/system.slice/collector.service (deleted)",
            // A user's own manager, and a user's own group below it.
            "/user.slice/user-1000.slice/user@1000.service/app.slice/collector.service",
            "/user.slice/user-1000.slice/user@1000.service/system.slice/collector.service",
            "/user.slice/user-1000.slice/session-3.scope/system.slice/collector.service",
            // A container, with and without systemd inside, and a cgroup made by hand.
            "/docker/abc/system.slice/collector.service",
            "/machine.slice/libpod-abc.scope/system.slice/collector.service",
            "/evil/collector.service",
            // Slices that systemd would not nest so.
            "/system.slice/plant.slice/collector.service",
            "/plant-line7.slice/collector.service",
            "/plant.slice/plantation-x.slice/collector.service",
            "/plant.slice/plant-a-b.slice/collector.service",
            "/.slice/collector.service",
            "/system.slice/collector.service/../other.service",
            "/system.slice//collector.service",
            "/../system.slice/collector.service",
            "system.slice/collector.service",
        ] {
            assert!(!unit.holds(path), "{path}");
        }
        let other_users =
            "/user.slice/user-1001.slice/user@1001.service/app.slice/collector.service";
        assert!(!self::unit("user@1000.service/collector.service").holds(other_users));
    }

    #[test]
    fn what_is_no_running_service_or_scope_is_refused() {
        for text in [
            "",
            ".service",
            "a.socket",
            "a.slice",
            "a@.service",
            "@a.service",
            "a@b@c.service",
            "a/b.service",
            "user@1000.service/",
            "user@.service/a.service",
            "user@1000.service/app.slice/a.service",
            "system.slice/a.service",
            "..service",
            "a b.service",
        ] {
            assert_eq!(text.parse::<UnitName>(), Err(UnitError::NotAUnit), "{text}");
        }
        assert_eq!("session-3.scope".parse::<UnitName>(), Err(UnitError::Session));
        let users = ["user@1000.service", "user@1000.service/a.service"]
            .map(|name| unit(name).is_a_users());
        let systems = ["user@plant.service", "user.service", "a@1000.service"]
            .map(|name| unit(name).is_a_users());
        assert_eq!((users, systems), ([true; 2], [false; 3]));
    }

    /// Slices nested as systemd nests them, as a path.
    fn slices() -> impl Strategy<Value = String> {
        prop::collection::vec("[a-z]{1,4}", 0..4).prop_map(|parts| {
            (1..=parts.len()).map(|depth| format!("/{}.slice", parts[..depth].join("-"))).collect()
        })
    }

    proptest! {
        #[test]
        fn the_slice_and_what_is_below_make_no_difference(
            slices in slices(), name in "[a-z][a-z.-]{0,5}(@[a-z]{1,3})?\\.(service|scope)", below in "(/[a-z@.-]{0,3}[a-z]){0,3}",
        ) {
            prop_assume!(name.parse::<UnitName>().is_ok());
            let path = format!("{slices}/{name}{below}");
            prop_assert!(unit(&name).holds(&path), "{path}");
        }

        /// Whoever runs in a unit, user manager or container, makes groups below it under
        /// any name, and is still not another unit.
        #[test]
        fn nothing_that_can_be_made_inside_a_unit_is_another(
            slices in slices(),
            inside in "(user@[0-9]{1,4}\\.service|session-[0-9]\\.scope|docker|[0-9a-f]{8}|[a-z]{1,5}\\.(service|scope))",
            made in prop::collection::vec("(a\\.service|a\\.slice|system\\.slice|\\.\\.|_?a\\.service|[a-z.@_-]{1,8})", 0..5),
        ) {
            let path = format!("{slices}/{inside}/{}/a.service", made.join("/"));
            prop_assert!(inside == "a.service" || !unit("a.service").holds(&path), "{path}");
        }

        /// However a path is put together: if it is a unit's, then all before that unit
        /// are slices, each in the one before.
        #[test]
        fn what_is_held_lies_in_nested_slices_only(
            path in "(/(a\\.slice|a-b\\.slice|b\\.slice|-\\.slice|_?a\\.service|\\.\\.|user@1\\.service|x|)){0,6}",
        ) {
            if unit("a.service").holds(&path) {
                let groups: Vec<&str> = path[1..].split('/').collect();
                let at = groups.iter().position(|group| group.ends_with("a.service")).expect("is there");
                let above: &[&str] = &groups[..at];
                let nested: [&[&str]; 4] = [&[], &["a.slice"], &["b.slice"], &["a.slice", "a-b.slice"]];
                prop_assert!(nested.contains(&above), "{path}");
            }
        }

        /// Whatever a unit is called, another unit's group is never its own.
        #[test]
        fn no_two_units_share_a_process(one in "[a-z@.-]{1,8}", other in "[a-z@.-]{1,8}", path in "(/[a-z@.-]{1,8}\\.(service|slice)){0,3}") {
            let (Ok(one), Ok(other)) = (format!("{one}.service").parse::<UnitName>(), format!("{other}.service").parse::<UnitName>()) else {
                return Ok(());
            };
            for path in [format!("/{one}{path}"), format!("{path}/{other}")] {
                prop_assert!(one == other || !(one.holds(&path) && other.holds(&path)), "{path}");
            }
        }
    }
}
