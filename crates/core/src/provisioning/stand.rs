//! Stand of a device's provisioning, for people.

use std::time::Duration;

use super::{Activity, State};

/// Stand of a device's provisioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stand {
    /// The work that is under way: `idle`, `asking`, `waiting`, `proving`, `storing` or
    /// `pausing`.
    pub activity: &'static str,
    /// Failed attempts since the last success.
    pub failures: u32,
    /// Monotonic time of the next call to the service; `None` if none is planned.
    pub next: Option<Duration>,
    /// True if the service asked for the pause that lasts until then, or the budget of
    /// calls is used up: no wish shortens it.
    pub is_firm: bool,
}

impl State {
    /// Returns the stand of provisioning.
    #[must_use]
    pub fn stand(&self) -> Stand {
        let (activity, next, is_firm) = match &self.activity {
            Activity::Idle => ("idle", None, false),
            Activity::Asking { .. } => ("asking", None, false),
            Activity::Waiting { until, .. } => ("waiting", Some(*until), true),
            Activity::Proving { .. } => ("proving", None, false),
            Activity::Storing { .. } => ("storing", None, false),
            Activity::Pausing { until, not_before, .. } => {
                ("pausing", Some(*until), not_before == until)
            }
        };
        Stand { activity, failures: self.failures, next, is_firm }
    }

    /// Returns the record of the identity that counts now: also where and when it came
    /// from.
    #[must_use]
    pub fn provisioned(&self) -> Option<&super::Provisioned> {
        self.current.as_ref()
    }
}
