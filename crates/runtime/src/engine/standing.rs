//! State of a module's own container at the engine, and the single calls that put it
//! right. [`edgekeep_core::container::plan`] decides by the state; the calls carry out
//! its steps. Every call names the container by its id.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edgekeep_core::container::{Namesake, Own, Phase, Seen, Step};
use edgekeep_core::id::ContainerId;
use serde_json::{Map, Value, json};

use super::create::NETWORKS_LABEL;
use super::http::{Call, Target};
use super::{Engine, EngineError};

/// Longest grace that a container's own settings are believed to have, in seconds.
const LONGEST_GRACE: u64 = 3600;

impl Engine {
    /// Looks up the state of the container `own`, which is to have this name. `is_module`
    /// returns true if another container is registered for a module.
    ///
    /// # Errors
    /// What the engine says; it is away.
    pub async fn seen(
        &self,
        name: &str,
        own: &ContainerId,
        is_module: impl Fn(&ContainerId) -> bool,
    ) -> Result<Seen, EngineError> {
        let own = match self.inspect_id(own).await {
            Ok(answer) => Some(own_from_inspect(&answer).ok_or(EngineError::NotJson)?),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        let named_right = own.as_ref().is_some_and(|own| own.name == name);
        let namesake = if named_right { None } else { self.named(name).await? };
        let namesake = namesake
            .filter(|id| own.as_ref().is_none_or(|own| own.id != *id))
            .map(|id| if is_module(&id) { Namesake::OfModule(id) } else { Namesake::Stranger });
        let networks = match &own {
            Some(own) if !own.wanted.is_empty() => self.network_ids().await?,
            _ => BTreeMap::new(),
        };
        Ok(Seen { own, namesake, networks })
    }

    /// The container that has exactly this name, whatever it is.
    async fn named(&self, name: &str) -> Result<Option<ContainerId>, EngineError> {
        let target = Target::new("/containers").segment(name, "/json");
        let answer: Value = match self.connector.json(Call::get(target)).await {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        // The engine also takes a prefix of an id for a name.
        if answer["Name"].as_str().map(|found| found.trim_start_matches('/')) != Some(name) {
            return Ok(None);
        }
        answer["Id"].as_str().and_then(|id| id.parse().ok()).map(Some).ok_or(EngineError::NotJson)
    }

    /// The ids of the engine's networks by their names; some engines let several have one
    /// name.
    ///
    /// # Errors
    /// Engine away.
    pub async fn network_ids(&self) -> Result<BTreeMap<String, BTreeSet<String>>, EngineError> {
        let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for network in self.networks(None).await? {
            if let (Some(name), Some(id)) = (network["Name"].as_str(), network["Id"].as_str()) {
                ids.entry(name.to_owned()).or_default().insert(id.to_owned());
            }
        }
        Ok(ids)
    }

    /// Takes one step. A network is made with `options`; a stop has this grace (`None`:
    /// the container's own).
    ///
    /// # Errors
    /// What the engine says; it is away.
    pub async fn take(
        &self,
        own: &ContainerId,
        step: &Step,
        options: &Map<String, Value>,
        grace: Option<Duration>,
    ) -> Result<(), EngineError> {
        let on = |network: &str, action: &'static str, body: Value| {
            let mut call = Call::post(Target::new("/networks").segment(network, action));
            call.body = Some(body);
            call
        };
        let call = match step {
            Step::Rename { container, name } => return self.rename(container, name).await,
            Step::MakeNetwork(name) => return self.ensure_network(name, options).await,
            Step::Stop => return self.stop_id(own, grace).await,
            // By force: the network that it was attached to may be gone.
            Step::Disconnect(network) => {
                on(network, "/disconnect", json!({ "Container": own.as_str(), "Force": true }))
            }
            Step::Connect { network, endpoint } => on(
                network,
                "/connect",
                json!({ "Container": own.as_str(), "EndpointConfig": endpoint }),
            ),
            Step::Unpause => {
                Call::post(Target::new("/containers").segment(own.as_str(), "/unpause"))
            }
            Step::Start => Call::post(Target::new("/containers").segment(own.as_str(), "/start")),
        };
        self.connector.status_only(call).await
    }

    async fn stop_id(&self, own: &ContainerId, grace: Option<Duration>) -> Result<(), EngineError> {
        let mut target = Target::new("/containers").segment(own.as_str(), "/stop");
        if let Some(grace) = grace {
            target = target.query("t", &grace.as_secs().to_string());
        }
        let own_grace = self.inspect_id(own).await?["Config"]["StopTimeout"].as_u64().unwrap_or(10);
        let mut call = Call::post(target);
        call.limit += grace.unwrap_or(Duration::from_secs(own_grace.min(LONGEST_GRACE)));
        self.connector.status_only(call).await
    }
}

/// Reads an inspection; `None` if it has not the documented form.
fn own_from_inspect(answer: &Value) -> Option<Own> {
    let attached = answer["NetworkSettings"]["Networks"].as_object();
    let noted = answer["Config"]["Labels"][NETWORKS_LABEL].as_str();
    let noted = noted.and_then(|text| serde_json::from_str::<BTreeMap<String, Value>>(text).ok());
    // Containers of former versions have no such note: what they are attached to now is
    // all that is known.
    let now = || {
        attached
            .into_iter()
            .flatten()
            .map(|(name, entry)| (name.clone(), endpoint(entry)))
            .collect()
    };
    Some(Own {
        id: answer["Id"].as_str()?.parse().ok()?,
        name: answer["Name"].as_str()?.trim_start_matches('/').to_owned(),
        phase: Phase::from_word(answer["State"]["Status"].as_str().unwrap_or_default()),
        attached: attached
            .into_iter()
            .flatten()
            .map(|(name, entry)| {
                (name.clone(), entry["NetworkID"].as_str().unwrap_or_default().to_owned())
            })
            .collect(),
        wanted: noted.unwrap_or_else(now),
        removes_itself: answer["HostConfig"]["AutoRemove"].as_bool() == Some(true),
    })
}

/// Returns the settings of an endpoint that were asked for, without those that the engine
/// assigned.
fn endpoint(entry: &Value) -> Value {
    let asked = ["IPAMConfig", "Links", "Aliases", "DriverOpts"];
    let members = asked.into_iter().filter(|member| !entry[*member].is_null());
    Value::Object(members.map(|member| (member.to_owned(), entry[member].clone())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspection() -> Value {
        json!({
            "Id": "a".repeat(64), "Name": "/m1", "State": { "Status": "paused" },
            "Config": { "Labels": { NETWORKS_LABEL: r#"{"edge":{"Aliases":["db"]}}"# } },
            "HostConfig": { "AutoRemove": false },
            "NetworkSettings": { "Networks": { "other": { "NetworkID": "7", "Aliases": ["x"], "IPAddress": "10.0.0.2",
                "IPAMConfig": null } } },
        })
    }

    #[test]
    fn a_container_is_to_be_where_it_was_made_for_and_one_without_a_note_where_it_is() {
        let own = own_from_inspect(&inspection()).expect("documented form");
        assert_eq!(
            (own.name.as_str(), own.phase, own.removes_itself),
            ("m1", Phase::Paused, false)
        );
        assert_eq!(own.attached, BTreeMap::from([("other".to_owned(), "7".to_owned())]));
        assert_eq!(own.wanted, BTreeMap::from([("edge".to_owned(), json!({ "Aliases": ["db"] }))]));
        let mut older = inspection();
        older["Config"]["Labels"] = json!({});
        let own = own_from_inspect(&older).expect("documented form");
        assert_eq!(own.wanted, BTreeMap::from([("other".to_owned(), json!({ "Aliases": ["x"] }))]));
        let mut broken = inspection();
        broken["Id"] = "x".into();
        assert_eq!(own_from_inspect(&broken), None);
    }
}
