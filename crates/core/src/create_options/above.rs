//! Mounts of folders above this device's own places, such as `/` for a monitor of the
//! whole host: what lies in them of these places is hidden, unless the operator wants it
//! otherwise.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::paths::{HostPath, Resolved, clean, mounted, split_grant, tidy, within};
use super::{Found, Judge, MadeMount, Refusal, Why, listed, shown};

/// The treatment of this device's own sockets and state in a mount of a folder above
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OwnState {
    /// An empty folder is mounted over them. A container that may change its mounts can
    /// take it away again.
    #[default]
    Hide,
    /// Such a mount is refused.
    Refuse,
    /// They are seen.
    Show,
}

impl Judge<'_> {
    /// The places in the container over which an empty folder must be mounted.
    ///
    /// # Errors
    /// Such a mount is to be refused.
    pub fn hidden(
        &self,
        options: &Map<String, Value>,
        found: &Found,
    ) -> Result<BTreeSet<String>, Refusal> {
        let mut hidden = BTreeSet::new();
        for place in mounted(options, &found.volumes) {
            for (own, target) in self.seen_in(&place, &found.resolved) {
                match self.own_state {
                    OwnState::Show => {}
                    OwnState::Hide => _ = hidden.insert(target),
                    OwnState::Refuse => return Err(self.shows(place.option, own)),
                }
            }
        }
        Ok(hidden)
    }

    /// Refuses a mount in which own places are seen. `covered` are the places in the
    /// container where something else is mounted.
    pub(super) fn covered(
        &self,
        place: &HostPath,
        covered: &BTreeSet<String>,
        resolved: &Resolved,
    ) -> Result<(), Refusal> {
        let mut seen = self.seen_in(place, resolved).into_iter();
        match seen.find(|(_, target)| self.own_state != OwnState::Show && !covered.contains(target))
        {
            Some((own, _)) => Err(self.shows(place.option.clone(), own)),
            None => Ok(()),
        }
    }

    /// The own places that are seen in a mount, each with where.
    fn seen_in(&self, place: &HostPath, resolved: &Resolved) -> Vec<(&str, String)> {
        let (Some(path), Some(target)) =
            (clean(&place.path), place.target.as_deref().and_then(tidy))
        else {
            return Vec::new();
        };
        let led_to = resolved.get(&path).cloned().flatten();
        let granted = |own: &str| {
            let mut binds = self.grant.binds.iter().map(|grant| split_grant(grant).0);
            binds.any(|bind| clean(bind).as_deref() == Some(own))
        };
        let mut seen = Vec::new();
        for above in [Some(path), led_to].into_iter().flatten() {
            for own in self
                .present
                .iter()
                .filter(|own| **own != above && within(own, &above) && !granted(own))
            {
                let rest = own.strip_prefix(above.trim_end_matches('/')).unwrap_or(own);
                seen.push((own.as_str(), format!("{}{rest}", target.trim_end_matches('/'))));
            }
        }
        seen
    }

    fn shows(&self, option: String, own: &str) -> Refusal {
        Refusal {
            option,
            why: Why::Shows { path: shown(own), remedy: self.remedy(&listed("binds", own)) },
        }
    }
}

/// Returns the places in a container at which something is mounted.
pub(super) fn targets(made: &[MadeMount], added: &[String]) -> BTreeSet<String> {
    let added = added.iter().filter_map(|bind| bind.split(':').nth(1));
    made.iter().map(|mount| mount.target.as_str()).chain(added).filter_map(tidy).collect()
}
