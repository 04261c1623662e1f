//! Steps that a module's container needs so that it can do what is asked, after others
//! have had their hands on it.
//!
//! An engine is shared: an operator, a cleaner or another tool pauses, renames,
//! disconnects and removes what a daemon made, at any moment, in the middle of the
//! daemon's own operations too. So no operation relies on what was true before. It looks
//! ([`Seen`]), asks what is missing ([`plan`]), takes these steps, and looks again when
//! one of them fails.
//!
//! A container is known by its id, which nobody can give to another. Its name, its
//! networks and its phase are put right; what would lose data, or take something from
//! others, is an [`Obstacle`] that names cause and remedy.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use crate::health::Code;
use crate::id::ContainerId;

/// The engine's word for what a container does. Docker and Podman have different ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made, and never started.
    Created,
    /// Runs.
    Running,
    /// Frozen: its processes are there and get no time.
    Paused,
    /// Ended, and the engine is about to start it again by itself.
    Restarting,
    /// Was told to end.
    Stopping,
    /// Ended.
    Exited,
    /// Being removed.
    Removing,
    /// Beyond starting.
    Dead,
    /// Something else.
    Unknown,
}

impl Phase {
    /// The phase that an engine's word means.
    #[must_use]
    pub fn from_word(word: &str) -> Self {
        match word {
            "created" | "configured" | "initialized" => Self::Created,
            "running" => Self::Running,
            "paused" => Self::Paused,
            "restarting" => Self::Restarting,
            "stopping" => Self::Stopping,
            "exited" | "stopped" => Self::Exited,
            "removing" => Self::Removing,
            "dead" => Self::Dead,
            _ => Self::Unknown,
        }
    }

    /// Returns true if the container has processes.
    #[must_use]
    pub const fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// A module's own container: the registered one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Its id.
    pub id: ContainerId,
    /// The name that it has now.
    pub name: String,
    /// The phase that the container is in.
    pub phase: Phase,
    /// The networks that it is attached to, each with the id of the network as it was
    /// then: empty if it never started, the name where the engine's networks have no
    /// other id.
    pub attached: BTreeMap<String, String>,
    /// The networks that it is to be attached to, each with the settings of its endpoint.
    pub wanted: BTreeMap<String, Value>,
    /// True if the engine removes the container when it ends.
    pub removes_itself: bool,
}

/// Another container that has a module's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namesake {
    /// One that is registered for another module: names were exchanged.
    OfModule(ContainerId),
    /// One that this daemon did not make.
    Stranger,
}

/// The state that a look finds: the module's own container, another one with its name,
/// and the engine's networks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The module's own container; `None` if it is gone.
    pub own: Option<Own>,
    /// Another one that has the module's name.
    pub namesake: Option<Namesake>,
    /// The engine's networks: the ids of each name, for some engines let several have one
    /// name.
    pub networks: BTreeMap<String, BTreeSet<String>>,
}

/// The name of a module's container, and the network that the daemon itself makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The name that the module's container is to have.
    pub name: &'a str,
    /// The network that the daemon makes when it is not there.
    pub device_network: Option<&'a str>,
}

/// An operation that is asked of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It shall run.
    Start,
    /// It shall end.
    Stop,
    /// It shall be stopped and started: could it be started?
    Prepare,
    /// Nothing is asked: what can be put right without starting or stopping anything.
    Review,
}

/// One call to the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Give a container another name.
    Rename {
        /// The container that is renamed.
        container: ContainerId,
        /// The new name.
        name: String,
    },
    /// Make the device's own network.
    MakeNetwork(String),
    /// Detach the module's container from what is no longer there, or is another network
    /// of that name.
    Disconnect(String),
    /// Attach it.
    Connect {
        /// The network that the container is attached to.
        network: String,
        /// The settings of its endpoint.
        endpoint: Value,
    },
    /// Let it go on.
    Unpause,
    /// Start it.
    Start,
    /// Stop it.
    Stop,
}

/// The reason why an operation cannot be done. Its text names cause and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// There is no container, and nothing else has its name.
    Gone,
    /// The container that has the module's name was not made by this daemon, and the
    /// module's own container is gone.
    Stranger,
    /// The container that has the module's name was not made by this daemon. The module's
    /// own container has another name by now.
    NameTaken {
        /// The present name of the module's own container.
        called: String,
    },
    /// A network is gone that the daemon does not make.
    NetworkMissing {
        /// Its name.
        network: String,
    },
    /// It is beyond starting.
    Dead,
    /// The engine is removing it.
    Removing,
    /// It would be removed as soon as it stops.
    RemovesItself,
}

impl Obstacle {
    /// Its cause and remedy, for the module of this name.
    #[must_use]
    pub fn explained(&self, module: &str) -> String {
        match self {
            Self::Gone => format!(
                "the container of module {module} was removed by something else than this daemon; the agent makes it anew \
                 if its deployment names the module"
            ),
            Self::Stranger => {
                format!(
                    "the container {module} was not made by this daemon; remove the module and create it again"
                )
            }
            Self::NameTaken { called } => format!(
                "a container that this daemon did not make has the name {module}, and the module's own is called {called} \
                 by now; rename or remove the strange one (docker rename {module} OTHER)"
            ),
            Self::NetworkMissing { network } => format!(
                "the network {network} of module {module} is gone; make it again (docker network create {network}), or \
                 take it out of the module's create options"
            ),
            Self::Dead => format!(
                "the container of module {module} is dead; remove the module and create it again"
            ),
            Self::Removing => {
                format!(
                    "the engine is removing the container of module {module}; create the module again"
                )
            }
            Self::RemovesItself => format!(
                "the engine removes the container of module {module} as soon as it stops; take AutoRemove out of the \
                 module's create options"
            ),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
            Self::Exited => "exited",
            Self::Removing => "removing",
            Self::Dead => "dead",
            Self::Unknown => "unknown",
        };
        f.write_str(word)
    }
}

/// The steps that lead from what is there to what is asked, in their order. Taken one
/// after the other without anybody else interfering, they leave nothing to be done.
///
/// # Errors
/// The obstacle that stands in the way.
pub fn plan(
    subject: Subject<'_>,
    seen: &Seen,
    operation: Operation,
) -> Result<Vec<Step>, Obstacle> {
    let Some(own) = &seen.own else {
        return match operation {
            Operation::Review => Ok(Vec::new()),
            _ if seen.namesake.is_some() => Err(Obstacle::Stranger),
            _ => Err(Obstacle::Gone),
        };
    };
    match operation {
        Operation::Stop => Ok(stop(own.phase)),
        Operation::Review => {
            let mut steps = names(subject, own, seen).unwrap_or_default();
            if own.phase != Phase::Paused {
                steps.extend(networks(subject, own, seen).0);
            }
            Ok(steps)
        }
        Operation::Prepare if own.removes_itself => Err(Obstacle::RemovesItself),
        Operation::Prepare | Operation::Start => {
            match own.phase {
                Phase::Dead => return Err(Obstacle::Dead),
                Phase::Removing => return Err(Obstacle::Removing),
                _ => {}
            }
            let mut steps = names(subject, own, seen)?;
            let (attach, missing) = networks(subject, own, seen);
            // What runs goes on without it; what is to be started, now or after a stop,
            // cannot.
            let needed = operation == Operation::Prepare || !own.phase.is_up();
            if let Some(network) = missing.filter(|_| needed) {
                return Err(Obstacle::NetworkMissing { network });
            }
            // Nothing is attached to a frozen container: Podman 5 notes the network
            // without an address, and then fails to end or start the container.
            match (operation, own.phase) {
                (Operation::Start, Phase::Paused) => {
                    steps.push(Step::Unpause);
                    steps.extend(attach);
                }
                // It is stopped first, and attached when it is started.
                (_, Phase::Paused) => {}
                (Operation::Start, phase) => {
                    steps.extend(attach);
                    steps.extend(start(phase));
                }
                _ => steps.extend(attach),
            }
            Ok(steps)
        }
    }
}

/// Returns the trouble of a container while nothing is asked of it, for the operator. A
/// trouble is the reason why the container does not run, or may not run when it is
/// needed.
#[must_use]
pub fn trouble(subject: Subject<'_>, seen: &Seen) -> Option<Trouble> {
    let Some(own) = &seen.own else { return Some(Trouble::Obstacle(Obstacle::Gone)) };
    if let Err(obstacle) = names(subject, own, seen) {
        return Some(Trouble::Obstacle(obstacle));
    }
    match own.phase {
        Phase::Paused => return Some(Trouble::Paused),
        Phase::Dead => return Some(Trouble::Obstacle(Obstacle::Dead)),
        _ => {}
    }
    networks(subject, own, seen)
        .1
        .map(|network| Trouble::Obstacle(Obstacle::NetworkMissing { network }))
}

/// A trouble of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It is paused.
    Paused,
    /// It cannot be started again as it is.
    Obstacle(Obstacle),
}

impl Trouble {
    /// The kinds of problem that troubles are.
    pub const CODES: [Code; 3] =
        [Code::ModulePaused, Code::ContainerGone, Code::ContainerNotRestored];

    /// The kind of problem.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Paused => Code::ModulePaused,
            Self::Obstacle(Obstacle::Gone) => Code::ContainerGone,
            Self::Obstacle(_) => Code::ContainerNotRestored,
        }
    }

    /// Returns the details that the kind of problem does not tell yet. `module` is the
    /// module's name.
    #[must_use]
    pub fn detail(&self, module: &str) -> String {
        match self {
            Self::Paused | Self::Obstacle(Obstacle::Gone) => String::new(),
            Self::Obstacle(obstacle) => obstacle.explained(module),
        }
    }
}

fn start(phase: Phase) -> Option<Step> {
    match phase {
        // The engine is about to start the one itself, and refuses to be told so.
        Phase::Running | Phase::Paused | Phase::Restarting => None,
        _ => Some(Step::Start),
    }
}

fn stop(phase: Phase) -> Vec<Step> {
    match phase {
        // Frozen processes cannot end in order: Docker kills them, Podman refuses.
        Phase::Paused => vec![Step::Unpause, Step::Stop],
        Phase::Created | Phase::Dead | Phase::Removing => Vec::new(),
        // Also what has ended: the engine may be about to start it again.
        _ => vec![Step::Stop],
    }
}

/// The name under which a module's container is put out of the way of another's. It holds
/// the id, so that no module's is like it by accident.
fn out_of_the_way(container: &ContainerId) -> String {
    format!("misnamed-{}", &container.as_str()[..12])
}

fn names(subject: Subject<'_>, own: &Own, seen: &Seen) -> Result<Vec<Step>, Obstacle> {
    if own.name == subject.name {
        return Ok(Vec::new());
    }
    let back = Step::Rename { container: own.id.clone(), name: subject.name.to_owned() };
    match &seen.namesake {
        None => Ok(vec![back]),
        Some(Namesake::OfModule(other)) => {
            Ok(vec![Step::Rename { container: other.clone(), name: out_of_the_way(other) }, back])
        }
        Some(Namesake::Stranger) => Err(Obstacle::NameTaken { called: own.name.clone() }),
    }
}

/// The steps that attach a container to its networks, and the first network that is gone
/// for good.
fn networks(subject: Subject<'_>, own: &Own, seen: &Seen) -> (Vec<Step>, Option<String>) {
    let (mut steps, mut missing) = (Vec::new(), None);
    for (network, endpoint) in &own.wanted {
        let there = seen.networks.get(network).filter(|ids| !ids.is_empty());
        if there.is_none() {
            if subject.device_network != Some(network.as_str()) {
                missing = missing.or_else(|| Some(network.clone()));
                continue;
            }
            steps.push(Step::MakeNetwork(network.clone()));
        }
        let connect = Step::Connect { network: network.clone(), endpoint: endpoint.clone() };
        match own.attached.get(network) {
            // What never started, and every container of an engine that knows networks by
            // name, looks for the name.
            Some(id) if id.is_empty() || id == network => {}
            Some(id) if there.is_some_and(|ids| ids.contains(id)) => {}
            Some(_) => steps.extend([Step::Disconnect(network.clone()), connect]),
            None => steps.push(connect),
        }
    }
    (steps, missing)
}

#[cfg(test)]
mod tests;
