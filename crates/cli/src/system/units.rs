//! Units, judged by what `systemctl show` says of them.

use serde::Serialize;

use crate::output::{Columns, Hue, Style};

/// The daemons' services, in the order in which they start.
pub(super) const SERVICES: [&str; 3] =
    ["edgekeep-keyd.service", "edgekeep-identityd.service", "edgekeep-moduled.service"];
/// The sockets that others call the daemons at.
pub(super) const SOCKETS: [&str; 6] = [
    "edgekeep-keyd.socket",
    "edgekeep-tpmd.socket",
    "edgekeep-identityd.socket",
    "edgekeep-certd.socket",
    "edgekeep-mgmt.socket",
    "edgekeep-workload.socket",
];

/// A unit of systemd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Unit {
    pub(super) id: String,
    /// `Running`, `Ready` or `Down`.
    state: Word,
    /// Systemd's own words.
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    /// The unit runs, or listens.
    Running,
    /// The unit does not run, and a call starts it.
    Ready,
    /// The unit should run and does not.
    Down,
}

impl Unit {
    pub(super) fn is_good(&self) -> bool {
        self.state != Word::Down
    }

    fn of(block: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().to_owned()
        };
        let id = Some(field("Id")).filter(|id| !id.is_empty())?;
        let (load, active, sub) = (field("LoadState"), field("ActiveState"), field("SubState"));
        let is_socket = id.ends_with(".socket");
        let (state, detail) = match (load.as_str(), active.as_str()) {
            ("loaded", "active") => (Word::Running, sub),
            // Without its socket a daemon that is not running stays so.
            ("loaded", "inactive") if !is_socket => (Word::Ready, sub),
            ("loaded", active) => {
                let result = field("Result");
                let why = if matches!(result.as_str(), "" | "success") { sub } else { result };
                (Word::Down, format!("{active} ({why})"))
            }
            (load, _) => (Word::Down, load.to_owned()),
        };
        Some(Self { id, state, detail })
    }
}

/// Reads the answer about several units.
pub(super) fn read(shown: &str) -> Vec<Unit> {
    shown.split("\n\n").filter_map(Unit::of).collect()
}

/// The units, one a line.
pub(super) fn table(units: &[Unit], style: Style) -> String {
    let mut columns = Columns::default();
    for unit in units {
        let (hue, words) = match unit.state {
            Word::Running => (Hue::Good, "Running".to_owned()),
            Word::Ready => (Hue::Plain, "Ready".to_owned()),
            Word::Down => (Hue::Bad, format!("Down - {}", unit.detail)),
        };
        let name = unit.id.strip_suffix(".service").unwrap_or(&unit.id);
        columns.row(vec![(Hue::Plain, name.to_owned()), (hue, words)]);
    }
    format!("System services:\n{}", columns.render(style, "    "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "Id=edgekeep-keyd.service\nLoadState=loaded\nActiveState=active\nSubState=running\nResult=success\n\n\
        Id=edgekeep-identityd.service\nLoadState=loaded\nActiveState=inactive\nSubState=dead\nResult=success\n\n\
        Id=edgekeep-moduled.service\nLoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code\n\n\
        Id=edgekeep-mgmt.socket\nLoadState=loaded\nActiveState=inactive\nSubState=dead\nResult=success\n\n\
        Id=edgekeep-certd.socket\nLoadState=not-found\nActiveState=inactive\nSubState=dead\n";

    #[test]
    fn each_state_has_its_word() {
        let units = read(SHOWN);
        assert_eq!(
            table(&units, Style::plain()),
            "System services:\n    edgekeep-keyd          Running\n    edgekeep-identityd     Ready\n    \
             edgekeep-moduled       Down - failed (exit-code)\n    edgekeep-mgmt.socket   Down - inactive (dead)\n    \
             edgekeep-certd.socket  Down - not-found\n"
        );
        let good: Vec<bool> = units.iter().map(Unit::is_good).collect();
        assert_eq!(good, [true, true, false, false, false]);
        assert_eq!(read("no unit here\n\n"), []);
    }
}
